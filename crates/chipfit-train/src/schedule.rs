//! The learning rate as a function of the step alone.

use serde::{Deserialize, Serialize};

/// How the rate goes on after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Decay {
    /// It stays.
    Constant,
    /// `(1 + cos(pi * progress)) / 2`.
    #[default]
    Cosine,
    /// Down to 0 in a straight line.
    Linear,
    /// Times `factor` after every `every` of the run.
    Step {
        /// Share of the run, above 0.
        every: f64,
        /// Factor.
        factor: f64,
    },
}

/// Warm-up, then decay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Schedule {
    /// Share of the run over which the rate rises in a straight line, 0 to below 1.
    pub warm_up: f64,
    /// What comes then.
    pub decay: Decay,
}

impl Schedule {
    /// Factor of the base rate in step `step` (from 0) of `steps`.
    ///
    /// Warm-up steps have `(step + 1) / warm-up steps`; `progress` then goes from 0 to 1, excluding 1.
    pub fn factor(&self, step: u64, steps: u64) -> f64 {
        let steps = steps.max(1);
        let warm_up = ((self.warm_up * steps as f64) as u64).min(steps);
        if step < warm_up {
            return (step + 1) as f64 / warm_up as f64;
        }
        let progress = (step - warm_up) as f64 / (steps - warm_up).max(1) as f64;
        match self.decay {
            Decay::Constant => 1.0,
            Decay::Cosine => (1.0 + libm::cos(std::f64::consts::PI * progress.min(1.0))) / 2.0,
            Decay::Linear => (1.0 - progress).max(0.0),
            Decay::Step { every, factor } => libm::pow(factor, libm::floor(progress / every)),
        }
    }
}

/// Share of the full fault rate while training starts: `min(1, start + (1 - start) * step / (ramp * steps))`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Curriculum {
    /// Share in step 0, 0 to 1.
    pub start: f64,
    /// Share of the run after which the full rate is reached; 0 for the full rate from the first step on.
    pub ramp: f64,
}

impl Default for Curriculum {
    fn default() -> Self {
        Self { start: 0.1, ramp: 0.0 }
    }
}

impl Curriculum {
    /// The share in step `step` of `steps`.
    pub fn scale(&self, step: u64, steps: u64) -> f64 {
        let length = self.ramp * steps as f64;
        if length <= 0.0 {
            return 1.0;
        }
        (self.start + (1.0 - self.start) * step as f64 / length).min(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_then_falls() {
        let schedule = Schedule { warm_up: 0.2, decay: Decay::Cosine };
        let factors: Vec<f64> = (0..10).map(|step| schedule.factor(step, 10)).collect();
        assert_eq!(factors[..3], [0.5, 1.0, 1.0]);
        assert!((factors[6] - 0.5).abs() < 1e-12, "half way through the cosine: {}", factors[6]);
        assert!(factors[3..].windows(2).all(|pair| pair[1] < pair[0]) && factors[9] > 0.0);
    }

    #[test]
    fn every_decay_keeps_its_formula() {
        let at = |decay: Decay, step: u64| Schedule { warm_up: 0.0, decay }.factor(step, 8);
        assert_eq!([at(Decay::Constant, 0), at(Decay::Constant, 7)], [1.0, 1.0]);
        assert_eq!([at(Decay::Linear, 0), at(Decay::Linear, 6)], [1.0, 0.25]);
        let halved = Decay::Step { every: 0.25, factor: 0.5 };
        assert_eq!([0, 1, 2, 5, 7].map(|step| at(halved, step)), [1.0, 1.0, 0.5, 0.25, 0.125]);
    }

    #[test]
    fn the_curriculum_ends_at_the_full_rate() {
        let curriculum = Curriculum { start: 0.25, ramp: 0.5 };
        assert_eq!([0, 2, 4, 5, 9].map(|step| curriculum.scale(step, 8)), [0.25, 0.625, 1.0, 1.0, 1.0]);
        assert_eq!(Curriculum { start: 0.0, ramp: 0.0 }.scale(0, 8), 1.0);
    }
}
