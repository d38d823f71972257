//! Which units of a population are struck: subsets drawn without replacement, in ascending order.

use super::generator::Stream;

/// `count` different numbers of `0..size`, ascending; `count` at most `size` and at most the length of `chosen`.
///
/// Where repetitions are rare (`2 * count^2 <= size`): the first `count` different values of a uniform sequence.
/// Elsewhere Floyd's algorithm. Both make every subset equally likely.
#[inline]
pub(crate) fn small_subset<'a>(stream: &mut Stream, size: u64, count: usize, chosen: &'a mut [u64]) -> &'a [u64] {
    debug_assert!(count as u64 <= size && count <= chosen.len());
    if 2 * (count as u64) * (count as u64) > size {
        return floyd(stream, size, count, chosen);
    }
    let chosen = &mut chosen[..count];
    let mut known = 0;
    while known < count {
        for unit in &mut chosen[known..] {
            *unit = stream.below(size);
        }
        chosen.sort_unstable();
        known = keep_first_of_equals(chosen);
    }
    chosen
}

/// Moves the different values of an ascending slice to its front; how many there are.
#[inline]
fn keep_first_of_equals(sorted: &mut [u64]) -> usize {
    if sorted.windows(2).all(|pair| pair[0] != pair[1]) {
        return sorted.len();
    }
    let mut kept = 1;
    for at in 1..sorted.len() {
        if sorted[at] != sorted[kept - 1] {
            sorted[kept] = sorted[at];
            kept += 1;
        }
    }
    kept
}

/// Floyd's algorithm with the chosen numbers kept sorted.
fn floyd<'a>(stream: &mut Stream, size: u64, count: usize, chosen: &'a mut [u64]) -> &'a [u64] {
    for (known, last) in (size - count as u64..size).enumerate() {
        let candidate = stream.below(last + 1);
        let mut place = known;
        while place > 0 && chosen[place - 1] > candidate {
            place -= 1;
        }
        if place > 0 && chosen[place - 1] == candidate {
            // Taken: `last` is free, and above all that are chosen.
            chosen[known] = last;
        } else {
            chosen.copy_within(place..known, place + 1);
            chosen[place] = candidate;
        }
    }
    &chosen[..count]
}

/// `count` different numbers of `0..size`, ascending; any count up to `size`.
///
/// The first `count` different values of a uniform sequence are a uniform subset, whatever their order.
pub(crate) fn subset(stream: &mut Stream, size: u64, count: u64) -> Vec<u64> {
    let count = count.min(size);
    if count > size / 2 && size > 1 {
        let spared = subset(stream, size, size - count);
        let mut spared = spared.into_iter().peekable();
        return (0..size).filter(|unit| spared.next_if_eq(unit).is_none()).collect();
    }
    if count <= 32 {
        let mut chosen = [0; 32];
        return small_subset(stream, size, count as usize, &mut chosen).to_vec();
    }
    let mut chosen: Vec<u64> = Vec::with_capacity(count as usize);
    while (chosen.len() as u64) < count {
        let missing = count - chosen.len() as u64;
        chosen.extend((0..missing).map(|_| stream.below(size)));
        chosen.sort_unstable();
        chosen.dedup();
    }
    chosen
}
