//! What a run tells while it goes on. Nothing here decides a result, but for the wish to stop.

use crate::state::{Epoch, State};

/// Whether to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Yes.
    Continue,
    /// Write a checkpoint and return.
    Stop,
}

/// One optimizer step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepReport {
    /// Its number, from 1.
    pub step: u64,
    /// How many there will be, early stop aside.
    pub steps: u64,
    /// Its epoch, from 0.
    pub epoch: u64,
    /// Mean loss of its pictures.
    pub loss: f64,
    /// Right first answers of its pictures, 0 to 1.
    pub top1: f64,
    /// Share of right first answers in this epoch so far, 0 to 1.
    pub running_top1: f64,
    /// Pictures computed, draws included.
    pub pictures: u64,
    /// Constants that changed on the processor.
    pub changed: u64,
    /// Words struck, as far as the processor knows.
    pub strikes: Option<u64>,
    /// Bytes of the traces.
    pub trace_bytes: u64,
    /// Norm of the gradient before clipping.
    pub norm: f64,
    /// Learning rate of weights.
    pub rate: f32,
    /// Share of the full fault rate.
    pub fault_scale: f64,
    /// Seconds in the processor: update and forward.
    pub device_seconds: f64,
    /// Seconds elsewhere.
    pub server_seconds: f64,
}

/// Somebody who watches a run.
pub trait Observer {
    /// After each step.
    fn step(&mut self, _report: &StepReport) -> Flow {
        Flow::Continue
    }

    /// After each epoch.
    fn epoch(&mut self, _number: u64, _epoch: &Epoch) {}

    /// After each checkpoint.
    fn checkpoint(&mut self, _state: &State) {}
}

/// Nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Observer for Silent {}
