//! `--tune`: the form of every node by measurement.
//!
//! Every ConvTranspose that the plan would rewrite is taken out with its neighbourhood, written in each candidate
//! form (kept, split, rowsplit, fused, each with every interleave), and all of them are timed in turns with one
//! thread. The fastest stays; a form must beat keeping the node by [`MARGIN`], else nothing is gained but risk.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use chipfit_deconv::{Decision, Form, Interleave, NodeReport, Options, Segment};
use chipfit_model::{Index, Model, ScopeId, Shapes, shape};
use chipfit_run::engine::OnnxRuntime;
use chipfit_run::random;
use chipfit_run::tune::{Candidate, Measurement, Plan, measure};
use serde::Serialize;

use crate::extract;
use crate::terminal::{self, by, note, printable};

/// How much faster than the kept node a form must be: medians of a shared machine repeat within about this.
const MARGIN: f64 = 0.02;

/// What was measured of one node.
#[derive(Debug, Serialize)]
pub(crate) struct Tuned {
    /// The node.
    pub(crate) node: String,
    /// The shape that it was measured on; empty where nothing was.
    pub(crate) input_shape: Vec<usize>,
    /// Every candidate, the fastest first.
    pub(crate) candidates: Vec<Timed>,
    /// Why nothing was measured; the fixed rule decided then.
    pub(crate) not_measured: Option<String>,
    #[serde(skip)]
    place: (ScopeId, usize),
}

/// One candidate.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Timed {
    /// `kept`, or form and interleave.
    pub(crate) name: String,
    /// Median time of one run.
    pub(crate) seconds: f64,
    /// Median of its time over the kept node's, run by run (over the first candidate's where keeping is impossible).
    pub(crate) ratio: f64,
    #[serde(skip)]
    choice: Decision,
}

/// What was measured, for [`Options::decided`].
pub(crate) fn decisions(tuned: &[Tuned]) -> BTreeMap<(ScopeId, usize), Decision> {
    tuned.iter().filter_map(|t| Some((t.place, t.candidates.first()?.choice))).collect()
}

impl Tuned {
    /// Whether this is about the node at `place`.
    pub(crate) fn is_about(&self, place: (ScopeId, usize)) -> bool {
        self.place == place
    }

    /// The measurement in words: why the form was chosen.
    pub(crate) fn reason(&self) -> String {
        let shown = |t: &Timed| format!("{} {:.3} ms", t.name, t.seconds * 1e3);
        match &self.not_measured {
            Some(why) => format!("not measured: {why}"),
            None => format!(
                "measured on {}: {}",
                by(&self.input_shape),
                self.candidates.iter().map(shown).collect::<Vec<_>>().join(", ")
            ),
        }
    }
}

/// Measures every node that some form could replace.
pub(crate) fn measure_nodes(
    engine: &OnnxRuntime,
    index: &Index<'_>,
    inputs: &BTreeMap<String, Vec<usize>>,
    options: &Options,
    seed: u64,
) -> Result<Vec<Tuned>> {
    // Free dimensions take the same defaults as the proof's inputs: a measurement needs lengths.
    let settled = random::input_shapes(index.model, inputs).map_err(crate::compare::input_error)?;
    for input in settled.iter().filter(|s| !s.defaulted.is_empty()) {
        let shown = format!("{} {}", input.name, by(&input.dims));
        note(&format!("note: measured with {}: dynamic lengths assumed, --input sets them", printable(&shown)));
    }
    let dims = settled.into_iter().map(|s| (s.name, s.dims)).collect();
    let shapes = shape::infer(index, &dims)?;
    // Without the target, whose estimate would keep nodes unmeasured; its limits are asked of every candidate.
    let open = Options { target: None, decided: BTreeMap::new(), ..options.clone() };
    let reports = chipfit_deconv::plan(index, &shapes, &open).map_err(crate::rewrite::plan_error)?.nodes;
    let nodes: Vec<(&NodeReport, &Segment)> = reports.iter().filter_map(|r| Some((r, r.segment.as_ref()?))).collect();
    let bar = terminal::bar("measuring", nodes.len() as u64);
    let mut tuned = Vec::new();
    for (report, segment) in nodes {
        let result = measure_node(engine, index, &shapes, segment, options, seed);
        let (input_shape, candidates, not_measured) = match result {
            Ok((input_shape, candidates)) => (input_shape, candidates, None),
            Err(error) => (Vec::new(), Vec::new(), Some(terminal::printable(&format!("{error:#}")))),
        };
        tuned.push(Tuned { node: report.name.clone(), input_shape, candidates, not_measured, place: report.place });
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(tuned)
}

fn measure_node(
    engine: &OnnxRuntime,
    index: &Index<'_>,
    shapes: &Shapes,
    segment: &Segment,
    options: &Options,
    seed: u64,
) -> Result<(Vec<usize>, Vec<Timed>)> {
    let alone = extract::neighbourhood(index, shapes, segment)?;
    let inputs = random::inputs(&alone, &BTreeMap::new(), seed)?;
    let shape = inputs.first().map_or(Vec::new(), |(_, tensor)| tensor.dims().to_vec());
    let mut choices: Vec<(String, Decision, Bytes)> = candidates(&alone, options)?;
    loop {
        let folder = alone.folder.as_deref();
        let models: Vec<Candidate<'_>> = choices
            .iter()
            .map(|(name, _, bytes)| Candidate { name: name.clone(), bytes: bytes.clone(), folder })
            .collect();
        if models.is_empty() {
            bail!("the target can run no form of it");
        }
        match measure(engine, &models, &inputs, &Plan::default()) {
            Ok(measured) => return Ok((shape, ranked(&choices, measured))),
            // ONNX Runtime cannot run this one (it has no transposed convolution of some kinds): without it then.
            Err(error) if choices.len() > 1 => choices.retain(|(name, _, _)| *name != error.candidate),
            Err(error) => return Err(error).context("no form could be measured"),
        }
    }
}

/// The node as it is and in every form that differs from the others.
fn candidates(alone: &Model, options: &Options) -> Result<Vec<(String, Decision, Bytes)>> {
    let index = Index::new(alone);
    let shapes = shape::infer(&index, &BTreeMap::new())?;
    let mut seen: BTreeSet<Bytes> = BTreeSet::new();
    let mut all = Vec::new();
    if options.target.as_ref().is_none_or(|t| t.ops.conv_transpose) {
        all.push(("kept".to_owned(), None, Bytes::from(alone.to_bytes()?)));
    }
    let interleaves = match options.interleave {
        Some(one) => vec![one],
        None => vec![Interleave::DepthToSpace, Interleave::Reshape, Interleave::Concat],
    };
    for form in [Form::Split, Form::RowSplit, Form::Fused] {
        for &interleave in &interleaves {
            let asked = Options {
                form: Some(form),
                interleave: Some(interleave),
                only: Vec::new(),
                keep: Vec::new(),
                target: None,
                decided: BTreeMap::new(),
                ..options.clone()
            };
            let plan = chipfit_deconv::plan(&index, &shapes, &asked)?;
            let Some(report) = plan.nodes.first().filter(|r| r.form == Some(form)) else { continue };
            let objection = options.target.as_ref().and_then(|t| t.objection(&report.work, report.interleave));
            if objection.is_some() {
                continue;
            }
            let mut model = alone.clone();
            model.apply(&plan.patch)?;
            let bytes = Bytes::from(model.to_bytes()?);
            if !seen.insert(bytes.clone()) {
                continue;
            }
            let woven = report.interleave.map_or(String::new(), |i| format!("/{}", i.name()));
            all.push((format!("{}{woven}", form.name()), Some((form, report.interleave)), bytes));
        }
    }
    Ok(all)
}

/// The fastest first; the kept node first among those that do not beat it clearly.
fn ranked(choices: &[(String, Decision, Bytes)], measured: Vec<Measurement>) -> Vec<Timed> {
    let timed = |((_, choice, _), m): (&(String, Decision, Bytes), Measurement)| Timed {
        name: m.name,
        seconds: m.median_seconds,
        ratio: m.ratio,
        choice: *choice,
    };
    let mut all: Vec<Timed> = choices.iter().zip(measured).map(timed).collect();
    let handicapped = |t: &Timed| if t.choice.is_none() { t.ratio * (1.0 - MARGIN) } else { t.ratio };
    all.sort_by(|a, b| handicapped(a).total_cmp(&handicapped(b)));
    all
}
