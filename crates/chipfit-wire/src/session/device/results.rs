//! What the processor says, and what becomes of it.

use super::{Code, Device, DeviceAction, JobId, LinkId, Message, Notice, Purpose, Tag};
use crate::frame::EncodeError;
use crate::message::{Loaded, MoreTrace, Protected, Trace};
use crate::session::JobResult;

impl Device {
    pub(super) fn done(&mut self, id: JobId, result: JobResult, actions: &mut Vec<DeviceAction>) {
        let Some(job) = self.job.take_if(|job| job.id == id) else { return };
        let (link, tag) = (job.link, job.tag);
        match (job.purpose, result) {
            (Purpose::Load { identity, plan, weights }, JobResult::Loaded(hash)) => {
                self.held.model = Some(identity);
                if hash == weights {
                    self.held.weights = Some(hash);
                    self.held.plan = Some(plan);
                    self.send(link, Loaded { tag, held: self.held() }.into(), actions);
                } else {
                    let text = "the loaded weights have another hash than was announced".to_owned();
                    self.send_error(link, tag, Code::WeightHash, text, actions);
                }
            }
            (Purpose::Protect { plan }, JobResult::Protected) => {
                self.held.plan = Some(plan);
                self.send(link, Protected { tag, held: self.held() }.into(), actions);
            }
            (Purpose::Work { digest, weights }, JobResult::Traced(body)) => {
                self.held.weights = Some(weights);
                self.held.trace = Some(digest);
                self.held.step = tag.step;
                self.trace = Some(body.clone());
                self.answer(link, tag, Trace { tag, body }.into(), actions);
            }
            (Purpose::More { .. }, JobResult::More(answers)) => {
                self.answer(link, tag, MoreTrace { tag, answers }.into(), actions);
            }
            _ => {
                self.held.weights = None;
                self.drop_trace();
                let text = "the processor answered another task than it was given".to_owned();
                self.send_error(link, tag, Code::Internal, text, actions);
            }
        }
        self.start_next(actions);
    }

    pub(super) fn failed(
        &mut self,
        id: JobId,
        code: Code,
        text: String,
        weights: Option<[u8; 32]>,
        actions: &mut Vec<DeviceAction>,
    ) {
        let Some(job) = self.job.take_if(|job| job.id == id) else { return };
        self.held.weights = weights;
        if matches!(job.purpose, Purpose::Load { .. }) {
            self.held.model = None;
            self.held.weights = None;
        }
        if !matches!(job.purpose, Purpose::More { .. }) {
            self.drop_trace();
        }
        self.send_error(job.link, job.tag, code, text, actions);
        self.start_next(actions);
    }

    /// A processor was killed or died: a new one takes its place and holds nothing.
    pub(super) fn processor_lost(&mut self, code: Code, text: String, actions: &mut Vec<DeviceAction>) {
        self.held.weights = None;
        self.held.plan = None;
        self.drop_trace();
        actions.push(DeviceAction::Report(Notice::ProcessorLost { code }));
        if let Some(job) = self.job.take() {
            if matches!(job.purpose, Purpose::Load { .. }) {
                self.held.model = None;
            }
            self.send_error(job.link, job.tag, code, text, actions);
        }
        self.start_next(actions);
    }

    /// Sends a large answer, or says that it is too large for what was agreed.
    pub(super) fn answer(&mut self, link: LinkId, tag: Tag, message: Message, actions: &mut Vec<DeviceAction>) {
        let Some(session) = self.session.as_ref().filter(|session| session.link == link) else { return };
        match session.limits.admit(&message) {
            Ok(_) => self.send(link, message, actions),
            Err(error) => {
                let code = if matches!(error, EncodeError::InFlight { .. }) { Code::Limits } else { Code::Internal };
                self.send_error(link, tag, code, error.to_string(), actions);
            }
        }
    }

    fn start_next(&mut self, actions: &mut Vec<DeviceAction>) {
        let Some(link) = self.session.as_ref().map(|session| session.link) else { return };
        if self.job.is_none()
            && let Some(message) = self.next.take()
        {
            self.start(link, message, actions);
        }
    }
}
