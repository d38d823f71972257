//! Plans on small programs whose vulnerable channels are planted.

use std::sync::Arc;

use chipfit_model::build::attr_is;
use chipfit_npu::faults::file::{Layer, Layers};
use chipfit_npu::faults::{Faults, FaultsFile};
use chipfit_npu::lower::LowerOptions;
use chipfit_npu::program::ConvGeometry;
use chipfit_npu::testing::qdq::Qdq;
use chipfit_npu::testing::{Builder, Numbers, picture};
use chipfit_npu::{Processor, Program, Protection, Simulator, SimulatorOptions, StepId, TensorId};
use proptest::prelude::*;

use super::compare::{Answers, Baselines, COMPARING_TRIALS, Comparison, Strategy};
use super::gradient::gradient;
use super::*;

/// Two convolutions of 8 and 4 channels, then five classes.
fn program(seed: u64) -> Program {
    let mut builder = Builder::new(seed, &[3, 6, 6]);
    let geometry = |in_channels, out_channels| ConvGeometry {
        input: [6; 2],
        in_channels,
        out_channels,
        groups: 1,
        kernel: [3; 2],
        stride: [1; 2],
        dilation: [1; 2],
        pads: [1; 4],
    };
    let first = builder.linear("Conv", geometry(3, 8), TensorId(0), &[8, 6, 6]);
    let second = builder.linear("Conv", geometry(8, 4), first, &[4, 6, 6]);
    let flat = builder.shuffle(second, &[144]);
    builder.gemm(flat, 5);
    builder.build()
}

fn sample(program: &Program, count: u64) -> Sample {
    let input: Vec<u8> = (0..count).flat_map(|at| picture(program, at)).collect();
    // The labels are the clean answers, so that faults do harm.
    let mut clean = Simulator::new(program.clone(), SimulatorOptions::default()).unwrap();
    let pictures: Vec<u64> = (0..count).collect();
    let batch = chipfit_npu::Batch { pictures: &pictures, input: &input };
    let trace = clean.forward(&chipfit_npu::Request { batch, trial: 0, views: &[], wanted: &[] }).unwrap();
    let label = |output: &[u8]| (0..output.len()).rev().max_by_key(|&class| output[class]).unwrap_or(0) as u32;
    let labels = trace.output.chunks_exact(5).map(label).collect();
    Sample::new(program, pictures, labels, input).unwrap()
}

fn simulator(program: &Program, faults: &str, threads: usize) -> Simulator {
    let file = FaultsFile::parse(faults).unwrap();
    let faults = Faults::resolve(&file, program, 5).unwrap();
    let options = SimulatorOptions { threads, ..SimulatorOptions::default() };
    Simulator::new(program.clone(), options).unwrap().with_faults(Arc::new(faults), 5)
}

const EVERYWHERE: &str = "[[fault]]\nsites = [\"mul\", \"acc\"]\nkind = \"flip\"\nber = 3e-5\n";

fn quick() -> Options {
    Options { screen: 16, trials: 1, rounds: 1, ..Options::default() }
}

#[test]
fn a_planted_channel_is_found_and_nothing_else_is_worth_more() {
    for seed in 0..4 {
        let program = program(seed);
        let channel = (seed * 3 + 1) as u32 % 8;
        let faults =
            format!("[[fault]]\nsites = [\"out\"]\nkind = \"flip\"\nber = 0.05\nlayers = 0\nchannels = [{channel}]\n");
        let mut processor = simulator(&program, &faults, 1);
        let sample = sample(&program, 24);
        // Of answers that are right without faults, only harm can be seen.
        let options = Options { measure: Measure::Top1, ..quick() };
        // Room for one channel of the first layer.
        let one = 2.0 * (6.0 * 6.0 * 27.0) / program.macs() as f64;
        let plans = plans(&mut processor, &sample, &[one], &options, None).unwrap();
        let plan = &plans.plans[0];
        assert!(plan.protection.covers(StepId(0), channel as usize), "seed {seed}: {:?}", plan.file);
        let Vulnerabilities { units, values, influences } = &plan.vulnerabilities;
        for ((unit, value), influence) in units.iter().zip(values).zip(influences) {
            let is_it = unit.step == 0 && unit.channels == [channel];
            assert_eq!(influence.mean > 0.0, is_it, "seed {seed}, {unit:?}");
            assert_eq!(*value > 0.0, is_it, "seed {seed}, {unit:?}");
        }
        assert_eq!(plans.layer_order[0], StepId(0));
        let answers = Answers::of(&mut processor, &plan.protection, &sample, COMPARING_TRIALS, 3).unwrap();
        let bare = Answers::of(&mut processor, &Protection::none(), &sample, COMPARING_TRIALS, 3).unwrap();
        assert!(answers.accuracy().mean >= bare.accuracy().mean);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, ..ProptestConfig::default() })]
    #[test]
    fn no_plan_and_no_baseline_costs_more_than_asked(seed in 0u64..1000, percent in 0.0f64..200.0, group in 1usize..6) {
        let program = program(seed);
        let mut processor = simulator(&program, EVERYWHERE, 1);
        let sample = sample(&program, 6);
        let options = Options { group: Some(group), rounds: 1, ..quick() };
        let penalty = percent / 100.0;
        let done = plans(&mut processor, &sample, &[penalty], &options, None).unwrap();
        let plan = &done.plans[0];
        prop_assert!(plan.penalty <= penalty + 1e-9, "{} of {}", plan.penalty, penalty);
        // The plan file says the same.
        let again = Protection::resolve(&plan.file, &program).unwrap();
        prop_assert_eq!(again.penalty(&program), plan.penalty);
        // Room for one more unit is not left unused.
        let macs = program.macs() as f64;
        for (unit, on) in plan.vulnerabilities.units.iter().zip(&plan.chosen) {
            prop_assert!(*on || plan.penalty + 2.0 * unit.macs as f64 / macs > penalty - 1e-9);
        }
        let baselines = Baselines::new(&options, done.layer_order.clone(), 3);
        for strategy in Strategy::BASELINES {
            let protection = baselines.protection(&program, strategy, penalty).unwrap();
            prop_assert!(protection.penalty(&program) <= penalty + 1e-9, "{}", strategy.name());
        }
    }
}

#[test]
fn the_ends_need_no_choice() {
    let program = program(3);
    let mut processor = simulator(&program, EVERYWHERE, 1);
    let done = plans(&mut processor, &sample(&program, 4), &[0.0, 2.0], &quick(), None).unwrap();
    assert_eq!((done.plans[0].penalty, done.plans[1].penalty), (0.0, 2.0));
    assert!(done.plans[0].file.protect.is_empty());
    assert!(done.plans[1].chosen.iter().all(|&on| on));
    for strategy in Strategy::BASELINES {
        let baselines = Baselines::new(&quick(), done.layer_order.clone(), 3);
        let ends = [0.0, 2.0].map(|p| baselines.protection(&program, strategy, p).unwrap().penalty(&program));
        assert_eq!(ends, [0.0, 2.0], "{}", strategy.name());
    }
}

#[test]
fn plans_do_not_depend_on_threads_and_follow_from_the_seed() {
    let program = program(8);
    let sample = sample(&program, 9);
    let run = |threads: usize, first_trial: u64| {
        let mut processor = simulator(&program, EVERYWHERE, threads);
        let options = Options { first_trial, ..quick() };
        let done = plans(&mut processor, &sample, &[0.4, 0.9], &options, None).unwrap();
        let values = done.plans.iter().map(|plan| plan.vulnerabilities.clone()).collect::<Vec<_>>();
        (done.plans.iter().map(|plan| plan.file.to_toml()).collect::<Vec<_>>(), values, done.layer_order)
    };
    let one = run(1, 0);
    assert_eq!(one, run(1, 0));
    assert_eq!(one, run(3, 0));
    assert_ne!(one.1, run(1, 77).1);
}

#[test]
fn a_later_plan_starts_from_earlier_vulnerabilities() {
    let program = program(8);
    let sample = sample(&program, 9);
    let mut processor = simulator(&program, EVERYWHERE, 1);
    let first = plans(&mut processor, &sample, &[0.5], &quick(), None).unwrap().plans.remove(0);
    let options = Options { rounds: 0, ..quick() };
    let next = plans(&mut processor, &sample, &[0.5], &options, Some(&first.vulnerabilities)).unwrap().plans.remove(0);
    assert_eq!(next.vulnerabilities, first.vulnerabilities);
    let text = serde_json::to_string(&first.vulnerabilities).unwrap();
    assert_eq!(serde_json::from_str::<Vulnerabilities>(&text).unwrap().units, first.vulnerabilities.units);
    let options = Options { group: Some(2), ..quick() };
    let error = plans(&mut processor, &sample, &[0.5], &options, Some(&first.vulnerabilities)).unwrap_err();
    assert!(error.to_string().contains("another network"), "{error}");
}

#[test]
fn what_cannot_be_planned_is_refused_in_words() {
    let program = program(1);
    let sample = sample(&program, 4);
    let mut processor = simulator(&program, EVERYWHERE, 1);
    let layers = |name: &str| Some(Layers(vec![Layer::Name(name.to_owned())]));
    let scope = |name: &str| Options { scope: Scope { layers: layers(name), free_steps: false }, ..quick() };
    let cases = [
        (2.5, quick(), "250%"),
        (-0.1, quick(), "0 and 200"),
        (f64::NAN, quick(), "0 and 200"),
        (0.5, Options { group: Some(0), ..quick() }, "channels of a group"),
        (0.5, Options { trials: 0, ..quick() }, "trials"),
        (0.5, Options { screen: 0, ..quick() }, "pictures"),
        (0.5, scope("conw0"), "'conv0'"),
        (0.5, scope("move2"), "has products"),
    ];
    for (penalty, options, word) in cases {
        let error = plans(&mut processor, &sample, &[penalty], &options, None).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    let mut idle = simulator(&program, "[[fault]]\nsites = [\"mul\"]\nkind = \"flip\"\nber = 0.0\n", 1);
    let error = plans(&mut idle, &sample, &[0.5], &quick(), None).unwrap_err().to_string();
    assert!(error.contains("struck nothing"), "{error}");
    let error = Sample::new(&program, vec![], vec![], vec![]).unwrap_err().to_string();
    assert!(error.contains("no labelled pictures"), "{error}");
    let error = Sample::new(&program, vec![0], vec![9], vec![0; 108]).unwrap_err().to_string();
    assert!(error.contains("label 9"), "{error}");
    assert!(Sample::new(&program, vec![0, 1], vec![1, 1], vec![0; 108]).is_err());
}

#[test]
fn losses_follow_their_formulas() {
    let mut tensor = program(1).tensor(program(1).output()).clone();
    tensor.scale = 0.5;
    let output = [10u8, 12, 12, 8, 0];
    // Softmax of 5, 6, 6, 4, 0.
    let exp = |x: f64| x.exp();
    let sum = exp(5.0) + 2.0 * exp(6.0) + exp(4.0) + 1.0;
    for (label, logit) in [(0, 5.0), (1, 6.0), (2, 6.0), (4, 0.0)] {
        let p = exp(logit) / sum;
        assert!((Measure::CrossEntropy.loss(&tensor, &output, label) + p.ln()).abs() < 1e-12);
        assert!((Measure::Doubt.loss(&tensor, &output, label) - (1.0 - p)).abs() < 1e-12);
        assert_eq!(Measure::Top1.loss(&tensor, &output, label), f64::from(u8::from(label != 1)));
    }
}

#[test]
fn paired_differences_know_what_was_removed() {
    let program = program(5);
    let sample = sample(&program, 40);
    let mut processor = simulator(&program, EVERYWHERE, 1);
    let mut answers =
        |protection: &Protection| Answers::of(&mut processor, protection, &sample, COMPARING_TRIALS, 4).unwrap();
    let none = answers(&Protection::none());
    let full = answers(&Protection::full(&program, chipfit_npu::Vote::Output));
    let difference = full.less(&none);
    assert!((difference.mean - (full.accuracy().mean - none.accuracy().mean)).abs() < 1e-12);
    assert!(difference.low > 0.0 && difference.low < difference.mean, "{difference:?}");
    assert_eq!(none.less(&none).mean, 0.0);
    let by_trial = none.by_trial();
    assert_eq!(by_trial.len(), 4);
    assert!((by_trial.iter().sum::<f64>() / 4.0 - none.accuracy().mean).abs() < 1e-12);
}

#[test]
fn values_foretell_the_harm_of_parts_on_fresh_draws() {
    let program = program(2);
    let sample = sample(&program, 300);
    let mut processor = simulator(&program, EVERYWHERE, 1);
    let options = Options { validate: 2, rounds: 0, screen: 100, trials: 4, ..Options::default() };
    let done = plans(&mut processor, &sample, &[0.5], &options, None).unwrap();
    let validation = done.validation.unwrap();
    // Two parts of each of three layers.
    assert_eq!(validation.parts.len(), 6);
    assert!(validation.rank_correlation.unwrap() > 0.5, "{validation:?}");
    let calibration = validation.calibration.unwrap();
    assert!((0.5..2.0).contains(&calibration), "{validation:?}");
}

#[test]
fn a_front_holds_every_strategy_to_the_plan() {
    let program = program(2);
    let sample = sample(&program, 60);
    let mut processor = simulator(&program, EVERYWHERE, 1);
    let done = plans(&mut processor, &sample, &[0.0, 0.5, 2.0], &quick(), None).unwrap();
    let baselines = Baselines::new(&quick(), done.layer_order.clone(), 3);
    let on = Comparison { sample: &sample, seeds: 3, first_trial: COMPARING_TRIALS, baselines: Some(&baselines) };
    let front = front(&mut processor, &done, &on).unwrap();
    assert_eq!(front.points.iter().map(|p| p.percent).collect::<Vec<_>>(), [0.0, 50.0, 200.0]);
    for (point, end) in front.points.iter().zip([Some(front.unprotected), None, Some(front.everything)]) {
        assert_eq!(point.strategies.len(), 4);
        let own = &point.strategies[0];
        for s in &point.strategies[1..] {
            let less = s.plan_less_this.unwrap();
            assert!((less.mean - (own.accuracy.mean - s.accuracy.mean)).abs() < 1e-12);
            // At both ends all strategies are the same.
            assert!(end.is_none_or(|end| (less.low, less.high, s.accuracy) == (0.0, 0.0, end)));
        }
    }
    assert!(front.unprotected.mean < front.everything.mean);
    let text = serde_json::to_string(&front).unwrap();
    assert_eq!(serde_json::from_str::<Front>(&text).unwrap().points.len(), 3);
    let csv = front.to_csv();
    assert_eq!(csv.lines().count(), 13);
    let columns = |line: &str| line.split(',').count();
    assert!(csv.lines().all(|line| columns(line) == columns(csv.lines().next().unwrap())));
}

/// Two convolutions of 6 channels and 4 classes, every multiplier in keeping with the scales; 2 x 6 x 6 pictures.
fn scaled_network() -> Program {
    let mut qdq = Qdq::new(&[1, 2, 6, 6], 0.02, 0);
    let x = qdq.quantised("x", 0.02, 100);
    let scales = [0.002, 0.004, 0.001, 0.002, 0.0005, 0.003];
    let w = qdq.weights(&[6, 2, 3, 3], &scales);
    let strides = vec![attr_is("pads", &[1; 4]), attr_is("strides", &[2, 2])];
    let conv = qdq.node("Conv", &[&x, &w], strides);
    let relu = qdq.node("Relu", &[&conv], vec![]);
    let y = qdq.quantised(&relu, 0.02, 0);
    let w = qdq.weights(&[6, 6, 3, 3], &scales);
    let conv = qdq.node("Conv", &[&y, &w], vec![attr_is("pads", &[1; 4])]);
    let y = qdq.quantised(&conv, 0.03, 128);
    let flat = qdq.node("Flatten", &[&y], vec![]);
    let w = qdq.weights(&[54, 4], &[0.001]);
    let gemm = qdq.node("Gemm", &[&flat, &w], vec![]);
    let out = qdq.quantised(&gemm, 0.02, 128);
    Program::lower(&qdq.model(&out), &LowerOptions::default()).unwrap()
}

#[test]
fn gradients_rank_channels_as_injection_does() {
    const FAULTS: &str = "[[fault]]\nsites = [\"mul\", \"acc\"]\nkind = \"flip\"\nber = 3e-5\n";
    let program = scaled_network();
    let count = 3000;
    let mut numbers = Numbers::new(3);
    let input = (0..count * 72).map(|_| 60 + numbers.below(80) as u8).collect();
    let labels = (0..count as u32).map(|at| at % 4).collect();
    let sample = Sample::new(&program, (0..count as u64).collect(), labels, input).unwrap();
    let mut processor = simulator(&program, FAULTS, 1);
    let options = Options { rounds: 0, screen: count, ..quick() };
    let done = plans(&mut processor, &sample, &[0.5], &options, None).unwrap();
    let known = &done.plans[0].vulnerabilities;
    let faults = Faults::resolve(&FaultsFile::parse(FAULTS).unwrap(), &program, 5).unwrap();
    let machine = faults.machine();
    processor.protect(&Protection::none()).unwrap();
    let found = gradient(&mut processor, &faults, &machine, 5, &sample, 7, 100..104).unwrap();
    // Each unit struck alone: with others struck, too, a changed operand also turns the signs of their faults.
    let mut bench =
        vulnerability::Bench { processor: &mut processor, measure: Measure::Doubt, vote: chipfit_npu::Vote::Output };
    let alone = bench.influences(&sample, &known.units, &vec![true; known.units.len()], 20..21).unwrap();
    let measured: Vec<f64> = alone.iter().map(|e| e.mean).collect();
    let correlation = |sums: &[Vec<f64>]| {
        let own: Vec<f64> =
            known.units.iter().map(|u| u.channels.iter().map(|&c| sums[u.step][c as usize]).sum()).collect();
        assert!(own.iter().all(|value| value.is_finite() && *value >= 0.0), "{own:?}");
        (validation::spearman(&own, &measured).unwrap(), own.iter().sum::<f64>() / measured.iter().sum::<f64>())
    };
    let (second, scale) = correlation(&found.second_moment);
    let (first, _) = correlation(&found.first_order);
    assert!(second > 0.85 && first > 0.4, "{second} {first} {scale}");
    // The squared change itself, not just its order: saturation behind the struck step keeps it from being exact.
    assert!((0.7..1.4).contains(&scale), "{second} {first} {scale}");
    // Plans can be made from it, without a run per unit.
    let given = Options { influence: Some(found.second_moment), ..options };
    let plan = plans(&mut processor, &sample, &[0.5], &given, None).unwrap().plans.remove(0);
    assert!(plan.penalty > 0.4 && plan.penalty <= 0.5);
    assert_ne!(plan.vulnerabilities.influences, known.influences);
    let wrong = Options { influence: Some(vec![vec![1.0]]), ..quick() };
    let error = plans(&mut processor, &sample, &[0.5], &wrong, None).unwrap_err().to_string();
    assert!(error.contains("another network"), "{error}");
}
