//! The device's side: one processor, one trainer at a time, one task at a time.
//!
//! A request is answered at once when what it asks for is already so, attached to the running task when that does the
//! same, put behind it otherwise (one place; a newer request takes it), and else becomes the task. A task goes on when its
//! link is lost; its result waits for the trainer to ask again.

mod requests;
mod results;

use super::pulse::Pulse;
use super::trainer::VERSIONS;
use super::{
    DeviceAction, DeviceConfig, DeviceEvent, JobId, LinkAction, LinkEvent, LinkId, Milliseconds, Notice, PictureCache,
    clip,
};
use crate::format::Blob;
use crate::frame::FrameError;
use crate::message::{
    Bye, Code, ErrorReport, Heartbeat, Held, Hello, HelloAck, Limits, Message, NewPicture, Tag, TraceBody, Work,
};
use std::collections::BTreeMap;

/// The device's state machine.
#[derive(Clone, Debug)]
pub struct Device {
    config: DeviceConfig,
    now: Milliseconds,
    /// Links without a greeting, and since when they wait.
    waiting_links: Vec<(LinkId, Milliseconds)>,
    session: Option<Session>,
    held: Held,
    cache: PictureCache<Blob>,
    job: Option<Job>,
    last_job: JobId,
    /// The request behind the running task.
    next: Option<Message>,
    /// The work that waits for pictures.
    incomplete: Option<Incomplete>,
    /// The last work's trace.
    trace: Option<TraceBody>,
    over: bool,
}

/// The trainer that was greeted.
#[derive(Clone, Debug)]
struct Session {
    link: LinkId,
    run: [u8; 16],
    pulse: Pulse,
    limits: Limits,
    /// Greatest tag of this link.
    last: Tag,
}

/// A task under way.
#[derive(Clone, Debug)]
struct Job {
    id: JobId,
    /// Whom and what it answers.
    link: LinkId,
    tag: Tag,
    since: Milliseconds,
    deadline_ms: u64,
    purpose: Purpose,
}

/// What a task brings about.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Purpose {
    Load { identity: [u8; 32], plan: [u8; 32], weights: [u8; 32] },
    Protect { plan: [u8; 32] },
    Work { digest: [u8; 32], weights: [u8; 32] },
    More { digest: [u8; 32] },
}

/// A work some of whose pictures are on their way.
#[derive(Clone, Debug)]
struct Incomplete {
    work: Work,
    inline: BTreeMap<[u8; 16], Blob>,
}

impl Device {
    /// Without a link. `model` is the identity of the model whose file the shell has kept from before.
    pub fn new(config: DeviceConfig, model: Option<[u8; 32]>) -> Self {
        let cache = PictureCache::new(config.cache_bytes);
        Self {
            config,
            now: 0,
            waiting_links: Vec::new(),
            session: None,
            held: Held { model, ..Held::default() },
            cache,
            job: None,
            last_job: 0,
            next: None,
            incomplete: None,
            trace: None,
            over: false,
        }
    }

    /// Takes one event at the time `now`; what is to be done, in order.
    pub fn step(&mut self, now: Milliseconds, event: DeviceEvent) -> Vec<DeviceAction> {
        let mut actions = Vec::new();
        self.now = self.now.max(now);
        if self.over {
            if let DeviceEvent::Link(link, LinkEvent::Connected) = event {
                actions.push(DeviceAction::Link(link, LinkAction::Close));
            }
            return actions;
        }
        match event {
            DeviceEvent::Link(link, event) => self.on_link(link, event, &mut actions),
            DeviceEvent::Tick => self.tick(&mut actions),
            DeviceEvent::Done(job, result) => self.done(job, result, &mut actions),
            DeviceEvent::Failed { job, code, text, weights } => self.failed(job, code, text, weights, &mut actions),
            DeviceEvent::Died(text) => self.processor_lost(Code::Crash, text, &mut actions),
            DeviceEvent::Shutdown => self.shut_down(&mut actions),
        }
        actions
    }

    /// What the device will hold when the task under way has succeeded.
    pub fn held(&self) -> Held {
        let mut held = Held { pictures: self.cache.pictures(), ..self.held.clone() };
        match self.job.as_ref().map(|job| &job.purpose) {
            Some(Purpose::Load { identity, plan, weights }) => {
                held.model = Some(*identity);
                held.plan = Some(*plan);
                held.weights = Some(*weights);
            }
            Some(Purpose::Protect { plan }) => held.plan = Some(*plan),
            Some(Purpose::Work { weights, digest }) => {
                held.weights = Some(*weights);
                held.trace = Some(*digest);
            }
            Some(Purpose::More { .. }) | None => {}
        }
        held
    }

    /// Bytes of pictures in the cache.
    pub fn cached_bytes(&self) -> u64 {
        self.cache.used_bytes()
    }

    /// Links that wait for their greeting, and requests that wait for the processor or for pictures.
    pub fn waiting(&self) -> (usize, usize) {
        (self.waiting_links.len(), usize::from(self.next.is_some()) + usize::from(self.incomplete.is_some()))
    }

    fn on_link(&mut self, from: LinkId, event: LinkEvent, actions: &mut Vec<DeviceAction>) {
        if matches!(event, LinkEvent::Connected) {
            if self.waiting_links.len() >= self.config.waiting_links.max(1) {
                report(from, Code::Overloaded, "too many connections wait to be greeted", actions);
                return actions.push(DeviceAction::Link(from, LinkAction::Close));
            }
            return self.waiting_links.push((from, self.now));
        }
        let now = self.now;
        let greeted = self.session.as_ref().is_some_and(|session| session.link == from);
        if !greeted && !self.waiting_links.iter().any(|&(link, _)| link == from) {
            if let LinkEvent::Message(message) = event {
                actions.push(DeviceAction::Report(Notice::Dropped { message: message.name() }));
            }
            return;
        }
        if let Some(session) = self.session.as_mut().filter(|_| greeted && !matches!(event, LinkEvent::Sent)) {
            session.pulse.hear(now);
        }
        match event {
            LinkEvent::Connected | LinkEvent::Alive | LinkEvent::Sent => {}
            LinkEvent::Disconnected => self.forget(from, "the connection ended", actions),
            LinkEvent::Refused(error) => {
                let code = match error {
                    FrameError::Version { .. } => Code::Version,
                    FrameError::TooLong { .. } | FrameError::InFlight { .. } => Code::Limits,
                    _ => Code::Malformed,
                };
                self.refuse(from, code, &error.to_string(), actions);
            }
            LinkEvent::Message(Message::Hello(hello)) if !greeted => self.greet(from, hello, actions),
            LinkEvent::Message(message) if greeted => self.on_message(from, message, actions),
            LinkEvent::Message(message) => {
                let text = format!("{} before Hello", message.name());
                self.refuse(from, Code::Unexpected, &text, actions);
            }
        }
    }

    fn greet(&mut self, link: LinkId, hello: Hello, actions: &mut Vec<DeviceAction>) {
        let Some((major, minor)) = VERSIONS.agree(hello.versions) else {
            let (low, high) = (VERSIONS.major_low, VERSIONS.major_high);
            let text = format!("this device speaks major versions {low} to {high}: update the older side");
            return self.refuse(link, Code::Version, &text, actions);
        };
        let limits = match self.config.limits.agree(hello.limits) {
            Ok(limits) => limits,
            Err(name) => {
                let text = format!("the limit '{name}' is below its minimum: raise it");
                return self.refuse(link, Code::Limits, &text, actions);
            }
        };
        if let Some(session) = &self.session {
            if session.run != hello.run {
                return self.refuse(link, Code::Busy, "another run has this device", actions);
            }
            let old = session.link;
            actions.push(DeviceAction::Link(old, LinkAction::Close));
            self.forget(old, "the same run has a new connection", actions);
        }
        self.waiting_links.retain(|&(waiting, _)| waiting != link);
        let heartbeat_ms = self.config.heartbeat_ms.min(hello.heartbeat_ms).max(1);
        let mut pulse = Pulse::new(self.now, heartbeat_ms, self.config.silence_ms);
        pulse.speak(self.now);
        self.session = Some(Session { link, run: hello.run, pulse, limits, last: Tag::default() });
        let ack = HelloAck {
            major,
            minor,
            name: clip(&self.config.name),
            description: clip(&self.config.description),
            boot: self.config.boot,
            cache_bytes: self.config.cache_bytes,
            limits,
            heartbeat_ms,
            held: self.held(),
        };
        let (peer, held) = (hello.name, ack.held.clone());
        actions.push(DeviceAction::Link(link, LinkAction::Send(ack.into())));
        actions.push(DeviceAction::Link(link, LinkAction::Agree { limits, minor }));
        actions.push(DeviceAction::Report(Notice::Greeted { peer, description: String::new(), held }));
    }

    fn tick(&mut self, actions: &mut Vec<DeviceAction>) {
        let now = self.now;
        if let Some(job) = &self.job
            && now.saturating_sub(job.since) >= job.deadline_ms
        {
            let text = format!("the processor did not answer within {} ms and was killed", job.deadline_ms);
            actions.push(DeviceAction::Kill(job.id));
            self.processor_lost(Code::Hang, text, actions);
        }
        let late = |&&(_, since): &&(LinkId, Milliseconds)| now.saturating_sub(since) >= self.config.silence_ms.max(1);
        let silent: Vec<LinkId> = self.waiting_links.iter().filter(late).map(|&(link, _)| link).collect();
        for link in silent {
            self.refuse(link, Code::Unexpected, "no Hello came", actions);
        }
        let Some(session) = &self.session else { return };
        let link = session.link;
        if session.pulse.is_dead(now) {
            actions.push(DeviceAction::Link(link, LinkAction::Close));
            self.forget(link, "the trainer was silent for too long", actions);
        } else if session.pulse.is_due(now) {
            let job = self.job.as_ref().filter(|job| job.link == link);
            let working_ms = job.map_or(0, |job| now.saturating_sub(job.since));
            let beat = Heartbeat {
                tag: job.map(|job| job.tag).unwrap_or_default(),
                working_ms: u32::try_from(working_ms).unwrap_or(u32::MAX),
            };
            self.send(link, beat.into(), actions);
        }
    }

    fn shut_down(&mut self, actions: &mut Vec<DeviceAction>) {
        if let Some(session) = self.session.take() {
            let bye = Bye { text: "the device ends".to_owned() };
            actions.push(DeviceAction::Link(session.link, LinkAction::Send(bye.into())));
            actions.push(DeviceAction::Link(session.link, LinkAction::Close));
        }
        for (link, _) in std::mem::take(&mut self.waiting_links) {
            report(link, Code::ShuttingDown, "the device ends", actions);
            actions.push(DeviceAction::Link(link, LinkAction::Close));
        }
        if let Some(job) = self.job.take() {
            actions.push(DeviceAction::Kill(job.id));
        }
        self.over = true;
    }

    /// The link is gone; the task goes on.
    fn forget(&mut self, link: LinkId, why: &str, actions: &mut Vec<DeviceAction>) {
        self.waiting_links.retain(|&(waiting, _)| waiting != link);
        if self.session.take_if(|session| session.link == link).is_some() {
            self.next = None;
            self.incomplete = None;
            actions.push(DeviceAction::Report(Notice::Lost { why: why.to_owned() }));
        }
    }

    /// Says why, and closes.
    fn refuse(&mut self, link: LinkId, code: Code, text: &str, actions: &mut Vec<DeviceAction>) {
        report(link, code, text, actions);
        actions.push(DeviceAction::Link(link, LinkAction::Close));
        self.forget(link, text, actions);
    }

    /// Sends to the session's link; a message for a link that is gone is dropped.
    fn send(&mut self, link: LinkId, message: Message, actions: &mut Vec<DeviceAction>) {
        let now = self.now;
        if let Some(session) = self.session.as_mut().filter(|session| session.link == link) {
            session.pulse.speak(now);
            actions.push(DeviceAction::Link(link, LinkAction::Send(message)));
        }
    }

    /// Says to the session's link that a request failed.
    fn send_error(&mut self, link: LinkId, tag: Tag, code: Code, text: String, actions: &mut Vec<DeviceAction>) {
        self.send(link, ErrorReport { tag, code, text: clip(&text) }.into(), actions);
    }
}

/// Says what is wrong with a link.
fn report(link: LinkId, code: Code, text: &str, actions: &mut Vec<DeviceAction>) {
    let error = ErrorReport { tag: Tag::default(), code, text: clip(text) };
    actions.push(DeviceAction::Link(link, LinkAction::Send(error.into())));
}
