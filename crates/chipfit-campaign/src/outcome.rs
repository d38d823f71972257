//! What became of a trial.
//!
//! Classes are ranked by their output byte, equal bytes by the lower class number; top-1 is the first, top-5 the
//! first five. The confidence is the softmax over `scale * byte` (the zero point cancels). With these,
//!
//! | outcome | definition |
//! |---|---|
//! | masked | every output byte equals the clean one |
//! | benign | some byte differs, top-1 is the clean top-1 |
//! | beneficial | top-1 differs from the clean one, which was wrong, and is the label |
//! | SDC top-1 | top-1 differs from the clean one, and is not the label |
//!
//! Exactly one holds. Of the last, *SDC top-5* are those whose top-1 is not in the clean top-5 (Li et al., SC 2017),
//! and *harmful* those whose clean top-1 was the label. The confidence shift is the softmax probability of the clean
//! top-1 class after the fault less before.

use serde::{Deserialize, Serialize};

use crate::executor::Masked;
use crate::subject::Picture;

/// What became of a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The output is the clean one.
    Masked,
    /// The output differs, the decision does not.
    Benign,
    /// The decision was wrong and is right.
    Beneficial,
    /// The decision changed to a wrong one.
    Sdc,
}

impl Outcome {
    /// All outcomes, in the order of this enum.
    pub const ALL: [Self; 4] = [Self::Masked, Self::Benign, Self::Beneficial, Self::Sdc];

    /// The name used in files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Masked => "masked",
            Self::Benign => "benign",
            Self::Beneficial => "beneficial",
            Self::Sdc => "sdc",
        }
    }
}

/// A judged trial.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verdict {
    /// What became of it.
    pub outcome: Outcome,
    /// The faulty top-1 class.
    pub class: u32,
    /// SDC top-5.
    pub is_sdc_top5: bool,
    /// Whether the label is among the faulty top five.
    pub is_in_top5: bool,
    /// Confidence shift.
    pub shift: f32,
    /// Where a masked fault died, if that is known.
    pub masked: Option<Masked>,
}

/// Ranks output bytes of one model.
#[derive(Clone, Copy, Debug)]
pub struct Judge {
    scale: f64,
}

/// Ranks that count.
const TOP: usize = 5;

impl Judge {
    /// For outputs whose byte is worth `scale`.
    pub fn new(scale: f32) -> Self {
        Self { scale: f64::from(scale) }
    }

    /// The clean result of a picture.
    pub fn clean(&self, index: u64, label: u32, output: &[u8]) -> Picture {
        let top = top(output);
        let confidence = top.first().map_or(0.0, |&class| self.confidence(output, class));
        Picture { index, label, top, confidence }
    }

    /// Softmax probability of a class; 0 for one that does not exist.
    pub fn confidence(&self, output: &[u8], class: u32) -> f64 {
        let highest = output.iter().copied().max().unwrap_or(0);
        // Powers are at most 1; the same bits on every machine, since libm is compiled in.
        let power = |byte: u8| libm::exp(self.scale * (f64::from(byte) - f64::from(highest)));
        let sum: f64 = output.iter().map(|&byte| power(byte)).sum();
        usize::try_from(class).ok().and_then(|c| output.get(c)).map_or(0.0, |&byte| power(byte) / sum)
    }

    /// Judges an output. `clean` are the clean bytes; `masked` is told when they are equal.
    pub fn judge(&self, picture: &Picture, clean: &[u8], output: &[u8], masked: Option<Masked>) -> Verdict {
        if output == clean {
            return self.masked(picture, masked);
        }
        let top = top(output);
        let class = top.first().copied().unwrap_or(0);
        let outcome = if class == picture.class() {
            Outcome::Benign
        } else if class == picture.label {
            Outcome::Beneficial
        } else {
            Outcome::Sdc
        };
        Verdict {
            outcome,
            class,
            is_sdc_top5: outcome == Outcome::Sdc && !picture.top.contains(&class),
            is_in_top5: top.contains(&picture.label),
            shift: (self.confidence(output, picture.class()) - picture.confidence) as f32,
            masked: None,
        }
    }

    /// The verdict on an output that is the clean one.
    pub fn masked(&self, picture: &Picture, masked: Option<Masked>) -> Verdict {
        Verdict {
            outcome: Outcome::Masked,
            class: picture.class(),
            is_sdc_top5: false,
            is_in_top5: picture.is_in_top5(),
            shift: 0.0,
            masked,
        }
    }
}

/// The first classes by (byte descending, number ascending).
fn top(output: &[u8]) -> Vec<u32> {
    let mut top: Vec<(u8, u32)> = Vec::with_capacity(TOP + 1);
    for (class, &byte) in (0u32..).zip(output) {
        // Behind all that are at least as large: those have lower numbers.
        let place = top.partition_point(|&(other, _)| other >= byte);
        if place < TOP {
            top.insert(place, (byte, class));
            top.truncate(TOP);
        }
    }
    top.into_iter().map(|(_, class)| class).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn judged(label: u32, clean: &[u8], output: &[u8]) -> Verdict {
        let judge = Judge::new(0.1);
        judge.judge(&judge.clean(0, label, clean), clean, output, None)
    }

    #[test]
    fn each_outcome_is_what_its_definition_says() {
        let clean = [10, 9, 8, 7, 6, 5, 0];
        for (label, output, outcome, top5) in [
            (0, [10, 9, 8, 7, 6, 5, 0], Outcome::Masked, false),
            (0, [10, 9, 8, 7, 6, 5, 1], Outcome::Benign, false),
            // An equal byte with a higher number does not win.
            (0, [10, 10, 8, 7, 6, 5, 0], Outcome::Benign, false),
            (0, [10, 11, 8, 7, 6, 5, 0], Outcome::Sdc, false),
            (1, [10, 11, 8, 7, 6, 5, 0], Outcome::Beneficial, false),
            (2, [10, 11, 8, 7, 6, 5, 0], Outcome::Sdc, false),
            (0, [10, 9, 8, 7, 6, 50, 0], Outcome::Sdc, true),
            (0, [10, 9, 8, 7, 50, 5, 0], Outcome::Sdc, false),
            (6, [10, 9, 8, 7, 6, 5, 99], Outcome::Beneficial, false),
        ] {
            let verdict = judged(label, &clean, &output);
            assert_eq!((verdict.outcome, verdict.is_sdc_top5), (outcome, top5), "{label} {output:?}");
        }
    }

    #[test]
    fn the_confidence_shift_is_that_of_the_clean_top_class() {
        // Two classes, steps of 0.1: softmax is the logistic function of the difference.
        let verdict = judged(0, &[30, 10], &[10, 30]);
        let logistic = |x: f64| 1.0 / (1.0 + (-x).exp());
        assert!((f64::from(verdict.shift) - (logistic(-2.0) - logistic(2.0))).abs() < 1e-6);
    }

    proptest! {
        #[test]
        fn ranks_are_those_of_a_stable_sort(output in proptest::collection::vec(any::<u8>(), 1..40)) {
            let mut sorted: Vec<u32> = (0..output.len() as u32).collect();
            sorted.sort_by_key(|&class| std::cmp::Reverse(output[class as usize]));
            sorted.truncate(5);
            prop_assert_eq!(top(&output), sorted);
        }

        #[test]
        fn confidences_sum_to_one(output in proptest::collection::vec(any::<u8>(), 1..40), scale in 1e-6f32..10.0) {
            let judge = Judge::new(scale);
            let sum: f64 = (0..output.len() as u32).map(|class| judge.confidence(&output, class)).sum();
            prop_assert!((sum - 1.0).abs() < 1e-9);
        }
    }
}
