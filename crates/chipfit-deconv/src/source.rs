//! What a ConvTranspose node computes, read from the graph: geometry, weight, bias, quantisation.
//!
//! [`Source::read`] either understands a node completely or says, in words for the report, why the node has to
//! stay. Nothing is guessed: an attribute it does not know keeps the node.

use chipfit_model::build::{attr, get_i, get_is, get_s, is_op};
use chipfit_model::index::{Producer, ScopeId, Use};
use chipfit_model::proto::NodeProto;
use chipfit_model::{ConstTensor, DataType, Index, Shapes};

use crate::axis::{Axis, MAX_EXTENT};
use crate::rewrite::SameRule;

/// Where dequantized values come from.
#[derive(Clone, Debug)]
pub(crate) struct Dequantized<'m> {
    /// The DequantizeLinear node.
    pub node: &'m NodeProto,
}

/// Scales and zero points of a quantised weight.
#[derive(Clone, Debug)]
pub(crate) struct WeightQuantization<'m> {
    /// The DequantizeLinear node behind the weight.
    pub node: &'m NodeProto,
    /// For each output channel of the node (group-major), which scale is its; `None`: one scale for all.
    pub scale_of: Option<Vec<usize>>,
    /// The scales, where there are several.
    pub scales: Option<ConstTensor>,
    /// The zero points; `None`: the file gives none, so they are 0.
    pub zero_points: Option<ConstTensor>,
    /// Type of the scales, hence of the dequantized values.
    pub real: DataType,
}

/// What follows a quantised node.
#[derive(Clone, Debug)]
pub(crate) struct QuantizedTail<'m> {
    /// An activation between, with its position.
    pub activation: Option<(usize, &'m NodeProto)>,
    /// The QuantizeLinear, with its position.
    pub quantize: (usize, &'m NodeProto),
}

/// A ConvTranspose, understood.
#[derive(Clone, Debug)]
pub(crate) struct Source<'m> {
    pub scope: ScopeId,
    pub position: usize,
    pub node: &'m NodeProto,
    pub opset: i64,
    pub group: usize,
    pub channels_in: usize,
    /// Output channels per group.
    pub channels_out_per_group: usize,
    pub kernel: Vec<usize>,
    pub axes: Vec<Axis>,
    /// Pads as resolved, begins then ends.
    pub pads: Vec<i64>,
    pub output_padding: Vec<i64>,
    pub batch: Option<usize>,
    /// `[Cin, Cout/g, k...]`, as stored.
    pub weight: ConstTensor,
    pub weight_quantization: Option<WeightQuantization<'m>>,
    pub bias: Option<&'m str>,
    /// Set with `tail`: the node is quantised from its input to its output.
    pub input: Option<Dequantized<'m>>,
    pub tail: Option<QuantizedTail<'m>>,
    pub warnings: Vec<String>,
}

/// What can be said of a node even where it cannot be rewritten.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outline {
    pub kernel: Vec<usize>,
    pub strides: Vec<usize>,
    pub dilations: Vec<usize>,
    pub group: usize,
    pub pads: Vec<i64>,
    pub output_padding: Vec<i64>,
    pub macs: Option<u64>,
    pub macs_zero_pad: Option<u64>,
    pub params: u64,
}

const KNOWN_ATTRIBUTES: [&str; 8] =
    ["auto_pad", "dilations", "group", "kernel_shape", "output_padding", "output_shape", "pads", "strides"];

/// Operators that act on each element alone, so that they may move before the interleave.
const ELEMENTWISE: [&str; 14] = [
    "Relu",
    "LeakyRelu",
    "Clip",
    "Sigmoid",
    "Tanh",
    "Elu",
    "Selu",
    "Celu",
    "HardSigmoid",
    "HardSwish",
    "Softplus",
    "Softsign",
    "Mish",
    "ThresholdedRelu",
];

impl<'m> Source<'m> {
    pub(crate) fn channels_out(&self) -> usize {
        self.channels_out_per_group * self.group
    }

    pub(crate) fn channels_in_per_group(&self) -> usize {
        self.channels_in / self.group
    }

    /// The name of the node's input.
    pub(crate) fn x(&self) -> &'m str {
        self.node.input.first().map_or("", String::as_str)
    }

    /// Input lengths, where all are fixed.
    pub(crate) fn lengths(&self) -> Option<Vec<i64>> {
        self.axes.iter().map(|a| a.n).collect()
    }

    /// Reads the node at `position` of `scope`.
    ///
    /// # Errors
    /// The reason why it must stay.
    pub(crate) fn read(
        index: &Index<'m>,
        shapes: &Shapes,
        scope: ScopeId,
        position: usize,
        same_rule: SameRule,
    ) -> Result<Self, String> {
        let s = &index.scopes[scope];
        let node = &s.nodes[position];
        if let Some(a) = node.attribute.iter().find(|a| !KNOWN_ATTRIBUTES.contains(&a.name.as_deref().unwrap_or(""))) {
            return Err(format!("unknown attribute '{}'", a.name.as_deref().unwrap_or("")));
        }
        if let Some(a) = node.attribute.iter().find(|a| a.ref_attr_name.as_deref().is_some_and(|r| !r.is_empty())) {
            return Err(format!("attribute '{}' is set by the function's caller", a.name.as_deref().unwrap_or("")));
        }
        if node.input.len() < 2 || node.output.len() != 1 || node.input[0].is_empty() || node.input[1].is_empty() {
            return Err("it lacks an input or output".into());
        }
        let (weight, weight_node) = read_weight(index, scope, &node.input[1])?;
        let dims = weight.dims().to_vec();
        let Some((&[channels_in, per_group], kernel)) = dims.split_first_chunk::<2>().filter(|(_, k)| !k.is_empty())
        else {
            return Err(format!("its weight has shape {dims:?}: no spatial axis"));
        };
        let kernel = kernel.to_vec();
        let group = usize::try_from(get_i(node, "group").unwrap_or(1)).unwrap_or(0);
        if group == 0 || !channels_in.is_multiple_of(group) || weight.is_empty() {
            return Err(format!(
                "{channels_in} input channels do not divide into {group} groups, or the weight is empty"
            ));
        }
        if weight.dtype().bytes().is_none() {
            return Err(format!("its weight is packed {}", weight.dtype().name()));
        }
        let x_type = shapes.resolve(index, scope, &node.input[0]);
        let spatial = kernel.len();
        if let Some(x_dims) = &x_type.dims {
            if x_dims.len() != spatial + 2 {
                return Err(format!("its input has {} dimensions, its weight {}", x_dims.len(), spatial + 2));
            }
            if let Some(c) = x_dims.get(1).and_then(|d| d.known()).filter(|&c| c != channels_in) {
                return Err(format!("its input has {c} channels, its weight {channels_in}"));
            }
        }
        let known = |axis: usize| {
            let dim = x_type.dims.as_ref().and_then(|d| d.get(axis)).and_then(|d| d.known());
            dim.and_then(|n| i64::try_from(n).ok())
        };
        let lengths: Vec<Option<i64>> = (0..spatial).map(|a| known(a + 2)).collect();
        let mut warnings = Vec::new();
        let geometry = Geometry::read(node, &kernel, &lengths, s.opset, same_rule, &mut warnings)?;
        let (input, tail) = match read_quantized(index, scope, node, weight_node.is_some()) {
            Some((input, tail)) => (Some(input), Some(tail)),
            None => (None, None),
        };
        let mut source = Self {
            scope,
            position,
            node,
            opset: s.opset,
            group,
            channels_in,
            channels_out_per_group: per_group,
            kernel,
            axes: geometry.axes,
            pads: geometry.pads,
            output_padding: geometry.output_padding,
            batch: known(0).and_then(|n| usize::try_from(n).ok()),
            weight,
            weight_quantization: None,
            bias: node.input.get(2).map(String::as_str).filter(|b| !b.is_empty()),
            input,
            tail,
            warnings,
        };
        if let Some(dq) = weight_node {
            source.weight_quantization = Some(source.read_scales(index, scope, dq)?);
        }
        Ok(source)
    }

    fn read_scales(
        &self,
        index: &Index<'m>,
        scope: ScopeId,
        dq: &'m NodeProto,
    ) -> Result<WeightQuantization<'m>, String> {
        if get_i(dq, "block_size").is_some_and(|b| b != 0) {
            return Err("its weight is quantised in blocks".into());
        }
        let load = |name: Option<&String>| match name.filter(|n| !n.is_empty()) {
            None => Ok(None),
            Some(name) => match index.constant_tensor(scope, name) {
                Ok(Some(t)) => Ok(Some(t)),
                Ok(None) => Err(format!("the scale or zero point '{name}' of its weight is computed at run time")),
                Err(e) => Err(e.to_string()),
            },
        };
        let scales = load(dq.input.get(1))?.ok_or("its weight's DequantizeLinear has no scale")?;
        let zero_points = load(dq.input.get(2))?;
        if let Some(z) = &zero_points
            && (z.len() != scales.len() || z.dtype() != self.weight.dtype())
        {
            return Err("the zero points of its weight do not fit its scales or its type".into());
        }
        let real = scales.dtype();
        if scales.len() == 1 {
            return Ok(WeightQuantization { node: dq, scale_of: None, scales: None, zero_points, real });
        }
        let rank = self.weight.dims().len() as i64;
        let axis = get_i(dq, "axis").unwrap_or(1);
        let axis = if axis < 0 { axis + rank } else { axis };
        let per_group = self.channels_out_per_group;
        let scale_of: Vec<usize> = match axis {
            1 if scales.len() == per_group => (0..self.channels_out()).map(|o| o % per_group).collect(),
            // One input channel a group: its scale is that of all the group's outputs.
            0 if scales.len() == self.channels_in && self.channels_in == self.group => {
                (0..self.channels_out()).map(|o| o / per_group).collect()
            }
            0 => return Err("its weight has per-input-channel scales, which no convolution can express".into()),
            _ => return Err(format!("its weight has {} scales along axis {axis}", scales.len())),
        };
        Ok(WeightQuantization { node: dq, scale_of: Some(scale_of), scales: Some(scales), zero_points, real })
    }
}

/// The stored weight behind `name` and, where it is quantised, its DequantizeLinear.
fn read_weight<'m>(
    index: &Index<'m>,
    scope: ScopeId,
    name: &str,
) -> Result<(ConstTensor, Option<&'m NodeProto>), String> {
    let data = |scope: ScopeId, name: &str| match index.constant_tensor(scope, name) {
        Ok(found) => Ok(found),
        Err(e) => Err(e.to_string()),
    };
    if let Some(weight) = data(scope, name)? {
        return Ok((weight, None));
    }
    let (mut home, mut name) = (scope, name);
    for _ in 0..64 {
        match index.lookup(home, name) {
            Some((_, Producer::SparseInitializer(_))) => return Err("its weight is a sparse initializer".into()),
            Some((at, Producer::Node { node, .. })) => {
                let n = &index.scopes[at].nodes[node];
                let Some(from) = n.input.first() else { break };
                if is_op(n, "Identity") {
                    (home, name) = (at, from);
                    continue;
                }
                // The node is repeated for each emitted weight, in the scope of the ConvTranspose.
                if is_op(n, "DequantizeLinear")
                    && let Some(weight) = data(at, from)?
                {
                    return Ok((weight, Some(n)));
                }
            }
            _ => {}
        }
        break;
    }
    Err("its weight is computed at run time".into())
}

/// DequantizeLinear -> this node -> (activation) -> QuantizeLinear, each used by nothing else on the way.
fn read_quantized<'m>(
    index: &Index<'m>,
    scope: ScopeId,
    node: &'m NodeProto,
    weight_is_quantized: bool,
) -> Option<(Dequantized<'m>, QuantizedTail<'m>)> {
    if !weight_is_quantized {
        return None;
    }
    let s = &index.scopes[scope];
    let (home, _, dq) = index.producer_node(scope, &node.input[0])?;
    if home != scope || !is_op(dq, "DequantizeLinear") || get_i(dq, "block_size").is_some_and(|b| b != 0) {
        return None;
    }
    let per_tensor = |name: Option<&String>| {
        name.is_some_and(|n| index.constant_tensor(scope, n).is_ok_and(|t| t.is_some_and(|t| t.len() == 1)))
    };
    if !per_tensor(dq.input.get(1)) {
        return None;
    }
    let sole_reader = |name: &str| match s.uses(name) {
        [Use::Node { scope: at, node, input: 0 }] if *at == scope => Some((*node, &s.nodes[*node])),
        _ => None,
    };
    let first = sole_reader(&node.output[0])?;
    let elementwise = ELEMENTWISE.iter().any(|op| is_op(first.1, op)) && first.1.output.len() == 1;
    let (activation, quantize) =
        if elementwise { (Some(first), sole_reader(&first.1.output[0])?) } else { (None, first) };
    let fits = is_op(quantize.1, "QuantizeLinear") && per_tensor(quantize.1.input.get(1));
    fits.then_some((Dequantized { node: dq }, QuantizedTail { activation, quantize }))
}

struct Geometry {
    axes: Vec<Axis>,
    pads: Vec<i64>,
    output_padding: Vec<i64>,
}

impl Geometry {
    fn read(
        node: &NodeProto,
        kernel: &[usize],
        lengths: &[Option<i64>],
        opset: i64,
        same_rule: SameRule,
        warnings: &mut Vec<String>,
    ) -> Result<Self, String> {
        let spatial = kernel.len();
        let list = |name: &str, count: usize, default: i64| match get_is(node, name).filter(|v| !v.is_empty()) {
            None => Ok(vec![default; count]),
            Some(v) if v.len() == count && v.iter().all(|x| x.abs() <= MAX_EXTENT) => Ok(v.to_vec()),
            Some(v) => Err(format!("attribute '{name}' is {v:?}, which does not fit {spatial} spatial axes")),
        };
        let strides = list("strides", spatial, 1)?;
        let dilations = list("dilations", spatial, 1)?;
        let output_padding = list("output_padding", spatial, 0)?;
        let declared = list("kernel_shape", spatial, 0)?;
        let kernel: Vec<i64> = kernel.iter().map(|&k| i64::try_from(k).unwrap_or(i64::MAX)).collect();
        if attr(node, "kernel_shape").is_some() && declared != kernel {
            return Err(format!("kernel_shape {declared:?} differs from the weight's {kernel:?}"));
        }
        if strides.iter().chain(&dilations).any(|&v| v < 1) || kernel.iter().any(|&k| k > MAX_EXTENT) {
            return Err("a stride or dilation below 1, or a huge kernel".into());
        }
        let pads = list("pads", 2 * spatial, 0)?;
        let auto_pad = get_s(node, "auto_pad").unwrap_or("NOTSET");
        let same = matches!(auto_pad, "SAME_UPPER" | "SAME_LOWER");
        if !same && !matches!(auto_pad, "NOTSET" | "VALID" | "") {
            return Err(format!("auto_pad '{auto_pad}' is unknown"));
        }
        let asked = match get_is(node, "output_shape").filter(|v| !v.is_empty()) {
            None => None,
            Some(v) if v.len() == spatial => Some(v),
            Some(v) if v.len() == spatial + 2 => v.get(2..),
            Some(v) => return Err(format!("output_shape {v:?} does not fit {spatial} spatial axes")),
        };
        let mut axes = Vec::new();
        let (mut begins, mut ends) = (Vec::new(), Vec::new());
        for a in 0..spatial {
            let (k, s, d, op, n) = (kernel[a], strides[a], dilations[a], output_padding[a], lengths[a]);
            // Output length without pads is s*n + natural.
            let natural = op - s + d * (k - 1) + 1;
            let c = match (asked, same) {
                (Some(_), _) if n.is_none() => {
                    return Err("output_shape with a dynamic input length (give --input)".into());
                }
                (Some(shape), _) => shape[a].clamp(-MAX_EXTENT, MAX_EXTENT) - s * n.unwrap_or(0),
                (None, true) => 0,
                (None, false) if auto_pad == "VALID" => natural,
                (None, false) => natural - pads[a] - pads[spatial + a],
            };
            let (begin, end) = if asked.is_some() || same {
                let total = natural - c;
                let runtimes_upper = auto_pad == "SAME_UPPER";
                let upper = if opset < 11 && same_rule == SameRule::Spec { !runtimes_upper } else { runtimes_upper };
                if opset < 11 && total.rem_euclid(2) == 1 {
                    warnings.push(format!(
                        "axis {a}: total padding {total} is odd, where the text of opset 1 and the runtimes differ; \
                         used the rule of {}",
                        if same_rule == SameRule::Spec { "the text" } else { "the runtimes" }
                    ));
                }
                if total < 0 {
                    warnings.push(format!(
                        "axis {a}: the output is longer than natural by {}; ONNX Runtime treats that differently",
                        -total
                    ));
                }
                let half = total.div_euclid(2);
                if upper { (half, total - half) } else { (total - half, half) }
            } else if auto_pad == "VALID" {
                (0, 0)
            } else {
                (pads[a], pads[spatial + a])
            };
            if op < 0 {
                return Err(format!("output_padding {op} is negative"));
            }
            if op >= s.max(d) {
                warnings.push(format!("axis {a}: output_padding {op} reaches the stride; ONNX Runtime rejects that"));
            }
            if !same && asked.is_none() && (begin < 0 || end < 0) {
                warnings.push(format!("axis {a}: negative pads; ONNX Runtime rejects them"));
            }
            if n.is_some_and(|n| n < 1 || s * n + c < 1) {
                return Err(format!("axis {a}: its input or output is empty"));
            }
            axes.push(Axis { n, k, s, d, p: begin, c });
            begins.push(begin);
            ends.push(end);
        }
        begins.append(&mut ends);
        Ok(Self { axes, pads: begins, output_padding })
    }
}

/// What a report can say of a node whether or not it can be rewritten.
pub(crate) fn outline(index: &Index<'_>, shapes: &Shapes, scope: ScopeId, position: usize) -> Outline {
    let node = &index.scopes[scope].nodes[position];
    let naturals = |name: &str| -> Vec<usize> {
        get_is(node, name).unwrap_or_default().iter().filter_map(|&v| usize::try_from(v).ok()).collect()
    };
    let name = |i: usize| node.input.get(i).map_or("", String::as_str);
    let weight = shapes.resolve(index, scope, name(1)).known_dims();
    let x = shapes.resolve(index, scope, name(0)).known_dims();
    let group = usize::try_from(get_i(node, "group").unwrap_or(1)).unwrap_or(1).max(1);
    let kernel = weight.as_ref().and_then(|w| w.get(2..)).map_or_else(|| naturals("kernel_shape"), <[usize]>::to_vec);
    let or_ones = |v: Vec<usize>| if v.is_empty() { vec![1; kernel.len()] } else { v };
    let product = |v: &[usize]| v.iter().try_fold(1u64, |a, &b| a.checked_mul(b as u64));
    // Each weight meets every input position of its channel once; among stuffed zeros, every output position.
    let macs = |positions: &Option<Vec<usize>>| {
        let (w, p) = (weight.as_ref()?, positions.as_ref()?);
        product(w)?.checked_mul(product(p.get(2..)?)?)?.checked_mul(*p.first()? as u64)
    };
    let y = shapes.resolve(index, scope, node.output.first().map_or("", String::as_str)).known_dims();
    let bias = shapes.resolve(index, scope, name(2)).known_dims();
    Outline {
        strides: or_ones(naturals("strides")),
        dilations: or_ones(naturals("dilations")),
        group,
        pads: get_is(node, "pads").unwrap_or_default().to_vec(),
        output_padding: get_is(node, "output_padding").unwrap_or_default().to_vec(),
        macs: macs(&x),
        macs_zero_pad: macs(&y),
        params: weight.as_deref().and_then(product).unwrap_or(0)
            + bias.filter(|_| !name(2).is_empty()).as_deref().and_then(product).unwrap_or(0),
        kernel,
    }
}
