//! Measures activations up: bytes sent against the entropy of the errors, and processor time at both ends.
//!
//! `activation_speed [PAIRS.bin ...]`. Without files: synthetic layers of ResNet-8 for 64 pictures of 32 x 32, errors of
//! several densities. A file of pairs holds layers, each a little-endian u32 length `n`, then `n` predicted and `n`
//! observed bytes; layers of one file are one step.

use std::error::Error;
use std::time::Instant;

use chipfit_wire::activation::{Decoder, Mode, Outcome, Planner, first, more};
use chipfit_wire::entropy::measure::order0_bits;

/// Bytes per picture of ResNet-8's tensors.
const LAYERS: [usize; 14] = [16384, 16384, 16384, 16384, 8192, 8192, 8192, 8192, 4096, 4096, 4096, 4096, 64, 10];
const PICTURES: usize = 64;

fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

struct Layer {
    predicted: Vec<u8>,
    observed: Vec<u8>,
}

fn synthetic(rate: f64, seed: u64) -> Vec<Layer> {
    let threshold = (rate * 2f64.powi(32)) as u64;
    LAYERS
        .iter()
        .enumerate()
        .map(|(number, &each)| {
            let seed = mix(seed ^ mix(number as u64));
            let predicted: Vec<u8> =
                (0..each * PICTURES).map(|i| (mix(seed ^ i as u64) >> 20) as u8 / 3 + 128).collect();
            let observed = predicted
                .iter()
                .enumerate()
                .map(|(i, &x)| {
                    let draw = mix(!seed ^ i as u64);
                    if draw & 0xffff_ffff >= threshold {
                        return x;
                    }
                    // A flipped accumulator bit, requantised: a power of two up or down, clipped at the ends.
                    let bit = (draw >> 32 & 15) as i32 - 4;
                    let change = if bit < 0 { 1 } else { 1 << bit.min(9) };
                    let signed = if draw >> 40 & 1 == 0 { change } else { -change };
                    let y = (i32::from(x) + signed).clamp(128, 255) as u8;
                    if y == x { x ^ 1 } else { y }
                })
                .collect();
            Layer { predicted, observed }
        })
        .collect()
}

fn read_pairs(path: &str) -> Result<Vec<Layer>, Box<dyn Error>> {
    let bytes = std::fs::read(path)?;
    let mut rest = bytes.as_slice();
    let mut layers = Vec::new();
    while let Some((length, body)) = rest.split_first_chunk::<4>() {
        let length = usize::try_from(u32::from_le_bytes(*length))?;
        let (predicted, body) = body.split_at_checked(length).ok_or("a pair ends early")?;
        let (observed, body) = body.split_at_checked(length).ok_or("a pair ends early")?;
        layers.push(Layer { predicted: predicted.to_vec(), observed: observed.to_vec() });
        rest = body;
    }
    Ok(layers)
}

/// `n * H0(y - x)`, bits.
fn bound(layer: &Layer) -> f64 {
    let mut counts = [0u64; 256];
    for (x, y) in layer.predicted.iter().zip(&layer.observed) {
        counts[usize::from(y.wrapping_sub(*x))] += 1;
    }
    order0_bits(&counts)
}

/// Processor time of this process so far, seconds; wall-clock time where the system does not tell.
fn processor_seconds(since: Instant) -> f64 {
    let text = std::fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    let nanoseconds = text.split(' ').next().and_then(|first| first.parse::<f64>().ok());
    nanoseconds.map_or_else(|| since.elapsed().as_secs_f64(), |ns| ns / 1e9)
}

#[derive(Default)]
struct Sum {
    raw: usize,
    errors: usize,
    sent: usize,
    bits: f64,
    layers: usize,
    failed: usize,
    steps_failed: usize,
    steps: usize,
    requests: usize,
    device: f64,
    server: f64,
}

impl Sum {
    fn print(&self, name: &str) {
        println!(
            "{name:>22} | {:>8.1} | {:>9.0} | {:>6.3} | {:>9.0} | {:>8.1} | {:>4}/{:<4} {:>2}/{:<3} {:>3} | {:>6.2} | {:>7.1}",
            self.errors as f64 / self.steps as f64,
            self.bits / 8.0 / self.steps as f64,
            self.sent as f64 * 8.0 / self.bits,
            self.sent as f64 / self.steps as f64,
            self.raw as f64 / self.sent as f64,
            self.failed,
            self.layers,
            self.steps_failed,
            self.steps,
            self.requests,
            self.device * 1e9 / self.raw as f64,
            self.server * 1e3 / self.steps as f64,
        );
    }
}

fn step(layers: &[Layer], planners: &mut [Planner], key: u64, warm: bool, sum: &mut Sum) -> Result<(), Box<dyn Error>> {
    let origin = Instant::now();
    let now = || processor_seconds(origin);
    let mut any = false;
    for (number, (layer, planner)) in layers.iter().zip(planners).enumerate() {
        let parameters = planner.parameters(layer.observed.len(), mix(key ^ number as u64));
        // The system's clock of processor time ticks in milliseconds: repeat until enough of them have passed.
        let (start, mut rounds) = (now(), 0);
        let mut payload = first(&layer.observed, &parameters);
        let mut device = now() - start;
        while warm && device < 0.02 && rounds < 2000 {
            payload = first(&layer.observed, &parameters);
            rounds += 1;
            device = now() - start;
        }
        device /= f64::from(rounds + 1);
        let mut sent = payload.len();
        let mut requests = 0;
        let mut server = 0f64;
        let start = now();
        let prior = planner.prior();
        let mut decoder = Decoder::new(layer.observed.len(), parameters, prior);
        server += now() - start;
        loop {
            let start = now();
            let outcome = decoder.try_decode(&layer.predicted, &payload)?;
            server += now() - start;
            match outcome {
                Outcome::Recovered(found) => {
                    if found != layer.observed {
                        return Err("recovered other bytes than the device's".into());
                    }
                    break;
                }
                Outcome::NeedsMore(request) => {
                    requests += 1;
                    payload = more(&layer.observed, &parameters, &request);
                    sent += payload.len();
                }
            }
        }
        planner.observe(&layer.predicted, &layer.observed);
        if warm {
            sum.raw += layer.observed.len();
            sum.errors += layer.predicted.iter().zip(&layer.observed).filter(|(x, y)| x != y).count();
            sum.sent += sent;
            sum.bits += bound(layer);
            sum.layers += 1;
            sum.failed += usize::from(requests > 0);
            sum.requests += requests;
            sum.device += device;
            sum.server += server;
            any |= requests > 0;
            if std::env::args().any(|argument| argument == "--layers") {
                let cells = if let Mode::Cells { cells, .. } = parameters.mode { cells } else { 0 };
                println!(
                    "  layer {number}: {} bytes, {cells} cells, {sent} sent, bound {:.0}, requests {requests}, device {:.2} ns/B, server {:.1} ms",
                    layer.observed.len(),
                    bound(layer) / 8.0,
                    device * 1e9 / layer.observed.len() as f64,
                    server * 1e3
                );
            }
        }
    }
    sum.steps += usize::from(warm);
    sum.steps_failed += usize::from(any);
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    println!(
        "errors per step | entropy, bytes | sent / entropy | sent, bytes | raw / sent | layers asked again / all, steps, requests | device ns/byte | server ms/step"
    );
    let files: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    if files.is_empty() {
        for rate in [1e-6, 1e-5, 1e-4, 3e-4, 6e-4, 1e-3, 3e-3, 1e-2, 2e-2, 5e-2, 1e-1] {
            let mut sum = Sum::default();
            let mut planners = vec![Planner::new(); LAYERS.len()];
            for number in 0..6 {
                step(&synthetic(rate, number), &mut planners, number, number >= 3, &mut sum)?;
            }
            sum.print(&format!("synthetic {rate:e}"));
        }
    } else {
        let mut sum = Sum::default();
        let mut planners: Vec<Planner> = Vec::new();
        for (number, file) in files.iter().enumerate() {
            let layers = read_pairs(file)?;
            planners.resize_with(layers.len(), Planner::new);
            step(&layers, &mut planners, number as u64, number >= 2, &mut sum)?;
        }
        sum.print("files");
    }
    Ok(())
}
