//! Finding the bytes that differ: eight at a time, unchanged stretches 32 at a time.

use crate::entropy::model::Classes;
use crate::entropy::rans::TOKENS;

/// The differences of two versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Scan {
    /// Unchanged elements before each changed one, from the one before it on.
    pub gaps: Vec<u32>,
    /// Difference of each changed one as [`number`] of it.
    pub values: Vec<u8>,
    /// How often each value occurs.
    pub value_counts: [u64; TOKENS],
    /// How often gaps fall in each of [`Classes::FINEST`].
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

/// Compares; the longer one's tail is ignored. Lengths fit u32.
pub(super) fn scan(old: &[i8], new: &[i8]) -> Scan {
    let mut scan = Scan {
        gaps: Vec::with_capacity(old.len() / 64),
        values: Vec::with_capacity(old.len() / 64),
        value_counts: [0; TOKENS],
        gap_counts: [0; TOKENS],
    };
    let numbers: [u8; 256] = std::array::from_fn(|byte| number((byte as u8).cast_signed()));
    // First position that the next gap counts from.
    let mut from = 0u32;
    let mut at = 0u32;
    let mut found = |at: u32, difference: u8| {
        let gap = at - from;
        from = at + 1;
        let value = numbers[usize::from(difference)];
        scan.gaps.push(gap);
        scan.values.push(value);
        scan.value_counts[usize::from(value)] += 1;
        scan.gap_counts[Classes::FINEST.split(gap).0 as usize % TOKENS] += 1;
    };
    let word = |bytes: &[i8; 8]| u64::from_le_bytes(bytes.map(i8::cast_unsigned));
    let (old_blocks, old_tail) = old.as_chunks::<32>();
    let (new_blocks, new_tail) = new.as_chunks::<32>();
    for (old, new) in old_blocks.iter().zip(new_blocks) {
        if old != new {
            let words = old.as_chunks::<8>().0.iter().zip(new.as_chunks::<8>().0);
            for (offset, (old, new)) in (at..).step_by(8).zip(words) {
                let mut changed = word(old) ^ word(new);
                while changed != 0 {
                    let byte = changed.trailing_zeros() / 8 % 8;
                    changed &= !(0xff << (8 * byte));
                    found(offset + byte, new[byte as usize].wrapping_sub(old[byte as usize]).cast_unsigned());
                }
            }
        }
        at += 32;
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
            old in prop::collection::vec(any::<i8>(), 0..200),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<i8>()), 0..80),
        ) {
            let mut new = old.clone();
            for (at, value) in changes.iter().filter(|_| !old.is_empty()) {
                *at.get_mut(&mut new) = *value;
            }
            let found = scan(&old, &new);
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
        }
    }
}
