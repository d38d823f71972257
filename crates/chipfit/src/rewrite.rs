//! `chipfit rewrite`: every ConvTranspose becomes standard convolutions, proven equal before the file is kept.
//!
//! Model -> plan -> patched copy -> bytes -> proof on the original and on those very bytes, both read afresh ->
//! the same bytes into a temporary file -> renamed. Whatever fails on the way, no output file is left.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use bytes::Bytes;
use chipfit_deconv::{Rewrite, RewriteError};
use chipfit_model::onnx::Overwrite;
use chipfit_model::summary::{Summary, summarize};
use chipfit_model::{Index, Model, shape};
use chipfit_run::compare::ModelBytes;
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::failure::{ProofFailed, usage};
use crate::options::{self, InputFlags, PlanFlags};
use crate::proof::{self, Proof, Settings};
use crate::report::{self, NodeEntry, Totals};
use crate::terminal::{self, count, note};
use crate::{compare, tune};

/// Rewrite every ConvTranspose as standard convolutions and prove the result equal before keeping it.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// The ONNX model
    model: PathBuf,
    /// The file to write; never overwritten without --force
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Replace the output file where it exists
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    plan: PlanFlags,
    /// Measure the candidate forms of every node on this machine and keep the fastest
    #[arg(long, value_enum, value_name = "RUNTIME", conflicts_with = "form")]
    tune: Option<TuneRuntime>,
    /// The ONNX Runtime library for --tune [default: that of a Python installation]
    #[arg(long, value_name = "LIBRARY")]
    onnxruntime: Option<PathBuf>,
    #[command(flatten)]
    inputs: InputFlags,
    /// Random inputs for the proof of each node
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    verify: u32,
    /// Keep the output unproven
    #[arg(long, conflicts_with = "verify")]
    no_verify: bool,
    /// Seed of the proof's random inputs
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print one JSON document on standard output
    #[arg(long)]
    pub(crate) json: bool,
    /// Damage the written model before the proof (test aid)
    #[cfg(feature = "sabotage")]
    #[arg(long, hide = true, value_enum)]
    sabotage: Option<crate::sabotage::Kind>,
}

/// `--tune`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum TuneRuntime {
    /// ONNX Runtime, loaded from its library
    Onnxruntime,
}

/// The document that `--json` prints.
#[derive(Serialize)]
struct Document<'a> {
    command: Vec<String>,
    versions: proof::Versions,
    model: String,
    output: Option<String>,
    seed: u64,
    nodes: &'a [NodeEntry],
    macs_before: Option<u64>,
    macs_after: Option<u64>,
    deconv_macs_before: Option<u64>,
    deconv_macs_after: Option<u64>,
    deconv_macs_zero_pad: Option<u64>,
    verdict: &'static str,
    whole_model: Option<proof::WholeModelEntry<'a>>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    tuning: &'a [tune::Tuned],
    warnings: Vec<String>,
    error: Option<&'a str>,
}

/// Runs the subcommand.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let inputs = arguments.inputs.shapes()?;
    let mut options = arguments.plan.options()?;
    options::check_output(&arguments.output, arguments.force, &[])?;
    let mut model = options::open(&arguments.model)?;
    refuse_data_files(&model, &arguments.output, arguments.force)?;

    let (plan, tuned, summary) = {
        let index = Index::new(&model);
        let shapes = shape::infer(&index, &inputs).map_err(|e| usage(format!("--input: {e}")))?;
        let mut tuned = Vec::new();
        if arguments.tune == Some(TuneRuntime::Onnxruntime) {
            let engine = compare::onnxruntime(arguments.onnxruntime.as_deref())?;
            tuned = tune::measure_nodes(&engine, &index, &inputs, &options, arguments.seed)?;
            options.decided = tune::decisions(&tuned);
        }
        let plan = chipfit_deconv::plan(&index, &shapes, &options).map_err(plan_error)?;
        let summary = summarize(&index, &shapes);
        (plan, tuned, summary)
    };
    #[cfg(feature = "sabotage")]
    let original = model.proto.clone();
    model.apply(&plan.patch).with_context(|| format!("'{}'", arguments.model.display()))?;
    #[cfg(feature = "sabotage")]
    if let Some(kind) = arguments.sabotage {
        crate::sabotage::damage(&mut model.proto, &original, kind)?;
    }
    let Rewrite { patch, nodes: mut reports } = plan;
    for report in &mut reports {
        if let Some(tuned) = tuned.iter().find(|t| t.is_about(report.place)) {
            report.reason = format!("{}; {}", report.reason, tuned.reason());
        }
    }
    // From here on only the written bytes live: the file's own are let go where nothing kept reads them.
    drop(patch);
    let bytes = Bytes::from(model.to_bytes()?);
    drop(model);
    let file = ModelBytes { bytes, folder: Some(arguments.model.parent().unwrap_or(Path::new(""))) };
    let written = options::decode(&file).context("the rewritten model is not valid")?;

    let mut nodes: Vec<NodeEntry> = reports.iter().map(NodeEntry::from).collect();
    let settings = Settings {
        inputs: arguments.verify,
        seed: arguments.seed,
        opset1_same: options.opset1_same,
        approximate: reports.iter().filter_map(|r| r.form).any(|f| !f.is_exact()),
        shapes: inputs,
    };
    let proof = match arguments.no_verify {
        true => Proof::default(),
        false => proof::prove(&options::bytes_of(&arguments.model)?, &file, &reports, &settings)?,
    };
    for (node, entry) in nodes.iter_mut().zip(&proof.nodes) {
        node.proof.clone_from(entry);
    }
    let failure = if arguments.no_verify { None } else { proof.failure(&reports) };
    if failure.is_none() {
        let overwrite = if arguments.force { Overwrite::Replace } else { Overwrite::Never };
        written.write_bytes(&file.bytes, &arguments.output, overwrite)?;
    }

    let totals = Totals::of(&nodes);
    let warnings = report::warnings(&nodes);
    let (macs_before, macs_after) = whole_macs(&summary, totals);
    let document = Document {
        command: std::env::args().collect(),
        versions: proof::versions(),
        model: arguments.model.display().to_string(),
        output: failure.is_none().then(|| arguments.output.display().to_string()),
        seed: arguments.seed,
        nodes: &nodes,
        macs_before,
        macs_after,
        deconv_macs_before: totals.before,
        deconv_macs_after: totals.after,
        deconv_macs_zero_pad: totals.zero_pad,
        verdict: proof.verdict(&reports, arguments.no_verify),
        whole_model: proof.whole_model.as_ref().map(proof::WholeModel::entry),
        tuning: &tuned,
        warnings: warnings.clone(),
        error: failure.as_deref(),
    };
    warnings.iter().for_each(|w| note(w));
    let json = format!("{}\n", serde_json::to_string_pretty(&document)?);
    if let Some(what) = failure {
        if !arguments.json {
            terminal::print(&report::deconvolutions(&nodes))?;
        }
        return Err(ProofFailed { what, document: Some(json) }.into());
    }
    if arguments.json {
        return terminal::print(&json);
    }
    terminal::print(&text(arguments, &settings, &nodes, &proof, &document))
}

/// The report for people.
fn text(
    arguments: &Arguments,
    settings: &Settings,
    nodes: &[NodeEntry],
    proof: &Proof,
    document: &Document<'_>,
) -> String {
    let mut text = report::deconvolutions(nodes);
    if let (Some(before), Some(after)) = (document.macs_before, document.macs_after) {
        text.push_str(&format!("whole model: {} MACs before, {} after\n", count(before), count(after)));
    } else if nodes.iter().any(|n| n.has_unknown_macs()) {
        text.push_str("some shapes are dynamic: --input NAME:1x3x224x224 gives them lengths in this report\n");
    }
    text.push_str(&proof.text(document.verdict, settings));
    text.push_str(&format!("wrote {}\n", terminal::printable(&arguments.output.display().to_string())));
    text
}

/// An unknown node name is the command line's fault.
pub(crate) fn plan_error(error: RewriteError) -> anyhow::Error {
    match error {
        RewriteError::NoSuchNode { .. } => usage(error.to_string()),
        other => other.into(),
    }
}

/// The whole model's multiply-accumulates before and after a rewrite; `None` where some are not known.
pub(crate) fn whole_macs(summary: &Summary, totals: Totals) -> (Option<u64>, Option<u64>) {
    let before = (summary.nodes_without_macs == 0).then_some(summary.macs);
    let after = || before?.checked_sub(totals.before?)?.checked_add(totals.after?);
    (before, after())
}

/// Refuses to write over the files that hold the model's weights.
fn refuse_data_files(model: &Model, output: &Path, force: bool) -> Result<()> {
    let folder = model.folder.clone().unwrap_or_default();
    let files: Vec<PathBuf> = model.external_files()?.into_iter().map(|f| folder.join(f)).collect();
    options::check_output(output, force, &files)
}
