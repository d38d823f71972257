//! What a finished run says: `summary.json`, and the same for a person.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::Ending;
use super::bench::Bench;
use super::folder::{Folder, Line, Manifest};
use super::measure::Measured;
use crate::terminal::Table;

/// The accuracies of a run, by their names in `summary.json`, in reading order.
pub(crate) const ACCURACIES: [(&str, &str); 6] = [
    ("before_fault_free", "before, fault-free"),
    ("before_faulty", "before, on the processor"),
    ("reference_fault_free", "retrained without errors, fault-free (C)"),
    ("reference_faulty", "retrained without errors, on the processor (B)"),
    ("after_fault_free", "retrained on the processor, fault-free"),
    ("after_faulty", "retrained on the processor, there (A)"),
];

/// `summary.json`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Summary {
    pub(crate) command: Vec<String>,
    pub(crate) run: Manifest,
    /// What executed, in its own words.
    pub(crate) processor: String,
    /// `before_faulty`, `before_fault_free`, `after_faulty`, `after_fault_free`, and with a reference
    /// `reference_faulty` (B), `reference_fault_free` (C).
    pub(crate) accuracy: BTreeMap<String, Measured>,
    pub(crate) recovery: Option<Recovery>,
    pub(crate) steps: u64,
    pub(crate) epochs: Vec<EpochEntry>,
    pub(crate) time: Times,
    pub(crate) hashes: Hashes,
    /// Mean number of words struck in one picture's inference in training, where the processor knows it.
    pub(crate) strikes_per_picture: Option<f64>,
    /// What came over the wire; absent where the processor is in this process.
    pub(crate) wire: Option<Wire>,
}

/// Bytes and time of the link.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Wire {
    /// Bytes of activations that the straightforward protocol would send up in a step.
    pub(crate) raw_up_per_step: f64,
}

impl Wire {
    /// For the page.
    pub(super) fn blocks(&self) -> Vec<chipfit_report::Block> {
        Vec::new()
    }
}

/// `(A - B) / (C - B)`, docs/retraining.md.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Recovery {
    /// Retrained on the faulty processor and run there.
    pub(crate) a: f64,
    /// Retrained without errors, run on the faulty processor.
    pub(crate) b: f64,
    /// Retrained and run without errors.
    pub(crate) c: f64,
    /// C - B: what the errors cost.
    pub(crate) loss: f64,
    /// Share of it that came back; absent where the errors cost nothing.
    pub(crate) top1: Option<f64>,
    /// The same from top-5 accuracies.
    pub(crate) top5: Option<f64>,
    /// Against the model as it came in place of the reference: `(A - before faulty) / (before fault-free - before faulty)`.
    pub(crate) against_original: Option<f64>,
}

/// One epoch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct EpochEntry {
    pub(crate) loss: f64,
    /// Of the training pictures as they were seen.
    pub(crate) training_top1: f64,
    pub(crate) validation_top1: Option<f64>,
}

/// Seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Times {
    /// Of the whole command.
    pub(crate) total_s: f64,
    /// Of the retraining in this session.
    pub(crate) retraining_s: f64,
    /// In the processor (with devices: the link included), over all sessions.
    pub(crate) processor_s: f64,
    /// Backward pass, optimizer and bookkeeping, over all sessions.
    pub(crate) server_s: f64,
}

/// SHA-256 of what the run ended with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hashes {
    /// The integer weights and biases.
    pub(crate) weights: String,
    /// The optimizer's state, masters included.
    pub(crate) optimizer: String,
}

impl Summary {
    pub(super) fn new(
        folder: &Folder,
        measured: &BTreeMap<String, Measured>,
        ending: &Ending,
        bench: &mut Bench,
        total: Duration,
    ) -> Result<Self> {
        let history = folder.history()?;
        let sum = |of: fn(&Line) -> f64| history.iter().map(of).sum();
        let state = &ending.outcome.state;
        Ok(Self {
            command: std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect(),
            run: folder.manifest.clone(),
            processor: bench.processor().describe(),
            accuracy: measured.clone(),
            recovery: recovery(measured),
            steps: state.step,
            epochs: state
                .history
                .iter()
                .map(|epoch| EpochEntry {
                    loss: epoch.loss,
                    training_top1: epoch.training.top1_share(),
                    validation_top1: epoch.validation.map(|accuracy| accuracy.top1_share()),
                })
                .collect(),
            time: Times {
                total_s: total.as_secs_f64(),
                retraining_s: ending.seconds,
                processor_s: sum(|line| line.device_s),
                server_s: sum(|line| line.server_s),
            },
            hashes: Hashes {
                weights: ending.outcome.weights_sha256.clone(),
                optimizer: ending.outcome.optimizer_sha256.clone(),
            },
            strikes_per_picture: strikes_per_picture(&folder.manifest, &history),
            wire: None,
        })
    }
}

/// Of all steps at the full rate.
fn strikes_per_picture(run: &Manifest, history: &[Line]) -> Option<f64> {
    let full = history.iter().filter(|line| line.fault_scale >= 1.0);
    let (struck, steps) = full.fold((Some(0), 0u64), |(struck, steps), line| {
        (struck.zip(line.strikes).map(|(before, now)| before + now), steps + 1)
    });
    let each = run.config.batch as u64 * u64::from(run.config.draws) * u64::from(run.config.accumulate);
    struck.filter(|_| steps > 0).map(|struck| struck as f64 / (steps * each) as f64)
}

fn recovery(measured: &BTreeMap<String, Measured>) -> Option<Recovery> {
    let of = |name: &str| measured.get(name);
    let (a, b, c) = (of("after_faulty")?, of("reference_faulty")?, of("reference_fault_free")?);
    let share = |a: f64, b: f64, c: f64| (c > b).then(|| (a - b) / (c - b));
    let top1 = |of: &Measured| of.top1.value;
    let top5 = |of: &Measured| of.top5.value;
    Some(Recovery {
        a: top1(a),
        b: top1(b),
        c: top1(c),
        loss: top1(c) - top1(b),
        top1: share(top1(a), top1(b), top1(c)),
        top5: share(top5(a), top5(b), top5(c)),
        against_original: of("before_faulty")
            .zip(of("before_fault_free"))
            .and_then(|(faulty, clean)| share(top1(a), top1(faulty), top1(clean))),
    })
}

/// What a person reads.
pub(super) fn text(summary: &Summary, folder: &Folder) -> String {
    let mut table = Table::new(&["", ">top-1", ">+-", ">top-5", ">draws"]);
    for (name, what) in ACCURACIES {
        let Some(found) = summary.accuracy.get(name) else { continue };
        table.row(vec![
            what.to_owned(),
            format!("{:.2}%", 100.0 * found.top1.value),
            format!("{:.2}", 100.0 * found.top1_deviation),
            format!("{:.2}%", 100.0 * found.top5.value),
            found.draws.to_string(),
        ]);
    }
    let mut out = format!("processor  {}\n{}", summary.processor, table.render());
    if let Some(recovery) = &summary.recovery {
        let percent = |share: Option<f64>| share.map_or("?".to_owned(), |share| format!("{:.1}%", 100.0 * share));
        out.push_str(&format!(
            "recovery   {} of {:.2} points lost (A - B) / (C - B); {} against the model as it came\n",
            percent(recovery.top1),
            100.0 * recovery.loss,
            percent(recovery.against_original)
        ));
    }
    let times = &summary.time;
    out.push_str(&format!(
        "time       {:.1} s for {} steps: {:.1} s in the processor, {:.1} s here\nseed       {}\nweights    {}\nmodel      {}\n",
        times.processor_s + times.server_s,
        summary.steps,
        times.processor_s,
        times.server_s,
        summary.run.config.seed,
        summary.hashes.weights,
        folder.file("model.retrained.onnx").display(),
    ));
    out
}
