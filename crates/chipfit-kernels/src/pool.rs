//! Pooling over NHWC maps: maxima and sums of windows.

use std::ops::Range;

use crate::error::{KernelError, check_length};
use crate::geometry::{LIMIT, positions};
use crate::isa::Isa;

/// Shapes of a pooling. Taps on padding are left out.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pool {
    /// Rows and columns of the input map.
    pub input: [usize; 2],
    /// Channels.
    pub channels: usize,
    /// Rows and columns of the window.
    pub kernel: [usize; 2],
    /// Vertical and horizontal step between two outputs.
    pub stride: [usize; 2],
    /// Vertical and horizontal step between two taps.
    pub dilation: [usize; 2],
    /// Rows or columns of padding at the top, left, bottom and right.
    pub pads: [usize; 4],
}

impl Pool {
    /// Rows and columns of the output, rounded down; add padding at the bottom and right to round up.
    ///
    /// # Errors
    /// [`KernelError`] naming the extent that is zero, does not fit or is too large.
    pub fn output(&self) -> Result<[usize; 2], KernelError> {
        let extents = [
            ("input rows", self.input[0]),
            ("input columns", self.input[1]),
            ("channels", self.channels),
            ("kernel rows", self.kernel[0]),
            ("kernel columns", self.kernel[1]),
            ("vertical stride", self.stride[0]),
            ("horizontal stride", self.stride[1]),
            ("vertical dilation", self.dilation[0]),
            ("horizontal dilation", self.dilation[1]),
        ];
        if let Some((what, _)) = extents.into_iter().find(|&(_, extent)| extent == 0) {
            return Err(KernelError::Zero { what });
        }
        let mut output = [0; 2];
        for (axis, output) in output.iter_mut().enumerate() {
            (*output, _) = positions(
                axis,
                self.input[axis],
                self.kernel[axis],
                self.stride[axis],
                self.dilation[axis],
                [self.pads[axis], self.pads[axis + 2]],
            )?;
        }
        let fits = |[rows, columns]: [usize; 2]| {
            rows.checked_mul(columns).is_some_and(|pixels| pixels <= LIMIT / self.channels)
        };
        if !fits(self.input) || !fits(output) {
            return Err(KernelError::TooLarge { what: "the map" });
        }
        Ok(output)
    }

    /// The largest activation of every window and channel; 0 for a window that lies in padding altogether.
    ///
    /// `input` is one picture, `out` is `[rows.len(), output columns, channels]`.
    ///
    /// # Errors
    /// What [`Pool::output`] refuses, [`KernelError::Length`], [`KernelError::Range`].
    pub fn max(&self, isa: Isa, input: &[u8], rows: Range<usize>, out: &mut [u8]) -> Result<(), KernelError> {
        let [_, columns] = self.check(input, &rows, out.len())?;
        let pixels = rows.flat_map(|row| (0..columns).map(move |column| (row, column)));
        for ((row, column), out) in pixels.zip(out.chunks_exact_mut(self.channels)) {
            let mut first = true;
            for pixel in self.window(row, column) {
                let taken = &input[pixel * self.channels..][..self.channels];
                if first {
                    out.copy_from_slice(taken);
                    first = false;
                } else {
                    raise(isa, out, taken);
                }
            }
            if first {
                out.fill(0);
            }
        }
        Ok(())
    }

    /// The sum of the activations of every window and channel, wrapping; 0 for a window in padding.
    ///
    /// `input` is one picture, `out` is `[rows.len(), output columns, channels]`.
    ///
    /// # Errors
    /// As [`Pool::max`].
    pub fn sums(&self, isa: Isa, input: &[u8], rows: Range<usize>, out: &mut [i32]) -> Result<(), KernelError> {
        let [_, columns] = self.check(input, &rows, out.len())?;
        let pixels = rows.flat_map(|row| (0..columns).map(move |column| (row, column)));
        for ((row, column), out) in pixels.zip(out.chunks_exact_mut(self.channels)) {
            out.fill(0);
            for pixel in self.window(row, column) {
                add_bytes(isa, out, &input[pixel * self.channels..][..self.channels]);
            }
        }
        Ok(())
    }

    /// How many taps of an output's window lie inside the map.
    pub fn taps(&self, row: usize, column: usize) -> usize {
        self.window(row, column).count()
    }

    /// The input pixels of an output's window, in row-major order.
    fn window(&self, row: usize, column: usize) -> impl Iterator<Item = usize> + '_ {
        let inside = move |axis: usize, position: usize| {
            (0..self.kernel[axis]).filter_map(move |tap| {
                let padded = position * self.stride[axis] + tap * self.dilation[axis];
                padded.checked_sub(self.pads[axis]).filter(|&at| at < self.input[axis])
            })
        };
        inside(0, row).flat_map(move |y| inside(1, column).map(move |x| y * self.input[1] + x))
    }

    fn check(&self, input: &[u8], rows: &Range<usize>, outputs: usize) -> Result<[usize; 2], KernelError> {
        let output = self.output()?;
        check_length("input", input.len(), self.input[0] * self.input[1] * self.channels)?;
        if rows.start > rows.end || rows.end > output[0] {
            let Range { start, end } = *rows;
            return Err(KernelError::Range { what: "output rows", start, end, limit: output[0] });
        }
        check_length("output", outputs, rows.len() * output[1] * self.channels)?;
        Ok(output)
    }
}

/// The sum over all pixels of one map, per channel, wrapping: `input` is `[pixels, out.len()]`.
///
/// # Errors
/// [`KernelError::Zero`] for no channels, [`KernelError::Length`] if they do not divide `input`.
pub fn sum_positions(isa: Isa, input: &[u8], out: &mut [i32]) -> Result<(), KernelError> {
    let channels = out.len();
    let Some(pixels) = input.len().checked_div(channels) else {
        return Err(KernelError::Zero { what: "channels" });
    };
    check_length("input", input.len(), pixels * channels)?;
    out.fill(0);
    for pixel in input.chunks_exact(channels) {
        add_bytes(isa, out, pixel);
    }
    Ok(())
}

/// `out[i] = max(out[i], taken[i])`.
fn raise(isa: Isa, out: &mut [u8], taken: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    if isa.uses_avx2() {
        // SAFETY: AVX2 is available.
        return unsafe { crate::x86::bytes::raise(out, taken) };
    }
    let _ = isa;
    out.iter_mut().zip(taken).for_each(|(out, &taken)| *out = taken.max(*out));
}

/// `out[i] += taken[i]`, wrapping.
fn add_bytes(isa: Isa, out: &mut [i32], taken: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    if isa.uses_avx2() {
        // SAFETY: AVX2 is available.
        return unsafe { crate::x86::bytes::add_bytes(out, taken) };
    }
    let _ = isa;
    out.iter_mut().zip(taken).for_each(|(out, &taken)| *out = out.wrapping_add(i32::from(taken)));
}
