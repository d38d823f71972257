//! The messages of the protocol: one struct each, its bytes and its table from one list.
//!
//! A message's body is its fields one after another, nothing between them and nothing after; formats are in
//! [`crate::format`], every byte in `docs/protocol.md`. Promises: what is written is read back equal; any other bytes
//! give a [`MessageError`] that names the message and the field, or another valid message; sizes that the bytes claim
//! reserve nothing.

mod parts;

pub use parts::{
    Code, ElementType, Encoding, Held, Limits, MINIMUM_FRAME, MINIMUM_IN_FLIGHT, Mode, NewPicture, PictureRef, Tag,
    TensorAnswer, TensorPayload, TensorRequest, TraceBody, VersionRange, View, model_identity, picture_hash, plan_hash,
    sha256, tensor_check,
};

use crate::format::{Blob, Choices, Fault, Field, Malformed, Reader, Varint, Wire, Writer, wire_struct};

/// Name and fields of every group of fields that messages are made of.
pub fn structures() -> Vec<(&'static str, Vec<Field>)> {
    vec![
        ("Tag", Tag::fields()),
        ("VersionRange", VersionRange::fields()),
        ("Limits", Limits::fields()),
        ("Held", Held::fields()),
        ("View", View::fields()),
        ("PictureRef", PictureRef::fields()),
        ("NewPicture", NewPicture::fields()),
        ("TensorPayload", TensorPayload::fields()),
        ("TraceBody", TraceBody::fields()),
        ("TensorRequest", TensorRequest::fields()),
        ("TensorAnswer", TensorAnswer::fields()),
    ]
}

/// Numbers and names of every enumeration.
pub fn enumerations() -> Vec<Choices> {
    vec![Mode::table(), ElementType::table(), Encoding::table(), Code::table()]
}

/// Why a body is no message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("message {message}: field '{field}' {fault}")]
pub struct MessageError {
    /// Name of the message.
    pub message: &'static str,
    /// Name of the innermost field.
    pub field: &'static str,
    /// What is wrong with it.
    pub fault: Fault,
}

wire_struct! {
    /// Trainer to device, first on every link: who speaks, which versions, which limits.
    Hello {
        /// Versions that the trainer speaks.
        versions: VersionRange,
        /// The trainer's name, for the device's log.
        name: String,
        /// The run: a new link with the same run replaces the old one.
        run: [u8; 16],
        /// The trainer's limits.
        limits: Limits,
        /// The trainer sends something at least this often, in milliseconds.
        heartbeat_ms: u32,
    }
}

wire_struct! {
    /// Device to trainer, the answer to [`Hello`]: what was agreed, who the device is, what it holds.
    HelloAck {
        /// Major version from here on.
        major: u8,
        /// Minor version from here on: the lower of both.
        minor: u8,
        /// The device's name.
        name: String,
        /// One line about processor, kernels, threads and faults.
        description: String,
        /// Identity of this life of the picture cache: another one means that the cache was lost.
        boot: u64,
        /// Bytes of pictures that the cache keeps; the least recently used goes first.
        cache_bytes: u64,
        /// Limits from here on: the lower of both.
        limits: Limits,
        /// The device sends something at least this often, in milliseconds; the trainer does the same.
        heartbeat_ms: u32,
        /// What the device holds.
        held: Held,
    }
}

wire_struct! {
    /// Trainer to device: hold this model with these weights and this protection.
    Load {
        /// The request.
        tag: Tag,
        /// Identity of model and lowering ([`model_identity`]).
        identity: [u8; 32],
        /// The ONNX file, or none when the device still has the model of this identity.
        model: Option<Blob>,
        /// Options of the lowering; the agent's own bytes.
        lowering: Blob,
        /// Protection plan as text; empty for none.
        plan: String,
        /// Increment from the model's own weights to the current ones; empty for none.
        weights: Blob,
        /// SHA-256 of the weights after it: all int8 weights and int32 biases.
        weights_hash: [u8; 32],
    }
}

wire_struct! {
    /// Device to trainer: the model of [`Load`] is held.
    Loaded {
        /// The request that this answers.
        tag: Tag,
        /// What the device holds now.
        held: Held,
    }
}

wire_struct! {
    /// Trainer to device: compute these units three times from now on.
    Protect {
        /// The request.
        tag: Tag,
        /// Protection plan as text; empty for none.
        plan: String,
    }
}

wire_struct! {
    /// Device to trainer: the plan of [`Protect`] acts.
    Protected {
        /// The request that this answers.
        tag: Tag,
        /// What the device holds now.
        held: Held,
    }
}

wire_struct! {
    /// Trainer to device: change the weights, compute these pictures, return these tensors.
    ///
    /// A pure function of weights, trial, pictures, views and plan: asked twice, it is answered alike.
    Work {
        /// The request.
        tag: Tag,
        /// Keys the draws of faults: the step of a run, or the trial of an evaluation.
        trial: u64,
        /// Hash of the weights that the update starts from.
        base_hash: [u8; 32],
        /// Increment of the weights; none when the device already holds them.
        update: Option<Blob>,
        /// Hash of the weights that compute: all int8 weights and int32 biases after the update.
        weights_hash: [u8; 32],
        /// How tensors come back.
        mode: Mode,
        /// The pictures, in order.
        pictures: Vec<PictureRef>,
        /// Bytes of pictures that the device has not seen.
        new_pictures: Vec<NewPicture>,
        /// Tensors to return besides the output, by their number in the program.
        wanted: Vec<Varint>,
        /// One per wanted tensor, or none at all: parameters of its encoding; the encoder's own bytes.
        parameters: Vec<Blob>,
    }
}

wire_struct! {
    /// Device to trainer: pictures that [`Work`] names and the device does not hold.
    Missing {
        /// The work.
        tag: Tag,
        /// Content hashes, each once.
        hashes: Vec<[u8; 16]>,
    }
}

wire_struct! {
    /// Trainer to device: the pictures of [`Missing`].
    Pictures {
        /// The work.
        tag: Tag,
        /// Their bytes.
        pictures: Vec<NewPicture>,
    }
}

wire_struct! {
    /// Device to trainer: what the processor computed for [`Work`].
    Trace {
        /// The request that this answers.
        tag: Tag,
        /// The tensors.
        body: TraceBody,
    }
}

wire_struct! {
    /// Trainer to device: more bytes about tensors of a trace whose decoding failed.
    More {
        /// The request.
        tag: Tag,
        /// Digest of the work whose trace is meant ([`Work::digest`]).
        work: [u8; 32],
        /// What is asked, tensor by tensor.
        requests: Vec<TensorRequest>,
    }
}

wire_struct! {
    /// Device to trainer: the answer to [`More`].
    MoreTrace {
        /// The request that this answers.
        tag: Tag,
        /// One per request, in order.
        answers: Vec<TensorAnswer>,
    }
}

wire_struct! {
    /// Either way: I live.
    Heartbeat {
        /// The request that is being worked on; zeros for none.
        tag: Tag,
        /// How long it has been worked on, in milliseconds.
        working_ms: u32,
    }
}

wire_struct! {
    /// Either way: it did not work.
    ErrorReport {
        /// The request that failed; zeros when the link itself is meant.
        tag: Tag,
        /// What went wrong.
        code: Code,
        /// The same in words, with what to do.
        text: String,
    }
}

wire_struct! {
    /// Either way: this link ends as planned.
    Bye {
        /// Why, in words.
        text: String,
    }
}

/// The messages and their numbers.
macro_rules! messages {
    ($($(#[$says:meta])* $name:ident($body:ty) = $number:literal,)*) => {
        /// One message.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Message {
            $($(#[$says])* $name($body),)*
        }

        impl Message {
            /// Number, name and fields of every message.
            pub fn tables() -> Vec<(u8, &'static str, Vec<Field>)> {
                vec![$(($number, stringify!($name), <$body>::fields())),*]
            }

            /// The number in the frame's header.
            pub const fn kind(&self) -> u8 {
                match self {
                    $(Self::$name(_) => $number,)*
                }
            }

            /// The name in `docs/protocol.md`.
            pub const fn name(&self) -> &'static str {
                match self {
                    $(Self::$name(_) => stringify!($name),)*
                }
            }

            /// The name of a number, if this version has one.
            pub const fn name_of(kind: u8) -> Option<&'static str> {
                match kind {
                    $($number => Some(stringify!($name)),)*
                    _ => None,
                }
            }

            fn write(&self, writer: &mut Writer) {
                match self {
                    $(Self::$name(body) => body.write(writer),)*
                }
            }

            fn read(kind: u8, reader: &mut Reader<'_>) -> Result<Self, Malformed> {
                match kind {
                    $($number => <$body>::read(reader).map(Self::$name),)*
                    _ => Err(reader.fault(Fault::Choice { value: u64::from(kind) })),
                }
            }
        }

        $(impl From<$body> for Message {
            fn from(body: $body) -> Self {
                Self::$name(body)
            }
        })*
    };
}

messages! {
    /// Versions and limits of the trainer.
    Hello(Hello) = 1,
    /// What was agreed and what the device holds.
    HelloAck(HelloAck) = 2,
    /// Hold this model.
    Load(Load) = 3,
    /// The model is held.
    Loaded(Loaded) = 4,
    /// Repeat these units.
    Protect(Protect) = 5,
    /// The plan acts.
    Protected(Protected) = 6,
    /// Update, compute, return.
    Work(Work) = 7,
    /// Pictures that the device does not hold.
    Missing(Missing) = 8,
    /// Their bytes.
    Pictures(Pictures) = 9,
    /// What the processor computed.
    Trace(Trace) = 10,
    /// More about some tensors.
    More(More) = 11,
    /// The answer to it.
    MoreTrace(MoreTrace) = 12,
    /// I live.
    Heartbeat(Heartbeat) = 13,
    /// It did not work.
    Error(ErrorReport) = 14,
    /// The link ends as planned.
    Bye(Bye) = 15,
}

impl Message {
    /// The body's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut counter = Writer::counting();
        self.write(&mut counter);
        let mut writer = Writer::with_capacity(counter.length());
        self.write(&mut writer);
        writer.into_bytes()
    }

    /// Length of the body in bytes, without writing it, after checking that the peer's [`Message::decode`] takes it.
    ///
    /// # Errors
    /// A list or text longer than any reader takes, a tensor above `tensor_limit`, fields that contradict each other.
    pub fn measure(&self, tensor_limit: u32) -> Result<u64, MessageError> {
        let error = |Malformed { field, fault }| MessageError { message: self.name(), field, fault };
        self.check(tensor_limit).map_err(error)?;
        let mut writer = Writer::counting();
        self.write(&mut writer);
        match writer.excess() {
            None => Ok(writer.length()),
            Some(fault) => Err(error(Malformed { field: "(a list or text)", fault })),
        }
    }

    /// Reads a body; `tensor_limit` is the most bytes of one tensor.
    ///
    /// # Errors
    /// [`MessageError`] for bytes that are no message of this kind, and for fields that contradict each other.
    pub fn decode(kind: u8, body: &[u8], tensor_limit: u32) -> Result<Self, MessageError> {
        let name = Self::name_of(kind).unwrap_or("(unknown kind)");
        let error = |Malformed { field, fault }| MessageError { message: name, field, fault };
        let mut reader = Reader::new(body);
        let message = Self::read(kind, &mut reader).map_err(error)?;
        reader.end().map_err(error)?;
        message.check(tensor_limit).map_err(error)?;
        Ok(message)
    }

    /// The request that this message makes, answers or concerns.
    pub fn tag(&self) -> Option<Tag> {
        let tag = match self {
            Self::Hello(_) | Self::HelloAck(_) | Self::Bye(_) => return None,
            Self::Load(body) => body.tag,
            Self::Loaded(body) => body.tag,
            Self::Protect(body) => body.tag,
            Self::Protected(body) => body.tag,
            Self::Work(body) => body.tag,
            Self::Missing(body) => body.tag,
            Self::Pictures(body) => body.tag,
            Self::Trace(body) => body.tag,
            Self::More(body) => body.tag,
            Self::MoreTrace(body) => body.tag,
            Self::Heartbeat(body) => body.tag,
            Self::Error(body) => body.tag,
        };
        (tag != Tag::default()).then_some(tag)
    }

    /// Checks what single fields cannot know.
    fn check(&self, tensor_limit: u32) -> Result<(), Malformed> {
        match self {
            Self::Hello(body) => body.versions.check(),
            Self::Work(body) => body.check(),
            Self::Trace(body) => body.body.check(tensor_limit),
            Self::MoreTrace(body) => {
                body.answers.iter().try_for_each(|answer| parts::within("bytes", answer.bytes.len(), tensor_limit))
            }
            _ => Ok(()),
        }
    }
}

impl Work {
    /// What this work computes, whatever the device has already: SHA-256 over trial, weights, mode, pictures, views,
    /// wanted tensors and parameters, in the bytes of the protocol. Equal digests have equal traces.
    pub fn digest(&self) -> [u8; 32] {
        let mut writer = Writer::new();
        self.trial.write(&mut writer);
        self.weights_hash.write(&mut writer);
        self.mode.write(&mut writer);
        self.pictures.write(&mut writer);
        self.wanted.write(&mut writer);
        self.parameters.write(&mut writer);
        sha256(&writer.into_bytes())
    }

    fn check(&self) -> Result<(), Malformed> {
        let fault = |field, what| Err(Malformed { field, fault: Fault::Contradiction { what } });
        if self.pictures.is_empty() {
            return fault("pictures", "a work has one picture or more");
        }
        if !self.parameters.is_empty() && self.parameters.len() != self.wanted.len() {
            return fault("parameters", "none, or as many as 'wanted'");
        }
        if self.update.is_none() && self.base_hash != self.weights_hash {
            return fault("base_hash", "equals 'weights_hash' where there is no update");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
