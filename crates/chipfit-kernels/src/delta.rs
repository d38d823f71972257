//! Single accumulators and small changes of many: dot products over runs, sparse products with transposed weights, and
//! the bytes that follow.

use crate::error::{KernelError, check_length};
use crate::finish::{Finish, Target, Tile};
use crate::isa::Isa;
use crate::patch::centered_dot;
use crate::requantize::Rescale;

/// `out[c] = sum over (k, change) of change * rows[k * out.len() + c]`, wrapping: what changed activations add to the
/// accumulators of one pixel.
///
/// `rows` are weights transposed to `[product][output channel]`.
/// An instruction set that this machine lacks is replaced by the scalar loop.
///
/// # Errors
/// [`KernelError::Range`] if a `k` lies outside `rows`.
pub fn changed_sums(isa: Isa, changes: &[(u32, i16)], rows: &[i8], out: &mut [i32]) -> Result<(), KernelError> {
    let channels = out.len();
    let products = rows.len() / channels.max(1);
    let last = changes.iter().map(|&(k, _)| k as usize).max().unwrap_or(0);
    if !changes.is_empty() && last >= products {
        return Err(KernelError::Range { what: "products", start: last, end: last + 1, limit: products });
    }
    #[cfg(target_arch = "x86_64")]
    if isa.uses_avx512() {
        let is_small = channels.is_multiple_of(64) && changes.iter().all(|&(_, change)| (-128..128).contains(&change));
        // SAFETY: AVX-512 VNNI is available, and every k was checked against `rows`.
        unsafe {
            if is_small {
                crate::x86::delta::small_changed_sums(changes, rows, out);
            } else {
                crate::x86::delta::changed_sums(changes, rows, out);
            }
        }
        return Ok(());
    }
    let _ = isa;
    changed_sums_scalar(changes, rows, out);
    Ok(())
}

/// The twin of the vector loop.
fn changed_sums_scalar(changes: &[(u32, i16)], rows: &[i8], out: &mut [i32]) {
    let channels = out.len();
    out.fill(0);
    for &(k, change) in changes {
        let row = &rows[k as usize * channels..][..channels];
        for (sum, &weight) in out.iter_mut().zip(row) {
            *sum = sum.wrapping_add(i32::from(change) * i32::from(weight));
        }
    }
}

/// The bytes of one pixel's accumulators `sums[c] + changes[c]`, for all output channels of `rescale`.
///
/// An instruction set that this machine lacks is replaced by the scalar loop.
///
/// The constants of `rescale` are those that a convolution took, so they are not checked again.
///
/// # Errors
/// [`KernelError`] for slices of different lengths.
pub fn requantize_changed<'r>(
    isa: Isa,
    rescale: impl Into<Rescale<'r>>,
    sums: &[i32],
    changes: &[i32],
    out: &mut [u8],
) -> Result<(), KernelError> {
    let rescale = rescale.into();
    let channels = out.len();
    check_length("accumulators", sums.len(), channels)?;
    check_length("changes", changes.len(), channels)?;
    match rescale {
        Rescale::Float(float) => check_length("multipliers", float.multipliers.len(), channels)?,
        Rescale::Fixed(fixed) => {
            check_length("multipliers", fixed.multipliers.len(), channels)?;
            check_length("shifts", fixed.shifts.len(), channels)?;
        }
    }
    let finish = Finish { target: Target::bytes(out.as_mut_ptr(), rescale), pitch: channels, probe: None };
    let mut totals = [0_i32; 64];
    for channel in (0..channels).step_by(totals.len()) {
        let count = totals.len().min(channels - channel);
        let parts = sums[channel..][..count].iter().zip(&changes[channel..][..count]);
        for (total, (sum, change)) in totals.iter_mut().zip(parts) {
            *total = sum.wrapping_add(*change);
        }
        let tile = Tile { sums: totals.as_ptr(), pitch: count, pixel: 0, pixels: 1, channel, channels: count };
        #[cfg(target_arch = "x86_64")]
        if isa.uses_avx512() {
            // SAFETY: AVX-512 is available; one pixel of `count` channels, lengths checked above, `out` is borrowed by
            // this call.
            unsafe { crate::x86::avx512::finish(&finish, tile) };
            continue;
        }
        // SAFETY: one pixel of `count` channels, lengths checked above, `out` is borrowed by this call.
        unsafe { finish.scalar(tile) };
    }
    let _ = isa;
    Ok(())
}

/// A stretch of a dot product: where it starts in both slices, and its length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DotRun {
    /// First activation.
    pub x: usize,
    /// First weight.
    pub w: usize,
    /// How many of both.
    pub length: usize,
}

/// `sum over runs of sum (x_i - zero_point) * w_i`, wrapping.
///
/// An instruction set that this machine lacks is replaced by the scalar loop.
///
/// # Panics
/// If a run leaves a slice.
pub fn dot_runs(isa: Isa, zero_point: u8, x: &[u8], w: &[i8], runs: &[DotRun]) -> i32 {
    for run in runs {
        let inside = |start: usize, length: usize| start.checked_add(run.length).is_some_and(|end| end <= length);
        assert!(inside(run.x, x.len()) && inside(run.w, w.len()), "a run inside both slices");
    }
    #[cfg(target_arch = "x86_64")]
    if isa.uses_avx512() {
        // SAFETY: AVX-512 VNNI is available, and every run was checked against both slices.
        return unsafe {
            match zero_point {
                0 => crate::x86::delta::dot_runs::<false>(0, x, w, runs),
                _ => crate::x86::delta::dot_runs::<true>(zero_point, x, w, runs),
            }
        };
    }
    runs.iter().fold(0_i32, |sum, run| {
        sum.wrapping_add(centered_dot(isa, zero_point, &x[run.x..][..run.length], &w[run.w..][..run.length]))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::requantize::{Fixed, Requantize};

    proptest! {
        #[test]
        fn changed_sums_equal_the_scalar_loop(
            channels in prop_oneof![1usize..200, Just(64), Just(192)],
            most in prop_oneof![Just(1i16), Just(127), Just(255)],
            changes in prop::collection::vec((0u32..20, -255i16..=255), 0..40),
            seed: u64,
        ) {
            let changes: Vec<(u32, i16)> = changes.into_iter().map(|(k, change)| (k, change.clamp(-most, most))).collect();
            let mut state = seed;
            let rows: Vec<i8> = (0..20 * channels)
                .map(|_| { state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407); (state >> 56) as i8 })
                .collect();
            let mut wanted = vec![7; channels];
            changed_sums_scalar(&changes, &rows, &mut wanted);
            for isa in Isa::available() {
                let mut out = vec![-1; channels];
                changed_sums(isa, &changes, &rows, &mut out).unwrap();
                prop_assert_eq!(&out, &wanted);
            }
        }

        #[test]
        fn probed_sums_are_the_accumulators(
            side in 1usize..12, pictures in 1usize..4, channels in prop_oneof![1usize..150, Just(64), Just(128)],
            inputs in prop_oneof![Just(3usize), Just(16), Just(64)], stride in 1usize..3, seed: u64, share in 1usize..40,
        ) {
            let mut state = seed | 1;
            let mut next = || { state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407); state >> 33 };
            let geometry = crate::ConvGeometry {
                input: [side; 2], in_channels: inputs, out_channels: channels, groups: 1, kernel: [3; 2],
                stride: [stride; 2], dilation: [1; 2], pads: [1; 4],
            };
            let weights: Vec<i8> = (0..channels * geometry.products()).map(|_| next() as i8).collect();
            let bias: Vec<i32> = (0..channels).map(|_| next() as i32 % 1000).collect();
            let input: Vec<u8> = (0..pictures * side * side * inputs).map(|_| next() as u8).collect();
            let float = Requantize { multipliers: vec![0.0005; channels], zero_point: 3, low: 0, high: 255 };
            for isa in Isa::available() {
                let conv = crate::Conv::new(isa, geometry.clone(), &weights, &bias, 7).unwrap();
                let map = conv.output();
                let mut scratch = crate::Scratch::new();
                let mut wanted = vec![0; pictures * map[0] * map[1] * channels];
                conv.accumulate(&input, 0..map[0], &mut wanted, &mut scratch).unwrap();
                let picked: Vec<usize> = (0..wanted.len()).filter(|_| (next() as usize).is_multiple_of(share)).collect();
                let place = |&at: &usize| crate::Place { pixel: (at / channels) as u32, channel: (at % channels) as u32 };
                let places: Vec<crate::Place> = picked.iter().map(place).collect();
                let (mut out, mut sums) = (vec![0; wanted.len()], vec![i32::MIN; places.len()]);
                conv.run_probed(&input, &float, &mut out, &places, &mut sums, &mut scratch).unwrap();
                for (at, sum) in picked.iter().zip(sums) {
                    prop_assert_eq!(sum, wanted[*at], "{:?}", isa);
                }
                let mut plain = vec![0; wanted.len()];
                conv.run(&input, 0..map[0], &float, &mut plain, &mut scratch).unwrap();
                prop_assert_eq!(&out, &plain);
            }
        }

        #[test]
        fn runs_equal_the_scalar_dot(
            x in prop::collection::vec(any::<u8>(), 2000),
            w in prop::collection::vec(any::<i8>(), 2000),
            runs in prop::collection::vec((0usize..1000, 0usize..1000, 0usize..1000), 0..5),
            zero_point: u8,
        ) {
            let runs: Vec<DotRun> = runs.into_iter().map(|(x, w, length)| DotRun { x, w, length }).collect();
            for zero_point in [zero_point, 0] {
                let wanted: i32 = runs
                    .iter()
                    .map(|run| centered_dot(Isa::Scalar, zero_point, &x[run.x..][..run.length], &w[run.w..][..run.length]))
                    .sum();
                for isa in Isa::available() {
                    prop_assert_eq!(dot_runs(isa, zero_point, &x, &w, &runs), wanted);
                }
            }
        }

        #[test]
        fn changed_bytes_equal_the_formula(sums in prop::collection::vec((-100_000i32..100_000, any::<i32>()), 1..80), zero in 0i32..256) {
            let channels = sums.len();
            let float = Requantize {
                multipliers: (0..channels).map(|c| 0.001 + c as f32 * 0.0001).collect(), zero_point: zero, low: 3, high: 250,
            };
            let fixed = Fixed {
                multipliers: vec![1 << 30; channels], shifts: vec![-7; channels], zero_point: zero, low: 0, high: 255,
            };
            let (base, changes): (Vec<i32>, Vec<i32>) = sums.into_iter().unzip();
            for isa in Isa::available() {
                let mut out = vec![0; channels];
                requantize_changed(isa, &float, &base, &changes, &mut out).unwrap();
                for c in 0..channels {
                    prop_assert_eq!(out[c], float.apply(c, base[c].wrapping_add(changes[c])));
                }
                requantize_changed(isa, &fixed, &base, &changes, &mut out).unwrap();
                for c in 0..channels {
                    prop_assert_eq!(out[c], fixed.apply(c, base[c].wrapping_add(changes[c])));
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let range = KernelError::Range { what: "products", start: 2, end: 3, limit: 2 };
        assert_eq!(changed_sums(Isa::Scalar, &[(2, 1)], &[0; 8], &mut [0; 4]), Err(range));
        let float = Requantize { multipliers: vec![1.0; 4], zero_point: 0, low: 0, high: 255 };
        assert!(requantize_changed(Isa::Scalar, &float, &[0; 3], &[0; 4], &mut [0; 4]).is_err());
    }
}
