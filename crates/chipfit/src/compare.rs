//! `chipfit compare`: two models on the same inputs.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use crate::options::InputFlags;
use crate::picture::PictureFlags;

/// Run two models on the same inputs and show how far their outputs differ.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// The model that is taken as right
    model: PathBuf,
    /// The model that is compared with it
    other: PathBuf,
    /// What runs them
    #[arg(long, value_enum, default_value = "rten")]
    runtime: Runtime,
    /// The ONNX Runtime library [default: that of a Python installation]
    #[arg(long, value_name = "LIBRARY")]
    onnxruntime: Option<PathBuf>,
    /// How many random inputs (where no picture is given)
    #[arg(long = "inputs", value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    runs: u32,
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
    /// Exit with 3 where the structural similarity of image outputs is lower
    #[arg(long, value_name = "X")]
    min_ssim: Option<f64>,
    /// Print one JSON document on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

/// `--runtime`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Runtime {
    /// The embedded engine; models that it cannot run go to ONNX Runtime where there is one
    Rten,
    /// ONNX Runtime, loaded from its library
    Onnxruntime,
}

/// Runs the subcommand.
pub(crate) fn run(_arguments: &Arguments) -> Result<()> {
    bail!("this build cannot compare yet")
}
