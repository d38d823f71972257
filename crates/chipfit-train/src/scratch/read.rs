//! From a float ONNX model to a [`Network`].
//!
//! Understood: Conv, BatchNormalization, Relu, Clip, Add, MaxPool, AveragePool, GlobalAveragePool, Flatten, Reshape to two
//! axes, Gemm, MatMul with or without an Add of its bias, Identity, Dropout, and one Softmax or LogSoftmax at the end,
//! which training replaces by its loss. Weights must be float initializers of the main graph, each used once. Anything
//! else is an error that names the node: nothing is silently trained as something else.
//!
//! A Relu or Clip becomes part of the normalisation or sum before it where nothing else reads that.

use std::collections::BTreeMap;

use chipfit_kernels::ConvGeometry;
use chipfit_model::build::{get_f, get_i, get_is, get_s, is_op};
use chipfit_model::index::node_label;
use chipfit_model::proto::__buffa::oneof::tensor_shape_proto::dimension::Value as DimValue;
use chipfit_model::proto::__buffa::oneof::type_proto::Value as TypeValue;
use chipfit_model::proto::{NodeProto, ValueInfoProto};
use chipfit_model::{ConstTensor, DataType, Index, Model, Producer};

use super::error::ScratchError;
use super::graph::{
    Clamp, Divisor, Extent, Kind, Layer, Layout, Network, Norm, Parameter, ParameterId, Role, ValueId, Window,
};

/// Most elements of one value of one picture, and of one parameter.
const MAX_ELEMENTS: usize = 1 << 28;
/// Longest side, step and pad of a pooling window.
const MAX_SIDE: usize = 1 << 16;

impl Network {
    /// Reads a model's main graph with its weights and running statistics.
    ///
    /// # Errors
    /// [`ScratchError`] naming the node or initializer that cannot be trained.
    pub fn from_model(model: &Model) -> Result<Self, ScratchError> {
        Reader::new(model)?.read()
    }
}

/// What a tensor of the ONNX graph is here.
#[derive(Clone, Copy, Debug)]
struct Known {
    value: ValueId,
    /// Whether ONNX sees it as `[N, channels * rows * columns]`.
    is_flat: bool,
}

struct Reader<'m> {
    index: Index<'m>,
    network: Network,
    known: BTreeMap<String, Known>,
    /// Who took an initializer.
    taken: BTreeMap<String, String>,
    softmax: Option<String>,
}

/// One node under reading.
struct At<'m> {
    node: &'m NodeProto,
    label: String,
}

impl<'m> At<'m> {
    fn unsupported(&self, what: impl std::fmt::Display) -> ScratchError {
        ScratchError::Unsupported {
            node: self.label.clone(),
            op_type: self.node.op_type.clone().unwrap_or_default(),
            what: what.to_string(),
        }
    }

    fn input(&self, position: usize) -> Option<&'m str> {
        self.node.input.get(position).map(String::as_str).filter(|name| !name.is_empty())
    }

    fn output(&self) -> &'m str {
        self.node.output.first().map_or("", String::as_str)
    }

    /// A list of `N` numbers that are not negative.
    fn list<const N: usize>(&self, name: &str, default: usize) -> Result<[usize; N], ScratchError> {
        let Some(values) = get_is(self.node, name) else { return Ok([default; N]) };
        let numbers: Option<Vec<usize>> = values.iter().map(|&value| usize::try_from(value).ok()).collect();
        let numbers = numbers.and_then(|numbers| <[usize; N]>::try_from(numbers).ok());
        numbers.ok_or_else(|| self.unsupported(format!("attribute '{name}' is {values:?}, {N} lengths were expected")))
    }

    fn only(&self, name: &str, wanted: i64) -> Result<(), ScratchError> {
        match get_i(self.node, name).unwrap_or(wanted) {
            value if value == wanted => Ok(()),
            value => Err(self.unsupported(format!("attribute '{name}' is {value}; only {wanted} can be trained"))),
        }
    }

    fn only_one(&self, name: &str) -> Result<(), ScratchError> {
        match get_f(self.node, name) {
            None | Some(1.0) => Ok(()),
            Some(value) => Err(self.unsupported(format!("attribute '{name}' is {value}; only 1 can be trained"))),
        }
    }

    fn no_auto_pad(&self) -> Result<(), ScratchError> {
        match get_s(self.node, "auto_pad") {
            None | Some("" | "NOTSET") => Ok(()),
            Some(value) => {
                Err(self.unsupported(format!("attribute 'auto_pad' is {value}; write the pads into the model")))
            }
        }
    }

    fn window(&self) -> Result<Window, ScratchError> {
        self.no_auto_pad()?;
        self.only("ceil_mode", 0)?;
        if self.list::<2>("dilations", 1)? != [1, 1] {
            return Err(self.unsupported("dilated windows cannot be trained"));
        }
        if get_is(self.node, "kernel_shape").is_none() {
            return Err(self.unsupported("attribute 'kernel_shape' is missing"));
        }
        let window = Window {
            kernel: self.list("kernel_shape", 1)?,
            stride: self.list("strides", 1)?,
            pads: self.list("pads", 0)?,
        };
        let [top, left, bottom, right] = window.pads;
        let fits = window.kernel.iter().zip([top.max(bottom), left.max(right)]).all(|(&side, pad)| pad < side);
        let is_small = window.kernel.iter().chain(&window.stride).all(|&side| side <= MAX_SIDE);
        if !fits || !is_small || window.stride.contains(&0) {
            let what = format!("each pad must be less than the kernel, strides above 0, no side above {MAX_SIDE}");
            return Err(self.unsupported(what));
        }
        Ok(window)
    }
}

impl<'m> Reader<'m> {
    fn new(model: &'m Model) -> Result<Self, ScratchError> {
        let index = Index::new(model);
        let network = Network {
            extents: Vec::new(),
            input: 0,
            logits: 0,
            layers: Vec::new(),
            parameters: Vec::new(),
            values: Vec::new(),
        };
        Ok(Self { index, network, known: BTreeMap::new(), taken: BTreeMap::new(), softmax: None })
    }

    fn read(mut self) -> Result<Network, ScratchError> {
        let graph = self.index.model.graph();
        let is_constant = |name: &str| matches!(self.index.lookup(0, name), Some((_, Producer::Initializer(_))));
        let inputs: Vec<_> =
            graph.input.iter().filter(|input| !is_constant(input.name.as_deref().unwrap_or_default())).collect();
        let ([input], [output]) = (inputs.as_slice(), graph.output.as_slice()) else {
            let what = format!(
                "it has {} inputs and {} outputs; one of each can be trained",
                inputs.len(),
                graph.output.len()
            );
            return Err(ScratchError::Graph(what));
        };
        let extent = input_extent(input)?;
        let value = self.add_value(extent).ok_or_else(|| ScratchError::Graph("its input is too large".to_owned()))?;
        self.network.input = value;
        self.known.insert(input.name.clone().unwrap_or_default(), Known { value, is_flat: false });
        for position in self.index.topological_order(0)? {
            let Some(node) = graph.node.get(position) else { continue };
            let at = At { node, label: node_label(node, position) };
            if let Some(softmax) = &self.softmax {
                return Err(at.unsupported(format!("it follows '{softmax}', which is understood at the end only")));
            }
            self.read_node(&at)?;
        }
        let name = output.name.as_deref().unwrap_or_default();
        let Some(logits) = self.known.get(name).copied() else {
            return Err(ScratchError::Graph(format!("its output '{name}' does not come from the input")));
        };
        let extent = self.network.extent(logits.value);
        if extent.height * extent.width != 1 || extent.channels < 2 {
            return Err(ScratchError::Graph(format!("its output '{name}' is no list of class scores")));
        }
        self.network.logits = logits.value;
        Ok(self.network)
    }

    fn add_value(&mut self, extent: Extent) -> Option<ValueId> {
        let elements = extent.height.checked_mul(extent.width)?.checked_mul(extent.channels)?;
        if elements == 0 || elements > MAX_ELEMENTS {
            return None;
        }
        self.network.extents.push(extent);
        Some(self.network.extents.len() - 1)
    }

    /// The value that input `position` of a node reads.
    fn value(&self, at: &At<'m>, position: usize) -> Result<Known, ScratchError> {
        let name = at.input(position).ok_or_else(|| at.unsupported(format!("input {position} is missing")))?;
        let known = self.known.get(name).copied();
        known.ok_or_else(|| {
            at.unsupported(format!("input '{name}' is a constant or comes from no layer that is trained"))
        })
    }

    fn push(
        &mut self,
        at: &At<'m>,
        kind: Kind,
        inputs: &[Known],
        extent: Extent,
        is_flat: bool,
    ) -> Result<(), ScratchError> {
        let output = self.add_value(extent).ok_or_else(|| at.unsupported("its result is empty or too large"))?;
        let inputs = inputs.iter().map(|known| known.value).collect();
        self.network.layers.push(Layer { name: at.label.clone(), kind, inputs, output });
        self.known.insert(at.output().to_owned(), Known { value: output, is_flat });
        Ok(())
    }

    fn read_node(&mut self, at: &At<'m>) -> Result<(), ScratchError> {
        let node = at.node;
        let is = |op: &str| is_op(node, op);
        if is("Constant") {
            return Ok(());
        }
        if is("Conv") {
            return self.conv(at);
        }
        if is("Gemm") {
            return self.gemm(at);
        }
        if is("MatMul") {
            return self.dense(at, false, None);
        }
        if is("BatchNormalization") {
            return self.norm(at);
        }
        if is("Relu") {
            return self.clamp(at, Clamp { low: 0.0, ..Clamp::NONE });
        }
        if is("Clip") {
            let clamp = self.clip_bounds(at)?;
            return self.clamp(at, clamp);
        }
        if is("Add") {
            return self.add(at);
        }
        if is("MaxPool") || is("AveragePool") || is("GlobalAveragePool") {
            return self.pool(at);
        }
        if is("Flatten") || is("Reshape") {
            return self.flatten(at);
        }
        if is("Identity") || is("Dropout") {
            let known = self.value(at, 0)?;
            self.known.insert(at.output().to_owned(), known);
            return Ok(());
        }
        if is("Softmax") || is("LogSoftmax") {
            let known = self.value(at, 0)?;
            self.known.insert(at.output().to_owned(), known);
            self.softmax = Some(at.label.clone());
            return Ok(());
        }
        Err(at.unsupported("this operator cannot be trained from scratch"))
    }

    /// The float initializer behind input `position`; `None` where the node has no such input.
    fn constant(&mut self, at: &At<'m>, position: usize) -> Result<Option<(String, ConstTensor)>, ScratchError> {
        let Some(name) = at.input(position) else { return Ok(None) };
        let Some((0, Producer::Initializer(which))) = self.index.lookup(0, name) else {
            return Err(at.unsupported(format!("input '{name}' must be an initializer")));
        };
        if let Some(other) = self.taken.insert(name.to_owned(), at.label.clone()) {
            return Err(ScratchError::parameter(
                name,
                format!("'{other}' and '{}' share it; export it twice", at.label),
            ));
        }
        let initializers = &self.index.model.graph().initializer;
        let Some(proto) = initializers.get(which) else { return Ok(None) };
        let tensor = self.index.model.tensor(proto)?;
        if tensor.dtype() != DataType::Float {
            let what = format!("its type is {}; only float can be trained", tensor.dtype().name());
            return Err(ScratchError::parameter(name, what));
        }
        Ok(Some((name.to_owned(), tensor)))
    }

    fn add_parameter(&mut self, name: String, tensor: &ConstTensor, role: Role, layout: Layout) -> ParameterId {
        self.network.values.push(layout.of_onnx(&floats(tensor)));
        self.network.parameters.push(Parameter { name, role, dims: tensor.dims().to_vec(), layout });
        self.network.parameters.len() - 1
    }

    /// A parameter of `length` elements in one row.
    fn row(
        &mut self,
        at: &At<'m>,
        position: usize,
        role: Role,
        length: usize,
    ) -> Result<Option<ParameterId>, ScratchError> {
        let Some((name, tensor)) = self.constant(at, position)? else { return Ok(None) };
        if tensor.len() != length || tensor.dims().last() != Some(&length) {
            let what = format!("its shape is {:?}, '{}' needs [{length}]", tensor.dims(), at.label);
            return Err(ScratchError::parameter(&name, what));
        }
        Ok(Some(self.add_parameter(name, &tensor, role, Layout::Same)))
    }

    fn conv(&mut self, at: &At<'m>) -> Result<(), ScratchError> {
        at.no_auto_pad()?;
        let input = self.value(at, 0)?;
        let from = self.network.extent(input.value);
        let Some((name, tensor)) = self.constant(at, 1)? else { return Err(at.unsupported("it has no weights")) };
        let &[out_channels, inner, rows, columns] = tensor.dims() else {
            return Err(
                at.unsupported(format!("its weights have shape {:?}; convolutions of maps only", tensor.dims()))
            );
        };
        let groups = usize::try_from(get_i(at.node, "group").unwrap_or(1)).unwrap_or(0);
        let has_channels = inner.checked_mul(groups) == Some(from.channels);
        if input.is_flat || !has_channels || groups == 0 || out_channels % groups != 0 {
            let what = format!("weights {:?} in {groups} groups do not fit {} channels", tensor.dims(), from.channels);
            return Err(at.unsupported(what));
        }
        if get_is(at.node, "kernel_shape").is_some() && at.list::<2>("kernel_shape", 0)? != [rows, columns] {
            return Err(at.unsupported("attribute 'kernel_shape' is not that of its weights"));
        }
        let geometry = ConvGeometry {
            input: [from.height, from.width],
            in_channels: from.channels,
            out_channels,
            groups,
            kernel: [rows, columns],
            stride: at.list("strides", 1)?,
            dilation: at.list("dilations", 1)?,
            pads: at.list("pads", 0)?,
        };
        let layout = Layout::Filters { inner, taps: rows * columns };
        let bias = self.row(at, 2, Role::Bias, out_channels)?;
        self.linear(at, input, geometry, (name, &tensor, layout), bias, false)
    }

    fn linear(
        &mut self,
        at: &At<'m>,
        input: Known,
        geometry: ConvGeometry,
        (name, tensor, layout): (String, &ConstTensor, Layout),
        bias: Option<ParameterId>,
        is_flat: bool,
    ) -> Result<(), ScratchError> {
        let kernel = |source| ScratchError::Kernel { node: at.label.clone(), source };
        let [height, width] = geometry.checked_output().map_err(kernel)?;
        let extent = Extent { height, width, channels: geometry.out_channels };
        let role = Role::Weight { fan_in: geometry.products() };
        let weight = self.add_parameter(name, tensor, role, layout);
        self.push(at, Kind::Linear { geometry, weight, bias }, &[input], extent, is_flat)
    }

    fn gemm(&mut self, at: &At<'m>) -> Result<(), ScratchError> {
        at.only("transA", 0)?;
        at.only_one("alpha")?;
        at.only_one("beta")?;
        let transposed = get_i(at.node, "transB").unwrap_or(0) != 0;
        self.dense(at, transposed, at.input(2).map(|_| 2))
    }

    /// A product with weights `[in, out]`, or `[out, in]` when `transposed`.
    fn dense(&mut self, at: &At<'m>, transposed: bool, bias: Option<usize>) -> Result<(), ScratchError> {
        let input = self.value(at, 0)?;
        let from = self.network.extent(input.value);
        let taps = from.height * from.width;
        let Some((name, tensor)) = self.constant(at, 1)? else { return Err(at.unsupported("it has no weights")) };
        let sides = match (tensor.dims(), transposed) {
            (&[inputs, outputs], false) | (&[outputs, inputs], true) => Some((inputs, outputs)),
            _ => None,
        };
        let Some((_, outputs)) = sides.filter(|&(inputs, outputs)| inputs == from.elements() && outputs > 0) else {
            let what = format!("weights {:?} do not fit its {} inputs", tensor.dims(), from.elements());
            return Err(at.unsupported(what));
        };
        if !input.is_flat {
            return Err(at.unsupported("its input must be flattened first"));
        }
        let geometry = ConvGeometry {
            input: [from.height, from.width],
            in_channels: from.channels,
            out_channels: outputs,
            groups: 1,
            kernel: [from.height, from.width],
            stride: [1, 1],
            dilation: [1, 1],
            pads: [0; 4],
        };
        let layout = if transposed {
            Layout::Filters { inner: from.channels, taps }
        } else {
            Layout::Columns { outputs, inner: from.channels, taps }
        };
        let bias = match bias {
            Some(position) => self.row(at, position, Role::Bias, outputs)?,
            None => None,
        };
        self.linear(at, input, geometry, (name, &tensor, layout), bias, true)
    }

    fn norm(&mut self, at: &At<'m>) -> Result<(), ScratchError> {
        at.only("training_mode", 0)?;
        let input = self.value(at, 0)?;
        let extent = self.network.extent(input.value);
        if input.is_flat && extent.height * extent.width != 1 {
            return Err(
                at.unsupported("a normalisation of a flattened map cannot be trained; put it before the Flatten")
            );
        }
        let missing = || at.unsupported("it needs scale, shift, mean and variance");
        let scale = self.row(at, 1, Role::Scale, extent.channels)?.ok_or_else(missing)?;
        let shift = self.row(at, 2, Role::Shift, extent.channels)?.ok_or_else(missing)?;
        let mut running = |position| -> Result<(String, Vec<f32>), ScratchError> {
            let (name, tensor) = self.constant(at, position)?.ok_or_else(missing)?;
            if tensor.dims() != [extent.channels] {
                let what = format!("its shape is {:?}, '{}' needs [{}]", tensor.dims(), at.label, extent.channels);
                return Err(ScratchError::parameter(&name, what));
            }
            Ok((name, floats(&tensor)))
        };
        let (mean, variance) = (running(3)?, running(4)?);
        let norm = Norm {
            scale,
            shift,
            running_names: [mean.0, variance.0],
            running: [mean.1, variance.1],
            epsilon: get_f(at.node, "epsilon").unwrap_or(1e-5),
            momentum: get_f(at.node, "momentum").unwrap_or(0.9),
            clamp: Clamp::NONE,
        };
        if !(norm.epsilon > 0.0 && norm.epsilon.is_finite() && (0.0..=1.0).contains(&norm.momentum)) {
            return Err(at.unsupported("its epsilon must be above 0 and its momentum between 0 and 1"));
        }
        self.push(at, Kind::Norm(norm), &[input], extent, input.is_flat)
    }

    fn clip_bounds(&self, at: &At<'m>) -> Result<Clamp, ScratchError> {
        let bound = |position: usize, attribute: &str, default: f32| -> Result<f32, ScratchError> {
            let Some(name) = at.input(position) else { return Ok(get_f(at.node, attribute).unwrap_or(default)) };
            let tensor = self.index.constant_tensor(0, name)?;
            let one = tensor.and_then(|tensor| tensor.to_f64_vec()).filter(|values| values.len() == 1);
            match one.as_deref() {
                // Bounds are float in the file.
                Some(&[value]) => Ok(value as f32),
                _ => Err(at.unsupported(format!("bound '{name}' must be one constant"))),
            }
        };
        let clamp = Clamp { low: bound(1, "min", f32::NEG_INFINITY)?, high: bound(2, "max", f32::INFINITY)? };
        if clamp.low < clamp.high { Ok(clamp) } else { Err(at.unsupported("its bounds leave nothing between them")) }
    }

    fn clamp(&mut self, at: &At<'m>, clamp: Clamp) -> Result<(), ScratchError> {
        let input = self.value(at, 0)?;
        let extent = self.network.extent(input.value);
        let name = at.input(0).unwrap_or_default();
        let uses = self.index.scopes.first().map_or(0, |scope| scope.uses(name).len());
        // An Identity in between has the same value under another name; then the count of uses says too little.
        let is_last_word = uses == 1 && self.names_of(input.value) == 1;
        let maker = self.network.layers.iter_mut().find(|layer| layer.output == input.value);
        let place = match maker.map(|layer| &mut layer.kind) {
            Some(Kind::Norm(norm)) => Some(&mut norm.clamp),
            Some(Kind::Add(clamp)) => Some(clamp),
            _ => None,
        };
        if let Some(place) = place.filter(|place| place.is_none() && is_last_word) {
            *place = clamp;
            self.known.insert(at.output().to_owned(), input);
            return Ok(());
        }
        self.push(at, Kind::Clamp(clamp), &[input], extent, input.is_flat)
    }

    fn add(&mut self, at: &At<'m>) -> Result<(), ScratchError> {
        let is_known = |position| at.input(position).is_some_and(|name| self.known.contains_key(name));
        if is_known(0) && is_known(1) {
            let (a, b) = (self.value(at, 0)?, self.value(at, 1)?);
            let extent = self.network.extent(a.value);
            if extent != self.network.extent(b.value) || a.is_flat != b.is_flat {
                return Err(at.unsupported("it adds values of different shapes"));
            }
            return self.push(at, Kind::Add(Clamp::NONE), &[a, b], extent, a.is_flat);
        }
        let (input, constant) = if is_known(0) { (0, 1) } else { (1, 0) };
        let known = self.value(at, input)?;
        let uses = self.index.scopes.first().map_or(0, |scope| scope.uses(at.input(input).unwrap_or_default()).len());
        let maker =
            self.network.layers.iter().position(|layer| {
                layer.output == known.value && matches!(&layer.kind, Kind::Linear { bias: None, .. })
            });
        let Some(maker) = maker.filter(|_| known.is_flat && uses == 1 && self.names_of(known.value) == 1) else {
            return Err(at.unsupported("a constant can only be added to a matrix product that has no bias"));
        };
        let outputs = self.network.extent(known.value).channels;
        let row = self.row(at, constant, Role::Bias, outputs)?;
        if let Some(Kind::Linear { bias, .. }) = self.network.layers.get_mut(maker).map(|layer| &mut layer.kind) {
            *bias = row;
        }
        self.known.insert(at.output().to_owned(), known);
        Ok(())
    }

    /// How many names of the graph stand for a value.
    fn names_of(&self, value: ValueId) -> usize {
        self.known.values().filter(|known| known.value == value).count()
    }

    fn pool(&mut self, at: &At<'m>) -> Result<(), ScratchError> {
        let input = self.value(at, 0)?;
        let from = self.network.extent(input.value);
        if input.is_flat {
            return Err(at.unsupported("it pools a flattened map"));
        }
        let window = if is_op(at.node, "GlobalAveragePool") {
            Window { kernel: [from.height, from.width], stride: [1, 1], pads: [0; 4] }
        } else {
            at.window()?
        };
        let [top, left, bottom, right] = window.pads;
        let length = |length: usize, pads: usize, axis: usize| {
            let room = length.checked_add(pads)?.checked_sub(*window.kernel.get(axis)?)?;
            Some(room / window.stride.get(axis).copied().filter(|&stride| stride > 0)? + 1)
        };
        let height = length(from.height, top.saturating_add(bottom), 0);
        let width = length(from.width, left.saturating_add(right), 1);
        let (Some(height), Some(width)) = (height, width) else {
            return Err(at.unsupported("its kernel is larger than its input"));
        };
        let kind = if is_op(at.node, "MaxPool") {
            if at.node.output.iter().skip(1).any(|name| !name.is_empty()) {
                return Err(at.unsupported("its second output cannot be trained"));
            }
            Kind::MaxPool(window)
        } else {
            let counts_pads = get_i(at.node, "count_include_pad").unwrap_or(0) != 0;
            Kind::AveragePool(window, if counts_pads { Divisor::Kernel } else { Divisor::Inside })
        };
        self.push(at, kind, &[input], Extent { height, width, ..from }, false)
    }

    fn flatten(&mut self, at: &At<'m>) -> Result<(), ScratchError> {
        let input = self.value(at, 0)?;
        let elements = self.network.extent(input.value).elements();
        if is_op(at.node, "Flatten") {
            at.only("axis", 1)?;
        } else {
            let shape = at.input(1).map(|name| self.index.constant_tensor(0, name)).transpose()?.flatten();
            let shape = shape.and_then(|shape| shape.to_i64_vec());
            let is_row = match shape.as_deref() {
                Some(&[_, -1]) => true,
                Some(&[_, row]) => usize::try_from(row) == Ok(elements),
                _ => false,
            };
            if !is_row {
                return Err(at.unsupported(format!("it must reshape to [batch, {elements}], by a constant")));
            }
        }
        self.known.insert(at.output().to_owned(), Known { is_flat: true, ..input });
        Ok(())
    }
}

/// The elements of a float tensor.
fn floats(tensor: &ConstTensor) -> Vec<f32> {
    tensor.bytes().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// Rows, columns and channels of an input `[N, channels, rows, columns]`.
fn input_extent(input: &ValueInfoProto) -> Result<Extent, ScratchError> {
    let name = input.name.as_deref().unwrap_or_default();
    let bad = |what: &str| ScratchError::Graph(format!("its input '{name}' {what}"));
    let Some(TypeValue::TensorType(tensor)) = &input.r#type.value else { return Err(bad("is no tensor")) };
    if tensor.elem_type != Some(DataType::Float.code()) {
        return Err(bad("is not float"));
    }
    let side = |dim: Option<&DimValue>| match dim {
        Some(DimValue::DimValue(side)) => usize::try_from(*side).ok().filter(|&side| side > 0),
        _ => None,
    };
    let dims: Vec<_> = tensor.shape.dim.iter().map(|dim| side(dim.value.as_ref())).collect();
    match dims.as_slice() {
        &[_, Some(channels), Some(height), Some(width)] => Ok(Extent { height, width, channels }),
        _ => Err(bad("must be [batch, channels, rows, columns] with known lengths")),
    }
}
