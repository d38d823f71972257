//! The pictures of a retraining run: decoded, preprocessed and quantised once where they fit the memory set aside for
//! them, else each time they are wanted.

use anyhow::{Result, ensure};
use chipfit_data::{DataSet, Preprocess, Subset};
use chipfit_npu::Program;
use chipfit_train::{Pictures, TrainError};

use crate::failure::usage;
use crate::terminal;

/// Bytes of quantised pictures that are kept in memory; a larger set is decoded picture by picture.
const MOST_BYTES: usize = 1 << 30;
/// Pictures decoded at once.
const CHUNK: usize = 256;

/// Labelled pictures of a set, as a program's input bytes.
pub(super) struct Quantised {
    set: DataSet,
    /// Which of its pictures.
    indices: Vec<usize>,
    preprocess: Preprocess,
    program: Program,
    /// Bytes of all pictures; `None` where they would be too many.
    kept: Option<Vec<u8>>,
    each: usize,
}

impl Quantised {
    /// Decodes these pictures of `set`, with a bar where a person looks.
    pub(super) fn new(
        what: &'static str,
        set: &DataSet,
        indices: Vec<usize>,
        preprocess: &Preprocess,
        program: &Program,
    ) -> Result<Self> {
        let each = program.tensor(program.input()).elements();
        ensure!(
            preprocess.len() == each,
            "the preprocessing gives {} values a picture, the model takes {each}",
            preprocess.len()
        );
        let mut kept = None;
        if indices.len().saturating_mul(each) <= MOST_BYTES {
            let bar = terminal::bar(what, indices.len() as u64);
            let mut bytes = Vec::with_capacity(indices.len() * each);
            for chunk in indices.chunks(CHUNK) {
                let values = set.batch(chunk.iter().copied(), preprocess)?;
                bytes.extend(program.quantise_input(&values));
                bar.inc(chunk.len() as u64);
            }
            bar.finish_and_clear();
            kept = Some(bytes);
        }
        Ok(Self { set: set.clone(), indices, preprocess: preprocess.clone(), program: program.clone(), kept, each })
    }
}

impl Pictures for Quantised {
    fn len(&self) -> usize {
        self.indices.len()
    }

    fn label(&self, index: usize) -> usize {
        self.set.label(self.indices[index]) as usize
    }

    fn id(&self, index: usize) -> u64 {
        self.set.id(self.indices[index])
    }

    fn bytes(&self, index: usize, out: &mut Vec<u8>) -> Result<(), TrainError> {
        if let Some(kept) = &self.kept {
            out.extend_from_slice(&kept[index * self.each..(index + 1) * self.each]);
            return Ok(());
        }
        let values = self.set.batch([self.indices[index]], &self.preprocess);
        let values = values.map_err(|error| TrainError::Picture { index, what: error.to_string() })?;
        out.extend(self.program.quantise_input(&values));
        Ok(())
    }
}

/// At most `most` pictures of a set, spread evenly over it.
pub(super) fn at_most(set: DataSet, most: Option<usize>, flag: &str) -> Result<DataSet> {
    match most {
        Some(0) => Err(usage(format!("{flag} 0 leaves nothing to do"))),
        Some(count) if count < set.len() => Ok(set.subset(Subset::Spread(count))),
        _ => Ok(set),
    }
}

/// Cuts `share` of `0..count` off for validation: every n-th, so that sets sorted by class stay balanced.
pub(super) fn hold_out(count: usize, share: f64) -> Result<(Vec<usize>, Vec<usize>)> {
    if share == 0.0 {
        return Ok(((0..count).collect(), Vec::new()));
    }
    let every = (1.0 / share).round().max(2.0) as usize;
    let (held, rest): (Vec<usize>, Vec<usize>) = (0..count).partition(|index| index % every == every - 1);
    ensure!(!held.is_empty() && !rest.is_empty(), "--validation {share} of {count} pictures leaves none");
    Ok((rest, held))
}
