//! The processor that is elsewhere: the [`Processor`] trait over links to one device or several.
//!
//! It keeps a twin, a fault-free [`Simulator`] of the same program: it knows the weights that the devices have, and predicts
//! what they should have computed. A forward pass is one `Work` per device: what changed in the weights since the last one,
//! references to pictures whose bytes travel once, and the tensors that are wanted. With several devices each takes a run of
//! the batch's pictures, in order; as the draws of faults depend on the picture and not on who computes it, the trace is
//! that of one device.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chipfit_model::Model;
use chipfit_npu::lower::LowerOptions;
use chipfit_npu::{
    Processor, ProcessorError, Program, Protection, Request, Simulator, SimulatorOptions, TensorDelta, TensorId, Trace,
    View,
};
use chipfit_wire::activation::{self, Parameters};
use chipfit_wire::format::{Blob, Varint};
use chipfit_wire::message::{self, Encoding, Limits, Mode, TensorRequest, TraceBody, picture_hash};
use chipfit_wire::session::{LoadOrder, Order, OrderedPicture, Outcome, TrainerConfig, WorkOrder};

use crate::constants::Constants;
use crate::error::AgentError;
use crate::identity::Identity;
use crate::lowering;
use crate::name::DeviceName;
use crate::recover::{Answer, Cost, Memory, Recovered, Recovery, Wanted};
use crate::report::{LinkMeter, LinkReport};
use crate::shape::LinkShape;
use crate::stream::TrainerSecurity;
use crate::tls;
use crate::trainer::{LinkSetup, LogSink, Pending, TrainerLink};

/// Where a device is, and which one it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceAddress {
    /// `HOST:PORT`.
    pub address: String,
    /// The name that its certificate must have; any device of the authority when `None`.
    pub name: Option<DeviceName>,
}

impl FromStr for DeviceAddress {
    type Err = AgentError;

    /// `HOST:PORT` or `NAME@HOST:PORT`.
    fn from_str(text: &str) -> Result<Self, AgentError> {
        let bad = || AgentError::Value {
            value: text.escape_debug().to_string(),
            what: "device; HOST:PORT or NAME@HOST:PORT is expected, as in camera@192.168.1.7:7431",
        };
        let (name, address) = match text.split_once('@') {
            Some((name, address)) => (Some(name.parse()?), address),
            None => (None, text),
        };
        let (host, port) = address.rsplit_once(':').ok_or_else(bad)?;
        let is_host = !host.is_empty() && host.chars().all(|c| c.is_ascii_graphic());
        if !is_host || port.parse::<u16>().is_err() {
            return Err(bad());
        }
        Ok(Self { address: address.to_owned(), name })
    }
}

/// Whom a trainer believes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Devices of this bundle's authority (`chipfit pki init`, folder `trainer`).
    Bundle(PathBuf),
    /// Anything on loopback, without TLS.
    InsecureLoopback,
}

/// How a remote processor works.
#[derive(Clone)]
pub struct RemoteOptions {
    /// Whom it believes.
    pub trust: Trust,
    /// How weights and tensors travel.
    pub mode: Mode,
    /// An emulated link.
    pub shape: LinkShape,
    /// How long a lost device is waited for.
    pub patience: Duration,
    /// Identity of the run: the same when it resumes, another one for every other run; random when `None`.
    pub run: Option<[u8; 16]>,
    /// Kernels and threads of the twin.
    pub twin: SimulatorOptions,
    /// Takes what the links tell.
    pub log: Option<LogSink>,
}

impl RemoteOptions {
    /// Increments over the link as it is, two minutes of patience.
    pub fn new(trust: Trust) -> Self {
        Self {
            trust,
            mode: Mode::Increments,
            shape: LinkShape::default(),
            patience: Duration::from_secs(120),
            run: None,
            twin: SimulatorOptions::default(),
            log: None,
        }
    }
}

impl std::fmt::Debug for RemoteOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteOptions").field("trust", &self.trust).field("mode", &self.mode).finish_non_exhaustive()
    }
}

/// A processor on one device or several.
pub struct RemoteProcessor {
    links: Vec<TrainerLink>,
    twin: Simulator,
    mode: Mode,
    model: Blob,
    lowering: Blob,
    plan: String,
    /// What the devices hold when nothing went wrong.
    sent: Arc<Constants>,
    /// What the twin holds; `None` after a change until the next forward pass.
    current: Option<Arc<Constants>>,
    memory: Memory,
    report: LinkReport,
}

impl std::fmt::Debug for RemoteProcessor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteProcessor").field("description", &self.describe()).finish_non_exhaustive()
    }
}

/// What one device is to do of a forward pass.
struct Share {
    device: usize,
    first: usize,
    pictures: usize,
    parameters: Vec<Parameters>,
    pending: Pending,
}

/// What one device has done of a forward pass.
struct Part {
    device: usize,
    first: usize,
    pictures: usize,
    parameters: Vec<Parameters>,
    body: TraceBody,
}

impl RemoteProcessor {
    /// Connects to the devices and has each load the model.
    ///
    /// # Errors
    /// [`AgentError`], naming the device: it cannot be reached within the patience, is not believed, or cannot load the model.
    pub fn connect(
        devices: &[DeviceAddress],
        model: &Model,
        lower: &LowerOptions,
        options: &RemoteOptions,
    ) -> Result<Self, AgentError> {
        let program = Program::lower(model, lower)?;
        let lowering = lowering::to_text(lower);
        let sent = Arc::new(Constants::of(&program));
        let run = match options.run {
            Some(run) => run,
            None => tls::random()?,
        };
        let mut links = Vec::new();
        for device in devices {
            links.push(TrainerLink::start(setup(device, options, run)?)?);
        }
        let mut remote = Self {
            links,
            twin: Simulator::new(program, options.twin)?,
            mode: options.mode,
            model: model_bytes(model)?,
            lowering: lowering.into_bytes().into(),
            plan: String::new(),
            sent: Arc::clone(&sent),
            current: Some(sent),
            memory: Memory::default(),
            report: LinkReport::default(),
        };
        if remote.links.is_empty() {
            return Err(AgentError::Value { value: String::new(), what: "list of devices; at least one is expected" });
        }
        remote.load_everywhere()?;
        Ok(remote)
    }

    /// What the links have cost so far.
    pub fn report(&self) -> LinkReport {
        let mut report = self.report;
        for link in &self.links {
            let (counters, facts) = (link.counters(), link.facts());
            report.wire_down_bytes += counters.sent();
            report.wire_up_bytes += counters.received();
            report.reconnects += facts.reconnects;
            report.hangs += facts.hangs;
            report.crashes += facts.crashes;
            report.resent_pictures += facts.resent_pictures;
        }
        report
    }

    /// Reads the bytes at the sockets later, while this processor is lent to somebody.
    pub fn meter(&self) -> LinkMeter {
        LinkMeter(self.links.iter().map(|link| Arc::clone(link.counters())).collect())
    }

    /// The names that the devices gave themselves, in the order of their addresses; empty for one that never answered.
    pub fn device_names(&self) -> Vec<String> {
        let name = |link: &TrainerLink| link.facts().greeting.map(|(name, _)| name).unwrap_or_default();
        self.links.iter().map(name).collect()
    }

    /// Gives the same order to every device and waits for all of them.
    fn everywhere(&self, order: &Order, weights: &Arc<Constants>) -> Result<(), AgentError> {
        let pending: Vec<Pending> =
            self.links.iter().map(|link| link.order(order.clone(), Arc::clone(weights))).collect();
        let outcomes: Vec<_> = pending.into_iter().map(Pending::wait).collect();
        outcomes.into_iter().try_for_each(|outcome| outcome.map(|_| ()))
    }

    fn load_everywhere(&mut self) -> Result<(), AgentError> {
        let weights = self.constants();
        let order = Order::Load(LoadOrder {
            model: Arc::clone(&self.model),
            lowering: Arc::clone(&self.lowering),
            plan: self.plan.clone(),
            weights: Vec::new().into(),
            weights_hash: weights.hash(),
        });
        self.everywhere(&order, &weights)?;
        self.sent = weights;
        Ok(())
    }

    /// The twin's constants.
    fn constants(&mut self) -> Arc<Constants> {
        let program = self.twin.program();
        Arc::clone(self.current.get_or_insert_with(|| Arc::new(Constants::of(program))))
    }

    /// What takes the devices from the weights they have to the twin's; `None` where nothing changed.
    fn weights_update(&mut self, weights: &Constants) -> Result<Option<Blob>, AgentError> {
        if weights.hash() == self.sent.hash() {
            return Ok(None);
        }
        let update = match self.mode {
            Mode::Increments => weights.increment_from(&self.sent).map_err(|error| {
                AgentError::Processor(ProcessorError::Update { name: "weights".to_owned(), what: error.to_string() })
            })?,
            _ => weights.raw(),
        };
        let devices = self.links.len() as u64;
        self.report.weights_down_bytes += update.len() as u64 * devices;
        self.report.weights_raw_bytes += weights.length() as u64 * devices;
        Ok(Some(update.into()))
    }

    /// Gives every device its share of the pictures.
    fn hand_out(&mut self, request: &Request<'_>, wanted: &Wanted) -> Result<Vec<Share>, AgentError> {
        let weights = self.constants();
        let update = self.weights_update(&weights)?;
        let program = self.twin.program();
        let bytes = request.batch.input.chunks_exact(program.tensor(program.input()).elements().max(1));
        let view = |at: usize| {
            let View { flip, down, right } = request.views.get(at).copied().unwrap_or_default();
            message::View { flip, down, right }
        };
        let mut pictures: Vec<OrderedPicture> = Vec::with_capacity(request.batch.pictures.len());
        for (at, (&id, bytes)) in request.batch.pictures.iter().zip(bytes).enumerate() {
            pictures.push(OrderedPicture { id, hash: picture_hash(bytes), view: view(at), bytes: bytes.into() });
        }
        let each = pictures.len().div_ceil(self.links.len()).max(1);
        let numbers: Vec<u32> = wanted.tensors.iter().map(|(id, _)| u32::try_from(id.0).unwrap_or(u32::MAX)).collect();
        let mut shares = Vec::new();
        for (device, part) in pictures.chunks(each).enumerate() {
            let Some(link) = self.links.get(device) else { break };
            let parameters = match self.mode {
                Mode::Increments => self.memory.parameters(program, wanted, device, part.len(), request.trial),
                _ => Vec::new(),
            };
            let order = Order::Work(WorkOrder {
                trial: request.trial,
                base_hash: self.sent.hash(),
                update: update.clone(),
                weights_hash: weights.hash(),
                mode: self.mode,
                pictures: part.to_vec(),
                wanted: numbers.clone(),
                parameters: parameters.iter().map(|one| one.to_bytes().to_vec().into()).collect(),
            });
            let pending = link.order(order, Arc::clone(&weights));
            shares.push(Share { device, first: device * each, pictures: part.len(), parameters, pending });
        }
        self.sent = weights;
        Ok(shares)
    }

    fn compute(&mut self, request: &Request<'_>) -> Result<Trace, AgentError> {
        let begin = Instant::now();
        let program = self.twin.program();
        let output = program.output();
        let wanted = match self.mode {
            Mode::Increments => Wanted::new(program, request.wanted),
            _ => Wanted::only(request.wanted.iter().copied().filter(|&id| id != output).collect()),
        };
        let shares = self.hand_out(request, &wanted)?;
        let waiting = Instant::now();
        let mut parts = Vec::new();
        let mut failure = None;
        for share in shares {
            let Share { device, first, pictures, parameters, pending } = share;
            // Every device is waited for, so that none is still busy with this pass in the next one.
            match pending.wait() {
                Ok(Outcome::Traced(body)) => parts.push(Part { device, first, pictures, parameters, body }),
                Ok(_) => {
                    failure = failure.or(Some(self.broken(device, "it answered something else than it was asked")))
                }
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        let mut waited = waiting.elapsed();
        if let Some(error) = failure {
            return Err(error);
        }
        let slowest = Duration::from_nanos(parts.iter().map(|part| part.body.processor_ns).max().unwrap_or(0));
        let mut trace = Trace { strikes: Some(0), ..Trace::default() };
        trace.tensors = request.wanted.iter().map(|&id| (id, Vec::new())).collect();
        let mut further = Duration::ZERO;
        let mut cost = Cost::default();
        for part in parts {
            let strikes = part.body.strikes;
            trace.strikes = trace.strikes.zip(strikes).map(|(all, more)| all.saturating_add(more));
            let tensors = match self.mode {
                Mode::Increments => self.recover(request, &wanted, part, &mut cost, &mut further)?,
                _ => self.as_they_are(&wanted, &part, &mut cost)?,
            };
            for (id, bytes) in tensors {
                if id == output {
                    trace.output.extend_from_slice(&bytes);
                }
                if let Some(all) = trace.tensors.get_mut(&id) {
                    if all.is_empty() { *all = bytes } else { all.extend(bytes) }
                }
            }
        }
        waited += further;
        let report = &mut self.report;
        report.forwards += 1;
        report.pictures += request.batch.pictures.len() as u64;
        report.activations_up_bytes += cost.payload_bytes;
        report.activations_raw_bytes += cost.raw_bytes;
        report.entropy_up_bits += cost.entropy_bits;
        report.missed_values += cost.missed_values;
        report.second_rounds += u64::from(cost.further_rounds > 0);
        report.raw_tensors += cost.raw_tensors;
        report.device_seconds += slowest.as_secs_f64();
        report.wire_seconds += waited.saturating_sub(slowest).as_secs_f64();
        report.server_seconds += begin.elapsed().saturating_sub(waited).as_secs_f64();
        Ok(trace)
    }

    /// The tensors of a part that came as increments.
    fn recover(
        &mut self,
        request: &Request<'_>,
        wanted: &Wanted,
        part: Part,
        cost: &mut Cost,
        further: &mut Duration,
    ) -> Result<BTreeMap<TensorId, Vec<u8>>, AgentError> {
        /// A device that loses its trace more often than this within one pass is given up.
        const MOST_ATTEMPTS: usize = 5;
        let Part { device, first, pictures, parameters, mut body } = part;
        let program = self.twin.program();
        let tensor = program.tensor(program.input());
        let (each, end) = (tensor.elements(), first + pictures);
        let bytes = request.batch.input.get(first * each..end * each).unwrap_or_default();
        let views = request.views.get(first..end).unwrap_or_default();
        let input = View::apply_all(views, tensor, bytes);
        let (link, weights) = (self.links.get(device), Arc::clone(&self.sent));
        let link = link.ok_or_else(|| self.broken(device, "there is no such device"))?;
        let peer = link.address().to_owned();
        let broken = |what: String| AgentError::Device { peer: peer.clone(), code: None, what };
        let mut ask = |id: TensorId, request: &activation::Request| {
            let begin = Instant::now();
            let tensor = Varint(u32::try_from(id.0).unwrap_or(u32::MAX));
            let question = TensorRequest { tensor, bytes: request.to_bytes().to_vec().into() };
            let outcome = link.order(Order::More(vec![question]), Arc::clone(&weights)).wait()?;
            *further += begin.elapsed();
            match outcome {
                Outcome::More(answers) => match answers.first() {
                    Some(answer) => Ok(Answer::More(answer.bytes.to_vec())),
                    None => Err(broken("it answered nothing".to_owned())),
                },
                Outcome::Traced(body) => Ok(Answer::Again(Box::new(body))),
                _ => Err(broken("it answered something else than it was asked".to_owned())),
            }
        };
        let mut recovery = Recovery {
            twin: &mut self.twin,
            memory: &mut self.memory,
            wanted,
            parameters: &parameters,
            device,
            pictures,
            input: &input,
            ask: &mut ask,
            cost: *cost,
        };
        for _ in 0..MOST_ATTEMPTS {
            match recovery.run(&body, &broken)? {
                Recovered::All(tensors) => {
                    *cost = recovery.cost;
                    return Ok(tensors);
                }
                Recovered::Again(again) => body = *again,
            }
        }
        Err(broken(format!("it lost its trace {MOST_ATTEMPTS} times in one pass")))
    }

    /// The tensors of a part that came as they are.
    fn as_they_are(
        &self,
        wanted: &Wanted,
        part: &Part,
        cost: &mut Cost,
    ) -> Result<BTreeMap<TensorId, Vec<u8>>, AgentError> {
        let output = self.twin.program().output();
        let payloads = part.body.tensors.iter().chain(std::iter::once(&part.body.output));
        let ids = wanted.tensors.iter().map(|&(id, _)| id).chain(std::iter::once(output));
        let mut tensors = BTreeMap::new();
        for (payload, id) in payloads.zip(ids) {
            let tensor = self.twin.program().tensor(id);
            let expected = tensor.elements() * part.pictures;
            if payload.encoding != Encoding::Raw || payload.bytes.len() != expected {
                let what = format!("'{}' came with {} bytes and not {expected}", tensor.name, payload.bytes.len());
                return Err(self.broken(part.device, &what));
            }
            cost.payload_bytes += payload.bytes.len() as u64;
            cost.raw_bytes += expected as u64;
            tensors.insert(id, payload.bytes.to_vec());
        }
        Ok(tensors)
    }

    fn broken(&self, device: usize, what: &str) -> AgentError {
        let peer = self.links.get(device).map(|link| link.address().to_owned()).unwrap_or_default();
        AgentError::Device { peer, code: None, what: what.to_owned() }
    }
}

/// What a link to this device is started with.
fn setup(device: &DeviceAddress, options: &RemoteOptions, run: [u8; 16]) -> Result<LinkSetup, AgentError> {
    let security = match &options.trust {
        Trust::Bundle(folder) => {
            TrainerSecurity::Tls(tls::trainer_config(&Identity::open(folder)?, device.name.as_ref())?)
        }
        Trust::InsecureLoopback => TrainerSecurity::InsecureLoopback,
    };
    let defaults = TrainerConfig::default();
    /// The device's own deadline ends what hangs, silence what is lost; this only ends what answers nonsense for hours.
    const ANSWER: Duration = Duration::from_secs(6 * 3600);
    let config = TrainerConfig {
        name: "chipfit".to_owned(),
        run,
        answer_ms: u64::try_from(ANSWER.as_millis()).unwrap_or(u64::MAX),
        limits: Limits::default(),
        reconnects: attempts(options.patience, defaults.backoff_ms, defaults.backoff_most_ms),
        ..defaults
    };
    let address = device.address.clone();
    Ok(LinkSetup { address, security, shape: options.shape, config, log: options.log.clone() })
}

/// Failed connections after which the waits between them add up to the patience.
fn attempts(patience: Duration, first_ms: u64, most_ms: u64) -> u32 {
    let (mut total, mut wait, mut count) = (0, first_ms.max(1), 0);
    while total < patience.as_millis() && count < 1_000_000 {
        total += u128::from(wait);
        wait = (wait * 2).min(most_ms.max(1));
        count += 1;
    }
    count
}

fn model_bytes(model: &Model) -> Result<Blob, AgentError> {
    let refuse = |what: String| AgentError::Model { what };
    let external = model.external_files().map_err(|error| refuse(error.to_string()))?;
    if let Some(file) = external.first() {
        let what = format!("its data lies in '{}'; save the model as one file", file.display());
        return Err(refuse(what));
    }
    Ok(model.to_bytes().map_err(|error| refuse(error.to_string()))?.into())
}

impl From<AgentError> for ProcessorError {
    fn from(error: AgentError) -> Self {
        match error {
            AgentError::Processor(error) => error,
            AgentError::Device { peer, code, what } => Self::Engine {
                processor: format!("device {peer}"),
                what: code.map_or(String::new(), |code| format!("{}: ", code.name())) + &what,
            },
            other => Self::Engine { processor: "remote device".to_owned(), what: other.to_string() },
        }
    }
}

impl Processor for RemoteProcessor {
    fn describe(&self) -> String {
        let mode = match self.mode {
            Mode::Increments => "increments",
            _ => "straightforward",
        };
        let device = |link: &TrainerLink| match link.facts().greeting {
            Some((name, description)) => format!("{name} at {} ({description})", link.address()),
            None => link.address().to_owned(),
        };
        let devices: Vec<String> = self.links.iter().map(device).collect();
        format!("remote: {}; {mode} on the wire", devices.join(", "))
    }

    fn program(&self) -> &Program {
        self.twin.program()
    }

    fn update(&mut self, deltas: &[TensorDelta]) -> Result<(), ProcessorError> {
        self.twin.update(deltas)?;
        self.current = None;
        Ok(())
    }

    fn load(&mut self, model: &Model) -> Result<(), ProcessorError> {
        let bytes = model_bytes(model)?;
        self.twin.load(model)?;
        self.current = None;
        self.model = bytes;
        Ok(self.load_everywhere()?)
    }

    fn protect(&mut self, protection: &Protection) -> Result<(), ProcessorError> {
        let plan = protection.to_plan(self.twin.program());
        self.plan = if plan.protect.is_empty() { String::new() } else { plan.to_toml() };
        let weights = Arc::clone(&self.sent);
        Ok(self.everywhere(&Order::Protect(self.plan.clone()), &weights)?)
    }

    fn forward(&mut self, request: &Request<'_>) -> Result<Trace, ProcessorError> {
        let program = self.twin.program();
        let each = program.tensor(program.input()).elements();
        let (pictures, bytes) = (request.batch.pictures.len(), request.batch.input.len());
        if each.checked_mul(pictures) != Some(bytes) {
            return Err(ProcessorError::InputLength { bytes, pictures, each });
        }
        let refuse = |what: String| ProcessorError::Engine { processor: "remote device".to_owned(), what };
        if !request.views.is_empty() && request.views.len() != pictures {
            return Err(refuse(format!("{} views for {pictures} pictures", request.views.len())));
        }
        if let Some(id) = request.wanted.iter().find(|id| id.0 >= program.tensors().len()) {
            return Err(refuse(format!("the program has no tensor {}", id.0)));
        }
        Ok(self.compute(request)?)
    }
}
