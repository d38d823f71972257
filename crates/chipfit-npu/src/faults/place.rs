//! Where a word lies in its layer: channel, pixel and product, for stories and vulnerability maps.

use super::{Site, population};
use crate::machine::Machine;
use crate::program::{Program, StepId};

/// Where a word of a site lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Output channel; for `act` the input's.
    pub channel: usize,
    /// Position in the map, row by row; `None` for a weight, which all positions share.
    pub pixel: Option<usize>,
    /// `mul` and `weight`: the product k. `acc`: the update. `None` elsewhere.
    pub part: Option<usize>,
}

/// Where a word lies; `None` when the step has no such site or no such word.
pub fn place(program: &Program, step: StepId, site: Site, word: u64, machine: &Machine) -> Option<Place> {
    let words = population(program, step, site, machine)?.words;
    if word >= words {
        return None;
    }
    let word = usize::try_from(word).ok()?;
    let node = program.steps().get(step.0)?;
    let products = program.step_products(node).max(1);
    let per_output = match site {
        Site::Mul => products,
        Site::Acc => machine.updates(products),
        Site::Weight => return Some(Place { channel: word / products, pixel: None, part: Some(word % products) }),
        Site::AccOut | Site::Out | Site::Act => 1,
    };
    let tensor = program.tensor(if site == Site::Act { *node.inputs.first()? } else { node.output });
    let (element, part) = (word / per_output, word % per_output);
    let channels = tensor.channels().max(1);
    Some(Place {
        channel: element % channels,
        pixel: Some(element / channels),
        part: matches!(site, Site::Mul | Site::Acc).then_some(part),
    })
}
