//! The state machines of both ends of a link: events in, actions out, nothing else.
//!
//! [`Trainer`] serves one device: it takes commands, keeps the link, finds out what the device holds and brings it to
//! where the command needs it. [`Device`] serves one processor and one trainer at a time. Neither knows sockets, clocks
//! or threads: a shell feeds events with the time in milliseconds, and carries out the actions in their order.
//!
//! Promises: every command is delivered exactly once, as a result or as a typed failure; a result is that of an undisturbed
//! run however often links break, messages repeat or processes die, as long as the processor itself is a pure function of
//! [`crate::message::Work`]; queues are bounded; at most one request is unanswered at a time.
//! Tables of states, events and failures are in `docs/protocol.md`. Read [`Trainer`] first.

mod device;
mod pictures;
mod pulse;
mod trainer;

pub use device::Device;
pub use pictures::PictureCache;
pub use trainer::Trainer;

use crate::format::Blob;
use crate::frame::FrameError;
use crate::message::{Code, Held, Limits, Load, Message, Mode, TensorAnswer, TensorRequest, TraceBody, View, Work};

/// Time as the shell has it, in milliseconds since any moment; it never goes back.
pub type Milliseconds = u64;

/// The shell's number of a connection; never used twice in a process.
pub type LinkId = u64;

/// The device's number of a task of its processor; never used twice in a process.
pub type JobId = u64;

/// How a trainer behaves.
#[derive(Clone, Debug)]
pub struct TrainerConfig {
    /// Name for the device's log.
    pub name: String,
    /// Identity of the run: the same when it resumes, another one for every other run.
    pub run: [u8; 16],
    /// What this side takes at most.
    pub limits: Limits,
    /// Something is sent at least this often.
    pub heartbeat_ms: u32,
    /// A link that is silent this long is dead. At least twice the heartbeat.
    pub silence_ms: u64,
    /// A request has failed when for so long neither it nor its answer has moved, heartbeats or not.
    pub answer_ms: u64,
    /// Failures of one command on the device (hang, crash, wrong hash) before it is given up.
    pub retries: u32,
    /// Links lost, or not made, one after another without progress before commands are given up.
    pub reconnects: u32,
    /// Wait before the second connection; doubled with each failure.
    pub backoff_ms: u64,
    /// Longest wait before a connection.
    pub backoff_most_ms: u64,
    /// Commands that may wait behind the current one.
    pub queue: usize,
}

impl Default for TrainerConfig {
    fn default() -> Self {
        Self {
            name: "chipfit".to_owned(),
            run: [0; 16],
            limits: Limits::default(),
            heartbeat_ms: 1_000,
            silence_ms: 10_000,
            answer_ms: 600_000,
            retries: 3,
            reconnects: 60,
            backoff_ms: 100,
            backoff_most_ms: 5_000,
            queue: 4,
        }
    }
}

/// How a device behaves.
#[derive(Clone, Debug)]
pub struct DeviceConfig {
    /// The device's name.
    pub name: String,
    /// One line about the processor.
    pub description: String,
    /// What this side takes at most.
    pub limits: Limits,
    /// Something is sent at least this often.
    pub heartbeat_ms: u32,
    /// A link that is silent this long is dead. At least twice the heartbeat.
    pub silence_ms: u64,
    /// A work that takes longer is a hang: the processor is killed.
    pub work_deadline_ms: u64,
    /// The same for loading and protecting.
    pub load_deadline_ms: u64,
    /// Bytes of pictures to keep.
    pub cache_bytes: u64,
    /// Identity of this life of the device; another number after each start.
    pub boot: u64,
    /// Links that may wait for their first message.
    pub waiting_links: usize,
}

impl Default for DeviceConfig {
    fn default() -> Self {
        Self {
            name: "device".to_owned(),
            description: String::new(),
            limits: Limits::default(),
            heartbeat_ms: 1_000,
            silence_ms: 10_000,
            work_deadline_ms: 120_000,
            load_deadline_ms: 120_000,
            cache_bytes: 1 << 28,
            boot: 0,
            waiting_links: 4,
        }
    }
}

/// What happens to a link, to either side.
#[derive(Clone, Debug)]
pub enum LinkEvent {
    /// The connection stands; nothing was sent on it.
    Connected,
    /// The connection is gone, whoever ended it. Not needed after [`LinkAction::Close`].
    Disconnected,
    /// Bytes came that completed no message: the peer lives, and what it says is under way.
    Alive,
    /// Bytes of a message have left that took more than one write: what is said is under way.
    Sent,
    /// A message came.
    Message(Message),
    /// What came is no message. The shell feeds nothing more from this link.
    Refused(FrameError),
}

/// What is to be done with a link.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "a few of them live at a time, and most of them are messages")]
pub enum LinkAction {
    /// Encode and send. At most one answer or request is under way, so that a shell's queue stays short; heartbeats may be
    /// left out while it is not empty.
    Send(Message),
    /// Both coders of this link take these limits and this minor version, after everything sent so far.
    Agree {
        /// Limits of both sides.
        limits: Limits,
        /// Minor version of both sides.
        minor: u8,
    },
    /// Send what is queued, then end the connection. Events of this link are ignored from here on.
    Close,
}

/// Happens to a trainer.
#[derive(Clone, Debug)]
pub enum TrainerEvent {
    /// Something about a link. A [`LinkEvent::Connected`] of a new number makes it the current one.
    Link(LinkId, LinkEvent),
    /// The connection that [`TrainerAction::Connect`] asked for could not be made; why, in words.
    Unreachable(String),
    /// Time has passed. Feed it several times per heartbeat.
    Tick,
    /// The local side wants something.
    Command(Command),
    /// The answer to [`TrainerAction::NeedWeights`].
    Weights {
        /// The command that needs them.
        step: u64,
        /// Increment from the model's own weights to the current ones.
        increment: Blob,
        /// Hash of the current weights.
        hash: [u8; 32],
    },
    /// The run ends: say so and close.
    Shutdown,
}

/// What the local side wants.
#[derive(Clone, Debug)]
pub struct Command {
    /// Its number, above those of all commands before.
    pub step: u64,
    /// What it wants.
    pub order: Order,
}

/// What a command wants.
#[derive(Clone, Debug)]
pub enum Order {
    /// The device holds this model. Nothing travels when it does already.
    Load(LoadOrder),
    /// The device repeats what this plan says; empty for nothing.
    Protect(String),
    /// The device computes.
    Work(WorkOrder),
    /// The device says more about tensors of the last work's trace. The outcome is [`Outcome::Traced`] when that trace was
    /// lost and computed again: decoding starts anew.
    More(Vec<TensorRequest>),
}

/// A model to hold.
#[derive(Clone, Debug)]
pub struct LoadOrder {
    /// The ONNX file.
    pub model: Blob,
    /// Options of the lowering; the agent's own bytes.
    pub lowering: Blob,
    /// Protection plan as text; empty for none.
    pub plan: String,
    /// Increment from the model's own weights to those that it is to have; empty for its own.
    pub weights: Blob,
    /// Hash of the weights after it.
    pub weights_hash: [u8; 32],
}

/// A work to do; see [`Work`].
#[derive(Clone, Debug)]
pub struct WorkOrder {
    /// Keys the draws of faults.
    pub trial: u64,
    /// Hash of the weights before the update.
    pub base_hash: [u8; 32],
    /// Increment; none when the weights stay.
    pub update: Option<Blob>,
    /// Hash of the weights after the update.
    pub weights_hash: [u8; 32],
    /// How tensors come back.
    pub mode: Mode,
    /// The pictures, in order.
    pub pictures: Vec<OrderedPicture>,
    /// Tensors to return besides the output.
    pub wanted: Vec<u32>,
    /// One per wanted tensor, or none at all.
    pub parameters: Vec<Blob>,
}

/// One picture of a work, with its bytes in case that the device lacks them.
#[derive(Clone, Debug)]
pub struct OrderedPicture {
    /// Index in the data set.
    pub id: u64,
    /// [`crate::message::picture_hash`] of `bytes`.
    pub hash: [u8; 16],
    /// How it is seen.
    pub view: View,
    /// Quantised, in the layout of the program's input.
    pub bytes: Blob,
}

/// To be done for a trainer.
#[derive(Clone, Debug, PartialEq)]
pub enum TrainerAction {
    /// Make a connection after this many milliseconds; answer with [`LinkEvent::Connected`] or
    /// [`TrainerEvent::Unreachable`].
    Connect {
        /// Wait before it.
        after_ms: u64,
    },
    /// Something with a link.
    Link(LinkId, LinkAction),
    /// The device has lost its weights: answer with [`TrainerEvent::Weights`].
    NeedWeights {
        /// The command that needs them.
        step: u64,
        /// Hash that they have.
        weights_hash: [u8; 32],
    },
    /// A command is done; it is not heard of again.
    Deliver {
        /// Which.
        step: u64,
        /// How.
        outcome: Outcome,
    },
    /// For the log and for progress.
    Report(Notice),
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The device holds the model.
    Loaded,
    /// The plan acts.
    Protected,
    /// What the processor computed.
    Traced(TraceBody),
    /// More about its tensors, one answer per request.
    More(Vec<TensorAnswer>),
    /// It could not be done.
    Failed(Failure),
}

/// Why a command could not be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text} ({attempts} attempts)")]
pub struct Failure {
    /// What went wrong; none when the device could not be reached.
    pub code: Option<Code>,
    /// In words, with what to do.
    pub text: String,
    /// Requests that were sent for it.
    pub attempts: u32,
}

/// Something worth a line in a log.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Notice {
    /// A session stands.
    Greeted {
        /// The peer's name.
        peer: String,
        /// What the device says of itself.
        description: String,
        /// What it holds.
        held: Held,
    },
    /// The link was lost.
    Lost {
        /// Why.
        why: String,
    },
    /// A request failed and is tried again.
    Retried {
        /// Which command.
        step: u64,
        /// What went wrong.
        code: Code,
        /// In words.
        text: String,
    },
    /// A message that came too late or twice was dropped.
    Dropped {
        /// Its name.
        message: &'static str,
    },
    /// The device asked for pictures that it should have had.
    Resent {
        /// How many.
        pictures: usize,
    },
    /// The processor was killed or died.
    ProcessorLost {
        /// [`Code::Hang`] or [`Code::Crash`].
        code: Code,
    },
}

/// Happens to a device.
#[derive(Clone, Debug)]
pub enum DeviceEvent {
    /// Something about a link.
    Link(LinkId, LinkEvent),
    /// Time has passed. Feed it several times per heartbeat.
    Tick,
    /// The processor has done a task.
    Done(JobId, JobResult),
    /// The processor could not do a task, and lives.
    Failed {
        /// The task.
        job: JobId,
        /// What went wrong.
        code: Code,
        /// In words.
        text: String,
        /// Hash of the weights that it holds now; none if unknown.
        weights: Option<[u8; 32]>,
    },
    /// The processor ended by itself; a new one takes its place and holds no model.
    Died(String),
    /// The device ends: say so and close.
    Shutdown,
}

/// What a processor did.
#[derive(Clone, Debug)]
pub enum JobResult {
    /// The model is loaded; the hash of the weights that it has, computed from them.
    Loaded([u8; 32]),
    /// The plan acts.
    Protected,
    /// The work is done. The shell has checked the weights' hash after the update.
    Traced(TraceBody),
    /// More about tensors.
    More(Vec<TensorAnswer>),
}

/// To be done for a device.
#[derive(Clone, Debug, PartialEq)]
pub enum DeviceAction {
    /// Something with a link.
    Link(LinkId, LinkAction),
    /// Give the processor this task; answer with [`DeviceEvent::Done`], [`DeviceEvent::Failed`] or [`DeviceEvent::Died`].
    Start(JobId, Task),
    /// End the processor at once and start a new one without a model; nothing more is expected of this task.
    Kill(JobId),
    /// For the log.
    Report(Notice),
}

/// A task of the processor. Only one is under way at a time.
#[derive(Clone, Debug, PartialEq)]
pub enum Task {
    /// Load a model. The shell keeps its file until the next one comes; `model` is none for the one kept.
    Load(Load),
    /// Protect by this plan; empty for nothing.
    Protect(String),
    /// Apply the update if there is one, check the weights' hash ([`Code::WeightHash`]), compute, keep the tensors for
    /// [`Task::More`].
    Work {
        /// The work; its update is none when the weights are already there.
        work: Work,
        /// The pictures' bytes, one per reference, before their views.
        pictures: Vec<Blob>,
    },
    /// Say more about the tensors that were kept.
    More(Vec<TensorRequest>),
}

#[cfg(test)]
mod tests;

/// Names and reasons on the wire have at most this many characters, so that they fit every link.
const TEXT_CHARACTERS: usize = 2_000;

fn clip(text: &str) -> String {
    text.chars().take(TEXT_CHARACTERS).collect()
}
