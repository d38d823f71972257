//! `chipfit compare`: two models on the same inputs, random or pictures, in one runtime.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use chipfit_run::compare::{self, CompareError, CompareOptions, InputSet, ModelBytes, OutputReport, Report};
use chipfit_run::engine::{Engine, OnnxRuntime, Places, RtenEngine};
use chipfit_run::random::RandomError;
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::bounds;
use crate::failure::{ProofFailed, usage};
use crate::options::{self, InputFlags};
use crate::picture::{self, PictureFlags};
use crate::terminal::{self, Table, by, note};

/// Run two models on the same inputs and show how far their outputs differ.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// The model that is taken as right
    model: PathBuf,
    /// The model that is compared with it
    other: PathBuf,
    /// What runs them [default: rten, or ONNX Runtime where rten cannot]
    #[arg(long, value_enum)]
    runtime: Option<Runtime>,
    /// The ONNX Runtime library [default: that of a Python installation]
    #[arg(long, value_name = "LIBRARY")]
    onnxruntime: Option<PathBuf>,
    /// How many random inputs (where no picture is given)
    #[arg(long = "inputs", value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    runs: u16,
    #[command(flatten)]
    inputs: InputFlags,
    #[command(flatten)]
    pictures: PictureFlags,
    /// Seed of the random inputs
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Exit with 3 where an output differs by more than this
    #[arg(long, value_name = "X")]
    max_abs: Option<f64>,
    /// Exit with 3 where an output differs by more than this part of its largest absolute value
    #[arg(long, value_name = "X")]
    max_rel: Option<f64>,
    /// Exit with 3 where an integer output differs by more steps
    #[arg(long, value_name = "N")]
    max_steps: Option<u64>,
    /// Exit with 3 where the structural similarity of an image output is lower
    #[arg(long, value_name = "X")]
    min_ssim: Option<f64>,
    /// Print one JSON document on standard output
    #[arg(long)]
    pub(crate) json: bool,
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
    other: String,
    runtime: &'a str,
    caveats: &'a [String],
    seed: u64,
    inputs: &'a [String],
    outputs: Vec<OutputEntry<'a>>,
    error: Option<&'a str>,
}

/// One output, its worst values over all inputs, and every run.
#[derive(Serialize)]
pub(crate) struct OutputEntry<'a> {
    name: &'a str,
    dtype: &'static str,
    max_abs: f64,
    max_rel: f64,
    max_steps: Option<u64>,
    differing: usize,
    psnr: f64,
    ssim: Option<f64>,
    runs: Vec<RunEntry<'a>>,
}

/// One output on one set of inputs.
#[derive(Serialize)]
struct RunEntry<'a> {
    dims: &'a [usize],
    elements: usize,
    differing: usize,
    max_abs: f64,
    max_rel: f64,
    max_steps: Option<u64>,
    mean_abs: f64,
    rmse: f64,
    psnr: f64,
    ssim: Option<f64>,
}

/// Runs the subcommand.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let shapes = arguments.inputs.shapes()?;
    let model = options::open(&arguments.model)?;
    let other = options::open(&arguments.other)?;
    let inputs = if arguments.pictures.files.is_empty() {
        compare::random_inputs(&model, &shapes, arguments.seed, usize::from(arguments.runs)).map_err(input_error)?
    } else {
        picture::input_sets(&model, &shapes, &arguments.pictures, arguments.seed)?
    };
    // The shapes of the inputs as they are now: a picture may have set some.
    for set in &inputs {
        let dims = set.tensors.iter().map(|(name, tensor)| (name.clone(), tensor.dims().to_vec())).collect();
        let refused = [(&model, &arguments.model), (&other, &arguments.other)]
            .into_iter()
            .find_map(|(model, path)| Some((bounds::objection(model, &dims, None)?, path)));
        if let Some((why, path)) = refused {
            bail!("'{}' is not run: {why}", path.display());
        }
    }
    drop((model, other));
    let (first, second) = (options::bytes_of(&arguments.model)?, options::bytes_of(&arguments.other)?);
    let report = run_in(arguments, &first, &second, &inputs)?;

    let exceeded = exceeded(arguments, &report);
    let document = Document {
        command: std::env::args().collect(),
        model: arguments.model.display().to_string(),
        other: arguments.other.display().to_string(),
        runtime: &report.engine,
        caveats: &report.caveats,
        seed: arguments.seed,
        inputs: &report.inputs,
        outputs: report.outputs.iter().map(OutputEntry::of).collect(),
        error: exceeded.as_deref(),
    };
    let json = format!("{}\n", serde_json::to_string_pretty(&document)?);
    if !arguments.json {
        terminal::print(&text(&report))?;
    } else if exceeded.is_none() {
        terminal::print(&json)?;
    }
    match exceeded {
        Some(what) => Err(ProofFailed { what, document: Some(json) }.into()),
        None => Ok(()),
    }
}

/// Runs both models in the runtime that was asked for, or in the first that can.
fn run_in(
    arguments: &Arguments,
    first: &ModelBytes<'_>,
    second: &ModelBytes<'_>,
    inputs: &[InputSet],
) -> Result<Report> {
    let both = |engine: &dyn Engine| compare::compare(engine, first, second, inputs, &CompareOptions::default());
    if arguments.runtime != Some(Runtime::Onnxruntime) {
        match both(&RtenEngine::default()) {
            Ok(report) => return Ok(report),
            Err(CompareError::Engine { which, source }) if arguments.runtime.is_none() => {
                note(&format!("{which} model: {}", terminal::printable(&source.to_string())));
                note("trying ONNX Runtime instead");
            }
            Err(other) => return Err(other.into()),
        }
    }
    Ok(both(&onnxruntime(arguments.onnxruntime.as_deref())?)?)
}

/// ONNX Runtime, from `--onnxruntime` or from where the environment has it.
pub(crate) fn onnxruntime(library: Option<&Path>) -> Result<OnnxRuntime> {
    let places = Places { library: library.map(Path::to_owned), ..Places::from_environment() };
    OnnxRuntime::find(&places).context("--onnxruntime names its library")
}

/// `--input` is at fault where it contradicts the model or is missing.
pub(crate) fn input_error(error: RandomError) -> anyhow::Error {
    match error {
        RandomError::NoSuchInput { .. } | RandomError::Contradiction { .. } => usage(format!("--input: {error}")),
        other => other.into(),
    }
}

/// The first threshold that an output breaks, in words.
fn exceeded(arguments: &Arguments, report: &Report) -> Option<String> {
    // A value that is no number breaks every threshold.
    let above = |value: f64, limit: Option<f64>| limit.filter(|&limit| value.is_nan() || value > limit);
    let of = |output: &OutputReport| {
        let name = terminal::printable(&output.name);
        if let Some(limit) = above(output.max_abs(), arguments.max_abs) {
            return Some(format!("output '{name}' differs by {:e}, --max-abs is {limit:e}", output.max_abs()));
        }
        if let Some(limit) = above(output.max_rel(), arguments.max_rel) {
            return Some(format!(
                "output '{name}' differs by {:e} of its maximum, --max-rel is {limit:e}",
                output.max_rel()
            ));
        }
        let steps = output.max_steps().zip(arguments.max_steps).filter(|(steps, limit)| *steps > *limit);
        if let Some((steps, limit)) = steps {
            return Some(format!("output '{name}' differs by {steps} steps, --max-steps is {limit}"));
        }
        let ssim = output.min_ssim().zip(arguments.min_ssim).filter(|(ssim, limit)| ssim.is_nan() || ssim < limit);
        ssim.map(|(ssim, limit)| format!("output '{name}' has an SSIM of {ssim}, --min-ssim is {limit}"))
    };
    report.outputs.iter().find_map(of)
}

impl<'a> OutputEntry<'a> {
    /// Of one output's report.
    pub(crate) fn of(output: &'a OutputReport) -> Self {
        let run = |run: &'a compare::OutputRun| RunEntry {
            dims: &run.dims,
            elements: run.difference.elements,
            differing: run.difference.differing,
            max_abs: run.difference.max_abs,
            max_rel: run.difference.max_rel,
            max_steps: run.difference.max_steps,
            mean_abs: run.difference.mean_abs,
            rmse: run.difference.rmse,
            psnr: run.difference.psnr,
            ssim: run.ssim,
        };
        Self {
            name: &output.name,
            dtype: output.dtype,
            max_abs: output.max_abs(),
            max_rel: output.max_rel(),
            max_steps: output.max_steps(),
            differing: output.differing(),
            psnr: output.min_psnr(),
            ssim: output.min_ssim(),
            runs: output.runs.iter().map(run).collect(),
        }
    }
}

/// The report for people.
fn text(report: &Report) -> String {
    let n_inputs = report.inputs.len();
    let mut text = format!("{} on {n_inputs} input{}: ", report.engine, if n_inputs == 1 { "" } else { "s" });
    text.push_str(&terminal::printable(&report.inputs.join(", ")));
    text.push('\n');
    text.push_str(&differences(&report.outputs));
    for caveat in &report.caveats {
        text.push_str(&format!("note: {}\n", terminal::printable(caveat)));
    }
    text
}

/// The table of the outputs' differences.
pub(crate) fn differences(outputs: &[OutputReport]) -> String {
    let mut table = Table::new(&[
        "output",
        "type",
        "shape",
        ">max abs",
        ">max rel",
        ">max steps",
        ">differing",
        ">PSNR dB",
        ">SSIM",
    ]);
    for output in outputs {
        let elements: usize = output.runs.iter().map(|r| r.difference.elements).sum();
        table.row(vec![
            output.name.clone(),
            output.dtype.to_owned(),
            output.runs.first().map_or("-".to_owned(), |r| by(&r.dims)),
            format!("{:.3e}", output.max_abs()),
            format!("{:.3e}", output.max_rel()),
            output.max_steps().map_or("-".to_owned(), |s| s.to_string()),
            format!("{} of {elements}", output.differing()),
            format!("{:.1}", output.min_psnr()),
            output.min_ssim().map_or("-".to_owned(), |s| format!("{s:.6}")),
        ]);
    }
    table.render()
}
