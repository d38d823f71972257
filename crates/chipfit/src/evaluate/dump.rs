//! `--dump`: integer tensors of the first pictures, under their ONNX names, in the model's layout and integer type.
//!
//! Array `NAME` has the shape `[pictures, ...]`; `__input__` holds the float values that went in, so that another
//! runtime can be fed the same, and `__labels__` the pictures' classes.

use std::path::Path;

use anyhow::{Result, bail, ensure};
use chipfit_data::{ArrayData, NpzWriter};
use chipfit_npu::program::{Word, to_model_layout};
use chipfit_npu::{Batch, Processor, Program, Request, TensorId};

use super::Pictures;

/// The tensors that the flag names.
fn chosen(program: &Program, names: &str) -> Result<Vec<TensorId>> {
    let all = || program.tensors().iter().enumerate();
    if names == "all" {
        return Ok(all().map(|(position, _)| TensorId(position)).collect());
    }
    names
        .split(',')
        .map(|name| match all().find(|(_, tensor)| tensor.name == name) {
            Some((position, _)) => Ok(TensorId(position)),
            None => bail!("--dump: no integer tensor '{name}'; `--dump all` shows the names"),
        })
        .collect()
}

/// Computes the first `images` pictures with trial 0 and writes their tensors to `output`.
pub(super) fn write(
    processor: &mut dyn Processor,
    pictures: &Pictures,
    names: &str,
    images: usize,
    output: &Path,
) -> Result<()> {
    ensure!(images > 0, "--dump-images 0 writes nothing");
    let wanted = chosen(processor.program(), names)?;
    let set = &pictures.set;
    let images = images.min(set.len());
    let values = set.batch(0..images, &pictures.preprocess)?;
    let input = processor.program().quantise_input(&values);
    let ids: Vec<u64> = (0..images).map(|index| set.id(index)).collect();
    let trace = processor.forward(&Request {
        batch: Batch { pictures: &ids, input: &input },
        trial: 0,
        views: &[],
        wanted: &wanted,
    })?;
    let mut file = NpzWriter::create(output)?;
    let program = processor.program();
    for &id in &wanted {
        let tensor = program.tensor(id);
        let bytes = if id == program.input() { Some(&input) } else { trace.tensors.get(&id) };
        let Some(bytes) = bytes else { bail!("the processor did not return '{}'", tensor.name) };
        let words: Vec<u8> =
            to_model_layout(bytes, &tensor.shape).into_iter().map(|byte| tensor.to_word(byte)).collect();
        let shape: Vec<usize> = std::iter::once(images).chain(tensor.shape.iter().copied()).collect();
        match tensor.word {
            Word::Unsigned => file.add(&tensor.name, &shape, ArrayData::U8(&words))?,
            Word::Signed => {
                let signed: Vec<i8> = words.iter().map(|&word| word.cast_signed()).collect();
                file.add(&tensor.name, &shape, ArrayData::I8(&signed))?;
            }
        }
    }
    let labels: Vec<i64> = (0..images).map(|index| i64::from(set.label(index))).collect();
    file.add("__labels__", &[images], ArrayData::I64(&labels))?;
    let input_shape: Vec<usize> =
        std::iter::once(images).chain(program.tensor(program.input()).shape.iter().copied()).collect();
    file.add("__input__", &input_shape, ArrayData::F32(&values))?;
    file.finish()?;
    Ok(())
}
