//! The integer program: what the processor executes, step by step.
//!
//! A tensor of the program is one integer tensor of the QDQ model (the output of a QuantizeLinear), one picture
//! at a time: axis 0 of the model is the batch and no step mixes pictures. Bytes are *biased*: a uint8 tensor is
//! stored as it is, an int8 tensor as `value + 128` (that is, with bit 7 inverted), with its zero point shifted
//! likewise, so that one set of kernels serves both. [`Tensor::to_word`] gives the word that the chip would store,
//! and faults act on that word.
//!
//! Layout: rank 3 and up (without the batch: 2 and up) is stored channels last: the model's `[C, H, W]` lies as
//! `[H][W][C]`; anything of lower rank is row-major. *Output index* in this crate always counts in that layout.
//!
//! Products of one output element come in the order kernel row, kernel column, input channel within the group.
//! Gemm and MatMul with constant weights are [`Linear`] steps with a 1x1 kernel.

use std::collections::BTreeMap;

pub use chipfit_kernels::ConvGeometry;

use crate::lower::LowerOptions;
pub use crate::ops::FloatStep;

/// How the names of tensors begin that the model does not have: where one node of the model takes several steps.
pub const INTERNAL: &str = "chipfit:";

/// Index of a tensor in [`Program::tensors`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TensorId(pub usize);

/// Index of a step in [`Program::steps`]; it keys the draws of faults ("layer").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StepId(pub usize);

/// The integer type that the model gives a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// 0 to 255.
    Unsigned,
    /// -128 to 127, stored biased by 128.
    Signed,
}

/// One integer tensor, per picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// The ONNX name of the integer tensor.
    pub name: String,
    /// The model's shape without the batch axis, for instance `[C, H, W]` or `[features]`.
    pub shape: Vec<usize>,
    /// The model's integer type.
    pub word: Word,
    /// Real value of one step; finite and above zero.
    pub scale: f32,
    /// Zero point in biased bytes (`model's zero point + 128` for int8).
    pub zero_point: u8,
}

impl Tensor {
    /// Whether the model has no such tensor: a step between two steps of one node.
    pub fn is_internal(&self) -> bool {
        self.name.starts_with(INTERNAL)
    }

    /// Number of elements of one picture.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the bytes lie channels last (rank 2 and up without the batch).
    pub fn is_channels_last(&self) -> bool {
        self.shape.len() >= 2
    }

    /// Number of channels: the first axis; what a channel mask and a protected group refer to.
    pub fn channels(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    /// The stored word (two's complement for int8) of a biased byte. Its own inverse: [`Tensor::from_word`].
    pub fn to_word(&self, biased: u8) -> u8 {
        match self.word {
            Word::Unsigned => biased,
            Word::Signed => biased ^ 0x80,
        }
    }

    /// The biased byte of a stored word.
    pub fn from_word(&self, word: u8) -> u8 {
        self.to_word(word)
    }

    /// The real value of a biased byte: `scale * (byte - zero_point)`, one fp32 rounding.
    pub fn real(&self, biased: u8) -> f32 {
        self.scale * (i32::from(biased) - i32::from(self.zero_point)) as f32
    }
}

/// How an accumulator becomes a byte. `docs/fault-model.md`, section Arithmetic.
#[derive(Clone, Debug, PartialEq)]
pub enum Rescale {
    /// `onnx`: `round_half_even(fl32(fl32(acc) * multiplier))`; one multiplier per output channel.
    Float(Vec<f32>),
    /// `fixed`: saturating rounding doubling high multiply by `multipliers`, then rounding shift right by
    /// `-shift` (shift left first where `shift` is positive), as TFLite's reference kernels do.
    Fixed {
        /// Q31 multipliers, one per output channel.
        multipliers: Vec<i32>,
        /// Exponents, one per output channel.
        shifts: Vec<i32>,
    },
}

/// A convolution or a product with a constant matrix.
///
/// `acc = bias[o] + sum over k of (x_k - x_zero_point) * (w_k - w_zero_point[o])` in int32, wrapping;
/// `y = clamp(rescale(acc) + y_zero_point, low, high)` in biased bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    /// Map sizes, kernel, stride, dilation, pads, groups.
    pub geometry: ConvGeometry,
    /// `[out][kernel row][kernel column][in / groups]`; uint8 weights are stored minus 128.
    pub weights: Vec<i8>,
    /// One per output channel, in the terms of `weights`; all zero in models with symmetric weights.
    pub weight_zero_points: Vec<i16>,
    /// One per output channel.
    pub bias: Vec<i32>,
    /// Accumulator to byte.
    pub rescale: Rescale,
    /// Lowest biased byte (a Relu that the model keeps raises it).
    pub low: u8,
    /// Highest biased byte.
    pub high: u8,
    /// ONNX name of the integer weights' initializer.
    pub weights_name: String,
    /// ONNX name of the bias initializer, if there is one.
    pub bias_name: Option<String>,
    /// Real value of one step of the weights, one per output channel.
    pub weight_scales: Vec<f32>,
}

impl Linear {
    /// Products per output: K of the contract.
    pub fn products(&self) -> usize {
        self.geometry.products()
    }

    /// Bits that `mul` exposes per MAC: 16 when all weight zero points are 0 in the model's own terms, else 17.
    pub fn product_bits(&self) -> u32 {
        if self.weight_zero_points.iter().all(|&z| z == 0) { 16 } else { 17 }
    }

    /// MACs of one picture.
    pub fn macs(&self) -> u64 {
        self.geometry.macs()
    }
}

/// A product of two activations, `[batch.., rows, inner] x [batch.., inner, columns]`; executed by plain loops.
#[derive(Clone, Debug, PartialEq)]
pub struct MatMul {
    /// Number of independent products.
    pub batch: usize,
    /// Rows of the left operand.
    pub rows: usize,
    /// Products per output.
    pub inner: usize,
    /// Columns of the right operand.
    pub columns: usize,
    /// Rescale with one multiplier.
    pub rescale: Rescale,
}

/// A byte that a [`Op::Move`] copies, or the fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The input's byte at this index.
    Byte(u32),
    /// The step's fill byte.
    Fill,
}

/// A window of a pool; sizes of the map come from the tensors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Height and width.
    pub kernel: [usize; 2],
    /// Rows and columns.
    pub stride: [usize; 2],
    /// Rows and columns.
    pub dilation: [usize; 2],
    /// Top, left, bottom, right.
    pub pads: [usize; 4],
    /// AveragePool: whether padding counts in the divisor.
    pub count_include_pad: bool,
}

/// What a step computes. The formulas stand at the executors in `ops`, and in `docs/fault-model.md`.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Op {
    /// Conv, Gemm, MatMul with constant weights: the steps with `mul` and `acc`.
    Linear(Box<Linear>),
    /// MatMul of two activations; has `mul` and `acc`, too.
    MatMul(MatMul),
    /// Sum of two tensors of one shape, or with the second broadcast (per channel or scalar).
    Add,
    /// Product of two tensors, element by element, broadcast as in `Add`.
    Mul,
    /// Along the channels (`axis` counts without the batch, in the model's order); rescaled by one table per input.
    Concat {
        /// Axis of the model's shape, without the batch.
        axis: usize,
        /// Biased byte in, biased byte out, one per input; `None` copies.
        tables: Vec<Option<Box<[u8; 256]>>>,
    },
    /// Largest byte of a window; padding never wins.
    MaxPool(Window),
    /// Mean of a window.
    AveragePool(Window),
    /// Mean over all positions, per channel.
    GlobalAveragePool,
    /// Any function of one byte: Relu, Clip, LeakyRelu, HardSwish, Sigmoid, Tanh, a change of scale.
    Table(Box<[u8; 256]>),
    /// Reshape, Flatten, Transpose, Pad, Slice, Resize (nearest), DepthToSpace: output byte i is a byte of the
    /// input, or the fill.
    Move {
        /// One per output element, in the tensors' layout; shared because long.
        sources: Vec<Source>,
        /// Biased byte for [`Source::Fill`].
        fill: u8,
    },
    /// A constant operand of Add, Mul, Concat or MatMul: its bytes in the output tensor's layout. No inputs.
    Constant(Vec<u8>),
    /// A piece of the model kept in float (`float_fallback`): dequantise, evaluate, quantise.
    Float(Box<FloatStep>),
}

/// One node of the model, with what was fused into it.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Name of the ONNX node, or its label when it has none.
    pub name: String,
    /// ONNX operator.
    pub op_type: String,
    /// What it computes.
    pub op: Op,
    /// Integer inputs.
    pub inputs: Vec<TensorId>,
    /// Integer output.
    pub output: TensorId,
}

/// What happens to the last integer tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// The model's output is the dequantised tensor.
    Dequantize,
    /// Then Softmax over the classes, in float.
    Softmax,
}

/// A lowered model. Steps are in execution order; every tensor but the input is written by exactly one step.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    pub(crate) tensors: Vec<Tensor>,
    pub(crate) steps: Vec<Step>,
    pub(crate) input: TensorId,
    pub(crate) output: TensorId,
    pub(crate) head: Head,
    /// Name and shape (without the batch) of the model's float input.
    pub(crate) input_name: String,
    /// What the lowering did that the user should know.
    pub(crate) warnings: Vec<String>,
    /// How the model was lowered.
    pub(crate) options: LowerOptions,
}

impl Program {
    /// How the model was lowered.
    pub fn options(&self) -> &LowerOptions {
        &self.options
    }

    /// Whether `other` has the same tensors and steps but for scales, zero points and constants.
    pub fn has_structure_of(&self, other: &Self) -> bool {
        let same_tensor = |a: &Tensor, b: &Tensor| a.name == b.name && a.shape == b.shape && a.word == b.word;
        let same_step = |a: &Step, b: &Step| {
            let same_op = match (&a.op, &b.op) {
                (Op::Linear(a), Op::Linear(b)) => {
                    a.geometry == b.geometry
                        && a.weights_name == b.weights_name
                        && a.bias_name == b.bias_name
                        && a.product_bits() == b.product_bits()
                }
                (a, b) => std::mem::discriminant(a) == std::mem::discriminant(b),
            };
            same_op && a.name == b.name && a.inputs == b.inputs && a.output == b.output
        };
        let (tensors, steps) = (self.tensors.iter().zip(&other.tensors), self.steps.iter().zip(&other.steps));
        self.tensors.len() == other.tensors.len()
            && self.steps.len() == other.steps.len()
            && (self.input, self.output, self.head) == (other.input, other.output, other.head)
            && tensors.into_iter().all(|(a, b)| same_tensor(a, b))
            && steps.into_iter().all(|(a, b)| same_step(a, b))
    }

    /// The integer tensors.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The steps in execution order.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// The quantised input.
    pub fn input(&self) -> TensorId {
        self.input
    }

    /// The last integer tensor: the logits.
    pub fn output(&self) -> TensorId {
        self.output
    }

    /// What follows the last integer tensor.
    pub fn head(&self) -> Head {
        self.head
    }

    /// Name of the model's float input.
    pub fn input_name(&self) -> &str {
        &self.input_name
    }

    /// What the lowering did that the user should know: nodes kept in float, biases quantised, outputs left out.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// A tensor. Panics when `id` is another program's.
    pub fn tensor(&self, id: TensorId) -> &Tensor {
        &self.tensors[id.0]
    }

    /// The step that writes each tensor.
    pub fn producers(&self) -> BTreeMap<TensorId, StepId> {
        self.steps.iter().enumerate().map(|(position, step)| (step.output, StepId(position))).collect()
    }

    /// MACs of one picture: all steps with `mul`.
    pub fn macs(&self) -> u64 {
        self.steps.iter().map(|step| self.step_macs(step)).sum()
    }

    /// MACs of one step.
    pub fn step_macs(&self, step: &Step) -> u64 {
        match &step.op {
            Op::Linear(linear) => linear.macs(),
            Op::MatMul(m) => m.batch as u64 * m.rows as u64 * m.inner as u64 * m.columns as u64,
            _ => 0,
        }
    }

    /// Products per output, K of the contract; 0 for steps without `mul`.
    pub fn step_products(&self, step: &Step) -> usize {
        match &step.op {
            Op::Linear(linear) => linear.products(),
            Op::MatMul(m) => m.inner,
            _ => 0,
        }
    }

    /// Quantises float pictures (the model's layout, one after another) to the input tensor's bytes:
    /// `clamp(round_half_even(value / scale) + zero_point)`, channels last. NaN becomes the lowest value, as
    /// in ONNX Runtime.
    pub fn quantise_input(&self, pictures: &[f32]) -> Vec<u8> {
        let tensor = self.tensor(self.input);
        let quantised: Vec<u8> = pictures
            .iter()
            .map(|&value| {
                let steps = (value / tensor.scale).round_ties_even();
                // A cast of NaN gives 0, the lowest byte.
                (steps + f32::from(tensor.zero_point)).clamp(0.0, 255.0) as u8
            })
            .collect();
        to_channels_last(&quantised, &tensor.shape)
    }
}

/// Pictures in the model's layout `[C, ...]` rearranged to `[...][C]`, picture by picture; a copy for rank 1.
pub fn to_channels_last<T: Copy>(bytes: &[T], shape: &[usize]) -> Vec<T> {
    transpose_pictures(bytes, shape, true)
}

/// The inverse of [`to_channels_last`].
pub fn to_model_layout<T: Copy>(bytes: &[T], shape: &[usize]) -> Vec<T> {
    transpose_pictures(bytes, shape, false)
}

fn transpose_pictures<T: Copy>(bytes: &[T], shape: &[usize], to_last: bool) -> Vec<T> {
    let elements: usize = shape.iter().product();
    if shape.len() < 2 || elements == 0 {
        return bytes.to_vec();
    }
    let channels = shape[0];
    let positions = elements / channels;
    let (outer, inner) = if to_last { (positions, channels) } else { (channels, positions) };
    let mut out = Vec::with_capacity(bytes.len());
    for picture in bytes.chunks_exact(elements) {
        for row in 0..outer {
            out.extend((0..inner).map(|column| picture[column * outer + row]));
        }
    }
    out
}
