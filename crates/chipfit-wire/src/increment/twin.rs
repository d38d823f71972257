//! A second decoder, written from docs/wire.md alone: bits as booleans, wide integers, linear searches, no shared code.
//!
//! It reads well-formed increments only and panics on others; tests compare it with the fast decoder.

use std::collections::VecDeque;

/// The new weights and biases.
pub(super) fn decode(bytes: &[u8], weights: &[i8], biases: &[i32]) -> (Vec<i8>, Vec<i32>) {
    let (head, mut rest) = (bytes[0], &bytes[1..]);
    assert_eq!(head >> 4, 1);
    let biases = match head >> 2 & 3 {
        0 => biases.to_vec(),
        1 => {
            let (length, after) = varint(rest);
            let numbers = numbers(&after[..length as usize], biases.len());
            rest = &after[length as usize..];
            let signed = |z: u128| if z.is_multiple_of(2) { (z / 2) as i64 } else { -(z as i64 / 2) - 1 };
            biases.iter().zip(numbers).map(|(old, z)| (i64::from(*old) + signed(z)) as i32).collect()
        }
        3 => {
            let (raw, after) = rest.split_at(4 * biases.len());
            rest = after;
            raw.chunks(4).map(|four| i32::from_le_bytes(four.try_into().unwrap())).collect()
        }
        _ => panic!("mode"),
    };
    let weights = match head & 3 {
        0 => weights.to_vec(),
        1 => sparse(rest, weights),
        2 => weights.iter().zip(byte_section(rest, weights.len())).map(|(w, d)| w.wrapping_add(d as i8)).collect(),
        _ => rest.iter().map(|byte| *byte as i8).collect(),
    };
    (weights, biases)
}

fn varint(bytes: &[u8]) -> (u128, &[u8]) {
    let end = bytes.iter().position(|byte| byte & 0x80 == 0).unwrap();
    let value = bytes[..=end].iter().rev().fold(0, |value, byte| value << 7 | u128::from(byte & 0x7f));
    (value, &bytes[end + 1..])
}

fn bits_of(bytes: &[u8]) -> VecDeque<bool> {
    bytes.iter().flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1 == 1)).collect()
}

fn field(bits: &mut VecDeque<bool>, n: u32) -> u128 {
    (0..n).map(|at| u128::from(bits.pop_front().unwrap()) << at).sum()
}

fn zeros(bits: &mut VecDeque<bool>) -> u32 {
    let mut zeros = 0;
    while !bits.pop_front().unwrap() {
        zeros += 1;
    }
    zeros
}

const CLASSES: [(u32, u32, u32); 8] =
    [(8, 0, 0), (7, 0, 1), (5, 3, 0), (4, 2, 0), (2, 1, 0), (4, 2, 1), (2, 1, 1), (3, 1, 1)];

/// For each token the numbers `first ..< end`, and its frequency.
struct Model {
    tokens: Vec<(u128, u128)>,
    frequencies: Vec<u128>,
}

/// `round(2^(i/16) 2^30)`: the library's powers are off by far less than a half here.
fn power_of_two(sixteenths: u32) -> u128 {
    (2f64.powf(f64::from(sixteenths) / 16.0) * f64::from(1 << 30)).round() as u128
}

fn model(bits: &mut VecDeque<bool>, max: u128, known: Option<u128>) -> Model {
    let (split, mantissa, low) = CLASSES[field(bits, 3) as usize];
    let mut tokens: Vec<(u128, u128)> = (0..1u128 << split).map(|h| (h << low, (h + 1) << low)).collect();
    for octave in split.. {
        if tokens.last().unwrap().1 > max {
            break;
        }
        for part in 0..1u128 << mantissa {
            let width = 1u128 << (octave - mantissa + low);
            let first = ((1 << mantissa) + part) * width;
            tokens.push((first, first + width));
        }
    }
    tokens.retain(|(first, _)| *first <= max);
    let weights: Vec<u128> = match field(bits, 2) {
        0 => {
            let p = known.unwrap_or_else(|| {
                let e = field(bits, 8) as u32;
                let p = if e.is_multiple_of(16) {
                    1 << (32 - e / 16)
                } else {
                    (4 * power_of_two(16 - e % 16)) >> (1 + e / 16)
                };
                p.max(1)
            });
            let power = |mut m: u128| {
                let (mut result, mut square) = (1u128 << 32, (1u128 << 32) - p);
                while m > 0 {
                    if m % 2 == 1 {
                        result = result * square / (1 << 32);
                    }
                    square = square * square / (1 << 32);
                    m /= 2;
                }
                result
            };
            // Each token's first mass is what the one before left, and that never grows.
            let ends: Vec<u128> = tokens.iter().map(|(_, end)| power(end >> low)).collect();
            let mut before = 1u128 << 32;
            let masses = ends.iter().map(|&after| {
                let mass = before.saturating_sub(after).max(1);
                before = before.min(after);
                mass
            });
            masses.collect()
        }
        1 => {
            let q = field(bits, 2) as u32;
            let r = field(bits, 2) as u32;
            let mut weights = vec![0; tokens.len()];
            let (mut at, mut level) = (0, None);
            for _ in 0..=field(bits, 8) {
                let b = zeros(bits);
                at += (1 << b) + field(bits, b) as usize;
                let now = match level {
                    None => field(bits, 7) as i64,
                    Some(before) => {
                        let z = (i64::from(zeros(bits)) << r) + field(bits, r) as i64;
                        if z % 2 == 0 { before - z / 2 } else { before + (z + 1) / 2 }
                    }
                };
                level = Some(now);
                let (whole, part) = (now >> q, (now & ((1 << q) - 1)) << 4 >> q);
                weights[at - 1] = (power_of_two(part as u32) >> 14) << whole;
            }
            weights
        }
        2 => vec![1; tokens.len()],
        _ => panic!("kind"),
    };
    let sum: u128 = weights.iter().sum();
    let share = |w: &u128| if *w == 0 { 0 } else { ((w * (1 << 14) + sum / 2) / sum).max(1) };
    let mut frequencies: Vec<u128> = weights.iter().map(share).collect();
    loop {
        let assigned: u128 = frequencies.iter().sum();
        let most = *frequencies.iter().max().unwrap();
        let largest = frequencies.iter_mut().find(|f| **f == most).unwrap();
        match assigned.cmp(&(1 << 14)) {
            std::cmp::Ordering::Equal => break,
            std::cmp::Ordering::Less => *largest += (1 << 14) - assigned,
            std::cmp::Ordering::Greater => *largest -= (assigned - (1 << 14)).min(most.div_ceil(4)),
        }
    }
    Model { tokens, frequencies }
}

struct Lanes<'a> {
    states: Vec<u128>,
    words: &'a [u8],
}

impl<'a> Lanes<'a> {
    fn new(bytes: &'a [u8], lanes: usize) -> Self {
        let (states, words) = bytes.split_at(4 * lanes);
        let states = states.chunks(4).map(|four| u128::from(u32::from_le_bytes(four.try_into().unwrap()))).collect();
        Self { states, words }
    }

    fn token(&mut self, lane: usize, model: &Model) -> usize {
        let state = &mut self.states[lane];
        let slot = *state % (1 << 14);
        let (mut token, mut start) = (0, 0);
        while slot >= start + model.frequencies[token] {
            start += model.frequencies[token];
            token += 1;
        }
        *state = model.frequencies[token] * (*state / (1 << 14)) + slot - start;
        if *state < 1 << 16 {
            *state = (*state << 16) + u128::from(self.words[0]) + (u128::from(self.words[1]) << 8);
            self.words = &self.words[2..];
        }
        token
    }

    fn end(self, seal: usize) {
        assert_eq!(self.states[0], (1 << 16) + (seal as u128 & 0xffff));
        assert!(self.states[1..].iter().all(|state| *state == 1 << 16));
    }
}

/// The number of a token with its raw bits from the end.
fn number(model: &Model, token: usize, raw: &mut VecDeque<bool>) -> u128 {
    let (first, end) = model.tokens[token];
    first + field(raw, (end - first).ilog2())
}

fn models(bytes: &[u8], read: impl FnOnce(&mut VecDeque<bool>) -> Vec<Model>) -> (Vec<Model>, &[u8]) {
    let mut bits = bits_of(bytes);
    let models = read(&mut bits);
    (models, &bytes[bytes.len() - bits.len() / 8..])
}

fn sparse(section: &[u8], weights: &[i8]) -> Vec<i8> {
    let n = weights.len() as u128;
    let (k, rest) = varint(section);
    let known = ((k << 32) / n).min((1 << 32) - 1);
    let (models, rest) = models(rest, |bits| vec![model(bits, n - k, Some(known)), model(bits, 255, None)]);
    let mut raw = bits_of(&rest.iter().rev().copied().collect::<Vec<u8>>());
    let mut lanes = Lanes::new(rest, 2);
    let mut new = weights.to_vec();
    let mut at = 0;
    for _ in 0..k {
        let (gap, value) = (lanes.token(0, &models[0]), lanes.token(1, &models[1]));
        at += number(&models[0], gap, &mut raw) as usize;
        let value = number(&models[1], value, &mut raw) as i32;
        let difference = if value % 2 == 0 { value / 2 + 1 } else { -(value / 2) - 1 };
        new[at] = (i32::from(new[at]) + difference) as i8;
        at += 1;
    }
    assert_eq!(lanes.words.len(), (8 * rest.len() - raw.len()).div_ceil(8));
    lanes.end((n ^ n >> 16) as usize);
    new
}

fn byte_section(section: &[u8], n: usize) -> Vec<u8> {
    let (models, rest) = models(section, |bits| vec![model(bits, 255, None)]);
    let mut lanes = Lanes::new(rest, 4);
    let bytes = (0..n).map(|i| lanes.token(i % 4, &models[0]) as u8).collect();
    assert!(lanes.words.is_empty());
    lanes.end(n);
    bytes
}

fn numbers(section: &[u8], n: usize) -> Vec<u128> {
    let (models, rest) = models(section, |bits| vec![model(bits, u32::MAX.into(), None)]);
    let mut raw = bits_of(&rest.iter().rev().copied().collect::<Vec<u8>>());
    let mut lanes = Lanes::new(rest, 2);
    let numbers = (0..n)
        .map(|i| {
            let token = lanes.token(i % 2, &models[0]);
            number(&models[0], token, &mut raw)
        })
        .collect();
    assert_eq!(lanes.words.len(), (8 * rest.len() - raw.len()).div_ceil(8));
    lanes.end(n);
    numbers
}
