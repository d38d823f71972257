//! Constant tensors: element type, dims and little-endian bytes, whatever field the file keeps them in.
//!
//! [`ConstTensor::from_proto`] reads `raw_data`, the typed fields and external data; its length is
//! checked against `dims`, so later code may index by shape. Nothing is converted: bytes stay what
//! the file says, which is what lets a rewrite permute any element type without knowing it.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;

use crate::proto::{StringStringEntryProto, TensorProto, tensor_proto};

/// Why a constant tensor could not be read. `name` is the tensor's name in the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TensorError {
    /// An element type this build does not know or cannot hold as bytes (strings).
    #[error("tensor '{name}': element type {code} is not supported")]
    UnsupportedType {
        /// The tensor.
        name: String,
        /// `TensorProto.data_type`.
        code: i32,
    },
    /// A negative or overflowing shape.
    #[error("tensor '{name}': shape {dims:?} is negative or too large")]
    BadShape {
        /// The tensor.
        name: String,
        /// `TensorProto.dims`.
        dims: Vec<i64>,
    },
    /// The data does not have the length that dims and type ask for.
    #[error("tensor '{name}': shape {dims:?} needs {want} bytes, the file holds {have}")]
    WrongLength {
        /// The tensor.
        name: String,
        /// `TensorProto.dims`.
        dims: Vec<i64>,
        /// Bytes that dims and type ask for.
        want: u64,
        /// Bytes found.
        have: u64,
    },
    /// External data that may not or cannot be followed.
    #[error("tensor '{name}': external data '{location}': {why}")]
    External {
        /// The tensor.
        name: String,
        /// The `location` entry.
        location: String,
        /// What is wrong.
        why: String,
    },
}

macro_rules! data_types {
    ($($variant:ident = $code:literal, $bits:literal, $doc:literal;)*) => {
        /// Element types of ONNX tensors (`TensorProto.DataType`) that are plain bits.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum DataType { $(#[doc = $doc] $variant = $code,)* }
        impl DataType {
            /// The type of an ONNX code; `None` for strings, undefined and unknown codes.
            pub fn from_code(code: i32) -> Option<Self> {
                match code { $($code => Some(Self::$variant),)* _ => None }
            }
            /// The ONNX code.
            pub fn code(self) -> i32 { match self { $(Self::$variant => $code,)* } }
            /// Bits of one element.
            pub fn bits(self) -> usize { match self { $(Self::$variant => $bits,)* } }
            /// The name ONNX gives it, in lower case.
            pub fn name(self) -> &'static str { match self { $(Self::$variant => $doc,)* } }
        }
    };
}
data_types! {
    Float = 1, 32, "float";
    Uint8 = 2, 8, "uint8";
    Int8 = 3, 8, "int8";
    Uint16 = 4, 16, "uint16";
    Int16 = 5, 16, "int16";
    Int32 = 6, 32, "int32";
    Int64 = 7, 64, "int64";
    Bool = 9, 8, "bool";
    Float16 = 10, 16, "float16";
    Double = 11, 64, "double";
    Uint32 = 12, 32, "uint32";
    Uint64 = 13, 64, "uint64";
    Complex64 = 14, 64, "complex64";
    Complex128 = 15, 128, "complex128";
    Bfloat16 = 16, 16, "bfloat16";
    Float8E4M3Fn = 17, 8, "float8e4m3fn";
    Float8E4M3Fnuz = 18, 8, "float8e4m3fnuz";
    Float8E5M2 = 19, 8, "float8e5m2";
    Float8E5M2Fnuz = 20, 8, "float8e5m2fnuz";
    Uint4 = 21, 4, "uint4";
    Int4 = 22, 4, "int4";
    Float4E2M1 = 23, 4, "float4e2m1";
    Float8E8M0 = 24, 8, "float8e8m0";
    Uint2 = 25, 2, "uint2";
    Int2 = 26, 2, "int2";
}

impl DataType {
    /// Bytes of one element; `None` for the types packed several to a byte.
    pub fn bytes(self) -> Option<usize> {
        (self.bits() >= 8).then_some(self.bits() / 8)
    }

    /// Bytes of `elements` elements, packed as ONNX packs them; `None` on overflow.
    pub fn total_bytes(self, elements: usize) -> Option<usize> {
        elements.checked_mul(self.bits())?.checked_add(7).map(|bits| bits / 8)
    }

    /// Whether it is float, float16, bfloat16 or double.
    pub fn is_float(self) -> bool {
        matches!(self, Self::Float | Self::Float16 | Self::Bfloat16 | Self::Double)
    }
}

/// A constant tensor: `dims`, and the elements in row-major order, little-endian.
/// Invariant: `bytes.len() == dtype.total_bytes(product of dims)`.
#[derive(Clone, Debug, PartialEq)]
pub struct ConstTensor {
    dtype: DataType,
    dims: Vec<usize>,
    bytes: Bytes,
}

impl ConstTensor {
    /// A tensor of these parts; `None` where the length does not fit dims and type.
    pub fn new(dtype: DataType, dims: Vec<usize>, bytes: impl Into<Bytes>) -> Option<Self> {
        let bytes = bytes.into();
        let elements = element_count(&dims)?;
        (dtype.total_bytes(elements)? == bytes.len()).then_some(Self { dtype, dims, bytes })
    }

    /// A float tensor; `None` where `values` has another length than `dims` ask for.
    pub fn from_f32(dims: Vec<usize>, values: &[f32]) -> Option<Self> {
        Self::new(DataType::Float, dims, values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())
    }

    /// A 1-D int64 tensor.
    pub fn from_i64s(values: &[i64]) -> Self {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self { dtype: DataType::Int64, dims: vec![values.len()], bytes: bytes.into() }
    }

    /// The element type.
    pub fn dtype(&self) -> DataType {
        self.dtype
    }
    /// The shape.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }
    /// The elements, row-major, little-endian.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.dims.iter().product()
    }
    /// Whether it has no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The same elements under another shape; `None` where the count differs.
    pub fn reshaped(self, dims: Vec<usize>) -> Option<Self> {
        Self::new(self.dtype, dims, self.bytes)
    }

    /// Reads the data of `tensor`, from the file's own fields or, relative to `base`, from external data.
    ///
    /// # Errors
    /// [`TensorError`]; external locations must stay inside `base`.
    pub fn from_proto(tensor: &TensorProto, base: Option<&Path>) -> Result<Self, TensorError> {
        let name = || tensor.name.clone().unwrap_or_default();
        let code = tensor.data_type.unwrap_or(0);
        let dtype = DataType::from_code(code).ok_or_else(|| TensorError::UnsupportedType { name: name(), code })?;
        let bad_shape = || TensorError::BadShape { name: name(), dims: tensor.dims.clone() };
        let dims =
            tensor.dims.iter().map(|&d| usize::try_from(d)).collect::<Result<Vec<_>, _>>().map_err(|_| bad_shape())?;
        let elements = element_count(&dims).ok_or_else(bad_shape)?;
        let want = dtype.total_bytes(elements).ok_or_else(bad_shape)?;
        let bytes = if is_external(tensor) {
            let source = ExternalRef::of(tensor)?;
            source.read(tensor, base, want)?
        } else if let Some(raw) = &tensor.raw_data {
            if raw.is_empty() && has_typed_data(tensor) { typed_bytes(tensor, dtype) } else { raw.clone() }
        } else {
            typed_bytes(tensor, dtype)
        };
        if bytes.len() != want {
            return Err(TensorError::WrongLength {
                name: name(),
                dims: tensor.dims.clone(),
                want: want as u64,
                have: bytes.len() as u64,
            });
        }
        Ok(Self { dtype, dims, bytes })
    }

    /// A `TensorProto` with `raw_data`.
    pub fn to_proto(&self, name: &str) -> TensorProto {
        TensorProto {
            name: Some(name.to_owned()),
            data_type: Some(self.dtype.code()),
            dims: self.dims.iter().map(|&d| d as i64).collect(),
            raw_data: Some(self.bytes.clone()),
            ..TensorProto::default()
        }
    }

    /// Integer elements as i64; `None` for other types.
    pub fn to_i64_vec(&self) -> Option<Vec<i64>> {
        let b = &self.bytes;
        Some(match self.dtype {
            DataType::Int64 => b.as_chunks::<8>().0.iter().map(|c| i64::from_le_bytes(*c)).collect(),
            DataType::Int32 => b.as_chunks::<4>().0.iter().map(|c| i64::from(i32::from_le_bytes(*c))).collect(),
            DataType::Uint32 => b.as_chunks::<4>().0.iter().map(|c| i64::from(u32::from_le_bytes(*c))).collect(),
            DataType::Int16 => b.as_chunks::<2>().0.iter().map(|c| i64::from(i16::from_le_bytes(*c))).collect(),
            DataType::Uint16 => b.as_chunks::<2>().0.iter().map(|c| i64::from(u16::from_le_bytes(*c))).collect(),
            DataType::Int8 => b.iter().map(|&c| i64::from(c.cast_signed())).collect(),
            DataType::Uint8 | DataType::Bool => b.iter().map(|&c| i64::from(c)).collect(),
            _ => return None,
        })
    }

    /// Elements of any integer or IEEE-like type up to 64 bits as f64 (int64 beyond 2^53 rounds); `None` for others.
    pub fn to_f64_vec(&self) -> Option<Vec<f64>> {
        let b = &self.bytes;
        Some(match self.dtype {
            DataType::Float => b.as_chunks::<4>().0.iter().map(|c| f64::from(f32::from_le_bytes(*c))).collect(),
            DataType::Double => b.as_chunks::<8>().0.iter().map(|c| f64::from_le_bytes(*c)).collect(),
            DataType::Float16 => b.as_chunks::<2>().0.iter().map(|c| half::f16::from_le_bytes(*c).to_f64()).collect(),
            DataType::Bfloat16 => b.as_chunks::<2>().0.iter().map(|c| half::bf16::from_le_bytes(*c).to_f64()).collect(),
            _ => return Some(self.to_i64_vec()?.into_iter().map(|v| v as f64).collect()),
        })
    }
}

fn element_count(dims: &[usize]) -> Option<usize> {
    // A zero anywhere makes the tensor empty, but the other dims must not overflow on their own.
    dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d.max(1)))?;
    Some(dims.iter().product())
}

fn has_typed_data(t: &TensorProto) -> bool {
    !(t.float_data.is_empty()
        && t.int32_data.is_empty()
        && t.int64_data.is_empty()
        && t.double_data.is_empty()
        && t.uint64_data.is_empty())
}

/// The typed fields as raw bytes. Sub-word types sit one to an int32; sub-byte types sit packed, a byte to an int32.
fn typed_bytes(t: &TensorProto, dtype: DataType) -> Bytes {
    fn flat<const N: usize, T: Copy>(values: &[T], bytes: impl Fn(T) -> [u8; N]) -> Bytes {
        values.iter().flat_map(|&v| bytes(v)).collect::<Vec<u8>>().into()
    }
    match dtype {
        DataType::Float | DataType::Complex64 => flat(&t.float_data, f32::to_le_bytes),
        DataType::Double | DataType::Complex128 => flat(&t.double_data, f64::to_le_bytes),
        DataType::Int64 => flat(&t.int64_data, i64::to_le_bytes),
        DataType::Uint64 => flat(&t.uint64_data, u64::to_le_bytes),
        DataType::Uint32 => flat(&t.uint64_data, |v| (v as u32).to_le_bytes()),
        DataType::Int32 => flat(&t.int32_data, i32::to_le_bytes),
        _ if dtype.bits() == 16 => flat(&t.int32_data, |v| (v as u16).to_le_bytes()),
        _ => flat(&t.int32_data, |v| [v as u8]),
    }
}

/// Whether the tensor's data lies in another file.
pub fn is_external(tensor: &TensorProto) -> bool {
    tensor.data_location == Some(tensor_proto::DataLocation::EXTERNAL)
}

/// Where the data of an external tensor lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalRef {
    /// Path relative to the model's folder: no `..`, not absolute.
    pub location: PathBuf,
    /// First byte.
    pub offset: u64,
    /// Bytes, where the file says so.
    pub length: Option<u64>,
}

impl ExternalRef {
    /// The reference in `tensor.external_data`.
    ///
    /// # Errors
    /// [`TensorError::External`] for a missing or escaping location, or a number that is none.
    pub fn of(tensor: &TensorProto) -> Result<Self, TensorError> {
        let get = |key: &str| {
            tensor
                .external_data
                .iter()
                .find(|e| e.key.as_deref() == Some(key))
                .and_then(|e: &StringStringEntryProto| e.value.as_deref())
        };
        let location = get("location").unwrap_or_default();
        let fail = |why: &str| TensorError::External {
            name: tensor.name.clone().unwrap_or_default(),
            location: location.to_owned(),
            why: why.to_owned(),
        };
        let path = Path::new(location);
        let inside = path.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
        if location.is_empty() || !inside {
            return Err(fail("the location must be a relative path without '..'"));
        }
        let number = |key: &str| match get(key) {
            None => Ok(None),
            Some(text) => {
                text.trim().parse::<u64>().map(Some).map_err(|_| fail(&format!("{key} '{text}' is no number")))
            }
        };
        Ok(Self { location: path.to_owned(), offset: number("offset")?.unwrap_or(0), length: number("length")? })
    }

    /// Reads `want` bytes. The file's true length is checked before anything is reserved.
    fn read(&self, tensor: &TensorProto, base: Option<&Path>, want: usize) -> Result<Bytes, TensorError> {
        let fail = |why: String| TensorError::External {
            name: tensor.name.clone().unwrap_or_default(),
            location: self.location.display().to_string(),
            why,
        };
        let base = base.ok_or_else(|| fail("the model was read from memory, so no folder is known".into()))?;
        if let Some(length) = self.length.filter(|&l| l != want as u64) {
            return Err(TensorError::WrongLength {
                name: tensor.name.clone().unwrap_or_default(),
                dims: tensor.dims.clone(),
                want: want as u64,
                have: length,
            });
        }
        let base = if base.as_os_str().is_empty() { Path::new(".") } else { base };
        let root = base.canonicalize().map_err(|e| fail(e.to_string()))?;
        let path = root.join(&self.location).canonicalize().map_err(|e| fail(e.to_string()))?;
        if !path.starts_with(&root) {
            return Err(fail("the location leads out of the model's folder".into()));
        }
        let mut file = std::fs::File::open(&path).map_err(|e| fail(e.to_string()))?;
        let have = file.metadata().map_err(|e| fail(e.to_string()))?;
        let end = self.offset.checked_add(want as u64);
        if !have.is_file() || end.is_none_or(|end| end > have.len()) {
            return Err(fail(format!("needs {want} bytes at {}, the file has {}", self.offset, have.len())));
        }
        let mut bytes = vec![0; want];
        file.seek(SeekFrom::Start(self.offset)).map_err(|e| fail(e.to_string()))?;
        file.read_exact(&mut bytes).map_err(|e| fail(e.to_string()))?;
        Ok(bytes.into())
    }
}
