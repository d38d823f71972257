use proptest::prelude::*;

use super::*;

fn of(batches: &[&[f32]]) -> Histogram {
    let mut histogram = Histogram::default();
    for batch in batches {
        let least = batch.iter().copied().fold(f32::INFINITY, f32::min);
        let most = batch.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        histogram.add(batch, least, most);
    }
    histogram
}

#[test]
fn percentiles_of_a_ramp_lie_where_they_should() {
    let values: Vec<f32> = (-1000..3000).map(|i| i as f32 / 1000.0).collect();
    let histogram = of(&[&values]);
    let full = Range::new(-1.0, 2.999);
    assert_eq!(histogram.percentile(0.0, full), full);
    let range = histogram.percentile(0.05, full);
    assert!((range.low + 0.8).abs() < 0.002 && (range.high - 2.8).abs() < 0.002, "{range:?}");
    assert!((histogram.outside(range) - 0.1).abs() < 0.002, "{}", histogram.outside(range));
    assert_eq!(histogram.outside(full), 0.0);
}

#[test]
fn values_far_apart_still_meet_in_one_grid() {
    let histogram = of(&[&[1e-30, 2e-30], &[0.0], &[1e30], &[-3.0]]);
    assert_eq!(histogram.counts.iter().sum::<u64>() + histogram.zeros, 5);
    assert_eq!(histogram.total, 5);
    let (counts, width) = histogram.magnitudes(2048);
    assert!(counts.len() <= 2048 && counts.len() as f64 * width >= 1e30);
}

proptest! {
    #[test]
    fn the_order_and_the_batches_do_not_matter(
        values in proptest::collection::vec(prop_oneof![Just(0.0f32), -1e3f32..1e3, -1e-3f32..1e-3, -1e30f32..1e30], 1..200),
        cut in 1usize..200,
    ) {
        let (a, b) = values.split_at(cut.min(values.len()));
        let whole = of(&[&values]);
        let halves = if a.is_empty() || b.is_empty() { of(&[&values]) } else { of(&[b, a]) };
        prop_assert_eq!(whole.exponent, halves.exponent);
        prop_assert_eq!(whole.first, halves.first);
        prop_assert_eq!(&whole.counts, &halves.counts);
        prop_assert_eq!((whole.zeros, whole.total), (halves.zeros, halves.total));
        prop_assert!(i64::try_from(whole.counts.len()).unwrap() <= MAX_BINS);
        prop_assert_eq!(whole.counts.iter().sum::<u64>() + whole.zeros, u64::try_from(values.len()).unwrap());
    }

    #[test]
    fn a_percentile_range_leaves_out_no_more_than_asked(
        values in proptest::collection::vec(-10f32..10.0, 1..500),
        percent in 50f64..100.0,
    ) {
        let histogram = of(&[&values]);
        let full = Range::new(
            values.iter().copied().fold(f32::INFINITY, f32::min),
            values.iter().copied().fold(f32::NEG_INFINITY, f32::max),
        );
        let cut = (100.0 - percent) / 200.0;
        let range = histogram.percentile(cut, full);
        let below = values.iter().filter(|&&v| v < range.low).count() as f64;
        let above = values.iter().filter(|&&v| v > range.high).count() as f64;
        prop_assert!(below <= cut * values.len() as f64 && above <= cut * values.len() as f64);
    }
}
