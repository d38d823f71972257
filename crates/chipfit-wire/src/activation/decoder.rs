//! The server's end: from a prediction and payloads to the device's bytes.

use super::ActivationError;
use super::cells::cells;
use super::checksum::checksum;
use super::encoder::{CELLS, CHECKSUM_BYTES, CODED, RAW, graph_key, low_mask};
use super::graph::Geometry;
use super::parameters::{Mode, Parameters, Request};
use super::planner::Prior;
use super::solve::{CODES_MAX, Code, Solver};
use crate::entropy::bytes;

/// What a payload led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The device's bytes: their checksum is the device's.
    Recovered(Vec<u8>),
    /// More errors than the cells can tell apart: ask the device for this.
    NeedsMore(Request),
}

/// Recovers one layer of one step.
#[derive(Debug)]
pub struct Decoder {
    length: usize,
    parameters: Parameters,
    prior: Prior,
    /// Checksum of the device's bytes, once a payload of cells has told it.
    promised: Option<u64>,
    /// Low bits of every byte; empty when none were asked for.
    low: Vec<u8>,
    received: Vec<Received>,
    asked: Option<Request>,
}

#[derive(Debug)]
struct Received {
    geometry: Geometry,
    round: u8,
    cells: Vec<u8>,
}

impl Decoder {
    /// For a layer of `length` bytes that the device was told to send as `parameters` say.
    pub fn new(length: usize, parameters: Parameters, prior: Prior) -> Self {
        Self { length, parameters, prior, promised: None, low: Vec::new(), received: Vec::new(), asked: None }
    }

    /// Takes the next payload: the first one, then the answer to each request. `prediction`: what a processor without
    /// errors makes of the device's inputs of this layer.
    ///
    /// # Errors
    /// [`ActivationError`]; the decoder is as before then. A wrong prediction is no error: it leads to
    /// [`Outcome::NeedsMore`].
    pub fn try_decode(&mut self, prediction: &[u8], payload: &[u8]) -> Result<Outcome, ActivationError> {
        if prediction.len() != self.length {
            return Err(ActivationError::Prediction { bytes: prediction.len(), layer: self.length });
        }
        let Some((&mode, body)) = payload.split_first() else {
            return Err(ActivationError::Length { bytes: 0, expected: 1 });
        };
        match mode {
            RAW if body.len() == self.length => Ok(Outcome::Recovered(body.to_vec())),
            RAW => Err(ActivationError::Length { bytes: payload.len(), expected: 1 + self.length }),
            CODED => self.coded(body),
            CELLS => {
                self.take_cells(body)?;
                Ok(self.solve(prediction))
            }
            other => Err(ActivationError::Mode(other)),
        }
    }

    fn coded(&self, body: &[u8]) -> Result<Outcome, ActivationError> {
        let (promised, section) = split_checksum(body)?;
        let layer = bytes::decode(section, self.length)?;
        if checksum(self.parameters.key, &layer) != promised || self.promised.is_some_and(|other| other != promised) {
            return Err(ActivationError::Checksum);
        }
        Ok(Outcome::Recovered(layer))
    }

    fn take_cells(&mut self, body: &[u8]) -> Result<(), ActivationError> {
        match self.asked {
            None => {
                let Mode::Cells { cells, degree, low_bits } = self.parameters.mode else {
                    return Err(ActivationError::Mode(CELLS));
                };
                let geometry = Geometry::new(self.length, cells, degree).ok_or(ActivationError::Mode(CELLS))?;
                let (promised, rest) = split_checksum(body)?;
                let short = ActivationError::Length { bytes: rest.len(), expected: geometry.cells() };
                let (cells, low) = rest.split_at_checked(geometry.cells()).ok_or(short)?;
                if low_bits > 0 {
                    self.low = bytes::decode(low, self.length)?;
                } else if !low.is_empty() {
                    return Err(short);
                }
                self.promised = Some(promised);
                self.received.push(Received { geometry, round: 0, cells: cells.to_vec() });
            }
            Some(Request::Cells { cells, degree, round }) => {
                let geometry = Geometry::new(self.length, cells, degree).ok_or(ActivationError::Mode(CELLS))?;
                if body.len() != geometry.cells() {
                    return Err(ActivationError::Length { bytes: body.len(), expected: geometry.cells() });
                }
                self.received.push(Received { geometry, round, cells: body.to_vec() });
            }
            Some(Request::Entropy) => return Err(ActivationError::Mode(CELLS)),
        }
        Ok(())
    }

    /// The prediction, brought to the nearest bytes that have the device's low bits.
    fn base(&self, prediction: &[u8]) -> Vec<u8> {
        let Mode::Cells { low_bits, .. } = self.parameters.mode else { return prediction.to_vec() };
        if low_bits == 0 {
            return prediction.to_vec();
        }
        let mask = low_mask(low_bits);
        prediction.iter().zip(&self.low).map(|(&x, &low)| nearest(x, low & mask, low_bits)).collect()
    }

    fn solve(&mut self, prediction: &[u8]) -> Outcome {
        let base = self.base(prediction);
        let key = self.parameters.key;
        let codes: Vec<Code> = self
            .received
            .iter()
            .map(|received| {
                let mut residual = cells(received.geometry, graph_key(key, received.round), &base);
                residual.iter_mut().zip(&received.cells).for_each(|(cell, device)| *cell ^= device);
                Code::new(received.geometry, key, received.round, residual)
            })
            .collect();
        let left = codes.iter().map(Code::errors_left).fold(f64::INFINITY, f64::min);
        let mut solver = Solver::new(&base, codes, &self.prior);
        if let Some(errors) = solver.solve() {
            let layer: Vec<u8> = base.iter().zip(&errors).map(|(x, e)| x ^ e).collect();
            if Some(checksum(key, &layer)) == self.promised {
                return Outcome::Recovered(layer);
            }
        }
        let request = self.request(left);
        self.asked = Some(request);
        Outcome::NeedsMore(request)
    }

    /// What to ask for when about `errors` errors could not be found in the cells so far.
    fn request(&self, errors: f64) -> Request {
        let round = self.received.len();
        let held: usize = self.received.iter().map(|received| received.geometry.cells()).sum();
        let needed = errors * self.prior.cells_per_error(errors / self.length.max(1) as f64) + 32.0;
        let missing = (needed - held as f64).max(held as f64 * 0.15).max(32.0);
        // The casts: `missing` is at least 32 and saturates, `round` lies below CODES_MAX.
        let (cells, degree) = (missing as u32, 2);
        let worthwhile = held as f64 + missing < self.length as f64 * 0.6;
        match Geometry::new(self.length, cells, degree) {
            Some(_) if round < CODES_MAX && worthwhile => Request::Cells { cells, degree, round: round as u8 },
            _ => Request::Entropy,
        }
    }
}

fn split_checksum(body: &[u8]) -> Result<(u64, &[u8]), ActivationError> {
    match body.split_first_chunk::<CHECKSUM_BYTES>() {
        Some((checksum, rest)) => Ok((u64::from_le_bytes(*checksum), rest)),
        None => Err(ActivationError::Length { bytes: 1 + body.len(), expected: 1 + CHECKSUM_BYTES }),
    }
}

/// The byte nearest to `x` whose `low_bits` lowest bits are `low`; of two equally near ones the smaller.
fn nearest(x: u8, low: u8, low_bits: u8) -> u8 {
    let step = 1i32 << low_bits;
    let below = (i32::from(x) & -step) + i32::from(low);
    // `below` may be above x as well; the neighbours on both sides decide.
    let candidates = [below - step, below, below + step];
    let mut best = below;
    for candidate in candidates {
        let (distance, best_distance) = ((candidate - i32::from(x)).abs(), (best - i32::from(x)).abs());
        if (0..256).contains(&candidate)
            && (distance < best_distance || (distance == best_distance && candidate < best))
        {
            best = candidate;
        }
    }
    // In range: `below` always is, and only candidates in range replace it.
    best as u8
}
