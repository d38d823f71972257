//! Time of a training step: forward on the simulator, all tensors returned, and backward.
//!
//! `speed MODEL.onnx|resnet18 [batch=64] [threads=1] [repeats=5]` prints one JSON line: the best wall-clock milliseconds
//! of forward, of backward, and of the two together, and the processor time of the whole process per step.

use std::time::Instant;

use chipfit_model::{Limits, Model};
use chipfit_npu::lower::LowerOptions;
use chipfit_npu::testing::networks::{ResNet18, resnet18};
use chipfit_npu::testing::picture;
use chipfit_npu::{Batch, Processor as _, Program, Request, Simulator, SimulatorOptions};
use chipfit_train::Backward;

type Failure = Box<dyn std::error::Error>;

/// Seconds that this process's threads have run so far, where the system tells.
fn processor_seconds() -> Option<f64> {
    let mut nanoseconds = 0.0;
    for task in std::fs::read_dir("/proc/self/task").ok()? {
        let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        nanoseconds += text.split_whitespace().next()?.parse::<f64>().ok()?;
    }
    Some(1e-9 * nanoseconds)
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (model, settings) = arguments.split_first().ok_or("usage: speed MODEL.onnx|resnet18 [KEY=VALUE...]")?;
    let (mut batch, mut threads, mut repeats) = (64usize, 1usize, 5usize);
    for setting in settings {
        let (key, value) = setting.split_once('=').ok_or("KEY=VALUE expected")?;
        match key {
            "batch" => batch = value.parse()?,
            "threads" => threads = value.parse()?,
            "repeats" => repeats = value.parse()?,
            _ => return Err(format!("unknown key '{key}'").into()),
        }
    }
    let program = match model.as_str() {
        "resnet18" => resnet18(ResNet18::Cifar, 1),
        path => {
            Program::lower(&Model::open(std::path::Path::new(path), &Limits::default())?, &LowerOptions::default())?
        }
    };
    let ids: Vec<u64> = (0..).take(batch).collect();
    let input: Vec<u8> = ids.iter().flat_map(|&id| picture(&program, id)).collect();
    let options = SimulatorOptions { threads, ..SimulatorOptions::default() };
    let mut simulator = Simulator::new(program.clone(), options)?;
    let backward = Backward::new(&program, threads)?;
    let mut gradients = backward.zeros();
    let wanted = backward.wanted().to_vec();
    let mut best = [f64::INFINITY; 3];
    let mut spent = f64::INFINITY;
    for _ in 0..repeats {
        let before = processor_seconds();
        let begin = Instant::now();
        let request = Request { batch: Batch { pictures: &ids, input: &input }, trial: 0, views: &[], wanted: &wanted };
        let trace = simulator.forward(&request)?;
        let middle = Instant::now();
        let gradient = vec![1e-3; trace.output.len()];
        backward.run(&input, &trace, &gradient, &mut gradients)?;
        let end = Instant::now();
        let times = [middle - begin, end - middle, end - begin].map(|time| 1e3 * time.as_secs_f64());
        best.iter_mut().zip(times).for_each(|(best, time)| *best = best.min(time));
        if let (Some(before), Some(after)) = (before, processor_seconds()) {
            spent = spent.min(1e3 * (after - before));
        }
    }
    let document = serde_json::json!({
        "model": model, "batch": batch, "threads": threads,
        "forward_ms": best[0], "backward_ms": best[1], "step_ms": best[2], "processor_ms": spent,
    });
    println!("{document}");
    Ok(())
}
