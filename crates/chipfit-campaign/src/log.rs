//! The append-only log of a run.
//!
//! A 64-byte header (magic, format, record size, the run's identity, CRC-32), then [`Record`]s of 32 bytes in the
//! order in which they were computed. It is synced about once a second: whatever kills the process, all but the last
//! second's trials are safe. Records carry their own checksum and number, so a torn or damaged one is dropped and
//! its trial is made again; a damaged tail is cut off when the log is opened for writing.
//!
//! Promises: reading hostile bytes never panics and allocates nothing by their say; a failed write leaves a valid log.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::CampaignError;
use crate::record::{RECORD_BYTES, Record};

/// Bytes before the first record.
pub const HEADER_BYTES: usize = 64;
const MAGIC: [u8; 8] = *b"CHIPFITL";
const FORMAT: u32 = 1;
/// How long a record may wait before it is synced.
const SYNC_EVERY: Duration = Duration::from_millis(800);
/// Bytes that may wait in memory.
const BUFFER_BYTES: usize = 1 << 20;

/// What a log is written to: a file, or a test's stand-in for one that fails.
pub trait Storage {
    /// Writes all bytes at the end.
    ///
    /// # Errors
    /// The system's; some of the bytes may have been written.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Waits until everything is on the disk.
    ///
    /// # Errors
    /// The system's.
    fn sync(&mut self) -> io::Result<()>;

    /// Cuts everything from this length on.
    ///
    /// # Errors
    /// The system's.
    fn cut(&mut self, length: u64) -> io::Result<()>;
}

impl Storage for File {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }

    fn cut(&mut self, length: u64) -> io::Result<()> {
        self.set_len(length)?;
        self.seek(SeekFrom::End(0)).map(|_| ())
    }
}

/// The first bytes of the log of the run with this identity.
pub fn header(identity: &[u8; 32]) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    let fields = MAGIC
        .iter()
        .chain(&FORMAT.to_le_bytes())
        .chain(&(RECORD_BYTES as u32).to_le_bytes())
        .chain(identity)
        .copied()
        .collect::<Vec<u8>>();
    for (slot, byte) in bytes.iter_mut().zip(fields) {
        *slot = byte;
    }
    let (body, sum) = bytes.split_at_mut(HEADER_BYTES - 4);
    sum.copy_from_slice(&crc32fast::hash(body).to_le_bytes());
    bytes
}

/// What was found in a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// Whole records.
    pub records: u64,
    /// Records (or parts of one at the end) that were dropped.
    pub damaged: u64,
    /// Where the last whole record ends.
    pub end: u64,
}

/// Why bytes are no log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoLog {
    /// No header, or a damaged one.
    Header,
    /// Another run's log.
    Identity,
}

/// Reads a log; `each` is given every whole record in the order of the file.
///
/// # Errors
/// The reader's; `Ok(Err(..))` when this is no log of the run.
pub fn scan(input: impl Read, identity: &[u8; 32], mut each: impl FnMut(Record)) -> io::Result<Result<Scan, NoLog>> {
    let mut input = BufReader::with_capacity(1 << 16, input);
    let mut start = [0; HEADER_BYTES];
    if fill(&mut input, &mut start)? < HEADER_BYTES {
        return Ok(Err(NoLog::Header));
    }
    let (body, sum) = start.split_at(HEADER_BYTES - 4);
    if !body.starts_with(&MAGIC) || sum != crc32fast::hash(body).to_le_bytes() {
        return Ok(Err(NoLog::Header));
    }
    if start != header(identity) {
        return Ok(Err(NoLog::Identity));
    }
    let mut found = Scan { end: HEADER_BYTES as u64, ..Scan::default() };
    let mut at = found.end;
    let mut bytes = [0; RECORD_BYTES];
    loop {
        let got = fill(&mut input, &mut bytes)?;
        at += got as u64;
        match (got, Record::from_bytes(&bytes)) {
            (0, _) => return Ok(Ok(found)),
            (RECORD_BYTES, Some(record)) => {
                found.records += 1;
                found.end = at;
                each(record);
            }
            (RECORD_BYTES, None) => found.damaged += 1,
            _ => {
                found.damaged += 1;
                return Ok(Ok(found));
            }
        }
    }
}

/// Reads until `buffer` is full or the input ends; how many bytes were read.
fn fill(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match input.read(rest) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

/// Reads the log at `path`.
///
/// # Errors
/// [`CampaignError::Io`]; [`CampaignError::Damaged`] when it is no log of this run.
pub fn read(path: &Path, identity: &[u8; 32], each: impl FnMut(Record)) -> Result<Scan, CampaignError> {
    let file = File::open(path).map_err(CampaignError::io("read", path))?;
    scan(file, identity, each).map_err(CampaignError::io("read", path))?.map_err(|why| CampaignError::Damaged {
        path: path.to_owned(),
        what: match why {
            NoLog::Header => "no log of trials, or its first 64 bytes are damaged",
            NoLog::Identity => "the log belongs to another run",
        }
        .to_owned(),
    })
}

/// A log that is open for writing.
#[derive(Debug)]
pub struct Log<S = File> {
    storage: S,
    path: PathBuf,
    waiting: Vec<u8>,
    /// Bytes that are in the storage for certain.
    written: u64,
    is_synced: bool,
    last_sync: Instant,
}

impl Log<File> {
    /// Opens the log at `path`, gives `each` its records, and cuts off a damaged tail.
    ///
    /// # Errors
    /// As [`read`], and the system's on cutting.
    pub fn open(path: &Path, identity: &[u8; 32], each: impl FnMut(Record)) -> Result<(Self, Scan), CampaignError> {
        let found = read(path, identity, each)?;
        let mut file =
            OpenOptions::new().read(true).write(true).open(path).map_err(CampaignError::io("write", path))?;
        file.cut(found.end).map_err(CampaignError::io("cut", path))?;
        Ok((Self::new(file, path, found.end), found))
    }
}

impl<S: Storage> Log<S> {
    /// Goes on writing to a storage that holds a valid log of `length` bytes.
    pub fn new(storage: S, path: &Path, length: u64) -> Self {
        Self {
            storage,
            path: path.to_owned(),
            waiting: Vec::new(),
            written: length,
            is_synced: true,
            last_sync: Instant::now(),
        }
    }

    /// Adds a record, and syncs when the last time was about a second ago.
    ///
    /// # Errors
    /// [`CampaignError::LogWrite`]; the log holds what was written before, and is valid.
    pub fn append(&mut self, record: &Record) -> Result<(), CampaignError> {
        self.waiting.extend_from_slice(&record.to_bytes());
        self.is_synced = false;
        if self.waiting.len() >= BUFFER_BYTES {
            self.write()?;
        }
        self.sync_if_due()
    }

    /// Syncs when the last time was about a second ago and something is new.
    ///
    /// # Errors
    /// As [`Log::append`].
    pub fn sync_if_due(&mut self) -> Result<(), CampaignError> {
        if self.is_synced || self.last_sync.elapsed() < SYNC_EVERY { Ok(()) } else { self.sync() }
    }

    /// Writes and syncs everything.
    ///
    /// # Errors
    /// As [`Log::append`].
    pub fn sync(&mut self) -> Result<(), CampaignError> {
        self.write()?;
        self.storage.sync().map_err(|source| self.failure(source))?;
        self.is_synced = true;
        self.last_sync = Instant::now();
        Ok(())
    }

    fn write(&mut self) -> Result<(), CampaignError> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        if let Err(source) = self.storage.append(&self.waiting) {
            // A part may have been written: whole records of it are good, a torn one would be cut on opening.
            // Cutting now is tidier; if that fails too, the first error is the one to tell.
            let _ = self.storage.cut(self.written);
            return Err(self.failure(source));
        }
        self.written += self.waiting.len() as u64;
        self.waiting.clear();
        Ok(())
    }

    fn failure(&self, source: io::Error) -> CampaignError {
        let safe = self.written.saturating_sub(HEADER_BYTES as u64) / RECORD_BYTES as u64;
        CampaignError::LogWrite { path: self.path.clone(), safe, source }
    }
}

#[cfg(test)]
mod tests;
