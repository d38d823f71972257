//! A histogram that grows with the data and does not depend on the order in which the data came.
//!
//! Bins are `2^e` wide and begin at multiples of that, so that two neighbours merge into one bin of `2^(e+1)`
//! exactly. `e` is the least for which all values seen fit into [`MAX_BINS`] bins: the result is a function of the
//! multiset of values alone. Zeros, which any quantiser keeps exactly, are counted apart.

use crate::scale::Range;
use crate::simplify::to_f32;

/// Most bins; at least half of them are used once the values differ.
pub(crate) const MAX_BINS: i64 = 8192;

/// Least exponent: smaller values share bins at 0.
const LEAST_EXPONENT: i32 = -126;

/// Counts of finite values.
#[derive(Clone, Debug, Default)]
pub(crate) struct Histogram {
    exponent: i32,
    /// Number of the first bin: it begins at `first * 2^exponent`.
    first: i64,
    counts: Vec<u64>,
    zeros: u64,
    total: u64,
}

/// The bin of a value at an exponent.
#[expect(clippy::cast_possible_truncation, reason = "the conversion saturates, and growth keeps bins small")]
fn bin(value: f32, exponent: i32) -> i64 {
    (f64::from(value) * f64::exp2(f64::from(-exponent))).floor() as i64
}

impl Histogram {
    /// Adds finite values, whose smallest and largest are `least` and `most`.
    pub(crate) fn add(&mut self, values: &[f32], least: f32, most: f32) {
        if self.counts.is_empty() {
            self.exponent = LEAST_EXPONENT;
        }
        let last = self.first.saturating_add(i64::try_from(self.counts.len()).unwrap_or(i64::MAX) - 1).max(0);
        let mut halvings = 0;
        // Zeros are in no bin, but 0 is an end of every range. A bin that saturates is found again when it fits.
        let ends = |halvings: i32| {
            let exponent = self.exponent.saturating_add(halvings);
            let shift = halvings.min(63);
            let low = bin(least, exponent).min(self.first >> shift).min(0);
            (low, bin(most, exponent).max(last >> shift))
        };
        let (mut low, mut high) = ends(0);
        while high.saturating_sub(low) >= MAX_BINS {
            halvings += 1;
            (low, high) = ends(halvings);
        }
        self.regrid(low, high, halvings);
        for &value in values {
            if value == 0.0 {
                self.zeros += 1;
            } else if let Some(count) = self.slot(bin(value, self.exponent)) {
                *count += 1;
            }
        }
        self.total = self.total.saturating_add(values.len().try_into().unwrap_or(u64::MAX));
    }

    fn slot(&mut self, bin: i64) -> Option<&mut u64> {
        self.counts.get_mut(usize::try_from(bin.checked_sub(self.first)?).ok()?)
    }

    /// Merges neighbours `halvings` times and makes room from bin `low` to bin `high`.
    fn regrid(&mut self, low: i64, high: i64, halvings: i32) {
        let length = usize::try_from(high - low + 1).unwrap_or(0);
        if halvings == 0 && low == self.first && length == self.counts.len() {
            return;
        }
        let mut next = vec![0; length];
        for (offset, &count) in (0i64..).zip(&self.counts) {
            let place = (self.first.saturating_add(offset) >> halvings.min(63)) - low;
            if let Some(slot) = usize::try_from(place).ok().and_then(|p| next.get_mut(p)) {
                *slot += count;
            }
        }
        (self.counts, self.first) = (next, low);
        self.exponent += halvings;
    }

    fn width(&self) -> f64 {
        f64::exp2(f64::from(self.exponent))
    }

    /// Lower end of a bin.
    fn edge(&self, bin: i64) -> f64 {
        bin as f64 * self.width()
    }

    /// The bins with their numbers.
    fn bins(&self) -> impl DoubleEndedIterator<Item = (i64, u64)> + ExactSizeIterator + '_ {
        let first = self.first;
        self.counts
            .iter()
            .enumerate()
            .map(move |(i, &count)| (first.saturating_add(i64::try_from(i).unwrap_or(0)), count))
    }

    /// The range that leaves out at most `cut` (a share) of the values at either end, to the edge of a bin; never
    /// wider than `full`.
    pub(crate) fn percentile(&self, cut: f64, full: Range) -> Range {
        let allowed = cut * self.total as f64;
        let mut below = 0u64;
        let mut low = 0.0;
        for (bin, count) in self.bins().take_while(|(bin, _)| *bin < 0) {
            below = below.saturating_add(count);
            if below as f64 > allowed {
                low = self.edge(bin);
                break;
            }
        }
        let mut above = 0u64;
        let mut high = 0.0;
        for (bin, count) in self.bins().rev().take_while(|(bin, _)| *bin >= 0) {
            above = above.saturating_add(count);
            if above as f64 > allowed {
                high = self.edge(bin.saturating_add(1));
                break;
            }
        }
        Range::new(to_f32(low).max(full.low), to_f32(high).min(full.high))
    }

    /// The share of values in bins that lie outside `range` altogether.
    pub(crate) fn outside(&self, range: Range) -> f64 {
        let (low, high) = (f64::from(range.low), f64::from(range.high));
        let is_out = |bin: i64| self.edge(bin.saturating_add(1)) <= low || self.edge(bin) > high;
        let out: u64 = self.bins().filter(|(bin, _)| is_out(*bin)).map(|(_, count)| count).sum();
        if self.total == 0 { 0.0 } else { out as f64 / self.total as f64 }
    }

    /// Counts of magnitudes in at most `most_bins` bins from 0 on, and the width of one.
    pub(crate) fn magnitudes(&self, most_bins: usize) -> (Vec<u64>, f64) {
        let magnitude = |bin: i64| usize::try_from(if bin < 0 { -bin - 1 } else { bin }).unwrap_or(0);
        let mut width = self.width();
        let longest = self.bins().filter(|(_, count)| *count > 0).map(|(bin, _)| magnitude(bin) + 1).max().unwrap_or(0);
        let mut counts = vec![0u64; longest];
        for (bin, count) in self.bins() {
            if let Some(slot) = counts.get_mut(magnitude(bin)) {
                *slot += count;
            }
        }
        while counts.len() > most_bins {
            counts = counts.chunks(2).map(|pair| pair.iter().sum()).collect();
            width *= 2.0;
        }
        (counts, width)
    }
}

#[cfg(test)]
mod tests;
