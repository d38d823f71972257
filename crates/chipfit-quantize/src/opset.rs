//! Raises a graph of operator sets 7 to 12 to 13, which has per-channel QuantizeLinear and DequantizeLinear.
//!
//! Only where the new spelling says exactly the same: attributes that became inputs (Clip, Pad, Slice, Squeeze,
//! Unsqueeze, Split, ReduceSum), Upsample and the first Resize, and Softmax, whose axis used to mean all axes from
//! it on. Operators of [`UNCHANGED`] only gained element types or optional attributes. Everything else is an error
//! naming the node: `onnx.version_converter` exists.

use chipfit_model::build::{attr, attr_i, attr_s, get_f, get_i, get_is, get_s, is_op, node};
use chipfit_model::proto::NodeProto;
use chipfit_model::{ConstTensor, Shapes};

use crate::error::QuantizeError;
use crate::graph::{Graph, MIN_OPSET, input, label, operator, output};

/// Operators of the default domain that mean at operator set 13 what they meant at 7.
const UNCHANGED: &[&str] = &[
    "Abs",
    "Acos",
    "Add",
    "And",
    "ArgMax",
    "ArgMin",
    "Asin",
    "Atan",
    "AveragePool",
    "Cast",
    "Ceil",
    "Clip",
    "Concat",
    "ConstantOfShape",
    "Conv",
    "Cos",
    "DepthToSpace",
    "Div",
    "Dropout",
    "Elu",
    "Equal",
    "Erf",
    "Exp",
    "Expand",
    "Flatten",
    "Floor",
    "Gather",
    "Gemm",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "Greater",
    "HardSigmoid",
    "Identity",
    "InstanceNormalization",
    "LRN",
    "LeakyRelu",
    "Less",
    "Log",
    "LpNormalization",
    "MatMul",
    "Max",
    "MaxPool",
    "Mean",
    "Min",
    "Mul",
    "Neg",
    "Not",
    "Or",
    "PRelu",
    "Pow",
    "Reciprocal",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSumSquare",
    "Relu",
    "Reshape",
    "Selu",
    "Shape",
    "Sigmoid",
    "Sign",
    "Sin",
    "Size",
    "Softplus",
    "Softsign",
    "SpaceToDepth",
    "Sqrt",
    "Sub",
    "Sum",
    "Tan",
    "Tanh",
    "Tile",
    "Transpose",
    "Where",
    "Xor",
];

/// Raises `graph` to [`MIN_OPSET`] where it is below. `shapes` are those of the graph as it is.
pub(crate) fn raise(graph: &mut Graph, shapes: &Shapes) -> Result<(), QuantizeError> {
    let opset = graph.opset;
    if opset >= MIN_OPSET {
        return Ok(());
    }
    if opset < 7 {
        let why = "operator sets below 7 broadcast by attribute".to_owned();
        return Err(QuantizeError::Opset { opset, node: None, why });
    }
    let mut raised = Vec::with_capacity(graph.nodes.len());
    for node in std::mem::take(&mut graph.nodes) {
        if !matches!(node.domain.as_deref(), None | Some("" | "ai.onnx")) {
            raised.push(node);
            continue;
        }
        let fail = |why: String| QuantizeError::Opset { opset, node: Some(label(&node)), why };
        match raise_node(graph, shapes, &node) {
            Ok(nodes) => raised.extend(nodes),
            Err(why) => return Err(fail(why)),
        }
    }
    graph.nodes = raised;
    graph.opset = MIN_OPSET;
    Ok(())
}

fn raise_node(graph: &mut Graph, shapes: &Shapes, old: &NodeProto) -> Result<Vec<NodeProto>, String> {
    let op = old.op_type.as_deref().unwrap_or_default();
    let opset = graph.opset;
    let mut new = old.clone();
    let mut without =
        |names: &[&str]| new.attribute.retain(|a| !names.contains(&a.name.as_deref().unwrap_or_default()));
    match op {
        "BatchNormalization" => {
            if get_i(old, "spatial") == Some(0) {
                return Err("spatial = 0 has no counterpart".to_owned());
            }
            without(&["spatial"]);
        }
        "ConvTranspose" => {
            let rule = get_s(old, "auto_pad").unwrap_or("NOTSET");
            if opset < 11 && rule.starts_with("SAME") {
                return Err(format!("auto_pad {rule} changed its meaning at opset 11"));
            }
        }
        "Clip" if opset < 11 => {
            without(&["min", "max"]);
            let (min, max) = (bound(graph, old, "min"), bound(graph, old, "max"));
            new.input.extend([min, max]);
            while new.input.last().is_some_and(String::is_empty) {
                new.input.pop();
            }
        }
        "Pad" if opset < 11 => {
            without(&["pads", "value"]);
            let pads = get_is(old, "pads").ok_or("no attribute pads")?.to_vec();
            let pads = vector(graph, old, "pads", &pads);
            let value = ConstTensor::from_f32(Vec::new(), &[get_f(old, "value").unwrap_or(0.0)]);
            let value = graph.add_constant(&format!("{}_value", output(old)), value.ok_or("a broken value")?);
            new.input.extend([pads, value]);
        }
        "Slice" if opset < 10 => {
            without(&["starts", "ends", "axes"]);
            let starts = get_is(old, "starts").ok_or("no attribute starts")?.to_vec();
            let ends = get_is(old, "ends").ok_or("no attribute ends")?.to_vec();
            let axes = get_is(old, "axes").map(<[i64]>::to_vec);
            let axes = axes.unwrap_or_else(|| (0i64..).zip(&starts).map(|(axis, _)| axis).collect());
            for (what, values) in [("starts", starts), ("ends", ends), ("axes", axes)] {
                let name = vector(graph, old, what, &values);
                new.input.push(name);
            }
        }
        "Squeeze" | "Unsqueeze" | "ReduceSum" => attribute_to_input(graph, old, &mut new, "axes"),
        "Split" => attribute_to_input(graph, old, &mut new, "split"),
        "Upsample" | "Resize" if opset < 11 => return resize(graph, old),
        "Resize" | "Pad" | "Slice" => {}
        "Softmax" | "LogSoftmax" | "Hardmax" => return softmax(graph, shapes, old),
        _ if UNCHANGED.contains(&op) => {}
        _ => return Err(format!("{} is not converted here", operator(old))),
    }
    Ok(vec![new])
}

/// A constant vector that stands for an attribute of `node`.
fn vector(graph: &mut Graph, node: &NodeProto, what: &str, values: &[i64]) -> String {
    graph.add_constant(&format!("{}_{what}", output(node)), ConstTensor::from_i64s(values))
}

/// A bound of Clip; empty where it has none.
fn bound(graph: &mut Graph, node: &NodeProto, what: &str) -> String {
    let value = get_f(node, what).and_then(|v| ConstTensor::from_f32(Vec::new(), &[v]));
    value.map_or_else(String::new, |value| graph.add_constant(&format!("{}_{what}", output(node)), value))
}

fn attribute_to_input(graph: &mut Graph, old: &NodeProto, new: &mut NodeProto, what: &str) {
    if let Some(values) = get_is(old, what) {
        let name = vector(graph, old, what, values);
        new.attribute.retain(|a| a.name.as_deref() != Some(what));
        new.input.truncate(1);
        new.input.push(name);
    }
}

/// Upsample and the Resize of operator set 10: both asymmetric, and nearest means rounding down.
fn resize(graph: &mut Graph, old: &NodeProto) -> Result<Vec<NodeProto>, String> {
    let scales = match (input(old, 1), attr(old, "scales")) {
        (Some(name), _) => name.to_owned(),
        (None, Some(a)) => {
            let scales = ConstTensor::from_f32(vec![a.floats.len()], &a.floats).ok_or("broken scales")?;
            graph.add_constant(&format!("{}_scales", output(old)), scales)
        }
        (None, None) => return Err("no scales".to_owned()),
    };
    let mode = get_s(old, "mode").unwrap_or("nearest");
    let mut attributes = vec![attr_s("mode", mode), attr_s("coordinate_transformation_mode", "asymmetric")];
    if mode == "nearest" {
        attributes.push(attr_s("nearest_mode", "floor"));
    }
    let x = input(old, 0).ok_or("no input")?;
    let name = old.name.as_deref().unwrap_or_default();
    Ok(vec![node("Resize", name, &[x, "", &scales], &[output(old)], attributes)])
}

/// Before operator set 13 Softmax flattened its input to two axes at `axis`, which was 1 by default.
fn softmax(graph: &mut Graph, shapes: &Shapes, old: &NodeProto) -> Result<Vec<NodeProto>, String> {
    let op = old.op_type.as_deref().unwrap_or_default();
    let name = old.name.as_deref().unwrap_or_default();
    let x = input(old, 0).ok_or("no input")?;
    let axis = get_i(old, "axis").unwrap_or(1);
    if let Some(dims) = shapes.get(0, x).dims {
        let rank = i64::try_from(dims.len()).unwrap_or(i64::MAX);
        let first = if axis < 0 { axis.saturating_add(rank) } else { axis };
        let from = usize::try_from(first).ok().and_then(|first| dims.get(first..));
        // One axis alone, or one followed by axes of length 1.
        if let Some([_, rest @ ..]) = from
            && rest.iter().all(|d| d.known() == Some(1))
        {
            return Ok(vec![node(op, name, &[x], &[output(old)], vec![attr_i("axis", first)])]);
        }
    }
    let mut fresh = |what: &str| graph.fresh(&format!("{}_{what}", output(old)));
    let (shape, flat, rows) = (fresh("shape"), fresh("flat"), fresh("rows"));
    Ok(vec![
        node("Shape", &shape, &[x], &[&shape], Vec::new()),
        node("Flatten", &flat, &[x], &[&flat], vec![attr_i("axis", axis)]),
        node(op, name, &[&flat], &[&rows], vec![attr_i("axis", 1)]),
        node("Reshape", &format!("{rows}_reshape"), &[&rows, &shape], &[output(old)], Vec::new()),
    ])
}

/// Whether Dropout is what it is at run time: nothing.
pub(crate) fn is_idle_dropout(graph: &Graph, node: &NodeProto) -> bool {
    let training = graph.constant(node, 2).and_then(ConstTensor::to_i64_vec);
    is_op(node, "Dropout") && (input(node, 2).is_none() || training.is_some_and(|t| t == [0]))
}
