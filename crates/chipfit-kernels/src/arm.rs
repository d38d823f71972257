//! Inner loops for AArch64 with the dot product extension.
//!
//! `sdot` multiplies four i8 by four i8 and adds all into an i32. Activations are stored as u8 - 128 in the padded copy;
//! 128 times the weights' sum is folded into the bias. The instruction is inline assembly, because its intrinsic is not
//! stable.
//! Registers: up to 24 accumulators of 4 channels, 4 of weights, one activation quadruple spread over all lanes.

use std::arch::aarch64::*;
use std::arch::asm;

use crate::drive::{BlockJob, BlockKernel, BlockSet};
use crate::finish::{Finish, Tile};

/// The loops of the dot product extension.
pub(crate) const BLOCKS: BlockSet = BlockSet { pixels: 6, blocks: 4, kernel, finish };

fn kernel(pixels: usize, blocks: usize) -> BlockKernel {
    const ALL: [[BlockKernel; 4]; 6] = [
        [block::<1, 1>, block::<1, 2>, block::<1, 3>, block::<1, 4>],
        [block::<2, 1>, block::<2, 2>, block::<2, 3>, block::<2, 4>],
        [block::<3, 1>, block::<3, 2>, block::<3, 3>, block::<3, 4>],
        [block::<4, 1>, block::<4, 2>, block::<4, 3>, block::<4, 4>],
        [block::<5, 1>, block::<5, 2>, block::<5, 3>, block::<5, 4>],
        [block::<6, 1>, block::<6, 2>, block::<6, 3>, block::<6, 4>],
    ];
    ALL[pixels - 1][blocks - 1]
}

/// Sums of `P` pixels against `Q` blocks.
///
/// # Safety
/// As [`BlockKernel`] asks.
#[target_feature(enable = "neon,dotprod")]
unsafe fn block<const P: usize, const Q: usize>(job: &BlockJob<'_>) {
    // SAFETY: a block has 4 biases; 16 bytes are one group of 4 lanes of a block's weights; groups lie in the source; the
    // rectangle has P rows of Q * 4 sums.
    unsafe {
        let mut bias = [vdupq_n_s32(0); Q];
        for (index, bias) in bias.iter_mut().enumerate() {
            *bias = vld1q_s32(job.bias.add(index * 4));
        }
        let mut sums = [bias; P];
        let mut pixels = [job.source; P];
        for (pixel, &offset) in pixels.iter_mut().zip(job.pixels) {
            *pixel = pixel.add(offset);
        }
        let mut weights = job.weights.cast::<i8>();
        for run in job.runs {
            let mut at = run.offset;
            for _ in 0..run.groups {
                let mut block = [vdupq_n_s8(0); Q];
                for (index, block) in block.iter_mut().enumerate() {
                    *block = vld1q_s8(weights.add(index * job.block_bytes));
                }
                for (sums, pixel) in sums.iter_mut().zip(pixels) {
                    let four = vreinterpretq_s8_s32(vdupq_n_s32(pixel.add(at).cast::<i32>().read_unaligned()));
                    for (sum, block) in sums.iter_mut().zip(block) {
                        *sum = dot(*sum, four, block);
                    }
                }
                at += 4;
                weights = weights.add(16);
            }
        }
        for (pixel, sums) in sums.iter().enumerate() {
            for (index, &sum) in sums.iter().enumerate() {
                vst1q_s32(job.sums.add((pixel * Q + index) * 4), sum);
            }
        }
    }
}

/// `sum` plus, per lane, the four products of bytes.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn dot(sum: int32x4_t, x: int8x16_t, w: int8x16_t) -> int32x4_t {
    let mut result = sum;
    // SAFETY: reads and writes registers only; the extension is available.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {x:v}.16b, {w:v}.16b",
            sum = inout(vreg) result,
            x = in(vreg) x,
            w = in(vreg) w,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    result
}

/// Finishes a tile.
///
/// # Safety
/// As [`Finish::scalar`].
unsafe fn finish(finish: &Finish<'_>, tile: Tile) {
    // SAFETY: the same promises; its loops become vectors.
    unsafe { finish.scalar(tile) };
}
