//! Writes nodes: fresh names, constants, and each operator as the opset at hand spells it.

use std::collections::BTreeSet;

use chipfit_model::build::{attr_i, attr_is, attr_s, node};
use chipfit_model::proto::{AttributeProto, NodeProto, TensorProto};
use chipfit_model::{ConstTensor, Index};

/// Names that are taken, so that new ones never collide.
#[derive(Debug)]
pub(crate) struct Names(BTreeSet<String>);

impl Names {
    pub(crate) fn of(index: &Index<'_>) -> Self {
        Self(index.names().into_iter().map(str::to_owned).collect())
    }

    fn fresh(&mut self, wanted: &str) -> String {
        let mut name = wanted.to_owned();
        let mut count = 1;
        while self.0.contains(&name) {
            count += 1;
            name = format!("{wanted}_{count}");
        }
        self.0.insert(name.clone());
        name
    }
}

/// One entry of a Reshape's target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// A fixed length; 0 copies the input's at this place, -1 takes the rest.
    Fixed(i64),
    /// `factor` times a length that is only known at run time: `axis` of the value `of`.
    Times { of: String, axis: usize, factor: i64 },
}

/// Nodes in the making, for one ConvTranspose.
#[derive(Debug)]
pub(crate) struct Emitter<'n> {
    pub opset: i64,
    names: &'n mut Names,
    prefix: String,
    pub nodes: Vec<NodeProto>,
    pub initializers: Vec<TensorProto>,
}

impl<'n> Emitter<'n> {
    pub(crate) fn new(opset: i64, names: &'n mut Names, prefix: &str) -> Self {
        Self { opset, names, prefix: prefix.to_owned(), nodes: Vec::new(), initializers: Vec::new() }
    }

    fn fresh(&mut self, what: &str) -> String {
        let wanted = format!("{}/{what}", self.prefix);
        self.names.fresh(&wanted)
    }

    /// Adds a node; gives the name of its output.
    pub(crate) fn op(&mut self, op_type: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        let name = self.fresh(op_type);
        let output = self.fresh(&format!("{op_type}_output"));
        self.nodes.push(node(op_type, &name, inputs, &[&output], attributes));
        output
    }

    /// Adds a copy of `model` with other inputs; gives the name of its output.
    pub(crate) fn like(&mut self, model: &NodeProto, inputs: &[&str]) -> String {
        let op_type = model.op_type.clone().unwrap_or_default();
        let name = self.fresh(&op_type);
        let output = self.fresh(&format!("{op_type}_output"));
        let mut copy = model.clone();
        copy.name = Some(name);
        copy.input = inputs.iter().map(|&i| i.to_owned()).collect();
        copy.output = vec![output.clone()];
        self.nodes.push(copy);
        output
    }

    /// Adds a constant; gives its name.
    pub(crate) fn constant(&mut self, what: &str, tensor: &ConstTensor) -> String {
        let name = self.fresh(what);
        self.initializers.push(tensor.to_proto(&name));
        name
    }

    fn integers(&mut self, what: &str, values: &[i64]) -> String {
        self.constant(what, &ConstTensor::from_i64s(values))
    }

    /// `x[..., starts[i]..ends[i], ...]` along `axes`; an end of `i64::MAX` is the end.
    pub(crate) fn slice(&mut self, x: &str, axes: &[i64], starts: &[i64], ends: &[i64]) -> String {
        if self.opset < 10 {
            let attributes = vec![attr_is("axes", axes), attr_is("starts", starts), attr_is("ends", ends)];
            return self.op("Slice", &[x], attributes);
        }
        let starts = self.integers("starts", starts);
        let ends = self.integers("ends", ends);
        let axes = self.integers("axes", axes);
        self.op("Slice", &[x, &starts, &ends, &axes], vec![])
    }

    /// Every `step`-th entry of `axis` from `start`. Needs opset 10.
    pub(crate) fn every(&mut self, x: &str, axis: i64, start: i64, step: i64) -> String {
        let inputs = [[start], [i64::MAX], [axis], [step]];
        let what = ["starts", "ends", "axes", "steps"];
        let names: Vec<String> = inputs.iter().zip(what).map(|(v, w)| self.integers(w, v)).collect();
        self.op("Slice", &[x, &names[0], &names[1], &names[2], &names[3]], vec![])
    }

    /// Pads with zeros, or with the scalar constant `value`. `pads`: all begins, then all ends.
    pub(crate) fn pad(&mut self, x: &str, pads: &[i64], value: Option<&ConstTensor>) -> String {
        match self.opset {
            ..2 => self.op("Pad", &[x], vec![attr_is("paddings", pads)]),
            2..11 => self.op("Pad", &[x], vec![attr_is("pads", pads)]),
            _ => {
                let pads = self.integers("pads", pads);
                let value = value.map(|v| self.constant("pad_value", v));
                let mut inputs = vec![x, pads.as_str()];
                inputs.extend(value.as_deref());
                self.op("Pad", &inputs, vec![])
            }
        }
    }

    /// Concatenates; one input is passed through.
    pub(crate) fn concat(&mut self, parts: &[String], axis: usize) -> String {
        match parts {
            [one] => one.clone(),
            _ => {
                let inputs: Vec<&str> = parts.iter().map(String::as_str).collect();
                self.op("Concat", &inputs, vec![attr_i("axis", axis as i64)])
            }
        }
    }

    /// Splits `axis` into `parts` parts of `length`.
    pub(crate) fn split(&mut self, x: &str, axis: usize, parts: usize, length: usize) -> Vec<String> {
        let lengths = vec![length as i64; parts];
        let name = self.fresh("Split");
        let outputs: Vec<String> = (0..parts).map(|_| self.fresh("Split_output")).collect();
        let mut inputs = vec![x.to_owned()];
        let mut attributes = vec![attr_i("axis", axis as i64)];
        if self.opset < 13 {
            attributes.push(attr_is("split", &lengths));
        } else {
            inputs.push(self.integers("split", &lengths));
        }
        self.nodes.push(node("Split", &name, &inputs, &outputs, attributes));
        outputs
    }

    /// Inserts an axis of length 1.
    pub(crate) fn unsqueeze(&mut self, x: &str, axis: usize) -> String {
        if self.opset < 13 {
            return self.op("Unsqueeze", &[x], vec![attr_is("axes", &[axis as i64])]);
        }
        let axes = self.integers("axes", &[axis as i64]);
        self.op("Unsqueeze", &[x, &axes], vec![])
    }

    pub(crate) fn transpose(&mut self, x: &str, permutation: &[i64]) -> String {
        self.op("Transpose", &[x], vec![attr_is("perm", permutation)])
    }

    pub(crate) fn depth_to_space(&mut self, x: &str, block: i64, channel_major: bool) -> String {
        let mut attributes = vec![attr_i("blocksize", block)];
        if self.opset >= 11 {
            attributes.push(attr_s("mode", if channel_major { "CRD" } else { "DCR" }));
        }
        self.op("DepthToSpace", &[x], attributes)
    }

    /// Reshapes; lengths known only at run time are read off by a Shape node.
    pub(crate) fn reshape(&mut self, x: &str, target: &[Target]) -> String {
        let fixed: Option<Vec<i64>> =
            target.iter().map(|t| if let Target::Fixed(v) = t { Some(*v) } else { None }).collect();
        if let Some(fixed) = fixed {
            if self.opset < 5 {
                return self.op("Reshape", &[x], vec![attr_is("shape", &fixed)]);
            }
            let shape = self.integers("shape", &fixed);
            return self.op("Reshape", &[x, &shape], vec![]);
        }
        let shape = self.shape_vector(target);
        self.op("Reshape", &[x, &shape], vec![])
    }

    /// An int64 vector of fixed and run-time entries.
    pub(crate) fn shape_vector(&mut self, entries: &[Target]) -> String {
        let mut parts: Vec<String> = Vec::new();
        let mut fixed: Vec<i64> = Vec::new();
        for entry in entries {
            match entry {
                Target::Fixed(v) => fixed.push(*v),
                Target::Times { of, axis, factor } => {
                    if !fixed.is_empty() {
                        let part = self.integers("dims", &std::mem::take(&mut fixed));
                        parts.push(part);
                    }
                    let shape = self.op("Shape", &[of], vec![]);
                    let mut dim = self.slice(&shape, &[0], &[*axis as i64], &[*axis as i64 + 1]);
                    if *factor != 1 {
                        let factor = self.integers("factor", &[*factor]);
                        dim = self.op("Mul", &[&dim, &factor], vec![]);
                    }
                    parts.push(dim);
                }
            }
        }
        if !fixed.is_empty() {
            let part = self.integers("dims", &fixed);
            parts.push(part);
        }
        self.concat(&parts, 0)
    }

    /// Gives the value `from`, made by one of these nodes, the name `to`.
    pub(crate) fn rename(&mut self, from: &str, to: &str) {
        for n in &mut self.nodes {
            for name in n.input.iter_mut().chain(&mut n.output).filter(|name| *name == from) {
                to.clone_into(name);
            }
        }
    }
}
