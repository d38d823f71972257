//! The trainer's end of one link: a thread that keeps it up, and a handle by which the caller orders and waits.
//!
//! The thread feeds [`chipfit_wire::session::Trainer`] and carries out its actions: it connects, connects again after a
//! loss, answers heartbeats while the caller computes, and brings a device that has lost its weights back to where the order
//! needs it. What cannot get better by trying again (a certificate that is not believed, a device that is another one than it
//! says) ends the link for good.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use chipfit_wire::message::{Code, HelloAck, Message};
use chipfit_wire::session::{
    Command, LinkAction, LinkEvent, LinkId, Milliseconds, Notice, Order, Outcome, Trainer, TrainerAction,
    TrainerConfig, TrainerEvent,
};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use crate::constants::Constants;
use crate::error::AgentError;
use crate::link::{Arrival, Link, QUEUED_CHUNKS};
use crate::log::LogEvent;
use crate::shape::LinkShape;
use crate::stream::{self, Connection, Counters, Peer, TrainerSecurity, is_refusal};

const TICK: Duration = Duration::from_millis(50);
/// Orders that may wait for the thread.
const QUEUED_ORDERS: usize = 4;
/// How long the device may be told of the end.
const FAREWELL: Duration = Duration::from_millis(50);

/// Takes what a link tells: the device's address, and the event.
pub type LogSink = Arc<dyn Fn(&str, LogEvent) + Send + Sync>;

/// What a link is started with.
pub(crate) struct LinkSetup {
    pub(crate) address: String,
    pub(crate) security: TrainerSecurity,
    pub(crate) shape: LinkShape,
    pub(crate) config: TrainerConfig,
    pub(crate) log: Option<LogSink>,
}

/// What happened on a link so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct LinkFacts {
    /// What the device calls itself, and says of itself.
    pub(crate) greeting: Option<(String, String)>,
    /// Sessions after the first one.
    pub(crate) reconnects: u64,
    pub(crate) hangs: u64,
    pub(crate) crashes: u64,
    pub(crate) resent_pictures: u64,
    /// Bytes of frames, headers included, without TLS.
    pub(crate) frames_sent: u64,
    pub(crate) frames_received: u64,
}

/// An order and where its outcome goes.
struct Ask {
    order: Order,
    /// The weights that the device is to have: for one that has lost them.
    weights: Arc<Constants>,
    reply: SyncSender<Result<Outcome, String>>,
}

/// The caller's handle. Dropping it says goodbye and ends the thread.
pub(crate) struct TrainerLink {
    address: String,
    asks: Option<mpsc::Sender<Ask>>,
    thread: Option<JoinHandle<()>>,
    counters: Arc<Counters>,
    facts: Arc<Mutex<LinkFacts>>,
}

impl TrainerLink {
    /// Starts the thread; it connects with the first order.
    pub(crate) fn start(setup: LinkSetup) -> Result<Self, AgentError> {
        let (asks, queue) = mpsc::channel(QUEUED_ORDERS);
        let counters = Arc::new(Counters::default());
        let facts = Arc::new(Mutex::new(LinkFacts::default()));
        let address = setup.address.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(AgentError::connection(&address))?;
        let (count, note) = (Arc::clone(&counters), Arc::clone(&facts));
        let thread = std::thread::Builder::new()
            .name(format!("link {address}"))
            .spawn(move || runtime.block_on(serve(setup, queue, count, note)))
            .map_err(AgentError::connection(&address))?;
        Ok(Self { address, asks: Some(asks), thread: Some(thread), counters, facts })
    }

    /// `HOST:PORT` of the device.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Bytes on the wire.
    pub(crate) fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// What happened so far.
    pub(crate) fn facts(&self) -> LinkFacts {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Gives an order; the outcome comes by what is returned.
    pub(crate) fn order(&self, order: Order, weights: Arc<Constants>) -> Pending {
        let (reply, outcome) = sync_channel(1);
        let ask = Ask { order, weights, reply };
        // A thread that is gone, or behind, drops the reply, and waiting for it says so.
        if let Some(asks) = &self.asks {
            let _ = asks.try_send(ask);
        }
        Pending { address: self.address.clone(), outcome }
    }
}

impl Drop for TrainerLink {
    fn drop(&mut self) {
        self.asks = None;
        if let Some(thread) = self.thread.take() {
            // A panic in the thread was told by the panic itself.
            let _ = thread.join();
        }
    }
}

/// An order whose outcome is to come.
pub(crate) struct Pending {
    address: String,
    outcome: Receiver<Result<Outcome, String>>,
}

impl Pending {
    /// Waits for the outcome.
    pub(crate) fn wait(self) -> Result<Outcome, AgentError> {
        let refused = |what: String, code| AgentError::Device { peer: self.address.clone(), code, what };
        match self.outcome.recv() {
            Ok(Ok(Outcome::Failed(failure))) => Err(refused(failure.text.clone(), failure.code)),
            Ok(Ok(outcome)) => Ok(outcome),
            Ok(Err(what)) => Err(refused(what, None)),
            Err(_) => Err(refused("the link's thread has ended".to_owned(), Some(Code::Internal))),
        }
    }
}

async fn serve(
    setup: LinkSetup,
    mut queue: mpsc::Receiver<Ask>,
    counters: Arc<Counters>,
    facts: Arc<Mutex<LinkFacts>>,
) {
    let (arrived, mut arrivals) = mpsc::channel(QUEUED_CHUNKS);
    let (made, mut connections) = mpsc::channel(2);
    let mut shell = Shell {
        trainer: Trainer::new(setup.config.clone()),
        setup,
        start: Instant::now(),
        counters,
        facts,
        link: None,
        last_link: 0,
        arrived,
        made,
        waiting: BTreeMap::new(),
        last_step: 0,
        over: None,
    };
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            ask = queue.recv() => match ask {
                Some(ask) => shell.take(ask),
                None => break,
            },
            Some(result) = connections.recv() => shell.connected(result),
            Some((link, arrival)) = arrivals.recv() => shell.arrived(link, arrival),
            _ = ticks.tick() => shell.feed(TrainerEvent::Tick),
        }
    }
    shell.feed(TrainerEvent::Shutdown);
    if shell.link.take().is_some() {
        tokio::time::sleep(FAREWELL).await;
    }
}

struct Shell {
    setup: LinkSetup,
    trainer: Trainer,
    start: Instant,
    counters: Arc<Counters>,
    facts: Arc<Mutex<LinkFacts>>,
    link: Option<(LinkId, Link, Peer)>,
    last_link: LinkId,
    arrived: mpsc::Sender<(LinkId, Arrival)>,
    made: mpsc::Sender<Result<Connection, AgentError>>,
    waiting: BTreeMap<u64, Waiting>,
    last_step: u64,
    /// Why the link is over for good.
    over: Option<String>,
}

struct Waiting {
    weights: Arc<Constants>,
    reply: SyncSender<Result<Outcome, String>>,
}

impl Shell {
    fn now(&self) -> Milliseconds {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn note(&self, change: impl FnOnce(&mut LinkFacts)) {
        change(&mut self.facts.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn log(&self, event: LogEvent) {
        if let Some(log) = &self.setup.log {
            log(&self.setup.address, event);
        }
    }

    fn take(&mut self, ask: Ask) {
        if let Some(why) = &self.over {
            // The caller may be gone.
            let _ = ask.reply.send(Err(why.clone()));
            return;
        }
        self.last_step += 1;
        let step = self.last_step;
        self.waiting.insert(step, Waiting { weights: ask.weights, reply: ask.reply });
        self.feed(TrainerEvent::Command(Command { step, order: ask.order }));
    }

    /// Ends the link for good.
    fn give_up(&mut self, why: String) {
        self.link = None;
        for waiting in std::mem::take(&mut self.waiting).into_values() {
            // The caller may be gone.
            let _ = waiting.reply.send(Err(why.clone()));
        }
        self.over = Some(why);
    }

    fn feed(&mut self, event: TrainerEvent) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            if self.over.is_some() {
                return;
            }
            for action in self.trainer.step(self.now(), event) {
                // Only what cannot be carried out becomes an event again; each of those ends a link.
                events.extend(self.act(action));
            }
        }
    }

    fn connected(&mut self, result: Result<Connection, AgentError>) {
        match result {
            Ok(connection) => {
                self.last_link += 1;
                let (id, peer) = (self.last_link, connection.peer().clone());
                let link = Link::start(id, connection.into_stream(), self.arrived.clone());
                self.link = Some((id, link, peer));
                self.feed(TrainerEvent::Link(id, LinkEvent::Connected));
            }
            Err(error) => {
                let is_final = match &error {
                    AgentError::Connection { source, .. } => is_refusal(source),
                    AgentError::PlainBeyondLoopback { .. } => true,
                    _ => false,
                };
                if is_final {
                    return self.give_up(error.to_string());
                }
                self.feed(TrainerEvent::Unreachable(error.to_string()));
            }
        }
    }

    fn arrived(&mut self, from: LinkId, arrival: Arrival) {
        let Some((id, link, peer)) = &mut self.link else { return };
        if *id != from {
            return;
        }
        match arrival {
            Arrival::Bytes(bytes) => {
                let events = link.events(&bytes);
                let peer = peer.clone();
                self.note(|facts| facts.frames_received += bytes.len() as u64);
                for event in events {
                    if let LinkEvent::Message(Message::HelloAck(ack)) = &event
                        && let Err(why) = check_name(ack, &peer)
                    {
                        return self.give_up(why);
                    }
                    self.feed(TrainerEvent::Link(from, event));
                }
            }
            Arrival::Gone { why, is_refusal } => {
                self.link = None;
                if is_refusal {
                    return self.give_up(format!("the device does not believe this trainer's certificate: {why}"));
                }
                self.log(LogEvent::Disconnected { why });
                self.feed(TrainerEvent::Link(from, LinkEvent::Disconnected));
            }
        }
    }

    /// Carries out an action; the event that came of it.
    fn act(&mut self, action: TrainerAction) -> Option<TrainerEvent> {
        match action {
            TrainerAction::Connect { after_ms } => {
                self.connect(after_ms);
                None
            }
            TrainerAction::Link(id, action) => {
                let (current, link, _) = self.link.as_mut()?;
                if *current != id {
                    return None;
                }
                if action == LinkAction::Close {
                    self.link = None;
                    return None;
                }
                let before = link.sent;
                let done = link.act(action);
                let sent = link.sent - before;
                self.note(|facts| facts.frames_sent += sent);
                let why = done.err()?;
                self.link = None;
                self.log(LogEvent::Disconnected { why });
                Some(TrainerEvent::Link(id, LinkEvent::Disconnected))
            }
            TrainerAction::NeedWeights { step, .. } => {
                let weights = &self.waiting.get(&step)?.weights;
                Some(TrainerEvent::Weights { step, increment: weights.raw().into(), hash: weights.hash() })
            }
            TrainerAction::Deliver { step, outcome } => {
                if let Some(waiting) = self.waiting.remove(&step) {
                    // The caller may be gone.
                    let _ = waiting.reply.send(Ok(outcome));
                }
                None
            }
            TrainerAction::Report(notice) => {
                self.report(notice);
                None
            }
        }
    }

    fn connect(&self, after_ms: u64) {
        let (address, security) = (self.setup.address.clone(), self.setup.security.clone());
        let (shape, counters, made) = (self.setup.shape, Arc::clone(&self.counters), self.made.clone());
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(after_ms)).await;
            let result = stream::connect(&address, &security, shape, counters).await;
            // The thread may be ending.
            let _ = made.send(result).await;
        });
    }

    fn report(&self, notice: Notice) {
        self.note(|facts| match &notice {
            Notice::Greeted { peer, description, .. } => {
                facts.reconnects += u64::from(facts.greeting.is_some());
                facts.greeting = Some((peer.clone(), description.clone()));
            }
            Notice::Retried { code: Code::Hang, .. } => facts.hangs += 1,
            Notice::Retried { code: Code::Crash, .. } => facts.crashes += 1,
            Notice::Resent { pictures } => facts.resent_pictures += *pictures as u64,
            _ => {}
        });
        if let Some(event) = crate::daemon::told(notice) {
            self.log(event);
        }
    }
}

/// A device may only call itself what its certificate says.
fn check_name(ack: &HelloAck, peer: &Peer) -> Result<(), String> {
    let name = ack.name.parse().map_err(|error: AgentError| error.to_string())?;
    if peer.may_be(&name) {
        return Ok(());
    }
    Err(format!("the device calls itself '{name}', and its certificate is another one's"))
}
