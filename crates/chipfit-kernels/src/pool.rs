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
        let windows: Vec<Option<Window>> = self.windows(rows, columns).collect();
        largest(isa, input, &windows, self.channels, out);
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
        let windows = self.windows(rows, columns);
        for (window, out) in windows.zip(out.chunks_exact_mut(self.channels)) {
            out.fill(0);
            for tap in window.iter().flat_map(Window::taps) {
                add_bytes(isa, out, &input[tap..][..self.channels]);
            }
        }
        Ok(())
    }

    /// How many taps of an output's window lie inside the map.
    pub fn taps(&self, row: usize, column: usize) -> usize {
        let along = |axis, position| self.inside(axis, position).map_or(0, |(_, count)| count);
        along(0, row) * along(1, column)
    }

    /// The taps of every output's window that lie inside the map, in row-major order; `None` where there is none.
    fn windows(&self, rows: Range<usize>, columns: usize) -> impl Iterator<Item = Option<Window>> + '_ {
        let horizontal: Vec<_> = (0..columns).map(|column| self.inside(1, column)).collect();
        rows.flat_map(move |row| {
            let vertical = self.inside(0, row);
            horizontal.clone().into_iter().map(move |horizontal| Some(self.window(vertical?, horizontal?)))
        })
    }

    /// The window of taps inside the map, from where they start and how many there are along each axis.
    fn window(&self, (top, rows): (usize, usize), (left, columns): (usize, usize)) -> Window {
        Window {
            start: (top * self.input[1] + left) * self.channels,
            counts: [rows, columns],
            steps: [self.dilation[0] * self.input[1] * self.channels, self.dilation[1] * self.channels],
        }
    }

    /// Where the first tap inside the map lies along an axis, and how many do.
    fn inside(&self, axis: usize, position: usize) -> Option<(usize, usize)> {
        let (pad, step) = (self.pads[axis], self.dilation[axis]);
        let padded = position * self.stride[axis];
        let first = pad.saturating_sub(padded).div_ceil(step);
        let at = padded + first * step - pad;
        let fitting = self.input[axis].checked_sub(at)?.div_ceil(step);
        let count = fitting.min(self.kernel[axis].checked_sub(first)?);
        (count > 0).then_some((at, count))
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

/// Taps at equal steps, inside a map.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    /// First channel of the first tap.
    pub(crate) start: usize,
    /// Rows and columns, at least one each.
    pub(crate) counts: [usize; 2],
    /// Elements between two rows, between two columns.
    pub(crate) steps: [usize; 2],
}

impl Window {
    /// Checks that the last tap's channels lie inside an input of so many elements.
    ///
    /// # Panics
    /// If they do not.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn assert_inside(&self, elements: usize, channels: usize) {
        let last = self.start + (self.counts[0] - 1) * self.steps[0] + (self.counts[1] - 1) * self.steps[1];
        assert!(last + channels <= elements, "a window lies inside its map");
    }

    /// First channel of every tap, in row-major order.
    fn taps(&self) -> impl Iterator<Item = usize> + '_ {
        let row = move |row: usize| self.start + row * self.steps[0];
        (0..self.counts[0]).flat_map(move |y| (0..self.counts[1]).map(move |x| row(y) + x * self.steps[1]))
    }
}

/// `out[w * channels + c]` is the largest `input[tap + c]` over the taps of window `w`; 0 where there is no window.
fn largest(isa: Isa, input: &[u8], windows: &[Option<Window>], channels: usize, out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if isa.uses_avx512() {
        // SAFETY: AVX-512 is available.
        return unsafe { crate::x86::bytes::largest_avx512(input, windows, channels, out) };
    } else if isa.uses_avx2() {
        // SAFETY: AVX2 is available.
        return unsafe { crate::x86::bytes::largest_avx2(input, windows, channels, out) };
    }
    let _ = isa;
    for (window, out) in windows.iter().zip(out.chunks_exact_mut(channels)) {
        largest_from(input, window.as_ref(), 0, out);
    }
}

/// The twin of the vector loops: one window, channels from `first` on.
pub(crate) fn largest_from(input: &[u8], window: Option<&Window>, first: usize, out: &mut [u8]) {
    let out = &mut out[first..];
    out.fill(0);
    for tap in window.into_iter().flat_map(Window::taps) {
        for (out, &taken) in out.iter_mut().zip(&input[tap + first..]) {
            *out = taken.max(*out);
        }
    }
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
