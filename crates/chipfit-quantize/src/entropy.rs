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
    fn an_outlier_behind_a_tail_is_clipped_and_a_flat_distribution_is_not() {
        let mut counts: Vec<u64> = (0..2048u32).map(|b| (1e6 * (-f64::from(b) / 60.0).exp()) as u64).collect();
        counts[2047] = 3;
        let i = threshold(&counts, 128);
        assert!((300..1500).contains(&i), "{i}");
        assert_eq!(threshold(&[1000; 2048], 128), 2048);
    }

    /// The definition in the module's text, written once more without shortcuts.
    fn by_definition(counts: &[u64], i: usize, levels: usize) -> Option<f64> {
        let mut p: Vec<f64> = counts[..i].iter().map(|&c| c as f64).collect();
        p[i - 1] += counts[i..].iter().sum::<u64>() as f64;
        let group = |b: usize| (0..levels).find(|g| g * i / levels <= b && b < (g + 1) * i / levels).unwrap();
        let q: Vec<f64> = (0..i)
            .map(|b| {
                let members: Vec<usize> = (0..i).filter(|&other| group(other) == group(b)).collect();
                let sum: u64 = members.iter().map(|&m| counts[m]).sum();
                let alive = members.iter().filter(|&&m| p[m] > 0.0).count();
                if p[b] > 0.0 { sum as f64 / alive as f64 } else { 0.0 }
            })
            .collect();
        let smoothed = |values: &[f64]| {
            let zeros = values.iter().filter(|&&v| v == 0.0).count() as f64;
            let taken = 1e-4 * zeros / (values.len() as f64 - zeros);
            (taken < 1.0).then(|| {
                let all: Vec<f64> = values.iter().map(|&v| if v == 0.0 { 1e-4 } else { v - taken }).collect();
                let sum: f64 = all.iter().sum();
                all.into_iter().map(|v| v / sum).collect::<Vec<f64>>()
            })
        };
        let (p, q) = (smoothed(&p)?, smoothed(&q)?);
        Some(p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum())
    }

    #[test]
    fn the_divergence_is_what_its_definition_says() {
        let counts: Vec<u64> = (0..200u64).map(|b| (b * 7919 + 13) % 97 * ((b * 31) % 3)).collect();
        for i in [8, 16, 64, 117, 199, 200] {
            for levels in [8, 16] {
                let (fast, slow) = (divergence(&counts, i, levels), by_definition(&counts, i, levels));
                match (fast, slow) {
                    (Some(a), Some(b)) if b.is_finite() => assert!((a - b).abs() < 1e-9, "{i} {levels}: {a} {b}"),
                    (a, b) => assert_eq!(a.is_some_and(f64::is_finite), b.is_some_and(f64::is_finite), "{i} {levels}"),
                }
            }
        }
    }
}
