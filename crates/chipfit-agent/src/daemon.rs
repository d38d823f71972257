//! The daemon: listens, brings up connections, lets the state machine decide, and keeps the processor's child.
//!
//! One thread, one loop: connections, bytes, results of the child and time all become events of
//! [`chipfit_wire::session::Device`], and its actions are carried out in order. Bad bytes on the port end their connection
//! and nothing else; what a peer can make the daemon hold is bounded by [`crate::config::Bounds`].

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chipfit_wire::format::Blob;
use chipfit_wire::message::{Code, Limits, Load, Message, More, NewPicture, Protect, Tag, Work};
use chipfit_wire::session::{
    Device, DeviceAction, DeviceConfig as SessionConfig, DeviceEvent, JobId, JobResult, LinkAction, LinkEvent, LinkId,
    Milliseconds, Notice, Task,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

use crate::config::{DeviceConfig, ProcessorKind};
use crate::error::AgentError;
use crate::identity::Identity;
use crate::link::{Arrival, Link, QUEUED_CHUNKS};
use crate::log::LogEvent;
use crate::stream::{self, Connection, DeviceSecurity, is_loopback};
use crate::tls;
use crate::worker::{Worker, WorkerCommand};

/// Connections whose handshake is under way; more are closed at once.
const HANDSHAKES: usize = 16;
const TICK: Duration = Duration::from_millis(100);
/// How long a trainer may be told of the end.
const FAREWELL: Duration = Duration::from_millis(300);

/// A daemon that listens already.
pub struct Daemon {
    config: DeviceConfig,
    security: DeviceSecurity,
    listener: TcpListener,
    address: SocketAddr,
    worker: WorkerCommand,
}

impl std::fmt::Debug for Daemon {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Daemon").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Daemon {
    /// Listens on `listen` (`ADDRESS:PORT`; port 0 takes a free one).
    ///
    /// # Errors
    /// [`AgentError::NoBundle`] and [`AgentError::BundleAndPlain`] where `pki` and `insecure_loopback` do not go together;
    /// [`AgentError::File`] and [`AgentError::Certificate`] for a bundle that cannot be used or is another device's;
    /// [`AgentError::PlainBeyondLoopback`]; [`AgentError::Connection`] when the address cannot be bound.
    pub async fn bind(
        config: DeviceConfig,
        listen: &str,
        insecure_loopback: bool,
        worker: WorkerCommand,
    ) -> Result<Self, AgentError> {
        let security = security(&config, insecure_loopback)?;
        let listener = TcpListener::bind(listen).await.map_err(AgentError::connection(listen))?;
        let address = listener.local_addr().map_err(AgentError::connection(listen))?;
        if insecure_loopback && !is_loopback(address.ip()) {
            return Err(AgentError::PlainBeyondLoopback { address: address.to_string() });
        }
        Ok(Self { config, security, listener, address, worker })
    }

    /// The bound address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown` is done, then says goodbye and ends the child.
    ///
    /// # Errors
    /// [`AgentError::Making`] when no random number can be had.
    pub async fn serve(
        self,
        shutdown: impl Future<Output = ()>,
        log: &mut dyn FnMut(LogEvent),
    ) -> Result<(), AgentError> {
        let security = match self.security {
            DeviceSecurity::Tls(_) => "mutual TLS 1.3",
            DeviceSecurity::InsecureLoopback => "plain TCP on loopback",
        };
        log(LogEvent::Listening { address: self.address.to_string(), name: self.config.name.clone(), security });
        let (arrived, mut arrivals) = mpsc::channel(QUEUED_CHUNKS);
        let (shaken, mut handshakes) = mpsc::channel(HANDSHAKES);
        let (finished, mut results) = mpsc::channel(4);
        let mut shell = Shell {
            device: Device::new(session_config(&self.config)?, None),
            start: Instant::now(),
            links: BTreeMap::new(),
            last_link: 0,
            arrived,
            worker: None,
            job: None,
            finished,
            model: None,
            command: self.worker,
            config: self.config,
            log,
        };
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                accepted = self.listener.accept() => match accepted {
                    Ok((tcp, peer)) => shake(tcp, peer, &self.security, &shaken),
                    // Out of descriptors or the like: the next tick brings the next attempt.
                    Err(_) => tokio::time::sleep(TICK).await,
                },
                Some((peer, result)) = handshakes.recv() => shell.connected(peer, result),
                Some((link, arrival)) = arrivals.recv() => shell.arrived(link, arrival),
                Some((job, finished)) = results.recv() => shell.finished(job, finished),
                _ = ticks.tick() => shell.feed(DeviceEvent::Tick),
            }
        }
        (shell.log)(LogEvent::Stopping);
        shell.feed(DeviceEvent::Shutdown);
        shell.links.clear();
        // The writers send what is queued; the child dies with its handle.
        tokio::time::sleep(FAREWELL).await;
        Ok(())
    }
}

fn security(config: &DeviceConfig, insecure_loopback: bool) -> Result<DeviceSecurity, AgentError> {
    let Some(folder) = &config.pki else {
        if insecure_loopback {
            return Ok(DeviceSecurity::InsecureLoopback);
        }
        return Err(AgentError::NoBundle);
    };
    if insecure_loopback {
        return Err(AgentError::BundleAndPlain);
    }
    let identity = Identity::open(folder)?;
    let name = config.device_name()?;
    if !identity.is_for(&name) {
        let what = format!("the certificate is not for '{name}', as the key 'name' of the configuration says");
        return Err(AgentError::Certificate { path: folder.clone(), what });
    }
    Ok(DeviceSecurity::Tls(tls::device_config(&identity)?))
}

fn session_config(config: &DeviceConfig) -> Result<SessionConfig, AgentError> {
    let bounds = &config.limits;
    let deadline = u64::try_from(config.deadline().as_millis()).unwrap_or(u64::MAX);
    Ok(SessionConfig {
        name: config.name.clone(),
        description: description(config),
        limits: Limits {
            frame: bounds.frame_bytes,
            tensor: bounds.tensor_bytes,
            in_flight: bounds.message_bytes,
            sessions: 1,
        },
        work_deadline_ms: deadline,
        load_deadline_ms: deadline,
        cache_bytes: bounds.cache_bytes,
        boot: u64::from_le_bytes(tls::random()?),
        waiting_links: usize::from(bounds.sessions.get()),
        ..SessionConfig::default()
    })
}

/// One line about what is hosted.
fn description(config: &DeviceConfig) -> String {
    match (config.processor, &config.faults) {
        (ProcessorKind::OnnxRuntime, _) => "ONNX Runtime".to_owned(),
        (ProcessorKind::Sim, None) => "simulated integer processor, no faults".to_owned(),
        (ProcessorKind::Sim, Some(path)) => {
            let file = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
            format!("simulated integer processor, faults of {file}, seed {}", config.seed)
        }
    }
}

type Shaken = (SocketAddr, Result<Connection, AgentError>);

/// Brings a connection up on a task of its own, if there are not too many.
fn shake(tcp: TcpStream, peer: SocketAddr, security: &DeviceSecurity, shaken: &mpsc::Sender<Shaken>) {
    let Ok(permit) = shaken.clone().try_reserve_owned() else { return };
    let security = security.clone();
    tokio::spawn(async move {
        let result = stream::accept(tcp, peer, &security).await;
        permit.send((peer, result));
    });
}

/// How a task of the processor ended: the child and its answer, or how the child ended.
type Finished = Result<(Worker, Message), String>;

struct Shell<'a> {
    device: Device,
    start: Instant,
    links: BTreeMap<LinkId, Link>,
    last_link: LinkId,
    arrived: mpsc::Sender<(LinkId, Arrival)>,
    /// The child, while it waits.
    worker: Option<Worker>,
    /// What runs, and the task that holds the child meanwhile.
    job: Option<(JobId, JoinHandle<()>)>,
    finished: mpsc::Sender<(JobId, Finished)>,
    /// The model's file, for children to come.
    model: Option<Blob>,
    command: WorkerCommand,
    config: DeviceConfig,
    log: &'a mut dyn FnMut(LogEvent),
}

impl Shell<'_> {
    fn now(&self) -> Milliseconds {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn feed(&mut self, event: DeviceEvent) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for action in self.device.step(self.now(), event) {
                // Only what cannot be carried out becomes an event again, and each of those ends a link or a task.
                events.extend(self.act(action));
            }
        }
    }

    fn connected(&mut self, peer: SocketAddr, result: Result<Connection, AgentError>) {
        match result {
            Ok(connection) => {
                (self.log)(LogEvent::Connected { peer: peer.to_string() });
                self.last_link += 1;
                let link = Link::start(self.last_link, connection.into_stream(), self.arrived.clone());
                self.links.insert(self.last_link, link);
                self.feed(DeviceEvent::Link(self.last_link, LinkEvent::Connected));
            }
            Err(error) => (self.log)(LogEvent::Refused { peer: peer.to_string(), why: error.to_string() }),
        }
    }

    fn arrived(&mut self, id: LinkId, arrival: Arrival) {
        match arrival {
            Arrival::Bytes(bytes) => {
                let events = self.links.get_mut(&id).map(|link| link.events(&bytes)).unwrap_or_default();
                for event in events {
                    self.feed(DeviceEvent::Link(id, event));
                }
            }
            Arrival::Gone { why, .. } => {
                if self.links.remove(&id).is_some() {
                    (self.log)(LogEvent::Disconnected { why });
                    self.feed(DeviceEvent::Link(id, LinkEvent::Disconnected));
                }
            }
        }
    }

    /// Carries out an action; the event that came of it.
    fn act(&mut self, action: DeviceAction) -> Option<DeviceEvent> {
        match action {
            DeviceAction::Link(id, LinkAction::Close) => {
                if self.links.remove(&id).is_some() {
                    (self.log)(LogEvent::Disconnected { why: "closed by the device".to_owned() });
                }
                None
            }
            DeviceAction::Link(id, action) => {
                let why = self.links.get_mut(&id)?.act(action).err()?;
                self.links.remove(&id);
                (self.log)(LogEvent::Disconnected { why });
                Some(DeviceEvent::Link(id, LinkEvent::Disconnected))
            }
            DeviceAction::Start(job, task) => {
                self.run(job, task);
                None
            }
            DeviceAction::Kill(job) => {
                if self.job.as_ref().is_some_and(|(running, _)| *running == job)
                    && let Some((_, task)) = self.job.take()
                {
                    // The task holds the child, and the child dies with it.
                    task.abort();
                    (self.log)(LogEvent::WorkerKilled);
                }
                None
            }
            DeviceAction::Report(notice) => {
                if let Some(event) = told(notice) {
                    (self.log)(event);
                }
                None
            }
        }
    }

    /// Gives the child a task, starting a child where there is none.
    fn run(&mut self, job: JobId, task: Task) {
        let message = self.message(task);
        let worker = self.worker.take();
        let (command, config) = (self.command.clone(), self.config.clone());
        let finished = self.finished.clone();
        let task = tokio::spawn(async move {
            let result = ask(worker, &command, &config, message).await;
            // The daemon may be ending.
            let _ = finished.send((job, result)).await;
        });
        self.job = Some((job, task));
    }

    /// A task as the message that the child takes.
    fn message(&mut self, task: Task) -> Message {
        match task {
            Task::Load(load) => {
                if let Some(model) = &load.model {
                    self.model = Some(Arc::clone(model));
                }
                Load { model: self.model.clone(), ..load }.into()
            }
            Task::Protect(plan) => Protect { tag: Tag { step: 1, attempt: 1 }, plan }.into(),
            Task::Work { work, pictures } => {
                let named = work.pictures.iter().zip(pictures);
                let bytes: BTreeMap<[u8; 16], Blob> = named.map(|(picture, bytes)| (picture.hash, bytes)).collect();
                let new_pictures = bytes.into_iter().map(|(hash, bytes)| NewPicture { hash, bytes }).collect();
                Work { new_pictures, ..work }.into()
            }
            Task::More(requests) => More { tag: Tag { step: 1, attempt: 1 }, work: [0; 32], requests }.into(),
        }
    }

    fn finished(&mut self, job: JobId, finished: Finished) {
        if self.job.as_ref().is_none_or(|(running, _)| *running != job) {
            return;
        }
        self.job = None;
        let event = match finished {
            Err(how) => {
                (self.log)(LogEvent::WorkerDied { how: how.clone() });
                DeviceEvent::Died(how)
            }
            Ok((worker, answer)) => {
                if self.worker.is_none() && worker.is_new() {
                    (self.log)(LogEvent::WorkerStarted { pid: worker.pid() });
                }
                self.worker = Some(worker);
                event(job, answer)
            }
        };
        self.feed(event);
    }
}

async fn ask(worker: Option<Worker>, command: &WorkerCommand, config: &DeviceConfig, message: Message) -> Finished {
    let mut worker = match worker {
        Some(worker) => worker,
        None => {
            let start = |error: io::Error| format!("cannot start the processor's process: {error}");
            Worker::start(command, config).await.map_err(start)?
        }
    };
    let answer = worker.ask(&message).await?;
    Ok((worker, answer))
}

/// The child's answer as an event.
fn event(job: JobId, answer: Message) -> DeviceEvent {
    let failed = |code, text| DeviceEvent::Failed { job, code, text, weights: None };
    match answer {
        Message::Loaded(loaded) => match loaded.held.weights {
            Some(weights) => DeviceEvent::Done(job, JobResult::Loaded(weights)),
            None => failed(Code::Internal, "the processor does not say which weights it has".to_owned()),
        },
        Message::Protected(_) => DeviceEvent::Done(job, JobResult::Protected),
        Message::Trace(trace) => DeviceEvent::Done(job, JobResult::Traced(trace.body)),
        Message::MoreTrace(more) => DeviceEvent::Done(job, JobResult::More(more.answers)),
        Message::Error(report) => failed(report.code, report.text),
        other => failed(Code::Internal, format!("the processor answered with {}", other.name())),
    }
}

/// A notice as a line of the log; what is of no interest is none.
pub(crate) fn told(notice: Notice) -> Option<LogEvent> {
    match notice {
        Notice::Greeted { peer, description, .. } => Some(LogEvent::Greeted { peer, description }),
        Notice::Lost { why } => Some(LogEvent::Disconnected { why }),
        Notice::Retried { code, text, .. } => Some(LogEvent::Retried { what: format!("{}: {text}", code.name()) }),
        Notice::Resent { pictures } => Some(LogEvent::Resent { pictures }),
        // The shell tells of the process itself.
        Notice::ProcessorLost { .. } => None,
        other => Some(LogEvent::Note { text: format!("{other:?}") }),
    }
}
