//! Intervals and sample sizes of shares.
//!
//! `z` is the two-sided normal quantile: `P(|Z| <= z) = confidence`. A share of `k` in `n` trials has the Wilson
//! score interval
//!
//! ```text
//! p = k / n     center = (p + z^2 / 2n) / (1 + z^2 / n)     half = z / (1 + z^2 / n) * sqrt(p (1 - p) / n + z^2 / 4n^2)
//! ```
//!
//! Trials drawn without replacement from a population of `N` faults count as `n (N - 1) / (N - n)` trials, which is
//! the finite population correction of Leveugle et al. (DATE 2009), whose sample size [`sample_size`] computes; a
//! census (`n = N`) has no uncertainty left. Sources: Wilson 1927; Brown, Cai, DasGupta 2001; Zou and Donner 2008.

use serde::{Deserialize, Serialize};

/// Bounds of a share, `0 <= low <= high <= 1`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Lower bound.
    pub low: f64,
    /// Upper bound.
    pub high: f64,
}

impl Interval {
    /// Half of the distance of the bounds.
    pub fn half_width(&self) -> f64 {
        (self.high - self.low) / 2.0
    }
}

/// A counted share with its interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// Trials that had the property.
    pub count: u64,
    /// Trials.
    pub of: u64,
    /// `count / of`; 0 where there were no trials (the interval is then 0 to 1).
    pub value: f64,
    /// Lower bound.
    pub low: f64,
    /// Upper bound.
    pub high: f64,
}

impl Share {
    /// `count` of `of` trials, drawn without replacement from `population` where that is known.
    pub fn new(count: u64, of: u64, population: Option<u64>, z: f64) -> Self {
        let Interval { low, high } = wilson(count, of, population, z);
        let value = if of == 0 { 0.0 } else { count as f64 / of as f64 };
        Self { count, of, value, low, high }
    }

    /// The bounds.
    pub fn interval(&self) -> Interval {
        Interval { low: self.low, high: self.high }
    }
}

/// The two-sided normal quantile of `confidence`, which lies in (0, 1): 1.959964 for 0.95.
///
/// Bisection of `erfc(z / sqrt 2) = 1 - confidence` down to neighbouring numbers; the same bits on every machine.
pub fn two_sided_quantile(confidence: f64) -> f64 {
    let tail = 1.0 - confidence;
    let (mut low, mut high) = (0.0f64, 40.0f64);
    loop {
        let middle = low + (high - low) / 2.0;
        if middle <= low || middle >= high {
            return middle;
        }
        if libm::erfc(middle / std::f64::consts::SQRT_2) > tail {
            low = middle;
        } else {
            high = middle;
        }
    }
}

/// The Wilson score interval of `count` of `of` trials; 0 to 1 when there are none.
pub fn wilson(count: u64, of: u64, population: Option<u64>, z: f64) -> Interval {
    if of == 0 {
        return Interval { low: 0.0, high: 1.0 };
    }
    let share = count as f64 / of as f64;
    let trials = match population {
        Some(all) if of >= all => return Interval { low: share, high: share },
        Some(all) => of as f64 * ((all - 1) as f64 / (all - of) as f64),
        None => of as f64,
    };
    let square = z * z;
    let scale = 1.0 + square / trials;
    let center = (share + square / (2.0 * trials)) / scale;
    let half = z / scale * (share * (1.0 - share) / trials + square / (4.0 * trials * trials)).sqrt();
    // At both ends the formula gives 0 and 1 but for rounding.
    let low = if count == 0 { 0.0 } else { (center - half).max(0.0) };
    let high = if count == of { 1.0 } else { (center + half).min(1.0) };
    Interval { low, high }
}

/// Trials that give `margin` at the quantile `z` for a share of one half, the worst case:
/// `n = N / (1 + e^2 (N - 1) / (z^2 / 4))`, rounded to the nearest, at least 1 and at most `N`.
/// `None` is an endless population: `z^2 / 4 e^2`.
pub fn sample_size(population: Option<u64>, margin: f64, z: f64) -> u64 {
    let endless = z * z * 0.25 / (margin * margin);
    // A float-to-integer cast saturates; no margin that the file accepts comes near.
    match population {
        None => (endless.round() as u64).max(1),
        Some(all) => {
            let wanted = all as f64 / (1.0 + (all as f64 - 1.0) / endless);
            (wanted.round() as u64).clamp(1, all.max(1))
        }
    }
}

/// Numbers of trials after which a cell may stop: 100, then a quarter more each time (rounded up), and `planned`.
///
/// The list is a function of `planned` alone, so a decision never depends on timing.
pub fn checkpoints(planned: u64) -> impl Iterator<Item = u64> {
    let growing = std::iter::successors(Some(100u64), |n| n.checked_add(n.div_ceil(4)));
    growing.take_while(move |&n| n < planned).chain(std::iter::once(planned))
}

/// A weighted mean of independent shares, `sum of w p` with weights that sum to 1, with the interval of Zou and
/// Donner: `low = mean - sqrt(sum of w^2 (p - low)^2)`, `high` likewise.
pub fn weighted(parts: &[(f64, Share)]) -> (f64, Interval) {
    let mean: f64 = parts.iter().map(|(weight, share)| weight * share.value).sum();
    let spread =
        |of: fn(&Share) -> f64| parts.iter().map(|(weight, share)| (weight * of(share)).powi(2)).sum::<f64>().sqrt();
    let low = (mean - spread(|s| s.value - s.low)).clamp(0.0, 1.0);
    let high = (mean + spread(|s| s.high - s.value)).clamp(0.0, 1.0);
    (mean, Interval { low, high })
}

/// Two-sided p-value of the pooled two-proportion test that `a` and `b` have one rate.
pub fn same_rate(a: &Share, b: &Share) -> f64 {
    let (n, m) = (a.of as f64, b.of as f64);
    let pooled = (a.count + b.count) as f64 / (n + m);
    let deviation = (pooled * (1.0 - pooled) * (1.0 / n + 1.0 / m)).sqrt();
    // Without trials it is NaN.
    if deviation.is_nan() || deviation == 0.0 {
        return 1.0;
    }
    libm::erfc((a.value - b.value).abs() / deviation / std::f64::consts::SQRT_2)
}

#[cfg(test)]
mod tests;
