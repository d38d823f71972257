//! The straight-through function in f64, written anew: what the backward pass must be the derivative of.
//!
//! Every step's output is `byte's real value + mask * (F(inputs, weights) - F(inputs' real bytes, weights as held))`,
//! F being the operator in real numbers without rounding. At the point itself every value is that of the trace.

use chipfit_npu::program::{Source, Window};
use chipfit_npu::{Op, Program, Step, Tensor, TensorId, ops};

use super::plan::slopes;

/// Real values of weights and biases by parameter.
pub(super) type Values = Vec<Vec<f64>>;

/// One picture's bytes of every tensor, by [`TensorId`].
pub(super) type Bytes = [Vec<u8>];

fn real(tensor: &Tensor, byte: u8) -> f64 {
    f64::from(tensor.scale) * (f64::from(byte) - f64::from(tensor.zero_point))
}

/// The output's values when the parameters are `values`, around the trace `bytes` that came of `held`.
pub(super) fn output(program: &Program, names: &[String], held: &Values, values: &Values, bytes: &Bytes) -> Vec<f64> {
    let at = |id: TensorId| -> Vec<f64> {
        let tensor = program.tensor(id);
        bytes[id.0].iter().map(|&byte| real(tensor, byte)).collect()
    };
    let mut all: Vec<Vec<f64>> = vec![Vec::new(); program.tensors().len()];
    all[program.input().0] = at(program.input());
    for step in program.steps() {
        let base: Vec<Vec<f64>> = step.inputs.iter().map(|&id| at(id)).collect();
        let moved: Vec<Vec<f64>> = step.inputs.iter().map(|id| all[id.0].clone()).collect();
        let before = function(program, step, names, held, &base, bytes);
        let after = function(program, step, names, values, &moved, bytes);
        let mask = mask(program, step, &bytes[step.output.0]);
        let output = at(step.output);
        all[step.output.0] =
            output.iter().enumerate().map(|(i, y)| y + if mask[i] { after[i] - before[i] } else { 0.0 }).collect();
    }
    all[program.output().0].clone()
}

/// Where a change passes.
fn mask(program: &Program, step: &Step, bytes: &[u8]) -> Vec<bool> {
    let inside = |low: u8, high: u8| bytes.iter().map(|&byte| byte > low && byte < high).collect();
    match &step.op {
        Op::Linear(linear) => inside(linear.low, linear.high),
        Op::MatMul(_) | Op::Add | Op::Mul | Op::AveragePool(_) | Op::GlobalAveragePool => inside(0, 255),
        Op::Concat { axis, tables } => {
            let to = program.tensor(step.output);
            let is_copied = |output: usize| {
                let mut along = ops::coordinates(&to.shape, output)[*axis];
                let mut input = 0;
                while along >= program.tensor(step.inputs[input]).shape[*axis] {
                    along -= program.tensor(step.inputs[input]).shape[*axis];
                    input += 1;
                }
                tables[input].is_none()
            };
            let pass = |(output, &byte): (usize, &u8)| is_copied(output) || (byte > 0 && byte < 255);
            bytes.iter().enumerate().map(pass).collect()
        }
        _ => vec![true; bytes.len()],
    }
}

fn function(
    program: &Program,
    step: &Step,
    names: &[String],
    values: &Values,
    inputs: &[Vec<f64>],
    bytes: &Bytes,
) -> Vec<f64> {
    let to = program.tensor(step.output);
    let from = |input: usize| program.tensor(step.inputs[input]);
    let outputs = 0..to.elements();
    let parameter = |name: &str| names.iter().position(|known| known == name).map(|at| &values[at]);
    // The operand's index for an output index, axes of length 1 repeated.
    let operand = |input: usize, output: usize| {
        let mut at = ops::coordinates(&to.shape, output);
        for (at, &length) in at.iter_mut().zip(&from(input).shape) {
            if length == 1 {
                *at = 0;
            }
        }
        ops::index(&from(input).shape, &at)
    };
    match &step.op {
        Op::Linear(linear) => {
            let geometry = &linear.geometry;
            let weights = parameter(&linear.weights_name).expect("weights");
            let bias = linear.bias_name.as_deref().and_then(parameter);
            let (group_in, group_out) =
                (geometry.in_channels / geometry.groups, geometry.out_channels / geometry.groups);
            let [_, columns] = geometry.output();
            let one = |output: usize| {
                let (pixel, channel) = (output / geometry.out_channels, output % geometry.out_channels);
                let mut sum = bias.map_or(0.0, |bias| bias[channel]);
                let mut k = channel * geometry.products();
                for row in 0..geometry.kernel[0] {
                    for column in 0..geometry.kernel[1] {
                        for i in 0..group_in {
                            let y = (pixel / columns * geometry.stride[0] + row * geometry.dilation[0])
                                .wrapping_sub(geometry.pads[0]);
                            let x = (pixel % columns * geometry.stride[1] + column * geometry.dilation[1])
                                .wrapping_sub(geometry.pads[1]);
                            if y < geometry.input[0] && x < geometry.input[1] {
                                let place = (y * geometry.input[1] + x) * geometry.in_channels;
                                sum += inputs[0][place + channel / group_out * group_in + i] * weights[k];
                            }
                            k += 1;
                        }
                    }
                }
                sum
            };
            outputs.map(one).collect()
        }
        Op::MatMul(product) => {
            let model = |tensor: &Tensor, at: usize| {
                // Model order to stored order.
                let (channels, positions) = (tensor.channels(), tensor.elements() / tensor.channels());
                if tensor.shape.len() < 2 { at } else { at % positions * channels + at / positions }
            };
            let mut out = vec![0.0; to.elements()];
            for batch in 0..product.batch {
                for row in 0..product.rows {
                    for column in 0..product.columns {
                        let place = model(to, (batch * product.rows + row) * product.columns + column);
                        for k in 0..product.inner {
                            let left = model(from(0), (batch * product.rows + row) * product.inner + k);
                            let right = model(from(1), (batch * product.inner + k) * product.columns + column);
                            out[place] += inputs[0][left] * inputs[1][right];
                        }
                    }
                }
            }
            out
        }
        Op::Add => outputs.map(|o| inputs[0][operand(0, o)] + inputs[1][operand(1, o)]).collect(),
        Op::Mul => outputs.map(|o| inputs[0][operand(0, o)] * inputs[1][operand(1, o)]).collect(),
        Op::Concat { axis, .. } => {
            let mut out = vec![0.0; to.elements()];
            let mut start = 0;
            for (input, values) in inputs.iter().enumerate() {
                for (index, &value) in values.iter().enumerate() {
                    let mut at = ops::coordinates(&from(input).shape, index);
                    at[*axis] += start;
                    out[ops::index(&to.shape, &at)] = value;
                }
                start += from(input).shape[*axis];
            }
            out
        }
        Op::MaxPool(window) => {
            let seen = &bytes[step.inputs[0].0];
            let one = |output: usize| {
                let taps = taps(window, from(0), to, output);
                let mut best: Option<usize> = None;
                for tap in taps {
                    if best.is_none_or(|best| seen[tap] > seen[best]) {
                        best = Some(tap);
                    }
                }
                best.map_or(0.0, |tap| inputs[0][tap])
            };
            outputs.map(one).collect()
        }
        Op::AveragePool(window) => {
            let one = |output: usize| {
                let taps = taps(window, from(0), to, output);
                let count = if window.count_include_pad { window.kernel[0] * window.kernel[1] } else { taps.len() };
                taps.iter().map(|&tap| inputs[0][tap]).sum::<f64>() / count.max(1) as f64
            };
            outputs.map(one).collect()
        }
        Op::GlobalAveragePool => {
            let channels = from(0).channels();
            let positions = inputs[0].len() / channels;
            outputs
                .map(|o| (0..positions).map(|p| inputs[0][p * channels + o]).sum::<f64>() / positions as f64)
                .collect()
        }
        Op::Table(table) => {
            let slopes = slopes(&step.op_type, from(0), to, table);
            let seen = &bytes[step.inputs[0].0];
            outputs.map(|o| inputs[0][o] * f64::from(slopes[usize::from(seen[o])])).collect()
        }
        Op::Move { sources, .. } => sources
            .iter()
            .map(|source| match source {
                Source::Byte(at) => inputs[0][*at as usize],
                Source::Fill => 0.0,
            })
            .collect(),
        Op::Constant(_) => vec![0.0; to.elements()],
        other => panic!("no function of {other:?}"),
    }
}

/// Input indices under an output's window: rows, then columns.
fn taps(window: &Window, from: &Tensor, to: &Tensor, output: usize) -> Vec<usize> {
    let ([height, width], channels) = ops::map(from);
    let ([_, columns], _) = ops::map(to);
    let (channel, position) = (output % channels, output / channels);
    let mut taps = Vec::new();
    for row in 0..window.kernel[0] {
        for column in 0..window.kernel[1] {
            let y = (position / columns * window.stride[0] + row * window.dilation[0]).wrapping_sub(window.pads[0]);
            let x = (position % columns * window.stride[1] + column * window.dilation[1]).wrapping_sub(window.pads[1]);
            if y < height && x < width {
                taps.push((y * width + x) * channels + channel);
            }
        }
    }
    taps
}
