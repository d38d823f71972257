//! What a daemon and a trainer's link tell as they go: one event, one line, for people or as JSON.

use serde::Serialize;

/// Something worth a line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum LogEvent {
    /// The daemon listens.
    Listening {
        /// The bound address.
        address: String,
        /// The device's name.
        name: String,
        /// `mutual TLS 1.3` or `plain TCP on loopback`.
        security: &'static str,
    },
    /// A connection was refused before a word was said.
    Refused {
        /// Its address.
        peer: String,
        /// Why.
        why: String,
    },
    /// A connection stands.
    Connected {
        /// Its address.
        peer: String,
    },
    /// A session stands.
    Greeted {
        /// The other end's name.
        peer: String,
        /// What the device says of itself.
        description: String,
    },
    /// A connection ended.
    Disconnected {
        /// Why.
        why: String,
    },
    /// The processor's process was started.
    WorkerStarted {
        /// Its process number, if it lives still.
        pid: Option<u32>,
    },
    /// The processor's process did not answer in time and was killed.
    WorkerKilled,
    /// The processor's process ended by itself.
    WorkerDied {
        /// How.
        how: String,
    },
    /// A request failed and is tried again.
    Retried {
        /// What went wrong.
        what: String,
    },
    /// Pictures were sent again because the device had let them go.
    Resent {
        /// How many.
        pictures: usize,
    },
    /// Anything else.
    Note {
        /// In words.
        text: String,
    },
    /// The daemon ends.
    Stopping,
}

impl LogEvent {
    /// The event as one JSON object.
    pub fn to_json(&self) -> String {
        // Plain values only: nothing here that JSON lacks.
        serde_json::to_string(self).unwrap_or_default()
    }
}

impl std::fmt::Display for LogEvent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Listening { address, name, security } => write!(f, "{name} listens on {address}, {security}"),
            Self::Refused { peer, why } => write!(f, "refused {peer}: {why}"),
            Self::Connected { peer } => write!(f, "connected: {peer}"),
            Self::Greeted { peer, description } => write!(f, "session with {peer}: {description}"),
            Self::Disconnected { why } => write!(f, "disconnected: {why}"),
            Self::WorkerStarted { pid: Some(pid) } => write!(f, "processor started as process {pid}"),
            Self::WorkerStarted { pid: None } => f.write_str("processor started"),
            Self::WorkerKilled => f.write_str("the processor did not answer in time and was killed"),
            Self::WorkerDied { how } => f.write_str(how),
            Self::Retried { what } => write!(f, "tried again: {what}"),
            Self::Resent { pictures } => write!(f, "{pictures} pictures sent again"),
            Self::Note { text } => f.write_str(text),
            Self::Stopping => f.write_str("stopping"),
        }
    }
}
