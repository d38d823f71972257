//! From ONNX and back: nothing changes but initializers, other engines agree, what cannot be trained is named.

use std::ops::ControlFlow;

use chipfit_model::build::{attr_f, attr_i};
use chipfit_model::{ConstTensor, Model};
use chipfit_run::engine::{Engine as AnyEngine, OnnxRuntime, Places, RtenEngine};

use super::super::engine::{Batch, Engine};
use super::super::error::ScratchError;
use super::super::graph::{Kind, Network};
use super::super::train::{Config, train};
use super::{Numbers, Small, all_kinds, stripes, zoo};
use crate::loss::Loss;

fn refusal(model: Model) -> String {
    Network::from_model(&model).expect_err("it cannot be trained").to_string()
}

#[test]
fn reading_and_writing_changes_nothing() {
    for model in ["lenet5", "resnet8", "mobilenet-fashion", "resnet18-cifar"].map(zoo).into_iter().chain([all_kinds()])
    {
        let network = Network::from_model(&model).expect("it can be trained");
        let written = network.to_model(&model).expect("it is the same model");
        assert!(written.to_bytes().expect("bytes") == model.to_bytes().expect("bytes"));
    }
}

#[test]
fn sizes_are_those_of_the_zoo() {
    for (name, parameters, macs) in
        [("lenet5", 61_706, 416_520), ("resnet8", 78_186, 12_501_632), ("mobilenet-fashion", 31_946, 1_989_504)]
    {
        let network = Network::from_model(&zoo(name)).expect("it can be trained");
        assert_eq!((network.parameter_count(), network.macs(), network.classes()), (parameters, macs, 10), "{name}");
    }
}

#[test]
fn activations_become_part_of_what_is_before_them() {
    let network = Network::from_model(&zoo("resnet8")).expect("it can be trained");
    assert!(!network.layers.iter().any(|layer| matches!(layer.kind, Kind::Clamp(_))));
    let network = Network::from_model(&zoo("lenet5")).expect("it can be trained");
    assert_eq!(network.layers.iter().filter(|layer| matches!(layer.kind, Kind::Clamp(_))).count(), 4);
}

#[test]
fn a_value_that_others_read_keeps_its_activation_apart() {
    let mut net = Small::new([2, 4, 4]);
    net.conv("conv", [2, 2, 1, 1], 1, [0; 4], 1);
    net.norm("norm", 2);
    let open = net.last();
    net.op("Relu", "relu", &[], Vec::new());
    net.op("Add", "sum", &[open], Vec::new());
    net.op("GlobalAveragePool", "pool", &[], Vec::new());
    net.op("Flatten", "logits", &[], Vec::new());
    let network = Network::from_model(&net.model(2)).expect("it can be trained");
    assert_eq!(network.layers.iter().filter(|layer| matches!(layer.kind, Kind::Clamp(_))).count(), 1);
}

/// Inference with running statistics is what rten and, where it is installed, ONNX Runtime make of the file.
#[test]
fn other_engines_compute_the_same_logits() {
    let mut engines: Vec<Box<dyn AnyEngine>> = vec![Box::new(RtenEngine::default())];
    match OnnxRuntime::find(&Places::from_environment()) {
        Ok(runtime) => engines.push(Box::new(runtime)),
        Err(error) => eprintln!("SKIPPED: no ONNX Runtime, trained models ran in rten only ({error})"),
    }
    let pictures = stripes([1, 28, 28], 10, 40, 1);
    let config = Config { batch: 20, epochs: 1, ..Config::default() };
    let trained = train(&zoo("mobilenet-fashion"), &pictures, None, &config, &mut |_| ControlFlow::Continue(()));
    let trained = trained.expect("a run").model;
    for (name, model, classes) in [("all kinds", all_kinds(), 3), ("mobilenet", trained, 10)] {
        let network = Network::from_model(&model).expect("it can be trained");
        let shape = network.picture();
        let each: usize = shape.iter().product();
        let pictures = Numbers::new(3).list(each * 9);
        let fetch = |at: usize, out: &mut [f32]| {
            out.copy_from_slice(&pictures[at * each..][..each]);
            Ok::<(), ScratchError>(())
        };
        let batch = Batch { fetch: &fetch, labels: &[0; 9], loss: Loss::default(), is_training: false };
        let mut logits = Vec::new();
        let mut engine = Engine::new(network).expect("an engine");
        engine.evaluate(&batch, Some(&mut logits)).expect("a pass");
        let input = model.graph().input[0].name.clone().expect("a name");
        let feed = ConstTensor::from_f32(vec![9, shape[0], shape[1], shape[2]], &pictures).expect("it fits");
        let bytes = bytes::Bytes::from(model.to_bytes().expect("bytes"));
        for other in &engines {
            let mut session = other.load(&bytes, None).expect("it takes the model");
            let found = session.run(&[(input.clone(), feed.clone())]).expect("it runs the model");
            let found = found[0].1.to_f64_vec().expect("floats");
            for (logits, found) in logits.chunks(classes).zip(found.chunks(classes)) {
                // The first model ends with its softmax, which training leaves out.
                let shares: Vec<f64> = logits.iter().map(|&z| f64::from(z).exp()).collect();
                let sum: f64 = shares.iter().sum();
                for ((share, logit), found) in shares.iter().zip(logits).zip(found) {
                    let own = if name == "all kinds" { share / sum } else { f64::from(*logit) };
                    let near = (own - found).abs() < 1e-4 * (1.0 + found.abs());
                    assert!(near, "{name}, {}: {own} {found}", other.name());
                }
            }
        }
    }
}

#[test]
fn what_cannot_be_trained_is_named() {
    let mut net = Small::new([2, 4, 4]);
    net.op("Sigmoid", "squash", &[], Vec::new());
    assert!(refusal(net.model(2)).contains("node 'squash' (Sigmoid)"));

    let mut net = Small::new([2, 4, 4]);
    net.conv("conv", [3, 5, 1, 1], 1, [0; 4], 1);
    assert!(refusal(net.model(3)).contains("do not fit 2 channels"));

    let mut net = Small::new([2, 1, 1]);
    net.op("Flatten", "flat", &[], Vec::new());
    net.matrix("Gemm", "gemm", [2, 2], vec![attr_f("alpha", 2.0)]);
    assert!(refusal(net.model(2)).contains("'alpha' is 2"));

    let mut net = Small::new([2, 4, 4]);
    let shared = net.constant("w", &[2, 2, 1, 1], &[1.0; 4]);
    net.op("Conv", "first", std::slice::from_ref(&shared), Vec::new());
    net.op("Conv", "second", &[shared], Vec::new());
    let text = refusal(net.model(2));
    assert!(text.contains("'first'") && text.contains("'second'"), "{text}");

    let mut net = Small::new([2, 4, 4]);
    net.op("Flatten", "flat", &[], Vec::new());
    net.op("Softmax", "end", &[], Vec::new());
    net.op("Relu", "late", &[], Vec::new());
    assert!(refusal(net.model(32)).contains("follows 'end'"));

    let mut net = Small::new([2, 4, 4]);
    net.window("MaxPool", "pool", 2, 2, [0, 0, 2, 0], 0);
    assert!(refusal(net.model(2)).contains("'pool'"));

    let mut net = Small::new([2, 4, 4]);
    net.window("AveragePool", "vast", 1 << 62, 1 << 62, [(1 << 62) - 1; 4], 1);
    assert!(refusal(net.model(2)).contains("'vast'"));

    let mut net = Small::new([2, 4, 4]);
    net.conv("far", [2, 2, 1, 1], 1 << 62, [i64::MAX; 4], 1);
    assert!(refusal(net.model(2)).contains("'far'"));

    let mut net = Small::new([2, 4, 4]);
    net.op("Flatten", "flat", &[], vec![attr_i("axis", 2)]);
    assert!(refusal(net.model(2)).contains("'axis' is 2"));

    assert!(refusal(Small::new([2, 4, 4]).model(2)).contains("no list of class scores"));
    assert!(refusal(zoo("dcgan")).contains("input"));
}

#[test]
fn a_network_goes_into_its_own_model_only() {
    let network = Network::from_model(&zoo("lenet5")).expect("it can be trained");
    let error = network.to_model(&zoo("mobilenet-fashion")).expect_err("another model");
    assert!(matches!(error, ScratchError::Parameter { .. }), "{error}");
}
