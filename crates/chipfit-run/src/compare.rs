//! Two models on the same inputs, output by output.
//!
//! Both models run in one [`Engine`] on each [`InputSet`]; outputs are matched by name and compared by
//! [`metrics`]. Outputs that only one model has, and outputs of different type or shape, are
//! errors that name the output: a number would hide them. Nothing is judged here.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use chipfit_model::{ConstTensor, Model};

use crate::engine::{Engine, EngineError, Session};
use crate::metrics::{self, Difference, ImageLayout, MetricsError};
use crate::random::{self, RandomError};

/// Why two models could not be compared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompareError {
    /// A model could not be loaded or run.
    #[error("{which} model: {source}")]
    Engine {
        /// Which of the two.
        which: Which,
        /// Why.
        source: EngineError,
    },
    /// The models do not have the same inputs or outputs.
    #[error("the models have different {kind}: only the first has {only_first:?}, only the second has {only_second:?}")]
    Names {
        /// "inputs" or "outputs".
        kind: &'static str,
        /// Names that only the first model has.
        only_first: Vec<String>,
        /// Names that only the second model has.
        only_second: Vec<String>,
    },
    /// An output that cannot be compared.
    #[error("output '{output}' ({inputs}): {source}")]
    Output {
        /// The output.
        output: String,
        /// The label of the inputs.
        inputs: String,
        /// Why.
        source: MetricsError,
    },
    /// Nothing to run.
    #[error("no inputs were given to compare the models on")]
    NoInputs,
}

/// One of the two models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The reference.
    First,
    /// The other.
    Second,
}

impl std::fmt::Display for Which {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::First => "first",
            Self::Second => "second",
        })
    }
}

/// A model as its file's bytes.
#[derive(Clone, Debug)]
pub struct ModelBytes<'a> {
    /// The file.
    pub bytes: Bytes,
    /// The folder of its external data.
    pub folder: Option<&'a Path>,
}

/// One set of inputs for both models.
#[derive(Clone, Debug, PartialEq)]
pub struct InputSet {
    /// What it is, for people: "seed 3", "street.png".
    pub label: String,
    /// A tensor for every real input.
    pub tensors: Vec<(String, ConstTensor)>,
}

/// Random input sets for `model`, of the seeds `first_seed`, `first_seed + 1`, ...
///
/// # Errors
/// [`RandomError`].
pub fn random_inputs(
    model: &Model,
    shapes: &BTreeMap<String, Vec<usize>>,
    first_seed: u64,
    count: usize,
) -> Result<Vec<InputSet>, RandomError> {
    let set = |offset: usize| {
        let seed = first_seed.wrapping_add(offset as u64);
        Ok(InputSet { label: format!("seed {seed}"), tensors: random::inputs(model, shapes, seed)? })
    };
    (0..count).map(set).collect()
}

/// Which outputs get an SSIM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Images {
    /// Those that [`metrics::image_layout`] takes for images.
    #[default]
    Guess,
    /// None.
    Never,
    /// All whose shape allows it, read in this layout.
    Always(ImageLayout),
}

/// How to compare.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CompareOptions {
    /// Which outputs get an SSIM.
    pub images: Images,
    /// The dynamic range of PSNR and SSIM, in place of the default that [`metrics`] states.
    pub range: Option<f64>,
    /// Compare outputs of one rank but different lengths on the part from the origin that both have.
    pub common_part: bool,
}

/// What a comparison found.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The engine that ran both models.
    pub engine: String,
    /// Where it computes otherwise than the files ask, for either model.
    pub caveats: Vec<String>,
    /// The labels of the input sets, in the order of [`OutputReport::runs`].
    pub inputs: Vec<String>,
    /// One entry per output, in the first model's order.
    pub outputs: Vec<OutputReport>,
}

/// One output over all input sets.
#[derive(Clone, Debug, PartialEq)]
pub struct OutputReport {
    /// The output.
    pub name: String,
    /// Its element type, by ONNX's name.
    pub dtype: &'static str,
    /// One entry per input set.
    pub runs: Vec<OutputRun>,
}

/// One output on one input set.
#[derive(Clone, Debug, PartialEq)]
pub struct OutputRun {
    /// Its shape.
    pub dims: Vec<usize>,
    /// How far the second model's lies from the first's.
    pub difference: Difference,
    /// Structural similarity, for images.
    pub ssim: Option<f64>,
}

impl OutputReport {
    /// The largest absolute difference of all runs.
    pub fn max_abs(&self) -> f64 {
        self.largest(|d| d.max_abs)
    }

    /// The largest relative difference of all runs.
    pub fn max_rel(&self) -> f64 {
        self.largest(|d| d.max_rel)
    }

    /// The largest difference in integer steps of all runs; `None` for floats.
    pub fn max_steps(&self) -> Option<u64> {
        self.runs.iter().filter_map(|r| r.difference.max_steps).max()
    }

    /// The elements that differ, over all runs.
    pub fn differing(&self) -> usize {
        self.runs.iter().map(|r| r.difference.differing).sum()
    }

    /// The smallest PSNR of all runs.
    pub fn min_psnr(&self) -> f64 {
        self.runs.iter().map(|r| r.difference.psnr).fold(f64::INFINITY, f64::min)
    }

    /// The smallest SSIM of all runs, NaN if one is; `None` where no run is an image.
    pub fn min_ssim(&self) -> Option<f64> {
        let smaller = |a: f64, b: f64| if a.is_nan() || a < b { a } else { b };
        self.runs.iter().filter_map(|r| r.ssim).reduce(smaller)
    }

    fn largest(&self, of: impl Fn(&Difference) -> f64) -> f64 {
        self.runs.iter().map(|r| of(&r.difference)).fold(0.0, f64::max)
    }
}

/// Runs `first`, the reference, and `second` on every set of inputs and compares all outputs.
///
/// # Errors
/// [`CompareError`].
pub fn compare(
    engine: &dyn Engine,
    first: &ModelBytes<'_>,
    second: &ModelBytes<'_>,
    inputs: &[InputSet],
    options: &CompareOptions,
) -> Result<Report, CompareError> {
    if inputs.is_empty() {
        return Err(CompareError::NoInputs);
    }
    let load = |which: Which, model: &ModelBytes<'_>| {
        engine.load(&model.bytes, model.folder).map_err(|source| CompareError::Engine { which, source })
    };
    let mut a = load(Which::First, first)?;
    let mut b = load(Which::Second, second)?;
    same_names("inputs", a.inputs(), b.inputs())?;
    same_names("outputs", a.outputs(), b.outputs())?;
    let mut outputs: Vec<OutputReport> = Vec::new();
    for set in inputs {
        let ys = run(Which::First, &mut *a, set)?;
        let xs = run(Which::Second, &mut *b, set)?;
        for (position, (name, y)) in ys.iter().enumerate() {
            let in_order = xs.get(position).filter(|(n, _)| n == name);
            let Some((_, x)) = in_order.or_else(|| xs.iter().find(|(n, _)| n == name)) else { continue };
            let run = output_run(y, x, options).map_err(|source| CompareError::Output {
                output: name.clone(),
                inputs: set.label.clone(),
                source,
            })?;
            match outputs.get_mut(position) {
                Some(report) => report.runs.push(run),
                None => {
                    outputs.push(OutputReport { name: name.clone(), dtype: y.dtype().name(), runs: vec![run] });
                }
            }
        }
    }
    let mut caveats = a.caveats().to_vec();
    caveats.extend(b.caveats().iter().filter(|c| !a.caveats().contains(c)).cloned());
    let labels = inputs.iter().map(|set| set.label.clone()).collect();
    Ok(Report { engine: engine.name(), caveats, inputs: labels, outputs })
}

fn run(which: Which, session: &mut dyn Session, set: &InputSet) -> Result<Vec<(String, ConstTensor)>, CompareError> {
    session.run(&set.tensors).map_err(|source| CompareError::Engine { which, source })
}

fn same_names(kind: &'static str, first: &[String], second: &[String]) -> Result<(), CompareError> {
    let missing = |from: &[String], of: &[String]| of.iter().filter(|n| !from.contains(n)).cloned().collect::<Vec<_>>();
    let (only_first, only_second) = (missing(second, first), missing(first, second));
    if only_first.is_empty() && only_second.is_empty() {
        return Ok(());
    }
    Err(CompareError::Names { kind, only_first, only_second })
}

fn output_run(y: &ConstTensor, x: &ConstTensor, options: &CompareOptions) -> Result<OutputRun, MetricsError> {
    if options.common_part && y.dims() != x.dims() && y.dims().len() == x.dims().len() {
        let dims: Vec<usize> = y.dims().iter().zip(x.dims()).map(|(&a, &b)| a.min(b)).collect();
        if let Some((y, x)) = corner(y, &dims).zip(corner(x, &dims)) {
            return output_run(&y, &x, options);
        }
    }
    let difference = metrics::difference(y, x, options.range)?;
    let layout = match options.images {
        Images::Guess => metrics::image_layout(y.dims()),
        Images::Never => None,
        Images::Always(layout) => Some(layout),
    };
    let ssim = match layout.map(|layout| metrics::ssim(y, x, layout, options.range)) {
        None | Some(Err(MetricsError::NoImage(_))) => None,
        Some(result) => Some(result?),
    };
    Ok(OutputRun { dims: y.dims().to_vec(), difference, ssim })
}

/// The first `dims` elements of each axis; `None` for elements that are not whole bytes.
fn corner(tensor: &ConstTensor, dims: &[usize]) -> Option<ConstTensor> {
    // A run along the last axis is copied at once, the others are walked like an odometer.
    let step = tensor.dtype().bytes()?;
    let (&length, &row) = (dims.last()?, tensor.dims().last()?);
    let outer = dims.get(..dims.len() - 1)?;
    let rows: usize = outer.iter().product();
    let mut bytes = Vec::with_capacity(rows.checked_mul(length)?.checked_mul(step)?);
    for number in 0..rows {
        let (mut left, mut at, mut stride) = (number, 0, 1);
        for (&kept, &whole) in outer.iter().zip(tensor.dims()).rev() {
            at += left % kept * stride;
            left /= kept;
            stride *= whole;
        }
        bytes.extend_from_slice(tensor.bytes().get(at * row * step..(at * row + length) * step)?);
    }
    ConstTensor::new(tensor.dtype(), dims.to_vec(), bytes)
}

#[cfg(test)]
mod tests;
