//! Candidates weighed against each other: belief propagation on the part of the graph that they form.
//!
//! For a cell with content `r` let `f` be the distribution of what others add to it: nothing with probability `A` (no
//! unseen error and no other candidate is real), the share of one other candidate alone, or, for the rest, anything.
//! Candidate `i`, which would add `w`, hears `ln f(r - w) - ln f(r)`, and the sum over its cells plus its prior is the
//! logarithm of its odds. A cell is not told what it said itself. Everything is in the characteristic 2: minus is xor.

use super::field::QUOTIENTS;
use super::solve::{Candidate, Code};

/// Passes over all candidates.
const PASSES: usize = 5;
/// Candidates less likely than this before weighing are left out of it.
const HOPELESS: f32 = -9.0;
/// Part of a new message that replaces the old one.
const STEP: f32 = 0.7;

struct Edge {
    candidate: u32,
    /// What the candidate would add to the cell.
    adds: u8,
    message: f32,
}

/// Replaces the scores by weighed ones and drops hopeless candidates. `left`: errors not yet found.
pub(super) fn weigh(codes: &[Code], candidates: &mut Vec<Candidate>, left: f64) {
    candidates.retain(|candidate| candidate.score > HOPELESS);
    let mut odds: Vec<f32> = candidates.iter().map(|candidate| candidate.score).collect();
    let mut webs: Vec<Web> = codes.iter().map(|code| Web::new(code, candidates)).collect();
    for _ in 0..PASSES {
        let seen: f64 = odds.iter().map(|&odds| f64::from(probability(odds))).sum();
        let mut next: Vec<f32> = candidates.iter().map(|candidate| candidate.prior).collect();
        for (web, code) in webs.iter_mut().zip(codes) {
            let load = code.graph.geometry.degree() as f64 / code.cells.len() as f64;
            let unseen = (left - seen).max(left * 0.01) * load;
            web.pass(&code.cells, (-unseen).exp() as f32, &odds, &mut next);
        }
        odds = next;
    }
    for (candidate, odds) in candidates.iter_mut().zip(odds) {
        candidate.score = odds;
    }
}

fn probability(odds: f32) -> f32 {
    1.0 / (1.0 + (-odds).exp())
}

/// The edges between candidates and the cells of one code, cell by cell.
struct Web {
    starts: Vec<u32>,
    edges: Vec<Edge>,
}

impl Web {
    fn new(code: &Code, candidates: &[Candidate]) -> Self {
        let mut starts = vec![0u32; code.cells.len() + 1];
        for candidate in candidates {
            for (at, _, _) in code.places(candidate.position as usize) {
                starts[at + 1] += 1;
            }
        }
        for i in 1..starts.len() {
            starts[i] += starts[i - 1];
        }
        let mut fill = starts.clone();
        let mut edges: Vec<Edge> =
            (0..starts[code.cells.len()]).map(|_| Edge { candidate: 0, adds: 0, message: 0.0 }).collect();
        for (number, candidate) in candidates.iter().enumerate() {
            for (at, row, exponent) in code.places(candidate.position as usize) {
                let adds = QUOTIENTS.product(row, exponent, candidate.change);
                edges[fill[at] as usize] = Edge { candidate: number as u32, adds, message: 0.0 };
                fill[at] += 1;
            }
        }
        Self { starts, edges }
    }

    /// One message from every cell to each of its candidates, added to `next`. `alone`: no unseen error in a cell.
    fn pass(&mut self, cells: &[u8], alone: f32, odds: &[f32], next: &mut [f32]) {
        let mut ratios: Vec<f32> = Vec::new();
        for (&cell, bounds) in cells.iter().zip(self.starts.windows(2)) {
            let edges = &mut self.edges[bounds[0] as usize..bounds[1] as usize];
            ratios.clear();
            ratios.extend(edges.iter().map(|e| (odds[e.candidate as usize] - e.message).clamp(-12.0, 12.0).exp()));
            // Product of (1 - p) = product of 1 / (1 + ratio).
            let none = alone / ratios.iter().fold(1.0, |product, ratio| product * (1.0 + ratio));
            for i in 0..edges.len() {
                let none = none * (1.0 + ratios[i]);
                let (mut with, mut without, mut known) = (0f32, 0f32, 1f32);
                let wanted = cell ^ edges[i].adds;
                with += f32::from(u8::from(wanted == 0));
                without += f32::from(u8::from(cell == 0));
                for j in (0..edges.len()).filter(|&j| j != i) {
                    with += ratios[j] * f32::from(u8::from(wanted == edges[j].adds));
                    without += ratios[j] * f32::from(u8::from(cell == edges[j].adds));
                    known += ratios[j];
                }
                let rest = (1.0 - none * known).max(0.001) / 256.0;
                let message = ((none * with + rest) / (none * without + rest)).ln();
                edges[i].message += STEP * (message - edges[i].message);
                next[edges[i].candidate as usize] += edges[i].message;
            }
        }
    }
}
