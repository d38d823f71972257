//! Labelled pictures as the processor's input bytes; and the accuracy of a processor on them.

use chipfit_npu::{Batch, Processor, Request};
use serde::{Deserialize, Serialize};

use crate::error::TrainError;

/// Labelled pictures. The same index always gives the same bytes.
pub trait Pictures {
    /// How many.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Class of picture `index`.
    fn label(&self, index: usize) -> usize;

    /// Identity of picture `index` in its data set; keys the draws of faults and views.
    fn id(&self, index: usize) -> u64;

    /// Appends the quantised bytes of picture `index`, in the program's layout.
    ///
    /// # Errors
    /// [`TrainError::Picture`].
    fn bytes(&self, index: usize, out: &mut Vec<u8>) -> Result<(), TrainError>;
}

/// Pictures that lie in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Bytes of all pictures, one after another.
    pub bytes: Vec<u8>,
    /// Class of each.
    pub labels: Vec<usize>,
    /// Identity of each.
    pub ids: Vec<u64>,
}

impl Memory {
    fn each(&self) -> usize {
        self.bytes.len() / self.labels.len().max(1)
    }
}

impl Pictures for Memory {
    fn len(&self) -> usize {
        self.labels.len()
    }

    fn label(&self, index: usize) -> usize {
        self.labels.get(index).copied().unwrap_or(usize::MAX)
    }

    fn id(&self, index: usize) -> u64 {
        self.ids.get(index).copied().unwrap_or(index as u64)
    }

    fn bytes(&self, index: usize, out: &mut Vec<u8>) -> Result<(), TrainError> {
        let each = self.each();
        let found = index.checked_mul(each).and_then(|start| self.bytes.get(start..start + each));
        out.extend_from_slice(
            found.ok_or_else(|| TrainError::Picture { index, what: "there is no such picture".to_owned() })?,
        );
        Ok(())
    }
}

/// Right answers of a number of pictures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accuracy {
    /// Pictures computed.
    pub pictures: u64,
    /// With the label first.
    pub top1: u64,
    /// With the label among the first five.
    pub top5: u64,
}

impl Accuracy {
    /// Counts one picture: its rank is the number of classes with a greater byte, or an equal one and a lower index.
    pub fn count(&mut self, output: &[u8], label: usize) {
        let own = output.get(label).copied();
        let before = |(class, byte): (usize, &u8)| Some(*byte) > own || (Some(*byte) == own && class < label);
        let rank = output.iter().enumerate().filter(|&(class, byte)| before((class, byte))).count();
        self.pictures += 1;
        self.top1 += u64::from(own.is_some() && rank < 1);
        self.top5 += u64::from(own.is_some() && rank < 5);
    }

    /// Share of right first answers, 0 to 1.
    pub fn top1_share(&self) -> f64 {
        self.top1 as f64 / self.pictures.max(1) as f64
    }

    /// Share of pictures with the label among the first five, 0 to 1.
    pub fn top5_share(&self) -> f64 {
        self.top5 as f64 / self.pictures.max(1) as f64
    }
}

/// Computes all pictures, `batch` at a time, with the faults of `trial`.
///
/// # Errors
/// What the pictures or the processor say.
pub fn evaluate(
    processor: &mut dyn Processor,
    pictures: &dyn Pictures,
    batch: usize,
    trial: u64,
) -> Result<Accuracy, TrainError> {
    let mut accuracy = Accuracy::default();
    passes(processor, pictures, batch, trial, |index, output| accuracy.count(output, pictures.label(index)))?;
    Ok(accuracy)
}

/// The real logits of all pictures as they are, `[pictures][classes]`: a teacher, where the processor is fault-free.
///
/// # Errors
/// What the pictures or the processor say.
pub fn logits(processor: &mut dyn Processor, pictures: &dyn Pictures, batch: usize) -> Result<Vec<f32>, TrainError> {
    let output = processor.program().tensor(processor.program().output()).clone();
    let mut logits = Vec::with_capacity(pictures.len().saturating_mul(output.elements()));
    passes(processor, pictures, batch, 0, |_, bytes| logits.extend(bytes.iter().map(|&byte| output.real(byte))))?;
    Ok(logits)
}

/// Computes all pictures in order; `take` gets each picture's index and output bytes.
fn passes(
    processor: &mut dyn Processor,
    pictures: &dyn Pictures,
    batch: usize,
    trial: u64,
    mut take: impl FnMut(usize, &[u8]),
) -> Result<(), TrainError> {
    let elements = processor.program().tensor(processor.program().output()).elements().max(1);
    let (mut ids, mut input) = (Vec::new(), Vec::new());
    let mut start = 0;
    while start < pictures.len() {
        let end = start.saturating_add(batch.max(1)).min(pictures.len());
        ids.clear();
        input.clear();
        for index in start..end {
            ids.push(pictures.id(index));
            pictures.bytes(index, &mut input)?;
        }
        let batch = Batch { pictures: &ids, input: &input };
        let trace = processor.forward(&Request { batch, trial, views: &[], wanted: &[] })?;
        for (index, output) in (start..end).zip(trace.output.chunks_exact(elements)) {
            take(index, output);
        }
        start = end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_count_ties_by_index() {
        let mut accuracy = Accuracy::default();
        accuracy.count(&[9, 9, 1, 2, 3, 4, 5], 0);
        assert_eq!((accuracy.top1, accuracy.top5), (1, 1));
        accuracy.count(&[9, 9, 1, 2, 3, 4, 5], 1);
        assert_eq!((accuracy.top1, accuracy.top5), (1, 2));
        accuracy.count(&[9, 9, 1, 2, 3, 4, 5], 3);
        assert_eq!((accuracy.top1, accuracy.top5), (1, 2));
        accuracy.count(&[9, 9, 1, 2, 3, 4, 5], 7);
        assert_eq!(accuracy, Accuracy { pictures: 4, top1: 1, top5: 2 });
    }
}
