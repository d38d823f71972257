//! The embedded engine: the `rten` crate, always there.
//!
//! `rten` computes in float, int32, int8 and uint8. Double and float16 become float; int64 and bool become
//! int32. Outputs are converted back to the types that the file declares, and [`Session::caveats`] says so for
//! each type that the file uses. An int64 or bool *input* that int32 cannot hold is an error, never cut off.
//! What the file leaves to the standard is spelled out first where `rten` needs it, and a padding rule that `rten`
//! would take for another is refused (`rten/adapt.rs`).
//!
//! Known to differ from the standard, measured on ONNX's node tests: cubic Resize (up to 3% of max|y|), Sign of 0
//! (1 instead of 0), NonMaxSuppression over several classes, DynamicQuantizeLinear by one step at ties. That does
//! not disturb the comparison of two models, both of which run here; it does disturb one with another engine.
//!
//! All else (bfloat16, 16-bit and unsigned integers, model-local functions, sparse initializers, rarer
//! operators) is refused while loading.

mod adapt;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use chipfit_model::proto::__buffa::oneof::type_proto::Value as TypeValue;
use chipfit_model::proto::ValueInfoProto;
use chipfit_model::{ConstTensor, DataType, Index, Limits, Model};
use half::{bf16, f16};
use rten::{ModelOptions, NodeId, RunOptions, ThreadPool, Value, ValueOrView};
use rten_tensor::prelude::*;
use rten_tensor::{Tensor, TensorView};

use super::{Engine, EngineError, Optimisation, Session, check_inputs, guarded};
use crate::random::real_inputs;

const ENGINE: &str = "rten";
const VERSION: &str = "0.27.0";
const LOAD: &str = "load the model";
const RUN: &str = "run the model";

/// The embedded engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RtenEngine {
    /// Threads; 0 takes one per physical core.
    pub threads: usize,
    /// Whether operators may be fused; `Basic` and `Full` are one level here.
    pub optimisation: Optimisation,
}

impl Engine for RtenEngine {
    fn name(&self) -> String {
        format!("{ENGINE} {VERSION}")
    }

    fn load(&self, model: &Bytes, folder: Option<&Path>) -> Result<Box<dyn Session>, EngineError> {
        let mut file = Model::from_bytes(model.clone(), &Limits::default()).map_err(|e| failed(LOAD, e))?;
        file.folder = folder.map(Path::to_owned);
        if let Some(sparse) = file.graph().sparse_initializer.first() {
            let name = sparse.values.name.clone().unwrap_or_default();
            return Err(unsupported(format!("initializer '{name}' is sparse")));
        }
        let inputs = outlets(&real_inputs(&file));
        let outputs = outlets(&file.graph().output.iter().collect::<Vec<_>>());
        let caveats = caveats(&file, inputs.iter().chain(&outputs));
        let mut options = ModelOptions::with_all_ops();
        options.enable_optimization(self.optimisation != Optimisation::None);
        let adapted = adapt::adapt(&mut file)?;
        for (location, data) in &adapted.data {
            options.external_data(location, read_beside(folder, data)?);
        }
        let bytes = if adapted.changed { file.to_bytes().map_err(|e| failed(LOAD, e))? } else { model.to_vec() };
        drop(file);
        let loaded = guarded(ENGINE, LOAD, || options.load(bytes).map_err(|e| load_error(&e)))?;
        let id = |name: &String| {
            loaded.find_node(name).ok_or_else(|| failed(LOAD, format!("'{name}' was lost while loading")))
        };
        let input_ids = inputs.iter().map(|o| id(&o.name)).collect::<Result<_, _>>()?;
        let output_ids = outputs.iter().map(|o| id(&o.name)).collect::<Result<_, _>>()?;
        let pool = (self.threads > 0).then(|| Arc::new(ThreadPool::with_num_threads(self.threads)));
        Ok(Box::new(RtenSession {
            input_names: inputs.into_iter().map(|o| o.name).collect(),
            output_names: outputs.iter().map(|o| o.name.clone()).collect(),
            outputs,
            input_ids,
            output_ids,
            caveats,
            model: loaded,
            pool,
        }))
    }
}

/// An input or output as the file declares it.
struct Outlet {
    name: String,
    dtype: Option<DataType>,
}

fn outlets(infos: &[&ValueInfoProto]) -> Vec<Outlet> {
    let outlet = |info: &&ValueInfoProto| {
        let code = match &info.r#type.value {
            Some(TypeValue::TensorType(tensor)) => tensor.elem_type.unwrap_or(0),
            _ => 0,
        };
        Outlet { name: info.name.clone().unwrap_or_default(), dtype: DataType::from_code(code) }
    };
    infos.iter().map(outlet).collect()
}

/// What this engine computes otherwise than the file asks, judged by the types of inputs, outputs and constants
/// (int64 constants left out: nearly every file has some, as shapes).
fn caveats<'a>(file: &Model, outlets: impl Iterator<Item = &'a Outlet>) -> Vec<String> {
    let index = Index::new(file);
    let constants = index.tensors().into_iter().filter_map(|t| DataType::from_code(t.data_type.unwrap_or(0)));
    let constants = constants.filter(|dtype| *dtype != DataType::Int64);
    let used: BTreeSet<DataType> = outlets.filter_map(|o| o.dtype).chain(constants).collect();
    let texts = [
        (DataType::Double, "double values are computed in float"),
        (DataType::Float16, "float16 values are computed in float, without rounding in between"),
        (DataType::Int64, "int64 values are computed in int32"),
    ];
    texts.iter().filter(|(dtype, _)| used.contains(dtype)).map(|(_, text)| (*text).to_owned()).collect()
}

/// Reads the external data file `data`, which must stay inside `folder`.
fn read_beside(folder: Option<&Path>, data: &Path) -> Result<Vec<u8>, EngineError> {
    let fail = |why: String| failed(LOAD, format!("external data '{}': {why}", data.display()));
    let folder = folder.ok_or_else(|| fail("the model's folder is not known".to_owned()))?;
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let root = folder.canonicalize().map_err(|e| fail(e.to_string()))?;
    let path = root.join(data).canonicalize().map_err(|e| fail(e.to_string()))?;
    if !path.starts_with(&root) {
        return Err(fail("it leads out of the model's folder".to_owned()));
    }
    std::fs::read(&path).map_err(|e| fail(e.to_string()))
}

struct RtenSession {
    model: rten::Model,
    input_names: Vec<String>,
    input_ids: Vec<NodeId>,
    output_names: Vec<String>,
    output_ids: Vec<NodeId>,
    outputs: Vec<Outlet>,
    caveats: Vec<String>,
    pool: Option<Arc<ThreadPool>>,
}

impl Session for RtenSession {
    fn inputs(&self) -> &[String] {
        &self.input_names
    }

    fn outputs(&self) -> &[String] {
        &self.output_names
    }

    fn caveats(&self) -> &[String] {
        &self.caveats
    }

    fn run(&mut self, inputs: &[(String, ConstTensor)]) -> Result<Vec<(String, ConstTensor)>, EngineError> {
        check_inputs(ENGINE, &self.input_names, inputs)?;
        let mut values: Vec<(NodeId, ValueOrView)> = Vec::with_capacity(inputs.len());
        for (name, &id) in self.input_names.iter().zip(&self.input_ids) {
            if let Some((_, tensor)) = inputs.iter().find(|(given, _)| given == name) {
                values.push((id, to_value(name, tensor)?.into()));
            }
        }
        let options = RunOptions::default().with_thread_pool(self.pool.clone());
        // The engine refuses a list that names one output twice, which a file may do.
        let mut wanted: Vec<NodeId> = Vec::new();
        for id in &self.output_ids {
            if !wanted.contains(id) {
                wanted.push(*id);
            }
        }
        let model = &self.model;
        let results = guarded(ENGINE, RUN, || model.run(values, &wanted, Some(options)).map_err(|e| run_error(&e)))?;
        let result = |(outlet, id): (&Outlet, &NodeId)| {
            let position = wanted.iter().position(|w| w == id);
            let value = position.and_then(|p| results.get(p));
            let value = value.ok_or_else(|| failed(RUN, format!("output '{}' was not made", outlet.name)))?;
            Ok((outlet.name.clone(), to_tensor(outlet, value)?))
        };
        self.outputs.iter().zip(&self.output_ids).map(result).collect()
    }
}

/// `tensor` in the type that the engine computes in.
fn to_value(name: &str, tensor: &ConstTensor) -> Result<Value, EngineError> {
    let (dims, bytes) = (tensor.dims(), tensor.bytes());
    fn made<T>(dims: &[usize], data: Vec<T>) -> Tensor<T> {
        Tensor::from_data(dims, data)
    }
    Ok(match tensor.dtype() {
        DataType::Uint8 => made(dims, bytes.to_vec()).into(),
        DataType::Int8 => made(dims, bytes.iter().map(|b| b.cast_signed()).collect()).into(),
        DataType::Float => made(dims, bytes.as_chunks::<4>().0.iter().map(|c| f32::from_le_bytes(*c)).collect()).into(),
        DataType::Double | DataType::Float16 => {
            let values = tensor.to_f64_vec().unwrap_or_default();
            made(dims, values.into_iter().map(|v| v as f32).collect()).into()
        }
        DataType::Int32 | DataType::Int64 | DataType::Bool => {
            let narrow = |v: i64| {
                let v = if tensor.dtype() == DataType::Bool { i64::from(v != 0) } else { v };
                i32::try_from(v).map_err(|_| unsupported(format!("input '{name}' holds {v}, int32 does not")))
            };
            let values = tensor.to_i64_vec().unwrap_or_default();
            made(dims, values.into_iter().map(narrow).collect::<Result<_, _>>()?).into()
        }
        other => return Err(unsupported(format!("input '{name}' is {}", other.name()))),
    })
}

/// `value` in the type that the file declares, or in the engine's own where it declares none.
fn to_tensor(outlet: &Outlet, value: &Value) -> Result<ConstTensor, EngineError> {
    fn bytes<T: Copy, const N: usize>(view: TensorView<T>, element: impl Fn(T) -> [u8; N]) -> Vec<u8> {
        view.to_vec().into_iter().flat_map(element).collect()
    }
    let dims = value.shape().to_vec();
    let (dtype, bytes) = match (value, outlet.dtype) {
        (Value::FloatTensor(v), None | Some(DataType::Float)) => (DataType::Float, bytes(v.view(), f32::to_le_bytes)),
        (Value::FloatTensor(v), Some(dtype @ DataType::Double)) => {
            (dtype, bytes(v.view(), |e| f64::from(e).to_le_bytes()))
        }
        (Value::FloatTensor(v), Some(dtype @ DataType::Float16)) => {
            (dtype, bytes(v.view(), |e| f16::from_f32(e).to_le_bytes()))
        }
        (Value::FloatTensor(v), Some(dtype @ DataType::Bfloat16)) => {
            (dtype, bytes(v.view(), |e| bf16::from_f32(e).to_le_bytes()))
        }
        (Value::Int32Tensor(v), None | Some(DataType::Int32)) => (DataType::Int32, bytes(v.view(), i32::to_le_bytes)),
        (Value::Int32Tensor(v), Some(dtype @ DataType::Int64)) => {
            (dtype, bytes(v.view(), |e| i64::from(e).to_le_bytes()))
        }
        (Value::Int32Tensor(v), Some(dtype @ DataType::Bool)) => (dtype, bytes(v.view(), |e| [u8::from(e != 0)])),
        (Value::Int8Tensor(v), None | Some(DataType::Int8)) => (DataType::Int8, bytes(v.view(), i8::to_le_bytes)),
        (Value::UInt8Tensor(v), None | Some(DataType::Uint8)) => (DataType::Uint8, v.to_vec()),
        (_, declared) => {
            let declared = declared.map_or("no tensor of a known type", DataType::name);
            let made = value.dtype();
            return Err(unsupported(format!(
                "output '{}' is declared {declared}, the engine makes {made}",
                outlet.name
            )));
        }
    };
    ConstTensor::new(dtype, dims, bytes)
        .ok_or_else(|| failed(RUN, format!("output '{}' has the wrong number of elements", outlet.name)))
}

fn failed(step: &'static str, why: impl ToString) -> EngineError {
    EngineError::Failed { engine: ENGINE.to_owned(), step, why: why.to_string() }
}

fn unsupported(what: String) -> EngineError {
    EngineError::Unsupported { engine: ENGINE.to_owned(), what }
}

/// Sorts the errors of loading. Only the text tells a missing operator from an attribute that is not understood.
fn load_error(error: &rten::LoadError) -> EngineError {
    let (text, node) = (error.to_string(), error.node().filter(|n| !n.is_empty()).map(str::to_owned));
    let known = ["operator not supported or not enabled", "is not supported", "requires the"];
    if let Some((before, _)) = text.split_once(" operator not supported or not enabled") {
        let operator = before.rsplit(' ').next().unwrap_or_default().to_owned();
        return EngineError::MissingOperator { engine: ENGINE.to_owned(), operator, node };
    }
    match error.kind() {
        rten::LoadErrorKind::OperatorInvalid => unsupported(text),
        _ if text.contains("unsupported data type") || known.iter().any(|k| text.contains(k)) => unsupported(text),
        _ => failed(LOAD, text),
    }
}

/// Sorts the errors of running. The file was checked before and the inputs by the engine, so an operator that fails
/// is one that the engine does not have in full: 3-D windows, rarer element types, optional outputs.
fn run_error(error: &rten::RunError) -> EngineError {
    match error.kind() {
        rten::RunErrorKind::OperatorError => unsupported(error.to_string()),
        _ => failed(RUN, error),
    }
}
