//! Each promise of each machine by itself, and both under events that no peer and no shell would send.

mod device;
mod trainer;

use super::*;
use crate::message::{HelloAck, Tag, TensorPayload, picture_hash, sha256};
use crate::testing::Random;

/// A model file, its identity, its weights' hash.
fn load_order(plan: &str) -> LoadOrder {
    LoadOrder {
        model: vec![1, 2, 3].into(),
        lowering: Blob::default(),
        plan: plan.to_owned(),
        weights: Blob::default(),
        weights_hash: weights(0),
    }
}

/// Hash of the weights after so many updates.
fn weights(update: u8) -> [u8; 32] {
    sha256(&[update])
}

fn seen(id: u8) -> OrderedPicture {
    let bytes: Blob = vec![id; 10].into();
    OrderedPicture { id: id.into(), hash: picture_hash(&bytes), view: View::default(), bytes }
}

/// The work of an update: from the weights before it to those after it.
fn work_order(update: u8, pictures: &[u8]) -> WorkOrder {
    WorkOrder {
        trial: update.into(),
        base_hash: weights(update.wrapping_sub(1)),
        update: Some(vec![update].into()),
        weights_hash: weights(update),
        mode: Mode::Straightforward,
        pictures: pictures.iter().map(|&id| seen(id)).collect(),
        wanted: Vec::new(),
        parameters: Vec::new(),
    }
}

fn trace_body(value: u8, bytes: usize) -> TraceBody {
    let output = TensorPayload {
        tensor: Default::default(),
        element: crate::message::ElementType::U8,
        shape: vec![crate::format::Varint(bytes as u32)],
        encoding: crate::message::Encoding::Raw,
        check: [0; 8],
        bytes: vec![value; bytes].into(),
    };
    TraceBody { strikes: None, processor_ns: 0, output, tensors: Vec::new() }
}

/// Events that come in any order, with messages of any content: no panic, no task beside a task, bounds hold.
#[test]
fn nothing_that_arrives_breaks_a_bound() {
    for seed in 0..400 {
        let mut random = Random(seed);
        let mut device = Device::new(DeviceConfig { cache_bytes: 500, ..DeviceConfig::default() }, None);
        let mut trainer = Trainer::new(TrainerConfig { retries: 2, reconnects: 5, ..TrainerConfig::default() });
        let (mut now, mut running, mut delivered) = (0, None, 0);
        let mut commands = 0;
        for _ in 0..150 {
            now += random.below(1_000) as u64;
            let link = random.below(6) as u64;
            let event = match random.below(10) {
                0 | 1 => LinkEvent::Connected,
                2 => LinkEvent::Disconnected,
                3 => LinkEvent::Alive,
                4 => LinkEvent::Refused(FrameError::Empty { sequence: 0 }),
                _ => LinkEvent::Message(plausible(&mut random)),
            };
            let to_device = match random.below(12) {
                0 => DeviceEvent::Tick,
                1 => DeviceEvent::Done(random.below(20) as u64, JobResult::Protected),
                2 => DeviceEvent::Done(running.unwrap_or(0), JobResult::Traced(trace_body(1, 5))),
                3 => DeviceEvent::Done(running.unwrap_or(0), JobResult::Loaded(weights(0))),
                4 => DeviceEvent::Died("toy".to_owned()),
                _ => DeviceEvent::Link(link, event.clone()),
            };
            if let DeviceEvent::Done(job, _) = &to_device
                && running == Some(*job)
            {
                running = None;
            }
            if matches!(to_device, DeviceEvent::Died(_)) {
                running = None;
            }
            for action in device.step(now, to_device) {
                match action {
                    DeviceAction::Start(job, _) => assert_eq!(running.replace(job), None, "seed {seed}"),
                    DeviceAction::Kill(job) => assert_eq!(running.take(), Some(job), "seed {seed}"),
                    DeviceAction::Link(..) | DeviceAction::Report(_) => {}
                }
            }
            assert!(device.waiting().0 <= 4 && device.waiting().1 <= 1 && device.cached_bytes() <= 500, "seed {seed}");

            let to_trainer = match random.below(8) {
                0 => TrainerEvent::Tick,
                1 => TrainerEvent::Unreachable("toy".to_owned()),
                2 => {
                    commands += 1;
                    let order = match random.below(3) {
                        0 => Order::Load(load_order("")),
                        1 => Order::Work(work_order(1, &[1, 2])),
                        _ => Order::More(Vec::new()),
                    };
                    TrainerEvent::Command(Command { step: commands, order })
                }
                3 => TrainerEvent::Weights { step: commands, increment: Blob::default(), hash: weights(1) },
                _ => TrainerEvent::Link(link, event),
            };
            let actions = trainer.step(now, to_trainer);
            delivered += actions.iter().filter(|action| matches!(action, TrainerAction::Deliver { .. })).count() as u64;
            assert!(trainer.pending() <= 5, "seed {seed}");
        }
        delivered += trainer
            .step(now, TrainerEvent::Shutdown)
            .iter()
            .filter(|action| matches!(action, TrainerAction::Deliver { .. }))
            .count() as u64;
        assert_eq!(delivered, commands, "seed {seed}: commands and deliveries");
    }
}

/// Any message, with a tag that may well be the one that is waited for.
fn plausible(random: &mut Random) -> Message {
    let mut message = random.message();
    let near = Tag { step: random.below(4) as u64, attempt: random.below(3) as u32 };
    match &mut message {
        Message::Load(body) => body.tag = near,
        Message::Loaded(body) => body.tag = near,
        Message::Work(body) => body.tag = near,
        Message::Missing(body) => body.tag = near,
        Message::Trace(body) => body.tag = near,
        Message::Error(body) => body.tag = near,
        Message::Hello(body) => {
            body.versions.major_low = 0;
            body.run = [0; 16];
            body.limits = Limits::default();
        }
        Message::HelloAck(body) => {
            (body.major, body.minor, body.limits) = (1, 0, Limits::default());
        }
        _ => {}
    }
    message
}
