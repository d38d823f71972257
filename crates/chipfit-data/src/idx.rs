//! IDX, the format of MNIST and Fashion-MNIST: a big-endian header, then unsigned bytes, plain or in gzip.
//!
//! Bytes 0 and 1 are 0, byte 2 is the element type (8: unsigned byte, the only one read), byte 3 the number of
//! dimensions, then one u32 per dimension, then the elements, last dimension fastest.

use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::GzDecoder;

use crate::DataError;

/// The element type that is read.
const UNSIGNED_BYTE: u8 = 8;
/// gzip's deflate cannot do better: a declared size beyond this share of the file is a lie.
pub(crate) const MAX_DEFLATE_RATIO: u64 = 1032;

/// The content of an IDX file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idx<'a> {
    /// The dimensions, the first is the number of pictures or labels.
    pub dims: Vec<usize>,
    /// Their product of bytes.
    pub values: &'a [u8],
}

/// Dimensions and the number of bytes before the elements.
struct Header {
    dims: Vec<usize>,
    header_bytes: usize,
    value_bytes: u64,
}

impl Header {
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let [0, 0, kind, n_dims, rest @ ..] = bytes else {
            return Err("not an IDX file: it must begin with two zero bytes, an element type and a rank".to_owned());
        };
        if *kind != UNSIGNED_BYTE {
            return Err(format!("IDX element type 0x{kind:02x} is not read; only unsigned bytes (0x08) are"));
        }
        let n_dims = usize::from(*n_dims);
        let dims: Vec<usize> = rest
            .as_chunks::<4>()
            .0
            .iter()
            .take(n_dims)
            .filter_map(|dim| usize::try_from(u32::from_be_bytes(*dim)).ok())
            .collect();
        if n_dims == 0 || dims.len() != n_dims {
            return Err(format!("the IDX header is cut short: {n_dims} dimensions are announced"));
        }
        let product = dims.iter().try_fold(1u64, |all, dim| all.checked_mul(*dim as u64));
        let value_bytes = product.ok_or_else(|| format!("IDX dimensions {dims:?} overflow"))?;
        Ok(Self { dims, header_bytes: 4 + 4 * n_dims, value_bytes })
    }

    fn total_bytes(&self) -> u64 {
        self.value_bytes.saturating_add(self.header_bytes as u64)
    }
}

/// Reads a whole IDX file that lies in memory, uncompressed.
///
/// # Errors
/// A sentence that says what is wrong: the magic number, the element type, the header or the length.
pub fn parse_idx(bytes: &[u8]) -> Result<Idx<'_>, String> {
    let header = Header::parse(bytes)?;
    let found = bytes.len() as u64;
    if found != header.total_bytes() {
        return Err(format!(
            "IDX dimensions {:?} need {} bytes, the file has {found}: it is truncated or damaged, fetch it again",
            header.dims,
            header.total_bytes()
        ));
    }
    let values = bytes.get(header.header_bytes..).unwrap_or_default();
    Ok(Idx { dims: header.dims, values })
}

/// An IDX file in memory.
pub(crate) struct IdxFile {
    pub(crate) path: PathBuf,
    bytes: Vec<u8>,
}

impl IdxFile {
    /// Reads a file, unpacking it where it is gzip; refuses it before anything large is reserved.
    pub(crate) fn read(path: &Path, max_bytes: u64) -> Result<Self, DataError> {
        let malformed = |reason: String| DataError::malformed(path, reason);
        let file_bytes = fs::metadata(path).map_err(DataError::io(path))?.len();
        let is_gzip = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gz"));
        let (first, limit) = if is_gzip {
            (prefix(open_gzip(path)?, path)?, file_bytes.saturating_mul(MAX_DEFLATE_RATIO))
        } else {
            (prefix(open(path)?, path)?, file_bytes)
        };
        let header = Header::parse(&first).map_err(malformed)?;
        let total = header.total_bytes();
        if total > limit {
            return Err(malformed(format!(
                "IDX dimensions {:?} need {total} bytes, which a file of {file_bytes} cannot hold: it is truncated or damaged, \
                 fetch it again",
                header.dims
            )));
        }
        if total > max_bytes {
            return Err(malformed(format!("{total} bytes exceed the limit of {max_bytes} for a set held in memory")));
        }
        // One byte more than announced, so that a longer file is noticed.
        let mut bytes = Vec::with_capacity(usize::try_from(total).unwrap_or(0));
        let result = if is_gzip {
            open_gzip(path)?.take(total + 1).read_to_end(&mut bytes)
        } else {
            open(path)?.take(total + 1).read_to_end(&mut bytes)
        };
        result.map_err(|error| malformed(format!("reading failed ({error}); fetch it again")))?;
        parse_idx(&bytes).map_err(malformed)?;
        Ok(Self { path: path.to_owned(), bytes })
    }

    /// Dimensions and elements.
    pub(crate) fn content(&self) -> Result<Idx<'_>, DataError> {
        parse_idx(&self.bytes).map_err(|reason| DataError::malformed(&self.path, reason))
    }

    /// The file's bytes and where the elements begin.
    pub(crate) fn into_bytes(self) -> (Vec<u8>, usize) {
        let start = Header::parse(&self.bytes).map_or(0, |header| header.header_bytes);
        (self.bytes, start)
    }
}

fn open(path: &Path) -> Result<BufReader<File>, DataError> {
    Ok(BufReader::new(File::open(path).map_err(DataError::io(path))?))
}

fn open_gzip(path: &Path) -> Result<GzDecoder<BufReader<File>>, DataError> {
    Ok(GzDecoder::new(open(path)?))
}

/// Enough bytes for the longest header.
fn prefix(reader: impl Read, path: &Path) -> Result<Vec<u8>, DataError> {
    let mut first = Vec::new();
    let result = reader.take(4 + 4 * 255).read_to_end(&mut first);
    // A damaged stream may still have given the header; the full read reports it.
    if let (Err(error), true) = (result, first.is_empty()) {
        return Err(DataError::malformed(path, format!("reading failed ({error}); fetch it again")));
    }
    Ok(first)
}

/// The picture and label files of one split in a folder.
pub(crate) struct IdxPair {
    pub(crate) split: &'static str,
    pub(crate) images: PathBuf,
    pub(crate) labels: PathBuf,
}

/// The splits that a folder has; empty where it is no IDX folder.
pub(crate) fn find_pairs(folder: &Path) -> Vec<IdxPair> {
    let file = |split: &str, kind: &str, rank: u8| {
        let plain = [format!("{split}-{kind}-idx{rank}-ubyte"), format!("{split}-{kind}.idx{rank}-ubyte")];
        let packed = plain.clone().map(|name| format!("{name}.gz"));
        plain.iter().chain(&packed).map(|name| folder.join(name)).find(|path| path.is_file())
    };
    ["train", "t10k", "test"]
        .into_iter()
        .filter_map(|split| {
            Some(IdxPair { split, images: file(split, "images", 3)?, labels: file(split, "labels", 1)? })
        })
        .collect()
}
