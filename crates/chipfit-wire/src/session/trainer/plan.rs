//! What comes next: the difference between what the device is to hold and what it holds.

use super::{
    Asked, Current, Desired, Goal, Link, LoadOrder, Order, Outcome, Request, Tag, Trainer, TrainerAction, Weights,
    WorkOrder, fail,
};
use crate::format::{Blob, Varint};
use crate::frame::EncodeError;
use crate::message::{Code, Load, Message, More, NewPicture, PictureRef, Protect, Work, model_identity, plan_hash};
use std::collections::BTreeSet;

impl Trainer {
    /// Sends the next request if nothing is under way.
    pub(super) fn advance(&mut self, actions: &mut Vec<TrainerAction>) {
        while !self.over {
            if self.current.is_none() && !self.begin(actions) {
                return;
            }
            if matches!(self.link, Link::None) {
                self.link = Link::Asked;
                actions.push(TrainerAction::Connect { after_ms: self.backoff() });
            }
            let Link::Ready { .. } = self.link else { return };
            let waits = |current: &Current| {
                current.asked.is_some() || current.wait_until > self.now || matches!(current.weights, Weights::Asked)
            };
            if self.current.as_ref().is_none_or(waits) {
                return;
            }
            self.request(actions);
        }
    }

    /// Takes the next command from the queue. False when there is none.
    fn begin(&mut self, actions: &mut Vec<TrainerAction>) -> bool {
        while let Some(command) = self.queue.pop_front() {
            let goal = match command.order {
                Order::Load(order) => {
                    let LoadOrder { model, lowering, plan, weights, weights_hash } = order;
                    let identity = model_identity(&model, &lowering);
                    self.desired = Some(Desired { identity, model, lowering, plan, weights: weights_hash });
                    self.last_work = None;
                    Ok(Goal::Load(weights))
                }
                Order::Protect(plan) => match &mut self.desired {
                    Some(desired) => {
                        desired.plan = plan;
                        self.last_work = None;
                        Ok(Goal::Protect)
                    }
                    None => Err("no model was loaded before the plan"),
                },
                Order::Work(order) => match &mut self.desired {
                    Some(desired) => {
                        desired.weights = order.weights_hash;
                        self.last_work = Some(order);
                        Ok(Goal::Work)
                    }
                    None => Err("no model was loaded before the work"),
                },
                Order::More(requests) if self.last_work.is_some() => Ok(Goal::More(requests)),
                Order::More(_) => Err("no work was done that there could be more about"),
            };
            match goal {
                Ok(goal) => {
                    self.current = Some(Current {
                        step: command.step,
                        goal,
                        attempt: 0,
                        failures: 0,
                        asked: None,
                        wait_until: 0,
                        weights: Weights::NotAsked,
                    });
                    return true;
                }
                Err(why) => actions.push(fail(command.step, Some(Code::Unexpected), why, 0)),
            }
        }
        false
    }

    /// The one request that brings the device closer, or the delivery when it is there.
    fn request(&mut self, actions: &mut Vec<TrainerAction>) {
        let (Some(current), Some(desired)) = (&mut self.current, &self.desired) else { return };
        let order = self.last_work.as_ref().filter(|_| matches!(current.goal, Goal::Work | Goal::More(_)));
        let good_weights = self.held.weights.is_some_and(|held| {
            let before = order.is_some_and(|order| order.update.is_some() && held == order.base_hash);
            held == desired.weights || before
        });
        let tag = Tag { step: current.step, attempt: current.attempt.saturating_add(1) };
        let (kind, message) = if self.held.model != Some(desired.identity) || !good_weights {
            let weights = match (&current.goal, &current.weights) {
                (Goal::Load(weights), _) | (_, Weights::Here(weights)) => weights.clone(),
                _ => {
                    current.weights = Weights::Asked;
                    let (step, weights_hash) = (current.step, desired.weights);
                    return actions.push(TrainerAction::NeedWeights { step, weights_hash });
                }
            };
            let model = (self.held.model != Some(desired.identity)).then(|| desired.model.clone());
            (Request::Load, load(tag, desired, model, weights))
        } else if self.held.plan != Some(plan_hash(&desired.plan)) {
            (Request::Protect, Protect { tag, plan: desired.plan.clone() }.into())
        } else {
            match (&current.goal, order) {
                (Goal::Load(_), _) => return self.deliver(Outcome::Loaded, actions),
                (Goal::Protect, _) => return self.deliver(Outcome::Protected, actions),
                (Goal::More(requests), Some(order)) if self.held.trace == Some(bare(order).digest()) => {
                    let work = bare(order).digest();
                    (Request::More, More { tag, work, requests: requests.clone() }.into())
                }
                (Goal::Work | Goal::More(_), Some(order)) => {
                    let mut work = Work { tag, ..bare(order) };
                    if self.held.weights != Some(order.weights_hash) {
                        work.update = order.update.clone();
                        work.base_hash = order.base_hash;
                    }
                    // A work whose trace the device still has computes nothing and needs no pictures.
                    if self.held.trace != Some(work.digest()) {
                        work.new_pictures = unknown(&mut self.known, self.guess, order);
                    }
                    (Request::Work, work.into())
                }
                // A work or more without an order was refused when it began.
                (Goal::Work | Goal::More(_), None) => {
                    return self.give_up(Some(Code::Internal), "a work without an order", actions);
                }
            }
        };
        if let Err(error) = self.limits.admit(&message) {
            let code = if matches!(error, EncodeError::InFlight { .. }) { Code::Limits } else { Code::BadWork };
            return self.give_up(Some(code), &error.to_string(), actions);
        }
        current.attempt = tag.attempt;
        current.asked = Some(Asked { tag, kind, since: self.now, moved: self.now, supplied: false });
        self.send(message, actions);
    }

    /// The bytes of pictures of the current work.
    pub(super) fn supply(&self, hashes: &[[u8; 16]]) -> Option<Vec<NewPicture>> {
        let order = self.last_work.as_ref()?;
        let wanted: BTreeSet<_> = hashes.iter().collect();
        let mut found: BTreeSet<&[u8; 16]> = BTreeSet::new();
        let mut pictures = Vec::new();
        for picture in &order.pictures {
            if wanted.contains(&picture.hash) && found.insert(&picture.hash) {
                pictures.push(NewPicture { hash: picture.hash, bytes: picture.bytes.clone() });
            }
        }
        (found.len() == wanted.len() && wanted.len() == hashes.len()).then_some(pictures)
    }
}

fn load(tag: Tag, desired: &Desired, model: Option<Blob>, weights: Blob) -> Message {
    let Desired { identity, lowering, plan, weights: weights_hash, .. } = desired.clone();
    Load { tag, identity, model, lowering, plan, weights, weights_hash }.into()
}

/// The work of an order, for a device that has weights and pictures already.
pub(super) fn bare(order: &WorkOrder) -> Work {
    Work {
        tag: Tag::default(),
        trial: order.trial,
        base_hash: order.weights_hash,
        update: None,
        weights_hash: order.weights_hash,
        mode: order.mode,
        pictures: order
            .pictures
            .iter()
            .map(|picture| PictureRef { id: picture.id, hash: picture.hash, view: picture.view })
            .collect(),
        new_pictures: Vec::new(),
        wanted: order.wanted.iter().map(|&tensor| Varint(tensor)).collect(),
        parameters: order.parameters.clone(),
    }
}

/// The pictures that the device does not have, and what it has after this work.
fn unknown(known: &mut super::PictureCache<()>, guess: bool, order: &WorkOrder) -> Vec<NewPicture> {
    let mut sent: BTreeSet<&[u8; 16]> = BTreeSet::new();
    let mut pictures = Vec::new();
    for picture in &order.pictures {
        let has = guess || known.get(&picture.hash).is_some() || sent.contains(&picture.hash);
        if !has {
            sent.insert(&picture.hash);
            pictures.push(NewPicture { hash: picture.hash, bytes: picture.bytes.clone() });
        }
        known.visit(picture.hash, picture.bytes.len() as u64, ());
    }
    pictures
}
