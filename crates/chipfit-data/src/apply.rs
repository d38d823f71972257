//! From pixels to input values: colour, then size, then `(pixel * scale - mean) / std`.
//!
//! Resizing is Pillow's separable convolution, horizontally first: the filter's support is scaled by the reduction,
//! weights are normalised in f64; bytes use weights in fixed point with 22 bits and are rounded to bytes after each
//! pass, so that they equal Pillow's bit for bit; floats are summed in f64. Pillow 13 turns the order of the passes for
//! some proportions, which moves bytes by one step.

use std::borrow::Cow;

use crate::pixels::MAX_SIDE;
use crate::preprocess::{Colour, Filter, Layout, Preprocess, Resize};
use crate::{DataError, PixelData, Pixels};

/// Fraction bits of the fixed-point weights; 8 bits of pixel, 22 of weight and 2 of head room fill an i32.
const WEIGHT_BITS: u32 = 22;

/// Writes the values of one picture to `out`, which holds [`Preprocess::len`] values.
pub(crate) fn apply(name: &str, pixels: &Pixels, how: &Preprocess, out: &mut [f32]) -> Result<(), DataError> {
    if out.len() != how.len() {
        return Err(DataError::WrongBuffer { name: name.to_owned(), found: out.len(), wanted: how.len() });
    }
    let coloured = recolour(pixels, how.colour.channels());
    let sized = resize(name, &coloured, how)?;
    match &sized.data {
        PixelData::Bytes(values) => normalise(values, |byte| f32::from(*byte), how, out),
        PixelData::Floats(values) => normalise(values, |value| *value, how, out),
    }
    Ok(())
}

/// `pixels` with 1 or 3 channels.
fn recolour(pixels: &Pixels, channels: usize) -> Cow<'_, Pixels> {
    if pixels.channels == channels {
        return Cow::Borrowed(pixels);
    }
    let data = match (&pixels.data, channels) {
        (PixelData::Bytes(values), 1) => {
            // Pillow's convert("L"): 16-bit weights, rounded.
            let grey = |rgb: &[u8; 3]| {
                let [red, green, blue] = rgb.map(u32::from);
                let sum = 19_595 * red + 38_470 * green + 7_471 * blue + 0x8000;
                u8::try_from(sum >> 16).unwrap_or(u8::MAX)
            };
            PixelData::Bytes(values.as_chunks().0.iter().map(grey).collect())
        }
        (PixelData::Floats(values), 1) => {
            let grey = |[red, green, blue]: &[f32; 3]| 0.299 * red + 0.587 * green + 0.114 * blue;
            PixelData::Floats(values.as_chunks().0.iter().map(grey).collect())
        }
        (PixelData::Bytes(values), _) => PixelData::Bytes(values.iter().flat_map(|value| [*value; 3]).collect()),
        (PixelData::Floats(values), _) => PixelData::Floats(values.iter().flat_map(|value| [*value; 3]).collect()),
    };
    Cow::Owned(Pixels { channels, data, ..*pixels })
}

/// `pixels` at the input's size.
fn resize<'a>(name: &str, pixels: &'a Pixels, how: &Preprocess) -> Result<Cow<'a, Pixels>, DataError> {
    let [height, width] = how.size;
    let is_there = pixels.height == height && pixels.width == width;
    match how.resize {
        Resize::Exact if is_there => Ok(Cow::Borrowed(pixels)),
        Resize::Exact => Err(DataError::WrongSize {
            name: name.to_owned(),
            found_height: pixels.height,
            found_width: pixels.width,
            height,
            width,
        }),
        Resize::Stretch => Ok(scale_to(pixels, height, width, how.filter)),
        Resize::Crop => {
            let side = how.crop_side();
            let short = pixels.height.min(pixels.width).max(1);
            // Rounded to the nearest, halves up.
            let scaled = |length: usize| (2 * length * side + short) / (2 * short);
            let (scaled_height, scaled_width) = (scaled(pixels.height), scaled(pixels.width));
            if scaled_height.max(scaled_width) > MAX_SIDE as usize {
                return Err(DataError::BadPicture {
                    name: name.to_owned(),
                    reason: format!("{}x{} pixels are too far from square to be cropped", pixels.height, pixels.width),
                });
            }
            let scaled = scale_to(pixels, scaled_height, scaled_width, how.filter);
            Ok(cut_middle(scaled, height, width))
        }
    }
}

/// The middle `height` x `width` pixels; the picture is at least that large.
fn cut_middle(pixels: Cow<'_, Pixels>, height: usize, width: usize) -> Cow<'_, Pixels> {
    if pixels.height == height && pixels.width == width {
        return pixels;
    }
    let (top, left) = ((pixels.height - height) / 2, (pixels.width - width) / 2);
    let data = match &pixels.data {
        PixelData::Bytes(values) => PixelData::Bytes(cut(values, &pixels, [top, left], [height, width])),
        PixelData::Floats(values) => PixelData::Floats(cut(values, &pixels, [top, left], [height, width])),
    };
    Cow::Owned(Pixels { height, width, channels: pixels.channels, data })
}

fn cut<T: Copy>(values: &[T], from: &Pixels, [top, left]: [usize; 2], [height, width]: [usize; 2]) -> Vec<T> {
    let row_elems = from.width * from.channels;
    let rows = values.chunks_exact(row_elems).skip(top).take(height);
    rows.flat_map(|row| row.iter().skip(left * from.channels).take(width * from.channels).copied()).collect()
}

/// `(pixel * scale - mean) / std` from interleaved channels to the input's layout.
fn normalise<T>(values: &[T], to_f32: impl Fn(&T) -> f32, how: &Preprocess, out: &mut [f32]) {
    let channels = how.colour.channels();
    let plane = out.len() / channels;
    let constant = |list: &[f32], channel: usize| if let [one] = list { *one } else { list[channel] };
    for channel in 0..channels {
        let from = if how.colour == Colour::Bgr { channels - 1 - channel } else { channel };
        let (mean, std) = (constant(&how.mean, channel), constant(&how.std, channel));
        let source = values.iter().skip(from).step_by(channels);
        let value = |pixel: &T| (to_f32(pixel) * how.scale - mean) / std;
        match how.layout {
            Layout::Nchw => {
                let target = &mut out[channel * plane..(channel + 1) * plane];
                target.iter_mut().zip(source).for_each(|(target, pixel)| *target = value(pixel));
            }
            Layout::Nhwc => {
                let target = out.iter_mut().skip(channel).step_by(channels);
                target.zip(source).for_each(|(target, pixel)| *target = value(pixel));
            }
        }
    }
}

/// Scaled to `height` x `width`, horizontally first.
fn scale_to(pixels: &Pixels, height: usize, width: usize, filter: Filter) -> Cow<'_, Pixels> {
    if pixels.height == height && pixels.width == width {
        return Cow::Borrowed(pixels);
    }
    let mut result = Cow::Borrowed(pixels);
    if pixels.width != width {
        let taps = Taps::new(pixels.width, width, filter);
        let data = match &result.data {
            PixelData::Bytes(values) => PixelData::Bytes(taps.fixed().along_rows(values, pixels.channels)),
            PixelData::Floats(values) => PixelData::Floats(taps.along_rows(values, pixels.channels)),
        };
        result = Cow::Owned(Pixels { width, data, ..*pixels });
    }
    if pixels.height != height {
        let taps = Taps::new(pixels.height, height, filter);
        let row_elems = width * pixels.channels;
        let data = match &result.data {
            PixelData::Bytes(values) => PixelData::Bytes(taps.fixed().along_columns(values, row_elems)),
            PixelData::Floats(values) => PixelData::Floats(taps.along_columns(values, row_elems)),
        };
        result = Cow::Owned(Pixels { height, width, channels: pixels.channels, data });
    }
    result
}

/// For every output position, the first input position and the weights from there on.
struct Taps<W> {
    /// Input positions.
    length: usize,
    windows: Vec<(usize, Vec<W>)>,
}

/// A weight in f64, or in fixed point.
trait Weight: Copy {
    type Pixel: Copy;
    type Sum: Copy;
    const START: Self::Sum;
    fn add(self, sum: Self::Sum, pixel: Self::Pixel) -> Self::Sum;
    fn pixel(sum: Self::Sum) -> Self::Pixel;
}

impl Weight for f64 {
    type Pixel = f32;
    type Sum = f64;
    const START: f64 = 0.0;

    fn add(self, sum: f64, pixel: f32) -> f64 {
        sum + self * f64::from(pixel)
    }

    fn pixel(sum: f64) -> f32 {
        sum as f32
    }
}

impl Weight for i32 {
    type Pixel = u8;
    type Sum = i32;
    /// One half, so that the shift rounds.
    const START: i32 = 1 << (WEIGHT_BITS - 1);

    fn add(self, sum: i32, pixel: u8) -> i32 {
        sum.wrapping_add(self.wrapping_mul(i32::from(pixel)))
    }

    fn pixel(sum: i32) -> u8 {
        u8::try_from((sum >> WEIGHT_BITS).clamp(0, 255)).unwrap_or(u8::MAX)
    }
}

impl Taps<f64> {
    fn new(length: usize, target: usize, filter: Filter) -> Self {
        let scale = length as f64 / target as f64;
        let stretch = scale.max(1.0);
        let support = stretch
            * match filter {
                Filter::Bilinear => 1.0,
                Filter::Bicubic => 2.0,
            };
        let windows = (0..target).map(|position| {
            let centre = (position as f64 + 0.5) * scale;
            // `as` truncates towards 0 and saturates: positions are small and finite.
            let first = (centre - support + 0.5).max(0.0) as usize;
            let end = ((centre + support + 0.5) as usize).min(length);
            let weight = |at: usize| filter_value(filter, (at as f64 - centre + 0.5) * (1.0 / stretch));
            let mut weights: Vec<f64> = (first..end).map(weight).collect();
            let sum: f64 = weights.iter().sum();
            if sum != 0.0 {
                weights.iter_mut().for_each(|weight| *weight *= 1.0 / sum);
            }
            (first, weights)
        });
        Self { length, windows: windows.collect() }
    }

    fn fixed(&self) -> Taps<i32> {
        let fixed = |weight: &f64| {
            let scaled = weight * f64::from(1u32 << WEIGHT_BITS);
            (if scaled < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
        };
        let windows = self.windows.iter().map(|(first, weights)| (*first, weights.iter().map(fixed).collect()));
        Taps { length: self.length, windows: windows.collect() }
    }
}

impl<W: Weight> Taps<W> {
    /// Every row of `self.length` pixels of `channels` values.
    fn along_rows(&self, values: &[W::Pixel], channels: usize) -> Vec<W::Pixel> {
        let mut out = Vec::with_capacity(values.len() / self.length.max(1) * self.windows.len());
        for row in values.chunks_exact(self.length * channels) {
            for (first, weights) in &self.windows {
                for channel in 0..channels {
                    let pixels = row.iter().skip(first * channels + channel).step_by(channels);
                    let sum = weights.iter().zip(pixels).fold(W::START, |sum, (weight, pixel)| weight.add(sum, *pixel));
                    out.push(W::pixel(sum));
                }
            }
        }
        out
    }

    /// Every column of `self.length` rows of `row_elems` values.
    fn along_columns(&self, values: &[W::Pixel], row_elems: usize) -> Vec<W::Pixel> {
        let mut out = Vec::with_capacity(row_elems * self.windows.len());
        let mut sums = vec![W::START; row_elems];
        for (first, weights) in &self.windows {
            sums.fill(W::START);
            for (weight, row) in weights.iter().zip(values.chunks_exact(row_elems).skip(*first)) {
                sums.iter_mut().zip(row).for_each(|(sum, pixel)| *sum = weight.add(*sum, *pixel));
            }
            out.extend(sums.iter().map(|sum| W::pixel(*sum)));
        }
        out
    }
}

/// The filter at distance `x` from its middle.
fn filter_value(filter: Filter, x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    match filter {
        Filter::Bilinear if x < 1.0 => 1.0 - x,
        Filter::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
        Filter::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests;
