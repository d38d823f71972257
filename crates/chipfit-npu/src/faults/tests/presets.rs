//! Presets draw the numbers that their definitions say.

use super::*;
use crate::program::Op;
use crate::testing;
use crate::twin;

/// A program with several Conv steps, one of them large enough.
fn program() -> Program {
    let mut builder = testing::Builder::new(77, &[6, 9, 9]);
    let mut last = crate::TensorId(0);
    for _ in 0..3 {
        last = builder.random_conv(last);
    }
    let table = builder.table(last);
    let features: usize = builder.shape(table).iter().product();
    let flat = builder.shuffle(table, &[features]);
    builder.gemm(flat, 7);
    builder.build()
}

#[test]
fn mrfi_draws_poisson_numbers_of_sign_flips_per_layer() {
    let program = program();
    let faults = resolve("[[fault]]\npreset = \"mrfi\"\nrate = 0.01", &program);
    for (position, step) in program.steps().iter().enumerate() {
        let neurons = program.tensor(step.output).elements() as f64;
        let draws = 2_000u64;
        let mut total = 0usize;
        for trial in 0..draws {
            let strikes = drawn(&faults, faults.key(trial, 0), position, 0);
            assert!(strikes.iter().all(|s| s.site == Site::Out && s.change == Change::Xor(0x80)));
            total += strikes.len();
        }
        if step.op_type == "Table" || step.op_type == "Move" {
            assert_eq!(total, 0);
            continue;
        }
        // Drawn with replacement, a neuron counts once: neurons * (1 - e^-rate) differ, on average.
        let mean = neurons * (1.0 - f64::exp(-0.01));
        assert_mean(total as f64 / draws as f64, mean, mean.sqrt(), draws as usize);
        let expected = faults.expected(&program, &bare());
        let cell = expected.cells.iter().find(|cell| cell.step.0 == position).unwrap();
        assert!((cell.faults - 0.01 * neurons).abs() < 1e-12);
    }
}

#[test]
fn pytorchfi_strikes_one_neuron_and_every_convolution_as_often() {
    let program = program();
    let convolutions: Vec<usize> =
        (0..program.steps().len()).filter(|&step| program.steps()[step].op_type == "Conv").collect();
    for mode in ["random_value", "bit_flip"] {
        let faults = resolve(&format!("[[fault]]\npreset = \"pytorchfi\"\nmode = \"{mode}\""), &program);
        let mut histogram = vec![0u64; convolutions.len()];
        let draws = 3_000;
        for trial in 0..draws {
            let strikes = inference(&faults, &program, trial, 0);
            let [(step, strike)] = strikes[..] else { panic!("{} strikes", strikes.len()) };
            histogram[convolutions.iter().position(|&c| c == step).unwrap()] += 1;
            let tensor = program.tensor(program.steps()[step].output);
            match strike.change {
                Change::Xor(mask) => assert!(mode == "bit_flip" && mask.is_power_of_two() && mask < 256),
                Change::Set(word) => {
                    // A real value of -1 to 1 lands within half a step of that, unless the type's range ends before.
                    let real = tensor.real(tensor.from_word(word as u8));
                    let ends = [tensor.real(0), tensor.real(255)];
                    assert!(mode == "random_value" && (real.abs() <= 1.0 + tensor.scale || ends.contains(&real)));
                }
                other => panic!("{other:?}"),
            }
        }
        assert_chi_square(&histogram, &vec![draws as f64 / convolutions.len() as f64; convolutions.len()]);
    }
}

#[test]
fn opfi_strikes_the_rounded_numbers_of_its_code() {
    let program = program();
    let faults = resolve("[[fault]]\npreset = \"opfi\"\nber = 3e-4", &program);
    for (position, step) in program.steps().iter().enumerate() {
        let strikes = drawn(&faults, faults.key(1, 2), position, 0);
        let number = |site| strikes.iter().filter(|s| s.site == site).count();
        let (macs, outputs) = match &step.op {
            Op::Linear(linear) => (linear.macs() as f64, program.tensor(step.output).elements() as f64),
            _ => (0.0, 0.0),
        };
        assert_eq!(number(Site::Mul), (2.0 * 3e-4 * 8.0 * macs).round() as usize);
        assert_eq!(number(Site::Acc), (3e-4 * 8.0 * macs).round() as usize);
        assert_eq!(number(Site::Out), (3e-4 * 8.0 * outputs).round() as usize);
    }
}

#[test]
fn fidelity_strikes_buffers_that_sixteen_consumers_see() {
    let program = program();
    let faults = resolve("[[fault]]\npreset = \"fidelity\"\ncount = 25", &program);
    let strikes = inference(&faults, &program, 1, 2);
    assert_eq!(strikes.len(), 25);
    for (step, strike) in strikes {
        assert!(matches!(strike.site, Site::Weight | Site::Act));
        let has_products = program.step_products(&program.steps()[step]) > 0;
        assert_eq!(strike.uses, if has_products { 16 } else { u32::MAX });
    }
}

#[test]
fn mibb_adds_powers_of_two_and_clips() {
    let program = program();
    let faults = resolve("[[fault]]\npreset = \"mibb\"\nrate = 0.05", &program);
    let mut sizes = vec![0u64; 16];
    let mut total = 0;
    let draws = 300u64;
    for trial in 0..draws {
        for (_, strike) in inference(&faults, &program, trial, 0) {
            let (Change::AddSigned(step) | Change::AddUnsigned(step)) = strike.change else { panic!("{strike:?}") };
            assert!(strike.site == Site::Out && step.unsigned_abs().is_power_of_two() && step.abs() < 256);
            sizes[step.unsigned_abs().trailing_zeros() as usize + if step < 0 { 8 } else { 0 }] += 1;
            total += 1;
        }
    }
    assert_chi_square(&sizes, &[total as f64 / 16.0; 16]);
    let outputs: usize = program.steps().iter().map(|step| program.tensor(step.output).elements()).sum();
    let mean = 0.05 * outputs as f64;
    assert_mean(total as f64 / draws as f64, mean, mean.sqrt(), draws as usize);
    // In real values: plus or minus 2^b steps, clipped to the type.
    let input = testing::picture(&program, 1);
    let one = Listed::single(StepId(3), Strike::new(Site::Out, 0, Change::AddUnsigned(-128)));
    let mut unsigned = program.clone();
    let output = unsigned.steps[3].output;
    unsigned.tensors[output.0].word = crate::program::Word::Unsigned;
    let clean = twin::forward(&unsigned, None, &bare(), faults.key(0, 0), faults.machine(), &input);
    let struck = twin::forward(&unsigned, Some(&one), &bare(), faults.key(0, 0), faults.machine(), &input);
    assert_eq!(struck[output.0][0], clean[output.0][0].saturating_sub(128));
}
