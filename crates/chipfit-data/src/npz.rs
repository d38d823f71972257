//! npz, numpy's archive of named arrays: a zip file whose members are npy files.
//!
//! A member's header is read and compared with the sizes of the zip directory before its elements are unpacked, and
//! those are bounded by the file's own length, so that a zip bomb is refused.

use std::io::{Read, Seek};

use zip::ZipArchive;

use crate::idx::MAX_DEFLATE_RATIO;
use crate::npy::{Header, MAX_HEADER_BYTES, NpyArray, parse_npy};

/// An open archive.
pub struct Npz<R: Read + Seek> {
    archive: ZipArchive<R>,
    file_bytes: u64,
    keys: Vec<String>,
}

impl<R: Read + Seek> Npz<R> {
    /// Opens an archive of `file_bytes` bytes.
    ///
    /// # Errors
    /// A sentence that says why it is no zip file.
    pub fn open(reader: R, file_bytes: u64) -> Result<Self, String> {
        let archive = ZipArchive::new(reader)
            .map_err(|error| format!("not an npz file ({error}); write it with numpy.savez(x=..., y=...)"))?;
        let mut keys = Vec::new();
        for raw in archive.file_names_raw() {
            // numpy drops the ending; members that are no arrays are none of ours.
            if let Some(key) = std::str::from_utf8(raw).ok().and_then(|name| name.strip_suffix(".npy")) {
                keys.push(key.to_owned());
            }
        }
        keys.sort();
        Ok(Self { archive, file_bytes, keys })
    }

    /// The arrays' names, sorted.
    pub fn keys(&self) -> &[String] {
        &self.keys
    }

    /// Reads one array of at most `max_bytes`.
    ///
    /// # Errors
    /// A sentence that names the array and says what is wrong with it.
    pub fn array(&mut self, key: &str, max_bytes: u64) -> Result<NpyArray, String> {
        self.read(key, max_bytes).map_err(|reason| format!("array '{key}': {reason}"))
    }

    fn read(&mut self, key: &str, max_bytes: u64) -> Result<NpyArray, String> {
        let damaged = |error: &dyn std::fmt::Display| format!("damaged ({error}); write the file again");
        let mut member = self.archive.by_name(&format!("{key}.npy")).map_err(|error| damaged(&error))?;
        let (packed, total) = (member.compressed_size(), member.size());
        if packed > self.file_bytes || total > packed.saturating_mul(MAX_DEFLATE_RATIO) {
            return Err(format!("{total} bytes cannot come out of {packed} in a file of {}", self.file_bytes));
        }
        let mut bytes = Vec::new();
        let first = MAX_HEADER_BYTES as u64 + 12;
        member.by_ref().take(first).read_to_end(&mut bytes).map_err(|error| damaged(&error))?;
        let header = Header::parse(&bytes)?;
        let needed = header.value_bytes.saturating_add(header.start as u64);
        if needed != total {
            return Err(format!("shape {:?} needs {needed} bytes, the archive has {total}", header.shape));
        }
        if total > max_bytes {
            return Err(format!("{total} bytes exceed the limit of {max_bytes} for a set held in memory"));
        }
        bytes.reserve_exact(usize::try_from(total).unwrap_or(0).saturating_sub(bytes.len()));
        let left = total.saturating_sub(bytes.len() as u64);
        // One byte more than announced, so that the end is reached and the checksum is checked.
        member.take(left.saturating_add(1)).read_to_end(&mut bytes).map_err(|error| damaged(&error))?;
        parse_npy(bytes)
    }
}
