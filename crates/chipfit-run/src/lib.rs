//! Running models outside the simulator.
#![forbid(unsafe_code)]

pub mod compare;
pub mod engine;
pub mod metrics;
pub mod random;
pub mod tune;
