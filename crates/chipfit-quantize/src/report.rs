//! What a quantisation did, for people and for tables.

use chipfit_model::DataType;

use crate::fold::Folded;
use crate::scale::Range;

/// A quantised tensor that is no constant.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorReport {
    /// Its name in the float model (after folding).
    pub name: String,
    /// The integer tensor's name in the quantised model.
    pub integer: String,
    /// The tensor whose range and scale it has; itself where they are its own.
    pub source: String,
    /// What keeps its meaning.
    pub range: Range,
    /// The least and greatest value that calibration saw of `source`.
    pub seen: Range,
    /// The share of values of `source` that calibration saw outside `range`.
    pub saturated: f64,
    /// The step.
    pub scale: f32,
    /// The integer of 0.
    pub zero_point: i32,
    /// uint8 or int8.
    pub dtype: DataType,
}

/// A quantised weight.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightReport {
    /// The node that reads it.
    pub node: String,
    /// Its name in the float model.
    pub name: String,
    /// The integer tensor's name in the quantised model.
    pub integer: String,
    /// How many scales it has.
    pub scales: usize,
    /// The least and greatest of them.
    pub scale_range: (f32, f32),
    /// Scales that were raised so that the bias fits its 32 bits.
    pub widened: usize,
    /// Signal to quantisation noise, `10 log10(sum w^2 / sum (w - w')^2)`; infinite where nothing was lost.
    pub sqnr_db: f64,
}

/// A node that computes in float.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FloatNode {
    /// Its name.
    pub node: String,
    /// Its operator.
    pub operator: String,
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// The quantised tensors, in the order of the graph.
    pub tensors: Vec<TensorReport>,
    /// The weights, in the order of the graph.
    pub weights: Vec<WeightReport>,
    /// Nodes on float tensors that stay in float.
    pub float_nodes: Vec<FloatNode>,
    /// Relu and Clip nodes that the range of their result does the work of.
    pub removed_activations: usize,
    /// What was folded before.
    pub folded: Folded,
    /// What a user should know, one sentence each.
    pub warnings: Vec<String>,
}

/// `10 log10(signal / noise)` of two equally long lists; infinite where they are equal, NaN where there is no signal
/// but noise.
pub fn sqnr_db(exact: &[f32], approximate: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let signal: f64 = exact.iter().map(|&x| square(f64::from(x))).sum();
    let noise: f64 = exact.iter().zip(approximate).map(|(&x, &y)| square(f64::from(x) - f64::from(y))).sum();
    if noise == 0.0 { f64::INFINITY } else { 10.0 * (signal / noise).log10() }
}
