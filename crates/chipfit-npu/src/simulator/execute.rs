//! One chunk of pictures through the whole network, on one thread or with its linear steps divided among several.
//!
//! For every step: draw the strikes of each picture, put its buffer faults into the input buffer, compute the clean
//! step for the whole chunk, patch the struck outputs of each picture, and take the buffer faults out again.

use std::ops::Range;

use chipfit_kernels::{Isa, Place, Scratch};

use crate::faults::{DrawKey, Strike, StrikeSource};
use crate::machine::Machine;
use crate::processor::ProcessorError;
use crate::program::{Linear, MatMul, Op, Program, Step, StepId, TensorId};
use crate::protection::Protection;

use super::buffers::{Buffers, model_index, stored_index};
use super::kernel::{Finish, LinearKernel, StepKernel, run_plain};
use super::operands::{Operands, Override, Pairs, Products, Taps};
use super::patch::{Outputs, Unit, patch_products, patch_stored, struck_outputs};
use super::plan::Layout;
use super::struck::Words;

/// Everything that does not change between forward passes.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) program: Program,
    pub(crate) kernels: Vec<StepKernel>,
    pub(crate) layout: Layout,
    pub(crate) isa: Isa,
    pub(crate) machine: Machine,
}

/// Where faults come from in one forward pass.
#[derive(Clone, Copy)]
pub(crate) struct Faults<'a> {
    pub(crate) source: Option<&'a dyn StrikeSource>,
    pub(crate) protection: &'a Protection,
    pub(crate) seed: u64,
    pub(crate) trial: u64,
}

/// Pictures that go through the network together, and where their results go.
pub(crate) struct Job<'a> {
    pub(crate) pictures: &'a [u64],
    pub(crate) input: &'a [u8],
    pub(crate) output: &'a mut [u8],
    pub(crate) wanted: Vec<(TensorId, &'a mut [u8])>,
    /// Words struck.
    pub(crate) strikes: u64,
}

/// Memory of one chunk, kept between passes.
#[derive(Debug, Default)]
pub(crate) struct Workspace {
    buffers: Vec<Vec<u8>>,
    scratches: Vec<Scratch>,
    strikes: Vec<PictureStrikes>,
    probes: Probes,
}

/// Outputs whose clean accumulators are wanted, of all pictures of a chunk.
#[derive(Debug, Default)]
struct Probes {
    places: Vec<Place>,
    sums: Vec<i32>,
}

/// The strikes of one step for one picture.
#[derive(Debug, Default)]
struct PictureStrikes {
    replicas: [Vec<Strike>; 3],
    buffers: Buffers,
    /// What lay in the input buffer in the place of its struck words.
    saved: Vec<u8>,
    /// Its part of the probes; `None` where they do not serve.
    probes: Option<Range<usize>>,
}

impl Workspace {
    /// Memory for chunks of `plan`, worked on by `threads`.
    pub(crate) fn new(plan: &Plan, threads: usize) -> Self {
        let buffers = plan.layout.capacities.iter().map(|&bytes| vec![0; bytes * plan.layout.chunk]).collect();
        let scratches = (0..threads.max(1)).map(|_| Scratch::new()).collect();
        Self { buffers, scratches, strikes: Vec::new(), probes: Probes::default() }
    }

    /// Scratch memory of the kernels, one per thread.
    pub(crate) fn scratches(&mut self) -> &mut [Scratch] {
        &mut self.scratches
    }

    /// Bytes it holds now.
    pub(crate) fn bytes(&self) -> usize {
        let strikes: usize =
            self.strikes.iter().flat_map(|of| &of.replicas).map(|list| list.capacity() * size_of::<Strike>()).sum();
        self.buffers.iter().map(Vec::capacity).sum::<usize>()
            + self.scratches.iter().map(Scratch::bytes).sum::<usize>()
            + strikes
    }
}

impl PictureStrikes {
    /// Draws the strikes of one step and counts the struck words.
    fn draw(&mut self, plan: &Plan, faults: &Faults<'_>, picture: u64, step: StepId) -> u64 {
        let Some(source) = faults.source else { return 0 };
        let key = DrawKey { seed: faults.seed, trial: faults.trial, picture };
        let flags = faults.protection.channels(step);
        let replicas = if flags.contains(&true) { 3 } else { 1 };
        let mut struck = 0;
        for (replica, list) in (0..3).zip(&mut self.replicas) {
            list.clear();
            if replica < replicas {
                source.strikes(&key, step, replica, list);
                if !list.is_sorted() {
                    list.sort_unstable();
                }
                struck += list.chunk_by(|a, b| (a.site, a.word) == (b.site, b.word)).count() as u64;
            }
        }
        let _ = plan;
        struck
    }

    fn is_empty(&self) -> bool {
        self.replicas.iter().all(Vec::is_empty)
    }
}

fn failure(step: &Step, what: impl std::fmt::Display) -> ProcessorError {
    ProcessorError::Engine { processor: "simulator".to_owned(), what: format!("step '{}': {what}", step.name) }
}

impl Plan {
    /// Bytes of the program's constants, as packed.
    pub(crate) fn bytes(&self) -> usize {
        self.kernels.iter().map(StepKernel::bytes).sum()
    }

    /// Runs a job of at most one chunk.
    pub(crate) fn run(
        &self,
        faults: &Faults<'_>,
        job: &mut Job<'_>,
        workspace: &mut Workspace,
    ) -> Result<(), ProcessorError> {
        let count = job.pictures.len();
        let input = self.program.input();
        workspace.buffers[self.layout.buffer(input)][..job.input.len()].copy_from_slice(job.input);
        self.keep(input, job, workspace);
        workspace.strikes.resize_with(workspace.strikes.len().max(count), PictureStrikes::default);
        for position in 0..self.program.steps.len() {
            let Workspace { buffers, scratches, strikes, probes } = workspace;
            let strikes = &mut strikes[..count];
            job.strikes +=
                self.run_step(StepId(position), faults, job.pictures, buffers, scratches, strikes, probes)?;
            self.keep(self.program.steps[position].output, job, workspace);
        }
        let output = &workspace.buffers[self.layout.buffer(self.program.output())];
        job.output.copy_from_slice(&output[..job.output.len()]);
        Ok(())
    }

    /// Copies a tensor that just came into being to the trace, if it is wanted.
    fn keep(&self, tensor: TensorId, job: &mut Job<'_>, workspace: &Workspace) {
        for (wanted, bytes) in &mut job.wanted {
            if *wanted == tensor {
                let length = bytes.len();
                bytes.copy_from_slice(&workspace.buffers[self.layout.buffer(tensor)][..length]);
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the workspace, taken apart")]
    fn run_step(
        &self,
        id: StepId,
        faults: &Faults<'_>,
        pictures: &[u64],
        buffers: &mut [Vec<u8>],
        scratches: &mut [Scratch],
        strikes: &mut [PictureStrikes],
        probes: &mut Probes,
    ) -> Result<u64, ProcessorError> {
        let step = &self.program.steps[id.0];
        let count = pictures.len();
        let mut struck = 0;
        let first = step.inputs.first().map(|&id| (self.layout.buffer(id), self.program.tensor(id)));
        let elements = first.map_or(0, |(_, tensor)| tensor.elements());
        // A step that reads its struck input twice gets a copy for the second reading.
        let mut untouched = None;
        if faults.source.is_some() {
            for (at, (strikes, &picture)) in strikes.iter_mut().zip(pictures).enumerate() {
                struck += strikes.draw(self, faults, picture, id);
                strikes.buffers = Buffers::default();
                if let Some((buffer, tensor)) = first {
                    let input = &buffers[buffer][at * elements..(at + 1) * elements];
                    let list = &strikes.replicas[0];
                    if list.is_empty() {
                        continue;
                    }
                    strikes.buffers = match &step.op {
                        Op::Linear(linear) => Buffers::of_linear(linear, tensor, input, list),
                        Op::MatMul(product) => {
                            Buffers::of_matmul(product, [tensor, self.program.tensor(step.output)], input, list)
                        }
                        _ => Buffers::of_other(tensor, input, list),
                    };
                }
            }
            if let Some((buffer, _)) = first {
                let is_struck = strikes.iter().any(|strikes| !strikes.buffers.activations.is_empty());
                if is_struck && step.inputs[1..].contains(&step.inputs[0]) {
                    untouched = Some(buffers[buffer][..count * elements].to_vec());
                }
                for (strikes, input) in strikes.iter_mut().zip(buffers[buffer].chunks_exact_mut(elements.max(1))) {
                    strikes.saved.clear();
                    for &(index, byte) in &strikes.buffers.activations {
                        strikes.saved.push(input[index]);
                        input[index] = byte;
                    }
                }
            }
        }
        let out_buffer = self.layout.buffer(step.output);
        let mut out_bytes = std::mem::take(&mut buffers[out_buffer]);
        let out = &mut out_bytes[..count * self.program.tensor(step.output).elements()];
        let inputs: Vec<&[u8]> = step
            .inputs
            .iter()
            .enumerate()
            .map(|(at, &id)| match &untouched {
                Some(copy) if at > 0 && id == step.inputs[0] => copy.as_slice(),
                _ => &buffers[self.layout.buffer(id)][..count * self.program.tensor(id).elements()],
            })
            .collect();
        probes.places.clear();
        if faults.source.is_some() {
            self.place_probes(id, faults.protection, strikes, probes, scratches.len());
        }
        match &self.kernels[id.0] {
            StepKernel::Linear(kernel) if !probes.places.is_empty() => {
                probes.sums.resize(probes.places.len(), 0);
                kernel
                    .run_probed(inputs[0], out, &probes.places, &mut probes.sums, &mut scratches[0])
                    .map_err(|error| failure(step, error))?;
            }
            kernel => self.compute(step, kernel, &inputs, out, scratches)?,
        }
        if faults.source.is_some() {
            let elements = self.program.tensor(step.output).elements();
            for (at, (strikes, out)) in strikes.iter().zip(out.chunks_exact_mut(elements.max(1))).enumerate() {
                if !strikes.is_empty() {
                    let of_picture: Vec<&[u8]> = inputs
                        .iter()
                        .map(|bytes| {
                            let length = bytes.len() / count;
                            &bytes[at * length..(at + 1) * length]
                        })
                        .collect();
                    let totals = strikes.probes.clone().map(|range| &probes.sums[range]);
                    self.patch(id, faults.protection, &of_picture, strikes, totals, out);
                }
            }
        }
        buffers[out_buffer] = out_bytes;
        if let (Some((buffer, _)), true) = (first, faults.source.is_some()) {
            for (strikes, input) in strikes.iter_mut().zip(buffers[buffer].chunks_exact_mut(elements.max(1))) {
                for (&(index, _), &byte) in strikes.buffers.activations.iter().zip(&strikes.saved) {
                    input[index] = byte;
                }
            }
        }
        Ok(struck)
    }

    /// The clean step.
    pub(crate) fn compute(
        &self,
        step: &Step,
        kernel: &StepKernel,
        inputs: &[&[u8]],
        out: &mut [u8],
        scratches: &mut [Scratch],
    ) -> Result<(), ProcessorError> {
        match kernel {
            StepKernel::Linear(kernel) => kernel.run(inputs[0], out, scratches).map_err(|error| failure(step, error)),
            StepKernel::MatMul(finish) => {
                if let Op::MatMul(product) = &step.op {
                    let elements = self.program.tensor(step.output).elements();
                    for (picture, out) in out.chunks_exact_mut(elements.max(1)).enumerate() {
                        let sides = [0, 1].map(|side: usize| {
                            let length = self.program.tensor(step.inputs[side]).elements();
                            &inputs[side][picture * length..(picture + 1) * length]
                        });
                        let outputs = MatMulOutputs::new(&self.program, step, product, finish, sides);
                        for (index, byte) in out.iter_mut().enumerate() {
                            *byte = outputs.requantise(index, outputs.products(index, &[]).sum(0..product.inner));
                        }
                    }
                }
                Ok(())
            }
            other => run_plain(self.isa, &self.program, step, other, inputs, out).map_err(|error| failure(step, error)),
        }
    }

    /// Lists the struck outputs whose clean accumulators the kernel should store.
    fn place_probes(
        &self,
        id: StepId,
        protection: &Protection,
        strikes: &mut [PictureStrikes],
        probes: &mut Probes,
        threads: usize,
    ) {
        strikes.iter_mut().for_each(|strikes| strikes.probes = None);
        let (Op::Linear(linear), StepKernel::Linear(kernel)) = (&self.program.steps[id.0].op, &self.kernels[id.0])
        else {
            return;
        };
        let [rows, columns] = kernel.map;
        let (pixels, channels) = (rows * columns, linear.geometry.out_channels);
        if !kernel.is_probed(threads)
            || !protection.channels(id).is_empty()
            || u32::try_from(pixels.saturating_mul(strikes.len())).is_err()
        {
            return;
        }
        let lanes = self.machine.lanes.get() as usize;
        let words = Words { products: linear.products(), lanes, product_bits: linear.product_bits() };
        for (picture, strikes) in strikes.iter_mut().enumerate() {
            if strikes.is_empty() || !strikes.buffers.weights.is_empty() || !strikes.buffers.overrides.is_empty() {
                continue;
            }
            let first = probes.places.len();
            probes.places.extend(struck_outputs(&strikes.replicas[0], words, pixels * channels).map(|output| Place {
                pixel: (picture * pixels + output / channels) as u32,
                channel: (output % channels) as u32,
            }));
            strikes.probes = Some(first..probes.places.len());
        }
    }

    /// Patches one picture's struck outputs; `inputs` hold its buffer faults.
    fn patch(
        &self,
        id: StepId,
        protection: &Protection,
        inputs: &[&[u8]],
        strikes: &PictureStrikes,
        totals: Option<&[i32]>,
        out: &mut [u8],
    ) {
        let step = &self.program.steps[id.0];
        let unit =
            Unit { tensor: self.program.tensor(step.output), flags: protection.channels(id), vote: protection.vote() };
        let replicas = [0, 1, 2].map(|replica: usize| strikes.replicas[replica].as_slice());
        let words = |products: usize, product_bits: u32| Words {
            products,
            lanes: self.machine.lanes.get() as usize,
            product_bits,
        };
        match (&step.op, &self.kernels[id.0]) {
            (Op::Linear(linear), StepKernel::Linear(kernel)) => {
                let operands = Operands {
                    linear,
                    map: kernel.map,
                    input: inputs[0],
                    zero_point: self.program.tensor(step.inputs[0]).zero_point,
                    isa: self.isa,
                };
                let outputs = LinearOutputs::new(linear, kernel, operands, &strikes.buffers.weights);
                outputs.recompute(out);
                let words = words(linear.products(), linear.product_bits());
                patch_products(&unit, &outputs, words, replicas, &strikes.buffers.overrides, totals, out);
            }
            (Op::MatMul(product), StepKernel::MatMul(finish)) => {
                let outputs = MatMulOutputs::new(&self.program, step, product, finish, [inputs[0], inputs[1]]);
                let words = words(product.inner, crate::faults::MATMUL_PRODUCT_BITS);
                patch_products(&unit, &outputs, words, replicas, &strikes.buffers.overrides, totals, out);
            }
            _ => patch_stored(&unit, replicas, out),
        }
    }
}

/// The outputs of a linear step for one picture.
pub(crate) struct LinearOutputs<'a> {
    linear: &'a Linear,
    finish: &'a Finish,
    is_bounded: bool,
    operands: Operands<'a>,
    /// The rows of channels whose weights are struck, ascending.
    rows: Vec<(usize, Vec<i8>)>,
}

impl<'a> LinearOutputs<'a> {
    /// `weights` lists struck weights by ascending index, with the value in the buffer.
    pub(crate) fn new(
        linear: &'a Linear,
        kernel: &'a LinearKernel,
        operands: Operands<'a>,
        weights: &[(usize, i8)],
    ) -> Self {
        let products = linear.products();
        let mut rows: Vec<(usize, Vec<i8>)> = Vec::new();
        for &(index, weight) in weights {
            let channel = index / products;
            if rows.last().is_none_or(|&(last, _)| last != channel) {
                rows.push((channel, linear.weights[channel * products..(channel + 1) * products].to_vec()));
            }
            if let Some((_, row)) = rows.last_mut() {
                row[index % products] = weight;
            }
        }
        Self { linear, finish: &kernel.finish, is_bounded: kernel.is_bounded, operands, rows }
    }

    fn weights(&self, channel: usize) -> &[i8] {
        match self.rows.binary_search_by_key(&channel, |&(channel, _)| channel) {
            Ok(at) => &self.rows[at].1,
            Err(_) => {
                let products = self.linear.products();
                &self.linear.weights[channel * products..(channel + 1) * products]
            }
        }
    }

    /// Channels whose weights are struck.
    pub(crate) fn struck_channels(&self) -> impl Iterator<Item = usize> {
        self.rows.iter().map(|&(channel, _)| channel)
    }

    /// As [`LinearOutputs::recompute`], from the accumulators that belong to the input.
    pub(crate) fn shift(&self, sums: &[i32], weights: &[(usize, i8)], out: &mut [u8]) {
        let products = self.linear.products();
        let channels = self.linear.geometry.out_channels;
        for weights in weights.chunk_by(|a, b| a.0 / products == b.0 / products) {
            let channel = weights[0].0 / products;
            for pixel in 0..out.len() / channels {
                let taps = self.operands.taps(pixel, channel, self.weights(channel), &[]);
                let delta = weights.iter().fold(0_i32, |delta, &(index, weight)| {
                    let change = i32::from(weight) - i32::from(self.linear.weights[index]);
                    delta.wrapping_add(change * taps.activation(index % products))
                });
                if delta != 0 {
                    let at = pixel * channels + channel;
                    out[at] = self.finish.apply(channel, sums[at].wrapping_add(delta));
                }
            }
        }
    }

    /// Computes the outputs of the channels whose weights are struck.
    pub(crate) fn recompute(&self, out: &mut [u8]) {
        let products = self.linear.products();
        let channels = self.linear.geometry.out_channels;
        for (channel, row) in &self.rows {
            for pixel in 0..out.len() / channels {
                let taps = self.operands.taps(pixel, *channel, row, &[]);
                let sum = self.linear.bias[*channel].wrapping_add(taps.sum(0..products));
                out[pixel * channels + channel] = self.finish.apply(*channel, sum);
            }
        }
    }
}

impl Outputs for LinearOutputs<'_> {
    type Of<'o>
        = Taps<'o>
    where
        Self: 'o;

    fn products<'o>(&'o self, output: usize, overrides: &'o [Override]) -> Taps<'o> {
        let channels = self.linear.geometry.out_channels;
        let channel = output % channels;
        self.operands.taps(output / channels, channel, self.weights(channel), overrides)
    }

    fn bias(&self, output: usize) -> i32 {
        self.linear.bias[output % self.linear.geometry.out_channels]
    }

    fn requantise(&self, output: usize, accumulator: i32) -> u8 {
        self.finish.apply(output % self.linear.geometry.out_channels, accumulator)
    }

    fn interval(&self, output: usize, clean: u8) -> Option<[i32; 2]> {
        self.is_bounded.then(|| self.finish.interval(output % self.linear.geometry.out_channels, clean))?
    }
}

/// The outputs of a product of two activations for one picture.
pub(crate) struct MatMulOutputs<'a> {
    product: &'a MatMul,
    finish: &'a Finish,
    bytes: [&'a [u8]; 2],
    tensors: [&'a crate::program::Tensor; 3],
}

impl<'a> MatMulOutputs<'a> {
    pub(crate) fn new(
        program: &'a Program,
        step: &Step,
        product: &'a MatMul,
        finish: &'a Finish,
        bytes: [&'a [u8]; 2],
    ) -> Self {
        let tensors = [step.inputs[0], step.inputs[1], step.output].map(|id| program.tensor(id));
        Self { product, finish, bytes, tensors }
    }
}

impl Outputs for MatMulOutputs<'_> {
    type Of<'o>
        = Pairs<'o>
    where
        Self: 'o;

    fn products<'o>(&'o self, output: usize, overrides: &'o [Override]) -> Pairs<'o> {
        let MatMul { rows, inner, columns, .. } = *self.product;
        let [left, right, out] = self.tensors;
        let place = model_index(out, output);
        let (row, column, batch) = (place / columns, place % columns, place / (rows * columns));
        let starts = [(left, row * inner, 1), (right, batch * inner * columns + column, columns)];
        let start = starts.map(|(tensor, first, _)| stored_index(tensor, first));
        // Along k both operands advance by a constant, unless the channel axis is the one that k runs over.
        let step =
            starts.map(
                |(tensor, first, next)| {
                    if inner > 1 { stored_index(tensor, first + next) - stored_index(tensor, first) } else { 0 }
                },
            );
        Pairs { bytes: self.bytes, zero_points: [left.zero_point, right.zero_point], start, step, overrides }
    }

    fn bias(&self, _output: usize) -> i32 {
        0
    }

    fn requantise(&self, _output: usize, accumulator: i32) -> u8 {
        self.finish.apply(0, accumulator)
    }

    fn interval(&self, _output: usize, _clean: u8) -> Option<[i32; 2]> {
        None
    }
}
