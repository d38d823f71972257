//! Weights down: what changed between two versions of a step's constants, in few bytes.
//!
//! `new[i] = old[i] + d[i]` modulo 256 for the int8 weights of all tensors, concatenated in program order, and modulo
//! `2^32` for the int32 biases, which have a section of their own. With `k` of `n` weights changed, the encoded form holds
//! the gaps between them and the values `d`, in two entropy-coded streams whose bits approach
//! `n (h(k/n) + k/n H0(d | d != 0))` and fall below it where changes crowd together. Layout: `docs/wire.md`.
//!
//! Promises: decoding gives back `new` exactly; never more than the raw constants plus [`HEADER_BYTES`]; hostile bytes
//! never panic, change nothing and allocate in proportion to themselves or to the receiver's own constants.
//!
//! Read [`encode`] and [`decode`] first, then `sparse`; [`hold_back`] is the optional lossy part, on the sender's side.

mod scan;
mod sparse;
#[cfg(test)]
mod tests;
mod threshold;
#[cfg(test)]
mod twin;

pub use threshold::{Rule, hold_back};

use crate::entropy::measure::byte_counts;
use crate::entropy::{CodingError, bytes, integers};

/// Most bytes that [`encode`] adds to one per weight and four per bias.
pub const HEADER_BYTES: usize = 1;
const VERSION: u8 = 1;

/// Why an increment could not be made or applied; the constants are as they were.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IncrementError {
    /// The two versions to compare differ in length.
    #[error("{what}: the old version has {old} elements, the new one {new}; an increment needs equal lengths")]
    Lengths {
        /// `weights` or `biases`.
        what: &'static str,
        /// Elements before.
        old: usize,
        /// Elements after.
        new: usize,
    },
    /// Positions are 32-bit.
    #[error("{0} weights in one increment; the most is 4294967295, split the step")]
    TooMany(usize),
    /// Written by a version of the format that this one does not know.
    #[error("increment of format version {0}; this side reads version 1")]
    Version(u8),
    /// The weights' section cannot be decoded.
    #[error("increment of weights: {0}")]
    Weights(CodingError),
    /// The biases' section cannot be decoded.
    #[error("increment of biases: {0}")]
    Biases(CodingError),
    /// More changes than weights, none at all, or one behind the last weight.
    #[error("increment of weights: change {change} at position {position} of {elems}")]
    Position {
        /// Number of the change, from 0.
        change: u32,
        /// Where it would be.
        position: u64,
        /// Weights that there are.
        elems: usize,
    },
}

/// Constants that take other values: position in the concatenation and new value, by rising position.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Of the int8 weights.
    pub weights: Vec<(u32, i8)>,
    /// Of the int32 biases.
    pub biases: Vec<(u32, i32)>,
}

/// How a section is written; two bits each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Nothing changed; no bytes.
    Unchanged = 0,
    /// Weights: gaps and values. Biases: all differences, coded.
    Coded = 1,
    /// Weights: every difference as a byte, coded.
    Dense = 2,
    /// The new values.
    Raw = 3,
}

impl Mode {
    fn of(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::Unchanged,
            1 => Self::Coded,
            2 => Self::Dense,
            _ => Self::Raw,
        }
    }
}

/// The increment from `old_*` to `new_*`, at most `new_weights.len() + 4 new_biases.len() + HEADER_BYTES` bytes.
///
/// # Errors
/// [`IncrementError::Lengths`], [`IncrementError::TooMany`].
pub fn encode(
    old_weights: &[i8],
    new_weights: &[i8],
    old_biases: &[i32],
    new_biases: &[i32],
) -> Result<Vec<u8>, IncrementError> {
    same_length("weights", old_weights.len(), new_weights.len())?;
    same_length("biases", old_biases.len(), new_biases.len())?;
    let n = u32::try_from(new_weights.len()).map_err(|_| IncrementError::TooMany(new_weights.len()))?;
    u32::try_from(new_biases.len()).map_err(|_| IncrementError::TooMany(new_biases.len()))?;
    let (bias_mode, biases) = encode_biases(old_biases, new_biases);
    let (weight_mode, weights) = encode_weights(n, old_weights, new_weights);
    let mut out = Vec::with_capacity(1 + biases.len() + weights.len());
    out.push(VERSION << 4 | (bias_mode as u8) << 2 | weight_mode as u8);
    out.extend(biases);
    out.extend(weights);
    Ok(out)
}

fn same_length(what: &'static str, old: usize, new: usize) -> Result<(), IncrementError> {
    if old == new { Ok(()) } else { Err(IncrementError::Lengths { what, old, new }) }
}

fn encode_weights(n: u32, old: &[i8], new: &[i8]) -> (Mode, Vec<u8>) {
    let k = scan::count(old, new);
    let (mode, section) = if k == 0 {
        return (Mode::Unchanged, Vec::new());
    } else if k > new.len() / 3 {
        // From here on a gap says little: a token for every weight costs the same bits and less time.
        let differences: Vec<u8> = old.iter().zip(new).map(|(o, n)| n.wrapping_sub(*o).cast_unsigned()).collect();
        (Mode::Dense, bytes::encode_section(&differences, &byte_counts(&differences)).unwrap_or_default())
    } else {
        (Mode::Coded, sparse::encode(n, &scan::scan(old, new, k)))
    };
    if section.len() < new.len() {
        (mode, section)
    } else {
        (Mode::Raw, new.iter().map(|weight| weight.cast_unsigned()).collect())
    }
}

fn encode_biases(old: &[i32], new: &[i32]) -> (Mode, Vec<u8>) {
    if old == new {
        return (Mode::Unchanged, Vec::new());
    }
    let differences: Vec<u32> = old.iter().zip(new).map(|(o, n)| integers::zigzag(n.wrapping_sub(*o))).collect();
    if let Some(section) = integers::encode_section(&differences) {
        let mut out = Vec::with_capacity(section.len() + 4);
        put_varint(&mut out, u32::try_from(section.len()).unwrap_or(u32::MAX));
        out.extend(section);
        if out.len() < 4 * new.len() {
            return (Mode::Coded, out);
        }
    }
    (Mode::Raw, new.iter().flat_map(|bias| bias.to_le_bytes()).collect())
}

/// Seven bits a byte, lowest first, the highest bit set in all but the last.
fn put_varint(out: &mut Vec<u8>, mut value: u32) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take_varint(bytes: &[u8]) -> Result<(u32, &[u8]), CodingError> {
    let mut value = 0u64;
    let mut rest = bytes;
    for shift in [0, 7, 14, 21, 28] {
        let (byte, after) = rest.split_first().ok_or(CodingError::Truncated)?;
        rest = after;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok((u32::try_from(value).map_err(|_| CodingError::Value)?, rest));
        }
    }
    Err(CodingError::Value)
}

/// The weights' section, decoded but not applied.
enum Weights<'a> {
    Unchanged,
    /// Positions, rising, and differences.
    Sparse(Vec<(u32, u8)>),
    /// A difference for every weight.
    Dense(Vec<u8>),
    /// The new weights.
    Raw(&'a [u8]),
}

struct Decoded<'a> {
    weights: Weights<'a>,
    /// The new biases.
    biases: Option<Vec<i32>>,
}

fn parse<'a>(bytes: &'a [u8], n: usize, biases: &[i32]) -> Result<Decoded<'a>, IncrementError> {
    let (head, rest) = bytes.split_first().ok_or(IncrementError::Weights(CodingError::Truncated))?;
    if head >> 4 != VERSION {
        return Err(IncrementError::Version(head >> 4));
    }
    let (biases, section) = parse_biases(Mode::of(head >> 2), rest, biases).map_err(IncrementError::Biases)?;
    let weights = match Mode::of(*head) {
        Mode::Unchanged if section.is_empty() => Weights::Unchanged,
        Mode::Unchanged => return Err(IncrementError::Weights(CodingError::Trailing)),
        Mode::Coded => Weights::Sparse(sparse::decode(section, n)?),
        Mode::Dense => Weights::Dense(bytes::decode_section(section, n).map_err(IncrementError::Weights)?),
        Mode::Raw if section.len() < n => return Err(IncrementError::Weights(CodingError::Truncated)),
        Mode::Raw if section.len() > n => return Err(IncrementError::Weights(CodingError::Trailing)),
        Mode::Raw => Weights::Raw(section),
    };
    Ok(Decoded { weights, biases })
}

/// New biases, and the bytes after their section.
type Biases<'a> = (Option<Vec<i32>>, &'a [u8]);

fn parse_biases<'a>(mode: Mode, rest: &'a [u8], old: &[i32]) -> Result<Biases<'a>, CodingError> {
    match mode {
        Mode::Unchanged => Ok((None, rest)),
        Mode::Coded => {
            let (bytes, rest) = take_varint(rest)?;
            let bytes = usize::try_from(bytes).map_err(|_| CodingError::Truncated)?;
            let (section, rest) = rest.split_at_checked(bytes).ok_or(CodingError::Truncated)?;
            let differences = integers::decode_section(section, old.len())?;
            let new = old.iter().zip(differences).map(|(old, d)| old.wrapping_add(integers::unzigzag(d)));
            Ok((Some(new.collect()), rest))
        }
        Mode::Dense => Err(CodingError::Mode(Mode::Dense as u8)),
        Mode::Raw => {
            let bytes = old.len().checked_mul(4).ok_or(CodingError::Truncated)?;
            let (section, rest) = rest.split_at_checked(bytes).ok_or(CodingError::Truncated)?;
            Ok((Some(section.as_chunks::<4>().0.iter().map(|four| i32::from_le_bytes(*four)).collect()), rest))
        }
    }
}

/// Turns the old constants into the new ones.
///
/// # Errors
/// [`IncrementError`]; `weights` and `biases` are unchanged then.
pub fn decode(bytes: &[u8], weights: &mut [i8], biases: &mut [i32]) -> Result<(), IncrementError> {
    let decoded = parse(bytes, weights.len(), biases)?;
    match decoded.weights {
        Weights::Unchanged => {}
        Weights::Sparse(changes) => {
            for (position, difference) in changes {
                if let Some(weight) = weights.get_mut(position as usize) {
                    *weight = weight.wrapping_add(difference.cast_signed());
                }
            }
        }
        Weights::Dense(differences) => {
            for (weight, difference) in weights.iter_mut().zip(differences) {
                *weight = weight.wrapping_add(difference.cast_signed());
            }
        }
        Weights::Raw(new) => {
            for (weight, new) in weights.iter_mut().zip(new) {
                *weight = new.cast_signed();
            }
        }
    }
    if let Some(new) = decoded.biases {
        biases.copy_from_slice(&new);
    }
    Ok(())
}

/// The constants that an increment changes, with their new values; for receivers that do not hold one array.
///
/// # Errors
/// [`IncrementError`].
pub fn decode_changes(bytes: &[u8], weights: &[i8], biases: &[i32]) -> Result<Changes, IncrementError> {
    let decoded = parse(bytes, weights.len(), biases)?;
    let dense = |new: &dyn Fn(i8, u8) -> i8, bytes: &[u8]| -> Vec<(u32, i8)> {
        let all = (0u32..).zip(weights.iter().zip(bytes)).map(|(at, (old, byte))| (at, *old, new(*old, *byte)));
        all.filter(|(_, old, new)| old != new).map(|(at, _, new)| (at, new)).collect()
    };
    let weights = match &decoded.weights {
        Weights::Unchanged => Vec::new(),
        Weights::Sparse(changes) => changes
            .iter()
            .filter_map(|&(at, d)| Some((at, weights.get(at as usize)?.wrapping_add(d.cast_signed()))))
            .collect(),
        Weights::Dense(differences) => dense(&|old, d| old.wrapping_add(d.cast_signed()), differences),
        Weights::Raw(new) => dense(&|_, new| new.cast_signed(), new),
    };
    let biases = (0u32..)
        .zip(biases.iter().zip(decoded.biases.iter().flatten()))
        .filter(|(_, (old, new))| old != new)
        .map(|(at, (_, new))| (at, *new))
        .collect();
    Ok(Changes { weights, biases })
}

/// Splits changes of a concatenation into those of its tensors, of `elems` elements each: position within the tensor and
/// value. Changes behind the last tensor are left out; positions must rise, as [`decode_changes`] gives them.
pub fn by_tensor<T: Copy>(changes: &[(u32, T)], elems: &[usize]) -> Vec<Vec<(u32, T)>> {
    let mut rest = changes;
    let mut start = 0u64;
    let mut tensors = Vec::with_capacity(elems.len());
    for elems in elems {
        let end = start.saturating_add(*elems as u64);
        let (inside, after) = rest.split_at(rest.partition_point(|(at, _)| u64::from(*at) < end));
        // Below 2^32, since `at` is.
        tensors.push(inside.iter().map(|(at, value)| ((u64::from(*at) - start) as u32, *value)).collect());
        (rest, start) = (after, end);
    }
    tensors
}
