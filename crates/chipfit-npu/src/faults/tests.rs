//! Draws against their laws, masks against enumeration, presets against their definitions, files against nonsense.
//!
//! Seeds are fixed. A statistical threshold says how often a correct generator would fail it for a random seed.

mod draws;
mod format;
mod laws;
mod presets;

use super::*;
use crate::program::{Program, StepId};
use crate::protection::Protection;

/// A file that must parse and fit the program.
fn resolve(text: &str, program: &Program) -> Faults {
    Faults::resolve(&FaultsFile::parse(text).unwrap(), program, 42).unwrap()
}

/// Chains and branched programs.
fn any_program(seed: u64) -> Program {
    if seed.is_multiple_of(2) { crate::testing::program(seed) } else { crate::testing::graphs::graph(seed) }
}

/// Strikes of one step.
fn drawn(source: &dyn StrikeSource, key: DrawKey, step: usize, replica: u8) -> Vec<Strike> {
    let mut strikes = Vec::new();
    source.strikes(&key, StepId(step), replica, &mut strikes);
    strikes
}

/// Strikes of all steps of one inference, replica 0.
fn inference(faults: &Faults, program: &Program, trial: u64, picture: u64) -> Vec<(usize, Strike)> {
    (0..program.steps().len())
        .flat_map(|step| drawn(faults, faults.key(trial, picture), step, 0).into_iter().map(move |s| (step, s)))
        .collect()
}

/// Pearson's statistic must stay below its 1 - 1e-6 quantile (Wilson and Hilferty's approximation): a correct
/// generator fails once in a million seeds. Cells with less than 5 expected are pooled.
fn assert_chi_square(observed: &[u64], expected: &[f64]) {
    assert_eq!(observed.len(), expected.len());
    let (mut statistic, mut cells) = (0.0, 0usize);
    let (mut pooled, mut pooled_expected) = (0.0, 0.0);
    let mut add = |seen: f64, mean: f64| {
        statistic += (seen - mean) * (seen - mean) / mean;
        cells += 1;
    };
    for (&seen, &mean) in observed.iter().zip(expected) {
        if mean >= 5.0 {
            add(seen as f64, mean);
        } else {
            pooled += seen as f64;
            pooled_expected += mean;
        }
    }
    if pooled_expected >= 1.0 {
        add(pooled, pooled_expected);
    }
    let freedom = (cells - 1) as f64;
    let z = 4.753;
    let quantile = freedom * (1.0 - 2.0 / (9.0 * freedom) + z * (2.0 / (9.0 * freedom)).sqrt()).powi(3);
    assert!(statistic < quantile, "chi-square {statistic:.1} of {cells} cells, quantile {quantile:.1}");
}

/// A mean of `count` values with this deviation lies within 5 standard errors: one false alarm in 1.7 million seeds.
fn assert_mean(mean: f64, expected: f64, deviation: f64, count: usize) {
    let error = deviation / (count as f64).sqrt();
    assert!((mean - expected).abs() <= 5.0 * error, "mean {mean}, expected {expected} +- {error}");
}

/// No protection.
fn bare() -> Protection {
    Protection::none()
}
