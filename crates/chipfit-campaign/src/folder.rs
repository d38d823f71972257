//! The run folder: everything that a run needs to be repeated, resumed, merged and reported.
//!
//! | file | content |
//! |---|---|
//! | `manifest.json` | what the run is ([`Identity`]), its command, its shard; written last, so a folder with it is whole |
//! | `campaign.toml` | the campaign file as it was given |
//! | `inputs/` | files that the campaign names (faults, TMR plan) |
//! | `subject.json` | layers, pictures, clean results ([`Subject`]) |
//! | `trials.log` | the records ([`crate::log`]) |
//! | `lock` | held (by the operating system) by the one process that writes |
//! | `timings.jsonl` | one line a session: seconds, trials, threads; never read |
//! | `summary.json`, `trials.parquet` | the results; a function of the files above but timings, command and shard |

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::CampaignError;
use crate::file::Campaign;
use crate::log::{self, Log, Scan};
use crate::plan::Plan;
use crate::record::Record;
use crate::subject::Subject;

/// Format of the folder.
const FORMAT: u32 = 1;
/// Largest JSON file that is read back.
const MAX_JSON_BYTES: u64 = 1 << 30;

const MANIFEST: &str = "manifest.json";
const CAMPAIGN: &str = "campaign.toml";
const SUBJECT: &str = "subject.json";
const LOG: &str = "trials.log";
const LOCK: &str = "lock";
const INPUTS: &str = "inputs";
const TIMINGS: &str = "timings.jsonl";

/// What decides the results: two runs with one identity have one result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Of the run folder.
    pub format: u32,
    /// Of Chipfit.
    pub version: String,
    /// SHA-256 of the model file.
    pub model: String,
    /// Fingerprint of the data set.
    pub data: String,
    /// How pictures become the model's input.
    pub preprocessing: String,
    /// What executes.
    pub processor: String,
    /// The campaign's settings, defaults filled in.
    pub campaign: serde_json::Value,
    /// SHA-256 of the files that the campaign names, by the name it gives them.
    pub inputs: BTreeMap<String, String>,
}

/// The parts of an [`Identity`] that a caller supplies.
#[derive(Clone, Debug)]
pub struct Origin {
    /// SHA-256 of the model file, in hexadecimal digits ([`sha256`]).
    pub model: String,
    /// Fingerprint of the data set.
    pub data: String,
    /// How pictures become the model's input.
    pub preprocessing: String,
    /// What executes; without thread counts and kernels, which change no result.
    pub processor: String,
    /// The campaign file's text.
    pub campaign_text: String,
    /// Contents of the files that the campaign names, by the name it gives them.
    pub inputs: BTreeMap<String, Vec<u8>>,
    /// The command line, for people.
    pub command: Vec<String>,
}

/// Part `index` of `of`, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shard {
    /// 1 to `of`.
    pub index: u64,
    /// Number of shards.
    pub of: u64,
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        match numbers {
            Some((index, of)) if (1..=of).contains(&index) => Ok(Self { index, of }),
            _ => Err(format!("'{text}' is no shard: I/N with 1 <= I <= N, for instance 1/4")),
        }
    }
}

impl std::fmt::Display for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.index, self.of)
    }
}

/// `manifest.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// What the run is.
    pub identity: Identity,
    /// How it was started; no part of its identity.
    pub command: Vec<String>,
    /// Which part of the trials it makes; all when absent.
    pub shard: Option<Shard>,
}

/// A run folder, locked or only read.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// Holds the lock until it is dropped; the system releases it when the process dies.
    lock: Option<File>,
    /// What the run is.
    pub manifest: Manifest,
    /// What it acts on.
    pub subject: Subject,
    /// The campaign, read back from the copy.
    pub campaign: Campaign,
}

impl RunFolder {
    /// Creates a folder, or opens the one that an earlier session of the same run left.
    ///
    /// # Errors
    /// [`CampaignError::Locked`], [`CampaignError::OtherRun`] naming what differs, [`CampaignError::Damaged`] for a
    /// folder with other files, [`CampaignError::Io`].
    pub fn create(path: &Path, origin: &Origin, shard: Option<Shard>, subject: Subject) -> Result<Self, CampaignError> {
        let campaign = Campaign::parse(&origin.campaign_text)?;
        // A campaign that cannot be planned leaves no folder behind.
        Plan::new(&campaign, &subject)?;
        let identity = Identity::new(origin, &campaign)?;
        let manifest = Manifest { identity, command: origin.command.clone(), shard };
        fs::create_dir_all(path).map_err(CampaignError::io("create", path))?;
        let lock = lock(path)?;
        let held = path.join(MANIFEST);
        if held.exists() {
            let mut folder = Self::open(path)?;
            let mut differences = folder.manifest.identity.differences(&manifest.identity);
            if folder.manifest.shard != shard {
                let name = |s: Option<Shard>| s.map_or("none".to_owned(), |s| s.to_string());
                differences.push(format!("shard: {} there, {} given", name(folder.manifest.shard), name(shard)));
            }
            if differences.is_empty() && folder.subject != subject {
                differences.push("the clean results: this processor does not reproduce them".to_owned());
            }
            if !differences.is_empty() {
                return Err(CampaignError::OtherRun { path: path.to_owned(), differences: differences.join("; ") });
            }
            folder.lock = Some(lock);
            return Ok(folder);
        }
        refuse_foreign_files(path)?;
        write_whole(&path.join(CAMPAIGN), origin.campaign_text.as_bytes())?;
        if !origin.inputs.is_empty() {
            let inputs = path.join(INPUTS);
            fs::create_dir_all(&inputs).map_err(CampaignError::io("create", &inputs))?;
            for (position, (name, content)) in origin.inputs.iter().enumerate() {
                // The name may hold folders: its last part, numbered, is unique and stays inside.
                let last = Path::new(name).file_name().unwrap_or_default().to_string_lossy();
                write_whole(&inputs.join(format!("{position}-{last}")), content)?;
            }
        }
        write_whole(&path.join(SUBJECT), &json(&subject))?;
        write_whole(&path.join(LOG), &log::header(&manifest.identity.hash()))?;
        write_whole(&held, &json(&manifest))?;
        Ok(Self { path: path.to_owned(), lock: Some(lock), manifest, subject, campaign })
    }

    /// Opens a folder for reading.
    ///
    /// # Errors
    /// [`CampaignError::Io`], [`CampaignError::Damaged`].
    pub fn open(path: &Path) -> Result<Self, CampaignError> {
        let manifest: Manifest = read_json(&path.join(MANIFEST))?;
        if manifest.identity.format != FORMAT {
            return Err(CampaignError::Damaged {
                path: path.join(MANIFEST),
                what: format!("format {}; this version reads format {FORMAT}", manifest.identity.format),
            });
        }
        let subject: Subject = read_json(&path.join(SUBJECT))?;
        let copy = path.join(CAMPAIGN);
        let text = fs::read_to_string(&copy).map_err(CampaignError::io("read", &copy))?;
        let campaign = Campaign::parse(&text)?;
        if settings(&campaign) != manifest.identity.campaign {
            let what = "the campaign was changed after the run began; put the original back".to_owned();
            return Err(CampaignError::Damaged { path: copy, what });
        }
        Ok(Self { path: path.to_owned(), lock: None, manifest, subject, campaign })
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether this process may write to it.
    pub fn is_locked(&self) -> bool {
        self.lock.is_some()
    }

    /// Opens the log for writing; `each` is given its records.
    ///
    /// # Errors
    /// As [`Log::open`].
    pub fn log(&self, each: impl FnMut(Record)) -> Result<(Log, Scan), CampaignError> {
        Log::open(&self.path.join(LOG), &self.manifest.identity.hash(), each)
    }

    /// Reads the log.
    ///
    /// # Errors
    /// As [`log::read`].
    pub fn records(&self, each: impl FnMut(Record)) -> Result<Scan, CampaignError> {
        log::read(&self.path.join(LOG), &self.manifest.identity.hash(), each)
    }

    /// Adds a line to `timings.jsonl`.
    ///
    /// # Errors
    /// [`CampaignError::Io`].
    pub fn note_session(&self, line: &serde_json::Value) -> Result<(), CampaignError> {
        let path = self.path.join(TIMINGS);
        let file = OpenOptions::new().create(true).append(true).open(&path);
        file.and_then(|mut f| writeln!(f, "{line}")).map_err(CampaignError::io("write", path))
    }

    /// Merges runs of one campaign into a new folder (or one that an earlier merge left): the union of their
    /// records. Trials that none of them made are made by running the campaign on the folder.
    ///
    /// # Errors
    /// [`CampaignError::Merge`] naming what differs, [`CampaignError::Locked`] for a run that is still going on.
    pub fn merge(path: &Path, runs: &[PathBuf], command: &[String]) -> Result<Self, CampaignError> {
        let refuse = |path: &Path, what: String| CampaignError::Merge { path: path.to_owned(), what };
        let mut parts: Vec<Self> = Vec::new();
        for run in runs {
            let held = lock(run)?;
            let mut part = Self::open(run)?;
            part.lock = Some(held);
            if let Some(first) = parts.first() {
                let differences = first.manifest.identity.differences(&part.manifest.identity);
                if !differences.is_empty() {
                    return Err(refuse(run, differences.join("; ")));
                }
                if first.subject != part.subject {
                    return Err(refuse(run, "its clean results differ".to_owned()));
                }
            }
            parts.push(part);
        }
        let Some(first) = parts.first() else { return Err(refuse(path, "no run was given".to_owned())) };
        let text_path = first.path.join(CAMPAIGN);
        let campaign_text = fs::read_to_string(&text_path).map_err(CampaignError::io("read", &text_path))?;
        let identity = &first.manifest.identity;
        let origin = Origin {
            model: identity.model.clone(),
            data: identity.data.clone(),
            preprocessing: identity.preprocessing.clone(),
            processor: identity.processor.clone(),
            campaign_text,
            inputs: first.inputs()?,
            command: command.to_vec(),
        };
        let merged = Self::create(path, &origin, None, first.subject.clone())?;
        let mut known = std::collections::BTreeSet::new();
        let (mut out, _) = merged.log(|record| {
            known.insert(record.number);
        })?;
        for part in &parts {
            let mut failure = Ok(());
            part.records(|record| {
                if failure.is_ok() && known.insert(record.number) {
                    failure = out.append(&record);
                }
            })?;
            failure?;
        }
        out.sync()?;
        Ok(merged)
    }

    /// The files in `inputs/` by the campaign's names for them.
    fn inputs(&self) -> Result<BTreeMap<String, Vec<u8>>, CampaignError> {
        let mut inputs = BTreeMap::new();
        for (position, (name, hash)) in self.manifest.identity.inputs.iter().enumerate() {
            let last = Path::new(name).file_name().unwrap_or_default().to_string_lossy();
            let path = self.path.join(INPUTS).join(format!("{position}-{last}"));
            let content = fs::read(&path).map_err(CampaignError::io("read", &path))?;
            if sha256(&content) != *hash {
                let what = "changed after the run began; put the original back".to_owned();
                return Err(CampaignError::Damaged { path, what });
            }
            inputs.insert(name.clone(), content);
        }
        Ok(inputs)
    }
}

impl Identity {
    fn new(origin: &Origin, campaign: &Campaign) -> Result<Self, CampaignError> {
        Ok(Self {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            model: origin.model.clone(),
            data: origin.data.clone(),
            preprocessing: origin.preprocessing.clone(),
            processor: origin.processor.clone(),
            campaign: settings(campaign),
            inputs: origin.inputs.iter().map(|(name, content)| (name.clone(), sha256(content))).collect(),
        })
    }

    /// SHA-256 of everything in it; heads the log.
    pub fn hash(&self) -> [u8; 32] {
        Sha256::digest(json(self)).into()
    }

    /// What differs, each with both values: `self` is there, `other` is given.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut found = Vec::new();
        differ("", &serde_json::json!(self), &serde_json::json!(other), &mut found);
        found
    }
}

/// Walks two documents and tells the places at which they differ.
fn differ(place: &str, there: &serde_json::Value, given: &serde_json::Value, found: &mut Vec<String>) {
    use serde_json::Value::{Null, Object};
    if there == given {
        return;
    }
    if let (Object(a), Object(b)) = (there, given) {
        let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
        for key in keys {
            let place = if place.is_empty() { key.clone() } else { format!("{place}.{key}") };
            differ(&place, a.get(key).unwrap_or(&Null), b.get(key).unwrap_or(&Null), found);
        }
        return;
    }
    found.push(format!("{place}: {there} there, {given} given"));
}

fn settings(campaign: &Campaign) -> serde_json::Value {
    serde_json::json!(campaign)
}

/// SHA-256 in hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A document with a final line break. Our own types have string keys and finite numbers: it cannot fail.
pub(crate) fn json<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(value).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

pub(crate) fn read_json<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<T, CampaignError> {
    let file = File::open(path).map_err(CampaignError::io("read", path))?;
    let mut bytes = Vec::new();
    file.take(MAX_JSON_BYTES).read_to_end(&mut bytes).map_err(CampaignError::io("read", path))?;
    serde_json::from_slice(&bytes).map_err(|e| CampaignError::Damaged { path: path.to_owned(), what: e.to_string() })
}

/// Takes the folder's lock, or says who has it.
fn lock(folder: &Path) -> Result<File, CampaignError> {
    let path = folder.join(LOCK);
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(CampaignError::io("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(CampaignError::Locked { path: folder.to_owned() }),
        Err(TryLockError::Error(source)) => Err(CampaignError::Io { action: "lock", path, source }),
    }
}

/// A folder without a manifest may hold what an interrupted start left, and nothing else.
fn refuse_foreign_files(folder: &Path) -> Result<(), CampaignError> {
    for entry in fs::read_dir(folder).map_err(CampaignError::io("list", folder))? {
        let name = entry.map_err(CampaignError::io("list", folder))?.file_name();
        let name = name.to_string_lossy();
        let ours = [CAMPAIGN, SUBJECT, LOG, LOCK, INPUTS];
        if !ours.contains(&name.as_ref()) && !name.ends_with(PART) {
            let what = format!("holds '{name}' and is no run folder; name a new or an empty folder");
            return Err(CampaignError::Damaged { path: folder.to_owned(), what });
        }
    }
    Ok(())
}

/// Ends the names of files that are being written.
const PART: &str = ".part";

/// Writes a file so that it is there whole or not at all, whatever happens.
pub(crate) fn write_whole(path: &Path, content: &[u8]) -> Result<(), CampaignError> {
    replace(path, |file| file.write_all(content).map_err(CampaignError::io("write", path)))
}

/// Lets `fill` write a temporary file, syncs it, and gives it the name `path`.
pub(crate) fn replace(
    path: &Path,
    fill: impl FnOnce(&mut File) -> Result<(), CampaignError>,
) -> Result<(), CampaignError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(PART);
    let part = path.with_file_name(name);
    let mut file = File::create(&part).map_err(CampaignError::io("create", &part))?;
    let done = fill(&mut file).and_then(|()| file.sync_all().map_err(CampaignError::io("sync", &part)));
    if let Err(error) = done {
        // Nothing refers to the part; if it cannot be removed, the next write replaces it.
        let _ = fs::remove_file(&part);
        return Err(error);
    }
    fs::rename(&part, path).map_err(CampaignError::io("rename", &part))?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // The name must survive a power failure, too. Not every system can sync a folder: the file itself is safe.
    let _ = File::open(folder).and_then(|f| f.sync_all());
    Ok(())
}
