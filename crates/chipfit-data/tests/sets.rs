//! Every kind of set, written by the test and read back: order, names, classes, splits, pixels.

mod support;

use std::fs;

use chipfit_data::{
    ArrayLayout, Colour, DataError, DataSet, Layout, OpenOptions, PixelData, PreferredSplit, Preprocess, Subset,
};
use support::{gzip, idx, npy, npz, picture, png, tar, two_classes, write_all};

fn names(set: &DataSet) -> Vec<(&str, u32)> {
    (0..set.len()).map(|i| (set.name(i), set.label(i))).collect()
}

fn open(spec: &std::path::Path) -> Result<DataSet, DataError> {
    DataSet::open(spec.to_str().unwrap(), &OpenOptions::default())
}

#[test]
fn folder_and_tar_of_it_are_the_same_set() {
    let root = tempfile::tempdir().unwrap();
    let files = two_classes();
    let folder = root.path().join("set");
    write_all(&folder, &files);
    let archive = root.path().join("set.tar");
    fs::write(&archive, tar(&files)).unwrap();
    let wrapped: Vec<(String, Vec<u8>)> =
        files.iter().map(|(name, bytes)| (format!("./pets-1.0/{name}"), bytes.clone())).collect();
    let wrapped: Vec<(&str, Vec<u8>)> = wrapped.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
    let wrapped_archive = root.path().join("wrapped.tar");
    fs::write(&wrapped_archive, tar(&wrapped)).unwrap();

    let how = Preprocess::raw([3, 4], Layout::Nhwc, Colour::Rgb);
    for split in ["train", "test"] {
        let spec = |path: &std::path::Path| format!("{}:{split}", path.display());
        let sets = [&folder, &archive, &wrapped_archive]
            .map(|path| DataSet::open(&spec(path), &OpenOptions::default()).unwrap());
        let [first, others @ ..] = &sets;
        let expected = match split {
            "train" => {
                vec![("train/ant/0.png", 0), ("train/ant/1.jpg", 0), ("train/cat/a.png", 1), ("train/cat/b.png", 1)]
            }
            _ => vec![("test/ant/y.png", 0), ("test/ant/z.PNG", 0), ("test/cat/x.png", 1)],
        };
        assert_eq!(names(first), expected);
        assert_eq!((first.classes(), first.class_name(1)), (2, Some("cat")));
        for other in others {
            assert_eq!(names(other), expected);
            assert_eq!(other.fingerprint(), first.fingerprint());
            assert_eq!(other.batch(0..other.len(), &how).unwrap(), first.batch(0..first.len(), &how).unwrap());
        }
    }
    // The number of the picture is its blue channel: file order was b, a.
    let train = DataSet::open(&format!("{}:train", folder.display()), &OpenOptions::default()).unwrap();
    let values = train.batch([3, 2], &how).unwrap();
    assert_eq!((values[2], values[3 * 4 * 3 + 2]), (0.0, 10.0));
}

#[test]
fn the_preferred_split_is_taken_when_none_is_named() {
    let root = tempfile::tempdir().unwrap();
    write_all(root.path(), &two_classes());
    assert_eq!(open(root.path()).unwrap().split(), Some("test"));
    let options = OpenOptions { preferred_split: PreferredSplit::Train, ..OpenOptions::default() };
    let spec = root.path().to_str().unwrap().to_owned();
    assert_eq!(DataSet::open(&spec, &options).unwrap().split(), Some("train"));
    // `val` is another name for `test`, unless it is there itself.
    let val = DataSet::open(&format!("{spec}:val"), &OpenOptions::default()).unwrap();
    assert_eq!(val.split(), Some("test"));
    let error = DataSet::open(&format!("{spec}:dev"), &OpenOptions::default()).unwrap_err();
    assert!(matches!(&error, DataError::NoSuchSplit { found, .. } if found == &["test", "train"]), "{error}");
}

#[test]
fn labels_file_gives_the_order() {
    let root = tempfile::tempdir().unwrap();
    let set = root.path().join("set");
    write_all(&set, &[("cat/a.png", png(&picture(2, 2, 1))), ("ant/a.png", png(&picture(2, 2, 2)))]);
    let labels = root.path().join("labels.txt");
    let options = OpenOptions { labels: Some(labels.clone()), ..OpenOptions::default() };
    let spec = set.to_str().unwrap();
    fs::write(&labels, "dog\ncat\nant\n").unwrap();
    let found = DataSet::open(spec, &options).unwrap();
    assert_eq!(names(&found), [("cat/a.png", 1), ("ant/a.png", 2)]);
    assert_eq!((found.classes(), found.class_name(0)), (3, Some("dog")));

    fs::write(&labels, "dog\ncat\n").unwrap();
    assert!(matches!(DataSet::open(spec, &options), Err(DataError::ClassNotListed { class, .. }) if class == "ant"));
    fs::write(&labels, "cat\n\nant\n").unwrap();
    assert!(matches!(DataSet::open(spec, &options), Err(DataError::BadLabels { line: 2, .. })));
    fs::write(&labels, "cat\nant\ncat\n").unwrap();
    assert!(matches!(DataSet::open(spec, &options), Err(DataError::BadLabels { line: 3, .. })));
    fs::write(&labels, "").unwrap();
    assert!(matches!(DataSet::open(spec, &options), Err(DataError::BadLabels { .. })));

    // The model tells only two classes apart.
    fs::write(&labels, "dog\ncat\nant\n").unwrap();
    let options = OpenOptions { max_classes: Some(2), ..options };
    let error = DataSet::open(spec, &options).unwrap_err();
    assert!(matches!(&error, DataError::LabelOutOfRange { label: 2, classes: 2, .. }), "{error}");
}

#[test]
fn flat_folder_takes_the_label_from_the_name() {
    let root = tempfile::tempdir().unwrap();
    let one = png(&picture(2, 2, 1));
    write_all(root.path(), &[("imagenet_01_5.png", one.clone()), ("imagenet_00_7.png", one.clone())]);
    let set = open(root.path()).unwrap();
    assert_eq!(names(&set), [("imagenet_01_5.png", 5), ("imagenet_00_7.png", 7)]);
    assert_eq!((set.classes(), set.class_name(5)), (8, Some("5")));

    // The part before the first `_` is the split.
    write_all(root.path(), &[("mnist_00_3.png", one.clone())]);
    assert_eq!(open(root.path()).unwrap().len(), 3);
    let spec = format!("{}:imagenet", root.path().display());
    assert_eq!(DataSet::open(&spec, &OpenOptions::default()).unwrap().len(), 2);
    write_all(root.path(), &[("holiday.png", one)]);
    let error = open(root.path()).unwrap_err().to_string();
    assert!(error.contains("holiday.png") && error.contains("NAME_LABEL"), "{error}");
}

#[test]
fn idx_plain_and_packed() {
    let pixels: Vec<u8> = (0..24).collect();
    let files = [
        ("t10k-images-idx3-ubyte", idx(&[4, 2, 3], &pixels)),
        ("t10k-labels-idx1-ubyte", idx(&[4], &[1, 0, 2, 0])),
        ("train-images-idx3-ubyte", idx(&[1, 2, 3], &pixels[..6])),
        ("train-labels-idx1-ubyte", idx(&[1], &[4])),
    ];
    let packed: Vec<(String, Vec<u8>)> =
        files.iter().map(|(name, bytes)| (format!("{name}.gz"), gzip(bytes))).collect();
    let packed: Vec<(&str, Vec<u8>)> = packed.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
    let dotted: Vec<(String, Vec<u8>)> =
        files.iter().map(|(name, bytes)| (name.replacen("-idx", ".idx", 1), bytes.clone())).collect();
    let dotted: Vec<(&str, Vec<u8>)> = dotted.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
    let mut prints = Vec::new();
    for files in [&files[..], &packed, &dotted] {
        let root = tempfile::tempdir().unwrap();
        write_all(root.path(), files);
        let set = open(root.path()).unwrap();
        assert_eq!(names(&set), [("t10k/1", 0), ("t10k/3", 0), ("t10k/0", 1), ("t10k/2", 2)]);
        assert_eq!(set.classes(), 3);
        let first = set.pixels(0).unwrap();
        assert_eq!((first.height, first.width, first.channels), (2, 3, 1));
        assert_eq!(first.data, PixelData::Bytes((6..12).collect()));
        let how = Preprocess::raw([2, 3], Layout::Nchw, Colour::Grey);
        let values: Vec<f32> = (18..24u8).map(f32::from).collect();
        assert_eq!(set.batch([1], &how).unwrap(), values);
        let train = DataSet::open(&format!("{}:train", root.path().display()), &OpenOptions::default()).unwrap();
        assert_eq!(names(&train), [("train/0", 4)]);
        prints.push(set.fingerprint());
    }
    assert!(prints.iter().all(|print| print == &prints[0]));
}

#[test]
fn npz_of_every_shape() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("set.npz");
    let labels = npy("'|u1'", false, "(2,)", &[1, 0]);
    let bytes: Vec<u8> = (0..36).collect();
    let floats: Vec<u8> = (0..36u8).flat_map(|v| (f32::from(v) / 4.0).to_le_bytes()).collect();

    // [n, h, w, c]: picture 1 (label 0) comes first.
    fs::write(&path, npz(&[("x.npy", npy("'|u1'", false, "(2, 2, 3, 3)", &bytes)), ("y.npy", labels.clone())]))
        .unwrap();
    let set = open(&path).unwrap();
    assert_eq!(names(&set), [("1", 0), ("0", 1)]);
    assert_eq!(set.pixels(0).unwrap().data, PixelData::Bytes((18..36).collect()));

    // [n, c, h, w], floats: interleaved when read, back in planes as NCHW.
    let x = npy("'<f4'", false, "(2, 3, 2, 3)", &floats);
    let y = npy("'<i8'", false, "(2, 1)", &[[1i64.to_le_bytes()], [0i64.to_le_bytes()]].concat().concat());
    fs::write(&path, npz(&[("x.npy", x), ("y.npy", y)])).unwrap();
    let set = DataSet::open(
        path.to_str().unwrap(),
        &OpenOptions { array_layout: Some(ArrayLayout::Nchw), ..OpenOptions::default() },
    )
    .unwrap();
    let how = Preprocess::raw([2, 3], Layout::Nchw, Colour::Rgb);
    let planes: Vec<f32> = (18..36u8).map(|v| f32::from(v) / 4.0).collect();
    assert_eq!(set.batch([0], &how).unwrap(), planes);
    let PixelData::Floats(interleaved) = set.pixels(0).unwrap().data else { panic!("floats stay floats") };
    assert_eq!(interleaved[..3], [planes[0], planes[6], planes[12]]);

    // [n, h, w] and splits.
    let x = npy("'|u1'", false, "(2, 3, 6)", &bytes);
    let members =
        [("x_train.npy", x.clone()), ("y_train.npy", labels.clone()), ("x_test.npy", x), ("y_test.npy", labels)];
    fs::write(&path, npz(&members)).unwrap();
    let set = open(&path).unwrap();
    assert_eq!((set.split(), set.name(0), set.pixels(0).unwrap().channels), (Some("test"), "test/1", 1));
    let train = DataSet::open(&format!("{}:train", path.display()), &OpenOptions::default()).unwrap();
    assert_eq!(train.name(0), "train/1");
    assert_ne!(train.fingerprint(), set.fingerprint());
}

#[test]
fn subsets_keep_the_order_and_the_ids() {
    let root = tempfile::tempdir().unwrap();
    let labels: Vec<u8> = (0..100).map(|i| i / 10).collect();
    write_all(
        root.path(),
        &[
            ("test-images-idx3-ubyte", idx(&[100, 1, 1], &(0..100).collect::<Vec<u8>>())),
            ("test-labels-idx1-ubyte", idx(&[100], &labels)),
        ],
    );
    let set = open(root.path()).unwrap();
    let listed = |which| names_of(&set.subset(which));
    assert_eq!(listed(Subset::First(2)), ["test/00", "test/01"]);
    assert_eq!(listed(Subset::Every(40)), ["test/00", "test/40", "test/80"]);
    assert_eq!(listed(Subset::Spread(4)), ["test/00", "test/25", "test/50", "test/75"]);
    assert_eq!(
        set.subset(Subset::Spread(10)).batch(0..10, &Preprocess::raw([1, 1], Layout::Nchw, Colour::Grey)).unwrap(),
        (0..10).map(|i| i as f32 * 10.0).collect::<Vec<_>>()
    );
    let random = listed(Subset::Random { count: 30, seed: 7 });
    assert_eq!(random.len(), 30);
    assert!(random.is_sorted_by(|a, b| a < b));
    assert_eq!(random, listed(Subset::Random { count: 30, seed: 7 }));
    assert_ne!(random, listed(Subset::Random { count: 30, seed: 8 }));
    assert_eq!(listed(Subset::Random { count: 200, seed: 1 }), listed(Subset::All));
    assert!(set.subset(Subset::First(0)).is_empty());
    assert_eq!(set.subset(Subset::Every(40)).id(2), set.id(80));
    assert_ne!(set.id(80), set.id(81));
    assert_ne!(set.subset(Subset::First(99)).fingerprint(), set.fingerprint());

    // Every picture is equally likely: 2,000 draws of 30, expected 600 times each, deviation 20.5.
    let mut counts = [0u32; 100];
    for seed in 0..2000 {
        let drawn = set.subset(Subset::Random { count: 30, seed });
        (0..drawn.len()).for_each(|i| counts[drawn.name(i)[5..].parse::<usize>().unwrap()] += 1);
    }
    assert!(counts.iter().all(|count| (500..700).contains(count)), "{counts:?}");
    // Chi-square with 99 degrees of freedom (a little less for draws without replacement): 99.9% below 149.
    let chi: f64 = counts.iter().map(|count| (f64::from(*count) - 600.0).powi(2) / 600.0).sum();
    assert!(chi < 149.0, "{chi}");
}

fn names_of(set: &DataSet) -> Vec<String> {
    (0..set.len()).map(|i| set.name(i).to_owned()).collect()
}

#[test]
fn batches_do_not_depend_on_threads_and_tell_the_first_error() {
    let root = tempfile::tempdir().unwrap();
    let good: Vec<(String, Vec<u8>)> = (0..40).map(|i| (format!("class/{i:02}.png"), png(&picture(4, 3, i)))).collect();
    let mut files: Vec<(&str, Vec<u8>)> = good.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
    write_all(root.path(), &files);
    let set = open(root.path()).unwrap();
    let how = Preprocess::raw([3, 4], Layout::Nchw, Colour::Bgr);
    let values = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| set.batch((0..40).rev(), &how).unwrap())
    };
    assert_eq!(values(1), values(4));
    // BGR: the first plane is the picture's number.
    assert_eq!(values(2)[0], 39.0);

    for broken in [11, 23, 37] {
        files[broken].1 = b"not a picture".to_vec();
    }
    write_all(root.path(), &files);
    for _ in 0..10 {
        let error = set.batch((0..40).rev(), &how).unwrap_err();
        assert!(matches!(&error, DataError::BadPicture { name, .. } if name.ends_with("37.png")), "{error}");
    }
    assert!(matches!(set.batch([40], &how), Err(DataError::NoSuchPicture { index: 40, len: 40 })));
    assert!(set.batch([], &how).unwrap().is_empty());
}
