//! Training from scratch: a float ONNX network with batch normalisation, in fp32, on the server.
//!
//! [`train`] takes a model as [`chipfit_model::zoo`] builds it and labelled pictures, and gives the same model with
//! trained weights, normalisations and running statistics, for `chipfit-quantize` to fold, calibrate and quantise.
//!
//! Promises: the same model, pictures and [`Config`] give the same bytes on any number of threads and any instruction
//! set; nothing of the model changes but initializers; what cannot be trained is an error that names the node.
//! Gradients are checked against numeric ones, and against PyTorch (`tests/golden/gradients`).
//!
//! Read `graph` (layers and parameters), `read` and `write` (from and to ONNX), `plan` (the order of work), `chunk` and
//! `engine` (the passes), `norm` and `pool` (formulas), `train` (the loop).

mod chunk;
mod engine;
mod error;
mod graph;
mod norm;
mod passes;
mod pictures;
mod plan;
mod pool;
mod read;
mod train;
mod write;

pub use error::ScratchError;
pub use graph::Network;
pub use passes::Passes;
pub use pictures::{FloatPictures, MemoryPictures, PixelScale};
pub use train::{Config, Evaluation, Event, Outcome, Start, evaluate, train};

#[cfg(test)]
mod tests;
