//! What `inject` opens: campaign file, model, pictures; and the clean results of the chosen pictures.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, bail};
use chipfit_campaign::executor::{Executor, ExecutorError};
use chipfit_campaign::file::{Campaign, CurveFaults, Mode, Select};
use chipfit_campaign::folder::{Origin, RunFolder, Shard, sha256};
use chipfit_campaign::random::Permutation;
use chipfit_campaign::simulated::{Pictures, Simulated, SimulatedOptions, point_facts};
use chipfit_campaign::subject::{Layer, PointFacts, Subject};
use chipfit_campaign::{CampaignError, Judge};
use chipfit_data::{DataSet, OpenOptions, PreferredSplit, Preprocess};
use chipfit_npu::protection::PlanFile;
use chipfit_npu::{Faults, FaultsFile, Machine, Op, Program, Protection, StepId};

use super::Arguments;
use crate::data_options::PictureInput;
use crate::failure::usage;
use crate::options;
use crate::terminal::{self, note};

/// Separates the order of pictures from all other draws of the seed.
const DRAW_PICTURES: u64 = 4;
/// Most memory for quantised pictures that are kept.
const CACHE_BYTES: usize = 512 << 20;
/// Pictures that one thread computes at a time.
const CHUNK: usize = 32;

/// A campaign with all it acts on.
pub(super) struct Subjected {
    pub(super) campaign: Campaign,
    pub(super) origin: Origin,
    pub(super) subject: Subject,
    pub(super) executor: Simulated<Quantised>,
    pub(super) judge: Judge,
    pub(super) threads: usize,
}

/// Pictures of a data set as the program's input bytes; kept as far as they fit.
pub(super) struct Quantised {
    data: DataSet,
    preprocess: Preprocess,
    program: Program,
    kept: Vec<OnceLock<Vec<u8>>>,
    room: AtomicUsize,
}

impl Pictures for Quantised {
    fn key(&self, index: u64) -> u64 {
        usize::try_from(index).ok().filter(|&i| i < self.data.len()).map_or(0, |i| self.data.id(i))
    }

    fn input(&self, indices: &[u64]) -> Result<Vec<u8>, ExecutorError> {
        let mut input = Vec::new();
        for &index in indices {
            let index = usize::try_from(index)?;
            if let Some(bytes) = self.kept.get(index).and_then(OnceLock::get) {
                input.extend_from_slice(bytes);
                continue;
            }
            let values = self.data.batch([index], &self.preprocess)?;
            let bytes = self.program.quantise_input(&values);
            input.extend_from_slice(&bytes);
            let has_room = self
                .room
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |room| room.checked_sub(bytes.len()))
                .is_ok();
            if let (true, Some(slot)) = (has_room, self.kept.get(index)) {
                // Another thread may have been first, with the same bytes.
                let _ = slot.set(bytes);
            }
        }
        Ok(input)
    }
}

impl Quantised {
    /// Name of a picture in its data set.
    pub(super) fn name(&self, index: u64) -> &str {
        usize::try_from(index).ok().filter(|&i| i < self.data.len()).map_or("?", |i| self.data.name(i))
    }

    /// Name of a class.
    pub(super) fn class(&self, class: u32) -> String {
        self.data.class_name(class).map_or_else(|| class.to_string(), |name| format!("{class} ({name})"))
    }
}

impl Subjected {
    pub(super) fn new(arguments: &Arguments, campaign_path: &Path, command: &[String]) -> Result<Self> {
        let text = std::fs::read_to_string(campaign_path)
            .with_context(|| format!("cannot read '{}'", campaign_path.display()))?;
        let in_file = || format!("'{}'", campaign_path.display());
        let mut campaign = Campaign::parse(&text).with_context(in_file)?;
        if let Some(id) = &arguments.replay {
            campaign.seed = id.seed;
        }
        let base = campaign_path.parent().unwrap_or(Path::new(""));
        let model_path = match (&arguments.model, &campaign.model) {
            (Some(path), _) => path.clone(),
            (None, Some(path)) => base.join(path),
            (None, None) => return Err(usage("no model: name one, or write `model` into the campaign")),
        };
        let spec = match (&arguments.data, &campaign.data) {
            (Some(spec), _) => spec.clone(),
            (None, Some(spec)) => base.join(spec).to_string_lossy().into_owned(),
            (None, None) => return Err(usage("no pictures: give --data, or write `data` into the campaign")),
        };
        let model_bytes =
            std::fs::read(&model_path).with_context(|| format!("cannot read '{}'", model_path.display()))?;
        let model = options::open(&model_path)?;
        let in_model = || format!("'{}'", model_path.display());
        let program = arguments.program.lower(&model, &model_path)?;
        for warning in program.warnings() {
            note(&format!("warning: {}", terminal::printable(warning)));
        }
        let input = PictureInput::of(&model).with_context(in_model)?;
        let (preprocess, _) = arguments.preprocess.resolve(&model_path, &input)?;
        let open = OpenOptions {
            labels: arguments.labels.clone(),
            preferred_split: PreferredSplit::Test,
            ..OpenOptions::default()
        };
        let data = DataSet::open(&spec, &open).with_context(|| format!("--data '{spec}'"))?;
        let inputs = named_files(&campaign, base)?;
        let protection = match &campaign.tmr {
            None => Protection::none(),
            Some(path) => {
                let read = PlanFile::parse(&text_of(&inputs, path)?);
                let plan = read.with_context(|| format!("'{}'", path.display()))?;
                Protection::resolve(&plan, &program).with_context(|| format!("'{}'", path.display()))?
            }
        };
        let (points, facts) = points(&campaign, &program, &protection, &inputs).with_context(in_file)?;
        let origin = Origin {
            model: sha256(&model_bytes),
            data: data.fingerprint().to_string(),
            preprocessing: preprocess.to_toml(),
            processor: format!(
                "simulated integer processor, requantize {}, program {}",
                arguments.program.requantize(),
                program_hash(&program),
            ),
            campaign_text: text,
            inputs,
            command: command.to_vec(),
        };
        let options = SimulatedOptions { seed: campaign.seed, machine: machine(&campaign)?, protection, points };
        let threads = arguments
            .threads
            .map(usize::from)
            .or(campaign.threads)
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
        let judge = Judge::new(program.tensor(program.output()).scale);
        let kept = std::iter::repeat_with(OnceLock::new).take(data.len()).collect();
        let room = AtomicUsize::new(CACHE_BYTES);
        let pictures = Quantised { data, preprocess, program: program.clone(), kept, room };
        let executor = Simulated::new(program, pictures, options);
        let subject = subject(&campaign, &executor, &judge, threads, facts)?;
        Ok(Self { campaign, origin, subject, executor, judge, threads })
    }

    pub(super) fn create_folder(&self, path: &Path, shard: Option<Shard>) -> Result<RunFolder> {
        // One shard of one is the whole run, and resumes as such.
        let shard = shard.filter(|s| s.of > 1);
        Ok(RunFolder::create(path, &self.origin, shard, self.subject.clone())?)
    }
}

/// The chip that the campaign describes.
fn machine(campaign: &Campaign) -> Result<Machine> {
    let lanes = campaign.lanes.try_into().context("`lanes`: at least 1")?;
    Ok(Machine { lanes, ..Machine::default() })
}

/// Layers, the chosen pictures, and their clean results.
fn subject(
    campaign: &Campaign,
    executor: &Simulated<Quantised>,
    judge: &Judge,
    threads: usize,
    points: Vec<PointFacts>,
) -> Result<Subject> {
    let program = executor.program();
    let layers = (0..program.steps().len()).filter_map(|step| Layer::of(program, StepId(step))).collect();
    let output = program.tensor(program.output());
    if output.elements() != output.channels() {
        bail!(
            "the model's output '{}' has the shape {:?} a picture; a classifier has one number a class",
            output.name,
            output.shape
        );
    }
    let data = &executor.pictures().data;
    if data.classes() > output.channels() {
        bail!(
            "the data set has {} classes, the model {}; --labels can say which are which",
            data.classes(),
            output.channels()
        );
    }
    let all = data.len() as u64;
    let wanted = campaign.images.count.unwrap_or(all);
    if wanted > all {
        bail!("`images`: {wanted} pictures are wanted, the data set has {all}");
    }
    let order = Permutation::new(&[campaign.seed, DRAW_PICTURES], all);
    let mut candidates = (0..all).map(|i| match campaign.images.select {
        Select::Random => order.at(i),
        Select::First => i,
    });
    let bar = terminal::bar("clean", wanted);
    let mut pictures = Vec::new();
    while (pictures.len() as u64) < wanted {
        // With `correct_only` some will be passed over; a few rounds find enough.
        let lacking = usize::try_from(wanted - pictures.len() as u64)?;
        let round: Vec<u64> = candidates.by_ref().take(lacking).collect();
        if round.is_empty() {
            break;
        }
        for (index, output) in clean_outputs(executor, &round, threads)? {
            let label = data.label(usize::try_from(index)?);
            let picture = judge.clean(index, label, &output);
            if !campaign.images.correct_only || picture.is_right() {
                pictures.push(picture);
            }
        }
        bar.set_position(pictures.len() as u64);
    }
    bar.finish_and_clear();
    if campaign.images.count.is_some() && (pictures.len() as u64) < wanted {
        note(&format!(
            "warning: the clean model gets only {} of {all} pictures right; all of them are taken",
            pictures.len()
        ));
    }
    Ok(Subject { layers, classes: u32::try_from(output.channels())?, pictures, points })
}

/// The clean outputs of some pictures, in their order.
fn clean_outputs(executor: &Simulated<Quantised>, indices: &[u64], threads: usize) -> Result<Vec<(u64, Vec<u8>)>> {
    let next = AtomicUsize::new(0);
    let chunks: Vec<&[u64]> = indices.chunks(CHUNK).collect();
    let work = || -> Result<(), ExecutorError> {
        while let Some(chunk) = chunks.get(next.fetch_add(1, Ordering::Relaxed)) {
            executor.clean(chunk)?;
        }
        Ok(())
    };
    let failures: Vec<ExecutorError> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(work)).collect();
        workers.into_iter().filter_map(|worker| worker.join().ok()?.err()).collect()
    });
    if let Some(failure) = failures.into_iter().next() {
        return Err(CampaignError::Executor(failure).into());
    }
    // Every output is known now: this only collects them.
    let outputs = executor.clean(indices).map_err(CampaignError::Executor)?;
    Ok(indices.iter().copied().zip(outputs).collect())
}

/// The files that a campaign names, by its names for them.
fn named_files(campaign: &Campaign, base: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut paths: Vec<&PathBuf> = campaign.tmr.iter().collect();
    if let Mode::Rate(curves) = &campaign.mode {
        paths.extend(curves.iter().filter_map(|curve| match &curve.faults {
            CurveFaults::File(path) => Some(path),
            CurveFaults::Entry(_) => None,
        }));
    }
    let mut files = BTreeMap::new();
    for path in paths {
        let found = base.join(path);
        let content = std::fs::read(&found).with_context(|| format!("cannot read '{}'", found.display()))?;
        files.insert(path.display().to_string(), content);
    }
    Ok(files)
}

fn text_of(files: &BTreeMap<String, Vec<u8>>, path: &Path) -> Result<String> {
    let bytes = files.get(&path.display().to_string()).cloned().unwrap_or_default();
    String::from_utf8(bytes).with_context(|| format!("'{}' is no text", path.display()))
}

/// The faults of each point of each curve, one curve after another.
fn points(
    campaign: &Campaign,
    program: &Program,
    protection: &Protection,
    files: &BTreeMap<String, Vec<u8>>,
) -> Result<(Vec<Faults>, Vec<PointFacts>)> {
    let mut points = Vec::new();
    if let Mode::Rate(curves) = &campaign.mode {
        for curve in curves {
            for at in 0..curve.rates.len() {
                let file = match &curve.faults {
                    CurveFaults::File(path) => {
                        FaultsFile::parse(&text_of(files, path)?).with_context(|| format!("'{}'", path.display()))?
                    }
                    CurveFaults::Entry(_) => {
                        curve.faults_file(at, machine(campaign)?).context("a point without a rate")?
                    }
                };
                let faults = Faults::resolve(&file, program, campaign.seed);
                points.push(faults.with_context(|| format!("curve '{}'", curve.name))?);
            }
        }
    }
    let facts = points.iter().map(|faults| point_facts(faults, program, protection)).collect();
    Ok((points, facts))
}

/// Tells programs apart whose model files are equal but whose external weights are not.
fn program_hash(program: &Program) -> String {
    let mut bytes = Vec::new();
    for step in program.steps() {
        bytes.extend_from_slice(step.name.as_bytes());
        bytes.push(0);
        if let Op::Linear(linear) = &step.op {
            bytes.extend(linear.weights.iter().map(|w| w.cast_unsigned()));
            bytes.extend(linear.bias.iter().flat_map(|b| b.to_le_bytes()));
        }
    }
    sha256(&bytes).chars().take(16).collect()
}
