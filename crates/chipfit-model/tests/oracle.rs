//! Shape inference against onnx.shape_inference and ONNX Runtime, through `tests/oracle/check_shapes.py`.

mod support;

use std::path::PathBuf;
use std::process::Command;

use support::folder;

/// The example `shapes`, which cargo builds along with the tests.
fn shapes_binary() -> PathBuf {
    let mut path = std::env::current_exe().expect("the test's own path");
    path.pop();
    if path.ends_with("deps") {
        path.pop();
    }
    path.join("examples").join(format!("shapes{}", std::env::consts::EXE_SUFFIX))
}

/// Runs the script; where there is no Python to run it, says so aloud.
fn check(arguments: &[PathBuf]) {
    let Some(python) = std::env::var_os("CHIPFIT_PYTHON") else {
        eprintln!("SKIPPED: set CHIPFIT_PYTHON to a python with onnx, onnxruntime and numpy; nothing was compared");
        return;
    };
    let binary = shapes_binary();
    assert!(binary.is_file(), "no {}: build it with `cargo build --examples`", binary.display());
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/oracle/check_shapes.py");
    let done = Command::new(python)
        .arg(script)
        .arg("--shapes-binary")
        .arg(binary)
        .args(arguments)
        .output()
        .expect("the interpreter starts");
    let said = format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{said}");
    eprintln!("{said}");
}

#[test]
fn node_tests_have_the_shapes_of_their_stored_outputs() {
    let Some(node) = folder("CHIPFIT_ONNX_TESTDATA", "node") else { return };
    check(&["--node-tests".into(), node.parent().expect("inside the test data").to_owned()]);
}

#[test]
fn real_models_have_the_shapes_that_onnx_runtime_makes() {
    let mut arguments: Vec<PathBuf> = Vec::new();
    for models in [folder("CHIPFIT_SHARED", "models"), folder("CHIPFIT_DATA", "")].into_iter().flatten() {
        arguments.extend(["--models".into(), models]);
    }
    if !arguments.is_empty() {
        check(&arguments);
    }
}
