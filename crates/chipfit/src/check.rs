//! `chipfit check FILE...`: says what a file of ours is, and whether it is right.
//!
//! The kind follows from the keys that only one format has; the file is then read by the code that uses it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use chipfit_campaign::Campaign;
use chipfit_campaign::file::{CurveFaults, Mode};
use chipfit_data::Preprocess;
use chipfit_deconv::target::Target;
use chipfit_npu::FaultsFile;
use chipfit_npu::protection::PlanFile;
use clap::Args;

use crate::failure::{Told, one_line};
use crate::terminal;

/// Largest file that is read: ours have a few kilobytes.
const MAX_BYTES: u64 = 16 << 20;

/// Tell whether faults, campaign, plan, preprocessing and target files are right.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// The files
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Print one JSON document on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

/// A format, the keys that tell it, and where it is described.
const FORMATS: [(&str, &[&str], &str); 5] = [
    ("faults", &["fault"], "docs/faults-file.md"),
    ("campaign", &["mode"], "docs/campaigns.md"),
    ("plan", &["protect", "vote"], "docs/plan-file.md"),
    ("preprocessing", &["size"], "docs/data.md"),
    ("target", &["ops", "cost", "limits", "prefer"], "docs/targets.md"),
];

/// Checks every file; fails when one is wrong.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let mut entries = Vec::new();
    let mut text = String::new();
    let mut wrong = 0;
    for path in &arguments.files {
        let (kind, result) = check(path);
        let name = terminal::printable(&path.display().to_string());
        let what = kind.unwrap_or("unknown");
        match &result {
            Ok(said) => text.push_str(&format!("{name}: {what} file, right: {said}\n")),
            Err(error) => {
                wrong += 1;
                text.push_str(&format!("{name}: {what} file, wrong: {}\n", one_line(error)));
            }
        }
        entries.push(serde_json::json!({
            "file": path.display().to_string(),
            "kind": kind,
            "right": result.is_ok(),
            "what": result.unwrap_or_else(|e| one_line(&e)),
        }));
    }
    if arguments.json {
        let document = serde_json::json!({ "files": entries, "wrong": wrong });
        terminal::print(&format!("{document:#}\n"))?;
    } else {
        terminal::print(&text)?;
    }
    if wrong > 0 { Err(Told(format!("{wrong} of {} files are wrong", arguments.files.len())).into()) } else { Ok(()) }
}

/// The kind of a file, if its keys tell it, and what it says or what is wrong.
fn check(path: &Path) -> (Option<&'static str>, Result<String>) {
    let read = || -> Result<(String, toml::Table)> {
        let bytes = std::fs::metadata(path).with_context(|| format!("cannot read '{}'", path.display()))?.len();
        if bytes > MAX_BYTES {
            bail!("{bytes} bytes: none of our files is that long");
        }
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read '{}'", path.display()))?;
        let table = text.parse().context("no TOML")?;
        Ok((text, table))
    };
    let (text, table) = match read() {
        Ok(read) => read,
        Err(error) => return (None, Err(error)),
    };
    let found = FORMATS.iter().find(|(_, keys, _)| keys.iter().any(|key| table.contains_key(*key)));
    let Some((kind, _, page)) = found else {
        let known: Vec<String> =
            FORMATS.iter().map(|(kind, keys, _)| format!("{kind} ({})", keys.join(" or "))).collect();
        return (None, Err(anyhow::anyhow!("no key tells what it is; the formats: {}", known.join(", "))));
    };
    let said = match *kind {
        "faults" => faults(&text),
        "campaign" => campaign(&text, path.parent().unwrap_or(Path::new(""))),
        "plan" => plan(&text),
        "preprocessing" => preprocessing(&text),
        _ => target(path),
    };
    (Some(kind), said.with_context(|| format!("see {page}")))
}

fn faults(text: &str) -> Result<String> {
    let file = FaultsFile::parse(text)?;
    Ok(format!("{} [[fault]] entries", file.faults.len()))
}

fn campaign(text: &str, base: &Path) -> Result<String> {
    let campaign = Campaign::parse(text)?;
    let content = |path: &Path| {
        let path = base.join(path);
        std::fs::read_to_string(&path).with_context(|| format!("cannot read '{}'", path.display()))
    };
    if let Some(path) = &campaign.tmr {
        PlanFile::parse(&content(path)?).with_context(|| format!("'{}'", path.display()))?;
    }
    match &campaign.mode {
        Mode::Single(single) => {
            Ok(format!("single faults of {} kinds at {} sites", single.kinds.len(), single.sites.len()))
        }
        Mode::Rate(curves) => {
            for curve in curves {
                if let CurveFaults::File(path) = &curve.faults {
                    FaultsFile::parse(&content(path)?).with_context(|| format!("'{}'", path.display()))?;
                }
            }
            let points: usize = curves.iter().map(|curve| curve.rates.len()).sum();
            Ok(format!("{} curves with {points} points", curves.len()))
        }
    }
}

fn plan(text: &str) -> Result<String> {
    let plan = PlanFile::parse(text)?;
    Ok(format!("{} [[protect]] entries", plan.protect.len()))
}

fn preprocessing(text: &str) -> Result<String> {
    let preprocess = Preprocess::parse(text)?;
    let [height, width] = preprocess.size;
    Ok(format!("input of {height}x{width} pixels"))
}

fn target(path: &Path) -> Result<String> {
    let path = path.to_str().context("the path is no Unicode text")?;
    // A name without a separator would be looked up among the built-in targets.
    let place = if path.contains(std::path::is_separator) { path.to_owned() } else { format!("./{path}") };
    let target = Target::load(&place)?;
    Ok(format!("'{}'", terminal::printable(&target.name)))
}
