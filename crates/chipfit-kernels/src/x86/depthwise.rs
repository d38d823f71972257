//! Depthwise loops.
//!
//! AVX-512 VNNI: the bytes of four taps are interleaved within 128-bit lanes, so that `vpdpbusd` multiplies and adds the
//! four products of a channel; weights are packed in the order this leaves.

use std::arch::x86_64::*;

use crate::depthwise::{DepthJob, DepthSet, LANES, Order, portable};
use crate::x86::{avx2, avx512};

/// The loop of AVX-512 VNNI.
pub(crate) const AVX512: DepthSet = DepthSet { order: Order::Fours, kernel: fours, finish: avx512::finish };
/// The loop of AVX2.
pub(crate) const AVX2: DepthSet = DepthSet { order: Order::Plain, kernel: plain, finish: avx2::finish };

/// # Safety
/// As [`crate::depthwise::DepthKernel`] asks.
#[target_feature(enable = "avx2")]
unsafe fn plain(job: &DepthJob<'_>) {
    // SAFETY: the same promises.
    unsafe { portable(job) };
}

/// # Safety
/// As [`crate::depthwise::DepthKernel`] asks.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn fours(job: &DepthJob<'_>) {
    // SAFETY: a block has 64 biases.
    let bias = unsafe { to_lanes([0, 16, 32, 48].map(|at| _mm512_loadu_si512(job.bias.add(at).cast()))) };
    for (index, &pixel) in job.pixels.iter().enumerate() {
        let mut sums = bias;
        let mut weights = job.weights;
        for taps in job.taps.as_chunks::<4>().0 {
            // SAFETY: 64 bytes of the pixel's tap.
            let x = taps.map(|tap| unsafe { _mm512_loadu_si512(job.source.add(pixel + tap).cast()) });
            let (low01, high01) = (_mm512_unpacklo_epi8(x[0], x[1]), _mm512_unpackhi_epi8(x[0], x[1]));
            let (low23, high23) = (_mm512_unpacklo_epi8(x[2], x[3]), _mm512_unpackhi_epi8(x[2], x[3]));
            let fours = [
                _mm512_unpacklo_epi16(low01, low23),
                _mm512_unpackhi_epi16(low01, low23),
                _mm512_unpacklo_epi16(high01, high23),
                _mm512_unpackhi_epi16(high01, high23),
            ];
            for (sum, four) in sums.iter_mut().zip(fours) {
                // SAFETY: four taps of 64 channels are four vectors of weights.
                unsafe {
                    *sum = _mm512_dpbusd_epi32(*sum, four, _mm512_loadu_si512(weights.cast()));
                    weights = weights.add(64);
                }
            }
        }
        for (vector, sum) in to_lanes(sums).into_iter().enumerate() {
            // SAFETY: 64 sums per pixel.
            unsafe { _mm512_storeu_si512(job.sums.add(index * LANES + vector * 16).cast(), sum) };
        }
    }
}

/// Transposes a matrix of four vectors by four 128-bit lanes: channel order to interleaved order, and back.
#[target_feature(enable = "avx512f")]
fn to_lanes(v: [__m512i; 4]) -> [__m512i; 4] {
    let low01 = _mm512_shuffle_i32x4::<0b01_00_01_00>(v[0], v[1]);
    let high01 = _mm512_shuffle_i32x4::<0b11_10_11_10>(v[0], v[1]);
    let low23 = _mm512_shuffle_i32x4::<0b01_00_01_00>(v[2], v[3]);
    let high23 = _mm512_shuffle_i32x4::<0b11_10_11_10>(v[2], v[3]);
    [
        _mm512_shuffle_i32x4::<0b10_00_10_00>(low01, low23),
        _mm512_shuffle_i32x4::<0b11_01_11_01>(low01, low23),
        _mm512_shuffle_i32x4::<0b10_00_10_00>(high01, high23),
        _mm512_shuffle_i32x4::<0b11_01_11_01>(high01, high23),
    ]
}
