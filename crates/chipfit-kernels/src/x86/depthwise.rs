//! Depthwise loops.
//!
//! AVX-512 VNNI: the bytes of four rows are interleaved within 128-bit lanes, so that `vpdpbusd` multiplies and adds the
//! four products of a channel; weights are packed in the order this leaves.

use std::arch::x86_64::*;

use crate::depthwise::{DepthJob, DepthSet, LANES, Taps, portable};
use crate::x86::{avx2, avx512};

/// The loops of AVX-512 VNNI.
pub(crate) const AVX512: DepthSet = DepthSet { taps: Taps::Columns(interleave, columns), finish: avx512::finish };
/// The loop of AVX2.
pub(crate) const AVX2: DepthSet = DepthSet { taps: Taps::Plain(plain), finish: avx2::finish };

/// # Safety
/// As [`crate::depthwise::DepthKernel`] asks.
#[target_feature(enable = "avx2")]
unsafe fn plain(job: &DepthJob<'_>) {
    // SAFETY: the same promises.
    unsafe { portable(job) };
}

/// # Safety
/// As [`crate::depthwise::Interleave`] asks.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn interleave(rows: [*const u8; 4], pitch: usize, columns: usize, to: *mut u8) {
    for column in 0..columns {
        // SAFETY: 64 bytes of every row's column, 256 of the interleaved one.
        unsafe {
            let x = rows.map(|row| _mm512_loadu_si512(row.add(column * pitch).cast()));
            let (low01, high01) = (_mm512_unpacklo_epi8(x[0], x[1]), _mm512_unpackhi_epi8(x[0], x[1]));
            let (low23, high23) = (_mm512_unpacklo_epi8(x[2], x[3]), _mm512_unpackhi_epi8(x[2], x[3]));
            let to = to.add(column * 4 * LANES);
            _mm512_storeu_si512(to.cast(), _mm512_unpacklo_epi16(low01, low23));
            _mm512_storeu_si512(to.add(64).cast(), _mm512_unpackhi_epi16(low01, low23));
            _mm512_storeu_si512(to.add(128).cast(), _mm512_unpacklo_epi16(high01, high23));
            _mm512_storeu_si512(to.add(192).cast(), _mm512_unpackhi_epi16(high01, high23));
        }
    }
}

/// # Safety
/// As [`crate::depthwise::DepthKernel`] asks.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn columns(job: &DepthJob<'_>) {
    // SAFETY: the same promises, for whole pairs of pixels and the one that is left.
    unsafe {
        for pixel in (0..job.pixels / 2 * 2).step_by(2) {
            pixels::<2>(job, pixel);
        }
        if job.pixels % 2 == 1 {
            pixels::<1>(job, job.pixels - 1);
        }
    }
}

/// `P` pixels from `first` on.
///
/// # Safety
/// As [`crate::depthwise::DepthKernel`] asks; the pixels are of the job.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn pixels<const P: usize>(job: &DepthJob<'_>, first: usize) {
    // SAFETY: a block has 64 biases; a tap has 256 bytes of interleaved column and of weights; 64 sums per pixel.
    unsafe {
        let bias = to_lanes([0, 16, 32, 48].map(|at| _mm512_loadu_si512(job.bias.add(at).cast())));
        let mut sums = [bias; P];
        let mut weights = job.weights;
        for tap in job.taps {
            for vector in 0..4 {
                let weight = _mm512_loadu_si512(weights.cast());
                for (index, sums) in sums.iter_mut().enumerate() {
                    let column = job.source.add((first + index) * job.pitch + tap + vector * 64);
                    sums[vector] = _mm512_dpbusd_epi32(sums[vector], _mm512_loadu_si512(column.cast()), weight);
                }
                weights = weights.add(64);
            }
        }
        for (index, sums) in sums.into_iter().enumerate() {
            for (vector, sum) in to_lanes(sums).into_iter().enumerate() {
                _mm512_storeu_si512(job.sums.add((first + index) * LANES + vector * 16).cast(), sum);
            }
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
