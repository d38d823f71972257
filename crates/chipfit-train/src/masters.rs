//! The fp32 master weights on the server and the integers that the processor holds.

use chipfit_npu::{Program, TensorDelta};
use sha2::{Digest, Sha256};

use crate::error::TrainError;
use crate::parameters::{Parameter, parameters};

/// Masters of every parameter, and what the processor holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Masters {
    parameters: Vec<Parameter>,
    values: Vec<Vec<f32>>,
    held: Vec<Vec<i32>>,
}

/// What must change on the processor.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Increment {
    /// For [`chipfit_npu::Processor::update`]; empty when nothing changed.
    pub deltas: Vec<TensorDelta>,
    /// New integers of the parameters that change, by position.
    pub integers: Vec<(usize, Vec<i32>)>,
    /// Constants that change.
    pub changed: u64,
}

impl Masters {
    /// Masters with the real values of the program's integers: `scale * (integer - zero_point)`.
    ///
    /// # Errors
    /// As [`parameters`].
    pub fn from_program(program: &Program) -> Result<Self, TrainError> {
        let parameters = parameters(program)?;
        let held: Vec<Vec<i32>> =
            parameters.iter().map(|parameter| parameter.held(program)).collect::<Result<_, _>>()?;
        let values = parameters.iter().zip(&held).map(|(parameter, held)| parameter.real(held)).collect();
        Ok(Self { parameters, values, held })
    }

    /// The same masters for another program of the same structure, with its scales; ranges and units stay what they were.
    ///
    /// # Errors
    /// [`TrainError::Step`] when it has other parameters.
    pub fn on_program(self, program: &Program) -> Result<Self, TrainError> {
        let mut fresh = Self::from_program(program)?;
        let pairs = fresh.parameters.iter().zip(&self.parameters);
        let is_same = pairs.into_iter().all(|(new, old)| new.name == old.name);
        let fits = is_same && fresh.restore(self.values).is_some();
        if !fits {
            return Err(TrainError::step("model", "the new program has other constants"));
        }
        for (new, old) in fresh.parameters.iter_mut().zip(self.parameters) {
            (new.range, new.units) = (old.range, old.units);
        }
        Ok(fresh)
    }

    /// The parameters in order.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// The masters in the order of the parameters.
    pub fn values(&self) -> &[Vec<f32>] {
        &self.values
    }

    /// The masters, to be changed; lengths stay.
    pub fn values_mut(&mut self) -> &mut [Vec<f32>] {
        &mut self.values
    }

    /// The integers that the processor holds.
    pub fn held(&self) -> &[Vec<i32>] {
        &self.held
    }

    /// Takes stored masters; `None` when a length differs.
    pub fn restore(&mut self, values: Vec<Vec<f32>>) -> Option<()> {
        let fits =
            values.len() == self.values.len() && values.iter().zip(&self.values).all(|(a, b)| a.len() == b.len());
        fits.then(|| self.values = values)
    }

    /// Puts masters that have left the range of their integers back on its edge.
    pub fn confine(&mut self) {
        for (parameter, values) in self.parameters.iter().zip(&mut self.values) {
            let [low, high] = parameter.range;
            let channels = values.chunks_mut(parameter.per_channel()).zip(&parameter.scales);
            for ((channel, &scale), &zero) in channels.zip(&parameter.zero_points) {
                let [low, high] = [low, high].map(|end| scale * (i64::from(end) - i64::from(zero)) as f32);
                channel.iter_mut().for_each(|value| *value = value.clamp(low, high));
            }
        }
    }

    /// What the processor must be told so that it holds `values` (the masters, or their running mean) rounded.
    pub fn increment(&self, values: &[Vec<f32>]) -> Increment {
        let mut increment = Increment::default();
        let mut integers = Vec::new();
        for (at, ((parameter, values), held)) in self.parameters.iter().zip(values).zip(&self.held).enumerate() {
            parameter.quantise(values, &mut integers);
            let changes = changes(held, &integers);
            if changes.is_empty() {
                continue;
            }
            increment.changed += changes.len() as u64;
            increment.deltas.push(TensorDelta { name: parameter.name.clone(), changes });
            increment.integers.push((at, integers.clone()));
        }
        increment
    }

    /// The integers on the way back to `target`.
    pub fn increment_to(&self, target: &[Vec<i32>]) -> Increment {
        let mut increment = Increment::default();
        for (at, ((parameter, target), held)) in self.parameters.iter().zip(target).zip(&self.held).enumerate() {
            let changes = changes(held, target);
            if !changes.is_empty() {
                increment.changed += changes.len() as u64;
                increment.deltas.push(TensorDelta { name: parameter.name.clone(), changes });
                increment.integers.push((at, target.clone()));
            }
        }
        increment
    }

    /// The processor has taken the increment.
    pub fn taken(&mut self, increment: Increment) {
        for (at, integers) in increment.integers {
            if let Some(held) = self.held.get_mut(at) {
                *held = integers;
            }
        }
    }

    /// SHA-256 of the integers that the processor holds, with their names and scales: hexadecimal.
    pub fn sha256(&self) -> String {
        let mut hash = Sha256::new();
        for (parameter, held) in self.parameters.iter().zip(&self.held) {
            hash.update(parameter.name.as_bytes());
            hash.update([0]);
            hash.update((held.len() as u64).to_le_bytes());
            held.iter().for_each(|value| hash.update(value.to_le_bytes()));
            parameter.scales.iter().for_each(|scale| hash.update(scale.to_le_bytes()));
        }
        hexadecimal(&hash.finalize())
    }
}

/// Positions and new values where two arrays differ. No parameter has 2^32 elements: the lowering refuses far fewer.
fn changes(held: &[i32], new: &[i32]) -> Vec<(u32, i32)> {
    let pairs = (0u32..).zip(held.iter().zip(new));
    pairs.filter(|(_, (held, new))| held != new).map(|(at, (_, &new))| (at, new)).collect()
}

pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
