//! rANS: tokens to 16-bit words at a cost of `-log2 p(token)` bits each.
//!
//! A lane's state is a number `x` in `2^16 .. 2^32`. With token frequencies `f` that sum to `2^14`, and `c` the sum of the
//! frequencies before a token, encoding maps `x` to `(x / f) 2^14 + c + x mod f` and decoding inverts it; when `x` would
//! leave its range, 16 bits move to or from the words. Several lanes share one sequence of words: their arithmetic
//! overlaps in the processor. The encoder works from the last token to the first.
//!
//! Section: every lane's final state (u32, little-endian), then the words (u16, little-endian) in the order of decoding.
//! Every lane starts from `2^16 + seal`; the decoder must end there, which notices damaged bytes and wrong lengths.
//!
//! Source: J. Duda, "Asymmetric numeral systems", arXiv 1311.2540; division by a reciprocal as F. Giesen describes it.

use super::CodingError;

/// Frequencies sum to `2^PRECISION`.
pub const PRECISION: u32 = 14;
/// `2^PRECISION`.
pub const TOTAL: usize = 1 << PRECISION;
/// Least state of a lane.
const LOW: u32 = 1 << 16;
/// A token is a byte.
pub const TOKENS: usize = 256;

/// How often each token is expected, out of [`TOTAL`]; 0 for one that cannot occur.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frequencies {
    of: [u16; TOKENS],
}

impl Frequencies {
    /// In proportion to `weights` (at most 256, each below `2^40`), at least 1 for every weight that is not 0.
    ///
    /// `None` when all weights are 0, one is too large, or there are more than 256.
    pub fn in_proportion(weights: &[u64]) -> Option<Self> {
        let sum: u64 = weights.iter().try_fold(0u64, |sum, &w| (w >> 40 == 0).then(|| sum + w))?;
        if sum == 0 || weights.len() > TOKENS {
            return None;
        }
        let mut of = [0u16; TOKENS];
        let mut assigned = 0u32;
        for (frequency, &weight) in of.iter_mut().zip(weights) {
            if weight > 0 {
                let rounded = ((weight << PRECISION) + sum / 2) / sum;
                *frequency = u16::try_from(rounded.max(1)).ok()?;
                assigned += u32::from(*frequency);
            }
        }
        // Rounding left a remainder: the most frequent token, the first among equals, takes it.
        let total = TOTAL as u32;
        while assigned != total {
            let largest = of.iter_mut().rev().max_by_key(|frequency| **frequency)?;
            let before = u32::from(*largest);
            let after = if assigned < total {
                before + (total - assigned)
            } else {
                before.saturating_sub((assigned - total).min(before.div_ceil(4))).max(1)
            };
            *largest = u16::try_from(after).ok()?;
            assigned = assigned - before + after;
        }
        Some(Self { of })
    }

    /// Of one token, out of [`TOTAL`].
    pub fn get(&self, token: u8) -> u32 {
        u32::from(self.of[usize::from(token)])
    }

    fn starts(&self) -> impl Iterator<Item = (usize, u32, u32)> + '_ {
        let mut start = 0;
        self.of.iter().enumerate().map(move |(token, &frequency)| {
            let frequency = u32::from(frequency);
            start += frequency;
            (token, start - frequency, frequency)
        })
    }
}

/// What encoding one token needs: no division.
#[derive(Clone, Copy, Debug, Default)]
struct EncodeToken {
    /// `ceil(2^64 / f)`, or `2^64 - 1` for `f` = 1, which the bias makes up for.
    reciprocal: u64,
    /// From this state on, 16 bits move out first.
    limit: u64,
    bias: u32,
    /// `2^14 - f`.
    complement: u32,
}

/// Frequencies prepared for encoding.
#[derive(Clone, Debug)]
pub struct EncodeTable {
    tokens: Box<[EncodeToken; TOKENS]>,
}

impl EncodeTable {
    /// Prepares.
    pub fn new(frequencies: &Frequencies) -> Self {
        let mut tokens = Box::new([EncodeToken::default(); TOKENS]);
        for (token, start, frequency) in frequencies.starts() {
            let complement = TOTAL as u32 - frequency;
            let limit = u64::from(frequency) << (32 - PRECISION);
            tokens[token] = match frequency {
                0 => EncodeToken { reciprocal: 0, limit: u64::MAX, bias: 0, complement: 0 },
                1 => EncodeToken { reciprocal: u64::MAX, limit, bias: start + complement, complement },
                f => EncodeToken { reciprocal: u64::MAX / u64::from(f) + 1, limit, bias: start, complement },
            };
        }
        Self { tokens }
    }
}

/// Frequencies prepared for decoding.
#[derive(Clone, Debug)]
pub struct DecodeTable {
    token_of_slot: Box<[u8; TOTAL]>,
    /// Frequency and start of each token.
    tokens: Box<[(u16, u16); TOKENS]>,
}

impl DecodeTable {
    /// Prepares.
    pub fn new(frequencies: &Frequencies) -> Self {
        let mut token_of_slot = Box::new([0u8; TOTAL]);
        let mut tokens = Box::new([(0u16, 0u16); TOKENS]);
        let mut slots = token_of_slot.iter_mut();
        for (token, start, frequency) in frequencies.starts() {
            for slot in slots.by_ref().take(frequency as usize) {
                *slot = token as u8;
            }
            tokens[token] = (frequency as u16, start as u16);
        }
        Self { token_of_slot, tokens }
    }
}

/// Encodes tokens in `LANES` lanes, last token first.
#[derive(Clone, Debug)]
pub struct Encoder<const LANES: usize> {
    states: [u32; LANES],
    /// Room for the words; the first `n_words` are written.
    words: Vec<u16>,
    n_words: usize,
}

impl<const LANES: usize> Encoder<LANES> {
    /// Lanes that start at their seals, with room for this many tokens; more tokens cost a reallocation.
    pub fn new(seals: [u16; LANES], tokens: usize) -> Self {
        Self { states: seals.map(|seal| LOW + u32::from(seal)), words: vec![0; tokens], n_words: 0 }
    }

    /// Encodes the token that is decoded before all tokens put so far.
    ///
    /// # Panics
    /// When `lane` does not exist, and in debug builds when the table gives the token no frequency.
    #[inline]
    pub fn put(&mut self, lane: usize, table: &EncodeTable, token: u8) {
        let token = &table.tokens[usize::from(token)];
        debug_assert!(token.limit != u64::MAX, "a token that the table excludes");
        let state = self.states[lane];
        // No branch: whether a word moves out is close to random.
        match self.words.get_mut(self.n_words) {
            Some(word) => *word = state as u16,
            None => grow(&mut self.words, state as u16),
        }
        let moves = u64::from(state) >= token.limit;
        self.n_words += usize::from(moves);
        let state = state >> (16 * u32::from(moves));
        let quotient = ((u128::from(state) * u128::from(token.reciprocal)) >> 64) as u32;
        self.states[lane] = state.wrapping_add(token.bias).wrapping_add(quotient.wrapping_mul(token.complement));
    }

    /// Bytes that [`Encoder::finish`] will append.
    pub fn bytes(&self) -> usize {
        4 * LANES + 2 * self.n_words
    }

    /// Appends the section to `out`.
    pub fn finish(self, out: &mut Vec<u8>) {
        out.reserve(self.bytes());
        for state in self.states {
            out.extend_from_slice(&state.to_le_bytes());
        }
        let at = out.len();
        out.resize(at + 2 * self.n_words, 0);
        let (places, _) = out[at..].as_chunks_mut::<2>();
        for (place, word) in places.iter_mut().zip(self.words.iter().take(self.n_words).rev()) {
            *place = word.to_le_bytes();
        }
    }
}

#[cold]
fn grow(words: &mut Vec<u16>, word: u16) {
    words.push(word);
    words.resize(2 * words.len(), 0);
}

/// Decodes what [`Encoder`] wrote; after the bytes' end it reads zeros, which [`Decoder::finish`] reports.
#[derive(Clone, Debug)]
pub struct Decoder<'a, const LANES: usize> {
    states: [u32; LANES],
    bytes: &'a [u8],
    at: usize,
}

impl<'a, const LANES: usize> Decoder<'a, LANES> {
    /// Starts at the front of `bytes`.
    ///
    /// # Errors
    /// [`CodingError::Truncated`], or [`CodingError::State`] for a state out of range.
    pub fn new(bytes: &'a [u8]) -> Result<Self, CodingError> {
        let mut states = [0; LANES];
        let mut rest = bytes;
        for state in &mut states {
            let (four, after) = rest.split_first_chunk::<4>().ok_or(CodingError::Truncated)?;
            *state = u32::from_le_bytes(*four);
            if *state < LOW {
                return Err(CodingError::State);
            }
            rest = after;
        }
        Ok(Self { states, bytes, at: 4 * LANES })
    }

    /// The next token of `lane`.
    ///
    /// # Panics
    /// When `lane` does not exist.
    #[inline]
    pub fn get(&mut self, lane: usize, table: &DecodeTable) -> u8 {
        let state = self.states[lane];
        let slot = state & (TOTAL as u32 - 1);
        let token = table.token_of_slot[slot as usize % TOTAL];
        let (frequency, start) = table.tokens[usize::from(token)];
        // At most f ((2^18 - 1) + 1) - 1 < 2^32, and at least 4 f, so that one word always suffices.
        let state = u32::from(frequency) * (state >> PRECISION) + slot - u32::from(start);
        // No branch: whether a word moves in is close to random.
        let word = self.bytes.get(self.at..).and_then(|rest| rest.first_chunk::<2>());
        let word = word.map_or(0, |word| u32::from(u16::from_le_bytes(*word)));
        let moves = state < LOW;
        self.at += 2 * usize::from(moves);
        self.states[lane] = if moves { (state << 16) | word } else { state };
        token
    }

    /// Checks that every lane is back at its seal; returns the bytes used.
    ///
    /// # Errors
    /// [`CodingError::Truncated`] when words were missing, [`CodingError::State`].
    pub fn finish(self, seals: [u16; LANES]) -> Result<usize, CodingError> {
        if self.at > self.bytes.len() {
            return Err(CodingError::Truncated);
        }
        if self.states != seals.map(|seal| LOW + u32::from(seal)) {
            return Err(CodingError::State);
        }
        Ok(self.at)
    }
}

/// `log2(value)` in units of `2^-12`, less than four units too small, since twelve leading bits are looked at; 0 for 0
/// and 1. Integer arithmetic, so equal everywhere.
#[inline]
pub fn log2_fixed(value: u64) -> u64 {
    let shift = (64 - value.leading_zeros()).saturating_sub(12);
    u64::from(LOGARITHMS[(value >> shift) as usize % LOGARITHMS.len()]) + (u64::from(shift) << 12)
}

/// `log2` of the first numbers in units of `2^-12`, rounded down.
static LOGARITHMS: [u16; 1 << 12] = {
    let mut logarithms = [0; 1 << 12];
    let mut value = 2;
    while value < logarithms.len() {
        logarithms[value] = slow_log2(value as u64) as u16;
        value += 1;
    }
    logarithms
};

const fn slow_log2(value: u64) -> u64 {
    let whole = value.ilog2();
    // Mantissa in 1..2 with 31 bits after the point; squaring doubles the logarithm.
    let mut mantissa = value << (31 - whole);
    let mut log = whole as u64;
    let mut bits = 0;
    while bits < 12 {
        mantissa = (mantissa * mantissa) >> 31;
        let bit = mantissa >> 32;
        mantissa >>= bit;
        log = (log << 1) | bit;
        bits += 1;
    }
    log
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn logarithms_agree_with_the_library() {
        for value in (1..70_000u64).chain([1 << 32, u64::MAX, 123_456_789_012]) {
            let exact = (value as f64).log2() * 4096.0;
            let ours = log2_fixed(value) as f64;
            assert!(ours <= exact + 1e-6 && exact - ours < 4.0, "{value}: {ours} against {exact}");
        }
    }

    #[test]
    fn reciprocals_divide_exactly() {
        for frequency in 2..=TOTAL as u64 {
            let reciprocal = u64::MAX / frequency + 1;
            let limit = (frequency << 18).min(1 << 32);
            for x in [1, frequency - 1, frequency, LOW.into(), limit / 2, limit - frequency, limit - 1] {
                let quotient = ((u128::from(x) * u128::from(reciprocal)) >> 64) as u64;
                assert_eq!(quotient, x / frequency, "{x} / {frequency}");
            }
        }
    }

    /// The textbook coder: divisions, arbitrary tokens, states in a wide integer.
    fn naive_encode(frequencies: &Frequencies, tokens: &[u8], seal: u16) -> Vec<u8> {
        let starts: Vec<(usize, u32, u32)> = frequencies.starts().collect();
        let mut state = u64::from(LOW) + u64::from(seal);
        let mut words = Vec::new();
        for &token in tokens.iter().rev() {
            let (_, start, frequency) = starts[usize::from(token)];
            let encoded = |x: u64| ((x / u64::from(frequency)) << 14) + u64::from(start) + x % u64::from(frequency);
            if encoded(state) >> 32 != 0 {
                words.push(state as u16);
                state >>= 16;
            }
            state = encoded(state);
        }
        let mut out = (state as u32).to_le_bytes().to_vec();
        out.extend(words.iter().rev().flat_map(|word| word.to_le_bytes()));
        out
    }

    proptest! {
        #[test]
        fn frequencies_sum_up_and_keep_every_token(weights in prop::collection::vec(
            prop_oneof![Just(0u64), 1u64..5, 0u64..1 << 40, Just((1 << 40) - 1)], 1..=256)) {
            let Some(frequencies) = Frequencies::in_proportion(&weights) else {
                prop_assert!(weights.iter().all(|&w| w == 0));
                return Ok(());
            };
            prop_assert_eq!((0..=255).map(|t| frequencies.get(t)).sum::<u32>(), TOTAL as u32);
            for token in 0..=255u8 {
                let present = weights.get(usize::from(token)).is_some_and(|&w| w > 0);
                prop_assert_eq!(frequencies.get(token) > 0, present);
            }
        }

        #[test]
        fn tokens_come_back_and_equal_the_textbook(
            weights in prop::collection::vec(prop_oneof![Just(0u64), Just(1), 0u64..100, Just(1 << 30)], 1..=256),
            draws in prop::collection::vec(any::<u16>(), 0..400),
            seals: [u16; 3],
        ) {
            let Some(frequencies) = Frequencies::in_proportion(&weights) else { return Ok(()) };
            let (encode, decode) = (EncodeTable::new(&frequencies), DecodeTable::new(&frequencies));
            let tokens: Vec<u8> =
                draws.iter().map(|&draw| decode.token_of_slot[usize::from(draw) % TOTAL]).collect();
            let mut encoder = Encoder::new(seals, 0);
            for (i, &token) in tokens.iter().enumerate().rev() {
                encoder.put(i % 3, &encode, token);
            }
            let mut bytes = Vec::new();
            encoder.finish(&mut bytes);
            let mut decoder = Decoder::<3>::new(&bytes)?;
            for (i, &token) in tokens.iter().enumerate() {
                prop_assert_eq!(decoder.get(i % 3, &decode), token);
            }
            prop_assert_eq!(decoder.clone().finish(seals), Ok(bytes.len()));
            prop_assert_eq!(decoder.finish([!seals[0], seals[1], seals[2]]), Err(CodingError::State));
            let mut single = Encoder::new([seals[0]], 0);
            for &token in tokens.iter().rev() {
                single.put(0, &encode, token);
            }
            let mut bytes = Vec::new();
            single.finish(&mut bytes);
            prop_assert_eq!(bytes, naive_encode(&frequencies, &tokens, seals[0]));
        }
    }

    #[test]
    fn a_coder_reaches_the_entropy() {
        let weights = [9000u64, 5000, 1500, 800, 80, 4];
        let frequencies = Frequencies::in_proportion(&weights).expect("weights");
        let table = EncodeTable::new(&frequencies);
        // Exactly the announced shares, spread evenly over 163,840 tokens.
        let mut left: Vec<f64> = weights.iter().map(|_| 0.0).collect();
        let mut counts = [0u64; 6];
        let mut encoder = Encoder::new([0], 0);
        for _ in 0..163_840 {
            let mut next = 0;
            for (token, owed) in left.iter_mut().enumerate() {
                *owed += f64::from(frequencies.get(token as u8)) / TOTAL as f64;
            }
            for token in 1..6 {
                if left[token] > left[next] {
                    next = token;
                }
            }
            left[next] -= 1.0;
            counts[next] += 1;
            encoder.put(0, &table, next as u8);
        }
        let bound = crate::entropy::measure::order0_bits(&counts) / 8.0;
        let ratio = encoder.bytes() as f64 / bound;
        assert!((1.0..1.001).contains(&ratio), "{ratio}");
    }
}
