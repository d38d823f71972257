use super::*;
use crate::message::{ErrorReport, Loaded, Missing, Trace, Work, model_identity, plan_hash};

/// A trainer on link 1, what it does gathered by kind.
struct Rig {
    trainer: Trainer,
    now: Milliseconds,
    link: LinkId,
}

#[derive(Default)]
struct Did {
    sent: Vec<Message>,
    delivered: Vec<(u64, Outcome)>,
    connect: Option<u64>,
    closed: Vec<LinkId>,
    needs_weights: Option<u64>,
}

fn config() -> TrainerConfig {
    TrainerConfig { retries: 3, reconnects: 5, ..TrainerConfig::default() }
}

fn held(model: bool, weights: Option<[u8; 32]>, plan: &str) -> Held {
    let order = load_order("");
    let model = model.then(|| model_identity(&order.model, &order.lowering));
    Held { model, weights, plan: Some(plan_hash(plan)), ..Held::default() }
}

impl Rig {
    fn new() -> Self {
        Self { trainer: Trainer::new(config()), now: 0, link: 0 }
    }

    fn step(&mut self, event: TrainerEvent) -> Did {
        let mut did = Did::default();
        for action in self.trainer.step(self.now, event) {
            match action {
                TrainerAction::Connect { after_ms } => did.connect = Some(after_ms),
                TrainerAction::Link(_, LinkAction::Send(message)) => did.sent.push(message),
                TrainerAction::Link(link, LinkAction::Close) => did.closed.push(link),
                TrainerAction::NeedWeights { step, .. } => did.needs_weights = Some(step),
                TrainerAction::Deliver { step, outcome } => did.delivered.push((step, outcome)),
                TrainerAction::Link(_, LinkAction::Agree { .. }) | TrainerAction::Report(_) => {}
            }
        }
        did
    }

    fn command(&mut self, step: u64, order: Order) -> Did {
        self.step(TrainerEvent::Command(Command { step, order }))
    }

    fn hear(&mut self, message: impl Into<Message>) -> Did {
        self.step(TrainerEvent::Link(self.link, LinkEvent::Message(message.into())))
    }

    fn greet(&mut self, boot: u64, held: Held) -> Did {
        self.link += 1;
        let did = self.step(TrainerEvent::Link(self.link, LinkEvent::Connected));
        assert!(matches!(did.sent.as_slice(), [Message::Hello(_)]), "{:?}", did.sent);
        self.hear(HelloAck {
            major: 1,
            minor: 0,
            name: String::new(),
            description: String::new(),
            boot,
            cache_bytes: 10_000,
            limits: Limits::default(),
            heartbeat_ms: 1_000,
            held,
        })
    }

    /// With the model loaded and its own weights, by command 1.
    fn ready() -> Self {
        let mut rig = Self::new();
        assert_eq!(rig.command(1, Order::Load(load_order(""))).connect, Some(0));
        let did = rig.greet(1, held(true, Some(weights(0)), ""));
        assert_eq!((did.sent, did.delivered), (vec![], vec![(1, Outcome::Loaded)]));
        rig
    }

    fn lose(&mut self) -> Did {
        self.step(TrainerEvent::Link(self.link, LinkEvent::Disconnected))
    }
}

fn only_work(did: &Did) -> Work {
    match did.sent.as_slice() {
        [Message::Work(work)] => work.clone(),
        other => panic!("{other:?} instead of one work"),
    }
}

fn error(tag: Tag, code: Code) -> ErrorReport {
    ErrorReport { tag, code, text: "toy".to_owned() }
}

#[test]
fn what_the_device_holds_decides_what_is_sent() {
    // (held after the link was lost) -> messages until the work is sent.
    let lost = |held: Held| {
        let mut rig = Rig::ready();
        let first = only_work(&rig.command(2, Order::Work(work_order(1, &[1]))));
        assert_eq!((first.update.is_some(), first.new_pictures.len()), (true, 1));
        assert!(rig.lose().connect.is_some());
        let did = rig.greet(1, held);
        (rig, did)
    };
    let (_, before) = lost(held(true, Some(weights(0)), ""));
    assert!(only_work(&before).update.is_some());
    let (_, after) = lost(held(true, Some(weights(1)), ""));
    let work = only_work(&after);
    assert_eq!((work.update, work.base_hash), (None, weights(1)));

    for (has_model, held) in
        [(true, held(true, Some(weights(9)), "")), (true, held(true, None, "")), (false, Held::default())]
    {
        let (mut rig, did) = lost(held);
        assert_eq!((did.needs_weights, did.sent.len()), (Some(2), 0));
        let did = rig.step(TrainerEvent::Weights { step: 2, increment: vec![7].into(), hash: weights(1) });
        let [Message::Load(load)] = did.sent.as_slice() else { panic!("{:?}", did.sent) };
        assert_eq!((load.model.is_none(), load.weights_hash, &load.weights[..]), (has_model, weights(1), &[7][..]));
        let did = rig.hear(Loaded { tag: load.tag, held: super::trainer::held(true, Some(weights(1)), "") });
        assert_eq!(only_work(&did).update, None);
    }

    let (_, unprotected) = lost(held(true, Some(weights(0)), "another plan"));
    assert!(matches!(unprotected.sent.as_slice(), [Message::Protect(_)]));
}

#[test]
fn a_trace_that_the_device_still_has_needs_no_pictures() {
    let mut rig = Rig::ready();
    let work = only_work(&rig.command(2, Order::Work(work_order(1, &[1, 2]))));
    rig.lose();
    let held = Held { trace: Some(work.digest()), ..held(true, Some(weights(1)), "") };
    let again = only_work(&rig.greet(2, held));
    assert_eq!((again.new_pictures.len(), again.update), (0, None));
}

#[test]
fn more_about_a_trace_that_is_gone_computes_it_again() {
    let mut rig = Rig::ready();
    let work = only_work(&rig.command(2, Order::Work(work_order(1, &[1]))));
    rig.hear(Trace { tag: work.tag, body: trace_body(1, 4) });
    let requests = vec![TensorRequest { tensor: Default::default(), bytes: vec![3].into() }];
    let did = rig.command(3, Order::More(requests.clone()));
    let [Message::More(more)] = did.sent.as_slice() else { panic!("{:?}", did.sent) };
    assert_eq!((more.work, &more.requests), (work.digest(), &requests));
    for trace in [None, Some([9; 32])] {
        rig.lose();
        let did = rig.greet(1, Held { trace, ..held(true, Some(weights(1)), "") });
        assert_eq!(only_work(&did).digest(), work.digest());
    }
    let tag = Tag { step: 3, attempt: 3 };
    let did = rig.hear(Trace { tag, body: trace_body(1, 4) });
    assert_eq!(did.delivered, [(3, Outcome::Traced(trace_body(1, 4)))]);
}

#[test]
fn a_hang_is_tried_again_and_then_given_up() {
    let mut rig = Rig::ready();
    let mut did = rig.command(2, Order::Work(work_order(1, &[1])));
    for failures in 1..=4 {
        let tag = only_work(&did).tag;
        did = rig.hear(error(tag, Code::Hang));
        if failures == 4 {
            break;
        }
        // The weights are asked for once for each command.
        let loading = if failures == 1 {
            assert_eq!(did.needs_weights, Some(2));
            rig.step(TrainerEvent::Weights { step: 2, increment: Blob::default(), hash: weights(1) })
        } else {
            did
        };
        let Some(tag) = loading.sent.first().and_then(Message::tag) else { panic!("no load") };
        did = rig.hear(Loaded { tag, held: held(true, Some(weights(1)), "") });
    }
    let [(2, Outcome::Failed(failure))] = did.delivered.as_slice() else { panic!("{:?}", did.delivered) };
    assert_eq!((failure.code, failure.attempts), (Some(Code::Hang), 7));
    assert_eq!(rig.trainer.pending(), 0);
}

#[test]
fn a_model_is_sent_again_only_when_the_device_lost_it() {
    let mut rig = Rig::ready();
    let tag = only_work(&rig.command(2, Order::Work(work_order(1, &[1])))).tag;
    rig.hear(error(tag, Code::NoModel));
    let did = rig.step(TrainerEvent::Weights { step: 2, increment: Blob::default(), hash: weights(1) });
    let [Message::Load(load)] = did.sent.as_slice() else { panic!("{:?}", did.sent) };
    assert!(load.model.is_none());
    let did = rig.hear(error(load.tag, Code::NoModel));
    assert!(matches!(did.sent.as_slice(), [Message::Load(load)] if load.model.is_some()), "{:?}", did.sent);
}

#[test]
fn an_unreachable_device_is_given_up_after_waiting_longer_each_time() {
    let mut rig = Rig::new();
    let mut waits = vec![rig.command(1, Order::Load(load_order(""))).connect];
    rig.command(2, Order::Work(work_order(1, &[1])));
    let delivered = loop {
        let did = rig.step(TrainerEvent::Unreachable("refused".to_owned()));
        if did.connect.is_none() {
            break did.delivered;
        }
        waits.push(did.connect);
    };
    assert_eq!(waits, [0, 100, 200, 400, 800, 1_600].map(Some));
    let steps: Vec<u64> = delivered.iter().map(|(step, _)| *step).collect();
    assert_eq!(steps, [1, 2]);
    assert!(delivered.iter().all(|(_, outcome)| matches!(outcome, Outcome::Failed(Failure { code: None, .. }))));
    // The next command has all the patience again.
    assert_eq!(rig.command(3, Order::Load(load_order(""))).connect, Some(0));
}

#[test]
fn a_link_that_breaks_at_every_greeting_is_given_up() {
    let mut rig = Rig::ready();
    rig.command(2, Order::Work(work_order(1, &[1])));
    let mut losses = 0;
    while rig.lose().delivered.is_empty() {
        losses += 1;
        rig.greet(1, held(true, Some(weights(0)), ""));
    }
    assert_eq!(losses, 5);
}

#[test]
fn progress_renews_the_patience() {
    let mut rig = Rig::ready();
    let mut did = rig.command(2, Order::Work(work_order(1, &[1])));
    for step in 2..6 {
        for _ in 0..5 {
            rig.lose();
            did = rig.greet(1, held(true, Some(weights(1)), ""));
        }
        let body = trace_body(1, 4);
        assert_eq!(rig.hear(Trace { tag: only_work(&did).tag, body }).delivered.len(), 1);
        let next = WorkOrder { trial: step, update: None, base_hash: weights(1), ..work_order(1, &[1]) };
        did = rig.command(step + 1, Order::Work(next));
    }
}

#[test]
fn another_version_ends_the_session() {
    let mut rig = Rig::new();
    rig.command(1, Order::Load(load_order("")));
    rig.step(TrainerEvent::Link(1, LinkEvent::Connected));
    let did = rig.step(TrainerEvent::Link(1, LinkEvent::Refused(FrameError::Version { sequence: 0, major: 2 })));
    let [(1, Outcome::Failed(failure))] = did.delivered.as_slice() else { panic!("{:?}", did.delivered) };
    assert_eq!((failure.code, did.connect), (Some(Code::Version), None));
    assert_eq!(rig.command(2, Order::Load(load_order(""))).delivered.len(), 1);

    for code in [Code::Version, Code::Limits] {
        let mut rig = Rig::new();
        rig.command(1, Order::Load(load_order("")));
        rig.step(TrainerEvent::Link(1, LinkEvent::Connected));
        rig.link = 1;
        let did = rig.hear(error(Tag::default(), code));
        assert!(matches!(did.delivered.as_slice(), [(1, Outcome::Failed(failure))] if failure.code == Some(code)));
    }
    // A device that is busy may be free later.
    let mut rig = Rig::new();
    rig.command(1, Order::Load(load_order("")));
    rig.step(TrainerEvent::Link(1, LinkEvent::Connected));
    rig.link = 1;
    let did = rig.hear(error(Tag::default(), Code::Busy));
    assert_eq!((did.delivered.len(), did.connect, did.closed), (0, Some(100), vec![1]));
}

#[test]
fn late_and_repeated_answers_are_dropped() {
    let mut rig = Rig::ready();
    let tag = only_work(&rig.command(2, Order::Work(work_order(1, &[1])))).tag;
    let stale = Trace { tag: Tag { step: 1, ..tag }, body: trace_body(1, 4) };
    assert!(rig.hear(stale).delivered.is_empty());
    rig.lose();
    let old = rig.link;
    let again = only_work(&rig.greet(1, held(true, Some(weights(1)), ""))).tag;
    assert!(again > tag);
    let answer = |tag| Message::from(Trace { tag, body: trace_body(1, 4) });
    assert!(rig.hear(answer(tag)).delivered.is_empty());
    let late = rig.step(TrainerEvent::Link(old, LinkEvent::Message(answer(again))));
    assert!(late.delivered.is_empty());
    assert!(rig.step(TrainerEvent::Link(old, LinkEvent::Disconnected)).connect.is_none());
    assert_eq!(rig.hear(answer(again)).delivered.len(), 1);
    assert!(rig.hear(answer(again)).delivered.is_empty());
}

#[test]
fn pictures_travel_once_until_the_cache_is_lost() {
    let mut rig = Rig::ready();
    let mut number = 1;
    let mut sent = |rig: &mut Rig, pictures: &[u8]| {
        number += 1;
        let did = rig.command(number, Order::Work(WorkOrder { update: None, ..work_order(0, pictures) }));
        let mut order = only_work(&did);
        let ids: Vec<u8> = order.new_pictures.drain(..).map(|picture| picture.bytes[0]).collect();
        rig.hear(Trace { tag: order.tag, body: trace_body(1, 4) });
        ids
    };
    assert_eq!(sent(&mut rig, &[1, 2, 1]), [1, 2]);
    assert_eq!(sent(&mut rig, &[2, 3]), [3]);
    rig.lose();
    // A command is what asks for a link.
    let did = rig.command(10, Order::Work(WorkOrder { trial: 5, update: None, ..work_order(0, &[1, 4]) }));
    assert_eq!(did.connect, Some(100));
    let ids = |work: Work| work.new_pictures.iter().map(|picture| picture.bytes[0]).collect::<Vec<_>>();
    assert_eq!(ids(only_work(&rig.greet(1, held(true, Some(weights(0)), "")))), [4]);
    rig.lose();
    assert_eq!(ids(only_work(&rig.greet(2, held(true, Some(weights(0)), "")))), [1, 4]);
    rig.lose();
    // A cache filled by someone else: nothing is sent unasked, and what is missing is sent once.
    let work = only_work(&rig.greet(3, Held { pictures: 9, ..held(true, Some(weights(0)), "") }));
    assert!(work.new_pictures.is_empty());
    let missing = Missing { tag: work.tag, hashes: vec![seen(4).hash] };
    let did = rig.hear(missing.clone());
    let [Message::Pictures(pictures)] = did.sent.as_slice() else { panic!("{:?}", did.sent) };
    assert_eq!((pictures.tag, pictures.pictures[0].bytes[0], pictures.pictures.len()), (work.tag, 4, 1));
    assert!(rig.hear(missing).sent.is_empty());
}

#[test]
fn a_device_that_asks_for_other_pictures_is_left() {
    let mut rig = Rig::ready();
    let work = only_work(&rig.command(2, Order::Work(work_order(1, &[1]))));
    let did = rig.hear(Missing { tag: work.tag, hashes: vec![seen(9).hash] });
    assert_eq!((did.closed, did.connect, did.sent.len()), (vec![1], Some(100), 0));
}

#[test]
fn an_answer_of_another_shape_is_a_failure() {
    let mut rig = Rig::ready();
    let mut did = rig.command(2, Order::Work(WorkOrder { wanted: vec![4], ..work_order(1, &[1]) }));
    for _ in 0..3 {
        did = rig.hear(Trace { tag: only_work(&did).tag, body: trace_body(1, 4) });
        assert!(did.delivered.is_empty());
    }
    did = rig.hear(Trace { tag: only_work(&did).tag, body: trace_body(1, 4) });
    assert!(
        matches!(did.delivered.as_slice(), [(2, Outcome::Failed(failure))] if failure.code == Some(Code::Internal))
    );
    // A wrong kind of answer costs the link.
    let mut rig = Rig::ready();
    let tag = only_work(&rig.command(2, Order::Work(work_order(1, &[1])))).tag;
    assert_eq!(rig.hear(Loaded { tag, held: Held::default() }).closed, [1]);
}

#[test]
fn silence_and_an_answer_that_never_comes_cost_the_link() {
    let mut rig = Rig::ready();
    rig.command(2, Order::Work(work_order(1, &[1])));
    rig.now = 1_000;
    assert!(matches!(rig.step(TrainerEvent::Tick).sent.as_slice(), [Message::Heartbeat(_)]));
    rig.now = 9_999;
    assert!(rig.step(TrainerEvent::Tick).closed.is_empty());
    rig.now = 10_000;
    let did = rig.step(TrainerEvent::Tick);
    assert_eq!((did.closed, did.connect), (vec![1], Some(100)));

    let mut rig = Rig::ready();
    rig.command(2, Order::Work(work_order(1, &[1])));
    let beat = crate::message::Heartbeat { tag: Tag::default(), working_ms: 0 };
    let closed = (0..700).find(|second| {
        rig.now = second * 1_000;
        rig.hear(beat.clone());
        !rig.step(TrainerEvent::Tick).closed.is_empty()
    });
    assert_eq!(closed, Some(600));

    // An answer of which bytes come, or a request of which bytes leave, is under way however long it takes.
    let mut rig = Rig::ready();
    rig.command(2, Order::Work(work_order(1, &[1])));
    for second in 0..2_000 {
        rig.now = second * 1_000;
        rig.hear(beat.clone());
        let moves = if second < 1_000 { LinkEvent::Sent } else { LinkEvent::Alive };
        rig.step(TrainerEvent::Link(1, moves));
        assert!(rig.step(TrainerEvent::Tick).closed.is_empty(), "second {second}");
    }
    // What leaves says nothing about whether the device lives.
    rig.now += 10_000;
    rig.step(TrainerEvent::Link(1, LinkEvent::Sent));
    assert_eq!(rig.step(TrainerEvent::Tick).closed, [1]);
}

#[test]
fn commands_are_bounded_rise_and_are_delivered_in_order() {
    let mut rig = Rig::new();
    for step in 1..=5 {
        let order = if step == 1 { Order::Load(load_order("")) } else { Order::Protect(step.to_string()) };
        assert!(rig.command(step, order).delivered.is_empty());
    }
    let refused = |did: Did| match did.delivered.as_slice() {
        [(_, Outcome::Failed(failure))] => failure.code,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(rig.command(6, Order::Protect(String::new()))), Some(Code::Overloaded));
    assert_eq!(refused(rig.command(5, Order::Protect(String::new()))), Some(Code::Unexpected));
    assert_eq!(rig.trainer.pending(), 5);
    let did = rig.step(TrainerEvent::Shutdown);
    assert_eq!(did.delivered.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
}

#[test]
fn orders_that_cannot_be_served_fail_at_once() {
    let failed = |did: Did| match did.delivered.as_slice() {
        [(_, Outcome::Failed(failure))] => failure.code,
        other => panic!("{other:?}"),
    };
    let mut rig = Rig::new();
    assert_eq!(failed(rig.command(1, Order::Work(work_order(1, &[1])))), Some(Code::Unexpected));
    assert_eq!(failed(rig.command(2, Order::More(Vec::new()))), Some(Code::Unexpected));
    let mut rig = Rig::ready();
    assert_eq!(failed(rig.command(2, Order::Work(work_order(1, &[])))), Some(Code::BadWork));
    // Weights of another hash than the command's are the local side's mistake.
    rig.command(3, Order::Work(work_order(2, &[1])));
    let did = rig.step(TrainerEvent::Weights { step: 3, increment: Blob::default(), hash: weights(7) });
    assert_eq!(failed(did), Some(Code::WeightHash));
}

#[test]
fn shutting_down_says_so() {
    let mut rig = Rig::ready();
    let did = rig.step(TrainerEvent::Shutdown);
    assert!(matches!(did.sent.as_slice(), [Message::Bye(_)]));
    assert_eq!(did.closed, [1]);
}
