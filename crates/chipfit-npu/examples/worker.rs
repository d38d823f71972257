//! The simulator as a worker of `benches/processor.py`: prints `ready`, then for every line on standard input the
//! inferences per second of one round of about a second.
//!
//! `worker MODEL.onnx BATCH THREADS best|ISA FLIPS`: FLIPS `mul` and `acc` flips per inference, drawn as `chipfit
//! evaluate` draws them (`count`), fresh in every forward pass. One thread is timed by the scheduler's count of its own
//! processor time, where the system tells it; more threads by the clock. A round ends with a whole batch.

use std::io::{BufRead, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chipfit_kernels::Isa;
use chipfit_model::{Limits, Model};
use chipfit_npu::lower::LowerOptions;
use chipfit_npu::{Batch, Faults, FaultsFile, Processor, Program, Protection, Request, Simulator, SimulatorOptions};

const ROUND: Duration = Duration::from_secs(1);

type Failure = Box<dyn std::error::Error>;

/// Nanoseconds that this thread has had a processor; `None` where the system does not say.
fn processor_time() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, batch, threads, isa, flips] = arguments.as_slice() else {
        return Err("worker MODEL BATCH THREADS best|ISA FLIPS".into());
    };
    let (batch, threads, flips): (usize, usize, u64) = (batch.parse()?, threads.parse()?, flips.parse()?);
    let isa = match isa.as_str() {
        "best" => None,
        name => Some(Isa::parse(name).ok_or("no such instruction set")?),
    };
    let program = Program::lower(&Model::open(Path::new(model), &Limits::default())?, &LowerOptions::default())?;
    let faults = match flips {
        0 => None,
        _ => {
            let text =
                format!("[[fault]]\nsites = [\"mul\", \"acc\"]\nkind = \"flip\"\ncount = {flips}\nlayers = \"*\"\n");
            let faults = Faults::resolve(&FaultsFile::parse(&text)?, &program, 1)?;
            let expected = faults.expected(&program, &Protection::none()).total();
            if (expected - flips as f64).abs() > 1e-6 * flips as f64 {
                return Err(format!("{expected} flips expected").into());
            }
            Some(faults)
        }
    };
    let elements = program.tensor(program.input()).elements();
    let input: Vec<u8> =
        (0..batch * elements).map(|at| (at as u32).wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
    let pictures: Vec<u64> = (0..batch as u64).collect();
    let mut simulator = Simulator::new(program, SimulatorOptions { isa, threads, ..SimulatorOptions::default() })?;
    if let Some(faults) = faults {
        simulator = simulator.with_faults(Arc::new(faults), 1);
    }
    let mut trial = 0;
    let mut forward = |simulator: &mut Simulator| {
        let batch = Batch { pictures: &pictures, input: &input };
        trial += 1;
        simulator.forward(&Request { batch, trial, views: &[], wanted: &[] })
    };
    forward(&mut simulator)?;
    forward(&mut simulator)?;
    let mut out = std::io::stdout();
    writeln!(out, "ready {}, {:.0} MB", simulator.describe(), simulator.memory_bytes() as f64 / 1e6)?;
    out.flush()?;
    for line in std::io::stdin().lock().lines() {
        line?;
        let clock = Instant::now();
        let before = processor_time().filter(|_| threads == 1);
        let mut count = 0;
        let spent = loop {
            forward(&mut simulator)?;
            count += 1;
            let spent = match before {
                // The scheduler's file is read rarely: it costs microseconds.
                Some(_) if count % 8 != 0 && batch == 1 => continue,
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
