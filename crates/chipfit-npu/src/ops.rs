//! What every step without products computes, fault-free: plain formulas, one output byte at a time.
//!
//! [`element`] is the definition: one output byte of one picture from the input tensors' bytes. [`execute`] gives
//! all of them and equals it. The formulas are those of ONNX Runtime's CPU kernels where it fuses
//! DequantizeLinear, operator and QuantizeLinear, rounding for rounding; `docs/integer-arithmetic.md` lists them
//! with their sources. Bytes are biased and lie as [`crate::program`] says. Nothing here knows of faults.
//!
//! Read [`element`] first, then `formula` (Add, Mul, pools, QuantizeLinear) and `function` (functions of one value).

mod float;
pub mod formula;
pub mod function;

use crate::program::{Op, Program, Source, Step, Tensor, Window};

pub use float::FloatStep;
use formula::{Addition, Multiplication, Pooling, WindowMean};

/// Why a step could not be computed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpError {
    /// The step has products (Conv, Gemm, MatMul): the twin or the simulator computes it.
    #[error("step '{step}' ({op_type}) has products; it is no matter of the plain executors")]
    HasProducts {
        /// The step.
        step: String,
        /// Its operator.
        op_type: String,
    },
    /// A node kept in float failed in its engine.
    #[error("step '{step}', kept in float: {why}")]
    Float {
        /// The step.
        step: String,
        /// The engine's words.
        why: String,
    },
}

/// One output byte of `step`, at `output` in the output tensor's layout. `inputs` holds one picture per input
/// tensor.
///
/// # Errors
/// [`OpError`]: a step with products, or one kept in float whose engine failed.
///
/// # Panics
/// When `output` or the lengths of `inputs` do not belong to the step.
pub fn element(program: &Program, step: &Step, inputs: &[&[u8]], output: usize) -> Result<u8, OpError> {
    let to = program.tensor(step.output);
    let from = |input: usize| program.tensor(step.inputs[input]);
    Ok(match &step.op {
        Op::Linear(_) | Op::MatMul(_) => return Err(has_products(step)),
        Op::Add => {
            let (a, b) = (Broadcast::new(from(0), to), Broadcast::new(from(1), to));
            let addition = Addition::of(from(0), from(1), to);
            addition.apply(inputs[0][a.index(output)], inputs[1][b.index(output)])
        }
        Op::Mul => {
            let (a, b) = (Broadcast::new(from(0), to), Broadcast::new(from(1), to));
            let multiplication = Multiplication::new(from(0), from(1), to);
            multiplication.apply(inputs[0][a.index(output)], inputs[1][b.index(output)])
        }
        Op::Concat { axis, tables } => {
            let mut at = coordinates(&to.shape, output);
            let mut input = 0;
            while at[*axis] >= from(input).shape[*axis] {
                at[*axis] -= from(input).shape[*axis];
                input += 1;
            }
            let byte = inputs[input][index(&from(input).shape, &at)];
            tables[input].as_ref().map_or(byte, |table| table[usize::from(byte)])
        }
        Op::MaxPool(window) => {
            let taps = Taps::new(window, from(0), to, output);
            taps.iter().map(|tap| inputs[0][tap]).max().unwrap_or(0)
        }
        Op::AveragePool(window) => {
            let taps = Taps::new(window, from(0), to, output);
            let mean = WindowMean::new(from(0), to);
            let count = taps.count_include_pad.unwrap_or_else(|| taps.iter().count());
            mean.apply(taps.iter().map(|tap| inputs[0][tap]), count)
        }
        Op::GlobalAveragePool => {
            let channels = from(0).channels();
            let positions = from(0).elements() / channels.max(1);
            let sum = (0..positions).map(|p| u64::from(inputs[0][p * channels + output])).sum();
            Pooling::new(from(0), to, positions).apply(sum)
        }
        Op::Table(table) => table[usize::from(inputs[0][output])],
        Op::Move { sources, fill } => match sources[output] {
            Source::Byte(index) => inputs[0][index as usize],
            Source::Fill => *fill,
        },
        Op::Constant(bytes) => bytes[output],
        Op::Float(float) => float.run(program, step, inputs)?[output],
    })
}

/// All output bytes of `step` for one picture: [`element`] at every index, without its repeated preparation.
///
/// # Errors
/// As [`element`].
pub fn execute(program: &Program, step: &Step, inputs: &[&[u8]]) -> Result<Vec<u8>, OpError> {
    let to = program.tensor(step.output);
    let from = |input: usize| program.tensor(step.inputs[input]);
    let elements = to.elements();
    Ok(match &step.op {
        Op::Linear(_) | Op::MatMul(_) => return Err(has_products(step)),
        Op::Add => {
            let addition = Addition::of(from(0), from(1), to);
            pairs(from(0), from(1), to, inputs, |a, b| addition.apply(a, b))
        }
        Op::Mul => {
            let multiplication = Multiplication::new(from(0), from(1), to);
            pairs(from(0), from(1), to, inputs, |a, b| multiplication.apply(a, b))
        }
        Op::Concat { axis, tables } => concat(program, step, *axis, tables, inputs),
        Op::MaxPool(window) => {
            let taps = |output| Taps::new(window, from(0), to, output);
            (0..elements).map(|o| taps(o).iter().map(|tap| inputs[0][tap]).max().unwrap_or(0)).collect()
        }
        Op::AveragePool(window) => {
            let mean = WindowMean::new(from(0), to);
            let byte = |output| {
                let taps = Taps::new(window, from(0), to, output);
                let count = taps.count_include_pad.unwrap_or_else(|| taps.iter().count());
                mean.apply(taps.iter().map(|tap| inputs[0][tap]), count)
            };
            (0..elements).map(byte).collect()
        }
        Op::GlobalAveragePool => {
            let channels = from(0).channels();
            let positions = from(0).elements() / channels.max(1);
            let pooling = Pooling::new(from(0), to, positions);
            let mut sums = vec![0u64; channels];
            for position in inputs[0].chunks_exact(channels.max(1)) {
                sums.iter_mut().zip(position).for_each(|(sum, &byte)| *sum += u64::from(byte));
            }
            sums.into_iter().map(|sum| pooling.apply(sum)).collect()
        }
        Op::Table(table) => inputs[0].iter().map(|&byte| table[usize::from(byte)]).collect(),
        Op::Move { sources, fill } => {
            let byte = |source: &Source| match source {
                Source::Byte(index) => inputs[0][*index as usize],
                Source::Fill => *fill,
            };
            sources.iter().map(byte).collect()
        }
        Op::Constant(bytes) => bytes.clone(),
        Op::Float(float) => float.run(program, step, inputs)?,
    })
}

fn has_products(step: &Step) -> OpError {
    OpError::HasProducts { step: step.name.clone(), op_type: step.op_type.clone() }
}

fn pairs(a: &Tensor, b: &Tensor, to: &Tensor, inputs: &[&[u8]], apply: impl Fn(u8, u8) -> u8) -> Vec<u8> {
    if a.shape == to.shape && b.shape == to.shape {
        return inputs[0].iter().zip(inputs[1]).map(|(&a, &b)| apply(a, b)).collect();
    }
    let (a, b) = (Broadcast::new(a, to), Broadcast::new(b, to));
    (0..to.elements()).map(|output| apply(inputs[0][a.index(output)], inputs[1][b.index(output)])).collect()
}

fn concat(program: &Program, step: &Step, axis: usize, tables: &[Option<Box<[u8; 256]>>], inputs: &[&[u8]]) -> Vec<u8> {
    let to = program.tensor(step.output);
    let mut out = vec![0; to.elements()];
    let mut start = 0;
    for ((id, table), bytes) in step.inputs.iter().zip(tables).zip(inputs) {
        let shape = &program.tensor(*id).shape;
        for (at, &byte) in bytes.iter().enumerate() {
            let mut place = coordinates(shape, at);
            place[axis] += start;
            out[index(&to.shape, &place)] = table.as_ref().map_or(byte, |table| table[usize::from(byte)]);
        }
        start += shape[axis];
    }
    out
}

/// The model's coordinates (`[c, h, w]` for a shape `[C, H, W]`) of an index in the program's layout.
pub fn coordinates(shape: &[usize], mut index: usize) -> Vec<usize> {
    let mut at = vec![0; shape.len()];
    let mut take = |axis: usize, at: &mut Vec<usize>| {
        at[axis] = index % shape[axis];
        index /= shape[axis];
    };
    if !shape.is_empty() {
        take(0, &mut at);
        (1..shape.len()).rev().for_each(|axis| take(axis, &mut at));
    }
    at
}

/// The index in the program's layout of the model's coordinates; the inverse of [`coordinates`].
pub fn index(shape: &[usize], at: &[usize]) -> usize {
    let outer = shape.iter().zip(at).skip(1).fold(0, |index, (&length, &at)| index * length + at);
    outer * shape.first().copied().unwrap_or(1) + at.first().copied().unwrap_or(0)
}

/// Where an operand's byte lies for an output index, the operand's axes of length 1 being repeated.
struct Broadcast<'a> {
    operand: &'a [usize],
    output: &'a [usize],
}

impl<'a> Broadcast<'a> {
    fn new(operand: &'a Tensor, output: &'a Tensor) -> Self {
        Self { operand: &operand.shape, output: &output.shape }
    }

    fn index(&self, output: usize) -> usize {
        if self.operand == self.output {
            return output;
        }
        let mut at = coordinates(self.output, output);
        at.iter_mut().zip(self.operand).filter(|(_, length)| **length == 1).for_each(|(at, _)| *at = 0);
        index(self.operand, &at)
    }
}

/// The input bytes under one position of a pool's window, in the order rows, columns.
struct Taps {
    rows: Vec<usize>,
    columns: Vec<usize>,
    width: usize,
    channels: usize,
    channel: usize,
    /// The divisor, where padding counts.
    count_include_pad: Option<usize>,
}

impl Taps {
    fn new(window: &Window, from: &Tensor, to: &Tensor, output: usize) -> Self {
        let ([height, width], channels) = map(from);
        let ([_, out_width], _) = map(to);
        let (channel, position) = (output % channels, output / channels);
        let along = |axis: usize, place: usize, length: usize| -> Vec<usize> {
            let start = place * window.stride[axis];
            let taps = (0..window.kernel[axis]).filter_map(|k| {
                (start + k * window.dilation[axis]).checked_sub(window.pads[axis]).filter(|&tap| tap < length)
            });
            taps.collect()
        };
        Self {
            rows: along(0, position / out_width, height),
            columns: along(1, position % out_width, width),
            width,
            channels,
            channel,
            count_include_pad: window.count_include_pad.then(|| window.kernel[0] * window.kernel[1]),
        }
    }

    fn iter(&self) -> impl Iterator<Item = usize> {
        let columns = move |&row: &usize| self.columns.iter().map(move |&column| row * self.width + column);
        self.rows.iter().flat_map(columns).map(|position| position * self.channels + self.channel)
    }
}

/// Height and width of a tensor's map, and its channels; a map of one axis is one row.
pub fn map(tensor: &Tensor) -> ([usize; 2], usize) {
    let shape = &tensor.shape;
    let size = match shape.len() {
        0 | 1 => [1, 1],
        2 => [1, shape[1]],
        _ => [shape[1], shape[2..].iter().product()],
    };
    (size, tensor.channels())
}

#[cfg(test)]
mod tests;
