//! Conv of any rank: `y[b, m, o] = bias[m] + sum_c sum_j x[b, c, o*stride + j*dilation - pad] * w[m, c, j]`.
//!
//! One task per batch and output channel, terms added in file order: the same result whatever the thread count.

use rayon::prelude::*;

use chipfit_model::build::{get_i, get_is, get_s};
use chipfit_model::proto::NodeProto;

use super::Fault;
use crate::reference::{MAX_ELEMENTS, MAX_MACS, next_position};

/// One spatial axis.
#[derive(Clone, Debug)]
struct Axis {
    input: usize,
    kernel: usize,
    stride: i128,
    dilation: i128,
    pad: i128,
    output: usize,
}

/// The output positions that one kernel position reaches, and the input position of the first.
#[derive(Clone, Copy, Debug)]
struct Span {
    first: usize,
    count: usize,
    reads: usize,
}

impl Axis {
    fn span(&self, tap: usize) -> Span {
        let shift = tap as i128 * self.dilation - self.pad;
        // 0 <= o*stride + shift <= input - 1.
        let first = if shift >= 0 { 0 } else { (-shift + self.stride - 1) / self.stride };
        let last = (self.input as i128 - 1 - shift).div_euclid(self.stride).min(self.output as i128 - 1);
        if last < first {
            return Span { first: 0, count: 0, reads: 0 };
        }
        let reads = first * self.stride + shift;
        Span { first: first as usize, count: (last - first + 1) as usize, reads: reads as usize }
    }
}

/// A convolution of fixed shapes.
#[derive(Clone, Debug)]
pub(super) struct Conv {
    batch: usize,
    in_per_group: usize,
    group: usize,
    pub(super) channels_out: usize,
    axes: Vec<Axis>,
}

impl Conv {
    /// Resolves the node's attributes for an input of dims `x` and a weight of dims `w`.
    pub(super) fn resolve(node: &NodeProto, x: &[usize], w: &[usize]) -> Result<Self, Fault> {
        let group = get_i(node, "group").unwrap_or(1);
        let misfit = || Fault(format!("input {x:?} and weight {w:?} do not fit a convolution of {group} groups"));
        let ([batch, channels, inputs @ ..], [channels_out, in_per_group, kernels @ ..]) = (x, w) else {
            return Err(misfit());
        };
        let group = usize::try_from(group).ok().filter(|&g| g > 0 && channels_out % g == 0).ok_or_else(misfit)?;
        if in_per_group.checked_mul(group) != Some(*channels) || inputs.len() != kernels.len() {
            return Err(misfit());
        }
        let rank = inputs.len();
        let list = |name: &str, count: usize, default: i64, least: i64| match get_is(node, name) {
            None | Some([]) => Ok(vec![default; count]),
            Some(v) if v.len() == count && v.iter().all(|&v| v >= least) => Ok(v.to_vec()),
            Some(v) => Err(Fault(format!("attribute '{name}' = {v:?} is not valid here"))),
        };
        let (strides, dilations) = (list("strides", rank, 1, 1)?, list("dilations", rank, 1, 1)?);
        let pads = list("pads", 2 * rank, 0, i64::MIN)?;
        if let Some(shape) = get_is(node, "kernel_shape").filter(|s| !s.is_empty())
            && !shape.iter().map(|&k| usize::try_from(k).ok()).eq(kernels.iter().map(|&k| Some(k)))
        {
            return Err(Fault(format!("kernel_shape {shape:?} contradicts the weight {w:?}")));
        }
        let auto_pad = get_s(node, "auto_pad").filter(|s| !s.is_empty()).unwrap_or("NOTSET");
        let mut axes = Vec::with_capacity(rank);
        for (axis, (&input, &kernel)) in inputs.iter().zip(kernels).enumerate() {
            let (stride, dilation, n) = (i128::from(strides[axis]), i128::from(dilations[axis]), input as i128);
            let span = dilation * (kernel as i128 - 1) + 1;
            let (begin, end) = match auto_pad {
                "NOTSET" => (i128::from(pads[axis]), i128::from(pads[axis + rank])),
                "VALID" => (0, 0),
                "SAME_UPPER" | "SAME_LOWER" => {
                    let output = n.div_euclid(stride) + i128::from(n.rem_euclid(stride) != 0);
                    let total = ((output - 1) * stride + span - n).max(0);
                    let begin = if auto_pad == "SAME_UPPER" { total / 2 } else { total - total / 2 };
                    (begin, total - begin)
                }
                other => return Err(Fault(format!("auto_pad '{other}' is not known"))),
            };
            let room = n + begin + end - span;
            if room < 0 || kernel == 0 {
                return Err(Fault(format!("spatial axis {axis}: the kernel is longer than the padded input")));
            }
            let output = usize::try_from(room / stride + 1).ok().filter(|&o| o <= MAX_ELEMENTS);
            let output = output.ok_or_else(|| Fault(format!("spatial axis {axis}: the output is too long")))?;
            axes.push(Axis { input, kernel, stride, dilation, pad: begin, output });
        }
        let conv = Self { batch: *batch, in_per_group: *in_per_group, group, channels_out: *channels_out, axes };
        let dims = conv.output_dims();
        super::tensor::elements(&dims).ok_or_else(|| super::layout::too_large(&dims))?;
        let macs = conv.axes.iter().fold((dims.iter().product::<usize>() * conv.in_per_group) as u128, |n, a| {
            n.saturating_mul(a.kernel as u128)
        });
        if macs > MAX_MACS {
            return Err(Fault(format!("{macs} multiply-accumulates are more than the proof computes")));
        }
        Ok(conv)
    }

    /// Dims of the result.
    pub(super) fn output_dims(&self) -> Vec<usize> {
        [self.batch, self.channels_out].into_iter().chain(self.axes.iter().map(|a| a.output)).collect()
    }

    /// The result; operands must have the lengths that the dims given to [`Self::resolve`] ask for.
    pub(super) fn run<T: Number>(&self, x: &[T], w: &[T], bias: Option<&[T]>) -> Vec<T> {
        let inputs: usize = self.axes.iter().map(|a| a.input).product();
        let kernels: usize = self.axes.iter().map(|a| a.kernel).product();
        let outputs: usize = self.axes.iter().map(|a| a.output).product();
        let spans: Vec<Vec<Span>> = self.axes.iter().map(|a| (0..a.kernel).map(|k| a.span(k)).collect()).collect();
        let mut y = vec![T::default(); self.batch * self.channels_out * outputs];
        if y.is_empty() {
            return y;
        }
        let out_per_group = self.channels_out / self.group;
        y.par_chunks_mut(outputs).enumerate().for_each(|(task, y)| {
            let (batch, m) = (task / self.channels_out, task % self.channels_out);
            if let Some(bias) = bias {
                y.fill(bias[m]);
            }
            let first = m / out_per_group * self.in_per_group;
            for c in 0..self.in_per_group {
                let x = &x[(batch * self.in_per_group * self.group + first + c) * inputs..][..inputs];
                let w = &w[(m * self.in_per_group + c) * kernels..][..kernels];
                let mut tap = vec![0; self.axes.len()];
                for &w in w {
                    self.add_tap(&spans, &tap, x, w, y);
                    next_position(&mut tap, |axis| self.axes[axis].kernel);
                }
            }
        });
        y
    }

    fn add_tap<T: Number>(&self, spans: &[Vec<Span>], tap: &[usize], x: &[T], w: T, y: &mut [T]) {
        let Some((last, outer)) = self.axes.split_last() else {
            if let (Some(y), Some(&x)) = (y.first_mut(), x.first()) {
                y.add_product(x, w);
            }
            return;
        };
        let span = |axis: usize| spans[axis][tap[axis]];
        let inner = span(outer.len());
        if inner.count == 0 {
            return;
        }
        let rows: usize = (0..outer.len()).map(|axis| span(axis).count).product();
        let stride = last.stride as usize;
        for row in 0..rows {
            let (mut rest, mut x_at, mut y_at) = (row, inner.reads, inner.first);
            let (mut x_step, mut y_step) = (last.input, last.output);
            for (number, axis) in outer.iter().enumerate().rev() {
                let s = span(number);
                let o = rest % s.count;
                rest /= s.count;
                x_at += (s.reads + o * axis.stride as usize) * x_step;
                y_at += (s.first + o) * y_step;
                x_step *= axis.input;
                y_step *= axis.output;
            }
            let y = &mut y[y_at..][..inner.count];
            if stride == 1 {
                for (y, &x) in y.iter_mut().zip(&x[x_at..][..inner.count]) {
                    y.add_product(x, w);
                }
            } else {
                for (y, &x) in y.iter_mut().zip(x[x_at..].iter().step_by(stride)) {
                    y.add_product(x, w);
                }
            }
        }
    }
}

/// What a convolution adds up in.
pub(super) trait Number: Copy + Default + Send + Sync {
    /// `self += x * w`; integers wrap.
    fn add_product(&mut self, x: Self, w: Self);
}
impl Number for f32 {
    #[inline]
    fn add_product(&mut self, x: Self, w: Self) {
        *self += x * w;
    }
}
impl Number for f64 {
    #[inline]
    fn add_product(&mut self, x: Self, w: Self) {
        *self += x * w;
    }
}
impl Number for i32 {
    #[inline]
    fn add_product(&mut self, x: Self, w: Self) {
        *self = self.wrapping_add(x.wrapping_mul(w));
    }
}
