//! Top-1 and top-5 of a run over labelled pictures.
//!
//! A picture counts for top-k when fewer than k classes come before its label. Class `a` comes before class `b` when its
//! value is larger, or equal with `a < b`: what `argmax` of numpy and of ONNX Runtime says on ties, which int8 logits have.

use chipfit_campaign::statistics::{Share, two_sided_quantile};

/// Confidence of the intervals shown.
pub(crate) const CONFIDENCE: f64 = 0.95;

/// Counts over the pictures so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Accuracy {
    pictures: u64,
    top1: u64,
    top5: u64,
}

/// How many classes come before `label`.
pub(crate) fn rank<T: PartialOrd + Copy>(values: &[T], label: usize) -> Option<usize> {
    let own = *values.get(label)?;
    Some(values.iter().enumerate().filter(|&(class, &value)| value > own || (value == own && class < label)).count())
}

impl Accuracy {
    /// Counts one picture. `false` when the label is beyond the values.
    pub(crate) fn add<T: PartialOrd + Copy>(&mut self, values: &[T], label: usize) -> bool {
        let Some(rank) = rank(values, label) else { return false };
        self.pictures += 1;
        self.top1 += u64::from(rank == 0);
        self.top5 += u64::from(rank < 5);
        true
    }

    /// Pictures counted.
    pub(crate) fn pictures(&self) -> u64 {
        self.pictures
    }

    /// Top-1 with its Wilson interval.
    pub(crate) fn top1(&self) -> Share {
        self.share(self.top1)
    }

    /// Top-5 with its Wilson interval.
    pub(crate) fn top5(&self) -> Share {
        self.share(self.top5)
    }

    fn share(&self, count: u64) -> Share {
        Share::new(count, self.pictures, None, two_sided_quantile(CONFIDENCE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lower_class_wins_a_tie() {
        let values = [3u8, 7, 7, 1];
        assert_eq!([0, 1, 2, 3].map(|label| rank(&values, label)), [Some(2), Some(0), Some(1), Some(3)]);
        assert_eq!(rank(&values, 4), None);
    }

    #[test]
    fn a_label_behind_five_classes_counts_for_neither() {
        let mut accuracy = Accuracy::default();
        let values = [9.0f32, 8.0, 7.0, 6.0, 5.0, 4.0];
        for label in [0, 4, 5] {
            assert!(accuracy.add(&values, label));
        }
        assert!(!accuracy.add(&values, 6));
        assert_eq!((accuracy.pictures(), accuracy.top1().count, accuracy.top5().count), (3, 1, 2));
    }
}
