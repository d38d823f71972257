//! The model while it is being changed: nodes in topological order, constants by name, nothing nested.
//!
//! A [`Graph`] is made from a checked [`Model`] without control flow, functions, sparse constants or quantised
//! operators; each of those is an error here, so that later code need not ask. Constant nodes and initializers
//! are one thing in it, and an initializer that is also declared as an input is a constant.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use chipfit_model::build::is_op;
use chipfit_model::index::node_label;
use chipfit_model::proto::{GraphProto, ModelProto, NodeProto, OperatorSetIdProto, ValueInfoProto};
use chipfit_model::{ConstTensor, Index, Model, Producer};

use crate::error::QuantizeError;

/// Oldest operator set whose QuantizeLinear and DequantizeLinear know channels.
pub(crate) const MIN_OPSET: i64 = 13;

/// See the module's text.
#[derive(Clone, Debug)]
pub(crate) struct Graph {
    /// The file without its graph.
    header: ModelProto,
    /// The graph without nodes, constants, inputs and outputs.
    frame: GraphProto,
    /// Version of the default operator set.
    pub(crate) opset: i64,
    /// In topological order.
    pub(crate) nodes: Vec<NodeProto>,
    /// Initializers and Constant nodes.
    pub(crate) constants: BTreeMap<String, ConstTensor>,
    /// Inputs that a caller gives.
    pub(crate) inputs: Vec<ValueInfoProto>,
    /// What the model gives back.
    pub(crate) outputs: Vec<ValueInfoProto>,
    names: BTreeSet<String>,
}

/// The name in a value info.
pub(crate) fn name_of(info: &ValueInfoProto) -> &str {
    info.name.as_deref().unwrap_or_default()
}

/// The operator of a node, for messages and tables; other domains are spelled out.
pub(crate) fn operator(node: &NodeProto) -> String {
    let op = node.op_type.as_deref().unwrap_or_default();
    match node.domain.as_deref() {
        None | Some("" | "ai.onnx") => op.to_owned(),
        Some(domain) => format!("{domain}.{op}"),
    }
}

/// A name for a node in messages: its own, else its first output's.
pub(crate) fn label(node: &NodeProto) -> String {
    match (node.name.as_deref(), node.output.first()) {
        (Some(name), _) if !name.is_empty() => name.to_owned(),
        (_, Some(output)) => output.clone(),
        _ => operator(node),
    }
}

/// An error about `node`.
pub(crate) fn node_error(node: &NodeProto, why: impl Into<String>) -> QuantizeError {
    QuantizeError::Node { node: label(node), operator: operator(node), why: why.into() }
}

/// An input of a node that is there.
pub(crate) fn input(node: &NodeProto, position: usize) -> Option<&str> {
    node.input.get(position).map(String::as_str).filter(|name| !name.is_empty())
}

/// The first output of a node.
pub(crate) fn output(node: &NodeProto) -> &str {
    node.output.first().map_or("", String::as_str)
}

/// Whether an operator computes on quantised values already.
fn is_quantised(node: &NodeProto) -> bool {
    let op = node.op_type.as_deref().unwrap_or_default();
    op.starts_with("QLinear")
        || ["QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QGemm", "BatchNormQuant"].contains(&op)
        || ["ConvInteger", "MatMulInteger", "Quant", "BipolarQuant"].contains(&op)
}

impl Graph {
    /// The graph of a checked model.
    pub(crate) fn new(model: &Model) -> Result<Self, QuantizeError> {
        let unsupported = |what: String, hint| QuantizeError::Unsupported { what, hint };
        let index = Index::new(model);
        for (position, node) in index.scopes.iter().flat_map(|s| s.nodes.iter().enumerate()) {
            let node_name = node_label(node, position);
            if is_quantised(node) {
                return Err(QuantizeError::AlreadyQuantised { node: node_name, operator: operator(node) });
            }
            if node.attribute.iter().any(|a| a.g.is_set() || !a.graphs.is_empty()) {
                return Err(QuantizeError::ControlFlow { node: node_name, operator: operator(node) });
            }
        }
        if let Some(function) = model.proto.functions.first() {
            let name = function.name.clone().unwrap_or_default();
            return Err(unsupported(format!("the function '{name}'"), "export it with functions inlined"));
        }
        let source = model.graph();
        if let Some(sparse) = source.sparse_initializer.first() {
            let name = sparse.values.name.clone().unwrap_or_default();
            return Err(unsupported(format!("the sparse initializer '{name}'"), "store it dense"));
        }
        let mut constants = BTreeMap::new();
        for tensor in &source.initializer {
            // A string tensor is no constant that any rule here reads; the model needs none to classify.
            constants.insert(tensor.name.clone().unwrap_or_default(), model.tensor(tensor)?);
        }
        let mut nodes = Vec::with_capacity(source.node.len());
        for position in index.topological_order(0)? {
            let Some(node) = source.node.get(position) else { continue };
            let constant = output(node);
            if is_op(node, "Constant") && matches!(index.lookup(0, constant), Some((_, Producer::Node { .. }))) {
                let data = index.constant_tensor(0, constant)?;
                let data = data.ok_or_else(|| node_error(node, "a sparse or string constant is not understood"))?;
                constants.insert(constant.to_owned(), data);
            } else {
                nodes.push(node.clone());
            }
        }
        let inputs = source.input.iter().filter(|i| !constants.contains_key(name_of(i))).cloned().collect();
        let names = index.names().into_iter().map(str::to_owned).collect();
        let mut header = model.proto.clone();
        let graph = header.graph.take().unwrap_or_default();
        let frame = GraphProto {
            node: Vec::new(),
            initializer: Vec::new(),
            input: Vec::new(),
            output: Vec::new(),
            value_info: Vec::new(),
            quantization_annotation: Vec::new(),
            ..graph
        };
        let (outputs, opset) = (source.output.clone(), model.opset());
        Ok(Self { header, frame, opset, nodes, constants, inputs, outputs, names })
    }

    /// The model as it stands now. Constants that nothing reads are left out.
    pub(crate) fn to_model(&self) -> Result<Model, QuantizeError> {
        let mut read: BTreeSet<&str> = self.nodes.iter().flat_map(|n| &n.input).map(String::as_str).collect();
        read.extend(self.outputs.iter().map(name_of));
        let kept = self.constants.iter().filter(|(name, _)| read.contains(name.as_str()));
        let graph = GraphProto {
            node: self.nodes.clone(),
            initializer: kept.map(|(name, tensor)| tensor.to_proto(name)).collect(),
            input: self.inputs.clone(),
            output: self.outputs.clone(),
            ..self.frame.clone()
        };
        let mut proto = ModelProto { graph: graph.into(), ..self.header.clone() };
        // IR version 7 belongs to operator set 13; from version 4 on initializers need no input declaration.
        proto.ir_version = Some(proto.ir_version.unwrap_or(0).max(7));
        let is_default = |o: &OperatorSetIdProto| matches!(o.domain.as_deref(), None | Some("" | "ai.onnx"));
        let mut found = false;
        for import in proto.opset_import.iter_mut().filter(|o| is_default(o)) {
            import.version = Some(self.opset);
            found = true;
        }
        if !found {
            let version = Some(self.opset);
            proto.opset_import.push(OperatorSetIdProto { version, ..OperatorSetIdProto::default() });
        }
        let model = Model { proto, folder: None };
        Index::new(&model).check()?;
        Ok(model)
    }

    /// The part of the file around the graph.
    pub(crate) fn header_mut(&mut self) -> &mut ModelProto {
        &mut self.header
    }

    /// A name that nothing has yet: `wanted`, or `wanted` with a number.
    pub(crate) fn fresh(&mut self, wanted: &str) -> String {
        let numbered = (1u32..).map(|n| format!("{wanted}_{n}"));
        let name = std::iter::once(wanted.to_owned()).chain(numbered).find(|name| !self.names.contains(name));
        let name = name.unwrap_or_default();
        self.names.insert(name.clone());
        name
    }

    /// Adds a constant under `wanted`, or under another name where that one is taken. One that is there with the
    /// same content is used again.
    pub(crate) fn add_constant(&mut self, wanted: &str, tensor: ConstTensor) -> String {
        let numbered = (1u32..).map(|n| format!("{wanted}_{n}"));
        for name in std::iter::once(wanted.to_owned()).chain(numbered) {
            match self.constants.get(&name) {
                Some(same) if *same == tensor => return name,
                Some(_) => {}
                None if self.names.contains(&name) => {}
                None => {
                    self.names.insert(name.clone());
                    self.constants.insert(name.clone(), tensor);
                    return name;
                }
            }
        }
        String::new()
    }

    /// Whether `name` is an output of the model.
    pub(crate) fn is_output(&self, name: &str) -> bool {
        self.outputs.iter().any(|o| name_of(o) == name)
    }

    /// Whether `name` is an input of the model.
    pub(crate) fn is_input(&self, name: &str) -> bool {
        self.inputs.iter().any(|i| name_of(i) == name)
    }

    /// The constant that input `position` of `node` names.
    pub(crate) fn constant(&self, node: &NodeProto, position: usize) -> Option<&ConstTensor> {
        self.constants.get(input(node, position)?)
    }

    /// The nodes that make each value.
    pub(crate) fn producers(&self) -> HashMap<&str, usize> {
        let outputs = |(position, node): (usize, &'_ NodeProto)| -> Vec<(usize, usize)> {
            (0..node.output.len()).map(|o| (position, o)).collect()
        };
        let mut made = HashMap::new();
        for (position, which) in self.nodes.iter().enumerate().flat_map(outputs) {
            if let Some(name) = self.nodes.get(position).and_then(|n| n.output.get(which)).filter(|n| !n.is_empty()) {
                made.insert(name.as_str(), position);
            }
        }
        made
    }

    /// The nodes that read each value, a node once for each input.
    pub(crate) fn readers(&self) -> HashMap<&str, Vec<usize>> {
        let mut readers: HashMap<&str, Vec<usize>> = HashMap::new();
        for (position, node) in self.nodes.iter().enumerate() {
            for name in node.input.iter().filter(|name| !name.is_empty()) {
                readers.entry(name.as_str()).or_default().push(position);
            }
        }
        readers
    }

    /// Replaces every use of `old`, outputs of the model excepted.
    pub(crate) fn redirect(&mut self, old: &str, new: &str) {
        for name in self.nodes.iter_mut().flat_map(|n| &mut n.input).filter(|name| *name == old) {
            new.clone_into(name);
        }
    }

    /// Removes nodes none of whose outputs is read, until there are none.
    pub(crate) fn drop_dead_nodes(&mut self) {
        let mut read: BTreeSet<String> = self.outputs.iter().map(|o| name_of(o).to_owned()).collect();
        let mut kept = Vec::with_capacity(self.nodes.len());
        // Readers come after what they read, so one walk from the end sees every use first.
        for node in std::mem::take(&mut self.nodes).into_iter().rev() {
            if node.output.iter().any(|name| read.contains(name)) {
                read.extend(node.input.iter().cloned());
                kept.push(node);
            }
        }
        kept.reverse();
        self.nodes = kept;
    }
}
