//! The device's processor, with its habits: slow, hung, dying, forgetting.

use chipfit_wire::format::Blob;
use chipfit_wire::message::{Code, TraceBody, sha256};
use chipfit_wire::session::{DeviceEvent, JobId, JobResult, Task};

use crate::run::{apply, compute, explain, identity, own_weights};

#[derive(Clone, Debug)]
struct Loaded {
    weights: Vec<u8>,
    plan: String,
}

/// What the shell of a device owns.
#[derive(Clone, Debug, Default)]
pub(crate) struct Processor {
    file: Option<Blob>,
    loaded: Option<Loaded>,
    trace: Option<TraceBody>,
    task: Option<(JobId, Task)>,
}

impl Processor {
    /// After a restart of the device that kept the model's file.
    pub(crate) fn restarted(&self, keep_file: bool) -> Self {
        Self { file: self.file.clone().filter(|_| keep_file), ..Self::default() }
    }

    pub(crate) fn file_identity(&self) -> Option<[u8; 32]> {
        self.file.as_ref().map(|file| identity(file))
    }

    pub(crate) fn start(&mut self, job: JobId, task: Task) -> Result<(), String> {
        if let Some((running, _)) = &self.task {
            return Err(format!("task {job} was started while {running} runs"));
        }
        self.task = Some((job, task));
        Ok(())
    }

    /// The processor is gone; a new one has no model.
    pub(crate) fn replace(&mut self) {
        *self = Self { file: self.file.take(), ..Self::default() };
    }

    /// Weights change by themselves; the next work's hash tells.
    pub(crate) fn rot(&mut self) {
        if let Some(weight) = self.loaded.as_mut().and_then(|loaded| loaded.weights.first_mut()) {
            *weight ^= 4;
        }
    }

    pub(crate) fn runs(&self, job: JobId) -> bool {
        self.task.as_ref().is_some_and(|&(running, _)| running == job)
    }

    /// Says that the task failed and nothing changed.
    pub(crate) fn fail(&mut self, job: JobId) -> DeviceEvent {
        self.task = None;
        let weights = self.loaded.as_ref().map(|loaded| sha256(&loaded.weights));
        DeviceEvent::Failed { job, code: Code::Processor, text: "tired".to_owned(), weights }
    }

    /// Does the task.
    pub(crate) fn finish(&mut self, job: JobId) -> DeviceEvent {
        let failed = |code, weights| DeviceEvent::Failed { job, code, text: "toy".to_owned(), weights };
        let Some((_, task)) = self.task.take() else { return DeviceEvent::Tick };
        match task {
            Task::Load(load) => {
                let Some(file) = load.model.or(self.file.take()) else { return failed(Code::NoModel, None) };
                if identity(&file) != load.identity {
                    return failed(Code::BadModel, None);
                }
                let weights = apply(&own_weights(&file), &load.weights);
                let hash = sha256(&weights);
                self.file = Some(file);
                self.loaded = Some(Loaded { weights, plan: load.plan });
                DeviceEvent::Done(job, JobResult::Loaded(hash))
            }
            Task::Protect(plan) => match &mut self.loaded {
                Some(loaded) => {
                    loaded.plan = plan;
                    DeviceEvent::Done(job, JobResult::Protected)
                }
                None => failed(Code::NoModel, None),
            },
            Task::Work { work, pictures } => {
                let Some(loaded) = &mut self.loaded else { return failed(Code::NoModel, None) };
                if let Some(update) = &work.update {
                    loaded.weights = apply(&loaded.weights, update);
                }
                if sha256(&loaded.weights) != work.weights_hash {
                    self.loaded = None;
                    return failed(Code::WeightHash, None);
                }
                let wanted: Vec<u32> = work.wanted.iter().map(|tensor| tensor.0).collect();
                let seen: Vec<_> = work.pictures.iter().copied().zip(pictures).collect();
                let trace = compute(&loaded.weights, &loaded.plan, work.trial, &seen, &wanted);
                self.trace = Some(trace.clone());
                DeviceEvent::Done(job, JobResult::Traced(trace))
            }
            Task::More(requests) => match &self.trace {
                Some(trace) => DeviceEvent::Done(job, JobResult::More(explain(trace, &requests))),
                None => failed(Code::NoTrace, None),
            },
        }
    }
}
