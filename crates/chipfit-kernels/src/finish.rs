//! From a tile of accumulators to outputs: requantization, store.

use std::cell::Cell;

use crate::requantize::{Fixed, Requantize, Rescale};

/// What becomes of an accumulator, and where it goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Finish<'a> {
    /// Element 0 of output pixel 0, channel 0.
    pub(crate) target: Target<'a>,
    /// Elements between two pixels of the output.
    pub(crate) pitch: usize,
    /// Accumulators that the caller wants to see besides.
    pub(crate) probe: Option<&'a Probe<'a>>,
}

/// One output of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Output pixel, row-major, over all pictures of the call.
    pub pixel: u32,
    /// Output channel.
    pub channel: u32,
}

/// Accumulators that are stored apart while their tile is at hand.
#[derive(Clone, Debug)]
pub(crate) struct Probe<'a> {
    /// Ascending.
    pub(crate) places: &'a [Place],
    /// One per place.
    pub(crate) sums: *mut i32,
    /// The first place that the last tile did not lie behind: tiles mostly come in ascending order of pixels.
    pub(crate) next: Cell<usize>,
}

impl Probe<'_> {
    /// Stores the accumulators of a tile that are wanted.
    ///
    /// # Safety
    /// `tile.sums` holds the rectangle; `sums` has an element per place, and the caller alone writes them.
    pub(crate) unsafe fn collect(&self, tile: Tile) {
        let is_before = |place: &Place| (place.pixel as usize) < tile.pixel;
        let mut first = self.next.get();
        if first > 0 && !is_before(&self.places[first - 1]) {
            first = self.places[..first].partition_point(is_before);
        }
        while self.places.get(first).is_some_and(is_before) {
            first += 1;
        }
        self.next.set(first);
        for (at, place) in self.places.iter().enumerate().skip(first) {
            let pixel = place.pixel as usize - tile.pixel;
            if pixel >= tile.pixels {
                break;
            }
            let channel = (place.channel as usize).wrapping_sub(tile.channel);
            if channel < tile.channels {
                // SAFETY: inside the rectangle, and a place's own element.
                unsafe { self.sums.add(at).write(tile.sums.add(pixel * tile.pitch + channel).read()) };
            }
        }
    }
}

/// Bytes or accumulators.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target<'a> {
    Float(*mut u8, &'a Requantize),
    Fixed(*mut u8, &'a Fixed),
    Sums(*mut i32),
}

impl<'a> Target<'a> {
    pub(crate) fn bytes(start: *mut u8, rescale: Rescale<'a>) -> Self {
        match rescale {
            Rescale::Float(float) => Self::Float(start, float),
            Rescale::Fixed(fixed) => Self::Fixed(start, fixed),
        }
    }
}

/// A rectangle of accumulators: `pixels` rows of `channels`, `pitch` apart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tile {
    pub(crate) sums: *const i32,
    pub(crate) pitch: usize,
    /// First output pixel, over all pictures of the call.
    pub(crate) pixel: usize,
    pub(crate) pixels: usize,
    /// First output channel.
    pub(crate) channel: usize,
    pub(crate) channels: usize,
}

impl Finish<'_> {
    /// Finishes a tile element by element.
    ///
    /// # Safety
    /// `tile.sums` holds the rectangle; the target holds every pixel and channel of it, the caller alone writes them,
    /// and multipliers cover the channels.
    pub(crate) unsafe fn scalar(&self, tile: Tile) {
        if let Target::Sums(start) = self.target {
            for pixel in 0..tile.pixels {
                // SAFETY: a row of the rectangle, and the target's channels of one pixel; they are different memory.
                unsafe {
                    let to = start.add((tile.pixel + pixel) * self.pitch + tile.channel);
                    tile.sums.add(pixel * tile.pitch).copy_to_nonoverlapping(to, tile.channels);
                }
            }
            return;
        }
        if let Target::Float(start, float) = self.target {
            let multipliers = &float.multipliers[tile.channel..][..tile.channels];
            for pixel in 0..tile.pixels {
                // SAFETY: a row of the rectangle, and the target's channels of one pixel; they are different memory.
                let (sums, to) = unsafe {
                    let to = start.add((tile.pixel + pixel) * self.pitch + tile.channel);
                    (
                        std::slice::from_raw_parts(tile.sums.add(pixel * tile.pitch), tile.channels),
                        std::slice::from_raw_parts_mut(to, tile.channels),
                    )
                };
                for ((to, &sum), &multiplier) in to.iter_mut().zip(sums).zip(multipliers) {
                    *to = float.scale(multiplier, sum);
                }
            }
            return;
        }
        for pixel in 0..tile.pixels {
            for index in 0..tile.channels {
                let channel = tile.channel + index;
                // SAFETY: inside the rectangle.
                let sum = unsafe { tile.sums.add(pixel * tile.pitch + index).read() };
                // SAFETY: the caller's promise covers this pixel and channel.
                unsafe { self.store(sum, tile.pixel + pixel, channel) };
            }
        }
    }

    /// Stores one finished accumulator.
    ///
    /// # Safety
    /// The target holds this pixel and channel, and the caller alone writes it.
    pub(crate) unsafe fn store(&self, sum: i32, pixel: usize, channel: usize) {
        let at = pixel * self.pitch + channel;
        // SAFETY: the caller's promise.
        unsafe {
            match self.target {
                Target::Float(start, float) => start.add(at).write(float.apply(channel, sum)),
                Target::Fixed(start, fixed) => start.add(at).write(fixed.apply(channel, sum)),
                Target::Sums(start) => start.add(at).write(sum),
            }
        }
    }
}
