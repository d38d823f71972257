//! Soft errors: which words of which step are struck, and how a struck word changes.
//!
//! A [`Strike`] names one word of one site of one step and the [`Change`] it suffers. Where strikes come from
//! (rates, counts, presets, systematic defects, a campaign's single fault) and what computes with them (twin,
//! simulator, propagation) meet in this type alone. Definitions: `docs/fault-model.md`, section Sites.
//!
//! Word numbering, for a step with `outputs` outputs per picture in the layout of [`crate::program`]:
//!
//! | site | words | word number | bits |
//! |---|---|---|---|
//! | `mul` | outputs x K | `output * K + k` | 16 or 17 |
//! | `acc` | outputs x ceil(K / lanes) | `output * updates + update` | 32 |
//! | `acc_out` | outputs | `output` | 32 |
//! | `out` | outputs | `output` | 8 |
//! | `weight` | weights | index into `Linear::weights` | 8 |
//! | `act` | elements of the step's first input | index into it | 8 |

mod counts;
mod error;
pub mod file;
pub mod generator;
mod listed;
mod model;
mod place;
mod population;
mod positions;
mod report;
mod resolve;
mod rules;
pub(crate) mod select;
#[cfg(test)]
mod tests;
mod words;

pub use error::FaultsError;
pub use file::FaultsFile;
pub use listed::Listed;
pub use model::Faults;
pub use place::{Place, place};
pub use population::{Population, consumers, population};
pub use report::{Expected, ExpectedFaults};
pub use select::select_names;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where a word sits that can be struck.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Site {
    /// The product of one MAC.
    Mul,
    /// The accumulator after one update.
    Acc,
    /// The accumulator before requantization.
    AccOut,
    /// The stored output activation.
    Out,
    /// The weight buffer.
    Weight,
    /// The input buffer of one step.
    Act,
}

impl Site {
    /// All sites, in the order of this enum.
    pub const ALL: [Self; 6] = [Self::Mul, Self::Acc, Self::AccOut, Self::Out, Self::Weight, Self::Act];

    /// The name used in files and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mul => "mul",
            Self::Acc => "acc",
            Self::AccOut => "acc_out",
            Self::Out => "out",
            Self::Weight => "weight",
            Self::Act => "act",
        }
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No site has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown site '{0}'; the sites are mul, acc, acc_out, out, weight, act")]
pub struct UnknownSite(pub String);

impl FromStr for Site {
    type Err = UnknownSite;
    fn from_str(name: &str) -> Result<Self, UnknownSite> {
        Self::ALL.into_iter().find(|site| site.name() == name).ok_or_else(|| UnknownSite(name.to_owned()))
    }
}

/// What happens to a struck word of `bits` bits; bits above the word's width are ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Flips: the word XOR this mask.
    Xor(u32),
    /// Stuck at 0: the word AND NOT this mask.
    Clear(u32),
    /// Stuck at 1: the word OR this mask.
    Raise(u32),
    /// A random or given value in the word's place.
    Set(u32),
    /// Saturating addition to the word as two's complement.
    AddSigned(i32),
    /// Saturating addition to the word as a number without sign.
    AddUnsigned(i32),
}

impl Change {
    /// The word after the change, within `bits` bits (8 to 32).
    pub const fn apply(self, word: u32, bits: u32) -> u32 {
        let mask = u32::MAX >> (32 - bits);
        (match self {
            Self::Xor(m) => word ^ m,
            Self::Clear(m) => word & !m,
            Self::Raise(m) => word | m,
            Self::Set(v) => v,
            Self::AddSigned(d) => {
                let sign = 1i64 << (bits - 1);
                let value = ((word & mask) as i64 ^ sign) - sign;
                limit(value + d as i64, -sign, sign - 1) as u32
            }
            Self::AddUnsigned(d) => limit((word & mask) as i64 + d as i64, 0, mask as i64) as u32,
        }) & mask
    }

    /// The value of a two's complement word of `bits` bits after the change, sign extended.
    pub const fn apply_signed(self, value: i32, bits: u32) -> i32 {
        let changed = self.apply(value.cast_unsigned(), bits);
        (changed << (32 - bits)).cast_signed() >> (32 - bits)
    }
}

const fn limit(value: i64, low: i64, high: i64) -> i64 {
    if value < low {
        low
    } else if value > high {
        high
    } else {
        value
    }
}

/// Bits that `mul` exposes per MAC of a [`crate::Op::MatMul`]: both zero points are subtracted.
pub const MATMUL_PRODUCT_BITS: u32 = 17;

/// One struck word. Strikes of a step are sorted by this type's order before they take effect; several strikes
/// of one word act one after another in that order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Strike {
    /// Site.
    pub site: Site,
    /// Word number; the table above.
    pub word: u64,
    /// For `weight` and `act` with `reuse`: the first consumer that sees the changed word; consumers are the outputs
    /// that read it, numbered in the order of the outputs (`weight`: output pixels row-major; `act`: output index).
    pub first_use: u32,
    /// How many consumers see it; `u32::MAX` for all.
    pub uses: u32,
    /// The change.
    pub change: Change,
}

impl Strike {
    /// A strike that every consumer sees.
    pub const fn new(site: Site, word: u64, change: Change) -> Self {
        Self { site, word, first_use: 0, uses: u32::MAX, change }
    }

    /// Whether a consumer of the word sees the change; for `weight` and `act` of steps with products.
    pub const fn is_seen_by(&self, consumer: u32) -> bool {
        self.first_use <= consumer && consumer - self.first_use < self.uses
    }
}

/// What the draws of one inference are keyed by, besides step, site and replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrawKey {
    /// Seed of the run.
    pub seed: u64,
    /// Trial of a campaign, or step of a retraining run.
    pub trial: u64,
    /// The picture's index in the data set.
    pub picture: u64,
}

/// Where strikes come from: drawn from a fault model, or listed. Twin and simulator know nothing else of faults.
pub trait StrikeSource: Sync {
    /// Appends the strikes of one replica of one step for one picture, sorted. Weight and act strikes are the
    /// same for every replica (replicas share their buffers); callers ask for them with replica 0.
    fn strikes(&self, key: &DrawKey, step: crate::StepId, replica: u8, out: &mut Vec<Strike>);
}
