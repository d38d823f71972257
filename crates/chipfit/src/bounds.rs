//! Bounds on what a whole model may ask for before an engine runs it: engines bound nothing themselves.

use std::collections::BTreeMap;

use chipfit_model::summary::summarize;
use chipfit_model::{Index, Model, shape};
use chipfit_run::random;

/// Longest value that is run: a machine for tests holds a few of them.
const MAX_VALUE_BYTES: usize = 2 << 30;
/// Most multiply-accumulates of a run that nobody asked for: well under a minute in the embedded engine.
pub(crate) const MAX_UNASKED_MACS: u64 = 1_000_000_000_000;

/// Why `model` on inputs of these shapes (the free ones as [`random`] fills them) is not run; `None`: it may be.
/// A value whose shape is not known passes: it can be as long as the model's own constants make it.
pub(crate) fn objection(model: &Model, inputs: &BTreeMap<String, Vec<usize>>, max_macs: Option<u64>) -> Option<String> {
    let settled = random::input_shapes(model, inputs).ok()?;
    let dims = settled.into_iter().map(|s| (s.name, s.dims)).collect();
    let index = Index::new(model);
    let shapes = shape::infer(&index, &dims).ok()?;
    let summary = summarize(&index, &shapes);
    for value in summary.nodes.iter().flat_map(|n| &n.outputs) {
        let Some((dtype, dims)) = value.tensor.dtype.zip(value.tensor.known_dims()) else { continue };
        let elements = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        if elements.and_then(|n| dtype.total_bytes(n)).is_none_or(|bytes| bytes > MAX_VALUE_BYTES) {
            return Some(format!("value '{}' is {}, more than {MAX_VALUE_BYTES} bytes", value.name, value.tensor));
        }
    }
    max_macs.filter(|&limit| summary.macs > limit).map(|limit| {
        format!(
            "it takes {} multiply-accumulates, more than {limit}; chipfit compare runs it all the same",
            summary.macs
        )
    })
}
