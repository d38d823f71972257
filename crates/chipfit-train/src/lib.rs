//! Retraining a quantised network through the processor that will run it (R2F, `docs/retraining.md`).
//!
//! The forward pass runs on a [`chipfit_npu::Processor`], errors included; the integer tensors that it really computed
//! are the forward values of the backward pass. Master weights are fp32 here, int8 there.
//!
//! Read [`retrain`] first (the loop), then [`backward`], [`masters`], and the small modules that they name.
//! Nothing here opens sockets or model files; the only file it writes is a run's checkpoint.
#![forbid(unsafe_code)]

pub mod augment;
pub mod backward;
mod checkpoint;
pub mod config;
pub mod curriculum;
mod error;
mod kernel;
pub mod loss;
pub mod masters;
mod narrow;
pub mod observe;
pub mod optimizer;
pub mod parameters;
pub mod pictures;
pub mod protect;
mod rescale;
pub mod retrain;
pub mod schedule;
pub mod scratch;
pub mod state;

pub use backward::{Backward, Gradients};
pub use config::{Config, Scales};
pub use curriculum::{Faultiness, Thinned};
pub use error::TrainError;
pub use masters::{Increment, Masters};
pub use observe::{Flow, Observer, Silent, StepReport};
pub use parameters::{Kind, Parameter};
pub use pictures::{Accuracy, Pictures, evaluate};
pub use retrain::{Outcome, Retraining};
pub use state::{Epoch, State};
