//! Flags that several subcommands share, and their conversion to what the libraries take.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use chipfit_deconv::target::{Target, TargetError};
use chipfit_deconv::{Crop, Form, Interleave, Options, SameRule};
use chipfit_model::{Limits, Model, ReadError};
use chipfit_run::compare::ModelBytes;
use clap::{Args, ValueEnum};

use crate::failure::usage;

/// Most elements that one `--input` may ask for: more would not fit a test machine's memory.
const MAX_INPUT_ELEMENTS: usize = 1 << 31;

/// `--form`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FormFlag {
    /// Chosen per node: by the target where one is given, else `fused` up to 16 output channels and `split` above
    Auto,
    /// One tight convolution per phase
    Split,
    /// Fused along the last axis, split along the others
    Rowsplit,
    /// One convolution for all phases
    Fused,
    /// Zeros between the inputs, then one convolution: the baseline
    ZeroPad,
    /// Shi et al.: does not preserve the result
    Shi,
    /// Chang et al.: does not preserve the result
    Chang,
}

/// `--interleave`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum InterleaveFlag {
    /// One DepthToSpace (2-D, equal strides)
    DepthToSpace,
    /// Reshape, Transpose, Reshape
    Reshape,
    /// Concat and Reshape, no Transpose
    Concat,
}

/// `--crop`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CropFlag {
    /// The smallest kernel, then a Slice
    Slice,
    /// Kernels aligned so that nothing is cut off at the begin
    Alignment,
}

/// `--opset1-same`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SameFlag {
    /// As runtimes do it: like opset 11
    Runtimes,
    /// As the text of opset 1 says: the opposite side
    Spec,
}

/// What decides the form of each node.
#[derive(Args, Debug)]
pub(crate) struct PlanFlags {
    /// How transposed convolutions are computed
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) form: FormFlag,
    /// How phases are woven into the output [default: depth-to-space where it applies, else reshape]
    #[arg(long, value_enum)]
    pub(crate) interleave: Option<InterleaveFlag>,
    /// What the fused form does about outputs before the first
    #[arg(long, value_enum, default_value = "slice")]
    pub(crate) crop: CropFlag,
    /// No emitted convolution has more output channels
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_channels: Option<u32>,
    /// Rewrite only this node, by its name or its first output's (may be repeated)
    #[arg(long, value_name = "NODE")]
    pub(crate) only: Vec<String>,
    /// Leave this node as it is, by its name or its first output's (may be repeated)
    #[arg(long, value_name = "NODE")]
    pub(crate) keep: Vec<String>,
    /// What the chip supports and prefers: a description file, or the name of one that ships with chipfit
    #[arg(long, value_name = "FILE|NAME")]
    pub(crate) target: Option<String>,
    /// Which side takes the odd pad of auto_pad before opset 11
    #[arg(long, value_enum, default_value = "runtimes")]
    pub(crate) opset1_same: SameFlag,
}

impl PlanFlags {
    /// What [`chipfit_deconv::plan`] takes.
    pub(crate) fn options(&self) -> Result<Options> {
        let target = self.target.as_deref().map(Target::load).transpose().map_err(|error| match error {
            TargetError::Unknown { .. } => usage(format!("--{error}")),
            other => other.into(),
        })?;
        Ok(Options {
            target,
            form: self.fixed_form(),
            interleave: self.interleave.map(|i| match i {
                InterleaveFlag::DepthToSpace => Interleave::DepthToSpace,
                InterleaveFlag::Reshape => Interleave::Reshape,
                InterleaveFlag::Concat => Interleave::Concat,
            }),
            crop: match self.crop {
                CropFlag::Slice => Crop::Slice,
                CropFlag::Alignment => Crop::Alignment,
            },
            max_channels: self.max_channels.map(|n| usize::try_from(n).unwrap_or(usize::MAX)),
            only: self.only.clone(),
            keep: self.keep.clone(),
            opset1_same: match self.opset1_same {
                SameFlag::Runtimes => SameRule::Runtimes,
                SameFlag::Spec => SameRule::Spec,
            },
            ..Options::default()
        })
    }

    /// The form of every node; `None` for `auto`.
    fn fixed_form(&self) -> Option<Form> {
        match self.form {
            FormFlag::Auto => None,
            FormFlag::Split => Some(Form::Split),
            FormFlag::Rowsplit => Some(Form::RowSplit),
            FormFlag::Fused => Some(Form::Fused),
            FormFlag::ZeroPad => Some(Form::ZeroPad),
            FormFlag::Shi => Some(Form::Shi),
            FormFlag::Chang => Some(Form::Chang),
        }
    }
}

/// `--input name:1x3x224x224`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InputShape {
    name: String,
    dims: Vec<usize>,
}

impl std::str::FromStr for InputShape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // Names may hold colons ("image:0"); the shape never does.
        let (name, shape) = text.rsplit_once(':').ok_or("expected NAME:1x3x224x224")?;
        if name.is_empty() {
            return Err("the name before ':' is empty; expected NAME:1x3x224x224".to_owned());
        }
        let dim = |d: &str| match d.parse::<usize>() {
            Ok(n) if n > 0 => Ok(n),
            _ => Err(format!("'{d}' is no length; expected NAME:1x3x224x224")),
        };
        let dims: Vec<usize> =
            if shape.is_empty() { Vec::new() } else { shape.split('x').map(dim).collect::<Result<_, _>>()? };
        let elements = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        if elements.is_none_or(|n| n > MAX_INPUT_ELEMENTS) {
            return Err(format!("{shape} has more than {MAX_INPUT_ELEMENTS} elements"));
        }
        Ok(Self { name: name.to_owned(), dims })
    }
}

/// Shapes for inputs whose own are dynamic.
#[derive(Args, Debug)]
pub(crate) struct InputFlags {
    /// The shape of a dynamic input in reports and runs, such as image:1x3x224x224 (may be repeated)
    #[arg(long = "input", value_name = "NAME:SHAPE")]
    inputs: Vec<InputShape>,
}

impl InputFlags {
    /// The shapes by input.
    pub(crate) fn shapes(&self) -> Result<BTreeMap<String, Vec<usize>>> {
        let mut shapes = BTreeMap::new();
        for InputShape { name, dims } in &self.inputs {
            if shapes.insert(name.clone(), dims.clone()).is_some() {
                return Err(usage(format!("--input {name}: given twice")));
            }
        }
        Ok(shapes)
    }
}

/// Opens a model; the error names the file.
pub(crate) fn open(path: &Path) -> Result<Model> {
    Model::open(path, &Limits::default()).map_err(|error| match error {
        ReadError::Io { .. } | ReadError::TooLong { .. } => error.into(),
        other => anyhow::Error::new(other).context(format!("'{}'", path.display())),
    })
}

/// Decodes a file's bytes, exactly as a reader of the file would.
pub(crate) fn decode(file: &ModelBytes<'_>) -> Result<Model> {
    let mut model = Model::from_bytes(file.bytes.clone(), &Limits::default())?;
    model.folder = file.folder.map(Path::to_owned);
    Ok(model)
}

/// The bytes of a model file that [`open`] has accepted.
pub(crate) fn bytes_of(path: &Path) -> Result<ModelBytes<'_>> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read '{}'", path.display()))?;
    Ok(ModelBytes { bytes: bytes.into(), folder: Some(path.parent().unwrap_or(Path::new(""))) })
}

/// Refuses an output that exists (without `--force`), that is no plain file, or that is one of `sources`' data.
pub(crate) fn check_output(output: &Path, force: bool, sources: &[PathBuf]) -> Result<()> {
    let Ok(found) = std::fs::metadata(output) else {
        let folder = output.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        return match std::fs::metadata(folder) {
            Ok(f) if f.is_dir() => Ok(()),
            Ok(_) => Err(usage(format!("-o '{}': '{}' is no folder", output.display(), folder.display()))),
            Err(e) => Err(e).with_context(|| format!("-o '{}': the folder '{}'", output.display(), folder.display())),
        };
    };
    if !found.is_file() {
        return Err(usage(format!("-o '{}': not a plain file", output.display())));
    }
    if !force {
        return Err(usage(format!("-o '{}' exists; it is only replaced with --force", output.display())));
    }
    let same = |a: &Path, b: &Path| matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b);
    match sources.iter().find(|s| same(s, output)) {
        Some(_) => Err(usage(format!("-o '{}': the model's weights lie in this file", output.display()))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_shapes_parse_or_say_why_not() {
        let good = |text: &str| text.parse::<InputShape>().map(|s| (s.name, s.dims));
        assert_eq!(good("image:0:1x3x2"), Ok(("image:0".to_owned(), vec![1, 3, 2])));
        assert_eq!(good("scalar:"), Ok(("scalar".to_owned(), vec![])));
        for bad in ["x", ":1x2", "x:1x", "x:-1", "x:0", "x:1x99999999999999999999", "x:4294967296x4294967296"] {
            assert!(bad.parse::<InputShape>().is_err(), "{bad}");
        }
    }
}
