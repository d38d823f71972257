//! Real pictures as model inputs: decoded, scaled to the input, normalised.
//!
//! A picture goes to the first input of four dimensions with 1 or 3 channels, at axis 1 (NCHW) or else at axis 3
//! (NHWC), once for every entry of the batch; other inputs stay random. It is scaled to the input's height and
//! width (bilinear, its proportions are not kept); where these are dynamic it keeps its own size, rounded down to
//! multiples of [`GRAIN`]. A float element is `(pixel - mean) * scale` with pixels from 0 to 255, a uint8 element
//! is the pixel itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use chipfit_model::{ConstTensor, DataType, Model};
use chipfit_run::compare::InputSet;
use chipfit_run::random::{self, InputShape};
use clap::Args;
use image::imageops::{self, FilterType};
use image::{ImageReader, RgbImage};

use crate::failure::usage;

/// Longest side of a picture that is read; more is a mistake or an attack.
const MAX_SIDE: u32 = 16_384;
/// Most memory that decoding a picture may take.
const MAX_DECODE_BYTES: u64 = 1 << 30;
/// Sizes of pictures for dynamic inputs are multiples of this: networks halve their maps up to five times.
const GRAIN: u32 = 32;

/// `--image` and how it becomes numbers.
#[derive(Args, Debug)]
pub(crate) struct PictureFlags {
    /// A picture (JPEG or PNG) to run instead of random values, scaled to the input (may be repeated)
    #[arg(long = "image", value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// Subtracted from every pixel value (0 to 255): one number or one per channel
    #[arg(long, value_name = "M[,M,M]", value_delimiter = ',', allow_negative_numbers = true, default_value = "0")]
    mean: Vec<f32>,
    /// Multiplied with the difference: one number or one per channel [default: 1/255]
    #[arg(long, value_name = "S[,S,S]", value_delimiter = ',', allow_negative_numbers = true)]
    scale: Vec<f32>,
    /// Channels in the order blue, green, red
    #[arg(long)]
    bgr: bool,
}

/// Where the channels of an image input lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    ChannelsFirst,
    ChannelsLast,
}

/// An input that takes pictures.
struct Slot {
    name: String,
    dtype: DataType,
    layout: Layout,
    channels: usize,
}

/// One set of inputs per picture, for the real inputs of `model`.
pub(crate) fn input_sets(
    model: &Model,
    shapes: &BTreeMap<String, Vec<usize>>,
    flags: &PictureFlags,
    seed: u64,
) -> Result<Vec<InputSet>> {
    let settled = random::input_shapes(model, shapes)?;
    let (slot, shape) = settled.iter().find_map(|s| Some((slot(s)?, s))).ok_or_else(|| {
        usage("--image: the model has no input of four dimensions with 1 or 3 channels; --input gives dynamic ones theirs")
    })?;
    let normal = Normal::of(flags, slot.channels)?;
    let mut sets = Vec::new();
    for file in &flags.files {
        let picture = read(file).with_context(|| format!("--image '{}'", file.display()))?;
        let dims = picture_dims(shape, slot.layout, &picture);
        let mut with_picture = shapes.clone();
        with_picture.insert(slot.name.clone(), dims.clone());
        let mut tensors = random::inputs(model, &with_picture, seed)?;
        let tensor = tensor(&picture, &slot, &dims, &normal, flags.bgr)?;
        for (_, value) in tensors.iter_mut().filter(|(name, _)| *name == slot.name) {
            *value = tensor.clone();
        }
        sets.push(InputSet { label: file.display().to_string(), tensors });
    }
    Ok(sets)
}

fn slot(shape: &InputShape) -> Option<Slot> {
    let &[_, first, _, last] = shape.dims.as_slice() else { return None };
    let (layout, channels) = match (first, last) {
        (1 | 3, _) if !shape.defaulted.contains(&1) => (Layout::ChannelsFirst, first),
        (_, 1 | 3) if !shape.defaulted.contains(&3) => (Layout::ChannelsLast, last),
        _ => return None,
    };
    Some(Slot { name: shape.name.clone(), dtype: shape.dtype, layout, channels })
}

fn read(file: &Path) -> Result<RgbImage> {
    let mut reader = ImageReader::open(file)?.with_guessed_format()?;
    let mut limits = image::Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_DECODE_BYTES);
    reader.limits(limits);
    Ok(reader.decode()?.into_rgb8())
}

/// The input's shape with the picture's size where its own is free.
fn picture_dims(shape: &InputShape, layout: Layout, picture: &RgbImage) -> Vec<usize> {
    let (rows, columns) = match layout {
        Layout::ChannelsFirst => (2, 3),
        Layout::ChannelsLast => (1, 2),
    };
    let own = |side: u32| usize::try_from((side / GRAIN * GRAIN).max(GRAIN)).unwrap_or(usize::MAX);
    let mut dims = shape.dims.clone();
    for (axis, side) in [(rows, picture.height()), (columns, picture.width())] {
        if let Some(dim) = dims.get_mut(axis).filter(|_| shape.defaulted.contains(&axis)) {
            *dim = own(side);
        }
    }
    dims
}

/// `(pixel - mean) * scale`, by channel.
struct Normal {
    mean: Vec<f32>,
    scale: Vec<f32>,
}

impl Normal {
    fn of(flags: &PictureFlags, channels: usize) -> Result<Self> {
        let per_channel = |flag: &str, given: &[f32]| match given {
            [one] => Ok(vec![*one; channels]),
            several if several.len() == channels => Ok(several.to_vec()),
            _ => Err(usage(format!("{flag}: give one number, or {channels}: one for each channel"))),
        };
        let default_scale = [1.0 / 255.0];
        let scale = if flags.scale.is_empty() { &default_scale[..] } else { &flags.scale };
        let normal = Self { mean: per_channel("--mean", &flags.mean)?, scale: per_channel("--scale", scale)? };
        match normal.mean.iter().chain(&normal.scale).all(|v| v.is_finite()) {
            true => Ok(normal),
            false => Err(usage("--mean and --scale take finite numbers")),
        }
    }
}

fn tensor(picture: &RgbImage, slot: &Slot, dims: &[usize], normal: &Normal, bgr: bool) -> Result<ConstTensor> {
    let (batch, rows, columns) = match (<&[usize; 4]>::try_from(dims)?, slot.layout) {
        (&[batch, rows, columns, _], Layout::ChannelsLast) => (batch, rows, columns),
        (&[batch, _, rows, columns], Layout::ChannelsFirst) => (batch, rows, columns),
    };
    let (height, width) = (u32::try_from(rows)?, u32::try_from(columns)?);
    let too_large = || anyhow!("input '{}': shape {dims:?} is too large", slot.name);
    if rows.checked_mul(columns).and_then(|n| n.checked_mul(batch)).is_none_or(|n| n > random::MAX_INPUT_BYTES / 12) {
        return Err(too_large());
    }
    let scaled = imageops::resize(picture, width, height, FilterType::Triangle);
    let grey = (slot.channels == 1).then(|| imageops::grayscale(&scaled));
    let pixel = |channel: usize, row: u32, column: u32| match &grey {
        Some(grey) => grey.get_pixel(column, row).0[0],
        None => {
            let [r, g, b] = scaled.get_pixel(column, row).0;
            match (channel, bgr) {
                (0, false) | (2, true) => r,
                (1, _) => g,
                _ => b,
            }
        }
    };
    let mut pixels: Vec<(usize, u8)> = Vec::with_capacity(rows.saturating_mul(columns).saturating_mul(slot.channels));
    let mut put = |channel, row, column| pixels.push((channel, pixel(channel, row, column)));
    match slot.layout {
        Layout::ChannelsFirst => {
            for channel in 0..slot.channels {
                (0..height).for_each(|row| (0..width).for_each(|column| put(channel, row, column)));
            }
        }
        Layout::ChannelsLast => {
            for row in 0..height {
                (0..width).for_each(|column| (0..slot.channels).for_each(|channel| put(channel, row, column)));
            }
        }
    }
    let value = |&(channel, pixel): &(usize, u8)| {
        let (mean, scale) = (normal.mean.get(channel).unwrap_or(&0.0), normal.scale.get(channel).unwrap_or(&1.0));
        (f32::from(pixel) - mean) * scale
    };
    let once: Vec<u8> = match slot.dtype {
        DataType::Uint8 => pixels.iter().map(|&(_, p)| p).collect(),
        DataType::Float => pixels.iter().flat_map(|p| value(p).to_le_bytes()).collect(),
        DataType::Double => pixels.iter().flat_map(|p| f64::from(value(p)).to_le_bytes()).collect(),
        DataType::Float16 => pixels.iter().flat_map(|p| half::f16::from_f32(value(p)).to_le_bytes()).collect(),
        other => return Err(usage(format!("--image: input '{}' takes {}, not pictures", slot.name, other.name()))),
    };
    ConstTensor::new(slot.dtype, dims.to_vec(), once.repeat(batch)).ok_or_else(too_large)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture() -> RgbImage {
        RgbImage::from_fn(2, 2, |x, y| image::Rgb([u8::from(x == 1) * 100, u8::from(y == 1) * 50, 10]))
    }

    fn values(t: &ConstTensor) -> Vec<f64> {
        t.to_f64_vec().unwrap()
    }

    #[test]
    fn channels_go_where_the_layout_says() {
        let normal = Normal { mean: vec![0.0; 3], scale: vec![1.0; 3] };
        let mut slot = Slot { name: "x".into(), dtype: DataType::Float, layout: Layout::ChannelsFirst, channels: 3 };
        let first = tensor(&picture(), &slot, &[1, 3, 2, 2], &normal, false).unwrap();
        assert_eq!(values(&first), [0., 100., 0., 100., 0., 0., 50., 50., 10., 10., 10., 10.]);
        slot.layout = Layout::ChannelsLast;
        let last = tensor(&picture(), &slot, &[1, 2, 2, 3], &normal, true).unwrap();
        assert_eq!(values(&last), [10., 0., 0., 10., 0., 100., 10., 50., 0., 10., 50., 100.]);
        slot.dtype = DataType::Uint8;
        let twice = tensor(&picture(), &slot, &[2, 2, 2, 3], &normal, false).unwrap();
        assert_eq!(twice.len(), 24);
        assert_eq!(twice.bytes()[..12], twice.bytes()[12..]);
    }

    #[test]
    fn pixels_are_normalised_by_channel() {
        let normal = Normal { mean: vec![10.0, 0.0, 0.0], scale: vec![0.5, 1.0, 2.0] };
        let slot = Slot { name: "x".into(), dtype: DataType::Float, layout: Layout::ChannelsFirst, channels: 3 };
        let t = tensor(&picture(), &slot, &[1, 3, 2, 2], &normal, false).unwrap();
        assert_eq!(values(&t), [-5., 45., -5., 45., 0., 0., 50., 50., 20., 20., 20., 20.]);
    }

    #[test]
    fn dynamic_sizes_take_the_pictures_own_and_fixed_ones_stay() {
        let shape = |defaulted: &[usize]| InputShape {
            name: "x".into(),
            dtype: DataType::Float,
            dims: vec![1, 3, 64, 64],
            defaulted: defaulted.to_vec(),
        };
        let wide = RgbImage::new(100, 40);
        assert_eq!(picture_dims(&shape(&[2, 3]), Layout::ChannelsFirst, &wide), [1, 3, 32, 96]);
        assert_eq!(picture_dims(&shape(&[]), Layout::ChannelsFirst, &wide), [1, 3, 64, 64]);
        assert!(slot(&shape(&[1])).is_none());
    }
}
