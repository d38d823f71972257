//! Writes a network of the zoo: `zoo NAME OUTPUT [SEED]`; without arguments, lists them.
use std::path::Path;

use chipfit_model::onnx::Overwrite;
use chipfit_model::zoo::{Weights, ZooOptions, build, names};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [] => {
            for entry in names() {
                println!("{:<20} {}", entry.name, entry.about);
            }
        }
        [name, output, weights @ ..] => {
            let mut options = ZooOptions::default();
            if let [file, ..] = weights {
                options.weights = Some(Weights::open(Path::new(file), &Default::default())?);
            }
            build(name, &options)?.write(Path::new(output), Overwrite::Replace)?;
        }
        _ => return Err("usage: zoo [NAME OUTPUT [WEIGHTS]]".into()),
    }
    Ok(())
}
