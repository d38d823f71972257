//! Counter-based random numbers: the i-th number of a stream is a function of the stream's key and i alone.
//!
//! A key is made by absorbing words (seed, trial, picture, step, site ...), each through a full avalanche, into two
//! lanes of 64 bits. The i-th number is SplitMix64's output function of `lane_0 + i * golden ratio`, with lane 1
//! added by XOR between its two rounds, so that streams do not lie on one common orbit
//! (`docs/sources.md`, key splitmix64). Only integer arithmetic: the same numbers on every machine.

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// SplitMix64's finaliser.
const fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// MurmurHash3's 64-bit finaliser: another avalanche, for the second lane.
const fn mix_again(z: u64) -> u64 {
    let z = (z ^ (z >> 33)).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
    let z = (z ^ (z >> 33)).wrapping_mul(0xC4CE_B9FE_1A85_EC53);
    z ^ (z >> 33)
}

/// What a stream is keyed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(u64, u64);

impl Key {
    /// The empty key of a purpose; different purposes never share a stream.
    pub const fn new(purpose: u64) -> Self {
        Self(GOLDEN, 0xD1B5_4A32_D192_ED03).with(purpose)
    }

    /// This key with one more word; the order matters.
    pub const fn with(self, word: u64) -> Self {
        let first = mix(self.0 ^ mix(word.wrapping_add(GOLDEN)));
        let second = mix_again(self.1.wrapping_add(GOLDEN) ^ mix_again(word.wrapping_mul(GOLDEN)));
        Self(first, second)
    }

    /// A hash of this key.
    pub const fn hash(self) -> u64 {
        self.0
    }

    /// The numbers of this key, from the first.
    pub const fn stream(self) -> Stream {
        Stream { key: self, counter: 0 }
    }
}

/// The numbers of one key in turn.
#[derive(Clone, Debug)]
pub struct Stream {
    key: Key,
    counter: u64,
}

impl Stream {
    /// 64 random bits.
    #[inline]
    pub fn bits(&mut self) -> u64 {
        self.counter = self.counter.wrapping_add(GOLDEN);
        let z = self.key.0.wrapping_add(self.counter);
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9) ^ self.key.1;
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Exactly uniform in `0..end` (Lemire's multiplication with rejection); `end` above 0.
    #[inline]
    pub fn below(&mut self, end: u64) -> u64 {
        debug_assert!(end > 0);
        let mut wide = u128::from(self.bits()) * u128::from(end);
        if (wide as u64) < end {
            let rejected = end.wrapping_neg() % end;
            while (wide as u64) < rejected {
                wide = u128::from(self.bits()) * u128::from(end);
            }
        }
        (wide >> 64) as u64
    }

    /// Uniform in `[0, 1)` with 53 bits.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_same_on_every_machine() {
        let mut stream = Key::new(1).with(2).with(3).stream();
        let numbers = [stream.bits(), stream.bits(), stream.below(1000)];
        assert_eq!(numbers, PINNED);
    }

    /// From an implementation in another language; a change breaks the replay of every campaign.
    const PINNED: [u64; 3] = [1_946_606_613_529_025_127, 7_644_689_640_376_089_136, 34];

    #[test]
    fn neighbouring_keys_share_no_bits_beyond_chance() {
        // Hamming distances of the first numbers of keys that differ in one word: mean 32, deviation 4 / sqrt(n).
        let mut distance = 0u32;
        let pairs = 20_000;
        for word in 0..pairs {
            let [a, b] = [word, word + 1].map(|w| Key::new(0).with(7).with(w).stream().bits());
            distance += (a ^ b).count_ones();
        }
        let mean = f64::from(distance) / pairs as f64;
        // 6 deviations: one false alarm in 5e8.
        assert!((mean - 32.0).abs() < 6.0 * 4.0 / (pairs as f64).sqrt(), "{mean}");
    }

    #[test]
    fn the_order_of_words_matters() {
        assert_ne!(Key::new(0).with(1).with(2), Key::new(0).with(2).with(1));
        assert_ne!(Key::new(0).with(0), Key::new(0).with(0).with(0));
    }
}
