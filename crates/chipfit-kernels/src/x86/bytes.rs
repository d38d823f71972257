//! Byte-by-byte loops: tables, additions, maxima, sums. Each does whole vectors and says how many bytes it did.

use std::arch::x86_64::*;

use crate::elementwise::{Add, Rounding};
use crate::pool::{Window, largest_from};

/// [`crate::lookup`], 64 bytes at a time: two permutations of 128 entries each, chosen by the index's top bit.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
pub(crate) fn lookup(table: &[u8; 256], input: &[u8], out: &mut [u8]) -> usize {
    let mut parts = [_mm512_setzero_si512(); 4];
    for (part, entries) in parts.iter_mut().zip(table.as_chunks::<64>().0) {
        // SAFETY: a chunk is 64 readable bytes.
        *part = unsafe { _mm512_loadu_si512(entries.as_ptr().cast()) };
    }
    let (input, out) = (input.as_chunks::<64>().0, out.as_chunks_mut::<64>().0);
    for (input, out) in input.iter().zip(out.iter_mut()) {
        // SAFETY: a chunk is 64 readable bytes.
        let index = unsafe { _mm512_loadu_si512(input.as_ptr().cast()) };
        let low = _mm512_permutex2var_epi8(parts[0], index, parts[1]);
        let high = _mm512_permutex2var_epi8(parts[2], index, parts[3]);
        let chosen = _mm512_mask_mov_epi8(low, _mm512_movepi8_mask(index), high);
        // SAFETY: a chunk is 64 writable bytes.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), chosen) };
    }
    input.len().min(out.len()) * 64
}

/// [`Add::run`], 16 bytes at a time.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(crate) fn add_avx512(add: &Add, a: &[u8], b: &[u8], out: &mut [u8]) -> usize {
    let (left, right) = (_mm512_set1_ps(add.left), _mm512_set1_ps(add.right));
    let fixed = _mm512_set1_ps(add.fixed);
    let (low, high) = (_mm512_set1_ps(add.low as f32), _mm512_set1_ps(add.high as f32));
    let fused = add.rounding == Rounding::Fused;
    let (a, b, out) = (a.as_chunks::<16>().0, b.as_chunks::<16>().0, out.as_chunks_mut::<16>().0);
    for ((a, b), out) in a.iter().zip(b).zip(out.iter_mut()) {
        // SAFETY: a chunk is 16 readable bytes.
        let (a, b) = unsafe { (_mm_loadu_si128(a.as_ptr().cast()), _mm_loadu_si128(b.as_ptr().cast())) };
        let a = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(a));
        let b = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(b));
        let sum = if fused {
            _mm512_fmadd_ps(b, right, _mm512_fmadd_ps(a, left, fixed))
        } else {
            _mm512_add_ps(_mm512_add_ps(fixed, _mm512_mul_ps(a, left)), _mm512_mul_ps(b, right))
        };
        let limited = _mm512_min_ps(_mm512_max_ps(sum, low), high);
        let bytes = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(limited));
        // SAFETY: a chunk is 16 writable bytes.
        unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), bytes) };
    }
    a.len() * 16
}

/// [`Add::run`], 8 bytes at a time.
#[target_feature(enable = "avx2,fma")]
pub(crate) fn add_avx2(add: &Add, a: &[u8], b: &[u8], out: &mut [u8]) -> usize {
    let (left, right) = (_mm256_set1_ps(add.left), _mm256_set1_ps(add.right));
    let fixed = _mm256_set1_ps(add.fixed);
    let (low, high) = (_mm256_set1_ps(add.low as f32), _mm256_set1_ps(add.high as f32));
    let fused = add.rounding == Rounding::Fused;
    let (a, b, out) = (a.as_chunks::<8>().0, b.as_chunks::<8>().0, out.as_chunks_mut::<8>().0);
    for ((a, b), out) in a.iter().zip(b).zip(out.iter_mut()) {
        // SAFETY: a chunk is 8 readable bytes.
        let (a, b) = unsafe { (_mm_loadl_epi64(a.as_ptr().cast()), _mm_loadl_epi64(b.as_ptr().cast())) };
        let a = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(a));
        let b = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(b));
        let sum = if fused {
            _mm256_fmadd_ps(b, right, _mm256_fmadd_ps(a, left, fixed))
        } else {
            _mm256_add_ps(_mm256_add_ps(fixed, _mm256_mul_ps(a, left)), _mm256_mul_ps(b, right))
        };
        let limited = _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(sum, low), high));
        let words = _mm_packs_epi32(_mm256_castsi256_si128(limited), _mm256_extracti128_si256::<1>(limited));
        // SAFETY: a chunk is 8 writable bytes.
        unsafe { _mm_storel_epi64(out.as_mut_ptr().cast(), _mm_packus_epi16(words, words)) };
    }
    a.len() * 8
}

/// The largest `input[tap + c]` of every window, 64 channels at a time, the last ones masked.
#[target_feature(enable = "avx512f,avx512bw")]
pub(crate) fn largest_avx512(input: &[u8], windows: &[Option<Window>], channels: usize, out: &mut [u8]) {
    for (window, out) in windows.iter().zip(out.chunks_exact_mut(channels)) {
        let Some(window) = window else {
            out.fill(0);
            continue;
        };
        window.assert_inside(input.len(), channels);
        for channel in (0..channels).step_by(64) {
            let rest = channels - channel;
            let mask: __mmask64 = if rest >= 64 { !0 } else { (1 << rest) - 1 };
            let mut max = _mm512_setzero_si512();
            for row in 0..window.counts[0] {
                let start = window.start + row * window.steps[0] + channel;
                for column in 0..window.counts[1] {
                    // SAFETY: the mask keeps to the tap's channels, which lie in the input.
                    let tap = unsafe {
                        _mm512_maskz_loadu_epi8(mask, input.as_ptr().add(start + column * window.steps[1]).cast())
                    };
                    max = _mm512_max_epu8(max, tap);
                }
            }
            // SAFETY: the mask keeps to the output.
            unsafe { _mm512_mask_storeu_epi8(out.as_mut_ptr().add(channel).cast(), mask, max) };
        }
    }
}

/// The largest `input[tap + c]` of every window, 32 channels at a time.
#[target_feature(enable = "avx2")]
pub(crate) fn largest_avx2(input: &[u8], windows: &[Option<Window>], channels: usize, out: &mut [u8]) {
    for (window, out) in windows.iter().zip(out.chunks_exact_mut(channels)) {
        let Some(window) = window else {
            out.fill(0);
            continue;
        };
        window.assert_inside(input.len(), channels);
        for (block, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let mut max = _mm256_setzero_si256();
            for row in 0..window.counts[0] {
                let start = window.start + row * window.steps[0] + block * 32;
                for column in 0..window.counts[1] {
                    // SAFETY: 32 of the tap's channels, which lie in the input.
                    let tap =
                        unsafe { _mm256_loadu_si256(input.as_ptr().add(start + column * window.steps[1]).cast()) };
                    max = _mm256_max_epu8(max, tap);
                }
            }
            // SAFETY: a chunk is 32 writable bytes.
            unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), max) };
        }
        if !channels.is_multiple_of(32) {
            largest_from(input, Some(window), channels / 32 * 32, out);
        }
    }
}

/// `out[i] += taken[i]`, wrapping.
#[target_feature(enable = "avx2")]
pub(crate) fn add_bytes(out: &mut [i32], taken: &[u8]) {
    let ((out, out_rest), (taken, taken_rest)) = (out.as_chunks_mut::<8>(), taken.as_chunks::<8>());
    for (out, taken) in out.iter_mut().zip(taken) {
        // SAFETY: chunks are 8 readable bytes and 8 readable and writable i32.
        unsafe {
            let taken = _mm256_cvtepu8_epi32(_mm_loadl_epi64(taken.as_ptr().cast()));
            let sum = _mm256_add_epi32(_mm256_loadu_si256(out.as_ptr().cast()), taken);
            _mm256_storeu_si256(out.as_mut_ptr().cast(), sum);
        }
    }
    out_rest.iter_mut().zip(taken_rest).for_each(|(out, &taken)| *out = out.wrapping_add(i32::from(taken)));
}
