//! A trained [`Network`] back into its model: the same file with other initializers.

use std::collections::BTreeMap;

use chipfit_model::{ConstTensor, Model};

use super::error::ScratchError;
use super::graph::{Kind, Network};

impl Network {
    /// Every trained tensor and running statistic by the name of its initializer, in ONNX's shape and order.
    ///
    /// # Errors
    /// [`ScratchError::Parameter`] when a tensor lost its shape, a fault of this program.
    pub fn tensors(&self) -> Result<BTreeMap<String, ConstTensor>, ScratchError> {
        let mut tensors = BTreeMap::new();
        let mut add = |name: &str, dims: Vec<usize>, values: &[f32]| {
            let tensor = ConstTensor::from_f32(dims, values);
            let tensor = tensor.ok_or_else(|| ScratchError::parameter(name, "it lost its shape, please report this"))?;
            tensors.insert(name.to_owned(), tensor);
            Ok::<(), ScratchError>(())
        };
        for (parameter, values) in self.parameters.iter().zip(&self.values) {
            add(&parameter.name, parameter.dims.clone(), &parameter.layout.to_onnx(values))?;
        }
        for layer in &self.layers {
            let Kind::Norm(norm) = &layer.kind else { continue };
            for (name, values) in norm.running_names.iter().zip(&norm.running) {
                add(name, vec![values.len()], values)?;
            }
        }
        Ok(tensors)
    }

    /// `model` with this network's weights, normalisations and running statistics. Nothing else changes.
    ///
    /// # Errors
    /// [`ScratchError::Parameter`] when `model` is not the one that the network was read from.
    pub fn to_model(&self, model: &Model) -> Result<Model, ScratchError> {
        let mut result = model.clone();
        for (name, tensor) in self.tensors()? {
            let found = result.proto.graph.get_or_insert_default().initializer.iter_mut().find(|old| old.name.as_deref() == Some(name.as_str()));
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
