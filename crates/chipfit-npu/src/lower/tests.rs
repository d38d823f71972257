//! What lowers, to what; and what is refused, with which words.

use chipfit_model::DataType;
use chipfit_model::build::{attr_f, attr_i, attr_is, attr_s};

use super::linear::fixed_point;
use super::*;
use crate::program::{Rescale, Source, Word};
use crate::testing::qdq::Qdq;
use crate::twin;
use crate::{DrawKey, Machine, Protection};

fn lower(qdq: &Qdq, output: &str) -> Result<Program, LowerError> {
    Program::lower(&qdq.model(output), &LowerOptions::default())
}

fn refused(qdq: &Qdq, output: &str) -> String {
    lower(qdq, output).unwrap_err().to_string()
}

fn run(program: &Program, input: &[u8]) -> Vec<Vec<u8>> {
    let key = DrawKey { seed: 0, trial: 0, picture: 0 };
    twin::forward(program, None, &Protection::none(), key, Machine::default(), input)
}

/// Input `[1, 2, 4, 4]`, a 3x3 convolution to 3 channels, Relu, quantised on `y`.
fn small_network(y_zero: u8) -> (Qdq, String) {
    let mut qdq = Qdq::new(&[1, 2, 4, 4], 0.05, 128);
    let x = qdq.quantised("x", 0.05, 128);
    let w = qdq.weights(&[3, 2, 3, 3], &[0.01, 0.02, 0.03]);
    let b = qdq.bias(&[100, -200, 300], &[0.05 * 0.01, 0.05 * 0.02, 0.05 * 0.03]);
    let conv = qdq.node("Conv", &[&x, &w, &b], vec![attr_is("pads", &[1, 1, 1, 1])]);
    let relu = qdq.node("Relu", &[&conv], vec![]);
    let y = qdq.quantised(&relu, 0.1, y_zero);
    (qdq, y)
}

#[test]
fn a_convolution_with_relu_is_one_step() {
    let (qdq, y) = small_network(7);
    let program = lower(&qdq, &y).unwrap();
    assert_eq!((program.steps().len(), program.tensors().len()), (1, 2));
    let Op::Linear(linear) = &program.steps()[0].op else { panic!("{:?}", program.steps()[0]) };
    assert_eq!((linear.low, linear.high), (7, 255));
    assert_eq!(linear.bias, [100, -200, 300]);
    assert_eq!(linear.geometry.output(), [4, 4]);
    let scale = |w: f32| 0.05f32 * w / 0.1;
    assert_eq!(linear.rescale, Rescale::Float(vec![scale(0.01), scale(0.02), scale(0.03)]));
    // [out][in][row][column] of the file becomes [out][row][column][in].
    let file: Vec<i8> = (0..54).map(Qdq::weight).collect();
    assert_eq!(linear.weights[0..4], [file[0], file[9], file[1], file[10]]);
    assert_eq!(program.macs(), 16 * 3 * 18);
}

#[test]
fn fixed_point_multipliers_are_those_of_tflite() {
    assert_eq!(fixed_point(0.5), (1 << 30, 0));
    assert_eq!(fixed_point(1.0), (1 << 30, 1));
    assert_eq!(fixed_point(0.75), (3 << 29, 0));
    assert_eq!(fixed_point(0.0), (0, 0));
    assert_eq!(fixed_point(1.0 - f64::EPSILON / 2.0), (1 << 30, 1));
    assert_eq!(fixed_point(1e-12), (0, 0));
    let (qdq, y) = small_network(0);
    let options = LowerOptions { requantize: Requantize::Fixed, ..LowerOptions::default() };
    let program = Program::lower(&qdq.model(&y), &options).unwrap();
    let Op::Linear(linear) = &program.steps()[0].op else { panic!() };
    let real = f64::from(0.05f32) * f64::from(0.02f32) / f64::from(0.1f32);
    let Rescale::Fixed { multipliers, shifts } = &linear.rescale else { panic!() };
    let back = f64::from(multipliers[1]) / f64::from(1u32 << 31) * f64::from(shifts[1]).exp2();
    assert!((back / real - 1.0).abs() < 1e-9);
}

#[test]
fn flatten_restores_the_models_order() {
    let mut qdq = Qdq::new(&[1, 2, 2, 3], 1.0, 0);
    let x = qdq.quantised("x", 1.0, 0);
    let flat = qdq.node("Flatten", &[&x], vec![]);
    let y = qdq.quantised(&flat, 1.0, 0);
    let program = lower(&qdq, &y).unwrap();
    let pictures: Vec<f32> = (0..12u8).map(f32::from).collect();
    let input = program.quantise_input(&pictures);
    assert_eq!(input[..4], [0, 6, 1, 7]);
    assert_eq!(*run(&program, &input).last().unwrap(), (0..12).collect::<Vec<u8>>());
}

#[test]
fn what_is_pooled_and_moved_before_quantisation_takes_internal_tensors() {
    let mut qdq = Qdq::new(&[1, 2, 4, 4], 0.05, 128);
    let x = qdq.quantised("x", 0.05, 128);
    let w = qdq.weights(&[4, 2, 1, 1], &[0.01]);
    let conv = qdq.node("Conv", &[&x, &w], vec![]);
    let relu = qdq.node("Relu", &[&conv], vec![]);
    let pool = qdq.node("MaxPool", &[&relu], vec![attr_is("kernel_shape", &[2, 2]), attr_is("strides", &[2, 2])]);
    let turned = qdq.node("Transpose", &[&pool], vec![attr_is("perm", &[0, 2, 3, 1])]);
    let y = qdq.quantised(&turned, 0.02, 3);
    let program = lower(&qdq, &y).unwrap();
    let kinds: Vec<&str> = program.steps().iter().map(|step| step.op_type.as_str()).collect();
    assert_eq!(kinds, ["Conv", "MaxPool", "Transpose"]);
    let internal: Vec<bool> = program.tensors().iter().map(Tensor::is_internal).collect();
    assert_eq!(internal, [false, true, true, false]);
    let Op::Linear(linear) = &program.steps()[0].op else { panic!() };
    assert_eq!(linear.low, 3);
}

#[test]
fn neighbouring_moves_become_one_and_a_change_of_grid_one_table() {
    let mut qdq = Qdq::new(&[1, 2, 4, 4], 0.5, 0);
    let x = qdq.quantised("x", 0.5, 0);
    let pads = qdq.integers(&[0, 0, 1, 1, 0, 0, 1, 1]);
    let padded = qdq.node("Pad", &[&x, &pads], vec![attr_s("mode", "constant")]);
    let doubled = qdq.node("Relu", &[&padded], vec![]);
    let turned = qdq.node("Transpose", &[&doubled], vec![attr_is("perm", &[0, 3, 1, 2])]);
    let y = qdq.quantised(&turned, 1.0, 9);
    let program = lower(&qdq, &y).unwrap();
    let kinds: Vec<&Op> = program.steps().iter().map(|step| &step.op).collect();
    let [Op::Table(table), Op::Move { sources, fill: 9 }] = kinds.as_slice() else { panic!("{kinds:?}") };
    assert_eq!([table[0], table[1], table[2], table[255]], [9, 9, 10, 137]);
    assert_eq!(sources.iter().filter(|source| **source == Source::Fill).count(), 2 * 20);
}

#[test]
fn a_value_quantised_twice_alike_is_one_tensor() {
    let (mut qdq, y) = small_network(0);
    let relu = qdq.last("Relu");
    let again = qdq.quantised(&relu, 0.1, 0);
    let sum = qdq.node("Add", &[&y, &again], vec![]);
    let out = qdq.quantised(&sum, 0.2, 0);
    let program = lower(&qdq, &out).unwrap();
    assert_eq!(program.steps().len(), 2);
    assert_eq!(program.steps()[1].inputs[0], program.steps()[1].inputs[1]);
}

#[test]
fn a_softmax_stays_float_and_its_own_quantisation_is_left_out() {
    for quantised in [false, true] {
        let mut qdq = Qdq::new(&[1, 8], 0.05, 0);
        let x = qdq.quantised("x", 0.05, 0);
        let w = qdq.weights(&[8, 4], &[0.01]);
        let logits = qdq.node("MatMul", &[&x, &w], vec![]);
        let y = qdq.quantised(&logits, 0.1, 128);
        let mut out = qdq.node("Softmax", &[&y], vec![attr_i("axis", 1)]);
        if quantised {
            out = qdq.quantised(&out, 1.0 / 256.0, 0);
        }
        let program = lower(&qdq, &out).unwrap();
        assert_eq!((program.head(), program.steps().len()), (Head::Softmax, 1));
        assert_eq!(program.warnings().len(), usize::from(quantised), "{:?}", program.warnings());
    }
}

#[test]
fn a_matrix_after_rows_is_turned_there_and_back() {
    let mut qdq = Qdq::new(&[1, 3, 5], 0.05, 100);
    let x = qdq.quantised("x", 0.05, 100);
    let w = qdq.weights(&[5, 4], &[0.01]);
    let product = qdq.node("MatMul", &[&x, &w], vec![]);
    let y = qdq.quantised(&product, 0.02, 50);
    let program = lower(&qdq, &y).unwrap();
    let pictures: Vec<f32> = (0..15).map(|v| (v as f32 - 7.0) * 0.05).collect();
    let bytes = run(&program, &program.quantise_input(&pictures));
    let found = crate::program::to_model_layout(bytes.last().unwrap(), &[3, 4]);
    for row in 0..3 {
        for column in 0..4 {
            let sum: i32 = (0..5).map(|k| (row * 5 + k - 7) * i32::from(Qdq::weight((k * 4 + column) as usize))).sum();
            let want = (sum as f32 * (0.05f32 * 0.01 / 0.02)).round_ties_even() as i32 + 50;
            assert_eq!(i32::from(found[(row * 4 + column) as usize]), want.clamp(0, 255));
        }
    }
}

#[test]
fn an_operator_that_is_missing_is_named_or_kept_in_float() {
    let (mut qdq, y) = small_network(0);
    let strange = qdq.node("LRN", &[&y], vec![attr_i("size", 3)]);
    let out = qdq.quantised(&strange, 0.1, 0);
    let text = refused(&qdq, &out);
    assert!(text.contains("(LRN)") && text.contains("--float-fallback"), "{text}");
    let mut options = LowerOptions { float_fallback: true, ..LowerOptions::default() };
    let sub = qdq.node("Sub", &[&y, &y], vec![]);
    let zero = qdq.quantised(&sub, 0.1, 4);
    let program = Program::lower(&qdq.model(&zero), &options).unwrap();
    assert_eq!(program.warnings().len(), 1);
    assert!(program.warnings()[0].contains("kept in float"), "{:?}", program.warnings());
    let input = program.quantise_input(&[0.3; 32]);
    assert!(run(&program, &input).last().unwrap().iter().all(|&byte| byte == 4));
    options.float_fallback = false;
    assert!(Program::lower(&qdq.model(&zero), &options).is_err());
}

#[test]
fn a_transposed_convolution_is_rewritten() {
    let mut qdq = Qdq::new(&[1, 2, 3, 3], 0.05, 128);
    let x = qdq.quantised("x", 0.05, 128);
    let w = qdq.weights(&[2, 3, 2, 2], &[0.01]);
    let up = qdq.node("ConvTranspose", &[&x, &w], vec![attr_is("strides", &[2, 2])]);
    let y = qdq.quantised(&up, 0.05, 128);
    let program = lower(&qdq, &y).unwrap();
    assert_eq!(program.tensor(program.output()).shape, [3, 6, 6]);
    let pictures: Vec<f32> = (0..18).map(|v| (v % 7) as f32 * 0.05).collect();
    let bytes = run(&program, &program.quantise_input(&pictures));
    let found = crate::program::to_model_layout(bytes.last().unwrap(), &[3, 6, 6]);
    for (at, &byte) in found.iter().enumerate() {
        let (channel, row, column) = (at / 36, at / 6 % 6, at % 6);
        let sum: i32 = (0..2)
            .map(|c| {
                let x = ((c * 9 + row / 2 * 3 + column / 2) % 7) as i32;
                x * i32::from(Qdq::weight(((c * 3 + channel) * 2 + row % 2) * 2 + column % 2))
            })
            .sum();
        let want = (sum as f32 * (0.05f32 * 0.01 / 0.05)).round_ties_even() as i32 + 128;
        assert_eq!(i32::from(byte), want.clamp(0, 255), "{channel} {row} {column}");
    }
}

#[test]
fn int8_tensors_are_biased() {
    let mut qdq = Qdq::new(&[1, 4], 0.5, 0);
    qdq.word = DataType::Int8;
    let x = qdq.quantised("x", 0.5, -3);
    let y = qdq.node("Relu", &[&x], vec![]);
    let y = qdq.quantised(&y, 0.25, -128);
    let program = lower(&qdq, &y).unwrap();
    let tensor = program.tensor(program.input());
    assert_eq!((tensor.word, tensor.zero_point, tensor.to_word(0)), (Word::Signed, 125, 0x80));
    assert_eq!(run(&program, &program.quantise_input(&[0.5, -1.0, 3.0, 100.0])).last().unwrap(), &[2, 0, 12, 255]);
}

#[test]
fn models_that_cannot_be_lowered_say_why() {
    let mut plain = Qdq::new(&[1, 4], 0.5, 0);
    let y = plain.node("Relu", &["x"], vec![]);
    assert!(refused(&plain, &y).contains("not quantised"));

    type Damage = fn(&mut Qdq) -> String;
    let cases: [(&str, Damage); 14] = [
        ("must be finite and above zero", |q| {
            let x = q.quantised("x", 0.0, 0);
            q.node("Identity", &[&x], vec![])
        }),
        ("must be finite and above zero", |q| q.quantised("x", f32::NAN, 0)),
        ("activations of type int16", |q| {
            q.word = DataType::Int16;
            q.quantised("x", 0.1, 0)
        }),
        ("is not quantised: put QuantizeLinear", |q| {
            let x = q.quantised("x", 0.1, 0);
            let w = q.weights(&[4, 4], &[0.1]);
            let y = q.node("MatMul", &[&x, &w], vec![]);
            let z = q.node("MatMul", &[&y, &w], vec![]);
            q.quantised(&z, 0.1, 0)
        }),
        ("is not quantised: put QuantizeLinear", |q| {
            let x = q.quantised("x", 0.1, 0);
            let w = q.weights(&[4, 4], &[0.1]);
            let y = q.node("MatMul", &[&x, &w], vec![]);
            let z = q.node("HardSwish", &[&y], vec![]);
            q.quantised(&z, 0.1, 0)
        }),
        ("x_scale * w_scale", |q| {
            let x = q.quantised("x", 0.1, 0);
            let (w, b) = (q.weights(&[4, 4], &[0.1]), q.bias(&[1, 2, 3, 4], &[0.011; 4]));
            let y = q.node("Gemm", &[&x, &w, &b], vec![]);
            q.quantised(&y, 0.1, 0)
        }),
        ("batch normalisation", |q| {
            let x = q.quantised("x", 0.1, 0);
            let p = q.floats(&[1.0; 4]);
            let y = q.node("BatchNormalization", &[&x, &p, &p, &p, &p], vec![]);
            q.quantised(&y, 0.1, 0)
        }),
        ("mixes pictures", |q| {
            let x = q.quantised("x", 0.1, 0);
            let y = q.node("Transpose", &[&x], vec![attr_is("perm", &[1, 0])]);
            q.quantised(&y, 0.1, 0)
        }),
        ("alpha or beta", |q| {
            let x = q.quantised("x", 0.1, 0);
            let w = q.weights(&[4, 4], &[0.1]);
            let y = q.node("Gemm", &[&x, &w], vec![attr_f("alpha", 0.5)]);
            q.quantised(&y, 0.1, 0)
        }),
        ("is not constant", |q| {
            let x = q.quantised("x", 0.1, 0);
            let w = q.weights(&[4, 4], &[0.1]);
            let w = q.node("Transpose", &[&w], vec![]);
            let y = q.node("Gemm", &[&x, &w], vec![]);
            q.quantised(&y, 0.1, 0)
        }),
        ("was written with", |q| {
            let x = q.integer("x", 0.1, 0);
            q.dequantised(&x, 0.2, 0)
        }),
        ("they must agree", |q| {
            let x = q.integer("x", 0.1, 0);
            q.word = DataType::Int8;
            q.dequantised(&x, 0.1, 0)
        }),
        ("1 inputs and 1 outputs; correct the model", |q| {
            let x = q.quantised("x", 0.1, 0);
            let y = q.node("Conv", &[&x], vec![]);
            q.quantised(&y, 0.1, 0)
        }),
        ("quantised twice", |q| {
            let (a, b) = (q.quantised("x", 0.1, 0), q.quantised("x", 0.2, 0));
            let y = q.node("Add", &[&a, &b], vec![]);
            q.quantised(&y, 0.1, 0)
        }),
    ];
    for (number, (words, damage)) in cases.into_iter().enumerate() {
        let mut qdq = Qdq::new(&[1, 4], 0.1, 0);
        let output = damage(&mut qdq);
        let text = refused(&qdq, &output);
        assert!(text.contains(words), "case {number}: {text}");
    }
}

#[test]
fn several_outputs_need_a_choice() {
    let (mut qdq, y) = small_network(0);
    let z = qdq.node("Identity", &[&y], vec![]);
    let model = qdq.model_with_outputs(&[&y, &z]);
    let text = Program::lower(&model, &LowerOptions::default()).unwrap_err().to_string();
    assert!(text.contains("--output"), "{text}");
    let chosen = LowerOptions { output: Some(y), ..LowerOptions::default() };
    assert!(Program::lower(&model, &chosen).is_ok());
    let unknown = LowerOptions { output: Some("nowhere".to_owned()), ..LowerOptions::default() };
    assert!(Program::lower(&model, &unknown).unwrap_err().to_string().contains("no 'nowhere'"));
}

#[test]
fn a_fixed_batch_lowers_to_one_picture() {
    let mut qdq = Qdq::new(&[5, 2, 4, 4], 0.05, 128);
    let x = qdq.quantised("x", 0.05, 128);
    let flat = qdq.node("Flatten", &[&x], vec![]);
    let w = qdq.weights(&[32, 3], &[0.01]);
    let y = qdq.node("Gemm", &[&flat, &w], vec![]);
    let y = qdq.quantised(&y, 0.1, 0);
    let program = lower(&qdq, &y).unwrap();
    assert_eq!(program.tensor(program.output()).shape, [3]);
    // Gemm reads the flattened tensor; the move that makes it is internal.
    assert_eq!(program.steps().len(), 2);
}
