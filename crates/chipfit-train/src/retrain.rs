//! The loop: quantise the masters, tell the processor what changed, let it compute, take its bytes as forward values,
//! go backward, step.
//!
//! A step's pictures, views, order, learning rate and fault scale are functions of the configuration and the step's
//! number; the processor's draws are keyed by `trial = (step * accumulate + part) * draws + draw`. So a run that was
//! interrupted and resumed ends with the same bits as one that was not, on any number of threads.
//!
//! Read [`Retraining::run`], then `Run::step`.

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Instant;

use chipfit_model::Model;
use chipfit_npu::{Batch, Processor, Request, Simulator, SimulatorOptions, TensorId, Trace, View};

use crate::augment;
use crate::backward::{Backward, Gradients};
use crate::checkpoint;
use crate::config::{Config, Scales};
use crate::curriculum::Faultiness;
use crate::error::TrainError;
use crate::masters::{Increment, Masters};
use crate::narrow;
use crate::observe::{Flow, Observer, StepReport};
use crate::optimizer::{Pace, clip, in_units};
use crate::parameters::Kind;
use crate::pictures::{Accuracy, Pictures, evaluate};
use crate::rescale;
use crate::state::State;

/// Validation's draws never meet training's: trials from here on, one per epoch.
const VALIDATION: u64 = 1 << 62;

/// Pictures by which ranges are judged.
const JUDGED: usize = 256;

/// A run and what it works on.
pub struct Retraining<'a> {
    /// What decides the result.
    pub config: &'a Config,
    /// The QDQ model that the processor was loaded with; needed where scales are estimated anew.
    pub model: Option<&'a Model>,
    /// Pictures to train on.
    pub training: &'a dyn Pictures,
    /// Pictures to judge epochs by.
    pub validation: Option<&'a dyn Pictures>,
    /// Logits of the fault-free model, `[pictures][classes]`, for [`crate::loss::Loss::teacher`].
    pub teacher: Option<&'a [f32]>,
    /// Threads of the backward pass.
    pub threads: usize,
    /// Where to keep the state; resumed from where the file exists.
    pub checkpoint: Option<PathBuf>,
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Everything, as a checkpoint would hold it.
    pub state: State,
    /// False when the observer stopped it.
    pub is_finished: bool,
    /// Step that it was resumed from; 0 for a fresh run.
    pub resumed_from: u64,
    /// SHA-256 of the integers that the processor now holds.
    pub weights_sha256: String,
    /// SHA-256 of the optimizer's state.
    pub optimizer_sha256: String,
    /// The model with the new constants and scales, where the run was given one.
    pub model: Option<Model>,
}

impl Retraining<'_> {
    /// Retrains. Afterwards the processor holds the constants that were kept: the best by validation where there is
    /// validation, else the last.
    ///
    /// # Errors
    /// [`TrainError`]; a checkpoint stays what it was last.
    pub fn run<'p>(
        &self,
        processor: &'p mut dyn Processor,
        faultiness: Option<&'p mut dyn Faultiness>,
        observer: &mut dyn Observer,
    ) -> Result<Outcome, TrainError> {
        self.config.check()?;
        self.check(processor)?;
        let masters = Masters::from_program(processor.program())?;
        let units = masters.parameters().iter().map(|parameter| match self.config.relative {
            true => parameter.units.clone(),
            false => vec![1.0; parameter.units.len()],
        });
        let units = units.collect();
        let state = State::new(self.config, masters);
        let backward = Backward::new(processor.program(), self.threads)?;
        let gradients = backward.zeros();
        let mut run = Run {
            job: self,
            model: self.model.cloned(),
            processor,
            faultiness,
            state,
            wanted: backward.wanted().to_vec(),
            backward,
            gradients,
            order: (u64::MAX, Vec::new()),
            units,
        };
        run.narrow()?;
        let resumed_from = run.resume()?;
        run.train(observer, resumed_from)
    }

    fn check(&self, processor: &dyn Processor) -> Result<(), TrainError> {
        if self.training.is_empty() {
            return Err(TrainError::config("training", "there are no pictures to train on"));
        }
        if self.config.scales != Scales::Frozen && self.model.is_none() {
            return Err(TrainError::config("scales", "estimating scales anew needs the model"));
        }
        if self.config.narrow.is_some() && self.model.is_none() {
            return Err(TrainError::config("narrow", "narrowing ranges needs the model"));
        }
        if self.config.patience.is_some() && self.validation.is_none_or(Pictures::is_empty) {
            return Err(TrainError::config("patience", "an early stop needs validation pictures"));
        }
        let program = processor.program();
        let classes = program.tensor(program.output()).elements();
        for index in 0..self.training.len() {
            let label = self.training.label(index);
            if label >= classes {
                let what = format!("its class is {label}, the model has {classes}");
                return Err(TrainError::Picture { index, what });
            }
        }
        if self.config.loss.teacher > 0.0 {
            let want = self.training.len() * classes;
            if self.teacher.map(<[f32]>::len) != Some(want) {
                return Err(TrainError::config("loss.teacher", format!("it needs {want} logits of a teacher")));
            }
        }
        Ok(())
    }
}

/// A run in progress.
struct Run<'a, 'p> {
    job: &'a Retraining<'a>,
    /// The model as the processor has it, but for constants changed since.
    model: Option<Model>,
    processor: &'p mut dyn Processor,
    faultiness: Option<&'p mut dyn Faultiness>,
    state: State,
    backward: Backward,
    wanted: Vec<TensorId>,
    gradients: Gradients,
    /// Order of the pictures of an epoch.
    order: (u64, Vec<u32>),
    /// Units of every parameter when the run began.
    units: Vec<Vec<f32>>,
}

/// One forward pass: pictures and what came back.
struct Pass {
    indices: Vec<usize>,
    input: Vec<u8>,
    trace: Trace,
}

impl Run<'_, '_> {
    /// Pictures of one optimizer step.
    fn per_step(&self) -> usize {
        self.job.config.batch.saturating_mul(self.job.config.accumulate as usize)
    }

    fn steps_per_epoch(&self) -> u64 {
        self.job.training.len().div_ceil(self.per_step()).max(1) as u64
    }

    fn steps(&self) -> u64 {
        let all = self.steps_per_epoch().saturating_mul(self.job.config.epochs);
        self.job.config.steps.map_or(all, |steps| steps.min(all))
    }

    /// Narrows the ranges of activations, judged by a fault-free simulator on the first pictures of the first epoch.
    fn narrow(&mut self) -> Result<(), TrainError> {
        let Some(share) = self.job.config.narrow else { return Ok(()) };
        let model =
            self.model.as_ref().ok_or_else(|| TrainError::config("narrow", "narrowing ranges needs the model"))?;
        let program = self.processor.program();
        let order = augment::order(self.job.config.seed, 0, self.job.training.len());
        let mut input = Vec::new();
        let mut ids = Vec::new();
        for index in order.into_iter().take(JUDGED).map(|index| index as usize) {
            self.job.training.bytes(index, &mut input)?;
            ids.push(self.job.training.id(index));
        }
        let mut simulator = Simulator::new(program.clone(), SimulatorOptions::default())?;
        let wanted: Vec<TensorId> = (0..program.tensors().len()).map(TensorId).collect();
        let batch = Batch { pictures: &ids, input: &input };
        let trace = simulator.forward(&Request { batch, trial: 0, views: &[], wanted: &wanted })?;
        let narrowed = narrow::narrowed(model, program, &trace, share)?;
        let parameters = self.state.masters.parameters();
        let mut scales: Vec<Vec<f32>> = parameters.iter().map(|parameter| parameter.scales.clone()).collect();
        for (scales, parameter) in scales.iter_mut().zip(parameters).filter(|(_, p)| p.kind == Kind::Bias) {
            let step = parameter.steps.first().and_then(|step| program.steps().get(step.0));
            if let Some((chipfit_npu::Op::Linear(linear), input)) = step.map(|step| (&step.op, step.inputs[0])) {
                *scales = linear.weight_scales.iter().map(|scale| narrowed.scales[input.0] * scale).collect();
            }
        }
        let values = self.state.masters.values();
        let loaded = rescale::with_scales(model, program, parameters, &scales, values, &narrowed.initializers)?;
        self.take_model(loaded)
    }

    /// Takes up a checkpoint where there is one; gives its step.
    fn resume(&mut self) -> Result<u64, TrainError> {
        let Some(path) = &self.job.checkpoint else { return Ok(0) };
        if !path.exists() {
            return Ok(0);
        }
        let read = checkpoint::read(path, &self.job.config.hash(), &self.state)?;
        let scales: Vec<Vec<f32>> =
            self.state.masters.parameters().iter().map(|parameter| parameter.scales.clone()).collect();
        if scales != read.scales {
            let model = self.model.as_ref().ok_or_else(|| TrainError::config("model", "resuming needs the model"))?;
            let loaded = rescale::with_scales(
                model,
                self.processor.program(),
                self.state.masters.parameters(),
                &read.scales,
                &read.values,
                &[],
            )?;
            self.take_model(loaded)?;
        }
        read.into_state(path, &mut self.state)?;
        Ok(self.state.step)
    }

    /// Loads another model of the same structure onto the processor; masters stay.
    fn take_model(&mut self, model: Model) -> Result<(), TrainError> {
        self.processor.load(&model)?;
        let kept = self.state.masters.clone().on_program(self.processor.program())?;
        self.state.masters = kept;
        self.backward = Backward::new(self.processor.program(), self.job.threads)?;
        self.wanted = self.backward.wanted().to_vec();
        self.model = Some(model);
        Ok(())
    }

    fn train(mut self, observer: &mut dyn Observer, resumed_from: u64) -> Result<Outcome, TrainError> {
        let steps = self.steps();
        let per_epoch = self.steps_per_epoch();
        let mut is_stopped = false;
        while self.state.step < steps && !self.state.is_over(self.job.config.patience) && !is_stopped {
            if self.state.step > 0 && self.state.step.is_multiple_of(per_epoch) {
                self.estimate_scales()?;
            }
            let report = self.step(steps)?;
            if self.state.step.is_multiple_of(per_epoch) || self.state.step == steps {
                self.end_epoch(observer)?;
            }
            is_stopped = observer.step(&report) == Flow::Stop;
            let is_due = self.state.step.is_multiple_of(self.job.config.checkpoint_every);
            if let Some(path) =
                self.job.checkpoint.as_ref().filter(|_| is_due || is_stopped || self.state.step == steps)
            {
                checkpoint::write(path, &self.job.config.hash(), &self.state)?;
                observer.checkpoint(&self.state);
            }
        }
        let is_finished = self.state.step >= steps || self.state.is_over(self.job.config.patience);
        match &self.state.best {
            Some(best) if is_finished => {
                let increment = self.state.masters.increment(&best.values);
                self.send(increment)?;
            }
            _ => {
                self.hold_kept()?;
            }
        }
        let model = match self.model.take() {
            None => None,
            Some(mut model) => {
                chipfit_npu::export::write(&mut model, self.processor.program())?;
                Some(model)
            }
        };
        Ok(Outcome {
            weights_sha256: self.state.masters.sha256(),
            optimizer_sha256: self.state.optimizer_sha256(),
            state: self.state,
            is_finished,
            resumed_from,
            model,
        })
    }

    /// Makes the processor hold what is kept, rounded.
    fn hold_kept(&mut self) -> Result<u64, TrainError> {
        let increment = self.state.masters.increment(self.state.kept());
        self.send(increment)
    }

    /// Changes the processor's constants; gives how many.
    fn send(&mut self, increment: Increment) -> Result<u64, TrainError> {
        if increment.deltas.is_empty() {
            return Ok(0);
        }
        self.processor.update(&increment.deltas)?;
        for (parameter, integers) in &increment.integers {
            self.backward.load(*parameter, integers)?;
        }
        let changed = increment.changed;
        self.state.masters.taken(increment);
        Ok(changed)
    }

    fn estimate_scales(&mut self) -> Result<(), TrainError> {
        if self.job.config.scales == Scales::Frozen {
            return Ok(());
        }
        let Some(model) = &self.model else { return Ok(()) };
        let masters = &self.state.masters;
        let scales = rescale::estimated(model, self.processor.program(), masters.parameters(), masters.values())?;
        let loaded = rescale::with_scales(
            model,
            self.processor.program(),
            masters.parameters(),
            &scales,
            masters.values(),
            &[],
        )?;
        self.take_model(loaded)
    }

    fn set_fault_scale(&mut self, scale: f64) -> Result<(), TrainError> {
        self.faultiness.as_mut().map_or(Ok(()), |faultiness| faultiness.set_scale(scale))
    }

    /// One optimizer step.
    fn step(&mut self, steps: u64) -> Result<StepReport, TrainError> {
        let begin = Instant::now();
        let config = self.job.config;
        let step = self.state.step;
        let per_epoch = self.steps_per_epoch();
        let (epoch, within) = (step / per_epoch, step % per_epoch);
        let fault_scale = config.curriculum.scale(step, steps);
        self.set_fault_scale(fault_scale)?;
        let increment = self.state.masters.increment(self.state.masters.values());
        let device = Instant::now();
        let mut report = StepReport { step: step + 1, steps, epoch, fault_scale, ..StepReport::default() };
        report.changed = self.send(increment)?;
        report.device_seconds += device.elapsed().as_secs_f64();
        if self.order.0 != epoch {
            self.order = (epoch, augment::order(config.seed, epoch, self.job.training.len()));
        }
        // Within the set's length, which is a usize.
        let start = (within as usize).saturating_mul(self.per_step()).min(self.order.1.len());
        let end = start.saturating_add(self.per_step()).min(self.order.1.len());
        let pictures: Vec<usize> = self.order.1[start..end].iter().map(|&index| index as usize).collect();
        let factor = 1.0 / (pictures.len() as f32 * config.draws as f32);
        self.gradients.iter_mut().for_each(|part| part.fill(0.0));
        let (mut loss, mut accuracy) = (0.0, Accuracy::default());
        for (part, indices) in (0u64..).zip(pictures.chunks(config.batch)) {
            for draw in 0..u64::from(config.draws) {
                let batch = step.wrapping_mul(u64::from(config.accumulate)).wrapping_add(part);
                let trial = batch.wrapping_mul(u64::from(config.draws)).wrapping_add(draw);
                let pass = self.forward(epoch, indices, trial, &mut report)?;
                loss += self.backward(&pass, factor, &mut accuracy)?;
            }
        }
        self.gradients.iter_mut().zip(&self.units).for_each(|(part, units)| in_units(part, units));
        report.norm = clip(&mut self.gradients, config.clip);
        self.state.check_finite(report.norm, &self.gradients)?;
        report.rate = (f64::from(config.rate) * config.schedule.factor(step, steps)) as f32;
        let paces: Vec<Pace> = self
            .state
            .masters
            .parameters()
            .iter()
            .zip(&self.units)
            .map(|(parameter, units)| match parameter.kind {
                Kind::Weights => Pace { rate: report.rate, decay: config.weight_decay, units },
                Kind::Bias => Pace { rate: report.rate * config.bias_rate, decay: 0.0, units },
            })
            .collect();
        self.state.optimizer.step(self.state.masters.values_mut(), &self.gradients, &paces);
        if config.scales == Scales::Frozen {
            self.state.masters.confine();
        }
        self.state.step += 1;
        if let Some(decay) = config.ema {
            self.state.follow(decay);
        }
        report.loss = loss / accuracy.pictures.max(1) as f64;
        report.top1 = accuracy.top1_share();
        report.pictures = accuracy.pictures;
        let current = &mut self.state.current;
        current.loss += loss;
        current.training.pictures += accuracy.pictures;
        current.training.top1 += accuracy.top1;
        current.training.top5 += accuracy.top5;
        report.running_top1 = current.training.top1_share();
        report.server_seconds = begin.elapsed().as_secs_f64() - report.device_seconds;
        Ok(report)
    }

    /// The processor computes these pictures, each seen its way.
    fn forward(
        &mut self,
        epoch: u64,
        indices: &[usize],
        trial: u64,
        report: &mut StepReport,
    ) -> Result<Pass, TrainError> {
        let training = self.job.training;
        let ids: Vec<u64> = indices.iter().map(|&index| training.id(index)).collect();
        let mut bytes = Vec::new();
        for &index in indices {
            training.bytes(index, &mut bytes)?;
        }
        let augmentation = self.job.config.augmentation;
        let views: Vec<View> = if augmentation.is_none() {
            Vec::new()
        } else {
            ids.iter().map(|&id| augmentation.view(self.job.config.seed, epoch, id)).collect()
        };
        let device = Instant::now();
        let batch = Batch { pictures: &ids, input: &bytes };
        let trace = self.processor.forward(&Request { batch, trial, views: &views, wanted: &self.wanted })?;
        report.device_seconds += device.elapsed().as_secs_f64();
        report.strikes = match (report.strikes, trace.strikes) {
            (before, Some(now)) => Some(before.unwrap_or(0) + now),
            (before, None) => before,
        };
        report.trace_bytes += (trace.output.len() + trace.tensors.values().map(Vec::len).sum::<usize>()) as u64;
        let program = self.processor.program();
        let input =
            if views.is_empty() { bytes } else { View::apply_all(&views, program.tensor(program.input()), &bytes) };
        Ok(Pass { indices: indices.to_vec(), input, trace })
    }

    /// Adds one pass's gradients; gives the sum of its losses.
    fn backward(&mut self, pass: &Pass, factor: f32, accuracy: &mut Accuracy) -> Result<f64, TrainError> {
        let program = self.processor.program();
        let output = program.tensor(program.output());
        let classes = output.elements().max(1);
        if pass.trace.output.len() != pass.indices.len() * classes {
            return Err(TrainError::Trace {
                tensor: output.name.clone(),
                have: pass.trace.output.len(),
                want: pass.indices.len() * classes,
            });
        }
        let mut gradient = vec![0.0; pass.trace.output.len()];
        let mut loss = 0.0;
        let outputs = pass.trace.output.chunks_exact(classes).zip(gradient.chunks_exact_mut(classes));
        for (&index, (bytes, gradient)) in pass.indices.iter().zip(outputs) {
            let label = self.job.training.label(index);
            let logits: Vec<f32> = bytes.iter().map(|&byte| output.real(byte)).collect();
            let teacher = self.job.teacher.and_then(|all| all.get(index * classes..(index + 1) * classes));
            loss += self.job.config.loss.picture(&logits, label, teacher, factor, gradient);
            accuracy.count(bytes, label);
        }
        self.backward.run(&pass.input, &pass.trace, &gradient, &mut self.gradients)?;
        Ok(loss)
    }

    fn end_epoch(&mut self, observer: &mut dyn Observer) -> Result<(), TrainError> {
        let validation = match self.job.validation.filter(|pictures| !pictures.is_empty()) {
            None => None,
            Some(pictures) => {
                self.set_fault_scale(1.0)?;
                self.hold_kept()?;
                let trial = VALIDATION + self.state.history.len() as u64;
                Some(evaluate(self.processor, pictures, self.job.config.batch, trial)?)
            }
        };
        self.state.end_epoch(validation);
        if let Some(epoch) = self.state.history.last() {
            observer.epoch(self.state.history.len() as u64 - 1, epoch);
        }
        Ok(())
    }
}
