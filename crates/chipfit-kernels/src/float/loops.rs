//! Inner loops: tiles of chains kept in registers, generic over the vector.
//!
//! - [`Block`]: `P` pixels x `Q` vectors of channels; a step loads `Q` vectors of weights and spreads `P` numbers.
//! - [`Sweep`]: `P` rows x `Q` vectors of a gradient, summed over pixels; a step loads `Q` vectors and spreads `P` numbers.
//! - [`Depth`]: `P` pixels, each channel with weights of its own.
//! - [`DepthSweep`]: `P` taps of one vector of channels, summed over pixels.
//!
//! Each lane of each register is one chain; what a chain starts from is loaded, where it ends is stored, so a chain may
//! be cut anywhere.

#![allow(clippy::needless_range_loop, reason = "p and q number registers; several arrays go by each")]

use super::scratch::{LINE, Pixel};
use super::vector::Vector;

/// Elements that lie in one piece: `length` from `offset` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) offset: usize,
    pub(super) length: usize,
}

/// What a chain starts from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Start {
    Zero,
    /// A number per channel, as many as the block has lanes.
    Bias(*const f32),
    /// What the target holds.
    Held,
}

/// Products of pixels with a panel of weights.
pub(super) struct Block<'a> {
    pub(super) source: *const f32,
    pub(super) target: *mut f32,
    /// `P` of them.
    pub(super) pixels: &'a [Pixel],
    /// Elements from a pixel's source on, in the order of the chain.
    pub(super) runs: &'a [Run],
    /// `Q` vectors for each element of the runs.
    pub(super) weights: *const f32,
    pub(super) start: Start,
    /// Channels to write: more than `Q - 1` vectors, at most `Q`.
    pub(super) channels: usize,
}

/// Sums over pixels of products of rows with vectors.
pub(super) struct Sweep {
    /// The first pixel's `Q` vectors; all lanes can be read.
    pub(super) vectors: *const f32,
    /// The first pixel's `P` numbers.
    pub(super) scalars: *const f32,
    /// Pixels: pictures, rows, columns.
    pub(super) counts: [usize; 3],
    /// From one picture, row, column to the next.
    pub(super) vector_pitches: [usize; 3],
    pub(super) scalar_pitches: [usize; 3],
    /// `P` rows of sums.
    pub(super) target: *mut f32,
    pub(super) target_pitch: usize,
    /// Lanes to keep: more than `Q - 1` vectors, at most `Q`.
    pub(super) lanes: usize,
}

/// Products of pixels with taps of their own channels.
pub(super) struct Depth<'a> {
    pub(super) source: *const f32,
    pub(super) target: *mut f32,
    /// `P` of them.
    pub(super) pixels: &'a [Pixel],
    /// Offset of every tap from a pixel's source.
    pub(super) taps: &'a [usize],
    /// A weight per channel for every tap, `weight_pitch` apart, filled up to whole vectors.
    pub(super) weights: *const f32,
    pub(super) weight_pitch: usize,
    /// `Zero`, or `Bias` filled up to whole vectors.
    pub(super) start: Start,
    /// Channels to read and write.
    pub(super) channels: usize,
}

/// Sums over pixels of products of taps with their own channels.
pub(super) struct DepthSweep<'a> {
    pub(super) source: *const f32,
    pub(super) gradient: *const f32,
    /// Pixels: pictures, rows, columns.
    pub(super) counts: [usize; 3],
    pub(super) source_pitches: [usize; 3],
    pub(super) gradient_pitches: [usize; 3],
    /// `P` of them: offsets from a pixel's source.
    pub(super) taps: &'a [usize],
    /// A vector of sums per tap, `target_pitch` apart.
    pub(super) target: *mut f32,
    pub(super) target_pitch: usize,
    /// Channels to read, at most a vector; a target has room for a vector.
    pub(super) channels: usize,
}

/// The inner loops of one instruction set.
#[derive(Clone, Copy)]
pub(super) struct Loops {
    /// Numbers in a vector.
    pub(super) lanes: usize,
    /// Most pixels or rows of a tile with 1, 2, ... vectors.
    pub(super) tiles: &'static [usize],
    /// For so many pixels and vectors.
    pub(super) block: fn(usize, usize) -> unsafe fn(&Block<'_>),
    /// For so many rows and vectors.
    pub(super) sweep: fn(usize, usize) -> unsafe fn(&Sweep),
    /// For so many pixels, at most [`DEPTH`].
    pub(super) depth: fn(usize) -> unsafe fn(&Depth<'_>),
    /// For so many taps, at most [`TAPS`].
    pub(super) depth_sweep: fn(usize) -> unsafe fn(&DepthSweep<'_>),
}

impl std::fmt::Debug for Loops {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Loops({} lanes)", self.lanes)
    }
}

/// Most pixels of a tile of [`Depth`].
pub(super) const DEPTH: usize = 8;
/// Most taps of a tile of [`DepthSweep`].
pub(super) const TAPS: usize = 9;

/// # Safety
/// The vector's instruction set is available; every pointer is valid for what the job's fields say, pixels are `P`.
#[inline(always)]
unsafe fn block<V: Vector, const P: usize, const Q: usize>(job: &Block<'_>) {
    // SAFETY: the caller's promises.
    unsafe {
        let last = V::mask(job.channels - (Q - 1) * V::LANES);
        let mut sums = [[V::zero(); Q]; P];
        let mut pixels = [job.source; P];
        let mut targets = [job.target; P];
        for p in 0..P {
            let pixel = job.pixels.get_unchecked(p);
            pixels[p] = job.source.add(pixel.source);
            targets[p] = job.target.add(pixel.target);
        }
        match job.start {
            Start::Zero => {}
            Start::Bias(bias) => {
                for q in 0..Q {
                    let bias = V::load(bias.add(q * V::LANES));
                    for sums in &mut sums {
                        sums[q] = bias;
                    }
                }
            }
            Start::Held => {
                for p in 0..P {
                    for q in 0..Q - 1 {
                        sums[p][q] = V::load(targets[p].add(q * V::LANES));
                    }
                    sums[p][Q - 1] = V::load_some(last, targets[p].add((Q - 1) * V::LANES));
                }
            }
        }
        let mut weights = job.weights;
        for run in job.runs {
            for at in run.offset..run.offset + run.length {
                let mut panel = [V::zero(); Q];
                for q in 0..Q {
                    panel[q] = V::load(weights.add(q * V::LANES));
                }
                weights = weights.add(Q * V::LANES);
                for p in 0..P {
                    let number = V::splat(pixels[p].add(at));
                    for q in 0..Q {
                        sums[p][q] = number.fma(panel[q], sums[p][q]);
                    }
                }
            }
        }
        for p in 0..P {
            for q in 0..Q - 1 {
                sums[p][q].store(targets[p].add(q * V::LANES));
            }
            sums[p][Q - 1].store_some(last, targets[p].add((Q - 1) * V::LANES));
        }
    }
}

/// # Safety
/// The vector's instruction set is available; every pointer is valid for what the job's fields say.
#[inline(always)]
unsafe fn sweep<V: Vector, const P: usize, const Q: usize>(job: &Sweep) {
    // SAFETY: the caller's promises.
    unsafe {
        let last = V::mask(job.lanes - (Q - 1) * V::LANES);
        let mut sums = [[V::zero(); Q]; P];
        for p in 0..P {
            let from = job.target.add(p * job.target_pitch);
            for q in 0..Q - 1 {
                sums[p][q] = V::load(from.add(q * V::LANES));
            }
            sums[p][Q - 1] = V::load_some(last, from.add((Q - 1) * V::LANES));
        }
        let [pictures, rows, columns] = job.counts;
        let [_, _, vector_pitch] = job.vector_pitches;
        let [_, _, scalar_pitch] = job.scalar_pitches;
        for picture in 0..pictures {
            for row in 0..rows {
                let mut vectors = job.vectors.add(picture * job.vector_pitches[0] + row * job.vector_pitches[1]);
                let mut scalars = job.scalars.add(picture * job.scalar_pitches[0] + row * job.scalar_pitches[1]);
                for _ in 0..columns {
                    let mut loaded = [V::zero(); Q];
                    for q in 0..Q {
                        loaded[q] = V::load(vectors.add(q * V::LANES));
                    }
                    for p in 0..P {
                        let number = V::splat(scalars.add(p));
                        for q in 0..Q {
                            sums[p][q] = number.fma(loaded[q], sums[p][q]);
                        }
                    }
                    // No reads beyond the last pixel: the pointers may leave their tensors.
                    vectors = vectors.wrapping_add(vector_pitch);
                    scalars = scalars.wrapping_add(scalar_pitch);
                }
            }
        }
        for p in 0..P {
            let to = job.target.add(p * job.target_pitch);
            for q in 0..Q - 1 {
                sums[p][q].store(to.add(q * V::LANES));
            }
            sums[p][Q - 1].store_some(last, to.add((Q - 1) * V::LANES));
        }
    }
}

/// # Safety
/// The vector's instruction set is available; every pointer is valid for what the job's fields say, pixels are `P`.
#[inline(always)]
unsafe fn depth<V: Vector, const P: usize>(job: &Depth<'_>) {
    // SAFETY: the caller's promises.
    unsafe {
        let mut pixels = [job.source; P];
        for p in 0..P {
            let pixel = job.pixels.get_unchecked(p);
            pixels[p] = job.source.add(pixel.source);
            for line in (0..job.channels).step_by(LINE) {
                V::prefetch(job.target.add(pixel.target + line));
            }
        }
        for channel in (0..job.channels).step_by(V::LANES) {
            let mut sums = [V::zero(); P];
            if let Start::Bias(bias) = job.start {
                sums = [V::load(bias.add(channel)); P];
            }
            let mut weights = job.weights.add(channel);
            if channel + V::LANES <= job.channels {
                for &tap in job.taps {
                    let weight = V::load(weights);
                    weights = weights.wrapping_add(job.weight_pitch);
                    for p in 0..P {
                        sums[p] = V::load(pixels[p].add(tap + channel)).fma(weight, sums[p]);
                    }
                }
                for p in 0..P {
                    sums[p].store(job.target.add(job.pixels.get_unchecked(p).target + channel));
                }
            } else {
                let mask = V::mask(job.channels - channel);
                for &tap in job.taps {
                    let weight = V::load(weights);
                    weights = weights.wrapping_add(job.weight_pitch);
                    for p in 0..P {
                        sums[p] = V::load_some(mask, pixels[p].add(tap + channel)).fma(weight, sums[p]);
                    }
                }
                for p in 0..P {
                    sums[p].store_some(mask, job.target.add(job.pixels.get_unchecked(p).target + channel));
                }
            }
        }
    }
}

/// # Safety
/// The vector's instruction set is available; every pointer is valid for what the job's fields say, taps are `P`.
#[inline(always)]
unsafe fn depth_sweep<V: Vector, const P: usize>(job: &DepthSweep<'_>) {
    // SAFETY: the caller's promises.
    unsafe {
        let full = job.channels == V::LANES;
        let mask = V::mask(job.channels);
        let mut sums = [V::zero(); P];
        let mut taps = [0; P];
        for p in 0..P {
            sums[p] = V::load(job.target.add(p * job.target_pitch));
            taps[p] = *job.taps.get_unchecked(p);
        }
        let [pictures, rows, columns] = job.counts;
        for picture in 0..pictures {
            for row in 0..rows {
                let mut source = job.source.add(picture * job.source_pitches[0] + row * job.source_pitches[1]);
                let mut gradient = job.gradient.add(picture * job.gradient_pitches[0] + row * job.gradient_pitches[1]);
                for _ in 0..columns {
                    if full {
                        let factor = V::load(gradient);
                        for p in 0..P {
                            sums[p] = V::load(source.add(taps[p])).fma(factor, sums[p]);
                        }
                    } else {
                        let factor = V::load_some(mask, gradient);
                        for p in 0..P {
                            sums[p] = V::load_some(mask, source.add(taps[p])).fma(factor, sums[p]);
                        }
                    }
                    // No reads beyond the last pixel: the pointers may leave their tensors.
                    source = source.wrapping_add(job.source_pitches[2]);
                    gradient = gradient.wrapping_add(job.gradient_pitches[2]);
                }
            }
        }
        for p in 0..P {
            sums[p].store(job.target.add(p * job.target_pitch));
        }
    }
}

/// A module with the loops of one instruction set: name, vector, features, and for 1, 2, ... vectors the tile sizes.
macro_rules! loops {
    ($name:ident, $vector:ty, $features:literal, [$($q:literal: [$($p:literal)*]),*]) => {
        pub(super) mod $name {
            use super::{Block, Depth, DepthSweep, Loops, Sweep};

            /// The loops of this instruction set; calling them asks for it, and for what the jobs' fields say.
            pub(in super::super) const LOOPS: Loops = Loops {
                lanes: <$vector as super::Vector>::LANES,
                tiles: &[$([$($p),*].len()),*],
                block: |pixels, vectors| match (pixels, vectors) {
                    $($(($p, $q) => block::<$p, $q>,)*)*
                    _ => unreachable!("no tile of {pixels} x {vectors}"),
                },
                sweep: |rows, vectors| match (rows, vectors) {
                    $($(($p, $q) => sweep::<$p, $q>,)*)*
                    _ => unreachable!("no tile of {rows} x {vectors}"),
                },
                depth: |pixels| [depth::<1>, depth::<2>, depth::<3>, depth::<4>, depth::<5>, depth::<6>, depth::<7>,
                    depth::<8>][pixels - 1],
                depth_sweep: |taps| [depth_sweep::<1>, depth_sweep::<2>, depth_sweep::<3>, depth_sweep::<4>,
                    depth_sweep::<5>, depth_sweep::<6>, depth_sweep::<7>, depth_sweep::<8>, depth_sweep::<9>][taps - 1],
            };

            #[target_feature(enable = $features)]
            unsafe fn block<const P: usize, const Q: usize>(job: &Block<'_>) {
                // SAFETY: the features are enabled; the caller's promises.
                unsafe { super::block::<$vector, P, Q>(job) }
            }

            #[target_feature(enable = $features)]
            unsafe fn sweep<const P: usize, const Q: usize>(job: &Sweep) {
                // SAFETY: the features are enabled; the caller's promises.
                unsafe { super::sweep::<$vector, P, Q>(job) }
            }

            #[target_feature(enable = $features)]
            unsafe fn depth<const P: usize>(job: &Depth<'_>) {
                // SAFETY: the features are enabled; the caller's promises.
                unsafe { super::depth::<$vector, P>(job) }
            }

            #[target_feature(enable = $features)]
            unsafe fn depth_sweep<const P: usize>(job: &DepthSweep<'_>) {
                // SAFETY: the features are enabled; the caller's promises.
                unsafe { super::depth_sweep::<$vector, P>(job) }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
loops!(avx512, std::arch::x86_64::__m512, "avx512f,avx512vl,avx512bw,fma", [
    1: [1 2 3 4 5 6 7 8 9 10 11 12],
    2: [1 2 3 4 5 6 7 8 9 10 11 12],
    3: [1 2 3 4 5 6 7 8],
    4: [1 2 3 4 5 6]
]);

#[cfg(target_arch = "x86_64")]
loops!(avx2, std::arch::x86_64::__m256, "avx2,fma", [
    1: [1 2 3 4 5 6 7 8 9 10 11 12],
    2: [1 2 3 4 5 6]
]);

/// The loops of an instruction set; `None` where the twin runs.
pub(super) fn loops(isa: crate::Isa) -> Option<Loops> {
    #[cfg(target_arch = "x86_64")]
    if isa.uses_avx512() {
        return Some(avx512::LOOPS);
    } else if isa.uses_avx2() {
        return Some(avx2::LOOPS);
    }
    let _ = isa;
    None
}
