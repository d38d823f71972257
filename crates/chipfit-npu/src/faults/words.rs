//! The exposed units of one site of one step, numbered from 0, and the word and bit that each of them is.

use super::{Population, Site};
use crate::machine::Machine;
use crate::program::{Program, StepId};

/// Which words of a site are exposed.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Words {
    /// All of them.
    All(u64),
    /// Words that belong to outputs, channels last: some channels, and every n-th pixel.
    Outputs { per_output: u64, all_channels: u64, channels: Vec<u64>, pixels: u64, first_pixel: u64, pixel_step: u64 },
    /// Weights, output channel first.
    Weights { per_channel: u64, channels: Vec<u64> },
}

impl Words {
    fn count(&self) -> u64 {
        match self {
            Self::All(words) => *words,
            Self::Outputs { per_output, channels, pixels, .. } => per_output * channels.len() as u64 * pixels,
            Self::Weights { per_channel, channels } => per_channel * channels.len() as u64,
        }
    }

    /// The word number of the `index`-th exposed word; ascending in `index`.
    #[inline]
    fn word(&self, index: u64) -> u64 {
        match self {
            Self::All(_) => index,
            Self::Outputs { per_output, all_channels, channels, first_pixel, pixel_step, .. } => {
                let (output, within) = (index / per_output, index % per_output);
                let (pixel, channel) = (output / channels.len() as u64, output % channels.len() as u64);
                let channel = channels[channel as usize];
                ((first_pixel + pixel * pixel_step) * all_channels + channel) * per_output + within
            }
            Self::Weights { per_channel, channels } => {
                channels[(index / per_channel) as usize] * per_channel + index % per_channel
            }
        }
    }
}

/// The exposed units of one site of one step: bits of words, or whole words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Exposed {
    words: Words,
    /// Exposed bits, ascending; empty when the unit is the word.
    bits: Vec<u32>,
}

/// What narrows the exposed words down.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mask<'a> {
    /// Channels; `None` for all.
    pub channels: Option<&'a [u32]>,
    /// Row and column of a processing element.
    pub element: Option<[u32; 2]>,
}

impl Exposed {
    /// The units of a site under a mask; `bits` empty for whole words.
    pub(super) fn new(
        program: &Program,
        step: StepId,
        site: Site,
        population: Population,
        mask: Mask<'_>,
        machine: &Machine,
        bits: Vec<u32>,
    ) -> Self {
        Self { words: words(program, step, site, population, mask, machine), bits }
    }

    /// The same words with other bits.
    pub(super) fn with_bits(&self, bits: Vec<u32>) -> Self {
        Self { words: self.words.clone(), bits }
    }

    /// The exposed bits of every word; empty when the unit is the word.
    pub(super) fn bits(&self) -> &[u32] {
        &self.bits
    }

    /// Number of exposed words.
    pub(super) fn words(&self) -> u64 {
        self.words.count()
    }

    /// Number of exposed units.
    pub(super) fn units(&self) -> u64 {
        self.words.count() * self.bits.len().max(1) as u64
    }

    /// Word number and bit of a unit (bit 0 where the unit is the word).
    #[inline]
    pub(super) fn unit(&self, index: u64) -> (u64, u32) {
        match self.bits.len() as u64 {
            0 => (self.words.word(index), 0),
            // Shifts where they will do: words mostly expose 8, 16 or 32 bits.
            bits if bits.is_power_of_two() => {
                let word = self.words.word(index >> bits.trailing_zeros());
                (word, self.bits[(index & (bits - 1)) as usize])
            }
            bits => (self.words.word(index / bits), self.bits[(index % bits) as usize]),
        }
    }

    /// Share of the exposed words that lies in flagged output channels.
    pub(super) fn share(&self, flags: &[bool]) -> f64 {
        let flagged = |channel: u64| flags.get(channel as usize).copied().unwrap_or(false);
        let (hits, all) = match &self.words {
            Words::All(_) => (flags.iter().filter(|&&on| on).count(), flags.len()),
            Words::Outputs { channels, .. } | Words::Weights { channels, .. } => {
                (channels.iter().filter(|&&channel| flagged(channel)).count(), channels.len())
            }
        };
        hits as f64 / all.max(1) as f64
    }
}

fn words(
    program: &Program,
    step: StepId,
    site: Site,
    population: Population,
    mask: Mask<'_>,
    machine: &Machine,
) -> Words {
    if mask.channels.is_none() && mask.element.is_none() {
        return Words::All(population.words);
    }
    let node = &program.steps()[step.0];
    let tensor = program.tensor(if site == Site::Act { node.inputs[0] } else { node.output });
    // Of a convolution, the weights' channels are the output's.
    let all_channels = tensor.channels().max(1) as u64;
    let [rows, columns] = machine.array.map(|side| u64::from(side.get()));
    let mut channels: Vec<u64> = match mask.channels {
        Some(channels) => channels.iter().map(|&channel| u64::from(channel)).filter(|&c| c < all_channels).collect(),
        None => (0..all_channels).collect(),
    };
    channels.sort_unstable();
    channels.dedup();
    if let Some([_, column]) = mask.element {
        channels.retain(|channel| channel % columns == u64::from(column));
    }
    if site == Site::Weight {
        return Words::Weights { per_channel: population.words / all_channels, channels };
    }
    let elements = tensor.elements() as u64;
    let all_pixels = elements / all_channels;
    let (first_pixel, pixel_step) = mask.element.map_or((0, 1), |[row, _]| (u64::from(row), rows));
    let pixels = all_pixels.saturating_sub(first_pixel).div_ceil(pixel_step);
    let per_output = population.words.checked_div(elements).unwrap_or(0).max(1);
    Words::Outputs { per_output, all_channels, channels, pixels, first_pixel, pixel_step }
}
