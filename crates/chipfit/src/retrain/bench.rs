//! What executes in a retraining run: the faulty processor, and its fault-free twin here.

use std::sync::Arc;

use anyhow::Result;
use chipfit_model::Model;
use chipfit_npu::onnxruntime::OnnxRuntimeProcessor;
use chipfit_npu::simulator::Simulator;
use chipfit_npu::{Processor, Program};
use chipfit_train::{Faultiness, Thinned};
use clap::Args;
use serde::{Deserialize, Serialize};

use super::Arguments;
use crate::failure::usage;
use crate::processor_options::ProcessorFlag;

/// Flags of the link to devices.
#[derive(Args, Clone, Debug)]
pub(super) struct LinkFlags {}

impl LinkFlags {
    /// Whether devices execute.
    pub(super) fn is_remote(&self) -> bool {
        false
    }
}

/// Bytes that went over the wire, as counted at the socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Traffic {
    pub(crate) down: u64,
    pub(crate) up: u64,
}

impl Traffic {
    /// What came after `before`.
    pub(crate) fn since(self, before: &Self) -> Self {
        Self { down: self.down.saturating_sub(before.down), up: self.up.saturating_sub(before.up) }
    }
}

/// Reads the traffic while the processor is busy.
#[derive(Clone, Debug, Default)]
pub(super) struct Meter {}

impl Meter {
    pub(super) fn read(&self) -> Traffic {
        Traffic::default()
    }
}

/// The processors of a run.
pub(crate) struct Bench {
    processor: Box<dyn Processor>,
    /// Turns the simulated errors up; none where they are what they are.
    faultiness: Option<Thinned>,
    twin: Simulator,
    has_errors: bool,
}

impl Bench {
    /// Opens what the flags name and loads the model.
    pub(super) fn open(arguments: &Arguments, model: &Model, program: Program) -> Result<Self> {
        let flags = &arguments.processor;
        let protection = arguments.faults.protection(&program)?;
        let faults = arguments.faults.faults(&program, arguments.seed)?;
        let options = flags.simulator_options(faults.as_ref());
        let twin = Simulator::new(program.clone(), options)?;
        let has_errors = faults.is_some();
        let (processor, faultiness): (Box<dyn Processor>, _) = match flags.program.processor {
            ProcessorFlag::Sim => {
                let mut simulator = Simulator::new(program, options)?.with_protection(protection);
                let thinned = faults.map(|faults| Thinned::new(Arc::new(faults)));
                if let Some(thinned) = &thinned {
                    simulator = simulator.with_faults(Arc::new(thinned.clone()), arguments.seed);
                }
                (Box::new(simulator), thinned)
            }
            ProcessorFlag::OnnxRuntime => {
                if has_errors || arguments.faults.tmr.is_some() {
                    return Err(usage(
                        "--faults and --tmr are for the simulated processor; ONNX Runtime makes no errors",
                    ));
                }
                (Box::new(OnnxRuntimeProcessor::new(model, program, flags.onnxruntime()?)?), None)
            }
        };
        Ok(Self { processor, faultiness, twin, has_errors })
    }

    /// The processor of the training loop.
    pub(super) fn processor(&mut self) -> &mut dyn Processor {
        self.processor.as_mut()
    }

    /// The same, with what turns its errors up.
    pub(super) fn processor_and_faultiness(&mut self) -> (&mut dyn Processor, Option<&mut dyn Faultiness>) {
        let faultiness = self.faultiness.as_mut().map(|thinned| thinned as &mut dyn Faultiness);
        (self.processor.as_mut(), faultiness)
    }

    /// The fault-free simulator.
    pub(super) fn twin(&mut self) -> &mut dyn Processor {
        &mut self.twin
    }

    /// Whether the processor may err, so that one measurement is not the next.
    pub(super) fn has_errors(&self) -> bool {
        self.has_errors
    }

    /// Gives the processor another model of the same structure.
    pub(super) fn load(&mut self, model: &Model) -> Result<()> {
        Ok(self.processor.load(model)?)
    }

    /// The same for the twin.
    pub(super) fn load_twin(&mut self, model: &Model) -> Result<()> {
        Ok(self.twin.load(model)?)
    }

    /// Bytes over the wire so far.
    pub(super) fn traffic(&self) -> Traffic {
        self.meter().read()
    }

    /// Reads them later.
    pub(super) fn meter(&self) -> Meter {
        Meter::default()
    }
}
