//! `chipfit protect`: which output channels to compute three times, so that a given share of extra MACs saves the most.
//!
//! Model, pictures of the training split, faults -> vulnerabilities -> one plan file per penalty; then the plans, and
//! with `--compare` the baselines, are measured on pictures that planning has not seen. Reference: `docs/protection.md`.
//! The work is done by `chipfit_train::protect`.
//!
//! Read [`run`] first, then [`pictures`] (what is planned on and what is measured on) and [`show`] (what is printed).

mod pictures;
mod show;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use chipfit_model::onnx::write_atomically;
use chipfit_npu::faults::file::{Layer, Layers};
use chipfit_npu::{Processor, Protection, Simulator, StrikeSource, Vote};
use chipfit_train::protect::compare::{Baselines, COMPARING_TRIALS, Comparison};
use chipfit_train::protect::gradient::GRADIENT_TRIALS;
use chipfit_train::protect::{self, Front, Measure, Options, Plans, Scope};
use clap::{Args, ValueEnum};

use crate::data_options::DataFlags;
use crate::failure::usage;
use crate::options;
use crate::processor_options::{FaultFlags, ProcessorFlag, ProcessorFlags};
use crate::terminal::{self, note};

/// How many parts of each layer the vulnerabilities are validated on.
const VALIDATION_PARTS: usize = 3;

/// Choose what to compute three times (partial TMR), and measure what it saves.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// The quantised (QDQ) ONNX model
    model: PathBuf,
    #[command(flatten)]
    data: DataFlags,
    #[command(flatten)]
    processor: ProcessorFlags,
    /// Soft errors to protect from: a faults file (docs/faults-file.md)
    #[arg(long, value_name = "FAULTS.toml")]
    faults: PathBuf,
    /// Extra MACs, in percent of all MACs, 0 to 200: one plan for each
    #[arg(long, value_name = "P[,P...]", value_delimiter = ',', required = true, allow_hyphen_values = true)]
    penalty: Vec<f64>,
    /// The plan file; with several penalties PLAN.25.toml and so on, and PLAN.front.json and .csv
    #[arg(short, long, value_name = "PLAN.toml")]
    output: PathBuf,
    /// Replace files that exist
    #[arg(long)]
    force: bool,
    /// Hold the plans to uniform, first-layers and layer-greedy protection at the same penalty, and validate them
    #[arg(long)]
    compare: bool,
    /// Output channels that are protected together [default: the smallest number that gives at most 512 groups]
    #[arg(long, value_name = "N")]
    group: Option<usize>,
    /// Only these layers: names, patterns or step numbers [default: all]
    #[arg(long, value_name = "LAYER,...", value_delimiter = ',')]
    layers: Vec<String>,
    /// Let plans protect steps without products, too (sums, pools): by the definition of the penalty they cost nothing
    #[arg(long)]
    free_steps: bool,
    /// What the voter compares
    #[arg(long, value_enum, default_value = "output")]
    vote: VoteFlag,
    /// What a faulty answer costs
    #[arg(long, value_enum, default_value = "doubt")]
    measure: MeasureFlag,
    /// How the influence of every group is found: by toggling its protection, or to first order from gradients
    #[arg(long, value_enum, default_value = "injection")]
    influence: InfluenceFlag,
    /// How often plans are improved around what they protect
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(0..=100))]
    rounds: u64,
    /// Pictures to plan on, of the training split
    #[arg(long, value_name = "N", default_value_t = 512)]
    pictures: usize,
    /// How many of these the influence of every single group is measured on
    #[arg(long, value_name = "N", default_value_t = 128)]
    screen: usize,
    /// Pictures to measure the plans on [default: the test split of --data]
    #[arg(long, value_name = "PATH[:SPLIT]")]
    test_data: Option<String>,
    /// How many of them; 0 to measure nothing
    #[arg(long, value_name = "N", default_value_t = 1000)]
    test_pictures: usize,
    /// Draws of faults for each picture that the plans are measured on
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    seeds: u64,
    /// Seed of the faults and of the pictures that are taken
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print one JSON document on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

/// `--vote`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum VoteFlag {
    /// The stored outputs
    Output,
    /// The accumulators
    Accumulator,
    /// Every product and partial sum
    Operation,
}

/// `--measure`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum MeasureFlag {
    /// One less the probability of the label
    Doubt,
    /// Less the logarithm of that probability
    CrossEntropy,
    /// One where the answer is wrong
    Top1,
}

/// `--influence`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum InfluenceFlag {
    /// Two runs a group
    Injection,
    /// One backward pass for all of them
    Gradient,
}

/// How many draws of faults a picture's gradients meet.
const GRADIENT_DRAWS: u64 = 4;

/// What was made.
struct Done {
    plans: Plans,
    front: Option<Front>,
    /// Files of the plans, in their order.
    files: Vec<PathBuf>,
    /// Files of the front.
    front_files: Vec<PathBuf>,
    processor: String,
}

/// Runs the subcommand.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let penalties = penalties(&arguments.penalty)?;
    let files = plan_files(&arguments.output, &arguments.penalty);
    let has_front = arguments.test_pictures > 0 && (arguments.compare || files.len() > 1);
    let front_files = if has_front { front_files(&arguments.output) } else { Vec::new() };
    for file in files.iter().chain(&front_files) {
        options::check_output(file, arguments.force, std::slice::from_ref(&arguments.model))?;
    }
    if arguments.processor.program.processor != ProcessorFlag::Sim {
        return Err(usage(
            "--processor: ONNX Runtime makes no errors and repeats nothing; `chipfit protect` takes sim",
        ));
    }
    if arguments.compare && arguments.test_pictures == 0 {
        return Err(usage("--compare needs pictures to compare on, and --test-pictures is 0"));
    }
    let program = arguments.processor.program(&arguments.model)?;
    let flags = FaultFlags { faults: Some(arguments.faults.clone()), tmr: None };
    let faults = flags.faults(&program, arguments.seed)?.context("--faults FILE is missing")?;
    let samples = pictures::open(arguments, &program)?;
    for line in faults.describe(&program, &Protection::none()) {
        note(&line);
    }
    let simulator_options = arguments.processor.simulator_options(Some(&faults));
    let faults = Arc::new(faults);
    let source: Arc<dyn StrikeSource + Send + Sync> = faults.clone();
    let mut processor = Simulator::new(program, simulator_options)?.with_faults(source, arguments.seed);
    let mut options = planning(arguments);
    if arguments.influence == InfluenceFlag::Gradient {
        let sample = samples.planning.spread(arguments.screen);
        let draws = GRADIENT_TRIALS..GRADIENT_TRIALS + GRADIENT_DRAWS;
        let (machine, seed) = (faults.machine(), arguments.seed);
        let found =
            protect::gradient(&mut processor, faults.as_ref(), &machine, seed, &sample, GRADIENT_TRIALS - 1, draws)?;
        options.influence = Some(found.second_moment);
    }
    let bar = terminal::bar("plan", 0);
    let plans = protect::plans(&mut processor, &samples.planning, &penalties, &options, None);
    bar.finish_and_clear();
    let plans = plans?;
    let front = match &samples.measuring {
        Some(sample) => {
            let baselines = Baselines::new(&options, plans.layer_order.clone(), arguments.seed);
            let on = Comparison {
                sample,
                seeds: arguments.seeds,
                first_trial: COMPARING_TRIALS,
                baselines: arguments.compare.then_some(&baselines),
            };
            Some(protect::front(&mut processor, &plans, &on)?)
        }
        None => None,
    };
    for (plan, file) in plans.plans.iter().zip(&files) {
        write(file, &plan.file.to_toml())?;
    }
    if let (Some(front), [json, csv]) = (&front, front_files.as_slice()) {
        write(json, &format!("{:#}\n", serde_json::to_value(front)?))?;
        write(csv, &front.to_csv())?;
    }
    let done = Done { plans, front, files, front_files, processor: processor.describe() };
    show::done(arguments, processor.program(), &samples, &done)
}

fn write(file: &Path, text: &str) -> Result<()> {
    write_atomically(file, text.as_bytes()).with_context(|| format!("cannot write '{}'", file.display()))
}

/// Percent to shares of the MACs.
fn penalties(percents: &[f64]) -> Result<Vec<f64>> {
    for (at, percent) in percents.iter().enumerate() {
        if !(0.0..=200.0).contains(percent) {
            return Err(usage(format!(
                "--penalty {percent}: a penalty lies between 0 and 200 percent of the MACs; 200 computes everything three times"
            )));
        }
        if percents[..at].contains(percent) {
            return Err(usage(format!("--penalty {percent} is there twice")));
        }
    }
    Ok(percents.iter().map(|percent| percent / 100.0).collect())
}

/// One file is what `-o` says; several have their penalty before the extension.
fn plan_files(output: &Path, percents: &[f64]) -> Vec<PathBuf> {
    match percents {
        [_] => vec![output.to_owned()],
        many => many.iter().map(|percent| beside(output, &percent.to_string(), None)).collect(),
    }
}

fn front_files(output: &Path) -> Vec<PathBuf> {
    ["json", "csv"].map(|extension| beside(output, "front", Some(extension))).to_vec()
}

/// `plan.toml` to `plan.PART.toml`, or with another extension.
fn beside(output: &Path, part: &str, extension: Option<&str>) -> PathBuf {
    let stem = output.file_stem().unwrap_or_default().to_string_lossy();
    let own = output.extension().map(|extension| extension.to_string_lossy().into_owned());
    let name = match extension.map(str::to_owned).or(own) {
        Some(extension) => format!("{stem}.{part}.{extension}"),
        None => format!("{stem}.{part}"),
    };
    output.with_file_name(name)
}

fn planning(arguments: &Arguments) -> Options {
    let layer = |text: &String| text.parse().map_or_else(|_| Layer::Name(text.clone()), Layer::Index);
    let layers = (!arguments.layers.is_empty()).then(|| Layers(arguments.layers.iter().map(layer).collect()));
    Options {
        group: arguments.group,
        vote: match arguments.vote {
            VoteFlag::Output => Vote::Output,
            VoteFlag::Accumulator => Vote::Accumulator,
            VoteFlag::Operation => Vote::Operation,
        },
        measure: match arguments.measure {
            MeasureFlag::Doubt => Measure::Doubt,
            MeasureFlag::CrossEntropy => Measure::CrossEntropy,
            MeasureFlag::Top1 => Measure::Top1,
        },
        scope: Scope { layers, free_steps: arguments.free_steps },
        screen: arguments.screen,
        rounds: arguments.rounds,
        validate: if arguments.compare { VALIDATION_PARTS } else { 0 },
        ..Options::default()
    }
}
