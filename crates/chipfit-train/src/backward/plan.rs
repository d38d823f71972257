//! What the backward pass of each step needs, worked out once: index maps, slopes, masks, and which tensors matter.

use std::collections::BTreeSet;

use chipfit_npu::program::{Source, Window};
use chipfit_npu::{Op, Program, Step, Tensor, TensorId, ops};

use super::TrainError;
use crate::kernel::LinearKernel;
use crate::parameters::{Kind, Parameter};

/// One step's part in the backward pass.
#[derive(Debug)]
pub(super) struct StepPlan {
    /// Bytes at or beyond these ends pass no gradient; `None` where the step does not requantise.
    pub mask: Option<(u8, u8)>,
    /// Which inputs need a gradient.
    pub needs: Vec<bool>,
    pub rule: Rule,
}

/// How a step's gradient goes to its inputs.
#[derive(Debug)]
pub(super) enum Rule {
    /// No parameter lies before the step.
    Nothing,
    Linear(Box<LinearRule>),
    MatMul(MatMulRule),
    /// Index of each operand's element for each output element; `None` for the same shape.
    Add([Option<Vec<u32>>; 2]),
    Mul([Option<Vec<u32>>; 2]),
    /// Output index of each input's elements, and whether the input is requantised.
    Concat(Vec<(Vec<u32>, bool)>),
    MaxPool(Window),
    AveragePool(Window),
    GlobalAveragePool,
    /// Derivative at each input byte.
    Table(Box<[f32; 256]>),
    /// Input index of each output element; `None` when nothing moves.
    Move(Option<Vec<Option<u32>>>),
}

#[derive(Debug)]
pub(super) struct LinearRule {
    pub kernel: LinearKernel,
    /// Positions among the parameters.
    pub weights: usize,
    pub bias: Option<usize>,
}

#[derive(Debug)]
pub(super) struct MatMulRule {
    pub batch: usize,
    pub rows: usize,
    pub inner: usize,
    pub columns: usize,
    /// Stored index of each element in the model's order: left, right, output.
    pub places: [Vec<u32>; 3],
}

/// Plans of all steps.
pub(super) fn plans(program: &Program, parameters: &[Parameter]) -> Result<Vec<StepPlan>, TrainError> {
    // Tensors that depend on a parameter.
    let mut live = BTreeSet::new();
    let mut plans = Vec::with_capacity(program.steps().len());
    for step in program.steps() {
        let needs: Vec<bool> = step.inputs.iter().map(|id| live.contains(id)).collect();
        let is_linear = matches!(step.op, Op::Linear(_));
        if !is_linear && !needs.contains(&true) {
            plans.push(StepPlan { mask: None, needs, rule: Rule::Nothing });
            continue;
        }
        live.insert(step.output);
        let rule = rule(program, step, parameters)?;
        plans.push(StepPlan { mask: mask(step), needs, rule });
    }
    Ok(plans)
}

/// The tensors whose bytes the backward pass reads, the input and the output left out.
pub(super) fn wanted(program: &Program, plans: &[StepPlan]) -> Vec<TensorId> {
    let mut wanted = BTreeSet::new();
    for (step, plan) in program.steps().iter().zip(plans) {
        let is_cut = matches!(&plan.rule, Rule::Concat(places) if places.iter().any(|(_, is_cut)| *is_cut));
        if plan.mask.is_some() || is_cut {
            wanted.insert(step.output);
        }
        let reads_inputs =
            matches!(plan.rule, Rule::Linear(_) | Rule::MatMul(_) | Rule::Mul(_) | Rule::MaxPool(_) | Rule::Table(_));
        if reads_inputs {
            wanted.extend(step.inputs.iter().copied());
        }
    }
    wanted.remove(&program.input());
    wanted.remove(&program.output());
    wanted.into_iter().collect()
}

/// The ends of a step that requantises.
fn mask(step: &Step) -> Option<(u8, u8)> {
    match &step.op {
        Op::Linear(linear) => Some((linear.low, linear.high)),
        Op::MatMul(_) | Op::Add | Op::Mul | Op::AveragePool(_) | Op::GlobalAveragePool => Some((0, 255)),
        _ => None,
    }
}

fn rule(program: &Program, step: &Step, parameters: &[Parameter]) -> Result<Rule, TrainError> {
    let to = program.tensor(step.output);
    let from: Vec<&Tensor> = step.inputs.iter().map(|&id| program.tensor(id)).collect();
    let wrong = |what: &str| TrainError::step(&step.name, what);
    let inputs = match &step.op {
        Op::Add | Op::Mul | Op::MatMul(_) => 2,
        Op::Concat { tables, .. } => tables.len(),
        Op::Constant(_) => 0,
        Op::Float(_) => from.len(),
        _ => 1,
    };
    if from.len() != inputs {
        return Err(wrong("it has another number of inputs than its operator takes"));
    }
    Ok(match &step.op {
        Op::Linear(linear) => {
            let position = |name: &str, kind: Kind| {
                parameters.iter().position(|parameter| parameter.name == name && parameter.kind == kind)
            };
            let weights = position(&linear.weights_name, Kind::Weights).ok_or_else(|| wrong("no such parameter"))?;
            let bias = linear.bias_name.as_deref().and_then(|name| position(name, Kind::Bias));
            let kernel = LinearKernel::new(&linear.geometry).map_err(|e| TrainError::step(&step.name, e))?;
            Rule::Linear(Box::new(LinearRule { kernel, weights, bias }))
        }
        Op::MatMul(product) => {
            let sizes = [
                product.batch * product.rows * product.inner,
                product.batch * product.inner * product.columns,
                product.batch * product.rows * product.columns,
            ];
            let tensors = [from[0], from[1], to];
            if tensors.iter().zip(sizes).any(|(tensor, size)| tensor.elements() != size) {
                return Err(wrong("its sizes do not fit its tensors"));
            }
            let places = tensors.map(stored_indices);
            let (batch, rows, inner, columns) = (product.batch, product.rows, product.inner, product.columns);
            Rule::MatMul(MatMulRule { batch, rows, inner, columns, places })
        }
        Op::Add => Rule::Add([broadcast(from[0], to, step)?, broadcast(from[1], to, step)?]),
        Op::Mul => Rule::Mul([broadcast(from[0], to, step)?, broadcast(from[1], to, step)?]),
        Op::Concat { axis, tables } => {
            let places = concat(&from, to, *axis, step)?;
            Rule::Concat(places.into_iter().zip(tables.iter().map(Option::is_some)).collect())
        }
        Op::MaxPool(window) => Rule::MaxPool(window.clone()),
        Op::AveragePool(window) => Rule::AveragePool(window.clone()),
        Op::GlobalAveragePool => Rule::GlobalAveragePool,
        Op::Table(table) => Rule::Table(slopes(&step.op_type, from[0], to, table)),
        Op::Move { sources, .. } => {
            let elements = from[0].elements();
            let is_same = sources.len() == elements
                && sources.iter().enumerate().all(|(at, source)| *source == Source::Byte(at as u32));
            if sources.len() != to.elements() {
                return Err(wrong("its moves do not fit its tensors"));
            }
            let place = |source: &Source| match *source {
                Source::Byte(index) if (index as usize) < elements => Ok(Some(index)),
                Source::Byte(_) => Err(wrong("it moves a byte from beyond its input")),
                Source::Fill => Ok(None),
            };
            Rule::Move(if is_same { None } else { Some(sources.iter().map(place).collect::<Result<_, _>>()?) })
        }
        Op::Constant(_) => Rule::Nothing,
        _ => {
            return Err(TrainError::Unsupported {
                step: step.name.clone(),
                op_type: step.op_type.clone(),
                what: "its gradient is not known, since it is kept in float".to_owned(),
                hint: "retrain a model whose nodes all run on the integer processor".to_owned(),
            });
        }
    })
}

/// The operand's element for each output element, axes of length 1 being repeated.
fn broadcast(from: &Tensor, to: &Tensor, step: &Step) -> Result<Option<Vec<u32>>, TrainError> {
    if from.shape == to.shape {
        return Ok(None);
    }
    let fits = from.shape.len() == to.shape.len()
        && from.shape.iter().zip(&to.shape).all(|(&from, &to)| from == to || from == 1);
    if !fits {
        return Err(TrainError::step(&step.name, format!("an operand of shape {:?} for {:?}", from.shape, to.shape)));
    }
    let place = |output: usize| {
        let mut at = ops::coordinates(&to.shape, output);
        at.iter_mut().zip(&from.shape).filter(|(_, length)| **length == 1).for_each(|(at, _)| *at = 0);
        ops::index(&from.shape, &at) as u32
    };
    Ok(Some((0..to.elements()).map(place).collect()))
}

fn concat(from: &[&Tensor], to: &Tensor, axis: usize, step: &Step) -> Result<Vec<Vec<u32>>, TrainError> {
    let wrong = || TrainError::step(&step.name, "its inputs do not add up to its output");
    let along = |tensor: &Tensor| tensor.shape.get(axis).copied();
    let total: Option<usize> = from.iter().map(|tensor| along(tensor)).sum();
    let like = |tensor: &Tensor| {
        tensor.shape.len() == to.shape.len()
            && tensor.shape.iter().zip(&to.shape).enumerate().all(|(at, (a, b))| at == axis || a == b)
    };
    if total.is_none() || total != along(to) || !from.iter().all(|tensor| like(tensor)) {
        return Err(wrong());
    }
    let mut start = 0;
    let mut places = Vec::with_capacity(from.len());
    for tensor in from {
        let place = |input: usize| {
            let mut at = ops::coordinates(&tensor.shape, input);
            at[axis] += start;
            ops::index(&to.shape, &at) as u32
        };
        places.push((0..tensor.elements()).map(place).collect());
        start += along(tensor).unwrap_or(0);
    }
    Ok(places)
}

/// Where each element of the model's row-major layout is stored.
fn stored_indices(tensor: &Tensor) -> Vec<u32> {
    let (channels, elements) = (tensor.channels().max(1), tensor.elements());
    let positions = (elements / channels).max(1);
    let place = |at: usize| {
        if tensor.is_channels_last() { (at % positions * channels + at / positions) as u32 } else { at as u32 }
    };
    (0..elements).map(place).collect()
}

/// Bytes to either side that a slope is taken over: so many that a rounding of the output changes it by an eighth at most.
fn reach(from: &Tensor, to: &Tensor) -> i32 {
    ((4.0 * to.scale / from.scale).ceil().clamp(1.0, 16.0)) as i32
}

/// Derivative of a table's real function at each input byte.
///
/// Relu and Clip: 1 inside, 0 at and beyond the cut. Others: the slope between the entries [`reach`] bytes to either
/// side, as far as they exist.
pub(super) fn slopes(op_type: &str, from: &Tensor, to: &Tensor, table: &[u8; 256]) -> Box<[f32; 256]> {
    let mut slopes = Box::new([0.0; 256]);
    let value = |byte: i32| to.real(table[byte.clamp(0, 255) as usize]);
    let ends = (0..256)
        .fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), byte| (low.min(value(byte)), high.max(value(byte))));
    let reach = reach(from, to);
    for (byte, slope) in (0..256).zip(slopes.iter_mut()) {
        let x = from.real(byte as u8);
        *slope = match op_type {
            "Relu" | "Clip" => {
                let low = if op_type == "Relu" { 0.0f32.max(to.real(0)) } else { ends.0 };
                let high = if op_type == "Relu" { to.real(255) } else { ends.1 };
                f32::from(u8::from(x > low && x < high))
            }
            _ => {
                let (before, after) = ((byte - reach).max(0), (byte + reach).min(255));
                (value(after) - value(before)) / (from.scale * (after - before) as f32)
            }
        };
    }
    slopes
}
