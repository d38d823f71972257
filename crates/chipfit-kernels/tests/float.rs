//! The f32 loops: the scalar twin against a scatter formula in f64 and against its own adjoints, and every instruction
//! set against the scalar twin, bit for bit.

mod common;

use chipfit_kernels::float::{self, FloatConv, FloatScratch};
use chipfit_kernels::{ConvGeometry, Isa, KernelError};
use common::Numbers;
use proptest::prelude::*;

/// A convolution with everything its three passes read.
struct Case {
    geometry: ConvGeometry,
    pictures: usize,
    input: Vec<f32>,
    weights: Vec<f32>,
    bias: Vec<f32>,
    output_gradient: Vec<f32>,
    /// What the weight gradient starts from.
    held: Vec<f32>,
}

/// What the three passes give.
struct Results {
    output: Vec<f32>,
    input_gradient: Vec<f32>,
    weight_gradient: Vec<f32>,
}

impl Case {
    fn new(geometry: ConvGeometry, pictures: usize, mut value: impl FnMut() -> f32) -> Self {
        let [rows, columns] = geometry.checked_output().expect("a geometry of the tests");
        let mut values = |n: usize| (0..n).map(|_| value()).collect::<Vec<f32>>();
        Self {
            input: values(pictures * geometry.input[0] * geometry.input[1] * geometry.in_channels),
            weights: values(geometry.out_channels * geometry.products()),
            bias: values(geometry.out_channels),
            output_gradient: values(pictures * rows * columns * geometry.out_channels),
            held: values(geometry.out_channels * geometry.products()),
            geometry,
            pictures,
        }
    }

    /// Values of many magnitudes, zeros of both signs among them.
    fn random(geometry: ConvGeometry, pictures: usize, seed: u64) -> Self {
        let mut numbers = Numbers(seed);
        Self::new(geometry, pictures, || {
            let bits = numbers.next();
            let sign = if bits & 1 == 0 { 1.0 } else { -1.0 };
            let size = match bits >> 1 & 15 {
                0 | 1 => 0.0,
                exponent => (1 << exponent) as f32 * (bits >> 40) as f32 / (1 << 30) as f32,
            };
            sign * size
        })
    }

    /// Integers of -4..=4: sums of fewer than a million products are exact in f32.
    fn integers(geometry: ConvGeometry, pictures: usize, seed: u64) -> Self {
        let mut numbers = Numbers(seed);
        Self::new(geometry, pictures, || numbers.within(0, 8) as f32 - 4.0)
    }

    /// The three passes; the weight gradient in calls of so many pictures.
    fn run(&self, isa: Isa, scratch: &mut FloatScratch, at_once: usize) -> Results {
        let mut conv = FloatConv::new(isa, self.geometry.clone()).expect("an available instruction set");
        conv.load(&self.weights).expect("sizes");
        // What must be overwritten is no number.
        let mut output = vec![f32::NAN; self.output_gradient.len()];
        let mut input_gradient = vec![f32::NAN; self.input.len()];
        let mut weight_gradient = self.held.clone();
        conv.forward(scratch, self.pictures, &self.input, Some(&self.bias), &mut output).expect("sizes");
        conv.input_gradient(scratch, self.pictures, &self.output_gradient, &mut input_gradient).expect("sizes");
        let inputs = self.input.chunks(at_once * conv.input_elements());
        let gradients = self.output_gradient.chunks(at_once * conv.output_elements());
        for (input, gradient) in inputs.zip(gradients) {
            let pictures = input.len() / conv.input_elements();
            conv.weight_gradient(scratch, pictures, input, gradient, &mut weight_gradient).expect("sizes");
        }
        Results { output, input_gradient, weight_gradient }
    }

    /// Calls `visit` with the positions (input, weight, output) of every product of the convolution.
    fn products(&self, mut visit: impl FnMut(usize, usize, usize)) {
        let g = &self.geometry;
        let [rows, columns] = g.output();
        let [group_in, group_out] = [g.in_channels / g.groups, g.out_channels / g.groups];
        for picture in 0..self.pictures {
            for y in 0..g.input[0] {
                for x in 0..g.input[1] {
                    for channel in 0..g.in_channels {
                        let input = ((picture * g.input[0] + y) * g.input[1] + x) * g.in_channels + channel;
                        let first_out = channel / group_in * group_out;
                        for ky in 0..g.kernel[0] {
                            for kx in 0..g.kernel[1] {
                                // Where this input scatters to: stride * output = input + pad - dilation * tap.
                                let at = [
                                    (y + g.pads[0]) as isize - (ky * g.dilation[0]) as isize,
                                    (x + g.pads[1]) as isize - (kx * g.dilation[1]) as isize,
                                ];
                                let steps = [g.stride[0] as isize, g.stride[1] as isize];
                                let [row, column] = [at[0].div_euclid(steps[0]), at[1].div_euclid(steps[1])];
                                if row * steps[0] != at[0] || column * steps[1] != at[1] {
                                    continue;
                                }
                                if !(0..rows as isize).contains(&row) || !(0..columns as isize).contains(&column) {
                                    continue;
                                }
                                let pixel = (picture * rows + row as usize) * columns + column as usize;
                                for out in first_out..first_out + group_out {
                                    let tap = (ky * g.kernel[1] + kx) * group_in + channel % group_in;
                                    visit(input, out * g.products() + tap, pixel * g.out_channels + out);
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    /// The results and what the products' sizes sum up to, from the scatter formula in f64.
    fn scattered(&self) -> [Vec<[f64; 2]>; 3] {
        let start = |value: &f32| [f64::from(*value), f64::from(value.abs())];
        let mut output: Vec<_> =
            (0..self.output_gradient.len()).map(|at| start(&self.bias[at % self.geometry.out_channels])).collect();
        let mut input_gradient = vec![[0.0; 2]; self.input.len()];
        let mut weight_gradient: Vec<_> = self.held.iter().map(start).collect();
        let add = |sum: &mut [f64; 2], a: f32, b: f32| {
            let product = f64::from(a) * f64::from(b);
            *sum = [sum[0] + product, sum[1] + product.abs()];
        };
        self.products(|input, weight, out| {
            let (x, w, dy) = (self.input[input], self.weights[weight], self.output_gradient[out]);
            add(&mut output[out], x, w);
            add(&mut input_gradient[input], w, dy);
            add(&mut weight_gradient[weight], x, dy);
        });
        [output, input_gradient, weight_gradient]
    }

    /// Compares the scalar twin with the scatter formula.
    fn check_twin(&self) {
        let results = self.run(Isa::Scalar, &mut FloatScratch::new(), self.pictures);
        let g = &self.geometry;
        let [rows, columns] = g.output();
        let links =
            [g.products(), g.kernel[0] * g.kernel[1] * g.out_channels / g.groups, self.pictures * rows * columns];
        let got = [results.output, results.input_gradient, results.weight_gradient];
        for (pass, ((got, wanted), links)) in got.iter().zip(self.scattered()).zip(links).enumerate() {
            // n roundings of relative error u, each of a partial sum no larger than the sum of sizes (1 + nu) ; the
            // sum in f64 is exact to 2^-29 of that. Subnormal results lose at most half their last place each.
            let unit = (links as f64 + 1.0) * f64::from(f32::EPSILON) / 2.0 * 1.01;
            let least = links as f64 * f64::from(f32::from_bits(1));
            for (at, (&got, [sum, sizes])) in got.iter().zip(wanted).enumerate() {
                let error = (f64::from(got) - sum).abs();
                assert!(error <= unit * sizes + least, "pass {pass}, element {at}: {got} against {sum}, {g:?}");
            }
        }
    }

    /// Compares every instruction set with the scalar twin.
    fn check_isas(&self) {
        let mut scratch = FloatScratch::new();
        let wanted = self.run(Isa::Scalar, &mut scratch, self.pictures);
        for isa in Isa::available() {
            for at_once in [self.pictures, 1] {
                if isa == Isa::Scalar && at_once == self.pictures {
                    continue;
                }
                let got = self.run(isa, &mut scratch, at_once);
                let about = format!("{}, {} pictures at once, {:?}", isa.name(), at_once, self.geometry);
                same("output", &got.output, &wanted.output, &about);
                same("input gradient", &got.input_gradient, &wanted.input_gradient, &about);
                same("weight gradient", &got.weight_gradient, &wanted.weight_gradient, &about);
            }
        }
    }
}

/// Fails at the first element whose bits differ.
fn same(what: &str, got: &[f32], wanted: &[f32], about: &str) {
    assert_eq!(got.len(), wanted.len(), "{what}: {about}");
    for (at, (got, wanted)) in got.iter().zip(wanted).enumerate() {
        assert_eq!(got.to_bits(), wanted.to_bits(), "{what}, element {at}: {got} against {wanted}; {about}");
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

fn cases(usual: u32) -> ProptestConfig {
    let asked = std::env::var("CHIPFIT_CASES").ok().and_then(|cases| cases.parse().ok());
    ProptestConfig { cases: asked.unwrap_or(usual), max_global_rejects: 1_000_000, ..ProptestConfig::default() }
}

prop_compose! {
    fn geometries()(
        input in [1_usize..=9, 1_usize..=17],
        groups in prop_oneof![4 => Just(1_usize), 1 => 2..=4_usize],
        group_in in prop_oneof![1 => Just(1_usize), 2 => 1..=5_usize, 2 => 6..=100_usize],
        group_out in prop_oneof![1 => Just(1_usize), 2 => 1..=5_usize, 2 => 6..=100_usize],
        kernel in [1_usize..=4, 1_usize..=4],
        stride in [1_usize..=3, 1_usize..=3],
        dilation in [1_usize..=3, 1_usize..=3],
        pads in prop::array::uniform4(0_usize..=4),
    ) -> ConvGeometry {
        ConvGeometry {
            input,
            in_channels: groups * group_in,
            out_channels: groups * group_out,
            groups,
            kernel,
            stride,
            dilation,
            pads,
        }
    }
}

fn usable(geometry: &ConvGeometry, pictures: usize) -> bool {
    geometry.checked_output().is_ok() && geometry.macs() * (pictures as u64) < 150_000
}

proptest! {
    #![proptest_config(cases(96))]

    #[test]
    fn the_twin_is_the_scatter_formula(geometry in geometries(), pictures in 1_usize..=3, seed: u64) {
        prop_assume!(usable(&geometry, pictures));
        Case::random(geometry, pictures, seed).check_twin();
    }

    #[test]
    fn gradients_are_adjoint(geometry in geometries(), pictures in 1_usize..=3, seed: u64) {
        prop_assume!(usable(&geometry, pictures));
        let mut case = Case::integers(geometry, pictures, seed);
        case.bias.fill(0.0);
        case.held.fill(0.0);
        // All sums are exact, so the identity is.
        let results = case.run(Isa::best(), &mut FloatScratch::new(), pictures);
        let product = dot(&case.output_gradient, &results.output);
        prop_assert_eq!(product, dot(&case.input, &results.input_gradient));
        prop_assert_eq!(product, dot(&case.weights, &results.weight_gradient));
    }

    #[test]
    fn instruction_sets_agree(geometry in geometries(), pictures in 1_usize..=3, seed: u64) {
        prop_assume!(usable(&geometry, pictures));
        Case::random(geometry, pictures, seed).check_isas();
    }

    #[test]
    fn depthwise_agrees(geometry in geometries(), channels in 1_usize..=150, pictures in 1_usize..=2, seed: u64) {
        let geometry = ConvGeometry { in_channels: channels, out_channels: channels, groups: channels, ..geometry };
        prop_assume!(usable(&geometry, pictures));
        Case::random(geometry, pictures, seed).check_isas();
    }

    #[test]
    fn products_of_matrices_agree(rows in 1_usize..=40, sums in 1_usize..=200, columns in 1_usize..=100, seed: u64) {
        let geometry = ConvGeometry {
            input: [1; 2],
            in_channels: sums,
            out_channels: columns,
            groups: 1,
            kernel: [1; 2],
            stride: [1; 2],
            dilation: [1; 2],
            pads: [0; 4],
        };
        prop_assume!(usable(&geometry, rows));
        Case::random(geometry, rows, seed).check_isas();
    }

    #[test]
    fn helpers_follow_their_formulas(
        length in 0_usize..=200, zero_point: u8, factor in -3.0_f32..3.0, low: u8, high: u8, seed: u64,
    ) {
        let mut numbers = Numbers(seed);
        let mut bytes = numbers.bytes(length);
        // So that the ends occur.
        bytes.iter_mut().step_by(3).for_each(|byte| *byte = if *byte < 128 { low } else { high });
        let mut values = || (0..length).map(|_| numbers.next() as i32 as f32 * 1e-6).collect::<Vec<f32>>();
        let (a, b) = (values(), values());
        for isa in Isa::available() {
            let mut out = vec![f32::NAN; length];
            float::dequantise(isa, &bytes, zero_point, factor, &mut out).expect("sizes");
            let formula = |&byte: &u8| factor * (i32::from(byte) - i32::from(zero_point)) as f32;
            same("dequantise", &out, &bytes.iter().map(formula).collect::<Vec<_>>(), isa.name());

            let mut out = a.clone();
            float::mask_gradient(isa, &bytes, low, high, &mut out).expect("sizes");
            let kept = |(&a, &byte): (&f32, &u8)| if byte == low || byte == high { 0.0 } else { a };
            same("mask", &out, &a.iter().zip(&bytes).map(kept).collect::<Vec<_>>(), isa.name());

            let mut out = a.clone();
            float::scale(isa, factor, &mut out);
            same("scale", &out, &a.iter().map(|a| a * factor).collect::<Vec<_>>(), isa.name());

            let mut out = a.clone();
            float::add(isa, &b, &mut out).expect("sizes");
            same("add", &out, &a.iter().zip(&b).map(|(a, b)| a + b).collect::<Vec<_>>(), isa.name());

            let mut out = a.clone();
            float::multiply_add(isa, factor, &b, &mut out).expect("sizes");
            let fused = |(&a, &b): (&f32, &f32)| factor.mul_add(b, a);
            same("multiply_add", &out, &a.iter().zip(&b).map(fused).collect::<Vec<_>>(), isa.name());
        }
    }
}

/// Shapes beyond the limits at which work is divided, or operands gathered: `[rows, columns, in, out, groups, kernel,
/// stride, pictures]`, what they reach.
const LARGE: [([usize; 8], &str); 6] = [
    ([3, 3, 70, 80, 1, 2, 1, 3], "chains in pieces"),
    ([2, 3, 420, 260, 1, 1, 1, 12], "gathered inputs and gradients"),
    ([4, 5, 136, 150, 1, 1, 2, 14], "a stride between gathered pixels"),
    ([330, 210, 2, 3, 1, 1, 1, 1], "rows of a picture in chunks"),
    ([331, 211, 2, 1, 1, 3, 2, 1], "rows in chunks, phases of odd size"),
    ([40, 41, 20, 20, 20, 3, 2, 3], "depthwise over several chunks"),
];

#[test]
fn large_shapes_agree() {
    for ([rows, columns, in_channels, out_channels, groups, kernel, stride, pictures], reached) in LARGE {
        let geometry = ConvGeometry {
            input: [rows, columns],
            in_channels,
            out_channels,
            groups,
            kernel: [kernel; 2],
            stride: [stride; 2],
            dilation: [1; 2],
            pads: [kernel / 2, 0, 0, kernel / 2],
        };
        eprintln!("{reached}");
        Case::random(geometry, pictures, 5).check_isas();
    }
}

#[test]
fn wrong_lengths_are_refused() {
    let geometry = ConvGeometry {
        input: [4, 5],
        in_channels: 6,
        out_channels: 7,
        groups: 1,
        kernel: [3; 2],
        stride: [1; 2],
        dilation: [1; 2],
        pads: [1; 4],
    };
    let case = Case::integers(geometry.clone(), 2, 1);
    let mut conv = FloatConv::new(Isa::best(), geometry).expect("valid");
    let mut scratch = FloatScratch::new();
    let is_length = |result: Result<(), KernelError>, what: &str| match result {
        Err(KernelError::Length { what: named, .. }) => assert_eq!(named, what),
        other => panic!("{what}: {other:?}"),
    };
    is_length(conv.load(&case.weights[1..]), "weights");
    let mut output = vec![0.0; 2 * conv.output_elements()];
    let mut gradient = vec![0.0; 2 * conv.input_elements()];
    let mut weights = vec![0.0; conv.weight_elements()];
    is_length(conv.forward(&mut scratch, 2, &case.input[1..], None, &mut output), "input");
    is_length(conv.forward(&mut scratch, 1, &case.input, None, &mut output), "input");
    is_length(conv.forward(&mut scratch, 2, &case.input, None, &mut output[1..]), "output");
    is_length(conv.forward(&mut scratch, 2, &case.input, Some(&[1.0; 6]), &mut output), "bias");
    let dy = &case.output_gradient;
    is_length(conv.input_gradient(&mut scratch, 2, &dy[1..], &mut gradient), "output gradient");
    is_length(conv.input_gradient(&mut scratch, 2, dy, &mut gradient[1..]), "input gradient");
    is_length(conv.weight_gradient(&mut scratch, 2, &case.input[1..], dy, &mut weights), "input");
    is_length(conv.weight_gradient(&mut scratch, 2, &case.input, &dy[1..], &mut weights), "output gradient");
    is_length(conv.weight_gradient(&mut scratch, 2, &case.input, dy, &mut weights[1..]), "weight gradient");
    is_length(conv.bias_gradient(2, &dy[1..], &mut [0.0; 7]), "output gradient");
    is_length(conv.bias_gradient(2, dy, &mut [0.0; 6]), "bias gradient");
    let huge = conv.forward(&mut scratch, usize::MAX, &case.input, None, &mut output);
    assert_eq!(huge, Err(KernelError::TooLarge { what: "input" }));
}

#[test]
fn the_bias_gradient_sums_pixels_in_order() {
    let geometry = ConvGeometry {
        input: [3, 5],
        in_channels: 2,
        out_channels: 19,
        groups: 1,
        kernel: [1; 2],
        stride: [1; 2],
        dilation: [1; 2],
        pads: [0; 4],
    };
    let case = Case::random(geometry.clone(), 3, 7);
    let mut wanted = case.bias.clone();
    for (at, gradient) in case.output_gradient.iter().enumerate() {
        wanted[at % 19] += gradient;
    }
    for isa in Isa::available() {
        let mut got = case.bias.clone();
        let conv = FloatConv::new(isa, geometry.clone()).expect("available");
        conv.bias_gradient(3, &case.output_gradient, &mut got).expect("sizes");
        same("bias gradient", &got, &wanted, isa.name());
    }
}
