//! What the device computed, recovered layer by layer from increments and the twin's own predictions.
//!
//! The twin predicts a step from the tensors before it as the device really had them, errors included, so that one error is
//! paid for once. A tensor can be predicted when everything that its step reads is known: the input, or wanted
//! itself; any other comes entropy coded. What the last steps showed decides how much the device sends in the next one
//! ([`Planner`]); where that is too little, the device is asked for more.

use std::collections::{BTreeMap, BTreeSet};

use chipfit_npu::{Processor, Program, Simulator, StepId, TensorId};
use chipfit_wire::activation::{Decoder, Mode, Outcome, Parameters, Planner, Request};
use chipfit_wire::message::{Encoding, TraceBody, tensor_check};

/// The first byte of a payload that holds a tensor as it is.
const AS_IT_IS: u8 = 0;
/// Sizes of batches that are remembered for one device.
const MOST_SIZES: usize = 8;

/// The tensors that a forward pass asks for, in the order of the program's steps, and which of them can be predicted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) tensors: Vec<(TensorId, Option<StepId>)>,
}

impl Wanted {
    /// `asked` and the output, each once.
    pub(crate) fn new(program: &Program, asked: &[TensorId]) -> Self {
        let is_known = |id: TensorId| id == program.input() || asked.contains(&id);
        let mut tensors = Vec::new();
        if asked.contains(&program.input()) {
            tensors.push((program.input(), None));
        }
        for (position, step) in program.steps().iter().enumerate() {
            if step.output == program.output() || asked.contains(&step.output) {
                let can_predict = step.inputs.iter().all(|&id| is_known(id));
                tensors.push((step.output, can_predict.then_some(StepId(position))));
            }
        }
        Self { tensors }
    }

    /// These as they are, each once.
    pub(crate) fn only(asked: BTreeSet<TensorId>) -> Self {
        Self { tensors: asked.into_iter().map(|id| (id, None)).collect() }
    }
}

/// What recent steps showed, by device and number of pictures.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    planners: BTreeMap<(usize, usize), BTreeMap<TensorId, Planner>>,
}

impl Memory {
    fn planners(&mut self, device: usize, pictures: usize) -> &mut BTreeMap<TensorId, Planner> {
        let sizes = self.planners.range((device, 0)..=(device, usize::MAX)).count();
        if sizes >= MOST_SIZES && !self.planners.contains_key(&(device, pictures)) {
            self.planners.retain(|&(other, _), _| other != device);
        }
        self.planners.entry((device, pictures)).or_default()
    }

    /// How the device is to send each wanted tensor in this trial.
    pub(crate) fn parameters(
        &mut self,
        program: &Program,
        wanted: &Wanted,
        device: usize,
        pictures: usize,
        trial: u64,
    ) -> Vec<Parameters> {
        let planners = self.planners(device, pictures);
        let one = |&(id, step): &(TensorId, Option<StepId>)| {
            let key = trial.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(id.0 as u64);
            match step {
                None => Parameters { mode: Mode::Entropy, key },
                Some(_) => {
                    let bytes = program.tensor(id).elements() * pictures;
                    planners.entry(id).or_default().parameters(bytes, key)
                }
            }
        };
        wanted.tensors.iter().map(one).collect()
    }
}

/// What a recovery has cost.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Cost {
    pub(crate) payload_bytes: u64,
    pub(crate) raw_bytes: u64,
    pub(crate) entropy_bits: f64,
    pub(crate) missed_values: u64,
    pub(crate) further_rounds: u64,
    pub(crate) raw_tensors: u64,
}

/// A device's answer to a request for more.
pub(crate) enum Answer {
    /// The payload.
    More(Vec<u8>),
    /// The trace was lost and computed again: recovery starts anew with this.
    Again(Box<TraceBody>),
}

/// How a recovery went.
pub(crate) enum Recovered {
    /// All wanted tensors.
    All(BTreeMap<TensorId, Vec<u8>>),
    /// To be tried again with this trace.
    Again(Box<TraceBody>),
}

/// One device's share of a forward pass.
pub(crate) struct Recovery<'a, E> {
    pub(crate) twin: &'a mut Simulator,
    pub(crate) memory: &'a mut Memory,
    pub(crate) wanted: &'a Wanted,
    pub(crate) parameters: &'a [Parameters],
    pub(crate) device: usize,
    pub(crate) pictures: usize,
    /// The pictures as the device sees them.
    pub(crate) input: &'a [u8],
    /// Asks the device for more about a tensor.
    pub(crate) ask: &'a mut dyn FnMut(TensorId, &Request) -> Result<Answer, E>,
    pub(crate) cost: Cost,
}

impl<E> Recovery<'_, E> {
    /// Recovers every wanted tensor of a trace.
    ///
    /// # Errors
    /// What `ask` says; or in words (by `broken`) what the device sent that it cannot have meant.
    pub(crate) fn run(&mut self, body: &TraceBody, broken: &dyn Fn(String) -> E) -> Result<Recovered, E> {
        let input = self.twin.program().input();
        let mut known = BTreeMap::from([(input, self.input.to_vec())]);
        if body.tensors.len() != self.wanted.tensors.len() {
            return Err(broken("the trace has another number of tensors than were asked for".to_owned()));
        }
        for ((&(id, step), payload), &parameters) in self.wanted.tensors.iter().zip(&body.tensors).zip(self.parameters)
        {
            let tensor = self.twin.program().tensor(id);
            let (name, length) = (tensor.name.clone(), tensor.elements() * self.pictures);
            if payload.encoding != Encoding::Increments {
                return Err(broken(format!("'{name}' did not come as an increment")));
            }
            let prediction = self.predict(step, &known, length).map_err(broken)?;
            let planners = self.memory.planners(self.device, self.pictures);
            let prior = planners.entry(id).or_default().prior();
            let mut decoder = Decoder::new(length, parameters, prior);
            let mut bytes = payload.bytes.to_vec();
            let tensor = loop {
                self.cost.payload_bytes += bytes.len() as u64;
                self.cost.raw_tensors += u64::from(bytes.first() == Some(&AS_IT_IS));
                let outcome = decoder.try_decode(&prediction, &bytes);
                match outcome.map_err(|error| broken(format!("'{name}': {error}")))? {
                    Outcome::Recovered(tensor) => break tensor,
                    Outcome::NeedsMore(request) => {
                        self.cost.further_rounds += 1;
                        match (self.ask)(id, &request)? {
                            Answer::More(more) => bytes = more,
                            Answer::Again(body) => return Ok(Recovered::Again(body)),
                        }
                    }
                }
            };
            if tensor_check(&tensor) != payload.check {
                return Err(broken(format!("'{name}' is not what its check says")));
            }
            self.cost.raw_bytes += length as u64;
            if step.is_some() {
                let (bits, missed) = surprise(&prediction, &tensor);
                self.cost.entropy_bits += bits;
                self.cost.missed_values += missed;
                self.memory.planners(self.device, self.pictures).entry(id).or_default().observe(&prediction, &tensor);
            }
            known.insert(id, tensor);
        }
        if !self.wanted.tensors.iter().any(|&(id, _)| id == input) {
            known.remove(&input);
        }
        Ok(Recovered::All(known))
    }

    /// The step's clean result from what is known; zeros where nothing is to be predicted.
    fn predict(
        &mut self,
        step: Option<StepId>,
        known: &BTreeMap<TensorId, Vec<u8>>,
        length: usize,
    ) -> Result<Vec<u8>, String> {
        let Some(step) = step else { return Ok(vec![0; length]) };
        let reads = self.twin.program().steps().get(step.0).map(|step| step.inputs.clone()).unwrap_or_default();
        let inputs: Option<Vec<&[u8]>> = reads.iter().map(|id| known.get(id).map(Vec::as_slice)).collect();
        let inputs = inputs.ok_or_else(|| "a step's input is not known".to_owned())?;
        self.twin.predict(step, self.pictures, &inputs).map_err(|error| error.to_string())
    }
}

/// `n * H0(observed - predicted)` in bits, and how many values differ.
fn surprise(predicted: &[u8], observed: &[u8]) -> (f64, u64) {
    let mut counts = [0u64; 256];
    let mut missed = 0;
    for (x, y) in predicted.chunks(256).zip(observed.chunks(256)).filter(|(x, y)| x != y) {
        for (x, y) in x.iter().zip(y).filter(|(x, y)| x != y) {
            if let Some(count) = counts.get_mut(usize::from(y.wrapping_sub(*x))) {
                *count += 1;
            }
            missed += 1;
        }
    }
    let all = observed.len() as f64;
    let bits = |count: u64| if count == 0 { 0.0 } else { count as f64 * (all / count as f64).log2() };
    let differing: f64 = counts.iter().map(|&count| bits(count)).sum();
    (differing + bits((observed.len() as u64).saturating_sub(missed)), missed)
}

#[cfg(test)]
mod tests {
    use chipfit_npu::testing::program;

    use super::*;

    #[test]
    fn surprise_is_the_entropy_of_the_differences() {
        assert_eq!(surprise(&[5; 1000], &[5; 1000]), (0.0, 0));
        let mut observed = vec![5u8; 1024];
        observed[7] = 6;
        observed[900] = 4;
        let (bits, missed) = surprise(&[5; 1024], &observed);
        // Two values once each among 1,024: 2 * log2(1024) and 1022 * log2(1024 / 1022).
        let expected = 2.0 * 10.0 + 1022.0 * (1024.0f64 / 1022.0).log2();
        assert!((bits - expected).abs() < 1e-9, "{bits}");
        assert_eq!(missed, 2);
    }

    #[test]
    fn a_tensor_is_predicted_when_all_that_its_step_reads_is_known() {
        let program = program(3);
        let all: Vec<TensorId> = program.steps().iter().map(|step| step.output).collect();
        let wanted = Wanted::new(&program, &all);
        assert_eq!(wanted.tensors.len(), all.len());
        assert!(wanted.tensors.iter().all(|(_, step)| step.is_some()));
        let output = Wanted::new(&program, &[]);
        let last = program.steps().iter().position(|step| step.output == program.output()).expect("a step");
        let reads_input = program.steps()[last].inputs.iter().all(|&id| id == program.input());
        assert_eq!(output.tensors, vec![(program.output(), reads_input.then_some(StepId(last)))]);
    }
}
