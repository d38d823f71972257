//! Scales, zero points and rounding: the formulas of docs/quantization.md, one function each.
//!
//! `q = saturate(round_half_even(x / scale) + zero_point)` in f32, as QuantizeLinear computes it, and
//! `x = (q - zero_point) * scale`. Every range contains 0, so 0 is exact.

use chipfit_model::DataType;

use crate::options::Activations;
use crate::simplify::to_f32;

/// Scales below this are as good as 0 and would make products of two scales subnormal.
const LEAST_SCALE: f64 = 8.673_617_379_884_035e-19; // 2^-60

/// The largest magnitude of a quantised weight.
pub(crate) const WEIGHT_MAX: i32 = 127;

/// The smallest and largest value of a tensor that keeps its meaning; `low <= 0 <= high`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Range {
    /// The lower end.
    pub low: f32,
    /// The upper end.
    pub high: f32,
}

impl Range {
    /// The range from `low` to `high`, widened to include 0.
    pub fn new(low: f32, high: f32) -> Self {
        Self { low: low.min(0.0), high: high.max(0.0) }
    }

    /// The smallest range that holds both.
    pub fn union(self, other: Self) -> Self {
        Self { low: self.low.min(other.low), high: self.high.max(other.high) }
    }

    /// Its length.
    pub fn width(self) -> f64 {
        f64::from(self.high) - f64::from(self.low)
    }
}

/// How a tensor is quantised.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quantizer {
    /// The step; positive and finite.
    pub scale: f32,
    /// The integer that stands for 0.
    pub zero_point: i32,
    /// uint8 or int8.
    pub dtype: DataType,
}

impl Quantizer {
    /// The quantiser of an activation whose range is `range`.
    pub fn activation(range: Range, kind: Activations, power_of_two: bool) -> Self {
        let dtype = kind.dtype();
        let (low, high) = (f64::from(range.low), f64::from(range.high));
        if kind == Activations::Int8Symmetric {
            let scale = step(low.abs().max(high) / f64::from(WEIGHT_MAX), power_of_two);
            return Self { scale, zero_point: 0, dtype };
        }
        let (least, most) = bounds(dtype);
        let scale = step((high - low) / f64::from(most - least), power_of_two);
        let zero_point = (f64::from(least) - low / f64::from(scale)).round_ties_even();
        Self { scale, zero_point: to_i32(zero_point).clamp(least, most), dtype }
    }

    /// The quantiser of weights whose largest magnitude is `most`; 1 where that is 0.
    pub fn weight(most: f32, power_of_two: bool) -> Self {
        let scale = step(f64::from(most) / f64::from(WEIGHT_MAX), power_of_two);
        Self { scale, zero_point: 0, dtype: DataType::Int8 }
    }

    /// The integer of `x`.
    pub fn quantize(&self, x: f32) -> i32 {
        let (least, most) = bounds(self.dtype);
        to_i32(f64::from((x / self.scale).round_ties_even())).saturating_add(self.zero_point).clamp(least, most)
    }

    /// The value of `q`.
    pub fn dequantize(&self, q: i32) -> f32 {
        to_f32(f64::from(q.saturating_sub(self.zero_point))) * self.scale
    }
}

/// The least and greatest integer of an 8-bit type.
pub(crate) fn bounds(dtype: DataType) -> (i32, i32) {
    if dtype == DataType::Uint8 { (0, 255) } else { (-128, 127) }
}

/// A step as a float: 1 for none, at least 2^-60, and where asked the next power of two above.
fn step(exact: f64, power_of_two: bool) -> f32 {
    if exact <= 0.0 || exact.is_nan() {
        return 1.0;
    }
    let scale = to_f32(exact.max(LEAST_SCALE));
    if power_of_two { next_power_of_two(scale) } else { scale }
}

/// The least power of two that is at least `scale`, a positive normal number.
pub(crate) fn next_power_of_two(scale: f32) -> f32 {
    const MANTISSA: u32 = (1 << 23) - 1;
    let bits = scale.to_bits();
    match bits & MANTISSA {
        0 => scale,
        _ => f32::from_bits((bits & !MANTISSA).saturating_add(1 << 23)),
    }
}

/// The nearest integer, saturating; NaN is 0.
#[expect(clippy::cast_possible_truncation, reason = "the conversion of float to integer saturates")]
pub(crate) fn to_i32(value: f64) -> i32 {
    value as i32
}

/// The scale of a bias: `fl32(x_scale * w_scale)`, the unit of the accumulator.
pub(crate) fn bias_scale(x_scale: f32, w_scale: f32) -> f32 {
    x_scale * w_scale
}

/// The least weight scale with which `|bias| <= limit` in units of `x_scale * w_scale`.
pub(crate) fn weight_scale_for_bias(bias: f32, x_scale: f32, limit: i64, power_of_two: bool) -> f32 {
    let limit = i32::try_from(limit).unwrap_or(i32::MAX).max(1);
    // A little more than exact, so that rounding the scale and the product cannot lead over the limit.
    let scale = to_f32((f64::from(bias.abs()) / f64::from(x_scale) / f64::from(limit)) * (1.0 + 1e-6));
    if power_of_two { next_power_of_two(scale) } else { scale }
}

/// Largest magnitude that a bias may have so that no accumulator of `terms` products can leave 32 bits.
pub(crate) fn bias_limit(terms: usize, activations: Activations) -> i64 {
    let most = if activations == Activations::Int8Symmetric { 128 } else { 255 };
    let products = i64::try_from(terms).unwrap_or(i64::MAX).saturating_mul(most * i64::from(WEIGHT_MAX));
    // Where the products alone can leave it, no bias helps: half the range is the bias's.
    (i64::from(i32::MAX) - products).max(1 << 30)
}

#[cfg(test)]
mod tests;
