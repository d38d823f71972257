//! The loop: it learns, does not depend on threads, stops when told, refuses nonsense.

use std::ops::ControlFlow;

use chipfit_model::Model;

use super::super::error::ScratchError;
use super::super::pictures::{FloatPictures, MemoryPictures};
use super::super::train::{Config, Event, Start, evaluate, train};
use super::{all_kinds, stripes, zoo};
use crate::augment::Augmentation;

fn quiet(_: &Event) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn small() -> (Model, MemoryPictures, Config) {
    let config = Config { batch: 20, epochs: 2, rate: 0.05, seed: 4, ..Config::default() };
    (all_kinds(), stripes([2, 9, 7], 3, 90, 1), config)
}

#[test]
fn it_learns_and_says_how_well() {
    let (model, pictures, config) = small();
    let held_out = stripes([2, 9, 7], 3, 60, 2);
    let config = Config { epochs: 15, ..config };
    let mut epochs = Vec::new();
    let outcome = train(&model, &pictures, Some(&held_out), &config, &mut |event| {
        if let Event::Epoch { held_out, .. } = event {
            epochs.push(*held_out);
        }
        ControlFlow::Continue(())
    });
    let outcome = outcome.expect("a run");
    assert_eq!((outcome.steps, epochs.len()), (15 * 4, 15));
    let last = outcome.held_out.expect("there were held-out pictures");
    assert_eq!(epochs.last(), Some(&last));
    assert!(last.accuracy() > 0.95, "{last:?}");
    let again = evaluate(&outcome.model, &held_out, 7).expect("an evaluation");
    assert_eq!(again.hits, last.hits);
    assert!((again.loss - last.loss).abs() < 1e-9);
    let before = evaluate(&model, &held_out, 7).expect("an evaluation");
    assert!(before.accuracy() < 0.8, "the model came trained: {before:?}");
}

#[test]
fn threads_change_nothing() {
    let (model, pictures, config) = small();
    let augmentation = Augmentation { flip: true, shift: 1 };
    let config = Config { batch: 30, augmentation, ..config };
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        let outcome = pool.install(|| train(&model, &pictures, Some(&pictures), &config, &mut quiet)).expect("a run");
        (outcome.model.to_bytes().expect("bytes"), outcome.held_out)
    };
    let one = on(1);
    assert!(one == on(2) && one == on(3));
    let other = train(&model, &pictures, None, &Config { seed: 5, ..config.clone() }, &mut quiet).expect("a run");
    assert!(one.0 != other.model.to_bytes().expect("bytes"), "the seed has no effect");
}

#[test]
fn a_run_ends_when_the_observer_says_so() {
    let (model, pictures, config) = small();
    let outcome = train(&model, &pictures, None, &config, &mut |event| match event {
        Event::Step { done: 3, of: 8, .. } => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    let outcome = outcome.expect("a run");
    assert_eq!((outcome.steps, outcome.held_out), (3, None));
    let outcome = train(&model, &pictures, None, &Config { steps: Some(5), ..config }, &mut quiet).expect("a run");
    assert_eq!(outcome.steps, 5);
}

#[test]
fn it_can_go_on_from_the_model() {
    let (model, pictures, config) = small();
    let still = Config { start: Start::Model, rate: 0.0, weight_decay: 0.0, steps: Some(1), ..config };
    let outcome = train(&model, &pictures, None, &still, &mut quiet).expect("a run");
    let weights = |model: &Model| {
        let all = model.graph().initializer.iter();
        let found = all.filter(|t| t.name.as_deref().is_some_and(|name| name.ends_with("weight")));
        found.map(|t| t.raw_data.clone().expect("bytes")).collect::<Vec<_>>()
    };
    assert_eq!(weights(&outcome.model), weights(&model));
    assert_eq!(outcome.model.graph().node, model.graph().node);
    assert_ne!(outcome.model.to_bytes().expect("bytes"), model.to_bytes().expect("bytes"), "statistics moved");
}

#[test]
fn nonsense_is_refused() {
    let (model, pictures, config) = small();
    let refusal = |config: Config| train(&model, &pictures, None, &config, &mut quiet).expect_err("nonsense");
    for (field, config) in [
        ("batch", Config { batch: 0, ..config.clone() }),
        ("epochs", Config { epochs: 0, ..config.clone() }),
        ("rate", Config { rate: f32::NAN, ..config.clone() }),
        ("clip", Config { clip: Some(0.0), ..config.clone() }),
        (
            "schedule.warm_up",
            Config { schedule: crate::schedule::Schedule { warm_up: 1.0, ..config.schedule }, ..config.clone() },
        ),
    ] {
        let error = refusal(config);
        assert!(matches!(error, ScratchError::Config { field: found, .. } if found == field), "{field}: {error}");
    }
    let wild = Config { rate: 1e30, clip: None, ..config.clone() };
    assert!(matches!(refusal(wild), ScratchError::NotFinite { .. }));
    let classes = stripes([2, 9, 7], 4, 8, 1);
    let error = train(&model, &classes, None, &config, &mut quiet).expect_err("label 3 of 3 classes");
    assert!(matches!(error, ScratchError::Picture { index: 3, .. }), "{error}");
    let none = MemoryPictures::new([2, 9, 7]);
    assert!(none.is_empty() && train(&model, &none, None, &config, &mut quiet).is_err());
    let large = stripes([1, 28, 28], 3, 8, 1);
    let error = train(&model, &large, None, &config, &mut quiet).expect_err("pictures of another shape");
    assert!(matches!(error, ScratchError::Picture { .. }), "{error}");
}

/// What a user does next: fold, calibrate, quantise.
#[test]
fn folding_keeps_what_was_learnt() {
    let model = zoo("mobilenet-fashion");
    let pictures = stripes([1, 28, 28], 10, 40, 1);
    let config = Config { batch: 20, epochs: 2, rate: 0.02, ..Config::default() };
    let outcome = train(&model, &pictures, Some(&pictures), &config, &mut quiet).expect("a run");
    let prepared = chipfit_quantize::Prepared::new(&outcome.model).expect("it folds");
    let folded = prepared.model().expect("a model");
    assert!(!folded.graph().node.iter().any(|node| node.op_type.as_deref() == Some("BatchNormalization")));
    let before = outcome.held_out.expect("an evaluation");
    let after = evaluate(&folded, &pictures, 8).expect("the folded model is understood too");
    assert_eq!(before.hits, after.hits);
    assert!((before.loss - after.loss).abs() < 1e-4, "{} {}", before.loss, after.loss);
}
