//! A cheap, borrowed view of a [`Model`]: scopes, producers, consumers, constants.
//!
//! A *scope* is one list of nodes: the main graph, a subgraph of If/Loop/Scan (which sees the names of the
//! scopes around it), or the body of a function (which sees only its own). Scopes are numbered parents
//! first. Building it is linear in the model and copies no tensor.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::build::is_op;
use crate::onnx::Model;
use crate::proto::{AttributeProto, GraphProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto};
use crate::tensor::{ConstTensor, TensorError};

/// Number of a scope in an [`Index`].
pub type ScopeId = usize;

/// Why a decoded file is not a model.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum CheckError {
    /// No graph at all.
    #[error("the file holds no graph (is it an ONNX model?)")]
    NoGraph,
    /// One name, two values.
    #[error("{scope}: '{name}' is produced more than once")]
    Duplicate {
        /// The scope.
        scope: String,
        /// The value.
        name: String,
    },
    /// A use of a value that nothing produces.
    #[error("{scope}: node '{node}' reads '{name}', which nothing produces")]
    Undefined {
        /// The scope.
        scope: String,
        /// The node.
        node: String,
        /// The value.
        name: String,
    },
    /// A graph output that nothing produces.
    #[error("{scope}: output '{name}' is produced by nothing")]
    UndefinedOutput {
        /// The scope.
        scope: String,
        /// The value.
        name: String,
    },
    /// Nodes that wait for each other.
    #[error("{scope}: node '{node}' is part of a cycle")]
    Cycle {
        /// The scope.
        scope: String,
        /// A node of the cycle.
        node: String,
    },
    /// An initializer whose shape is negative or whose data has another length.
    #[error(transparent)]
    Tensor(#[from] TensorCheck),
}

/// A [`TensorError`] that can be compared.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct TensorCheck(String);

/// How to reach a scope from the model: indices that stay valid while the lists above it do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ScopePath {
    /// `None`: the main graph; `Some(i)`: function `i`.
    pub function: Option<usize>,
    /// Each step enters a subgraph.
    pub steps: Vec<SubgraphStep>,
}

/// One step into a subgraph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubgraphStep {
    /// The node.
    pub node: usize,
    /// Its attribute.
    pub attribute: usize,
    /// `None`: the attribute's `g`; `Some(i)`: entry `i` of its `graphs`.
    pub graph: Option<usize>,
}

/// Who makes a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Producer {
    /// An input of the scope, by position.
    Input(usize),
    /// An initializer, by position. Where a name is both input and initializer, this one wins.
    Initializer(usize),
    /// A sparse initializer, by position.
    SparseInitializer(usize),
    /// A node's output.
    Node {
        /// The node.
        node: usize,
        /// Which of its outputs.
        output: usize,
    },
}

/// One use of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// A node reads it.
    Node {
        /// The scope of the node, which may lie inside the value's.
        scope: ScopeId,
        /// The node.
        node: usize,
        /// Which input.
        input: usize,
    },
    /// It is an output of a scope.
    Output {
        /// The scope.
        scope: ScopeId,
        /// Which output.
        output: usize,
    },
}

/// One list of nodes and the names around it.
#[derive(Debug)]
pub struct Scope<'m> {
    /// How to reach it.
    pub path: ScopePath,
    /// The scope around it, whose names it sees.
    pub parent: Option<ScopeId>,
    /// For messages: `graph 'name'`, `function 'name'`.
    pub label: String,
    /// Version of the default operator set.
    pub opset: i64,
    /// Its nodes, in file order.
    pub nodes: &'m [NodeProto],
    /// Its graph; `None` for a function's body.
    pub graph: Option<&'m GraphProto>,
    /// Names of its inputs.
    pub inputs: Vec<&'m str>,
    /// Names of its outputs.
    pub outputs: Vec<&'m str>,
    /// What it says about types and shapes: `value_info`, inputs and outputs.
    pub value_infos: Vec<&'m ValueInfoProto>,
    producers: HashMap<&'m str, Producer>,
    uses: HashMap<&'m str, Vec<Use>>,
}

impl<'m> Scope<'m> {
    /// Who makes `name` in this very scope.
    pub fn producer(&self, name: &str) -> Option<Producer> {
        self.producers.get(name).copied()
    }
    /// The uses, anywhere, of a value that this scope makes.
    pub fn uses(&self, name: &str) -> &[Use] {
        self.uses.get(name).map_or(&[], Vec::as_slice)
    }
    /// Its initializers; none in a function.
    pub fn initializers(&self) -> &'m [TensorProto] {
        self.graph.map_or(&[], |g| &g.initializer)
    }
}

/// A value known before the model runs.
#[derive(Clone, Copy, Debug)]
pub struct Constant<'m> {
    /// The scope that holds it.
    pub scope: ScopeId,
    /// The initializer or Constant node's own output name (behind any Identity).
    pub name: &'m str,
    /// Who makes it: an initializer or a Constant node.
    pub producer: Producer,
    /// Where its data lies.
    pub data: ConstantData<'m>,
}

/// The data of a [`Constant`].
#[derive(Clone, Copy, Debug)]
pub enum ConstantData<'m> {
    /// A tensor of the file.
    Tensor(&'m TensorProto),
    /// A scalar or list attribute of a Constant node.
    Attribute(&'m AttributeProto),
}

/// The view. See the module's text.
#[derive(Debug)]
pub struct Index<'m> {
    /// The model.
    pub model: &'m Model,
    /// Its scopes, parents first; 0 is the main graph.
    pub scopes: Vec<Scope<'m>>,
}

/// The default domain's version in a list of imports; 1 where it is missing.
pub fn default_opset(imports: &[OperatorSetIdProto]) -> i64 {
    imports
        .iter()
        .find(|o| matches!(o.domain.as_deref(), None | Some("" | "ai.onnx")))
        .and_then(|o| o.version)
        .unwrap_or(1)
}

impl<'m> Index<'m> {
    /// The view of `model`. Never fails: a broken model gives a view that [`Self::check`] refuses.
    pub fn new(model: &'m Model) -> Self {
        let mut index = Self { model, scopes: Vec::new() };
        let opset = model.opset();
        index.add_graph(&model.proto.graph, ScopePath { function: None, steps: Vec::new() }, None, opset);
        for (i, f) in model.proto.functions.iter().enumerate() {
            let path = ScopePath { function: Some(i), steps: Vec::new() };
            let scope = Scope {
                path,
                parent: None,
                label: format!("function '{}'", f.name.as_deref().unwrap_or_default()),
                opset: default_opset(&f.opset_import),
                nodes: &f.node,
                graph: None,
                inputs: f.input.iter().map(String::as_str).collect(),
                outputs: f.output.iter().map(String::as_str).collect(),
                value_infos: f.value_info.iter().collect(),
                producers: HashMap::new(),
                uses: HashMap::new(),
            };
            index.add_scope(scope);
        }
        index.link_uses();
        index
    }

    fn add_graph(&mut self, graph: &'m GraphProto, path: ScopePath, parent: Option<ScopeId>, opset: i64) {
        let named = |v: &'m ValueInfoProto| v.name.as_deref().unwrap_or_default();
        let scope = Scope {
            path,
            parent,
            label: format!("graph '{}'", graph.name.as_deref().unwrap_or_default()),
            opset,
            nodes: &graph.node,
            graph: Some(graph),
            inputs: graph.input.iter().map(named).collect(),
            outputs: graph.output.iter().map(named).collect(),
            value_infos: graph.value_info.iter().chain(&graph.input).chain(&graph.output).collect(),
            producers: HashMap::new(),
            uses: HashMap::new(),
        };
        self.add_scope(scope);
    }

    fn add_scope(&mut self, mut scope: Scope<'m>) {
        for (i, name) in scope.inputs.iter().enumerate() {
            scope.producers.entry(name).or_insert(Producer::Input(i));
        }
        if let Some(graph) = scope.graph {
            for (i, t) in graph.sparse_initializer.iter().enumerate() {
                if let Some(name) = t.values.name.as_deref() {
                    scope.producers.insert(name, Producer::SparseInitializer(i));
                }
            }
            for (i, t) in graph.initializer.iter().enumerate() {
                scope.producers.insert(t.name.as_deref().unwrap_or_default(), Producer::Initializer(i));
            }
        }
        for (node, n) in scope.nodes.iter().enumerate() {
            for (output, name) in n.output.iter().enumerate().filter(|(_, name)| !name.is_empty()) {
                scope.producers.entry(name).or_insert(Producer::Node { node, output });
            }
        }
        let (id, path, opset, nodes) = (self.scopes.len(), scope.path.clone(), scope.opset, scope.nodes);
        self.scopes.push(scope);
        for (node, n) in nodes.iter().enumerate() {
            for (attribute, a) in n.attribute.iter().enumerate() {
                let mut enter = |graph: &'m GraphProto, which: Option<usize>| {
                    let mut path = path.clone();
                    path.steps.push(SubgraphStep { node, attribute, graph: which });
                    self.add_graph(graph, path, Some(id), opset);
                };
                if let Some(g) = a.g.as_option() {
                    enter(g, None);
                }
                for (i, g) in a.graphs.iter().enumerate() {
                    enter(g, Some(i));
                }
            }
        }
    }

    fn link_uses(&mut self) {
        let mut found: Vec<(ScopeId, &'m str, Use)> = Vec::new();
        for (scope, s) in self.scopes.iter().enumerate() {
            for (node, n) in s.nodes.iter().enumerate() {
                for (input, name) in n.input.iter().enumerate().filter(|(_, name)| !name.is_empty()) {
                    if let Some((home, _)) = self.lookup(scope, name) {
                        found.push((home, name, Use::Node { scope, node, input }));
                    }
                }
            }
            for (output, &name) in s.outputs.iter().enumerate() {
                if let Some((home, _)) = self.lookup(scope, name) {
                    found.push((home, name, Use::Output { scope, output }));
                }
            }
        }
        for (home, name, used) in found {
            self.scopes[home].uses.entry(name).or_default().push(used);
        }
    }

    /// The scope and the maker of a name as `scope` sees it.
    pub fn lookup(&self, scope: ScopeId, name: &str) -> Option<(ScopeId, Producer)> {
        let mut at = Some(scope);
        while let Some(id) = at {
            let s = &self.scopes[id];
            if let Some(p) = s.producer(name) {
                return Some((id, p));
            }
            at = s.parent;
        }
        None
    }

    /// The node that makes `name` as `scope` sees it, with its scope and position.
    pub fn producer_node(&self, scope: ScopeId, name: &str) -> Option<(ScopeId, usize, &'m NodeProto)> {
        match self.lookup(scope, name)? {
            (home, Producer::Node { node, .. }) => Some((home, node, &self.scopes[home].nodes[node])),
            _ => None,
        }
    }

    /// The constant behind `name`: an initializer or a Constant node, through any number of Identity nodes.
    /// `None` for a value computed at run time and for sparse constants.
    pub fn constant(&self, scope: ScopeId, name: &str) -> Option<Constant<'m>> {
        let (mut scope, mut name) = (scope, name);
        // A chain of Identity nodes can be as long as the model, but not longer: cycles end here.
        for _ in 0..=self.scopes.iter().map(|s| s.nodes.len()).sum::<usize>() {
            let (home, producer) = self.lookup(scope, name)?;
            let s = &self.scopes[home];
            match producer {
                Producer::Initializer(i) => {
                    let tensor = &s.initializers()[i];
                    let name = tensor.name.as_deref().unwrap_or_default();
                    return Some(Constant { scope: home, name, producer, data: ConstantData::Tensor(tensor) });
                }
                Producer::Node { node, output } => {
                    let n = &s.nodes[node];
                    if is_op(n, "Identity") {
                        (scope, name) = (home, n.input.first()?);
                        continue;
                    }
                    if !is_op(n, "Constant") || output != 0 {
                        return None;
                    }
                    let a = n.attribute.iter().find(|a| a.ref_attr_name.as_deref().is_none_or(str::is_empty))?;
                    let data = match a.name.as_deref()? {
                        "value" => ConstantData::Tensor(a.t.as_option()?),
                        "value_float" | "value_floats" | "value_int" | "value_ints" => ConstantData::Attribute(a),
                        _ => return None,
                    };
                    return Some(Constant { scope: home, name: &n.output[0], producer, data });
                }
                Producer::Input(_) | Producer::SparseInitializer(_) => return None,
            }
        }
        None
    }

    /// The data of a constant.
    ///
    /// # Errors
    /// [`TensorError`].
    pub fn constant_data(&self, constant: &Constant<'m>) -> Result<ConstTensor, TensorError> {
        let bad = || TensorError::UnsupportedType { name: constant.name.to_owned(), code: 0 };
        match constant.data {
            ConstantData::Tensor(t) => self.model.tensor(t),
            ConstantData::Attribute(a) => match a.name.as_deref() {
                Some("value_int") => ConstTensor::from_i64s(&[a.i.unwrap_or(0)]).reshaped(Vec::new()).ok_or_else(bad),
                Some("value_ints") => Ok(ConstTensor::from_i64s(&a.ints)),
                Some("value_float") => ConstTensor::from_f32(Vec::new(), &[a.f.unwrap_or(0.0)]).ok_or_else(bad),
                _ => ConstTensor::from_f32(vec![a.floats.len()], &a.floats).ok_or_else(bad),
            },
        }
    }

    /// The constant behind `name` with its data: `Ok(None)` for a value computed at run time.
    ///
    /// # Errors
    /// [`TensorError`].
    pub fn constant_tensor(&self, scope: ScopeId, name: &str) -> Result<Option<ConstTensor>, TensorError> {
        self.constant(scope, name).map(|c| self.constant_data(&c)).transpose()
    }

    /// Every tensor of the file: initializers, sparse ones' parts, tensor attributes.
    pub fn tensors(&self) -> Vec<&'m TensorProto> {
        let mut all = Vec::new();
        for s in &self.scopes {
            all.extend(s.initializers());
            for sparse in s.graph.map_or(&[][..], |g| &g.sparse_initializer) {
                all.extend(sparse.values.as_option());
                all.extend(sparse.indices.as_option());
            }
            for a in s.nodes.iter().flat_map(|n| &n.attribute) {
                all.extend(a.t.as_option());
                all.extend(&a.tensors);
                for sparse in a.sparse_tensor.as_option().into_iter().chain(&a.sparse_tensors) {
                    all.extend(sparse.values.as_option());
                    all.extend(sparse.indices.as_option());
                }
            }
        }
        all
    }

    /// Every name of a value or node anywhere in the model: what new names must avoid.
    pub fn names(&self) -> BTreeSet<&'m str> {
        let mut names = BTreeSet::new();
        for s in &self.scopes {
            names.extend(&s.inputs);
            names.extend(&s.outputs);
            names.extend(s.value_infos.iter().filter_map(|v| v.name.as_deref()));
            names.extend(s.initializers().iter().filter_map(|t| t.name.as_deref()));
            for sparse in s.graph.map_or(&[][..], |g| &g.sparse_initializer) {
                names.extend(sparse.values.name.as_deref());
            }
            for n in s.nodes {
                names.extend(n.input.iter().chain(&n.output).map(String::as_str));
                names.extend(n.name.as_deref());
            }
        }
        names
    }

    /// Node positions of a scope in an order in which each comes after what it reads.
    ///
    /// # Errors
    /// [`CheckError::Cycle`].
    pub fn topological_order(&self, scope: ScopeId) -> Result<Vec<usize>, CheckError> {
        let s = &self.scopes[scope];
        // Nodes inside subgraphs read through their parent node, so a captured name counts as its input.
        let mut reads: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); s.nodes.len()];
        for (name, producer) in &s.producers.iter().collect::<BTreeMap<_, _>>() {
            let Producer::Node { node: from, .. } = **producer else { continue };
            for used in s.uses(name) {
                let Use::Node { scope: mut at, mut node, .. } = *used else {
                    // An output of a subgraph may name an outer value: then the node around it reads it.
                    let Use::Output { scope: at, .. } = *used else { continue };
                    if let Some(node) = self.owner_in(at, scope) {
                        reads[node].insert(from);
                    }
                    continue;
                };
                if at != scope {
                    let Some(owner) = self.owner_in(at, scope) else { continue };
                    (at, node) = (scope, owner);
                }
                debug_assert_eq!(at, scope);
                reads[node].insert(from);
            }
        }
        let mut waiting: Vec<usize> = reads.iter().map(BTreeSet::len).collect();
        let mut readers: Vec<Vec<usize>> = vec![Vec::new(); s.nodes.len()];
        for (node, from) in reads.iter().enumerate() {
            from.iter().for_each(|&f| readers[f].push(node));
        }
        let mut ready: BTreeSet<usize> = (0..s.nodes.len()).filter(|&n| waiting[n] == 0).collect();
        let mut order = Vec::with_capacity(s.nodes.len());
        while let Some(node) = ready.pop_first() {
            order.push(node);
            for &reader in &readers[node] {
                waiting[reader] -= 1;
                if waiting[reader] == 0 {
                    ready.insert(reader);
                }
            }
        }
        match (0..s.nodes.len()).find(|&n| waiting[n] > 0) {
            None => Ok(order),
            Some(n) => Err(CheckError::Cycle { scope: s.label.clone(), node: node_label(&s.nodes[n], n) }),
        }
    }

    /// The node of `scope` that holds the scope `inner` in one of its attributes.
    fn owner_in(&self, inner: ScopeId, scope: ScopeId) -> Option<usize> {
        let depth = self.scopes[scope].path.steps.len();
        self.scopes[inner].path.steps.get(depth).map(|s| s.node)
    }

    /// Whether the decoded file is a model: a graph, one maker per name, no undefined name, no cycle,
    /// tensors as long as they say.
    ///
    /// # Errors
    /// The first [`CheckError`] found.
    pub fn check(&self) -> Result<(), CheckError> {
        if self.model.proto.graph.is_unset() {
            return Err(CheckError::NoGraph);
        }
        for (id, s) in self.scopes.iter().enumerate() {
            let mut made: BTreeSet<&str> = BTreeSet::new();
            let initializers = s.initializers().iter().filter_map(|t| t.name.as_deref());
            let node_outputs = s.nodes.iter().flat_map(|n| &n.output).map(String::as_str);
            for name in initializers.clone().chain(node_outputs.clone()).filter(|n| !n.is_empty()) {
                if !made.insert(name) {
                    return Err(CheckError::Duplicate { scope: s.label.clone(), name: name.to_owned() });
                }
            }
            let inputs: BTreeSet<&str> = s.inputs.iter().copied().collect();
            if let Some(name) = node_outputs.clone().find(|n| !n.is_empty() && inputs.contains(n)) {
                return Err(CheckError::Duplicate { scope: s.label.clone(), name: name.to_owned() });
            }
            for (i, n) in s.nodes.iter().enumerate() {
                for name in n.input.iter().filter(|name| !name.is_empty()) {
                    if self.lookup(id, name).is_none() {
                        return Err(CheckError::Undefined {
                            scope: s.label.clone(),
                            node: node_label(n, i),
                            name: name.clone(),
                        });
                    }
                }
            }
            if let Some(name) = s.outputs.iter().find(|n| !n.is_empty() && self.lookup(id, n).is_none()) {
                return Err(CheckError::UndefinedOutput { scope: s.label.clone(), name: (*name).to_owned() });
            }
            self.topological_order(id)?;
        }
        for tensor in self.tensors() {
            check_tensor(tensor)?;
        }
        Ok(())
    }
}

/// Lengths only: nothing is decoded, external data is not opened.
fn check_tensor(tensor: &TensorProto) -> Result<(), CheckError> {
    let fail = |e: TensorError| CheckError::Tensor(TensorCheck(e.to_string()));
    if crate::tensor::is_external(tensor) {
        return Ok(());
    }
    match tensor.raw_data.as_ref().filter(|raw| !raw.is_empty()) {
        // Slices of the file: reading them costs nothing.
        Some(_) => match ConstTensor::from_proto(tensor, None) {
            Ok(_) | Err(TensorError::UnsupportedType { .. }) => Ok(()),
            Err(e) => Err(fail(e)),
        },
        None if tensor.dims.iter().any(|&d| d < 0) => Err(fail(TensorError::BadShape {
            name: tensor.name.clone().unwrap_or_default(),
            dims: tensor.dims.clone(),
        })),
        None => Ok(()),
    }
}

/// How messages call a node: its name, or its operator and position where it has none.
pub fn node_label(node: &NodeProto, position: usize) -> String {
    match node.name.as_deref() {
        Some(name) if !name.is_empty() => name.to_owned(),
        _ => format!("{}#{position}", node.op_type.as_deref().unwrap_or("node")),
    }
}
