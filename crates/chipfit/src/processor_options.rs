//! Flags that say what executes a quantised model, and with which errors; shared by `evaluate` and `inject`.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context, Result};
use chipfit_kernels::Isa;
use chipfit_model::Model;
use chipfit_npu::faults::{Faults, FaultsFile};
use chipfit_npu::lower::{LowerOptions, Requantize};
use chipfit_npu::onnxruntime::OnnxRuntimeProcessor;
use chipfit_npu::protection::PlanFile;
use chipfit_npu::simulator::{Simulator, SimulatorOptions};
use chipfit_npu::{Processor, Program, Protection};
use chipfit_run::engine::{OnnxRuntime, Places, SessionOptions};
use clap::{Args, ValueEnum};

use crate::failure::usage;
use crate::options;

/// What executes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProcessorFlag {
    /// The simulated processor.
    Sim,
    /// ONNX Runtime on this machine.
    OnnxRuntime,
}

impl FromStr for ProcessorFlag {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "sim" => Ok(Self::Sim),
            "onnxruntime" => Ok(Self::OnnxRuntime),
            _ if text.contains(':') => {
                Err("devices take part in retraining (chipfit retrain --device); take sim or onnxruntime here".into())
            }
            _ => Err("expected sim or onnxruntime".into()),
        }
    }
}

/// `--requantize`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RequantizeFlag {
    /// In float, as ONNX Runtime does
    Onnx,
    /// In fixed point, as TFLite's reference kernels and most NPUs do
    Fixed,
}

/// What executes, and how a model becomes its program.
#[derive(Args, Clone, Debug)]
pub(crate) struct ProgramFlags {
    /// What executes: sim, the simulated processor; or onnxruntime
    #[arg(long, value_name = "sim|onnxruntime", default_value = "sim")]
    pub(crate) processor: ProcessorFlag,
    /// How the simulated processor turns an accumulator into a byte
    #[arg(long, value_enum, default_value = "onnx")]
    requantize: RequantizeFlag,
    /// Compute nodes that the simulated processor lacks in float, and say which
    #[arg(long)]
    float_fallback: bool,
}

/// What executes the model.
#[derive(Args, Clone, Debug)]
pub(crate) struct ProcessorFlags {
    #[command(flatten)]
    pub(crate) program: ProgramFlags,
    /// The ONNX Runtime library [default: that of a Python installation]
    #[arg(long, value_name = "LIBRARY")]
    onnxruntime: Option<PathBuf>,
    /// Kernels of the simulated processor [default: the fastest here]; results never depend on it
    #[arg(long, value_name = "NAME", value_parser = isa)]
    isa: Option<Isa>,
    /// Threads [default: one per core]; results never depend on it
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,
}

fn isa(name: &str) -> Result<Isa, String> {
    let here = Isa::available();
    let names = here.iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", ");
    here.into_iter().find(|isa| isa.name() == name).ok_or_else(|| format!("this machine has {names}"))
}

/// Which errors the simulated processor makes, and which parts it computes three times.
#[derive(Args, Clone, Debug)]
pub(crate) struct FaultFlags {
    /// Soft errors: a faults file (docs/faults-file.md)
    #[arg(long, value_name = "FAULTS.toml")]
    pub(crate) faults: Option<PathBuf>,
    /// What is computed three times: a plan file (docs/plan-file.md)
    #[arg(long, value_name = "PLAN.toml")]
    pub(crate) tmr: Option<PathBuf>,
}

/// A file of at most 16 MiB as text.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    const MOST: u64 = 16 << 20;
    let bytes = std::fs::metadata(path).with_context(|| format!("cannot read '{}'", path.display()))?.len();
    anyhow::ensure!(bytes <= MOST, "'{}' is larger than {MOST} bytes: not a configuration file", path.display());
    std::fs::read_to_string(path).with_context(|| format!("cannot read '{}'", path.display()))
}

impl FaultFlags {
    /// The fault model, resolved against a program; `None` without `--faults`.
    pub(crate) fn faults(&self, program: &Program, seed: u64) -> Result<Option<Faults>> {
        let Some(path) = &self.faults else { return Ok(None) };
        let in_file = || format!("'{}'", path.display());
        let file = FaultsFile::parse(&read_text(path)?).with_context(in_file)?;
        Ok(Some(Faults::resolve(&file, program, seed).with_context(in_file)?))
    }

    /// The protected units; none without `--tmr`.
    pub(crate) fn protection(&self, program: &Program) -> Result<Protection> {
        let Some(path) = &self.tmr else { return Ok(Protection::none()) };
        let in_file = || format!("'{}'", path.display());
        let file = PlanFile::parse(&read_text(path)?).with_context(in_file)?;
        Protection::resolve(&file, program).with_context(in_file)
    }
}

impl ProgramFlags {
    /// The value of `--requantize`.
    pub(crate) fn requantize(&self) -> &'static str {
        match self.requantize {
            RequantizeFlag::Onnx => "onnx",
            RequantizeFlag::Fixed => "fixed",
        }
    }

    /// The program of the model at `path`.
    pub(crate) fn lower(&self, model: &Model, path: &Path) -> Result<Program> {
        let requantize = match self.requantize {
            RequantizeFlag::Onnx => Requantize::Onnx,
            RequantizeFlag::Fixed => Requantize::Fixed,
        };
        let lower = LowerOptions { requantize, float_fallback: self.float_fallback, ..LowerOptions::default() };
        Program::lower(model, &lower).with_context(|| format!("'{}'", path.display()))
    }
}

impl ProcessorFlags {
    /// The model's program.
    pub(crate) fn program(&self, path: &Path) -> Result<Program> {
        self.program.lower(&options::open(path)?, path)
    }

    /// Threads to use.
    pub(crate) fn threads(&self) -> usize {
        self.threads
            .map_or_else(|| std::thread::available_parallelism().map_or(1, NonZeroUsize::get), NonZeroUsize::get)
    }

    /// What the simulator is to be.
    pub(crate) fn simulator_options(&self, faults: Option<&Faults>) -> SimulatorOptions {
        let machine = faults.map(Faults::machine).unwrap_or_default();
        SimulatorOptions { isa: self.isa, threads: self.threads(), machine, ..SimulatorOptions::default() }
    }

    /// The installed ONNX Runtime.
    pub(crate) fn onnxruntime(&self) -> Result<OnnxRuntime> {
        let places = match &self.onnxruntime {
            Some(library) => Places { library: Some(library.clone()), ..Places::from_environment() },
            None => Places::from_environment(),
        };
        let options = SessionOptions { threads: self.threads(), ..SessionOptions::default() };
        Ok(OnnxRuntime::find(&places)?.with_options(options))
    }

    /// The processor, loaded with the model.
    pub(crate) fn open(
        &self,
        path: &Path,
        program: Program,
        faults: Option<Faults>,
        protection: Protection,
        seed: u64,
    ) -> Result<Box<dyn Processor>> {
        match self.program.processor {
            ProcessorFlag::Sim => {
                let mut simulator = Simulator::new(program, self.simulator_options(faults.as_ref()))?;
                if let Some(faults) = faults {
                    simulator = simulator.with_faults(Arc::new(faults), seed);
                }
                Ok(Box::new(simulator.with_protection(protection)))
            }
            ProcessorFlag::OnnxRuntime => {
                if faults.is_some() || protection != Protection::none() {
                    return Err(usage(
                        "--faults and --tmr are for the simulated processor; ONNX Runtime makes no errors",
                    ));
                }
                let model = options::open(path)?;
                let runtime = self.onnxruntime()?;
                Ok(Box::new(OnnxRuntimeProcessor::new(&model, program, runtime)?))
            }
        }
    }
}
