//! Convolutions and (de)quantisation: the operators whose meaning depends on the [`Mode`].

use chipfit_model::DataType;
use chipfit_model::build::get_i;

use super::conv::Conv;
use super::ops::Op;
use super::tensor::{Data, Shadow, Tensor, integer_range, round_to_storage};
use super::{Fault, Mode};
use crate::reference::{Geometry, scatter_f64, scatter_i32};

/// Scale and zero point of every element.
struct Grid {
    scales: Vec<f32>,
    zero_points: Vec<i64>,
    /// Elements of one channel, and channels; a single scale has one channel.
    inner: usize,
    channels: usize,
    /// The type of the scale: what DequantizeLinear gives.
    real: DataType,
    /// The type of the zero point, where there is one.
    stored: Option<DataType>,
}

impl Grid {
    fn channel(&self, at: usize) -> usize {
        at / self.inner % self.channels
    }
    fn scale(&self, at: usize) -> f32 {
        self.scales[self.channel(at)]
    }
    fn zero_point(&self, at: usize) -> i64 {
        self.zero_points[self.channel(at)]
    }
}

impl Op<'_> {
    fn grid(&self, dims: &[usize]) -> Result<Grid, Fault> {
        if get_i(self.node, "block_size").unwrap_or(0) != 0 {
            return Err("quantisation in blocks".into());
        }
        let scale = self.input(1)?;
        let scales: Vec<f32> = match &scale.data {
            Data::F32(v) => v.clone(),
            Data::F64(v) if scale.dtype != DataType::Double => v.iter().map(|&s| s as f32).collect(),
            _ => return Err(Fault(format!("a scale of type {}", scale.dtype.name()))),
        };
        if scale.dims.len() > 1 {
            return Err(Fault(format!("a scale of dims {:?}", scale.dims)));
        }
        let (inner, channels) = if scales.len() == 1 {
            (1, 1)
        } else {
            let axis = if self.opset < 13 { 1 } else { get_i(self.node, "axis").unwrap_or(1) };
            let axis = Self::axis(axis, dims.len())?;
            if dims[axis] != scales.len() {
                return Err(Fault(format!("{} scales for axis {axis} of dims {dims:?}", scales.len())));
            }
            (dims[axis + 1..].iter().product::<usize>().max(1), scales.len())
        };
        let (zero_points, stored) = match self.optional(2) {
            None => (vec![0; scales.len()], None),
            Some(t) => (t.to_i64s().ok_or("a zero point that is no integer")?, Some(t.dtype)),
        };
        if zero_points.len() != scales.len() {
            return Err(Fault(format!("{} zero points for {} scales", zero_points.len(), scales.len())));
        }
        Ok(Grid { scales, zero_points, inner, channels, real: scale.dtype, stored })
    }

    pub(super) fn dequantize(&self) -> Result<Tensor, Fault> {
        let x = self.input(0)?;
        if matches!(self.mode, Mode::SmallIntegers { .. }) {
            return Ok(Tensor { dtype: self.input(1)?.dtype, ..x.clone() });
        }
        // Behind a QuantizeLinear that did nothing.
        if self.mode == Mode::Accumulators && x.shadow != Shadow::None {
            return Ok(Tensor { dtype: self.input(1)?.dtype, ..x.clone() });
        }
        let grid = self.grid(&x.dims)?;
        let Data::I32(q) = &x.data else { return Err(Fault(format!("element type {}", x.dtype.name()))) };
        let steps = q.iter().enumerate().map(|(at, &q)| i64::from(q) - grid.zero_point(at));
        let (data, shadow) = match self.mode {
            Mode::Accumulators | Mode::Requantise => {
                let steps = steps.map(|s| i32::try_from(s).ok()).collect::<Option<Vec<_>>>();
                let shadow = match grid.scales.as_slice() {
                    [one] => Shadow::Uniform(f64::from(*one)),
                    _ => Shadow::Each((0..q.len()).map(|at| f64::from(grid.scale(at))).collect()),
                };
                (Data::I32(steps.ok_or("q - zero_point leaves 32 bits")?), shadow)
            }
            Mode::Storage | Mode::Reference | Mode::SmallIntegers { .. } => {
                let mut v: Vec<f32> = steps.enumerate().map(|(at, s)| s as f32 * grid.scale(at)).collect();
                round_to_storage(grid.real, &mut v);
                let data = Data::F32(v);
                (if self.mode == Mode::Reference { Data::F64(data.to_f64()) } else { data }, Shadow::None)
            }
        };
        Ok(Tensor { dtype: grid.real, dims: x.dims.clone(), data, shadow })
    }

    pub(super) fn quantize(&self) -> Result<Tensor, Fault> {
        let x = self.input(0)?;
        let x = &if self.mode == Mode::Requantise && x.shadow == Shadow::None && x.dtype.is_float() {
            super::arith::real(x)?
        } else {
            x.clone()
        };
        let grid = self.grid(&x.dims)?;
        let asked = get_i(self.node, "output_dtype").and_then(|c| i32::try_from(c).ok()).and_then(DataType::from_code);
        let dtype = grid.stored.or(asked).unwrap_or(DataType::Uint8);
        let unknown = || Fault(format!("quantisation to {}", dtype.name()));
        let (low, high) = integer_range(dtype).filter(|_| dtype != DataType::Int32).ok_or_else(unknown)?;
        let stored = |real: f32, at: usize| {
            let rounded = f64::from(real.round_ties_even()) + grid.zero_point(at) as f64;
            rounded.clamp(low as f64, high as f64) as i32
        };
        let data = match (&x.data, self.mode) {
            // A real value here is a bias on a scale of its own, which is no part of any accumulator.
            (Data::F32(v), Mode::Accumulators) => vec![0; v.len()],
            (_, Mode::SmallIntegers { .. } | Mode::Accumulators) => return Ok(Tensor { dtype, ..x.clone() }),
            (_, Mode::Reference) => return Err("the float reference ends before QuantizeLinear".into()),
            (Data::I32(acc), Mode::Requantise) if x.shadow != Shadow::None => {
                let value = |(at, &acc): (usize, &i32)| {
                    let factor = x.shadow.at(at).unwrap_or(0.0) as f32 / grid.scale(at);
                    stored(acc as f32 * factor, at)
                };
                acc.iter().enumerate().map(value).collect()
            }
            (Data::F32(v), _) => v.iter().enumerate().map(|(at, &v)| stored(v / grid.scale(at), at)).collect(),
            _ => return Err(Fault(format!("element type {}", x.dtype.name()))),
        };
        Ok(Tensor { dtype, dims: x.dims.clone(), data: Data::I32(data), shadow: Shadow::None })
    }

    pub(super) fn conv(&self) -> Result<Tensor, Fault> {
        let (x, w) = (self.input(0)?, self.input(1)?);
        let conv = Conv::resolve(self.node, &x.dims, &w.dims)?;
        let dims = conv.output_dims();
        let bias = self.bias(conv.channels_out)?;
        match self.mode {
            Mode::Reference => Err("the float reference holds no Conv".into()),
            Mode::Accumulators | Mode::Requantise => {
                let (xs, ws) = (integers(x)?, integers(w)?);
                let per_channel = w.data.len() / conv.channels_out.max(1);
                let scales = product_scales(x, w, conv.channels_out, |at| at / per_channel)?;
                self.finish(conv.run(xs, ws, None), dims, x.dtype, &scales, bias)
            }
            Mode::Storage | Mode::SmallIntegers { .. } => {
                let misfit = || Fault("input, weight and bias differ in element type".into());
                let data = match (&x.data, &w.data, bias.map(|b| &b.data)) {
                    (Data::F32(x), Data::F32(w), None) => Data::F32(conv.run(x, w, None)),
                    (Data::F32(x), Data::F32(w), Some(Data::F32(b))) => Data::F32(conv.run(x, w, Some(b))),
                    (Data::F64(x), Data::F64(w), None) => Data::F64(conv.run(x, w, None)),
                    (Data::F64(x), Data::F64(w), Some(Data::F64(b))) => Data::F64(conv.run(x, w, Some(b))),
                    (Data::I32(x), Data::I32(w), None) => Data::I32(conv.run(x, w, None)),
                    (Data::I32(x), Data::I32(w), Some(Data::I32(b))) => Data::I32(conv.run(x, w, Some(b))),
                    _ => return Err(misfit()),
                };
                if x.dtype != w.dtype || bias.is_some_and(|b| b.dtype != x.dtype) {
                    return Err(misfit());
                }
                Ok(Tensor { dtype: x.dtype, dims, data: stored(x.dtype, data), shadow: Shadow::None })
            }
        }
    }

    pub(super) fn conv_transpose(&self) -> Result<Tensor, Fault> {
        let (x, w) = (self.input(0)?, self.input(1)?);
        let fault = |e: crate::reference::GeometryError| Fault(e.to_string());
        let g = Geometry::resolve(self.node, self.opset, &x.dims, &w.dims, self.same).map_err(fault)?;
        let bias = self.bias(g.channels_out)?;
        let dims = g.output_dims();
        match self.mode {
            Mode::Accumulators | Mode::Requantise => {
                let (xs, ws) = (integers(x)?, integers(w)?);
                let (in_group, out_group) = (g.channels_in / g.group, g.channels_out / g.group);
                let kernels: usize = g.axes.iter().map(|a| a.kernel).product();
                let channel = |at: usize| {
                    let (c, m) = (at / kernels / out_group, at / kernels % out_group);
                    c / in_group * out_group + m
                };
                let scales = product_scales(x, w, g.channels_out, channel)?;
                self.finish(scatter_i32(&g, xs, ws, None).map_err(fault)?, dims, x.dtype, &scales, bias)
            }
            Mode::SmallIntegers { .. } => {
                let bias = bias.map(integers).transpose()?;
                let data = Data::I32(scatter_i32(&g, integers(x)?, integers(w)?, bias).map_err(fault)?);
                Ok(Tensor { dtype: x.dtype, dims, data, shadow: Shadow::None })
            }
            Mode::Reference | Mode::Storage => {
                if !x.dtype.is_float() || x.dtype != w.dtype {
                    return Err("input and weight must be of one float type".into());
                }
                let bias = bias.map(|b| b.data.to_f64());
                let sums = scatter_f64(&g, &x.data.to_f64(), &w.data.to_f64(), bias.as_deref()).map_err(fault)?;
                let values: Vec<f64> = sums.iter().map(|s| s.value).collect();
                if self.mode == Mode::Storage {
                    let narrow = || Data::F32(values.iter().map(|&v| v as f32).collect());
                    let data = if x.dtype == DataType::Double { Data::F64(values) } else { narrow() };
                    return Ok(Tensor { dtype: x.dtype, dims, data: stored(x.dtype, data), shadow: Shadow::None });
                }
                let terms = g.terms();
                let mut allowed = Vec::with_capacity(sums.len());
                for (channel, sums) in sums.chunks(terms.len().max(1)).enumerate() {
                    let bias = bias.as_ref().and_then(|b| b.get(channel % g.channels_out)).map_or(0.0, |b| b.abs());
                    for (sum, &terms) in sums.iter().zip(&terms) {
                        allowed.push(allowed_error(x.dtype, terms, sum.magnitude + bias)?);
                    }
                }
                Ok(Tensor { dtype: x.dtype, dims, data: Data::F64(values), shadow: Shadow::Each(allowed) })
            }
        }
    }

    fn bias(&self, channels: usize) -> Result<Option<&Tensor>, Fault> {
        match self.optional(2) {
            Some(b) if b.dims != [channels] => {
                Err(Fault(format!("a bias of dims {:?} for {channels} channels", b.dims)))
            }
            b => Ok(b),
        }
    }

    /// Integer sums with their scales and the bias.
    fn finish(
        &self,
        mut acc: Vec<i32>,
        dims: Vec<usize>,
        dtype: DataType,
        scales: &[f32],
        bias: Option<&Tensor>,
    ) -> Result<Tensor, Fault> {
        let inner = dims.iter().skip(2).product::<usize>().max(1);
        let channels = scales.len().max(1);
        let each =
            |acc: &[i32]| -> Vec<f64> { (0..acc.len()).map(|at| f64::from(scales[at / inner % channels])).collect() };
        let Some(bias) = bias.filter(|b| b.data.to_f64().iter().any(|&v| v != 0.0)) else {
            let shadow = if let [first, rest @ ..] = scales
                && rest.iter().all(|s| s == first)
            {
                Shadow::Uniform(f64::from(*first))
            } else {
                Shadow::Each(each(&acc))
            };
            return Ok(Tensor { dtype, dims, data: Data::I32(acc), shadow });
        };
        // An int32 bias counts in steps of x_scale * w_scale; tools round that product once or twice.
        let counts_alike = |at: usize, s: f32| {
            bias.shadow.at(at).is_some_and(|b| (b - f64::from(s)).abs() <= 4.0 * f64::from(f32::EPSILON) * f64::from(s))
        };
        if let Data::I32(q) = &bias.data
            && scales.iter().enumerate().all(|(at, &s)| counts_alike(at, s) || q.get(at) == Some(&0))
        {
            for (at, acc) in acc.iter_mut().enumerate() {
                *acc = acc.wrapping_add(q[at / inner % channels]);
            }
            return Ok(Tensor { dtype, dims, shadow: Shadow::Each(each(&acc)), data: Data::I32(acc) });
        }
        if self.mode == Mode::Accumulators {
            return Ok(Tensor { dtype, dims, shadow: Shadow::Each(each(&acc)), data: Data::I32(acc) });
        }
        // A bias on another scale is added to the real value.
        let Data::F32(bias) = super::arith::real(bias)?.data else { return Err("a bias of double".into()) };
        let value = |(at, &acc): (usize, &i32)| {
            let channel = at / inner % channels;
            acc as f32 * scales[channel] + bias[channel]
        };
        let values = acc.iter().enumerate().map(value).collect();
        Ok(Tensor { dtype, dims, data: Data::F32(values), shadow: Shadow::None })
    }
}

fn stored(dtype: DataType, mut data: Data) -> Data {
    if let Data::F32(v) = &mut data {
        round_to_storage(dtype, v);
    }
    data
}

fn integers(x: &Tensor) -> Result<&[i32], Fault> {
    match &x.data {
        Data::I32(v) => Ok(v),
        _ => Err("an operand that is not quantised".into()),
    }
}

/// `fl(x_scale * w_scale[c])` of every output channel, where `channel` maps a weight's position to its channel.
fn product_scales(
    x: &Tensor,
    w: &Tensor,
    channels: usize,
    channel: impl Fn(usize) -> usize,
) -> Result<Vec<f32>, Fault> {
    let one = match &x.shadow {
        Shadow::None => return Err("the input is not quantised".into()),
        Shadow::Uniform(s) => *s,
        Shadow::Each(each) => {
            // A zero is zero on any scale.
            let mut counting = each.iter().zip(integers(x)?).filter(|(_, q)| **q != 0).map(|(s, _)| *s);
            let first = counting.next().unwrap_or(0.0);
            if counting.any(|s| s != first) {
                return Err("the input's scale differs between its elements".into());
            }
            first
        }
    };
    let weights: Vec<f64> = match &w.shadow {
        Shadow::None => return Err("the weight is not quantised".into()),
        Shadow::Uniform(s) => vec![*s; channels],
        Shadow::Each(each) => {
            let mut found: Vec<Option<(f64, bool)>> = vec![None; channels];
            for (at, (&scale, &q)) in each.iter().zip(integers(w)?).enumerate() {
                let slot = found.get_mut(channel(at)).ok_or("a weight outside all channels")?;
                match slot {
                    Some((have, true)) if q != 0 && *have != scale => {
                        return Err("the weight's scale differs within an output channel".into());
                    }
                    Some((_, true)) => {}
                    _ if q != 0 => *slot = Some((scale, true)),
                    None => *slot = Some((scale, false)),
                    Some((_, false)) => {}
                }
            }
            found.into_iter().map(|s| s.map_or(0.0, |(scale, _)| scale)).collect()
        }
    };
    Ok(weights.into_iter().map(|w| one as f32 * w as f32).collect())
}

/// `2*gamma(K+1)*magnitude`, with the underflow that a product may have; `magnitude` counts the bias.
fn allowed_error(dtype: DataType, terms: u64, magnitude: f64) -> Result<f64, Fault> {
    let (u, tiniest) = match dtype {
        DataType::Double => (f64::EPSILON / 2.0, f64::from_bits(1)),
        _ => (f64::from(f32::EPSILON) / 2.0, f64::from(f32::from_bits(1))),
    };
    let k = terms as f64 + 1.0;
    if k * u >= 0.5 {
        return Err("too many terms for a bound".into());
    }
    Ok(2.0 * (k * u / (1.0 - k * u)) * magnitude + k * tiniest)
}
