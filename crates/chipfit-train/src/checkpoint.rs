//! The state of a run as a file, and back.
//!
//! `chipfit-checkpoint-1\n`, the length of a JSON header as u64 little-endian, the header, all numbers as f32
//! little-endian in the header's order, and the SHA-256 of everything before. A file is written beside its place and
//! renamed, so that there is always a whole one.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::TrainError;
use crate::pictures::Accuracy;
use crate::state::{Best, Epoch, State};

const MAGIC: &[u8] = b"chipfit-checkpoint-1\n";

/// What is no array.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    config: String,
    step: u64,
    optimizer_steps: u64,
    optimizer_slots: usize,
    has_mean: bool,
    best: Option<(u64, Accuracy)>,
    history: Vec<Epoch>,
    current: Epoch,
    parameters: Vec<Shape>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Shape {
    name: String,
    length: usize,
    channels: usize,
}

/// A checkpoint that fits a state's parameters.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    header: Header,
    /// Scales of every parameter when it was written.
    pub scales: Vec<Vec<f32>>,
    /// Masters.
    pub values: Vec<Vec<f32>>,
    slots: Vec<Vec<Vec<f32>>>,
    mean: Option<Vec<Vec<f32>>>,
    best: Option<Vec<Vec<f32>>>,
}

fn failed(path: &Path, what: impl std::fmt::Display) -> TrainError {
    TrainError::Checkpoint { path: path.display().to_string(), what: what.to_string() }
}

/// Writes `state`, replacing the file at `path` when everything is on the disk.
///
/// # Errors
/// [`TrainError::Checkpoint`].
pub(crate) fn write(path: &Path, config: &str, state: &State) -> Result<(), TrainError> {
    let parameters = state.masters.parameters();
    let header = Header {
        config: config.to_owned(),
        step: state.step,
        optimizer_steps: state.optimizer.steps(),
        optimizer_slots: state.optimizer.slots().len(),
        has_mean: state.mean.is_some(),
        best: state.best.as_ref().map(|best| (best.epoch, best.accuracy)),
        history: state.history.clone(),
        current: state.current,
        parameters: shapes(state),
    };
    let text = serde_json::to_vec(&header).map_err(|error| failed(path, error))?;
    let mut bytes = Vec::new();
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&(text.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&text);
    let mut put = |array: &[f32]| array.iter().for_each(|value| bytes.extend_from_slice(&value.to_le_bytes()));
    parameters.iter().for_each(|parameter| put(&parameter.scales));
    state.masters.values().iter().for_each(|array| put(array));
    state.optimizer.slots().iter().flatten().for_each(|array| put(array));
    state.mean.iter().flatten().for_each(|array| put(array));
    state.best.iter().flat_map(|best| &best.values).for_each(|array| put(array));
    let digest = Sha256::digest(&bytes);
    bytes.extend_from_slice(&digest);
    replace(path, &bytes).map_err(|error| failed(path, error))
}

fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let temporary = PathBuf::from(name);
    let mut file = std::fs::File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)
}

fn shapes(state: &State) -> Vec<Shape> {
    let shape = |parameter: &crate::Parameter| Shape {
        name: parameter.name.clone(),
        length: parameter.length,
        channels: parameter.scales.len(),
    };
    state.masters.parameters().iter().map(shape).collect()
}

/// Reads a checkpoint of the run with this configuration and these parameters.
///
/// # Errors
/// [`TrainError::Checkpoint`] for a file that is damaged or belongs to another run.
pub(crate) fn read(path: &Path, config: &str, state: &State) -> Result<Checkpoint, TrainError> {
    let bytes = std::fs::read(path).map_err(|error| failed(path, error))?;
    let damaged = || failed(path, "it is damaged; delete it to start anew");
    let (body, digest) = bytes.split_at_checked(bytes.len().saturating_sub(32)).ok_or_else(damaged)?;
    if Sha256::digest(body).as_slice() != digest {
        return Err(damaged());
    }
    let rest = body.strip_prefix(MAGIC).ok_or_else(|| failed(path, "it is no checkpoint of this version"))?;
    let (length, rest) = rest.split_at_checked(8).ok_or_else(damaged)?;
    let length = u64::from_le_bytes(length.try_into().map_err(|_| damaged())?);
    let (text, numbers) =
        usize::try_from(length).ok().and_then(|length| rest.split_at_checked(length)).ok_or_else(damaged)?;
    let header: Header = serde_json::from_slice(text).map_err(|_| damaged())?;
    if header.config != config {
        return Err(failed(path, "it belongs to a run with another configuration; delete it, or run that one"));
    }
    if header.parameters != shapes(state) || header.optimizer_slots != state.optimizer.slots().len() {
        return Err(failed(path, "it belongs to another model; delete it, or give that one"));
    }
    let mut numbers = numbers.chunks_exact(4).map(|chunk| chunk.try_into().map_or(f32::NAN, f32::from_le_bytes));
    // Lengths are those of the run's own parameters, which the header has just been compared with.
    let mut take = |length: usize| -> Option<Vec<f32>> {
        let array: Vec<f32> = numbers.by_ref().take(length).collect();
        (array.len() == length).then_some(array)
    };
    let lengths: Vec<usize> = state.masters.values().iter().map(Vec::len).collect();
    let channels: Vec<usize> = state.masters.parameters().iter().map(|parameter| parameter.scales.len()).collect();
    let mut group =
        |lengths: &[usize]| -> Option<Vec<Vec<f32>>> { lengths.iter().map(|&length| take(length)).collect() };
    let checkpoint = (|| {
        Some(Checkpoint {
            scales: group(&channels)?,
            values: group(&lengths)?,
            slots: (0..header.optimizer_slots).map(|_| group(&lengths)).collect::<Option<_>>()?,
            mean: if header.has_mean { Some(group(&lengths)?) } else { None },
            best: if header.best.is_some() { Some(group(&lengths)?) } else { None },
            header,
        })
    })();
    checkpoint.ok_or_else(damaged)
}

impl Checkpoint {
    /// Puts everything but the scales into `state`.
    pub(crate) fn into_state(self, path: &Path, state: &mut State) -> Result<(), TrainError> {
        let other = || failed(path, "it belongs to another model; delete it, or give that one");
        state.masters.restore(self.values).ok_or_else(other)?;
        state.optimizer.restore(self.header.optimizer_steps, self.slots).ok_or_else(other)?;
        if state.mean.is_some() != self.mean.is_some() {
            return Err(other());
        }
        state.mean = self.mean;
        let best = self.header.best.zip(self.best);
        state.best = best.map(|((epoch, accuracy), values)| Best { epoch, accuracy, values });
        (state.step, state.history, state.current) = (self.header.step, self.header.history, self.header.current);
        Ok(())
    }
}
