//! `chipfit quantize` as a user meets it: flags, reports, files, exit statuses.

mod common;

use std::fs;

use chipfit_model::{DataType, build};
use common::{Folder, assert_keys, count, floats, model, quantised, read, values};

/// A classifier of 3x8x8 pictures into two classes.
fn classifier(folder: &Folder) {
    let constants = vec![
        floats("w", &[4, 3, 3, 3], &values(108, 1)),
        floats("b", &[4], &values(4, 2)),
        floats("fc", &[4, 2], &values(8, 3)),
    ];
    let nodes = vec![
        build::node("Conv", "conv", &["x", "w", "b"], &["c"], vec![build::attr_is("pads", &[1; 4])]),
        build::node("Relu", "relu", &["c"], &["r"], Vec::new()),
        build::node("GlobalAveragePool", "pool", &["r"], &["p"], Vec::new()),
        build::node("Flatten", "flatten", &["p"], &["f"], vec![build::attr_i("axis", 1)]),
        build::node("MatMul", "dense", &["f", "fc"], &["y"], Vec::new()),
    ];
    folder.put("m.onnx", &model(nodes, constants, DataType::Float, &[1, 3, 8, 8], &[1, 2]));
}

/// Two pictures of each of two classes, in the splits train and test.
fn pictures(folder: &Folder) {
    for (index, place) in ["train/a", "train/b", "test/a", "test/b"].iter().enumerate() {
        fs::create_dir_all(folder.path(&format!("data/{place}"))).unwrap();
        for n in 0..2u8 {
            let picture = image::RgbImage::from_fn(8, 8, |x, y| {
                image::Rgb([(x * 30) as u8, (y * 30) as u8, n * 100 + index as u8 * 10])
            });
            picture.save(folder.path(&format!("data/{place}/{n}.png"))).unwrap();
        }
    }
}

fn prepared() -> Folder {
    let folder = Folder::new();
    classifier(&folder);
    pictures(&folder);
    folder
}

#[test]
fn a_model_and_its_preprocessing_are_written_and_reported() {
    let folder = prepared();
    let done = folder.run("quantize m.onnx --data data -o q.onnx --scale 0.01 --json").expect(0);
    let json = done.json();
    assert_keys(
        &json,
        &["command", "options", "calibration", "preprocess", "tensors", "weights", "warnings", "runtime"],
    );
    assert_eq!(json["calibration"]["split"], "train");
    assert_eq!(json["calibration"]["pictures"], 4);
    assert_eq!(json["error"], serde_json::Value::Null);
    let names: Vec<&str> = json["tensors"].as_array().unwrap().iter().map(|t| t["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["x", "r", "p", "f", "y"]);
    assert!(json["tensors"].as_array().unwrap().iter().all(|t| t["sqnr_db"].as_f64().unwrap() > 20.0), "{json:#}");
    let written = read(&folder.path("q.onnx"));
    assert_eq!((count(&written, "QuantizeLinear"), count(&written, "Relu")), (5, 0));
    let toml = fs::read_to_string(folder.path("q.preprocess.toml")).unwrap();
    assert!(toml.contains("scale = 0.01"), "{toml}");
    assert!(
        done.err().contains("preprocessing") && done.err().contains("calibration: 4 of 4 pictures"),
        "{}",
        done.err()
    );

    // The written preprocessing is found beside a model of that name.
    fs::copy(folder.path("m.onnx"), folder.path("q2.onnx")).unwrap();
    fs::copy(folder.path("q.preprocess.toml"), folder.path("q2.preprocess.toml")).unwrap();
    folder.run("quantize q2.onnx --data data -o again.onnx").expect(0);
    assert_eq!(fs::read(folder.path("q.onnx")).unwrap(), fs::read(folder.path("again.onnx")).unwrap());
}

#[test]
fn every_option_reaches_the_file() {
    let folder = prepared();
    let cases = [
        ("", "activations uint8, weights int8 per-channel, minmax"),
        ("--method percentile", "activations uint8, weights int8 per-channel, percentile 99.99"),
        ("--method percentile --percentile 99", "activations uint8, weights int8 per-channel, percentile 99"),
        ("--method entropy --activations int8", "activations int8 symmetric, weights int8 per-channel, entropy"),
        (
            "--activations int8-asymmetric --weights per-tensor",
            "activations int8 asymmetric, weights int8 per-tensor, minmax",
        ),
        ("--power-of-two", "activations uint8, weights int8 per-channel, minmax, power-of-two scales"),
    ];
    for (flags, want) in cases {
        folder.run(&format!("quantize m.onnx --data data -o q.onnx --force {flags}")).expect(0);
        let properties = read(&folder.path("q.onnx")).proto.metadata_props;
        let have = properties.iter().find(|p| p.key.as_deref() == Some("chipfit.quantization")).unwrap();
        assert_eq!(have.value.as_deref(), Some(want), "{flags}");
    }
}

#[test]
fn the_split_and_the_draw_are_the_users() {
    let folder = prepared();
    let calibration = |flags: &str| {
        let done = folder.run(&format!("quantize m.onnx {flags} -o q.onnx --force --json")).expect(0);
        done.json()["calibration"].clone()
    };
    assert_eq!(calibration("--data data:test")["split"], "test");
    assert_eq!(calibration("--data data --calibration-data data:test")["split"], "test");
    let few = calibration("--data data --pictures 2 --seed 3");
    assert_eq!((few["pictures"].as_u64(), few["of"].as_u64(), few["seed"].as_u64()), (Some(2), Some(4), Some(3)));
    assert_ne!(few["fingerprint"], calibration("--data data")["fingerprint"]);
    assert_eq!(few["fingerprint"], calibration("--data data --pictures 2 --seed 3")["fingerprint"]);
}

#[test]
fn mistakes_are_named_and_leave_no_file() {
    let folder = prepared();
    folder.put("int8.onnx", &quantised(2));
    fs::write(folder.path("bad.toml"), "size = [8, 8]\nspeed = 3\n").unwrap();
    fs::write(folder.path("there.onnx"), "x").unwrap();
    let before = folder.files();
    let cases = [
        ("m.onnx --data nowhere -o q.onnx", 1, "nowhere"),
        ("m.onnx --data data:valley -o q.onnx", 1, "valley"),
        ("m.onnx --data data -o q.onnx --percentile 90", 2, "--percentile"),
        ("m.onnx --data data -o q.onnx --method percentile --percentile 0", 2, "--percentile"),
        ("m.onnx --data data -o q.onnx --size 0", 2, "--size"),
        ("m.onnx --data data -o q.onnx --resize fit", 2, "--resize"),
        ("m.onnx --data data -o q.onnx --pictures 0", 2, "--pictures"),
        ("m.onnx --data data -o q.onnx --std 0", 1, "std"),
        ("m.onnx --data data -o q.onnx --size 9x9", 1, "size"),
        ("m.onnx --data data -o q.onnx --preprocess bad.toml", 1, "speed"),
        ("m.onnx --data data -o there.onnx", 2, "--force"),
        ("int8.onnx --data data -o q.onnx", 1, "takes float pictures"),
        ("data --data data -o q.onnx", 1, "data"),
    ];
    for (arguments, status, word) in cases {
        let done = folder.run(&format!("quantize {arguments}")).expect(status);
        assert!(done.err().contains(word), "{arguments}: {}", done.err());
        assert_eq!(folder.files(), before, "{arguments}");
    }
    // A picture of another size, and a model that is quantised behind a float input.
    image::RgbImage::new(9, 9).save(folder.path("data/train/a/9.png")).unwrap();
    let done = folder.run("quantize m.onnx --data data -o q.onnx").expect(1);
    assert!(done.err().contains("9.png") && done.err().contains("9x9"), "{}", done.err());
    let done = folder.run("quantize m.onnx --data data:test -o q.onnx").expect(0);
    assert!(done.out().contains("wrote q.onnx"), "{}", done.out());
    let done = folder.run("quantize q.onnx --data data:test -o q2.onnx --json").expect(1);
    assert!(done.json()["error"].as_str().unwrap().contains("already quantised"));
    assert!(!folder.path("q2.onnx").exists());
}
