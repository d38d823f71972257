//! Comparison through the embedded engine, which is always there.

use super::*;
use crate::engine::RtenEngine;
use chipfit_model::build::{self, DimSpec};
use chipfit_model::proto::{GraphProto, ModelProto, OperatorSetIdProto};
use chipfit_model::{DataType, Model};

/// `x [1,3,12,12] -> outputs[i] = x + offset`, in the given order.
fn adding(outputs: &[(&str, f32)]) -> Model {
    let dims: Vec<DimSpec> = [1, 3, 12, 12].map(DimSpec::Known).to_vec();
    let info = |name: &str| build::value_info(name, DataType::Float, &dims);
    let offset = |name: &str| format!("offset of {name}");
    let graph = GraphProto {
        node: outputs.iter().map(|(n, _)| build::node("Add", n, &["x", offset(n).as_str()], &[*n], vec![])).collect(),
        initializer: outputs
            .iter()
            .map(|(n, v)| ConstTensor::from_f32(vec![1], &[*v]).unwrap().to_proto(&offset(n)))
            .collect(),
        input: vec![info("x")],
        output: outputs.iter().map(|(n, _)| info(n)).collect(),
        ..Default::default()
    };
    let opset = OperatorSetIdProto { version: Some(17), ..Default::default() };
    let proto =
        ModelProto { ir_version: Some(8), opset_import: vec![opset], graph: graph.into(), ..Default::default() };
    Model { proto, folder: None }
}

fn compared(first: &Model, second: &Model, options: &CompareOptions) -> Result<Report, CompareError> {
    let inputs = random_inputs(first, &BTreeMap::new(), 5, 3).unwrap();
    let file = |model: &Model| ModelBytes { bytes: model.to_bytes().unwrap().into(), folder: None };
    compare(&RtenEngine::default(), &file(first), &file(second), &inputs, options)
}

#[test]
fn outputs_are_matched_by_name_and_every_run_is_reported() {
    let report =
        compared(&adding(&[("a", 0.0), ("b", 1.0)]), &adding(&[("b", 1.0), ("a", 0.5)]), &CompareOptions::default())
            .unwrap();
    assert_eq!(report.inputs, ["seed 5", "seed 6", "seed 7"]);
    let [a, b] = &report.outputs[..] else { panic!("{report:?}") };
    assert_eq!((a.name.as_str(), a.dtype, a.runs.len()), ("a", "float", 3));
    assert_eq!(a.runs[0].dims, [1, 3, 12, 12]);
    assert!((a.max_abs() - 0.5).abs() < 1e-6 && a.max_rel() > 0.49 && a.differing() == 3 * 432, "{a:?}");
    assert!(a.min_ssim().unwrap() < 0.99 && a.min_psnr() < 20.0 && a.max_steps().is_none());
    assert_eq!((b.name.as_str(), b.max_abs(), b.differing()), ("b", 0.0, 0));
    assert!((b.min_ssim().unwrap() - 1.0).abs() < 1e-12);
    assert_eq!(b.min_psnr(), f64::INFINITY);
}

#[test]
fn other_outputs_or_inputs_are_an_error_that_names_them() {
    let (one, two) = (adding(&[("a", 0.0)]), adding(&[("a", 0.0), ("b", 1.0)]));
    let error = compared(&one, &two, &CompareOptions::default()).unwrap_err();
    assert!(matches!(&error, CompareError::Names { kind: "outputs", only_second, .. } if only_second == &["b"]));
    let error = compared(&two, &one, &CompareOptions::default()).unwrap_err();
    assert!(matches!(&error, CompareError::Names { only_first, .. } if only_first == &["b"]), "{error}");
}

#[test]
fn an_output_of_another_shape_is_an_error_that_names_it() {
    let first = adding(&[("a", 0.0)]);
    let mut second = adding(&[("a", 0.0)]);
    let graph = second.proto.graph.as_option_mut().unwrap();
    let axes = vec![build::attr_is("perm", &[1, 0, 2, 3])];
    graph.node = vec![build::node("Transpose", "t", &["x"], &["a"], axes)];
    graph.initializer.clear();
    graph.output = vec![build::value_info("a", DataType::Float, &[3, 1, 12, 12].map(DimSpec::Known))];
    let error = compared(&first, &second, &CompareOptions::default()).unwrap_err();
    let text = error.to_string();
    assert_eq!(text, "output 'a' (seed 5): shapes differ: [1, 3, 12, 12] and [3, 1, 12, 12]");
}

#[test]
fn the_caller_says_what_an_image_is() {
    let (first, second) = (adding(&[("a", 0.0)]), adding(&[("a", 0.1)]));
    let with = |images| {
        let options = CompareOptions { images, range: Some(2.0), ..CompareOptions::default() };
        compared(&first, &second, &options).unwrap().outputs.remove(0)
    };
    let guessed = with(Images::Guess);
    assert!(guessed.min_ssim().is_some() && guessed.runs[0].difference.range == 2.0);
    assert_eq!(with(Images::Always(ImageLayout::ChannelsFirst)).min_ssim(), guessed.min_ssim());
    assert_eq!(with(Images::Never).min_ssim(), None);
    // Read with the channels last the planes are 3 x 12: no window fits.
    assert_eq!(with(Images::Always(ImageLayout::ChannelsLast)).min_ssim(), None);
}

#[test]
fn a_model_that_does_not_load_is_told_from_the_other() {
    let good = ModelBytes { bytes: adding(&[("a", 0.0)]).to_bytes().unwrap().into(), folder: None };
    let bad = ModelBytes { bytes: Bytes::from_static(b"no model"), folder: None };
    let inputs = [InputSet { label: "x".to_owned(), tensors: vec![] }];
    let error =
        |a, b, inputs: &[InputSet]| compare(&RtenEngine::default(), a, b, inputs, &Default::default()).unwrap_err();
    assert!(error(&good, &bad, &inputs).to_string().starts_with("second model: "));
    assert!(error(&bad, &good, &inputs).to_string().starts_with("first model: "));
    assert!(matches!(error(&good, &good, &[]), CompareError::NoInputs));
}

#[test]
fn the_corner_of_a_tensor_keeps_the_first_of_each_axis() {
    let values: Vec<f32> = (0u8..24).map(f32::from).collect();
    let tensor = ConstTensor::from_f32(vec![2, 3, 4], &values).unwrap();
    let corner = super::corner(&tensor, &[2, 2, 3]).unwrap();
    assert_eq!(corner.to_f64_vec().unwrap(), [0., 1., 2., 4., 5., 6., 12., 13., 14., 16., 17., 18.]);
    assert_eq!(super::corner(&tensor, &[2, 3, 4]), Some(tensor));
}
