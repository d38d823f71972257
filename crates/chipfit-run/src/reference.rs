//! The transposed convolution of the ONNX definition, as a plain scatter-add: what every rewrite is judged by.
//!
//! For every batch `b`, group `g`, input channel `c` and output channel `m` of the group, input position `i` and
//! kernel position `j` (both with one coordinate per spatial axis):
//!
//! `y[b, m, i*stride + j*dilation - pad] += x[b, c, i] * w[c, m, j]`, where that position lies inside the output,
//! and `y[b, m, ..] += bias[m]`.
//!
//! Promises: any number of spatial axes; the same result whatever the thread count (one thread adds up one output
//! channel, in file order); in floats the sum, its magnitude `sum |x||w|` and its number of terms per element; in
//! integers the sum modulo 2^32. Nothing here knows of phases: this file shares no code with any rewrite.
//!
//! Read [`Geometry::resolve`] for the output shape (`docs/split-deconvolution.md`, "Resolve the shape"), then
//! the private `scatter`.

use rayon::prelude::*;

use chipfit_model::build::{get_i, get_is, get_s};
use chipfit_model::proto::NodeProto;

/// Most elements that one tensor of a proof may have.
pub const MAX_ELEMENTS: usize = 1 << 27;
/// Most multiply-accumulates that one run of a node may take.
pub const MAX_MACS: u128 = 1 << 38;

/// Why a ConvTranspose has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GeometryError {
    /// Input and weight do not fit each other.
    #[error("input {x:?} and weight {w:?} do not fit a transposed convolution of {group} groups")]
    Shapes {
        /// The input's dims.
        x: Vec<usize>,
        /// The weight's dims.
        w: Vec<usize>,
        /// The `group` attribute.
        group: i64,
    },
    /// An attribute that the operator does not allow.
    #[error("attribute '{name}' = {value} is not valid here")]
    Attribute {
        /// Its name.
        name: &'static str,
        /// Its value.
        value: String,
    },
    /// No output element along an axis.
    #[error("spatial axis {axis}: the output length would be {length}")]
    Empty {
        /// The axis, 0 the first spatial one.
        axis: usize,
        /// The resolved length.
        length: i128,
    },
    /// More than the proof is willing to compute.
    #[error("the output {output:?} of {macs} multiply-accumulates is too large to be computed here")]
    TooLarge {
        /// Spatial output dims.
        output: Vec<usize>,
        /// Multiply-accumulates.
        macs: u128,
    },
    /// Data that is not as long as its dims say.
    #[error("{what} holds {have} elements, {want} are needed")]
    Length {
        /// Which operand.
        what: &'static str,
        /// Elements found.
        have: usize,
        /// Elements needed.
        want: usize,
    },
}

/// Which side takes the odd pad of `auto_pad` and `output_shape` in operator sets 1 to 10.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SameRule {
    /// As runtimes do: the rule of operator set 11 everywhere.
    #[default]
    Runtimes,
    /// As the text of operator set 1 says: the other way round.
    Spec,
}

/// One spatial axis of a transposed convolution, resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Axis {
    /// Input length.
    pub input: usize,
    /// Kernel length.
    pub kernel: usize,
    /// Stride.
    pub stride: i64,
    /// Dilation.
    pub dilation: i64,
    /// Elements cut off at the begin (negative: added).
    pub pad: i128,
    /// Output length.
    pub output: usize,
}

/// One kernel position along one axis: the input positions that reach the output, and where the first lands.
#[derive(Clone, Copy, Debug)]
struct Reach {
    first: usize,
    count: usize,
    lands: usize,
}

impl Axis {
    fn reach(&self, tap: usize) -> Reach {
        let (s, n, o) = (i128::from(self.stride), self.input as i128, self.output as i128);
        let shift = tap as i128 * i128::from(self.dilation) - self.pad;
        // 0 <= i*s + shift <= o-1, 0 <= i <= n-1; both divisions round the way that keeps only such i.
        let first = (-shift).max(0).div_euclid(s) + i128::from((-shift).max(0).rem_euclid(s) != 0);
        let last = (o - 1 - shift).div_euclid(s).min(n - 1);
        if last < first {
            return Reach { first: 0, count: 0, lands: 0 };
        }
        Reach { first: first as usize, count: (last - first + 1) as usize, lands: (first * s + shift) as usize }
    }

    /// For every output position, how many (input, kernel) positions land on it.
    fn terms(&self) -> Vec<u64> {
        let mut terms = vec![0; self.output];
        for tap in 0..self.kernel {
            let reach = self.reach(tap);
            for i in 0..reach.count {
                if let Some(t) = terms.get_mut(reach.lands + i * self.stride as usize) {
                    *t += 1;
                }
            }
        }
        terms
    }
}

/// A transposed convolution of fixed shapes, resolved from its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Batch.
    pub batch: usize,
    /// Groups.
    pub group: usize,
    /// Input channels, all groups.
    pub channels_in: usize,
    /// Output channels, all groups.
    pub channels_out: usize,
    /// The spatial axes.
    pub axes: Vec<Axis>,
}

impl Geometry {
    /// The geometry of `node`, a ConvTranspose, for an input of dims `x` and a weight of dims `w`.
    ///
    /// # Errors
    /// [`GeometryError`] where dims or attributes contradict the operator.
    pub fn resolve(
        node: &NodeProto,
        opset: i64,
        x: &[usize],
        w: &[usize],
        same: SameRule,
    ) -> Result<Self, GeometryError> {
        let group = get_i(node, "group").unwrap_or(1);
        let misfit = || GeometryError::Shapes { x: x.to_vec(), w: w.to_vec(), group };
        let ([batch, channels_in, inputs @ ..], [weight_in, per_group, kernels @ ..]) = (x, w) else {
            return Err(misfit());
        };
        let groups = usize::try_from(group).ok().filter(|&g| g > 0 && channels_in % g == 0).ok_or_else(misfit)?;
        if channels_in != weight_in || inputs.len() != kernels.len() {
            return Err(misfit());
        }
        let channels_out = per_group.checked_mul(groups).ok_or_else(misfit)?;
        let rank = inputs.len();
        let list = |name: &'static str, count: usize, default: i64| match get_is(node, name) {
            None | Some([]) => Ok(vec![default; count]),
            Some(values) if values.len() == count => Ok(values.to_vec()),
            Some(values) => Err(GeometryError::Attribute { name, value: format!("{values:?}") }),
        };
        let at_least_one = |name: &'static str| {
            let values = list(name, rank, 1)?;
            if values.iter().all(|&v| v >= 1) {
                Ok(values)
            } else {
                Err(GeometryError::Attribute { name, value: format!("{values:?}") })
            }
        };
        let (strides, dilations) = (at_least_one("strides")?, at_least_one("dilations")?);
        let (pads, output_padding) = (list("pads", 2 * rank, 0)?, list("output_padding", rank, 0)?);
        if let Some(shape) = get_is(node, "kernel_shape").filter(|s| !s.is_empty())
            && !shape.iter().map(|&k| usize::try_from(k).ok()).eq(kernels.iter().map(|&k| Some(k)))
        {
            return Err(GeometryError::Attribute { name: "kernel_shape", value: format!("{shape:?}") });
        }
        let asked = match get_is(node, "output_shape") {
            None | Some([]) => None,
            Some(shape) if shape.len() == rank => Some(shape),
            // Some exporters write batch and channels too, and runtimes read that.
            Some([_, _, shape @ ..]) if shape.len() == rank => Some(shape),
            Some(shape) => return Err(GeometryError::Attribute { name: "output_shape", value: format!("{shape:?}") }),
        };
        let auto_pad = get_s(node, "auto_pad").filter(|s| !s.is_empty()).unwrap_or("NOTSET");
        if !["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"].contains(&auto_pad) {
            return Err(GeometryError::Attribute { name: "auto_pad", value: auto_pad.to_owned() });
        }
        let swapped = same == SameRule::Spec && opset < 11;
        let mut axes = Vec::with_capacity(rank);
        for (axis, (&input, &kernel)) in inputs.iter().zip(kernels).enumerate() {
            let (s, n) = (i128::from(strides[axis]), input as i128);
            let dilated = i128::from(dilations[axis]) * (kernel as i128 - 1) + 1;
            // Before any pad is taken off.
            let natural = s * (n - 1) + i128::from(output_padding[axis]) + dilated;
            let wanted = match asked {
                Some(shape) => Some(i128::from(shape[axis])),
                None if auto_pad.starts_with("SAME") => Some(n * s),
                None => None,
            };
            let (pad, output) = match wanted {
                Some(output) => {
                    let total = natural - output;
                    let half = total.div_euclid(2);
                    let smaller_first = (auto_pad == "SAME_UPPER") != swapped;
                    (if smaller_first { half } else { total - half }, output)
                }
                None if auto_pad == "VALID" => (0, natural),
                None => {
                    let (begin, end) = (i128::from(pads[axis]), i128::from(pads[axis + rank]));
                    (begin, natural - begin - end)
                }
            };
            if output < 1 || kernel < 1 {
                return Err(GeometryError::Empty { axis, length: output });
            }
            let output = usize::try_from(output).map_err(|_| GeometryError::Empty { axis, length: output })?;
            axes.push(Axis { input, kernel, stride: strides[axis], dilation: dilations[axis], pad, output });
        }
        let geometry = Self { batch: *batch, group: groups, channels_in: *channels_in, channels_out, axes };
        geometry.bounded()
    }

    fn bounded(self) -> Result<Self, GeometryError> {
        let dims = self.output_dims();
        let output = dims.iter().try_fold(1u128, |n, &d| n.checked_mul(d as u128)).unwrap_or(u128::MAX);
        let macs = self.macs();
        if output > MAX_ELEMENTS as u128 || macs > MAX_MACS {
            return Err(GeometryError::TooLarge { output: dims, macs });
        }
        Ok(self)
    }

    /// Multiply-accumulates: batch * channels_in * channels_out / group * kernel * input positions.
    pub fn macs(&self) -> u128 {
        let per_group = self.channels_out / self.group.max(1);
        let spatial = self.axes.iter().flat_map(|a| [a.kernel, a.input]);
        [self.batch, self.channels_in, per_group]
            .into_iter()
            .chain(spatial)
            .try_fold(1u128, |n, v| n.checked_mul(v as u128))
            .unwrap_or(u128::MAX)
    }

    /// Dims of the result.
    pub fn output_dims(&self) -> Vec<usize> {
        [self.batch, self.channels_out].into_iter().chain(self.axes.iter().map(|a| a.output)).collect()
    }

    /// The most terms that one output element can have.
    pub fn most_terms(&self) -> u64 {
        self.axes.iter().fold((self.channels_in / self.group) as u64, |n, a| n.saturating_mul(a.kernel as u64))
    }

    /// The number of terms of every output element, the same for all batches and channels, row-major.
    pub fn terms(&self) -> Vec<u64> {
        let mut all = vec![(self.channels_in / self.group) as u64];
        for axis in &self.axes {
            let along = axis.terms();
            all = all.iter().flat_map(|&n| along.iter().map(move |&t| n * t)).collect();
        }
        all
    }

    fn check<T>(&self, x: &[T], w: &[T], bias: Option<&[T]>) -> Result<(), GeometryError> {
        let inputs: usize = self.axes.iter().map(|a| a.input).product();
        let kernels: usize = self.axes.iter().map(|a| a.kernel).product();
        let check = |what, have, want| {
            if have == want { Ok(()) } else { Err(GeometryError::Length { what, have, want }) }
        };
        check("the input", x.len(), self.batch * self.channels_in * inputs)?;
        check("the weight", w.len(), self.channels_in * (self.channels_out / self.group) * kernels)?;
        bias.map_or(Ok(()), |b| check("the bias", b.len(), self.channels_out))
    }
}

/// A float sum: its value, and the sum of its terms' magnitudes without the bias.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sum {
    /// The value.
    pub value: f64,
    /// `sum |x||w|`.
    pub magnitude: f64,
}

trait Accumulate: Copy + Send + Default {
    type Factor: Copy + Sync;
    fn start(bias: Self::Factor) -> Self;
    fn add_product(&mut self, x: Self::Factor, w: Self::Factor);
}

impl Accumulate for Sum {
    type Factor = f64;
    fn start(bias: f64) -> Self {
        Self { value: bias, magnitude: 0.0 }
    }
    #[inline]
    fn add_product(&mut self, x: f64, w: f64) {
        let product = x * w;
        self.value += product;
        self.magnitude += product.abs();
    }
}

impl Accumulate for i32 {
    type Factor = i32;
    fn start(bias: i32) -> Self {
        bias
    }
    #[inline]
    fn add_product(&mut self, x: i32, w: i32) {
        *self = self.wrapping_add(x.wrapping_mul(w));
    }
}

/// The transposed convolution in f64: value and magnitude of every output element, `[batch, channels_out, ..]`.
///
/// # Errors
/// [`GeometryError::Length`].
pub fn scatter_f64(g: &Geometry, x: &[f64], w: &[f64], bias: Option<&[f64]>) -> Result<Vec<Sum>, GeometryError> {
    g.check(x, w, bias)?;
    Ok(scatter(g, x, w, bias))
}

/// The transposed convolution in integers modulo 2^32, `[batch, channels_out, ..]`.
///
/// # Errors
/// [`GeometryError::Length`].
pub fn scatter_i32(g: &Geometry, x: &[i32], w: &[i32], bias: Option<&[i32]>) -> Result<Vec<i32>, GeometryError> {
    g.check(x, w, bias)?;
    Ok(scatter(g, x, w, bias))
}

/// One task per batch and output channel; lengths were checked.
fn scatter<A: Accumulate>(g: &Geometry, x: &[A::Factor], w: &[A::Factor], bias: Option<&[A::Factor]>) -> Vec<A> {
    let inputs: usize = g.axes.iter().map(|a| a.input).product();
    let kernels: usize = g.axes.iter().map(|a| a.kernel).product();
    let outputs: usize = g.axes.iter().map(|a| a.output).product();
    let (in_group, out_group) = (g.channels_in / g.group, g.channels_out / g.group);
    let reach: Vec<Vec<Reach>> = g.axes.iter().map(|a| (0..a.kernel).map(|tap| a.reach(tap)).collect()).collect();
    let mut y = vec![A::default(); g.batch * g.channels_out * outputs];
    if y.is_empty() {
        return y;
    }
    y.par_chunks_mut(outputs).enumerate().for_each(|(task, y)| {
        let (batch, m) = (task / g.channels_out, task % g.channels_out);
        if let Some(bias) = bias {
            y.fill(A::start(bias[m]));
        }
        let (group, m_in_group) = (m / out_group, m % out_group);
        for c in group * in_group..(group + 1) * in_group {
            let x = &x[(batch * g.channels_in + c) * inputs..][..inputs];
            let w = &w[(c * out_group + m_in_group) * kernels..][..kernels];
            let mut tap = vec![0; g.axes.len()];
            for &w in w {
                add_tap(&g.axes, &reach, &tap, x, w, y);
                next_position(&mut tap, |axis| g.axes[axis].kernel);
            }
        }
    });
    y
}

/// Adds one kernel position's products over one channel.
fn add_tap<A: Accumulate>(
    axes: &[Axis],
    reach: &[Vec<Reach>],
    tap: &[usize],
    x: &[A::Factor],
    w: A::Factor,
    y: &mut [A],
) {
    let Some((last, outer)) = axes.split_last() else {
        // No spatial axis at all: one position.
        if let (Some(y), Some(&x)) = (y.first_mut(), x.first()) {
            y.add_product(x, w);
        }
        return;
    };
    let reach_of = |axis: usize| reach[axis][tap[axis]];
    let last_tap = reach_of(outer.len());
    let rows: usize = (0..outer.len()).map(|axis| reach_of(axis).count).product();
    for row in 0..rows {
        // Coordinates of this row, the last outer axis running fastest.
        let (mut rest, mut x_at, mut y_at, mut x_step, mut y_step) = (row, 0, 0, last.input, last.output);
        for (number, axis) in outer.iter().enumerate().rev() {
            let r = reach_of(number);
            let i = rest % r.count;
            rest /= r.count;
            x_at += (r.first + i) * x_step;
            y_at += (r.lands + i * axis.stride as usize) * y_step;
            x_step *= axis.input;
            y_step *= axis.output;
        }
        let xs = x[x_at + last_tap.first..].iter().take(last_tap.count);
        let ys = y[y_at + last_tap.lands..].iter_mut().step_by(last.stride as usize);
        for (y, &x) in ys.zip(xs) {
            y.add_product(x, w);
        }
    }
}

/// Advances a row-major position; after the last one it is the first again.
pub(crate) fn next_position(position: &mut [usize], length: impl Fn(usize) -> usize) {
    for axis in (0..position.len()).rev() {
        position[axis] += 1;
        if position[axis] < length(axis) {
            return;
        }
        position[axis] = 0;
    }
}

#[cfg(test)]
mod tests;
