//! The loop: shuffled epochs of batches, optimizer steps by a schedule, an evaluation behind each epoch.

use std::cell::RefCell;
use std::ops::ControlFlow;

use chipfit_model::Model;
use chipfit_npu::faults::generator::Key;
use serde::{Deserialize, Serialize};

use super::engine::{Batch, Engine};
use super::error::ScratchError;
use super::graph::{Kind, Network, Role};
use super::pictures::{FloatPictures, look};
use crate::augment::{Augmentation, order};
use crate::loss::Loss;
use crate::optimizer::{Optimizer, Pace, Rule, clip};
use crate::schedule::{Decay, Schedule};

/// Purpose of the keys of the first weights: this module's draws never meet others.
const WEIGHTS: u64 = 0x5C_0001;

/// What the weights are before the first step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// Drawn from the seed: weights of variance `2 / fan in` (He et al. 2015; `1 / fan in` in front of the logits),
    /// biases and shifts 0, factors 1, running means 0 and variances 1.
    #[default]
    Seeded,
    /// Those of the model.
    Model,
}

/// Everything that decides the result, besides the model and the pictures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Keys the first weights, the order of pictures and their views.
    pub seed: u64,
    /// Pictures of one step, above 0.
    pub batch: usize,
    /// Passes over the pictures, above 0. What does not fill a batch is left out of its epoch.
    pub epochs: u64,
    /// At most so many steps; all of the epochs when `None`.
    pub steps: Option<u64>,
    /// What the weights are before the first step.
    pub start: Start,
    /// SGD or AdamW.
    pub optimizer: Rule,
    /// Learning rate before the schedule.
    pub rate: f32,
    /// How the rate changes.
    pub schedule: Schedule,
    /// Weight decay of weights; biases and normalisations have none.
    pub weight_decay: f32,
    /// Largest global norm of the gradient.
    pub clip: Option<f32>,
    /// The loss; there is no teacher.
    pub loss: Loss,
    /// Flip and shift.
    pub augmentation: Augmentation,
}

impl Default for Config {
    /// Ten epochs of 64 pictures, SGD with Nesterov momentum at 0.1, cosine decay.
    fn default() -> Self {
        Self {
            seed: 0,
            batch: 64,
            epochs: 10,
            steps: None,
            start: Start::default(),
            optimizer: Rule::Sgd { momentum: 0.9, nesterov: true },
            rate: 0.1,
            schedule: Schedule { warm_up: 0.05, decay: Decay::Cosine },
            weight_decay: 5e-4,
            clip: Some(5.0),
            loss: Loss::default(),
            augmentation: Augmentation::default(),
        }
    }
}

impl Config {
    /// What suits a network: a gentler rate without normalisations; flips, shifts of an eighth and more epochs for
    /// coloured pictures, since grey ones are mostly digits, letters and things that stand in the middle.
    pub fn for_network(network: &Network) -> Self {
        let has_norms = network.layers.iter().any(|layer| matches!(layer.kind, Kind::Norm(_)));
        let rate = if has_norms { 0.1 } else { 0.05 };
        let [channels, height, width] = network.picture();
        if channels == 1 {
            return Self { rate, epochs: 4, ..Self::default() };
        }
        let shift = u8::try_from(height.min(width) / 8).unwrap_or(u8::MAX).min(127);
        Self { rate, epochs: 12, augmentation: Augmentation { flip: true, shift }, ..Self::default() }
    }

    /// Refuses values without a meaning.
    ///
    /// # Errors
    /// [`ScratchError::Config`], which names the field.
    pub fn check(&self) -> Result<(), ScratchError> {
        let at_least_0 = |value: f32| value.is_finite() && value >= 0.0;
        let checks = [
            ("batch", self.batch > 0, "at least 1"),
            ("epochs", self.epochs > 0, "at least 1"),
            ("steps", self.steps != Some(0), "at least 1"),
            ("rate", at_least_0(self.rate), "a finite number, 0 or above"),
            ("weight_decay", at_least_0(self.weight_decay), "a finite number, 0 or above"),
            ("clip", self.clip.is_none_or(|clip| clip > 0.0), "above 0"),
            ("loss.smoothing", (0.0..1.0).contains(&self.loss.smoothing), "0 to below 1"),
            ("loss.teacher", self.loss.teacher == 0.0, "0: there is no teacher in training from scratch"),
            ("schedule.warm_up", (0.0..1.0).contains(&self.schedule.warm_up), "0 to below 1"),
            ("augmentation.shift", self.augmentation.shift <= 127, "at most 127"),
        ];
        match checks.into_iter().find(|&(_, is_right, _)| !is_right) {
            Some((field, _, range)) => Err(ScratchError::Config { field, what: format!("it must be {range}") }),
            None => Ok(()),
        }
    }
}

/// Right answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Pictures evaluated.
    pub pictures: usize,
    /// With the label first.
    pub hits: usize,
    /// Mean loss.
    pub loss: f64,
}

impl Evaluation {
    /// Share of right answers, 0 to 1.
    pub fn accuracy(&self) -> f64 {
        self.hits as f64 / self.pictures.max(1) as f64
    }
}

/// What an observer is told.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// A step is done.
    Step {
        /// Steps done.
        done: u64,
        /// Steps of the run.
        of: u64,
        /// Passes begun.
        epoch: u64,
        /// Mean loss of the batch.
        loss: f64,
        /// Share of right answers in the batch, with batch statistics and as augmented.
        accuracy: f64,
        /// Norm of the gradient before it was clipped.
        gradient: f64,
    },
    /// An epoch is done and the held-out pictures were evaluated.
    Epoch {
        /// Passes done.
        done: u64,
        /// On the held-out pictures.
        held_out: Evaluation,
    },
}

/// A finished run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The model with trained initializers.
    pub model: Model,
    /// On the held-out pictures, where there are some, behind the last step.
    pub held_out: Option<Evaluation>,
    /// Steps done; fewer than planned when the observer broke off.
    pub steps: u64,
}

/// Trains `model` on `pictures`.
///
/// - `held_out`: evaluated behind each epoch and at the end; no part in training.
/// - `observer`: told of every step and epoch; on `Break` the run ends, as if it had been planned so short.
///
/// # Errors
/// [`ScratchError`]: a node that cannot be trained, a picture that cannot be read, a label beyond the classes, a field
/// of `config` without meaning, or a loss that is no number.
pub fn train(
    model: &Model,
    pictures: &dyn FloatPictures,
    held_out: Option<&dyn FloatPictures>,
    config: &Config,
    observer: &mut dyn FnMut(&Event) -> ControlFlow<()>,
) -> Result<Outcome, ScratchError> {
    config.check()?;
    let mut network = Network::from_model(model)?;
    if config.start == Start::Seeded {
        network.seed(config.seed);
    }
    let mut run = Run::new(network, pictures, config)?;
    if let Some(held_out) = held_out {
        check_labels(held_out, run.engine.network.classes())?;
    }
    let mut last = None;
    'run: for epoch in 0.. {
        let order = order(config.seed, epoch, pictures.len());
        let batches = order.chunks_exact(run.batch);
        for batch in batches {
            if run.done == run.of {
                break 'run;
            }
            let event = run.step(pictures, epoch, batch)?;
            last = None;
            if observer(&event).is_break() {
                break 'run;
            }
        }
        if let Some(held_out) = held_out {
            let found = run.engine.score(held_out, config.batch)?;
            last = Some(found);
            if observer(&Event::Epoch { done: epoch + 1, held_out: found }).is_break() {
                break;
            }
        }
    }
    if let (None, Some(held_out)) = (last, held_out) {
        last = Some(run.engine.score(held_out, config.batch)?);
    }
    Ok(Outcome { model: run.engine.network.to_model(model)?, held_out: last, steps: run.done })
}

/// Loss and right answers of a float model on labelled pictures, with running statistics.
///
/// # Errors
/// As [`train`].
pub fn evaluate(model: &Model, pictures: &dyn FloatPictures, batch: usize) -> Result<Evaluation, ScratchError> {
    let mut engine = Engine::new(Network::from_model(model)?)?;
    check_labels(pictures, engine.network.classes())?;
    engine.score(pictures, batch)
}

/// A run under way.
struct Run<'c> {
    config: &'c Config,
    engine: Engine,
    optimizer: Optimizer,
    /// Pictures of a step: fewer than asked for when there are not so many.
    batch: usize,
    done: u64,
    of: u64,
}

impl<'c> Run<'c> {
    fn new(network: Network, pictures: &dyn FloatPictures, config: &'c Config) -> Result<Self, ScratchError> {
        if pictures.is_empty() {
            return Err(ScratchError::Picture { index: 0, what: "there are no pictures to train on".to_owned() });
        }
        check_labels(pictures, network.classes())?;
        let optimizer = Optimizer::new(config.optimizer, network.values.iter().map(Vec::len));
        let batch = config.batch.min(pictures.len());
        let per_epoch = (pictures.len() / batch) as u64;
        let all = per_epoch.saturating_mul(config.epochs);
        let of = config.steps.map_or(all, |steps| steps.min(all));
        Ok(Self { config, engine: Engine::new(network)?, optimizer, batch, done: 0, of })
    }

    fn step(&mut self, pictures: &dyn FloatPictures, epoch: u64, batch: &[u32]) -> Result<Event, ScratchError> {
        let config = self.config;
        // The order's numbers came from a usize.
        let index = |at: usize| batch.get(at).map_or(usize::MAX, |&index| index as usize);
        let shape = self.engine.network.picture();
        let fetch = |at: usize, out: &mut [f32]| {
            thread_local! {
                static SPARE: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
            }
            pictures.values(index(at), out)?;
            let view = config.augmentation.view(config.seed, epoch, index(at) as u64);
            SPARE.with_borrow_mut(|spare| look(view, shape, out, spare));
            Ok(())
        };
        let labels: Vec<u32> = (0..batch.len()).map(|at| pictures.label(index(at))).collect();
        let score =
            self.engine.train(&Batch { fetch: &fetch, labels: &labels, loss: config.loss, is_training: true })?;
        if !score.loss.is_finite() {
            return Err(ScratchError::NotFinite { step: self.done });
        }
        let gradient = clip(&mut self.engine.gradients, config.clip);
        if !gradient.is_finite() {
            return Err(ScratchError::NotFinite { step: self.done });
        }
        let rate = (f64::from(config.rate) * config.schedule.factor(self.done, self.of)) as f32;
        let decay = |role: Role| if matches!(role, Role::Weight { .. }) { config.weight_decay } else { 0.0 };
        let parameters = &self.engine.network.parameters;
        let paces: Vec<Pace> =
            parameters.iter().map(|parameter| Pace { rate, decay: decay(parameter.role), units: &[1.0] }).collect();
        self.optimizer.step(&mut self.engine.network.values, &self.engine.gradients, &paces);
        self.engine.reload()?;
        self.done += 1;
        let pictures = score.pictures.max(1) as f64;
        Ok(Event::Step {
            done: self.done,
            of: self.of,
            epoch: epoch + 1,
            loss: score.loss / pictures,
            accuracy: score.hits as f64 / pictures,
            gradient,
        })
    }
}

impl Engine {
    /// Loss and hits on labelled pictures.
    fn score(&mut self, pictures: &dyn FloatPictures, batch: usize) -> Result<Evaluation, ScratchError> {
        let mut found = Evaluation { pictures: pictures.len(), hits: 0, loss: 0.0 };
        for start in (0..pictures.len()).step_by(batch.max(1)) {
            let end = pictures.len().min(start + batch.max(1));
            let labels: Vec<u32> = (start..end).map(|index| pictures.label(index)).collect();
            let fetch = |at: usize, out: &mut [f32]| pictures.values(start + at, out);
            let batch = Batch { fetch: &fetch, labels: &labels, loss: Loss::default(), is_training: false };
            let score = self.evaluate(&batch, None)?;
            found.hits += score.hits;
            found.loss += score.loss;
        }
        found.loss /= pictures.len().max(1) as f64;
        Ok(found)
    }
}

impl Network {
    /// Draws the weights anew, as [`Start::Seeded`] says.
    pub fn seed(&mut self, seed: u64) {
        let Self { layers, parameters, values, logits, .. } = self;
        for (id, (parameter, values)) in parameters.iter().zip(values).enumerate() {
            match parameter.role {
                Role::Weight { fan_in } => {
                    let makes_logits = layers.iter().any(|layer| {
                        layer.output == *logits && matches!(layer.kind, Kind::Linear { weight, .. } if weight == id)
                    });
                    let gain = if makes_logits { 1.0 } else { 2.0 };
                    let deviation = (gain / fan_in.max(1) as f64).sqrt();
                    let mut stream = Key::new(WEIGHTS).with(seed).with(id as u64).stream();
                    // Four uniform numbers: variance 1 / 3, close to a bell and without logarithms.
                    let mut bell = || (0..4).map(|_| stream.unit() - 0.5).sum::<f64>() * 3f64.sqrt();
                    values.iter_mut().for_each(|value| *value = (bell() * deviation) as f32);
                }
                Role::Bias | Role::Shift => values.fill(0.0),
                Role::Scale => values.fill(1.0),
            }
        }
        for layer in layers {
            if let Kind::Norm(norm) = &mut layer.kind {
                let [mean, variance] = &mut norm.running;
                mean.fill(0.0);
                variance.fill(1.0);
            }
        }
    }
}

fn check_labels(pictures: &dyn FloatPictures, classes: usize) -> Result<(), ScratchError> {
    let bad = (0..pictures.len()).find(|&index| pictures.label(index) as usize >= classes);
    match bad {
        Some(index) => {
            let what = format!("its label is {}, the network tells {classes} classes apart", pictures.label(index));
            Err(ScratchError::Picture { index, what })
        }
        None => Ok(()),
    }
}
