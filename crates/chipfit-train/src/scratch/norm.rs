//! Batch normalisation over chunks of pictures, forward and backward.
//!
//! With `m` elements of a channel in the batch, `mean = sum x / m`, `variance = sum (x - mean)^2 / m`,
//! `x_hat = (x - mean) / sqrt(variance + epsilon)`, `y = clamp(scale * x_hat + shift)` (Ioffe and Szegedy 2015, with
//! ONNX's population variance). With `g` the gradient of `y` where the clamp passed, else 0:
//! `d shift = sum g`, `d scale = sum g * x_hat`,
//! `d x = scale / sqrt(variance + epsilon) * (g - d shift / m - x_hat * d scale / m)`.
//!
//! Each chunk gives its own sums; [`Moments::merge`] and [`GradientSums::merge`] join them in the order of the chunks,
//! so that the number of threads changes nothing. A chunk sums [`ROWS`] pixels in f32, then goes on in f64.

use super::graph::Clamp;

/// Pixels that are summed in f32 before the sum is kept in f64.
const ROWS: usize = 256;

/// Count, mean and sum of squared deviations of each channel.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Moments {
    /// Elements of a channel.
    pub(super) count: f64,
    /// Mean, one per channel.
    pub(super) mean: Vec<f64>,
    /// Sum of squared deviations from the mean, one per channel.
    pub(super) squares: Vec<f64>,
}

impl Moments {
    /// Those of pixels of `channels` values each.
    pub(super) fn of(x: &[f32], channels: usize) -> Self {
        let count = (x.len() / channels.max(1)) as f64;
        let mut mean = column_sums([x], channels, |sum, [x]| sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += x));
        mean.iter_mut().for_each(|sum| *sum /= count);
        let centre: Vec<f32> = mean.iter().map(|&mean| mean as f32).collect();
        let mut squares = column_sums([x], channels, |sum, [x]| {
            for ((sum, x), centre) in sum.iter_mut().zip(x).zip(&centre) {
                *sum += (x - centre) * (x - centre);
            }
        });
        // About the rounded mean instead of the mean: take the difference off again.
        for ((squares, mean), &centre) in squares.iter_mut().zip(&mean).zip(&centre) {
            let off = mean - f64::from(centre);
            *squares = (*squares - count * off * off).max(0.0);
        }
        Self { count, mean, squares }
    }

    /// Those of both together (Chan, Golub and LeVeque 1979).
    pub(super) fn merge(&mut self, other: &Self) {
        if self.count == 0.0 {
            self.clone_from(other);
            return;
        }
        let count = self.count + other.count;
        let channels = self.mean.iter_mut().zip(&mut self.squares).zip(other.mean.iter().zip(&other.squares));
        for ((mean, squares), (other_mean, other_squares)) in channels {
            let off = other_mean - *mean;
            *mean += off * other.count / count;
            *squares += other_squares + off * off * self.count * other.count / count;
        }
        self.count = count;
    }
}

/// Sums over pixels of `channels` values: `add` adds one pixel of each list to the sums.
fn column_sums<const N: usize>(lists: [&[f32]; N], channels: usize, add: impl Fn(&mut [f32], [&[f32]; N])) -> Vec<f64> {
    let channels = channels.max(1);
    let mut total = vec![0.0_f64; channels];
    let mut sum = vec![0.0_f32; channels];
    let mut rows = lists.map(|list| list.chunks_exact(channels));
    let count = lists.first().map_or(0, |list| list.len() / channels);
    for start in (0..count).step_by(ROWS) {
        sum.fill(0.0);
        for _ in start..count.min(start + ROWS) {
            let pixels = rows.each_mut().map(|rows| rows.next().unwrap_or_default());
            add(&mut sum, pixels);
        }
        total.iter_mut().zip(&sum).for_each(|(total, &sum)| *total += f64::from(sum));
    }
    total
}

/// What a normalisation needs of a batch, one entry per channel.
#[derive(Clone, Debug, Default)]
pub(super) struct Statistics {
    /// Mean.
    pub(super) mean: Vec<f32>,
    /// `1 / sqrt(variance + epsilon)`.
    pub(super) inverse: Vec<f32>,
}

impl Statistics {
    /// From means and variances.
    pub(super) fn new(mean: &[f32], variance: &[f32], epsilon: f32) -> Self {
        let inverse = |&variance: &f32| (1.0 / (f64::from(variance) + f64::from(epsilon)).sqrt()) as f32;
        Self { mean: mean.to_vec(), inverse: variance.iter().map(inverse).collect() }
    }
}

/// The parameters of a normalisation, one entry per channel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Affine<'a> {
    /// Factor.
    pub(super) scale: &'a [f32],
    /// Summand.
    pub(super) shift: &'a [f32],
}

/// `y = clamp(scale * (x - mean) * inverse + shift)`.
pub(super) fn forward(x: &[f32], statistics: &Statistics, affine: Affine<'_>, clamp: Clamp, y: &mut [f32]) {
    let channels = affine.scale.len().max(1);
    let factor: Vec<f32> =
        affine.scale.iter().zip(&statistics.inverse).map(|(scale, inverse)| scale * inverse).collect();
    for (x, y) in x.chunks_exact(channels).zip(y.chunks_exact_mut(channels)) {
        let constants = statistics.mean.iter().zip(&factor).zip(affine.shift);
        for ((x, y), ((mean, factor), shift)) in x.iter().zip(y).zip(constants) {
            *y = clamp.cut((x - mean) * factor + shift);
        }
    }
}

/// Gradients of shift and scale, one entry per channel; of a chunk, or of the batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct GradientSums {
    /// `sum g`.
    pub(super) shift: Vec<f64>,
    /// `sum g * x_hat`.
    pub(super) scale: Vec<f64>,
}

impl GradientSums {
    /// Those of a chunk. Sets `gradient` to 0 where the clamp did not pass.
    ///
    /// - `x`, `y`: input and output of the normalisation; `gradient`: that of `y`.
    pub(super) fn of(x: &[f32], y: &[f32], statistics: &Statistics, clamp: Clamp, gradient: &mut [f32]) -> Self {
        mask(y, clamp, gradient);
        let channels = statistics.mean.len();
        let shift = column_sums([gradient], channels, |sum, [g]| sum.iter_mut().zip(g).for_each(|(sum, g)| *sum += g));
        let mut scale = column_sums([gradient, x], channels, |sum, [g, x]| {
            for (((sum, g), x), mean) in sum.iter_mut().zip(g).zip(x).zip(&statistics.mean) {
                *sum += g * (x - mean);
            }
        });
        scale.iter_mut().zip(&statistics.inverse).for_each(|(sum, &inverse)| *sum *= f64::from(inverse));
        Self { shift, scale }
    }

    /// The sums of both.
    pub(super) fn merge(&mut self, other: &Self) {
        if self.shift.is_empty() {
            self.clone_from(other);
            return;
        }
        self.shift.iter_mut().zip(&other.shift).for_each(|(sum, other)| *sum += other);
        self.scale.iter_mut().zip(&other.scale).for_each(|(sum, other)| *sum += other);
    }
}

/// The gradient of `x`, from that of `y` behind the clamp.
///
/// - `sums`: of the batch; `count`: elements of a channel in the batch.
pub(super) fn backward(
    x: &[f32],
    gradient: &[f32],
    statistics: &Statistics,
    scale: &[f32],
    (sums, count): (&GradientSums, f64),
    x_gradient: &mut [f32],
) {
    let channels = scale.len().max(1);
    let factor: Vec<f32> = scale.iter().zip(&statistics.inverse).map(|(scale, inverse)| scale * inverse).collect();
    let average: Vec<f32> = sums.shift.iter().map(|sum| (sum / count) as f32).collect();
    let slope: Vec<f32> = sums
        .scale
        .iter()
        .zip(&statistics.inverse)
        .map(|(sum, &inverse)| (sum / count * f64::from(inverse)) as f32)
        .collect();
    let pixels =
        x.chunks_exact(channels).zip(gradient.chunks_exact(channels)).zip(x_gradient.chunks_exact_mut(channels));
    for ((x, g), target) in pixels {
        let constants = statistics.mean.iter().zip(&factor).zip(average.iter().zip(&slope));
        for (((x, g), target), ((mean, factor), (average, slope))) in x.iter().zip(g).zip(target).zip(constants) {
            *target = factor * (g - average - (x - mean) * slope);
        }
    }
}

/// Sets `gradient` to 0 where the clamp did not pass.
pub(super) fn mask(y: &[f32], clamp: Clamp, gradient: &mut [f32]) {
    if clamp.is_none() {
        return;
    }
    for (gradient, &y) in gradient.iter_mut().zip(y) {
        *gradient = if clamp.passes(y) { *gradient } else { 0.0 };
    }
}
