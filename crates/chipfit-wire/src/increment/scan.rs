//! Finding the bytes that differ: a bit each, unchanged stretches 64 at a time.

use crate::entropy::model::finest_token;
use crate::entropy::rans::TOKENS;

/// The differences of two versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Scan {
    /// Unchanged elements before each changed one, from the one before it on.
    pub gaps: Vec<u32>,
    /// Token of each gap in the finest classes.
    pub gap_tokens: Vec<u8>,
    /// Difference of each changed one as [`number`] of it.
    pub values: Vec<u8>,
    /// How often each value occurs.
    pub value_counts: [u64; TOKENS],
    /// How often gaps have each token.
    pub gap_counts: [u64; TOKENS],
}

/// A difference that is not 0 as a number: 1, -1, 2, -2 .. -128 are 0, 1, 2, 3 .. 255; 254 does not occur.
pub(super) fn number(difference: i8) -> u8 {
    // 2 d - 2 for positive d, -2 d - 1 for negative.
    (difference << 1 ^ difference >> 7).wrapping_sub(if difference > 0 { 2 } else { 0 }).cast_unsigned()
}

/// Inverse of [`number`], as a byte.
pub(super) fn difference(number: u8) -> u8 {
    let magnitude = (number >> 1).wrapping_add(1);
    if number & 1 == 0 { magnitude } else { magnitude.wrapping_neg() }
}

/// Elements that differ; the longer one's tail is ignored.
pub(super) fn count(old: &[i8], new: &[i8]) -> usize {
    // Inner sums fit a byte, so that the compiler adds sixteen or more at a time.
    let chunk = |(old, new): (&[i8], &[i8])| {
        let differ = old.iter().zip(new).fold(0u8, |sum, (old, new)| sum + u8::from(old != new));
        usize::from(differ)
    };
    old.chunks(192).zip(new.chunks(192)).map(chunk).sum()
}

/// One bit for each byte that differs, the first in the lowest bit.
#[inline]
fn changed_bytes(old: &[i8; 8], new: &[i8; 8]) -> u64 {
    const LOW: u64 = 0x7f7f_7f7f_7f7f_7f7f;
    let word = |bytes: &[i8; 8]| u64::from_le_bytes(bytes.map(i8::cast_unsigned));
    let x = word(old) ^ word(new);
    // The highest bit of each byte that is not 0: carried there from the low seven bits, or there already.
    let high = (((x & LOW) + LOW) | x) & !LOW;
    // Bit 8 i moves to bit 56 + i; no two products meet.
    (high >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56
}

/// Compares; the longer one's tail is ignored. Lengths fit u32, and `k` elements differ.
pub(super) fn scan(old: &[i8], new: &[i8], k: usize) -> Scan {
    let mut scan = Scan {
        gaps: Vec::with_capacity(k),
        gap_tokens: Vec::with_capacity(k),
        values: Vec::with_capacity(k),
        value_counts: [0; TOKENS],
        gap_counts: [0; TOKENS],
    };
    let numbers: [u8; 256] = std::array::from_fn(|byte| number((byte as u8).cast_signed()));
    // First position that the next gap counts from.
    let mut from = 0u32;
    let mut at = 0u32;
    let mut found = |at: u32, difference: u8| {
        let gap = at.wrapping_sub(from);
        from = at.wrapping_add(1);
        let value = numbers[usize::from(difference)];
        let token = finest_token(gap);
        scan.gaps.push(gap);
        scan.gap_tokens.push(token);
        scan.values.push(value);
        scan.value_counts[usize::from(value)] += 1;
        scan.gap_counts[usize::from(token)] += 1;
    };
    let (old_blocks, old_tail) = old.as_chunks::<64>();
    let (new_blocks, new_tail) = new.as_chunks::<64>();
    for (old, new) in old_blocks.iter().zip(new_blocks) {
        if old != new {
            let words = old.as_chunks::<8>().0.iter().zip(new.as_chunks::<8>().0);
            let mut changed = words.rev().fold(0u64, |bits, (old, new)| bits << 8 | changed_bytes(old, new));
            while changed != 0 {
                let byte = changed.trailing_zeros() % 64;
                changed &= changed - 1;
                let difference = new[byte as usize].wrapping_sub(old[byte as usize]);
                found(at + byte, difference.cast_unsigned());
            }
        }
        at += 64;
    }
    for (offset, (old, new)) in (at..).zip(old_tail.iter().zip(new_tail)) {
        if old != new {
            found(offset, new.wrapping_sub(*old).cast_unsigned());
        }
    }
    scan
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::entropy::model::Classes;

    #[test]
    fn numbers_of_differences() {
        let expected = [(1, 0), (-1, 1), (2, 2), (-2, 3), (127, 252), (-127, 253), (-128, 255)];
        for (d, u) in expected {
            assert_eq!(number(d), u, "{d}");
        }
        for d in (i8::MIN..=i8::MAX).filter(|d| *d != 0) {
            assert_eq!(difference(number(d)), d.cast_unsigned());
        }
    }

    proptest! {
        #[test]
        fn finds_what_a_plain_loop_finds(
            old in prop::collection::vec(any::<i8>(), 0..500),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<i8>()), 0..80),
        ) {
            let mut new = old.clone();
            for (at, value) in changes.iter().filter(|_| !old.is_empty()) {
                *at.get_mut(&mut new) = *value;
            }
            let k = old.iter().zip(&new).filter(|(old, new)| old != new).count();
            prop_assert_eq!(count(&old, &new), k);
            let found = scan(&old, &new, k);
            let mut from = 0;
            let mut plain = Vec::new();
            for (at, (old, new)) in old.iter().zip(&new).enumerate().filter(|(_, (old, new))| old != new) {
                plain.push(((at - from) as u32, number(new.wrapping_sub(*old))));
                from = at + 1;
            }
            let pairs: Vec<(u32, u8)> = found.gaps.iter().copied().zip(found.values.iter().copied()).collect();
            prop_assert_eq!(&pairs, &plain);
            for (value, count) in found.value_counts.iter().enumerate() {
                prop_assert_eq!(*count, plain.iter().filter(|(_, v)| usize::from(*v) == value).count() as u64);
            }
            prop_assert_eq!(found.gap_counts.iter().sum::<u64>(), plain.len() as u64);
            let tokens: Vec<u8> = found.gaps.iter().map(|gap| Classes::FINEST.split(*gap).0 as u8).collect();
            prop_assert_eq!(found.gap_tokens, tokens);
        }
    }
}
