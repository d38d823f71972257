//! Both ends of the link: the daemon that hosts a processor, and the [`chipfit_npu::Processor`] that speaks to it.
//!
//! Sockets, TLS, clocks and child processes live here; what is said, and in which order, stands in `chipfit-wire`.
//! Every byte goes over mutual TLS 1.3 between certificates of one private authority; plain TCP exists on loopback only, when
//! both sides are told so. A device is never trusted with more than its own certificate, a trainer with more than
//! the devices of its authority.
//!
//! Read [`pki`] and [`tls`] for who may speak, [`shape`] for the emulated link, [`config`] for what a device is told.
#![forbid(unsafe_code)]

pub mod config;
pub mod error;
mod files;
pub mod identity;
pub mod name;
pub mod pki;
pub mod shape;
pub mod stream;
pub mod tls;

pub use config::DeviceConfig;
pub use error::AgentError;
pub use identity::Identity;
pub use name::DeviceName;
pub use shape::LinkShape;
