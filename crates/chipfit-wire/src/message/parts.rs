//! What messages are made of: tags, limits, hashes, pictures, tensors, and the numbered choices.

use sha2::{Digest, Sha256};

use crate::format::{Blob, Fault, Malformed, Reader, Varint, Wire, Writer, wire_enum, wire_struct};

/// Smallest frame payload that a side may ask for, in bytes.
pub const MINIMUM_FRAME: u32 = 4096;

/// Smallest message that a side may ask for, in bytes.
pub const MINIMUM_IN_FLIGHT: u32 = 1 << 16;

/// Names one request: later requests of a session compare greater.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag {
    /// The local command that it serves, from 1.
    pub step: u64,
    /// The how many-th request for that command, from 1.
    pub attempt: u32,
}

impl Wire for Tag {
    fn format() -> String {
        "Tag".to_owned()
    }
    fn write(&self, writer: &mut Writer) {
        self.step.write(writer);
        self.attempt.write(writer);
    }
    fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self { step: reader.field("step")?, attempt: reader.field("attempt")? })
    }
}

impl Tag {
    /// The fields in the order of their bytes.
    pub fn fields() -> Vec<crate::format::Field> {
        vec![
            crate::format::Field { name: "step", format: u64::format() },
            crate::format::Field { name: "attempt", format: u32::format() },
        ]
    }
}

wire_struct! {
    /// Versions that a side speaks. The frame's header has one layout in all of them.
    #[derive(Copy)]
    VersionRange {
        /// Lowest major version.
        major_low: u8,
        /// Highest major version.
        major_high: u8,
        /// Minor version of the highest major.
        minor: u8,
    }
}

impl VersionRange {
    /// Highest version of both, with the lower minor; `None` where the ranges do not meet.
    pub fn agree(self, other: Self) -> Option<(u8, u8)> {
        let major = self.major_high.min(other.major_high);
        if major < self.major_low || major < other.major_low {
            return None;
        }
        // A side whose highest major is another one knows every minor of this one.
        let minor = |range: Self| if range.major_high == major { range.minor } else { u8::MAX };
        Some((major, minor(self).min(minor(other))))
    }

    pub(super) fn check(self) -> Result<(), Malformed> {
        if self.major_low <= self.major_high {
            return Ok(());
        }
        Err(Malformed { field: "major_low", fault: Fault::Contradiction { what: "is above 'major_high'" } })
    }
}

wire_struct! {
    /// What a side takes at most.
    #[derive(Copy)]
    Limits {
        /// Bytes of one frame's payload; at least [`MINIMUM_FRAME`].
        frame: u32,
        /// Bytes of one tensor.
        tensor: u32,
        /// Bytes of one message, which is what may be under way unanswered; at least [`MINIMUM_IN_FLIGHT`].
        in_flight: u32,
        /// Trainers at a time.
        sessions: u16,
    }
}

impl Default for Limits {
    /// Frames of 1 MiB, tensors of 256 MiB, messages of 1 GiB, one session.
    fn default() -> Self {
        Self { frame: 1 << 20, tensor: 1 << 28, in_flight: 1 << 30, sessions: 1 }
    }
}

impl Limits {
    /// What holds before both sides have agreed: one message of the smallest size, in frames of the smallest size.
    pub const GREETING: Self = Self { frame: MINIMUM_FRAME, tensor: 0, in_flight: MINIMUM_IN_FLIGHT, sessions: 1 };

    /// The lower of both, or the name of a limit that is below its minimum.
    ///
    /// # Errors
    /// `frame` or `in_flight`.
    pub fn agree(self, other: Self) -> Result<Self, &'static str> {
        let agreed = Self {
            frame: self.frame.min(other.frame),
            tensor: self.tensor.min(other.tensor),
            in_flight: self.in_flight.min(other.in_flight),
            sessions: self.sessions.min(other.sessions),
        };
        if agreed.frame < MINIMUM_FRAME {
            return Err("frame");
        }
        if agreed.in_flight < MINIMUM_IN_FLIGHT {
            return Err("in_flight");
        }
        Ok(agreed)
    }
}

wire_struct! {
    /// What a device holds.
    #[derive(Default)]
    Held {
        /// Identity of the model whose file the device has ([`model_identity`]).
        model: Option<[u8; 32]>,
        /// Hash of the weights on the processor; none when no processor is ready to work.
        weights: Option<[u8; 32]>,
        /// Hash of the protection plan that acts ([`plan_hash`]).
        plan: Option<[u8; 32]>,
        /// Digest of the work whose trace the device can send again.
        trace: Option<[u8; 32]>,
        /// Step of the last work that was finished; 0 for none.
        step: u64,
        /// Pictures in the cache.
        pictures: u64,
    }
}

wire_struct! {
    /// How a picture is seen: flipped first, then moved.
    #[derive(Copy, Default)]
    View {
        /// Left and right exchanged.
        flip: bool,
        /// Rows that the picture moves down.
        down: i8,
        /// Columns that the picture moves to the right.
        right: i8,
    }
}

wire_struct! {
    /// One picture of a work.
    #[derive(Copy)]
    PictureRef {
        /// Index in the data set; keys the draws of faults.
        id: u64,
        /// Content hash ([`picture_hash`]).
        hash: [u8; 16],
        /// How it is seen.
        view: View,
    }
}

wire_struct! {
    /// A picture's bytes: quantised, in the layout of the program's input.
    NewPicture {
        /// Content hash ([`picture_hash`]).
        hash: [u8; 16],
        /// The bytes.
        bytes: Blob,
    }
}

wire_enum! {
    /// How tensors come back.
    Mode: u8 {
        /// All bytes of every tensor.
        Straightforward = 0,
        /// Increments against the trainer's own prediction.
        Increments = 1,
    }
}

wire_enum! {
    /// Type of a tensor's elements.
    ElementType: u8 {
        /// Unsigned bytes, int8 values as their biased bytes (value + 128).
        U8 = 1,
        /// Signed bytes.
        I8 = 2,
        /// Little-endian int32.
        I32 = 3,
        /// Little-endian fp32.
        F32 = 4,
    }
}

impl ElementType {
    /// Bytes of one element.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::U8 | Self::I8 => 1,
            Self::I32 | Self::F32 => 4,
        }
    }
}

wire_enum! {
    /// What a tensor payload's bytes are.
    Encoding: u8 {
        /// The tensor's bytes as they are.
        Raw = 0,
        /// Whatever the activation encoder made of them.
        Increments = 1,
    }
}

wire_struct! {
    /// One tensor on its way to the trainer.
    TensorPayload {
        /// Number in the program; the output has its own.
        tensor: Varint,
        /// Element type.
        element: ElementType,
        /// Shape: the number of pictures, then the shape of one in the program's layout.
        shape: Vec<Varint>,
        /// What `bytes` are.
        encoding: Encoding,
        /// Of the tensor's own bytes, whatever the encoding ([`tensor_check`]).
        check: [u8; 8],
        /// The payload.
        bytes: Blob,
    }
}

wire_struct! {
    /// What the processor computed, errors included.
    TraceBody {
        /// Words struck, replicas included; none when the processor cannot know.
        strikes: Option<u64>,
        /// Nanoseconds that the device worked: the processor and the coding of its answer.
        processor_ns: u64,
        /// The output.
        output: TensorPayload,
        /// The wanted tensors, in the order of the request.
        tensors: Vec<TensorPayload>,
    }
}

wire_struct! {
    /// A question about one tensor.
    TensorRequest {
        /// Number in the program.
        tensor: Varint,
        /// What is asked; the activation encoder's own bytes.
        bytes: Blob,
    }
}

wire_struct! {
    /// The answer to one question.
    TensorAnswer {
        /// Number in the program.
        tensor: Varint,
        /// The activation encoder's own bytes.
        bytes: Blob,
    }
}

wire_enum! {
    /// What went wrong.
    Code: u16 {
        /// No version in common.
        Version = 1,
        /// A limit below its minimum, or something larger than what was agreed.
        Limits = 2,
        /// Bytes that are no frame or no message.
        Malformed = 3,
        /// A message that has no place in this state.
        Unexpected = 4,
        /// Another run has the device.
        Busy = 5,
        /// More links or requests than the device keeps.
        Overloaded = 6,
        /// The device ends.
        ShuttingDown = 7,
        /// The device has no model, or not the model that the request supposes.
        NoModel = 8,
        /// The model cannot be read or lowered.
        BadModel = 9,
        /// The plan cannot be read or does not fit the model.
        BadPlan = 10,
        /// The update starts from other weights than the device holds.
        WrongBase = 11,
        /// The update cannot be decoded or does not fit the model.
        BadUpdate = 12,
        /// The weights after the update have another hash.
        WeightHash = 13,
        /// A picture whose bytes have another hash or another length.
        BadPicture = 14,
        /// The work asks for something that the model has not.
        BadWork = 15,
        /// The trace that is meant is gone.
        NoTrace = 16,
        /// The processor did not answer before its deadline and was killed.
        Hang = 17,
        /// The processor ended by itself.
        Crash = 18,
        /// The processor says that it failed.
        Processor = 19,
        /// A defect of the program on the other side.
        Internal = 20,
    }
}

impl TraceBody {
    pub(super) fn check(&self, tensor_limit: u32) -> Result<(), Malformed> {
        for tensor in std::iter::once(&self.output).chain(&self.tensors) {
            let limit = u64::from(tensor_limit);
            let mut bytes = tensor.element.bytes();
            for extent in &tensor.shape {
                // A shape of zeros and large numbers has no elements, whatever the order.
                bytes = bytes.saturating_mul(u64::from(extent.0));
            }
            if bytes > limit {
                return Err(Malformed { field: "shape", fault: Fault::Limit { value: bytes, limit } });
            }
            if tensor.encoding == Encoding::Raw && tensor.bytes.len() as u64 != bytes {
                return Err(Malformed {
                    field: "bytes",
                    fault: Fault::Contradiction { what: "raw, and not of 'shape'" },
                });
            }
            within("bytes", tensor.bytes.len(), tensor_limit)?;
        }
        Ok(())
    }
}

/// Checks a length against the limit of tensors.
pub(super) fn within(field: &'static str, length: usize, limit: u32) -> Result<(), Malformed> {
    let (value, limit) = (length as u64, u64::from(limit));
    if value <= limit { Ok(()) } else { Err(Malformed { field, fault: Fault::Limit { value, limit } }) }
}

/// SHA-256.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// The first bytes of a SHA-256.
fn first<const N: usize>(hash: [u8; 32]) -> [u8; N] {
    std::array::from_fn(|at| hash.get(at).copied().unwrap_or_default())
}

/// Content hash of a picture: the first 16 bytes of the SHA-256 of its bytes.
pub fn picture_hash(bytes: &[u8]) -> [u8; 16] {
    first(sha256(bytes))
}

/// Check of a tensor: the first 8 bytes of the SHA-256 of its bytes.
pub fn tensor_check(bytes: &[u8]) -> [u8; 8] {
    first(sha256(bytes))
}

/// Hash of a protection plan: SHA-256 of its text.
pub fn plan_hash(plan: &str) -> [u8; 32] {
    sha256(plan.as_bytes())
}

/// Identity of a model and its lowering: SHA-256 over the model's length as u64, the model, the lowering's bytes.
pub fn model_identity(model: &[u8], lowering: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update((model.len() as u64).to_le_bytes());
    hash.update(model);
    hash.update(lowering);
    hash.finalize().into()
}
