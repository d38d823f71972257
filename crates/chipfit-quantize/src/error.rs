//! Why a model cannot be quantised.

use chipfit_model::index::CheckError;
use chipfit_model::{ShapeError, TensorError};
use chipfit_run::engine::EngineError;

/// Why a model cannot be quantised. Nothing was written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuantizeError {
    /// The model holds quantised operators.
    #[error("the model is already quantised: node '{node}' is {operator}; give the float model")]
    AlreadyQuantised {
        /// The first such node.
        node: String,
        /// Its operator.
        operator: String,
    },
    /// If, Loop or Scan.
    #[error("node '{node}' ({operator}) holds a subgraph; models with control flow cannot be quantised")]
    ControlFlow {
        /// The node.
        node: String,
        /// Its operator.
        operator: String,
    },
    /// Something that a float classifier does not need.
    #[error("the model has {what}; {hint}")]
    Unsupported {
        /// The thing.
        what: String,
        /// What to do.
        hint: &'static str,
    },
    /// The operator set cannot be raised to 13.
    #[error("opset {opset}{}: {why}; convert the model with onnx.version_converter first", node.as_ref().map(|n| format!(", node '{n}'")).unwrap_or_default())]
    Opset {
        /// The file's.
        opset: i64,
        /// The node in the way.
        node: Option<String>,
        /// What is in the way.
        why: String,
    },
    /// A node that contradicts its operator, or a use of it that is not understood.
    #[error("node '{node}' ({operator}): {why}")]
    Node {
        /// The node.
        node: String,
        /// The operator.
        operator: String,
        /// What is wrong.
        why: String,
    },
    /// Nothing in the model has a quantised form.
    #[error("the model has no float Conv, Gemm, MatMul or other operator with a quantised form")]
    NothingToQuantise,
    /// Calibration ended without a value of this tensor.
    #[error("calibration saw no value of '{tensor}'; give at least one picture")]
    NotCalibrated {
        /// The tensor.
        tensor: String,
    },
    /// A value that has no place on any scale.
    #[error("'{tensor}' holds {value} on calibration data; the model or its preprocessing is wrong")]
    NotFinite {
        /// The tensor.
        tensor: String,
        /// NaN or an infinity.
        value: f32,
    },
    /// An option out of its range.
    #[error("{option} {value}: {why}")]
    Option {
        /// The option.
        option: &'static str,
        /// What was given.
        value: String,
        /// What is allowed.
        why: &'static str,
    },
    /// A constant that could not be read.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// Shapes that contradict each other.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// The engine that runs the float model.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The quantised model is not valid: a fault of this program.
    #[error("the quantised model is not valid: {0}")]
    Invalid(#[from] CheckError),
    /// The model does not fit one file.
    #[error("the model takes more than 2 GiB")]
    TooLong,
}

impl QuantizeError {
    /// Whether another engine may succeed where this one did not.
    pub fn is_engine_limit(&self) -> bool {
        matches!(self, Self::Engine(e) if e.is_engine_limit())
    }
}
