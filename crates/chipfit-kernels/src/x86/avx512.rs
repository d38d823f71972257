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
    let mut bias = [_mm512_setzero_si512(); Q];
    for (index, bias) in bias.iter_mut().enumerate() {
        // SAFETY: a block has 16 biases.
        *bias = unsafe { _mm512_loadu_si512(job.bias.add(index * 16).cast()) };
    }
    let mut sums = [bias; P];
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
        if let Some(probe) = finish.probe {
            probe.collect(tile);
        }
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
    let mut first = 0;
    while first + 32 <= tile.channels {
        let channel = tile.channel + first;
        let scale = Scale32::new(float, channel);
        for pixel in (0..tile.pixels).step_by(2) {
            // The last of an odd number of pixels is done twice.
            let rows = [pixel, (pixel + 1).min(tile.pixels - 1)];
            // SAFETY: both rows have 32 sums of the rectangle, both pixels 32 of the target's channels.
            unsafe {
                scale.store(
                    rows.map(|row| tile.sums.add(row * tile.pitch + first)),
                    rows.map(|row| start.add((tile.pixel + row) * finish.pitch + channel)),
                );
            }
        }
        first += 32;
    }
    let low = _mm512_set1_ps((float.low - float.zero_point) as f32);
    let high = _mm512_set1_ps((float.high - float.zero_point) as f32);
    let zero_point = _mm512_set1_epi32(float.zero_point);
    for first in (first..tile.channels).step_by(16) {
        let channel = tile.channel + first;
        let mask = lanes(tile.channels - first);
        let multiplier = load(mask, &float.multipliers[channel..]);
        for pixel in 0..tile.pixels {
            // SAFETY: the mask keeps to the rectangle and to the target's channels.
            unsafe {
                let sums = _mm512_maskz_loadu_epi32(mask, tile.sums.add(pixel * tile.pitch + first));
                let product = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), multiplier);
                let limited = _mm512_min_ps(_mm512_max_ps(product, low), high);
                let byte = _mm512_add_epi32(_mm512_cvtps_epi32(limited), zero_point);
                let to = start.add((tile.pixel + pixel) * finish.pitch + channel);
                _mm_mask_storeu_epi8(to.cast(), mask, _mm512_cvtepi32_epi8(byte));
            }
        }
    }
}

/// The constants of 32 channels.
#[derive(Clone, Copy)]
pub(crate) struct Scale32 {
    multipliers: [__m512; 2],
    low: __m512,
    high: __m512,
    zero_point: __m512i,
    /// Undoes the order that packing within 128-bit lanes leaves.
    order: __m512i,
}

impl Scale32 {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub(crate) fn new(float: &Requantize, channel: usize) -> Self {
        Self {
            multipliers: [load(!0, &float.multipliers[channel..]), load(!0, &float.multipliers[channel + 16..])],
            low: _mm512_set1_ps((float.low - float.zero_point) as f32),
            high: _mm512_set1_ps((float.high - float.zero_point) as f32),
            zero_point: _mm512_set1_epi16(float.zero_point as i16),
            order: _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15),
        }
    }

    /// Requantizes 32 sums of two pixels.
    ///
    /// # Safety
    /// 32 sums can be read from, 32 bytes written to each of the two addresses.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub(crate) unsafe fn store(&self, sums: [*const i32; 2], to: [*mut u8; 2]) {
        let mut words = [_mm512_setzero_si512(); 2];
        for (words, sums) in words.iter_mut().zip(sums) {
            let mut rounded = [_mm512_setzero_si512(); 2];
            for (index, rounded) in rounded.iter_mut().enumerate() {
                // SAFETY: half of the 32 sums.
                let sums = unsafe { _mm512_loadu_si512(sums.add(16 * index).cast()) };
                let product = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), self.multipliers[index]);
                *rounded = _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(product, self.low), self.high));
            }
            *words = _mm512_packs_epi32(rounded[0], rounded[1]);
        }
        let words = words.map(|words| _mm512_add_epi16(words, self.zero_point));
        let bytes = _mm512_permutexvar_epi32(self.order, _mm512_packus_epi16(words[0], words[1]));
        // SAFETY: 32 bytes each.
        unsafe {
            _mm256_storeu_si256(to[0].cast(), _mm512_castsi512_si256(bytes));
            _mm256_storeu_si256(to[1].cast(), _mm512_extracti64x4_epi64::<1>(bytes));
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
        for pixel in 0..tile.pixels {
            // SAFETY: the mask keeps to the rectangle and to the target's channels.
            unsafe {
                let sums = _mm512_maskz_loadu_epi32(mask, tile.sums.add(pixel * tile.pitch + first));
                let to = start.add((tile.pixel + pixel) * finish.pitch + channel);
                _mm512_mask_storeu_epi32(to, mask, sums);
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
fn load(mask: __mmask16, from: &[f32]) -> __m512 {
    assert!(from.len() >= mask.count_ones() as usize, "a multiplier per channel");
    // SAFETY: the slice holds every lane of the mask.
    unsafe { _mm512_maskz_loadu_ps(mask, from.as_ptr()) }
}

/// Copies the `runs` (offset and bytes) of every pixel, one after another, into that pixel's row, `pitch` apart.
///
/// # Safety
/// AVX-512 F is available; runs, rounded up to whole lines, may be read from the source and written to the rows.
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn gather(source: *const u8, pixels: &[usize], runs: &[(usize, usize)], rows: *mut u8, pitch: usize) {
    for (index, &pixel) in pixels.iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe {
            let mut to = rows.add(index * pitch);
            for &(run, bytes) in runs {
                copy_lines(source.add(pixel + run), to, bytes);
                to = to.add(bytes);
            }
        }
    }
}

/// Pixels at one pitch that are copied to another.
pub(crate) struct Spread {
    pub(crate) from: *const u8,
    pub(crate) from_pitch: usize,
    pub(crate) to: *mut u8,
    pub(crate) to_pitch: usize,
    pub(crate) pixels: usize,
}

impl Spread {
    /// 16 bytes of every pixel.
    ///
    /// # Safety
    /// They may be read and written.
    pub(crate) unsafe fn copy_16(&self) {
        for pixel in 0..self.pixels {
            // SAFETY: the caller's promise.
            unsafe {
                let bytes = self.from.add(pixel * self.from_pitch).cast::<[u8; 16]>().read();
                self.to.add(pixel * self.to_pitch).cast::<[u8; 16]>().write(bytes);
            }
        }
    }

    /// 32 bytes of every pixel.
    ///
    /// # Safety
    /// They may be read and written; AVX2 is available.
    #[target_feature(enable = "avx2")]
    pub(crate) unsafe fn copy_32(&self) {
        for pixel in 0..self.pixels {
            // SAFETY: the caller's promise.
            unsafe {
                let bytes = _mm256_loadu_si256(self.from.add(pixel * self.from_pitch).cast());
                _mm256_storeu_si256(self.to.add(pixel * self.to_pitch).cast(), bytes);
            }
        }
    }

    /// The `runs` (offset and bytes) of every pixel, one after another, in whole lines.
    ///
    /// # Safety
    /// Runs, rounded up to whole lines, may be read and written; AVX-512 F is available.
    #[target_feature(enable = "avx512f")]
    pub(crate) unsafe fn copy_runs(&self, runs: &[(usize, usize)]) {
        for pixel in 0..self.pixels {
            // SAFETY: the caller's promise.
            unsafe {
                let from = self.from.add(pixel * self.from_pitch);
                let mut to = self.to.add(pixel * self.to_pitch);
                for &(run, bytes) in runs {
                    copy_lines(from.add(run), to, bytes);
                    to = to.add(bytes);
                }
            }
        }
    }
}

/// Copies `bytes` bytes, rounded up to whole lines, at least one.
///
/// # Safety
/// They may be read and written; AVX-512 F is available.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn copy_lines(from: *const u8, to: *mut u8, bytes: usize) {
    let mut at = 0;
    loop {
        // SAFETY: the caller's promise.
        unsafe { _mm512_storeu_si512(to.add(at).cast(), _mm512_loadu_si512(from.add(at).cast())) };
        at += 64;
        if at >= bytes {
            break;
        }
    }
}
