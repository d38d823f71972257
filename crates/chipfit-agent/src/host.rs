//! What the child process does: it holds the processor and answers one message with one message.
//!
//! `Load`, `Protect`, `Work` and `More` come with everything they need (a model, the bytes of all pictures); the answers are
//! `Loaded`, `Protected`, `Trace`, `MoreTrace` or `Error`. There are no sockets, pipes or clocks that decide anything here, so
//! that the whole of it can be tested in one process. What the messages hold comes from a peer: it is checked before it reaches
//! the processor.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use chipfit_kernels::Isa;
use chipfit_model::Model;
use chipfit_npu::faults::{Faults, FaultsFile};
use chipfit_npu::lower::Requantize;
use chipfit_npu::onnxruntime::OnnxRuntimeProcessor;
use chipfit_npu::protection::PlanFile;
use chipfit_npu::simulator::{Simulator, SimulatorOptions};
use chipfit_npu::{Batch, Processor, ProcessorError, Program, Protection, Request, TensorId, View};
use chipfit_run::engine::{OnnxRuntime, Places, SessionOptions};
use chipfit_wire::activation::{self, PARAMETERS_BYTES, Parameters, REQUEST_BYTES};
use chipfit_wire::format::{Blob, Varint};
use chipfit_wire::message::{
    Code, ElementType, Encoding, ErrorReport, Held, Load, Loaded, Message, Mode, More, MoreTrace, Protect, Protected,
    TensorAnswer, TensorPayload, TensorRequest, Trace, TraceBody, Work, plan_hash, tensor_check,
};

use crate::config::{DeviceConfig, ProcessorKind, Rounding};
use crate::constants::{self, Constants};
use crate::{files, lowering};

/// No faults file is larger.
const MOST_FAULTS_BYTES: u64 = 16 << 20;

/// Why a message was not done: for the trainer.
type Refusal = (Code, String);

/// The processor, and what it was last asked.
pub(crate) struct Host {
    config: DeviceConfig,
    loaded: Option<Ready>,
}

/// A processor that is ready to work.
struct Ready {
    processor: Box<dyn Processor>,
    identity: [u8; 32],
    constants: Constants,
    plan: [u8; 32],
    step: u64,
    kept: Option<Kept>,
}

/// The last trace, for `More`: each tensor with the parameters of its encoding.
struct Kept {
    tensors: BTreeMap<TensorId, (Vec<u8>, Parameters)>,
}

impl Ready {
    fn held(&self) -> Held {
        Held {
            model: Some(self.identity),
            weights: Some(self.constants.hash()),
            plan: Some(self.plan),
            trace: None,
            step: self.step,
            pictures: 0,
        }
    }
}

impl Host {
    /// Without a model yet.
    pub(crate) fn new(config: DeviceConfig) -> Self {
        Self { config, loaded: None }
    }

    /// The answer to a message.
    pub(crate) fn answer(&mut self, message: Message) -> Message {
        let tag = message.tag().unwrap_or_default();
        let answer = match message {
            Message::Load(load) => self.load(&load),
            Message::Protect(protect) => self.protect(&protect),
            Message::Work(work) => self.work(&work),
            Message::More(more) => self.more(&more),
            other => Err((Code::Unexpected, format!("the processor takes no {}", other.name()))),
        };
        answer.unwrap_or_else(|(code, text)| Message::Error(ErrorReport { tag, code, text }))
    }

    fn ready(&mut self) -> Result<&mut Ready, Refusal> {
        self.loaded.as_mut().ok_or_else(|| (Code::NoModel, "the processor holds no model; load one".to_owned()))
    }

    fn load(&mut self, load: &Load) -> Result<Message, Refusal> {
        // A model that fails leaves nothing behind: the trainer loads again.
        self.loaded = None;
        let model = load.model.as_ref().ok_or_else(|| (Code::NoModel, "the model's bytes are missing".to_owned()))?;
        let bad = |error: &dyn std::fmt::Display| (Code::BadModel, format!("the model: {error}"));
        let model = Model::from_bytes(Bytes::from_owner(Arc::clone(model)), &chipfit_model::Limits::default());
        let model = model.map_err(|error| bad(&error))?;
        let options = lowering::from_text(&load.lowering).map_err(|text| (Code::BadModel, text))?;
        self.check_rounding(options.requantize)?;
        let program = Program::lower(&model, &options).map_err(|error| bad(&error))?;
        let constants = Constants::of(&program);
        let mut ready = Ready {
            processor: self.processor(&model, program)?,
            identity: load.identity,
            constants,
            plan: plan_hash(""),
            step: 0,
            kept: None,
        };
        if !load.plan.is_empty() {
            ready.protect(&load.plan)?;
        }
        ready.update(&load.weights, &load.weights_hash)?;
        let held = ready.held();
        self.loaded = Some(ready);
        Ok(Message::Loaded(Loaded { tag: load.tag, held }))
    }

    fn check_rounding(&self, asked: Requantize) -> Result<(), Refusal> {
        let asked = match asked {
            Requantize::Onnx => Rounding::Onnx,
            Requantize::Fixed => Rounding::Fixed,
        };
        match self.config.requantize {
            Some(own) if own != asked => {
                let (own, asked) = (own.name(), asked.name());
                let text = format!(
                    "the device requantizes '{own}' and the trainer expects '{asked}'; take --requantize {own}"
                );
                Err((Code::BadModel, text))
            }
            _ => Ok(()),
        }
    }

    fn threads(&self) -> usize {
        let own = self.config.threads.map(NonZeroU32::get).and_then(|threads| usize::try_from(threads).ok());
        own.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
    }

    fn processor(&self, model: &Model, program: Program) -> Result<Box<dyn Processor>, Refusal> {
        let config = &self.config;
        let failed = |error: &dyn std::fmt::Display| (Code::Processor, error.to_string());
        match config.processor {
            ProcessorKind::Sim => {
                let isa = config.isa.as_ref().map(|name| {
                    let found = Isa::available().into_iter().find(|isa| isa.name() == name);
                    found.ok_or_else(|| failed(&format!("isa: this machine has no '{name}'")))
                });
                let faults = self.faults(&program)?;
                let options = SimulatorOptions {
                    isa: isa.transpose()?,
                    threads: self.threads(),
                    machine: faults.as_ref().map(Faults::machine).unwrap_or_default(),
                    ..SimulatorOptions::default()
                };
                let mut simulator = Simulator::new(program, options).map_err(|error| failed(&error))?;
                if let Some(faults) = faults {
                    simulator = simulator.with_faults(Arc::new(faults), config.seed);
                }
                Ok(Box::new(simulator))
            }
            ProcessorKind::OnnxRuntime => {
                let places = Places { library: config.onnxruntime.clone(), ..Places::from_environment() };
                let runtime = OnnxRuntime::find(&places).map_err(|error| failed(&error))?;
                let options = SessionOptions { threads: self.threads(), ..SessionOptions::default() };
                let runtime = runtime.with_options(options);
                let processor = OnnxRuntimeProcessor::new(model, program, runtime).map_err(|error| failed(&error))?;
                Ok(Box::new(processor))
            }
        }
    }

    fn faults(&self, program: &Program) -> Result<Option<Faults>, Refusal> {
        let Some(path) = &self.config.faults else { return Ok(None) };
        let failed = |error: &dyn std::fmt::Display| (Code::Processor, format!("'{}': {error}", path.display()));
        let bytes = files::read(path, MOST_FAULTS_BYTES).map_err(|error| (Code::Processor, error.to_string()))?;
        let text = String::from_utf8(bytes).map_err(|error| failed(&error))?;
        let file = FaultsFile::parse(&text).map_err(|error| failed(&error))?;
        Faults::resolve(&file, program, self.config.seed).map(Some).map_err(|error| failed(&error))
    }

    fn protect(&mut self, protect: &Protect) -> Result<Message, Refusal> {
        let ready = self.ready()?;
        ready.protect(&protect.plan)?;
        Ok(Message::Protected(Protected { tag: protect.tag, held: ready.held() }))
    }

    fn work(&mut self, work: &Work) -> Result<Message, Refusal> {
        let ready = self.ready()?;
        if ready.constants.hash() != work.weights_hash {
            if ready.constants.hash() != work.base_hash {
                return Err((
                    Code::WrongBase,
                    "the processor holds other weights than the update starts from".to_owned(),
                ));
            }
            ready.update(work.update.as_deref().unwrap_or_default(), &work.weights_hash)?;
        }
        let body = ready.compute(work)?;
        Ok(Message::Trace(Trace { tag: work.tag, body }))
    }

    fn more(&mut self, more: &More) -> Result<Message, Refusal> {
        let ready = self.ready()?;
        let gone = || (Code::NoTrace, "the trace is gone; ask for the work again".to_owned());
        let kept = ready.kept.as_ref().ok_or_else(gone)?;
        let answer = |question: &TensorRequest| {
            let id = usize::try_from(question.tensor.0).map(TensorId).ok();
            let (bytes, parameters) = id.and_then(|id| kept.tensors.get(&id)).ok_or_else(|| {
                (Code::BadWork, format!("tensor {} was not among those wanted as increments", question.tensor.0))
            })?;
            let request = activation_request(&question.bytes).map_err(|text| (Code::BadWork, text))?;
            let bytes = activation::more(bytes, parameters, &request).into();
            Ok(TensorAnswer { tensor: question.tensor, bytes })
        };
        let answers: Result<Vec<TensorAnswer>, Refusal> = more.requests.iter().map(answer).collect();
        Ok(Message::MoreTrace(MoreTrace { tag: more.tag, answers: answers? }))
    }
}

fn activation_request(bytes: &[u8]) -> Result<activation::Request, String> {
    let bytes: &[u8; REQUEST_BYTES] = bytes
        .try_into()
        .map_err(|_| format!("a request of {} bytes where {REQUEST_BYTES} are expected", bytes.len()))?;
    activation::Request::from_bytes(bytes).map_err(|error| error.to_string())
}

/// How each wanted tensor is to be sent: as it is in the straightforward mode, by the trainer's parameters in the other.
fn parameters(work: &Work, wanted: usize) -> Result<Option<Vec<Parameters>>, Refusal> {
    let bad = |text: String| (Code::BadWork, text);
    match work.mode {
        Mode::Straightforward => Ok(None),
        Mode::Increments if work.parameters.len() == wanted => {
            let read = |bytes: &Blob| {
                let bytes: &[u8; PARAMETERS_BYTES] = (**bytes).try_into().map_err(|_| {
                    bad(format!("parameters of {} bytes where {PARAMETERS_BYTES} are expected", bytes.len()))
                })?;
                Parameters::from_bytes(bytes).map_err(|error| bad(error.to_string()))
            };
            work.parameters.iter().map(read).collect::<Result<_, _>>().map(Some)
        }
        Mode::Increments => Err(bad(format!("{} parameters for {wanted} wanted tensors", work.parameters.len()))),
        other => Err(bad(format!("the mode {} is not known here", other.name()))),
    }
}

impl Ready {
    fn protect(&mut self, plan: &str) -> Result<(), Refusal> {
        let bad = |error: &dyn std::fmt::Display| (Code::BadPlan, error.to_string());
        let protection = if plan.is_empty() {
            Protection::none()
        } else {
            let file = PlanFile::parse(plan).map_err(|error| bad(&error))?;
            Protection::resolve(&file, self.processor.program()).map_err(|error| bad(&error))?
        };
        self.processor.protect(&protection).map_err(|error| bad(&error))?;
        self.plan = plan_hash(plan);
        self.kept = None;
        Ok(())
    }

    /// Applies an update (empty for none); the weights have the expected hash afterwards.
    fn update(&mut self, update: &[u8], expected: &[u8; 32]) -> Result<(), Refusal> {
        self.kept = None;
        if !update.is_empty() {
            let deltas = constants::changes(self.processor.program(), &self.constants, update);
            let deltas = deltas.map_err(|text| (Code::BadUpdate, text))?;
            self.processor.update(&deltas).map_err(|error| (Code::BadUpdate, error.to_string()))?;
            self.constants = Constants::of(self.processor.program());
        }
        if self.constants.hash() != *expected {
            return Err((Code::WeightHash, "the weights after the update are not those the trainer holds".to_owned()));
        }
        Ok(())
    }

    fn compute(&mut self, work: &Work) -> Result<TraceBody, Refusal> {
        let program = self.processor.program();
        let elements = program.tensor(program.input()).elements();
        let bytes: HashMap<[u8; 16], &Blob> = work.new_pictures.iter().map(|new| (new.hash, &new.bytes)).collect();
        let mut input = Vec::new();
        for picture in &work.pictures {
            let bytes = bytes.get(&picture.hash).filter(|bytes| bytes.len() == elements).ok_or_else(|| {
                (Code::BadPicture, format!("picture {} is not {elements} bytes as the model's input is", picture.id))
            })?;
            input.extend_from_slice(bytes);
        }
        let ids: Vec<u64> = work.pictures.iter().map(|picture| picture.id).collect();
        let view = |view: chipfit_wire::message::View| View { flip: view.flip, down: view.down, right: view.right };
        let views: Vec<View> = work.pictures.iter().map(|picture| view(picture.view)).collect();
        let wanted = wanted(program, &work.wanted)?;
        let parameters = parameters(work, wanted.len())?;
        let request = Request {
            batch: Batch { pictures: &ids, input: &input },
            trial: work.trial,
            views: &views,
            wanted: &wanted,
        };
        let begin = Instant::now();
        let trace = self.processor.forward(&request).map_err(|error| match error {
            error @ ProcessorError::InputLength { .. } => (Code::BadWork, error.to_string()),
            error => (Code::Processor, error.to_string()),
        })?;
        let program = self.processor.program();
        let output = program.output();
        let mut tensors = Vec::with_capacity(wanted.len());
        let mut kept = BTreeMap::new();
        let mut remaining = trace.tensors;
        for (at, &id) in wanted.iter().enumerate() {
            let bytes =
                remaining.remove(&id).ok_or_else(|| (Code::BadWork, format!("tensor {} is wanted twice", id.0)))?;
            match parameters.as_ref().and_then(|all| all.get(at)) {
                None => tensors.push(raw(program, id, ids.len(), &bytes)?),
                Some(parameters) => {
                    let encoded = (Encoding::Increments, activation::first(&bytes, parameters).into());
                    tensors.push(described(program, id, ids.len(), tensor_check(&bytes), encoded)?);
                    kept.insert(id, (bytes, *parameters));
                }
            }
        }
        let output = if kept.contains_key(&output) {
            // It is among the tensors already.
            raw(program, output, 0, &[])?
        } else {
            raw(program, output, ids.len(), &trace.output)?
        };
        // Coding what was computed is the device's work, too.
        let processor_ns = u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.step = work.tag.step;
        self.kept = Some(Kept { tensors: kept });
        Ok(TraceBody { strikes: trace.strikes, processor_ns, output, tensors })
    }
}

/// The tensors of these numbers, all of the program.
fn wanted(program: &Program, numbers: &[Varint]) -> Result<Vec<TensorId>, Refusal> {
    let id = |number: &Varint| {
        let id = usize::try_from(number.0).ok().filter(|&id| id < program.tensors().len());
        id.map(TensorId).ok_or_else(|| (Code::BadWork, format!("the program has no tensor {}", number.0)))
    };
    numbers.iter().map(id).collect()
}

/// A tensor as it is.
fn raw(program: &Program, id: TensorId, pictures: usize, bytes: &[u8]) -> Result<TensorPayload, Refusal> {
    described(program, id, pictures, tensor_check(bytes), (Encoding::Raw, bytes.into()))
}

/// A payload, with what is known of its tensor; `check` is of the tensor's own bytes.
fn described(
    program: &Program,
    id: TensorId,
    pictures: usize,
    check: [u8; 8],
    (encoding, bytes): (Encoding, Blob),
) -> Result<TensorPayload, Refusal> {
    let number = |value: usize| {
        let beyond = |_| (Code::Limits, format!("{value} is beyond what the protocol counts"));
        u32::try_from(value).map(Varint).map_err(beyond)
    };
    let shape = std::iter::once(&pictures).chain(&program.tensor(id).shape).map(|&extent| number(extent));
    let shape = shape.collect::<Result<_, _>>()?;
    Ok(TensorPayload { tensor: number(id.0)?, element: ElementType::U8, shape, encoding, check, bytes })
}

#[cfg(test)]
mod tests;
