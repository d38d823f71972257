//! Plans to compare with at the same penalty: uniform, first layers, whole layers by vulnerability.
//!
//! Each uses as much of the budget as whole channels allow, so that none loses for an unspent rest.

use chipfit_npu::{Program, StepId};

use super::units::Unit;

/// Whole layers in this order while they fit; then as many channels as fit of the first that does not, and so on.
pub(super) fn layers_in_order(program: &Program, order: &[StepId], budget: u64) -> Vec<Unit> {
    let mut left = budget;
    let mut chosen = Vec::new();
    for &step in order {
        let channels = (0..channels_of(program, step)).collect();
        push(program, step, channels, &mut left, &mut chosen);
    }
    chosen
}

/// The same share of the channels of every step, drawn by `seed`; the rest of the budget goes to single channels of the
/// steps that lost most to rounding.
pub(super) fn uniform(program: &Program, steps: &[StepId], budget: u64, seed: u64) -> Vec<Unit> {
    let all: u64 = steps.iter().map(|step| program.step_macs(&program.steps()[step.0])).sum();
    let share = (budget as f64 / all.max(1) as f64).min(1.0);
    let exact = |step: StepId| share * f64::from(channels_of(program, step)) + 1e-9;
    let mut counts: Vec<u32> = steps.iter().map(|&step| exact(step).floor() as u32).collect();
    let cost = |step: StepId, count: u32| Unit::new(program, step, (0..count).collect()).macs;
    let mut left = steps.iter().zip(&counts).fold(budget, |left, (&step, &n)| left.saturating_sub(cost(step, n)));
    let mut order: Vec<usize> = (0..steps.len()).collect();
    let lost = |at: usize| exact(steps[at]).fract();
    order.sort_by(|&a, &b| lost(b).total_cmp(&lost(a)).then(a.cmp(&b)));
    for at in order {
        let (step, count) = (steps[at], counts[at]);
        let more = cost(step, count + 1).saturating_sub(cost(step, count));
        if count < channels_of(program, step) && more <= left {
            left -= more;
            counts[at] += 1;
        }
    }
    let mut units = Vec::new();
    for (&step, &count) in steps.iter().zip(&counts) {
        let mut channels = shuffled(channels_of(program, step), seed ^ (step.0 as u64) << 32);
        channels.truncate(count as usize);
        if !channels.is_empty() {
            units.push(Unit::new(program, step, channels));
        }
    }
    units
}

/// Appends as many of `channels` as `left` pays for.
fn push(program: &Program, step: StepId, mut channels: Vec<u32>, left: &mut u64, chosen: &mut Vec<Unit>) {
    let one = Unit::new(program, step, vec![0]).macs;
    let fit = left.checked_div(one).unwrap_or(u64::MAX);
    channels.truncate(usize::try_from(fit).unwrap_or(usize::MAX));
    if !channels.is_empty() {
        let unit = Unit::new(program, step, channels);
        *left = left.saturating_sub(unit.macs);
        chosen.push(unit);
    }
}

fn channels_of(program: &Program, step: StepId) -> u32 {
    let channels = program.tensor(program.steps()[step.0].output).channels();
    u32::try_from(channels).unwrap_or(u32::MAX)
}

/// `0..count` in an order that follows from the seed.
pub(super) fn shuffled(count: u32, seed: u64) -> Vec<u32> {
    let mut stream = chipfit_npu::faults::generator::Key::new(SHUFFLE).with(seed).stream();
    let mut list: Vec<u32> = (0..count).collect();
    for at in (1..list.len()).rev() {
        list.swap(at, stream.below(at as u64 + 1) as usize);
    }
    list
}

/// Purpose of the shuffle's key; the fault model's purposes are below 16.
const SHUFFLE: u64 = 0x5052_4F54;
