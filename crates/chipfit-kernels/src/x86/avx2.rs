//! Block loops on 256 bits, and the requantization of their sums.
//!
//! AVX-VNNI: `vpdpbusd`, four bytes a lane. AVX2: activations and weights widened to 16 bits, `vpmaddwd`, two a lane; a
//! pair of products is at most `2 * 255 * 128`, so nothing saturates (`vpmaddubsw` would).
//! Registers: 12 accumulators of 8 channels, two of weights, one activation group spread over all lanes.

use std::arch::x86_64::*;

use crate::drive::{BlockJob, BlockKernel, BlockSet};
use crate::finish::{Finish, Target, Tile};
use crate::requantize::Requantize;

/// The loops of AVX2.
pub(crate) const BLOCKS: BlockSet = BlockSet { pixels: 6, blocks: 2, kernel: words, finish };
/// The loops of AVX-VNNI.
pub(crate) const VNNI_BLOCKS: BlockSet = BlockSet { pixels: 6, blocks: 2, kernel: bytes, finish };

fn words(pixels: usize, blocks: usize) -> BlockKernel {
    const ONE: [BlockKernel; 6] = [
        word_block::<1, 1>,
        word_block::<2, 1>,
        word_block::<3, 1>,
        word_block::<4, 1>,
        word_block::<5, 1>,
        word_block::<6, 1>,
    ];
    const TWO: [BlockKernel; 6] = [
        word_block::<1, 2>,
        word_block::<2, 2>,
        word_block::<3, 2>,
        word_block::<4, 2>,
        word_block::<5, 2>,
        word_block::<6, 2>,
    ];
    if blocks == 1 { ONE[pixels - 1] } else { TWO[pixels - 1] }
}

fn bytes(pixels: usize, blocks: usize) -> BlockKernel {
    const ONE: [BlockKernel; 6] = [
        byte_block::<1, 1>,
        byte_block::<2, 1>,
        byte_block::<3, 1>,
        byte_block::<4, 1>,
        byte_block::<5, 1>,
        byte_block::<6, 1>,
    ];
    const TWO: [BlockKernel; 6] = [
        byte_block::<1, 2>,
        byte_block::<2, 2>,
        byte_block::<3, 2>,
        byte_block::<4, 2>,
        byte_block::<5, 2>,
        byte_block::<6, 2>,
    ];
    if blocks == 1 { ONE[pixels - 1] } else { TWO[pixels - 1] }
}

/// Sums of `P` pixels against `Q` blocks, two words a lane.
///
/// # Safety
/// As [`BlockKernel`] asks.
#[target_feature(enable = "avx2")]
unsafe fn word_block<const P: usize, const Q: usize>(job: &BlockJob<'_>) {
    // SAFETY: the same promises.
    unsafe {
        block::<P, Q>(job, |sum, x, w| _mm256_add_epi32(sum, _mm256_madd_epi16(x, w)));
    }
}

/// Sums of `P` pixels against `Q` blocks, four bytes a lane.
///
/// # Safety
/// As [`BlockKernel`] asks.
#[target_feature(enable = "avx2,avxvnni")]
unsafe fn byte_block<const P: usize, const Q: usize>(job: &BlockJob<'_>) {
    // SAFETY: the same promises.
    unsafe {
        block::<P, Q>(job, |sum, x, w| _mm256_dpbusd_avx_epi32(sum, x, w));
    }
}

/// The loop around a product of one group of operands, inlined into a function that has the features.
///
/// # Safety
/// As [`BlockKernel`] asks; AVX2 is available.
#[inline(always)]
unsafe fn block<const P: usize, const Q: usize>(
    job: &BlockJob<'_>,
    multiply_add: impl Fn(__m256i, __m256i, __m256i) -> __m256i,
) {
    // SAFETY: AVX2 is available; a block has 8 biases; 32 bytes are one group of 8 lanes of a block's weights; groups lie
    // in the source; the rectangle has P rows of Q * 8 sums.
    unsafe {
        let mut bias = [_mm256_setzero_si256(); Q];
        for (index, bias) in bias.iter_mut().enumerate() {
            *bias = _mm256_loadu_si256(job.bias.add(index * 8).cast());
        }
        let mut sums = [bias; P];
        let mut pixels = [job.source; P];
        for (pixel, &offset) in pixels.iter_mut().zip(job.pixels) {
            *pixel = pixel.add(offset);
        }
        let mut weights = job.weights;
        for run in job.runs {
            let mut at = run.offset;
            for _ in 0..run.groups {
                let mut block = [_mm256_setzero_si256(); Q];
                for (index, block) in block.iter_mut().enumerate() {
                    *block = _mm256_loadu_si256(weights.add(index * job.block_bytes).cast());
                }
                for (sums, pixel) in sums.iter_mut().zip(pixels) {
                    let group = _mm256_set1_epi32(pixel.add(at).cast::<i32>().read_unaligned());
                    for (sum, block) in sums.iter_mut().zip(block) {
                        *sum = multiply_add(*sum, group, block);
                    }
                }
                at += 4;
                weights = weights.add(32);
            }
        }
        for (pixel, sums) in sums.iter().enumerate() {
            for (index, &sum) in sums.iter().enumerate() {
                _mm256_storeu_si256(job.sums.add((pixel * Q + index) * 8).cast(), sum);
            }
        }
    }
}

/// Finishes a tile.
///
/// # Safety
/// As [`Finish::scalar`]; AVX2 is available.
pub(crate) unsafe fn finish(finish: &Finish<'_>, tile: Tile) {
    // SAFETY: the caller's promises.
    unsafe {
        match finish.target {
            Target::Float(start, float) => finish_float(finish, tile, start, float),
            _ => finish.scalar(tile),
        }
    }
}

/// # Safety
/// As [`finish`].
#[target_feature(enable = "avx2")]
unsafe fn finish_float(finish: &Finish<'_>, tile: Tile, start: *mut u8, float: &Requantize) {
    let low = _mm256_set1_ps((float.low - float.zero_point) as f32);
    let high = _mm256_set1_ps((float.high - float.zero_point) as f32);
    let zero_point = _mm_set1_epi16(float.zero_point as i16);
    let whole = tile.channels / 8 * 8;
    for first in (0..whole).step_by(8) {
        let channel = tile.channel + first;
        let multipliers: &[f32; 8] =
            float.multipliers[channel..].first_chunk().unwrap_or_else(|| unreachable!("8 channels"));
        // SAFETY: eight multipliers; eight sums of the rectangle and eight of the target's channels.
        unsafe {
            let multiplier = _mm256_loadu_ps(multipliers.as_ptr());
            for pixel in 0..tile.pixels {
                let sums = _mm256_loadu_si256(tile.sums.add(pixel * tile.pitch + first).cast());
                let product = _mm256_mul_ps(_mm256_cvtepi32_ps(sums), multiplier);
                let rounded = _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(product, low), high));
                let words = _mm_packs_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256::<1>(rounded));
                let words = _mm_add_epi16(words, zero_point);
                let to = start.add((tile.pixel + pixel) * finish.pitch + channel);
                _mm_storel_epi64(to.cast(), _mm_packus_epi16(words, words));
            }
        }
    }
    let rest = Tile {
        // SAFETY: inside the rectangle, or its end.
        sums: unsafe { tile.sums.add(whole) },
        channel: tile.channel + whole,
        channels: tile.channels - whole,
        ..tile
    };
    // SAFETY: the caller's promises.
    unsafe { finish.scalar(rest) };
}
