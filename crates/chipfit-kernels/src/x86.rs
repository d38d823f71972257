//! Inner loops for x86-64, one module per instruction set.

pub(crate) mod amx;
pub(crate) mod avx2;
pub(crate) mod avx512;
pub(crate) mod bytes;
pub(crate) mod delta;
pub(crate) mod depthwise;
pub(crate) mod dot;
pub(crate) mod expand;
