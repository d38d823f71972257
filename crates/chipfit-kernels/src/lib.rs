//! Inner loops at full speed, int8 and f32, each bit-equal to a scalar twin.
//!
//! Activations are u8, NHWC and dense, pictures one after another; weights are i8, one row per output channel in the
//! order kernel row, kernel column, input channel within the group.
//! `accumulator = bias + sum over k of (x_k - zero_point) * w_k`, in i32, wrapping; a tap on padding reads the zero
//! point, so it adds nothing.
//! [`float`] holds the f32 loops of training, with promises of its own.
//! Layouts, formulas and measured speeds: `docs/kernels.md`.
//!
//! Promises: every instruction set gives the bytes of [`Isa::Scalar`]; safe functions check every length before they
//! touch memory; nothing here is random, allocates per output, or keeps state between calls but what [`Scratch`] holds.
//!
//! Read `geometry`, then `conv` ([`Conv`], the entry point), then `scalar` (the specification), then one instruction
//! set under `x86` or `arm`.

mod buffer;
mod conv;
mod delta;
mod depthwise;
mod drive;
mod elementwise;
mod error;
mod finish;
pub mod float;
mod geometry;
mod isa;
mod output;
mod patch;
mod plan;
mod pool;
mod requantize;
mod scalar;
mod scratch;

#[cfg(target_arch = "aarch64")]
mod arm;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use conv::Conv;
pub use delta::{DotRun, changed_sums, dot_runs, requantize_changed};
pub use elementwise::{Add, Rounding, lookup};
pub use error::KernelError;
pub use finish::Place;
pub use geometry::ConvGeometry;
pub use isa::Isa;
pub use output::OutputBlock;
pub use patch::{centered_dot, dot};
pub use pool::{Pool, sum_positions};
pub use requantize::{Fixed, Requantize, Rescale};
pub use scratch::Scratch;
