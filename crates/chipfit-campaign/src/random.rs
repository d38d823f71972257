//! Counter-based draws: every random value of a campaign is a function of its key, never of what was drawn before.
//!
//! [`hash`] is the generator of `chipfit-npu`'s faults ([`Key`]) under a purpose of its own; [`Permutation`] is a
//! keyed bijection of `0..n`, a balanced Feistel network that is walked until it lands inside (Black and Rogaway
//! 2002), so that trial `i` of a cell can draw its fault *without replacement* and still be a pure function of `i`.

use chipfit_npu::faults::generator::Key;

/// Purpose of the keys; the faults of a rate use small numbers.
const CAMPAIGN: u64 = 0x6361_6d70_6169_676e;

fn key(words: &[u64]) -> Key {
    // The number of words first: no key is the beginning of another.
    words.iter().fold(Key::new(CAMPAIGN).with(words.len() as u64), |key, &word| key.with(word))
}

/// 64 random bits of a key.
pub fn hash(words: &[u64]) -> u64 {
    key(words).stream().bits()
}

/// A number in [0, 1) with 53 random bits.
pub fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// Rounds of the Feistel network.
const ROUNDS: u64 = 8;

/// A keyed bijection of `0..length`.
#[derive(Clone, Copy, Debug)]
pub struct Permutation {
    key: Key,
    length: u64,
    half_bits: u32,
}

impl Permutation {
    /// The bijection of `0..length` for the key `words`; `length` is at least 1.
    pub fn new(words: &[u64], length: u64) -> Self {
        let bits = u64::BITS - length.saturating_sub(1).leading_zeros();
        Self { key: key(words), length, half_bits: bits.div_ceil(2).max(1) }
    }

    /// Where `index` goes; `index` is taken modulo the length.
    pub fn at(&self, index: u64) -> u64 {
        if self.length <= 1 {
            return 0;
        }
        let mut word = index % self.length;
        // The network permutes a power of four below 4 * length: 4 steps on average, and it always returns.
        loop {
            word = self.network(word);
            if word < self.length {
                return word;
            }
        }
    }

    fn network(&self, word: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let (mut left, mut right) = (word >> self.half_bits, word & mask);
        for round in 0..ROUNDS {
            (left, right) = (right, left ^ (self.key.with(round).with(right).hash() & mask));
        }
        left << self.half_bits | right
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_permutation_visits_everything_once() {
        for length in (1..70).chain([255, 256, 257, 1_000, 4_097]) {
            let permutation = Permutation::new(&[7, length], length);
            let mut seen: Vec<u64> = (0..length).map(|i| permutation.at(i)).collect();
            seen.sort_unstable();
            assert!(seen.into_iter().eq(0..length), "{length}");
        }
    }

    #[test]
    fn the_largest_population_works() {
        let permutation = Permutation::new(&[1], u64::MAX);
        let seen: std::collections::BTreeSet<u64> = (0..1_000).map(|i| permutation.at(i)).collect();
        assert_eq!(seen.len(), 1_000);
    }

    #[test]
    fn all_orders_of_four_are_equally_likely() {
        let mut orders: BTreeMap<Vec<u64>, f64> = BTreeMap::new();
        let keys = 24_000;
        for key in 0..keys {
            let permutation = Permutation::new(&[key], 4);
            *orders.entry((0..4).map(|i| permutation.at(i)).collect()).or_default() += 1.0;
        }
        assert_eq!(orders.len(), 24);
        let expected = keys as f64 / 24.0;
        let chi_square: f64 = orders.values().map(|n| (n - expected).powi(2) / expected).sum();
        // 23 degrees of freedom: 49.7 is exceeded once in a thousand.
        assert!(chi_square < 49.7, "{chi_square}");
    }

    #[test]
    fn the_first_draws_are_uniform_over_the_population() {
        let (length, cells) = (100_003u64, 64usize);
        let mut counts = vec![0.0f64; cells];
        let permutation = Permutation::new(&[42, 3], length);
        let draws = 20_000;
        for i in 0..draws {
            counts[(permutation.at(i) * cells as u64 / length) as usize] += 1.0;
        }
        let expected = draws as f64 / cells as f64;
        let chi_square: f64 = counts.iter().map(|n| (n - expected).powi(2) / expected).sum();
        // 63 degrees of freedom: 103.4 is exceeded once in a thousand; drawing without replacement lies below.
        assert!(chi_square < 103.4, "{chi_square}");
    }

    #[test]
    fn keys_of_different_length_and_order_differ() {
        let keys: [&[u64]; 5] = [&[], &[0], &[0, 0], &[0, 1], &[1, 0]];
        let hashes: std::collections::BTreeSet<u64> = keys.iter().map(|k| hash(k)).collect();
        assert_eq!(hashes.len(), keys.len());
    }
}
