//! Edits of a [`Model`]: built first, validated, applied whole or not at all.

use std::collections::{BTreeMap, BTreeSet};

use crate::index::{CheckError, Index, ScopePath};
use crate::onnx::Model;
use crate::proto::__buffa::oneof::type_proto::Value;
use crate::proto::{GraphProto, NodeProto, TensorAnnotation, TensorProto, ValueInfoProto};

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
    /// The edit changes the lengths of values: lengths that the model declares (from the third axis on, inputs
    /// excepted) are forgotten.
    pub forget_lengths: bool,
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
            forget_lengths: false,
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
    /// Works in place and copies no tensor: what is taken out is kept until the result has been checked.
    ///
    /// # Errors
    /// [`PatchError`].
    pub fn apply(&mut self, patch: &Patch) -> Result<(), PatchError> {
        let mut undo = Vec::new();
        let result = self.edit(patch, &mut undo).and_then(|()| Ok(Index::new(self).check()?));
        if result.is_err() {
            for step in undo.into_iter().rev() {
                step.revert(self);
            }
        } else if patch.edits.iter().any(|e| e.forget_lengths)
            && let Some(graph) = self.proto.graph.as_option_mut()
        {
            forget_lengths(graph);
        }
        result
    }

    fn edit(&mut self, patch: &Patch, undo: &mut Vec<Undo>) -> Result<(), PatchError> {
        let mut edits: Vec<&ScopeEdit> = patch.edits.iter().collect();
        // Inner scopes first: their paths run through positions of the outer ones.
        edits.sort_by_key(|e| std::cmp::Reverse(e.scope.steps.len()));
        let ir_version = self.proto.ir_version.unwrap_or(0);
        for edit in &edits {
            apply_to_scope(self, edit, ir_version, undo)?;
        }
        // Constants go last, when every scope's readers are what they will be.
        for edit in &edits {
            prune(self, &edit.prune, undo);
        }
        Ok(())
    }
}

/// How to take one step back. Steps are reverted last first, so paths and positions are those of that moment.
enum Undo {
    /// Tensors and their declarations were appended to a graph.
    Added { scope: ScopePath, initializers: usize, inputs: usize },
    /// A scope's nodes were replaced: the old list's length, where each new node came from, and those taken out.
    Nodes { scope: ScopePath, before: usize, origins: Vec<Option<usize>>, removed: Removed<NodeProto> },
    /// Things that only a dead constant needed were taken out of a graph.
    Pruned { scope: ScopePath, parts: Parts },
}

/// What was taken out of a list, with its position there, in order.
type Removed<T> = Vec<(usize, T)>;

/// What was taken out of a graph's lists.
#[derive(Default)]
struct Parts {
    initializers: Removed<TensorProto>,
    nodes: Removed<NodeProto>,
    value_infos: Removed<ValueInfoProto>,
    annotations: Removed<TensorAnnotation>,
    inputs: Removed<ValueInfoProto>,
}

/// Takes out what `dead` picks, and keeps the order of the rest.
fn take<T>(list: &mut Vec<T>, dead: impl Fn(&T) -> bool) -> Removed<T> {
    let mut removed = Vec::new();
    if list.iter().any(&dead) {
        for (position, item) in std::mem::take(list).into_iter().enumerate() {
            if dead(&item) {
                removed.push((position, item));
            } else {
                list.push(item);
            }
        }
    }
    removed
}

/// Puts back what [`take`] took.
fn put_back<T>(list: &mut Vec<T>, removed: Removed<T>) {
    for (position, item) in removed {
        list.insert(position.min(list.len()), item);
    }
}

impl Undo {
    fn revert(self, model: &mut Model) {
        match self {
            Self::Added { scope, initializers, inputs } => {
                if let Some(Body::Graph(graph)) = body(model, &scope) {
                    graph.initializer.truncate(initializers);
                    graph.input.truncate(inputs);
                }
            }
            Self::Nodes { scope, before, origins, removed } => {
                let Some(nodes) = nodes_of(model, &scope) else { return };
                let mut old: Vec<Option<NodeProto>> = vec![None; before];
                let kept = std::mem::take(nodes).into_iter().zip(origins).filter_map(|(n, from)| Some((from?, n)));
                for (position, node) in kept.chain(removed) {
                    if let Some(place) = old.get_mut(position) {
                        *place = Some(node);
                    }
                }
                *nodes = old.into_iter().flatten().collect();
            }
            Self::Pruned { scope, parts } => {
                if let Some(Body::Graph(graph)) = body(model, &scope) {
                    put_back(&mut graph.initializer, parts.initializers);
                    put_back(&mut graph.value_info, parts.value_infos);
                    put_back(&mut graph.quantization_annotation, parts.annotations);
                    put_back(&mut graph.input, parts.inputs);
                }
                if let Some(nodes) = nodes_of(model, &scope) {
                    put_back(nodes, parts.nodes);
                }
            }
        }
    }
}

fn nodes_of<'a>(model: &'a mut Model, scope: &ScopePath) -> Option<&'a mut Vec<NodeProto>> {
    Some(match body(model, scope)? {
        Body::Graph(graph) => &mut graph.node,
        Body::Function(nodes) => nodes,
    })
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

fn apply_to_scope(
    model: &mut Model,
    edit: &ScopeEdit,
    ir_version: i64,
    undo: &mut Vec<Undo>,
) -> Result<(), PatchError> {
    let missing = || PatchError::NoSuchPlace(format!("{:?}", edit.scope));
    let scope = || edit.scope.clone();
    let count = nodes_of(model, &edit.scope).ok_or_else(missing)?.len();
    let past_end = |&at: &usize| at > count;
    if edit.insert_nodes.iter().map(|(at, _)| at).any(past_end) || edit.remove_nodes.iter().any(|at| *at >= count) {
        return Err(missing());
    }
    let is_main = edit.scope.function.is_none() && edit.scope.steps.is_empty();
    let mut next = Vec::with_capacity(count);
    let mut origins = Vec::with_capacity(count);
    let nodes = match body(model, &edit.scope).ok_or_else(missing)? {
        Body::Graph(graph) => {
            let (initializers, inputs) = (graph.initializer.len(), graph.input.len());
            undo.push(Undo::Added { scope: scope(), initializers, inputs });
            for tensor in &edit.add_initializers {
                if is_main && ir_version < 4 {
                    graph.input.push(declaration(tensor));
                }
                graph.initializer.push(tensor.clone());
            }
            &mut graph.node
        }
        Body::Function(nodes) => {
            for tensor in &edit.add_initializers {
                let name = tensor.name.clone().unwrap_or_default();
                let value = crate::build::attr_t("value", tensor.clone());
                next.push(crate::build::node("Constant", "", &[] as &[&str], &[name], vec![value]));
                origins.push(None);
            }
            nodes
        }
    };
    let mut inserted: BTreeMap<usize, Vec<&NodeProto>> = BTreeMap::new();
    for (at, new) in &edit.insert_nodes {
        inserted.entry(*at).or_default().extend(new);
    }
    let mut removed = Vec::new();
    for (at, node) in std::mem::take(nodes).into_iter().map(Some).chain([None]).enumerate() {
        next.extend(inserted.remove(&at).into_iter().flatten().cloned());
        origins.resize(next.len(), None);
        match node {
            Some(node) if edit.remove_nodes.contains(&at) => removed.push((at, node)),
            Some(node) => {
                next.push(node);
                origins.push(Some(at));
            }
            None => {}
        }
    }
    *nodes = next;
    undo.push(Undo::Nodes { scope: scope(), before: count, origins, removed });
    Ok(())
}

/// Forgets the declared lengths of everything but inputs, from the third axis on.
fn forget_lengths(graph: &mut GraphProto) {
    for info in graph.value_info.iter_mut().chain(&mut graph.output) {
        if let Some(Value::TensorType(t)) = info.r#type.as_option_mut().and_then(|t| t.value.as_mut())
            && let Some(shape) = t.shape.as_option_mut()
        {
            shape.dim.iter_mut().skip(2).for_each(|d| d.value = None);
        }
    }
    for attribute in graph.node.iter_mut().flat_map(|n| &mut n.attribute) {
        attribute.g.as_option_mut().into_iter().chain(&mut attribute.graphs).for_each(forget_lengths);
    }
}

fn declaration(tensor: &TensorProto) -> ValueInfoProto {
    let name = tensor.name.as_deref().unwrap_or_default();
    let dims: Vec<_> = tensor.dims.iter().map(|&d| crate::build::DimSpec::Known(d)).collect();
    let mut info = crate::build::value_info(name, crate::DataType::Float, &dims);
    if let Some(Value::TensorType(t)) = info.r#type.as_option_mut().and_then(|t| t.value.as_mut()) {
        t.elem_type = tensor.data_type;
    }
    info
}

/// Removes those of `names` that nothing reads, and what only they read, until nothing more falls away.
fn prune(model: &mut Model, names: &BTreeSet<String>, undo: &mut Vec<Undo>) {
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
            let mut parts = Parts::default();
            let named = |other: Option<&str>| other == Some(&name);
            if let Some(Body::Graph(graph)) = body(model, &path) {
                parts.initializers = take(&mut graph.initializer, |t| named(t.name.as_deref()));
                parts.value_infos = take(&mut graph.value_info, |v| named(v.name.as_deref()));
                parts.annotations = take(&mut graph.quantization_annotation, |a| named(a.tensor_name.as_deref()));
                if path.steps.is_empty() {
                    parts.inputs = take(&mut graph.input, |v| named(v.name.as_deref()));
                }
            }
            if let Some(nodes) = nodes_of(model, &path) {
                parts.nodes = take(nodes, |n| n.output.len() == 1 && named(n.output.first().map(String::as_str)));
            }
            undo.push(Undo::Pruned { scope: path, parts });
        }
        candidates.extend(next_candidates.into_iter().filter(|name| !name.is_empty()));
    }
}
