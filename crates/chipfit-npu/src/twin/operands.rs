//! What the products of one output multiply, as the buffers hold it, faults of the buffers included.

use crate::faults::{Site, Strike};
use crate::program::{Linear, MatMul, Op, Program, Step, Tensor};

/// Reads operands output by output, in ascending order: it counts the uses of every input word.
pub(super) struct Operands<'a> {
    kind: Kind<'a>,
    first: &'a Tensor,
    first_bytes: &'a [u8],
    second: Option<(&'a Tensor, &'a [u8])>,
    out: &'a Tensor,
    strikes: &'a [Strike],
    /// How many outputs have read each word of the first input so far.
    uses: Vec<u32>,
}

#[derive(Clone, Copy)]
enum Kind<'a> {
    Linear(&'a Linear),
    MatMul(&'a MatMul),
}

impl<'a> Operands<'a> {
    pub(super) fn new(program: &'a Program, step: &'a Step, inputs: &[&'a [u8]], strikes: &'a [Strike]) -> Self {
        let kind = match &step.op {
            Op::Linear(linear) => Kind::Linear(linear),
            Op::MatMul(product) => Kind::MatMul(product),
            _ => unreachable!("only Linear and MatMul have products"),
        };
        let second = step.inputs.get(1).map(|&id| (program.tensor(id), inputs[1]));
        Self {
            kind,
            first: program.tensor(step.inputs[0]),
            first_bytes: inputs[0],
            second,
            out: program.tensor(step.output),
            strikes,
            uses: vec![0; inputs[0].len()],
        }
    }

    /// Width of a product word.
    pub(super) fn product_bits(&self) -> u32 {
        match self.kind {
            Kind::Linear(linear) => linear.product_bits(),
            Kind::MatMul(_) => crate::faults::MATMUL_PRODUCT_BITS,
        }
    }

    /// How many outputs have read each word of the first input so far.
    #[cfg(test)]
    pub(super) fn uses(&self) -> &[u32] {
        &self.uses
    }

    pub(super) fn bias(&self, output: usize) -> i32 {
        match self.kind {
            Kind::Linear(linear) => linear.bias[output % linear.geometry.out_channels],
            Kind::MatMul(_) => 0,
        }
    }

    /// The factors of every product of one output, in ascending k, zero points subtracted.
    pub(super) fn read(&mut self, output: usize) -> Vec<(i32, i32)> {
        match self.kind {
            Kind::Linear(linear) => self.read_linear(linear, output),
            Kind::MatMul(product) => self.read_matmul(product, output),
        }
    }

    fn read_linear(&mut self, linear: &Linear, output: usize) -> Vec<(i32, i32)> {
        let geometry = &linear.geometry;
        let [height, width] = geometry.input;
        let [_, columns] = geometry.output();
        let (pixel, channel) = (output / geometry.out_channels, output % geometry.out_channels);
        let (row, column) = (pixel / columns, pixel % columns);
        let in_channels = geometry.in_channels / geometry.groups;
        let group = channel / (geometry.out_channels / geometry.groups);
        let mut factors = Vec::with_capacity(linear.products());
        for kernel_row in 0..geometry.kernel[0] {
            for kernel_column in 0..geometry.kernel[1] {
                for in_channel in 0..in_channels {
                    let y =
                        (row * geometry.stride[0] + kernel_row * geometry.dilation[0]).wrapping_sub(geometry.pads[0]);
                    let x = (column * geometry.stride[1] + kernel_column * geometry.dilation[1])
                        .wrapping_sub(geometry.pads[1]);
                    // Positions before the map wrap around and lie beyond it, too.
                    let activation = if y < height && x < width {
                        self.activation((y * width + x) * geometry.in_channels + group * in_channels + in_channel)
                    } else {
                        0
                    };
                    let k = factors.len();
                    let weight = self.weight(linear, channel * linear.products() + k, pixel);
                    factors.push((activation, weight - i32::from(linear.weight_zero_points[channel])));
                }
            }
        }
        factors
    }

    fn read_matmul(&mut self, product: &MatMul, output: usize) -> Vec<(i32, i32)> {
        let place = model_index(self.out, output);
        let (row, column) = (place / product.columns % product.rows, place % product.columns);
        let batch = place / (product.rows * product.columns);
        let (second, second_bytes) = self.second.expect("MatMul has two inputs");
        (0..product.inner)
            .map(|k| {
                let left = stored_index(self.first, (batch * product.rows + row) * product.inner + k);
                let right = stored_index(second, (batch * product.inner + k) * product.columns + column);
                let factor = i32::from(second_bytes[right]) - i32::from(second.zero_point);
                (self.activation(left), factor)
            })
            .collect()
    }

    /// One word of the first input for its next consumer, less the zero point.
    fn activation(&mut self, index: usize) -> i32 {
        let consumer = self.uses[index];
        self.uses[index] += 1;
        let word = u32::from(self.first.to_word(self.first_bytes[index]));
        let word = seen(self.strikes, Site::Act, index, consumer, word);
        i32::from(self.first.from_word(word as u8)) - i32::from(self.first.zero_point)
    }

    /// One weight for the consumer `pixel`.
    fn weight(&self, linear: &Linear, index: usize, pixel: usize) -> i32 {
        let word = u32::from(linear.weights[index].cast_unsigned());
        let word = seen(self.strikes, Site::Weight, index, pixel as u32, word);
        i32::from((word as u8).cast_signed())
    }
}

/// A buffer's word as one consumer sees it.
fn seen(strikes: &[Strike], site: Site, index: usize, consumer: u32, word: u32) -> u32 {
    super::at(strikes, site, index)
        .iter()
        .filter(|strike| strike.is_seen_by(consumer))
        .fold(word, |word, strike| strike.change.apply(word, 8))
}

/// Where an element of the model's row-major layout is stored.
fn stored_index(tensor: &Tensor, model_index: usize) -> usize {
    if !tensor.is_channels_last() {
        return model_index;
    }
    let (channels, positions) = (tensor.channels(), tensor.elements() / tensor.channels());
    let (channel, position) = (model_index / positions, model_index % positions);
    position * channels + channel
}

/// The inverse of [`stored_index`].
fn model_index(tensor: &Tensor, stored_index: usize) -> usize {
    if !tensor.is_channels_last() {
        return stored_index;
    }
    let (channels, positions) = (tensor.channels(), tensor.elements() / tensor.channels());
    let (position, channel) = (stored_index / channels, stored_index % channels);
    channel * positions + position
}
