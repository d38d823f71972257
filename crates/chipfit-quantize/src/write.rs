//! Writes the QDQ model: QuantizeLinear and DequantizeLinear around every operator that has an integer form.
//!
//! Names: tensor `t` becomes `t_quantized` (integers) and `t_dequantized` (what other nodes read); its scale and
//! zero point are `r_scale` and `r_zero_point`, where `r` is the tensor that it shares them with, `t` itself in most
//! cases. A constant `w` becomes `w_quantized` with `w_scale` and `w_zero_point`, and `w_dequantized`. An output `y`
//! of the model keeps its name for its dequantised value; what the last node computes is then `y_float`. A name
//! that is taken gets a number.

use std::collections::{BTreeMap, BTreeSet};

use chipfit_model::build::{attr_i, is_op, node};
use chipfit_model::proto::{NodeProto, StringStringEntryProto};
use chipfit_model::{ConstTensor, DataType, Model};

use crate::calibrate::{Ranges, float_values};
use crate::error::QuantizeError;
use crate::graph::{Graph, input, label, node_error, operator, output};
use crate::groups::{Groups, constant_range};
use crate::options::{Activations, Options, Weights};
use crate::places::{Bounds, Role, data_outputs, has_weight, quantised_inputs};
use crate::prepare::Prepared;
use crate::report::{FloatNode, Report, TensorReport, WeightReport};
use crate::scale::{Quantizer, bounds};
use crate::weights;

/// The key of the options in the written file's metadata.
pub const METADATA_KEY: &str = "chipfit.quantization";

/// Operators whose floats nobody expects to be integers.
const EXPECTED_IN_FLOAT: [&str; 8] = ["Softmax", "LogSoftmax", "ArgMax", "ArgMin", "TopK", "Shape", "Size", "Cast"];

/// The names of a quantised tensor.
struct Names {
    float: String,
    integer: String,
    dequantised: String,
}

struct Writer<'p> {
    prepared: &'p Prepared,
    groups: Groups<'p>,
    options: Options,
    graph: Graph,
    nodes: Vec<NodeProto>,
    names: BTreeMap<String, Names>,
    /// DequantizeLinear nodes of constants, by integer tensor, scale and axis.
    constants: BTreeMap<(String, String), String>,
    report: Report,
}

/// See [`Prepared::quantize`].
pub(crate) fn quantize(
    prepared: &Prepared,
    ranges: &Ranges,
    options: &Options,
) -> Result<(Model, Report), QuantizeError> {
    let groups = Groups::new(prepared, ranges)?;
    let report = Report { folded: prepared.folded, ..Report::default() };
    let mut writer = Writer {
        prepared,
        groups,
        options: *options,
        graph: prepared.graph.clone(),
        nodes: Vec::new(),
        names: BTreeMap::new(),
        constants: BTreeMap::new(),
        report,
    };
    writer.choose_names();
    writer.write()?;
    let Writer { mut graph, nodes, mut report, .. } = writer;
    graph.nodes = nodes;
    graph.drop_dead_nodes();
    sign(&mut graph, options);
    let model = graph.to_model()?;
    let integers: BTreeSet<&str> = graph.nodes.iter().flat_map(|n| &n.output).map(String::as_str).collect();
    let widened: usize = report.weights.iter().map(|w| w.widened).sum();
    if widened > 0 {
        let nodes = report.weights.iter().filter(|w| w.widened > 0).count();
        report.warnings.push(format!(
            "{widened} weight scales of {nodes} nodes were raised, else a bias would not fit its 32 bits (channels whose \
             weights are tiny beside their bias)"
        ));
    }
    report.tensors.retain(|t| integers.contains(t.integer.as_str()));
    Ok((model, report))
}

/// Says in the file who wrote it and how.
fn sign(graph: &mut Graph, options: &Options) {
    let header = graph.header_mut();
    header.producer_name = Some("chipfit".to_owned());
    header.producer_version = Some(env!("CARGO_PKG_VERSION").to_owned());
    header.metadata_props.retain(|p| p.key.as_deref() != Some(METADATA_KEY));
    header.metadata_props.push(StringStringEntryProto {
        key: Some(METADATA_KEY.to_owned()),
        value: Some(options.to_string()),
        ..StringStringEntryProto::default()
    });
}

impl Writer<'_> {
    fn choose_names(&mut self) {
        for name in &self.prepared.places.quantised {
            let renamed = self.graph.is_output(name) && !self.graph.is_input(name);
            let float = if renamed { self.graph.fresh(&format!("{name}_float")) } else { name.clone() };
            let integer = self.graph.fresh(&format!("{name}_quantized"));
            let dequantised = if renamed { name.clone() } else { self.graph.fresh(&format!("{name}_dequantized")) };
            self.names.insert(name.clone(), Names { float, integer, dequantised });
        }
    }

    fn quantizer(&self, name: &str) -> Result<Quantizer, QuantizeError> {
        let range = self.groups.range(name)?.range;
        Ok(Quantizer::activation(range, self.options.activations, self.options.power_of_two))
    }

    fn write(&mut self) -> Result<(), QuantizeError> {
        for name in quantised_inputs(&self.prepared.graph, &self.prepared.places) {
            self.quantise_tensor(&name)?;
        }
        // Relu and Clip that go, and the name that the node before them gives its result.
        let mut removed: BTreeSet<usize> = BTreeSet::new();
        let mut renamed: BTreeMap<&str, &str> = BTreeMap::new();
        let prepared = self.prepared;
        for (before, &position) in &prepared.places.before_clip {
            let (Some(node), Some(Role::Activation(Some(limits)))) =
                (prepared.graph.nodes.get(position), prepared.places.roles.get(position))
            else {
                continue;
            };
            if is_saturation(&self.quantizer(output(node))?, *limits) {
                removed.insert(position);
                renamed.insert(before, output(node));
            } else if self.options.activations != Activations::Uint8 {
                // ONNX Runtime fuses nothing here, and one rounding of the clipped value is all that is needed.
                self.names.remove(before);
            }
        }
        self.report.removed_activations = removed.len();
        for (position, (node, role)) in prepared.graph.nodes.iter().zip(&prepared.places.roles).enumerate() {
            if removed.contains(&position) {
                continue;
            }
            let mut new = node.clone();
            self.write_inputs(node, *role, &mut new)?;
            for name in &mut new.output {
                let made = renamed.get(name.as_str()).copied().unwrap_or(name.as_str()).to_owned();
                *name = self.names.get(&made).map_or(made, |names| names.float.clone());
            }
            self.nodes.push(new);
            for name in &node.output {
                let made = renamed.get(name.as_str()).copied().unwrap_or(name.as_str());
                if self.names.contains_key(made) {
                    self.quantise_tensor(made)?;
                }
            }
            self.note_float(node, *role);
        }
        Ok(())
    }

    /// Points the inputs of `new`, a copy of `node`, to dequantised values.
    fn write_inputs(&mut self, node: &NodeProto, role: Role, new: &mut NodeProto) -> Result<(), QuantizeError> {
        for name in &mut new.input {
            if let Some(names) = self.names.get(name.as_str()) {
                names.dequantised.clone_into(name);
            }
        }
        let graph = &self.prepared.graph;
        let integer = role != Role::Float && data_outputs(node, role).iter().any(|o| self.names.contains_key(*o));
        match role {
            Role::Compute if is_product(node) => self.write_product(node, new),
            Role::Compute | Role::Concat if integer => {
                for (position, name) in node.input.iter().enumerate() {
                    if graph.constants.contains_key(name)
                        && graph.constant(node, position).is_some_and(|c| c.dtype() == DataType::Float)
                    {
                        let dequantised = self.constant_operand(node, role, name)?;
                        if let Some(slot) = new.input.get_mut(position) {
                            *slot = dequantised;
                        }
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A constant operand of Add, Mul or Concat.
    fn constant_operand(&mut self, node: &NodeProto, role: Role, name: &str) -> Result<String, QuantizeError> {
        let graph = &self.prepared.graph;
        let broken = || node_error(node, format!("its constant '{name}' cannot be quantised"));
        let tensor = graph.constants.get(name).ok_or_else(broken)?;
        if let Some(&value) = float_values(tensor).iter().find(|v| !v.is_finite()) {
            return Err(QuantizeError::NotFinite { tensor: name.to_owned(), value });
        }
        let joined = role == Role::Concat && self.prepared.places.quantised.contains(output(node));
        let range = constant_range(graph, name).ok_or_else(broken)?;
        let (quantizer, scale_name) = if joined {
            (self.quantizer(output(node))?, self.groups.root(output(node)).to_owned())
        } else {
            let own = Quantizer::activation(range, self.options.activations, self.options.power_of_two);
            (own, name.to_owned())
        };
        let integers = weights::quantise_constant(tensor, &quantizer).ok_or_else(broken)?;
        let scale = self.scale_constant(&scale_name, &[quantizer.scale], None);
        let zero_point = self.zero_point_constant(&scale_name, &quantizer);
        Ok(self.dequantised_constant(name, integers, &scale, Some(&zero_point), None).1)
    }

    /// Weight and bias of Conv, ConvTranspose, Gemm and MatMul.
    fn write_product(&mut self, node: &NodeProto, new: &mut NodeProto) -> Result<(), QuantizeError> {
        let graph = &self.prepared.graph;
        let broken = |why: &str| node_error(node, why.to_owned());
        let mut quantise_operand = |writer: &mut Self, position: usize| -> Result<Option<f32>, QuantizeError> {
            let Some(name) = input(node, position) else { return Ok(None) };
            if graph.constants.contains_key(name) {
                let dequantised = writer.constant_operand(node, Role::Compute, name)?;
                if let Some(slot) = new.input.get_mut(position) {
                    *slot = dequantised;
                }
                let range = constant_range(graph, name).unwrap_or_default();
                let options = writer.options;
                return Ok(Some(Quantizer::activation(range, options.activations, options.power_of_two).scale));
            }
            Ok(Some(writer.quantizer(name)?.scale))
        };
        let x_scale = quantise_operand(self, 0)?.ok_or_else(|| broken("it has no input"))?;
        let bias_name = input(node, 2);
        let bias = bias_name.and_then(|name| graph.constants.get(name)).map(float_values);
        if let Some(&value) = bias.iter().flatten().find(|v| !v.is_finite()) {
            return Err(QuantizeError::NotFinite { tensor: bias_name.unwrap_or_default().to_owned(), value });
        }
        let w_scales = if has_weight(graph, node) {
            self.write_weight(node, new, bias.as_deref(), x_scale)?
        } else {
            vec![quantise_operand(self, 1)?.ok_or_else(|| broken("it has no second input"))?]
        };
        let (Some(bias), Some(name)) = (bias, bias_name) else { return Ok(()) };
        let quantised = weights::quantise_bias(&bias, x_scale, &w_scales);
        let (integers, scales) = quantised.ok_or_else(|| broken("its bias is too long"))?;
        let axis = (scales.len() > 1 || self.has_axis(node)).then_some(0);
        let scale = self.scale_constant(name, &scales, axis);
        let (_, dequantised) = self.dequantised_constant(name, integers, &scale, None, axis);
        if let Some(slot) = new.input.get_mut(2) {
            *slot = dequantised;
        }
        Ok(())
    }

    /// Whether the weight of `node` has a scale for each channel, be it only one channel.
    fn has_axis(&self, node: &NodeProto) -> bool {
        let graph = &self.prepared.graph;
        let weight = graph.constant(node, 1).filter(|_| has_weight(graph, node));
        self.options.weights == Weights::PerChannel
            && weight.is_some_and(|w| crate::places::channel_axis(node, w).is_some())
    }

    fn write_weight(
        &mut self,
        node: &NodeProto,
        new: &mut NodeProto,
        bias: Option<&[f32]>,
        x_scale: f32,
    ) -> Result<Vec<f32>, QuantizeError> {
        let name = input(node, 1).unwrap_or_default();
        let broken = || node_error(node, "its weight and bias do not fit each other");
        let weight = self.prepared.graph.constant(node, 1).ok_or_else(broken)?;
        if let Some(&value) = float_values(weight).iter().find(|v| !v.is_finite()) {
            return Err(QuantizeError::NotFinite { tensor: name.to_owned(), value });
        }
        let quantised = weights::quantise(node, weight, bias, x_scale, &self.options).ok_or_else(broken)?;
        let least = quantised.scales.iter().copied().fold(f32::INFINITY, f32::min);
        let most = quantised.scales.iter().copied().fold(0.0, f32::max);
        let scale = self.scale_constant(name, &quantised.scales, quantised.axis);
        let count = quantised.scales.len();
        let dims = if quantised.axis.is_some() { vec![count] } else { Vec::new() };
        let zeros = ConstTensor::new(DataType::Int8, dims, vec![0; count]).ok_or_else(broken)?;
        let zero_point = self.graph.add_constant(&format!("{name}_zero_point"), zeros);
        let (integer, dequantised) =
            self.dequantised_constant(name, quantised.weight, &scale, Some(&zero_point), quantised.axis);
        self.report.weights.push(WeightReport {
            node: label(node),
            name: name.to_owned(),
            integer,
            scales: count,
            scale_range: (least, most),
            widened: quantised.widened,
            sqnr_db: quantised.sqnr_db,
        });
        if let Some(slot) = new.input.get_mut(1) {
            *slot = dequantised;
        }
        Ok(quantised.scales)
    }

    fn scale_constant(&mut self, name: &str, scales: &[f32], axis: Option<usize>) -> String {
        let dims = if axis.is_some() { vec![scales.len()] } else { Vec::new() };
        match ConstTensor::from_f32(dims, scales) {
            Some(tensor) => self.graph.add_constant(&format!("{name}_scale"), tensor),
            None => String::new(),
        }
    }

    fn zero_point_constant(&mut self, name: &str, quantizer: &Quantizer) -> String {
        let byte = weights::zero_point_bytes(quantizer).unwrap_or_default();
        match ConstTensor::new(quantizer.dtype, Vec::new(), vec![byte]) {
            Some(tensor) => self.graph.add_constant(&format!("{name}_zero_point"), tensor),
            None => String::new(),
        }
    }

    /// The names of an integer constant and of its dequantised form; nodes that read the same one share it.
    fn dequantised_constant(
        &mut self,
        name: &str,
        integers: ConstTensor,
        scale: &str,
        zero_point: Option<&str>,
        axis: Option<usize>,
    ) -> (String, String) {
        let integer = self.graph.add_constant(&format!("{name}_quantized"), integers);
        let key = (integer.clone(), scale.to_owned());
        if let Some(known) = self.constants.get(&key) {
            return (integer, known.clone());
        }
        let dequantised = self.graph.fresh(&format!("{name}_dequantized"));
        let inputs: Vec<&str> = [integer.as_str(), scale].into_iter().chain(zero_point).collect();
        let axis = axis.and_then(|axis| i64::try_from(axis).ok());
        let attributes = axis.map(|axis| attr_i("axis", axis)).into_iter().collect();
        let node_name = format!("{dequantised}_DequantizeLinear");
        self.nodes.push(node("DequantizeLinear", &node_name, &inputs, &[dequantised.as_str()], attributes));
        self.constants.insert(key, dequantised.clone());
        (integer, dequantised)
    }

    /// QuantizeLinear and DequantizeLinear behind a tensor.
    fn quantise_tensor(&mut self, name: &str) -> Result<(), QuantizeError> {
        let quantizer = self.quantizer(name)?;
        let range = self.groups.range(name)?;
        let root = self.groups.root(name).to_owned();
        let scale = self.scale_constant(&root, &[quantizer.scale], None);
        let zero_point = self.zero_point_constant(&root, &quantizer);
        let Some(names) = self.names.get(name) else { return Ok(()) };
        let step = |op: &str, from: &str, to: &str| {
            node(op, &format!("{name}_{op}"), &[from, &scale, &zero_point], &[to], Vec::new())
        };
        self.nodes.push(step("QuantizeLinear", &names.float, &names.integer));
        self.nodes.push(step("DequantizeLinear", &names.integer, &names.dequantised));
        self.report.tensors.push(TensorReport {
            name: name.to_owned(),
            integer: names.integer.clone(),
            source: root,
            range: range.range,
            seen: range.seen,
            saturated: range.saturated,
            scale: quantizer.scale,
            zero_point: quantizer.zero_point,
            dtype: quantizer.dtype,
        });
        Ok(())
    }

    /// Lists a node that stays in float although it touches quantised tensors.
    fn note_float(&mut self, node: &NodeProto, role: Role) {
        let touches = node.input.iter().chain(&node.output).any(|name| self.names.contains_key(name));
        if role != Role::Float || !touches {
            return;
        }
        let operator = operator(node);
        if !EXPECTED_IN_FLOAT.contains(&operator.as_str()) {
            let why = format!("node '{}' ({operator}) has no quantised form and computes in float", label(node));
            self.report.warnings.push(why);
        }
        self.report.float_nodes.push(FloatNode { node: label(node), operator });
    }
}

fn is_product(node: &NodeProto) -> bool {
    ["Conv", "ConvTranspose", "Gemm", "MatMul"].iter().any(|op| is_op(node, op))
}

/// Whether saturation to the type does exactly what the bounds do: both ends of the integers are reached at them.
fn is_saturation(quantizer: &Quantizer, limits: Bounds) -> bool {
    let (least, most) = bounds(quantizer.dtype);
    quantizer.quantize(limits.low) == least && quantizer.quantize(limits.high) == most
}
