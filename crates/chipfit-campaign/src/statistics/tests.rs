//! Published values, and coverage counted by simulation.

use proptest::prelude::*;

use super::*;
use crate::random::{hash, unit};

#[test]
fn quantiles_are_those_of_the_tables() {
    for (confidence, want) in [
        (0.5, 0.674_489_750_196_082),
        (0.9, 1.644_853_626_951_472),
        (0.95, 1.959_963_984_540_054),
        (0.99, 2.575_829_303_548_901),
        (0.998, 3.090_232_306_167_813),
    ] {
        let z = two_sided_quantile(confidence);
        assert!((z - want).abs() < 1e-12, "{confidence}: {z}");
    }
}

#[test]
fn sample_sizes_are_leveugles() {
    let (z95, z99) = (two_sided_quantile(0.95), two_sided_quantile(0.99));
    assert_eq!(sample_size(None, 0.01, z95), 9_604);
    assert_eq!(sample_size(None, 0.01, z99), 16_587);
    assert_eq!(sample_size(None, 0.05, z95), 384);
    // n = N / (1 + e^2 (N - 1) / (t^2 / 4)), by hand: 10,000 / (1 + 0.0001 * 9,999 / 0.960365) = 4,899.
    assert_eq!(sample_size(Some(10_000), 0.01, z95), 4_899);
    assert_eq!(sample_size(Some(1), 0.01, z95), 1);
    assert_eq!(sample_size(Some(u64::MAX), 0.01, z95), 9_604);
}

#[test]
fn wilson_intervals_are_the_published_ones() {
    // Newcombe 1998 (Statistics in Medicine 17, table I, method 3): 95 %.
    let z = two_sided_quantile(0.95);
    for (count, of, low, high) in
        [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)]
    {
        let got = wilson(count, of, None, z);
        assert!((got.low - low).abs() < 5e-5 && (got.high - high).abs() < 5e-5, "{count}/{of}: {got:?}");
    }
    assert_eq!(wilson(0, 0, None, z), Interval { low: 0.0, high: 1.0 });
    assert_eq!(wilson(3, 10, Some(10), z), Interval { low: 0.3, high: 0.3 });
}

#[test]
fn at_the_planned_size_the_margin_is_kept() {
    for confidence in [0.9, 0.95, 0.99] {
        let z = two_sided_quantile(confidence);
        for margin in [0.003, 0.01, 0.05] {
            for population in [Some(50), Some(3_000), Some(1_000_000), None] {
                let n = sample_size(population, margin, z);
                let widest =
                    |n: u64| (0..=20).map(|i| wilson(n * i / 20, n, population, z).half_width()).fold(0.0, f64::max);
                // The size is rounded to the nearest as in the publication: one trial more is always enough.
                let enough = population.map_or(n + 1, |all| all.min(n + 1));
                assert!(widest(enough) <= margin, "{confidence} {margin} {population:?}: {}", widest(enough));
            }
        }
    }
}

#[test]
fn checkpoints_grow_by_a_quarter_and_end_at_the_plan() {
    assert_eq!(checkpoints(300).collect::<Vec<_>>(), [100, 125, 157, 197, 247, 300]);
    assert_eq!(checkpoints(100).collect::<Vec<_>>(), [100]);
    assert_eq!(checkpoints(7).collect::<Vec<_>>(), [7]);
    assert_eq!(checkpoints(u64::MAX).last(), Some(u64::MAX));
}

/// Share of `runs` simulated campaigns whose interval holds the truth.
fn coverage(truth: f64, runs: u64, trial: impl Fn(&mut dyn FnMut() -> bool) -> Interval) -> f64 {
    let covered = (0..runs).filter(|&run| {
        let mut draws = 0;
        let mut draw = || {
            draws += 1;
            unit(hash(&[17, run, draws])) < truth
        };
        let interval = trial(&mut draw);
        interval.low <= truth && truth <= interval.high
    });
    covered.count() as f64 / runs as f64
}

#[test]
fn wilson_covers_as_often_as_it_says() {
    let z = two_sided_quantile(0.95);
    for (truth, n) in [(0.5, 200), (0.1, 200), (0.02, 400)] {
        let share = coverage(truth, 4_000, |draw| {
            let count = (0..n).filter(|_| draw()).count() as u64;
            wilson(count, n, None, z)
        });
        // Wilson's own coverage swings by about a point around 95 %; 4,000 runs add 0.35 points of deviation.
        assert!((0.93..=0.98).contains(&share), "{truth} {n}: {share}");
    }
}

#[test]
fn stopping_early_costs_little_coverage() {
    let z = two_sided_quantile(0.95);
    let margin = 0.03;
    for truth in [0.01, 0.1, 0.5] {
        let share = coverage(truth, 2_000, |draw| {
            let planned = sample_size(None, margin, z);
            let (mut count, mut done) = (0, 0);
            for checkpoint in checkpoints(planned) {
                count += (done..checkpoint).filter(|_| draw()).count() as u64;
                done = checkpoint;
                let interval = wilson(count, done, None, z);
                if interval.half_width() <= margin || done == planned {
                    return interval;
                }
            }
            unreachable!("the last checkpoint is the planned size")
        });
        assert!(share >= 0.925, "{truth}: {share}");
    }
}

#[test]
fn a_weighted_mean_of_one_part_is_that_part() {
    let share = Share::new(3, 50, None, 1.96);
    let (mean, interval) = weighted(&[(1.0, share)]);
    assert_eq!(mean, share.value);
    assert!((interval.low - share.low).abs() < 1e-15 && (interval.high - share.high).abs() < 1e-15);
}

#[test]
fn the_two_proportion_test_knows_equal_from_different() {
    let share = |count, of| Share::new(count, of, None, 1.96);
    assert_eq!(same_rate(&share(0, 10), &share(0, 20)), 1.0);
    // Pooled z of 30/100 against 50/100 is -2.8868; two-sided p = 0.003892.
    assert!((same_rate(&share(30, 100), &share(50, 100)) - 0.003_892).abs() < 1e-5);
}

proptest! {
    #[test]
    fn intervals_hold_their_share_and_shrink_with_the_population(of in 1u64..100_000, part in 0.0..=1.0f64, more in 0u64..1_000_000) {
        let count = (of as f64 * part) as u64;
        let z = two_sided_quantile(0.99);
        let (open, finite) = (wilson(count, of, None, z), wilson(count, of, Some(of + more), z));
        let share = count as f64 / of as f64;
        for i in [open, finite] {
            prop_assert!(0.0 <= i.low && i.low <= share + 1e-12 && share <= i.high + 1e-12 && i.high <= 1.0);
        }
        prop_assert!(finite.half_width() <= open.half_width() + 1e-12);
    }
}
