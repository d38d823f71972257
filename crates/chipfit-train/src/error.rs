//! What can go wrong in retraining; every message names the node, field or file and what to do.

use chipfit_npu::ProcessorError;
use chipfit_npu::lower::LowerError;

/// Why retraining cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A step whose gradient is not known.
    #[error("node '{step}' ({op_type}): {what}; {hint}")]
    Unsupported {
        /// The step.
        step: String,
        /// Its operator.
        op_type: String,
        /// What is missing.
        what: String,
        /// What to do.
        hint: String,
    },
    /// A step whose constants do not fit its shapes.
    #[error("node '{step}': {what}")]
    Step {
        /// The step.
        step: String,
        /// What does not fit.
        what: String,
    },
    /// The processor failed.
    #[error(transparent)]
    Processor(#[from] ProcessorError),
    /// The model with new scales cannot be lowered.
    #[error("the model with new scales: {0}")]
    Lower(#[from] LowerError),
    /// A tensor of the trace is missing or has another length.
    #[error("the processor returned {have} bytes of tensor '{tensor}', {want} were expected")]
    Trace {
        /// The tensor.
        tensor: String,
        /// Bytes that came.
        have: usize,
        /// Bytes of this batch.
        want: usize,
    },
    /// A field of the configuration has no meaning.
    #[error("configuration field '{field}': {what}")]
    Config {
        /// The field.
        field: &'static str,
        /// What is wrong, and what would be right.
        what: String,
    },
    /// A picture cannot be read, or its label is beyond the model's classes.
    #[error("picture {index}: {what}")]
    Picture {
        /// Its position in the set.
        index: usize,
        /// What is wrong.
        what: String,
    },
    /// The gradient left the range of numbers.
    #[error("step {step}: the gradient of '{parameter}' is not finite; lower the learning rate or clip the gradient")]
    NotFinite {
        /// Step of the run.
        step: u64,
        /// ONNX name of the constant.
        parameter: String,
    },
    /// The model's initializers cannot take the new constants.
    #[error("initializer '{name}': {what}")]
    Export {
        /// ONNX name.
        name: String,
        /// What does not fit.
        what: String,
    },
    /// A checkpoint cannot be read or belongs to another run.
    #[error("checkpoint '{path}': {what}")]
    Checkpoint {
        /// The file.
        path: String,
        /// What is wrong with it, and what to do.
        what: String,
    },
    /// Threads could not be started.
    #[error("threads cannot be started: {0}")]
    Threads(String),
}

impl TrainError {
    pub(crate) fn step(step: &str, what: impl std::fmt::Display) -> Self {
        Self::Step { step: step.to_owned(), what: what.to_string() }
    }

    pub(crate) fn config(field: &'static str, what: impl std::fmt::Display) -> Self {
        Self::Config { field, what: what.to_string() }
    }
}
