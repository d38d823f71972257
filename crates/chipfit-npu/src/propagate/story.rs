//! What a strike does to its own word, for the story of a trial.

use crate::faults::{Site, Strike};
use crate::machine::Machine;
use crate::program::{Op, Program, Step, StepId};
use crate::simulator::execute::{LinearOutputs, MatMulOutputs};
use crate::simulator::kernel::StepKernel;
use crate::simulator::operands::{Operands, Products};
use crate::simulator::patch::Outputs;
use crate::simulator::struck::Words;

use super::{Golden, StruckWord, TrialScratch};

/// How the words of a step are numbered; `None` for a step without products.
pub(super) fn words(program: &Program, step: &Step, machine: &Machine) -> Option<Words> {
    let product_bits = match &step.op {
        Op::Linear(linear) => linear.product_bits(),
        Op::MatMul(_) => crate::faults::MATMUL_PRODUCT_BITS,
        _ => return None,
    };
    Some(Words { products: program.step_products(step), lanes: machine.lanes.get() as usize, product_bits })
}

/// The output that a strike's word belongs to; `None` for buffers, and for words that the step does not have.
pub(super) fn output_of(strike: &Strike, words: Option<Words>) -> Option<usize> {
    let output = match (strike.site, words) {
        (Site::Out, _) => strike.word,
        (Site::Mul, Some(words)) => strike.word / words.products.max(1) as u64,
        (Site::Acc, Some(words)) => strike.word / words.updates().max(1) as u64,
        (Site::AccOut, Some(_)) => strike.word,
        _ => return None,
    };
    usize::try_from(output).ok()
}

impl Golden {
    /// The first strike's word before and after, without the step's other strikes; the output's byte after the trial is
    /// filled in later.
    pub(super) fn tell(
        &self,
        id: StepId,
        step: &Step,
        strikes: &[Strike],
        scratch: &TrialScratch,
    ) -> Option<StruckWord> {
        let strike = *strikes.first()?;
        let program = self.shared.program();
        let plan = &self.shared.plan;
        let words = words(program, step, &plan.machine);
        let golden = &self.tensors[step.output.0];
        let told = |before: i32, after: i32, output: Option<usize>| StruckWord {
            step: id,
            strike,
            before,
            after,
            output: output.map(|at| (at, golden[at], golden[at])),
        };
        let stored = |tensor: &crate::program::Tensor, byte: u8| {
            let before = u32::from(tensor.to_word(byte));
            (before.cast_signed(), strike.change.apply(before, 8).cast_signed())
        };
        match strike.site {
            Site::Weight => {
                let Op::Linear(linear) = &step.op else { return None };
                let weight = *linear.weights.get(usize::try_from(strike.word).ok()?)?;
                Some(told(weight.into(), strike.change.apply_signed(weight.into(), 8), None))
            }
            Site::Act => {
                let input = *step.inputs.first()?;
                let byte = *scratch.tensors[input.0].get(usize::try_from(strike.word).ok()?)?;
                let (before, after) = stored(program.tensor(input), byte);
                Some(told(before, after, None))
            }
            _ => {
                let output = output_of(&strike, words).filter(|&at| at < golden.len())?;
                if strike.site == Site::Out {
                    let (before, after) = stored(program.tensor(step.output), golden[output]);
                    return Some(told(before, after, Some(output)));
                }
                let words = words?;
                let (before, bits) = match (&step.op, &plan.kernels[id.0]) {
                    (Op::Linear(linear), StepKernel::Linear(kernel)) => {
                        let operands = Operands {
                            linear,
                            map: kernel.map,
                            input: &scratch.tensors[step.inputs[0].0],
                            zero_point: program.tensor(step.inputs[0]).zero_point,
                            isa: plan.isa,
                        };
                        value(&LinearOutputs::new(linear, kernel, operands, &[]), &words, &strike, output)
                    }
                    (Op::MatMul(product), StepKernel::MatMul(finish)) => {
                        let sides = [step.inputs[0], step.inputs[1]].map(|id| scratch.tensors[id.0].as_slice());
                        value(&MatMulOutputs::new(program, step, product, finish, sides), &words, &strike, output)
                    }
                    _ => return None,
                };
                Some(told(before, strike.change.apply_signed(before, bits), Some(output)))
            }
        }
    }
}

/// The clean value of a struck product or accumulator, and its width.
fn value(outputs: &impl Outputs, words: &Words, strike: &Strike, output: usize) -> (i32, u32) {
    let products = outputs.products(output, &[]);
    let sum = |upto: usize| outputs.bias(output).wrapping_add(products.sum(0..upto));
    match strike.site {
        Site::Mul => (products.product((strike.word % words.products.max(1) as u64) as usize), words.product_bits),
        Site::Acc => (sum(words.upto((strike.word % words.updates().max(1) as u64) as usize)), 32),
        _ => (sum(words.products), 32),
    }
}
