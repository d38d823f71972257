//! A float classifier in the embedded engine, or in ONNX Runtime where `--processor onnxruntime` asks for it.

use std::path::Path;

use anyhow::{Context, Result};
use chipfit_data::Preprocess;
use chipfit_run::engine::{Engine, OnnxRuntime, Places, RtenEngine, Session as EngineSession};

use crate::data_options::PictureInput;
use crate::options;
use crate::processor_options::ProcessorFlag;

/// A loaded float model.
pub(super) struct Session {
    engine: String,
    session: Box<dyn EngineSession>,
    input: PictureInput,
}

impl Session {
    /// Loads the model.
    pub(super) fn open(path: &Path, input: PictureInput, processor: ProcessorFlag) -> Result<Self> {
        let bytes = options::bytes_of(path)?;
        let engine: Box<dyn Engine> = match processor {
            ProcessorFlag::Sim => Box::new(RtenEngine::default()),
            ProcessorFlag::OnnxRuntime => Box::new(OnnxRuntime::find(&Places::from_environment())?),
        };
        let session = engine
            .load(&bytes.bytes, bytes.folder)
            .with_context(|| format!("'{}' in {}", path.display(), engine.name()))?;
        Ok(Self { engine: engine.name(), session, input })
    }

    /// What executes.
    pub(super) fn describe(&self) -> String {
        format!("{}, float", self.engine)
    }

    /// Pictures of one run.
    pub(super) fn batch(&self, preprocess: &Preprocess) -> usize {
        self.input.batch(preprocess)
    }

    /// The first output of `count` pictures. A model with a fixed batch is fed zeros for the missing ones.
    pub(super) fn run(&mut self, values: &[f32], count: usize, preprocess: &Preprocess) -> Result<Vec<f32>> {
        let fixed = self.input.dims.first().copied().flatten().and_then(|n| usize::try_from(n).ok());
        let rows = fixed.unwrap_or(count).max(count);
        let mut padded = values.to_vec();
        padded.resize(rows * preprocess.len(), 0.0);
        let tensor = self.input.tensor(preprocess, rows, &padded)?;
        let outputs = self.session.run(&[(self.input.name.clone(), tensor)])?;
        let (name, output) = outputs.into_iter().next().context("the model has no output")?;
        let all = output.to_f64_vec().with_context(|| format!("output '{name}' is no float tensor"))?;
        let each = all.len() / rows.max(1);
        Ok(all.into_iter().take(each * count).map(|value| value as f32).collect())
    }
}
