//! Block loops with `vpdpbusd` on 512 bits, and the requantization of their sums.
//!
//! Registers: `P * Q` accumulators of 16 channels, `Q` of weights, one activation quadruple spread over all lanes.
//! `vpdpbusd` multiplies four u8 by four i8 and adds all into an i32 without saturation.

use std::arch::x86_64::*;

use crate::drive::{BlockJob, BlockKernel, BlockSet};
use crate::finish::{Finish, Target, Tile};
use crate::requantize::Requantize;

/// The loops of AVX-512 VNNI.
pub(crate) const BLOCKS: BlockSet = BlockSet { pixels: 14, blocks: 2, kernel, finish };

fn kernel(pixels: usize, blocks: usize) -> BlockKernel {
    const ONE: [BlockKernel; 14] = [
        block::<1, 1>,
        block::<2, 1>,
        block::<3, 1>,
        block::<4, 1>,
        block::<5, 1>,
        block::<6, 1>,
        block::<7, 1>,
        block::<8, 1>,
        block::<9, 1>,
        block::<10, 1>,
        block::<11, 1>,
        block::<12, 1>,
        block::<13, 1>,
        block::<14, 1>,
    ];
    const TWO: [BlockKernel; 14] = [
        block::<1, 2>,
        block::<2, 2>,
        block::<3, 2>,
        block::<4, 2>,
        block::<5, 2>,
        block::<6, 2>,
        block::<7, 2>,
        block::<8, 2>,
        block::<9, 2>,
        block::<10, 2>,
        block::<11, 2>,
        block::<12, 2>,
        block::<13, 2>,
        block::<14, 2>,
    ];
    if blocks == 1 { ONE[pixels - 1] } else { TWO[pixels - 1] }
}

/// Sums of `P` pixels against `Q` blocks.
///
/// # Safety
/// As [`BlockKernel`] asks.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn block<const P: usize, const Q: usize>(job: &BlockJob<'_>) {
    let mut sums = [[_mm512_setzero_si512(); Q]; P];
    let mut pixels = [job.source; P];
    for (pixel, &offset) in pixels.iter_mut().zip(job.pixels) {
        // SAFETY: the offset lies in the source.
        *pixel = unsafe { pixel.add(offset) };
    }
    let mut weights = job.weights;
    for run in job.runs {
        let mut at = run.offset;
        for _ in 0..run.groups {
            let mut block = [_mm512_setzero_si512(); Q];
            for (index, block) in block.iter_mut().enumerate() {
                // SAFETY: one group of 16 lanes is 64 bytes of the block's weights.
                *block = unsafe { _mm512_loadu_si512(weights.add(index * job.block_bytes).cast()) };
            }
            for (sums, pixel) in sums.iter_mut().zip(pixels) {
                // SAFETY: the group lies in the source.
                let four = _mm512_set1_epi32(unsafe { pixel.add(at).cast::<i32>().read_unaligned() });
                for (sum, block) in sums.iter_mut().zip(block) {
                    *sum = _mm512_dpbusd_epi32(*sum, four, block);
                }
            }
            at += 4;
            // SAFETY: at most the end of the block's weights.
            weights = unsafe { weights.add(64) };
        }
    }
    for (pixel, sums) in sums.iter().enumerate() {
        for (index, &sum) in sums.iter().enumerate() {
            // SAFETY: the rectangle has P rows of Q * 16 sums.
            unsafe { _mm512_storeu_si512(job.sums.add((pixel * Q + index) * 16).cast(), sum) };
        }
    }
}

/// Finishes a tile.
///
/// # Safety
/// As [`Finish::scalar`]; AVX-512 F, BW and VL are available.
pub(crate) unsafe fn finish(finish: &Finish<'_>, tile: Tile) {
    // SAFETY: the caller's promises.
    unsafe {
        match finish.target {
            Target::Float(start, float) => finish_float(finish, tile, start, float),
            Target::Sums(start) => finish_sums(finish, tile, start),
            Target::Fixed(..) => finish.scalar(tile),
        }
    }
}

/// # Safety
/// As [`finish`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn finish_float(finish: &Finish<'_>, tile: Tile, start: *mut u8, float: &Requantize) {
    let low = _mm512_set1_ps((float.low - float.zero_point) as f32);
    let high = _mm512_set1_ps((float.high - float.zero_point) as f32);
    let zero_point = _mm512_set1_epi32(float.zero_point);
    for first in (0..tile.channels).step_by(16) {
        let channel = tile.channel + first;
        let mask = lanes(tile.channels - first);
        let bias = load(mask, &finish.bias[channel..]);
        let multiplier = {
            let from = &float.multipliers[channel..];
            assert!(from.len() >= mask.count_ones() as usize, "a multiplier per channel");
            // SAFETY: the slice holds every lane of the mask.
            unsafe { _mm512_maskz_loadu_ps(mask, from.as_ptr()) }
        };
        for pixel in 0..tile.pixels {
            // SAFETY: the mask keeps to the rectangle and to the target's channels.
            unsafe {
                let raw = _mm512_maskz_loadu_epi32(mask, tile.sums.add(pixel * tile.pitch + first));
                let product = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_add_epi32(raw, bias)), multiplier);
                let limited = _mm512_min_ps(_mm512_max_ps(product, low), high);
                let byte = _mm512_add_epi32(_mm512_cvtps_epi32(limited), zero_point);
                let to = start.add((tile.pixel + pixel) * finish.pitch + channel);
                _mm_mask_storeu_epi8(to.cast(), mask, _mm512_cvtepi32_epi8(byte));
            }
        }
    }
}

/// # Safety
/// As [`finish`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn finish_sums(finish: &Finish<'_>, tile: Tile, start: *mut i32) {
    for first in (0..tile.channels).step_by(16) {
        let channel = tile.channel + first;
        let mask = lanes(tile.channels - first);
        let bias = load(mask, &finish.bias[channel..]);
        for pixel in 0..tile.pixels {
            // SAFETY: the mask keeps to the rectangle and to the target's channels.
            unsafe {
                let raw = _mm512_maskz_loadu_epi32(mask, tile.sums.add(pixel * tile.pitch + first));
                let to = start.add((tile.pixel + pixel) * finish.pitch + channel);
                _mm512_mask_storeu_epi32(to, mask, _mm512_add_epi32(raw, bias));
            }
        }
    }
}

/// A mask of the first `count` of 16 lanes.
fn lanes(count: usize) -> __mmask16 {
    if count >= 16 { !0 } else { (1 << count) - 1 }
}

/// The lanes of the mask, which is a run from lane 0.
#[target_feature(enable = "avx512f")]
fn load(mask: __mmask16, from: &[i32]) -> __m512i {
    assert!(from.len() >= mask.count_ones() as usize, "a value per lane");
    // SAFETY: the slice holds every lane of the mask.
    unsafe { _mm512_maskz_loadu_epi32(mask, from.as_ptr()) }
}

/// Copies `bytes` bytes in whole lines of 64.
///
/// # Safety
/// AVX-512 F is available; `bytes`, rounded up to whole lines, may be read from `from` and written to `to`.
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn copy_lines(from: *const u8, to: *mut u8, bytes: usize) {
    for at in (0..bytes).step_by(64) {
        // SAFETY: the caller's promise.
        unsafe { _mm512_storeu_si512(to.add(at).cast(), _mm512_loadu_si512(from.add(at).cast())) };
    }
}
