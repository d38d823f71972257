//! The integer processor: what a quantised model computes on int8 hardware, with and without soft errors.
//!
//! A QDQ model is *lowered* once to a [`Program`]: steps over byte tensors, every formula written down. The
//! naive `twin` executes a program with plain loops, visiting every product and every partial sum: it is the
//! specification. The `simulator` computes the clean result at full speed and patches the struck outputs; it
//! equals the twin bit for bit. Both take the same [`faults`]. Everything that runs a quantised model and
//! returns what it really computed, simulated or real, is a [`Processor`].
//!
//! Contract: `docs/fault-model.md`. Read [`program`] first, then [`faults`], then [`processor`].
#![forbid(unsafe_code)]

pub mod export;
pub mod faults;
pub mod lower;
pub mod machine;
pub mod onnxruntime;
pub mod ops;
pub mod processor;
pub mod program;
pub mod propagate;
pub mod protection;
pub mod simulator;
pub mod testing;
pub mod twin;
pub mod view;

pub use faults::{Change, DrawKey, Faults, FaultsError, FaultsFile, Listed, Site, Strike, StrikeSource};
pub use machine::Machine;
pub use processor::{Batch, Processor, ProcessorError, Request, TensorDelta, Trace, View};
pub use program::{Op, Program, Step, StepId, Tensor, TensorId};
pub use propagate::{Golden, Masking, Propagator, StruckWord, TrialBatch, TrialOutcome, TrialScratch};
pub use protection::{Protection, Vote};
pub use simulator::{Simulator, SimulatorOptions};
