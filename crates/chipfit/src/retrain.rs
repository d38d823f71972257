//! `chipfit retrain`: the processor that will run the network sits in its training loop.
//!
//! Model, pictures, processor -> accuracy as it came -> the loop of `chipfit-train` -> accuracy after -> the same model
//! with new constants. With `--reference` the same run is made without errors, too, so that the recovery of
//! `docs/retraining.md` can be told. Everything lies in the run folder; the same command resumes it.
//!
//! Read [`run`] first, then [`mod@bench`] (what executes), [`flags`] (how it trains), [`folder`] (what is kept), [`mod@measure`],
//! [`show`] (what is printed and written).

mod bench;
mod flags;
pub(crate) mod folder;
pub(crate) mod measure;
mod page;
mod pictures;
mod scratch;
pub(crate) mod show;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use chipfit_agent::LinkReport;
use chipfit_campaign::folder::sha256;
use chipfit_data::{DataSet, PreferredSplit, Preprocess};
use chipfit_model::Model;
use chipfit_model::onnx::Overwrite;
use chipfit_npu::Program;
use chipfit_train::pictures::logits;
use chipfit_train::{Config, Flow, Observer, Outcome, Pictures, Retraining, StepReport};
use clap::Args;
use indicatif::ProgressBar;

use crate::data_options::{DataFlags, PictureInput, write_preprocess};
use crate::failure::usage;
use crate::options;
use crate::processor_options::{FaultFlags, ProcessorFlag, ProcessorFlags, read_text};
use crate::terminal::{self, note};
use bench::{Bench, LinkFlags, Traffic};
use folder::{Folder, KIND, Line, Manifest};
use measure::{Measured, measure};
use pictures::{Quantised, at_most, hold_out};

/// Retrain a quantised network through the processor that will run it, errors included.
///
/// The forward passes run on the processor (simulated with --faults, remote with --device), the backward passes here.
/// The run folder can be resumed by the same command after any interruption; the result is the same bit for bit.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// The quantised (QDQ) ONNX model
    #[arg(required_unless_present = "from_scratch")]
    model: Option<PathBuf>,
    /// Train this network of the zoo in fp32 first, fold and calibrate it (lenet5, mobilenet-fashion, resnet8)
    #[arg(long, value_name = "NETWORK", conflicts_with = "model")]
    from_scratch: Option<String>,
    /// Passes over the training pictures in fp32 [default: what suits the network]
    #[arg(long, value_name = "N", requires = "from_scratch", value_parser = clap::value_parser!(u64).range(1..))]
    scratch_epochs: Option<u64>,
    #[command(flatten)]
    data: DataFlags,
    /// Pictures that measure the accuracy before and after [default: the test split of --data]
    #[arg(long, value_name = "PATH[:SPLIT]")]
    test: Option<String>,
    #[command(flatten)]
    processor: ProcessorFlags,
    #[command(flatten)]
    faults: FaultFlags,
    #[command(flatten)]
    link: LinkFlags,
    #[command(flatten)]
    training: flags::TrainingFlags,
    /// Of the order of pictures, their views, and simulated faults
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Only so many training pictures, spread evenly over the set
    #[arg(long, value_name = "N")]
    pictures: Option<usize>,
    /// Only so many test pictures
    #[arg(long, value_name = "N")]
    test_pictures: Option<usize>,
    /// Measurements on the faulty processor, each with errors of its own
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    test_draws: u32,
    /// Also retrain equally long without errors, and tell the recovery
    #[arg(long)]
    reference: bool,
    /// The run folder: created, or resumed where it holds the same run
    #[arg(short, long, value_name = "RUN")]
    output: PathBuf,
    /// Print one JSON document on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

/// The pictures of a run.
struct Sets {
    preprocess: Preprocess,
    training: Quantised,
    validation: Option<Quantised>,
    test: Quantised,
}

/// Runs or resumes.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let begin = Instant::now();
    let path = scratch::model_path(arguments)?;
    let model = options::open(&path)?;
    let program = arguments.processor.program.lower(&model, &path)?;
    for warning in program.warnings() {
        note(&format!("warning: {warning}"));
    }
    let config = arguments.training.config(arguments.seed);
    config.check().map_err(|error| usage(error.to_string()))?;
    let (sets, mut manifest) = open_sets(arguments, &path, &model, &program, config)?;
    manifest.faults = arguments.faults.faults.as_deref().map(read_text).transpose()?;
    manifest.tmr = arguments.faults.tmr.as_deref().map(read_text).transpose()?;
    // What cannot be opened leaves no folder.
    let mut bench = Bench::open(arguments, &model, program, manifest.identity()?)?;
    let folder = Folder::create(&arguments.output, manifest)?;
    note(&format!("processor: {}", bench.processor().describe()));

    let mut measured = folder.measured()?;
    let mut job = Job { arguments, folder: &folder, model: &model, sets: &sets, measured: &mut measured };
    job.measure(&mut bench, "before_faulty")?;
    job.measure(&mut bench, "before_fault_free")?;
    if arguments.reference {
        job.reference(&mut bench)?;
    }
    let ending = job.retrain(&mut bench)?;
    let retrained = ending.outcome.model.as_ref().context("the trainer returned no model")?;
    bench.load_twin(retrained)?;
    job.measure(&mut bench, "after_faulty")?;
    job.measure(&mut bench, "after_fault_free")?;
    let written = folder.file("model.retrained.onnx");
    retrained.write(&written, Overwrite::Replace).with_context(|| format!("cannot write '{}'", written.display()))?;
    write_preprocess(&sets.preprocess, &written, Overwrite::Replace)?;
    let summary = show::Summary::new(&folder, &measured, &ending, &mut bench, begin.elapsed())?;
    folder.write("summary.json", format!("{:#}\n", serde_json::to_value(&summary)?).as_bytes())?;
    if arguments.json {
        return terminal::print(&format!("{:#}\n", serde_json::to_value(&summary)?));
    }
    terminal::print(&show::text(&summary, &folder))
}

/// The page of the run in `path`.
pub(crate) fn report(path: &Path) -> Result<chipfit_report::Report> {
    let folder = Folder::open(path)?;
    let file = folder.file("summary.json");
    let text = std::fs::read_to_string(&file);
    let text = text.with_context(|| format!("'{}' has no results yet: run it to the end", path.display()))?;
    let summary: show::Summary =
        serde_json::from_str(&text).with_context(|| format!("'{}' is no summary", file.display()))?;
    Ok(page::page(&folder, &summary, &folder.history()?))
}

fn open_sets(
    arguments: &Arguments,
    path: &Path,
    model: &Model,
    program: &Program,
    config: Config,
) -> Result<(Sets, Manifest)> {
    let data = &arguments.data;
    let (preprocess, _) = data.preprocess.resolve(path, &PictureInput::of(model)?)?;
    note(&format!("preprocessing: {preprocess}"));
    let all = at_most(data.open(PreferredSplit::Train)?, arguments.pictures, "--pictures")?;
    let test = match &arguments.test {
        Some(spec) => data.open_other(spec, "--test", PreferredSplit::Test)?,
        None => data.open_other(without_split(&data.data), "--data", PreferredSplit::Test)?,
    };
    if test.split() == all.split() && test.path() == all.path() {
        note("warning: training and test pictures are the same; give --test for an honest accuracy");
    }
    let test = at_most(test, arguments.test_pictures, "--test-pictures")?;
    let (rest, held) = hold_out(all.len(), arguments.training.validation)?;
    let quantised = |what, set: &DataSet, indices| Quantised::new(what, set, indices, &preprocess, program);
    let sets = Sets {
        validation: if held.is_empty() { None } else { Some(quantised("validation", &all, held)?) },
        training: quantised("training", &all, rest)?,
        test: quantised("test", &test, (0..test.len()).collect())?,
        preprocess: preprocess.clone(),
    };
    let manifest = Manifest {
        kind: KIND.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        model: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        model_sha256: sha256(&std::fs::read(path)?),
        training: all.fingerprint().to_string(),
        test: test.fingerprint().to_string(),
        preprocessing: preprocess.to_string(),
        faults: None,
        tmr: None,
        processor: match (&arguments.link.is_remote(), arguments.processor.program.processor) {
            (true, _) => "devices",
            (false, ProcessorFlag::Sim) => "simulator",
            (false, ProcessorFlag::OnnxRuntime) => "onnxruntime",
        }
        .to_owned(),
        config,
        pictures: [sets.training.len(), sets.validation.as_ref().map_or(0, Quantised::len), sets.test.len()],
        draws: arguments.test_draws,
        reference: arguments.reference,
    };
    Ok((sets, manifest))
}

/// A data set's path without `:SPLIT`, where that names no file of its own.
fn without_split(spec: &str) -> &str {
    match spec.rsplit_once(':') {
        Some((path, split)) if !Path::new(spec).exists() && !split.contains('/') => path,
        _ => spec,
    }
}

/// How a run of the trainer ended.
pub(crate) struct Ending {
    pub(crate) outcome: Outcome,
    pub(crate) seconds: f64,
    /// What the links cost in it.
    pub(crate) link: Option<LinkReport>,
    /// Steps of this session; a resumed run made the others before.
    pub(crate) steps: u64,
}

/// A run in progress.
struct Job<'a> {
    arguments: &'a Arguments,
    folder: &'a Folder,
    model: &'a Model,
    sets: &'a Sets,
    measured: &'a mut BTreeMap<String, Measured>,
}

impl Job<'_> {
    /// Measures the model that the processors hold, unless that was done before; `*_fault_free` on the twin.
    fn measure(&mut self, bench: &mut Bench, name: &str) -> Result<()> {
        if self.measured.contains_key(name) {
            return Ok(());
        }
        let is_clean = name.ends_with("fault_free");
        let draws = if is_clean || !bench.has_errors() { 1 } else { self.arguments.test_draws };
        let bar = terminal::bar("accuracy", u64::from(draws));
        let processor = if is_clean { bench.twin() } else { bench.processor() };
        let batch = self.arguments.training.batch();
        let found = measure(processor, &self.sets.test, batch, draws, || bar.inc(1));
        bar.finish_and_clear();
        let found = found?;
        let place = if is_clean { "fault-free" } else { "on the processor" };
        let when = name.split('_').next().unwrap_or(name);
        note(&format!("top-1 {when}, {place}: {:.2}%", 100.0 * found.top1.value));
        self.measured.insert(name.to_owned(), found);
        self.folder.write("measured.json", format!("{:#}\n", serde_json::to_value(&*self.measured)?).as_bytes())
    }

    /// The same run without errors, on the twin: what retraining alone does to this model; on the ranges as they came, and
    /// where ranges are narrowed, on the narrow ones, too.
    fn reference(&mut self, bench: &mut Bench) -> Result<()> {
        let narrow = self.folder.manifest.config.narrow;
        for (name, narrow) in [("reference", None), ("narrowed", narrow)] {
            let [faulty, clean] = ["faulty", "fault_free"].map(|place| format!("{name}_{place}"));
            let is_wanted = name == "reference" || narrow.is_some();
            if !is_wanted || (self.measured.contains_key(&faulty) && self.measured.contains_key(&clean)) {
                continue;
            }
            let config = Config { narrow, ..self.folder.manifest.config.clone() };
            let outcome = self.train(bench, name, &config)?;
            let model = outcome.outcome.model.context("the trainer returned no model")?;
            bench.load_twin(&model)?;
            self.measure(bench, &clean)?;
            bench.load(&model)?;
            self.measure(bench, &faulty)?;
            bench.load(self.model)?;
            bench.load_twin(self.model)?;
        }
        Ok(())
    }

    /// On the processor, with its errors.
    fn retrain(&mut self, bench: &mut Bench) -> Result<Ending> {
        self.train(bench, "retrained", &self.folder.manifest.config)
    }

    /// One run of the trainer; all but `retrained` are made on the twin.
    fn train(&mut self, bench: &mut Bench, name: &'static str, config: &Config) -> Result<Ending> {
        let is_reference = name != "retrained";
        let teacher = match self.arguments.training.has_teacher() {
            true => Some(logits(bench.twin(), &self.sets.training, config.batch)?),
            false => None,
        };
        let checkpoint = self.folder.file(&format!("{name}.checkpoint"));
        let job = Retraining {
            config,
            model: Some(self.model),
            training: &self.sets.training,
            validation: self.sets.validation.as_ref().map(|pictures| pictures as &dyn Pictures),
            teacher: teacher.as_deref(),
            threads: self.arguments.processor.threads(),
            checkpoint: Some(checkpoint.clone()),
        };
        let clock = Instant::now();
        let before = bench.link();
        let mut watcher = Watcher {
            bar: terminal::bar(name, 0),
            folder: self.folder,
            history: None,
            failure: None,
            steps: 0,
            last: bench.meter().read(),
            traffic: bench.meter(),
            is_kept: !is_reference,
        };
        let result = if is_reference {
            job.run(bench.twin(), None, &mut watcher)
        } else {
            let (processor, faultiness) = bench.processor_and_faultiness();
            job.run(processor, faultiness, &mut watcher)
        };
        watcher.bar.finish_and_clear();
        if let Some(error) = watcher.failure {
            return Err(error);
        }
        let steps = watcher.steps;
        let outcome = result?;
        if outcome.resumed_from > 0 {
            note(&format!("resumed from step {}", outcome.resumed_from));
        }
        let link = bench.link().zip(before).map(|(after, before)| after.since(&before));
        Ok(Ending { outcome, seconds: clock.elapsed().as_secs_f64(), link, steps })
    }
}

/// Shows progress and keeps the history.
struct Watcher<'a> {
    bar: ProgressBar,
    folder: &'a Folder,
    history: Option<File>,
    failure: Option<anyhow::Error>,
    steps: u64,
    traffic: bench::Meter,
    last: Traffic,
    is_kept: bool,
}

impl Watcher<'_> {
    fn keep(&mut self, report: &StepReport) -> Result<()> {
        let now = self.traffic.read();
        let moved = now.since(&self.last);
        self.last = now;
        if !self.is_kept {
            return Ok(());
        }
        if self.history.is_none() {
            self.history = Some(self.folder.history_after(report.step - 1)?);
        }
        let line = Line {
            step: report.step,
            epoch: report.epoch,
            loss: report.loss,
            top1: report.top1,
            changed: report.changed,
            strikes: report.strikes,
            fault_scale: report.fault_scale,
            device_s: report.device_seconds,
            server_s: report.server_seconds,
            bytes_down: moved.down,
            bytes_up: moved.up,
        };
        match &mut self.history {
            Some(file) => folder::append(file, &line).context("cannot write the run's history"),
            None => Ok(()),
        }
    }
}

impl Observer for Watcher<'_> {
    fn step(&mut self, report: &StepReport) -> Flow {
        if self.steps == 0 {
            self.bar.set_length(report.steps);
            self.bar.set_position(report.step - 1);
            self.bar.reset_eta();
        }
        self.steps += 1;
        self.bar.set_position(report.step);
        let traffic = self.traffic.read();
        let bytes = match traffic.down + traffic.up {
            0 => String::new(),
            _ => format!(", {} down, {} up", terminal::count(traffic.down), terminal::count(traffic.up)),
        };
        let (loss, top1) = (report.loss, 100.0 * report.running_top1);
        self.bar.set_message(format!("loss {loss:.3}, top-1 {top1:.1}%{bytes}"));
        if let Err(error) = self.keep(report) {
            self.failure = Some(error);
            return Flow::Stop;
        }
        Flow::Continue
    }

    fn epoch(&mut self, number: u64, epoch: &chipfit_train::Epoch) {
        let validation = epoch
            .validation
            .map_or_else(String::new, |accuracy| format!(", validation top-1 {:.2}%", 100.0 * accuracy.top1_share()));
        let line = format!(
            "epoch {}: loss {:.4}, top-1 as trained {:.2}%{validation}",
            number + 1,
            epoch.loss,
            100.0 * epoch.training.top1_share()
        );
        self.bar.suspend(|| note(&line));
    }
}
