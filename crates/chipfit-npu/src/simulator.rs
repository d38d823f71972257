//! The fast processor: the clean integer result at full SIMD speed, and the struck outputs patched exactly.
//!
//! It equals the naive [`crate::twin`] bit for bit, for every site, kind, rate and protection, whatever the batch size,
//! the number of threads, the instruction set and the order of the pictures.
//!
//! A batch is cut into chunks of pictures whose activations fit the second-level cache; threads take chunks. One
//! picture alone is divided inside each linear step. Read `execute` first, then `patch`, `struck`, `operands`.

pub(crate) mod buffers;
pub(crate) mod execute;
pub(crate) mod kernel;
pub(crate) mod operands;
pub(crate) mod patch;
mod plan;
pub(crate) mod struck;
#[cfg(test)]
mod tests;
pub(crate) mod update;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use chipfit_kernels::Isa;
use rayon::prelude::*;

use crate::faults::StrikeSource;
use crate::machine::Machine;
use chipfit_model::Model;

use crate::processor::{Batch, Processor, ProcessorError, Request, TensorDelta, Trace};
use crate::program::{Op, Program, StepId, TensorId};
use crate::protection::Protection;
use execute::{Faults, Job, Plan, Workspace};
use kernel::StepKernel;
use plan::Layout;

/// How a [`Simulator`] computes; nothing here changes a fault-free result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimulatorOptions {
    /// Instruction set; the best of this machine when `None`.
    pub isa: Option<Isa>,
    /// Threads, at least 1.
    pub threads: usize,
    /// What the faults must know of the chip.
    pub machine: Machine,
    /// Pictures that go through the network together on one thread; chosen by the size of the activations when `None`.
    pub chunk: Option<usize>,
}

impl Default for SimulatorOptions {
    fn default() -> Self {
        Self { isa: None, threads: 1, machine: Machine::default(), chunk: None }
    }
}

/// The simulated integer processor.
pub struct Simulator {
    plan: Arc<Plan>,
    protection: Protection,
    source: Option<Arc<dyn StrikeSource + Send + Sync>>,
    seed: u64,
    threads: usize,
    pool: Option<rayon::ThreadPool>,
    workspaces: Mutex<Vec<Workspace>>,
    /// The workspace of a picture that all threads divide.
    divided: Workspace,
}

impl fmt::Debug for Simulator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Simulator").field("description", &self.describe()).finish_non_exhaustive()
    }
}

fn failure(what: impl fmt::Display) -> ProcessorError {
    ProcessorError::Engine { processor: "simulator".to_owned(), what: what.to_string() }
}

impl Simulator {
    /// Packs the program's weights.
    ///
    /// # Errors
    /// [`ProcessorError::Engine`] when this machine lacks the instruction set, when a step's constants do not fit its
    /// shapes, or when threads cannot be started.
    pub fn new(program: Program, options: SimulatorOptions) -> Result<Self, ProcessorError> {
        let isa = options.isa.unwrap_or_else(Isa::best);
        let kernels: Result<Vec<StepKernel>, ProcessorError> = program
            .steps()
            .iter()
            .map(|step| {
                StepKernel::new(isa, &program, step)
                    .map_err(|error| failure(format_args!("step '{}': {error}", step.name)))
            })
            .collect();
        let layout = Layout::new(&program, options.chunk);
        let threads = options.threads.max(1);
        let pool = match threads {
            1 => None,
            _ => Some(rayon::ThreadPoolBuilder::new().num_threads(threads).build().map_err(failure)?),
        };
        let plan = Arc::new(Plan { program, kernels: kernels?, layout, isa, machine: options.machine });
        Ok(Self {
            plan,
            protection: Protection::none(),
            source: None,
            seed: 0,
            threads,
            pool,
            workspaces: Mutex::new(Vec::new()),
            divided: Workspace::default(),
        })
    }

    /// Takes strikes from `source`, whose draws are keyed by `seed`.
    #[must_use]
    pub fn with_faults(mut self, source: Arc<dyn StrikeSource + Send + Sync>, seed: u64) -> Self {
        self.source = Some(source);
        self.seed = seed;
        self
    }

    /// Computes these units three times.
    #[must_use]
    pub fn with_protection(mut self, protection: Protection) -> Self {
        self.protection = protection;
        self
    }

    /// Takes another program of the same structure ([`Program::has_structure_of`]); faults and protection stay.
    ///
    /// # Errors
    /// [`ProcessorError::Engine`] for a program of another structure; nothing has changed then.
    pub fn replace(&mut self, program: Program) -> Result<(), ProcessorError> {
        if !program.has_structure_of(&self.plan.program) {
            return Err(failure("the new model has another structure than the one it was started with"));
        }
        let options = SimulatorOptions {
            isa: Some(self.plan.isa),
            threads: 1,
            machine: self.plan.machine,
            chunk: Some(self.plan.layout.chunk),
        };
        self.plan = Self::new(program, options)?.plan;
        Ok(())
    }

    /// The clean result of one step for some pictures, from inputs that the caller brings; faults and protection play
    /// no part. What a device's tensors should have been, given the tensors before them.
    ///
    /// # Errors
    /// [`ProcessorError::Engine`] for a step that the program does not have, or inputs of another size.
    pub fn predict(&mut self, id: StepId, pictures: usize, inputs: &[&[u8]]) -> Result<Vec<u8>, ProcessorError> {
        let plan = &self.plan;
        let step = plan.program.steps().get(id.0).ok_or_else(|| failure(format_args!("no step {}", id.0)))?;
        let elements = |tensor: TensorId| plan.program.tensor(tensor).elements();
        let fits = |(&tensor, bytes): (&TensorId, &&[u8])| elements(tensor).checked_mul(pictures) == Some(bytes.len());
        if inputs.len() != step.inputs.len() || !step.inputs.iter().zip(inputs).all(fits) {
            return Err(failure(format_args!("step '{}': inputs of another number or size", step.name)));
        }
        let mut out = vec![0; elements(step.output) * pictures];
        let chunk = plan.layout.chunk.min(pictures.div_ceil(self.threads)).max(1);
        let mut jobs: Vec<(usize, &mut [u8])> =
            out.chunks_mut((elements(step.output) * chunk).max(1)).enumerate().collect();
        let workspaces = &self.workspaces;
        let work = |(number, out): &mut (usize, &mut [u8])| {
            let count = chunk.min(pictures - *number * chunk);
            let parts = step.inputs.iter().zip(inputs).map(|(&tensor, &bytes)| {
                let each = elements(tensor);
                &bytes[*number * chunk * each..][..count * each]
            });
            let parts: Vec<&[u8]> = parts.collect();
            let kept = workspaces.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let mut workspace = kept.unwrap_or_else(|| Workspace::new(plan, 1));
            let result = plan.compute(step, &plan.kernels[id.0], &parts, out, workspace.scratches());
            workspaces.lock().unwrap_or_else(PoisonError::into_inner).push(workspace);
            result
        };
        match &self.pool {
            Some(pool) => pool.install(|| jobs.par_iter_mut().with_max_len(1).try_for_each(work))?,
            None => jobs.iter_mut().try_for_each(work)?,
        }
        Ok(out)
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.plan.isa
    }

    /// Bytes it holds: constants of the program, packed weights, and the activations and scratch memory of every
    /// thread that has worked so far.
    pub fn memory_bytes(&self) -> usize {
        let constants: usize = self
            .plan
            .program
            .steps()
            .iter()
            .map(|step| match &step.op {
                Op::Linear(linear) => linear.weights.len() + 4 * linear.bias.len(),
                _ => 0,
            })
            .sum();
        let workspaces = self.workspaces.lock().unwrap_or_else(PoisonError::into_inner);
        let working: usize = workspaces.iter().map(Workspace::bytes).sum();
        constants + self.plan.bytes() + working + self.divided.bytes()
    }

    /// What does not change between passes, for [`crate::Golden`].
    pub(crate) fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// The units that are computed three times.
    pub(crate) fn protection(&self) -> &Protection {
        &self.protection
    }

    fn forward_chunks(&mut self, request: &Request<'_>, trace: &mut Trace) -> Result<(), ProcessorError> {
        let faults = Faults {
            source: self.source.as_deref().map(|source| source as &dyn StrikeSource),
            protection: &self.protection,
            seed: self.seed,
            trial: request.trial,
        };
        let pictures = request.batch.pictures;
        let plan = &self.plan;
        let divided = self.pool.as_ref().filter(|_| pictures.len() < self.threads);
        // With fewer pictures than threads, the threads divide each picture; else chunks fill all threads.
        let chunk = match divided {
            Some(_) => 1,
            None => plan.layout.chunk.min(pictures.len().div_ceil(self.threads)).max(1),
        };
        let mut jobs = jobs(plan, request, trace, chunk);
        if let Some(pool) = divided {
            if self.divided.bytes() == 0 {
                self.divided = Workspace::new(plan, self.threads);
            }
            let workspace = &mut self.divided;
            pool.install(|| jobs.iter_mut().try_for_each(|job| plan.run(&faults, job, workspace)))?;
        } else {
            let workspaces = &self.workspaces;
            let work = |job: &mut Job<'_>| {
                let kept = workspaces.lock().unwrap_or_else(PoisonError::into_inner).pop();
                let mut workspace = kept.unwrap_or_else(|| Workspace::new(plan, 1));
                let result = plan.run(&faults, job, &mut workspace);
                workspaces.lock().unwrap_or_else(PoisonError::into_inner).push(workspace);
                result
            };
            match &self.pool {
                Some(pool) => pool.install(|| jobs.par_iter_mut().with_max_len(1).try_for_each(work))?,
                None => jobs.iter_mut().try_for_each(work)?,
            }
        }
        let strikes = jobs.iter().map(|job| job.strikes).sum();
        trace.strikes = Some(strikes);
        Ok(())
    }
}

/// Cuts a request into chunks and its trace's memory with it.
fn jobs<'a>(plan: &Plan, request: &Request<'a>, trace: &'a mut Trace, chunk: usize) -> Vec<Job<'a>> {
    let program = &plan.program;
    let elements = |tensor: TensorId| program.tensor(tensor).elements().max(1) * chunk;
    let mut wanted: Vec<_> =
        trace.tensors.iter_mut().map(|(&tensor, bytes)| (tensor, bytes.chunks_mut(elements(tensor)))).collect();
    let outputs = trace.output.chunks_mut(elements(program.output()));
    let inputs = request.batch.input.chunks(elements(program.input()));
    request
        .batch
        .pictures
        .chunks(chunk)
        .zip(inputs)
        .zip(outputs)
        .map(|((pictures, input), output)| Job {
            pictures,
            input,
            output,
            wanted: wanted.iter_mut().filter_map(|(tensor, chunks)| Some((*tensor, chunks.next()?))).collect(),
            strikes: 0,
        })
        .collect()
}

impl Processor for Simulator {
    fn describe(&self) -> String {
        let threads = match self.threads {
            1 => "1 thread".to_owned(),
            more => format!("{more} threads"),
        };
        let faults = if self.source.is_some() { "with faults" } else { "no faults" };
        format!("simulated integer processor, {} kernels, {threads}, {faults}", self.plan.isa.name())
    }

    fn program(&self) -> &Program {
        &self.plan.program
    }

    fn update(&mut self, deltas: &[TensorDelta]) -> Result<(), ProcessorError> {
        let plan = Arc::make_mut(&mut self.plan);
        for position in update::apply(&mut plan.program, deltas)? {
            let step = &plan.program.steps()[position];
            plan.kernels[position] = StepKernel::new(plan.isa, &plan.program, step)
                .map_err(|error| failure(format_args!("step '{}': {error}", step.name)))?;
        }
        Ok(())
    }

    fn load(&mut self, model: &Model) -> Result<(), ProcessorError> {
        let program = Program::lower(model, self.plan.program.options()).map_err(failure)?;
        self.replace(program)
    }

    fn protect(&mut self, protection: &Protection) -> Result<(), ProcessorError> {
        self.protection = protection.clone();
        Ok(())
    }

    fn forward(&mut self, request: &Request<'_>) -> Result<Trace, ProcessorError> {
        let pictures = request.batch.pictures.len();
        let seen = request.seen(&self.plan.program)?;
        let request = &Request { batch: Batch { input: &seen, ..request.batch }, views: &[], ..*request };
        let mut trace = Trace::default();
        let bytes = |tensor: TensorId| vec![0; self.plan.program.tensor(tensor).elements() * pictures];
        for &tensor in request.wanted {
            if tensor.0 >= self.plan.program.tensors().len() {
                return Err(failure(format_args!("the program has no tensor {}", tensor.0)));
            }
            trace.tensors.insert(tensor, bytes(tensor));
        }
        trace.output = bytes(self.plan.program.output());
        self.forward_chunks(request, &mut trace)?;
        Ok(trace)
    }
}
