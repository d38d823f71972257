//! From cells to errors: which sparse `e` has these cells.
//!
//! A cell in which exactly one error is left shows that error's value times a known factor. So a position where two or
//! more cells agree on one value is a candidate; how likely it is follows from the number of agreeing, disagreeing and
//! empty cells, the share of cells that are still empty, the rate of errors and how common the value is. The most
//! likely candidates are subtracted, which empties cells and uncovers others; a position taken wrongly is taken back by
//! the same rule. What comes out is a guess that the caller checks with the layer's checksum.

use super::encoder::graph_key;
use super::field::QUOTIENTS;
use super::graph::{Geometry, Graph};
use super::planner::Prior;

/// Most sweeps over the layer.
const SWEEPS: usize = 200;
/// Most codes (first payload and further ones) used together.
pub(super) const CODES_MAX: usize = 4;
const SLOTS_MAX: usize = CODES_MAX * super::graph::DEGREE_MAX;
/// Logarithms of odds above which a candidate is taken, first and at last.
const EAGER: f32 = 3.0;
const DESPERATE: f32 = -1.0;

/// One code and what is left in its cells.
pub(super) struct Code {
    graph: Graph,
    cells: Vec<u8>,
    occupied: usize,
    row_occupied: Vec<u32>,
    weights: Vec<Weights>,
}

impl Code {
    /// `residual`: the device's cells minus the prediction's.
    pub(super) fn new(geometry: Geometry, key: u64, round: u8, residual: Vec<u8>) -> Self {
        let occupied = residual.iter().filter(|&&cell| cell != 0).count();
        let row_occupied =
            residual.chunks(geometry.lane()).map(|row| row.iter().filter(|&&cell| cell != 0).count() as u32).collect();
        let weights = vec![Weights::default(); geometry.rows()];
        Self { graph: Graph::new(geometry, graph_key(key, round)), cells: residual, occupied, row_occupied, weights }
    }

    /// Errors left, estimated from the share of empty cells: each error joins `degree` of them at random.
    pub(super) fn errors_left(&self) -> f64 {
        errors_from_occupied(self.occupied, self.cells.len(), self.graph.geometry.degree())
    }

    fn add(&mut self, position: usize, value: u8) {
        let geometry = self.graph.geometry;
        let (column, within) = (position / geometry.lane(), position % geometry.lane());
        let first = column * geometry.degree();
        for edge in &self.graph.edges[first..first + geometry.degree()] {
            let at = edge.base as usize + ((within + usize::from(edge.shift)) & (geometry.lane() - 1));
            let before = self.cells[at];
            let row = edge.base as usize / geometry.lane();
            let after = before ^ QUOTIENTS.product(row, edge.exponent, value);
            self.cells[at] = after;
            self.occupied = self.occupied + usize::from(after != 0) - usize::from(before != 0);
            self.row_occupied[row] = self.row_occupied[row] + u32::from(after != 0) - u32::from(before != 0);
        }
    }
}

/// See [`Code::errors_left`].
pub(super) fn errors_from_occupied(occupied: usize, cells: usize, degree: usize) -> f64 {
    // A cell with two errors or more looks empty once in 256 times.
    let empty = ((cells - occupied) as f64 - occupied as f64 / 255.0).max(0.25);
    -(empty / cells as f64).ln() * cells as f64 / degree as f64
}

/// What one code's cells say about a candidate, as logarithms of likelihood ratios.
#[derive(Clone, Copy, Default)]
struct Weights {
    agree: f32,
    empty: f32,
}

impl Weights {
    /// From the share `q` of cells that are occupied: with probability `1 - q` nothing else is in a cell.
    fn of(occupied: f32, cells: f32) -> Self {
        let q = (occupied / cells).clamp(0.02, 1.0 - 0.25 / cells);
        let alone = 1.0 - q;
        Self { agree: ((alone + q / 256.0) * 255.0 / q).ln(), empty: (q / 256.0 / alone).ln() }
    }
}

pub(super) struct Solver<'a> {
    length: usize,
    codes: Vec<Code>,
    prior: &'a Prior,
    errors: Vec<u8>,
    log_rate: f32,
}

#[derive(Clone, Copy)]
struct Candidate {
    position: u32,
    change: u8,
    score: f32,
}

impl<'a> Solver<'a> {
    pub(super) fn new(length: usize, codes: Vec<Code>, prior: &'a Prior) -> Self {
        Self { length, codes, prior, errors: vec![0; length], log_rate: 0.0 }
    }

    fn done(&self) -> bool {
        self.codes.iter().all(|code| code.occupied == 0)
    }

    /// Errors left by the estimate of the codes with the most cells.
    pub(super) fn errors_left(&self) -> f64 {
        self.codes.iter().map(Code::errors_left).fold(f64::INFINITY, f64::min)
    }

    /// The errors, one byte per position, if some explain every cell.
    pub(super) fn solve(&mut self) -> Option<Vec<u8>> {
        let mut bar = EAGER;
        let mut candidates: Vec<Candidate> = Vec::new();
        let mut fresh = true;
        for _ in 0..SWEEPS {
            if self.done() {
                return Some(std::mem::take(&mut self.errors));
            }
            self.weigh();
            if fresh {
                candidates = self.scan();
            }
            candidates.sort_unstable_by(|a, b| b.score.total_cmp(&a.score).then(a.position.cmp(&b.position)));
            let taken = self.take(&candidates, bar);
            fresh = taken > 0;
            if taken == 0 {
                if bar <= DESPERATE {
                    return None;
                }
                bar -= 1.0;
            } else if taken > 4 {
                bar = (bar + 0.5).min(EAGER);
            }
        }
        None
    }

    fn weigh(&mut self) {
        for code in &mut self.codes {
            let lane = code.graph.geometry.lane() as f32;
            for (weights, &occupied) in code.weights.iter_mut().zip(&code.row_occupied) {
                *weights = Weights::of(occupied as f32, lane);
            }
        }
        let left = self.errors_left().max(1.0);
        self.log_rate = (left / self.length.max(1) as f64).min(0.5).ln() as f32;
    }

    /// Takes candidates above `bar`, best first, none that uses a cell already changed in this round.
    fn take(&mut self, candidates: &[Candidate], bar: f32) -> usize {
        let mut taken = 0;
        for candidate in candidates.iter().take_while(|candidate| candidate.score > bar) {
            // Others taken before may have changed the cells: look again.
            let position = candidate.position as usize;
            if self.judge(position).is_some_and(|now| now.change == candidate.change && now.score > bar) {
                for code in &mut self.codes {
                    code.add(position, candidate.change);
                }
                self.errors[position] ^= candidate.change;
                taken += 1;
            }
        }
        taken
    }

    /// The best change at a position on which two cells agree, with its odds.
    fn judge(&self, position: usize) -> Option<Candidate> {
        let mut values = [0; SLOTS_MAX];
        let mut agree = [0f32; SLOTS_MAX];
        let mut slots = 0;
        let mut base = 0f32;
        for code in &self.codes {
            let geometry = code.graph.geometry;
            let (column, within) = (position / geometry.lane(), position % geometry.lane());
            let first = column * geometry.degree();
            for edge in &code.graph.edges[first..first + geometry.degree()] {
                let at = edge.base as usize + ((within + usize::from(edge.shift)) & (geometry.lane() - 1));
                let row = edge.base as usize / geometry.lane();
                let weights = &code.weights[row];
                match code.cells[at] {
                    0 => base += weights.empty,
                    cell => {
                        values[slots] = QUOTIENTS.by(row, edge.exponent)[usize::from(cell)];
                        agree[slots] = weights.agree;
                        slots += 1;
                    }
                }
            }
        }
        let held = self.errors[position];
        let before = if held == 0 { 0.0 } else { self.log_rate + self.prior.log_share(held) };
        let mut best: Option<Candidate> = None;
        for i in 0..slots {
            let (mut count, mut sum) = (0, 0f32);
            for j in 0..slots {
                if values[j] == values[i] {
                    count += 1;
                    sum += agree[j];
                }
            }
            if count < 2 {
                continue;
            }
            let change = values[i];
            let next = held ^ change;
            let after = if next == 0 { 0.0 } else { self.log_rate + self.prior.log_share(next) };
            let score = base + sum + after - before;
            if best.is_none_or(|best| score > best.score) {
                best = Some(Candidate { position: position as u32, change, score });
            }
        }
        best
    }

    /// Every position on which two cells agree.
    fn scan(&self) -> Vec<Candidate> {
        let tile = self.codes.iter().map(|code| code.graph.geometry.lane()).max().unwrap_or(1);
        let slots: usize = self.codes.iter().map(|code| code.graph.geometry.degree()).sum();
        let mut values = vec![0; slots * tile];
        let mut hits = vec![0u8; tile];
        let mut found = Vec::new();
        for start in (0..self.length).step_by(tile) {
            let mut slot = 0;
            for code in &self.codes {
                let (lane, degree) = (code.graph.geometry.lane(), code.graph.geometry.degree());
                for (part, column) in (start / lane..(start + tile) / lane).enumerate() {
                    let Some(edges) = code.graph.edges.get(column * degree..(column + 1) * degree) else { break };
                    for (s, edge) in edges.iter().enumerate() {
                        let to = (slot + s) * tile + part * lane;
                        let row = &code.cells[edge.base as usize..edge.base as usize + lane];
                        let table = QUOTIENTS.by(edge.base as usize / lane, edge.exponent);
                        unturn(row, usize::from(edge.shift), table, &mut values[to..to + lane]);
                    }
                }
                slot += degree;
            }
            hits.fill(0);
            let mut rest = values.as_slice();
            while let Some((a, others)) = rest.split_at_checked(tile) {
                for b in others.chunks_exact(tile) {
                    for ((hit, &a), &b) in hits.iter_mut().zip(a).zip(b) {
                        *hit |= u8::from(a == b) & u8::from(a != 0);
                    }
                }
                rest = others;
            }
            for (within, _) in hits.iter().enumerate().filter(|(_, hit)| **hit != 0) {
                if start + within < self.length {
                    found.extend(self.judge(start + within));
                }
            }
        }
        found
    }
}

/// The values that a row shows to the bytes of one column; `table` divides by the column's factor.
fn unturn(row: &[u8], shift: usize, table: &[u8; 256], values: &mut [u8]) {
    let (wrapped, straight) = row.split_at(shift);
    let (head, tail) = values.split_at_mut(straight.len());
    for (value, &cell) in head.iter_mut().zip(straight).chain(tail.iter_mut().zip(wrapped)) {
        *value = table[usize::from(cell)];
    }
}
