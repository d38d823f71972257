//! Why protection could not be planned or compared; every message names what to change.

use chipfit_npu::ProcessorError;

/// Why protection could not be planned or compared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProtectError {
    /// A penalty outside 0 to 2 (0% to 200%), or no number.
    #[error(
        "a penalty of {percent}% of the MACs: it must lie between 0 and 200, where 200 computes everything three times"
    )]
    Penalty {
        /// As asked for, in percent.
        percent: f64,
    },
    /// A number of an option that makes no sense.
    #[error("{what} is {value}; it must be at least {least}")]
    TooFew {
        /// What the number counts.
        what: &'static str,
        /// As given.
        value: u64,
        /// The smallest that has a meaning.
        least: u64,
    },
    /// No step of the program may be protected: none has products, or the chosen layers have none.
    #[error("nothing can be protected: none of the {considered} layers considered has products (Conv, Gemm, MatMul)")]
    NoUnits {
        /// How many layers were looked at.
        considered: usize,
    },
    /// The layers to choose from name a layer that the program lacks; in words.
    #[error("layers to protect: {0}")]
    Layers(String),
    /// There are no pictures, or none with a label.
    #[error(
        "no labelled pictures: protection is chosen by what faults do to the answers for pictures with known labels"
    )]
    NoPictures,
    /// The parts of a sample do not have the same number of pictures.
    #[error("a sample of {pictures} pictures has {labels} labels and {bytes} bytes, {each} a picture")]
    Sample {
        /// Identities.
        pictures: usize,
        /// Labels.
        labels: usize,
        /// Bytes of input.
        bytes: usize,
        /// Bytes of one picture.
        each: usize,
    },
    /// A label that the model has no output for.
    #[error("picture {picture} has label {label}, but the model tells {classes} classes apart")]
    Label {
        /// Its identity.
        picture: u64,
        /// Its label.
        label: u32,
        /// Outputs of the model.
        classes: usize,
    },
    /// No word was struck in any picture, so no unit is more vulnerable than another.
    #[error(
        "the processor's faults struck nothing in {inferences} inferences: no unit is more vulnerable than another; \
         raise the rate, or check which layers and sites the faults file names"
    )]
    NothingStruck {
        /// Inferences made.
        inferences: u64,
    },
    /// Earlier estimates belong to another program or to other units.
    #[error("the earlier vulnerabilities belong to another network: {what}")]
    Earlier {
        /// What does not fit.
        what: String,
    },
    /// The backward pass does not know a step of the program.
    #[error(transparent)]
    Backward(#[from] crate::error::TrainError),
    /// The processor could not do it.
    #[error(transparent)]
    Processor(#[from] ProcessorError),
}
