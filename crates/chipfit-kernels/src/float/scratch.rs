//! Memory that the f32 loops work in, kept between calls.

/// Memory that the f32 loops work in.
///
/// Make one per thread and lend it to every call: it grows to what the largest call needs and then stays.
/// It carries nothing from one call to the next.
#[derive(Debug, Default)]
pub struct FloatScratch {}

impl FloatScratch {
    /// Empty; the first call grows it.
    pub fn new() -> Self {
        Self::default()
    }
}
