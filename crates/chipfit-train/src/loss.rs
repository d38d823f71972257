//! Losses of a classifier, from the real values of its last integer tensor (the logits).
//!
//! `z_i = scale * (byte_i - zero_point)`, `p = softmax(z)`, targets `t_i = (1 - s) [i = label] + s / classes`:
//! `loss = -sum t_i ln p_i`, derivative `p_i - t_i`. With a teacher of logits `u`, temperature T and share a:
//! `(1 - a) loss + a T^2 KL(softmax(u / T) || softmax(z / T))`, whose second derivative part is
//! `a T (softmax(z / T)_i - softmax(u / T)_i)`.
//! Exponentials and logarithms are libm's in f64: the same bits on every machine.

use serde::{Deserialize, Serialize};

/// Cross-entropy, with or without a teacher.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Loss {
    /// Label smoothing `s`, 0 to below 1.
    pub smoothing: f32,
    /// Share `a` of the teacher, 0 to 1; 0 without one.
    pub teacher: f32,
    /// Temperature `T` of the teacher, above 0.
    pub temperature: f32,
}

impl Default for Loss {
    fn default() -> Self {
        Self { smoothing: 0.0, teacher: 0.0, temperature: 1.0 }
    }
}

/// Softmax in f64, at a temperature, and the logarithm of the sum.
fn softmax(logits: &[f32], temperature: f64) -> (Vec<f64>, f64, f64) {
    let most = logits.iter().fold(f64::NEG_INFINITY, |most, &z| most.max(f64::from(z)));
    let mut shares: Vec<f64> = logits.iter().map(|&z| libm::exp((f64::from(z) - most) / temperature)).collect();
    let sum: f64 = shares.iter().sum();
    shares.iter_mut().for_each(|share| *share /= sum);
    (shares, most, libm::log(sum))
}

impl Loss {
    /// The loss of one picture; `gradient` (as long as `logits`) receives `factor` times its derivative by the logits.
    ///
    /// A label beyond the classes counts as no class: only smoothing and teacher act.
    pub fn picture(
        &self,
        logits: &[f32],
        label: usize,
        teacher: Option<&[f32]>,
        factor: f32,
        gradient: &mut [f32],
    ) -> f64 {
        let (share, most, log_sum) = softmax(logits, 1.0);
        let smoothing = f64::from(self.smoothing);
        let teacher = teacher.filter(|_| self.teacher > 0.0);
        let taught = if teacher.is_some() { f64::from(self.teacher) } else { 0.0 };
        let classes = logits.len().max(1) as f64;
        let mut loss = 0.0;
        for (class, ((&z, &p), gradient)) in logits.iter().zip(&share).zip(gradient.iter_mut()).enumerate() {
            let target = smoothing / classes + if class == label { 1.0 - smoothing } else { 0.0 };
            loss -= (1.0 - taught) * target * (f64::from(z) - most - log_sum);
            *gradient = ((1.0 - taught) * (p - target) * f64::from(factor)) as f32;
        }
        if let Some(teacher) = teacher {
            let temperature = f64::from(self.temperature);
            let (own, most, log_sum) = softmax(logits, temperature);
            let (other, other_most, other_log) = softmax(teacher, temperature);
            for (class, gradient) in gradient.iter_mut().enumerate().take(logits.len().min(teacher.len())) {
                let (p, q) = (own[class], other[class]);
                let log_p = (f64::from(logits[class]) - most) / temperature - log_sum;
                let log_q = (f64::from(teacher[class]) - other_most) / temperature - other_log;
                loss += taught * temperature * temperature * q * (log_q - log_p);
                *gradient += (taught * temperature * (p - q) * f64::from(factor)) as f32;
            }
        }
        loss
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numeric(loss: &Loss, logits: &[f32], label: usize, teacher: Option<&[f32]>, class: usize) -> f64 {
        let step = 1.0 / 256.0;
        let at = |change: f32| {
            let mut logits = logits.to_vec();
            logits[class] += change;
            let mut scratch = vec![0.0; logits.len()];
            loss.picture(&logits, label, teacher, 1.0, &mut scratch)
        };
        (at(step) - at(-step)) / (2.0 * f64::from(step))
    }

    #[test]
    fn gradients_are_the_derivatives() {
        let logits = [1.5f32, -0.25, 0.75, 3.0];
        let teacher = [0.5f32, 0.25, -1.0, 2.0];
        for (loss, teacher) in [
            (Loss::default(), None),
            (Loss { smoothing: 0.1, ..Loss::default() }, None),
            (Loss { smoothing: 0.1, teacher: 0.5, temperature: 2.0 }, Some(&teacher[..])),
            (Loss { smoothing: 0.0, teacher: 1.0, temperature: 4.0 }, Some(&teacher[..])),
        ] {
            let mut gradient = [0.0; 4];
            let value = loss.picture(&logits, 2, teacher, 1.0, &mut gradient);
            assert!(value > 0.0);
            for (class, &gradient) in gradient.iter().enumerate() {
                let expected = numeric(&loss, &logits, 2, teacher, class);
                assert!((f64::from(gradient) - expected).abs() < 1e-4, "{loss:?} {class}");
            }
        }
    }

    #[test]
    fn two_equal_classes_lose_a_bit() {
        let mut gradient = [0.0; 2];
        let loss = Loss::default().picture(&[7.0, 7.0], 0, None, 2.0, &mut gradient);
        assert!((loss - std::f64::consts::LN_2).abs() < 1e-12);
        assert_eq!(gradient, [-1.0, 1.0]);
    }

    #[test]
    fn far_logits_stay_finite() {
        let mut gradient = [0.0; 2];
        let loss = Loss::default().picture(&[-3e4, 3e4], 0, None, 1.0, &mut gradient);
        assert_eq!(loss, 6e4);
        assert_eq!(gradient, [-1.0, 1.0]);
    }
}
