//! Running models outside the simulator.
#![forbid(unsafe_code)]
