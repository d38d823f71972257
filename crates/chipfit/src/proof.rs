//! The proof of a rewrite, as the command line asks for it, and what it says.
//!
//! Judged: every rewritten node. Reported, not judged: the difference of the whole models in the embedded engine.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use chipfit_deconv::{NodeReport, SameRule};
use chipfit_model::{Index, Model, shape};
use chipfit_run::compare::{self, CompareOptions, ModelBytes, Report};
use chipfit_run::engine::{Engine, RtenEngine};
use chipfit_run::prove::{Claim, ProveOptions};
use chipfit_run::random::{self, InputShape};
use serde::Serialize;

use crate::bounds;
use crate::compare::{OutputEntry, differences};
use crate::failure::{one_line, usage};
use crate::options;
use crate::report::ProofEntry;
use crate::terminal::{self, by};

/// What to prove with.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Random inputs per node.
    pub(crate) inputs: u32,
    /// Their seed.
    pub(crate) seed: u64,
    /// Which side takes the odd pad of `auto_pad` before opset 11.
    pub(crate) opset1_same: SameRule,
    /// Whether some form changes the result, perhaps even its size.
    pub(crate) approximate: bool,
    /// Shapes of dynamic inputs.
    pub(crate) shapes: BTreeMap<String, Vec<usize>>,
}

/// Versions of what took part.
#[derive(Debug, Serialize)]
pub(crate) struct Versions {
    chipfit: &'static str,
    engine: String,
}

/// The versions of this build.
pub(crate) fn versions() -> Versions {
    Versions { chipfit: env!("CARGO_PKG_VERSION"), engine: RtenEngine::default().name() }
}

/// What running both whole models showed.
#[derive(Debug)]
pub(crate) struct WholeModel {
    /// The inputs' shapes, those with assumed lengths marked.
    inputs: String,
    /// The differences, or why there are none; the proof then rests on the nodes alone.
    result: std::result::Result<Report, String>,
}

/// [`WholeModel`] in a JSON document.
#[derive(Serialize)]
pub(crate) struct WholeModelEntry<'a> {
    engine: Option<&'a str>,
    inputs: &'a str,
    not_run: Option<&'a str>,
    caveats: &'a [String],
    outputs: Vec<OutputEntry<'a>>,
}

impl WholeModel {
    /// Runs both models in the embedded engine on the same random inputs.
    fn run(original: &Model, first: &ModelBytes<'_>, second: &ModelBytes<'_>, settings: &Settings) -> Self {
        let mut inputs = String::new();
        let mut attempt = || -> Result<Report> {
            let settled = random::input_shapes(original, &settings.shapes)?;
            inputs = settled.iter().map(described).collect::<Vec<_>>().join(", ");
            if let Some(why) = bounds::objection(original, &settings.shapes, Some(bounds::MAX_UNASKED_MACS)) {
                bail!(why);
            }
            let count = usize::try_from(settings.inputs)?;
            let sets = compare::random_inputs(original, &settings.shapes, settings.seed, count)?;
            let options = CompareOptions { common_part: settings.approximate, ..CompareOptions::default() };
            Ok(compare::compare(&RtenEngine::default(), first, second, &sets, &options)?)
        };
        let result = attempt().map_err(|why| one_line(&why));
        Self { inputs, result }
    }

    /// For the JSON document.
    pub(crate) fn entry(&self) -> WholeModelEntry<'_> {
        let (report, not_run) = match &self.result {
            Ok(report) => (Some(report), None),
            Err(why) => (None, Some(why.as_str())),
        };
        WholeModelEntry {
            engine: report.map(|r| r.engine.as_str()),
            inputs: &self.inputs,
            not_run,
            caveats: report.map_or(&[], |r| &r.caveats),
            outputs: report.map_or(Vec::new(), |r| r.outputs.iter().map(OutputEntry::of).collect()),
        }
    }

    /// For people.
    fn text(&self) -> String {
        match &self.result {
            Err(why) => {
                format!("whole model: not compared, what is said rests on the nodes alone ({why})\n")
            }
            Ok(report) => {
                let mut text = format!("whole model in {}, {}: ", report.engine, terminal::printable(&self.inputs));
                text.push_str("differences, reported and not judged\n");
                text.push_str(&differences(&report.outputs));
                for caveat in &report.caveats {
                    text.push_str(&format!("note: {}\n", terminal::printable(caveat)));
                }
                text
            }
        }
    }
}

/// `image 1x3x64x64 (64 assumed; --input sets it)`.
fn described(input: &InputShape) -> String {
    let assumed = if input.defaulted.is_empty() { "" } else { " (dynamic lengths assumed, --input sets them)" };
    format!("{} {}{assumed}", input.name, by(&input.dims))
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
    /// What failed, in one line; `None` where every rewritten node that promises equality is proven.
    pub(crate) fn failure(&self, reports: &[NodeReport]) -> Option<String> {
        let mut failed = Vec::new();
        for (at, report) in reports.iter().enumerate().filter(|(_, r)| r.form.is_some_and(|f| f.is_exact())) {
            match self.nodes.get(at).and_then(Option::as_ref) {
                Some(entry) => failed.extend(entry.failure().map(|why| (report, why))),
                None => failed.push((report, "it could not be proven")),
            }
        }
        let (report, why) = failed.first()?;
        let more = if failed.len() > 1 { format!(" (and {} more)", failed.len() - 1) } else { String::new() };
        Some(format!("the proof failed, no file is left: node '{}': {why}{more}", report.name))
    }

    /// One word for the whole rewrite.
    pub(crate) fn verdict(&self, reports: &[NodeReport], skipped: bool) -> &'static str {
        let mut forms = reports.iter().filter_map(|r| r.form).peekable();
        if forms.peek().is_none() {
            "nothing to prove"
        } else if skipped {
            "not proven"
        } else if self.failure(reports).is_some() {
            "failed"
        } else if forms.all(|f| f.is_exact()) {
            "proven"
        } else {
            "not preserved"
        }
    }

    /// The lines for people.
    pub(crate) fn text(&self, verdict: &str, settings: &Settings) -> String {
        let mut text = match verdict {
            "proven" => format!(
                "proven: every rewritten node, original file against written file, {} random input{} (seed {})\n",
                settings.inputs,
                if settings.inputs == 1 { "" } else { "s" },
                settings.seed
            ),
            "not proven" => "NOT PROVEN (--no-verify): nothing was run\n".to_owned(),
            "not preserved" => {
                "NOT PRESERVED: shi and chang change the result; the other nodes are proven\n".to_owned()
            }
            other => format!("{other}\n"),
        };
        if let Some(whole) = &self.whole_model {
            text.push_str(&whole.text());
        }
        text
    }
}

/// Proves every rewritten node, and compares the whole models. `first` is the file that was read, `second` the
/// one that will be kept; both are decoded afresh.
pub(crate) fn prove(
    first: &ModelBytes<'_>,
    second: &ModelBytes<'_>,
    reports: &[NodeReport],
    settings: &Settings,
) -> Result<Proof> {
    if reports.iter().all(|r| r.form.is_none()) {
        return Ok(Proof { nodes: vec![None; reports.len()], whole_model: None });
    }
    let (original, written) = (options::decode(first)?, options::decode(second)?);
    let index = Index::new(&original);
    let shapes = shape::infer(&index, &settings.shapes).map_err(|e| usage(format!("--input: {e}")))?;
    let claims: Vec<Claim> = reports.iter().filter_map(claim).collect();
    let prove_options = ProveOptions {
        inputs: usize::try_from(settings.inputs).unwrap_or(usize::MAX),
        seed: settings.seed,
        opset1_same_spec: settings.opset1_same == SameRule::Spec,
        ..ProveOptions::default()
    };
    let bar = terminal::bar("proving", claims.len() as u64);
    let proofs = chipfit_run::prove::prove(&original, &written, &shapes, &claims, &prove_options, &mut |number, _| {
        bar.set_position(number as u64);
    });
    bar.finish_and_clear();
    let mut proofs = proofs?.into_iter();
    // Claims were made of the reports with a segment, in order: so come the proofs.
    let nodes = reports.iter().map(|r| claim(r).and_then(|_| proofs.next()).as_ref().map(ProofEntry::from)).collect();
    drop(index);
    let mut proof = Proof { nodes, whole_model: None };
    if proof.failure(reports).is_none() {
        proof.whole_model = Some(WholeModel::run(&original, first, second, settings));
    }
    Ok(proof)
}

/// What is to be proven of a node; `None` where nothing was replaced.
fn claim(report: &NodeReport) -> Option<Claim> {
    let segment = report.segment.as_ref()?;
    Some(Claim {
        scope: segment.scope,
        input: segment.input.clone(),
        output: segment.output.clone(),
        conv_transpose: segment.conv_transpose.clone(),
        name: report.name.clone(),
        exact: report.form?.is_exact(),
    })
}
