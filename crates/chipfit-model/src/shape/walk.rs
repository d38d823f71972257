//! The walk over scopes: each node after what it reads, functions at their calls, subgraphs at their nodes.
//!
//! Invariant: the number of node visits is bounded by [`Walk::budget`], a multiple of the model's nodes, so that
//! functions that call each other many times cannot make the walk exponential; beyond it outputs stay unknown.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use super::declared::{Overrides, declarations, tensor_type};
use super::value::{Value, small_count};
use super::view::{View, join};
use super::{Dim, TensorType, propagate, rules};
use crate::index::{Index, Producer, ScopeId};
use crate::proto::{AttributeProto, NodeProto, TensorProto};

/// Deepest nesting of function calls that is followed.
const MAX_CALLS: usize = 16;
/// Elements of all values together.
const MAX_VALUE_ELEMENTS: usize = 4 << 20;

/// What is known when a scope is entered: the type and value of each input, by position.
pub(super) type Arguments = Vec<(TensorType, Option<Rc<Value>>)>;

/// The value of an initializer, once read; `None` where it is too large or no number.
type Constant = Option<Rc<Value>>;

/// A function call in progress.
struct Frame<'m> {
    scope: ScopeId,
    attributes: HashMap<&'m str, &'m AttributeProto>,
}

/// The state of the walk.
pub(super) struct Walk<'i, 'm> {
    pub(super) index: &'i Index<'m>,
    overrides: Overrides,
    types: Vec<HashMap<&'m str, TensorType>>,
    values: Vec<HashMap<&'m str, Rc<Value>>>,
    declared: Vec<HashMap<&'m str, TensorType>>,
    /// Node order per scope, once needed.
    orders: Vec<Option<Rc<Vec<usize>>>>,
    /// Subgraphs by the scope and position of their node: attribute position and scope.
    children: BTreeMap<(ScopeId, usize), Vec<(usize, ScopeId)>>,
    /// Function scopes by domain, name and overload.
    functions: HashMap<[&'m str; 3], ScopeId>,
    /// What all calls so far agree on, for scopes in functions.
    agreed: Vec<Option<HashMap<&'m str, TensorType>>>,
    frames: Vec<Frame<'m>>,
    constants: RefCell<HashMap<(ScopeId, usize), Constant>>,
    /// Node visits left.
    budget: usize,
    value_budget: usize,
}

impl<'i, 'm> Walk<'i, 'm> {
    pub(super) fn new(index: &'i Index<'m>, overrides: Overrides) -> Self {
        let n = index.scopes.len();
        let mut children: BTreeMap<(ScopeId, usize), Vec<(usize, ScopeId)>> = BTreeMap::new();
        let mut functions = HashMap::new();
        for (id, scope) in index.scopes.iter().enumerate() {
            if let (Some(parent), Some(step)) = (scope.parent, scope.path.steps.last()) {
                children.entry((parent, step.node)).or_default().push((step.attribute, id));
            } else if let Some(f) = scope.path.function.and_then(|f| index.model.proto.functions.get(f)) {
                let key = [domain(f.domain.as_deref()), f.name.as_deref().unwrap_or_default(), text(&f.overload)];
                functions.entry(key).or_insert(id);
            }
        }
        let nodes: usize = index.scopes.iter().map(|s| s.nodes.len()).sum();
        Self {
            index,
            overrides,
            types: vec![HashMap::new(); n],
            values: vec![HashMap::new(); n],
            declared: index.scopes.iter().map(declarations).collect(),
            orders: vec![None; n],
            children,
            functions,
            agreed: vec![None; n],
            frames: Vec::new(),
            constants: RefCell::default(),
            budget: nodes.saturating_mul(16).saturating_add(4096),
            value_budget: MAX_VALUE_ELEMENTS,
        }
    }

    /// Walks the model; the types by scope.
    pub(super) fn run(mut self) -> Vec<HashMap<&'m str, TensorType>> {
        if !self.index.scopes.is_empty() {
            self.enter(0, &Vec::new());
        }
        for id in 0..self.index.scopes.len() {
            let scope = &self.index.scopes[id];
            // A function that nothing calls is walked with what it says itself.
            if let Some(f) = scope.path.function
                && scope.parent.is_none()
                && self.agreed[id].is_none()
            {
                let defaults = self.index.model.proto.functions.get(f).map_or(&[][..], |f| &f.attribute_proto);
                let attributes = defaults.iter().filter_map(|a| Some((a.name.as_deref()?, a))).collect();
                self.frames.push(Frame { scope: id, attributes });
                self.enter(id, &Vec::new());
                self.frames.pop();
                self.agree(id);
            }
        }
        let agreed = std::mem::take(&mut self.agreed);
        self.types.into_iter().zip(agreed).map(|(types, agreed)| agreed.unwrap_or(types)).collect()
    }

    /// The type of a name as `scope` sees it.
    pub(super) fn type_of(&self, scope: ScopeId, name: &str) -> Option<&TensorType> {
        let (home, _) = self.index.lookup(scope, name)?;
        self.types.get(home)?.get(name)
    }

    /// The value of a name as `scope` sees it: propagated, or a small constant of the file.
    pub(super) fn value_of(&self, scope: ScopeId, name: &str) -> Option<Rc<Value>> {
        let (home, producer) = self.index.lookup(scope, name)?;
        if let Some(value) = self.values.get(home)?.get(name) {
            return Some(Rc::clone(value));
        }
        let Producer::Initializer(i) = producer else { return None };
        if home == 0 && self.overrides.shape(name).is_some() {
            return None;
        }
        let mut constants = self.constants.borrow_mut();
        let constant = constants.entry((home, i)).or_insert_with(|| {
            let tensor = self.index.scopes.get(home)?.initializers().get(i)?;
            self.tensor_value(tensor).map(Rc::new)
        });
        constant.clone()
    }

    /// The value of a tensor of the file, if it is small.
    pub(super) fn tensor_value(&self, tensor: &TensorProto) -> Option<Value> {
        let dims: Option<Vec<usize>> = tensor.dims.iter().map(|&d| usize::try_from(d).ok()).collect();
        small_count(&dims?)?;
        Value::of_constant(&self.index.model.tensor(tensor).ok()?)
    }

    /// The attribute `name` of `node`; one that refers to the calling node's stands for that.
    pub(super) fn attribute(&self, node: &'m NodeProto, name: &str) -> Option<&'m AttributeProto> {
        self.dereferenced(node.attribute.iter().find(|a| a.name.as_deref() == Some(name))?)
    }

    fn dereferenced(&self, attribute: &'m AttributeProto) -> Option<&'m AttributeProto> {
        match attribute.ref_attr_name.as_deref() {
            None | Some("") => Some(attribute),
            Some(outer) => self.frames.last()?.attributes.get(outer).copied(),
        }
    }

    /// The subgraphs of a node that sit in the attribute `name`.
    pub(super) fn subgraphs(&self, scope: ScopeId, node: usize, name: &str) -> Vec<ScopeId> {
        let attributes = self.index.scopes.get(scope).and_then(|s| s.nodes.get(node)).map_or(&[][..], |n| &n.attribute);
        let named = |&&(a, _): &&(usize, ScopeId)| attributes.get(a).is_some_and(|a| a.name.as_deref() == Some(name));
        let all = self.children.get(&(scope, node)).map_or(&[][..], Vec::as_slice);
        all.iter().filter(named).map(|&(_, id)| id).collect()
    }

    /// Whether the walk may still go over a scope of this many nodes more than once.
    pub(super) fn can_repeat(&self, scope: ScopeId) -> bool {
        self.index.scopes.get(scope).is_some_and(|s| s.path.steps.len() <= 4 && s.nodes.len() < self.budget / 4)
    }

    /// Walks a scope whose inputs are `arguments` (missing ones: unknown).
    pub(super) fn enter(&mut self, scope: ScopeId, arguments: &Arguments) {
        let index = self.index;
        let s = &index.scopes[scope];
        self.types[scope].clear();
        self.values[scope].clear();
        for (i, &name) in s.inputs.iter().enumerate() {
            let (mut known, value) = arguments.get(i).cloned().unwrap_or_default();
            if let Some(declared) = self.declared[scope].get(name) {
                if scope == 0 {
                    known = self.overrides.input_type(declared);
                } else {
                    self.overrides.complete(&mut known, declared);
                }
            }
            if let Some(shape) = self.overrides.shape(name).filter(|_| scope == 0) {
                known.dims = Some(shape.iter().map(|&n| Dim::Known(n)).collect());
            }
            self.types[scope].insert(name, known);
            if let Some(value) = value {
                self.values[scope].insert(name, value);
            }
        }
        for tensor in s.initializers() {
            let name = tensor.name.as_deref().unwrap_or_default();
            if scope != 0 || self.overrides.shape(name).is_none() {
                self.types[scope].insert(name, tensor_type(tensor.data_type, &tensor.dims));
            }
        }
        for sparse in s.graph.map_or(&[][..], |g| &g.sparse_initializer) {
            if let Some(name) = sparse.values.name.as_deref() {
                self.types[scope].insert(name, tensor_type(sparse.values.data_type, &sparse.dims));
            }
        }
        let order = match &self.orders[scope] {
            Some(order) => Rc::clone(order),
            None => {
                let order = index.topological_order(scope).unwrap_or_else(|_| (0..s.nodes.len()).collect());
                Rc::clone(self.orders[scope].insert(Rc::new(order)))
            }
        };
        for &node in order.iter() {
            self.visit(scope, node);
        }
    }

    fn visit(&mut self, scope: ScopeId, position: usize) {
        let index = self.index;
        let Some(node) = index.scopes[scope].nodes.get(position) else { return };
        let mut outputs: Arguments = Vec::new();
        if let Some(budget) = self.budget.checked_sub(1) {
            self.budget = budget;
            outputs = self.outputs(scope, position, node);
        }
        for (i, name) in node.output.iter().enumerate().filter(|(_, name)| !name.is_empty()) {
            let (mut known, value) = outputs.get_mut(i).map(std::mem::take).unwrap_or_default();
            if known.dims.as_ref().is_some_and(|d| d.len() > super::declared::MAX_RANK) {
                known.dims = None;
            }
            if let Some(declared) = self.declared[scope].get(name.as_str()) {
                self.overrides.complete(&mut known, declared);
            }
            if let Some(value) = value.filter(|v| v.says_something())
                && let Some(left) = self.value_budget.checked_sub(value.elements().len())
            {
                self.value_budget = left;
                self.values[scope].insert(name, value);
            }
            self.types[scope].insert(name, known);
        }
    }

    fn outputs(&mut self, scope: ScopeId, position: usize, node: &'m NodeProto) -> Arguments {
        let op = node.op_type.as_deref().unwrap_or_default();
        let key = [domain(node.domain.as_deref()), op, text(&node.overload)];
        if let Some(&function) = self.functions.get(&key) {
            return self.call(function, scope, node);
        }
        if self.children.contains_key(&(scope, position)) {
            return self.control_flow(scope, position, node);
        }
        if !key[0].is_empty() {
            return Vec::new();
        }
        let view = self.view(scope, node);
        let types = rules::infer(&view).unwrap_or_default();
        let values = propagate::values(&view, &types);
        let mut values = values.into_iter().map(|v| v.map(Rc::new));
        types.into_iter().map(|t| (t, values.next().flatten())).collect()
    }

    /// A node as the rules see it.
    pub(super) fn view(&self, scope: ScopeId, node: &'m NodeProto) -> View<'_, 'i, 'm> {
        View { walk: self, scope, node, opset: self.index.scopes.get(scope).map_or(1, |s| s.opset) }
    }

    /// The types and values of a node's inputs.
    pub(super) fn arguments(&self, scope: ScopeId, node: &NodeProto) -> Arguments {
        let argument = |name: &String| match name.as_str() {
            "" => (TensorType::default(), None),
            name => (self.type_of(scope, name).cloned().unwrap_or_default(), self.value_of(scope, name)),
        };
        node.input.iter().map(argument).collect()
    }

    /// The types and values of a scope's outputs, as it sees them.
    pub(super) fn results(&self, scope: ScopeId) -> Arguments {
        let result = |name: &&str| (self.type_of(scope, name).cloned().unwrap_or_default(), self.value_of(scope, name));
        self.index.scopes.get(scope).map_or(Vec::new(), |s| s.outputs.iter().map(result).collect())
    }

    fn call(&mut self, function: ScopeId, scope: ScopeId, node: &'m NodeProto) -> Arguments {
        if self.frames.len() >= MAX_CALLS || self.frames.iter().any(|f| f.scope == function) {
            return Vec::new();
        }
        let body = &self.index.scopes[function];
        let defaults = body.path.function.and_then(|f| self.index.model.proto.functions.get(f));
        let mut attributes: HashMap<&'m str, &'m AttributeProto> = HashMap::new();
        for default in defaults.map_or(&[][..], |f| &f.attribute_proto) {
            attributes.insert(default.name.as_deref().unwrap_or_default(), default);
        }
        for attribute in &node.attribute {
            if let (Some(name), Some(value)) = (attribute.name.as_deref(), self.dereferenced(attribute)) {
                attributes.insert(name, value);
            }
        }
        let arguments = self.arguments(scope, node);
        self.frames.push(Frame { scope: function, attributes });
        self.enter(function, &arguments);
        self.frames.pop();
        self.agree(function);
        self.results(function)
    }

    /// Merges what the latest call of a function found with what earlier ones did.
    fn agree(&mut self, function: ScopeId) {
        let root = self.index.scopes[function].path.function;
        // The scopes of a function follow it: parents come first, and each tree is numbered in one go.
        for id in function..self.index.scopes.len() {
            if self.index.scopes[id].path.function != root {
                break;
            }
            match &mut self.agreed[id] {
                None => self.agreed[id] = Some(self.types[id].clone()),
                Some(agreed) =>
                {
                    #[allow(clippy::iter_over_hash_type, reason = "each entry is merged on its own")]
                    for (name, latest) in &self.types[id] {
                        agreed.entry(name).and_modify(|known| *known = join(known, latest)).or_insert(latest.clone());
                    }
                }
            }
        }
    }
}

/// The default domain has two spellings.
fn domain(name: Option<&str>) -> &str {
    match name {
        None | Some("ai.onnx") => "",
        Some(name) => name,
    }
}

fn text(field: &Option<String>) -> &str {
    field.as_deref().unwrap_or_default()
}
