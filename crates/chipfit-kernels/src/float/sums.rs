//! The gradient of the weights: sums over pixels, kept in registers over a chunk of pixels.
//!
//! `weight_gradient[o][k] += input[pixel + k] * output_gradient[pixel][o]`, pixels in order. Within a kernel row the
//! elements `k` lie side by side in the padded input, so either side can fill vectors: `k` (sums go straight to their
//! place) or `o` (sums are kept transposed, for thin kernel rows). Each sum's chain is the same.

use super::axis::Axis;
use super::loops::{DepthSweep, Loops, Run, Sweep, TAPS};
use super::pass::{Panel, even_parts, panels};
use super::scratch::{FloatScratch, Floats};
use super::source::{Layout, Source};
use crate::geometry::ConvGeometry;

/// Pixels over which sums stay in registers.
const PIXELS: usize = 256;

/// From this distance of pixels on, what a tile reads of them is gathered first: a power of two apart, few of them fit
/// the first-level cache.
const FAR: usize = 256;
/// It pays from so many uses on.
const USES: usize = 12;

/// How the weight gradient is computed.
#[derive(Clone, Debug)]
pub(super) struct Sums {
    loops: Loops,
    rows: Axis,
    layout: Layout,
    output: [usize; 2],
    stride: [usize; 2],
    groups: usize,
    group_in: usize,
    group_out: usize,
    products: usize,
    /// Elements of the kernel that lie side by side.
    runs: Vec<Run>,
    lanes: Lanes,
}

/// What fills vectors.
#[derive(Clone, Debug)]
enum Lanes {
    /// Elements of the kernel; panels of each run.
    Kernel(Vec<Vec<Panel>>),
    /// Output channels.
    Output(Vec<Panel>),
    /// Channels of a depthwise convolution.
    Depth,
}

impl Sums {
    pub(super) fn new(loops: Loops, geometry: &ConvGeometry, output: [usize; 2]) -> Self {
        let g = geometry;
        let [rows, columns] = [Axis::forward(g, 0, output[0]), Axis::forward(g, 1, output[1])];
        let [group_in, group_out] = [g.in_channels / g.groups, g.out_channels / g.groups];
        // A copy is aligned and has room behind it. Where the stride skips most of it, the map is read where it is, if
        // no vector reaches beyond a run.
        let copied = g.stride == [1; 2] || group_in % loops.lanes != 0;
        let layout = Layout::new([g.input[0], g.input[1], g.in_channels], &rows, &columns, copied);
        let mut runs: Vec<Run> = Vec::new();
        for row in &rows.parts[0].taps {
            for column in &columns.parts[0].taps {
                let offset = layout.offset(&rows, &columns, [row.offset, column.offset]);
                match runs.last_mut() {
                    Some(run) if run.offset + run.length == offset => run.length += group_in,
                    _ => runs.push(Run { offset, length: group_in }),
                }
            }
        }
        // Cycles of a pixel: two products, two loads, and a chain takes four for a link.
        let tile = |rows: usize, vectors: usize| (rows * vectors).max(rows + vectors).max(8);
        let cost = |panels: &[Panel], rows: usize| -> usize {
            let of = |panel: &Panel| -> usize {
                even_parts(rows, loops.tiles[panel.vectors - 1]).map(|part| tile(part.len(), panel.vectors)).sum()
            };
            panels.iter().map(of).sum()
        };
        let best = |lanes: usize, rows: usize| {
            let divided = (1..=loops.tiles.len()).map(|most| panels(lanes, loops.lanes, most));
            divided.map(|panels| (cost(&panels, rows), panels)).min_by_key(|&(cost, _)| cost).unwrap_or_default()
        };
        let by_kernel: Vec<_> = runs.iter().map(|run| best(run.length, group_out)).collect();
        let kernel_cost: usize = by_kernel.iter().map(|&(cost, _)| cost).sum();
        let output_cost: usize = runs.iter().map(|run| best(group_out, run.length).0).sum();
        let lanes = if g.groups > 1 && group_in == 1 && group_out == 1 {
            Lanes::Depth
        } else if kernel_cost * 8 <= output_cost * 9 {
            Lanes::Kernel(by_kernel.into_iter().map(|(_, panels)| panels).collect())
        } else {
            let longest = runs.iter().map(|run| run.length).max().unwrap_or(1);
            Lanes::Output(best(group_out, longest).1)
        };
        Self {
            loops,
            rows,
            layout,
            output,
            stride: g.stride,
            groups: g.groups,
            group_in,
            group_out,
            products: g.products(),
            runs,
            lanes,
        }
    }

    /// Adds to `sums`; lengths have been checked.
    pub(super) fn run(
        &self,
        scratch: &mut FloatScratch,
        pictures: usize,
        input: &[f32],
        gradient: &[f32],
        sums: &mut [f32],
    ) {
        let FloatScratch { source: copy, vectors, scalars, sums: held, .. } = scratch;
        let [rows, columns] = self.output;
        let channels = self.groups * self.group_out;
        let picture = rows * columns * channels;
        match self.lanes {
            Lanes::Kernel(_) => {}
            Lanes::Output(_) => self.transpose_in(held, sums),
            Lanes::Depth => self.transpose_in(held, sums),
        }
        let pictures_at_once = (PIXELS / (rows * columns)).max(1);
        let rows_at_once = if rows * columns <= PIXELS { rows } else { (PIXELS / columns).max(1) };
        for chunk in even_parts(pictures, pictures_at_once) {
            for part in even_parts(rows, rows_at_once) {
                let source = self.layout.source(copy, &self.rows, input, chunk.clone(), part.clone());
                let counts = [chunk.len(), part.len(), columns];
                let gradient = &gradient[chunk.start * picture + part.start * columns * channels..];
                let gradient = Gradient { values: gradient, pitches: [picture, columns * channels, channels] };
                match &self.lanes {
                    Lanes::Kernel(panels) => {
                        self.by_kernel(panels, counts, &source, &gradient, sums, [&mut *vectors, &mut *scalars]);
                    }
                    Lanes::Output(panels) => {
                        let filled = gradient.filled(vectors, self, counts);
                        self.by_output(panels, counts, &source, &filled, held.as_mut_slice());
                    }
                    Lanes::Depth => self.by_depth(counts, &source, &gradient, held.as_mut_slice()),
                }
            }
        }
        match self.lanes {
            Lanes::Kernel(_) => {}
            Lanes::Output(_) | Lanes::Depth => self.transpose_out(held, sums),
        }
    }

    /// Lanes of a transposed row of sums, and rows: `[group][product][channel]`, depthwise `[product][channel]`.
    fn transposed(&self) -> (usize, usize) {
        match self.lanes {
            Lanes::Depth => (self.groups, 1),
            _ => (self.group_out, self.groups),
        }
    }

    fn transpose_in(&self, held: &mut Floats, sums: &[f32]) {
        let (lanes, groups) = self.transposed();
        let pitch = lanes.next_multiple_of(self.loops.lanes);
        let held = held.room(groups * self.products * pitch);
        let of_groups = held.chunks_exact_mut(self.products * pitch).zip(sums.chunks_exact(self.products * lanes));
        for (held, sums) in of_groups {
            for (channel, sums) in sums.chunks_exact(self.products).enumerate() {
                held[channel..].iter_mut().step_by(pitch).zip(sums).for_each(|(held, &sum)| *held = sum);
            }
        }
    }

    fn transpose_out(&self, held: &Floats, sums: &mut [f32]) {
        let (lanes, _) = self.transposed();
        let pitch = lanes.next_multiple_of(self.loops.lanes);
        let held = held.as_slice().chunks_exact(self.products * pitch);
        for (held, sums) in held.zip(sums.chunks_exact_mut(self.products * lanes)) {
            for (channel, sums) in sums.chunks_exact_mut(self.products).enumerate() {
                sums.iter_mut().zip(held[channel..].iter().step_by(pitch)).for_each(|(sum, &held)| *sum = held);
            }
        }
    }

    /// From one picture, row, column of outputs to the next, in the source.
    fn source_pitches(&self, source: &Source<'_>) -> [usize; 3] {
        [source.picture_pitch, self.layout.pitch * self.stride[0], self.layout.map[2] * self.stride[1]]
    }

    fn by_kernel(
        &self,
        panels: &[Vec<Panel>],
        counts: [usize; 3],
        source: &Source<'_>,
        gradient: &Gradient<'_>,
        sums: &mut [f32],
        [vectors, scalars]: [&mut Floats; 2],
    ) {
        let lanes = self.loops.lanes;
        let pixels = counts.iter().product::<usize>();
        // Gathering costs as much as few uses.
        let n_panels: usize = panels.iter().map(Vec::len).sum();
        let gathers_gradient = gradient.pitches[2] >= FAR && n_panels >= USES && pixels >= PIXELS / 4;
        let source_pitches = self.source_pitches(source);
        for group in 0..self.groups {
            let mut product = 0;
            let channels = &gradient.values[group * self.group_out..];
            // For tiles of so many channels the gradients lie gathered.
            let mut gathered = 0;
            for (run, panels) in self.runs.iter().zip(panels) {
                for panel in panels {
                    let most = self.loops.tiles[panel.vectors - 1];
                    let first = panel.first * lanes;
                    let from = &source.values[group * self.group_in + run.offset + first..];
                    let n_tiles = self.group_out.div_ceil(most);
                    let gathers_source = source_pitches[2] >= FAR && n_tiles >= USES && pixels >= PIXELS / 4;
                    let (from, vector_pitches) = if gathers_source {
                        let width = panel.vectors * lanes;
                        gather(vectors.room(pixels * width), from, counts, source_pitches, width);
                        (vectors.as_slice(), [counts[1] * counts[2] * width, counts[2] * width, width])
                    } else {
                        (from, source_pitches)
                    };
                    if gathers_gradient && gathered != most {
                        gathered = most;
                        let room = scalars.room(pixels * self.group_out);
                        for tile in even_parts(self.group_out, most) {
                            let to = &mut room[tile.start * pixels..tile.end * pixels];
                            gather(to, &channels[tile.start..], counts, gradient.pitches, tile.len());
                        }
                    }
                    for tile in even_parts(self.group_out, most) {
                        let width = tile.len();
                        let (numbers, scalar_pitches) = if gathers_gradient {
                            let numbers = &scalars.as_slice()[tile.start * pixels..];
                            (numbers, [counts[1] * counts[2] * width, counts[2] * width, width])
                        } else {
                            (&channels[tile.start..], gradient.pitches)
                        };
                        let channel = group * self.group_out + tile.start;
                        let kernel = (self.loops.sweep)(width, panel.vectors);
                        let job = Sweep {
                            vectors: from.as_ptr(),
                            scalars: numbers.as_ptr(),
                            counts,
                            vector_pitches,
                            scalar_pitches,
                            target: sums[channel * self.products + product + first..].as_mut_ptr(),
                            target_pitch: self.products,
                            lanes: panel.channels,
                        };
                        // SAFETY: the loops are of an available instruction set. The source has every pixel's run, and
                        // where runs do not fill vectors it is a copy with room behind it; the gradient has every
                        // pixel's channels; so have both when gathered. The sums of these channels and this run lie at
                        // the pitch of a channel.
                        unsafe { kernel(&job) };
                    }
                }
                product += run.length;
            }
        }
    }

    fn by_output(
        &self,
        panels: &[Panel],
        counts: [usize; 3],
        source: &Source<'_>,
        gradient: &Gradient<'_>,
        held: &mut [f32],
    ) {
        let pitch = self.group_out.next_multiple_of(self.loops.lanes);
        for group in 0..self.groups {
            let mut product = group * self.products;
            for run in &self.runs {
                for panel in panels {
                    let first = panel.first * self.loops.lanes;
                    for tile in even_parts(run.length, self.loops.tiles[panel.vectors - 1]) {
                        let kernel = (self.loops.sweep)(tile.len(), panel.vectors);
                        let job = Sweep {
                            vectors: gradient.values[group * pitch + first..].as_ptr(),
                            scalars: source.values[group * self.group_in + run.offset + tile.start..].as_ptr(),
                            counts,
                            vector_pitches: gradient.pitches,
                            scalar_pitches: self.source_pitches(source),
                            target: held[(product + tile.start) * pitch + first..].as_mut_ptr(),
                            target_pitch: pitch,
                            lanes: panel.vectors * self.loops.lanes,
                        };
                        // SAFETY: the loops are of an available instruction set. Gradients of a group and transposed
                        // sums are filled up to whole vectors; the source has every pixel's run.
                        unsafe { kernel(&job) };
                    }
                }
                product += run.length;
            }
        }
    }

    fn by_depth(&self, counts: [usize; 3], source: &Source<'_>, gradient: &Gradient<'_>, held: &mut [f32]) {
        let lanes = self.loops.lanes;
        let pitch = self.groups.next_multiple_of(lanes);
        // A run of a depthwise kernel is a tap, or several when there is one channel only, which is no group.
        let taps: Vec<usize> = self.runs.iter().map(|run| run.offset).collect();
        for channel in (0..self.groups).step_by(lanes) {
            for part in even_parts(taps.len(), TAPS) {
                let kernel = (self.loops.depth_sweep)(part.len());
                let job = DepthSweep {
                    source: source.values[channel..].as_ptr(),
                    gradient: gradient.values[channel..].as_ptr(),
                    counts,
                    source_pitches: self.source_pitches(source),
                    gradient_pitches: gradient.pitches,
                    target: held[part.start * pitch + channel..].as_mut_ptr(),
                    taps: &taps[part],
                    target_pitch: pitch,
                    channels: (self.groups - channel).min(lanes),
                };
                // SAFETY: the loops are of an available instruction set. Source and gradient have these channels of
                // every pixel, the sums whole vectors of every tap.
                unsafe { kernel(&job) };
            }
        }
    }
}

/// Copies `width` numbers of every pixel side by side, pixels in order.
fn gather(to: &mut [f32], from: &[f32], [pictures, rows, columns]: [usize; 3], pitches: [usize; 3], width: usize) {
    let mut to = to.chunks_exact_mut(width);
    for picture in 0..pictures {
        for row in 0..rows {
            let line = &from[picture * pitches[0] + row * pitches[1]..];
            for (column, to) in (0..columns).zip(&mut to) {
                to.copy_from_slice(&line[column * pitches[2]..][..width]);
            }
        }
    }
}

/// Output gradients of a chunk.
struct Gradient<'a> {
    values: &'a [f32],
    /// From one picture, row, column to the next.
    pitches: [usize; 3],
}

impl<'a> Gradient<'a> {
    /// Each group's channels filled up to whole vectors.
    fn filled(self, room: &'a mut Floats, sums: &Sums, [pictures, rows, columns]: [usize; 3]) -> Self {
        let (channels, lanes) = (sums.group_out, sums.loops.lanes);
        let pitch = channels.next_multiple_of(lanes);
        let pixel = sums.groups * pitch;
        let room = room.room(pictures * rows * columns * pixel);
        let rows_of = room.chunks_exact_mut(columns * pixel).enumerate().take(pictures * rows);
        for (row, to) in rows_of {
            let from = &self.values[row / rows * self.pitches[0] + row % rows * self.pitches[1]..];
            for (from, to) in
                from[..columns * sums.groups * channels].chunks_exact(channels).zip(to.chunks_exact_mut(pitch))
            {
                to[..channels].copy_from_slice(from);
                to[channels..].fill(0.0);
            }
        }
        Self { values: room, pitches: [rows * columns * pixel, columns * pixel, pixel] }
    }
}
