//! A library that is absent or is none of ONNX Runtime's is an error with advice, never a panic. A process opens
//! one library only, so this has its own test program.

use std::fs;

use chipfit_run::engine::{EngineError, OnnxRuntime, Places};

#[test]
fn a_file_that_is_no_library_is_refused_with_advice() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("libonnxruntime.so");
    fs::write(&path, b"this is text").unwrap();
    let places = [
        Places { library: Some(path), ..Places::default() },
        Places { library: Some(folder.path().to_owned()), ..Places::default() },
        Places { library: Some(folder.path().join("nowhere.so")), ..Places::default() },
        Places { python: Some(folder.path().join("no-python")), ..Places::default() },
        Places::default(),
    ];
    for places in places {
        let error = OnnxRuntime::find(&places).err().unwrap();
        assert!(matches!(error, EngineError::NotFound { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("ORT_DYLIB_PATH") && text.contains("onnxruntime"), "{text}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_library_of_something_else_is_refused() {
    // The C library is there on every Linux machine and exports nothing of ONNX Runtime.
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let mut files = maps.lines().filter_map(|line| line.split_whitespace().nth(5));
    let Some(library) = files.find(|f| f.contains("libc.so") || f.contains("libc-") || f.contains("libgcc_s")) else {
        return;
    };
    let error = OnnxRuntime::open(library.as_ref()).err().unwrap();
    assert!(matches!(&error, EngineError::NotFound { why, .. } if why.contains("OrtGetApiBase")), "{error}");
}
