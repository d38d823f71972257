//! What a campaign acts on, without the model itself: layers and their words, pictures and their clean results.
//!
//! A [`Subject`] lies in the run folder, so that results can be computed and runs be merged where the model and the
//! data are not at hand.

use chipfit_npu::program::Op;
use chipfit_npu::{Program, Site, StepId};
use serde::{Deserialize, Serialize};

/// Layers, pictures and the points of rate curves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subject {
    /// Every step of the program, in execution order.
    pub layers: Vec<Layer>,
    /// Bytes of one picture's output: the classes.
    pub classes: u32,
    /// The pictures that take part, in their drawn order.
    pub pictures: Vec<Picture>,
    /// Of the curves, one after another; empty in a single-fault campaign.
    pub points: Vec<PointFacts>,
}

/// One step of the program, as far as its words are concerned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// Number of the step.
    pub step: usize,
    /// The ONNX node.
    pub name: String,
    /// Its operator.
    pub op_type: String,
    /// Output channels.
    pub channels: u64,
    /// Outputs per channel.
    pub positions: u64,
    /// Products per output, K; 0 for steps without `mul` and `acc`.
    pub products: u64,
    /// Width of a product.
    pub product_bits: u32,
    /// Whether the step has a weight buffer.
    pub has_weights: bool,
    /// Channels of the first input.
    pub input_channels: u64,
    /// Elements per channel of the first input.
    pub input_positions: u64,
    /// MACs of one picture.
    pub macs: u64,
}

/// The words of one site of one layer: `word = (position * channels + channel) * per_channel + place`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Words {
    /// Positions.
    pub positions: u64,
    /// Channels: of the output; of the input at `act`.
    pub channels: u64,
    /// Words at one position and channel.
    pub per_channel: u64,
    /// Width of a word.
    pub bits: u32,
}

impl Layer {
    /// A step of a program; `None` when there is no such step.
    pub fn of(program: &Program, step: StepId) -> Option<Self> {
        let described = program.steps().get(step.0)?;
        let output = program.tensor(described.output);
        let channels = output.channels().max(1);
        let input = described.inputs.first().map(|&id| program.tensor(id));
        let input_channels = input.map_or(1, |t| t.channels().max(1));
        let input_elements = input.map_or(0, |t| t.elements());
        let (product_bits, has_weights) = match &described.op {
            Op::Linear(linear) => (linear.product_bits(), true),
            // Both operands are activations with zero points of their own: products need 17 bits.
            Op::MatMul(_) => (17, false),
            _ => (0, false),
        };
        Some(Self {
            step: step.0,
            name: described.name.clone(),
            op_type: described.op_type.clone(),
            channels: channels as u64,
            positions: (output.elements() / channels) as u64,
            products: program.step_products(described) as u64,
            product_bits,
            has_weights,
            input_channels: input_channels as u64,
            input_positions: (input_elements / input_channels) as u64,
            macs: program.step_macs(described),
        })
    }

    /// The words of a site; `None` where the layer has no such site, or no word there.
    pub fn words(&self, site: Site, lanes: u32) -> Option<Words> {
        let outputs =
            |per_channel, bits| Words { positions: self.positions, channels: self.channels, per_channel, bits };
        let has_products = self.products > 0;
        let words = match site {
            Site::Mul if has_products => outputs(self.products, self.product_bits),
            Site::Acc if has_products => outputs(self.products.div_ceil(u64::from(lanes.max(1))), 32),
            Site::AccOut if has_products => outputs(1, 32),
            Site::Out => outputs(1, 8),
            Site::Weight if self.has_weights => {
                Words { positions: 1, channels: self.channels, per_channel: self.products, bits: 8 }
            }
            Site::Act => {
                Words { positions: self.input_positions, channels: self.input_channels, per_channel: 1, bits: 8 }
            }
            _ => return None,
        };
        (words.count()? > 0).then_some(words)
    }
}

impl Words {
    /// Their number; `None` when it exceeds 64 bits.
    pub fn count(&self) -> Option<u64> {
        self.positions.checked_mul(self.channels)?.checked_mul(self.per_channel)
    }

    /// The number of a word.
    pub const fn word(&self, position: u64, channel: u64, place: u64) -> u64 {
        (position * self.channels + channel) * self.per_channel + place
    }
}

/// One picture and what the fault-free processor says about it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Picture {
    /// Its place in the data set.
    pub index: u64,
    /// Its class.
    pub label: u32,
    /// The clean output's classes from the most likely down, five or as many as there are.
    pub top: Vec<u32>,
    /// Softmax probability of the first of them.
    pub confidence: f64,
}

impl Picture {
    /// The clean top-1 class.
    pub fn class(&self) -> u32 {
        self.top.first().copied().unwrap_or(0)
    }

    /// Whether the clean model is right.
    pub fn is_right(&self) -> bool {
        self.top.first() == Some(&self.label)
    }

    /// Whether the label is among the clean top five.
    pub fn is_in_top5(&self) -> bool {
        self.top.contains(&self.label)
    }
}

/// What the fault model says about one point of a curve.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PointFacts {
    /// Sites, kind and the definition of the rate, in words.
    pub definition: String,
    /// Mean number of flips (struck words for other kinds) in one inference, replicas included.
    pub expected_flips: f64,
}
