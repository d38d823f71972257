//! Element-wise helpers of training.
//!
//! Each element is computed alone by the formula given, so vectors of any width give the same bits.
//! The loops are plain; each is compiled once more for every instruction set, by the compiler's own vectors.

use crate::error::{KernelError, check_length};
use crate::isa::Isa;

/// The same plain loop compiled for an instruction set.
macro_rules! for_each_isa {
    ($isa:expr, $loop:ident($($argument:expr),*), ($($name:ident: $type:ty),*)) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,fma")]
        unsafe fn avx512($($name: $type),*) {
            $loop($($name),*);
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma")]
        unsafe fn avx2($($name: $type),*) {
            $loop($($name),*);
        }
        #[cfg(target_arch = "x86_64")]
        if $isa.uses_avx512() {
            // SAFETY: AVX-512 is available.
            return unsafe { avx512($($argument),*) };
        } else if $isa.uses_avx2() {
            // SAFETY: AVX2 and FMA are available.
            return unsafe { avx2($($argument),*) };
        }
        let _ = $isa;
        $loop($($argument),*);
    }};
}

/// `out[i] = scale * (bytes[i] - zero_point)`, the difference exact, one rounding.
///
/// # Errors
/// [`KernelError::Length`] if `bytes` and `out` differ in length.
pub fn dequantise(isa: Isa, bytes: &[u8], zero_point: u8, scale: f32, out: &mut [f32]) -> Result<(), KernelError> {
    #[inline(always)]
    fn plain(bytes: &[u8], zero_point: i32, scale: f32, out: &mut [f32]) {
        for (out, &byte) in out.iter_mut().zip(bytes) {
            *out = scale * (i32::from(byte) - zero_point) as f32;
        }
    }
    fn run(isa: Isa, bytes: &[u8], zero_point: i32, scale: f32, out: &mut [f32]) {
        for_each_isa!(isa, plain(bytes, zero_point, scale, out), (b: &[u8], z: i32, s: f32, o: &mut [f32]));
    }
    check_length("output", out.len(), bytes.len())?;
    run(isa, bytes, i32::from(zero_point), scale, out);
    Ok(())
}

/// Sets `gradient[i]` to 0 where `bytes[i]` is `low` or `high`, the ends at which an activation was clipped.
///
/// # Errors
/// [`KernelError::Length`] if `bytes` and `gradient` differ in length.
pub fn mask_gradient(isa: Isa, bytes: &[u8], low: u8, high: u8, gradient: &mut [f32]) -> Result<(), KernelError> {
    #[inline(always)]
    fn plain(bytes: &[u8], low: u8, high: u8, gradient: &mut [f32]) {
        for (gradient, &byte) in gradient.iter_mut().zip(bytes) {
            *gradient = if byte == low || byte == high { 0.0 } else { *gradient };
        }
    }
    fn run(isa: Isa, bytes: &[u8], low: u8, high: u8, gradient: &mut [f32]) {
        for_each_isa!(isa, plain(bytes, low, high, gradient), (b: &[u8], l: u8, h: u8, g: &mut [f32]));
    }
    check_length("gradient", gradient.len(), bytes.len())?;
    run(isa, bytes, low, high, gradient);
    Ok(())
}

/// `values[i] = values[i] * factor`.
pub fn scale(isa: Isa, factor: f32, values: &mut [f32]) {
    #[inline(always)]
    fn plain(factor: f32, values: &mut [f32]) {
        values.iter_mut().for_each(|value| *value *= factor);
    }
    for_each_isa!(isa, plain(factor, values), (f: f32, v: &mut [f32]));
}

/// `sums[i] = sums[i] + values[i]`.
///
/// # Errors
/// [`KernelError::Length`] if `values` and `sums` differ in length.
pub fn add(isa: Isa, values: &[f32], sums: &mut [f32]) -> Result<(), KernelError> {
    #[inline(always)]
    fn plain(values: &[f32], sums: &mut [f32]) {
        sums.iter_mut().zip(values).for_each(|(sum, &value)| *sum += value);
    }
    fn run(isa: Isa, values: &[f32], sums: &mut [f32]) {
        for_each_isa!(isa, plain(values, sums), (v: &[f32], s: &mut [f32]));
    }
    check_length("sums", sums.len(), values.len())?;
    run(isa, values, sums);
    Ok(())
}

/// `sums[i] = fma(factor, values[i], sums[i])`.
///
/// # Errors
/// [`KernelError::Length`] if `values` and `sums` differ in length.
pub fn multiply_add(isa: Isa, factor: f32, values: &[f32], sums: &mut [f32]) -> Result<(), KernelError> {
    #[inline(always)]
    fn plain(factor: f32, values: &[f32], sums: &mut [f32]) {
        sums.iter_mut().zip(values).for_each(|(sum, &value)| *sum = factor.mul_add(value, *sum));
    }
    fn run(isa: Isa, factor: f32, values: &[f32], sums: &mut [f32]) {
        for_each_isa!(isa, plain(factor, values, sums), (f: f32, v: &[f32], s: &mut [f32]));
    }
    check_length("sums", sums.len(), values.len())?;
    run(isa, factor, values, sums);
    Ok(())
}
