//! The training graph: layers over maps of `[height, width, channels]` in f32, and the parameters they share.
//!
//! A [`Network`] is what `read` makes of an ONNX model and what `write` puts back into it. Values are numbered; each has
//! one extent, without the batch. A fully connected layer is a convolution whose kernel covers its whole input, so that
//! flattening moves nothing; [`Layout`] says in which order ONNX keeps the same numbers.

use chipfit_kernels::ConvGeometry;

/// Number of a value: a tensor that flows between layers.
pub(super) type ValueId = usize;
/// Number of a parameter.
pub(super) type ParameterId = usize;

/// Height, width and channels of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// Rows.
    pub(super) height: usize,
    /// Columns.
    pub(super) width: usize,
    /// Channels, next to each other.
    pub(super) channels: usize,
}

impl Extent {
    /// Elements of one picture.
    pub(super) fn elements(self) -> usize {
        self.height * self.width * self.channels
    }
}

/// Bounds that an activation cuts at; the gradient passes strictly between them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Clamp {
    /// Least value; minus infinity for none.
    pub(super) low: f32,
    /// Greatest value; infinity for none.
    pub(super) high: f32,
}

impl Clamp {
    /// No bounds.
    pub(super) const NONE: Self = Self { low: f32::NEG_INFINITY, high: f32::INFINITY };

    /// The value between the bounds.
    pub(super) fn cut(self, x: f32) -> f32 {
        // Not `clamp`: it panics when a file's bounds are the wrong way round or no number.
        let raised = if x > self.low { x } else { self.low };
        if raised < self.high { raised } else { self.high }
    }

    /// Whether the gradient of an output `y` passes.
    pub(super) fn passes(self, y: f32) -> bool {
        self.low < y && y < self.high
    }

    /// Whether there are no bounds.
    pub(super) fn is_none(self) -> bool {
        self == Self::NONE
    }
}

/// A window that slides over a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    /// Rows and columns.
    pub(super) kernel: [usize; 2],
    /// Steps down and right.
    pub(super) stride: [usize; 2],
    /// Top, left, bottom, right.
    pub(super) pads: [usize; 4],
}

impl Window {
    /// The rows or columns of the input that position `at` of the output covers, inside `0..length`.
    pub(super) fn covered(&self, axis: usize, at: usize, length: usize) -> std::ops::Range<usize> {
        let start = at * self.stride[axis];
        let end = (start + self.kernel[axis]).saturating_sub(self.pads[axis]).min(length);
        start.saturating_sub(self.pads[axis]).min(end)..end
    }
}

/// What an average is divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Divisor {
    /// All taps of the window.
    Kernel,
    /// The taps that lie inside the input.
    Inside,
}

/// Batch normalisation: `y = clamp(scale * (x - mean) / sqrt(variance + epsilon) + shift)`.
#[derive(Clone, Debug)]
pub(super) struct Norm {
    /// Factor, one per channel.
    pub(super) scale: ParameterId,
    /// Summand, one per channel.
    pub(super) shift: ParameterId,
    /// Names of the initializers of running mean and variance.
    pub(super) running_names: [String; 2],
    /// Running mean and variance, one per channel.
    pub(super) running: [Vec<f32>; 2],
    /// Added to the variance.
    pub(super) epsilon: f32,
    /// What the running statistics keep of themselves at each step.
    pub(super) momentum: f32,
    /// The activation behind it.
    pub(super) clamp: Clamp,
}

/// What a layer computes.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    /// A convolution or a fully connected layer.
    Linear {
        /// Its shapes.
        geometry: ConvGeometry,
        /// `[out][kernel row][kernel column][in / groups]`.
        weight: ParameterId,
        /// One per output channel.
        bias: Option<ParameterId>,
    },
    /// Batch normalisation and the activation behind it.
    Norm(Norm),
    /// An activation alone.
    Clamp(Clamp),
    /// The sum of two values and the activation behind it.
    Add(Clamp),
    /// Maxima; padding never wins.
    MaxPool(Window),
    /// Means.
    AveragePool(Window, Divisor),
}

/// One layer.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    /// Name of its ONNX node.
    pub(super) name: String,
    /// What it computes.
    pub(super) kind: Kind,
    /// One value, or two for a sum.
    pub(super) inputs: Vec<ValueId>,
    /// What it makes.
    pub(super) output: ValueId,
}

/// The order in which ONNX keeps a parameter's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// The same.
    Same,
    /// `[out][in / groups][kernel row][kernel column]`.
    Filters {
        /// Input channels of a group.
        inner: usize,
        /// Rows times columns of the kernel.
        taps: usize,
    },
    /// `[in channel][row][column][out]`.
    Columns {
        /// Outputs.
        outputs: usize,
        /// Channels of the input.
        inner: usize,
        /// Rows times columns of the input.
        taps: usize,
    },
}

impl Layout {
    /// Where ONNX keeps element `at`.
    fn onnx_position(self, at: usize) -> usize {
        match self {
            Self::Same => at,
            Self::Filters { inner, taps } => {
                let (out, tap, channel) = (at / (inner * taps), at / inner % taps, at % inner);
                (out * inner + channel) * taps + tap
            }
            Self::Columns { outputs, inner, taps } => {
                let (out, tap, channel) = (at / (inner * taps), at / inner % taps, at % inner);
                (channel * taps + tap) * outputs + out
            }
        }
    }

    /// ONNX's elements in the layers' order.
    pub(super) fn of_onnx(self, values: &[f32]) -> Vec<f32> {
        (0..values.len()).map(|at| values.get(self.onnx_position(at)).copied().unwrap_or(0.0)).collect()
    }

    /// The layers' elements in ONNX's order.
    pub(super) fn to_onnx(self, values: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; values.len()];
        for (at, &value) in values.iter().enumerate() {
            if let Some(place) = out.get_mut(self.onnx_position(at)) {
                *place = value;
            }
        }
        out
    }
}

/// What a parameter does, which decides how it starts and whether it decays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Weights of a convolution or fully connected layer.
    Weight {
        /// Products that one output sums up.
        fan_in: usize,
    },
    /// Bias of such a layer.
    Bias,
    /// Factor of a normalisation.
    Scale,
    /// Summand of a normalisation.
    Shift,
}

/// A trained tensor.
#[derive(Clone, Debug)]
pub(super) struct Parameter {
    /// Name of its initializer.
    pub(super) name: String,
    /// What it does.
    pub(super) role: Role,
    /// ONNX's shape.
    pub(super) dims: Vec<usize>,
    /// ONNX's order.
    pub(super) layout: Layout,
}

/// A network to be trained.
#[derive(Clone, Debug)]
pub struct Network {
    /// One per value.
    pub(super) extents: Vec<Extent>,
    /// The pictures.
    pub(super) input: ValueId,
    /// One number per class, before any softmax.
    pub(super) logits: ValueId,
    /// In an order in which each comes after what it reads.
    pub(super) layers: Vec<Layer>,
    /// What is trained.
    pub(super) parameters: Vec<Parameter>,
    /// One per parameter: its elements, in the layers' order.
    pub(super) values: Vec<Vec<f32>>,
}

impl Network {
    /// Channels, rows and columns of a picture, as the model's input has them.
    pub fn picture(&self) -> [usize; 3] {
        let Extent { height, width, channels } = self.extent(self.input);
        [channels, height, width]
    }

    /// Classes that it tells apart.
    pub fn classes(&self) -> usize {
        self.extent(self.logits).channels
    }

    /// Trained numbers; running statistics are not counted.
    pub fn parameter_count(&self) -> usize {
        self.values.iter().map(Vec::len).sum()
    }

    /// Multiplications of one forward pass of one picture, taps on padding included.
    pub fn macs(&self) -> u64 {
        let macs = self.layers.iter().map(|layer| match &layer.kind {
            Kind::Linear { geometry, .. } => geometry.macs(),
            _ => 0,
        });
        macs.sum()
    }

    pub(super) fn extent(&self, value: ValueId) -> Extent {
        self.extents.get(value).copied().unwrap_or(Extent { height: 0, width: 0, channels: 0 })
    }

    pub(super) fn parameter(&self, id: ParameterId) -> &[f32] {
        self.values.get(id).map_or(&[], Vec::as_slice)
    }
}
