//! ONNX Runtime as a processor: the quantised model itself, with the outputs of its QuantizeLinear nodes exposed.
//!
//! Only those integer tensors are added to the graph's outputs, so ONNX Runtime fuses as it does without them
//! (default optimisation); what it returns is what its integer kernels computed. It has no faults, and the float
//! input that it gets is the dequantised picture, which its own first QuantizeLinear turns into the same bytes.
//!
//! Internal tensors of the program, which the model does not have, are computed from exposed ones where the step
//! has no products.

use std::collections::BTreeMap;

use bytes::Bytes;
use chipfit_model::build::{DimSpec, value_info};
use chipfit_model::{ConstTensor, DataType, Index, Model};
use chipfit_run::engine::{Engine, OnnxRuntime, OnnxRuntimeSession, Session};

use crate::export;
use crate::ops;
use crate::processor::{Processor, ProcessorError, Request, TensorDelta, Trace};
use crate::program::{Op, Program, TensorId, Word, to_channels_last, to_model_layout};
use crate::protection::Protection;
use crate::simulator::update;

/// A quantised model in ONNX Runtime.
pub struct OnnxRuntimeProcessor {
    runtime: OnnxRuntime,
    model: Model,
    program: Program,
    session: OnnxRuntimeSession,
    /// Pictures that one run takes; `None` for any number.
    batch: Option<usize>,
}

impl std::fmt::Debug for OnnxRuntimeProcessor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OnnxRuntimeProcessor").field("description", &self.describe()).finish_non_exhaustive()
    }
}

fn failure(what: impl std::fmt::Display) -> ProcessorError {
    ProcessorError::Engine { processor: "ONNX Runtime".to_owned(), what: what.to_string() }
}

impl OnnxRuntimeProcessor {
    /// Loads `model`, of which `program` was lowered.
    ///
    /// # Errors
    /// [`ProcessorError::Engine`] when ONNX Runtime refuses the model.
    pub fn new(model: &Model, program: Program, runtime: OnnxRuntime) -> Result<Self, ProcessorError> {
        let session = open(model, &program, &runtime)?;
        let input = model.graph().input.iter().find(|input| input.name.as_deref() == Some(program.input_name()));
        let declared = Index::new(model);
        let shapes = chipfit_model::shape::infer(&declared, &BTreeMap::new()).map_err(failure)?;
        let name = input.and_then(|input| input.name.as_deref());
        let name = name.ok_or_else(|| failure(format!("the model has no input '{}'", program.input_name())))?;
        let batch = shapes.get(0, name).dims.and_then(|dims| dims.first()?.known());
        Ok(Self { runtime, model: model.clone(), program, session, batch })
    }

    /// The model as ONNX Runtime gets it: with the integer activations among its outputs.
    ///
    /// # Errors
    /// [`ProcessorError::Engine`] when the model cannot be written.
    pub fn exposed(model: &Model, program: &Program) -> Result<Bytes, ProcessorError> {
        let mut exposed = model.clone();
        let graph = exposed.proto.graph.get_or_insert_default();
        let shapes = BTreeMap::from_iter(program.tensors().iter().map(|tensor| (tensor.name.as_str(), tensor)));
        let made: Vec<String> = graph.node.iter().flat_map(|node| node.output.clone()).collect();
        for name in made {
            let Some(tensor) = shapes.get(name.as_str()) else { continue };
            if graph.output.iter().any(|output| output.name.as_deref() == Some(name.as_str())) {
                continue;
            }
            let dtype = match tensor.word {
                Word::Unsigned => DataType::Uint8,
                Word::Signed => DataType::Int8,
            };
            let picture = tensor.shape.iter().map(|&length| DimSpec::Known(length as i64));
            let dims: Vec<DimSpec> =
                std::iter::once(DimSpec::Named("chipfit_batch".to_owned())).chain(picture).collect();
            graph.output.push(value_info(&name, dtype, &dims));
        }
        exposed.to_bytes().map(Bytes::from).map_err(failure)
    }

    /// The bytes of one batch's exposed tensors, by name, in the program's layout.
    fn run(&mut self, pictures: usize, input: &[u8]) -> Result<BTreeMap<String, Vec<u8>>, ProcessorError> {
        let tensor = self.program.tensor(self.program.input());
        let each = tensor.elements();
        let run = self.batch.unwrap_or(pictures).max(1);
        let mut bytes = input.to_vec();
        // A fixed batch that is not full: the rest is zero.
        bytes.resize(run * each, tensor.zero_point);
        let reals: Vec<f32> = to_model_layout(&bytes, &tensor.shape).iter().map(|&byte| tensor.real(byte)).collect();
        let dims = std::iter::once(run).chain(tensor.shape.iter().copied()).collect();
        let feed = ConstTensor::from_f32(dims, &reals).ok_or_else(|| failure("the input has another size"))?;
        let results = self.session.run(&[(self.program.input_name().to_owned(), feed)]).map_err(failure)?;
        let mut found = BTreeMap::new();
        for (name, result) in results {
            let Some(tensor) = self.program.tensors().iter().find(|tensor| tensor.name == name) else { continue };
            let words = result.bytes();
            if words.len() != run * tensor.elements() {
                return Err(failure(format!("'{name}' came with {} bytes", words.len())));
            }
            let biased: Vec<u8> =
                words[..pictures * tensor.elements()].iter().map(|&word| tensor.from_word(word)).collect();
            found.insert(name, to_channels_last(&biased, &tensor.shape));
        }
        Ok(found)
    }

    /// A tensor's bytes: exposed, the input, or computed from others by a step without products.
    fn tensor(
        &self,
        id: TensorId,
        input: &[u8],
        pictures: usize,
        found: &BTreeMap<String, Vec<u8>>,
    ) -> Result<Vec<u8>, ProcessorError> {
        let tensor = self.program.tensor(id);
        if let Some(bytes) = found.get(&tensor.name) {
            return Ok(bytes.clone());
        }
        if id == self.program.input() {
            return Ok(input.to_vec());
        }
        let hidden = || failure(format!("it does not show the tensor '{}'", tensor.name));
        let step = self.program.steps().iter().find(|step| step.output == id).ok_or_else(hidden)?;
        if matches!(step.op, Op::Linear(_) | Op::MatMul(_)) {
            return Err(hidden());
        }
        let inputs: Vec<Vec<u8>> =
            step.inputs.iter().map(|&id| self.tensor(id, input, pictures, found)).collect::<Result<_, _>>()?;
        let mut all = Vec::with_capacity(pictures * tensor.elements());
        for picture in 0..pictures {
            let part = |(bytes, id): (&Vec<u8>, &TensorId)| {
                let each = self.program.tensor(*id).elements();
                bytes[picture * each..(picture + 1) * each].to_vec()
            };
            let parts: Vec<Vec<u8>> = inputs.iter().zip(&step.inputs).map(part).collect();
            let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
            all.extend(ops::execute(&self.program, step, &parts).map_err(failure)?);
        }
        Ok(all)
    }
}

fn open(model: &Model, program: &Program, runtime: &OnnxRuntime) -> Result<OnnxRuntimeSession, ProcessorError> {
    runtime.session(&OnnxRuntimeProcessor::exposed(model, program)?, model.folder.as_deref()).map_err(failure)
}

impl Processor for OnnxRuntimeProcessor {
    fn describe(&self) -> String {
        format!("{}, CPU provider, QuantizeLinear outputs exposed, no faults", self.runtime.name())
    }

    fn program(&self) -> &Program {
        &self.program
    }

    fn update(&mut self, deltas: &[TensorDelta]) -> Result<(), ProcessorError> {
        let mut program = self.program.clone();
        update::apply(&mut program, deltas)?;
        let mut model = self.model.clone();
        for delta in deltas {
            export::replace(&mut model, &program, &delta.name)?;
        }
        let session = open(&model, &program, &self.runtime)?;
        (self.model, self.program, self.session) = (model, program, session);
        Ok(())
    }

    fn load(&mut self, model: &Model) -> Result<(), ProcessorError> {
        let program = Program::lower(model, self.program.options()).map_err(failure)?;
        if !program.has_structure_of(&self.program) {
            return Err(failure("the new model has another structure than the one it was started with"));
        }
        let session = open(model, &program, &self.runtime)?;
        (self.model, self.program, self.session) = (model.clone(), program, session);
        Ok(())
    }

    fn protect(&mut self, protection: &Protection) -> Result<(), ProcessorError> {
        if *protection == Protection::none() {
            return Ok(());
        }
        Err(failure("it cannot compute parts of a network three times"))
    }

    fn forward(&mut self, request: &Request<'_>) -> Result<Trace, ProcessorError> {
        let each = self.program.tensor(self.program.input()).elements();
        let seen = request.seen(&self.program)?;
        let (input, pictures) = (seen.as_ref(), request.batch.pictures.len());
        let mut trace = Trace { strikes: Some(0), ..Trace::default() };
        let chunk = self.batch.unwrap_or(pictures).max(1) * each.max(1);
        for input in input.chunks(chunk) {
            let pictures = input.len() / each.max(1);
            let found = self.run(pictures, input)?;
            trace.output.extend(self.tensor(self.program.output(), input, pictures, &found)?);
            for &id in request.wanted {
                let bytes = self.tensor(id, input, pictures, &found)?;
                trace.tensors.entry(id).or_default().extend(bytes);
            }
        }
        Ok(trace)
    }
}

#[cfg(test)]
mod tests;
