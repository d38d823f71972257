//! One node as the rules see it: its attributes, the types of its inputs, and their values where known.

use std::rc::Rc;

use super::value::{Element, Value};
use super::walk::Walk;
use super::{Dim, TensorType};
use crate::index::ScopeId;
use crate::proto::{AttributeProto, NodeProto};
use crate::tensor::DataType;

/// The dimensions of a shape.
pub(super) type Dims = Vec<Dim>;

/// A node in its place.
pub(super) struct View<'w, 'i, 'm> {
    pub(super) walk: &'w Walk<'i, 'm>,
    pub(super) scope: ScopeId,
    pub(super) node: &'m NodeProto,
    pub(super) opset: i64,
}

impl<'m> View<'_, '_, 'm> {
    /// The operator.
    pub(super) fn op(&self) -> &'m str {
        self.node.op_type.as_deref().unwrap_or_default()
    }

    /// The name of an input that is there.
    fn name(&self, input: usize) -> Option<&'m str> {
        self.node.input.get(input).map(String::as_str).filter(|n| !n.is_empty())
    }

    /// Whether the (optional) input is there.
    pub(super) fn has(&self, input: usize) -> bool {
        self.name(input).is_some()
    }

    /// The number of inputs, absent ones in the middle included.
    pub(super) fn inputs(&self) -> usize {
        self.node.input.len()
    }

    /// The type of an input; unknown where it is absent.
    pub(super) fn input(&self, input: usize) -> TensorType {
        self.name(input).and_then(|n| self.walk.type_of(self.scope, n)).cloned().unwrap_or_default()
    }

    /// The element type of an input.
    pub(super) fn dtype(&self, input: usize) -> Option<DataType> {
        self.walk.type_of(self.scope, self.name(input)?)?.dtype
    }

    /// The shape of an input.
    pub(super) fn dims(&self, input: usize) -> Option<&[Dim]> {
        self.walk.type_of(self.scope, self.name(input)?)?.dims.as_deref()
    }

    /// The value of an input, as far as it is known.
    pub(super) fn value(&self, input: usize) -> Option<Rc<Value>> {
        self.walk.value_of(self.scope, self.name(input)?)
    }

    /// The value of an input; all elements unknown where only its (small) shape is known.
    pub(super) fn value_or_unknown(&self, input: usize) -> Option<Rc<Value>> {
        self.value(input).or_else(|| Value::unknown(&self.input(input)).map(Rc::new))
    }

    /// The integers of an input, each where known.
    pub(super) fn input_ints(&self, input: usize) -> Option<Vec<Option<i64>>> {
        self.value(input)?.ints()
    }

    /// The elements of an integer vector input.
    pub(super) fn input_elements(&self, input: usize) -> Option<Vec<Element>> {
        let value = self.value_or_unknown(input)?;
        (value.dims().len() <= 1).then(|| value.elements().to_vec())
    }

    /// The only integer of an input.
    pub(super) fn input_int(&self, input: usize) -> Option<i64> {
        match self.input_ints(input)?.as_slice() {
            [n] => *n,
            _ => None,
        }
    }

    /// An attribute, references to the calling node's resolved.
    pub(super) fn attribute(&self, name: &str) -> Option<&'m AttributeProto> {
        self.walk.attribute(self.node, name)
    }

    /// An integer attribute.
    pub(super) fn int(&self, name: &str) -> Option<i64> {
        self.attribute(name)?.i
    }

    /// An integer attribute, or its default.
    pub(super) fn int_or(&self, name: &str, default: i64) -> i64 {
        self.int(name).unwrap_or(default)
    }

    /// A list of integers.
    pub(super) fn ints(&self, name: &str) -> Option<&'m [i64]> {
        self.attribute(name).map(|a| a.ints.as_slice())
    }

    /// A string attribute, or its default.
    pub(super) fn string_or(&self, name: &str, default: &'static str) -> &'m str {
        self.attribute(name).and_then(|a| std::str::from_utf8(a.s.as_ref()?).ok()).unwrap_or(default)
    }

    /// The element type that an attribute names.
    pub(super) fn dtype_attribute(&self, name: &str) -> Option<DataType> {
        DataType::from_code(i32::try_from(self.int(name)?).ok()?)
    }

    /// A list that older versions keep in an attribute and newer ones in an input. `Absent` means neither.
    pub(super) fn listed(&self, attribute: &str, input: usize) -> Listed {
        if let Some(ints) = self.ints(attribute) {
            return Listed::Known(ints.to_vec());
        }
        if !self.has(input) {
            return Listed::Absent;
        }
        match self.input_ints(input).and_then(|v| v.into_iter().collect()) {
            Some(ints) => Listed::Known(ints),
            None => Listed::Unknown,
        }
    }

    /// The length of a one-dimensional input.
    pub(super) fn vector_length(&self, input: usize) -> Option<usize> {
        match self.dims(input)? {
            [n] => n.known(),
            _ => None,
        }
    }
}

/// A list of integers that may not be there or not be known.
pub(super) enum Listed {
    /// Neither attribute nor input.
    Absent,
    /// An input that is computed at run time.
    Unknown,
    /// The list.
    Known(Vec<i64>),
}

/// A type of parts.
pub(super) fn tensor(dtype: Option<DataType>, dims: Option<Dims>) -> TensorType {
    TensorType { dtype, dims }
}

/// `n` unknown dimensions.
pub(super) fn unknown_dims(n: usize) -> Option<Dims> {
    (n <= super::declared::MAX_RANK).then(|| vec![Dim::Unknown; n])
}

/// The axis counted from the front; `None` where it is out of range.
pub(super) fn axis_of(axis: i64, rank: usize) -> Option<usize> {
    let rank_signed = i64::try_from(rank).ok()?;
    let axis = if axis < 0 { axis.checked_add(rank_signed)? } else { axis };
    usize::try_from(axis).ok().filter(|&a| a < rank)
}

/// A computed length; negative or overflowing ones are unknown.
pub(super) fn length(n: Option<i64>) -> Dim {
    n.and_then(|n| usize::try_from(n).ok()).map_or(Dim::Unknown, Dim::Known)
}

/// The length as a signed number.
pub(super) fn signed(dim: &Dim) -> Option<i64> {
    i64::try_from(dim.known()?).ok()
}

/// The product of dimensions; a lone open one among ones stays itself.
pub(super) fn product(dims: &[Dim]) -> Dim {
    let mut open = None;
    let mut known = Some(1usize);
    for dim in dims {
        match (dim.known(), &open) {
            (Some(n), _) => known = known.and_then(|k| k.checked_mul(n)),
            (None, None) => open = Some(dim),
            (None, Some(_)) => return Dim::Unknown,
        }
    }
    match (open, known) {
        (None, Some(n)) => length(i64::try_from(n).ok()),
        (Some(dim), Some(1)) => dim.clone(),
        _ => Dim::Unknown,
    }
}

/// What two statements about one length agree on or one of them adds.
pub(super) fn unify(a: &Dim, b: &Dim) -> Dim {
    match (a, b) {
        (Dim::Known(_), _) => a.clone(),
        (_, Dim::Known(_)) => b.clone(),
        (Dim::Unknown, _) => b.clone(),
        _ => a.clone(),
    }
}

/// What is true of a value that is either `a` or `b`.
pub(super) fn join(a: &TensorType, b: &TensorType) -> TensorType {
    let dims = match (&a.dims, &b.dims) {
        (Some(a), Some(b)) if a.len() == b.len() => {
            Some(a.iter().zip(b).map(|(a, b)| if a == b { a.clone() } else { Dim::Unknown }).collect())
        }
        _ => None,
    };
    TensorType { dtype: a.dtype.filter(|_| a.dtype == b.dtype), dims }
}

/// The shape that two shapes broadcast to; lengths that do not fit are unknown.
pub(super) fn broadcast(a: &[Dim], b: &[Dim]) -> Dims {
    let rank = a.len().max(b.len());
    let at = |dims: &[Dim], i: usize| {
        (i + dims.len()).checked_sub(rank).and_then(|i| dims.get(i).cloned()).unwrap_or(Dim::Known(1))
    };
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (Dim::Known(1), other) | (other, Dim::Known(1)) => other,
            (Dim::Known(x), Dim::Known(y)) => {
                if x == y {
                    Dim::Known(x)
                } else {
                    Dim::Unknown
                }
            }
            (Dim::Known(n), _) | (_, Dim::Known(n)) => Dim::Known(n),
            (x, y) if x == y => x,
            _ => Dim::Unknown,
        })
        .collect()
}
