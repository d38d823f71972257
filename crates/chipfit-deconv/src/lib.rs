//! Transposed convolutions as standard convolutions.
#![forbid(unsafe_code)]

pub mod rewrite;

pub use rewrite::{Crop, Form, Interleave, NodeReport, Options, Rewrite, RewriteError, SameRule, Segment, plan};
