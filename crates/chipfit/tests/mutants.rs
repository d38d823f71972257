//! The mutation test: a rewrite that was damaged on its way to the file must never leave one behind.
//!
//! Needs the cargo feature `sabotage`: `cargo test -p chipfit --features sabotage --test mutants`.

mod common;

use chipfit_model::{DataType, build};
use common::{Folder, deconvolution, quantised};

/// Every form that a kind of damage can be done to: the form, then the kinds.
const FLOAT: [(&str, &[&str]); 4] = [
    ("split", &["tap", "phase", "pad", "pad-alone", "bias"]),
    ("rowsplit", &["tap", "phase", "pad", "pad-alone", "bias"]),
    ("fused", &["tap", "phase", "pad", "pad-alone", "bias"]),
    ("zero-pad", &["tap", "phase", "pad-alone", "bias"]),
];
const QUANTISED: [(&str, &[&str]); 3] = [
    ("split", &["tap", "phase", "pad", "pad-alone", "scales"]),
    ("rowsplit", &["tap", "phase", "pad", "pad-alone", "scales"]),
    ("fused", &["tap", "phase", "pad", "pad-alone", "scales", "zero-tap"]),
];

fn check(folder: &Folder, form: &str, kinds: &[&str], failures: &mut Vec<String>, flags: &str) {
    // The same rewrite undamaged is proven: what the mutants die of is their damage.
    let whole = folder.run(&format!("rewrite in.onnx -o whole.onnx --force --form {form} {flags}"));
    if whole.status() != Some(0) {
        failures.push(format!("{form} {flags} undamaged: {}", whole.err()));
    }
    for kind in kinds {
        let done = folder.run(&format!("rewrite in.onnx -o out.onnx --form {form} {flags} --sabotage {kind}"));
        if done.status() != Some(3) || folder.path("out.onnx").exists() {
            let left = folder.files();
            failures.push(format!("{form} {flags} {kind}: status {:?}, {left:?}: {}", done.status(), done.err()));
        }
    }
}

#[test]
fn every_mutant_of_a_float_model_exits_with_3_and_leaves_no_file() {
    let mut failures = Vec::new();
    for channels in [1, 4, 20] {
        let folder = Folder::new();
        folder.put("in.onnx", &deconvolution(channels));
        for (form, kinds) in FLOAT {
            // One channel has one bias, which cannot go to another place unless phases have theirs.
            let kinds: Vec<&str> =
                kinds.iter().filter(|&&k| channels > 1 || !["bias", "phase"].contains(&k)).copied().collect();
            for flags in ["", "--interleave reshape", "--interleave concat", "--crop alignment"] {
                check(&folder, form, &kinds, &mut failures, flags);
            }
        }
        assert_eq!(folder.files(), ["in.onnx", "whole.onnx"], "no temporary file is left either");
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn every_mutant_of_a_quantised_model_exits_with_3_and_leaves_no_file() {
    let mut failures = Vec::new();
    for channels in [2, 5] {
        let folder = Folder::new();
        folder.put("in.onnx", &quantised(channels));
        for (form, kinds) in QUANTISED {
            check(&folder, form, kinds, &mut failures, "");
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn a_slice_that_is_one_off_exits_with_3_and_leaves_no_file() {
    let mut failures = Vec::new();
    let folder = Folder::new();
    // Without pads the output is 15x17: not a multiple of the stride, so that something is cut off.
    let mut model = deconvolution(4);
    let graph = model.proto.graph.as_option_mut().unwrap();
    graph.node[0].attribute.retain(|a| a.name.as_deref() != Some("pads"));
    graph.output[0] = build::value_info("y", DataType::Float, &[1.into(), 4.into(), 15.into(), 17.into()]);
    folder.put("in.onnx", &model);
    for flags in ["--crop slice", "--crop slice --interleave reshape", "--crop slice --interleave concat"] {
        check(&folder, "fused", &["crop"], &mut failures, flags);
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn a_mutant_that_cannot_be_made_is_an_error_of_its_own() {
    let folder = Folder::new();
    folder.put("in.onnx", &deconvolution(4));
    let done = folder.run("rewrite in.onnx -o out.onnx --sabotage scales").expect(1);
    assert!(done.err().contains("nothing in the model to damage"), "{}", done.err());
}

#[test]
fn json_tells_which_node_failed() {
    let folder = Folder::new();
    folder.put("in.onnx", &deconvolution(4));
    let document = folder.run("rewrite in.onnx -o out.onnx --json --sabotage tap").expect(3).json();
    assert_eq!(document["verdict"], "failed");
    assert_eq!(document["output"], serde_json::Value::Null);
    assert_eq!(document["nodes"][0]["proof"]["verdict"], "failed");
    assert!(document["error"].as_str().unwrap().contains("up"));
}
