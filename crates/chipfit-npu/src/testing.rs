//! Small random programs, pictures and strikes for property tests, of this crate and of its users.
//!
//! Everything follows from a seed. Programs cover grouped, depthwise, strided, dilated and padded convolutions,
//! matrix products with constants and between activations, both integer types, weight zero points and both forms
//! of requantization.

pub mod graphs;
pub mod networks;
pub mod qdq;

use crate::faults::{Change, Site, Strike};
use crate::machine::Machine;
use crate::program::{
    ConvGeometry, Head, Linear, MatMul, Op, Program, Rescale, Source, Step, StepId, Tensor, TensorId, Word,
};

/// A stream of test numbers.
#[derive(Clone, Debug)]
pub struct Numbers(u64);

impl Numbers {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// `0..end`, nearly uniform; 0 when `end` is 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.bits() % end.max(1) as u64) as usize
    }

    /// `low..=high`.
    pub fn between(&mut self, low: i64, high: i64) -> i64 {
        low + (self.bits() % (high - low + 1) as u64) as i64
    }

    /// True once in `n` times.
    pub fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.bits() as u8).collect()
    }
}

/// Grows a program step by step.
#[derive(Clone, Debug)]
pub struct Builder {
    numbers: Numbers,
    tensors: Vec<Tensor>,
    steps: Vec<Step>,
}

impl Builder {
    /// A program whose input has this shape (`[C, H, W]` or `[features]`).
    pub fn new(seed: u64, shape: &[usize]) -> Self {
        let mut builder = Self { numbers: Numbers::new(seed), tensors: Vec::new(), steps: Vec::new() };
        builder.tensor("input", shape);
        builder
    }

    /// The tensor written last.
    pub fn last(&self) -> TensorId {
        TensorId(self.tensors.len() - 1)
    }

    /// Shape of a tensor.
    pub fn shape(&self, id: TensorId) -> &[usize] {
        &self.tensors[id.0].shape
    }

    fn tensor(&mut self, name: &str, shape: &[usize]) -> TensorId {
        let word = if self.numbers.once_in(2) { Word::Signed } else { Word::Unsigned };
        let scale = self.numbers.between(1, 100) as f32 / 1000.0;
        let zero_point = if self.numbers.once_in(3) { 0 } else { self.numbers.bits() as u8 };
        self.tensors.push(Tensor { name: name.to_owned(), shape: shape.to_vec(), word, scale, zero_point });
        self.last()
    }

    /// Appends a step with a fresh output tensor.
    pub fn push(&mut self, op_type: &str, op: Op, inputs: Vec<TensorId>, shape: &[usize]) -> TensorId {
        let name = format!("{}{}", op_type.to_lowercase(), self.steps.len());
        let output = self.tensor(&format!("{name}_output"), shape);
        self.steps.push(Step { name, op_type: op_type.to_owned(), op, inputs, output });
        output
    }

    fn rescale(&mut self, channels: usize, products: usize) -> Rescale {
        // Sums of `products` terms of about 5,000 spread over a few hundred steps.
        let typical = 100.0 / (5000.0 * (products.max(1) as f32).sqrt());
        if self.numbers.once_in(2) {
            return Rescale::Float(
                (0..channels).map(|_| typical * self.numbers.between(50, 200) as f32 / 100.0).collect(),
            );
        }
        let multipliers = (0..channels).map(|_| self.numbers.between(1 << 30, i64::from(i32::MAX)) as i32).collect();
        let shift = typical.log2().ceil() as i32;
        let shifts = (0..channels).map(|_| shift + self.numbers.between(-1, 1) as i32).collect();
        Rescale::Fixed { multipliers, shifts }
    }

    /// A convolution with random constants. `geometry.input` and `in_channels` must fit `input`.
    pub fn linear(&mut self, op_type: &str, geometry: ConvGeometry, input: TensorId, shape: &[usize]) -> TensorId {
        let (channels, products) = (geometry.out_channels, geometry.products());
        let weights = self.numbers.bytes(channels * products).into_iter().map(u8::cast_signed).collect();
        let is_symmetric = !self.numbers.once_in(4);
        let weight_zero_points =
            (0..channels).map(|_| if is_symmetric { 0 } else { self.numbers.between(-128, 127) as i16 }).collect();
        let bias = (0..channels).map(|_| self.numbers.between(-20_000, 20_000) as i32).collect();
        let rescale = self.rescale(channels, products);
        let low = if self.numbers.once_in(3) { self.numbers.below(100) as u8 } else { 0 };
        let high = if self.numbers.once_in(3) { 150 + self.numbers.below(100) as u8 } else { 255 };
        let position = self.steps.len();
        let linear = Linear {
            geometry,
            weights,
            weight_zero_points,
            bias,
            rescale,
            low,
            high,
            weights_name: format!("weights{position}"),
            bias_name: Some(format!("bias{position}")),
            weight_scales: vec![0.01; channels],
        };
        self.push(op_type, Op::Linear(Box::new(linear)), vec![input], shape)
    }

    /// A random convolution of a `[C, H, W]` tensor; its kernel fits.
    pub fn random_conv(&mut self, input: TensorId) -> TensorId {
        let shape = self.shape(input).to_vec();
        let [in_channels, height, width] = shape[..] else { panic!("a [C, H, W] tensor, not {shape:?}") };
        let divisors: Vec<usize> = (1..=in_channels).filter(|d| in_channels % d == 0).collect();
        let groups = match self.numbers.below(4) {
            0 => in_channels,
            1 => divisors[self.numbers.below(divisors.len())],
            _ => 1,
        };
        let out_channels = groups * (1 + self.numbers.below(if groups > 2 { 2 } else { 6 }));
        let sides = [height, width].map(|side| {
            let kernel = 1 + self.numbers.below(3);
            let stride = 1 + self.numbers.below(2);
            let dilation = 1 + self.numbers.below(2);
            let before = self.numbers.below(kernel * dilation);
            let span = dilation * (kernel - 1) + 1;
            let after = self.numbers.below(kernel * dilation).max(span.saturating_sub(side + before));
            (side, kernel, stride, dilation, before, after)
        });
        let geometry = ConvGeometry {
            input: sides.map(|side| side.0),
            in_channels,
            out_channels,
            groups,
            kernel: sides.map(|side| side.1),
            stride: sides.map(|side| side.2),
            dilation: sides.map(|side| side.3),
            pads: [sides[0].4, sides[1].4, sides[0].5, sides[1].5],
        };
        let [rows, columns] = geometry.output();
        self.linear("Conv", geometry, input, &[out_channels, rows, columns])
    }

    /// A product of a `[features]` tensor with a constant matrix.
    pub fn gemm(&mut self, input: TensorId, out_features: usize) -> TensorId {
        let geometry = ConvGeometry {
            input: [1, 1],
            in_channels: self.tensors[input.0].elements(),
            out_channels: out_features,
            groups: 1,
            kernel: [1, 1],
            stride: [1, 1],
            dilation: [1, 1],
            pads: [0; 4],
        };
        self.linear("Gemm", geometry, input, &[out_features])
    }

    /// A random function of one byte.
    pub fn table(&mut self, input: TensorId) -> TensorId {
        let mut table = Box::new([0u8; 256]);
        table.copy_from_slice(&self.numbers.bytes(256));
        let shape = self.shape(input).to_vec();
        self.push("Table", Op::Table(table), vec![input], &shape)
    }

    /// Bytes from anywhere, with some fill, in a new shape.
    pub fn shuffle(&mut self, input: TensorId, shape: &[usize]) -> TensorId {
        let elements = self.tensors[input.0].elements();
        let count: usize = shape.iter().product();
        let sources = (0..count)
            .map(|_| match self.numbers.below(8) {
                0 => Source::Fill,
                _ => Source::Byte(self.numbers.below(elements) as u32),
            })
            .collect();
        let fill = self.numbers.bits() as u8;
        self.push("Move", Op::Move { sources, fill }, vec![input], shape)
    }

    /// A product of two activations shuffled out of `input`; sometimes with a batch of products.
    pub fn matmul(&mut self, input: TensorId) -> TensorId {
        let batch = if self.numbers.once_in(2) { 1 } else { 1 + self.numbers.below(3) };
        let [rows, inner, columns] = [4, 6, 4].map(|most| 1 + self.numbers.below(most));
        let with_batch = |sides: [usize; 2]| if batch == 1 { sides.to_vec() } else { [&[batch], &sides[..]].concat() };
        let left = self.shuffle(input, &with_batch([rows, inner]));
        let right = self.shuffle(input, &with_batch([inner, columns]));
        let rescale = self.rescale(1, inner);
        let product = MatMul { batch, rows, inner, columns, rescale };
        self.push("MatMul", Op::MatMul(product), vec![left, right], &with_batch([rows, columns]))
    }

    /// The program; its output is the tensor written last.
    pub fn build(self) -> Program {
        Program {
            output: self.last(),
            tensors: self.tensors,
            steps: self.steps,
            input: TensorId(0),
            head: Head::Dequantize,
            input_name: "input".to_owned(),
            warnings: Vec::new(),
            options: crate::lower::LowerOptions::default(),
        }
    }
}

/// A small random program: a chain of two to five steps.
pub fn program(seed: u64) -> Program {
    let mut numbers = Numbers::new(seed ^ 0x5EED);
    let shape = [1 + numbers.below(6), 1 + numbers.below(7), 1 + numbers.below(7)];
    let mut builder = Builder::new(seed, &shape);
    let mut last = builder.random_conv(TensorId(0));
    for _ in 0..numbers.below(3) {
        last = match numbers.below(4) {
            0 => builder.table(last),
            _ => builder.random_conv(last),
        };
    }
    match numbers.below(4) {
        0 => last = builder.matmul(last),
        1 => {
            let features = builder.tensors[last.0].elements();
            last = builder.shuffle(last, &[features]);
            builder.gemm(last, 1 + numbers.below(10));
        }
        _ => {}
    }
    let _ = last;
    builder.build()
}

/// A random picture for a program.
pub fn picture(program: &Program, seed: u64) -> Vec<u8> {
    Numbers::new(seed ^ 0x91C7).bytes(program.tensor(program.input()).elements())
}

/// A random change, of every kind.
pub fn change(numbers: &mut Numbers) -> Change {
    let mask = 1u32 << numbers.below(32) | if numbers.once_in(4) { numbers.bits() as u32 } else { 0 };
    match numbers.below(8) {
        0..=2 => Change::Xor(mask),
        3 => Change::Clear(mask),
        4 => Change::Raise(mask),
        5 => Change::Set(numbers.bits() as u32),
        6 => Change::AddSigned(numbers.between(-200, 200) as i32),
        _ => Change::AddUnsigned(numbers.between(-200, 200) as i32),
    }
}

/// Random strikes of a step, sorted, at every site that it has; some hit the same word or a neighbour's.
pub fn strikes(program: &Program, machine: &Machine, step: StepId, seed: u64, count: usize) -> Vec<Strike> {
    let mut numbers = Numbers::new(seed ^ 0x57_121E);
    let sites: Vec<(Site, crate::faults::Population)> = Site::ALL
        .into_iter()
        .filter_map(|site| Some((site, crate::faults::population(program, step, site, machine)?)))
        .filter(|(_, population)| population.words > 0)
        .collect();
    let mut strikes = Vec::new();
    for _ in 0..if sites.is_empty() { 0 } else { count } {
        let (site, population) = sites[numbers.below(sites.len())];
        let word = match strikes.last() {
            Some(&Strike { site: last, word, .. }) if last == site && numbers.once_in(4) => {
                (word + numbers.bits() % 2).min(population.words - 1)
            }
            _ => numbers.bits() % population.words,
        };
        let mut strike = Strike::new(site, word, change(&mut numbers));
        if matches!(site, Site::Weight | Site::Act) && numbers.once_in(2) {
            strike.first_use = numbers.below(20) as u32;
            strike.uses = 1 + numbers.below(16) as u32;
        }
        strikes.push(strike);
    }
    strikes.sort_unstable();
    strikes
}
