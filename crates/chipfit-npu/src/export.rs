//! A program's constants back into the QDQ model that it was lowered from.
//!
//! The graph stays; initializers get new bytes, in the file's own order and type. So a retrained model is the same file
//! with other numbers, and any runtime that took the first takes the second.

use std::collections::BTreeSet;

use chipfit_model::build::{get_i, is_op};
use chipfit_model::{ConstTensor, DataType, Index, Model, Use};

use crate::processor::{ProcessorError, TensorDelta};
use crate::program::{Linear, Op, Program};
use crate::simulator::update;

/// Writes every constant of the program that has a name into the model's initializer of that name.
///
/// Biases without a name (none in the model, or float ones) stay as the model has them.
///
/// # Errors
/// As [`replace`]; the model may then hold some of the new constants.
pub fn write(model: &mut Model, program: &Program) -> Result<(), ProcessorError> {
    let mut names = BTreeSet::new();
    for linear in linears(program) {
        names.insert(linear.weights_name.as_str());
        names.extend(linear.bias_name.as_deref());
    }
    names.into_iter().try_for_each(|name| replace(model, program, name))
}

/// The program with other constants, scales and all else as they are.
///
/// # Errors
/// [`ProcessorError::Update`] for a name, position or value that does not fit.
pub fn updated(program: &Program, deltas: &[TensorDelta]) -> Result<Program, ProcessorError> {
    let mut program = program.clone();
    update::apply(&mut program, deltas)?;
    Ok(program)
}

/// Writes the program's constant `name` into the model's initializer of that name.
///
/// Integer initializers get the integers. Float weights behind a QuantizeLinear get the real values of the integers,
/// which it rounds back to them.
///
/// # Errors
/// [`ProcessorError::Update`] when there is no such initializer, or it has another size or type.
pub fn replace(model: &mut Model, program: &Program, name: &str) -> Result<(), ProcessorError> {
    let refuse = |what: &str| ProcessorError::Update { name: name.to_owned(), what: what.to_owned() };
    let position = model.graph().initializer.iter().position(|tensor| tensor.name.as_deref() == Some(name));
    let position = position.ok_or_else(|| refuse("the model has no such initializer"))?;
    let old = model.tensor(&model.graph().initializer[position]).map_err(|error| refuse(&error.to_string()))?;
    let bytes: Vec<u8> = if let Some(linear) = linears(program).find(|linear| linear.weights_name == name) {
        let order = order(model, linear, old.dims()).ok_or_else(|| refuse("its use in the model was not found"))?;
        match old.dtype() {
            DataType::Int8 => order.into_iter().map(|at| linear.weights[at].cast_unsigned()).collect(),
            DataType::Uint8 => order.into_iter().map(|at| linear.weights[at].cast_unsigned() ^ 0x80).collect(),
            DataType::Float => order.into_iter().flat_map(|at| real(linear, at).to_le_bytes()).collect(),
            _ => return Err(refuse("its initializer is neither int8, uint8 nor float")),
        }
    } else if let Some(linear) = linears(program).find(|linear| linear.bias_name.as_deref() == Some(name)) {
        if old.dtype() != DataType::Int32 {
            return Err(refuse("its initializer is not int32"));
        }
        linear.bias.iter().flat_map(|value| value.to_le_bytes()).collect()
    } else {
        return Err(refuse("no step has a constant of this name"));
    };
    let new = ConstTensor::new(old.dtype(), old.dims().to_vec(), bytes);
    let new = new.ok_or_else(|| refuse("its initializer has another size than the program's constant"))?;
    model.proto.graph.get_or_insert_default().initializer[position] = new.to_proto(name);
    Ok(())
}

fn linears(program: &Program) -> impl Iterator<Item = &Linear> {
    program.steps().iter().filter_map(|step| if let Op::Linear(linear) = &step.op { Some(&**linear) } else { None })
}

/// The real value of a weight.
fn real(linear: &Linear, at: usize) -> f32 {
    let channel = at / linear.products().max(1);
    let steps = i16::from(linear.weights[at]) - linear.weight_zero_points[channel];
    linear.weight_scales[channel] * f32::from(steps)
}

/// For each element of the initializer, its position in the program's weights.
fn order(model: &Model, linear: &Linear, dims: &[usize]) -> Option<Vec<usize>> {
    let index = Index::new(model);
    let scope = &index.scopes[0];
    let reader = |name: &str| {
        scope.uses(name).iter().find_map(|used| match *used {
            Use::Node { scope: 0, node, input: 0 | 1 } => Some(&scope.nodes[node]),
            _ => None,
        })
    };
    let mut node = reader(&linear.weights_name)?;
    // DequantizeLinear, and QuantizeLinear before it where the weights are float.
    while matches!(node.op_type.as_deref(), Some("QuantizeLinear" | "DequantizeLinear")) {
        node = reader(node.output.first()?)?;
    }
    let elements: usize = dims.iter().product();
    if elements != linear.weights.len() {
        return None;
    }
    if is_op(node, "Conv") {
        let (channels, positions) = (*dims.get(1)?, dims.get(2..)?.iter().product::<usize>());
        let place = |at: usize| {
            let (filter, rest) = (at / (channels * positions), at % (channels * positions));
            (filter * positions + rest % positions) * channels + rest / positions
        };
        return Some((0..elements).map(place).collect());
    }
    if is_op(node, "Gemm") && get_i(node, "transB").unwrap_or(0) != 0 {
        return Some((0..elements).collect());
    }
    let &[inner, columns] = dims else { return None };
    Some((0..elements).map(|at| at % columns * inner + at / columns).collect())
}
