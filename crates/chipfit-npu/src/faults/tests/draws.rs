//! Resolved models: what is struck, where, and that nothing but the key decides it.

use proptest::prelude::*;

use super::*;
use crate::program::{ConvGeometry, Op, TensorId};
use crate::protection::Vote;
use crate::testing::{self, Builder};
use crate::twin;

const BROAD: &str = r#"
    processor = { lanes = 2, array = [3, 2] }
    [[fault]]
    sites = ["mul", "acc", "acc_out", "out", "act"]
    kind = "flip"
    ber = 0.01
    layers = "*"
    [[fault]]
    sites = ["mul", "out"]
    kind = "random"
    count = 2
    [[fault]]
    sites = ["act"]
    kind = "stuck_at_1"
    count = 3
    reuse = 3
"#;

#[test]
fn draws_depend_on_the_key_alone() {
    let program = testing::program(11);
    let faults = resolve(BROAD, &program);
    let mut keys: Vec<(u64, u64, usize, u8)> = Vec::new();
    for (trial, picture) in [(0, 0), (0, 1), (1, 0), (7, 300)] {
        for step in 0..program.steps().len() {
            keys.extend((0..3).map(|replica| (trial, picture, step, replica)));
        }
    }
    let draw = |source: &Faults, (trial, picture, step, replica): (u64, u64, usize, u8)| {
        drawn(source, source.key(trial, picture), step, replica)
    };
    let forward: Vec<Vec<Strike>> = keys.iter().map(|&key| draw(&faults, key)).collect();
    assert!(forward.iter().map(Vec::len).sum::<usize>() > 100);
    // Backwards, resolved again, on another thread, with another model's splits in between.
    let other = resolve(&BROAD.replace("count = 2", "count = 1"), &program);
    let again = resolve(BROAD, &program);
    let mut backward: Vec<Vec<Strike>> = std::thread::scope(|scope| {
        let handle = scope.spawn(|| {
            keys.iter()
                .rev()
                .map(|&key| {
                    draw(&other, key);
                    draw(&again, key)
                })
                .collect()
        });
        handle.join().unwrap()
    });
    backward.reverse();
    assert_eq!(forward, backward);
    // And different keys draw differently.
    let mut seen = forward.clone();
    seen.retain(|strikes| strikes.len() > 3);
    let before = seen.len();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), before);
}

#[test]
fn a_layer_has_the_same_faults_whatever_else_is_struck() {
    let program = testing::program(11);
    let text = "[[fault]]\nsites = [\"mul\", \"out\"]\nkind = \"flip\"\nber = 0.01\nlayers = \"*\"";
    let all = resolve(text, &program);
    let one = resolve(&text.replace("\"*\"", "1").replace("\"mul\", ", ""), &program);
    let outs: Vec<Strike> = drawn(&one, one.key(3, 4), 1, 0);
    assert!(!outs.is_empty());
    assert!(drawn(&all, all.key(3, 4), 1, 0).ends_with(&outs));
}

#[test]
fn the_faults_of_a_pinned_key_never_change() {
    let program = testing::program(11);
    let faults = resolve("[[fault]]\nsites = [\"out\"]\nkind = \"flip\"\nber = 0.05", &program);
    let strikes: Vec<(usize, u64, Change)> =
        inference(&faults, &program, 5, 6).into_iter().map(|(step, s)| (step, s.word, s.change)).collect();
    assert_eq!(strikes[..strikes.len().min(4)], PINNED);
}

/// From an implementation in another language, after `docs/fault-model.md`; a change breaks the replay of every
/// campaign. The step has 48 outputs.
const PINNED: [(usize, u64, Change); 4] =
    [(0, 0, Change::Xor(2)), (0, 1, Change::Xor(8)), (0, 2, Change::Xor(32)), (0, 4, Change::Xor(1))];

proptest! {
    #[test]
    fn strikes_are_sorted_and_lie_in_their_population(seed: u64) {
        let program = any_program(seed);
        let faults = resolve(BROAD, &program);
        for step in (0..program.steps().len()).map(StepId) {
            for replica in 0..3 {
                let strikes = drawn(&faults, faults.key(seed, 1), step.0, replica);
                prop_assert!(strikes.is_sorted());
                for strike in strikes {
                    let population = population(&program, step, strike.site, &faults.machine()).unwrap();
                    prop_assert!(strike.word < population.words, "{:?} of {:?}", strike, population);
                    prop_assert!(replica == 0 || strike.site != Site::Act);
                    if let Change::Xor(mask) = strike.change {
                        prop_assert!(mask.is_power_of_two() && u64::from(mask) < 1 << population.bits);
                    }
                    if strike.uses != u32::MAX {
                        let consumers = consumers(&program, step, Site::Act, strike.word).unwrap();
                        prop_assert!(strike.uses == 3 && strike.first_use % 3 == 0);
                        prop_assert!(strike.first_use < consumers.max(1));
                    }
                }
            }
        }
    }

    #[test]
    fn a_count_is_exact_whatever_the_split(seed: u64, count in 1u64..48) {
        let program = any_program(seed);
        let text = format!("[[fault]]\nsites = [\"mul\", \"acc\"]\nkind = \"flip\"\ncount = {count}");
        let strikes = inference(&resolve(&text, &program), &program, seed, 3);
        prop_assert_eq!(strikes.len() as u64, count);
    }

    #[test]
    fn rate_zero_is_clean(seed: u64) {
        let program = any_program(seed);
        let input = testing::picture(&program, seed);
        let faults = resolve("[[fault]]\nsites = [\"mul\", \"acc\", \"out\", \"act\"]\nkind = \"flip\"\nber = 0", &program);
        let protection = Protection::full(&program, Vote::Output);
        let struck =
            twin::forward(&program, Some(&faults), &protection, faults.key(1, 2), faults.machine(), &input);
        prop_assert_eq!(struck, twin::forward(&program, None, &bare(), faults.key(1, 2), faults.machine(), &input));
        prop_assert_eq!(faults.expected(&program, &protection).total(), 0.0);
    }

    #[test]
    fn masks_select_what_enumeration_selects(seed: u64) {
        let program = any_program(seed);
        let (rows, columns) = (3usize, 2usize);
        let head = "processor = { lanes = 2, array = [3, 2] }\n[[fault]]\n";
        for site in Site::ALL {
            let channels = format!("{head}sites = [\"{site}\"]\nkind = \"flip\"\nber = 1\nbits = [2, 0]\nchannels = [0, 2, 9999]");
            let element = format!("{head}sites = [\"{site}\"]\nkind = \"stuck_at_0\"\nbits = [5]\npe = [0, 0]");
            let in_array = matches!(site, Site::Mul | Site::Acc | Site::AccOut);
            for text in [Some(channels), in_array.then_some(element)].into_iter().flatten() {
                let Ok(faults) = Faults::resolve(&FaultsFile::parse(&text).unwrap(), &program, 1) else {
                    // The program has no step with this site.
                    prop_assert!(site == Site::Weight || in_array);
                    continue;
                };
                for (position, step) in program.steps().iter().enumerate() {
                    let Some(population) = population(&program, StepId(position), site, &faults.machine()) else { continue };
                    let tensor = program.tensor(if site == Site::Act { step.inputs[0] } else { step.output });
                    let expected: Vec<u64> = (0..population.words).filter(|&word| {
                        let element = word as usize / (population.words as usize / tensor.elements()).max(1);
                        let (pixel, mut channel) = (element / tensor.channels(), element % tensor.channels());
                        if site == Site::Weight {
                            channel = word as usize / program.step_products(step);
                        }
                        match text.contains("pe =") {
                            true => pixel % rows == 0 && channel % columns == 0,
                            false => channel == 0 || channel == 2,
                        }
                    }).collect();
                    let strikes = drawn(&faults, faults.key(0, 0), position, 0);
                    let per_word = if text.contains("pe =") { 1 } else { 2 };
                    prop_assert_eq!(strikes.len(), expected.len() * per_word, "{}", text);
                    prop_assert!(strikes.iter().map(|s| s.word).eq(expected.iter().flat_map(|&w| vec![w; per_word])));
                }
            }
        }
    }

    #[test]
    fn places_count_words_in_their_documented_order(seed: u64) {
        let program = any_program(seed);
        let machine = crate::Machine { lanes: 3.try_into().unwrap(), ..crate::Machine::default() };
        for (position, step) in program.steps().iter().enumerate() {
            let products = program.step_products(step);
            for site in Site::ALL {
                let Some(population) = population(&program, StepId(position), site, &machine) else { continue };
                let tensor = program.tensor(if site == Site::Act { step.inputs[0] } else { step.output });
                let parts = match site {
                    Site::Mul => Some(products),
                    Site::Acc => Some(machine.updates(products)),
                    _ => None,
                };
                let mut word = 0;
                let pixels = tensor.elements() / tensor.channels();
                let mut check = |place: Place| {
                    prop_assert_eq!(super::super::place(&program, StepId(position), site, word, &machine), Some(place));
                    word += 1;
                    Ok(())
                };
                if site == Site::Weight {
                    for channel in 0..tensor.channels() {
                        for k in 0..products {
                            check(Place { channel, pixel: None, part: Some(k) })?;
                        }
                    }
                } else {
                    for pixel in 0..pixels {
                        for channel in 0..tensor.channels() {
                            for part in 0..parts.unwrap_or(1) {
                                check(Place { channel, pixel: Some(pixel), part: parts.map(|_| part) })?;
                            }
                        }
                    }
                }
                prop_assert_eq!(word, population.words);
                prop_assert_eq!(super::super::place(&program, StepId(position), site, word, &machine), None);
            }
        }
    }

    #[test]
    fn the_expected_number_is_the_mean_of_the_drawn_ones(seed in 0u64..40) {
        let program = any_program(seed);
        let mut protection = Protection::none();
        for (position, step) in program.steps().iter().enumerate() {
            let channels = program.tensor(step.output).channels();
            protection.protect(StepId(position), (0..channels).map(|channel| channel % 2 == 0).collect());
        }
        let text = "[[fault]]\nsites = [\"mul\", \"out\"]\nkind = \"flip\"\nber = 0.001\n\
                    [[fault]]\nsites = [\"acc\"]\nkind = \"random\"\nber = 0.002\nchannels = [0, 1]\n\
                    [[fault]]\nsites = [\"acc_out\"]\nkind = \"flip\"\nbit_profile = [0, 0.001, 0, 0.004, 0.004]";
        let faults = resolve(text, &program);
        let expected = faults.expected(&program, &protection).total();
        let draws = 400;
        let mut total = 0usize;
        for trial in 0..draws {
            for (position, step) in program.steps().iter().enumerate() {
                let channels = program.tensor(step.output).channels();
                for replica in 0..3 {
                    let strikes = drawn(&faults, faults.key(trial, seed), position, replica);
                    total += strikes.iter().filter(|strike| {
                        let words = population(&program, StepId(position), strike.site, &faults.machine()).unwrap().words;
                        let per_output = words / program.tensor(step.output).elements() as u64;
                        let channel = (strike.word / per_output) as usize % channels;
                        replica == 0 || protection.covers(StepId(position), channel)
                    }).count();
                }
            }
        }
        assert_mean(total as f64 / draws as f64, expected, expected.sqrt(), draws as usize);
    }
}

#[test]
fn lifetimes_decide_when_buffers_are_struck_anew() {
    let program = testing::program(11);
    let draw = |lifetime: &str, load: u64, trial, picture| {
        let text = format!("[[fault]]\nsites = [\"weight\"]\nkind = \"flip\"\nber = 0.1\nlifetime = \"{lifetime}\"");
        let mut faults = resolve(&text, &program);
        faults.set_load(load);
        inference(&faults, &program, trial, picture)
    };
    let first = draw("inference", 0, 0, 0);
    assert!(!first.is_empty());
    assert!(first != draw("inference", 0, 0, 1) && first != draw("inference", 0, 1, 0));
    assert_eq!(draw("load", 4, 0, 0), draw("load", 4, 9, 9));
    assert_ne!(draw("load", 4, 0, 0), draw("load", 5, 0, 0));
    assert_eq!(draw("campaign", 4, 0, 0), draw("campaign", 5, 9, 9));
}

#[test]
fn bits_of_a_site_are_struck_alike() {
    let mut builder = Builder::new(1, &[4, 6, 6]);
    builder.random_conv(TensorId(0));
    let mut program = builder.build();
    for (zero_point, bits) in [(0, 16usize), (1, 17)] {
        let Op::Linear(linear) = &mut program.steps[0].op else { unreachable!() };
        linear.weight_zero_points[0] = zero_point;
        let symmetric = linear.weight_zero_points.iter().all(|&z| z == 0);
        let bits = if symmetric { 16 } else { bits.max(17) };
        let faults = resolve("[[fault]]\nsites = [\"mul\"]\nkind = \"flip\"\nber = 0.01", &program);
        let mut histogram = vec![0u64; 32];
        for trial in 0..200 {
            for strike in drawn(&faults, faults.key(trial, 0), 0, 0) {
                let Change::Xor(mask) = strike.change else { panic!("{strike:?}") };
                histogram[mask.trailing_zeros() as usize] += 1;
            }
        }
        assert_eq!(histogram[bits..].iter().sum::<u64>(), 0);
        let total: u64 = histogram.iter().sum();
        assert_chi_square(&histogram[..bits], &vec![total as f64 / bits as f64; bits]);
    }
}

#[test]
fn kinds_change_words_as_they_say() {
    let program = testing::program(11);
    let change = |rest: &str| {
        let text = format!("[[fault]]\nsites = [\"acc\"]\ncount = 30\n{rest}");
        inference(&resolve(&text, &program), &program, 1, 1).into_iter().map(|(_, s)| s.change).collect::<Vec<_>>()
    };
    assert!(change("kind = \"stuck_at_0\"\nbits = [3]").iter().all(|c| *c == Change::Clear(8)));
    assert!(change("kind = \"stuck_at_1\"\nbits = [31]").iter().all(|c| *c == Change::Raise(1 << 31)));
    assert!(change("kind = \"set\"\nvalue = -2").iter().all(|c| *c == Change::Set(0xFFFF_FFFE)));
    for burst in change("kind = \"burst\"\nlength = 5") {
        let Change::Xor(mask) = burst else { panic!("{burst:?}") };
        assert_eq!(mask >> mask.trailing_zeros(), 0b11111);
    }
    let values = change("kind = \"random\"");
    assert!(values.iter().any(|c| matches!(c, Change::Set(v) if *v > 1 << 30)));
    assert!(values.iter().any(|c| matches!(c, Change::Set(v) if *v < 1 << 31)));
}

/// A square convolution that halves the map where its stride is 2.
fn conv(builder: &mut Builder, input: TensorId, to: usize, kernel: usize, stride: usize) -> TensorId {
    let [from, side, _] = builder.shape(input)[..] else { panic!("a map") };
    let geometry = ConvGeometry {
        input: [side; 2],
        in_channels: from,
        out_channels: to,
        groups: 1,
        kernel: [kernel; 2],
        stride: [stride; 2],
        dilation: [1; 2],
        pads: [kernel / 2; 4],
    };
    builder.linear("Conv", geometry, input, &[to, side / stride, side / stride])
}

/// The products of a residual network for 3 x 32 x 32 pictures; sums and pools are left out.
fn residual_network(stem: usize, stages: &[usize], blocks: usize) -> Program {
    let mut builder = Builder::new(1, &[3, 32, 32]);
    let mut last = conv(&mut builder, TensorId(0), stem, 3, 1);
    for (stage, &channels) in stages.iter().enumerate() {
        for block in 0..blocks {
            let input = last;
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            last = conv(&mut builder, input, channels, 3, stride);
            if stride == 2 {
                conv(&mut builder, input, channels, 1, 2);
            }
            last = conv(&mut builder, last, channels, 3, 1);
        }
    }
    let pooled = builder.shuffle(last, &[stages[stages.len() - 1]]);
    builder.gemm(pooled, 10);
    let mut program = builder.build();
    for step in &mut program.steps {
        if let Op::Linear(linear) = &mut step.op {
            linear.weight_zero_points.fill(0);
        }
    }
    program
}

#[test]
fn resnet18_takes_the_published_numbers_of_flips() {
    let program = residual_network(64, &[64, 128, 256, 512], 2);
    assert!((program.macs() as f64 / 1e6 - 555.4).abs() < 0.1, "{} MACs", program.macs());
    let text = "[[fault]]\nsites = [\"mul\", \"acc\", \"out\"]\nkind = \"flip\"\nber = 1e-9";
    let faults = resolve(text, &program);
    let expected = faults.expected(&program, &bare());
    assert!((expected.site(Site::Mul) - 8.9).abs() < 0.05, "{}", expected.site(Site::Mul));
    assert!((expected.site(Site::Acc) - 17.8).abs() < 0.05, "{}", expected.site(Site::Acc));
    assert!((expected.site(Site::Out) - 0.005).abs() < 0.0005, "{}", expected.site(Site::Out));
    let lines = faults.describe(&program, &bare());
    assert!(lines[0].contains("flip at mul, acc, out, probability 1e-9 per exposed bit and inference"), "{lines:?}");
    assert!(lines[1].starts_with("expected faults per inference: 2.66"), "{lines:?}");
    // Three replicas of everything.
    let tripled = faults.expected(&program, &Protection::full(&program, Vote::Output)).total();
    assert!((tripled - 3.0 * expected.total()).abs() < 1e-9);
}

#[test]
fn replicas_strike_the_same_output_as_often_as_computed() {
    // ResNet-8: 86,016 outputs of convolutions.
    let program = residual_network(16, &[16, 32, 64], 1);
    let faults = resolve("[[fault]]\nsites = [\"mul\", \"acc\"]\nkind = \"flip\"\nber = 1e-6", &program);
    let trials = 60;
    let (mut seen, mut expected) = (0usize, 0.0);
    for (position, step) in program.steps().iter().enumerate() {
        let Op::Linear(linear) = &step.op else { continue };
        let products = linear.products() as u64;
        let struck = 1.0 - (1.0 - 1e-6f64).powi(48 * products as i32);
        expected += crate::protection::residual(struck) * program.tensor(step.output).elements() as f64;
        for trial in 0..trials {
            let mut outputs: Vec<u64> = Vec::new();
            for replica in 0..3 {
                let mut own: Vec<u64> = drawn(&faults, faults.key(trial, 0), position, replica)
                    .iter()
                    .map(|strike| strike.word / products)
                    .collect();
                own.sort_unstable();
                own.dedup();
                outputs.extend(own);
            }
            outputs.sort_unstable();
            seen += outputs.chunk_by(|a, b| a == b).filter(|replicas| replicas.len() > 1).count();
        }
    }
    assert!((expected - 22.0).abs() < 0.5, "{expected}");
    assert_mean(seen as f64 / trials as f64, expected, expected.sqrt(), trials as usize);
}

#[test]
fn the_simulator_computes_with_the_same_faults() {
    use std::sync::Arc;

    use crate::processor::{Batch, Processor, Request};
    use crate::simulator::{Simulator, SimulatorOptions};

    for seed in 0..30 {
        let program = any_program(seed);
        let faults = resolve(BROAD, &program);
        let vote = [Vote::Output, Vote::Accumulator, Vote::Operation][seed as usize % 3];
        let protection = if seed % 4 == 0 { bare() } else { Protection::full(&program, vote) };
        let pictures = [4, 9, 2];
        let inputs: Vec<Vec<u8>> = pictures.iter().map(|&picture| testing::picture(&program, picture)).collect();
        let options = SimulatorOptions { machine: faults.machine(), threads: 2, ..SimulatorOptions::default() };
        let mut simulator = Simulator::new(program.clone(), options)
            .unwrap()
            .with_faults(Arc::new(faults.clone()), faults.seed())
            .with_protection(protection.clone());
        let batch = Batch { pictures: &pictures, input: &inputs.concat() };
        let trace = simulator.forward(&Request { batch, trial: seed, views: &[], wanted: &[] }).unwrap();
        let expected: Vec<u8> = pictures
            .iter()
            .zip(&inputs)
            .flat_map(|(&picture, input)| {
                let key = faults.key(seed, picture);
                twin::forward(&program, Some(&faults), &protection, key, faults.machine(), input)
                    .swap_remove(program.output().0)
            })
            .collect();
        assert_eq!(trace.output, expected, "program {seed}");
    }
}
