//! How a picture becomes the values of a model's input: the file beside the model, flags, or the input's shape.
//!
//! A value is `(pixel * scale - mean) / std`, per channel, in f32 and in this order, with pixels from 0 to 255. The file
//! is TOML, `MODEL.preprocess.toml` beside `MODEL.onnx`; an unknown key is an error. `apply` does the work.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::PreprocessError;
use crate::pixels::MAX_SIDE;

/// Largest preprocessing file that is read.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// From a picture to the values of one entry of the input's batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preprocess {
    /// Height and width of the input in pixels.
    #[serde(deserialize_with = "two_sides")]
    pub size: [usize; 2],
    /// How a picture of another size gets there.
    #[serde(default)]
    pub resize: Resize,
    /// For `crop`: the shorter side, in pixels, before the middle is cut out; else the larger one of `size`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resize_to: Option<usize>,
    /// How pixels are interpolated.
    #[serde(default)]
    pub filter: Filter,
    /// Where the channels lie.
    #[serde(default)]
    pub layout: Layout,
    /// Which channels there are, and in which order.
    #[serde(default, rename = "color")]
    pub colour: Colour,
    /// Subtracted after scaling: one number or one per channel, in the input's channel order. Default 0.
    #[serde(default = "zero")]
    pub mean: Vec<f32>,
    /// Divisor: one number or one per channel, in the input's channel order. Default 1.
    #[serde(default = "one")]
    pub std: Vec<f32>,
    /// First factor. Default 1.
    #[serde(default = "unit")]
    pub scale: f32,
}

/// How a picture of another size gets to the input's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Resize {
    /// It is an error.
    #[default]
    Exact,
    /// Proportions are not kept.
    Stretch,
    /// The shorter side is scaled to `resize_to` pixels, the longer one in proportion (rounded); then the middle is
    /// cut out, the odd pixel left over at the bottom and right.
    Crop,
}

/// Interpolation, as Pillow does it: the filter widens when a picture shrinks, bytes are rounded after each direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Filter {
    /// A triangle.
    #[default]
    Bilinear,
    /// Cubic with a = -0.5.
    Bicubic,
}

/// Where the channels lie in the input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// Before the rows.
    #[default]
    Nchw,
    /// After the columns.
    Nhwc,
}

/// The input's channels. A grey picture gives three equal channels; a coloured one gives grey by the weights of
/// ITU-R 601 (0.299, 0.587, 0.114).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Colour {
    /// Red, green, blue.
    #[default]
    Rgb,
    /// Blue, green, red.
    Bgr,
    /// One channel.
    Grey,
}

impl Colour {
    /// 1 or 3.
    pub fn channels(self) -> usize {
        match self {
            Self::Rgb | Self::Bgr => 3,
            Self::Grey => 1,
        }
    }
}

/// Exactly two numbers: left to itself, the reader would drop a third one.
fn two_sides<'de, D: serde::Deserializer<'de>>(source: D) -> Result<[usize; 2], D::Error> {
    let sides = Vec::<usize>::deserialize(source)?;
    let count = sides.len();
    sides.try_into().map_err(|_| serde::de::Error::invalid_length(count, &"height and width"))
}

fn zero() -> Vec<f32> {
    vec![0.0]
}

fn one() -> Vec<f32> {
    vec![1.0]
}

fn unit() -> f32 {
    1.0
}

/// What flags set; a field that is `None` keeps the file's or the default value.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Overrides {
    /// Height and width.
    pub size: Option<[usize; 2]>,
    /// How a picture of another size gets there.
    pub resize: Option<Resize>,
    /// The shorter side before the crop.
    pub resize_to: Option<usize>,
    /// Interpolation.
    pub filter: Option<Filter>,
    /// Where the channels lie.
    pub layout: Option<Layout>,
    /// Which channels.
    pub colour: Option<Colour>,
    /// Subtracted.
    pub mean: Option<Vec<f32>>,
    /// Divisor.
    pub std: Option<Vec<f32>>,
    /// First factor.
    pub scale: Option<f32>,
}

impl Overrides {
    /// `base` with the fields that are set replaced; without a base, `size` must be set and the rest has defaults.
    ///
    /// # Errors
    /// [`PreprocessError::Field`] naming the field whose value makes no sense.
    pub fn apply(&self, base: Option<Preprocess>) -> Result<Preprocess, PreprocessError> {
        let mut result = match (base, self.size) {
            (Some(base), _) => base,
            (None, Some(size)) => Preprocess::raw(size, Layout::default(), Colour::default()),
            (None, None) => return Err(field("size", "is missing: height and width of the model's input")),
        };
        set(&mut result.size, self.size);
        set(&mut result.resize, self.resize);
        if self.resize_to.is_some() {
            result.resize_to = self.resize_to;
        }
        if self.resize.is_some_and(|resize| resize != Resize::Crop) && self.resize_to.is_none() {
            result.resize_to = None;
        }
        set(&mut result.filter, self.filter);
        set(&mut result.layout, self.layout);
        set(&mut result.colour, self.colour);
        set(&mut result.mean, self.mean.clone());
        set(&mut result.std, self.std.clone());
        set(&mut result.scale, self.scale);
        result.check()?;
        Ok(result)
    }
}

fn set<T>(target: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *target = value;
    }
}

fn field(name: &'static str, reason: impl Into<String>) -> PreprocessError {
    PreprocessError::Field { field: name, reason: reason.into() }
}

/// The preprocessing file of a model: `model.onnx` has `model.preprocess.toml` beside it.
pub fn preprocess_path(model: &Path) -> PathBuf {
    model.with_extension("preprocess.toml")
}

/// The files that may hold a model's preprocessing, the nearest name first: `model.int8.onnx` also takes its float
/// model's `model.preprocess.toml`.
pub fn preprocess_candidates(model: &Path) -> Vec<PathBuf> {
    let own = preprocess_path(model);
    let float = model.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.strip_suffix(".int8"));
    let float = float.map(|stem| model.with_file_name(format!("{stem}.preprocess.toml")));
    std::iter::once(own).chain(float).collect()
}

impl Preprocess {
    /// Raw pixels 0..255 of the exact size.
    pub fn raw(size: [usize; 2], layout: Layout, colour: Colour) -> Self {
        Self {
            size,
            resize: Resize::default(),
            resize_to: None,
            filter: Filter::default(),
            layout,
            colour,
            mean: zero(),
            std: one(),
            scale: unit(),
        }
    }

    /// Raw pixels for a model input `[n, 3 or 1, height, width]` or `[n, height, width, 3 or 1]`; `None` is a dynamic
    /// dimension, which only the first may be.
    ///
    /// # Errors
    /// [`PreprocessError::Input`] for any other shape.
    pub fn for_input(shape: &[Option<u64>]) -> Result<Self, PreprocessError> {
        let side = |dim: Option<u64>| dim.and_then(|dim| usize::try_from(dim).ok());
        let found = match *shape {
            [_, Some(c @ (1 | 3)), height, width] => Some((c, height, width, Layout::Nchw)),
            [_, height, width, Some(c @ (1 | 3))] => Some((c, height, width, Layout::Nhwc)),
            _ => None,
        };
        if let Some((channels, height, width, layout)) = found
            && let (Some(height), Some(width)) = (side(height), side(width))
        {
            let result = Self::raw([height, width], layout, if channels == 1 { Colour::Grey } else { Colour::Rgb });
            result.check()?;
            return Ok(result);
        }
        Err(PreprocessError::Input { shape: shown(shape) })
    }

    /// What applies to a model: the file beside it, else what follows from its input's shape; then the flags. Returns
    /// the file too, where there is one.
    ///
    /// # Errors
    /// [`PreprocessError`] when the file is bad, when the shape says nothing and neither file nor flags do, and when
    /// the result does not fit the shape.
    pub fn resolve(
        model: &Path,
        input: &[Option<u64>],
        overrides: &Overrides,
    ) -> Result<(Self, Option<PathBuf>), PreprocessError> {
        let file = preprocess_candidates(model).into_iter().find(|path| path.is_file());
        let base = match &file {
            Some(path) => Some(Self::read(path)?),
            None if overrides.size.is_some() => Self::for_input(input).ok(),
            None => Some(Self::for_input(input)?),
        };
        let result = overrides.apply(base)?;
        result.check_input(input)?;
        Ok((result, file))
    }

    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`PreprocessError::Toml`] with line and column; [`PreprocessError::Field`] for a value that makes no sense.
    pub fn read(path: &Path) -> Result<Self, PreprocessError> {
        let io = |source| PreprocessError::Io { path: path.to_owned(), source };
        let toml = |reason: String| PreprocessError::Toml { path: path.to_owned(), reason };
        let bytes = fs::metadata(path).map_err(io)?.len();
        if bytes > MAX_FILE_BYTES {
            return Err(toml(format!("{bytes} bytes is too much for a preprocessing file")));
        }
        let text = fs::read_to_string(path).map_err(io)?;
        Self::parse(&text).map_err(|error| match error {
            PreprocessError::Field { field, reason } => toml(format!("field `{field}`: {reason}")),
            PreprocessError::Toml { reason, .. } => toml(reason),
            other => other,
        })
    }

    /// The same for text; errors name no file.
    ///
    /// # Errors
    /// As [`Preprocess::read`].
    pub fn parse(text: &str) -> Result<Self, PreprocessError> {
        let result: Self = toml::from_str(text).map_err(|error| PreprocessError::Toml {
            path: PathBuf::from("preprocessing"),
            reason: error.to_string().trim_end().to_owned(),
        })?;
        result.check()?;
        Ok(result)
    }

    /// The file's text; [`Preprocess::parse`] gives the same back.
    pub fn to_toml(&self) -> String {
        // Serialising numbers, strings and lists of numbers cannot fail; an empty text would not parse.
        toml::to_string(self).unwrap_or_default()
    }

    /// Whether the values make sense.
    ///
    /// # Errors
    /// [`PreprocessError::Field`].
    pub fn check(&self) -> Result<(), PreprocessError> {
        let max = MAX_SIDE as usize;
        let [height, width] = self.size;
        if !(1..=max).contains(&height) || !(1..=max).contains(&width) {
            return Err(field("size", format!("[{height}, {width}] is outside 1..={max}")));
        }
        match (self.resize, self.resize_to) {
            (Resize::Crop, Some(side)) if side < height.max(width) => {
                return Err(field("resize_to", format!("{side} is less than the size [{height}, {width}]")));
            }
            (Resize::Crop, Some(side)) if side > max => {
                return Err(field("resize_to", format!("{side} is above {max}")));
            }
            (Resize::Exact | Resize::Stretch, Some(_)) => {
                return Err(field("resize_to", "only goes with resize = \"crop\""));
            }
            _ => {}
        }
        let channels = self.colour.channels();
        for (name, values) in [("mean", &self.mean), ("std", &self.std)] {
            if values.len() != 1 && values.len() != channels {
                return Err(field(name, format!("has {} numbers, the input has {channels} channels", values.len())));
            }
            if let Some(value) = values.iter().find(|value| !value.is_finite()) {
                return Err(field(name, format!("{value} is not a finite number")));
            }
        }
        if self.std.contains(&0.0) {
            return Err(field("std", "must not be 0: values are divided by it"));
        }
        if !self.scale.is_finite() || self.scale == 0.0 {
            return Err(field("scale", format!("{} must be finite and not 0", self.scale)));
        }
        Ok(())
    }

    /// Whether the values fit a model input of this shape (first dimension: the batch).
    ///
    /// # Errors
    /// [`PreprocessError::Field`] naming `size`, with both shapes.
    pub fn check_input(&self, shape: &[Option<u64>]) -> Result<(), PreprocessError> {
        let [height, width] = self.size.map(|side| side as u64);
        let channels = self.colour.channels() as u64;
        let own = match self.layout {
            Layout::Nchw => [channels, height, width],
            Layout::Nhwc => [height, width, channels],
        };
        let fits = match shape {
            [_, rest @ ..] if rest.len() == 3 => rest.iter().zip(own).all(|(dim, own)| dim.is_none_or(|d| d == own)),
            [_, rest @ ..] => {
                let known: Option<u64> = rest.iter().try_fold(1u64, |all, dim| all.checked_mul((*dim)?));
                known.is_none_or(|known| known == channels * height * width)
            }
            [] => false,
        };
        if fits {
            return Ok(());
        }
        let [a, b, c] = own;
        Err(field("size", format!("gives an input [n, {a}, {b}, {c}], but the model takes {}", shown(shape))))
    }

    /// The number of values of one picture.
    pub fn len(&self) -> usize {
        let [height, width] = self.size;
        height * width * self.colour.channels()
    }

    /// Never: a size of 0 is refused.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The shape of one entry of the batch: `[c, h, w]` or `[h, w, c]`.
    pub fn shape(&self) -> [usize; 3] {
        let [height, width] = self.size;
        match self.layout {
            Layout::Nchw => [self.colour.channels(), height, width],
            Layout::Nhwc => [height, width, self.colour.channels()],
        }
    }

    /// The side that `crop` scales the shorter one to.
    pub(crate) fn crop_side(&self) -> usize {
        let [height, width] = self.size;
        self.resize_to.unwrap_or(height.max(width))
    }
}

/// One line: `224x224 rgb nchw, crop from 256 bilinear, (pixel * 1 - [127]) / [128]`.
impl fmt::Display for Preprocess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [height, width] = self.size;
        let colour = match self.colour {
            Colour::Rgb => "rgb",
            Colour::Bgr => "bgr",
            Colour::Grey => "grey",
        };
        let layout = match self.layout {
            Layout::Nchw => "nchw",
            Layout::Nhwc => "nhwc",
        };
        let filter = match self.filter {
            Filter::Bilinear => "bilinear",
            Filter::Bicubic => "bicubic",
        };
        write!(f, "{height}x{width} {colour} {layout}, ")?;
        match self.resize {
            Resize::Exact => write!(f, "exact size")?,
            Resize::Stretch => write!(f, "stretched {filter}")?,
            Resize::Crop => write!(f, "shorter side to {} {filter}, then the middle", self.crop_side())?,
        }
        if self.scale == 1.0 && self.mean.iter().all(|m| *m == 0.0) && self.std.iter().all(|s| *s == 1.0) {
            return write!(f, ", raw pixels 0..255");
        }
        write!(f, ", value = (pixel * {} - {}) / {}", self.scale, List(&self.mean), List(&self.std))
    }
}

struct List<'a>(&'a [f32]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [one] = self.0 {
            return write!(f, "{one}");
        }
        f.debug_list().entries(self.0).finish()
    }
}

/// `[?, 3, 224, 224]`.
fn shown(shape: &[Option<u64>]) -> String {
    let dims: Vec<_> = shape.iter().map(|dim| dim.map_or_else(|| "?".to_owned(), |d| d.to_string())).collect();
    format!("[{}]", dims.join(", "))
}

#[cfg(test)]
mod tests;
