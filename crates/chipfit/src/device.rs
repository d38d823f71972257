//! `chipfit device`: the agent on the side of the chip. Hosts a processor in a child process, serves one trainer at a time
//! over mutual TLS, and runs until it is told to end.
//!
//! The first line of standard output names the bound address; with `--json` every line of it is an event.

use std::path::PathBuf;

use anyhow::{Context, Result};
use chipfit_agent::worker::{WorkerCommand, run_worker};
use chipfit_agent::{Daemon, DeviceConfig, LogEvent};
use clap::Args;

use crate::terminal;

/// Host a processor, simulated with faults or real, for a trainer on another machine.
///
/// Ends on SIGTERM and SIGINT. What device.toml may say: docs/device.md.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Address and port to listen on; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:7431")]
    listen: String,
    /// What to host and whom to believe [default: a simulated processor without faults]
    #[arg(long, value_name = "DEVICE.toml")]
    config: Option<PathBuf>,
    /// Plain TCP without certificates; on loopback only
    #[arg(long)]
    insecure_loopback: bool,
    /// Print one JSON object per event on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

/// The hidden subcommand that the daemon starts: its processor. Never returns.
pub(crate) fn worker() -> ! {
    run_worker()
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let config = match &arguments.config {
        Some(path) => DeviceConfig::open(path)?,
        None => DeviceConfig::default(),
    };
    let program = std::env::current_exe().context("cannot find the own program, which hosts the processor")?;
    let worker = WorkerCommand { program, arguments: vec!["device-worker".into()] };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    runtime.block_on(async {
        let daemon = Daemon::bind(config, &arguments.listen, arguments.insecure_loopback, worker).await?;
        let mut log = |event: LogEvent| tell(&event, arguments.json);
        daemon.serve(told_to_end()?, &mut log).await?;
        Ok(())
    })
}

/// Done when the user or the system wants the daemon to end.
fn told_to_end() -> Result<impl Future<Output = ()>> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let watch = |kind| signal(kind).context("cannot watch for signals");
        let (mut terminate, mut interrupt) = (watch(SignalKind::terminate())?, watch(SignalKind::interrupt())?);
        Ok(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        })
    }
    #[cfg(not(unix))]
    Ok(async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    })
}

fn tell(event: &LogEvent, is_json: bool) {
    // A log that nobody reads does not stop the device.
    if is_json {
        let _ = terminal::print(&format!("{}\n", event.to_json()));
    } else if let LogEvent::Listening { .. } = event {
        let _ = terminal::print(&format!("{event}\n"));
    } else {
        terminal::note(&terminal::printable(&event.to_string()));
    }
}
