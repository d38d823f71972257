//! The proof of a rewrite, as the command line asks for it, and what it says.
//!
//! Judged: every rewritten node. Reported, not judged: the difference of the whole models in the embedded engine.

use std::collections::BTreeMap;

use anyhow::Result;
use chipfit_deconv::NodeReport;
use chipfit_model::Model;
use serde::Serialize;

use crate::report::ProofEntry;

/// What to prove with.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Random inputs per node.
    pub(crate) inputs: u32,
    /// Their seed.
    pub(crate) seed: u64,
    /// Shapes of dynamic inputs.
    pub(crate) shapes: BTreeMap<String, Vec<usize>>,
}

/// Versions of what took part.
#[derive(Debug, Serialize)]
pub(crate) struct Versions {
    chipfit: &'static str,
}

/// The versions of this build.
pub(crate) fn versions() -> Versions {
    Versions { chipfit: env!("CARGO_PKG_VERSION") }
}

/// What running both whole models showed.
#[derive(Debug, Serialize)]
pub(crate) struct WholeModel {
    /// The engine and its version.
    pub(crate) engine: String,
    /// Why it could not be run; the proof then rests on the nodes alone.
    pub(crate) not_run: Option<String>,
    /// Differences by output.
    pub(crate) outputs: Vec<OutputDifference>,
}

/// How one output of the two models differs.
#[derive(Debug, Serialize)]
pub(crate) struct OutputDifference {
    /// Its name.
    pub(crate) name: String,
    /// Largest absolute difference.
    pub(crate) max_abs: f64,
    /// The same relative to the largest absolute value.
    pub(crate) max_rel: f64,
}

/// The outcome.
#[derive(Debug, Default)]
pub(crate) struct Proof {
    /// One entry per report; `None`: nothing to prove.
    pub(crate) nodes: Vec<Option<ProofEntry>>,
    /// The whole models.
    pub(crate) whole_model: Option<WholeModel>,
}

impl Proof {
    /// What failed, in one line; `None` where everything holds.
    pub(crate) fn failure(&self, reports: &[NodeReport]) -> Option<String> {
        let failed = |(report, entry): (&NodeReport, &Option<ProofEntry>)| {
            let entry = entry.as_ref().filter(|e| !e.holds)?;
            Some(format!("{}: {}", report.name, entry.note.as_deref().unwrap_or("differs from the original")))
        };
        let all: Vec<String> = reports.iter().zip(&self.nodes).filter_map(failed).collect();
        let first = all.first()?;
        let more = if all.len() > 1 { format!(" (and {} more nodes)", all.len() - 1) } else { String::new() };
        Some(format!("the proof failed, no file was written: {first}{more}"))
    }

    /// `proven`, `failed`, `not proven` or `nothing to prove`.
    pub(crate) fn verdict(&self, reports: &[NodeReport], skipped: bool) -> &'static str {
        if self.failure(reports).is_some() {
            "failed"
        } else if skipped {
            "not proven"
        } else if reports.iter().all(|r| r.form.is_none()) {
            "nothing to prove"
        } else {
            "proven"
        }
    }

    /// The lines for people.
    pub(crate) fn text(&self, verdict: &str, seed: u64) -> String {
        format!("{verdict} (seed {seed})\n")
    }
}

/// Proves every rewritten node and compares the whole models.
pub(crate) fn prove(
    _original: &Model,
    _written: &Model,
    reports: &[NodeReport],
    _settings: &Settings,
) -> Result<Proof> {
    if reports.iter().any(|r| r.form.is_some()) {
        anyhow::bail!("this build cannot prove a rewrite yet");
    }
    Ok(Proof { nodes: vec![None; reports.len()], whole_model: None })
}
