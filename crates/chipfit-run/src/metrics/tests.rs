//! The numbers against scikit-image's (`tests/fixtures/ssim`), against plain definitions, and at the edges.

use super::*;

fn floats(values: &[f32]) -> ConstTensor {
    ConstTensor::from_f32(vec![values.len()], values).unwrap()
}

fn image(dims: &[usize], value: impl Fn(usize) -> f32) -> ConstTensor {
    let count = dims.iter().product();
    ConstTensor::from_f32(dims.to_vec(), &(0..count).map(value).collect::<Vec<_>>()).unwrap()
}

struct Golden {
    name: String,
    y: ConstTensor,
    x: ConstTensor,
    range: f64,
    ssim: f64,
    psnr: f64,
}

fn golden_cases() -> Vec<Golden> {
    let text = include_str!("../../tests/fixtures/ssim/golden.txt");
    let lines: Vec<&str> = text.lines().collect();
    lines
        .chunks_exact(4)
        .map(|case| {
            let head: Vec<&str> = case[0].split(' ').collect();
            let mut dims: Vec<usize> = head[3].split('x').map(|d| d.parse().unwrap()).collect();
            if dims.len() == 2 {
                dims.push(1);
            }
            dims.insert(0, 1);
            let tensor = |line: &str| {
                let words = line.split(' ');
                match head[2] {
                    "uint8" => {
                        let bytes: Vec<u8> = words.map(|w| w.parse().unwrap()).collect();
                        ConstTensor::new(DataType::Uint8, dims.clone(), bytes).unwrap()
                    }
                    "float32" => {
                        let values: Vec<f32> = words.map(|w| w.parse().unwrap()).collect();
                        ConstTensor::from_f32(dims.clone(), &values).unwrap()
                    }
                    other => panic!("type {other}"),
                }
            };
            let tail: Vec<f64> = case[3].split(' ').skip(1).map(|w| w.parse().unwrap()).collect();
            Golden {
                name: head[1].to_owned(),
                y: tensor(case[1]),
                x: tensor(case[2]),
                range: head[4].parse().unwrap(),
                ssim: tail[0],
                psnr: tail[1],
            }
        })
        .collect()
}

#[test]
fn ssim_and_psnr_are_those_of_scikit_image() {
    let cases = golden_cases();
    assert_eq!(cases.len(), 5);
    for case in &cases {
        let ssim = ssim(&case.y, &case.x, ImageLayout::ChannelsLast, Some(case.range)).unwrap();
        assert!((ssim - case.ssim).abs() < 1e-12, "{}: ssim {ssim}, golden {}", case.name, case.ssim);
        let found = difference(&case.y, &case.x, Some(case.range)).unwrap();
        assert!((found.psnr - case.psnr).abs() < 1e-9, "{}: psnr {}, golden {}", case.name, found.psnr, case.psnr);
    }
}

/// Every window by itself, two-dimensional weights, variances from the definition.
fn naive_ssim(y: &[f64], x: &[f64], height: usize, width: usize, range: f64) -> f64 {
    let mut weights = [[0.0; 11]; 11];
    for (i, row) in weights.iter_mut().enumerate() {
        for (j, weight) in row.iter_mut().enumerate() {
            let (a, b) = (i as f64 - 5.0, j as f64 - 5.0);
            *weight = (-(a * a + b * b) / (2.0 * 2.25)).exp();
        }
    }
    let total: f64 = weights.iter().flatten().sum();
    let mut values = Vec::new();
    for top in 0..=height - 11 {
        for left in 0..=width - 11 {
            let expect = |f: &dyn Fn(usize) -> f64| {
                let mut sum = 0.0;
                for (i, row) in weights.iter().enumerate() {
                    for (j, weight) in row.iter().enumerate() {
                        sum += weight / total * f((top + i) * width + left + j);
                    }
                }
                sum
            };
            let (my, mx) = (expect(&|p| y[p]), expect(&|p| x[p]));
            let vy = expect(&|p| (y[p] - my).powi(2));
            let vx = expect(&|p| (x[p] - mx).powi(2));
            let cov = expect(&|p| (y[p] - my) * (x[p] - mx));
            let (c1, c2) = ((0.01 * range).powi(2), (0.03 * range).powi(2));
            let luminance = (2.0 * my * mx + c1) / (my * my + mx * mx + c1);
            values.push(luminance * (2.0 * cov + c2) / (vy + vx + c2));
        }
    }
    values.iter().sum::<f64>() / values.len() as f64
}

#[test]
fn ssim_equals_the_definition_in_both_layouts() {
    let (height, width) = (12, 15);
    for channels in [1, 3, 4] {
        let pixel = |batch: usize, c: usize, p: usize| ((batch * 31 + c * 17 + p * p) % 97) as f32 / 97.0;
        let other = |v: f32, p: usize| v * 0.75 + ((p * 13) % 7) as f32 / 40.0;
        let plane = height * width;
        let first = |e: usize| (e / (channels * plane), e / plane % channels, e % plane);
        let last = |e: usize| (e / (channels * plane), e % channels, e / channels % plane);
        let make = |dims: &[usize], place: &dyn Fn(usize) -> (usize, usize, usize)| {
            let y = image(dims, |e| {
                let (b, c, p) = place(e);
                pixel(b, c, p)
            });
            let x = image(dims, |e| {
                let (b, c, p) = place(e);
                other(pixel(b, c, p), p)
            });
            (y, x)
        };
        let (y, x) = make(&[2, channels, height, width], &first);
        let (ys, xs) = (y.to_f64_vec().unwrap(), x.to_f64_vec().unwrap());
        let planes = ys.chunks(plane).zip(xs.chunks(plane)).map(|(y, x)| naive_ssim(y, x, height, width, 1.0));
        let want = planes.sum::<f64>() / (2 * channels) as f64;
        let got = ssim(&y, &x, ImageLayout::ChannelsFirst, Some(1.0)).unwrap();
        assert!((got - want).abs() < 1e-12, "{channels} channels first: {got} {want}");
        let (y, x) = make(&[2, height, width, channels], &last);
        let got = ssim(&y, &x, ImageLayout::ChannelsLast, Some(1.0)).unwrap();
        assert!((got - want).abs() < 1e-12, "{channels} channels last: {got} {want}");
    }
}

#[test]
fn equal_images_have_ssim_one_and_constant_ones_too() {
    for y in [image(&[1, 1, 20, 11], |e| e as f32), image(&[1, 1, 11, 11], |_| 3.0)] {
        let value = ssim(&y, &y, ImageLayout::ChannelsFirst, None).unwrap();
        assert!((value - 1.0).abs() < 1e-12, "{value}");
    }
}

#[test]
fn images_are_told_by_shape() {
    use ImageLayout::{ChannelsFirst, ChannelsLast};
    let cases: &[(&[usize], Option<ImageLayout>)] = &[
        (&[1, 3, 11, 11], Some(ChannelsFirst)),
        (&[2, 1, 64, 30], Some(ChannelsFirst)),
        (&[1, 20, 20, 4], Some(ChannelsLast)),
        (&[1, 2, 20, 20], None),
        (&[1, 3, 10, 20], None),
        (&[3, 20, 20], None),
    ];
    for (dims, want) in cases {
        assert_eq!(image_layout(dims), *want, "{dims:?}");
    }
}

#[test]
fn ssim_refuses_what_is_no_image() {
    for dims in [vec![400], vec![10, 40], vec![0, 20, 20], vec![20, 0]] {
        let y = image(&dims, |_| 0.0);
        let found = ssim(&y, &y, ImageLayout::ChannelsFirst, None);
        assert_eq!(found, Err(MetricsError::NoImage(dims)));
    }
    let y = image(&[20, 20, 0], |_| 0.0);
    assert!(ssim(&y, &y, ImageLayout::ChannelsLast, None).is_err());
    let mut values = vec![0.5; 121];
    values[60] = f32::NAN;
    let y = ConstTensor::from_f32(vec![11, 11], &values).unwrap();
    assert!(ssim(&y, &y, ImageLayout::ChannelsFirst, None).unwrap().is_nan());
}

#[test]
fn differences_follow_their_definitions() {
    let found = difference(&floats(&[1.0, -4.0, 0.0, 2.0]), &floats(&[1.0, -3.0, -2.0, 2.0]), None).unwrap();
    let want = Difference {
        elements: 4,
        differing: 2,
        max_abs: 2.0,
        worst_element: 2,
        max_rel: 0.5,
        mean_abs: 0.75,
        rmse: (5.0f64 / 4.0).sqrt(),
        psnr: 20.0 * (6.0f64 / (5.0f64 / 4.0).sqrt()).log10(),
        range: 6.0,
        max_steps: None,
    };
    assert_eq!(found, want);
}

#[test]
fn nan_and_infinity_follow_the_stated_rules() {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    let cases = [
        (nan, nan, 0.0),
        (nan, 1.0, f64::INFINITY),
        (1.0, nan, f64::INFINITY),
        (inf, inf, 0.0),
        (inf, -inf, f64::INFINITY),
        (-inf, 3.0, f64::INFINITY),
        (3.0, inf, f64::INFINITY),
        (nan, inf, f64::INFINITY),
        (0.0, -0.0, 0.0),
    ];
    for (y, x, want) in cases {
        let found = difference(&floats(&[2.0, y]), &floats(&[2.0, x]), None).unwrap();
        assert_eq!(found.max_abs, want, "{y} {x}");
        assert_eq!(found.differing, usize::from(want > 0.0), "{y} {x}");
        assert_eq!(found.max_rel, want, "{y} {x}");
        assert_eq!(found.psnr, if want > 0.0 { f64::NEG_INFINITY } else { f64::INFINITY }, "{y} {x}");
        assert!(!found.rmse.is_nan() && !found.mean_abs.is_nan(), "{y} {x}");
    }
}

#[test]
fn a_reference_of_zeros_makes_the_relative_difference_infinite() {
    let zeros = floats(&[0.0, 0.0]);
    assert_eq!(difference(&zeros, &zeros, None).unwrap().max_rel, 0.0);
    assert_eq!(difference(&zeros, &floats(&[0.0, 1e-9]), None).unwrap().max_rel, f64::INFINITY);
}

#[test]
fn empty_tensors_are_equal() {
    let found = difference(&floats(&[]), &floats(&[]), None).unwrap();
    assert_eq!((found.elements, found.max_abs, found.max_rel, found.rmse), (0, 0.0, 0.0, 0.0));
}

#[test]
fn integer_steps_are_exact_for_every_integer_type() {
    let tensor = |dtype, bytes: Vec<u8>, n| ConstTensor::new(dtype, vec![n], bytes).unwrap();
    let cases = [
        (tensor(DataType::Int8, vec![0x80, 5], 2), tensor(DataType::Int8, vec![0x7f, 5], 2), 255, 1),
        (tensor(DataType::Uint8, vec![0, 7], 2), tensor(DataType::Uint8, vec![255, 6], 2), 255, 2),
        (tensor(DataType::Bool, vec![2, 0], 2), tensor(DataType::Bool, vec![1, 1], 2), 1, 1),
        (
            tensor(DataType::Int64, i64::MIN.to_le_bytes().to_vec(), 1),
            tensor(DataType::Int64, i64::MAX.to_le_bytes().to_vec(), 1),
            u64::MAX,
            1,
        ),
        (
            tensor(DataType::Uint64, u64::MAX.to_le_bytes().to_vec(), 1),
            tensor(DataType::Uint64, (u64::MAX - 1).to_le_bytes().to_vec(), 1),
            1,
            1,
        ),
    ];
    for (y, x, steps, differing) in &cases {
        let found = difference(y, x, None).unwrap();
        let name = y.dtype().name();
        assert_eq!((found.max_steps, found.differing), (Some(*steps), *differing), "{name}");
        assert_eq!(found.max_abs, *steps as f64, "{name}");
    }
    assert_eq!(difference(&cases[0].0, &cases[0].1, None).unwrap().range, 255.0);
}

#[test]
fn unlike_tensors_are_refused() {
    let y = floats(&[1.0, 2.0]);
    let shape = difference(&y, &y.clone().reshaped(vec![1, 2]).unwrap(), None);
    assert_eq!(shape, Err(MetricsError::Shape { first: vec![2], second: vec![1, 2] }));
    let other = ConstTensor::new(DataType::Int32, vec![2], vec![0; 8]).unwrap();
    assert_eq!(difference(&y, &other, None), Err(MetricsError::Type { first: "float", second: "int32" }));
    let packed = ConstTensor::new(DataType::Int4, vec![2], vec![0; 1]).unwrap();
    assert_eq!(difference(&packed, &packed, None), Err(MetricsError::Unsupported("int4")));
}
