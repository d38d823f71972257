//! Which quantised tensors share a scale, once ranges are known.
//!
//! Concat is a pure move when all it joins has one scale. So its inputs and its output get one, the range being
//! the union, unless that would leave an input fewer than 4 bits (its range is less than 1/16 of the union): then
//! each keeps its own and Concat requantises.

use std::collections::BTreeMap;

use crate::calibrate::{Ranges, TensorRange, float_values};
use crate::error::QuantizeError;
use crate::graph::{Graph, output};
use crate::places::{Places, Role, data_inputs};
use crate::prepare::Prepared;
use crate::scale::Range;

/// A joined tensor keeps at least this part of the union's steps.
const LEAST_PART: f64 = 1.0 / 16.0;

/// The range of every quantised tensor.
pub(crate) struct Groups<'p> {
    places: &'p Places,
    parents: BTreeMap<String, String>,
    ranges: BTreeMap<String, TensorRange>,
}

/// The range of a constant's elements.
pub(crate) fn constant_range(graph: &Graph, name: &str) -> Option<Range> {
    let values = float_values(graph.constants.get(name)?);
    let low = values.iter().copied().fold(0.0, f32::min);
    Some(Range::new(low, values.iter().copied().fold(0.0, f32::max)))
}

impl<'p> Groups<'p> {
    pub(crate) fn new(prepared: &'p Prepared, given: &Ranges) -> Result<Self, QuantizeError> {
        let Prepared { graph, places, .. } = prepared;
        let mut ranges = BTreeMap::new();
        for name in &places.observed {
            let missing = || QuantizeError::NotCalibrated { tensor: name.clone() };
            let range = *given.tensors.get(name).ok_or_else(missing)?;
            for value in [range.range.low, range.range.high] {
                if !value.is_finite() {
                    return Err(QuantizeError::NotFinite { tensor: name.clone(), value });
                }
            }
            ranges.insert(name.clone(), range);
        }
        let mut groups = Self { places, parents: BTreeMap::new(), ranges };
        for (node, role) in graph.nodes.iter().zip(&places.roles) {
            if *role == Role::Concat && places.quantised.contains(output(node)) {
                let inputs = data_inputs(graph, node, *role);
                let constants = node.input.iter().filter_map(|name| constant_range(graph, name));
                groups.join(&inputs, constants, output(node));
            }
        }
        Ok(groups)
    }

    fn join(&mut self, inputs: &[&str], constants: impl Iterator<Item = Range>, output: &str) {
        let roots: Vec<String> = inputs.iter().map(|name| self.root(name).to_owned()).collect();
        let parts: Vec<TensorRange> = roots.iter().filter_map(|root| self.ranges.get(root).copied()).collect();
        let mut union = TensorRange::default();
        for part in &parts {
            union.range = union.range.union(part.range);
            union.seen = union.seen.union(part.seen);
            union.saturated = union.saturated.max(part.saturated);
        }
        union.range = constants.fold(union.range, Range::union);
        let narrowest = parts.iter().map(|part| part.range.width()).fold(f64::INFINITY, f64::min);
        self.ranges.insert(output.to_owned(), union);
        if narrowest >= union.range.width() * LEAST_PART {
            for root in roots.into_iter().filter(|root| root != output) {
                self.parents.insert(root, output.to_owned());
            }
        }
    }

    /// The tensor that names the scale of `name`.
    pub(crate) fn root<'a>(&'a self, name: &'a str) -> &'a str {
        let mut root = self.places.source(name);
        while let Some(parent) = self.parents.get(root) {
            root = parent;
        }
        root
    }

    /// The range of a quantised tensor.
    pub(crate) fn range(&self, name: &str) -> Result<TensorRange, QuantizeError> {
        let missing = || QuantizeError::NotCalibrated { tensor: name.to_owned() };
        self.ranges.get(self.root(name)).copied().ok_or_else(missing)
    }
}
