//! Test aid: damages the written model before the proof. Exists only with the cargo feature `sabotage`.
//!
//! The mutation test rewrites a model once with each [`Kind`]; a proof that lets one of them pass is worth nothing.
//! Only convolutions that the rewrite made are touched, in the main graph. Where a kind has nothing to work on,
//! that is an error, so that a mutant which was never made cannot pass for one that was caught.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use chipfit_model::build::{self, is_op};
use chipfit_model::proto::{GraphProto, ModelProto, NodeProto};
use chipfit_model::{ConstTensor, DataType};
use clap::ValueEnum;

/// `--sabotage`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// The taps of one convolution, one further along the last axis that has more than one
    Tap,
    /// Two phases change places
    Phase,
    /// One pad larger, the opposite one smaller
    Pad,
    /// One pad larger, nothing else
    PadAlone,
    /// What a Slice keeps, one further along
    Crop,
    /// A convolution's biases, one further
    Bias,
    /// A quantised weight's scales in reverse order
    Scales,
    /// Weights that are the zero point become 0
    ZeroTap,
}

/// Damages what the rewrite made of `original`.
pub(crate) fn damage(written: &mut ModelProto, original: &ModelProto, kind: Kind) -> Result<()> {
    let old: BTreeSet<&str> = original.graph.node.iter().flat_map(outputs_but_deconvolutions).collect();
    let graph = written.graph.as_option_mut().context("no graph")?;
    let is_new = |n: &NodeProto| n.output.first().is_some_and(|o| !old.contains(o.as_str()));
    let convolutions: Vec<usize> = positions(graph, |n| is_op(n, "Conv") && is_new(n));
    match kind {
        Kind::Tap => first(&convolutions, |at| change_weight(graph, at, shift_taps)),
        Kind::Phase => {
            let concats = positions(graph, |n| is_op(n, "Concat") && is_new(n));
            first(&concats, |at| swap_inputs(graph, at))
                .or_else(|_| first(&convolutions, |at| change_weight(graph, at, swap_filters)))
        }
        Kind::Pad => first(&convolutions, |at| change_pads(graph, at, true)),
        Kind::PadAlone => first(&convolutions, |at| change_pads(graph, at, false)),
        Kind::Crop => {
            let slices = positions(graph, |n| is_op(n, "Slice") && is_new(n));
            first(&slices, |at| {
                let (starts, ends) = (input_of(graph, at, 1)?.to_owned(), input_of(graph, at, 2)?.to_owned());
                change_constant(graph, &starts, one_more)?;
                // Where the end is open the slice gets shorter instead of moving.
                let _ = change_constant(graph, &ends, one_more);
                Some(())
            })
        }
        Kind::Bias => first(&convolutions, |at| {
            let name = input_of(graph, at, 2)?.to_owned();
            let name = dequantized(graph, &name, 0).unwrap_or(name);
            change_constant(graph, &name, rotate)
        }),
        Kind::Scales => first(&convolutions, |at| {
            let scales = dequantized(graph, input_of(graph, at, 1)?, 1)?;
            change_constant(graph, &scales, reverse)
        }),
        Kind::ZeroTap => first(&convolutions, |at| {
            let weight = input_of(graph, at, 1)?.to_owned();
            let zero_points = constant(graph, &dequantized(graph, &weight, 2)?)?;
            change_constant(graph, &dequantized(graph, &weight, 0)?, |w| zero_point_to_zero(w, &zero_points))
        }),
    }
    .with_context(|| format!("--sabotage {kind:?}: nothing in the model to damage"))
}

/// What `node` makes, but nothing for a transposed convolution: what makes its output later is new.
fn outputs_but_deconvolutions(node: &NodeProto) -> impl Iterator<Item = &str> {
    let kept = ["ConvTranspose", "QuantizeLinear"].iter().all(|op| !is_op(node, op));
    node.output.iter().map(String::as_str).filter(move |_| kept)
}

fn positions(graph: &GraphProto, wanted: impl Fn(&NodeProto) -> bool) -> Vec<usize> {
    graph.node.iter().enumerate().filter(|(_, n)| wanted(n)).map(|(at, _)| at).collect()
}

/// Tries `action` on each node until one can be damaged.
fn first(nodes: &[usize], mut action: impl FnMut(usize) -> Option<()>) -> Result<()> {
    match nodes.iter().any(|&at| action(at).is_some()) {
        true => Ok(()),
        false => bail!("no node fits"),
    }
}

fn input_of(graph: &GraphProto, node: usize, input: usize) -> Option<&str> {
    graph.node.get(node)?.input.get(input).map(String::as_str).filter(|name| !name.is_empty())
}

/// Input `input` of the DequantizeLinear that makes `name`.
fn dequantized(graph: &GraphProto, name: &str, input: usize) -> Option<String> {
    let node = graph.node.iter().find(|n| is_op(n, "DequantizeLinear") && n.output.iter().any(|o| o == name))?;
    node.input.get(input).cloned()
}

fn constant(graph: &GraphProto, name: &str) -> Option<ConstTensor> {
    let tensor = graph.initializer.iter().find(|t| t.name.as_deref() == Some(name))?;
    ConstTensor::from_proto(tensor, None).ok()
}

/// Replaces the data of the initializer `name`; `None` where `change` finds nothing to do.
fn change_constant(graph: &mut GraphProto, name: &str, change: impl Fn(&ConstTensor) -> Option<Vec<u8>>) -> Option<()> {
    let before = constant(graph, name)?;
    let after = Bytes::from(change(&before)?);
    if after == *before.bytes() {
        return None;
    }
    let damaged = ConstTensor::new(before.dtype(), before.dims().to_vec(), after)?.to_proto(name);
    let slot = graph.initializer.iter_mut().find(|t| t.name.as_deref() == Some(name))?;
    *slot = damaged;
    Some(())
}

fn change_weight(graph: &mut GraphProto, node: usize, change: impl Fn(&ConstTensor) -> Option<Vec<u8>>) -> Option<()> {
    let name = input_of(graph, node, 1)?.to_owned();
    let name = dequantized(graph, &name, 0).unwrap_or(name);
    change_constant(graph, &name, change)
}

/// Each tap takes the place of the next along the last axis with more than one.
fn shift_taps(weight: &ConstTensor) -> Option<Vec<u8>> {
    let axis = (2..weight.dims().len()).rev().find(|&a| weight.dims().get(a).is_some_and(|&k| k > 1))?;
    let inner: usize = weight.dims().iter().skip(axis + 1).product::<usize>() * weight.dtype().bytes()?;
    let length = weight.dims().get(axis)? * inner;
    let mut bytes = weight.bytes().to_vec();
    bytes.chunks_exact_mut(length).for_each(|line| line.rotate_right(inner));
    Some(bytes)
}

/// The first and the second half of the filters change places (the first and the last one where they are odd).
fn swap_filters(weight: &ConstTensor) -> Option<Vec<u8>> {
    let n_filters = *weight.dims().first().filter(|&&n| n > 1)?;
    let filter = weight.bytes().len() / n_filters;
    let mut bytes = weight.bytes().to_vec();
    if n_filters % 2 == 0 {
        let (a, b) = bytes.split_at_mut(filter * n_filters / 2);
        a.swap_with_slice(b);
    } else {
        let (a, b) = bytes.split_at_mut(filter * (n_filters - 1));
        a.get_mut(..filter)?.swap_with_slice(b);
    }
    Some(bytes)
}

fn rotate(values: &ConstTensor) -> Option<Vec<u8>> {
    let mut bytes = values.bytes().to_vec();
    let step = values.dtype().bytes().filter(|&step| bytes.len() > step)?;
    bytes.rotate_right(step);
    Some(bytes)
}

/// Each int64 one larger, the largest possible excepted.
fn one_more(values: &ConstTensor) -> Option<Vec<u8>> {
    let integers = values.to_i64_vec().filter(|_| values.dtype() == DataType::Int64)?;
    Some(integers.into_iter().flat_map(|v| v.saturating_add(1).to_le_bytes()).collect())
}

fn reverse(values: &ConstTensor) -> Option<Vec<u8>> {
    let step = values.dtype().bytes()?;
    Some(values.bytes().chunks_exact(step).rev().flatten().copied().collect())
}

/// For one zero point or one per filter, none of them 0 already.
fn zero_point_to_zero(weight: &ConstTensor, zero_points: &ConstTensor) -> Option<Vec<u8>> {
    if !matches!(weight.dtype(), DataType::Uint8 | DataType::Int8) || zero_points.is_empty() {
        return None;
    }
    let filter = weight.len() / *weight.dims().first().filter(|&&n| n > 0)?;
    let mut bytes = weight.bytes().to_vec();
    for (at, line) in bytes.chunks_exact_mut(filter.max(1)).enumerate() {
        let zero_point = *zero_points.bytes().get(at % zero_points.len())?;
        line.iter_mut().filter(|w| **w == zero_point).for_each(|w| *w = 0);
    }
    Some(bytes)
}

fn swap_inputs(graph: &mut GraphProto, node: usize) -> Option<()> {
    let inputs = &mut graph.node.get_mut(node)?.input;
    let other = inputs.iter().position(|name| Some(name) != inputs.first())?;
    inputs.swap(0, other);
    Some(())
}

/// Moves a pad from one side of an axis to the other, or adds one to a side.
fn change_pads(graph: &mut GraphProto, node: usize, compensate: bool) -> Option<()> {
    let node = graph.node.get_mut(node)?;
    let mut pads = build::get_is(node, "pads")?.to_vec();
    let n_axes = pads.len() / 2;
    if compensate {
        let (from, to) = (0..n_axes)
            .flat_map(|a| [(a, a + n_axes), (a + n_axes, a)])
            .find(|&(from, _)| pads.get(from) > Some(&0))?;
        *pads.get_mut(from)? -= 1;
        *pads.get_mut(to)? += 1;
    } else {
        *pads.first_mut()? += 1;
    }
    node.attribute.retain(|a| a.name.as_deref() != Some("pads"));
    node.attribute.push(build::attr_is("pads", &pads));
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weight(dims: &[usize]) -> ConstTensor {
        let n: u8 = dims.iter().product::<usize>().try_into().unwrap();
        ConstTensor::new(DataType::Uint8, dims.to_vec(), (0..n).collect::<Vec<u8>>()).unwrap()
    }

    #[test]
    fn every_change_changes_something() {
        assert_eq!(shift_taps(&weight(&[1, 1, 2, 3])).unwrap(), [2, 0, 1, 5, 3, 4]);
        assert_eq!(shift_taps(&weight(&[1, 1, 3, 1])).unwrap(), [2, 0, 1]);
        assert!(shift_taps(&weight(&[4, 4, 1, 1])).is_none());
        assert_eq!(swap_filters(&weight(&[4, 1, 1, 1])).unwrap(), [2, 3, 0, 1]);
        assert_eq!(swap_filters(&weight(&[3, 2, 1])).unwrap(), [4, 5, 2, 3, 0, 1]);
        assert_eq!(reverse(&weight(&[3])).unwrap(), [2, 1, 0]);
        let points = ConstTensor::new(DataType::Uint8, vec![2], vec![1, 3]).unwrap();
        assert_eq!(zero_point_to_zero(&weight(&[2, 2]), &points).unwrap(), [0, 0, 2, 0]);
    }
}
