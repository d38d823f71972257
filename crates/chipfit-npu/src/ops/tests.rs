//! Each formula on numbers worked out by hand, and `execute` equal to `element` on random steps.

use proptest::prelude::*;

use super::formula::{Addition, Multiplication, Pooling, WindowMean, quantize};
use super::function::{Function, table};
use super::*;
use crate::program::{Head, TensorId, Word};
use crate::testing::Numbers;

fn tensor(shape: &[usize], word: Word, scale: f32, zero_point: u8) -> Tensor {
    Tensor { name: "t".to_owned(), shape: shape.to_vec(), word, scale, zero_point }
}

fn program(tensors: Vec<Tensor>) -> Program {
    let output = TensorId(tensors.len() - 1);
    Program {
        tensors,
        steps: Vec::new(),
        input: TensorId(0),
        output,
        head: Head::Dequantize,
        input_name: "x".to_owned(),
        warnings: Vec::new(),
        options: crate::lower::LowerOptions::default(),
    }
}

#[test]
fn quantize_rounds_halves_to_even_and_saturates() {
    let on = tensor(&[1], Word::Unsigned, 0.5, 10);
    let cases = [(0.0, 10), (0.25, 10), (0.75, 12), (-0.25, 10), (-0.75, 8), (-5.0, 0), (-9.0, 0), (1e9, 255)];
    for (value, byte) in cases {
        assert_eq!(quantize(&on, value), byte, "{value}");
    }
    assert_eq!(quantize(&on, f32::NAN), 0);
    assert_eq!(quantize(&on, f32::INFINITY), 255);
    assert_eq!(quantize(&on, f32::NEG_INFINITY), 0);
    // int8 with zero point -118 lies on the same biased bytes.
    let signed = Tensor { word: Word::Signed, ..on };
    assert_eq!(quantize(&signed, 0.75), 12);
}

#[test]
fn sums_products_and_means_by_hand() {
    let (a, b) = (tensor(&[2], Word::Unsigned, 0.5, 10), tensor(&[2], Word::Unsigned, 0.25, 20));
    let y = tensor(&[2], Word::Unsigned, 1.0, 5);
    // 0.5 * (30 - 10) + 0.25 * (60 - 20) = 20.
    assert_eq!(Addition::of(&a, &b, &y).apply(30, 60), 25);
    // 0.5 * (11 - 10) = 0.5, a tie to the even 5 (0 + 5 is odd: 5.5 rounds to 6).
    assert_eq!(Addition::of(&a, &b, &y).apply(11, 20), 6);
    assert_eq!(Addition::of(&a, &b, &y).apply(255, 255), 186);
    // 0.5 * 20 * 0.25 * 40 = 100.
    assert_eq!(Multiplication::new(&a, &b, &y).apply(30, 60), 105);
    assert_eq!(Multiplication::new(&a, &b, &y).apply(0, 255), 0);
    // Mean of 12, 14, 11, 12 is 12.25, 0.5 * 2.25 = 1.125.
    assert_eq!(Pooling::new(&a, &y, 4).apply(49), 6);
    assert_eq!(WindowMean::new(&a, &y).apply([12, 14, 11, 12].into_iter(), 4), 6);
    // Padding counted: 0.5 * 4.5 = 2.25 in all, over 9.
    assert_eq!(WindowMean::new(&a, &y).apply([12, 14, 11].into_iter(), 9), 5);
}

#[test]
fn the_first_operand_moves_second_where_it_is_repeated() {
    // The order of the two roundings follows the operand that is one value per row, whichever side it stands on.
    let (scalar, map) = (tensor(&[3, 1, 1], Word::Unsigned, 0.013, 7), tensor(&[3, 4, 5], Word::Unsigned, 0.031, 90));
    let y = tensor(&[3, 4, 5], Word::Unsigned, 0.017, 3);
    let (one, two) = (Addition::of(&scalar, &map, &y), Addition::of(&map, &scalar, &y));
    for (s, m) in [(0, 0), (255, 255), (13, 200), (200, 13)] {
        assert_eq!(one.apply(s, m), two.apply(m, s));
    }
}

#[test]
fn tables_follow_their_functions() {
    let from = tensor(&[1], Word::Unsigned, 0.1, 100);
    let to = tensor(&[1], Word::Unsigned, 0.1, 100);
    let relu = table(&from, &to, &[Function::Relu]);
    assert_eq!([relu[0], relu[99], relu[100], relu[101], relu[255]], [100, 100, 100, 101, 255]);
    let clipped = table(&from, &to, &[Function::Clip { low: -1.0, high: 2.0 }, Function::Times(2.0)]);
    assert_eq!([clipped[0], clipped[95], clipped[110], clipped[255]], [80, 90, 120, 140]);
    let copy = table(&from, &to, &[]);
    assert!((0..=255u8).all(|byte| copy[usize::from(byte)] == byte));
}

#[test]
fn approximations_stay_near_their_functions() {
    for step in -400..=400 {
        let x = step as f32 / 40.0;
        let wide = f64::from(x);
        let near = |function: Function, exact: f64| {
            let found = f64::from(function.at(x));
            assert!((found - exact).abs() <= 1e-6 * (1.0 + exact.abs()), "{function:?} at {x}: {found}, not {exact}");
        };
        near(Function::Sigmoid, 1.0 / (1.0 + (-wide).exp()));
        near(Function::Tanh, wide.tanh());
        near(Function::HardSwish, wide * (wide / 6.0 + 0.5).clamp(0.0, 1.0));
        near(Function::Softplus, (1.0 + wide.exp()).ln());
        near(Function::Elu(0.5), if wide > 0.0 { wide } else { 0.5 * (wide.exp() - 1.0) });
        near(Function::Mish, wide * (1.0 + wide.exp()).ln().tanh());
        near(Function::Celu(2.0), wide.max(0.0) + (2.0 * ((wide / 2.0).exp() - 1.0)).min(0.0));
    }
    let selu = Function::Selu { alpha: 1.5, gamma: 2.0 };
    assert_eq!([selu.at(1.0), selu.at(0.0)], [2.0, 0.0]);
    assert_eq!(Function::ThresholdedRelu(1.0).at(0.5), 0.0);
    assert_eq!([Function::From(1.0).at(3.0), Function::Over(2.0).at(3.0)], [-2.0, 1.5]);
    assert!((Function::Gelu { tanh: false }.at(1.0) - 0.841_344_7).abs() < 1e-6);
    assert!((Function::Gelu { tanh: true }.at(1.0) - 0.841_192).abs() < 1e-6);
}

#[test]
fn indices_and_coordinates_are_inverse() {
    for shape in [&[][..], &[5], &[3, 4], &[3, 4, 5], &[2, 3, 2, 3]] {
        let elements: usize = shape.iter().product();
        for at in 0..elements {
            assert_eq!(index(shape, &coordinates(shape, at)), at, "{shape:?}");
        }
    }
    // [C, H, W] lies as [H][W][C].
    assert_eq!(coordinates(&[3, 4, 5], 1), [1, 0, 0]);
    assert_eq!(coordinates(&[3, 4, 5], 3), [0, 0, 1]);
    assert_eq!(coordinates(&[3, 4, 5], 15), [0, 1, 0]);
}

#[test]
fn a_window_skips_padding_and_counts_it_where_asked() {
    let from = tensor(&[1, 2, 2], Word::Unsigned, 1.0, 0);
    let to = tensor(&[1, 2, 2], Word::Unsigned, 1.0, 0);
    let window = |count_include_pad| Window {
        kernel: [2, 2],
        stride: [1, 1],
        dilation: [1, 1],
        pads: [1, 1, 0, 0],
        count_include_pad,
    };
    let run = |op: Op| {
        let program = program(vec![from.clone(), to.clone()]);
        let step =
            Step { name: "s".into(), op_type: "Pool".into(), op, inputs: vec![TensorId(0)], output: TensorId(1) };
        execute(&program, &step, &[&[10, 20, 30, 40]]).unwrap()
    };
    assert_eq!(run(Op::MaxPool(window(false))), [10, 20, 30, 40]);
    assert_eq!(run(Op::AveragePool(window(false))), [10, 15, 20, 25]);
    // A quarter of 10 is 2.5, which rounds to the even 2; of 30 it is 7.5, to 8.
    assert_eq!(run(Op::AveragePool(window(true))), [2, 8, 10, 25]);
}

#[test]
fn a_step_with_products_is_refused() {
    let shape = || tensor(&[1], Word::Unsigned, 1.0, 0);
    let op = Op::MatMul(crate::program::MatMul {
        batch: 1,
        rows: 1,
        inner: 1,
        columns: 1,
        rescale: crate::program::Rescale::Float(vec![1.0]),
    });
    let step = Step { name: "m".into(), op_type: "MatMul".into(), op, inputs: vec![TensorId(0)], output: TensorId(1) };
    let error = execute(&program(vec![shape(), shape()]), &step, &[&[1]]).unwrap_err();
    assert!(error.to_string().contains("'m' (MatMul)"), "{error}");
}

/// A random step of every kind with its program and inputs.
fn random_step(seed: u64) -> (Program, Step, Vec<Vec<u8>>) {
    let mut numbers = Numbers::new(seed);
    let mut side = |most: usize| 1 + numbers.below(most);
    let shape = [side(4), side(5), side(5)];
    let mut grids = Numbers::new(seed ^ 77);
    let mut any = |shape: &[usize]| {
        let word = if grids.once_in(2) { Word::Signed } else { Word::Unsigned };
        tensor(shape, word, grids.between(1, 90) as f32 / 700.0, grids.bits() as u8)
    };
    let window = Window {
        kernel: [side(3), side(3)],
        stride: [side(2), side(2)],
        dilation: [side(2), side(2)],
        pads: [side(2) - 1, side(2) - 1, 2, 2],
        count_include_pad: side(2) == 1,
    };
    let pooled: Vec<usize> = std::iter::once(shape[0])
        .chain((0..2).map(|axis| {
            let span = window.dilation[axis] * (window.kernel[axis] - 1) + 1;
            (shape[axis + 1] + window.pads[axis] + window.pads[axis + 2]).saturating_sub(span) / window.stride[axis] + 1
        }))
        .collect();
    let mut bytes = Numbers::new(seed ^ 99);
    let mut fresh = |count: usize| -> Vec<u8> { (0..count).map(|_| bytes.bits() as u8).collect() };
    let mut list = Box::new([0; 256]);
    list.copy_from_slice(&fresh(256));
    let elements: usize = shape.iter().product();
    let (inputs, to, op) = match seed % 8 {
        0 => (vec![any(&shape), any(&shape)], any(&shape), Op::Add),
        1 => (vec![any(&[shape[0], 1, 1]), any(&shape)], any(&shape), Op::Add),
        2 => (vec![any(&shape), any(&[1, shape[1], 1])], any(&shape), Op::Mul),
        3 => {
            let axis = (seed / 8 % 3) as usize;
            let mut longer = shape;
            longer[axis] += 2;
            let mut all = shape;
            all[axis] += longer[axis];
            (vec![any(&shape), any(&longer)], any(&all), Op::Concat { axis, tables: vec![None, Some(list)] })
        }
        4 => (vec![any(&shape)], any(&pooled), Op::MaxPool(window)),
        5 => (vec![any(&shape)], any(&pooled), Op::AveragePool(window)),
        6 => (vec![any(&shape)], any(&[shape[0], 1, 1]), Op::GlobalAveragePool),
        _ => {
            let sources = (0..elements as u32).rev().map(Source::Byte).chain([Source::Fill]).collect();
            (vec![any(&shape)], any(&[elements + 1]), Op::Move { sources, fill: 9 })
        }
    };
    let data = inputs.iter().map(|tensor| fresh(tensor.elements())).collect();
    let ids = (0..inputs.len()).map(TensorId).collect();
    let output = TensorId(inputs.len());
    let tensors = inputs.into_iter().chain([to]).collect();
    (program(tensors), Step { name: "s".into(), op_type: "Op".into(), op, inputs: ids, output }, data)
}

proptest! {
    #[test]
    fn executing_a_step_is_its_elements(seed in any::<u64>()) {
        let (program, step, data) = random_step(seed);
        let inputs: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
        let all = execute(&program, &step, &inputs).unwrap();
        prop_assert_eq!(all.len(), program.tensor(step.output).elements());
        for (output, &byte) in all.iter().enumerate() {
            prop_assert_eq!(element(&program, &step, &inputs, output).unwrap(), byte, "{} of {:?}", output, step);
        }
    }
}
