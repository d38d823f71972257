//! The cells of a layer: what the device computes for every byte, and the naive twin.

use super::field::{reduction, times_alpha};
use super::graph::{DEGREE_MAX, Dealer, Geometry, Place};

/// `row = alpha * row + column` in the field of `reduction`; both slices have the lane's length.
fn add_column(row: &mut [u8], column: &[u8], reduction: u8) {
    for (sum, &byte) in row.iter_mut().zip(column) {
        *sum = times_alpha(*sum, reduction) ^ byte;
    }
}

/// The cells of `bytes`, row after row. `bytes` must have the length that `geometry` was made for.
pub(super) fn cells(geometry: Geometry, key: u64, bytes: &[u8]) -> Vec<u8> {
    let lane = geometry.lane();
    let mut cells = vec![0; geometry.cells()];
    let mut dealer = Dealer::new(geometry, key);
    let mut places = [Place { row: 0, shift: 0 }; DEGREE_MAX];
    // A column twice in a row: turned by `shift`, it is the slice that begins at `lane - shift`.
    let mut twice = vec![0u8; 2 * lane];
    for column in bytes.chunks(lane) {
        let (once, again) = twice.split_at_mut(lane);
        once[..column.len()].copy_from_slice(column);
        once[column.len()..].fill(0);
        again.copy_from_slice(once);
        dealer.deal(&mut places);
        for place in &places[..geometry.degree()] {
            let (row, start) = (place.row as usize, lane - place.shift as usize);
            add_column(&mut cells[row * lane..(row + 1) * lane], &twice[start..start + lane], reduction(row));
        }
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
        let mut cells = vec![0; geometry.cells()];
        for (position, &byte) in bytes.iter().enumerate() {
            let (column, within) = (position / geometry.lane(), position % geometry.lane());
            for edge in &graph.edges[column * geometry.degree()..][..geometry.degree()] {
                let cell = edge.row as usize * geometry.lane() + (within + usize::from(edge.shift)) % geometry.lane();
                cells[cell] ^= QUOTIENTS.product(edge.row as usize, edge.exponent, byte);
            }
        }
        cells
    }

    proptest! {
        #[test]
        fn equal_the_definition(seed: u64, length in 100usize..9_000, share in 0.02f64..0.6, degree in 2u8..9) {
            let bytes: Vec<u8> = (0..length as u64).map(|i| super::super::graph::mix(seed ^ i) as u8).collect();
            if let Some(geometry) = Geometry::new(length, (length as f64 * share) as u32, degree) {
                prop_assert_eq!(cells(geometry, seed, &bytes), naive(geometry, seed, &bytes));
            }
        }
    }

    #[test]
    fn cells_are_linear() {
        let geometry = Geometry::new(5000, 700, 4).unwrap();
        let a: Vec<u8> = (0..5000u64).map(|i| super::super::graph::mix(i) as u8).collect();
        let b: Vec<u8> = (0..5000u64).map(|i| super::super::graph::mix(!i) as u8).collect();
        let sum: Vec<u8> = a.iter().zip(&b).map(|(a, b)| a ^ b).collect();
        let (ca, cb) = (cells(geometry, 3, &a), cells(geometry, 3, &b));
        let expected: Vec<u8> = ca.iter().zip(&cb).map(|(a, b)| a ^ b).collect();
        assert_eq!(cells(geometry, 3, &sum), expected);
    }
}
