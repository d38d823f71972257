//! Everything that decides the result of a retraining run, besides the model, the pictures and the processor.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::augment::Augmentation;
use crate::error::TrainError;
use crate::loss::Loss;
use crate::masters::hexadecimal;
use crate::optimizer::Rule;
use crate::schedule::{Curriculum, Schedule};

/// What happens to the scales.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scales {
    /// They stay as the model has them.
    #[default]
    Frozen,
    /// At each epoch's start every weight scale becomes `max|w| / 127` of its channel (or tensor).
    Weights,
}

/// A retraining run. The same configuration, model, pictures and faults give the same bits on any number of threads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Keys the order of pictures and their views.
    pub seed: u64,
    /// Pictures of one forward pass, above 0.
    pub batch: usize,
    /// Passes over the pictures.
    pub epochs: u64,
    /// At most so many optimizer steps; all of the epochs when `None`.
    pub steps: Option<u64>,
    /// SGD or AdamW.
    pub optimizer: Rule,
    /// Learning rate before the schedule.
    pub rate: f32,
    /// Rates, gradients and clipping count in each channel's own range (127 integer steps), not in real values.
    pub relative: bool,
    /// Learning rate of biases over that of weights; 0 freezes them.
    pub bias_rate: f32,
    /// How the rate changes.
    pub schedule: Schedule,
    /// Weight decay of weights; biases have none.
    pub weight_decay: f32,
    /// Largest global norm of the gradient.
    pub clip: Option<f32>,
    /// The loss.
    pub loss: Loss,
    /// Flip and shift.
    pub augmentation: Augmentation,
    /// Forward passes of each batch, each with faults of its own; their gradients are averaged.
    pub draws: u32,
    /// Batches whose gradients one optimizer step averages.
    pub accumulate: u32,
    /// Decay of a running mean of the masters, which is then what is kept and validated; none when `None`.
    pub ema: Option<f32>,
    /// Fault rate while training starts, for processors whose rate can be changed.
    pub curriculum: Curriculum,
    /// Frozen or estimated anew.
    pub scales: Scales,
    /// Before the first step, narrow the ranges of activations so that this share of the fault-free values is cut off at
    /// each end, 0 to below 0.5; `None` leaves them.
    pub narrow: Option<f64>,
    /// Stop after so many epochs without a better accuracy on the validation pictures, and keep the best.
    pub patience: Option<u64>,
    /// Optimizer steps between two checkpoints.
    pub checkpoint_every: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            seed: 0,
            batch: 64,
            epochs: 1,
            steps: None,
            optimizer: Rule::default(),
            rate: 1e-3,
            relative: true,
            bias_rate: 1.0,
            schedule: Schedule::default(),
            weight_decay: 0.0,
            clip: Some(1.0),
            loss: Loss::default(),
            augmentation: Augmentation::default(),
            draws: 1,
            accumulate: 1,
            ema: None,
            curriculum: Curriculum::default(),
            scales: Scales::default(),
            narrow: None,
            patience: None,
            checkpoint_every: 100,
        }
    }
}

impl Config {
    /// Refuses values without a meaning.
    ///
    /// # Errors
    /// [`TrainError::Config`], which names the field.
    pub fn check(&self) -> Result<(), TrainError> {
        let counts = [
            ("batch", self.batch as u64),
            ("epochs", self.epochs),
            ("draws", u64::from(self.draws)),
            ("accumulate", u64::from(self.accumulate)),
            ("checkpoint_every", self.checkpoint_every),
            ("steps", self.steps.unwrap_or(1)),
            ("patience", self.patience.unwrap_or(1)),
        ];
        if let Some((field, _)) = counts.into_iter().find(|&(_, count)| count == 0) {
            return Err(TrainError::config(field, "it is 0; it must be at least 1"));
        }
        let (loss, schedule, curriculum) = (&self.loss, &self.schedule, &self.curriculum);
        let at_least_0 = |value: f32| value.is_finite() && value >= 0.0;
        let share = |value: f64| (0.0..=1.0).contains(&value);
        let checks = [
            ("rate", at_least_0(self.rate), "a finite number, 0 or above"),
            ("bias_rate", at_least_0(self.bias_rate), "a finite number, 0 or above"),
            ("weight_decay", at_least_0(self.weight_decay), "a finite number, 0 or above"),
            ("clip", self.clip.is_none_or(|clip| clip > 0.0), "above 0"),
            ("ema", self.ema.is_none_or(|ema| (0.0..1.0).contains(&ema)), "0 to below 1"),
            ("loss.smoothing", (0.0..1.0).contains(&loss.smoothing), "0 to below 1"),
            ("loss.teacher", share(f64::from(loss.teacher)), "0 to 1"),
            ("loss.temperature", loss.temperature > 0.0 && loss.temperature.is_finite(), "above 0"),
            ("schedule.warm_up", (0.0..1.0).contains(&schedule.warm_up), "0 to below 1"),
            ("curriculum.start", share(curriculum.start), "0 to 1"),
            ("curriculum.ramp", share(curriculum.ramp), "0 to 1"),
            ("narrow", self.narrow.is_none_or(|share| (0.0..0.5).contains(&share)), "0 to below 0.5"),
            ("augmentation.shift", self.augmentation.shift <= 127, "at most 127"),
        ];
        match checks.into_iter().find(|&(_, is_right, _)| !is_right) {
            Some((field, _, range)) => Err(TrainError::config(field, format!("it must be {range}"))),
            None => Ok(()),
        }
    }

    /// SHA-256 of the configuration, `checkpoint_every` left out: runs of equal hash may resume one another.
    pub fn hash(&self) -> String {
        let same = Self { checkpoint_every: 1, ..self.clone() };
        // A structure of numbers and enums always has a JSON form.
        let text = serde_json::to_string(&same).unwrap_or_default();
        hexadecimal(&Sha256::digest(text.as_bytes()))
    }
}
