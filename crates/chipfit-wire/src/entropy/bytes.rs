//! Bytes by their own frequencies: order-0 coding in four lanes, raw where that is shorter.
//!
//! First byte: 0 raw bytes follow; 1 a [`Model`] over single bytes, filled to whole bytes, then a [`rans`] section of
//! four lanes, byte `i` in lane `i mod 4`. The number of bytes is known to the receiver and seals lane 0.
//!
//! [`rans`]: super::rans

use super::CodingError;
use super::bits::{BitReader, BitWriter};
use super::measure::byte_counts;
use super::model::{Classes, Domain, Model};
use super::rans::{DecodeTable, Decoder, EncodeTable, Encoder};

/// Most bytes that [`encode`] adds to its input.
pub const HEADER_BYTES: usize = 1;
const RAW: u8 = 0;
const CODED: u8 = 1;
const LANES: usize = 4;
const DOMAIN: Domain = Domain { max: 255, known: None };

/// At most `bytes.len() + HEADER_BYTES` bytes, from which [`decode`] gives `bytes` back.
pub fn encode(bytes: &[u8]) -> Vec<u8> {
    let coded = encode_section(bytes, &byte_counts(bytes));
    let (mode, body) = match &coded {
        Some(section) if section.len() < bytes.len() => (CODED, section.as_slice()),
        _ => (RAW, bytes),
    };
    let mut out = Vec::with_capacity(1 + body.len());
    out.push(mode);
    out.extend_from_slice(body);
    out
}

/// The `n` bytes that were encoded.
///
/// # Errors
/// [`CodingError`]; in raw mode also when the number of bytes is not `n`.
pub fn decode(coded: &[u8], n: usize) -> Result<Vec<u8>, CodingError> {
    let (mode, body) = coded.split_first().ok_or(CodingError::Truncated)?;
    match *mode {
        RAW if body.len() < n => Err(CodingError::Truncated),
        RAW if body.len() > n => Err(CodingError::Trailing),
        RAW => Ok(body.to_vec()),
        CODED => decode_section(body, n),
        mode => Err(CodingError::Mode(mode)),
    }
}

fn seals(n: usize) -> [u16; LANES] {
    [(n & 0xffff) as u16, 0, 0, 0]
}

/// Model and words without the first byte; `counts` are of `bytes`. `None` for no bytes.
pub(crate) fn encode_section(bytes: &[u8], counts: &[u64; 256]) -> Option<Vec<u8>> {
    let model = Model::choose_bytes(counts)?;
    let table = EncodeTable::new(model.frequencies());
    let mut encoder = Encoder::<LANES>::new(seals(bytes.len()), bytes.len());
    let whole = bytes.chunks_exact(LANES);
    for (lane, &byte) in whole.remainder().iter().enumerate().rev() {
        encoder.put(lane, &table, byte);
    }
    for four in whole.rev() {
        for (lane, &byte) in four.iter().enumerate().rev() {
            encoder.put(lane, &table, byte);
        }
    }
    let mut writer = BitWriter::new();
    model.write(&mut writer);
    let mut out = writer.into_bytes();
    encoder.finish(&mut out);
    Some(out)
}

pub(crate) fn decode_section(section: &[u8], n: usize) -> Result<Vec<u8>, CodingError> {
    let mut reader = BitReader::new(section);
    let model = Model::read(&mut reader, DOMAIN)?;
    if model.classes() != Classes::BYTES {
        return Err(CodingError::Table("bytes need classes of single bytes"));
    }
    let section = reader.into_rest()?;
    let table = DecodeTable::new(model.frequencies());
    let mut decoder = Decoder::<LANES>::new(section)?;
    let mut bytes = vec![0; n];
    let mut whole = bytes.chunks_exact_mut(LANES);
    for four in &mut whole {
        for (lane, byte) in four.iter_mut().enumerate() {
            *byte = decoder.get(lane, &table);
        }
    }
    for (lane, byte) in whole.into_remainder().iter_mut().enumerate() {
        *byte = decoder.get(lane, &table);
    }
    match decoder.finish(seals(n))? {
        used if used == section.len() => Ok(bytes),
        _ => Err(CodingError::Trailing),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::entropy::measure::order0_bits;

    fn skewed() -> impl Strategy<Value = Vec<u8>> {
        (0u32..8, prop::collection::vec(any::<u8>(), 0..200))
            .prop_map(|(shift, bytes)| bytes.into_iter().map(|byte| byte >> shift).collect())
    }

    proptest! {
        #[test]
        fn bytes_come_back(bytes in skewed()) {
            let coded = encode(&bytes);
            prop_assert!(coded.len() <= bytes.len() + HEADER_BYTES);
            prop_assert_eq!(decode(&coded, bytes.len())?, bytes.clone());
            prop_assert!(decode(&coded, bytes.len() + 1).is_err());
            for end in 0..coded.len() {
                prop_assert!(decode(&coded[..end], bytes.len()).is_err());
            }
        }

        #[test]
        fn damage_never_panics(bytes in skewed(), at: prop::sample::Index, change in 1u8..) {
            let mut coded = encode(&bytes);
            *at.get_mut(&mut coded) ^= change;
            if let Ok(other) = decode(&coded, bytes.len()) {
                prop_assert_eq!(other.len(), bytes.len());
            }
        }
    }

    #[test]
    fn long_inputs_reach_the_entropy() {
        let mut state = 1u32;
        let bytes: Vec<u8> = (0..200_000)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8).leading_zeros().min(40) as u8 ^ (state as u8 >> 6 & 1)
            })
            .collect();
        let bound = order0_bits(&byte_counts(&bytes)) / 8.0;
        let ratio = encode(&bytes).len() as f64 / bound;
        assert!(ratio < 1.005, "{ratio}");
    }
}
