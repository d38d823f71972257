//! The specification: plain loops over the formula of the crate's header.

use crate::geometry::ConvGeometry;

/// One accumulator of a convolution: `weights` is the output channel's row, `picture` one NHWC picture.
pub(crate) fn accumulator(
    geometry: &ConvGeometry,
    zero_point: u8,
    picture: &[u8],
    weights: &[i8],
    bias: i32,
    [row, column, channel]: [usize; 3],
) -> i32 {
    let channels = geometry.in_channels / geometry.groups;
    let group = channel / (geometry.out_channels / geometry.groups);
    let mut sum = bias;
    for tap_row in 0..geometry.kernel[0] {
        let Some(y) = tap(geometry, 0, row, tap_row) else { continue };
        for tap_column in 0..geometry.kernel[1] {
            let Some(x) = tap(geometry, 1, column, tap_column) else { continue };
            let pixel = (y * geometry.input[1] + x) * geometry.in_channels + group * channels;
            let first = (tap_row * geometry.kernel[1] + tap_column) * channels;
            for (&activation, &weight) in picture[pixel..][..channels].iter().zip(&weights[first..][..channels]) {
                let product = (i32::from(activation) - i32::from(zero_point)) * i32::from(weight);
                sum = sum.wrapping_add(product);
            }
        }
    }
    sum
}

/// Where tap `tap` of output `position` reads along `axis`; `None` on padding.
pub(crate) fn tap(geometry: &ConvGeometry, axis: usize, position: usize, tap: usize) -> Option<usize> {
    let padded = position * geometry.stride[axis] + tap * geometry.dilation[axis];
    padded.checked_sub(geometry.pads[axis]).filter(|&at| at < geometry.input[axis])
}
