//! What is told about the transposed convolutions of a model: as a table and as JSON.
//!
//! The JSON keys are an interface: scripts read them, so they are only ever added to.

use chipfit_deconv::NodeReport;
use chipfit_run::prove::{Equality, NodeProof, Verdict};
use serde::Serialize;

use crate::terminal::{Table, by, join, maybe_count};

/// What stands for a form where the node was left as it was.
const KEPT: &str = "kept";

/// One transposed convolution in a JSON document.
#[derive(Debug, Serialize)]
pub(crate) struct NodeEntry {
    name: String,
    op: &'static str,
    /// `kept`, or the form it was rewritten to.
    form: &'static str,
    interleave: Option<&'static str>,
    kernel: Vec<usize>,
    strides: Vec<usize>,
    dilations: Vec<usize>,
    group: usize,
    pads: Vec<i64>,
    output_padding: Vec<i64>,
    macs_before: Option<u64>,
    macs_after: Option<u64>,
    macs_zero_pad: Option<u64>,
    params_before: u64,
    params_after: u64,
    /// `null`: kept, or not proven.
    pub(crate) proof: Option<ProofEntry>,
    reason: String,
    warnings: Vec<String>,
}

/// What the proof of one node measured. Numbers that are not finite are `null`.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ProofEntry {
    /// `proven`, `failed`, or `not judged` for a form that claims no equality.
    verdict: &'static str,
    /// Largest absolute difference over all inputs; in steps for quantised outputs.
    max_abs: f64,
    /// The same relative to the largest absolute value of the original's output.
    max_rel: f64,
    /// Random inputs that were run.
    inputs: usize,
    /// Largest difference as a part of what was allowed there; `null` where no floats were judged.
    worst_ratio: Option<f64>,
    /// Whether the run on small integers was equal (quantised: the int32 accumulators); `null`: not reached.
    index_algebra: Option<bool>,
    /// Structural similarity of an approximate form's output, where it is an image of 11 x 11 or more.
    ssim: Option<f64>,
    /// Whether the requantised outputs were equal; `null` where nothing is requantised.
    quantised_outputs: Option<bool>,
    input_shape: Vec<usize>,
    output_shape: Vec<usize>,
    /// Why it failed.
    why: Option<String>,
}

impl ProofEntry {
    /// Why the proof failed; `None` where it did not.
    pub(crate) fn failure(&self) -> Option<&str> {
        self.why.as_deref()
    }
}

impl From<&NodeProof> for ProofEntry {
    fn from(proof: &NodeProof) -> Self {
        let (verdict, why) = match &proof.verdict {
            Verdict::Proven => ("proven", None),
            Verdict::Failed(why) => ("failed", Some(why.clone())),
            Verdict::NotJudged => ("not judged", None),
        };
        Self {
            verdict,
            max_abs: proof.max_abs,
            max_rel: proof.max_rel,
            inputs: proof.inputs,
            worst_ratio: proof.worst_ratio,
            index_algebra: proof.index_algebra.as_ref().map(Equality::holds),
            ssim: proof.ssim,
            quantised_outputs: proof.integer.as_ref().and_then(|i| i.outputs.as_ref()).map(Equality::holds),
            input_shape: proof.input_dims.clone(),
            output_shape: proof.output_dims.clone(),
            why,
        }
    }
}

impl From<&NodeReport> for NodeEntry {
    fn from(node: &NodeReport) -> Self {
        Self {
            name: node.name.clone(),
            op: "ConvTranspose",
            form: node.form.map_or(KEPT, |f| f.name()),
            interleave: node.interleave.map(|i| i.name()),
            kernel: node.kernel.clone(),
            strides: node.strides.clone(),
            dilations: node.dilations.clone(),
            group: node.group,
            pads: node.pads.clone(),
            output_padding: node.output_padding.clone(),
            macs_before: node.macs_before,
            macs_after: node.macs_after,
            macs_zero_pad: node.macs_zero_pad,
            params_before: node.params_before,
            params_after: node.params_after,
            proof: None,
            reason: node.reason.clone(),
            warnings: node.warnings.clone(),
        }
    }
}

impl NodeEntry {
    /// Whether its multiply-accumulates could not be counted.
    pub(crate) fn has_unknown_macs(&self) -> bool {
        self.macs_before.is_none() || self.macs_after.is_none()
    }
}

/// Multiply-accumulates of all transposed convolutions together; `None` where one is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Of the originals.
    pub(crate) before: Option<u64>,
    /// Of what replaces them.
    pub(crate) after: Option<u64>,
    /// Of the zero-pad baseline.
    pub(crate) zero_pad: Option<u64>,
}

impl Totals {
    /// Of these nodes.
    pub(crate) fn of(nodes: &[NodeEntry]) -> Self {
        let sum = |of: fn(&NodeEntry) -> Option<u64>| {
            nodes.iter().try_fold(0u64, |total, node| Some(total.saturating_add(of(node)?)))
        };
        Self { before: sum(|n| n.macs_before), after: sum(|n| n.macs_after), zero_pad: sum(|n| n.macs_zero_pad) }
    }
}

/// The table of the transposed convolutions, with their totals and warnings.
pub(crate) fn deconvolutions(nodes: &[NodeEntry]) -> String {
    if nodes.is_empty() {
        return "no ConvTranspose: nothing to rewrite\n".to_owned();
    }
    let proven = nodes.iter().any(|n| n.proof.is_some());
    let mut header = vec![
        "node",
        "form",
        "interleave",
        "kernel",
        "stride",
        "dilation",
        ">group",
        "pads",
        ">MACs",
        ">after",
        ">zero-pad",
        ">saving",
    ];
    if proven {
        header.extend([">max abs", ">max rel"]);
    }
    let has_ssim = nodes.iter().any(|n| n.proof.as_ref().is_some_and(|p| p.ssim.is_some()));
    if has_ssim {
        header.push(">SSIM");
    }
    header.push("reason");
    let mut table = Table::new(&header);
    for n in nodes {
        let mut cells = vec![
            n.name.clone(),
            n.form.to_owned(),
            n.interleave.unwrap_or("-").to_owned(),
            by(&n.kernel),
            by(&n.strides),
            by(&n.dilations),
            n.group.to_string(),
            join(&n.pads, ","),
            maybe_count(n.macs_before),
            maybe_count(n.macs_after),
            maybe_count(n.macs_zero_pad),
            saving(n.macs_after, n.macs_zero_pad),
        ];
        if proven {
            let shown =
                |of: fn(&ProofEntry) -> f64| n.proof.as_ref().map_or("-".to_owned(), |p| format!("{:.1e}", of(p)));
            cells.extend([shown(|p| p.max_abs), shown(|p| p.max_rel)]);
        }
        if has_ssim {
            cells.push(n.proof.as_ref().and_then(|p| p.ssim).map_or("-".to_owned(), |s| format!("{s:.4}")));
        }
        cells.push(n.reason.clone());
        table.row(cells);
    }
    let total = Totals::of(nodes);
    let mut cells: Vec<String> = vec!["total".to_owned()];
    cells.resize(8, String::new());
    cells.extend([total.before, total.after, total.zero_pad].map(maybe_count));
    cells.push(saving(total.after, total.zero_pad));
    table.row(cells);
    let mut text = table.render();
    text.push_str("saving: multiply-accumulates against the zero-pad form\n");
    text
}

/// Lines that the user should read: warnings of the plan, each with its node.
pub(crate) fn warnings(nodes: &[NodeEntry]) -> Vec<String> {
    let of = |n: &NodeEntry| n.warnings.iter().map(|w| format!("warning: {}: {w}", n.name)).collect::<Vec<_>>();
    nodes.iter().flat_map(of).map(|line| crate::terminal::printable(&line)).collect()
}

/// By how much `after` is less than `before`, in percent.
pub(crate) fn saving(after: Option<u64>, before: Option<u64>) -> String {
    match (after, before) {
        (Some(after), Some(before)) if before > 0 => {
            // Tenths of a percent; 128 bits hold a thousand times any count.
            let tenths = 1000 - i128::from(after) * 1000 / i128::from(before);
            format!("{}{}.{} %", if tenths < 0 { "-" } else { "" }, tenths.abs() / 10, tenths.abs() % 10)
        }
        _ => "?".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn savings_are_percent_of_the_baseline() {
        let cases = [(Some(25), Some(100), "75.0 %"), (Some(110), Some(100), "-10.0 %"), (None, Some(1), "?")];
        for (after, before, want) in cases {
            assert_eq!(saving(after, before), want);
        }
        assert_eq!(saving(Some(u64::MAX), Some(u64::MAX)), "0.0 %");
    }
}
