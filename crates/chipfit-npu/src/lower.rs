//! From a QDQ model to a [`Program`]: every DequantizeLinear, operator, QuantizeLinear becomes integer steps.
//!
//! The model is walked once, in order. At a QuantizeLinear the float values before it are followed up to the
//! integer tensors they come from. On the way stand *links* (functions of one value, movements of bytes, maximum
//! pools), which commute with rounding, and at most one operator that computes (`linear`, `combine`).
//! A link becomes a table, a clamp or a move; where one node needs several steps, the tensors between them are
//! *internal* ([`Tensor::is_internal`]). Transposed convolutions are rewritten first (`chipfit-deconv`).
//!
//! Promises: what the program computes is what `docs/integer-arithmetic.md` says, or there is an error that names
//! the node, its operator and what to do; no step mixes pictures; the model is not changed.
//!
//! Read [`Program::lower`], then `walk` (from QuantizeLinear upwards), `chain` (links to steps), `linear`, `combine`,
//! `movement`, `grid` (scales and zero points).

mod chain;
mod combine;
mod error;
mod grid;
mod head;
mod linear;
mod movement;
mod walk;
mod weights;
mod window;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use chipfit_model::build::is_op;
use chipfit_model::index::node_label;
use chipfit_model::proto::NodeProto;
use chipfit_model::shape::infer;
use chipfit_model::{Index, Model, Producer, Shapes};

pub use error::LowerError;
use grid::Grid;

use crate::program::{Head, INTERNAL, Op, Program, Step, Tensor, TensorId};

/// How accumulators become bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Requantize {
    /// fp32 multipliers, as ONNX Runtime's fused kernels.
    #[default]
    Onnx,
    /// Q31 multipliers and shifts, as TFLite's reference kernels and most NPUs.
    Fixed,
}

/// How a model is lowered.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LowerOptions {
    /// How accumulators become bytes.
    pub requantize: Requantize,
    /// Keep nodes that the processor lacks in float, with a warning, instead of refusing them.
    pub float_fallback: bool,
    /// Shapes of inputs, batch included, where the file leaves them open.
    pub inputs: BTreeMap<String, Vec<usize>>,
    /// The output to compute, where the model has several.
    pub output: Option<String>,
}

impl Program {
    /// Lowers a QDQ model.
    ///
    /// # Errors
    /// [`LowerError`], which names the node and what to do.
    pub fn lower(model: &Model, options: &LowerOptions) -> Result<Self, LowerError> {
        let rewritten = without_transposed_convolutions(model, options)?;
        let index = Index::new(rewritten.as_ref().unwrap_or(model));
        index.check()?;
        Lowering::new(&index, options)?.run()
    }
}

/// The model with every ConvTranspose rewritten as convolutions; `None` where there is none.
fn without_transposed_convolutions(model: &Model, options: &LowerOptions) -> Result<Option<Model>, LowerError> {
    if !model.graph().node.iter().any(|node| is_op(node, "ConvTranspose")) {
        return Ok(None);
    }
    let mut changed = model.clone();
    let rewrite = {
        let index = Index::new(model);
        let shapes = infer(&index, &options.inputs)?;
        chipfit_deconv::plan(&index, &shapes, &chipfit_deconv::Options::default())?
    };
    if let Some(kept) = rewrite.nodes.iter().find(|node| node.form.is_none()) {
        return Err(LowerError::unsupported(&kept.name, "ConvTranspose", &kept.reason, "export it as a convolution"));
    }
    changed.apply(&rewrite.patch)?;
    Ok(Some(changed))
}

/// The state of one lowering.
struct Lowering<'m, 'i> {
    index: &'i Index<'m>,
    shapes: Shapes,
    options: &'i LowerOptions,
    /// Length of axis 0 of every activation.
    batch: usize,
    tensors: Vec<Tensor>,
    steps: Vec<Step>,
    /// Integer tensors by the names of the model; several names may mean one tensor.
    integers: HashMap<String, TensorId>,
    /// Float values that were quantised: on which grids, to which tensors.
    quantised: HashMap<String, Vec<(Grid, TensorId)>>,
    /// Operands by the names of their float values, where they took steps of their own.
    operands: HashMap<String, TensorId>,
    input_name: String,
    input: Option<TensorId>,
    warnings: Vec<String>,
}

impl<'m, 'i> Lowering<'m, 'i> {
    fn new(index: &'i Index<'m>, options: &'i LowerOptions) -> Result<Self, LowerError> {
        let graph = &index.scopes[0];
        if let Some(inner) = index.scopes.iter().find(|scope| scope.parent == Some(0)) {
            let position = inner.path.steps.first().map_or(0, |step| step.node);
            let node = &graph.nodes[position];
            return Err(LowerError::ControlFlow { node: node_label(node, position), op_type: op_type(node) });
        }
        if !graph.nodes.iter().any(|node| grid::is_quantize(node) || grid::is_dequantize(node)) {
            return Err(LowerError::NotQuantised);
        }
        let float_inputs: Vec<&str> = graph
            .inputs
            .iter()
            .copied()
            .filter(|name| matches!(graph.producer(name), Some(Producer::Input(_))))
            .collect();
        let [input_name] = float_inputs.as_slice() else {
            return Err(LowerError::Inputs { names: float_inputs.iter().map(|&name| name.to_owned()).collect() });
        };
        let mut inputs = options.inputs.clone();
        let declared = infer(index, &inputs)?.get(0, input_name);
        if let Some(dims) = &declared.dims
            && dims.first().is_some_and(|batch| batch.known().is_none())
            && let Some(rest) = dims.iter().skip(1).map(chipfit_model::Dim::known).collect::<Option<Vec<_>>>()
        {
            inputs.insert((*input_name).to_owned(), std::iter::once(1).chain(rest).collect());
        }
        let shapes = infer(index, &inputs)?;
        let dims = shapes.get(0, input_name).known_dims().filter(|dims| !dims.is_empty());
        let Some(dims) = dims else {
            return Err(LowerError::InputShape { name: (*input_name).to_owned(), shape: declared.to_string() });
        };
        Ok(Self {
            index,
            shapes,
            options,
            batch: dims[0],
            tensors: Vec::new(),
            steps: Vec::new(),
            integers: HashMap::new(),
            quantised: HashMap::new(),
            operands: HashMap::new(),
            input_name: (*input_name).to_owned(),
            input: None,
            warnings: Vec::new(),
        })
    }

    fn run(mut self) -> Result<Program, LowerError> {
        let output = self.output_name()?;
        let needed = self.needed(output);
        for position in self.index.topological_order(0)? {
            if needed.contains(&position) {
                self.check_arity(position)?;
                self.lower_node(position)?;
            }
        }
        let (output, head) = self.lower_head(output)?;
        let input = self.input.ok_or_else(|| LowerError::InputNotQuantised { name: self.input_name.clone() })?;
        let (tensors, steps, output) = self.without_idle_steps(input, output);
        Ok(Program {
            tensors,
            steps,
            input: TensorId(0),
            output,
            head,
            input_name: self.input_name,
            warnings: self.warnings,
            options: self.options.clone(),
        })
    }

    /// One node in its turn: a QuantizeLinear of activations, or an operator right on integer tensors.
    fn lower_node(&mut self, position: usize) -> Result<(), LowerError> {
        let node = self.node(position);
        if grid::is_quantize(node) {
            if self.index.constant(0, &node.input[0]).is_some() {
                return Ok(());
            }
            return self.lower_quantize(position);
        }
        if let Some(&from) = node.input.first().and_then(|name| self.integers.get(name)) {
            if grid::is_dequantize(node) {
                return Ok(());
            }
            return self.lower_on_integers(position, from);
        }
        Ok(())
    }

    /// Refuses a node that lacks inputs or outputs which every use of its operator has.
    fn check_arity(&self, position: usize) -> Result<(), LowerError> {
        const TWO: [&str; 12] = [
            "QuantizeLinear",
            "DequantizeLinear",
            "Conv",
            "ConvTranspose",
            "Gemm",
            "MatMul",
            "Add",
            "Mul",
            "Sub",
            "Div",
            "PRelu",
            "Gather",
        ];
        let node = self.node(position);
        let least = match node.op_type.as_deref().unwrap_or_default() {
            "Constant" => 0,
            name if TWO.contains(&name) => 2,
            _ => 1,
        };
        let given = node.input.iter().take_while(|name| !name.is_empty()).count();
        if given < least || node.output.first().is_none_or(String::is_empty) {
            let what = format!("{given} inputs and {} outputs", node.output.len());
            return Err(self.unsupported(position, &what, "correct the model"));
        }
        Ok(())
    }

    /// The nodes that `output` depends on.
    fn needed(&self, output: &str) -> BTreeSet<usize> {
        let mut needed = BTreeSet::new();
        let mut waiting = vec![output];
        while let Some(name) = waiting.pop() {
            if let Some((_, position, node)) = self.index.producer_node(0, name)
                && needed.insert(position)
            {
                waiting.extend(node.input.iter().map(String::as_str).filter(|name| !name.is_empty()));
            }
        }
        needed
    }

    /// Drops steps that nothing reads (nodes whose links were moved elsewhere) and numbers the input 0.
    fn without_idle_steps(&self, input: TensorId, output: TensorId) -> (Vec<Tensor>, Vec<Step>, TensorId) {
        let mut used = BTreeSet::from([output]);
        let mut steps: Vec<Step> = Vec::new();
        for step in self.steps.iter().rev() {
            if used.contains(&step.output) {
                used.extend(step.inputs.iter().copied());
                steps.push(step.clone());
            }
        }
        steps.reverse();
        let mut numbers = BTreeMap::from([(input, TensorId(0))]);
        let mut tensors = vec![self.tensors[input.0].clone()];
        for step in &mut steps {
            step.inputs.iter_mut().for_each(|id| *id = numbers[id]);
            numbers.insert(step.output, TensorId(tensors.len()));
            tensors.push(self.tensors[step.output.0].clone());
            step.output = numbers[&step.output];
        }
        (tensors, steps, numbers[&output])
    }

    fn node(&self, position: usize) -> &'m NodeProto {
        &self.index.scopes[0].nodes[position]
    }

    fn label(&self, position: usize) -> String {
        node_label(self.node(position), position)
    }

    /// The shape of an activation without its batch axis.
    fn picture(&self, position: usize, name: &str) -> Result<Vec<usize>, LowerError> {
        let known = self.shapes.get(0, name);
        let node = self.label(position);
        let Some(dims) = known.known_dims() else {
            return Err(LowerError::UnknownShape { node, name: name.to_owned(), shape: known.to_string() });
        };
        let elements = dims.iter().try_fold(1usize, |product, &length| product.checked_mul(length));
        if elements.is_none_or(|elements| elements > MOST_ELEMENTS) {
            let what = format!("'{name}' has the shape {dims:?}");
            return Err(self.unsupported(position, &what, "use smaller pictures"));
        }
        match dims.split_first() {
            Some((&batch, picture)) if batch == self.batch => Ok(picture.to_vec()),
            _ => Err(LowerError::MixesPictures {
                node,
                op_type: op_type(self.node(position)),
                what: format!("'{name}' has the shape {dims:?}, whose first axis is not the batch of {}", self.batch),
            }),
        }
    }

    fn add_tensor(&mut self, name: &str, shape: Vec<usize>, grid: Grid) -> TensorId {
        let (word, scale, zero_point) = (grid.word, grid.scale, grid.zero_point);
        self.tensors.push(Tensor { name: name.to_owned(), shape, word, scale, zero_point });
        TensorId(self.tensors.len() - 1)
    }

    /// A tensor that the model does not have, before or within the node at `position`.
    fn add_internal(&mut self, position: usize, shape: Vec<usize>, grid: Grid) -> TensorId {
        let name = format!("{INTERNAL}{}:{}", self.label(position), self.tensors.len());
        self.add_tensor(&name, shape, grid)
    }

    fn add_step(&mut self, position: usize, op: Op, inputs: Vec<TensorId>, output: TensorId) {
        let node = self.node(position);
        self.steps.push(Step { name: self.label(position), op_type: op_type(node), op, inputs, output });
    }

    fn unsupported(&self, position: usize, what: &str, hint: &str) -> LowerError {
        LowerError::unsupported(&self.label(position), &op_type(self.node(position)), what, hint)
    }
}

fn op_type(node: &NodeProto) -> String {
    let name = node.op_type.clone().unwrap_or_default();
    match node.domain.as_deref() {
        None | Some("" | "ai.onnx") => name,
        Some(domain) => format!("{domain}.{name}"),
    }
}

/// No tensor of a batch may have more elements: a file's shapes alone must not ask for memory without bounds.
const MOST_ELEMENTS: usize = 1 << 28;

/// What follows the last integer tensor, and that tensor.
type Ending = (TensorId, Head);

#[cfg(test)]
mod tests;
