//! Loaded weights: a file's tensors, and how a network's parameters are named and laid out in it.
//!
//! Three kinds of file are read: an ONNX model (initializers, by the network's own parameter names), a pickle
//! of numpy arrays and a legacy torch pickle (see [`super::pickle`]; nothing in them is ever executed). Every
//! tensor's shape is checked; a tensor that is missing or left over is an error that names it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use bytes::Bytes;

use super::{PickleError, ZooError, arrays};
use crate::onnx::{Limits, Model, ReadError};
use crate::tensor::{ConstTensor, TensorError};

/// What a weights file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WeightsFormat {
    /// An ONNX model.
    Onnx,
    /// A pickle of numpy arrays in dictionaries and lists.
    NumpyPickle,
    /// A state dictionary saved by torch in its format before zip files.
    TorchPickle,
}

impl WeightsFormat {
    /// For messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Onnx => "an ONNX model",
            Self::NumpyPickle => "a pickle of numpy arrays",
            Self::TorchPickle => "a torch pickle",
        }
    }
}

/// Why a weights file could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// The file could not be opened or read.
    #[error("cannot read '{}': {source}", path.display())]
    Io {
        /// The file.
        path: std::path::PathBuf,
        /// The operating system's word.
        source: std::io::Error,
    },
    /// The file is longer than the limit.
    #[error("'{}' has {bytes} bytes, the limit is {limit}", path.display())]
    TooLong {
        /// The file.
        path: std::path::PathBuf,
        /// Its length.
        bytes: u64,
        /// [`Limits::file_bytes`].
        limit: u64,
    },
    /// An ONNX file that is none.
    #[error(transparent)]
    Onnx(#[from] ReadError),
    /// A tensor of an ONNX file.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// A pickle that is none, or holds something else than tensors.
    #[error(transparent)]
    Pickle(#[from] PickleError),
}

/// The tensors of a weights file, by their names there.
#[derive(Clone, Debug)]
pub struct Weights {
    format: WeightsFormat,
    tensors: BTreeMap<String, ConstTensor>,
}

impl Weights {
    /// Reads a file: an ONNX model where its name ends in `.onnx`, else a pickle.
    ///
    /// # Errors
    /// [`WeightsError`].
    pub fn open(path: &Path, limits: &Limits) -> Result<Self, WeightsError> {
        if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("onnx")) {
            return Self::from_onnx(&Model::open(path, limits)?);
        }
        let io = |source| WeightsError::Io { path: path.to_owned(), source };
        let bytes = fs::metadata(path).map_err(io)?.len();
        if bytes > limits.file_bytes {
            return Err(WeightsError::TooLong { path: path.to_owned(), bytes, limit: limits.file_bytes });
        }
        Ok(Self::from_pickle(fs::read(path).map_err(io)?.into())?)
    }

    /// The float initializers of a model's main graph.
    ///
    /// # Errors
    /// [`WeightsError::Tensor`].
    pub fn from_onnx(model: &Model) -> Result<Self, WeightsError> {
        let mut tensors = BTreeMap::new();
        for tensor in &model.graph().initializer {
            let data = model.tensor(tensor)?;
            if data.dtype().is_float() {
                tensors.insert(tensor.name.clone().unwrap_or_default(), data);
            }
        }
        Ok(Self { format: WeightsFormat::Onnx, tensors })
    }

    /// The tensors of a pickle: numpy arrays, or a legacy torch file. Names of nested dictionaries and lists
    /// are joined with `/`, list entries by their position: `conv1/0`.
    ///
    /// # Errors
    /// [`PickleError`].
    pub fn from_pickle(bytes: Bytes) -> Result<Self, PickleError> {
        let (format, tensors) = arrays::read(bytes)?;
        Ok(Self { format, tensors })
    }

    /// What the file is.
    pub fn format(&self) -> WeightsFormat {
        self.format
    }

    /// Its tensors, by name.
    pub fn tensors(&self) -> &BTreeMap<String, ConstTensor> {
        &self.tensors
    }

    /// These weights as `network` reads them.
    pub(super) fn for_network(&self, network: &'static str) -> Result<Loaded<'_>, ZooError> {
        let naming = match (self.format, network) {
            (WeightsFormat::Onnx, _) => Naming::Own,
            (WeightsFormat::NumpyPickle, "squeezenet1.1") => Naming::KerasLists,
            (WeightsFormat::TorchPickle, "efficientnet-lite0") => Naming::Torch,
            (format, _) => return Err(ZooError::WeightsFormat { network, format: format.name() }),
        };
        Ok(Loaded { weights: self, naming, used: BTreeSet::new() })
    }
}

/// How a file names and lays out parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Naming {
    /// As the network itself does.
    Own,
    /// `LAYER.weight` is `LAYER/0`, filters as height, width, in, out; `LAYER.bias` is `LAYER/1`.
    KerasLists,
    /// As the network does, besides a counter `num_batches_tracked` at each normalisation, which is no weight.
    Torch,
}

/// Weights that are being handed to a network.
#[derive(Debug)]
pub(super) struct Loaded<'w> {
    weights: &'w Weights,
    naming: Naming,
    used: BTreeSet<String>,
}

impl Loaded<'_> {
    /// The values of the parameter `name`, in the order of `dims`.
    pub(super) fn take(&mut self, name: &str, dims: &[usize]) -> Result<Vec<f64>, ZooError> {
        let in_file = match self.naming {
            Naming::Own | Naming::Torch => name.to_owned(),
            Naming::KerasLists => match name.rsplit_once('.') {
                Some((layer, "weight")) => format!("{layer}/0"),
                Some((layer, "bias")) => format!("{layer}/1"),
                _ => name.to_owned(),
            },
        };
        let Some(tensor) = self.weights.tensors.get(&in_file) else {
            return Err(ZooError::MissingTensor { name: in_file });
        };
        let hwio = match (self.naming, dims) {
            (Naming::KerasLists, &[o, i, h, w]) => Some([h, w, i, o]),
            _ => None,
        };
        let want = hwio.as_ref().map_or(dims, |d| d.as_slice());
        if tensor.dims() != want {
            return Err(ZooError::WrongShape { name: in_file, want: want.to_vec(), have: tensor.dims().to_vec() });
        }
        let values = Some(tensor).filter(|t| t.dtype().is_float()).and_then(ConstTensor::to_f64_vec);
        let Some(values) = values else {
            return Err(ZooError::WrongType { name: in_file, dtype: tensor.dtype().name() });
        };
        self.used.insert(in_file);
        Ok(match hwio {
            Some(dims) => filters_from_hwio(&values, dims),
            None => values,
        })
    }

    /// An error naming the first tensor that nothing took. `constants` of the network may lie in the file too.
    pub(super) fn check_all_used(&self, constants: &BTreeSet<String>) -> Result<(), ZooError> {
        let counter = |name: &str| self.naming == Naming::Torch && name.ends_with(".num_batches_tracked");
        let extra = |name: &&String| !self.used.contains(*name) && !constants.contains(*name) && !counter(name);
        match self.weights.tensors.keys().find(extra) {
            Some(name) => Err(ZooError::ExtraTensor { name: name.clone() }),
            None => Ok(()),
        }
    }
}

/// Filters `[h, w, in, out]` as `[out, in, h, w]`. `values` has the length of `dims`.
fn filters_from_hwio(values: &[f64], [h, w, i, o]: [usize; 4]) -> Vec<f64> {
    let mut result = Vec::with_capacity(values.len());
    for out in 0..o {
        for inner in 0..i {
            result.extend((0..h * w).filter_map(|tap| values.get((tap * i + inner) * o + out)));
        }
    }
    result
}
