//! What a fault model amounts to: definitions of its rates in words, and exact expected numbers of faults.

use std::fmt::Write as _;

use super::file::{Entry, Lifetime, Mode, Preset};
use super::model::{Amount, Cell, Faults, Pick};
use super::resolve::MOST_PER_STEP;
use super::{FaultsError, Site};
use crate::program::{Program, StepId};
use crate::protection::{Protection, Vote};

/// Expected faults per inference, exact from the definitions; a fault is one struck unit (a flipped bit, a word set).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Expected {
    /// By step and site, ascending; sites without faults are left out.
    pub cells: Vec<ExpectedFaults>,
}

/// Expected faults of one step and site.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExpectedFaults {
    /// The step.
    pub step: StepId,
    /// The site.
    pub site: Site,
    /// Mean number per inference, all replicas together.
    pub faults: f64,
}

impl Expected {
    /// All steps and sites.
    pub fn total(&self) -> f64 {
        // An empty sum of floats is -0.
        self.cells.iter().map(|cell| cell.faults).sum::<f64>() + 0.0
    }

    /// All steps of one site.
    pub fn site(&self, site: Site) -> f64 {
        self.cells.iter().filter(|cell| cell.site == site).map(|cell| cell.faults).sum::<f64>() + 0.0
    }
}

impl Faults {
    /// Expected faults per inference under a protection: `ber` applies to each replica, so that a protected unit has
    /// three times the faults; the replicas share `weight` and `act`, and with the vote on accumulators `out`.
    pub fn expected(&self, program: &Program, protection: &Protection) -> Expected {
        let mut cells: Vec<ExpectedFaults> = Vec::new();
        for step in (0..program.steps().len().min(self.cells.len())).map(StepId) {
            for cell in &self.cells[step.0] {
                let faults = self.mean(cell) * replicas(cell, protection, step);
                match cells.last_mut() {
                    Some(last) if (last.step, last.site) == (step, cell.site) => last.faults += faults,
                    _ => cells.push(ExpectedFaults { step, site: cell.site, faults }),
                }
            }
        }
        Expected { cells }
    }

    /// Lines for reports: every entry's definition of its rate, and the expected faults per inference by site.
    pub fn describe(&self, program: &Program, protection: &Protection) -> Vec<String> {
        let mut lines = self.definitions.clone();
        let expected = self.expected(program, protection);
        let sites = Site::ALL.into_iter().filter(|&site| expected.cells.iter().any(|cell| cell.site == site));
        let parts: Vec<String> = sites.map(|site| format!("{site} {:.4e}", expected.site(site))).collect();
        lines.push(format!("expected faults per inference: {:.4e} ({})", expected.total(), parts.join(", ")));
        lines
    }

    /// Mean number of faults of one replica of a cell.
    fn mean(&self, cell: &Cell) -> f64 {
        let units = cell.exposed.units() as f64;
        match &cell.amount {
            Amount::Each { p, .. } => units * p,
            Amount::Every => units,
            Amount::Exactly(count) => *count as f64,
            Amount::Poisson { mean, .. } => *mean,
            Amount::Shared { group, .. } => {
                let group = &self.groups[*group];
                let share = match &group.pick {
                    Pick::Units(urn) => units / urn.units() as f64,
                    Pick::Cells(cells) => 1.0 / *cells as f64,
                };
                group.count as f64 * share
            }
        }
    }

    /// Refuses models that would fill the memory with strikes.
    pub(super) fn check_size(&self, program: &Program) -> Result<(), FaultsError> {
        for (step, cells) in program.steps().iter().zip(&self.cells) {
            let expected: f64 = cells.iter().map(|cell| self.mean(cell)).sum();
            if expected > MOST_PER_STEP {
                return Err(FaultsError::TooMany { what: format!("layer '{}'", step.name), expected });
            }
        }
        Ok(())
    }
}

/// How many replicas draw a cell's faults, on average over its words.
fn replicas(cell: &Cell, protection: &Protection, step: StepId) -> f64 {
    let is_shared = match cell.site {
        Site::Weight | Site::Act => true,
        Site::Out => protection.vote() == Vote::Accumulator,
        Site::Mul | Site::Acc | Site::AccOut => false,
    };
    if is_shared { 1.0 } else { 1.0 + 2.0 * cell.exposed.share(protection.channels(step)) }
}

/// One line that says what an entry draws.
pub(super) fn definition(number: usize, entry: &Entry) -> String {
    let mut line = format!("fault {number}: ");
    let _ = match entry.preset {
        Some(preset) => write!(line, "preset {}: {}", preset.name(), preset_words(entry, preset)),
        None => write!(line, "{}", own_words(entry)),
    };
    if let Some(layers) = &entry.layers {
        let names: Vec<String> = layers.0.iter().map(ToString::to_string).collect();
        let _ = write!(line, "; layers {}", names.join(", "));
    }
    if let Some(types) = &entry.op_types {
        let _ = write!(line, "; operators {}", types.join(", "));
    }
    for (what, list) in [("channels", &entry.channels), ("bits", &entry.bits)] {
        if let Some(list) = list {
            let numbers: Vec<String> = list.iter().map(ToString::to_string).collect();
            let _ = write!(line, "; {what} {}", numbers.join(" "));
        }
    }
    if let Some([row, column]) = entry.pe {
        let _ = write!(line, "; processing element [{row}, {column}]");
    }
    let _ = match entry.lifetime {
        Some(Lifetime::Load) => write!(line, "; the same until the next load"),
        Some(Lifetime::Campaign) => write!(line, "; the same for the whole run"),
        Some(Lifetime::Inference) | None => Ok(()),
    };
    if let Some(reuse) = entry.reuse {
        let _ = write!(line, "; seen by up to {reuse} consumers");
    }
    line
}

fn own_words(entry: &Entry) -> String {
    let sites: Vec<&str> = entry.sites.iter().flatten().map(|site| site.name()).collect();
    let kind = entry.kind.unwrap_or(super::file::Kind::Flip);
    let unit = if kind.is_word() { "word" } else { "bit" };
    let rate = match (entry.ber, entry.count, &entry.bit_profile) {
        (Some(p), ..) if entry.rounded == Some(true) => {
            format!("exactly round({p:e} x exposed {unit}s) in every layer and site")
        }
        (Some(p), ..) => format!("probability {p:e} per exposed {unit} and inference"),
        (_, Some(count), _) => format!("exactly {count} per inference over all exposed {unit}s"),
        (.., Some(profile)) => {
            let list: Vec<String> = profile.iter().map(|p| format!("{p:e}")).collect();
            format!("probability per inference of bit 0 upwards {}", list.join(" "))
        }
        _ => format!("every exposed {unit}, always"),
    };
    let mut words = format!("{} at {}, {rate}", kind.name(), sites.join(", "));
    if let Some(length) = entry.length {
        let _ = write!(words, "; {length} bits long");
    }
    if let Some(value) = entry.value {
        let _ = write!(words, "; value {value}");
    }
    words
}

fn preset_words(entry: &Entry, preset: Preset) -> String {
    let rate = entry.rate.unwrap_or(0.0);
    let ber = entry.ber.unwrap_or(0.0);
    let bits = entry.operand_bits.unwrap_or(8);
    match preset {
        Preset::Mrfi => {
            let what = if entry.mode == Some(Mode::BitFlip) { "a random bit" } else { "the sign bit" };
            format!("{what} of n neurons per layer, n ~ Poisson({rate:e} x neurons), with replacement")
        }
        Preset::Pytorchfi => {
            let [low, high] = entry.range.unwrap_or([-1.0, 1.0]);
            let what = match entry.mode {
                Some(Mode::BitFlip) => "flips a random bit".to_owned(),
                _ => format!("takes a random value of {low} to {high}"),
            };
            format!("one neuron of one layer per inference, every layer as likely, {what}")
        }
        Preset::Opfi => format!(
            "round(2 x {ber:e} x {bits} x MACs) products, round({ber:e} x {bits} x MACs) partial sums and \
             round({ber:e} x {bits} x outputs) outputs of every layer, one bit each"
        ),
        Preset::Fidelity => {
            let often = match (entry.ber, entry.count) {
                (Some(p), _) => format!("probability {p:e} per bit"),
                (None, count) => format!("exactly {} per inference", count.unwrap_or(0)),
            };
            format!("bits of buffers flip, {often}, seen by up to {} consumers", entry.reuse.unwrap_or(16))
        }
        Preset::Mibb => {
            format!("with probability {rate:e} per neuron, plus or minus 2^b steps, b uniform in 0 to 7, clipped")
        }
    }
}
