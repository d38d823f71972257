//! Triple modular redundancy: which output channels of which steps are computed three times.
//!
//! Contract: `docs/fault-model.md`, section Triple modular redundancy. Replica 0 of a protected unit takes the
//! same draws as the unprotected unit. What a plan file says stands in [`plan`].

pub mod plan;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use crate::program::{Program, StepId};
pub use plan::{PlanError, PlanFile};

/// What the voter compares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Vote {
    /// Bitwise majority of the three stored output words.
    #[default]
    Output,
    /// Bitwise majority of the three accumulators before requantization; `out` strikes then hit the single stored word.
    Accumulator,
    /// Bitwise majority of every product and every partial sum.
    Operation,
}

/// The protected units of one program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Protection {
    vote: Vote,
    /// By step: empty when unprotected, else one flag per output channel.
    channels: Vec<Vec<bool>>,
}

impl Vote {
    /// The name used in files and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Output => "output",
            Self::Accumulator => "accumulator",
            Self::Operation => "operation",
        }
    }
}

/// Probability that a bit is wrong after the vote when it is wrong in each of three replicas with probability `p`,
/// independently: `3 p^2 - 2 p^3`.
pub fn residual(p: f64) -> f64 {
    p * p * (3.0 - 2.0 * p)
}

impl Protection {
    /// Nothing protected.
    pub fn none() -> Self {
        Self::default()
    }

    /// Every channel of every step protected.
    pub fn full(program: &Program, vote: Vote) -> Self {
        let channels = program.steps().iter().map(|step| vec![true; program.tensor(step.output).channels()]).collect();
        Self { vote, channels }
    }

    /// Nothing protected yet, with a vote for what will be.
    pub fn with_vote(vote: Vote) -> Self {
        Self { vote, channels: Vec::new() }
    }

    /// What the voter compares.
    pub fn vote(&self) -> Vote {
        self.vote
    }

    /// Flags of a step's output channels; empty when the step is not protected.
    pub fn channels(&self, step: StepId) -> &[bool] {
        self.channels.get(step.0).map_or(&[], Vec::as_slice)
    }

    /// Whether one output channel is computed three times.
    pub fn covers(&self, step: StepId, channel: usize) -> bool {
        self.channels(step).get(channel).copied().unwrap_or(false)
    }

    /// Protects these channels of a step.
    pub fn protect(&mut self, step: StepId, channels: Vec<bool>) {
        if self.channels.len() <= step.0 {
            self.channels.resize(step.0 + 1, Vec::new());
        }
        self.channels[step.0] = channels;
    }

    /// `2 * protected MACs / all MACs`, 0 to 2.
    pub fn penalty(&self, program: &Program) -> f64 {
        let protected: f64 = program
            .steps()
            .iter()
            .enumerate()
            .map(|(position, step)| {
                let flags = self.channels(StepId(position));
                let share = flags.iter().filter(|&&on| on).count() as f64 / flags.len().max(1) as f64;
                share * program.step_macs(step) as f64
            })
            .sum();
        2.0 * protected / (program.macs() as f64).max(1.0)
    }
}
