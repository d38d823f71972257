//! The naive twin: THE specification of the faulty processor.
//!
//! Plain loops visit every product and every partial sum of every output in the documented order, and every
//! [`Strike`] changes its word at the place where the chip holds it. Nothing is skipped, cached or vectorised:
//! the simulator must equal this code bit for bit, and a reader must be able to check it against
//! `docs/fault-model.md`, sections Sites and Triple modular redundancy.
//!
//! One output with operands `x_k`, `w_k` (zero points subtracted; padding gives `x_k = 0` and counts):
//!
//! ```text
//! acc = bias
//! for k in 0..K:
//!     p   = mul strikes of word output*K + k  on  x_k * w_k          (16 or 17 bits, two's complement)
//!     acc = acc + p                                                  (int32, wrapping)
//!     if k is the last product of update u:
//!         acc = acc strikes of word output*updates + u  on  acc      (32 bits)
//! acc  = acc_out strikes of word output  on  acc                     (32 bits)
//! byte = clamp(rescale(acc) + zero point, low, high)
//! word = out strikes of word output  on  the stored word of byte     (8 bits)
//! ```
//!
//! `weight` and `act` strikes change the words that are read: activations as stored words, before the zero point is
//! subtracted. They belong to the step: other steps that read the same tensor see it unharmed.
//!
//! Read [`forward`], then `mac_step`, then `Replicas`.

mod operands;
mod rescale;
#[cfg(test)]
mod tests;

pub use rescale::requantise;

use crate::faults::{DrawKey, Site, Strike, StrikeSource};
use crate::machine::Machine;
use crate::program::{Op, Program, Step, StepId, Tensor};
use crate::protection::{Protection, Vote};
use operands::Operands;

/// Everything that one picture's pass produced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pass {
    /// Biased bytes of every tensor, by [`crate::TensorId`].
    pub tensors: Vec<Vec<u8>>,
    /// By step: the accumulators as they are requantised, after `acc_out` strikes and any vote on them, in the
    /// output's layout; replica 0's where three replicas are requantised. Empty for steps without products.
    pub accumulators: Vec<Vec<i32>>,
}

/// Computes one picture: the biased bytes of every tensor, by [`crate::TensorId`].
///
/// `input` holds the biased bytes of one picture in the program's layout.
///
/// # Panics
/// When `input` or a constant of `program` has the wrong length.
pub fn forward(
    program: &Program,
    faults: Option<&dyn StrikeSource>,
    protection: &Protection,
    key: DrawKey,
    machine: Machine,
    input: &[u8],
) -> Vec<Vec<u8>> {
    forward_with_accumulators(program, faults, protection, key, machine, input).tensors
}

/// [`forward`], with the accumulators of every step.
///
/// # Panics
/// As [`forward`].
pub fn forward_with_accumulators(
    program: &Program,
    faults: Option<&dyn StrikeSource>,
    protection: &Protection,
    key: DrawKey,
    machine: Machine,
    input: &[u8],
) -> Pass {
    assert_eq!(input.len(), program.tensor(program.input()).elements(), "bytes of one input picture");
    let mut tensors = vec![Vec::new(); program.tensors().len()];
    let mut accumulators = vec![Vec::new(); program.steps().len()];
    tensors[program.input().0] = input.to_vec();
    for (position, step) in program.steps().iter().enumerate() {
        let strikes = StepStrikes::draw(faults, protection, key, StepId(position));
        let unit =
            Unit { program, step, machine, flags: protection.channels(StepId(position)), vote: protection.vote() };
        let inputs: Vec<&[u8]> = step.inputs.iter().map(|id| tensors[id.0].as_slice()).collect();
        let output = match &step.op {
            Op::Linear(_) | Op::MatMul(_) => {
                let (output, sums) = unit.mac_step(&inputs, &strikes);
                accumulators[position] = sums;
                output
            }
            _ => unit.other_step(&inputs, &strikes),
        };
        tensors[step.output.0] = output;
    }
    Pass { tensors, accumulators }
}

/// The strikes of one step, by replica, sorted.
struct StepStrikes {
    replicas: [Vec<Strike>; 3],
}

impl StepStrikes {
    /// Replicas 1 and 2 exist only where a channel is protected.
    fn draw(faults: Option<&dyn StrikeSource>, protection: &Protection, key: DrawKey, step: StepId) -> Self {
        let mut replicas = [const { Vec::new() }; 3];
        let Some(faults) = faults else { return Self { replicas } };
        let count = if protection.channels(step).contains(&true) { 3 } else { 1 };
        for (replica, strikes) in (0..count).zip(&mut replicas) {
            faults.strikes(&key, step, replica, strikes);
            strikes.sort_unstable();
        }
        Self { replicas }
    }

    /// Weight and act strikes: the replicas share their buffers.
    fn buffers(&self) -> &[Strike] {
        &self.replicas[0]
    }

    /// All three, for a vote.
    fn all(&self) -> Replicas<'_> {
        Replicas(vec![&self.replicas[0], &self.replicas[1], &self.replicas[2]])
    }

    /// One on its own.
    fn one(&self, replica: usize) -> Replicas<'_> {
        Replicas(vec![&self.replicas[replica]])
    }
}

/// The strikes of one word, of a sorted list.
fn at(strikes: &[Strike], site: Site, word: usize) -> &[Strike] {
    let word = word as u64;
    let start = strikes.partition_point(|strike| (strike.site, strike.word) < (site, word));
    let end = strikes.partition_point(|strike| (strike.site, strike.word) <= (site, word));
    &strikes[start..end]
}

/// The copies of one word that exist at the same time: one, or three that are voted bit by bit.
struct Replicas<'a>(Vec<&'a [Strike]>);

impl Replicas<'_> {
    /// A signed word of `bits` bits after its strikes, voted where there are three copies.
    fn struck(&self, value: i32, site: Site, word: usize, bits: u32) -> i32 {
        let copies: Vec<i32> = self
            .0
            .iter()
            .map(|strikes| at(strikes, site, word).iter().fold(value, |v, s| s.change.apply_signed(v, bits)))
            .collect();
        match copies[..] {
            [one] => one,
            [a, b, c] => majority(a, b, c),
            _ => unreachable!("one copy or three"),
        }
    }

    /// A stored output byte after its `out` strikes, voted where there are three copies.
    fn struck_byte(&self, tensor: &Tensor, byte: u8, output: usize) -> u8 {
        let word = i32::from(tensor.to_word(byte));
        tensor.from_word(self.struck(word, Site::Out, output, 8) as u8)
    }
}

/// Bit by bit what at least two of three words hold.
pub(crate) fn majority(a: i32, b: i32, c: i32) -> i32 {
    (a & b) | (a & c) | (b & c)
}

/// One step with its surroundings.
struct Unit<'a> {
    program: &'a Program,
    step: &'a Step,
    machine: Machine,
    flags: &'a [bool],
    vote: Vote,
}

impl Unit<'_> {
    fn output_tensor(&self) -> &Tensor {
        self.program.tensor(self.step.output)
    }

    /// Whether the output channel that holds this output element is computed three times.
    fn is_protected(&self, output: usize) -> bool {
        let channel = output % self.output_tensor().channels();
        self.flags.get(channel).copied().unwrap_or(false)
    }

    /// A step with products: its bytes, and its accumulators as they are requantised.
    fn mac_step(&self, inputs: &[&[u8]], strikes: &StepStrikes) -> (Vec<u8>, Vec<i32>) {
        let mut operands = Operands::new(self.program, self.step, inputs, strikes.buffers());
        let elements = self.output_tensor().elements();
        let mut bytes = Vec::with_capacity(elements);
        let mut accumulators = Vec::with_capacity(elements);
        for output in 0..elements {
            let products = operands.read(output);
            let bias = operands.bias(output);
            let sum = |replicas: &Replicas| self.accumulate(replicas, output, bias, &products, operands.product_bits());
            let stored = |replicas: &Replicas, accumulator: i32| {
                let byte = requantise(self.program, self.step, output, accumulator);
                replicas.struck_byte(self.output_tensor(), byte, output)
            };
            let (byte, accumulator) = match (self.is_protected(output), self.vote) {
                (false, _) => {
                    let accumulator = sum(&strikes.one(0));
                    (stored(&strikes.one(0), accumulator), accumulator)
                }
                (true, Vote::Output) => {
                    let sums = [0, 1, 2].map(|replica| sum(&strikes.one(replica)));
                    let words = [0, 1, 2].map(|replica| i32::from(stored(&strikes.one(replica), sums[replica])));
                    // Bias by XOR commutes with the bitwise vote, so biased bytes may be voted.
                    (majority(words[0], words[1], words[2]) as u8, sums[0])
                }
                (true, Vote::Accumulator) => {
                    let sums = [0, 1, 2].map(|replica| sum(&strikes.one(replica)));
                    let accumulator = majority(sums[0], sums[1], sums[2]);
                    (stored(&strikes.one(0), accumulator), accumulator)
                }
                (true, Vote::Operation) => {
                    let accumulator = sum(&strikes.all());
                    (stored(&strikes.all(), accumulator), accumulator)
                }
            };
            bytes.push(byte);
            accumulators.push(accumulator);
        }
        (bytes, accumulators)
    }

    /// The accumulator of one output after all its products and strikes.
    fn accumulate(&self, replicas: &Replicas, output: usize, bias: i32, products: &[(i32, i32)], bits: u32) -> i32 {
        let lanes = self.machine.lanes.get() as usize;
        let updates = self.machine.updates(products.len());
        let mut accumulator = bias;
        for (k, (x, w)) in products.iter().enumerate() {
            let product = replicas.struck(x * w, Site::Mul, output * products.len() + k, bits);
            accumulator = accumulator.wrapping_add(product);
            let is_last_of_update = (k + 1) % lanes == 0 || k + 1 == products.len();
            if is_last_of_update {
                let update = k / lanes;
                accumulator = replicas.struck(accumulator, Site::Acc, output * updates + update, 32);
            }
        }
        replicas.struck(accumulator, Site::AccOut, output, 32)
    }

    /// A step without products: `act` strikes of its first input, the fault-free formula, `out` strikes.
    /// Every consumer sees a struck input word, whatever the strike's uses.
    fn other_step(&self, inputs: &[&[u8]], strikes: &StepStrikes) -> Vec<u8> {
        let struck: Option<Vec<u8>> = self.step.inputs.first().map(|&id| {
            let first = self.program.tensor(id);
            let seen = |(index, &byte): (usize, &u8)| {
                let strikes = at(strikes.buffers(), Site::Act, index);
                let word = strikes.iter().fold(u32::from(first.to_word(byte)), |w, s| s.change.apply(w, 8));
                first.from_word(word as u8)
            };
            inputs[0].iter().enumerate().map(seen).collect()
        });
        let mut inputs = inputs.to_vec();
        if let Some(struck) = &struck {
            inputs[0] = struck;
        }
        let clean = fault_free(self.program, self.step, &inputs);
        let store = |output: usize, byte: u8| match (self.is_protected(output), self.vote) {
            (false, _) | (true, Vote::Accumulator) => strikes.one(0).struck_byte(self.output_tensor(), byte, output),
            (true, Vote::Output | Vote::Operation) => strikes.all().struck_byte(self.output_tensor(), byte, output),
        };
        clean.into_iter().enumerate().map(|(output, byte)| store(output, byte)).collect()
    }
}

/// The formulas of the steps without products ([`crate::ops`]); faults have no place inside them.
///
/// # Panics
/// When the engine of a node kept in float fails.
pub(crate) fn fault_free(program: &Program, step: &Step, inputs: &[&[u8]]) -> Vec<u8> {
    crate::ops::execute(program, step, inputs).unwrap_or_else(|error| panic!("{error}"))
}
