//! The operands of one output of a linear step: single products, and partial sums over a range of k.
//!
//! Promises: k counts kernel row, kernel column, input channel within the group; a tap on padding is a product of 0;
//! sums wrap. Overrides replace single operands of this output only (buffer faults with a limited reuse).

use std::ops::Range;

use chipfit_kernels::{DotRun, Isa, dot_runs};

use crate::program::{ConvGeometry, Linear};

/// One product whose operands differ from the buffers, for one output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Override {
    /// Which product.
    pub(crate) k: usize,
    /// The activation in its place, as a biased byte.
    pub(crate) activation: Option<u8>,
    /// The weight in its place.
    pub(crate) weight: Option<i8>,
}

/// The products of one output.
pub(crate) trait Products {
    /// Product `k`, as the processor computes it.
    fn product(&self, k: usize) -> i32;
    /// The sum of the products of a range of k, wrapping.
    fn sum(&self, range: Range<usize>) -> i32;
}

/// What every output of one linear step and one picture shares.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operands<'a> {
    pub(crate) linear: &'a Linear,
    /// Output height and width.
    pub(crate) map: [usize; 2],
    /// One picture, with its buffer faults applied.
    pub(crate) input: &'a [u8],
    pub(crate) zero_point: u8,
    pub(crate) isa: Isa,
}

/// The operands of one output.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taps<'a> {
    shared: &'a Operands<'a>,
    row: usize,
    column: usize,
    /// First channel of the group in the input.
    first_channel: usize,
    /// The output channel's weights, with their buffer faults applied.
    weights: &'a [i8],
    weight_zero_point: i32,
    overrides: &'a [Override],
}

impl<'a> Operands<'a> {
    /// The operands of output pixel `pixel` (row-major) and `channel`, with that channel's weights.
    pub(crate) fn taps(
        &'a self,
        pixel: usize,
        channel: usize,
        weights: &'a [i8],
        overrides: &'a [Override],
    ) -> Taps<'a> {
        let geometry = &self.linear.geometry;
        let per_group = geometry.out_channels / geometry.groups;
        Taps {
            shared: self,
            row: pixel / self.map[1],
            column: pixel % self.map[1],
            first_channel: channel / per_group * (geometry.in_channels / geometry.groups),
            weights,
            weight_zero_point: i32::from(self.linear.weight_zero_points[channel]),
            overrides,
        }
    }
}

/// Output height and width of a geometry that the kernels took; 0 of one that they refuse.
pub(crate) fn output_map(geometry: &ConvGeometry) -> [usize; 2] {
    geometry.output()
}

/// Where tap `tap` of output `position` reads along `axis`; `None` on padding.
pub(crate) fn tap(geometry: &ConvGeometry, axis: usize, position: usize, tap: usize) -> Option<usize> {
    let padded = position * geometry.stride[axis] + tap * geometry.dilation[axis];
    padded.checked_sub(geometry.pads[axis]).filter(|&at| at < geometry.input[axis])
}

impl Taps<'_> {
    fn channels(&self) -> usize {
        let geometry = &self.shared.linear.geometry;
        geometry.in_channels / geometry.groups
    }

    /// Index of the activation that product `k` reads; `None` on padding.
    fn activation_index(&self, k: usize) -> Option<usize> {
        let geometry = &self.shared.linear.geometry;
        let channels = self.channels();
        let (position, channel) = (k / channels, k % channels);
        let y = tap(geometry, 0, self.row, position / geometry.kernel[1])?;
        let x = tap(geometry, 1, self.column, position % geometry.kernel[1])?;
        Some((y * geometry.input[1] + x) * geometry.in_channels + self.first_channel + channel)
    }

    /// The activation of product `k`, less its zero point.
    pub(crate) fn activation(&self, k: usize) -> i32 {
        self.activation_index(k)
            .map_or(0, |index| i32::from(self.shared.input[index]) - i32::from(self.shared.zero_point))
    }

    fn buffered(&self, k: usize) -> i32 {
        self.activation_index(k).map_or(0, |index| {
            let activation = i32::from(self.shared.input[index]) - i32::from(self.shared.zero_point);
            activation * (i32::from(self.weights[k]) - self.weight_zero_point)
        })
    }

    fn overridden(&self, change: &Override) -> i32 {
        self.activation_index(change.k).map_or(0, |index| {
            let activation = i32::from(change.activation.unwrap_or(self.shared.input[index]));
            let weight = i32::from(change.weight.unwrap_or(self.weights[change.k]));
            (activation - i32::from(self.shared.zero_point)) * (weight - self.weight_zero_point)
        })
    }

    fn buffered_sum(&self, range: Range<usize>) -> i32 {
        let geometry = &self.shared.linear.geometry;
        let channels = self.channels();
        let kernel_row = geometry.kernel[1] * channels;
        let is_joined = geometry.groups == 1 && geometry.dilation[1] == 1;
        let mut runs = Runs { taps: self, runs: [DotRun::default(); 8], count: 0, sum: 0 };
        let mut k = range.start;
        let mut tap_row = k / kernel_row.max(1);
        while k < range.end {
            let first = tap_row * kernel_row;
            let row_end = range.end.min(first + kernel_row);
            if let Some(y) = tap(geometry, 0, self.row, tap_row) {
                let within = k - first..row_end - first;
                if is_joined {
                    self.joined_run(y, within, first, &mut runs);
                } else {
                    self.tap_runs(y, within, first, &mut runs);
                }
            }
            k = row_end;
            tap_row += 1;
        }
        runs.total()
    }

    /// One kernel row whose columns lie side by side: what is left of padding is one run. `range` counts within the
    /// row, `first` is its first product.
    fn joined_run(&self, y: usize, range: Range<usize>, first: usize, runs: &mut Runs<'_>) {
        let geometry = &self.shared.linear.geometry;
        let channels = geometry.in_channels;
        let left = (self.column * geometry.stride[1]).cast_signed() - geometry.pads[1].cast_signed();
        let start = range.start.cast_signed().max(-left * channels.cast_signed());
        let end = range.end.cast_signed().min((geometry.input[1].cast_signed() - left) * channels.cast_signed());
        if start < end {
            let row = (y * geometry.input[1] * channels).cast_signed();
            let x = (row + left * channels.cast_signed() + start).cast_unsigned();
            runs.push(DotRun { x, w: first + start.cast_unsigned(), length: (end - start).cast_unsigned() });
        }
    }

    /// One kernel row, tap by tap.
    fn tap_runs(&self, y: usize, range: Range<usize>, first: usize, runs: &mut Runs<'_>) {
        let geometry = &self.shared.linear.geometry;
        let channels = self.channels();
        let mut at = range.start;
        while at < range.end {
            let position = at / channels;
            let end = range.end.min((position + 1) * channels);
            if let Some(x) = tap(geometry, 1, self.column, position) {
                let x = (y * geometry.input[1] + x) * geometry.in_channels + self.first_channel + at % channels;
                runs.push(DotRun { x, w: first + at, length: end - at });
            }
            at = end;
        }
    }
}

/// Runs of operands that wait to be multiplied.
struct Runs<'a> {
    taps: &'a Taps<'a>,
    runs: [DotRun; 8],
    count: usize,
    sum: i32,
}

impl Runs<'_> {
    fn push(&mut self, run: DotRun) {
        if self.count == self.runs.len() {
            self.flush();
        }
        self.runs[self.count] = run;
        self.count += 1;
    }

    fn flush(&mut self) {
        let Taps { shared, weights, weight_zero_point, .. } = *self.taps;
        let runs = &self.runs[..self.count];
        self.sum = self.sum.wrapping_add(dot_runs(shared.isa, shared.zero_point, shared.input, weights, runs));
        if weight_zero_point != 0 {
            let activations = runs.iter().flat_map(|run| &shared.input[run.x..run.x + run.length]);
            let sum = activations.fold(0_i32, |sum, &x| sum.wrapping_add(i32::from(x) - i32::from(shared.zero_point)));
            self.sum = self.sum.wrapping_sub(weight_zero_point.wrapping_mul(sum));
        }
        self.count = 0;
    }

    fn total(mut self) -> i32 {
        if self.count > 0 {
            self.flush();
        }
        self.sum
    }
}

impl Products for Taps<'_> {
    fn product(&self, k: usize) -> i32 {
        match self.overrides.iter().find(|change| change.k == k) {
            Some(change) => self.overridden(change),
            None => self.buffered(k),
        }
    }

    fn sum(&self, range: Range<usize>) -> i32 {
        let mut sum = self.buffered_sum(range.clone());
        for change in self.overrides.iter().filter(|change| range.contains(&change.k)) {
            sum = sum.wrapping_add(self.overridden(change)).wrapping_sub(self.buffered(change.k));
        }
        sum
    }
}

/// The products of one output of a product of two activations.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pairs<'a> {
    /// The left and the right operand, as stored.
    pub(crate) bytes: [&'a [u8]; 2],
    pub(crate) zero_points: [u8; 2],
    /// Where the first pair lies, and how far the next ones are.
    pub(crate) start: [usize; 2],
    pub(crate) step: [usize; 2],
    /// One operand in another's place: the left one of product k.
    pub(crate) overrides: &'a [Override],
}

impl Products for Pairs<'_> {
    fn product(&self, k: usize) -> i32 {
        let [left, right] = [0, 1].map(|side| self.bytes[side][self.start[side] + k * self.step[side]]);
        let left =
            self.overrides.iter().find(|change| change.k == k).and_then(|change| change.activation).unwrap_or(left);
        (i32::from(left) - i32::from(self.zero_points[0])) * (i32::from(right) - i32::from(self.zero_points[1]))
    }

    fn sum(&self, range: Range<usize>) -> i32 {
        range.fold(0_i32, |sum, k| sum.wrapping_add(self.product(k)))
    }
}
