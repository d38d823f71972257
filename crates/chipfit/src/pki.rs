//! `chipfit pki`: mutual TLS in two commands: `init` makes an authority and the trainer's bundle, `device NAME` a bundle
//! per device.

use std::path::PathBuf;

use anyhow::Result;
use chipfit_agent::DeviceName;
use chipfit_agent::pki::{self, TRAINER_FOLDER, Validity};
use clap::{Args, Subcommand};

use crate::terminal;

/// Make the certificates by which trainer and devices know each other.
///
/// `init` once, then `device NAME` for each device. Copy a device's folder to the device, and nothing else.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make an authority and the trainer's certificate
    Init(Common),
    /// Make a device's certificate and key
    Device {
        /// The device's name: a-z, 0-9, '-' and '.', a letter first
        #[arg(value_name = "NAME", value_parser = name)]
        name: DeviceName,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Args, Debug)]
struct Common {
    /// The authority's folder
    #[arg(long, value_name = "DIR", default_value = "pki")]
    dir: PathBuf,
    /// Days from now until the new certificates end
    #[arg(long, value_name = "N", default_value = "3650", value_parser = days)]
    days: Validity,
    /// Replace what exists
    #[arg(long)]
    force: bool,
}

fn name(text: &str) -> Result<DeviceName, String> {
    text.parse().map_err(|error: chipfit_agent::AgentError| error.to_string())
}

fn days(text: &str) -> Result<Validity, String> {
    let days = text.parse().ok().and_then(Validity::days);
    days.ok_or_else(|| "expected a number of days from 1 to 36500".to_owned())
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.command {
        Command::Init(common) => {
            pki::init(&common.dir, common.days, common.force)?;
            let trainer = common.dir.join(TRAINER_FOLDER);
            terminal::print(&format!(
                "authority: {}\ntrainer's bundle: {}\nnext: chipfit pki device NAME --dir {}\n",
                common.dir.display(),
                trainer.display(),
                common.dir.display()
            ))
        }
        Command::Device { name, common } => {
            let bundle = pki::device(&common.dir, name, common.days, common.force)?;
            terminal::print(&format!(
                "bundle of {name}: {}\ncopy this folder to the device; in its device.toml: name = \"{name}\", pki = \"FOLDER\"\n",
                bundle.display()
            ))
        }
    }
}
