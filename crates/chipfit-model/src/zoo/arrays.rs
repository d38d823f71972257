//! The tensors inside pickles: numpy arrays, and the legacy format of torch.
//!
//! Numpy: `_reconstruct` with the state `(version, shape, dtype, is Fortran order, bytes)`, or `_frombuffer`
//! of protocol 5. Torch before zip files: five pickles in a row (a magic number, the protocol, facts about
//! the system, the object, the list of storage keys), then for each key the number of elements (8 bytes) and
//! the elements; a tensor is a storage with an offset, sizes and strides, which need not be contiguous.
//!
//! Promises, for any bytes: no panic; a tensor never has more elements than its storage; copies and names
//! together take at most [`COPIES_PER_BYTE`] times the file's length (and a little for small ones).

use std::collections::BTreeMap;

use bytes::Bytes;

use super::pickle::{Id, MAX_NAME, Object, Pickle, PickleError};
use super::weights::WeightsFormat;
use crate::tensor::{ConstTensor, DataType};

/// Bytes of copies and names that one byte of the file may cause.
const COPIES_PER_BYTE: usize = 4;
/// Deepest nesting of dictionaries and lists.
const MAX_DEPTH: usize = 32;
/// Most places looked at; a container may be shared, so this is not bounded by the objects.
const MAX_VISITS: usize = 1 << 20;
/// torch's magic number, 0x1950a86a20f9469cfc6c.
const MAGIC: &[u8] = &[0x6C, 0xFC, 0x9C, 0x46, 0xF9, 0x20, 0x6A, 0xA8, 0x50, 0x19];

type Tensors = BTreeMap<String, ConstTensor>;

/// All tensors of a file, by name.
pub(super) fn read(file: Bytes) -> Result<(WeightsFormat, Tensors), PickleError> {
    if file.starts_with(b"PK\x03\x04") {
        return Err(PickleError::NotThis(
            "it is a zip archive; torch must save with _use_new_zipfile_serialization=False",
        ));
    }
    let first = Pickle::read(&file, 0)?;
    if matches!(first.get(first.root()), Some(Object::Long(magic)) if **magic == *MAGIC) {
        return read_torch(&file, first.end()).map(|tensors| (WeightsFormat::TorchPickle, tensors));
    }
    if first.end() != file.len() {
        return Err(PickleError::NotThis("bytes follow the pickle"));
    }
    let tensors = Collector::new(&first, &file, BTreeMap::new()).collect()?;
    Ok((WeightsFormat::NumpyPickle, tensors))
}

/// Elements of one type that torch tensors are views of.
#[derive(Clone, Debug)]
struct Storage {
    dtype: DataType,
    bytes: Bytes,
}

/// What a persistent id says about a storage.
struct StorageId {
    key: String,
    dtype: DataType,
    elements: usize,
}

fn storage_id(pickle: &Pickle, persistent: Id) -> Option<StorageId> {
    let Some(Object::Persistent(id)) = pickle.get(persistent) else { return None };
    // ('storage', class, key, location, elements, view), the view in old files only, where it has to be None.
    let (&[kind, class, key, _location, elements], rest) = pickle.entries(*id)?.split_first_chunk()?;
    let view_is_none = rest.iter().all(|&v| pickle.get(v) == Some(&Object::None));
    if pickle.text(kind)? != "storage" || rest.len() > 1 || !view_is_none {
        return None;
    }
    let ("torch", class) = pickle.global(class)? else { return None };
    let dtype = match class {
        "FloatStorage" => DataType::Float,
        "DoubleStorage" => DataType::Double,
        "HalfStorage" => DataType::Float16,
        "BFloat16Storage" => DataType::Bfloat16,
        "LongStorage" => DataType::Int64,
        "IntStorage" => DataType::Int32,
        "ShortStorage" => DataType::Int16,
        "CharStorage" => DataType::Int8,
        "ByteStorage" => DataType::Uint8,
        "BoolStorage" => DataType::Bool,
        _ => return None,
    };
    Some(StorageId { key: pickle.text(key)?, dtype, elements: usize::try_from(pickle.int(elements)?).ok()? })
}

fn read_torch(file: &Bytes, start: usize) -> Result<Tensors, PickleError> {
    let bad = PickleError::BadTorch;
    let protocol = Pickle::read(file, start)?;
    if protocol.int(protocol.root()) != Some(1001) {
        return Err(bad("its protocol version is not 1001"));
    }
    let system = Pickle::read(file, protocol.end())?;
    let Some(Object::Dict(facts)) = system.get(system.root()) else {
        return Err(bad("the facts about the system are no dictionary"));
    };
    let little = facts.iter().find(|(k, _)| system.text(*k).as_deref() == Some("little_endian"));
    if little.and_then(|(_, v)| system.get(*v)) != Some(&Object::Bool(true)) {
        return Err(bad("it is not said to be little-endian"));
    }
    let object = Pickle::read(file, system.end())?;
    let keys = Pickle::read(file, object.end())?;

    let mut declared: BTreeMap<String, StorageId> = BTreeMap::new();
    for id in (0..).take(object.objects().len()) {
        if let Some(Object::Persistent(_)) = object.get(id) {
            let storage = storage_id(&object, id).ok_or(bad("a reference is no storage that can be read"))?;
            if let Some(other) = declared.get(&storage.key)
                && (other.dtype, other.elements) != (storage.dtype, storage.elements)
            {
                return Err(bad("one storage is described in two ways"));
            }
            declared.insert(storage.key.clone(), storage);
        }
    }
    let mut storages = BTreeMap::new();
    let mut next = keys.end();
    for &key in keys.entries(keys.root()).ok_or(bad("the storage keys are no list"))? {
        let id =
            keys.text(key).and_then(|k| declared.remove(&k)).ok_or(bad("a storage key is unknown or twice there"))?;
        let short = || bad("the file ends inside a storage");
        let count = file.get(next..).and_then(|rest| rest.first_chunk()).copied().ok_or_else(short)?;
        if usize::try_from(u64::from_le_bytes(count)) != Ok(id.elements) {
            return Err(bad("a storage has another length than its tensors say"));
        }
        let begin = next + count.len();
        let length = id.dtype.total_bytes(id.elements).ok_or_else(short)?;
        next = begin.checked_add(length).filter(|&end| end <= file.len()).ok_or_else(short)?;
        storages.insert(id.key, Storage { dtype: id.dtype, bytes: file.slice(begin..next) });
    }
    if !declared.is_empty() {
        return Err(bad("a storage is missing"));
    }
    if next != file.len() {
        return Err(bad("bytes follow the last storage"));
    }
    Collector::new(&object, file, storages).collect()
}

/// Walks the containers of a pickle and gathers their tensors.
struct Collector<'p> {
    pickle: &'p Pickle,
    storages: BTreeMap<String, Storage>,
    tensors: Tensors,
    visits_left: usize,
    bytes_left: usize,
}

impl<'p> Collector<'p> {
    fn new(pickle: &'p Pickle, file: &Bytes, storages: BTreeMap<String, Storage>) -> Self {
        let bytes_left = file.len().saturating_mul(COPIES_PER_BYTE).saturating_add(1 << 20);
        Self { pickle, storages, tensors: BTreeMap::new(), visits_left: MAX_VISITS, bytes_left }
    }

    fn collect(mut self) -> Result<Tensors, PickleError> {
        self.visit(self.pickle.root(), "", 0)?;
        Ok(self.tensors)
    }

    fn spend(&mut self, bytes: usize) -> Result<(), PickleError> {
        self.bytes_left = self.bytes_left.checked_sub(bytes).ok_or(PickleError::TooLarge)?;
        Ok(())
    }

    fn visit(&mut self, id: Id, name: &str, depth: usize) -> Result<(), PickleError> {
        self.visits_left = self.visits_left.checked_sub(1).ok_or(PickleError::TooLarge)?;
        if depth > MAX_DEPTH {
            return Err(PickleError::TooLarge);
        }
        let pickle = self.pickle;
        let no_tensor = |what: &str| PickleError::NotATensor { name: name.to_owned(), what: shortened(what) };
        match pickle.get(id) {
            Some(Object::Dict(items)) => self.visit_items(items, name, depth),
            Some(Object::Tuple(entries) | Object::List(entries)) => {
                for (position, &entry) in entries.iter().enumerate() {
                    self.visit(entry, &joined(name, &position.to_string())?, depth + 1)?;
                }
                Ok(())
            }
            // Epochs, class names and the like.
            Some(
                Object::None
                | Object::Bool(_)
                | Object::Int(_)
                | Object::Long(_)
                | Object::Float(_)
                | Object::Text(_)
                | Object::Bytes(_),
            ) => Ok(()),
            Some(Object::Instance { callable, arguments, state, items }) => match pickle.global(*callable) {
                Some(("collections", "OrderedDict")) => {
                    if pickle.entries(*arguments).is_none_or(|a| !a.is_empty()) {
                        return Err(no_tensor("an OrderedDict made from arguments"));
                    }
                    self.visit_items(items, name, depth)
                }
                Some(("torch._utils", "_rebuild_parameter")) => {
                    let tensor = pickle.entries(*arguments).and_then(<[Id]>::first);
                    self.visit(*tensor.ok_or_else(|| no_tensor("a parameter of nothing"))?, name, depth + 1)
                }
                Some((module, global)) => {
                    let tensor = match (module, global) {
                        ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct") => {
                            self.numpy_array(*state, name)?
                        }
                        ("numpy.core.numeric" | "numpy._core.numeric", "_frombuffer") => {
                            self.numpy_buffer(*arguments, name)?
                        }
                        ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => {
                            self.torch_tensor(*arguments, name)?
                        }
                        _ => return Err(no_tensor(&format!("{} of {}", shortened(global), shortened(module)))),
                    };
                    self.spend(name.len() + 64)?;
                    match self.tensors.insert(name.to_owned(), tensor) {
                        None => Ok(()),
                        Some(_) => Err(bad_tensor(name, "its name is used twice")),
                    }
                }
                None => Err(no_tensor("the result of a computed call")),
            },
            Some(Object::Global(names)) => Err(no_tensor(&format!("the class {}", shortened(&names.1)))),
            Some(Object::Persistent(_)) => Err(no_tensor("a bare reference")),
            None => Err(no_tensor("nothing")),
        }
    }

    fn visit_items(&mut self, items: &[(Id, Id)], name: &str, depth: usize) -> Result<(), PickleError> {
        for &(key, value) in items {
            let key = match self.pickle.get(key) {
                Some(Object::Int(number)) => number.to_string(),
                _ => self.pickle.text(key).ok_or_else(|| PickleError::NotATensor {
                    name: name.to_owned(),
                    what: "a dictionary with keys that are no text, or too long".to_owned(),
                })?,
            };
            self.visit(value, &joined(name, &key)?, depth + 1)?;
        }
        Ok(())
    }

    fn shape(&self, id: Id, name: &str) -> Result<Vec<usize>, PickleError> {
        let lengths = self.pickle.entries(id).filter(|e| e.len() <= MAX_DEPTH);
        let lengths = lengths
            .and_then(|e| e.iter().map(|&d| usize::try_from(self.pickle.int(d)?).ok()).collect::<Option<Vec<usize>>>());
        lengths.ok_or_else(|| bad_tensor(name, "its shape or strides are no lengths"))
    }

    /// The element type and whether its bytes are reversed.
    fn numpy_type(&self, id: Id) -> Option<(DataType, Order)> {
        let pickle = self.pickle;
        let Some(Object::Instance { callable, arguments, state: Some(state), .. }) = pickle.get(id) else {
            return None;
        };
        let ("numpy", "dtype") = pickle.global(*callable)? else { return None };
        let dtype = match pickle.text(*pickle.entries(*arguments)?.first()?)?.as_str() {
            "f2" => DataType::Float16,
            "f4" => DataType::Float,
            "f8" => DataType::Double,
            "i1" => DataType::Int8,
            "i2" => DataType::Int16,
            "i4" => DataType::Int32,
            "i8" => DataType::Int64,
            "u1" => DataType::Uint8,
            "u2" => DataType::Uint16,
            "u4" => DataType::Uint32,
            "u8" => DataType::Uint64,
            "b1" => DataType::Bool,
            _ => return None,
        };
        // (version, byte order, sub-array, names, fields, ...): the three in the middle are for compound types.
        let &[_version, order, ref compound @ ..] = pickle.entries(*state)? else { return None };
        if compound.iter().take(3).any(|&part| pickle.get(part) != Some(&Object::None)) {
            return None;
        }
        match pickle.text(order)?.as_str() {
            "<" | "|" => Some((dtype, Order::Little)),
            ">" => Some((dtype, Order::Big)),
            _ => None,
        }
    }

    /// Bytes, also where Python 3 had to write them as text for an old protocol.
    fn raw_bytes(&mut self, id: Id) -> Result<Option<Bytes>, PickleError> {
        let pickle = self.pickle;
        match pickle.get(id) {
            Some(Object::Bytes(bytes)) => Ok(Some(bytes.clone())),
            // How the old protocols write empty bytes.
            Some(Object::Instance { callable, arguments, .. })
                if matches!(pickle.global(*callable), Some(("__builtin__" | "builtins", "bytes"))) =>
            {
                let empty = pickle.entries(*arguments).is_some_and(<[Id]>::is_empty);
                Ok(empty.then(Bytes::new))
            }
            Some(Object::Instance { callable, arguments, .. })
                if pickle.global(*callable) == Some(("_codecs", "encode")) =>
            {
                let Some(&[text, encoding]) = pickle.entries(*arguments) else { return Ok(None) };
                let (Some(Object::Text(text)), Some("latin1")) = (pickle.get(text), pickle.text(encoding).as_deref())
                else {
                    return Ok(None);
                };
                self.spend(text.len())?;
                let bytes: Option<Vec<u8>> = text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect();
                Ok(bytes.map(Bytes::from))
            }
            _ => Ok(None),
        }
    }

    fn numpy_array(&mut self, state: Option<Id>, name: &str) -> Result<ConstTensor, PickleError> {
        let pickle = self.pickle;
        let Some(&[_version, shape, dtype, fortran, raw]) = state.and_then(|s| pickle.entries(s)) else {
            return Err(bad_tensor(name, "its state is not that of a numpy array"));
        };
        let layout = match pickle.get(fortran) {
            Some(Object::Bool(true) | Object::Int(1)) => Layout::Fortran,
            Some(Object::Bool(false) | Object::Int(0)) => Layout::C,
            _ => return Err(bad_tensor(name, "its order is neither C nor Fortran")),
        };
        self.numpy(shape, dtype, raw, layout, name)
    }

    fn numpy_buffer(&mut self, arguments: Id, name: &str) -> Result<ConstTensor, PickleError> {
        let pickle = self.pickle;
        let Some(&[raw, dtype, shape, order]) = pickle.entries(arguments) else {
            return Err(bad_tensor(name, "its arguments are not those of a numpy array"));
        };
        let layout = match pickle.text(order).as_deref() {
            Some("F") => Layout::Fortran,
            Some("C") => Layout::C,
            _ => return Err(bad_tensor(name, "its order is neither C nor Fortran")),
        };
        self.numpy(shape, dtype, raw, layout, name)
    }

    fn numpy(&mut self, shape: Id, dtype: Id, raw: Id, layout: Layout, name: &str) -> Result<ConstTensor, PickleError> {
        let dims = self.shape(shape, name)?;
        let (dtype, order) =
            self.numpy_type(dtype).ok_or_else(|| bad_tensor(name, "its type is no plain number type"))?;
        let raw = self.raw_bytes(raw)?.ok_or_else(|| bad_tensor(name, "its elements are no bytes"))?;
        let strides = match layout {
            Layout::C => contiguous(&dims),
            Layout::Fortran => {
                let reversed: Vec<usize> = dims.iter().rev().copied().collect();
                contiguous(&reversed).map(|s| s.into_iter().rev().collect())
            }
        };
        let wrong_length = || bad_tensor(name, "its bytes have another length than shape and type ask for");
        let strides = strides.ok_or_else(wrong_length)?;
        let whole = ConstTensor::new(dtype, dims.clone(), raw.clone()).ok_or_else(wrong_length)?;
        let bytes = match (layout, order) {
            (Layout::C, Order::Little) => return Ok(whole),
            _ => self.gather(&raw, dtype, 0, &dims, &strides, name)?,
        };
        let bytes = match (order, dtype.bytes()) {
            (Order::Big, Some(width)) => {
                let mut bytes = bytes;
                bytes.chunks_mut(width).for_each(<[u8]>::reverse);
                bytes
            }
            _ => bytes,
        };
        ConstTensor::new(dtype, dims, bytes).ok_or_else(wrong_length)
    }

    fn torch_tensor(&mut self, arguments: Id, name: &str) -> Result<ConstTensor, PickleError> {
        let bad = |why| bad_tensor(name, why);
        let pickle = self.pickle;
        let Some((&[storage, offset, size, stride], _)) = pickle.entries(arguments).and_then(|a| a.split_first_chunk())
        else {
            return Err(bad("its arguments are not those of a torch tensor"));
        };
        let storage = storage_id(pickle, storage).and_then(|id| self.storages.get(&id.key).cloned());
        let Storage { dtype, bytes } = storage.ok_or_else(|| bad("its storage is not in the file"))?;
        let offset =
            pickle.int(offset).and_then(|o| usize::try_from(o).ok()).ok_or_else(|| bad("its offset is bad"))?;
        let (dims, strides) = (self.shape(size, name)?, self.shape(stride, name)?);
        if dims.len() != strides.len() {
            return Err(bad("it has more or fewer strides than dimensions"));
        }
        let outside = || bad("it reaches out of its storage");
        if contiguous(&dims).as_ref() == Some(&strides) {
            let width = dtype.bytes().ok_or_else(outside)?;
            let begin = offset.checked_mul(width).ok_or_else(outside)?;
            let length = dims.iter().try_fold(width, |n, &d| n.checked_mul(d)).ok_or_else(outside)?;
            let end = begin.checked_add(length).filter(|&e| e <= bytes.len()).ok_or_else(outside)?;
            return ConstTensor::new(dtype, dims, bytes.slice(begin..end)).ok_or_else(outside);
        }
        let values = self.gather(&bytes, dtype, offset, &dims, &strides, name)?;
        ConstTensor::new(dtype, dims, values).ok_or_else(outside)
    }

    /// The elements of a strided view, in row-major order; `dims` and `strides` have one length.
    fn gather(
        &mut self,
        storage: &Bytes,
        dtype: DataType,
        offset: usize,
        dims: &[usize],
        strides: &[usize],
        name: &str,
    ) -> Result<Vec<u8>, PickleError> {
        let outside = || bad_tensor(name, "it reaches out of its storage");
        let width = dtype.bytes().ok_or_else(outside)?;
        let elements = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).ok_or_else(outside)?;
        // A view that repeats elements could be made as large as one likes.
        if elements > storage.len() / width {
            return Err(bad_tensor(name, "it has more elements than its storage"));
        }
        let length = elements.checked_mul(width).ok_or_else(outside)?;
        self.spend(length)?;
        let mut bytes = Vec::with_capacity(length);
        let mut place = vec![0usize; dims.len()];
        for _ in 0..elements {
            let at = place.iter().zip(strides).try_fold(offset, |at, (&p, &s)| at.checked_add(p.checked_mul(s)?));
            let begin = at.and_then(|at| at.checked_mul(width)).ok_or_else(outside)?;
            let element = begin.checked_add(width).and_then(|end| storage.get(begin..end)).ok_or_else(outside)?;
            bytes.extend_from_slice(element);
            for (p, &d) in place.iter_mut().zip(dims).rev() {
                *p += 1;
                if *p < d {
                    break;
                }
                *p = 0;
            }
        }
        Ok(bytes)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    C,
    Fortran,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Little,
    Big,
}

/// The strides, in elements, of a row-major tensor; `None` on overflow.
fn contiguous(dims: &[usize]) -> Option<Vec<usize>> {
    let mut strides = vec![1; dims.len()];
    let mut step = 1usize;
    for (stride, &dim) in strides.iter_mut().zip(dims).rev() {
        *stride = step;
        step = step.checked_mul(dim.max(1))?;
    }
    Some(strides)
}

fn bad_tensor(name: &str, why: &'static str) -> PickleError {
    PickleError::BadTensor { name: name.to_owned(), why }
}

fn joined(name: &str, part: &str) -> Result<String, PickleError> {
    if name.len() + part.len() >= MAX_NAME {
        return Err(PickleError::TooLarge);
    }
    Ok(if name.is_empty() { part.to_owned() } else { format!("{name}/{part}") })
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}
