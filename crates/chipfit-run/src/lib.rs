//! Running models outside the simulator: the reference, the proof, and other people's engines.
//!
//! Promises: nothing here knows how a rewrite works (`chipfit-deconv` is no dependency), so a proof is independent
//! of what it proves; an engine that lacks an operator says so instead of failing; every input is reproducible
//! from its seed. Read [`mod@reference`] for the definition of ConvTranspose, [`prove`] for the judgement, [`interp`]
//! for the evaluator of rewritten segments, [`engine`] for rten and ONNX Runtime, [`compare`] and [`metrics`] for
//! whole models, [`tune`] for measuring candidates.
#![forbid(unsafe_code)]

pub mod compare;
pub mod engine;
pub mod interp;
pub mod metrics;
pub mod prove;
pub mod random;
pub mod reference;
pub mod tune;
