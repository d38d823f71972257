//! The sparse section: `k` gaps and `k` values, gaps in lane 0, values in lane 1.
//!
//! varint `k`; the gaps' model and the values' model as one bit string, filled to whole bytes; a rANS section of two
//! lanes; the raw bits of gap 0, value 0, gap 1, value 1 and so on, in reversed byte order up to the section's end.

use super::scan::{Scan, difference};
use super::{IncrementError, put_varint, take_varint};
use crate::entropy::CodingError;
use crate::entropy::bits::{BackwardBits, BitReader, BitWriter};
use crate::entropy::model::{Classes, Counts, Domain, Model};
use crate::entropy::rans::{DecodeTable, Decoder, EncodeTable, Encoder, TOKENS};

const VALUES: Domain = Domain { max: 255, known: None };
const GAP: usize = 0;
const VALUE: usize = 1;

/// Gaps of `k` changes among `n` weights: at most `n - k`, geometric with `k / n` when changes fall anywhere.
fn gaps_domain(n: u32, k: u32) -> Domain {
    let known = (u64::from(k) << 32) / u64::from(n.max(1));
    Domain { max: n.saturating_sub(k), known: Some(u32::try_from(known).unwrap_or(u32::MAX)) }
}

/// The number of weights, so that a wrong one is noticed.
fn seals(n: u32) -> [u16; 2] {
    [((n ^ n >> 16) & 0xffff) as u16, 0]
}

/// The section for `n` weights of which some changed.
pub(super) fn encode(n: u32, scan: &Scan) -> Vec<u8> {
    let k = scan.gaps.len() as u32;
    let gap_counts = Counts { of: &scan.gap_counts, fine: Classes::FINEST };
    let value_counts = Counts { of: &scan.value_counts, fine: Classes::BYTES };
    let models = Model::choose(gap_counts, gaps_domain(n, k)).zip(Model::choose(value_counts, VALUES));
    // Counts of at least one change in classes that hold every number: there is a model.
    let Some((gap_model, value_model)) = models else { return Vec::new() };

    let value_splits: [(u8, u8); 256] = std::array::from_fn(|value| {
        let (token, raw) = value_model.classes().split(value as u32);
        (token as u8, raw as u8)
    });
    let gap_splits = gap_model.splits_of_finest();
    let mut raw = BitWriter::new();
    for ((&gap, &token), &value) in scan.gaps.iter().zip(&scan.gap_tokens).zip(&scan.values) {
        let gap_bits = u32::from(gap_splits[usize::from(token)].1);
        let value_bits = u32::from(value_splits[usize::from(value)].1);
        let gap = u64::from(gap) & ((1 << gap_bits) - 1);
        let value = u64::from(value) & ((1 << value_bits) - 1);
        raw.put_long(gap | value << gap_bits, gap_bits + value_bits);
    }
    let (gap_table, value_table) =
        (EncodeTable::new(gap_model.frequencies()), EncodeTable::new(value_model.frequencies()));
    let mut encoder = Encoder::<2>::new(seals(n), 2 * scan.gaps.len());
    for (&gap, &value) in scan.gap_tokens.iter().zip(&scan.values).rev() {
        encoder.put(VALUE, &value_table, value_splits[usize::from(value)].0);
        encoder.put(GAP, &gap_table, gap_splits[usize::from(gap)].0);
    }

    let mut out = Vec::new();
    put_varint(&mut out, k);
    let mut models = BitWriter::new();
    gap_model.write(&mut models);
    value_model.write(&mut models);
    out.extend(models.into_bytes());
    encoder.finish(&mut out);
    out.extend(raw.into_reversed_bytes());
    out
}

/// Positions, rising and below `elems`, and differences.
///
/// # Errors
/// [`IncrementError::Weights`], [`IncrementError::Position`].
pub(super) fn decode(section: &[u8], elems: usize) -> Result<Vec<(u32, u8)>, IncrementError> {
    let n = u32::try_from(elems).map_err(|_| IncrementError::TooMany(elems))?;
    let (k, rest) = take_varint(section).map_err(IncrementError::Weights)?;
    if k == 0 || k > n {
        return Err(IncrementError::Position { change: k, position: k.into(), elems });
    }
    let mut reader = BitReader::new(rest);
    let models = (|| {
        let gaps = Model::read(&mut reader, gaps_domain(n, k))?;
        Ok((gaps, Model::read(&mut reader, VALUES)?))
    })();
    let (gap_model, value_model) = models.map_err(IncrementError::Weights)?;
    let section = reader.into_rest().map_err(IncrementError::Weights)?;
    let tables = Tables::new(&gap_model, &value_model);
    let mut decoder = Decoder::<2>::new(section).map_err(IncrementError::Weights)?;
    let mut raw = BackwardBits::new(section);
    // A change usually costs a byte; where it costs less the list grows.
    let mut changes = Vec::with_capacity((k as usize).min(section.len().saturating_mul(2)));
    let mut next = 0u64;
    for change in 0..k {
        let (gap, gap_bits) = tables.gap_bases[usize::from(decoder.get(GAP, &tables.gaps))];
        let (value, value_bits) = tables.value_bases[usize::from(decoder.get(VALUE, &tables.values))];
        raw.refill();
        let position = next + u64::from(gap) + u64::from(raw.take(gap_bits));
        let value = value + raw.take(value_bits);
        if position >= u64::from(n) {
            return Err(IncrementError::Position { change, position, elems });
        }
        changes.push((position as u32, difference(value as u8)));
        next = position + 1;
    }
    let finished: Result<(), CodingError> = decoder.finish(seals(n)).and_then(|used| raw.finish(used));
    finished.map_err(IncrementError::Weights)?;
    Ok(changes)
}

struct Tables {
    gaps: DecodeTable,
    values: DecodeTable,
    gap_bases: Box<[(u32, u32); TOKENS]>,
    value_bases: Box<[(u32, u32); TOKENS]>,
}

impl Tables {
    fn new(gaps: &Model, values: &Model) -> Self {
        Self {
            gaps: DecodeTable::new(gaps.frequencies()),
            values: DecodeTable::new(values.frequencies()),
            gap_bases: gaps.bases(),
            value_bases: values.bases(),
        }
    }
}
