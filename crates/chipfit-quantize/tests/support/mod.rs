//! What the tests share: small networks, pictures of random numbers, and running both in the embedded engine.

#![allow(dead_code, reason = "every test file takes what it needs")]

use bytes::Bytes;
use chipfit_model::build::{self, DimSpec};
use chipfit_model::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto};
use chipfit_model::{ConstTensor, DataType, Model};
use chipfit_quantize::{Calibration, Options, Prepared, Report};
use chipfit_run::engine::{Engine as _, RtenEngine};

/// Numbers of about 1, the same for the same seed.
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub(crate) fn list(&mut self, count: usize, scale: f32) -> Vec<f32> {
        (0..count).map(|_| self.next() * scale).collect()
    }
}

/// A network under construction; values are named by the caller.
pub(crate) struct Net {
    pub(crate) nodes: Vec<NodeProto>,
    pub(crate) constants: Vec<TensorProto>,
    pub(crate) numbers: Numbers,
    pub(crate) opset: i64,
}

impl Net {
    pub(crate) fn new(seed: u64) -> Self {
        Self { nodes: Vec::new(), constants: Vec::new(), numbers: Numbers::new(seed), opset: 17 }
    }

    pub(crate) fn constant(&mut self, name: &str, dims: &[usize], values: &[f32]) {
        self.constants.push(ConstTensor::from_f32(dims.to_vec(), values).unwrap().to_proto(name));
    }

    pub(crate) fn random(&mut self, name: &str, dims: &[usize], scale: f32) {
        let values = self.numbers.list(dims.iter().product(), scale);
        self.constant(name, dims, &values);
    }

    pub(crate) fn integers(&mut self, name: &str, values: &[i64]) {
        self.constants.push(ConstTensor::from_i64s(values).to_proto(name));
    }

    pub(crate) fn node(&mut self, op: &str, inputs: &[&str], output: &str, attributes: Vec<AttributeProto>) {
        self.nodes.push(build::node(op, &format!("node_{output}"), inputs, &[output], attributes));
    }

    /// A 3x3 convolution that keeps the size, with weights `OUTPUT.w` and a bias `OUTPUT.b`.
    pub(crate) fn conv(&mut self, x: &str, output: &str, from: usize, to: usize, bias: bool) {
        let (w, b) = (format!("{output}.w"), format!("{output}.b"));
        self.random(&w, &[to, from, 3, 3], 0.3);
        let mut inputs = vec![x, w.as_str()];
        if bias {
            self.random(&b, &[to], 0.5);
            inputs.push(&b);
        }
        self.node("Conv", &inputs, output, vec![build::attr_is("pads", &[1; 4])]);
    }

    /// A normalisation with parameters `OUTPUT.gamma` and so on.
    pub(crate) fn norm(&mut self, x: &str, output: &str, channels: usize) {
        let name = |part: &str| format!("{output}.{part}");
        for (part, middle) in [("gamma", 1.2), ("beta", 0.0), ("mean", 0.1), ("variance", 1.5)] {
            let values: Vec<f32> = (0..channels).map(|_| middle + self.numbers.next() * 0.9).collect();
            self.constant(&name(part), &[channels], &values);
        }
        let inputs = [x.to_owned(), name("gamma"), name("beta"), name("mean"), name("variance")];
        self.nodes.push(build::node(
            "BatchNormalization",
            &format!("node_{output}"),
            &inputs,
            &[output],
            vec![build::attr_f("epsilon", 1e-3)],
        ));
    }

    /// The model with input `x` of `dims` and output `y`.
    pub(crate) fn model(self, dims: &[i64], y: &str) -> Model {
        let spec: Vec<DimSpec> = dims.iter().map(|&d| DimSpec::Known(d)).collect();
        let mut output = build::value_info(y, DataType::Float, &[]);
        if let Some(chipfit_model::proto::__buffa::oneof::type_proto::Value::TensorType(t)) =
            output.r#type.as_option_mut().and_then(|t| t.value.as_mut())
        {
            t.shape = Default::default();
        }
        let graph = GraphProto {
            name: Some("net".to_owned()),
            node: self.nodes,
            initializer: self.constants,
            input: vec![build::value_info("x", DataType::Float, &spec)],
            output: vec![output],
            ..GraphProto::default()
        };
        let opset = OperatorSetIdProto { version: Some(self.opset), ..Default::default() };
        let proto =
            ModelProto { ir_version: Some(8), opset_import: vec![opset], graph: graph.into(), ..ModelProto::default() };
        Model { proto, folder: None }
    }
}

/// The first output for one input.
pub(crate) fn run(model: &Model, dims: &[usize], values: &[f32]) -> Vec<f32> {
    let input = ConstTensor::from_f32(dims.to_vec(), values).unwrap();
    let engine = RtenEngine { threads: 1, ..RtenEngine::default() };
    let mut session = engine.load(&Bytes::from(model.to_bytes().unwrap()), None).unwrap();
    let outputs = session.run(&[("x".to_owned(), input)]).unwrap();
    outputs[0].1.to_f64_vec().unwrap().iter().map(|&v| v as f32).collect()
}

/// Quantises on `batches` random inputs; gives the inputs, too.
pub(crate) fn quantised(model: &Model, dims: &[usize], options: &Options) -> (Model, Report, Vec<Vec<f32>>) {
    let prepared = Prepared::new(model).unwrap();
    let engine = RtenEngine { threads: 1, ..RtenEngine::default() };
    let mut calibration = Calibration::new(&prepared, &engine, options).unwrap();
    let mut numbers = Numbers::new(77);
    let batches: Vec<Vec<f32>> = (0..4).map(|_| numbers.list(dims.iter().product(), 1.0)).collect();
    for batch in &batches {
        calibration.observe_floats(dims, batch).unwrap();
    }
    let (model, report) = prepared.quantize(&calibration.finish().unwrap(), options).unwrap();
    (model, report, batches)
}

/// The largest difference relative to the largest magnitude.
pub(crate) fn relative(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let largest = a.iter().fold(f32::MIN_POSITIVE, |m, v| m.max(v.abs()));
    a.iter().zip(b).fold(0f32, |m, (x, y)| m.max((x - y).abs())) / largest
}

/// The operators of the main graph, in order.
pub(crate) fn operators(model: &Model) -> Vec<String> {
    model.graph().node.iter().map(|n| n.op_type.clone().unwrap()).collect()
}

/// The node that makes a value.
pub(crate) fn maker<'m>(model: &'m Model, name: &str) -> &'m NodeProto {
    model
        .graph()
        .node
        .iter()
        .find(|n| n.output.iter().any(|o| o == name))
        .unwrap_or_else(|| panic!("no maker of {name}"))
}

/// The nodes that read a value.
pub(crate) fn readers<'m>(model: &'m Model, name: &str) -> Vec<&'m NodeProto> {
    model.graph().node.iter().filter(|n| n.input.iter().any(|i| i == name)).collect()
}

/// A constant of the model.
pub(crate) fn constant(model: &Model, name: &str) -> ConstTensor {
    let found = model.graph().initializer.iter().find(|t| t.name.as_deref() == Some(name));
    model.tensor(found.unwrap_or_else(|| panic!("no constant {name}"))).unwrap()
}
