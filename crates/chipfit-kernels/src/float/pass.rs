//! A pass with weights: forward, or the gradient of the input.
//!
//! Both are dense convolutions of a source map into places of a target map ([`Axis`]): the forward pass is one, the
//! input gradient one for each phase of the stride. Weights are packed per area in panels of `Q` vectors of target
//! channels: `[group][panel][element of the chain][Q vectors]`.
//!
//! Work goes in chunks whose source and target fit the second-level cache, a panel's weights in pieces that fit the
//! first; between the pieces the chains rest in the target.

use std::ops::Range;

use super::axis::{Axis, Part};
use super::loops::{Block, DEPTH, Depth, Loops, Run, Start};
use super::scratch::{FloatScratch, Floats, Pixel};
use super::source::Layout;
use crate::geometry::ConvGeometry;

/// Numbers of a chunk's source and target together: at least, and at most, where a chunk has to pay for the weights'
/// way from the third-level cache.
const CHUNK: [usize; 2] = [128 << 10, 256 << 10];
/// Numbers of a piece of a panel's weights.
const PIECE: usize = 8 << 10;

/// What a pass computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Forward,
    InputGradient,
}

/// A pass, with its weights packed.
#[derive(Clone, Debug)]
pub(super) struct Pass {
    loops: Loops,
    direction: Direction,
    rows: Axis,
    columns: Axis,
    layout: Layout,
    /// Rows, columns and channels of a target map.
    target: [usize; 3],
    groups: usize,
    /// Source channels of a group. With one, and one target channel, the pass is depthwise.
    group_source: usize,
    group_target: usize,
    areas: Vec<Area>,
    panels: Vec<Panel>,
    weights: Floats,
}

/// Targets of one part of the rows and one of the columns.
#[derive(Clone, Debug)]
struct Area {
    row: usize,
    column: usize,
    /// Where its weights start.
    weights: usize,
    /// Elements of a chain.
    links: usize,
    /// Pieces of the chain for panels of 1, 2, ... vectors.
    pieces: Vec<Vec<Vec<Run>>>,
    /// Depthwise: offset of every tap.
    taps: Vec<usize>,
}

/// Target channels of a group that are computed together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Panel {
    /// Vectors before it.
    pub(super) first: usize,
    pub(super) vectors: usize,
    /// Channels, the last vector perhaps not filled.
    pub(super) channels: usize,
}

/// Divides channels into panels, as few as possible.
pub(super) fn panels(channels: usize, lanes: usize, most: usize) -> Vec<Panel> {
    let vectors = channels.div_ceil(lanes);
    let n = vectors.div_ceil(most);
    let start = |index: usize| index * vectors / n;
    let panel = |index: usize| {
        let (first, end) = (start(index), start(index + 1));
        Panel { first, vectors: end - first, channels: (end * lanes).min(channels) - first * lanes }
    };
    (0..n).map(panel).collect()
}

/// Divides `n` into parts of at most `most`, as even as possible.
pub(super) fn even_parts(n: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    let parts = n.div_ceil(most.max(1));
    (0..parts).map(move |part| part * n / parts..(part + 1) * n / parts)
}

/// The numbers of a call.
pub(super) struct Call<'a> {
    pub(super) pictures: usize,
    pub(super) source: &'a [f32],
    pub(super) bias: Option<&'a [f32]>,
    pub(super) target: &'a mut [f32],
}

impl Pass {
    /// Weights are zero.
    pub(super) fn new(loops: Loops, geometry: &ConvGeometry, output: [usize; 2], direction: Direction) -> Self {
        let g = geometry;
        let input = [g.input[0], g.input[1], g.in_channels];
        let output_map = [output[0], output[1], g.out_channels];
        let (axis, source, target): (fn(&ConvGeometry, usize, usize) -> Axis, _, _) = match direction {
            Direction::Forward => (Axis::forward, input, output_map),
            Direction::InputGradient => (Axis::gradient, output_map, input),
        };
        let [rows, columns] = [axis(g, 0, output[0]), axis(g, 1, output[1])];
        let mut pass = Self {
            loops,
            direction,
            layout: Layout::new(source, &rows, &columns, false),
            rows,
            columns,
            target,
            groups: g.groups,
            group_source: source[2] / g.groups,
            group_target: target[2] / g.groups,
            areas: Vec::new(),
            panels: panels(target[2] / g.groups, loops.lanes, loops.tiles.len()),
            weights: Floats::default(),
        };
        let mut n_weights = 0;
        for row in 0..pass.rows.parts.len() {
            for column in 0..pass.columns.parts.len() {
                let area = pass.area(row, column, n_weights);
                n_weights += pass.weights_of(area.links);
                pass.areas.push(area);
            }
        }
        pass.weights = Floats::zeros(n_weights);
        pass
    }

    fn is_depthwise(&self) -> bool {
        self.group_source == 1 && self.group_target == 1 && self.groups > 1
    }

    /// Numbers that an area's packed weights take.
    fn weights_of(&self, links: usize) -> usize {
        let lanes = self.loops.lanes;
        if self.is_depthwise() {
            links * self.groups.next_multiple_of(lanes)
        } else {
            self.groups * links * self.group_target.next_multiple_of(lanes)
        }
    }

    fn area(&self, row: usize, column: usize, weights: usize) -> Area {
        let (row_taps, column_taps) = (&self.rows.parts[row].taps, &self.columns.parts[column].taps);
        let offsets = row_taps.iter().flat_map(|row| column_taps.iter().map(|column| [row.offset, column.offset]));
        let taps: Vec<usize> = offsets.map(|offset| self.layout.offset(&self.rows, &self.columns, offset)).collect();
        let mut runs: Vec<Run> = Vec::new();
        for &offset in &taps {
            match runs.last_mut() {
                Some(run) if run.offset + run.length == offset => run.length += self.group_source,
                _ => runs.push(Run { offset, length: self.group_source }),
            }
        }
        let links = taps.len() * self.group_source;
        let pieces = (1..=self.loops.tiles.len()).map(|vectors| {
            even_parts(links, PIECE / (vectors * self.loops.lanes)).map(|piece| cut(&runs, piece)).collect()
        });
        Area { row, column, weights, links, pieces: pieces.collect(), taps }
    }

    /// Packs weights of the order `[out][kernel row][kernel column][in of the group]`.
    pub(super) fn load(&mut self, geometry: &ConvGeometry, weights: &[f32]) {
        let lanes = self.loops.lanes;
        let products = geometry.products();
        let group_in = geometry.in_channels / geometry.groups;
        let depthwise = self.is_depthwise();
        let packed = self.weights.as_mut_slice();
        for area in &self.areas {
            let (row_taps, column_taps) = (&self.rows.parts[area.row].taps, &self.columns.parts[area.column].taps);
            let kernel_taps = row_taps
                .iter()
                .flat_map(|row| column_taps.iter().map(|column| row.kernel * geometry.kernel[1] + column.kernel));
            if depthwise {
                let pitch = self.groups.next_multiple_of(lanes);
                for (tap, to) in kernel_taps.zip(packed[area.weights..].chunks_exact_mut(pitch)) {
                    to.iter_mut().zip(weights[tap..].iter().step_by(products)).for_each(|(to, &weight)| *to = weight);
                }
                continue;
            }
            let group_vectors = self.group_target.div_ceil(lanes);
            for group in 0..self.groups {
                for panel in &self.panels {
                    let start = area.weights + (group * group_vectors + panel.first) * area.links * lanes;
                    let width = panel.vectors * lanes;
                    let first = group * self.group_target + panel.first * lanes;
                    let steps = kernel_taps.clone().zip(packed[start..].chunks_mut(self.group_source * width));
                    for (tap, to) in steps {
                        match self.direction {
                            Direction::Forward => {
                                // Blocks of a line of each channel's weights, so that both sides stay in the cache.
                                for from in (0..group_in).step_by(16) {
                                    let n = (group_in - from).min(16);
                                    for channel in 0..panel.channels {
                                        let row = &weights[(first + channel) * products + tap * group_in + from..][..n];
                                        let to = to[from * width + channel..].iter_mut().step_by(width);
                                        to.zip(row).for_each(|(to, &weight)| *to = weight);
                                    }
                                }
                            }
                            Direction::InputGradient => {
                                let within = panel.first * lanes;
                                for (out, to) in to.chunks_exact_mut(width).enumerate() {
                                    let channel = group * self.group_source + out;
                                    let from = &weights[channel * products + tap * group_in + within..];
                                    to[..panel.channels].copy_from_slice(&from[..panel.channels]);
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    /// Runs the pass; lengths have been checked.
    pub(super) fn run(&self, scratch: &mut FloatScratch, call: &mut Call<'_>) {
        let FloatScratch { source: copy, sums, pixels, .. } = scratch;
        let bias = call.bias.map(|bias| self.padded_bias(sums, bias));
        let [height, width, channels] = self.target;
        let picture = height * width * channels;
        let steps = self.rows.count();
        let of_rows = |rows: usize| self.layout.elements(1, self.rows.sources(0..rows).1) + rows * picture / steps;
        let most = (self.weights.as_slice().len() / 8).clamp(CHUNK[0], CHUNK[1]);
        let pictures_at_once = (most / of_rows(steps).max(1)).max(1);
        let rows_at_once = if of_rows(steps) <= most { steps } else { (most / of_rows(1).max(1)).max(1) };
        for chunk in even_parts(call.pictures, pictures_at_once) {
            for rows in even_parts(steps, rows_at_once) {
                let source = self.layout.source(copy, &self.rows, call.source, chunk.clone(), rows.clone());
                let target = &mut call.target[chunk.start * picture..chunk.end * picture];
                if self.areas.iter().any(|area| area.links == 0) {
                    let lines = rows.start * self.rows.parts[0].step..(rows.end * self.rows.parts[0].step).min(height);
                    for target in target.chunks_exact_mut(picture) {
                        target[lines.start * width * channels..lines.end * width * channels].fill(0.0);
                    }
                }
                for area in &self.areas {
                    let (row_part, column_part) = (&self.rows.parts[area.row], &self.columns.parts[area.column]);
                    let places = Places {
                        rows: row_part,
                        columns: column_part,
                        row_range: rows.start.min(row_part.count)..rows.end.min(row_part.count),
                        source: [source.picture_pitch, self.layout.pitch, self.layout.map[2]],
                        target: [picture, width * channels, channels],
                    };
                    if area.links == 0 {
                        continue;
                    }
                    places.collect(chunk.len(), pixels);
                    if self.is_depthwise() {
                        self.depth_area(area, source.values, pixels, bias, target);
                    } else {
                        self.area_of_chunk(area, source.values, pixels, bias, target);
                    }
                }
            }
        }
    }

    /// Biases with each group filled up to whole vectors.
    fn padded_bias<'a>(&self, room: &'a mut Floats, bias: &[f32]) -> &'a [f32] {
        let channels = if self.is_depthwise() { self.groups } else { self.group_target };
        let pitch = channels.next_multiple_of(self.loops.lanes);
        let room = room.room(bias.len() / channels * pitch);
        for (to, from) in room.chunks_exact_mut(pitch).zip(bias.chunks_exact(channels)) {
            to[..channels].copy_from_slice(from);
        }
        room
    }

    fn area_of_chunk(&self, area: &Area, source: &[f32], pixels: &[Pixel], bias: Option<&[f32]>, target: &mut [f32]) {
        let lanes = self.loops.lanes;
        let group_vectors = self.group_target.div_ceil(lanes);
        for group in 0..self.groups {
            for panel in &self.panels {
                let vector = group * group_vectors + panel.first;
                let mut weights = self.weights.as_slice()[area.weights + vector * area.links * lanes..].as_ptr();
                let mut start = bias.map_or(Start::Zero, |bias| Start::Bias(bias[vector * lanes..].as_ptr()));
                for runs in &area.pieces[panel.vectors - 1] {
                    for tile in even_parts(pixels.len(), self.loops.tiles[panel.vectors - 1]) {
                        let kernel = (self.loops.block)(tile.len(), panel.vectors);
                        let job = Block {
                            source: source[group * self.group_source..].as_ptr(),
                            target: target[group * self.group_target + panel.first * lanes..].as_mut_ptr(),
                            pixels: &pixels[tile],
                            runs,
                            weights,
                            start,
                            channels: panel.channels,
                        };
                        // SAFETY: the loops are of an available instruction set. Pixels lie in the target, which has
                        // every picture of the chunk; the runs from their sources on lie in the source, which has what
                        // the axes say; weights were packed for these runs and this panel.
                        unsafe { kernel(&job) };
                    }
                    let links: usize = runs.iter().map(|run| run.length).sum();
                    weights = weights.wrapping_add(links * panel.vectors * lanes);
                    start = Start::Held;
                }
            }
        }
    }

    fn depth_area(&self, area: &Area, source: &[f32], pixels: &[Pixel], bias: Option<&[f32]>, target: &mut [f32]) {
        for tile in even_parts(pixels.len(), DEPTH) {
            let kernel = (self.loops.depth)(tile.len());
            let job = Depth {
                source: source.as_ptr(),
                target: target.as_mut_ptr(),
                pixels: &pixels[tile],
                taps: &area.taps,
                weights: self.weights.as_slice()[area.weights..].as_ptr(),
                weight_pitch: self.groups.next_multiple_of(self.loops.lanes),
                start: bias.map_or(Start::Zero, |bias| Start::Bias(bias.as_ptr())),
                channels: self.groups,
            };
            // SAFETY: as above, with whole pixels instead of runs.
            unsafe { kernel(&job) };
        }
    }
}

/// The targets of an area within a chunk.
struct Places<'a> {
    rows: &'a Part,
    columns: &'a Part,
    /// Steps of the rows' part.
    row_range: Range<usize>,
    /// From one picture, row, column to the next.
    source: [usize; 3],
    target: [usize; 3],
}

impl Places<'_> {
    /// Every pixel of so many pictures, in order.
    fn collect(&self, pictures: usize, pixels: &mut Vec<Pixel>) {
        let (rows, columns) = (self.rows, self.columns);
        let n_rows = self.row_range.len();
        pixels.resize(pictures * n_rows * columns.count, Pixel::default());
        let source_step = columns.source_step * self.source[2];
        let target_step = columns.step * self.target[2];
        for (index, line) in pixels.chunks_exact_mut(columns.count).enumerate() {
            let (picture, row) = (index / n_rows, index % n_rows);
            let target_row = rows.first + (self.row_range.start + row) * rows.step;
            let mut at = Pixel {
                source: picture * self.source[0] + row * rows.source_step * self.source[1],
                target: picture * self.target[0] + target_row * self.target[1] + columns.first * self.target[2],
            };
            for pixel in line {
                *pixel = at;
                at.source += source_step;
                at.target += target_step;
            }
        }
    }
}

/// The elements `piece` of a chain.
fn cut(runs: &[Run], piece: Range<usize>) -> Vec<Run> {
    let mut before = 0;
    let mut cut = Vec::new();
    for run in runs {
        let (start, end) = (piece.start.max(before), piece.end.min(before + run.length));
        if start < end {
            cut.push(Run { offset: run.offset + start - before, length: end - start });
        }
        before += run.length;
    }
    cut
}
