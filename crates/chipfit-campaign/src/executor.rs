//! What a campaign needs of a processor.

use chipfit_npu::{StepId, Strike};
use serde::{Deserialize, Serialize};

/// An executor's failure, in its own words.
pub type ExecutorError = Box<dyn std::error::Error + Send + Sync>;

/// Computes trials. Shared by all threads; the answers depend on the arguments alone.
///
/// Pictures are told by their place in the data set. Output bytes are biased, one per class, as `Program::output` lies
/// in a trace.
pub trait Executor: Sync {
    /// What is kept of one picture's clean run while its trials are made.
    type Golden;

    /// The clean outputs of some pictures, one after another.
    ///
    /// # Errors
    /// What the processor says.
    fn clean(&self, pictures: &[u64]) -> Result<Vec<Vec<u8>>, ExecutorError>;

    /// The clean run of one picture.
    ///
    /// # Errors
    /// What the processor says.
    fn golden(&self, picture: u64) -> Result<Self::Golden, ExecutorError>;

    /// The same inference with one strike.
    ///
    /// # Errors
    /// What the processor says.
    fn strike(&self, golden: &Self::Golden, step: StepId, strike: Strike) -> Result<Computed, ExecutorError>;

    /// Some pictures under the faults of one point of a curve; `draw` is the `trial` of the draws' key.
    ///
    /// # Errors
    /// What the processor says.
    fn pass(&self, point: usize, draw: u64, pictures: &[u64]) -> Result<Vec<Faulty>, ExecutorError>;
}

/// One struck inference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Computed {
    /// The output is the clean one; where the change died, as far as the processor knows.
    Masked(Masked),
    /// The output's bytes; they may still equal the clean ones.
    Output(Vec<u8>),
}

/// Where and why a change died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Masked {
    /// The last step that saw it.
    pub step: Option<StepId>,
    /// Why.
    pub by: MaskedBy,
}

/// Why a change died.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MaskedBy {
    /// The struck word kept its value, or a change of a buffer met only zeros.
    Unchanged,
    /// The accumulator changed; its byte did not: rounding or saturation hid it.
    Requantized,
    /// A following step computed the same bytes.
    Absorbed,
    /// The majority of three replicas.
    Vote,
    /// Nothing reads the changed bytes.
    Unread,
    /// The processor does not tell.
    Unknown,
}

impl MaskedBy {
    /// All reasons, in the order of this enum.
    pub const ALL: [Self; 6] =
        [Self::Unchanged, Self::Requantized, Self::Absorbed, Self::Vote, Self::Unread, Self::Unknown];

    /// The name used in files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unchanged => "unchanged",
            Self::Requantized => "requantized",
            Self::Absorbed => "absorbed",
            Self::Vote => "vote",
            Self::Unread => "unread",
            Self::Unknown => "unknown",
        }
    }
}

/// One picture's inference under a rate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faulty {
    /// The output's bytes.
    pub output: Vec<u8>,
    /// Words struck; `None` when the processor cannot know.
    pub strikes: Option<u64>,
}
