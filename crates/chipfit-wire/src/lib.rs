//! What travels between the trainer and a device: bytes in, bytes out.
//!
//! Frames, messages and their limits; increments of weights; activations as what a prediction missed; the state machines
//! of both ends. No sockets, no clocks, no threads: callers bring them. Untrusted bytes never size an allocation and never
//! panic. Every byte is described in `docs/protocol.md`.
#![forbid(unsafe_code)]

pub mod activation;
pub mod entropy;
pub mod format;
pub mod frame;
pub mod increment;
pub mod message;
pub mod session;

#[cfg(test)]
mod testing;
