//! Tests of training from scratch; what they share: small models and pictures.

mod golden;
mod gradients;

mod reading;
mod reference;
mod running;

use chipfit_model::build::{DimSpec, attr_f, attr_i, attr_is, node, value_info};
use chipfit_model::proto::{AttributeProto, GraphProto, ModelProto, OperatorSetIdProto};
use chipfit_model::zoo::{self, ZooOptions};
use chipfit_model::{ConstTensor, DataType, Model};

use super::pictures::MemoryPictures;

/// A generator of test numbers (xorshift64*).
pub(super) struct Numbers(u64);

impl Numbers {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// Uniform in -1 to 1.
    pub(super) fn next(&mut self) -> f32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub(super) fn list(&mut self, length: usize) -> Vec<f32> {
        (0..length).map(|_| self.next()).collect()
    }
}

/// A model under construction, of input `[N, channels, rows, columns]`.
pub(super) struct Small {
    graph: GraphProto,
    numbers: Numbers,
    last: String,
}

impl Small {
    pub(super) fn new(input: [i64; 3]) -> Self {
        let dims: Vec<DimSpec> =
            std::iter::once(DimSpec::from("N")).chain(input.into_iter().map(DimSpec::Known)).collect();
        let graph = GraphProto {
            name: Some("small".to_owned()),
            input: vec![value_info("x", DataType::Float, &dims)],
            ..GraphProto::default()
        };
        Self { graph, numbers: Numbers::new(5), last: "x".to_owned() }
    }

    pub(super) fn last(&self) -> String {
        self.last.clone()
    }

    pub(super) fn go_on_from(&mut self, name: &str) {
        self.last = name.to_owned();
    }

    pub(super) fn constant(&mut self, name: &str, dims: &[usize], values: &[f32]) -> String {
        let tensor = ConstTensor::from_f32(dims.to_vec(), values).expect("dims and values agree");
        self.graph.initializer.push(tensor.to_proto(name));
        name.to_owned()
    }

    fn parameter(&mut self, name: &str, dims: &[usize]) -> String {
        let values = self.numbers.list(dims.iter().product());
        self.constant(name, dims, &values)
    }

    /// A node whose first input is the last value.
    pub(super) fn op(&mut self, op: &str, name: &str, more: &[String], attributes: Vec<AttributeProto>) {
        let inputs: Vec<String> = std::iter::once(self.last()).chain(more.iter().cloned()).collect();
        self.graph.node.push(node(op, name, &inputs, &[name], attributes));
        self.last = name.to_owned();
    }

    pub(super) fn conv(&mut self, name: &str, dims: [usize; 4], stride: i64, pads: [i64; 4], group: i64) {
        let weight = self.parameter(&format!("{name}.weight"), &dims);
        let bias = self.parameter(&format!("{name}.bias"), &dims[..1]);
        let attributes = vec![attr_is("strides", &[stride, stride]), attr_is("pads", &pads), attr_i("group", group)];
        self.op("Conv", name, &[weight, bias], attributes);
    }

    pub(super) fn norm(&mut self, name: &str, channels: usize) {
        let parts: Vec<String> = ["scale", "shift", "mean"]
            .iter()
            .map(|part| self.parameter(&format!("{name}.{part}"), &[channels]))
            .collect();
        let variance: Vec<f32> = self.numbers.list(channels).iter().map(|v| 1.5 + v).collect();
        let variance = self.constant(&format!("{name}.variance"), &[channels], &variance);
        let parts: Vec<String> = parts.into_iter().chain([variance]).collect();
        self.op("BatchNormalization", name, &parts, vec![attr_f("epsilon", 1e-3), attr_f("momentum", 0.75)]);
    }

    pub(super) fn window(&mut self, op: &str, name: &str, kernel: i64, stride: i64, pads: [i64; 4], counts: i64) {
        let mut attributes = vec![
            attr_is("kernel_shape", &[kernel, kernel]),
            attr_is("strides", &[stride, stride]),
            attr_is("pads", &pads),
        ];
        if op == "AveragePool" {
            attributes.push(attr_i("count_include_pad", counts));
        }
        self.op(op, name, &[], attributes);
    }

    pub(super) fn matrix(&mut self, op: &str, name: &str, dims: [usize; 2], attributes: Vec<AttributeProto>) {
        let weight = self.parameter(&format!("{name}.weight"), &dims);
        self.op(op, name, &[weight], attributes);
    }

    pub(super) fn add_row(&mut self, name: &str, length: usize) {
        let row = self.parameter(&format!("{name}.row"), &[length]);
        self.op("Add", name, &[row], Vec::new());
    }

    pub(super) fn model(mut self, classes: i64) -> Model {
        let last = self.last();
        self.graph.output.push(value_info(&last, DataType::Float, &[DimSpec::from("N"), DimSpec::Known(classes)]));
        let operators = OperatorSetIdProto { version: Some(17), ..Default::default() };
        let proto = ModelProto {
            ir_version: Some(8),
            opset_import: vec![operators],
            graph: self.graph.into(),
            ..ModelProto::default()
        };
        Model { proto, folder: None }
    }
}

/// Every operator that can be trained: convolutions of all kinds, a shortcut, pools, both matrix products.
pub(super) fn all_kinds() -> Model {
    let mut net = Small::new([2, 9, 7]);
    net.conv("stem", [4, 2, 3, 3], 1, [1, 1, 1, 1], 1);
    net.norm("stem_norm", 4);
    let bounds = [net.constant("low", &[], &[0.0]), net.constant("high", &[], &[1.25])];
    net.op("Clip", "relu6", &bounds, Vec::new());
    net.conv("depthwise", [4, 1, 3, 3], 2, [0, 1, 1, 0], 4);
    net.norm("depthwise_norm", 4);
    let shortcut = net.last();
    net.conv("grouped", [4, 2, 3, 3], 1, [1, 1, 1, 1], 2);
    net.norm("grouped_norm", 4);
    net.op("Add", "sum", &[shortcut], Vec::new());
    net.op("Relu", "relu", &[], Vec::new());
    net.window("MaxPool", "maxpool", 3, 1, [1, 1, 1, 1], 0);
    net.window("AveragePool", "averagepool", 3, 2, [1, 1, 1, 1], 0);
    net.window("AveragePool", "paddedpool", 2, 1, [1, 0, 0, 1], 1);
    net.op("Flatten", "flatten", &[], vec![attr_i("axis", 1)]);
    let flat = net.last();
    net.matrix("MatMul", "product", [4 * 2 * 2, 6], Vec::new());
    net.add_row("biased", 6);
    let left = net.last();
    net.go_on_from(&flat);
    net.matrix("Gemm", "gemm", [6, 4 * 2 * 2], vec![attr_i("transB", 1)]);
    net.op("Relu", "gemm_relu", &[], Vec::new());
    net.op("Add", "both", &[left], Vec::new());
    net.matrix("Gemm", "logits", [6, 3], Vec::new());
    net.op("Softmax", "shares", &[], Vec::new());
    net.model(3)
}

pub(super) fn zoo(name: &str) -> Model {
    zoo::build(name, &ZooOptions { batch: None, ..ZooOptions::default() }).expect("the zoo has it")
}

/// Pictures that a network can learn: a bright stripe on noise, whose place is the class.
pub(super) fn stripes(shape: [usize; 3], classes: u32, count: usize, seed: u64) -> MemoryPictures {
    let [channels, rows, columns] = shape;
    let mut numbers = Numbers::new(seed);
    let mut pictures = MemoryPictures::new(shape);
    for at in 0..count {
        let label = u32::try_from(at).expect("few pictures") % classes;
        let mut values: Vec<f32> =
            numbers.list(channels * rows * columns).iter().map(|v| (v * 32.0).round() / 64.0).collect();
        let row = (label as usize * rows) / classes as usize;
        for channel in 0..channels {
            for column in 0..columns {
                values[(channel * rows + row) * columns + column] += 1.0;
            }
        }
        pictures.extend(&values, &[label]).expect("they fit");
    }
    pictures
}
