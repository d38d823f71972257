//! The command as scripts see it: exit status, files that appear or do not, JSON documents.

mod common;

use std::process::Stdio;

use chipfit_model::onnx::make_external;
use common::{Done, Folder, assert_keys, count, deconvolution, deconvolution_on, quantised, read, relu};

/// The keys that scripts may rely on, of a node in the documents of `rewrite` and `inspect`.
const NODE_KEYS: [&str; 17] = [
    "name",
    "op",
    "form",
    "interleave",
    "kernel",
    "strides",
    "dilations",
    "group",
    "pads",
    "output_padding",
    "macs_before",
    "macs_after",
    "macs_zero_pad",
    "params_before",
    "params_after",
    "proof",
    "reason",
];

fn folder_with_model() -> Folder {
    let folder = Folder::new();
    folder.put("in.onnx", &deconvolution(4));
    folder
}

#[test]
fn wrong_usage_exits_with_2_and_writes_nothing() {
    let folder = folder_with_model();
    folder.put("out.onnx", &relu());
    let before = std::fs::read(folder.path("out.onnx")).unwrap();
    let cases = [
        "",
        "rewrites",
        "rewrite",
        "rewrite in.onnx",
        "rewrite in.onnx -o out.onnx",
        "rewrite in.onnx -o in.onnx",
        "rewrite in.onnx -o . --force",
        "rewrite in.onnx -o new.onnx --form best",
        "rewrite in.onnx -o new.onnx --form auto --tune onnxruntime",
        "rewrite in.onnx -o new.onnx --interleave zip",
        "rewrite in.onnx -o new.onnx --max-channels 0",
        "rewrite in.onnx -o new.onnx --only nobody",
        "rewrite in.onnx -o new.onnx --keep nobody",
        "rewrite in.onnx -o new.onnx --target nowhere.toml",
        "rewrite in.onnx -o new.onnx --input x",
        "rewrite in.onnx -o new.onnx --input x:1x3",
        "rewrite in.onnx -o new.onnx --input z:1x3x6x7",
        "rewrite in.onnx -o new.onnx --input x:1x3x6x7 --input x:1x3x6x7",
        "rewrite in.onnx -o new.onnx --verify 0",
        "rewrite in.onnx -o new.onnx --verify 2 --no-verify",
        "rewrite in.onnx -o new.onnx --tune tflite",
        "inspect in.onnx --input z:1",
        "compare in.onnx",
        "compare in.onnx in.onnx --input x:2",
        "compare in.onnx in.onnx --runtime tflite",
        "zoo",
        "zoo dcgan",
        "zoo unknown -o new.onnx",
        "zoo lenet5 -o out.onnx",
        "zoo lenet5 -o new.onnx --batch 0",
        "zoo lenet5 -o new.onnx --opset 5",
    ];
    for case in cases {
        let done = folder.run(case).expect(2);
        assert!(!done.err().is_empty(), "{case}");
        assert_eq!(folder.files(), ["in.onnx", "out.onnx"], "{case}");
    }
    assert_eq!(std::fs::read(folder.path("out.onnx")).unwrap(), before, "the file in the way is untouched");
}

#[test]
fn faults_of_files_exit_with_1_in_one_line_that_names_the_file() {
    let folder = folder_with_model();
    std::fs::write(folder.path("text.onnx"), "no model at all").unwrap();
    std::fs::write(folder.path("bad.toml"), "name = 3").unwrap();
    std::fs::write(folder.path("empty.onnx"), "").unwrap();
    let cases = [
        ("rewrite absent.onnx -o out.onnx", "absent.onnx"),
        ("rewrite text.onnx -o out.onnx", "text.onnx"),
        ("rewrite empty.onnx -o out.onnx", "empty.onnx"),
        ("rewrite . -o out.onnx", "."),
        ("rewrite in.onnx -o nowhere/out.onnx", "nowhere"),
        ("rewrite in.onnx -o out.onnx --target bad.toml", "bad.toml"),
        ("inspect text.onnx", "text.onnx"),
        ("compare in.onnx text.onnx", "text.onnx"),
        ("compare in.onnx in.onnx --image text.onnx", "text.onnx"),
        ("zoo lenet5 -o out.onnx --weights absent", "absent"),
    ];
    for (case, culprit) in cases {
        let done = folder.run(case).expect(1);
        let lines: Vec<String> = done.err().lines().map(str::to_owned).collect();
        assert_eq!(lines.len(), 1, "{case}: {lines:?}");
        assert!(lines[0].starts_with("error: ") && lines[0].contains(culprit), "{case}: {lines:?}");
        assert!(!folder.path("out.onnx").exists(), "{case}");
    }
}

#[test]
fn json_of_a_failure_is_still_one_document() {
    let folder = Folder::new();
    let document = folder.run("rewrite absent.onnx -o out.onnx --json").expect(1).json();
    assert_eq!(document["status"], 1);
    assert!(document["error"].as_str().unwrap().contains("absent.onnx"));
}

#[test]
fn a_rewrite_replaces_every_node_and_reports_it() {
    let folder = folder_with_model();
    for (form, channels) in [("auto", 4), ("split", 4), ("rowsplit", 4), ("fused", 20), ("zero-pad", 4), ("auto", 20)] {
        folder.put("in.onnx", &deconvolution(channels));
        let command = format!("rewrite in.onnx -o out.onnx --force --form {form} --seed 7 --verify 2 --json");
        let document = folder.run(&command).expect(0).json();
        assert_keys(
            &document,
            &[
                "nodes",
                "macs_before",
                "macs_after",
                "deconv_macs_before",
                "deconv_macs_after",
                "output",
                "seed",
                "command",
            ],
        );
        let node = &document["nodes"][0];
        assert_keys(node, &NODE_KEYS);
        assert_keys(&node["proof"], &["max_abs", "max_rel", "inputs"]);
        let form = match (form, channels) {
            ("auto", 4) => "fused",
            ("auto", _) => "split",
            (form, _) => form,
        };
        assert_eq!(node["form"], form);
        assert_eq!(node["name"], "up");
        assert_eq!(node["proof"]["inputs"], 2);
        assert_eq!(node["macs_before"], 6 * 7 * 25 * 3 * channels);
        assert_eq!(document["verdict"], "proven");
        assert_eq!(document["seed"], 7);
        assert_eq!(document["output"], "out.onnx");
        assert_eq!(document["deconv_macs_before"], node["macs_before"]);
        assert_eq!(document["macs_after"], document["deconv_macs_after"]);
        assert!(document["whole_model"]["outputs"][0]["max_rel"].as_f64().unwrap() < 1e-5);
        let written = read(&folder.path("out.onnx"));
        assert_eq!((count(&written, "ConvTranspose"), count(&read(&folder.path("in.onnx")), "ConvTranspose")), (0, 1));
    }
}

#[test]
fn the_same_command_gives_the_same_bytes() {
    let folder = folder_with_model();
    folder.run("rewrite in.onnx -o a.onnx").expect(0);
    folder.run("rewrite in.onnx -o b.onnx").expect(0);
    folder.run("zoo lenet5 -o c.onnx --seed 3").expect(0);
    folder.run("zoo lenet5 -o d.onnx --seed 3").expect(0);
    folder.run("zoo lenet5 -o e.onnx --seed 4").expect(0);
    let bytes = |name: &str| std::fs::read(folder.path(name)).unwrap();
    assert_eq!(bytes("a.onnx"), bytes("b.onnx"));
    assert_eq!(bytes("c.onnx"), bytes("d.onnx"));
    assert_ne!(bytes("c.onnx"), bytes("e.onnx"));
}

#[test]
fn quantised_nodes_are_proven_exactly() {
    let folder = Folder::new();
    folder.put("in.onnx", &quantised(5));
    let document = folder.run("rewrite in.onnx -o out.onnx --json").expect(0).json();
    let proof = &document["nodes"][0]["proof"];
    assert_eq!((&proof["verdict"], &proof["max_abs"]), (&"proven".into(), &0.0.into()));
    assert_eq!((&proof["index_algebra"], &proof["quantised_outputs"]), (&true.into(), &true.into()));
}

#[test]
fn force_replaces_even_the_model_itself() {
    let folder = folder_with_model();
    folder.run("rewrite in.onnx -o in.onnx --force").expect(0);
    assert_eq!(count(&read(&folder.path("in.onnx")), "ConvTranspose"), 0);
    assert_eq!(folder.files(), ["in.onnx"]);
    let again = folder.run("rewrite in.onnx -o out.onnx --json").expect(0).json();
    assert_eq!(again["verdict"], "nothing to prove");
}

#[test]
fn a_model_with_nothing_to_rewrite_comes_back_the_same() {
    let folder = Folder::new();
    folder.put("in.onnx", &relu());
    folder.run("rewrite in.onnx -o out.onnx").expect(0);
    assert_eq!(std::fs::read(folder.path("in.onnx")).unwrap(), std::fs::read(folder.path("out.onnx")).unwrap());
}

#[test]
fn kept_nodes_stay_and_say_why() {
    let folder = folder_with_model();
    let document = folder.run("rewrite in.onnx -o out.onnx --keep up --json").expect(0).json();
    assert_eq!(document["nodes"][0]["form"], "kept");
    assert!(document["nodes"][0]["reason"].as_str().unwrap().contains("--keep"));
    assert_eq!(document["deconv_macs_after"], document["deconv_macs_before"]);
    assert_eq!(document["deconv_macs_zero_pad"], 12 * 14 * 25 * 3 * 4);
    assert_eq!(count(&read(&folder.path("out.onnx")), "ConvTranspose"), 1);
    // The first output names a node as well as its name does.
    let document = folder.run("rewrite in.onnx -o out2.onnx --only y --json").expect(0).json();
    assert_eq!(document["nodes"][0]["form"], "fused");
}

#[test]
fn no_verify_says_that_nothing_was_proven() {
    let folder = folder_with_model();
    let done = folder.run("rewrite in.onnx -o out.onnx --no-verify").expect(0);
    assert!(done.out().contains("NOT PROVEN"), "{}", done.out());
    let document = folder.run("rewrite in.onnx -o out2.onnx --no-verify --json").expect(0).json();
    assert_eq!(document["verdict"], "not proven");
    assert!(document["nodes"][0]["proof"].is_null());
}

#[test]
fn approximate_forms_are_flagged() {
    let folder = Folder::new();
    folder.put("in.onnx", &deconvolution_on(16, 20, 4));
    for form in ["shi", "chang"] {
        let done = folder.run(&format!("rewrite in.onnx -o {form}.onnx --form {form} --json")).expect(0);
        assert_eq!(done.json()["verdict"], "not preserved");
        assert!(done.err().contains("does not preserve the result"), "{}", done.err());
        assert!(done.json()["whole_model"]["outputs"][0]["ssim"].is_number(), "{}", done.out());
        assert_eq!(done.json()["nodes"][0]["proof"]["verdict"], "not judged");
    }
}

#[test]
fn weights_in_a_data_file_are_never_overwritten() {
    let folder = Folder::new();
    let mut model = deconvolution(4);
    let graph = model.proto.graph.as_option_mut().unwrap();
    let raw = graph.initializer[0].raw_data.take().unwrap();
    std::fs::write(folder.path("weights.bin"), &raw).unwrap();
    make_external(&mut graph.initializer[0], "weights.bin", 0, raw.len() as u64);
    folder.put("in.onnx", &model);
    let done = folder.run("rewrite in.onnx -o weights.bin --force").expect(2);
    assert!(done.err().contains("weights lie in this file"), "{}", done.err());
    assert_eq!(std::fs::read(folder.path("weights.bin")).unwrap(), raw);
    folder.run("rewrite in.onnx -o out.onnx").expect(0);
    // Cut short, the data file is at fault, and nothing is written.
    std::fs::write(folder.path("weights.bin"), &raw[..raw.len() / 2]).unwrap();
    folder.run("inspect in.onnx").expect(0);
    let done = folder.run("rewrite in.onnx -o out2.onnx --json");
    let kept = done.status() == Some(0) && done.json()["nodes"][0]["form"] == "kept";
    assert!(kept || done.status() == Some(1), "{}", done.err());
    assert_eq!(folder.path("out2.onnx").exists(), kept);
}

#[test]
fn inspect_shows_nodes_and_savings_and_its_json_has_every_key() {
    let folder = folder_with_model();
    let text = folder.run("inspect in.onnx").expect(0).out();
    for word in ["ConvTranspose", "float[1,3,6,7]", "fused", "12.60 k", "opset 17"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    let document = folder.run("inspect in.onnx --form split --json").expect(0).json();
    assert_keys(
        &document,
        &[
            "ir_version",
            "opsets",
            "producer",
            "inputs",
            "outputs",
            "nodes",
            "operators",
            "macs",
            "parameters",
            "deconvolutions",
        ],
    );
    assert_keys(&document["nodes"][0], &["op", "name", "inputs", "outputs", "macs", "parameters"]);
    assert_keys(&document["deconvolutions"][0], &NODE_KEYS);
    assert_eq!(document["deconvolutions"][0]["form"], "split");
    assert_eq!(document["nodes"][0]["outputs"][0]["dims"], serde_json::json!([1, 4, 12, 14]));
    assert_eq!(folder.files(), ["in.onnx"]);
}

#[test]
fn targets_decide_by_name_and_by_file() {
    let folder = folder_with_model();
    let document = folder.run("rewrite in.onnx -o out.onnx --target no-depth-to-space --json").expect(0).json();
    assert_ne!(document["nodes"][0]["interleave"], "depth-to-space");
    assert_eq!(count(&read(&folder.path("out.onnx")), "DepthToSpace"), 0);
}

#[test]
fn compare_measures_and_judges_by_its_thresholds() {
    let folder = folder_with_model();
    folder.run("rewrite in.onnx -o same.onnx").expect(0);
    let chang = "rewrite in.onnx -o other.onnx --form chang";
    folder.run(chang).expect(0);
    let document = folder.run("compare in.onnx same.onnx --inputs 3 --seed 5 --json").expect(0).json();
    assert_keys(&document, &["runtime", "inputs", "outputs", "seed", "error"]);
    assert_keys(&document["outputs"][0], &["name", "max_abs", "max_rel", "max_steps", "ssim", "runs"]);
    assert_eq!(document["inputs"], serde_json::json!(["seed 5", "seed 6", "seed 7"]));
    assert!(document["outputs"][0]["max_rel"].as_f64().unwrap() < 1e-5);
    folder.run("compare in.onnx same.onnx --max-rel 1e-5 --max-abs 1e-4 --min-ssim 0.999").expect(0);
    folder.run("compare in.onnx in.onnx --max-abs 0 --max-rel 0").expect(0);
    for threshold in ["--max-abs 1e-6", "--max-rel 1e-6", "--min-ssim 0.9999999"] {
        let done = folder.run(&format!("compare in.onnx other.onnx {threshold}")).expect(3);
        assert!(done.err().contains("output 'y'"), "{}", done.err());
        let document = folder.run(&format!("compare in.onnx other.onnx --json {threshold}")).expect(3).json();
        assert!(document["error"].is_string());
    }
    // Other shapes cannot be compared.
    folder.put("small.onnx", &deconvolution(5));
    let done = folder.run("compare in.onnx small.onnx").expect(1);
    assert!(done.err().contains("'y'"), "{}", done.err());
}

#[test]
fn compare_takes_pictures() {
    let folder = folder_with_model();
    folder.run("rewrite in.onnx -o same.onnx").expect(0);
    let picture = image::RgbImage::from_fn(40, 30, |x, y| image::Rgb([x as u8 * 6, y as u8 * 8, 99]));
    picture.save(folder.path("a.png")).unwrap();
    picture.save(folder.path("b.jpg")).unwrap();
    let command = "compare in.onnx same.onnx --image a.png --image b.jpg --mean 104,117,124 --scale 0.02 --bgr --json";
    let document = folder.run(command).expect(0).json();
    assert_eq!(document["inputs"], serde_json::json!(["a.png", "b.jpg"]));
    let runs = document["outputs"][0]["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 2);
    // Another picture is another input: the ranges of the outputs differ.
    assert_ne!(runs[0]["psnr"], runs[1]["psnr"]);
    folder.run("compare in.onnx same.onnx --image a.png --mean 1,2").expect(2);
    folder.put("flat.onnx", &common::model(Vec::new(), Vec::new(), chipfit_model::DataType::Float, &[1, 2, 3], &[1]));
}

#[test]
fn the_zoo_lists_and_writes() {
    let folder = Folder::new();
    let list = folder.run("zoo --list").expect(0).out();
    for name in ["dcgan", "gp-gan", "mobilenet-0.25"] {
        assert!(list.contains(name));
    }
    folder.run("zoo sngan -o a.onnx --batch dynamic --seed 2").expect(0);
    let document = folder.run("inspect a.onnx --json").expect(0).json();
    assert!(document["inputs"][0]["dims"][0].is_string(), "{}", document["inputs"]);
    assert_eq!(document["deconvolutions"].as_array().unwrap().len(), 3);
}

#[test]
fn a_reader_that_goes_away_is_no_fault() {
    let folder = folder_with_model();
    let mut child = folder.command("inspect in.onnx").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let done = Done(child.wait_with_output().unwrap());
    assert_eq!((done.status(), done.err().as_str()), (Some(0), ""));
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_under_standard_output_is_an_error() {
    let folder = folder_with_model();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let done = Done(folder.command("inspect in.onnx").stdout(full).output().unwrap());
    assert_eq!(done.status(), Some(1));
    assert!(done.err().contains("standard output"), "{}", done.err());
}

#[cfg(target_os = "linux")]
#[test]
fn a_file_that_cannot_be_written_to_its_end_leaves_nothing() {
    let folder = folder_with_model();
    // With the signal ignored, a write over the limit fails as one on a full disk does.
    let full = "trap '' XFSZ; ulimit -f 1";
    for command in ["rewrite in.onnx -o out.onnx", "zoo lenet5 -o out.onnx"] {
        let done = folder.run_after(full, command).expect(1);
        assert!(done.err().contains("out.onnx"), "{}", done.err());
        assert_eq!(folder.files(), ["in.onnx"], "{command}");
    }
    // What was there before stays as it was.
    let before = std::fs::read(folder.path("in.onnx")).unwrap();
    folder.run_after(full, "rewrite in.onnx -o in.onnx --force").expect(1);
    assert_eq!((std::fs::read(folder.path("in.onnx")).unwrap(), folder.files()), (before, vec!["in.onnx".to_owned()]));
}

#[test]
fn names_from_a_file_cannot_speak_to_the_terminal() {
    let folder = Folder::new();
    let mut model = deconvolution(4);
    let graph = model.proto.graph.as_option_mut().unwrap();
    graph.node[0].name = Some("up\u{1b}[2J\nfake line".to_owned());
    folder.put("in.onnx", &model);
    let text = folder.run("inspect in.onnx").expect(0).out();
    assert!(!text.contains('\u{1b}') && !text.contains("\nfake"), "{text}");
}

#[test]
fn tuning_without_onnx_runtime_says_what_is_missing() {
    let folder = folder_with_model();
    let done = folder.run("rewrite in.onnx -o out.onnx --tune onnxruntime --onnxruntime nowhere.so").expect(1);
    assert!(done.err().contains("ONNX Runtime") && done.err().contains("nowhere.so"), "{}", done.err());
    assert!(!folder.path("out.onnx").exists());
}

/// Needs ONNX Runtime, which `cargo xtask test` names by CHIPFIT_PYTHON.
#[test]
fn tuning_measures_every_form_and_keeps_the_fastest() {
    if std::env::var_os("CHIPFIT_PYTHON").is_none() {
        eprintln!("SKIPPED: CHIPFIT_PYTHON is not set, so nothing was measured in ONNX Runtime");
        return;
    }
    let folder = Folder::new();
    for (name, model) in [("float.onnx", deconvolution(4)), ("quantised.onnx", quantised(5))] {
        folder.put(name, &model);
        let command = format!("rewrite {name} -o out.onnx --force --tune onnxruntime --json");
        let document = folder.run(&command).expect(0).json();
        let tuned = &document["tuning"][0];
        let candidates = tuned["candidates"].as_array().unwrap();
        let named = |part: &str| candidates.iter().any(|c| c["name"].as_str().unwrap().starts_with(part));
        for form in ["kept", "split/depth-to-space", "rowsplit/", "fused/depth-to-space", "fused/reshape"] {
            assert!(named(form), "{form}: {tuned:#}");
        }
        assert_eq!(tuned["input_shape"], serde_json::json!([1, 3, 6, 7]));
        let best = candidates[0]["name"].as_str().unwrap();
        let node = &document["nodes"][0];
        let form = best.split('/').next().unwrap();
        assert_eq!(node["form"], form, "{tuned:#}");
        if let Some((_, interleave)) = best.split_once('/') {
            assert_eq!(node["interleave"], interleave);
        }
        assert!(node["reason"].as_str().unwrap().contains("measured"), "{node:#}");
    }
}
