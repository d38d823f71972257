//! Trials on the simulated processor.
//!
//! Single faults are propagated through a picture's golden activations ([`Golden::trial`]). Under rates, each thread
//! that asks borrows a simulator of its own (they are made as needed); a strike or a point's faults are
//! put into the slot that this simulator draws from.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use chipfit_npu::{
    Batch, DrawKey, Faults, Golden, Machine, Masking, Processor, Program, Propagator, Protection, Request, Simulator,
    SimulatorOptions, Site, StepId, Strike, StrikeSource, StruckWord, TensorId, Trace, TrialScratch, Vote,
};

use crate::executor::{Computed, Executor, ExecutorError, Faulty, Masked, MaskedBy};
use crate::subject::PointFacts;

/// Where the pictures come from.
pub trait Pictures: Sync {
    /// Key of the draws of the picture at a place of the data set.
    fn key(&self, index: u64) -> u64;

    /// Quantised input bytes of some pictures, one after another (`Program::quantise_input`).
    ///
    /// # Errors
    /// What the data set says.
    fn input(&self, indices: &[u64]) -> Result<Vec<u8>, ExecutorError>;
}

/// What is simulated.
#[derive(Debug)]
pub struct SimulatedOptions {
    /// Seed of the campaign.
    pub seed: u64,
    /// The chip, in a single-fault campaign.
    pub machine: Machine,
    /// Units that are computed three times.
    pub protection: Protection,
    /// Faults of each point; empty in a single-fault campaign.
    pub points: Vec<Faults>,
}

/// Trials on the simulated processor.
pub struct Simulated<P> {
    program: Program,
    pictures: P,
    options: SimulatedOptions,
    points: Arc<Vec<Faults>>,
    /// Idle simulators, by the chip they simulate.
    idle: Mutex<Vec<(Machine, Worker)>>,
    /// Made with the first golden run; shared by all.
    propagator: OnceLock<Propagator>,
    /// Idle memories of trials.
    scratches: Mutex<Vec<TrialScratch>>,
    clean: Mutex<BTreeMap<u64, Vec<u8>>>,
}

/// A simulator and what it draws from.
struct Worker {
    simulator: Simulator,
    slot: Arc<Slot>,
}

/// What is drawn at the moment.
#[derive(Clone, Copy, Debug)]
enum Active {
    Nothing,
    Strike(StepId, Strike),
    Point(usize),
}

struct Slot {
    active: Mutex<Active>,
    /// Words struck since the worker was taken, by the key of the picture.
    drawn: Mutex<BTreeMap<u64, u64>>,
    points: Arc<Vec<Faults>>,
}

impl StrikeSource for Slot {
    fn strikes(&self, key: &DrawKey, step: StepId, replica: u8, out: &mut Vec<Strike>) {
        match *locked(&self.active) {
            Active::Strike(struck, strike) if struck == step && replica == 0 => out.push(strike),
            Active::Nothing | Active::Strike(..) => {}
            Active::Point(point) => {
                if let Some(faults) = self.points.get(point) {
                    let before = out.len();
                    faults.strikes(key, step, replica, out);
                    // They are sorted: strikes of one word are neighbours, and one struck word.
                    let new = out.get(before..).unwrap_or_default();
                    let words = new.chunk_by(|a, b| (a.site, a.word) == (b.site, b.word)).count();
                    if words > 0 {
                        *locked(&self.drawn).entry(key.picture).or_default() += words as u64;
                    }
                }
            }
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says what a point's faults are.
pub fn point_facts(faults: &Faults, program: &Program, protection: &Protection) -> PointFacts {
    let mut lines = faults.describe(program, protection);
    // The last line is the sum that follows as a number.
    lines.pop();
    // Without faults the sum is -0; adding 0 makes it 0.
    PointFacts { definition: lines.join("; "), expected_flips: faults.expected(program, protection).total() + 0.0 }
}

/// What a struck inference changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Story {
    /// The struck word before and after, of a single strike whose word exists.
    pub struck: Option<StruckWord>,
    /// Steps whose output differs from the clean one, in execution order.
    pub steps: Vec<ChangedStep>,
}

/// A step whose output differs from the clean one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangedStep {
    /// The step.
    pub step: StepId,
    /// Bytes that differ.
    pub changed: u64,
    /// Bytes.
    pub of: u64,
    /// Largest difference in steps of the tensor's scale.
    pub largest: u8,
    /// Place (in the tensor's layout) and stored words, before and after, of the first that differs.
    pub first: Option<(u64, u8, u8)>,
}

impl<P: Pictures> Simulated<P> {
    /// Trials of `program` on `pictures`.
    pub fn new(program: Program, pictures: P, mut options: SimulatedOptions) -> Self {
        let points = Arc::new(std::mem::take(&mut options.points));
        let (idle, clean) = (Mutex::default(), Mutex::default());
        let (propagator, scratches) = (OnceLock::new(), Mutex::default());
        Self { program, pictures, options, points, idle, propagator, scratches, clean }
    }

    /// The program.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Where the pictures come from.
    pub fn pictures(&self) -> &P {
        &self.pictures
    }

    /// The units that are computed three times.
    pub fn protection(&self) -> &Protection {
        &self.options.protection
    }

    /// One line for reports, without threads and kernels, which change no result.
    pub fn describe(&self) -> String {
        "simulated integer processor".to_owned()
    }

    /// The trace, and the words struck for each picture's key.
    fn forward(
        &self,
        active: Active,
        machine: Machine,
        draw: u64,
        indices: &[u64],
        input: &[u8],
        wanted: &[TensorId],
    ) -> Result<(Trace, BTreeMap<u64, u64>), ExecutorError> {
        let kept = {
            let mut idle = locked(&self.idle);
            idle.iter().position(|(known, _)| *known == machine).map(|at| idle.swap_remove(at).1)
        };
        let mut worker = match kept {
            Some(worker) => worker,
            None => {
                let slot = Arc::new(Slot {
                    active: Mutex::new(Active::Nothing),
                    drawn: Mutex::default(),
                    points: self.points.clone(),
                });
                let options = SimulatorOptions { machine, threads: 1, ..SimulatorOptions::default() };
                let simulator = Simulator::new(self.program.clone(), options)?
                    .with_faults(slot.clone(), self.options.seed)
                    .with_protection(self.options.protection.clone());
                Worker { simulator, slot }
            }
        };
        *locked(&worker.slot.active) = active;
        let pictures: Vec<u64> = indices.iter().map(|&index| self.pictures.key(index)).collect();
        let request = Request { batch: Batch { pictures: &pictures, input }, trial: draw, views: &[], wanted };
        let trace = worker.simulator.forward(&request);
        let drawn = std::mem::take(&mut *locked(&worker.slot.drawn));
        locked(&self.idle).push((machine, worker));
        Ok((trace?, drawn))
    }

    /// What one strike changes, step by step.
    ///
    /// # Errors
    /// What the simulator says.
    pub fn story_of_strike(&self, index: u64, step: StepId, strike: Strike) -> Result<Story, ExecutorError> {
        let mut story = self.story(index, Active::Strike(step, strike), self.options.machine, 0)?;
        story.struck = self.golden(index)?.trial(&[(step, strike)], &mut TrialScratch::new())?.struck;
        Ok(story)
    }

    /// What the faults of one point change, step by step.
    ///
    /// # Errors
    /// What the simulator says.
    pub fn story_of_pass(&self, index: u64, point: usize, draw: u64) -> Result<Story, ExecutorError> {
        let machine = self.points.get(point).map_or(self.options.machine, Faults::machine);
        self.story(index, Active::Point(point), machine, draw)
    }

    fn story(&self, index: u64, active: Active, machine: Machine, draw: u64) -> Result<Story, ExecutorError> {
        let wanted: Vec<TensorId> = self.program.steps().iter().map(|step| step.output).collect();
        let input = self.pictures.input(&[index])?;
        let (clean, _) = self.forward(Active::Nothing, machine, 0, &[index], &input, &wanted)?;
        let (struck, _) = self.forward(active, machine, draw, &[index], &input, &wanted)?;
        let mut story = Story { struck: None, steps: Vec::new() };
        for (position, step) in self.program.steps().iter().enumerate() {
            let (Some(before), Some(after)) = (clean.tensors.get(&step.output), struck.tensors.get(&step.output))
            else {
                continue;
            };
            let tensor = self.program.tensor(step.output);
            let pairs = || (0u64..).zip(before.iter().zip(after)).filter(|(_, (a, b))| a != b);
            let changed = pairs().count() as u64;
            if changed > 0 {
                story.steps.push(ChangedStep {
                    step: StepId(position),
                    changed,
                    of: before.len() as u64,
                    largest: pairs().map(|(_, (a, b))| a.abs_diff(*b)).max().unwrap_or(0),
                    first: pairs().next().map(|(at, (a, b))| (at, tensor.to_word(*a), tensor.to_word(*b))),
                });
            }
        }
        Ok(story)
    }

    /// Whether the struck output is one of three replicas, and its strike in the word that is voted on or before it.
    fn is_voted_away(&self, step: StepId, strike: &Strike, struck: Option<StruckWord>) -> bool {
        let Some((output, _, _)) = struck.and_then(|word| word.output) else { return false };
        let Some(described) = self.program.steps().get(step.0) else { return false };
        let protection = &self.options.protection;
        let is_stored_once = strike.site == Site::Out && protection.vote() != Vote::Output;
        let channels = self.program.tensor(described.output).channels().max(1);
        protection.covers(step, output % channels) && !is_stored_once
    }

    fn outputs(&self, trace: &Trace) -> impl Iterator<Item = Vec<u8>> {
        let each = self.program.tensor(self.program.output()).elements().max(1);
        trace.output.chunks(each).map(<[u8]>::to_vec).collect::<Vec<_>>().into_iter()
    }
}

impl<P: Pictures> Executor for Simulated<P> {
    type Golden = Golden;

    /// Computed once a picture and kept: one byte a class and picture.
    fn clean(&self, indices: &[u64]) -> Result<Vec<Vec<u8>>, ExecutorError> {
        let missing: Vec<u64> = {
            let known = locked(&self.clean);
            indices.iter().copied().filter(|index| !known.contains_key(index)).collect()
        };
        if !missing.is_empty() {
            let input = self.pictures.input(&missing)?;
            let (trace, _) = self.forward(Active::Nothing, self.options.machine, 0, &missing, &input, &[])?;
            let mut known = locked(&self.clean);
            known.extend(missing.into_iter().zip(self.outputs(&trace)));
        }
        let known = locked(&self.clean);
        let found: Option<Vec<Vec<u8>>> = indices.iter().map(|index| known.get(index).cloned()).collect();
        found.ok_or_else(|| "the simulator answered too few pictures".into())
    }

    fn golden(&self, index: u64) -> Result<Golden, ExecutorError> {
        let propagator = match self.propagator.get() {
            Some(propagator) => propagator,
            None => {
                let options =
                    SimulatorOptions { machine: self.options.machine, threads: 1, ..SimulatorOptions::default() };
                let simulator =
                    Simulator::new(self.program.clone(), options)?.with_protection(self.options.protection.clone());
                // Another thread may have been first, with the same.
                self.propagator.get_or_init(|| Propagator::new(&simulator))
            }
        };
        Ok(propagator.golden(&self.pictures.input(&[index])?)?)
    }

    fn strike(&self, golden: &Golden, step: StepId, strike: Strike) -> Result<Computed, ExecutorError> {
        let mut scratch = locked(&self.scratches).pop().unwrap_or_default();
        let outcome = golden.trial(&[(step, strike)], &mut scratch);
        let output = scratch.tensor(self.program.output()).to_vec();
        locked(&self.scratches).push(scratch);
        let outcome = outcome?;
        if outcome.is_output_changed {
            return Ok(Computed::Output(output));
        }
        let Some((step, how)) = outcome.masked_at else {
            return Ok(Computed::Masked(Masked { step: None, by: MaskedBy::Unread }));
        };
        let by = match how {
            Masking::Word => MaskedBy::Unchanged,
            Masking::Output if self.is_voted_away(step, &strike, outcome.struck) => MaskedBy::Vote,
            Masking::Output => MaskedBy::Requantized,
            Masking::Absorbed => MaskedBy::Absorbed,
            _ => MaskedBy::Unknown,
        };
        Ok(Computed::Masked(Masked { step: Some(step), by }))
    }

    fn pass(&self, point: usize, draw: u64, indices: &[u64]) -> Result<Vec<Faulty>, ExecutorError> {
        let machine = self.points.get(point).map_or(self.options.machine, Faults::machine);
        let input = self.pictures.input(indices)?;
        let (trace, drawn) = self.forward(Active::Point(point), machine, draw, indices, &input, &[])?;
        let strikes = |index: u64| Some(drawn.get(&self.pictures.key(index)).copied().unwrap_or(0));
        let outputs = indices.iter().zip(self.outputs(&trace));
        Ok(outputs.map(|(&index, output)| Faulty { strikes: strikes(index), output }).collect())
    }
}

#[cfg(test)]
mod tests;
