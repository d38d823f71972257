//! Convolutions on AMX tiles: `tdpbusd` adds products of 16 pixels by 64 operands with 64 operands by 16 channels.
//!
//! Tiles: 0..=3 accumulate, 4 and 5 hold pixels (one row each, at a constant pitch), 6 and 7 hold weights (the packed
//! layout of `plan` is already that of a weight tile: rows of four operands by 16 channels).
//! Pixels come straight from the padded source where an output row is wide enough to fill tiles and runs fill 64 bytes
//! well; else the operands of every pixel are first gathered into one row of a panel.
//! A tile has as few rows as split a row of output evenly: `tdpbusd` takes a cycle per row.
//!
//! Inline assembly, because Rust's intrinsics are not stable. The tile configuration is set at the start of a call and
//! released at its end, since it belongs to the thread.

use std::arch::asm;

use crate::buffer::Buffer;
use crate::drive::{Call, Chunk};
use crate::finish::{Target, Tile};
use crate::geometry::ConvGeometry;
use crate::isa::Isa;
use crate::plan::{Plan, SLACK, Shape};
use crate::scratch::Scratch;
use crate::x86::avx512::{self, Scale32};

/// Ranges of channels start at multiples of two weight tiles.
pub(crate) const CHANNEL_STEP: usize = 32;

/// Bytes of source and panel that one chunk may have, when it spans more than a row.
const CHUNK_BYTES: usize = 768 << 10;

/// Channels of one weight tile, most pixels of one pixel tile.
const LANES: usize = 16;
/// Bytes of one operand step of a pixel, and of a row of weights.
const STEP: usize = 64;
/// Sums of four tiles.
const SUMS: usize = 4 * LANES * LANES;
/// Bytes of a weight tile.
const WEIGHT_TILE: usize = 1024;

/// A plan for tiles.
#[derive(Clone, Debug)]
pub(crate) struct TilePlan {
    pub(crate) plan: Plan,
    /// Byte offset of every operand step from a pixel's first operand.
    steps: Vec<usize>,
    /// Bytes between two pixels of the panel; 0 where the source is read directly.
    panel_pitch: usize,
    /// Whether the pixels of all rows and pictures lie at one pitch.
    flat: bool,
}

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
        let flat = pointwise && geometry.in_channels.is_multiple_of(STEP);
        let run = if geometry.dilation[1] == 1 { geometry.kernel[1] } else { 1 } * geometry.in_channels;
        let direct_steps = geometry.products() / run * run.div_ceil(STEP);
        let gathered_steps = geometry.products().div_ceil(STEP);
        let direct = flat || (output[1] >= 12 && direct_steps * 4 <= gathered_steps * 5);
        let plan = Plan::new(geometry, output, zero_point, Shape { gather: !direct, ..shape }, weights, bias);
        let steps: Vec<usize> =
            plan.runs.iter().flat_map(|run| (0..run.groups * 4).step_by(STEP).map(|at| run.offset + at)).collect();
        // An odd number of cache lines: rows of a tile then lie in different cache sets.
        let panel_pitch = if direct { 0 } else { (steps.len() | 1) * STEP };
        Self { plan, steps, panel_pitch, flat }
    }

    /// Runs a call.
    ///
    /// # Safety
    /// The call's target holds its pixels and channels, and this call alone writes them; AMX is available.
    pub(crate) unsafe fn execute(&self, call: &Call<'_>, scratch: &mut Scratch) {
        let chunks = self.plan.chunks(call, self.panel_pitch, CHUNK_BYTES);
        let mut rows = 0;
        for chunk in chunks {
            let source = self.plan.prepare(call, &chunk, scratch);
            let (needed, n_pixels) = self.place(&chunk, call, scratch);
            let pixels = if self.panel_pitch > 0 {
                self.plan.list_pixels(scratch);
                // SAFETY: the source was made for this chunk, its pixels listed.
                unsafe { self.gather(source, scratch, scratch_rows(scratch.places.len(), needed)) }
            } else {
                source
            };
            if needed != rows {
                rows = needed;
                // SAFETY: AMX is available; rows is 1..=16.
                unsafe { configure(rows) };
            }
            // SAFETY: the caller's promises; places are made for this chunk and these rows, which are configured.
            unsafe { self.chunk(call, chunk.pixel + n_pixels, rows, pixels, scratch) };
        }
        // SAFETY: AMX is available; no tile is in use any more.
        unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
    }

    /// Lists the chunk's tiles in `scratch.places`; how many rows each has, and how many pixels the chunk.
    fn place(&self, chunk: &Chunk, call: &Call<'_>, scratch: &mut Scratch) -> (usize, usize) {
        let Scratch { lines, places, .. } = scratch;
        places.clear();
        let n_pixels = lines.len() * self.plan.output[1];
        let whole = chunk.pictures.len() == 1 || call.rows.len() == self.plan.output[0];
        if self.panel_pitch > 0 {
            let rows = n_pixels.div_ceil(n_pixels.div_ceil(LANES));
            places.extend((0..n_pixels).step_by(rows).map(|pixel| (pixel * self.panel_pitch, chunk.pixel + pixel)));
            return (rows, n_pixels);
        }
        let (n_lines, width) = if self.flat && whole { (1, n_pixels) } else { (lines.len(), self.plan.output[1]) };
        let rows = width.div_ceil(width.div_ceil(LANES));
        for (index, line) in lines[..n_lines].iter().enumerate() {
            for column in (0..width).step_by(rows) {
                // The last tile of a row overlaps its neighbour: what both compute is equal.
                let column = column.min(width - rows);
                places.push((line + column * self.plan.pixel_pitch, chunk.pixel + index * width + column));
            }
        }
        (rows, n_pixels)
    }

    /// Copies the operands of every pixel into its row of the panel, which gets `n_rows`.
    ///
    /// # Safety
    /// `source` and `scratch.pixels` were made for one chunk; AVX-512 is available.
    unsafe fn gather(&self, source: *const u8, scratch: &mut Scratch, n_rows: usize) -> *const u8 {
        let Scratch { pixels, panel, .. } = scratch;
        panel.grow(n_rows * self.panel_pitch + SLACK);
        let start = panel.as_mut_ptr();
        // SAFETY: the rows lie in the panel, the pixels in the source; whole lines may reach past a run's end by at most
        // 63 bytes, for which both have SLACK (in place, runs are whole lines). What is written past the end of a row is
        // overwritten by the next, or never multiplied by a weight other than zero.
        unsafe { avx512::gather(source, pixels, &self.plan.gathered, start, self.panel_pitch) };
        start
    }

    /// # Safety
    /// As [`TilePlan::execute`]; `scratch.places` lists tiles of `rows` pixels from `pixels`, and `rows` is configured.
    /// Pixels of the output end at `end`.
    unsafe fn chunk(&self, call: &Call<'_>, end: usize, rows: usize, pixels: *const u8, scratch: &mut Scratch) {
        let Scratch { tile, places, .. } = scratch;
        tile.grow(2 * SUMS * size_of::<i32>());
        let job = Job {
            plan: self,
            call,
            end,
            rows,
            pixels,
            pitch: if self.panel_pitch > 0 { self.panel_pitch } else { self.plan.pixel_pitch },
            sums: tile.as_mut_ptr().cast(),
        };
        let (pairs, single) = places.as_chunks::<2>();
        let channels = call.channels.clone();
        if !pairs.is_empty() {
            // SAFETY: the caller's promises.
            unsafe { job.pairs(pairs) };
        }
        if let [place] = *single {
            let mut channel = channels.start;
            while channel < channels.end {
                // SAFETY: the caller's promises.
                unsafe {
                    if channels.end - channel > 2 * LANES {
                        job.one_by_four(place, channel);
                        channel += 4 * LANES;
                    } else {
                        job.one_by_two(place, channel);
                        channel += 2 * LANES;
                    }
                }
            }
        }
    }
}

/// Rows of a panel of `tiles` tiles.
fn scratch_rows(tiles: usize, rows: usize) -> usize {
    tiles * rows
}

/// What the loops over operands share.
struct Job<'a> {
    plan: &'a TilePlan,
    call: &'a Call<'a>,
    /// Past the last output pixel of the chunk.
    end: usize,
    /// Pixels of a tile.
    rows: usize,
    pixels: *const u8,
    /// Bytes between two pixels of a tile.
    pitch: usize,
    /// Sums of twice four tiles.
    sums: *mut i32,
}

impl Job<'_> {
    /// The packed weights of the block that starts at `channel`.
    fn weights(&self, channel: usize) -> *const u8 {
        let plan = &self.plan.plan;
        let block = channel / LANES;
        debug_assert!(block < plan.blocks, "blocks are filled up to pairs");
        // SAFETY: the block is one of the plan's.
        unsafe { plan.weights.as_ptr().add(block * plan.block_bytes) }
    }

    /// The biases of the block that starts at `channel`.
    fn bias(&self, channel: usize) -> *const i32 {
        self.plan.plan.bias[channel..].as_ptr()
    }

    /// Pairs of pixel tiles by pairs of weight tiles. While the tiles of one block multiply, the vector units requantize
    /// the block before: its sums wait in the other half of the scratch.
    ///
    /// # Safety
    /// As [`TilePlan::chunk`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn pairs(&self, pairs: &[[(usize, usize); 2]]) {
        let channels = self.call.channels.clone();
        let rows_per_step = (2 * self.rows.div_ceil(2)).div_ceil(self.plan.steps.len());
        let mut half = 0;
        let mut waiting: Option<Waiting> = None;
        for channel in channels.clone().step_by(2 * LANES) {
            let mut scale = None;
            for &pair in pairs {
                // SAFETY: the scratch has two halves.
                let sums = unsafe { self.sums.add(half * SUMS) };
                half ^= 1;
                // SAFETY: the caller's promises; the tile that waits has its sums in the other half.
                unsafe {
                    self.multiply_pair(pair, channel, sums, waiting.as_mut(), rows_per_step);
                    waiting = None;
                    let below = sums.add(self.rows * 2 * LANES);
                    let counts = [self.valid(pair[0].1), self.valid(pair[1].1)];
                    match self.call.finish.target {
                        Target::Float(start, float) if channels.end - channel >= 2 * LANES => {
                            let scale = *scale.get_or_insert_with(|| Scale32::new(float, channel));
                            let pitch = self.call.finish.pitch;
                            let to = pair.map(|(_, pixel)| start.add(pixel * pitch + channel));
                            waiting = Some(Waiting { scale, sums: [sums, below], to, pitch, counts, tile: 0, row: 0 });
                        }
                        _ => {
                            self.finish(pair[0].1, channel, 2 * LANES, sums);
                            self.finish(pair[1].1, channel, 2 * LANES, below);
                        }
                    }
                }
            }
        }
        if let Some(mut waiting) = waiting {
            // SAFETY: its sums are stored, its pixels are of this call.
            while unsafe { waiting.advance() } {}
        }
    }

    /// Sums of two pixel tiles by two weight tiles, `rows` rows of 32 each; meanwhile advances what waits.
    ///
    /// # Safety
    /// As [`TilePlan::chunk`]; `sums` is half of the scratch.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn multiply_pair(
        &self,
        [first, second]: [(usize, usize); 2],
        channel: usize,
        sums: *mut i32,
        mut waiting: Option<&mut Waiting>,
        rows_per_step: usize,
    ) {
        let bytes = self.plan.plan.block_bytes;
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
            for &step in &self.plan.steps {
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
                if let Some(waiting) = waiting.as_mut() {
                    for _ in 0..rows_per_step {
                        waiting.advance();
                    }
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
    /// As [`TilePlan::chunk`]; more than two weight tiles are left.
    unsafe fn one_by_four(&self, place: (usize, usize), channel: usize) {
        let bytes = self.plan.plan.block_bytes;
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
            for &step in &self.plan.steps {
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
    /// As [`TilePlan::chunk`].
    unsafe fn one_by_two(&self, place: (usize, usize), channel: usize) {
        let bytes = self.plan.plan.block_bytes;
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
            for &step in &self.plan.steps {
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
    /// As [`TilePlan::chunk`]; the sums are `rows` rows of `lanes`.
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

/// Sums of two pixel tiles by 32 channels that wait for requantization.
struct Waiting {
    scale: Scale32,
    sums: [*const i32; 2],
    /// The first pixel's first byte, per tile.
    to: [*mut u8; 2],
    /// Bytes between two pixels.
    pitch: usize,
    /// Pixels of each tile.
    counts: [usize; 2],
    tile: usize,
    row: usize,
}

impl Waiting {
    /// Requantizes two pixels; false when none is left.
    ///
    /// # Safety
    /// AVX-512 is available; sums and outputs are valid for the counts of pixels.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn advance(&mut self) -> bool {
        if self.tile == 2 {
            return false;
        }
        let last = self.counts[self.tile] - 1;
        // The last of an odd number of pixels is done twice.
        let rows = [self.row, (self.row + 1).min(last)];
        // SAFETY: both rows exist.
        unsafe {
            self.scale.store(
                rows.map(|row| self.sums[self.tile].add(row * 2 * LANES)),
                rows.map(|row| self.to[self.tile].add(row * self.pitch)),
            );
        }
        self.row += 2;
        if self.row > last {
            (self.tile, self.row) = (self.tile + 1, 0);
        }
        true
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
