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
mod constants;
pub mod daemon;
pub mod error;
mod files;
mod host;
pub mod identity;
mod link;
pub mod log;
mod lowering;
pub mod name;
pub mod pki;
mod recover;
pub mod remote;
pub mod report;
pub mod shape;
pub mod stream;
pub mod tls;
mod trainer;
pub mod worker;

pub use chipfit_wire::message::Mode as WireMode;
pub use config::DeviceConfig;
pub use daemon::Daemon;
pub use error::AgentError;
pub use identity::Identity;
pub use log::LogEvent;
pub use name::DeviceName;
pub use remote::{DeviceAddress, RemoteOptions, RemoteProcessor, Trust};
pub use report::{LinkMeter, LinkReport};
pub use shape::{Delay, LinkShape, Rate};
pub use trainer::LogSink;
