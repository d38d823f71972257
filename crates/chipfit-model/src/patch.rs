//! Edits of a [`Model`]: built first, validated, applied whole or not at all.

use std::collections::BTreeSet;

use crate::index::{CheckError, Index, ScopePath};
use crate::onnx::Model;
use crate::proto::{GraphProto, NodeProto, TensorProto, ValueInfoProto};

/// Changes to one scope.
#[derive(Clone, Debug)]
pub struct ScopeEdit {
    /// The scope, as it was in the model that the patch was built from.
    pub scope: ScopePath,
    /// Nodes to take out, by position.
    pub remove_nodes: BTreeSet<usize>,
    /// Nodes to put in before position `.0` (the length of the list: at its end).
    pub insert_nodes: Vec<(usize, Vec<NodeProto>)>,
    /// Initializers to add. In a function they become Constant nodes; below IR version 4 they are
    /// declared as inputs too, as that version demands.
    pub add_initializers: Vec<TensorProto>,
    /// Names of constants that may have lost their last user: initializers (with their input
    /// declaration), Constant, Identity and DequantizeLinear nodes are removed where nothing reads them any more.
    pub prune: BTreeSet<String>,
}

impl ScopeEdit {
    /// No change yet.
    pub fn new(scope: ScopePath) -> Self {
        Self {
            scope,
            remove_nodes: BTreeSet::new(),
            insert_nodes: Vec::new(),
            add_initializers: Vec::new(),
            prune: BTreeSet::new(),
        }
    }
}

/// A set of edits, at most one a scope.
#[derive(Clone, Debug, Default)]
pub struct Patch {
    /// The edits.
    pub edits: Vec<ScopeEdit>,
}

/// Why a patch was refused. The model is untouched.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PatchError {
    /// A scope or position that the model does not have.
    #[error("the patch edits a place that the model does not have: {0}")]
    NoSuchPlace(String),
    /// The model would not be valid afterwards.
    #[error("the patched model would be invalid: {0}")]
    Invalid(#[from] CheckError),
}

impl Model {
    /// Applies `patch`; on any error the model is as it was.
    ///
    /// # Errors
    /// [`PatchError`].
    pub fn apply(&mut self, patch: &Patch) -> Result<(), PatchError> {
        // Tensors are slices of shared bytes, so this copies the structure and no weight
        // (typed fields such as float_data excepted).
        let mut next = self.clone();
        let mut edits: Vec<&ScopeEdit> = patch.edits.iter().collect();
        // Inner scopes first: their paths run through positions of the outer ones.
        edits.sort_by_key(|e| std::cmp::Reverse(e.scope.steps.len()));
        let ir_version = next.proto.ir_version.unwrap_or(0);
        for edit in &edits {
            apply_to_scope(&mut next, edit, ir_version)?;
        }
        // Constants go last, when every scope's readers are what they will be.
        for edit in &edits {
            prune(&mut next, &edit.prune);
        }
        Index::new(&next).check()?;
        *self = next;
        Ok(())
    }
}

enum Body<'a> {
    Graph(&'a mut GraphProto),
    Function(&'a mut Vec<NodeProto>),
}

fn body<'a>(model: &'a mut Model, path: &ScopePath) -> Option<Body<'a>> {
    let mut steps = path.steps.iter();
    let mut graph: &mut GraphProto = match path.function {
        None => model.proto.graph.as_option_mut()?,
        Some(f) => {
            let nodes = &mut model.proto.functions.get_mut(f)?.node;
            let Some(step) = steps.next() else { return Some(Body::Function(nodes)) };
            subgraph(nodes, step)?
        }
    };
    for step in steps {
        graph = subgraph(&mut graph.node, step)?;
    }
    Some(Body::Graph(graph))
}

fn subgraph<'a>(nodes: &'a mut [NodeProto], step: &crate::index::SubgraphStep) -> Option<&'a mut GraphProto> {
    let attribute = nodes.get_mut(step.node)?.attribute.get_mut(step.attribute)?;
    match step.graph {
        None => attribute.g.as_option_mut(),
        Some(i) => attribute.graphs.get_mut(i),
    }
}

fn apply_to_scope(model: &mut Model, edit: &ScopeEdit, ir_version: i64) -> Result<(), PatchError> {
    let missing = || PatchError::NoSuchPlace(format!("{:?}", edit.scope));
    let body = body(model, &edit.scope).ok_or_else(missing)?;
    let is_main = edit.scope.function.is_none() && edit.scope.steps.is_empty();
    let nodes = match body {
        Body::Graph(graph) => {
            for tensor in &edit.add_initializers {
                if is_main && ir_version < 4 {
                    graph.input.push(declaration(tensor));
                }
                graph.initializer.push(tensor.clone());
            }
            &mut graph.node
        }
        Body::Function(nodes) => nodes,
    };
    let past_end = |&at: &usize| at > nodes.len();
    if edit.insert_nodes.iter().map(|(at, _)| at).any(past_end) || edit.remove_nodes.iter().any(|at| *at >= nodes.len())
    {
        return Err(missing());
    }
    let mut next = Vec::with_capacity(nodes.len());
    if edit.scope.function.is_some() && edit.scope.steps.is_empty() {
        for tensor in &edit.add_initializers {
            let name = tensor.name.clone().unwrap_or_default();
            let value = crate::build::attr_t("value", tensor.clone());
            next.push(crate::build::node("Constant", "", &[] as &[&str], &[name], vec![value]));
        }
    }
    for (at, node) in std::mem::take(nodes).into_iter().map(Some).chain([None]).enumerate() {
        for (_, new) in edit.insert_nodes.iter().filter(|(place, _)| *place == at) {
            next.extend(new.iter().cloned());
        }
        if let Some(node) = node.filter(|_| !edit.remove_nodes.contains(&at)) {
            next.push(node);
        }
    }
    *nodes = next;
    Ok(())
}

fn declaration(tensor: &TensorProto) -> ValueInfoProto {
    let name = tensor.name.as_deref().unwrap_or_default();
    let dims: Vec<_> = tensor.dims.iter().map(|&d| crate::build::DimSpec::Known(d)).collect();
    let mut info = crate::build::value_info(name, crate::DataType::Float, &dims);
    if let Some(crate::proto::__buffa::oneof::type_proto::Value::TensorType(t)) =
        info.r#type.as_option_mut().and_then(|t| t.value.as_mut())
    {
        t.elem_type = tensor.data_type;
    }
    info
}

/// Removes those of `names` that nothing reads, and what only they read, until nothing more falls away.
fn prune(model: &mut Model, names: &BTreeSet<String>) {
    let mut candidates = names.clone();
    loop {
        let index = Index::new(model);
        let mut dead: Vec<(ScopePath, String)> = Vec::new();
        let mut next_candidates = BTreeSet::new();
        for s in &index.scopes {
            for name in &candidates {
                let Some(producer) = s.producer(name).filter(|_| s.uses(name).is_empty()) else { continue };
                match producer {
                    crate::index::Producer::Initializer(_) => dead.push((s.path.clone(), name.clone())),
                    crate::index::Producer::Node { node, .. } => {
                        let n = &s.nodes[node];
                        let constant =
                            ["Constant", "Identity", "DequantizeLinear"].iter().any(|op| crate::build::is_op(n, op));
                        if constant && n.output.len() == 1 {
                            dead.push((s.path.clone(), name.clone()));
                            next_candidates.extend(n.input.iter().cloned());
                        }
                    }
                    _ => {}
                }
            }
        }
        if dead.is_empty() {
            return;
        }
        drop(index);
        // Inner scopes first: taking a node out of an outer one would move the paths of the inner ones.
        for (path, name) in dead.into_iter().rev() {
            match body(model, &path) {
                Some(Body::Graph(graph)) => {
                    graph.initializer.retain(|t| t.name.as_deref() != Some(&name));
                    graph.node.retain(|n| n.output.len() != 1 || n.output[0] != name);
                    graph.value_info.retain(|v| v.name.as_deref() != Some(&name));
                    graph.quantization_annotation.retain(|a| a.tensor_name.as_deref() != Some(&name));
                    if path.steps.is_empty() {
                        graph.input.retain(|v| v.name.as_deref() != Some(&name));
                    }
                }
                Some(Body::Function(nodes)) => nodes.retain(|n| n.output.len() != 1 || n.output[0] != name),
                None => {}
            }
        }
        candidates.extend(next_candidates);
    }
}
