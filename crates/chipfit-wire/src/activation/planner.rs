//! How the server chooses the next step's parameters from what the last steps showed.

use super::parameters::{Mode, Parameters};
use crate::entropy::measure::{binary_entropy, order0_bits};

/// Differences `y - x` (modulo 256, never 0) and how common each is.
#[derive(Clone, Debug)]
pub struct Prior {
    log_share: Box<[f32; 256]>,
    /// Entropy of a difference that is not 0, bits.
    bits: f64,
}

impl Prior {
    /// From how often each difference occurred; entry 0 is ignored. All share the weight of half an error each besides.
    pub fn from_counts(counts: &[f64; 256]) -> Self {
        let counts: Vec<f64> = counts.iter().skip(1).map(|count| count.max(0.0) + 0.5).collect();
        let total: f64 = counts.iter().sum();
        let mut log_share = Box::new([0f32; 256]);
        for (share, count) in log_share.iter_mut().skip(1).zip(&counts) {
            *share = (count / total).ln() as f32;
        }
        let bits = counts.iter().map(|count| count / total * (total / count).log2()).sum();
        Self { log_share, bits }
    }

    /// Before anything was seen: all differences alike.
    pub fn uniform() -> Self {
        Self::from_counts(&[0.0; 256])
    }

    /// Logarithm of the share of `observed - predicted` among all errors.
    pub(super) fn log_share(&self, predicted: u8, observed: u8) -> f32 {
        self.log_share[usize::from(observed.wrapping_sub(predicted))]
    }

    /// Cells that an error needs when `rate` of all bytes are errors: a multiple of its entropy, measured with
    /// `examples/activation_speed.rs` (more for the densest layers, whose cells are the fullest).
    pub(super) fn cells_per_error(&self, rate: f64) -> f64 {
        let rate = rate.clamp(1e-9, 0.5);
        let entropy = binary_entropy(rate) / rate + self.bits;
        let factor = (2.0 + 0.14 * (rate / 1e-3).log10()).clamp(1.9, 2.4);
        entropy / 8.0 * factor
    }
}

/// What the server remembers of one layer.
#[derive(Clone, Debug)]
pub struct Planner {
    /// Weight of all steps seen, each step older counting less.
    weight: f64,
    errors: f64,
    errors_squared: f64,
    differences: Box<[f64; 256]>,
    /// Bits per byte of the last layer by itself, coded by its own frequencies.
    plain_bits: f64,
    /// How often each distance occurred that some low bits would have to bridge: entry `k` counts bytes whose
    /// prediction is off by less than half of `2^k`, but not less than half of `2^(k - 1)`.
    bridged: [f64; 9],
}

/// What a step counts for in the next one's statistics.
const MEMORY: f64 = 0.8;
/// Standard deviations of margin above the expected number of errors: two layers in a hundred go beyond.
const MARGIN: f64 = 2.0;
/// Cells that even the fewest errors need.
const FEWEST_CELLS: f64 = 12.0;

impl Default for Planner {
    fn default() -> Self {
        Self::new()
    }
}

impl Planner {
    /// Nothing seen yet.
    pub fn new() -> Self {
        Self {
            weight: 0.0,
            errors: 0.0,
            errors_squared: 0.0,
            differences: Box::new([0.0; 256]),
            plain_bits: 8.0,
            bridged: [0.0; 9],
        }
    }

    /// Takes note of what a step's layer held (`observed`) and what was predicted; the longer one's tail is ignored.
    pub fn observe(&mut self, predicted: &[u8], observed: &[u8]) {
        self.differences.iter_mut().for_each(|count| *count *= MEMORY);
        self.bridged.iter_mut().for_each(|count| *count *= MEMORY);
        let mut errors = 0u64;
        let mut plain = [0u64; 256];
        for (&x, &y) in predicted.iter().zip(observed) {
            plain[usize::from(y)] += 1;
            if x != y {
                errors += 1;
                self.differences[usize::from(y.wrapping_sub(x))] += 1.0;
                self.bridged[bits_to_bridge(x, y)] += 1.0;
            }
        }
        let bytes = predicted.len().min(observed.len()).max(1);
        self.plain_bits = order0_bits(&plain) / bytes as f64;
        let errors = errors as f64;
        self.weight = self.weight * MEMORY + 1.0;
        self.errors = self.errors * MEMORY + errors;
        self.errors_squared = self.errors_squared * MEMORY + errors * errors;
    }

    /// What is known of the errors' values.
    pub fn prior(&self) -> Prior {
        Prior::from_counts(&self.differences)
    }

    /// Parameters of the next step for a layer of `bytes` bytes. Before the first step is seen: entropy coded.
    ///
    /// Afterwards the cheapest, by what was seen, of: cells; cells with 1 to 6 low bits; entropy coding.
    pub fn parameters(&self, bytes: usize, key: u64) -> Parameters {
        if self.weight == 0.0 || bytes == 0 {
            return Parameters { mode: Mode::Entropy, key };
        }
        let mean = self.errors / self.weight;
        let variance = (self.errors_squared / self.weight - mean * mean).max(mean);
        let prior = self.prior();
        let total: f64 = self.bridged.iter().sum();
        let mut best = (self.plain_bits * bytes as f64 / 8.0, Mode::Entropy);
        let mut left = 1.0;
        for low_bits in 0..7u8 {
            if total > 0.0 {
                left -= self.bridged[usize::from(low_bits)] / total;
            }
            let left = left.max(0.0);
            // A part of the errors has a part of their variance, at least that of independent ones.
            let spread = (variance * left * left).max(mean * left);
            // The mean over the steps remembered is itself uncertain.
            let expected = mean * left + MARGIN * (spread * (1.0 + 1.0 / self.weight)).sqrt();
            let cells = expected * prior.cells_per_error(expected / bytes as f64) + FEWEST_CELLS;
            // Beyond a third of the bytes no sparse code works.
            let cost = cells + bytes as f64 * f64::from(low_bits) / 8.0;
            if cost < best.0 && expected < bytes as f64 / 3.0 {
                let degree = if expected / (bytes as f64) < 5e-3 { 5 } else { 4 };
                best = (cost, Mode::Cells { cells: cells as u32, degree, low_bits });
            }
        }
        Parameters { mode: best.1, key }
    }
}

/// Fewest low bits that lead from `x` to `y`: half of `2^bits` exceeds their distance. 8 when only all bits do.
fn bits_to_bridge(x: u8, y: u8) -> usize {
    let distance = usize::from(x.abs_diff(y));
    (1..8).find(|&bits| distance < 1 << (bits - 1)).unwrap_or(8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_planner_follows_what_it_saw() {
        let mut planner = Planner::new();
        assert_eq!(planner.parameters(1000, 1).mode, Mode::Entropy, "nothing seen");
        let x: Vec<u8> = (0..100_000u64).map(|i| super::super::graph::mix(i) as u8).collect();
        let mut y = x.clone();
        y.iter_mut().step_by(1000).for_each(|byte| *byte ^= 64);
        for _ in 0..3 {
            planner.observe(&x, &y);
        }
        let Mode::Cells { cells: few, low_bits: 0, .. } = planner.parameters(x.len(), 1).mode else {
            panic!("sparse errors want cells");
        };
        assert!((150..800).contains(&few), "{few}");
        // Small differences everywhere want low bits.
        let near: Vec<u8> = x.iter().enumerate().map(|(i, &x)| x.saturating_add((i % 2) as u8)).collect();
        let mut planner = Planner::new();
        planner.observe(&x, &near);
        assert!(matches!(planner.parameters(x.len(), 1).mode, Mode::Cells { low_bits: 2, .. }));
        // Anything at all everywhere, of few values: entropy coding.
        let other: Vec<u8> = x.iter().map(|x| x & 3).collect();
        let mut planner = Planner::new();
        planner.observe(&x, &other);
        assert_eq!(planner.parameters(x.len(), 1).mode, Mode::Entropy);
    }

    #[test]
    fn low_bits_bridge_less_than_half() {
        for x in 0..=255u8 {
            for y in (0..=255u8).filter(|&y| y != x) {
                let bits = bits_to_bridge(x, y);
                assert_eq!(bits == 8, x.abs_diff(y) >= 64);
                if bits < 8 {
                    assert!(usize::from(x.abs_diff(y)) < 1 << (bits - 1));
                }
            }
        }
    }
}
