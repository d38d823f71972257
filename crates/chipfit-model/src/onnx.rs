//! ONNX files: bytes to [`Model`] and back, with limits.
//!
//! `read` takes the file's bytes once; tensors keep slices of them, nothing is copied. `write` goes to a
//! temporary file beside the target and renames, so that no half-written output is ever seen. External
//! data is followed only inside the model's folder, and only when a tensor is asked for; on writing to
//! another folder the data files are copied by the operating system, never through memory.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use buffa::{DecodeOptions, Message as _};
use bytes::Bytes;

use crate::index::{CheckError, Index};
use crate::proto::{GraphProto, ModelProto, StringStringEntryProto, TensorProto, tensor_proto};
use crate::tensor::{ConstTensor, ExternalRef, TensorError, is_external};

/// Bounds on what a file may ask of the reader.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Longest file, in bytes; protobuf itself ends at 2 GiB.
    pub file_bytes: u64,
    /// Deepest nesting of messages (a subgraph costs four levels).
    pub nesting: u32,
    /// Memory that decoded messages may take beyond the file's own bytes.
    pub message_bytes: usize,
    /// Unknown fields that are kept.
    pub unknown_fields: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { file_bytes: (1 << 31) - 1, nesting: 100, message_bytes: 512 << 20, unknown_fields: 1_000_000 }
    }
}

/// Why a model could not be read. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The file could not be opened or read.
    #[error("cannot read '{}': {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's word.
        source: std::io::Error,
    },
    /// The file is longer than the limit.
    #[error("'{}' has {bytes} bytes, the limit is {limit}", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
        /// [`Limits::file_bytes`].
        limit: u64,
    },
    /// Not a protobuf message of the ONNX schema, or one over the limits.
    #[error("not a valid ONNX file: {0}")]
    Decode(#[from] buffa::DecodeError),
    /// Decoded, but not a model.
    #[error("not a valid ONNX model: {0}")]
    Check(#[from] CheckError),
}

/// Why a model could not be written. No file was left.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The output exists and overwriting was not asked for.
    #[error("'{}' exists; it is only replaced with --force", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("cannot write '{}': {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's word.
        source: std::io::Error,
    },
    /// Protobuf ends at 2 GiB.
    #[error("the model would take more than 2 GiB in one file; keep its weights in external data")]
    TooLong,
    /// The output would replace a file that the model keeps its weights in.
    #[error("'{}' holds the model's own external data", path.display())]
    OverData {
        /// The file.
        path: PathBuf,
    },
    /// External data that cannot be carried over.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

/// Whether an existing file may be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overwrite {
    /// Refuse.
    Never,
    /// Replace it, at once and whole.
    Replace,
}

/// An ONNX model: the decoded file, all of it, and the folder its external data is relative to.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// The decoded file. Read it freely; edit it through [`crate::Patch`].
    pub proto: ModelProto,
    /// The folder of the file, where it came from one.
    pub folder: Option<PathBuf>,
}

impl Model {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn open(path: &Path, limits: &Limits) -> Result<Self, ReadError> {
        let io = |source| ReadError::Io { path: path.to_owned(), source };
        let bytes = fs::metadata(path).map_err(io)?.len();
        if bytes > limits.file_bytes {
            return Err(ReadError::TooLong { path: path.to_owned(), bytes, limit: limits.file_bytes });
        }
        let mut model = Self::from_bytes(fs::read(path).map_err(io)?.into(), limits)?;
        model.folder = Some(path.parent().unwrap_or(Path::new("")).to_owned());
        Ok(model)
    }

    /// Decodes and checks a file's bytes; tensors keep slices of `bytes`.
    ///
    /// # Errors
    /// [`ReadError::Decode`] and [`ReadError::Check`].
    pub fn from_bytes(mut bytes: Bytes, limits: &Limits) -> Result<Self, ReadError> {
        let proto: ModelProto = DecodeOptions::new()
            .with_recursion_limit(limits.nesting)
            .with_unknown_field_limit(limits.unknown_fields)
            .with_element_memory_limit(limits.message_bytes)
            .with_max_message_size(usize::try_from(limits.file_bytes).unwrap_or(usize::MAX))
            .decode(&mut bytes)?;
        let model = Self { proto, folder: None };
        Index::new(&model).check()?;
        Ok(model)
    }

    /// The main graph.
    pub fn graph(&self) -> &GraphProto {
        &self.proto.graph
    }

    /// The version of the default operator set that governs the main graph; 1 where the file names none.
    pub fn opset(&self) -> i64 {
        crate::index::default_opset(&self.proto.opset_import)
    }

    /// The data of a tensor of this model, external data included.
    ///
    /// # Errors
    /// [`TensorError`].
    pub fn tensor(&self, tensor: &TensorProto) -> Result<ConstTensor, TensorError> {
        ConstTensor::from_proto(tensor, self.folder.as_deref())
    }

    /// The file's bytes.
    ///
    /// # Errors
    /// [`WriteError::TooLong`] over 2 GiB.
    pub fn to_bytes(&self) -> Result<Vec<u8>, WriteError> {
        self.proto.try_encode_to_vec().map_err(|_| WriteError::TooLong)
    }

    /// Writes the model to `path`, whole or not at all, with the external data it refers to.
    ///
    /// Data files are copied beside `path` under their own names when `path` lies in another folder; one that
    /// is already there must hold the same number of bytes, else `overwrite` decides.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn write(&self, path: &Path, overwrite: Overwrite) -> Result<(), WriteError> {
        self.write_bytes(&self.to_bytes()?, path, overwrite)
    }

    /// [`Self::write`] with bytes that [`Self::to_bytes`] made before: what was judged is what is kept.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn write_bytes(&self, bytes: &[u8], path: &Path, overwrite: Overwrite) -> Result<(), WriteError> {
        let io = |p: &Path| {
            let path = p.to_owned();
            move |source| WriteError::Io { path, source }
        };
        if overwrite == Overwrite::Never && path.exists() {
            return Err(WriteError::Exists { path: path.to_owned() });
        }
        let target = match path.parent() {
            Some(p) if !p.as_os_str().is_empty() => p,
            _ => Path::new("."),
        };
        // In the target's folder every data file lies under its own location.
        let own = |file: &PathBuf| {
            target.join(file).components().eq(target.join(path.file_name().unwrap_or_default()).components())
        };
        if self.external_files()?.iter().any(own) {
            return Err(WriteError::OverData { path: path.to_owned() });
        }
        self.copy_external_data(target, overwrite)?;
        write_atomically(path, bytes).map_err(io(path))
    }

    /// The data files this model refers to, each once.
    ///
    /// # Errors
    /// [`TensorError::External`] for a location that may not be followed.
    pub fn external_files(&self) -> Result<BTreeSet<PathBuf>, TensorError> {
        let index = Index::new(self);
        let mut files = BTreeSet::new();
        for tensor in index.tensors() {
            if is_external(tensor) {
                files.insert(ExternalRef::of(tensor)?.location);
            }
        }
        Ok(files)
    }

    /// The name of the first tensor whose data lies in `file`.
    fn tensor_in(&self, file: &Path) -> String {
        let lies_there = |t: &&TensorProto| ExternalRef::of(t).is_ok_and(|r| r.location == file);
        let tensor = Index::new(self).tensors().into_iter().filter(|t| is_external(t)).find(lies_there);
        tensor.and_then(|t| t.name.clone()).unwrap_or_default()
    }

    fn copy_external_data(&self, target: &Path, overwrite: Overwrite) -> Result<(), WriteError> {
        let files = self.external_files()?;
        let Some(folder) = self.folder.as_ref().filter(|_| !files.is_empty()) else { return Ok(()) };
        let from_root = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let io = |p: &Path, source| WriteError::Io { path: p.to_owned(), source };
        let from_root = from_root.canonicalize().map_err(|e| io(from_root, e))?;
        let target = target.canonicalize().map_err(|e| io(target, e))?;
        if from_root == target {
            return Ok(());
        }
        for file in files {
            let (from, to) = (from_root.join(&file), target.join(&file));
            // A link may lead anywhere; what lies outside the model's folder is not the model's to copy.
            let from = from.canonicalize().map_err(|e| io(&from, e))?;
            if !from.starts_with(&from_root) {
                return Err(TensorError::External {
                    name: self.tensor_in(&file),
                    location: file.display().to_string(),
                    why: "the location leads out of the model's folder".to_owned(),
                }
                .into());
            }
            let length = fs::metadata(&from).map_err(|e| io(&from, e))?.len();
            if let Ok(there) = fs::metadata(&to) {
                if overwrite == Overwrite::Never && there.len() != length {
                    return Err(WriteError::Exists { path: to });
                }
                if there.len() == length && overwrite == Overwrite::Never {
                    continue;
                }
            }
            if let Some(parent) = to.parent() {
                fs::create_dir_all(parent).map_err(|e| io(parent, e))?;
            }
            let partial = partial_name(&to);
            fs::copy(&from, &partial).and_then(|_| fs::rename(&partial, &to)).map_err(|e| {
                let _ = fs::remove_file(&partial);
                io(&to, e)
            })?;
        }
        Ok(())
    }
}

/// Writes `bytes` to a temporary file beside `path`, flushes it to disk and renames it.
///
/// # Errors
/// The operating system's; the temporary file is removed.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let partial = partial_name(path);
    let result = (|| {
        let mut file = fs::File::create(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&partial, path)
    })();
    if result.is_err() {
        let _ = fs::remove_file(&partial);
    }
    result
}

fn partial_name(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.tmp", std::process::id()));
    path.with_file_name(name)
}

/// Turns a tensor into one whose data lies in `location` at `offset`.
pub fn make_external(tensor: &mut TensorProto, location: &str, offset: u64, length: u64) {
    let entry = |key: &str, value: String| StringStringEntryProto {
        key: Some(key.to_owned()),
        value: Some(value),
        ..Default::default()
    };
    tensor.raw_data = None;
    tensor.data_location = Some(tensor_proto::DataLocation::EXTERNAL);
    tensor.external_data = vec![
        entry("location", location.to_owned()),
        entry("offset", offset.to_string()),
        entry("length", length.to_string()),
    ];
}
