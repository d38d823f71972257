//! A device that knows nothing but the bytes of a trace file: what it sends is enough, whatever the errors are.

use std::path::Path;

use chipfit_wire::activation::{Decoder, Outcome, Planner, first, more};

/// Numbers from a counter, for files that are the same every time.
fn noise(count: u64) -> u64 {
    let word = (count.wrapping_add(1)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word ^ (word >> 29)
}

/// Writes layers of a trace with errors of one kind, and gives what a processor without errors would have written.
fn write_trace(path: &Path, kind: usize, step: u64) -> Vec<Vec<u8>> {
    let lengths = [40_000usize, 9_000, 640, 17, 1, 0];
    let mut file = Vec::new();
    let mut clean = Vec::new();
    for (layer, length) in lengths.into_iter().enumerate() {
        let seed = step * 1000 + layer as u64;
        let x: Vec<u8> = (0..length as u64).map(|i| 128 | (noise(seed << 32 | i) >> 40) as u8 & 63).collect();
        let mut y = x.clone();
        match kind {
            // No error; scattered ones; a dead channel; a burst; everything wrong; everything off by one.
            0 => (),
            1 => (0..length / 200).for_each(|i| y[noise(seed ^ i as u64) as usize % length] ^= 1 << (i % 8)),
            2 => y.iter_mut().skip(3).step_by(16).for_each(|byte| *byte = 255),
            3 => y.iter_mut().skip(length / 3).take(length / 50).for_each(|byte| *byte = byte.wrapping_mul(7)),
            4 => y.iter_mut().enumerate().for_each(|(i, byte)| *byte = noise(seed ^ !(i as u64)) as u8),
            _ => y.iter_mut().enumerate().for_each(|(i, byte)| *byte = byte.saturating_add((i % 3 == 0) as u8)),
        }
        file.extend_from_slice(&(length as u32).to_le_bytes());
        file.extend_from_slice(&y);
        clean.push(x);
    }
    std::fs::write(path, file).unwrap();
    clean
}

fn read_trace(path: &Path) -> Vec<Vec<u8>> {
    let bytes = std::fs::read(path).unwrap();
    let mut rest = bytes.as_slice();
    let mut layers = Vec::new();
    while let Some((length, body)) = rest.split_first_chunk::<4>() {
        let (layer, body) = body.split_at(u32::from_le_bytes(*length) as usize);
        layers.push(layer.to_vec());
        rest = body;
    }
    layers
}

#[test]
fn a_replayed_trace_is_recovered_whatever_its_errors() {
    for kind in 0..6 {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("trace-{kind}.bin"));
        let mut planners = vec![Planner::new(); 6];
        for step in 0..4 {
            let predicted = write_trace(&path, kind, step);
            let device = read_trace(&path);
            let (mut sent, mut raw) = (0, 0);
            for (layer, (y, x)) in device.iter().zip(&predicted).enumerate() {
                let parameters = planners[layer].parameters(y.len(), noise(step << 8 | layer as u64));
                let mut decoder = Decoder::new(y.len(), parameters, planners[layer].prior());
                let mut payload = first(y, &parameters);
                assert!(payload.len() <= y.len() + 1, "never larger than raw and a byte");
                let mut requests = 0;
                let recovered = loop {
                    sent += payload.len();
                    match decoder.try_decode(x, &payload).unwrap() {
                        Outcome::Recovered(layer) => break layer,
                        Outcome::NeedsMore(request) => payload = more(y, &parameters, &request),
                    }
                    requests += 1;
                    assert!(requests < 6, "kind {kind}, layer {layer}");
                };
                assert!(recovered == *y, "kind {kind}, step {step}, layer {layer}");
                planners[layer].observe(x, y);
                raw += y.len();
            }
            // After the first step, errors that repeat in number cost less than the bytes.
            let most = [0.02, 0.06, 0.6, 0.5, 1.001, 0.5][kind];
            assert!(step < 2 || (sent as f64) < raw as f64 * most, "kind {kind}, step {step}: {sent} of {raw}");
        }
    }
}
