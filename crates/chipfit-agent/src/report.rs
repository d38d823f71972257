//! What a link has cost so far: bytes each way, beside what they would have been, and where the time went.

use std::sync::Arc;

use serde::Serialize;

use crate::stream::Counters;

/// Reads the bytes at the sockets while a processor is busy.
#[derive(Clone, Debug)]
pub struct LinkMeter(pub(crate) Vec<Arc<Counters>>);

impl LinkMeter {
    /// Bytes to the devices since they were connected.
    pub fn down(&self) -> u64 {
        self.0.iter().map(|counters| counters.sent()).sum()
    }

    /// Bytes from the devices since they were connected.
    pub fn up(&self) -> u64 {
        self.0.iter().map(|counters| counters.received()).sum()
    }
}

/// Counts since the processor was connected; all devices together. Differences of two reports are what lies between them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct LinkReport {
    /// Forward passes.
    pub forwards: u64,
    /// Pictures computed.
    pub pictures: u64,
    /// Bytes to the devices: TCP payload, TLS records and frames included.
    pub wire_down_bytes: u64,
    /// Bytes from the devices, likewise.
    pub wire_up_bytes: u64,
    /// Of those down: updates of weights.
    pub weights_down_bytes: u64,
    /// What the updates would be as they are: one byte per weight, four per bias, at every forward pass that follows a change.
    pub weights_raw_bytes: u64,
    /// Of those up: payloads of activations, further rounds included.
    pub activations_up_bytes: u64,
    /// What the activations would be as they are.
    pub activations_raw_bytes: u64,
    /// Bits that the activations hold beyond the server's prediction: the sum over tensors of
    /// `n * H0(observed - predicted)`. Only where a prediction was made.
    pub entropy_up_bits: f64,
    /// Values that the prediction missed.
    pub missed_values: u64,
    /// Forward passes that needed a further round.
    pub second_rounds: u64,
    /// Tensors that came as they are because they were not worth an increment, or could not be decoded.
    pub raw_tensors: u64,
    /// Seconds that the processors computed and coded what they had computed, the slowest device of each forward pass.
    pub device_seconds: f64,
    /// Seconds that forward passes waited beyond that: the link, TLS, frames, the pipe to the processor.
    pub wire_seconds: f64,
    /// Seconds that the server coded, predicted and decoded.
    pub server_seconds: f64,
    /// Sessions that replaced a lost one.
    pub reconnects: u64,
    /// Times that a processor did not answer before its deadline and was killed.
    pub hangs: u64,
    /// Times that a processor ended by itself.
    pub crashes: u64,
    /// Pictures that a device had let go and was sent again.
    pub resent_pictures: u64,
}

impl LinkReport {
    /// What was added since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            forwards: self.forwards.saturating_sub(earlier.forwards),
            pictures: self.pictures.saturating_sub(earlier.pictures),
            wire_down_bytes: self.wire_down_bytes.saturating_sub(earlier.wire_down_bytes),
            wire_up_bytes: self.wire_up_bytes.saturating_sub(earlier.wire_up_bytes),
            weights_down_bytes: self.weights_down_bytes.saturating_sub(earlier.weights_down_bytes),
            weights_raw_bytes: self.weights_raw_bytes.saturating_sub(earlier.weights_raw_bytes),
            activations_up_bytes: self.activations_up_bytes.saturating_sub(earlier.activations_up_bytes),
            activations_raw_bytes: self.activations_raw_bytes.saturating_sub(earlier.activations_raw_bytes),
            entropy_up_bits: self.entropy_up_bits - earlier.entropy_up_bits,
            missed_values: self.missed_values.saturating_sub(earlier.missed_values),
            second_rounds: self.second_rounds.saturating_sub(earlier.second_rounds),
            raw_tensors: self.raw_tensors.saturating_sub(earlier.raw_tensors),
            device_seconds: self.device_seconds - earlier.device_seconds,
            wire_seconds: self.wire_seconds - earlier.wire_seconds,
            server_seconds: self.server_seconds - earlier.server_seconds,
            reconnects: self.reconnects.saturating_sub(earlier.reconnects),
            hangs: self.hangs.saturating_sub(earlier.hangs),
            crashes: self.crashes.saturating_sub(earlier.crashes),
            resent_pictures: self.resent_pictures.saturating_sub(earlier.resent_pictures),
        }
    }
}
