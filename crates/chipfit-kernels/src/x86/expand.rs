//! The expanded source: every output column's kernel row, copied side by side.
//!
//! Tiles need pixels at one pitch. In the expanded source `[phase][slot][output column][pitch]` pixel `(row, column)` of
//! a picture starts at `(row * columns + column) * pitch`, so a tile runs on over the ends of rows. The kernel row that
//! reads source row `y` lies in phase `y % stride`, slot `y / stride`; a tap row moves phase and slot by constants.
//! A kernel row of at most 32 (16) bytes shares its 64 bytes with the next one (three), so that few products of a step
//! are wasted.

use crate::geometry::ConvGeometry;
use crate::plan::{Plan, Run, STEP};
use crate::x86::avx512;

/// The layout of an expanded source.
#[derive(Clone, Debug)]
pub(crate) struct Expansion {
    /// Bytes between two pixels: an odd number of cache lines, so that rows of a tile lie in different cache sets.
    pub(crate) pitch: usize,
    /// Kernel rows that share a pixel's bytes.
    folded: usize,
    /// Bytes of one kernel row where several share them.
    share: usize,
    /// 64-byte steps of a pixel.
    lines: usize,
    /// The phases in use.
    phases: Vec<usize>,
    /// For every group of `folded` kernel rows: index of its phase, and slots from the output row.
    taps: Vec<(usize, usize)>,
}

impl Expansion {
    /// The expansion of a checked geometry of one group.
    pub(crate) fn new(geometry: &ConvGeometry) -> Self {
        let length = geometry.kernel[1] * geometry.in_channels;
        let (folded, share) = match length {
            ..=16 if geometry.dilation[1] == 1 => (4, 16),
            ..=32 if geometry.dilation[1] == 1 => (2, 32),
            _ => (1, length),
        };
        let lines = (folded * share).div_ceil(STEP);
        let mut phases = Vec::new();
        let taps = (0..geometry.kernel[0].div_ceil(folded))
            .map(|group| {
                let row = group * folded * geometry.dilation[0];
                let (slot, phase) = (row / geometry.stride[0], row % geometry.stride[0]);
                let index = phases.iter().position(|known| *known == phase).unwrap_or_else(|| {
                    phases.push(phase);
                    phases.len() - 1
                });
                (index, slot)
            })
            .collect();
        Self { pitch: (lines | 1) * STEP, folded, share, lines, phases, taps }
    }

    /// The runs of the weights, in the order of [`Expansion::steps`]. Tap rows are the inner loop: what one reads of a
    /// tile's pixels, the next reads again.
    pub(crate) fn runs(&self, geometry: &ConvGeometry) -> Vec<Run> {
        let length = geometry.kernel[1] * geometry.in_channels;
        let mut runs = Vec::new();
        for line in 0..self.lines {
            for group in 0..self.taps.len() {
                if self.folded == 1 {
                    let first = line * STEP;
                    runs.push(Run::filled(STEP / 4, group * length + first, STEP.min(length - first)));
                    continue;
                }
                for row in (0..self.folded).map(|index| group * self.folded + index) {
                    let exists = row < geometry.kernel[0];
                    let (first, length) = if exists { (row * length, length) } else { (0, 0) };
                    runs.push(Run::filled(self.share / 4, first, length));
                }
            }
        }
        runs
    }

    /// Bytes of `n_rows` output rows of one picture.
    pub(crate) fn bytes(&self, n_rows: usize, columns: usize) -> usize {
        self.phases.len() * self.slots(n_rows) * columns * self.pitch
    }

    /// Bytes of the expanded source for each output pixel, the halo left out.
    pub(crate) fn pixel_bytes(&self) -> usize {
        self.phases.len() * self.pitch
    }

    /// Lists the byte offset of every step from a pixel's first byte.
    pub(crate) fn steps(&self, n_rows: usize, columns: usize, steps: &mut Vec<usize>) {
        steps.clear();
        let row = columns * self.pitch;
        for line in 0..self.lines {
            let taps = self.taps.iter();
            steps.extend(taps.map(|(phase, slot)| (phase * self.slots(n_rows) + slot) * row + line * STEP));
        }
    }

    fn slots(&self, n_rows: usize) -> usize {
        n_rows + self.taps.iter().map(|(_, slot)| *slot).max().unwrap_or(0)
    }

    /// Writes the expansion of `n_rows` output rows of one picture.
    ///
    /// # Safety
    /// AVX-512 F is available. `source` holds what `plan` needs for these rows and slack after it; `to` has room for
    /// [`Expansion::bytes`] and slack.
    pub(crate) unsafe fn write(&self, plan: &Plan, n_rows: usize, source: *const u8, to: *mut u8) {
        let geometry = &plan.geometry;
        let columns = plan.output[1];
        let source_rows = plan.source_rows(n_rows);
        let slots = self.slots(n_rows);
        for (index, phase) in self.phases.iter().enumerate() {
            for slot in 0..slots {
                for fold in 0..self.folded {
                    let row = slot * geometry.stride[0] + phase + fold * geometry.dilation[0];
                    // Rows past the last are read by no pixel, or multiplied by zero.
                    if row >= source_rows {
                        continue;
                    }
                    // SAFETY: the row lies in the source, the slot in the expansion; what the copy of one pixel writes
                    // too much is overwritten by the next or lies in the slack.
                    unsafe {
                        let job = avx512::Spread {
                            from: source.add(row * plan.row_pitch),
                            from_pitch: plan.pixel_pitch,
                            to: to.add((index * slots + slot) * columns * self.pitch + fold * self.share),
                            to_pitch: self.pitch,
                            pixels: columns,
                        };
                        match self.folded {
                            4 => job.copy_16(),
                            2 => job.copy_32(),
                            _ => job.copy_runs(&plan.gathered),
                        }
                    }
                }
            }
        }
    }
}
