//! Chores, one entry point for a person, a helper and CI: `cargo xtask help`.
//!
//! What is fetched comes from the package registries by package name, through their ordinary clients, and lands in
//! `.cache/`, which git ignores. Every fetch is idempotent and lands whole or not at all.
//! Read `setup` (what is fetched) and `checks` (what is tested) first.

#![forbid(unsafe_code)]

mod arm;
mod checks;
mod demo;
mod setup;
mod shell;

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::shell::Repo;

const HELP: &str = "\
cargo xtask CHORE

  test [--long]   everything that must hold, in the order it fails; --long adds 20,000 random settings,
                  OpenVINO and gradients beside PyTorch
  demo            fetch a real text detector, rewrite, prove and time it; quantise a classifier, strike it, write the pages
  data            fetch the real models, pictures, data sets and the ONNX node tests
  venv [--long]   make the Python environment of the oracles (onnx, onnxruntime, numpy, pillow; --long: OpenVINO)
  bench [ARG..]   measure every form in ONNX Runtime and OpenVINO, write the tables of docs/benchmarks.md
  arm             build the kernels' tests for AArch64 and run them under user-mode emulation (Debian packages, 190 MB)
  bench processor [ARG..]
                  measure the simulated processor beside ONNX Runtime, PyTorch and PyTorchFI (docs/benchmarks-processor.md)
  bench training [ARG..]
                  measure training passes beside PyTorch (docs/benchmarks-training.md)
  gen [--check]   regenerate the ONNX schema's code; --check fails when it is stale
";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let repo = Repo::find()?;
    let (chore, flags) = arguments.split_first().unwrap_or((&"help", &[]));
    match (*chore, flags) {
        ("help" | "--help" | "-h", []) => print!("{HELP}"),
        ("test", []) => checks::test(&repo, Length::Normal)?,
        ("test", ["--long"]) => checks::test(&repo, Length::Long)?,
        ("demo", []) => demo::run_demo(&repo)?,
        ("data", []) => setup::data(&repo).map(drop)?,
        ("venv", []) => setup::venv(&repo, Length::Normal).map(drop)?,
        ("venv", ["--long"]) => setup::venv(&repo, Length::Long).map(drop)?,
        ("bench", ["processor", rest @ ..]) => demo::bench_processor(&repo, rest)?,
        ("bench", ["training", rest @ ..]) => demo::bench_training(&repo, rest)?,
        ("bench", rest) => demo::bench(&repo, rest)?,
        ("arm", []) => arm::test(&repo)?,
        ("gen", []) => checks::generate(&repo, &[])?,
        ("gen", ["--check"]) => checks::generate(&repo, &["--check"])?,
        _ => bail!("no such chore: {}\n{HELP}", arguments.join(" ")),
    }
    Ok(())
}

/// How much is fetched and tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Length {
    /// What every change must pass.
    Normal,
    /// Ten times the random settings, and the tools that are heavy to install.
    Long,
}
