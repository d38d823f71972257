//! Sequences of unsigned numbers: a [`Model`]'s tokens in two lanes, low bits raw, everything raw where that is shorter.
//!
//! First byte: 0 the numbers follow as u32, little-endian; 1 a model, filled to whole bytes, then a [`rans`] section of
//! two lanes, number `i` in lane `i mod 2`, then the raw bits of all numbers in reversed byte order up to the end.
//! The count of numbers is known to the receiver and seals lane 0. Signed numbers: [`zigzag`].
//!
//! [`rans`]: super::rans

use super::CodingError;
use super::bits::{BackwardBits, BitReader, BitWriter};
use super::model::{Classes, Counts, Domain, Model};
use super::rans::{DecodeTable, Decoder, EncodeTable, Encoder, TOKENS};

/// Most bytes that [`encode`] adds to four per number.
pub const HEADER_BYTES: usize = 1;
const RAW: u8 = 0;
const CODED: u8 = 1;
const LANES: usize = 2;
const DOMAIN: Domain = Domain { max: u32::MAX, known: None };

/// 0, -1, 1, -2, 2 ... as 0, 1, 2, 3, 4 ...: small magnitudes become small numbers.
pub fn zigzag(value: i32) -> u32 {
    (value << 1 ^ value >> 31).cast_unsigned()
}

/// Inverse of [`zigzag`].
pub fn unzigzag(number: u32) -> i32 {
    (number >> 1).cast_signed() ^ -((number & 1).cast_signed())
}

/// At most `4 numbers.len() + HEADER_BYTES` bytes, from which [`decode`] gives the numbers back.
pub fn encode(numbers: &[u32]) -> Vec<u8> {
    let raw = numbers.len() * 4;
    match encode_section(numbers) {
        Some(section) if section.len() < raw => [&[CODED], section.as_slice()].concat(),
        _ => {
            let mut out = Vec::with_capacity(1 + raw);
            out.push(RAW);
            out.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
            out
        }
    }
}

/// The `n` numbers that were encoded.
///
/// # Errors
/// [`CodingError`]; in raw mode also when the number of bytes is not `4 n`.
pub fn decode(coded: &[u8], n: usize) -> Result<Vec<u32>, CodingError> {
    let (mode, body) = coded.split_first().ok_or(CodingError::Truncated)?;
    match *mode {
        RAW => {
            let (words, rest) = body.as_chunks::<4>();
            match (words.len().cmp(&n), rest.is_empty()) {
                (std::cmp::Ordering::Equal, true) => Ok(words.iter().map(|word| u32::from_le_bytes(*word)).collect()),
                (std::cmp::Ordering::Less, _) => Err(CodingError::Truncated),
                _ => Err(CodingError::Trailing),
            }
        }
        CODED => decode_section(body, n),
        mode => Err(CodingError::Mode(mode)),
    }
}

fn seals(n: usize) -> [u16; LANES] {
    [(n & 0xffff) as u16, 0]
}

pub(crate) fn encode_section(numbers: &[u32]) -> Option<Vec<u8>> {
    let mut counts = [0u64; TOKENS];
    for &number in numbers {
        counts[Classes::FINEST.split(number).0 as usize % TOKENS] += 1;
    }
    let model = Model::choose(Counts { of: &counts, fine: Classes::FINEST }, DOMAIN)?;
    let classes = model.classes();
    let mut raw = BitWriter::new();
    let mut tokens = Vec::with_capacity(numbers.len());
    for &number in numbers {
        let (token, bits) = classes.split(number);
        tokens.push(token as u8);
        raw.put(number & ((1u64 << bits) - 1) as u32, bits);
    }
    let table = EncodeTable::new(model.frequencies());
    let mut encoder = Encoder::<LANES>::new(seals(numbers.len()), numbers.len());
    for (i, &token) in tokens.iter().enumerate().rev() {
        encoder.put(i % LANES, &table, token);
    }
    let mut writer = BitWriter::new();
    model.write(&mut writer);
    let mut out = writer.into_bytes();
    encoder.finish(&mut out);
    out.extend(raw.into_reversed_bytes());
    Some(out)
}

pub(crate) fn decode_section(section: &[u8], n: usize) -> Result<Vec<u32>, CodingError> {
    let mut reader = BitReader::new(section);
    let model = Model::read(&mut reader, DOMAIN)?;
    let section = reader.into_rest()?;
    let (table, bases) = (DecodeTable::new(model.frequencies()), model.bases());
    let mut decoder = Decoder::<LANES>::new(section)?;
    let mut raw = BackwardBits::new(section);
    let mut numbers = vec![0; n];
    for (i, number) in numbers.iter_mut().enumerate() {
        let (base, bits) = bases[usize::from(decoder.get(i % LANES, &table))];
        raw.refill();
        *number = base.checked_add(raw.take(bits)).ok_or(CodingError::Value)?;
    }
    raw.finish(decoder.finish(seals(n))?)?;
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::entropy::measure::order0_bits;

    fn numbers() -> impl Strategy<Value = Vec<u32>> {
        (0u32..32, prop::collection::vec(any::<u32>(), 0..120))
            .prop_map(|(shift, numbers)| numbers.into_iter().map(|number| number >> shift).collect())
    }

    proptest! {
        #[test]
        fn numbers_come_back(numbers in numbers()) {
            let coded = encode(&numbers);
            prop_assert!(coded.len() <= 4 * numbers.len() + HEADER_BYTES);
            prop_assert_eq!(decode(&coded, numbers.len())?, numbers.clone());
            prop_assert!(decode(&coded, numbers.len() + 1).is_err());
            for end in 0..coded.len() {
                prop_assert!(decode(&coded[..end], numbers.len()).is_err());
            }
        }

        #[test]
        fn damage_never_panics(numbers in numbers(), at: prop::sample::Index, change in 1u8..) {
            let mut coded = encode(&numbers);
            *at.get_mut(&mut coded) ^= change;
            if let Ok(other) = decode(&coded, numbers.len()) {
                prop_assert_eq!(other.len(), numbers.len());
            }
        }

        #[test]
        fn zigzag_is_a_bijection(value: i32) {
            prop_assert_eq!(unzigzag(zigzag(value)), value);
            prop_assert!(zigzag(value) / 2 <= value.unsigned_abs());
        }
    }

    #[test]
    fn small_and_large_numbers_cost_their_entropy() {
        // Magnitudes spread over several octaves: about 10 bits each, not 32.
        let mut state = 7u32;
        let numbers: Vec<u32> = (0..20_000)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 12) % 500 + (state >> 20) % 500
            })
            .collect();
        let mut counts = [0u64; 1000];
        for &number in &numbers {
            counts[number as usize] += 1;
        }
        let ratio = encode(&numbers).len() as f64 * 8.0 / order0_bits(&counts);
        assert!(ratio < 1.02, "{ratio}");
    }
}
