//! Values of the interpreter: nominal element type, dims, data, and a shadow number per element.
//!
//! The data is kept in whatever representation the [mode](super::Mode) computes in: float16 and bfloat16 as f32,
//! integers up to 32 bits as i32. The *shadow* goes through every structural operator with its element: it is the
//! allowed error in [`Mode::Reference`](super::Mode::Reference), and the real value of one integer step in
//! [`Mode::Accumulators`](super::Mode::Accumulators) and [`Mode::Requantise`](super::Mode::Requantise).

use chipfit_model::{ConstTensor, DataType};

use crate::reference::MAX_ELEMENTS;

/// Elements in the representation they are computed in.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// float, float16, bfloat16.
    F32(Vec<f32>),
    /// double; every float in [`Mode::Reference`](super::Mode::Reference).
    F64(Vec<f64>),
    /// Integers of up to 32 bits; floats as integers in the exact modes.
    I32(Vec<i32>),
    /// int64 and uint32.
    I64(Vec<i64>),
}

/// Evaluates one expression for whichever vector the data holds.
macro_rules! with_data {
    ($data:expr, $v:ident => $body:expr) => {
        match $data {
            $crate::interp::tensor::Data::F32($v) => $body,
            $crate::interp::tensor::Data::F64($v) => $body,
            $crate::interp::tensor::Data::I32($v) => $body,
            $crate::interp::tensor::Data::I64($v) => $body,
        }
    };
}
/// Maps one expression over whichever vector the data holds, keeping the representation.
macro_rules! map_data {
    ($data:expr, $v:ident => $body:expr) => {
        match $data {
            $crate::interp::tensor::Data::F32($v) => $crate::interp::tensor::Data::F32($body),
            $crate::interp::tensor::Data::F64($v) => $crate::interp::tensor::Data::F64($body),
            $crate::interp::tensor::Data::I32($v) => $crate::interp::tensor::Data::I32($body),
            $crate::interp::tensor::Data::I64($v) => $crate::interp::tensor::Data::I64($body),
        }
    };
}
pub(crate) use map_data;

impl Data {
    /// Number of elements.
    pub fn len(&self) -> usize {
        with_data!(self, v => v.len())
    }
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The elements as f64 (int64 beyond 2^53 rounds).
    pub fn to_f64(&self) -> Vec<f64> {
        match self {
            Self::F32(v) => v.iter().map(|&x| f64::from(x)).collect(),
            Self::F64(v) => v.clone(),
            Self::I32(v) => v.iter().map(|&x| f64::from(x)).collect(),
            Self::I64(v) => v.iter().map(|&x| x as f64).collect(),
        }
    }
}

/// A number that belongs to every element. See the module's text.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Shadow {
    /// No number.
    #[default]
    None,
    /// The same for all elements.
    Uniform(f64),
    /// One per element.
    Each(Vec<f64>),
}

impl Shadow {
    /// The number of element `at`.
    pub fn at(&self, at: usize) -> Option<f64> {
        match self {
            Self::None => None,
            Self::Uniform(v) => Some(*v),
            Self::Each(v) => v.get(at).copied(),
        }
    }

    /// `Uniform` where all of `values` are equal (and there is one).
    pub fn of(values: Vec<f64>) -> Self {
        match values.split_first() {
            Some((first, rest)) if rest.iter().all(|v| v == first) => Self::Uniform(*first),
            _ => Self::Each(values),
        }
    }
}

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// The element type that the model gives it.
    pub dtype: DataType,
    /// Shape.
    pub dims: Vec<usize>,
    /// Elements, row-major.
    pub data: Data,
    /// See the module's text.
    pub shadow: Shadow,
}

/// The product of dims; `None` where it passes [`MAX_ELEMENTS`].
pub(crate) fn elements(dims: &[usize]) -> Option<usize> {
    dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d.max(1)).filter(|&n| n <= MAX_ELEMENTS))?;
    Some(dims.iter().product())
}

impl Tensor {
    /// A tensor without shadow; `None` where the data is not as long as dims say.
    pub fn new(dtype: DataType, dims: Vec<usize>, data: Data) -> Option<Self> {
        (elements(&dims)? == data.len()).then_some(Self { dtype, dims, data, shadow: Shadow::None })
    }

    /// A 1-D int64 tensor.
    pub(crate) fn of_i64s(values: Vec<i64>) -> Self {
        Self { dtype: DataType::Int64, dims: vec![values.len()], data: Data::I64(values), shadow: Shadow::None }
    }

    /// A constant of the file; `None` for an element type that the interpreter does not compute with.
    pub fn from_const(tensor: &ConstTensor) -> Option<Self> {
        let data = match tensor.dtype() {
            DataType::Double => Data::F64(tensor.to_f64_vec()?),
            // Every value of the three narrower types is one of f32.
            t if t.is_float() => Data::F32(tensor.to_f64_vec()?.into_iter().map(|v| v as f32).collect()),
            DataType::Int64 | DataType::Uint32 => Data::I64(tensor.to_i64_vec()?),
            _ => Data::I32(tensor.to_i64_vec()?.into_iter().map(|v| i32::try_from(v).ok()).collect::<Option<_>>()?),
        };
        Self::new(tensor.dtype(), tensor.dims().to_vec(), data)
    }

    /// Integer elements.
    pub fn to_i64s(&self) -> Option<Vec<i64>> {
        match &self.data {
            Data::I64(v) => Some(v.clone()),
            Data::I32(v) => Some(v.iter().map(|&x| i64::from(x)).collect()),
            _ => None,
        }
    }

    /// The only element.
    pub fn scalar(&self) -> Option<f64> {
        let all = (self.data.len() == 1).then(|| self.data.to_f64())?;
        all.first().copied()
    }
}

/// Smallest and largest value of an integer type of up to 32 bits.
pub fn integer_range(dtype: DataType) -> Option<(i64, i64)> {
    Some(match dtype {
        DataType::Int8 => (i64::from(i8::MIN), i64::from(i8::MAX)),
        DataType::Uint8 => (0, i64::from(u8::MAX)),
        DataType::Int16 => (i64::from(i16::MIN), i64::from(i16::MAX)),
        DataType::Uint16 => (0, i64::from(u16::MAX)),
        DataType::Int32 => (i64::from(i32::MIN), i64::from(i32::MAX)),
        _ => return None,
    })
}

/// Rounds once to the storage type.
pub fn round_to_storage(dtype: DataType, values: &mut [f32]) {
    match dtype {
        DataType::Float16 => values.iter_mut().for_each(|v| *v = half::f16::from_f32(*v).to_f32()),
        DataType::Bfloat16 => values.iter_mut().for_each(|v| *v = half::bf16::from_f32(*v).to_f32()),
        _ => {}
    }
}

/// Half the distance from 1 to the next number of a float type.
pub fn unit_roundoff(dtype: DataType) -> f64 {
    match dtype {
        DataType::Double => f64::EPSILON / 2.0,
        DataType::Float16 => 2f64.powi(-11),
        DataType::Bfloat16 => 2f64.powi(-8),
        _ => f64::from(f32::EPSILON) / 2.0,
    }
}
