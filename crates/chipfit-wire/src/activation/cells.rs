//! The cells of a layer: what the device computes for every byte, and the naive twin.

use super::field::{Turn, divide_by_alpha, reduction, times_alpha, times_to_divide};
use super::graph::{DEGREE_MAX, Dealer, Geometry, Place};

/// Turns the row, then adds the column, itself turned by `shift` places. Both have the lane's length.
fn add_turned(row: &mut [u8], column: &[u8], shift: usize, turn: Turn, reduction: u8) {
    match turn {
        Turn::Times => add_after(row, column, shift, |sum| times_alpha(sum, reduction)),
        Turn::Divide => add_after(row, column, shift, |sum| divide_by_alpha(sum, reduction)),
        Turn::Keep => add_after(row, column, shift, |sum| sum),
    }
}

#[inline]
fn add_after(row: &mut [u8], column: &[u8], shift: usize, turn: impl Fn(u8) -> u8) {
    let (wrapped, straight) = row.split_at_mut(shift);
    let (head, tail) = column.split_at(straight.len());
    for (sum, &byte) in straight.iter_mut().zip(head) {
        *sum = turn(*sum) ^ byte;
    }
    for (sum, &byte) in wrapped.iter_mut().zip(tail) {
        *sum = turn(*sum) ^ byte;
    }
}

const ONES: u128 = u128::from_le_bytes([1; 16]);

/// [`add_turned`] for a lane of 16 cells, in one word.
fn add_turned_16(row: &mut [u8; 16], column: u128, shift: u32, turn: Turn, reduction: u8) {
    let sum = u128::from_le_bytes(*row);
    let turned = match turn {
        Turn::Times => {
            let high = sum >> 7 & ONES;
            ((sum ^ (high << 7)) << 1) ^ (high * u128::from(reduction))
        }
        Turn::Divide => {
            let low = sum & ONES;
            ((sum ^ low) >> 1) ^ (low * u128::from(times_to_divide(reduction)))
        }
        Turn::Keep => sum,
    };
    // Byte l goes to place l + shift: little-endian, so to the left.
    *row = (turned ^ column.rotate_left(8 * shift)).to_le_bytes();
}

/// The cells of `bytes`: row after row, a wide row's bytes as rows of their own. `bytes` must have the length that `geometry` was made for.
pub(super) fn cells(geometry: Geometry, key: u64, bytes: &[u8]) -> Vec<u8> {
    let lane = geometry.lane();
    let width = geometry.width();
    let mut cells = vec![0; geometry.sketch_bytes()];
    let mut dealer = Dealer::new(geometry, key);
    let mut places = [Place { row: 0, shift: 0 }; DEGREE_MAX];
    let mut add = |cells: &mut [u8], column: &[u8]| {
        dealer.deal(&mut places);
        let places = &places[..geometry.degree()];
        if let Ok(column) = <[u8; 16]>::try_from(column) {
            let column = u128::from_le_bytes(column);
            let (rows, _) = cells.as_chunks_mut::<16>();
            for place in places {
                let first = place.row as usize * width;
                for (number, row) in rows[first..first + width].iter_mut().enumerate() {
                    add_turned_16(row, column, place.shift, Turn::of(number), reduction(place.row as usize));
                }
            }
        } else {
            for place in places {
                let first = place.row as usize * width;
                let rows = &mut cells[first * lane..(first + width) * lane];
                for (number, row) in rows.chunks_exact_mut(lane).enumerate() {
                    add_turned(row, column, place.shift as usize, Turn::of(number), reduction(place.row as usize));
                }
            }
        }
    };
    let whole = bytes.chunks_exact(lane);
    let rest = whole.remainder();
    for column in whole {
        add(&mut cells, column);
    }
    if !rest.is_empty() {
        let mut column = vec![0; lane];
        column[..rest.len()].copy_from_slice(rest);
        add(&mut cells, &column);
    }
    cells
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::field::QUOTIENTS;
    use super::super::graph::Graph;
    use super::*;

    /// By the definition: every byte times its factor, added to its cells.
    fn naive(geometry: Geometry, key: u64, bytes: &[u8]) -> Vec<u8> {
        let graph = Graph::new(geometry, key);
        let mut cells = vec![0; geometry.sketch_bytes()];
        for (position, &byte) in bytes.iter().enumerate() {
            let (column, within) = (position / geometry.lane(), position % geometry.lane());
            for edge in &graph.edges[column * geometry.degree()..][..geometry.degree()] {
                for number in 0..geometry.width() {
                    let row = edge.row as usize * geometry.width() + number;
                    let cell = row * geometry.lane() + (within + usize::from(edge.shift)) % geometry.lane();
                    let exponent = Turn::of(number).exponent(edge.exponent);
                    cells[cell] ^= QUOTIENTS.product(edge.row as usize, exponent, byte);
                }
            }
        }
        cells
    }

    proptest! {
        #[test]
        fn equal_the_definition(seed: u64, length in 100usize..9_000, share in 0.02f64..0.6, degree in 2u8..9, width in 1u8..4) {
            let bytes: Vec<u8> = (0..length as u64).map(|i| super::super::graph::mix(seed ^ i) as u8).collect();
            if let Some(geometry) = Geometry::new(length, (length as f64 * share) as u32, degree, width) {
                prop_assert_eq!(cells(geometry, seed, &bytes), naive(geometry, seed, &bytes));
            }
        }
    }

    #[test]
    fn cells_are_linear() {
        let geometry = Geometry::new(5000, 700, 4, 2).unwrap();
        let a: Vec<u8> = (0..5000u64).map(|i| super::super::graph::mix(i) as u8).collect();
        let b: Vec<u8> = (0..5000u64).map(|i| super::super::graph::mix(!i) as u8).collect();
        let sum: Vec<u8> = a.iter().zip(&b).map(|(a, b)| a ^ b).collect();
        let (ca, cb) = (cells(geometry, 3, &a), cells(geometry, 3, &b));
        let expected: Vec<u8> = ca.iter().zip(&cb).map(|(a, b)| a ^ b).collect();
        assert_eq!(cells(geometry, 3, &sum), expected);
    }
}
