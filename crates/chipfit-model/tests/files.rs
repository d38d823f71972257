//! Files in and out: round trips of real and test models, external data, and writing whole or not at all.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use chipfit_model::build::node;
use chipfit_model::onnx::{Overwrite, make_external};
use chipfit_model::proto::{StringStringEntryProto, TensorProto, tensor_proto};
use chipfit_model::{ConstTensor, DataType, Index, Limits, Model, ReadError, TensorError, WriteError};
use support::{folder, graph, model, onnx_files, typed_floats};

/// Every file must come back byte for byte, or at least decode to the same message.
fn round_trips(files: &[PathBuf]) {
    let (mut identical, mut faults) = (0, Vec::new());
    for path in files {
        let bytes = fs::read(path).expect("a readable file");
        match Model::from_bytes(bytes.clone().into(), &Limits::default()) {
            Err(error) => faults.push(format!("{}: {error}", path.display())),
            Ok(model) => {
                let written = model.to_bytes().expect("encodes");
                if written == bytes {
                    identical += 1;
                } else if Model::from_bytes(written.into(), &Limits::default()).map(|m| m.proto).ok()
                    != Some(model.proto)
                {
                    faults.push(format!("{}: comes back different", path.display()));
                }
            }
        }
    }
    eprintln!("{identical} of {} files came back byte for byte", files.len());
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
    // An encoder that reorders or drops fields would show here.
    assert!(identical * 100 >= files.len() * 99, "only {identical} of {} byte for byte", files.len());
}

#[test]
fn onnx_test_data_comes_back() {
    let Some(folder) = folder("CHIPFIT_ONNX_TESTDATA", "node") else { return };
    let files = onnx_files(folder.parent().expect("inside the test data"));
    assert!(files.len() > 1000, "only {} files", files.len());
    round_trips(&files);
}

#[test]
fn real_models_come_back() {
    let mut files = Vec::new();
    if let Some(models) = folder("CHIPFIT_SHARED", "models") {
        files.extend(onnx_files(&models));
    }
    if let Some(data) = folder("CHIPFIT_DATA", "") {
        let own = fs::read_dir(data).expect("a readable folder").map(|e| e.expect("a readable entry").path());
        files.extend(own.filter(|p| p.extension().is_some_and(|e| e == "onnx")));
    }
    round_trips(&files);
}

#[test]
fn unknown_fields_survive() {
    let m = model(graph(&[node("Relu", "", &["x"], &["y"], Vec::new())], &["x"], &["y"]));
    let mut bytes = m.to_bytes().expect("encodes");
    // Field 1000, length-delimited, three bytes; field 1001, varint.
    bytes.extend([0xc2, 0x3e, 3, b'a', b'b', b'c', 0xc8, 0x3e, 42]);
    let read = Model::from_bytes(bytes.clone().into(), &Limits::default()).expect("unknown fields are legal");
    assert_eq!(read.to_bytes().expect("encodes"), bytes);
}

/// A folder with `model.onnx`, whose tensor `w` lies in `weights/w.bin` from byte 4 on.
fn external_model(folder: &Path) -> Model {
    fs::create_dir_all(folder.join("weights")).expect("a writable folder");
    let data: Vec<u8> = [9.0f32, 1.0, 2.0, 3.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    fs::write(folder.join("weights/w.bin"), data).expect("a writable folder");
    let mut g = graph(&[node("Add", "", &["x", "w"], &["y"], Vec::new())], &["x"], &["y"]);
    let mut tensor = ConstTensor::from_f32(vec![3], &[0.0; 3]).expect("three elements").to_proto("w");
    make_external(&mut tensor, "weights/w.bin", 4, 12);
    g.initializer.push(tensor);
    let mut m = model(g);
    m.write(&folder.join("model.onnx"), Overwrite::Never).expect("writes");
    m.folder = Some(folder.to_owned());
    m
}

fn floats(m: &Model) -> Vec<f64> {
    m.tensor(&m.graph().initializer[0]).expect("readable").to_f64_vec().expect("floats")
}

#[test]
fn external_data_is_read_at_its_offset() {
    let work = tempfile::tempdir().expect("a temporary folder");
    external_model(work.path());
    let m = Model::open(&work.path().join("model.onnx"), &Limits::default()).expect("a model");
    assert_eq!(floats(&m), [1.0, 2.0, 3.0]);
    let in_memory = Model { proto: m.proto.clone(), folder: None };
    let error = in_memory.tensor(&m.graph().initializer[0]).expect_err("no folder, no data");
    assert!(matches!(error, TensorError::External { .. }), "{error}");
}

#[test]
fn writing_elsewhere_takes_the_data_along() {
    let work = tempfile::tempdir().expect("a temporary folder");
    let (here, there) = (work.path().join("here"), work.path().join("there"));
    fs::create_dir_all(&there).expect("a writable folder");
    let m = external_model(&here);
    m.write(&there.join("out.onnx"), Overwrite::Never).expect("writes");
    let copy = Model::open(&there.join("out.onnx"), &Limits::default()).expect("a model");
    assert_eq!(floats(&copy), [1.0, 2.0, 3.0]);
    assert_eq!(copy.proto, m.proto);
    // The same bytes again are no conflict for the data, but the model itself is not replaced unasked.
    let error = m.write(&there.join("out.onnx"), Overwrite::Never).expect_err("exists");
    assert!(matches!(error, WriteError::Exists { .. }), "{error}");
    m.write(&there.join("second.onnx"), Overwrite::Never).expect("the data is there already");
    // Data of another length under the same name is somebody else's.
    fs::write(there.join("weights/w.bin"), b"other").expect("writable");
    let error = m.write(&there.join("third.onnx"), Overwrite::Never).expect_err("foreign data");
    assert!(matches!(error, WriteError::Exists { .. }), "{error}");
    assert!(!there.join("third.onnx").exists(), "nothing half-written is left");
    assert_eq!(fs::read(there.join("weights/w.bin")).expect("readable"), b"other");
    m.write(&there.join("third.onnx"), Overwrite::Replace).expect("replacing was asked for");
    assert_eq!(floats(&Model::open(&there.join("third.onnx"), &Limits::default()).expect("a model")), [1.0, 2.0, 3.0]);
}

#[test]
fn a_model_is_not_written_over_its_own_data() {
    let work = tempfile::tempdir().expect("a temporary folder");
    let mut m = external_model(work.path());
    fs::copy(work.path().join("weights/w.bin"), work.path().join("w.bin")).expect("copies");
    let tensor = &mut m.proto.graph.as_option_mut().expect("a graph").initializer[0];
    make_external(tensor, "./w.bin", 4, 12);
    let there = tempfile::tempdir().expect("a temporary folder");
    for folder in [work.path(), there.path()] {
        let error = m.write(&folder.join("w.bin"), Overwrite::Replace).expect_err("its own data");
        assert!(matches!(error, WriteError::OverData { .. }), "{error}");
    }
    assert_eq!(floats(&m), [1.0, 2.0, 3.0]);
}

#[test]
fn a_failed_write_leaves_nothing() {
    let work = tempfile::tempdir().expect("a temporary folder");
    let m = model(graph(&[node("Relu", "", &["x"], &["y"], Vec::new())], &["x"], &["y"]));
    let missing = work.path().join("missing/out.onnx");
    assert!(matches!(m.write(&missing, Overwrite::Never), Err(WriteError::Io { .. })));
    // The target is a folder: renaming onto it fails after the temporary file was written.
    let taken = work.path().join("taken.onnx");
    fs::create_dir(&taken).expect("a writable folder");
    assert!(matches!(m.write(&taken, Overwrite::Replace), Err(WriteError::Io { .. })));
    let left: Vec<_> = fs::read_dir(work.path()).expect("readable").map(|e| e.expect("readable").file_name()).collect();
    assert_eq!(left, ["taken.onnx"], "temporary files were left behind");
}

/// Replaces the entries of `external_data`.
fn with_entries(mut tensor: TensorProto, entries: &[(&str, &str)]) -> TensorProto {
    let entry = |(key, value): &(&str, &str)| StringStringEntryProto {
        key: Some((*key).to_owned()),
        value: Some((*value).to_owned()),
        ..StringStringEntryProto::default()
    };
    tensor.external_data = entries.iter().map(entry).collect();
    tensor
}

#[test]
fn external_data_outside_the_folder_is_refused() {
    let work = tempfile::tempdir().expect("a temporary folder");
    let inside = work.path().join("inside");
    let m = external_model(&inside);
    fs::write(work.path().join("secret.bin"), [0u8; 16]).expect("writable");
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("../secret.bin", inside.join("link.bin")).expect("a link");
        std::os::unix::fs::symlink("..", inside.join("up")).expect("a link");
    }
    let absolute = work.path().join("secret.bin").to_string_lossy().into_owned();
    let tensor = &m.graph().initializer[0];
    for location in
        ["../secret.bin", "weights/../../secret.bin", &absolute, "link.bin", "up/secret.bin", "", ".", "weights"]
    {
        let hostile = with_entries(tensor.clone(), &[("location", location), ("length", "12")]);
        let error = m.tensor(&hostile).expect_err(location);
        assert!(matches!(error, TensorError::External { .. }), "{location}: {error}");
    }
    // What a link inside leads to inside is fine.
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("weights/w.bin", inside.join("alias.bin")).expect("a link");
        let alias = with_entries(tensor.clone(), &[("location", "alias.bin"), ("offset", "4"), ("length", "12")]);
        assert!(m.tensor(&alias).is_ok());
    }
    // Nor may writing carry such a file along.
    let mut escaping = m.clone();
    escaping.proto.graph.as_option_mut().expect("a graph").initializer[0] =
        with_entries(tensor.clone(), &[("location", "../secret.bin")]);
    let there = work.path().join("there");
    fs::create_dir(&there).expect("a writable folder");
    let error = escaping.write(&there.join("out.onnx"), Overwrite::Never).expect_err("escapes");
    assert!(matches!(error, WriteError::Tensor(TensorError::External { .. })), "{error}");
    #[cfg(unix)]
    {
        escaping.proto.graph.as_option_mut().expect("a graph").initializer[0] =
            with_entries(tensor.clone(), &[("location", "link.bin")]);
        let error = escaping.write(&there.join("out.onnx"), Overwrite::Never).expect_err("a link that escapes");
        assert!(matches!(error, WriteError::Tensor(TensorError::External { .. })), "{error}");
        assert!(!there.join("link.bin").exists());
    }
    assert!(!there.join("out.onnx").exists());
}

#[test]
fn wrong_lengths_and_numbers_of_external_data_are_errors() {
    let work = tempfile::tempdir().expect("a temporary folder");
    let m = external_model(work.path());
    let tensor = &m.graph().initializer[0];
    let location = ("location", "weights/w.bin");
    let cases: &[&[(&str, &str)]] = &[
        &[],
        &[location, ("length", "8")],
        &[location, ("offset", "8"), ("length", "12")],
        &[location, ("offset", "18446744073709551615")],
        &[location, ("offset", "-1")],
        &[location, ("length", "many")],
        &[("location", "weights/missing.bin")],
    ];
    for entries in cases {
        assert!(m.tensor(&with_entries(tensor.clone(), entries)).is_err(), "{entries:?}");
    }
    // A shape that asks for more than the file has is judged before anything is reserved.
    let mut huge = tensor.clone();
    huge.dims = vec![1 << 40];
    assert!(m.tensor(&with_entries(huge, &[location])).is_err());
}

#[test]
fn typed_fields_and_raw_data_hold_the_same() {
    let typed = |dtype: DataType| TensorProto {
        name: Some("t".to_owned()),
        dims: vec![2],
        data_type: Some(dtype.code()),
        ..TensorProto::default()
    };
    let in_int32 = |dtype, int32_data: &[i32]| TensorProto { int32_data: int32_data.to_vec(), ..typed(dtype) };
    let cases: Vec<(TensorProto, Vec<u8>)> = vec![
        (typed_floats("t", 2), [0.5f32.to_le_bytes(), 0.5f32.to_le_bytes()].concat()),
        (TensorProto { double_data: vec![1.0, -2.0], ..typed(DataType::Double) }, {
            [1.0f64.to_le_bytes(), (-2.0f64).to_le_bytes()].concat()
        }),
        (TensorProto { int64_data: vec![-1, 1 << 40], ..typed(DataType::Int64) }, {
            [(-1i64).to_le_bytes(), (1i64 << 40).to_le_bytes()].concat()
        }),
        (TensorProto { uint64_data: vec![u64::MAX, 3], ..typed(DataType::Uint64) }, {
            [u64::MAX.to_le_bytes(), 3u64.to_le_bytes()].concat()
        }),
        (TensorProto { uint64_data: vec![u64::from(u32::MAX), 3], ..typed(DataType::Uint32) }, {
            [u32::MAX.to_le_bytes(), 3u32.to_le_bytes()].concat()
        }),
        (in_int32(DataType::Int32, &[-7, 8]), [(-7i32).to_le_bytes(), 8i32.to_le_bytes()].concat()),
        (in_int32(DataType::Int16, &[-7, 8]), [(-7i16).to_le_bytes(), 8i16.to_le_bytes()].concat()),
        (in_int32(DataType::Int8, &[-7, 8]), vec![249, 8]),
        (in_int32(DataType::Uint8, &[249, 8]), vec![249, 8]),
        (in_int32(DataType::Bool, &[1, 0]), vec![1, 0]),
        // Half precision: 1.0 and -2.0 as bit patterns.
        (in_int32(DataType::Float16, &[0x3c00, 0xc000]), vec![0x00, 0x3c, 0x00, 0xc0]),
        (in_int32(DataType::Bfloat16, &[0x3f80, 0xc000]), vec![0x80, 0x3f, 0x00, 0xc0]),
        // Two to a byte, a byte to an int32.
        (in_int32(DataType::Int4, &[0x2f]), vec![0x2f]),
    ];
    for (tensor, bytes) in cases {
        let read = ConstTensor::from_proto(&tensor, None).expect("a valid tensor");
        assert_eq!(read.bytes().as_ref(), bytes, "{:?}", read.dtype());
        let raw = read.to_proto("t");
        assert_eq!(ConstTensor::from_proto(&raw, None).expect("a valid tensor"), read);
        // One element too many or too few is an error in either form.
        for dims in [vec![9], vec![0], vec![-2], vec![i64::MAX, 4]] {
            let wrong = TensorProto { dims, ..tensor.clone() };
            assert!(ConstTensor::from_proto(&wrong, None).is_err(), "{:?} {:?}", read.dtype(), wrong.dims);
        }
    }
}

#[test]
fn strings_and_unknown_types_are_unsupported_not_wrong() {
    for code in [0, 8, 99, -1] {
        let tensor = TensorProto { data_type: Some(code), ..typed_floats("t", 2) };
        let error = ConstTensor::from_proto(&tensor, None).expect_err("no plain bits");
        assert!(matches!(error, TensorError::UnsupportedType { .. }), "{code}: {error}");
    }
}

#[test]
fn a_file_over_the_limit_is_not_read() {
    let work = tempfile::tempdir().expect("a temporary folder");
    let path = work.path().join("model.onnx");
    fs::write(&path, vec![0u8; 100]).expect("writable");
    let limits = Limits { file_bytes: 99, ..Limits::default() };
    assert!(matches!(Model::open(&path, &limits), Err(ReadError::TooLong { bytes: 100, limit: 99, .. })));
    assert!(matches!(Model::open(&work.path().join("none.onnx"), &limits), Err(ReadError::Io { .. })));
}

#[test]
fn a_model_in_external_data_lists_its_files_once() {
    let work = tempfile::tempdir().expect("a temporary folder");
    let mut m = external_model(work.path());
    let again = m.graph().initializer[0].clone();
    let g = m.proto.graph.as_option_mut().expect("a graph");
    g.initializer.push(TensorProto { name: Some("again".to_owned()), ..again });
    let files: Vec<_> = m.external_files().expect("valid locations").into_iter().collect();
    assert_eq!(files, [Path::new("weights/w.bin")]);
    assert_eq!(Index::new(&m).check(), Ok(()));
    assert_eq!(m.graph().initializer[1].data_location, Some(tensor_proto::DataLocation::EXTERNAL));
}
