//! Facts about a model, node by node: what runs, on which shapes, at what cost.
//!
//! Multiply-accumulates (MACs) are counted as `docs/split-deconvolution.md` defines them: pads count, zeros count,
//! a bias does not. A node that multiplies no matrices has 0; one that does, but whose shapes are not known, and
//! every operator outside the default domain has `None`. Bodies of loops and functions count once.
//!
//! Parameters are the elements of constants; in the totals each constant counts once, however many nodes read it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::build::{get_i, get_s, is_op};
use crate::index::{Index, Producer, ScopeId, node_label};
use crate::proto::{AttributeProto, NodeProto};
use crate::shape::{Dim, Shapes, TensorType, einsum_macs};

/// One input or output of a node.
#[derive(Clone, Debug, PartialEq)]
pub struct ValueSummary {
    /// Its name; empty where an optional one is left out.
    pub name: String,
    /// Its type.
    pub tensor: TensorType,
    /// Elements, where it is a constant of the file.
    pub constant: Option<u64>,
}

/// One node.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeSummary {
    /// Its scope.
    pub scope: ScopeId,
    /// Its position in the scope.
    pub node: usize,
    /// What the scope is called: `graph 'main'`.
    pub scope_label: String,
    /// Its name, or operator and position.
    pub name: String,
    /// Operator.
    pub op: String,
    /// Operator domain; empty for the default one.
    pub domain: String,
    /// Inputs, absent ones included.
    pub inputs: Vec<ValueSummary>,
    /// Outputs, absent ones included.
    pub outputs: Vec<ValueSummary>,
    /// Multiply-accumulates; `None` where they are not known.
    pub macs: Option<u64>,
    /// Elements of its constant inputs.
    pub parameters: u64,
}

/// A model's nodes and their sums.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    /// All nodes of all scopes, in file order.
    pub nodes: Vec<NodeSummary>,
    /// Nodes per domain and operator.
    pub operators: BTreeMap<(String, String), usize>,
    /// Multiply-accumulates of the nodes where they are known.
    pub macs: u64,
    /// Nodes whose multiply-accumulates are not known.
    pub nodes_without_macs: usize,
    /// Elements of all constants that nodes read, each counted once.
    pub parameters: u64,
}

/// The facts about every node of a model.
pub fn summarize(index: &Index<'_>, shapes: &Shapes) -> Summary {
    let mut constants = Constants { index, found: HashMap::new() };
    let mut counted: BTreeSet<(ScopeId, &str)> = BTreeSet::new();
    let mut summary = Summary::default();
    for (scope, s) in index.scopes.iter().enumerate() {
        for (position, node) in s.nodes.iter().enumerate() {
            let mut parameters = 0u64;
            let value = |name: &str, constant: Option<u64>| ValueSummary {
                name: name.to_owned(),
                tensor: shapes.resolve(index, scope, name),
                constant,
            };
            let inputs: Vec<ValueSummary> = node
                .input
                .iter()
                .map(|name| {
                    let constant = constants.find(scope, name);
                    if let Some(c) = constant {
                        parameters = parameters.saturating_add(c.elements);
                        if counted.insert((c.scope, c.name)) {
                            summary.parameters = summary.parameters.saturating_add(c.elements);
                        }
                    }
                    value(name, constant.map(|c| c.elements))
                })
                .collect();
            let outputs: Vec<ValueSummary> = node.output.iter().map(|name| value(name, None)).collect();
            let domain = match node.domain.as_deref() {
                None | Some("ai.onnx") => "",
                Some(domain) => domain,
            };
            let op = node.op_type.clone().unwrap_or_default();
            let macs = if domain.is_empty() { macs(node, &inputs, &outputs) } else { None };
            match macs {
                Some(macs) => summary.macs = summary.macs.saturating_add(macs),
                None => summary.nodes_without_macs += 1,
            }
            *summary.operators.entry((domain.to_owned(), op.clone())).or_default() += 1;
            summary.nodes.push(NodeSummary {
                scope,
                node: position,
                scope_label: s.label.clone(),
                name: node_label(node, position),
                op,
                domain: domain.to_owned(),
                inputs,
                outputs,
                macs,
                parameters,
            });
        }
    }
    summary
}

/// A constant behind a name: its own scope and name, and its elements.
#[derive(Clone, Copy)]
struct Found<'m> {
    scope: ScopeId,
    name: &'m str,
    elements: u64,
}

/// Constants by the names that lead to them, each chain of Identity nodes walked once.
struct Constants<'a, 'm> {
    index: &'a Index<'m>,
    found: HashMap<(ScopeId, &'m str), Option<Found<'m>>>,
}

impl<'m> Constants<'_, 'm> {
    fn find(&mut self, scope: ScopeId, name: &'m str) -> Option<Found<'m>> {
        let mut chain = Vec::new();
        let (mut scope, mut name) = (scope, name);
        let end = loop {
            let Some((home, producer)) = self.index.lookup(scope, name) else { break None };
            if let Some(found) = self.found.get(&(home, name)) {
                break *found;
            }
            // Also stops at a cycle: its names are found to be no constant.
            self.found.insert((home, name), None);
            chain.push((home, name));
            let elements = match producer {
                Producer::Initializer(i) => {
                    self.index.scopes.get(home).and_then(|s| s.initializers().get(i)).and_then(|t| count(&t.dims))
                }
                Producer::Node { node, output: 0 } => {
                    let Some(n) = self.index.scopes.get(home).and_then(|s| s.nodes.get(node)) else { break None };
                    if is_op(n, "Identity") {
                        let Some(input) = n.input.first() else { break None };
                        (scope, name) = (home, input);
                        continue;
                    }
                    is_op(n, "Constant").then(|| n.attribute.iter().find_map(constant_elements)).flatten()
                }
                _ => None,
            };
            break elements.map(|elements| Found { scope: home, name, elements });
        };
        for key in chain {
            self.found.insert(key, end);
        }
        end
    }
}

fn count(dims: &[i64]) -> Option<u64> {
    dims.iter().try_fold(1u64, |n, &d| n.checked_mul(u64::try_from(d).ok()?))
}

fn constant_elements(attribute: &AttributeProto) -> Option<u64> {
    match attribute.name.as_deref()? {
        "value" => count(&attribute.t.as_option()?.dims),
        "value_float" | "value_int" => Some(1),
        "value_floats" => u64::try_from(attribute.floats.len()).ok(),
        "value_ints" => u64::try_from(attribute.ints.len()).ok(),
        _ => None,
    }
}

/// Multiply-accumulates of a node of the default domain.
fn macs(node: &NodeProto, inputs: &[ValueSummary], outputs: &[ValueSummary]) -> Option<u64> {
    let dims = |values: &[ValueSummary], i: usize| values.get(i).and_then(|v| known(&v.tensor));
    let (input, output) = (|i| dims(inputs, i), || dims(outputs, 0));
    match node.op_type.as_deref().unwrap_or_default() {
        // Every output element takes C_in/group * prod(kernel) products: the weights of one filter.
        "Conv" | "ConvInteger" | "DeformConv" => times(&output()?, input(1)?.get(1..)?),
        "QLinearConv" => times(&output()?, input(3)?.get(1..)?),
        // Every input element meets C_out/group * prod(kernel) weights.
        "ConvTranspose" => times(&input(0)?, input(1)?.get(1..)?),
        "MatMul" | "MatMulInteger" | "QLinearMatMul" => times(&output()?, input(0)?.last_chunk::<1>()?),
        "Gemm" => {
            let a = input(0)?;
            let shared = if get_i(node, "transA").unwrap_or(0) == 0 { a.get(1) } else { a.first() };
            times(&output()?, &[*shared?])
        }
        "RNN" | "GRU" | "LSTM" => recurrent(&input(0)?, &input(2)?),
        "Einsum" => {
            let types: Vec<&TensorType> = inputs.iter().map(|v| &v.tensor).collect();
            einsum_macs(get_s(node, "equation")?, &types)
        }
        "Attention" => None,
        _ => Some(0),
    }
}

/// Sequence length times batch times the elements of W and R.
fn recurrent(x: &[u64], r: &[u64]) -> Option<u64> {
    let [steps, batch, size] = *x else { return None };
    let [directions, rows, hidden] = *r else { return None };
    let columns = size.checked_add(hidden)?;
    times(&[steps, batch, directions], &[rows, columns])
}

fn known(tensor: &TensorType) -> Option<Vec<u64>> {
    tensor.dims.as_ref()?.iter().map(|d: &Dim| u64::try_from(d.known()?).ok()).collect()
}

fn times(a: &[u64], b: &[u64]) -> Option<u64> {
    a.iter().chain(b).try_fold(1u64, |n, &d| n.checked_mul(d))
}
