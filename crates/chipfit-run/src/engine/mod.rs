//! Engines that run whole models: the embedded one and ONNX Runtime, behind one trait.
//!
//! An engine takes a model's bytes and tensors as [`ConstTensor`]s and gives the model's outputs back in the
//! element types that the file declares. What an engine cannot do is an [`EngineError`] that says which of
//! three things it is: the engine is not there, it lacks something the model needs, or the run failed.
//! A panic inside an engine becomes an error. Neither engine bounds the time or memory a model takes.
//!
//! Read [`Engine`] and [`Session`], then [`onnxruntime`] and [`rten`]; [`locate`] finds ONNX Runtime.

pub mod locate;
pub mod onnxruntime;
pub mod rten;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use bytes::Bytes;
use chipfit_model::ConstTensor;

pub use locate::Places;
pub use onnxruntime::{OnnxRuntime, OnnxRuntimeSession, SessionOptions};
pub use rten::RtenEngine;

/// Why a model could not be loaded or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The engine itself is absent or unusable on this machine.
    #[error("{engine} was not found: {why}; {hint}")]
    NotFound {
        /// The engine.
        engine: String,
        /// Where it was looked for and what came of it.
        why: String,
        /// How to get it.
        hint: String,
    },
    /// The model uses an operator that the engine does not have.
    #[error("{engine} lacks the operator {operator}{}", node.as_ref().map(|n| format!(" (node '{n}')")).unwrap_or_default())]
    MissingOperator {
        /// The engine.
        engine: String,
        /// The operator, as the engine names it.
        operator: String,
        /// The first node that uses it, where the engine tells.
        node: Option<String>,
    },
    /// The engine knows the operators but not this use of them: an attribute, an element type, a kind of value.
    #[error("{engine} does not support this model: {what}")]
    Unsupported {
        /// The engine.
        engine: String,
        /// The thing, with the node or value it belongs to.
        what: String,
    },
    /// The engine itself broke down: a bug in it, whatever the model.
    #[error("{engine} panicked while it was to {step}: {why}")]
    Panicked {
        /// The engine.
        engine: String,
        /// What it was doing: "load the model", "run the model".
        step: &'static str,
        /// The panic's message.
        why: String,
    },
    /// Anything else: a broken model, inputs that do not fit, a failure inside the engine.
    #[error("{engine} failed to {step}: {why}")]
    Failed {
        /// The engine.
        engine: String,
        /// What it was doing: "load the model", "run the model".
        step: &'static str,
        /// Its own words.
        why: String,
    },
}

impl EngineError {
    /// Whether another engine may succeed where this one did not.
    pub fn is_engine_limit(&self) -> bool {
        !matches!(self, Self::Failed { .. })
    }
}

/// How far an engine may rewrite a model before it runs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Optimisation {
    /// Every node runs as the file has it.
    None,
    /// Folding of constants and removal of redundant nodes.
    Basic,
    /// All that the engine has, fusions and layouts included.
    #[default]
    Full,
}

/// Something that loads models.
pub trait Engine {
    /// The engine and its version, for people.
    fn name(&self) -> String;

    /// Loads a model from the bytes of its file; `folder` is where its external data lies.
    ///
    /// # Errors
    /// [`EngineError`].
    fn load(&self, model: &Bytes, folder: Option<&Path>) -> Result<Box<dyn Session>, EngineError>;
}

/// A loaded model.
pub trait Session {
    /// The names of the inputs that a run needs, in the file's order.
    fn inputs(&self) -> &[String];

    /// The names of the outputs that a run gives, in the file's order.
    fn outputs(&self) -> &[String];

    /// Where this engine computes otherwise than the file asks (a narrower type, say), one sentence each.
    fn caveats(&self) -> &[String];

    /// Runs the model once and returns every output, in the order of [`Session::outputs`].
    ///
    /// # Errors
    /// [`EngineError`]; an input that is missing, unknown or of the wrong type is named.
    fn run(&mut self, inputs: &[(String, ConstTensor)]) -> Result<Vec<(String, ConstTensor)>, EngineError>;
}

/// Runs `action`; a panic becomes [`EngineError::Panicked`].
fn guarded<T>(
    engine: &str,
    step: &'static str,
    action: impl FnOnce() -> Result<T, EngineError>,
) -> Result<T, EngineError> {
    // Nothing that was being changed is looked at again after a panic: the caller drops the session.
    catch_unwind(AssertUnwindSafe(action)).unwrap_or_else(|payload| {
        Err(EngineError::Panicked { engine: engine.to_owned(), step, why: panic_text(&*payload).to_owned() })
    })
}

fn panic_text(payload: &(dyn Any + Send)) -> &str {
    match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (_, Some(text)) => text,
        _ => "no message",
    }
}

/// Checks that `given` names every one of `wanted` once and nothing else.
fn check_inputs(engine: &str, wanted: &[String], given: &[(String, ConstTensor)]) -> Result<(), EngineError> {
    let fail = |why: String| EngineError::Failed { engine: engine.to_owned(), step: "take the inputs", why };
    for (position, (name, _)) in given.iter().enumerate() {
        if !wanted.contains(name) {
            return Err(fail(format!("the model has no input '{name}'; its inputs are {wanted:?}")));
        }
        if given.iter().take(position).any(|(earlier, _)| earlier == name) {
            return Err(fail(format!("input '{name}' is given twice")));
        }
    }
    match wanted.iter().find(|name| !given.iter().any(|(have, _)| have == *name)) {
        Some(missing) => Err(fail(format!("input '{missing}' is missing"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
