//! Broken and hostile files: an error or a harmless model, never a panic, a hang or memory out of proportion.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use chipfit_model::build::{DimSpec, attr_i, attr_is, attr_t, node, value_info};
use chipfit_model::index::CheckError;
use chipfit_model::proto::{AttributeProto, FunctionProto, GraphProto, NodeProto, attribute_proto::AttributeType};
use chipfit_model::shape::infer;
use chipfit_model::summary::summarize;
use chipfit_model::{ConstTensor, DataType, Dim, Index, Limits, Model, ReadError};
use support::{folder, graph, model, typed_floats};

/// All that is done with a file before anything is rewritten.
fn exercise(bytes: &[u8]) -> Result<(), ReadError> {
    let m = Model::from_bytes(bytes.to_vec().into(), &Limits::default())?;
    exercise_model(&m);
    Ok(())
}

fn exercise_model(m: &Model) {
    let index = Index::new(m);
    let _ = index.check();
    let shapes = infer(&index, &BTreeMap::new()).expect("no overrides, nothing to contradict");
    let summary = summarize(&index, &shapes);
    assert_eq!(summary.nodes.len(), index.scopes.iter().map(|s| s.nodes.len()).sum::<usize>());
    for tensor in index.tensors() {
        let _ = m.tensor(tensor);
    }
    let _ = m.to_bytes().expect("what was read can be written");
}

/// A small model with a bit of everything.
fn small_model() -> Model {
    let shape = ConstTensor::from_i64s(&[1, -1]);
    let nodes = [
        node("Constant", "k", &[] as &[&str], &["k"], vec![attr_t("value", shape.to_proto(""))]),
        node("Conv", "conv", &["x", "w"], &["c"], vec![attr_is("pads", &[1, 1, 1, 1]), attr_is("strides", &[2, 2])]),
        node("Reshape", "reshape", &["c", "k"], &["y"], Vec::new()),
    ];
    let mut g = graph(&nodes, &[], &["y"]);
    g.input.push(value_info("x", DataType::Float, &["N".into(), 3.into(), 8.into(), 8.into()]));
    g.initializer.push(ConstTensor::from_f32(vec![1, 3, 3, 3], &[0.5; 27]).expect("27 elements").to_proto("w"));
    g.initializer.push(typed_floats("unused", 2));
    model(g)
}

#[test]
fn every_truncation_is_survived() {
    let bytes = small_model().to_bytes().expect("encodes");
    exercise(&bytes).expect("the whole file is a model");
    let whole = (0..bytes.len()).filter(|&n| exercise(&bytes[..n]).is_ok()).count();
    // The graph comes near the end, so that nearly every prefix cuts it or lacks it.
    assert!(whole < 24, "{whole} of {} prefixes were taken for models", bytes.len());
}

/// Numbers from a seed (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(n.max(1)).expect("small")).expect("small")
    }
}

/// Flips, overwrites, inserts, removes or repeats some bytes.
fn damaged(bytes: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len());
        let extreme = [0, 1, 0x7f, 0x80, 0xff, 0x08, 0x12][random.below(7)];
        match random.below(5) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = extreme,
            2 => bytes.insert(at, extreme),
            3 => drop(bytes.drain(at..(at + 1 + random.below(8)).min(bytes.len()))),
            _ => {
                let end = (at + 1 + random.below(64)).min(bytes.len());
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
        }
        if bytes.is_empty() {
            break;
        }
    }
    bytes
}

#[test]
fn damaged_bytes_are_survived() {
    let bytes = small_model().to_bytes().expect("encodes");
    let mut random = Random(1);
    let read = (0..20_000).filter(|_| exercise(&damaged(&bytes, &mut random)).is_ok()).count();
    // Both outcomes must occur, else the damage tests nothing.
    assert!((500..19_500).contains(&read), "{read} of 20000 were read");
}

#[test]
fn damaged_node_tests_are_survived() {
    let Some(folder) = folder("CHIPFIT_ONNX_TESTDATA", "node") else { return };
    let mut random = Random(2);
    for path in support::onnx_files(&folder) {
        let bytes = fs::read(&path).expect("a readable file");
        if bytes.len() < 20_000 {
            for _ in 0..10 {
                let _ = exercise(&damaged(&bytes, &mut random));
            }
        }
    }
}

#[test]
fn faults_are_named() {
    let relu = |input: &str, output: &str| node("Relu", "n", &[input], &[output], Vec::new());
    let check = |g: GraphProto| Index::new(&model(g)).check();
    assert_eq!(Index::new(&Model::default()).check(), Err(CheckError::NoGraph));
    let cycle = check(graph(&[relu("b", "a"), relu("a", "b")], &["x"], &["a"]));
    assert!(matches!(cycle, Err(CheckError::Cycle { .. })), "{cycle:?}");
    let own = check(graph(&[relu("a", "a")], &["x"], &["a"]));
    assert!(matches!(own, Err(CheckError::Cycle { .. })), "{own:?}");
    let twice = check(graph(&[relu("x", "y"), relu("x", "y")], &["x"], &["y"]));
    assert!(matches!(&twice, Err(CheckError::Duplicate { name, .. }) if name == "y"), "{twice:?}");
    let over_input = check(graph(&[relu("x", "x")], &["x"], &["x"]));
    assert!(matches!(&over_input, Err(CheckError::Duplicate { name, .. }) if name == "x"), "{over_input:?}");
    let undefined = check(graph(&[relu("z", "y")], &["x"], &["y"]));
    assert!(matches!(&undefined, Err(CheckError::Undefined { name, .. }) if name == "z"), "{undefined:?}");
    let output = check(graph(&[relu("x", "y")], &["x"], &["z"]));
    assert!(matches!(&output, Err(CheckError::UndefinedOutput { name, .. }) if name == "z"), "{output:?}");
    let mut two_tensors = graph(&[relu("x", "y")], &["x"], &["y"]);
    two_tensors.initializer = vec![typed_floats("w", 1), typed_floats("w", 2)];
    assert!(matches!(check(two_tensors), Err(CheckError::Duplicate { .. })));
    for dims in [vec![3], vec![-1], vec![i64::MAX, i64::MAX], vec![1 << 62]] {
        let mut wrong = graph(&[relu("x", "y")], &["x"], &["y"]);
        let mut tensor = ConstTensor::from_f32(vec![2], &[0.0; 2]).expect("two elements").to_proto("w");
        tensor.dims = dims.clone();
        wrong.initializer.push(tensor);
        assert!(matches!(check(wrong), Err(CheckError::Tensor(_))), "{dims:?}");
    }
    // A cycle through the body of an If.
    let mut inside = graph(&[relu("z", "t")], &[], &["t"]);
    inside.name = Some("branch".to_owned());
    let branches = vec![subgraph("then_branch", inside.clone()), subgraph("else_branch", inside)];
    let around = graph(&[node("If", "if", &["x"], &["z"], branches)], &["x"], &["z"]);
    assert!(matches!(check(around), Err(CheckError::Cycle { .. })));
}

fn subgraph(name: &str, g: GraphProto) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        r#type: Some(AttributeType::GRAPH),
        g: g.into(),
        ..AttributeProto::default()
    }
}

#[test]
fn deep_nesting_is_an_error() {
    let nested = |depth: usize| {
        let mut g = graph(&[], &["x"], &["x"]);
        for _ in 0..depth {
            let body = vec![subgraph("body", g)];
            g = graph(&[node("Loop", "", &["x"], &["y"], body)], &["x"], &["y"]);
        }
        model(g).to_bytes().expect("encodes")
    };
    exercise(&nested(5)).expect("five levels are fine");
    assert!(matches!(exercise(&nested(200)), Err(ReadError::Decode(_))));
}

/// Fails instead of hanging for hours; the bound is generous because machines are shared.
fn quickly<T>(what: &str, f: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = f();
    assert!(start.elapsed() < Duration::from_secs(20), "{what} took {:?}", start.elapsed());
    result
}

#[test]
fn huge_shapes_cost_nothing() {
    let huge = i64::MAX;
    let vector = |name: &str, values: &[i64]| ConstTensor::from_i64s(values).to_proto(name);
    let nodes = [
        node("ConstantOfShape", "", &["big"], &["a"], Vec::new()),
        node("Expand", "", &["x", "big"], &["b"], Vec::new()),
        node("Range", "", &["zero", "most", "one"], &["c"], Vec::new()),
        node("Tile", "", &["x", "big"], &["d"], Vec::new()),
        node("Pad", "", &["x", "pads"], &["e"], Vec::new()),
        node("Conv", "", &["x", "w"], &["f"], vec![attr_is("dilations", &[huge, huge]), attr_is("pads", &[huge; 4])]),
        node("ConvTranspose", "", &["x", "w"], &["g"], vec![attr_is("strides", &[huge, huge])]),
        node("Reshape", "", &["a", "big"], &["h"], Vec::new()),
        node("Concat", "", &["a", "a"], &["i"], vec![attr_i("axis", 0)]),
        node("Add", "", &["c", "one"], &["j"], Vec::new()),
        node("Slice", "", &["a", "least", "most", "zero", "least"], &["k"], Vec::new()),
        node("Unsqueeze", "", &["x", "many"], &["l"], Vec::new()),
        node("DepthToSpace", "", &["x"], &["m"], vec![attr_i("blocksize", huge)]),
        node("SpaceToDepth", "", &["x"], &["n"], vec![attr_i("blocksize", huge)]),
        node("OneHot", "", &["c", "most", "x"], &["o"], vec![attr_i("axis", i64::MIN)]),
        node("Split", "", &["a"], &["p", "q"], vec![attr_i("axis", i64::MIN), attr_i("num_outputs", huge)]),
        node("Gemm", "", &["x", "x"], &["r"], vec![attr_i("transA", huge)]),
        node("Transpose", "", &["x"], &["s"], vec![attr_is("perm", &[huge, 0, i64::MIN, 3])]),
        node("MatMul", "", &["a", "b"], &["t"], Vec::new()),
        node("TopK", "", &["x", "least"], &["u", "v"], Vec::new()),
    ];
    let mut g = graph(&nodes, &[], &[]);
    g.input.push(value_info("x", DataType::Float, &[DimSpec::Known(1), 1.into(), huge.into(), huge.into()]));
    g.initializer.extend([
        vector("big", &[huge, huge, huge, huge]),
        vector("pads", &[huge; 8]),
        vector("many", &(0..1000).collect::<Vec<_>>()),
        vector("least", &[i64::MIN]),
    ]);
    for (name, value) in [("zero", 0), ("one", 1), ("most", huge)] {
        let scalar = ConstTensor::from_i64s(&[value]).reshaped(Vec::new()).expect("one element");
        g.initializer.push(scalar.to_proto(name));
    }
    let mut w = vector("w", &[]);
    w.dims = vec![1, 1, huge, huge];
    w.raw_data = None;
    g.initializer.push(w);
    let m = model(g);
    quickly("huge shapes", || exercise_model(&m));
    let index = Index::new(&m);
    let shapes = infer(&index, &BTreeMap::new()).expect("no overrides");
    assert_eq!(shapes.get(0, "a").known_dims().map(|d| d.len()), Some(4));
    assert_eq!(shapes.get(0, "c").dims, Some(vec![Dim::Known(usize::try_from(huge).expect("64 bits"))]));
    assert_eq!(shapes.get(0, "l").dims, None, "a rank of 1004 is not followed");
    assert_eq!(shapes.get(0, "i").dims.and_then(|d| d.first().cloned()), Some(Dim::Unknown), "twice the most");
}

#[test]
fn functions_that_multiply_calls_end_soon() {
    // f0 calls f1 twice, f1 calls f2 twice, ...: 2^60 visits when followed to the end. And one calls itself.
    let call = |to: usize, input: &str, output: &str| {
        let mut n = node(&format!("f{to}"), "", &[input], &[output], Vec::new());
        n.domain = Some("local".to_owned());
        n
    };
    let function = |i: usize, nodes: Vec<NodeProto>| FunctionProto {
        name: Some(format!("f{i}")),
        domain: Some("local".to_owned()),
        input: vec!["p".to_owned()],
        output: vec!["q".to_owned()],
        node: nodes,
        ..FunctionProto::default()
    };
    let mut m = model(graph(&[call(0, "x", "y")], &["x"], &["y"]));
    for i in 0..60 {
        m.proto.functions.push(function(i, vec![call(i + 1, "p", "r"), call(i + 1, "r", "q")]));
    }
    m.proto.functions.push(function(60, vec![call(60, "p", "q")]));
    quickly("functions that call each other", || exercise_model(&m));
}

#[test]
fn loops_in_loops_end_soon() {
    // Each loop changes its carried value, so each would be walked several times on every level.
    let mut body = graph(
        &[
            node("Concat", "", &["v", "v"], &["out"], vec![attr_i("axis", 0)]),
            node("Identity", "", &["c"], &["d"], Vec::new()),
        ],
        &["i", "c", "v"],
        &["d", "out"],
    );
    for _ in 0..18 {
        let inner = node("Loop", "", &["", "c", "v"], &["out"], vec![subgraph("body", body)]);
        body = graph(&[inner, node("Identity", "", &["c"], &["d"], Vec::new())], &["i", "c", "v"], &["d", "out"]);
    }
    let around = node("Loop", "", &["", "c", "x"], &["y"], vec![subgraph("body", body)]);
    let m = model(graph(&[around], &["c", "x"], &["y"]));
    Index::new(&m).check().expect("a valid model");
    quickly("loops in loops", || exercise_model(&m));
}

#[test]
fn long_chains_stay_linear() {
    let n = 50_000;
    let name = |i: usize| if i == 0 { "x".to_owned() } else { format!("v{i}") };
    let chain = |op: &str| {
        let nodes: Vec<_> = (0..n).map(|i| node(op, "", &[name(i)], &[name(i + 1)], Vec::new())).collect();
        model(graph(&nodes, &["x"], &[&name(n)]))
    };
    for op in ["Relu", "Identity", "Shape"] {
        let m = chain(op);
        quickly(op, || exercise_model(&m));
    }
    // In reverse file order, too: nothing recurses along the chain.
    let mut reversed = chain("Relu");
    reversed.proto.graph.as_option_mut().expect("a graph").node.reverse();
    quickly("reversed", || exercise_model(&reversed));
}
