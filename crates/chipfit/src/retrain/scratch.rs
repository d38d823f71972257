//! `--from-scratch NETWORK`: a network of the zoo is trained in fp32, folded, calibrated, and goes on in the loop.
//!
//! The files lie in the run folder: `scratch.onnx` (float), `scratch.int8.onnx`, each with its preprocessing. A run that
//! finds them does not train again; `scratch.json` says what made them, and another recipe is refused.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use chipfit_data::{Colour, DataSet, Layout, PreferredSplit, Preprocess, Subset};
use chipfit_model::Model;
use chipfit_model::onnx::{Overwrite, write_atomically};
use chipfit_model::zoo::{self, ZooOptions};
use chipfit_quantize::{Calibration, Options, Prepared};
use chipfit_run::engine::RtenEngine;
use chipfit_train::scratch::{self, Config, Event, MemoryPictures, Network, PixelScale};
use serde::{Deserialize, Serialize};

use super::Arguments;
use super::pictures::at_most;
use crate::data_options::{PictureInput, write_preprocess};
use crate::failure::usage;
use crate::terminal::{self, note};

/// Pictures that calibrate.
const CALIBRATION: usize = 512;
/// Pictures decoded at once.
const CHUNK: usize = 1000;

/// What made the files.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Recipe {
    network: String,
    training: String,
    version: String,
    config: Config,
}

/// Trains, folds and calibrates, unless that was done before; gives the quantised model's path.
pub(super) fn make(arguments: &Arguments, network: &str) -> Result<PathBuf> {
    let folder = &arguments.output;
    let model = zoo::build(network, &ZooOptions { batch: None, seed: arguments.seed, ..ZooOptions::default() })
        .map_err(|error| usage(format!("--from-scratch: {error}")))?;
    let read = Network::from_model(&model)?;
    let mut config = Config { seed: arguments.seed, ..Config::for_network(&read) };
    if let Some(epochs) = arguments.scratch_epochs {
        config.epochs = epochs;
    }
    let [channels, height, width] = read.picture();
    let colour = if channels == 1 { Colour::Grey } else { Colour::Rgb };
    let scale = PixelScale::for_channels(channels);
    let preprocess = Preprocess {
        mean: vec![scale.mean],
        std: vec![scale.std],
        ..Preprocess::raw([height, width], Layout::Nchw, colour)
    };
    let set = at_most(arguments.data.open(PreferredSplit::Train)?, arguments.pictures, "--pictures")?;
    let recipe = Recipe {
        network: network.to_owned(),
        training: set.fingerprint().to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        config,
    };
    let [float, quantised, made] = ["scratch.onnx", "scratch.int8.onnx", "scratch.json"].map(|name| folder.join(name));
    if made.exists() {
        let text = fs::read_to_string(&made).with_context(|| format!("cannot read '{}'", made.display()))?;
        if serde_json::from_str::<Recipe>(&text).ok().as_ref() != Some(&recipe) {
            return Err(usage(format!(
                "-o '{}' holds a network that was trained otherwise; take another folder",
                folder.display()
            )));
        }
        return Ok(quantised);
    }
    if folder.exists() && !super::folder::holds_only_scratch(folder)? {
        return Err(usage(format!("-o '{}' is not empty and holds no retraining run", folder.display())));
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot create '{}'", folder.display()))?;
    let trained = train(&model, &read, &set, &preprocess, &recipe.config)?;
    trained.write(&float, Overwrite::Replace)?;
    write_preprocess(&preprocess, &float, Overwrite::Replace)?;
    quantise(&trained, &set, &preprocess, arguments.seed)?.write(&quantised, Overwrite::Replace)?;
    write_preprocess(&preprocess, &quantised, Overwrite::Replace)?;
    // Last: what stands here is whole.
    write_atomically(&made, &serde_json::to_vec_pretty(&recipe)?)
        .with_context(|| format!("cannot write '{}'", made.display()))?;
    Ok(quantised)
}

fn train(model: &Model, network: &Network, set: &DataSet, preprocess: &Preprocess, config: &Config) -> Result<Model> {
    let mut pictures = MemoryPictures::new(network.picture());
    let bar = terminal::bar("pictures", set.len() as u64);
    for start in (0..set.len()).step_by(CHUNK) {
        let end = set.len().min(start + CHUNK);
        let labels: Vec<u32> = (start..end).map(|index| set.label(index)).collect();
        pictures.extend(&set.batch(start..end, preprocess)?, &labels)?;
        bar.inc((end - start) as u64);
    }
    bar.finish_and_clear();
    let bar = terminal::bar("scratch", 0);
    let outcome = scratch::train(model, &pictures, None, config, &mut |event| {
        if let &Event::Step { done, of, epoch, loss, accuracy, .. } = event {
            bar.set_length(of);
            bar.set_position(done);
            bar.set_message(format!("epoch {epoch}, loss {loss:.3}, top-1 {:.1}%", 100.0 * accuracy));
        }
        ControlFlow::Continue(())
    });
    bar.finish_and_clear();
    let outcome = outcome?;
    note(&format!("trained from scratch: {} steps in fp32", outcome.steps));
    Ok(outcome.model)
}

fn quantise(model: &Model, set: &DataSet, preprocess: &Preprocess, seed: u64) -> Result<Model> {
    let prepared = Prepared::new(model)?;
    let options = Options::default();
    let engine = RtenEngine::default();
    let input = PictureInput::of(model)?;
    let pictures = set.subset(Subset::Random { count: CALIBRATION, seed });
    let mut calibration = Calibration::new(&prepared, &engine, &options)?;
    let batch = input.batch(preprocess).max(1);
    for start in (0..pictures.len()).step_by(batch) {
        let end = pictures.len().min(start + batch);
        let values = pictures.batch(start..end, preprocess)?;
        calibration.observe(&[(input.name.clone(), input.tensor(preprocess, end - start, &values)?)])?;
    }
    let (quantised, report) = prepared.quantize(&calibration.finish()?, &options)?;
    report.warnings.iter().for_each(|warning| note(&format!("warning: {warning}")));
    Ok(quantised)
}

/// The model's path: the one given, or what `--from-scratch` makes.
pub(super) fn model_path(arguments: &Arguments) -> Result<PathBuf> {
    match (&arguments.model, &arguments.from_scratch) {
        (Some(path), _) => Ok(path.clone()),
        (None, Some(network)) => make(arguments, network),
        (None, None) => Err(usage("a model is missing: MODEL, or --from-scratch NETWORK")),
    }
}

/// Whether a file of the run folder belongs to training from scratch.
pub(super) fn is_scratch(file: &Path) -> bool {
    file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("scratch."))
}
