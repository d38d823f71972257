//! Trains a network of the zoo from scratch and prints what an epoch costs and gives.
//!
//! `scratch NETWORK TRAIN TEST OUT.onnx [CONFIG.json]`: data sets as in docs/data.md; the model is written with its
//! preprocessing beside it. CONFIG holds fields of `scratch::Config`; without it, what suits the network is taken.

use std::error::Error;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use chipfit_data::{Colour, DataSet, Layout, OpenOptions, Preprocess, preprocess_path};
use chipfit_model::onnx::{Overwrite, write_atomically};
use chipfit_model::zoo::{self, ZooOptions};
use chipfit_train::scratch::{self, Config, Event, MemoryPictures, Network, PixelScale};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (network, train, test, out, config) = match arguments.as_slice() {
        [network, train, test, out] => (network, train, test, out, None),
        [network, train, test, out, config] => (network, train, test, out, Some(config)),
        _ => return Err("usage: scratch NETWORK TRAIN TEST OUT.onnx [CONFIG.json]".into()),
    };
    let model = zoo::build(network, &ZooOptions { batch: None, ..ZooOptions::default() })?;
    let read = Network::from_model(&model)?;
    let [channels, height, width] = read.picture();
    let config = match config {
        Some(path) => serde_json::from_str(&std::fs::read_to_string(path)?)?,
        None => Config::for_network(&read),
    };
    let colour = if channels == 1 { Colour::Grey } else { Colour::Rgb };
    let scale = PixelScale::for_channels(channels);
    let how = Preprocess {
        mean: vec![scale.mean],
        std: vec![scale.std],
        ..Preprocess::raw([height, width], Layout::Nchw, colour)
    };
    let load = |spec: &str| -> Result<MemoryPictures, Box<dyn Error>> {
        let set = DataSet::open(spec, &OpenOptions::default())?;
        let mut pictures = MemoryPictures::new([channels, height, width]);
        for start in (0..set.len()).step_by(1000) {
            let end = set.len().min(start + 1000);
            let labels: Vec<u32> = (start..end).map(|index| set.label(index)).collect();
            pictures.extend(&set.batch(start..end, &how)?, &labels)?;
        }
        Ok(pictures)
    };
    let (train, test) = (load(train)?, load(test)?);
    let start = Instant::now();
    let outcome = scratch::train(&model, &train, Some(&test), &config, &mut |event| {
        match event {
            Event::Step { done, of, epoch, loss, accuracy, gradient } if done % 50 == 0 => {
                let seconds = start.elapsed().as_secs_f64();
                eprintln!("{done}/{of} epoch {epoch}: {loss:.4} {accuracy:.3} |g| {gradient:.3}, {seconds:.0} s");
            }
            Event::Epoch { done, held_out } => {
                let seconds = start.elapsed().as_secs_f64();
                eprintln!("epoch {done}: {:.2}%, {:.4}; {seconds:.0} s", 100.0 * held_out.accuracy(), held_out.loss);
            }
            _ => {}
        }
        ControlFlow::Continue(())
    })?;
    let accuracy = outcome.held_out.map_or(0.0, |found| found.accuracy());
    println!("{network}: {:.2}% after {} steps", 100.0 * accuracy, outcome.steps);
    let path = Path::new(out);
    outcome.model.write(path, Overwrite::Replace)?;
    write_atomically(&preprocess_path(path), how.to_toml().as_bytes())?;
    Ok(())
}
