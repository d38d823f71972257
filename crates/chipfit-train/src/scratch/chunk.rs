//! What one thread holds of a batch: a few pictures, their values and gradients, and their share of the sums.

use chipfit_kernels::float::FloatScratch;

use super::engine::{Batch, Shared};
use super::error::ScratchError;
use super::graph::{Kind, Layer, Network};
use super::norm::{self, Affine, GradientSums, Moments};
use super::plan::{LayerId, Step};
use super::pool;

/// Pictures that go through the network together.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    /// Position of its first picture in the batch.
    pub(super) start: usize,
    /// How many.
    pub(super) pictures: usize,
    /// One per value: the pictures' maps.
    pub(super) values: Vec<Vec<f32>>,
    /// Gradients of the same.
    gradients: Vec<Vec<f32>>,
    /// One per layer: where a maximum came from.
    winners: Vec<Vec<u32>>,
    /// One per parameter: the sum over the pictures.
    pub(super) parameters: Vec<Vec<f32>>,
    /// Of the normalisation that ended the run.
    pub(super) moments: Moments,
    /// Of the normalisation that ended the run.
    pub(super) sums: GradientSums,
    /// Sum of the pictures' losses.
    pub(super) loss: f64,
    /// Pictures whose label has the largest logit.
    pub(super) hits: usize,
    /// A gradient before it is added to another.
    spare: Vec<f32>,
    scratch: FloatScratch,
}

impl Chunk {
    /// An empty chunk of a network.
    pub(super) fn new(network: &Network) -> Self {
        Self {
            values: vec![Vec::new(); network.extents.len()],
            gradients: vec![Vec::new(); network.extents.len()],
            winners: vec![Vec::new(); network.layers.len()],
            parameters: vec![Vec::new(); network.parameters.len()],
            ..Self::default()
        }
    }

    /// Makes room for pictures and forgets the sums of the last step.
    pub(super) fn prepare(&mut self, network: &Network, start: usize, pictures: usize, is_training: bool) {
        (self.start, self.pictures, self.loss, self.hits) = (start, pictures, 0.0, 0);
        for (value, extent) in self.values.iter_mut().zip(&network.extents) {
            value.resize(pictures * extent.elements(), 0.0);
        }
        if !is_training {
            return;
        }
        for (gradient, extent) in self.gradients.iter_mut().zip(&network.extents) {
            gradient.resize(pictures * extent.elements(), 0.0);
        }
        for (sum, values) in self.parameters.iter_mut().zip(&network.values) {
            sum.clear();
            sum.resize(values.len(), 0.0);
        }
    }

    /// Does one step of a run.
    pub(super) fn step(&mut self, shared: &Shared<'_>, batch: &Batch<'_>, step: Step) -> Result<(), ScratchError> {
        match step {
            Step::Load => self.load(shared.network, batch),
            Step::Loss => self.loss(shared.network, batch),
            Step::Moments(layer) => {
                if let Some(layer) = shared.network.layers.get(layer) {
                    let channels = shared.network.extent(layer.output).channels;
                    self.moments = Moments::of(self.input(layer, 0), channels);
                }
                Ok(())
            }
            Step::Sums(layer) => {
                self.gradient_sums(shared, layer);
                Ok(())
            }
            Step::Forward(id) => {
                let Some(layer) = shared.network.layers.get(id) else { return Ok(()) };
                let mut output = self.values.get_mut(layer.output).map(std::mem::take).unwrap_or_default();
                let done = self.forward(shared, id, layer, &mut output);
                put(&mut self.values, layer.output, output);
                done
            }
            Step::Backward(id) => {
                let Some(layer) = shared.network.layers.get(id) else { return Ok(()) };
                let mut gradient = self.gradients.get_mut(layer.output).map(std::mem::take).unwrap_or_default();
                let done = self.backward(shared, id, layer, &mut gradient);
                put(&mut self.gradients, layer.output, gradient);
                done
            }
        }
    }

    fn value(&self, id: usize) -> &[f32] {
        self.values.get(id).map_or(&[], Vec::as_slice)
    }

    fn input(&self, layer: &Layer, position: usize) -> &[f32] {
        layer.inputs.get(position).map_or(&[], |&id| self.value(id))
    }

    /// The pictures, from channels first to channels last.
    fn load(&mut self, network: &Network, batch: &Batch<'_>) -> Result<(), ScratchError> {
        let extent = network.extent(network.input);
        let plane = extent.height * extent.width;
        self.spare.resize(extent.elements(), 0.0);
        let Some(input) = self.values.get_mut(network.input) else { return Ok(()) };
        for (at, picture) in input.chunks_exact_mut(extent.elements().max(1)).enumerate() {
            (batch.fetch)(self.start + at, &mut self.spare)?;
            for (channel, values) in self.spare.chunks_exact(plane.max(1)).enumerate() {
                let targets = picture.iter_mut().skip(channel).step_by(extent.channels);
                targets.zip(values).for_each(|(target, &value)| *target = value);
            }
        }
        Ok(())
    }

    fn loss(&mut self, network: &Network, batch: &Batch<'_>) -> Result<(), ScratchError> {
        let classes = network.classes();
        let labels = batch.labels.get(self.start..self.start + self.pictures).unwrap_or_default();
        let logits = self.values.get(network.logits).map_or(&[][..], Vec::as_slice);
        let gradient = self.gradients.get_mut(network.logits).filter(|_| batch.is_training);
        let mut unused = vec![0.0; classes];
        let mut rows = gradient.map(|gradient| gradient.chunks_exact_mut(classes));
        for (logits, &label) in logits.chunks_exact(classes).zip(labels) {
            let row = rows.as_mut().and_then(Iterator::next).unwrap_or(&mut unused);
            // A label is below the number of classes, which is a usize.
            let label = label as usize;
            self.loss += batch.loss.picture(logits, label, None, 1.0 / batch.labels.len() as f32, row);
            self.hits += usize::from(is_hit(logits, label));
        }
        Ok(())
    }

    fn gradient_sums(&mut self, shared: &Shared<'_>, id: LayerId) {
        let (Some(layer), Some(statistics)) = (shared.network.layers.get(id), shared.statistics.get(id)) else {
            return;
        };
        let Kind::Norm(norm) = &layer.kind else { return };
        let mut gradient = self.gradients.get_mut(layer.output).map(std::mem::take).unwrap_or_default();
        self.sums =
            GradientSums::of(self.input(layer, 0), self.value(layer.output), statistics, norm.clamp, &mut gradient);
        put(&mut self.gradients, layer.output, gradient);
    }

    fn forward(
        &mut self,
        shared: &Shared<'_>,
        id: LayerId,
        layer: &Layer,
        output: &mut [f32],
    ) -> Result<(), ScratchError> {
        let network = shared.network;
        let input = layer.inputs.first().and_then(|&id| self.values.get(id)).map_or(&[][..], Vec::as_slice);
        let from = layer.inputs.first().map_or(network.extent(layer.output), |&id| network.extent(id));
        let to = network.extent(layer.output);
        let pictures = input.chunks_exact(from.elements().max(1)).zip(output.chunks_exact_mut(to.elements().max(1)));
        match &layer.kind {
            Kind::Linear { bias, .. } => {
                let Some(conv) = shared.convs.get(id).and_then(Option::as_ref) else { return Ok(()) };
                let bias = bias.map(|bias| network.parameter(bias));
                conv.forward(&mut self.scratch, self.pictures, input, bias, output).map_err(|e| kernel(layer, e))?;
            }
            Kind::Norm(norm) => {
                let Some(statistics) = shared.statistics.get(id) else { return Ok(()) };
                let affine = Affine { scale: network.parameter(norm.scale), shift: network.parameter(norm.shift) };
                norm::forward(input, statistics, affine, norm.clamp, output);
            }
            Kind::Clamp(clamp) => output.iter_mut().zip(input).for_each(|(y, &x)| *y = clamp.cut(x)),
            Kind::Add(clamp) => {
                let other = layer.inputs.get(1).and_then(|&id| self.values.get(id)).map_or(&[][..], Vec::as_slice);
                output.iter_mut().zip(input.iter().zip(other)).for_each(|(y, (a, b))| *y = clamp.cut(a + b));
            }
            Kind::MaxPool(window) => {
                let Some(winners) = self.winners.get_mut(id) else { return Ok(()) };
                winners.resize(self.pictures * to.elements(), 0);
                for ((x, y), winners) in pictures.zip(winners.chunks_exact_mut(to.elements().max(1))) {
                    pool::max_forward((from, to), window, x, y, winners);
                }
            }
            Kind::AveragePool(window, divisor) => {
                pictures.for_each(|(x, y)| pool::average_forward((from, to), (window, *divisor), x, y));
            }
        }
        Ok(())
    }

    /// Gradients of a layer's inputs and parameters; `gradient` is that of its output and may be masked in place.
    fn backward(
        &mut self,
        shared: &Shared<'_>,
        id: LayerId,
        layer: &Layer,
        gradient: &mut [f32],
    ) -> Result<(), ScratchError> {
        if let Kind::Clamp(clamp) | Kind::Add(clamp) = &layer.kind {
            norm::mask(self.value(layer.output), *clamp, gradient);
        }
        self.parameter_gradients(shared, id, layer, gradient)?;
        let first = shared.plan.first.get(id).map_or(&[][..], Vec::as_slice);
        for (&input, &first) in layer.inputs.iter().zip(first) {
            let Some(is_first) = first else { continue };
            let elements = self.value(input).len();
            let mut target = match self.gradients.get_mut(input) {
                Some(gradient) if is_first => std::mem::take(gradient),
                _ => std::mem::take(&mut self.spare),
            };
            target.resize(elements, 0.0);
            self.input_gradient(shared, (id, layer, input), gradient, &mut target)?;
            if is_first {
                put(&mut self.gradients, input, target);
            } else {
                let sums = self.gradients.get_mut(input).map_or(&mut [][..], Vec::as_mut_slice);
                sums.iter_mut().zip(&target).for_each(|(sum, &more)| *sum += more);
                self.spare = target;
            }
        }
        Ok(())
    }

    fn parameter_gradients(
        &mut self,
        shared: &Shared<'_>,
        id: LayerId,
        layer: &Layer,
        gradient: &[f32],
    ) -> Result<(), ScratchError> {
        let Kind::Linear { weight, bias, .. } = &layer.kind else { return Ok(()) };
        let Some(conv) = shared.convs.get(id).and_then(Option::as_ref) else { return Ok(()) };
        let input = layer.inputs.first().and_then(|&id| self.values.get(id)).map_or(&[][..], Vec::as_slice);
        if let Some(sums) = self.parameters.get_mut(*weight) {
            conv.weight_gradient(&mut self.scratch, self.pictures, input, gradient, sums)
                .map_err(|e| kernel(layer, e))?;
        }
        if let Some(sums) = bias.and_then(|bias| self.parameters.get_mut(bias)) {
            conv.bias_gradient(self.pictures, gradient, sums).map_err(|e| kernel(layer, e))?;
        }
        Ok(())
    }

    fn input_gradient(
        &mut self,
        shared: &Shared<'_>,
        (id, layer, input): (LayerId, &Layer, usize),
        gradient: &[f32],
        target: &mut [f32],
    ) -> Result<(), ScratchError> {
        let network = shared.network;
        let (from, to) = (network.extent(input), network.extent(layer.output));
        let each = [from, to].map(|extent| extent.elements().max(1));
        match &layer.kind {
            Kind::Linear { .. } => {
                let Some(conv) = shared.convs.get(id).and_then(Option::as_ref) else { return Ok(()) };
                conv.input_gradient(&mut self.scratch, self.pictures, gradient, target)
                    .map_err(|e| kernel(layer, e))?;
            }
            Kind::Norm(norm) => {
                let (Some(statistics), Some((sums, count))) = (shared.statistics.get(id), shared.sums) else {
                    return Ok(());
                };
                let scale = network.parameter(norm.scale);
                norm::backward(self.value(input), gradient, statistics, scale, (sums, count), target);
            }
            Kind::Clamp(_) | Kind::Add(_) => target.copy_from_slice(gradient),
            Kind::MaxPool(_) => {
                let winners = self.winners.get(id).map_or(&[][..], Vec::as_slice);
                let pictures = winners.chunks_exact(each[1]).zip(gradient.chunks_exact(each[1]));
                for ((winners, gradient), target) in pictures.zip(target.chunks_exact_mut(each[0])) {
                    pool::max_backward(from.channels, winners, gradient, target);
                }
            }
            Kind::AveragePool(window, divisor) => {
                for (gradient, target) in gradient.chunks_exact(each[1]).zip(target.chunks_exact_mut(each[0])) {
                    pool::average_backward((from, to), (window, *divisor), gradient, target);
                }
            }
        }
        Ok(())
    }
}

/// Whether the label has the largest logit; the first of equal ones counts.
fn is_hit(logits: &[f32], label: usize) -> bool {
    let mut best = (0, f32::NEG_INFINITY);
    for (class, &logit) in logits.iter().enumerate() {
        if logit > best.1 {
            best = (class, logit);
        }
    }
    best.0 == label
}

fn put(list: &mut [Vec<f32>], at: usize, values: Vec<f32>) {
    if let Some(place) = list.get_mut(at) {
        *place = values;
    }
}

fn kernel(layer: &Layer, source: chipfit_kernels::KernelError) -> ScratchError {
    ScratchError::Kernel { node: layer.name.clone(), source }
}
