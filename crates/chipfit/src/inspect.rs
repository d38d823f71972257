//! `chipfit inspect`: what is in a model, and what a rewrite would change.

use std::path::PathBuf;

use anyhow::Result;
use chipfit_model::{Index, shape};
use clap::Args;

use crate::failure::usage;
use crate::options::{self, InputFlags, PlanFlags};
use crate::report::{self, NodeEntry};
use crate::{rewrite, terminal};

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

/// Runs the subcommand.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let inputs = arguments.inputs.shapes()?;
    let options = arguments.plan.options()?;
    let model = options::open(&arguments.model)?;
    let index = Index::new(&model);
    let shapes = shape::infer(&index, &inputs).map_err(|e| usage(format!("--input: {e}")))?;
    let plan = chipfit_deconv::plan(&index, &shapes, &options).map_err(rewrite::plan_error)?;
    let nodes: Vec<NodeEntry> = plan.nodes.iter().map(NodeEntry::from).collect();
    terminal::print(&report::deconvolutions(&nodes))
}
