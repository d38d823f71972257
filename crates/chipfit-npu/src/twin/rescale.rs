//! An accumulator becomes a byte: `docs/fault-model.md`, section Arithmetic.

use crate::program::{Op, Program, Rescale, Step};

/// The biased byte of an accumulator of a Linear or MatMul step, before `out` strikes.
///
/// # Panics
/// When `step` has no products.
pub fn requantise(program: &Program, step: &Step, output: usize, accumulator: i32) -> u8 {
    let zero_point = program.tensor(step.output).zero_point;
    match &step.op {
        Op::Linear(linear) => {
            let channel = output % linear.geometry.out_channels;
            to_byte(&linear.rescale, channel, accumulator, zero_point, linear.low, linear.high)
        }
        Op::MatMul(product) => to_byte(&product.rescale, 0, accumulator, zero_point, u8::MIN, u8::MAX),
        _ => panic!("step '{}' ({}) has no accumulator", step.name, step.op_type),
    }
}

/// `clamp(rescale(accumulator) + zero_point, low, high)`.
fn to_byte(rescale: &Rescale, channel: usize, accumulator: i32, zero_point: u8, low: u8, high: u8) -> u8 {
    let (low, high) = (i32::from(low), i32::from(high));
    let scaled = match rescale {
        Rescale::Float(multipliers) => {
            // The product of two fp32 numbers, rounded once; the cast saturates, far outside of low..high.
            let steps = (accumulator as f32 * multipliers[channel]).round_ties_even();
            steps as i32
        }
        Rescale::Fixed { multipliers, shifts } => fixed(accumulator, multipliers[channel], shifts[channel]),
    };
    scaled.saturating_add(i32::from(zero_point)).clamp(low, high) as u8
}

/// TFLite's `MultiplyByQuantizedMultiplier`; a left shift wraps in int32.
fn fixed(accumulator: i32, multiplier: i32, shift: i32) -> i32 {
    let (left, right) = (shift.clamp(0, 31), (-shift).clamp(0, 31));
    rounding_shift_right(doubling_high_multiply(accumulator.wrapping_shl(left as u32), multiplier), right as u32)
}

/// `floor(a * b / 2^31 + 1/2)` (ties go up), saturating in its only overflow.
fn doubling_high_multiply(a: i32, b: i32) -> i32 {
    if a == i32::MIN && b == i32::MIN {
        return i32::MAX;
    }
    let product = i64::from(a) * i64::from(b);
    let nudge = if product >= 0 { 1 << 30 } else { 1 - (1 << 30) };
    ((product + nudge) / (1 << 31)) as i32
}

/// `round(x / 2^exponent)`, ties away from zero.
fn rounding_shift_right(x: i32, exponent: u32) -> i32 {
    let mask = ((1i64 << exponent) - 1) as i32;
    let remainder = x & mask;
    let threshold = (mask >> 1) + i32::from(x < 0);
    (x >> exponent) + i32::from(remainder > threshold)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Ties away from zero, in exact arithmetic.
    fn exact(x: i32, exponent: u32) -> i64 {
        let half = if exponent == 0 { 0 } else { 1i128 << (exponent - 1) };
        let magnitude = (i128::from(x).abs() + half) >> exponent;
        (magnitude * i128::from(x.signum())) as i64
    }

    proptest! {
        #[test]
        fn rounding_shift_rounds_ties_away_from_zero(x: i32, exponent in 0u32..32) {
            prop_assert_eq!(i64::from(rounding_shift_right(x, exponent)), exact(x, exponent));
        }

        #[test]
        fn high_multiply_is_the_rounded_product(a: i32, b in 1 << 30..=i32::MAX) {
            let product = i128::from(a) * i128::from(b);
            let twice = product * 2;
            // floor(x + 1/2), in halves.
            let rounded = (twice + (1i128 << 31)).div_euclid(1i128 << 32);
            prop_assert_eq!(i128::from(doubling_high_multiply(a, b)), rounded);
        }

        #[test]
        fn both_forms_agree_for_powers_of_two_but_near_ties(accumulator in -60_000i32..60_000, exponent in 1i32..9) {
            let float = Rescale::Float(vec![1.0 / (1 << exponent) as f32]);
            let fixed = Rescale::Fixed { multipliers: vec![1 << 30], shifts: vec![1 - exponent] };
            let [a, b] = [&float, &fixed].map(|form| to_byte(form, 0, accumulator, 100, 0, 255));
            // The fixed form rounds twice: to halves of the multiplication first.
            let remainder = accumulator.rem_euclid(1 << exponent);
            let is_near_tie = (remainder - (1 << (exponent - 1))).abs() <= 1;
            prop_assert!(a == b || (is_near_tie && a.abs_diff(b) == 1), "{} and {}", a, b);
        }
    }

    #[test]
    fn the_only_overflow_of_the_high_multiply_saturates() {
        assert_eq!(doubling_high_multiply(i32::MIN, i32::MIN), i32::MAX);
    }

    #[test]
    fn float_form_rounds_half_to_even_and_clamps() {
        let half = Rescale::Float(vec![0.5]);
        let byte = |accumulator| to_byte(&half, 0, accumulator, 10, 5, 20);
        assert_eq!([1, 3, -1, -3, 100, -100, i32::MAX, i32::MIN].map(byte), [10, 12, 10, 8, 20, 5, 20, 5]);
    }
}
