//! The order and the statistics of measuring, on a clock of our own.

use super::*;
use std::cell::{Cell, RefCell};

/// Runs `rounds` where run `i` of candidate `c` takes `cost(c, i)` microseconds; returns samples and the order.
fn simulate(plan: &Plan, candidates: usize, cost: impl Fn(usize, usize) -> u64) -> (Vec<Vec<f64>>, Vec<usize>) {
    let clock = Cell::new(Duration::ZERO);
    let order = RefCell::new(Vec::new());
    let samples = rounds::<()>(plan, candidates, &mut || clock.get(), &mut |candidate| {
        let position = order.borrow().len();
        order.borrow_mut().push(candidate);
        clock.set(clock.get() + Duration::from_micros(cost(candidate, position)));
        Ok(())
    });
    (samples.unwrap(), order.into_inner())
}

const LONG: Duration = Duration::from_secs(3600);

#[test]
fn rounds_interleave_and_rotate() {
    let plan = Plan { warm_up: 1, rounds: 3, budget: LONG, sample: Duration::ZERO };
    let (samples, order) = simulate(&plan, 3, |_, _| 10);
    assert_eq!(order, [0, 1, 2, 0, 1, 2, 1, 2, 0, 2, 0, 1]);
    assert!(samples.iter().all(|s| s.len() == 3));
}

#[test]
fn a_slow_phase_does_not_change_the_ratio() {
    let plan = Plan { warm_up: 1, rounds: 9, budget: LONG, sample: Duration::ZERO };
    // From the middle on the machine is five times slower; the second candidate takes twice the first's time.
    let (samples, _) = simulate(&plan, 2, |c, run| if run < 10 { 100 } else { 500 } * (c as u64 + 1));
    assert_eq!(median_ratio(&samples[0], &samples[1]), Some(2.0));
    assert_eq!(median_ratio(&samples[0], &samples[0]), Some(1.0));
}

#[test]
fn short_runs_are_repeated_and_the_sample_is_one_run() {
    let plan = Plan { warm_up: 2, rounds: 1, budget: LONG, sample: Duration::from_micros(1000) };
    let (samples, order) = simulate(&plan, 2, |c, _| if c == 0 { 10 } else { 4000 });
    assert_eq!(order.len(), 2 * 2 + 100 + 1);
    assert!((samples[0][0] - 10e-6).abs() < 1e-12 && (samples[1][0] - 4e-3).abs() < 1e-12, "{samples:?}");
}

#[test]
fn the_budget_ends_the_rounds_but_not_before_the_minimum() {
    let plan = Plan { warm_up: 1, rounds: 100, budget: Duration::from_micros(1), sample: Duration::ZERO };
    assert_eq!(simulate(&plan, 2, |_, _| 1000).0[1].len(), Plan::MIN_ROUNDS);
    let plan = Plan { rounds: 2, ..plan };
    assert_eq!(simulate(&plan, 2, |_, _| 1000).0[1].len(), 2);
    let plan = Plan { rounds: 100, budget: Duration::from_millis(20), ..plan };
    let (samples, _) = simulate(&plan, 1, |_, _| 1000);
    assert!((15..=25).contains(&samples[0].len()), "{}", samples[0].len());
}

#[test]
fn a_failing_run_ends_the_measurement() {
    let plan = Plan::default();
    let fail = rounds(&plan, 3, &mut || Duration::ZERO, &mut |c| if c == 1 { Err("one") } else { Ok(()) });
    assert_eq!(fail, Err("one"));
    assert_eq!(rounds::<()>(&plan, 0, &mut || Duration::ZERO, &mut |_| Ok(())), Ok(Vec::new()));
}

#[test]
fn medians_of_odd_even_and_no_values() {
    assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
    assert_eq!(median(&[4.0, 1.0, 2.0, 8.0]), Some(3.0));
    assert_eq!(median(&[]), None);
    assert_eq!(median(&[1.0, f64::NAN]), None);
    assert_eq!(median_ratio(&[1.0, 2.0], &[3.0]), None);
    assert_eq!(median_ratio(&[1.0, 2.0, 4.0], &[3.0, 2.0, 2.0]), Some(1.0));
}
