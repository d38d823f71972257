//! The one central trait: anything that runs a quantised model and returns what it really computed.
//!
//! The simulator, ONNX Runtime and a remote device implement it; evaluation, campaigns and retraining are written
//! once, against it. A request carries quantised pictures in the program's input layout and says which tensors
//! should come back; the trace holds bytes in the program's layout.

use std::borrow::Cow;
use std::collections::BTreeMap;

use chipfit_model::Model;

use crate::program::{Program, TensorId};
use crate::protection::Protection;
pub use crate::view::View;

/// Pictures to compute, and how their faults are keyed.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// Identity of each picture: its index in the data set. Keys the draws of faults.
    pub pictures: &'a [u64],
    /// Quantised input bytes, picture after picture ([`Program::quantise_input`]).
    pub input: &'a [u8],
}

/// One forward pass.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The pictures.
    pub batch: Batch<'a>,
    /// Trial number of a campaign, or step of a retraining run; keys the draws.
    pub trial: u64,
    /// How each picture is seen: empty for all as they are, else one per picture.
    pub views: &'a [View],
    /// Tensors to return besides the output.
    pub wanted: &'a [TensorId],
}

impl<'a> Request<'a> {
    /// The input as the processor sees it: every picture in its view.
    ///
    /// # Errors
    /// [`ProcessorError::InputLength`] when the input is not one picture of `program` for each identity, and
    /// [`ProcessorError::Views`] when there are views, but not one for each.
    pub fn seen(&self, program: &Program) -> Result<Cow<'a, [u8]>, ProcessorError> {
        let tensor = program.tensor(program.input());
        let (pictures, bytes) = (self.batch.pictures.len(), self.batch.input.len());
        if pictures.checked_mul(tensor.elements()) != Some(bytes) {
            return Err(ProcessorError::InputLength { bytes, pictures, each: tensor.elements() });
        }
        if !self.views.is_empty() && self.views.len() != pictures {
            return Err(ProcessorError::Views { views: self.views.len(), pictures });
        }
        if self.views.iter().all(|view| view.is_identity()) {
            return Ok(Cow::Borrowed(self.batch.input));
        }
        Ok(Cow::Owned(View::apply_all(self.views, tensor, self.batch.input)))
    }
}

/// What the processor computed, errors included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// The output's bytes, picture after picture.
    pub output: Vec<u8>,
    /// The wanted tensors' bytes, picture after picture.
    pub tensors: BTreeMap<TensorId, Vec<u8>>,
    /// Words struck, replicas included; `None` when the processor cannot know.
    pub strikes: Option<u64>,
}

/// A change of one constant of the program: new values at some positions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorDelta {
    /// ONNX name of the initializer (`Linear::weights_name` or `bias_name`).
    pub name: String,
    /// Position in the program's layout and the new value.
    pub changes: Vec<(u32, i32)>,
}

/// Why a processor could not do it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProcessorError {
    /// The input's length is not a whole number of pictures.
    #[error("the input holds {bytes} bytes; {pictures} pictures of {each} bytes were announced")]
    InputLength {
        /// Given.
        bytes: usize,
        /// Announced.
        pictures: usize,
        /// Bytes of one picture.
        each: usize,
    },
    /// There are views, but not one for each picture.
    #[error("{views} views were given for {pictures} pictures")]
    Views {
        /// Given.
        views: usize,
        /// Pictures of the batch.
        pictures: usize,
    },
    /// A delta names no constant of the program, or a position or value outside it.
    #[error("update of '{name}': {what}")]
    Update {
        /// The constant.
        name: String,
        /// What is wrong with it.
        what: String,
    },
    /// The engine behind the processor failed.
    #[error("{processor}: {what}")]
    Engine {
        /// Which processor.
        processor: String,
        /// Its own words.
        what: String,
    },
}

/// Anything that runs a quantised model and returns what it really computed.
pub trait Processor {
    /// One line for reports: what executes, with its kernels, threads and faults.
    fn describe(&self) -> String;

    /// The program that this processor was loaded with.
    fn program(&self) -> &Program;

    /// Changes constants.
    ///
    /// # Errors
    /// [`ProcessorError::Update`]; nothing has changed then.
    fn update(&mut self, deltas: &[TensorDelta]) -> Result<(), ProcessorError>;

    /// Takes another model of the same structure: other constants, other scales. Faults and protection stay.
    ///
    /// # Errors
    /// [`ProcessorError::Engine`] when the model cannot be lowered or has another structure; nothing has changed then.
    fn load(&mut self, model: &Model) -> Result<(), ProcessorError>;

    /// Computes these units three times from now on.
    ///
    /// # Errors
    /// [`ProcessorError::Engine`] on a processor that cannot repeat parts of its work.
    fn protect(&mut self, protection: &Protection) -> Result<(), ProcessorError>;

    /// Computes the pictures of `request`.
    ///
    /// # Errors
    /// [`ProcessorError::InputLength`], or what the engine says.
    fn forward(&mut self, request: &Request<'_>) -> Result<Trace, ProcessorError>;
}
