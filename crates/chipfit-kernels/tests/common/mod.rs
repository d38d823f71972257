//! Random convolutions, their naive result, and the check that every instruction set gives it.

#![allow(dead_code, reason = "each test file uses its part")]

use chipfit_kernels::{Conv, ConvGeometry, Fixed, Isa, OutputBlock, Requantize, Rescale, Scratch};

/// Numbers that look random (splitmix64); equal seeds give equal numbers.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number of `low..=high`.
    pub(crate) fn within(&mut self, low: usize, high: usize) -> usize {
        low + (self.next() % (high - low + 1) as u64) as usize
    }

    pub(crate) fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.next() as u8).collect()
    }

    pub(crate) fn weights(&mut self, n: usize) -> Vec<i8> {
        (0..n).map(|_| self.next() as i8).collect()
    }
}

/// A convolution with its input and constants.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) geometry: ConvGeometry,
    pub(crate) pictures: usize,
    pub(crate) input: Vec<u8>,
    pub(crate) weights: Vec<i8>,
    pub(crate) bias: Vec<i32>,
    pub(crate) zero_point: u8,
}

impl Case {
    pub(crate) fn random(geometry: ConvGeometry, pictures: usize, seed: u64) -> Self {
        let mut numbers = Numbers(seed);
        let picture = geometry.input[0] * geometry.input[1] * geometry.in_channels;
        let input = numbers.bytes(pictures * picture);
        let weights = numbers.weights(geometry.out_channels * geometry.products());
        let bias = (0..geometry.out_channels).map(|_| numbers.next() as i32 >> 8).collect();
        Self { geometry, pictures, input, weights, bias, zero_point: numbers.next() as u8 }
    }

    /// Every accumulator, `[pictures, rows, columns, out_channels]`, straight from the formula: each output looks at
    /// every tap, and a tap outside the map reads the zero point.
    pub(crate) fn naive(&self) -> Vec<i32> {
        let g = &self.geometry;
        let [rows, columns] = g.checked_output().expect("a geometry of the tests");
        let (group_in, group_out) = (g.in_channels / g.groups, g.out_channels / g.groups);
        let mut sums = Vec::new();
        for index in 0..self.pictures * rows * columns * g.out_channels {
            let channel = index % g.out_channels;
            let column = index / g.out_channels % columns;
            let row = index / g.out_channels / columns % rows;
            let picture = index / g.out_channels / columns / rows;
            let mut sum = i64::from(self.bias[channel]);
            for k in 0..g.products() {
                let c = k % group_in;
                let kx = k / group_in % g.kernel[1];
                let ky = k / group_in / g.kernel[1];
                let y = (row * g.stride[0] + ky * g.dilation[0]) as i64 - g.pads[0] as i64;
                let x = (column * g.stride[1] + kx * g.dilation[1]) as i64 - g.pads[1] as i64;
                let inside = 0 <= y && y < g.input[0] as i64 && 0 <= x && x < g.input[1] as i64;
                let activation = if inside {
                    let pixel = (picture * g.input[0] + y as usize) * g.input[1] + x as usize;
                    self.input[pixel * g.in_channels + channel / group_out * group_in + c]
                } else {
                    self.zero_point
                };
                let weight = self.weights[channel * g.products() + k];
                sum += (i64::from(activation) - i64::from(self.zero_point)) * i64::from(weight);
            }
            sums.push(sum as i32);
        }
        sums
    }

    pub(crate) fn conv(&self, isa: Isa) -> Conv {
        Conv::new(isa, self.geometry.clone(), &self.weights, &self.bias, self.zero_point).expect("an available ISA")
    }

    /// Multipliers that bring sums of this case's size into bytes, some of them out of range.
    pub(crate) fn requantize(&self, numbers: &mut Numbers) -> Requantize {
        let size = 64.0 * 128.0 * (self.geometry.products() as f32).sqrt();
        let multiplier = |numbers: &mut Numbers| 128.0 / size * (1 + numbers.next() % 1000) as f32 / 500.0;
        let multipliers = (0..self.geometry.out_channels).map(|_| multiplier(numbers)).collect();
        let low = numbers.within(0, 60) as i32;
        Requantize { multipliers, zero_point: numbers.within(0, 255) as i32, low, high: numbers.within(60, 255) as i32 }
    }

    pub(crate) fn fixed(&self, numbers: &mut Numbers) -> Fixed {
        let channels = 0..self.geometry.out_channels;
        Fixed {
            multipliers: channels.clone().map(|_| (1 << 30) + (numbers.next() >> 34) as i32).collect(),
            shifts: channels.map(|_| numbers.within(0, 20) as i32 - 18).collect(),
            zero_point: numbers.within(0, 255) as i32,
            low: 0,
            high: 255,
        }
    }

    /// Checks every entry point of every instruction set against the naive sums.
    pub(crate) fn check(&self, seed: u64) {
        let sums = self.naive();
        let mut numbers = Numbers(!seed);
        let channels = self.geometry.out_channels;
        let [rows, columns] = self.geometry.checked_output().expect("a geometry of the tests");
        let float = self.requantize(&mut numbers);
        let fixed = self.fixed(&mut numbers);
        let bytes = |rescale: Rescale<'_>| -> Vec<u8> {
            sums.iter().enumerate().map(|(index, &sum)| rescale.apply(index % channels, sum)).collect()
        };
        let (float_bytes, fixed_bytes) = (bytes(Rescale::from(&float)), bytes(Rescale::from(&fixed)));
        for isa in Isa::available() {
            let conv = self.conv(isa);
            let mut scratch = Scratch::new();
            let what = format!("{} {:?} x{} seed {seed}", isa.name(), self.geometry, self.pictures);

            let mut got = vec![0; sums.len()];
            conv.accumulate(&self.input, 0..rows, &mut got, &mut scratch).expect("checked sizes");
            assert_eq!(got, sums, "accumulate {what}");

            let mut got = vec![0; sums.len()];
            conv.run(&self.input, 0..rows, &float, &mut got, &mut scratch).expect("checked sizes");
            assert_eq!(got, float_bytes, "run {what}");
            conv.run(&self.input, 0..rows, &fixed, &mut got, &mut scratch).expect("checked sizes");
            assert_eq!(got, fixed_bytes, "run fixed {what}");

            // Some rows, and channels in two parts.
            let start = numbers.within(0, rows - 1);
            let end = numbers.within(start, rows);
            let split = numbers.within(0, channels.div_ceil(conv.channel_step())) * conv.channel_step();
            let picture = columns * channels * rows;
            let of_rows = |all: &[u8]| -> Vec<u8> {
                let parts = all.chunks(picture).map(|all| &all[start * columns * channels..end * columns * channels]);
                parts.collect::<Vec<_>>().concat()
            };
            let mut part = vec![0; self.pictures * (end - start) * columns * channels];
            let block = OutputBlock::new(&mut part, channels).expect("whole pixels");
            let (left, right) = block.split_channels(split);
            for block in [left, right] {
                conv.run_block(&self.input, start..end, &float, block, &mut scratch).expect("checked sizes");
            }
            assert_eq!(part, of_rows(&float_bytes), "rows {start}..{end}, split {split} {what}");

            for _ in 0..3 {
                let at = numbers.within(0, sums.len() - 1);
                let output = (at / channels / columns % rows, at / channels % columns, at % channels);
                let picture = self.input.len() / self.pictures;
                let input = &self.input[at / channels / columns / rows * picture..][..picture];
                self.check_patch(&conv, input, output, sums[at], numbers.within(0, self.geometry.products()));
            }
        }
    }

    /// Partial sums grow by the operands' products and end at the accumulator.
    fn check_patch(&self, conv: &Conv, input: &[u8], at: (usize, usize, usize), sum: i32, upto: usize) {
        let (row, column, channel) = at;
        let products = self.geometry.products();
        assert_eq!(conv.partial(input, row, column, channel, products), sum, "partial {at:?} {:?}", self.geometry);
        let mut expected = self.bias[channel];
        for k in 0..upto {
            let (x, w) = conv.operand(input, row, column, channel, k);
            expected = expected.wrapping_add(x * w);
        }
        assert_eq!(conv.partial(input, row, column, channel, upto), expected, "{upto} {at:?} {:?}", self.geometry);
        for k in upto..products {
            let (x, w) = conv.operand(input, row, column, channel, k);
            expected = expected.wrapping_add(x * w);
        }
        assert_eq!(expected, sum, "operands {at:?} {:?}", self.geometry);
    }
}

/// A geometry drawn from everything that is allowed; small enough for the naive loop.
pub(crate) fn random_geometry(numbers: &mut Numbers) -> ConvGeometry {
    loop {
        let groups = [1, 1, 1, 2, 3, 8, 40][numbers.within(0, 6)];
        let most = [3, 9, 70, 150][numbers.within(0, 3)];
        let depthwise = numbers.within(0, 3) == 0;
        let group_in = if depthwise { 1 } else { numbers.within(1, (most / groups).max(1)) };
        let group_out = if depthwise { 1 } else { numbers.within(1, (most / groups).max(1)) };
        let groups = if depthwise { numbers.within(1, 150) } else { groups };
        let geometry = ConvGeometry {
            input: [numbers.within(1, 9), numbers.within(1, 20)],
            in_channels: groups * group_in,
            out_channels: groups * group_out,
            groups,
            kernel: [numbers.within(1, 3), numbers.within(1, 4)],
            stride: [numbers.within(1, 3), numbers.within(1, 3)],
            dilation: [numbers.within(1, 2), numbers.within(1, 3)],
            pads: [numbers.within(0, 2), numbers.within(0, 3), numbers.within(0, 2), numbers.within(0, 3)],
        };
        if geometry.checked_output().is_ok() && geometry.macs() < 400_000 {
            return geometry;
        }
    }
}
