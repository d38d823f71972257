//! Gradients, loss and running statistics against PyTorch's, which lie in a file (`tests/python/make_gradient_golden.py`).

use std::collections::BTreeMap;
use std::path::Path;

use chipfit_model::{ConstTensor, Limits, Model};

use super::super::passes::Passes;
use crate::loss::Loss;

#[test]
fn gradients_are_those_of_pytorch() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/gradients.onnx");
    let model = Model::open(&path, &Limits::default()).expect("the golden file");
    let all = model.graph().initializer.iter();
    let tensors: BTreeMap<String, ConstTensor> =
        all.map(|t| (t.name.clone().expect("a name"), model.tensor(t).expect("a tensor"))).collect();
    let numbers = |name: &str| tensors[name].to_f64_vec().expect("numbers");
    let labels: Vec<u32> = numbers("given/labels").iter().map(|&label| label as u32).collect();
    let x: Vec<f32> = numbers("given/x").iter().map(|&x| x as f32).collect();
    let mut passes = Passes::new(&model).expect("it can be trained");
    let smoothing = numbers("given/smoothing")[0] as f32;
    let loss = passes.pass(&x, &labels, Loss { smoothing, ..Loss::default() }).expect("a pass");
    let expected = numbers("expected/loss")[0];
    assert!((loss - expected).abs() < 1e-6 * expected, "loss {loss}, PyTorch {expected}");

    let running = passes.network().tensors().expect("tensors");
    let gradients = passes.gradients().expect("tensors");
    let mut compared = [0; 2];
    for (name, tensor) in &tensors {
        let (kind, found) = match (name.strip_prefix("expected/gradient/"), name.strip_prefix("expected/running/")) {
            (Some(name), _) => (0, &gradients[name]),
            (_, Some(name)) => (1, &running[name]),
            _ => continue,
        };
        compared[kind] += 1;
        assert_eq!(found.dims(), tensor.dims(), "{name}");
        let (found, expected) = (found.to_f64_vec().expect("numbers"), tensor.to_f64_vec().expect("numbers"));
        let largest = expected.iter().fold(0.0f64, |most, value| most.max(value.abs()));
        for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
            // f32 beside f64: a relative rounding of 6e-8, some hundred times over. A bias in front of a normalisation has
            // no gradient: there 275 terms, of size 1, cancel up to their roundings.
            assert!((found - expected).abs() <= 2e-5 * largest + 5e-6, "{name}[{at}]: {found}, PyTorch {expected}");
        }
    }
    assert_eq!(compared, [17, 6], "gradients and running statistics in the file");
}
