//! `chipfit device` and the remote processor as a trainer meets them: real sockets, TLS, child processes, and what goes wrong.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use chipfit_agent::{DeviceAddress, LinkShape, RemoteOptions, RemoteProcessor, Trust, WireMode};
use chipfit_model::{DataType, Limits, Model, build};
use chipfit_npu::faults::{Faults, FaultsFile};
use chipfit_npu::lower::LowerOptions;
use chipfit_npu::{
    Batch, Op, Processor, Program, Protection, Request, Simulator, SimulatorOptions, TensorDelta, TensorId, Trace, View,
};
use common::{Folder, floats, model, values};
use serde_json::Value;

const FAULTS: &str = "[[fault]]\nsites = [\"mul\", \"acc\"]\nkind = \"flip\"\nber = 1e-5\nlayers = \"*\"\n";
const SEED: u64 = 7;
const PICTURES: usize = 6;

/// A folder with a quantised network of two convolutions and a product, faults, an authority and two devices.
struct Site {
    folder: Folder,
    model: Model,
    program: Program,
}

fn site() -> Site {
    let folder = Folder::new();
    let constants = vec![
        floats("w", &[6, 3, 3, 3], &values(162, 1)),
        floats("b", &[6], &values(6, 2)),
        floats("v", &[8, 6, 3, 3], &values(432, 3)),
        floats("fc", &[8, 3], &values(24, 4)),
    ];
    let nodes = vec![
        build::node("Conv", "first", &["x", "w", "b"], &["c"], vec![build::attr_is("pads", &[1; 4])]),
        build::node("Relu", "relu", &["c"], &["r"], Vec::new()),
        build::node("Conv", "second", &["r", "v"], &["d"], vec![build::attr_is("pads", &[1; 4])]),
        build::node("GlobalAveragePool", "pool", &["d"], &["p"], Vec::new()),
        build::node("Flatten", "flatten", &["p"], &["f"], vec![build::attr_i("axis", 1)]),
        build::node("MatMul", "dense", &["f", "fc"], &["y"], Vec::new()),
    ];
    folder.put("m.onnx", &model(nodes, constants, DataType::Float, &[1, 3, 8, 8], &[1, 3]));
    fs::create_dir_all(folder.path("data/test/a")).unwrap();
    for n in 0..4u8 {
        let picture = image::RgbImage::from_fn(8, 8, |x, y| image::Rgb([(x * 30) as u8 ^ n, (y * 30) as u8, n * 60]));
        picture.save(folder.path(&format!("data/test/a/{n}.png"))).unwrap();
    }
    folder.run("quantize m.onnx --data data:test -o q.onnx --scale 0.01").expect(0);
    let model = Model::open(&folder.path("q.onnx"), &Limits::default()).unwrap();
    let program = Program::lower(&model, &LowerOptions::default()).unwrap();
    fs::write(folder.path("f.toml"), FAULTS).unwrap();
    folder.run("pki init").expect(0);
    for name in ["camera", "gate"] {
        folder.run(&format!("pki device {name}")).expect(0);
    }
    let site = Site { folder, model, program };
    site.config("camera", "camera", "");
    site.config("gate", "gate", "");
    site
}

impl Site {
    /// Writes `NAME.toml` with more keys.
    fn config(&self, file: &str, name: &str, more: &str) {
        let text = format!(
            "name = \"{name}\"\npki = \"pki/devices/{name}\"\nfaults = \"f.toml\"\nseed = {SEED}\nthreads = 1\n{more}"
        );
        fs::write(self.folder.path(&format!("{file}.toml")), text).unwrap();
    }

    fn options(&self, mode: WireMode) -> RemoteOptions {
        RemoteOptions { mode, ..RemoteOptions::new(Trust::Bundle(self.folder.path("pki/trainer"))) }
    }

    fn connect(&self, devices: &[&Device], options: &RemoteOptions) -> RemoteProcessor {
        let addresses: Vec<DeviceAddress> = devices.iter().map(|device| device.address.parse().unwrap()).collect();
        RemoteProcessor::connect(&addresses, &self.model, &LowerOptions::default(), options).unwrap()
    }

    /// The processor that the devices are to equal.
    fn simulator(&self) -> Simulator {
        let faults = Faults::resolve(&FaultsFile::parse(FAULTS).unwrap(), &self.program, SEED).unwrap();
        let options = SimulatorOptions { machine: faults.machine(), ..SimulatorOptions::default() };
        Simulator::new(self.program.clone(), options).unwrap().with_faults(Arc::new(faults), SEED)
    }

    fn device(&self, file: &str) -> Device {
        Device::start(&self.folder, &format!("--listen 127.0.0.1:0 --config {file}.toml"))
    }

    /// One step of a run: a change of weights that depends on the step, then a forward pass over pictures seen their ways.
    fn step(&self, processor: &mut dyn Processor, step: u64) -> Trace {
        let mut deltas = Vec::new();
        for linear in self.program.steps().iter().filter_map(|step| match &step.op {
            Op::Linear(linear) => Some(linear),
            _ => None,
        }) {
            let at = (step as usize * 7) % linear.weights.len();
            let value = i32::from(linear.weights[at].wrapping_add(step as i8 + 1));
            deltas.push(TensorDelta { name: linear.weights_name.clone(), changes: vec![(at as u32, value)] });
            if let (Some(name), 0) = (&linear.bias_name, step % 2) {
                let change = (0, linear.bias[0].wrapping_add(step as i32 * 50));
                deltas.push(TensorDelta { name: name.clone(), changes: vec![change] });
            }
        }
        processor.update(&deltas).unwrap();
        self.forward(processor, step)
    }

    fn forward(&self, processor: &mut dyn Processor, step: u64) -> Trace {
        let each = self.program.tensor(self.program.input()).elements();
        let pictures: Vec<u64> = (0..PICTURES as u64).map(|n| (n + step) % 9).collect();
        let input: Vec<u8> =
            pictures.iter().flat_map(|&n| (0..each).map(move |at| (at as u64 * 31 * (n + 1)) as u8)).collect();
        let view = |n: usize| View { flip: (n as u64 + step).is_multiple_of(2), down: n as i8 - 2, right: 1 };
        let views: Vec<View> = (0..PICTURES).map(view).collect();
        let wanted: Vec<TensorId> = self.program.steps().iter().map(|step| step.output).collect();
        let batch = Batch { pictures: &pictures, input: &input };
        processor.forward(&Request { batch, trial: step, views: &views, wanted: &wanted }).unwrap()
    }

    /// What the simulator computes in steps 0 to `steps`.
    fn expected(&self, steps: u64) -> Vec<Trace> {
        let mut simulator = self.simulator();
        (0..steps).map(|step| self.step(&mut simulator, step)).collect()
    }
}

/// A running `chipfit device`.
struct Device {
    child: Child,
    address: String,
    events: Arc<Mutex<Vec<Value>>>,
}

impl Device {
    fn start(folder: &Folder, flags: &str) -> Self {
        let mut command = folder.command(&format!("device --json {flags}"));
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first: Value = serde_json::from_str(&lines.next().expect("a first line").unwrap()).unwrap();
        assert_eq!(first["event"], "listening", "{first}");
        let address = first["address"].as_str().unwrap().to_owned();
        let events = Arc::new(Mutex::new(vec![first]));
        let all = Arc::clone(&events);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                all.lock().unwrap().push(serde_json::from_str(&line).unwrap());
            }
        });
        Self { child, address, events }
    }

    /// Waits for an event of this kind, after the first `skip` of them.
    fn event(&self, kind: &str, skip: usize) -> Value {
        let begin = Instant::now();
        loop {
            let found = self.events.lock().unwrap().iter().filter(|event| event["event"] == kind).nth(skip).cloned();
            if let Some(event) = found {
                return event;
            }
            assert!(begin.elapsed() < Duration::from_secs(20), "no '{kind}' among {:?}", self.events.lock().unwrap());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn kill(&mut self) -> String {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.address.clone()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn signal(name: &str, pid: u64) {
    assert!(Command::new("kill").args([format!("-{name}"), pid.to_string()]).status().unwrap().success());
}

#[test]
fn a_remote_processor_equals_the_simulator_bit_for_bit() {
    let site = site();
    let (camera, gate) = (site.device("camera"), site.device("gate"));
    let expected = site.expected(4);
    let mut raw = None;
    for mode in [WireMode::Straightforward, WireMode::Increments] {
        for devices in [&[&camera][..], &[&camera, &gate][..]] {
            let mut remote = site.connect(devices, &site.options(mode));
            for (step, expected) in (0..).zip(&expected) {
                assert_eq!(site.step(&mut remote, step), *expected, "{mode:?}, {} devices, step {step}", devices.len());
            }
            let report = remote.report();
            assert_eq!((report.forwards, report.pictures), (4, 4 * PICTURES as u64));
            assert_eq!((report.reconnects, report.hangs, report.crashes), (0, 0, 0));
            assert!(report.activations_up_bytes < report.wire_up_bytes);
            match mode {
                WireMode::Straightforward => {
                    assert_eq!(report.activations_up_bytes, report.activations_raw_bytes);
                    raw = Some(report);
                }
                _ => {
                    let raw = raw.expect("the straightforward run came first");
                    assert_eq!(report.activations_raw_bytes, raw.activations_raw_bytes);
                    assert!(report.weights_down_bytes * 4 < report.weights_raw_bytes, "{report:?}");
                    assert!(report.activations_up_bytes * 2 < report.activations_raw_bytes, "{report:?}");
                    assert!(report.entropy_up_bits > 0.0 && report.missed_values > 0, "{report:?}");
                }
            }
        }
    }
}

#[test]
fn a_plan_and_another_model_reach_the_devices() {
    let site = site();
    let camera = site.device("camera");
    let mut remote = site.connect(&[&camera], &site.options(WireMode::Increments));
    let mut simulator = site.simulator();
    let plan = Protection::full(&site.program, chipfit_npu::Vote::Output);
    for plan in [plan, Protection::none()] {
        remote.protect(&plan).unwrap();
        simulator.protect(&plan).unwrap();
        assert_eq!(site.step(&mut remote, 3), site.step(&mut simulator, 3));
    }
    // The model as it came takes the changed weights back.
    remote.load(&site.model).unwrap();
    simulator.load(&site.model).unwrap();
    assert_eq!(site.forward(&mut remote, 9), site.forward(&mut simulator, 9));
}

#[test]
fn onnx_runtime_can_be_hosted() {
    use chipfit_npu::onnxruntime::OnnxRuntimeProcessor;
    use chipfit_run::engine::{OnnxRuntime, Places};
    let site = site();
    if std::env::var_os("CHIPFIT_PYTHON").is_none() {
        eprintln!("skipped: CHIPFIT_PYTHON names no Python with onnxruntime");
        return;
    }
    let runtime = OnnxRuntime::find(&Places::from_environment()).unwrap();
    let mut here = OnnxRuntimeProcessor::new(&site.model, site.program.clone(), runtime).unwrap();
    let text = "name = \"camera\"\npki = \"pki/devices/camera\"\nprocessor = \"onnxruntime\"\n";
    fs::write(site.folder.path("camera.toml"), text).unwrap();
    let camera = site.device("camera");
    let expected: Vec<Trace> = (0..3).map(|step| site.step(&mut here, step)).collect();
    for mode in [WireMode::Straightforward, WireMode::Increments] {
        let mut remote = site.connect(&[&camera], &site.options(mode));
        for (step, expected) in (0..).zip(&expected) {
            assert_eq!(site.step(&mut remote, step), *expected, "{mode:?} step {step}");
        }
    }
}

#[test]
fn more_errors_than_expected_take_a_second_round() {
    let site = site();
    // Ten times the errors, of which a plan leaves few: what the trainer learns under the plan is too little without it.
    let many = FAULTS.replace("1e-5", "1e-4");
    fs::write(site.folder.path("f.toml"), &many).unwrap();
    let camera = site.device("camera");
    let mut remote = site.connect(&[&camera], &site.options(WireMode::Increments));
    let faults = Faults::resolve(&FaultsFile::parse(&many).unwrap(), &site.program, SEED).unwrap();
    let simulator = Simulator::new(site.program.clone(), SimulatorOptions::default()).unwrap();
    let mut simulator = simulator.with_faults(Arc::new(faults), SEED);
    let all = Protection::full(&site.program, chipfit_npu::Vote::Operation);
    remote.protect(&all).unwrap();
    simulator.protect(&all).unwrap();
    for step in 0..4 {
        assert_eq!(site.forward(&mut remote, step), site.forward(&mut simulator, step));
    }
    let calm = remote.report();
    remote.protect(&Protection::none()).unwrap();
    simulator.protect(&Protection::none()).unwrap();
    assert_eq!(site.forward(&mut remote, 5), site.forward(&mut simulator, 5));
    let struck = remote.report().since(&calm);
    assert_eq!((struck.forwards, struck.second_rounds), (1, 1), "{struck:?}");
}

#[test]
fn a_killed_device_is_waited_for_and_the_run_goes_on_as_if_nothing_had_happened() {
    let site = site();
    let expected = site.expected(6);
    for mode in [WireMode::Straightforward, WireMode::Increments] {
        let mut camera = site.device("camera");
        let mut remote = site.connect(&[&camera], &site.options(mode));
        for (step, expected) in (0..).zip(&expected) {
            if step == 2 {
                // Between two steps.
                let address = camera.kill();
                camera = Device::start(&site.folder, &format!("--listen {address} --config camera.toml"));
            }
            if step == 4 {
                // While the trainer waits: the device comes back only after the order was given.
                let address = camera.kill();
                let trace = std::thread::scope(|scope| {
                    let work = scope.spawn(|| site.step(&mut remote, step));
                    std::thread::sleep(Duration::from_millis(300));
                    camera = Device::start(&site.folder, &format!("--listen {address} --config camera.toml"));
                    work.join().unwrap()
                });
                assert_eq!(trace, *expected);
                continue;
            }
            assert_eq!(site.step(&mut remote, step), *expected, "{mode:?} step {step}");
        }
        assert_eq!(remote.report().reconnects, 2);
    }
}

/// A relay to `target` that cuts its connections after so many bytes from the device, each in turn; then it cuts no more.
fn cutting_relay(target: &str, budgets: Vec<usize>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, target) = (listener.local_addr().unwrap().to_string(), target.to_owned());
    std::thread::spawn(move || {
        let mut budgets = budgets.into_iter();
        for near in listener.incoming() {
            let near = near.unwrap();
            let Ok(far) = TcpStream::connect(&target) else { continue };
            let budget = budgets.next().unwrap_or(usize::MAX);
            let (mut up, mut down) = (near.try_clone().unwrap(), far.try_clone().unwrap());
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut up, &mut down);
                let _ = down.shutdown(Shutdown::Both);
            });
            std::thread::spawn(move || {
                let (mut left, mut buffer) = (budget, [0; 512]);
                while let Ok(read @ 1..) = (&far).read(&mut buffer) {
                    let part = read.min(left);
                    if (&near).write_all(&buffer[..part]).is_err() || part == left {
                        break;
                    }
                    left -= part;
                }
                let _ = (near.shutdown(Shutdown::Both), far.shutdown(Shutdown::Both));
            });
        }
    });
    address
}

#[test]
fn a_link_cut_anywhere_changes_nothing() {
    let site = site();
    let camera = site.device("camera");
    let expected = site.expected(4);
    for mode in [WireMode::Straightforward, WireMode::Increments] {
        // Within the handshake, the greeting, answers to load and work, and in between.
        let budgets = vec![1_500, 2_400, 5_000, 7_777];
        let relay = cutting_relay(&camera.address, budgets);
        let address = relay.parse().unwrap();
        let options = site.options(mode);
        let mut remote = RemoteProcessor::connect(&[address], &site.model, &LowerOptions::default(), &options).unwrap();
        for (step, expected) in (0..).zip(&expected) {
            assert_eq!(site.step(&mut remote, step), *expected, "{mode:?} step {step}");
        }
        assert!(remote.report().reconnects > 0, "{:?}", remote.report());
    }
}

#[test]
fn a_hanging_processor_is_killed_and_started_anew() {
    let site = site();
    site.config("camera", "camera", "deadline_s = 1.0\n");
    let camera = site.device("camera");
    let mut remote = site.connect(&[&camera], &site.options(WireMode::Increments));
    let expected = site.expected(2);
    assert_eq!(site.step(&mut remote, 0), expected[0]);
    let worker = camera.event("worker_started", 0)["pid"].as_u64().unwrap();
    signal("STOP", worker);
    assert_eq!(site.step(&mut remote, 1), expected[1]);
    assert_eq!(remote.report().hangs, 1);
    camera.event("worker_killed", 0);
    assert_ne!(camera.event("worker_started", 1)["pid"].as_u64().unwrap(), worker);
}

#[test]
fn a_processor_that_dies_is_replaced() {
    let site = site();
    let camera = site.device("camera");
    let mut remote = site.connect(&[&camera], &site.options(WireMode::Increments));
    let expected = site.expected(2);
    assert_eq!(site.step(&mut remote, 0), expected[0]);
    signal("KILL", camera.event("worker_started", 0)["pid"].as_u64().unwrap());
    assert_eq!(site.step(&mut remote, 1), expected[1]);
    assert_eq!(remote.report().crashes, 1);
}

#[test]
fn a_small_cache_asks_again_for_what_it_let_go() {
    let site = site();
    // Two pictures of 192 bytes and what they cost besides.
    site.config("camera", "camera", "[limits]\ncache_bytes = 600\n");
    let camera = site.device("camera");
    let mut remote = site.connect(&[&camera], &site.options(WireMode::Increments));
    for (step, expected) in (0..).zip(&site.expected(3)) {
        assert_eq!(site.step(&mut remote, step), *expected);
    }
    drop(remote);
    // A trainer that comes later does not know what the device holds: it is told what is missing.
    let mut later = site.connect(&[&camera], &site.options(WireMode::Increments));
    assert_eq!(site.step(&mut later, 0), site.expected(1)[0]);
    assert!(later.report().resent_pictures > 0, "{:?}", later.report());
}

#[test]
fn garbage_on_the_port_stops_nothing() {
    let site = site();
    let camera = site.device("camera");
    let mut remote = site.connect(&[&camera], &site.options(WireMode::Increments));
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 4000], &[0x16, 3, 1, 0xff, 0xff, 1, 0, 0, 0]] {
        let mut stream = TcpStream::connect(&camera.address).unwrap();
        stream.write_all(garbage).unwrap();
    }
    assert_eq!(site.step(&mut remote, 0), site.expected(1)[0]);
    camera.event("refused", 1);
    assert_eq!(remote.report().reconnects, 0);
}

#[test]
fn who_is_not_believed_is_told_so_at_once() {
    let (site, other) = (site(), Folder::new());
    other.run("pki init").expect(0);
    let camera = site.device("camera");
    let connect = |trust: Trust, address: &str| {
        let begin = Instant::now();
        let result = RemoteProcessor::connect(
            &[address.parse().unwrap()],
            &site.model,
            &LowerOptions::default(),
            &RemoteOptions::new(trust),
        );
        assert!(begin.elapsed() < Duration::from_secs(10), "no patience with what cannot get better");
        result.expect_err("refused").to_string()
    };
    let trainer = Trust::Bundle(site.folder.path("pki/trainer"));
    assert!(connect(Trust::Bundle(other.path("pki/trainer")), &camera.address).contains("certificate"));
    assert!(connect(Trust::Bundle(site.folder.path("pki/devices/gate")), &camera.address).contains("certificate"));
    assert!(connect(trainer, &format!("gate@{}", camera.address)).contains("certificate"));
}

#[test]
fn plain_tcp_needs_the_flag_on_both_sides_and_loopback() {
    let site = site();
    fs::write(site.folder.path("plain.toml"), format!("faults = \"f.toml\"\nseed = {SEED}\n")).unwrap();
    let missing = site.folder.run("device --listen 127.0.0.1:0 --config plain.toml").expect(1);
    assert!(missing.err().contains("--insecure-loopback"), "{}", missing.err());
    let beyond = site.folder.run("device --listen 0.0.0.0:0 --config plain.toml --insecure-loopback").expect(1);
    assert!(beyond.err().contains("loopback"), "{}", beyond.err());
    let both = site.folder.run("device --listen 127.0.0.1:0 --config camera.toml --insecure-loopback").expect(1);
    assert!(both.err().contains("--insecure-loopback"), "{}", both.err());
    let device = Device::start(&site.folder, "--listen 127.0.0.1:0 --config plain.toml --insecure-loopback");
    let mut remote = site.connect(&[&device], &RemoteOptions::new(Trust::InsecureLoopback));
    assert_eq!(site.step(&mut remote, 0), site.expected(1)[0]);
}

#[test]
fn a_shaped_link_takes_its_time_and_changes_nothing() {
    let site = site();
    let camera = site.device("camera");
    let mut options = site.options(WireMode::Straightforward);
    options.shape = LinkShape { rate: "10Mbit".parse().ok(), delay: "20ms".parse().unwrap() };
    let mut remote = site.connect(&[&camera], &options);
    let begin = Instant::now();
    assert_eq!(site.step(&mut remote, 0), site.expected(1)[0]);
    assert!(begin.elapsed() >= Duration::from_millis(40), "there and back");
    let report = remote.report();
    assert!(report.wire_seconds >= 0.035 && report.device_seconds < report.wire_seconds, "{report:?}");
}

#[test]
fn a_second_trainer_is_told_that_the_device_is_busy() {
    let site = site();
    let camera = site.device("camera");
    let mut first = site.connect(&[&camera], &site.options(WireMode::Increments));
    let mut options = site.options(WireMode::Increments);
    options.patience = Duration::from_millis(500);
    let address = camera.address.parse().unwrap();
    let second = RemoteProcessor::connect(&[address], &site.model, &LowerOptions::default(), &options);
    let text = second.expect_err("refused").to_string();
    assert!(text.contains("another run has this device"), "{text}");
    assert_eq!(site.step(&mut first, 0), site.expected(1)[0]);
}

#[test]
fn a_trainer_that_starts_again_takes_its_device_over() {
    let site = site();
    let camera = site.device("camera");
    let options = RemoteOptions { run: Some([9; 16]), ..site.options(WireMode::Increments) };
    // The first one is alive for all that the device knows.
    let mut first = site.connect(&[&camera], &options);
    let expected = site.expected(2);
    assert_eq!(site.step(&mut first, 0), expected[0]);
    let mut second = site.connect(&[&camera], &options);
    for (step, expected) in (0..).zip(&expected) {
        assert_eq!(site.step(&mut second, step), *expected);
    }
}

#[test]
fn the_daemon_ends_cleanly_when_told() {
    let site = site();
    let mut camera = site.device("camera");
    let mut remote = site.connect(&[&camera], &site.options(WireMode::Increments));
    assert_eq!(site.step(&mut remote, 0), site.expected(1)[0]);
    let worker = camera.event("worker_started", 0)["pid"].as_u64().unwrap();
    signal("TERM", u64::from(camera.child.id()));
    assert!(camera.child.wait().unwrap().success());
    camera.event("stopping", 0);
    let begin = Instant::now();
    while fs::metadata(format!("/proc/{worker}")).is_ok() && begin.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(fs::metadata(format!("/proc/{worker}")).is_err(), "the processor's process outlives the daemon");
}

#[test]
fn a_wrong_configuration_is_one_clear_line() {
    let site = site();
    for (text, part) in [
        ("speed = 1\n", "speed"),
        ("name = \"gate\"\npki = \"pki/devices/camera\"\n", "not for 'gate'"),
        ("pki = \"nowhere\"\n", "nowhere"),
    ] {
        fs::write(site.folder.path("bad.toml"), text).unwrap();
        let done = site.folder.run("device --listen 127.0.0.1:0 --config bad.toml").expect(1);
        assert!(done.err().contains(part) && done.err().lines().count() == 1, "{text}: {}", done.err());
    }
    // What only shows with a model is told to the trainer.
    fs::write(site.folder.path("f.toml"), "[[fault]]\nsites = [\"mul\"]\nkind = \"flip\"\nber = 2\n").unwrap();
    let camera = site.device("camera");
    let address = camera.address.parse().unwrap();
    let options = site.options(WireMode::Increments);
    let failed = RemoteProcessor::connect(&[address], &site.model, &LowerOptions::default(), &options);
    assert!(failed.expect_err("refused").to_string().contains("ber"));
}
