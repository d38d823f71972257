//! The gradient of a loss through a program, given what the processor really computed.
//!
//! Forward values are the bytes of the trace as real numbers, errors included. The gradient goes straight through
//! every rounding and is 0 where the byte lies at an end of the step's range. `docs/retraining.md`, section Gradients,
//! has every formula.
//!
//! The batch is cut into lanes, a lane into slices of pictures; both depend on the program and the batch alone. A lane's
//! slices add to the lane's gradients in order, and lanes are added in ascending order: the same bits for any number of
//! threads.
//!
//! Read [`Backward::new`], then `plan` (what each step needs), then `ops` (the formulas).

mod ops;
mod plan;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use std::sync::{Mutex, PoisonError};

use chipfit_npu::{Program, StepId, TensorId, Trace};
use rayon::prelude::*;

use crate::error::TrainError;
use crate::kernel::KernelScratch;
use crate::parameters::{Kind, Parameter, parameters};
use plan::{Rule, StepPlan};

/// Gradients of every parameter, in the order of [`Backward::parameters`].
pub type Gradients = Vec<Vec<f32>>;

/// The backward pass of one program.
#[derive(Debug)]
pub struct Backward {
    program: Program,
    parameters: Vec<Parameter>,
    plans: Vec<StepPlan>,
    wanted: Vec<TensorId>,
    pool: Option<rayon::ThreadPool>,
    workspaces: Mutex<Vec<Workspace>>,
    lanes: Mutex<Vec<Gradients>>,
}

/// Memory of one thread.
#[derive(Debug, Default)]
struct Workspace {
    /// Gradients by tensor, of one slice.
    gradients: Vec<Option<Vec<f32>>>,
    /// Buffers to reuse.
    spare: Vec<Vec<f32>>,
    kernel: KernelScratch,
}

/// Part of a batch: positions of its pictures.
#[derive(Clone, Copy, Debug)]
struct Slice {
    start: usize,
    pictures: usize,
}

/// Lanes of a batch; at most so many threads work at once.
const LANES: usize = 4;
/// Real numbers of the largest tensor that a slice may hold.
const SLICE_ELEMENTS: usize = 1 << 19;

impl Backward {
    /// Plans the backward pass of `program` on `threads` threads, with the weights that the program holds.
    ///
    /// # Errors
    /// [`TrainError::Unsupported`] for a step whose gradient is not known, [`TrainError::Step`] for constants that do
    /// not fit, [`TrainError::Threads`].
    pub fn new(program: &Program, threads: usize) -> Result<Self, TrainError> {
        let parameters = parameters(program)?;
        let plans = plan::plans(program, &parameters)?;
        let wanted = plan::wanted(program, &plans);
        let pool = match threads {
            0 | 1 => None,
            _ => {
                let built = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
                Some(built.map_err(|e| TrainError::Threads(e.to_string()))?)
            }
        };
        let mut backward = Self {
            program: program.clone(),
            parameters,
            plans,
            wanted,
            pool,
            workspaces: Mutex::default(),
            lanes: Mutex::default(),
        };
        for at in 0..backward.parameters.len() {
            let integers = backward.parameters[at].held(program)?;
            backward.load(at, &integers)?;
        }
        Ok(backward)
    }

    /// The trained constants: their names, lengths and scales.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// The tensors whose bytes the trace must hold, ascending.
    pub fn wanted(&self) -> &[TensorId] {
        &self.wanted
    }

    /// New integers of one parameter (by its position); biases change no gradient.
    ///
    /// # Errors
    /// [`TrainError::Step`] when there is no such parameter or it has another length.
    pub fn load(&mut self, parameter: usize, integers: &[i32]) -> Result<(), TrainError> {
        let Some(known) = self.parameters.get(parameter) else {
            return Err(TrainError::step("?", format!("there is no parameter {parameter}")));
        };
        if integers.len() != known.length {
            return Err(TrainError::step(&known.name, format!("{} values for {}", integers.len(), known.length)));
        }
        if known.kind == Kind::Bias {
            return Ok(());
        }
        let reals = known.real(integers);
        for step in known.steps.clone() {
            if let Some(Rule::Linear(linear)) = self.plans.get_mut(step.0).map(|plan| &mut plan.rule) {
                linear.kernel.load(&reals).map_err(|e| TrainError::step(&known.name, e))?;
            }
        }
        Ok(())
    }

    /// Gradients of all parameters of length 0, ready to be added to.
    pub fn zeros(&self) -> Gradients {
        self.parameters.iter().map(|parameter| vec![0.0; parameter.length]).collect()
    }

    /// Adds to `gradients` the gradients of a loss whose derivative by the real output values is `output_gradient`
    /// (picture after picture, `[pictures][elements of the output]`).
    ///
    /// `input` holds the pictures' bytes as the processor saw them, views applied; `trace` must hold [`Self::wanted`].
    ///
    /// # Errors
    /// [`TrainError::Trace`] when a tensor is missing or has another length, [`TrainError::Step`] when a buffer has.
    pub fn run(
        &self,
        input: &[u8],
        trace: &Trace,
        output_gradient: &[f32],
        gradients: &mut Gradients,
    ) -> Result<(), TrainError> {
        let pictures = self.check(input, trace, output_gradient, gradients)?;
        let slice = self.slice_pictures();
        let per_lane = pictures.div_ceil(LANES).max(1);
        let starts: Vec<usize> = (0..pictures).step_by(per_lane).collect();
        let lane = |&start: &usize| -> Result<Gradients, TrainError> {
            let mut own = self.lane_memory();
            let end = (start + per_lane).min(pictures);
            let mut workspace =
                self.workspaces.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
            let result = (start..end).step_by(slice).try_for_each(|at| {
                let part = Slice { start: at, pictures: slice.min(end - at) };
                self.slice(input, trace, output_gradient, part, &mut own, &mut workspace, &mut |_, _| {})
            });
            self.workspaces.lock().unwrap_or_else(PoisonError::into_inner).push(workspace);
            result.map(|()| own)
        };
        let lanes: Result<Vec<Gradients>, TrainError> = match &self.pool {
            Some(pool) => pool.install(|| starts.par_iter().with_max_len(1).map(lane).collect()),
            None => starts.iter().map(lane).collect(),
        };
        let lanes = lanes?;
        // The lanes' sum first, so that what the caller held before is added to once.
        let add = |(at, sum): (usize, &mut Vec<f32>)| {
            let parts: Vec<&[f32]> = lanes.iter().filter_map(|lane| lane.get(at).map(Vec::as_slice)).collect();
            let Some((first, others)) = parts.split_first() else { return };
            for (element, sum) in sum.iter_mut().enumerate() {
                *sum += others.iter().fold(first[element], |total, part| total + part[element]);
            }
        };
        match &self.pool {
            Some(pool) => pool.install(|| gradients.par_iter_mut().enumerate().with_max_len(1).for_each(add)),
            None => gradients.iter_mut().enumerate().for_each(add),
        }
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner).extend(lanes);
        Ok(())
    }

    /// Calls `visit` with every step and the derivative of the loss by its stored real output values, for some pictures
    /// after others: step, first picture, `[pictures][elements]`. Arguments as in [`Self::run`].
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn adjoints(
        &self,
        input: &[u8],
        trace: &Trace,
        output_gradient: &[f32],
        mut visit: impl FnMut(StepId, usize, &[f32]),
    ) -> Result<(), TrainError> {
        let mut own = self.lane_memory();
        let pictures = self.check(input, trace, output_gradient, &own)?;
        let mut workspace = Workspace::default();
        let slice = self.slice_pictures();
        for start in (0..pictures).step_by(slice) {
            let part = Slice { start, pictures: slice.min(pictures - start) };
            let mut here = |step: usize, gradient: &[f32]| visit(StepId(step), start, gradient);
            self.slice(input, trace, output_gradient, part, &mut own, &mut workspace, &mut here)?;
        }
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner).push(own);
        Ok(())
    }

    /// Pictures whose largest tensor stays small.
    fn slice_pictures(&self) -> usize {
        let widest = self.program.tensors().iter().map(|tensor| tensor.elements()).max().unwrap_or(1).max(1);
        (SLICE_ELEMENTS / widest).max(1)
    }

    /// Gradients of one lane, all 0.
    fn lane_memory(&self) -> Gradients {
        let kept = self.lanes.lock().unwrap_or_else(PoisonError::into_inner).pop();
        match kept {
            Some(mut kept) => {
                kept.iter_mut().for_each(|part| part.fill(0.0));
                kept
            }
            None => self.zeros(),
        }
    }

    /// The number of pictures, every length checked.
    fn check(
        &self,
        input: &[u8],
        trace: &Trace,
        output_gradient: &[f32],
        gradients: &Gradients,
    ) -> Result<usize, TrainError> {
        let tensor = self.program.tensor(self.program.input());
        let each = tensor.elements().max(1);
        let pictures = input.len() / each;
        let wrong = |name: &str, have: usize, want: usize| TrainError::Trace { tensor: name.to_owned(), have, want };
        if pictures * each != input.len() {
            return Err(wrong(&tensor.name, input.len(), (pictures + 1) * each));
        }
        for &id in &self.wanted {
            let tensor = self.program.tensor(id);
            let (have, want) = (self.bytes(trace, input, id).len(), pictures * tensor.elements());
            if have != want {
                return Err(wrong(&tensor.name, have, want));
            }
        }
        let output = self.program.tensor(self.program.output());
        if output_gradient.len() != pictures * output.elements() {
            let what = format!("{} gradients for {} outputs", output_gradient.len(), pictures * output.elements());
            return Err(TrainError::step(&output.name, what));
        }
        let fits = gradients.len() == self.parameters.len()
            && gradients.iter().zip(&self.parameters).all(|(part, parameter)| part.len() == parameter.length);
        if !fits {
            return Err(TrainError::step("gradients", "other lengths than the parameters"));
        }
        Ok(pictures)
    }

    /// The bytes of a tensor; empty when the trace lacks it.
    fn bytes<'a>(&self, trace: &'a Trace, input: &'a [u8], id: TensorId) -> &'a [u8] {
        if id == self.program.input() {
            return input;
        }
        if id == self.program.output() {
            return &trace.output;
        }
        trace.tensors.get(&id).map_or(&[], Vec::as_slice)
    }

    /// Adds one slice's gradients to `own`; `visit` sees the derivative by each step's stored output before its mask.
    #[allow(clippy::too_many_arguments, reason = "one call site a use; the parts are borrowed apart")]
    fn slice(
        &self,
        input: &[u8],
        trace: &Trace,
        output_gradient: &[f32],
        part: Slice,
        own: &mut Gradients,
        workspace: &mut Workspace,
        visit: &mut impl FnMut(usize, &[f32]),
    ) -> Result<(), TrainError> {
        let of = |id: TensorId| -> &[u8] {
            let each = self.program.tensor(id).elements();
            self.bytes(trace, input, id).get(part.start * each..(part.start + part.pictures) * each).unwrap_or(&[])
        };
        workspace.begin(self.program.tensors().len());
        let each = self.program.tensor(self.program.output()).elements();
        let mut first = workspace.spare.pop().unwrap_or_default();
        first.clear();
        first.extend_from_slice(&output_gradient[part.start * each..(part.start + part.pictures) * each]);
        workspace.gradients[self.program.output().0] = Some(first);
        for (at, (step, plan)) in self.program.steps().iter().zip(&self.plans).enumerate().rev() {
            let Some(mut gradient) = workspace.gradients[step.output.0].take() else { continue };
            visit(at, &gradient);
            if let Some(mask) = plan.mask {
                ops::mask(&mut gradient, of(step.output), mask);
            }
            ops::propagate(&self.program, step, plan, part.pictures, &of, gradient, own, workspace)?;
        }
        Ok(())
    }
}

impl Workspace {
    /// Keeps the buffers of the last slice for the next.
    fn begin(&mut self, tensors: usize) {
        let left = std::mem::take(&mut self.gradients);
        self.spare.extend(left.into_iter().flatten());
        self.gradients.resize(tensors, None);
    }

    /// A buffer of `length` zeros.
    fn zeros(&mut self, length: usize) -> Vec<f32> {
        let mut buffer = self.spare.pop().unwrap_or_default();
        buffer.clear();
        buffer.resize(length, 0.0);
        buffer
    }

    /// A buffer of `length` numbers that the caller overwrites.
    fn buffer(&mut self, length: usize) -> Vec<f32> {
        let mut buffer = self.spare.pop().unwrap_or_default();
        buffer.resize(length, 0.0);
        buffer
    }

    /// Adds `part` to a tensor's gradient.
    fn add(&mut self, id: TensorId, part: Vec<f32>) {
        match &mut self.gradients[id.0] {
            Some(sum) => {
                sum.iter_mut().zip(&part).for_each(|(sum, &part)| *sum += part);
                self.spare.push(part);
            }
            empty => *empty = Some(part),
        }
    }
}
