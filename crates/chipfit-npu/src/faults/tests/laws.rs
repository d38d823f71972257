//! Counts, subsets and splits against probabilities from other formulas.

use super::super::counts::{Chunks, PoissonCount, Urn};
use super::super::generator::Key;
use super::super::positions::subset;
use super::{assert_chi_square, assert_mean};

fn ln_choose(n: f64, k: f64) -> f64 {
    libm::lgamma(n + 1.0) - libm::lgamma(k + 1.0) - libm::lgamma(n - k + 1.0)
}

fn binomial(n: u64, p: f64, k: u64) -> f64 {
    if k > n {
        return 0.0;
    }
    let (n, k) = (n as f64, k as f64);
    (ln_choose(n, k) + k * p.ln() + (n - k) * (1.0 - p).ln()).exp()
}

fn chunk_counts(units: u64, p: f64, draws: usize, most: usize) -> Vec<u64> {
    let chunks = Chunks::binomial(units, p);
    let mut histogram = vec![0; most + 1];
    for draw in 0..draws {
        let mut count = 0;
        chunks.draw(&mut Key::new(99).with(draw as u64).stream(), |_| count += 1);
        histogram[count.min(most)] += 1;
    }
    histogram
}

#[test]
fn numbers_of_struck_units_are_binomial() {
    // One chunk, several chunks of unequal size, a large probability, a tiny mean.
    for (units, p) in [(1000, 0.01), (977, 0.09), (50, 0.5), (40, 0.93), (3_000_000_000, 1e-10)] {
        let draws = 40_000;
        let most = 140;
        let observed = chunk_counts(units, p, draws, most);
        let expected: Vec<f64> = (0..=most as u64).map(|k| draws as f64 * binomial(units, p, k)).collect();
        assert_chi_square(&observed, &expected);
    }
}

#[test]
fn large_means_have_the_binomial_mean_and_variance() {
    let (units, p, draws) = (10_000_019u64, 1e-4, 2_000usize);
    let chunks = Chunks::binomial(units, p);
    let counts: Vec<f64> = (0..draws)
        .map(|draw| {
            let mut count = 0;
            chunks.draw(&mut Key::new(5).with(draw as u64).stream(), |_| count += 1);
            f64::from(count)
        })
        .collect();
    let (mean, variance) = (units as f64 * p, units as f64 * p * (1.0 - p));
    let seen = counts.iter().sum::<f64>() / draws as f64;
    assert_mean(seen, mean, variance.sqrt(), draws);
    let spread = counts.iter().map(|c| (c - mean) * (c - mean)).sum::<f64>() / draws as f64;
    // The variance of a squared normal deviation is 2 sigma^4.
    assert_mean(spread, variance, 2f64.sqrt() * variance, draws);
}

#[test]
fn struck_units_are_ascending_and_uniform() {
    let (units, bins) = (1_000_003u64, 64usize);
    let chunks = Chunks::binomial(units, 1e-3);
    let mut histogram = vec![0u64; bins];
    let mut total = 0;
    for draw in 0..300 {
        let mut last = None;
        chunks.draw(&mut Key::new(6).with(draw).stream(), |unit| {
            assert!(last < Some(unit) && unit < units);
            last = Some(unit);
            histogram[(unit * bins as u64 / units) as usize] += 1;
            total += 1;
        });
    }
    assert_chi_square(&histogram, &vec![total as f64 / bins as f64; bins]);
}

#[test]
fn pinned_units_never_change() {
    // From an implementation in another language, after `docs/fault-model.md`.
    let mut units = Vec::new();
    let key = Key::new(1).with(1).with(2).with(3).with(4 << 16).with(0);
    Chunks::binomial(1_000_003, 1e-4).draw(&mut key.stream(), |unit| units.push(unit));
    assert_eq!((units.len(), units.iter().sum::<u64>()), (100, 52_029_060));
    assert_eq!((&units[..3], &units[97..]), (&[4_078, 24_163, 29_011][..], &[977_807, 985_420, 995_738][..]));
}

#[test]
fn units_are_struck_independently_within_and_across_chunks() {
    // 200 units at 0.4 lie in three chunks; every pair must be struck together with probability 0.16.
    let (units, p, draws) = (200usize, 0.4, 20_000usize);
    let chunks = Chunks::binomial(units as u64, p);
    let mut together = vec![0u64; 3];
    let pairs = [(0usize, 1usize), (3, 160), (66, 67)];
    for draw in 0..draws {
        let mut is_struck = vec![false; units];
        chunks.draw(&mut Key::new(7).with(draw as u64).stream(), |unit| is_struck[unit as usize] = true);
        for (count, (a, b)) in together.iter_mut().zip(pairs) {
            *count += u64::from(is_struck[a] && is_struck[b]);
        }
    }
    for count in together {
        assert_mean(count as f64 / draws as f64, p * p, (p * p * (1.0 - p * p)).sqrt(), draws);
    }
}

#[test]
fn certain_strikes_strike_everything() {
    for units in [1, 16, 17, 100] {
        let mut struck = Vec::new();
        Chunks::binomial(units, 1.0).draw(&mut Key::new(8).stream(), |unit| struck.push(unit));
        assert_eq!(struck, (0..units).collect::<Vec<_>>());
    }
}

#[test]
fn poisson_numbers_follow_their_law() {
    for mean in [0.3, 7.5, 40.0] {
        let (draws, most) = (40_000, 120);
        let law = PoissonCount::new(mean);
        let mut observed = vec![0; most + 1];
        for draw in 0..draws {
            observed[(law.count(&mut Key::new(9).with(draw).stream()) as usize).min(most)] += 1;
        }
        let expected: Vec<f64> = (0..=most)
            .map(|k| draws as f64 * (k as f64 * f64::ln(mean) - mean - libm::lgamma(k as f64 + 1.0)).exp())
            .collect();
        assert_chi_square(&observed, &expected);
    }
}

#[test]
fn every_subset_is_as_likely() {
    // Floyd's algorithm; the complement; first different values, which repeat in a ninth of the draws.
    for (size, count, subsets) in [(6u64, 2u64, 15usize), (6, 4, 15), (5, 1, 5), (9, 2, 36)] {
        let draws = 15_000;
        let mut histogram = std::collections::BTreeMap::new();
        for draw in 0..draws {
            let chosen = subset(&mut Key::new(10).with(draw).stream(), size, count);
            assert!(
                chosen.len() as u64 == count && chosen.is_sorted_by(|a, b| a < b) && chosen.iter().all(|&u| u < size)
            );
            *histogram.entry(chosen).or_insert(0u64) += 1;
        }
        let observed: Vec<u64> = histogram.into_values().collect();
        assert_eq!(observed.len(), subsets);
        assert_chi_square(&observed, &vec![draws as f64 / subsets as f64; subsets]);
    }
}

#[test]
fn large_subsets_are_uniform_and_without_repetition() {
    let (size, count) = (700u64, 300u64);
    let mut histogram = vec![0u64; size as usize];
    let draws = 2_000;
    for draw in 0..draws {
        let chosen = subset(&mut Key::new(11).with(draw).stream(), size, count);
        assert!(chosen.len() as u64 == count && chosen.is_sorted_by(|a, b| a < b));
        for unit in chosen {
            histogram[unit as usize] += 1;
        }
    }
    let p = count as f64 / size as f64;
    // Counts of one unit are binomial with variance n p (1 - p), not Poisson: scale to a unit chi-square.
    let statistic: f64 =
        histogram.iter().map(|&seen| (seen as f64 - draws as f64 * p).powi(2) / (draws as f64 * p * (1.0 - p))).sum();
    assert_mean(statistic / size as f64, 1.0, 2f64.sqrt(), size as usize);
}

#[test]
fn splits_are_hypergeometric() {
    let cells = [30u64, 50, 20];
    let (count, draws) = (12u64, 20_000);
    let urn = Urn::new(&cells);
    assert_eq!(urn.units(), 100);
    let mut histogram = vec![0u64; count as usize + 1];
    let mut sums = [0u64; 3];
    for draw in 0..draws {
        let split = urn.split(&mut Key::new(12).with(draw).stream(), count);
        assert_eq!(split.iter().sum::<u64>(), count);
        histogram[split[0] as usize] += 1;
        for (sum, part) in sums.iter_mut().zip(&split) {
            *sum += part;
        }
    }
    let law = |k: f64| (ln_choose(30.0, k) + ln_choose(70.0, count as f64 - k) - ln_choose(100.0, count as f64)).exp();
    let expected: Vec<f64> = (0..=count).map(|k| draws as f64 * law(k as f64)).collect();
    assert_chi_square(&histogram, &expected);
    for (sum, cell) in sums.into_iter().zip(cells) {
        let share = cell as f64 / 100.0;
        let deviation = (count as f64 * share * (1.0 - share) * (100 - count) as f64 / 99.0).sqrt();
        assert_mean(sum as f64 / draws as f64, count as f64 * share, deviation, draws as usize);
    }
    assert_eq!(urn.split(&mut Key::new(13).stream(), 100), cells);
}
