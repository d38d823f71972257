//! Labelled pictures, and the losses that a processor's answers to them amount to.
//!
//! Draws are keyed by picture and trial, so that two protections measured on the same trials meet the same faults in
//! replica 0: their differences are paired.

use std::ops::Range;

use chipfit_npu::{Batch, Processor, Program, Protection, Request, Tensor};
use serde::{Deserialize, Serialize};

use super::ProtectError;

/// Bytes of input that one forward pass takes at most; results do not depend on it.
const BATCH_BYTES: usize = 16 << 20;

/// Labelled pictures, quantised for one program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    pub(super) pictures: Vec<u64>,
    pub(super) labels: Vec<u32>,
    pub(super) input: Vec<u8>,
}

/// What a faulty answer costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// `-ln p(label)`, p the softmax of the dequantised output: what training minimises; not bounded.
    CrossEntropy,
    /// `1 - p(label)`: the probability that an answer drawn from the softmax is wrong. Between 0 and 1.
    #[default]
    Doubt,
    /// 1 when the highest output is not the label's (the lower class wins ties), else 0.
    Top1,
}

impl Measure {
    /// The name used in files and flags.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CrossEntropy => "cross_entropy",
            Self::Doubt => "doubt",
            Self::Top1 => "top1",
        }
    }

    /// All of them.
    pub const ALL: [Self; 3] = [Self::CrossEntropy, Self::Doubt, Self::Top1];

    /// The loss of one picture's output bytes.
    pub fn loss(self, tensor: &Tensor, output: &[u8], label: u32) -> f64 {
        let Some(&own) = output.get(label as usize) else { return 0.0 };
        if self == Self::Top1 {
            let is_beaten = |(class, &byte): (usize, &u8)| byte > own || (byte == own && class < label as usize);
            return f64::from(u8::from(output.iter().enumerate().any(is_beaten)));
        }
        let highest = output.iter().copied().max().unwrap_or(own);
        let scale = f64::from(tensor.scale);
        let below = |byte: u8| scale * (f64::from(byte) - f64::from(highest));
        let sum: f64 = output.iter().map(|&byte| libm::exp(below(byte))).sum();
        match self {
            Self::CrossEntropy => libm::log(sum) - below(own),
            _ => 1.0 - libm::exp(below(own)) / sum,
        }
    }
}

impl Sample {
    /// Pictures with these identities (which key the draws) and labels; `input` holds their quantised bytes in the
    /// program's layout, one picture after another.
    ///
    /// # Errors
    /// [`ProtectError::NoPictures`], [`ProtectError::Sample`] when the lengths disagree, [`ProtectError::Label`] for a
    /// label that the program has no output for.
    pub fn new(program: &Program, pictures: Vec<u64>, labels: Vec<u32>, input: Vec<u8>) -> Result<Self, ProtectError> {
        let each = program.tensor(program.input()).elements();
        let classes = program.tensor(program.output()).elements();
        if pictures.is_empty() || labels.is_empty() {
            return Err(ProtectError::NoPictures);
        }
        if labels.len() != pictures.len() || pictures.len().checked_mul(each) != Some(input.len()) {
            let (bytes, labels) = (input.len(), labels.len());
            return Err(ProtectError::Sample { pictures: pictures.len(), labels, bytes, each });
        }
        if let Some((&picture, &label)) = pictures.iter().zip(&labels).find(|(_, label)| **label as usize >= classes) {
            return Err(ProtectError::Label { picture, label, classes });
        }
        Ok(Self { pictures, labels, input })
    }

    /// Number of pictures; at least 1.
    pub fn len(&self) -> usize {
        self.pictures.len()
    }

    /// `count` pictures spread evenly over the sample, or all of them where there are fewer.
    #[must_use]
    pub fn spread(&self, count: usize) -> Self {
        let count = count.clamp(1, self.len().max(1));
        let each = self.input.len().checked_div(self.len()).unwrap_or(0);
        let mut part = Self::default();
        for at in (0..count).map(|at| at * self.len() / count).take(self.len()) {
            part.pictures.push(self.pictures[at]);
            part.labels.push(self.labels[at]);
            part.input.extend_from_slice(&self.input[at * each..(at + 1) * each]);
        }
        part
    }

    /// The sample in parts of at most `count` pictures.
    pub(super) fn parts(&self, count: usize) -> impl Iterator<Item = Self> {
        let each = self.input.len().checked_div(self.len()).unwrap_or(0).max(1);
        let count = count.max(1);
        let labels = self.pictures.chunks(count).zip(self.labels.chunks(count));
        labels.zip(self.input.chunks(count * each)).map(|((pictures, labels), input)| Self {
            pictures: pictures.to_vec(),
            labels: labels.to_vec(),
            input: input.to_vec(),
        })
    }

    /// Whether there are none; never, but for the default.
    pub fn is_empty(&self) -> bool {
        self.pictures.is_empty()
    }
}

/// What a processor's answers cost, trial after trial, in each trial picture after picture.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Losses {
    pub(super) values: Vec<f64>,
    /// The output's bytes, likewise.
    pub(super) outputs: Vec<u8>,
    /// Words struck; `None` when the processor cannot know.
    pub(super) strikes: Option<u64>,
}

/// Computes `sample` under `protection` once per trial.
pub(super) fn losses(
    processor: &mut dyn Processor,
    protection: &Protection,
    sample: &Sample,
    trials: Range<u64>,
    measure: Measure,
) -> Result<Losses, ProtectError> {
    processor.protect(protection)?;
    let program = processor.program();
    let tensor = program.tensor(program.output()).clone();
    let each = program.tensor(program.input()).elements().max(1);
    let batch = (BATCH_BYTES / each).max(1);
    let mut all = Losses { values: Vec::new(), outputs: Vec::new(), strikes: Some(0) };
    for trial in trials {
        let parts =
            sample.pictures.chunks(batch).zip(sample.input.chunks(batch * each)).zip(sample.labels.chunks(batch));
        for ((pictures, input), labels) in parts {
            let request = Request { batch: Batch { pictures, input }, trial, views: &[], wanted: &[] };
            let trace = processor.forward(&request)?;
            all.strikes = all.strikes.zip(trace.strikes).map(|(a, b)| a + b);
            let outputs = trace.output.chunks_exact(tensor.elements().max(1)).zip(labels);
            all.outputs.extend_from_slice(&trace.output);
            all.values.extend(outputs.map(|(output, &label)| measure.loss(&tensor, output, label)));
        }
    }
    Ok(all)
}
