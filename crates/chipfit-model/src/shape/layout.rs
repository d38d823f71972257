//! Operators that move elements about and change no value: Reshape, Transpose, Concat, Pad and their kin.

use super::Dim;
use super::value::Element;
use super::view::{Dims, Listed, View, axis_of, broadcast, length, product, signed, unify, unknown_dims};

/// Shape of Reshape.
pub(super) fn reshape(view: &View) -> Option<Dims> {
    let target: Vec<Element> = match view.ints("shape") {
        Some(ints) => ints.iter().map(|&n| Element::Int(n)).collect(),
        None => match view.input_elements(1) {
            Some(elements) => elements,
            None => return unknown_dims(view.vector_length(1)?),
        },
    };
    unknown_dims(target.len())?;
    let input = view.dims(0);
    let zero_copies = view.int_or("allowzero", 0) == 0;
    // Lengths that stand on both sides cancel, known or not; what is left decides an open entry.
    let mut left: Option<Vec<Option<Dim>>> = input.map(|dims| dims.iter().cloned().map(Some).collect());
    let mut known = Some(1usize);
    let mut dims = Vec::with_capacity(target.len());
    let mut open = Vec::new();
    for (i, entry) in target.iter().enumerate() {
        let dim = match entry {
            Element::Int(0) if zero_copies => {
                if let Some(dim) = left.as_mut().and_then(|left| left.get_mut(i)).and_then(Option::take) {
                    dims.push(dim);
                    continue;
                }
                // Cancelled by a name before, or no such axis.
                let dim = input.and_then(|dims| dims.get(i)).cloned().unwrap_or(Dim::Unknown);
                left = None;
                dims.push(dim);
                continue;
            }
            other => other.dim(),
        };
        match &dim {
            Dim::Known(n) => known = known.and_then(|k| k.checked_mul(*n)),
            Dim::Named(_) => {
                let same = left.as_mut().and_then(|left| left.iter_mut().find(|d| d.as_ref() == Some(&dim)));
                match same {
                    Some(entry) => *entry = None,
                    None => left = None,
                }
            }
            Dim::Unknown => open.push(i),
        }
        dims.push(dim);
    }
    if let (&[open], Some(left), Some(known)) = (open.as_slice(), left, known) {
        let (fixed, rest): (Dims, Dims) = left.into_iter().flatten().partition(|d| d.known().is_some());
        let solved = match (product(&fixed).known(), rest.as_slice()) {
            (Some(total), []) if known > 0 && total % known == 0 => Dim::Known(total / known),
            (Some(total), [dim]) if total == known && known > 0 => dim.clone(),
            _ => Dim::Unknown,
        };
        if let Some(dim) = dims.get_mut(open) {
            *dim = solved;
        }
    }
    Some(dims)
}

/// Shape of Flatten.
pub(super) fn flatten(view: &View) -> Option<Dims> {
    let Some(x) = view.dims(0) else { return unknown_dims(2) };
    let axis = view.int_or("axis", 1);
    let axis = if axis == i64::try_from(x.len()).ok()? { x.len() } else { axis_of(axis, x.len())? };
    let (before, after) = x.split_at_checked(axis)?;
    Some(vec![product(before), product(after)])
}

/// Shape of Squeeze.
pub(super) fn squeeze(view: &View) -> Option<Dims> {
    let x = view.dims(0)?;
    match view.listed("axes", 1) {
        Listed::Absent => {
            // Which axes go is only known where every length is.
            let all_known = x.iter().all(|d| d.known().is_some());
            all_known.then(|| x.iter().filter(|d| **d != Dim::Known(1)).cloned().collect())
        }
        Listed::Unknown => unknown_dims(x.len().checked_sub(view.vector_length(1)?)?),
        Listed::Known(axes) => {
            let axes: Vec<usize> = axes.iter().map(|&a| axis_of(a, x.len())).collect::<Option<_>>()?;
            Some(x.iter().enumerate().filter(|(i, _)| !axes.contains(i)).map(|(_, d)| d.clone()).collect())
        }
    }
}

/// Shape of Unsqueeze.
pub(super) fn unsqueeze(view: &View) -> Option<Dims> {
    let x = view.dims(0)?;
    match view.listed("axes", 1) {
        Listed::Absent => None,
        Listed::Unknown => unknown_dims(x.len().checked_add(view.vector_length(1)?)?),
        Listed::Known(axes) => {
            let rank = x.len().checked_add(axes.len())?;
            unknown_dims(rank)?;
            let axes: Vec<usize> = axes.iter().map(|&a| axis_of(a, rank)).collect::<Option<_>>()?;
            let mut rest = x.iter().cloned();
            let one = |i| if axes.contains(&i) { Some(Dim::Known(1)) } else { rest.next() };
            (0..rank).map(one).collect()
        }
    }
}

/// The order of axes of a Transpose of an input of `rank`.
pub(super) fn permutation(view: &View, rank: usize) -> Option<Vec<usize>> {
    match view.ints("perm") {
        None | Some([]) => Some((0..rank).rev().collect()),
        Some(perm) if perm.len() == rank => perm.iter().map(|&a| axis_of(a, rank)).collect(),
        Some(_) => None,
    }
}

/// Shape of Transpose.
pub(super) fn transpose(view: &View) -> Option<Dims> {
    let Some(x) = view.dims(0) else { return unknown_dims(view.ints("perm")?.len()) };
    permutation(view, x.len())?.iter().map(|&a| x.get(a).cloned()).collect()
}

/// The axis of a Concat; the first version had a default.
pub(super) fn concat_axis(view: &View, rank: usize) -> Option<usize> {
    axis_of(view.int("axis").or((view.opset < 4).then_some(1))?, rank)
}

/// Shape of Concat.
pub(super) fn concat(view: &View) -> Option<Dims> {
    let rank = (0..view.inputs()).find_map(|i| view.dims(i))?.len();
    let axis = concat_axis(view, rank)?;
    let mut out = unknown_dims(rank)?;
    let mut total = Some(0usize);
    for i in 0..view.inputs() {
        let Some(dims) = view.dims(i) else {
            total = None;
            continue;
        };
        if dims.len() != rank {
            return None;
        }
        for (out, dim) in out.iter_mut().zip(dims) {
            *out = unify(out, dim);
        }
        total = total.zip(dims.get(axis).and_then(Dim::known)).and_then(|(a, b)| a.checked_add(b));
    }
    let alone = view.inputs() == 1;
    if let Some(dim) = out.get_mut(axis).filter(|_| !alone) {
        *dim = length(total.and_then(|n| i64::try_from(n).ok()));
    }
    Some(out)
}

/// Shape of Pad.
pub(super) fn pad(view: &View) -> Option<Dims> {
    let x = view.dims(0)?;
    let name = if view.opset < 2 { "paddings" } else { "pads" };
    let pads: Vec<Option<i64>> = match view.ints(name) {
        Some(ints) => ints.iter().map(|&n| Some(n)).collect(),
        None => match view.input_elements(1) {
            Some(elements) => elements.iter().map(Element::int).collect(),
            None => return unknown_dims(x.len()),
        },
    };
    let axes: Vec<usize> = match view.has(3).then(|| view.input_ints(3)) {
        None => (0..x.len()).collect(),
        Some(Some(axes)) => axes.into_iter().map(|a| axis_of(a?, x.len())).collect::<Option<_>>()?,
        Some(None) => return unknown_dims(x.len()),
    };
    if pads.len() != axes.len().checked_mul(2)? {
        return None;
    }
    let mut out = x.to_vec();
    for (i, &axis) in axes.iter().enumerate() {
        let pad = pads.get(i).copied().flatten().zip(pads.get(i + axes.len()).copied().flatten());
        let pad = pad.and_then(|(begin, end)| begin.checked_add(end));
        let dim = out.get_mut(axis)?;
        if pad != Some(0) {
            *dim = length(signed(dim).zip(pad).and_then(|(n, pad)| n.checked_add(pad)));
        }
    }
    Some(out)
}

/// Shape of Expand.
pub(super) fn expand(view: &View) -> Option<Dims> {
    let x = view.dims(0)?;
    match view.input_elements(1) {
        Some(shape) => {
            unknown_dims(shape.len())?;
            Some(broadcast(x, &shape.iter().map(Element::dim).collect::<Dims>()))
        }
        None => unknown_dims(view.vector_length(1)?.max(x.len())),
    }
}

/// Shape of Tile.
pub(super) fn tile(view: &View) -> Option<Dims> {
    let x = view.dims(0)?;
    let times = |dim: &Dim, n: Option<i64>| match n {
        Some(1) => dim.clone(),
        n => length(signed(dim).zip(n).and_then(|(d, n)| d.checked_mul(n))),
    };
    if view.opset < 6 {
        let mut out = x.to_vec();
        let axis = axis_of(view.input_int(2)?, x.len())?;
        let dim = out.get_mut(axis)?;
        *dim = times(dim, view.input_int(1));
        return Some(out);
    }
    match view.input_elements(1) {
        Some(repeats) if repeats.len() == x.len() => {
            Some(x.iter().zip(&repeats).map(|(d, n)| times(d, n.int())).collect())
        }
        _ => unknown_dims(x.len()),
    }
}

/// Shape of CenterCropPad.
pub(super) fn center_crop_pad(view: &View) -> Option<Dims> {
    let x = view.dims(0)?;
    let axes: Vec<usize> = match view.ints("axes") {
        Some(axes) => axes.iter().map(|&a| axis_of(a, x.len())).collect::<Option<_>>()?,
        None => (0..x.len()).collect(),
    };
    let Some(shape) = view.input_elements(1) else { return unknown_dims(x.len()) };
    let mut out = x.to_vec();
    for (&axis, n) in axes.iter().zip(&shape) {
        *out.get_mut(axis)? = n.dim();
    }
    Some(out)
}

/// Shape of DepthToSpace.
pub(super) fn depth_to_space(view: &View) -> Option<Dims> {
    let block = view.int("blocksize").filter(|&b| b > 0)?;
    let Some([n, c, h, w]) = view.dims(0) else { return unknown_dims(4) };
    let grown = |d: &Dim| match signed(d) {
        Some(d) => length(d.checked_mul(block)),
        None if block == 1 => d.clone(),
        None => Dim::Unknown,
    };
    let channels = signed(c).zip(block.checked_mul(block)).map(|(c, square)| c / square);
    Some(vec![n.clone(), length(channels), grown(h), grown(w)])
}

/// Shape of SpaceToDepth.
pub(super) fn space_to_depth(view: &View) -> Option<Dims> {
    let block = view.int("blocksize").filter(|&b| b > 0)?;
    let Some([n, c, h, w]) = view.dims(0) else { return unknown_dims(4) };
    let shrunk = |d: &Dim| length(signed(d).map(|d| d / block));
    let channels = signed(c).and_then(|c| c.checked_mul(block)?.checked_mul(block));
    Some(vec![n.clone(), length(channels), shrunk(h), shrunk(w)])
}
