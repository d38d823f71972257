//! Retrains a QDQ model on a faulty simulator, from arrays in plain files; for experiments.
//!
//! `retrain MODEL.onnx FAULTS.toml|none PICTURES LABELS TEST_PICTURES TEST_LABELS KEY=VALUE...`
//!
//! PICTURES holds pixels as bytes, one picture after another in the model's layout; LABELS one byte each. Keys are the
//! fields of `chipfit_train::Config` as JSON values, and `threads`, `train` (pictures), `test` (pictures), `repeats`;
//! `clean=true` trains without the faults.

use std::sync::Arc;

use chipfit_model::Model;
use chipfit_npu::lower::LowerOptions;
use chipfit_npu::{Faults, FaultsFile, Processor as _, Program, Simulator, SimulatorOptions, StrikeSource};
use chipfit_train::pictures::Memory;
use chipfit_train::{Accuracy, Config, Faultiness, Flow, Observer, Retraining, StepReport, Thinned, evaluate};

type Failure = Box<dyn std::error::Error>;

struct Lines {
    every: u64,
    device: f64,
    server: f64,
}

impl Observer for Lines {
    fn step(&mut self, report: &StepReport) -> Flow {
        self.device += report.device_seconds;
        self.server += report.server_seconds;
        if report.step.is_multiple_of(self.every) {
            println!(
                "step {:5} of {} epoch {} loss {:.4} running {:.2}% changed {} strikes {:?} norm {:.2} device {:.1}s server {:.1}s",
                report.step,
                report.steps,
                report.epoch,
                report.loss,
                100.0 * report.running_top1,
                report.changed,
                report.strikes,
                report.norm,
                self.device,
                self.server,
            );
        }
        Flow::Continue
    }
}

fn pictures(program: &Program, bytes: &str, labels: &str, first: u64, most: usize) -> Result<Memory, Failure> {
    let (mut bytes, labels) = (std::fs::read(bytes)?, std::fs::read(labels)?);
    let each = bytes.len() / labels.len().max(1);
    let count = labels.len().min(most);
    bytes.truncate(count * each);
    let labels: Vec<usize> = labels.into_iter().take(count).map(usize::from).collect();
    let pixels: Vec<f32> = bytes.into_iter().map(f32::from).collect();
    let bytes = program.quantise_input(&pixels);
    Ok(Memory { bytes, ids: (first..).take(labels.len()).collect(), labels })
}

fn accuracy(simulator: &mut Simulator, test: &Memory, repeats: u64) -> Result<Accuracy, Failure> {
    let mut sum = Accuracy::default();
    for repeat in 0..repeats {
        let one = evaluate(simulator, test, 64, (1 << 40) + repeat)?;
        sum.pictures += one.pictures;
        sum.top1 += one.top1;
        sum.top5 += one.top5;
    }
    Ok(sum)
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, faults, train, train_labels, test, test_labels, settings @ ..] = arguments.as_slice() else {
        return Err("usage: retrain MODEL FAULTS|none PICTURES LABELS TEST_PICTURES TEST_LABELS KEY=VALUE...".into());
    };
    let mut config = serde_json::to_value(Config::default())?;
    let (mut threads, mut most, mut most_test, mut repeats, mut clean) = (1usize, usize::MAX, usize::MAX, 1u64, false);
    for setting in settings {
        let (key, value) = setting.split_once('=').ok_or("KEY=VALUE expected")?;
        match key {
            "threads" => threads = value.parse()?,
            "train" => most = value.parse()?,
            "test" => most_test = value.parse()?,
            "clean" => clean = value.parse()?,
            "repeats" => repeats = value.parse()?,
            _ => config[key] = serde_json::from_str(value)?,
        }
    }
    let config: Config = serde_json::from_value(config)?;
    let model = Model::open(std::path::Path::new(model), &chipfit_model::Limits::default())?;
    let program = Program::lower(&model, &LowerOptions::default())?;
    let train = pictures(&program, train, train_labels, 0, most)?;
    let test = pictures(&program, test, test_labels, 1 << 32, most_test)?;
    let options = SimulatorOptions { threads, ..SimulatorOptions::default() };
    let mut simulator = Simulator::new(program.clone(), options)?;
    println!("{config:?}");
    println!("before, no faults: {:.2}%", 100.0 * accuracy(&mut simulator, &test, 1)?.top1_share());
    let mut thinned = None;
    if faults != "none" {
        let file = FaultsFile::parse(&std::fs::read_to_string(faults)?)?;
        let source: Arc<dyn StrikeSource + Send + Sync> = Arc::new(Faults::resolve(&file, &program, config.seed)?);
        let source = Thinned::new(source);
        simulator = simulator.with_faults(Arc::new(source.clone()), config.seed);
        thinned = Some(source);
        println!("before, faults: {:.2}%", 100.0 * accuracy(&mut simulator, &test, repeats)?.top1_share());
    }
    let job = Retraining {
        config: &config,
        model: Some(&model),
        training: &train,
        validation: None,
        teacher: None,
        threads,
        checkpoint: None,
    };
    if let Some(thinned) = thinned.as_mut().filter(|_| clean) {
        thinned.set_scale(0.0)?;
    }
    let faultiness = thinned.as_mut().filter(|_| !clean).map(|thinned| thinned as &mut dyn Faultiness);
    let outcome = job.run(&mut simulator, faultiness, &mut Lines { every: 50, device: 0.0, server: 0.0 })?;
    if let Some(thinned) = &mut thinned {
        thinned.set_scale(1.0)?;
        println!("after, faults: {:.2}%", 100.0 * accuracy(&mut simulator, &test, repeats)?.top1_share());
    }
    let mut clean = Simulator::new(simulator.program().clone(), options)?;
    println!("after, no faults: {:.2}%", 100.0 * accuracy(&mut clean, &test, 1)?.top1_share());
    println!("weights {} optimizer {}", outcome.weights_sha256, outcome.optimizer_sha256);
    Ok(())
}
