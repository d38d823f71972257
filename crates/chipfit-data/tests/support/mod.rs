//! Small data sets that the tests write themselves.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::fs;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use image::{ImageFormat, Rgb, RgbImage};

/// A folder or file that an environment variable names, or nothing, said loudly.
pub(crate) fn surroundings(variable: &str, inside: &str, what: &str) -> Option<PathBuf> {
    let root = std::env::var_os(variable).map(PathBuf::from);
    // Joining nothing would add a slash.
    let found = root.map(|root| if inside.is_empty() { root } else { root.join(inside) }).filter(|path| path.exists());
    if found.is_none() {
        eprintln!("SKIPPED: {what} (needs {variable}, with {inside:?} in it)");
    }
    found
}

/// A picture whose pixels say where they are and which picture it is.
pub(crate) fn picture(width: u32, height: u32, number: u8) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| Rgb([(x * 7) as u8, (y * 5) as u8, number]))
}

pub(crate) fn png(picture: &RgbImage) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner()
}

pub(crate) fn jpeg(picture: &RgbImage) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, ImageFormat::Jpeg).unwrap();
    bytes.into_inner()
}

/// Writes files (path from the root, content), folders included.
pub(crate) fn write_all(root: &Path, files: &[(&str, Vec<u8>)]) {
    for (name, bytes) in files {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

/// A tar archive of the same.
pub(crate) fn tar(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, bytes.as_slice()).unwrap();
    }
    builder.into_inner().unwrap()
}

/// An IDX file of bytes.
pub(crate) fn idx(dims: &[u32], values: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, dims.len() as u8];
    dims.iter().for_each(|dim| bytes.extend(dim.to_be_bytes()));
    bytes.extend(values);
    bytes
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// An npy file with any header.
pub(crate) fn npy(descr: &str, is_fortran_order: bool, shape: &str, values: &[u8]) -> Vec<u8> {
    let order = if is_fortran_order { "True" } else { "False" };
    let header = format!("{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(values);
    bytes
}

/// An npz file of npy files.
pub(crate) fn npz(members: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in members {
        let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
        zip.start_file(*name, options).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// Two splits of two classes with two pictures each, 4 wide and 3 high.
pub(crate) fn two_classes() -> Vec<(&'static str, Vec<u8>)> {
    let names = [
        "train/cat/b.png",
        "train/cat/a.png",
        "train/ant/1.jpg",
        "train/ant/0.png",
        "test/cat/x.png",
        "test/ant/y.png",
        "test/ant/z.PNG",
    ];
    names
        .into_iter()
        .enumerate()
        .map(|(number, name)| {
            let picture = picture(4, 3, number as u8 * 10);
            (name, if name.ends_with("jpg") { jpeg(&picture) } else { png(&picture) })
        })
        .collect()
}
