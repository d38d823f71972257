//! From cells to errors: which sparse `e` has these cells.
//!
//! A cell in which exactly one error is left shows that error's value times a known factor. So a position where two or
//! more cells agree on one value is a candidate; how likely it is follows from the number of agreeing, disagreeing and
//! empty cells, the share of cells that are still empty, the rate of errors and how common the value is. The most
//! likely candidates are subtracted, which empties cells and uncovers others; a position taken wrongly is taken back by
//! the same rule. Where no candidate stands out, [`belief`](super::belief) weighs them against each other. What comes
//! out is a guess that the caller checks with the layer's checksum.

use super::belief;
use super::encoder::graph_key;
use super::field::{QUOTIENTS, divide_by_alpha, reduction};
use super::graph::{DEGREE_MAX, Geometry, Graph};
use super::planner::Prior;

/// Most rounds of scanning and subtracting.
const ROUNDS: usize = 100;
/// Most codes (first payload and further ones) used together.
pub(super) const CODES_MAX: usize = 4;
pub(super) const SLOTS_MAX: usize = CODES_MAX * DEGREE_MAX;
/// Logarithm of odds above which a candidate is taken at sight.
const EAGER: f32 = 3.0;
/// Share of the errors left that must be takeable at sight; below it, beliefs are weighed first.
const ENOUGH: f64 = 0.08;
/// Logarithms of odds above which a weighed candidate is taken: first, and at last.
const SURE: f32 = 1.0;
const DESPERATE: f32 = -4.0;

/// One code and what is left in its cells.
pub(super) struct Code {
    pub(super) graph: Graph,
    pub(super) cells: Vec<u8>,
    occupied: usize,
    weights: Weights,
}

impl Code {
    /// `residual`: the device's cells minus the prediction's.
    pub(super) fn new(geometry: Geometry, key: u64, round: u8, residual: Vec<u8>) -> Self {
        let occupied = residual.iter().filter(|&&cell| cell != 0).count();
        let graph = Graph::new(geometry, graph_key(key, round));
        Self { graph, cells: residual, occupied, weights: Weights::default() }
    }

    /// Errors left, estimated from the share of empty cells: each error joins `degree` of them at random.
    pub(super) fn errors_left(&self) -> f64 {
        // A cell with two errors or more looks empty once in 256 times.
        let empty = ((self.cells.len() - self.occupied) as f64 - self.occupied as f64 / 255.0).max(0.25);
        -(empty / self.cells.len() as f64).ln() * self.cells.len() as f64 / self.graph.geometry.degree() as f64
    }

    /// The cells of a position: index, row, exponent of its factor.
    pub(super) fn places(&self, position: usize) -> impl Iterator<Item = (usize, usize, u8)> + '_ {
        let geometry = self.graph.geometry;
        let (column, within) = (position / geometry.lane(), position % geometry.lane());
        let first = column * geometry.degree();
        self.graph.edges[first..first + geometry.degree()].iter().map(move |edge| {
            let at = edge.row as usize * geometry.lane() + ((within + usize::from(edge.shift)) & (geometry.lane() - 1));
            (at, edge.row as usize, edge.exponent)
        })
    }

    /// All rows, each twice in a row, so that every turn of one is a slice.
    fn rows_twice(&self) -> Vec<u8> {
        let mut rows = Vec::with_capacity(2 * self.cells.len());
        for row in self.cells.chunks(self.graph.geometry.lane()) {
            rows.extend_from_slice(row);
            rows.extend_from_slice(row);
        }
        rows
    }

    fn add(&mut self, position: usize, value: u8) {
        let mut places = [(0, 0, 0); DEGREE_MAX];
        let mut count = 0;
        for (slot, place) in places.iter_mut().zip(self.places(position)) {
            *slot = place;
            count += 1;
        }
        for &(at, row, exponent) in &places[..count] {
            let before = self.cells[at];
            let after = before ^ QUOTIENTS.product(row, exponent, value);
            self.cells[at] = after;
            self.occupied = self.occupied + usize::from(after != 0) - usize::from(before != 0);
        }
    }
}

/// What one code's cells say about a candidate, as logarithms of likelihood ratios.
#[derive(Clone, Copy, Default)]
struct Weights {
    agree: f32,
    empty: f32,
}

impl Weights {
    /// From the share `q` of cells that are occupied: with probability `1 - q` nothing else is in a cell.
    fn of(code: &Code) -> Self {
        let cells = code.cells.len() as f32;
        let q = (code.occupied as f32 / cells).clamp(0.02, 1.0 - 0.25 / cells);
        let alone = 1.0 - q;
        Self { agree: ((alone + q / 256.0) * 255.0 / q).ln(), empty: (q / 256.0 / alone).ln() }
    }
}

/// A change of one position that some cells ask for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub(super) position: u32,
    pub(super) change: u8,
    /// Logarithm of the odds, from counts of agreeing and empty cells.
    pub(super) score: f32,
    /// Logarithm of the odds before looking at cells.
    pub(super) prior: f32,
}

pub(super) struct Solver<'a> {
    /// What is predicted, byte by byte.
    base: &'a [u8],
    codes: Vec<Code>,
    prior: &'a Prior,
    errors: Vec<u8>,
    log_rate: f32,
}

impl<'a> Solver<'a> {
    pub(super) fn new(base: &'a [u8], codes: Vec<Code>, prior: &'a Prior) -> Self {
        Self { base, codes, prior, errors: vec![0; base.len()], log_rate: 0.0 }
    }

    fn done(&self) -> bool {
        self.codes.iter().all(|code| code.occupied == 0)
    }

    /// Errors left by the estimate of the codes with the most cells.
    fn errors_left(&self) -> f64 {
        self.codes.iter().map(Code::errors_left).fold(f64::INFINITY, f64::min)
    }

    /// The errors, one byte per position, if some explain every cell.
    pub(super) fn solve(&mut self) -> Option<Vec<u8>> {
        for _ in 0..ROUNDS {
            if self.done() {
                return Some(std::mem::take(&mut self.errors));
            }
            self.weigh();
            let mut candidates = self.scan();
            let left = self.errors_left().max(1.0);
            let at_sight = candidates.iter().filter(|candidate| candidate.score > EAGER).count();
            let mut bar = SURE;
            let taken = if at_sight as f64 >= left * ENOUGH {
                self.take(&mut candidates, EAGER)
            } else {
                belief::weigh(&self.codes, &mut candidates, left);
                loop {
                    let most = if bar < SURE { (left * 0.02) as usize + 1 } else { usize::MAX };
                    let taken = self.take_weighed(&mut candidates, bar, most);
                    if taken > 0 || bar <= DESPERATE {
                        break taken;
                    }
                    bar -= 1.0;
                }
            };
            if taken == 0 {
                return None;
            }
        }
        None
    }

    fn weigh(&mut self) {
        for code in &mut self.codes {
            code.weights = Weights::of(code);
        }
        let left = self.errors_left().max(1.0);
        self.log_rate = (left / self.base.len().max(1) as f64).min(0.5).ln() as f32;
    }

    fn apply(&mut self, candidate: &Candidate) {
        for code in &mut self.codes {
            code.add(candidate.position as usize, candidate.change);
        }
        self.errors[candidate.position as usize] ^= candidate.change;
    }

    /// Takes candidates above `bar`, best first; each is judged again, since those before it changed cells.
    fn take(&mut self, candidates: &mut [Candidate], bar: f32) -> usize {
        sort(candidates);
        let mut taken = 0;
        for candidate in candidates.iter().take_while(|candidate| candidate.score > bar) {
            let now = self.judge(candidate.position as usize);
            if now.is_some_and(|now| now.change == candidate.change && now.score > bar) {
                self.apply(candidate);
                taken += 1;
            }
        }
        taken
    }

    /// Takes candidates whose weighed odds are above `bar`, all of them: the weighing has seen their conflicts.
    fn take_weighed(&mut self, candidates: &mut [Candidate], bar: f32, most: usize) -> usize {
        sort(candidates);
        let taken = candidates.iter().take(most).take_while(|candidate| candidate.score > bar).count();
        for candidate in &candidates[..taken] {
            self.apply(candidate);
        }
        taken
    }

    /// The best change at a position on which two cells agree, with its odds.
    fn judge(&self, position: usize) -> Option<Candidate> {
        let mut values = [0; SLOTS_MAX];
        let mut agree = [0f32; SLOTS_MAX];
        let mut slots = 0;
        let mut emptiness = 0f32;
        for code in &self.codes {
            for (at, row, exponent) in code.places(position) {
                match code.cells[at] {
                    0 => emptiness += code.weights.empty,
                    cell => {
                        values[slots] = QUOTIENTS.by(row, exponent)[usize::from(cell)];
                        agree[slots] = code.weights.agree;
                        slots += 1;
                    }
                }
            }
        }
        let (base, held) = (self.base[position], self.errors[position]);
        let before = if held == 0 { 0.0 } else { self.log_rate + self.prior.log_share(base, base ^ held) };
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
            let next = held ^ values[i];
            let after = if next == 0 { 0.0 } else { self.log_rate + self.prior.log_share(base, base ^ next) };
            let prior = after - before;
            let score = emptiness + sum + prior;
            if best.is_none_or(|best| score > best.score) {
                best = Some(Candidate { position: position as u32, change: values[i], score, prior });
            }
        }
        best
    }

    /// Every position on which two cells agree. Columns are visited from the last to the first: each row, divided by
    /// alpha at every visit, then shows every column its own values.
    fn scan(&self) -> Vec<Candidate> {
        let tile = self.codes.iter().map(|code| code.graph.geometry.lane()).max().unwrap_or(1);
        let slots: usize = self.codes.iter().map(|code| code.graph.geometry.degree()).sum();
        let mut rows: Vec<Vec<u8>> = self.codes.iter().map(Code::rows_twice).collect();
        let mut values = vec![0; slots * tile];
        let mut hits = vec![0u8; tile];
        let mut found = Vec::new();
        for start in (0..self.base.len().div_ceil(tile)).rev().map(|number| number * tile) {
            let mut slot = 0;
            for (code, rows) in self.codes.iter().zip(&mut rows) {
                let (lane, degree) = (code.graph.geometry.lane(), code.graph.geometry.degree());
                for (part, column) in (start / lane..(start + tile) / lane).enumerate().rev() {
                    let edges = code.graph.edges.get(column * degree..(column + 1) * degree);
                    for s in 0..degree {
                        let to = (slot + s) * tile + part * lane;
                        let values = &mut values[to..to + lane];
                        match edges {
                            None => values.fill(0),
                            Some(edges) => {
                                let row = edges[s].row as usize;
                                let cells = &mut rows[2 * row * lane..2 * (row + 1) * lane];
                                show(cells, usize::from(edges[s].shift), reduction(row), values);
                            }
                        }
                    }
                }
                slot += degree;
            }
            hits.fill(0);
            let mut rest = values.as_slice();
            while let Some((a, others)) = rest.split_at_checked(tile) {
                for b in others.chunks_exact(tile) {
                    mark_equal(&mut hits, a, b);
                }
                rest = others;
            }
            for (block, hits) in hits.chunks(16).enumerate() {
                if hits.iter().fold(0, |any, hit| any | hit) == 0 {
                    continue;
                }
                for (within, _) in hits.iter().enumerate().filter(|(_, hit)| **hit != 0) {
                    let position = start + block * 16 + within;
                    if position < self.base.len() {
                        found.extend(self.judge(position));
                    }
                }
            }
        }
        found
    }
}

/// Marks where `a` and `b` are equal and not 0.
fn mark_equal(hits: &mut [u8], a: &[u8], b: &[u8]) {
    for ((hit, &a), &b) in hits.iter_mut().zip(a).zip(b) {
        *hit |= u8::from(a == b) & u8::from(a != 0);
    }
}

fn sort(candidates: &mut [Candidate]) {
    candidates.sort_unstable_by(|a, b| b.score.total_cmp(&a.score).then(a.position.cmp(&b.position)));
}

/// Copies a row, turned back by `shift`, to `values`, and divides the row by alpha. `row` holds the row twice.
fn show(row: &mut [u8], shift: usize, reduction: u8, values: &mut [u8]) {
    let from = &row[shift..shift + values.len()];
    values.copy_from_slice(from);
    for cell in row {
        *cell = divide_by_alpha(*cell, reduction);
    }
}
