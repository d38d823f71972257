//! What the oracles cannot show: names, overrides, stale declarations, scopes, and values beneath shapes.

use std::collections::BTreeMap;

use super::value::{Element, Value};
use super::{Dim, ShapeError, Shapes, TensorType, infer};
use crate::build::{DimSpec, attr_f, attr_i, attr_is, attr_s, attr_t, node, value_info};
use crate::index::Index;
use crate::onnx::Model;
use crate::proto::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto,
    attribute_proto::AttributeType,
};
use crate::tensor::{ConstTensor, DataType};

const OPSET: i64 = 17;

fn input(name: &str, dims: &[DimSpec]) -> ValueInfoProto {
    value_info(name, DataType::Float, dims)
}

fn ints(name: &str, values: &[i64]) -> TensorProto {
    ConstTensor::from_i64s(values).to_proto(name)
}

fn zeros(name: &str, dims: &[usize]) -> TensorProto {
    ConstTensor::from_f32(dims.to_vec(), &vec![0.0; dims.iter().product()]).expect("the count fits").to_proto(name)
}

fn output(name: &str) -> ValueInfoProto {
    ValueInfoProto { name: Some(name.to_owned()), ..ValueInfoProto::default() }
}

fn model(nodes: Vec<NodeProto>, inputs: Vec<ValueInfoProto>, initializers: Vec<TensorProto>) -> Model {
    let graph = GraphProto { node: nodes, input: inputs, initializer: initializers, ..GraphProto::default() };
    let opset = OperatorSetIdProto { version: Some(OPSET), ..OperatorSetIdProto::default() };
    let proto =
        ModelProto { ir_version: Some(8), opset_import: vec![opset], graph: graph.into(), ..ModelProto::default() };
    Model { proto, folder: None }
}

fn graph_mut(model: &mut Model) -> &mut GraphProto {
    model.proto.graph.as_option_mut().expect("a graph")
}

fn shapes(model: &Model, inputs: &[(&str, &[usize])]) -> Shapes {
    try_shapes(model, inputs).expect("nothing contradicts")
}

fn try_shapes(model: &Model, inputs: &[(&str, &[usize])]) -> Result<Shapes, ShapeError> {
    let inputs: BTreeMap<_, _> = inputs.iter().map(|(n, d)| ((*n).to_owned(), d.to_vec())).collect();
    infer(&Index::new(model), &inputs)
}

fn shown(shapes: &Shapes, name: &str) -> String {
    shapes.get(0, name).to_string()
}

fn graph_attribute(name: &str, graph: GraphProto) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        r#type: Some(AttributeType::GRAPH),
        g: graph.into(),
        ..AttributeProto::default()
    }
}

/// x -> Conv s2 -> ConvTranspose s2 -> Relu, all sizes open.
fn open_model() -> Model {
    let nodes = vec![
        node("Conv", "", &["x", "w"], &["c"], vec![attr_is("strides", &[2, 2]), attr_is("pads", &[1, 1, 1, 1])]),
        node("ConvTranspose", "", &["c", "wt"], &["t"], vec![attr_is("strides", &[2, 2])]),
        node("Relu", "", &["t"], &["y"], Vec::new()),
    ];
    let x = input("x", &["N".into(), 3.into(), "H".into(), "W".into()]);
    model(nodes, vec![x], vec![zeros("w", &[8, 3, 3, 3]), zeros("wt", &[8, 4, 2, 2])])
}

#[test]
fn names_stay_where_lengths_are_equal_and_nowhere_else() {
    let s = shapes(&open_model(), &[]);
    assert_eq!(shown(&s, "c"), "float[N,8,?,?]");
    assert_eq!(shown(&s, "y"), "float[N,4,?,?]");
    let same = vec![
        node("Conv", "", &["x", "w"], &["a"], vec![attr_s("auto_pad", "SAME_UPPER")]),
        node("Conv", "", &["x", "w"], &["b"], vec![attr_is("pads", &[1, 1, 1, 1])]),
        node("MaxPool", "", &["x"], &["c"], vec![attr_is("kernel_shape", &[3, 1]), attr_is("pads", &[1, 0, 1, 0])]),
        node("Add", "", &["a", "b"], &["d"], Vec::new()),
        node("Concat", "", &["a", "b"], &["e"], vec![attr_i("axis", 2)]),
    ];
    let x = input("x", &["N".into(), 3.into(), "H".into(), "W".into()]);
    let s = shapes(&model(same, vec![x], vec![zeros("w", &[3, 3, 3, 3])]), &[]);
    for name in ["a", "b", "c", "d"] {
        assert_eq!(shown(&s, name), "float[N,3,H,W]", "{name}");
    }
    assert_eq!(shown(&s, "e"), "float[N,3,?,W]");
}

#[test]
fn an_override_fixes_everything_that_follows() {
    let m = open_model();
    let s = shapes(&m, &[("x", &[1, 3, 63, 64])]);
    assert_eq!(shown(&s, "c"), "float[1,8,32,32]");
    assert_eq!(shown(&s, "y"), "float[1,4,64,64]");
    let mut two = m.clone();
    graph_mut(&mut two).input.push(input("z", &["N".into(), "H".into()]));
    assert_eq!(shown(&shapes(&two, &[("x", &[5, 3, 63, 64])]), "z"), "float[5,63]", "names are bound everywhere");
    // One name, two lengths: it binds nothing.
    graph_mut(&mut two).input.push(input("q", &["H".into(), "H".into()]));
    assert_eq!(shown(&shapes(&two, &[("q", &[1, 2])]), "z"), "float[N,H]");
}

#[test]
fn an_override_may_not_contradict_the_file() {
    let m = open_model();
    assert_eq!(try_shapes(&m, &[("nobody", &[1])]).err(), Some(ShapeError::NoSuchInput("nobody".to_owned())));
    for asked in [&[1, 4, 8, 8][..], &[1, 3, 8], &[]] {
        let error = try_shapes(&m, &[("x", asked)]).expect_err("3 channels, rank 4");
        assert!(matches!(&error, ShapeError::Contradiction { declared, .. } if declared == "Nx3xHxW"), "{error}");
    }
    assert!(try_shapes(&Model::default(), &[("x", &[1])]).is_err());
}

#[test]
fn declarations_fill_in_until_an_override_makes_them_stale() {
    let mut custom = node("Mystery", "", &["x"], &["m"], Vec::new());
    custom.domain = Some("somewhere.else".to_owned());
    let nodes =
        vec![custom, node("Relu", "", &["m"], &["r"], Vec::new()), node("Relu", "", &["x"], &["k"], Vec::new())];
    let mut m = model(nodes, vec![input("x", &[1.into(), "H".into()])], Vec::new());
    graph_mut(&mut m).value_info = vec![
        input("m", &["H".into(), 7.into(), "other".into()]),
        // Wrong: k is x's shape. What was inferred wins.
        input("k", &[1.into(), 99.into()]),
    ];
    let s = shapes(&m, &[]);
    assert_eq!(shown(&s, "r"), "float[H,7,other]");
    assert_eq!(shown(&s, "k"), "float[1,H]");
    let s = shapes(&m, &[("x", &[1, 32])]);
    // The 7 may stem from another size; the name H is bound, type and rank hold.
    assert_eq!(shown(&s, "r"), "float[32,?,other]");
    assert_eq!(shown(&s, "k"), "float[1,32]");
    // An override that only repeats the file changes nothing.
    let mut fixed = m.clone();
    graph_mut(&mut fixed).input = vec![input("x", &[1.into(), 32.into()])];
    assert_eq!(shown(&shapes(&fixed, &[("x", &[1, 32])]), "m"), "float[H,7,other]");
}

#[test]
fn placeholders_name_nothing() {
    for name in ["?", "None", "-1", "", "unknown"] {
        let m = model(Vec::new(), vec![input("x", &[name.into(), "N".into()])], Vec::new());
        assert_eq!(shown(&shapes(&m, &[]), "x"), "float[?,N]", "'{name}'");
    }
}

#[test]
fn shape_arithmetic_carries_names_and_numbers() {
    // The ways in which exporters compute the target of a Reshape and of a Resize.
    let nodes = vec![
        node("Shape", "", &["x"], &["s"], Vec::new()),
        node("Gather", "", &["s", "zero"], &["n"], vec![attr_i("axis", 0)]),
        node("Unsqueeze", "", &["n", "zeros"], &["n1"], Vec::new()),
        node("Concat", "", &["n1", "tail"], &["target"], vec![attr_i("axis", 0)]),
        node("Reshape", "", &["x", "target"], &["flat"], Vec::new()),
        node("Slice", "", &["s", "two", "four"], &["hw"], Vec::new()),
        node("Cast", "", &["hw"], &["hwf"], vec![attr_i("to", 1)]),
        node("Mul", "", &["hwf", "half"], &["scaled"], Vec::new()),
        node("Floor", "", &["scaled"], &["floored"], Vec::new()),
        node("Cast", "", &["floored"], &["sizes"], vec![attr_i("to", 7)]),
        node("Slice", "", &["s", "zeros", "two"], &["nc"], Vec::new()),
        node("Concat", "", &["nc", "sizes"], &["all"], vec![attr_i("axis", 0)]),
        node("Resize", "", &["x", "", "", "all"], &["small"], vec![attr_s("mode", "nearest")]),
        node("Sub", "", &["hw", "hw"], &["nothing"], Vec::new()),
        node("ConstantOfShape", "", &["nc"], &["filled"], vec![attr_t("value", ints("", &[3]))]),
    ];
    let half = ConstTensor::from_f32(vec![1], &[0.5]).expect("one element").to_proto("half");
    let scalar = ConstTensor::from_i64s(&[0]).reshaped(Vec::new()).expect("one element").to_proto("zero");
    let constants =
        vec![scalar, half, ints("zeros", &[0]), ints("two", &[2]), ints("four", &[4]), ints("tail", &[-1, 6])];
    let m = model(nodes, vec![input("x", &["N".into(), 6.into(), "H".into(), "W".into()])], constants);
    let s = shapes(&m, &[]);
    assert_eq!(shown(&s, "flat"), "float[N,?,6]");
    assert_eq!(shown(&s, "small"), "float[N,6,?,?]");
    assert_eq!(shown(&s, "filled"), "int64[N,6]");
    let s = shapes(&m, &[("x", &[2, 6, 9, 5])]);
    assert_eq!(shown(&s, "flat"), "float[2,45,6]");
    assert_eq!(shown(&s, "small"), "float[2,6,4,2]");
}

#[test]
fn reshape_cancels_what_it_does_not_know() {
    let cases: &[(&[DimSpec], &[i64], &str)] = &[
        (&["N".into(), 4.into(), "L".into()], &[0, -1, 0], "float[N,4,L]"),
        (&["N".into(), 4.into(), 1.into()], &[-1, 4], "float[N,4]"),
        (&["N".into(), 4.into(), 3.into()], &[0, -1], "float[N,12]"),
        (&["N".into(), 4.into(), 3.into()], &[-1, 6], "float[?,6]"),
        (&["N".into(), "L".into()], &[-1], "float[?]"),
        (&[2.into(), 6.into()], &[3, -1], "float[3,4]"),
        (&[2.into(), 6.into()], &[5, -1], "float[5,?]"),
        (&[0.into(), 6.into()], &[0, -1], "float[0,6]"),
    ];
    for (from, to, want) in cases {
        let nodes = vec![node("Reshape", "", &["x", "to"], &["y"], Vec::new())];
        let s = shapes(&model(nodes, vec![input("x", from)], vec![ints("to", to)]), &[]);
        assert_eq!(shown(&s, "y"), *want, "{from:?} to {to:?}");
    }
}

#[test]
fn transposed_convolutions_of_all_attributes() {
    // (kernel, attributes, length for 5)
    let cases: Vec<(usize, Vec<AttributeProto>, i64)> = vec![
        (3, vec![], 7),
        (3, vec![attr_is("strides", &[2])], 11),
        (3, vec![attr_is("strides", &[2]), attr_is("pads", &[1, 1])], 9),
        (3, vec![attr_is("strides", &[2]), attr_is("pads", &[1, 1]), attr_is("output_padding", &[1])], 10),
        (3, vec![attr_is("strides", &[2]), attr_is("dilations", &[3])], 15),
        (3, vec![attr_is("strides", &[2]), attr_s("auto_pad", "SAME_UPPER")], 10),
        (3, vec![attr_is("strides", &[2]), attr_s("auto_pad", "SAME_LOWER")], 10),
        (3, vec![attr_is("strides", &[2]), attr_s("auto_pad", "VALID"), attr_is("pads", &[1, 1])], 11),
        (1, vec![attr_is("strides", &[4])], 17),
        // Follows the definition where runtimes clamp the pads.
        (1, vec![attr_is("strides", &[4]), attr_s("auto_pad", "SAME_UPPER")], 20),
        (3, vec![attr_is("strides", &[2]), attr_is("output_shape", &[10])], 10),
        (3, vec![attr_is("strides", &[2]), attr_is("output_shape", &[1, 8, 10])], 10),
    ];
    for (kernel, attributes, want) in cases {
        let mut all = attributes.clone();
        all.push(attr_i("group", 2));
        let nodes = vec![node("ConvTranspose", "", &["x", "w"], &["y"], all)];
        let x = input("x", &[1.into(), 6.into(), 5.into()]);
        let s = shapes(&model(nodes, vec![x], vec![zeros("w", &[6, 4, kernel])]), &[]);
        assert_eq!(shown(&s, "y"), format!("float[1,8,{want}]"), "kernel {kernel} {attributes:?}");
    }
}

#[test]
fn malformed_attributes_give_unknowns() {
    for attributes in [
        vec![attr_is("strides", &[0, 1])],
        vec![attr_is("strides", &[2])],
        vec![attr_is("pads", &[1, 1])],
        vec![attr_is("dilations", &[-1, 1])],
        vec![attr_s("auto_pad", "SAME_SOMEHOW")],
        vec![attr_is("kernel_shape", &[3])],
    ] {
        let nodes = vec![node("Conv", "", &["x", "w"], &["y"], attributes.clone())];
        let x = input("x", &[1.into(), 3.into(), 8.into(), 8.into()]);
        let s = shapes(&model(nodes, vec![x], vec![zeros("w", &[4, 3, 3, 3])]), &[]);
        assert_eq!(shown(&s, "y"), "float[..]", "{attributes:?}");
    }
}

#[test]
fn branches_that_differ_are_unknown_where_they_do() {
    let branch = |name: &str, constant: TensorProto| GraphProto {
        node: vec![node("Concat", "", &["x", "k"], &[name], vec![attr_i("axis", 0)])],
        output: vec![output(name)],
        initializer: vec![constant],
        ..GraphProto::default()
    };
    let build = |a: usize, b: usize, condition: &str| {
        let branches = vec![
            graph_attribute("then_branch", branch("t", zeros("k", &[a, 4]))),
            graph_attribute("else_branch", branch("e", zeros("k", &[b, 4]))),
        ];
        let truth = ConstTensor::new(DataType::Bool, Vec::new(), vec![1]).expect("one byte").to_proto("yes");
        let flag = value_info("flag", DataType::Bool, &[]);
        let x = input("x", &[2.into(), 4.into()]);
        model(vec![node("If", "", &[condition], &["y"], branches)], vec![x, flag], vec![truth])
    };
    let m = build(1, 1, "flag");
    let s = shapes(&m, &[]);
    assert_eq!(shown(&s, "y"), "float[3,4]");
    assert_eq!(s.get(1, "t").to_string(), "float[3,4]");
    let index = Index::new(&m);
    assert_eq!(s.resolve(&index, 2, "x").to_string(), "float[2,4]", "seen from the branch");
    assert_eq!(shown(&shapes(&build(1, 5, "flag"), &[]), "y"), "float[?,4]");
    assert_eq!(shown(&shapes(&build(1, 5, "yes"), &[]), "y"), "float[3,4]", "a constant condition chooses");
}

#[test]
fn loops_keep_what_every_iteration_keeps() {
    let body = GraphProto {
        node: vec![
            node("Concat", "", &["grows", "k"], &["grown"], vec![attr_i("axis", 0)]),
            node("Relu", "", &["stays"], &["stayed"], Vec::new()),
            node("Identity", "", &["c"], &["d"], Vec::new()),
            node("Relu", "", &["stays"], &["each"], Vec::new()),
        ],
        input: ["i", "c", "grows", "stays"].map(output).into(),
        output: ["d", "grown", "stayed", "each"].map(output).into(),
        initializer: vec![zeros("k", &[1, 4])],
        ..GraphProto::default()
    };
    let around = node("Loop", "", &["trips", "", "x", "x"], &["g", "s", "e"], vec![graph_attribute("body", body)]);
    let x = input("x", &[2.into(), 4.into()]);
    let trips = ConstTensor::from_i64s(&[7]).reshaped(Vec::new()).expect("one element").to_proto("trips");
    let s = shapes(&model(vec![around], vec![x], vec![trips]), &[]);
    assert_eq!(shown(&s, "g"), "float[?,4]");
    assert_eq!(shown(&s, "s"), "float[2,4]");
    assert_eq!(shown(&s, "e"), "float[7,2,4]");
}

#[test]
fn functions_are_followed_through_their_calls() {
    let by_reference = AttributeProto {
        name: Some("axis".to_owned()),
        r#type: Some(AttributeType::INT),
        ref_attr_name: Some("along".to_owned()),
        ..AttributeProto::default()
    };
    let function = FunctionProto {
        name: Some("twice".to_owned()),
        domain: Some("local".to_owned()),
        input: vec!["p".to_owned()],
        output: vec!["q".to_owned()],
        attribute_proto: vec![attr_i("along", 0)],
        opset_import: vec![OperatorSetIdProto { version: Some(OPSET), ..OperatorSetIdProto::default() }],
        node: vec![node("Concat", "", &["p", "p"], &["q"], vec![by_reference])],
        ..FunctionProto::default()
    };
    let call = |input: &str, output: &str, attributes: Vec<AttributeProto>| {
        let mut n = node("twice", "", &[input], &[output], attributes);
        n.domain = Some("local".to_owned());
        n
    };
    let nodes = vec![call("x", "y", vec![attr_i("along", 1)]), call("x", "z", Vec::new())];
    let mut m = model(nodes, vec![input("x", &[2.into(), 3.into()])], Vec::new());
    m.proto.functions.push(function);
    let s = shapes(&m, &[]);
    assert_eq!(shown(&s, "y"), "float[2,6]");
    assert_eq!(shown(&s, "z"), "float[4,3]");
    // Inside, only what both calls agree on.
    assert_eq!(s.get(1, "p").to_string(), "float[2,3]");
    assert_eq!(s.get(1, "q").to_string(), "float[?,?]");
}

#[test]
fn weights_behind_inputs_and_constants_give_types() {
    // An input with a default: the file's value, unless the user gives it another shape.
    let nodes = vec![node("Reshape", "", &["x", "to"], &["y"], Vec::new())];
    let inputs = vec![input("x", &[6.into()]), value_info("to", DataType::Int64, &["n".into()])];
    let m = model(nodes, inputs, vec![ints("to", &[2, 3])]);
    assert_eq!(shown(&shapes(&m, &[]), "y"), "float[2,3]");
    assert_eq!(shown(&shapes(&m, &[("to", &[3])]), "y"), "float[?,?,?]");
    let lists = vec![
        node("Constant", "", &[] as &[&str], &["a"], vec![attr_f("value_float", 1.0)]),
        node("Constant", "", &[] as &[&str], &["b"], vec![attr_is("value_ints", &[4, 5])]),
        node("ConstantOfShape", "", &["b"], &["c"], Vec::new()),
    ];
    let s = shapes(&model(lists, Vec::new(), Vec::new()), &[]);
    assert_eq!([shown(&s, "a"), shown(&s, "b"), shown(&s, "c")], ["float[]", "int64[2]", "float[4,5]"]);
}

#[test]
fn nodes_in_any_order_give_the_same() {
    let m = open_model();
    let mut reversed = m.clone();
    graph_mut(&mut reversed).node.reverse();
    let (a, b) = (shapes(&m, &[]), shapes(&reversed, &[]));
    for name in ["c", "t", "y"] {
        assert_eq!(a.get(0, name), b.get(0, name));
    }
}

#[test]
fn values_keep_to_their_limits() {
    let element = |n: i64| Element::Int(n);
    assert!(Value::vector(vec![element(1); 1024]).is_some());
    assert!(Value::vector(vec![element(1); 1025]).is_none());
    assert!(Value::new(DataType::Int64, vec![2, 3], vec![element(1); 5]).is_none());
    assert!(Value::build(DataType::Int64, vec![usize::MAX, usize::MAX], |_| Some(element(0))).is_none());
    let rows = Value::build(DataType::Int64, vec![2, 3], |at| Some(element(i64::try_from(at[0] * 10 + at[1]).ok()?)));
    let rows = rows.expect("six elements");
    assert_eq!(rows.elements(), [0, 1, 2, 10, 11, 12].map(element));
    assert_eq!(rows.broadcast_at(&[9, 1, 2]), Some(&element(12)), "axes beyond its rank are broadcast");
    assert_eq!(rows.broadcast_at(&[1]), None);
}

#[test]
fn types_print_what_is_not_known() {
    let t = TensorType { dtype: None, dims: Some(vec![Dim::Known(1), Dim::Named("H".to_owned()), Dim::Unknown]) };
    assert_eq!(t.to_string(), "?[1,H,?]");
    assert_eq!(TensorType::default().to_string(), "?[..]");
    assert_eq!(t.known_dims(), None);
}
