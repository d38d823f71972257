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
use super::field::{QUOTIENTS, Turn, divide_by_alpha, reduction, times_alpha};
use super::graph::{DEGREE_MAX, Geometry, Graph};
use super::planner::Prior;

/// Most rounds of scanning and subtracting.
const ROUNDS: usize = 120;
/// Most codes (first payload and further ones) used together.
pub(super) const CODES_MAX: usize = 4;
const SLOTS_MAX: usize = CODES_MAX * DEGREE_MAX;
/// Logarithm of odds above which a candidate is taken at sight.
const EAGER: f32 = 3.0;
/// Share of the errors left that must be takeable at sight; below it, beliefs are weighed first.
const ENOUGH: f64 = 0.03;
/// Logarithms of odds above which a weighed candidate is taken: first, and at last.
const SURE: f32 = 2.0;
const DESPERATE: f32 = -4.0;

/// One code and what is left in its cells.
pub(super) struct Code {
    pub(super) graph: Graph,
    cells: Vec<u8>,
    occupied: usize,
    weights: Weights,
}

impl Code {
    /// `residual`: the device's cells minus the prediction's.
    pub(super) fn new(geometry: Geometry, key: u64, round: u8, residual: Vec<u8>) -> Self {
        let graph = Graph::new(geometry, graph_key(key, round));
        let mut code = Self { graph, cells: residual, occupied: 0, weights: Weights::default() };
        code.occupied = (0..geometry.cells()).filter(|&at| code.content(at) != 0).count();
        code
    }

    /// Content of a cell, its bytes as one number.
    pub(super) fn content(&self, at: usize) -> u32 {
        let geometry = self.graph.geometry;
        let (row, within) = (at / geometry.lane(), at % geometry.lane());
        let first = row * geometry.width() * geometry.lane() + within;
        (0..geometry.width()).fold(0, |all, number| all << 8 | u32::from(self.cells[first + number * geometry.lane()]))
    }

    /// What an error of this value adds to a cell of row `row`, as one number.
    pub(super) fn adds(&self, row: usize, exponent: u8, value: u8) -> u32 {
        (0..self.graph.geometry.width()).fold(0, |all, number| {
            all << 8 | u32::from(QUOTIENTS.product(row, Turn::of(number).exponent(exponent), value))
        })
    }

    /// The error that a cell shows if it is the only one there; `None` for an empty cell or one with more in it.
    fn shown(&self, at: usize, row: usize, exponent: u8) -> Option<u8> {
        let geometry = self.graph.geometry;
        let mut at = row * geometry.width() * geometry.lane() + at % geometry.lane();
        let value = QUOTIENTS.by(row, Turn::of(0).exponent(exponent))[usize::from(self.cells[at])];
        for number in 1..geometry.width() {
            at += geometry.lane();
            if QUOTIENTS.by(row, Turn::of(number).exponent(exponent))[usize::from(self.cells[at])] != value {
                return None;
            }
        }
        (value != 0).then_some(value)
    }

    /// Errors left, estimated from the share of empty cells: each error joins `degree` of them at random.
    pub(super) fn errors_left(&self) -> f64 {
        // A cell with two errors or more looks empty by chance.
        let cells = self.graph.geometry.cells();
        let empty = ((cells - self.occupied) as f64 - self.occupied as f64 / self.space()).max(0.25);
        -(empty / cells as f64).ln() * cells as f64 / self.graph.geometry.degree() as f64
    }

    /// Number of contents that a cell may have.
    fn space(&self) -> f64 {
        256f64.powi(self.graph.geometry.width() as i32)
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

    fn add(&mut self, position: usize, value: u8) {
        let mut places = [(0, 0, 0); DEGREE_MAX];
        let mut count = 0;
        for (slot, place) in places.iter_mut().zip(self.places(position)) {
            *slot = place;
            count += 1;
        }
        let (lane, width) = (self.graph.geometry.lane(), self.graph.geometry.width());
        for &(at, row, exponent) in &places[..count] {
            let before = self.content(at);
            for number in 0..width {
                let exponent = Turn::of(number).exponent(exponent);
                self.cells[(row * width + number) * lane + at % lane] ^= QUOTIENTS.product(row, exponent, value);
            }
            let after = self.content(at);
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
        let cells = code.graph.geometry.cells() as f32;
        let space = code.space() as f32;
        let q = (code.occupied as f32 / cells).clamp(0.02, 1.0 - 0.25 / cells);
        let alone = 1.0 - q;
        Self { agree: ((alone + q / space) * space / q).ln(), empty: (q / space / alone).ln().max(-12.0) }
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
    length: usize,
    codes: Vec<Code>,
    prior: &'a Prior,
    errors: Vec<u8>,
    log_rate: f32,
    /// Agreeing cells that make a candidate.
    witnesses: usize,
}

impl<'a> Solver<'a> {
    pub(super) fn new(length: usize, codes: Vec<Code>, prior: &'a Prior) -> Self {
        let witnesses = if codes.iter().all(|code| code.graph.geometry.width() > 1) { 1 } else { 2 };
        Self { length, codes, prior, errors: vec![0; length], log_rate: 0.0, witnesses }
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
        let mut bar = SURE;
        for _ in 0..ROUNDS {
            if self.done() {
                return Some(std::mem::take(&mut self.errors));
            }
            self.weigh();
            let mut candidates = self.scan();
            let left = self.errors_left().max(1.0);
            let at_sight = candidates.iter().filter(|candidate| candidate.score > EAGER).count();
            let taken = if at_sight as f64 >= left * ENOUGH {
                self.take(&mut candidates, EAGER)
            } else {
                belief::weigh(&self.codes, &mut candidates, left);
                loop {
                    let taken = self.take_weighed(&mut candidates, bar);
                    if taken > 0 || bar <= DESPERATE {
                        break taken;
                    }
                    bar -= 1.0;
                }
            };
            if std::env::var("DBG").is_ok() { eprintln!("cands {} at sight {} bar {bar} taken {taken} left {left:.0} held {}", candidates.len(), at_sight, self.errors.iter().filter(|e| **e != 0).count()); }
            if taken == 0 {
                return None;
            }
            if taken as f64 > left * 0.01 {
                bar = SURE;
            }
        }
        None
    }

    fn weigh(&mut self) {
        for code in &mut self.codes {
            code.weights = Weights::of(code);
        }
        let left = self.errors_left().max(1.0);
        self.log_rate = (left / self.length.max(1) as f64).min(0.5).ln() as f32;
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
    fn take_weighed(&mut self, candidates: &mut [Candidate], bar: f32) -> usize {
        sort(candidates);
        let taken = candidates.iter().take_while(|candidate| candidate.score > bar).count();
        for candidate in &candidates[..taken] {
            self.apply(candidate);
        }
        taken
    }

    /// The best change at a position to which enough cells bear witness, with its odds.
    fn judge(&self, position: usize) -> Option<Candidate> {
        let mut values = [0; SLOTS_MAX];
        let mut agree = [0f32; SLOTS_MAX];
        let mut slots = 0;
        let mut base = 0f32;
        for code in &self.codes {
            for (at, row, exponent) in code.places(position) {
                if let Some(value) = code.shown(at, row, exponent) {
                    values[slots] = value;
                    agree[slots] = code.weights.agree;
                    slots += 1;
                } else if code.content(at) == 0 {
                    base += code.weights.empty;
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
            if count < self.witnesses {
                continue;
            }
            let next = held ^ values[i];
            let after = if next == 0 { 0.0 } else { self.log_rate + self.prior.log_share(next) };
            let prior = after - before;
            let score = base + sum + prior;
            if best.is_none_or(|best| score > best.score) {
                best = Some(Candidate { position: position as u32, change: values[i], score, prior });
            }
        }
        best
    }

    /// Every position to which enough cells bear witness. Columns are visited from the last to the first: each row, turned back
    /// at every visit, then shows every column its own values.
    fn scan(&self) -> Vec<Candidate> {
        let tile = self.codes.iter().map(|code| code.graph.geometry.lane()).max().unwrap_or(1);
        let slots: usize = self.codes.iter().map(|code| code.graph.geometry.degree() * code.graph.geometry.width()).sum();
        let mut rows: Vec<Vec<u8>> = self.codes.iter().map(|code| code.cells.clone()).collect();
        let mut values = vec![0; slots * tile];
        let mut hits = vec![0u8; tile];
        let mut found = Vec::new();
        for start in (0..self.length.div_ceil(tile)).rev().map(|number| number * tile) {
            let mut slot = 0;
            for (code, rows) in self.codes.iter().zip(&mut rows) {
                let geometry = code.graph.geometry;
                let (lane, degree, width) = (geometry.lane(), geometry.degree(), geometry.width());
                for (part, column) in (start / lane..(start + tile) / lane).enumerate().rev() {
                    let edges = code.graph.edges.get(column * degree..(column + 1) * degree);
                    for s in 0..degree * width {
                        let to = (slot + s) * tile + part * lane;
                        let values = &mut values[to..to + lane];
                        match edges {
                            None => values.fill(0),
                            Some(edges) => {
                                let edge = &edges[s / width];
                                let row = edge.row as usize * width + s % width;
                                let cells = &mut rows[row * lane..(row + 1) * lane];
                                show(cells, usize::from(edge.shift), Turn::of(s % width).inverse(), reduction(edge.row as usize), values);
                            }
                        }
                    }
                }
                slot += degree * width;
            }
            hits.fill(0);
            if self.witnesses == 1 {
                self.mark_cells(&values, tile, &mut hits);
            } else {
                mark_pairs(&values, tile, &mut hits);
            }
            for (block, hits) in hits.chunks(16).enumerate() {
                if hits.iter().fold(0, |any, hit| any | hit) == 0 {
                    continue;
                }
                for (within, _) in hits.iter().enumerate().filter(|(_, hit)| **hit != 0) {
                    let position = start + block * 16 + within;
                    if position < self.length {
                        found.extend(self.judge(position));
                    }
                }
            }
        }
        found
    }

    /// Marks positions to which a cell of two bytes or more bears witness.
    fn mark_cells(&self, values: &[u8], tile: usize, hits: &mut [u8]) {
        let mut rest = values;
        for code in &self.codes {
            let width = code.graph.geometry.width();
            let (own, others) = rest.split_at(code.graph.geometry.degree() * width * tile);
            for cell in own.chunks_exact(width * tile) {
                let (a, b) = cell.split_at(tile);
                for ((hit, &a), &b) in hits.iter_mut().zip(a).zip(b) {
                    *hit |= u8::from(a == b) & u8::from(a != 0);
                }
            }
            rest = others;
        }
    }
}

/// Marks positions on which two cells agree.
fn mark_pairs(values: &[u8], tile: usize, hits: &mut [u8]) {
    let mut rest = values;
    while let Some((a, others)) = rest.split_at_checked(tile) {
        for b in others.chunks_exact(tile) {
            for ((hit, &a), &b) in hits.iter_mut().zip(a).zip(b) {
                *hit |= u8::from(a == b) & u8::from(a != 0);
            }
        }
        rest = others;
    }
}

fn sort(candidates: &mut [Candidate]) {
    candidates.sort_unstable_by(|a, b| b.score.total_cmp(&a.score).then(a.position.cmp(&b.position)));
}

/// Copies a row, shifted back by `shift`, to `values`, and turns the row.
fn show(row: &mut [u8], shift: usize, turn: Turn, reduction: u8, values: &mut [u8]) {
    let (wrapped, straight) = row.split_at(shift);
    let (head, tail) = values.split_at_mut(straight.len());
    head.copy_from_slice(straight);
    tail.copy_from_slice(wrapped);
    match turn {
        Turn::Times => row.iter_mut().for_each(|cell| *cell = times_alpha(*cell, reduction)),
        Turn::Divide => row.iter_mut().for_each(|cell| *cell = divide_by_alpha(*cell, reduction)),
        Turn::Keep => (),
    }
}
