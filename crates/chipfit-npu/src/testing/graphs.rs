//! Random programs with branches: residual sums, products, concatenations, pools, tables and moves between linear steps.

use super::{Builder, Numbers};
use crate::program::{ConvGeometry, Op, Program, Source, TensorId, Window};

/// A random program over a `[C, H, W]` picture, with branches that meet again.
pub fn graph(seed: u64) -> Program {
    let mut numbers = Numbers::new(seed ^ 0x6EA9);
    let shape = [1 + numbers.below(5), 2 + numbers.below(7), 2 + numbers.below(7)];
    let mut graph = Graph { builder: Builder::new(seed, &shape), numbers };
    let mut last = graph.builder.random_conv(TensorId(0));
    for _ in 0..2 + graph.numbers.below(4) {
        last = graph.block(last);
    }
    if graph.numbers.once_in(2) {
        last = graph.average(last);
    }
    let features = graph.elements(last);
    let last = graph.flatten(last, &[features]);
    if !graph.numbers.once_in(4) {
        graph.builder.gemm(last, 1 + features % 7);
    }
    graph.builder.build()
}

struct Graph {
    builder: Builder,
    numbers: Numbers,
}

impl Graph {
    fn shape(&self, id: TensorId) -> Vec<usize> {
        self.builder.shape(id).to_vec()
    }

    fn elements(&self, id: TensorId) -> usize {
        self.shape(id).iter().product()
    }

    /// A convolution that keeps the map; `channels` out.
    fn same(&mut self, input: TensorId, channels: usize) -> TensorId {
        let shape = self.shape(input);
        let [in_channels, height, width] = shape[..] else { return input };
        let side = [1, 3][self.numbers.below(2)];
        let geometry = ConvGeometry {
            input: [height, width],
            in_channels,
            out_channels: channels,
            groups: 1,
            kernel: [side; 2],
            stride: [1; 2],
            dilation: [1; 2],
            pads: [side / 2; 4],
        };
        self.builder.linear("Conv", geometry, input, &[channels, height, width])
    }

    fn block(&mut self, input: TensorId) -> TensorId {
        let shape = self.shape(input);
        let [channels, height, width] = shape[..] else { return input };
        match self.numbers.below(9) {
            0 | 1 => {
                let first = self.same(input, 1 + channels % 5);
                let second = self.same(first, channels);
                self.builder.push("Add", Op::Add, vec![second, input], &shape)
            }
            2 => {
                let gate = self.average(input);
                let gate = self.builder.table(gate);
                self.builder.push("Mul", Op::Mul, vec![input, gate], &shape)
            }
            3 => {
                let other = 1 + self.numbers.below(4);
                let branch = self.same(input, other);
                let table = self.builder.table(branch);
                let copies = self.numbers.once_in(2);
                let tables = vec![None, if copies { None } else { Some(self.bytes()) }];
                let shape = [channels + other, height, width];
                self.builder.push("Concat", Op::Concat { axis: 0, tables }, vec![input, table], &shape)
            }
            4 => {
                let shape = [channels, height * 2, width];
                let tables = vec![Some(self.bytes()), None];
                self.builder.push("Concat", Op::Concat { axis: 1, tables }, vec![input, input], &shape)
            }
            5 | 6 => self.pool(input),
            7 => {
                let sources = (0..channels * height * width).map(|at| Source::Byte(at as u32)).collect();
                let same = self.builder.push("Identity", Op::Move { sources, fill: 0 }, vec![input], &shape);
                self.builder.push("Add", Op::Add, vec![same, same], &shape)
            }
            _ => self.builder.random_conv(input),
        }
    }

    fn bytes(&mut self) -> Box<[u8; 256]> {
        let mut table = Box::new([0; 256]);
        table.iter_mut().for_each(|byte| *byte = (self.numbers.bits() >> 13) as u8);
        table
    }

    fn pool(&mut self, input: TensorId) -> TensorId {
        let shape = self.shape(input);
        let [channels, height, width] = shape[..] else { return input };
        let kernel = [height, width].map(|side| 1 + self.numbers.below(side.min(3)));
        let stride = [1 + self.numbers.below(2), 1 + self.numbers.below(2)];
        let pads = [0, 1, 2, 3].map(|at: usize| self.numbers.below(kernel[at % 2]));
        let window = Window { kernel, stride, dilation: [1; 2], pads, count_include_pad: self.numbers.once_in(2) };
        let out = [0, 1]
            .map(|axis: usize| ([height, width][axis] + pads[axis] + pads[axis + 2] - kernel[axis]) / stride[axis] + 1);
        let shape = [channels, out[0], out[1]];
        match self.numbers.below(2) {
            0 => self.builder.push("MaxPool", Op::MaxPool(window), vec![input], &shape),
            _ => self.builder.push("AveragePool", Op::AveragePool(window), vec![input], &shape),
        }
    }

    fn average(&mut self, input: TensorId) -> TensorId {
        let channels = self.shape(input)[0];
        self.builder.push("GlobalAveragePool", Op::GlobalAveragePool, vec![input], &[channels, 1, 1])
    }

    fn flatten(&mut self, input: TensorId, shape: &[usize]) -> TensorId {
        let sources = (0..shape.iter().product()).map(|at: usize| Source::Byte(at as u32)).collect();
        self.builder.push("Flatten", Op::Move { sources, fill: 0 }, vec![input], shape)
    }
}
