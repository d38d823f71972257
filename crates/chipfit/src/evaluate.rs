//! `chipfit evaluate`: the accuracy of a model on a labelled picture set, on whatever executes it, with or without
//! soft errors; and the integer tensors of a few pictures, for comparison with other runtimes.
//!
//! A quantised model runs on the integer processor (`--processor`). A float model runs in an embedded float engine, so
//! that the loss by quantisation can be read off two calls; faults and dumps need a quantised one.
//! Read [`run`] first, then [`accuracy`] for what is counted and [`dump`] for the trace file.

mod accuracy;
mod dump;
mod float;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use chipfit_campaign::statistics::Share;
use chipfit_data::{DataSet, PreferredSplit, Preprocess, Subset};
use chipfit_npu::faults::{Faults, Site};
use chipfit_npu::{Batch, Processor, Program, Request};
use clap::Args;
use serde::Serialize;

use crate::data_options::{DataFlags, PictureInput};
use crate::failure::usage;
use crate::options;
use crate::processor_options::{FaultFlags, ProcessorFlags};
use crate::terminal::{self, Table};

use accuracy::Accuracy;

/// Measure a model's accuracy on pictures, with or without soft errors.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// The model: quantised (QDQ), or float
    model: PathBuf,
    #[command(flatten)]
    data: DataFlags,
    #[command(flatten)]
    processor: ProcessorFlags,
    #[command(flatten)]
    faults: FaultFlags,
    /// Seed of the faults
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How often every picture is computed, each time with fresh faults
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    repeats: u32,
    /// Only so many pictures, spread evenly over the set
    #[arg(long, value_name = "N")]
    pictures: Option<usize>,
    /// Pictures computed at once; results never depend on it
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    batch: u32,
    /// Write integer tensors, by their ONNX names: `all`, or names with commas between them
    #[arg(long, value_name = "all|TENSOR,...", requires = "output")]
    dump: Option<String>,
    /// Of how many pictures, from the first on
    #[arg(long, value_name = "N", default_value_t = 1, requires = "dump")]
    dump_images: usize,
    /// The trace file that --dump writes; never overwritten without --force
    #[arg(short, long, value_name = "TRACE.npz", requires = "dump")]
    output: Option<PathBuf>,
    /// Replace the trace file where it exists
    #[arg(long)]
    force: bool,
    /// Print one JSON document on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

/// The document that `--json` prints.
#[derive(Serialize)]
struct Document {
    command: Vec<String>,
    version: &'static str,
    model: String,
    processor: String,
    data: DataEntry,
    pictures: u64,
    classes: usize,
    top1: Share,
    top5: Share,
    /// Confidence of the intervals.
    confidence: f64,
    /// Forward passes only; decoding and counting left out.
    images_per_second: f64,
    /// Of the whole command, decoding included.
    seconds: f64,
    seed: u64,
    faults: Option<FaultEntry>,
    warnings: Vec<String>,
    trace: Option<String>,
}

#[derive(Serialize)]
struct DataEntry {
    path: String,
    split: Option<String>,
    fingerprint: String,
    preprocess: String,
    preprocess_from: Option<String>,
}

#[derive(Serialize)]
struct FaultEntry {
    /// Definition of the rates, line by line.
    definition: Vec<String>,
    /// Expected struck words per inference, by site; replicas included.
    expected_flips_per_inference: Vec<(Site, f64)>,
    expected_total: f64,
    /// What was drawn, per inference.
    drawn_per_inference: Option<f64>,
    /// Additional MACs over all MACs, in percent.
    tmr_penalty_percent: f64,
}

/// A set of pictures as the model wants them.
pub(crate) struct Pictures {
    pub(crate) set: DataSet,
    pub(crate) preprocess: Preprocess,
    pub(crate) preprocess_file: Option<PathBuf>,
}

/// What was counted.
struct Tally {
    accuracy: Accuracy,
    strikes: Option<u64>,
    forward: Duration,
}

/// Runs the subcommand.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let begin = Instant::now();
    if let Some(output) = &arguments.output {
        options::check_output(output, arguments.force, std::slice::from_ref(&arguments.model))?;
    }
    let model = options::open(&arguments.model)?;
    let quantised = model.graph().node.iter().any(|node| node.op_type.as_deref() == Some("QuantizeLinear"));
    let pictures = open_pictures(arguments, &model)?;
    terminal::note(&format!("preprocessing: {}", pictures.preprocess));
    let (document, warnings) = if quantised {
        drop(model);
        evaluate_quantised(arguments, &pictures, begin)?
    } else {
        evaluate_float(arguments, &model, &pictures, begin)?
    };
    for warning in &warnings {
        terminal::note(&format!("warning: {warning}"));
    }
    if arguments.json {
        return terminal::print(&format!("{:#}\n", serde_json::to_value(&document)?));
    }
    terminal::print(&text(&document))
}

fn open_pictures(arguments: &Arguments, model: &chipfit_model::Model) -> Result<Pictures> {
    let set = arguments.data.open(PreferredSplit::Test)?;
    let (preprocess, preprocess_file) =
        arguments.data.preprocess.resolve(&arguments.model, &PictureInput::of(model)?)?;
    let set = match arguments.pictures {
        Some(0) => return Err(usage("--pictures 0 measures nothing")),
        Some(count) if count < set.len() => set.subset(Subset::Spread(count)),
        _ => set,
    };
    Ok(Pictures { set, preprocess, preprocess_file })
}

fn evaluate_quantised(arguments: &Arguments, pictures: &Pictures, begin: Instant) -> Result<(Document, Vec<String>)> {
    let program = arguments.processor.program(&arguments.model)?;
    let warnings = program.warnings().to_vec();
    let faults = arguments.faults.faults(&program, arguments.seed)?;
    let protection = arguments.faults.protection(&program)?;
    let mut entry = (faults.is_some() || arguments.faults.tmr.is_some()).then(|| FaultEntry {
        definition: faults.as_ref().map(|f| f.describe(&program, &protection)).unwrap_or_default(),
        expected_flips_per_inference: expected(faults.as_ref(), &program, &protection),
        expected_total: 0.0,
        drawn_per_inference: None,
        tmr_penalty_percent: 100.0 * protection.penalty(&program),
    });
    let mut processor = arguments.processor.open(&arguments.model, program, faults, protection, arguments.seed)?;
    let trace = match (&arguments.dump, &arguments.output) {
        (Some(tensors), Some(output)) => {
            dump::write(processor.as_mut(), pictures, tensors, arguments.dump_images, output)?;
            Some(output.display().to_string())
        }
        _ => None,
    };
    let tally = tally(arguments, processor.as_mut(), pictures)?;
    if let Some(entry) = &mut entry {
        entry.expected_total = entry.expected_flips_per_inference.iter().map(|(_, flips)| flips).sum();
        entry.drawn_per_inference =
            tally.strikes.map(|strikes| strikes as f64 / (tally.accuracy.pictures() as f64).max(1.0));
    }
    let classes = processor.program().tensor(processor.program().output()).elements();
    let mut document = document(arguments, pictures, &tally, begin, processor.describe(), classes);
    document.faults = entry;
    document.trace = trace;
    document.warnings.clone_from(&warnings);
    Ok((document, warnings))
}

/// Expected struck words per inference by site, without sites that are never struck.
fn expected(faults: Option<&Faults>, program: &Program, protection: &chipfit_npu::Protection) -> Vec<(Site, f64)> {
    let Some(faults) = faults else { return Vec::new() };
    let by_site = faults.expected(program, protection);
    Site::ALL.into_iter().map(|site| (site, by_site.site(site))).filter(|(_, flips)| *flips > 0.0).collect()
}

fn tally(arguments: &Arguments, processor: &mut dyn Processor, pictures: &Pictures) -> Result<Tally> {
    let set = &pictures.set;
    let trials = u64::from(arguments.repeats);
    let bar = terminal::bar("evaluate", set.len() as u64 * trials);
    let mut tally = Tally { accuracy: Accuracy::default(), strikes: Some(0), forward: Duration::ZERO };
    let classes = processor.program().tensor(processor.program().output()).elements();
    let batch = arguments.batch as usize;
    for start in (0..set.len()).step_by(batch) {
        let indices: Vec<usize> = (start..set.len().min(start + batch)).collect();
        let values = set.batch(indices.iter().copied(), &pictures.preprocess)?;
        let input = processor.program().quantise_input(&values);
        let ids: Vec<u64> = indices.iter().map(|&index| set.id(index)).collect();
        for trial in 0..trials {
            let request = Request { batch: Batch { pictures: &ids, input: &input }, trial, views: &[], wanted: &[] };
            let clock = Instant::now();
            let trace = processor.forward(&request)?;
            tally.forward += clock.elapsed();
            tally.strikes = tally.strikes.zip(trace.strikes).map(|(a, b)| a + b);
            for (values, &index) in trace.output.chunks_exact(classes.max(1)).zip(&indices) {
                count(&mut tally.accuracy, values, set, index)?;
            }
            bar.inc(indices.len() as u64);
        }
    }
    bar.finish_and_clear();
    Ok(tally)
}

/// Counts one picture, or says that the model has too few classes for its label.
fn count<T: PartialOrd + Copy>(accuracy: &mut Accuracy, values: &[T], set: &DataSet, index: usize) -> Result<()> {
    let label = set.label(index);
    ensure!(
        accuracy.add(values, label as usize),
        "picture '{}' has label {label}, but the model tells {} classes apart; --labels FILE gives other indices",
        set.name(index),
        values.len()
    );
    Ok(())
}

fn evaluate_float(
    arguments: &Arguments,
    model: &chipfit_model::Model,
    pictures: &Pictures,
    begin: Instant,
) -> Result<(Document, Vec<String>)> {
    let needs = [
        (arguments.faults.faults.is_some(), "--faults"),
        (arguments.faults.tmr.is_some(), "--tmr"),
        (arguments.dump.is_some(), "--dump"),
    ];
    if let Some((_, flag)) = needs.iter().find(|(given, _)| *given) {
        bail!(
            "'{}' is not quantised (no QuantizeLinear), and {flag} needs integers; run `chipfit quantize` first",
            arguments.model.display()
        );
    }
    let mut session =
        float::Session::open(&arguments.model, PictureInput::of(model)?, arguments.processor.program.processor)?;
    let set = &pictures.set;
    let bar = terminal::bar("evaluate", set.len() as u64);
    let mut tally = Tally { accuracy: Accuracy::default(), strikes: None, forward: Duration::ZERO };
    let mut classes = 0;
    let batch = session.batch(&pictures.preprocess);
    for start in (0..set.len()).step_by(batch) {
        let indices: Vec<usize> = (start..set.len().min(start + batch)).collect();
        let values = set.batch(indices.iter().copied(), &pictures.preprocess)?;
        let clock = Instant::now();
        let logits = session.run(&values, indices.len(), &pictures.preprocess)?;
        tally.forward += clock.elapsed();
        classes = logits.len() / indices.len();
        ensure!(classes > 0, "'{}' gives no output", arguments.model.display());
        for (values, &index) in logits.chunks_exact(classes).zip(&indices) {
            count(&mut tally.accuracy, values, set, index)?;
        }
        bar.inc(indices.len() as u64);
    }
    bar.finish_and_clear();
    let what = session.describe();
    Ok((document(arguments, pictures, &tally, begin, what, classes), Vec::new()))
}

fn document(
    arguments: &Arguments,
    pictures: &Pictures,
    tally: &Tally,
    begin: Instant,
    processor: String,
    classes: usize,
) -> Document {
    Document {
        command: std::env::args().collect(),
        version: env!("CARGO_PKG_VERSION"),
        model: arguments.model.display().to_string(),
        processor,
        data: DataEntry {
            path: pictures.set.path().display().to_string(),
            split: pictures.set.split().map(str::to_owned),
            fingerprint: pictures.set.fingerprint().to_string(),
            preprocess: pictures.preprocess.to_string(),
            preprocess_from: pictures.preprocess_file.as_ref().map(|path| path.display().to_string()),
        },
        pictures: tally.accuracy.pictures(),
        classes,
        top1: tally.accuracy.top1(),
        top5: tally.accuracy.top5(),
        confidence: accuracy::CONFIDENCE,
        images_per_second: tally.accuracy.pictures() as f64 / tally.forward.as_secs_f64().max(1e-9),
        seconds: begin.elapsed().as_secs_f64(),
        seed: arguments.seed,
        faults: None,
        warnings: Vec::new(),
        trace: None,
    }
}

/// What a person reads.
fn text(document: &Document) -> String {
    let mut out = format!(
        "model      {}\nprocessor  {}\ndata       {}{}\n",
        document.model,
        document.processor,
        document.data.path,
        document.data.split.as_ref().map_or_else(String::new, |split| format!(", {split}")),
    );
    let mut table = Table::new(&["", ">right", ">of", ">share", ">95% interval"]);
    for (name, share) in [("top-1", document.top1), ("top-5", document.top5)] {
        table.row(vec![
            name.to_owned(),
            share.count.to_string(),
            share.of.to_string(),
            format!("{:.2}%", 100.0 * share.value),
            format!("{:.2}% to {:.2}%", 100.0 * share.low, 100.0 * share.high),
        ]);
    }
    out.push_str(&table.render());
    if let Some(faults) = &document.faults {
        for line in &faults.definition {
            out.push_str(&format!("faults     {line}\n"));
        }
        let sites: Vec<String> =
            faults.expected_flips_per_inference.iter().map(|(site, flips)| format!("{site} {flips:.4}")).collect();
        out.push_str(&format!(
            "flips      {:.4} per inference expected ({}){}\n",
            faults.expected_total,
            if sites.is_empty() { "none".to_owned() } else { sites.join(", ") },
            faults.drawn_per_inference.map_or_else(String::new, |drawn| format!(", {drawn:.4} drawn")),
        ));
        out.push_str(&format!(
            "TMR        {:.1}% more MACs\nseed       {}\n",
            faults.tmr_penalty_percent, document.seed
        ));
    }
    out.push_str(&format!("speed      {:.1} images/s (forward passes)\n", document.images_per_second));
    if let Some(trace) = &document.trace {
        out.push_str(&format!("trace      {trace}\n"));
    }
    out
}
