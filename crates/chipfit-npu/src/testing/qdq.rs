//! Small QDQ models, grown node by node, for tests of this crate and of its users.

use chipfit_model::build::{DimSpec, attr_i, node, value_info};
use chipfit_model::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto};
use chipfit_model::{ConstTensor, DataType, Model};

/// A QDQ model under construction; values are known by name.
#[derive(Clone, Debug)]
pub struct Qdq {
    shape: Vec<i64>,
    nodes: Vec<NodeProto>,
    constants: Vec<TensorProto>,
    /// Type of activations to come.
    pub word: DataType,
}

impl Qdq {
    /// A model whose input `x` has this shape. (Scale and zero point are given again where it is quantised.)
    pub fn new(shape: &[i64], _scale: f32, _zero_point: u8) -> Self {
        Self { shape: shape.to_vec(), nodes: Vec::new(), constants: Vec::new(), word: DataType::Uint8 }
    }

    /// The weight at this place of every weights' file order.
    pub fn weight(at: usize) -> i8 {
        ((at * 37 + 11) % 255) as u8 as i8
    }

    fn constant(&mut self, tensor: Option<ConstTensor>) -> String {
        let name = format!("c{}", self.constants.len());
        self.constants.push(tensor.expect("a tensor of that size").to_proto(&name));
        name
    }

    /// A one-axis float constant.
    pub fn floats(&mut self, values: &[f32]) -> String {
        self.constant(ConstTensor::from_f32(vec![values.len()], values))
    }

    /// A one-axis int64 constant.
    pub fn integers(&mut self, values: &[i64]) -> String {
        self.constant(Some(ConstTensor::from_i64s(values)))
    }

    /// A node's output.
    pub fn node(&mut self, op: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        let output = format!("{}_{}", op.to_lowercase(), self.nodes.len());
        self.nodes.push(node(op, &format!("{op}_{}", self.nodes.len()), inputs, &[&output], attributes));
        output
    }

    /// The output of the last node of an operator.
    pub fn last(&self, op: &str) -> String {
        let found = self.nodes.iter().rev().find(|node| node.op_type.as_deref() == Some(op));
        found.map(|node| node.output[0].clone()).expect("a node of that operator")
    }

    fn grid(&mut self, scale: f32, zero_point: i32) -> [String; 2] {
        let bytes = match self.word {
            DataType::Int16 => (zero_point as i16).to_le_bytes().to_vec(),
            _ => vec![zero_point as u8],
        };
        let scale = self.constant(ConstTensor::from_f32(vec![], &[scale]));
        [scale, self.constant(ConstTensor::new(self.word, vec![], bytes))]
    }

    /// QuantizeLinear behind a value.
    pub fn integer(&mut self, value: &str, scale: f32, zero_point: i32) -> String {
        let [scale, zero] = self.grid(scale, zero_point);
        self.node("QuantizeLinear", &[value, &scale, &zero], vec![])
    }

    /// DequantizeLinear behind an integer value.
    pub fn dequantised(&mut self, value: &str, scale: f32, zero_point: i32) -> String {
        let [scale, zero] = self.grid(scale, zero_point);
        self.node("DequantizeLinear", &[value, &scale, &zero], vec![])
    }

    /// Both behind a value.
    pub fn quantised(&mut self, value: &str, scale: f32, zero_point: impl Into<i32>) -> String {
        let zero_point = zero_point.into();
        let integer = self.integer(value, scale, zero_point);
        self.dequantised(&integer, scale, zero_point)
    }

    /// Dequantised int8 weights: per tensor, or per channel of the axis that has as many (the first such).
    pub fn weights(&mut self, shape: &[usize], scales: &[f32]) -> String {
        let count: usize = shape.iter().product();
        let bytes: Vec<u8> = (0..count).map(|at| Self::weight(at).cast_unsigned()).collect();
        let values = self.constant(ConstTensor::new(DataType::Int8, shape.to_vec(), bytes));
        let dims = if scales.len() == 1 { vec![] } else { vec![scales.len()] };
        let zero = self.constant(ConstTensor::new(DataType::Int8, dims.clone(), vec![0; scales.len()]));
        let scale = self.constant(ConstTensor::from_f32(dims, scales));
        let axis = shape.iter().position(|&length| length == scales.len()).unwrap_or(0);
        self.node("DequantizeLinear", &[&values, &scale, &zero], vec![attr_i("axis", axis as i64)])
    }

    /// A dequantised int32 bias.
    pub fn bias(&mut self, values: &[i32], scales: &[f32]) -> String {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let values = self.constant(ConstTensor::new(DataType::Int32, vec![values.len()], bytes));
        let scale = self.floats(scales);
        self.node("DequantizeLinear", &[&values, &scale], vec![attr_i("axis", 0)])
    }

    /// The model that gives one value.
    pub fn model(&self, output: &str) -> Model {
        self.model_with_outputs(&[output])
    }

    /// The model that gives several values.
    pub fn model_with_outputs(&self, outputs: &[&str]) -> Model {
        let dims: Vec<DimSpec> = self.shape.iter().map(|&d| DimSpec::Known(d)).collect();
        let output = |name: &&str| {
            let mut info = value_info(name, DataType::Float, &[]);
            info.r#type = Default::default();
            info
        };
        let graph = GraphProto {
            name: Some("small".to_owned()),
            node: self.nodes.clone(),
            initializer: self.constants.clone(),
            input: vec![value_info("x", DataType::Float, &dims)],
            output: outputs.iter().map(output).collect(),
            ..GraphProto::default()
        };
        let opset = OperatorSetIdProto { version: Some(17), ..OperatorSetIdProto::default() };
        let file =
            ModelProto { ir_version: Some(8), graph: graph.into(), opset_import: vec![opset], ..ModelProto::default() };
        Model { proto: file, ..Model::default() }
    }
}
