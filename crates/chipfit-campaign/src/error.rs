//! Why a campaign could not be read, planned, executed or written. Each message says what to do.

use std::path::PathBuf;

/// The errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CampaignError {
    /// The campaign file is no TOML, or has an unknown key or a value of the wrong type (the message names it).
    #[error("campaign: {0}")]
    Toml(String),
    /// A key's value cannot be meant.
    #[error("campaign: `{key}`: {what}")]
    Key {
        /// The key, with its table.
        key: String,
        /// What is wrong and what would be right.
        what: String,
    },
    /// A file of a run folder could not be read or written.
    #[error("cannot {action} '{path}': {source}")]
    Io {
        /// `read`, `write`, `sync`, ...
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// The log could not be extended (disk full, quota); what was synced before stays valid.
    #[error(
        "cannot write to '{path}': {source}; {safe} trials are safe there: make room and run the same command again"
    )]
    LogWrite {
        /// The log.
        path: PathBuf,
        /// Trials that are in the log.
        safe: u64,
        /// The system's words.
        source: std::io::Error,
    },
    /// A file of a run folder does not hold what it must.
    #[error("'{path}': {what}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong and what can be done.
        what: String,
    },
    /// The folder holds another run.
    #[error("'{path}' holds another run and cannot be resumed with this one: {differences}")]
    OtherRun {
        /// The folder.
        path: PathBuf,
        /// What differs: held and given values.
        differences: String,
    },
    /// Another process writes to the folder.
    #[error("'{path}' is in use by another process; wait for it, or choose another folder")]
    Locked {
        /// The folder.
        path: PathBuf,
    },
    /// Runs cannot be merged.
    #[error("cannot merge '{path}': {what}")]
    Merge {
        /// The run that does not fit.
        path: PathBuf,
        /// Why.
        what: String,
    },
    /// The run has trials left.
    #[error("{missing} of {planned} trials are missing; run the campaign again to compute them")]
    Incomplete {
        /// Not in the log.
        missing: u64,
        /// In the plan, as far as it is known.
        planned: u64,
    },
    /// No trial has this number.
    #[error("no trial {number}: {what}")]
    NoTrial {
        /// The number asked for.
        number: u64,
        /// Which numbers there are.
        what: String,
    },
    /// The executor failed.
    #[error("{0}")]
    Executor(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The table of trials could not be written.
    #[error("cannot write '{path}': {what}")]
    Table {
        /// The file.
        path: PathBuf,
        /// The writer's words.
        what: String,
    },
}

impl CampaignError {
    /// A [`CampaignError::Key`].
    pub(crate) fn key(key: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Key { key: key.into(), what: what.into() }
    }

    /// A closure for `map_err` on file operations.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
