//! Patches: whole or not at all, in every kind of scope, and without copying a tensor.

mod support;

use std::collections::BTreeSet;

use chipfit_model::build::{DimSpec, attr_i, attr_t, node, value_info};
use chipfit_model::index::SubgraphStep;
use chipfit_model::proto::{AttributeProto, FunctionProto, GraphProto, NodeProto, attribute_proto::AttributeType};
use chipfit_model::{ConstTensor, DataType, Index, Model, Patch, PatchError, ScopeEdit, ScopePath};
use support::{graph, model, typed_floats};

fn main_scope() -> ScopePath {
    ScopePath { function: None, steps: Vec::new() }
}

fn relu(input: &str, output: &str) -> NodeProto {
    node("Relu", "", &[input], &[output], Vec::new())
}

fn ones(name: &str) -> chipfit_model::proto::TensorProto {
    ConstTensor::from_f32(vec![2], &[1.0, 1.0]).expect("two elements").to_proto(name)
}

fn names(nodes: &[NodeProto]) -> Vec<String> {
    nodes.iter().map(|n| n.output.join(",")).collect()
}

/// x -> Add(w) -> Relu -> y, with weights in a typed field and in a Constant node, and an If around two branches.
fn rich_model() -> Model {
    let branch = |name: &str, op: &str| {
        let mut g = graph(&[node(op, "", &["y"], &[name], Vec::new())], &[], &[name]);
        g.initializer.push(typed_floats(&format!("{name}_inner"), 3));
        g
    };
    let attribute = |name: &str, g: GraphProto| AttributeProto {
        name: Some(name.to_owned()),
        r#type: Some(AttributeType::GRAPH),
        g: g.into(),
        ..AttributeProto::default()
    };
    let nodes = [
        node("Constant", "", &[] as &[&str], &["c"], vec![attr_t("value", typed_floats("", 2))]),
        node("Add", "add", &["x", "w"], &["a"], Vec::new()),
        node("Mul", "mul", &["a", "c"], &["m"], Vec::new()),
        relu("m", "y"),
        node(
            "If",
            "if",
            &["condition"],
            &["z"],
            vec![attribute("then_branch", branch("t", "Neg")), attribute("else_branch", branch("e", "Abs"))],
        ),
    ];
    let mut g = graph(&nodes, &["x", "condition"], &["z", "y"]);
    g.initializer.push(typed_floats("w", 2));
    g.value_info.push(value_info("a", DataType::Float, &[DimSpec::Known(2)]));
    let mut m = model(g);
    m.proto.functions.push(FunctionProto {
        name: Some("f".to_owned()),
        domain: Some("local".to_owned()),
        input: vec!["p".to_owned()],
        output: vec!["q".to_owned()],
        node: vec![relu("p", "r"), relu("r", "q")],
        ..FunctionProto::default()
    });
    Index::new(&m).check().expect("the test's model is valid");
    m
}

/// Replaces Add by Sub with another constant, edits the else branch and the function, and prunes what falls away.
fn full_patch() -> Patch {
    let mut outer = ScopeEdit::new(main_scope());
    outer.remove_nodes = BTreeSet::from([1]);
    outer.insert_nodes.push((1, vec![node("Sub", "", &["x", "v"], &["s"], Vec::new()), relu("s", "a")]));
    outer.add_initializers.push(ones("v"));
    outer.prune = BTreeSet::from(["w".to_owned()]);
    let step = SubgraphStep { node: 4, attribute: 1, graph: None };
    let mut inner = ScopeEdit::new(ScopePath { function: None, steps: vec![step] });
    inner.remove_nodes = BTreeSet::from([0]);
    inner.insert_nodes.push((1, vec![node("Add", "", &["y", "k"], &["e"], Vec::new())]));
    inner.add_initializers.push(ones("k"));
    let mut function = ScopeEdit::new(ScopePath { function: Some(0), steps: Vec::new() });
    function.insert_nodes.push((2, vec![node("Add", "", &["r", "fk"], &["unread"], Vec::new())]));
    function.add_initializers.push(ones("fk"));
    Patch { edits: vec![outer, inner, function] }
}

#[test]
fn a_patch_edits_all_kinds_of_scopes_at_once() {
    let mut m = rich_model();
    m.apply(&full_patch()).expect("a valid patch");
    let g = m.graph();
    assert_eq!(names(&g.node), ["c", "s", "a", "m", "y", "z"]);
    assert_eq!(g.initializer.iter().filter_map(|t| t.name.as_deref()).collect::<Vec<_>>(), ["v"]);
    let branch = &g.node[5].attribute[1].g;
    assert_eq!(names(&branch.node), ["e"]);
    assert_eq!(branch.node[0].op_type.as_deref(), Some("Add"));
    assert_eq!(branch.initializer.len(), 2, "a constant that is not named for pruning stays");
    // A function has no initializers: the constant became a node at its begin.
    assert_eq!(names(&m.proto.functions[0].node), ["fk", "r", "q", "unread"]);
    assert_eq!(m.proto.functions[0].node[0].op_type.as_deref(), Some("Constant"));
    Index::new(&m).check().expect("still a model");
}

#[test]
fn a_refused_patch_leaves_the_model_as_it_was() {
    // Each of these goes wrong at another moment, the last ones after everything was edited and pruned.
    let mut missing_scope = full_patch();
    missing_scope.edits.push(ScopeEdit::new(ScopePath { function: Some(7), steps: Vec::new() }));
    let mut past_end = full_patch();
    past_end.edits[2].insert_nodes.push((9, vec![relu("p", "late")]));
    let mut no_such_node = full_patch();
    no_such_node.edits[1].remove_nodes.insert(5);
    let mut undefined = full_patch();
    undefined.edits[0].insert_nodes.push((5, vec![relu("nothing", "n")]));
    let mut duplicate = full_patch();
    duplicate.edits[1].insert_nodes.push((0, vec![relu("y", "e")]));
    let mut cycle = full_patch();
    cycle.edits[2].insert_nodes.push((0, vec![relu("c2", "c1"), relu("c1", "c2")]));
    let cases = [
        ("a scope that is not there", missing_scope),
        ("a position past the end", past_end),
        ("a node that is not there", no_such_node),
        ("an undefined value", undefined),
        ("a value made twice", duplicate),
        ("a cycle", cycle),
    ];
    let before = rich_model();
    for (what, patch) in cases {
        let mut m = before.clone();
        let error = m.apply(&patch).expect_err(what);
        assert!(matches!(error, PatchError::NoSuchPlace(_) | PatchError::Invalid(_)), "{what}: {error}");
        assert_eq!(m.proto, before.proto, "{what}");
        assert_eq!(m.to_bytes().expect("encodes"), before.to_bytes().expect("encodes"), "{what}");
    }
}

#[test]
fn refused_pruning_puts_everything_back_in_its_place() {
    let mut m = rich_model();
    // Something in front of and behind what is pruned, in every list.
    let g = m.proto.graph.as_option_mut().expect("a graph");
    g.initializer.insert(0, typed_floats("first", 1));
    g.initializer.push(typed_floats("last", 1));
    for name in ["w", "y"] {
        g.value_info.push(value_info(name, DataType::Float, &[DimSpec::Known(2)]));
    }
    let before = m.clone();
    let mut patch = full_patch();
    patch.edits[0].prune.extend(["c".to_owned(), "first".to_owned()]);
    patch.edits[0].remove_nodes.insert(2);
    patch.edits[0].insert_nodes.push((2, vec![relu("a", "m")]));
    m.apply(&patch).expect("valid: nothing reads w, first and c any more");
    assert!(!names(&m.graph().node).contains(&"c".to_owned()));
    let mut refused = before.clone();
    patch.edits[0].insert_nodes.push((0, vec![relu("nothing", "n")]));
    refused.apply(&patch).expect_err("an undefined value");
    assert_eq!(refused.proto, before.proto);
}

#[test]
fn pruning_follows_what_only_the_dead_read() {
    // w8 -> DequantizeLinear -> Identity -> Conv: taking the Conv out leaves nothing of the chain.
    let nodes = [
        node("DequantizeLinear", "", &["w8", "scale", ""], &["w"], Vec::new()),
        node("Identity", "", &["w"], &["i"], Vec::new()),
        node("Conv", "", &["x", "i"], &["y"], Vec::new()),
    ];
    let mut g = graph(&nodes, &["x"], &["y"]);
    g.initializer.push(ConstTensor::new(DataType::Int8, vec![2], vec![1, 2]).expect("two bytes").to_proto("w8"));
    g.initializer.push(ones("scale"));
    g.initializer.push(ones("kept"));
    // No name, so nothing reads it; it is not ours to remove.
    g.initializer.push(ones(""));
    let mut m = model(g);
    let mut edit = ScopeEdit::new(main_scope());
    edit.remove_nodes = BTreeSet::from([2]);
    edit.insert_nodes.push((2, vec![relu("x", "y")]));
    edit.prune = BTreeSet::from(["i".to_owned(), "kept_by_someone".to_owned()]);
    m.apply(&Patch { edits: vec![edit] }).expect("a valid patch");
    assert_eq!(names(&m.graph().node), ["y"]);
    let left: Vec<_> = m.graph().initializer.iter().filter_map(|t| t.name.as_deref()).collect();
    assert_eq!(left, ["kept", ""]);
}

#[test]
fn what_is_still_read_is_not_pruned() {
    let mut m = rich_model();
    let mut edit = ScopeEdit::new(main_scope());
    edit.prune = ["w", "c", "x", "a", "condition"].map(str::to_owned).into();
    let before = m.proto.clone();
    m.apply(&Patch { edits: vec![edit] }).expect("nothing to do");
    assert_eq!(m.proto, before);
}

#[test]
fn before_ir_version_4_constants_are_declared_as_inputs() {
    for (ir_version, declared) in [(3, true), (4, false)] {
        let mut m = model(graph(&[relu("x", "y")], &["x"], &["y"]));
        m.proto.ir_version = Some(ir_version);
        let mut edit = ScopeEdit::new(main_scope());
        edit.remove_nodes = BTreeSet::from([0]);
        edit.insert_nodes.push((0, vec![node("Add", "", &["x", "k"], &["y"], Vec::new())]));
        edit.add_initializers.push(ones("k"));
        m.apply(&Patch { edits: vec![edit] }).expect("a valid patch");
        let inputs: Vec<_> = m.graph().input.iter().filter_map(|v| v.name.as_deref()).collect();
        assert_eq!(inputs == ["x", "k"], declared, "IR version {ir_version}: {inputs:?}");
        // And pruning takes the declaration along.
        let mut back = ScopeEdit::new(main_scope());
        back.remove_nodes = BTreeSet::from([0]);
        back.insert_nodes.push((0, vec![relu("x", "y")]));
        back.prune = BTreeSet::from(["k".to_owned()]);
        m.apply(&Patch { edits: vec![back] }).expect("a valid patch");
        assert_eq!(m.graph().input.len(), 1);
        assert!(m.graph().initializer.is_empty());
    }
}

/// Where the elements of every typed tensor lie in memory.
fn places(m: &Model) -> Vec<(String, *const f32)> {
    let tensors = Index::new(m).tensors();
    let mut places: Vec<_> = tensors
        .into_iter()
        .filter(|t| !t.float_data.is_empty())
        .map(|t| (t.name.clone().unwrap_or_default(), t.float_data.as_ptr()))
        .collect();
    places.sort();
    places
}

#[test]
fn applying_or_refusing_a_patch_copies_no_tensor() {
    let mut m = rich_model();
    let before = places(&m);
    assert_eq!(before.len(), 4);
    let mut refused = full_patch();
    refused.edits[0].insert_nodes.push((0, vec![relu("nothing", "n")]));
    m.apply(&refused).expect_err("an undefined value");
    assert_eq!(places(&m), before, "a refused patch must move nothing");
    m.apply(&full_patch()).expect("a valid patch");
    let after: Vec<_> = before.into_iter().filter(|(name, _)| name != "w").collect();
    assert_eq!(places(&m), after, "an applied patch must move nothing either");
}

#[test]
fn nodes_inserted_at_one_place_keep_their_order() {
    let mut m = model(graph(&[relu("x", "y")], &["x"], &["y"]));
    let mut edit = ScopeEdit::new(main_scope());
    edit.insert_nodes.push((1, vec![relu("y", "b"), relu("b", "c")]));
    edit.insert_nodes.push((0, vec![node("Concat", "", &["x"], &["a"], vec![attr_i("axis", 0)])]));
    edit.insert_nodes.push((1, vec![relu("c", "d")]));
    m.apply(&Patch { edits: vec![edit] }).expect("a valid patch");
    assert_eq!(names(&m.graph().node), ["a", "y", "b", "c", "d"]);
}
