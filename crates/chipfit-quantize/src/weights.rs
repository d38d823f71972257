//! Weights and biases as integers.
//!
//! `w_scale[c] = max|w[c]| / 127`; `bias_q[c] = round_half_even(bias[c] / fl32(x_scale * w_scale[c]))` in 32 bits.
//! Where a bias would leave so little of its 32 bits that an accumulator could overflow, `w_scale[c]` is raised
//! until it does not. A channel without any weight takes its scale from its bias.

use chipfit_model::build::{get_i, is_op};
use chipfit_model::proto::NodeProto;
use chipfit_model::{ConstTensor, DataType};

use crate::calibrate::float_values;
use crate::options::{Options, Weights};
use crate::places::channel_axis;
use crate::report::sqnr_db;
use crate::scale::{Quantizer, bias_limit, bias_scale, to_i32, weight_scale_for_bias};

/// A quantised weight with its bias.
pub(crate) struct Quantised {
    pub(crate) weight: ConstTensor,
    /// One scale, or one for each index of `axis`.
    pub(crate) scales: Vec<f32>,
    pub(crate) axis: Option<usize>,
    pub(crate) widened: usize,
    pub(crate) sqnr_db: f64,
}

/// Quantises the weight of `node`; `None` where its shape and its bias do not fit each other.
pub(crate) fn quantise(
    node: &NodeProto,
    weight: &ConstTensor,
    bias: Option<&[f32]>,
    x_scale: f32,
    options: &Options,
) -> Option<Quantised> {
    let (dims, values) = (weight.dims(), float_values(weight));
    if values.is_empty() {
        return None;
    }
    let axis = channel_axis(node, weight).filter(|_| options.weights == Weights::PerChannel);
    let count = axis.map_or(Some(1), |axis| dims.get(axis).copied())?;
    let inner: usize = axis.map_or(values.len(), |axis| dims.iter().skip(axis + 1).product());
    let channel = |i: usize| if axis.is_none() { Some(0) } else { i.checked_div(inner)?.checked_rem(count) };
    let mut most = vec![0f32; count];
    for (i, value) in values.iter().enumerate() {
        let slot = most.get_mut(channel(i)?)?;
        *slot = slot.max(value.abs());
    }
    let mut largest_bias = vec![0f32; count];
    for (i, value) in bias.unwrap_or_default().iter().enumerate() {
        let slot = largest_bias.get_mut(i.checked_rem(count)?)?;
        *slot = slot.max(value.abs());
    }
    let limit = bias_limit(products(node, dims)?, options.activations);
    let mut widened = 0;
    let mut scales = Vec::with_capacity(count);
    for (&most, &bias) in most.iter().zip(&largest_bias) {
        let own = Quantizer::weight(most, options.power_of_two).scale;
        // 2^20 steps are more than enough for a bias that stands alone.
        let steps = if most == 0.0 { 1 << 20 } else { limit };
        let least = weight_scale_for_bias(bias, x_scale, steps, options.power_of_two);
        scales.push(match (most == 0.0, least > own) {
            (true, _) if least > 0.0 => least,
            (false, true) => {
                widened += 1;
                least
            }
            _ => own,
        });
    }
    let mut integers = Vec::with_capacity(values.len());
    let mut back = Vec::with_capacity(values.len());
    for (i, &value) in values.iter().enumerate() {
        let quantizer = Quantizer { scale: *scales.get(channel(i)?)?, zero_point: 0, dtype: DataType::Int8 };
        let q = quantizer.quantize(value).clamp(-127, 127);
        back.push(quantizer.dequantize(q));
        integers.push(i8::try_from(q).ok()?.cast_unsigned());
    }
    let weight = ConstTensor::new(DataType::Int8, dims.to_vec(), integers)?;
    Some(Quantised { weight, scales, axis, widened, sqnr_db: sqnr_db(&values, &back) })
}

/// Products that are summed for one output.
fn products(node: &NodeProto, dims: &[usize]) -> Option<usize> {
    let of = |dims: &[usize]| dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    if is_op(node, "Conv") {
        return of(dims.get(1..)?);
    }
    if is_op(node, "ConvTranspose") {
        let groups = usize::try_from(get_i(node, "group").unwrap_or(1)).ok()?;
        return dims.first()?.checked_div(groups)?.checked_mul(of(dims.get(2..)?)?);
    }
    let turned = is_op(node, "Gemm") && get_i(node, "transB").unwrap_or(0) != 0;
    dims.get(if turned { 1 } else { dims.len().saturating_sub(2) }).copied()
}

/// A bias in units of the accumulator, with the scales of those units (one for each element, or one for all).
pub(crate) fn quantise_bias(bias: &[f32], x_scale: f32, w_scales: &[f32]) -> Option<(ConstTensor, Vec<f32>)> {
    let units: Vec<f32> = w_scales.iter().map(|&w| bias_scale(x_scale, w)).collect();
    let scales = match units.as_slice() {
        [one] => vec![*one],
        _ => (0..bias.len()).map(|i| units.get(i.checked_rem(units.len())?).copied()).collect::<Option<_>>()?,
    };
    let unit = |i: usize| if scales.len() == 1 { scales.first() } else { scales.get(i) };
    let mut bytes = Vec::with_capacity(bias.len().checked_mul(4)?);
    for (i, &value) in bias.iter().enumerate() {
        let q = to_i32((f64::from(value) / f64::from(*unit(i)?)).round_ties_even());
        bytes.extend(q.to_le_bytes());
    }
    Some((ConstTensor::new(DataType::Int32, vec![bias.len()], bytes)?, scales))
}

/// A constant operand as integers of an activation.
pub(crate) fn quantise_constant(constant: &ConstTensor, quantizer: &Quantizer) -> Option<ConstTensor> {
    let integer = |&value: &f32| -> Option<u8> {
        let q = quantizer.quantize(value);
        match quantizer.dtype {
            DataType::Uint8 => u8::try_from(q).ok(),
            _ => i8::try_from(q).ok().map(i8::cast_unsigned),
        }
    };
    let bytes: Vec<u8> = float_values(constant).iter().map(integer).collect::<Option<_>>()?;
    ConstTensor::new(quantizer.dtype, constant.dims().to_vec(), bytes)
}

/// Whether activations with these options use a zero point.
pub(crate) fn zero_point_bytes(quantizer: &Quantizer) -> Option<u8> {
    match quantizer.dtype {
        DataType::Uint8 => u8::try_from(quantizer.zero_point).ok(),
        _ => i8::try_from(quantizer.zero_point).ok().map(i8::cast_unsigned),
    }
}

#[cfg(test)]
mod tests;
