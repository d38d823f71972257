//! Element-wise helpers of training.
//!
//! Each element is computed alone by the formula given, so vectors of any width give the same bits.

use crate::error::{KernelError, check_length};
use crate::isa::Isa;

/// `out[i] = scale * (bytes[i] - zero_point)`, the difference exact, one rounding.
///
/// # Errors
/// [`KernelError::Length`] if `bytes` and `out` differ in length.
pub fn dequantise(isa: Isa, bytes: &[u8], zero_point: u8, scale: f32, out: &mut [f32]) -> Result<(), KernelError> {
    check_length("output", out.len(), bytes.len())?;
    let _ = isa;
    for (out, &byte) in out.iter_mut().zip(bytes) {
        *out = scale * (f32::from(byte) - f32::from(zero_point));
    }
    Ok(())
}

/// Sets `gradient[i]` to 0 where `bytes[i]` is `low` or `high`, the ends at which an activation was clipped.
///
/// # Errors
/// [`KernelError::Length`] if `bytes` and `gradient` differ in length.
pub fn mask_gradient(isa: Isa, bytes: &[u8], low: u8, high: u8, gradient: &mut [f32]) -> Result<(), KernelError> {
    check_length("gradient", gradient.len(), bytes.len())?;
    let _ = isa;
    for (gradient, &byte) in gradient.iter_mut().zip(bytes) {
        *gradient = if byte == low || byte == high { 0.0 } else { *gradient };
    }
    Ok(())
}

/// `values[i] = values[i] * factor`.
pub fn scale(isa: Isa, factor: f32, values: &mut [f32]) {
    let _ = isa;
    values.iter_mut().for_each(|value| *value *= factor);
}

/// `sums[i] = sums[i] + values[i]`.
///
/// # Errors
/// [`KernelError::Length`] if `values` and `sums` differ in length.
pub fn add(isa: Isa, values: &[f32], sums: &mut [f32]) -> Result<(), KernelError> {
    check_length("sums", sums.len(), values.len())?;
    let _ = isa;
    sums.iter_mut().zip(values).for_each(|(sum, &value)| *sum += value);
    Ok(())
}

/// `sums[i] = fma(factor, values[i], sums[i])`.
///
/// # Errors
/// [`KernelError::Length`] if `values` and `sums` differ in length.
pub fn multiply_add(isa: Isa, factor: f32, values: &[f32], sums: &mut [f32]) -> Result<(), KernelError> {
    check_length("sums", sums.len(), values.len())?;
    let _ = isa;
    sums.iter_mut().zip(values).for_each(|(sum, &value)| *sum = factor.mul_add(value, *sum));
    Ok(())
}
