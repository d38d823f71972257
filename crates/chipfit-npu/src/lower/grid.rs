//! Scales and zero points: what a QuantizeLinear or DequantizeLinear says.

use chipfit_model::build::get_i;
use chipfit_model::proto::NodeProto;
use chipfit_model::{ConstTensor, DataType};

use super::{LowerError, Lowering, op_type};
use crate::program::{Tensor, Word};

/// Whether the node is a QuantizeLinear, of ONNX or of ONNX Runtime's own domain.
pub(super) fn is_quantize(node: &NodeProto) -> bool {
    is_either(node, "QuantizeLinear")
}

/// Whether the node is a DequantizeLinear.
pub(super) fn is_dequantize(node: &NodeProto) -> bool {
    is_either(node, "DequantizeLinear")
}

fn is_either(node: &NodeProto, op_type: &str) -> bool {
    matches!(node.domain.as_deref(), None | Some("" | "ai.onnx" | "com.microsoft"))
        && node.op_type.as_deref() == Some(op_type)
}

/// The grid of an integer activation, in biased bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Grid {
    pub word: Word,
    pub scale: f32,
    pub zero_point: u8,
}

impl Grid {
    pub(super) fn of(tensor: &Tensor) -> Self {
        Self { word: tensor.word, scale: tensor.scale, zero_point: tensor.zero_point }
    }

    /// A tensor of one element on this grid, for formulas that take tensors.
    pub(super) fn tensor(self) -> Tensor {
        let Self { word, scale, zero_point } = self;
        Tensor { name: String::new(), shape: Vec::new(), word, scale, zero_point }
    }
}

/// Scales and zero points as the node lists them: one, or one per position of an axis.
pub(super) struct Parameters {
    pub dtype: DataType,
    pub scales: Vec<f32>,
    pub zero_points: Vec<i32>,
    pub axis: i64,
}

impl Lowering<'_, '_> {
    pub(super) fn quantisation(&self, position: usize, what: impl Into<String>) -> LowerError {
        LowerError::Quantisation {
            node: self.label(position),
            op_type: op_type(self.node(position)),
            what: what.into(),
        }
    }

    /// A constant input of the node at `position`.
    pub(super) fn constant(&self, position: usize, name: &str, role: &str) -> Result<ConstTensor, LowerError> {
        self.index.constant_tensor(0, name)?.ok_or_else(|| LowerError::NotConstant {
            node: self.label(position),
            op_type: op_type(self.node(position)),
            role: role.to_owned(),
            value: name.to_owned(),
        })
    }

    /// What the QuantizeLinear or DequantizeLinear at `position` says. `stored` is the type of the integer tensor
    /// where something else tells it.
    pub(super) fn parameters(&self, position: usize, stored: Option<DataType>) -> Result<Parameters, LowerError> {
        let node = self.node(position);
        let wrong = |what: String| Err(self.quantisation(position, what));
        let name = node.input.get(1).map_or("", String::as_str);
        let scale = self.constant(position, name, "the scale")?;
        if scale.dtype() != DataType::Float {
            return wrong(format!("the scale is {}; only float is supported", scale.dtype().name()));
        }
        if scale.dims().len() > 1 || get_i(node, "block_size").unwrap_or(0) != 0 {
            return wrong(
                "quantisation in blocks is not supported; use one scale per tensor or per channel".to_owned(),
            );
        }
        let scales: Vec<f32> = scale.to_f64_vec().unwrap_or_default().into_iter().map(|s| s as f32).collect();
        for (at, &scale) in scales.iter().enumerate() {
            if !(scale.is_finite() && scale > 0.0) {
                return wrong(format!("scale {at} of '{name}' is {scale}; it must be finite and above zero"));
            }
        }
        let zero_point = node.input.get(2).filter(|name| !name.is_empty());
        let zero_point = zero_point.map(|name| self.constant(position, name, "the zero point")).transpose()?;
        let asked = get_i(node, "output_dtype").and_then(|code| i32::try_from(code).ok()).and_then(DataType::from_code);
        let dtype = zero_point.as_ref().map(ConstTensor::dtype).or(stored).or(asked).unwrap_or(DataType::Uint8);
        if let Some(stored) = stored.filter(|stored| *stored != dtype) {
            return wrong(format!("the zero point is {}, the tensor {}; they must agree", dtype.name(), stored.name()));
        }
        let zero_points = match &zero_point {
            None => vec![0; scales.len()],
            Some(tensor) => {
                let values = tensor.to_i64_vec().unwrap_or_default();
                values.into_iter().map(|zero| i32::try_from(zero).unwrap_or(i32::MAX)).collect()
            }
        };
        if zero_points.len() != scales.len() {
            return wrong(format!(
                "{} scales but {} zero points of type {}",
                scales.len(),
                zero_points.len(),
                dtype.name()
            ));
        }
        Ok(Parameters { dtype, scales, zero_points, axis: get_i(node, "axis").unwrap_or(1) })
    }

    /// The grid of the activation that the node at `position` writes or reads.
    pub(super) fn grid(&self, position: usize, stored: Option<DataType>) -> Result<Grid, LowerError> {
        let parameters = self.parameters(position, stored)?;
        let (&[scale], &[zero_point]) = (parameters.scales.as_slice(), parameters.zero_points.as_slice()) else {
            let what =
                format!("{} scales for an activation; only one scale per tensor is supported", parameters.scales.len());
            return Err(self.quantisation(position, what));
        };
        let (word, biased) = match parameters.dtype {
            DataType::Uint8 => (Word::Unsigned, zero_point),
            DataType::Int8 => (Word::Signed, zero_point + 128),
            other => {
                let what = format!("activations of type {}; only int8 and uint8 are supported", other.name());
                return Err(self.quantisation(position, what));
            }
        };
        let zero_point = u8::try_from(biased).map_err(|_| self.quantisation(position, "a zero point out of range"))?;
        Ok(Grid { word, scale, zero_point })
    }
}
