use proptest::prelude::*;

use super::*;

const KINDS: [Activations; 3] = [Activations::Uint8, Activations::Int8Symmetric, Activations::Int8Asymmetric];

fn range() -> impl Strategy<Value = Range> {
    let end = prop_oneof![Just(0f32), 1e-6f32..1e-3, 1e-3f32..10.0, 10f32..1e6];
    (end.clone(), end).prop_map(|(low, high)| Range::new(-low, high))
}

proptest! {
    #[test]
    fn values_in_range_come_back_within_half_a_step(
        range in range(), kind in 0usize..3, power_of_two in any::<bool>(), at in 0f32..=1.0,
    ) {
        let quantizer = Quantizer::activation(range, KINDS[kind], power_of_two);
        let (least, most) = bounds(quantizer.dtype);
        prop_assert!(quantizer.scale > 0.0 && quantizer.scale.is_finite());
        prop_assert!((least..=most).contains(&quantizer.zero_point));
        prop_assert_eq!(quantizer.quantize(0.0), quantizer.zero_point);
        prop_assert_eq!(quantizer.dequantize(quantizer.zero_point), 0.0);
        let x = range.low + (range.high - range.low) * at;
        let back = quantizer.dequantize(quantizer.quantize(x));
        // Rounding the zero point moves the ends by half a step at most, so this holds there, too.
        prop_assert!((x - back).abs() <= quantizer.scale * 0.501, "{x} {back} {quantizer:?}");
    }

    #[test]
    fn quantising_is_monotone_and_saturates(range in range(), kind in 0usize..3, a in -1e7f32..1e7, b in -1e7f32..1e7) {
        let quantizer = Quantizer::activation(range, KINDS[kind], false);
        let (low, high) = (a.min(b), a.max(b));
        prop_assert!(quantizer.quantize(low) <= quantizer.quantize(high));
        let (least, most) = bounds(quantizer.dtype);
        prop_assert_eq!(quantizer.quantize(f32::INFINITY), most);
        prop_assert_eq!(quantizer.quantize(f32::NEG_INFINITY), least);
    }

    #[test]
    fn powers_of_two_are_the_least_that_suffice(scale in 1e-20f32..1e20) {
        let power = next_power_of_two(scale);
        prop_assert!(power >= scale && power / 2.0 < scale);
        prop_assert_eq!(power.log2().fract(), 0.0);
    }

    #[test]
    fn a_raised_weight_scale_holds_the_bias(
        bias in -1e6f32..1e6, x_scale in 1e-6f32..10.0, terms in 1usize..100_000, kind in 0usize..3, power_of_two in any::<bool>(),
    ) {
        let limit = bias_limit(terms, KINDS[kind]);
        let w_scale = weight_scale_for_bias(bias, x_scale, limit, power_of_two);
        if w_scale > 0.0 {
            let q = f64::from(bias) / f64::from(bias_scale(x_scale, w_scale));
            prop_assert!(q.abs() <= limit as f64, "{q} > {limit}");
        }
    }
}

#[test]
fn relu_outputs_begin_at_the_least_integer() {
    let of = |kind| Quantizer::activation(Range::new(0.0, 6.0), kind, false).zero_point;
    assert_eq!(KINDS.map(of), [0, 0, -128]);
}

#[test]
fn raw_pixels_have_step_one() {
    let quantizer = Quantizer::activation(Range::new(0.0, 255.0), Activations::Uint8, false);
    assert_eq!((quantizer.scale, quantizer.zero_point), (1.0, 0));
    assert!((0..=255).all(|q| quantizer.quantize(quantizer.dequantize(q)) == q));
}

#[test]
fn ties_go_to_even() {
    let quantizer = Quantizer { scale: 1.0, zero_point: 3, dtype: DataType::Uint8 };
    assert_eq!([0.5, 1.5, 2.5, -0.5, -1.5].map(|x| quantizer.quantize(x)), [3, 5, 5, 3, 1]);
}

#[test]
fn nothing_and_next_to_nothing_have_usable_steps() {
    for kind in KINDS {
        for high in [0.0, f32::MIN_POSITIVE, 1e-45, f32::MAX] {
            let quantizer = Quantizer::activation(Range::new(0.0, high), kind, false);
            assert!(
                quantizer.scale.is_normal() && (quantizer.scale * quantizer.scale).is_normal() || high > 1e30,
                "{high}"
            );
            assert!(quantizer.scale.is_finite());
        }
    }
}
