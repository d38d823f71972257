//! Against numpy and Pillow: arrays in both directions, and every step from a picture to a model's input.

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use chipfit_data::{
    ArrayData, Colour, DataError, DataSet, Filter, Layout, NpyType, Npz, NpzWriter, OpenOptions, PixelData, Preprocess,
    Resize,
};
use support::{jpeg, picture, png, surroundings, write_all};

/// Runs a script with the folder as its argument; false where there is no Python, or it lacks a module.
fn python(folder: &Path, modules: &str, script: &str) -> bool {
    let Some(python) = surroundings("CHIPFIT_PYTHON", "", "cross-check against numpy and Pillow") else { return false };
    let imports = Command::new(&python).args(["-c", &format!("import {modules}")]).status().unwrap();
    if !imports.success() {
        eprintln!("SKIPPED: CHIPFIT_PYTHON has no {modules}");
        return false;
    }
    let output = Command::new(&python).args(["-c", script]).arg(folder).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    true
}

#[test]
fn numpy_loads_what_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace.npz");
    let mut writer = NpzWriter::create(&path).unwrap();
    let bytes: Vec<u8> = (0..=255).collect();
    writer.add("model/layer1/conv:0", &[2, 8, 16], ArrayData::U8(&bytes)).unwrap();
    writer.add("/abs/../name with space", &[3], ArrayData::I8(&[-128, 0, 127])).unwrap();
    writer.add("Gewicht_ä", &[1, 2], ArrayData::I32(&[i32::MIN, i32::MAX])).unwrap();
    writer.add("scalar", &[], ArrayData::I64(&[-5])).unwrap();
    writer.add("floats", &[2, 1], ArrayData::F32(&[0.1, f32::NAN])).unwrap();
    writer.add("doubles", &[1], ArrayData::F64(&[0.1])).unwrap();
    writer.add("empty", &[0, 7], ArrayData::I32(&[])).unwrap();
    let long: Vec<i32> = (0..100_000).map(|i: i32| i.wrapping_mul(48_271)).collect();
    writer.add("long", &[100, 1000], ArrayData::I32(&long)).unwrap();

    let refused = [
        ("long", vec![1], "twice"),
        ("", vec![1], "name"),
        ("a\0b", vec![1], "name"),
        ("shape", vec![2, 1], "does not fit"),
        ("shape", vec![usize::MAX, 3], "does not fit"),
    ];
    for (name, shape, why) in refused {
        let error = writer.add(name, &shape, ArrayData::U8(&[1])).unwrap_err();
        assert!(matches!(&error, DataError::Malformed { reason, .. } if reason.contains(why)), "{error}");
    }
    assert!(!path.exists(), "the file gets its name when it is whole");
    writer.finish().unwrap();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");

    // Our own reader.
    let file = fs::File::open(&path).unwrap();
    let length = file.metadata().unwrap().len();
    let mut npz = Npz::open(file, length).unwrap();
    assert_eq!(npz.keys().len(), 8);
    let found = npz.array("long", 1 << 20).unwrap();
    assert_eq!((found.dtype(), found.shape()), (NpyType::I32, [100, 1000].as_slice()));
    assert!(found.values().as_chunks().0.iter().zip(&long).all(|(bytes, value)| i32::from_le_bytes(*bytes) == *value));
    assert_eq!(npz.array("scalar", 1000).unwrap().shape(), [] as [usize; 0]);
    assert_eq!(npz.array("Gewicht_ä", 1000).unwrap().shape(), [1, 2]);

    python(
        folder.path(),
        "numpy",
        r#"
import sys, numpy as np
z = np.load(sys.argv[1] + "/trace.npz")
assert sorted(z.files) == sorted(["model/layer1/conv:0", "/abs/../name with space", "Gewicht_ä", "scalar", "floats",
                                  "doubles", "empty", "long"]), z.files
def same(name, dtype, value):
    found = z[name]
    assert found.dtype == dtype and found.shape == np.shape(value), (name, found.dtype, found.shape)
    assert np.array_equal(found, np.array(value, dtype), equal_nan=found.dtype.kind == "f"), name
same("model/layer1/conv:0", np.uint8, np.arange(256).reshape(2, 8, 16))
same("/abs/../name with space", np.int8, [-128, 0, 127])
same("Gewicht_ä", np.int32, [[-2**31, 2**31 - 1]])
same("scalar", np.int64, -5)
same("floats", np.float32, [[0.1], [np.nan]])
same("doubles", np.float64, [0.1])
assert z["empty"].shape == (0, 7)
same("long", np.int32, (np.arange(100000, dtype=np.int64) * 48271 & 0xffffffff).astype(np.uint32).view(np.int32).reshape(100, 1000))
"#,
    );
}

#[test]
fn the_same_arrays_give_the_same_file_and_a_dropped_writer_none() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str| {
        let path = folder.path().join(name);
        let mut writer = NpzWriter::create(&path).unwrap();
        writer.add("a", &[2], ArrayData::F32(&[1.0, 2.0])).unwrap();
        writer.finish().unwrap();
        fs::read(path).unwrap()
    };
    assert_eq!(write("one.npz"), write("two.npz"));
    let mut writer = NpzWriter::create(&folder.path().join("three.npz")).unwrap();
    writer.add("a", &[1], ArrayData::U8(&[1])).unwrap();
    drop(writer);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    assert!(matches!(NpzWriter::create(&folder.path().join("no/such/folder.npz")), Err(DataError::Io { .. })));
}

#[test]
fn arrays_that_numpy_wrote_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let script = r#"
import sys, numpy as np
x = (np.arange(5 * 4 * 6 * 3) % 251).astype(np.uint8).reshape(5, 4, 6, 3)
for name, save in ("plain", np.savez), ("packed", np.savez_compressed):
    for kind, y in ("i8", np.int64), ("u1", np.uint8), ("i4", np.int32):
        save(f"{sys.argv[1]}/{name}-{kind}.npz", x=x, y=np.array([3, 1, 2, 0, 1], y))
save(f"{sys.argv[1]}/packed-f4.npz", x=x.transpose(0, 3, 1, 2).astype(np.float32).copy() / 2, y=np.array([[3], [1], [2], [0], [1]]))
np.savez(f"{sys.argv[1]}/fortran.npz", x=np.asfortranarray(x), y=np.zeros(5, np.int64))
np.savez(f"{sys.argv[1]}/double.npz", x=x.astype(np.float64), y=np.zeros(5, np.int64))
np.savez(f"{sys.argv[1]}/objects.npz", x=x, y=np.array([None] * 5))
"#;
    if !python(folder.path(), "numpy", script) {
        return;
    }
    let open = |name: &str| {
        DataSet::open(folder.path().join(name).to_str().unwrap(), &OpenOptions::default()).map_err(|e| e.to_string())
    };
    for name in ["plain-i8", "plain-u1", "plain-i4", "packed-i8", "packed-u1", "packed-i4"] {
        let set = open(&format!("{name}.npz")).unwrap();
        assert_eq!(
            (0..5).map(|i| (set.name(i), set.label(i))).collect::<Vec<_>>(),
            [("3", 0), ("1", 1), ("4", 1), ("2", 2), ("0", 3)]
        );
        let expected: Vec<u8> = (0..72u32).map(|i| ((3 * 72 + i) % 251) as u8).collect();
        assert_eq!(set.pixels(0).unwrap().data, PixelData::Bytes(expected));
    }
    let floats = open("packed-f4.npz").unwrap();
    let expected: Vec<f32> = (0..72u32).map(|i| ((3 * 72 + i) % 251) as f32 / 2.0).collect();
    assert_eq!(floats.pixels(0).unwrap().data, PixelData::Floats(expected));
    assert!(open("fortran.npz").unwrap_err().contains("ascontiguousarray"));
    assert!(open("double.npz").unwrap_err().contains("'<f8'"));
    assert!(open("objects.npz").unwrap_err().contains("'|O'"));
}

/// Equal bit for bit; says how far from it otherwise.
fn same(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let differ = found.iter().zip(expected).filter(|(a, b)| a != b).count();
    let far = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert_eq!(differ, 0, "{what}: of {} values, by up to {far}", found.len());
}

/// Pictures of odd sizes; Pillow decodes and prepares them as the comment of each key says.
#[test]
fn preprocessing_equals_pillows() {
    let folder = tempfile::tempdir().unwrap();
    let sizes = [(97, 61), (61, 97), (300, 200), (48, 48), (20, 31)];
    let pictures: Vec<(String, Vec<u8>)> = sizes
        .iter()
        .enumerate()
        .map(|(i, (width, height))| {
            let mut picture = picture(*width, *height, 100);
            // Edges and noise, which interpolation must get right.
            let mut state = 12_345u32;
            for pixel in picture.pixels_mut() {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                pixel.0 = pixel.0.map(|value| value ^ (state >> 24) as u8);
            }
            (format!("c/{i}.png"), png(&picture))
        })
        .collect();
    let pictures: Vec<(&str, Vec<u8>)> = pictures.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
    write_all(&folder.path().join("set"), &pictures);
    let script = r#"
import sys, numpy as np
from PIL import Image
def resize(picture, size, how):
    # Horizontally, then vertically: some versions of Pillow choose the order themselves.
    return picture.resize((size[0], picture.size[1]), how).resize(size, how)
out = {}
for i in range(5):
    picture = Image.open(f"{sys.argv[1]}/set/c/{i}.png")
    for name, how in ("bilinear", Image.BILINEAR), ("bicubic", Image.BICUBIC):
        out[f"stretch-{name}-{i}"] = np.asarray(resize(picture.convert("RGB"), (40, 50), how), np.float32)
        out[f"grey-{name}-{i}"] = np.asarray(resize(picture.convert("L"), (40, 50), how), np.float32)
        w, h = picture.size
        short = min(w, h)
        sized = resize(picture, (int(w * 64 / short + 0.5), int(h * 64 / short + 0.5)), how)
        left, top = ((side - 56) // 2 for side in sized.size)
        sized = np.asarray(sized.crop((left, top, left + 56, top + 56)), np.float32)
        planes = sized[:, :, ::-1].transpose(2, 0, 1)
        mean = np.array([103.939, 116.779, 123.68], np.float32)[:, None, None]
        std = np.array([57.375, 57.12, 58.395], np.float32)[:, None, None]
        out[f"crop-{name}-{i}"] = (planes * np.float32(0.5) - mean) / std
        floats = resize(Image.fromarray(np.asarray(picture.convert("L"), np.float32) / 7), (40, 50), how)
        out[f"float-{name}-{i}"] = np.asarray(floats, np.float32)
    np.savez(f"{sys.argv[1]}/float-{i}.npz", x=(np.asarray(picture.convert("L"), np.float32) / 7)[None], y=[0])
np.savez(f"{sys.argv[1]}/expected.npz", **out)
"#;
    if !python(folder.path(), "numpy, PIL", script) {
        return;
    }
    let path = folder.path().join("expected.npz");
    let mut expected = Npz::open(fs::File::open(&path).unwrap(), fs::metadata(&path).unwrap().len()).unwrap();
    let mut expect = |key: &str| -> Vec<f32> {
        let array = expected.array(key, 1 << 24).unwrap();
        array.values().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    };
    let set = DataSet::open(folder.path().join("set").to_str().unwrap(), &OpenOptions::default()).unwrap();
    for (name, filter) in [("bilinear", Filter::Bilinear), ("bicubic", Filter::Bicubic)] {
        let stretch =
            Preprocess { resize: Resize::Stretch, filter, ..Preprocess::raw([50, 40], Layout::Nhwc, Colour::Rgb) };
        let grey = Preprocess { colour: Colour::Grey, ..stretch.clone() };
        let crop = Preprocess {
            resize: Resize::Crop,
            resize_to: Some(64),
            filter,
            mean: vec![103.939, 116.779, 123.68],
            std: vec![57.375, 57.12, 58.395],
            scale: 0.5,
            ..Preprocess::raw([56, 56], Layout::Nchw, Colour::Bgr)
        };
        for i in 0..sizes.len() {
            same(
                &format!("stretch {name} {i}"),
                &set.batch([i], &stretch).unwrap(),
                &expect(&format!("stretch-{name}-{i}")),
            );
            same(&format!("grey {name} {i}"), &set.batch([i], &grey).unwrap(), &expect(&format!("grey-{name}-{i}")));
            same(&format!("crop {name} {i}"), &set.batch([i], &crop).unwrap(), &expect(&format!("crop-{name}-{i}")));
            let floats = folder.path().join(format!("float-{i}.npz"));
            let floats = DataSet::open(floats.to_str().unwrap(), &OpenOptions::default()).unwrap();
            let found = floats.batch([0], &grey).unwrap();
            let expected = expect(&format!("float-{name}-{i}"));
            let far = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            // Both sum in f64 and round to f32 after each pass; only the order of operations may differ.
            assert!(far <= 1e-5, "float {name} {i}: {far}");
        }
    }
}

/// JPEG decoders may differ by rounding; how much is measured against libjpeg.
#[test]
fn jpeg_pictures_are_near_pillows() {
    let folder = tempfile::tempdir().unwrap();
    write_all(folder.path(), &[("c/0.jpg", jpeg(&picture(61, 47, 77)))]);
    let Some(cifar) = surroundings("CHIPFIT_SHARED", "data/cifar10-jpeg.tar", "JPEG pictures of CIFAR-10") else {
        return;
    };
    std::os::unix::fs::symlink(&cifar, folder.path().join("cifar.tar")).unwrap();
    let script = r#"
import io, sys, tarfile, numpy as np
from PIL import Image
out = {"own": np.asarray(Image.open(sys.argv[1] + "/c/0.jpg"))}
with tarfile.open(sys.argv[1] + "/cifar.tar") as tar:
    names = sorted(m.name for m in tar if m.isfile() and m.name.startswith("test/"))[::100]
    out["cifar"] = np.stack([np.asarray(Image.open(io.BytesIO(tar.extractfile(n).read()))) for n in names])
np.savez(sys.argv[1] + "/expected.npz", **out)
"#;
    if !python(folder.path(), "numpy, PIL", script) {
        return;
    }
    let path = folder.path().join("expected.npz");
    let mut expected = Npz::open(fs::File::open(&path).unwrap(), fs::metadata(&path).unwrap().len()).unwrap();
    let set = DataSet::open(cifar.to_str().unwrap(), &OpenOptions::default()).unwrap();
    let expected = expected.array("cifar", 1 << 24).unwrap();
    let (mut far, mut sum, mut count) = (0u8, 0u64, 0u64);
    for (position, picture) in expected.values().chunks_exact(32 * 32 * 3).enumerate() {
        let PixelData::Bytes(found) = set.pixels(position * 100).unwrap().data else { panic!("JPEG gives bytes") };
        for (a, b) in found.iter().zip(picture) {
            far = far.max(a.abs_diff(*b));
            sum += u64::from(a.abs_diff(*b));
            count += 1;
        }
    }
    assert_eq!(count, 100 * 32 * 32 * 3);
    let mean = sum as f64 / count as f64;
    eprintln!("JPEG against libjpeg: largest difference {far}, mean {mean:.4}");
    // Measured: 4 and 0.30. Decoders round the transform, the colours and the interpolation of the colour planes in
    // their own ways; a wrong range, order or plane would be off by tens.
    assert!(far <= 4 && mean < 0.5, "largest difference {far}, mean {mean}");
}
