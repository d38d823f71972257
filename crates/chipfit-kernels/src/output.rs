//! Where a call writes: a range of channels of an NHWC tensor.

use std::marker::PhantomData;
use std::ops::Range;

use crate::error::KernelError;

/// A range of channels of every pixel of a dense NHWC tensor, borrowed for writing.
///
/// Blocks of one tensor never overlap, so several threads may fill them at once.
#[derive(Debug)]
pub struct OutputBlock<'a, T> {
    start: *mut T,
    pixels: usize,
    pitch: usize,
    channels: Range<usize>,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: a block is an exclusive borrow of its elements, as `&mut [T]` is; blocks of one tensor are disjoint.
unsafe impl<T: Send> Send for OutputBlock<'_, T> {}

impl<'a, T> OutputBlock<'a, T> {
    /// All channels of a tensor: `out` is `[pixels, channels]`.
    ///
    /// # Errors
    /// [`KernelError::Zero`] for no channels, [`KernelError::Length`] when they do not divide `out`.
    pub fn new(out: &'a mut [T], channels: usize) -> Result<Self, KernelError> {
        let Some(pixels) = out.len().checked_div(channels) else {
            return Err(KernelError::Zero { what: "channels" });
        };
        if pixels * channels != out.len() {
            return Err(KernelError::Length { what: "output", wanted: pixels * channels, got: out.len() });
        }
        Ok(Self { start: out.as_mut_ptr(), pixels, pitch: channels, channels: 0..channels, borrow: PhantomData })
    }

    /// The channels before `at` and those from `at` on; `at` is clamped to this block's range.
    pub fn split_channels(self, at: usize) -> (Self, Self) {
        let Range { start, end } = self.channels;
        let at = at.clamp(start, end);
        let part = |channels| Self {
            start: self.start,
            pixels: self.pixels,
            pitch: self.pitch,
            channels,
            borrow: PhantomData,
        };
        (part(start..at), part(at..end))
    }

    /// The channels it covers.
    pub fn channels(&self) -> Range<usize> {
        self.channels.clone()
    }

    /// Pixels of the tensor, all pictures together.
    pub fn pixels(&self) -> usize {
        self.pixels
    }

    /// Channels of the whole tensor.
    pub(crate) fn pitch(&self) -> usize {
        self.pitch
    }

    /// Element 0 of pixel 0, channel 0; only this block's channels may be written.
    pub(crate) fn as_mut_ptr(&mut self) -> *mut T {
        self.start
    }
}
