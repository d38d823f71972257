//! Dot products over runs, and sparse products with transposed weights.

use std::arch::x86_64::*;

use crate::delta::DotRun;

/// As [`crate::delta::dot_runs`]; without `CENTERED` the zero point is 0.
///
/// # Safety
/// AVX-512 F, BW, VL and VNNI are available; every run lies in both slices.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(crate) unsafe fn dot_runs<const CENTERED: bool>(zero_point: u8, x: &[u8], w: &[i8], runs: &[DotRun]) -> i32 {
    let ones = _mm512_set1_epi8(1);
    let mut products = [_mm512_setzero_si512(); 4];
    let mut weights = [_mm512_setzero_si512(); 4];
    for run in runs {
        // SAFETY: the run lies in both slices.
        let (x, w) = unsafe { (x.as_ptr().add(run.x), w.as_ptr().add(run.w)) };
        let mut at = 0;
        while run.length - at >= 256 {
            for lane in 0..4 {
                // SAFETY: 256 bytes are left in the run.
                let (four, weight) = unsafe {
                    (_mm512_loadu_si512(x.add(at + 64 * lane).cast()), _mm512_loadu_si512(w.add(at + 64 * lane).cast()))
                };
                products[lane] = _mm512_dpbusd_epi32(products[lane], four, weight);
                if CENTERED {
                    weights[lane] = _mm512_dpbusd_epi32(weights[lane], ones, weight);
                }
            }
            at += 256;
        }
        for lane in 0..4 {
            let rest = run.length - at;
            if rest == 0 {
                break;
            }
            let mask: __mmask64 = if rest >= 64 { !0 } else { (1 << rest) - 1 };
            // SAFETY: the mask keeps to the run.
            let (four, weight) =
                unsafe { (_mm512_maskz_loadu_epi8(mask, x.add(at).cast()), _mm512_maskz_loadu_epi8(mask, w.add(at))) };
            products[lane] = _mm512_dpbusd_epi32(products[lane], four, weight);
            if CENTERED {
                weights[lane] = _mm512_dpbusd_epi32(weights[lane], ones, weight);
            }
            at += rest.min(64);
        }
    }
    let sum = |[a, b, c, d]: [__m512i; 4]| _mm512_add_epi32(_mm512_add_epi32(a, b), _mm512_add_epi32(c, d));
    let products = sum(products);
    if !CENTERED {
        return _mm512_reduce_add_epi32(products);
    }
    let correction = _mm512_mullo_epi32(sum(weights), _mm512_set1_epi32(i32::from(zero_point)));
    _mm512_reduce_add_epi32(_mm512_sub_epi32(products, correction))
}

/// As [`crate::delta::changed_sums`] where every change fits an i8 and `out` has a multiple of 64 channels.
///
/// Four rows are interleaved, so that each 32-bit lane holds four products of one channel. The product instruction takes
/// an unsigned and a signed byte: weights go in plus 128, and 128 times the sum of the changes is taken off again.
///
/// # Safety
/// AVX-512 F, BW, VL and VNNI are available; every k is below `rows.len() / out.len()`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(crate) unsafe fn small_changed_sums(changes: &[(u32, i16)], rows: &[i8], out: &mut [i32]) {
    let channels = out.len();
    let total = changes.iter().map(|&(_, change)| i32::from(change)).sum::<i32>();
    let correction = _mm512_set1_epi32(128 * total);
    let flip = _mm512_set1_epi8(-128);
    let last = changes.last().map_or(0, |&(k, _)| k);
    for first in (0..channels).step_by(64) {
        let mut sums = [_mm512_setzero_si512(); 4];
        let row = |k: u32| {
            // SAFETY: k's row lies in `rows` and has 64 channels from `first` on.
            let bytes = unsafe { _mm512_loadu_si512(rows.as_ptr().add(k as usize * channels + first).cast()) };
            _mm512_xor_si512(bytes, flip)
        };
        for four in changes.chunks(4) {
            // Missing taps are changes of 0.
            let tap = |at: usize| four.get(at).copied().unwrap_or((last, 0));
            let taps = [tap(0), tap(1), tap(2), tap(3)];
            let [a, b, c, d] = taps.map(|(k, _)| row(k));
            let factors = _mm512_set1_epi32(i32::from_le_bytes(taps.map(|(_, change)| change as u8)));
            let (low, high) = (_mm512_unpacklo_epi8(a, b), _mm512_unpackhi_epi8(a, b));
            let (low2, high2) = (_mm512_unpacklo_epi8(c, d), _mm512_unpackhi_epi8(c, d));
            sums[0] = _mm512_dpbusd_epi32(sums[0], _mm512_unpacklo_epi16(low, low2), factors);
            sums[1] = _mm512_dpbusd_epi32(sums[1], _mm512_unpackhi_epi16(low, low2), factors);
            sums[2] = _mm512_dpbusd_epi32(sums[2], _mm512_unpacklo_epi16(high, high2), factors);
            sums[3] = _mm512_dpbusd_epi32(sums[3], _mm512_unpackhi_epi16(high, high2), factors);
        }
        for (at, sum) in sums.into_iter().enumerate() {
            let sum = _mm512_sub_epi32(sum, correction);
            // Each 128-bit part holds four channels of its sixteen.
            let parts = [
                _mm512_extracti32x4_epi32::<0>(sum),
                _mm512_extracti32x4_epi32::<1>(sum),
                _mm512_extracti32x4_epi32::<2>(sum),
                _mm512_extracti32x4_epi32::<3>(sum),
            ];
            for (part, four) in parts.into_iter().enumerate() {
                // SAFETY: `out` has 64 channels from `first` on.
                unsafe { _mm_storeu_si128(out.as_mut_ptr().add(first + 16 * part + 4 * at).cast(), four) };
            }
        }
    }
}

/// As [`crate::delta::changed_sums`].
///
/// # Safety
/// AVX-512 F, BW, VL and VNNI are available; every k is below `rows.len() / out.len()`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(crate) unsafe fn changed_sums(changes: &[(u32, i16)], rows: &[i8], out: &mut [i32]) {
    let channels = out.len();
    let mut first = 0;
    while channels - first >= 64 {
        let mut sums = [_mm512_setzero_si512(); 4];
        for &(k, change) in changes {
            // One 16-bit factor per 32-bit lane: the other half of each pair is multiplied by zero.
            let factor = _mm512_set1_epi32(i32::from(change.cast_unsigned()));
            // SAFETY: k's row lies in `rows` and has 64 channels from `first` on.
            let row = unsafe { rows.as_ptr().add(k as usize * channels + first) };
            for (at, sum) in sums.iter_mut().enumerate() {
                // SAFETY: as above.
                let weights = _mm512_cvtepi8_epi32(unsafe { _mm_loadu_si128(row.add(at * 16).cast()) });
                *sum = _mm512_dpwssd_epi32(*sum, weights, factor);
            }
        }
        for (at, sum) in sums.into_iter().enumerate() {
            // SAFETY: `out` has 64 channels from `first` on.
            unsafe { _mm512_storeu_si512(out.as_mut_ptr().add(first + at * 16).cast(), sum) };
        }
        first += 64;
    }
    while first < channels {
        let count = (channels - first).min(16);
        let mask: __mmask16 = if count == 16 { !0 } else { (1 << count) - 1 };
        let mut sum = _mm512_setzero_si512();
        for &(k, change) in changes {
            let factor = _mm512_set1_epi32(i32::from(change.cast_unsigned()));
            // SAFETY: the mask keeps to k's row.
            let bytes = unsafe { _mm_maskz_loadu_epi8(mask, rows.as_ptr().add(k as usize * channels + first)) };
            sum = _mm512_dpwssd_epi32(sum, _mm512_cvtepi8_epi32(bytes), factor);
        }
        // SAFETY: the mask keeps to `out`.
        unsafe { _mm512_mask_storeu_epi32(out.as_mut_ptr().add(first), mask, sum) };
        first += count;
    }
}
