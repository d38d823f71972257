//! One spatial axis of a pass: which sources each target reads.
//!
//! A forward pass reads `source = stride * target + dilation * tap - pad`. The input gradient turns this around: its
//! targets fall into phases of the stride, and within a phase each is a dense convolution over the output gradient.

use crate::geometry::ConvGeometry;

/// Evenly spaced targets that read alike: target `first + step * t` reads `source_step * t + offset` for every tap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) first: usize,
    pub(super) step: usize,
    pub(super) count: usize,
    pub(super) source_step: usize,
    /// By ascending offset.
    pub(super) taps: Vec<Tap>,
}

/// A position in the kernel and what it reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tap {
    pub(super) kernel: usize,
    pub(super) offset: isize,
}

/// An axis: its parts, and the offsets that any tap has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Axis {
    pub(super) parts: Vec<Part>,
    /// The lowest offset.
    pub(super) low: isize,
    /// One beyond the highest offset.
    pub(super) high: isize,
    /// Whether no target reads outside the source.
    pub(super) inside: bool,
}

impl Axis {
    /// Targets are outputs, sources inputs.
    pub(super) fn forward(geometry: &ConvGeometry, axis: usize, outputs: usize) -> Self {
        let offset = |tap: usize| signed(tap * geometry.dilation[axis]) - signed(geometry.pads[axis]);
        let taps = (0..geometry.kernel[axis]).map(|kernel| Tap { kernel, offset: offset(kernel) }).collect();
        let part = Part { first: 0, step: 1, count: outputs, source_step: geometry.stride[axis], taps };
        Self::new(vec![part], geometry.input[axis])
    }

    /// Targets are inputs, sources outputs.
    pub(super) fn gradient(geometry: &ConvGeometry, axis: usize, outputs: usize) -> Self {
        let (stride, inputs) = (geometry.stride[axis], geometry.input[axis]);
        let part = |first: usize| {
            let tap = |kernel: usize| {
                let distance = signed(first + geometry.pads[axis]) - signed(kernel * geometry.dilation[axis]);
                let offset = distance.div_euclid(signed(stride));
                (distance.rem_euclid(signed(stride)) == 0).then_some(Tap { kernel, offset })
            };
            let taps = (0..geometry.kernel[axis]).rev().filter_map(tap).collect();
            Part { first, step: stride, count: (inputs - first).div_ceil(stride), source_step: 1, taps }
        };
        Self::new((0..stride.min(inputs)).map(part).collect(), outputs)
    }

    fn new(parts: Vec<Part>, sources: usize) -> Self {
        let offsets = || parts.iter().flat_map(|part| &part.taps).map(|tap| tap.offset);
        let inside = |part: &Part| {
            let last = signed((part.count - 1) * part.source_step);
            part.taps.iter().all(|tap| tap.offset >= 0 && last + tap.offset < signed(sources))
        };
        Self {
            low: offsets().min().unwrap_or(0),
            high: offsets().max().map_or(0, |offset| offset + 1),
            inside: parts.iter().all(inside),
            parts,
        }
    }

    /// Sources that targets `t` of `range` read, and all between them: from the first on, how many.
    pub(super) fn sources(&self, range: std::ops::Range<usize>) -> (isize, usize) {
        let step = self.parts[0].source_step;
        let span = usize::try_from(self.high - self.low).unwrap_or(0);
        (signed(range.start * step) + self.low, (range.len() - 1) * step + span)
    }

    /// The most targets that a part has.
    pub(super) fn count(&self) -> usize {
        self.parts.iter().map(|part| part.count).max().unwrap_or(0)
    }
}

/// Extents are far below the largest isize: `ConvGeometry::checked_output` limits them.
fn signed(extent: usize) -> isize {
    extent.cast_signed()
}
