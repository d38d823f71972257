//! Errors of the command and the exit status each one means.
//!
//! Libraries' errors are the model's or the data's fault (status 1) unless they are wrapped in [`Usage`] (2)
//! or [`ProofFailed`] (3). Every error is printed as one line.

use std::process::ExitCode;

use anyhow::Error;

use crate::terminal;

/// The command line asks for something that cannot be meant.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

/// A proof failed; no output file exists. `document` is the report that `--json` still owes.
#[derive(Debug)]
pub(crate) struct ProofFailed {
    /// What differed.
    pub(crate) what: String,
    /// The JSON document to print instead of the plain error.
    pub(crate) document: Option<String>,
}

/// Something is wrong that standard output has told already: no second document is printed.
#[derive(Debug)]
pub(crate) struct Told(pub(crate) String);

impl std::fmt::Display for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::error::Error for Told {}

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::fmt::Display for ProofFailed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.what)
    }
}
impl std::error::Error for Usage {}
impl std::error::Error for ProofFailed {}

/// A [`Usage`] error with this text.
pub(crate) fn usage(text: impl Into<String>) -> Error {
    Error::new(Usage(text.into()))
}

/// Prints `error` as one line on standard error (and, with `--json`, as a document on standard output).
pub(crate) fn report(error: &Error, wants_json: bool) -> ExitCode {
    let line = one_line(error);
    let proof = error.downcast_ref::<ProofFailed>();
    let status = match proof {
        Some(_) => 3,
        None if error.downcast_ref::<Usage>().is_some() => 2,
        None => 1,
    };
    terminal::note(&format!("error: {line}"));
    if wants_json && error.downcast_ref::<Told>().is_none() {
        let document = proof
            .and_then(|p| p.document.clone())
            .unwrap_or_else(|| format!("{:#}\n", serde_json::json!({ "error": line, "status": status })));
        // The status already tells that the command failed; a closed pipe changes nothing.
        let _ = terminal::print(&document);
    }
    ExitCode::from(status)
}

/// The causes from the outermost in, each once: many libraries repeat their source in their own text.
pub(crate) fn one_line(error: &Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if !line.contains(&text) {
            if !line.is_empty() {
                line.push_str(": ");
            }
            line.push_str(&text);
        }
    }
    let lines: Vec<&str> = line.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    terminal::printable(&lines.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_that_is_already_told_is_not_repeated_and_the_line_stays_one() {
        let error = Error::msg("no such file\nor folder").context("cannot read 'a': no such file\nor folder");
        assert_eq!(one_line(&error), "cannot read 'a': no such file or folder");
        let error = Error::msg("inner").context("outer");
        assert_eq!(one_line(&error), "outer: inner");
    }
}
