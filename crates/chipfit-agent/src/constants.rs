//! The constants of a program as bytes: what an update carries and what the weight hash covers.
//!
//! Both ends go through the steps in order and take of every linear step its int8 weights and its int32 biases, whether they
//! have a name or not: all weights first, then all biases, little-endian. The weight hash is the SHA-256 of these bytes.
//!
//! An update begins with one byte that says what follows: [`RAW`], all these bytes; or [`INCREMENT`], what
//! [`chipfit_wire::increment`] made of the change. Both are bytes from a peer: whatever they hold, the answer is deltas that
//! fit the program, or an error.

use std::collections::BTreeSet;
use std::iter::Peekable;

use chipfit_npu::program::Linear;
use chipfit_npu::{Op, Program, TensorDelta};
use chipfit_wire::increment::{self, Changes, IncrementError};
use chipfit_wire::message::sha256;

/// All constants as they are.
const RAW: u8 = 0;
/// An increment.
const INCREMENT: u8 = 1;

/// The linear steps in order.
fn linears(program: &Program) -> impl Iterator<Item = &Linear> {
    program.steps().iter().filter_map(|step| match &step.op {
        Op::Linear(linear) => Some(&**linear),
        _ => None,
    })
}

/// The constants of a program and their hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Constants {
    weights: Vec<i8>,
    biases: Vec<i32>,
    hash: [u8; 32],
}

impl Constants {
    /// Those of `program`.
    pub(crate) fn of(program: &Program) -> Self {
        let (mut weights, mut biases) = (Vec::new(), Vec::new());
        for linear in linears(program) {
            weights.extend_from_slice(&linear.weights);
            biases.extend_from_slice(&linear.bias);
        }
        let hash = sha256(&bytes(&weights, &biases));
        Self { weights, biases, hash }
    }

    /// SHA-256 of all int8 weights and int32 biases.
    pub(crate) fn hash(&self) -> [u8; 32] {
        self.hash
    }

    /// How many bytes they are.
    pub(crate) fn length(&self) -> usize {
        self.weights.len() + 4 * self.biases.len()
    }

    /// An update to these constants, whatever there was before.
    pub(crate) fn raw(&self) -> Vec<u8> {
        let mut update = vec![RAW];
        update.extend(bytes(&self.weights, &self.biases));
        update
    }

    /// An update from `old` to these constants; at most as long as [`Constants::raw`] and one byte more.
    ///
    /// # Errors
    /// [`IncrementError`] where `old` is another program's.
    pub(crate) fn increment_from(&self, old: &Self) -> Result<Vec<u8>, IncrementError> {
        let encoded = increment::encode(&old.weights, &self.weights, &old.biases, &self.biases)?;
        let mut update = vec![INCREMENT];
        update.extend(encoded);
        Ok(update)
    }
}

fn bytes(weights: &[i8], biases: &[i32]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(weights.len() + 4 * biases.len());
    bytes.extend(weights.iter().map(|weight| weight.cast_unsigned()));
    bytes.extend(biases.iter().flat_map(|bias| bias.to_le_bytes()));
    bytes
}

/// What an update changes in `program`, whose constants are `held`.
///
/// # Errors
/// What is wrong with the update, in words.
pub(crate) fn changes(program: &Program, held: &Constants, update: &[u8]) -> Result<Vec<TensorDelta>, String> {
    let changes = match update.split_first() {
        Some((&RAW, rest)) => changes_of_raw(held, rest)?,
        Some((&INCREMENT, rest)) => {
            increment::decode_changes(rest, &held.weights, &held.biases).map_err(|error| error.to_string())?
        }
        Some((&other, _)) => return Err(format!("an update of kind {other}, which this version does not know")),
        None => return Err("an update without its kind".to_owned()),
    };
    deltas(program, &changes)
}

fn changes_of_raw(held: &Constants, rest: &[u8]) -> Result<Changes, String> {
    if rest.len() != held.length() {
        return Err(format!("an update of {} bytes for constants of {}", rest.len(), held.length()));
    }
    let (weights, biases) = rest.split_at_checked(held.weights.len()).unwrap_or_default();
    let weights = weights.iter().map(|&byte| byte.cast_signed());
    let biases = biases.as_chunks().0.iter().map(|&bytes| i32::from_le_bytes(bytes));
    Ok(Changes { weights: differing(&held.weights, weights), biases: differing(&held.biases, biases) })
}

/// Positions and new values where old and new differ.
fn differing<T: Copy + PartialEq>(old: &[T], new: impl Iterator<Item = T>) -> Vec<(u32, T)> {
    (0u32..).zip(old.iter().zip(new)).filter(|(_, (old, new))| *old != new).map(|(at, (_, new))| (at, new)).collect()
}

/// Changes of the concatenation as changes of the program's tensors. Of a tensor that several steps read, the first one's
/// changes count; were the others' different, the weight hash would tell.
fn deltas(program: &Program, changes: &Changes) -> Result<Vec<TensorDelta>, String> {
    let mut deltas = Vec::new();
    let mut seen = BTreeSet::new();
    let (mut weights, mut biases) = (changes.weights.iter().peekable(), changes.biases.iter().peekable());
    let (mut weights_begin, mut biases_begin) = (0, 0);
    for linear in linears(program) {
        let changes = part(&mut weights, &mut weights_begin, linear.weights.len());
        if !changes.is_empty() && seen.insert(&linear.weights_name) {
            deltas.push(TensorDelta { name: linear.weights_name.clone(), changes });
        }
        let changes = part(&mut biases, &mut biases_begin, linear.bias.len());
        if changes.is_empty() {
            continue;
        }
        let Some(name) = &linear.bias_name else {
            return Err(format!(
                "it changes the biases beside '{}', which the model does not have",
                linear.weights_name
            ));
        };
        if seen.insert(name) {
            deltas.push(TensorDelta { name: name.clone(), changes });
        }
    }
    if weights.next().is_some() || biases.next().is_some() {
        return Err("it changes constants beyond the program's last".to_owned());
    }
    Ok(deltas)
}

/// The changes within the next `length` elements, counted from their beginning.
fn part<'a, T: Copy + Into<i32> + 'a>(
    changes: &mut Peekable<impl Iterator<Item = &'a (u32, T)>>,
    begin: &mut u64,
    length: usize,
) -> Vec<(u32, i32)> {
    let end = *begin + length as u64;
    let mut found = Vec::new();
    while let Some(&(at, value)) = changes.next_if(|(at, _)| u64::from(*at) < end) {
        // Positions rise, so that none lies before the beginning; one that did would become one that fits nothing.
        let within = u64::from(at).checked_sub(*begin).and_then(|within| u32::try_from(within).ok());
        found.push((within.unwrap_or(u32::MAX), value.into()));
    }
    *begin = end;
    found
}

#[cfg(test)]
mod tests {
    use chipfit_npu::testing::program;
    use chipfit_npu::{Processor, Simulator, SimulatorOptions};

    use super::*;

    /// Programs with linear steps, and a change of some of their constants.
    fn changed(seed: u64) -> Option<(Program, Vec<TensorDelta>)> {
        let program = program(seed);
        let mut deltas: Vec<TensorDelta> = Vec::new();
        for linear in linears(&program) {
            let old = *linear.weights.first()?;
            let changes = vec![(0, i32::from(old.wrapping_add(3)))];
            deltas.push(TensorDelta { name: linear.weights_name.clone(), changes });
            if let (Some(name), Some(&old)) = (&linear.bias_name, linear.bias.last()) {
                let at = u32::try_from(linear.bias.len() - 1).ok()?;
                deltas.push(TensorDelta { name: name.clone(), changes: vec![(at, old.wrapping_sub(70_000))] });
            }
        }
        (!deltas.is_empty()).then_some((program, deltas))
    }

    #[test]
    fn raw_updates_and_increments_lead_to_the_same_constants() {
        let mut tried = 0;
        for (program, deltas) in (0..60).filter_map(changed) {
            let mut sender = Simulator::new(program.clone(), SimulatorOptions::default()).expect("a simulator");
            let old = Constants::of(sender.program());
            sender.update(&deltas).expect("an update");
            let new = Constants::of(sender.program());
            assert_ne!(old.hash(), new.hash());
            for update in [new.raw(), new.increment_from(&old).expect("an increment")] {
                let mut receiver = Simulator::new(program.clone(), SimulatorOptions::default()).expect("a simulator");
                let deltas = changes(receiver.program(), &old, &update).expect("changes");
                receiver.update(&deltas).expect("an update");
                assert_eq!(Constants::of(receiver.program()), new);
            }
            tried += 1;
        }
        assert!(tried > 10, "{tried}");
    }

    #[test]
    fn damaged_updates_are_refused_or_fit() {
        let (program, deltas) = (0..60).find_map(changed).expect("a program");
        let mut sender = Simulator::new(program.clone(), SimulatorOptions::default()).expect("a simulator");
        let old = Constants::of(sender.program());
        sender.update(&deltas).expect("an update");
        let new = Constants::of(sender.program());
        assert!(changes(&program, &old, &[]).is_err());
        assert!(changes(&program, &old, &[9, 1, 2]).is_err());
        for update in [new.raw(), new.increment_from(&old).expect("an increment")] {
            assert!(changes(&program, &old, update.get(..update.len() - 1).expect("a part")).is_err());
            for at in 0..update.len().min(200) {
                let mut damaged = update.clone();
                damaged[at] ^= 0x55;
                if let Ok(deltas) = changes(&program, &old, &damaged) {
                    let mut receiver =
                        Simulator::new(program.clone(), SimulatorOptions::default()).expect("a simulator");
                    receiver.update(&deltas).expect("what is accepted fits the program");
                }
            }
        }
    }
}
