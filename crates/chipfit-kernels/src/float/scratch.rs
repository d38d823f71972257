//! Memory that the f32 loops work in, kept between calls.

/// Memory that the f32 loops work in: a padded copy of what a chunk reads, packed operands, offsets of pixels.
///
/// Make one per thread and lend it to every call: it grows to what the largest call needs and then stays.
/// It carries nothing from one call to the next.
#[derive(Debug, Default)]
pub struct FloatScratch {
    /// Padded copy of the source of a chunk.
    pub(super) source: Floats,
    /// Operands side by side: of a vector's lanes, of the factors beside them.
    pub(super) vectors: Floats,
    pub(super) scalars: Floats,
    /// Sums or biases, filled up to whole vectors.
    pub(super) sums: Floats,
    /// Where the pixels of a chunk lie.
    pub(super) pixels: Vec<Pixel>,
}

/// Where a pixel's source and target lie, in elements from the start of their chunk.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pixel {
    pub(super) source: usize,
    pub(super) target: usize,
}

impl FloatScratch {
    /// Empty; the first call grows it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes it holds now.
    pub fn bytes(&self) -> usize {
        let floats = [&self.source, &self.vectors, &self.scalars, &self.sums];
        floats.into_iter().map(|floats| floats.lines.len() * size_of::<Line>()).sum::<usize>()
            + self.pixels.capacity() * size_of::<Pixel>()
    }
}

/// Numbers in a cache line, or in the widest vector.
pub(super) const LINE: usize = 16;

#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Line([f32; LINE]);

/// Numbers that start on a cache line.
#[derive(Clone, Default)]
pub(super) struct Floats {
    lines: Vec<Line>,
}

impl std::fmt::Debug for Floats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Floats({})", self.lines.len() * LINE)
    }
}

impl Floats {
    /// At least `n` zeros.
    pub(super) fn zeros(n: usize) -> Self {
        Self { lines: vec![Line([0.0; LINE]); n.div_ceil(LINE)] }
    }

    /// At least `n` numbers to write to; they hold anything.
    pub(super) fn room(&mut self, n: usize) -> &mut [f32] {
        if self.lines.len() * LINE < n {
            *self = Self::zeros(n);
        }
        self.as_mut_slice()
    }

    pub(super) fn as_slice(&self) -> &[f32] {
        // SAFETY: the lines are initialised numbers without gaps, borrowed as long as the slice lives.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.lines.len() * LINE) }
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [f32] {
        // SAFETY: the lines are initialised numbers without gaps, borrowed mutably as long as the slice lives.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.lines.len() * LINE) }
    }
}
