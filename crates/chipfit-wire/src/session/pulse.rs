//! When a link last heard and last spoke.

use super::Milliseconds;

/// The heartbeat of one link.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pulse {
    heard: Milliseconds,
    spoke: Milliseconds,
    every: u64,
    silence: u64,
}

impl Pulse {
    /// A link that stands since `now`.
    pub(super) fn new(now: Milliseconds, every: u32, silence: u64) -> Self {
        let every = u64::from(every).max(1);
        Self { heard: now, spoke: now, every, silence: silence.max(2 * every) }
    }

    /// Takes the agreed heartbeat.
    pub(super) fn agree(&mut self, every: u32) {
        self.every = u64::from(every).max(1);
        self.silence = self.silence.max(2 * self.every);
    }

    pub(super) fn hear(&mut self, now: Milliseconds) {
        self.heard = now;
    }

    pub(super) fn speak(&mut self, now: Milliseconds) {
        self.spoke = now;
    }

    /// Whether the peer has been silent for too long.
    pub(super) fn is_dead(&self, now: Milliseconds) -> bool {
        now.saturating_sub(self.heard) >= self.silence
    }

    /// Whether it is time for a heartbeat.
    pub(super) fn is_due(&self, now: Milliseconds) -> bool {
        now.saturating_sub(self.spoke) >= self.every
    }
}
