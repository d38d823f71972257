//! The incremental parser: bytes in any pieces, whole frames out.

use super::{FIRST, FrameError, HEADER_BYTES, LAST, MAGIC, MAJOR};
use crate::message::Message;

/// A whole frame whose checksums are right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its number on the stream.
    pub sequence: u32,
    /// Kind of the message.
    pub kind: u8,
    /// [`FIRST`] and [`LAST`].
    pub flags: u8,
    /// A piece of the message's body.
    pub payload: Vec<u8>,
}

/// What a checked header says.
#[derive(Clone, Debug)]
struct Header {
    kind: u8,
    flags: u8,
    length: u32,
    checksum: u32,
}

/// Cuts a byte stream into frames.
#[derive(Clone, Debug)]
pub struct FrameParser {
    limit: u32,
    sequence: u32,
    header: Vec<u8>,
    opened: Option<Header>,
    payload: Vec<u8>,
}

impl FrameParser {
    /// At the start of a stream; `limit` is the most bytes of one payload.
    pub fn new(limit: u32) -> Self {
        Self { limit, sequence: 0, header: Vec::with_capacity(HEADER_BYTES), opened: None, payload: Vec::new() }
    }

    /// Changes the limit, from the next header on.
    pub fn set_limit(&mut self, limit: u32) {
        self.limit = limit;
    }

    /// Bytes that are kept for a frame that is not complete.
    pub fn kept_bytes(&self) -> usize {
        self.header.len() + self.payload.len()
    }

    /// Bytes that are reserved for a frame that is not complete.
    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.header.capacity() + self.payload.capacity()
    }

    /// Takes bytes from the front of `bytes`, up to the end of one frame. `None` when all were taken and more are needed.
    ///
    /// # Errors
    /// [`FrameError`]; the parser is not to be used again.
    pub fn push(&mut self, bytes: &mut &[u8]) -> Result<Option<Frame>, FrameError> {
        if self.opened.is_none() {
            move_up_to(&mut self.header, bytes, HEADER_BYTES);
            let Ok(header) = <[u8; HEADER_BYTES]>::try_from(self.header.as_slice()) else { return Ok(None) };
            self.opened = Some(self.check(header)?);
        }
        let Some(Header { length, checksum: found, kind, flags }) = self.opened.clone() else { return Ok(None) };
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        move_up_to(&mut self.payload, bytes, length);
        if self.payload.len() < length {
            return Ok(None);
        }
        let sequence = self.sequence;
        let payload = std::mem::take(&mut self.payload);
        let computed = crc32fast::hash(&payload);
        if computed != found {
            return Err(FrameError::PayloadChecksum { sequence, found, computed });
        }
        self.sequence = sequence.wrapping_add(1);
        self.header.clear();
        self.opened = None;
        Ok(Some(Frame { sequence, kind, flags, payload }))
    }

    /// Judges a header, in the order of its trustworthiness: mark, checksum, then what it says.
    fn check(&self, header: [u8; HEADER_BYTES]) -> Result<Header, FrameError> {
        let sequence = self.sequence;
        let [m0, m1, m2, m3, major, _minor, kind, flags, s0, s1, s2, s3, rest @ ..] = header;
        let [l0, l1, l2, l3, p0, p1, p2, p3, h0, h1, h2, h3] = rest;
        let mark = [m0, m1, m2, m3];
        if mark != MAGIC {
            return Err(FrameError::Magic { sequence, found: mark });
        }
        let found = u32::from_le_bytes([h0, h1, h2, h3]);
        let computed = crc32fast::hash(header.split_last_chunk::<4>().map(|(said, _)| said).unwrap_or_default());
        if found != computed {
            return Err(FrameError::HeaderChecksum { sequence, found, computed });
        }
        if major != MAJOR {
            return Err(FrameError::Version { sequence, major });
        }
        let number = u32::from_le_bytes([s0, s1, s2, s3]);
        if number != sequence {
            return Err(FrameError::Sequence { expected: sequence, found: number });
        }
        if Message::name_of(kind).is_none() {
            return Err(FrameError::Kind { sequence, kind });
        }
        if flags & !(FIRST | LAST) != 0 {
            return Err(FrameError::Flags { sequence, flags, kind });
        }
        let (length, limit) = (u32::from_le_bytes([l0, l1, l2, l3]), self.limit);
        if length > limit {
            return Err(FrameError::TooLong { sequence, asked: length, limit });
        }
        if length == 0 && flags & LAST == 0 {
            return Err(FrameError::Empty { sequence });
        }
        Ok(Header { kind, flags, length, checksum: u32::from_le_bytes([p0, p1, p2, p3]) })
    }
}

/// Moves bytes from the front of `from` to the end of `to` until that has `length`; `to` grows with what came.
fn move_up_to(to: &mut Vec<u8>, from: &mut &[u8], length: usize) {
    let wanted = length.saturating_sub(to.len()).min(from.len());
    let (taken, rest) = from.split_at_checked(wanted).unwrap_or((&[], from));
    to.extend_from_slice(taken);
    *from = rest;
}
