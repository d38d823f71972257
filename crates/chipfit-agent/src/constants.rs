//! The constants of a program as bytes: what an update carries and what the weight hash covers.
//!
//! Both ends go through the steps in order and take of every linear step its int8 weights, then its int32 biases
//! (little-endian), whether they have a name or not. The weight hash is the SHA-256 of all these bytes.
//!
//! An update begins with one byte that says what follows: [`RAW`], all these bytes; or [`INCREMENT`], what the increment
//! coder made of them. Both are bytes from a peer: whatever they hold, the answer is deltas that fit the program, or an error.

use chipfit_npu::program::Linear;
use chipfit_npu::{Op, Program, TensorDelta};
use chipfit_wire::message::sha256;

/// All constants as they are.
pub(crate) const RAW: u8 = 0;

/// The linear steps in order.
pub(crate) fn linears(program: &Program) -> impl Iterator<Item = &Linear> {
    program.steps().iter().filter_map(|step| match &step.op {
        Op::Linear(linear) => Some(&**linear),
        _ => None,
    })
}

/// The constants of a program and their hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Constants {
    bytes: Vec<u8>,
    hash: [u8; 32],
}

impl Constants {
    /// Those of `program`.
    pub(crate) fn of(program: &Program) -> Self {
        let mut bytes = Vec::new();
        for linear in linears(program) {
            bytes.extend(linear.weights.iter().map(|weight| weight.cast_unsigned()));
            bytes.extend(linear.bias.iter().flat_map(|bias| bias.to_le_bytes()));
        }
        let hash = sha256(&bytes);
        Self { bytes, hash }
    }

    /// SHA-256 of all int8 weights and int32 biases.
    pub(crate) fn hash(&self) -> [u8; 32] {
        self.hash
    }

    /// How many bytes they are.
    pub(crate) fn length(&self) -> usize {
        self.bytes.len()
    }

    /// An update to these constants, whatever there was before.
    pub(crate) fn raw(&self) -> Vec<u8> {
        let mut update = Vec::with_capacity(1 + self.bytes.len());
        update.push(RAW);
        update.extend_from_slice(&self.bytes);
        update
    }
}

/// What an update changes in `program`.
///
/// # Errors
/// What is wrong with the update, in words.
pub(crate) fn changes(program: &Program, update: &[u8]) -> Result<Vec<TensorDelta>, String> {
    match update.split_first() {
        Some((&RAW, rest)) => changes_of_raw(program, rest),
        Some((&other, _)) => Err(format!("an update of kind {other}, which this version does not know")),
        None => Err("an update without its kind".to_owned()),
    }
}

fn changes_of_raw(program: &Program, mut rest: &[u8]) -> Result<Vec<TensorDelta>, String> {
    let short = || "an update shorter than the program's constants".to_owned();
    let mut deltas = Vec::new();
    for linear in linears(program) {
        let (weights, after) = rest.split_at_checked(linear.weights.len()).ok_or_else(short)?;
        let bias_bytes = linear.bias.len().checked_mul(4).ok_or_else(short)?;
        let (biases, after) = after.split_at_checked(bias_bytes).ok_or_else(short)?;
        rest = after;
        let weights = weights.iter().map(|&byte| i32::from(byte.cast_signed()));
        push(&mut deltas, &linear.weights_name, linear.weights.iter().map(|&old| i32::from(old)).zip(weights));
        let biases = biases.as_chunks().0.iter().map(|&bytes| i32::from_le_bytes(bytes));
        let pairs = linear.bias.iter().copied().zip(biases);
        match &linear.bias_name {
            Some(name) => push(&mut deltas, name, pairs),
            None if pairs.clone().any(|(old, new)| old != new) => {
                return Err(format!("a change of the biases beside '{}', which have no name", linear.weights_name));
            }
            None => {}
        }
    }
    if rest.is_empty() { Ok(deltas) } else { Err(format!("{} bytes after the program's constants", rest.len())) }
}

/// Adds the positions where old and new differ.
fn push(deltas: &mut Vec<TensorDelta>, name: &str, pairs: impl Iterator<Item = (i32, i32)>) {
    let changes: Vec<(u32, i32)> =
        (0u32..).zip(pairs).filter(|(_, (old, new))| old != new).map(|(at, (_, new))| (at, new)).collect();
    if !changes.is_empty() {
        deltas.push(TensorDelta { name: name.to_owned(), changes });
    }
}
