//! A trial equals a full run with the same strikes: of the twin, tensor by tensor, and of the simulator.

use chipfit_kernels::Isa;
use proptest::prelude::*;

use super::*;
use crate::faults::{Change, DrawKey, Listed, Site};
use crate::machine::Machine;
use crate::protection::Vote;
use crate::simulator::SimulatorOptions;
use crate::testing::{self, Numbers, networks};
use crate::twin;

fn program(seed: u64) -> Program {
    if seed.is_multiple_of(3) { testing::program(seed) } else { testing::graphs::graph(seed) }
}

fn simulator(program: &Program, machine: Machine, isa: usize) -> Simulator {
    let isas = Isa::available();
    let options = SimulatorOptions { isa: Some(isas[isa % isas.len()]), machine, ..Default::default() };
    Simulator::new(program.clone(), options).unwrap()
}

fn listed(strikes: &[(StepId, Strike)]) -> Listed {
    let mut listed = Listed::new();
    strikes.iter().for_each(|&(step, strike)| listed.add(step, 0, strike));
    listed
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_trial_equals_the_twin(seed: u64, isa in 0usize..6, lanes in 1u32..4, most in 1usize..4) {
        let program = program(seed);
        let machine = Machine { lanes: std::num::NonZeroU32::new(lanes).unwrap(), ..Machine::default() };
        let mut numbers = Numbers::new(seed);
        let mut simulator = simulator(&program, machine, isa);
        let protection = match numbers.below(3) {
            0 => Protection::full(&program, [Vote::Output, Vote::Accumulator, Vote::Operation][numbers.below(3)]),
            _ => Protection::none(),
        };
        simulator = simulator.with_protection(protection.clone());
        let propagator = Propagator::new(&simulator);
        let pictures = [0, 1].map(|at| testing::picture(&program, seed ^ at));
        let goldens = pictures.each_ref().map(|picture| propagator.golden(picture).unwrap());
        let mut scratch = TrialScratch::new();
        for _ in 0..6 {
            let which = numbers.below(2);
            let mut strikes = Vec::new();
            for _ in 0..1 + numbers.below(most) {
                let step = StepId(numbers.below(program.steps().len()));
                let count = 1 + numbers.below(2);
                strikes.extend(testing::strikes(&program, &machine, step, numbers.bits(), count).into_iter().map(|s| (step, s)));
            }
            let outcome = goldens[which].trial(&strikes, &mut scratch).unwrap();
            let key = DrawKey { seed: 0, trial: 0, picture: 0 };
            let source = listed(&strikes);
            let expected = twin::forward(&program, Some(&source), &protection, key, machine, &pictures[which]);
            for (tensor, bytes) in expected.iter().enumerate() {
                prop_assert_eq!(scratch.tensor(TensorId(tensor)), bytes, "tensor {}", tensor);
            }
            let golden = goldens[which].tensor(program.output());
            prop_assert_eq!(outcome.is_output_changed, golden != expected[program.output().0]);
            prop_assert_eq!(outcome.is_output_changed, outcome.masked_at.is_none() && !outcome.changed_elements.is_empty());
            for &(step, count) in &outcome.changed_elements {
                let tensor = program.steps()[step.0].output;
                let differ = expected[tensor.0].iter().zip(goldens[which].tensor(tensor)).filter(|(a, b)| a != b).count();
                prop_assert_eq!(count, differ);
            }
            if let Some(StruckWord { output: Some((at, before, after)), step, .. }) = outcome.struck {
                let tensor = program.steps()[step.0].output;
                prop_assert_eq!(before, goldens[which].tensor(tensor)[at]);
                prop_assert_eq!(after, expected[tensor.0][at]);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn trials_together_are_trials_alone(seed: u64, lanes in 1usize..6, count in 0usize..12) {
        let program = program(seed);
        let machine = Machine::default();
        let simulator = simulator(&program, machine, 5);
        let golden = Golden::new(&simulator, &testing::picture(&program, seed)).unwrap();
        let mut numbers = Numbers::new(seed);
        let trials: Vec<Vec<(StepId, Strike)>> = (0..count)
            .map(|_| {
                let step = StepId(numbers.below(program.steps().len()));
                testing::strikes(&program, &machine, step, numbers.bits(), 2).into_iter().map(|s| (step, s)).collect()
            })
            .collect();
        let mut scratch = TrialScratch::new();
        let alone: Vec<TrialOutcome> = trials.iter().map(|strikes| golden.trial(strikes, &mut scratch).unwrap()).collect();
        prop_assert_eq!(golden.trials(&trials, &mut TrialBatch::new(lanes)).unwrap(), alone);
    }
}

/// On a network where changes grow from lists to rows to whole maps.
#[test]
fn trials_on_resnet18_equal_the_simulator() {
    let program = networks::resnet18(networks::ResNet18::Cifar, 5);
    let machine = Machine::default();
    let mut simulator = simulator(&program, machine, 5);
    let propagator = Propagator::new(&simulator);
    let picture = testing::picture(&program, 3);
    let golden = propagator.golden(&picture).unwrap();
    assert!(golden.agrees_with(&mut simulator, 0).unwrap());
    let mut scratch = TrialScratch::new();
    let mut numbers = Numbers::new(11);
    let wanted: Vec<TensorId> = program.steps().iter().map(|step| step.output).collect();
    let mut changed = 0;
    let mut alone = Vec::new();
    let mut trials = Vec::new();
    for trial in 0..60 {
        let step = StepId(numbers.below(program.steps().len()));
        let strikes: Vec<(StepId, Strike)> = testing::strikes(&program, &machine, step, numbers.bits(), 1)
            .into_iter()
            .map(|strike| (step, strike))
            .collect();
        let outcome = golden.trial(&strikes, &mut scratch).unwrap();
        changed += usize::from(outcome.is_output_changed);
        alone.push(outcome);
        trials.push(strikes.clone());
        simulator = simulator.with_faults(Arc::new(listed(&strikes)), 0);
        let request =
            Request { batch: Batch { pictures: &[0], input: &picture }, trial: 0, views: &[], wanted: &wanted };
        let trace = simulator.forward(&request).unwrap();
        for (tensor, bytes) in &trace.tensors {
            assert_eq!(scratch.tensor(*tensor), bytes, "trial {trial}: {}", program.tensor(*tensor).name);
        }
    }
    assert_eq!(golden.trials(&trials, &mut TrialBatch::new(16)).unwrap(), alone);
    assert!(changed > 5, "the trials reach the output now and then: {changed} of 60");
}

#[test]
fn a_story_names_what_was_struck() {
    let program = testing::program(4);
    let simulator = simulator(&program, Machine::default(), 0);
    let golden = Golden::new(&simulator, &testing::picture(&program, 4)).unwrap();
    let mut scratch = TrialScratch::new();
    let first = StepId(0);
    let outcome = golden.trial(&[(first, Strike::new(Site::AccOut, 0, Change::Xor(1 << 20)))], &mut scratch).unwrap();
    let word = outcome.struck.unwrap();
    assert_eq!(word.before ^ word.after, 1 << 20);
    let nothing = golden.trial(&[(first, Strike::new(Site::Out, 0, Change::Xor(0)))], &mut scratch).unwrap();
    assert_eq!(nothing.masked_at, Some((first, Masking::Word)));
    let beyond = golden.trial(&[(first, Strike::new(Site::Out, u64::MAX, Change::Xor(1)))], &mut scratch).unwrap();
    assert_eq!((beyond.masked_at, beyond.struck), (Some((first, Masking::Word)), None));
    let error = golden.trial(&[(StepId(99), Strike::new(Site::Out, 0, Change::Xor(1)))], &mut scratch).unwrap_err();
    assert!(error.to_string().contains("no step 99"), "{error}");
}
