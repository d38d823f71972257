//! What the planner decides, keeps and refuses, and what the emitted nodes look like.

use std::collections::BTreeMap;

use chipfit_deconv::target::Target;
use chipfit_deconv::{Crop, Form, Interleave, NodeReport, Options, RewriteError, plan};
use chipfit_model::build::{DimSpec, attr_i, attr_is, get_is, is_op, node, value_info};
use chipfit_model::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto};
use chipfit_model::{ConstTensor, DataType, Index, Model, shape};

/// One ConvTranspose on `[1, channels_in, n, n]`.
struct Case {
    channels_in: usize,
    channels_out: usize,
    group: usize,
    kernel: usize,
    n: i64,
    attributes: Vec<AttributeProto>,
    /// Put in before, so that its outputs can feed the node.
    before: Vec<NodeProto>,
    weight: &'static str,
    extra: Vec<(&'static str, ConstTensor)>,
}

impl Case {
    fn new(channels_in: usize, channels_out: usize, kernel: usize, attributes: Vec<AttributeProto>) -> Self {
        let (before, extra) = (Vec::new(), Vec::new());
        Self { channels_in, channels_out, group: 1, kernel, n: 8, attributes, before, weight: "w", extra }
    }

    fn model(&self) -> Model {
        let dims = vec![self.channels_in, self.channels_out / self.group, self.kernel, self.kernel];
        let count: usize = dims.iter().product();
        let values: Vec<f32> = (0..count).map(|i| (i % 251) as f32 - 125.0).collect();
        let mut initializer = vec![ConstTensor::from_f32(dims, &values).unwrap().to_proto("w")];
        initializer.extend(self.extra.iter().map(|(name, t)| t.to_proto(name)));
        let mut attributes = self.attributes.clone();
        attributes.push(attr_i("group", self.group as i64));
        let mut nodes = self.before.clone();
        nodes.push(node("ConvTranspose", "up", &["x", self.weight], &["y"], attributes));
        let dims: Vec<DimSpec> = vec![1.into(), (self.channels_in as i64).into(), self.n.into(), self.n.into()];
        let graph = GraphProto {
            name: Some("g".into()),
            node: nodes,
            initializer,
            input: vec![value_info("x", DataType::Float, &dims)],
            output: vec![value_info("y", DataType::Float, &["a".into(), "b".into(), "c".into(), "d".into()])],
            ..Default::default()
        };
        let opset = OperatorSetIdProto { version: Some(13), ..Default::default() };
        let proto =
            ModelProto { ir_version: Some(8), opset_import: vec![opset], graph: graph.into(), ..Default::default() };
        Model { proto, folder: None }
    }
}

/// The report of the model's only ConvTranspose, and the model afterwards.
fn rewritten(mut model: Model, options: &Options) -> (NodeReport, Model) {
    let index = Index::new(&model);
    let shapes = shape::infer(&index, &BTreeMap::new()).unwrap();
    let mut rewrite = plan(&index, &shapes, options).unwrap();
    model.apply(&rewrite.patch).unwrap();
    (rewrite.nodes.remove(0), model)
}

fn strides(s: i64) -> AttributeProto {
    attr_is("strides", &[s, s])
}

fn on(target: &str) -> Options {
    Options { target: Some(Target::load(target).unwrap()), ..Options::default() }
}

fn count(model: &Model, op: &str) -> usize {
    model.graph().node.iter().filter(|n| is_op(n, op)).count()
}

#[test]
fn the_fixed_rule_turns_at_sixteen_output_channels() {
    for (channels, form) in [(16, Form::Fused), (17, Form::Split)] {
        let (report, _) = rewritten(Case::new(3, channels, 4, vec![strides(2)]).model(), &Options::default());
        assert_eq!(report.form, Some(form), "{channels} channels");
    }
}

#[test]
fn split_counts_what_the_original_counts_where_the_output_is_stride_times_the_input() {
    let case = Case::new(8, 32, 4, vec![strides(2), attr_is("pads", &[1, 1, 1, 1])]);
    let (report, _) = rewritten(case.model(), &Options::default());
    // 8*8 inputs, 8 channels, 32 channels, 4*4 taps.
    assert_eq!(report.macs_before, Some(8 * 8 * 8 * 32 * 16));
    assert_eq!(report.macs_after, report.macs_before);
    assert_eq!(report.macs_zero_pad, Some(4 * 8 * 8 * 8 * 32 * 16));
    assert_eq!((report.params_before, report.params_after), (8 * 32 * 16, 8 * 32 * 16));
}

#[test]
fn auto_keeps_a_node_that_the_target_is_estimated_to_do_faster_itself() {
    let mut target = Target::load("onnxruntime-cpu").unwrap();
    target.cost.native_efficiency = 1000.0;
    target.cost.moved_elements_per_cycle = 1e9;
    let mut options = Options { target: Some(target), ..Options::default() };
    let case = Case::new(32, 32, 4, vec![strides(2)]);
    let (report, model) = rewritten(case.model(), &options);
    assert_eq!((report.form, count(&model, "ConvTranspose")), (None, 1), "{}", report.reason);
    // The same target without the operator has no choice.
    options.target.as_mut().unwrap().ops.conv_transpose = false;
    let (report, model) = rewritten(case.model(), &options);
    assert_eq!((report.form.is_some(), count(&model, "ConvTranspose")), (true, 0), "{}", report.reason);
}

#[test]
fn a_target_without_depth_to_space_gets_neither_it_nor_transpose() {
    for channels in [3, 32] {
        let (report, model) = rewritten(Case::new(4, channels, 5, vec![strides(2)]).model(), &on("no-depth-to-space"));
        assert_eq!(report.interleave, Some(Interleave::Concat));
        assert_eq!((count(&model, "DepthToSpace"), count(&model, "Transpose")), (0, 0));
    }
}

#[test]
fn a_form_over_a_limit_is_not_taken() {
    // 33 taps over two phases are 17 and 16: no form stays within edge-npu's 16.
    let (report, model) = rewritten(Case::new(2, 2, 33, vec![strides(2)]).model(), &on("edge-npu"));
    assert_eq!(report.form, None, "{}", report.reason);
    assert!(report.reason.contains("over the limit 16"), "{}", report.reason);
    assert_eq!(count(&model, "ConvTranspose"), 1);
    let mut grouped = Case::new(4, 4, 4, vec![strides(2)]);
    grouped.group = 2;
    let (report, _) = rewritten(grouped.model(), &on("edge-npu"));
    assert!(report.form.is_none() && report.reason.contains("grouped"), "{}", report.reason);
}

#[test]
fn no_convolution_has_more_output_channels_than_asked_for() {
    for (group, limit) in [(1, 5), (2, 5), (4, 5), (4, 1)] {
        for form in [Form::Split, Form::RowSplit, Form::Fused, Form::ZeroPad] {
            let mut case = Case::new(8, 16, 3, vec![strides(2)]);
            case.group = group;
            let options = Options { form: Some(form), max_channels: Some(limit), ..Options::default() };
            let (report, model) = rewritten(case.model(), &options);
            let widest = report.work.iter().map(|w| w.channels_out).max();
            assert!(widest <= Some(limit), "{form:?} group {group}: {widest:?}");
            let weights: BTreeMap<&str, i64> =
                model.graph().initializer.iter().map(|t| (t.name.as_deref().unwrap(), t.dims[0])).collect();
            for conv in model.graph().node.iter().filter(|n| is_op(n, "Conv")) {
                assert!(weights[conv.input[1].as_str()] <= limit as i64, "{form:?} group {group}");
            }
        }
    }
}

#[test]
fn alignment_needs_no_slice_at_the_begin() {
    for pad in 0..4 {
        let attributes = vec![strides(3), attr_is("pads", &[pad; 4])];
        let options = Options { form: Some(Form::Fused), crop: Crop::Alignment, ..Options::default() };
        let (_, model) = rewritten(Case::new(2, 2, 5, attributes).model(), &options);
        let tensors: BTreeMap<&str, _> =
            model.graph().initializer.iter().map(|t| (t.name.as_deref().unwrap(), t)).collect();
        for slice in model.graph().node.iter().filter(|n| is_op(n, "Slice")) {
            let starts = model.tensor(tensors[slice.input[1].as_str()]).unwrap().to_i64_vec().unwrap();
            assert!(starts.iter().all(|&s| s == 0), "pad {pad}: starts {starts:?}");
        }
    }
}

#[test]
fn tight_convolutions_have_the_reduced_dilation() {
    let attributes = vec![strides(2), attr_is("dilations", &[4, 3])];
    let (_, model) = rewritten(Case::new(2, 32, 3, attributes).model(), &Options::default());
    let convs: Vec<_> = model.graph().node.iter().filter(|n| is_op(n, "Conv")).collect();
    // Stride 2, dilation 4: all taps fall on the even phase, two inputs apart. Dilation 3: both phases, three apart.
    assert_eq!(convs.len(), 2);
    assert!(convs.iter().all(|c| get_is(c, "dilations").unwrap()[0] == 2), "{convs:?}");
    assert_eq!(count(&model, "Expand"), 2, "the odd phase of the first axis is the bias alone");
}

#[test]
fn what_cannot_be_expressed_stays_and_says_why() {
    let weights = || ConstTensor::new(DataType::Int8, vec![4, 2, 3, 3], vec![1; 72]).unwrap();
    let scales = |n: usize| ConstTensor::from_f32(vec![n], &vec![0.5; n]).unwrap();
    let dequantize = |axis| node("DequantizeLinear", "", &["wq", "ws"], &["wr"], vec![attr_i("axis", axis)]);
    let quantised = |axis, count| Case {
        before: vec![dequantize(axis)],
        weight: "wr",
        extra: vec![("wq", weights()), ("ws", scales(count))],
        ..Case::new(4, 2, 3, vec![strides(2)])
    };
    let computed = Case {
        before: vec![node("Relu", "", &["w"], &["wr"], vec![])],
        weight: "wr",
        ..Case::new(4, 2, 3, vec![strides(2)])
    };
    let cases = [
        (quantised(0, 4), "per-input-channel scales"),
        (computed, "computed at run time"),
        (Case::new(4, 2, 3, vec![strides(2), attr_i("window", 3)]), "unknown attribute 'window'"),
        (Case::new(4, 2, 3, vec![strides(0)]), "below 1"),
        (Case::new(4, 2, 3, vec![strides(1 << 19)]), "phases"),
        (Case::new(4, 2, 3, vec![attr_is("kernel_shape", &[2, 2])]), "differs from the weight's"),
        (Case::new(4, 2, 3, vec![attr_is("pads", &[9, 9, 9, 9])]), "empty"),
    ];
    for (case, reason) in cases {
        let model = case.model();
        let (report, after) = rewritten(model.clone(), &Options::default());
        assert!(report.form.is_none() && report.reason.contains(reason), "wanted '{reason}': {}", report.reason);
        assert_eq!(after.proto, model.proto, "{reason}");
    }
    let (report, after) = rewritten(quantised(1, 2).model(), &Options::default());
    assert!(report.form.is_some(), "{}", report.reason);
    let stored =
        after.graph().initializer.iter().any(|t| t.data_type == Some(DataType::Int8.code()) && t.dims.len() == 4);
    assert!(stored, "quantised weights stay quantised");
}

#[test]
fn new_names_avoid_every_name_there_is() {
    let mut case = Case::new(4, 2, 4, vec![strides(2)]);
    case.extra = ["up/chipfit/Conv", "up/chipfit/weight", "up/chipfit/DepthToSpace_output"]
        .map(|name| (name, ConstTensor::from_i64s(&[1])))
        .into();
    case.before = vec![node("Identity", "", &["up/chipfit/Conv"], &["up/chipfit/Conv_output"], vec![])];
    // `apply` refuses a model in which a name is made twice.
    let (report, _) = rewritten(case.model(), &Options::default());
    assert!(report.form.is_some());
}

#[test]
fn only_and_keep_choose_nodes_and_refuse_names_that_are_none() {
    let model = Case::new(4, 2, 4, vec![strides(2)]).model();
    let kept = |options: &Options| rewritten(model.clone(), options).0.form.is_none();
    assert!(kept(&Options { keep: vec!["up".into()], ..Options::default() }));
    assert!(kept(&Options { keep: vec!["y".into()], ..Options::default() }), "by the output's name");
    assert!(!kept(&Options { only: vec!["up".into()], ..Options::default() }));
    let index = Index::new(&model);
    let shapes = shape::infer(&index, &BTreeMap::new()).unwrap();
    let wrong = Options { only: vec!["down".into()], ..Options::default() };
    let error = plan(&index, &shapes, &wrong).unwrap_err();
    assert!(matches!(error, RewriteError::NoSuchNode { flag: "--only", .. }));
}

#[test]
fn integers_are_not_woven_by_depth_to_space_before_opset_11() {
    for (opset, interleave) in [(10, Interleave::Reshape), (11, Interleave::DepthToSpace)] {
        let int8 = |dims: Vec<usize>, n| ConstTensor::new(DataType::Int8, dims, vec![1; n]).unwrap();
        let scale = ConstTensor::from_f32(vec![], &[0.5]).unwrap();
        let mut case = Case::new(4, 2, 4, vec![strides(2)]);
        case.weight = "wr";
        case.extra = vec![("wq", int8(vec![4, 2, 4, 4], 128)), ("s", scale), ("z", int8(vec![], 1))];
        case.before = vec![node("DequantizeLinear", "", &["wq", "s", "z"], &["wr"], vec![])];
        let mut model = case.model();
        model.proto.opset_import[0].version = Some(opset);
        let graph = model.proto.graph.as_option_mut().unwrap();
        let dims = [1.into(), 4.into(), 8.into(), 8.into()];
        graph.input = vec![value_info("xq", DataType::Int8, &dims)];
        graph.node.insert(0, node("DequantizeLinear", "", &["xq", "s", "z"], &["x"], vec![]));
        graph.node.last_mut().unwrap().output[0] = "t".into();
        graph.node.push(node("QuantizeLinear", "", &["t", "s", "z"], &["y"], vec![]));
        let (report, _) = rewritten(model, &Options::default());
        assert_eq!(report.interleave, Some(interleave), "opset {opset}: {}", report.reason);
    }
}
