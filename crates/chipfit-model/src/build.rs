//! Small constructors for ONNX messages: nodes, attributes, value infos.

use crate::proto::{
    __buffa::oneof::tensor_shape_proto::dimension::Value as DimValue, __buffa::oneof::type_proto::Value as TypeValue,
    AttributeProto, NodeProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto,
    attribute_proto::AttributeType, tensor_shape_proto, type_proto,
};
use crate::tensor::DataType;

/// A node of the default domain.
pub fn node<I: AsRef<str>, O: AsRef<str>>(
    op_type: &str,
    name: &str,
    inputs: &[I],
    outputs: &[O],
    attributes: Vec<AttributeProto>,
) -> NodeProto {
    NodeProto {
        op_type: Some(op_type.to_owned()),
        name: Some(name.to_owned()),
        input: inputs.iter().map(|s| s.as_ref().to_owned()).collect(),
        output: outputs.iter().map(|s| s.as_ref().to_owned()).collect(),
        attribute: attributes,
        ..NodeProto::default()
    }
}

fn attribute(name: &str, kind: AttributeType) -> AttributeProto {
    AttributeProto { name: Some(name.to_owned()), r#type: Some(kind), ..AttributeProto::default() }
}

/// An integer attribute.
pub fn attr_i(name: &str, value: i64) -> AttributeProto {
    AttributeProto { i: Some(value), ..attribute(name, AttributeType::INT) }
}
/// A list-of-integers attribute.
pub fn attr_is(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto { ints: values.to_vec(), ..attribute(name, AttributeType::INTS) }
}
/// A float attribute.
pub fn attr_f(name: &str, value: f32) -> AttributeProto {
    AttributeProto { f: Some(value), ..attribute(name, AttributeType::FLOAT) }
}
/// A string attribute.
pub fn attr_s(name: &str, value: &str) -> AttributeProto {
    AttributeProto { s: Some(value.as_bytes().to_vec().into()), ..attribute(name, AttributeType::STRING) }
}
/// A tensor attribute.
pub fn attr_t(name: &str, value: TensorProto) -> AttributeProto {
    AttributeProto { t: value.into(), ..attribute(name, AttributeType::TENSOR) }
}

/// One dimension of a declared shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DimSpec {
    /// A fixed length.
    Known(i64),
    /// A named, dynamic length.
    Named(String),
}
impl From<i64> for DimSpec {
    fn from(value: i64) -> Self {
        Self::Known(value)
    }
}
impl From<&str> for DimSpec {
    fn from(value: &str) -> Self {
        Self::Named(value.to_owned())
    }
}

/// A tensor-typed value info.
pub fn value_info(name: &str, dtype: DataType, dims: &[DimSpec]) -> ValueInfoProto {
    let dim = dims
        .iter()
        .map(|d| tensor_shape_proto::Dimension {
            value: Some(match d {
                DimSpec::Known(n) => DimValue::DimValue(*n),
                DimSpec::Named(s) => DimValue::DimParam(s.clone()),
            }),
            ..Default::default()
        })
        .collect();
    let tensor = type_proto::Tensor {
        elem_type: Some(dtype.code()),
        shape: TensorShapeProto { dim, ..Default::default() }.into(),
        ..Default::default()
    };
    ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: TypeProto { value: Some(TypeValue::TensorType(Box::new(tensor))), ..Default::default() }.into(),
        ..Default::default()
    }
}

/// The attribute `name` of `node`.
pub fn attr<'a>(node: &'a NodeProto, name: &str) -> Option<&'a AttributeProto> {
    node.attribute.iter().find(|a| a.name.as_deref() == Some(name))
}
/// The integer attribute `name`, if present.
pub fn get_i(node: &NodeProto, name: &str) -> Option<i64> {
    attr(node, name)?.i
}
/// The integer-list attribute `name`, if present.
pub fn get_is<'a>(node: &'a NodeProto, name: &str) -> Option<&'a [i64]> {
    attr(node, name).map(|a| a.ints.as_slice())
}
/// The float attribute `name`, if present.
pub fn get_f(node: &NodeProto, name: &str) -> Option<f32> {
    attr(node, name)?.f
}
/// The string attribute `name`, if present and UTF-8.
pub fn get_s<'a>(node: &'a NodeProto, name: &str) -> Option<&'a str> {
    std::str::from_utf8(attr(node, name)?.s.as_ref()?).ok()
}

/// Whether a node is `op_type` of the default domain.
pub fn is_op(node: &NodeProto, op_type: &str) -> bool {
    matches!(node.domain.as_deref(), None | Some("" | "ai.onnx")) && node.op_type.as_deref() == Some(op_type)
}
