//! A plain evaluator of small pieces of a model: the operators that a rewrite may emit, at every operator set.
//!
//! Promises: what it computes depends on the model's bytes, the inputs and the [`Mode`] only, not on the number of
//! threads; an operator or attribute that it does not know is an error naming the node, never a guess; sizes
//! that a file asks for are bounded before anything is reserved.
//!
//! Constants are folded first (weights behind DequantizeLinear, for example), then converted as the mode asks,
//! then the nodes run in order. Read [`Mode`] first, then `segment`, `ops` (dispatch), and `quant`.

mod arith;
mod conv;
mod layout;
mod ops;
mod quant;
mod segment;
pub mod tensor;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use chipfit_model::{Index, TensorError};

use crate::reference::SameRule;
use segment::Key;
pub use segment::{Segment, Step};
use tensor::{Data, Shadow, Tensor};

/// What is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// As a runtime does: float16, bfloat16 and float add up in f32 and round once per operator, double in f64.
    Storage,
    /// In f64, where the shadow of a value is the error that a runtime's result may have (a ConvTranspose starts it
    /// with `2*gamma(K+1)*(sum |x||w| + |bias|)`).
    Reference,
    /// Index algebra alone: every float constant becomes a small integer that depends on its value only (zero stays
    /// zero), sums are exact modulo 2^32, activations and (de)quantisation do nothing.
    SmallIntegers {
        /// Chooses the map.
        seed: u64,
        /// The largest magnitude.
        range: i32,
    },
    /// Quantised: DequantizeLinear gives `q - zero_point`, convolutions their int32 accumulators, activations and
    /// QuantizeLinear do nothing.
    Accumulators,
    /// Quantised, to the end: `saturate(round_half_even(fl(acc) * fl(fl(x_scale*w_scale[c]) / y_scale)) + zero_point)`,
    /// activations between on the real value `fl(fl(acc) * fl(x_scale*w_scale[c]))`.
    Requantise,
}

/// Why a segment could not be evaluated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// A name that nothing makes.
    #[error("the model has no value '{0}'")]
    NoSuchValue(String),
    /// A value that only a whole run could give.
    #[error("'{name}' is read between the segment's ends but is neither its input nor constant")]
    NotConstant {
        /// The value.
        name: String,
    },
    /// Nodes that wait for each other.
    #[error("node '{node}' is part of a cycle")]
    Cycle {
        /// One of them.
        node: String,
    },
    /// An operator outside the list.
    #[error("node '{node}': the proof cannot evaluate operator '{op}'")]
    UnknownOperator {
        /// The node.
        node: String,
        /// Domain and operator.
        op: String,
    },
    /// A node that contradicts its operator, or needs what the interpreter does not have.
    #[error("node '{node}' ({op}): {why}")]
    Node {
        /// The node.
        node: String,
        /// The operator.
        op: String,
        /// What is wrong.
        why: String,
    },
    /// A constant that could not be read.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// A constant of an element type that the interpreter does not compute with.
    #[error("constant '{name}': the proof does not compute with element type {dtype}")]
    ElementType {
        /// The constant.
        name: String,
        /// Its type.
        dtype: &'static str,
    },
    /// As many inputs must be given as the segment has.
    #[error("the segment has {want} inputs, {have} were given")]
    Inputs {
        /// Given.
        have: usize,
        /// Wanted.
        want: usize,
    },
}

/// What is wrong with a node; the caller adds which node.
#[derive(Debug)]
struct Fault(String);

impl From<&str> for Fault {
    fn from(why: &str) -> Self {
        Self(why.to_owned())
    }
}

/// Evaluates `segment` on `inputs` (in the order given to [`Segment::collect`], in the mode's representation).
///
/// # Errors
/// [`EvalError`].
pub fn evaluate(
    index: &Index<'_>,
    segment: &Segment<'_>,
    inputs: &[Tensor],
    mode: Mode,
    same: SameRule,
) -> Result<Tensor, EvalError> {
    if inputs.len() != segment.inputs.len() {
        return Err(EvalError::Inputs { have: inputs.len(), want: segment.inputs.len() });
    }
    // Constants keep their meaning until a node that computes reads them.
    let fold = match mode {
        Mode::Reference | Mode::SmallIntegers { .. } => Mode::Storage,
        other => other,
    };
    let mut constants: HashMap<Key<'_>, Arc<Tensor>> = HashMap::new();
    for &(scope, name) in &segment.constants {
        let data =
            index.constant_tensor(scope, name)?.ok_or_else(|| EvalError::NotConstant { name: name.to_owned() })?;
        let tensor = Tensor::from_const(&data)
            .ok_or_else(|| EvalError::ElementType { name: name.to_owned(), dtype: data.dtype().name() })?;
        constants.insert((scope, name), Arc::new(tensor));
    }
    let mut values: HashMap<Key<'_>, Arc<Tensor>> = HashMap::new();
    for (&key, tensor) in segment.inputs.iter().zip(inputs) {
        values.insert(key, Arc::new(tensor.clone()));
    }
    for step in &segment.steps {
        let mut operands = Vec::with_capacity(step.reads.len());
        for read in &step.reads {
            let Some(key) = read else {
                operands.push(None);
                continue;
            };
            let found =
                if step.constant { constants.get(key).cloned() } else { fetch(*key, &mut values, &constants, mode) };
            operands.push(Some(found.ok_or_else(|| EvalError::NoSuchValue(key.1.to_owned()))?));
        }
        let mode = if step.constant { fold } else { mode };
        let op = ops::Op { node: step.node, opset: step.opset, operands: &operands, mode, same };
        let results = op.run().map_err(|refusal| refusal.at(step))?;
        let home = if step.constant { &mut constants } else { &mut values };
        for (name, tensor) in step.node.output.iter().zip(results) {
            home.insert((step.scope, name), Arc::new(tensor));
        }
    }
    let result = fetch(segment.output, &mut values, &constants, mode);
    result.map(Arc::unwrap_or_clone).ok_or_else(|| EvalError::NoSuchValue(segment.output.1.to_owned()))
}

/// A value as `mode` computes with it.
fn fetch<'m>(
    key: Key<'m>,
    values: &mut HashMap<Key<'m>, Arc<Tensor>>,
    constants: &HashMap<Key<'m>, Arc<Tensor>>,
    mode: Mode,
) -> Option<Arc<Tensor>> {
    if let Some(value) = values.get(&key) {
        return Some(value.clone());
    }
    let constant = constants.get(&key)?;
    let is_float = matches!(constant.data, Data::F32(_) | Data::F64(_));
    let converted = match mode {
        Mode::Reference if is_float => {
            Arc::new(Tensor { data: Data::F64(constant.data.to_f64()), ..constant.as_ref().clone() })
        }
        Mode::SmallIntegers { seed, range } if is_float => {
            let data = Data::I32(constant.data.to_f64().into_iter().map(|v| small_integer(v, seed, range)).collect());
            Arc::new(Tensor { data, shadow: Shadow::None, ..constant.as_ref().clone() })
        }
        // Zero is zero on any scale.
        Mode::Accumulators | Mode::Requantise if is_float && constant.data.to_f64().iter().all(|&v| v == 0.0) => {
            Arc::new(Tensor { data: Data::I32(vec![0; constant.data.len()]), ..constant.as_ref().clone() })
        }
        _ => constant.clone(),
    };
    values.insert(key, converted.clone());
    Some(converted)
}

/// An integer of `-range..=range` that depends on the value and the seed only; zero for zero alone.
pub fn small_integer(value: f64, seed: u64, range: i32) -> i32 {
    if value == 0.0 {
        return 0;
    }
    let hash = mix(value.to_bits() ^ mix(seed));
    let range = u64::from(range.max(1).unsigned_abs());
    let magnitude = i32::try_from(hash / 2 % range + 1).unwrap_or(1);
    if hash.is_multiple_of(2) { magnitude } else { -magnitude }
}

/// The output function of splitmix64: a fixed bijection that scatters neighbouring numbers.
pub(crate) fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
