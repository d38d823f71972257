//! What is computed: a toy run whose every step depends on all results before, and the same run without any wire.

use chipfit_wire::format::{Blob, Varint};
use chipfit_wire::message::{
    ElementType, Encoding, Mode, PictureRef, TensorAnswer, TensorPayload, TensorRequest, TraceBody, View,
    model_identity, picture_hash, sha256, tensor_check,
};
use chipfit_wire::session::{LoadOrder, Order, OrderedPicture, WorkOrder};

use crate::random::Random;

/// One thing that the run does.
#[derive(Clone, Debug)]
pub(crate) enum Deed {
    Load { model: u64 },
    Protect { plan: String },
    Work { trial: u64, train: bool, pictures: Vec<(u64, View)>, wanted: u32, more: bool },
}

/// The list of deeds of a seed.
pub(crate) fn script(random: &mut Random) -> Vec<Deed> {
    let count = random.between(3, 10);
    let mut deeds = vec![Deed::Load { model: 1 }];
    for trial in 0..count {
        if random.chance(8) {
            deeds.push(Deed::Protect { plan: format!("units = {}", random.between(0, 3)) });
        }
        if random.chance(5) {
            deeds.push(Deed::Load { model: random.between(1, 3) });
        }
        let pictures = (0..random.between(1, 7))
            .map(|_| {
                let view =
                    View { flip: random.chance(50), down: random.chance(50).into(), right: random.chance(50).into() };
                (random.between(0, 12), view)
            })
            .collect();
        let (train, more) = (random.chance(80), random.chance(25));
        deeds.push(Deed::Work { trial, train, pictures, wanted: random.between(0, 3) as u32, more });
        // The same once more under another plan: another trace of a work with an equal digest.
        if random.chance(15)
            && let Some(Deed::Work { trial, pictures, wanted, .. }) = deeds.last().cloned()
        {
            deeds.push(Deed::Protect { plan: format!("twice = {trial}") });
            deeds.push(Deed::Work { trial, train: false, pictures, wanted, more: false });
        }
    }
    deeds
}

pub(crate) fn model(number: u64) -> Blob {
    (0..700_u64).map(|at| (at * number) as u8).collect()
}

pub(crate) fn picture(id: u64) -> Blob {
    (0..90_u64).map(|at| (at * 3 + id) as u8).collect()
}

/// The weights that a model comes with.
pub(crate) fn own_weights(model: &[u8]) -> Vec<u8> {
    (0..4_u8).flat_map(|part| sha256(&[model, &[part]].concat())).collect()
}

/// The toy increment: what changes, byte by byte.
pub(crate) fn increment(from: &[u8], to: &[u8]) -> Blob {
    from.iter().zip(to).map(|(from, to)| from ^ to).collect()
}

pub(crate) fn apply(weights: &[u8], increment: &[u8]) -> Vec<u8> {
    if increment.is_empty() { weights.to_vec() } else { increment_apply(weights, increment) }
}

fn increment_apply(weights: &[u8], increment: &[u8]) -> Vec<u8> {
    weights.iter().zip(increment).map(|(weight, change)| weight ^ change).collect()
}

/// The processor as a pure function.
pub(crate) fn compute(
    weights: &[u8],
    plan: &str,
    trial: u64,
    pictures: &[(PictureRef, Blob)],
    wanted: &[u32],
) -> TraceBody {
    let mut bytes = [weights, plan.as_bytes(), &trial.to_le_bytes()].concat();
    for (reference, picture) in pictures {
        let View { flip, down, right } = reference.view;
        bytes.extend_from_slice(&reference.id.to_le_bytes());
        bytes.extend_from_slice(&[flip.into(), down.to_le_bytes()[0], right.to_le_bytes()[0]]);
        bytes.extend_from_slice(picture);
    }
    let key = sha256(&bytes);
    let tensor = |number: u32| {
        let bytes: Blob = pictures.iter().flat_map(|_| sha256(&[&key[..], &number.to_le_bytes()].concat())).collect();
        TensorPayload {
            tensor: Varint(number),
            element: ElementType::U8,
            shape: vec![Varint(pictures.len() as u32), Varint(32)],
            encoding: Encoding::Raw,
            check: tensor_check(&bytes),
            bytes,
        }
    };
    TraceBody {
        strikes: Some(trial),
        processor_ns: 0,
        output: tensor(1000),
        tensors: wanted.iter().map(|&number| tensor(number)).collect(),
    }
}

pub(crate) fn explain(trace: &TraceBody, requests: &[TensorRequest]) -> Vec<TensorAnswer> {
    requests
        .iter()
        .map(|request| TensorAnswer {
            tensor: request.tensor,
            bytes: sha256(&[&trace.output.bytes[..], &request.bytes].concat()).into(),
        })
        .collect()
}

fn fingerprint(trace: &TraceBody) -> [u8; 32] {
    let mut bytes = trace.output.bytes.to_vec();
    for tensor in &trace.tensors {
        bytes.extend_from_slice(&tensor.bytes);
    }
    sha256(&bytes)
}

/// The state of a run: what a checkpoint holds.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) deeds: Vec<Deed>,
    pub(crate) at: usize,
    /// The trace of the current deed is here, and more about it is due.
    pub(crate) trace: Option<TraceBody>,
    pub(crate) model: u64,
    pub(crate) plan: String,
    pub(crate) weights: Vec<u8>,
    pub(crate) results: Vec<[u8; 32]>,
}

impl Run {
    pub(crate) fn new(deeds: Vec<Deed>) -> Self {
        let weights = own_weights(&model(1));
        Self { deeds, at: 0, trace: None, model: 1, plan: String::new(), weights, results: Vec::new() }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.at == self.deeds.len()
    }

    fn requests() -> Vec<TensorRequest> {
        vec![TensorRequest { tensor: Varint(0), bytes: vec![7; 5].into() }]
    }

    /// The command that loads the state of a checkpoint.
    pub(crate) fn reload(&self) -> Order {
        let file = model(self.model);
        let weights = increment(&own_weights(&file), &self.weights);
        let weights_hash = sha256(&self.weights);
        Order::Load(LoadOrder {
            model: file,
            lowering: Blob::default(),
            plan: self.plan.clone(),
            weights,
            weights_hash,
        })
    }

    /// The next command. Changes the weights where the deed does.
    pub(crate) fn order(&mut self) -> Order {
        if self.trace.is_some() {
            return Order::More(Self::requests());
        }
        match self.deeds[self.at].clone() {
            Deed::Load { model: number } => {
                self.model = number;
                self.weights = own_weights(&model(number));
                self.reload()
            }
            Deed::Protect { plan } => {
                self.plan = plan.clone();
                Order::Protect(plan)
            }
            Deed::Work { trial, train, pictures, wanted, .. } => {
                let before = self.weights.clone();
                if train {
                    // The update depends on every result before it.
                    let last = self.results.last().copied().unwrap_or_default();
                    for (weight, change) in self.weights.iter_mut().zip(last) {
                        *weight = weight.wrapping_add(change | 1);
                    }
                }
                Order::Work(WorkOrder {
                    trial,
                    base_hash: sha256(&before),
                    update: train.then(|| increment(&before, &self.weights)),
                    weights_hash: sha256(&self.weights),
                    mode: Mode::Straightforward,
                    pictures: pictures
                        .iter()
                        .map(|&(id, view)| {
                            let bytes = picture(id);
                            OrderedPicture { id, hash: picture_hash(&bytes), view, bytes }
                        })
                        .collect(),
                    wanted: (0..wanted).collect(),
                    parameters: Vec::new(),
                })
            }
        }
    }

    /// Weights for a device that lost them.
    pub(crate) fn weights_increment(&self) -> Blob {
        increment(&own_weights(&model(self.model)), &self.weights)
    }

    pub(crate) fn take_ready(&mut self) {
        self.results.push([1; 32]);
        self.at += 1;
    }

    /// Takes a trace; whether the deed is done with it.
    pub(crate) fn take_trace(&mut self, trace: TraceBody) -> bool {
        let more = matches!(self.deeds[self.at], Deed::Work { more: true, .. });
        if more {
            self.trace = Some(trace);
        } else {
            self.results.push(fingerprint(&trace));
            self.at += 1;
        }
        !more
    }

    pub(crate) fn take_more(&mut self, answers: &[TensorAnswer]) -> Result<(), String> {
        let trace = self.trace.take().ok_or("more about no trace")?;
        let mut bytes = fingerprint(&trace).to_vec();
        for answer in answers {
            bytes.extend_from_slice(&answer.bytes);
        }
        self.results.push(sha256(&bytes));
        self.at += 1;
        Ok(())
    }

    /// The same run with nothing between trainer and processor.
    pub(crate) fn undisturbed(deeds: &[Deed]) -> Vec<[u8; 32]> {
        let mut run = Self::new(deeds.to_vec());
        while !run.is_done() {
            match run.order() {
                Order::Load(order) => {
                    assert_eq!(order.weights_hash, sha256(&run.weights));
                    run.take_ready();
                }
                Order::Protect(_) => run.take_ready(),
                Order::Work(order) => {
                    let seen: Vec<_> = order
                        .pictures
                        .iter()
                        .map(|seen| (PictureRef { id: seen.id, hash: seen.hash, view: seen.view }, seen.bytes.clone()))
                        .collect();
                    run.take_trace(compute(&run.weights, &run.plan, order.trial, &seen, &order.wanted));
                }
                Order::More(requests) => {
                    let answers = run.trace.as_ref().map(|trace| explain(trace, &requests)).unwrap_or_default();
                    run.take_more(&answers).unwrap();
                }
            }
        }
        run.results
    }
}

/// Identity of a model of the toy.
pub(crate) fn identity(model: &[u8]) -> [u8; 32] {
    model_identity(model, &[])
}
