//! Maxima and means over windows, forward and backward, on maps of `[rows, columns, channels]`.
//!
//! The first of equal maxima wins, as in PyTorch; padding never does. Each function takes one picture.

use super::graph::{Divisor, Extent, Window};

/// Visits the outputs in order: `visit(position of the output pixel, rows, columns)` with the covered input.
fn windows(from: Extent, to: Extent, window: &Window, mut visit: impl FnMut(usize, [std::ops::Range<usize>; 2])) {
    for row in 0..to.height {
        for column in 0..to.width {
            let covered = [window.covered(0, row, from.height), window.covered(1, column, from.width)];
            visit(row * to.width + column, covered);
        }
    }
}

/// Maxima, and in `winners` the input pixel that each came from.
pub(super) fn max_forward(
    (from, to): (Extent, Extent),
    window: &Window,
    x: &[f32],
    y: &mut [f32],
    winners: &mut [u32],
) {
    let channels = from.channels;
    windows(from, to, window, |at, [rows, columns]| {
        let span = at * channels..(at + 1) * channels;
        let (Some(y), Some(winners)) = (y.get_mut(span.clone()), winners.get_mut(span)) else { return };
        let mut is_first = true;
        for row in rows {
            for column in columns.clone() {
                let pixel = row * from.width + column;
                let Some(x) = x.get(pixel * channels..(pixel + 1) * channels) else { continue };
                let number = u32::try_from(pixel).unwrap_or(u32::MAX);
                for ((y, winner), &x) in y.iter_mut().zip(winners.iter_mut()).zip(x) {
                    if is_first || x > *y {
                        (*y, *winner) = (x, number);
                    }
                }
                is_first = false;
            }
        }
    });
}

/// Gives each winner the gradient of its output.
pub(super) fn max_backward(channels: usize, winners: &[u32], gradient: &[f32], x_gradient: &mut [f32]) {
    x_gradient.fill(0.0);
    for (at, (&winner, &gradient)) in winners.iter().zip(gradient).enumerate() {
        // A winner came from a usize.
        if let Some(target) = x_gradient.get_mut(winner as usize * channels + at % channels) {
            *target += gradient;
        }
    }
}

/// `1 / count` of a window.
fn share(window: &Window, divisor: Divisor, [rows, columns]: &[std::ops::Range<usize>; 2]) -> f32 {
    let count = match divisor {
        Divisor::Kernel => window.kernel.iter().product::<usize>(),
        Divisor::Inside => rows.len() * columns.len(),
    };
    1.0 / count.max(1) as f32
}

/// Means.
pub(super) fn average_forward(
    (from, to): (Extent, Extent),
    (window, divisor): (&Window, Divisor),
    x: &[f32],
    y: &mut [f32],
) {
    let channels = from.channels;
    windows(from, to, window, |at, covered| {
        let share = share(window, divisor, &covered);
        let Some(y) = y.get_mut(at * channels..(at + 1) * channels) else { return };
        y.fill(0.0);
        let [rows, columns] = covered;
        for row in rows {
            for column in columns.clone() {
                let pixel = row * from.width + column;
                let Some(x) = x.get(pixel * channels..(pixel + 1) * channels) else { continue };
                y.iter_mut().zip(x).for_each(|(y, x)| *y += x);
            }
        }
        y.iter_mut().for_each(|y| *y *= share);
    });
}

/// Gives each input of a window its share of the output's gradient.
pub(super) fn average_backward(
    (from, to): (Extent, Extent),
    (window, divisor): (&Window, Divisor),
    gradient: &[f32],
    x_gradient: &mut [f32],
) {
    let channels = from.channels;
    x_gradient.fill(0.0);
    windows(from, to, window, |at, covered| {
        let share = share(window, divisor, &covered);
        let Some(gradient) = gradient.get(at * channels..(at + 1) * channels) else { return };
        let [rows, columns] = covered;
        for row in rows {
            for column in columns.clone() {
                let pixel = row * from.width + column;
                let Some(target) = x_gradient.get_mut(pixel * channels..(pixel + 1) * channels) else { continue };
                target.iter_mut().zip(gradient).for_each(|(target, gradient)| *target += gradient * share);
            }
        }
    });
}
