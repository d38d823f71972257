//! Every instruction set gives the bytes of the naive loops. Plain tests: they need nothing but this crate, so they run
//! wherever it compiles.

mod common;

use chipfit_kernels::{
    Add, Conv, ConvGeometry, DotRun, Isa, KernelError, OutputBlock, Pool, Requantize, Rounding, Scratch, changed_sums,
    dot, dot_runs, lookup, sum_positions,
};
use common::{Case, Numbers, random_geometry};

fn conv3x3(input: [usize; 2], in_channels: usize, out_channels: usize, stride: usize) -> ConvGeometry {
    ConvGeometry {
        input,
        in_channels,
        out_channels,
        groups: 1,
        kernel: [3, 3],
        stride: [stride; 2],
        dilation: [1; 2],
        pads: [1; 4],
    }
}

fn conv1x1(input: [usize; 2], in_channels: usize, out_channels: usize, stride: usize) -> ConvGeometry {
    ConvGeometry { kernel: [1; 2], pads: [0; 4], ..conv3x3(input, in_channels, out_channels, stride) }
}

/// So that a test run for one instruction set cannot pass without it.
#[test]
fn the_expected_instruction_set_is_available() {
    if let Ok(name) = std::env::var("CHIPFIT_EXPECT_ISA") {
        let isa = Isa::parse(&name).expect("the name of an instruction set");
        assert!(Isa::available().contains(&isa), "{name} is not among {:?}", Isa::available());
    }
}

#[test]
fn random_convolutions_equal_the_naive_loops() {
    for seed in 0..300 {
        let mut numbers = Numbers(seed);
        let geometry = random_geometry(&mut numbers);
        Case::random(geometry, numbers.within(1, 3), seed).check(seed);
    }
}

#[test]
fn layers_of_real_networks_equal_the_naive_loops() {
    let layers = [
        (conv3x3([32, 32], 3, 64, 1), 1),
        (conv3x3([16, 16], 64, 64, 1), 1),
        (conv3x3([16, 14], 64, 128, 2), 1),
        (conv3x3([8, 8], 128, 80, 1), 2),
        (conv3x3([4, 4], 256, 96, 1), 3),
        (conv3x3([7, 7], 128, 128, 1), 5),
        (conv1x1([8, 8], 64, 128, 2), 1),
        (conv1x1([8, 8], 64, 128, 2), 3),
        (conv1x1([1, 1], 512, 10, 1), 33),
        (conv1x1([1, 40], 200, 70, 1), 1),
        (ConvGeometry { kernel: [7, 7], pads: [3; 4], ..conv3x3([40, 36], 3, 32, 2) }, 1),
        (ConvGeometry { groups: 96, ..conv3x3([12, 12], 96, 96, 1) }, 2),
        (ConvGeometry { groups: 64, ..conv3x3([9, 9], 64, 64, 2) }, 1),
        (ConvGeometry { groups: 4, ..conv3x3([10, 10], 64, 64, 1) }, 1),
        // More kernel rows than one dot product adds, and dilated ones.
        (ConvGeometry { groups: 72, kernel: [5, 5], pads: [2; 4], ..conv3x3([12, 19], 72, 72, 1) }, 1),
        (ConvGeometry { groups: 72, kernel: [5, 5], pads: [2; 4], ..conv3x3([12, 19], 72, 72, 2) }, 2),
        (ConvGeometry { groups: 8, kernel: [9, 2], dilation: [1, 3], ..conv3x3([12, 19], 8, 8, 1) }, 1),
        (ConvGeometry { kernel: [5, 5], dilation: [2, 1], ..conv3x3([16, 16], 6, 24, 2) }, 2),
    ];
    for (seed, (geometry, pictures)) in layers.into_iter().enumerate() {
        Case::random(geometry, pictures, seed as u64).check(seed as u64);
    }
}

/// A map whose source exceeds one chunk.
#[test]
fn large_maps_are_cut_without_a_seam() {
    Case::random(conv3x3([60, 150], 64, 8, 1), 1, 7).check(7);
    Case::random(conv1x1([60, 150], 64, 8, 1), 1, 8).check(8);
}

#[test]
fn extremes_do_not_saturate() {
    for (zero_point, activation, weight) in
        [(0, 255, -128), (0, 255, 127), (255, 0, -128), (255, 0, 127), (128, 255, -128)]
    {
        for (in_channels, bias) in [(64, i32::MAX), (64, i32::MIN), (200, 0), (1, i32::MAX)] {
            let geometry = conv3x3([5, 17], in_channels, 33, 1);
            let mut case = Case::random(geometry, 1, 1);
            case.zero_point = zero_point;
            case.input.fill(activation);
            case.weights.fill(weight);
            case.bias.fill(bias);
            case.check(1);
        }
    }
}

#[test]
fn ties_go_to_even_everywhere() {
    // With a weight of one and no zero point the accumulator is the activation plus the bias.
    let geometry = conv1x1([1, 256], 1, 3, 1);
    let input: Vec<u8> = (0..=255).collect();
    let half = Requantize { multipliers: vec![0.5; 3], zero_point: 7, low: 0, high: 255 };
    for isa in Isa::available() {
        let conv = Conv::new(isa, geometry.clone(), &[1; 3], &[0, -256, 255], 0).expect("available");
        let mut out = vec![0; 256 * 3];
        conv.run(&input, 0..1, &half, &mut out, &mut Scratch::new()).expect("sizes");
        for (index, &byte) in out.iter().enumerate() {
            let sum = [0, -256, 255][index % 3] + i64::from(input[index / 3]);
            // Twice the half: floor, and up where the floor is odd.
            let rounded = sum.div_euclid(2) + i64::from(sum.rem_euclid(2) == 1 && sum.div_euclid(2).rem_euclid(2) == 1);
            assert_eq!(i64::from(byte), (rounded + 7).clamp(0, 255), "{} {sum}", isa.name());
        }
    }
}

#[test]
fn products_beyond_i32_are_clamped() {
    let geometry = conv1x1([1, 1], 1, 17, 1);
    for isa in Isa::available() {
        for (bias, expected) in [(i32::MAX, 250), (i32::MIN, 3), (0, 9)] {
            let conv = Conv::new(isa, geometry.clone(), &[0; 17], &[bias; 17], 0).expect("available");
            let scale = Requantize { multipliers: vec![f32::MAX; 17], zero_point: 9, low: 3, high: 250 };
            let mut out = [0; 17];
            conv.run(&[0], 0..1, &scale, &mut out, &mut Scratch::new()).expect("sizes");
            assert_eq!(out, [expected; 17], "{}", isa.name());
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let geometry = conv1x1([2, 2], 4, 40, 1);
    let conv = Conv::new(Isa::best(), geometry.clone(), &[0; 160], &[0; 40], 0).expect("available");
    let scale = Requantize { multipliers: vec![1.0; 40], zero_point: 0, low: 0, high: 255 };
    let mut scratch = Scratch::new();
    let mut out = [0; 160];
    assert!(matches!(conv.run(&[0; 15], 0..2, &scale, &mut out, &mut scratch), Err(KernelError::Length { .. })));
    assert!(matches!(conv.run(&[0; 16], 0..3, &scale, &mut out, &mut scratch), Err(KernelError::Range { .. })));
    assert!(matches!(conv.run(&[0; 16], 0..1, &scale, &mut out, &mut scratch), Err(KernelError::Length { .. })));
    let nan = Requantize { multipliers: vec![f32::NAN; 40], ..scale };
    assert_eq!(conv.run(&[0; 16], 0..2, &nan, &mut out, &mut scratch), Err(KernelError::Multiplier { at: 0 }));
    assert!(Conv::new(Isa::Scalar, geometry.clone(), &[0; 159], &[0; 40], 0).is_err());
    let wide = ConvGeometry { input: [1, usize::MAX], ..geometry.clone() };
    assert!(matches!(wide.checked_output(), Err(KernelError::TooLarge { .. })));
    let small = ConvGeometry { kernel: [3, 1], ..geometry };
    assert_eq!(small.checked_output(), Err(KernelError::KernelExceedsInput { axis: 0, kernel: 3, input: 2 }));
}

#[test]
fn threads_share_one_output_by_channels() {
    let case = Case::random(conv3x3([4, 4], 64, 200, 1), 2, 11);
    let mut numbers = Numbers(12);
    let scale = case.requantize(&mut numbers);
    let expected: Vec<u8> =
        case.naive().iter().enumerate().map(|(index, &sum)| scale.apply(index % 200, sum)).collect();
    for isa in Isa::available() {
        let conv = case.conv(isa);
        let step = conv.channel_step();
        let mut out = vec![0; expected.len()];
        let (left, right) =
            OutputBlock::new(&mut out, 200).expect("whole pixels").split_channels((100 / step).max(1) * step);
        std::thread::scope(|scope| {
            for block in [left, right] {
                let (conv, case, scale) = (&conv, &case, &scale);
                scope.spawn(move || {
                    conv.run_block(&case.input, 0..4, scale, block, &mut Scratch::new()).expect("sizes");
                });
            }
        });
        assert_eq!(out, expected, "{}", isa.name());
    }
}

#[test]
fn an_empty_batch_writes_nothing() {
    let conv = Conv::new(Isa::best(), conv1x1([2, 2], 4, 8, 1), &[0; 32], &[0; 8], 0).expect("available");
    assert_eq!(conv.accumulate(&[], 0..2, &mut [], &mut Scratch::new()), Ok(()));
    assert_eq!(conv.accumulate(&[0; 16], 1..1, &mut [], &mut Scratch::new()), Ok(()));
}

#[test]
fn dot_products_of_every_length() {
    let mut numbers = Numbers(3);
    for length in 0..300 {
        let (x, w) = (numbers.bytes(length), numbers.weights(length));
        let expected: i32 = x.iter().zip(&w).map(|(&x, &w)| i32::from(x) * i32::from(w)).sum();
        assert_eq!(dot(&x, &w), expected, "{length}");
    }
}

#[test]
fn changes_and_runs_equal_the_naive_loops() {
    for seed in 0..100 {
        let mut numbers = Numbers(seed);
        let channels = numbers.within(1, 150);
        let rows = numbers.weights(20 * channels);
        let changes: Vec<(u32, i16)> = (0..numbers.within(0, 30))
            .map(|_| (numbers.within(0, 19) as u32, numbers.within(0, 510) as i16 - 255))
            .collect();
        let sums: Vec<i32> = (0..channels)
            .map(|channel| {
                let product =
                    |&(k, change): &(u32, i16)| i32::from(change) * i32::from(rows[k as usize * channels + channel]);
                changes.iter().map(product).sum()
            })
            .collect();
        let (x, w) = (numbers.bytes(700), numbers.weights(700));
        let runs: Vec<DotRun> = (0..numbers.within(0, 4))
            .map(|_| DotRun { x: numbers.within(0, 300), w: numbers.within(0, 300), length: numbers.within(0, 400) })
            .collect();
        let zero_point = numbers.next() as u8;
        let mut dot = 0;
        for run in &runs {
            for index in 0..run.length {
                dot += (i32::from(x[run.x + index]) - i32::from(zero_point)) * i32::from(w[run.w + index]);
            }
        }
        for isa in Isa::available() {
            let mut out = vec![-1; channels];
            changed_sums(isa, &changes, &rows, &mut out).expect("sizes");
            assert_eq!(out, sums, "{} {seed}", isa.name());
            assert_eq!(dot_runs(isa, zero_point, &x, &w, &runs), dot, "{} {seed}", isa.name());
        }
    }
}

#[test]
fn tables_of_every_length() {
    let mut numbers = Numbers(4);
    let table: [u8; 256] = numbers.bytes(256).try_into().expect("256 bytes");
    for length in 0..300 {
        let input = numbers.bytes(length);
        let expected: Vec<u8> = input.iter().map(|&index| table[usize::from(index)]).collect();
        for isa in Isa::available() {
            let mut out = vec![0; length];
            lookup(isa, &table, &input, &mut out).expect("one length");
            assert_eq!(out, expected, "{} {length}", isa.name());
        }
    }
    assert!(lookup(Isa::best(), &table, &[0; 3], &mut [0; 4]).is_err());
}

#[test]
fn additions_of_all_pairs_equal_the_formula() {
    let a: Vec<u8> = (0..65536).map(|index| (index >> 8) as u8).collect();
    let b: Vec<u8> = (0..65536).map(|index| index as u8).collect();
    let mut numbers = Numbers(5);
    for _ in 0..12 {
        let mut scale = || (numbers.next() % 4001) as f32 / 1000.0 - 2.0;
        let (left, right, fixed) = (scale(), scale(), 40.0 * scale());
        for rounding in [Rounding::Separate, Rounding::Fused] {
            let add = Add { left, right, fixed, low: 3, high: 250, rounding };
            let expected: Vec<u8> = a.iter().zip(&b).map(|(&a, &b)| add.apply(a, b)).collect();
            for isa in Isa::available() {
                let mut out = vec![0; a.len()];
                add.run(isa, &a, &b, &mut out).expect("one length");
                assert!(out == expected, "{} {add:?}", isa.name());
            }
        }
    }
    // Halves: ties to even, whichever way they are summed.
    let add = Add { left: 0.5, right: 0.5, fixed: 0.0, low: 0, high: 255, rounding: Rounding::Separate };
    assert_eq!([add.apply(1, 0), add.apply(3, 0), add.apply(4, 1)], [0, 2, 2]);
    let bad = Add { left: f32::NAN, ..add };
    assert_eq!(bad.run(Isa::best(), &a, &b, &mut vec![0; 65536]), Err(KernelError::Multiplier { at: 0 }));
}

#[test]
fn pools_equal_the_naive_loops() {
    for seed in 0..200 {
        let mut numbers = Numbers(seed);
        let pool = Pool {
            input: [numbers.within(1, 8), numbers.within(1, 8)],
            channels: numbers.within(1, 80),
            kernel: [numbers.within(1, 3), numbers.within(1, 3)],
            stride: [numbers.within(1, 3), numbers.within(1, 3)],
            dilation: [numbers.within(1, 2), numbers.within(1, 2)],
            pads: [numbers.within(0, 2), numbers.within(0, 2), numbers.within(0, 3), numbers.within(0, 3)],
        };
        let Ok([rows, columns]) = pool.output() else { continue };
        let input = numbers.bytes(pool.input[0] * pool.input[1] * pool.channels);
        let (mut maxima, mut sums) = (Vec::new(), Vec::new());
        for index in 0..rows * columns * pool.channels {
            let (row, column) = (index / pool.channels / columns, index / pool.channels % columns);
            let (mut max, mut sum, mut taps) = (0, 0, 0);
            for ky in 0..pool.kernel[0] {
                for kx in 0..pool.kernel[1] {
                    let y = (row * pool.stride[0] + ky * pool.dilation[0]) as i64 - pool.pads[0] as i64;
                    let x = (column * pool.stride[1] + kx * pool.dilation[1]) as i64 - pool.pads[1] as i64;
                    if 0 <= y && y < pool.input[0] as i64 && 0 <= x && x < pool.input[1] as i64 {
                        let pixel = y as usize * pool.input[1] + x as usize;
                        let value = input[pixel * pool.channels + index % pool.channels];
                        max = value.max(max);
                        sum += i32::from(value);
                        taps += 1;
                    }
                }
            }
            assert_eq!(pool.taps(row, column), taps, "{pool:?}");
            maxima.push(max);
            sums.push(sum);
        }
        for isa in Isa::available() {
            let (mut max, mut sum) = (vec![1; maxima.len()], vec![1; sums.len()]);
            pool.max(isa, &input, 0..rows, &mut max).expect("sizes");
            pool.sums(isa, &input, 0..rows, &mut sum).expect("sizes");
            assert!(max == maxima && sum == sums, "{} {pool:?}", isa.name());
            let first = numbers.within(0, rows);
            let mut max = vec![1; (rows - first) * columns * pool.channels];
            pool.max(isa, &input, first..rows, &mut max).expect("sizes");
            assert_eq!(max, maxima[first * columns * pool.channels..], "{} {pool:?}", isa.name());
            let mut whole = vec![1; pool.channels];
            sum_positions(isa, &input, &mut whole).expect("sizes");
            for (channel, &sum) in whole.iter().enumerate() {
                let expected: i32 = input.iter().skip(channel).step_by(pool.channels).map(|&x| i32::from(x)).sum();
                assert_eq!(sum, expected, "{}", isa.name());
            }
        }
    }
}
