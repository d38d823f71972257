//! Depthwise convolutions: every channel is its own group.
//!
//! Loops run over blocks of 64 channels; a pixel's tap is 64 bytes side by side in the padded source, and all products of
//! one channel stay in one lane. Products fit 16 bits: `255 * 128 < 2^15`.
//! AVX-512 first interleaves the bytes of up to four kernel rows, once for every column that an output row reads; a dot
//! product of four bytes then adds four taps of a channel, and neighbouring outputs share the interleaved columns.

use crate::buffer::Buffer;
use crate::drive::Call;
use crate::finish::{Finish, Tile};
use crate::geometry::ConvGeometry;
use crate::isa::Isa;
use crate::plan::{Element, Plan, Rows, Shape};
use crate::scratch::Scratch;

/// Channels of a block.
pub(crate) const LANES: usize = 64;
/// Most pixels of one call of an inner loop.
const PIXELS: usize = 16;
/// Channels whose sums the portable loop keeps in registers.
const PART: usize = 16;
/// Bytes of source that one chunk may have, when it spans more than a row.
const CHUNK_BYTES: usize = 384 << 10;

/// Packed weights of a depthwise convolution.
#[derive(Clone, Debug)]
pub(crate) struct DepthPlan {
    plan: Plan,
    /// Byte offset of every tap from a pixel's first operand, in the source or among interleaved columns.
    taps: Vec<usize>,
    /// Bytes of one block's weights.
    block_bytes: usize,
    weights: Buffer,
    /// One per channel, filled up to whole blocks.
    bias: Vec<i32>,
    set: DepthSet,
}

/// The inner loops of one instruction set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DepthSet {
    pub(crate) taps: Taps,
    /// Finishes a tile; as [`Finish::scalar`], on an available instruction set.
    pub(crate) finish: unsafe fn(&Finish<'_>, Tile),
}

/// How taps are read.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Taps {
    /// One by one from the source; weights are `[tap][channel]`.
    Plain(DepthKernel),
    /// Four kernel rows at once from interleaved columns; weights are
    /// `[four kernel rows][kernel column][vector of 64 bytes, of 4][128-bit lane, of 4][channel, of 4][row, of 4]`, where
    /// vector `v`, lane `l` and channel `c` stand for channel `16 * l + 4 * v + c`: what interleaving within lanes gives.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "what AVX-512 multiplies"))]
    Columns(Interleave, DepthKernel),
}

/// An inner loop: all taps of some pixels, one block of channels.
///
/// # Safety
/// The instruction set is available; every tap of every pixel can be read (64 bytes of the source, or 256 of interleaved
/// columns); the weights hold as many for every tap, the biases `LANES`, the sums `LANES` per pixel.
pub(crate) type DepthKernel = unsafe fn(&DepthJob<'_>);

/// One call of an inner loop.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DepthJob<'a> {
    /// The first pixel's first operand, at the block's first channel.
    pub(crate) source: *const u8,
    /// Bytes between two pixels.
    pub(crate) pitch: usize,
    pub(crate) pixels: usize,
    pub(crate) taps: &'a [usize],
    pub(crate) weights: *const i8,
    pub(crate) bias: *const i32,
    pub(crate) sums: *mut i32,
}

/// Interleaves the bytes of four rows, for `columns` columns of 64 channels, `pitch` bytes apart; writes 256 bytes each.
///
/// # Safety
/// The instruction set is available; 64 bytes can be read at every column of every row, all columns written.
pub(crate) type Interleave = unsafe fn(rows: [*const u8; 4], pitch: usize, columns: usize, to: *mut u8);

/// Bytes of an interleaved column: four rows of a block.
const COLUMN: usize = 4 * LANES;

impl DepthPlan {
    /// A plan for a checked depthwise geometry.
    pub(crate) fn new(
        isa: Isa,
        geometry: &ConvGeometry,
        output: [usize; 2],
        zero_point: u8,
        weights: &[i8],
        bias: &[i32],
    ) -> Self {
        let set = depth_set(isa);
        let shape = Shape { element: Element::Byte, lanes: 1, fill: 4, blocks: 1, rows: Rows::Source };
        let plan = Plan::layout(geometry, output, zero_point, shape);
        let (taps, block_bytes): (Vec<usize>, usize) = match set.taps {
            Taps::Plain(_) => (plan.runs.iter().map(|run| run.offset).collect(), plan.runs.len() * LANES),
            Taps::Columns(..) => {
                let groups = 0..geometry.kernel[0].div_ceil(4);
                let columns = |group| (0..geometry.kernel[1]).map(move |tap| (group, tap));
                let offset = |(group, tap)| (group * plan.columns + tap * geometry.dilation[1]) * COLUMN;
                let taps: Vec<usize> = groups.flat_map(columns).map(offset).collect();
                let bytes = taps.len() * COLUMN;
                (taps, bytes)
            }
        };
        let filled = geometry.out_channels.next_multiple_of(LANES);
        let mut packed = Buffer::zeros(filled / LANES * block_bytes);
        let mut folded = vec![0; filled];
        let bytes = packed.as_mut_slice();
        for (channel, (row, bias)) in weights.chunks_exact(geometry.products()).zip(bias).enumerate() {
            let block = channel / LANES * block_bytes;
            let mut sum = 0_i32;
            for (tap, &weight) in row.iter().enumerate() {
                let at = set.taps.position(geometry.kernel[1], tap, channel % LANES);
                bytes[block + at] = weight.cast_unsigned();
                sum = sum.wrapping_add(i32::from(weight));
            }
            folded[channel] = bias.wrapping_sub(sum.wrapping_mul(i32::from(zero_point)));
        }
        Self { plan, taps, block_bytes, weights: packed, bias: folded, set }
    }

    /// Bytes of packed weights and biases.
    pub(crate) fn bytes(&self) -> usize {
        self.weights.bytes() + self.bias.len() * size_of::<i32>()
    }

    /// Runs a call.
    ///
    /// # Safety
    /// The call's target holds its pixels and channels, and this call alone writes them; the instruction set is available.
    pub(crate) unsafe fn execute(&self, call: &Call<'_>, scratch: &mut Scratch) {
        let plan = &self.plan;
        let groups = plan.geometry.kernel[0].div_ceil(4);
        scratch.panel.grow(groups * plan.columns * COLUMN);
        scratch.tile.grow(PIXELS * LANES * size_of::<i32>());
        for chunk in plan.chunks(call, 0, CHUNK_BYTES) {
            let source = plan.prepare(call, &chunk, scratch);
            let Scratch { tile, panel, lines, .. } = &mut *scratch;
            for (index, line) in lines.iter().enumerate() {
                let pixel = chunk.pixel + index * plan.output[1];
                for channel in call.channels.clone().step_by(LANES) {
                    // SAFETY: the channel lies in the source, whose SLACK covers a block that reaches past the last
                    // channel; the panel holds every column; the rest is the caller's promise.
                    unsafe {
                        let mut source = source.add(line + channel);
                        if let Taps::Columns(interleave, _) = self.set.taps {
                            self.columns(interleave, source, panel.as_mut_ptr());
                            source = panel.as_ptr();
                        }
                        self.row(call, source, pixel, channel, tile.as_mut_ptr().cast());
                    }
                }
            }
        }
    }

    /// Interleaves what one output row reads of a block of channels.
    ///
    /// # Safety
    /// `source` is the row's first operand at the block's first channel; the panel holds every column.
    unsafe fn columns(&self, interleave: Interleave, source: *const u8, panel: *mut u8) {
        let plan = &self.plan;
        let geometry = &plan.geometry;
        for group in 0..geometry.kernel[0].div_ceil(4) {
            // A missing row has weights of zero; the last stands in for it.
            let row = |index: usize| (group * 4 + index).min(geometry.kernel[0] - 1) * geometry.dilation[0];
            // SAFETY: the rows lie in the source, the group in the panel.
            unsafe {
                let rows = [0, 1, 2, 3].map(|index| source.add(row(index) * plan.row_pitch));
                let to = panel.add(group * plan.columns * COLUMN);
                interleave(rows, geometry.in_channels, plan.columns, to);
            }
        }
    }

    /// One output row of one block of channels.
    ///
    /// # Safety
    /// As [`DepthPlan::execute`]; `source` is the row's first operand at the block, `sums` has room for a tile.
    unsafe fn row(&self, call: &Call<'_>, source: *const u8, pixel: usize, channel: usize, sums: *mut i32) {
        let Self { plan, taps, .. } = self;
        let (kernel, pitch) = match self.set.taps {
            Taps::Plain(kernel) => (kernel, plan.pixel_pitch),
            Taps::Columns(_, kernel) => (kernel, plan.geometry.stride[1] * COLUMN),
        };
        let columns = plan.output[1];
        for first in (0..columns).step_by(PIXELS) {
            let pixels = PIXELS.min(columns - first);
            let channels = LANES.min(call.channels.end - channel);
            let tile = Tile { sums, pitch: LANES, pixel: pixel + first, pixels, channel, channels };
            // SAFETY: the caller's promises; the block lies in the weights and biases.
            unsafe {
                let job = DepthJob {
                    source: source.add(first * pitch),
                    pitch,
                    pixels,
                    taps,
                    weights: self.weights.as_ptr().add(channel / LANES * self.block_bytes).cast(),
                    bias: self.bias[channel..].as_ptr(),
                    sums,
                };
                kernel(&job);
                (self.set.finish)(&call.finish, tile);
            }
        }
    }
}

impl Taps {
    /// Where in its block the weight of `tap`, in a kernel of so many columns, lies.
    fn position(self, kernel_columns: usize, tap: usize, channel: usize) -> usize {
        match self {
            Self::Plain(_) => tap * LANES + channel,
            Self::Columns(..) => {
                let (row, column) = (tap / kernel_columns, tap % kernel_columns);
                let (lane, vector, within) = (channel / 16, channel / 4 % 4, channel % 4);
                (row / 4 * kernel_columns + column) * COLUMN + vector * 64 + lane * 16 + within * 4 + row % 4
            }
        }
    }
}

fn depth_set(isa: Isa) -> DepthSet {
    #[cfg(target_arch = "x86_64")]
    match isa {
        Isa::Avx512Vnni | Isa::AmxInt8 => return crate::x86::depthwise::AVX512,
        Isa::Avx2 | Isa::AvxVnni => return crate::x86::depthwise::AVX2,
        _ => {}
    }
    let _ = isa;
    DepthSet { taps: Taps::Plain(portable), finish: finish_scalar }
}

unsafe fn finish_scalar(finish: &Finish<'_>, tile: Tile) {
    // SAFETY: the same promises.
    unsafe { finish.scalar(tile) };
}

/// The loop in terms that compilers turn into vectors of any width.
///
/// # Safety
/// As [`DepthKernel`] asks.
#[inline(always)]
pub(crate) unsafe fn portable(job: &DepthJob<'_>) {
    for pixel in 0..job.pixels {
        for first in (0..LANES).step_by(PART) {
            // SAFETY: LANES biases.
            let mut sums: [i32; PART] = unsafe { job.bias.add(first).cast::<[i32; PART]>().read() };
            for (tap, &offset) in job.taps.iter().enumerate() {
                // SAFETY: 64 bytes of the pixel's tap, and its weights.
                let (x, w) = unsafe {
                    (
                        job.source.add(pixel * job.pitch + offset + first).cast::<[u8; PART]>().read(),
                        job.weights.add(tap * LANES + first).cast::<[i8; PART]>().read(),
                    )
                };
                for ((sum, &x), &w) in sums.iter_mut().zip(&x).zip(&w) {
                    // At most 255 * 128 in size.
                    let product = i16::from(x).wrapping_mul(i16::from(w));
                    *sum = sum.wrapping_add(i32::from(product));
                }
            }
            // SAFETY: LANES sums per pixel.
            unsafe { job.sums.add(pixel * LANES + first).cast::<[i32; PART]>().write(sums) };
        }
    }
}
