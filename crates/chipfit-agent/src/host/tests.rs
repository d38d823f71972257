//! The child's answers, one message at a time: what fits is done, what does not is refused by its code, nothing panics.

use chipfit_model::build::attr_is;
use chipfit_npu::lower::LowerOptions;
use chipfit_npu::testing::qdq::Qdq;
use chipfit_wire::activation::Mode as Sending;
use chipfit_wire::message::{NewPicture, PictureRef, Tag, View as SeenAs, picture_hash};

use super::*;

const TAG: Tag = Tag { step: 1, attempt: 1 };

/// Input `[1, 2, 4, 4]`, a 3x3 convolution to 3 channels, Relu.
fn model() -> Model {
    let mut qdq = Qdq::new(&[1, 2, 4, 4], 0.05, 128);
    let x = qdq.quantised("x", 0.05, 128);
    let w = qdq.weights(&[3, 2, 3, 3], &[0.01, 0.02, 0.03]);
    let b = qdq.bias(&[100, -200, 300], &[0.05 * 0.01, 0.05 * 0.02, 0.05 * 0.03]);
    let conv = qdq.node("Conv", &[&x, &w, &b], vec![attr_is("pads", &[1, 1, 1, 1])]);
    let relu = qdq.node("Relu", &[&conv], vec![]);
    let y = qdq.quantised(&relu, 0.1, 7);
    qdq.model(&y)
}

fn program() -> Program {
    Program::lower(&model(), &LowerOptions::default()).expect("a program")
}

fn load() -> Load {
    Load {
        tag: TAG,
        identity: [3; 32],
        model: Some(model().to_bytes().expect("bytes").into()),
        lowering: lowering::to_text(&LowerOptions::default()).into_bytes().into(),
        plan: String::new(),
        weights: Vec::new().into(),
        weights_hash: Constants::of(&program()).hash(),
    }
}

fn loaded() -> Host {
    let mut host = Host::new(DeviceConfig::default());
    let answer = host.answer(load().into());
    assert!(matches!(answer, Message::Loaded(_)), "{answer:?}");
    host
}

fn work() -> Work {
    let picture: Vec<u8> = (0..32).map(|at| at * 7).collect();
    let hash = picture_hash(&picture);
    let weights = Constants::of(&program()).hash();
    Work {
        tag: TAG,
        trial: 5,
        base_hash: weights,
        update: None,
        weights_hash: weights,
        mode: Mode::Straightforward,
        pictures: vec![PictureRef { id: 9, hash, view: SeenAs::default() }],
        new_pictures: vec![NewPicture { hash, bytes: picture.into() }],
        wanted: vec![Varint(1)],
        parameters: Vec::new(),
    }
}

fn code(answer: &Message) -> Code {
    match answer {
        Message::Error(report) => report.code,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_work_gives_its_tensors_as_they_are_or_as_increments() {
    let mut host = loaded();
    let Message::Trace(raw) = host.answer(work().into()) else { panic!("no trace") };
    let [tensor] = raw.body.tensors.as_slice() else { panic!("{:?}", raw.body.tensors) };
    assert_eq!((tensor.bytes.len(), tensor.encoding), (48, Encoding::Raw));
    assert_eq!(raw.body.output.bytes, tensor.bytes);
    let parameters = Parameters { mode: Sending::Entropy, key: 4 };
    let coded = Work { mode: Mode::Increments, parameters: vec![parameters.to_bytes().to_vec().into()], ..work() };
    let Message::Trace(trace) = host.answer(coded.into()) else { panic!("no trace") };
    let [payload] = trace.body.tensors.as_slice() else { panic!("{:?}", trace.body.tensors) };
    assert_eq!((payload.encoding, payload.check), (Encoding::Increments, tensor.check));
    assert!(trace.body.output.bytes.is_empty(), "the output is among the tensors");
    let question = TensorRequest { tensor: Varint(1), bytes: activation::Request::Entropy.to_bytes().to_vec().into() };
    let more = More { tag: TAG, work: [0; 32], requests: vec![question] };
    let Message::MoreTrace(more) = host.answer(more.into()) else { panic!("no answer") };
    assert_eq!(more.answers.len(), 1);
}

#[test]
fn what_does_not_fit_is_refused_by_its_code() {
    let mut empty = Host::new(DeviceConfig::default());
    assert_eq!(code(&empty.answer(work().into())), Code::NoModel);
    assert_eq!(code(&empty.answer(Load { model: None, ..load() }.into())), Code::NoModel);
    let bad_loads = [
        (Load { model: Some(vec![1, 2, 3].into()), ..load() }, Code::BadModel),
        (Load { lowering: vec![0xff].into(), ..load() }, Code::BadModel),
        (Load { plan: "vote = \"none\"".to_owned(), ..load() }, Code::BadPlan),
        (Load { weights: vec![9].into(), ..load() }, Code::BadUpdate),
        (Load { weights_hash: [0; 32], ..load() }, Code::WeightHash),
    ];
    for (bad, expected) in bad_loads {
        let mut host = loaded();
        assert_eq!(code(&host.answer(bad.into())), expected);
        assert_eq!(code(&host.answer(work().into())), Code::NoModel, "a failed load leaves nothing behind");
    }
    let increments = Work { mode: Mode::Increments, ..work() };
    let picture = NewPicture { hash: work().pictures[0].hash, bytes: vec![1, 2, 3].into() };
    let bad_works = [
        (Work { base_hash: [1; 32], weights_hash: [2; 32], ..work() }, Code::WrongBase),
        (Work { update: Some(vec![7].into()), weights_hash: [2; 32], ..work() }, Code::BadUpdate),
        (Work { new_pictures: Vec::new(), ..work() }, Code::BadPicture),
        (Work { new_pictures: vec![picture], ..work() }, Code::BadPicture),
        (Work { wanted: vec![Varint(2)], ..work() }, Code::BadWork),
        (Work { wanted: vec![Varint(u32::MAX)], ..work() }, Code::BadWork),
        (Work { wanted: vec![Varint(1), Varint(1)], ..work() }, Code::BadWork),
        (increments.clone(), Code::BadWork),
        (Work { parameters: vec![vec![1].into()], ..increments.clone() }, Code::BadWork),
        (Work { parameters: vec![vec![0xff; PARAMETERS_BYTES].into()], ..increments }, Code::BadWork),
    ];
    let mut host = loaded();
    for (bad, expected) in bad_works {
        let answer = host.answer(bad.clone().into());
        assert_eq!(code(&answer), expected, "{bad:?} {answer:?}");
    }
    assert!(matches!(host.answer(work().into()), Message::Trace(_)), "it still works");
    let question = TensorRequest { tensor: Varint(1), bytes: Vec::new().into() };
    let more = More { tag: TAG, work: [0; 32], requests: vec![question] };
    assert_eq!(code(&host.answer(more.into())), Code::BadWork, "tensors as they are have nothing more to say");
    assert_eq!(code(&host.answer(Message::Bye(chipfit_wire::message::Bye { text: String::new() }))), Code::Unexpected);
}

#[test]
fn an_update_is_applied_once_and_a_repeated_work_is_answered_alike() {
    let mut simulator = Simulator::new(program(), SimulatorOptions::default()).expect("a simulator");
    let old = Constants::of(simulator.program());
    let name = program().steps().iter().find_map(|step| match &step.op {
        chipfit_npu::Op::Linear(linear) => Some(linear.weights_name.clone()),
        _ => None,
    });
    let delta = chipfit_npu::TensorDelta { name: name.expect("weights"), changes: vec![(3, -77), (20, 5)] };
    simulator.update(&[delta]).expect("an update");
    let new = Constants::of(simulator.program());
    let update = new.increment_from(&old).expect("an increment");
    let work = Work { update: Some(update.into()), weights_hash: new.hash(), ..work() };
    let mut host = loaded();
    let mut traces = Vec::new();
    for _ in 0..2 {
        let Message::Trace(trace) = host.answer(work.clone().into()) else { panic!("no trace") };
        traces.push((trace.body.output, trace.body.tensors));
    }
    assert_eq!(traces[0], traces[1]);
    let ids = [9];
    let batch = Batch { pictures: &ids, input: &work.new_pictures[0].bytes };
    let expected = simulator.forward(&Request { batch, trial: 5, views: &[], wanted: &[] }).expect("a trace");
    assert_eq!(*traces[0].0.bytes, *expected.output);
}

#[test]
fn a_device_that_rounds_otherwise_says_so() {
    let config = DeviceConfig { requantize: Some(Rounding::Fixed), ..DeviceConfig::default() };
    let Message::Error(report) = Host::new(config).answer(load().into()) else { panic!("accepted") };
    assert_eq!(report.code, Code::BadModel);
    assert!(report.text.contains("--requantize fixed"), "{}", report.text);
}
