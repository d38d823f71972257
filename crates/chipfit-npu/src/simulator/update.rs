//! Changes of a program's constants, all or none.

use std::collections::BTreeSet;

use crate::processor::{ProcessorError, TensorDelta};
use crate::program::{Op, Program};

/// The program after the changes, and the positions of the steps whose constants changed.
///
/// # Errors
/// [`ProcessorError::Update`] for a name that no linear step has, a position outside the constant, or a weight that is
/// no int8.
pub(crate) fn apply(program: &Program, deltas: &[TensorDelta]) -> Result<(Program, Vec<usize>), ProcessorError> {
    let mut changed = program.clone();
    let mut touched = BTreeSet::new();
    for delta in deltas {
        let refuse = |what: String| ProcessorError::Update { name: delta.name.clone(), what };
        let mut is_known = false;
        for (position, step) in changed.steps.iter_mut().enumerate() {
            let Op::Linear(linear) = &mut step.op else { continue };
            if linear.weights_name == delta.name {
                for &(at, value) in &delta.changes {
                    let length = linear.weights.len();
                    let weight = i8::try_from(value).map_err(|_| refuse(format!("{value} is no int8")))?;
                    let place = usize::try_from(at).ok().and_then(|at| linear.weights.get_mut(at));
                    *place.ok_or_else(|| refuse(format!("position {at} is outside its {length} weights")))? = weight;
                }
            } else if linear.bias_name.as_deref() == Some(delta.name.as_str()) {
                for &(at, value) in &delta.changes {
                    let length = linear.bias.len();
                    let place = usize::try_from(at).ok().and_then(|at| linear.bias.get_mut(at));
                    *place.ok_or_else(|| refuse(format!("position {at} is outside its {length} values")))? = value;
                }
            } else {
                continue;
            }
            is_known = true;
            touched.insert(position);
        }
        if !is_known {
            return Err(refuse("no step of the program has a constant of this name".to_owned()));
        }
    }
    Ok((changed, touched.into_iter().collect()))
}
