//! `chipfit evaluate` as a user meets it: the same answer however it is computed, faults, traces, and bad input.

mod common;

use std::collections::BTreeSet;
use std::fs::{self, File};

use chipfit_data::Npz;
use chipfit_model::onnx::Overwrite;
use chipfit_model::{DataType, Limits, Model, build};
use common::{Folder, floats, model, values};

/// A classifier of 3x8x8 pictures into three classes, quantised, and 24 pictures.
fn prepared() -> Folder {
    let folder = Folder::new();
    let constants = vec![
        floats("w", &[6, 3, 3, 3], &values(162, 1)),
        floats("b", &[6], &values(6, 2)),
        floats("fc", &[6, 3], &values(18, 3)),
    ];
    let nodes = vec![
        build::node("Conv", "conv", &["x", "w", "b"], &["c"], vec![build::attr_is("pads", &[1; 4])]),
        build::node("Relu", "relu", &["c"], &["r"], Vec::new()),
        build::node("GlobalAveragePool", "pool", &["r"], &["p"], Vec::new()),
        build::node("Flatten", "flatten", &["p"], &["f"], vec![build::attr_i("axis", 1)]),
        build::node("MatMul", "dense", &["f", "fc"], &["y"], Vec::new()),
    ];
    folder.put("m.onnx", &model(nodes, constants, DataType::Float, &[1, 3, 8, 8], &[1, 3]));
    for (index, class) in ["a", "b", "c"].iter().enumerate() {
        fs::create_dir_all(folder.path(&format!("data/test/{class}"))).unwrap();
        for n in 0..8u8 {
            let picture = image::RgbImage::from_fn(8, 8, |x, y| {
                image::Rgb([(x * 30) as u8 ^ n, (y * 30) as u8, n * 20 + index as u8 * 50])
            });
            picture.save(folder.path(&format!("data/test/{class}/{n}.png"))).unwrap();
        }
    }
    folder.run("quantize m.onnx --data data:test -o q.onnx --scale 0.01").expect(0);
    put(&folder, "f.toml", "[[fault]]\nsites = [\"mul\", \"acc\"]\nkind = \"flip\"\nber = 1e-4\nlayers = \"*\"\n");
    folder
}

fn put(folder: &Folder, name: &str, text: &str) {
    fs::write(folder.path(name), text).unwrap();
}

fn trace(folder: &Folder, flags: &str) -> Vec<(String, Vec<u8>)> {
    folder.run(&format!("evaluate q.onnx --data data --dump all --dump-images 24 -o t.npz --force {flags}")).expect(0);
    let file = File::open(folder.path("t.npz")).unwrap();
    let length = file.metadata().unwrap().len();
    let mut npz = Npz::open(file, length).unwrap();
    let keys: BTreeSet<String> = npz.keys().iter().cloned().collect();
    keys.into_iter().map(|key| (key.clone(), npz.array(&key, 1 << 24).unwrap().values().to_vec())).collect()
}

#[test]
fn the_report_counts_and_names_its_data() {
    let folder = prepared();
    let json = folder.run("evaluate q.onnx --data data --json").expect(0).json();
    assert_eq!(json["pictures"], 24);
    assert_eq!(json["classes"], 3);
    assert_eq!(json["top5"]["count"], 24);
    assert_eq!(json["data"]["split"], "test");
    assert!(json["data"]["preprocess"].as_str().unwrap().contains("0.01"));
    assert!(json["images_per_second"].as_f64().unwrap() > 0.0);
    let (low, value, high) = (&json["top1"]["low"], &json["top1"]["value"], &json["top1"]["high"]);
    assert!(low.as_f64() < value.as_f64() && value.as_f64() < high.as_f64());
    assert_eq!(json["faults"], serde_json::Value::Null);
    // The float model runs, too, and without its data's labels in other order.
    let float = folder.run("evaluate m.onnx --data data --scale 0.01 --json").expect(0).json();
    assert_eq!((&float["pictures"], &float["classes"]), (&json["pictures"], &json["classes"]));
}

#[test]
fn neither_batch_nor_threads_nor_kernels_change_an_integer() {
    let folder = prepared();
    let faults = "--faults f.toml --seed 5";
    let clean = trace(&folder, "--threads 1");
    let struck = trace(&folder, &format!("--threads 1 {faults}"));
    assert_ne!(clean, struck);
    assert_ne!(struck, trace(&folder, "--faults f.toml --seed 6"));
    for flags in ["--batch 1", "--batch 7 --threads 2", "--threads 3", "--isa scalar"] {
        assert_eq!(trace(&folder, flags), clean, "{flags}");
        assert_eq!(trace(&folder, &format!("{flags} {faults}")), struck, "{flags}");
    }
    let counts = |flags: &str| {
        let json = folder.run(&format!("evaluate q.onnx --data data {faults} --repeats 3 --json {flags}")).expect(0);
        let json = json.json();
        (json["top1"].clone(), json["faults"]["drawn_per_inference"].clone(), json["pictures"].clone())
    };
    assert_eq!(counts("--batch 24"), counts("--batch 5 --threads 2"));
}

#[test]
fn a_rate_of_zero_is_the_clean_processor_and_full_protection_costs_200_percent() {
    let folder = prepared();
    put(&folder, "zero.toml", "[[fault]]\nsites = [\"mul\", \"acc\"]\nkind = \"flip\"\nber = 0.0\nlayers = \"*\"\n");
    assert_eq!(trace(&folder, "--faults zero.toml"), trace(&folder, ""));
    put(&folder, "one.toml", "[[fault]]\nsites = [\"mul\", \"acc\"]\nkind = \"flip\"\ncount = 1\nlayers = \"*\"\n");
    put(&folder, "plan.toml", "vote = \"output\"\n[[protect]]\nlayers = \"*\"\n");
    let json = folder.run("evaluate q.onnx --data data --faults one.toml --tmr plan.toml --json").expect(0).json();
    assert_eq!(json["faults"]["tmr_penalty_percent"], 200.0);
    // One fault in each of three replicas.
    assert_eq!(json["faults"]["expected_total"], 3.0);
    assert_eq!(json["faults"]["drawn_per_inference"], 3.0);
}

#[test]
fn bad_input_gets_one_clear_line_and_leaves_nothing() {
    let folder = prepared();
    put(&folder, "typo.toml", "[[fault]]\nsites = [\"mul\"]\nkind = \"flip\"\nbre = 1e-6\n");
    put(&folder, "layer.toml", "[[fault]]\nsites = [\"mul\"]\nkind = \"flip\"\nber = 1e-6\nlayers = \"conw\"\n");
    fs::create_dir_all(folder.path("empty/test/a")).unwrap();
    fs::create_dir_all(folder.path("empty/test/b")).unwrap();
    fs::copy(folder.path("data/test/a/0.png"), folder.path("empty/test/b/0.png")).unwrap();
    fs::create_dir_all(folder.path("large/test/a")).unwrap();
    image::RgbImage::new(9, 8).save(folder.path("large/test/a/0.png")).unwrap();
    fs::create_dir_all(folder.path("idx")).unwrap();
    fs::write(folder.path("idx/t10k-images-idx3-ubyte"), [0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 8, 0, 0, 0, 8, 1, 2])
        .unwrap();
    fs::write(folder.path("idx/t10k-labels-idx1-ubyte"), [0, 0, 8, 1, 0, 0, 0, 2, 0, 1]).unwrap();
    put(&folder, "taken.npz", "not to be overwritten");
    let cases = [
        ("evaluate q.onnx --data nowhere", 1, "nowhere"),
        ("evaluate q.onnx --data empty", 1, "a"),
        ("evaluate q.onnx --data large", 1, "8x9"),
        ("evaluate q.onnx --data idx", 1, "idx"),
        ("evaluate q.onnx --data data --faults typo.toml", 1, "bre"),
        ("evaluate q.onnx --data data --faults layer.toml", 1, "conw"),
        ("evaluate q.onnx --data data --faults nothing.toml", 1, "nothing.toml"),
        ("evaluate m.onnx --data data --faults f.toml", 1, "quantize"),
        ("inject m.onnx --data data --campaign f.toml -o run", 1, "f.toml"),
        ("evaluate q.onnx --data data --pictures 0", 2, "--pictures"),
        ("evaluate q.onnx --data data --processor chip:7431", 2, "retrain --device"),
        ("evaluate q.onnx --data data --dump nobody -o t2.npz", 1, "nobody"),
        ("evaluate q.onnx --data data --dump all -o taken.npz", 2, "taken.npz"),
        ("evaluate q.onnx --data data --isa abacus", 2, "scalar"),
    ];
    let before = folder.files();
    for (command, status, word) in cases {
        let done = folder.run(command);
        assert_eq!(done.status(), Some(status), "{command}: {}", done.err());
        assert!(done.err().contains(word) && !done.err().contains("panicked"), "{command}: {}", done.err());
    }
    assert_eq!(folder.files(), before);
    assert_eq!(fs::read_to_string(folder.path("taken.npz")).unwrap(), "not to be overwritten");
}

/// Damages the quantised model's initializers whose names contain `name`, and runs it.
fn damaged(folder: &Folder, name: &str, change: impl Fn(&mut chipfit_model::proto::TensorProto)) -> String {
    let mut model = Model::open(&folder.path("q.onnx"), &Limits::default()).unwrap();
    let mut changed = 0;
    for tensor in &mut model.proto.graph.get_or_insert_default().initializer {
        if tensor.name.as_deref().is_some_and(|own| own.contains(name)) {
            change(tensor);
            changed += 1;
        }
    }
    assert!(changed > 0, "no initializer '{name}'");
    model.write(&folder.path("bad.onnx"), Overwrite::Replace).unwrap();
    let done = folder.run("evaluate bad.onnx --data data --scale 0.01");
    assert_eq!(done.status(), Some(1), "{}", done.err());
    assert!(!done.err().contains("panicked"), "{}", done.err());
    done.err()
}

#[test]
fn a_damaged_quantised_model_is_refused_by_name() {
    let folder = prepared();
    let scale = |value: f32| {
        move |tensor: &mut chipfit_model::proto::TensorProto| {
            tensor.float_data.clear();
            tensor.raw_data = Some(value.to_le_bytes().to_vec().into());
        }
    };
    for value in [0.0, f32::NAN, -1.0, f32::INFINITY] {
        let words = damaged(&folder, "x_scale", scale(value));
        assert!(words.contains("scale"), "{value}: {words}");
    }
    let words = damaged(&folder, "b_scale", |tensor| {
        let doubled: Vec<u8> = tensor
            .raw_data
            .iter()
            .flat_map(|raw| raw.chunks_exact(4).collect::<Vec<_>>())
            .flat_map(|four| (2.0 * f32::from_le_bytes(four.try_into().unwrap())).to_le_bytes())
            .collect();
        tensor.raw_data = Some(doubled.into());
    });
    assert!(words.contains("bias") || words.contains("b_scale"), "{words}");
    let words = damaged(&folder, "w_quantized", |tensor| {
        let half = tensor.raw_data.as_ref().map_or(0, |raw| raw.len() / 2);
        tensor.raw_data = Some(vec![0; half].into());
        tensor.data_type = Some(DataType::Int4.code());
    });
    assert!(words.to_lowercase().contains("int4"), "{words}");
}
