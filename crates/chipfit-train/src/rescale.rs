//! New scales for a model's weights: estimated from the masters, written into its initializers.

use std::collections::BTreeMap;

use chipfit_model::{ConstTensor, DataType, Index, Model, Use};
use chipfit_npu::{Op, Program, TensorDelta, export};

use crate::error::TrainError;
use crate::parameters::{Kind, Parameter};

/// No scale is below this: 2^-60.
const LEAST: f32 = 8.673_617_4e-19;
/// Most steps of a bias.
const BIAS_STEPS: f32 = (1u32 << 30) as f32;

/// Scales of every parameter, one per channel: weights `max|w| / 127` of the channel, or of the whole tensor where the
/// model has one scale for it; biases follow as `x_scale * w_scale`.
///
/// Weights with zero points keep their scales. A channel whose bias would need more than 2^30 steps gets a larger scale.
///
/// # Errors
/// [`TrainError::Export`] when the model lacks the scale of a constant.
pub(crate) fn estimated(
    model: &Model,
    program: &Program,
    list: &[Parameter],
    values: &[Vec<f32>],
) -> Result<Vec<Vec<f32>>, TrainError> {
    let mut scales: Vec<Vec<f32>> = list.iter().map(|parameter| parameter.scales.clone()).collect();
    for (at, (parameter, own)) in list.iter().zip(values).enumerate() {
        if parameter.kind != Kind::Weights || parameter.zero_points.iter().any(|&zero| zero != 0) {
            continue;
        }
        let largest = |channel: &[f32]| channel.iter().fold(0f32, |most, w| most.max(w.abs()));
        let mut new: Vec<f32> =
            own.chunks(parameter.per_channel()).map(|channel| (largest(channel) / 127.0).max(LEAST)).collect();
        for (position, bias) in list.iter().enumerate() {
            if bias.kind != Kind::Bias || !bias.steps.iter().any(|step| parameter.steps.contains(step)) {
                continue;
            }
            let Some(input) = input_scale(program, bias) else { continue };
            for (scale, b) in new.iter_mut().zip(&values[position]) {
                *scale = scale.max(b.abs() / BIAS_STEPS / input);
            }
        }
        if scale_initializer(model, &parameter.name)?.1 == 1 {
            let most = new.iter().copied().fold(LEAST, f32::max);
            new.fill(most);
        }
        for (position, bias) in list.iter().enumerate() {
            if bias.kind == Kind::Bias
                && bias.steps.iter().any(|step| parameter.steps.contains(step))
                && let Some(input) = input_scale(program, bias)
            {
                scales[position] = new.iter().map(|scale| input * scale).collect();
            }
        }
        scales[at] = new;
    }
    Ok(scales)
}

/// Scale of the tensor that a parameter's first step reads.
fn input_scale(program: &Program, parameter: &Parameter) -> Option<f32> {
    let step = program.steps().get(parameter.steps.first()?.0)?;
    matches!(step.op, Op::Linear(_)).then(|| program.tensor(step.inputs[0]).scale)
}

/// The model with these scales of parameters, with `values` rounded on them, and with other scales of activations by
/// the names of their initializers.
///
/// # Errors
/// [`TrainError::Export`] when the model lacks a scale or shares it, [`TrainError::Lower`], [`TrainError::Processor`].
pub(crate) fn with_scales(
    model: &Model,
    program: &Program,
    list: &[Parameter],
    scales: &[Vec<f32>],
    values: &[Vec<f32>],
    activations: &[(String, f32)],
) -> Result<Model, TrainError> {
    let mut new = model.clone();
    for (name, scale) in activations {
        set_scales(&mut new, name, &[*scale])?;
    }
    let mut written: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    for (parameter, scales) in list.iter().zip(scales) {
        if *scales == parameter.scales {
            continue;
        }
        let (name, length) = scale_initializer(model, &parameter.name)?;
        let wrong = |what: &str| TrainError::Export { name: name.clone(), what: what.to_owned() };
        let numbers = if length == 1 { scales[..1].to_vec() } else { scales.clone() };
        if length != 1 && length != scales.len() {
            return Err(wrong("it has another length than there are output channels"));
        }
        if written.insert(name.clone(), numbers.clone()).is_some_and(|before| before != numbers) {
            return Err(wrong("several constants share it; keep the scales frozen"));
        }
        set_scales(&mut new, &name, &numbers)?;
    }
    let lowered = Program::lower(&new, program.options())?;
    let mut deltas = Vec::new();
    let mut integers = Vec::new();
    for ((parameter, scales), values) in list.iter().zip(scales).zip(values) {
        let parameter = Parameter { scales: scales.clone(), ..parameter.clone() };
        parameter.quantise(values, &mut integers);
        let changes = (0u32..).zip(integers.iter().copied()).collect();
        deltas.push(TensorDelta { name: parameter.name, changes });
    }
    export::write(&mut new, &export::updated(&lowered, &deltas)?)?;
    Ok(new)
}

/// New numbers for a float initializer.
fn set_scales(model: &mut Model, name: &str, numbers: &[f32]) -> Result<(), TrainError> {
    let wrong = |what: &str| TrainError::Export { name: name.to_owned(), what: what.to_owned() };
    let position = model.graph().initializer.iter().position(|tensor| tensor.name.as_deref() == Some(name));
    let position = position.ok_or_else(|| wrong("the model has no such initializer"))?;
    let old = model.tensor(&model.graph().initializer[position]).map_err(|error| wrong(&error.to_string()))?;
    let tensor = ConstTensor::from_f32(old.dims().to_vec(), numbers).filter(|_| old.dtype() == DataType::Float);
    let tensor = tensor.ok_or_else(|| wrong("it is not float, or has another size"))?;
    model.proto.graph.get_or_insert_default().initializer[position] = tensor.to_proto(name);
    Ok(())
}

/// The initializer that holds the scale of the constant `name`, and its length.
fn scale_initializer(model: &Model, name: &str) -> Result<(String, usize), TrainError> {
    let wrong = |what: &str| TrainError::Export { name: name.to_owned(), what: what.to_owned() };
    let index = Index::new(model);
    let scope = index.scopes.first().ok_or_else(|| wrong("the model has no graph"))?;
    let reader = scope.uses(name).iter().find_map(|used| match *used {
        Use::Node { scope: 0, node, input: 0 } => scope.nodes.get(node),
        _ => None,
    });
    let scale = reader.and_then(|node| node.input.get(1)).ok_or_else(|| wrong("no node dequantises it"))?;
    let is_shared = scope.uses(scale).iter().any(|used| match *used {
        Use::Node { scope: 0, node, input: 1 } => {
            // The same constant, or what a QuantizeLinear makes of it.
            let from = scope.nodes.get(node).and_then(|node| node.input.first()).map_or("", String::as_str);
            from != name && !reader.is_some_and(|node| node.output.iter().any(|made| made == from))
        }
        _ => true,
    });
    if is_shared {
        return Err(wrong("its scale serves another tensor, too; keep the scales frozen"));
    }
    let constant = index.constant_tensor(0, scale).map_err(|error| wrong(&error.to_string()))?;
    let length = constant.ok_or_else(|| wrong("its scale is no constant"))?.len();
    Ok((scale.clone(), length))
}
