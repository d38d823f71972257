//! Which constants of a program are trained: every integer weight tensor and every integer bias, by their ONNX names.
//!
//! A constant that several steps share is one parameter; its gradients add up. A bias that the model keeps in float, or
//! does not have, is no parameter: the processor could not be told a new value.

use std::collections::BTreeMap;

use chipfit_npu::program::Linear;
use chipfit_npu::{Op, Program, StepId};

use crate::error::TrainError;

/// What a parameter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `[out][kernel row][kernel column][in / groups]`.
    Weights,
    /// One per output channel.
    Bias,
}

/// One trained constant.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// ONNX name of the initializer.
    pub name: String,
    /// Weights or bias.
    pub kind: Kind,
    /// The steps that use it, ascending; at least one.
    pub steps: Vec<StepId>,
    /// Elements.
    pub length: usize,
    /// Real value of one integer step, one per output channel.
    pub scales: Vec<f32>,
    /// Zero points in the program's terms, one per output channel; all 0 for a bias.
    pub zero_points: Vec<i32>,
    /// Least and greatest integer that it may hold, in the program's terms.
    pub range: [i32; 2],
    /// What counts as a change of size 1, one per output channel: 127 integer steps of a weight; for a bias, 127 steps of
    /// the output tensor.
    pub units: Vec<f32>,
}

impl Parameter {
    /// Elements of one output channel: they share a scale.
    pub fn per_channel(&self) -> usize {
        (self.length / self.scales.len().max(1)).max(1)
    }

    /// Real value of the integers: `scale * (value - zero_point)`, one fp32 rounding.
    pub fn real(&self, integers: &[i32]) -> Vec<f32> {
        let mut out = Vec::with_capacity(integers.len());
        for ((channel, &scale), &zero) in integers.chunks(self.per_channel()).zip(&self.scales).zip(&self.zero_points) {
            out.extend(channel.iter().map(|&value| scale * (i64::from(value) - i64::from(zero)) as f32));
        }
        out
    }

    /// The integers nearest to real values: `clamp(round_half_even(fl(value / scale)) + zero_point)`.
    pub fn quantise(&self, reals: &[f32], out: &mut Vec<i32>) {
        out.clear();
        let [low, high] = self.range.map(f64::from);
        for ((channel, &scale), &zero) in reals.chunks(self.per_channel()).zip(&self.scales).zip(&self.zero_points) {
            let integer =
                |&value: &f32| (f64::from((value / scale).round_ties_even()) + f64::from(zero)).clamp(low, high);
            // Within i32 by the clamp; NaN becomes 0.
            out.extend(channel.iter().map(|value| integer(value) as i32));
        }
    }

    /// The integers that a program holds.
    ///
    /// # Errors
    /// [`TrainError::Step`] when the program has no such constant.
    pub fn held(&self, program: &Program) -> Result<Vec<i32>, TrainError> {
        let step = self.steps.first().and_then(|step| program.steps().get(step.0));
        match step.map(|step| &step.op) {
            Some(Op::Linear(linear)) if self.kind == Kind::Weights && linear.weights_name == self.name => {
                Ok(linear.weights.iter().map(|&weight| i32::from(weight)).collect())
            }
            Some(Op::Linear(linear)) if linear.bias_name.as_deref() == Some(self.name.as_str()) => {
                Ok(linear.bias.clone())
            }
            _ => Err(TrainError::step(&self.name, "the program has no constant of this name")),
        }
    }
}

/// The trained constants of a program, in the order in which steps first use them, weights before biases.
///
/// # Errors
/// [`TrainError::Step`] for a constant that two steps use with different scales, or whose length does not fit.
pub fn parameters(program: &Program) -> Result<Vec<Parameter>, TrainError> {
    let mut list: Vec<Parameter> = Vec::new();
    let mut known: BTreeMap<String, usize> = BTreeMap::new();
    for (position, step) in program.steps().iter().enumerate() {
        let Op::Linear(linear) = &step.op else { continue };
        let input = step.inputs.first().map(|&id| program.tensor(id).scale);
        let input = input.ok_or_else(|| TrainError::step(&step.name, "it has no input"))?;
        let output = program.tensor(step.output).scale;
        for parameter in [Some(weights(linear, position)), bias(linear, position, input, output)].into_iter().flatten()
        {
            let channels = linear.geometry.out_channels;
            if parameter.scales.len() != channels || parameter.length % channels.max(1) != 0 {
                return Err(TrainError::step(
                    &step.name,
                    format!("'{}' does not fit its {channels} channels", parameter.name),
                ));
            }
            match known.get(&parameter.name).and_then(|&at| list.get_mut(at)) {
                None => {
                    known.insert(parameter.name.clone(), list.len());
                    list.push(parameter);
                }
                Some(first) => {
                    let is_same = first.scales == parameter.scales
                        && first.zero_points == parameter.zero_points
                        && first.kind == parameter.kind
                        && first.length == parameter.length;
                    if !is_same {
                        let what = format!(
                            "it shares '{}' with another node, at another scale; export it twice",
                            parameter.name
                        );
                        return Err(TrainError::step(&step.name, what));
                    }
                    first.steps.push(StepId(position));
                }
            }
        }
    }
    Ok(list)
}

/// Steps whose bias is not trained: the names of the nodes that have one in float.
pub fn frozen_biases(program: &Program) -> Vec<&str> {
    let frozen = program.steps().iter().filter(|step| {
        matches!(&step.op, Op::Linear(linear) if linear.bias_name.is_none() && linear.bias.iter().any(|&b| b != 0))
    });
    frozen.map(|step| step.name.as_str()).collect()
}

fn weights(linear: &Linear, position: usize) -> Parameter {
    let is_symmetric = linear.weight_zero_points.iter().all(|&zero| zero == 0);
    // Symmetric int8 models leave -128 out; a model that uses it keeps it.
    let low = if is_symmetric && !linear.weights.contains(&i8::MIN) { -127 } else { -128 };
    Parameter {
        name: linear.weights_name.clone(),
        kind: Kind::Weights,
        steps: vec![StepId(position)],
        length: linear.weights.len(),
        scales: linear.weight_scales.clone(),
        zero_points: linear.weight_zero_points.iter().map(|&zero| i32::from(zero)).collect(),
        range: [low, 127],
        units: linear.weight_scales.iter().map(|scale| 127.0 * scale).collect(),
    }
}

fn bias(linear: &Linear, position: usize, input_scale: f32, output_scale: f32) -> Option<Parameter> {
    let name = linear.bias_name.clone()?;
    // No accumulator may leave int32 without a fault: |x - zero| <= 255, |w - zero| <= 255 or 128.
    let weight = if linear.product_bits() == 16 { 128 } else { 255 };
    let products = i64::try_from(linear.products()).unwrap_or(i64::MAX);
    let room = i64::from(i32::MAX).saturating_sub(products.saturating_mul(255 * weight)).max(1 << 30);
    let most = i32::try_from(room).unwrap_or(i32::MAX);
    Some(Parameter {
        name,
        kind: Kind::Bias,
        steps: vec![StepId(position)],
        length: linear.bias.len(),
        scales: linear.weight_scales.iter().map(|&scale| input_scale * scale).collect(),
        zero_points: vec![0; linear.bias.len()],
        range: [-most, most],
        units: vec![127.0 * output_scale; linear.bias.len()],
    })
}
