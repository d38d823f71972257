//! How many words are struck: exact inversion of small binomial and Poisson laws, and the split of a fixed number.
//!
//! Distribution functions are tabulated once with IEEE basic arithmetic and the `libm` crate's `exp` and `log1p`, so
//! that every machine has the same tables. A drawn number costs one random number and about two comparisons.

use super::generator::Stream;

/// Largest mean of one table; populations are cut into chunks that obey it.
pub(crate) const CHUNK_MEAN: f64 = 32.0;

/// Numbers from one table stay below this: the tail beyond has less than 2^-64 probability at mean 32.
pub(crate) const MOST: usize = 127;

/// The distribution function of a small count, scaled to 2^64.
#[derive(Clone, Debug)]
pub(crate) struct CountTable {
    /// `P(n <= k) * 2^64`; the number drawn by `u` is how many of them are at most `u`.
    thresholds: Vec<u64>,
    /// By the top byte of `u`, the number to start counting from.
    guide: Box<[u8; 256]>,
}

impl CountTable {
    /// Binomial(`trials`, `p`) with mean at most [`CHUNK_MEAN`] (rounding aside).
    pub(crate) fn binomial(trials: u64, p: f64) -> Self {
        if p >= 1.0 {
            // Every trial: thresholds of 0 count all of them.
            return Self::new(vec![0; (trials as usize).min(MOST)]);
        }
        let first = libm::exp(trials as f64 * libm::log1p(-p));
        let odds = p / (1.0 - p);
        Self::cumulate(first, trials, |k| (trials - k) as f64 / (k + 1) as f64 * odds)
    }

    /// Poisson(`mean`), mean at most [`CHUNK_MEAN`].
    pub(crate) fn poisson(mean: f64) -> Self {
        Self::cumulate(libm::exp(-mean), u64::MAX, |k| mean / (k + 1) as f64)
    }

    /// `first` is P(0), `ratio(k)` is P(k + 1) / P(k); nothing lies above `last`.
    fn cumulate(first: f64, last: u64, ratio: impl Fn(u64) -> f64) -> Self {
        const SCALE: f64 = 18_446_744_073_709_551_616.0;
        let (mut probability, mut sum) = (first, first);
        let mut thresholds = Vec::new();
        for k in 0..last.min(MOST as u64) {
            thresholds.push((sum * SCALE) as u64);
            let r = ratio(k);
            probability *= r;
            let next = sum + probability;
            if r < 1.0 && next <= sum {
                break;
            }
            sum = next;
        }
        Self::new(thresholds)
    }

    fn new(thresholds: Vec<u64>) -> Self {
        let mut guide = Box::new([0u8; 256]);
        for (top, start) in guide.iter_mut().enumerate() {
            let least = (top as u64) << 56;
            *start = thresholds.partition_point(|&threshold| threshold <= least) as u8;
        }
        Self { thresholds, guide }
    }

    /// The count that 64 random bits draw.
    #[inline]
    pub(crate) fn count(&self, u: u64) -> usize {
        let mut n = usize::from(self.guide[(u >> 56) as usize]);
        while self.thresholds.get(n).is_some_and(|&threshold| threshold <= u) {
            n += 1;
        }
        n
    }
}

/// Binomial(`units`, `p`) over a population that is cut into chunks, and which chunk each struck unit lies in.
#[derive(Clone, Debug)]
pub(crate) struct Chunks {
    /// Number of chunks; the first `longer` of them hold one unit more.
    chunks: u64,
    units: u64,
    longer: u64,
    table: CountTable,
    table_longer: Option<CountTable>,
}

impl Chunks {
    /// `units` above 0, `p` in (0, 1].
    pub(crate) fn binomial(units: u64, p: f64) -> Self {
        let chunks = ((units as f64 * p / CHUNK_MEAN) as u64 + 1).min(units);
        let (size, longer) = (units / chunks, units % chunks);
        Self {
            chunks,
            units: size,
            longer,
            table: CountTable::binomial(size, p),
            table_longer: (longer > 0).then(|| CountTable::binomial(size + 1, p)),
        }
    }

    /// Calls `strike` with every struck unit, in ascending order, none twice.
    #[inline]
    pub(crate) fn draw(&self, stream: &mut Stream, mut strike: impl FnMut(u64)) {
        let mut start = 0;
        let mut chosen = [0u64; MOST];
        for chunk in 0..self.chunks {
            let (table, size) = match &self.table_longer {
                Some(longer) if chunk < self.longer => (longer, self.units + 1),
                _ => (&self.table, self.units),
            };
            let count = table.count(stream.bits());
            if count > 0 {
                for &unit in super::positions::small_subset(stream, size, count, &mut chosen) {
                    strike(start + unit);
                }
            }
            start += size;
        }
    }
}

/// Poisson counts of any mean: a sum of small ones.
#[derive(Clone, Debug)]
pub(crate) struct PoissonCount {
    parts: u64,
    table: CountTable,
}

impl PoissonCount {
    pub(crate) fn new(mean: f64) -> Self {
        let parts = (mean / CHUNK_MEAN) as u64 + 1;
        Self { parts, table: CountTable::poisson(mean / parts as f64) }
    }

    pub(crate) fn count(&self, stream: &mut Stream) -> u64 {
        (0..self.parts).map(|_| self.table.count(stream.bits()) as u64).sum()
    }
}

/// Splits a fixed number over cells: the multivariate hypergeometric law, in integers alone.
///
/// Balls are drawn one by one without replacement from an urn that holds the cells' units; the urn is a binary tree
/// of remaining numbers.
#[derive(Clone, Debug)]
pub(crate) struct Urn {
    /// Heap order: node i has children 2i and 2i + 1; the leaves start at `leaves`.
    remaining: Vec<u64>,
    leaves: usize,
    cells: usize,
}

impl Urn {
    pub(crate) fn new(cells: &[u64]) -> Self {
        let leaves = cells.len().next_power_of_two();
        let mut remaining = vec![0; 2 * leaves];
        remaining[leaves..leaves + cells.len()].copy_from_slice(cells);
        for node in (1..leaves).rev() {
            remaining[node] = remaining[2 * node] + remaining[2 * node + 1];
        }
        Self { remaining, leaves, cells: cells.len() }
    }

    /// Units of all cells.
    pub(crate) fn units(&self) -> u64 {
        self.remaining[1]
    }

    /// How many of `count` balls come from each cell; `count` at most [`Urn::units`].
    pub(crate) fn split(&self, stream: &mut Stream, count: u64) -> Vec<u64> {
        let mut remaining = self.remaining.clone();
        let mut drawn = vec![0; self.cells];
        for _ in 0..count {
            let mut ball = stream.below(remaining[1]);
            let mut node = 1;
            remaining[1] -= 1;
            while node < self.leaves {
                node *= 2;
                if ball >= remaining[node] {
                    ball -= remaining[node];
                    node += 1;
                }
                remaining[node] -= 1;
            }
            drawn[node - self.leaves] += 1;
        }
        drawn
    }
}
