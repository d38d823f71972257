//! The entropy method: the clipping threshold whose quantised distribution diverges least from the true one.
//!
//! The procedure of TensorRT (S. Migacz, "8-bit Inference with TensorRT", GTC 2017) with the smoothing of ONNX
//! Runtime's `get_entropy_threshold`. `H` counts the magnitudes of non-zero values in at most [`BINS`] bins. For
//! `i = levels, levels + STRIDE, ...` up to all bins:
//!
//! - `P[b] = H[b]` for `b < i`, and what lies beyond is added to `P[i-1]`;
//! - `Q`: `H[0..i]` in `levels` groups (group `g` from `g*i/levels` to `(g+1)*i/levels`, rounded down), the sum of
//!   each group spread evenly over its bins with `P[b] > 0`;
//! - both are smoothed: with `z` zero and `n` other bins each zero becomes `eps`, each other count loses
//!   `eps * z / n`, `eps = 1e-4`; `i` is passed over where that is 1 or more;
//! - `D(i) = sum P[b]/|P| * ln((P[b]/|P|) / (Q[b]/|Q|))`.
//!
//! The threshold is `i * width` of the least `D(i)`, the smaller `i` at a tie.

/// Most bins of the histogram of magnitudes.
pub(crate) const BINS: usize = 2048;
/// Candidates are this many bins apart.
const STRIDE: usize = 8;
const EPSILON: f64 = 1e-4;

/// The threshold in bins of `counts`; all of them where there are no more than `levels`.
pub(crate) fn threshold(counts: &[u64], levels: usize) -> usize {
    let candidates = (levels..counts.len()).step_by(STRIDE).chain([counts.len()]);
    let mut best = (f64::INFINITY, counts.len());
    for i in candidates.filter(|_| counts.len() > levels) {
        let divergence = divergence(counts, i, levels).unwrap_or(f64::INFINITY);
        if divergence < best.0 {
            best = (divergence, i);
        }
    }
    best.1
}

fn divergence(counts: &[u64], i: usize, levels: usize) -> Option<f64> {
    let (inside, outside) = counts.split_at_checked(i)?;
    let mut p: Vec<f64> = inside.iter().map(|&c| c as f64).collect();
    let mut q = vec![0.0; i];
    let outliers: u64 = outside.iter().sum();
    *p.last_mut()? += outliers as f64;
    for group in 0..levels {
        let (from, to) = (group * i / levels, (group + 1) * i / levels);
        let sum: u64 = inside.get(from..to)?.iter().sum();
        let members = p.get(from..to)?.iter().filter(|&&v| v > 0.0).count();
        if members > 0 {
            let share = sum as f64 / members as f64;
            for (q, _) in q.get_mut(from..to)?.iter_mut().zip(p.get(from..to)?).filter(|(_, p)| **p > 0.0) {
                *q = share;
            }
        }
    }
    smooth(&mut p)?;
    smooth(&mut q)?;
    let (p_sum, q_sum) = (p.iter().sum::<f64>(), q.iter().sum::<f64>());
    let term = |(p, q): (&f64, &f64)| {
        let (p, q) = (p / p_sum, q / q_sum);
        if p > 0.0 { p * (p / q).ln() } else { 0.0 }
    };
    Some(p.iter().zip(&q).map(term).sum())
}

/// Takes a little from every count and gives it to the zeros; `None` where there is not enough to take.
fn smooth(counts: &mut [f64]) -> Option<()> {
    let zeros = counts.iter().filter(|&&c| c == 0.0).count();
    let others = counts.len() - zeros;
    let taken = EPSILON * zeros as f64 / others as f64;
    if others == 0 || taken >= 1.0 {
        return None;
    }
    for count in counts {
        if *count == 0.0 { *count = EPSILON } else { *count -= taken }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_bins_are_kept_whole() {
        assert_eq!(threshold(&[1; 100], 128), 100);
        assert_eq!(threshold(&[], 128), 0);
    }

    #[test]
    fn a_lone_outlier_is_clipped_and_a_flat_distribution_is_not() {
        let mut counts: Vec<u64> = (0..2048u32).map(|b| if b < 256 { 10_000 } else { 0 }).collect();
        counts[2047] = 1;
        let i = threshold(&counts, 128);
        assert!((256..1024).contains(&i), "{i}");
        assert_eq!(threshold(&[1000; 2048], 128), 2048);
    }
}
