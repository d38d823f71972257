//! The order of work: runs that every chunk of pictures does alone, with a meeting of all chunks behind each.
//!
//! Only batch normalisation needs to know of other pictures: forward for mean and variance, backward for two sums. A run
//! ends with a chunk's share of those; then they are joined, and the next run begins. All else of a network lies inside
//! runs, so that a chunk's values are still in the cache when the next layer reads them.

use super::graph::{Kind, Network, ValueId};

/// Number of a layer.
pub(super) type LayerId = usize;

/// A piece of work on one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Fetches the pictures.
    Load,
    /// Computes a layer.
    Forward(LayerId),
    /// A chunk's share of a normalisation's mean and variance. Always the last of its run.
    Moments(LayerId),
    /// Loss and hits; with the gradient of the logits where there is a way back.
    Loss,
    /// Takes the gradient through a layer.
    Backward(LayerId),
    /// A chunk's share of a normalisation's gradient sums. Always the last of its run.
    Sums(LayerId),
}

/// The runs of a training step and of an evaluation.
#[derive(Clone, Debug, Default)]
pub(super) struct Plan {
    /// Forward with batch statistics, loss, backward.
    pub(super) training: Vec<Vec<Step>>,
    /// Forward with running statistics, loss.
    pub(super) evaluation: Vec<Step>,
    /// For each layer and each of its inputs, whether its gradient is the first that the value gets on the way back, and
    /// so replaces what lies there; `None` where no gradient is needed.
    pub(super) first: Vec<Vec<Option<bool>>>,
}

impl Plan {
    /// The plan of a network.
    pub(super) fn new(network: &Network) -> Self {
        let mut training = Vec::new();
        let mut run = vec![Step::Load];
        let mut meet = |run: &mut Vec<Step>, last| {
            run.push(last);
            training.push(std::mem::take(run));
        };
        let is_norm =
            |layer: LayerId| matches!(network.layers.get(layer).map(|layer| &layer.kind), Some(Kind::Norm(_)));
        let layers = 0..network.layers.len();
        for layer in layers.clone() {
            if is_norm(layer) {
                meet(&mut run, Step::Moments(layer));
            }
            run.push(Step::Forward(layer));
        }
        run.push(Step::Loss);
        for layer in layers.clone().rev() {
            if is_norm(layer) {
                meet(&mut run, Step::Sums(layer));
            }
            run.push(Step::Backward(layer));
        }
        training.push(run);
        let forward = layers.map(Step::Forward);
        let evaluation = std::iter::once(Step::Load).chain(forward).chain([Step::Loss]).collect();
        Self { training, evaluation, first: first_gradients(network) }
    }
}

fn first_gradients(network: &Network) -> Vec<Vec<Option<bool>>> {
    let mut has_gradient = vec![false; network.extents.len()];
    let mut meet = |value: ValueId| {
        if value == network.input {
            return None;
        }
        let had = has_gradient.get_mut(value)?;
        Some(!std::mem::replace(had, true))
    };
    let mut first: Vec<Vec<Option<bool>>> =
        network.layers.iter().rev().map(|layer| layer.inputs.iter().map(|&value| meet(value)).collect()).collect();
    first.reverse();
    first
}
