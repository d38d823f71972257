//! Partial TMR: which output channels to compute three times, so that a given share of extra MACs saves the most.
//!
//! Contract: `docs/protection.md`. [`plans`] measures how vulnerable each unit is under the processor's own faults and
//! chooses units within each budget; [`compare`] holds plans to baselines on pictures and draws that planning has not
//! seen. Results are a function of program, sample, options and the processor's seed, whatever its threads.
//!
//! Read [`plan`] first, then [`vulnerability`], [`knapsack`], [`units`].

mod baselines;
pub mod compare;
mod error;
pub mod gradient;
pub mod knapsack;
pub mod plan;
pub mod sample;
#[cfg(test)]
mod tests;
pub mod units;
pub mod validation;
pub mod vulnerability;

pub use compare::{Front, front};
pub use error::ProtectError;
pub use gradient::{Gradient, gradient};
pub use plan::{Options, Planned, Plans, Vulnerabilities, plans};
pub use sample::{Measure, Sample};
pub use units::{Scope, Unit};
pub use validation::Validation;
