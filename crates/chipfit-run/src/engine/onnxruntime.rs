//! ONNX Runtime, loaded from a library of this machine.
//!
//! Nothing is linked and nothing is downloaded: [`OnnxRuntime::find`] opens the library that [`Places`] finds,
//! 1.17 or newer, and an absent or older one is an [`EngineError::NotFound`]. A process holds one library: the
//! first that was opened. Only the CPU provider is used, sessions report errors only, and telemetry is off.
//!
//! Tensors of all types that ONNX Runtime computes with go in and out bit for bit, save that any non-zero byte
//! of a bool becomes true. Complex, 8-bit-float and sub-byte tensors are [`EngineError::Unsupported`].

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use bytes::Bytes;
use chipfit_model::proto::TensorProto;
use chipfit_model::tensor::is_external;
use chipfit_model::{ConstTensor, DataType, Limits, Model};
use half::{bf16, f16};
use ort::environment::Environment;
use ort::session::Session as OrtSession;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::value::{DynValue, PrimitiveTensorElementType, Tensor, TensorElementType, ValueType};

use super::locate::{Places, not_found};
use super::{Engine, EngineError, Optimisation, Session, check_inputs, guarded};

pub(super) const ENGINE: &str = "ONNX Runtime";
/// Tells a session that was made from bytes where external data lies.
const FOLDER_KEY: &str = "session.model_external_initializers_file_folder_path";

/// How sessions are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionOptions {
    /// Threads inside an operator; 0 takes one per core.
    pub threads: usize,
    /// How far the graph may be rewritten.
    pub optimisation: Optimisation,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self { threads: 1, optimisation: Optimisation::Full }
    }
}

/// ONNX Runtime's CPU provider.
#[derive(Clone)]
pub struct OnnxRuntime {
    environment: Environment,
    library: PathBuf,
    options: SessionOptions,
}

struct Opened {
    environment: Environment,
    library: PathBuf,
}

/// The library of this process and its environment; they live until the process ends.
static OPENED: Mutex<Option<Opened>> = Mutex::new(None);

impl OnnxRuntime {
    /// Finds and opens ONNX Runtime.
    ///
    /// # Errors
    /// [`EngineError::NotFound`] where there is none, where it is older than 1.17 or is no library of ONNX
    /// Runtime, and where this process has already opened another one.
    pub fn find(places: &Places) -> Result<Self, EngineError> {
        Self::open(&places.find()?)
    }

    /// Opens the library at `path`, as [`OnnxRuntime::find`] does.
    ///
    /// # Errors
    /// [`EngineError::NotFound`].
    pub fn open(path: &Path) -> Result<Self, EngineError> {
        let library = path.canonicalize().map_err(|e| not_found(&format!("'{}': {e}", path.display())))?;
        let mut opened = OPENED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(open) = &*opened {
            if open.library != library {
                let (have, want) = (open.library.display(), library.display());
                return Err(not_found(&format!("this process already uses '{have}', so '{want}' cannot be opened")));
            }
            let (environment, options) = (open.environment.clone(), SessionOptions::default());
            return Ok(Self { environment, library, options });
        }
        let environment = guarded(ENGINE, "start", || {
            let builder = ort::init_from(&library).map_err(|e| not_found(&e.to_string()))?;
            builder.with_name("chipfit").with_telemetry(false).build().map_err(|e| failed("start", &e))
        })?;
        *opened = Some(Opened { environment: environment.clone(), library: library.clone() });
        Ok(Self { environment, library, options: SessionOptions::default() })
    }

    /// The same engine with other options for the sessions it makes.
    pub fn with_options(&self, options: SessionOptions) -> Self {
        Self { options, ..self.clone() }
    }

    /// The library in use.
    pub fn library(&self) -> &Path {
        &self.library
    }

    /// The version, from the build information or the library's name; `None` where neither tells it.
    pub fn version(&self) -> Option<String> {
        let from_name = || {
            let name = self.library.file_name()?.to_str()?;
            let rest = name
                .strip_prefix("libonnxruntime.so.")
                .or_else(|| name.strip_prefix("libonnxruntime.").and_then(|r| r.strip_suffix(".dylib")))?;
            Some(rest.to_owned())
        };
        let from_build = || {
            let info = guarded(ENGINE, "start", || Ok(ort::info())).ok()?;
            let rest = info.split("git-branch=rel-").nth(1)?;
            Some(rest.split([',', ' ']).next()?.to_owned())
        };
        from_build().or_else(from_name)
    }

    /// Loads a model as [`Engine::load`] does, into the type that can also be timed.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn session(&self, model: &Bytes, folder: Option<&Path>) -> Result<OnnxRuntimeSession, EngineError> {
        const STEP: &str = "load the model";
        guarded(ENGINE, STEP, || {
            let mut builder = self.builder(folder).map_err(|e| failed(STEP, &e))?;
            for (name, tensor) in external_initializers(model, folder)? {
                let value = to_value(&name, &tensor)?;
                builder = builder.with_external_initializer(&name, value).map_err(|e| failed(STEP, &e))?;
            }
            let session = builder.commit_from_memory(model).map_err(|e| load_error(&e))?;
            let names = |outlets: &[ort::value::Outlet]| outlets.iter().map(|o| o.name().to_owned()).collect();
            let (inputs, outputs) = (names(session.inputs()), names(session.outputs()));
            let types = session.inputs().iter().map(|i| i.dtype().clone()).collect();
            Ok(OnnxRuntimeSession { session, inputs, outputs, types, held: Vec::new() })
        })
    }

    fn builder(&self, folder: Option<&Path>) -> ort::Result<SessionBuilder> {
        let level = match self.options.optimisation {
            Optimisation::None => GraphOptimizationLevel::Disable,
            Optimisation::Basic => GraphOptimizationLevel::Level1,
            Optimisation::Full => GraphOptimizationLevel::All,
        };
        let mut builder = OrtSession::builder(&self.environment)?
            .with_log_level(ort::logging::LogLevel::Error)?
            .with_intra_threads(self.options.threads)?
            .with_inter_threads(1)?
            .with_optimization_level(level)?;
        if let Some(folder) = folder.and_then(|f| std::path::absolute(f).ok()) {
            builder = builder.with_config_entry(FOLDER_KEY, folder.to_string_lossy())?;
        }
        Ok(builder)
    }
}

/// The main graph's initializers that lie in other files, read under the rules of [`Model::tensor`]: older
/// versions read no external data for a model that comes from memory. (In subgraphs it is left to the library.)
fn external_initializers(model: &Bytes, folder: Option<&Path>) -> Result<Vec<(String, ConstTensor)>, EngineError> {
    let Some(folder) = folder else { return Ok(Vec::new()) };
    let wrong = |why: String| EngineError::Failed { engine: ENGINE.to_owned(), step: "load the model", why };
    let mut file = Model::from_bytes(model.clone(), &Limits::default()).map_err(|e| wrong(e.to_string()))?;
    file.folder = Some(folder.to_owned());
    // Refuses locations that lead out of the folder, wherever in the model they are.
    file.external_files().map_err(|e| wrong(e.to_string()))?;
    let external = file.graph().initializer.iter().filter(|t| is_external(t));
    let read = |tensor: &TensorProto| {
        let data = file.tensor(tensor).map_err(|e| wrong(e.to_string()))?;
        Ok((tensor.name.clone().unwrap_or_default(), data))
    };
    external.map(read).collect()
}

impl Engine for OnnxRuntime {
    fn name(&self) -> String {
        self.version().map_or_else(|| ENGINE.to_owned(), |version| format!("{ENGINE} {version}"))
    }

    fn load(&self, model: &Bytes, folder: Option<&Path>) -> Result<Box<dyn Session>, EngineError> {
        Ok(Box::new(self.session(model, folder)?))
    }
}

/// A model in ONNX Runtime.
pub struct OnnxRuntimeSession {
    session: OrtSession,
    inputs: Vec<String>,
    outputs: Vec<String>,
    types: Vec<ValueType>,
    held: Vec<(String, DynValue)>,
}

impl OnnxRuntimeSession {
    /// Converts `inputs` once, for [`OnnxRuntimeSession::run_held`].
    ///
    /// # Errors
    /// [`EngineError`], as for a run.
    pub fn hold(&mut self, inputs: &[(String, ConstTensor)]) -> Result<(), EngineError> {
        self.held = self.values(inputs)?;
        Ok(())
    }

    /// Runs the model on the held inputs and drops the outputs: the part of a run that is worth timing.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn run_held(&mut self) -> Result<(), EngineError> {
        let (session, held) = (&mut self.session, &self.held);
        guarded(ENGINE, "run the model", || {
            let values: Vec<(&str, &DynValue)> = held.iter().map(|(name, value)| (name.as_str(), value)).collect();
            session.run(values).map(drop).map_err(|e| failed("run the model", &e))
        })
    }

    fn values(&self, inputs: &[(String, ConstTensor)]) -> Result<Vec<(String, DynValue)>, EngineError> {
        check_inputs(ENGINE, &self.inputs, inputs)?;
        let types: Vec<(&String, &ValueType)> = self.inputs.iter().zip(&self.types).collect();
        let value = |(name, tensor): &(String, ConstTensor)| {
            let wanted = types.iter().find(|(n, _)| *n == name).and_then(|(_, t)| t.tensor_type());
            if wanted != element_type(tensor.dtype()) {
                let wanted = wanted.map_or_else(|| "no tensor".to_owned(), |t| t.to_string());
                let why = format!("input '{name}' is {}, the model wants {wanted}", tensor.dtype().name());
                return Err(EngineError::Failed { engine: ENGINE.to_owned(), step: "take the inputs", why });
            }
            Ok((name.clone(), to_value(name, tensor)?))
        };
        guarded(ENGINE, "take the inputs", || inputs.iter().map(value).collect())
    }
}

impl Session for OnnxRuntimeSession {
    fn inputs(&self) -> &[String] {
        &self.inputs
    }

    fn outputs(&self) -> &[String] {
        &self.outputs
    }

    fn caveats(&self) -> &[String] {
        &[]
    }

    fn run(&mut self, inputs: &[(String, ConstTensor)]) -> Result<Vec<(String, ConstTensor)>, EngineError> {
        const STEP: &str = "run the model";
        let values = self.values(inputs)?;
        let (session, names) = (&mut self.session, &self.outputs);
        guarded(ENGINE, STEP, || {
            let results = session.run(values).map_err(|e| failed(STEP, &e))?;
            let tensor = |name: &String| {
                let value = results.get(name).ok_or_else(|| EngineError::Failed {
                    engine: ENGINE.to_owned(),
                    step: STEP,
                    why: format!("output '{name}' was not made"),
                })?;
                Ok((name.clone(), to_tensor(name, value)?))
            };
            names.iter().map(tensor).collect()
        })
    }
}

/// Calls `$action!(rust type)` for the element type that `$dtype` stands for.
macro_rules! for_element {
    ($dtype:expr, $action:ident, $otherwise:expr) => {
        match $dtype {
            DataType::Float => $action!(f32),
            DataType::Double => $action!(f64),
            DataType::Float16 => $action!(f16),
            DataType::Bfloat16 => $action!(bf16),
            DataType::Int8 => $action!(i8),
            DataType::Uint8 => $action!(u8),
            DataType::Int16 => $action!(i16),
            DataType::Uint16 => $action!(u16),
            DataType::Int32 => $action!(i32),
            DataType::Uint32 => $action!(u32),
            DataType::Int64 => $action!(i64),
            DataType::Uint64 => $action!(u64),
            DataType::Bool => $action!(bool),
            _ => $otherwise,
        }
    };
}

/// An element as its little-endian bytes.
trait Element: PrimitiveTensorElementType + Copy + std::fmt::Debug + 'static {
    fn list(bytes: &[u8]) -> Vec<Self>;
    fn bytes(elements: &[Self]) -> Vec<u8>;
}

macro_rules! elements {
    ($($type:ty)*) => {$(
        impl Element for $type {
            fn list(bytes: &[u8]) -> Vec<Self> {
                bytes.as_chunks::<{ size_of::<$type>() }>().0.iter().map(|c| Self::from_le_bytes(*c)).collect()
            }
            fn bytes(elements: &[Self]) -> Vec<u8> {
                elements.iter().flat_map(|e| e.to_le_bytes()).collect()
            }
        }
    )*};
}
elements! { f32 f64 f16 bf16 i8 u8 i16 u16 i32 u32 i64 u64 }

impl Element for bool {
    fn list(bytes: &[u8]) -> Vec<Self> {
        bytes.iter().map(|&b| b != 0).collect()
    }
    fn bytes(elements: &[Self]) -> Vec<u8> {
        elements.iter().map(|&e| u8::from(e)).collect()
    }
}

fn element_type(dtype: DataType) -> Option<TensorElementType> {
    macro_rules! of {
        ($type:ty) => {
            Some(<$type as ort::value::IntoTensorElementType>::into_tensor_element_type())
        };
    }
    for_element!(dtype, of, None)
}

fn to_value(name: &str, tensor: &ConstTensor) -> Result<DynValue, EngineError> {
    fn typed<T: Element>(tensor: &ConstTensor) -> ort::Result<DynValue> {
        Ok(Tensor::from_array((tensor.dims().to_vec(), T::list(tensor.bytes())))?.into_dyn())
    }
    macro_rules! make {
        ($type:ty) => {
            typed::<$type>(tensor).map_err(|e| failed("take the inputs", &e))
        };
    }
    for_element!(tensor.dtype(), make, Err(unsupported(format!("'{name}' is {}", tensor.dtype().name()))))
}

fn to_tensor(name: &str, value: &DynValue) -> Result<ConstTensor, EngineError> {
    fn typed<T: Element>(value: &DynValue) -> Option<(Vec<usize>, Vec<u8>)> {
        let (shape, elements) = value.try_extract_tensor::<T>().ok()?;
        let dims = shape.iter().map(|&d| usize::try_from(d)).collect::<Result<_, _>>().ok()?;
        Some((dims, T::bytes(elements)))
    }
    let kind = value.dtype();
    let dtype = kind.tensor_type().and_then(|t| ALL_TYPES.into_iter().find(|d| element_type(*d) == Some(t)));
    let dtype = dtype.ok_or_else(|| unsupported(format!("output '{name}' is {kind}")))?;
    macro_rules! read {
        ($type:ty) => {
            typed::<$type>(value)
        };
    }
    let parts = for_element!(dtype, read, None);
    parts
        .and_then(|(dims, bytes)| ConstTensor::new(dtype, dims, bytes))
        .ok_or_else(|| unsupported(format!("output '{name}' cannot be read as {}", dtype.name())))
}

const ALL_TYPES: [DataType; 13] = [
    DataType::Float,
    DataType::Double,
    DataType::Float16,
    DataType::Bfloat16,
    DataType::Int8,
    DataType::Uint8,
    DataType::Int16,
    DataType::Uint16,
    DataType::Int32,
    DataType::Uint32,
    DataType::Int64,
    DataType::Uint64,
    DataType::Bool,
];

fn unsupported(what: String) -> EngineError {
    EngineError::Unsupported { engine: ENGINE.to_owned(), what }
}

fn failed<R>(step: &'static str, error: &ort::Error<R>) -> EngineError {
    EngineError::Failed { engine: ENGINE.to_owned(), step, why: error.message().trim().to_owned() }
}

/// Sorts the errors of loading by their texts: the codes do not tell a missing operator from a broken model.
fn load_error<R>(error: &ort::Error<R>) -> EngineError {
    let text = error.message();
    missing_operator(text).unwrap_or_else(|| failed("load the model", error))
}

/// The missing operator that `text` speaks of.
fn missing_operator(text: &str) -> Option<EngineError> {
    let after = |marker: &str| text.split_once(marker).map(|(_, rest)| rest);
    // "... find an implementation for Foo(11) node with name 'bar'", "Fatal error: domain:Foo(-1) is not a
    // registered function/op", "No Op registered for Foo with domain_version of 13".
    let (operator, rest) = if let Some(rest) = after("Could not find an implementation for ") {
        (rest.split('(').next()?, rest)
    } else if let Some((before, rest)) = text.split_once(") is not a registered function/op") {
        let signature = before.rsplit(' ').next()?;
        (signature.split('(').next()?, rest)
    } else {
        let rest = after("No Op registered for ")?;
        (rest.split(' ').next()?, rest)
    };
    let node = rest.split_once("node with name '").and_then(|(_, name)| name.split('\'').next());
    let node = node.filter(|n| !n.is_empty()).map(str::to_owned);
    Some(EngineError::MissingOperator { engine: ENGINE.to_owned(), operator: operator.to_owned(), node })
}
