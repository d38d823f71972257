//! Size and speed of weight increments on synthetic changes, as in docs/wire.md.
//!
//! `cargo run --release -p chipfit-wire --example increment_speed [-- WEIGHTS [LAW [DENSITY]]]`, by default 4,000,000
//! weights and geometric magnitudes; LAW is `geometric`, `heavy` or `clustered`. With a DENSITY the differences
//! themselves go to standard output, for other compressors to try. Speeds are megabytes of raw weights per second of one
//! core's processor time, the best of eight batches. Peers that need no coder are counted, not run: COO spends five bytes
//! a change, gap16 three, a bitmap an eighth of a byte a weight and one a change.

use std::hint::black_box;
use std::io::Write;
use std::time::Instant;

use chipfit_wire::entropy::measure::Bound;
use chipfit_wire::increment::{decode, encode};

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

fn versions(n: usize, density: f64, law: &str) -> (Vec<i8>, Vec<i8>) {
    let mut random = Random(1);
    let old: Vec<i8> = (0..n).map(|_| random.next() as i8).collect();
    let new = old.iter().enumerate().map(|(at, &weight)| {
        // Layers that learn at different rates: four densities, 1000 weights at a time.
        let local = if law == "clustered" { density * [0.1, 0.3, 0.9, 2.7][at / 1000 % 4] } else { density };
        if random.unit() >= local {
            return weight;
        }
        let magnitude = match law {
            "heavy" => loop {
                let magnitude = 1.0 / (1.0 - random.unit()).powi(2);
                if magnitude < 128.0 {
                    break magnitude as i8;
                }
            },
            _ => (random.next() | 1 << 60).trailing_zeros() as i8 + 1,
        };
        weight.wrapping_add(if random.next() & 1 == 0 { magnitude } else { -magnitude })
    });
    let new = new.collect();
    (old, new)
}

/// Seconds that this thread has run, where the system tells; else those since `start`.
fn processor_seconds(start: Instant) -> f64 {
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanoseconds = told.and_then(|told| told.split_whitespace().next()?.parse::<f64>().ok());
    nanoseconds.map_or_else(|| start.elapsed().as_secs_f64(), |nanoseconds| nanoseconds / 1e9)
}

/// Processor seconds of one `work`: the best of eight batches of at least 60 ms.
fn seconds(mut work: impl FnMut()) -> f64 {
    let start = Instant::now();
    let mut best = f64::INFINITY;
    for _ in 0..8 {
        let before = processor_seconds(start);
        let mut n = 0;
        let mut spent = 0.0;
        while spent < 0.06 {
            for _ in 0..4 {
                work();
            }
            n += 4;
            spent = processor_seconds(start) - before;
        }
        best = best.min(spent / f64::from(n));
    }
    best
}

fn main() {
    let mut args = std::env::args().skip(1);
    let n: usize = args.next().and_then(|n| n.parse().ok()).unwrap_or(4_000_000);
    let law = args.next().unwrap_or_else(|| "geometric".to_owned());
    if let Some(density) = args.next().and_then(|density| density.parse().ok()) {
        let (old, new) = versions(n, density, &law);
        let differences: Vec<u8> = old.iter().zip(&new).map(|(o, n)| n.wrapping_sub(*o).cast_unsigned()).collect();
        if let Err(error) = std::io::stdout().lock().write_all(&differences) {
            eprintln!("differences: {error}");
        }
        return;
    }
    println!("{n} weights, {law} changes");
    println!("density  bytes     of bound  raw/bytes  encode MB/s  decode MB/s  COO bytes  gap16 bytes  bitmap bytes");
    for density in [0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4] {
        let (old, new) = versions(n, density, &law);
        let bound = Bound::of(&old, &new);
        let Ok(bytes) = encode(&old, &new, &[], &[]) else { return eprintln!("density {density}: does not encode") };
        let mut weights = old.clone();
        if decode(&bytes, &mut weights, &mut []).is_err() || weights != new {
            return eprintln!("density {density}: does not decode");
        }
        let encode_s = seconds(|| _ = black_box(encode(black_box(&old), &new, &[], &[])));
        // Adds the differences again and again: the work is the same whatever the weights are.
        let decode_s = seconds(|| _ = black_box(decode(black_box(&bytes), &mut weights, &mut [])));
        let mb = n as f64 / 1e6;
        println!(
            "{:6.2}%  {:8}  {:8.4}  {:9.1}  {:11.0}  {:11.0}  {:9}  {:11}  {:12}",
            bound.density() * 100.0,
            bytes.len(),
            bound.bits / 8.0 / bytes.len() as f64,
            n as f64 / bytes.len() as f64,
            mb / encode_s,
            mb / decode_s,
            bound.changed * 5,
            bound.changed * 3,
            n as u64 / 8 + bound.changed
        );
    }
}
