//! Running models outside the simulator.
#![forbid(unsafe_code)]

pub mod interp;
pub mod prove;
pub mod reference;
