//! Passes over given batches, without an optimizer: what gradient checks and measurements use.

use std::collections::BTreeMap;

use chipfit_model::{ConstTensor, Model};

use super::engine::{Batch, Engine};
use super::error::ScratchError;
use super::graph::Network;
use crate::loss::Loss;

/// A network that computes losses and gradients of given batches.
pub struct Passes {
    engine: Engine,
}

impl Passes {
    /// Reads a model, weights and running statistics included.
    ///
    /// # Errors
    /// As [`Network::from_model`].
    pub fn new(model: &Model) -> Result<Self, ScratchError> {
        Ok(Self { engine: Engine::new(Network::from_model(model)?)? })
    }

    /// The network, with the running statistics that the passes have moved.
    pub fn network(&self) -> &Network {
        &self.engine.network
    }

    /// Forward with batch statistics and backward. Returns the mean loss.
    ///
    /// - `x`: `[pictures, channels, rows, columns]`; `labels`: the class of each picture.
    ///
    /// # Errors
    /// [`ScratchError::Picture`] for another number of values, or a label beyond the classes.
    pub fn pass(&mut self, x: &[f32], labels: &[u32], loss: Loss) -> Result<f64, ScratchError> {
        let each: usize = self.engine.network.picture().iter().product();
        if labels.is_empty() || x.len() != labels.len().saturating_mul(each) {
            let what = format!("{} values are not {} pictures of {each}", x.len(), labels.len());
            return Err(ScratchError::Picture { index: 0, what });
        }
        let classes = self.engine.network.classes();
        if let Some(index) = labels.iter().position(|&label| label as usize >= classes) {
            let what = format!("its label is beyond the {classes} classes");
            return Err(ScratchError::Picture { index, what });
        }
        let fetch = |at: usize, out: &mut [f32]| {
            if let Some(picture) = x.get(at * each..(at + 1) * each) {
                out.copy_from_slice(picture);
            }
            Ok(())
        };
        let score = self.engine.train(&Batch { fetch: &fetch, labels, loss, is_training: true })?;
        Ok(score.loss / labels.len() as f64)
    }

    /// Gradients of the last pass's mean loss, by the names of the initializers, in ONNX's shape and order.
    ///
    /// # Errors
    /// As [`Network::tensors`].
    pub fn gradients(&self) -> Result<BTreeMap<String, ConstTensor>, ScratchError> {
        self.engine.network.like_parameters(&self.engine.gradients)
    }
}
