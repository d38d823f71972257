//! Which tensors are quantised, and which of them share a scale.
//!
//! A tensor is quantised when a node that computes in integers ([`Role::Compute`], [`Role::Activation`]) reads or
//! makes it, or when a node that only moves elements connects it with such a tensor. What a moving node makes has
//! the scale of what it reads; what a Relu or Clip reads from a node that nothing else reads has the scale of what
//! the Relu or Clip makes, so that it can be left out or is exact on integers.

use std::collections::{BTreeMap, BTreeSet};

use chipfit_model::build::{get_i, get_s, is_op};
use chipfit_model::proto::NodeProto;
use chipfit_model::{ConstTensor, Shapes};

use crate::graph::{Graph, input, name_of, output};
use crate::simplify::{floats, is_float, to_f32};

/// What a node is to the quantiser.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Role {
    /// Sums, products, means: an integer result with a scale of its own.
    Compute,
    /// A function of one value; with bounds where it only clips.
    Activation(Option<Bounds>),
    /// Moves or picks elements.
    Move,
    /// Joins tensors.
    Concat,
    /// Stays in float, or does not touch float tensors at all.
    Float,
}

/// What Relu and Clip limit a value to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Bounds {
    /// The lower bound, or minus infinity.
    pub(crate) low: f32,
    /// The upper bound, or infinity.
    pub(crate) high: f32,
}

/// The plan.
pub(crate) struct Places {
    /// By node.
    pub(crate) roles: Vec<Role>,
    /// The quantised tensors, constants excepted.
    pub(crate) quantised: BTreeSet<String>,
    /// The tensor whose range a quantised tensor takes, where that is another.
    pub(crate) sources: BTreeMap<String, String>,
    /// Tensors between a computing node and the Relu or Clip (by position) that alone reads them.
    pub(crate) before_clip: BTreeMap<String, usize>,
    /// The tensors whose values calibration must see.
    pub(crate) observed: Vec<String>,
}

const ACTIVATIONS: [&str; 9] =
    ["Relu", "Clip", "LeakyRelu", "HardSwish", "HardSigmoid", "Sigmoid", "Tanh", "Elu", "Selu"];
const MOVES: [&str; 11] = [
    "Reshape",
    "Flatten",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Slice",
    "DepthToSpace",
    "SpaceToDepth",
    "Tile",
    "Expand",
    "GlobalMaxPool",
];

fn is_one_of(node: &NodeProto, operators: &[&str]) -> bool {
    operators.iter().any(|op| is_op(node, op))
}

/// The role of a node.
pub(crate) fn role(graph: &Graph, shapes: &Shapes, node: &NodeProto) -> Role {
    let float = |position: usize| input(node, position).is_some_and(|x| is_float(graph, shapes, x));
    let constant = |position: usize| graph.constant(node, position).is_some();
    if !float(0) {
        return Role::Float;
    }
    if is_one_of(node, &["Conv", "ConvTranspose", "Gemm"]) {
        // What is no plain product of two operands with a constant bias stays in float.
        let plain = ["alpha", "beta", "transA"].iter().all(|a| chipfit_model::build::attr(node, a).is_none());
        let bias = input(node, 2).is_none() || graph.constant(node, 2).and_then(floats).is_some();
        let operands = float(1) && !constant(0);
        return if plain && bias && operands { Role::Compute } else { Role::Float };
    }
    if is_one_of(node, &["MatMul", "Add", "Mul"]) {
        return if float(1) { Role::Compute } else { Role::Float };
    }
    if is_one_of(node, &["AveragePool", "GlobalAveragePool"]) {
        return Role::Compute;
    }
    if is_one_of(node, &ACTIVATIONS) {
        return Role::Activation(clip_bounds(graph, node));
    }
    if is_op(node, "Concat") {
        return Role::Concat;
    }
    let single = node.output.iter().skip(1).all(String::is_empty);
    let moves = is_one_of(node, &MOVES)
        || is_op(node, "Split")
        || is_op(node, "Identity")
        || is_op(node, "Gather")
        || (is_op(node, "MaxPool") && single)
        || (is_op(node, "Resize") && get_s(node, "mode").unwrap_or("nearest") == "nearest")
        || (is_op(node, "Pad") && pads_with_zero(graph, node));
    if moves { Role::Move } else { Role::Float }
}

/// Whether what Pad adds is 0 or taken from the input.
fn pads_with_zero(graph: &Graph, node: &NodeProto) -> bool {
    get_s(node, "mode").unwrap_or("constant") != "constant"
        || input(node, 2).is_none()
        || graph.constant(node, 2).and_then(floats).is_some_and(|v| v == [0.0])
}

/// The bounds of Relu and of a Clip whose bounds are constants.
fn clip_bounds(graph: &Graph, node: &NodeProto) -> Option<Bounds> {
    if is_op(node, "Relu") {
        return Some(Bounds { low: 0.0, high: f32::INFINITY });
    }
    if !is_op(node, "Clip") {
        return None;
    }
    let bound = |position: usize, absent: f32| match input(node, position) {
        None => Some(absent),
        Some(_) => match floats(graph.constant(node, position)?)?.as_slice() {
            [one] if !one.is_nan() => Some(to_f32(*one)),
            _ => None,
        },
    };
    Some(Bounds { low: bound(1, f32::NEG_INFINITY)?, high: bound(2, f32::INFINITY)? })
}

/// The float inputs of a node that are no constants and take part in its integer form.
pub(crate) fn data_inputs<'n>(graph: &Graph, node: &'n NodeProto, role: Role) -> Vec<&'n str> {
    let count = match role {
        Role::Compute if is_one_of(node, &["Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Mul"]) => 2,
        Role::Compute | Role::Activation(_) | Role::Move => 1,
        Role::Concat => node.input.len(),
        Role::Float => 0,
    };
    let names = node.input.iter().take(count).map(String::as_str);
    names.filter(|name| !name.is_empty() && !graph.constants.contains_key(*name)).collect()
}

/// The outputs of a node that carry elements.
pub(crate) fn data_outputs(node: &NodeProto, role: Role) -> Vec<&str> {
    let count = if is_op(node, "Split") { node.output.len() } else { usize::from(role != Role::Float) };
    node.output.iter().take(count).map(String::as_str).filter(|o| !o.is_empty()).collect()
}

impl Places {
    /// The plan for `graph`.
    pub(crate) fn new(graph: &Graph, shapes: &Shapes) -> Self {
        let roles: Vec<Role> = graph.nodes.iter().map(|n| role(graph, shapes, n)).collect();
        let quantised = quantised(graph, &roles);
        let mut sources: BTreeMap<String, String> = BTreeMap::new();
        let mut before_clip = BTreeMap::new();
        let (producers, readers) = (graph.producers(), graph.readers());
        let mut computed = BTreeSet::new();
        for (position, (node, role)) in graph.nodes.iter().zip(&roles).enumerate() {
            let Some(x) = data_inputs(graph, node, *role).first().copied() else { continue };
            if !quantised.contains(x) {
                continue;
            }
            match role {
                Role::Move => {
                    let source = sources.get(x).cloned().unwrap_or_else(|| x.to_owned());
                    for y in data_outputs(node, *role) {
                        sources.insert(y.to_owned(), source.clone());
                    }
                }
                Role::Concat => {
                    computed.insert(output(node).to_owned());
                }
                Role::Activation(Some(_)) => {
                    let maker = producers.get(x).and_then(|&p| roles.get(p));
                    let alone = readers.get(x).is_some_and(|r| r.len() == 1) && !graph.is_output(x);
                    if alone && maker == Some(&Role::Compute) {
                        sources.insert(x.to_owned(), output(node).to_owned());
                        before_clip.insert(x.to_owned(), position);
                    }
                }
                _ => {}
            }
        }
        let needs_values = |name: &&String| !sources.contains_key(*name) && !computed.contains(*name);
        let observed = quantised.iter().filter(needs_values).cloned().collect();
        Self { roles, quantised, sources, before_clip, observed }
    }

    /// The tensor whose range `name` takes.
    pub(crate) fn source<'a>(&'a self, name: &'a str) -> &'a str {
        self.sources.get(name).map_or(name, String::as_str)
    }
}

/// The tensors that the roles quantise.
fn quantised(graph: &Graph, roles: &[Role]) -> BTreeSet<String> {
    let mut set: BTreeSet<String> = BTreeSet::new();
    loop {
        let before = set.len();
        for (node, role) in graph.nodes.iter().zip(roles) {
            let (inputs, outputs) = (data_inputs(graph, node, *role), data_outputs(node, *role));
            let joins = match role {
                Role::Compute | Role::Activation(_) => true,
                Role::Move | Role::Concat => inputs.iter().chain(&outputs).any(|name| set.contains(*name)),
                Role::Float => false,
            };
            if joins {
                set.extend(inputs.iter().chain(&outputs).map(|name| (*name).to_owned()));
            }
        }
        if set.len() == before {
            return set;
        }
    }
}

/// The axis of a constant's output channels, where its node gives it one scale for each.
pub(crate) fn channel_axis(node: &NodeProto, weight: &ConstTensor) -> Option<usize> {
    let rank = weight.dims().len();
    if is_op(node, "Conv") {
        Some(0)
    } else if is_op(node, "ConvTranspose") {
        Some(1)
    } else if is_op(node, "Gemm") {
        Some(if get_i(node, "transB").unwrap_or(0) != 0 { 0 } else { 1 })
    } else {
        (is_op(node, "MatMul") && rank == 2).then_some(1)
    }
    .filter(|&axis| axis < rank)
}

/// Whether the second input of a node is a weight: a constant that is multiplied with the first.
pub(crate) fn has_weight(graph: &Graph, node: &NodeProto) -> bool {
    is_one_of(node, &["Conv", "ConvTranspose", "Gemm", "MatMul"])
        && graph.constant(node, 1).is_some()
        && graph.constant(node, 0).is_none()
}

/// Inputs of the model that are quantised.
pub(crate) fn quantised_inputs(graph: &Graph, places: &Places) -> Vec<String> {
    let names = graph.inputs.iter().map(name_of);
    names.filter(|name| places.quantised.contains(*name)).map(str::to_owned).collect()
}
