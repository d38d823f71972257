//! Everything that must hold, in the order it fails: format, lints, docs, crate arrows, generated code, tests, oracles.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::Length;
use crate::setup::{data, torch, venv};
use crate::shell::{Repo, output, run, works};

/// Our crates and which of ours each may link, directly or not (ARCHITECTURE.md). A crate that is not here fails.
const ARROWS: &[(&str, &[&str])] = &[
    ("chipfit-model", &[]),
    ("chipfit-data", &[]),
    ("chipfit-kernels", &[]),
    ("chipfit-report", &[]),
    ("chipfit-deconv", &["chipfit-model"]),
    ("chipfit-run", &["chipfit-model"]),
    ("chipfit-quantize", &["chipfit-model", "chipfit-run"]),
    ("chipfit-npu", &["chipfit-model", "chipfit-deconv", "chipfit-kernels", "chipfit-run"]),
    ("chipfit-campaign", &["chipfit-model", "chipfit-deconv", "chipfit-kernels", "chipfit-run", "chipfit-npu"]),
    ("chipfit-wire", &[]),
    ("chipfit-train", &["chipfit-model", "chipfit-deconv", "chipfit-kernels", "chipfit-run", "chipfit-npu"]),
    (
        "chipfit-agent",
        &["chipfit-model", "chipfit-deconv", "chipfit-kernels", "chipfit-run", "chipfit-npu", "chipfit-wire"],
    ),
    (
        "chipfit",
        &[
            "chipfit-model",
            "chipfit-data",
            "chipfit-kernels",
            "chipfit-report",
            "chipfit-deconv",
            "chipfit-run",
            "chipfit-quantize",
            "chipfit-npu",
            "chipfit-campaign",
            "chipfit-wire",
            "chipfit-train",
            "chipfit-agent",
        ],
    ),
];

/// The oracle scripts of tests/python; each prints `N passed, N failed` and exits with 1 when one failed.
const ORACLES: &[&str] = &[
    "node_tests",
    "opsets",
    "surroundings",
    "quantised",
    "real_models",
    "quantize_int8",
    "bit_identity",
    "fault_oracle",
];

/// Compiles the damage in that the mutation test does to written models, behind a flag; releases are made without it.
const MUTANTS: &str = "chipfit/sabotage";

/// Runs all checks; the first that fails ends it.
pub(crate) fn test(repo: &Repo, length: Length) -> Result<()> {
    run(&mut repo.cargo(&["fmt", "--all", "--check"])).context("run `cargo fmt --all`")?;
    run(&mut repo.cargo(&[
        "clippy",
        "--workspace",
        "--all-targets",
        "--features",
        MUTANTS,
        "--quiet",
        "--",
        "-D",
        "warnings",
    ]))?;
    run(repo.cargo(&["doc", "--workspace", "--no-deps", "--quiet"]).env("RUSTDOCFLAGS", "-D warnings"))?;
    arrows(repo)?;
    generate(repo, &["--check"])?;

    let surroundings = Surroundings::new(repo, length)?;
    surroundings.rust_tests(repo)?;
    // The oracles take the binary of the tests: a release build would cost more time than it saves.
    run(&mut repo.cargo(&["build", "--workspace", "--features", MUTANTS]))?;
    run(&mut repo.cargo(&["build", "--package", "chipfit-npu", "--example", "dump"]))?;
    let mut failed = Vec::new();
    for &script in ORACLES {
        let mut command = repo.command(&surroundings.oracle_python, &[&format!("tests/python/{script}.py")]);
        if length == Length::Long {
            command.arg("--long");
        }
        command.env("CHIPFIT_DUMP", repo.built("debug/examples/dump"));
        if run(surroundings.give_to(&mut command).env("CHIPFIT", repo.built("debug/chipfit"))).is_err() {
            failed.push(script);
        }
    }
    if length == Length::Long && gradients(repo).is_err() {
        failed.push("gradients");
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

/// Gradients against PyTorch, which is large: on long runs only. The normal tests read `tests/golden`.
fn gradients(repo: &Repo) -> Result<()> {
    let python = torch(repo)?;
    run(&mut repo.cargo(&["build", "--package", "chipfit-train", "--examples"]))?;
    let mut command = repo.command(&python, &["tests/python/gradients.py"]);
    command.env("CHIPFIT", repo.built("debug/chipfit")).env("CHIPFIT_TRAIN_EXAMPLES", repo.built("debug/examples"));
    run(&mut command)
}

/// Regenerates the ONNX schema's code, or with `--check` tells whether it is stale.
pub(crate) fn generate(repo: &Repo, flags: &[&str]) -> Result<()> {
    let model = repo.path("crates/chipfit-model");
    let mut command = repo.cargo(&["run", "--quiet", "--package", "onnx-gen", "--"]);
    // What it prints is meant for build scripts.
    run(command.arg(model.join("proto")).arg(model.join("src/generated")).args(flags).stdout(Stdio::null()))
}

/// Fails when a crate links one of ours that it must not.
fn arrows(repo: &Repo) -> Result<()> {
    let mut faults = Vec::new();
    for entry in fs::read_dir(repo.path("crates"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let Some((_, allowed)) = ARROWS.iter().find(|(known, _)| *known == name) else {
            faults.push(format!("{name}: not in the table of xtask/src/checks.rs"));
            continue;
        };
        let tree = ["tree", "--edges", "normal,build", "--prefix", "none", "--format", "{p}", "--package", &name];
        for linked in output(&mut repo.cargo(&tree))?.lines().filter_map(|line| line.split_whitespace().next()) {
            if linked.starts_with("chipfit") && linked != name && !allowed.contains(&linked) {
                faults.push(format!("{name} must not link {linked}"));
            }
        }
    }
    if !faults.is_empty() {
        faults.sort();
        faults.dedup();
        bail!("crate arrows: {}", faults.join("; "));
    }
    Ok(())
}

/// What tests learn through environment variables.
struct Surroundings {
    /// Has onnx, onnxruntime, numpy and pillow.
    python: PathBuf,
    /// Runs the oracle scripts; on long runs it has OpenVINO, too.
    oracle_python: PathBuf,
    data: PathBuf,
    shared: PathBuf,
    cases: &'static str,
}

impl Surroundings {
    fn new(repo: &Repo, length: Length) -> Result<Self> {
        let python = venv(repo, Length::Normal)?;
        let shared = std::env::var_os("CHIPFIT_SHARED").map_or_else(|| repo.path("../shared"), PathBuf::from);
        if !shared.join("models").is_dir() {
            eprintln!(
                "!! no shared folder beside the repository: tests on its models are SKIPPED (set CHIPFIT_SHARED)"
            );
        }
        Ok(Self {
            oracle_python: venv(repo, length)?,
            python,
            data: data(repo)?,
            shared,
            cases: if length == Length::Long { "20000" } else { "2000" },
        })
    }

    fn give_to<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        let testdata = self.data.join("onnx-testdata");
        command
            .env("CHIPFIT_PYTHON", &self.python)
            .env("CHIPFIT_ONNX_NODE_TESTS", testdata.join("node"))
            .env("CHIPFIT_ONNX_TESTDATA", testdata)
            .env("CHIPFIT_DATA", &self.data)
            .env("CHIPFIT_SHARED", &self.shared)
            .env("CHIPFIT_CASES", self.cases)
    }

    /// nextest where it is installed, else cargo's own runner; then the examples in the docs.
    fn rust_tests(&self, repo: &Repo) -> Result<()> {
        if works(&mut repo.cargo(&["nextest", "--version"])) {
            run(self.give_to(&mut repo.cargo(&[
                "nextest",
                "run",
                "--workspace",
                "--features",
                MUTANTS,
                "--no-fail-fast",
            ])))?;
            return run(self.give_to(&mut repo.cargo(&["test", "--workspace", "--doc"])));
        }
        run(self.give_to(&mut repo.cargo(&["test", "--workspace", "--features", MUTANTS, "--no-fail-fast"])))
    }
}
