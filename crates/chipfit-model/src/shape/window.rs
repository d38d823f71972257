//! Operators that slide a window: convolutions, transposed convolutions, pooling.
//!
//! Per spatial axis, with input length n, kernel k, stride s, dilation d, pads p and q:
//! convolution and pooling give floor((n + p + q - (d(k-1) + 1)) / s) + 1; SAME gives ceil(n / s);
//! the transposed convolution gives s(n-1) + output_padding + d(k-1) + 1 - p - q; SAME gives n*s.

use super::view::{Dims, View, length, signed, tensor};
use super::{Dim, TensorType};
use crate::tensor::DataType;

/// How the pads of a node are given.
#[derive(Clone, Copy, PartialEq, Eq)]
enum AutoPad {
    Explicit,
    Same,
    Valid,
}

/// Whether the last, partial window of a pooling counts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rounding {
    Down,
    Up,
}

/// The window of a node, an entry per spatial axis.
struct Window {
    kernel: Vec<Option<i64>>,
    strides: Vec<i64>,
    dilations: Vec<i64>,
    pads: Vec<i64>,
    auto_pad: AutoPad,
}

impl Window {
    /// `None` where an attribute has another length than there are axes, or a stride or dilation is not positive.
    fn new(view: &View, kernel: Vec<Option<i64>>) -> Option<Self> {
        let axes = kernel.len();
        let list = |name: &str, n: usize, default: i64| match view.ints(name) {
            None | Some([]) => Some(vec![default; n]),
            Some(ints) => (ints.len() == n).then(|| ints.to_vec()),
        };
        let (strides, dilations) = (list("strides", axes, 1)?, list("dilations", axes, 1)?);
        if strides.iter().chain(&dilations).any(|&n| n < 1) {
            return None;
        }
        let auto_pad = match view.string_or("auto_pad", "NOTSET") {
            "SAME_UPPER" | "SAME_LOWER" => AutoPad::Same,
            "VALID" => AutoPad::Valid,
            "NOTSET" | "" => AutoPad::Explicit,
            _ => return None,
        };
        let pads = list("pads", axes.checked_mul(2)?, 0)?;
        Some(Self { kernel, strides, dilations, pads, auto_pad })
    }

    /// d(k-1) + 1
    fn extent(&self, axis: usize) -> Option<i64> {
        let kernel = (*self.kernel.get(axis)?).filter(|&k| k >= 1)?;
        self.dilations.get(axis)?.checked_mul(kernel - 1)?.checked_add(1)
    }

    fn total_pad(&self, axis: usize) -> Option<i64> {
        match self.auto_pad {
            AutoPad::Valid => Some(0),
            _ => self.pads.get(axis)?.checked_add(*self.pads.get(axis + self.kernel.len())?),
        }
    }

    /// The output length of a convolution or pooling.
    fn slide(&self, axis: usize, input: &Dim, rounding: Rounding) -> Dim {
        let stride = self.strides.get(axis).copied().unwrap_or(1);
        if self.auto_pad == AutoPad::Same {
            return match signed(input) {
                Some(n) => length(n.checked_add(stride - 1).map(|n| n / stride)),
                None if stride == 1 => input.clone(),
                None => Dim::Unknown,
            };
        }
        let (Some(extent), Some(pad)) = (self.extent(axis), self.total_pad(axis)) else { return Dim::Unknown };
        let Some(n) = signed(input) else {
            return if stride == 1 && pad == extent - 1 { input.clone() } else { Dim::Unknown };
        };
        let steps = n.checked_add(pad).and_then(|n| n.checked_sub(extent)).filter(|&n| n >= 0);
        length(steps.and_then(|steps| match rounding {
            Rounding::Down => (steps / stride).checked_add(1),
            Rounding::Up => {
                let out = steps.checked_add(stride - 1)? / stride + 1;
                // A window that would start behind input and begin pad does not count.
                let begin = self.pads.get(axis).filter(|_| self.auto_pad == AutoPad::Explicit).copied().unwrap_or(0);
                Some(if (out - 1).checked_mul(stride)? >= n.checked_add(begin)? { out - 1 } else { out })
            }
        }))
    }

    /// The output length of a transposed convolution.
    fn transposed(&self, axis: usize, input: &Dim, output_padding: i64) -> Dim {
        let stride = self.strides.get(axis).copied().unwrap_or(1);
        let Some(n) = signed(input) else {
            let kept = match self.auto_pad {
                AutoPad::Same => stride == 1,
                _ => {
                    let grow = self.extent(axis).and_then(|e| (e - 1).checked_add(output_padding));
                    stride == 1 && grow.is_some() && grow == self.total_pad(axis)
                }
            };
            return if kept { input.clone() } else { Dim::Unknown };
        };
        if self.auto_pad == AutoPad::Same {
            return length(n.checked_mul(stride));
        }
        let out = || {
            let natural = stride.checked_mul(n.checked_sub(1)?)?.checked_add(self.extent(axis)?)?;
            natural.checked_add(output_padding)?.checked_sub(self.total_pad(axis)?)
        };
        length(out())
    }
}

/// The kernel of a node with weights `w`: from `kernel_shape`, else from the weights.
fn weight_kernel(view: &View, w: Option<&[Dim]>, rank: Option<usize>) -> Option<Vec<Option<i64>>> {
    match view.ints("kernel_shape") {
        Some(kernel) if !kernel.is_empty() => Some(kernel.iter().map(|&k| Some(k)).collect()),
        _ => match w {
            Some(w) => Some(w.get(2..)?.iter().map(signed).collect()),
            None => Some(vec![None; rank?.checked_sub(2)?]),
        },
    }
}

/// Shape of a convolution with input `x` and weights `w` (numbers of inputs).
pub(super) fn convolution(view: &View, x: usize, w: usize) -> Option<Dims> {
    let (x, w) = (view.dims(x), view.dims(w));
    let rank = x.or(w)?.len();
    let window = Window::new(view, weight_kernel(view, w, Some(rank))?)?;
    if window.kernel.len().checked_add(2)? != rank || w.is_some_and(|w| w.len() != rank) {
        return None;
    }
    let batch = x.and_then(|x| x.first()).cloned().unwrap_or(Dim::Unknown);
    let channels = w.and_then(|w| w.first()).cloned().unwrap_or(Dim::Unknown);
    let spatial = (0..rank - 2)
        .map(|axis| x.and_then(|x| x.get(axis + 2)).map_or(Dim::Unknown, |n| window.slide(axis, n, Rounding::Down)));
    Some([batch, channels].into_iter().chain(spatial).collect())
}

/// Shape of a ConvTranspose.
pub(super) fn transposed_convolution(view: &View) -> Option<Dims> {
    let (x, w) = (view.dims(0), view.dims(1));
    let rank = x.or(w)?.len();
    let window = Window::new(view, weight_kernel(view, w, Some(rank))?)?;
    let axes = window.kernel.len();
    if axes.checked_add(2)? != rank || w.is_some_and(|w| w.len() != rank) {
        return None;
    }
    let batch = x.and_then(|x| x.first()).cloned().unwrap_or(Dim::Unknown);
    let group = view.int_or("group", 1);
    let channels = w.and_then(|w| w.get(1)).map_or(Dim::Unknown, |m| match signed(m) {
        Some(m) => length(m.checked_mul(group)),
        None if group == 1 => m.clone(),
        None => Dim::Unknown,
    });
    let output_padding = view.ints("output_padding").unwrap_or_default();
    if !output_padding.is_empty() && output_padding.len() != axes {
        return None;
    }
    // Some exporters write batch and channels into output_shape too.
    let output_shape = match view.ints("output_shape").unwrap_or_default() {
        all if all.len() == rank => all.get(2..)?,
        spatial if spatial.len() == axes || spatial.is_empty() => spatial,
        _ => return None,
    };
    let spatial = (0..axes).map(|axis| match output_shape.get(axis) {
        Some(&n) => length(Some(n)),
        None => {
            let extra = output_padding.get(axis).copied().unwrap_or(0);
            x.and_then(|x| x.get(axis + 2)).map_or(Dim::Unknown, |n| window.transposed(axis, n, extra))
        }
    });
    Some([batch, channels].into_iter().chain(spatial).collect())
}

/// Types of AveragePool, LpPool and MaxPool.
pub(super) fn pooling(view: &View) -> Option<Vec<TensorType>> {
    let x = view.dims(0)?;
    let kernel = view.ints("kernel_shape")?.iter().map(|&k| Some(k)).collect();
    let window = Window::new(view, kernel)?;
    if window.kernel.len().checked_add(2)? != x.len() {
        return None;
    }
    let rounding = if view.int_or("ceil_mode", 0) == 0 { Rounding::Down } else { Rounding::Up };
    let spatial = x.iter().skip(2).enumerate().map(|(axis, n)| window.slide(axis, n, rounding));
    let dims: Dims = x.iter().take(2).cloned().chain(spatial).collect();
    Some(vec![tensor(view.dtype(0), Some(dims.clone())), tensor(Some(DataType::Int64), Some(dims))])
}

/// Shape of MaxUnpool without `output_shape`.
pub(super) fn unpooling(view: &View) -> Option<Dims> {
    let x = view.dims(0)?;
    if view.has(2) {
        let shape = view.input_elements(2)?;
        return Some(shape.iter().map(super::value::Element::dim).collect());
    }
    let kernel = view.ints("kernel_shape")?.iter().map(|&k| Some(k)).collect();
    let window = Window::new(view, kernel)?;
    if window.kernel.len().checked_add(2)? != x.len() {
        return None;
    }
    let spatial = x.iter().skip(2).enumerate().map(|(axis, n)| window.transposed(axis, n, 0));
    Some(x.iter().take(2).cloned().chain(spatial).collect())
}

/// Shape of Col2Im: `[N, C*prod(block), L]` to `[N, C, image...]`.
pub(super) fn column_to_image(view: &View) -> Option<Dims> {
    let image = view.input_elements(1)?;
    let x = view.dims(0);
    let block = view.input_ints(2).and_then(|b| b.into_iter().try_fold(1i64, |p, n| p.checked_mul(n?)));
    let channels = x.and_then(|x| x.get(1)).and_then(signed).zip(block.filter(|&b| b > 0)).map(|(c, b)| c / b);
    let batch = x.and_then(|x| x.first()).cloned().unwrap_or(Dim::Unknown);
    Some([batch, length(channels)].into_iter().chain(image.iter().map(super::value::Element::dim)).collect())
}
