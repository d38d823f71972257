//! Faults of the weight and input buffers of one step and one picture: what every consumer sees, and what only some do.
//!
//! Promises: a word that only some outputs see changed keeps its other value in the buffer; each of those outputs gets
//! an [`Override`] with the value after all strikes that it sees, in the order of [`Strike`].

use crate::faults::{Site, Strike};
use crate::program::{ConvGeometry, Linear, MatMul, Tensor};

use super::operands::{Override, output_map, tap};
use super::struck::of_site;

/// What became of the buffers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Buffers {
    /// Index into the first input, and the biased byte that lies there.
    pub(crate) activations: Vec<(usize, u8)>,
    /// Index into the weights, and the weight that lies there.
    pub(crate) weights: Vec<(usize, i8)>,
    /// By output, ascending: operands that this output sees otherwise.
    pub(crate) overrides: Vec<(u64, Override)>,
}

/// The strikes of each word of one site, with the word.
fn by_word(strikes: &[Strike], words: usize) -> impl Iterator<Item = (usize, &[Strike])> {
    strikes.chunk_by(|a, b| a.word == b.word).filter_map(move |list| {
        usize::try_from(list[0].word).ok().filter(|&word| word < words).map(|word| (word, list))
    })
}

/// Whether every consumer sees the strike.
fn is_for_all(strike: &Strike) -> bool {
    strike.first_use == 0 && strike.uses == u32::MAX
}

fn fold<'a>(strikes: impl Iterator<Item = &'a Strike>, word: u8) -> u8 {
    strikes.fold(u32::from(word), |word, strike| strike.change.apply(word, 8)) as u8
}

/// The word in the buffer, and the words that single consumers below `consumers` see where they differ in strikes.
fn seen(strikes: &[Strike], word: u8, consumers: u32) -> (u8, Vec<(u32, u8)>) {
    let shared = fold(strikes.iter().filter(|strike| is_for_all(strike)), word);
    let limited = || strikes.iter().filter(|strike| !is_for_all(strike));
    let start = limited().map(|strike| strike.first_use).min().unwrap_or(0);
    let end = limited().map(|strike| strike.first_use.saturating_add(strike.uses).min(consumers)).max().unwrap_or(0);
    let single = (start..end)
        .filter(|&consumer| limited().any(|strike| strike.is_seen_by(consumer)))
        .map(|consumer| (consumer, fold(strikes.iter().filter(|strike| strike.is_seen_by(consumer)), word)))
        .collect();
    (shared, single)
}

impl Buffers {
    /// The buffers of a linear step whose first input is `input`.
    pub(crate) fn of_linear(linear: &Linear, tensor: &Tensor, input: &[u8], strikes: &[Strike]) -> Self {
        let mut buffers = Self::default();
        let geometry = &linear.geometry;
        let [rows, columns] = output_map(geometry);
        let per_group = geometry.out_channels / geometry.groups.max(1);
        let channels = geometry.in_channels / geometry.groups.max(1);
        let products = linear.products();
        for (index, strikes) in by_word(of_site(strikes, Site::Weight), linear.weights.len()) {
            let pixels = u32::try_from(rows * columns).unwrap_or(u32::MAX);
            let (shared, single) = seen(strikes, linear.weights[index].cast_unsigned(), pixels);
            buffers.weights.push((index, shared.cast_signed()));
            let (channel, k) = (index / products, index % products);
            buffers.overrides.extend(single.into_iter().map(|(pixel, word)| {
                let output = pixel as usize * geometry.out_channels + channel;
                (output as u64, Override { k, activation: None, weight: Some(word.cast_signed()) })
            }));
        }
        for (index, strikes) in by_word(of_site(strikes, Site::Act), input.len()) {
            let (position, in_channel) = (index / geometry.in_channels, index % geometry.in_channels);
            let readers = Readers::new(geometry, position);
            let consumers = u32::try_from(readers.pixels() * per_group).unwrap_or(u32::MAX);
            let (shared, single) = seen(strikes, tensor.to_word(input[index]), consumers);
            buffers.activations.push((index, tensor.from_word(shared)));
            let group = in_channel / channels;
            buffers.overrides.extend(single.into_iter().map(|(consumer, word)| {
                let (pixel, tap) = readers.pixel(consumer as usize / per_group, columns, geometry.kernel[1]);
                let output = pixel * geometry.out_channels + group * per_group + consumer as usize % per_group;
                let k = tap * channels + in_channel % channels;
                (output as u64, Override { k, activation: Some(tensor.from_word(word)), weight: None })
            }));
        }
        buffers.merge();
        buffers
    }

    /// The buffers of a product of two activations: the left operand's words.
    pub(crate) fn of_matmul(product: &MatMul, [left, out]: [&Tensor; 2], input: &[u8], strikes: &[Strike]) -> Self {
        let mut buffers = Self::default();
        let consumers = u32::try_from(product.columns).unwrap_or(u32::MAX);
        for (index, strikes) in by_word(of_site(strikes, Site::Act), input.len()) {
            let (shared, single) = seen(strikes, left.to_word(input[index]), consumers);
            buffers.activations.push((index, left.from_word(shared)));
            if single.is_empty() {
                continue;
            }
            let place = model_index(left, index);
            let (row, k) = (place / product.inner, place % product.inner);
            let mut outputs: Vec<usize> =
                (0..product.columns).map(|column| stored_index(out, row * product.columns + column)).collect();
            outputs.sort_unstable();
            buffers.overrides.extend(single.into_iter().map(|(consumer, word)| {
                let change = Override { k, activation: Some(left.from_word(word)), weight: None };
                (outputs[consumer as usize] as u64, change)
            }));
        }
        buffers.merge();
        buffers
    }

    /// The first input of a step without products: every consumer sees a struck word.
    pub(crate) fn of_other(tensor: &Tensor, input: &[u8], strikes: &[Strike]) -> Self {
        let activations = by_word(of_site(strikes, Site::Act), input.len())
            .map(|(index, strikes)| (index, tensor.from_word(fold(strikes.iter(), tensor.to_word(input[index])))))
            .collect();
        Self { activations, ..Self::default() }
    }

    /// Sorts the overrides and joins those of one product.
    fn merge(&mut self) {
        self.overrides.sort_by_key(|(output, change)| (*output, change.k));
        self.overrides.dedup_by(|second, first| {
            let same = (first.0, first.1.k) == (second.0, second.1.k);
            if same {
                first.1.activation = first.1.activation.or(second.1.activation);
                first.1.weight = first.1.weight.or(second.1.weight);
            }
            same
        });
    }
}

/// The output pixels that read one position of the input, by axis: output coordinate and tap.
#[derive(Clone, Debug)]
pub(crate) struct Readers {
    pub(crate) rows: Vec<(usize, usize)>,
    pub(crate) columns: Vec<(usize, usize)>,
}

impl Readers {
    /// Of the input position `position` (row-major).
    pub(crate) fn new(geometry: &ConvGeometry, position: usize) -> Self {
        let at = [position / geometry.input[1], position % geometry.input[1]];
        let output = output_map(geometry);
        let [rows, columns] = [0, 1].map(|axis| {
            let padded = at[axis] + geometry.pads[axis];
            let reach = (geometry.kernel[axis] - 1) * geometry.dilation[axis];
            let first = padded.saturating_sub(reach).div_ceil(geometry.stride[axis]);
            let last = padded / geometry.stride[axis];
            (first..output[axis].min(last + 1))
                .filter_map(|place| {
                    let distance = padded - place * geometry.stride[axis];
                    let number = distance / geometry.dilation[axis];
                    (distance.is_multiple_of(geometry.dilation[axis]) && number < geometry.kernel[axis])
                        .then_some((place, number))
                })
                .inspect(|&(place, number)| debug_assert_eq!(tap(geometry, axis, place, number), Some(at[axis])))
                .collect()
        });
        Self { rows, columns }
    }

    /// How many pixels read it.
    pub(crate) fn pixels(&self) -> usize {
        self.rows.len() * self.columns.len()
    }

    /// The output pixel that is number `reader` in row-major order, and its tap.
    fn pixel(&self, reader: usize, columns: usize, kernel_columns: usize) -> (usize, usize) {
        let (row, tap_row) = self.rows[reader / self.columns.len()];
        let (column, tap_column) = self.columns[reader % self.columns.len()];
        (row * columns + column, tap_row * kernel_columns + tap_column)
    }
}

/// Where an element of the model's row-major layout is stored.
pub(crate) fn stored_index(tensor: &Tensor, place: usize) -> usize {
    if !tensor.is_channels_last() {
        return place;
    }
    let positions = tensor.elements() / tensor.channels();
    place % positions * tensor.channels() + place / positions
}

/// The inverse of [`stored_index`].
pub(crate) fn model_index(tensor: &Tensor, stored: usize) -> usize {
    if !tensor.is_channels_last() {
        return stored;
    }
    let positions = tensor.elements() / tensor.channels();
    stored % tensor.channels() * positions + stored / tensor.channels()
}
