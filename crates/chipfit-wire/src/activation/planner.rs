//! How the server chooses the next step's parameters from what the last steps showed.

use super::parameters::{Mode, Parameters};

/// Values of errors (`y xor x`, never 0) and how common each is.
#[derive(Clone, Debug)]
pub struct Prior {
    log_share: Box<[f32; 256]>,
}

impl Prior {
    /// From how often each value occurred; entry 0 is ignored. Values not seen share the weight of half a value each.
    pub fn from_counts(counts: &[f64; 256]) -> Self {
        let total: f64 = counts[1..].iter().map(|count| count + 0.5).sum();
        let mut log_share = Box::new([0f32; 256]);
        for (share, count) in log_share.iter_mut().zip(counts).skip(1) {
            *share = ((count + 0.5) / total).ln() as f32;
        }
        Self { log_share }
    }

    /// Before anything was seen: all values alike.
    pub fn uniform() -> Self {
        Self::from_counts(&[0.0; 256])
    }

    pub(super) fn log_share(&self, value: u8) -> f32 {
        self.log_share[usize::from(value)]
    }
}

/// What the server remembers of one layer.
#[derive(Clone, Debug)]
pub struct Planner {
    /// Weight of all steps seen, each step older counting less.
    weight: f64,
    errors: f64,
    errors_squared: f64,
    counts: Box<[f64; 256]>,
}

/// What a step counts for in the next one's statistics.
const MEMORY: f64 = 0.8;

impl Default for Planner {
    fn default() -> Self {
        Self::new()
    }
}

impl Planner {
    /// Nothing seen yet.
    pub fn new() -> Self {
        Self { weight: 0.0, errors: 0.0, errors_squared: 0.0, counts: Box::new([0.0; 256]) }
    }

    /// Takes note of what a step's layer held (`observed`) and what was predicted; the longer one's tail is ignored.
    pub fn observe(&mut self, predicted: &[u8], observed: &[u8]) {
        self.counts.iter_mut().for_each(|count| *count *= MEMORY);
        let mut errors = 0u64;
        for (x, y) in predicted.iter().zip(observed).filter(|(x, y)| x != y) {
            errors += 1;
            self.counts[usize::from(x ^ y)] += 1.0;
        }
        let errors = errors as f64;
        self.weight = self.weight * MEMORY + 1.0;
        self.errors = self.errors * MEMORY + errors;
        self.errors_squared = self.errors_squared * MEMORY + errors * errors;
    }

    /// What is known of the errors' values.
    pub fn prior(&self) -> Prior {
        Prior::from_counts(&self.counts)
    }

    /// Parameters of the next step for a layer of `bytes` bytes. Before the first step is seen: entropy coded.
    pub fn parameters(&self, bytes: usize, key: u64) -> Parameters {
        let mode = if self.weight == 0.0 { Mode::Entropy } else { self.cells(bytes) };
        Parameters { mode, key }
    }

    fn cells(&self, bytes: usize) -> Mode {
        let mean = self.errors / self.weight;
        let spread = (self.errors_squared / self.weight - mean * mean).max(mean);
        // The mean of a few steps is itself uncertain by about half its spread.
        let expected = mean + 2.5 * (spread * 1.5).sqrt() + 1.0;
        let width = 2;
        let cells = expected * cells_per_error(width, expected / bytes.max(1) as f64) + 16.0;
        if cells >= bytes as f64 / 2.0 {
            return Mode::Entropy;
        }
        Mode::Cells { cells: cells as u32, degree: 3, width, low_bits: 0 }
    }
}

/// Cells that `width` bytes wide cells need per error, when `rate` of all bytes are errors.
pub(super) fn cells_per_error(width: u8, rate: f64) -> f64 {
    let _ = rate;
    if width == 1 { 5.0 } else { 2.0 }
}
