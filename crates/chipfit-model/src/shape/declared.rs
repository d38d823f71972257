//! What a file and the user say about types: value infos, tensors, and the overrides of inputs.

use std::collections::{BTreeMap, HashMap};

use super::{Dim, ShapeError, TensorType, joined};
use crate::index::{Index, Scope};
use crate::proto::{
    __buffa::oneof::{tensor_shape_proto::dimension::Value as DimValue, type_proto::Value as TypeValue},
    TypeProto,
};
use crate::tensor::DataType;

/// Largest rank that is followed; beyond it a shape is unknown.
pub(super) const MAX_RANK: usize = 32;
/// Longest dimension name that is followed.
const MAX_NAME: usize = 256;

/// The type that a `TypeProto` declares; unknown for anything but a dense tensor.
pub(super) fn declared_type(proto: &TypeProto) -> TensorType {
    let Some(TypeValue::TensorType(tensor)) = &proto.value else { return TensorType::default() };
    let dims = tensor.shape.as_option().filter(|s| s.dim.len() <= MAX_RANK).map(|shape| {
        let dim = |value: &Option<DimValue>| match value {
            Some(DimValue::DimValue(n)) => usize::try_from(*n).map_or(Dim::Unknown, Dim::Known),
            Some(DimValue::DimParam(name)) if is_name(name) => Dim::Named(name.clone()),
            _ => Dim::Unknown,
        };
        shape.dim.iter().map(|d| dim(&d.value)).collect()
    });
    TensorType { dtype: tensor.elem_type.and_then(DataType::from_code), dims }
}

/// Exporters write these for "any length", more than once in a shape, so they name nothing.
fn is_name(name: &str) -> bool {
    name.len() <= MAX_NAME
        && name.chars().any(char::is_alphabetic)
        && !["none", "unk", "unknown", "dynamic", "any"].contains(&name.to_ascii_lowercase().as_str())
}

/// The type of a tensor of the file.
pub(super) fn tensor_type(data_type: Option<i32>, dims: &[i64]) -> TensorType {
    let known = |&d: &i64| usize::try_from(d).map_or(Dim::Unknown, Dim::Known);
    let dims = (dims.len() <= MAX_RANK).then(|| dims.iter().map(known).collect());
    TensorType { dtype: data_type.and_then(DataType::from_code), dims }
}

/// What a scope declares, by name. A value declared twice gets what both say.
pub(super) fn declarations<'m>(scope: &Scope<'m>) -> HashMap<&'m str, TensorType> {
    let mut all: HashMap<&'m str, TensorType> = HashMap::new();
    for info in &scope.value_infos {
        let (Some(name), Some(proto)) = (info.name.as_deref(), info.r#type.as_option()) else { continue };
        let declared = declared_type(proto);
        match all.get_mut(name) {
            Some(known) => fill(known, &declared, Dim::clone),
            None => {
                all.insert(name, declared);
            }
        }
    }
    all
}

/// Fills what `known` leaves open from `declared`, whose dimensions are seen through `view`.
fn fill(known: &mut TensorType, declared: &TensorType, view: impl Fn(&Dim) -> Dim) {
    known.dtype = known.dtype.or(declared.dtype);
    match (&mut known.dims, &declared.dims) {
        (dims @ None, Some(declared)) => *dims = Some(declared.iter().map(view).collect()),
        (Some(dims), Some(declared)) if dims.len() == declared.len() => {
            for (dim, declared) in dims.iter_mut().zip(declared).filter(|(dim, _)| **dim == Dim::Unknown) {
                *dim = view(declared);
            }
        }
        _ => {}
    }
}

/// The shapes that the user fixed, and what follows from them.
#[derive(Debug, Default)]
pub(super) struct Overrides {
    shapes: BTreeMap<String, Vec<usize>>,
    names: HashMap<String, usize>,
    active: bool,
}

impl Overrides {
    /// Checks `inputs` against what the main graph declares.
    pub(super) fn new(index: &Index<'_>, inputs: &BTreeMap<String, Vec<usize>>) -> Result<Self, ShapeError> {
        let mut overrides = Self { shapes: inputs.clone(), ..Self::default() };
        let Some(main) = index.scopes.first().filter(|_| !inputs.is_empty()) else {
            return match inputs.keys().next() {
                Some(name) => Err(ShapeError::NoSuchInput(name.clone())),
                None => Ok(overrides),
            };
        };
        let declared = declarations(main);
        let mut ambiguous = Vec::new();
        for (name, asked) in inputs {
            if !main.inputs.contains(&name.as_str()) {
                return Err(ShapeError::NoSuchInput(name.clone()));
            }
            let Some(dims) = declared.get(name.as_str()).and_then(|t| t.dims.as_ref()) else {
                overrides.active = true;
                continue;
            };
            let fits = |(d, &n): (&Dim, &usize)| d.known().is_none_or(|d| d == n);
            if dims.len() != asked.len() || !dims.iter().zip(asked).all(fits) {
                return Err(ShapeError::Contradiction {
                    name: name.clone(),
                    declared: joined(dims, "x"),
                    asked: asked.iter().map(usize::to_string).collect::<Vec<_>>().join("x"),
                });
            }
            for (dim, &n) in dims.iter().zip(asked) {
                overrides.active |= dim.known().is_none();
                let Dim::Named(dim) = dim else { continue };
                if overrides.names.insert(dim.clone(), n).is_some_and(|old| old != n) {
                    ambiguous.push(dim.clone());
                }
            }
        }
        // One name, two lengths: the file does not mean what it says, so the name binds nothing.
        for name in ambiguous {
            overrides.names.remove(&name);
        }
        Ok(overrides)
    }

    /// The asked shape of an input of the main graph.
    pub(super) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.shapes.get(name).map(Vec::as_slice)
    }

    fn bind(&self, dim: &Dim) -> Dim {
        match dim {
            Dim::Named(name) => self.names.get(name).map_or_else(|| dim.clone(), |&n| Dim::Known(n)),
            _ => dim.clone(),
        }
    }

    /// The declared type of an input, with bound names replaced.
    pub(super) fn input_type(&self, declared: &TensorType) -> TensorType {
        let dims = declared.dims.as_ref().map(|dims| dims.iter().map(|d| self.bind(d)).collect());
        TensorType { dtype: declared.dtype, dims }
    }

    /// Fills what was not inferred from what the file declares.
    pub(super) fn complete(&self, inferred: &mut TensorType, declared: &TensorType) {
        fill(inferred, declared, |dim| match (self.bind(dim), dim) {
            // A length that the file fixed for another input size.
            (Dim::Known(_), Dim::Known(_)) if self.active => Dim::Unknown,
            (dim, _) => dim,
        });
    }
}
