//! Training passes as a worker of `benches/training.py`: prints `ready`, then for every line on standard input the
//! pictures per second of one round of about two seconds. A pass is forward, loss and backward, without an optimizer.
//!
//! `train_worker scratch MODEL.onnx BATCH THREADS`: fp32 with batch normalisation, `chipfit_train::scratch`.
//! `train_worker retrain MODEL.int8.onnx BATCH THREADS`: forward on the simulated processor without faults, backward
//! through its trace.
//!
//! One thread is timed in processor time of the whole process, more threads by the clock.

use std::io::{BufRead, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use chipfit_model::{Limits, Model};
use chipfit_npu::lower::LowerOptions;
use chipfit_npu::{Batch, Processor as _, Program, Request, Simulator, SimulatorOptions};
use chipfit_train::Backward;
use chipfit_train::loss::Loss;
use chipfit_train::scratch::Passes;

const ROUND: Duration = Duration::from_secs(2);

type Failure = Box<dyn std::error::Error>;

/// Time that all threads of this process have had a processor; `None` where the system does not say.
fn processor_time() -> Option<Duration> {
    let mut all = 0u64;
    for task in std::fs::read_dir("/proc/self/task").ok()? {
        let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        all += text.split_whitespace().next()?.parse::<u64>().ok()?;
    }
    Some(Duration::from_nanos(all))
}

/// Numbers that look drawn.
fn noise(at: usize) -> u8 {
    (at as u32).wrapping_mul(2_654_435_761).to_le_bytes()[3]
}

fn scratch(model: &Model, batch: usize) -> Result<Box<dyn FnMut() -> Result<(), Failure>>, Failure> {
    let mut passes = Passes::new(model)?;
    let each: usize = passes.network().picture().iter().product();
    let classes = u32::try_from(passes.network().classes())?;
    let x: Vec<f32> = (0..batch * each).map(|at| f32::from(noise(at)) / 64.0 - 2.0).collect();
    let labels: Vec<u32> = (0..batch).map(|at| u32::from(noise(at)) % classes).collect();
    Ok(Box::new(move || {
        passes.pass(&x, &labels, Loss::default())?;
        Ok(())
    }))
}

fn retrain(model: &Model, batch: usize, threads: usize) -> Result<Box<dyn FnMut() -> Result<(), Failure>>, Failure> {
    let program = Program::lower(model, &LowerOptions::default())?;
    let backward = Backward::new(&program, threads)?;
    let mut simulator = Simulator::new(program.clone(), SimulatorOptions { threads, ..SimulatorOptions::default() })?;
    let pictures: Vec<u64> = (0..batch as u64).collect();
    let input: Vec<u8> = (0..batch * program.tensor(program.input()).elements()).map(noise).collect();
    let output = program.tensor(program.output()).clone();
    let mut gradients = backward.zeros();
    let loss = Loss::default();
    let mut output_gradient = vec![0.0; batch * output.elements()];
    Ok(Box::new(move || {
        let request = Request {
            batch: Batch { pictures: &pictures, input: &input },
            trial: 0,
            views: &[],
            wanted: backward.wanted(),
        };
        let trace = simulator.forward(&request)?;
        let rows =
            trace.output.chunks_exact(output.elements()).zip(output_gradient.chunks_exact_mut(output.elements()));
        for (picture, (bytes, gradient)) in rows.enumerate() {
            let logits: Vec<f32> = bytes.iter().map(|&byte| output.real(byte)).collect();
            loss.picture(&logits, usize::from(noise(picture)) % logits.len(), None, 1.0 / batch as f32, gradient);
        }
        gradients.iter_mut().for_each(|part| part.fill(0.0));
        backward.run(&input, &trace, &output_gradient, &mut gradients)?;
        Ok(())
    }))
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kind, model, batch, threads] = arguments.as_slice() else {
        return Err("usage: train_worker scratch|retrain MODEL.onnx BATCH THREADS".into());
    };
    let (batch, threads): (usize, usize) = (batch.parse()?, threads.parse()?);
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    let model = Model::open(Path::new(model), &Limits::default())?;
    let mut pass = match kind.as_str() {
        "scratch" => scratch(&model, batch)?,
        "retrain" => retrain(&model, batch, threads)?,
        other => return Err(format!("'{other}' is neither scratch nor retrain").into()),
    };
    pass()?;
    pass()?;
    let mut out = std::io::stdout();
    writeln!(
        out,
        "ready Chipfit {}, {kind}, {} kernels",
        env!("CARGO_PKG_VERSION"),
        chipfit_kernels::Isa::best().name()
    )?;
    out.flush()?;
    for line in std::io::stdin().lock().lines() {
        line?;
        let clock = Instant::now();
        let before = processor_time().filter(|_| threads == 1);
        let mut count = 0;
        let spent = loop {
            pass()?;
            count += 1;
            let spent = match before {
                Some(before) => processor_time().map_or_else(|| clock.elapsed(), |now| now - before),
                None => clock.elapsed(),
            };
            if spent >= ROUND {
                break spent;
            }
        };
        writeln!(out, "{}", (count * batch) as f64 / spent.as_secs_f64())?;
        out.flush()?;
    }
    Ok(())
}
