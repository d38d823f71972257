//! What a fault model must know of the chip: how many products enter an accumulator at once, and the PE array.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

/// The shape of the simulated processor. It changes which words exist (`acc`) and which outputs a defective
/// processing element strikes; it never changes a fault-free result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Machine {
    /// Products that one accumulator update adds; site `acc` is the accumulator after each update.
    pub lanes: NonZeroU32,
    /// Rows and columns of the PE array: output pixel (row-major) modulo rows, output channel modulo columns.
    pub array: [NonZeroU32; 2],
}

impl Default for Machine {
    /// One lane; 16 x 16 processing elements.
    fn default() -> Self {
        let sixteen = const { NonZeroU32::new(16).unwrap() };
        Self { lanes: NonZeroU32::MIN, array: [sixteen; 2] }
    }
}

impl Machine {
    /// Accumulator updates of one output with this many products: `ceil(products / lanes)`.
    pub const fn updates(&self, products: usize) -> usize {
        products.div_ceil(self.lanes.get() as usize)
    }
}
