//! The zoo's networks: layer sizes and MAC counts against the documented tables, determinism, options.
//!
//! Shapes and counts are derived here from the written nodes alone, in another way than the builder keeps them.

use std::collections::BTreeMap;

use chipfit_model::build::{get_i, get_is, is_op};
use chipfit_model::onnx::{Limits, Model};
use chipfit_model::proto::__buffa::oneof::tensor_shape_proto::dimension::Value as DimValue;
use chipfit_model::proto::__buffa::oneof::type_proto::Value as TypeValue;
use chipfit_model::proto::{NodeProto, ValueInfoProto};
use chipfit_model::zoo::{self, ZooError, ZooOptions};
use chipfit_model::{DataType, Index};

fn build(name: &str) -> Model {
    zoo::build(name, &ZooOptions::default()).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn declared(info: &ValueInfoProto) -> (i32, Vec<Option<usize>>) {
    let Some(TypeValue::TensorType(t)) = &info.r#type.value else { panic!("no tensor") };
    let dims = t.shape.dim.iter().map(|d| match &d.value {
        Some(DimValue::DimValue(n)) => Some(usize::try_from(*n).unwrap()),
        _ => None,
    });
    (t.elem_type.unwrap(), dims.collect())
}

/// The shape of every value of a batch-1 model, from the definitions of the operators that the zoo uses.
fn shapes(model: &Model) -> BTreeMap<String, Vec<usize>> {
    let graph = model.graph();
    let index = Index::new(model);
    let mut shapes: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for input in &graph.input {
        let dims = declared(input).1.into_iter().map(Option::unwrap).collect();
        shapes.insert(input.name.clone().unwrap(), dims);
    }
    for t in &graph.initializer {
        shapes.insert(t.name.clone().unwrap(), t.dims.iter().map(|&d| usize::try_from(d).unwrap()).collect());
    }
    for node in &graph.node {
        let x: Vec<usize> = shapes[&node.input[0]].clone();
        let ints = |name: &str, default: i64, n: usize| {
            get_is(node, name)
                .map_or(vec![default; n], <[i64]>::to_vec)
                .into_iter()
                .map(|v| v as usize)
                .collect::<Vec<_>>()
        };
        let weight = node.input.get(1).and_then(|n| shapes.get(n)).cloned();
        let y = match node.op_type.as_deref().unwrap() {
            "Conv" | "ConvTranspose" | "MaxPool" => {
                let (k, s) = (ints("kernel_shape", 1, 2), ints("strides", 1, 2));
                let (p, op) = (ints("pads", 0, 4), ints("output_padding", 0, 2));
                let axis = |a: usize| {
                    if is_op(node, "ConvTranspose") {
                        s[a] * (x[2 + a] - 1) + op[a] + k[a] - p[a] - p[2 + a]
                    } else {
                        (x[2 + a] + p[a] + p[2 + a] - k[a]) / s[a] + 1
                    }
                };
                let channels = match (&weight, node.op_type.as_deref().unwrap()) {
                    (Some(w), "Conv") => w[0],
                    (Some(w), _) => w[1],
                    (None, _) => x[1],
                };
                vec![x[0], channels, axis(0), axis(1)]
            }
            "Gemm" => {
                let w = weight.unwrap();
                vec![x[0], if get_i(node, "transB") == Some(1) { w[0] } else { w[1] }]
            }
            "Flatten" => vec![x[0], x[1..].iter().product()],
            "GlobalAveragePool" => vec![x[0], x[1], 1, 1],
            "Reshape" => {
                let shape = index.constant_tensor(0, &node.input[1]).unwrap().unwrap().to_i64_vec().unwrap();
                assert_eq!(shape[0], 0);
                let dims: Vec<usize> = std::iter::once(x[0]).chain(shape[1..].iter().map(|&d| d as usize)).collect();
                assert_eq!(dims.iter().product::<usize>(), x.iter().product());
                dims
            }
            "Concat" => {
                let channels = node.input.iter().map(|n| shapes[n][1]).sum();
                assert!(node.input.iter().all(|n| shapes[n][2..] == x[2..]), "{:?}", node.name);
                vec![x[0], channels, x[2], x[3]]
            }
            "Resize" => vec![x[0], x[1], 2 * x[2], 2 * x[3]],
            "Add" => {
                let other = weight.unwrap();
                assert!(other.is_empty() || other == x, "{:?}", node.name);
                x
            }
            "BatchNormalization" | "InstanceNormalization" => {
                assert!(node.input[1..].iter().all(|n| shapes[n] == [x[1]]));
                x
            }
            "Relu" | "LeakyRelu" | "Elu" | "Tanh" | "Sigmoid" | "Mul" | "Clip" => x,
            other => panic!("operator {other} is not known here"),
        };
        shapes.insert(node.output[0].clone(), y);
    }
    shapes
}

/// Multiply-accumulates of convolutions and full connections, of transposed convolutions, and the weights of the latter.
fn macs(model: &Model, counted: impl Fn(&NodeProto) -> bool) -> (usize, usize, usize) {
    let shapes = shapes(model);
    let (mut forward, mut transposed, mut weights) = (0, 0, 0);
    for node in model.graph().node.iter().filter(|n| counted(n)) {
        let product = |name: &str| shapes[name].iter().product::<usize>();
        match node.op_type.as_deref().unwrap() {
            "Conv" => forward += product(&node.output[0]) * shapes[&node.input[1]][1..].iter().product::<usize>(),
            "Gemm" => forward += product(&node.input[1]),
            "ConvTranspose" => {
                transposed += product(&node.input[0]) * shapes[&node.input[1]][1..].iter().product::<usize>();
                weights += product(&node.input[1]);
            }
            _ => {}
        }
    }
    (forward, transposed, weights)
}

#[test]
fn every_network_is_valid_and_gives_the_declared_shape() {
    for entry in zoo::names() {
        let model = build(entry.name);
        let bytes = model.to_bytes().unwrap();
        Model::from_bytes(bytes.into(), &Limits::default()).unwrap_or_else(|e| panic!("{}: {e}", entry.name));
        let shapes = shapes(&model);
        for output in &model.graph().output {
            let dims: Vec<usize> = declared(output).1.into_iter().map(Option::unwrap).collect();
            assert_eq!(shapes[output.name.as_deref().unwrap()], dims, "{}", entry.name);
        }
        assert!(!entry.about.contains('\n') && !entry.about.is_empty());
    }
}

#[test]
fn transposed_convolutions_cost_what_the_table_says() {
    // Millions of multiply-accumulates and of weights, rounded as in the table of the six networks.
    let table = [
        ("dcgan", 109.77, 1.029),
        ("sngan", 100.66, 2.753),
        ("artgan", 408.94, 11.016),
        ("mde", 849.35, 6.290),
        ("fst", 603.98, 0.092),
    ];
    let millions = |n: usize, digits: i32| {
        let unit = 10f64.powi(digits);
        (n as f64 / 1e6 * unit).round() / unit
    };
    for (name, want_macs, want_weights) in table {
        let (_, macs, weights) = macs(&build(name), |_| true);
        assert_eq!((millions(macs, 2), millions(weights, 3)), (want_macs, want_weights), "{name}");
    }
    // GP-GAN's table line counts the stride-2 layers alone; its k4 s1 layer adds 32.8.
    let model = build("gp-gan");
    let stride_2 = |n: &NodeProto| get_is(n, "strides") == Some(&[2, 2]);
    let (_, counted, weights) = macs(&model, stride_2);
    assert_eq!((millions(counted, 2), millions(weights, 3)), (103.81, 2.756));
    assert_eq!(millions(macs(&model, |n| !stride_2(n)).1, 1), 32.8);
}

#[test]
fn transposed_convolutions_have_the_documented_sizes() {
    // In, out, kernel, stride, pads, output padding, height and width of the input.
    type Layer = (usize, usize, i64, i64, [i64; 4], i64, [usize; 2]);
    let k4 = |c_in, c_out, n| -> Layer { (c_in, c_out, 4, 2, [1; 4], 0, [n; 2]) };
    let k3 = |c_in, c_out, n| -> Layer { (c_in, c_out, 3, 2, [1; 4], 1, [n, 2 * n]) };
    let k5 = |c_in, c_out, n| -> Layer { (c_in, c_out, 5, 2, [1, 1, 2, 2], 0, [n; 2]) };
    let table: [(&str, Vec<Layer>); 6] = [
        ("dcgan", vec![k5(256, 128, 8), k5(128, 64, 16), k5(64, 3, 32)]),
        ("sngan", vec![k4(512, 256, 4), k4(256, 128, 8), k4(128, 64, 16)]),
        ("artgan", vec![k4(1024, 512, 4), k4(512, 256, 8), k4(256, 128, 16), k4(128, 3, 32)]),
        (
            "gp-gan",
            vec![
                (4000, 512, 4, 1, [0; 4], 0, [1; 2]),
                k4(512, 256, 4),
                k4(256, 128, 8),
                k4(128, 64, 16),
                k4(64, 3, 32),
            ],
        ),
        (
            "mde",
            vec![
                k3(512, 512, 2),
                k3(512, 512, 4),
                k3(512, 256, 8),
                k3(256, 128, 16),
                k3(128, 64, 32),
                k3(64, 32, 64),
                k3(32, 16, 128),
            ],
        ),
        ("fst", vec![(128, 64, 3, 2, [0, 0, 1, 1], 0, [64; 2]), (64, 32, 3, 2, [0, 0, 1, 1], 0, [128; 2])]),
    ];
    for (name, want) in table {
        let model = build(name);
        let shapes = shapes(&model);
        let nodes = model.graph().node.iter().filter(|n| is_op(n, "ConvTranspose"));
        let have: Vec<Layer> = nodes
            .map(|n| {
                let (x, w) = (&shapes[&n.input[0]], &shapes[&n.input[1]]);
                let square = |name: &str, default: i64| match get_is(n, name) {
                    None => default,
                    Some([a, b]) if a == b => *a,
                    Some(other) => panic!("{name} {other:?}"),
                };
                let pads = get_is(n, "pads").unwrap().try_into().unwrap();
                assert_eq!((get_i(n, "group"), w[0], w[2] as i64), (None, x[1], square("kernel_shape", 0)));
                let (kernel, stride) = (square("kernel_shape", 0), square("strides", 1));
                (w[0], w[1], kernel, stride, pads, square("output_padding", 0), [x[2], x[3]])
            })
            .collect();
        assert_eq!(have, want, "{name}");
    }
}

/// TensorFlow's SAME puts the odd pad at the end: a shift by one that no shape would show.
#[test]
fn tensorflow_networks_pad_the_end_more() {
    for (name, strided) in [
        ("fst", 2),
        ("resnet8", 2),
        ("squeezenet1.1", 1),
        ("efficientnet-lite0", 5),
        ("mobilenet-0.25", 5),
        ("mobilenet-fashion", 2),
    ] {
        let model = build(name);
        let mut found = 0;
        for node in model.graph().node.iter().filter(|n| is_op(n, "Conv")) {
            let kernel = get_is(node, "kernel_shape").unwrap()[0];
            let want = match (kernel, get_is(node, "strides").unwrap()[0]) {
                (1, _) => [0; 4],
                (k, 1) => [k / 2; 4],
                (3, 2) => [0, 0, 1, 1],
                (5, 2) => [1, 1, 2, 2],
                other => panic!("{name}: {other:?}"),
            };
            assert_eq!(get_is(node, "pads").unwrap(), want, "{name} {:?}", node.name);
            found += usize::from(kernel > 1 && get_is(node, "strides") == Some(&[2, 2]));
        }
        assert_eq!(found, strided, "{name}");
    }
}

#[test]
fn classifiers_cost_what_is_known_of_them() {
    for (name, want) in [
        ("resnet8", 12_501_632),
        ("resnet18-cifar", 555_422_720),
        ("resnet18-imagenet", 1_814_073_344),
        ("squeezenet1.1", 349_537_280),
        ("lenet5", 416_520),
        // 28*28*9*16 + 14*14*(9*16 + 16*32 + 9*32 + 32*64) + 7*7*(9*64 + 64*128 + 9*128 + 128*128) + 1280.
        ("mobilenet-fashion", 1_989_504),
    ] {
        assert_eq!(macs(&build(name), |_| true).0, want, "{name}");
    }
    // Published to three digits, the full connection left out (Lite0) or in (MobileNet).
    let convolutions = |n: &NodeProto| is_op(n, "Conv");
    assert_eq!(macs(&build("efficientnet-lite0"), convolutions).0.div_ceil(1_000_000), 384);
    assert_eq!(macs(&build("mobilenet-0.25"), |_| true).0 / 1_000_000, 41);
}

/// FNV-1a over the initializers: names and bytes.
fn digest(model: &Model) -> u64 {
    let mut hash = 0xCBF2_9CE4_8422_2325_u64;
    for t in &model.graph().initializer {
        for byte in t.name.as_deref().unwrap().bytes().chain(t.raw_data.as_deref().unwrap().iter().copied()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3);
        }
    }
    hash
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    for entry in zoo::names() {
        let (a, b) = (build(entry.name), build(entry.name));
        assert!(a.to_bytes().unwrap() == b.to_bytes().unwrap(), "{}", entry.name);
    }
    let seeded = |seed| zoo::build("lenet5", &ZooOptions { seed, ..ZooOptions::default() }).unwrap();
    assert_ne!(digest(&seeded(0)), digest(&seeded(1)));
    // Every machine must give these weights.
    assert_eq!(digest(&seeded(0)), 2_948_829_589_435_275_989, "lenet5, seed 0");
}

#[test]
fn options_reach_the_model() {
    let options = ZooOptions { batch: None, dtype: DataType::Float16, opset: 13, ..ZooOptions::default() };
    for entry in zoo::names() {
        let model = zoo::build(entry.name, &options).unwrap();
        assert_eq!(model.opset(), 13);
        for info in model.graph().input.iter().chain(&model.graph().output) {
            let (dtype, dims) = declared(info);
            assert_eq!(dtype, DataType::Float16.code());
            assert_eq!(dims[0], None, "{}: the batch must be open", entry.name);
            assert!(dims[1..].iter().all(Option::is_some));
        }
    }
    let of = |dtype, opset| zoo::build("lenet5", &ZooOptions { dtype, opset, ..ZooOptions::default() });
    assert!(of(DataType::Bfloat16, 22).is_ok());
    assert!(of(DataType::Double, 11).is_ok());
    assert!(matches!(of(DataType::Bfloat16, 21), Err(ZooError::DataType { .. })));
    assert!(matches!(of(DataType::Int8, 17), Err(ZooError::DataType { .. })));
    assert!(matches!(of(DataType::Float, 10), Err(ZooError::Opset { opset: 10 })));
    assert!(matches!(of(DataType::Float, 24), Err(ZooError::Opset { opset: 24 })));
    assert!(matches!(
        zoo::build("lenet5", &ZooOptions { batch: Some(0), ..ZooOptions::default() }),
        Err(ZooError::Batch(0))
    ));
    let unknown = zoo::build("lenet-5", &ZooOptions::default()).unwrap_err();
    assert!(unknown.to_string().contains("lenet-5") && unknown.to_string().contains("lenet5"), "{unknown}");
}

/// The models of every option that changes the file's structure, judged by ONNX's own checker and by ONNX Runtime.
#[test]
fn onnx_checker_and_onnx_runtime_accept_every_network() {
    let Some(python) = std::env::var_os("CHIPFIT_PYTHON") else {
        eprintln!("SKIPPED: CHIPFIT_PYTHON is not set, so no model of the zoo was checked by ONNX or run");
        return;
    };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/python/check_models.py");
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, options: &ZooOptions, file: &str| {
        let path = folder.path().join(file);
        zoo::build(name, options).unwrap().write(&path, chipfit_model::onnx::Overwrite::Replace).unwrap();
        path
    };
    let judge = |mode: &[&str], paths: &[std::path::PathBuf]| {
        let out = std::process::Command::new(&python).arg(script).args(mode).args(paths).output().unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(out.status.success(), "{text}");
    };
    // The range that each network is said to take; uniform numbers up to sqrt(3) have variance 1.
    let run = |name: &str, options: &ZooOptions| {
        let [low, high] = match name {
            "resnet8" | "fst" => ["0", "255"],
            "squeezenet1.1" => ["-120", "150"],
            "mde" => ["0", "1"],
            "gp-gan" | "efficientnet-lite0" | "mobilenet-0.25" => ["-1", "1"],
            _ => ["-1.732", "1.732"],
        };
        // One file for all: together they would take 600 MB.
        judge(&["run", low, high], &[write(name, options, "model.onnx")]);
    };
    for entry in zoo::names() {
        run(entry.name, &ZooOptions::default());
    }
    // Resize (mde), Clip (mobilenet) and the normalisations are what the operator sets differ in.
    let mut paths = Vec::new();
    for (name, opset, dtype) in [
        ("mde", 13, DataType::Float16),
        ("mde", 22, DataType::Bfloat16),
        ("mobilenet-0.25", 11, DataType::Float),
        ("mobilenet-0.25", 13, DataType::Double),
        ("mobilenet-0.25", 23, DataType::Float),
        ("lenet5", 11, DataType::Float),
        ("lenet5", 15, DataType::Float16),
        ("lenet5", 19, DataType::Double),
        ("lenet5", 22, DataType::Bfloat16),
        ("sngan", 21, DataType::Float),
        ("fst", 22, DataType::Bfloat16),
        ("fst", 23, DataType::Float16),
        ("fst", 11, DataType::Double),
    ] {
        let options = ZooOptions { opset, dtype, batch: None, ..ZooOptions::default() };
        paths.push(write(name, &options, &format!("{name}-{opset}-{}.onnx", dtype.name())));
    }
    judge(&["check"], &paths);
    run("mde", &ZooOptions { opset: 11, batch: None, ..ZooOptions::default() });
    run("dcgan", &ZooOptions { batch: Some(3), seed: 4, ..ZooOptions::default() });
    run("lenet5", &ZooOptions { dtype: DataType::Float16, ..ZooOptions::default() });
}
