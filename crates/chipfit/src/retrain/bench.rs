//! What executes in a retraining run: the faulty processor, and its fault-free twin here.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use chipfit_agent::{
    Delay, DeviceAddress, LinkMeter, LinkReport, LinkShape, Rate, RemoteOptions, RemoteProcessor, Trust,
};
use chipfit_model::Model;
use chipfit_npu::onnxruntime::OnnxRuntimeProcessor;
use chipfit_npu::simulator::{Simulator, SimulatorOptions};
use chipfit_npu::{Processor, Program, Protection};
use chipfit_train::{Faultiness, Thinned};
use chipfit_wire::message::Mode;
use clap::{Args, ValueEnum};

use super::Arguments;
use crate::failure::usage;
use crate::processor_options::ProcessorFlag;

/// `--wire`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum WireFlag {
    /// What changed in the weights, what a prediction missed in the activations
    Increments,
    /// All weights down and all activations up, every time
    Straightforward,
}

impl WireFlag {
    fn name(self) -> &'static str {
        match self {
            Self::Increments => "increments",
            Self::Straightforward => "straightforward",
        }
    }
}

/// Flags of the link to devices.
#[derive(Args, Clone, Debug)]
pub(super) struct LinkFlags {
    /// A device that executes (`chipfit device`); several share every batch
    #[arg(long = "device", value_name = "[NAME@]HOST:PORT", conflicts_with_all = ["faults", "processor"])]
    devices: Vec<DeviceAddress>,
    /// The trainer's bundle (`chipfit pki init`)
    #[arg(long, value_name = "DIR", requires = "devices", conflicts_with = "insecure_loopback")]
    pki: Option<PathBuf>,
    /// No TLS, for devices on this machine that were started with the same flag
    #[arg(long, requires = "devices")]
    insecure_loopback: bool,
    /// How weights and activations travel; results never depend on it
    #[arg(long, value_enum, default_value = "increments")]
    wire: WireFlag,
    /// Emulate a link of this rate each way, as 10Mbit
    #[arg(long, value_name = "RATE", requires = "devices")]
    link_rate: Option<Rate>,
    /// Emulate a link with this delay each way, as 25ms
    #[arg(long, value_name = "TIME", requires = "devices")]
    link_delay: Option<Delay>,
    /// Seconds that a lost device is waited for
    #[arg(long, value_name = "SECONDS", default_value_t = 120, requires = "devices")]
    link_patience: u64,
}

impl LinkFlags {
    /// Whether devices execute.
    pub(super) fn is_remote(&self) -> bool {
        !self.devices.is_empty()
    }

    /// Connects to the devices.
    fn connect(
        &self,
        model: &Model,
        program: &Program,
        twin: SimulatorOptions,
        run: [u8; 16],
    ) -> Result<RemoteProcessor> {
        let trust = match (&self.pki, self.insecure_loopback) {
            (Some(folder), _) => Trust::Bundle(folder.clone()),
            (None, true) => Trust::InsecureLoopback,
            (None, false) => {
                return Err(usage(
                    "--device needs --pki DIR (chipfit pki init), or --insecure-loopback on this machine",
                ));
            }
        };
        let options = RemoteOptions {
            mode: match self.wire {
                WireFlag::Increments => Mode::Increments,
                WireFlag::Straightforward => Mode::Straightforward,
            },
            shape: LinkShape { rate: self.link_rate, delay: self.link_delay.unwrap_or_default() },
            patience: Duration::from_secs(self.link_patience),
            run: Some(run),
            twin,
            ..RemoteOptions::new(trust)
        };
        Ok(RemoteProcessor::connect(&self.devices, model, program.options(), &options)?)
    }
}

/// Bytes that went over the wire, as counted at the socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
pub(super) struct Meter(Option<LinkMeter>);

impl Meter {
    pub(super) fn read(&self) -> Traffic {
        self.0.as_ref().map_or_else(Traffic::default, |meter| Traffic { down: meter.down(), up: meter.up() })
    }
}

/// The processor of the training loop.
enum Place {
    Simulator(Box<Simulator>),
    OnnxRuntime(Box<OnnxRuntimeProcessor>),
    Devices(Box<RemoteProcessor>),
}

impl Place {
    fn processor(&mut self) -> &mut dyn Processor {
        match self {
            Self::Simulator(simulator) => simulator.as_mut(),
            Self::OnnxRuntime(runtime) => runtime.as_mut(),
            Self::Devices(devices) => devices.as_mut(),
        }
    }
}

/// The processors of a run.
pub(crate) struct Bench {
    place: Place,
    /// Turns the simulated errors up; none where they are what they are.
    faultiness: Option<Thinned>,
    twin: Simulator,
    has_errors: bool,
    wire: &'static str,
}

impl Bench {
    /// Opens what the flags name and loads the model; `run` identifies the run to devices.
    pub(super) fn open(arguments: &Arguments, model: &Model, program: Program, run: [u8; 16]) -> Result<Self> {
        let flags = &arguments.processor;
        let protection = arguments.faults.protection(&program)?;
        let faults = arguments.faults.faults(&program, arguments.seed)?;
        let options = flags.simulator_options(faults.as_ref());
        let twin = Simulator::new(program.clone(), options)?;
        let is_remote = arguments.link.is_remote();
        let has_errors = faults.is_some() || is_remote;
        let mut faultiness = None;
        let place = if is_remote {
            let mut devices = arguments.link.connect(model, &program, options, run)?;
            if protection != Protection::none() {
                devices.protect(&protection)?;
            }
            Place::Devices(Box::new(devices))
        } else if flags.program.processor == ProcessorFlag::OnnxRuntime {
            if has_errors || arguments.faults.tmr.is_some() {
                return Err(usage("--faults and --tmr are for the simulated processor; ONNX Runtime makes no errors"));
            }
            Place::OnnxRuntime(Box::new(OnnxRuntimeProcessor::new(model, program, flags.onnxruntime()?)?))
        } else {
            let mut simulator = Simulator::new(program, options)?.with_protection(protection);
            if let Some(faults) = faults {
                let thinned = Thinned::new(Arc::new(faults));
                simulator = simulator.with_faults(Arc::new(thinned.clone()), arguments.seed);
                faultiness = Some(thinned);
            }
            Place::Simulator(Box::new(simulator))
        };
        Ok(Self { place, faultiness, twin, has_errors, wire: arguments.link.wire.name() })
    }

    /// The processor of the training loop.
    pub(super) fn processor(&mut self) -> &mut dyn Processor {
        self.place.processor()
    }

    /// The same, with what turns its errors up.
    pub(super) fn processor_and_faultiness(&mut self) -> (&mut dyn Processor, Option<&mut dyn Faultiness>) {
        let faultiness = self.faultiness.as_mut().map(|thinned| thinned as &mut dyn Faultiness);
        (self.place.processor(), faultiness)
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
        Ok(self.processor().load(model)?)
    }

    /// The same for the twin.
    pub(super) fn load_twin(&mut self, model: &Model) -> Result<()> {
        Ok(self.twin.load(model)?)
    }

    /// How weights and activations travel.
    pub(super) fn wire(&self) -> &'static str {
        self.wire
    }

    /// What the links have cost so far; `None` where the processor is in this process.
    pub(super) fn link(&self) -> Option<LinkReport> {
        match &self.place {
            Place::Devices(devices) => Some(devices.report()),
            _ => None,
        }
    }

    /// Reads the traffic while the processor is busy.
    pub(super) fn meter(&self) -> Meter {
        match &self.place {
            Place::Devices(devices) => Meter(Some(devices.meter())),
            _ => Meter::default(),
        }
    }
}
