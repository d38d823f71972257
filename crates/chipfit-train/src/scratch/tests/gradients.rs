//! Gradients against central differences of the f64 reference, statistics against its own, sums against formulas.

use proptest::prelude::*;

use super::super::engine::{Batch, Engine, Score};
use super::super::error::ScratchError;
use super::super::graph::{Kind, Network};
use super::super::norm::Moments;
use super::{Numbers, all_kinds, reference, zoo};
use crate::loss::Loss;

/// One training pass; pictures come as the network's own layout wants them, channels first.
pub(super) fn pass(engine: &mut Engine, pictures: &[Vec<f32>], labels: &[u32], smoothing: f32) -> Score {
    let fetch = |at: usize, out: &mut [f32]| {
        out.copy_from_slice(&pictures[at]);
        Ok::<(), ScratchError>(())
    };
    let loss = Loss { smoothing, ..Loss::default() };
    engine.train(&Batch { fetch: &fetch, labels, loss, is_training: true }).expect("a pass")
}

fn batch(network: &Network, count: usize) -> (Vec<Vec<f32>>, Vec<u32>) {
    let mut numbers = Numbers::new(11);
    let each = network.picture().iter().product();
    let labels = (0..count).map(|at| u32::try_from(at * 7 % network.classes()).expect("few classes")).collect();
    ((0..count).map(|_| numbers.list(each)).collect(), labels)
}

/// Channels last, in f64.
fn transposed(picture: &[f32], [channels, rows, columns]: [usize; 3]) -> Vec<f64> {
    let at = |pixel: usize, channel: usize| f64::from(picture[channel * rows * columns + pixel]);
    (0..rows * columns).flat_map(|pixel| (0..channels).map(move |channel| at(pixel, channel))).collect()
}

/// Compares up to `most` elements of every parameter with central differences in f64.
///
/// `near` is how far they may be apart, as a share of the parameter's largest gradient: f32 roundings, and in deep
/// networks the odd activation that is cut in f32 and not in f64.
fn check_gradients(network: Network, count: usize, most: usize, near: f64) {
    let (pictures, labels) = batch(&network, count);
    let shape = network.picture();
    let wide: Vec<Vec<f64>> = pictures.iter().map(|picture| transposed(picture, shape)).collect();
    let mut parameters: Vec<Vec<f64>> =
        network.values.iter().map(|values| values.iter().map(|&v| f64::from(v)).collect()).collect();
    let before = network.clone();
    let mut engine = Engine::new(network).expect("an engine");
    let score = pass(&mut engine, &pictures, &labels, 0.1);
    let smoothing = f64::from(0.1f32);
    let (expected, statistics) = reference::loss(&before, &parameters, &wide, &labels, smoothing);
    let found = score.loss / labels.len() as f64;
    assert!((found - expected).abs() < 1e-5 * expected, "loss {found}, expected {expected}");
    for (id, (old, new)) in before.layers.iter().zip(&engine.network.layers).enumerate() {
        let (Kind::Norm(norm), Kind::Norm(new)) = (&old.kind, &new.kind) else { continue };
        for (part, now) in statistics[id].iter().enumerate() {
            for ((old, new), now) in norm.running[part].iter().zip(&new.running[part]).zip(now) {
                let momentum = f64::from(norm.momentum);
                let expected = momentum * f64::from(*old) + (1.0 - momentum) * now;
                assert!(
                    (f64::from(*new) - expected).abs() < 1e-5 * (1.0 + expected.abs()),
                    "{new}, expected {expected}"
                );
            }
        }
    }
    for id in 0..parameters.len() {
        let scale = engine.gradients[id].iter().fold(0.0f64, |most, &g| most.max(f64::from(g.abs())));
        let length = parameters[id].len();
        let mut checked = 0;
        for at in (0..length).step_by(length.div_ceil(most).max(1)) {
            let step = 1e-6;
            let mut loss = |change: f64| {
                let old = std::mem::replace(&mut parameters[id][at], change);
                parameters[id][at] = old + change;
                let (loss, _) = reference::loss(&before, &parameters, &wide, &labels, smoothing);
                parameters[id][at] = old;
                loss
            };
            let expected = (loss(step) - loss(-step)) / (2.0 * step);
            let found = f64::from(engine.gradients[id][at]);
            let name = &before.parameters[id].name;
            assert!(
                (found - expected).abs() <= near * scale + 1e-6,
                "{name}[{at}]: {found}, expected {expected}, largest {scale}"
            );
            checked += 1;
        }
        assert!(checked > 0);
    }
}

// Eleven pictures: two chunks, the second not full.
#[test]
fn every_kind_of_layer_has_the_right_gradients() {
    check_gradients(Network::from_model(&all_kinds()).expect("all kinds are understood"), 11, 12, 1e-4);
}

#[test]
fn networks_of_the_zoo_have_the_right_gradients() {
    for (name, most) in [("lenet5", 2), ("mobilenet-fashion", 1)] {
        let mut network = Network::from_model(&zoo(name)).expect("it can be trained");
        network.seed(3);
        check_gradients(network, 2, most, 1e-3);
    }
}

#[test]
fn gradients_add_up_over_the_batch_not_over_chunks() {
    // Twice the same pictures: the same mean loss and gradients, in twice as many chunks.
    let network = Network::from_model(&all_kinds()).expect("all kinds are understood");
    let (pictures, labels) = batch(&network, 8);
    let mut once = Engine::new(network.clone()).expect("an engine");
    let mut twice = Engine::new(network).expect("an engine");
    let single = pass(&mut once, &pictures, &labels, 0.0);
    let double = pass(&mut twice, &[pictures.clone(), pictures].concat(), &[labels.clone(), labels].concat(), 0.0);
    assert_eq!(double.hits, 2 * single.hits);
    for (a, b) in once.gradients.iter().flatten().zip(twice.gradients.iter().flatten()) {
        assert!((a - b).abs() < 1e-5, "{a} {b}");
    }
}

proptest! {
    #[test]
    fn moments_of_parts_make_those_of_the_whole(
        values in proptest::collection::vec(-1000.0f32..3000.0, 3 * 700), cuts in (1usize..300, 300usize..699),
    ) {
        let whole = Moments::of(&values, 3);
        let mut parts = Moments::default();
        for part in [&values[..cuts.0 * 3], &values[cuts.0 * 3..cuts.1 * 3], &values[cuts.1 * 3..]] {
            parts.merge(&Moments::of(part, 3));
        }
        prop_assert_eq!(whole.count, 700.0);
        for channel in 0..3 {
            let of: Vec<f64> = values.iter().skip(channel).step_by(3).map(|&v| f64::from(v)).collect();
            let mean = of.iter().sum::<f64>() / 700.0;
            let squares: f64 = of.iter().map(|v| (v - mean).powi(2)).sum();
            for found in [&whole, &parts] {
                prop_assert!((found.mean[channel] - mean).abs() < 1e-3);
                prop_assert!((found.squares[channel] / squares - 1.0).abs() < 1e-5);
            }
        }
    }
}
