//! The proof that a rewritten node computes what the original computed, on the bytes of both files.
//!
//! A [`Claim`] says: between these two values the written model computes what the original does. Both sides are
//! evaluated on the same inputs: the original's ConvTranspose by the scatter-add loop of [`crate::reference`], the
//! written side by [`crate::interp`]. Nothing here knows how the rewrite was made.
//!
//! The judge, per output element:
//! - floats: `|a - b| <= 2*gamma(K+1)*(sum |x||w| + |bias|)`, `gamma(K) = K*u/(1 - K*u)`, `K` the number of terms,
//!   `u` of the accumulation type, plus one rounding of the storage type;
//! - the index algebra: with small integers for inputs, weights and bias (each weight mapped by its value, zero to
//!   zero), both sides are equal;
//! - quantised: int32 accumulators are equal, and so are the requantised outputs.
//!
//! Read [`prove`], then the private `Judge`.

mod judge;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use chipfit_model::build::is_op;
use chipfit_model::{DataType, Dim, Index, Model, ScopeId, Shapes, TensorError};

use crate::interp::tensor::{Data, Shadow, Tensor};
use crate::interp::{EvalError, Mode, Segment, Step, evaluate};
use crate::reference::{Geometry, SameRule};
use judge::Judge;

/// One rewritten node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The scope; its number is the same in both models.
    pub scope: ScopeId,
    /// The value that the rewritten part starts from; quantised: before DequantizeLinear.
    pub input: String,
    /// The value that it ends in; quantised: behind QuantizeLinear.
    pub output: String,
    /// The output of the original ConvTranspose.
    pub conv_transpose: String,
    /// What reports call it.
    pub name: String,
    /// Whether equality is claimed; an approximate form is only measured.
    pub exact: bool,
}

/// How much to prove.
#[derive(Clone, Copy, Debug)]
pub struct ProveOptions {
    /// Random inputs per node; at least one is run.
    pub inputs: usize,
    /// Chooses them.
    pub seed: u64,
    /// Whether `auto_pad` before operator set 11 follows the text of operator set 1, not the runtimes.
    pub opset1_same_spec: bool,
    /// Above so many multiply-accumulates a batch that the file leaves open is run as 1.
    pub macs: u128,
}

impl Default for ProveOptions {
    fn default() -> Self {
        Self { inputs: 1, seed: 0, opset1_same_spec: false, macs: 1_500_000_000 }
    }
}

/// Two results that were to be equal.
#[derive(Clone, Debug, PartialEq)]
pub enum Equality {
    /// They are.
    Equal,
    /// They are not.
    Differs {
        /// Where first, one coordinate per axis; empty where not even type and shape agree.
        position: Vec<usize>,
        /// What was expected and what was found there.
        why: String,
    },
}

impl Equality {
    /// Whether they are equal.
    pub fn holds(&self) -> bool {
        *self == Self::Equal
    }
}

/// What was found on integers.
#[derive(Clone, Debug, PartialEq)]
pub struct IntegerProof {
    /// The int32 accumulators.
    pub accumulators: Equality,
    /// The requantised outputs; `None` where nothing is requantised.
    pub outputs: Option<Equality>,
}

/// What a node's proof came to.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Every check held.
    Proven,
    /// A check failed, or could not be made.
    Failed(String),
    /// The form claims no equality.
    NotJudged,
}

/// The proof of one node.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeProof {
    /// The claim's name.
    pub name: String,
    /// Random inputs that were run.
    pub inputs: usize,
    /// Dims of the input.
    pub input_dims: Vec<usize>,
    /// Dims of the original's output.
    pub output_dims: Vec<usize>,
    /// The largest difference (quantised outputs: in steps); infinite where the shapes differ.
    pub max_abs: f64,
    /// The same, divided by the largest `|y|` of the original.
    pub max_rel: f64,
    /// The largest difference divided by what was allowed there; `None` where no floats were judged.
    pub worst_ratio: Option<f64>,
    /// The run on small integers; for a quantised node, its accumulators.
    pub index_algebra: Option<Equality>,
    /// Quantised nodes only.
    pub integer: Option<IntegerProof>,
    /// The structural similarity of an approximate form's output, where it is an image of 11 x 11 or more; the least
    /// of all inputs.
    pub ssim: Option<f64>,
    /// The outcome.
    pub verdict: Verdict,
}

/// Why no proof could be attempted. What concerns one node is a [`Verdict::Failed`] instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProveError {
    /// The original's data could not be read.
    #[error("the original model's data: {0}")]
    Original(#[source] TensorError),
    /// The written model's data could not be read.
    #[error("the written model's data: {0}")]
    Written(#[source] TensorError),
}

/// Proves every claim.
///
/// - `original`, `written`: both decoded from their files' bytes.
/// - `shapes`: of the original. What they leave open is filled: batch 2, small odd spatial lengths.
/// - `progress`: called before each claim with its number.
///
/// # Errors
/// [`ProveError`]; a failed proof is no error but a [`Verdict::Failed`].
pub fn prove(
    original: &Model,
    written: &Model,
    shapes: &Shapes,
    claims: &[Claim],
    options: &ProveOptions,
    progress: &mut dyn FnMut(usize, &Claim),
) -> Result<Vec<NodeProof>, ProveError> {
    let (before, after) = (Index::new(original), Index::new(written));
    let mut proofs = Vec::with_capacity(claims.len());
    for (number, claim) in claims.iter().enumerate() {
        progress(number, claim);
        let mut proof = NodeProof {
            name: claim.name.clone(),
            inputs: 0,
            input_dims: Vec::new(),
            output_dims: Vec::new(),
            max_abs: 0.0,
            max_rel: 0.0,
            worst_ratio: None,
            index_algebra: None,
            integer: None,
            ssim: None,
            verdict: Verdict::Proven,
        };
        let outcome = Prover::new(&before, &after, shapes, claim, options)
            .and_then(|prover| prover.run(crate::interp::mix(options.seed) ^ number as u64, &mut proof));
        match outcome {
            Ok(()) if claim.exact => {}
            Ok(()) => proof.verdict = Verdict::NotJudged,
            Err(Stop::Error(e)) => return Err(e),
            Err(Stop::Failed(why)) => proof.verdict = Verdict::Failed(why),
        }
        proofs.push(proof);
    }
    Ok(proofs)
}

/// Why a claim's proof ended early.
enum Stop {
    Failed(String),
    Error(ProveError),
}

fn in_original(e: EvalError) -> Stop {
    match e {
        EvalError::Tensor(e) => Stop::Error(ProveError::Original(e)),
        e => Stop::Failed(format!("original model: {e}")),
    }
}

fn in_written(e: EvalError) -> Stop {
    match e {
        EvalError::Tensor(e) => Stop::Error(ProveError::Written(e)),
        e => Stop::Failed(format!("written model: {e}")),
    }
}

/// One claim, looked up in both models.
struct Prover<'a> {
    before: &'a Index<'a>,
    after: &'a Index<'a>,
    original: Segment<'a>,
    written: Segment<'a>,
    claim: &'a Claim,
    options: &'a ProveOptions,
    same: SameRule,
    /// Dims of the input.
    dims: Vec<usize>,
    /// Its element type.
    dtype: DataType,
    /// Whether both input and weight come through DequantizeLinear.
    quantised: bool,
    geometry: Geometry,
}

impl<'a> Prover<'a> {
    fn new(
        before: &'a Index<'a>,
        after: &'a Index<'a>,
        shapes: &Shapes,
        claim: &'a Claim,
        options: &'a ProveOptions,
    ) -> Result<Self, Stop> {
        let same = if options.opset1_same_spec { SameRule::Spec } else { SameRule::Runtimes };
        let inputs = [claim.input.as_str()];
        let original = Segment::collect(before, claim.scope, &inputs, &claim.output).map_err(in_original)?;
        let written = Segment::collect(after, claim.scope, &inputs, &claim.output).map_err(in_written)?;
        let failed = |why: &str| Stop::Failed(why.to_owned());
        let mut transposed = original.steps.iter().filter(|s| is_op(s.node, "ConvTranspose"));
        let (Some(step), None) = (transposed.next(), transposed.next()) else {
            return Err(failed("the original does not have exactly one ConvTranspose between the two values"));
        };
        if step.node.output.first() != Some(&claim.conv_transpose) || step.scope != claim.scope {
            return Err(failed("the ConvTranspose between the two values is another one"));
        }
        if written.steps.iter().any(|s| is_op(s.node, "ConvTranspose")) {
            return Err(failed("the written model still has a ConvTranspose between the two values"));
        }
        let name = step.node.input.get(1).ok_or_else(|| failed("the ConvTranspose has no weight"))?;
        let weights = Segment::collect(before, step.scope, &[], name).map_err(in_original)?;
        let weight = evaluate(before, &weights, &[], Mode::Storage, same).map_err(in_original)?;
        let from_input = original.steps.iter().find(|s| !s.constant && is_op(s.node, "DequantizeLinear"));
        let quantised = match from_input {
            None => false,
            Some(_) => {
                let w = evaluate(before, &weights, &[], Mode::Accumulators, same).map_err(in_original)?;
                matches!(w.data, Data::I32(_)) && w.shadow != Shadow::None
            }
        };
        let declared = shapes.resolve(before, claim.scope, &claim.input);
        let dtype = match from_input {
            Some(step) => stored_type(before, step)?.or(declared.dtype).unwrap_or(DataType::Uint8),
            None => declared.dtype.filter(|t| t.is_float()).unwrap_or(weight.dtype),
        };
        let resolve = |x: &[usize]| {
            Geometry::resolve(step.node, step.opset, x, &weight.dims, same)
                .map_err(|e| Stop::Failed(format!("node '{}': {e}", step.label())))
        };
        let (dims, geometry) = choose_dims(declared.dims.as_deref(), &weight.dims, options.macs, resolve)?;
        Ok(Self { before, after, original, written, claim, options, same, dims, dtype, quantised, geometry })
    }

    fn before(&self, x: &Tensor, mode: Mode) -> Result<Tensor, Stop> {
        evaluate(self.before, &self.original, std::slice::from_ref(x), mode, self.same).map_err(in_original)
    }

    fn after(&self, x: &Tensor, mode: Mode) -> Result<Tensor, Stop> {
        evaluate(self.after, &self.written, std::slice::from_ref(x), mode, self.same).map_err(in_written)
    }

    /// Fills in `proof` as far as it gets.
    fn run(&self, key: u64, proof: &mut NodeProof) -> Result<(), Stop> {
        proof.input_dims.clone_from(&self.dims);
        let judge = Judge { exact: self.claim.exact };
        // An equality that fails ends the proof, but only after it was noted.
        let hold = |what: &str, equality: &Equality| match equality {
            Equality::Differs { why, .. } if self.claim.exact => Err(Stop::Failed(format!("{what}: {why}"))),
            _ => Ok(()),
        };
        if !self.quantised {
            let rounds = if self.geometry.macs() < 10_000_000 { 2 } else { 1 };
            for round in 0..rounds {
                let range = self.small_range()?;
                let mode = Mode::SmallIntegers { seed: key.wrapping_add(round), range };
                let x = judge::small_input(self.dtype, &self.dims, key.wrapping_add(round), range)
                    .ok_or_else(|| Stop::Failed(format!("an input of dims {:?} is too large", self.dims)))?;
                let equality = judge.equal(&self.before(&x, mode)?, &self.after(&x, mode)?);
                proof.index_algebra = Some(equality.clone());
                hold("index algebra (small integers)", &equality)?;
            }
        }
        for input in 0..self.options.inputs.max(1) as u64 {
            let x = judge::random_input(self.dtype, &self.dims, crate::interp::mix(key) ^ input)
                .ok_or_else(|| Stop::Failed(format!("no random input of type {}", self.dtype.name())))?;
            proof.inputs += 1;
            if self.quantised {
                let (a, b) = (self.before(&x, Mode::Accumulators)?, self.after(&x, Mode::Accumulators)?);
                let equality = judge.equal_sums(&a, &b, &self.geometry.terms());
                proof.index_algebra = Some(equality.clone());
                proof.integer = Some(IntegerProof { accumulators: equality.clone(), outputs: None });
                hold("int32 accumulators", &equality)?;
                let (a, b) = (self.before(&x, Mode::Requantise)?, self.after(&x, Mode::Requantise)?);
                proof.output_dims.clone_from(&a.dims);
                if !a.dtype.is_float() {
                    let equality = judge.equal(&a, &b);
                    judge.measure(&a, &b, proof);
                    if let Some(integer) = &mut proof.integer {
                        integer.outputs = Some(equality.clone());
                    }
                    hold("requantised outputs", &equality)?;
                    continue;
                }
            }
            let wide = Tensor {
                data: if self.dtype.is_float() { Data::F64(x.data.to_f64()) } else { x.data.clone() },
                ..x.clone()
            };
            let (a, b) = (self.before(&wide, Mode::Reference)?, self.after(&x, Mode::Storage)?);
            proof.output_dims.clone_from(&a.dims);
            judge.measure(&a, &b, proof);
            judge.within_bound(&a, &b, proof).map_err(Stop::Failed)?;
        }
        Ok(())
    }

    /// The largest `r` for which `K*r*r + r` stays below 2^24.
    fn small_range(&self) -> Result<i32, Stop> {
        let terms = self.geometry.most_terms();
        let fits = |r: u64| terms.checked_mul(r * r).and_then(|n| n.checked_add(r)).is_some_and(|n| n < 1 << 24);
        (1..=2047)
            .rev()
            .find(|&r| fits(r))
            .and_then(|r| i32::try_from(r).ok())
            .ok_or_else(|| Stop::Failed(format!("{terms} terms an output element are too many for sums below 2^24")))
    }
}

/// The element type that a DequantizeLinear reads, by its zero point.
fn stored_type(index: &Index<'_>, step: &Step<'_>) -> Result<Option<DataType>, Stop> {
    let Some(name) = step.node.input.get(2).filter(|n| !n.is_empty()) else { return Ok(None) };
    let zero_point = index.constant_tensor(step.scope, name).map_err(|e| Stop::Error(ProveError::Original(e)))?;
    Ok(zero_point.map(|t| t.dtype()))
}

/// The dims to run with: the known ones, and small lengths for the rest, long enough for an output.
fn choose_dims(
    declared: Option<&[Dim]>,
    weight: &[usize],
    most_macs: u128,
    resolve: impl Fn(&[usize]) -> Result<Geometry, Stop>,
) -> Result<(Vec<usize>, Geometry), Stop> {
    let declared = declared.filter(|d| d.len() == weight.len());
    let dim = |axis: usize| declared.and_then(|d| d.get(axis)).unwrap_or(&Dim::Unknown);
    let fill = |batch: usize, extra: usize| -> Vec<usize> {
        let mut named: HashMap<&str, usize> = HashMap::new();
        if let (Dim::Named(name), Some(&channels)) = (dim(1), weight.get(1).and(weight.first())) {
            named.insert(name, channels);
        }
        (0..weight.len())
            .map(|axis| {
                let default = match axis {
                    0 => batch,
                    1 => weight.first().copied().unwrap_or(1),
                    _ => 3 + 2 * axis + extra,
                };
                match dim(axis) {
                    Dim::Known(n) => *n,
                    Dim::Named(name) => *named.entry(name).or_insert(default),
                    Dim::Unknown => default,
                }
            })
            .collect()
    };
    let mut last = None;
    for extra in [0, 4, 16, 64, 256] {
        let mut dims = fill(2, extra);
        match resolve(&dims) {
            Ok(mut geometry) => {
                let single = fill(1, extra);
                if geometry.macs() > most_macs && single != dims {
                    (geometry, dims) = (resolve(&single)?, single);
                }
                return Ok((dims, geometry));
            }
            Err(e) => last = Some(e),
        }
    }
    Err(last.unwrap_or_else(|| Stop::Failed("no dims to run with".into())))
}
