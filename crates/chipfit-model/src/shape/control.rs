//! If, Loop and Scan: types that flow into subgraphs and out of them.

use std::rc::Rc;

use super::value::{Element, Value};
use super::view::{join, tensor};
use super::walk::{Arguments, Walk};
use super::{Dim, TensorType};
use crate::build::is_op;
use crate::index::ScopeId;
use crate::proto::NodeProto;
use crate::tensor::DataType;

impl<'m> Walk<'_, 'm> {
    /// The outputs of a node that holds subgraphs. All of them are walked, whatever the operator.
    pub(super) fn control_flow(&mut self, scope: ScopeId, position: usize, node: &'m NodeProto) -> Arguments {
        let first = |graphs: Vec<ScopeId>| graphs.first().copied();
        let body = first(self.subgraphs(scope, position, "body"));
        if is_op(node, "If") {
            let then_branch = first(self.subgraphs(scope, position, "then_branch"));
            let else_branch = first(self.subgraphs(scope, position, "else_branch"));
            if let (Some(then_branch), Some(else_branch)) = (then_branch, else_branch) {
                return self.branch(scope, node, then_branch, else_branch);
            }
        } else if let Some(body) = body.filter(|_| is_op(node, "Loop")) {
            return self.iterate(scope, node, body);
        } else if let Some(body) = body.filter(|_| is_op(node, "Scan") && self.index.scopes[scope].opset >= 9) {
            return self.scan(scope, node, body).unwrap_or_default();
        }
        let attributes = node.attribute.iter().filter_map(|a| a.name.as_deref());
        let inner: Vec<ScopeId> = attributes.flat_map(|a| self.subgraphs(scope, position, a)).collect();
        for graph in inner {
            self.enter(graph, &Vec::new());
        }
        Vec::new()
    }

    fn branch(&mut self, scope: ScopeId, node: &'m NodeProto, yes: ScopeId, no: ScopeId) -> Arguments {
        self.enter(yes, &Vec::new());
        self.enter(no, &Vec::new());
        let condition = self.view(scope, node).value(0);
        let chosen = condition.and_then(|c| Some(if c.elements().first()?.int()? != 0 { yes } else { no }));
        if let Some(chosen) = chosen {
            return self.results(chosen);
        }
        let (yes, no) = (self.results(yes), self.results(no));
        let both = yes.into_iter().zip(no);
        both.map(|((a, value), (b, other))| (join(&a, &b), value.filter(|v| Some(v) == other.as_ref()))).collect()
    }

    fn iterate(&mut self, scope: ScopeId, node: &'m NodeProto, body: ScopeId) -> Arguments {
        let arguments = self.arguments(scope, node);
        let trips = arguments.first().and_then(|(_, trips)| trips.as_ref()?.elements().first()?.int());
        let condition = node.input.get(1).is_some_and(|name| !name.is_empty());
        let starts = arguments.get(1).and_then(|(_, value)| value.clone()).filter(|v| is_true(v));
        let carried: Vec<TensorType> = arguments.into_iter().skip(2).map(|(t, _)| t).collect();
        let scalar = |dtype| tensor(Some(dtype), Some(Vec::new()));
        let enter = |walk: &mut Self, carried: &[TensorType]| {
            let mut inner: Arguments = vec![(scalar(DataType::Int64), None), (scalar(DataType::Bool), starts.clone())];
            inner.extend(carried.iter().map(|t| (t.clone(), None)));
            walk.enter(body, &inner);
            walk.results(body)
        };
        let (carried, mut results) = self.invariant(body, carried, 1, enter);
        if results.is_empty() {
            return results;
        }
        // What decides whether to go on is no output of the node. It was walked as true, so by induction the loop
        // runs to its count where it comes out true.
        let (_, goes_on) = results.remove(0);
        let counted = !condition || (starts.is_some() && goes_on.is_some_and(|v| is_true(&v)));
        let length = trips.filter(|_| counted).and_then(|n| usize::try_from(n.max(0)).ok());
        let stacked = length.map_or(Dim::Unknown, Dim::Known);
        results
            .into_iter()
            .enumerate()
            .map(|(i, (t, _))| match carried.get(i) {
                // After no iteration at all it is what went in.
                Some(initial) => (join(initial, &t), None),
                None => (t.dims.map_or(tensor(t.dtype, None), |d| insert(t.dtype, d, 0, stacked.clone())), None),
            })
            .collect()
    }

    /// Walks a body with the carried types; where an iteration changes one, again with what stays true of it.
    /// The body's outputs are the carried ones after `skipped` others.
    fn invariant(
        &mut self,
        body: ScopeId,
        carried: Vec<TensorType>,
        skipped: usize,
        enter: impl Fn(&mut Self, &[TensorType]) -> Arguments,
    ) -> (Vec<TensorType>, Arguments) {
        let open = |t: &TensorType| tensor(t.dtype, None);
        if !self.can_repeat(body) {
            let carried: Vec<TensorType> = carried.iter().map(open).collect();
            let results = enter(self, &carried);
            return (carried, results);
        }
        let results = enter(self, &carried);
        let joined = |carried: &[TensorType], results: &Arguments| -> Vec<TensorType> {
            let one = |(i, t)| results.get(i + skipped).map_or_else(|| open(t), |(after, _)| join(t, after));
            carried.iter().enumerate().map(one).collect()
        };
        let kept = joined(&carried, &results);
        if kept == carried {
            return (carried, results);
        }
        // One that changes may change again each time, so the second walk must confirm what is kept.
        let results = enter(self, &kept);
        if joined(&kept, &results) == kept {
            return (kept, results);
        }
        let carried: Vec<TensorType> = carried.iter().map(open).collect();
        let results = enter(self, &carried);
        (carried, results)
    }

    fn scan(&mut self, scope: ScopeId, node: &'m NodeProto, body: ScopeId) -> Option<Arguments> {
        let view = self.view(scope, node);
        let scanned = usize::try_from(view.int("num_scan_inputs")?).ok()?;
        let states = node.input.len().checked_sub(scanned)?;
        let input_axes = view.ints("scan_input_axes").unwrap_or_default();
        let output_axes = view.ints("scan_output_axes").unwrap_or_default();
        let arguments: Vec<TensorType> = self.arguments(scope, node).into_iter().map(|(t, _)| t).collect();
        let (carried, slices) = arguments.split_at_checked(states)?;
        let mut steps = Dim::Unknown;
        let mut inner = Vec::new();
        for (i, t) in slices.iter().enumerate() {
            let dims = t.dims.clone().and_then(|mut dims| {
                let axis = super::view::axis_of(input_axes.get(i).copied().unwrap_or(0), dims.len())?;
                steps = super::view::unify(&steps, &dims.remove(axis));
                Some(dims)
            });
            inner.push(tensor(t.dtype, dims));
        }
        let enter = |walk: &mut Self, carried: &[TensorType]| {
            walk.enter(body, &carried.iter().chain(&inner).map(|t| (t.clone(), None)).collect());
            walk.results(body)
        };
        let (carried, results) = self.invariant(body, carried.to_vec(), 0, enter);
        let output = |(i, (t, _)): (usize, (TensorType, Option<Rc<Value>>))| match carried.get(i) {
            Some(initial) => (join(initial, &t), None),
            None => {
                let axis = output_axes.get(i - carried.len()).copied().unwrap_or(0);
                let dims = t.dims.and_then(|dims| {
                    let axis = super::view::axis_of(axis, dims.len().checked_add(1)?)?;
                    insert(t.dtype, dims, axis, steps.clone()).dims
                });
                (tensor(t.dtype, dims), None)
            }
        };
        Some(results.into_iter().enumerate().map(output).collect())
    }
}

/// The type with one more dimension at `axis`, which is at most the rank.
fn insert(dtype: Option<DataType>, mut dims: Vec<Dim>, axis: usize, dim: Dim) -> TensorType {
    dims.insert(axis.min(dims.len()), dim);
    tensor(dtype, Some(dims))
}

/// The value of an integer list.
pub(super) fn int_vector(ints: &[i64]) -> Option<Value> {
    Value::vector(ints.iter().map(|&n| Element::Int(n)).collect())
}

fn is_true(value: &Value) -> bool {
    matches!(value.elements(), [Element::Int(n)] if *n != 0)
}
