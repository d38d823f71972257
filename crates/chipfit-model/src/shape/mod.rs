//! Shape inference: the type and shape of every value that can be known, and a clear unknown for the rest.
//!
//! [`infer`] walks every scope once, in an order in which each node comes after what it reads, and asks one
//! rule per operator. Beside types it follows *values* of small integer tensors (at most 1024 elements, single
//! elements may be unknown or a named dimension), so that the shape arithmetic of dynamic exports resolves once
//! the inputs are fixed. What a file declares fills in what was not inferred, and never contradicts it.
//!
//! Promises: no panic and no loop longer than the model on any input; weights are never read; an operator or
//! domain that is not understood gives unknown outputs; a `Known` dimension that was inferred is what the ONNX
//! definition says. Loop bodies and functions are walked a bounded number of times.
//!
//! Read `walk` first (scopes, functions, If/Loop/Scan), then `rules` (the table of operators), then
//! `value` and `propagate` (values).

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use crate::index::{Index, ScopeId};
use crate::tensor::DataType;

mod control;
mod declared;
mod layout;
mod propagate;
mod rules;
mod scale;
mod select;
mod value;
mod view;
mod walk;
mod window;

#[cfg(test)]
mod tests;

/// One dimension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dim {
    /// A fixed length.
    Known(usize),
    /// A named dynamic length; equal names are equal lengths.
    Named(String),
    /// Nothing is known.
    Unknown,
}

impl Dim {
    /// The length, where it is fixed.
    pub fn known(&self) -> Option<usize> {
        match self {
            Self::Known(n) => Some(*n),
            _ => None,
        }
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(n) => write!(f, "{n}"),
            Self::Named(name) => f.write_str(name),
            Self::Unknown => f.write_str("?"),
        }
    }
}

/// What is known of a value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TensorType {
    /// Element type.
    pub dtype: Option<DataType>,
    /// Shape; `None` where not even the rank is known.
    pub dims: Option<Vec<Dim>>,
}

impl TensorType {
    /// The whole shape, where every dimension is fixed.
    pub fn known_dims(&self) -> Option<Vec<usize>> {
        self.dims.as_ref()?.iter().map(Dim::known).collect()
    }
}

/// `float[1,3,H,?]`; `?` where nothing is known.
impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.dtype.map_or("?", DataType::name))?;
        match &self.dims {
            None => f.write_str("[..]"),
            Some(dims) => write!(f, "[{}]", joined(dims, ",")),
        }
    }
}

fn joined(dims: &[Dim], separator: &str) -> String {
    dims.iter().map(Dim::to_string).collect::<Vec<_>>().join(separator)
}

/// Why shapes could not be inferred.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ShapeError {
    /// `--input` names a value that is no input of the model.
    #[error("the model has no input '{0}'")]
    NoSuchInput(String),
    /// `--input` contradicts the file.
    #[error("input '{name}': the model declares {declared}, asked for {asked}")]
    Contradiction {
        /// The input.
        name: String,
        /// The declared shape.
        declared: String,
        /// The asked shape.
        asked: String,
    },
}

/// The types of a model's values, by scope.
#[derive(Clone, Debug, Default)]
pub struct Shapes {
    scopes: Vec<HashMap<String, TensorType>>,
}

impl Shapes {
    /// The type of `name`, a value that the very scope `home` makes; unknown where nothing was inferred.
    pub fn get(&self, home: ScopeId, name: &str) -> TensorType {
        self.scopes.get(home).and_then(|s| s.get(name)).cloned().unwrap_or_default()
    }

    /// The type of `name` as `scope` sees it, which may be made further out.
    pub fn resolve(&self, index: &Index<'_>, scope: ScopeId, name: &str) -> TensorType {
        index.lookup(scope, name).map(|(home, _)| self.get(home, name)).unwrap_or_default()
    }
}

/// Infers the types of all values. `inputs` overrides the shapes of the main graph's inputs.
///
/// An override may fix what the file leaves open, and binds named dimensions everywhere; it may not change a
/// rank or a fixed length. Once one does fix something, declared lengths of inner values are no longer believed
/// (they may stem from another input size): only their element type, rank and bound names are.
///
/// Values of a function's body are what all its calls agree on.
///
/// # Errors
/// [`ShapeError`]; an operator that is not understood is no error, its outputs stay unknown.
pub fn infer(index: &Index<'_>, inputs: &BTreeMap<String, Vec<usize>>) -> Result<Shapes, ShapeError> {
    let overrides = declared::Overrides::new(index, inputs)?;
    let scopes = walk::Walk::new(index, overrides).run();
    let owned = |types: HashMap<&str, TensorType>| types.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
    Ok(Shapes { scopes: scopes.into_iter().map(owned).collect() })
}

/// Multiply-accumulates of an Einsum of two operands or more: the product of all label lengths, once for each
/// operand beyond the first. `None` where a length is not known.
pub(crate) fn einsum_macs(equation: &str, operands: &[&TensorType]) -> Option<u64> {
    let dims: Vec<&[Dim]> = operands.iter().map(|t| t.dims.as_deref()).collect::<Option<_>>()?;
    let ranks: Vec<usize> = dims.iter().map(|d| d.len()).collect();
    let lengths = scale::Einsum::parse(equation, &ranks)?.lengths(&dims);
    let products = u64::try_from(operands.len().checked_sub(1)?).ok()?;
    lengths.values().try_fold(products, |n, d| n.checked_mul(u64::try_from(d.known()?).ok()?))
}
