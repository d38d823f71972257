//! Broken and hostile data: a typed error that names the file and says what to do; never a panic, a silently smaller
//! set or memory out of proportion.

mod support;

use std::fs;
use std::path::Path;

use chipfit_data::{
    Colour, DataError, DataSet, Layout, Npz, OpenOptions, Preprocess, Resize, Subset, parse_idx, parse_npy,
};
use proptest::prelude::*;
use support::{gzip, idx, jpeg, npy, npz, picture, png, tar, two_classes, write_all};

fn open(path: &Path) -> Result<DataSet, DataError> {
    DataSet::open(path.to_str().unwrap(), &OpenOptions::default())
}

/// The error of a set of these files, as text, which must name `named`.
fn refused(files: &[(&str, Vec<u8>)], named: &str) -> String {
    let root = tempfile::tempdir().unwrap();
    write_all(root.path(), files);
    let error = open(root.path()).unwrap_err().to_string();
    assert!(error.contains(named), "{error:?} does not name {named:?}");
    error
}

fn refused_npz(members: &[(&str, Vec<u8>)]) -> String {
    refused_npz_bytes(&npz(members))
}

fn refused_npz_bytes(bytes: &[u8]) -> String {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("set.npz");
    fs::write(&path, bytes).unwrap();
    let error = open(&path).unwrap_err().to_string();
    assert!(error.contains("set.npz"), "{error}");
    error
}

#[test]
fn folders_without_what_is_needed() {
    let one = || png(&picture(2, 2, 0));
    assert!(refused(&[("notes.txt", vec![1])], "").contains("no pictures"));
    assert!(refused(&[("cat/a.png", one()), ("dog/readme.txt", vec![1])], "'dog'").contains("no pictures"));
    assert!(refused(&[("cat/a.png", one()), ("dog/small/a.png", one())], "dog/small/a.png").contains("depths"));
    assert!(refused(&[("cat/a.png", one()), ("cat/b.webp", one())], "b.webp").contains("convert it"));
    assert!(refused(&[("a/b/c/d/e.png", one()), ("b/b/c/d/e.png", one())], "").contains("too deep"));
    // The split that is asked for is empty, the other is not.
    let error = refused(&[("train/cat/a.png", one()), ("train/dog/a.png", one())], "'test'");
    assert!(error.contains("the set has: train"), "{error}");
    let root = tempfile::tempdir().unwrap();
    assert!(matches!(open(&root.path().join("absent")), Err(DataError::NotFound { .. })));
    assert!(matches!(open(root.path()), Err(DataError::NoPictures { .. })));
    for (name, hint) in [("a.tar.gz", "unpack"), ("a.npy", "savez"), ("a.jpg", "folder"), ("a.parquet", "known are")] {
        let path = root.path().join(name);
        fs::write(&path, b"x").unwrap();
        let error = open(&path).unwrap_err().to_string();
        assert!(error.contains(hint) && error.contains(name), "{error}");
    }
}

#[test]
fn pictures_that_cannot_be_used() {
    let root = tempfile::tempdir().unwrap();
    let whole = jpeg(&picture(64, 48, 9));
    // A PNG that claims 2^31-1 rows: the header is valid, with its checksum.
    let mut giant = png(&picture(2, 2, 0));
    giant[16..24].copy_from_slice(&[0x7f, 0xff, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff]);
    let checksum = crc32(&giant[12..29]);
    giant[29..33].copy_from_slice(&checksum.to_be_bytes());
    let files = [
        ("c/0.jpg", whole[..200].to_vec()),
        ("c/1.png", b"GIF89a".to_vec()),
        ("c/2.png", Vec::new()),
        ("c/3.png", giant),
        ("c/4.jpg", whole.clone()),
        ("c/5.png", png(&picture(600, 1, 0))),
    ];
    write_all(root.path(), &files);
    let set = open(root.path()).unwrap();
    let raw = Preprocess::raw([24, 24], Layout::Nchw, Colour::Rgb);
    for i in 0..4 {
        let error = set.batch([i], &raw).unwrap_err();
        assert!(matches!(error, DataError::BadPicture { .. }), "{i}: {error}");
        assert!(error.to_string().contains(&format!("{i}.")), "{error}");
    }
    let error = set.batch([4], &raw).unwrap_err();
    assert!(matches!(error, DataError::WrongSize { found_height: 48, found_width: 64, height: 24, .. }), "{error}");
    assert!(error.to_string().contains("resize"), "{error}");
    let crop = Preprocess { resize: Resize::Crop, ..raw.clone() };
    assert_eq!(set.batch([4], &crop).unwrap().len(), 24 * 24 * 3);
    // 600x1 would become 14,400x24; from 64 on it would be 38,400x64.
    assert!(set.batch([5], &crop).is_ok());
    let wide = Preprocess { resize_to: Some(64), ..crop };
    assert!(matches!(set.batch([5], &wide), Err(DataError::BadPicture { .. })));
    let mut short = vec![0.0; 7];
    assert!(matches!(set.load(4, &raw, &mut short), Err(DataError::WrongSize { .. } | DataError::WrongBuffer { .. })));
    // A file that goes away after opening.
    fs::remove_file(root.path().join("c/4.jpg")).unwrap();
    assert!(matches!(set.pixels(4), Err(DataError::Io { .. })));
}

/// As PNG wants it (IEEE, reflected).
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |mut crc, byte| {
        crc ^= u32::from(*byte);
        (0..8).for_each(|_| crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()));
        crc
    })
}

#[test]
fn tar_archives_that_lie() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("set.tar");
    let files = two_classes();
    let whole = tar(&files);
    let error_of = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let error = open(&path).unwrap_err();
        assert!(error.to_string().contains("set.tar"), "{error}");
        error.to_string()
    };
    fs::write(&path, &whole).unwrap();
    assert_eq!(open(&path).unwrap().len(), 3);

    // Cut anywhere: never a smaller set.
    for cut in (0..whole.len() - 1024).step_by(256) {
        fs::write(&path, &whole[..cut]).unwrap();
        let error = open(&path).unwrap_err();
        assert!(matches!(error, DataError::Malformed { .. }), "{cut}: {error}");
    }
    assert!(error_of(&gzip(&whole)).contains("gunzip"));
    assert!(error_of(&[7; 4096]).contains("not a readable tar"));
    let twice = tar(&[files[0].clone(), files[0].clone()]);
    assert!(error_of(&twice).contains("twice"));

    // A member that claims 2^62 bytes, in the base-256 form of GNU tar.
    for size in [1u64 << 62, u64::MAX >> 1, whole.len() as u64 * 2] {
        let mut absurd = whole.clone();
        absurd[124..136].copy_from_slice(&[0; 12]);
        absurd[124] = 0x80;
        absurd[128..136].copy_from_slice(&size.to_be_bytes());
        absurd[148..156].copy_from_slice(b"        ");
        let sum: u32 = absurd[..512].iter().map(|byte| u32::from(*byte)).sum();
        absurd[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        assert!(error_of(&absurd).contains("truncated"), "{size}");
    }

    // A picture that is a link would silently be missing.
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    builder.append_link(&mut header, "cat/a.png", "elsewhere.png").unwrap();
    assert!(error_of(&builder.into_inner().unwrap()).contains("link"));
    // An empty class folder.
    let mut builder = tar::Builder::new(Vec::new());
    for name in ["cat/", "dog/"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_size(0);
        header.set_mode(0o755);
        builder.append_data(&mut header, name, &[][..]).unwrap();
    }
    let one = png(&picture(2, 2, 0));
    let mut header = tar::Header::new_gnu();
    header.set_size(one.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, "cat/a.png", one.as_slice()).unwrap();
    assert!(error_of(&builder.into_inner().unwrap()).contains("'dog'"));
}

#[test]
fn idx_files_that_lie() {
    let images = |bytes: Vec<u8>| ("test-images-idx3-ubyte", bytes);
    let labels = |bytes: Vec<u8>| ("test-labels-idx1-ubyte", bytes);
    let good = || (images(idx(&[2, 1, 2], &[1, 2, 3, 4])), labels(idx(&[2], &[0, 1])));
    let with_images = |bytes: Vec<u8>| refused(&[images(bytes), good().1], "test-images");
    let with_labels = |bytes: Vec<u8>| refused(&[good().0, labels(bytes)], "test-labels");
    assert!(with_images(idx(&[2, 1, 2], &[1, 2, 3])).contains("truncated"));
    assert!(with_images(idx(&[2, 1, 2], &[1, 2, 3, 4, 5])).contains("damaged"));
    assert!(with_images(idx(&[u32::MAX, u32::MAX, u32::MAX], &[])).contains("overflow"));
    assert!(with_images(idx(&[u32::MAX, u32::MAX, 1], &[])).contains("cannot hold"));
    assert!(with_images(vec![0, 0, 8]).contains("not an IDX file"));
    assert!(with_images(vec![0, 0, 8, 3, 0, 0]).contains("cut short"));
    assert!(with_images(vec![1, 0, 8, 3]).contains("not an IDX file"));
    assert!(with_images(vec![0, 0, 13, 1, 0, 0, 0, 0]).contains("0x0d"));
    assert!(with_images(idx(&[4], &[1, 2, 3, 4])).contains("three dimensions"));
    assert!(with_images(idx(&[2, 0, 2], &[])).contains("0x2 pixels"));
    assert!(with_labels(idx(&[3], &[0, 1, 2])).contains("3 labels for 2 pictures"));
    assert!(with_labels(idx(&[2, 1], &[0, 1])).contains("one dimension"));
    assert!(refused(&[images(idx(&[0, 1, 2], &[])), labels(idx(&[0], &[]))], "").contains("no pictures"));

    // Packed: damaged, cut, and a header that no stream of this length can fulfil.
    let packed = |bytes: Vec<u8>| {
        refused(
            &[("test-images-idx3-ubyte.gz", bytes), ("test-labels-idx1-ubyte.gz", gzip(&idx(&[2], &[0, 1])))],
            "images",
        )
    };
    let whole = gzip(&idx(&[2, 1, 2], &[1, 2, 3, 4]));
    assert!(packed(whole[..whole.len() - 9].to_vec()).contains("fetch it again"));
    let mut wrong_sum = whole.clone();
    let at = wrong_sum.len() - 6;
    wrong_sum[at] ^= 1;
    assert!(packed(wrong_sum).contains("fetch it again"));
    assert!(packed(b"plain".to_vec()).contains("reading failed"));
    assert!(packed(gzip(&idx(&[60_000, 28, 28], &[0; 100]))).contains("cannot hold"));
    // A bomb of a header that agrees with its content is stopped by the limit.
    let root = tempfile::tempdir().unwrap();
    let bomb = gzip(&idx(&[1000, 100, 100], &vec![0; 10_000_000]));
    write_all(
        root.path(),
        &[("test-images-idx3-ubyte.gz", bomb), ("test-labels-idx1-ubyte", idx(&[1000], &[0; 1000]))],
    );
    let options = OpenOptions { max_memory_bytes: 1 << 20, ..OpenOptions::default() };
    let error = DataSet::open(root.path().to_str().unwrap(), &options).unwrap_err().to_string();
    assert!(error.contains("exceed the limit"), "{error}");
}

#[test]
fn npz_files_that_lie() {
    let x = || npy("'|u1'", false, "(2, 1, 2)", &[1, 2, 3, 4]);
    let y = || npy("'|u1'", false, "(2,)", &[0, 1]);
    let with_x = |x: Vec<u8>| refused_npz(&[("x.npy", x), ("y.npy", y())]);
    let with_y = |y: Vec<u8>| refused_npz(&[("x.npy", x()), ("y.npy", y)]);
    assert!(refused_npz(&[("x.npy", x()), ("labels.npy", y())]).contains("it has: labels, x"));
    assert!(with_x(npy("'<f8'", false, "(2, 1, 2)", &[0; 32])).contains("'<f8'"));
    assert!(with_x(npy("'>f4'", false, "(2, 1, 2)", &[0; 16])).contains("'>f4'"));
    assert!(with_x(npy("'|O'", false, "(2, 1, 2)", &[0; 16])).contains("'|O'"));
    assert!(with_x(npy("[('a', '<f4')]", false, "(4,)", &[0; 16])).contains("structured"));
    assert!(with_x(npy("'|u1'", true, "(2, 1, 2)", &[1, 2, 3, 4])).contains("Fortran"));
    assert!(with_x(npy("'|u1'", false, "(2, 1, 3)", &[1, 2, 3, 4])).contains("needs"));
    assert!(with_x(npy("'|u1'", false, "(18446744073709551615, 3)", &[1])).contains("overflows"));
    assert!(with_x(npy("'|u1'", false, "(2, 2)", &[1, 2, 3, 4])).contains("is not [n, height, width]"));
    assert!(with_x(npy("'|u1'", false, "(1, 2, 2, 2)", &[0; 8])).contains("is not [n, height, width]"));
    assert!(with_x(npy("'|u1'", false, "(-2, 1)", &[1])).contains("form"));
    assert!(with_x(b"text".to_vec()).contains("signature"));
    assert!(with_x(b"\x93NUMPY\x02\x00\xff\xff\xff\xff".to_vec()).contains("too long"));
    assert!(with_y(npy("'<f4'", false, "(2,)", &[0; 8])).contains("integers"));
    assert!(with_y(npy("'|i1'", false, "(2,)", &[0, 255])).contains("label -1 is outside"));
    assert!(with_y(npy("'<i8'", false, "(2,)", &[[0; 8], i64::MAX.to_le_bytes()].concat())).contains("is outside"));
    assert!(with_y(npy("'|u1'", false, "(3,)", &[0, 1, 2])).contains("3 labels in 'y' for 2 pictures"));
    assert!(with_y(npy("'|u1'", false, "(2, 10)", &[0; 20])).contains("one integer per picture"));
    assert!(refused_npz_bytes(b"PK no").contains("not an npz"));

    // Cut anywhere: refused.
    let whole = npz(&[("x.npy", x()), ("y.npy", y())]);
    for cut in 0..whole.len() {
        refused_npz_bytes(&whole[..cut]);
    }
    // Any one byte damaged: refused, or the same set.
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("set.npz");
    fs::write(&path, &whole).unwrap();
    let expected = open(&path).unwrap().fingerprint();
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        fs::write(&path, &damaged).unwrap();
        if let Ok(set) = open(&path) {
            assert_eq!(set.fingerprint(), expected, "byte {at}");
        }
    }
    // A bomb.
    let bomb = npy("'|u1'", false, "(1000, 100, 100)", &vec![0; 10_000_000]);
    fs::write(&path, npz(&[("x.npy", bomb), ("y.npy", npy("'|u1'", false, "(1000,)", &[0; 1000]))])).unwrap();
    let options = OpenOptions { max_memory_bytes: 1 << 20, ..OpenOptions::default() };
    let error = DataSet::open(path.to_str().unwrap(), &options).unwrap_err().to_string();
    assert!(error.contains("exceed the limit"), "{error}");
    assert_eq!(open(&path).unwrap().subset(Subset::First(3)).len(), 3);
}

#[test]
fn a_label_without_bounds_names_no_millions_of_classes() {
    let root = tempfile::tempdir().unwrap();
    write_all(root.path(), &[("a_4294967295.png", png(&picture(2, 2, 0)))]);
    let error = open(root.path()).unwrap_err();
    assert!(matches!(error, DataError::LabelOutOfRange { label: 4_294_967_295, .. }), "{error}");
}

proptest! {
    #[test]
    fn any_bytes_are_an_error_or_an_array(bytes in proptest::collection::vec(any::<u8>(), 0..300), kind in 0..4) {
        let bytes = match kind {
            0 => bytes,
            1 => [b"\x93NUMPY\x01\x00".as_slice(), &bytes].concat(),
            2 => [[0, 0, 8].as_slice(), &bytes].concat(),
            _ => npy("'|u1'", false, &String::from_utf8_lossy(&bytes), &bytes),
        };
        if let Ok(found) = parse_idx(&bytes) {
            prop_assert_eq!(found.dims.iter().product::<usize>(), found.values.len());
        }
        if let Ok(found) = parse_npy(bytes.clone()) {
            prop_assert_eq!(found.shape().iter().product::<usize>() * found.dtype().bytes(), found.values().len());
        }
        let _ = Npz::open(std::io::Cursor::new(&bytes), bytes.len() as u64);
    }

    #[test]
    fn idx_reads_what_was_written(dims in proptest::collection::vec(0u32..6, 1..4), fill in any::<u8>()) {
        let values: Vec<u8> = (0..dims.iter().product::<u32>()).map(|i| (i as u8).wrapping_mul(fill)).collect();
        let bytes = idx(&dims, &values);
        let found = parse_idx(&bytes).unwrap();
        prop_assert_eq!(found.values, &values[..]);
        prop_assert_eq!(found.dims, dims.iter().map(|dim| *dim as usize).collect::<Vec<_>>());
    }
}
