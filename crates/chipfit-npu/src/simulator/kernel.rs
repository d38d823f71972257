//! One step of the program, prepared for the instruction set: packed weights, constants, tables.
//!
//! Promises: fault-free bytes equal to those of the twin; nothing here knows of faults.

use chipfit_kernels::{Conv, Fixed, Isa, KernelError, OutputBlock, Requantize, Scratch};

use crate::program::{ConvGeometry, Linear, Op, Program, Rescale, Source, Step};

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
            Self::Float(float) => float.apply(channel, accumulator),
            Self::Fixed(fixed) => fixed.apply(channel, accumulator),
        }
    }

    fn borrowed(&self) -> chipfit_kernels::Rescale<'_> {
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
        Ok(Self { map: conv.output(), conv, finish, sums })
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
                let end = if thread + 1 == threads { geometry.out_channels } else { blocks * (thread + 1) / threads * step };
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
    /// A Move that keeps every byte in its place.
    Copy,
    /// The executor of `ops`, picture by picture.
    Plain,
}

impl StepKernel {
    /// Prepares a step.
    pub(crate) fn new(isa: Isa, program: &Program, step: &Step) -> Result<Self, KernelError> {
        let zero_point = |at: usize| step.inputs.get(at).map_or(0, |&id| program.tensor(id).zero_point);
        let output = program.tensor(step.output);
        Ok(match &step.op {
            Op::Linear(linear) => {
                Self::Linear(Box::new(LinearKernel::new(isa, linear, [zero_point(0), output.zero_point])?))
            }
            Op::MatMul(product) => Self::MatMul(Box::new(Finish::new(&product.rescale, output.zero_point, 0, u8::MAX))),
            Op::Move { sources, .. }
                if sources.len() == program.tensor(step.inputs[0]).elements()
                    && sources.iter().zip(0..).all(|(source, at)| *source == Source::Byte(at)) =>
            {
                Self::Copy
            }
            _ => Self::Plain,
        })
    }

    /// Bytes of packed constants.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Linear(kernel) => kernel.bytes(),
            _ => 0,
        }
    }
}

/// A step without products, for the pictures of its inputs.
pub(crate) fn run_plain(program: &Program, step: &Step, inputs: &[&[u8]], out: &mut [u8]) -> Result<(), String> {
    let elements = program.tensor(step.output).elements();
    for (picture, out) in out.chunks_exact_mut(elements.max(1)).enumerate() {
        let of_picture: Vec<&[u8]> = step
            .inputs
            .iter()
            .zip(inputs)
            .map(|(&id, bytes)| {
                let length = program.tensor(id).elements();
                &bytes[picture * length..(picture + 1) * length]
            })
            .collect();
        out.copy_from_slice(&crate::twin::fault_free(program, step, &of_picture));
    }
    Ok(())
}
