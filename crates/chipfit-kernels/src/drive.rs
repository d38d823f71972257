//! How a call is cut: chunks of output whose source fits the second-level cache, then tiles.
//!
//! For every chunk: its padded source is written (or the caller's tensor is read in place); then for every block of
//! channels and every tile of pixels an inner loop leaves accumulators in a small scratch, and they are
//! finished: requantization, store. Pixels of a chunk are numbered through rows and pictures, so that small maps of a batch fill
//! whole tiles. Channels are the outer loop: a block's weights stay in the cache while the pixels pass by.

use std::ops::Range;

use crate::finish::{Finish, Tile};
use crate::plan::{Plan, Run, SLACK};
use crate::scratch::Scratch;

/// Bytes of source that one chunk of the block loops may have, when it spans more than a row.
const CHUNK_BYTES: usize = 384 << 10;

/// What a call works on, checked.
pub(crate) struct Call<'a> {
    pub(crate) input: &'a [u8],
    pub(crate) pictures: usize,
    /// Output rows, of every picture.
    pub(crate) rows: Range<usize>,
    pub(crate) channels: Range<usize>,
    pub(crate) finish: Finish<'a>,
}

/// Some output rows of some pictures, whose source is made at once.
#[derive(Clone, Debug)]
pub(crate) struct Chunk {
    pub(crate) pictures: Range<usize>,
    pub(crate) rows: Range<usize>,
    /// Its first pixel in the call's output.
    pub(crate) pixel: usize,
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
    /// The first block's biases; `blocks * lanes`.
    pub(crate) bias: *const i32,
    /// Where accumulators go: one row of `blocks * lanes` per pixel.
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

impl Plan {
    /// Cuts a call so that each part's source, and `pixel_bytes` for each of its pixels, stay below `budget` where a
    /// single row does.
    pub(crate) fn chunks(&self, call: &Call<'_>, pixel_bytes: usize, budget: usize) -> Vec<Chunk> {
        let n_rows = call.rows.len();
        let row_pixels = self.output[1];
        let bytes = |rows: usize| self.source_rows(rows) * self.row_pitch + rows * row_pixels * pixel_bytes;
        if bytes(n_rows) <= budget {
            let step = (budget / bytes(n_rows)).min(call.pictures);
            let firsts = (0..call.pictures).step_by(step);
            return firsts
                .map(|first| Chunk {
                    pictures: first..(first + step).min(call.pictures),
                    rows: call.rows.clone(),
                    pixel: first * n_rows * row_pixels,
                })
                .collect();
        }
        let per_row = self.geometry.stride[0] * self.row_pitch + row_pixels * pixel_bytes;
        let affordable = budget.saturating_sub(bytes(1)) / per_row + 1;
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

    /// Makes the source of a chunk, and lists in `scratch.lines` the offset of every output row's first operand in it.
    pub(crate) fn prepare(&self, call: &Call<'_>, chunk: &Chunk, scratch: &mut Scratch) -> *const u8 {
        let picture_bytes = self.picture_bytes();
        let row_step = self.geometry.stride[0] * self.row_pitch;
        scratch.lines.clear();
        if self.in_place {
            for picture in chunk.pictures.clone() {
                let rows = chunk.rows.clone();
                scratch.lines.extend(rows.map(|row| picture * picture_bytes + row * row_step));
            }
            return call.input.as_ptr();
        }
        let bytes = self.source_rows(chunk.rows.len()) * self.row_pitch;
        scratch.source.grow(bytes * chunk.pictures.len() + SLACK);
        let sources = scratch.source.as_mut_slice().chunks_exact_mut(bytes);
        for (index, (picture, source)) in chunk.pictures.clone().zip(sources).enumerate() {
            self.pad(&call.input[picture * picture_bytes..][..picture_bytes], chunk.rows.start, source);
            scratch.lines.extend((0..chunk.rows.len()).map(|row| index * bytes + row * row_step));
        }
        scratch.source.as_ptr()
    }

    /// Lists in `scratch.pixels` the offset of every pixel's first operand, from `scratch.lines`.
    pub(crate) fn list_pixels(&self, scratch: &mut Scratch) {
        let Scratch { lines, pixels, .. } = scratch;
        pixels.clear();
        for line in lines {
            pixels.extend((0..self.output[1]).map(|column| *line + column * self.pixel_pitch));
        }
    }
}

/// Runs a call by the block loops of one instruction set.
///
/// # Safety
/// The call's target holds its pixels and channels, and this call alone writes them; the instruction set is available.
pub(crate) unsafe fn blocks(plan: &Plan, set: &BlockSet, call: &Call<'_>, scratch: &mut Scratch) {
    for chunk in plan.chunks(call, 0, CHUNK_BYTES) {
        let source = plan.prepare(call, &chunk, scratch);
        plan.list_pixels(scratch);
        // SAFETY: the caller's promises; the source was made for this chunk.
        unsafe { chunk_of_blocks(plan, set, call, &chunk, source, scratch) };
    }
}

/// # Safety
/// As [`blocks`]; `source` and `scratch.pixels` were made for this chunk.
unsafe fn chunk_of_blocks(
    plan: &Plan,
    set: &BlockSet,
    call: &Call<'_>,
    chunk: &Chunk,
    source: *const u8,
    scratch: &mut Scratch,
) {
    let Scratch { tile, pixels: offsets, .. } = scratch;
    tile.grow(set.pixels * set.blocks * plan.lanes * size_of::<i32>());
    let sums: *mut i32 = tile.as_mut_ptr().cast();
    let group_outputs = plan.geometry.out_channels / plan.geometry.groups;
    let groups = call.channels.start / group_outputs..call.channels.end.div_ceil(group_outputs);
    let tiles = offsets.len().div_ceil(set.pixels);
    let (size, larger) = (offsets.len() / tiles, offsets.len() % tiles);
    for group in groups {
        let base = group * group_outputs;
        let first = call.channels.start.saturating_sub(base);
        let last = (call.channels.end - base).min(group_outputs);
        for channel in (first..last).step_by(plan.lanes * set.blocks) {
            let channels = (last - channel).min(plan.lanes * set.blocks);
            let n_blocks = channels.div_ceil(plan.lanes);
            let block = group * plan.blocks + channel / plan.lanes;
            // SAFETY: the block is one of the plan's.
            let weights = unsafe { plan.weights.as_ptr().add(block * plan.block_bytes) };
            let mut pixel = 0;
            for index in 0..tiles {
                let pixels = size + usize::from(index < larger);
                let job = BlockJob {
                    // SAFETY: the group's channels lie inside the source.
                    source: unsafe { source.add(group * plan.group_pitch) },
                    pixels: &offsets[pixel..pixel + pixels],
                    runs: &plan.runs,
                    weights,
                    block_bytes: plan.block_bytes,
                    bias: plan.bias[block * plan.lanes..].as_ptr(),
                    sums,
                };
                let tile = Tile {
                    sums,
                    pitch: n_blocks * plan.lanes,
                    pixel: chunk.pixel + pixel,
                    pixels,
                    channel: base + channel,
                    channels,
                };
                // SAFETY: the source has room for every run of every pixel (SLACK covers filled-up groups, and in place
                // nothing is filled up); the scratch holds pixels * blocks * lanes sums; the rest is the caller's promise.
                unsafe {
                    (set.kernel)(pixels, n_blocks)(&job);
                    (set.finish)(&call.finish, tile);
                }
                pixel += pixels;
            }
        }
    }
}
