//! How fast the simulator is: inferences per second of both ResNet-18s, by batch, threads, instruction set and faults.
//!
//! `cargo run --release -p chipfit-npu --example speed [cifar|imagenet] [seconds per line] [instruction set] \
//! [threads] [batch] [flips]`, every argument a filter; `-` takes all.
//!
//! A line gives inferences per second of processor time (user and system, all threads, times the number of threads, so
//! that idle waiting does not count) and of elapsed time, best of several rounds, and the ratio to the fault-free run.
//! Flips are uniform over `mul` and `acc` bits, as many per inference as the line says.

use std::sync::Arc;
use std::time::Instant;

use chipfit_kernels::Isa;
use chipfit_npu::testing::{
    Numbers,
    networks::{ResNet18, resnet18},
};
use chipfit_npu::{
    Batch, Change, DrawKey, Processor, Program, Request, Simulator, SimulatorOptions, Site, StepId, Strike,
    StrikeSource,
};

/// `flips` uniform flips per inference: a third of them in products, two thirds in accumulator updates.
struct Flips {
    flips: usize,
    /// Steps with products: MACs before them and their own.
    steps: Vec<(u64, u64)>,
    macs: u64,
}

impl Flips {
    fn new(program: &Program, flips: usize) -> Self {
        let mut macs = 0;
        let steps = program
            .steps()
            .iter()
            .map(|step| {
                let own = program.step_macs(step);
                macs += own;
                (macs - own, own)
            })
            .collect();
        Self { flips, steps, macs }
    }
}

impl StrikeSource for Flips {
    fn strikes(&self, key: &DrawKey, step: StepId, _replica: u8, out: &mut Vec<Strike>) {
        let (before, own) = self.steps[step.0];
        if own == 0 {
            return;
        }
        let share = |macs: u64| (self.flips as u128 * u128::from(macs) / u128::from(self.macs)) as usize;
        let count = share(before + own) - share(before);
        let mut numbers = Numbers::new(key.seed ^ key.trial << 40 ^ key.picture << 16 ^ step.0 as u64);
        for at in 0..count {
            let bits = numbers.bits();
            let word = ((u128::from(bits) * u128::from(own)) >> 64) as u64;
            let bit = numbers.bits() as u32;
            out.push(match at % 3 {
                0 => Strike::new(Site::Mul, word, Change::Xor(1 << (bit % 16))),
                _ => Strike::new(Site::Acc, word, Change::Xor(1 << (bit % 32))),
            });
        }
        out.sort_unstable();
    }
}

/// Nanoseconds on a processor, all threads of this process that are alive.
fn processor_time() -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    tasks
        .filter_map(|task| std::fs::read_to_string(task.path().join("schedstat")).ok())
        .filter_map(|line| line.split_whitespace().next().and_then(|field| field.parse::<u64>().ok()))
        .sum()
}

/// Inferences per second: of processor time times threads, and of elapsed time.
fn measure(simulator: &mut Simulator, threads: usize, batch: usize, seconds: f64) -> (f64, f64) {
    let program = simulator.program();
    let each = program.tensor(program.input()).elements();
    let mut numbers = Numbers::new(7);
    let input: Vec<u8> = (0..batch * each).map(|_| (numbers.bits() >> 20) as u8).collect();
    let pictures: Vec<u64> = (0..batch as u64).collect();
    let mut trial = 0;
    let mut round = |passes: usize| {
        let (start, used) = (Instant::now(), processor_time());
        for _ in 0..passes {
            trial += 1;
            let request =
                Request { batch: Batch { pictures: &pictures, input: &input }, trial, views: &[], wanted: &[] };
            simulator.forward(&request).expect("a forward pass");
        }
        ((processor_time() - used) as f64 * 1e-9, start.elapsed().as_secs_f64())
    };
    round(1);
    let (_, once) = round(1);
    let rounds = 8.0;
    let passes = (seconds / rounds / once).ceil() as usize;
    let images = (passes * batch) as f64;
    let mut best = (0.0_f64, 0.0_f64);
    for _ in 0..rounds as usize {
        let (used, elapsed) = round(passes);
        best = (best.0.max(images * threads as f64 / used), best.1.max(images / elapsed));
    }
    best
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let chosen = arguments.first().map_or("", String::as_str);
    let seconds = arguments.get(1).and_then(|text| text.parse().ok()).unwrap_or(2.0);
    let only = arguments.get(2).and_then(|name| Isa::parse(name));
    let filter = |at: usize| arguments.get(at).and_then(|text| text.parse::<usize>().ok());
    let is_taken = |at: usize, value: usize| filter(at).is_none_or(|only| only == value);
    let chunk = std::env::var("CHUNK").ok().and_then(|text| text.parse().ok());
    for (name, which) in [("cifar", ResNet18::Cifar), ("imagenet", ResNet18::ImageNet)] {
        if chosen != "-" && !name.starts_with(chosen) {
            continue;
        }
        let program = resnet18(which, 1);
        println!("ResNet-18 {name}: {} MMAC", program.macs() / 1_000_000);
        for isa in Isa::available().into_iter().rev().filter(|isa| only.is_none_or(|only| only == *isa)) {
            if isa == Isa::Scalar && only.is_none() {
                continue;
            }
            for (threads, batch) in [(1, 1), (1, 32), (2, 1), (2, 32)] {
                if !is_taken(3, threads) || !is_taken(4, batch) {
                    continue;
                }
                let mut clean = 0.0;
                for flips in [0, 10, 100, 1000] {
                    if !is_taken(5, flips) {
                        continue;
                    }
                    let options = SimulatorOptions { isa: Some(isa), threads, chunk, ..Default::default() };
                    let mut simulator = Simulator::new(program.clone(), options).expect("a simulator");
                    if flips > 0 {
                        simulator = simulator.with_faults(Arc::new(Flips::new(&program, flips)), 1);
                    }
                    let (used, elapsed) = measure(&mut simulator, threads, batch, seconds);
                    if flips == 0 {
                        clean = used;
                    }
                    println!(
                        "{:11} threads {threads} batch {batch:2} flips {flips:4}: {used:8.1}/s processor, {elapsed:8.1}/s elapsed, ratio {:.3}, {:.1} MB",
                        isa.name(),
                        used / clean,
                        simulator.memory_bytes() as f64 * 1e-6
                    );
                }
            }
        }
    }
}
