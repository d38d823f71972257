//! Random transposed convolutions through the rewrite, the bytes and the proof: every exact form is proven.
//!
//! Ranks 1 to 3, strides and dilations per axis, groups, pads, auto_pad, output_shape, output padding, operator sets
//! 1 to 22, fixed and dynamic dims, float, double, float16, and QDQ (int8 and uint8, per tensor and per channel, with
//! int32 or float bias, with an activation). `CHIPFIT_CASES` sets how many settings each form gets.

use std::cell::Cell;
use std::collections::BTreeMap;

use chipfit_deconv::{Crop, Form, Interleave, Options, plan};
use chipfit_model::build::{DimSpec, attr_i, attr_is, attr_s, node, value_info};
use chipfit_model::proto::{GraphProto, ModelProto, OperatorSetIdProto};
use chipfit_model::{ConstTensor, DataType, Index, Limits, Model, shape};
use chipfit_run::prove::{Claim, ProveOptions, Verdict, prove};
use chipfit_run::reference::{Geometry, SameRule};
use proptest::collection::vec;
use proptest::prelude::any;
use proptest::prop_assert;
use proptest::test_runner::{Config, FileFailurePersistence, RngSeed, TestCaseError, TestRunner};

/// Choices of one setting: read off a tape, so that a shorter tape of smaller numbers is a simpler setting, which is
/// how proptest shrinks it. An exhausted tape gives 0, the simplest choice; tensor data is drawn apart from it.
struct Stream<'t> {
    tape: &'t [u32],
    data: u64,
}

impl Stream<'_> {
    fn below(&mut self, n: u64) -> usize {
        let Some((first, rest)) = self.tape.split_first() else { return 0 };
        self.tape = rest;
        (u64::from(*first) % n) as usize
    }
    fn datum(&mut self, n: u64) -> usize {
        self.data = self.data.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.data;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n) as usize
    }
    fn list(&mut self, count: usize, low: i64, high: i64) -> Vec<i64> {
        (0..count).map(|_| low + self.below((high - low + 1) as u64) as i64).collect()
    }
    fn floats(&mut self, count: usize, dtype: DataType) -> Vec<u8> {
        (0..count)
            .flat_map(|_| {
                let v = self.datum(4001) as f64 / 2000.0 - 1.0;
                match dtype {
                    DataType::Double => v.to_le_bytes().to_vec(),
                    DataType::Float16 => half::f16::from_f64(v).to_le_bytes().to_vec(),
                    DataType::Bfloat16 => half::bf16::from_f64(v).to_le_bytes().to_vec(),
                    _ => (v as f32).to_le_bytes().to_vec(),
                }
            })
            .collect()
    }
    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.datum(256) as u8).collect()
    }
}

/// A random model with one ConvTranspose and the dims of its input; `None` where its output would be empty.
fn model(s: &mut Stream<'_>) -> Option<(Model, Vec<usize>)> {
    let rank = 1 + s.below(3);
    let group = [1, 1, 1, 2, 3][s.below(5)];
    let (in_group, out_group) = (1 + s.below(3), 1 + s.below(3));
    let (c_in, c_out) = (group * in_group, group * out_group);
    let k = s.list(rank, 1, if rank == 3 { 3 } else { 6 });
    let n = s.list(rank, 1, 5);
    let strides = if s.below(2) == 0 { vec![1 + s.below(4) as i64; rank] } else { s.list(rank, 1, 5) };
    let mut attributes =
        vec![attr_is("strides", &strides), attr_is("dilations", &s.list(rank, 1, 3)), attr_i("group", group as i64)];
    match s.below(5) {
        0 => attributes.push(attr_s("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"][s.below(3)])),
        1 => {
            let shape: Vec<i64> = n.iter().zip(&strides).map(|(n, s)| n * s).collect();
            attributes.push(attr_is("output_shape", &shape));
        }
        _ => attributes.push(attr_is("pads", &s.list(2 * rank, 0, 3))),
    }
    let padding: Vec<i64> = strides.iter().map(|&st| s.below(st as u64) as i64).collect();
    attributes.push(attr_is("output_padding", &padding));
    let batch = 1 + s.below(2);
    let lengths = |v: &[i64]| v.iter().map(|&v| v as usize).collect::<Vec<_>>();
    let x_dims = [vec![batch, c_in], lengths(&n)].concat();
    let w_dims = [vec![c_in, out_group], lengths(&k)].concat();
    let quantised = s.below(2) == 0;
    let opset = if quantised { [13, 13, 19, 21][s.below(4)] } else { [1, 6, 9, 10, 11, 13, 18, 22][s.below(8)] };
    let geometry = Geometry::resolve(
        &node("ConvTranspose", "", &["x", "w"], &["y"], attributes.clone()),
        opset,
        &x_dims,
        &w_dims,
        SameRule::Runtimes,
    )
    .ok()?;
    let dynamic = s.below(2) == 0;
    let dims = |fixed: &[usize]| -> Vec<DimSpec> {
        let name = |(i, &d): (usize, &usize)| {
            if dynamic && i != 1 { DimSpec::Named(format!("d{i}")) } else { (d as i64).into() }
        };
        fixed.iter().enumerate().map(name).collect()
    };
    let open = |fixed: &[usize]| -> Vec<DimSpec> {
        let name = |(i, &d): (usize, &usize)| {
            if dynamic && i != 1 { DimSpec::Named(format!("o{i}")) } else { (d as i64).into() }
        };
        fixed.iter().enumerate().map(name).collect()
    };
    let weights = w_dims.iter().product();
    let biased = s.below(3) > 0;
    let mut initializers = Vec::new();
    let mut constant = |name: &str, dtype: DataType, dims: Vec<usize>, bytes: Vec<u8>| {
        initializers.push(ConstTensor::new(dtype, dims, bytes).unwrap().to_proto(name));
    };
    let mut nodes = Vec::new();
    let stored = [DataType::Uint8, DataType::Int8][s.below(2)];
    let real = if quantised {
        DataType::Float
    } else {
        [DataType::Float, DataType::Float, DataType::Double, DataType::Float16][s.below(4)]
    };
    let input = if quantised { stored } else { real };
    if quantised {
        let per_channel = s.below(2) == 0;
        let count = if per_channel { out_group } else { 1 };
        let scale_dims = if per_channel { vec![out_group] } else { vec![] };
        let scales: Vec<f32> = (0..count).map(|_| 0.002 + s.datum(1000) as f32 * 1e-5).collect();
        let f32s = |v: &[f32]| v.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        let x_scale = 0.01f32 + s.below(100) as f32 * 1e-4;
        constant("xs", DataType::Float, vec![], f32s(&[x_scale]));
        constant("xz", stored, vec![], s.bytes(1));
        constant("wq", stored, w_dims.clone(), s.bytes(weights));
        constant("ws", DataType::Float, scale_dims.clone(), f32s(&scales));
        let zeros = if s.below(2) == 0 { vec![0; count] } else { s.bytes(count) };
        constant("wz", stored, scale_dims, zeros);
        constant("ys", DataType::Float, vec![], f32s(&[0.05 + s.below(100) as f32 * 1e-3]));
        constant("yz", stored, vec![], s.bytes(1));
        nodes.push(node("DequantizeLinear", "", &["x", "xs", "xz"], &["xr"], vec![]));
        nodes.push(node("DequantizeLinear", "", &["wq", "ws", "wz"], &["w"], vec![attr_i("axis", 1)]));
        if biased {
            if s.below(2) == 0 {
                let steps: Vec<u8> = (0..c_out).flat_map(|_| (s.datum(4001) as i32 - 2000).to_le_bytes()).collect();
                let bias_scales: Vec<f32> = (0..c_out).map(|c| x_scale * scales[c % out_group % count]).collect();
                constant("bq", DataType::Int32, vec![c_out], steps);
                constant("bs", DataType::Float, vec![c_out], f32s(&bias_scales));
                constant("bz", DataType::Int32, vec![c_out], vec![0; 4 * c_out]);
                nodes.push(node("DequantizeLinear", "", &["bq", "bs", "bz"], &["b"], vec![attr_i("axis", 0)]));
            } else {
                constant("b", DataType::Float, vec![c_out], s.floats(c_out, DataType::Float));
            }
        }
    } else {
        constant("w", real, w_dims.clone(), s.floats(weights, real));
        if biased {
            constant("b", real, vec![c_out], s.floats(c_out, real));
        }
    }
    let x = if quantised { "xr" } else { "x" };
    let inputs: &[&str] = if biased { &[x, "w", "b"] } else { &[x, "w"] };
    nodes.push(node("ConvTranspose", "up", inputs, &[if quantised { "t" } else { "y" }], attributes));
    if quantised {
        let mut last = "t";
        if let Some(op) =
            ["Relu", "LeakyRelu", "HardSwish"].get(s.below(6)).filter(|op| **op != "HardSwish" || opset >= 14)
        {
            nodes.push(node(op, "act", &["t"], &["a"], vec![]));
            last = "a";
        }
        nodes.push(node("QuantizeLinear", "", &[last, "ys", "yz"], &["y"], vec![]));
    }
    let graph = GraphProto {
        name: Some("g".into()),
        node: nodes,
        initializer: initializers,
        input: vec![value_info("x", input, &dims(&x_dims))],
        output: vec![value_info("y", input, &open(&geometry.output_dims()))],
        ..Default::default()
    };
    let proto = ModelProto {
        ir_version: Some(8),
        opset_import: vec![OperatorSetIdProto { version: Some(opset), ..Default::default() }],
        graph: graph.into(),
        ..Default::default()
    };
    let bytes = Model { proto, folder: None }.to_bytes().unwrap();
    Some((Model::from_bytes(bytes.into(), &Limits::default()).unwrap(), x_dims))
}

/// What became of one setting in one form.
enum Outcome {
    /// No such node exists: its output would be empty.
    Empty,
    /// The rewrite kept the node.
    Kept,
    Proven(Form),
}

/// Takes the setting on `tape` through the rewrite, the bytes and the proof.
fn try_form(form: Form, tape: &[u32], data: u64) -> Result<Outcome, TestCaseError> {
    let mut s = Stream { tape, data };
    let interleaves = [None, Some(Interleave::DepthToSpace), Some(Interleave::Reshape), Some(Interleave::Concat)];
    let interleave = interleaves[s.below(4)];
    let max_channels = [None, None, Some(2)][s.below(3)];
    let crop = [Crop::Slice, Crop::Alignment][s.below(2)];
    let Some((original, x_dims)) = model(&mut s) else { return Ok(Outcome::Empty) };
    let index = Index::new(&original);
    // The rewrite sees what the file declares, dynamic dims too; the proof runs with small fixed ones.
    let shapes = shape::infer(&index, &BTreeMap::new()).unwrap();
    let fixed = shape::infer(&index, &BTreeMap::from([("x".to_owned(), x_dims)])).unwrap();
    let options = Options { form: Some(form), interleave, max_channels, crop, ..Default::default() };
    let rewrite = plan(&index, &shapes, &options).unwrap();
    let report = &rewrite.nodes[0];
    let (Some(segment), Some(used)) = (report.segment.clone(), report.form) else {
        let known = ["output_shape with a dynamic", "needs opset 7"].iter().any(|r| report.reason.contains(r));
        prop_assert!(known, "kept without need: {} {:?}", report.reason, describe(&original));
        return Ok(Outcome::Kept);
    };
    let mut changed = original.clone();
    changed.apply(&rewrite.patch).unwrap();
    let written = Model::from_bytes(changed.to_bytes().unwrap().into(), &Limits::default()).unwrap();
    let claim = Claim {
        scope: segment.scope,
        input: segment.input,
        output: segment.output,
        conv_transpose: segment.conv_transpose,
        name: report.name.clone(),
        exact: true,
    };
    let options = ProveOptions { seed: data, ..Default::default() };
    let proof = prove(&original, &written, &fixed, &[claim], &options, &mut |_, _| {}).unwrap().remove(0);
    prop_assert!(matches!(proof.verdict, Verdict::Proven), "{:?} {:?}", proof.verdict, describe(&original));
    Ok(Outcome::Proven(used))
}

/// Proves `form` on as many settings as `CHIPFIT_CASES` says. A failure is shrunk, and its seed is stored in
/// `forms_are_proven.seeds`, which later runs try first.
fn settings_are_proven(form: Form) {
    let cases: u32 = std::env::var("CHIPFIT_CASES").ok().and_then(|c| c.parse().ok()).unwrap_or(2000);
    let persistence = FileFailurePersistence::WithSource("seeds");
    let config = Config {
        cases,
        source_file: Some(file!()),
        failure_persistence: Some(Box::new(persistence)),
        max_global_rejects: cases.saturating_mul(10),
        rng_seed: RngSeed::Fixed(0x0de_c0de + form as u64),
        ..Config::default()
    };
    let counts = Cell::new([0u32; 3]);
    let count = |place: usize| {
        let mut now = counts.get();
        now[place] += 1;
        counts.set(now);
    };
    let strategy = (vec(any::<u32>(), 48..64), any::<u64>());
    let result = TestRunner::new(config).run(&strategy, |(tape, data)| {
        match try_form(form, &tape, data)? {
            Outcome::Empty => return Err(TestCaseError::reject("its output would be empty")),
            Outcome::Kept => count(0),
            Outcome::Proven(used) if used == form => count(1),
            Outcome::Proven(_) => count(2),
        }
        Ok(())
    });
    if let Err(failure) = result {
        panic!("{failure}");
    }
    let [kept, proven, other] = counts.get();
    eprintln!("{}: {proven} proven, {other} proven in another form, {kept} kept", form.name());
    assert!(proven > cases / 2, "only {proven} of {cases} settings were proven as {}", form.name());
}

#[test]
fn split_is_proven() {
    settings_are_proven(Form::Split);
}

#[test]
fn rowsplit_is_proven() {
    settings_are_proven(Form::RowSplit);
}

#[test]
fn fused_is_proven() {
    settings_are_proven(Form::Fused);
}

#[test]
fn zero_pad_is_proven() {
    settings_are_proven(Form::ZeroPad);
}

/// The node's attributes, for messages.
fn describe(model: &Model) -> Vec<String> {
    let node = model.graph().node.iter().find(|n| n.op_type.as_deref() == Some("ConvTranspose"));
    let mut all: Vec<String> = node
        .into_iter()
        .flat_map(|n| &n.attribute)
        .map(|a| format!("{}={:?}{}", a.name.as_deref().unwrap_or(""), a.ints, a.i.unwrap_or(0)))
        .collect();
    all.push(format!("opset={}", model.opset()));
    all.extend(model.graph().initializer.iter().map(|t| format!("{}{:?}", t.name.as_deref().unwrap_or(""), t.dims)));
    all
}
