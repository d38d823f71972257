//! Writes every integer tensor of a QDQ model for given pictures, computed by the naive twin.
//!
//! `dump MODEL PICTURES.f32 OUT [--float-fallback]`: the pictures are little-endian float32 in the model's layout, one
//! after another. In OUT, `index.tsv` lists name, file, type and shape (batch first) of each tensor, and each file
//! holds its words in the model's layout. Read by `tests/python/bit_identity.py`.

use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;

use chipfit_model::{Limits, Model};
use chipfit_npu::lower::LowerOptions;
use chipfit_npu::program::{Word, to_model_layout};
use chipfit_npu::{DrawKey, Machine, Program, Protection, twin};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, pictures, out, flags @ ..] = arguments.as_slice() else {
        return Err("usage: dump MODEL PICTURES.f32 OUT [--float-fallback]".into());
    };
    let model = Model::open(Path::new(model), &Limits::default())?;
    let float_fallback = flags.iter().any(|flag| flag == "--float-fallback");
    let program = Program::lower(&model, &LowerOptions { float_fallback, ..LowerOptions::default() })?;
    let values: Vec<f32> = std::fs::read(pictures)?.as_chunks::<4>().0.iter().map(|c| f32::from_le_bytes(*c)).collect();
    let input = program.quantise_input(&values);
    let each = program.tensor(program.input()).elements();
    let mut words = vec![Vec::new(); program.tensors().len()];
    for picture in input.chunks_exact(each) {
        let key = DrawKey { seed: 0, trial: 0, picture: 0 };
        let pass = twin::forward(&program, None, &Protection::none(), key, Machine::default(), picture);
        for ((bytes, tensor), all) in pass.iter().zip(program.tensors()).zip(&mut words) {
            all.extend(to_model_layout(bytes, &tensor.shape).iter().map(|&byte| tensor.to_word(byte)));
        }
    }
    std::fs::create_dir_all(out)?;
    let mut index = String::new();
    for (number, (tensor, words)) in program.tensors().iter().zip(&words).enumerate() {
        let dtype = match tensor.word {
            Word::Unsigned => "uint8",
            Word::Signed => "int8",
        };
        let shape: Vec<String> = tensor.shape.iter().map(usize::to_string).collect();
        let count = input.len() / each.max(1);
        writeln!(index, "{}\t{number}.bin\t{dtype}\t{count},{}", tensor.name, shape.join(","))?;
        std::fs::write(Path::new(out).join(format!("{number}.bin")), words)?;
    }
    std::fs::write(Path::new(out).join("index.tsv"), index)?;
    for step in program.steps() {
        println!("{} ({}) -> {}", step.name, step.op_type, program.tensor(step.output).name);
    }
    for warning in program.warnings() {
        eprintln!("warning: {warning}");
    }
    Ok(())
}
