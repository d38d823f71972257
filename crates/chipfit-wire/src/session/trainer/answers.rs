//! What the device says, and what the trainer knows after it.

use super::{Asked, Goal, Link, Notice, Outcome, Request, Trainer, TrainerAction, doubled, plan::bare};
use crate::message::{Code, ErrorReport, Held, Message, MoreTrace, Pictures, Trace, plan_hash};

impl Trainer {
    pub(super) fn on_message(&mut self, message: Message, actions: &mut Vec<TrainerAction>) {
        match (&self.link, message) {
            (Link::Greeting { .. }, Message::HelloAck(ack)) => self.on_greeted(ack, actions),
            (Link::Greeting { .. }, Message::Error(report)) => self.on_refusal(&report, actions),
            (Link::Greeting { .. }, message) => drop_message(&message, actions),
            (_, Message::Heartbeat(_)) => {}
            (_, Message::Bye(bye)) => {
                self.close(actions);
                self.lose(&bye.text, actions);
            }
            (_, Message::Error(report)) if report.tag == Default::default() => self.on_refusal(&report, actions),
            (_, message) => {
                let asked = self.current.as_ref().and_then(|current| current.asked);
                match asked.filter(|asked| message.tag() == Some(asked.tag)) {
                    Some(asked) => self.on_answer(asked, message, actions),
                    None => drop_message(&message, actions),
                }
            }
        }
    }

    /// The device speaks of the link, not of a request.
    fn on_refusal(&mut self, report: &ErrorReport, actions: &mut Vec<TrainerAction>) {
        match report.code {
            Code::Version | Code::Limits => self.end(Some(report.code), &report.text, actions),
            _ => {
                self.close(actions);
                self.lose(&report.text, actions);
            }
        }
    }

    fn on_answer(&mut self, asked: Asked, message: Message, actions: &mut Vec<TrainerAction>) {
        match (asked.kind, message) {
            (Request::Load, Message::Loaded(answer)) => self.on_held(answer.held, Request::Load, actions),
            (Request::Protect, Message::Protected(answer)) => self.on_held(answer.held, Request::Protect, actions),
            (Request::Work, Message::Trace(answer)) => self.on_trace(answer, actions),
            (Request::More, Message::MoreTrace(answer)) => self.on_more(answer, actions),
            (Request::Work, Message::Missing(missing)) => {
                if asked.supplied {
                    return drop_message(&Message::Missing(missing), actions);
                }
                let Some(pictures) = self.supply(&missing.hashes) else {
                    self.close(actions);
                    return self.lose("the device asked for pictures that the work does not have", actions);
                };
                if let Some(asked) = self.current.as_mut().and_then(|current| current.asked.as_mut()) {
                    asked.supplied = true;
                }
                // A device that misses most of what was guessed holds other pictures: from now on, send unasked.
                let distinct = self.last_work.as_ref().map_or(0, |order| order.pictures.len());
                self.guess &= pictures.len() * 2 < distinct;
                actions.push(TrainerAction::Report(Notice::Resent { pictures: pictures.len() }));
                self.send(Pictures { tag: missing.tag, pictures }.into(), actions);
            }
            (request, Message::Error(report)) => self.on_error(request, report, actions),
            (_, message) => {
                let text = format!("the device answered with {}", message.name());
                self.close(actions);
                self.lose(&text, actions);
            }
        }
    }

    /// The device says what it holds; if that is not what was asked for, the request has failed.
    fn on_held(&mut self, held: Held, request: Request, actions: &mut Vec<TrainerAction>) {
        self.answered();
        self.held = held;
        let Some(desired) = &self.desired else { return };
        let plan = self.held.plan == Some(plan_hash(&desired.plan));
        let model = self.held.model == Some(desired.identity) && self.held.weights == Some(desired.weights);
        if plan && (model || request == Request::Protect) {
            self.progress();
        } else {
            self.fail_once(Code::Internal, "the device confirms something else than it was asked", actions);
        }
    }

    fn on_trace(&mut self, answer: Trace, actions: &mut Vec<TrainerAction>) {
        self.answered();
        let Some(order) = &self.last_work else { return };
        let wanted = order.wanted.iter().copied();
        if !answer.body.tensors.iter().map(|tensor| tensor.tensor.0).eq(wanted) {
            return self.fail_once(Code::Internal, "the trace has other tensors than were asked for", actions);
        }
        self.held.weights = Some(order.weights_hash);
        self.held.trace = Some(bare(order).digest());
        self.progress();
        self.deliver(Outcome::Traced(answer.body), actions);
    }

    fn on_more(&mut self, answer: MoreTrace, actions: &mut Vec<TrainerAction>) {
        self.answered();
        let Some(Goal::More(requests)) = self.current.as_ref().map(|current| &current.goal) else { return };
        let asked = requests.iter().map(|request| request.tensor);
        if !answer.answers.iter().map(|answer| answer.tensor).eq(asked) {
            return self.fail_once(Code::Internal, "the answers are about other tensors than were asked", actions);
        }
        self.progress();
        self.deliver(Outcome::More(answer.answers), actions);
    }

    fn on_error(&mut self, request: Request, report: ErrorReport, actions: &mut Vec<TrainerAction>) {
        self.answered();
        let ErrorReport { code, text, .. } = report;
        match code {
            // A load fails so when it left the model out.
            Code::NoModel if request == Request::Load => {
                self.held.model = None;
                self.held.weights = None;
            }
            Code::NoModel | Code::WrongBase | Code::BadUpdate | Code::WeightHash | Code::Hang | Code::Crash => {
                self.held.weights = None;
                self.held.trace = None;
            }
            Code::NoTrace => self.held.trace = None,
            Code::Busy | Code::Overloaded | Code::Processor => {
                if let Some(current) = &mut self.current {
                    current.wait_until = self.now.saturating_add(doubled(self.config.backoff_ms, current.failures));
                }
            }
            Code::ShuttingDown => {
                self.close(actions);
                return self.lose(&text, actions);
            }
            _ => return self.give_up(Some(code), &text, actions),
        }
        self.fail_once(code, &text, actions);
    }

    /// One failure more of the current command; the last one gives it up.
    pub(super) fn fail_once(&mut self, code: Code, text: &str, actions: &mut Vec<TrainerAction>) {
        let Some(current) = &mut self.current else { return };
        current.failures = current.failures.saturating_add(1);
        let step = current.step;
        if current.failures > self.config.retries {
            self.give_up(Some(code), text, actions);
        } else {
            actions.push(TrainerAction::Report(Notice::Retried { step, code, text: text.to_owned() }));
        }
    }

    /// The request is answered.
    fn answered(&mut self) {
        if let Some(current) = &mut self.current {
            current.asked = None;
        }
    }
}

fn drop_message(message: &Message, actions: &mut Vec<TrainerAction>) {
    actions.push(TrainerAction::Report(Notice::Dropped { message: message.name() }));
}
