//! What a run carries from one step to the next: masters, optimizer, running mean, best so far, history.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::config::Config;
use crate::error::TrainError;
use crate::masters::{Masters, hexadecimal};
use crate::optimizer::Optimizer;
use crate::pictures::Accuracy;

/// One epoch's figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Epoch {
    /// Mean loss over the pictures, as they were trained on.
    pub loss: f64,
    /// Of the training pictures as they were seen, faults and all.
    pub training: Accuracy,
    /// Of the validation pictures after the epoch, on the same processor.
    pub validation: Option<Accuracy>,
}

/// The best constants so far, by the accuracy on the validation pictures.
#[derive(Clone, Debug, PartialEq)]
pub struct Best {
    /// Epoch, from 0.
    pub epoch: u64,
    /// What it reached.
    pub accuracy: Accuracy,
    /// The real values of every parameter.
    pub values: Vec<Vec<f32>>,
}

/// A run between two steps.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// Optimizer steps made.
    pub step: u64,
    /// Masters, and what the processor holds.
    pub masters: Masters,
    /// The optimizer.
    pub optimizer: Optimizer,
    /// Running mean of the masters.
    pub mean: Option<Vec<Vec<f32>>>,
    /// The best so far.
    pub best: Option<Best>,
    /// Epochs that have ended.
    pub history: Vec<Epoch>,
    /// The epoch that has begun; `loss` is a sum here.
    pub current: Epoch,
}

impl State {
    pub(crate) fn new(config: &Config, masters: Masters) -> Self {
        let lengths: Vec<usize> = masters.values().iter().map(Vec::len).collect();
        Self {
            step: 0,
            optimizer: Optimizer::new(config.optimizer, lengths.into_iter()),
            mean: config.ema.map(|_| masters.values().to_vec()),
            masters,
            best: None,
            history: Vec::new(),
            current: Epoch::default(),
        }
    }

    /// What is validated and kept: the running mean where there is one, else the masters.
    pub(crate) fn kept(&self) -> &[Vec<f32>] {
        self.mean.as_deref().unwrap_or(self.masters.values())
    }

    /// `mean = decay * mean + (1 - decay) * master`; in the first steps a smaller decay, `(1 + n) / (10 + n)`.
    pub(crate) fn follow(&mut self, decay: f32) {
        let Some(mean) = &mut self.mean else { return };
        let early = (1.0 + self.step as f64) / (10.0 + self.step as f64);
        let decay = f64::from(decay).min(early) as f32;
        for (mean, &master) in mean.iter_mut().flatten().zip(self.masters.values().iter().flatten()) {
            *mean = decay * *mean + (1.0 - decay) * master;
        }
    }

    /// Ends the current epoch.
    pub(crate) fn end_epoch(&mut self, validation: Option<Accuracy>) {
        let mut epoch = std::mem::take(&mut self.current);
        epoch.loss /= epoch.training.pictures.max(1) as f64;
        epoch.validation = validation;
        let number = self.history.len() as u64;
        self.history.push(epoch);
        let Some(accuracy) = validation else { return };
        if self.best.as_ref().is_none_or(|best| accuracy.top1 > best.accuracy.top1) {
            self.best = Some(Best { epoch: number, accuracy, values: self.kept().to_vec() });
        }
    }

    /// SHA-256 of the optimizer's state, the masters and the running mean: hexadecimal.
    pub fn optimizer_sha256(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(self.optimizer.steps().to_le_bytes());
        let slots = self.optimizer.slots().iter().map(Vec::as_slice);
        for arrays in slots.chain([self.masters.values()]).chain(self.mean.as_deref()) {
            for array in arrays {
                hash.update((array.len() as u64).to_le_bytes());
                array.iter().for_each(|value| hash.update(value.to_le_bytes()));
            }
        }
        hexadecimal(&hash.finalize())
    }

    /// Whether the patience has run out.
    pub(crate) fn is_over(&self, patience: Option<u64>) -> bool {
        match (&self.best, patience) {
            (Some(best), Some(patience)) => self.history.len() as u64 > best.epoch + patience,
            _ => false,
        }
    }

    pub(crate) fn check_finite(&self, norm: f64, gradients: &[Vec<f32>]) -> Result<(), TrainError> {
        if norm.is_finite() {
            return Ok(());
        }
        let is_wrong = |part: &Vec<f32>| part.iter().any(|g| !g.is_finite());
        let at = gradients.iter().position(is_wrong).unwrap_or(0);
        let parameter = self.masters.parameters().get(at).map(|parameter| parameter.name.clone()).unwrap_or_default();
        Err(TrainError::NotFinite { step: self.step, parameter })
    }
}
