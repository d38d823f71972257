//! What the integration tests share: small models, real models and how to find them.
#![allow(dead_code, reason = "each test file uses its part")]

use std::path::{Path, PathBuf};

use chipfit_model::build::value_info;
use chipfit_model::proto::{GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto};
use chipfit_model::{DataType, Model};

/// A graph whose inputs and outputs are floats of no dimension.
pub(crate) fn graph(nodes: &[NodeProto], inputs: &[&str], outputs: &[&str]) -> GraphProto {
    let declared = |names: &[&str]| names.iter().map(|n| value_info(n, DataType::Float, &[])).collect();
    GraphProto {
        name: Some("test".to_owned()),
        node: nodes.to_vec(),
        input: declared(inputs),
        output: declared(outputs),
        ..GraphProto::default()
    }
}

/// A model of opset 17.
pub(crate) fn model(graph: GraphProto) -> Model {
    let opset = OperatorSetIdProto { version: Some(17), ..OperatorSetIdProto::default() };
    let proto =
        ModelProto { ir_version: Some(8), opset_import: vec![opset], graph: graph.into(), ..ModelProto::default() };
    Model { proto, folder: None }
}

/// A float vector that keeps its elements in `float_data`.
pub(crate) fn typed_floats(name: &str, n: usize) -> TensorProto {
    TensorProto {
        name: Some(name.to_owned()),
        dims: vec![i64::try_from(n).expect("small")],
        data_type: Some(DataType::Float.code()),
        float_data: vec![0.5; n],
        ..TensorProto::default()
    }
}

/// The folder that an environment variable names, or says aloud that the test is skipped.
pub(crate) fn folder(variable: &str, inside: &str) -> Option<PathBuf> {
    let folder = std::env::var_os(variable).map(|f| PathBuf::from(f).join(inside)).filter(|f| f.is_dir());
    if folder.is_none() {
        eprintln!("SKIPPED: set {variable} to a folder with '{inside}' (`cargo xtask test` does); nothing was tested");
    }
    folder
}

/// All `.onnx` files below a folder, in a fixed order.
pub(crate) fn onnx_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut waiting = vec![folder.to_owned()];
    while let Some(folder) = waiting.pop() {
        for entry in std::fs::read_dir(&folder).expect("a readable folder") {
            let path = entry.expect("a readable entry").path();
            if path.is_dir() {
                waiting.push(path);
            } else if path.extension().is_some_and(|e| e == "onnx") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}
