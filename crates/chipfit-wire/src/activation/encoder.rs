//! The device's end: from the bytes of a layer and the server's parameters to a payload.

use super::cells::cells;
use super::checksum::checksum;
use super::graph::{Geometry, mix};
use super::parameters::{Mode, Parameters, Request};
use crate::entropy::bytes;

pub(super) const RAW: u8 = 0;
pub(super) const CODED: u8 = 1;
pub(super) const CELLS: u8 = 2;
pub(super) const CHECKSUM_BYTES: usize = 8;

/// Key of the graph of a round; round 0 is the first payload.
pub(super) fn graph_key(key: u64, round: u8) -> u64 {
    mix(key ^ u64::from(round).wrapping_mul(0xa076_1d64_78bd_642f))
}

/// The first payload for a layer whose bytes are `layer`; at most `layer.len() + HEADER_BYTES` bytes.
pub fn first(layer: &[u8], parameters: &Parameters) -> Vec<u8> {
    match parameters.mode {
        Mode::Raw => raw(layer),
        Mode::Entropy => coded(layer, parameters.key),
        Mode::Cells { cells: wanted, degree, low_bits } => match Geometry::new(layer.len(), wanted, degree) {
            None => coded(layer, parameters.key),
            Some(geometry) => {
                let mut out = Vec::with_capacity(1 + CHECKSUM_BYTES + geometry.cells());
                out.push(CELLS);
                out.extend_from_slice(&checksum(parameters.key, layer).to_le_bytes());
                out.extend_from_slice(&cells(geometry, graph_key(parameters.key, 0), layer));
                if low_bits > 0 {
                    let mask = low_mask(low_bits);
                    let low: Vec<u8> = layer.iter().map(|byte| byte & mask).collect();
                    out.extend_from_slice(&bytes::encode(&low));
                }
                if out.len() < layer.len() { out } else { coded(layer, parameters.key) }
            }
        },
    }
}

/// The answer to `request` for the same layer.
pub fn more(layer: &[u8], parameters: &Parameters, request: &Request) -> Vec<u8> {
    match *request {
        Request::Entropy => coded(layer, parameters.key),
        Request::Cells { cells: wanted, degree, round } => match Geometry::new(layer.len(), wanted, degree) {
            None => coded(layer, parameters.key),
            Some(geometry) => {
                let mut out = Vec::with_capacity(1 + geometry.cells());
                out.push(CELLS);
                out.extend_from_slice(&cells(geometry, graph_key(parameters.key, round), layer));
                out
            }
        },
    }
}

/// The `low_bits` lowest bits set; `low_bits` at most 7.
pub(super) fn low_mask(low_bits: u8) -> u8 {
    (1u8 << low_bits.min(7)) - 1
}

fn raw(layer: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + layer.len());
    out.push(RAW);
    out.extend_from_slice(layer);
    out
}

fn coded(layer: &[u8], key: u64) -> Vec<u8> {
    let section = bytes::encode(layer);
    if 1 + CHECKSUM_BYTES + section.len() > layer.len() {
        return raw(layer);
    }
    let mut out = Vec::with_capacity(1 + CHECKSUM_BYTES + section.len());
    out.push(CODED);
    out.extend_from_slice(&checksum(key, layer).to_le_bytes());
    out.extend_from_slice(&section);
    out
}
