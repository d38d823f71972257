//! Which bytes are summed in which cell, and with which factor.
//!
//! The `M` cells form rows of `lane` cells; the layer's bytes form columns of `lane` bytes (the last one filled with
//! zeros). Every column is added to `degree` different rows, each time turned by another number of places: byte `l` of
//! the column goes to cell `(l + shift) mod lane` of the row. A row is a polynomial in alpha: with each column added, the
//! row so far is multiplied by alpha. So the factor of a row's last column is 1, of the one before alpha, and so on.
//!
//! Rows and shifts are dealt by a counter-based generator from a key: rows as cards from a shuffled deck, so that each
//! row serves nearly the same number of columns.

use super::field::ORDER;

/// Smallest number of rows, and most rows that one column may join.
pub(super) const DEGREE_MAX: usize = 8;
const LANE_MIN: usize = 16;
const LANE_MAX: usize = 4096;
/// Layers of up to this many bytes may have the shortest lane; in longer ones it would cost the device too much.
const LANE_SHORT_BYTES: usize = 16_384;
const ROWS_WANTED: usize = 8;
const WINDOW: usize = 8;
const WINDOWS_WORTH: usize = usize::MAX / WINDOW;

/// A bijection of 64-bit words that mixes all bits (the finaliser of SplitMix64).
pub(super) const fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// Shape of a code: lane, rows, columns and degree, all from the layer's size and the number of cells asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    lane: usize,
    rows: usize,
    columns: usize,
    degree: usize,
    window: usize,
}

impl Geometry {
    /// The code for `bytes` bytes with about `cells` cells, each byte in `degree` (clamped to 2..=8) of them.
    ///
    /// The lane is a power of two from 16 (32 for layers above 16 KiB) to 4096, as long as 8 rows or more remain; the number of rows is rounded up
    /// and at least `degree`. `None` when the cells would be as many as the bytes: then the code is pointless.
    pub fn new(bytes: usize, cells: u32, degree: u8) -> Option<Self> {
        let cells = usize::try_from(cells).ok()?;
        if cells >= bytes {
            return None;
        }
        let degree = usize::from(degree).clamp(2, DEGREE_MAX);
        let mut lane = if bytes > LANE_SHORT_BYTES { 2 * LANE_MIN } else { LANE_MIN };
        while lane < LANE_MAX && lane * 2 * ROWS_WANTED <= cells {
            lane *= 2;
        }
        let rows = cells.div_ceil(lane).max(degree);
        let window = if rows >= WINDOWS_WORTH * WINDOW { WINDOW } else { rows };
        let geometry = Self { lane, rows, columns: bytes.div_ceil(lane), degree, window };
        (geometry.cells() < bytes).then_some(geometry)
    }

    /// Cells, and bytes of the sketch.
    pub fn cells(&self) -> usize {
        self.lane * self.rows
    }

    /// Cells that each byte joins.
    pub fn degree(&self) -> usize {
        self.degree
    }

    pub(super) fn lane(&self) -> usize {
        self.lane
    }

    #[cfg(test)]
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    #[cfg(test)]
    pub(super) fn columns(&self) -> usize {
        self.columns
    }
}

/// Where one column goes once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Row of cells.
    pub(super) row: u32,
    /// Byte `l` goes to cell `(l + shift) mod lane`.
    pub(super) shift: u32,
}

/// Deals the places of one column after another.
pub(super) struct Dealer {
    geometry: Geometry,
    key: u64,
    count: u64,
    column: usize,
    deck: Vec<u32>,
    next: usize,
}

impl Dealer {
    pub(super) fn new(geometry: Geometry, key: u64) -> Self {
        // Fits: a geometry's cells are fewer than 2^32 rounded up by less than a row.
        let deck: Vec<u32> = (0..geometry.window as u32).collect();
        let next = deck.len();
        Self { geometry, key: mix(key), count: 0, column: 0, deck, next }
    }

    fn draw(&mut self) -> u64 {
        self.count += 1;
        mix(self.key ^ self.count.wrapping_mul(0xd6e8_feb8_6659_fd93))
    }

    /// The places of the next column, `degree` of them, in `places`.
    pub(super) fn deal(&mut self, places: &mut [Place; DEGREE_MAX]) {
        let degree = self.geometry.degree;
        if self.next + degree > self.deck.len() {
            // A fresh deck; the few rows left over are passed by this time.
            let mut bits = 0;
            for i in (1..self.deck.len()).rev() {
                if i % 4 == 3 || bits == 0 {
                    bits = self.draw() | 1 << 63;
                }
                // Sixteen of the bits; the bias of fewer than 2^-8 does not matter here.
                let pick = ((bits & 0xffff) * (i as u64 + 1)) >> 16;
                bits >>= 16;
                self.deck.swap(i, pick as usize);
            }
            self.next = 0;
        }
        let start = (self.column as u64 * (self.geometry.rows - self.geometry.window + 1) as u64
            / self.geometry.columns as u64) as u32;
        self.column += 1;
        let lane_mask = (self.geometry.lane - 1) as u32;
        let (mut bits, mut left) = (0u64, 0u32);
        for place in places.iter_mut().take(degree) {
            if left == 0 {
                bits = self.draw();
                left = 4;
            }
            *place = Place { row: start + self.deck[self.next], shift: bits as u32 & lane_mask };
            bits >>= 16;
            left -= 1;
            self.next += 1;
        }
    }
}

/// One edge of the graph as the solver wants it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Edge {
    /// Row of cells.
    pub(super) row: u32,
    /// Byte `l` goes to cell `(l + shift) mod lane` of the row.
    pub(super) shift: u16,
    /// The factor is `alpha^exponent`.
    pub(super) exponent: u8,
}

/// All places of a code, with factors.
#[derive(Debug)]
pub(super) struct Graph {
    pub(super) geometry: Geometry,
    /// `degree` edges per column.
    pub(super) edges: Vec<Edge>,
}

impl Graph {
    pub(super) fn new(geometry: Geometry, key: u64) -> Self {
        let mut dealer = Dealer::new(geometry, key);
        let mut places = [Place { row: 0, shift: 0 }; DEGREE_MAX];
        let mut edges = Vec::with_capacity(geometry.columns * geometry.degree);
        let mut used = vec![0u32; geometry.rows];
        for _ in 0..geometry.columns {
            dealer.deal(&mut places);
            for place in &places[..geometry.degree] {
                let rank = used[place.row as usize];
                used[place.row as usize] += 1;
                let exponent = (rank % ORDER as u32) as u8;
                edges.push(Edge { row: place.row, shift: place.shift as u16, exponent });
            }
        }
        for edge in &mut edges {
            let row = edge.row as usize;
            // A rank becomes an exponent: the last column of the row has factor 1.
            let last = ((used[row] - 1) % ORDER as u32) as u8;
            edge.exponent = ((u32::from(last) + ORDER as u32 - u32::from(edge.exponent)) % ORDER as u32) as u8;
        }
        Self { geometry, edges }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn columns_join_different_rows_evenly(bytes in 100usize..50_000, share in 0.01f64..0.5, degree in 2u8..9, key: u64) {
            let cells = (bytes as f64 * share) as u32;
            if let Some(geometry) = Geometry::new(bytes, cells, degree) {
                prop_assert!(geometry.cells() >= cells as usize && geometry.cells() < bytes);
                prop_assert!(geometry.columns() * geometry.lane() >= bytes);
                let graph = Graph::new(geometry, key);
                let mut counts = vec![0usize; geometry.rows()];
                for column in graph.edges.chunks(geometry.degree()) {
                    let mut rows: Vec<u32> = column.iter().map(|edge| edge.row).collect();
                    rows.iter().for_each(|&row| counts[row as usize] += 1);
                    rows.sort_unstable();
                    rows.dedup();
                    prop_assert_eq!(rows.len(), geometry.degree());
                }
                // A deck gives each row once, or leaves out fewer than `degree` rows.
                let decks = geometry.columns() / (geometry.rows() / geometry.degree()) + 1;
                prop_assert!(counts.iter().all(|&count| count <= decks));
            }
        }
    }

    #[test]
    fn cells_that_do_not_pay_give_no_code() {
        assert_eq!(Geometry::new(640, 640, 4), None);
        assert_eq!(Geometry::new(60, 10, 4), None, "four rows of sixteen cells are too many for 60 bytes");
        assert_eq!(Geometry::new(0, 0, 4), None);
        let geometry = Geometry::new(1 << 20, 22_000, 4).unwrap();
        assert_eq!((geometry.lane(), geometry.rows(), geometry.columns()), (2048, 11, 512));
    }
}
