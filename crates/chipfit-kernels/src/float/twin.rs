//! The specification: plain loops, one chain of fused multiply-adds per result.
//!
//! A tap on padding, or a gradient beyond the output map, is a factor of +0.0 and takes part in its chain: that changes
//! a sum only from -0.0 to +0.0.

use crate::geometry::ConvGeometry;
use crate::scalar::tap;

/// Rows, columns and channels of one NHWC picture.
struct Map<'a> {
    columns: usize,
    channels: usize,
    values: &'a [f32],
}

impl Map<'_> {
    /// The value at a place, or +0.0 where there is no such place.
    fn at(&self, place: Option<[usize; 2]>, channel: usize) -> f32 {
        let index = |[row, column]: [usize; 2]| (row * self.columns + column) * self.channels + channel;
        place.map_or(0.0, |place| self.values[index(place)])
    }
}

fn maps<'a>(values: &'a [f32], [rows, columns]: [usize; 2], channels: usize) -> impl Iterator<Item = Map<'a>> {
    values.chunks_exact(rows * columns * channels).map(move |values| Map { columns, channels, values })
}

/// `output[row, column, o] = bias[o] + sum over kernel row, kernel column, in channel of input * weight`, in this order.
pub(crate) fn forward(
    geometry: &ConvGeometry,
    weights: &[f32],
    input: &[f32],
    bias: Option<&[f32]>,
    output: &mut [f32],
) {
    let g = geometry;
    let [rows, columns] = g.output();
    let channels = g.in_channels / g.groups;
    let pictures = output.chunks_exact_mut(rows * columns * g.out_channels);
    for (map, output) in maps(input, g.input, g.in_channels).zip(pictures) {
        for (index, output) in output.iter_mut().enumerate() {
            let (pixel, channel) = (index / g.out_channels, index % g.out_channels);
            let first = channel / (g.out_channels / g.groups) * channels;
            let mut weights = weights[channel * g.products()..].iter();
            let mut sum = bias.map_or(0.0, |bias| bias[channel]);
            for [tap_row, tap_column] in places(g.kernel) {
                let row = tap(g, 0, pixel / columns, tap_row);
                let column = tap(g, 1, pixel % columns, tap_column);
                let place = row.zip(column).map(|(row, column)| [row, column]);
                for (channel, &weight) in (first..first + channels).zip(weights.by_ref()) {
                    sum = map.at(place, channel).mul_add(weight, sum);
                }
            }
            *output = sum;
        }
    }
}

/// `input_gradient[y, x, i] = sum over kernel row and column, last to first, out channel of output_gradient * weight`:
/// the taps through which the input reached an output, in the order of those outputs.
pub(crate) fn input_gradient(
    geometry: &ConvGeometry,
    weights: &[f32],
    output_gradient: &[f32],
    input_gradient: &mut [f32],
) {
    let g = geometry;
    let output = g.output();
    let [group_in, group_out] = [g.in_channels / g.groups, g.out_channels / g.groups];
    let pictures = input_gradient.chunks_exact_mut(g.input[0] * g.input[1] * g.in_channels);
    for (map, gradient) in maps(output_gradient, output, g.out_channels).zip(pictures) {
        for (index, gradient) in gradient.iter_mut().enumerate() {
            let (pixel, channel) = (index / g.in_channels, index % g.in_channels);
            let (group, within) = (channel / group_in, channel % group_in);
            let mut sum = 0.0;
            for tap_row in (0..g.kernel[0]).rev() {
                let Reach::Phase(row) = reach(g, 0, pixel / g.input[1], tap_row, output[0]) else { continue };
                for tap_column in (0..g.kernel[1]).rev() {
                    let Reach::Phase(column) = reach(g, 1, pixel % g.input[1], tap_column, output[1]) else { continue };
                    let place = row.zip(column).map(|(row, column)| [row, column]);
                    let tap = (tap_row * g.kernel[1] + tap_column) * group_in + within;
                    for channel in group * group_out..(group + 1) * group_out {
                        sum = map.at(place, channel).mul_add(weights[channel * g.products() + tap], sum);
                    }
                }
            }
            *gradient = sum;
        }
    }
}

/// Which output an input position reached through a tap, along one axis.
enum Reach {
    /// None: the stride steps over it.
    Skipped,
    /// One in the stride's phase; `None` beyond the map.
    Phase(Option<usize>),
}

fn reach(geometry: &ConvGeometry, axis: usize, position: usize, tap: usize, outputs: usize) -> Reach {
    let (padded, back) = (position + geometry.pads[axis], tap * geometry.dilation[axis]);
    if padded.abs_diff(back) % geometry.stride[axis] != 0 {
        return Reach::Skipped;
    }
    let output = padded.checked_sub(back).map(|distance| distance / geometry.stride[axis]);
    Reach::Phase(output.filter(|&output| output < outputs))
}

/// `weight_gradient[o, kernel row, kernel column, i] += sum over picture, output row, output column of
/// input * output_gradient`: the chain goes on from the value held.
pub(crate) fn weight_gradient(
    geometry: &ConvGeometry,
    input: &[f32],
    output_gradient: &[f32],
    weight_gradient: &mut [f32],
) {
    let g = geometry;
    let output = g.output();
    let [group_in, group_out] = [g.in_channels / g.groups, g.out_channels / g.groups];
    for (index, sum) in weight_gradient.iter_mut().enumerate() {
        let (channel, product) = (index / g.products(), index % g.products());
        let (position, within) = (product / group_in, product % group_in);
        let from = channel / group_out * group_in + within;
        for (map, gradient) in maps(input, g.input, g.in_channels).zip(maps(output_gradient, output, g.out_channels)) {
            for [row, column] in places(output) {
                let read = [tap(g, 0, row, position / g.kernel[1]), tap(g, 1, column, position % g.kernel[1])];
                let place = read[0].zip(read[1]).map(|(row, column)| [row, column]);
                *sum = map.at(place, from).mul_add(gradient.at(Some([row, column]), channel), *sum);
            }
        }
    }
}

/// Every place of a map, row by row.
fn places([rows, columns]: [usize; 2]) -> impl Iterator<Item = [usize; 2]> {
    (0..rows).flat_map(move |row| (0..columns).map(move |column| [row, column]))
}
