//! Byte-by-byte functions: table lookup and quantized addition.

use crate::error::{KernelError, check_length};
use crate::isa::Isa;

/// `out[i] = table[input[i]]`.
///
/// An instruction set that this machine lacks is replaced by the scalar loop.
///
/// # Errors
/// [`KernelError::Length`] if `input` and `out` differ in length.
pub fn lookup(isa: Isa, table: &[u8; 256], input: &[u8], out: &mut [u8]) -> Result<(), KernelError> {
    check_length("output", out.len(), input.len())?;
    let done = vector_lookup(isa, table, input, out);
    for (out, &index) in out[done..].iter_mut().zip(&input[done..]) {
        *out = table[usize::from(index)];
    }
    Ok(())
}

/// How the products of [`Add`] are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// `fl32(fl32(fixed + fl32(a * left)) + fl32(b * right))`.
    Separate,
    /// `fma(b, right, fma(a, left, fixed))`: one rounding per multiply-add.
    Fused,
}

/// Addition of two quantized tensors: `y = clamp(round_half_even(fixed + a * left + b * right), low, high)`, in fp32.
///
/// The zero points, of the output too, belong into `fixed`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Add {
    /// Scale of the left operand over the output's, below 1e30 in size.
    pub left: f32,
    /// Scale of the right operand over the output's, below 1e30 in size.
    pub right: f32,
    /// The constant term, below 1e30 in size.
    pub fixed: f32,
    /// Lowest output, at least 0.
    pub low: i32,
    /// Highest output, at most 255.
    pub high: i32,
    /// How products are rounded.
    pub rounding: Rounding,
}

impl Add {
    /// One output.
    pub fn apply(&self, a: u8, b: u8) -> u8 {
        let (a, b) = (f32::from(a), f32::from(b));
        let sum = match self.rounding {
            Rounding::Separate => self.fixed + a * self.left + b * self.right,
            Rounding::Fused => b.mul_add(self.right, a.mul_add(self.left, self.fixed)),
        };
        sum.max(self.low as f32).min(self.high as f32).round_ties_even() as u8
    }

    /// `out[i]` from `a[i]` and `b[i]`.
    ///
    /// An instruction set that this machine lacks is replaced by the scalar loop.
    ///
    /// # Errors
    /// [`KernelError`] for slices of different lengths, constants that are not usable, or limits that no byte satisfies.
    pub fn run(&self, isa: Isa, a: &[u8], b: &[u8], out: &mut [u8]) -> Result<(), KernelError> {
        check_length("right operand", b.len(), a.len())?;
        check_length("output", out.len(), a.len())?;
        let Self { low, high, .. } = *self;
        if !(0 <= low && low <= high && high <= 255) {
            return Err(KernelError::OutputRange { zero_point: 0, low, high });
        }
        // Sums of such sizes stay finite, so no NaN can arise. A NaN fails the comparison, too.
        let usable = |value: f32| value.abs() < 1e30;
        if let Some(at) = [self.left, self.right, self.fixed].into_iter().position(|value| !usable(value)) {
            return Err(KernelError::Multiplier { at });
        }
        let done = vector_add(isa, self, a, b, out);
        for ((out, &a), &b) in out[done..].iter_mut().zip(&a[done..]).zip(&b[done..]) {
            *out = self.apply(a, b);
        }
        Ok(())
    }
}

/// How many bytes a vector loop has done.
fn vector_lookup(isa: Isa, table: &[u8; 256], input: &[u8], out: &mut [u8]) -> usize {
    #[cfg(target_arch = "x86_64")]
    if isa.uses_vbmi() {
        // SAFETY: AVX-512 VBMI is available.
        return unsafe { crate::x86::bytes::lookup(table, input, out) };
    }
    let _ = (isa, table, input, out);
    0
}

/// How many bytes a vector loop has done.
fn vector_add(isa: Isa, add: &Add, a: &[u8], b: &[u8], out: &mut [u8]) -> usize {
    #[cfg(target_arch = "x86_64")]
    if isa.uses_avx512() {
        // SAFETY: AVX-512 is available.
        return unsafe { crate::x86::bytes::add_avx512(add, a, b, out) };
    } else if isa.uses_avx2() {
        // SAFETY: AVX2 and FMA are available.
        return unsafe { crate::x86::bytes::add_avx2(add, a, b, out) };
    }
    let _ = (isa, add, a, b, out);
    0
}
