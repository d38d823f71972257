//! Entropy coding: range coders in the rANS family over tokens, raw bits beside them, and the bounds to judge them by.
//!
//! Reading order: [`measure`] (what could be reached), [`rans`] (tokens to words), [`bits`] (raw bits), [`model`]
//! (numbers to tokens, and tables that cost few bytes), then the two ready-made coders [`bytes`] and [`integers`].
//! The byte layouts are in `docs/wire.md`.
//!
//! Promises: whatever is encoded decodes to itself; encoders use integer arithmetic only, so that every machine writes
//! the same bytes; decoders take hostile bytes, never panic, and produce at most the number of values asked for.

pub mod bits;
pub mod bytes;
pub mod integers;
pub mod measure;
pub mod model;
pub mod rans;

/// Why coded bytes were refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodingError {
    /// The bytes end inside a field.
    #[error("the coded bytes end early")]
    Truncated,
    /// Bytes, or padding bits that are not 0, remain after the last value.
    #[error("the coded bytes do not end where their last value does")]
    Trailing,
    /// A mode that this version does not know.
    #[error("coding mode {0} is not known")]
    Mode(u8),
    /// A table of probabilities contradicts itself or names a token outside the values' domain.
    #[error("the table of probabilities is damaged: {0}")]
    Table(&'static str),
    /// A coder's state outside its range at the start, or not the agreed one at the end.
    #[error("the coder did not end in the agreed state: the bytes are damaged or meant for another length")]
    State,
    /// A value outside its domain.
    #[error("a decoded value lies outside its domain")]
    Value,
}
