//! Lower bounds: order-0 entropies in bits, for reports and tests. Nothing here is on the wire.

/// `-p log2 p - (1 - p) log2 (1 - p)`, bits; 0 at both ends and outside `0..=1`.
pub fn binary_entropy(p: f64) -> f64 {
    if p <= 0.0 || p >= 1.0 {
        return 0.0;
    }
    -p * p.log2() - (1.0 - p) * (1.0 - p).log2()
}

/// `n * H0`: bits that an ideal order-0 code needs for symbols that occur `counts` times.
pub fn order0_bits(counts: &[u64]) -> f64 {
    let total: f64 = counts.iter().map(|&count| count as f64).sum();
    counts.iter().filter(|&&count| count > 0).map(|&count| count as f64 * (total / count as f64).log2()).sum()
}

/// How often each byte occurs.
pub fn byte_counts(bytes: &[u8]) -> [u64; 256] {
    // Four tables: equal neighbours would wait for each other's sums.
    let mut tables = [[0u64; 256]; 4];
    let (fours, rest) = bytes.as_chunks::<4>();
    for four in fours {
        for (table, byte) in tables.iter_mut().zip(four) {
            table[usize::from(*byte)] += 1;
        }
    }
    let [mut counts, others @ ..] = tables;
    for &byte in rest {
        counts[usize::from(byte)] += 1;
    }
    for table in others {
        for (count, more) in counts.iter_mut().zip(table) {
            *count += more;
        }
    }
    counts
}

/// The bound of issue 4 for a sparse increment: `n (h(s) + s H0(value | non-zero))`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bound {
    /// Elements compared, `n`.
    pub elems: u64,
    /// Elements that differ, `s n`.
    pub changed: u64,
    /// The bound, bits for all elements.
    pub bits: f64,
}

impl Bound {
    /// Of the differences modulo 256 between `old` and `new`; the longer one's tail is ignored.
    pub fn of(old: &[i8], new: &[i8]) -> Self {
        let mut counts = [0; 256];
        for (old, new) in old.iter().zip(new) {
            counts[usize::from(new.wrapping_sub(*old).cast_unsigned())] += 1;
        }
        Self::of_counts(&counts)
    }

    /// Of differences that occur `counts` times, indexed by the difference as an unsigned byte.
    pub fn of_counts(counts: &[u64; 256]) -> Self {
        let [zeros, others @ ..] = counts;
        let changed: u64 = others.iter().sum();
        let elems = zeros + changed;
        let density = if elems == 0 { 0.0 } else { changed as f64 / elems as f64 };
        Self { elems, changed, bits: elems as f64 * binary_entropy(density) + order0_bits(others) }
    }

    /// `changed / elems`, 0 for nothing.
    pub fn density(&self) -> f64 {
        if self.elems == 0 { 0.0 } else { self.changed as f64 / self.elems as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entropies_of_known_distributions() {
        assert!((binary_entropy(0.5) - 1.0).abs() < 1e-12);
        assert!((binary_entropy(0.01) - 0.080_793_135_895_911).abs() < 1e-12);
        assert_eq!(binary_entropy(0.0), 0.0);
        assert_eq!(binary_entropy(1.0), 0.0);
        // 8 symbols, equally often: 3 bits each.
        assert!((order0_bits(&[5; 8]) - 120.0).abs() < 1e-9);
        assert_eq!(order0_bits(&[]), 0.0);
        assert_eq!(order0_bits(&[0, 7, 0]), 0.0);
    }

    #[test]
    fn every_byte_is_counted() {
        for n in [0, 1, 5, 1_027] {
            let bytes: Vec<u8> = (0..n).map(|at: u32| (at * at / 7) as u8).collect();
            for (value, count) in (0..=255u8).zip(byte_counts(&bytes)) {
                assert_eq!(count, bytes.iter().filter(|byte| **byte == value).count() as u64);
            }
        }
    }

    #[test]
    fn bound_counts_wrapped_differences() {
        let bound = Bound::of(&[127, 0, 0, 0], &[-128, 0, 1, 0]);
        assert_eq!((bound.elems, bound.changed), (4, 2));
        // Both differences are +1, so their values cost nothing: 4 h(1/2).
        assert!((bound.bits - 4.0).abs() < 1e-12);
        assert_eq!(Bound::of(&[], &[]).bits, 0.0);
    }
}
