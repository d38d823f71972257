//! Post-training quantisation: a float ONNX classifier becomes a QDQ model that computes in 8-bit integers.
//!
//! [`Prepared::new`] simplifies and folds the float model and plans the quantised tensors; a [`Calibration`] runs it
//! on pictures; [`Prepared::quantize`] writes the result. [`signal`] compares the two, tensor by tensor.
//!
//! Promises: the same model, pictures and options give the same bytes; the folded float model computes what the
//! original does, up to rounding; what cannot be quantised stays in float and is listed, or is an error that names
//! the node. Formulas, placement and methods: docs/quantization.md.
//!
//! Read `prepare` first, then `places` (what is quantised), `write` (the file), `scale` (the formulas).
#![forbid(unsafe_code)]

mod calibrate;
mod entropy;
mod error;
mod fold;
mod graph;
mod groups;
mod histogram;
mod opset;
mod options;
mod places;
mod prepare;
mod report;
mod scale;
mod signal;
mod simplify;
mod weights;
mod write;

pub use calibrate::{Calibration, Ranges, TensorRange};
pub use error::QuantizeError;
pub use fold::Folded;
pub use options::{Activations, Method, Options, Weights};
pub use prepare::Prepared;
pub use report::{FloatNode, Report, TensorReport, WeightReport, sqnr_db};
pub use scale::{Quantizer, Range};
pub use signal::signal;
pub use write::METADATA_KEY;

use chipfit_model::Model;

/// [`Prepared::new`] and [`Prepared::quantize`] in one.
///
/// # Errors
/// [`QuantizeError`].
pub fn quantize(model: &Model, ranges: &Ranges, options: &Options) -> Result<(Model, Report), QuantizeError> {
    Prepared::new(model)?.quantize(ranges, options)
}
