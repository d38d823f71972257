//! Transposed convolutions as standard convolutions: exact, form by form, for any model.
//!
//! Promises: a plan never changes what a model computes (but for `shi` and `chang`, which say so); weights are
//! moved, never computed with; a node that is not understood whole stays, with the reason. Read [`axis`] for the
//! algebra of one axis, [`rewrite`] for what callers use, `forms` for how convolutions are put together.
//!
//! Source of the definition: docs/split-deconvolution.md.
#![forbid(unsafe_code)]

pub mod axis;
mod emit;
mod forms;
pub mod rewrite;
mod source;
pub mod target;
mod weave;
mod weights;

pub use forms::ConvWork;
pub use rewrite::{
    Crop, Decision, Form, Interleave, NodeReport, Options, Rewrite, RewriteError, SameRule, Segment, plan,
};
