//! How many words of which width each site of a step has, and who reads them.

use super::{MATMUL_PRODUCT_BITS, Site};
use crate::machine::Machine;
use crate::program::{ConvGeometry, Op, Program, StepId};

/// The words of one site of one step, per picture and replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Population {
    /// Number of words.
    pub words: u64,
    /// Width of a word.
    pub bits: u32,
}

/// The words of a site; `None` where the step has no such site (`mul`, `acc` and `acc_out` need products,
/// `weight` constant factors; a constant operand of its own is never computed and has no site at all).
pub fn population(program: &Program, step: StepId, site: Site, machine: &Machine) -> Option<Population> {
    let step = program.steps().get(step.0)?;
    if matches!(step.op, Op::Constant(_)) {
        return None;
    }
    let outputs = program.tensor(step.output).elements() as u64;
    let products = program.step_products(step);
    let product_bits = match &step.op {
        Op::Linear(linear) => Some(linear.product_bits()),
        Op::MatMul(_) => Some(MATMUL_PRODUCT_BITS),
        _ => None,
    };
    let (words, bits) = match site {
        Site::Mul => (outputs * products as u64, product_bits?),
        Site::Acc => (product_bits.map(|_| outputs * machine.updates(products) as u64)?, 32),
        Site::AccOut => (product_bits.map(|_| outputs)?, 32),
        Site::Out => (outputs, 8),
        Site::Weight => match &step.op {
            Op::Linear(linear) => ((linear.geometry.out_channels * products) as u64, 8),
            _ => return None,
        },
        Site::Act => (program.tensor(*step.inputs.first()?).elements() as u64, 8),
    };
    Some(Population { words, bits })
}

/// How many outputs read a word of `weight` or `act` of a step with products; `None` at other sites and steps.
///
/// Outputs whose window lies over the padding read the weight there, too: that product counts.
pub fn consumers(program: &Program, step: StepId, site: Site, word: u64) -> Option<u32> {
    let step = program.steps().get(step.0)?;
    let count = match (&step.op, site) {
        (Op::Linear(linear), Site::Weight) => linear.geometry.output().iter().product(),
        (Op::Linear(linear), Site::Act) => readers(&linear.geometry, word as usize),
        (Op::MatMul(product), Site::Act) => product.columns,
        _ => return None,
    };
    Some(u32::try_from(count).unwrap_or(u32::MAX))
}

/// Outputs whose window covers an input element: rows x columns x output channels of its group.
pub(super) fn readers(geometry: &ConvGeometry, element: usize) -> usize {
    let pixel = element / geometry.in_channels.max(1);
    let place = [pixel / geometry.input[1].max(1), pixel % geometry.input[1].max(1)];
    let outputs = geometry.output();
    let covering = |axis: usize| {
        let padded = place[axis] + geometry.pads[axis];
        (0..geometry.kernel[axis])
            .filter_map(|tap| padded.checked_sub(tap * geometry.dilation[axis]))
            .filter(|from| from % geometry.stride[axis] == 0 && from / geometry.stride[axis] < outputs[axis])
            .count()
    };
    covering(0) * covering(1) * (geometry.out_channels / geometry.groups.max(1))
}
