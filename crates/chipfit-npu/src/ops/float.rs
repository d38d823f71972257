//! A node that the processor does not have, kept in float: its inputs dequantised, one picture through the
//! embedded engine, its result quantised.
//!
//! Only programs lowered with `float_fallback` hold such steps; `Program::warnings` names them.

use std::cell::RefCell;
use std::collections::HashMap;

use bytes::Bytes;
use chipfit_model::ConstTensor;
use chipfit_run::engine::{Engine, RtenEngine, Session};

use super::{OpError, formula};
use crate::program::{Program, Step, to_channels_last, to_model_layout};

/// A piece of the model between DequantizeLinear and QuantizeLinear, evaluated in float for one picture.
#[derive(Clone, Debug, PartialEq)]
pub struct FloatStep {
    /// The piece as an ONNX model of its own: float inputs, one float output, batch 1.
    pub model: Bytes,
    /// Names of its inputs, in the order of the step's inputs.
    pub inputs: Vec<String>,
}

thread_local! {
    static SESSIONS: RefCell<HashMap<Bytes, Box<dyn Session>>> = RefCell::new(HashMap::new());
}

impl FloatStep {
    /// The output bytes of one picture.
    ///
    /// # Errors
    /// [`OpError::Float`] with the engine's words.
    pub fn run(&self, program: &Program, step: &Step, inputs: &[&[u8]]) -> Result<Vec<u8>, OpError> {
        let fail = |why: String| OpError::Float { step: step.name.clone(), why };
        let mut feeds = Vec::with_capacity(inputs.len());
        for ((name, id), bytes) in self.inputs.iter().zip(&step.inputs).zip(inputs) {
            let tensor = program.tensor(*id);
            let reals: Vec<f32> = to_model_layout(bytes, &tensor.shape).iter().map(|&b| tensor.real(b)).collect();
            let dims = std::iter::once(1).chain(tensor.shape.iter().copied()).collect();
            let feed = ConstTensor::from_f32(dims, &reals).ok_or_else(|| fail(format!("'{name}' has another size")))?;
            feeds.push((name.clone(), feed));
        }
        let results = SESSIONS.with_borrow_mut(|sessions| {
            if !sessions.contains_key(&self.model) {
                let session = RtenEngine::default().load(&self.model, None).map_err(|e| fail(e.to_string()))?;
                sessions.insert(self.model.clone(), session);
            }
            let session = sessions.get_mut(&self.model).ok_or_else(|| fail("no session".to_owned()))?;
            session.run(&feeds).map_err(|e| fail(e.to_string()))
        })?;
        let to = program.tensor(step.output);
        let reals = results.first().and_then(|(_, tensor)| tensor.to_f64_vec());
        let reals = reals.ok_or_else(|| fail("the engine gave no numbers".to_owned()))?;
        if reals.len() != to.elements() {
            return Err(fail(format!("the engine gave {} values, {} were expected", reals.len(), to.elements())));
        }
        let quantised: Vec<u8> = reals.iter().map(|&real| formula::quantize(to, real as f32)).collect();
        Ok(to_channels_last(&quantised, &to.shape))
    }
}
