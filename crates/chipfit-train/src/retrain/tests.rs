//! The loop on a small network with a task that it can learn: it learns, with faults too; interruption, threads and
//! resumption leave no trace; the exported model is the one that the processor holds.

use std::path::PathBuf;
use std::sync::Arc;

use chipfit_model::Model;
use chipfit_model::build::attr_is;
use chipfit_npu::lower::LowerOptions;
use chipfit_npu::testing::Numbers;
use chipfit_npu::testing::qdq::Qdq;
use chipfit_npu::{Faults, FaultsFile, Processor, Program, Simulator, SimulatorOptions};

use super::{Outcome, Retraining};
use crate::augment::Augmentation;
use crate::config::{Config, Scales};
use crate::curriculum::{Faultiness, Thinned};
use crate::observe::{Flow, Observer, Silent, StepReport};
use crate::pictures::{Memory, evaluate};
use crate::schedule::{Curriculum, Decay, Schedule};
use crate::state::State;

/// 2 x 6 x 6 pictures, a convolution to 6 channels of half the size with Relu, and 4 classes.
fn network() -> Model {
    let mut qdq = Qdq::new(&[1, 2, 6, 6], 0.02, 0);
    let x = qdq.quantised("x", 0.02, 100);
    let scales = [0.002, 0.003, 0.001, 0.002, 0.0025, 0.002];
    let w = qdq.weights(&[6, 2, 3, 3], &scales);
    let b = qdq.bias(&[100, -200, 300, 100, 50, 0], &scales.map(|scale| 0.02f32 * scale));
    let strides = vec![attr_is("pads", &[1, 1, 1, 1]), attr_is("strides", &[2, 2])];
    let conv = qdq.node("Conv", &[&x, &w, &b], strides);
    let relu = qdq.node("Relu", &[&conv], vec![]);
    let y = qdq.quantised(&relu, 0.02, 0);
    let flat = qdq.node("Flatten", &[&y], vec![]);
    let w = qdq.weights(&[54, 4], &[0.001]);
    let gemm = qdq.node("Gemm", &[&flat, &w], vec![]);
    let out = qdq.quantised(&gemm, 0.05, 128);
    qdq.model(&out)
}

/// Noise, and the quadrant of the class brighter.
fn pictures(count: usize, seed: u64) -> Memory {
    let mut numbers = Numbers::new(seed);
    let (mut bytes, mut labels) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let label = numbers.below(4);
        for pixel in 0..36 {
            let quadrant = pixel / 18 * 2 + pixel % 6 / 3;
            let bright = if quadrant == label { 50 } else { 0 };
            bytes.extend((0..2).map(|_| (60 + bright + numbers.below(60)) as u8));
        }
        labels.push(label);
    }
    Memory { bytes, ids: (0..).take(labels.len()).collect(), labels }
}

fn config() -> Config {
    Config {
        batch: 16,
        epochs: 3,
        rate: 2e-2,
        schedule: Schedule { warm_up: 0.1, decay: Decay::Cosine },
        checkpoint_every: 1000,
        ..Config::default()
    }
}

fn faults(program: &Program, ber: f64) -> Thinned {
    let text = format!("[[fault]]\nsites = [\"mul\", \"acc\"]\nkind = \"flip\"\nber = {ber}\n");
    let file = FaultsFile::parse(&text).unwrap();
    Thinned::new(Arc::new(Faults::resolve(&file, program, 5).unwrap()))
}

struct Job {
    model: Model,
    config: Config,
    training: Memory,
    validation: Option<Memory>,
    ber: f64,
    threads: usize,
    checkpoint: Option<PathBuf>,
}

impl Job {
    fn new(config: Config) -> Self {
        let (model, training) = (network(), pictures(192, 1));
        Self { model, config, training, validation: None, ber: 0.0, threads: 1, checkpoint: None }
    }

    fn processor(&self) -> (Simulator, Thinned) {
        let program = Program::lower(&self.model, &LowerOptions::default()).unwrap();
        let faults = faults(&program, self.ber);
        let simulator = Simulator::new(program, SimulatorOptions::default()).unwrap();
        (simulator.with_faults(Arc::new(faults.clone()), 5), faults)
    }

    fn run(&self, observer: &mut dyn Observer) -> (Outcome, Simulator) {
        let (mut simulator, mut faults) = self.processor();
        let outcome = self.run_on(&mut simulator, &mut faults, observer).unwrap();
        faults.set_scale(1.0).unwrap();
        (outcome, simulator)
    }

    fn run_on(
        &self,
        simulator: &mut Simulator,
        faults: &mut Thinned,
        observer: &mut dyn Observer,
    ) -> Result<Outcome, crate::TrainError> {
        let retraining = Retraining {
            config: &self.config,
            model: Some(&self.model),
            training: &self.training,
            validation: self.validation.as_ref().map(|pictures| pictures as &dyn crate::Pictures),
            teacher: None,
            threads: self.threads,
            checkpoint: self.checkpoint.clone(),
        };
        retraining.run(simulator, Some(faults), observer)
    }
}

fn accuracy(processor: &mut dyn Processor) -> f64 {
    evaluate(processor, &pictures(400, 2), 50, 1 << 40).unwrap().top1_share()
}

/// Stops after so many steps.
struct Stop(u64);

impl Observer for Stop {
    fn step(&mut self, report: &StepReport) -> Flow {
        if report.step == self.0 { Flow::Stop } else { Flow::Continue }
    }
}

#[test]
fn it_learns_without_faults_and_with_them() {
    for ber in [0.0, 2e-5] {
        let job = Job { ber, ..Job::new(config()) };
        let before = accuracy(&mut job.processor().0);
        let (outcome, mut simulator) = job.run(&mut Silent);
        let after = accuracy(&mut simulator);
        assert!(before < 0.5, "{before}");
        assert!(after > if ber > 0.0 { 0.8 } else { 0.95 }, "ber {ber}: {before} to {after}");
        assert!(outcome.is_finished && outcome.state.step == 36);
        let history = &outcome.state.history;
        assert_eq!(history.len(), 3);
        assert!(history[2].loss < history[0].loss);
    }
}

#[test]
fn the_processor_the_masters_and_the_model_agree_at_the_end() {
    let (outcome, simulator) = Job::new(config()).run(&mut Silent);
    let program = simulator.program();
    for (parameter, held) in outcome.state.masters.parameters().iter().zip(outcome.state.masters.held()) {
        assert_eq!(parameter.held(program).unwrap(), *held);
    }
    let bytes = outcome.model.unwrap().to_bytes().unwrap();
    let read = Model::from_bytes(bytes.into(), &chipfit_model::Limits::default()).unwrap();
    let lowered = Program::lower(&read, &LowerOptions::default()).unwrap();
    assert_eq!(lowered.steps(), program.steps());
    assert_eq!(lowered.tensors(), program.tensors());
    let original = Program::lower(&network(), &LowerOptions::default()).unwrap();
    assert_ne!(lowered.steps(), original.steps());
}

/// Every option that carries state from step to step.
fn everything() -> Config {
    Config {
        augmentation: Augmentation { flip: true, shift: 1 },
        draws: 2,
        accumulate: 2,
        ema: Some(0.9),
        weight_decay: 0.01,
        scales: Scales::Weights,
        narrow: Some(0.01),
        patience: Some(2),
        curriculum: Curriculum { start: 0.2, ramp: 0.5 },
        ..config()
    }
}

fn same(a: &State, b: &State) {
    assert_eq!(a.step, b.step);
    assert_eq!(a.masters, b.masters);
    assert_eq!(a.optimizer, b.optimizer);
    assert_eq!(a.mean, b.mean);
    assert_eq!(a.best, b.best);
    assert_eq!(a.history, b.history);
}

#[test]
fn an_interrupted_run_ends_like_an_undisturbed_one_on_any_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let whole = Job { ber: 1e-4, validation: Some(pictures(60, 3)), ..Job::new(everything()) };
    let (undisturbed, _) = whole.run(&mut Silent);
    assert!(undisturbed.is_finished);
    for (at, threads) in [(1, 1), (6, 2), (8, 3), (13, 1)] {
        let checkpoint = Some(folder.path().join(format!("checkpoint{at}")));
        let job = Job { ber: 1e-4, validation: Some(pictures(60, 3)), threads, checkpoint, ..Job::new(everything()) };
        let (first, _) = job.run(&mut Stop(at));
        assert!(!first.is_finished && first.state.step == at);
        assert_ne!(first.weights_sha256, undisturbed.weights_sha256);
        let (second, _) = job.run(&mut Silent);
        assert_eq!(second.resumed_from, at);
        same(&second.state, &undisturbed.state);
        assert_eq!(second.weights_sha256, undisturbed.weights_sha256);
        assert_eq!(second.optimizer_sha256, undisturbed.optimizer_sha256);
    }
}

#[test]
fn a_damaged_or_foreign_checkpoint_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint");
    let job = Job { checkpoint: Some(path.clone()), ..Job::new(config()) };
    job.run(&mut Stop(2));
    let whole = std::fs::read(&path).unwrap();
    let refused = |job: &Job| {
        let (mut simulator, mut faults) = job.processor();
        job.run_on(&mut simulator, &mut faults, &mut Silent).unwrap_err().to_string()
    };
    for position in [0, 30, whole.len() / 2, whole.len() - 1] {
        let mut bytes = whole.clone();
        bytes[position] ^= 4;
        std::fs::write(&path, bytes).unwrap();
        assert!(refused(&job).contains("damaged"));
    }
    std::fs::write(&path, &whole[..20]).unwrap();
    assert!(refused(&job).contains("damaged"));
    std::fs::write(&path, &whole).unwrap();
    let other = Job { checkpoint: Some(path), ..Job::new(Config { rate: 1.0, ..config() }) };
    assert!(refused(&other).contains("another configuration"));
}

#[test]
fn estimated_scales_fit_the_masters() {
    let (outcome, simulator) = Job::new(Config { scales: Scales::Weights, ..config() }).run(&mut Silent);
    let original = Program::lower(&network(), &LowerOptions::default()).unwrap();
    let scales = |program: &Program, step: usize| match &program.steps()[step].op {
        chipfit_npu::Op::Linear(linear) => linear.weight_scales.clone(),
        _ => Vec::new(),
    };
    let steps: Vec<usize> = (0..original.steps().len()).filter(|&at| !scales(&original, at).is_empty()).collect();
    assert_eq!(steps.len(), 2);
    for step in steps {
        assert_ne!(scales(&original, step), scales(simulator.program(), step));
    }
    // One scale for the whole of the second matrix stays one.
    let last = scales(simulator.program(), simulator.program().steps().len() - 1);
    assert!(last.iter().all(|scale| *scale == last[0]));
    let lowered = Program::lower(&outcome.model.unwrap(), &LowerOptions::default()).unwrap();
    assert_eq!(lowered.steps(), simulator.program().steps());
}

#[test]
fn narrowed_ranges_cut_off_the_share_and_nothing_at_input_and_output() {
    let original = Program::lower(&network(), &LowerOptions::default()).unwrap();
    let config = Config { narrow: Some(0.02), rate: 0.0, steps: Some(1), ..config() };
    let (outcome, simulator) = Job::new(config).run(&mut Silent);
    let program = simulator.program();
    for (before, after) in original.tensors().iter().zip(program.tensors()) {
        let is_end = [original.input(), original.output()].iter().any(|&id| original.tensor(id).name == before.name);
        if is_end {
            assert_eq!(before.scale, after.scale, "{}", before.name);
        } else {
            assert!(after.scale < 0.9 * before.scale, "{}: {} to {}", before.name, before.scale, after.scale);
        }
        assert_eq!(before.zero_point, after.zero_point);
    }
    // Real values of weights and biases stay, to half a step.
    let (before, after) = (crate::Masters::from_program(&original).unwrap(), outcome.state.masters);
    for ((old, new), parameter) in before.values().iter().zip(after.values()).zip(after.parameters()) {
        for (at, (old, new)) in old.iter().zip(new).enumerate() {
            let step = parameter.scales[at / parameter.per_channel()];
            assert!((old - new).abs() <= 0.51 * step, "{}", parameter.name);
        }
    }
    // The share of saturated values, on pictures of the same kind.
    let relu = program.steps()[0].output;
    let mut simulator = Simulator::new(program.clone(), SimulatorOptions::default()).unwrap();
    let set = pictures(100, 9);
    let batch = chipfit_npu::Batch { pictures: &set.ids, input: &set.bytes };
    let request = chipfit_npu::Request { batch, trial: 0, views: &[], wanted: &[relu] };
    let trace = simulator.forward(&request).unwrap();
    let bytes = &trace.tensors[&relu];
    let share = bytes.iter().filter(|&&byte| byte == 255).count() as f64 / bytes.len() as f64;
    assert!((0.005..0.04).contains(&share), "{share}");
}

#[test]
fn every_draw_and_part_has_faults_of_its_own() {
    /// Remembers the trials.
    struct Trials(Simulator, Vec<u64>);
    impl Processor for Trials {
        fn describe(&self) -> String {
            self.0.describe()
        }
        fn program(&self) -> &Program {
            self.0.program()
        }
        fn update(&mut self, deltas: &[chipfit_npu::TensorDelta]) -> Result<(), chipfit_npu::ProcessorError> {
            self.0.update(deltas)
        }
        fn load(&mut self, model: &Model) -> Result<(), chipfit_npu::ProcessorError> {
            self.0.load(model)
        }
        fn protect(&mut self, protection: &chipfit_npu::Protection) -> Result<(), chipfit_npu::ProcessorError> {
            self.0.protect(protection)
        }
        fn forward(
            &mut self,
            request: &chipfit_npu::Request<'_>,
        ) -> Result<chipfit_npu::Trace, chipfit_npu::ProcessorError> {
            self.1.push(request.trial);
            self.0.forward(request)
        }
    }
    let job = Job::new(Config { draws: 3, accumulate: 2, epochs: 1, ..config() });
    let mut trials = Trials(job.processor().0, Vec::new());
    let retraining = Retraining {
        config: &job.config,
        model: None,
        training: &job.training,
        validation: None,
        teacher: None,
        threads: 1,
        checkpoint: None,
    };
    let outcome = retraining.run(&mut trials, None, &mut Silent).unwrap();
    assert_eq!(trials.1, (0..36).collect::<Vec<u64>>());
    assert!(outcome.model.is_none());
}

#[test]
fn what_has_no_meaning_is_refused_by_name() {
    let refused = |config: Config| {
        let job = Job::new(config);
        let (mut simulator, mut faults) = job.processor();
        job.run_on(&mut simulator, &mut faults, &mut Silent).unwrap_err().to_string()
    };
    assert!(refused(Config { batch: 0, ..config() }).contains("'batch'"));
    assert!(refused(Config { ema: Some(1.0), ..config() }).contains("'ema'"));
    assert!(refused(Config { clip: Some(f32::NAN), ..config() }).contains("'clip'"));
    assert!(refused(Config { patience: Some(1), ..config() }).contains("validation"));
    let mut job = Job::new(config());
    job.training.labels[5] = 4;
    let (mut simulator, mut faults) = job.processor();
    let text = job.run_on(&mut simulator, &mut faults, &mut Silent).unwrap_err().to_string();
    assert!(text.contains("picture 5") && text.contains("class is 4"), "{text}");
}
