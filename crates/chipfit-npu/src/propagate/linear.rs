//! Changed activations through a linear step: few by sparse products on golden accumulators, many by rows.

use std::ops::Range;

use chipfit_kernels::{Isa, KernelError, Scratch, changed_sums, requantize_changed};

use super::changes::Changes;
use super::reading_rows;
use crate::program::Linear;
use crate::simulator::buffers::Readers;
use crate::simulator::kernel::LinearKernel;

/// Memory of this module, kept between trials.
#[derive(Debug, Default)]
pub(super) struct LinearScratch {
    /// Of one pixel: product and change of the activations that it reads.
    taps: Vec<(u32, i16)>,
    /// Of one pixel: changes of the accumulators.
    sums: Vec<i32>,
    /// Of one pixel: its bytes.
    bytes: Vec<u8>,
    /// By input position: where its changes start in the list, and their number. Zero between trials.
    starts: Vec<(u32, u32)>,
    /// Changed activations of this step: index and difference.
    differences: Vec<(u32, i16)>,
}

impl LinearScratch {
    pub(super) fn bytes(&self) -> usize {
        self.taps.capacity() * size_of::<(u32, i16)>()
            + self.sums.capacity() * size_of::<i32>()
            + self.bytes.capacity()
            + self.starts.capacity() * size_of::<(u32, u32)>()
            + self.differences.capacity() * size_of::<(u32, i16)>()
    }
}

/// The step.
pub(super) struct Shared<'a> {
    pub(super) linear: &'a Linear,
    pub(super) kernel: &'a LinearKernel,
    pub(super) transposed: Option<&'a [i8]>,
    /// Golden accumulators.
    pub(super) sums: &'a [i32],
    pub(super) isa: Isa,
}

/// The changed input.
pub(super) struct Input<'a> {
    pub(super) golden: &'a [u8],
    /// With struck words in their places.
    pub(super) working: &'a [u8],
    pub(super) changes: &'a Changes,
    /// Words struck for this step alone.
    pub(super) struck: &'a [(usize, u8)],
}

/// The output to change.
pub(super) struct Output<'a> {
    pub(super) golden: &'a [u8],
    pub(super) working: &'a mut [u8],
    pub(super) changes: &'a mut Changes,
}

/// Rough speeds, in MACs per nanosecond: of sparse products, and of the kernels on some rows of one picture.
fn speeds(isa: Isa) -> (f64, f64) {
    match isa {
        Isa::AmxInt8 => (24.0, 800.0),
        Isa::Avx512Vnni => (24.0, 270.0),
        Isa::Scalar => (1.0, 1.0),
        _ => (1.0, 50.0),
    }
}

/// From how many changed activations on a list is of no use any more: the kernels are faster.
pub(super) fn longest_list(isa: Isa) -> usize {
    match isa {
        Isa::AmxInt8 => 512,
        Isa::Avx512Vnni => 2048,
        _ => 4096,
    }
}

impl Shared<'_> {
    /// Computes what the changed activations change.
    pub(super) fn propagate(
        &self,
        from: &Input<'_>,
        to: Output<'_>,
        scratch: &mut LinearScratch,
        kernel: &mut Scratch,
    ) -> Result<(), KernelError> {
        let out_rows = self.reached_rows(from.changes, from.struck);
        let out_row_bytes = self.kernel.map[1] * self.linear.geometry.out_channels;
        if out_rows.is_empty() {
            return Ok(());
        }
        if let (Some(transposed), true) = (self.transposed, self.is_sparse(from.changes, from.struck.len(), &out_rows))
        {
            return self.by_changes(from, to, transposed, scratch);
        }
        let range = out_rows.start * out_row_bytes..out_rows.end * out_row_bytes;
        self.kernel.run_rows(from.working, out_rows.clone(), &mut to.working[range], kernel)?;
        to.changes.compare(to.working, to.golden, out_rows, out_row_bytes);
        Ok(())
    }

    /// Output rows that read a changed activation.
    fn reached_rows(&self, changes: &Changes, struck: &[(usize, u8)]) -> Range<usize> {
        let geometry = &self.linear.geometry;
        let row = geometry.input[1] * geometry.in_channels;
        // A product with a matrix has one row, whatever the tensor's shape.
        let changed = if geometry.input[0] == 1 && changes.count > 0 { 0..1 } else { changes.rows.clone() };
        let rows = struck.iter().map(|&(index, _)| index / row.max(1)).fold(changed, |rows, at| {
            if rows.is_empty() { at..at + 1 } else { rows.start.min(at)..rows.end.max(at + 1) }
        });
        let (kernel, stride) = (geometry.kernel[0], geometry.stride[0]);
        reading_rows(rows, self.kernel.map[0], kernel, stride, geometry.dilation[0], geometry.pads[0])
    }

    /// Whether sparse products are expected to be faster than the kernels on `out_rows`.
    fn is_sparse(&self, changes: &Changes, struck: usize, out_rows: &Range<usize>) -> bool {
        if changes.is_long || self.transposed.is_none() {
            return false;
        }
        let geometry = &self.linear.geometry;
        let (sparse, dense) = speeds(self.isa);
        let readers =
            geometry.kernel.iter().product::<usize>() as f64 / geometry.stride.iter().product::<usize>() as f64;
        let count = (changes.list.len() + struck) as f64;
        let few = count * readers.max(1.0) * geometry.out_channels as f64 / sparse;
        let outputs = out_rows.len() * self.kernel.map[1] * geometry.out_channels;
        few < (outputs * self.linear.products()) as f64 / dense + 1000.0
    }

    /// Whether all or most rows are best computed by the kernels.
    pub(super) fn is_whole(&self, changes: &Changes) -> bool {
        let out_rows = self.reached_rows(changes, &[]);
        4 * out_rows.len() >= 3 * self.kernel.map[0] && !self.is_sparse(changes, 0, &out_rows)
    }

    fn by_changes(
        &self,
        from: &Input<'_>,
        to: Output<'_>,
        transposed: &[i8],
        scratch: &mut LinearScratch,
    ) -> Result<(), KernelError> {
        let geometry = &self.linear.geometry;
        let channels = geometry.out_channels;
        let LinearScratch { taps, sums, bytes, starts, differences } = scratch;
        differences.clear();
        let changed = from.changes.list.iter().copied().chain(from.struck.iter().map(|&(index, _)| index as u32));
        differences.extend(changed.map(|index| {
            let [new, old] = [from.working, from.golden].map(|bytes| i16::from(bytes[index as usize]));
            (index, new - old)
        }));
        if !from.struck.is_empty() {
            differences.sort_unstable();
            differences.dedup();
        }
        differences.retain(|&(_, difference)| difference != 0);
        // The changed positions, and the box of pixels that read them.
        let positions = geometry.input[0] * geometry.input[1];
        if starts.len() < positions {
            starts.resize(positions, (0, 0));
        }
        let mut span = [(usize::MAX, 0); 2];
        let position_of = |index: u32| index as usize / geometry.in_channels;
        let mut start = 0;
        for list in differences.chunk_by(|a, b| position_of(a.0) == position_of(b.0)) {
            let position = position_of(list[0].0);
            starts[position] = (start, list.len() as u32);
            start += list.len() as u32;
            let readers = Readers::new(geometry, position);
            for (axis, places) in [&readers.rows, &readers.columns].into_iter().enumerate() {
                if let (Some(first), Some(last)) = (places.first(), places.last()) {
                    span[axis] = (span[axis].0.min(first.0), span[axis].1.max(last.0 + 1));
                }
            }
        }
        sums.resize(channels, 0);
        bytes.resize(channels, 0);
        for row in span[0].0..span[0].1 {
            for column in span[1].0..span[1].1 {
                taps.clear();
                for tap in 0..geometry.kernel[0] * geometry.kernel[1] {
                    let (tap_row, tap_column) = (tap / geometry.kernel[1], tap % geometry.kernel[1]);
                    let y = crate::simulator::operands::tap(geometry, 0, row, tap_row);
                    let x = crate::simulator::operands::tap(geometry, 1, column, tap_column);
                    let (Some(y), Some(x)) = (y, x) else { continue };
                    let position = y * geometry.input[1] + x;
                    let (start, count) = starts[position];
                    let list = &differences[start as usize..(start + count) as usize];
                    for &(index, difference) in list {
                        let channel = index as usize - position * geometry.in_channels;
                        let k = (tap * geometry.in_channels + channel) as u32;
                        // In parts that fit a byte, which the kernels prefer.
                        let half = difference / 2;
                        match difference {
                            -128..128 => taps.push((k, difference)),
                            _ => taps.extend([(k, half), (k, difference - half)]),
                        }
                    }
                }
                if taps.is_empty() {
                    continue;
                }
                changed_sums(self.isa, taps, transposed, sums)?;
                let pixel = (row * self.kernel.map[1] + column) * channels;
                let golden = &to.golden[pixel..pixel + channels];
                requantize_changed(
                    self.isa,
                    self.kernel.finish.borrowed(),
                    &self.sums[pixel..pixel + channels],
                    sums,
                    bytes,
                )?;
                if bytes.as_slice() == golden {
                    continue;
                }
                for (channel, (&new, &old)) in bytes.iter().zip(golden).enumerate() {
                    if new != old {
                        to.working[pixel + channel] = new;
                        to.changes.push(pixel + channel);
                    }
                }
            }
        }
        for &(index, _) in differences.iter() {
            starts[position_of(index)] = (0, 0);
        }
        let row_bytes = self.kernel.map[1] * channels;
        to.changes.finish(row_bytes);
        if to.changes.is_long {
            to.changes.rows = span[0].0..span[0].1;
        }
        Ok(())
    }
}
