//! f32 inner loops of training: a convolution, its two gradients, and element-wise helpers.
//!
//! Activations are f32, NHWC and dense, pictures one after another; weights are
//! `[out_channels][kernel rows][kernel columns][in_channels / groups]`, the order of [`crate::Conv`].
//! A product of a matrix with constant weights is a 1x1 convolution on maps of 1x1, one picture per row.
//!
//! Promise: each result is one chain of fused multiply-adds, `sum = fma(a, b, sum)`, in the order that [`FloatConv`]'s
//! methods name; vectors run across results, never along a chain. So every instruction set and every number of threads
//! gives the same bits (of a NaN, only that it is one).
//!
//! Read `twin` first (the specification), then `conv` ([`FloatConv`], the entry point).

mod axis;
mod conv;
mod elementwise;
mod loops;
mod pass;
mod scratch;
mod source;
mod sums;
mod twin;
mod vector;

pub use conv::FloatConv;
pub use elementwise::{add, dequantise, mask_gradient, multiply_add, scale};
pub use scratch::FloatScratch;
