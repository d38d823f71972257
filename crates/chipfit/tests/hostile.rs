//! Hostile and broken files: an error and no output file, never a crash.

mod common;

use std::time::{Duration, Instant};

use chipfit_model::{DataType, Model, build};
use common::{Done, Folder, bytes, deconvolution, quantised};

/// Neither a panic (101) nor a signal, and a file only where the status is 0.
fn survives(folder: &Folder, done: &Done, what: &str) {
    let ended = matches!(done.status(), Some(0 | 1 | 3));
    assert!(ended, "{what}: {:?}\n{}", done.status(), done.err());
    assert_eq!(folder.path("out.onnx").exists(), done.status() == Some(0), "{what}: {}", done.err());
    let _ = std::fs::remove_file(folder.path("out.onnx"));
    assert_eq!(folder.files(), ["in.onnx"], "{what}: a temporary file is left");
}

#[test]
fn truncated_files_are_refused() {
    let folder = Folder::new();
    let whole = deconvolution(4).to_bytes().unwrap();
    for length in (0..whole.len()).step_by(whole.len() / 60) {
        std::fs::write(folder.path("in.onnx"), &whole[..length]).unwrap();
        let done = folder.run("rewrite in.onnx -o out.onnx").expect(1);
        assert_eq!(done.err().lines().count(), 1, "{}", done.err());
        survives(&folder, &done, &format!("first {length} bytes"));
    }
}

#[test]
fn random_bytes_are_refused() {
    let folder = Folder::new();
    for seed in 0..40 {
        std::fs::write(folder.path("in.onnx"), bytes(1 + seed as usize * 37, seed)).unwrap();
        let done = folder.run("rewrite in.onnx -o out.onnx").expect(1);
        survives(&folder, &done, &format!("seed {seed}"));
    }
}

#[test]
fn flipped_bytes_never_crash_it() {
    let folder = Folder::new();
    // The small tensors lie at the end and the nodes at the front: flips there change meaning, not only weights.
    for (model, seed) in [(deconvolution(2), 1), (quantised(2), 2)] {
        let whole = model.to_bytes().unwrap();
        let places =
            bytes(180, seed).chunks(2).map(|p| usize::from(p[0]) * 256 + usize::from(p[1])).collect::<Vec<_>>();
        for (flip, at) in places.into_iter().enumerate() {
            let mut broken = whole.clone();
            let at = if flip % 2 == 0 { at % whole.len() } else { at % 240 };
            broken[at] ^= 1 << (flip % 8);
            std::fs::write(folder.path("in.onnx"), &broken).unwrap();
            let done = folder.run("rewrite in.onnx -o out.onnx");
            survives(&folder, &done, &format!("byte {at}, bit {}", flip % 8));
            let inspected = folder.run("inspect in.onnx");
            assert!(matches!(inspected.status(), Some(0 | 1)), "byte {at}: {}", inspected.err());
        }
    }
}

/// Names and values; a single value is an integer, several are a list.
type Attributes<'a> = &'a [(&'a str, &'a [i64])];

/// `deconvolution` with another declared input shape and attributes.
fn absurd(x: &[i64], attributes: Attributes<'_>) -> Model {
    let mut model = deconvolution(2);
    let graph = model.proto.graph.as_option_mut().unwrap();
    let dims: Vec<_> = x.iter().map(|&d| build::DimSpec::Known(d)).collect();
    graph.input[0] = build::value_info("x", DataType::Float, &dims);
    graph.output[0] = build::value_info("y", DataType::Float, &[build::DimSpec::Named("any".to_owned()), 2.into()]);
    for (name, values) in attributes {
        let node = &mut graph.node[0];
        node.attribute.retain(|a| a.name.as_deref() != Some(*name));
        node.attribute.push(match values {
            [one] => build::attr_i(name, *one),
            several => build::attr_is(name, several),
        });
    }
    model
}

#[test]
fn absurd_shapes_and_attributes_ask_for_no_absurd_memory() {
    const X: [i64; 4] = [1, 3, 6, 7];
    const MANY: i64 = 1 << 40;
    let cases: [(&[i64], Attributes<'_>); 18] = [
        (&[1 << 62, 3, 6, 7], &[]),
        (&[1, 3, MANY, MANY], &[]),
        (&[1, 3, 60_000, 60_000], &[]),
        (&[1, 3, -5, 7], &[]),
        (&[0, 3, 6, 7], &[]),
        (&[1, 3, 0, 7], &[]),
        (&[1, 3], &[]),
        (&X, &[("strides", &[MANY, MANY])]),
        (&X, &[("strides", &[70_000, 70_000])]),
        (&X, &[("strides", &[i64::MAX, i64::MAX])]),
        (&X, &[("strides", &[0, -1])]),
        (&X, &[("dilations", &[MANY, i64::MAX])]),
        (&X, &[("pads", &[i64::MAX, i64::MIN, i64::MAX, 0])]),
        (&X, &[("output_padding", &[MANY, i64::MAX])]),
        (&X, &[("output_padding", &[100_000, 100_000])]),
        (&X, &[("output_shape", &[i64::MAX, MANY])]),
        (&X, &[("group", &[i64::MIN])]),
        (&X, &[("kernel_shape", &[MANY, 5]), ("group", &[0])]),
    ];
    let folder = Folder::new();
    let mut failures = Vec::new();
    for (x, attributes) in cases {
        folder.put("in.onnx", &absurd(x, attributes));
        for flags in ["", "--form split", "--form fused", "--form zero-pad", "--form shi"] {
            let started = Instant::now();
            let done = folder.run_within(2 << 20, &format!("rewrite in.onnx -o out.onnx {flags}"));
            let what = format!("{x:?} {attributes:?} {flags}: {:?} after {:?}", done.status(), started.elapsed());
            if !matches!(done.status(), Some(0 | 1 | 3))
                || folder.path("out.onnx").exists() != (done.status() == Some(0))
            {
                failures.push(format!("{what} {}", done.err()));
            } else if started.elapsed() > Duration::from_secs(20) {
                failures.push(what);
            }
            let _ = std::fs::remove_file(folder.path("out.onnx"));
        }
        let inspected = folder.run_within(1 << 20, "inspect in.onnx");
        if !matches!(inspected.status(), Some(0 | 1)) {
            failures.push(format!("inspect {x:?} {attributes:?}: {}", inspected.err()));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
