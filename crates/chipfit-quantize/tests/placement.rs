//! Where QuantizeLinear and DequantizeLinear go, which scales are shared, what the tensors are called.

mod support;

use chipfit_model::build::{attr_i, attr_is, is_op, node};
use chipfit_model::proto::{AttributeProto, GraphProto};
use chipfit_model::{DataType, Model};
use chipfit_quantize::{Activations, METADATA_KEY, Method, Options, Prepared, QuantizeError, Weights, sqnr_db};
use support::{Net, constant, maker, operators, quantised, readers, run};

const DIMS: [usize; 4] = [2, 3, 8, 8];
const PICTURE: [i64; 4] = [2, 3, 8, 8];

/// Convolution, Relu, pooling, a residual block with Concat, and a dense head.
fn classifier() -> Model {
    let mut net = Net::new(11);
    net.conv("x", "c1", 3, 4, true);
    net.norm("c1", "n1", 4);
    net.node("Relu", &["n1"], "r1", Vec::new());
    net.node("MaxPool", &["r1"], "p1", vec![attr_is("kernel_shape", &[2, 2]), attr_is("strides", &[2, 2])]);
    net.conv("p1", "c2", 4, 4, true);
    net.node("Add", &["c2", "p1"], "a", Vec::new());
    net.node("Relu", &["a"], "r2", Vec::new());
    net.conv("r2", "c3", 4, 4, false);
    net.node("Relu", &["c3"], "r3", Vec::new());
    net.node("Concat", &["r2", "r3"], "j", vec![attr_i("axis", 1)]);
    net.node("GlobalAveragePool", &["j"], "g", Vec::new());
    net.node("Flatten", &["g"], "f", vec![attr_i("axis", 1)]);
    net.random("fc.w", &[10, 8], 0.5);
    net.random("fc.b", &[10], 0.5);
    net.node("Gemm", &["f", "fc.w", "fc.b"], "logits", vec![attr_i("transB", 1)]);
    net.node("Softmax", &["logits"], "y", vec![attr_i("axis", -1)]);
    net.model(&PICTURE, "y")
}

fn all_options() -> Vec<Options> {
    let mut all = Vec::new();
    for activations in [Activations::Uint8, Activations::Int8Symmetric, Activations::Int8Asymmetric] {
        for weights in [Weights::PerChannel, Weights::PerTensor] {
            for power_of_two in [false, true] {
                for method in [Method::MinMax, Method::Percentile(99.9), Method::Entropy] {
                    all.push(Options { method, activations, weights, power_of_two });
                }
            }
        }
    }
    all
}

#[test]
fn every_product_reads_and_makes_integers_whatever_the_options() {
    let float = classifier();
    for options in all_options() {
        let (model, report, batches) = quantised(&float, &DIMS, &options);
        for n in model.graph().node.iter().filter(|n| ["Conv", "Gemm", "Add", "Concat"].iter().any(|op| is_op(n, op))) {
            for name in &n.input {
                assert!(is_op(maker(&model, name), "DequantizeLinear"), "{options}: {name}");
            }
            for reader in readers(&model, &n.output[0]) {
                let clipped = is_op(reader, "Relu") && options.activations == Activations::Int8Symmetric;
                assert!(is_op(reader, "QuantizeLinear") || clipped, "{options}: {:?}", n.output);
            }
        }
        // Symmetric integers have room below 0 that a Relu must cut off; the others begin at 0.
        let relus = operators(&model).iter().filter(|op| *op == "Relu").count();
        assert_eq!(relus, if options.activations == Activations::Int8Symmetric { 3 } else { 0 }, "{options}");
        assert_eq!(report.removed_activations + relus, 3);
        assert_eq!(report.float_nodes.iter().map(|n| n.operator.as_str()).collect::<Vec<_>>(), ["Softmax"]);
        assert_eq!(report.warnings, Vec::<String>::new());
        let (want, have) = (run(&float, &DIMS, &batches[0]), run(&model, &DIMS, &batches[0]));
        let least = if options.power_of_two || options.method == Method::Entropy { 15.0 } else { 25.0 };
        assert!(sqnr_db(&want, &have) > least, "{options}: {}", sqnr_db(&want, &have));
    }
}

#[test]
fn moves_share_the_scale_of_what_they_move() {
    let (model, report, _) = quantised(&classifier(), &DIMS, &Options::default());
    let quantizer = |name: &str| {
        let quantize = readers(&model, name).into_iter().find(|n| is_op(n, "QuantizeLinear")).unwrap();
        (quantize.input[1].clone(), quantize.input[2].clone())
    };
    assert_eq!(quantizer("p1"), quantizer("r1"));
    assert_eq!(quantizer("f"), quantizer("g"));
    assert_eq!(quantizer("j"), quantizer("r2"));
    assert_eq!(quantizer("j"), quantizer("r3"));
    assert_ne!(quantizer("c2"), quantizer("r2"));
    let by_name = |name: &str| report.tensors.iter().find(|t| t.name == name).unwrap();
    assert_eq!(by_name("r2").source, "j");
    assert_eq!(by_name("r2").seen, by_name("r3").seen);
}

#[test]
fn a_relu_stays_where_a_shared_scale_reaches_below_zero() {
    let mut net = Net::new(13);
    net.conv("x", "a", 3, 4, true);
    net.node("Relu", &["a"], "r", Vec::new());
    net.conv("x", "b", 3, 4, true);
    net.node("Concat", &["r", "b"], "j", vec![attr_i("axis", 1)]);
    net.conv("j", "y", 8, 2, true);
    let float = net.model(&PICTURE, "y");
    let (model, report, batches) = quantised(&float, &DIMS, &Options::default());
    assert_eq!(report.removed_activations, 0);
    assert!(report.tensors.iter().any(|t| t.name == "r" && t.source == "j" && t.zero_point > 0));
    let (want, have) = (run(&float, &DIMS, &batches[0]), run(&model, &DIMS, &batches[0]));
    assert!(sqnr_db(&want, &have) > 25.0);
}

#[test]
fn concat_keeps_scales_apart_that_are_too_different() {
    let mut net = Net::new(21);
    net.conv("x", "a", 3, 3, true);
    net.constant("tiny", &[], &[0.01]);
    net.node("Tanh", &["x"], "t", Vec::new());
    net.node("Mul", &["t", "tiny"], "b", Vec::new());
    net.node("Concat", &["a", "b"], "j", vec![attr_i("axis", 1)]);
    net.conv("j", "y", 6, 2, true);
    let (_, report, _) = quantised(&net.model(&PICTURE, "y"), &DIMS, &Options::default());
    let scale = |name: &str| report.tensors.iter().find(|t| t.name == name).unwrap().scale;
    assert!(scale("b") * 16.0 < scale("j"), "{} {}", scale("b"), scale("j"));
}

#[test]
fn names_keep_the_names_of_the_float_model() {
    let (model, report, _) = quantised(&classifier(), &DIMS, &Options::default());
    for name in ["x_quantized", "r1_quantized", "p1_quantized", "c2_quantized", "r2_quantized", "logits_quantized"] {
        assert!(is_op(maker(&model, name), "QuantizeLinear"), "{name}");
        assert!(report.tensors.iter().any(|t| t.integer == name));
    }
    assert_eq!(constant(&model, "c1.w_quantized").dtype(), DataType::Int8);
    assert_eq!(constant(&model, "c1.b_quantized").dtype(), DataType::Int32);
    assert_eq!(constant(&model, "c1.w_scale").dims(), [4]);
    assert_eq!(model.graph().output[0].name.as_deref(), Some("y"));
    let properties = &model.proto.metadata_props;
    let options = properties.iter().find(|p| p.key.as_deref() == Some(METADATA_KEY)).unwrap();
    assert_eq!(options.value.as_deref(), Some("activations uint8, weights int8 per-channel, minmax"));
    assert_eq!(model.proto.producer_name.as_deref(), Some("chipfit"));
}

#[test]
fn an_output_of_the_model_keeps_its_name() {
    let mut net = Net::new(31);
    net.conv("x", "y", 3, 2, true);
    let (model, _, _) = quantised(&net.model(&PICTURE, "y"), &DIMS, &Options::default());
    assert!(is_op(maker(&model, "y"), "DequantizeLinear"));
    assert!(is_op(maker(&model, "y_quantized"), "QuantizeLinear"));
    assert!(is_op(maker(&model, "y_float"), "Conv"));
}

#[test]
fn biases_are_in_units_of_the_accumulator() {
    for options in all_options() {
        let (model, _, _) = quantised(&classifier(), &DIMS, &options);
        for n in model.graph().node.iter().filter(|n| n.input.len() == 3 && (is_op(n, "Conv") || is_op(n, "Gemm"))) {
            let scale = |name: &str| {
                let data = constant(&model, &maker(&model, name).input[1]);
                data.to_f64_vec().unwrap().iter().map(|&v| v as f32).collect::<Vec<_>>()
            };
            let (x, w, b) = (scale(&n.input[0]), scale(&n.input[1]), scale(&n.input[2]));
            assert_eq!(b, w.iter().map(|w| x[0] * w).collect::<Vec<_>>(), "{options}: {:?}", n.name);
            if options.power_of_two {
                assert!(x.iter().chain(&w).all(|s| s.to_bits() & 0x7f_ffff == 0), "{options}");
            }
        }
    }
}

#[test]
fn a_clip_goes_only_where_saturation_does_its_work() {
    let net = |low: f32, high: f32| {
        let mut net = Net::new(41);
        net.conv("x", "c", 3, 4, true);
        net.constant("low", &[], &[low]);
        net.constant("high", &[], &[high]);
        net.node("Clip", &["c", "low", "high"], "k", Vec::new());
        net.conv("k", "y", 4, 2, true);
        net.model(&PICTURE, "y")
    };
    let clips = |model: &Model, options: Options| {
        operators(&quantised(model, &DIMS, &options).0).iter().filter(|op| *op == "Clip").count()
    };
    let default = Options::default();
    // Every value seen ends at the bound, so the range does, too.
    assert_eq!(clips(&net(0.0, 0.5), default), 0);
    assert_eq!(clips(&net(-0.25, 0.5), default), 0);
    // 0.5 / 2^-8 = 128: the integers above it must be cut off.
    assert_eq!(clips(&net(0.0, 0.5), Options { power_of_two: true, ..default }), 1);
    assert_eq!(clips(&net(0.0, 0.5), Options { activations: Activations::Int8Symmetric, ..default }), 1);
    // Nothing reaches the bound: the range ends before it, and saturation cuts off more.
    assert_eq!(clips(&net(0.0, 1e6), default), 0);
    // With uint8 the convolution is quantised before a Clip that stays, on the same scale.
    let (model, _, batches) = quantised(&net(0.0, 0.5), &DIMS, &Options { power_of_two: true, ..default });
    assert_eq!(maker(&model, "c_quantized").input[1], maker(&model, "k_quantized").input[1]);
    let (want, have) = (run(&net(0.0, 0.5), &DIMS, &batches[0]), run(&model, &DIMS, &batches[0]));
    assert!(sqnr_db(&want, &have) > 25.0);
}

#[test]
fn operators_without_an_integer_form_stay_in_float_and_are_named() {
    let mut net = Net::new(51);
    net.conv("x", "c", 3, 4, true);
    net.node("Erf", &["c"], "e", Vec::new());
    net.conv("e", "y", 4, 2, true);
    let (model, report, _) = quantised(&net.model(&PICTURE, "y"), &DIMS, &Options::default());
    assert!(is_op(maker(&model, &maker(&model, "e").input[0]), "DequantizeLinear"));
    assert!(is_op(readers(&model, "e")[0], "QuantizeLinear"));
    assert_eq!(report.warnings.len(), 1);
    assert!(report.warnings[0].contains("node_e") && report.warnings[0].contains("Erf"), "{:?}", report.warnings);
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    for method in [Method::MinMax, Method::Percentile(99.0), Method::Entropy] {
        let options = Options { method, ..Options::default() };
        let bytes = || quantised(&classifier(), &DIMS, &options).0.to_bytes().unwrap();
        assert_eq!(bytes(), bytes());
    }
}

#[test]
fn what_cannot_be_quantised_is_refused_by_name() {
    let refusal = |model: &Model| Prepared::new(model).err().unwrap();
    let (model, _, _) = quantised(&classifier(), &DIMS, &Options::default());
    assert!(matches!(refusal(&model), QuantizeError::AlreadyQuantised { .. }));

    let mut net = Net::new(61);
    let branch =
        AttributeProto { g: GraphProto::default().into(), name: Some("then_branch".to_owned()), ..Default::default() };
    net.conv("x", "c", 3, 2, true);
    net.nodes.push(node("If", "choice", &["c"], &["y"], vec![branch]));
    assert!(refusal(&net.model(&PICTURE, "y")).to_string().contains("'choice'"));

    let mut net = Net::new(62);
    net.node("Exp", &["x"], "y", Vec::new());
    assert!(matches!(refusal(&net.model(&PICTURE, "y")), QuantizeError::NothingToQuantise));

    let mut net = Net::new(63);
    net.opset = 12;
    net.conv("x", "c", 3, 2, true);
    net.node("Celu", &["c"], "y", Vec::new());
    assert!(refusal(&net.model(&PICTURE, "y")).to_string().contains("node_y"));

    let mut net = Net::new(64);
    net.conv("x", "c", 3, 2, true);
    net.norm("c", "y", 3);
    assert!(refusal(&net.model(&PICTURE, "y")).to_string().contains("3 channels"));

    let mut net = Net::new(65);
    net.conv("x", "c", 3, 2, true);
    net.norm("c", "y", 2);
    net.nodes[1].attribute.push(attr_i("training_mode", 1));
    assert!(refusal(&net.model(&PICTURE, "y")).to_string().contains("training mode"));
}

#[test]
fn values_that_are_not_finite_are_refused_by_tensor() {
    let mut net = Net::new(71);
    net.conv("x", "c", 3, 2, true);
    net.node("Relu", &["c"], "y", Vec::new());
    let model = net.model(&PICTURE, "y");
    let prepared = Prepared::new(&model).unwrap();
    let engine = chipfit_run::engine::RtenEngine::default();
    let mut calibration = chipfit_quantize::Calibration::new(&prepared, &engine, &Options::default()).unwrap();
    let mut values = vec![0.5; 2 * 3 * 64];
    values[7] = f32::NAN;
    let error = calibration.observe_floats(&DIMS, &values).unwrap_err();
    assert!(matches!(error, QuantizeError::NotFinite { ref tensor, .. } if tensor == "x"), "{error}");
    let calibration = chipfit_quantize::Calibration::new(&prepared, &engine, &Options::default()).unwrap();
    assert!(matches!(calibration.finish(), Err(QuantizeError::NotCalibrated { .. })));
}
