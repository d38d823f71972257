//! The page of a retraining run: accuracies before and after, the course of the loss, what went over the wire.
//!
//! Only arranges what `summary.json` and `history.jsonl` say.

use chipfit_report::{
    Bar, Bars, Block, Caption, Curve, Definition, Point, Reference, Report, Section, Series, Table, Unit, XScale,
};

use super::folder::{Folder, Line};
use super::measure::Measured;
use super::show::{ACCURACIES, Summary};
use crate::inject::command_line;

/// Points of a curve over the steps.
const POINTS: usize = 60;

/// The page.
pub(crate) fn page(folder: &Folder, summary: &Summary, history: &[Line]) -> Report {
    let mut sections = vec![
        Section { title: "Run".to_owned(), blocks: vec![about(summary)] },
        Section { title: "Accuracy".to_owned(), blocks: accuracy(summary) },
        Section { title: "Training".to_owned(), blocks: training(summary, history) },
    ];
    if let Some(wire) = &summary.wire {
        let items = wire.rows().into_iter().map(|[term, text]| Definition { term, text }).collect();
        sections.push(Section { title: "Wire".to_owned(), blocks: vec![Block::Definitions { items }] });
    }
    Report {
        title: "Retraining".to_owned(),
        command: command_line(&summary.command),
        seed: folder.manifest.config.seed,
        version: folder.manifest.version.clone(),
        sections,
    }
}

fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

fn about(summary: &Summary) -> Block {
    let item = |term: &str, text: String| Definition { term: term.to_owned(), text };
    let run = &summary.run;
    let [training, validation, test] = run.pictures;
    let mut items = vec![
        item("Model", format!("{} (SHA-256 {})", run.model, run.model_sha256)),
        item("Processor", summary.processor.clone()),
        item("Pictures", format!("{training} to train on, {validation} to validate with, {test} to test on")),
        item("Preprocessing", run.preprocessing.clone()),
        item("Steps", summary.steps.to_string()),
        item("Configuration", serde_json::to_string(&run.config).unwrap_or_default()),
        item("Weights (SHA-256)", summary.hashes.weights.clone()),
        item("Optimizer's state (SHA-256)", summary.hashes.optimizer.clone()),
        item(
            "Time",
            format!(
                "{:.1} s in the processor, {:.1} s backward and optimizer, {:.1} s for the whole command",
                summary.time.processor_s, summary.time.server_s, summary.time.total_s
            ),
        ),
    ];
    if let Some(faults) = &run.faults {
        items.push(item(
            "Faults",
            faults.lines().map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join("; "),
        ));
    }
    if let Some(plan) = &run.tmr {
        items.push(item("Triple modular redundancy", format!("{} lines of a plan file", plan.lines().count())));
    }
    Block::Definitions { items }
}

fn caption(summary: &Summary, note: &str) -> Caption {
    let line = |key: &str| match &summary.run.faults {
        None => "the processor's own".to_owned(),
        Some(faults) => {
            let found: Vec<&str> = faults.lines().map(str::trim).filter(|line| line.starts_with(key)).collect();
            if found.is_empty() { "as the faults file says".to_owned() } else { found.join("; ") }
        }
    };
    Caption {
        site: line("site"),
        rate: line("ber"),
        flips: summary.strikes_per_picture.map_or("not known".to_owned(), |flips| format!("{flips:.1} words struck")),
        note: Some(note.to_owned()),
    }
}

fn accuracy(summary: &Summary) -> Vec<Block> {
    let measured = || ACCURACIES.iter().filter_map(|(name, what)| Some((*what, summary.accuracy.get(*name)?)));
    let bars = |title: &str, of: fn(&Measured) -> chipfit_campaign::statistics::Share| {
        Block::Bars(Bars {
            title: title.to_owned(),
            value_title: "accuracy".to_owned(),
            name_title: "model and processor".to_owned(),
            unit: Unit::Percent,
            bars: measured()
                .map(|(what, found)| {
                    let share = of(found);
                    Bar { name: what.to_owned(), value: share.value, low: share.low, high: share.high, count: share.of }
                })
                .collect(),
            caption: caption(summary, "Wilson intervals over pictures and draws of the errors."),
        })
    };
    let words = "Faulty is on the processor of the run, fault-free on its twin without errors. The reference was retrained \
                 equally long without errors.";
    let mut blocks = vec![
        Block::Text { text: words.to_owned() },
        bars("Top-1", |found| found.top1),
        bars("Top-5", |found| found.top5),
    ];
    if let Some(recovery) = &summary.recovery {
        let share = |share: Option<f64>| share.map_or("-".to_owned(), percent);
        blocks.push(Block::Table(Table {
            title: "Recovery (A - B) / (C - B)".to_owned(),
            columns: ["what", "value"].map(str::to_owned).to_vec(),
            rows: vec![
                vec!["A: retrained on the processor, run there".to_owned(), percent(recovery.a)],
                vec!["B: retrained without errors, run on the processor".to_owned(), percent(recovery.b)],
                vec!["C: retrained and run without errors".to_owned(), percent(recovery.c)],
                vec!["recovery, top-1".to_owned(), share(recovery.top1)],
                vec!["recovery, top-5".to_owned(), share(recovery.top5)],
                vec![
                    "recovery against the reference with narrow ranges, top-1".to_owned(),
                    share(recovery.beyond_narrowing),
                ],
                vec!["recovery against the model as it came, top-1".to_owned(), share(recovery.against_original)],
            ],
        }));
    }
    blocks
}

fn training(summary: &Summary, history: &[Line]) -> Vec<Block> {
    let mut blocks = vec![
        curve(summary, history, "Loss", "mean loss", Unit::Number, |line| line.loss, Vec::new()),
        curve(summary, history, "Top-1 as trained", "top-1", Unit::Percent, |line| line.top1, Vec::new()),
        curve(
            summary,
            history,
            "Changed constants a step",
            "constants",
            Unit::Number,
            |line| line.changed as f64,
            Vec::new(),
        ),
    ];
    if history.iter().any(|line| line.bytes_up > 0) {
        let raw =
            summary.wire.as_ref().map(|wire| Reference { name: "raw".to_owned(), y: wire.activations_raw_per_pass });
        blocks.push(curve(
            summary,
            history,
            "Bytes from the device a step",
            "bytes",
            Unit::Number,
            |line| line.bytes_up as f64,
            raw.into_iter().collect(),
        ));
    }
    let rows = summary.epochs.iter().enumerate().map(|(number, epoch)| {
        vec![
            (number + 1).to_string(),
            format!("{:.4}", epoch.loss),
            percent(epoch.training_top1),
            epoch.validation_top1.map_or("-".to_owned(), percent),
        ]
    });
    blocks.push(Block::Table(Table {
        title: "Epochs".to_owned(),
        columns: ["epoch", "loss", "top-1 as trained", "validation top-1"].map(str::to_owned).to_vec(),
        rows: rows.collect(),
    }));
    blocks
}

/// Means of at most [`POINTS`] runs of steps.
fn curve(
    summary: &Summary,
    history: &[Line],
    title: &str,
    y_title: &str,
    unit: Unit,
    of: fn(&Line) -> f64,
    references: Vec<Reference>,
) -> Block {
    let points = history
        .chunks(history.len().div_ceil(POINTS).max(1))
        .map(|lines| {
            let mean = |of: &dyn Fn(&Line) -> f64| lines.iter().map(of).sum::<f64>() / lines.len() as f64;
            Point { x: mean(&|line| line.step as f64), y: mean(&of), low: None, high: None }
        })
        .collect();
    Block::Curve(Curve {
        title: title.to_owned(),
        x_title: "step".to_owned(),
        y_title: y_title.to_owned(),
        x_scale: XScale::Linear,
        y_unit: unit,
        y_range: None,
        series: vec![Series { name: title.to_owned(), points }],
        references,
        caption: caption(summary, "Means over neighbouring steps."),
    })
}
