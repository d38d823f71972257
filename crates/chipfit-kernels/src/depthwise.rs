//! Depthwise convolutions: every channel is its own group.
//!
//! Loops run over blocks of 64 channels; a pixel's tap is 64 bytes side by side in the padded source, and all products of
//! one channel stay in one lane. Products fit 16 bits: `255 * 128 < 2^15`.

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
/// Taps are filled up to a multiple of this, with weights of zero.
const TAPS: usize = 4;
/// Bytes of source that one chunk may have, when it spans more than a row.
const CHUNK_BYTES: usize = 384 << 10;

/// Packed weights of a depthwise convolution.
#[derive(Clone, Debug)]
pub(crate) struct DepthPlan {
    plan: Plan,
    /// Byte offset of every tap from a pixel's first operand, filled up.
    taps: Vec<usize>,
    /// Blocks of `taps.len() * LANES` weights, in the order that the loop's [`Order`] says.
    weights: Buffer,
    /// One per channel, filled up to whole blocks.
    bias: Vec<i32>,
    set: DepthSet,
}

/// The inner loop of one instruction set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DepthSet {
    pub(crate) order: Order,
    /// See [`DepthKernel`].
    pub(crate) kernel: DepthKernel,
    /// Finishes a tile; as [`Finish::scalar`], on an available instruction set.
    pub(crate) finish: unsafe fn(&Finish<'_>, Tile),
}

/// An inner loop: all taps of some pixels, one block of channels.
///
/// # Safety
/// The instruction set is available; 64 bytes can be read from every tap of every pixel; the weights hold
/// `taps.len() * LANES`, the biases `LANES`, the sums `LANES` per pixel.
pub(crate) type DepthKernel = unsafe fn(&DepthJob<'_>);

/// How a block's weights lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// `[tap][channel]`.
    Plain,
    /// `[four taps][vector of 64 bytes, of 4][128-bit lane, of 4][channel, of 4][tap, of 4]`, where vector `v`, lane `l`
    /// and channel `c` stand for channel `16 * l + 4 * v + c`: what interleaving four taps' bytes within lanes gives.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "what AVX-512 multiplies"))]
    Fours,
}

/// One call of an inner loop.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DepthJob<'a> {
    /// The source, at the block's first channel.
    pub(crate) source: *const u8,
    pub(crate) pixels: &'a [usize],
    pub(crate) taps: &'a [usize],
    pub(crate) weights: *const i8,
    pub(crate) bias: *const i32,
    pub(crate) sums: *mut i32,
}

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
        let n_taps = plan.runs.len();
        let mut taps: Vec<usize> = plan.runs.iter().map(|run| run.offset).collect();
        taps.resize(n_taps.next_multiple_of(TAPS), 0);
        let filled = geometry.out_channels.next_multiple_of(LANES);
        let mut packed = Buffer::zeros(filled * taps.len());
        let mut folded = vec![0; filled];
        let bytes = packed.as_mut_slice();
        for (channel, (row, bias)) in weights.chunks_exact(n_taps).zip(bias).enumerate() {
            let block = channel / LANES * taps.len() * LANES;
            let mut sum = 0_i32;
            for (tap, &weight) in row.iter().enumerate() {
                bytes[block + set.order.position(tap, channel % LANES)] = weight.cast_unsigned();
                sum = sum.wrapping_add(i32::from(weight));
            }
            folded[channel] = bias.wrapping_sub(sum.wrapping_mul(i32::from(zero_point)));
        }
        Self { plan, taps, weights: packed, bias: folded, set }
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
        let Self { plan, taps, .. } = self;
        for chunk in plan.chunks(call, 0, CHUNK_BYTES) {
            let source = plan.prepare(call, &chunk, scratch);
            plan.list_pixels(scratch);
            let Scratch { tile, pixels, .. } = &mut *scratch;
            tile.grow(PIXELS * LANES * size_of::<i32>());
            let sums: *mut i32 = tile.as_mut_ptr().cast();
            for channel in call.channels.clone().step_by(LANES) {
                let channels = LANES.min(call.channels.end - channel);
                for (index, pixels) in pixels.chunks(PIXELS).enumerate() {
                    let pixel = chunk.pixel + index * PIXELS;
                    let tile = Tile { sums, pitch: LANES, pixel, pixels: pixels.len(), channel, channels };
                    // SAFETY: the block lies in the weights, the channel in the source, whose SLACK covers a block that
                    // reaches past the last channel; the scratch holds the sums; the rest is the caller's promise.
                    unsafe {
                        let job = DepthJob {
                            source: source.add(channel),
                            pixels,
                            taps,
                            weights: self.weights.as_ptr().add(channel * taps.len()).cast(),
                            bias: self.bias[channel..].as_ptr(),
                            sums,
                        };
                        (self.set.kernel)(&job);
                        (self.set.finish)(&call.finish, tile);
                    }
                }
            }
        }
    }
}

impl Order {
    /// Where in its block a weight lies.
    fn position(self, tap: usize, channel: usize) -> usize {
        match self {
            Self::Plain => tap * LANES + channel,
            Self::Fours => {
                let (lane, vector, within) = (channel / 16, channel / 4 % 4, channel % 4);
                tap / 4 * 4 * LANES + vector * 64 + lane * 16 + within * 4 + tap % 4
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
    DepthSet { order: Order::Plain, kernel: portable, finish: finish_scalar }
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
    for (index, &pixel) in job.pixels.iter().enumerate() {
        // SAFETY: LANES biases.
        let mut sums: [i32; LANES] = unsafe { job.bias.cast::<[i32; LANES]>().read() };
        for (tap, &offset) in job.taps.iter().enumerate() {
            // SAFETY: 64 bytes of the pixel's tap, and its weights.
            let (x, w) = unsafe {
                (
                    &*job.source.add(pixel + offset).cast::<[u8; LANES]>(),
                    &*job.weights.add(tap * LANES).cast::<[i8; LANES]>(),
                )
            };
            for ((sum, &x), &w) in sums.iter_mut().zip(x).zip(w) {
                // At most 255 * 128 in size.
                let product = i16::from(x).wrapping_mul(i16::from(w));
                *sum = sum.wrapping_add(i32::from(product));
            }
        }
        // SAFETY: LANES sums per pixel.
        unsafe { job.sums.add(index * LANES).cast::<[i32; LANES]>().write(sums) };
    }
}
