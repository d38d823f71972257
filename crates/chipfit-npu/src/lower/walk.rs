//! From a float value upwards, over links, to what it is made of; and QuantizeLinear nodes from there down.

use chipfit_model::build::{get_f, is_op};
use chipfit_model::{DataType, Producer};

use super::chain::{Link, LinkKind};
use super::grid::{Grid, is_dequantize, is_quantize};
use super::{LowerError, Lowering, op_type};
use crate::ops::function::Function;
use crate::program::{Op, TensorId, Word};

/// Where a float value comes from.
pub(super) enum Origin {
    /// An integer tensor, dequantised by the node at this position.
    Integer(TensorId),
    /// The model's input.
    Input,
    /// A constant: float, or an integer one behind the DequantizeLinear at this position.
    Constant(Option<usize>),
    /// The node at this position computes it.
    Node(usize),
}

/// An operand of a node that computes.
pub(super) enum Operand {
    /// An activation.
    Tensor(TensorId),
    /// A constant on a grid, in the model's order, with all its axes.
    Constant { shape: Vec<usize>, grid: Grid, bytes: Vec<u8> },
}

impl<'m> Lowering<'m, '_> {
    /// Follows `name` upwards. The links come in the order in which they are applied.
    pub(super) fn walk_up(&self, name: &'m str) -> Result<(Vec<Link>, Origin, &'m str), LowerError> {
        let (mut name, mut links) = (name, Vec::new());
        loop {
            if self.index.constant(0, name).is_some() {
                links.reverse();
                return Ok((links, Origin::Constant(None), name));
            }
            let position = match self.index.lookup(0, name) {
                Some((_, Producer::Node { node, .. })) => node,
                _ => {
                    links.reverse();
                    return Ok((links, Origin::Input, name));
                }
            };
            let node = self.node(position);
            if is_dequantize(node) {
                links.reverse();
                let from = node.input[0].as_str();
                if self.is_constant_integer(from) {
                    return Ok((links, Origin::Constant(Some(position)), name));
                }
                return Ok((links, Origin::Integer(self.dequantised(position, from)?), name));
            }
            let Some((link, from)) = self.link(position, name)? else {
                links.reverse();
                return Ok((links, Origin::Node(position), name));
            };
            links.extend(link);
            name = from;
        }
    }

    /// Whether an integer value is an initializer, or a QuantizeLinear of one.
    pub(super) fn is_constant_integer(&self, name: &str) -> bool {
        self.index.constant(0, name).is_some()
            || self
                .index
                .producer_node(0, name)
                .is_some_and(|(_, _, node)| is_quantize(node) && self.index.constant(0, &node.input[0]).is_some())
    }

    /// The integer tensor that the DequantizeLinear at `position` reads, on the grid that both agree on.
    fn dequantised(&self, position: usize, from: &str) -> Result<TensorId, LowerError> {
        let Some(&id) = self.integers.get(from) else {
            let maker = self.index.producer_node(0, from).map_or_else(
                || "an integer input".to_owned(),
                |(_, position, node)| format!("node '{}' ({})", self.label(position), op_type(node)),
            );
            return Err(self.quantisation(position, format!("'{from}' comes from {maker}, not from QuantizeLinear")));
        };
        let written = &self.tensors[id.0];
        let stored = match written.word {
            Word::Unsigned => DataType::Uint8,
            Word::Signed => DataType::Int8,
        };
        let read = self.grid(position, Some(stored))?;
        if read != Grid::of(written) {
            let what = format!(
                "'{from}' is read with scale {:e} and zero point {}, but was written with {:e} and {} (in biased bytes)",
                read.scale, read.zero_point, written.scale, written.zero_point
            );
            return Err(self.quantisation(position, what));
        }
        Ok(id)
    }

    /// The node at `position` as a link, if it is one, and the value it is applied to.
    fn link(&self, position: usize, output: &str) -> Result<Option<(Option<Link>, &'m str)>, LowerError> {
        let node = self.node(position);
        let Some(first) = node.input.first() else { return Ok(None) };
        let link = |kind| Some((Some(Link { position, kind }), first.as_str()));
        if let Some(function) = self.function(position)? {
            let from = if self.index.constant(0, first).is_some() { node.input[1].as_str() } else { first };
            let (before, after) = (self.picture(position, from)?, self.picture(position, output)?);
            if before != after {
                let what = format!("it turns the shape {before:?} into {after:?}");
                return Err(self.unsupported(position, &what, "give its constant no more axes than its input"));
            }
            return Ok(Some((Some(Link { position, kind: LinkKind::Function(function) }), from)));
        }
        if is_op(node, "MaxPool") || is_op(node, "GlobalMaxPool") {
            let (window, shape) = self.max_pool(position)?;
            return Ok(link(LinkKind::MaxPool(window, shape)));
        }
        if let Some(movement) = self.movement(position, output)? {
            return Ok(link(LinkKind::Move(movement)));
        }
        Ok(None)
    }

    /// The node at `position` as a function of one value.
    fn function(&self, position: usize) -> Result<Option<Function>, LowerError> {
        let node = self.node(position);
        if !matches!(node.domain.as_deref(), None | Some("" | "ai.onnx" | "com.microsoft")) {
            return Ok(None);
        }
        if let Some(function) = Function::of(node) {
            return Ok(Some(function));
        }
        let scalar = |input: usize| -> Result<Option<f32>, LowerError> {
            let Some(name) = node.input.get(input).filter(|name| !name.is_empty()) else { return Ok(None) };
            let Some(tensor) = self.index.constant_tensor(0, name)? else { return Ok(None) };
            let values = tensor.to_f64_vec().unwrap_or_default();
            Ok(if let [value] = values.as_slice() { Some(*value as f32) } else { None })
        };
        let given = |input: usize| node.input.get(input).is_some_and(|name| !name.is_empty());
        Ok(match node.op_type.as_deref().unwrap_or_default() {
            "Clip" => {
                let bound = |input: usize, attribute: &str, default: f32| -> Result<f32, LowerError> {
                    if given(input) {
                        return scalar(input)?
                            .ok_or_else(|| self.unsupported(position, "a bound that is not constant", "fold it"));
                    }
                    Ok(get_f(node, attribute).unwrap_or(default))
                };
                let (low, high) = (bound(1, "min", f32::NEG_INFINITY)?, bound(2, "max", f32::INFINITY)?);
                Some(Function::Clip { low, high })
            }
            "PRelu" => scalar(1)?.map(Function::LeakyRelu),
            "Add" => scalar(1)?.or(scalar(0)?).map(Function::Plus),
            "Mul" => scalar(1)?.or(scalar(0)?).map(Function::Times),
            "Sub" => scalar(1)?.map(|c| Function::Plus(-c)).or(scalar(0)?.map(Function::From)),
            "Div" => scalar(1)?.map(Function::Over),
            _ => None,
        })
    }

    /// The QuantizeLinear at `position`: steps up to its integer tensor.
    pub(super) fn lower_quantize(&mut self, position: usize) -> Result<(), LowerError> {
        let node = self.node(position);
        let grid = self.grid(position, None)?;
        let (from, name) = (node.input[0].as_str(), node.output[0].as_str());
        if self.is_quantised_softmax(from) {
            return Ok(());
        }
        // A value that is quantised twice alike (one pair per reader) is one tensor.
        if let Some(&(_, id)) = self.quantised.get(from).into_iter().flatten().find(|(known, _)| *known == grid) {
            self.integers.insert(name.to_owned(), id);
            return Ok(());
        }
        let shape = self.picture(position, from)?;
        let (links, origin, source) = self.walk_up(from)?;
        let id = match origin {
            Origin::Constant(_) => return Ok(()),
            Origin::Input => {
                let start = self.lower_input(position, source, grid, (name, links.is_empty()))?;
                if let Some(link) = links.iter().find(|link| matches!(link.kind, LinkKind::Function(_))) {
                    let what = "it computes on the float input, before quantisation";
                    return Err(self.unsupported(link.position, what, "move it into the preprocessing"));
                }
                self.apply(position, start, links, grid, name)?
            }
            Origin::Integer(start) => self.apply(position, start, links, grid, name)?,
            Origin::Node(computes) => {
                let result = self.lower_computation(computes, source, links, grid, name);
                match result {
                    Err(why) if self.options.float_fallback => {
                        self.keep_in_float(position, computes, shape, grid, &why)?
                    }
                    other => other?,
                }
            }
        };
        self.integers.insert(name.to_owned(), id);
        self.quantised.entry(from.to_owned()).or_default().push((grid, id));
        Ok(())
    }

    /// The quantised input; `name` is the QuantizeLinear's output and whether it is the input itself.
    fn lower_input(
        &mut self,
        position: usize,
        input: &str,
        grid: Grid,
        (name, direct): (&str, bool),
    ) -> Result<TensorId, LowerError> {
        if let Some(id) = self.input {
            let first = &self.tensors[id.0];
            if Grid::of(first) != grid {
                let what =
                    format!("'{input}' is quantised twice, with different parameters (first as '{}')", first.name);
                return Err(self.quantisation(position, what));
            }
            return Ok(id);
        }
        let shape = self.picture(position, input)?;
        let id = if direct { self.add_tensor(name, shape, grid) } else { self.add_internal(position, shape, grid) };
        self.input = Some(id);
        Ok(id)
    }

    /// A node that computes, the links behind it, and the QuantizeLinear's grid and tensor.
    fn lower_computation(
        &mut self,
        position: usize,
        value: &str,
        links: Vec<Link>,
        grid: Grid,
        name: &str,
    ) -> Result<TensorId, LowerError> {
        let (low, high) = self.clamps(position, &links, grid)?;
        let mut links = links;
        let clamped = (low, high) != (0, u8::MAX);
        let is_linear = ["Conv", "Gemm", "MatMul"].iter().any(|op| is_op(self.node(position), op));
        // Whatever only cuts off values is done in bytes, at once.
        self.bake_fills(&mut links);
        links.retain(|link| !matches!(link.kind, LinkKind::Function(_)));
        let shape = self.picture(position, value)?;
        let direct = links.is_empty() && (!clamped || is_linear);
        let output = if direct { self.add_tensor(name, shape, grid) } else { self.add_internal(position, shape, grid) };
        let steps = self.steps.len();
        self.compute(position, output, (low, high))?;
        let mut at = output;
        if clamped && !self.steps[steps..].iter().any(|step| matches!(step.op, Op::Linear(_))) {
            let shape = self.tensors[at.0].shape.clone();
            let to = if links.is_empty() {
                self.add_tensor(name, shape, grid)
            } else {
                self.add_internal(position, shape, grid)
            };
            let mut table = Box::new([0; 256]);
            (0..=u8::MAX).zip(table.iter_mut()).for_each(|(byte, entry)| *entry = byte.clamp(low, high));
            self.add_step(position, Op::Table(table), vec![at], to);
            at = to;
        }
        self.apply(position, at, links, grid, name)
    }

    /// The byte range that the links' functions leave; an error where one does more than cut off values.
    fn clamps(&self, position: usize, links: &[Link], grid: Grid) -> Result<(u8, u8), LowerError> {
        let (mut low, mut high) = (0, u8::MAX);
        let on = grid.tensor();
        for link in links {
            let LinkKind::Function(function) = link.kind else { continue };
            let Some((least, most)) = function.bounds() else {
                return Err(LowerError::MissingQuantize {
                    node: self.label(link.position),
                    op_type: op_type(self.node(link.position)),
                    value: self.node(link.position).input.first().cloned().unwrap_or_default(),
                    maker: format!("node '{}' ({})", self.label(position), op_type(self.node(position))),
                });
            };
            let (least, most) = (crate::ops::formula::quantize(&on, least), crate::ops::formula::quantize(&on, most));
            (low, high) = (low.max(least).min(most), high.max(least).min(most));
        }
        Ok((low, high))
    }

    /// An operand of the node at `position`.
    pub(super) fn operand(&mut self, position: usize, name: &'m str) -> Result<Operand, LowerError> {
        if let Some(&id) = self.operands.get(name) {
            return Ok(Operand::Tensor(id));
        }
        let missing = |lowering: &Self, maker: String| LowerError::MissingQuantize {
            node: lowering.label(position),
            op_type: op_type(lowering.node(position)),
            value: name.to_owned(),
            maker,
        };
        let (links, origin, _) = self.walk_up(name)?;
        match origin {
            Origin::Integer(start) => {
                if links.is_empty() {
                    return Ok(Operand::Tensor(start));
                }
                let grid = Grid::of(&self.tensors[start.0]);
                if let Some(link) = links.iter().find(|link| !link.is_exact_on(grid)) {
                    let maker = format!("node '{}' ({})", self.label(link.position), op_type(self.node(link.position)));
                    return Err(missing(self, maker));
                }
                let at = links.last().map_or(position, |link| link.position);
                let id = self.apply(at, start, links, grid, "")?;
                self.operands.insert(name.to_owned(), id);
                Ok(Operand::Tensor(id))
            }
            Origin::Constant(Some(dequantize)) if links.is_empty() => self.constant_operand(dequantize),
            Origin::Constant(_) => Err(missing(self, "the constant".to_owned())),
            Origin::Input => Err(missing(self, format!("the input '{}'", self.input_name))),
            Origin::Node(maker) => {
                let maker = format!("node '{}' ({})", self.label(maker), op_type(self.node(maker)));
                Err(missing(self, maker))
            }
        }
    }

    /// An operand that must be an activation.
    pub(super) fn activation(&mut self, position: usize, name: &'m str) -> Result<TensorId, LowerError> {
        match self.operand(position, name)? {
            Operand::Tensor(id) => Ok(id),
            Operand::Constant { .. } => {
                let what = format!("its operand '{name}' is constant");
                Err(self.unsupported(position, &what, "fold the node, or swap the operands"))
            }
        }
    }
}
