//! What is protected as a whole: groups of output channels of one step, with their MACs.
//!
//! Units cover every output channel of the steps considered exactly once. The cost of a unit is its MACs; a plan's
//! penalty is `2 * protected MACs / all MACs`. Steps without products have no MACs: protecting them is free by this
//! definition, so they are left out unless asked for.

use chipfit_npu::faults::{file::Layers, select_names};
use chipfit_npu::{Op, Program, Protection, StepId, Vote};
use serde::{Deserialize, Serialize};

use super::ProtectError;

/// Output channels of one step that are protected together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    /// Index of the step.
    pub step: usize,
    /// Output channels, ascending.
    pub channels: Vec<u32>,
    /// MACs of these channels for one picture.
    pub macs: u64,
}

/// Which steps may be protected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Only these layers; all of them when `None`.
    pub layers: Option<Layers>,
    /// Steps without products, too: sums, pools, tables. They cost nothing by the definition of the penalty.
    pub free_steps: bool,
}

impl Scope {
    /// The steps that may be protected, ascending.
    ///
    /// # Errors
    /// [`ProtectError::Layers`] for a layer that does not exist, [`ProtectError::NoUnits`] when nothing is left.
    pub fn steps(&self, program: &Program) -> Result<Vec<StepId>, ProtectError> {
        let steps = program.steps();
        let considered = match &self.layers {
            None => (0..steps.len()).collect(),
            Some(layers) => {
                let names: Vec<&str> = steps.iter().map(|step| step.name.as_str()).collect();
                select_names(&names, layers).map_err(ProtectError::Layers)?
            }
        };
        let is_open = |&position: &usize| {
            let step = &steps[position];
            let is_free = self.free_steps && !matches!(step.op, Op::Constant(_));
            program.tensor(step.output).channels() > 0 && (is_free || program.step_macs(step) > 0)
        };
        let open: Vec<StepId> = considered.iter().copied().filter(is_open).map(StepId).collect();
        if open.iter().all(|id| program.step_macs(&steps[id.0]) == 0) {
            return Err(ProtectError::NoUnits { considered: considered.len() });
        }
        Ok(open)
    }
}

impl Unit {
    /// `channels` of a step as one unit.
    pub(super) fn new(program: &Program, step: StepId, mut channels: Vec<u32>) -> Self {
        channels.sort_unstable();
        let node = &program.steps()[step.0];
        let all = program.tensor(node.output).channels().max(1) as u128;
        // Every output channel has the same MACs; a remainder (there is none today) would count as a whole MAC.
        let macs = (u128::from(program.step_macs(node)) * channels.len() as u128).div_ceil(all);
        Self { step: step.0, channels, macs: u64::try_from(macs).unwrap_or(u64::MAX) }
    }
}

/// Whole layers.
pub(super) fn layers(program: &Program, steps: &[StepId]) -> Vec<Unit> {
    steps.iter().map(|&step| Unit::new(program, step, all_channels(program, step))).collect()
}

/// Groups of `size` channels of each step, cut from its channels in the order that `order` gives them.
pub(super) fn groups(
    program: &Program,
    steps: &[StepId],
    size: usize,
    order: impl Fn(StepId) -> Option<Vec<u32>>,
) -> Vec<Unit> {
    let of_step = |&step: &StepId| {
        let channels = order(step).unwrap_or_else(|| all_channels(program, step));
        channels.chunks(size.max(1)).map(|chunk| Unit::new(program, step, chunk.to_vec())).collect::<Vec<_>>()
    };
    steps.iter().flat_map(of_step).collect()
}

/// The smallest group that cuts the steps into at most `most` units.
pub(super) fn group_for(program: &Program, steps: &[StepId], most: usize) -> usize {
    let channels = |step: &StepId| program.tensor(program.steps()[step.0].output).channels();
    let longest = steps.iter().map(channels).max().unwrap_or(1);
    let units = |size: usize| steps.iter().map(|step| channels(step).div_ceil(size)).sum::<usize>();
    (1..=longest).find(|&size| units(size) <= most).unwrap_or(longest).max(1)
}

fn all_channels(program: &Program, step: StepId) -> Vec<u32> {
    let channels = program.tensor(program.steps()[step.0].output).channels();
    (0..u32::try_from(channels).unwrap_or(u32::MAX)).collect()
}

/// The protection of the chosen units.
pub(super) fn protection<'a>(program: &Program, vote: Vote, chosen: impl IntoIterator<Item = &'a Unit>) -> Protection {
    let mut protection = Protection::with_vote(vote);
    let mut flags: Vec<Vec<bool>> = vec![Vec::new(); program.steps().len()];
    for unit in chosen {
        let Some(flags) = flags.get_mut(unit.step) else { continue };
        flags.resize(program.tensor(program.steps()[unit.step].output).channels(), false);
        for &channel in &unit.channels {
            if let Some(flag) = flags.get_mut(channel as usize) {
                *flag = true;
            }
        }
    }
    for (step, flags) in flags.into_iter().enumerate().filter(|(_, flags)| !flags.is_empty()) {
        protection.protect(StepId(step), flags);
    }
    protection
}

/// Most MACs that a penalty of `penalty` (0 to 2) lets one protect.
///
/// # Errors
/// [`ProtectError::Penalty`] outside that range.
pub(super) fn budget(program: &Program, penalty: f64) -> Result<u64, ProtectError> {
    if !(0.0..=2.0).contains(&penalty) {
        return Err(ProtectError::Penalty { percent: 100.0 * penalty });
    }
    let all = program.macs();
    // A hair above the product, so that 0.5 of 12 MACs is 3 whatever the rounding; never more than all.
    Ok(((all as f64 * penalty / 2.0 * (1.0 + 1e-12)).floor() as u64).min(all))
}
