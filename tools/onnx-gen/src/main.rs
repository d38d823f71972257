//! The ONNX schema's Rust code, made from `crates/chipfit-model/proto/onnx-ml.proto`.
//!
//! Takes two folders, the .proto file's and the one to write into; a third argument `--check` writes nothing and fails
//! when the folder differs from what would be written. Kept apart from `xtask` because it builds a protobuf compiler.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

const SCHEMA: &str = "onnx-ml.proto";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        [proto, target] => write(&generate(Path::new(proto))?, Path::new(target)),
        [proto, target, "--check"] => check(&generate(Path::new(proto))?, Path::new(target)),
        _ => bail!("usage: onnx-gen PROTO_FOLDER TARGET_FOLDER [--check]"),
    }
}

/// File name to content.
type Files = BTreeMap<String, String>;

fn generate(proto: &Path) -> Result<Files> {
    let out = tempfile::tempdir()?;
    let descriptors = out.path().join("descriptors.bin");
    let set = protox::Compiler::new([proto])?.include_source_info(true).open_file(SCHEMA)?.encode_file_descriptor_set();
    fs::write(&descriptors, set)?;
    // Bytes fields are slices of the file; fields that the schema does not know survive a round trip.
    buffa_build::Config::new()
        .files(&[SCHEMA])
        .descriptor_set(&descriptors)
        .out_dir(out.path())
        .use_bytes_type()
        .generate_views(false)
        .preserve_unknown_fields(true)
        .compile()
        .map_err(|error| anyhow::anyhow!("{error}"))?;
    rust_files(out.path())
}

fn rust_files(folder: &Path) -> Result<Files> {
    let mut files = Files::new();
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path: PathBuf = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.ends_with(".rs") {
            files.insert(name, fs::read_to_string(&path)?);
        }
    }
    Ok(files)
}

fn write(files: &Files, target: &Path) -> Result<()> {
    fs::create_dir_all(target)?;
    for name in rust_files(target)?.keys().filter(|&name| !files.contains_key(name)) {
        fs::remove_file(target.join(name))?;
    }
    for (name, content) in files {
        fs::write(target.join(name), content)?;
    }
    Ok(())
}

fn check(files: &Files, target: &Path) -> Result<()> {
    let there = rust_files(target)?;
    let names = files.keys().chain(there.keys().filter(|&name| !files.contains_key(name)));
    let stale: Vec<&str> = names.filter(|&name| files.get(name) != there.get(name)).map(String::as_str).collect();
    if !stale.is_empty() {
        bail!("stale: {}; run `cargo xtask gen` and commit", stale.join(", "));
    }
    Ok(())
}
