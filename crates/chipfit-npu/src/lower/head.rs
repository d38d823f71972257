//! The end of the model: its output, what follows the last integer tensor, and pieces kept in float.

use std::collections::BTreeSet;

use bytes::Bytes;
use chipfit_model::build::{DimSpec, get_i, is_op, value_info};
use chipfit_model::{DataType, Producer};

use super::grid::{Grid, is_dequantize, is_quantize};
use super::walk::Origin;
use super::{Ending, LowerError, Lowering, op_type};
use crate::ops;
use crate::program::{FloatStep, Head, Op, Program, TensorId};

impl<'m> Lowering<'m, '_> {
    /// The output to compute.
    pub(super) fn output_name(&self) -> Result<&'m str, LowerError> {
        let outputs = &self.index.scopes[0].outputs;
        let error = |why: &str| LowerError::Outputs {
            names: outputs.iter().map(|&name| format!("'{name}'")).collect(),
            why: why.to_owned(),
        };
        if let Some(wanted) = &self.options.output {
            let found = outputs.iter().find(|name| *name == wanted);
            return found.copied().ok_or_else(|| error(&format!("there is no '{wanted}'")));
        }
        // Integer outputs beside a float one were added to look inside.
        let is_float = |name: &&&str| self.shapes.get(0, name).dtype.is_none_or(|dtype| dtype.is_float());
        let floats: Vec<&&str> = outputs.iter().filter(is_float).collect();
        match (floats.as_slice(), outputs.as_slice()) {
            ([one], _) => Ok(one),
            ([], [one]) => Ok(one),
            _ => Err(error("name the one to compute with --output")),
        }
    }

    /// Whether the float value comes from a Softmax: then its QuantizeLinear is no step.
    pub(super) fn is_quantised_softmax(&self, name: &str) -> bool {
        self.index.producer_node(0, name).is_some_and(|(_, _, node)| is_op(node, "Softmax"))
    }

    /// The last integer tensor before `output`, and what follows it.
    pub(super) fn lower_head(&mut self, output: &'m str) -> Result<Ending, LowerError> {
        if let Some(&id) = self.integers.get(output) {
            return Ok((id, Head::Dequantize));
        }
        let (mut name, mut head) = (output, Head::Dequantize);
        // A quantised Softmax, then the Softmax itself.
        if let Some((_, position, node)) = self.index.producer_node(0, name)
            && is_dequantize(node)
            && let Some((_, _, quantize)) = self.index.producer_node(0, &node.input[0])
            && is_quantize(quantize)
            && self.is_quantised_softmax(&quantize.input[0])
        {
            let label = self.label(position);
            self.warnings.push(format!("node '{label}': the Softmax is computed in float and not quantised"));
            name = &quantize.input[0];
        }
        if let Some((_, position, node)) = self.index.producer_node(0, name)
            && is_op(node, "Softmax")
        {
            let picture = self.picture(position, &node.input[0])?;
            let default = if self.index.scopes[0].opset < 13 { 1 } else { -1 };
            let axis = self.picture_axis(position, get_i(node, "axis").unwrap_or(default), picture.len())?;
            if picture.iter().enumerate().any(|(at, &length)| at != axis && length != 1) {
                let what = format!("a Softmax over axis {} of {picture:?}, batch aside", axis + 1);
                return Err(self.unsupported(position, &what, "leave it out of the model"));
            }
            (name, head) = (node.input[0].as_str(), Head::Softmax);
        }
        let (links, origin, from) = self.walk_up(name)?;
        match origin {
            Origin::Integer(start) => {
                let grid = Grid::of(&self.tensors[start.0]);
                if let Some(link) = links.iter().find(|link| !link.is_exact_on(grid)) {
                    let what = "it follows the last QuantizeLinear";
                    return Err(self.unsupported(
                        link.position,
                        what,
                        "quantise its output, or leave it out of the model",
                    ));
                }
                let at = links.last().map_or(0, |link| link.position);
                Ok((self.apply(at, start, links, grid, "")?, head))
            }
            Origin::Node(position) if is_op(self.node(position), "ArgMax") => {
                Err(self.unsupported(position, "its output is the model's", "let the model end in the logits"))
            }
            Origin::Node(position) => Err(LowerError::MissingQuantize {
                node: self.label(position),
                op_type: op_type(self.node(position)),
                value: from.to_owned(),
                maker: "it, before the model's output".to_owned(),
            }),
            Origin::Input | Origin::Constant(_) => Err(LowerError::Outputs {
                names: vec![format!("'{output}'")],
                why: "it does not depend on any integer tensor".to_owned(),
            }),
        }
    }

    /// Keeps what lies between DequantizeLinear and the QuantizeLinear at `quantize` in float.
    pub(super) fn keep_in_float(
        &mut self,
        quantize: usize,
        computes: usize,
        shape: Vec<usize>,
        grid: Grid,
        why: &LowerError,
    ) -> Result<TensorId, LowerError> {
        let (result, name) = (self.node(quantize).input[0].as_str(), self.node(quantize).output[0].as_str());
        let (mut nodes, mut constants, mut inputs) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
        let mut waiting = vec![result];
        let mut seen = BTreeSet::new();
        while let Some(value) = waiting.pop() {
            if !seen.insert(value) {
                continue;
            }
            match self.index.lookup(0, value) {
                Some((_, Producer::Initializer(position))) => {
                    constants.insert(position);
                }
                Some((_, Producer::Node { node: position, .. })) => {
                    let node = self.node(position);
                    if is_dequantize(node) && !self.is_constant_integer(&node.input[0]) {
                        inputs.push((value, self.activation(position, value)?));
                        continue;
                    }
                    nodes.insert(position);
                    waiting.extend(node.input.iter().map(String::as_str).filter(|name| !name.is_empty()));
                }
                _ => return Err(self.unsupported(computes, "it reads the float input", "quantise the input first")),
            }
        }
        if self.batch != 1 {
            return Err(self.unsupported(computes, "float pieces need a batch of 1", "export the model with batch 1"));
        }
        inputs.sort();
        let outer = self.index.model.graph();
        let mut file = self.index.model.clone();
        let graph = file.proto.graph.get_or_insert_default();
        graph.node = nodes.iter().map(|&position| outer.node[position].clone()).collect();
        graph.initializer = constants.iter().map(|&position| outer.initializer[position].clone()).collect();
        let info = |name: &str, picture: &[usize]| {
            let dims: Vec<DimSpec> =
                std::iter::once(1).chain(picture.iter().map(|&d| d as i64)).map(DimSpec::Known).collect();
            value_info(name, DataType::Float, &dims)
        };
        graph.input = inputs.iter().map(|(name, id)| info(name, &self.tensors[id.0].shape)).collect();
        graph.output = vec![info(result, &shape)];
        graph.value_info.clear();
        graph.sparse_initializer.clear();
        let label = self.label(computes);
        let failed =
            |what: String| LowerError::unsupported(&label, &op_type(self.node(computes)), &what, "leave it out");
        let model = Bytes::from(file.to_bytes().map_err(|e| failed(e.to_string()))?);
        let step = FloatStep { model, inputs: inputs.iter().map(|(name, _)| (*name).to_owned()).collect() };
        let output = self.add_tensor(name, shape, grid);
        let ids = inputs.iter().map(|(_, id)| *id).collect();
        self.add_step(computes, Op::Float(Box::new(step)), ids, output);
        self.try_last_step()?;
        self.warnings.push(format!("node '{}': kept in float, because: {why}", self.label(computes)));
        Ok(output)
    }

    /// Runs the step just added on zero points, so that an engine's refusal is known at once.
    fn try_last_step(&self) -> Result<(), LowerError> {
        let Some(step) = self.steps.last() else { return Ok(()) };
        let bytes: Vec<Vec<u8>> =
            step.inputs.iter().map(|id| vec![self.tensors[id.0].zero_point; self.tensors[id.0].elements()]).collect();
        let inputs: Vec<&[u8]> = bytes.iter().map(Vec::as_slice).collect();
        let program = Program {
            tensors: self.tensors.clone(),
            steps: Vec::new(),
            input: TensorId(0),
            output: step.output,
            head: Head::Dequantize,
            input_name: String::new(),
            warnings: Vec::new(),
            options: self.options.clone(),
        };
        ops::execute(&program, step, &inputs).map(drop).map_err(|e| {
            LowerError::unsupported(&step.name, &step.op_type, &e.to_string(), "leave it out of the model")
        })
    }
}
