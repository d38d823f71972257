//! SGD with momentum and AdamW on fp32 masters, element by element, in one fixed order of roundings.
//!
//! A parameter is measured in its *unit* u, one per channel: the optimizer sees `w / u`, whose gradient is `g = u dL/dw`
//! (the caller multiplies). With rate r, decay d (0 for biases), in step n from 1:
//!
//! SGD: `g' = g + d w / u`, `m = momentum m + g'`, `w = w - u r s`, s = `m`, or `g' + momentum m` with Nesterov.
//! AdamW: `m = b1 m + (1 - b1) g`, `v = b2 v + (1 - b2) g^2`,
//! `w = w - r d w - u r (m / (1 - b1^n)) / (sqrt(v / (1 - b2^n)) + epsilon)`.

use serde::{Deserialize, Serialize};

/// Which rule, with its constants.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Rule {
    /// Stochastic gradient descent with momentum.
    Sgd {
        /// 0 for none.
        momentum: f32,
        /// Looks ahead.
        nesterov: bool,
    },
    /// Adam with decoupled weight decay.
    Adamw {
        /// Decay of the mean.
        beta1: f32,
        /// Decay of the square.
        beta2: f32,
        /// Added to the root.
        epsilon: f32,
    },
}

impl Default for Rule {
    fn default() -> Self {
        Self::Adamw { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 }
    }
}

/// A rule with its state, one array per parameter and slot.
#[derive(Clone, Debug, PartialEq)]
pub struct Optimizer {
    rule: Rule,
    steps: u64,
    slots: Vec<Vec<Vec<f32>>>,
}

/// Rate and decay of one parameter in one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace<'a> {
    /// Learning rate.
    pub rate: f32,
    /// Weight decay.
    pub decay: f32,
    /// What 1 means to the optimizer, one per output channel; above 0.
    pub units: &'a [f32],
}

impl Pace<'_> {
    /// The unit of each of `length` elements.
    fn of(&self, length: usize) -> impl Iterator<Item = f32> {
        let each = (length / self.units.len().max(1)).max(1);
        self.units.iter().flat_map(move |&unit| std::iter::repeat_n(unit, each))
    }
}

/// Multiplies a parameter's gradient by its units.
pub fn in_units(gradient: &mut [f32], units: &[f32]) {
    let each = (gradient.len() / units.len().max(1)).max(1);
    for (channel, unit) in gradient.chunks_mut(each).zip(units) {
        channel.iter_mut().for_each(|g| *g *= unit);
    }
}

impl Optimizer {
    /// A fresh state for parameters of these lengths.
    pub fn new(rule: Rule, lengths: impl Iterator<Item = usize> + Clone) -> Self {
        let slots = match rule {
            Rule::Sgd { .. } => 1,
            Rule::Adamw { .. } => 2,
        };
        let zeros = || lengths.clone().map(|length| vec![0.0; length]).collect();
        Self { rule, steps: 0, slots: (0..slots).map(|_| zeros()).collect() }
    }

    /// Steps made.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The state: `[slot][parameter][element]`; the momentum, or mean and square.
    pub fn slots(&self) -> &[Vec<Vec<f32>>] {
        &self.slots
    }

    /// Takes a stored state; `None` when its shape differs.
    pub fn restore(&mut self, steps: u64, slots: Vec<Vec<Vec<f32>>>) -> Option<()> {
        let lengths = |slots: &[Vec<Vec<f32>>]| -> Vec<Vec<usize>> {
            slots.iter().map(|slot| slot.iter().map(Vec::len).collect()).collect()
        };
        if lengths(&self.slots) != lengths(&slots) {
            return None;
        }
        (self.steps, self.slots) = (steps, slots);
        Some(())
    }

    /// One step: changes `masters` by `gradients`, both as long as the state, parameter by parameter.
    pub fn step(&mut self, masters: &mut [Vec<f32>], gradients: &[Vec<f32>], paces: &[Pace<'_>]) {
        self.steps += 1;
        match self.rule {
            Rule::Sgd { momentum, nesterov } => {
                let Some(slot) = self.slots.first_mut() else { return };
                for (((master, gradient), mean), pace) in masters.iter_mut().zip(gradients).zip(slot).zip(paces) {
                    let units = pace.of(master.len());
                    for (((w, &g), m), unit) in master.iter_mut().zip(gradient).zip(mean).zip(units) {
                        let g = g + pace.decay * *w / unit;
                        *m = momentum * *m + g;
                        *w -= unit * pace.rate * if nesterov { g + momentum * *m } else { *m };
                    }
                }
            }
            Rule::Adamw { beta1, beta2, epsilon } => {
                let exponent = self.steps as f64;
                let unbias = |beta: f32| (1.0 / (1.0 - libm::pow(f64::from(beta), exponent))) as f32;
                let (first, second) = (unbias(beta1), unbias(beta2));
                let [means, squares] = self.slots.as_mut_slice() else { return };
                for ((((master, gradient), means), squares), pace) in
                    masters.iter_mut().zip(gradients).zip(means).zip(squares).zip(paces)
                {
                    let units = pace.of(master.len());
                    for ((((w, &g), m), v), unit) in master.iter_mut().zip(gradient).zip(means).zip(squares).zip(units)
                    {
                        *m = beta1 * *m + (1.0 - beta1) * g;
                        *v = beta2 * *v + (1.0 - beta2) * g * g;
                        let change = *m * first / ((*v * second).sqrt() + epsilon);
                        *w -= pace.rate * pace.decay * *w + unit * pace.rate * change;
                    }
                }
            }
        }
    }
}

/// Scales the gradients down to a global norm of at most `most`; gives the norm before. Sums in f64, in order.
pub fn clip(gradients: &mut [Vec<f32>], most: Option<f32>) -> f64 {
    let square = |part: &Vec<f32>| -> f64 { part.iter().map(|&g| f64::from(g) * f64::from(g)).sum() };
    let norm = gradients.iter().map(square).sum::<f64>().sqrt();
    if let Some(most) = most
        && norm > f64::from(most)
    {
        let factor = (f64::from(most) / norm) as f32;
        gradients.iter_mut().flatten().for_each(|g| *g *= factor);
    }
    norm
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: [Pace<'static>; 1] = [Pace { rate: 0.5, decay: 0.0, units: &[1.0] }];

    /// Minimises `(w - 3)^2 / 2`.
    fn minimise(rule: Rule, pace: Pace<'_>, steps: usize) -> f32 {
        let mut masters = vec![vec![0.0f32]];
        let mut optimizer = Optimizer::new(rule, [1].into_iter());
        for _ in 0..steps {
            let gradient = vec![vec![masters[0][0] - 3.0]];
            optimizer.step(&mut masters, &gradient, &[pace]);
        }
        masters[0][0]
    }

    #[test]
    fn momentum_by_hand() {
        let mut masters = vec![vec![1.0f32]];
        let mut optimizer = Optimizer::new(Rule::Sgd { momentum: 0.5, nesterov: false }, [1].into_iter());
        optimizer.step(&mut masters, &[vec![1.0]], &PACE);
        assert_eq!(masters, [[0.5]]);
        optimizer.step(&mut masters, &[vec![1.0]], &PACE);
        assert_eq!(masters, [[-0.25]]);
        let mut masters = vec![vec![1.0f32]];
        let mut optimizer = Optimizer::new(Rule::Sgd { momentum: 0.5, nesterov: true }, [1].into_iter());
        optimizer.step(&mut masters, &[vec![1.0]], &[Pace { rate: 0.5, decay: 1.0, units: &[1.0] }]);
        // g' = 2, m = 2, u = 2 + 0.5 * 2.
        assert_eq!(masters, [[-0.5]]);
    }

    #[test]
    fn the_first_step_of_adam_is_the_rate() {
        for gradient in [1e-3f32, 7.0, -5.0] {
            let mut masters = vec![vec![0.0f32]];
            let mut optimizer = Optimizer::new(Rule::default(), [1].into_iter());
            optimizer.step(&mut masters, &[vec![gradient]], &PACE);
            assert!((masters[0][0] + 0.5 * gradient.signum()).abs() < 1e-4, "{}", masters[0][0]);
        }
    }

    #[test]
    fn both_find_a_minimum_and_decay_pulls_to_zero() {
        let sgd = Rule::Sgd { momentum: 0.9, nesterov: true };
        for rule in [sgd, Rule::default()] {
            let found = minimise(rule, Pace { rate: 0.02, decay: 0.0, units: &[1.0] }, 2000);
            assert!((found - 3.0).abs() < 1e-2, "{rule:?}: {found}");
        }
        let decayed = minimise(sgd, Pace { rate: 0.02, decay: 0.5, units: &[1.0] }, 2000);
        assert!((decayed - 2.0).abs() < 1e-3, "{decayed}");
        assert!(minimise(Rule::default(), Pace { rate: 0.02, decay: 0.5, units: &[1.0] }, 2000) < 2.9);
    }

    #[test]
    fn a_unit_is_a_change_of_coordinates() {
        // In units of 4, the loss (w - 3)^2 / 2 is (4 x - 3)^2 / 2 at x = w / 4.
        for rule in [Rule::Sgd { momentum: 0.9, nesterov: true }, Rule::default()] {
            let (mut plain, mut scaled) = (vec![vec![0.25f32]], vec![vec![1.0f32, 1.0]]);
            let (mut first, mut second) =
                (Optimizer::new(rule, [1].into_iter()), Optimizer::new(rule, [2].into_iter()));
            for _ in 0..20 {
                let gradient = [vec![4.0 * (4.0 * plain[0][0] - 3.0)]];
                first.step(&mut plain, &gradient, &[Pace { rate: 0.01, decay: 0.125, units: &[1.0] }]);
                let mut gradient = [vec![scaled[0][0] - 3.0, 0.0]];
                in_units(&mut gradient[0], &[4.0, 2.0]);
                second.step(&mut scaled, &gradient, &[Pace { rate: 0.01, decay: 0.125, units: &[4.0, 2.0] }]);
            }
            assert!((4.0 * plain[0][0] - scaled[0][0]).abs() < 1e-4, "{rule:?}: {plain:?} {scaled:?}");
            assert!(scaled[0][0] != 1.0 && scaled[0][1] < 1.0);
        }
    }

    #[test]
    fn clipping_keeps_the_direction() {
        let mut gradients = vec![vec![3.0f32], vec![0.0, 4.0]];
        assert_eq!(clip(&mut gradients, Some(10.0)), 5.0);
        assert_eq!(gradients, [vec![3.0], vec![0.0, 4.0]]);
        assert_eq!(clip(&mut gradients, Some(2.5)), 5.0);
        assert_eq!(gradients, [vec![1.5], vec![0.0, 2.0]]);
    }

    #[test]
    fn a_restored_state_goes_on_as_if_nothing_had_happened() {
        let mut optimizer = Optimizer::new(Rule::default(), [2].into_iter());
        let (mut masters, gradient) = (vec![vec![1.0f32, -1.0]], vec![vec![0.3, 0.1]]);
        optimizer.step(&mut masters, &gradient, &PACE);
        let mut other = Optimizer::new(Rule::default(), [2].into_iter());
        other.restore(optimizer.steps(), optimizer.slots().to_vec()).unwrap();
        let mut copy = masters.clone();
        optimizer.step(&mut masters, &gradient, &PACE);
        other.step(&mut copy, &gradient, &PACE);
        assert_eq!((masters, optimizer), (copy, other.clone()));
        assert!(other.restore(1, vec![]).is_none());
    }
}
