//! Constant operands: integer weights, biases, and activations that are constant.

use chipfit_model::{ConstTensor, DataType};

use super::grid::{Grid, Parameters, is_dequantize};
use super::walk::Operand;
use super::{LowerError, Lowering, op_type};
use crate::ops::formula::quantize;
use crate::program::{Tensor, Word};

/// Constant integer weights: in the file's order, in signed terms (uint8 less 128).
pub(super) struct Weights {
    /// Name of the initializer.
    pub name: String,
    /// Shape.
    pub dims: Vec<usize>,
    /// Elements.
    pub values: Vec<i8>,
    /// One, or one per position of `axis`.
    pub scales: Vec<f32>,
    /// In the terms of `values`.
    pub zero_points: Vec<i16>,
    axis: Option<usize>,
}

impl Weights {
    /// Scales and zero points of `channels` output channels that lie along `axis`; `None` where they lie otherwise.
    pub(super) fn per_channel(&self, axis: usize, channels: usize) -> Option<(Vec<f32>, Vec<i16>)> {
        match self.axis {
            None => Some((vec![self.scales[0]; channels], vec![self.zero_points[0]; channels])),
            Some(own) if own == axis && self.scales.len() == channels => {
                Some((self.scales.clone(), self.zero_points.clone()))
            }
            Some(_) => None,
        }
    }
}

impl Lowering<'_, '_> {
    /// The integers behind the DequantizeLinear at `dequantize`: an initializer, or a QuantizeLinear of floats.
    fn constant_integers(&self, dequantize: usize) -> Result<(String, ConstTensor, Parameters), LowerError> {
        let name = self.node(dequantize).input[0].as_str();
        if let Some(constant) = self.index.constant(0, name) {
            let tensor = self.index.constant_data(&constant)?;
            let parameters = self.parameters(dequantize, Some(tensor.dtype()))?;
            return Ok((constant.name.to_owned(), tensor, parameters));
        }
        let Some((_, position, node)) = self.index.producer_node(0, name) else {
            return Err(self.not_constant(dequantize, "the weight", name));
        };
        let floats = self.constant(position, &node.input[0], "the weight")?;
        let written = self.parameters(position, None)?;
        let read = self.parameters(dequantize, Some(written.dtype))?;
        let axis = channel_axis(&written, floats.dims())
            .ok_or_else(|| self.quantisation(position, "its axis does not fit"))?;
        let inner = axis.map_or(1, |axis| floats.dims()[axis + 1..].iter().product::<usize>().max(1));
        let values = floats.to_f64_vec().unwrap_or_default();
        let mut bytes = Vec::with_capacity(values.len());
        for (at, value) in values.into_iter().enumerate() {
            let channel = at / inner % written.scales.len();
            let (word, biased) = match written.dtype {
                DataType::Uint8 => (Word::Unsigned, written.zero_points[channel]),
                DataType::Int8 => (Word::Signed, written.zero_points[channel] + 128),
                other => return Err(self.quantisation(position, format!("weights of type {}", other.name()))),
            };
            let zero_point = u8::try_from(biased).unwrap_or_default();
            let on = Tensor { scale: written.scales[channel], ..Grid { word, scale: 1.0, zero_point }.tensor() };
            bytes.push(on.to_word(quantize(&on, value as f32)));
        }
        let tensor = ConstTensor::new(written.dtype, floats.dims().to_vec(), bytes);
        let tensor =
            tensor.ok_or_else(|| self.quantisation(position, "its constant has another length than its shape"))?;
        Ok((node.input[0].clone(), tensor, read))
    }

    fn not_constant(&self, position: usize, role: &str, value: &str) -> LowerError {
        LowerError::NotConstant {
            node: self.label(position),
            op_type: op_type(self.node(position)),
            role: role.to_owned(),
            value: value.to_owned(),
        }
    }

    /// The DequantizeLinear that makes `name` from a constant; `None` where nothing of the kind does.
    pub(super) fn constant_dequantize(&self, name: &str) -> Option<usize> {
        let (_, position, node) = self.index.producer_node(0, name)?;
        (is_dequantize(node) && self.is_constant_integer(&node.input[0])).then_some(position)
    }

    /// The weights that the node at `position` reads as `name`.
    pub(super) fn weights(&self, position: usize, name: &str) -> Result<Weights, LowerError> {
        let Some(dequantize) = self.constant_dequantize(name) else {
            if self.index.constant(0, name).is_some() {
                return Err(LowerError::MissingQuantize {
                    node: self.label(position),
                    op_type: op_type(self.node(position)),
                    value: name.to_owned(),
                    maker: "the constant weight".to_owned(),
                });
            }
            return Err(self.not_constant(position, "the weight", name));
        };
        let (name, tensor, parameters) = self.constant_integers(dequantize)?;
        let shift = match tensor.dtype() {
            DataType::Int8 => 0i16,
            DataType::Uint8 => 128,
            other => {
                let what = format!("weights of type {}; only int8 and uint8 are supported", other.name());
                return Err(self.quantisation(dequantize, what));
            }
        };
        let signed = |&byte: &u8| if shift == 0 { byte.cast_signed() } else { (byte ^ 0x80).cast_signed() };
        let axis = channel_axis(&parameters, tensor.dims()).ok_or_else(|| {
            let what =
                format!("{} scales along axis {} of {:?}", parameters.scales.len(), parameters.axis, tensor.dims());
            self.quantisation(dequantize, what)
        })?;
        let zero_points = parameters.zero_points.iter().map(|&z| i16::try_from(z).ok().map(|z| z - shift));
        let zero_points: Option<Vec<i16>> = zero_points.collect();
        Ok(Weights {
            name,
            dims: tensor.dims().to_vec(),
            values: tensor.bytes().iter().map(signed).collect(),
            zero_points: zero_points.ok_or_else(|| self.quantisation(dequantize, "a zero point out of range"))?,
            scales: parameters.scales,
            axis,
        })
    }

    /// The bias that the node at `position` reads as `name`, of `channels` channels whose accumulators count in steps
    /// of `steps`: its values, and the initializer's name where it holds them.
    pub(super) fn bias(
        &mut self,
        position: usize,
        name: &str,
        steps: &[f32],
    ) -> Result<(Vec<i32>, Option<String>), LowerError> {
        let channels = steps.len();
        let spread = |values: Vec<f64>| -> Option<Vec<f64>> {
            match values.len() {
                1 => Some(vec![values[0]; channels]),
                n if n == channels => Some(values),
                _ => None,
            }
        };
        let length = |have: usize| format!("a bias of {have} values for {channels} channels");
        if let Some(floats) = self.index.constant_tensor(0, name)? {
            let have = floats.len();
            let values = floats.to_f64_vec().filter(|_| floats.dtype() == DataType::Float).and_then(spread);
            let values = values.ok_or_else(|| self.unsupported(position, &length(have), "correct the model"))?;
            let label = self.label(position);
            self.warnings.push(format!(
                "node '{label}': the float bias '{name}' is quantised to int32 with the scale x_scale * w_scale"
            ));
            let quantised = values.iter().zip(steps).map(|(&b, &s)| f64::from((b as f32 / s).round_ties_even()) as i32);
            return Ok((quantised.collect(), None));
        }
        let Some(dequantize) = self.constant_dequantize(name) else {
            return Err(self.not_constant(position, "the bias", name));
        };
        let (initializer, tensor, parameters) = self.constant_integers(dequantize)?;
        if tensor.dtype() != DataType::Int32 {
            let what = format!("a bias of type {}; only int32 is supported", tensor.dtype().name());
            return Err(self.quantisation(dequantize, what));
        }
        if parameters.zero_points.iter().any(|&zero| zero != 0) {
            return Err(self.quantisation(dequantize, "a bias with a zero point other than 0"));
        }
        let have = tensor.len();
        let values = tensor.to_f64_vec().and_then(spread);
        let scales = spread(parameters.scales.iter().map(|&s| f64::from(s)).collect());
        let (Some(values), Some(scales)) = (values, scales) else {
            return Err(self.unsupported(position, &length(have), "correct the model"));
        };
        for (channel, ((&value, &scale), &product)) in values.iter().zip(&scales).zip(steps).enumerate() {
            // Tools round the product of the scales once or twice; a bias of 0 is 0 on any scale.
            let apart = (scale - f64::from(product)).abs() / f64::from(product);
            if value != 0.0 && apart > 2.0 * f64::from(f32::EPSILON) {
                return Err(LowerError::BiasScale {
                    node: self.label(position),
                    op_type: op_type(self.node(position)),
                    channel,
                    bias_scale: scale as f32,
                    product,
                });
            }
        }
        let whole = (have == channels).then_some(initializer);
        Ok((values.iter().map(|&v| v as i32).collect(), whole))
    }

    /// The constant behind the DequantizeLinear at `dequantize`, as an operand.
    pub(super) fn constant_operand(&self, dequantize: usize) -> Result<Operand, LowerError> {
        let (_, tensor, _) = self.constant_integers(dequantize)?;
        let grid = self.grid(dequantize, Some(tensor.dtype()))?;
        let on = grid.tensor();
        let bytes = tensor.bytes().iter().map(|&word| on.from_word(word)).collect();
        Ok(Operand::Constant { shape: tensor.dims().to_vec(), grid, bytes })
    }
}

/// The axis along which scales lie; `Some(None)` for one scale, `None` where they do not fit the shape.
fn channel_axis(parameters: &Parameters, dims: &[usize]) -> Option<Option<usize>> {
    if parameters.scales.len() == 1 {
        return Some(None);
    }
    let rank = i64::try_from(dims.len()).ok()?;
    let axis = if parameters.axis < 0 { parameters.axis + rank } else { parameters.axis };
    let axis = usize::try_from(axis).ok()?;
    (dims.get(axis) == Some(&parameters.scales.len())).then_some(Some(axis))
}
