//! `chipfit quantize`: a float classifier becomes a QDQ model of 8-bit integers.
//!
//! Model -> folded model -> ranges on calibration pictures -> QDQ model -> a temporary file -> renamed, with the
//! preprocessing beside it. No output file is left where anything fails.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use chipfit_data::{DataSet, PreferredSplit, Preprocess, Subset};
use chipfit_model::onnx::Overwrite;
use chipfit_model::{ConstTensor, Model};
use chipfit_quantize::{Activations, Calibration, Method, Options, Prepared, Ranges, Report, Weights, signal};
use chipfit_run::engine::{Engine, RtenEngine};
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::data_options::{DataFlags, PictureInput, write_preprocess};
use crate::failure::usage;
use crate::options;
use crate::terminal::{self, Table, note, printable};
use crate::{bounds, compare};

/// Quantise a float classifier to 8-bit integers (QDQ), calibrated on pictures.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// The float ONNX model
    model: PathBuf,
    /// The file to write; never overwritten without --force
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Replace the output file where it exists
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    data: DataFlags,
    /// Calibrate on these pictures instead [default: the training split of --data, or all where it has no splits]
    #[arg(long, value_name = "PATH[:SPLIT]")]
    calibration_data: Option<String>,
    /// How ranges follow from the pictures
    #[arg(long, value_enum, default_value = "minmax")]
    method: MethodFlag,
    /// For --method percentile: how many percent of the values stay in range [default: 99.99]
    #[arg(long, value_name = "P")]
    percentile: Option<f64>,
    /// What activations become
    #[arg(long, value_enum, default_value = "uint8")]
    activations: ActivationsFlag,
    /// How many scales a weight has
    #[arg(long, value_enum, default_value = "per-channel")]
    weights: WeightsFlag,
    /// Round every scale up to a power of two
    #[arg(long)]
    power_of_two: bool,
    /// How many pictures to calibrate on, drawn at random without replacement
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    pictures: u32,
    /// Seed of that draw
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// What runs the float model [default: rten, or ONNX Runtime where rten cannot]
    #[arg(long, value_enum)]
    runtime: Option<Runtime>,
    /// The ONNX Runtime library [default: that of a Python installation]
    #[arg(long, value_name = "LIBRARY")]
    onnxruntime: Option<PathBuf>,
    /// Print one JSON document on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

/// `--method`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum MethodFlag {
    /// From the smallest to the largest value
    Minmax,
    /// Without the values that are left over at both ends
    Percentile,
    /// The least Kullback-Leibler divergence
    Entropy,
}

/// `--activations`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ActivationsFlag {
    /// 0..255 with a zero point
    Uint8,
    /// -127..127, zero point 0
    Int8,
    /// -128..127 with a zero point
    Int8Asymmetric,
}

/// `--weights`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum WeightsFlag {
    /// One for each output channel
    PerChannel,
    /// One
    PerTensor,
}

/// `--runtime`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Runtime {
    /// The embedded engine
    Rten,
    /// ONNX Runtime, loaded from its library
    Onnxruntime,
}

/// The document that `--json` prints. Numbers that are not finite are `null`.
#[derive(Serialize)]
struct Document<'a> {
    command: Vec<String>,
    model: String,
    output: String,
    preprocess_file: String,
    preprocess: &'a Preprocess,
    calibration: CalibrationEntry,
    runtime: String,
    options: String,
    tensors: Vec<TensorEntry<'a>>,
    weights: Vec<WeightEntry<'a>>,
    float_nodes: Vec<FloatEntry<'a>>,
    removed_activations: usize,
    folded_normalisations: usize,
    kept_normalisations: usize,
    folded_constants: usize,
    warnings: &'a [String],
    error: Option<String>,
}

#[derive(Serialize)]
struct CalibrationEntry {
    data: String,
    split: Option<String>,
    pictures: usize,
    of: usize,
    seed: u64,
    fingerprint: String,
}

#[derive(Serialize)]
struct TensorEntry<'a> {
    name: &'a str,
    integer: &'a str,
    dtype: &'static str,
    low: f32,
    high: f32,
    seen_low: f32,
    seen_high: f32,
    saturated: f64,
    scale: f32,
    zero_point: i32,
    scale_of: &'a str,
    sqnr_db: Option<f64>,
}

#[derive(Serialize)]
struct WeightEntry<'a> {
    node: &'a str,
    name: &'a str,
    integer: &'a str,
    scales: usize,
    least_scale: f32,
    greatest_scale: f32,
    widened: usize,
    sqnr_db: f64,
}

#[derive(Serialize)]
struct FloatEntry<'a> {
    node: &'a str,
    operator: &'a str,
}

/// What a calibration needs.
struct Task<'a> {
    prepared: &'a Prepared,
    options: Options,
    input: &'a PictureInput,
    preprocess: &'a Preprocess,
    pictures: &'a DataSet,
}

/// Runs the subcommand.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let options = arguments.options()?;
    let overwrite = if arguments.force { Overwrite::Replace } else { Overwrite::Never };
    options::check_output(&arguments.output, arguments.force, &[])?;
    let model = options::open(&arguments.model)?;
    let input = PictureInput::of(&model).with_context(|| format!("'{}'", arguments.model.display()))?;
    let (preprocess, file) = arguments.data.preprocess.resolve(&arguments.model, &input)?;
    let from = file.map_or_else(|| "flags and the input's shape".to_owned(), |f| f.display().to_string());
    note(&printable(&format!("preprocessing ({from}): {preprocess}")));
    let shape = input.shape(&preprocess, input.batch(&preprocess));
    if let Some(why) = bounds::objection(&model, &BTreeMap::from([(input.name.clone(), shape)]), None) {
        bail!("'{}' is not run: {why}", arguments.model.display());
    }
    let prepared = Prepared::new(&model).with_context(|| format!("'{}'", arguments.model.display()))?;
    let set = match &arguments.calibration_data {
        Some(spec) => arguments.data.open_other(spec, "--calibration-data", PreferredSplit::Train)?,
        None => arguments.data.open(PreferredSplit::Train)?,
    };
    let count = usize::try_from(arguments.pictures).unwrap_or(usize::MAX);
    let pictures = set.subset(Subset::Random { count, seed: arguments.seed });
    let split = set.split().map_or_else(String::new, |s| format!(", split '{s}'"));
    let path = set.path().display();
    note(&printable(&format!("calibration: {} of {} pictures of '{path}'{split}", pictures.len(), set.len())));

    let task = Task { prepared: &prepared, options, input: &input, preprocess: &preprocess, pictures: &pictures };
    let (engine, ranges) = arguments.calibrate(&task)?;
    let (quantised, report) = prepared.quantize(&ranges, &options)?;
    let ratios = task.first_batch().and_then(|batch| Ok(signal(&prepared, &quantised, &report, &*engine, &batch)?));
    let mut warnings = report.warnings.clone();
    if let Err(error) = &ratios {
        warnings.push(format!("signal-to-noise ratios are not known: {error:#}"));
    }
    quantised.write(&arguments.output, overwrite)?;
    let written = write_preprocess(&preprocess, &arguments.output, overwrite).inspect_err(|_| {
        // A model whose preprocessing could not be written would be run with another one.
        let _ = std::fs::remove_file(&arguments.output);
    })?;
    warnings.iter().for_each(|w| note(&printable(&format!("warning: {w}"))));

    let ratios = ratios.unwrap_or_default();
    if !arguments.json {
        return terminal::print(&text(&arguments.output, &written, &report, &ratios, &options, &quantised));
    }
    let document = Document {
        command: std::env::args().collect(),
        model: arguments.model.display().to_string(),
        output: arguments.output.display().to_string(),
        preprocess_file: written.display().to_string(),
        preprocess: &preprocess,
        calibration: CalibrationEntry {
            data: set.path().display().to_string(),
            split: set.split().map(str::to_owned),
            pictures: pictures.len(),
            of: set.len(),
            seed: arguments.seed,
            fingerprint: pictures.fingerprint().to_string(),
        },
        runtime: engine.name(),
        options: options.to_string(),
        tensors: tensor_entries(&report, &ratios),
        weights: weight_entries(&report),
        float_nodes: report.float_nodes.iter().map(|n| FloatEntry { node: &n.node, operator: &n.operator }).collect(),
        removed_activations: report.removed_activations,
        folded_normalisations: report.folded.normalisations,
        kept_normalisations: report.folded.normalisations_kept,
        folded_constants: report.folded.constants,
        warnings: &warnings,
        error: None,
    };
    terminal::print(&format!("{}\n", serde_json::to_string_pretty(&document)?))
}

impl Arguments {
    fn options(&self) -> Result<Options> {
        let percentile = self.percentile.unwrap_or(99.99);
        if self.percentile.is_some() && self.method != MethodFlag::Percentile {
            return Err(usage("--percentile goes with --method percentile"));
        }
        if !(percentile > 0.0 && percentile <= 100.0) {
            return Err(usage(format!("--percentile {percentile}: expected more than 0 and at most 100")));
        }
        Ok(Options {
            method: match self.method {
                MethodFlag::Minmax => Method::MinMax,
                MethodFlag::Percentile => Method::Percentile(percentile),
                MethodFlag::Entropy => Method::Entropy,
            },
            activations: match self.activations {
                ActivationsFlag::Uint8 => Activations::Uint8,
                ActivationsFlag::Int8 => Activations::Int8Symmetric,
                ActivationsFlag::Int8Asymmetric => Activations::Int8Asymmetric,
            },
            weights: match self.weights {
                WeightsFlag::PerChannel => Weights::PerChannel,
                WeightsFlag::PerTensor => Weights::PerTensor,
            },
            power_of_two: self.power_of_two,
        })
    }

    /// Calibrates in the runtime that was asked for, or in the first that can.
    fn calibrate(&self, task: &Task<'_>) -> Result<(Box<dyn Engine>, Ranges)> {
        if self.runtime != Some(Runtime::Onnxruntime) {
            let engine = RtenEngine::default();
            match task.ranges(&engine) {
                Ok(ranges) => return Ok((Box::new(engine), ranges)),
                Err(error) if self.runtime.is_none() && is_engine_limit(&error) => {
                    note(&printable(&format!("{error:#}; trying ONNX Runtime instead")));
                }
                Err(error) => return Err(error),
            }
        }
        let engine = compare::onnxruntime(self.onnxruntime.as_deref())?;
        let ranges = task.ranges(&engine)?;
        Ok((Box::new(engine), ranges))
    }
}

fn is_engine_limit(error: &anyhow::Error) -> bool {
    error.downcast_ref::<chipfit_quantize::QuantizeError>().is_some_and(|e| e.is_engine_limit())
}

impl Task<'_> {
    fn ranges(&self, engine: &dyn Engine) -> Result<Ranges> {
        let mut calibration = Calibration::new(self.prepared, engine, &self.options)?;
        let total = self.pictures.len();
        let bar = terminal::bar("calibrate", u64::try_from(total).unwrap_or(0));
        let batch = self.input.batch(self.preprocess).max(1);
        for first in (0..total).step_by(batch) {
            calibration.observe(&self.batch(first)?)?;
            bar.inc(u64::try_from(batch.min(total - first)).unwrap_or(0));
        }
        bar.finish_and_clear();
        Ok(calibration.finish()?)
    }

    fn first_batch(&self) -> Result<Vec<(String, ConstTensor)>> {
        self.batch(0)
    }

    /// The inputs of the pictures from `first` on. Where the model fixes the batch and too few are left, it begins
    /// again at the first picture.
    fn batch(&self, first: usize) -> Result<Vec<(String, ConstTensor)>> {
        let total = self.pictures.len();
        let fixed = self.input.dims.first().copied().flatten().is_some();
        let batch = self.input.batch(self.preprocess).max(1);
        let count = if fixed { batch } else { batch.min(total.saturating_sub(first)) };
        let indices = (first..first.saturating_add(count)).map(|i| i.checked_rem(total).unwrap_or(0));
        let values = self.pictures.batch(indices, self.preprocess)?;
        Ok(vec![(self.input.name.clone(), self.input.tensor(self.preprocess, count, &values)?)])
    }
}

fn tensor_entries<'a>(report: &'a Report, ratios: &[f64]) -> Vec<TensorEntry<'a>> {
    let entry = |(i, t): (usize, &'a chipfit_quantize::TensorReport)| TensorEntry {
        name: &t.name,
        integer: &t.integer,
        dtype: t.dtype.name(),
        low: t.range.low,
        high: t.range.high,
        seen_low: t.seen.low,
        seen_high: t.seen.high,
        saturated: t.saturated,
        scale: t.scale,
        zero_point: t.zero_point,
        scale_of: &t.source,
        sqnr_db: ratios.get(i).copied(),
    };
    report.tensors.iter().enumerate().map(entry).collect()
}

fn weight_entries(report: &Report) -> Vec<WeightEntry<'_>> {
    report.weights.iter().map(WeightEntry::of).collect()
}

impl<'a> WeightEntry<'a> {
    fn of(weight: &'a chipfit_quantize::WeightReport) -> Self {
        Self {
            node: &weight.node,
            name: &weight.name,
            integer: &weight.integer,
            scales: weight.scales,
            least_scale: weight.scale_range.0,
            greatest_scale: weight.scale_range.1,
            widened: weight.widened,
            sqnr_db: weight.sqnr_db,
        }
    }
}

/// The report for people.
fn text(
    output: &Path,
    preprocess: &Path,
    report: &Report,
    ratios: &[f64],
    options: &Options,
    quantised: &Model,
) -> String {
    let mut table = Table::new(&["tensor", ">low", ">high", ">outside", ">scale", ">zero", ">SQNR dB"]);
    for (position, tensor) in report.tensors.iter().enumerate() {
        let shared = if tensor.source == tensor.name { "" } else { " =" };
        table.row(vec![
            tensor.name.clone(),
            format!("{:.4}", tensor.range.low),
            format!("{:.4}", tensor.range.high),
            format!("{:.3}%", 100.0 * tensor.saturated),
            format!("{:.6}{shared}", tensor.scale),
            tensor.zero_point.to_string(),
            ratios.get(position).map_or("-".to_owned(), |r| format!("{r:.1}")),
        ]);
    }
    let mut text = table.render();
    text.push_str(&format!("{options}\n"));
    text.push_str(&format!(
        "{} weights, {} quantised tensors, {} nodes; {} normalisations folded, {} Relu or Clip removed\n",
        report.weights.len(),
        report.tensors.len(),
        quantised.graph().node.len(),
        report.folded.normalisations,
        report.removed_activations
    ));
    if !report.float_nodes.is_empty() {
        let names: Vec<String> = report.float_nodes.iter().map(|n| format!("{} ({})", n.node, n.operator)).collect();
        text.push_str(&format!("in float: {}\n", printable(&names.join(", "))));
    }
    let shown = |path: &Path| printable(&path.display().to_string());
    text.push_str(&format!("wrote {} and {}\n", shown(output), shown(preprocess)));
    text
}
