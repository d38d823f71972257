//! Passes over a batch: forward with batch statistics, loss, backward, sums of gradients; or an evaluation.
//!
//! A batch is cut into chunks of a fixed number of pictures, which depends on the network only. Chunks run on rayon's
//! threads; whatever is summed over the batch is summed in a chunk first and then over the chunks in order. So results
//! do not depend on the number of threads, to the last bit.

use chipfit_kernels::Isa;
use chipfit_kernels::float::{self, FloatConv};
use rayon::prelude::*;

use super::chunk::Chunk;
use super::error::ScratchError;
use super::graph::{Kind, Network, Role};
use super::norm::{GradientSums, Moments, Statistics};
use super::plan::{LayerId, Plan, Step};
use crate::loss::Loss;

/// Pictures of a chunk.
const CHUNK_PICTURES: usize = 8;
/// The same for networks of so many parameters that a copy of their gradients per chunk would be the larger part.
const LARGE_CHUNK_PICTURES: usize = 32;
/// From this many parameters on.
const LARGE_PARAMETERS: usize = 4 << 20;

/// Writes a picture of the batch, channels first.
pub(super) type Fetch<'a> = &'a (dyn Fn(usize, &mut [f32]) -> Result<(), ScratchError> + Sync);

/// A batch of pictures.
#[derive(Clone, Copy)]
pub(super) struct Batch<'a> {
    /// Writes picture `i` of the batch.
    pub(super) fetch: Fetch<'a>,
    /// Class of each.
    pub(super) labels: &'a [u32],
    /// The loss.
    pub(super) loss: Loss,
    /// Whether there is a way back.
    pub(super) is_training: bool,
}

/// What all chunks read during a run.
#[derive(Clone, Copy)]
pub(super) struct Shared<'a> {
    /// The network.
    pub(super) network: &'a Network,
    /// One per layer; `None` where it is not linear.
    pub(super) convs: &'a [Option<FloatConv>],
    /// The order of work.
    pub(super) plan: &'a Plan,
    /// One per layer; empty where it is no normalisation.
    pub(super) statistics: &'a [Statistics],
    /// Gradient sums of the normalisation that the last run ended with, and the elements of a channel.
    pub(super) sums: Option<(&'a GradientSums, f64)>,
}

/// What a pass found.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Score {
    /// Sum of the pictures' losses.
    pub(super) loss: f64,
    /// Pictures whose label has the largest logit.
    pub(super) hits: usize,
    /// Pictures.
    pub(super) pictures: usize,
}

/// A network with all that a pass needs.
pub(super) struct Engine {
    /// The network. After a change of its parameters, [`Engine::reload`].
    pub(super) network: Network,
    /// One per parameter: the gradient of the mean loss of the last batch.
    pub(super) gradients: Vec<Vec<f32>>,
    convs: Vec<Option<FloatConv>>,
    plan: Plan,
    statistics: Vec<Statistics>,
    chunks: Vec<Chunk>,
    chunk_pictures: usize,
    isa: Isa,
}

impl Engine {
    /// Takes a network, with the machine's best kernels.
    pub(super) fn new(network: Network) -> Result<Self, ScratchError> {
        let isa = Isa::best();
        let conv = |layer: &super::graph::Layer| match &layer.kind {
            Kind::Linear { geometry, .. } => {
                let conv = FloatConv::new(isa, geometry.clone());
                conv.map(Some).map_err(|source| ScratchError::Kernel { node: layer.name.clone(), source })
            }
            _ => Ok(None),
        };
        let convs = network.layers.iter().map(conv).collect::<Result<_, _>>()?;
        let is_large = network.parameter_count() >= LARGE_PARAMETERS;
        let mut engine = Self {
            gradients: network.values.iter().map(|values| vec![0.0; values.len()]).collect(),
            convs,
            plan: Plan::new(&network),
            statistics: vec![Statistics::default(); network.layers.len()],
            chunks: Vec::new(),
            chunk_pictures: if is_large { LARGE_CHUNK_PICTURES } else { CHUNK_PICTURES },
            isa,
            network,
        };
        engine.reload()?;
        Ok(engine)
    }

    /// Hands changed weights to the kernels.
    pub(super) fn reload(&mut self) -> Result<(), ScratchError> {
        let layers = self.convs.par_iter_mut().zip(&self.network.layers);
        layers.try_for_each(|(conv, layer)| match (conv, &layer.kind) {
            (Some(conv), Kind::Linear { weight, .. }) => conv
                .load(self.network.parameter(*weight))
                .map_err(|source| ScratchError::Kernel { node: layer.name.clone(), source }),
            _ => Ok(()),
        })
    }

    /// Forward with batch statistics, loss and backward; updates running statistics and `gradients`.
    pub(super) fn train(&mut self, batch: &Batch<'_>) -> Result<Score, ScratchError> {
        let mut chunks = self.begin(batch);
        let runs = std::mem::take(&mut self.plan.training);
        let done = self.runs(&runs, batch, &mut chunks);
        self.plan.training = runs;
        if done.is_ok() {
            self.sum_parameters(&chunks);
        }
        self.end(chunks, done)
    }

    fn runs(&mut self, runs: &[Vec<Step>], batch: &Batch<'_>, chunks: &mut [Chunk]) -> Result<(), ScratchError> {
        let mut sums: Option<(GradientSums, f64)> = None;
        for run in runs {
            let shared = Shared {
                network: &self.network,
                convs: &self.convs,
                plan: &self.plan,
                statistics: &self.statistics,
                sums: sums.as_ref().map(|(sums, count)| (sums, *count)),
            };
            chunks
                .par_iter_mut()
                .try_for_each(|chunk| run.iter().try_for_each(|&step| chunk.step(&shared, batch, step)))?;
            match run.last() {
                Some(&Step::Moments(layer)) => self.join_moments(layer, chunks),
                Some(&Step::Sums(layer)) => sums = self.join_sums(layer, chunks),
                _ => {}
            }
        }
        Ok(())
    }

    /// Mean and variance of the batch, and the running ones moved towards them.
    fn join_moments(&mut self, layer: LayerId, chunks: &[Chunk]) {
        let mut all = Moments::default();
        chunks.iter().for_each(|chunk| all.merge(&chunk.moments));
        let Some(Kind::Norm(norm)) = self.network.layers.get_mut(layer).map(|layer| &mut layer.kind) else { return };
        let mean: Vec<f32> = all.mean.iter().map(|&mean| mean as f32).collect();
        let variance: Vec<f32> = all.squares.iter().map(|&squares| (squares / all.count) as f32).collect();
        let [running_mean, running_variance] = &mut norm.running;
        for (running, now) in [(running_mean, &mean), (running_variance, &variance)] {
            for (running, now) in running.iter_mut().zip(now) {
                *running = norm.momentum * *running + (1.0 - norm.momentum) * now;
            }
        }
        if let Some(statistics) = self.statistics.get_mut(layer) {
            *statistics = Statistics::new(&mean, &variance, norm.epsilon);
        }
    }

    /// Gradient sums of the batch, which are also the gradients of scale and shift; with the elements of a channel.
    fn join_sums(&mut self, layer: LayerId, chunks: &[Chunk]) -> Option<(GradientSums, f64)> {
        let mut all = GradientSums::default();
        chunks.iter().for_each(|chunk| all.merge(&chunk.sums));
        let layer = self.network.layers.get(layer)?;
        let Kind::Norm(norm) = &layer.kind else { return None };
        for (parameter, sums) in [(norm.scale, &all.scale), (norm.shift, &all.shift)] {
            let gradient = self.gradients.get_mut(parameter)?;
            gradient.iter_mut().zip(sums).for_each(|(gradient, &sum)| *gradient = sum as f32);
        }
        let extent = self.network.extent(layer.output);
        let pictures: usize = chunks.iter().map(|chunk| chunk.pictures).sum();
        Some((all, (pictures * extent.height * extent.width) as f64))
    }

    /// Gradients of weights and biases, over the chunks in order.
    fn sum_parameters(&mut self, chunks: &[Chunk]) {
        let is_linear: Vec<bool> = (0..self.gradients.len()).map(|id| self.is_linear(id)).collect();
        let isa = self.isa;
        let parameters = self.gradients.par_iter_mut().enumerate().zip(is_linear);
        parameters.filter(|(_, is_linear)| *is_linear).for_each(|((id, gradient), _)| {
            gradient.fill(0.0);
            for sums in chunks.iter().filter_map(|chunk| chunk.parameters.get(id)) {
                // Both have the parameter's length.
                let _ = float::add(isa, sums, gradient);
            }
        });
    }

    /// Whether a parameter's gradient is summed chunk by chunk; a normalisation's comes from its own sums.
    fn is_linear(&self, id: usize) -> bool {
        let role = self.network.parameters.get(id).map(|parameter| parameter.role);
        matches!(role, Some(Role::Weight { .. } | Role::Bias))
    }

    /// Loss and hits with running statistics; optionally the logits, picture after picture.
    pub(super) fn evaluate(&mut self, batch: &Batch<'_>, logits: Option<&mut Vec<f32>>) -> Result<Score, ScratchError> {
        for (layer, statistics) in self.network.layers.iter().zip(&mut self.statistics) {
            if let Kind::Norm(norm) = &layer.kind {
                let [mean, variance] = &norm.running;
                *statistics = Statistics::new(mean, variance, norm.epsilon);
            }
        }
        let mut chunks = self.begin(batch);
        let run = std::mem::take(&mut self.plan.evaluation);
        let done = self.runs(std::slice::from_ref(&run), batch, &mut chunks);
        self.plan.evaluation = run;
        if let Some(all) = logits {
            let found = chunks.iter().filter_map(|chunk| chunk.values.get(self.network.logits));
            found.for_each(|values| all.extend_from_slice(values));
        }
        self.end(chunks, done)
    }

    /// Chunks for the pictures of a batch.
    fn begin(&mut self, batch: &Batch<'_>) -> Vec<Chunk> {
        let pictures = batch.labels.len();
        let mut chunks = std::mem::take(&mut self.chunks);
        chunks.resize_with(pictures.div_ceil(self.chunk_pictures), || Chunk::new(&self.network));
        for (at, chunk) in chunks.iter_mut().enumerate() {
            let start = at * self.chunk_pictures;
            chunk.prepare(&self.network, start, self.chunk_pictures.min(pictures - start), batch.is_training);
        }
        chunks
    }

    fn end(&mut self, chunks: Vec<Chunk>, done: Result<(), ScratchError>) -> Result<Score, ScratchError> {
        let mut score = Score::default();
        for chunk in &chunks {
            score.loss += chunk.loss;
            score.hits += chunk.hits;
            score.pictures += chunk.pictures;
        }
        self.chunks = chunks;
        done.map(|()| score)
    }
}
