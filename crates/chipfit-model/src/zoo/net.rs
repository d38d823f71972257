//! The builder of the zoo's networks: layers in, a checked [`Model`] out.
//!
//! A [`Value`] carries its shape without the batch and an estimate of its mean square, from which the seeded
//! weights of the next layer take their scale: `variance = 1 / (fan_in * mean square)`, which is He's rule
//! after a ReLU and keeps activations near 1 through every layer. Parameters come from loaded weights where
//! there are any, else from [`Stream`]s keyed by their names. The first error is kept and returned by
//! [`Net::finish`], so that a network reads as a list of layers.

use std::collections::BTreeSet;

use super::seeded::Stream;
use super::weights::Loaded;
use super::{ZooError, ZooOptions};
use crate::build::{DimSpec, attr_f, attr_i, attr_is, attr_s, node, value_info};
use crate::index::Index;
use crate::onnx::Model;
use crate::proto::{AttributeProto, GraphProto, ModelProto, OperatorSetIdProto, TensorProto};
use crate::tensor::{ConstTensor, DataType};

/// A tensor inside the network under construction.
#[derive(Clone, Debug)]
pub(super) struct Value {
    /// Its name in the graph.
    pub(super) name: String,
    /// Its shape, without the batch.
    pub(super) dims: Vec<usize>,
    /// Estimate of the mean of its squares.
    power: f64,
}

/// How a batch normalisation names its parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NormNames {
    /// gamma, beta, `moving_mean`, `moving_variance`.
    Keras,
    /// weight, bias, `running_mean`, `running_var`.
    Torch,
}

/// Whether a layer adds a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bias {
    /// It does.
    Yes,
    /// It does not.
    No,
}

/// A convolution or transposed convolution.
#[derive(Clone, Copy, Debug)]
pub(super) struct Conv {
    out_channels: usize,
    kernel: usize,
    stride: usize,
    /// Top, left, bottom, right.
    pads: [usize; 4],
    output_padding: usize,
    groups: usize,
    bias: Bias,
}

impl Conv {
    /// `out_channels` square filters; stride 1, no pads, no groups, with a bias.
    pub(super) fn new(out_channels: usize, kernel: usize) -> Self {
        Self { out_channels, kernel, stride: 1, pads: [0; 4], output_padding: 0, groups: 1, bias: Bias::Yes }
    }
    /// With another stride.
    pub(super) fn stride(self, stride: usize) -> Self {
        Self { stride, ..self }
    }
    /// With the same pad on all sides.
    pub(super) fn pad(self, pad: usize) -> Self {
        Self { pads: [pad; 4], ..self }
    }
    /// With pads top, left, bottom, right.
    pub(super) fn pads(self, pads: [usize; 4]) -> Self {
        Self { pads, ..self }
    }
    /// With the pads of TensorFlow's SAME for `input`: the odd one goes to the end.
    pub(super) fn same(self, input: &Value) -> Self {
        let total = |n: usize| {
            let covered = n.div_ceil(self.stride).saturating_sub(1) * self.stride + self.kernel;
            covered.saturating_sub(n)
        };
        let (y, x) = (total(input.height()), total(input.width()));
        self.pads([y / 2, x / 2, y - y / 2, x - x / 2])
    }
    /// With output padding (transposed convolutions only).
    pub(super) fn output_padding(self, output_padding: usize) -> Self {
        Self { output_padding, ..self }
    }
    /// One group a channel.
    pub(super) fn depthwise(self) -> Self {
        Self { groups: self.out_channels, ..self }
    }
    /// Without a bias.
    pub(super) fn no_bias(self) -> Self {
        Self { bias: Bias::No, ..self }
    }

    fn attributes(&self) -> Vec<AttributeProto> {
        let pair = |n: usize| [int(n), int(n)];
        let mut attributes = vec![
            attr_is("kernel_shape", &pair(self.kernel)),
            attr_is("strides", &pair(self.stride)),
            attr_is("pads", &self.pads.map(int)),
        ];
        if self.groups != 1 {
            attributes.push(attr_i("group", int(self.groups)));
        }
        if self.output_padding != 0 {
            attributes.push(attr_is("output_padding", &pair(self.output_padding)));
        }
        attributes
    }
}

impl Value {
    /// Channels: the first dimension.
    pub(super) fn channels(&self) -> usize {
        self.dims.first().copied().unwrap_or(1)
    }
    fn height(&self) -> usize {
        self.dims.get(1).copied().unwrap_or(1)
    }
    fn width(&self) -> usize {
        self.dims.get(2).copied().unwrap_or(1)
    }
}

fn int(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// How a parameter is seeded.
#[derive(Clone, Copy, Debug)]
enum Seeded {
    /// Bell-shaped with this mean and deviation.
    Bell { mean: f64, deviation: f64 },
    /// Uniform between the two.
    Uniform { low: f64, high: f64 },
}

/// A network under construction.
#[derive(Debug)]
pub(super) struct Net<'o> {
    network: &'static str,
    options: &'o ZooOptions,
    norm_names: NormNames,
    weights: Option<Loaded<'o>>,
    graph: GraphProto,
    /// Initializers that are no parameters: shapes, bounds, scales.
    constants: BTreeSet<String>,
    error: Option<ZooError>,
}

impl<'o> Net<'o> {
    /// An empty network.
    pub(super) fn new(network: &'static str, options: &'o ZooOptions) -> Self {
        let (weights, error) = match options.weights.as_ref().map(|w| w.for_network(network)).transpose() {
            Ok(weights) => (weights, None),
            Err(error) => (None, Some(error)),
        };
        Self {
            network,
            options,
            norm_names: NormNames::Torch,
            weights,
            graph: GraphProto { name: Some(network.to_owned()), ..GraphProto::default() },
            constants: BTreeSet::new(),
            error,
        }
    }

    /// Changes how batch normalisations name their parameters.
    pub(super) fn norm_names(&mut self, names: NormNames) {
        self.norm_names = names;
    }

    /// Declares the input. `power` is the mean of its squares, in the units it is fed in.
    pub(super) fn input(&mut self, name: &str, dims: &[usize], power: f64) -> Value {
        let info = value_info(name, self.options.dtype, &self.with_batch(dims));
        self.graph.input.push(info);
        Value { name: name.to_owned(), dims: dims.to_vec(), power }
    }

    fn with_batch(&self, dims: &[usize]) -> Vec<DimSpec> {
        let batch = match self.options.batch {
            Some(n) => DimSpec::Known(int(n)),
            None => DimSpec::from("N"),
        };
        std::iter::once(batch).chain(dims.iter().map(|&d| DimSpec::Known(int(d)))).collect()
    }

    /// Declares `value` as an output.
    pub(super) fn output(&mut self, value: &Value) {
        let info = value_info(&value.name, self.options.dtype, &self.with_batch(&value.dims));
        self.graph.output.push(info);
    }

    fn push(&mut self, op: &str, inputs: &[&str], output: &str, attributes: Vec<AttributeProto>) {
        self.graph.node.push(node(op, output, inputs, &[output], attributes));
    }

    fn value(name: &str, dims: Vec<usize>, power: f64) -> Value {
        Value { name: name.to_owned(), dims, power }
    }

    fn add_initializer(&mut self, tensor: TensorProto) {
        self.graph.initializer.push(tensor);
    }

    /// A parameter: loaded, or seeded. Returns its name.
    fn parameter(&mut self, name: String, dims: &[usize], seeded: Seeded) -> String {
        let tensor = match self.weights.as_mut() {
            Some(weights) => {
                weights.take(&name, dims).map(|values| encode(self.options.dtype, dims, values.into_iter()))
            }
            None => {
                let stream = Stream::new(self.options.seed, &name);
                let elements = 0..dims.iter().product::<usize>() as u64;
                Ok(encode(
                    self.options.dtype,
                    dims,
                    elements.map(|i| match seeded {
                        Seeded::Bell { mean, deviation } => mean + deviation * stream.bell(i),
                        Seeded::Uniform { low, high } => low + (high - low) * stream.uniform(i),
                    }),
                ))
            }
        };
        match tensor {
            Ok(Some(tensor)) => self.add_initializer(tensor.to_proto(&name)),
            Ok(None) => self.fail(ZooError::DataType { dtype: self.options.dtype.name(), why: "it is no float type" }),
            Err(error) => self.fail(error),
        }
        name
    }

    fn fail(&mut self, error: ZooError) {
        self.error.get_or_insert(error);
    }

    /// A constant of the network's float type. Returns its name.
    fn constant(&mut self, name: String, dims: &[usize], values: &[f64]) -> String {
        if let Some(tensor) = encode(self.options.dtype, dims, values.iter().copied()) {
            self.add_initializer(tensor.to_proto(&name));
        }
        self.constants.insert(name.clone());
        name
    }

    fn filters(
        &mut self,
        name: &str,
        dims: &[usize],
        fan_in: f64,
        input: &Value,
        conv: Bias,
        outputs: usize,
    ) -> Vec<String> {
        let deviation = 1.0 / (fan_in * input.power).sqrt();
        let mut names = vec![
            input.name.clone(),
            self.parameter(format!("{name}.weight"), dims, Seeded::Bell { mean: 0.0, deviation }),
        ];
        if conv == Bias::Yes {
            let seeded = Seeded::Bell { mean: 0.0, deviation: 0.05 };
            names.push(self.parameter(format!("{name}.bias"), &[outputs], seeded));
        }
        names
    }

    /// A convolution; weight `[out, in / groups, k, k]`.
    pub(super) fn conv(&mut self, name: &str, input: &Value, conv: Conv) -> Value {
        let in_group = input.channels() / conv.groups;
        let dims = [conv.out_channels, in_group, conv.kernel, conv.kernel];
        let fan_in = (in_group * conv.kernel * conv.kernel) as f64;
        let inputs = self.filters(name, &dims, fan_in, input, conv.bias, conv.out_channels);
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        self.push("Conv", &inputs, name, conv.attributes());
        let [top, left, bottom, right] = conv.pads;
        let length = |n: usize, pads: usize| (n + pads).saturating_sub(conv.kernel) / conv.stride + 1;
        let dims = vec![conv.out_channels, length(input.height(), top + bottom), length(input.width(), left + right)];
        Self::value(name, dims, 1.0)
    }

    /// A transposed convolution; weight `[in, out, k, k]`, no groups.
    pub(super) fn deconv(&mut self, name: &str, input: &Value, conv: Conv) -> Value {
        let dims = [input.channels(), conv.out_channels, conv.kernel, conv.kernel];
        // Taps that meet one output, on average; an input of one pixel meets each output once.
        let per_axis = |n: usize| if n == 1 { 1.0 } else { conv.kernel as f64 / conv.stride as f64 };
        let fan_in = input.channels() as f64 * per_axis(input.height()) * per_axis(input.width());
        let inputs = self.filters(name, &dims, fan_in, input, conv.bias, conv.out_channels);
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        self.push("ConvTranspose", &inputs, name, conv.attributes());
        let [top, left, bottom, right] = conv.pads;
        let length = |n: usize, pads: usize| {
            (conv.stride * n.saturating_sub(1) + conv.output_padding + conv.kernel).saturating_sub(pads)
        };
        let dims = vec![conv.out_channels, length(input.height(), top + bottom), length(input.width(), left + right)];
        Self::value(name, dims, 1.0)
    }

    /// A fully connected layer on `[N, in]`; weight `[in, out]`. The value has the layer's name.
    pub(super) fn dense(&mut self, name: &str, input: &Value, outputs: usize) -> Value {
        self.dense_named(name, name, input, outputs)
    }

    /// A fully connected layer whose parameters are named after `name` and whose value is `value`.
    pub(super) fn dense_named(&mut self, name: &str, value: &str, input: &Value, outputs: usize) -> Value {
        let inputs = input.channels();
        let names = self.filters(name, &[inputs, outputs], inputs as f64, input, Bias::Yes, outputs);
        self.gemm(value, &names, Vec::new(), outputs)
    }

    /// The same, its weight stored as `[out, in]`.
    pub(super) fn dense_transposed(&mut self, name: &str, value: &str, input: &Value, outputs: usize) -> Value {
        let inputs = input.channels();
        let names = self.filters(name, &[outputs, inputs], inputs as f64, input, Bias::Yes, outputs);
        self.gemm(value, &names, vec![attr_i("transB", 1)], outputs)
    }

    fn gemm(&mut self, name: &str, inputs: &[String], attributes: Vec<AttributeProto>, outputs: usize) -> Value {
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        self.push("Gemm", &inputs, name, attributes);
        Self::value(name, vec![outputs], 1.0)
    }

    /// Batch normalisation. Seeded statistics are those an input of the estimated mean square would have.
    pub(super) fn batch_norm(&mut self, name: &str, input: &Value, epsilon: f32) -> Value {
        let channels = [input.channels()];
        let parts = match self.norm_names {
            NormNames::Keras => ["gamma", "beta", "moving_mean", "moving_variance"],
            NormNames::Torch => ["weight", "bias", "running_mean", "running_var"],
        };
        let [scale, shift, mean, variance] = parts.map(|part| format!("{name}.{part}"));
        let scale = self.parameter(scale, &channels, Seeded::Uniform { low: 0.75, high: 1.25 });
        let shift = self.parameter(shift, &channels, Seeded::Bell { mean: 0.0, deviation: 0.2 });
        let deviation = 0.2 * input.power.sqrt();
        let mean = self.parameter(mean, &channels, Seeded::Bell { mean: 0.0, deviation });
        let (low, high) = (0.8 * input.power, 1.25 * input.power);
        let variance = self.parameter(variance, &channels, Seeded::Uniform { low, high });
        let inputs = [&*input.name, &*scale, &*shift, &*mean, &*variance];
        self.push("BatchNormalization", &inputs, name, vec![attr_f("epsilon", epsilon)]);
        Self::value(name, input.dims.clone(), 1.1)
    }

    /// Instance normalisation with a scale and a shift.
    pub(super) fn instance_norm(&mut self, name: &str, input: &Value, epsilon: f32) -> Value {
        let channels = [input.channels()];
        let scale = self.parameter(format!("{name}.weight"), &channels, Seeded::Uniform { low: 0.75, high: 1.25 });
        let shift = self.parameter(format!("{name}.bias"), &channels, Seeded::Bell { mean: 0.0, deviation: 0.2 });
        self.push("InstanceNormalization", &[&input.name, &scale, &shift], name, vec![attr_f("epsilon", epsilon)]);
        Self::value(name, input.dims.clone(), 1.06)
    }

    fn unary(&mut self, op: &str, name: &str, input: &Value, attributes: Vec<AttributeProto>, power: f64) -> Value {
        self.push(op, &[&input.name], name, attributes);
        Self::value(name, input.dims.clone(), power)
    }

    /// max(x, 0).
    pub(super) fn relu(&mut self, name: &str, input: &Value) -> Value {
        self.unary("Relu", name, input, Vec::new(), 0.5 * input.power)
    }
    /// min(max(x, 0), 6).
    pub(super) fn relu6(&mut self, name: &str, input: &Value) -> Value {
        let low = self.constant(format!("{name}.min"), &[], &[0.0]);
        let high = self.constant(format!("{name}.max"), &[], &[6.0]);
        self.push("Clip", &[&input.name, &low, &high], name, Vec::new());
        Self::value(name, input.dims.clone(), 0.5 * input.power)
    }
    /// max(x, slope * x).
    pub(super) fn leaky_relu(&mut self, name: &str, input: &Value, slope: f32) -> Value {
        let power = 0.5 * (1.0 + f64::from(slope * slope)) * input.power;
        self.unary("LeakyRelu", name, input, vec![attr_f("alpha", slope)], power)
    }
    /// x above 0, exp(x) - 1 below. The mean square of a unit normal through it is 0.645.
    pub(super) fn elu(&mut self, name: &str, input: &Value) -> Value {
        self.unary("Elu", name, input, Vec::new(), 0.645 * input.power)
    }
    /// The hyperbolic tangent. The mean square of a unit normal through it is 0.394.
    pub(super) fn tanh(&mut self, name: &str, input: &Value) -> Value {
        self.unary("Tanh", name, input, Vec::new(), 0.394)
    }
    /// 1 / (1 + exp(-x)). The mean square of a unit normal through it is 0.293.
    pub(super) fn sigmoid(&mut self, name: &str, input: &Value) -> Value {
        self.unary("Sigmoid", name, input, Vec::new(), 0.293)
    }

    /// `input * factor`.
    pub(super) fn scale(&mut self, name: &str, input: &Value, factor: f64) -> Value {
        let constant = self.constant(format!("{name}.factor"), &[], &[factor]);
        self.push("Mul", &[&input.name, &constant], name, Vec::new());
        Self::value(name, input.dims.clone(), input.power * factor * factor)
    }

    /// `input + offset`.
    pub(super) fn shift(&mut self, name: &str, input: &Value, offset: f64) -> Value {
        let constant = self.constant(format!("{name}.offset"), &[], &[offset]);
        self.push("Add", &[&input.name, &constant], name, Vec::new());
        Self::value(name, input.dims.clone(), input.power + offset * offset)
    }

    /// The sum of two values of one shape.
    pub(super) fn add(&mut self, name: &str, a: &Value, b: &Value) -> Value {
        self.push("Add", &[&a.name, &b.name], name, Vec::new());
        Self::value(name, a.dims.clone(), a.power + b.power)
    }

    /// The values side by side along the channels.
    pub(super) fn concat(&mut self, name: &str, parts: &[&Value]) -> Value {
        let inputs: Vec<&str> = parts.iter().map(|v| &*v.name).collect();
        self.push("Concat", &inputs, name, vec![attr_i("axis", 1)]);
        let channels: usize = parts.iter().map(|v| v.channels()).sum();
        let power = parts.iter().map(|v| v.power * v.channels() as f64).sum::<f64>() / channels.max(1) as f64;
        let mut dims = parts.first().map(|v| v.dims.clone()).unwrap_or_default();
        if let Some(first) = dims.first_mut() {
            *first = channels;
        }
        Self::value(name, dims, power)
    }

    /// Maximum over `kernel` x `kernel`; pads are top, left, bottom, right.
    pub(super) fn max_pool(
        &mut self,
        name: &str,
        input: &Value,
        kernel: usize,
        stride: usize,
        pads: [usize; 4],
    ) -> Value {
        let attributes = Conv::new(0, kernel).stride(stride).pads(pads).attributes();
        self.push("MaxPool", &[&input.name], name, attributes);
        let [top, left, bottom, right] = pads;
        let length = |n: usize, pads: usize| (n + pads).saturating_sub(kernel) / stride + 1;
        let dims = vec![input.channels(), length(input.height(), top + bottom), length(input.width(), left + right)];
        Self::value(name, dims, 2.0 * input.power)
    }

    /// The mean of each channel.
    pub(super) fn global_average_pool(&mut self, name: &str, input: &Value) -> Value {
        self.push("GlobalAveragePool", &[&input.name], name, Vec::new());
        Self::value(name, vec![input.channels(), 1, 1], input.power)
    }

    /// `[N, ...]` to `[N, product]`.
    pub(super) fn flatten(&mut self, name: &str, input: &Value) -> Value {
        self.push("Flatten", &[&input.name], name, vec![attr_i("axis", 1)]);
        Self::value(name, vec![input.dims.iter().product()], input.power)
    }

    /// Another shape behind the batch, which is copied.
    pub(super) fn reshape(&mut self, name: &str, input: &Value, dims: &[usize]) -> Value {
        let shape: Vec<i64> = std::iter::once(0).chain(dims.iter().map(|&d| int(d))).collect();
        let constant = format!("{name}.shape");
        self.add_initializer(ConstTensor::from_i64s(&shape).to_proto(&constant));
        self.push("Reshape", &[&input.name, &constant], name, Vec::new());
        self.constants.insert(constant);
        Self::value(name, dims.to_vec(), input.power)
    }

    /// Twice the height and width, every pixel repeated.
    pub(super) fn repeat_pixels(&mut self, name: &str, input: &Value) -> Value {
        let float = |dims: usize, values: &[f32]| ConstTensor::from_f32(vec![dims], values);
        let scales = format!("{name}.scales");
        if let Some(tensor) = float(4, &[1.0, 1.0, 2.0, 2.0]) {
            self.add_initializer(tensor.to_proto(&scales));
        }
        // The region of interest became optional with version 13; before, an empty one has to be named.
        let mut region = String::new();
        if self.options.opset < 13 {
            region = format!("{name}.roi");
            if let Some(tensor) = float(0, &[]) {
                self.add_initializer(tensor.to_proto(&region));
            }
            self.constants.insert(region.clone());
        }
        let attributes = vec![
            attr_s("coordinate_transformation_mode", "asymmetric"),
            attr_s("mode", "nearest"),
            attr_s("nearest_mode", "floor"),
        ];
        self.push("Resize", &[&input.name, &region, &scales], name, attributes);
        self.constants.insert(scales);
        Self::value(name, vec![input.channels(), 2 * input.height(), 2 * input.width()], input.power)
    }

    /// The model, or the first thing that went wrong.
    pub(super) fn finish(self, description: &str) -> Result<Model, ZooError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        let origin = match &self.weights {
            Some(weights) => {
                weights.check_all_used(&self.constants)?;
                "weights loaded from a file".to_owned()
            }
            None => format!("weights seeded, seed {}", self.options.seed),
        };
        let opset = self.options.opset;
        // The first IR version that knows the operator set, as ONNX's own table pairs them; 8 serves all older ones.
        let ir_version = match opset {
            ..=18 => 8,
            19 | 20 => 9,
            21 | 22 => 10,
            _ => 11,
        };
        let operators = OperatorSetIdProto { domain: Some(String::new()), version: Some(opset), ..Default::default() };
        let proto = ModelProto {
            ir_version: Some(ir_version),
            opset_import: vec![operators],
            producer_name: Some("chipfit".to_owned()),
            producer_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            doc_string: Some(format!("{}: {description}; {origin}", self.network)),
            graph: self.graph.into(),
            ..ModelProto::default()
        };
        let model = Model { proto, folder: None };
        Index::new(&model).check()?;
        Ok(model)
    }
}

/// `values` as a tensor of the float type `dtype`; `None` for other types or another count.
fn encode(dtype: DataType, dims: &[usize], values: impl Iterator<Item = f64>) -> Option<ConstTensor> {
    let elements: usize = dims.iter().product();
    let mut bytes = Vec::with_capacity(dtype.total_bytes(elements)?);
    match dtype {
        DataType::Float => values.for_each(|v| bytes.extend((v as f32).to_le_bytes())),
        DataType::Double => values.for_each(|v| bytes.extend(v.to_le_bytes())),
        DataType::Float16 => values.for_each(|v| bytes.extend(half::f16::from_f64(v).to_le_bytes())),
        DataType::Bfloat16 => values.for_each(|v| bytes.extend(half::bf16::from_f64(v).to_le_bytes())),
        _ => return None,
    }
    ConstTensor::new(dtype, dims.to_vec(), bytes)
}
