use proptest::prelude::*;

use super::*;

/// Every subset, one after another.
fn brute_force(values: &[f64], costs: &[u64], budget: u64) -> f64 {
    let mut best = 0.0f64;
    for subset in 0..1u32 << values.len() {
        let on = |at: &usize| subset >> at & 1 == 1;
        let cost: u64 = (0..values.len()).filter(on).map(|at| costs[at]).sum();
        let value: f64 = (0..values.len()).filter(on).map(|at| values[at]).sum();
        if cost <= budget && value > best {
            best = value;
        }
    }
    best
}

proptest! {
    #[test]
    fn the_choice_is_the_best_of_all_subsets(
        units in prop::collection::vec((-20i32..100, 0u64..60), 0..12),
        factor in prop::sample::select(vec![1u64, 7, 1_000_003]),
        budget in 0u64..300,
    ) {
        let values: Vec<f64> = units.iter().map(|&(value, _)| f64::from(value) / 16.0).collect();
        let costs: Vec<u64> = units.iter().map(|&(_, cost)| cost * factor).collect();
        let choice = select(&values, &costs, budget * factor);
        prop_assert!(choice.cost <= budget * factor);
        prop_assert_eq!(choice.slack, 0);
        // Sixteenths below 2^20 add up without rounding.
        prop_assert_eq!(choice.value, brute_force(&values, &costs, budget * factor));
        let cost: u64 = choice.chosen.iter().zip(&costs).filter(|(on, _)| **on).map(|(_, cost)| cost).sum();
        prop_assert_eq!(cost, choice.cost);
    }

    #[test]
    fn coarse_tables_stay_within_the_budget_and_the_stated_bound(
        units in prop::collection::vec((1i32..100, 1u64..1 << 40), 1..12),
        share in 0.05f64..1.0,
    ) {
        let values: Vec<f64> = units.iter().map(|&(value, _)| f64::from(value)).collect();
        let costs: Vec<u64> = units.iter().map(|&(_, cost)| cost).collect();
        let budget = (costs.iter().sum::<u64>() as f64 * share) as u64;
        let choice = select(&values, &costs, budget);
        prop_assert!(choice.cost <= budget);
        prop_assert!(choice.value >= brute_force(&values, &costs, budget - choice.slack));
        prop_assert!(choice.slack as f64 <= budget as f64 * (units.len() as f64 / CELLS as f64) + 2.0 * units.len() as f64);
    }
}

#[test]
fn a_greedy_choice_would_be_worse() {
    // By value per cost the first comes first, and leaves no room for the two others.
    let choice = select(&[6.0, 5.0, 5.0], &[5, 5, 5], 10);
    assert_eq!((choice.value, choice.cost), (11.0, 10));
    let choice = select(&[7.0, 5.0, 5.0], &[6, 5, 5], 10);
    assert_eq!((choice.value, &choice.chosen[..]), (10.0, &[false, true, true][..]));
}

#[test]
fn worthless_and_impossible_units_are_left_out() {
    let choice = select(&[1.0, 0.0, -1.0, f64::NAN, 9.0], &[0, 0, 1, 1, 100], 10);
    assert_eq!(choice.chosen, [true, false, false, false, false]);
    assert_eq!(select(&[], &[], 10).cost, 0);
    assert!(select(&[1.0, 1.0], &[1, 2], u64::MAX).chosen.iter().all(|&on| on));
}
