//! Says for `rten` what a file leaves to the standard, and refuses what it would take for something else.
//!
//! `rten` 0.27 reads the number of spatial axes of a convolution from `kernel_shape` alone, takes the default
//! axis of QuantizeLinear for -1, follows external data only into files that are called `*.data`, and reads
//! SAME_LOWER as SAME_UPPER. Here `kernel_shape` and `axis` are written out where constants show them, external
//! data gets names that pass, and a node that would silently compute something else is an error.

use std::path::PathBuf;

use chipfit_model::build::{attr, attr_i, attr_is, get_s, is_op};
use chipfit_model::index::{ConstantData, node_label};
use chipfit_model::onnx::make_external;
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
    let mut changed = false;
    let patch = spelled_out(&Index::new(model))?;
    if !patch.edits.is_empty() {
        model.apply(&patch).map_err(|e| failed(LOAD, e))?;
        changed = true;
    }
    let files = model.external_files().map_err(|e| failed(LOAD, e))?;
    let data: Vec<(String, PathBuf)> = files.into_iter().enumerate().map(|(i, f)| (format!("{i}.data"), f)).collect();
    if !data.is_empty() {
        let graph = model.proto.graph.as_option_mut();
        graph.map_or(Ok(()), |graph| for_each_tensor(graph, &mut |tensor| relocate(tensor, &data)))?;
        changed = true;
    }
    Ok(Adapted { changed, data })
}

/// The edits that give nodes the attributes they leave out.
fn spelled_out(index: &Index<'_>) -> Result<Patch, EngineError> {
    let mut patch = Patch::default();
    for (id, scope) in index.scopes.iter().enumerate() {
        let mut edit = ScopeEdit::new(scope.path.clone());
        for (position, node) in scope.nodes.iter().enumerate() {
            refuse(node, position, scope.opset)?;
            if let Some(attribute) = missing_attribute(index, id, node) {
                let mut next = node.clone();
                next.attribute.push(attribute);
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

const WINDOWED: [&str; 5] = ["Conv", "ConvInteger", "ConvTranspose", "MaxPool", "AveragePool"];

/// Refuses padding rules that the engine does not have but accepts.
fn refuse(node: &NodeProto, position: usize, opset: i64) -> Result<(), EngineError> {
    if !WINDOWED.iter().any(|op| is_op(node, op)) {
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

fn missing_attribute(index: &Index<'_>, scope: ScopeId, node: &NodeProto) -> Option<AttributeProto> {
    let dims_of = |input: usize| match index.constant(scope, node.input.get(input)?)?.data {
        ConstantData::Tensor(tensor) => Some(tensor.dims.as_slice()),
        ConstantData::Attribute(_) => None,
    };
    let is_convolution = WINDOWED.iter().take(3).any(|op| is_op(node, op));
    if is_convolution && attr(node, "kernel_shape").is_none() {
        let kernel = weight_dims(index, scope, node)?.get(2..)?;
        return Some(attr_is("kernel_shape", kernel));
    }
    if is_op(node, "QuantizeLinear") && attr(node, "axis").is_none() {
        let per_channel = matches!(dims_of(1)?, [n] if *n > 1);
        return per_channel.then(|| attr_i("axis", 1));
    }
    None
}

/// The shape of a convolution's constant weight, behind a DequantizeLinear too.
fn weight_dims<'m>(index: &Index<'m>, scope: ScopeId, node: &NodeProto) -> Option<&'m [i64]> {
    let name = node.input.get(1)?;
    let (scope, name) = match index.producer_node(scope, name) {
        Some((home, _, producer)) if is_op(producer, "DequantizeLinear") => (home, producer.input.first()?),
        _ => (scope, name),
    };
    match index.constant(scope, name)?.data {
        ConstantData::Tensor(tensor) => Some(&tensor.dims),
        ConstantData::Attribute(_) => None,
    }
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
