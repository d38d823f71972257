//! `chipfit inspect`: what is in a model, and what a rewrite would change.

use std::path::PathBuf;

use anyhow::Result;
use chipfit_model::summary::{NodeSummary, Summary, ValueSummary, summarize};
use chipfit_model::{Index, Shapes, shape};
use clap::Args;
use serde::Serialize;

use crate::failure::usage;
use crate::options::{self, InputFlags, PlanFlags};
use crate::report::{self, NodeEntry, Totals};
use crate::terminal::{self, Table, count, maybe_count, note, printable};
use crate::{proof, rewrite};

/// Show what is in a model: per node operator, shapes, MACs and parameters, and what a rewrite would save.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// The ONNX model
    model: PathBuf,
    #[command(flatten)]
    plan: PlanFlags,
    #[command(flatten)]
    inputs: InputFlags,
    /// Print one JSON document on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

/// The document that `--json` prints.
#[derive(Serialize)]
struct Document<'a> {
    command: Vec<String>,
    versions: proof::Versions,
    model: String,
    ir_version: i64,
    opsets: Vec<Opset<'a>>,
    producer: &'a str,
    producer_version: &'a str,
    graph: &'a str,
    functions: usize,
    inputs: Vec<ValueEntry<'a>>,
    outputs: Vec<ValueEntry<'a>>,
    nodes: Vec<Node<'a>>,
    operators: Vec<Operator<'a>>,
    macs: Option<u64>,
    nodes_without_macs: usize,
    parameters: u64,
    /// What a rewrite with the same flags would do.
    deconvolutions: &'a [NodeEntry],
    macs_after: Option<u64>,
    deconv_macs_before: Option<u64>,
    deconv_macs_after: Option<u64>,
    deconv_macs_zero_pad: Option<u64>,
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct Opset<'a> {
    domain: &'a str,
    version: i64,
}

/// A value: `dtype` and `dims` are `null` where nothing is known, a dynamic dimension is its name or `"?"`.
#[derive(Serialize)]
struct ValueEntry<'a> {
    name: &'a str,
    dtype: Option<&'static str>,
    dims: Option<Vec<serde_json::Value>>,
    constant: bool,
}

#[derive(Serialize)]
struct Node<'a> {
    scope: &'a str,
    name: &'a str,
    op: &'a str,
    domain: &'a str,
    inputs: Vec<ValueEntry<'a>>,
    outputs: Vec<ValueEntry<'a>>,
    macs: Option<u64>,
    parameters: u64,
}

#[derive(Serialize)]
struct Operator<'a> {
    domain: &'a str,
    op: &'a str,
    nodes: usize,
}

/// Runs the subcommand.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let inputs = arguments.inputs.shapes()?;
    let options = arguments.plan.options()?;
    let model = options::open(&arguments.model)?;
    let index = Index::new(&model);
    let shapes = shape::infer(&index, &inputs).map_err(|e| usage(format!("--input: {e}")))?;
    let plan = chipfit_deconv::plan(&index, &shapes, &options).map_err(rewrite::plan_error)?;
    let summary = summarize(&index, &shapes);
    let nodes: Vec<NodeEntry> = plan.nodes.iter().map(NodeEntry::from).collect();
    let warnings = report::warnings(&nodes);
    warnings.iter().for_each(|w| note(w));

    let totals = Totals::of(&nodes);
    let (macs, macs_after) = rewrite::whole_macs(&summary, totals);
    let (inputs, outputs) = (ends(&index, &shapes, End::Input), ends(&index, &shapes, End::Output));
    let proto = &model.proto;
    let document = Document {
        command: std::env::args().collect(),
        versions: proof::versions(),
        model: arguments.model.display().to_string(),
        ir_version: proto.ir_version.unwrap_or(0),
        opsets: proto.opset_import.iter().map(opset).collect(),
        producer: proto.producer_name.as_deref().unwrap_or_default(),
        producer_version: proto.producer_version.as_deref().unwrap_or_default(),
        graph: model.graph().name.as_deref().unwrap_or_default(),
        functions: proto.functions.len(),
        inputs: inputs.iter().map(ValueEntry::of).collect(),
        outputs: outputs.iter().map(ValueEntry::of).collect(),
        nodes: summary.nodes.iter().map(Node::of).collect(),
        operators: operators(&summary),
        macs,
        nodes_without_macs: summary.nodes_without_macs,
        parameters: summary.parameters,
        deconvolutions: &nodes,
        macs_after,
        deconv_macs_before: totals.before,
        deconv_macs_after: totals.after,
        deconv_macs_zero_pad: totals.zero_pad,
        warnings,
    };
    if arguments.json {
        return terminal::print(&format!("{}\n", serde_json::to_string_pretty(&document)?));
    }
    terminal::print(&text(&document, &summary, &inputs, &outputs))
}

/// The report for people.
fn text(document: &Document<'_>, summary: &Summary, inputs: &[ValueSummary], outputs: &[ValueSummary]) -> String {
    let opsets: Vec<String> = document
        .opsets
        .iter()
        .map(|o| if o.domain.is_empty() { o.version.to_string() } else { format!("{} {}", o.domain, o.version) })
        .collect();
    let mut text = format!(
        "{}: IR version {}, opset {}, made by {} {}\n",
        printable(&document.model),
        document.ir_version,
        printable(&opsets.join(", ")),
        if document.producer.is_empty() { "?".to_owned() } else { printable(document.producer) },
        printable(document.producer_version),
    );
    for (what, values) in [("input", inputs), ("output", outputs)] {
        for value in values {
            text.push_str(&format!("{what} {} {}\n", printable(&value.name), printable(&value.tensor.to_string())));
        }
    }
    text.push('\n');
    let in_several_scopes = summary.nodes.iter().any(|n| n.scope != 0);
    let mut header = vec!["operator", "node", "input", "output", ">MACs", ">parameters"];
    if in_several_scopes {
        header.push("in");
    }
    let mut table = Table::new(&header);
    for n in &summary.nodes {
        let op = if n.domain.is_empty() { n.op.clone() } else { format!("{}.{}", n.domain, n.op) };
        let shown = |values: &[ValueSummary]| {
            values
                .iter()
                .find(|v| v.constant.is_none() && !v.name.is_empty())
                .map_or("-".to_owned(), |v| v.tensor.to_string())
        };
        let macs = if n.macs == Some(0) { "-".to_owned() } else { maybe_count(n.macs) };
        let parameters = if n.parameters == 0 { "-".to_owned() } else { count(n.parameters) };
        let mut cells = vec![op, n.name.clone(), shown(&n.inputs), shown(&n.outputs), macs, parameters];
        if in_several_scopes {
            cells.push(n.scope_label.clone());
        }
        table.row(cells);
    }
    text.push_str(&table.render());
    let operators = document.operators.iter().map(|o| format!("{} {}", o.nodes, o.op)).collect::<Vec<_>>().join(", ");
    let unknown = match summary.nodes_without_macs {
        0 => String::new(),
        n => format!(" and those of {n} nodes whose shapes or operators are not known (--input NAME:1x3x224x224)"),
    };
    text.push_str(&format!(
        "{} nodes ({}), {} parameters, {} MACs{unknown}\n\n",
        summary.nodes.len(),
        printable(&operators),
        count(summary.parameters),
        count(summary.macs),
    ));
    text.push_str(&report::deconvolutions(document.deconvolutions));
    text
}

enum End {
    Input,
    Output,
}

/// The model's own inputs (constants left out) or outputs.
fn ends(index: &Index<'_>, shapes: &Shapes, end: End) -> Vec<ValueSummary> {
    let names = match (end, index.scopes.first()) {
        (End::Input, Some(scope)) => {
            let is_real = |n: &&&str| matches!(scope.producer(n), Some(chipfit_model::Producer::Input(_)));
            scope.inputs.iter().filter(is_real).copied().collect()
        }
        (End::Output, Some(scope)) => scope.outputs.clone(),
        (_, None) => Vec::new(),
    };
    let value =
        |name: &str| ValueSummary { name: name.to_owned(), tensor: shapes.resolve(index, 0, name), constant: None };
    names.into_iter().map(value).collect()
}

fn opset(import: &chipfit_model::proto::OperatorSetIdProto) -> Opset<'_> {
    Opset { domain: import.domain.as_deref().unwrap_or_default(), version: import.version.unwrap_or(0) }
}

fn operators(summary: &Summary) -> Vec<Operator<'_>> {
    summary.operators.iter().map(|((domain, op), &nodes)| Operator { domain, op, nodes }).collect()
}

impl<'a> ValueEntry<'a> {
    fn of(value: &'a ValueSummary) -> Self {
        let dim = |d: &chipfit_model::Dim| match d.known() {
            Some(n) => n.into(),
            None => d.to_string().into(),
        };
        Self {
            name: &value.name,
            dtype: value.tensor.dtype.map(|t| t.name()),
            dims: value.tensor.dims.as_ref().map(|dims| dims.iter().map(dim).collect()),
            constant: value.constant.is_some(),
        }
    }
}

impl<'a> Node<'a> {
    fn of(node: &'a NodeSummary) -> Self {
        Self {
            scope: &node.scope_label,
            name: &node.name,
            op: &node.op,
            domain: &node.domain,
            inputs: node.inputs.iter().map(ValueEntry::of).collect(),
            outputs: node.outputs.iter().map(ValueEntry::of).collect(),
            macs: node.macs,
            parameters: node.parameters,
        }
    }
}
