//! Values of small tensors: what shape arithmetic is made of.

use super::{Dim, TensorType};
use crate::tensor::{ConstTensor, DataType};

/// Most elements of a value that is followed.
pub(super) const MAX_ELEMENTS: usize = 1024;

/// One element.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Element {
    /// An integer, or a truth value as 0 and 1.
    Int(i64),
    /// A floating-point number.
    Float(f64),
    /// The length of a named dimension.
    Named(String),
    /// Not known.
    Unknown,
}

impl Element {
    /// The integer, where it is one.
    pub(super) fn int(&self) -> Option<i64> {
        match self {
            Self::Int(n) => Some(*n),
            _ => None,
        }
    }

    /// The number, where it is known.
    pub(super) fn float(&self) -> Option<f64> {
        match self {
            Self::Int(n) => Some(*n as f64),
            Self::Float(x) => Some(*x),
            _ => None,
        }
    }

    /// As a dimension; a negative one is unknown.
    pub(super) fn dim(&self) -> Dim {
        match self {
            Self::Int(n) => usize::try_from(*n).map_or(Dim::Unknown, Dim::Known),
            Self::Named(name) => Dim::Named(name.clone()),
            _ => Dim::Unknown,
        }
    }
}

impl From<&Dim> for Element {
    fn from(dim: &Dim) -> Self {
        match dim {
            Dim::Known(n) => i64::try_from(*n).map_or(Self::Unknown, Self::Int),
            Dim::Named(name) => Self::Named(name.clone()),
            Dim::Unknown => Self::Unknown,
        }
    }
}

/// A tensor of at most [`MAX_ELEMENTS`] elements in row-major order.
/// Invariant: `elements.len()` is the product of `dims`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Value {
    pub(super) dtype: DataType,
    dims: Vec<usize>,
    elements: Vec<Element>,
}

impl Value {
    /// `None` where the count does not fit or is too large.
    pub(super) fn new(dtype: DataType, dims: Vec<usize>, elements: Vec<Element>) -> Option<Self> {
        (small_count(&dims)? == elements.len()).then_some(Self { dtype, dims, elements })
    }

    /// An int64 vector.
    pub(super) fn vector(elements: Vec<Element>) -> Option<Self> {
        Self::new(DataType::Int64, vec![elements.len()], elements)
    }

    /// Element by element, from its multi-index.
    pub(super) fn build(
        dtype: DataType,
        dims: Vec<usize>,
        mut element: impl FnMut(&[usize]) -> Option<Element>,
    ) -> Option<Self> {
        let count = small_count(&dims)?;
        let mut at = vec![0; dims.len()];
        let mut elements = Vec::with_capacity(count);
        for _ in 0..count {
            elements.push(element(&at)?);
            for (i, &n) in at.iter_mut().zip(&dims).rev() {
                *i += 1;
                if *i < n {
                    break;
                }
                *i = 0;
            }
        }
        Self::new(dtype, dims, elements)
    }

    /// All elements unknown, for a value of which only type and (small) shape are known.
    pub(super) fn unknown(of: &TensorType) -> Option<Self> {
        Self::build(of.dtype?, of.known_dims()?, |_| Some(Element::Unknown))
    }

    /// The elements of a constant; `None` where it is too large or not of numbers.
    pub(super) fn of_constant(tensor: &ConstTensor) -> Option<Self> {
        small_count(tensor.dims())?;
        let elements = if tensor.dtype().is_float() {
            tensor.to_f64_vec()?.into_iter().map(Element::Float).collect()
        } else {
            tensor.to_i64_vec()?.into_iter().map(Element::Int).collect()
        };
        Self::new(tensor.dtype(), tensor.dims().to_vec(), elements)
    }

    pub(super) fn dims(&self) -> &[usize] {
        &self.dims
    }

    pub(super) fn elements(&self) -> &[Element] {
        &self.elements
    }

    /// Whether any element is known: others are not worth keeping.
    pub(super) fn says_something(&self) -> bool {
        self.elements.iter().any(|e| *e != Element::Unknown)
    }

    /// The element at a multi-index; axes beyond its rank are broadcast on the left, lengths 1 everywhere.
    pub(super) fn broadcast_at(&self, at: &[usize]) -> Option<&Element> {
        let skip = at.len().checked_sub(self.dims.len())?;
        let mut flat = 0usize;
        for (&i, &n) in at.iter().skip(skip).zip(&self.dims) {
            flat = flat.checked_mul(n)?.checked_add(if n == 1 { 0 } else { i })?;
        }
        self.elements.get(flat)
    }

    /// The same elements under another shape.
    pub(super) fn reshaped(&self, dims: Vec<usize>) -> Option<Self> {
        Self::new(self.dtype, dims, self.elements.clone())
    }

    /// Element by element, of a type.
    pub(super) fn map(&self, dtype: DataType, f: impl Fn(&Element) -> Element) -> Self {
        let elements = self.elements.iter().map(|e| rounded(f(e), dtype)).collect();
        Self { dtype, dims: self.dims.clone(), elements }
    }

    /// The integers of it; `None` where it is no vector or scalar of integers.
    pub(super) fn ints(&self) -> Option<Vec<Option<i64>>> {
        let integral = !self.dtype.is_float() && self.dims.len() <= 1;
        integral.then(|| self.elements.iter().map(Element::int).collect())
    }

    /// The numbers of it; `None` where one is unknown.
    pub(super) fn floats(&self) -> Option<Vec<f64>> {
        self.elements.iter().map(Element::float).collect()
    }
}

/// The number of elements of a shape, where it is within [`MAX_ELEMENTS`].
pub(super) fn small_count(dims: &[usize]) -> Option<usize> {
    let count = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
    (count <= MAX_ELEMENTS).then_some(count)
}

/// What storing in `dtype` makes of an element: floats lose precision, integers must fit.
pub(super) fn rounded(element: Element, dtype: DataType) -> Element {
    match (element, dtype) {
        (Element::Float(x), DataType::Float) => Element::Float(f64::from(x as f32)),
        (Element::Float(x), DataType::Double) => Element::Float(x),
        (Element::Float(_), _) => Element::Unknown,
        (Element::Int(n), DataType::Int64) => Element::Int(n),
        (Element::Int(n), DataType::Int32) => i32::try_from(n).map_or(Element::Unknown, |_| Element::Int(n)),
        (Element::Int(n), DataType::Bool) => Element::Int(i64::from(n != 0)),
        (Element::Int(n), DataType::Uint8) => u8::try_from(n).map_or(Element::Unknown, |_| Element::Int(n)),
        (Element::Int(_), _) => Element::Unknown,
        (other, DataType::Int64 | DataType::Int32) => other,
        _ => Element::Unknown,
    }
}
