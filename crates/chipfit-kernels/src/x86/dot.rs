//! Dot products of one activation slice and one weight slice.

use std::arch::x86_64::*;

use crate::patch::scalar_dot;

/// `sum (x - zero_point) * w`, as `sum x * w - zero_point * sum w`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(crate) fn avx512(zero_point: u8, x: &[u8], w: &[i8]) -> i32 {
    assert_eq!(x.len(), w.len(), "slices of one length");
    let ones = _mm512_set1_epi8(1);
    let mut products = _mm512_setzero_si512();
    let mut weights = _mm512_setzero_si512();
    for at in (0..x.len()).step_by(64) {
        let rest = x.len() - at;
        let mask: __mmask64 = if rest >= 64 { !0 } else { (1 << rest) - 1 };
        // SAFETY: the mask keeps to the slices, which are of one length.
        let (four, weight) = unsafe {
            (
                _mm512_maskz_loadu_epi8(mask, x.as_ptr().add(at).cast()),
                _mm512_maskz_loadu_epi8(mask, w.as_ptr().add(at)),
            )
        };
        products = _mm512_dpbusd_epi32(products, four, weight);
        weights = _mm512_dpbusd_epi32(weights, ones, weight);
    }
    let correction = _mm512_mullo_epi32(weights, _mm512_set1_epi32(i32::from(zero_point)));
    _mm512_reduce_add_epi32(_mm512_sub_epi32(products, correction))
}

/// `sum (x - zero_point) * w`, in pairs of 16 bits.
#[target_feature(enable = "avx2")]
pub(crate) fn avx2(zero_point: u8, x: &[u8], w: &[i8]) -> i32 {
    let ((x, x_rest), (w, w_rest)) = (x.as_chunks::<16>(), w.as_chunks::<16>());
    let center = _mm256_set1_epi16(i16::from(zero_point));
    let mut sums = _mm256_setzero_si256();
    for (x, w) in x.iter().zip(w) {
        // SAFETY: a chunk is 16 readable bytes and the loads need no alignment.
        let (x, w) = unsafe { (_mm_loadu_si128(x.as_ptr().cast()), _mm_loadu_si128(w.as_ptr().cast())) };
        let x = _mm256_sub_epi16(_mm256_cvtepu8_epi16(x), center);
        // A pair reaches at most 2 * 255 * 128, so its sum fits an i32.
        sums = _mm256_add_epi32(sums, _mm256_madd_epi16(x, _mm256_cvtepi8_epi16(w)));
    }
    let mut lanes = [0_i32; 8];
    // SAFETY: eight i32 are 32 bytes.
    unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), sums) };
    lanes.iter().fold(scalar_dot(zero_point, x_rest, w_rest), |sum, lane| sum.wrapping_add(*lane))
}
