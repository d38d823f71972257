//! From a model to a patch: which ConvTranspose becomes what, and why.

use std::collections::BTreeMap;

use chipfit_model::{Index, Patch, ScopeId, Shapes};

/// How a transposed convolution is computed (docs/split-deconvolution.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Form {
    /// One tight convolution per phase.
    Split,
    /// One convolution per phase of all axes but the last, fused along the last.
    RowSplit,
    /// One convolution for all phases.
    Fused,
    /// Zeros between the inputs, then one convolution: the baseline.
    ZeroPad,
    /// Shi et al. 1609.07009: does not preserve the result.
    Shi,
    /// Chang et al. 1801.05997: does not preserve the result.
    Chang,
}

impl Form {
    /// All forms.
    pub const ALL: [Self; 6] = [Self::Split, Self::RowSplit, Self::Fused, Self::ZeroPad, Self::Shi, Self::Chang];

    /// Its name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Split => "split",
            Self::RowSplit => "rowsplit",
            Self::Fused => "fused",
            Self::ZeroPad => "zero-pad",
            Self::Shi => "shi",
            Self::Chang => "chang",
        }
    }

    /// Whether it preserves the result.
    pub fn is_exact(self) -> bool {
        !matches!(self, Self::Shi | Self::Chang)
    }
}

/// How phases are woven into the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Interleave {
    /// One DepthToSpace (2-D, equal strides).
    DepthToSpace,
    /// Reshape, Transpose, Reshape.
    Reshape,
    /// Concat and Reshape, no Transpose.
    Concat,
}

impl Interleave {
    /// Its name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::DepthToSpace => "depth-to-space",
            Self::Reshape => "reshape",
            Self::Concat => "concat",
        }
    }
}

/// What `fused` does about outputs before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Crop {
    /// The smallest kernel, then a Slice.
    #[default]
    Slice,
    /// Kernels aligned so that no Slice is needed at the begin.
    Alignment,
}

/// Which side takes the odd pad of `auto_pad` before opset 11.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SameRule {
    /// What runtimes do.
    #[default]
    Runtimes,
    /// What the text of opset 1 says.
    Spec,
}

/// What to do. `Default` rewrites every ConvTranspose that can be, by the fixed rule.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The form of every node; `None`: chosen per node.
    pub form: Option<Form>,
    /// The interleave; `None`: DepthToSpace where it applies, else Reshape.
    pub interleave: Option<Interleave>,
    /// See [`Crop`].
    pub crop: Crop,
    /// No emitted convolution has more output channels.
    pub max_channels: Option<usize>,
    /// If not empty: only nodes of these names (or first output names).
    pub only: Vec<String>,
    /// Nodes of these names (or first output names) stay.
    pub keep: Vec<String>,
    /// See [`SameRule`].
    pub opset1_same: SameRule,
    /// Decisions made elsewhere (by measurement): scope and node position to form, `None` to keep.
    pub decided: BTreeMap<(ScopeId, usize), Option<Form>>,
}

/// The part of the graph that a rewrite replaced: from one value to another, both of which still exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The scope; its number is the same before and after.
    pub scope: ScopeId,
    /// The name of the value it starts from: the ConvTranspose's input, or, quantised, what is dequantized to it.
    pub input: String,
    /// The name of the value it ends in: the ConvTranspose's output, or the QuantizeLinear's behind it.
    pub output: String,
    /// The name of the original ConvTranspose's output.
    pub conv_transpose: String,
}

/// What became of one ConvTranspose.
#[derive(Clone, Debug)]
pub struct NodeReport {
    /// Its name, or operator and position.
    pub name: String,
    /// Scope and position in the original model.
    pub place: (ScopeId, usize),
    /// The form; `None`: kept.
    pub form: Option<Form>,
    /// The interleave; `None` where there is nothing to weave or the node was kept.
    pub interleave: Option<Interleave>,
    /// Kernel per axis (empty where unknown).
    pub kernel: Vec<usize>,
    /// Strides.
    pub strides: Vec<usize>,
    /// Dilations.
    pub dilations: Vec<usize>,
    /// Groups.
    pub group: usize,
    /// Pads as resolved: all begins, then all ends.
    pub pads: Vec<i64>,
    /// Output padding as resolved.
    pub output_padding: Vec<i64>,
    /// Multiply-accumulates of the original; `None` where shapes are unknown. Counted as docs define.
    pub macs_before: Option<u64>,
    /// Of the emitted convolutions (of the original where kept).
    pub macs_after: Option<u64>,
    /// Of the zero-pad baseline.
    pub macs_zero_pad: Option<u64>,
    /// Weights and biases of the original.
    pub params_before: u64,
    /// Of the emitted convolutions.
    pub params_after: u64,
    /// Why it was kept, or why this form.
    pub reason: String,
    /// Things the user should know.
    pub warnings: Vec<String>,
    /// What was replaced; `None`: kept.
    pub segment: Option<Segment>,
}

/// A plan: the patch to apply and what it does.
#[derive(Clone, Debug, Default)]
pub struct Rewrite {
    /// For [`chipfit_model::Model::apply`].
    pub patch: Patch,
    /// One entry per ConvTranspose of the model, in file order, subgraphs and functions included.
    pub nodes: Vec<NodeReport>,
}

/// Why nothing could be planned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RewriteError {
    /// `--only` or `--keep` names no ConvTranspose.
    #[error("{flag} '{name}': the model has no ConvTranspose of that name")]
    NoSuchNode {
        /// The flag.
        flag: &'static str,
        /// The name.
        name: String,
    },
}

/// Plans the rewrite of every ConvTranspose of a model.
///
/// # Errors
/// [`RewriteError`]. A node that cannot be rewritten is no error: it is kept and its report says why.
pub fn plan(_index: &Index<'_>, _shapes: &Shapes, _options: &Options) -> Result<Rewrite, RewriteError> {
    Ok(Rewrite::default())
}
