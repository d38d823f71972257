use proptest::prelude::*;

use super::*;
use crate::DataError;

/// The specification of everything but resizing: one output value from its indices.
fn naive(pixels: &Pixels, how: &Preprocess, channel: usize, row: usize, column: usize) -> f32 {
    let at = |from: usize| {
        let index = (row * pixels.width + column) * pixels.channels + from;
        match &pixels.data {
            PixelData::Bytes(values) => f32::from(values[index]),
            PixelData::Floats(values) => values[index],
        }
    };
    let is_float = matches!(pixels.data, PixelData::Floats(_));
    let pixel = match (pixels.channels, how.colour) {
        (1, _) => at(0),
        (_, Colour::Rgb) => at(channel),
        (_, Colour::Bgr) => at(2 - channel),
        (_, Colour::Grey) if is_float => 0.299 * at(0) + 0.587 * at(1) + 0.114 * at(2),
        // Pillow's weights have 16 bits: at most one step from the rounded exact value.
        (_, Colour::Grey) => {
            let sum = 19_595.0 * f64::from(at(0)) + 38_470.0 * f64::from(at(1)) + 7_471.0 * f64::from(at(2));
            (sum / 65_536.0 + 0.5).floor() as f32
        }
    };
    let mean = how.mean[channel % how.mean.len()];
    let std = how.std[channel % how.std.len()];
    (pixel * how.scale - mean) / std
}

fn any_pixels(height: usize, width: usize) -> impl Strategy<Value = Pixels> {
    (prop_oneof![Just(1usize), Just(3)], any::<bool>()).prop_flat_map(move |(channels, is_float)| {
        let count = height * width * channels;
        proptest::collection::vec(any::<u8>(), count).prop_map(move |bytes| {
            let data = if is_float {
                PixelData::Floats(bytes.iter().map(|byte| f32::from(*byte) * 0.37 - 11.0).collect())
            } else {
                PixelData::Bytes(bytes)
            };
            Pixels { height, width, channels, data }
        })
    })
}

fn any_how(height: usize, width: usize) -> impl Strategy<Value = Preprocess> {
    let colours = prop_oneof![Just(Colour::Rgb), Just(Colour::Bgr), Just(Colour::Grey)];
    let layouts = prop_oneof![Just(Layout::Nchw), Just(Layout::Nhwc)];
    (colours, layouts, any::<bool>(), -200f32..200.0, 0.01f32..300.0, 0.001f32..2.0).prop_map(
        move |(colour, layout, each, mean, std, scale)| {
            let mut how = Preprocess::raw([height, width], layout, colour);
            let list = |first: f32| {
                if each && colour != Colour::Grey { vec![first, first + 1.0, first + 2.5] } else { vec![first] }
            };
            (how.mean, how.std, how.scale) = (list(mean), list(std), scale);
            how
        },
    )
}

proptest! {
    #[test]
    fn colour_layout_and_scaling_equal_the_formula(
        (pixels, how) in (1usize..7, 1usize..7).prop_flat_map(|(h, w)| (any_pixels(h, w), any_how(h, w)))
    ) {
        let mut out = vec![f32::NAN; how.len()];
        apply("p", &pixels, &how, &mut out).unwrap();
        let [height, width] = how.size;
        let channels = how.colour.channels();
        for channel in 0..channels {
            for row in 0..height {
                for column in 0..width {
                    let index = match how.layout {
                        Layout::Nchw => (channel * height + row) * width + column,
                        Layout::Nhwc => (row * width + column) * channels + channel,
                    };
                    prop_assert_eq!(out[index], naive(&pixels, &how, channel, row, column));
                }
            }
        }
    }

    #[test]
    fn resizing_keeps_constants_and_bounds(
        (pixels, value) in (1usize..40, 1usize..40, any::<u8>()).prop_map(|(height, width, value)| {
            (Pixels { height, width, channels: 3, data: PixelData::Bytes(vec![value; height * width * 3]) }, value)
        }),
        (height, width) in (1usize..40, 1usize..40),
        resize in prop_oneof![Just(Resize::Stretch), Just(Resize::Crop)],
        filter in prop_oneof![Just(Filter::Bilinear), Just(Filter::Bicubic)],
    ) {
        let how = Preprocess { resize, filter, ..Preprocess::raw([height, width], Layout::Nhwc, Colour::Rgb) };
        let mut out = vec![f32::NAN; how.len()];
        apply("p", &pixels, &how, &mut out).unwrap();
        prop_assert!(out.iter().all(|found| *found == f32::from(value)), "{value} {out:?}");
    }

    #[test]
    fn bytes_and_floats_are_resized_alike(
        pixels in (1usize..20, 1usize..20).prop_flat_map(|(h, w)| {
            proptest::collection::vec(any::<u8>(), h * w)
                .prop_map(move |bytes| Pixels { height: h, width: w, channels: 1, data: PixelData::Bytes(bytes) })
        }),
        (height, width) in (1usize..30, 1usize..30),
    ) {
        let how = Preprocess { resize: Resize::Stretch, ..Preprocess::raw([height, width], Layout::Nchw, Colour::Grey) };
        let PixelData::Bytes(bytes) = &pixels.data else { unreachable!("bytes were made") };
        let floats = Pixels { data: PixelData::Floats(bytes.iter().map(|b| f32::from(*b)).collect()), ..pixels.clone() };
        let (mut rounded, mut exact) = (vec![0.0; how.len()], vec![0.0; how.len()]);
        apply("p", &pixels, &how, &mut rounded).unwrap();
        apply("p", &floats, &how, &mut exact).unwrap();
        // Rounded twice, by half a step each; the triangle's weights sum to 1.
        prop_assert!(rounded.iter().zip(&exact).all(|(a, b)| (a - b).abs() <= 1.001), "{rounded:?} {exact:?}");
    }
}

#[test]
fn the_middle_is_cut_out() {
    // 4 rows of 7 pixels, the value is the column; half the size is wanted of the shorter side.
    let values = (0..28).map(|i| f32::from(i as u8 % 7)).collect();
    let pixels = Pixels { height: 4, width: 7, channels: 1, data: PixelData::Floats(values) };
    let how =
        Preprocess { resize: Resize::Crop, resize_to: Some(4), ..Preprocess::raw([2, 2], Layout::Nchw, Colour::Grey) };
    let mut out = vec![0.0; 4];
    apply("p", &pixels, &how, &mut out).unwrap();
    assert_eq!(out, [2.0, 3.0, 2.0, 3.0]);
    let exact = Preprocess { resize: Resize::Exact, resize_to: None, ..how };
    assert!(matches!(
        apply("p", &pixels, &exact, &mut out),
        Err(DataError::WrongSize { found_height: 4, found_width: 7, height: 2, width: 2, .. })
    ));
    assert!(matches!(
        apply("p", &pixels, &exact, &mut out[..3]),
        Err(DataError::WrongBuffer { found: 3, wanted: 4, .. })
    ));
}
