//! Narrower ranges of activations: a struck accumulator saturates its output, so the end of the range is the size of
//! the error. Values beyond a small share are cut off instead.
//!
//! Tensors that share a grid (a scale in the file, or a step that copies bytes) share the new scale. The input's and the
//! output's grids stay. A zero point stays, so that real 0 stays exact and both ends come nearer alike.

use std::collections::BTreeMap;

use chipfit_model::{Index, Model, Use};
use chipfit_npu::{Op, Program, TensorId, Trace};

use crate::error::TrainError;

/// No range becomes narrower than this share of what it was.
const LEAST: f32 = 0.05;

/// New scales of activations.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Narrowed {
    /// Scale initializers and their new values.
    pub initializers: Vec<(String, f32)>,
    /// New scales of every tensor of the program.
    pub scales: Vec<f32>,
}

/// Scales with which a share of at most `share` of the values seen at either end of each range is cut off.
///
/// `trace` holds the bytes of every tensor of a fault-free pass.
///
/// # Errors
/// [`TrainError::Export`] when the model lacks the scale of a tensor.
pub(crate) fn narrowed(model: &Model, program: &Program, trace: &Trace, share: f64) -> Result<Narrowed, TrainError> {
    let mut names = Vec::with_capacity(program.tensors().len());
    for tensor in program.tensors() {
        names.push(if tensor.is_internal() { Vec::new() } else { scale_names(model, &tensor.name)? });
    }
    let group = groups(program, &names);
    let mut factors: BTreeMap<usize, f32> = BTreeMap::new();
    let fixed = [group[program.input().0], group[program.output().0]];
    for (id, tensor) in program.tensors().iter().enumerate() {
        let bytes = match trace.tensors.get(&TensorId(id)) {
            Some(bytes) if !fixed.contains(&group[id]) => bytes,
            _ => continue,
        };
        let needed = needed(bytes, tensor.zero_point, share).max(LEAST);
        let factor = factors.entry(group[id]).or_insert(LEAST);
        *factor = factor.max(needed);
    }
    let mut result = Narrowed::default();
    let mut initializers = BTreeMap::new();
    for (id, tensor) in program.tensors().iter().enumerate() {
        let scale = tensor.scale * factors.get(&group[id]).copied().unwrap_or(1.0);
        result.scales.push(scale);
        if scale != tensor.scale {
            initializers.extend(names[id].iter().map(|name| (name.clone(), scale)));
        }
    }
    result.initializers = initializers.into_iter().collect();
    Ok(result)
}

/// Share of the range, 0 to 1, that all but a share of the values at each end need.
fn needed(bytes: &[u8], zero_point: u8, share: f64) -> f32 {
    let mut counts = [0u64; 256];
    bytes.iter().for_each(|&byte| counts[usize::from(byte)] += 1);
    let allowed = share * bytes.len() as f64;
    // The outermost byte that more than the allowed number of values reach, from one end inwards.
    let reach = |inwards: &mut dyn Iterator<Item = usize>| {
        let mut beyond = 0u64;
        for byte in inwards {
            beyond += counts[byte];
            if beyond as f64 > allowed {
                return byte;
            }
        }
        usize::from(zero_point)
    };
    let zero = usize::from(zero_point);
    let above = reach(&mut (zero..256).rev()).saturating_sub(zero) as f32 / (255 - zero).max(1) as f32;
    let below = zero.saturating_sub(reach(&mut (0..=zero))) as f32 / zero.max(1) as f32;
    above.max(below).min(1.0)
}

/// The group of every tensor: a number that tensors on one grid share.
fn groups(program: &Program, names: &[Vec<String>]) -> Vec<usize> {
    let mut group: Vec<usize> = (0..program.tensors().len()).collect();
    let join = |group: &mut Vec<usize>, a: usize, b: usize| {
        let (from, to) = (group[a], group[b]);
        group.iter_mut().filter(|own| **own == from).for_each(|own| *own = to);
    };
    let mut first: BTreeMap<&str, usize> = BTreeMap::new();
    for (id, names) in names.iter().enumerate() {
        for name in names {
            let other = *first.entry(name.as_str()).or_insert(id);
            join(&mut group, id, other);
        }
    }
    for step in program.steps() {
        let copies: Vec<bool> = match &step.op {
            Op::Move { .. } | Op::MaxPool(_) => vec![true; step.inputs.len()],
            Op::Concat { tables, .. } => tables.iter().map(Option::is_none).collect(),
            _ => continue,
        };
        for (id, _) in step.inputs.iter().zip(copies).filter(|(_, copies)| *copies) {
            join(&mut group, id.0, step.output.0);
        }
    }
    // A tensor between two steps of one node has no scale in the file: it keeps its own.
    for (id, tensor) in program.tensors().iter().enumerate() {
        let own = group[id];
        let has_name = (0..names.len()).any(|other| group[other] == own && !names[other].is_empty());
        if tensor.is_internal() && !has_name {
            join(&mut group, id, program.input().0);
        }
    }
    group
}

/// Initializers that hold the scale of the integer tensor `name`: of the node that makes it, and of those that read it.
fn scale_names(model: &Model, name: &str) -> Result<Vec<String>, TrainError> {
    let index = Index::new(model);
    let wrong = |what: &str| TrainError::Export { name: name.to_owned(), what: what.to_owned() };
    let scope = index.scopes.first().ok_or_else(|| wrong("the model has no graph"))?;
    let is_either = |op: Option<&str>| matches!(op, Some("QuantizeLinear" | "DequantizeLinear"));
    let maker = index.producer_node(0, name).map(|(_, _, node)| node);
    let readers = scope.uses(name).iter().filter_map(|used| match *used {
        Use::Node { scope: 0, node, input: 0 } => scope.nodes.get(node),
        _ => None,
    });
    let nodes = maker.into_iter().chain(readers).filter(|node| is_either(node.op_type.as_deref()));
    let mut names: Vec<String> = nodes.filter_map(|node| node.input.get(1).cloned()).collect();
    names.sort();
    names.dedup();
    if names.is_empty() {
        return Err(wrong("no node of the model quantises it"));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_beyond_the_new_range_is_what_was_allowed() {
        let mut bytes = vec![10u8; 990];
        bytes.extend([50u8; 9]);
        bytes.push(200);
        assert_eq!(needed(&bytes, 0, 0.0), 200.0 / 255.0);
        assert_eq!(needed(&bytes, 0, 0.001), 50.0 / 255.0);
        assert_eq!(needed(&bytes, 0, 0.01), 10.0 / 255.0);
        // Both sides of a zero point: 100 steps up of 155, 90 down of 100.
        assert_eq!(needed(&bytes, 100, 0.0), 0.9);
        assert_eq!(needed(&[100; 5], 100, 0.0), 0.0);
    }
}
