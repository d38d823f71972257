//! A trained [`Network`] back into its model: the same file with other initializers.

use std::collections::BTreeMap;

use chipfit_model::{ConstTensor, Model};

use super::error::ScratchError;
use super::graph::{Kind, Network, Parameter};

impl Network {
    /// Every trained tensor and running statistic by the name of its initializer, in ONNX's shape and order.
    ///
    /// # Errors
    /// [`ScratchError::Parameter`] when a tensor lost its shape, a fault of this program.
    pub fn tensors(&self) -> Result<BTreeMap<String, ConstTensor>, ScratchError> {
        let mut tensors = self.like_parameters(&self.values)?;
        for layer in &self.layers {
            let Kind::Norm(norm) = &layer.kind else { continue };
            for (name, values) in norm.running_names.iter().zip(&norm.running) {
                tensors.insert(name.clone(), tensor(name, vec![values.len()], values)?);
            }
        }
        Ok(tensors)
    }

    /// Values in the order of the parameters, such as gradients, as tensors of the model.
    pub(super) fn like_parameters(&self, values: &[Vec<f32>]) -> Result<BTreeMap<String, ConstTensor>, ScratchError> {
        let named = |(parameter, values): (&Parameter, &Vec<f32>)| {
            let values = parameter.layout.to_onnx(values);
            Ok((parameter.name.clone(), tensor(&parameter.name, parameter.dims.clone(), &values)?))
        };
        self.parameters.iter().zip(values).map(named).collect()
    }

    /// `model` with this network's weights, normalisations and running statistics. Nothing else changes.
    ///
    /// # Errors
    /// [`ScratchError::Parameter`] when `model` is not the one that the network was read from.
    pub fn to_model(&self, model: &Model) -> Result<Model, ScratchError> {
        let mut result = model.clone();
        for (name, tensor) in self.tensors()? {
            let found = result
                .proto
                .graph
                .get_or_insert_default()
                .initializer
                .iter_mut()
                .find(|old| old.name.as_deref() == Some(name.as_str()));
            let Some(old) = found else {
                return Err(ScratchError::parameter(&name, "the model has no such initializer"));
            };
            let shape = tensor.dims().iter().map(|&side| i64::try_from(side).unwrap_or(i64::MAX));
            if !shape.eq(old.dims.iter().copied()) {
                return Err(ScratchError::parameter(&name, format!("its shape is {:?} in the model", old.dims)));
            }
            *old = tensor.to_proto(&name);
        }
        Ok(result)
    }
}

fn tensor(name: &str, dims: Vec<usize>, values: &[f32]) -> Result<ConstTensor, ScratchError> {
    let tensor = ConstTensor::from_f32(dims, values);
    tensor.ok_or_else(|| ScratchError::parameter(name, "it lost its shape, please report this"))
}
