//! Placeholder until the reader is written.
/// Why.
#[derive(Debug, thiserror::Error)]
pub enum PickleError {
    /// End.
    #[error("end")]
    End,
}
