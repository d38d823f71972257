//! Says for `rten` what a file leaves to the standard, and refuses what it would take for something else.
//!
//! `rten` 0.27 reads the number of spatial axes of a convolution from `kernel_shape` alone, has no default for the
//! strides of a pooling, takes the default axis of QuantizeLinear for -1, follows external data only into files
//! that are called `*.data`, names nodes in errors by name alone, and reads SAME_LOWER as SAME_UPPER. Here strides,
//! dilations, pads and axis are written out where the file shows the rank, external data gets names that pass,
//! unnamed nodes get a label, and a node that would silently compute something else is an error.

use std::path::PathBuf;

use chipfit_model::build::{attr, attr_i, attr_is, get_is, get_s, is_op};
use chipfit_model::index::{ConstantData, node_label};
use chipfit_model::onnx::make_external;
use chipfit_model::proto::__buffa::oneof::tensor_shape_proto::dimension::Value as DimValue;
use chipfit_model::proto::__buffa::oneof::type_proto::Value as TypeValue;
use chipfit_model::proto::{AttributeProto, GraphProto, NodeProto, TensorProto};
use chipfit_model::tensor::{ExternalRef, is_external};
use chipfit_model::{DataType, Index, Model, Patch, ScopeEdit, ScopeId};

use super::{LOAD, failed, unsupported};
use crate::engine::EngineError;

/// What [`adapt`] did.
pub(super) struct Adapted {
    /// Whether the model was changed.
    pub(super) changed: bool,
    /// The new locations of external data and the files they stand for, relative to the model's folder.
    pub(super) data: Vec<(String, PathBuf)>,
}

/// Adapts `model` for the engine; its meaning stays the same.
pub(super) fn adapt(model: &mut Model) -> Result<Adapted, EngineError> {
    let patch = spelled_out(&Index::new(model))?;
    let mut changed = !patch.edits.is_empty();
    if changed {
        model.apply(&patch).map_err(|e| failed(LOAD, e))?;
    }
    let files = model.external_files().map_err(|e| failed(LOAD, e))?;
    let data: Vec<(String, PathBuf)> = files.into_iter().enumerate().map(|(i, f)| (format!("{i}.data"), f)).collect();
    if let Some(graph) = model.proto.graph.as_option_mut() {
        changed |= label_nodes(graph) || !data.is_empty();
        for_each_tensor(graph, &mut |tensor| relocate(tensor, &data))?;
    }
    Ok(Adapted { changed, data })
}

/// Names the unnamed nodes of a graph and its subgraphs; whether there were any.
fn label_nodes(graph: &mut GraphProto) -> bool {
    let mut any = false;
    for (position, node) in graph.node.iter_mut().enumerate() {
        if node.name.as_deref().unwrap_or_default().is_empty() {
            node.name = Some(node_label(node, position));
            any = true;
        }
        for attribute in &mut node.attribute {
            for inner in attribute.g.as_option_mut().into_iter().chain(&mut attribute.graphs) {
                any |= label_nodes(inner);
            }
        }
    }
    any
}

/// The edits that give nodes the attributes they leave out.
fn spelled_out(index: &Index<'_>) -> Result<Patch, EngineError> {
    let mut patch = Patch::default();
    for (id, scope) in index.scopes.iter().enumerate() {
        let mut edit = ScopeEdit::new(scope.path.clone());
        for (position, node) in scope.nodes.iter().enumerate() {
            refuse(node, position, scope.opset)?;
            let missing = missing_attributes(index, id, node);
            if !missing.is_empty() {
                let mut next = node.clone();
                next.attribute.extend(missing);
                edit.remove_nodes.insert(position);
                edit.insert_nodes.push((position, vec![next]));
            }
        }
        if !edit.remove_nodes.is_empty() {
            patch.edits.push(edit);
        }
    }
    Ok(patch)
}

const CONVOLUTIONS: [&str; 3] = ["Conv", "ConvInteger", "ConvTranspose"];
const POOLINGS: [&str; 2] = ["MaxPool", "AveragePool"];

fn is_one_of(node: &NodeProto, operators: &[&str]) -> bool {
    operators.iter().any(|op| is_op(node, op))
}

/// Refuses padding rules that the engine does not have but accepts.
fn refuse(node: &NodeProto, position: usize, opset: i64) -> Result<(), EngineError> {
    if !is_one_of(node, &CONVOLUTIONS) && !is_one_of(node, &POOLINGS) {
        return Ok(());
    }
    let rule = get_s(node, "auto_pad").unwrap_or("NOTSET");
    // Before opset 11 the odd element of a transposed convolution's SAME padding lay at the other end.
    let old = opset < 11 && is_op(node, "ConvTranspose") && rule == "SAME_UPPER";
    if rule == "SAME_LOWER" || old {
        return Err(unsupported(format!("node '{}' has auto_pad {rule} (opset {opset})", node_label(node, position))));
    }
    Ok(())
}

/// The defaults that a node leaves out and the engine does not know, where they can be told.
fn missing_attributes(index: &Index<'_>, scope: ScopeId, node: &NodeProto) -> Vec<AttributeProto> {
    let input = |position: usize| declared_dims(index, scope, node.input.get(position)?);
    if is_op(node, "QuantizeLinear") && attr(node, "axis").is_none() {
        let per_channel = input(1).is_some_and(|dims| dims.len() == 1 && dims != [Some(1)]);
        return per_channel.then(|| attr_i("axis", 1)).into_iter().collect();
    }
    let is_convolution = is_one_of(node, &CONVOLUTIONS);
    if !is_convolution && !is_one_of(node, &POOLINGS) {
        return Vec::new();
    }
    let kernel = get_is(node, "kernel_shape").map(<[i64]>::len);
    let rank = || input(0).or_else(|| input(1).filter(|_| is_convolution));
    let Some(axes) = kernel.or_else(|| rank()?.len().checked_sub(2)) else { return Vec::new() };
    let same = get_s(node, "auto_pad").is_some_and(|rule| rule.starts_with("SAME"));
    let defaults = [
        ("strides", Some(vec![1; axes])),
        ("dilations", is_convolution.then(|| vec![1; axes])),
        ("pads", (!same).then(|| vec![0; axes.saturating_mul(2)])),
    ];
    let absent =
        |(name, values): (&str, Option<Vec<i64>>)| Some(attr_is(name, &values?)).filter(|_| attr(node, name).is_none());
    defaults.into_iter().filter_map(absent).collect()
}

/// The shape of a value, as far as a constant or a declaration tells it; `None` for a length that is not fixed.
fn declared_dims(index: &Index<'_>, scope: ScopeId, name: &str) -> Option<Vec<Option<i64>>> {
    if let Some(constant) = index.constant(scope, name) {
        return match constant.data {
            ConstantData::Tensor(tensor) => Some(tensor.dims.iter().copied().map(Some).collect()),
            ConstantData::Attribute(_) => None,
        };
    }
    let (home, _) = index.lookup(scope, name)?;
    let info = index.scopes.get(home)?.value_infos.iter().find(|info| info.name.as_deref() == Some(name))?;
    let Some(TypeValue::TensorType(tensor)) = &info.r#type.value else { return None };
    let length = |value: &Option<DimValue>| match value {
        Some(DimValue::DimValue(n)) => Some(*n),
        _ => None,
    };
    Some(tensor.shape.as_option()?.dim.iter().map(|dim| length(&dim.value)).collect())
}

/// Gives an external tensor the location in `data` and a length.
fn relocate(tensor: &mut TensorProto, data: &[(String, PathBuf)]) -> Result<(), EngineError> {
    if !is_external(tensor) {
        return Ok(());
    }
    let source = ExternalRef::of(tensor).map_err(|e| failed(LOAD, e))?;
    let elements = tensor.dims.iter().try_fold(1usize, |n, &d| n.checked_mul(usize::try_from(d).ok()?));
    let dtype = DataType::from_code(tensor.data_type.unwrap_or(0));
    let bytes = elements.zip(dtype).and_then(|(elements, dtype)| dtype.total_bytes(elements));
    let location = data.iter().find(|(_, file)| *file == source.location);
    let (Some(bytes), Some((location, _))) = (bytes, location) else {
        let name = tensor.name.clone().unwrap_or_default();
        return Err(failed(LOAD, format!("tensor '{name}': external data of an unknown type or size")));
    };
    make_external(tensor, location, source.offset, source.length.unwrap_or(bytes as u64));
    Ok(())
}

/// Visits the tensors of a graph: initializers and attributes, subgraphs included. The reader bounds the nesting.
fn for_each_tensor(
    graph: &mut GraphProto,
    visit: &mut dyn FnMut(&mut TensorProto) -> Result<(), EngineError>,
) -> Result<(), EngineError> {
    graph.initializer.iter_mut().try_for_each(&mut *visit)?;
    for attribute in graph.node.iter_mut().flat_map(|node| &mut node.attribute) {
        attribute.t.as_option_mut().into_iter().chain(&mut attribute.tensors).try_for_each(&mut *visit)?;
        for inner in attribute.g.as_option_mut().into_iter().chain(&mut attribute.graphs) {
            for_each_tensor(inner, visit)?;
        }
    }
    Ok(())
}
