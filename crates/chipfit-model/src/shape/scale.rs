//! Resize and Upsample, matrix products and Einsum: output lengths from scales and from labels.

use super::Dim;
use super::value::Element;
use super::view::{Dims, View, axis_of, broadcast, length, signed, unify, unknown_dims};

/// floor(n * scale), in single precision as runtimes compute it.
fn scaled(dim: &Dim, scale: f64) -> Dim {
    match signed(dim) {
        Some(n) => {
            let out = (n as f32 * scale as f32).floor();
            if (0.0..1e15).contains(&out) { length(Some(out as i64)) } else { Dim::Unknown }
        }
        None if scale == 1.0 => dim.clone(),
        None => Dim::Unknown,
    }
}

fn scaled_all(x: &[Dim], scales: Option<Vec<f64>>) -> Option<Dims> {
    match scales.filter(|s| s.len() == x.len()) {
        Some(scales) => Some(x.iter().zip(&scales).map(|(d, &s)| scaled(d, s)).collect()),
        None => unknown_dims(x.len()),
    }
}

/// Shape of Upsample.
pub(super) fn upsample(view: &View) -> Option<Dims> {
    let x = view.dims(0)?;
    let float = |name: &str| view.attribute(name).and_then(|a| a.f).map(f64::from);
    let scales = match (view.attribute("scales"), float("height_scale"), float("width_scale")) {
        (Some(a), _, _) => Some(a.floats.iter().map(|&s| f64::from(s)).collect()),
        (None, Some(height), Some(width)) => Some(vec![1.0, 1.0, height, width]),
        _ => view.value(1).and_then(|v| v.floats()),
    };
    scaled_all(x, scales)
}

/// Shape of Resize.
pub(super) fn resize(view: &View) -> Option<Dims> {
    let x = view.dims(0)?;
    if view.opset < 11 {
        return scaled_all(x, view.value(1).and_then(|v| v.floats()));
    }
    let axes: Vec<usize> = match view.ints("axes") {
        Some(axes) if !axes.is_empty() => axes.iter().map(|&a| axis_of(a, x.len())).collect::<Option<_>>()?,
        _ => (0..x.len()).collect(),
    };
    let mut out = x.to_vec();
    if view.has(3) {
        let Some(sizes) = view.input_elements(3) else { return unknown_dims(x.len()) };
        if sizes.len() != axes.len() {
            return None;
        }
        let sizes = fitted(view, x, &axes, &sizes).unwrap_or_else(|| sizes.iter().map(Element::dim).collect());
        for (&axis, size) in axes.iter().zip(sizes) {
            *out.get_mut(axis)? = size;
        }
        return Some(out);
    }
    // Cropping scales the region of interest, which runtimes read differently.
    let crops = view.string_or("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize";
    let scales = view.value(2).and_then(|v| v.floats()).filter(|s| s.len() == axes.len() && !crops);
    let Some(scales) = scales else { return unknown_dims(x.len()) };
    for (&axis, &scale) in axes.iter().zip(&scales) {
        let dim = out.get_mut(axis)?;
        *dim = scaled(dim, scale);
    }
    Some(out)
}

/// The sizes under a `keep_aspect_ratio_policy`; `None` where sizes are taken as they are.
fn fitted(view: &View, x: &[Dim], axes: &[usize], sizes: &[Element]) -> Option<Vec<Dim>> {
    let larger = match view.string_or("keep_aspect_ratio_policy", "stretch") {
        "not_larger" => false,
        "not_smaller" => true,
        _ => return None,
    };
    let lengths: Option<Vec<f32>> = axes.iter().map(|&a| Some(x.get(a)?.known()? as f32)).collect();
    let sizes: Option<Vec<f32>> = sizes.iter().map(|s| Some(s.int()? as f32)).collect();
    let (Some(lengths), Some(sizes)) = (lengths, sizes) else { return Some(vec![Dim::Unknown; axes.len()]) };
    let ratios = sizes.iter().zip(&lengths).map(|(s, n)| s / n);
    let scale = ratios.reduce(if larger { f32::max } else { f32::min })?;
    // Half away from zero, as the definition's round_int.
    let size = |n: &f32| {
        let out = (n * scale + 0.5).floor();
        if (0.0..1e15).contains(&out) { length(Some(out as i64)) } else { Dim::Unknown }
    };
    Some(lengths.iter().map(size).collect())
}

/// Shape of a matrix product by numpy's rules.
pub(super) fn matrix_product(a: Option<&[Dim]>, b: Option<&[Dim]>) -> Option<Dims> {
    let (a, b) = (a?, b?);
    let (batch_a, rows) = match a {
        [] => return None,
        [_] => (&[][..], None),
        [batch @ .., m, _] => (batch, Some(m)),
    };
    let (batch_b, columns) = match b {
        [] => return None,
        [_] => (&[][..], None),
        [batch @ .., _, n] => (batch, Some(n)),
    };
    let mut out = broadcast(batch_a, batch_b);
    out.extend(rows.cloned());
    out.extend(columns.cloned());
    Some(out)
}

/// Shape of Gemm.
pub(super) fn gemm(view: &View) -> Option<Dims> {
    let side = |input: usize, transposed: &str, first: usize| {
        let at = if view.int_or(transposed, 0) == 0 { first } else { 1 - first };
        view.dims(input).and_then(|d| d.get(at)).cloned().unwrap_or(Dim::Unknown)
    };
    Some(vec![side(0, "transA", 0), side(1, "transB", 1)])
}

/// The labels of an Einsum per operand, and of its output.
pub(super) struct Einsum {
    pub(super) operands: Vec<Vec<char>>,
    pub(super) output: Vec<char>,
}

/// Stands for the broadcast dimensions of an ellipsis, from the last backwards.
const ELLIPSIS: u32 = 0xE000;

impl Einsum {
    /// Reads an equation; an ellipsis becomes one private label per dimension it stands for.
    pub(super) fn parse(equation: &str, ranks: &[usize]) -> Option<Self> {
        let equation: String = equation.chars().filter(|c| !c.is_whitespace()).take(1024).collect();
        let (inputs, output) = match equation.split_once("->") {
            Some((inputs, output)) => (inputs, Some(output)),
            None => (equation.as_str(), None),
        };
        let terms: Vec<&str> = inputs.split(',').collect();
        if terms.len() != ranks.len() {
            return None;
        }
        let mut widest = 0;
        let mut operands = Vec::new();
        for (term, &rank) in terms.iter().zip(ranks) {
            let named = term.replace("...", "").chars().count();
            let hidden = rank.checked_sub(named)?;
            if !term.contains("...") && hidden != 0 {
                return None;
            }
            widest = widest.max(hidden);
            operands.push(expanded(term, hidden)?);
        }
        let output = match output {
            Some(output) => expanded(output, widest)?,
            None => {
                // Labels that occur once, in order, behind the broadcast ones.
                let mut once: Vec<char> = inputs.chars().filter(|c| c.is_alphabetic()).collect();
                once.sort_unstable();
                let all = once.clone();
                once.dedup();
                once.retain(|c| all.iter().filter(|d| *d == c).count() == 1);
                let mut labels = if inputs.contains("...") { expanded("...", widest)? } else { Vec::new() };
                labels.extend(once);
                labels
            }
        };
        Some(Self { operands, output })
    }

    /// The length of every label.
    pub(super) fn lengths(&self, dims: &[&[Dim]]) -> std::collections::BTreeMap<char, Dim> {
        let mut lengths = std::collections::BTreeMap::new();
        for (labels, dims) in self.operands.iter().zip(dims) {
            for (&label, dim) in labels.iter().zip(*dims) {
                let known = lengths.entry(label).or_insert(Dim::Known(1));
                *known = if *known == Dim::Known(1) { dim.clone() } else { unify(known, dim) };
            }
        }
        lengths
    }
}

fn expanded(term: &str, hidden: usize) -> Option<Vec<char>> {
    let (before, after) = term.split_once("...").unwrap_or((term, ""));
    let mut labels: Vec<char> = before.chars().collect();
    if term.contains("...") {
        for back in (0..hidden).rev() {
            labels.push(char::from_u32(ELLIPSIS + u32::try_from(back).ok()?)?);
        }
    }
    labels.extend(after.chars());
    labels.iter().all(|c| c.is_alphabetic() || u32::from(*c) >= ELLIPSIS).then_some(labels)
}

/// Shape of Einsum.
pub(super) fn einsum(view: &View) -> Option<Dims> {
    let dims: Vec<&[Dim]> = (0..view.inputs()).map(|i| view.dims(i)).collect::<Option<_>>()?;
    let ranks: Vec<usize> = dims.iter().map(|d| d.len()).collect();
    let einsum = Einsum::parse(view.string_or("equation", ""), &ranks)?;
    let lengths = einsum.lengths(&dims);
    einsum.output.iter().map(|label| lengths.get(label).cloned()).collect()
}
