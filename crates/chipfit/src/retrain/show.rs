//! What a finished run says: `summary.json`, and the same for a person.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use chipfit_agent::LinkReport;
use serde::{Deserialize, Serialize};

use super::Ending;
use super::bench::Bench;
use super::folder::{Folder, Line, Manifest};
use super::measure::Measured;
use crate::terminal::Table;

/// The accuracies of a run, by their names in `summary.json`, in reading order.
pub(crate) const ACCURACIES: [(&str, &str); 8] = [
    ("before_fault_free", "before, fault-free"),
    ("before_faulty", "before, faulty"),
    ("reference_fault_free", "reference, fault-free (C)"),
    ("reference_faulty", "reference, faulty (B)"),
    ("narrowed_fault_free", "narrow reference, fault-free"),
    ("narrowed_faulty", "narrow reference, faulty"),
    ("after_fault_free", "after, fault-free"),
    ("after_faulty", "after, faulty (A)"),
];

/// `summary.json`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Summary {
    pub(crate) command: Vec<String>,
    pub(crate) run: Manifest,
    /// What executed, in its own words.
    pub(crate) processor: String,
    /// `before_faulty`, `before_fault_free`, `after_faulty`, `after_fault_free`, and with a reference
    /// `reference_faulty` (B), `reference_fault_free` (C); `narrowed_*` are the reference with narrowed ranges.
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

/// Bytes and time of the links in the retraining of this session; all devices together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Wire {
    /// `increments` or `straightforward`.
    pub(crate) mode: String,
    /// Forward passes.
    pub(crate) passes: u64,
    /// At the socket, a pass: TLS, frames, pictures and everything else included.
    pub(crate) down_per_pass: f64,
    pub(crate) up_per_pass: f64,
    /// Updates of weights, a pass; and what they would be as they are.
    pub(crate) weights_down_per_pass: f64,
    pub(crate) weights_raw_per_pass: f64,
    /// Activations, a pass; and what they would be as they are.
    pub(crate) activations_up_per_pass: f64,
    pub(crate) activations_raw_per_pass: f64,
    /// The entropy bound in bytes, a pass: `sum over tensors of n * H0(observed - predicted) / 8`; only with increments.
    pub(crate) activations_bound_per_pass: Option<f64>,
    /// Activations that the prediction missed, a picture.
    pub(crate) missed_per_picture: f64,
    /// Share of passes that needed a second round.
    pub(crate) second_rounds: f64,
    /// Seconds of the devices, of the link (waiting beyond the devices' work), of prediction and coding here.
    pub(crate) device_s: f64,
    pub(crate) wire_s: f64,
    pub(crate) coding_s: f64,
    pub(crate) reconnects: u64,
    pub(crate) hangs: u64,
    pub(crate) crashes: u64,
}

impl Wire {
    fn new(mode: &str, link: &LinkReport) -> Self {
        let passes = link.forwards.max(1) as f64;
        let each = |bytes: u64| bytes as f64 / passes;
        Self {
            mode: mode.to_owned(),
            passes: link.forwards,
            down_per_pass: each(link.wire_down_bytes),
            up_per_pass: each(link.wire_up_bytes),
            weights_down_per_pass: each(link.weights_down_bytes),
            weights_raw_per_pass: each(link.weights_raw_bytes),
            activations_up_per_pass: each(link.activations_up_bytes),
            activations_raw_per_pass: each(link.activations_raw_bytes),
            activations_bound_per_pass: (link.entropy_up_bits > 0.0).then(|| link.entropy_up_bits / 8.0 / passes),
            missed_per_picture: link.missed_values as f64 / link.pictures.max(1) as f64,
            second_rounds: link.second_rounds as f64 / passes,
            device_s: link.device_seconds,
            wire_s: link.wire_seconds,
            coding_s: link.server_seconds,
            reconnects: link.reconnects,
            hangs: link.hangs,
            crashes: link.crashes,
        }
    }

    /// Terms and values, for the page and the terminal.
    pub(super) fn rows(&self) -> Vec<[String; 2]> {
        let row = |what: &str, value: String| [what.to_owned(), value];
        let of = |bytes: f64, raw: f64| match bytes > 0.0 && raw > 0.0 {
            true => format!("{bytes:.0} bytes; {raw:.0} raw, {:.1} times as many", raw / bytes),
            false => format!("{bytes:.0} bytes"),
        };
        let mut rows = vec![
            row("mode", self.mode.clone()),
            row("forward passes", self.passes.to_string()),
            row("down a pass, at the socket", format!("{:.0} bytes", self.down_per_pass)),
            row("up a pass, at the socket", format!("{:.0} bytes", self.up_per_pass)),
            row("weights down a pass", of(self.weights_down_per_pass, self.weights_raw_per_pass)),
            row("activations up a pass", of(self.activations_up_per_pass, self.activations_raw_per_pass)),
        ];
        if let Some(bound) = self.activations_bound_per_pass {
            let ratio = self.activations_up_per_pass / bound.max(f64::MIN_POSITIVE);
            rows.push(row(
                "entropy of the new errors a pass",
                format!("{bound:.0} bytes; {ratio:.2} times that was sent"),
            ));
            rows.push(row("activations missed by the prediction", format!("{:.1} a picture", self.missed_per_picture)));
            rows.push(row("passes with a second round", format!("{:.2} %", 100.0 * self.second_rounds)));
        }
        rows.push(row(
            "time",
            format!(
                "devices {:.1} s, link {:.1} s, prediction and coding here {:.1} s",
                self.device_s, self.wire_s, self.coding_s
            ),
        ));
        rows.push(row(
            "lost",
            format!("{} sessions, {} hung processors, {} that ended", self.reconnects, self.hangs, self.crashes),
        ));
        rows
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
    /// Against the reference with narrow ranges in place of B and C: what training with the errors adds to narrowing.
    pub(crate) beyond_narrowing: Option<f64>,
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
    /// Of the retraining in this session, and its steps.
    pub(crate) retraining_s: f64,
    pub(crate) retraining_steps: u64,
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
                retraining_steps: ending.steps,
                processor_s: sum(|line| line.device_s),
                server_s: sum(|line| line.server_s),
            },
            hashes: Hashes {
                weights: ending.outcome.weights_sha256.clone(),
                optimizer: ending.outcome.optimizer_sha256.clone(),
            },
            strikes_per_picture: strikes_per_picture(&folder.manifest, &history),
            wire: ending.link.as_ref().map(|link| Wire::new(bench.wire(), link)),
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
        beyond_narrowing: of("narrowed_faulty")
            .zip(of("narrowed_fault_free"))
            .and_then(|(faulty, clean)| share(top1(a), top1(faulty), top1(clean))),
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
        if recovery.beyond_narrowing.is_some() {
            let share = percent(recovery.beyond_narrowing);
            out.push_str(&format!("           {share} against the reference with narrow ranges\n"));
        }
    }
    if let Some(wire) = &summary.wire {
        let mut rows = Table::new(&["wire", ""]);
        wire.rows().into_iter().for_each(|row| rows.row(row.to_vec()));
        out.push_str(&rows.render());
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
