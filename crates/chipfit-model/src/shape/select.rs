//! Operators that pick or reduce elements: Slice, Split, Gather, reductions, and sizes that depend on values.

use super::value::Element;
use super::view::{Dims, Listed, View, axis_of, length, signed, tensor, unknown_dims};
use super::{Dim, TensorType};
use crate::tensor::DataType;

/// One axis of a Slice, resolved against its length.
pub(super) struct Range {
    pub(super) start: i64,
    pub(super) step: i64,
    pub(super) count: usize,
}

/// What a Slice asks of one axis, as far as it is known.
pub(super) struct AxisSlice {
    pub(super) axis: usize,
    pub(super) start: Option<i64>,
    pub(super) end: Option<i64>,
    pub(super) step: Option<i64>,
}

/// What a Slice of an input of `rank` asks of each axis it names.
pub(super) fn slice_spec(view: &View, rank: usize) -> Option<Vec<AxisSlice>> {
    let read = |name: &str, input: usize| -> Option<Option<Vec<Option<i64>>>> {
        match view.ints(name) {
            Some(ints) => Some(Some(ints.iter().map(|&n| Some(n)).collect())),
            None if view.has(input) => Some(view.input_elements(input).map(|e| e.iter().map(Element::int).collect())),
            None => None,
        }
    };
    let axes = match read("axes", 3) {
        None => None,
        Some(None) => return None,
        Some(Some(axes)) => Some(axes),
    };
    let starts = read("starts", 1)?;
    let ends = read("ends", 2)?;
    let count = axes.as_ref().or(starts.as_ref()).or(ends.as_ref())?.len();
    let axes: Vec<usize> = match axes {
        Some(axes) => axes.into_iter().map(|a| axis_of(a?, rank)).collect::<Option<_>>()?,
        None => (0..count).collect(),
    };
    let steps = match view.has(4).then(|| view.input_ints(4)) {
        None => vec![Some(1); count],
        Some(steps) => steps.unwrap_or_else(|| vec![None; count]),
    };
    let at = |list: &Option<Vec<Option<i64>>>, i: usize| list.as_ref().and_then(|l| l.get(i).copied()).flatten();
    let spec =
        |(i, axis)| AxisSlice { axis, start: at(&starts, i), end: at(&ends, i), step: steps.get(i).copied().flatten() };
    Some(axes.into_iter().enumerate().map(spec).collect())
}

/// Clamps a slice of an axis of length `n` as the definition does.
pub(super) fn resolve_slice(n: i64, start: i64, end: i64, step: i64) -> Option<Range> {
    let from_end = |i: i64| if i < 0 { i.saturating_add(n) } else { i };
    let (start, end) = (from_end(start), from_end(end));
    let (start, count) = match step {
        0 => return None,
        _ if n == 0 => (0, 0),
        1.. => {
            let start = start.clamp(0, n);
            let end = end.clamp(0, n);
            (start, if end > start { (end - start - 1) / step + 1 } else { 0 })
        }
        _ => {
            let start = start.clamp(0, (n - 1).max(0));
            let end = end.clamp(-1, n - 1);
            let back = step.checked_neg().unwrap_or(i64::MAX);
            (start, if start > end { (start - end - 1) / back + 1 } else { 0 })
        }
    };
    Some(Range { start, step, count: usize::try_from(count).ok()? })
}

/// Shape of Slice.
pub(super) fn slice(view: &View) -> Option<Dims> {
    let x = view.dims(0)?;
    let Some(spec) = slice_spec(view, x.len()) else { return unknown_dims(x.len()) };
    let mut out = x.to_vec();
    for AxisSlice { axis, start, end, step } in spec {
        let dim = out.get_mut(axis)?;
        let whole = start == Some(0) && step == Some(1) && end.is_some_and(|e| e >= i64::from(i32::MAX));
        if whole {
            continue;
        }
        *dim = match (signed(dim), start, end, step) {
            (Some(n), Some(start), Some(end), Some(step)) => {
                resolve_slice(n, start, end, step).map_or(Dim::Unknown, |r| Dim::Known(r.count))
            }
            _ => Dim::Unknown,
        };
    }
    Some(out)
}

/// The lengths of the parts of a Split along `axis`.
pub(super) fn split_parts(view: &View, dim: &Dim) -> Vec<Dim> {
    let outputs = view.node.output.len();
    match view.listed("split", 1) {
        Listed::Known(parts) if parts.len() == outputs => parts.into_iter().map(|n| length(Some(n))).collect(),
        Listed::Absent => {
            let parts = view.int("num_outputs").and_then(|n| usize::try_from(n).ok()).unwrap_or(outputs);
            let Some(n) = dim.known().filter(|_| parts > 0 && parts >= outputs) else {
                return vec![Dim::Unknown; outputs];
            };
            let part = n.div_ceil(parts);
            let rest = |i: usize| n.saturating_sub(part.saturating_mul(i)).min(part);
            (0..outputs).map(|i| Dim::Known(rest(i))).collect()
        }
        _ => vec![Dim::Unknown; outputs],
    }
}

/// Types of the outputs of Split.
pub(super) fn split(view: &View) -> Option<Vec<TensorType>> {
    let dtype = view.dtype(0);
    let Some(x) = view.dims(0) else { return Some(vec![tensor(dtype, None); view.node.output.len()]) };
    let axis = axis_of(view.int_or("axis", 0), x.len())?;
    let parts = split_parts(view, x.get(axis)?);
    let typed = |part: Dim| {
        let mut dims = x.to_vec();
        *dims.get_mut(axis)? = part;
        Some(tensor(dtype, Some(dims)))
    };
    parts.into_iter().map(typed).collect()
}

/// Shape of Gather.
pub(super) fn gather(view: &View) -> Option<Dims> {
    let (x, indices) = (view.dims(0)?, view.dims(1)?);
    let axis = axis_of(view.int_or("axis", 0), x.len())?;
    let (before, after) = x.split_at_checked(axis)?;
    Some(before.iter().chain(indices).chain(after.get(1..)?).cloned().collect())
}

/// Shape of GatherND.
pub(super) fn gather_nd(view: &View) -> Option<Dims> {
    let (x, indices) = (view.dims(0)?, view.dims(1)?);
    let batch = usize::try_from(view.int_or("batch_dims", 0)).ok()?;
    let (depth, lead) = indices.split_last()?;
    let kept = x.get(batch.checked_add(depth.known()?)?..)?;
    Some(lead.iter().chain(kept).cloned().collect())
}

/// Shape of a reduction whose axes are an attribute, or input 1 in newer versions.
pub(super) fn reduce(view: &View) -> Option<Dims> {
    let keep = view.int_or("keepdims", 1) != 0;
    let Some(x) = view.dims(0) else {
        // Reducing everything needs no shape.
        let all = matches!(view.listed("axes", 1), Listed::Absent) && view.int_or("noop_with_empty_axes", 0) == 0;
        return (all && !keep).then(Vec::new);
    };
    let axes: Vec<usize> = match view.listed("axes", 1) {
        Listed::Unknown => {
            let reduced = view.vector_length(1)?;
            return unknown_dims(if keep { x.len() } else { x.len().checked_sub(reduced)? });
        }
        Listed::Known(axes) if !axes.is_empty() => axes.iter().map(|&a| axis_of(a, x.len())).collect::<Option<_>>()?,
        _ if view.int_or("noop_with_empty_axes", 0) != 0 => return Some(x.to_vec()),
        _ => (0..x.len()).collect(),
    };
    Some(without(x, &axes, keep))
}

/// Shape of ArgMax and ArgMin.
pub(super) fn arg_reduce(view: &View) -> Option<Dims> {
    let x = view.dims(0)?;
    let axis = axis_of(view.int_or("axis", 0), x.len())?;
    Some(without(x, &[axis], view.int_or("keepdims", 1) != 0))
}

fn without(x: &[Dim], axes: &[usize], keep: bool) -> Dims {
    let reduced = |(i, d): (usize, &Dim)| match axes.contains(&i) {
        false => Some(d.clone()),
        true => keep.then_some(Dim::Known(1)),
    };
    x.iter().enumerate().filter_map(reduced).collect()
}

/// Shape of both outputs of TopK.
pub(super) fn top_k(view: &View) -> Option<Dims> {
    let mut dims = view.dims(0)?.to_vec();
    let axis = axis_of(view.int_or("axis", -1), dims.len())?;
    let k = match view.int("k") {
        Some(k) => length(Some(k)),
        None => view.value(1).and_then(|v| v.elements().first().map(Element::dim)).unwrap_or(Dim::Unknown),
    };
    *dims.get_mut(axis)? = k;
    Some(dims)
}

/// Shape of OneHot.
pub(super) fn one_hot(view: &View) -> Option<Dims> {
    let mut dims = view.dims(0)?.to_vec();
    let rank = dims.len().checked_add(1)?;
    let axis = axis_of(view.int_or("axis", -1), rank)?;
    let depth = view.value(1).and_then(|v| v.elements().first()?.float()).filter(|d| (0.0..1e15).contains(d));
    dims.insert(axis, length(depth.map(|d| d as i64)));
    Some(dims)
}

/// Number of elements of a Range: max(ceil((limit - start) / delta), 0).
pub(super) fn range_length(view: &View) -> Dim {
    let number = |i| view.value(i).and_then(|v| v.elements().first()?.float());
    let ints = |i| view.value(i).and_then(|v| v.elements().first()?.int());
    if let (Some(start), Some(limit), Some(delta)) = (ints(0), ints(1), ints(2)) {
        let span = i128::from(limit) - i128::from(start);
        if delta == 0 {
            return Dim::Unknown;
        }
        let delta = i128::from(delta);
        let count = (span / delta + i128::from(span % delta != 0 && (span < 0) == (delta < 0))).max(0);
        return usize::try_from(count).map_or(Dim::Unknown, Dim::Known);
    }
    // From zero in steps of one to a named length.
    if ints(0) == Some(0)
        && ints(2) == Some(1)
        && let Some(limit) = view.value(1)
    {
        return limit.elements().first().map_or(Dim::Unknown, Element::dim);
    }
    let (Some(start), Some(limit), Some(delta)) = (number(0), number(1), number(2)) else { return Dim::Unknown };
    let count = ((limit - start) / delta).ceil().max(0.0);
    if count < 1e15 { Dim::Known(count as usize) } else { Dim::Unknown }
}

/// Shape of NonZero: rank by number of non-zero elements.
pub(super) fn non_zero(view: &View) -> Option<Dims> {
    let rank = view.dims(0).map_or(Dim::Unknown, |d| Dim::Known(d.len().max(1)));
    let count = view.value(0).and_then(|v| v.floats()).map(|v| v.iter().filter(|x| **x != 0.0).count());
    Some(vec![rank, count.map_or(Dim::Unknown, Dim::Known)])
}

/// Shape of Compress.
pub(super) fn compress(view: &View) -> Option<Dims> {
    let kept = view.value(1).and_then(|v| v.floats()).map(|v| v.iter().filter(|x| **x != 0.0).count());
    let kept = kept.map_or(Dim::Unknown, Dim::Known);
    let Some(axis) = view.int("axis") else { return Some(vec![kept]) };
    let mut dims = view.dims(0)?.to_vec();
    let axis = axis_of(axis, dims.len())?;
    *dims.get_mut(axis)? = kept;
    Some(dims)
}

/// Types of Unique.
pub(super) fn unique(view: &View) -> Option<Vec<TensorType>> {
    let dims = match view.int("axis") {
        None => Some(vec![Dim::Unknown]),
        Some(axis) => view.dims(0).and_then(|x| {
            let mut dims = x.to_vec();
            *dims.get_mut(axis_of(axis, x.len())?)? = Dim::Unknown;
            Some(dims)
        }),
    };
    let counts = tensor(Some(DataType::Int64), Some(vec![Dim::Unknown]));
    Some(vec![tensor(view.dtype(0), dims), counts.clone(), counts.clone(), counts])
}
