//! Numbers as tokens, and the tables of their probabilities in few bytes.
//!
//! A [`Classes`] says how a number splits into a token (entropy coded) and its low bits (sent raw): small numbers are
//! tokens of their own, larger ones share a token per part of an octave. A [`Model`] adds how likely the tokens are:
//!
//! - *geometric*: from one parameter, which costs nothing where both ends know it (gaps between `k` of `n` places);
//! - *levels*: every token that occurs has a logarithm in steps of 1, 1/2, 1/4 or 1/8, so that a table of 18 values costs
//!   about 8 bytes, and the step follows the number of numbers coded;
//! - *flat*: all alike.
//!
//! [`Model::choose`] takes the cheapest, tables included. The arithmetic is on integers, so both ends agree to the bit.

use std::ops::Range;

use super::CodingError;
use super::bits::{BitReader, BitWriter};
use super::rans::{Frequencies, PRECISION, TOKENS, log2_fixed};

/// `round(2^(i/16) 2^30)`.
const POWERS: [u64; 16] = [
    1_073_741_824,
    1_121_280_436,
    1_170_923_762,
    1_222_764_986,
    1_276_901_417,
    1_333_434_672,
    1_392_470_869,
    1_454_120_821,
    1_518_500_250,
    1_585_730_000,
    1_655_936_265,
    1_729_250_827,
    1_805_811_301,
    1_885_761_398,
    1_969_251_188,
    2_056_437_387,
];
/// Units of [`log2_fixed`] in one bit.
const BIT: u64 = 1 << 12;

/// How numbers split into tokens and raw bits.
///
/// The lowest `low` bits are raw. Of the rest, numbers below `2^split` are tokens; a larger one's token is its octave and
/// the `mantissa` bits after its leading one, and the bits below those are raw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Classes {
    split: u32,
    mantissa: u32,
    low: u32,
}

/// All that the wire knows, by number.
const CLASSES: [Classes; 8] = [
    Classes { split: 8, mantissa: 0, low: 0 },
    Classes { split: 7, mantissa: 0, low: 1 },
    Classes { split: 5, mantissa: 3, low: 0 },
    Classes { split: 4, mantissa: 2, low: 0 },
    Classes { split: 2, mantissa: 1, low: 0 },
    Classes { split: 4, mantissa: 2, low: 1 },
    Classes { split: 2, mantissa: 1, low: 1 },
    Classes { split: 3, mantissa: 1, low: 1 },
];

/// Tokens of the first numbers in [`Classes::FINEST`].
static FINEST_TOKENS: [u8; 1 << 12] = {
    let mut tokens = [0; 1 << 12];
    let mut number = 0;
    while number < tokens.len() {
        tokens[number] = CLASSES[2].split(number as u32).0 as u8;
        number += 1;
    }
    tokens
};

/// The token of a number in [`Classes::FINEST`].
#[inline]
pub(crate) fn finest_token(number: u32) -> u8 {
    match FINEST_TOKENS.get(number as usize) {
        Some(token) => *token,
        None => Classes::FINEST.split(number).0 as u8,
    }
}

impl Classes {
    /// Every number below 256 its own token.
    pub const BYTES: Self = CLASSES[0];
    /// The finest for any number; [`Self::BYTES`] and it refine all others on their domain.
    pub const FINEST: Self = CLASSES[2];

    /// Token and number of raw bits, which are the low ones of `number`.
    #[inline]
    pub const fn split(self, number: u32) -> (u32, u32) {
        let high = number >> self.low;
        if high >> self.split == 0 {
            return (high, self.low);
        }
        let octave = high.ilog2();
        let raw = octave - self.mantissa;
        let mantissa = (high >> raw) - (1 << self.mantissa);
        ((1 << self.split) + ((octave - self.split) << self.mantissa) + mantissa, raw + self.low)
    }

    /// Smallest number of a token, and its raw bits; inverse of [`Self::split`].
    fn base(self, token: u32) -> (u64, u32) {
        let Some(beyond) = token.checked_sub(1 << self.split) else {
            return (u64::from(token) << self.low, self.low);
        };
        let octave = self.split + (beyond >> self.mantissa);
        let mantissa = beyond & ((1 << self.mantissa) - 1);
        let raw = octave - self.mantissa;
        (u64::from((1 << self.mantissa) + mantissa) << (raw + self.low), raw + self.low)
    }

    /// Tokens of the numbers up to `max`; `None` above 256.
    fn tokens(self, max: u32) -> Option<usize> {
        let tokens = self.split(max).0 as usize + 1;
        (tokens <= TOKENS).then_some(tokens)
    }
}

/// How the shares of the tokens are described.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shares {
    /// `p (1 - p)^number` with `p = 2^(-exponent / 16)`.
    Geometric { exponent: u8 },
    /// The same with a `p` that both ends know.
    Known,
    /// `2^(level / resolution)` for the tokens that occur; `resolution` is `1 << .0`.
    Levels(u32),
    /// One each.
    Flat,
}

/// Classes with the frequencies of their tokens.
#[derive(Clone, Debug)]
pub struct Model {
    /// Index into `CLASSES`.
    number: usize,
    tokens: usize,
    shares: Shares,
    /// `levels[token]`: 0 for a token that does not occur, else its level plus 1. Empty unless shares are levels.
    levels: Vec<u32>,
    frequencies: Frequencies,
}

/// Numbers that a model is made for.
#[derive(Clone, Copy, Debug)]
pub struct Domain {
    /// Largest number.
    pub max: u32,
    /// Probability of 0 in units of `2^-32` when both ends know the numbers to be geometric with it.
    pub known: Option<u32>,
}

/// How often numbers occur, by token of `fine` classes.
#[derive(Clone, Copy, Debug)]
pub struct Counts<'a> {
    /// By token.
    pub of: &'a [u64; TOKENS],
    /// The classes of the tokens.
    pub fine: Classes,
}

impl Model {
    /// The model that codes the counted numbers in the fewest bits, its own description included.
    ///
    /// `None` when nothing is counted or no class fits the domain.
    pub fn choose(counts: Counts<'_>, domain: Domain) -> Option<Self> {
        Self::cheapest(counts, domain, 0..CLASSES.len())
    }

    /// The same among the models whose tokens are the counted bytes themselves: nothing is raw.
    pub fn choose_bytes(of: &[u64; TOKENS]) -> Option<Self> {
        let domain = Domain { max: 255, known: None };
        Self::cheapest(Counts { of, fine: Classes::BYTES }, domain, 0..1)
    }

    fn cheapest(counts: Counts<'_>, domain: Domain, numbers: Range<usize>) -> Option<Self> {
        let mut best: Option<(u64, Coarse, usize, Shares)> = None;
        for number in numbers {
            let Some(coarse) = merge(counts, number, domain) else { continue };
            let mut offers = vec![coarse.levels_offer(), (coarse.flat_cost(), Shares::Flat)];
            // Octaves in quarters follow a geometric law closely enough; other classes would only cost time.
            if coarse.split_in_quarters {
                let shares = match domain.known {
                    Some(_) => Shares::Known,
                    None => Shares::Geometric { exponent: coarse.exponent() },
                };
                if let Some(model) = Self::with(number, &coarse, shares, domain) {
                    offers.push((model.cost(&coarse) + 8 * BIT, shares));
                }
            }
            let Some((cost, shares)) = offers.into_iter().min_by_key(|offer| offer.0) else { continue };
            if best.as_ref().is_none_or(|(least, ..)| cost < *least) {
                best = Some((cost, coarse, number, shares));
            }
        }
        let (_, coarse, number, shares) = best?;
        Self::with(number, &coarse, shares, domain)
    }

    fn with(number: usize, coarse: &Coarse, shares: Shares, domain: Domain) -> Option<Self> {
        let levels = match shares {
            Shares::Levels(resolution) => coarse.levels(resolution),
            _ => Vec::new(),
        };
        let frequencies = frequencies(CLASSES.get(number)?, coarse.tokens, shares, &levels, domain)?;
        Some(Self { number, tokens: coarse.tokens, shares, levels, frequencies })
    }

    /// Bits of tokens and raw bits in units of `2^-12`.
    fn cost(&self, coarse: &Coarse) -> u64 {
        let mut cost = coarse.raw;
        for (token, &count) in (0u8..=255).zip(&coarse.counts) {
            if count > 0 {
                let bits = u64::from(PRECISION) * BIT - log2_fixed(u64::from(self.frequencies.get(token)));
                cost = cost.saturating_add(count.saturating_mul(bits));
            }
        }
        cost
    }

    /// How numbers split.
    pub fn classes(&self) -> Classes {
        CLASSES.get(self.number).copied().unwrap_or(Classes::FINEST)
    }

    /// How likely tokens are.
    pub fn frequencies(&self) -> &Frequencies {
        &self.frequencies
    }

    /// Smallest number and raw bits by token; tokens that do not exist stand for 0.
    pub fn bases(&self) -> Box<[(u32, u32); TOKENS]> {
        let mut bases = Box::new([(0, 0); TOKENS]);
        for (token, base) in (0u32..).zip(bases.iter_mut().take(self.tokens)) {
            let (smallest, raw) = self.classes().base(token);
            *base = (u32::try_from(smallest).unwrap_or(u32::MAX), raw);
        }
        bases
    }

    /// Token and raw bits, in this model's classes, of the numbers of each [`Classes::FINEST`] token; only for numbers in
    /// the domain and classes at most as fine.
    pub(crate) fn splits_of_finest(&self) -> [(u8, u8); TOKENS] {
        let classes = self.classes();
        std::array::from_fn(|token| {
            let (smallest, _) = Classes::FINEST.base(token as u32);
            let (token, raw) = classes.split(u32::try_from(smallest).unwrap_or(0));
            (token as u8, raw as u8)
        })
    }

    /// Appends the description that [`Model::read`] reads.
    pub fn write(&self, writer: &mut BitWriter) {
        writer.put(self.number as u32, 3);
        match self.shares {
            Shares::Known => writer.put(0, 2),
            Shares::Geometric { exponent } => {
                writer.put(0, 2);
                writer.put(exponent.into(), 8);
            }
            Shares::Flat => writer.put(2, 2),
            Shares::Levels(resolution) => {
                writer.put(1, 2);
                writer.put(resolution, 2);
                write_levels(&self.levels, writer);
            }
        }
    }

    /// Reads a description made for the same domain.
    ///
    /// # Errors
    /// [`CodingError::Truncated`]; [`CodingError::Table`] when it contradicts itself or the domain.
    pub fn read(reader: &mut BitReader<'_>, domain: Domain) -> Result<Self, CodingError> {
        let number = reader.get(3)? as usize;
        let classes = CLASSES.get(number).ok_or(CodingError::Table("classes"))?;
        let tokens = classes.tokens(domain.max).ok_or(CodingError::Table("classes too fine for the domain"))?;
        let mut levels = Vec::new();
        let shares = match reader.get(2)? {
            0 if domain.known.is_some() => Shares::Known,
            0 => Shares::Geometric { exponent: reader.get(8)? as u8 },
            1 => {
                let resolution = reader.get(2)?;
                levels = read_levels(reader, resolution, tokens)?;
                Shares::Levels(resolution)
            }
            2 => Shares::Flat,
            _ => return Err(CodingError::Table("kind of shares")),
        };
        let frequencies =
            frequencies(classes, tokens, shares, &levels, domain).ok_or(CodingError::Table("no token occurs"))?;
        Ok(Self { number, tokens, shares, levels, frequencies })
    }
}

/// Distance of two levels with its sign in the lowest bit; falling levels are the cheaper ones.
fn zigzag(before: u32, after: u32) -> u32 {
    if after > before { 2 * (after - before) - 1 } else { 2 * (before - after) }
}

fn write_levels(levels: &[u32], writer: &mut BitWriter) {
    let present = || levels.iter().enumerate().filter(|(_, level)| **level > 0);
    let steps: Vec<u32> = present().zip(present().skip(1)).map(|((_, a), (_, b))| zigzag(*a, *b)).collect();
    let bits = |parameter: u32| steps.iter().map(|step| (step >> parameter) + 1 + parameter).sum::<u32>();
    let parameter = (0..4).min_by_key(|&parameter| bits(parameter)).unwrap_or(0);
    writer.put(parameter, 2);
    writer.put((present().count() as u32).saturating_sub(1), 8);
    let mut next = 0;
    let mut steps = steps.into_iter();
    for (token, &level) in present() {
        writer.put_gamma((token - next) as u32 + 1);
        if next == 0 {
            writer.put(level - 1, 7);
        } else if let Some(step) = steps.next() {
            writer.put_rice(step, parameter);
        }
        next = token + 1;
    }
}

fn read_levels(reader: &mut BitReader<'_>, resolution: u32, tokens: usize) -> Result<Vec<u32>, CodingError> {
    let most = PRECISION << resolution;
    let parameter = reader.get(2)?;
    let present = reader.get(8)? + 1;
    let mut levels: Vec<u32> = Vec::new();
    let mut level = 0;
    for first in (0..present).map(|i| i == 0) {
        let run = reader.get_gamma()? as usize;
        if run > tokens - levels.len() {
            return Err(CodingError::Table("a token outside the domain"));
        }
        levels.resize(levels.len() + run - 1, 0);
        if first {
            level = reader.get(7)? + 1;
        } else {
            let step = reader.get_rice(parameter, 256)?;
            let moved = if step % 2 == 1 { level.checked_add(step / 2 + 1) } else { level.checked_sub(step / 2) };
            level = moved.ok_or(CodingError::Table("a level below 0"))?;
        }
        if level == 0 || level > most + 1 {
            return Err(CodingError::Table("a level out of range"));
        }
        levels.push(level);
    }
    Ok(levels)
}

/// Level plus 1 of a token that occurs `count` times of `total`.
fn level(count: u64, total: u64, resolution: u32) -> u32 {
    if count == 0 {
        return 0;
    }
    let log = (u64::from(PRECISION) * BIT + log2_fixed(count)).saturating_sub(log2_fixed(total));
    let step = BIT >> resolution;
    ((log + step / 2) / step).min(u64::from(PRECISION << resolution)) as u32 + 1
}

/// `base^exponent` for a base in units of `2^-32`.
fn power(base: u64, mut exponent: u64) -> u64 {
    let (mut result, mut square) = (1u64 << 32, base);
    while exponent > 0 {
        if exponent & 1 == 1 {
            result = (result * square) >> 32;
        }
        square = (square * square) >> 32;
        exponent >>= 1;
    }
    result
}

fn frequencies(
    classes: &Classes,
    tokens: usize,
    shares: Shares,
    levels: &[u32],
    domain: Domain,
) -> Option<Frequencies> {
    let geometric = |p: u64| {
        let fails = (1u64 << 32).saturating_sub(p);
        let mut before = 1u64 << 32;
        let masses: Vec<u64> = (0..tokens as u32)
            .map(|token| {
                let (smallest, raw) = classes.base(token);
                let end = (smallest + (1u64 << raw)) >> classes.low;
                let after = power(fails, end);
                let mass = before.saturating_sub(after);
                before = after.min(before);
                mass.max(1)
            })
            .collect();
        Frequencies::in_proportion(&masses)
    };
    match shares {
        Shares::Flat => Frequencies::in_proportion(&vec![1; tokens]),
        Shares::Known => geometric(domain.known?.max(1).into()),
        Shares::Geometric { exponent } => {
            let (whole, part) = (u32::from(exponent) / 16, usize::from(exponent) % 16);
            // 2^(-exponent/16) = 2^((16 - part)/16) 2^-(whole + 1), and p = 1 for exponent 0.
            let p = if part == 0 { 1 << (32 - whole) } else { (POWERS[(16 - part) % 16] << 2) >> (whole + 1) };
            geometric(p.max(1))
        }
        Shares::Levels(resolution) => {
            let weights: Vec<u64> = levels
                .iter()
                .map(|&level| {
                    let Some(level) = level.checked_sub(1) else { return 0 };
                    let part = (level & ((1 << resolution) - 1)) << (4 - resolution);
                    // At most 2^31 after the shift: a weight of 2^(level / resolution) in units of 2^-16.
                    (POWERS[part as usize % 16] >> 14) << (level >> resolution)
                })
                .collect();
            Frequencies::in_proportion(&weights)
        }
    }
}

/// Counts by the tokens of the classes in question.
struct Coarse {
    counts: [u64; TOKENS],
    tokens: usize,
    total: u64,
    /// Sum of the numbers above the raw low bits, about.
    sum: u64,
    /// Raw bits in units of `2^-12`.
    raw: u64,
    /// Whether an octave makes four tokens.
    split_in_quarters: bool,
}

fn merge(counts: Counts<'_>, number: usize, domain: Domain) -> Option<Coarse> {
    let classes = CLASSES.get(number)?;
    let tokens = classes.tokens(domain.max)?;
    let split_in_quarters = classes.mantissa == 2;
    let mut coarse = Coarse { counts: [0; TOKENS], tokens, total: 0, sum: 0, raw: 0, split_in_quarters };
    for (fine, &count) in (0u32..).zip(counts.of) {
        if count > 0 {
            let (smallest, raw) = counts.fine.base(fine);
            // A class that is finer than the counts cannot be judged by them.
            let smallest = u32::try_from(smallest).ok()?;
            let (token, coarse_raw) = classes.split(smallest);
            if coarse_raw < raw {
                return None;
            }
            *coarse.counts.get_mut(token as usize)? += count;
            coarse.raw = coarse.raw.saturating_add(count.saturating_mul(u64::from(coarse_raw) * BIT));
            coarse.total += count;
            let middle = (u64::from(smallest) + (1u64 << raw) / 2) >> classes.low;
            coarse.sum = coarse.sum.saturating_add(middle.saturating_mul(count));
        }
    }
    (coarse.total > 0).then_some(coarse)
}

impl Coarse {
    /// `16 log2(mean + 1)`: the geometric distribution of the same mean.
    fn exponent(&self) -> u8 {
        let ratio = u128::from(self.sum) + u128::from(self.total);
        let scaled = u64::try_from((ratio << 12) / u128::from(self.total)).unwrap_or(u64::MAX);
        let log = log2_fixed(scaled).saturating_sub(12 * BIT);
        u8::try_from((log + BIT / 32) / (BIT / 16)).unwrap_or(u8::MAX)
    }

    fn present(&self) -> impl Iterator<Item = u64> + '_ {
        self.counts.iter().copied().filter(|&count| count > 0)
    }

    fn levels(&self, resolution: u32) -> Vec<u32> {
        self.counts.iter().take(self.tokens).map(|&count| level(count, self.total, resolution)).collect()
    }

    fn flat_cost(&self) -> u64 {
        self.raw.saturating_add(self.total.saturating_mul(log2_fixed(self.tokens as u64)))
    }

    /// Levels in the steps that suit the total, and what they cost with their table.
    fn levels_offer(&self) -> (u64, Shares) {
        // Finer steps cost table bits and save about 0.03 / steps^2 bits a number.
        let resolution = match self.total / (self.present().count() as u64).max(1) {
            0..50 => 0,
            50..200 => 1,
            200..800 => 2,
            _ => 3,
        };
        let lost = self.total.saturating_mul((BIT * 3 / 100) >> (2 * resolution));
        let log = log2_fixed(self.total);
        let tokens = self.present().fold(0u64, |cost, n| cost.saturating_add(n.saturating_mul(log - log2_fixed(n))));
        let mut writer = BitWriter::new();
        write_levels(&self.levels(resolution), &mut writer);
        let table = (writer.len() + 2) * BIT;
        (self.raw.saturating_add(tokens).saturating_add(lost).saturating_add(table), Shares::Levels(resolution))
    }
}

#[cfg(test)]
mod tests;
