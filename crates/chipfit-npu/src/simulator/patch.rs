//! Patches the struck outputs of one step and one picture into its clean result, votes included.
//!
//! Promises: equals the twin bit for bit; touches only outputs that a strike or an override reaches, and of a unit
//! that votes only those whose vote can differ from the clean word: two replicas struck, or an override.

use crate::faults::Strike;
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
    let mut cursors = replicas.map(|strikes| Cursor::new(strikes, Some(words)));
    let mut overrides = overrides.chunk_by(|a, b| a.0 == b.0).peekable();
    let mut own = Vec::new();
    loop {
        let next = cursors.iter().filter_map(Cursor::peek).chain(overrides.peek().map(|list| list[0].0)).min();
        let Some(output) = next else { return };
        let Some(position) = usize::try_from(output).ok().filter(|&at| at < out.len()) else { return };
        let of = [0, 1, 2].map(|replica: usize| cursors[replica].take(output));
        own.clear();
        if let Some(list) = overrides.next_if(|list| list[0].0 == output) {
            own.extend(list.iter().map(|&(_, change)| change));
        }
        let clean = own.is_empty().then_some(out[position]);
        let struck =
            Struck { unit, words, output, products: outputs.products(position, &own), bias: outputs.bias(position) };
        out[position] = struck.byte(&of, clean, |sum| outputs.requantise(position, sum), unit.is_protected(position));
    }
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
    while let Some(output) = cursors.iter().filter_map(Cursor::peek).min() {
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
