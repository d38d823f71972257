//! One step of the program, prepared for the instruction set: packed weights, constants, tables.
//!
//! Promises: fault-free bytes equal to those of the twin; nothing here knows of faults.

use chipfit_kernels::{Add, Conv, Fixed, Isa, KernelError, OutputBlock, Place, Pool, Requantize, Rounding, Scratch};
use chipfit_kernels::{lookup, sum_positions};

use crate::ops;
use crate::ops::formula::{Addition, Pooling};
use crate::program::{ConvGeometry, Linear, Op, Program, Rescale, Source, Step, Word};

/// How an accumulator becomes a byte, in the kernels' terms.
#[derive(Clone, Debug)]
pub(crate) enum Finish {
    Float(Requantize),
    Fixed(Fixed),
}

impl Finish {
    pub(crate) fn new(rescale: &Rescale, zero_point: u8, low: u8, high: u8) -> Self {
        let [zero_point, low, high] = [zero_point, low, high].map(i32::from);
        match rescale {
            Rescale::Float(multipliers) => {
                Self::Float(Requantize { multipliers: multipliers.clone(), zero_point, low, high })
            }
            Rescale::Fixed { multipliers, shifts } => {
                Self::Fixed(Fixed { multipliers: multipliers.clone(), shifts: shifts.clone(), zero_point, low, high })
            }
        }
    }

    /// The biased byte of an accumulator.
    pub(crate) fn apply(&self, channel: usize, accumulator: i32) -> u8 {
        match self {
            Self::Float(float) => {
                // Within -255..=255, adding 1.5 * 2^23 rounds half to even into the low bits.
                const ROUND: f32 = 12_582_912.0;
                let product = accumulator as f32 * float.multipliers[channel];
                let limited =
                    product.max((float.low - float.zero_point) as f32).min((float.high - float.zero_point) as f32);
                let steps = (limited + ROUND).to_bits().wrapping_sub(ROUND.to_bits()).cast_signed();
                (steps + float.zero_point) as u8
            }
            Self::Fixed(fixed) => fixed.apply(channel, accumulator),
        }
    }

    /// Accumulators that contain all those whose byte is `byte`, up to 2^30 in size; `None` where rounding is in fixed
    /// point, or where sums of a larger size could occur.
    ///
    /// The caller's accumulators must be below 2^30 in size.
    pub(crate) fn interval(&self, channel: usize, byte: u8) -> Option<[i32; 2]> {
        const MOST: f64 = (1 << 30) as f64;
        let Self::Float(float) = self else { return None };
        let multiplier = f64::from(float.multipliers[channel]);
        if multiplier < 1e-9 {
            return None;
        }
        let byte = i32::from(byte);
        // Half a step either way, and what fp32 rounding may add, generously.
        let end = |steps: f64, outward: f64| {
            let sum = steps / multiplier;
            (sum + outward * (2.0 + sum.abs() * 1e-6)).clamp(-MOST, MOST)
        };
        let steps = f64::from(byte - float.zero_point);
        let low = if byte <= float.low { -MOST } else { end(steps - 0.5, -1.0).floor() };
        let high = if byte >= float.high { MOST } else { end(steps + 0.5, 1.0).ceil() };
        Some([low as i32, high as i32])
    }

    pub(crate) fn borrowed(&self) -> chipfit_kernels::Rescale<'_> {
        match self {
            Self::Float(float) => float.into(),
            Self::Fixed(fixed) => fixed.into(),
        }
    }
}

/// A linear step with its weights packed.
#[derive(Clone, Debug)]
pub(crate) struct LinearKernel {
    conv: Conv,
    pub(crate) finish: Finish,
    /// Output height and width.
    pub(crate) map: [usize; 2],
    /// Whether every fault-free accumulator is below 2^30 in size.
    pub(crate) is_bounded: bool,
    /// Where weight zero points are not all 0: sums of the activations, one channel per group, and those zero points.
    sums: Option<(Conv, Vec<i16>)>,
}

impl LinearKernel {
    pub(crate) fn new(isa: Isa, linear: &Linear, zero_points: [u8; 2]) -> Result<Self, KernelError> {
        let [input, output] = zero_points;
        let conv = Conv::new(isa, linear.geometry.clone(), &linear.weights, &linear.bias, input)?;
        let sums = if linear.weight_zero_points.iter().all(|&zero| zero == 0) {
            None
        } else {
            let groups = linear.geometry.groups;
            let geometry = ConvGeometry { out_channels: groups, ..linear.geometry.clone() };
            let ones = vec![1; groups * geometry.products()];
            Some((Conv::new(isa, geometry, &ones, &vec![0; groups], input)?, linear.weight_zero_points.clone()))
        };
        let finish = Finish::new(&linear.rescale, output, linear.low, linear.high);
        let bias = linear.bias.iter().map(|bias| u64::from(bias.unsigned_abs())).max().unwrap_or(0);
        let is_bounded = bias.saturating_add((linear.products() as u64).saturating_mul(255 * 255)) < 1 << 30;
        Ok(Self { map: conv.output(), conv, finish, is_bounded, sums })
    }

    /// Whether all weight zero points are 0.
    pub(crate) fn is_symmetric(&self) -> bool {
        self.sums.is_none()
    }

    /// Bytes of packed weights.
    pub(crate) fn bytes(&self) -> usize {
        self.conv.bytes() + self.sums.as_ref().map_or(0, |(conv, _)| conv.bytes())
    }

    /// All outputs of the pictures of `input`, divided among as many threads as there are scratches.
    pub(crate) fn run(&self, input: &[u8], out: &mut [u8], scratches: &mut [Scratch]) -> Result<(), KernelError> {
        if self.sums.is_some() {
            return self.run_shifted(input, out, scratches);
        }
        match scratches {
            [] => self.conv.run(input, 0..self.map[0], self.finish.borrowed(), out, &mut Scratch::new()),
            [scratch] => self.conv.run(input, 0..self.map[0], self.finish.borrowed(), out, scratch),
            many => self.run_divided(input, out, many),
        }
    }

    /// Whether [`LinearKernel::run_probed`] works with so many threads.
    pub(crate) fn is_probed(&self, threads: usize) -> bool {
        self.sums.is_none() && threads == 1
    }

    /// All outputs, and the accumulators of some.
    pub(crate) fn run_probed(
        &self,
        input: &[u8],
        out: &mut [u8],
        places: &[Place],
        sums: &mut [i32],
        scratch: &mut Scratch,
    ) -> Result<(), KernelError> {
        self.conv.run_probed(input, self.finish.borrowed(), out, places, sums, scratch)
    }

    /// One picture, divided by rows, or by channels where the map has few rows.
    fn run_divided(&self, input: &[u8], out: &mut [u8], scratches: &mut [Scratch]) -> Result<(), KernelError> {
        let geometry = self.conv.geometry();
        let threads = scratches.len();
        let rows = self.map[0];
        if rows >= 8 * threads {
            let line = self.map[1] * geometry.out_channels;
            let mut results: Vec<Result<(), KernelError>> = vec![Ok(()); threads];
            rayon::scope(|scope| {
                let mut rest = out;
                for (thread, (scratch, result)) in scratches.iter_mut().zip(&mut results).enumerate() {
                    let range = rows * thread / threads..rows * (thread + 1) / threads;
                    let (part, after) = rest.split_at_mut(range.len() * line);
                    rest = after;
                    let task = move || *result = self.conv.run(input, range, self.finish.borrowed(), part, scratch);
                    if thread + 1 == threads { task() } else { scope.spawn(move |_| task()) }
                }
            });
            return results.into_iter().collect();
        }
        let step = self.conv.channel_step();
        let blocks = geometry.out_channels.div_ceil(step);
        if blocks < 2 {
            return self.conv.run(input, 0..rows, self.finish.borrowed(), out, &mut scratches[0]);
        }
        let mut results: Vec<Result<(), KernelError>> = vec![Ok(()); threads];
        let mut rest = OutputBlock::new(out, geometry.out_channels)?;
        rayon::scope(|scope| {
            for (thread, (scratch, result)) in scratches.iter_mut().zip(&mut results).enumerate() {
                let end =
                    if thread + 1 == threads { geometry.out_channels } else { blocks * (thread + 1) / threads * step };
                let (part, after) = rest.split_channels(end);
                rest = after;
                let task = move || *result = self.conv.run_block(input, 0..rows, self.finish.borrowed(), part, scratch);
                if thread + 1 == threads { task() } else { scope.spawn(move |_| task()) }
            }
        });
        results.into_iter().collect()
    }

    /// With weight zero points: `sum (x - x0) * (w - w0) = sum (x - x0) * w - w0 * sum (x - x0)`.
    fn run_shifted(&self, input: &[u8], out: &mut [u8], scratches: &mut [Scratch]) -> Result<(), KernelError> {
        let mut accumulators = vec![0; out.len()];
        let mut own = Scratch::new();
        self.accumulate(input, 0..self.map[0], &mut accumulators, scratches.first_mut().unwrap_or(&mut own))?;
        let channels = self.conv.geometry().out_channels;
        for (index, (byte, sum)) in out.iter_mut().zip(accumulators).enumerate() {
            *byte = self.finish.apply(index % channels, sum);
        }
        Ok(())
    }

    /// The accumulators of some output rows.
    pub(crate) fn accumulate(
        &self,
        input: &[u8],
        rows: std::ops::Range<usize>,
        out: &mut [i32],
        scratch: &mut Scratch,
    ) -> Result<(), KernelError> {
        self.conv.accumulate(input, rows.clone(), out, scratch)?;
        let Some((sums, zero_points)) = &self.sums else { return Ok(()) };
        let geometry = self.conv.geometry();
        let mut shared = vec![0; out.len() / geometry.out_channels * geometry.groups];
        sums.accumulate(input, rows, &mut shared, scratch)?;
        let per_group = geometry.out_channels / geometry.groups;
        for (pixel, shared) in out.chunks_exact_mut(geometry.out_channels).zip(shared.chunks_exact(geometry.groups)) {
            for (channel, sum) in pixel.iter_mut().enumerate() {
                *sum = sum.wrapping_sub(i32::from(zero_points[channel]).wrapping_mul(shared[channel / per_group]));
            }
        }
        Ok(())
    }

    /// Some output rows of one picture.
    pub(crate) fn run_rows(
        &self,
        input: &[u8],
        rows: std::ops::Range<usize>,
        out: &mut [u8],
        scratch: &mut Scratch,
    ) -> Result<(), KernelError> {
        if self.sums.is_none() {
            return self.conv.run(input, rows, self.finish.borrowed(), out, scratch);
        }
        let mut accumulators = vec![0; out.len()];
        self.accumulate(input, rows, &mut accumulators, scratch)?;
        let channels = self.conv.geometry().out_channels;
        for (index, (byte, sum)) in out.iter_mut().zip(accumulators).enumerate() {
            *byte = self.finish.apply(index % channels, sum);
        }
        Ok(())
    }
}

/// One step, prepared.
#[derive(Clone, Debug)]
pub(crate) enum StepKernel {
    Linear(Box<LinearKernel>),
    /// Products of two activations, with plain loops.
    MatMul(Box<Finish>),
    /// Sum of two unsigned tensors of one shape; the operands change places where the flag says so.
    Add {
        add: Add,
        is_swapped: bool,
    },
    /// A function of two bytes of tensors of one shape: the output of `a`, `b` at `256 * a + b`.
    Pairs(Box<[u8]>),
    /// A function of one byte.
    Table(Box<[u8; 256]>),
    MaxPool(Pool),
    GlobalAveragePool(Pooling),
    /// A Move that keeps every byte in its place.
    Copy,
    /// Channels of several channels-last maps beside each other: channels and table of each input.
    ConcatChannels(Vec<(usize, Option<Box<[u8; 256]>>)>),
    /// The executor of `ops`, picture by picture.
    Plain,
}

/// From so many elements on, a table of all pairs of bytes is worth its making.
const PAIRS_PAY: usize = 1 << 14;

impl StepKernel {
    /// Prepares a step.
    pub(crate) fn new(isa: Isa, program: &Program, step: &Step) -> Result<Self, KernelError> {
        let tensor = |at: usize| step.inputs.get(at).map(|&id| program.tensor(id));
        let zero_point = |at: usize| tensor(at).map_or(0, |tensor| tensor.zero_point);
        let output = program.tensor(step.output);
        Ok(match &step.op {
            Op::Linear(linear) => {
                Self::Linear(Box::new(LinearKernel::new(isa, linear, [zero_point(0), output.zero_point])?))
            }
            Op::MatMul(product) => Self::MatMul(Box::new(Finish::new(&product.rescale, output.zero_point, 0, u8::MAX))),
            Op::Add => match (tensor(0), tensor(1)) {
                (Some(a), Some(b)) if a.shape == output.shape && b.shape == output.shape => {
                    let addition = Addition::of(a, b, output);
                    let is_unsigned = [a, b, output].into_iter().all(|tensor| tensor.word == Word::Unsigned);
                    match is_unsigned {
                        true => {
                            // The formula rounds the second operand's product into the constant first.
                            let ([a, b], fixed, is_swapped) = addition.terms();
                            let rounding = Rounding::Fused;
                            Self::Add { add: Add { left: b, right: a, fixed, low: 0, high: 255, rounding }, is_swapped }
                        }
                        false if output.elements() >= PAIRS_PAY => {
                            let pairs = (0..=u16::MAX).map(|pair| addition.apply((pair >> 8) as u8, pair as u8));
                            Self::Pairs(pairs.collect())
                        }
                        false => Self::Plain,
                    }
                }
                _ => Self::Plain,
            },
            Op::Table(table) => Self::Table(table.clone()),
            Op::MaxPool(window) => {
                let Some(input) = tensor(0) else { return Ok(Self::Plain) };
                let (map, channels) = ops::map(input);
                let pool = Pool {
                    input: map,
                    channels,
                    kernel: window.kernel,
                    stride: window.stride,
                    dilation: window.dilation,
                    pads: window.pads,
                };
                let (wanted, _) = ops::map(output);
                if pool.output() == Ok(wanted) { Self::MaxPool(pool) } else { Self::Plain }
            }
            Op::GlobalAveragePool => {
                let Some(input) = tensor(0) else { return Ok(Self::Plain) };
                let positions = input.elements() / input.channels().max(1);
                // The kernel sums in 32 bits.
                if positions > 1 << 23 {
                    return Ok(Self::Plain);
                }
                Self::GlobalAveragePool(Pooling::new(input, output, positions))
            }
            Op::Move { sources, .. }
                if sources.len() == tensor(0).map_or(0, |tensor| tensor.elements())
                    && sources.iter().zip(0..).all(|(source, at)| *source == Source::Byte(at)) =>
            {
                Self::Copy
            }
            Op::Concat { axis: 0, tables } => {
                let channels = step.inputs.iter().map(|&id| program.tensor(id).channels());
                Self::ConcatChannels(channels.zip(tables.iter().cloned()).collect())
            }
            _ => Self::Plain,
        })
    }

    /// Bytes of packed constants.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Linear(kernel) => kernel.bytes(),
            Self::Pairs(pairs) => pairs.len(),
            _ => 0,
        }
    }
}

/// A step without products, for the pictures of its inputs.
pub(crate) fn run_plain(
    isa: Isa,
    program: &Program,
    step: &Step,
    kernel: &StepKernel,
    inputs: &[&[u8]],
    out: &mut [u8],
) -> Result<(), String> {
    let in_elements = |at: usize| step.inputs.get(at).map_or(0, |&id| program.tensor(id).elements()).max(1);
    let out_elements = program.tensor(step.output).elements().max(1);
    match kernel {
        StepKernel::Copy => out.copy_from_slice(inputs[0]),
        StepKernel::Table(table) => lookup(isa, table, inputs[0], out).map_err(|error| error.to_string())?,
        StepKernel::Add { add, is_swapped } => {
            // The kernel's left operand is the one that is rounded into the constant first.
            let [a, b] = if *is_swapped { [inputs[0], inputs[1]] } else { [inputs[1], inputs[0]] };
            add.run(isa, a, b, out).map_err(|error| error.to_string())?;
        }
        StepKernel::Pairs(pairs) => {
            for (out, (&a, &b)) in out.iter_mut().zip(inputs[0].iter().zip(inputs[1])) {
                *out = pairs[usize::from(a) << 8 | usize::from(b)];
            }
        }
        StepKernel::MaxPool(pool) => {
            let rows = ops::map(program.tensor(step.output)).0[0];
            for (input, out) in inputs[0].chunks_exact(in_elements(0)).zip(out.chunks_exact_mut(out_elements)) {
                pool.max(isa, input, 0..rows, out).map_err(|error| error.to_string())?;
            }
        }
        StepKernel::GlobalAveragePool(pooling) => {
            let mut sums = vec![0; out_elements];
            for (input, out) in inputs[0].chunks_exact(in_elements(0)).zip(out.chunks_exact_mut(out_elements)) {
                sum_positions(isa, input, &mut sums).map_err(|error| error.to_string())?;
                for (byte, &sum) in out.iter_mut().zip(&sums) {
                    *byte = pooling.apply(u64::from(sum.cast_unsigned()));
                }
            }
        }
        StepKernel::ConcatChannels(parts) => {
            let pitch: usize = parts.iter().map(|(channels, _)| channels).sum();
            let mut first = 0;
            for ((channels, table), input) in parts.iter().zip(inputs) {
                let positions = input.chunks_exact((*channels).max(1));
                for (position, out) in positions.zip(out.chunks_exact_mut(pitch.max(1))) {
                    let out = &mut out[first..first + channels];
                    match table {
                        Some(table) => lookup(isa, table, position, out).map_err(|error| error.to_string())?,
                        None => out.copy_from_slice(position),
                    }
                }
                first += channels;
            }
        }
        StepKernel::Plain | StepKernel::Linear(_) | StepKernel::MatMul(_) => {
            for (picture, out) in out.chunks_exact_mut(out_elements).enumerate() {
                let of_picture: Vec<&[u8]> = inputs
                    .iter()
                    .enumerate()
                    .map(|(at, bytes)| &bytes[picture * in_elements(at)..(picture + 1) * in_elements(at)])
                    .collect();
                let bytes = ops::execute(program, step, &of_picture).map_err(|error| error.to_string())?;
                out.copy_from_slice(&bytes);
            }
        }
    }
    Ok(())
}
