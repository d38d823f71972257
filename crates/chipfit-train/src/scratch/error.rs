//! What can go wrong in training from scratch; every message names the node, tensor or field and what to do.

use chipfit_kernels::KernelError;
use chipfit_model::TensorError;
use chipfit_model::index::CheckError;

/// Why a network cannot be trained from scratch.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScratchError {
    /// A node that has no place in a training graph.
    #[error("node '{node}' ({op_type}): {what}")]
    Unsupported {
        /// The node.
        node: String,
        /// Its operator.
        op_type: String,
        /// What is not supported, and what would be.
        what: String,
    },
    /// The graph as a whole.
    #[error("the graph: {0}")]
    Graph(String),
    /// A parameter that cannot be trained.
    #[error("initializer '{name}': {what}")]
    Parameter {
        /// Its name.
        name: String,
        /// What is wrong with it.
        what: String,
    },
    /// A constant that cannot be read.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// Nodes that wait for each other.
    #[error(transparent)]
    Check(#[from] CheckError),
    /// A convolution that the kernels cannot take.
    #[error("node '{node}': {source}")]
    Kernel {
        /// The node.
        node: String,
        /// The kernels' word.
        source: KernelError,
    },
    /// A field of the configuration has no meaning.
    #[error("configuration field '{field}': {what}")]
    Config {
        /// The field.
        field: &'static str,
        /// What is wrong, and what would be right.
        what: String,
    },
    /// A picture that cannot be read, or whose label is beyond the network's classes.
    #[error("picture {index}: {what}")]
    Picture {
        /// Its position in the set.
        index: usize,
        /// What is wrong.
        what: String,
    },
    /// The loss left the range of numbers.
    #[error("step {step}: the loss is not finite; lower the learning rate or check the preprocessing")]
    NotFinite {
        /// Step of the run, from 0.
        step: u64,
    },
}

impl ScratchError {
    pub(super) fn parameter(name: &str, what: impl std::fmt::Display) -> Self {
        Self::Parameter { name: name.to_owned(), what: what.to_string() }
    }
}
