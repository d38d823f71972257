//! How much of the signal each tensor keeps: the float and the quantised model side by side on the same inputs.

use std::collections::BTreeMap;

use bytes::Bytes;
use chipfit_model::build::value_info;
use chipfit_model::proto::ValueInfoProto;
use chipfit_model::{ConstTensor, DataType, Model};
use chipfit_run::engine::Engine;

use crate::calibrate::float_values;
use crate::error::QuantizeError;
use crate::prepare::Prepared;
use crate::report::{Report, sqnr_db};
use crate::scale::Quantizer;
use crate::simplify::forget_shape;

/// The signal-to-noise ratio in dB of every tensor of `report`, in its order: `10 log10(sum x^2 / sum (x - x')^2)`
/// with `x` of the folded float model and `x'` the dequantised integers, all errors before it included. Runs each
/// model once in `engine`.
///
/// # Errors
/// [`QuantizeError::Engine`].
pub fn signal(
    prepared: &Prepared,
    quantised: &Model,
    report: &Report,
    engine: &dyn Engine,
    inputs: &[(String, ConstTensor)],
) -> Result<Vec<f64>, QuantizeError> {
    let outlet = |name: &str, dtype: DataType| -> ValueInfoProto {
        let mut info = value_info(name, dtype, &[]);
        forget_shape(&mut info);
        info
    };
    let mut float = prepared.graph.clone();
    let made = report.tensors.iter().filter(|t| !float.is_input(&t.name));
    float.outputs = made.map(|t| outlet(&t.name, DataType::Float)).collect();
    let exact = run(engine, &float.to_model()?, inputs)?;
    let exact: BTreeMap<&str, &ConstTensor> = inputs.iter().chain(&exact).map(|(n, t)| (n.as_str(), t)).collect();
    let mut integer = quantised.clone();
    if let Some(graph) = integer.proto.graph.as_option_mut() {
        graph.output = report.tensors.iter().map(|t| outlet(&t.integer, t.dtype)).collect();
    }
    let integers = run(engine, &integer, inputs)?;
    let integers: BTreeMap<&str, &ConstTensor> = integers.iter().map(|(n, t)| (n.as_str(), t)).collect();
    let ratio = |tensor: &crate::TensorReport| -> f64 {
        let (Some(exact), Some(integer)) = (exact.get(tensor.name.as_str()), integers.get(tensor.integer.as_str()))
        else {
            return f64::NAN;
        };
        let quantizer = Quantizer { scale: tensor.scale, zero_point: tensor.zero_point, dtype: tensor.dtype };
        let integer = integer.to_i64_vec().unwrap_or_default();
        let back = |&q: &i64| i32::try_from(q).map_or(f32::NAN, |q| quantizer.dequantize(q));
        sqnr_db(&float_values(exact), &integer.iter().map(back).collect::<Vec<_>>())
    };
    Ok(report.tensors.iter().map(ratio).collect())
}

fn run(
    engine: &dyn Engine,
    model: &Model,
    inputs: &[(String, ConstTensor)],
) -> Result<Vec<(String, ConstTensor)>, QuantizeError> {
    let bytes = Bytes::from(model.to_bytes().map_err(|_| QuantizeError::TooLong)?);
    Ok(engine.load(&bytes, None)?.run(inputs)?)
}
