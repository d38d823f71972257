//! The folder of a retraining run: what it is, how it went, what came of it.
//!
//! | file | holds |
//! |---|---|
//! | `run.json` | what decides the result: hashes of model, pictures, faults and plan, the configuration; a folder is only resumed by the same run |
//! | `*.checkpoint` | states of the trainer, replaced whole |
//! | `history.jsonl` | one line a step; a resumed run cuts it to its checkpoint |
//! | `measured.json` | accuracies that are done and need not be measured again after an interruption |
//! | `model.retrained.onnx` | the result, with its preprocessing beside it |
//! | `summary.json` | every figure of the report |

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use chipfit_model::onnx::write_atomically;
use chipfit_train::Config;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::measure::Measured;
use super::scratch::is_scratch;
use crate::failure::usage;

/// What decides the result of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// What the folder holds: [`KIND`].
    pub(crate) kind: String,
    pub(crate) version: String,
    pub(crate) model: String,
    pub(crate) model_sha256: String,
    /// Fingerprints of the training and test pictures.
    pub(crate) training: String,
    pub(crate) test: String,
    pub(crate) preprocessing: String,
    /// The faults file's text, where the processor is simulated here.
    pub(crate) faults: Option<String>,
    /// The plan file's text.
    pub(crate) tmr: Option<String>,
    /// What executes: `simulator`, `onnxruntime`, or `devices`; their addresses may change between sessions.
    pub(crate) processor: String,
    pub(crate) config: Config,
    /// Pictures to train on, to validate with, to test on.
    pub(crate) pictures: [usize; 3],
    pub(crate) draws: u32,
    pub(crate) reference: bool,
}

impl Manifest {
    /// Identity of the run: the same when it resumes.
    pub(crate) fn identity(&self) -> Result<[u8; 16]> {
        let digest = Sha256::digest(serde_json::to_vec(self)?);
        let mut identity = [0; 16];
        identity.copy_from_slice(&digest[..16]);
        Ok(identity)
    }
}

/// The kind of run that [`Manifest::kind`] names.
pub(crate) const KIND: &str = "chipfit retraining run";

/// One line of the history.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Line {
    pub(crate) step: u64,
    pub(crate) epoch: u64,
    pub(crate) loss: f64,
    pub(crate) top1: f64,
    pub(crate) changed: u64,
    pub(crate) strikes: Option<u64>,
    pub(crate) fault_scale: f64,
    pub(crate) device_s: f64,
    pub(crate) server_s: f64,
    /// Bytes to and from devices in this step, as counted at the socket.
    pub(crate) bytes_down: u64,
    pub(crate) bytes_up: u64,
}

/// An open run folder.
pub(crate) struct Folder {
    path: PathBuf,
    pub(crate) manifest: Manifest,
}

impl Folder {
    /// Creates the folder, or opens it where it holds the same run.
    pub(crate) fn create(path: &Path, manifest: Manifest) -> Result<Self> {
        if path.join("run.json").exists() {
            let folder = Self::open(path)?;
            // Another version may compute otherwise; its folder is not continued.
            if folder.manifest != manifest {
                return Err(usage(format!(
                    "-o '{}' holds another run ({}); take another folder, or give the same model, pictures, flags and seed",
                    path.display(),
                    difference(&folder.manifest, &manifest)
                )));
            }
            return Ok(folder);
        }
        if path.exists() && !holds_only_scratch(path)? {
            return Err(usage(format!("-o '{}' is not empty and holds no retraining run", path.display())));
        }
        fs::create_dir_all(path).with_context(|| format!("cannot create '{}'", path.display()))?;
        let folder = Self { path: path.to_owned(), manifest };
        folder.write("run.json", &serde_json::to_vec_pretty(&folder.manifest)?)?;
        Ok(folder)
    }

    /// Opens the folder of a run.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = path.join("run.json");
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read '{}'", file.display()))?;
        let manifest: Manifest =
            serde_json::from_str(&text).with_context(|| format!("'{}' describes no retraining run", file.display()))?;
        Ok(Self { path: path.to_owned(), manifest })
    }

    /// Whether `path` is the folder of a retraining run.
    pub(crate) fn is_one(path: &Path) -> bool {
        Self::open(path).is_ok_and(|folder| folder.manifest.kind == KIND)
    }

    /// The path of a file in the folder.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Writes a file whole or not at all.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let file = self.file(name);
        write_atomically(&file, bytes).with_context(|| format!("cannot write '{}'", file.display()))
    }

    /// What was measured before an interruption.
    pub(crate) fn measured(&self) -> Result<BTreeMap<String, Measured>> {
        let file = self.file("measured.json");
        if !file.exists() {
            return Ok(BTreeMap::new());
        }
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read '{}'", file.display()))?;
        let damaged = || format!("'{}' is damaged; delete it to measure again", file.display());
        serde_json::from_str(&text).with_context(damaged)
    }

    /// Opens the history for lines after `step`; later ones are dropped.
    pub(crate) fn history_after(&self, step: u64) -> Result<File> {
        let mut text = Vec::new();
        for line in self.history()?.iter().filter(|line| line.step <= step) {
            serde_json::to_writer(&mut text, line)?;
            text.push(b'\n');
        }
        self.write("history.jsonl", &text)?;
        let file = self.file("history.jsonl");
        OpenOptions::new().append(true).open(&file).with_context(|| format!("cannot write '{}'", file.display()))
    }

    /// The history's whole lines; a torn last line is left out.
    pub(crate) fn history(&self) -> Result<Vec<Line>> {
        let path = self.file("history.jsonl");
        if !path.exists() {
            return Ok(Vec::new());
        }
        let file = File::open(&path).with_context(|| format!("cannot read '{}'", path.display()))?;
        let lines = BufReader::new(file).lines().map_while(std::io::Result::ok);
        Ok(lines.map_while(|line| serde_json::from_str(&line).ok()).collect())
    }
}

/// Whether a folder holds nothing but what training from scratch writes.
pub(super) fn holds_only_scratch(path: &Path) -> Result<bool> {
    let files = fs::read_dir(path).with_context(|| format!("cannot read '{}'", path.display()))?;
    let mut files = files.map(|file| file.map(|file| is_scratch(&file.path())));
    Ok(files.try_fold(true, |all, is_one| is_one.map(|one| all && one))?)
}

/// Appends a line to the history.
pub(crate) fn append(file: &mut File, line: &Line) -> std::io::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    file.write_all(&text)
}

/// The fields in which two manifests differ.
fn difference(one: &Manifest, other: &Manifest) -> String {
    let fields = |manifest: &Manifest| match serde_json::to_value(manifest) {
        Ok(serde_json::Value::Object(fields)) => fields,
        _ => serde_json::Map::new(),
    };
    let (one, other) = (fields(one), fields(other));
    let differing: Vec<&str> =
        one.iter().filter(|(name, value)| other.get(*name) != Some(*value)).map(|(name, _)| name.as_str()).collect();
    format!("other {}", differing.join(", "))
}
