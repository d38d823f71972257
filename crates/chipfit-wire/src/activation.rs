//! Activations up: a sketch of what the device computed, from which the server recovers it exactly.
//!
//! For each layer the device holds `y`, the server a prediction `x` of the same `n` bytes, and they differ in few places.
//! The device sends a checksum and `M` *cells*, each a sum in GF(2^8) of some of its bytes; the server subtracts the
//! cells of `x`, which leaves the cells of `e = y xor x` alone, and looks for the sparse `e` that explains them. This is
//! source coding with side information at the decoder by the syndromes of a sparse (quasi-cyclic, non-binary low-density)
//! parity-check code. One code serves every density, the device's work is a few additions per byte, and how large `M`
//! must be follows the number of errors, not `n`.
//!
//! Parts: [`checksum`], `field`, `graph` (which bytes are summed in which cell), `cells` (the sums), `solve` (from cells
//! to errors), [`planner`] (how large next time), and here the two ends: [`first`] and [`more`] on the device,
//! [`Decoder`] on the server. Every byte is described in `docs/wire-activations.md`.
//!
//! Promises: what a [`Decoder`] recovers has the checksum of what the device holds; a payload is never longer than the
//! raw bytes plus [`HEADER_BYTES`]; hostile payloads and parameters give typed errors and never size an allocation.
//! What the device sends is a function of its bytes and of the server's parameters: it is given nothing else.

mod belief;
mod cells;
pub mod checksum;
mod decoder;
mod encoder;
mod field;
mod graph;
mod parameters;
pub mod planner;
mod solve;

#[cfg(test)]
mod tests;

pub use decoder::{Decoder, Outcome};
pub use encoder::{first, more};
pub use graph::Geometry;
pub use parameters::{Mode, PARAMETERS_BYTES, Parameters, REQUEST_BYTES, Request};
pub use planner::{Planner, Prior};

/// Most bytes that a first payload adds to the raw bytes: one byte that says so.
pub const HEADER_BYTES: usize = 1;

/// Why parameters, requests or payloads of activations were refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ActivationError {
    /// A mode that this version does not know.
    #[error("activation mode {0} is not known")]
    Mode(u8),
    /// A field of the parameters outside its domain.
    #[error("activation parameters: {field} is {value}, allowed is {allowed}")]
    Parameter {
        /// Which field.
        field: &'static str,
        /// What it says.
        value: u64,
        /// What it may say.
        allowed: &'static str,
    },
    /// The payload has another length than its mode and the layer give it.
    #[error("activation payload of {bytes} bytes where {expected} were expected")]
    Length {
        /// Received.
        bytes: usize,
        /// What the mode and the layer's size say.
        expected: usize,
    },
    /// The prediction has another length than the layer.
    #[error("a prediction of {bytes} bytes for a layer of {layer} bytes")]
    Prediction {
        /// Given.
        bytes: usize,
        /// The layer's size.
        layer: usize,
    },
    /// The payload was recovered without any freedom, yet its checksum is another's: damaged, or made with another key.
    #[error("the layer's checksum does not match its bytes: damaged, or made with other parameters")]
    Checksum,
    /// The entropy-coded part was refused.
    #[error("entropy-coded activations: {0}")]
    Coding(#[from] crate::entropy::CodingError),
}
