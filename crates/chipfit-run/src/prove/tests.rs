//! Rewrites made by hand (kernel 4, stride 2, pad 1: four 2x2 convolutions), and what must be noticed about them.

use chipfit_model::build::{attr_i, attr_is, attr_s, node, value_info};
use chipfit_model::proto::{GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto};
use chipfit_model::{ConstTensor, DataType, Limits, Model, Shapes};

use super::*;

const CHANNELS_IN: usize = 3;
const CHANNELS_OUT: usize = 2;
const KERNEL: usize = 4;

/// What is wrong with a written model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Nothing,
    /// One phase reads its row taps the wrong way round.
    TapOffByOne,
    /// Two phases change places.
    PhasesSwapped,
    /// One phase is padded at the other side.
    PadMoved,
    /// One phase is padded once more.
    PadAdded,
    /// One phase forgets a tap.
    TapLost,
    /// The bias of the two output channels is exchanged in one phase.
    BiasSwapped,
    /// A quantised phase has the weight scales of the other channels.
    ScalesSwapped,
    /// The scale of the output is another one in one phase.
    OutputScale,
    /// An added tap is 0 where the weight's zero point is not.
    ZeroTap,
    /// An explicit pad of the input is 0 where the input's zero point is not.
    ZeroPad,
    /// The activation is missing.
    ActivationLost,
    /// The weights are rounded to fewer bits.
    WeightsRounded,
}

#[derive(Clone, Copy, Debug)]
struct Setting {
    dtype: DataType,
    quantised: bool,
    relu: bool,
    biased: bool,
    fault: Fault,
}

fn tensor(name: &str, dtype: DataType, dims: &[usize], values: &[f64]) -> TensorProto {
    let bytes: Vec<u8> = values
        .iter()
        .flat_map(|&v| match dtype {
            DataType::Float => (v as f32).to_le_bytes().to_vec(),
            DataType::Double => v.to_le_bytes().to_vec(),
            DataType::Float16 => half::f16::from_f64(v).to_le_bytes().to_vec(),
            DataType::Bfloat16 => half::bf16::from_f64(v).to_le_bytes().to_vec(),
            DataType::Int32 => (v as i32).to_le_bytes().to_vec(),
            DataType::Int64 => (v as i64).to_le_bytes().to_vec(),
            DataType::Int8 => (v as i8).to_le_bytes().to_vec(),
            _ => vec![v as u8],
        })
        .collect();
    ConstTensor::new(dtype, dims.to_vec(), bytes).unwrap().to_proto(name)
}

fn model(
    opset: i64,
    input: DataType,
    output: DataType,
    nodes: Vec<NodeProto>,
    initializers: Vec<TensorProto>,
) -> Model {
    let dims = ["n".into(), 3.into(), "h".into(), "w".into()];
    let graph = GraphProto {
        name: Some("g".into()),
        node: nodes,
        initializer: initializers,
        input: vec![value_info("x", input, &dims)],
        output: vec![value_info("y", output, &["n".into(), 2.into(), "oh".into(), "ow".into()])],
        ..Default::default()
    };
    let proto = ModelProto {
        ir_version: Some(8),
        opset_import: vec![OperatorSetIdProto { version: Some(opset), ..Default::default() }],
        graph: graph.into(),
        ..Default::default()
    };
    // Through bytes, as a file would go.
    let bytes = Model { proto, folder: None }.to_bytes().unwrap();
    Model::from_bytes(bytes.into(), &Limits::default()).unwrap()
}

/// Weight values: floats, or quantised steps of uint8 around the channel's zero point.
fn weight(quantised: bool) -> Vec<f64> {
    let count = CHANNELS_IN * CHANNELS_OUT * KERNEL * KERNEL;
    (0..count as u64)
        .map(|i| {
            let bits = crate::interp::mix(i);
            if quantised { (bits % 256) as f64 } else { (bits % 2001) as f64 / 1000.0 - 1.0 }
        })
        .collect()
}

const X_SCALE: f64 = 0.017;
const X_ZERO: f64 = 117.0;
const W_SCALES: [f64; 2] = [0.0123, 0.031];
const W_ZEROS: [f64; 2] = [121.0, 77.0];
const Y_SCALE: f64 = 0.21;
const Y_ZERO: f64 = 131.0;
const BIASES: [f64; 2] = [0.75, -1.5];
const INTEGER_BIASES: [f64; 2] = [700.0, -3000.0];

/// `count` constants of the grid of `scales` and `zeros`, named `{name}_s` and `{name}_z`.
fn grid(name: &str, dims: &[usize], scales: &[f64], zeros: &[f64], zero_type: DataType) -> [TensorProto; 2] {
    [tensor(&format!("{name}_s"), DataType::Float, dims, scales), tensor(&format!("{name}_z"), zero_type, dims, zeros)]
}

fn dequantize(name: &str, axis: i64) -> NodeProto {
    let inputs = [name.to_owned(), format!("{name}_s"), format!("{name}_z")];
    node("DequantizeLinear", "", &inputs, &[format!("{name}_r")], vec![attr_i("axis", axis)])
}

fn original(s: Setting) -> Model {
    let dims = [CHANNELS_IN, CHANNELS_OUT, KERNEL, KERNEL];
    let attributes = vec![attr_is("strides", &[2, 2]), attr_is("pads", &[1, 1, 1, 1])];
    let relu = |from: &str, to: &str| node("Relu", "", &[from], &[to], vec![]);
    if !s.quantised {
        let initializers = vec![tensor("w", s.dtype, &dims, &weight(false)), tensor("b", s.dtype, &[2], &BIASES)];
        let mut nodes =
            vec![node("ConvTranspose", "up", &["x", "w", "b"], &[if s.relu { "t" } else { "y" }], attributes)];
        if s.relu {
            nodes.push(relu("t", "y"));
        }
        return model(13, s.dtype, s.dtype, nodes, initializers);
    }
    let bias_scales: Vec<f64> = W_SCALES.iter().map(|w| f64::from(X_SCALE as f32 * *w as f32)).collect();
    let mut initializers =
        vec![tensor("w", DataType::Uint8, &dims, &weight(true)), tensor("b", DataType::Int32, &[2], &INTEGER_BIASES)];
    initializers.extend(grid("x", &[], &[X_SCALE], &[X_ZERO], DataType::Uint8));
    initializers.extend(grid("w", &[2], &W_SCALES, &W_ZEROS, DataType::Uint8));
    initializers.extend(grid("b", &[2], &bias_scales, &[0.0, 0.0], DataType::Int32));
    initializers.extend(grid("y", &[], &[Y_SCALE], &[Y_ZERO], DataType::Uint8));
    let mut nodes = vec![
        dequantize("x", 1),
        dequantize("w", 1),
        dequantize("b", 0),
        node(
            "ConvTranspose",
            "up",
            if s.biased { &["x_r", "w_r", "b_r"][..] } else { &["x_r", "w_r"] },
            &["t"],
            attributes,
        ),
    ];
    if s.relu {
        nodes.push(relu("t", "a"));
    }
    let last = if s.relu { "a" } else { "t" };
    nodes.push(node("QuantizeLinear", "", &[last, "y_s", "y_z"], &["y"], vec![]));
    model(13, DataType::Uint8, DataType::Uint8, nodes, initializers)
}

/// The taps of phase `rho` along one axis, in the order of the convolution's kernel.
fn taps(rho: usize) -> [usize; 2] {
    if rho == 0 { [3, 1] } else { [2, 0] }
}

fn written(s: Setting) -> Model {
    let all = weight(s.quantised);
    let (mut nodes, mut initializers, mut phases) = (Vec::new(), Vec::new(), Vec::new());
    if s.quantised {
        initializers.extend(grid("x", &[], &[X_SCALE], &[X_ZERO], DataType::Uint8));
        initializers.extend(grid("y", &[], &[Y_SCALE], &[Y_ZERO], DataType::Uint8));
        initializers.push(tensor("other_s", DataType::Float, &[], &[Y_SCALE * 1.01]));
        // The input is padded by one on every side, in its own zero point, and phases crop by negative pads.
        let pad = if s.fault == Fault::ZeroPad { 0.0 } else { X_ZERO };
        initializers.push(tensor("pads", DataType::Int64, &[8], &[0., 0., 1., 1., 0., 0., 1., 1.]));
        initializers.push(tensor("pad", DataType::Uint8, &[], &[pad]));
        nodes.push(node("Pad", "", &["x", "pads", "pad"], &["p"], vec![attr_s("mode", "constant")]));
        nodes.push(node("DequantizeLinear", "", &["p", "x_s", "x_z"], &["x_r"], vec![]));
    }
    // Quantised phases carry one more tap at the end of each axis, which must count as zero.
    let size = if s.quantised { 3 } else { 2 };
    for (number, (ry, rx)) in [(0, 0), (0, 1), (1, 0), (1, 1)].into_iter().enumerate() {
        let faulty = |fault: Fault| s.fault == fault && number == 2;
        let mut w = Vec::new();
        for m in 0..CHANNELS_OUT {
            for c in 0..CHANNELS_IN {
                for (u, v) in (0..size).flat_map(|u| (0..size).map(move |v| (u, v))) {
                    let (mut ty, tx) = (taps(ry), taps(rx));
                    if faulty(Fault::TapOffByOne) {
                        ty.swap(0, 1);
                    }
                    let zero = if s.quantised && s.fault != Fault::ZeroTap { W_ZEROS[m] } else { 0.0 };
                    let value = match (ty.get(u), tx.get(v)) {
                        (Some(y), Some(x)) => all[((c * CHANNELS_OUT + m) * KERNEL + y) * KERNEL + x],
                        _ => zero,
                    };
                    let lost = faulty(Fault::TapLost) && (m, c, u, v) == (1, 2, 0, 1);
                    let rounded =
                        if s.fault == Fault::WeightsRounded { (value * 4096.0).round() / 4096.0 } else { value };
                    w.push(if lost { zero } else { rounded });
                }
            }
        }
        // Begins and ends of the phase itself: rho 0 reaches one before, rho 1 one behind.
        let (mut begins, mut ends) = ([1 - ry as i64, 1 - rx as i64], [ry as i64, rx as i64]);
        if faulty(Fault::PadMoved) {
            (begins[1], ends[1]) = (ends[1], begins[1]);
        }
        if faulty(Fault::PadAdded) {
            ends[0] += 1;
        }
        let name = |part: &str| format!("{part}{number}");
        let (mut biases, mut steps) = (BIASES, INTEGER_BIASES);
        if faulty(Fault::BiasSwapped) {
            biases.swap(0, 1);
            steps.swap(0, 1);
        }
        let dims = [CHANNELS_OUT, CHANNELS_IN, size, size];
        if s.quantised {
            // One is already there, and the added tap looks one further.
            let pads = [begins[0] - 1, begins[1] - 1, ends[0], ends[1]];
            let mut scales = W_SCALES;
            if faulty(Fault::ScalesSwapped) {
                scales.swap(0, 1);
            }
            let bias_scales: Vec<f64> = W_SCALES.iter().map(|w| f64::from(X_SCALE as f32 * *w as f32)).collect();
            initializers.push(tensor(&name("w"), DataType::Uint8, &dims, &w));
            initializers.extend(grid(&name("w"), &[2], &scales, &W_ZEROS, DataType::Uint8));
            initializers.push(tensor(&name("b"), DataType::Int32, &[2], &steps));
            initializers.extend(grid(&name("b"), &[2], &bias_scales, &[0.0, 0.0], DataType::Int32));
            nodes.push(dequantize(&name("w"), 0));
            nodes.push(dequantize(&name("b"), 0));
            let mut inputs = vec!["x_r".to_owned(), name("w") + "_r", name("b") + "_r"];
            inputs.truncate(if s.biased { 3 } else { 2 });
            nodes.push(node("Conv", "", &inputs, &[name("c")], vec![attr_is("pads", &pads)]));
            let active = s.relu && !faulty(Fault::ActivationLost);
            if active {
                nodes.push(node("Relu", "", &[name("c")], &[name("a")], vec![]));
            }
            let scale = if faulty(Fault::OutputScale) { "other_s" } else { "y_s" };
            let last = if active { name("a") } else { name("c") };
            nodes.push(node("QuantizeLinear", "", &[&last, scale, "y_z"], &[name("q").as_str()], vec![]));
        } else {
            initializers.push(tensor(&name("w"), s.dtype, &dims, &w));
            initializers.push(tensor(&name("b"), s.dtype, &[2], &biases));
            let pads = [begins[0], begins[1], ends[0], ends[1]];
            let inputs = ["x".to_owned(), name("w"), name("b")];
            nodes.push(node("Conv", "", &inputs, &[name("q")], vec![attr_is("pads", &pads)]));
        }
        phases.push(name("q"));
    }
    if s.fault == Fault::PhasesSwapped {
        phases.swap(1, 2);
    }
    nodes.push(node("Concat", "", &phases, &["joined"], vec![attr_i("axis", 1)]));
    let active = s.relu && !s.quantised && s.fault != Fault::ActivationLost;
    let woven = if active { "t" } else { "y" };
    let weave = vec![attr_i("blocksize", 2), attr_s("mode", "DCR")];
    nodes.push(node("DepthToSpace", "", &["joined"], &[woven], weave));
    if active {
        nodes.push(node("Relu", "", &["t"], &["y"], vec![]));
    }
    let dtype = if s.quantised { DataType::Uint8 } else { s.dtype };
    model(13, dtype, dtype, nodes, initializers)
}

fn claim(s: Setting) -> Claim {
    Claim {
        scope: 0,
        input: "x".into(),
        output: "y".into(),
        conv_transpose: if s.relu || s.quantised { "t".into() } else { "y".into() },
        name: "up".into(),
        exact: true,
    }
}

fn proof(s: Setting) -> NodeProof {
    let options = ProveOptions { inputs: 3, seed: 11, ..Default::default() };
    let (before, after) = (original(s), written(s));
    let proofs = prove(&before, &after, &Shapes::default(), &[claim(s)], &options, &mut |_, _| {}).unwrap();
    proofs.into_iter().next().unwrap()
}

fn float(dtype: DataType, relu: bool, fault: Fault) -> Setting {
    Setting { dtype, quantised: false, relu, biased: true, fault }
}

fn integer(relu: bool, fault: Fault) -> Setting {
    Setting { dtype: DataType::Float, quantised: true, relu, biased: true, fault }
}

const FLOATS: [DataType; 4] = [DataType::Float, DataType::Double, DataType::Float16, DataType::Bfloat16];

#[test]
fn a_right_rewrite_is_proven_in_every_float_type() {
    for dtype in FLOATS {
        for relu in [false, true] {
            let proof = proof(float(dtype, relu, Fault::Nothing));
            assert_eq!(proof.verdict, Verdict::Proven, "{dtype:?} relu {relu}: {proof:?}");
            assert_eq!(proof.index_algebra, Some(Equality::Equal));
            assert_eq!(proof.inputs, 3);
            let worst = proof.worst_ratio.unwrap();
            assert!(worst <= 1.0, "{worst}");
            // Sums in another order do differ; a difference of nothing would mean that one side was read twice.
            assert!(proof.max_abs > 0.0, "{dtype:?}");
        }
    }
}

#[test]
fn a_right_quantised_rewrite_is_proven_exactly() {
    for relu in [false, true] {
        let proof = proof(integer(relu, Fault::Nothing));
        assert_eq!(proof.verdict, Verdict::Proven, "{proof:?}");
        assert_eq!(proof.max_abs, 0.0);
        let integer = proof.integer.unwrap();
        assert_eq!(integer, IntegerProof { accumulators: Equality::Equal, outputs: Some(Equality::Equal) });
    }
}

#[test]
fn every_float_mutant_fails() {
    use Fault::*;
    for dtype in FLOATS {
        for fault in [TapOffByOne, PhasesSwapped, PadMoved, PadAdded, TapLost, BiasSwapped, ActivationLost] {
            let s = float(dtype, true, fault);
            let proof = proof(s);
            assert!(matches!(proof.verdict, Verdict::Failed(_)), "{s:?}: {proof:?}");
        }
    }
    // Rounded weights keep the index algebra's zeros; the values give them away.
    let rounded = proof(float(DataType::Float, false, WeightsRounded));
    assert!(matches!(rounded.verdict, Verdict::Failed(_)), "{rounded:?}");
}

#[test]
fn every_quantised_mutant_fails() {
    use Fault::*;
    let faults = [
        TapOffByOne,
        PhasesSwapped,
        PadMoved,
        PadAdded,
        TapLost,
        BiasSwapped,
        ScalesSwapped,
        OutputScale,
        ZeroTap,
        ZeroPad,
        ActivationLost,
    ];
    for fault in faults {
        let s = integer(true, fault);
        let proof = proof(s);
        assert!(matches!(proof.verdict, Verdict::Failed(_)), "{s:?}: {proof:?}");
    }
}

#[test]
fn scales_in_the_wrong_order_show_where_accumulators_agree() {
    // Without a bias nothing but the requantised outputs can tell.
    let wrong = proof(Setting { biased: false, ..integer(false, Fault::ScalesSwapped) });
    let integers = wrong.integer.unwrap();
    assert!(integers.accumulators.holds() && !integers.outputs.unwrap().holds());
    assert!(matches!(wrong.verdict, Verdict::Failed(_)));
    assert!(wrong.max_abs >= 1.0);
    let right = proof(Setting { biased: false, ..integer(false, Fault::Nothing) });
    assert_eq!(right.verdict, Verdict::Proven);
    let scale = proof(integer(false, Fault::OutputScale)).integer.unwrap();
    assert!(scale.accumulators.holds() && !scale.outputs.unwrap().holds());
}

/// `inner`'s nodes as the first branch of an If, its constants one scope further out, its weight behind Identity.
fn inside_a_branch(inner: &Model) -> Model {
    let mut outer = inner.clone();
    let mut graph = outer.proto.graph.clone();
    let graph = &mut *graph.as_option_mut().unwrap();
    let mut nodes = std::mem::take(&mut graph.node);
    for n in nodes.iter_mut().filter(|n| matches!(n.op_type.as_deref(), Some("ConvTranspose" | "Conv"))) {
        n.input[1].push_str("_outer");
    }
    let names: Vec<String> =
        graph.initializer.iter().filter_map(|t| t.name.clone()).filter(|n| n.starts_with('w')).collect();
    graph.node = names.iter().map(|n| node("Identity", "", &[n.as_str()], &[format!("{n}_outer")], vec![])).collect();
    let branch = |nodes: Vec<NodeProto>, output: &str| {
        let output = vec![value_info(output, DataType::Float, &[])];
        GraphProto { name: Some("branch".into()), node: nodes, output, ..Default::default() }
    };
    let other = branch(vec![node("Identity", "", &["x"], &["z"], vec![])], "z");
    let attribute = |name: &str, g: GraphProto| chipfit_model::proto::AttributeProto {
        name: Some(name.into()),
        r#type: Some(chipfit_model::proto::attribute_proto::AttributeType::GRAPH),
        g: g.into(),
        ..Default::default()
    };
    let branches = vec![attribute("then_branch", branch(nodes, "y")), attribute("else_branch", other)];
    graph.initializer.push(tensor("condition", DataType::Uint8, &[], &[1.0]));
    graph.node.push(node("If", "", &["condition"], &["result"], branches));
    graph.output = vec![value_info("result", DataType::Float, &[])];
    outer.proto.graph = graph.clone().into();
    Model::from_bytes(outer.to_bytes().unwrap().into(), &Limits::default()).unwrap()
}

#[test]
fn a_branch_that_reads_constants_from_outside_is_proven() {
    for (fault, proven) in [(Fault::Nothing, true), (Fault::TapLost, false)] {
        let s = float(DataType::Float, false, fault);
        let (before, after) = (inside_a_branch(&original(s)), inside_a_branch(&written(s)));
        let claim = Claim { scope: 1, ..claim(s) };
        let proofs = prove(&before, &after, &Shapes::default(), &[claim], &ProveOptions::default(), &mut |_, _| {});
        let verdict = proofs.unwrap().remove(0).verdict;
        assert_eq!(verdict == Verdict::Proven, proven, "{verdict:?}");
    }
}

#[test]
fn an_approximate_form_is_measured_and_not_judged() {
    let s = float(DataType::Float, false, Fault::PadMoved);
    let claim = Claim { exact: false, ..claim(s) };
    let proofs =
        prove(&original(s), &written(s), &Shapes::default(), &[claim], &ProveOptions::default(), &mut |_, _| {})
            .unwrap();
    assert_eq!(proofs[0].verdict, Verdict::NotJudged);
    assert!(proofs[0].max_abs > 0.1, "{:?}", proofs[0]);
}

#[test]
fn a_claim_that_cannot_be_looked_up_fails_by_name() {
    let s = float(DataType::Float, false, Fault::Nothing);
    let (before, after) = (original(s), written(s));
    let verdict = |before: &Model, after: &Model, claim: Claim| {
        let options = ProveOptions::default();
        prove(before, after, &Shapes::default(), &[claim], &options, &mut |_, _| {}).unwrap().remove(0).verdict
    };
    let said = |verdict: Verdict, word: &str| match verdict {
        Verdict::Failed(why) => assert!(why.contains(word), "{why}"),
        other => panic!("{other:?}"),
    };
    said(verdict(&before, &after, Claim { output: "nowhere".into(), ..claim(s) }), "nowhere");
    said(verdict(&before, &after, Claim { input: "joined".into(), ..claim(s) }), "joined");
    said(verdict(&before, &after, Claim { scope: 7, ..claim(s) }), "y");
    said(verdict(&before, &after, Claim { conv_transpose: "z".into(), ..claim(s) }), "another");
    said(verdict(&before, &before, claim(s)), "still has a ConvTranspose");
    said(verdict(&after, &after, claim(s)), "exactly one");
}

#[test]
fn operators_outside_the_list_are_named() {
    let s = float(DataType::Float, false, Fault::Nothing);
    let nodes = vec![node("Erf", "odd one", &["x"], &["y"], vec![])];
    let after = model(13, DataType::Float, DataType::Float, nodes, vec![]);
    let proofs =
        prove(&original(s), &after, &Shapes::default(), &[claim(s)], &ProveOptions::default(), &mut |_, _| {}).unwrap();
    let Verdict::Failed(why) = &proofs[0].verdict else { panic!("{proofs:?}") };
    assert!(why.contains("odd one") && why.contains("Erf"), "{why}");
}

#[test]
fn the_same_seed_gives_the_same_proof() {
    let s = float(DataType::Float, true, Fault::Nothing);
    assert_eq!(proof(s), proof(s));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    assert_eq!(pool.install(|| proof(s)), proof(s));
}
