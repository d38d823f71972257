//! Patches the struck outputs of one step and one picture into its clean result, votes included.
//!
//! Promises: equals the twin bit for bit; touches only outputs that a strike or an override reaches, and of a unit
//! that votes only those whose vote can differ from the clean word: two replicas struck, or an override.

use crate::faults::{Change, Strike};
use crate::program::Tensor;
use crate::protection::Vote;

use super::operands::{Override, Products};
use super::struck::{Cursor, Effect, OfOutput, Words, accumulate, majority, vote_words};

/// The outputs of a step with products.
pub(crate) trait Outputs {
    /// The products of one output.
    type Of<'o>: Products
    where
        Self: 'o;
    /// The products of `output`, which sees `overrides` in the place of the buffers.
    fn products<'o>(&'o self, output: usize, overrides: &'o [Override]) -> Self::Of<'o>;
    /// What the accumulator starts with.
    fn bias(&self, output: usize) -> i32;
    /// The biased byte of a final accumulator.
    fn requantise(&self, output: usize, accumulator: i32) -> u8;
    /// Reads ahead what the strikes' partial sums will read, so that the memory works on all of it at once.
    fn touch(&self, _strikes: &[Strike], _words: &Words) {}
    /// Accumulators that contain all those whose byte is `clean`, or `None` where that is not known.
    fn interval(&self, output: usize, clean: u8) -> Option<[i32; 2]>;
}

/// What votes in a step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unit<'a> {
    /// The step's output.
    pub(crate) tensor: &'a Tensor,
    /// By channel; empty when nothing is protected.
    pub(crate) flags: &'a [bool],
    pub(crate) vote: Vote,
}

impl Unit<'_> {
    fn is_protected(&self, output: usize) -> bool {
        !self.flags.is_empty() && self.flags.get(output % self.tensor.channels()).copied().unwrap_or(false)
    }

    /// A stored byte after `out` strikes.
    fn store(&self, byte: u8, strikes: &[impl Effect]) -> u8 {
        if strikes.is_empty() {
            return byte;
        }
        let word = i32::from(self.tensor.to_word(byte));
        let word = strikes.iter().fold(word, |word, strike| strike.apply(word, 8));
        self.tensor.from_word(word as u8)
    }
}

/// One output under evaluation.
struct Struck<'a, P> {
    unit: &'a Unit<'a>,
    words: Words,
    output: u64,
    products: P,
    bias: i32,
}

impl<P: Products> Struck<'_, P> {
    /// The accumulator before requantization, for one replica on its own.
    fn sum(&self, replica: &OfOutput<'_>) -> i32 {
        let sum = accumulate(&self.products, &self.words, self.output, self.bias, replica.mul, replica.acc);
        replica.acc_out.iter().fold(sum, |sum, strike| strike.apply(sum, 32))
    }
}

/// Patches a step with products. `overrides` are sorted by output; replicas 1 and 2 are empty where nothing is protected.
pub(crate) fn patch_products<O: Outputs>(
    unit: &Unit<'_>,
    outputs: &O,
    words: Words,
    replicas: [&[Strike]; 3],
    overrides: &[(u64, Override)],
    out: &mut [u8],
) {
    if unit.flags.is_empty() && overrides.is_empty() {
        return patch_single(unit, outputs, words, replicas[0], out);
    }
    let mut cursors = replicas.map(|strikes| Cursor::new(strikes, Some(words)));
    let mut overrides = overrides.chunk_by(|a, b| a.0 == b.0).peekable();
    let mut own = Vec::new();
    loop {
        let struck = cursors.iter().map(Cursor::peek).min().unwrap_or(u64::MAX);
        let output = overrides.peek().map_or(struck, |list| struck.min(list[0].0));
        let Some(position) = usize::try_from(output).ok().filter(|&at| at < out.len()) else { return };
        let of = [0, 1, 2].map(|replica: usize| cursors[replica].take(output));
        own.clear();
        if let Some(list) = overrides.next_if(|list| list[0].0 == output) {
            own.extend(list.iter().map(|&(_, change)| change));
        }
        let clean = own.is_empty().then_some(out[position]);
        let is_protected = unit.is_protected(position);
        if let ([first, ..], Some(clean), false) = (&of, clean, is_protected)
            && first.acc_out.is_empty()
            && let Some(byte) = shortcut(outputs, &words, output, position, clean, first)
        {
            out[position] = unit.store(byte, first.out);
            continue;
        }
        let struck =
            Struck { unit, words, output, products: outputs.products(position, &own), bias: outputs.bias(position) };
        out[position] = struck.byte(&of, clean, |sum| outputs.requantise(position, sum), is_protected);
    }
}

/// [`patch_products`] where nothing votes and every output reads the buffers.
fn patch_single<O: Outputs>(unit: &Unit<'_>, outputs: &O, words: Words, strikes: &[Strike], out: &mut [u8]) {
    outputs.touch(strikes, &words);
    let mut cursor = Cursor::new(strikes, Some(words));
    loop {
        let output = cursor.peek();
        let Some(position) = usize::try_from(output).ok().filter(|&at| at < out.len()) else { return };
        let of = cursor.take(output);
        let clean = out[position];
        let short = if of.acc_out.is_empty() { shortcut(outputs, &words, output, position, clean, &of) } else { None };
        let byte = short.unwrap_or_else(|| {
            let (products, bias) = (outputs.products(position, &[]), outputs.bias(position));
            outputs.requantise(position, Struck { unit, words, output, products, bias }.sum(&of))
        });
        out[position] = unit.store(byte, of.out);
    }
}

/// The byte of an output with a single struck word, from its clean byte, where that determines it: the clean byte
/// bounds the accumulator, and every accumulator within those bounds, changed by what the strike adds, gives one byte.
fn shortcut<O: Outputs>(
    outputs: &O,
    words: &Words,
    output: u64,
    position: usize,
    clean: u8,
    strikes: &OfOutput<'_>,
) -> Option<u8> {
    let (strike, is_product) = match (strikes.mul, strikes.acc) {
        ([], []) => return Some(clean),
        ([strike], []) => (strike, true),
        ([], [strike]) => (strike, false),
        _ => return None,
    };
    let [low, high] = outputs.interval(position, clean)?;
    // Requantization is monotone, so equal bytes at both ends are the byte of all between.
    let byte_after = |delta: i32| {
        let (low, high) = (low.checked_add(delta)?, high.checked_add(delta)?);
        let byte = outputs.requantise(position, low);
        (byte == outputs.requantise(position, high)).then_some(byte)
    };
    if is_product {
        let product = outputs.products(position, &[]).product((strike.word - output * words.products as u64) as usize);
        return byte_after(strike.change.apply_signed(product, words.product_bits).wrapping_sub(product));
    }
    // A flip adds or subtracts its bit: if both give one byte, the partial sum does not matter.
    let Change::Xor(mask) = strike.change else { return None };
    if mask.count_ones() == 1
        && mask < 1 << 30
        && let Some(byte) = byte_after(mask.cast_signed())
        && byte_after(-mask.cast_signed()) == Some(byte)
    {
        return Some(byte);
    }
    let products = outputs.products(position, &[]);
    let upto = words.upto((strike.word - output * words.updates() as u64) as usize);
    let partial = outputs.bias(position).wrapping_add(products.sum(0..upto));
    let delta = strike.change.apply_signed(partial, 32).wrapping_sub(partial);
    byte_after(delta).or_else(|| {
        let sum = partial.wrapping_add(products.sum(upto..words.products)).wrapping_add(delta);
        Some(outputs.requantise(position, sum))
    })
}

impl<P: Products> Struck<'_, P> {
    /// The stored byte; `clean` is the byte without strikes where it is known.
    fn byte(
        &self,
        of: &[OfOutput<'_>; 3],
        clean: Option<u8>,
        requantise: impl Fn(i32) -> u8,
        is_protected: bool,
    ) -> u8 {
        let nothing = OfOutput::default();
        let clean_sum = || self.sum(&nothing);
        let clean_byte = || clean.unwrap_or_else(|| requantise(clean_sum()));
        let [first, ..] = of;
        if !is_protected {
            let byte = if first.strikes_accumulator() { requantise(self.sum(first)) } else { clean_byte() };
            return self.unit.store(byte, first.out);
        }
        match self.unit.vote {
            Vote::Output => {
                if of.iter().filter(|replica| replica.any()).count() < 2 {
                    return clean_byte();
                }
                let words = [0, 1, 2].map(|at: usize| {
                    let replica = &of[at];
                    let byte = if replica.strikes_accumulator() { requantise(self.sum(replica)) } else { clean_byte() };
                    i32::from(self.unit.store(byte, replica.out))
                });
                majority(words) as u8
            }
            Vote::Accumulator => {
                let struck = of.iter().filter(|replica| replica.strikes_accumulator()).count();
                let byte = if struck < 2 {
                    clean_byte()
                } else {
                    requantise(majority([0, 1, 2].map(|at: usize| self.sum(&of[at]))))
                };
                self.unit.store(byte, first.out)
            }
            Vote::Operation => {
                let [mul, acc, acc_out, out] = [
                    vote_words([0, 1, 2].map(|at: usize| of[at].mul)),
                    vote_words([0, 1, 2].map(|at: usize| of[at].acc)),
                    vote_words([0, 1, 2].map(|at: usize| of[at].acc_out)),
                    vote_words([0, 1, 2].map(|at: usize| of[at].out)),
                ];
                let byte = if mul.is_empty() && acc.is_empty() && acc_out.is_empty() {
                    clean_byte()
                } else {
                    let sum = accumulate(&self.products, &self.words, self.output, self.bias, &mul, &acc);
                    requantise(acc_out.iter().fold(sum, |sum, voted| voted.apply(sum, 32)))
                };
                self.unit.store(byte, &out)
            }
        }
    }
}

/// Patches a step without products: `out` strikes only.
pub(crate) fn patch_stored(unit: &Unit<'_>, replicas: [&[Strike]; 3], out: &mut [u8]) {
    let mut cursors = replicas.map(|strikes| Cursor::new(strikes, None));
    while let Some(output) = cursors.iter().map(Cursor::peek).min() {
        let Some(position) = usize::try_from(output).ok().filter(|&at| at < out.len()) else { return };
        let of = [0, 1, 2].map(|replica: usize| cursors[replica].take(output).out);
        let byte = out[position];
        out[position] = if unit.is_protected(position) && unit.vote != Vote::Accumulator {
            unit.store(byte, &vote_words(of))
        } else {
            unit.store(byte, of[0])
        };
    }
}
