//! `chipfit inject`: a fault campaign on a quantised model, in a run folder that can be resumed, sharded and merged.
//!
//! Campaign file, model, pictures -> clean results -> run folder -> trials (progress on standard error) -> results.
//! What a campaign is and what its results mean: `docs/campaigns.md`. The work is done by `chipfit-campaign`.
//!
//! Read [`run`] first, then [`setup`] (what the flags open), [`show`] (what is printed), [`replay`] (one trial).

mod replay;
mod setup;
mod show;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result};
use chipfit_campaign::folder::RunFolder;
use chipfit_campaign::run::{Progress, RunOptions, Session};
use chipfit_campaign::{Shard, Summary, results};
use clap::Args;

use crate::data_options::PreprocessFlags;
use crate::failure::usage;
use crate::processor_options::{ProcessorFlag, ProgramFlags};
use crate::terminal::{self, note};
use setup::Subjected;

/// Inject soft errors into a quantised model: a campaign of single faults, or accuracy over fault rates.
///
/// The run folder can be resumed by the same command after any interruption; results are the same bit for bit.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// The quantised (QDQ) ONNX model [default: the campaign's `model`]
    model: Option<PathBuf>,
    /// Labelled pictures [default: the campaign's `data`]
    #[arg(long, value_name = "PATH[:SPLIT]")]
    data: Option<String>,
    /// Class names, one a line; a class's index is its line, from 0 [default: class folders in sorted order]
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    #[command(flatten)]
    preprocess: PreprocessFlags,
    /// What to do: docs/campaigns.md
    #[arg(long, value_name = "FILE", required_unless_present = "merge")]
    campaign: Option<PathBuf>,
    /// The run folder: created, or resumed where it holds the same run
    #[arg(short, long, value_name = "RUN", required_unless_present = "replay")]
    output: Option<PathBuf>,
    /// Worker threads; they never change a result [default: the campaign's, or one a processor]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Make part I of N of the trials; --merge puts the parts together
    #[arg(long, value_name = "I/N")]
    shard: Option<Shard>,
    #[command(flatten)]
    program: ProgramFlags,
    /// Merge these runs of one campaign into the run folder, and nothing else
    #[arg(long, value_name = "RUN", num_args = 1.., conflicts_with_all = ["campaign", "shard", "replay", "model", "data"])]
    merge: Vec<PathBuf>,
    /// Tell the whole story of one trial and change nothing
    #[arg(long, value_name = "SEED:TRIAL", value_parser = replay::parse_id, conflicts_with_all = ["shard", "output"])]
    replay: Option<replay::Id>,
    /// Print one JSON document on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

/// Runs, resumes, merges or replays.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if arguments.program.processor == ProcessorFlag::OnnxRuntime {
        return Err(usage(
            "--processor onnxruntime: ONNX Runtime runs no faults; `chipfit inject` takes sim (`chipfit evaluate` takes both)",
        ));
    }
    let command: Vec<String> = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    if !arguments.merge.is_empty() {
        let output = output_of(arguments)?;
        let folder = RunFolder::merge(output, &arguments.merge, &command)?;
        let summary = results::finish(&folder)
            .with_context(|| format!("'{}' holds all that was made so far", output.display()))?;
        return show::finished(arguments.json, &folder, None, Some(&summary));
    }
    let campaign = arguments.campaign.as_deref().ok_or_else(|| usage("--campaign FILE is missing"))?;
    let subjected = Subjected::new(arguments, campaign, &command)?;
    if let Some(id) = &arguments.replay {
        return replay::run(id, subjected, arguments.json);
    }
    let folder = subjected.create_folder(output_of(arguments)?, arguments.shard)?;
    let session = make_trials(&subjected, &folder)?;
    let summary = match folder.manifest.shard {
        Some(Shard { of: 2.., .. }) => None,
        _ => Some(results::finish(&folder)?),
    };
    show::finished(arguments.json, &folder, Some(&session), summary.as_ref())
}

fn output_of(arguments: &Arguments) -> Result<&Path> {
    arguments.output.as_deref().ok_or_else(|| usage("-o RUN is missing"))
}

/// Makes the missing trials, with a bar where a person looks.
fn make_trials(subjected: &Subjected, folder: &RunFolder) -> Result<Session> {
    let bar = terminal::bar("trials", 0);
    let stop = AtomicBool::new(false);
    let options = RunOptions { threads: subjected.threads, stop: &stop };
    let mut resumed = None;
    let progress = |Progress { done, planned }: Progress| {
        if resumed.is_none() {
            resumed = Some(done);
            bar.set_length(planned);
            // Rate and remaining time speak of this session.
            bar.set_position(done);
            bar.reset_eta();
            if done > 0 {
                bar.suspend(|| note(&format!("resumed: {done} of at most {planned} trials are in the log")));
            }
        } else if done % 256 == 0 {
            bar.set_position(done);
        }
    };
    let session = chipfit_campaign::run(folder, &subjected.executor, &subjected.judge, &options, progress);
    bar.finish_and_clear();
    let session = session?;
    if session.damaged > 0 {
        note(&format!("warning: {} damaged records of the log were dropped and made again", session.damaged));
    }
    Ok(session)
}

/// What one run is told to be in a report.
pub(crate) fn command_line(command: &[String]) -> String {
    let quoted = |word: &String| {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
        if !word.is_empty() && word.chars().all(is_plain) {
            word.clone()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    };
    let mut words: Vec<String> = command.iter().map(quoted).collect();
    if let Some(first) = words.first_mut() {
        *first = "chipfit".to_owned();
    }
    words.join(" ")
}

/// The curves and cells of a finished run.
pub(crate) fn summary_of(folder: &RunFolder) -> Result<Summary> {
    results::read_summary(folder).with_context(|| {
        format!("'{}' has no results yet: run its campaign to the end, or merge its shards", folder.path().display())
    })
}
