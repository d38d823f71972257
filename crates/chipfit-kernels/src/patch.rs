//! Single outputs: partial sums and operands, for exact patches of struck outputs.

use crate::conv::Conv;
use crate::isa::Isa;
use crate::scalar;

/// `sum x_i * w_i`, wrapping.
///
/// # Panics
/// If the slices differ in length.
pub fn dot(x: &[u8], w: &[i8]) -> i32 {
    centered_dot(Isa::best(), 0, x, w)
}

/// `sum (x_i - zero_point) * w_i`, wrapping.
///
/// An instruction set that this machine lacks is replaced by the scalar loop.
///
/// # Panics
/// If the slices differ in length.
pub fn centered_dot(isa: Isa, zero_point: u8, x: &[u8], w: &[i8]) -> i32 {
    assert_eq!(x.len(), w.len(), "a dot product takes slices of one length");
    #[cfg(target_arch = "x86_64")]
    if x.len() >= 16 {
        if isa.uses_avx512() {
            // SAFETY: AVX-512 VNNI is available.
            return unsafe { crate::x86::dot::avx512(zero_point, x, w) };
        }
        if isa.uses_avx2() {
            // SAFETY: AVX2 is available.
            return unsafe { crate::x86::dot::avx2(zero_point, x, w) };
        }
    }
    let _ = isa;
    scalar_dot(zero_point, x, w)
}

/// The twin of the vector loops.
pub(crate) fn scalar_dot(zero_point: u8, x: &[u8], w: &[i8]) -> i32 {
    x.iter().zip(w).fold(0_i32, |sum, (&x, &w)| sum.wrapping_add((i32::from(x) - i32::from(zero_point)) * i32::from(w)))
}

impl Conv {
    /// The accumulator of one output after its first `upto_k` products: bias, plus `(x_k - zero_point) * w_k` for
    /// `k < upto_k` in the order of [`Conv::row`]; products on padding are zero.
    ///
    /// # Panics
    /// If `input` is not one picture, the output does not exist, or `upto_k` exceeds the products.
    pub fn partial(&self, input: &[u8], out_row: usize, out_col: usize, out_channel: usize, upto_k: usize) -> i32 {
        self.assert_output(input, [out_row, out_col, out_channel]);
        let geometry = self.geometry();
        let weights = &self.row(out_channel)[..upto_k];
        let channels = geometry.in_channels / geometry.groups;
        let group = out_channel / (geometry.out_channels / geometry.groups);
        let zero_point = self.input_zero_point();
        let kernel_row = geometry.kernel[1] * channels;
        let mut sum = self.bias()[out_channel];
        // Columns side by side are one run.
        let joined = geometry.groups == 1 && geometry.dilation[1] == 1;
        for (tap_row, weights) in weights.chunks(kernel_row).enumerate() {
            let Some(row) = scalar::tap(geometry, 0, out_row, tap_row) else { continue };
            if joined {
                let start = (out_col * geometry.stride[1]).wrapping_sub(geometry.pads[1]).cast_signed();
                let first_tap = start.min(0).unsigned_abs();
                let column = start.max(0).unsigned_abs();
                let from = (first_tap * channels).min(weights.len());
                let inside = geometry.input[1].saturating_sub(column) * channels;
                let weights = &weights[from..][..inside.min(weights.len() - from)];
                let pixel = (row * geometry.input[1] + column) * channels;
                if !weights.is_empty() {
                    let x = &input[pixel..][..weights.len()];
                    sum = sum.wrapping_add(centered_dot(self.isa(), zero_point, x, weights));
                }
                continue;
            }
            for (tap, weights) in weights.chunks(channels).enumerate() {
                let Some(column) = scalar::tap(geometry, 1, out_col, tap) else { continue };
                let pixel = (row * geometry.input[1] + column) * geometry.in_channels + group * channels;
                let x = &input[pixel..][..weights.len()];
                sum = sum.wrapping_add(centered_dot(self.isa(), zero_point, x, weights));
            }
        }
        sum
    }

    /// The operands of product `k` of one output: the activation minus its zero point (0 on padding), and the weight.
    ///
    /// # Panics
    /// If `input` is not one picture, the output does not exist, or there is no product `k`.
    pub fn operand(&self, input: &[u8], out_row: usize, out_col: usize, out_channel: usize, k: usize) -> (i32, i32) {
        self.assert_output(input, [out_row, out_col, out_channel]);
        let geometry = self.geometry();
        let weight = i32::from(self.row(out_channel)[k]);
        let channels = geometry.in_channels / geometry.groups;
        let group = out_channel / (geometry.out_channels / geometry.groups);
        let (tap, channel) = (k / channels, k % channels);
        let row = scalar::tap(geometry, 0, out_row, tap / geometry.kernel[1]);
        let column = scalar::tap(geometry, 1, out_col, tap % geometry.kernel[1]);
        let (Some(row), Some(column)) = (row, column) else { return (0, weight) };
        let at = (row * geometry.input[1] + column) * geometry.in_channels + group * channels + channel;
        (i32::from(input[at]) - i32::from(self.input_zero_point()), weight)
    }

    fn assert_output(&self, input: &[u8], [row, column, channel]: [usize; 3]) {
        assert_eq!(input.len(), self.picture_bytes(), "input is one picture");
        let [rows, columns] = self.output();
        assert!(
            row < rows && column < columns && channel < self.geometry().out_channels,
            "output ({row}, {column}, {channel}) does not exist"
        );
    }
}
