//! The scatter reference and the interpreter against ONNX's own node tests.
//!
//! They are looked for where `CHIPFIT_ONNX_NODE_TESTS` says, else in `.cache/data/onnx-testdata/node` of the
//! repository (`cargo xtask` unpacks Debian's package `libonnx-testdata` there). Where they are not, this test says so on stderr.

use std::fs;
use std::path::{Path, PathBuf};

use buffa::Message as _;
use chipfit_model::build::is_op;
use chipfit_model::proto::TensorProto;
use chipfit_model::{ConstTensor, Index, Limits, Model};
use chipfit_run::interp::tensor::{Data, Tensor};
use chipfit_run::interp::{Mode, Segment, evaluate};
use chipfit_run::reference::SameRule;

/// Operators, and how many node tests of each must have been run.
const OPERATORS: [(&str, usize); 38] = [
    ("ConvTranspose", 10),
    ("Conv", 6),
    ("Concat", 12),
    ("Slice", 7),
    ("Pad", 3),
    ("DepthToSpace", 3),
    ("Reshape", 10),
    ("Transpose", 7),
    ("Expand", 2),
    ("Tile", 2),
    ("Unsqueeze", 7),
    ("Squeeze", 2),
    ("Split", 5),
    ("Shape", 9),
    ("Gather", 4),
    ("Identity", 1),
    ("Add", 2),
    ("Sub", 2),
    ("Mul", 2),
    ("Div", 2),
    ("Relu", 1),
    ("LeakyRelu", 3),
    ("PRelu", 2),
    ("Clip", 6),
    ("Sigmoid", 2),
    ("Tanh", 2),
    ("Elu", 3),
    ("HardSigmoid", 3),
    ("HardSwish", 1),
    ("ThresholdedRelu", 3),
    ("Selu", 3),
    ("Celu", 1),
    ("Softplus", 2),
    ("Softsign", 2),
    ("QuantizeLinear", 2),
    ("DequantizeLinear", 2),
    ("Cast", 4),
    ("ConstantOfShape", 2),
];

fn folder() -> Option<PathBuf> {
    let named = std::env::var_os("CHIPFIT_ONNX_NODE_TESTS").map(PathBuf::from);
    let cached = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.cache/data/onnx-testdata/node");
    let found = [named.clone(), Some(cached)].into_iter().flatten().find(|p| p.is_dir());
    assert!(named.is_none() || found == named, "CHIPFIT_ONNX_NODE_TESTS is no folder");
    found
}

fn read(path: &Path) -> Option<ConstTensor> {
    let proto = TensorProto::decode_from_slice(&fs::read(path).unwrap()).unwrap();
    ConstTensor::from_proto(&proto, None).ok()
}

/// The largest difference, relative to 1 or the larger magnitude.
fn difference(a: &[f64], b: &[f64]) -> f64 {
    let one = |(a, b): (&f64, &f64)| {
        if a == b || (a.is_nan() && b.is_nan()) { 0.0 } else { (a - b).abs() / a.abs().max(1.0) }
    };
    a.iter().zip(b).map(one).fold(0.0, |m, d| if d.is_nan() { f64::INFINITY } else { d.max(m) })
}

#[test]
fn node_tests_of_the_standard_come_out_as_published() {
    let Some(folder) = folder() else {
        eprintln!("SKIPPED: no ONNX node tests (set CHIPFIT_ONNX_NODE_TESTS, or run cargo xtask test)");
        return;
    };
    let mut names: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).collect();
    names.sort();
    let mut run = [0usize; OPERATORS.len()];
    let (mut wrong, mut left_out) = (Vec::new(), Vec::new());
    for case in names {
        let name = case.file_name().unwrap().to_string_lossy().into_owned();
        let Ok(bytes) = fs::read(case.join("model.onnx")) else { continue };
        let Ok(model) = Model::from_bytes(bytes.into(), &Limits::default()) else { continue };
        let [node] = model.graph().node.as_slice() else { continue };
        let Some(which) = OPERATORS.iter().position(|(op, _)| is_op(node, op)) else { continue };
        if name.contains("BFLOAT16") {
            // The published data calls these tensors uint16.
            left_out.push(name);
            continue;
        }
        let index = Index::new(&model);
        let inputs: Vec<&str> = index.scopes[0].inputs.clone();
        let data = case.join("test_data_set_0");
        let given: Option<Vec<Tensor>> = (0..inputs.len())
            .map(|i| {
                let path = data.join(format!("input_{i}.pb"));
                path.exists().then(|| read(&path)).flatten().as_ref().and_then(Tensor::from_const)
            })
            .collect();
        for (number, output) in index.scopes[0].outputs.iter().enumerate() {
            let expected = read(&data.join(format!("output_{number}.pb")));
            let (Some(given), Some(expected)) = (&given, expected.as_ref().and_then(Tensor::from_const)) else {
                left_out.push(name.clone());
                continue;
            };
            let result = Segment::collect(&index, 0, &inputs, output)
                .and_then(|segment| evaluate(&index, &segment, given, Mode::Storage, SameRule::Runtimes));
            match result {
                Err(e) => wrong.push(format!("{name}: {e}")),
                Ok(found) if found.dims != expected.dims || found.dtype != expected.dtype => {
                    wrong.push(format!("{name}: {:?} {:?} for {:?}", found.dtype, found.dims, expected.dims));
                }
                Ok(found) => {
                    let d = difference(&expected.data.to_f64(), &found.data.to_f64());
                    let limit = if matches!(expected.data, Data::I32(_) | Data::I64(_)) { 0.0 } else { 2e-6 };
                    if d > limit {
                        wrong.push(format!("{name}: differs by {d}"));
                    }
                }
            }
        }
        run[which] += 1;
    }
    eprintln!("left out (element types of the data): {left_out:?}");
    for ((op, least), run) in OPERATORS.iter().zip(run) {
        eprintln!("{op}: {run}");
        if run < *least {
            wrong.push(format!("{op}: {run} cases were found, {least} expected"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
