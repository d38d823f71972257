//! Writes npz files that numpy loads: one array after the other into a temporary file, renamed when it is whole.

use std::collections::BTreeSet;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

use crate::DataError;
use crate::npy::{Header, NpyType};

/// Longest name; a zip file has 16 bits for it, less the ending.
const MAX_NAME_BYTES: usize = 65_000;
/// Elements encoded at once.
const CHUNK_ELEMS: usize = 1 << 14;

/// The elements of an array, last dimension fastest.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum ArrayData<'a> {
    /// numpy's `uint8`.
    U8(&'a [u8]),
    /// numpy's `int8`.
    I8(&'a [i8]),
    /// numpy's `int32`.
    I32(&'a [i32]),
    /// numpy's `int64`.
    I64(&'a [i64]),
    /// numpy's `float32`.
    F32(&'a [f32]),
    /// numpy's `float64`.
    F64(&'a [f64]),
}

impl ArrayData<'_> {
    fn len(&self) -> usize {
        match self {
            Self::U8(values) => values.len(),
            Self::I8(values) => values.len(),
            Self::I32(values) => values.len(),
            Self::I64(values) => values.len(),
            Self::F32(values) => values.len(),
            Self::F64(values) => values.len(),
        }
    }

    fn dtype(&self) -> NpyType {
        match self {
            Self::U8(_) => NpyType::U8,
            Self::I8(_) => NpyType::I8,
            Self::I32(_) => NpyType::I32,
            Self::I64(_) => NpyType::I64,
            Self::F32(_) => NpyType::F32,
            Self::F64(_) => NpyType::F64,
        }
    }

    fn write(&self, out: &mut impl Write) -> std::io::Result<()> {
        match self {
            Self::U8(values) => out.write_all(values),
            Self::I8(values) => encode(values, |v| v.to_le_bytes(), out),
            Self::I32(values) => encode(values, |v| v.to_le_bytes(), out),
            Self::I64(values) => encode(values, |v| v.to_le_bytes(), out),
            Self::F32(values) => encode(values, |v| v.to_le_bytes(), out),
            Self::F64(values) => encode(values, |v| v.to_le_bytes(), out),
        }
    }
}

fn encode<T: Copy, const N: usize>(values: &[T], to: fn(T) -> [u8; N], out: &mut impl Write) -> std::io::Result<()> {
    let mut bytes = Vec::with_capacity(N * CHUNK_ELEMS.min(values.len()));
    for chunk in values.chunks(CHUNK_ELEMS) {
        bytes.clear();
        bytes.extend(chunk.iter().flat_map(|value| to(*value)));
        out.write_all(&bytes)?;
    }
    Ok(())
}

/// An npz file being written. Dropped before [`NpzWriter::finish`], it leaves nothing behind.
pub struct NpzWriter {
    path: PathBuf,
    zip: ZipWriter<BufWriter<NamedTempFile>>,
    names: BTreeSet<String>,
}

impl NpzWriter {
    /// Begins a temporary file beside `path`.
    ///
    /// # Errors
    /// [`DataError::Io`] when the folder cannot be written to.
    pub fn create(path: &Path) -> Result<Self, DataError> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut builder = tempfile::Builder::new();
        builder.prefix(".npz-").suffix(".partial");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // What any new file gets; the process's mask still applies.
            builder.permissions(std::fs::Permissions::from_mode(0o666));
        }
        let file = builder.tempfile_in(folder).map_err(DataError::io(path))?;
        Ok(Self { path: path.to_owned(), zip: ZipWriter::new(BufWriter::new(file)), names: BTreeSet::new() })
    }

    /// Appends an array; `name` is its key in numpy, slashes included.
    ///
    /// # Errors
    /// [`DataError::Malformed`] for a name that is empty, too long, used before or has a NUL, and for a shape that
    /// does not fit the data; [`DataError::Io`] when writing fails.
    pub fn add(&mut self, name: &str, shape: &[usize], data: ArrayData<'_>) -> Result<(), DataError> {
        let refuse = |reason: String| DataError::malformed(&self.path, format!("array '{name}': {reason}"));
        if name.is_empty() || name.len() > MAX_NAME_BYTES || name.contains('\0') {
            return Err(refuse(format!("a name has 1 to {MAX_NAME_BYTES} bytes, none of them 0")));
        }
        if self.names.contains(name) {
            return Err(refuse("the name is used twice".to_owned()));
        }
        let elems = shape.iter().try_fold(1usize, |all, dim| all.checked_mul(*dim));
        if elems != Some(data.len()) {
            return Err(refuse(format!("shape {shape:?} does not fit {} elements", data.len())));
        }
        let header = Header::encode(data.dtype(), shape).map_err(refuse)?;
        // A fixed date: the same arrays give the same bytes.
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Deflated)
            .compression_level(Some(1))
            .last_modified_time(DateTime::default())
            .large_file(true);
        self.zip
            .start_file(format!("{name}.npy"), options)
            .map_err(|error| DataError::io(&self.path)(std::io::Error::other(error)))?;
        self.zip.write_all(&header).and_then(|()| data.write(&mut self.zip)).map_err(DataError::io(&self.path))?;
        self.names.insert(name.to_owned());
        Ok(())
    }

    /// Completes the file and gives it its name, replacing a file of that name.
    ///
    /// # Errors
    /// [`DataError::Io`]; the temporary file is removed.
    pub fn finish(self) -> Result<(), DataError> {
        let Self { path, zip, .. } = self;
        let zip_error = |error| DataError::io(&path)(std::io::Error::other::<zip::result::ZipError>(error));
        let buffered = zip.finish().map_err(zip_error)?;
        let file = buffered.into_inner().map_err(|error| DataError::io(&path)(error.into_error()))?;
        file.as_file().sync_all().map_err(DataError::io(&path))?;
        file.persist(&path).map_err(|error| DataError::io(&path)(error.error))?;
        Ok(())
    }
}
