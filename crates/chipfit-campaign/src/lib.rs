//! Fault campaigns: which trials, what became of each, and how sure that makes us.
//!
//! A campaign file ([`mod@file`]) and a [`subject`] (the layers of a model, the chosen pictures and their clean results)
//! give a [`plan`]: numbered trials, each a pure function of the seed and its number. [`mod@run`] executes them with any
//! [`executor`] on any number of threads and appends each [`record`] to a [`log`] that survives `kill -9`;
//! [`results`] reads the log back and writes `summary.json` and `trials.parquet`. A [`folder`] holds all of it.
//!
//! Promises: the result files depend on the campaign, the model, the data and the version alone: not on threads,
//! timing, shards, or how often the run was interrupted. Definitions and formulas: `docs/campaigns.md`.
//!
//! Read [`plan`] first, then [`outcome`], then [`mod@run`].
#![forbid(unsafe_code)]

pub mod error;
pub mod executor;
pub mod file;
pub mod folder;
pub mod log;
pub mod outcome;
pub mod plan;
pub mod random;
pub mod record;
pub mod results;
pub mod run;
pub mod simulated;
pub mod statistics;
pub mod subject;
mod table;
mod tally;

pub use error::CampaignError;
pub use executor::{Computed, Executor, Faulty, Masked, MaskedBy};
pub use file::{Campaign, Mode};
pub use folder::{Identity, RunFolder, Shard};
pub use outcome::{Judge, Outcome, Verdict};
pub use plan::{Plan, Trial};
pub use record::Record;
pub use results::Summary;
pub use run::{Progress, RunOptions, run};
pub use subject::{Layer, Picture, Subject};
