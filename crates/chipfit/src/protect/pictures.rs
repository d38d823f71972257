//! The pictures that plans are made on, and those that they are measured on: never the same ones.

use anyhow::{Context, Result, ensure};
use chipfit_data::{DataSet, PreferredSplit, Preprocess, Subset};
use chipfit_npu::Program;
use chipfit_train::protect::Sample;

use super::Arguments;
use crate::data_options::PictureInput;
use crate::failure::usage;
use crate::options;
use crate::terminal::note;

/// Pictures for both purposes, and where they come from.
pub(super) struct Samples {
    pub(super) planning: Sample,
    pub(super) planning_from: String,
    /// `None` when nothing is to be measured.
    pub(super) measuring: Option<Sample>,
    pub(super) measuring_from: Option<String>,
}

/// Opens and quantises them.
pub(super) fn open(arguments: &Arguments, program: &Program) -> Result<Samples> {
    if arguments.pictures == 0 {
        return Err(usage("--pictures 0: plans are made from what faults do to pictures"));
    }
    let model = options::open(&arguments.model)?;
    let (preprocess, _) = arguments.data.preprocess.resolve(&arguments.model, &PictureInput::of(&model)?)?;
    note(&format!("preprocessing: {preprocess}"));
    let set = arguments.data.open(PreferredSplit::Train)?;
    let test = match (&arguments.test_data, arguments.test_pictures) {
        (_, 0) => None,
        (Some(spec), _) => Some(arguments.data.open_other(spec, "--test-data", PreferredSplit::Test)?),
        (None, _) => Some(arguments.data.open(PreferredSplit::Test)?),
    };
    let one_set = test.as_ref().is_some_and(|test| test.fingerprint() == set.fingerprint());
    // Of one set half at most is planned on, the rest is left to measure on.
    let most = if one_set { set.len() / 2 } else { set.len() };
    let planning = random(&set, arguments.pictures.min(most), arguments.seed);
    ensure!(
        !planning.is_empty(),
        "{}: too few pictures to plan on some and measure on others; --test-data PATH, or --test-pictures 0",
        from(&set)
    );
    let taken: std::collections::BTreeSet<u64> = match one_set {
        true => (0..planning.len()).map(|at| planning.id(at)).collect(),
        false => std::collections::BTreeSet::new(),
    };
    let measuring = test
        .as_ref()
        .map(|test| {
            let free: Vec<usize> = (0..test.len()).filter(|&at| !taken.contains(&test.id(at))).collect();
            let count = free.len().min(arguments.test_pictures);
            // Spread evenly, and so over the classes.
            let picked: Vec<usize> = (0..count).map(|at| free[at * free.len() / count.max(1)]).collect();
            sample(test, &picked, &preprocess, program)
        })
        .transpose()?;
    let all: Vec<usize> = (0..planning.len()).collect();
    Ok(Samples {
        planning: sample(&planning, &all, &preprocess, program)?,
        planning_from: from(&set),
        measuring,
        measuring_from: test.as_ref().map(from),
    })
}

fn random(set: &DataSet, count: usize, seed: u64) -> DataSet {
    set.subset(Subset::Random { count, seed })
}

fn from(set: &DataSet) -> String {
    let split = set.split().map_or_else(String::new, |split| format!(", {split}"));
    format!("{}{split}", set.path().display())
}

/// Pictures of a set as the program's input.
fn sample(set: &DataSet, picked: &[usize], preprocess: &Preprocess, program: &Program) -> Result<Sample> {
    /// Pictures that are floats at once.
    const CHUNK: usize = 64;
    let mut input = Vec::new();
    for chunk in picked.chunks(CHUNK) {
        input.extend(program.quantise_input(&set.batch(chunk.iter().copied(), preprocess)?));
    }
    let ids = picked.iter().map(|&at| set.id(at)).collect();
    let labels = picked.iter().map(|&at| set.label(at)).collect();
    Sample::new(program, ids, labels, input).with_context(|| from(set))
}
