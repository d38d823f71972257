//! The arithmetic of the steps that combine bytes, each operation rounded as ONNX Runtime's CPU kernels round it.
//!
//! Sources (file names of ONNX Runtime): `mlas/lib/quantize.cpp`, `mlas/lib/intrinsics/avx2/qladd_avx2.cpp`,
//! `mlas/lib/qlmul.cpp`, `mlas/lib/qlgavgpool.cpp`, `contrib_ops/cpu/quantization/qlinear_pool.cc`.
//! `fl` is a rounding to fp32, `fma` a product and a sum with one rounding; values and zero points are the model's
//! own (signed for int8).

use crate::program::{Tensor, Word};

/// The model's integer of a biased byte.
pub fn value(word: Word, biased: u8) -> i32 {
    match word {
        Word::Unsigned => i32::from(biased),
        Word::Signed => i32::from(biased) - 128,
    }
}

/// The biased byte nearest to an integer of the model.
fn saturate(word: Word, value: i32) -> u8 {
    let biased = match word {
        Word::Unsigned => value,
        Word::Signed => value.saturating_add(128),
    };
    biased.clamp(0, 255) as u8
}

/// Round half to even to an integer; far values saturate, NaN is 0.
fn round(value: f32) -> i32 {
    value.round_ties_even() as i32
}

/// QuantizeLinear: `clamp(round_half_even(fl(value / scale)) + zero_point)`; NaN becomes the lowest byte.
pub fn quantize(tensor: &Tensor, value: f32) -> u8 {
    let low = -f32::from(tensor.zero_point);
    let steps = value / tensor.scale;
    // NaN compares false and takes the bound, as the runtime's vector maximum does.
    let steps = if steps > low { steps } else { low };
    (round(steps.min(low + 255.0)) + i32::from(tensor.zero_point)).clamp(0, 255) as u8
}

/// Sum of two bytes: with `r_a = fl(a_scale / y_scale)`, `r_b` likewise and
/// `fixed = fl(y_zero - fl(r_a * a_zero + r_b * b_zero))`:
/// `saturate(round_half_even(fma(a, r_a, fma(b, r_b, fixed))))`.
#[derive(Clone, Copy, Debug)]
pub struct Addition {
    words: [Word; 3],
    ratios: [f32; 2],
    fixed: f32,
    swapped: bool,
}

impl Addition {
    /// The sum of `a` and `b` on the grid of `y`. Where the first operand is one value for a whole row of the
    /// second, the runtime swaps them.
    pub fn of(a: &Tensor, b: &Tensor, y: &Tensor) -> Self {
        let swapped = a.shape.last() == Some(&1) && b.shape.last().is_some_and(|&length| length != 1);
        if swapped { Self { swapped, ..Self::new(b, a, y) } } else { Self::new(a, b, y) }
    }

    fn new(a: &Tensor, b: &Tensor, y: &Tensor) -> Self {
        let zero = |t: &Tensor| value(t.word, t.zero_point) as f32;
        let ratios = [a.scale / y.scale, b.scale / y.scale];
        let fixed = zero(y) - ratios[0].mul_add(zero(a), ratios[1] * zero(b));
        Self { words: [a.word, b.word, y.word], ratios, fixed, swapped: false }
    }

    /// The ratios `r_a` and `r_b`, `fixed`, and whether the operands change places, for a vector loop.
    pub fn terms(&self) -> ([f32; 2], f32, bool) {
        (self.ratios, self.fixed, self.swapped)
    }

    /// The sum's biased byte.
    pub fn apply(&self, a: u8, b: u8) -> u8 {
        let (a, b) = if self.swapped { (b, a) } else { (a, b) };
        let [a_word, b_word, y_word] = self.words;
        let b = (value(b_word, b) as f32).mul_add(self.ratios[1], self.fixed);
        saturate(y_word, round((value(a_word, a) as f32).mul_add(self.ratios[0], b)))
    }
}

/// Product of two bytes: `saturate(round_half_even(fl(fl((a - a_zero) * (b - b_zero) * r) + y_zero)))` with
/// `r = fl(fl(a_scale * b_scale) / y_scale)`.
#[derive(Clone, Copy, Debug)]
pub struct Multiplication {
    zeros: [i32; 2],
    ratio: f32,
    y_zero: f32,
    word: Word,
}

impl Multiplication {
    /// The product of `a` and `b` on the grid of `y`.
    pub fn new(a: &Tensor, b: &Tensor, y: &Tensor) -> Self {
        Self {
            zeros: [i32::from(a.zero_point), i32::from(b.zero_point)],
            ratio: a.scale * b.scale / y.scale,
            y_zero: value(y.word, y.zero_point) as f32,
            word: y.word,
        }
    }

    /// The product's biased byte.
    pub fn apply(&self, a: u8, b: u8) -> u8 {
        let product = (i32::from(a) - self.zeros[0]) * (i32::from(b) - self.zeros[1]);
        saturate(self.word, round(product as f32 * self.ratio + self.y_zero))
    }
}

/// Mean over all positions: `clamp(round_half_even(fl(fl(sum - count * x_zero) * m)) + y_zero)` with
/// `m = fl(x_scale / fl(y_scale * count))`.
#[derive(Clone, Copy, Debug)]
pub struct Pooling {
    bias: i64,
    multiplier: f32,
    y_zero: i32,
}

impl Pooling {
    /// The mean of `count` bytes of `x` on the grid of `y`.
    pub fn new(x: &Tensor, y: &Tensor, count: usize) -> Self {
        Self {
            bias: -i64::from(x.zero_point) * count as i64,
            multiplier: x.scale / (y.scale * count as f32),
            y_zero: i32::from(y.zero_point),
        }
    }

    /// The biased byte of the mean of bytes that add up to `sum`.
    pub fn apply(&self, sum: u64) -> u8 {
        let steps = round((sum.cast_signed() + self.bias) as f32 * self.multiplier);
        steps.saturating_add(self.y_zero).clamp(0, 255) as u8
    }
}

/// Mean of a window: the taps as fp32 (`fl(x_scale * (x - x_zero))`), added in their order in fp32, divided by
/// their number; then `saturate(round_half_even(fl(fl(mean / y_scale) + y_zero)))`.
#[derive(Clone, Copy, Debug)]
pub struct WindowMean<'a> {
    x: &'a Tensor,
    y: &'a Tensor,
}

impl<'a> WindowMean<'a> {
    /// The mean of bytes of `x` on the grid of `y`.
    pub fn new(x: &'a Tensor, y: &'a Tensor) -> Self {
        Self { x, y }
    }

    /// The mean's biased byte: of `taps`, divided by `count`.
    pub fn apply(&self, taps: impl Iterator<Item = u8>, count: usize) -> u8 {
        let sum = taps.fold(0.0f32, |sum, tap| sum + self.x.real(tap));
        let zero = value(self.y.word, self.y.zero_point) as f32;
        saturate(self.y.word, round(sum / count as f32 / self.y.scale + zero))
    }
}
