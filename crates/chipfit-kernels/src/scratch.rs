//! Memory that a convolution works in, kept between calls.

use crate::buffer::Buffer;

/// Memory that a convolution works in: the padded copy of its input, addresses of pixels, and one tile of accumulators.
///
/// Make one per thread and lend it to every call: it grows to what the largest call needs and then stays.
/// It carries nothing from one call to the next.
#[derive(Debug, Default)]
pub struct Scratch {
    /// Padded copy of input rows.
    pub(crate) source: Buffer,
    /// Rows of operands gathered for tiles.
    pub(crate) panel: Buffer,
    /// Accumulators of tiles.
    pub(crate) tile: Buffer,
    /// Byte offset of each output row's, then of each output pixel's, first operand.
    pub(crate) offsets: Vec<usize>,
}

impl Scratch {
    /// Empty; the first call grows it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes it holds now.
    pub fn bytes(&self) -> usize {
        self.source.bytes() + self.panel.bytes() + self.tile.bytes() + self.offsets.capacity() * size_of::<usize>()
    }
}
