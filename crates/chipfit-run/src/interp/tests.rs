//! Operators in every attribute form; the convolution against its definition and against its own transpose.

use chipfit_model::build::{attr_f, attr_i, attr_is, attr_s, attr_t, node, value_info};
use chipfit_model::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto};
use chipfit_model::{ConstTensor, DataType, Limits, Model};

use super::*;
use crate::reference::{Geometry, scatter_i32};

fn f32s(dims: &[usize], values: &[f32]) -> Tensor {
    Tensor::new(DataType::Float, dims.to_vec(), Data::F32(values.to_vec())).unwrap()
}

fn counting(dims: &[usize]) -> Tensor {
    let count = dims.iter().product::<usize>();
    f32s(dims, &(0..count).map(|i| i as f32).collect::<Vec<_>>())
}

/// Runs nodes from `x` to `y`.
fn run_nodes(
    nodes: Vec<NodeProto>,
    constants: Vec<TensorProto>,
    opset: i64,
    x: &Tensor,
    mode: Mode,
) -> Result<Tensor, EvalError> {
    let graph = GraphProto {
        node: nodes,
        initializer: constants,
        input: vec![value_info("x", x.dtype, &[])],
        output: vec![value_info("y", x.dtype, &[])],
        ..Default::default()
    };
    let proto = ModelProto {
        opset_import: vec![OperatorSetIdProto { version: Some(opset), ..Default::default() }],
        graph: graph.into(),
        ..Default::default()
    };
    let bytes = Model { proto, folder: None }.to_bytes().unwrap();
    let model = Model::from_bytes(bytes.into(), &Limits::default()).unwrap();
    let index = Index::new(&model);
    let segment = Segment::collect(&index, 0, &["x"], "y")?;
    evaluate(&index, &segment, std::slice::from_ref(x), mode, SameRule::Runtimes)
}

/// Runs one node on `x` and int64 constants.
fn run(
    op: &str,
    attributes: Vec<AttributeProto>,
    ints: &[&[i64]],
    opset: i64,
    x: &Tensor,
) -> Result<Tensor, EvalError> {
    let names: Vec<String> = (0..ints.len()).map(|i| format!("c{i}")).collect();
    let constants = names.iter().zip(ints).map(|(n, v)| ConstTensor::from_i64s(v).to_proto(n)).collect();
    let inputs: Vec<&str> = ["x"].into_iter().chain(names.iter().map(String::as_str)).collect();
    run_nodes(vec![node(op, "", &inputs, &["y"], attributes)], constants, opset, x, Mode::Storage)
}

#[test]
fn attribute_and_input_forms_agree() {
    let x = counting(&[2, 3, 4]);
    struct Case {
        op: &'static str,
        old: (i64, Vec<AttributeProto>),
        new: (i64, Vec<AttributeProto>, Vec<Vec<i64>>),
        dims: Vec<usize>,
        first: f32,
    }
    let cases = [
        Case {
            op: "Slice",
            old: (9, vec![attr_is("starts", &[1, -2]), attr_is("ends", &[9, 3]), attr_is("axes", &[0, 2])]),
            new: (10, vec![], vec![vec![1, -2], vec![9, 3], vec![0, 2]]),
            dims: vec![1, 3, 1],
            first: 14.0,
        },
        Case {
            op: "Reshape",
            old: (1, vec![attr_is("shape", &[0, -1, 2])]),
            new: (5, vec![], vec![vec![0, -1, 2]]),
            dims: vec![2, 6, 2],
            first: 0.0,
        },
        Case {
            op: "Unsqueeze",
            old: (11, vec![attr_is("axes", &[0, 3])]),
            new: (13, vec![], vec![vec![0, -2]]),
            dims: vec![1, 2, 3, 1, 4],
            first: 0.0,
        },
        Case {
            op: "Pad",
            old: (2, vec![attr_is("pads", &[0, 1, -1, 0, 0, 2])]),
            new: (11, vec![], vec![vec![0, 1, -1, 0, 0, 2]]),
            dims: vec![2, 4, 5],
            first: 0.0,
        },
        Case {
            op: "Pad",
            old: (1, vec![attr_is("paddings", &[-1, 0, 0, 0, 0, 0])]),
            new: (11, vec![], vec![vec![-1, 0, 0, 0, 0, 0]]),
            dims: vec![1, 3, 4],
            first: 12.0,
        },
    ];
    for case in cases {
        let old = run(case.op, case.old.1, &[], case.old.0, &x).unwrap();
        let ints: Vec<&[i64]> = case.new.2.iter().map(Vec::as_slice).collect();
        let new = run(case.op, case.new.1, &ints, case.new.0, &x).unwrap();
        assert_eq!(old, new, "{}", case.op);
        assert_eq!(old.dims, case.dims, "{}", case.op);
        assert_eq!(old.data.to_f64()[0], f64::from(case.first), "{}", case.op);
    }
}

#[test]
fn old_depth_to_space_is_depth_first_and_crd_keeps_channels() {
    let x = counting(&[1, 8, 1, 1]);
    let old = run("DepthToSpace", vec![attr_i("blocksize", 2)], &[], 1, &x).unwrap();
    assert_eq!(old.data, Data::F32(vec![0., 2., 4., 6., 1., 3., 5., 7.]));
    let crd = run("DepthToSpace", vec![attr_i("blocksize", 2), attr_s("mode", "CRD")], &[], 11, &x).unwrap();
    assert_eq!(crd.data, x.data);
    assert_eq!(crd.dims, [1, 2, 2, 2]);
}

#[test]
fn zero_in_a_reshape_means_what_allowzero_says() {
    let x = Tensor::new(DataType::Float, vec![0, 3], Data::F32(vec![])).unwrap();
    let copied = run("Reshape", vec![], &[&[3, 0]], 13, &counting(&[2, 1])).unwrap_err();
    assert!(copied.to_string().contains("[3, 1]"), "{copied}");
    assert_eq!(run("Reshape", vec![attr_i("allowzero", 1)], &[&[3, 0]], 14, &x).unwrap().dims, [3, 0]);
    assert_eq!(run("Reshape", vec![], &[&[0, 3, 1]], 14, &x).unwrap().dims, [0, 3, 1]);
}

#[test]
fn shapes_are_computed_on_the_way() {
    // y = reshape(x, [shape(x)[0], 2 * shape(x)[2], -1])
    let constants = vec![
        ConstTensor::from_i64s(&[0]).to_proto("zero"),
        ConstTensor::from_i64s(&[2]).to_proto("two"),
        ConstTensor::from_i64s(&[-1]).to_proto("rest"),
    ];
    let nodes = vec![
        node("Shape", "", &["x"], &["s"], vec![]),
        node("Gather", "", &["s", "zero"], &["n"], vec![]),
        node("Gather", "", &["s", "two"], &["h"], vec![]),
        node("Mul", "", &["h", "two"], &["hh"], vec![]),
        node("Concat", "", &["n", "hh", "rest"], &["shape"], vec![attr_i("axis", 0)]),
        node("Reshape", "", &["x", "shape"], &["y"], vec![]),
    ];
    let y = run_nodes(nodes, constants, 13, &counting(&[2, 6, 5, 1]), Mode::Storage).unwrap();
    assert_eq!(y.dims, [2, 10, 3]);
}

#[test]
fn bad_nodes_are_errors_with_their_name() {
    let x = counting(&[2, 3, 4]);
    type Case = (&'static str, Vec<AttributeProto>, Vec<Vec<i64>>);
    let cases: Vec<Case> = vec![
        ("Concat", vec![attr_i("axis", 3)], vec![]),
        ("Slice", vec![], vec![vec![0], vec![1, 2]]),
        ("Slice", vec![], vec![vec![0], vec![1], vec![0], vec![0]]),
        ("Reshape", vec![], vec![vec![5, -1]]),
        ("Reshape", vec![], vec![vec![-1, -1]]),
        ("Reshape", vec![], vec![vec![i64::MAX, i64::MAX]]),
        ("Transpose", vec![attr_is("perm", &[0, 0, 1])], vec![]),
        ("Expand", vec![], vec![vec![1 << 20, 1 << 20, 1 << 20, 1]]),
        ("Expand", vec![], vec![vec![5]]),
        ("Tile", vec![], vec![vec![1 << 40, 1 << 40, 1]]),
        ("Pad", vec![], vec![vec![0, 0, i64::MAX, 0, 0, i64::MAX]]),
        ("Pad", vec![], vec![vec![0, 0, -5, 0, 0, 0]]),
        ("DepthToSpace", vec![attr_i("blocksize", 0)], vec![]),
        ("Gather", vec![attr_i("axis", 1)], vec![vec![3]]),
        ("Split", vec![attr_i("axis", 0)], vec![vec![1]]),
        ("Unsqueeze", vec![], vec![vec![0, 0]]),
        ("Squeeze", vec![], vec![vec![1]]),
        ("Conv", vec![], vec![vec![1]]),
        ("Cast", vec![attr_i("to", 8)], vec![]),
    ];
    for (op, attributes, ints) in cases {
        let ints: Vec<&[i64]> = ints.iter().map(Vec::as_slice).collect();
        let message = run(op, attributes, &ints, 13, &x).map_err(|e| e.to_string()).expect_err(op);
        assert!(message.contains(&format!("{op}#0")), "{message}");
    }
}

#[test]
fn half_types_round_once_per_operator() {
    // 1 + 2^-11 + 2^-12: the sum in f32 rounds up to the next float16, rounding after each term would not.
    let w = ConstTensor::new(
        DataType::Float16,
        vec![1, 3, 1],
        [1.0f32, 2f32.powi(-11), 2f32.powi(-12)]
            .iter()
            .flat_map(|&v| half::f16::from_f32(v).to_le_bytes())
            .collect::<Vec<u8>>(),
    )
    .unwrap();
    let x = Tensor::new(DataType::Float16, vec![1, 3, 1], Data::F32(vec![1.0; 3])).unwrap();
    let y =
        run_nodes(vec![node("Conv", "", &["x", "w"], &["y"], vec![])], vec![w.to_proto("w")], 13, &x, Mode::Storage);
    assert_eq!(y.unwrap().data, Data::F32(vec![1.0 + 2f32.powi(-10)]));
}

#[test]
fn small_integers_depend_on_the_value_alone_and_keep_zero() {
    assert_eq!(small_integer(0.0, 1, 50), 0);
    assert_eq!(small_integer(-0.0, 1, 50), 0);
    let mut seen = std::collections::BTreeSet::new();
    for i in 1..2000 {
        let v = small_integer(f64::from(i) * 0.37, 5, 50);
        assert!(v != 0 && v.abs() <= 50);
        assert_eq!(v, small_integer(f64::from(i) * 0.37, 5, 50));
        seen.insert(v);
    }
    assert_eq!(seen.len(), 100);
}

#[test]
fn dequantised_weights_and_bias_become_small_integers_by_value() {
    // Weights behind DequantizeLinear: the zero point is zero, equal values are equal.
    let q = ConstTensor::new(DataType::Uint8, vec![1, 1, 4], vec![7u8, 9, 7, 9]).unwrap().to_proto("q");
    let scale = ConstTensor::from_f32(vec![], &[0.5]).unwrap().to_proto("s");
    let zero = ConstTensor::new(DataType::Uint8, vec![], vec![7u8]).unwrap().to_proto("z");
    let nodes = vec![
        node("DequantizeLinear", "", &["q", "s", "z"], &["w"], vec![]),
        node("Conv", "", &["x", "w"], &["y"], vec![]),
    ];
    let x = Tensor::new(DataType::Float, vec![1, 1, 4], Data::I32(vec![1, 10, 100, 1000])).unwrap();
    let mode = Mode::SmallIntegers { seed: 3, range: 100 };
    let y = run_nodes(nodes, vec![q, scale, zero], 13, &x, mode).unwrap();
    assert_eq!(y.data, Data::I32(vec![1010 * small_integer(1.0, 3, 100)]));
}

#[test]
fn activations_have_the_values_of_their_definition() {
    let x = f32s(&[4], &[-3.0, -0.5, 0.5, 7.0]);
    let cases: Vec<(&str, Vec<AttributeProto>, i64, [f64; 4])> = vec![
        ("Clip", vec![attr_f("min", -1.0), attr_f("max", 6.0)], 6, [-1.0, -0.5, 0.5, 6.0]),
        ("Clip", vec![], 6, [-3.0, -0.5, 0.5, 7.0]),
        ("LeakyRelu", vec![attr_f("alpha", 0.25)], 6, [-0.75, -0.125, 0.5, 7.0]),
        ("Elu", vec![], 6, [-0.950212931632136, -0.3934693402873666, 0.5, 7.0]),
        ("HardSigmoid", vec![], 6, [0.0, 0.4, 0.6, 1.0]),
        ("HardSwish", vec![], 14, [0.0, -0.5 * 2.5 / 6.0, 0.5 * 3.5 / 6.0, 7.0]),
    ];
    for (op, attributes, opset, expected) in cases {
        let y = run(op, attributes, &[], opset, &x).unwrap().data.to_f64();
        assert!(y.iter().zip(expected).all(|(y, e)| (y - e).abs() < 1e-6), "{op}: {y:?}");
    }
}

#[test]
fn old_arithmetic_broadcasts_along_its_axis() {
    let b = ConstTensor::from_f32(vec![3], &[10.0, 20.0, 30.0]).unwrap().to_proto("b");
    let add = |attributes| node("Add", "", &["x", "b"], &["y"], attributes);
    let x = counting(&[2, 3, 2]);
    let attributes = vec![attr_i("broadcast", 1), attr_i("axis", 1)];
    let y = run_nodes(vec![add(attributes)], vec![b.clone()], 6, &x, Mode::Storage).unwrap();
    assert_eq!(y.data.to_f64()[..6], [10., 11., 22., 23., 34., 35.]);
    assert!(run_nodes(vec![add(vec![])], vec![b], 6, &x, Mode::Storage).is_err());
}

#[test]
fn constant_of_shape_has_its_value() {
    let value = attr_t("value", ConstTensor::from_f32(vec![1], &[2.5]).unwrap().to_proto(""));
    let nodes =
        vec![node("Shape", "", &["x"], &["s"], vec![]), node("ConstantOfShape", "", &["s"], &["y"], vec![value])];
    let y = run_nodes(nodes, vec![], 13, &counting(&[2, 1]), Mode::Storage).unwrap();
    assert_eq!(y, f32s(&[2, 1], &[2.5, 2.5]));
}

/// Integer tensors of the given lengths.
fn integers(seed: u64, count: usize) -> Vec<i32> {
    (0..count as u64).map(|i| (mix(seed << 32 | i) % 19) as i32 - 9).collect()
}

/// The transposed convolution is the adjoint of the convolution: `<conv(x, w), y> = <x, transposed(y, w)>`.
/// It ties two kernels together that share nothing but this identity.
#[test]
fn convolution_and_its_transpose_are_adjoint() {
    let mut run = 0;
    for seed in 0..500u64 {
        let below = |salt: u64, n: u64| (mix(seed * 64 + salt) % n) as usize;
        let rank = 1 + below(0, 3);
        let (group, batch) = (1 + below(1, 3), 1 + below(2, 2));
        let (ci, co) = (group * (1 + below(3, 3)), group * (1 + below(4, 3)));
        let per_axis = |salt: u64, low: usize, n: u64| -> Vec<usize> {
            (0..rank as u64).map(|a| low + below(salt + 8 * a, n)).collect()
        };
        let n = per_axis(5, 3, 4);
        let (k, s, d) = (per_axis(6, 1, 3), per_axis(7, 1, 3), per_axis(8, 1, 2));
        let (p, pe) = (per_axis(9, 0, 3), per_axis(10, 0, 3));
        let signed = |v: &[usize]| v.iter().map(|&v| v as i64).collect::<Vec<_>>();
        let spans: Vec<i64> =
            (0..rank).map(|a| n[a] as i64 + (p[a] + pe[a]) as i64 - (d[a] * (k[a] - 1)) as i64 - 1).collect();
        if spans.iter().any(|&s| s < 0) {
            continue;
        }
        let rest: Vec<i64> = (0..rank).map(|a| spans[a] % s[a] as i64).collect();
        let attributes = vec![
            attr_is("strides", &signed(&s)),
            attr_is("dilations", &signed(&d)),
            attr_is("pads", &[signed(&p), signed(&pe)].concat()),
            attr_i("group", group as i64),
        ];
        let x_dims = [vec![batch, ci], n.clone()].concat();
        let w_dims = [vec![co, ci / group], k.clone()].concat();
        let conv =
            conv::Conv::resolve(&node("Conv", "", &["x", "w"], &["y"], attributes.clone()), &x_dims, &w_dims).unwrap();
        let y_dims = conv.output_dims();
        let mut attributes = attributes;
        attributes.push(attr_is("output_padding", &rest));
        let transposed = node("ConvTranspose", "", &["y", "w"], &["x"], attributes);
        let g = Geometry::resolve(&transposed, 11, &y_dims, &w_dims, SameRule::Runtimes).unwrap();
        assert_eq!(g.output_dims(), x_dims, "seed {seed}");
        let x = integers(seed, x_dims.iter().product());
        let w = integers(seed + 1000, w_dims.iter().product());
        let y = integers(seed + 2000, y_dims.iter().product());
        let dot = |a: &[i32], b: &[i32]| a.iter().zip(b).map(|(&a, &b)| i64::from(a) * i64::from(b)).sum::<i64>();
        let left = dot(&conv.run(&x, &w, None), &y);
        let right = dot(&x, &scatter_i32(&g, &y, &w, None).unwrap());
        assert_eq!(left, right, "seed {seed}: {x_dims:?} {w_dims:?} {transposed:?}");
        // The same in floats, where such integers are exact.
        let float = |v: &[i32]| v.iter().map(|&v| v as f32).collect::<Vec<_>>();
        let bias = integers(seed + 3000, co);
        let whole = conv.run(&x, &w, Some(&bias));
        assert_eq!(conv.run(&float(&x), &float(&w), Some(&float(&bias))), float(&whole), "seed {seed}");
        run += 1;
    }
    assert!(run > 300, "{run}");
}
