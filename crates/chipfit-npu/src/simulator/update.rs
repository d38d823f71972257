//! Changes of a program's constants, all or none.

use crate::processor::{ProcessorError, TensorDelta};
use crate::program::{Linear, Op, Program};

/// Which constant of a step a name means.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Constant {
    Weights,
    Bias,
}

fn constant(linear: &Linear, name: &str) -> Option<Constant> {
    if linear.weights_name == name {
        Some(Constant::Weights)
    } else if linear.bias_name.as_deref() == Some(name) {
        Some(Constant::Bias)
    } else {
        None
    }
}

/// Changes `program` and returns the positions of the steps whose constants changed, ascending.
///
/// # Errors
/// [`ProcessorError::Update`] for a name that no linear step has, a position outside the constant, or a weight that is
/// no int8. Nothing has changed then.
pub(crate) fn apply(program: &mut Program, deltas: &[TensorDelta]) -> Result<Vec<usize>, ProcessorError> {
    let mut touched = Vec::new();
    for delta in deltas {
        let known = touched.len();
        for (position, step) in program.steps.iter().enumerate() {
            let Op::Linear(linear) = &step.op else { continue };
            if let Some(constant) = constant(linear, &delta.name) {
                check(linear, constant, delta)?;
                touched.push(position);
            }
        }
        if touched.len() == known {
            let what = "no step of the program has a constant of this name".to_owned();
            return Err(ProcessorError::Update { name: delta.name.clone(), what });
        }
    }
    touched.sort_unstable();
    touched.dedup();
    for &position in &touched {
        let Op::Linear(linear) = &mut program.steps[position].op else { continue };
        for delta in deltas {
            let changes = delta.changes.iter().map(|&(at, value)| (at as usize, value));
            match constant(linear, &delta.name) {
                Some(Constant::Weights) => changes.for_each(|(at, value)| linear.weights[at] = value as i8),
                Some(Constant::Bias) => changes.for_each(|(at, value)| linear.bias[at] = value),
                None => {}
            }
        }
    }
    Ok(touched)
}

/// Whether every change lies inside the constant and fits its type.
fn check(linear: &Linear, constant: Constant, delta: &TensorDelta) -> Result<(), ProcessorError> {
    let refuse = |what: String| Err(ProcessorError::Update { name: delta.name.clone(), what });
    let length = match constant {
        Constant::Weights => linear.weights.len(),
        Constant::Bias => linear.bias.len(),
    };
    for &(at, value) in &delta.changes {
        if usize::try_from(at).map_or(true, |at| at >= length) {
            return refuse(format!("position {at} is outside its {length} values"));
        }
        if constant == Constant::Weights && i8::try_from(value).is_err() {
            return refuse(format!("{value} is no int8"));
        }
    }
    Ok(())
}
