//! `--replay SEED:TRIAL`: one trial's whole story.
//!
//! The trial is made again by whole inferences that record every integer tensor, clean and struck; the story is what
//! differs between them, step by step.

use anyhow::{Context, Result};
use chipfit_campaign::executor::{Computed, Executor};
use chipfit_campaign::plan::{Fault, Plan, Work};
use chipfit_campaign::simulated::Story;
use chipfit_campaign::subject::Picture;
use chipfit_campaign::{CampaignError, Verdict};
use chipfit_npu::StepId;
use serde::Serialize;

use super::setup::Subjected;
use crate::terminal::{self, Table};

/// `SEED:TRIAL`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Id {
    pub(super) seed: u64,
    pub(super) trial: u64,
}

/// Parses `SEED:TRIAL`.
pub(super) fn parse_id(text: &str) -> Result<Id, String> {
    let numbers = text.split_once(':').and_then(|(s, t)| Some(Id { seed: s.parse().ok()?, trial: t.parse().ok()? }));
    numbers.ok_or_else(|| format!("'{text}' is no SEED:TRIAL, for instance 1:4711"))
}

/// The story as JSON.
#[derive(Serialize)]
struct Document<'a> {
    seed: u64,
    trial: u64,
    picture: PictureEntry<'a>,
    fault: Option<FaultEntry>,
    pass: Option<PassEntry>,
    outcome: &'static str,
    sdc_top5: bool,
    class: u32,
    confidence_shift: f32,
    steps: Vec<StepEntry>,
    masked: Option<MaskedEntry>,
}

#[derive(Serialize)]
struct PictureEntry<'a> {
    index: u64,
    name: &'a str,
    label: u32,
    clean_class: u32,
    clean_confidence: f64,
}

#[derive(Serialize)]
struct FaultEntry {
    step: usize,
    layer: String,
    op: String,
    site: &'static str,
    kind: String,
    bit: Option<u32>,
    word: u64,
    channel: u64,
    position: u64,
    place: u64,
    /// The word's value: a product, an accumulator, a stored word.
    before: Option<i32>,
    after: Option<i32>,
    /// The stored word of the output it belongs to; absent for buffers, which many read.
    output_before: Option<u8>,
    output_after: Option<u8>,
}

#[derive(Serialize)]
struct PassEntry {
    point: usize,
    definition: String,
    expected_flips: f64,
    words_struck: Option<u64>,
}

#[derive(Serialize)]
struct StepEntry {
    step: usize,
    layer: String,
    op: String,
    changed: u64,
    of: u64,
    largest_change: u8,
    /// Of the first changed byte in the tensor's layout, as the stored word.
    first: Option<ChangedByte>,
}

#[derive(Serialize)]
struct ChangedByte {
    at: u64,
    before: u8,
    after: u8,
}

#[derive(Serialize)]
struct MaskedEntry {
    step: Option<usize>,
    by: &'static str,
}

/// Tells the story of one trial.
pub(super) fn run(id: &Id, subjected: Subjected, wants_json: bool) -> Result<()> {
    let plan = Plan::new(&subjected.campaign, &subjected.subject)?;
    let trial = plan.trial(id.trial)?;
    let picture = subjected.subject.pictures.get(trial.picture).context("no such picture")?;
    let executor = &subjected.executor;
    let clean = executor.clean(&[picture.index]).map_err(CampaignError::Executor)?.pop().unwrap_or_default();
    let (verdict, story, fault, pass) = match trial.work {
        Work::Fault(fault) => {
            let golden = executor.golden(picture.index).map_err(CampaignError::Executor)?;
            let computed =
                executor.strike(&golden, StepId(fault.layer), fault.strike).map_err(CampaignError::Executor)?;
            let story = executor.story_of_strike(picture.index, StepId(fault.layer), fault.strike);
            let story = story.map_err(CampaignError::Executor)?;
            let entry = entry_of(&subjected, &fault, &story);
            let verdict = match computed {
                Computed::Masked(masked) => subjected.judge.masked(picture, Some(masked)),
                Computed::Output(output) => subjected.judge.judge(picture, &clean, &output, None),
            };
            (verdict, story, Some(entry), None)
        }
        Work::Pass { point, draw } => {
            let faulty = executor.pass(point, draw, &[picture.index]).map_err(CampaignError::Executor)?;
            let faulty = faulty.into_iter().next().context("no answer")?;
            let story = executor.story_of_pass(picture.index, point, draw).map_err(CampaignError::Executor)?;
            let facts = subjected.subject.points.get(point);
            let pass = PassEntry {
                point,
                definition: facts.map_or(String::new(), |f| f.definition.clone()),
                expected_flips: facts.map_or(0.0, |f| f.expected_flips),
                words_struck: faulty.strikes,
            };
            (subjected.judge.judge(picture, &clean, &faulty.output, None), story, None, Some(pass))
        }
    };
    let document = document(id, &subjected, picture, &verdict, &story, fault, pass);
    if wants_json {
        return terminal::print(&format!("{}\n", serde_json::to_string_pretty(&document)?));
    }
    terminal::print(&text(&document, &subjected, &verdict))
}

fn entry_of(subjected: &Subjected, fault: &Fault, story: &Story) -> FaultEntry {
    let struck = story.struck.as_ref();
    let program = subjected.executor.program();
    let stored = |byte: u8| program.steps().get(fault.layer).map_or(byte, |s| program.tensor(s.output).to_word(byte));
    let output = struck.and_then(|word| word.output);
    let layer = subjected.subject.layers.get(fault.layer);
    FaultEntry {
        step: fault.layer,
        layer: layer.map_or(String::new(), |l| l.name.clone()),
        op: layer.map_or(String::new(), |l| l.op_type.clone()),
        site: fault.site.name(),
        kind: fault.kind.name(),
        bit: fault.bit,
        word: fault.strike.word,
        channel: fault.channel,
        position: fault.position,
        place: fault.place,
        before: struck.map(|word| word.before),
        after: struck.map(|word| word.after),
        output_before: output.map(|(_, before, _)| stored(before)),
        output_after: output.map(|(_, _, after)| stored(after)),
    }
}

fn document<'a>(
    id: &Id,
    subjected: &'a Subjected,
    picture: &Picture,
    verdict: &Verdict,
    story: &Story,
    fault: Option<FaultEntry>,
    pass: Option<PassEntry>,
) -> Document<'a> {
    let name = |step: usize| subjected.subject.layers.get(step).map_or(String::new(), |l| l.name.clone());
    let op = |step: usize| subjected.subject.layers.get(step).map_or(String::new(), |l| l.op_type.clone());
    let steps = story.steps.iter().map(|step| StepEntry {
        step: step.step.0,
        layer: name(step.step.0),
        op: op(step.step.0),
        changed: step.changed,
        of: step.of,
        largest_change: step.largest,
        first: step.first.map(|(at, before, after)| ChangedByte { at, before, after }),
    });
    Document {
        seed: id.seed,
        trial: id.trial,
        picture: PictureEntry {
            index: picture.index,
            name: subjected.executor.pictures().name(picture.index),
            label: picture.label,
            clean_class: picture.class(),
            clean_confidence: picture.confidence,
        },
        fault,
        pass,
        outcome: verdict.outcome.name(),
        sdc_top5: verdict.is_sdc_top5,
        class: verdict.class,
        confidence_shift: verdict.shift,
        steps: steps.collect(),
        masked: verdict.masked.map(|m| MaskedEntry { step: m.step.map(|s| s.0), by: m.by.name() }),
    }
}

fn text(document: &Document<'_>, subjected: &Subjected, verdict: &Verdict) -> String {
    let class = |class| subjected.executor.pictures().class(class);
    let picture = &document.picture;
    let mut text = format!(
        "trial {}:{}\npicture {} ({}), label {}, clean top-1 {} with confidence {:.4}\n",
        document.seed,
        document.trial,
        picture.index,
        terminal::printable(picture.name),
        class(picture.label),
        class(picture.clean_class),
        picture.clean_confidence,
    );
    if let Some(fault) = &document.fault {
        let bit = fault.bit.map_or(String::new(), |b| format!(", bit {b}"));
        text.push_str(&format!(
            "fault: {} at {} of step {} '{}' ({}), word {}{bit}: channel {}, position {}, k {}\n",
            fault.kind,
            fault.site,
            fault.step,
            terminal::printable(&fault.layer),
            fault.op,
            fault.word,
            fault.channel,
            fault.position,
            fault.place,
        ));
    }
    if let Some(FaultEntry { before: Some(before), after: Some(after), output_before, output_after, .. }) =
        &document.fault
    {
        let output = match (output_before, output_after) {
            (Some(a), Some(b)) => format!("; its output byte: {a} -> {b}"),
            _ => String::new(),
        };
        text.push_str(&format!("the word: {before} -> {after}{output}\n"));
    }
    if let Some(pass) = &document.pass {
        text.push_str(&format!(
            "faults of point {}: {}; expected {:.4} an inference, {} words were struck\n",
            pass.point,
            terminal::printable(&pass.definition),
            pass.expected_flips,
            pass.words_struck.map_or("?".to_owned(), |n| n.to_string()),
        ));
    }
    if document.steps.is_empty() {
        text.push_str("no byte of any step changed\n");
    } else {
        let mut table =
            Table::new(&[">step", "layer", "operator", ">bytes changed", ">of", ">largest", "first change"]);
        for step in &document.steps {
            let first = step.first.as_ref();
            table.row(vec![
                step.step.to_string(),
                step.layer.clone(),
                step.op.clone(),
                step.changed.to_string(),
                step.of.to_string(),
                step.largest_change.to_string(),
                first.map_or(String::new(), |f| format!("byte {}: {} -> {}", f.at, f.before, f.after)),
            ]);
        }
        text.push_str(&table.render());
    }
    match &document.masked {
        Some(masked) => {
            let place = masked.step.map_or(String::new(), |s| format!(" at step {s}"));
            text.push_str(&format!("masked{place}: {}\n", masked.by));
        }
        None => text.push_str(&format!(
            "{}: top-1 is {}, confidence of the clean class {:+.4}{}\n",
            document.outcome,
            class(verdict.class),
            document.confidence_shift,
            if document.sdc_top5 { ", outside the clean top five" } else { "" },
        )),
    }
    text
}
