use chipfit_model::build::{attr_i, node};
use proptest::prelude::*;

use super::*;
use crate::options::Activations;
use crate::scale::bias_limit;

fn conv() -> NodeProto {
    node("Conv", "c", &["x", "w", "b"], &["y"], Vec::new())
}

fn integers(tensor: &ConstTensor) -> Vec<i64> {
    tensor.to_i64_vec().unwrap()
}

proptest! {
    #[test]
    fn weights_come_back_within_half_a_step_and_no_accumulator_can_overflow(
        values in proptest::collection::vec(prop_oneof![Just(0f32), -1f32..1.0, -1e-7f32..1e-7], 24),
        bias in proptest::collection::vec(prop_oneof![Just(0f32), -10f32..10.0, -1e5f32..1e5], 4),
        x_scale in 1e-5f32..1.0, per_channel in any::<bool>(), power_of_two in any::<bool>(),
    ) {
        let weight = ConstTensor::from_f32(vec![4, 6, 1, 1], &values).unwrap();
        let weights = if per_channel { Weights::PerChannel } else { Weights::PerTensor };
        let options = Options { weights, power_of_two, ..Options::default() };
        let q = quantise(&conv(), &weight, Some(&bias), x_scale, &options).unwrap();
        prop_assert_eq!(q.scales.len(), if per_channel { 4 } else { 1 });
        let (b, units) = quantise_bias(&bias, x_scale, &q.scales).unwrap();
        let limit = bias_limit(6, Activations::Uint8);
        let weights = integers(&q.weight);
        for (channel, (bias_q, &bias)) in integers(&b).into_iter().zip(&bias).enumerate() {
            let scale = q.scales[channel.min(q.scales.len() - 1)];
            let unit = units[channel.min(units.len() - 1)];
            prop_assert_eq!(unit, x_scale * scale);
            prop_assert!(bias_q.abs() <= limit);
            let error = (bias_q as f64 * f64::from(unit) - f64::from(bias)).abs();
            prop_assert!(error <= 0.5001 * f64::from(unit) + f64::from(bias).abs() * 1e-6, "{} {}", error, unit);
            let row = &weights[channel * 6..channel * 6 + 6];
            // The worst activations: 255 where the weight is positive, or where it is negative.
            let (up, down): (i64, i64) = (row.iter().map(|w| w.max(&0) * 255).sum(), row.iter().map(|w| w.min(&0) * 255).sum());
            prop_assert!(i32::try_from(bias_q + up).is_ok() && i32::try_from(bias_q + down).is_ok());
            for (w, x) in row.iter().zip(&values[channel * 6..]) {
                prop_assert!((*w as f64 * f64::from(scale) - f64::from(*x)).abs() <= 0.5001 * f64::from(scale));
                prop_assert!(w.abs() <= 127);
            }
        }
    }
}

#[test]
fn tiny_weights_beside_a_large_bias_get_a_larger_scale_and_are_counted() {
    let weight = ConstTensor::from_f32(vec![2, 1, 1, 1], &[1e-9, 0.5]).unwrap();
    let q = quantise(&conv(), &weight, Some(&[3.0, 3.0]), 0.02, &Options::default()).unwrap();
    assert_eq!(q.widened, 1);
    assert!(q.scales[0] > 1e-9 / 127.0);
    assert_eq!(q.scales[1], 0.5 / 127.0);
    let (bias, units) = quantise_bias(&[3.0, 3.0], 0.02, &q.scales).unwrap();
    for (q, unit) in integers(&bias).into_iter().zip(units) {
        assert!((q as f64 * f64::from(unit) - 3.0).abs() < 1e-4);
    }
}

#[test]
fn a_channel_without_weights_still_has_an_exact_bias() {
    let weight = ConstTensor::from_f32(vec![2, 1, 1, 1], &[0.0, 0.5]).unwrap();
    let q = quantise(&conv(), &weight, Some(&[0.3, 0.0]), 0.05, &Options::default()).unwrap();
    let (bias, units) = quantise_bias(&[0.3, 0.0], 0.05, &q.scales).unwrap();
    assert!((integers(&bias)[0] as f64 * f64::from(units[0]) - 0.3).abs() < 1e-6);
    assert_eq!(q.widened, 0);
}

#[test]
fn transposed_convolutions_repeat_their_scales_for_every_group() {
    let transposed = node("ConvTranspose", "t", &["x", "w", "b"], &["y"], vec![attr_i("group", 2)]);
    let weight = ConstTensor::from_f32(vec![4, 2, 1, 1], &[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]).unwrap();
    let q = quantise(&transposed, &weight, Some(&[1.0; 4]), 0.1, &Options::default()).unwrap();
    assert_eq!((q.axis, q.scales.as_slice()), (Some(1), [0.7 / 127.0, 0.8 / 127.0].as_slice()));
    let (_, units) = quantise_bias(&[1.0; 4], 0.1, &q.scales).unwrap();
    assert_eq!(units, [0.1 * q.scales[0], 0.1 * q.scales[1], 0.1 * q.scales[0], 0.1 * q.scales[1]]);
}

#[test]
fn a_weight_of_no_elements_is_refused() {
    let weight = ConstTensor::from_f32(vec![1 << 40, 0, 1, 1], &[]).unwrap();
    assert!(quantise(&conv(), &weight, None, 1.0, &Options::default()).is_none());
}
