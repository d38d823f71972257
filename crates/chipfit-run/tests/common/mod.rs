//! What the tests of engines share: small models, the engines of this machine, the models of `shared/models`.
#![allow(dead_code, reason = "every test file uses its own part")]

use std::io::Write as _;
use std::path::PathBuf;

use bytes::Bytes;
use chipfit_model::build::{self, DimSpec};
use chipfit_model::proto::{GraphProto, ModelProto, NodeProto, OperatorSetIdProto};
use chipfit_model::{ConstTensor, DataType, Model};
use chipfit_run::engine::{Engine, EngineError, OnnxRuntime, Places, RtenEngine};

/// Says so, past the test runner's capture, when something was not tested.
pub(crate) fn skipped(what: &str, why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED {what}: {why}");
}

/// ONNX Runtime, or `None` and a line on stderr. One that was named and does not work is a failure.
pub(crate) fn onnx_runtime(what: &str) -> Option<OnnxRuntime> {
    let places = Places::from_environment();
    match OnnxRuntime::find(&places) {
        Ok(engine) => Some(engine),
        Err(error @ EngineError::NotFound { .. }) => {
            let named = places.environment_library.is_some() || places.python.is_some();
            assert!(!named, "ONNX Runtime was named by the environment: {error}");
            skipped(what, &error.to_string());
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// rten, and ONNX Runtime where there is one.
pub(crate) fn engines(what: &str) -> Vec<Box<dyn Engine>> {
    let mut engines: Vec<Box<dyn Engine>> = vec![Box::new(RtenEngine::default())];
    engines.extend(onnx_runtime(what).map(|engine| Box::new(engine) as Box<dyn Engine>));
    engines
}

/// The model `name` in one of the folders that `CHIPFIT_MODELS` lists, or in `shared/models` of the workspace.
pub(crate) fn shared_model(what: &str, name: &str) -> Option<PathBuf> {
    let listed = std::env::var_os("CHIPFIT_MODELS").unwrap_or_default();
    let workspace = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/models"));
    let found = std::env::split_paths(&listed).chain([workspace]).map(|f| f.join(name)).find(|p| p.is_file());
    if found.is_none() {
        skipped(what, &format!("no {name} in shared/models or in the folders of CHIPFIT_MODELS"));
    }
    found
}

/// A value's name, type and shape.
pub(crate) type Outlet<'a> = (&'a str, DataType, &'a [i64]);

pub(crate) fn model(
    nodes: Vec<NodeProto>,
    inputs: &[Outlet],
    outputs: &[Outlet],
    constants: &[(&str, ConstTensor)],
) -> Model {
    let info = |(name, dtype, dims): &Outlet| {
        let dims: Vec<DimSpec> = dims.iter().map(|d| DimSpec::Known(*d)).collect();
        build::value_info(name, *dtype, &dims)
    };
    let graph = GraphProto {
        name: Some("test".to_owned()),
        node: nodes,
        input: inputs.iter().map(info).collect(),
        output: outputs.iter().map(info).collect(),
        initializer: constants.iter().map(|(name, tensor)| tensor.to_proto(name)).collect(),
        ..Default::default()
    };
    let opset = OperatorSetIdProto { version: Some(17), ..Default::default() };
    let proto =
        ModelProto { ir_version: Some(8), opset_import: vec![opset], graph: graph.into(), ..Default::default() };
    Model { proto, folder: None }
}

pub(crate) fn bytes(model: &Model) -> Bytes {
    model.to_bytes().unwrap().into()
}

/// A one-node model `x -> y` of one element type.
pub(crate) fn unary(op: &str, dtype: DataType, dims: &[i64]) -> Model {
    let node = build::node(op, "the node", &["x"], &["y"], vec![]);
    model(vec![node], &[("x", dtype, dims)], &[("y", dtype, dims)], &[])
}

pub(crate) fn named(name: &str, tensor: ConstTensor) -> Vec<(String, ConstTensor)> {
    vec![(name.to_owned(), tensor)]
}

pub(crate) fn f32s(dims: &[usize], values: &[f32]) -> ConstTensor {
    ConstTensor::from_f32(dims.to_vec(), values).unwrap()
}
