//! `chipfit zoo`: networks with exact layer shapes and seeded weights.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;

/// Write a network of the zoo: exact layer shapes, seeded weights.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// The network (see --list)
    #[arg(required_unless_present = "list")]
    name: Option<String>,
    /// The file to write; never overwritten without --force
    #[arg(short, long, value_name = "FILE", required_unless_present = "list")]
    output: Option<PathBuf>,
    /// Replace the output file where it exists
    #[arg(long)]
    force: bool,
    /// Seed of the weights
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Trained weights, for the networks whose packages ship them
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,
    /// How many inputs at once: a number, or `dynamic`
    #[arg(long, value_name = "N|dynamic", default_value = "1", value_parser = parse_batch)]
    batch: Batch,
    /// List the networks
    #[arg(long, conflicts_with_all = ["name", "output"])]
    list: bool,
}

/// `--batch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Batch {
    /// Any number.
    Dynamic,
    /// This many.
    Fixed(u32),
}

fn parse_batch(text: &str) -> Result<Batch, String> {
    match text {
        "dynamic" => Ok(Batch::Dynamic),
        _ => match text.parse() {
            Ok(n @ 1..=65_536) => Ok(Batch::Fixed(n)),
            _ => Err("expected a number from 1 to 65536, or 'dynamic'".to_owned()),
        },
    }
}

/// Runs the subcommand.
pub(crate) fn run(_arguments: &Arguments) -> Result<()> {
    bail!("this build has no zoo yet")
}
