//! Both ends of the link: the daemon that hosts a processor, and the [`chipfit_npu::Processor`] that speaks to it.
//!
//! Sockets, TLS, clocks, child processes; what is said stands in `chipfit-wire`.
#![forbid(unsafe_code)]
