//! Flags that say which pictures a model is given and how a picture becomes its input.
//!
//! `quantize`, `evaluate` and `inject` share them: [`DataFlags`] opens the set, [`PictureInput`] is what a
//! classifier takes. Calibration takes the training split where nothing else is said, the others the test split.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use chipfit_data::{
    Colour, DataSet, Filter, Layout, OpenOptions, Overrides, PreferredSplit, Preprocess, Resize, preprocess_path,
};
use chipfit_model::onnx::{Overwrite, write_atomically};
use chipfit_model::proto::ValueInfoProto;
use chipfit_model::{ConstTensor, DataType, Index, Model, shape};
use chipfit_run::random::real_inputs;
use clap::{Args, ValueEnum};

use crate::failure::usage;

/// Labelled pictures and their preprocessing.
#[derive(Args, Debug)]
pub(crate) struct DataFlags {
    /// Labelled pictures: a folder or tar of [SPLIT/]CLASS/NAME.jpg or .png, an .npz (x, y), or a folder of IDX files
    #[arg(long, value_name = "PATH[:SPLIT]")]
    pub(crate) data: String,
    /// Class names, one a line; a class's index is its line, from 0 [default: class folders in sorted order]
    #[arg(long, value_name = "FILE")]
    pub(crate) labels: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) preprocess: PreprocessFlags,
}

/// How a picture becomes the input.
#[derive(Args, Debug)]
pub(crate) struct PreprocessFlags {
    /// The preprocessing [default: MODEL.preprocess.toml beside the model, else raw pixels of the input's size]
    #[arg(long, value_name = "FILE")]
    preprocess: Option<PathBuf>,
    /// Height and width of the input, as 224x224 or 224
    #[arg(long, value_name = "HxW", value_parser = parse_size)]
    size: Option<[usize; 2]>,
    /// How pictures of another size are brought to it; crop:256 scales the shorter side to 256, then cuts the middle
    #[arg(long, value_name = "exact|stretch|crop[:N]", value_parser = parse_resize)]
    resize: Option<ResizeFlag>,
    /// Interpolation
    #[arg(long, value_enum)]
    filter: Option<FilterFlag>,
    /// Where the channels lie
    #[arg(long, value_enum)]
    layout: Option<LayoutFlag>,
    /// Which channels the input takes
    #[arg(long, value_enum)]
    color: Option<ColorFlag>,
    /// Subtracted from scaled pixels: one number or one a channel
    #[arg(long, value_name = "X[,Y,Z]", value_delimiter = ',', allow_hyphen_values = true)]
    mean: Option<Vec<f32>>,
    /// Divisor after that: one number or one a channel
    #[arg(long, value_name = "X[,Y,Z]", value_delimiter = ',')]
    std: Option<Vec<f32>>,
    /// Factor of pixels 0..255 before that: value = (pixel * scale - mean) / std
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    scale: Option<f32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ResizeFlag(Resize, Option<usize>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FilterFlag {
    Bilinear,
    Bicubic,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LayoutFlag {
    Nchw,
    Nhwc,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ColorFlag {
    Rgb,
    Bgr,
    Grey,
}

fn parse_size(text: &str) -> Result<[usize; 2], String> {
    let side = |t: &str| t.parse::<usize>().ok().filter(|&n| n > 0);
    let (height, width) = text.split_once('x').unwrap_or((text, text));
    side(height).zip(side(width)).map(|(h, w)| [h, w]).ok_or_else(|| "expected 224x224 or 224".to_owned())
}

fn parse_resize(text: &str) -> Result<ResizeFlag, String> {
    let wrong = || "expected exact, stretch, crop or crop:N".to_owned();
    Ok(match text.split_once(':') {
        None if text == "exact" => ResizeFlag(Resize::Exact, None),
        None if text == "stretch" => ResizeFlag(Resize::Stretch, None),
        None if text == "crop" => ResizeFlag(Resize::Crop, None),
        Some(("crop", side)) => ResizeFlag(Resize::Crop, Some(side.parse().map_err(|_| wrong())?)),
        _ => return Err(wrong()),
    })
}

impl DataFlags {
    /// Opens the set; `preferred` is the split where `--data` names none.
    pub(crate) fn open(&self, preferred: PreferredSplit) -> Result<DataSet> {
        self.open_other(&self.data, "--data", preferred)
    }

    /// Opens another set with the same labels; `flag` named it.
    pub(crate) fn open_other(&self, spec: &str, flag: &str, preferred: PreferredSplit) -> Result<DataSet> {
        let options = OpenOptions { labels: self.labels.clone(), preferred_split: preferred, ..OpenOptions::default() };
        DataSet::open(spec, &options).with_context(|| format!("{flag} '{spec}'"))
    }
}

impl PreprocessFlags {
    /// The preprocessing for the model at `path`, and the file it comes from, where there is one.
    pub(crate) fn resolve(&self, path: &Path, input: &PictureInput) -> Result<(Preprocess, Option<PathBuf>)> {
        let overrides = self.overrides();
        if let Some(file) = &self.preprocess {
            let read = Preprocess::read(file).with_context(|| format!("--preprocess '{}'", file.display()))?;
            let result = overrides.apply(Some(read)).map_err(|e| usage(e.to_string()))?;
            result.check_input(&input.dims)?;
            return Ok((result, Some(file.clone())));
        }
        Ok(Preprocess::resolve(path, &input.dims, &overrides)?)
    }

    fn overrides(&self) -> Overrides {
        Overrides {
            size: self.size,
            resize: self.resize.map(|r| r.0),
            resize_to: self.resize.and_then(|r| r.1),
            filter: self.filter.map(|f| match f {
                FilterFlag::Bilinear => Filter::Bilinear,
                FilterFlag::Bicubic => Filter::Bicubic,
            }),
            layout: self.layout.map(|l| match l {
                LayoutFlag::Nchw => Layout::Nchw,
                LayoutFlag::Nhwc => Layout::Nhwc,
            }),
            colour: self.color.map(|c| match c {
                ColorFlag::Rgb => Colour::Rgb,
                ColorFlag::Bgr => Colour::Bgr,
                ColorFlag::Grey => Colour::Grey,
            }),
            mean: self.mean.clone(),
            std: self.std.clone(),
            scale: self.scale,
        }
    }
}

/// The one float input of a model that takes pictures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PictureInput {
    /// Its name.
    pub(crate) name: String,
    /// Its shape; `None` for a length that is not fixed. The first is the batch.
    pub(crate) dims: Vec<Option<u64>>,
}

impl PictureInput {
    /// The input of `model`.
    ///
    /// # Errors
    /// A model of several inputs, or of one that is not float or has no known rank, is no classifier of pictures.
    pub(crate) fn of(model: &Model) -> Result<Self> {
        let inputs = real_inputs(model);
        let [input] = inputs.as_slice() else {
            let names: Vec<&str> = inputs.iter().map(|i| name_of(i)).collect();
            anyhow::bail!(
                "the model has {} inputs ({}); a classifier of pictures has one",
                names.len(),
                names.join(", ")
            );
        };
        let name = name_of(input).to_owned();
        let index = Index::new(model);
        let found = shape::infer(&index, &BTreeMap::new())?.get(0, &name);
        let dims = found.dims.clone().filter(|d| !d.is_empty() && found.dtype == Some(DataType::Float));
        let dims =
            dims.with_context(|| format!("input '{name}' is {found}; a classifier takes float pictures [n, ...]"))?;
        let dims = dims.iter().map(|d| d.known().and_then(|n| u64::try_from(n).ok())).collect();
        Ok(Self { name, dims })
    }

    /// How many pictures one run takes: what the model fixes, else as many as fit about a megabyte, at most 16.
    pub(crate) fn batch(&self, preprocess: &Preprocess) -> usize {
        const VALUES: usize = 1 << 18;
        let fixed = self.dims.first().copied().flatten().and_then(|n| usize::try_from(n).ok());
        fixed.unwrap_or_else(|| (VALUES / preprocess.len().max(1)).clamp(1, 16))
    }

    /// The shape of the input for `count` pictures.
    pub(crate) fn shape(&self, preprocess: &Preprocess, count: usize) -> Vec<usize> {
        let [height, width] = preprocess.size;
        let channels = preprocess.colour.channels();
        let rest: Vec<usize> = match (self.dims.as_slice(), preprocess.layout) {
            ([_, _, _, _], Layout::Nchw) => vec![channels, height, width],
            ([_, _, _, _], Layout::Nhwc) => vec![height, width, channels],
            // Another rank: the lengths that the model fixes, one open length being what is left.
            (dims, _) => {
                let length = |dim: &Option<u64>| dim.map(|n| usize::try_from(n).unwrap_or(usize::MAX));
                let known = dims.iter().skip(1).filter_map(length).fold(1usize, usize::saturating_mul);
                let open = preprocess.len().checked_div(known).unwrap_or(0);
                dims.iter().skip(1).map(|dim| length(dim).unwrap_or(open)).collect()
            }
        };
        std::iter::once(count).chain(rest).collect()
    }

    /// `values` of `count` pictures as the input's tensor.
    pub(crate) fn tensor(&self, preprocess: &Preprocess, count: usize, values: &[f32]) -> Result<ConstTensor> {
        let shape = self.shape(preprocess, count);
        let shown = format!("{shape:?}");
        ConstTensor::from_f32(shape, values).with_context(|| {
            format!("input '{}' takes {shown}, a batch of {count} pictures has {} values", self.name, values.len())
        })
    }
}

fn name_of(info: &ValueInfoProto) -> &str {
    info.name.as_deref().unwrap_or_default()
}

/// Writes the preprocessing beside `model`, for whoever runs it next; returns the file.
pub(crate) fn write_preprocess(preprocess: &Preprocess, model: &Path, overwrite: Overwrite) -> Result<PathBuf> {
    let path = preprocess_path(model);
    if overwrite == Overwrite::Never && path.exists() {
        // The same text is no loss.
        let same = Preprocess::read(&path).is_ok_and(|there| there == *preprocess);
        if same {
            return Ok(path);
        }
        return Err(usage(format!("'{}' exists with another preprocessing; --force replaces it", path.display())));
    }
    write_atomically(&path, preprocess.to_toml().as_bytes())
        .with_context(|| format!("cannot write '{}'", path.display()))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_resizes_parse_or_say_why_not() {
        assert_eq!(parse_size("224"), Ok([224, 224]));
        assert_eq!(parse_size("32x48"), Ok([32, 48]));
        assert_eq!(parse_resize("crop:256"), Ok(ResizeFlag(Resize::Crop, Some(256))));
        assert_eq!(parse_resize("stretch"), Ok(ResizeFlag(Resize::Stretch, None)));
        for bad in ["", "x", "0", "3x", "3x-1"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
        for bad in ["", "crop:", "crop:x", "exact:3", "fit"] {
            assert!(parse_resize(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_batch_takes_the_shape_that_the_model_declares() {
        let preprocess = Preprocess::raw([2, 3], Layout::Nchw, Colour::Grey);
        let input = |dims: &[Option<u64>]| PictureInput { name: "x".to_owned(), dims: dims.to_vec() };
        let dims = |dims: &[Option<u64>]| input(dims).tensor(&preprocess, 4, &[0.0; 24]).unwrap().dims().to_vec();
        assert_eq!(dims(&[None, Some(1), Some(2), Some(3)]), [4, 1, 2, 3]);
        assert_eq!(dims(&[None, None]), [4, 6]);
        assert_eq!(dims(&[None, Some(2), Some(3)]), [4, 2, 3]);
        assert!(input(&[None, Some(5)]).tensor(&preprocess, 4, &[0.0; 24]).is_err());
        assert_eq!(input(&[Some(7), None]).batch(&preprocess), 7);
        assert_eq!(input(&[None, None]).batch(&preprocess), 16);
    }
}
