//! The flags that decide how a run trains, and the configuration they make.

use chipfit_train::augment::Augmentation;
use chipfit_train::loss::Loss;
use chipfit_train::optimizer::Rule;
use chipfit_train::schedule::{Curriculum, Decay, Schedule};
use chipfit_train::{Config, Scales};
use clap::{Args, ValueEnum};

/// `--optimizer`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OptimizerFlag {
    /// Adam with decoupled weight decay
    Adamw,
    /// Stochastic gradient descent with momentum 0.9
    Sgd,
    /// The same with Nesterov's look ahead
    Nesterov,
}

/// `--schedule`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ScheduleFlag {
    /// Down to 0 along half a cosine
    Cosine,
    /// Down to 0 in a straight line
    Linear,
    /// Divided by ten after each third of the run
    Steps,
    /// As it is
    Constant,
}

/// `--scales`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ScalesFlag {
    /// They stay as the model has them
    Frozen,
    /// Those of the weights are estimated anew at each epoch
    Weights,
}

/// How a run trains.
#[derive(Args, Clone, Debug)]
pub(super) struct TrainingFlags {
    /// Passes over the training pictures
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..))]
    epochs: u64,
    /// At most so many optimizer steps
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    steps: Option<u64>,
    /// Pictures of one forward pass
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    batch: u32,
    /// Batches whose gradients one optimizer step averages
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    accumulate: u32,
    /// Forward passes of each batch, each with errors of its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    draws: u32,
    #[arg(long, value_enum, default_value = "adamw")]
    optimizer: OptimizerFlag,
    /// Before the schedule
    #[arg(long, value_name = "X", default_value_t = 3e-4)]
    learning_rate: f32,
    /// How the learning rate changes
    #[arg(long, value_enum, default_value = "cosine")]
    schedule: ScheduleFlag,
    /// Share of the run over which the learning rate rises
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    warm_up: f64,
    /// Of weights; biases have none
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    weight_decay: f32,
    /// Largest norm of the gradient; 0 for no limit
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    clip: f32,
    /// Share of the labels' weight that is spread over all classes
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    label_smoothing: f32,
    /// Share of the loss that follows the answers of the model as it came, computed without errors
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    distil: f32,
    /// Half of the pictures are seen mirrored
    #[arg(long)]
    flip: bool,
    /// Most pixels that a picture is shifted in each direction
    #[arg(long, value_name = "PIXELS", default_value_t = 0, value_parser = clap::value_parser!(u8).range(..=127))]
    shift: u8,
    /// Keep a running mean of the weights with this decay, and let it be the result
    #[arg(long, value_name = "DECAY")]
    ema: Option<f32>,
    /// Share of the run over which simulated errors rise to their full rate
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    ramp: f64,
    /// Before the first step, narrow the ranges of activations so far that this share of their values is cut off
    #[arg(long, value_name = "SHARE")]
    narrow: Option<f64>,
    /// What happens to scales
    #[arg(long, value_enum, default_value = "frozen")]
    scales: ScalesFlag,
    /// Share of the training pictures that judge the epochs; the best epoch is kept
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    pub(super) validation: f64,
    /// Stop after so many epochs that were no better by the validation pictures
    #[arg(long, value_name = "EPOCHS", value_parser = clap::value_parser!(u64).range(1..))]
    patience: Option<u64>,
    /// Optimizer steps between two checkpoints
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    checkpoint_every: u64,
}

impl TrainingFlags {
    /// Whether the answers of the model as it came are wanted.
    pub(super) fn has_teacher(&self) -> bool {
        self.distil > 0.0
    }

    /// Pictures of one forward pass.
    pub(super) fn batch(&self) -> usize {
        self.batch as usize
    }

    /// The configuration that they describe; the trainer checks its values.
    pub(super) fn config(&self, seed: u64) -> Config {
        let momentum = |nesterov| Rule::Sgd { momentum: 0.9, nesterov };
        Config {
            seed,
            batch: self.batch(),
            epochs: self.epochs,
            steps: self.steps,
            optimizer: match self.optimizer {
                OptimizerFlag::Adamw => Rule::default(),
                OptimizerFlag::Sgd => momentum(false),
                OptimizerFlag::Nesterov => momentum(true),
            },
            rate: self.learning_rate,
            schedule: Schedule {
                warm_up: self.warm_up,
                decay: match self.schedule {
                    ScheduleFlag::Cosine => Decay::Cosine,
                    ScheduleFlag::Linear => Decay::Linear,
                    ScheduleFlag::Steps => Decay::Step { every: 1.0 / 3.0, factor: 0.1 },
                    ScheduleFlag::Constant => Decay::Constant,
                },
            },
            weight_decay: self.weight_decay,
            clip: (self.clip > 0.0).then_some(self.clip),
            loss: Loss { smoothing: self.label_smoothing, teacher: self.distil, ..Loss::default() },
            augmentation: Augmentation { flip: self.flip, shift: self.shift },
            draws: self.draws,
            accumulate: self.accumulate,
            ema: self.ema,
            curriculum: Curriculum { start: 0.0, ramp: self.ramp },
            narrow: self.narrow,
            scales: match self.scales {
                ScalesFlag::Frozen => Scales::Frozen,
                ScalesFlag::Weights => Scales::Weights,
            },
            patience: self.patience,
            checkpoint_every: self.checkpoint_every,
            ..Config::default()
        }
    }
}
