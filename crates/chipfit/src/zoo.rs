//! `chipfit zoo`: networks with exact layer shapes and seeded weights, or weights from a file.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use chipfit_model::onnx::Overwrite;
use chipfit_model::zoo::{self, Weights, ZooError, ZooOptions};
use chipfit_model::{DataType, Limits};
use clap::{Args, ValueEnum};

use crate::failure::usage;
use crate::options;
use crate::terminal::{self, Table};

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
    /// Trained weights instead, for the networks that --list says have some
    #[arg(long, value_name = "FILE", conflicts_with = "seed")]
    weights: Option<PathBuf>,
    /// How many inputs at once: a number, or `dynamic`
    #[arg(long, value_name = "N|dynamic", default_value = "1", value_parser = parse_batch)]
    batch: Batch,
    /// Element type of input, weights and output
    #[arg(long, value_enum, default_value = "float")]
    dtype: ElementType,
    /// Version of the operator set
    #[arg(long, value_name = "N", default_value_t = 17, value_parser = clap::value_parser!(i64).range(zoo::MIN_OPSET..=zoo::MAX_OPSET))]
    opset: i64,
    /// List the networks
    #[arg(long, conflicts_with_all = ["name", "output"])]
    list: bool,
}

/// `--batch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Batch {
    /// Any number.
    Dynamic,
    /// This many.
    Fixed(u16),
}

/// `--dtype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ElementType {
    Float,
    Float16,
    Bfloat16,
    Double,
}

fn parse_batch(text: &str) -> Result<Batch, String> {
    match (text, text.parse()) {
        ("dynamic", _) => Ok(Batch::Dynamic),
        (_, Ok(n @ 1..)) => Ok(Batch::Fixed(n)),
        _ => Err("expected a number from 1 to 65535, or 'dynamic'".to_owned()),
    }
}

/// Runs the subcommand.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if arguments.list {
        let mut table = Table::new(&["name", "what it is"]);
        zoo::names().iter().for_each(|e| table.row(vec![e.name.to_owned(), e.about.to_owned()]));
        return terminal::print(&table.render());
    }
    let (Some(name), Some(output)) = (&arguments.name, &arguments.output) else {
        return Err(usage("zoo takes a name and -o FILE, or --list"));
    };
    options::check_output(output, arguments.force, arguments.weights.as_slice())?;
    let weights = match &arguments.weights {
        Some(path) => Some(Weights::open(path, &Limits::default()).with_context(|| in_file(path))?),
        None => None,
    };
    let zoo_options = ZooOptions {
        seed: arguments.seed,
        batch: match arguments.batch {
            Batch::Dynamic => None,
            Batch::Fixed(n) => Some(usize::from(n)),
        },
        dtype: match arguments.dtype {
            ElementType::Float => DataType::Float,
            ElementType::Float16 => DataType::Float16,
            ElementType::Bfloat16 => DataType::Bfloat16,
            ElementType::Double => DataType::Double,
        },
        opset: arguments.opset,
        weights,
    };
    let model = zoo::build(name, &zoo_options).map_err(|error| match (&error, &arguments.weights) {
        (ZooError::UnknownNetwork { .. } | ZooError::DataType { .. } | ZooError::WeightsFormat { .. }, _) => {
            usage(error.to_string())
        }
        (_, Some(path)) => anyhow!(error).context(in_file(path)),
        (_, None) => error.into(),
    })?;
    let overwrite = if arguments.force { Overwrite::Replace } else { Overwrite::Never };
    model.write(output, overwrite)?;
    terminal::print(&format!("wrote {}\n", terminal::printable(&output.display().to_string())))
}

fn in_file(path: &Path) -> String {
    format!("--weights '{}'", path.display())
}
