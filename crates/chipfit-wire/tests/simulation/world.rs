//! Both machines, a link between them and everything that goes wrong, on one thread and one list of future events.

use std::collections::{BTreeMap, BTreeSet};

use chipfit_wire::frame::{Decoder, Encoder};
use chipfit_wire::message::{Code, Limits, Message, sha256};
use chipfit_wire::session::{
    Command, Device, DeviceAction, DeviceConfig, DeviceEvent, JobId, LinkAction, LinkEvent, LinkId, Notice, Outcome,
    Trainer, TrainerAction, TrainerConfig, TrainerEvent,
};

use crate::processor::Processor;
use crate::random::Random;
use crate::run::{Run, script};

const TICK_MS: u64 = 250;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Side {
    Trainer,
    Device,
}

/// What goes wrong next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The link breaks after so many more bytes of one direction; the other side may not notice.
    Cut,
    /// A bit of the next bytes changes.
    Corrupt,
    /// The next message is given twice, the second time later.
    Duplicate,
    /// The device's process ends and starts again.
    DeviceCrash,
    /// The trainer's process ends and goes on from its checkpoint.
    TrainerCrash,
    /// The next task never ends.
    Hang,
    /// The next task takes long.
    Slow,
    /// The processor ends by itself.
    ProcessorCrash,
    /// The processor's next task fails.
    ProcessorFails,
    /// A weight changes by itself.
    Rot,
    /// Nobody answers connections for a while.
    Unreachable,
}

const TROUBLES: [Trouble; 14] = [
    Trouble::Cut,
    Trouble::Cut,
    Trouble::Cut,
    Trouble::Corrupt,
    Trouble::Duplicate,
    Trouble::Duplicate,
    Trouble::DeviceCrash,
    Trouble::TrainerCrash,
    Trouble::Hang,
    Trouble::Slow,
    Trouble::ProcessorCrash,
    Trouble::ProcessorFails,
    Trouble::Rot,
    Trouble::Unreachable,
];

/// A future event.
#[derive(Clone, Debug)]
enum Happens {
    Tick,
    Trouble(Trouble),
    /// The trainer of this life connects.
    Connect(u64),
    Bytes {
        link: LinkId,
        to: Side,
        bytes: Vec<u8>,
    },
    Ended {
        link: LinkId,
        to: Side,
    },
    Again {
        link: LinkId,
        to: Side,
        message: Box<Message>,
    },
    Task {
        life: u64,
        job: JobId,
        event: TaskEnd,
    },
    Weights {
        life: u64,
        step: u64,
    },
    DeviceUp,
}

#[derive(Clone, Copy, Debug)]
enum TaskEnd {
    Done,
    Fails,
    Dies,
}

/// One side's end of a link.
#[derive(Clone, Debug, Default)]
struct End {
    encoder: Encoder,
    decoder: Decoder,
    closed: bool,
    /// Arrival of the last bytes sent.
    last_arrival: u64,
    /// Bytes that still get through.
    cut_after: Option<u64>,
}

/// What a simulation did.
#[derive(Clone, Debug, Default)]
pub(crate) struct Statistics {
    pub(crate) troubles: u64,
    pub(crate) trainer_bytes: u64,
    pub(crate) device_bytes: u64,
    pub(crate) connections: u64,
    pub(crate) resent: u64,
    pub(crate) lost_processors: u64,
    pub(crate) duplicates_dropped: u64,
    pub(crate) retried: u64,
    pub(crate) virtual_ms: u64,
}

/// The simulation of one seed.
pub(crate) struct World {
    now: u64,
    order: u64,
    future: BTreeMap<(u64, u64), Happens>,
    random: Random,
    trainer: Trainer,
    trainer_life: u64,
    run: Run,
    checkpoint: Run,
    waiting_for: Option<u64>,
    reloading: bool,
    command: u64,
    device: Option<Device>,
    device_config: DeviceConfig,
    device_life: u64,
    processor: Processor,
    ends: BTreeMap<(LinkId, Side), End>,
    links: LinkId,
    pending: BTreeSet<u8>,
    unreachable_until: u64,
    every: usize,
    delivered: BTreeSet<u64>,
    pub(crate) statistics: Statistics,
}

/// The number of a trouble that waits for its occasion.
fn occasion(trouble: Trouble) -> u8 {
    trouble as u8
}

fn trainer_config() -> TrainerConfig {
    TrainerConfig {
        heartbeat_ms: 500,
        silence_ms: 2_000,
        answer_ms: 20_000,
        retries: 30,
        reconnects: 100,
        run: [5; 16],
        limits: Limits { frame: 4_096, tensor: 65_536, in_flight: 65_536, sessions: 1 },
        ..TrainerConfig::default()
    }
}

impl World {
    pub(crate) fn new(seed: u64, troubles: bool) -> Self {
        let mut random = Random::new(seed);
        let run = Run::new(script(&mut random));
        let drawn = random.between(1, 16);
        let troubles_left = if troubles { drawn } else { 0 };
        let device_config = DeviceConfig {
            heartbeat_ms: 400,
            silence_ms: 2_000,
            work_deadline_ms: 4_000,
            load_deadline_ms: 4_000,
            cache_bytes: random.between(0, 2_500),
            boot: 1,
            ..DeviceConfig::default()
        };
        let mut world = Self {
            now: 0,
            order: 0,
            future: BTreeMap::new(),
            random,
            trainer: Trainer::new(trainer_config()),
            trainer_life: 1,
            checkpoint: run.clone(),
            run,
            waiting_for: None,
            reloading: false,
            command: 0,
            device: Some(Device::new(device_config.clone(), None)),
            device_config,
            device_life: 1,
            processor: Processor::default(),
            ends: BTreeMap::new(),
            links: 0,
            pending: BTreeSet::new(),
            unreachable_until: 0,
            every: 1,
            delivered: BTreeSet::new(),
            statistics: Statistics::default(),
        };
        world.every = world.random.between(1, 4) as usize;
        world.at(TICK_MS, Happens::Tick);
        // Half of the seeds have their troubles at once, half spread out.
        let longest = if world.random.chance(50) { 150 } else { 700 };
        let mut when = 0;
        for _ in 0..troubles_left {
            when += world.random.between(1, longest);
            let trouble = TROUBLES[world.random.between(0, TROUBLES.len() as u64) as usize];
            world.at(when, Happens::Trouble(trouble));
        }
        world
    }

    fn at(&mut self, after: u64, happens: Happens) {
        self.order += 1;
        self.future.insert((self.now + after, self.order), happens);
    }

    /// Runs to the end; the results, or which promise was broken.
    pub(crate) fn finish(&mut self) -> Result<Vec<[u8; 32]>, String> {
        self.issue()?;
        let mut events = 0;
        while !self.run.is_done() {
            let Some(((time, _), happens)) = self.future.pop_first() else { return Err("nothing happens".to_owned()) };
            self.now = time;
            events += 1;
            if time > 900_000 || events > 200_000 {
                return Err(format!("no end in sight at {time} ms: {:?}", self.trainer));
            }
            self.happen(happens)?;
            self.check_bounds()?;
        }
        self.statistics.virtual_ms = self.now;
        Ok(self.run.results.clone())
    }

    fn check_bounds(&self) -> Result<(), String> {
        if self.trainer.pending() > 5 {
            return Err(format!("{} commands are pending", self.trainer.pending()));
        }
        let Some(device) = &self.device else { return Ok(()) };
        let (links, requests) = device.waiting();
        if links > 4 || requests > 1 {
            return Err(format!("{links} links and {requests} requests wait"));
        }
        if device.cached_bytes() > self.device_config.cache_bytes {
            return Err(format!("the cache holds {} bytes", device.cached_bytes()));
        }
        Ok(())
    }

    fn happen(&mut self, happens: Happens) -> Result<(), String> {
        match happens {
            Happens::Tick => {
                self.at(TICK_MS, Happens::Tick);
                self.trainer_event(TrainerEvent::Tick)?;
                self.device_event(DeviceEvent::Tick)
            }
            Happens::Trouble(trouble) => self.trouble(trouble),
            Happens::Connect(life) if life == self.trainer_life => self.connect(),
            Happens::Bytes { link, to, bytes } => self.arrive(link, to, &bytes),
            Happens::Ended { link, to } => self.link_event(link, to, LinkEvent::Disconnected),
            Happens::Again { link, to, message } => self.link_event(link, to, LinkEvent::Message(*message)),
            Happens::Task { life, job, event } if life == self.device_life && self.processor.runs(job) => {
                let event = match event {
                    TaskEnd::Done => self.processor.finish(job),
                    TaskEnd::Fails => self.processor.fail(job),
                    TaskEnd::Dies => {
                        self.processor.replace();
                        DeviceEvent::Died("toy".to_owned())
                    }
                };
                self.device_event(event)
            }
            Happens::Weights { life, step } if life == self.trainer_life => {
                let (increment, hash) = (self.run.weights_increment(), sha256(&self.run.weights));
                self.trainer_event(TrainerEvent::Weights { step, increment, hash })
            }
            Happens::DeviceUp => {
                self.device = Some(Device::new(self.device_config.clone(), self.processor.file_identity()));
                Ok(())
            }
            Happens::Connect(_) | Happens::Task { .. } | Happens::Weights { .. } => Ok(()),
        }
    }

    fn trouble(&mut self, trouble: Trouble) -> Result<(), String> {
        self.statistics.troubles += 1;
        match trouble {
            Trouble::DeviceCrash => {
                if self.device.take().is_none() {
                    return Ok(());
                }
                self.device_life += 1;
                self.processor = self.processor.restarted(self.random.chance(50));
                // One shell in four forgets to say that the cache is a new one.
                if self.random.chance(75) {
                    self.device_config.boot += 1;
                }
                self.end_links_of(Side::Device);
                let down = self.random.between(1, 1_500);
                self.at(down, Happens::DeviceUp);
            }
            Trouble::TrainerCrash => {
                self.trainer_life += 1;
                self.trainer = Trainer::new(trainer_config());
                self.run = self.checkpoint.clone();
                self.command = 0;
                self.delivered.clear();
                self.end_links_of(Side::Trainer);
                self.reloading = true;
                self.waiting_for = None;
                return self.issue();
            }
            Trouble::Rot => self.processor.rot(),
            Trouble::Unreachable => self.unreachable_until = self.now + self.random.between(1, 3_000),
            other => {
                self.pending.insert(occasion(other));
            }
        }
        Ok(())
    }

    /// All links of a process that is gone: the other side hears of it, or must find out by silence.
    fn end_links_of(&mut self, dead: Side) {
        let other = if dead == Side::Trainer { Side::Device } else { Side::Trainer };
        let open: Vec<LinkId> = self
            .ends
            .iter()
            .filter(|((_, side), end)| *side == dead && !end.closed)
            .map(|((link, _), _)| *link)
            .collect();
        for link in open {
            if let Some(end) = self.ends.get_mut(&(link, dead)) {
                end.closed = true;
            }
            if self.random.chance(60) {
                let after = self.random.between(1, 100);
                self.at(after, Happens::Ended { link, to: other });
            }
        }
    }

    fn occurs(&mut self, trouble: Trouble) -> bool {
        self.pending.remove(&occasion(trouble))
    }

    fn connect(&mut self) -> Result<(), String> {
        if self.device.is_none() || self.now < self.unreachable_until {
            return self.trainer_event(TrainerEvent::Unreachable("refused".to_owned()));
        }
        self.links += 1;
        self.statistics.connections += 1;
        let link = self.links;
        self.ends.insert((link, Side::Trainer), End::default());
        self.ends.insert((link, Side::Device), End::default());
        self.device_event(DeviceEvent::Link(link, LinkEvent::Connected))?;
        self.trainer_event(TrainerEvent::Link(link, LinkEvent::Connected))
    }

    /// Gives the run's next command to the trainer.
    fn issue(&mut self) -> Result<(), String> {
        if self.run.is_done() || self.waiting_for.is_some() {
            return Ok(());
        }
        self.command += 1;
        let order = if self.reloading { self.run.reload() } else { self.run.order() };
        self.waiting_for = Some(self.command);
        self.trainer_event(TrainerEvent::Command(Command { step: self.command, order }))
    }

    fn deliver(&mut self, step: u64, outcome: Outcome) -> Result<(), String> {
        if self.waiting_for != Some(step) || !self.delivered.insert(step) {
            return Err(format!("command {step} was delivered while {:?} is waited for", self.waiting_for));
        }
        self.waiting_for = None;
        let done = match outcome {
            Outcome::Loaded if self.reloading => {
                self.reloading = false;
                false
            }
            Outcome::Loaded | Outcome::Protected => {
                self.run.take_ready();
                true
            }
            Outcome::Traced(trace) => match &self.run.trace {
                Some(before) if *before != trace => return Err("another trace the second time".to_owned()),
                _ => self.run.take_trace(trace),
            },
            Outcome::More(answers) => {
                self.run.take_more(&answers)?;
                true
            }
            Outcome::Failed(failure) => return Err(format!("command {step}: {failure:?}")),
        };
        if done && self.run.at.is_multiple_of(self.every) {
            self.checkpoint = self.run.clone();
        }
        self.issue()
    }

    fn trainer_event(&mut self, event: TrainerEvent) -> Result<(), String> {
        for action in self.trainer.step(self.now, event) {
            match action {
                TrainerAction::Connect { after_ms } => {
                    let after = after_ms + self.random.between(0, 30);
                    self.at(after, Happens::Connect(self.trainer_life));
                }
                TrainerAction::Link(link, action) => self.link_action(link, Side::Trainer, action)?,
                TrainerAction::NeedWeights { step, weights_hash } => {
                    if weights_hash != sha256(&self.run.weights) {
                        return Err("the trainer wants weights that are not the run's".to_owned());
                    }
                    let after = self.random.between(0, 20);
                    self.at(after, Happens::Weights { life: self.trainer_life, step });
                }
                TrainerAction::Deliver { step, outcome } => self.deliver(step, outcome)?,
                TrainerAction::Report(notice) => self.note(&notice)?,
            }
        }
        Ok(())
    }

    fn device_event(&mut self, event: DeviceEvent) -> Result<(), String> {
        let Some(device) = &mut self.device else { return Ok(()) };
        for action in device.step(self.now, event) {
            match action {
                DeviceAction::Link(link, action) => self.link_action(link, Side::Device, action)?,
                DeviceAction::Kill(job) => {
                    if !self.processor.runs(job) {
                        return Err(format!("task {job} is to be killed and does not run"));
                    }
                    self.processor.replace();
                }
                DeviceAction::Report(notice) => self.note(&notice)?,
                DeviceAction::Start(job, task) => {
                    self.processor.start(job, task)?;
                    let (after, event) = if self.occurs(Trouble::Hang) {
                        continue;
                    } else if self.occurs(Trouble::ProcessorCrash) {
                        (self.random.between(0, 50), TaskEnd::Dies)
                    } else if self.occurs(Trouble::ProcessorFails) {
                        (self.random.between(0, 50), TaskEnd::Fails)
                    } else if self.occurs(Trouble::Slow) {
                        (self.random.between(1_000, 3_900), TaskEnd::Done)
                    } else {
                        (self.random.between(0, 50), TaskEnd::Done)
                    };
                    self.at(after, Happens::Task { life: self.device_life, job, event });
                }
            }
        }
        Ok(())
    }

    fn note(&mut self, notice: &Notice) -> Result<(), String> {
        match notice {
            Notice::Resent { pictures } => self.statistics.resent += *pictures as u64,
            Notice::ProcessorLost { .. } => self.statistics.lost_processors += 1,
            Notice::Dropped { .. } => self.statistics.duplicates_dropped += 1,
            Notice::Retried { code: Code::Internal, text, .. } => return Err(format!("an internal error: {text}")),
            Notice::Retried { .. } => self.statistics.retried += 1,
            _ => {}
        }
        Ok(())
    }

    fn link_action(&mut self, link: LinkId, from: Side, action: LinkAction) -> Result<(), String> {
        let to = if from == Side::Trainer { Side::Device } else { Side::Trainer };
        let now = self.now;
        let latency = self.random.between(1, 40);
        let Some(end) = self.ends.get_mut(&(link, from)).filter(|end| !end.closed) else { return Ok(()) };
        match action {
            LinkAction::Agree { limits, minor } => {
                end.encoder.agree(limits, minor);
                end.decoder.agree(limits);
            }
            LinkAction::Close => {
                end.closed = true;
                let arrival = end.last_arrival.max(now) + latency;
                self.at(arrival - now, Happens::Ended { link, to });
            }
            LinkAction::Send(message) => {
                let bytes = end.encoder.encode(&message).map_err(|error| error.to_string())?;
                if !matches!(message, Message::Heartbeat(_)) {
                    match from {
                        Side::Trainer => self.statistics.trainer_bytes += bytes.len() as u64,
                        Side::Device => self.statistics.device_bytes += bytes.len() as u64,
                    }
                }
                self.transmit(link, from, to, bytes, latency);
            }
        }
        Ok(())
    }

    fn transmit(&mut self, link: LinkId, from: Side, to: Side, mut bytes: Vec<u8>, latency: u64) {
        if self.occurs(Trouble::Corrupt) {
            let at = self.random.between(0, bytes.len() as u64) as usize;
            bytes[at] ^= 1 << self.random.between(0, 8);
        }
        let cut = self.occurs(Trouble::Cut).then(|| self.random.between(0, bytes.len() as u64 + 1));
        let now = self.now;
        let Some(end) = self.ends.get_mut(&(link, from)) else { return };
        end.cut_after = end.cut_after.or(cut);
        if let Some(left) = end.cut_after {
            bytes.truncate(left as usize);
            end.cut_after = Some(left - bytes.len() as u64);
        }
        let mut arrival = end.last_arrival.max(now + latency);
        let mut rest = bytes.as_slice();
        let mut pieces = Vec::new();
        while !rest.is_empty() {
            let most = if self.random.chance(70) { rest.len() as u64 } else { rest.len().min(40) as u64 };
            let (piece, after) = rest.split_at(self.random.between(1, most + 1) as usize);
            arrival += self.random.between(0, 3);
            pieces.push((arrival, piece.to_vec()));
            rest = after;
        }
        if let Some(end) = self.ends.get_mut(&(link, from)) {
            end.last_arrival = arrival;
        }
        for (arrival, bytes) in pieces {
            self.at(arrival - now, Happens::Bytes { link, to, bytes });
        }
        if cut.is_some() {
            // The receiver hears of it or not, the sender hears of it or not; silence tells them otherwise.
            for side in [to, from] {
                if self.random.chance(60) {
                    let after = arrival - now + self.random.between(1, 100);
                    self.at(after, Happens::Ended { link, to: side });
                }
            }
        }
    }

    fn arrive(&mut self, link: LinkId, to: Side, bytes: &[u8]) -> Result<(), String> {
        let Some(end) = self.ends.get_mut(&(link, to)).filter(|end| !end.closed) else { return Ok(()) };
        let mut messages = Vec::new();
        let pushed = end.decoder.push(bytes, &mut messages);
        if end.decoder.kept_bytes() > 65_536 + 4_096 + 24 {
            return Err(format!("the decoder keeps {} bytes", end.decoder.kept_bytes()));
        }
        if messages.is_empty() && pushed.is_ok() {
            return self.link_event(link, to, LinkEvent::Alive);
        }
        for message in messages {
            if self.occurs(Trouble::Duplicate) {
                let after = if self.random.chance(50) { 0 } else { self.random.between(0, 3_000) };
                self.at(after, Happens::Again { link, to, message: Box::new(message.clone()) });
            }
            self.link_event(link, to, LinkEvent::Message(message))?;
        }
        match pushed {
            Ok(()) => Ok(()),
            Err(error) => self.link_event(link, to, LinkEvent::Refused(error)),
        }
    }

    fn link_event(&mut self, link: LinkId, to: Side, event: LinkEvent) -> Result<(), String> {
        if self.ends.get(&(link, to)).is_none_or(|end| end.closed && !matches!(event, LinkEvent::Message(_))) {
            return Ok(());
        }
        if matches!(event, LinkEvent::Disconnected)
            && let Some(end) = self.ends.get_mut(&(link, to))
        {
            end.closed = true;
        }
        match to {
            Side::Trainer => self.trainer_event(TrainerEvent::Link(link, event)),
            Side::Device => self.device_event(DeviceEvent::Link(link, event)),
        }
    }
}
