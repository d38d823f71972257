//! ResNet-18 as a program with random weights, for benchmarks: the shapes of the zoo's models `resnet18-cifar` and
//! `resnet18-imagenet`, uint8 activations, symmetric int8 weights per channel, scales calibrated on one random picture.

use chipfit_kernels::{Conv, Isa, Scratch};

use super::Numbers;
use crate::ops;
use crate::program::{ConvGeometry, Head, Linear, Op, Program, Rescale, Source, Step, Tensor, TensorId, Window, Word};

/// Which ResNet-18.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResNet18 {
    /// 3 x 32 x 32, 10 classes, a 3x3 stem without pooling.
    Cifar,
    /// 3 x 224 x 224, 1000 classes, a 7x7 stem and a maximum pooling, both of stride 2.
    ImageNet,
}

/// A program under construction, with the values of one picture to calibrate on.
struct Net {
    numbers: Numbers,
    program: Program,
    values: Vec<Vec<u8>>,
}

/// The network with weights that follow from `seed`.
///
/// # Panics
/// Never for these two networks.
pub fn resnet18(which: ResNet18, seed: u64) -> Program {
    let (side, classes) = match which {
        ResNet18::Cifar => (32, 10),
        ResNet18::ImageNet => (224, 1000),
    };
    let mut net = Net::new(seed, &[3, side, side]);
    let mut x = match which {
        ResNet18::Cifar => net.conv("conv1", TensorId(0), 64, [3, 1, 1], true),
        ResNet18::ImageNet => {
            let x = net.conv("conv1", TensorId(0), 64, [7, 2, 3], true);
            net.max_pool("maxpool", x)
        }
    };
    for (stage, channels) in [(1, 64), (2, 128), (3, 256), (4, 512)] {
        for block in 0..2 {
            let stride = if stage > 1 && block == 0 { 2 } else { 1 };
            let name = |part: &str| format!("layer{stage}.{block}.{part}");
            let y = net.conv(&name("conv1"), x, channels, [3, stride, 1], true);
            let y = net.conv(&name("conv2"), y, channels, [3, 1, 1], false);
            if stride > 1 {
                x = net.conv(&name("downsample"), x, channels, [1, stride, 0], false);
            }
            x = net.add(&name("add"), y, x);
        }
    }
    let x = net.average("avgpool", x);
    net.flatten("flatten", x);
    let features = net.program.tensors.len() - 1;
    net.gemm("fc", TensorId(features), classes);
    net.program.output = TensorId(net.program.tensors.len() - 1);
    net.program
}

impl Net {
    fn new(seed: u64, shape: &[usize]) -> Self {
        let mut numbers = Numbers::new(seed);
        let input = Tensor {
            name: "image".to_owned(),
            shape: shape.to_vec(),
            word: Word::Unsigned,
            scale: 0.0186,
            zero_point: 114,
        };
        let bytes = (0..input.elements()).map(|_| (numbers.bits() >> 20) as u8).collect();
        let program = Program {
            tensors: vec![input],
            steps: Vec::new(),
            input: TensorId(0),
            output: TensorId(0),
            head: Head::Dequantize,
            input_name: "image".to_owned(),
            warnings: Vec::new(),
            options: crate::lower::LowerOptions::default(),
        };
        Self { numbers, program, values: vec![bytes] }
    }

    /// About normal, of standard deviation 36.
    fn weight(&mut self) -> i8 {
        let bits = self.numbers.bits();
        let sum: i32 = (0..4).map(|at| i32::from((bits >> (8 * at)) as i8)).sum();
        (sum / 4).clamp(-127, 127) as i8
    }

    fn push(&mut self, name: &str, op: Op, inputs: Vec<TensorId>, tensor: Tensor) -> TensorId {
        let output = TensorId(self.program.tensors.len());
        let op_type = match op {
            Op::Linear(_) => "Conv",
            Op::Add => "Add",
            Op::MaxPool(_) => "MaxPool",
            Op::GlobalAveragePool => "GlobalAveragePool",
            _ => "Flatten",
        };
        self.program.tensors.push(tensor);
        self.program.steps.push(Step { name: name.to_owned(), op_type: op_type.to_owned(), op, inputs, output });
        output
    }

    fn tensor(name: &str, shape: &[usize], scale: f32, zero_point: u8) -> Tensor {
        Tensor { name: format!("{name}_output"), shape: shape.to_vec(), word: Word::Unsigned, scale, zero_point }
    }

    fn conv(
        &mut self,
        name: &str,
        input: TensorId,
        channels: usize,
        [kernel, stride, pad]: [usize; 3],
        relu: bool,
    ) -> TensorId {
        let from = self.program.tensor(input).clone();
        let [in_channels, height, width] = from.shape[..] else { panic!("a [C, H, W] tensor") };
        let geometry = ConvGeometry {
            input: [height, width],
            in_channels,
            out_channels: channels,
            groups: 1,
            kernel: [kernel; 2],
            stride: [stride; 2],
            dilation: [1; 2],
            pads: [pad; 4],
        };
        let [rows, columns] = geometry.output();
        self.linear(name, input, geometry, &[channels, rows, columns], relu)
    }

    fn gemm(&mut self, name: &str, input: TensorId, classes: usize) -> TensorId {
        let geometry = ConvGeometry {
            input: [1; 2],
            in_channels: self.program.tensor(input).elements(),
            out_channels: classes,
            groups: 1,
            kernel: [1; 2],
            stride: [1; 2],
            dilation: [1; 2],
            pads: [0; 4],
        };
        self.linear(name, input, geometry, &[classes], false)
    }

    fn linear(&mut self, name: &str, input: TensorId, geometry: ConvGeometry, shape: &[usize], relu: bool) -> TensorId {
        let from = self.program.tensor(input).clone();
        let (channels, products) = (geometry.out_channels, geometry.products());
        let weights: Vec<i8> = (0..channels * products).map(|_| self.weight()).collect();
        let bias = vec![0; channels];
        // The real weights have the variance 2 / products.
        let weight_scale = (2.0 / products as f32).sqrt() / 36.0;
        let conv =
            Conv::new(Isa::best(), geometry.clone(), &weights, &bias, from.zero_point).expect("a valid convolution");
        let mut sums = vec![0; geometry.output().iter().product::<usize>() * channels];
        conv.accumulate(&self.values[input.0], 0..geometry.output()[0], &mut sums, &mut Scratch::new())
            .expect("one picture");
        let largest = sums.iter().map(|&sum| if relu { sum } else { sum.abs() }).max().unwrap_or(1).max(1);
        let steps = if relu { 255.0 } else { 127.0 };
        let scale = largest as f32 * from.scale * weight_scale / steps;
        let multiplier = from.scale * weight_scale / scale;
        let linear = Linear {
            weight_zero_points: vec![0; channels],
            bias,
            rescale: Rescale::Float(vec![multiplier; channels]),
            low: 0,
            high: 255,
            weights_name: format!("{name}.weight"),
            bias_name: Some(format!("{name}.bias")),
            weight_scales: vec![weight_scale; channels],
            weights,
            geometry,
        };
        let zero_point = if relu { 0 } else { 128 };
        let requantise = |sum: i32| {
            let steps = (sum as f32 * multiplier).round_ties_even() as i32;
            steps.saturating_add(zero_point).clamp(0, 255) as u8
        };
        self.values.push(sums.into_iter().map(requantise).collect());
        let tensor = Self::tensor(name, shape, scale, zero_point as u8);
        self.push(name, Op::Linear(Box::new(linear)), vec![input], tensor)
    }

    /// A step of `ops`, whose formula gives the values.
    fn plain(&mut self, name: &str, op: Op, inputs: Vec<TensorId>, tensor: Tensor) -> TensorId {
        let output = self.push(name, op, inputs, tensor);
        let step = &self.program.steps[self.program.steps.len() - 1];
        let inputs: Vec<&[u8]> = step.inputs.iter().map(|id| self.values[id.0].as_slice()).collect();
        let bytes = ops::execute(&self.program, step, &inputs).expect("a step without products");
        self.values.push(bytes);
        output
    }

    fn add(&mut self, name: &str, a: TensorId, b: TensorId) -> TensorId {
        let [left, right] = [a, b].map(|id| self.program.tensor(id).clone());
        let pairs = self.values[a.0].iter().zip(&self.values[b.0]);
        let largest = pairs.map(|(&a, &b)| left.real(a) + right.real(b)).fold(1e-3, f32::max);
        let tensor = Self::tensor(name, &left.shape, largest / 255.0, 0);
        self.plain(name, Op::Add, vec![a, b], tensor)
    }

    fn max_pool(&mut self, name: &str, input: TensorId) -> TensorId {
        let window =
            Window { kernel: [3; 2], stride: [2; 2], dilation: [1; 2], pads: [1; 4], count_include_pad: false };
        let from = self.program.tensor(input).clone();
        let shape = [from.shape[0], from.shape[1].div_ceil(2), from.shape[2].div_ceil(2)];
        let tensor = Self::tensor(name, &shape, from.scale, from.zero_point);
        self.plain(name, Op::MaxPool(window), vec![input], tensor)
    }

    fn average(&mut self, name: &str, input: TensorId) -> TensorId {
        let from = self.program.tensor(input).clone();
        let tensor = Self::tensor(name, &[from.shape[0], 1, 1], from.scale / 2.0, from.zero_point);
        self.plain(name, Op::GlobalAveragePool, vec![input], tensor)
    }

    fn flatten(&mut self, name: &str, input: TensorId) -> TensorId {
        let from = self.program.tensor(input).clone();
        let sources = (0..from.elements()).map(|at| Source::Byte(at as u32)).collect();
        let tensor = Self::tensor(name, &[from.elements()], from.scale, from.zero_point);
        self.plain(name, Op::Move { sources, fill: 0 }, vec![input], tensor)
    }
}
