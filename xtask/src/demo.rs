//! What a newcomer sees first, and the measurements behind docs/benchmarks.md.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;

use crate::Length;
use crate::setup::{data, models, torch, venv};
use crate::shell::{Repo, run};

/// Rewrites a real text detector, proves it and times it in ONNX Runtime; then quantises a classifier and strikes it; then
/// retrains one through a faulty device.
pub(crate) fn run_demo(repo: &Repo) -> Result<()> {
    let python = venv(repo, Length::Normal)?;
    let data = data(repo)?;
    let chipfit = build(repo)?;
    let folder = repo.cache("demo");
    fs::create_dir_all(&folder)?;
    for script in ["benches/demo.py", "benches/demo_faults.py", "benches/demo_retrain.py"] {
        let mut command = repo.command(&python, &[script]);
        // Tuning finds ONNX Runtime's library through this interpreter.
        command.arg(&folder).env("CHIPFIT", &chipfit).env("CHIPFIT_DATA", &data).env("CHIPFIT_PYTHON", &python);
        run(&mut command)?;
    }
    Ok(())
}

/// Measures; the arguments go to the script.
pub(crate) fn bench(repo: &Repo, arguments: &[&str]) -> Result<()> {
    let python = venv(repo, Length::Long)?;
    let data = models(repo)?;
    let chipfit = build(repo)?;
    let mut command = repo.command(python, &["benches/deconv.py"]);
    run(command.args(arguments).env("CHIPFIT", chipfit).env("CHIPFIT_DATA", data))
}

/// Measures the simulated processor; the arguments go to the script.
pub(crate) fn bench_processor(repo: &Repo, arguments: &[&str]) -> Result<()> {
    let python = torch(repo)?;
    let chipfit = build(repo)?;
    run(&mut repo.cargo(&["build", "--release", "--quiet", "--package", "chipfit-npu", "--example", "worker"]))?;
    let mut command = repo.command(python, &["benches/processor.py"]);
    command.arg("--worker").arg(repo.built("release/examples/worker"));
    run(command.args(arguments).env("CHIPFIT", chipfit))
}

/// Measures training passes; the arguments go to the script.
pub(crate) fn bench_training(repo: &Repo, arguments: &[&str]) -> Result<()> {
    let python = torch(repo)?;
    let chipfit = build(repo)?;
    run(&mut repo.cargo(&[
        "build",
        "--release",
        "--quiet",
        "--package",
        "chipfit-train",
        "--example",
        "train_worker",
    ]))?;
    let mut command = repo.command(python, &["benches/training.py"]);
    command.arg("--worker").arg(repo.built("release/examples/train_worker"));
    run(command.args(arguments).env("CHIPFIT", chipfit))
}

/// The command, as users get it.
fn build(repo: &Repo) -> Result<PathBuf> {
    run(&mut repo.cargo(&["build", "--release", "--quiet", "--package", "chipfit"]))?;
    Ok(repo.built("release/chipfit"))
}
