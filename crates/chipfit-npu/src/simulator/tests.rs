//! The simulator equals the twin: every site, kind and vote, any batch, any number of threads, any order.

use std::sync::Arc;

use chipfit_kernels::Isa;
use proptest::prelude::*;

use super::*;
use crate::faults::{DrawKey, Listed, Site, Strike, StrikeSource};
use crate::processor::{Batch, View};
use crate::program::StepId;
use crate::protection::Vote;
use crate::testing::{self, Numbers};
use crate::twin;

/// Strikes that follow from the draw's key, a different number for every picture, step and replica.
struct Scattered {
    program: Program,
    machine: Machine,
    seed: u64,
    most: usize,
}

impl StrikeSource for Scattered {
    fn strikes(&self, key: &DrawKey, step: StepId, replica: u8, out: &mut Vec<Strike>) {
        let mut numbers = Numbers::new(
            self.seed
                ^ key.seed
                ^ key.trial << 8
                ^ key.picture << 16
                ^ (step.0 as u64) << 32
                ^ u64::from(replica) << 48,
        );
        let count = numbers.below(self.most + 1);
        let first = out.len();
        // Replicas often strike the same words: their votes are what matters.
        let shared = self.seed ^ key.picture << 16 ^ (step.0 as u64) << 32;
        let seed = if numbers.once_in(2) { shared } else { numbers.bits() };
        out.extend(testing::strikes(&self.program, &self.machine, step, seed, count));
        if replica > 0 {
            let mut at = 0;
            out.retain(|strike| {
                at += 1;
                at <= first || !matches!(strike.site, Site::Weight | Site::Act)
            });
        }
    }
}

fn machine(lanes: u32) -> Machine {
    Machine { lanes: std::num::NonZeroU32::new(lanes.max(1)).unwrap(), ..Machine::default() }
}

fn protection(program: &Program, seed: u64) -> Protection {
    let mut numbers = Numbers::new(seed ^ 0x7127);
    let vote = [Vote::Output, Vote::Accumulator, Vote::Operation][numbers.below(3)];
    if numbers.once_in(3) {
        return Protection::none();
    }
    let mut protection = Protection::full(program, vote);
    for (position, step) in program.steps().iter().enumerate() {
        let channels = program.tensor(step.output).channels();
        match numbers.below(3) {
            0 => protection.protect(StepId(position), Vec::new()),
            1 => protection.protect(StepId(position), (0..channels).map(|_| numbers.once_in(2)).collect()),
            _ => {}
        }
    }
    protection
}

/// All tensors of some pictures, by the twin.
fn expected(
    program: &Program,
    source: &dyn StrikeSource,
    protection: &Protection,
    machine: Machine,
    key: (u64, u64),
    pictures: &[u64],
    input: &[u8],
) -> Vec<Vec<Vec<u8>>> {
    let each = program.tensor(program.input()).elements();
    pictures
        .iter()
        .zip(input.chunks(each))
        .map(|(&picture, input)| {
            let key = DrawKey { seed: key.0, trial: key.1, picture };
            twin::forward(program, Some(source), protection, key, machine, input)
        })
        .collect()
}

fn check(trace: &Trace, program: &Program, expected: &[Vec<Vec<u8>>]) -> Result<(), TestCaseError> {
    for (tensor, bytes) in &trace.tensors {
        let wanted: Vec<u8> = expected.iter().flat_map(|tensors| tensors[tensor.0].iter().copied()).collect();
        prop_assert_eq!(bytes, &wanted, "tensor {}", &program.tensor(*tensor).name);
    }
    let wanted: Vec<u8> = expected.iter().flat_map(|tensors| tensors[program.output().0].iter().copied()).collect();
    prop_assert_eq!(&trace.output, &wanted);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn equals_the_twin(
        seed: u64, most in 0usize..40, lanes in 1u32..6, count in 1usize..6, threads in 1usize..4, chunk in 1usize..4,
        isa in 0usize..6,
    ) {
        let program = if seed % 2 == 0 { testing::program(seed) } else { testing::graphs::graph(seed) };
        let machine = machine(lanes);
        let protection = protection(&program, seed);
        let source = Arc::new(Scattered { program: program.clone(), machine, seed, most });
        let pictures: Vec<u64> = (0..count as u64).map(|at| at * 7 + seed % 5).collect();
        let input: Vec<u8> = pictures.iter().flat_map(|&at| testing::picture(&program, seed ^ at)).collect();
        let expected = expected(&program, source.as_ref(), &protection, machine, (seed, 3), &pictures, &input);
        let isas = Isa::available();
        let options = SimulatorOptions { isa: Some(isas[isa % isas.len()]), threads, machine, chunk: Some(chunk) };
        let mut simulator = Simulator::new(program.clone(), options)
            .unwrap()
            .with_faults(source, seed)
            .with_protection(protection);
        let wanted: Vec<TensorId> = (0..program.tensors().len()).map(TensorId).collect();
        let request = Request { batch: Batch { pictures: &pictures, input: &input }, trial: 3, views: &[], wanted: &wanted };
        let trace = simulator.forward(&request).unwrap();
        check(&trace, &program, &expected)?;
        // Again: nothing is left of the first pass.
        prop_assert_eq!(simulator.forward(&request).unwrap(), trace);
    }

    #[test]
    fn a_batch_is_its_pictures(seed: u64, most in 0usize..20) {
        let program = testing::graphs::graph(seed);
        let source = Arc::new(Scattered { program: program.clone(), machine: Machine::default(), seed, most });
        let pictures: Vec<u64> = (0..7).collect();
        let input: Vec<u8> = pictures.iter().flat_map(|&at| testing::picture(&program, seed ^ at)).collect();
        let each = program.tensor(program.input()).elements();
        let mut simulator = Simulator::new(program.clone(), SimulatorOptions { threads: 2, ..Default::default() })
            .unwrap()
            .with_faults(source, seed);
        let all = simulator.forward(&Request { batch: Batch { pictures: &pictures, input: &input }, trial: 1, views: &[], wanted: &[] }).unwrap();
        let mut joined = Vec::new();
        let mut strikes = 0;
        for at in (0..7).rev() {
            let batch = Batch { pictures: &pictures[at..=at], input: &input[at * each..(at + 1) * each] };
            let one = simulator.forward(&Request { batch, trial: 1, views: &[], wanted: &[] }).unwrap();
            joined.splice(0..0, one.output);
            strikes += one.strikes.unwrap();
        }
        prop_assert_eq!(all.output, joined);
        prop_assert_eq!(all.strikes, Some(strikes));
    }

    #[test]
    fn a_step_is_predicted_from_what_was_before_it(seed: u64, threads in 1usize..3, struck: u8) {
        let program = testing::graphs::graph(seed);
        let pictures: Vec<u64> = (0..5).collect();
        let input: Vec<u8> = pictures.iter().flat_map(|&at| testing::picture(&program, seed ^ at)).collect();
        let options = SimulatorOptions { threads, chunk: Some(2), ..Default::default() };
        let mut simulator = Simulator::new(program.clone(), options).unwrap();
        let wanted: Vec<TensorId> = (0..program.tensors().len()).map(TensorId).collect();
        let request = Request { batch: Batch { pictures: &pictures, input: &input }, trial: 0, views: &[], wanted: &wanted };
        let trace = simulator.forward(&request).unwrap();
        for (position, step) in program.steps().iter().enumerate() {
            let mut inputs: Vec<Vec<u8>> = step.inputs.iter().map(|id| trace.tensors[id].clone()).collect();
            let views: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
            prop_assert_eq!(&simulator.predict(StepId(position), 5, &views).unwrap(), &trace.tensors[&step.output]);
            // Another input of the fourth picture changes no other picture's bytes.
            for input in &mut inputs {
                let each = input.len() / 5;
                input[3 * each..4 * each].iter_mut().for_each(|byte| *byte ^= struck);
            }
            let views: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
            let changed = simulator.predict(StepId(position), 5, &views).unwrap();
            let each = program.tensor(step.output).elements();
            prop_assert_eq!(&changed[..3 * each], &trace.tensors[&step.output][..3 * each]);
            prop_assert_eq!(&changed[4 * each..], &trace.tensors[&step.output][4 * each..]);
            let parts: Vec<&[u8]> = inputs.iter().map(|input| &input[3 * (input.len() / 5)..4 * (input.len() / 5)]).collect();
            let one = simulator.predict(StepId(position), 1, &parts).unwrap();
            prop_assert_eq!(&changed[3 * each..4 * each], one.as_slice());
        }
    }

    #[test]
    fn views_are_other_pictures(seed: u64, flip: bool, down in -2i8..3, right in -2i8..3) {
        let program = testing::program(seed);
        let input: Vec<u8> = (0..2).flat_map(|at| testing::picture(&program, seed ^ at)).collect();
        let views = [View::default(), View { flip, down, right }];
        let seen = View::apply_all(&views, program.tensor(program.input()), &input);
        let source = Arc::new(Scattered { program: program.clone(), machine: Machine::default(), seed, most: 9 });
        let mut simulator = Simulator::new(program, SimulatorOptions::default()).unwrap().with_faults(source, seed);
        let request = Request { batch: Batch { pictures: &[3, 8], input: &input }, trial: 2, views: &views, wanted: &[] };
        let plain = Request { batch: Batch { input: &seen, ..request.batch }, views: &[], ..request };
        let expected = simulator.forward(&plain).unwrap();
        prop_assert_eq!(simulator.forward(&request).unwrap(), expected);
        let short = Request { views: &views[..1], ..request };
        prop_assert!(simulator.forward(&short).is_err());
    }

    #[test]
    fn updates_are_new_constants(seed: u64) {
        let mut program = testing::program(seed);
        let input = testing::picture(&program, seed);
        let mut simulator = Simulator::new(program.clone(), SimulatorOptions::default()).unwrap();
        let mut numbers = Numbers::new(seed);
        let mut deltas = Vec::new();
        for step in &mut program.steps {
            let Op::Linear(linear) = &mut step.op else { continue };
            let at = numbers.below(linear.weights.len());
            linear.weights[at] = numbers.between(-128, 127) as i8;
            deltas.push(TensorDelta { name: linear.weights_name.clone(), changes: vec![(at as u32, linear.weights[at].into())] });
            let at = numbers.below(linear.bias.len());
            linear.bias[at] = numbers.between(-9000, 9000) as i32;
            deltas.push(TensorDelta { name: linear.bias_name.clone().unwrap(), changes: vec![(at as u32, linear.bias[at])] });
        }
        simulator.update(&deltas).unwrap();
        let request = Request { batch: Batch { pictures: &[0], input: &input }, trial: 0, views: &[], wanted: &[] };
        let expected = expected(&program, &Listed::new(), &Protection::none(), Machine::default(), (0, 0), &[0], &input);
        check(&simulator.forward(&request).unwrap(), &program, &expected)?;
    }
}

/// Steps wide enough for whole tiles and blocks of every instruction set.
#[test]
fn wide_steps_equal_the_twin() {
    let geometry = |input: [usize; 2], in_channels, out_channels, kernel, stride| crate::program::ConvGeometry {
        input,
        in_channels,
        out_channels,
        groups: 1,
        kernel: [kernel; 2],
        stride: [stride; 2],
        dilation: [1; 2],
        pads: [kernel / 2; 4],
    };
    let mut builder = testing::Builder::new(9, &[5, 9, 9]);
    let first = builder.linear("Conv", geometry([9, 9], 5, 64, 3, 1), TensorId(0), &[64, 9, 9]);
    let second = builder.linear("Conv", geometry([9, 9], 64, 96, 3, 2), first, &[96, 5, 5]);
    builder.linear("Conv", geometry([5, 5], 96, 40, 1, 1), second, &[40, 5, 5]);
    let program = builder.build();
    let machine = Machine::default();
    let pictures = [4, 5, 6];
    let input: Vec<u8> = pictures.iter().flat_map(|&at| testing::picture(&program, at)).collect();
    for (seed, protection) in [(1, Protection::none()), (2, Protection::full(&program, Vote::Output))] {
        let source = Arc::new(Mac { program: program.clone(), seed });
        let expected = expected(&program, source.as_ref(), &protection, machine, (seed, 0), &pictures, &input);
        for isa in Isa::available() {
            for threads in [1, 2] {
                let options = SimulatorOptions { isa: Some(isa), threads, machine, chunk: Some(2) };
                let mut simulator = Simulator::new(program.clone(), options)
                    .unwrap()
                    .with_faults(source.clone(), seed)
                    .with_protection(protection.clone());
                let wanted: Vec<TensorId> = (0..program.tensors().len()).map(TensorId).collect();
                let request = Request {
                    batch: Batch { pictures: &pictures, input: &input },
                    trial: 0,
                    views: &[],
                    wanted: &wanted,
                };
                let trace = simulator.forward(&request).unwrap();
                check(&trace, &program, &expected)
                    .unwrap_or_else(|error| panic!("{isa:?}, {threads} threads: {error}"));
            }
        }
    }
}

/// Many strikes on products, updates and accumulators, none on buffers.
struct Mac {
    program: Program,
    seed: u64,
}

impl StrikeSource for Mac {
    fn strikes(&self, key: &DrawKey, step: StepId, replica: u8, out: &mut Vec<Strike>) {
        let seed = self.seed ^ key.picture << 16 ^ (step.0 as u64) << 32 ^ u64::from(replica) << 48;
        let strikes = testing::strikes(&self.program, &Machine::default(), step, seed, 600);
        out.extend(strikes.into_iter().filter(|strike| !matches!(strike.site, Site::Weight | Site::Act)));
    }
}

#[test]
fn a_refused_update_changes_nothing() {
    let program = testing::program(1);
    let input = testing::picture(&program, 1);
    let mut simulator = Simulator::new(program.clone(), SimulatorOptions::default()).unwrap();
    let request = Request { batch: Batch { pictures: &[0], input: &input }, trial: 0, views: &[], wanted: &[] };
    let before = simulator.forward(&request).unwrap();
    let name = |what: &str| what.to_owned();
    let good = TensorDelta { name: name("weights0"), changes: vec![(0, 55), (1, -128)] };
    for (bad, words) in [
        (TensorDelta { name: name("weights99"), changes: vec![] }, "no step"),
        (TensorDelta { name: name("weights0"), changes: vec![(u32::MAX, 0)] }, "outside"),
        (TensorDelta { name: name("weights0"), changes: vec![(0, 128)] }, "no int8"),
        (TensorDelta { name: name("bias0"), changes: vec![(u32::MAX, 0)] }, "outside"),
    ] {
        let error = simulator.update(&[good.clone(), bad]).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
        assert_eq!(simulator.program(), &program);
        assert_eq!(simulator.forward(&request).unwrap(), before);
    }
}

#[test]
fn a_wrong_length_is_refused() {
    let program = testing::program(2);
    let mut simulator = Simulator::new(program, SimulatorOptions::default()).unwrap();
    let request = Request { batch: Batch { pictures: &[0, 1], input: &[0] }, trial: 0, views: &[], wanted: &[] };
    assert!(matches!(simulator.forward(&request), Err(ProcessorError::InputLength { bytes: 1, pictures: 2, .. })));
}

#[test]
fn another_program_of_the_same_structure_is_taken() {
    let program = testing::program(4);
    let input = testing::picture(&program, 4);
    let mut other = program.clone();
    for tensor in &mut other.tensors {
        tensor.scale *= 1.5;
    }
    for step in &mut other.steps {
        if let Op::Linear(linear) = &mut step.op {
            linear.weights.iter_mut().for_each(|weight| *weight = weight.wrapping_add(3));
        }
    }
    let request = Request { batch: Batch { pictures: &[0], input: &input }, trial: 0, views: &[], wanted: &[] };
    let expected = Simulator::new(other.clone(), SimulatorOptions::default()).unwrap().forward(&request).unwrap();
    let mut simulator = Simulator::new(program.clone(), SimulatorOptions::default()).unwrap();
    simulator.replace(other.clone()).unwrap();
    assert_eq!(simulator.forward(&request).unwrap(), expected);
    assert_eq!(simulator.program(), &other);
    let error = simulator.replace(testing::program(5)).unwrap_err().to_string();
    assert!(error.contains("another structure"), "{error}");
    assert_eq!(simulator.program(), &other);
}
