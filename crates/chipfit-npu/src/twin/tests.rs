//! The twin against sums that are formed another way, and strikes against what a bit is worth.

use proptest::prelude::*;

use super::operands::Operands;
use super::*;
use crate::faults::{Change, Listed, consumers, population};
use crate::program::{ConvGeometry, Linear, Rescale, TensorId};
use crate::testing::{self, Builder, Numbers};

const KEY: DrawKey = DrawKey { seed: 1, trial: 2, picture: 3 };

fn pass(program: &Program, faults: &dyn StrikeSource, protection: &Protection, input: &[u8]) -> Pass {
    forward_with_accumulators(program, Some(faults), protection, KEY, Machine::default(), input)
}

fn clean(program: &Program, input: &[u8]) -> Pass {
    forward_with_accumulators(program, None, &Protection::none(), KEY, Machine::default(), input)
}

/// Chains and branched programs.
fn program(seed: u64) -> Program {
    if seed.is_multiple_of(2) { testing::program(seed) } else { testing::graphs::graph(seed) }
}

/// The accumulators of a convolution, scattered from the inputs instead of gathered by the outputs.
fn scattered(linear: &Linear, zero_point: u8, input: &[u8]) -> Vec<i64> {
    let g = &linear.geometry;
    let [rows, columns] = g.output();
    let mut sums: Vec<i64> =
        (0..rows * columns).flat_map(|_| linear.bias.iter().map(|&bias| i64::from(bias))).collect();
    let (ins, outs) = (g.in_channels / g.groups, g.out_channels / g.groups);
    for (index, &byte) in input.iter().enumerate() {
        let (pixel, channel) = (index / g.in_channels, index % g.in_channels);
        let (y, x) = ((pixel / g.input[1] + g.pads[0]) as i64, (pixel % g.input[1] + g.pads[1]) as i64);
        for (ky, kx) in (0..g.kernel[0]).flat_map(|ky| (0..g.kernel[1]).map(move |kx| (ky, kx))) {
            let (top, left) = (y - (ky * g.dilation[0]) as i64, x - (kx * g.dilation[1]) as i64);
            let (stride_y, stride_x) = (g.stride[0] as i64, g.stride[1] as i64);
            if top < 0 || left < 0 || top % stride_y != 0 || left % stride_x != 0 {
                continue;
            }
            let (oy, ox) = ((top / stride_y) as usize, (left / stride_x) as usize);
            if oy >= rows || ox >= columns {
                continue;
            }
            for o in (channel / ins) * outs..(channel / ins + 1) * outs {
                let weight = linear.weights[((o * g.kernel[0] + ky) * g.kernel[1] + kx) * ins + channel % ins];
                let weight = i64::from(weight) - i64::from(linear.weight_zero_points[o]);
                sums[(oy * columns + ox) * g.out_channels + o] += (i64::from(byte) - i64::from(zero_point)) * weight;
            }
        }
    }
    sums
}

proptest! {
    #[test]
    fn clean_convolutions_equal_scattered_sums(seed: u64) {
        let program = program(seed);
        let input = testing::picture(&program, seed);
        let pass = clean(&program, &input);
        for (step, sums) in program.steps().iter().zip(&pass.accumulators) {
            let Op::Linear(linear) = &step.op else { continue };
            let first = step.inputs[0];
            let expected = scattered(linear, program.tensor(first).zero_point, &pass.tensors[first.0]);
            prop_assert_eq!(&expected, &sums.iter().map(|&sum| i64::from(sum)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn no_strike_and_no_fault_are_the_same_under_any_protection(seed: u64) {
        let program = program(seed);
        let input = testing::picture(&program, seed);
        let expected = clean(&program, &input);
        for vote in [Vote::Output, Vote::Accumulator, Vote::Operation] {
            prop_assert_eq!(&pass(&program, &Listed::new(), &Protection::full(&program, vote), &input), &expected);
        }
    }

    #[test]
    fn a_flip_before_requantization_is_worth_its_bit(seed: u64) {
        let program = program(seed);
        let input = testing::picture(&program, seed);
        let expected = clean(&program, &input);
        let mut numbers = Numbers::new(seed);
        for (position, step) in program.steps().iter().enumerate() {
            let products = program.step_products(step);
            for site in [Site::Mul, Site::Acc, Site::AccOut] {
                let Some(words) = population(&program, StepId(position), site, &Machine::default()) else { continue };
                let (word, bit) = (numbers.below(words.words as usize), numbers.below(words.bits as usize) as u32);
                let strike = Strike::new(site, word as u64, Change::Xor(1 << bit));
                let struck = pass(&program, &Listed::single(StepId(position), strike), &Protection::none(), &input);
                let output = if site == Site::AccOut { word } else { word / products };
                let before = word_before(&program, step, &expected, site, word);
                // A set bit is cleared: minus its worth; the sign bit is worth minus 2^b.
                let worth = if bit == words.bits - 1 { -(1i64 << bit) } else { 1i64 << bit };
                let change = if before >> bit & 1 == 0 { worth } else { -worth };
                for (index, (&now, &then)) in struck.accumulators[position].iter().zip(&expected.accumulators[position]).enumerate() {
                    let change = if index == output { change as i32 } else { 0 };
                    prop_assert_eq!(now, then.wrapping_add(change), "{:?} of output {}", strike, index);
                }
            }
        }
    }

    #[test]
    fn full_protection_removes_every_single_fault(seed: u64) {
        let program = program(seed);
        let input = testing::picture(&program, seed);
        let expected = clean(&program, &input).tensors;
        let mut numbers = Numbers::new(seed);
        for vote in [Vote::Output, Vote::Accumulator, Vote::Operation] {
            let protection = Protection::full(&program, vote);
            prop_assert!((protection.penalty(&program) - 2.0).abs() < 1e-12);
            for step in (0..program.steps().len()).map(StepId) {
                for site in [Site::Mul, Site::Acc, Site::AccOut, Site::Out] {
                    if site == Site::Out && vote == Vote::Accumulator {
                        continue;
                    }
                    let Some(words) = population(&program, step, site, &Machine::default()) else { continue };
                    let word = numbers.bits() % words.words;
                    let mut single = Listed::new();
                    single.add(step, numbers.below(3) as u8, Strike::new(site, word, testing::change(&mut numbers)));
                    prop_assert_eq!(&pass(&program, &single, &protection, &input).tensors, &expected, "{:?}", single);
                }
            }
        }
    }

    #[test]
    fn every_input_word_is_used_as_often_as_its_consumers(seed: u64) {
        let program = program(seed);
        let input = testing::picture(&program, seed);
        let tensors = clean(&program, &input).tensors;
        for (position, step) in program.steps().iter().enumerate() {
            if program.step_products(step) == 0 {
                continue;
            }
            let inputs: Vec<&[u8]> = step.inputs.iter().map(|id| tensors[id.0].as_slice()).collect();
            let mut operands = Operands::new(&program, step, &inputs, &[]);
            for output in 0..program.tensor(step.output).elements() {
                operands.read(output);
            }
            for (word, &uses) in operands.uses().iter().enumerate() {
                prop_assert_eq!(consumers(&program, StepId(position), Site::Act, word as u64), Some(uses));
            }
        }
    }
}

/// The word of a site in a clean pass, by another formula than the twin's.
fn word_before(program: &Program, step: &Step, pass: &Pass, site: Site, word: usize) -> i32 {
    let inputs: Vec<&[u8]> = step.inputs.iter().map(|id| pass.tensors[id.0].as_slice()).collect();
    let mut operands = Operands::new(program, step, &inputs, &[]);
    let products = program.step_products(step);
    let output = if site == Site::AccOut { word } else { word / products };
    let factors = operands.read(output);
    let sum = |end: usize| factors[..end].iter().map(|(x, w)| x * w).sum::<i32>();
    match site {
        Site::Mul => factors[word % products].0 * factors[word % products].1,
        Site::Acc => operands.bias(output) + sum(word % products + 1),
        _ => operands.bias(output) + sum(products),
    }
}

/// Two channels of 3 x 3 pixels; one 2 x 2 kernel with ones, so that accumulators are sums of four bytes or eight.
fn ones() -> Program {
    let mut builder = Builder::new(5, &[2, 3, 3]);
    let geometry = ConvGeometry {
        input: [3, 3],
        in_channels: 2,
        out_channels: 1,
        groups: 1,
        kernel: [2, 2],
        stride: [1, 1],
        dilation: [1, 1],
        pads: [0; 4],
    };
    builder.linear("Conv", geometry, TensorId(0), &[1, 2, 2]);
    let mut program = builder.build();
    program.tensors[0].zero_point = 0;
    program.tensors[0].word = crate::program::Word::Unsigned;
    program.tensors[1].zero_point = 0;
    program.tensors[1].word = crate::program::Word::Unsigned;
    let Op::Linear(linear) = &mut program.steps[0].op else { unreachable!() };
    linear.weights = vec![1; 8];
    linear.weight_zero_points = vec![0];
    linear.bias = vec![0];
    linear.rescale = Rescale::Float(vec![1.0]);
    (linear.low, linear.high) = (0, 255);
    program
}

#[test]
fn buffer_strikes_reach_only_the_consumers_in_their_window() {
    let program = ones();
    let input = [1u8; 18];
    let sums = |strike| pass(&program, &Listed::single(StepId(0), strike), &Protection::none(), &input).accumulators;
    // The middle pixel's first channel is read by all four outputs.
    let middle = Strike::new(Site::Act, 8, Change::Xor(2));
    assert_eq!(sums(middle), [vec![10; 4]]);
    assert_eq!(sums(Strike { first_use: 1, uses: 2, ..middle }), [vec![8, 10, 10, 8]]);
    // The last pixel is read by the last output alone; its second consumer does not exist.
    let corner = Strike::new(Site::Act, 16, Change::Xor(2));
    assert_eq!(sums(corner), [vec![8, 8, 8, 10]]);
    assert_eq!(sums(Strike { first_use: 1, uses: 9, ..corner }), [vec![8; 4]]);
    // A weight is read by every output pixel.
    let weight = Strike::new(Site::Weight, 0, Change::Set(0x80));
    assert_eq!(sums(weight), [vec![8 - 1 - 128; 4]]);
    assert_eq!(sums(Strike { first_use: 2, uses: 1, ..weight }), [vec![8, 8, -121, 8]]);
}

#[test]
fn lanes_decide_which_partial_sums_exist() {
    let program = ones();
    let input: Vec<u8> = (1..=18).collect();
    // Output 0 reads 1 2 3 4 7 8 9 10; updates of three lanes end after 6, 25 and 44.
    let machine = Machine { lanes: 3.try_into().unwrap(), ..Machine::default() };
    assert_eq!(population(&program, StepId(0), Site::Acc, &machine).unwrap().words, 4 * 3);
    for (update, partial) in [(0, 6), (1, 25), (2, 44)] {
        let zero = Listed::single(StepId(0), Strike::new(Site::Acc, update, Change::Set(0)));
        let pass = forward_with_accumulators(&program, Some(&zero), &Protection::none(), KEY, machine, &input);
        assert_eq!(pass.accumulators[0][0], 44 - partial);
    }
}

#[test]
fn the_product_is_struck_before_the_partial_sum() {
    let program = ones();
    let mut both = Listed::single(StepId(0), Strike::new(Site::Mul, 3, Change::Set(50)));
    both.add(StepId(0), 0, Strike::new(Site::Acc, 3, Change::Set(7)));
    // After k = 3 the sum is 7 whatever the product was; four ones follow.
    assert_eq!(pass(&program, &both, &Protection::none(), &[1; 18]).accumulators[0][0], 11);
}

#[test]
fn votes_differ_when_two_replicas_are_struck() {
    let program = ones();
    let mut strikes = Listed::new();
    // Replica 0 gains 4 in its first product, replica 1 gains 4 in its second: both end with the same wrong sum.
    strikes.add(StepId(0), 0, Strike::new(Site::Mul, 0, Change::Xor(4)));
    strikes.add(StepId(0), 1, Strike::new(Site::Mul, 1, Change::Xor(4)));
    let byte = |vote| pass(&program, &strikes, &Protection::full(&program, vote), &[1; 18]).tensors[1][0];
    assert_eq!([Vote::Output, Vote::Accumulator, Vote::Operation].map(byte), [12, 12, 8]);
    // The same product twice: no vote can know.
    strikes.add(StepId(0), 2, Strike::new(Site::Mul, 0, Change::Xor(4)));
    assert_eq!(pass(&program, &strikes, &Protection::full(&program, Vote::Operation), &[1; 18]).tensors[1][0], 12);
}

#[test]
fn stored_words_of_either_type_are_voted_and_struck() {
    let mut program = ones();
    program.tensors[1].word = crate::program::Word::Signed;
    program.tensors[1].zero_point = 128;
    // 8 is stored as 8; bit 7 of the two's complement word makes it -120, in biased bytes 8.
    let strike = Listed::single(StepId(0), Strike::new(Site::Out, 0, Change::Raise(0x80)));
    assert_eq!(pass(&program, &strike, &Protection::none(), &[1; 18]).tensors[1], [8, 136, 136, 136]);
    let accumulator = Protection::full(&program, Vote::Accumulator);
    assert_eq!(pass(&program, &strike, &accumulator, &[1; 18]).tensors[1][0], 8);
    let adds = Listed::single(StepId(0), Strike::new(Site::Out, 1, Change::AddSigned(-200)));
    assert_eq!(pass(&program, &adds, &Protection::none(), &[1; 18]).tensors[1][1], 0);
}

#[test]
fn strikes_of_replicas_spare_unprotected_channels() {
    let program = ones();
    let mut strikes = Listed::new();
    strikes.add(StepId(0), 1, Strike::new(Site::AccOut, 0, Change::Set(99)));
    strikes.add(StepId(0), 2, Strike::new(Site::AccOut, 0, Change::Set(99)));
    let mut none = Protection::none();
    none.protect(StepId(0), vec![false]);
    assert_eq!(pass(&program, &strikes, &none, &[1; 18]).tensors[1], [8; 4]);
    assert_eq!(pass(&program, &strikes, &Protection::full(&program, Vote::Output), &[1; 18]).tensors[1][0], 99);
}
