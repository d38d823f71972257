//! The `chipfit` command: flags in, one report out, an exit status that scripts can trust.
//!
//! Exit status: 0 done, 1 the model or the data is at fault, 2 wrong usage, 3 a proof failed (no output file
//! is left). Standard output carries the report, or with `--json` exactly one JSON document; messages and
//! progress go to standard error. No arithmetic on tensors lives here.
//!
//! Read [`rewrite`] first, then [`options`] for the flags and [`report`] for what is printed.
#![forbid(unsafe_code)]

mod bounds;
mod check;
mod compare;
mod data_options;
mod device;
mod evaluate;
mod extract;
mod failure;
mod inject;
mod inspect;
mod options;
mod picture;
mod pki;
mod processor_options;
mod proof;
mod protect;
mod quantize;
mod report;
mod report_page;
mod retrain;
mod rewrite;
#[cfg(feature = "sabotage")]
mod sabotage;
mod terminal;
mod tune;
mod zoo;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Fits neural networks to the chip people already have.
///
/// Transposed convolutions become standard convolutions: exact, proven, in the same file format. Quantised classifiers run
/// on an integer processor that makes the errors you describe, and campaigns tell what that does to their answers.
/// Exit status: 0 done, 1 the model or the data is at fault, 2 wrong usage, 3 a proof failed.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 110)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Check(check::Arguments),
    Inspect(inspect::Arguments),
    Inject(Box<inject::Arguments>),
    Rewrite(Box<rewrite::Arguments>),
    Compare(compare::Arguments),
    Device(device::Arguments),
    /// The processor's process; started by `chipfit device`
    #[command(hide = true)]
    DeviceWorker,
    Evaluate(Box<evaluate::Arguments>),
    Protect(Box<protect::Arguments>),
    Quantize(Box<quantize::Arguments>),
    Pki(pki::Arguments),
    Report(report_page::Arguments),
    Retrain(Box<retrain::Arguments>),
    Zoo(zoo::Arguments),
}

fn main() -> ExitCode {
    let (wants_json, result) = match Arguments::parse().command {
        Command::Check(a) => (a.json, check::run(&a)),
        Command::Inspect(a) => (a.json, inspect::run(&a)),
        Command::Inject(a) => (a.json, inject::run(&a)),
        Command::Rewrite(a) => (a.json, rewrite::run(&a)),
        Command::Compare(a) => (a.json, compare::run(&a)),
        Command::Device(a) => (a.json, device::run(&a)),
        Command::DeviceWorker => device::worker(),
        Command::Evaluate(a) => (a.json, evaluate::run(&a)),
        Command::Protect(a) => (a.json, protect::run(&a)),
        Command::Quantize(a) => (a.json, quantize::run(&a)),
        Command::Pki(a) => (false, pki::run(&a)),
        Command::Report(a) => (a.json, report_page::run(&a)),
        Command::Retrain(a) => (a.json, retrain::run(&a)),
        Command::Zoo(a) => (false, zoo::run(&a)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure::report(&error, wants_json),
    }
}
