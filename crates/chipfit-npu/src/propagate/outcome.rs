//! What became of one trial.

use crate::faults::Strike;
use crate::program::StepId;

/// Why nothing of a fault was left after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Masking {
    /// The strikes left every word as it was: a bit stuck at the value it had, a word that does not exist.
    Word,
    /// A struck word changed, but not the stored output: rounding, clamping, a product with zero, or a vote.
    Output,
    /// The step's inputs had changed, its outputs are the golden ones: rounding, clamping, a maximum elsewhere.
    Absorbed,
}

/// The first strike of a trial, seen closely.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StruckWord {
    /// Its step.
    pub step: StepId,
    /// The strike.
    pub strike: Strike,
    /// The word's value before: a product, an accumulator, a stored word.
    pub before: i32,
    /// The word's value after.
    pub after: i32,
    /// The output it belongs to, and that output's biased byte before and after the trial; `None` for `weight` and
    /// `act`, which belong to many.
    pub output: Option<(usize, u8, u8)>,
}

/// What became of one trial.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrialOutcome {
    /// Whether the network's output differs from the golden one.
    pub is_output_changed: bool,
    /// Where the last change died, and how; `None` when the output changed.
    pub masked_at: Option<(StepId, Masking)>,
    /// Steps whose outputs were computed again.
    pub steps_reached: usize,
    /// Changed output elements of each of those steps, in order; 0 where the change died.
    pub changed_elements: Vec<(StepId, usize)>,
    /// The first strike; `None` when its word does not exist.
    pub struck: Option<StruckWord>,
}
