//! Folds what is linear per channel into the convolution or matrix product before it.
//!
//! `y[c] = scale[c] * x[c] + shift[c]` is a BatchNormalization, or an Add or Mul of a constant with one value per
//! channel. Behind a Conv, ConvTranspose, Gemm or matrix product with constant weights whose result nothing else
//! reads, it becomes part of weights and bias, computed in f64 and rounded once:
//! `w'[c] = w[c] * scale[c]`, `bias'[c] = bias[c] * scale[c] + shift[c]`.
//! A BatchNormalization that stands elsewhere becomes a depthwise 1x1 convolution, whose weights have a scale for
//! each channel and whose bias has 32 bits (behind two axes: Mul and Add).

use std::collections::HashMap;

use chipfit_model::build::{attr_i, attr_is, get_f, get_i, is_op, node};
use chipfit_model::proto::NodeProto;
use chipfit_model::{ConstTensor, Shapes};

use crate::error::QuantizeError;
use crate::graph::{Graph, input, node_error, output};
use crate::simplify::{float_tensor, floats};

/// What happened, for the report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Folded {
    /// BatchNormalization nodes that became part of another node.
    pub normalisations: usize,
    /// BatchNormalization nodes that became nodes of their own.
    pub normalisations_kept: usize,
    /// Add and Mul nodes that became part of another node.
    pub constants: usize,
}

/// One factor and one summand for each channel.
#[derive(Clone, Debug, PartialEq)]
struct Affine {
    scale: Vec<f64>,
    shift: Vec<f64>,
}

/// Who makes and who reads the values of a graph, kept up to date while nodes fold.
struct Uses {
    producers: HashMap<String, usize>,
    readers: HashMap<String, usize>,
}

impl Uses {
    fn of(graph: &Graph) -> Self {
        let mut uses = Self { producers: HashMap::new(), readers: HashMap::new() };
        for (position, node) in graph.nodes.iter().enumerate() {
            uses.producers.extend(node.output.iter().map(|name| (name.clone(), position)));
            node.input.iter().for_each(|name| *uses.readers.entry(name.clone()).or_default() += 1);
        }
        uses
    }

    fn readers(&self, name: &str) -> usize {
        self.readers.get(name).copied().unwrap_or(0)
    }
}

/// Folds all that can be folded.
pub(crate) fn fold(graph: &mut Graph, shapes: &Shapes) -> Result<Folded, QuantizeError> {
    let mut folded = Folded::default();
    let mut uses = Uses::of(graph);
    // What a position holds in the end: nothing, the node, or what it became.
    let mut result: Vec<Vec<NodeProto>> = Vec::with_capacity(graph.nodes.len());
    for position in 0..graph.nodes.len() {
        let Some(node) = graph.nodes.get(position).cloned() else { break };
        let is_norm = is_op(&node, "BatchNormalization");
        if is_norm {
            check_inference(graph, &uses, &node)?;
        }
        let done = match sole_producer(graph, &uses, &node, shapes) {
            Some((producer, x)) => fold_into(graph, &uses, shapes, producer, &node, x)?.then_some(producer),
            None => None,
        };
        if let Some(producer) = done {
            *(if is_norm { &mut folded.normalisations } else { &mut folded.constants }) += 1;
            // What follows may now fold into the same producer.
            uses.producers.insert(output(&node).to_owned(), producer);
            for name in &node.input {
                uses.readers.entry(name.clone()).and_modify(|n| *n = n.saturating_sub(1));
            }
            if let Some(target) = graph.nodes.get(producer) {
                for name in target.input.iter().skip(1) {
                    uses.readers.entry(name.clone()).or_insert(1);
                }
            }
            result.push(Vec::new());
        } else if is_norm {
            folded.normalisations_kept += 1;
            result.push(normalisation(graph, shapes, &node)?);
        } else {
            result.push(vec![node]);
        }
    }
    // A node that others folded into stands changed in the graph.
    let changed = std::mem::take(&mut graph.nodes).into_iter().zip(result);
    graph.nodes = changed
        .flat_map(|(now, then)| match then.as_slice() {
            [one] if !is_op(&now, "BatchNormalization") => {
                debug_assert_eq!(one.name, now.name);
                vec![now]
            }
            _ => then,
        })
        .collect();
    Ok(folded)
}

/// A BatchNormalization that computes statistics is no classifier's.
fn check_inference(graph: &Graph, uses: &Uses, node: &NodeProto) -> Result<(), QuantizeError> {
    let read = |name: &str| !name.is_empty() && (uses.readers(name) > 0 || graph.is_output(name));
    let extra = node.output.iter().skip(1).any(|o| read(o));
    if extra || get_i(node, "training_mode").unwrap_or(0) != 0 {
        return Err(node_error(node, "it is in training mode; export the model for inference"));
    }
    Ok(())
}

/// The foldable node that makes the data input of `node`, if nothing else reads its result, and which input that is.
fn sole_producer(graph: &Graph, uses: &Uses, node: &NodeProto, shapes: &Shapes) -> Option<(usize, usize)> {
    let x = match node.op_type.as_deref()? {
        "BatchNormalization" => 0,
        "Add" | "Mul" => usize::from(graph.constant(node, 0).is_some()),
        _ => return None,
    };
    let name = input(node, x)?;
    if graph.is_output(name) || uses.readers(name) != 1 {
        return None;
    }
    let producer = *uses.producers.get(name)?;
    let made_by = graph.nodes.get(producer)?;
    Product::of(graph, shapes, made_by).map(|_| (producer, x))
}

/// A linear node with constant parameters.
struct Product {
    weight: ConstTensor,
    values: Vec<f64>,
    bias: Option<Vec<f64>>,
    channels: usize,
    /// Axes of the result.
    rank: usize,
    groups: usize,
    layout: Layout,
}

/// Where a weight's output channel is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// `[channels, ...]`.
    First,
    /// `[..., channels]`.
    Last,
    /// `[groups * inputs, channels of a group, ...]`.
    Transposed,
}

impl Product {
    fn of(graph: &Graph, shapes: &Shapes, node: &NodeProto) -> Option<Self> {
        let weight = graph.constant(node, 1)?.clone();
        let dims = weight.dims().to_vec();
        let groups = usize::try_from(get_i(node, "group").unwrap_or(1)).ok().filter(|&g| g > 0)?;
        let (layout, rank, channels) = if is_op(node, "Conv") {
            (Layout::First, dims.len(), *dims.first()?)
        } else if is_op(node, "ConvTranspose") {
            dims.first()?.checked_rem(groups).filter(|&rest| rest == 0)?;
            (Layout::Transposed, dims.len(), dims.get(1)?.checked_mul(groups)?)
        } else if is_op(node, "Gemm") {
            match get_i(node, "transB").unwrap_or(0) {
                0 => (Layout::Last, 2, *dims.get(1)?),
                _ => (Layout::First, 2, *dims.first()?),
            }
        } else if is_op(node, "MatMul") {
            let rank = shapes.get(0, input(node, 0)?).dims?.len();
            (Layout::Last, rank, *dims.get(1).filter(|_| dims.len() == 2 && rank == 2)?)
        } else {
            return None;
        };
        let bias = match input(node, 2) {
            None => None,
            Some(name) => Some(floats(graph.constants.get(name)?).filter(|b| b.len() == channels)?),
        };
        // Gemm with factors was left as it is and is no plain product.
        let plain = ["alpha", "beta", "transA"].iter().all(|a| chipfit_model::build::attr(node, a).is_none());
        let values = floats(&weight).filter(|v| !v.is_empty() && plain)?;
        Some(Self { weight, values, bias, channels, rank, groups, layout })
    }

    /// The weights with each output channel multiplied by its factor.
    fn scaled(&self, scale: &[f64]) -> Option<Vec<f64>> {
        let dims = self.weight.dims();
        let inner = |axis: usize| dims.iter().skip(axis).product::<usize>().max(1);
        let channel = |i: usize| -> Option<usize> {
            match self.layout {
                Layout::First => i.checked_div(inner(1)),
                Layout::Last => i.checked_rem(self.channels),
                Layout::Transposed => {
                    let (rows, of_group) = (*dims.first()?, *dims.get(1)?);
                    let (row, column) = (i.checked_div(inner(1))?, i.checked_div(inner(2))?.checked_rem(of_group)?);
                    let group = row.checked_div(rows.checked_div(self.groups)?)?;
                    group.checked_mul(of_group)?.checked_add(column)
                }
            }
        };
        self.values.iter().enumerate().map(|(i, w)| Some(w * scale.get(channel(i)?)?)).collect()
    }
}

/// Folds `node` into the node at `producer`; `false` where it is not linear per channel.
fn fold_into(
    graph: &mut Graph,
    uses: &Uses,
    shapes: &Shapes,
    producer: usize,
    node: &NodeProto,
    x: usize,
) -> Result<bool, QuantizeError> {
    let Some(mut target) = graph.nodes.get(producer).cloned() else { return Ok(false) };
    let Some(product) = Product::of(graph, shapes, &target) else { return Ok(false) };
    let Some(affine) = affine(graph, node, x, product.channels, product.rank)? else { return Ok(false) };
    let wrong = || node_error(node, "its parameters do not fit the node before it");
    let weights = product.scaled(&affine.scale).ok_or_else(wrong)?;
    let bias: Vec<f64> = match &product.bias {
        Some(old) => old.iter().zip(&affine.scale).zip(&affine.shift).map(|((b, s), t)| b * s + t).collect(),
        None => affine.shift.clone(),
    };
    let is_shared = |name: &str| uses.readers(name) != 1 || graph.is_output(name);
    let weight_name = input(&target, 1).unwrap_or_default().to_owned();
    let bias_name = input(&target, 2).map(str::to_owned);
    let (weight_shared, bias_shared) = (is_shared(&weight_name), bias_name.as_deref().is_none_or(is_shared));
    let weight = float_tensor(product.weight.dims(), &weights).ok_or_else(wrong)?;
    let weight_name = put(graph, &weight_name, weight, weight_shared);
    weight_name.clone_into(target.input.get_mut(1).ok_or_else(wrong)?);
    if product.bias.is_some() || affine.shift.iter().any(|&t| t != 0.0) {
        let wanted = bias_name.unwrap_or_else(|| format!("{}_bias", output(node)));
        let tensor = float_tensor(&[product.channels], &bias).ok_or_else(wrong)?;
        let name = put(graph, &wanted, tensor, bias_shared);
        target.input.truncate(2);
        target.input.push(name);
        if is_op(&target, "MatMul") {
            target.op_type = Some("Gemm".to_owned());
        }
    }
    output(node).clone_into(target.output.first_mut().ok_or_else(wrong)?);
    if let Some(place) = graph.nodes.get_mut(producer) {
        *place = target;
    }
    Ok(true)
}

/// Stores `tensor` under `name`, or beside it where the old value has other readers.
fn put(graph: &mut Graph, name: &str, tensor: ConstTensor, shared: bool) -> String {
    if shared {
        return graph.add_constant(name, tensor);
    }
    graph.constants.insert(name.to_owned(), tensor);
    name.to_owned()
}

/// What `node` does to each of `channels` channels (axis 1 of `rank`); `None` where that is not all it does.
fn affine(
    graph: &Graph,
    node: &NodeProto,
    x: usize,
    channels: usize,
    rank: usize,
) -> Result<Option<Affine>, QuantizeError> {
    if is_op(node, "BatchNormalization") {
        let affine = statistics(graph, node)?;
        if affine.scale.len() != channels {
            let have = affine.scale.len();
            return Err(node_error(node, format!("it has {have} channels, its input has {channels}")));
        }
        return Ok(Some(affine));
    }
    let Some(constant) = graph.constant(node, 1usize.saturating_sub(x)) else { return Ok(None) };
    let dims = constant.dims();
    // Right-aligned, the constant may be longer than 1 on axis 1 only.
    let Some(lead) = rank.checked_sub(dims.len()) else { return Ok(None) };
    let only_channels = dims.iter().enumerate().all(|(i, &d)| d == 1 || (lead.saturating_add(i) == 1 && d == channels));
    let Some(values) = floats(constant).filter(|_| only_channels) else { return Ok(None) };
    let values = match values.as_slice() {
        [one] => vec![*one; channels],
        _ => values,
    };
    Ok(Some(if is_op(node, "Add") {
        Affine { scale: vec![1.0; channels], shift: values }
    } else {
        Affine { shift: vec![0.0; channels], scale: values }
    }))
}

/// `scale = gamma / sqrt(variance + epsilon)`, `shift = beta - mean * scale`.
fn statistics(graph: &Graph, node: &NodeProto) -> Result<Affine, QuantizeError> {
    let parameter = |position: usize, what: &str| {
        let values = graph.constant(node, position).and_then(floats);
        values.ok_or_else(|| node_error(node, format!("its {what} is no float constant")))
    };
    let (gamma, beta) = (parameter(1, "scale")?, parameter(2, "bias")?);
    let (mean, variance) = (parameter(3, "mean")?, parameter(4, "variance")?);
    let lengths = [beta.len(), mean.len(), variance.len()];
    if lengths != [gamma.len(); 3] {
        return Err(node_error(node, "its parameters have different lengths"));
    }
    let epsilon = f64::from(get_f(node, "epsilon").unwrap_or(1e-5));
    let scale: Vec<f64> = gamma.iter().zip(&variance).map(|(g, v)| g / (v + epsilon).sqrt()).collect();
    let shift: Vec<f64> = beta.iter().zip(&mean).zip(&scale).map(|((b, m), s)| b - m * s).collect();
    match scale.iter().chain(&shift).all(|v| v.is_finite()) {
        true => Ok(Affine { scale, shift }),
        false => Err(node_error(node, "its variance is negative or its parameters are not finite")),
    }
}

/// The nodes for a BatchNormalization that stands alone.
fn normalisation(graph: &mut Graph, shapes: &Shapes, node_: &NodeProto) -> Result<Vec<NodeProto>, QuantizeError> {
    let Affine { scale, shift } = statistics(graph, node_)?;
    let wrong = |why: &str| node_error(node_, why.to_owned());
    let x = input(node_, 0).ok_or_else(|| wrong("it has no input"))?;
    let rank = shapes.get(0, x).dims.map(|d| d.len());
    let rank = rank.ok_or_else(|| wrong("the rank of its input is not known; give the model's inputs a shape"))?;
    let (name, y, channels) = (node_.name.as_deref().unwrap_or_default(), output(node_), scale.len());
    let broken = || wrong("its parameters are too long");
    let dims = |lead: usize| -> Vec<usize> { (0..rank).map(|axis| if axis == lead { channels } else { 1 }).collect() };
    if rank < 3 {
        let factor = float_tensor(&dims(rank.saturating_sub(1)), &scale).ok_or_else(broken)?;
        let summand = float_tensor(&dims(rank.saturating_sub(1)), &shift).ok_or_else(broken)?;
        let factor = graph.add_constant(&format!("{y}_scale_factor"), factor);
        let summand = graph.add_constant(&format!("{y}_shift"), summand);
        let product = graph.fresh(&format!("{y}_product"));
        return Ok(vec![
            node("Mul", &product, &[x, factor.as_str()], &[product.as_str()], Vec::new()),
            node("Add", name, &[product.as_str(), summand.as_str()], &[y], Vec::new()),
        ]);
    }
    let weight = float_tensor(&dims(0), &scale).ok_or_else(broken)?;
    let bias = float_tensor(&[channels], &shift).ok_or_else(broken)?;
    let weight = graph.add_constant(&format!("{y}_weight"), weight);
    let bias = graph.add_constant(&format!("{y}_bias"), bias);
    let group = i64::try_from(channels).map_err(|_| broken())?;
    let attributes = vec![attr_is("kernel_shape", &vec![1; rank.saturating_sub(2)]), attr_i("group", group)];
    Ok(vec![node("Conv", name, &[x, weight.as_str(), bias.as_str()], &[y], attributes)])
}
