//! Whether the values that plans are made from foretell harm: compared with injection into parts of layers, on fresh
//! draws.

use serde::{Deserialize, Serialize};

use super::units::Unit;
use super::vulnerability::{Bin, Estimate};

/// Foretold and measured harm of parts of layers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Validation {
    /// The parts.
    pub parts: Vec<Part>,
    /// Spearman's rank correlation of foretold and measured harm per MAC; `None` where all are equal.
    pub rank_correlation: Option<f64>,
    /// Sum of the measured harms by that of the foretold ones.
    pub calibration: Option<f64>,
    /// Share of the parts whose measured harm lies within two standard errors of the foretold one.
    pub within_two_errors: f64,
}

/// Channels of one step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// Index of the step.
    pub step: usize,
    /// MACs.
    pub macs: u64,
    /// Sum of the values of its units.
    pub foretold: f64,
    /// The loss that protecting it alone saves.
    pub measured: Estimate,
}

/// Every layer's units in `parts` bins of ascending value per MAC.
pub(super) fn quantiles(units: &[Unit], values: &[f64], parts: usize) -> Vec<Bin> {
    let mut bins = Vec::new();
    let mut start = 0;
    while let Some(first) = units.get(start) {
        let count = units.iter().skip(start).take_while(|unit| unit.step == first.step).count();
        let mut order: Vec<usize> = (start..start + count).collect();
        let density = |at: usize| values[at] / units[at].macs.max(1) as f64;
        order.sort_by(|&a, &b| density(a).total_cmp(&density(b)).then(a.cmp(&b)));
        let size = count.div_ceil(parts.max(1)).max(1);
        bins.extend(order.chunks(size).map(|units| Bin { units: units.to_vec(), is_on: false }));
        start += count;
    }
    bins
}

impl Validation {
    pub(super) fn new(units: &[Unit], values: &[f64], bins: &[Bin], harms: &[Estimate]) -> Self {
        let part = |(bin, &measured): (&Bin, &Estimate)| Part {
            step: bin.units.first().map_or(0, |&unit| units[unit].step),
            macs: bin.units.iter().map(|&unit| units[unit].macs).sum(),
            foretold: bin.units.iter().map(|&unit| values[unit]).sum(),
            measured,
        };
        let parts: Vec<Part> = bins.iter().zip(harms).map(part).collect();
        let density =
            |of: &dyn Fn(&Part) -> f64| parts.iter().map(|p| of(p) / p.macs.max(1) as f64).collect::<Vec<_>>();
        let rank_correlation = spearman(&density(&|p| p.foretold), &density(&|p| p.measured.mean));
        let sum = |of: &dyn Fn(&Part) -> f64| parts.iter().map(of).sum::<f64>();
        let calibration = Some(sum(&|p| p.measured.mean) / sum(&|p| p.foretold)).filter(|c| c.is_finite());
        let is_near = |p: &&Part| (p.measured.mean - p.foretold).abs() <= 2.0 * p.measured.standard_error;
        let within_two_errors = parts.iter().filter(is_near).count() as f64 / parts.len().max(1) as f64;
        Self { parts, rank_correlation, calibration, within_two_errors }
    }
}

/// Spearman's rank correlation; equal values share the mean of their ranks. `None` where one side has no order.
pub fn spearman(a: &[f64], b: &[f64]) -> Option<f64> {
    let (a, b) = (ranks(a), ranks(b));
    let count = a.len().min(b.len()) as f64;
    let mean = (count - 1.0) / 2.0;
    let sum = |f: &dyn Fn(f64, f64) -> f64| a.iter().zip(&b).map(|(&a, &b)| f(a - mean, b - mean)).sum::<f64>();
    let (both, left, right) = (sum(&|a, b| a * b), sum(&|a, _| a * a), sum(&|_, b| b * b));
    Some(both / (left * right).sqrt()).filter(|r| r.is_finite())
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    for group in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let rank = start as f64 + (group.len() as f64 - 1.0) / 2.0;
        group.iter().for_each(|&at| ranks[at] = rank);
        start += group.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_correlate_as_by_hand() {
        assert_eq!(spearman(&[1.0, 2.0, 3.0], &[10.0, 20.0, 90.0]), Some(1.0));
        assert_eq!(spearman(&[1.0, 2.0, 3.0], &[3.0, 2.0, -5.0]), Some(-1.0));
        // Ranks 0, 1, 2, 3 and 1, 0, 3, 2: 1 - 6 * 4 / (4 * 15).
        assert!((spearman(&[1.0, 2.0, 3.0, 4.0], &[2.0, 1.0, 4.0, 3.0]).unwrap() - 0.6).abs() < 1e-12);
        // A tie: ranks 0.5, 0.5, 2.
        assert!((spearman(&[1.0, 1.0, 2.0], &[1.0, 2.0, 3.0]).unwrap() - 0.75f64.sqrt()).abs() < 1e-12);
        assert_eq!(spearman(&[1.0, 1.0], &[1.0, 2.0]), None);
        assert_eq!(spearman(&[], &[]), None);
    }
}
