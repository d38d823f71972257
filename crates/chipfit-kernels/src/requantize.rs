//! From accumulators to bytes, in floating point (ONNX) or fixed point (TFLite).
//!
//! Float form: `y = clamp(round_half_even(fl32(fl32(acc) * m)) + zero_point, low, high)`.
//! Computed as the clamp of the product to `low - zero_point ..= high - zero_point`, then the rounding, then the zero
//! point: equal, because the limits are integers that fp32 holds, and rounding is monotone and keeps integers.
//!
//! Fixed form: `a = acc << max(shift, 0)` (wrapping), `h = saturating rounding doubling high multiply(a, m)`,
//! `y = clamp(rounding right shift(h, max(-shift, 0)) + zero_point, low, high)`.

use crate::error::{KernelError, check_length};

/// Requantization in fp32, as ONNX Runtime's CPU does it.
#[derive(Clone, Debug, PartialEq)]
pub struct Requantize {
    /// One per output channel, finite.
    pub multipliers: Vec<f32>,
    /// Added after rounding, 0..=255.
    pub zero_point: i32,
    /// Lowest output, at least 0.
    pub low: i32,
    /// Highest output, at most 255.
    pub high: i32,
}

/// Requantization in fixed point, as TFLite's reference kernels do it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fixed {
    /// One per output channel; a multiplier `m` stands for `m / 2^31`.
    pub multipliers: Vec<i32>,
    /// One per output channel, -31..=31; positive shifts left before the product, negative right after it.
    pub shifts: Vec<i32>,
    /// Added after rounding, 0..=255.
    pub zero_point: i32,
    /// Lowest output, at least 0.
    pub low: i32,
    /// Highest output, at most 255.
    pub high: i32,
}

/// Either form, borrowed; `&Requantize` and `&Fixed` convert into it.
#[derive(Clone, Copy, Debug)]
pub enum Rescale<'a> {
    /// In fp32.
    Float(&'a Requantize),
    /// In fixed point.
    Fixed(&'a Fixed),
}

impl<'a> From<&'a Requantize> for Rescale<'a> {
    fn from(requantize: &'a Requantize) -> Self {
        Self::Float(requantize)
    }
}

impl<'a> From<&'a Fixed> for Rescale<'a> {
    fn from(fixed: &'a Fixed) -> Self {
        Self::Fixed(fixed)
    }
}

impl Requantize {
    /// The byte of an accumulator of `channel`.
    ///
    /// # Panics
    /// If `channel` has no multiplier.
    pub fn apply(&self, channel: usize, accumulator: i32) -> u8 {
        self.scale(self.multipliers[channel], accumulator)
    }

    /// The byte of an accumulator whose channel has this multiplier.
    #[inline]
    pub(crate) fn scale(&self, multiplier: f32, accumulator: i32) -> u8 {
        let product = accumulator as f32 * multiplier;
        let limited = product.max((self.low - self.zero_point) as f32).min((self.high - self.zero_point) as f32);
        // Within -255..=255 once the limits hold; `as` saturates where they do not.
        (limited.round_ties_even() as i32 + self.zero_point) as u8
    }
}

impl Fixed {
    /// The byte of an accumulator of `channel`.
    ///
    /// # Panics
    /// If `channel` has no multiplier or no shift.
    pub fn apply(&self, channel: usize, accumulator: i32) -> u8 {
        let shift = self.shifts[channel];
        let shifted = accumulator.wrapping_shl(shift.max(0).unsigned_abs());
        let high = doubling_high(shifted, self.multipliers[channel]);
        let scaled = rounding_right_shift(high, (-shift).max(0).unsigned_abs());
        scaled.saturating_add(self.zero_point).clamp(self.low, self.high) as u8
    }
}

impl Rescale<'_> {
    /// The byte of an accumulator of `channel`.
    ///
    /// # Panics
    /// If `channel` has no multiplier.
    pub fn apply(&self, channel: usize, accumulator: i32) -> u8 {
        match self {
            Self::Float(float) => float.apply(channel, accumulator),
            Self::Fixed(fixed) => fixed.apply(channel, accumulator),
        }
    }

    /// Checks the limits, and that every one of `channels` has usable constants.
    pub(crate) fn check(&self, channels: usize) -> Result<(), KernelError> {
        let (zero_point, low, high) = match self {
            Self::Float(float) => (float.zero_point, float.low, float.high),
            Self::Fixed(fixed) => (fixed.zero_point, fixed.low, fixed.high),
        };
        if !((0..=255).contains(&zero_point) && 0 <= low && low <= high && high <= 255) {
            return Err(KernelError::OutputRange { zero_point, low, high });
        }
        match self {
            Self::Float(float) => {
                check_length("multipliers", float.multipliers.len(), channels)?;
                match float.multipliers.iter().position(|multiplier| !multiplier.is_finite()) {
                    Some(at) => Err(KernelError::Multiplier { at }),
                    None => Ok(()),
                }
            }
            Self::Fixed(fixed) => {
                check_length("multipliers", fixed.multipliers.len(), channels)?;
                check_length("shifts", fixed.shifts.len(), channels)?;
                match fixed.shifts.iter().position(|shift| !(-31..=31).contains(shift)) {
                    Some(at) => Err(KernelError::Shift { at, shift: fixed.shifts[at] }),
                    None => Ok(()),
                }
            }
        }
    }
}

/// The high half of `2 * a * b`, rounded to nearest with halves up; saturates when both are `i32::MIN`.
fn doubling_high(a: i32, b: i32) -> i32 {
    if a == i32::MIN && b == i32::MIN {
        return i32::MAX;
    }
    let product = i64::from(a) * i64::from(b);
    let nudge = if product >= 0 { 1 << 30 } else { 1 - (1 << 30) };
    // Truncating division, as the source has it; the quotient fits because the one overflow is caught above.
    ((product + nudge) / (1 << 31)) as i32
}

/// `value / 2^shift`, rounded to nearest with halves away from zero; `shift` is 0..=31.
fn rounding_right_shift(value: i32, shift: u32) -> i32 {
    let mask = ((1_i64 << shift) - 1) as i32;
    let remainder = value & mask;
    let threshold = (mask >> 1) + i32::from(value < 0);
    (value >> shift) + i32::from(remainder > threshold)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn float(multiplier: f32, zero_point: i32) -> Requantize {
        Requantize { multipliers: vec![multiplier], zero_point, low: 0, high: 255 }
    }

    #[test]
    fn ties_go_to_even() {
        let half = float(0.5, 100);
        let bytes: Vec<u8> = [-5, -3, -1, 1, 3, 5].into_iter().map(|acc| half.apply(0, acc)).collect();
        assert_eq!(bytes, [98, 98, 100, 100, 102, 102]);
    }

    #[test]
    fn extremes_are_clamped() {
        let big = float(f32::MAX, 3);
        assert_eq!(big.apply(0, i32::MAX), 255);
        assert_eq!(big.apply(0, i32::MIN), 0);
        assert_eq!(big.apply(0, 0), 3);
    }

    #[test]
    fn fixed_point_rounds_as_its_source_does() {
        let fixed =
            |shift| Fixed { multipliers: vec![1 << 30], shifts: vec![shift], zero_point: 100, low: 0, high: 255 };
        // 1 << 30 stands for a half; the high multiply rounds halves up, the right shift away from zero.
        let bytes: Vec<u8> = [-3, -1, 1, 3].into_iter().map(|acc| fixed(0).apply(0, acc)).collect();
        assert_eq!(bytes, [99, 100, 101, 102]);
        assert_eq!(fixed(1).apply(0, 7), 107);
        assert_eq!(fixed(-1).apply(0, 6), 102);
        assert_eq!(fixed(-31).apply(0, i32::MIN), 99);
        assert_eq!(doubling_high(i32::MIN, i32::MIN), i32::MAX);
    }

    #[test]
    fn unusable_constants_are_refused() {
        let check = |r: &Requantize| Rescale::from(r).check(1);
        assert_eq!(check(&float(f32::NAN, 0)), Err(KernelError::Multiplier { at: 0 }));
        assert!(check(&float(1.0, 256)).is_err());
        assert!(check(&Requantize { low: 9, high: 8, ..float(1.0, 0) }).is_err());
        assert_eq!(
            Rescale::from(&float(1.0, 0)).check(2),
            Err(KernelError::Length { what: "multipliers", wanted: 2, got: 1 })
        );
    }
}
