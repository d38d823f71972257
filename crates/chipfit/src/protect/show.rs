//! What `chipfit protect` prints: a table for people, or one JSON document.

use anyhow::Result;
use chipfit_npu::Program;
use chipfit_train::protect::compare::{Interval, Strategy};
use chipfit_train::protect::{Front, Planned, Validation};
use serde::Serialize;

use super::pictures::Samples;
use super::{Arguments, Done};
use crate::terminal::{self, Table};

/// The document that `--json` prints.
#[derive(Serialize)]
struct Document<'a> {
    command: Vec<String>,
    version: &'static str,
    model: String,
    processor: &'a str,
    seed: u64,
    measure: &'static str,
    vote: &'static str,
    planned_on: PicturesEntry<'a>,
    measured_on: Option<PicturesEntry<'a>>,
    plans: Vec<PlanEntry<'a>>,
    validation: Option<&'a Validation>,
    front: Option<&'a Front>,
    front_files: Vec<String>,
}

#[derive(Serialize)]
struct PicturesEntry<'a> {
    pictures: usize,
    from: &'a str,
}

#[derive(Serialize)]
struct PlanEntry<'a> {
    penalty_percent: f64,
    spent_percent: f64,
    file: String,
    layers: Vec<LayerEntry<'a>>,
    /// Plans among which the best was taken, with their mean loss on the planning pictures.
    candidates: &'a [chipfit_train::protect::plan::Candidate],
    units: Vec<UnitEntry<'a>>,
}

#[derive(Serialize)]
struct LayerEntry<'a> {
    name: &'a str,
    op_type: &'a str,
    channels: usize,
    protected: usize,
    macs: u64,
}

#[derive(Serialize)]
struct UnitEntry<'a> {
    layer: &'a str,
    channels: &'a [u32],
    macs: u64,
    influence: f64,
    influence_standard_error: f64,
    value: f64,
    is_protected: bool,
}

/// Prints what was made.
pub(super) fn done(arguments: &Arguments, program: &Program, samples: &Samples, done: &Done) -> Result<()> {
    if arguments.json {
        let document = document(arguments, program, samples, done);
        return terminal::print(&format!("{:#}\n", serde_json::to_value(&document)?));
    }
    terminal::print(&text(arguments, program, samples, done))
}

fn document<'a>(arguments: &Arguments, program: &'a Program, samples: &'a Samples, done: &'a Done) -> Document<'a> {
    let options = super::planning(arguments);
    let plans = done.plans.plans.iter().zip(&done.files);
    Document {
        command: std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect(),
        version: env!("CARGO_PKG_VERSION"),
        model: arguments.model.display().to_string(),
        processor: &done.processor,
        seed: arguments.seed,
        measure: options.measure.name(),
        vote: options.vote.name(),
        planned_on: PicturesEntry { pictures: samples.planning.len(), from: &samples.planning_from },
        measured_on: samples
            .measuring
            .as_ref()
            .zip(samples.measuring_from.as_deref())
            .map(|(sample, from)| PicturesEntry { pictures: sample.len(), from }),
        plans: plans
            .map(|(plan, file)| PlanEntry {
                penalty_percent: 100.0 * plan.asked,
                spent_percent: 100.0 * plan.penalty,
                file: file.display().to_string(),
                layers: layers(program, plan),
                candidates: &plan.candidates,
                units: units(program, plan),
            })
            .collect(),
        validation: done.plans.validation.as_ref(),
        front: done.front.as_ref(),
        front_files: done.front_files.iter().map(|file| file.display().to_string()).collect(),
    }
}

fn layers<'a>(program: &'a Program, plan: &Planned) -> Vec<LayerEntry<'a>> {
    let steps = program.steps().iter().enumerate();
    steps
        .map(|(at, step)| LayerEntry {
            name: &step.name,
            op_type: &step.op_type,
            channels: program.tensor(step.output).channels(),
            protected: plan.protection.channels(chipfit_npu::StepId(at)).iter().filter(|&&on| on).count(),
            macs: program.step_macs(step),
        })
        .filter(|layer| layer.macs > 0 || layer.protected > 0)
        .collect()
}

fn units<'a>(program: &'a Program, plan: &'a Planned) -> Vec<UnitEntry<'a>> {
    let known = &plan.vulnerabilities;
    let measured = known.influences.iter().zip(&known.values).zip(&plan.chosen);
    known
        .units
        .iter()
        .zip(measured)
        .map(|(unit, ((influence, &value), &is_protected))| UnitEntry {
            layer: program.steps().get(unit.step).map_or("", |step| &step.name),
            channels: &unit.channels,
            macs: unit.macs,
            influence: influence.mean,
            influence_standard_error: influence.standard_error,
            value,
            is_protected,
        })
        .collect()
}

fn percent(value: f64) -> String {
    format!("{:.2}%", 100.0 * value)
}

fn interval(i: Interval) -> String {
    format!("{:.2}% to {:.2}%", 100.0 * i.low, 100.0 * i.high)
}

/// What a person reads.
fn text(arguments: &Arguments, program: &Program, samples: &Samples, done: &Done) -> String {
    let mut out = format!(
        "model      {}\nprocessor  {}\nplanned    on {} pictures of {}\n",
        arguments.model.display(),
        done.processor,
        samples.planning.len(),
        samples.planning_from
    );
    if let (Some(sample), Some(from)) = (&samples.measuring, &samples.measuring_from) {
        out.push_str(&format!(
            "measured   on {} pictures of {from}, {} draws of faults each\n",
            sample.len(),
            arguments.seeds
        ));
    }
    out.push_str(&protected(program, &done.plans.plans));
    if let Some(front) = &done.front {
        out.push_str(&measured(front));
    }
    if let Some(validation) = &done.plans.validation {
        let number = |value: Option<f64>| value.map_or_else(|| "none".to_owned(), |value| format!("{value:.2}"));
        out.push_str(&format!(
            "validated  on {} parts of layers: rank correlation of foretold and measured harm {}, measured / foretold {}\n",
            validation.parts.len(),
            number(validation.rank_correlation),
            number(validation.calibration)
        ));
    }
    for file in done.files.iter().chain(&done.front_files) {
        out.push_str(&format!("wrote      {}\n", file.display()));
    }
    out
}

/// A line each layer, a column each plan: protected channels.
fn protected(program: &Program, plans: &[Planned]) -> String {
    let mut out = String::from("protected channels");
    for plan in plans {
        out.push_str(&format!("; penalty {}%: {:.2}% of the MACs", 100.0 * plan.asked, 100.0 * plan.penalty));
    }
    out.push('\n');
    let mut table = Table::new(&["layer", ">channels", ">MACs", ">protected"]);
    let rows: Vec<Vec<LayerEntry<'_>>> = plans.iter().map(|plan| layers(program, plan)).collect();
    let names = rows.iter().max_by_key(|rows| rows.len());
    for layer in names.into_iter().flatten() {
        let of_plan = |rows: &Vec<LayerEntry<'_>>| {
            rows.iter().find(|row| row.name == layer.name).map_or(0, |row| row.protected).to_string()
        };
        table.row(vec![
            layer.name.to_owned(),
            layer.channels.to_string(),
            terminal::count(layer.macs),
            rows.iter().map(of_plan).collect::<Vec<_>>().join("  "),
        ]);
    }
    out + &table.render()
}

fn measured(front: &Front) -> String {
    let mut table = Table::new(&[">penalty", "protection", ">spent", ">top-1", ">95% interval", ">plan less this"]);
    let plain = |penalty: &str, what: &str, spent: &str, accuracy: Interval| {
        vec![
            penalty.to_owned(),
            what.to_owned(),
            spent.to_owned(),
            percent(accuracy.mean),
            interval(accuracy),
            String::new(),
        ]
    };
    table.row(plain("0%", "none", "0.00%", front.unprotected));
    for point in &front.points {
        for s in &point.strategies {
            let name = if s.strategy == Strategy::Planned { "plan" } else { s.strategy.name() };
            let mut row = plain(&format!("{}%", point.percent), name, &format!("{:.2}%", s.spent_percent), s.accuracy);
            if let (Some(cell), Some(less)) = (row.last_mut(), s.plan_less_this) {
                *cell = format!("{:+.2} ({:+.2} to {:+.2})", 100.0 * less.mean, 100.0 * less.low, 100.0 * less.high);
            }
            table.row(row);
        }
    }
    table.row(plain("200%", "everything", "200.00%", front.everything));
    table.render()
}
