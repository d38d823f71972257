//! Single-fault campaigns: a fault's change is propagated through one picture's golden activations, exactly, only where
//! it reaches, and dropped when it dies.
//!
//! A [`Golden`] keeps the clean tensors and accumulators of one picture. A trial computes the struck outputs, then, step
//! by step, what reads a changed byte: few changed activations add `change * weight` to the golden accumulators of the
//! outputs that read them; many are handed, row by row, to the kernels of the full run. The result equals a full run
//! with the same strikes bit for bit.
//!
//! Read [`Golden::trial`], then `linear`.

mod changes;
mod linear;
mod outcome;
mod story;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use chipfit_kernels::Scratch;

use crate::faults::Strike;
use crate::processor::{Batch, Processor, ProcessorError, Request};
use crate::program::{Op, Program, Step, StepId, TensorId};
use crate::protection::Protection;
use crate::simulator::Simulator;
use crate::simulator::buffers::Buffers;
use crate::simulator::execute::{LinearOutputs, MatMulOutputs, Plan};
use crate::simulator::kernel::{StepKernel, run_plain};
use crate::simulator::operands::Operands;
use crate::simulator::patch::{Unit, patch_products, patch_stored};
use changes::{Changes, rows_of};
pub use outcome::{Masking, StruckWord, TrialOutcome};

/// Weights of one linear step by product: `[product][output channel]`; `None` where few changes are computed otherwise.
type Transposed = Option<Vec<i8>>;

/// What all pictures of one program share.
#[derive(Clone, Debug)]
pub struct Propagator {
    plan: Arc<Plan>,
    protection: Protection,
    transposed: Arc<Vec<Transposed>>,
}

/// One picture's clean activations and accumulators.
#[derive(Clone, Debug)]
pub struct Golden {
    shared: Propagator,
    tensors: Vec<Vec<u8>>,
    /// By step; of linear steps only.
    accumulators: Vec<Vec<i32>>,
    /// Distinguishes this picture's working copies.
    number: u64,
}

/// Memory of trials on one thread. It belongs to no picture; changing the picture costs a copy of its activations.
#[derive(Debug, Default)]
pub struct TrialScratch {
    number: u64,
    tensors: Vec<Vec<u8>>,
    changes: Vec<Changes>,
    kernel: Scratch,
    linear: linear::LinearScratch,
}

/// Memory of trials that go through the network together on one thread.
#[derive(Debug)]
pub struct TrialBatch {
    lanes: Vec<TrialScratch>,
    kernel: Scratch,
    input: Vec<u8>,
    output: Vec<u8>,
}

impl TrialBatch {
    /// Room for `lanes` trials at once, at least 1; each costs a copy of the activations. 16 to 32 fill the kernels.
    pub fn new(lanes: usize) -> Self {
        let lanes = (0..lanes.max(1)).map(|_| TrialScratch::new()).collect();
        Self { lanes, kernel: Scratch::new(), input: Vec::new(), output: Vec::new() }
    }

    /// Bytes it holds now.
    pub fn memory_bytes(&self) -> usize {
        let lanes: usize = self.lanes.iter().map(TrialScratch::memory_bytes).sum();
        lanes + self.kernel.bytes() + self.input.capacity() + self.output.capacity()
    }
}

/// A trial on its way.
#[derive(Debug)]
struct Running {
    by_step: BTreeMap<StepId, Vec<Strike>>,
    /// The first struck step.
    first: usize,
    outcome: TrialOutcome,
    died: Option<(StepId, Masking)>,
}

impl Running {
    /// Notes what a step has left.
    fn settle(
        &mut self,
        golden: &Golden,
        id: StepId,
        scratch: &TrialScratch,
        is_reached: bool,
        word: Option<StruckWord>,
    ) {
        let output = golden.shared.program().steps()[id.0].output;
        let count = scratch.changes[output.0].count;
        let outcome = &mut self.outcome;
        outcome.steps_reached += 1;
        outcome.changed_elements.push((id, count));
        if count == 0 {
            let how = match (is_reached, &word) {
                (true, _) => Masking::Absorbed,
                (false, Some(word)) if word.before == word.after => Masking::Word,
                (false, None) if outcome.struck.is_none() => Masking::Word,
                _ => Masking::Output,
            };
            self.died = Some((id, how));
        }
        outcome.struck = outcome.struck.or(word);
    }
}

impl Propagator {
    /// Transposes the weights of a simulator's program; its protection is kept, its faults are not.
    pub fn new(simulator: &Simulator) -> Self {
        let plan = Arc::clone(simulator.plan());
        let transposed = plan
            .program
            .steps()
            .iter()
            .zip(&plan.kernels)
            .map(|(step, kernel)| match (&step.op, kernel) {
                (Op::Linear(linear), StepKernel::Linear(kernel))
                    if linear.geometry.groups == 1 && kernel.is_symmetric() =>
                {
                    let (channels, products) = (linear.geometry.out_channels, linear.products());
                    let mut rows = vec![0; channels * products];
                    for (channel, row) in linear.weights.chunks_exact(products).enumerate() {
                        for (k, &weight) in row.iter().enumerate() {
                            rows[k * channels + channel] = weight;
                        }
                    }
                    Some(rows)
                }
                _ => None,
            })
            .collect();
        Self { plan, protection: simulator.protection().clone(), transposed: Arc::new(transposed) }
    }

    /// The program.
    pub fn program(&self) -> &Program {
        &self.plan.program
    }

    /// Bytes of the transposed weights; the packed ones belong to the simulator.
    pub fn memory_bytes(&self) -> usize {
        self.transposed.iter().flatten().map(Vec::len).sum()
    }

    /// Computes the golden tensors of one picture.
    ///
    /// # Errors
    /// [`ProcessorError::InputLength`], or what a step's engine says.
    pub fn golden(&self, picture: &[u8]) -> Result<Golden, ProcessorError> {
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        let program = self.program();
        let each = program.tensor(program.input()).elements();
        if picture.len() != each {
            return Err(ProcessorError::InputLength { bytes: picture.len(), pictures: 1, each });
        }
        let mut tensors = vec![Vec::new(); program.tensors().len()];
        tensors[program.input().0] = picture.to_vec();
        let mut accumulators = vec![Vec::new(); program.steps().len()];
        let mut scratch = [Scratch::new()];
        for (position, (step, kernel)) in program.steps().iter().zip(&self.plan.kernels).enumerate() {
            let inputs: Vec<&[u8]> = step.inputs.iter().map(|id| tensors[id.0].as_slice()).collect();
            let mut out = vec![0; program.tensor(step.output).elements()];
            self.plan.compute(step, kernel, &inputs, &mut out, &mut scratch)?;
            if let StepKernel::Linear(kernel) = kernel {
                let mut sums = vec![0; out.len()];
                kernel.accumulate(inputs[0], 0..kernel.map[0], &mut sums, &mut scratch[0]).map_err(engine)?;
                accumulators[position] = sums;
            }
            tensors[step.output.0] = out;
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Ok(Golden { shared: self.clone(), tensors, accumulators, number })
    }
}

fn engine(error: chipfit_kernels::KernelError) -> ProcessorError {
    ProcessorError::Engine { processor: "propagation".to_owned(), what: error.to_string() }
}

impl TrialScratch {
    /// Empty; the first trial grows it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes it holds now: at most the activations of one picture, a list of 16 KiB per tensor, and kernel scratch.
    pub fn memory_bytes(&self) -> usize {
        let tensors: usize = self.tensors.iter().map(Vec::capacity).sum();
        let lists: usize = self.changes.iter().map(|changes| changes.list.capacity() * 4).sum();
        tensors + lists + self.kernel.bytes() + self.linear.bytes()
    }

    /// A tensor as the last trial left it, faults included; empty before the first trial.
    pub fn tensor(&self, id: TensorId) -> &[u8] {
        self.tensors.get(id.0).map_or(&[], Vec::as_slice)
    }

    /// Makes the working copies those of `golden`.
    fn restore(&mut self, golden: &Golden) {
        if self.number != golden.number {
            self.tensors.clone_from(&golden.tensors);
            self.changes.resize_with(golden.tensors.len(), Changes::default);
            let limit = linear::longest_list(golden.shared.plan.isa);
            self.changes.iter_mut().for_each(|changes| {
                changes.clear();
                changes.limit = limit;
            });
            self.number = golden.number;
            return;
        }
        for (tensor, changes) in self.changes.iter_mut().enumerate().filter(|(_, changes)| changes.count > 0) {
            let (clean, working) = (&golden.tensors[tensor], &mut self.tensors[tensor]);
            if changes.is_long {
                let (_, row_bytes) = rows_of(&golden.shared.plan.program.tensors()[tensor]);
                let range = changes.rows.start * row_bytes..(changes.rows.end * row_bytes).min(clean.len());
                working[range.clone()].copy_from_slice(&clean[range]);
            } else {
                changes.list.iter().for_each(|&at| working[at as usize] = clean[at as usize]);
            }
            changes.clear();
        }
    }
}

impl Golden {
    /// The golden tensors of one picture; [`Propagator::golden`] shares the weights of many.
    ///
    /// # Errors
    /// As [`Propagator::golden`].
    pub fn new(simulator: &Simulator, picture: &[u8]) -> Result<Self, ProcessorError> {
        Propagator::new(simulator).golden(picture)
    }

    /// A golden tensor's biased bytes.
    pub fn tensor(&self, id: TensorId) -> &[u8] {
        &self.tensors[id.0]
    }

    /// Bytes of the golden activations and accumulators; the weights belong to the propagator and the simulator.
    pub fn memory_bytes(&self) -> usize {
        let tensors: usize = self.tensors.iter().map(Vec::len).sum();
        let sums: usize = self.accumulators.iter().map(Vec::len).sum();
        tensors + sums * size_of::<i32>()
    }

    /// Propagates the strikes of one inference; the outcome, and the faulty tensors in `scratch`, are those of a full
    /// run with the same strikes in replica 0.
    ///
    /// # Errors
    /// [`ProcessorError::Engine`] for a step that the program does not have, or when a step kept in float fails.
    pub fn trial(
        &self,
        strikes: &[(StepId, Strike)],
        scratch: &mut TrialScratch,
    ) -> Result<TrialOutcome, ProcessorError> {
        let mut running = self.begin(strikes, scratch)?;
        for position in running.first..self.shared.program().steps().len() {
            self.advance(StepId(position), &mut running, scratch, false)?;
        }
        Ok(self.end(running, scratch))
    }

    /// [`Golden::trial`] for many trials: those whose changes have grown to whole maps go through a step together.
    /// Outcomes come in the order of `trials`.
    ///
    /// # Errors
    /// As [`Golden::trial`].
    pub fn trials(
        &self,
        trials: &[Vec<(StepId, Strike)>],
        batch: &mut TrialBatch,
    ) -> Result<Vec<TrialOutcome>, ProcessorError> {
        let mut outcomes: Vec<TrialOutcome> = Vec::with_capacity(trials.len());
        // Those that outlive their first step wait until every lane has one.
        let mut alive: Vec<(usize, Running)> = Vec::new();
        for (number, strikes) in trials.iter().enumerate() {
            let lane = &mut batch.lanes[alive.len()];
            let mut running = self.begin(strikes, lane)?;
            outcomes.push(TrialOutcome::default());
            if running.by_step.is_empty() {
                continue;
            }
            let first = StepId(running.first);
            self.advance(first, &mut running, lane, false)?;
            let output = self.shared.program().steps()[first.0].output;
            if running.by_step.len() == 1 && lane.changes[output.0].count == 0 {
                outcomes[number] = self.end(running, lane);
                continue;
            }
            running.first += 1;
            alive.push((number, running));
            if alive.len() == batch.lanes.len() {
                self.finish_together(&mut alive, batch, &mut outcomes)?;
            }
        }
        self.finish_together(&mut alive, batch, &mut outcomes)?;
        Ok(outcomes)
    }

    /// Takes trials through the rest of the network, step by step.
    fn finish_together(
        &self,
        alive: &mut Vec<(usize, Running)>,
        batch: &mut TrialBatch,
        outcomes: &mut [TrialOutcome],
    ) -> Result<(), ProcessorError> {
        let steps = self.shared.program().steps().len();
        let first = alive.iter().map(|(_, running)| running.first).min().unwrap_or(steps);
        let mut together = Vec::new();
        for position in first..steps {
            together.clear();
            for (lane, (_, running)) in alive.iter_mut().enumerate() {
                if position >= running.first && self.advance(StepId(position), running, &mut batch.lanes[lane], true)? {
                    together.push(lane);
                }
            }
            if !together.is_empty() {
                self.run_together(StepId(position), &together, batch)?;
                for &lane in &together {
                    alive[lane].1.settle(self, StepId(position), &batch.lanes[lane], true, None);
                }
            }
        }
        for (lane, (number, running)) in alive.drain(..).enumerate() {
            outcomes[number] = self.end(running, &batch.lanes[lane]);
        }
        Ok(())
    }

    fn begin(&self, strikes: &[(StepId, Strike)], scratch: &mut TrialScratch) -> Result<Running, ProcessorError> {
        scratch.restore(self);
        let steps = self.shared.program().steps().len();
        let mut by_step: BTreeMap<StepId, Vec<Strike>> = BTreeMap::new();
        for &(step, strike) in strikes {
            if step.0 >= steps {
                let what = format!("the program has no step {}", step.0);
                return Err(ProcessorError::Engine { processor: "propagation".to_owned(), what });
            }
            by_step.entry(step).or_default().push(strike);
        }
        by_step.values_mut().for_each(|list| list.sort_unstable());
        let first = by_step.keys().next().map_or(steps, |step| step.0);
        Ok(Running { by_step, first, outcome: TrialOutcome::default(), died: None })
    }

    /// Takes a trial through one step; `true` where the whole step is to be computed together with other trials.
    fn advance(
        &self,
        id: StepId,
        running: &mut Running,
        scratch: &mut TrialScratch,
        may_wait: bool,
    ) -> Result<bool, ProcessorError> {
        let step = &self.shared.program().steps()[id.0];
        let list = running.by_step.get(&id).map_or(&[][..], Vec::as_slice);
        let is_reached = step.inputs.iter().any(|input| scratch.changes[input.0].count > 0);
        if list.is_empty() && !is_reached {
            return Ok(false);
        }
        if may_wait && list.is_empty() && self.is_whole(id, step, scratch) {
            return Ok(true);
        }
        let word = self.step(id, step, list, is_reached, scratch, running.outcome.struck.is_none())?;
        running.settle(self, id, scratch, is_reached, word);
        Ok(false)
    }

    /// Whether a linear step is best computed again as a whole.
    fn is_whole(&self, id: StepId, step: &Step, scratch: &TrialScratch) -> bool {
        match (&step.op, &self.shared.plan.kernels[id.0]) {
            (Op::Linear(linear), StepKernel::Linear(kernel)) => {
                let shared = linear::Shared {
                    linear,
                    kernel,
                    transposed: self.shared.transposed[id.0].as_deref(),
                    sums: &self.accumulators[id.0],
                    isa: self.shared.plan.isa,
                };
                shared.is_whole(&scratch.changes[step.inputs[0].0])
            }
            _ => false,
        }
    }

    /// One linear step of several trials, as a batch.
    fn run_together(&self, id: StepId, lanes: &[usize], batch: &mut TrialBatch) -> Result<(), ProcessorError> {
        let step = &self.shared.program().steps()[id.0];
        let StepKernel::Linear(kernel) = &self.shared.plan.kernels[id.0] else { return Ok(()) };
        let output = self.shared.program().tensor(step.output);
        let (rows, row_bytes) = rows_of(output);
        let (input, elements) = (step.inputs[0], output.elements());
        batch.input.clear();
        for &lane in lanes {
            batch.input.extend_from_slice(&batch.lanes[lane].tensors[input.0]);
        }
        batch.output.resize(lanes.len() * elements, 0);
        kernel.run(&batch.input, &mut batch.output, std::slice::from_mut(&mut batch.kernel)).map_err(engine)?;
        for (&lane, bytes) in lanes.iter().zip(batch.output.chunks_exact(elements.max(1))) {
            let lane = &mut batch.lanes[lane];
            lane.tensors[step.output.0].copy_from_slice(bytes);
            lane.changes[step.output.0].compare(bytes, &self.tensors[step.output.0], 0..rows, row_bytes);
        }
        Ok(())
    }

    fn end(&self, running: Running, scratch: &TrialScratch) -> TrialOutcome {
        let mut outcome = running.outcome;
        outcome.is_output_changed = scratch.changes[self.shared.program().output().0].count > 0;
        outcome.masked_at = if outcome.is_output_changed { None } else { running.died };
        outcome
    }

    /// Computes one step again: from its changed inputs, then its strikes.
    fn step(
        &self,
        id: StepId,
        step: &Step,
        strikes: &[Strike],
        is_reached: bool,
        scratch: &mut TrialScratch,
        is_told: bool,
    ) -> Result<Option<StruckWord>, ProcessorError> {
        let program = self.shared.program();
        let output = program.tensor(step.output);
        let first = step.inputs.first().copied();
        let buffers = match (&step.op, first) {
            (_, None) => Buffers::default(),
            _ if strikes.is_empty() => Buffers::default(),
            (Op::Linear(linear), Some(input)) => {
                Buffers::of_linear(linear, program.tensor(input), &scratch.tensors[input.0], strikes)
            }
            (Op::MatMul(product), Some(input)) => {
                Buffers::of_matmul(product, [program.tensor(input), output], &scratch.tensors[input.0], strikes)
            }
            (_, Some(input)) => Buffers::of_other(program.tensor(input), &scratch.tensors[input.0], strikes),
        };
        let mut word = if is_told { self.tell(id, step, strikes, scratch) } else { None };
        // Struck input words, for this step alone.
        let mut untouched = None;
        let mut saved = Vec::new();
        if let (Some(input), false) = (first, buffers.activations.is_empty()) {
            if step.inputs[1..].contains(&input) {
                untouched = Some(scratch.tensors[input.0].clone());
            }
            for &(index, byte) in &buffers.activations {
                saved.push(scratch.tensors[input.0][index]);
                scratch.tensors[input.0][index] = byte;
            }
        }
        let mut bytes = std::mem::take(&mut scratch.tensors[step.output.0]);
        let mut changes = std::mem::take(&mut scratch.changes[step.output.0]);
        changes.clear();
        if is_reached || !buffers.activations.is_empty() {
            self.propagate(id, step, &buffers, untouched.as_deref(), scratch, &mut bytes, &mut changes)?;
        }
        let mut touched = Vec::new();
        self.strike(id, step, strikes, &buffers, is_reached, untouched.as_deref(), scratch, &mut bytes, &mut touched);
        if let Some(input) = first {
            for (&(index, _), &byte) in buffers.activations.iter().zip(&saved) {
                scratch.tensors[input.0][index] = byte;
            }
        }
        if !touched.is_empty() {
            merge(&mut changes, touched, &bytes, &self.tensors[step.output.0], rows_of(output));
        }
        if let Some(StruckWord { output: Some((at, _, after)), .. }) = &mut word {
            *after = bytes[*at];
        }
        scratch.tensors[step.output.0] = bytes;
        scratch.changes[step.output.0] = changes;
        Ok(word)
    }

    /// What changed inputs do to the output, without the step's own strikes on outputs and weights.
    #[expect(clippy::too_many_arguments, reason = "the step's surroundings, used once")]
    fn propagate(
        &self,
        id: StepId,
        step: &Step,
        buffers: &Buffers,
        untouched: Option<&[u8]>,
        scratch: &mut TrialScratch,
        bytes: &mut [u8],
        changes: &mut Changes,
    ) -> Result<(), ProcessorError> {
        let program = self.shared.program();
        let kernel = &self.shared.plan.kernels[id.0];
        let golden = &self.tensors[step.output.0];
        let (rows, row_bytes) = rows_of(program.tensor(step.output));
        if let (Op::Linear(linear), StepKernel::Linear(kernel)) = (&step.op, kernel) {
            let input = step.inputs[0];
            let from = linear::Input {
                golden: &self.tensors[input.0],
                working: &scratch.tensors[input.0],
                changes: &scratch.changes[input.0],
                struck: &buffers.activations,
            };
            let to = linear::Output { golden, working: bytes, changes };
            let shared = linear::Shared {
                linear,
                kernel,
                transposed: self.shared.transposed[id.0].as_deref(),
                sums: &self.accumulators[id.0],
                isa: self.shared.plan.isa,
            };
            return shared.propagate(&from, to, &mut scratch.linear, &mut scratch.kernel).map_err(engine);
        }
        let is_elementwise =
            matches!(kernel, StepKernel::Add { .. } | StepKernel::Pairs(_) | StepKernel::Table(_) | StepKernel::Copy);
        let span = |scratch: &TrialScratch| {
            let of_inputs =
                step.inputs.iter().map(|input| scratch.changes[input.0].rows.clone()).filter(|rows| !rows.is_empty());
            of_inputs.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end))
        };
        if is_elementwise && untouched.is_none() && buffers.activations.is_empty() {
            let is_long = step.inputs.iter().any(|input| scratch.changes[input.0].is_long);
            let count: usize = step.inputs.iter().map(|input| scratch.changes[input.0].list.len()).sum();
            if !is_long && count < 256 {
                let mut places: Vec<u32> =
                    step.inputs.iter().flat_map(|input| scratch.changes[input.0].list.iter().copied()).collect();
                places.sort_unstable();
                places.dedup();
                for at in places {
                    let at = at as usize;
                    let byte = element(kernel, step, &scratch.tensors, at);
                    if byte != golden[at] {
                        bytes[at] = byte;
                        changes.push(at);
                    }
                }
                changes.finish(row_bytes);
                return Ok(());
            }
            if let Some(rows) = span(scratch).filter(|_| same_rows(program, step)) {
                let range = rows.start * row_bytes..(rows.end * row_bytes).min(bytes.len());
                let inputs: Vec<&[u8]> =
                    step.inputs.iter().map(|input| &scratch.tensors[input.0][range.clone()]).collect();
                let out = &mut bytes[range];
                run_elementwise(&self.shared.plan, program, step, kernel, &inputs, out)?;
                changes.compare(bytes, golden, rows, row_bytes);
                return Ok(());
            }
        }
        if let (StepKernel::MaxPool(pool), true, Some(rows_in)) =
            (kernel, buffers.activations.is_empty(), span(scratch))
        {
            let out_rows = reading_rows(rows_in, rows, pool.kernel[0], pool.stride[0], pool.dilation[0], pool.pads[0]);
            let range = out_rows.start * row_bytes..out_rows.end * row_bytes;
            let input = &scratch.tensors[step.inputs[0].0];
            pool.max(self.shared.plan.isa, input, out_rows.clone(), &mut bytes[range]).map_err(engine)?;
            changes.compare(bytes, golden, out_rows, row_bytes);
            return Ok(());
        }
        let inputs: Vec<&[u8]> = step
            .inputs
            .iter()
            .enumerate()
            .map(|(at, input)| match untouched {
                Some(copy) if at > 0 && *input == step.inputs[0] => copy,
                _ => scratch.tensors[input.0].as_slice(),
            })
            .collect();
        self.shared.plan.compute(step, kernel, &inputs, bytes, std::slice::from_mut(&mut scratch.kernel))?;
        changes.compare(bytes, golden, 0..rows, row_bytes);
        Ok(())
    }

    /// The step's own strikes on weights, products, accumulators and stored words; lists the outputs it touched.
    #[expect(clippy::too_many_arguments, reason = "the step's surroundings, used once")]
    fn strike(
        &self,
        id: StepId,
        step: &Step,
        strikes: &[Strike],
        buffers: &Buffers,
        is_reached: bool,
        untouched: Option<&[u8]>,
        scratch: &TrialScratch,
        bytes: &mut [u8],
        touched: &mut Vec<usize>,
    ) {
        if strikes.is_empty() {
            return;
        }
        let program = self.shared.program();
        let protection = &self.shared.protection;
        let plan = &self.shared.plan;
        let unit =
            Unit { tensor: program.tensor(step.output), flags: protection.channels(id), vote: protection.vote() };
        let replicas = [strikes, &[], &[]];
        let words = story::words(program, step, &plan.machine);
        touched
            .extend(strikes.iter().filter_map(|strike| story::output_of(strike, words)).filter(|&at| at < bytes.len()));
        touched.extend(buffers.overrides.iter().map(|&(output, _)| output as usize));
        match (&step.op, &plan.kernels[id.0], words) {
            (Op::Linear(linear), StepKernel::Linear(kernel), Some(words)) => {
                let operands = Operands {
                    linear,
                    map: kernel.map,
                    input: &scratch.tensors[step.inputs[0].0],
                    zero_point: program.tensor(step.inputs[0]).zero_point,
                    isa: plan.isa,
                };
                let outputs = LinearOutputs::new(linear, kernel, operands, &buffers.weights);
                if !buffers.weights.is_empty() {
                    if is_reached || !buffers.activations.is_empty() {
                        outputs.recompute(bytes);
                    } else {
                        outputs.shift(&self.accumulators[id.0], &buffers.weights, bytes);
                    }
                    let channels = linear.geometry.out_channels;
                    for channel in outputs.struck_channels() {
                        touched.extend((channel..bytes.len()).step_by(channels));
                    }
                }
                patch_products(&unit, &outputs, words, replicas, &buffers.overrides, None, bytes);
            }
            (Op::MatMul(product), StepKernel::MatMul(finish), Some(words)) => {
                let [left, right] = [step.inputs[0], step.inputs[1]].map(|input| scratch.tensors[input.0].as_slice());
                let right = if step.inputs[0] == step.inputs[1] { untouched.unwrap_or(right) } else { right };
                let outputs = MatMulOutputs::new(program, step, product, finish, [left, right]);
                patch_products(&unit, &outputs, words, replicas, &buffers.overrides, None, bytes);
            }
            _ => patch_stored(&unit, replicas, bytes),
        }
    }
}

/// Whether all inputs have the output's shape, so that rows stay rows.
fn same_rows(program: &Program, step: &Step) -> bool {
    let shape = &program.tensor(step.output).shape;
    step.inputs.iter().all(|&input| &program.tensor(input).shape == shape)
}

/// One output of an elementwise step.
fn element(kernel: &StepKernel, step: &Step, tensors: &[Vec<u8>], at: usize) -> u8 {
    let input = |number: usize| tensors[step.inputs[number].0][at];
    match kernel {
        StepKernel::Add { add, is_swapped } => {
            let (a, b) = if *is_swapped { (input(0), input(1)) } else { (input(1), input(0)) };
            add.apply(a, b)
        }
        StepKernel::Pairs(pairs) => pairs[usize::from(input(0)) << 8 | usize::from(input(1))],
        StepKernel::Table(table) => table[usize::from(input(0))],
        _ => input(0),
    }
}

/// A stretch of an elementwise step.
fn run_elementwise(
    plan: &Plan,
    program: &Program,
    step: &Step,
    kernel: &StepKernel,
    inputs: &[&[u8]],
    out: &mut [u8],
) -> Result<(), ProcessorError> {
    run_plain(plan.isa, program, step, kernel, inputs, out)
        .map_err(|what| ProcessorError::Engine { processor: "propagation".to_owned(), what })
}

/// Output rows of a window that read input rows `rows`.
fn reading_rows(
    rows: Range<usize>,
    limit: usize,
    kernel: usize,
    stride: usize,
    dilation: usize,
    pad: usize,
) -> Range<usize> {
    let reach = (kernel - 1) * dilation;
    let first = (rows.start + pad).saturating_sub(reach).div_ceil(stride).min(limit);
    let end = ((rows.end + pad).saturating_sub(1) / stride + 1).min(limit);
    first..end.max(first)
}

/// Adds outputs that strikes touched to the changes.
fn merge(
    changes: &mut Changes,
    mut touched: Vec<usize>,
    bytes: &[u8],
    golden: &[u8],
    (rows, row_bytes): (usize, usize),
) {
    if changes.is_long {
        touched.sort_unstable();
        let (first, last) = (touched[0] / row_bytes.max(1), touched[touched.len() - 1] / row_bytes.max(1));
        let span = changes.rows.start.min(first)..changes.rows.end.max(last + 1).min(rows);
        changes.compare(bytes, golden, span, row_bytes);
        return;
    }
    touched.extend(changes.list.iter().map(|&at| at as usize));
    touched.sort_unstable();
    touched.dedup();
    changes.clear();
    touched.into_iter().filter(|&at| bytes[at] != golden[at]).for_each(|at| changes.push(at));
    changes.finish(row_bytes);
    if changes.is_long {
        changes.rows = 0..rows;
    }
}

impl Golden {
    /// Runs the picture through `simulator`, which must hold the same program, and compares with the golden output.
    ///
    /// # Errors
    /// What the simulator says.
    pub fn agrees_with(&self, simulator: &mut Simulator, picture: u64) -> Result<bool, ProcessorError> {
        let program = self.shared.program();
        let input = &self.tensors[program.input().0];
        let batch = Batch { pictures: &[picture], input };
        let trace = simulator.forward(&Request { batch, trial: 0, views: &[], wanted: &[] })?;
        Ok(trace.output == self.tensors[program.output().0])
    }
}
