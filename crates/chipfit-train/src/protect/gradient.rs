//! Vulnerabilities from gradients: what the faults of each channel change to first order, without any second run.
//!
//! Faults are drawn from the fault model as the processor draws them. Each is brought to the change `d` of the stored
//! output that it would make by itself, saturating at the ends of the step's range; with `g` the derivative of the loss
//! by that output at what the processor computed (errors included, as in retraining), two sums over the faults of a
//! channel are taken, per inference:
//!
//! - *first order*: `sum |g d|` for the cross-entropy of the label;
//! - *second moment*: `sum d^2 |dz/dy|^2` for the logits `z` less their mean, which is what the measured influence is to
//!   first order. `|dz/dy|^2` is estimated with random signs: the mean of `(r . dz/dy)^2`.
//!
//! What a word held is not in a trace, so it is guessed. The last accumulator is the one that gives the stored byte; a
//! partial sum grows to it evenly; a product is an even share of it, its sign fair. Flips of high bits, which matter
//! most, do not depend on the rest of the word but for the sign. `weight` and `act` faults reach all three replicas, so
//! no protection removes them: they count for nothing here.

use chipfit_npu::faults::generator::{Key, Stream};
use chipfit_npu::program::Rescale;
use chipfit_npu::{
    Batch, DrawKey, Machine, Op, Processor, Program, Request, Site, Step, StepId, Strike, StrikeSource, Tensor,
    TensorId,
};
use serde::{Deserialize, Serialize};

use super::ProtectError;
use super::sample::Sample;
use crate::backward::Backward;
use crate::loss::Loss;

/// Sums per inference, by step and output channel; 0 where nothing is struck or no gradient comes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Gradient {
    /// `sum |g d|`: the expected change of the cross-entropy, every fault counted as harm.
    pub first_order: Vec<Vec<f64>>,
    /// The expected squared change of the logits, less their common shift.
    pub second_moment: Vec<Vec<f64>>,
}

/// The first trial number of gradients: other draws than planning's and comparison's.
pub const GRADIENT_TRIALS: u64 = 1 << 42;

/// Purpose of the random signs' key.
const SIGNS: u64 = 0x5349_474E;

/// What faults of `source` do to first order to the pictures of `sample`, as `processor` computes them in `trial`.
///
/// Drawn faults are those of `draws` trials from `first_draw` on, keyed by `seed`; they need not be the processor's.
///
/// # Errors
/// [`ProtectError::Processor`], and [`ProtectError::Backward`] for a step whose gradient is not known.
pub fn gradient(
    processor: &mut dyn Processor,
    source: &dyn StrikeSource,
    machine: &Machine,
    seed: u64,
    sample: &Sample,
    trial: u64,
    draws: std::ops::Range<u64>,
) -> Result<Gradient, ProtectError> {
    let program = processor.program().clone();
    let backward = Backward::new(&program, 1)?;
    let mut wanted: Vec<TensorId> = program.steps().iter().map(|step| step.output).collect();
    wanted.extend_from_slice(backward.wanted());
    wanted.sort_unstable();
    wanted.dedup();
    let channels = |step: &Step| vec![0.0; program.tensor(step.output).channels()];
    let zeros: Vec<Vec<f64>> = program.steps().iter().map(channels).collect();
    let mut sums = Gradient { first_order: zeros.clone(), second_moment: zeros };
    /// Pictures whose traces are held at once.
    const CHUNK: usize = 16;
    for part in sample.parts(CHUNK) {
        let batch = Batch { pictures: &part.pictures, input: &part.input };
        let trace = processor.forward(&Request { batch, trial, views: &[], wanted: &wanted })?;
        let changes = changes(&program, source, machine, seed, &part.pictures, draws.clone(), |tensor, picture| {
            let each = program.tensor(tensor).elements();
            trace.tensors.get(&tensor).and_then(|bytes| bytes.get(picture * each..(picture + 1) * each)).unwrap_or(&[])
        });
        let (of_loss, of_logits) = output_gradients(&program, &trace.output, &part.labels, &part.pictures);
        for (gradient, is_squared) in [(&of_loss, false), (&of_logits, true)] {
            let totals = if is_squared { &mut sums.second_moment } else { &mut sums.first_order };
            backward.adjoints(&part.input, &trace, gradient, |step, first, adjoint| {
                let tensor = program.tensor(program.steps()[step.0].output);
                let each = tensor.elements().max(1);
                for (at, adjoint) in adjoint.chunks_exact(each).enumerate() {
                    for &(output, change) in changes.get(step.0).and_then(|c| c.get(first + at)).into_iter().flatten() {
                        let effect = f64::from(adjoint[output]) * change;
                        let channel = channel_of(tensor, output);
                        totals[step.0][channel] += if is_squared { effect * effect } else { effect.abs() };
                    }
                }
            })?;
        }
    }
    let inferences = (sample.len() as f64 * (draws.end - draws.start) as f64).max(1.0);
    for totals in [&mut sums.first_order, &mut sums.second_moment] {
        totals.iter_mut().flatten().for_each(|total| *total /= inferences);
    }
    Ok(sums)
}

/// Derivatives by the logits: of the cross-entropy, and of the logits' projection on random signs less their mean.
fn output_gradients(program: &Program, output: &[u8], labels: &[u32], pictures: &[u64]) -> (Vec<f32>, Vec<f32>) {
    let tensor = program.tensor(program.output());
    let classes = tensor.elements().max(1);
    let mut of_loss = vec![0.0; output.len()];
    let mut of_logits = vec![0.0; output.len()];
    let each = output.chunks_exact(classes).zip(of_loss.chunks_exact_mut(classes));
    for ((bytes, loss), &label) in each.zip(labels) {
        let logits: Vec<f32> = bytes.iter().map(|&byte| tensor.real(byte)).collect();
        Loss::default().picture(&logits, label as usize, None, 1.0, loss);
    }
    for (signs, &picture) in of_logits.chunks_exact_mut(classes).zip(pictures) {
        let mut stream = Key::new(SIGNS).with(picture).stream();
        signs.iter_mut().for_each(|sign| *sign = if stream.below(2) == 0 { -1.0 } else { 1.0 });
        let mean = signs.iter().sum::<f32>() / classes as f32;
        signs.iter_mut().for_each(|sign| *sign -= mean);
    }
    (of_loss, of_logits)
}

/// By step and picture: struck outputs and the change of their real values, one fault at a time.
fn changes<'t>(
    program: &Program,
    source: &dyn StrikeSource,
    machine: &Machine,
    seed: u64,
    pictures: &[u64],
    draws: std::ops::Range<u64>,
    bytes: impl Fn(TensorId, usize) -> &'t [u8],
) -> Vec<Vec<Vec<(usize, f64)>>> {
    let mut strikes: Vec<Strike> = Vec::new();
    let mut all = Vec::with_capacity(program.steps().len());
    for (position, step) in program.steps().iter().enumerate() {
        let tensor = program.tensor(step.output);
        let words = Words::new(program, step, machine);
        let of_picture = |(at, &picture): (usize, &u64)| {
            let held = bytes(step.output, at);
            let mut found = Vec::new();
            for trial in draws.clone() {
                strikes.clear();
                source.strikes(&DrawKey { seed, trial, picture }, StepId(position), 0, &mut strikes);
                let mut signs = Key::new(SIGNS).with(trial).with(picture).with(position as u64).stream();
                for strike in &strikes {
                    let Some((output, index)) = words.output(strike) else { continue };
                    let Some(&byte) = held.get(output) else { continue };
                    let after = words.after(tensor, strike, byte, output, index, &mut signs);
                    let steps = f64::from(after) - f64::from(byte);
                    if steps != 0.0 {
                        found.push((output, steps * f64::from(tensor.scale)));
                    }
                }
            }
            found
        };
        all.push(pictures.iter().enumerate().map(of_picture).collect());
    }
    all
}

fn channel_of(tensor: &Tensor, output: usize) -> usize {
    let channels = tensor.channels().max(1);
    // Channels last, or row-major with the channel first.
    if tensor.is_channels_last() { output % channels } else { output * channels / tensor.elements().max(1) }
}

/// How the words of a step lie, and how an accumulator becomes a byte.
struct Words<'a> {
    products: usize,
    updates: usize,
    product_bits: u32,
    rescale: Option<&'a Rescale>,
    low: u8,
    high: u8,
}

impl<'a> Words<'a> {
    fn new(program: &Program, step: &'a Step, machine: &Machine) -> Self {
        let products = program.step_products(step);
        let (product_bits, rescale, low, high) = match &step.op {
            Op::Linear(linear) => (linear.product_bits(), Some(&linear.rescale), linear.low, linear.high),
            Op::MatMul(product) => (17, Some(&product.rescale), 0, 255),
            _ => (0, None, 0, 255),
        };
        Self { products, updates: machine.updates(products).max(1), product_bits, rescale, low, high }
    }

    /// The output that a strike belongs to, and the number of the product or update within it.
    fn output(&self, strike: &Strike) -> Option<(usize, usize)> {
        let word = usize::try_from(strike.word).ok()?;
        match strike.site {
            Site::Mul => Some((word.checked_div(self.products)?, word % self.products)),
            Site::Acc => Some((word / self.updates, word % self.updates)),
            Site::AccOut | Site::Out => Some((word, 0)),
            Site::Weight | Site::Act => None,
        }
    }

    /// The multiplier of an output's accumulator.
    fn multiplier(&self, channel: usize) -> f64 {
        match self.rescale {
            Some(Rescale::Float(scales)) => scales.get(channel).or(scales.first()).map_or(1.0, |&s| f64::from(s)),
            Some(Rescale::Fixed { multipliers, shifts }) => {
                let at = if channel < multipliers.len() { channel } else { 0 };
                let (m, e) = (multipliers.get(at).copied().unwrap_or(0), shifts.get(at).copied().unwrap_or(0));
                f64::from(m) / f64::from(1u32 << 31) * f64::from(e).exp2()
            }
            None => 1.0,
        }
    }

    /// The byte after a strike by itself.
    fn after(&self, tensor: &Tensor, strike: &Strike, byte: u8, output: usize, index: usize, signs: &mut Stream) -> u8 {
        if strike.site == Site::Out {
            return tensor.from_word(strike.change.apply(u32::from(tensor.to_word(byte)), 8) as u8);
        }
        let multiplier = self.multiplier(channel_of(tensor, output)).max(1e-30);
        let zero_point = f64::from(tensor.zero_point);
        let whole = (f64::from(byte) - zero_point) / multiplier;
        let share = match strike.site {
            Site::Mul => whole.abs() / self.products.max(1) as f64 * if signs.below(2) == 0 { -1.0 } else { 1.0 },
            Site::Acc => whole * (index + 1) as f64 / self.updates as f64,
            _ => whole,
        };
        let bits = if strike.site == Site::Mul { self.product_bits } else { 32 };
        let limit = f64::from(1u32 << (bits - 1)) - 1.0;
        let word = share.round().clamp(-limit, limit) as i32;
        let change = f64::from(strike.change.apply_signed(word, bits)) - f64::from(word);
        let moved = ((whole + change) * multiplier).round_ties_even() + zero_point;
        moved.clamp(f64::from(self.low), f64::from(self.high)) as u8
    }
}
