//! Convolutions with packed constant weights.
//!
//! A call walks the output in chunks whose source fits the second-level cache: it writes the chunk's padded copy (or
//! reads the caller's tensor in place), then for every block of channels and every tile of pixels runs an inner loop
//! that leaves raw sums in a small scratch, and finishes them: bias, requantization, store.
//! Pixels of a chunk are numbered through rows and pictures, so small maps of a batch fill whole tiles.

use std::ops::Range;

use crate::error::{KernelError, check_length};
use crate::finish::{Finish, Target, Tile};
use crate::geometry::ConvGeometry;
use crate::isa::Isa;
use crate::output::OutputBlock;
use crate::plan::{Plan, Run, SLACK, Shape};
use crate::requantize::Rescale;
use crate::scalar;
use crate::scratch::Scratch;

/// Bytes of source that one chunk may have, when it spans more than a row.
const CHUNK_BYTES: usize = 384 << 10;

/// A convolution whose weights are packed for one instruction set.
///
/// Activations are u8 (an int8 tensor is kept as its value plus 128, its zero point moved along), NHWC, dense, pictures
/// one after another. `accumulator = bias + sum (x - input_zero_point) * w`, i32, wrapping; padding reads the zero point.
///
/// Work is divided among threads by output rows, by pictures, or by output channels ([`OutputBlock::split_channels`] at
/// multiples of [`Conv::channel_step`]); each thread brings its own [`Scratch`]. No division changes a result.
#[derive(Clone, Debug)]
pub struct Conv {
    isa: Isa,
    geometry: ConvGeometry,
    output: [usize; 2],
    zero_point: u8,
    rows: Vec<i8>,
    bias: Vec<i32>,
    /// Bias with `-zero_point * sum(w)` folded in, as the engine's elements need it.
    folded: Vec<i32>,
    engine: Engine,
}

#[derive(Clone, Debug)]
enum Engine {
    Scalar,
    Blocks(Plan, BlockSet),
}

/// One call of an inner loop: some pixels against some blocks of channels.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "read by inner loops"))]
pub(crate) struct BlockJob<'a> {
    pub(crate) source: *const u8,
    /// Byte offset of each pixel's first operand.
    pub(crate) pixels: &'a [usize],
    pub(crate) runs: &'a [Run],
    /// The first block's packed weights.
    pub(crate) weights: *const u8,
    /// Bytes from one block's weights to the next block's.
    pub(crate) block_bytes: usize,
    /// Where raw sums go: one row of `blocks * lanes` per pixel.
    pub(crate) sums: *mut i32,
}

/// An inner loop for a fixed number of pixels and blocks.
///
/// # Safety
/// The instruction set is available; `pixels` has as many offsets as the loop is for; every run of every pixel lies in
/// the source, filled-up groups included; the weights hold its blocks, the sums its rectangle.
pub(crate) type BlockKernel = unsafe fn(&BlockJob<'_>);

/// The inner loops of one instruction set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockSet {
    /// Most pixels of one call.
    pub(crate) pixels: usize,
    /// Most blocks of one call.
    pub(crate) blocks: usize,
    /// The loop for `1..=pixels` and `1..=blocks`.
    pub(crate) kernel: fn(usize, usize) -> BlockKernel,
    /// Finishes a tile; as [`Finish::scalar`], on an available instruction set.
    pub(crate) finish: unsafe fn(&Finish<'_>, Tile),
}

/// Some output rows of some pictures, whose source is made at once.
#[derive(Clone, Debug)]
struct Chunk {
    pictures: Range<usize>,
    rows: Range<usize>,
    /// Its first pixel in the call's output.
    pixel: usize,
}

/// What a call works on, checked.
struct Call<'a> {
    input: &'a [u8],
    pictures: usize,
    rows: Range<usize>,
    channels: Range<usize>,
    finish: Finish<'a>,
}

impl Conv {
    /// Packs `weights` (one row per output channel, in the order kernel row, kernel column, input channel of the group)
    /// and `bias` (one per output channel) for an instruction set.
    ///
    /// # Errors
    /// [`KernelError::Unavailable`] if this machine lacks `isa`; what [`ConvGeometry::output`] refuses;
    /// [`KernelError::Length`] for weights or bias of another size.
    pub fn new(
        isa: Isa,
        geometry: ConvGeometry,
        weights: &[i8],
        bias: &[i32],
        input_zero_point: u8,
    ) -> Result<Self, KernelError> {
        if !isa.is_available() {
            return Err(KernelError::Unavailable { isa });
        }
        let output = geometry.checked_output()?;
        let products = geometry.products();
        check_length("weights", weights.len(), geometry.out_channels * products)?;
        check_length("bias", bias.len(), geometry.out_channels)?;
        let (engine, shift) = Engine::new(isa, &geometry, output[1], weights);
        let subtracted = i32::from(input_zero_point) - shift;
        let folded = weights
            .chunks_exact(products)
            .zip(bias)
            .map(|(row, bias)| {
                let sum = row.iter().fold(0_i32, |sum, &weight| sum.wrapping_add(i32::from(weight)));
                bias.wrapping_sub(sum.wrapping_mul(subtracted))
            })
            .collect();
        Ok(Self {
            isa,
            geometry,
            output,
            zero_point: input_zero_point,
            rows: weights.to_vec(),
            bias: bias.to_vec(),
            folded,
            engine,
        })
    }

    /// The instruction set it is packed for.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Its shapes.
    pub fn geometry(&self) -> &ConvGeometry {
        &self.geometry
    }

    /// Rows and columns of the output.
    pub fn output(&self) -> [usize; 2] {
        self.output
    }

    /// The activation that stands for zero.
    pub fn input_zero_point(&self) -> u8 {
        self.zero_point
    }

    /// The weights of an output channel, in the order of its products: kernel row, kernel column, input channel.
    ///
    /// # Panics
    /// If there is no such channel.
    pub fn row(&self, out_channel: usize) -> &[i8] {
        let products = self.geometry.products();
        &self.rows[out_channel * products..][..products]
    }

    /// The bias, as it was given.
    pub fn bias(&self) -> &[i32] {
        &self.bias
    }

    /// Bytes it holds: weights as given and as packed.
    pub fn bytes(&self) -> usize {
        let packed = match &self.engine {
            Engine::Scalar => 0,
            Engine::Blocks(plan, _) => plan.weights.bytes(),
        };
        self.rows.len() + packed + (self.bias.len() + self.folded.len()) * size_of::<i32>()
    }

    /// Ranges of output channels start at multiples of this and end at one or at the last channel.
    pub fn channel_step(&self) -> usize {
        match &self.engine {
            Engine::Scalar => 1,
            Engine::Blocks(..) if self.geometry.groups > 1 => self.geometry.out_channels / self.geometry.groups,
            Engine::Blocks(plan, set) => plan.lanes * set.blocks,
        }
    }

    /// Computes output `rows` of every picture of `input` (`[pictures, rows, columns, in_channels]`) into `out`
    /// (`[pictures, rows.len(), output columns, out_channels]`).
    ///
    /// # Errors
    /// [`KernelError`] naming the slice, range or constant that does not fit; nothing is written then.
    pub fn run<'r>(
        &self,
        input: &[u8],
        rows: Range<usize>,
        rescale: impl Into<Rescale<'r>>,
        out: &mut [u8],
        scratch: &mut Scratch,
    ) -> Result<(), KernelError> {
        let block = OutputBlock::new(out, self.geometry.out_channels)?;
        self.run_block(input, rows, rescale, block, scratch)
    }

    /// [`Conv::run`] for the channels of `block` only; its tensor is `out` of [`Conv::run`], the constants of `rescale`
    /// cover all channels.
    ///
    /// # Errors
    /// As [`Conv::run`]; [`KernelError::Range`] for channels that do not keep to [`Conv::channel_step`].
    pub fn run_block<'r>(
        &self,
        input: &[u8],
        rows: Range<usize>,
        rescale: impl Into<Rescale<'r>>,
        mut block: OutputBlock<'_, u8>,
        scratch: &mut Scratch,
    ) -> Result<(), KernelError> {
        let rescale = rescale.into();
        rescale.check(self.geometry.out_channels)?;
        let target = Target::bytes(block.as_mut_ptr(), rescale);
        let call = self.check(input, rows, &block, target)?;
        // SAFETY: the block lends its pixels and channels to this call alone, and `check` compared their numbers.
        unsafe { self.execute(&call, scratch) };
        Ok(())
    }

    /// [`Conv::run`] without requantization: `out` takes the accumulators.
    ///
    /// # Errors
    /// As [`Conv::run`].
    pub fn accumulate(
        &self,
        input: &[u8],
        rows: Range<usize>,
        out: &mut [i32],
        scratch: &mut Scratch,
    ) -> Result<(), KernelError> {
        let block = OutputBlock::new(out, self.geometry.out_channels)?;
        self.accumulate_block(input, rows, block, scratch)
    }

    /// [`Conv::accumulate`] for the channels of `block` only.
    ///
    /// # Errors
    /// As [`Conv::run_block`].
    pub fn accumulate_block(
        &self,
        input: &[u8],
        rows: Range<usize>,
        mut block: OutputBlock<'_, i32>,
        scratch: &mut Scratch,
    ) -> Result<(), KernelError> {
        let target = Target::Sums(block.as_mut_ptr());
        let call = self.check(input, rows, &block, target)?;
        // SAFETY: the block lends its pixels and channels to this call alone, and `check` compared their numbers.
        unsafe { self.execute(&call, scratch) };
        Ok(())
    }

    fn check<'a, T>(
        &'a self,
        input: &'a [u8],
        rows: Range<usize>,
        block: &OutputBlock<'_, T>,
        target: Target<'a>,
    ) -> Result<Call<'a>, KernelError> {
        let picture = self.picture_bytes();
        let pictures = input.len() / picture;
        check_length("input", input.len(), pictures * picture)?;
        if rows.start > rows.end || rows.end > self.output[0] {
            let Range { start, end } = rows;
            return Err(KernelError::Range { what: "output rows", start, end, limit: self.output[0] });
        }
        let limit = self.geometry.out_channels;
        check_length("channels of the output", block.pitch(), limit)?;
        check_length("pixels of the output", block.pixels(), pictures * rows.len() * self.output[1])?;
        let channels = block.channels();
        let step = self.channel_step();
        let Range { start, end } = channels;
        if start != limit && start % step != 0 || end != limit && end % step != 0 {
            return Err(KernelError::Range { what: "output channels", start, end, limit });
        }
        let finish = Finish { bias: &self.folded, target, pitch: limit };
        Ok(Call { input, pictures, rows, channels, finish })
    }

    /// Bytes of one input picture.
    pub(crate) fn picture_bytes(&self) -> usize {
        self.geometry.input[0] * self.geometry.input[1] * self.geometry.in_channels
    }

    /// # Safety
    /// The call's target holds its pixels and channels, and this call alone writes them.
    unsafe fn execute(&self, call: &Call<'_>, scratch: &mut Scratch) {
        if call.pictures == 0 || call.rows.is_empty() || call.channels.is_empty() {
            return;
        }
        match &self.engine {
            // SAFETY: the caller's promise.
            Engine::Scalar => unsafe { self.execute_scalar(call) },
            Engine::Blocks(plan, set) => {
                for chunk in self.chunks(plan, call) {
                    let source = self.prepare(plan, call, &chunk, scratch);
                    // SAFETY: the caller's promise; `prepare` has made the chunk's source.
                    unsafe { self.execute_blocks(plan, set, call, &chunk, source, scratch) };
                }
            }
        }
    }

    /// # Safety
    /// As [`Conv::execute`].
    unsafe fn execute_scalar(&self, call: &Call<'_>) {
        let Finish { target, pitch, .. } = call.finish;
        let finish = Finish { bias: &self.bias, target, pitch };
        let mut pixel = 0;
        for picture in call.input.chunks_exact(self.picture_bytes()) {
            for row in call.rows.clone() {
                for column in 0..self.output[1] {
                    for channel in call.channels.clone() {
                        let at = [row, column, channel];
                        let weights = self.row(channel);
                        let bias = self.bias[channel];
                        let sum = scalar::accumulator(&self.geometry, self.zero_point, picture, weights, bias, at);
                        // SAFETY: the pixel and channel are of this call.
                        unsafe { finish.store(sum, pixel, channel) };
                    }
                    pixel += 1;
                }
            }
        }
    }

    /// Cuts a call so that each part's source stays below [`CHUNK_BYTES`] where a single row does.
    fn chunks(&self, plan: &Plan, call: &Call<'_>) -> Vec<Chunk> {
        let n_rows = call.rows.len();
        let row_pixels = self.output[1];
        let picture = Plan::source_rows(&self.geometry, n_rows) * plan.row_pitch;
        if picture <= CHUNK_BYTES {
            let step = (CHUNK_BYTES / picture).min(call.pictures);
            let firsts = (0..call.pictures).step_by(step);
            return firsts
                .map(|first| Chunk {
                    pictures: first..(first + step).min(call.pictures),
                    rows: call.rows.clone(),
                    pixel: first * n_rows * row_pixels,
                })
                .collect();
        }
        let overlap = Plan::source_rows(&self.geometry, 1);
        let affordable = (CHUNK_BYTES / plan.row_pitch).saturating_sub(overlap) / self.geometry.stride[0] + 1;
        // Chunks of about equal size.
        let step = n_rows.div_ceil(n_rows.div_ceil(affordable));
        let mut chunks = Vec::new();
        for picture in 0..call.pictures {
            for first in (0..n_rows).step_by(step) {
                let last = (first + step).min(n_rows);
                chunks.push(Chunk {
                    pictures: picture..picture + 1,
                    rows: call.rows.start + first..call.rows.start + last,
                    pixel: (picture * n_rows + first) * row_pixels,
                });
            }
        }
        chunks
    }

    /// Makes the source of a chunk and lists the offset of every pixel's first operand in it.
    fn prepare(&self, plan: &Plan, call: &Call<'_>, chunk: &Chunk, scratch: &mut Scratch) -> *const u8 {
        let picture_bytes = self.picture_bytes();
        let row_step = self.geometry.stride[0] * plan.row_pitch;
        scratch.offsets.clear();
        if plan.in_place {
            for picture in chunk.pictures.clone() {
                for row in chunk.rows.clone() {
                    let line = picture * picture_bytes + row * row_step;
                    scratch.offsets.extend((0..self.output[1]).map(|column| line + column * plan.pixel_pitch));
                }
            }
            return call.input.as_ptr();
        }
        let bytes = Plan::source_rows(&self.geometry, chunk.rows.len()) * plan.row_pitch;
        scratch.source.grow(bytes * chunk.pictures.len() + SLACK);
        let sources = scratch.source.as_mut_slice().chunks_exact_mut(bytes);
        for (index, (picture, source)) in chunk.pictures.clone().zip(sources).enumerate() {
            let input = &call.input[picture * picture_bytes..][..picture_bytes];
            plan.pad(&self.geometry, self.zero_point, input, chunk.rows.clone(), source);
            for row in 0..chunk.rows.len() {
                let line = index * bytes + row * row_step;
                scratch.offsets.extend((0..self.output[1]).map(|column| line + column * plan.pixel_pitch));
            }
        }
        scratch.source.as_ptr()
    }

    /// # Safety
    /// As [`Conv::execute`]; `source` and `scratch.offsets` are what [`Conv::prepare`] made for this chunk.
    unsafe fn execute_blocks(
        &self,
        plan: &Plan,
        set: &BlockSet,
        call: &Call<'_>,
        chunk: &Chunk,
        source: *const u8,
        scratch: &mut Scratch,
    ) {
        let Scratch { tile, offsets, .. } = scratch;
        tile.grow(set.pixels * set.blocks * plan.lanes * size_of::<i32>());
        let sums: *mut i32 = tile.as_mut_ptr().cast();
        let group_outputs = self.geometry.out_channels / self.geometry.groups;
        let groups = call.channels.start / group_outputs..call.channels.end.div_ceil(group_outputs);
        let tiles = offsets.len().div_ceil(set.pixels);
        let (size, larger) = (offsets.len() / tiles, offsets.len() % tiles);
        for group in groups {
            let base = group * group_outputs;
            let first = call.channels.start.saturating_sub(base);
            let last = (call.channels.end - base).min(group_outputs);
            for channel in (first..last).step_by(plan.lanes * set.blocks) {
                let block = channel / plan.lanes;
                let channels = (last - channel).min(plan.lanes * set.blocks);
                let blocks = channels.div_ceil(plan.lanes);
                let mut pixel = 0;
                for index in 0..tiles {
                    let pixels = size + usize::from(index < larger);
                    let job = BlockJob {
                        // SAFETY: the group's channels lie inside the source.
                        source: unsafe { source.add(group * plan.group_pitch) },
                        pixels: &offsets[pixel..pixel + pixels],
                        runs: &plan.runs,
                        // SAFETY: the block is one of the plan's.
                        weights: unsafe { plan.weights.as_ptr().add((group * plan.blocks + block) * plan.block_bytes) },
                        block_bytes: plan.block_bytes,
                        sums,
                    };
                    let tile = Tile {
                        sums,
                        pitch: blocks * plan.lanes,
                        pixel: chunk.pixel + pixel,
                        pixels,
                        channel: base + channel,
                        channels,
                    };
                    // SAFETY: the instruction set was checked when the plan was made; the source has room for every
                    // run of every pixel (SLACK covers filled-up groups, and in place nothing is filled up); the
                    // scratch holds pixels * blocks * lanes sums; the target is the caller's promise.
                    unsafe {
                        (set.kernel)(pixels, blocks)(&job);
                        (set.finish)(&call.finish, tile);
                    }
                    pixel += pixels;
                }
            }
        }
    }
}

impl Engine {
    /// The engine of an available instruction set, and what its elements are less than the activations.
    fn new(isa: Isa, geometry: &ConvGeometry, output_columns: usize, weights: &[i8]) -> (Self, i32) {
        let isa = if isa == Isa::AmxInt8 { Isa::Avx512Vnni } else { isa };
        let Some(shape) = Shape::of(isa) else { return (Self::Scalar, 0) };
        let Some(set) = block_set(isa) else { return (Self::Scalar, 0) };
        let plan = Plan::new(geometry, output_columns, shape, weights);
        (Self::Blocks(plan, set), 0)
    }
}

/// The block loops of an available instruction set.
fn block_set(isa: Isa) -> Option<BlockSet> {
    #[cfg(target_arch = "x86_64")]
    match isa {
        Isa::Avx512Vnni | Isa::AmxInt8 => return Some(crate::x86::avx512::BLOCKS),
        _ => {}
    }
    let _ = isa;
    None
}
