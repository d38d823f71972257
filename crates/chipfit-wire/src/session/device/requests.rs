//! What the trainer asks, and whether it is already so, already under way, or a task.

use super::{
    Blob, Code, Device, DeviceAction, Incomplete, Job, LinkId, Message, NewPicture, Notice, Purpose, Tag, Work,
};
use crate::message::{Load, Missing, More, Protect, Trace, model_identity, picture_hash, plan_hash};
use crate::message::{Loaded, Protected};
use crate::session::Task;
use std::collections::BTreeMap;

impl Device {
    pub(super) fn on_message(&mut self, link: LinkId, message: Message, actions: &mut Vec<DeviceAction>) {
        match message {
            Message::Heartbeat(_) => {}
            Message::Bye(bye) => {
                actions.push(DeviceAction::Link(link, super::LinkAction::Close));
                self.forget(link, &bye.text, actions);
            }
            Message::Error(report) => {
                actions.push(DeviceAction::Link(link, super::LinkAction::Close));
                self.forget(link, &report.text, actions);
            }
            Message::Pictures(pictures) => {
                let waited = self.incomplete.take_if(|incomplete| incomplete.work.tag == pictures.tag);
                match waited {
                    Some(incomplete) => self.complete(link, incomplete, pictures.pictures, actions),
                    None => actions.push(DeviceAction::Report(Notice::Dropped { message: "Pictures" })),
                }
            }
            Message::Load(_) | Message::Protect(_) | Message::Work(_) | Message::More(_) => {
                self.on_request(link, message, actions);
            }
            // A greeting that came twice is not worth a link.
            Message::Hello(_) => actions.push(DeviceAction::Report(Notice::Dropped { message: "Hello" })),
            other => {
                let text = format!("a trainer does not send {}", other.name());
                self.refuse(link, Code::Unexpected, &text, actions);
            }
        }
    }

    /// Sorts out repetitions, then finds the request its place.
    fn on_request(&mut self, link: LinkId, message: Message, actions: &mut Vec<DeviceAction>) {
        let Some(tag) = message.tag() else {
            return self.refuse(link, Code::Unexpected, "a request without a tag", actions);
        };
        let Some(session) = &mut self.session else { return };
        let under_way = |job: &Job| job.link == link && job.tag == tag;
        let repeated = tag == session.last
            && (self.job.as_ref().is_some_and(under_way)
                || self.next.as_ref().and_then(Message::tag) == Some(tag)
                || self.incomplete.as_ref().is_some_and(|incomplete| incomplete.work.tag == tag));
        if tag < session.last || repeated {
            return actions.push(DeviceAction::Report(Notice::Dropped { message: message.name() }));
        }
        session.last = tag;
        self.incomplete = None;
        self.next = None;
        let purpose = purpose(&message);
        match &mut self.job {
            Some(job) if Some(&job.purpose) == purpose.as_ref() && !matches!(job.purpose, Purpose::More { .. }) => {
                job.link = link;
                job.tag = tag;
            }
            Some(_) => self.next = Some(message),
            None => self.start(link, message, actions),
        }
    }

    /// Answers a request that needs no task, or makes it the task.
    pub(super) fn start(&mut self, link: LinkId, message: Message, actions: &mut Vec<DeviceAction>) {
        match message {
            Message::Load(load) => self.load(link, load, actions),
            Message::Protect(protect) => self.protect(link, protect, actions),
            Message::Work(work) => self.work(link, work, actions),
            Message::More(more) => self.more(link, more, actions),
            // Nothing else is put behind a task.
            _ => {}
        }
    }

    fn load(&mut self, link: LinkId, load: Load, actions: &mut Vec<DeviceAction>) {
        let Load { tag, identity, plan, weights_hash, .. } = &load;
        let (tag, plan) = (*tag, plan_hash(plan));
        let held = &self.held;
        if held.model == Some(*identity) && held.weights == Some(*weights_hash) && held.plan == Some(plan) {
            return self.send(link, Loaded { tag, held: self.held() }.into(), actions);
        }
        match &load.model {
            Some(model) if model_identity(model, &load.lowering) != *identity => {
                let text = "the model's bytes have another hash than was announced".to_owned();
                return self.send_error(link, tag, Code::BadModel, text, actions);
            }
            None if held.model != Some(*identity) => {
                let text = "the model was left out, and the device has another one or none".to_owned();
                return self.send_error(link, tag, Code::NoModel, text, actions);
            }
            _ => {}
        }
        let purpose = Purpose::Load { identity: *identity, plan, weights: *weights_hash };
        self.held.weights = None;
        self.held.plan = None;
        self.drop_trace();
        self.begin(link, tag, purpose, Task::Load(load), actions);
    }

    fn protect(&mut self, link: LinkId, protect: Protect, actions: &mut Vec<DeviceAction>) {
        let Protect { tag, plan } = protect;
        let hash = plan_hash(&plan);
        if self.held.weights.is_none() {
            return self.send_error(link, tag, Code::NoModel, NO_MODEL.to_owned(), actions);
        }
        if self.held.plan == Some(hash) {
            return self.send(link, Protected { tag, held: self.held() }.into(), actions);
        }
        self.held.plan = None;
        self.drop_trace();
        self.begin(link, tag, Purpose::Protect { plan: hash }, Task::Protect(plan), actions);
    }

    fn work(&mut self, link: LinkId, mut work: Work, actions: &mut Vec<DeviceAction>) {
        let Work { tag, base_hash, weights_hash, .. } = work;
        let Some(weights) = self.held.weights else {
            return self.send_error(link, tag, Code::NoModel, NO_MODEL.to_owned(), actions);
        };
        if weights == weights_hash
            && self.held.trace == Some(work.digest())
            && let Some(body) = self.trace.clone()
        {
            return self.answer(link, tag, Trace { tag, body }.into(), actions);
        }
        if weights == weights_hash {
            work.update = None;
            work.base_hash = weights_hash;
        } else if weights != base_hash || work.update.is_none() {
            let text = "the work supposes other weights than the device holds".to_owned();
            return self.send_error(link, tag, Code::WrongBase, text, actions);
        }
        let pictures = std::mem::take(&mut work.new_pictures);
        self.complete(link, Incomplete { work, inline: BTreeMap::new() }, pictures, actions);
    }

    /// Adds pictures to a work, and starts it when it has all of them.
    fn complete(
        &mut self,
        link: LinkId,
        waited: Incomplete,
        pictures: Vec<NewPicture>,
        actions: &mut Vec<DeviceAction>,
    ) {
        let Incomplete { work, mut inline } = waited;
        for picture in pictures {
            if picture_hash(&picture.bytes) != picture.hash {
                let text = "a picture's bytes have another hash than was announced".to_owned();
                return self.send_error(link, work.tag, Code::BadPicture, text, actions);
            }
            inline.insert(picture.hash, picture.bytes);
        }
        let find = |hash| inline.get(hash).or_else(|| self.cache.get(hash)).cloned().ok_or(*hash);
        let found: Vec<Result<Blob, [u8; 16]>> = work.pictures.iter().map(|picture| find(&picture.hash)).collect();
        let mut missing: Vec<[u8; 16]> = found.iter().filter_map(|found| found.as_ref().err().copied()).collect();
        if !missing.is_empty() {
            missing.sort_unstable();
            missing.dedup();
            let tag = work.tag;
            self.incomplete = Some(Incomplete { work, inline });
            return self.answer(link, tag, Missing { tag, hashes: missing }.into(), actions);
        }
        let pictures: Vec<Blob> = found.into_iter().flatten().collect();
        for (reference, bytes) in work.pictures.iter().zip(&pictures) {
            self.cache.visit(reference.hash, bytes.len() as u64, bytes.clone());
        }
        let purpose = Purpose::Work { digest: work.digest(), weights: work.weights_hash };
        self.drop_trace();
        self.held.weights = None;
        self.begin(link, work.tag, purpose, Task::Work { work, pictures }, actions);
    }

    fn more(&mut self, link: LinkId, more: More, actions: &mut Vec<DeviceAction>) {
        let More { tag, work, requests } = more;
        if self.held.trace != Some(work) {
            let text = "the trace that is meant is gone: ask for the work again".to_owned();
            return self.send_error(link, tag, Code::NoTrace, text, actions);
        }
        self.begin(link, tag, Purpose::More { digest: work }, Task::More(requests), actions);
    }

    fn begin(&mut self, link: LinkId, tag: Tag, purpose: Purpose, task: Task, actions: &mut Vec<DeviceAction>) {
        self.last_job += 1;
        let deadline_ms = match purpose {
            Purpose::Work { .. } | Purpose::More { .. } => self.config.work_deadline_ms,
            Purpose::Load { .. } | Purpose::Protect { .. } => self.config.load_deadline_ms,
        };
        self.job = Some(Job { id: self.last_job, link, tag, since: self.now, deadline_ms, purpose });
        actions.push(DeviceAction::Start(self.last_job, task));
    }

    pub(super) fn drop_trace(&mut self) {
        self.held.trace = None;
        self.trace = None;
    }
}

const NO_MODEL: &str = "no model is loaded";

/// What a request brings about.
fn purpose(message: &Message) -> Option<Purpose> {
    match message {
        Message::Load(load) => {
            Some(Purpose::Load { identity: load.identity, plan: plan_hash(&load.plan), weights: load.weights_hash })
        }
        Message::Protect(protect) => Some(Purpose::Protect { plan: plan_hash(&protect.plan) }),
        Message::Work(work) => Some(Purpose::Work { digest: work.digest(), weights: work.weights_hash }),
        Message::More(more) => Some(Purpose::More { digest: more.work }),
        _ => None,
    }
}
