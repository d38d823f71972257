//! The trainer's side: one device, commands one after another, whatever the link does.
//!
//! The machine keeps two pictures: what the device is to hold, and what it is known to hold. Each time that nothing is
//! under way, [`Trainer::advance`] compares them and sends the one request that comes next: load, protect, work, more.
//! A lost link, a lost processor and a restarted device only change what is known; no case has a path of its own.

mod answers;
mod plan;

use std::collections::VecDeque;

use super::pulse::Pulse;
use super::{
    Command, Failure, LinkAction, LinkEvent, LinkId, LoadOrder, Milliseconds, Notice, Order, Outcome, PictureCache,
    TrainerAction, TrainerConfig, TrainerEvent, WorkOrder, clip,
};
use crate::format::Blob;
use crate::frame::{FrameError, MAJOR, MINOR};
use crate::message::{
    Bye, Code, ErrorReport, Heartbeat, Held, Hello, HelloAck, Limits, Message, Tag, TensorRequest, VersionRange,
};

/// Versions that this code speaks.
pub(super) const VERSIONS: VersionRange = VersionRange { major_low: MAJOR, major_high: MAJOR, minor: MINOR };

/// The trainer's state machine.
#[derive(Clone, Debug)]
pub struct Trainer {
    config: TrainerConfig,
    now: Milliseconds,
    link: Link,
    /// Links lost or not made since the last progress.
    lost: u32,
    /// What the device is known to hold; of meaning while the link is ready.
    held: Held,
    limits: Limits,
    boot: Option<u64>,
    known: PictureCache<()>,
    /// The device has pictures from before this trainer's time: send none unasked.
    guess: bool,
    /// What the device is to hold.
    desired: Option<Desired>,
    queue: VecDeque<Command>,
    current: Option<Current>,
    last_step: u64,
    last_work: Option<WorkOrder>,
    over: bool,
}

/// Where the link is.
#[derive(Clone, Debug)]
enum Link {
    /// None, and none asked for.
    None,
    /// Asked for.
    Asked,
    /// Stands; the device has not answered the greeting.
    Greeting { link: LinkId, pulse: Pulse },
    /// Both sides have agreed.
    Ready { link: LinkId, pulse: Pulse },
}

/// A model, a plan, weights.
#[derive(Clone, Debug)]
struct Desired {
    identity: [u8; 32],
    model: Blob,
    lowering: Blob,
    plan: String,
    weights: [u8; 32],
}

/// The command that is being served.
#[derive(Clone, Debug)]
struct Current {
    step: u64,
    goal: Goal,
    attempt: u32,
    failures: u32,
    /// The request that is not answered.
    asked: Option<Asked>,
    /// Not before this time is the next request sent.
    wait_until: Milliseconds,
    weights: Weights,
}

/// What the command comes down to.
#[derive(Clone, Debug)]
enum Goal {
    /// The model that is desired; the increment that gives it its weights.
    Load(Blob),
    Protect,
    Work,
    More(Vec<TensorRequest>),
}

/// An unanswered request.
#[derive(Clone, Copy, Debug)]
struct Asked {
    tag: Tag,
    kind: Request,
    since: Milliseconds,
    /// When bytes of it or of its answer last moved.
    moved: Milliseconds,
    /// The device was sent the pictures that it missed.
    supplied: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Request {
    Load,
    Protect,
    Work,
    More,
}

/// Weights for a device that lost them.
#[derive(Clone, Debug)]
enum Weights {
    NotAsked,
    Asked,
    Here(Blob),
}

impl Trainer {
    /// Without a link; the first command asks for one.
    pub fn new(config: TrainerConfig) -> Self {
        Self {
            config,
            now: 0,
            link: Link::None,
            lost: 0,
            held: Held::default(),
            limits: Limits::GREETING,
            boot: None,
            known: PictureCache::new(0),
            guess: false,
            desired: None,
            queue: VecDeque::new(),
            current: None,
            last_step: 0,
            last_work: None,
            over: false,
        }
    }

    /// Takes one event at the time `now`; what is to be done, in order.
    pub fn step(&mut self, now: Milliseconds, event: TrainerEvent) -> Vec<TrainerAction> {
        let mut actions = Vec::new();
        self.now = self.now.max(now);
        if self.over {
            if let TrainerEvent::Command(command) = event {
                actions.push(fail(command.step, None, "the session is over", 0));
            }
            return actions;
        }
        match event {
            TrainerEvent::Link(link, event) => self.on_link(link, event, &mut actions),
            TrainerEvent::Unreachable(why) => {
                if matches!(self.link, Link::Asked) {
                    self.lose(&why, &mut actions);
                }
            }
            TrainerEvent::Tick => self.tick(&mut actions),
            TrainerEvent::Command(command) => self.take(command, &mut actions),
            TrainerEvent::Weights { step, increment, hash } => self.take_weights(step, increment, hash, &mut actions),
            TrainerEvent::Shutdown => self.shut_down(&mut actions),
        }
        self.advance(&mut actions);
        actions
    }

    /// Commands that were taken and not delivered.
    pub fn pending(&self) -> usize {
        self.queue.len() + usize::from(self.current.is_some())
    }

    /// What the device is known to hold; none while the link is not ready.
    pub fn held(&self) -> Option<&Held> {
        matches!(self.link, Link::Ready { .. }).then_some(&self.held)
    }

    fn take(&mut self, command: Command, actions: &mut Vec<TrainerAction>) {
        let Command { step, .. } = command;
        if step <= self.last_step {
            let text = format!("command {step} comes after command {}: numbers must rise", self.last_step);
            actions.push(fail(step, Some(Code::Unexpected), &text, 0));
        } else if self.queue.len() >= self.config.queue.max(1) {
            let text = format!("{} commands wait already: await some first", self.queue.len());
            actions.push(fail(step, Some(Code::Overloaded), &text, 0));
        } else {
            self.last_step = step;
            self.queue.push_back(command);
        }
    }

    fn take_weights(&mut self, step: u64, increment: Blob, hash: [u8; 32], actions: &mut Vec<TrainerAction>) {
        let wanted = self.desired.as_ref().map(|desired| desired.weights);
        let Some(current) = self.current.as_mut().filter(|current| current.step == step) else { return };
        if !matches!(current.weights, Weights::Asked) {
            return;
        }
        if wanted == Some(hash) {
            current.weights = Weights::Here(increment);
        } else {
            self.give_up(Some(Code::WeightHash), "the trainer's own weights are not those of the command", actions);
        }
    }

    fn on_link(&mut self, from: LinkId, event: LinkEvent, actions: &mut Vec<TrainerAction>) {
        if matches!(event, LinkEvent::Connected) {
            if let Some(old) = self.link_id() {
                actions.push(TrainerAction::Link(old, LinkAction::Close));
            }
            return self.greet(from, actions);
        }
        if self.link_id() != Some(from) {
            if let LinkEvent::Message(message) = event {
                actions.push(TrainerAction::Report(Notice::Dropped { message: message.name() }));
            }
            return;
        }
        let now = self.now;
        if let Link::Greeting { pulse, .. } | Link::Ready { pulse, .. } = &mut self.link
            && !matches!(event, LinkEvent::Sent)
        {
            pulse.hear(now);
        }
        match event {
            LinkEvent::Connected => {}
            LinkEvent::Alive | LinkEvent::Sent => {
                if let Some(asked) = self.current.as_mut().and_then(|current| current.asked.as_mut()) {
                    asked.moved = now;
                }
            }
            LinkEvent::Disconnected => self.lose("the connection ended", actions),
            LinkEvent::Refused(error) => self.refuse(&error, actions),
            LinkEvent::Message(message) => self.on_message(message, actions),
        }
    }

    /// Sends the greeting on a fresh link.
    fn greet(&mut self, link: LinkId, actions: &mut Vec<TrainerAction>) {
        if let Some(current) = &mut self.current {
            current.asked = None;
        }
        let pulse = Pulse::new(self.now, self.config.heartbeat_ms, self.config.silence_ms);
        self.link = Link::Greeting { link, pulse };
        let hello = Hello {
            versions: VERSIONS,
            name: clip(&self.config.name),
            run: self.config.run,
            limits: self.config.limits,
            heartbeat_ms: self.config.heartbeat_ms,
        };
        self.send(hello.into(), actions);
    }

    /// Takes the device's answer to the greeting.
    fn on_greeted(&mut self, ack: HelloAck, actions: &mut Vec<TrainerAction>) {
        let Link::Greeting { link, mut pulse } = self.link else { return };
        if ack.major != MAJOR || ack.minor > MINOR {
            let text = format!("the device chose version {}.{}, which it was not offered", ack.major, ack.minor);
            return self.end(Some(Code::Version), &text, actions);
        }
        let limits = match self.config.limits.agree(ack.limits) {
            Ok(limits) => limits,
            Err(name) => {
                let text = format!("the agreed limit '{name}' is below its minimum: raise it on both sides");
                return self.end(Some(Code::Limits), &text, actions);
            }
        };
        actions.push(TrainerAction::Link(link, LinkAction::Agree { limits, minor: ack.minor }));
        pulse.agree(ack.heartbeat_ms.min(self.config.heartbeat_ms));
        self.link = Link::Ready { link, pulse };
        self.limits = limits;
        if self.boot != Some(ack.boot) {
            self.boot = Some(ack.boot);
            self.known = PictureCache::new(ack.cache_bytes);
            self.guess = ack.held.pictures > 0;
        }
        self.held = ack.held.clone();
        let (peer, description) = (ack.name, ack.description);
        actions.push(TrainerAction::Report(Notice::Greeted { peer, description, held: ack.held }));
    }

    fn refuse(&mut self, error: &FrameError, actions: &mut Vec<TrainerAction>) {
        let text = error.to_string();
        if matches!(error, FrameError::Version { .. }) {
            return self.end(Some(Code::Version), &text, actions);
        }
        let report = ErrorReport { tag: Tag::default(), code: Code::Malformed, text: clip(&text) };
        self.send(report.into(), actions);
        self.close(actions);
        self.lose(&text, actions);
    }

    fn tick(&mut self, actions: &mut Vec<TrainerAction>) {
        let now = self.now;
        let (Link::Greeting { pulse, .. } | Link::Ready { pulse, .. }) = self.link else { return };
        if pulse.is_dead(now) {
            self.close(actions);
            return self.lose("the device was silent for too long", actions);
        }
        let asked = self.current.as_ref().and_then(|current| current.asked);
        if let Some(asked) = asked
            && now.saturating_sub(asked.moved) >= self.config.answer_ms
        {
            self.close(actions);
            self.lose("the device did not answer in time", actions);
            return self.fail_once(Code::Hang, "the device did not answer in time", actions);
        }
        if matches!(self.link, Link::Ready { .. }) && pulse.is_due(now) {
            let working_ms = asked.map_or(0, |asked| now.saturating_sub(asked.since));
            let beat = Heartbeat {
                tag: asked.map(|asked| asked.tag).unwrap_or_default(),
                working_ms: u32::try_from(working_ms).unwrap_or(u32::MAX),
            };
            self.send(beat.into(), actions);
        }
    }

    fn shut_down(&mut self, actions: &mut Vec<TrainerAction>) {
        if matches!(self.link, Link::Ready { .. }) {
            self.send(Bye { text: "the trainer ends".to_owned() }.into(), actions);
        }
        self.end(None, "the trainer ends", actions);
    }

    /// Nothing goes on from here: closes the link and gives every command up.
    fn end(&mut self, code: Option<Code>, text: &str, actions: &mut Vec<TrainerAction>) {
        self.close(actions);
        self.give_up_all(code, text, actions);
        self.over = true;
    }

    /// The link is gone: asks for another one if a command needs it, or gives up.
    fn lose(&mut self, why: &str, actions: &mut Vec<TrainerAction>) {
        self.link = Link::None;
        self.lost = self.lost.saturating_add(1);
        if let Some(current) = &mut self.current {
            current.asked = None;
        }
        actions.push(TrainerAction::Report(Notice::Lost { why: why.to_owned() }));
        if self.lost > self.config.reconnects {
            let text = format!("{why}; {} connections failed one after another: is the device up?", self.lost);
            self.lost = 0;
            self.give_up_all(None, &text, actions);
        }
    }

    /// Something was achieved: patience starts anew.
    fn progress(&mut self) {
        self.lost = 0;
    }

    fn backoff(&self) -> u64 {
        let doublings = self.lost.saturating_sub(1);
        if self.lost == 0 { 0 } else { doubled(self.config.backoff_ms, doublings).min(self.config.backoff_most_ms) }
    }

    fn give_up(&mut self, code: Option<Code>, text: &str, actions: &mut Vec<TrainerAction>) {
        if let Some(current) = self.current.take() {
            actions.push(fail(current.step, code, text, current.attempt));
        }
    }

    fn give_up_all(&mut self, code: Option<Code>, text: &str, actions: &mut Vec<TrainerAction>) {
        self.give_up(code, text, actions);
        for command in std::mem::take(&mut self.queue) {
            actions.push(fail(command.step, code, text, 0));
        }
    }

    fn deliver(&mut self, outcome: Outcome, actions: &mut Vec<TrainerAction>) {
        if let Some(current) = self.current.take() {
            actions.push(TrainerAction::Deliver { step: current.step, outcome });
        }
    }

    fn link_id(&self) -> Option<LinkId> {
        match self.link {
            Link::Greeting { link, .. } | Link::Ready { link, .. } => Some(link),
            Link::None | Link::Asked => None,
        }
    }

    fn send(&mut self, message: Message, actions: &mut Vec<TrainerAction>) {
        let now = self.now;
        if let Link::Greeting { link, pulse } | Link::Ready { link, pulse } = &mut self.link {
            pulse.speak(now);
            actions.push(TrainerAction::Link(*link, LinkAction::Send(message)));
        }
    }

    fn close(&mut self, actions: &mut Vec<TrainerAction>) {
        if let Some(link) = self.link_id() {
            actions.push(TrainerAction::Link(link, LinkAction::Close));
        }
        self.link = Link::None;
    }
}

/// A wait, doubled so often.
fn doubled(wait: u64, doublings: u32) -> u64 {
    wait.saturating_mul(1 << doublings.min(20))
}

/// A command that failed.
fn fail(step: u64, code: Option<Code>, text: &str, attempts: u32) -> TrainerAction {
    let failure = Failure { code, text: text.to_owned(), attempts };
    TrainerAction::Deliver { step, outcome: Outcome::Failed(failure) }
}
