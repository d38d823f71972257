//! What can go wrong between a trainer and a device, with the file, field, address or flag at fault and what to do.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chipfit_wire::message::Code;

/// Why the agent or the link to it could not do something.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// A file or folder cannot be read or written.
    #[error("cannot {what} '{}': {source}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// A file exists already and would be overwritten.
    #[error("'{}' exists; --force replaces it", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A name that no certificate can carry.
    #[error("'{name}' is no device name: {why}")]
    Name {
        /// As given.
        name: String,
        /// The rule it breaks.
        why: &'static str,
    },
    /// A certificate or key that cannot be used.
    #[error("'{}': {what}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A certificate cannot be made.
    #[error("cannot make a certificate: {what}")]
    Making {
        /// The library's words.
        what: String,
    },
    /// The device's configuration is wrong.
    #[error("'{}': {what}", path.display())]
    Config {
        /// The configuration file.
        path: PathBuf,
        /// Line, key and rule.
        what: String,
    },
    /// A flag's value is wrong.
    #[error("'{value}' is no {what}")]
    Value {
        /// As given.
        value: String,
        /// What was expected, with an example.
        what: &'static str,
    },
    /// Nothing says whom to believe.
    #[error(
        "no certificates: name the bundle in the configuration (pki = \"FOLDER\", made by chipfit pki), or allow plain TCP on this machine only with --insecure-loopback"
    )]
    NoBundle,
    /// Certificates and plain TCP at once.
    #[error("--insecure-loopback has no meaning with certificates; leave it out")]
    BundleAndPlain,
    /// Plain TCP was asked for beyond loopback.
    #[error(
        "{address} is not on loopback: without TLS only 127.0.0.1 and ::1 are allowed; take certificates (chipfit pki)"
    )]
    PlainBeyondLoopback {
        /// The address.
        address: String,
    },
    /// The other end cannot be reached, or the connection broke.
    #[error("{peer}: {source}")]
    Connection {
        /// Address of the other end.
        peer: String,
        /// The system's or TLS's words.
        source: io::Error,
    },
    /// The device could not do what it was asked, or could not be reached for too long.
    #[error("{peer}: {}{what}", code.map_or(String::new(), |code| format!("{}: ", code.name())))]
    Device {
        /// Address of the device.
        peer: String,
        /// What went wrong; none when the device could not be reached.
        code: Option<Code>,
        /// In words, with what to do.
        what: String,
    },
    /// The model or an argument cannot be used.
    #[error(transparent)]
    Processor(#[from] chipfit_npu::ProcessorError),
    /// The model cannot be lowered.
    #[error(transparent)]
    Lower(#[from] chipfit_npu::lower::LowerError),
    /// The model cannot be sent.
    #[error("the model cannot be sent: {what}")]
    Model {
        /// Why, and what to do.
        what: String,
    },
    /// Something took longer than it may.
    #[error("{peer}: {what} took longer than {} s", limit.as_secs_f64())]
    Timeout {
        /// Address of the other end.
        peer: String,
        /// What was waited for.
        what: &'static str,
        /// The limit.
        limit: Duration,
    },
}

impl AgentError {
    /// For `map_err`: what was tried with which file.
    pub(crate) fn file(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::File { what, path, source }
    }

    /// For `map_err`: which peer.
    pub(crate) fn connection(peer: &str) -> impl FnOnce(io::Error) -> Self + use<> {
        let peer = peer.to_owned();
        move |source| Self::Connection { peer, source }
    }
}
