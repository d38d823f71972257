//! How far two tensors lie apart: absolute and relative differences, PSNR, integer steps, SSIM.
//!
//! The first tensor `y` is the reference, `x` the other; both of one type and shape. Everything is computed in
//! f64 (integers in i128, so that int64 steps are exact), in element order: one result whatever the machine.
//!
//! NaN and infinity: two NaNs are equal, two infinities of one sign are equal; a NaN against a number, or an
//! infinity against anything else, is an infinite difference. `max|y|` and the range of `y` are taken over its
//! finite elements.
//!
//! The dynamic range `L` of PSNR and SSIM is the caller's, else 255 for int8 and uint8, else `max(y) - min(y)`
//! over the whole reference, else 1 where the reference is constant.
//!
//! SSIM (Wang, Bovik, Sheikh, Simoncelli 2004): 11 x 11 Gaussian windows of sigma 1.5, K1 = 0.01, K2 = 0.03,
//! population covariance, only windows that lie wholly inside the image, the mean over all windows, channels and
//! images. Read [`difference`], then [`ssim`].

use chipfit_model::{ConstTensor, DataType};

/// Why two tensors cannot be compared.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum MetricsError {
    /// Different element types.
    #[error("element types differ: {first} and {second}")]
    Type {
        /// Of the reference.
        first: &'static str,
        /// Of the other.
        second: &'static str,
    },
    /// Different shapes.
    #[error("shapes differ: {first:?} and {second:?}")]
    Shape {
        /// Of the reference.
        first: Vec<usize>,
        /// Of the other.
        second: Vec<usize>,
    },
    /// A type without arithmetic here: complex, 8-bit floats, sub-byte types.
    #[error("elements of type {0} cannot be compared")]
    Unsupported(&'static str),
    /// SSIM was asked for something that is no image.
    #[error("shape {0:?} has no two spatial axes of 11 or more, which SSIM needs")]
    NoImage(Vec<usize>),
}

/// How far two tensors lie apart.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    /// Elements compared.
    pub elements: usize,
    /// Elements that are not equal (0.0 and -0.0 are).
    pub differing: usize,
    /// `max |x - y|`.
    pub max_abs: f64,
    /// Where it is, in row-major order; the first of several; 0 where nothing differs.
    pub worst_element: usize,
    /// `max |x - y| / max |y|`; 0 where nothing differs, infinite where only `y` is all zero.
    pub max_rel: f64,
    /// Mean of `|x - y|`.
    pub mean_abs: f64,
    /// Root of the mean of `(x - y)^2`.
    pub rmse: f64,
    /// `20 log10(L / rmse)` in dB; infinite where nothing differs.
    pub psnr: f64,
    /// The dynamic range `L`.
    pub range: f64,
    /// For integers: the largest difference in steps, exact. `None` for floats.
    pub max_steps: Option<u64>,
}

/// Compares `x` with the reference `y`. `range` replaces the dynamic range of PSNR.
///
/// # Errors
/// [`MetricsError`], all but `NoImage`.
pub fn difference(y: &ConstTensor, x: &ConstTensor, range: Option<f64>) -> Result<Difference, MetricsError> {
    check(y, x)?;
    let ys = values(y)?;
    let mut sums = Sums::default();
    let max_steps = match (integers(y), integers(x)) {
        (Some(ys), Some(xs)) => {
            // Exact: f64 cannot tell neighbouring 64-bit integers apart.
            let steps = || ys.iter().zip(&xs).map(|(y, x)| u64::try_from(y.abs_diff(*x)).unwrap_or(u64::MAX));
            steps().enumerate().for_each(|(position, steps)| sums.add(position, steps as f64));
            Some(steps().max().unwrap_or(0))
        }
        _ => {
            let distances = ys.iter().zip(values(x)?).map(|(&y, x)| distance(y, x));
            distances.enumerate().for_each(|(position, distance)| sums.add(position, distance));
            None
        }
    };
    let range = range.unwrap_or_else(|| dynamic_range(y.dtype(), &ys));
    let largest = ys.iter().filter(|v| v.is_finite()).fold(0.0f64, |m, v| m.max(v.abs()));
    let count = ys.len().max(1) as f64;
    let rmse = (sums.squares / count).sqrt();
    Ok(Difference {
        elements: ys.len(),
        differing: sums.differing,
        max_abs: sums.max,
        worst_element: sums.worst,
        max_rel: if sums.max == 0.0 { 0.0 } else { sums.max / largest },
        mean_abs: sums.absolute / count,
        rmse,
        psnr: if rmse == 0.0 { f64::INFINITY } else { 20.0 * (range / rmse).log10() },
        range,
        max_steps,
    })
}

#[derive(Default)]
struct Sums {
    max: f64,
    worst: usize,
    differing: usize,
    absolute: f64,
    squares: f64,
}

impl Sums {
    fn add(&mut self, position: usize, distance: f64) {
        if distance > self.max {
            (self.max, self.worst) = (distance, position);
        }
        self.differing += usize::from(distance != 0.0);
        self.absolute += distance;
        self.squares += distance * distance;
    }
}

/// `|x - y|` under this module's rules for NaN and infinity; never NaN.
fn distance(y: f64, x: f64) -> f64 {
    if y == x || (y.is_nan() && x.is_nan()) {
        0.0
    } else if y.is_finite() && x.is_finite() {
        (x - y).abs()
    } else {
        f64::INFINITY
    }
}

fn check(y: &ConstTensor, x: &ConstTensor) -> Result<(), MetricsError> {
    if y.dtype() != x.dtype() {
        return Err(MetricsError::Type { first: y.dtype().name(), second: x.dtype().name() });
    }
    if y.dims() != x.dims() {
        return Err(MetricsError::Shape { first: y.dims().to_vec(), second: x.dims().to_vec() });
    }
    Ok(())
}

fn values(tensor: &ConstTensor) -> Result<Vec<f64>, MetricsError> {
    if let Some(values) = tensor.to_f64_vec() {
        return Ok(values);
    }
    let integers = integers(tensor).ok_or(MetricsError::Unsupported(tensor.dtype().name()))?;
    Ok(integers.into_iter().map(|v| v as f64).collect())
}

/// Integer elements (bool as 0 and 1) without rounding; `None` for other types.
fn integers(tensor: &ConstTensor) -> Option<Vec<i128>> {
    match tensor.dtype() {
        DataType::Uint64 => {
            Some(tensor.bytes().as_chunks::<8>().0.iter().map(|c| i128::from(u64::from_le_bytes(*c))).collect())
        }
        DataType::Bool => Some(tensor.bytes().iter().map(|&b| i128::from(b != 0)).collect()),
        _ => Some(tensor.to_i64_vec()?.into_iter().map(i128::from).collect()),
    }
}

fn dynamic_range(dtype: DataType, ys: &[f64]) -> f64 {
    if matches!(dtype, DataType::Int8 | DataType::Uint8) {
        return 255.0;
    }
    let finite = || ys.iter().copied().filter(|v| v.is_finite());
    let range = finite().fold(f64::NEG_INFINITY, f64::max) - finite().fold(f64::INFINITY, f64::min);
    if range > 0.0 && range.is_finite() { range } else { 1.0 }
}

/// Where the channels of an image lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageLayout {
    /// `[..., height, width]`.
    ChannelsFirst,
    /// `[..., height, width, channels]`.
    ChannelsLast,
}

/// The layout of a batch of images: rank 4 with 1, 3 or 4 channels, at axis 1 or else at axis 3, and windows that
/// fit; `None` for any other shape.
pub fn image_layout(dims: &[usize]) -> Option<ImageLayout> {
    let is_channels = |n: usize| matches!(n, 1 | 3 | 4);
    let fits = |height: usize, width: usize| height >= WINDOW && width >= WINDOW;
    match *dims {
        [_, c, h, w] if is_channels(c) && fits(h, w) => Some(ImageLayout::ChannelsFirst),
        [_, h, w, c] if is_channels(c) && fits(h, w) => Some(ImageLayout::ChannelsLast),
        _ => None,
    }
}

const WINDOW: usize = 11;
const SIGMA: f64 = 1.5;
const K1: f64 = 0.01;
const K2: f64 = 0.03;

/// The structural similarity of `x` to the reference `y`: 1 for equal images. `range` replaces the dynamic range.
/// NaN where an element of either is not finite.
///
/// # Errors
/// [`MetricsError`]; `NoImage` where the spatial axes are missing or shorter than the window.
pub fn ssim(y: &ConstTensor, x: &ConstTensor, layout: ImageLayout, range: Option<f64>) -> Result<f64, MetricsError> {
    check(y, x)?;
    let no_image = || MetricsError::NoImage(y.dims().to_vec());
    let (height, width, channels) = match (layout, y.dims()) {
        (ImageLayout::ChannelsFirst, [.., h, w]) => (*h, *w, 1),
        (ImageLayout::ChannelsLast, [.., h, w, c]) => (*h, *w, *c),
        _ => return Err(no_image()),
    };
    let (ys, xs) = (values(y)?, values(x)?);
    let pixels = height.checked_mul(width).and_then(|n| n.checked_mul(channels)).ok_or_else(no_image)?;
    if height < WINDOW || width < WINDOW || pixels == 0 || ys.is_empty() {
        return Err(no_image());
    }
    if ys.iter().chain(&xs).any(|v| !v.is_finite()) {
        return Ok(f64::NAN);
    }
    let range = range.unwrap_or_else(|| dynamic_range(y.dtype(), &ys));
    let (mut sum, mut planes) = (0.0, 0usize);
    for (y, x) in ys.chunks_exact(pixels).zip(xs.chunks_exact(pixels)) {
        for channel in 0..channels {
            let plane = |v: &[f64]| v.iter().skip(channel).step_by(channels).copied().collect::<Vec<f64>>();
            sum += plane_ssim(&plane(y), &plane(x), width, range);
            planes += 1;
        }
    }
    Ok(sum / planes as f64)
}

/// The mean over the windows of one plane:
/// `(2 mu_y mu_x + C1)(2 cov + C2) / ((mu_y^2 + mu_x^2 + C1)(var_y + var_x + C2))`, `Ci = (Ki L)^2`.
fn plane_ssim(y: &[f64], x: &[f64], width: usize, range: f64) -> f64 {
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).collect::<Vec<f64>>();
    let (mean_y, mean_x) = (windows(y, width), windows(x, width));
    let (yy, xx, yx) = (product(y, y), product(x, x), product(y, x));
    let (yy, xx, yx) = (windows(&yy, width), windows(&xx, width), windows(&yx, width));
    let (c1, c2) = ((K1 * range).powi(2), (K2 * range).powi(2));
    let mut sum = 0.0;
    for ((((my, mx), yy), xx), yx) in mean_y.iter().zip(&mean_x).zip(&yy).zip(&xx).zip(&yx) {
        let (var_y, var_x, cov) = (yy - my * my, xx - mx * mx, yx - my * mx);
        let above = (2.0 * my * mx + c1) * (2.0 * cov + c2);
        sum += above / ((my * my + mx * mx + c1) * (var_y + var_x + c2));
    }
    sum / mean_y.len() as f64
}

/// The Gaussian-weighted mean of every window that fits, along rows and then along columns.
fn windows(plane: &[f64], width: usize) -> Vec<f64> {
    let taps = gaussian();
    let weighted = |values: &mut dyn Iterator<Item = &f64>| values.zip(&taps).map(|(v, t)| v * t).sum::<f64>();
    let narrow = width - (WINDOW - 1);
    let rows: Vec<f64> =
        plane.chunks_exact(width).flat_map(|row| row.windows(WINDOW).map(|w| weighted(&mut w.iter()))).collect();
    let out_height = rows.len() / narrow - (WINDOW - 1);
    (0..out_height * narrow).map(|start| weighted(&mut rows.iter().skip(start).step_by(narrow))).collect()
}

/// The window's weights along one axis, of sum 1.
fn gaussian() -> [f64; WINDOW] {
    let middle = (WINDOW / 2) as f64;
    let raw: [f64; WINDOW] = std::array::from_fn(|i| (-(i as f64 - middle).powi(2) / (2.0 * SIGMA * SIGMA)).exp());
    let sum: f64 = raw.iter().sum();
    raw.map(|tap| tap / sum)
}

#[cfg(test)]
mod tests;
