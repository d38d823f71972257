use super::*;
use crate::message::{ErrorReport, Heartbeat, Hello, Missing, NewPicture, PictureRef, Pictures, Protect, VersionRange};
use crate::message::{Load, More, model_identity};

/// A device, what it does gathered by kind.
struct Rig {
    device: Device,
    now: Milliseconds,
}

#[derive(Default, Debug)]
struct Did {
    sent: Vec<(LinkId, Message)>,
    closed: Vec<LinkId>,
    started: Vec<(JobId, Task)>,
    killed: Vec<JobId>,
}

impl Did {
    /// The code of the one error that was sent.
    fn code(&self) -> Option<Code> {
        match self.sent.as_slice() {
            [(_, Message::Error(ErrorReport { code, .. }))] => Some(*code),
            _ => None,
        }
    }

    fn job(&self) -> JobId {
        match self.started.as_slice() {
            [(job, _)] => *job,
            other => panic!("{other:?} instead of one task"),
        }
    }
}

fn hello(run: u8) -> Hello {
    Hello {
        versions: VersionRange { major_low: 1, major_high: 1, minor: 0 },
        name: String::new(),
        run: [run; 16],
        limits: Limits { in_flight: 1 << 16, ..Limits::default() },
        heartbeat_ms: 1_000,
    }
}

fn tag(step: u64, attempt: u32) -> Tag {
    Tag { step, attempt }
}

fn load(tag: Tag) -> Load {
    let LoadOrder { model, lowering, plan, weights, weights_hash } = load_order("");
    let identity = model_identity(&model, &lowering);
    Load { tag, identity, model: Some(model), lowering, plan, weights, weights_hash }
}

/// A work on the first weights, with the bytes of some pictures.
fn work(tag: Tag, pictures: &[u8], inline: &[u8]) -> Work {
    let new = |&id: &u8| NewPicture { hash: seen(id).hash, bytes: seen(id).bytes };
    Work {
        tag,
        trial: 1,
        base_hash: weights(0),
        update: None,
        weights_hash: weights(0),
        mode: Mode::Straightforward,
        pictures: pictures
            .iter()
            .map(|&id| PictureRef { id: id.into(), hash: seen(id).hash, view: View::default() })
            .collect(),
        new_pictures: inline.iter().map(new).collect(),
        wanted: Vec::new(),
        parameters: Vec::new(),
    }
}

impl Rig {
    fn new() -> Self {
        Self { device: Device::new(DeviceConfig::default(), None), now: 0 }
    }

    fn step(&mut self, event: DeviceEvent) -> Did {
        let mut did = Did::default();
        for action in self.device.step(self.now, event) {
            match action {
                DeviceAction::Link(link, LinkAction::Send(message)) => did.sent.push((link, message)),
                DeviceAction::Link(link, LinkAction::Close) => did.closed.push(link),
                DeviceAction::Start(job, task) => did.started.push((job, task)),
                DeviceAction::Kill(job) => did.killed.push(job),
                DeviceAction::Link(_, LinkAction::Agree { .. }) | DeviceAction::Report(_) => {}
            }
        }
        did
    }

    fn hear(&mut self, link: LinkId, message: impl Into<Message>) -> Did {
        self.step(DeviceEvent::Link(link, LinkEvent::Message(message.into())))
    }

    fn connect(&mut self, link: LinkId, run: u8) -> Did {
        let did = self.step(DeviceEvent::Link(link, LinkEvent::Connected));
        if did.closed.is_empty() { self.hear(link, hello(run)) } else { did }
    }

    fn done(&mut self, job: JobId, result: JobResult) -> Did {
        self.step(DeviceEvent::Done(job, result))
    }

    /// Link 1 of run 1, the model loaded by the request (1, 1).
    fn ready() -> Self {
        let mut rig = Self::new();
        assert!(matches!(rig.connect(1, 1).sent.as_slice(), [(1, Message::HelloAck(_))]));
        let job = rig.hear(1, load(tag(1, 1))).job();
        let did = rig.done(job, JobResult::Loaded(weights(0)));
        assert!(matches!(did.sent.as_slice(), [(1, Message::Loaded(_))]));
        rig
    }

    /// The same with the work of pictures 1 and 2 done by the request (2, 1).
    fn worked() -> Self {
        let mut rig = Self::ready();
        let job = rig.hear(1, work(tag(2, 1), &[1, 2], &[1, 2])).job();
        let did = rig.done(job, JobResult::Traced(trace_body(5, 4)));
        assert!(matches!(did.sent.as_slice(), [(1, Message::Trace(_))]));
        rig
    }
}

#[test]
fn one_run_at_a_time_and_its_newest_link() {
    let mut rig = Rig::ready();
    let other = rig.connect(2, 2);
    assert_eq!((other.code(), other.closed), (Some(Code::Busy), vec![2]));
    let again = rig.connect(3, 1);
    assert_eq!(again.closed, [1]);
    let [(3, Message::HelloAck(ack))] = again.sent.as_slice() else { panic!("{again:?}") };
    assert_eq!(ack.held.weights, Some(weights(0)));
    assert!(rig.hear(1, work(tag(9, 1), &[1], &[1])).started.is_empty());
    rig.step(DeviceEvent::Link(3, LinkEvent::Disconnected));
    assert!(rig.connect(4, 2).closed.is_empty());
}

#[test]
fn links_that_are_not_greeted_are_bounded_in_number_and_time() {
    let mut rig = Rig::new();
    for link in 1..=4 {
        assert!(rig.step(DeviceEvent::Link(link, LinkEvent::Connected)).closed.is_empty());
    }
    let did = rig.step(DeviceEvent::Link(5, LinkEvent::Connected));
    assert_eq!((did.code(), did.closed), (Some(Code::Overloaded), vec![5]));
    let did = rig.hear(4, work(tag(1, 1), &[1], &[1]));
    assert_eq!((did.code(), did.closed), (Some(Code::Unexpected), vec![4]));
    rig.now = 9_999;
    assert!(rig.step(DeviceEvent::Tick).closed.is_empty());
    rig.now = 10_000;
    assert_eq!(rig.step(DeviceEvent::Tick).closed, [1, 2, 3]);
}

#[test]
fn greetings_that_cannot_be_agreed_on_are_refused() {
    let refused = |change: fn(&mut Hello)| {
        let mut rig = Rig::new();
        rig.step(DeviceEvent::Link(1, LinkEvent::Connected));
        let mut hello = hello(1);
        change(&mut hello);
        let did = rig.hear(1, hello);
        assert_eq!(did.closed, [1]);
        did.code()
    };
    assert_eq!(
        refused(|hello| hello.versions = VersionRange { major_low: 2, major_high: 3, minor: 0 }),
        Some(Code::Version)
    );
    assert_eq!(refused(|hello| hello.limits.frame = 1), Some(Code::Limits));
    let mut rig = Rig::new();
    rig.step(DeviceEvent::Link(1, LinkEvent::Connected));
    let did = rig.step(DeviceEvent::Link(1, LinkEvent::Refused(FrameError::Version { sequence: 0, major: 9 })));
    assert_eq!((did.code(), did.closed), (Some(Code::Version), vec![1]));
}

#[test]
fn old_and_repeated_requests_start_nothing() {
    let mut rig = Rig::ready();
    let job = rig.hear(1, work(tag(3, 1), &[1], &[1])).job();
    let nothing = |did: Did| did.sent.is_empty() && did.started.is_empty() && did.closed.is_empty();
    assert!(nothing(rig.hear(1, work(tag(3, 1), &[1], &[1]))));
    assert!(nothing(rig.hear(1, work(tag(2, 7), &[2], &[2]))));
    assert!(nothing(rig.hear(1, hello(1))));
    rig.done(job, JobResult::Traced(trace_body(5, 4)));
    assert!(nothing(rig.hear(1, load(tag(1, 1)))));
    // After the answer the same request is answered from what is kept.
    let did = rig.hear(1, work(tag(3, 1), &[1], &[]));
    assert!(did.started.is_empty() && matches!(did.sent.as_slice(), [(1, Message::Trace(_))]), "{did:?}");
}

#[test]
fn a_lost_answer_is_sent_again_without_computing() {
    let mut rig = Rig::ready();
    let job = rig.hear(1, work(tag(2, 1), &[1], &[1])).job();
    rig.step(DeviceEvent::Link(1, LinkEvent::Disconnected));
    assert!(rig.done(job, JobResult::Traced(trace_body(5, 4))).sent.is_empty());
    let did = rig.connect(2, 1);
    let [(2, Message::HelloAck(ack))] = did.sent.as_slice() else { panic!("{did:?}") };
    assert_eq!(ack.held.trace, Some(work(tag(0, 0), &[1], &[]).digest()));
    let did = rig.hear(2, work(tag(2, 2), &[1], &[]));
    let [(2, Message::Trace(trace))] = did.sent.as_slice() else { panic!("{did:?}") };
    assert_eq!((trace.tag, &trace.body, did.started.len()), (tag(2, 2), &trace_body(5, 4), 0));
}

#[test]
fn a_running_task_answers_the_request_that_came_last() {
    let mut rig = Rig::ready();
    let job = rig.hear(1, work(tag(2, 1), &[1], &[1])).job();
    rig.step(DeviceEvent::Link(1, LinkEvent::Disconnected));
    rig.connect(2, 1);
    assert!(rig.hear(2, work(tag(2, 2), &[1], &[])).started.is_empty());
    let did = rig.done(job, JobResult::Traced(trace_body(5, 4)));
    assert!(matches!(did.sent.as_slice(), [(2, Message::Trace(trace))] if trace.tag == tag(2, 2)), "{did:?}");
}

#[test]
fn another_request_waits_and_goes_with_its_link() {
    let mut rig = Rig::ready();
    let job = rig.hear(1, work(tag(2, 1), &[1], &[1])).job();
    assert!(rig.hear(1, Protect { tag: tag(3, 1), plan: "old".to_owned() }).started.is_empty());
    assert!(rig.hear(1, Protect { tag: tag(4, 1), plan: "new".to_owned() }).started.is_empty());
    let did = rig.done(job, JobResult::Traced(trace_body(5, 4)));
    assert!(matches!(did.started.as_slice(), [(_, Task::Protect(plan))] if plan == "new"), "{did:?}");

    let mut rig = Rig::ready();
    let job = rig.hear(1, work(tag(2, 1), &[1], &[1])).job();
    rig.hear(1, Protect { tag: tag(3, 1), plan: "old".to_owned() });
    rig.step(DeviceEvent::Link(1, LinkEvent::Disconnected));
    rig.connect(2, 1);
    assert!(rig.done(job, JobResult::Traced(trace_body(5, 4))).started.is_empty());
}

#[test]
fn a_hang_is_killed_at_its_deadline_and_reported() {
    let mut rig = Rig::worked();
    let job = rig.hear(1, work(tag(3, 1), &[1, 1], &[])).job();
    for second in 1..120 {
        rig.now = second * 1_000;
        rig.hear(1, Heartbeat { tag: tag(3, 1), working_ms: 0 });
        let did = rig.step(DeviceEvent::Tick);
        assert!(matches!(did.sent.as_slice(), [(1, Message::Heartbeat(beat))] if beat.tag == tag(3, 1)), "{did:?}");
        assert!(did.killed.is_empty());
    }
    rig.now = 120_000;
    let did = rig.step(DeviceEvent::Tick);
    assert_eq!((did.code(), did.killed), (Some(Code::Hang), vec![job]));
    let held = rig.device.held();
    assert_eq!((held.model.is_some(), held.weights, held.plan, held.trace), (true, None, None, None));
    // What the killed task says afterwards is nothing, and it does not end another one.
    assert!(rig.done(job, JobResult::Traced(trace_body(5, 4))).sent.is_empty());
    assert_eq!(rig.hear(1, work(tag(3, 2), &[1, 1], &[])).code(), Some(Code::NoModel));
    let next = rig.hear(1, Load { model: None, ..load(tag(3, 3)) }).job();
    assert!(rig.done(job, JobResult::Loaded(weights(0))).sent.is_empty());
    assert_eq!(rig.done(next, JobResult::Loaded(weights(0))).sent.len(), 1);
}

#[test]
fn a_processor_that_died_is_reported() {
    let mut rig = Rig::ready();
    rig.hear(1, work(tag(2, 1), &[1], &[1]));
    assert_eq!(rig.step(DeviceEvent::Died("signal 9".to_owned())).code(), Some(Code::Crash));
    assert_eq!(rig.device.held().weights, None);
    // One that dies between tasks is found by the next request.
    let mut rig = Rig::worked();
    assert!(rig.step(DeviceEvent::Died("signal 9".to_owned())).sent.is_empty());
    assert_eq!(rig.hear(1, work(tag(3, 1), &[1, 2], &[])).code(), Some(Code::NoModel));
}

#[test]
fn a_trace_of_another_plan_or_model_is_not_sent_again() {
    let mut rig = Rig::worked();
    let job = rig.hear(1, Protect { tag: tag(3, 1), plan: "all".to_owned() }).job();
    rig.done(job, JobResult::Protected);
    assert_eq!(rig.hear(1, work(tag(4, 1), &[1, 2], &[])).started.len(), 1);

    let mut rig = Rig::worked();
    let job = rig.hear(1, Load { plan: "all".to_owned(), ..load(tag(3, 1)) }).job();
    rig.done(job, JobResult::Loaded(weights(0)));
    assert_eq!(rig.hear(1, work(tag(4, 1), &[1, 2], &[])).started.len(), 1);
}

#[test]
fn weights_that_do_not_fit_are_refused() {
    let mut rig = Rig::ready();
    let other = Work { weights_hash: weights(3), base_hash: weights(3), ..work(tag(2, 1), &[1], &[1]) };
    assert_eq!(rig.hear(1, other).code(), Some(Code::WrongBase));
    let update = |attempt, base, after| Work {
        base_hash: weights(base),
        update: Some(vec![1].into()),
        weights_hash: weights(after),
        ..work(tag(2, attempt), &[1], &[1])
    };
    assert_eq!(rig.hear(1, update(2, 4, 5)).code(), Some(Code::WrongBase));
    // An update that was applied before is left out.
    let did = rig.hear(1, update(3, 9, 0));
    let [(_, Task::Work { work, pictures })] = did.started.as_slice() else { panic!("{did:?}") };
    assert_eq!((&work.update, work.base_hash, pictures.len()), (&None, weights(0), 1));
    rig.done(did.job(), JobResult::Traced(trace_body(5, 4)));
    let did = rig.hear(1, update(4, 0, 1));
    assert!(matches!(did.started.as_slice(), [(_, Task::Work { work, .. })] if work.update.is_some()));
    // Weights whose hash differs are gone for good.
    let failed = DeviceEvent::Failed { job: did.job(), code: Code::WeightHash, text: String::new(), weights: None };
    assert_eq!(rig.step(failed).code(), Some(Code::WeightHash));
    assert_eq!(rig.hear(1, update(5, 0, 1)).code(), Some(Code::NoModel));
}

#[test]
fn models_that_are_not_what_they_say_are_refused() {
    let mut rig = Rig::new();
    rig.connect(1, 1);
    assert_eq!(rig.hear(1, Load { model: None, ..load(tag(1, 1)) }).code(), Some(Code::NoModel));
    assert_eq!(rig.hear(1, Load { model: Some(vec![9].into()), ..load(tag(1, 2)) }).code(), Some(Code::BadModel));
    assert_eq!(rig.hear(1, Protect { tag: tag(1, 3), plan: String::new() }).code(), Some(Code::NoModel));
    let job = rig.hear(1, load(tag(1, 4))).job();
    assert_eq!(rig.done(job, JobResult::Loaded(weights(8))).code(), Some(Code::WeightHash));
    let job = rig.hear(1, load(tag(1, 5))).job();
    assert_eq!(rig.done(job, JobResult::Loaded(weights(0))).sent.len(), 1);
    let already = rig.hear(1, load(tag(1, 6)));
    assert!(already.started.is_empty() && matches!(already.sent.as_slice(), [(1, Message::Loaded(_))]));
}

#[test]
fn missing_pictures_are_asked_for_once_and_then_known() {
    let mut rig = Rig::worked();
    let did = rig.hear(1, work(tag(3, 1), &[4, 1, 3, 4], &[]));
    let [(1, Message::Missing(Missing { hashes, .. }))] = did.sent.as_slice() else { panic!("{did:?}") };
    let mut expected = vec![seen(3).hash, seen(4).hash];
    expected.sort_unstable();
    assert_eq!((hashes, did.started.len()), (&expected, 0));
    // The same request again changes nothing; pictures of another request neither.
    assert!(rig.hear(1, work(tag(3, 1), &[4, 1, 3, 4], &[])).sent.is_empty());
    let new = |id| NewPicture { hash: seen(id).hash, bytes: seen(id).bytes };
    assert!(rig.hear(1, Pictures { tag: tag(2, 1), pictures: vec![new(3), new(4)] }).started.is_empty());
    let did = rig.hear(1, Pictures { tag: tag(3, 1), pictures: vec![new(3), new(4)] });
    let [(job, Task::Work { pictures, .. })] = did.started.as_slice() else { panic!("{did:?}") };
    assert_eq!(pictures.iter().map(|bytes| bytes[0]).collect::<Vec<_>>(), [4, 1, 3, 4]);
    rig.done(*job, JobResult::Traced(trace_body(5, 4)));
    assert_eq!(rig.hear(1, work(tag(4, 1), &[3, 4], &[])).started.len(), 1);

    let mut rig = Rig::ready();
    let mut forged = work(tag(2, 1), &[1], &[1]);
    forged.new_pictures[0].bytes = vec![0; 10].into();
    assert_eq!(rig.hear(1, forged).code(), Some(Code::BadPicture));
}

#[test]
fn a_batch_larger_than_the_cache_is_computed_all_the_same() {
    let config = DeviceConfig { cache_bytes: 100, ..DeviceConfig::default() };
    let mut rig = Rig { device: Device::new(config, None), now: 0 };
    rig.connect(1, 1);
    let job = rig.hear(1, load(tag(1, 1))).job();
    rig.done(job, JobResult::Loaded(weights(0)));
    let did = rig.hear(1, work(tag(2, 1), &[1, 2, 3], &[1, 2, 3]));
    assert_eq!(did.started.len(), 1);
    assert!(rig.device.cached_bytes() <= 100);
}

#[test]
fn more_is_about_the_last_trace_only() {
    let mut rig = Rig::worked();
    let more = |attempt, work| More { tag: tag(3, attempt), work, requests: Vec::new() };
    assert_eq!(rig.hear(1, more(1, [0; 32])).code(), Some(Code::NoTrace));
    let job = rig.hear(1, more(2, work(tag(0, 0), &[1, 2], &[]).digest())).job();
    let did = rig.done(job, JobResult::More(Vec::new()));
    assert!(matches!(did.sent.as_slice(), [(1, Message::MoreTrace(_))]));
}

#[test]
fn an_answer_above_the_limits_is_an_error() {
    let mut rig = Rig::ready();
    let job = rig.hear(1, work(tag(2, 1), &[1], &[1])).job();
    assert_eq!(rig.done(job, JobResult::Traced(trace_body(5, 1 << 17))).code(), Some(Code::Limits));
}

#[test]
fn what_only_a_device_sends_is_refused() {
    let mut rig = Rig::ready();
    let did = rig.hear(1, Missing { tag: tag(1, 1), hashes: Vec::new() });
    assert_eq!((did.code(), did.closed), (Some(Code::Unexpected), vec![1]));
    let mut rig = Rig::ready();
    assert_eq!(rig.hear(1, work(Tag::default(), &[1], &[1])).closed, [1]);
}

#[test]
fn silence_costs_the_session_and_shutting_down_ends_it() {
    let mut rig = Rig::ready();
    rig.now = 10_000;
    assert_eq!(rig.step(DeviceEvent::Tick).closed, [1]);
    let mut rig = Rig::ready();
    let job = rig.hear(1, work(tag(2, 1), &[1], &[1])).job();
    let did = rig.step(DeviceEvent::Shutdown);
    assert!(matches!(did.sent.as_slice(), [(1, Message::Bye(_))]));
    assert_eq!((did.closed, did.killed), (vec![1], vec![job]));
    assert_eq!(rig.step(DeviceEvent::Link(2, LinkEvent::Connected)).closed, [2]);
}
