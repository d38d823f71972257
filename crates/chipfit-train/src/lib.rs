//! Retraining a quantised network through the processor that will run it (R2F, `docs/retraining.md`).
//!
//! The forward pass runs on a [`chipfit_npu::Processor`], errors included; the integer tensors that it really computed
//! are the forward values of the backward pass. Master weights are fp32 here, int8 there.
#![forbid(unsafe_code)]

pub mod augment;
pub mod backward;
mod error;
mod kernel;
pub mod loss;
pub mod masters;
pub mod optimizer;
pub mod parameters;
pub mod schedule;
pub mod scratch;

pub use backward::{Backward, Gradients};
pub use error::TrainError;
pub use parameters::{Kind, Parameter};
