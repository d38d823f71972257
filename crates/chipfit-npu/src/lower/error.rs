//! Why a model cannot be lowered.

use chipfit_model::{PatchError, ShapeError, TensorError, index::CheckError};

/// Why a model cannot be lowered. Messages name the node, its operator and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LowerError {
    /// No QuantizeLinear and no DequantizeLinear.
    #[error("the model is not quantised: it has no QuantizeLinear; run `chipfit quantize` first")]
    NotQuantised,
    /// If, Loop, Scan.
    #[error("node '{node}' ({op_type}): control flow cannot be lowered; export the model without it")]
    ControlFlow {
        /// The node.
        node: String,
        /// Its operator.
        op_type: String,
    },
    /// Not exactly one input.
    #[error("the model has {} inputs ({}); exactly one can be lowered", names.len(), names.join(", "))]
    Inputs {
        /// Their names.
        names: Vec<String>,
    },
    /// An input whose size is open.
    #[error("input '{name}' is {shape}: fix its size (height and width) with --input {name}=1,...")]
    InputShape {
        /// The input.
        name: String,
        /// Its declared type.
        shape: String,
    },
    /// No QuantizeLinear behind the input.
    #[error("input '{name}' is not quantised: no QuantizeLinear follows it")]
    InputNotQuantised {
        /// The input.
        name: String,
    },
    /// Several outputs and none chosen, or an unknown one.
    #[error("the model's outputs are {}; {why}", names.join(", "))]
    Outputs {
        /// Their names.
        names: Vec<String>,
        /// What is wrong.
        why: String,
    },
    /// An operator or a use of it that the processor lacks.
    #[error("node '{node}' ({op_type}): {what}; {hint}")]
    Unsupported {
        /// The node.
        node: String,
        /// Its operator.
        op_type: String,
        /// What is not supported.
        what: String,
        /// What to do.
        hint: String,
    },
    /// A float value where an integer tensor is needed.
    #[error(
        "node '{node}' ({op_type}): '{value}' is not quantised: put QuantizeLinear and DequantizeLinear behind {maker}"
    )]
    MissingQuantize {
        /// The node that reads it.
        node: String,
        /// Its operator.
        op_type: String,
        /// The value.
        value: String,
        /// What makes it.
        maker: String,
    },
    /// A scale or zero point that is not usable.
    #[error("node '{node}' ({op_type}): {what}")]
    Quantisation {
        /// The QuantizeLinear or DequantizeLinear.
        node: String,
        /// Its operator.
        op_type: String,
        /// What is wrong.
        what: String,
    },
    /// A bias that does not count in steps of `x_scale * w_scale`.
    #[error(
        "node '{node}' ({op_type}): the bias of channel {channel} has the scale {bias_scale:e}, \
         but x_scale * w_scale is {product:e}; quantise the bias with exactly that scale"
    )]
    BiasScale {
        /// The node.
        node: String,
        /// Its operator.
        op_type: String,
        /// Output channel.
        channel: usize,
        /// The bias's scale.
        bias_scale: f32,
        /// The product.
        product: f32,
    },
    /// Weights, bias, pads and so on that are computed at run time.
    #[error("node '{node}' ({op_type}): {role} '{value}' is not constant; fold it first")]
    NotConstant {
        /// The node.
        node: String,
        /// Its operator.
        op_type: String,
        /// What it is for.
        role: String,
        /// The value.
        value: String,
    },
    /// A shape that could not be inferred.
    #[error("node '{node}': the shape of '{name}' is {shape}; fix the input's size with --input")]
    UnknownShape {
        /// The node.
        node: String,
        /// The value.
        name: String,
        /// What is known.
        shape: String,
    },
    /// An operation across the batch axis.
    #[error("node '{node}' ({op_type}) mixes pictures: {what}; axis 0 must stay the batch")]
    MixesPictures {
        /// The node.
        node: String,
        /// Its operator.
        op_type: String,
        /// What it does.
        what: String,
    },
    /// The file contradicts itself.
    #[error(transparent)]
    Model(#[from] CheckError),
    /// A constant that cannot be read.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// Shapes that contradict the file.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// The rewrite of transposed convolutions failed.
    #[error("transposed convolutions: {0}")]
    Rewrite(#[from] chipfit_deconv::RewriteError),
    /// The rewrite of transposed convolutions could not be applied.
    #[error("transposed convolutions: {0}")]
    Patch(#[from] PatchError),
}

impl LowerError {
    pub(super) fn unsupported(node: &str, op_type: &str, what: &str, hint: &str) -> Self {
        Self::Unsupported {
            node: node.to_owned(),
            op_type: op_type.to_owned(),
            what: what.to_owned(),
            hint: hint.to_owned(),
        }
    }
}
