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
    /// Byte offset of each output row's first operand.
    pub(crate) lines: Vec<usize>,
    /// Byte offset of each output pixel's first operand.
    pub(crate) pixels: Vec<usize>,
    /// Tiles of a chunk: byte offset of the first operand, first output pixel.
    pub(crate) places: Vec<(usize, usize)>,
    /// Byte offset of every step of operands of a tile.
    pub(crate) steps: Vec<usize>,
}

impl Scratch {
    /// Empty; the first call grows it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes it holds now.
    pub fn bytes(&self) -> usize {
        self.source.bytes()
            + self.panel.bytes()
            + self.tile.bytes()
            + (self.lines.capacity() + self.pixels.capacity() + 2 * self.places.capacity() + self.steps.capacity())
                * size_of::<usize>()
    }
}
