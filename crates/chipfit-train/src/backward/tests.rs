//! Gradients against finite differences of the straight-through function, over random programs and traces.

use chipfit_npu::program::{Tensor, Word};
use chipfit_npu::testing::{self, Numbers, graphs};
use chipfit_npu::{Batch, Op, Processor as _, Program, Request, Simulator, SimulatorOptions, TensorId, Trace};
use proptest::prelude::*;

use super::plan::slopes;
use super::reference::{self, Values};
use super::{Backward, Gradients};

/// Random pictures, their trace, and random output gradients.
struct Case {
    program: Program,
    pictures: usize,
    input: Vec<u8>,
    trace: Trace,
    weights: Vec<f32>,
}

impl Case {
    fn new(program: Program, seed: u64, pictures: usize) -> Self {
        let input: Vec<u8> = (0..pictures as u64).flat_map(|at| testing::picture(&program, seed ^ at << 8)).collect();
        let wanted: Vec<TensorId> = (0..program.tensors().len()).map(TensorId).collect();
        let ids: Vec<u64> = (0..pictures as u64).collect();
        let mut simulator = Simulator::new(program.clone(), SimulatorOptions::default()).unwrap();
        let batch = Batch { pictures: &ids, input: &input };
        let trace = simulator.forward(&Request { batch, trial: 0, views: &[], wanted: &wanted }).unwrap();
        let outputs = program.tensor(program.output()).elements();
        let mut numbers = Numbers::new(seed);
        let weights = (0..pictures * outputs).map(|_| numbers.between(-100, 100) as f32 / 100.0).collect();
        Self { program, pictures, input, trace, weights }
    }

    fn gradients(&self, threads: usize) -> (Backward, Gradients) {
        let backward = Backward::new(&self.program, threads).unwrap();
        let mut gradients = backward.zeros();
        backward.run(&self.input, &self.trace, &self.weights, &mut gradients).unwrap();
        (backward, gradients)
    }

    /// The weighted sum of all outputs at `values`.
    fn value(&self, names: &[String], held: &Values, values: &Values) -> f64 {
        let outputs = self.program.tensor(self.program.output()).elements();
        (0..self.pictures)
            .map(|picture| {
                let bytes: Vec<Vec<u8>> = (0..self.program.tensors().len())
                    .map(|id| {
                        let each = self.program.tensor(TensorId(id)).elements();
                        self.trace.tensors[&TensorId(id)][picture * each..(picture + 1) * each].to_vec()
                    })
                    .collect();
                let output = reference::output(&self.program, names, held, values, &bytes);
                let weights = &self.weights[picture * outputs..(picture + 1) * outputs];
                output.iter().zip(weights).map(|(y, &w)| y * f64::from(w)).sum::<f64>()
            })
            .sum()
    }

    /// Compares derivatives along random directions, and along single elements; gives how many were not 0.
    fn check(&self, seed: u64) -> usize {
        let (backward, gradients) = self.gradients(1);
        let names: Vec<String> = backward.parameters().iter().map(|parameter| parameter.name.clone()).collect();
        let held: Values = backward
            .parameters()
            .iter()
            .map(|parameter| {
                let integers = parameter.held(&self.program).unwrap();
                parameter.real(&integers).into_iter().map(f64::from).collect()
            })
            .collect();
        let mut numbers = Numbers::new(seed);
        let mut alive = 0;
        for round in 0..8 {
            let only = (round >= 3).then(|| {
                let parameter = numbers.below(held.len());
                (parameter, numbers.below(held[parameter].len()))
            });
            let mut direction: Values = held.iter().map(|part| vec![0.0; part.len()]).collect();
            for (p, part) in direction.iter_mut().enumerate() {
                for (at, value) in part.iter_mut().enumerate() {
                    let random = numbers.between(-100, 100) as f64 / 100.0;
                    *value = only.map_or(random, |only| f64::from(u8::from(only == (p, at))));
                }
            }
            let at = |step: f64| {
                let mut values = held.clone();
                for (values, direction) in values.iter_mut().flatten().zip(direction.iter().flatten()) {
                    *values += step * direction;
                }
                self.value(&names, &held, &values)
            };
            // Central differences of two steps, extrapolated.
            let difference = |step: f64| (at(step) - at(-step)) / (2.0 * step);
            let step = 1e-4;
            let numeric = (4.0 * difference(step) - difference(2.0 * step)) / 3.0;
            let mut own = 0.0;
            let mut size = 0.0;
            for (&gradient, direction) in gradients.iter().flatten().zip(direction.iter().flatten()) {
                own += f64::from(gradient) * direction;
                size += (f64::from(gradient) * direction).abs();
            }
            let error = (own - numeric).abs();
            assert!(error <= 1e-4 * size + 1e-7, "round {round}: {own} against {numeric}, terms {size}");
            alive += usize::from(own != 0.0);
        }
        alive
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn chains_have_the_numeric_gradient(seed in any::<u64>()) {
        Case::new(testing::program(seed), seed, 3).check(seed);
    }

    #[test]
    fn graphs_have_the_numeric_gradient(seed in any::<u64>()) {
        Case::new(graphs::graph(seed), seed, 2).check(seed);
    }

    #[test]
    fn threads_change_no_bit(seed in any::<u64>(), pictures in 1usize..11) {
        let case = Case::new(graphs::graph(seed), seed, pictures);
        let (_, one) = case.gradients(1);
        for threads in [2, 3] {
            let (_, more) = case.gradients(threads);
            for (one, more) in one.iter().flatten().zip(more.iter().flatten()) {
                prop_assert_eq!(one.to_bits(), more.to_bits());
            }
        }
    }
}

#[test]
fn most_random_programs_have_gradients_and_every_operator_comes_up() {
    let mut alive = 0;
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..60 {
        let program = if seed % 2 == 0 { graphs::graph(seed) } else { testing::program(seed) };
        let case = Case::new(program, seed, 1);
        alive += usize::from(case.gradients(1).1.iter().flatten().any(|&gradient| gradient != 0.0));
        seen.extend(case.program.steps().iter().map(|step| match step.op {
            Op::Linear(_) => "Linear",
            Op::MatMul(_) => "MatMul",
            Op::Add => "Add",
            Op::Mul => "Mul",
            Op::Concat { .. } => "Concat",
            Op::MaxPool(_) => "MaxPool",
            Op::AveragePool(_) => "AveragePool",
            Op::GlobalAveragePool => "GlobalAveragePool",
            Op::Table(_) => "Table",
            Op::Move { .. } => "Move",
            _ => "other",
        }));
    }
    // Many saturate everywhere.
    assert!(alive >= 35, "{alive} of 60");
    assert_eq!(seen.len(), 10, "{seen:?}");
}

#[test]
fn several_calls_add_up() {
    let case = Case::new(graphs::graph(11), 11, 4);
    let (backward, mut gradients) = case.gradients(1);
    let once = gradients.clone();
    backward.run(&case.input, &case.trace, &case.weights, &mut gradients).unwrap();
    for (once, twice) in once.iter().flatten().zip(gradients.iter().flatten()) {
        assert_eq!(2.0 * once, *twice);
    }
}

#[test]
fn a_trace_that_lacks_a_tensor_is_an_error() {
    let mut case = Case::new(graphs::graph(3), 3, 2);
    let backward = Backward::new(&case.program, 1).unwrap();
    let mut gradients = backward.zeros();
    let first = backward.wanted()[0];
    case.trace.tensors.get_mut(&first).unwrap().pop();
    let error = backward.run(&case.input, &case.trace, &case.weights, &mut gradients).unwrap_err().to_string();
    assert!(error.contains(&case.program.tensor(first).name), "{error}");
    case.trace.tensors.remove(&first);
    assert!(backward.run(&case.input, &case.trace, &case.weights, &mut gradients).is_err());
}

fn grid(scale: f32, zero_point: u8) -> Tensor {
    Tensor { name: "t".to_owned(), shape: vec![1], word: Word::Unsigned, scale, zero_point }
}

/// A table of a real function.
fn table(from: &Tensor, to: &Tensor, function: impl Fn(f64) -> f64) -> [u8; 256] {
    std::array::from_fn(|byte| {
        let y = function(f64::from(from.real(byte as u8)));
        (y / f64::from(to.scale) + f64::from(to.zero_point)).round_ties_even().clamp(0.0, 255.0) as u8
    })
}

#[test]
fn slopes_are_near_the_derivative() {
    let (from, to) = (grid(1.0 / 16.0, 128), grid(1.0 / 255.0, 0));
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let found = slopes("Sigmoid", &from, &to, &table(&from, &to, sigmoid));
    for byte in 0..=255u8 {
        let y = sigmoid(f64::from(from.real(byte)));
        let error = (f64::from(found[usize::from(byte)]) - y * (1.0 - y)).abs();
        // Two roundings of 1/510 over two steps of 1/16, and the curvature.
        assert!(error < 0.035, "{byte}: {error}");
    }
}

#[test]
fn relu_is_exact_and_a_flat_table_has_no_slope() {
    let (from, to) = (grid(0.1, 100), grid(0.05, 0));
    let found = slopes("Relu", &from, &to, &table(&from, &to, |x| x.max(0.0)));
    for byte in 0..=255u8 {
        // Cut off below 0, and from 12.75 on, where the bytes end.
        let x = f64::from(from.real(byte));
        assert_eq!(found[usize::from(byte)], f32::from(u8::from(x > 0.0 && x < 12.749)), "{byte}");
    }
    assert!(slopes("Sigmoid", &from, &to, &[7; 256]).iter().all(|&slope| slope == 0.0));
    let found = slopes("Clip", &from, &to, &table(&from, &to, |x| x.clamp(0.0, 6.0)));
    let alive: Vec<usize> = (0..256).filter(|&byte| found[byte] != 0.0).collect();
    assert_eq!((alive[0], alive[alive.len() - 1], alive.len()), (101, 159, 59));
}
