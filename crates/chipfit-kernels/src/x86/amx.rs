//! Convolutions on AMX tiles: `tdpbusd` adds products of 16 pixels by 64 operands with 64 operands by 16 channels.
//!
//! Tiles: 0..=3 accumulate, 4 and 5 hold pixels (one row each, at a constant pitch), 6 and 7 hold weights (the packed
//! layout of `plan` is already that of a weight tile: rows of four operands by 16 channels).
//! Pixels come straight from the padded source where an output row is wide enough to fill tiles and runs fill 64 bytes
//! well; else from an expanded source (`expand`), in which a tile runs on over the ends of rows; else, for maps of a few
//! pixels, the operands of every pixel are gathered into one row of a panel, pictures one after another.
//! A tile has as few rows as split its pixels evenly: `tdpbusd` takes a cycle per row.
//!
//! Inline assembly, because Rust's intrinsics are not stable. The tile configuration is set at the start of a call and
//! released at its end, since it belongs to the thread.

use std::arch::asm;
use std::ops::Range;

use crate::buffer::Buffer;
use crate::drive::{Call, Chunk};
use crate::finish::{Target, Tile};
use crate::geometry::ConvGeometry;
use crate::isa::Isa;
use crate::plan::{Plan, Rows, SLACK, STEP, Shape};
use crate::requantize::Requantize;
use crate::scratch::Scratch;
use crate::x86::avx512::{self, Scale32};
use crate::x86::expand::Expansion;

/// Ranges of channels start at multiples of two weight tiles.
pub(crate) const CHANNEL_STEP: usize = 32;

/// Bytes of source and panel that one chunk may have, when it spans more than a row.
const CHUNK_BYTES: usize = 768 << 10;

/// Channels of one weight tile, most pixels of one pixel tile.
const LANES: usize = 16;
/// Sums of four tiles.
const SUMS: usize = 4 * LANES * LANES;
/// Bytes of a weight tile.
const WEIGHT_TILE: usize = 1024;

/// A plan for tiles.
#[derive(Clone, Debug)]
pub(crate) struct TilePlan {
    pub(crate) plan: Plan,
    mode: Mode,
}

/// Where the rows of pixel tiles come from.
#[derive(Clone, Debug)]
enum Mode {
    /// From the source, one output row after another.
    Rows,
    /// From the source, in which the pixels of all rows and pictures lie at one pitch.
    Flat,
    /// From the expanded source, one picture after another.
    Expanded(Expansion),
    /// From a panel of gathered pixels at this pitch.
    Gathered(usize),
}

/// Output columns from which on tiles do not cross rows.
const WIDE: usize = 12;

impl TilePlan {
    /// A plan for a checked geometry of one group; AMX must be available when it is executed.
    pub(crate) fn new(
        geometry: &ConvGeometry,
        output: [usize; 2],
        zero_point: u8,
        weights: &[i8],
        bias: &[i32],
    ) -> Self {
        let shape = Shape::of(Isa::AmxInt8).unwrap_or_else(|| unreachable!("tiles have a shape"));
        let pointwise = geometry.kernel == [1; 2] && geometry.stride == [1; 2] && geometry.pads == [0; 4];
        let run = if geometry.dilation[1] == 1 { geometry.kernel[1] } else { 1 } * geometry.in_channels;
        let row_steps = geometry.products() / run * run.div_ceil(STEP);
        let gathered_steps = geometry.products().div_ceil(STEP);
        let (mode, rows) = if pointwise && geometry.in_channels.is_multiple_of(STEP) {
            (Mode::Flat, Rows::Source)
        } else if output[1] >= WIDE && row_steps * 4 <= gathered_steps * 5 {
            (Mode::Rows, Rows::Source)
        } else if output[0] * output[1] >= WIDE {
            let expansion = Expansion::new(geometry);
            let runs = expansion.runs(geometry);
            (Mode::Expanded(expansion), Rows::Expanded(runs))
        } else {
            // An odd number of cache lines: rows of a tile then lie in different cache sets.
            (Mode::Gathered((gathered_steps | 1) * STEP), Rows::Gathered)
        };
        let plan = Plan::new(geometry, output, zero_point, Shape { rows, ..shape }, weights, bias);
        Self { plan, mode }
    }

    /// Runs a call.
    ///
    /// # Safety
    /// The call's target holds its pixels and channels, and this call alone writes them; AMX is available.
    pub(crate) unsafe fn execute(&self, call: &Call<'_>, scratch: &mut Scratch) {
        let pixel_bytes = match &self.mode {
            Mode::Rows | Mode::Flat => 0,
            Mode::Expanded(expansion) => expansion.pixel_bytes(),
            Mode::Gathered(pitch) => *pitch,
        };
        let mut configured = 0;
        for chunk in self.plan.chunks(call, pixel_bytes, CHUNK_BYTES) {
            let source = self.plan.prepare(call, &chunk, scratch);
            let end = chunk.pixel + scratch.lines.len() * self.plan.output[1];
            // SAFETY: the source was made for this chunk; AVX-512 is available where AMX is.
            let (pixels, pitch, rows) = unsafe { self.place(source, &chunk, call, scratch) };
            if rows != configured {
                configured = rows;
                // SAFETY: AMX is available; rows is 1..=16.
                unsafe { configure(rows) };
            }
            let Scratch { tile, places, steps, .. } = &mut *scratch;
            tile.grow(2 * SUMS * size_of::<i32>());
            let sums = tile.as_mut_ptr().cast();
            let job = Job { plan: &self.plan, call, steps, end, rows, pixels, pitch, sums };
            // SAFETY: the caller's promises; places and steps were made for this chunk and these rows.
            unsafe { job.execute(places) };
        }
        // SAFETY: AMX is available; no tile is in use any more.
        unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
    }

    /// Lists the chunk's tiles in `scratch.places` and their steps in `scratch.steps`; gives where the places start, the
    /// pitch of pixels, and the rows of a tile.
    ///
    /// # Safety
    /// `source` and `scratch.lines` were made for this chunk; AVX-512 is available.
    unsafe fn place(
        &self,
        source: *const u8,
        chunk: &Chunk,
        call: &Call<'_>,
        scratch: &mut Scratch,
    ) -> (*const u8, usize, usize) {
        let plan = &self.plan;
        let Scratch { panel, lines, places, steps, .. } = &mut *scratch;
        places.clear();
        let columns = plan.output[1];
        let n_pixels = lines.len() * columns;
        match &self.mode {
            Mode::Rows | Mode::Flat => {
                steps.clear();
                steps.extend(
                    plan.runs.iter().flat_map(|run| (0..run.groups * 4).step_by(STEP).map(|at| run.offset + at)),
                );
                let whole = chunk.pictures.len() == 1 || call.rows.len() == plan.output[0];
                let joined = matches!(self.mode, Mode::Flat) && whole;
                let (n_lines, width) = if joined { (1, n_pixels) } else { (lines.len(), columns) };
                for (index, line) in lines[..n_lines].iter().enumerate() {
                    tiles(width, plan.pixel_pitch, (*line, chunk.pixel + index * width), places);
                }
                (source, plan.pixel_pitch, tile_rows(width))
            }
            Mode::Expanded(expansion) => {
                let n_rows = chunk.rows.len();
                let bytes = expansion.bytes(n_rows, columns);
                expansion.steps(n_rows, columns, steps);
                panel.grow(chunk.pictures.len() * bytes + SLACK);
                let start = panel.as_mut_ptr();
                for picture in 0..chunk.pictures.len() {
                    // SAFETY: a picture's first line is where what its rows read starts; the panel has room for every
                    // picture and slack; a padded copy has slack, and in place runs are whole lines.
                    unsafe {
                        let from = source.add(lines[picture * n_rows]);
                        expansion.write(plan, n_rows, from, start.add(picture * bytes));
                    }
                    let pixels = n_rows * columns;
                    tiles(pixels, expansion.pitch, (picture * bytes, chunk.pixel + picture * pixels), places);
                }
                (start, expansion.pitch, tile_rows(n_rows * columns))
            }
            Mode::Gathered(pitch) => {
                steps.clear();
                steps.extend((0..plan.runs[0].groups * 4).step_by(STEP));
                let rows = tile_rows(n_pixels);
                places.extend((0..n_pixels).step_by(rows).map(|pixel| (pixel * pitch, chunk.pixel + pixel)));
                panel.grow(places.len() * rows * pitch + SLACK);
                let start = panel.as_mut_ptr();
                plan.list_pixels(scratch);
                // SAFETY: the rows lie in the panel, the pixels in the source; whole lines may reach past a run's end by
                // at most 63 bytes, for which both have SLACK (in place, runs are whole lines). What is written past the
                // end of a row is overwritten by the next, or never multiplied by a weight other than zero.
                unsafe { avx512::gather(source, &scratch.pixels, &plan.gathered, start, *pitch) };
                (start, *pitch, rows)
            }
        }
    }
}

/// Rows of a tile when `pixels` are split evenly.
fn tile_rows(pixels: usize) -> usize {
    pixels.div_ceil(pixels.div_ceil(LANES))
}

/// Adds tiles for `pixels` at one pitch; `first` is the byte offset and the output pixel of the first. The last tile
/// overlaps its neighbour: what both compute is equal.
fn tiles(pixels: usize, pitch: usize, first: (usize, usize), places: &mut Vec<(usize, usize)>) {
    let rows = tile_rows(pixels);
    places.extend((0..pixels).step_by(rows).map(|pixel| {
        let pixel = pixel.min(pixels - rows);
        (first.0 + pixel * pitch, first.1 + pixel)
    }));
}

/// What the loops over operands share.
struct Job<'a> {
    plan: &'a Plan,
    call: &'a Call<'a>,
    /// Byte offset of every step from a pixel's first operand.
    steps: &'a [usize],
    /// Past the last output pixel of the chunk.
    end: usize,
    /// Pixels of a tile.
    rows: usize,
    /// Where places count from.
    pixels: *const u8,
    /// Bytes between two pixels of a tile.
    pitch: usize,
    /// Sums of twice four tiles.
    sums: *mut i32,
}

impl Job<'_> {
    /// Runs all tiles against the call's channels.
    ///
    /// # Safety
    /// The call's target is its own; places and steps are valid, `rows` is configured, AMX is available.
    unsafe fn execute(&self, places: &[(usize, usize)]) {
        let (pairs, single) = places.as_chunks::<2>();
        let channels = self.call.channels.clone();
        if !pairs.is_empty() {
            // SAFETY: the caller's promises.
            unsafe { self.pairs(pairs) };
        }
        if let [place] = *single {
            let mut channel = channels.start;
            while channel < channels.end {
                // SAFETY: the caller's promises.
                unsafe {
                    if channels.end - channel > 2 * LANES {
                        self.one_by_four(place, channel);
                        channel += 4 * LANES;
                    } else {
                        self.one_by_two(place, channel);
                        channel += 2 * LANES;
                    }
                }
            }
        }
    }

    /// The packed weights of the block that starts at `channel`.
    fn weights(&self, channel: usize) -> *const u8 {
        let plan = self.plan;
        let block = channel / LANES;
        debug_assert!(block < plan.blocks, "blocks are filled up to pairs");
        // SAFETY: the block is one of the plan's.
        unsafe { plan.weights.as_ptr().add(block * plan.block_bytes) }
    }

    /// The biases of the block that starts at `channel`.
    fn bias(&self, channel: usize) -> *const i32 {
        self.plan.bias[channel..].as_ptr()
    }

    /// Pairs of pixel tiles by pairs of weight tiles.
    ///
    /// # Safety
    /// As [`Job::execute`].
    unsafe fn pairs(&self, pairs: &[[(usize, usize); 2]]) {
        let Range { start, end } = self.call.channels;
        let whole = match self.call.finish.target {
            Target::Float(bytes, float) => {
                let whole = start + (end - start) / (2 * LANES) * (2 * LANES);
                // SAFETY: the caller's promises.
                unsafe { self.requantized_pairs(pairs, start..whole, bytes, float) };
                whole
            }
            _ => start,
        };
        for channel in (whole..end).step_by(2 * LANES) {
            for pair in pairs {
                // SAFETY: the caller's promises.
                unsafe {
                    self.multiply_pair(*pair, channel, self.sums, 0, &mut None);
                    self.finish_pair(*pair, channel, self.sums);
                }
            }
        }
    }

    /// [`Job::pairs`] of `channels`, which are whole pairs of weight tiles. While the tiles of one block multiply, the
    /// vector units requantize the block before: its sums wait in the other half of the scratch.
    ///
    /// # Safety
    /// As [`Job::execute`]; `bytes` is the call's target.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn requantized_pairs(
        &self,
        pairs: &[[(usize, usize); 2]],
        channels: Range<usize>,
        bytes: *mut u8,
        float: &Requantize,
    ) {
        let per_step = self.rows.div_ceil(self.steps.len());
        let pitch = self.call.finish.pitch;
        let mut half = 0;
        let mut waiting: Option<Waiting> = None;
        for channel in channels.step_by(2 * LANES) {
            let scale = Scale32::new(float, channel);
            for pair in pairs {
                // SAFETY: the scratch has two halves; what waits is in the other one. The tiles' pixels, and those of
                // what waits, are of this call.
                unsafe {
                    let sums = self.sums.add(half * SUMS);
                    half ^= 1;
                    self.multiply_pair(*pair, channel, sums, per_step, &mut waiting);
                    let [first, second] = pair.map(|(_, pixel)| pixel);
                    if second == first + self.rows && second + self.rows <= self.end {
                        if let Some(probe) = self.call.finish.probe {
                            let (pitch, pixels) = (2 * LANES, self.rows);
                            let tile = Tile { sums, pitch, pixel: first, pixels, channel, channels: pitch };
                            probe.collect(tile);
                            probe.collect(Tile { sums: sums.add(pixels * pitch), pixel: second, ..tile });
                        }
                        let to = bytes.add(first * pitch + channel);
                        waiting = Some(Waiting { scale, sums, to, pitch, left: self.rows });
                    } else {
                        waiting = None;
                        self.finish_pair(*pair, channel, sums);
                    }
                }
            }
        }
        if let Some(mut waiting) = waiting {
            // SAFETY: as above.
            unsafe { waiting.advance(self.rows) };
        }
    }

    /// Finishes the sums of two pixel tiles by two weight tiles.
    ///
    /// # Safety
    /// As [`Job::execute`]; the sums are those of [`Job::multiply_pair`].
    unsafe fn finish_pair(&self, [first, second]: [(usize, usize); 2], channel: usize, sums: *const i32) {
        // SAFETY: the caller's promises; the second tile's sums follow the first's.
        unsafe {
            self.finish(first.1, channel, 2 * LANES, sums);
            self.finish(second.1, channel, 2 * LANES, sums.add(self.rows * 2 * LANES));
        }
    }

    /// Sums of two pixel tiles by two weight tiles, `rows` rows of 32 each; meanwhile finishes what waits, `per_step`
    /// pairs of pixels at every step.
    ///
    /// # Safety
    /// As [`Job::execute`]; `sums` is half of the scratch, what waits lies in the other; nothing waits, or AVX-512 is
    /// available.
    #[inline(always)]
    unsafe fn multiply_pair(
        &self,
        [first, second]: [(usize, usize); 2],
        channel: usize,
        sums: *mut i32,
        per_step: usize,
        waiting: &mut Option<Waiting>,
    ) {
        let bytes = self.plan.block_bytes;
        // SAFETY: places and blocks lie in the source or panel and in the weights, every step of them too; blocks have
        // 16 biases, which a pitch of zero spreads over all rows; the sums hold 32 rows of 32.
        unsafe {
            let (left, right) = (self.pixels.add(first.0), self.pixels.add(second.0));
            let mut weights = self.weights(channel);
            asm!(
                "tileloadd tmm0, [{bias} + {pitch}]",
                "tileloadd tmm1, [{bias} + {pitch} + 64]",
                "tileloadd tmm2, [{bias} + {pitch}]",
                "tileloadd tmm3, [{bias} + {pitch} + 64]",
                bias = in(reg) self.bias(channel),
                pitch = in(reg) 0_usize,
                options(readonly, nostack, preserves_flags),
            );
            for &step in self.steps {
                asm!(
                    "tileloadd tmm4, [{left} + {pitch}]",
                    "tileloadd tmm6, [{weights} + {line}]",
                    "tdpbusd tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{others} + {line}]",
                    "tdpbusd tmm1, tmm4, tmm7",
                    "tileloadd tmm5, [{right} + {pitch}]",
                    "tdpbusd tmm2, tmm5, tmm6",
                    "tdpbusd tmm3, tmm5, tmm7",
                    left = in(reg) left.add(step),
                    right = in(reg) right.add(step),
                    weights = in(reg) weights,
                    others = in(reg) weights.add(bytes),
                    pitch = in(reg) self.pitch,
                    line = in(reg) STEP,
                    options(readonly, nostack, preserves_flags),
                );
                weights = weights.add(WEIGHT_TILE);
                if let Some(waiting) = waiting {
                    waiting.advance(per_step);
                }
            }
            asm!(
                "tilestored [{sums} + {pitch}], tmm0",
                "tilestored [{sums} + {pitch} + 64], tmm1",
                "tilestored [{below} + {pitch}], tmm2",
                "tilestored [{below} + {pitch} + 64], tmm3",
                sums = in(reg) sums,
                below = in(reg) sums.add(self.rows * 2 * LANES),
                pitch = in(reg) 2 * LANES * size_of::<i32>(),
                options(nostack, preserves_flags),
            );
        }
    }

    /// How many pixels of a tile exist.
    fn valid(&self, pixel: usize) -> usize {
        self.rows.min(self.end - pixel)
    }

    /// One pixel tile by four weight tiles.
    ///
    /// # Safety
    /// As [`Job::execute`]; more than two weight tiles are left.
    unsafe fn one_by_four(&self, place: (usize, usize), channel: usize) {
        let bytes = self.plan.block_bytes;
        // SAFETY: as in `multiply_pair`; blocks are filled up to pairs, so that four are there.
        unsafe {
            let left = self.pixels.add(place.0);
            let mut weights = self.weights(channel);
            asm!(
                "tileloadd tmm0, [{bias} + {pitch}]",
                "tileloadd tmm1, [{bias} + {pitch} + 64]",
                "tileloadd tmm2, [{bias} + {pitch} + 128]",
                "tileloadd tmm3, [{bias} + {pitch} + 192]",
                bias = in(reg) self.bias(channel),
                pitch = in(reg) 0_usize,
                options(readonly, nostack, preserves_flags),
            );
            for &step in self.steps {
                asm!(
                    "tileloadd tmm4, [{left} + {pitch}]",
                    "tileloadd tmm6, [{weights} + {line}]",
                    "tdpbusd tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{second} + {line}]",
                    "tdpbusd tmm1, tmm4, tmm7",
                    "tileloadd tmm6, [{third} + {line}]",
                    "tdpbusd tmm2, tmm4, tmm6",
                    "tileloadd tmm7, [{fourth} + {line}]",
                    "tdpbusd tmm3, tmm4, tmm7",
                    left = in(reg) left.add(step),
                    weights = in(reg) weights,
                    second = in(reg) weights.add(bytes),
                    third = in(reg) weights.add(2 * bytes),
                    fourth = in(reg) weights.add(3 * bytes),
                    pitch = in(reg) self.pitch,
                    line = in(reg) STEP,
                    options(readonly, nostack, preserves_flags),
                );
                weights = weights.add(WEIGHT_TILE);
            }
            asm!(
                "tilestored [{sums} + {pitch}], tmm0",
                "tilestored [{sums} + {pitch} + 64], tmm1",
                "tilestored [{sums} + {pitch} + 128], tmm2",
                "tilestored [{sums} + {pitch} + 192], tmm3",
                sums = in(reg) self.sums,
                pitch = in(reg) 4 * LANES * size_of::<i32>(),
                options(nostack, preserves_flags),
            );
            self.finish(place.1, channel, 4 * LANES, self.sums);
        }
    }

    /// One pixel tile by two weight tiles.
    ///
    /// # Safety
    /// As [`Job::execute`].
    unsafe fn one_by_two(&self, place: (usize, usize), channel: usize) {
        let bytes = self.plan.block_bytes;
        // SAFETY: as in `multiply_pair`.
        unsafe {
            let left = self.pixels.add(place.0);
            let mut weights = self.weights(channel);
            asm!(
                "tileloadd tmm0, [{bias} + {pitch}]",
                "tileloadd tmm1, [{bias} + {pitch} + 64]",
                bias = in(reg) self.bias(channel),
                pitch = in(reg) 0_usize,
                options(readonly, nostack, preserves_flags),
            );
            for &step in self.steps {
                asm!(
                    "tileloadd tmm4, [{left} + {pitch}]",
                    "tileloadd tmm6, [{weights} + {line}]",
                    "tdpbusd tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{second} + {line}]",
                    "tdpbusd tmm1, tmm4, tmm7",
                    left = in(reg) left.add(step),
                    weights = in(reg) weights,
                    second = in(reg) weights.add(bytes),
                    pitch = in(reg) self.pitch,
                    line = in(reg) STEP,
                    options(readonly, nostack, preserves_flags),
                );
                weights = weights.add(WEIGHT_TILE);
            }
            asm!(
                "tilestored [{sums} + {pitch}], tmm0",
                "tilestored [{sums} + {pitch} + 64], tmm1",
                sums = in(reg) self.sums,
                pitch = in(reg) 2 * LANES * size_of::<i32>(),
                options(nostack, preserves_flags),
            );
            self.finish(place.1, channel, 2 * LANES, self.sums);
        }
    }

    /// Finishes the sums of one pixel tile by `lanes` channels.
    ///
    /// # Safety
    /// As [`Job::execute`]; the sums are `rows` rows of `lanes`.
    unsafe fn finish(&self, pixel: usize, channel: usize, lanes: usize, sums: *const i32) {
        let tile = Tile {
            sums,
            pitch: lanes,
            pixel,
            pixels: self.valid(pixel),
            channel,
            channels: lanes.min(self.call.channels.end - channel),
        };
        // SAFETY: the caller's promises.
        unsafe { avx512::finish(&self.call.finish, tile) };
    }
}

/// Sums of pixels side by side, by 32 channels, that wait for requantization.
struct Waiting {
    scale: Scale32,
    sums: *const i32,
    /// The first pixel's first byte.
    to: *mut u8,
    /// Bytes between two pixels.
    pitch: usize,
    /// Pairs of pixels.
    left: usize,
}

impl Waiting {
    /// Requantizes up to `pairs` pairs of pixels.
    ///
    /// # Safety
    /// AVX-512 is available; sums and outputs are valid for the pairs that are left.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn advance(&mut self, pairs: usize) {
        let pairs = pairs.min(self.left);
        self.left -= pairs;
        for _ in 0..pairs {
            // SAFETY: the pair is one of those left.
            unsafe {
                self.scale.store([self.sums, self.sums.add(2 * LANES)], [self.to, self.to.add(self.pitch)]);
                self.sums = self.sums.add(4 * LANES);
                self.to = self.to.add(2 * self.pitch);
            }
        }
    }
}

/// Configures pixel and sum tiles of `rows` rows, weight tiles of 16; all rows have 64 bytes.
///
/// # Safety
/// AMX is available; `rows` is 1..=16.
unsafe fn configure(rows: usize) {
    let mut configuration = Buffer::zeros(64);
    let bytes = configuration.as_mut_slice();
    // Palette 1; bytes per row are u16 from byte 16 on, rows are u8 from byte 48 on.
    bytes[0] = 1;
    for tile in 0..8 {
        bytes[16 + 2 * tile] = 64;
        bytes[48 + tile] = if tile < 6 { rows as u8 } else { 16 };
    }
    // SAFETY: a valid configuration of palette 1 in 64 bytes.
    unsafe {
        asm!("ldtilecfg [{}]", in(reg) bytes.as_ptr(), options(readonly, nostack, preserves_flags));
    }
}
