//! How many single-fault trials per second the propagation does, against full inferences with the same kernels.
//!
//! `cargo run --release -p chipfit-npu --example trials [cifar|imagenet] [trials] [instruction set] [lanes]`
//!
//! Faults are flips drawn uniformly over the exposed `mul` and `acc` bits. Times are processor time of one thread, the
//! best of several rounds for the full inferences, the mean for the trials.

use chipfit_kernels::Isa;
use chipfit_npu::testing::{
    Numbers,
    networks::{ResNet18, resnet18},
};
use chipfit_npu::{
    Batch, Change, Masking, Processor, Program, Propagator, Request, Simulator, SimulatorOptions, Site, StepId, Strike,
    TrialBatch,
};

/// Nanoseconds on a processor, all threads of this process that are alive.
fn processor_time() -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    tasks
        .filter_map(|task| std::fs::read_to_string(task.path().join("schedstat")).ok())
        .filter_map(|line| line.split_whitespace().next().and_then(|field| field.parse::<u64>().ok()))
        .sum()
}

/// One flip, uniform over the exposed bits of products and accumulator updates.
fn draw(program: &Program, numbers: &mut Numbers) -> (StepId, Strike) {
    let mut mac = ((u128::from(numbers.bits()) * u128::from(program.macs())) >> 64) as u64;
    let bit = numbers.below(48) as u32;
    for (position, step) in program.steps().iter().enumerate() {
        let own = program.step_macs(step);
        if mac < own {
            let strike = match bit {
                0..16 => Strike::new(Site::Mul, mac, Change::Xor(1 << bit)),
                _ => Strike::new(Site::Acc, mac, Change::Xor(1 << (bit - 16))),
            };
            return (StepId(position), strike);
        }
        mac -= own;
    }
    unreachable!("a MAC of the program")
}

/// Full inferences per second of processor time.
fn full(simulator: &mut Simulator, input: &[u8], batch: usize) -> f64 {
    let input = input.repeat(batch);
    let pictures: Vec<u64> = (0..batch as u64).collect();
    let mut best = 0.0_f64;
    for _ in 0..12 {
        let start = processor_time();
        let passes = 64 / batch;
        for _ in 0..passes {
            let request =
                Request { batch: Batch { pictures: &pictures, input: &input }, trial: 0, views: &[], wanted: &[] };
            simulator.forward(&request).expect("a forward pass");
        }
        best = best.max((passes * batch) as f64 / ((processor_time() - start) as f64 * 1e-9));
    }
    best
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let chosen = arguments.first().map_or("", String::as_str);
    let count: usize = arguments.get(1).and_then(|text| text.parse().ok()).unwrap_or(5000);
    let only = arguments.get(2).and_then(|name| Isa::parse(name));
    let lanes = arguments.get(3).and_then(|text| text.parse().ok()).unwrap_or(16);
    for (name, which) in [("cifar", ResNet18::Cifar), ("imagenet", ResNet18::ImageNet)] {
        if !name.starts_with(chosen) {
            continue;
        }
        let program = resnet18(which, 1);
        for isa in [Isa::AmxInt8, Isa::Avx512Vnni] {
            if !isa.is_available() || only.is_some_and(|only| only != isa) {
                continue;
            }
            let options = SimulatorOptions { isa: Some(isa), ..Default::default() };
            let mut simulator = Simulator::new(program.clone(), options).expect("a simulator");
            let mut numbers = Numbers::new(3);
            let each = program.tensor(program.input()).elements();
            let picture: Vec<u8> = (0..each).map(|_| (numbers.bits() >> 20) as u8).collect();
            let (one, many) = (full(&mut simulator, &picture, 1), full(&mut simulator, &picture, 32));
            let propagator = Propagator::new(&simulator);
            let golden = propagator.golden(&picture).expect("a golden picture");
            let mut batch = TrialBatch::new(lanes);
            let strikes: Vec<Vec<(StepId, Strike)>> = (0..count).map(|_| vec![draw(&program, &mut numbers)]).collect();
            let mut changed = 0;
            let mut at_once = 0;
            golden.trials(&strikes[..lanes], &mut batch).expect("trials");
            let start = processor_time();
            for outcome in golden.trials(&strikes, &mut batch).expect("trials") {
                changed += usize::from(outcome.is_output_changed);
                at_once += usize::from(matches!(outcome.masked_at, Some((_, Masking::Output | Masking::Word))));
            }
            let trials = count as f64 / ((processor_time() - start) as f64 * 1e-9);
            println!(
                "{name} {}: full {one:.0}/s at batch 1, {many:.0}/s at batch 32; {trials:.0} trials/s = {:.1} x batch 1, {:.1} x batch 32; \
                 masked {:.1}%, of these at the struck output {:.1}%; golden {:.1} MB, scratch {:.1} MB, weights {:.1} MB",
                isa.name(),
                trials / one,
                trials / many,
                100.0 * (count - changed) as f64 / count as f64,
                100.0 * at_once as f64 / (count - changed).max(1) as f64,
                golden.memory_bytes() as f64 * 1e-6,
                batch.memory_bytes() as f64 * 1e-6,
                propagator.memory_bytes() as f64 * 1e-6,
            );
        }
    }
}
