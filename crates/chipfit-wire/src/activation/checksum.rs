//! A keyed checksum of bytes: polynomials modulo `2^61 - 1`, evaluated at a secret point.
//!
//! The bytes are cut into little-endian 32-bit words (the last one filled with zeros); word `i` is a coefficient of
//! lane `i mod 4`, highest degree first. The value is the polynomial of `(n, lane 0, .., lane 3)` at the same point.
//! For a point drawn independently of the bytes, two different strings of `n` bytes have the same value with
//! probability at most `(n/16 + 6) / 2^61`: below `2^-44` for a megabyte. It is not a cryptographic hash: it guards
//! against wrong decoding, not against a device that lies about its own activations.

const PRIME: u64 = (1 << 61) - 1;
const LANES: usize = 4;

/// `a * b + c` modulo the prime; `a`, `b` below the prime, `c` below `2^61`. The result is below the prime.
fn multiply_add(a: u64, b: u64, c: u64) -> u64 {
    let product = u128::from(a) * u128::from(b) + u128::from(c);
    // Below 2^122, so both parts are below 2^61 and one subtraction suffices.
    let folded = (product as u64 & PRIME) + (product >> 61) as u64;
    if folded >= PRIME { folded - PRIME } else { folded }
}

/// The point of evaluation that belongs to `key`: not 0, below the prime.
fn point(key: u64) -> u64 {
    1 + super::graph::mix(key) % (PRIME - 1)
}

/// The checksum of `bytes` under `key`; below `2^61`.
pub fn checksum(key: u64, bytes: &[u8]) -> u64 {
    let at = point(key);
    let mut lanes = [0u64; LANES];
    let (blocks, rest) = bytes.as_chunks::<16>();
    for block in blocks {
        let (words, _) = block.as_chunks::<4>();
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane = multiply_add(*lane, at, u64::from(u32::from_le_bytes(*word)));
        }
    }
    if !rest.is_empty() {
        let mut block = [0; 16];
        for (to, from) in block.iter_mut().zip(rest) {
            *to = *from;
        }
        let (words, _) = block.as_chunks::<4>();
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane = multiply_add(*lane, at, u64::from(u32::from_le_bytes(*word)));
        }
    }
    let length = bytes.len() as u64 & PRIME;
    lanes.iter().fold(length % PRIME, |sum, &lane| multiply_add(sum, at, lane))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// By the definition: powers of the point, in u128 with `%`.
    fn naive(key: u64, bytes: &[u8]) -> u64 {
        let (at, prime) = (u128::from(point(key)), u128::from(PRIME));
        let power = |exponent: usize| (0..exponent).fold(1u128, |value, _| value * at % prime);
        let mut padded = bytes.to_vec();
        padded.resize(bytes.len().div_ceil(16) * 16, 0);
        let words: Vec<u128> =
            padded.chunks(4).map(|w| w.iter().rev().fold(0, |value, &byte| value << 8 | u128::from(byte))).collect();
        let steps = words.len() / 4;
        let lane = |l: usize| (0..steps).fold(0, |sum, i| (sum + words[4 * i + l] * power(steps - 1 - i)) % prime);
        let ends = [bytes.len() as u128, lane(0), lane(1), lane(2), lane(3)];
        ends.iter().enumerate().fold(0, |sum, (i, &end)| (sum + end * power(4 - i)) % prime) as u64
    }

    proptest! {
        #[test]
        fn equals_the_definition(key: u64, bytes in prop::collection::vec(any::<u8>(), 0..150)) {
            prop_assert_eq!(checksum(key, &bytes), naive(key, &bytes));
        }

        #[test]
        fn sees_every_changed_byte(key: u64, bytes in prop::collection::vec(any::<u8>(), 1..150), at: prop::sample::Index, change in 1u8..) {
            let mut other = bytes.clone();
            *at.get_mut(&mut other) ^= change;
            prop_assert_ne!(checksum(key, &bytes), checksum(key, &other));
            other.push(0);
            prop_assert_ne!(checksum(key, &bytes), checksum(key, &other));
        }
    }

    #[test]
    fn extremes_stay_reduced() {
        for bytes in [vec![0xff; 4096], vec![0; 4096], vec![]] {
            assert!(checksum(u64::MAX, &bytes) < PRIME);
        }
    }
}
