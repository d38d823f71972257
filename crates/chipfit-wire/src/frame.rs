//! Frames: what a message looks like on the byte stream, and the parser that finds frames in it.
//!
//! A message's body is cut into payloads of at most the agreed length, one frame each. A frame is a header of
//! [`HEADER_BYTES`] bytes, little-endian, and its payload:
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 0 | 4 | [`MAGIC`] |
//! | 4 | 1 | major version |
//! | 5 | 1 | minor version |
//! | 6 | 1 | kind of the message |
//! | 7 | 1 | flags: 1 first frame of a message, 2 last one |
//! | 8 | 4 | sequence number: frames of this direction before this one, modulo 2^32 |
//! | 12 | 4 | length of the payload |
//! | 16 | 4 | CRC-32 of the payload |
//! | 20 | 4 | CRC-32 of the 20 bytes before |
//!
//! Promises: the stream may be cut anywhere; no byte sequence panics; memory grows with the bytes that came and never
//! with a length that a header claims; after an error the stream is over and every later byte gives the same error.
//! Read [`Encoder`] and [`Decoder`] first.

mod parser;

pub use parser::{Frame, FrameParser};

use crate::message::{Limits, Message, MessageError};

/// First bytes of every frame.
pub const MAGIC: [u8; 4] = *b"ChFt";

/// Major version of the protocol that this code speaks.
pub const MAJOR: u8 = 1;

/// Minor version.
pub const MINOR: u8 = 0;

/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = 24;

/// Flag of a message's first frame.
pub const FIRST: u8 = 1;

/// Flag of a message's last frame.
pub const LAST: u8 = 2;

/// Why the byte stream is refused. It cannot be resumed; the link is to be closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The bytes are no frame: another protocol, or bytes were lost.
    #[error("frame {sequence}: starts with {found:02x?} instead of the protocol's mark; is the port that of a device?")]
    Magic {
        /// Frames before it.
        sequence: u32,
        /// The four bytes.
        found: [u8; 4],
    },
    /// The header was damaged.
    #[error("frame {sequence}: the header's checksum is {found:08x} and not {computed:08x}")]
    HeaderChecksum {
        /// Frames before it.
        sequence: u32,
        /// In the header.
        found: u32,
        /// Of the header's bytes.
        computed: u32,
    },
    /// The peer speaks another major version.
    #[error("frame {sequence}: major version {major}, and this side speaks {MAJOR}; update the older of both")]
    Version {
        /// Frames before it.
        sequence: u32,
        /// The peer's major version.
        major: u8,
    },
    /// A frame is missing, repeated or out of order.
    #[error("frame {expected} was due and frame {found} came")]
    Sequence {
        /// Due.
        expected: u32,
        /// In the header.
        found: u32,
    },
    /// A message that this version does not know.
    #[error("frame {sequence}: kind {kind} is no message of version {MAJOR}.{MINOR}")]
    Kind {
        /// Frames before it.
        sequence: u32,
        /// In the header.
        kind: u8,
    },
    /// Flags that do not fit the frame before, or unknown ones.
    #[error("frame {sequence}: flags {flags:#04x} and kind {kind} do not continue the frame before")]
    Flags {
        /// Frames before it.
        sequence: u32,
        /// In the header.
        flags: u8,
        /// In the header.
        kind: u8,
    },
    /// Judged from the header alone; nothing was reserved for the payload.
    #[error("frame {sequence}: a payload of {asked} bytes, above the agreed {limit}")]
    TooLong {
        /// Frames before it.
        sequence: u32,
        /// In the header.
        asked: u32,
        /// Agreed.
        limit: u32,
    },
    /// A frame that is neither a message's last one nor carries anything.
    #[error("frame {sequence}: no payload, and more to follow")]
    Empty {
        /// Frames before it.
        sequence: u32,
    },
    /// The message would exceed what was agreed to be under way.
    #[error("frame {sequence}: a message of {bytes} bytes or more, above the agreed {limit}")]
    InFlight {
        /// Frames before it.
        sequence: u32,
        /// Bytes with this frame.
        bytes: u64,
        /// Agreed.
        limit: u32,
    },
    /// The payload was damaged.
    #[error("frame {sequence}: the payload's checksum is {found:08x} and not {computed:08x}")]
    PayloadChecksum {
        /// Frames before it.
        sequence: u32,
        /// In the header.
        found: u32,
        /// Of the payload's bytes.
        computed: u32,
    },
    /// Whole frames, but no message.
    #[error(transparent)]
    Message(#[from] MessageError),
}

/// Why a message cannot be sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// The body is longer than what was agreed to be under way.
    #[error(
        "message {message} has {bytes} bytes, above the agreed {limit}: raise the limit 'in_flight' of both sides, or send less"
    )]
    InFlight {
        /// Its name.
        message: &'static str,
        /// Its bytes.
        bytes: u64,
        /// Agreed.
        limit: u32,
    },
    /// A list or text is longer than any reader takes.
    #[error(transparent)]
    Message(#[from] MessageError),
}

impl Limits {
    /// Whether a peer with these limits takes the message; the length of its body.
    ///
    /// # Errors
    /// [`EncodeError`], which says what to change.
    pub fn admit(&self, message: &Message) -> Result<u64, EncodeError> {
        let bytes = message.measure(self.tensor)?;
        let limit = self.in_flight;
        if bytes > u64::from(limit) {
            return Err(EncodeError::InFlight { message: message.name(), bytes, limit });
        }
        Ok(bytes)
    }
}

/// Turns messages into frames; one for each direction of each link.
#[derive(Clone, Debug)]
pub struct Encoder {
    limits: Limits,
    minor: u8,
    sequence: u32,
}

impl Default for Encoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Encoder {
    /// For a fresh link, with [`Limits::GREETING`].
    pub fn new() -> Self {
        Self { limits: Limits::GREETING, minor: MINOR, sequence: 0 }
    }

    /// Takes what both sides agreed on.
    pub fn agree(&mut self, limits: Limits, minor: u8) {
        self.limits = limits;
        self.minor = minor;
    }

    /// The bytes to send: all frames of the message.
    ///
    /// # Errors
    /// [`EncodeError`]; nothing was counted as sent then.
    pub fn encode(&mut self, message: &Message) -> Result<Vec<u8>, EncodeError> {
        self.limits.admit(message)?;
        let body = message.encode();
        let each = usize::try_from(self.limits.frame).unwrap_or(usize::MAX).max(1);
        let count = body.len().div_ceil(each).max(1);
        let mut wire = Vec::with_capacity(body.len() + count * HEADER_BYTES);
        for at in 0..count {
            let payload = body.get(at * each..body.len().min((at + 1) * each)).unwrap_or_default();
            let first = if at == 0 { FIRST } else { 0 };
            let last = if at + 1 == count { LAST } else { 0 };
            wire.extend_from_slice(&self.header(message.kind(), first | last, payload));
            wire.extend_from_slice(payload);
        }
        Ok(wire)
    }

    fn header(&mut self, kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut header = Vec::with_capacity(HEADER_BYTES);
        header.extend_from_slice(&MAGIC);
        header.extend_from_slice(&[MAJOR, self.minor, kind, flags]);
        header.extend_from_slice(&self.sequence.to_le_bytes());
        // A payload never exceeds a limit that is itself a u32.
        header.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes());
        header.extend_from_slice(&crc32fast::hash(payload).to_le_bytes());
        header.extend_from_slice(&crc32fast::hash(&header).to_le_bytes());
        self.sequence = self.sequence.wrapping_add(1);
        header
    }
}

/// Finds the messages in a byte stream; one for each direction of each link.
#[derive(Clone, Debug)]
pub struct Decoder {
    parser: FrameParser,
    limits: Limits,
    kind: Option<u8>,
    body: Vec<u8>,
    failed: Option<FrameError>,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// For a fresh link, with [`Limits::GREETING`].
    pub fn new() -> Self {
        let limits = Limits::GREETING;
        Self { parser: FrameParser::new(limits.frame), limits, kind: None, body: Vec::new(), failed: None }
    }

    /// Takes what both sides agreed on.
    pub fn agree(&mut self, limits: Limits) {
        self.limits = limits;
        self.parser.set_limit(limits.frame);
    }

    /// Takes bytes as they came and appends the messages that they complete.
    ///
    /// # Errors
    /// [`FrameError`], the same for ever; messages before it were appended.
    pub fn push(&mut self, mut bytes: &[u8], messages: &mut Vec<Message>) -> Result<(), FrameError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let done = loop {
            match self.parser.push(&mut bytes) {
                Ok(None) => break Ok(()),
                Ok(Some(frame)) => match self.join(frame) {
                    Ok(message) => messages.extend(message),
                    Err(error) => break Err(error),
                },
                Err(error) => break Err(error),
            }
        };
        if let Err(error) = &done {
            self.failed = Some(error.clone());
            self.body = Vec::new();
        }
        done
    }

    /// Bytes that are kept for a message that is not complete.
    pub fn kept_bytes(&self) -> usize {
        self.body.len() + self.parser.kept_bytes()
    }

    /// Adds a frame to its message; the message when it is complete.
    fn join(&mut self, frame: Frame) -> Result<Option<Message>, FrameError> {
        let Frame { sequence, kind, flags, payload } = frame;
        let fits = match self.kind {
            None => flags & FIRST != 0,
            Some(before) => flags & FIRST == 0 && kind == before,
        };
        if !fits {
            return Err(FrameError::Flags { sequence, flags, kind });
        }
        let (bytes, limit) = (self.body.len() as u64 + payload.len() as u64, self.limits.in_flight);
        if bytes > u64::from(limit) {
            return Err(FrameError::InFlight { sequence, bytes, limit });
        }
        if flags & LAST == 0 {
            self.kind = Some(kind);
            self.body.extend_from_slice(&payload);
            return Ok(None);
        }
        self.kind = None;
        let mut body = std::mem::take(&mut self.body);
        if body.is_empty() {
            body = payload;
        } else {
            body.extend_from_slice(&payload);
        }
        Ok(Some(Message::decode(kind, &body, self.limits.tensor)?))
    }
}

#[cfg(test)]
mod tests;
