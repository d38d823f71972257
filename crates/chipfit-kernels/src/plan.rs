//! How a convolution's operands are laid out for one instruction set: runs, packed weights, the padded source.
//!
//! A *run* is a stretch of operands that lie side by side both in the NHWC source and in a weight row: a whole kernel
//! row of `kernel columns * channels` elements where columns are neither dilated nor grouped, else one tap's channels.
//! Operands are read in groups of four bytes (one lane of a dot product); a run is filled up to whole groups, or to
//! whole 64-byte rows of a tile, with weights of zero, so what is read past its end does not matter.
//!
//! Packed weights of a group of channels: `[block of lanes][four-byte group][lane][4 bytes]`.

use crate::buffer::Buffer;
use crate::geometry::ConvGeometry;
use crate::isa::Isa;

/// Elements side by side in the source and in a weight row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// Bytes from the first operand of a pixel, in the source.
    pub(crate) offset: usize,
    /// Four-byte groups, filled up.
    pub(crate) groups: usize,
    /// First element in a weight row.
    first: usize,
    /// Elements.
    length: usize,
}

impl Run {
    /// A run of the weights alone.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn filled(groups: usize, first: usize, length: usize) -> Self {
        Self { offset: 0, groups, first, length }
    }
}

/// What the source holds for one u8 activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    /// The activation.
    Byte,
    /// The activation minus 128, as i8.
    #[cfg_attr(not(target_arch = "aarch64"), allow(dead_code, reason = "what NEON multiplies"))]
    Signed,
    /// The activation as i16.
    Word,
}

impl Element {
    pub(crate) fn bytes(self) -> usize {
        if self == Self::Word { 2 } else { 1 }
    }
}

/// The layout of the operands.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) geometry: ConvGeometry,
    pub(crate) output: [usize; 2],
    pub(crate) zero_point: u8,
    pub(crate) element: Element,
    /// Whether the caller's tensor is read in place, without a padded copy.
    pub(crate) in_place: bool,
    /// Bytes between two rows of the source.
    pub(crate) row_pitch: usize,
    /// Bytes between the first operands of two outputs side by side.
    pub(crate) pixel_pitch: usize,
    /// Columns of the source.
    pub(crate) columns: usize,
    /// Runs as the inner loop reads them.
    pub(crate) runs: Vec<Run>,
    /// Runs of the source that are gathered into one run beforehand, as byte offset and bytes; empty where the inner
    /// loop reads the source itself.
    pub(crate) gathered: Vec<(usize, usize)>,
    /// Bytes of the source between two groups' channels.
    pub(crate) group_pitch: usize,
    /// Output channels of one vector or tile.
    pub(crate) lanes: usize,
    /// Blocks of `lanes` channels of one group of the convolution.
    pub(crate) blocks: usize,
    /// Bytes of one packed block.
    pub(crate) block_bytes: usize,
    pub(crate) weights: Buffer,
    /// One per packed channel: the bias with `-zero_point * sum(w)` folded in, as the source's elements need it.
    pub(crate) bias: Vec<i32>,
}

/// Bytes that kernels may read past the last operand of the source.
pub(crate) const SLACK: usize = 256;

/// What differs between instruction sets.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) element: Element,
    /// Output channels of one vector or tile.
    pub(crate) lanes: usize,
    /// Runs are filled up to a multiple of so many bytes.
    pub(crate) fill: usize,
    /// Blocks are filled up to a multiple of so many.
    pub(crate) blocks: usize,
    pub(crate) rows: Rows,
}

/// From where a tile's rows come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Rows {
    /// The source itself.
    Source,
    /// All operands of a pixel are gathered into one run first.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "for tiles"))]
    Gathered,
    /// Every kernel row is expanded first; these are the runs of what that gives.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "for tiles"))]
    Expanded(Vec<Run>),
}

impl Shape {
    /// `None` for the scalar twin, which packs nothing.
    pub(crate) fn of(isa: Isa) -> Option<Self> {
        let (element, lanes, fill, blocks) = match isa {
            Isa::Scalar => return None,
            Isa::Avx2 => (Element::Word, 8, 4, 1),
            Isa::AvxVnni => (Element::Byte, 8, 4, 1),
            Isa::Avx512Vnni => (Element::Byte, 16, 4, 1),
            Isa::AmxInt8 => (Element::Byte, 16, 64, 2),
            Isa::NeonDot => (Element::Signed, 4, 4, 1),
        };
        Some(Self { element, lanes, fill, blocks, rows: Rows::Source })
    }
}

impl Plan {
    /// Lays out `weights` (OHWI rows) of a checked geometry with its output's extents.
    pub(crate) fn new(
        geometry: &ConvGeometry,
        output: [usize; 2],
        zero_point: u8,
        shape: Shape,
        weights: &[i8],
        bias: &[i32],
    ) -> Self {
        let mut plan = Self::layout(geometry, output, zero_point, shape);
        plan.weights = Buffer::zeros(geometry.groups * plan.blocks * plan.block_bytes);
        plan.bias = vec![0; geometry.groups * plan.blocks * plan.lanes];
        plan.pack(weights);
        plan.fold(weights, bias);
        plan
    }

    /// The layout without weights.
    pub(crate) fn layout(geometry: &ConvGeometry, output: [usize; 2], zero_point: u8, shape: Shape) -> Self {
        let Shape { element, lanes, .. } = shape;
        let bytes = element.bytes();
        let channels = geometry.in_channels;
        let group_channels = channels / geometry.groups;
        let columns = (output[1] - 1) * geometry.stride[1] + (geometry.kernel[1] - 1) * geometry.dilation[1] + 1;
        let joined = geometry.groups == 1 && (geometry.dilation[1] == 1 || geometry.kernel[1] == 1);
        let length = if joined { geometry.kernel[1] * channels } else { group_channels };
        let in_place =
            element == Element::Byte && geometry.pads == [0; 4] && geometry.groups == 1 && length % shape.fill == 0;
        let row_pitch = if in_place { geometry.input[1] * channels } else { padded_pitch(columns * channels * bytes) };
        let taps = if joined { 1 } else { geometry.kernel[1] };
        let mut runs: Vec<Run> = (0..geometry.kernel[0] * taps)
            .map(|index| {
                let (row, tap) = (index / taps, index % taps);
                Run {
                    offset: row * geometry.dilation[0] * row_pitch + tap * geometry.dilation[1] * channels * bytes,
                    groups: (length * bytes).next_multiple_of(shape.fill) / 4,
                    first: index * length,
                    length,
                }
            })
            .collect();
        let mut gathered = Vec::new();
        match shape.rows {
            Rows::Source if shape.fill == STEP && channels.is_multiple_of(STEP) => {
                runs = steps_by_tap(geometry, row_pitch);
            }
            Rows::Source => {}
            Rows::Gathered => {
                gathered = runs.iter().map(|run| (run.offset, run.length * bytes)).collect();
                let length = geometry.products();
                let groups = (length * bytes).next_multiple_of(shape.fill) / 4;
                runs = vec![Run { offset: 0, groups, first: 0, length }];
            }
            Rows::Expanded(expanded) => {
                gathered = runs[..taps].iter().map(|run| (run.offset, run.length * bytes)).collect();
                runs = expanded;
            }
        }
        let groups: usize = runs.iter().map(|run| run.groups).sum();
        let block_bytes = groups * lanes * 4;
        let blocks = (geometry.out_channels / geometry.groups).div_ceil(lanes).next_multiple_of(shape.blocks);
        Self {
            geometry: geometry.clone(),
            output,
            zero_point,
            element,
            in_place,
            row_pitch,
            pixel_pitch: geometry.stride[1] * channels * bytes,
            columns,
            runs,
            gathered,
            group_pitch: group_channels * bytes,
            lanes,
            blocks,
            block_bytes,
            weights: Buffer::default(),
            bias: Vec::new(),
        }
    }

    fn pack(&mut self, weights: &[i8]) {
        let geometry = &self.geometry;
        let group_outputs = geometry.out_channels / geometry.groups;
        let bytes = self.element.bytes();
        let per_group = 4 / bytes;
        let products = geometry.products();
        let packed = self.weights.as_mut_slice();
        for (channel, row) in weights.chunks_exact(products).enumerate() {
            let (group, within) = (channel / group_outputs, channel % group_outputs);
            let block = group * self.blocks + within / self.lanes;
            let mut at = block * self.block_bytes + within % self.lanes * 4;
            for run in &self.runs {
                let elements = &row[run.first..run.first + run.length];
                for (index, four) in elements.chunks(per_group).enumerate() {
                    for (position, &weight) in four.iter().enumerate() {
                        let to = at + index * self.lanes * 4 + position * bytes;
                        match self.element {
                            Element::Byte | Element::Signed => packed[to] = weight.cast_unsigned(),
                            Element::Word => packed[to..to + 2].copy_from_slice(&i16::from(weight).to_ne_bytes()),
                        }
                    }
                }
                at += run.groups * self.lanes * 4;
            }
        }
    }

    fn fold(&mut self, weights: &[i8], bias: &[i32]) {
        let group_outputs = self.geometry.out_channels / self.geometry.groups;
        let shift = if self.element == Element::Signed { 128 } else { 0 };
        let subtracted = i32::from(self.zero_point) - shift;
        for (channel, (row, bias)) in weights.chunks_exact(self.geometry.products()).zip(bias).enumerate() {
            let sum = row.iter().fold(0_i32, |sum, &weight| sum.wrapping_add(i32::from(weight)));
            let packed = channel / group_outputs * self.blocks * self.lanes + channel % group_outputs;
            self.bias[packed] = bias.wrapping_sub(sum.wrapping_mul(subtracted));
        }
    }

    /// Bytes of packed weights and biases.
    pub(crate) fn bytes(&self) -> usize {
        self.weights.bytes() + self.bias.len() * size_of::<i32>()
    }

    /// Rows of the padded source that output rows need.
    pub(crate) fn source_rows(&self, n_rows: usize) -> usize {
        let geometry = &self.geometry;
        (n_rows - 1) * geometry.stride[0] + (geometry.kernel[0] - 1) * geometry.dilation[0] + 1
    }

    /// Bytes of one input picture.
    pub(crate) fn picture_bytes(&self) -> usize {
        self.geometry.input[0] * self.geometry.input[1] * self.geometry.in_channels
    }

    /// Writes the padded copy of what output rows from `first_row` on read of one picture, as many as `source` holds.
    pub(crate) fn pad(&self, picture: &[u8], first_row: usize, source: &mut [u8]) {
        let Self { geometry, zero_point, .. } = self;
        let zero_point = *zero_point;
        let [in_rows, in_columns] = geometry.input;
        let [top, left, ..] = geometry.pads;
        let channels = geometry.in_channels;
        let bytes = self.element.bytes();
        let first = first_row * geometry.stride[0];
        // The copied columns, in the padded map.
        let from = left.min(self.columns);
        let to = (left + in_columns).min(self.columns);
        for (index, line) in source.chunks_exact_mut(self.row_pitch).enumerate() {
            let row = (first + index).wrapping_sub(top);
            if row >= in_rows {
                self.fill(zero_point, line);
                continue;
            }
            let copied = &picture[row * in_columns * channels..][..(to - from) * channels];
            let (before, rest) = line.split_at_mut(from * channels * bytes);
            let (middle, after) = rest.split_at_mut(copied.len() * bytes);
            self.fill(zero_point, before);
            match self.element {
                Element::Byte => middle.copy_from_slice(copied),
                Element::Signed => middle.iter_mut().zip(copied).for_each(|(to, from)| *to = from ^ 0x80),
                Element::Word => {
                    let (words, _) = middle.as_chunks_mut::<2>();
                    words.iter_mut().zip(copied).for_each(|(to, &from)| *to = u16::from(from).to_ne_bytes());
                }
            }
            self.fill(zero_point, after);
        }
    }

    fn fill(&self, zero_point: u8, line: &mut [u8]) {
        match self.element {
            Element::Byte => line.fill(zero_point),
            Element::Signed => line.fill(zero_point ^ 0x80),
            Element::Word => {
                let (words, rest) = line.as_chunks_mut::<2>();
                words.fill(u16::from(zero_point).to_ne_bytes());
                rest.fill(0);
            }
        }
    }
}

/// Bytes that one step of a tile multiplies.
pub(crate) const STEP: usize = 64;

/// Runs of one step each, for channels that fill whole steps: taps of a kernel row side by side in time, so that all but
/// one of a tile's pixels are still in the first-level cache when the next tap reads them.
fn steps_by_tap(geometry: &ConvGeometry, row_pitch: usize) -> Vec<Run> {
    let channels = geometry.in_channels;
    let mut runs = Vec::new();
    for row in 0..geometry.kernel[0] {
        for channel in (0..channels).step_by(STEP) {
            for tap in 0..geometry.kernel[1] {
                runs.push(Run {
                    offset: row * geometry.dilation[0] * row_pitch + tap * geometry.dilation[1] * channels + channel,
                    groups: STEP / 4,
                    first: (row * geometry.kernel[1] + tap) * channels + channel,
                    length: STEP,
                });
            }
        }
    }
    runs
}

/// Whole cache lines, and not a power of two of them: rows one above the other then share no cache set.
fn padded_pitch(bytes: usize) -> usize {
    let lines = bytes.div_ceil(64);
    if lines >= 8 && lines.is_multiple_of(8) { (lines + 1) * 64 } else { lines * 64 }
}
