//! Reproducible random inputs for a model.
//!
//! Element `e` of input `i` under seed `s` depends on `(s, i, e)` and the element type alone: not on the
//! thread count, the order of calls, or the other inputs' shapes. `i` counts the inputs that are no initializers.
//!
//! Distributions: floats are uniform in [-1, 1), on a grid that the type holds exactly; bool is a fair coin;
//! int64 is uniform in 1..=8 (such inputs are indices, counts and shapes); every other integer type is uniform
//! over its whole range.
//!
//! Shapes come from the model's declaration and the caller's overrides; a named dimension that an override
//! fixes is fixed wherever the name occurs ("?", "-1" and "None" are no names). A dimension that is still free, or declared as 0 or less, becomes
//! [`DEFAULT_BATCH`] at axis 0 and [`DEFAULT_SPATIAL`] at axes 2 and 3 of a rank-4 input; any other is an error
//! that asks for `--input`. Read [`inputs`] first, then [`input_shapes`] and [`tensor`].

use std::collections::{BTreeMap, BTreeSet};

use chipfit_model::proto::__buffa::oneof::tensor_shape_proto::dimension::Value as DimValue;
use chipfit_model::proto::__buffa::oneof::type_proto::Value as TypeValue;
use chipfit_model::proto::{ValueInfoProto, type_proto};
use chipfit_model::{ConstTensor, DataType, Model};

/// Length of a free axis 0.
pub const DEFAULT_BATCH: usize = 1;
/// Length of the free axes 2 and 3 of a rank-4 input.
pub const DEFAULT_SPATIAL: usize = 64;
/// Most bytes that one input may take: a file's declared shape must not size an allocation without bound.
pub const MAX_INPUT_BYTES: usize = 1 << 30;

/// Why no random inputs could be made.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum RandomError {
    /// An override names no input of the model.
    #[error("the model has no input '{name}'; its inputs are {inputs:?}")]
    NoSuchInput {
        /// The override's name.
        name: String,
        /// The model's inputs, initializers left out.
        inputs: Vec<String>,
    },
    /// An override contradicts the file, or another override of the same named dimension.
    #[error("input '{name}': the model declares {declared}, asked for {asked:?}")]
    Contradiction {
        /// The input.
        name: String,
        /// The declared shape, with the lengths already fixed.
        declared: String,
        /// The asked shape.
        asked: Vec<usize>,
    },
    /// A dimension that neither the file nor an override nor a default gives.
    #[error(
        "input '{name}' is declared {declared}: its length at axis {axis} is free; give it with --input {name}:..."
    )]
    FreeDimension {
        /// The input.
        name: String,
        /// The declared shape.
        declared: String,
        /// The axis.
        axis: usize,
    },
    /// An input without a declared shape.
    #[error("input '{name}' has no declared shape; give it with --input {name}:...")]
    NoShape {
        /// The input.
        name: String,
    },
    /// An input that is no tensor, or a tensor of a type that cannot be filled.
    #[error("input '{name}': no random values for {what}")]
    Unsupported {
        /// The input.
        name: String,
        /// Its type, in words.
        what: String,
    },
    /// A shape over [`MAX_INPUT_BYTES`].
    #[error("input '{name}': shape {dims:?} takes more than {limit} bytes")]
    TooLarge {
        /// The input.
        name: String,
        /// Its shape.
        dims: Vec<usize>,
        /// [`MAX_INPUT_BYTES`].
        limit: usize,
    },
}

/// A model input with its shape settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputShape {
    /// The input's name.
    pub name: String,
    /// Element type.
    pub dtype: DataType,
    /// Shape.
    pub dims: Vec<usize>,
    /// Axes whose length is a default of this module, not the file's or the caller's.
    pub defaulted: Vec<usize>,
}

/// Random tensors for every real input of `model`, in the file's order.
///
/// # Errors
/// [`RandomError`].
pub fn inputs(
    model: &Model,
    overrides: &BTreeMap<String, Vec<usize>>,
    seed: u64,
) -> Result<Vec<(String, ConstTensor)>, RandomError> {
    let mut tensors = Vec::new();
    for (number, input) in input_shapes(model, overrides)?.into_iter().enumerate() {
        let (name, dims) = (input.name, input.dims);
        let bytes = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).and_then(|n| input.dtype.total_bytes(n));
        if bytes.is_none_or(|bytes| bytes > MAX_INPUT_BYTES) {
            return Err(RandomError::TooLarge { name, dims, limit: MAX_INPUT_BYTES });
        }
        match tensor(input.dtype, dims, Key { seed, input: number as u64 }) {
            Some(value) => tensors.push((name, value)),
            None => return Err(RandomError::Unsupported { name, what: input.dtype.name().to_owned() }),
        }
    }
    Ok(tensors)
}

/// The real inputs of `model` (the graph's inputs without the initializers), in the file's order.
pub fn real_inputs(model: &Model) -> Vec<&ValueInfoProto> {
    let graph = model.graph();
    let dense = graph.initializer.iter().filter_map(|t| t.name.as_deref());
    let sparse = graph.sparse_initializer.iter().filter_map(|t| t.values.name.as_deref());
    let constant: BTreeSet<&str> = dense.chain(sparse).collect();
    graph.input.iter().filter(|i| !constant.contains(i.name.as_deref().unwrap_or_default())).collect()
}

/// The real inputs of `model` with every dimension settled, in the file's order.
///
/// # Errors
/// [`RandomError`], all but `TooLarge`.
pub fn input_shapes(model: &Model, overrides: &BTreeMap<String, Vec<usize>>) -> Result<Vec<InputShape>, RandomError> {
    let declared: Vec<Declared> = real_inputs(model).into_iter().map(Declared::of).collect::<Result<_, _>>()?;
    if let Some(name) = overrides.keys().find(|name| !declared.iter().any(|d| d.name == **name)) {
        let inputs = declared.into_iter().map(|d| d.name).collect();
        return Err(RandomError::NoSuchInput { name: name.clone(), inputs });
    }
    let mut lengths = BTreeMap::new();
    for input in &declared {
        if let Some(asked) = overrides.get(&input.name) {
            input.bind(asked, &mut lengths)?;
        }
    }
    declared.into_iter().map(|d| d.settle(overrides, &lengths)).collect()
}

/// Whether a dimension's symbol tells it from others: exporters write "?", "-1" and "None" for any unknown length.
fn is_a_name(symbol: &str) -> bool {
    symbol != "None" && symbol.chars().any(char::is_alphabetic)
}

/// One declared dimension: fixed, or free under a name that may be empty.
enum DeclaredDim {
    Fixed(usize),
    Free(String),
}

struct Declared {
    name: String,
    dtype: DataType,
    dims: Option<Vec<DeclaredDim>>,
}

impl Declared {
    fn of(input: &ValueInfoProto) -> Result<Self, RandomError> {
        let name = input.name.clone().unwrap_or_default();
        let unsupported = |what: &str| RandomError::Unsupported { name: name.clone(), what: what.to_owned() };
        let Some(TypeValue::TensorType(tensor)) = &input.r#type.value else {
            return Err(unsupported("a type that is no tensor"));
        };
        let tensor: &type_proto::Tensor = tensor;
        let code = tensor.elem_type.unwrap_or(0);
        let dtype =
            DataType::from_code(code).ok_or_else(|| unsupported(&format!("a tensor of element type {code}")))?;
        let dims = tensor.shape.as_option().map(|shape| {
            let dim = |value: &Option<DimValue>| match value {
                Some(DimValue::DimValue(n)) => match usize::try_from(*n) {
                    Ok(n) if n > 0 => DeclaredDim::Fixed(n),
                    _ => DeclaredDim::Free(String::new()),
                },
                Some(DimValue::DimParam(symbol)) if is_a_name(symbol) => DeclaredDim::Free(symbol.clone()),
                _ => DeclaredDim::Free(String::new()),
            };
            shape.dim.iter().map(|d| dim(&d.value)).collect()
        });
        Ok(Self { name, dtype, dims })
    }

    /// Takes the lengths that `asked` gives to this input's dimensions.
    fn bind(&self, asked: &[usize], lengths: &mut BTreeMap<String, usize>) -> Result<(), RandomError> {
        let Some(dims) = &self.dims else { return Ok(()) };
        let contradiction = |lengths: &BTreeMap<String, usize>| RandomError::Contradiction {
            name: self.name.clone(),
            declared: self.text(lengths),
            asked: asked.to_vec(),
        };
        if dims.len() != asked.len() {
            return Err(contradiction(lengths));
        }
        for (dim, &length) in dims.iter().zip(asked) {
            let before = match dim {
                DeclaredDim::Fixed(n) => Some(*n),
                DeclaredDim::Free(symbol) if symbol.is_empty() => None,
                DeclaredDim::Free(symbol) => {
                    let before = lengths.get(symbol).copied();
                    lengths.entry(symbol.clone()).or_insert(length);
                    before
                }
            };
            if before.is_some_and(|before| before != length) {
                return Err(contradiction(lengths));
            }
        }
        Ok(())
    }

    fn settle(
        self,
        overrides: &BTreeMap<String, Vec<usize>>,
        lengths: &BTreeMap<String, usize>,
    ) -> Result<InputShape, RandomError> {
        let declared = self.text(&BTreeMap::new());
        let Self { name, dtype, dims } = self;
        if let Some(asked) = overrides.get(&name) {
            return Ok(InputShape { name, dtype, dims: asked.clone(), defaulted: Vec::new() });
        }
        let Some(dims) = dims else { return Err(RandomError::NoShape { name }) };
        let rank = dims.len();
        let mut settled = Vec::with_capacity(rank);
        let mut defaulted = Vec::new();
        for (axis, dim) in dims.into_iter().enumerate() {
            let known = match dim {
                DeclaredDim::Fixed(n) => Some(n),
                DeclaredDim::Free(symbol) => lengths.get(&symbol).copied(),
            };
            settled.push(match (known, axis) {
                (Some(length), _) => length,
                (None, 0) => {
                    defaulted.push(axis);
                    DEFAULT_BATCH
                }
                (None, 2 | 3) if rank == 4 => {
                    defaulted.push(axis);
                    DEFAULT_SPATIAL
                }
                (None, _) => return Err(RandomError::FreeDimension { name, declared, axis }),
            });
        }
        Ok(InputShape { name, dtype, dims: settled, defaulted })
    }

    fn text(&self, lengths: &BTreeMap<String, usize>) -> String {
        let Some(dims) = &self.dims else { return "no shape".to_owned() };
        let dim = |d: &DeclaredDim| match d {
            DeclaredDim::Fixed(n) => n.to_string(),
            DeclaredDim::Free(symbol) => match lengths.get(symbol) {
                Some(length) => format!("{symbol}={length}"),
                None if symbol.is_empty() => "?".to_owned(),
                None => symbol.clone(),
            },
        };
        format!("[{}]", dims.iter().map(dim).collect::<Vec<_>>().join(", "))
    }
}

/// What selects a stream of random elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// The caller's seed.
    pub seed: u64,
    /// The input's number.
    pub input: u64,
}

/// A random tensor; `None` for element types without a distribution (complex, 8-bit and 4-bit floats) and for
/// shapes whose size overflows.
pub fn tensor(dtype: DataType, dims: Vec<usize>, key: Key) -> Option<ConstTensor> {
    let elements = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
    let stream = Stream::new(key);
    let bytes = match dtype {
        DataType::Float => stream.fill(elements, |bits| grid(bits, 24).to_le_bytes()),
        DataType::Double => stream.fill(elements, |bits| {
            let numerator = (bits >> 11).cast_signed() - (1 << 52);
            (numerator as f64 / (1u64 << 52) as f64).to_le_bytes()
        }),
        DataType::Float16 => stream.fill(elements, |bits| half::f16::from_f32(grid(bits, 11)).to_le_bytes()),
        DataType::Bfloat16 => stream.fill(elements, |bits| half::bf16::from_f32(grid(bits, 8)).to_le_bytes()),
        DataType::Bool => stream.fill(elements, |bits| [u8::from(bits >> 63 == 1)]),
        DataType::Int64 => stream.fill(elements, |bits| (1 + (bits >> 61).cast_signed()).to_le_bytes()),
        DataType::Uint64 => stream.fill(elements, u64::to_le_bytes),
        DataType::Int32 | DataType::Uint32 => stream.fill(elements, top_bytes::<4>),
        DataType::Int16 | DataType::Uint16 => stream.fill(elements, top_bytes::<2>),
        DataType::Int8 | DataType::Uint8 => stream.fill(elements, top_bytes::<1>),
        DataType::Int4 | DataType::Uint4 | DataType::Int2 | DataType::Uint2 => {
            let mut bytes = stream.fill(dtype.total_bytes(elements)?, top_bytes::<1>);
            let used_bits = elements.checked_mul(dtype.bits())? % 8;
            if let Some(last) = bytes.last_mut().filter(|_| used_bits != 0) {
                *last &= (1u8 << used_bits) - 1;
            }
            bytes
        }
        _ => return None,
    };
    ConstTensor::new(dtype, dims, bytes)
}

/// A float of [-1, 1) from the top `precision` bits: multiples of 2^(1-precision), so a type with `precision`
/// significant bits holds each of them exactly.
fn grid(bits: u64, precision: u32) -> f32 {
    let half = 1i64 << (precision - 1);
    let numerator = (bits >> (64 - precision)).cast_signed() - half;
    numerator as f32 / half as f32
}

fn top_bytes<const N: usize>(bits: u64) -> [u8; N] {
    let all = bits.to_be_bytes();
    std::array::from_fn(|i| all[i])
}

/// Element `e` is `mix(base + (e + 1) * GOLDEN)`: SplitMix64 entered at any position.
struct Stream {
    base: u64,
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

impl Stream {
    fn new(key: Key) -> Self {
        Self { base: mix(mix(key.seed.wrapping_add(GOLDEN)) ^ key.input.wrapping_mul(GOLDEN)) }
    }

    fn fill<const N: usize>(&self, elements: usize, element: impl Fn(u64) -> [u8; N]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(elements.saturating_mul(N));
        for position in 1..=elements as u64 {
            bytes.extend(element(mix(self.base.wrapping_add(position.wrapping_mul(GOLDEN)))));
        }
        bytes
    }
}

/// The finaliser of SplitMix64: a bijection of 64 bits in which every input bit reaches every output bit.
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests;
