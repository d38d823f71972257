//! Real sets: CIFAR-10 as a tar archive of JPEG files, MNIST and Fashion-MNIST as IDX files, ImageNet's samples.

mod support;

use chipfit_data::{
    Colour, DataSet, Filter, Layout, OpenOptions, PixelData, PreferredSplit, Preprocess, Resize, Subset,
};

#[test]
fn cifar_tar_is_read_whole() {
    let Some(archive) = support::surroundings("CHIPFIT_SHARED", "data/cifar10-jpeg.tar", "CIFAR-10") else { return };
    let spec = archive.to_str().unwrap();
    let train = OpenOptions { preferred_split: PreferredSplit::Train, ..OpenOptions::default() };
    let train = DataSet::open(spec, &train).unwrap();
    let test = DataSet::open(spec, &OpenOptions::default()).unwrap();
    assert_eq!((train.len(), train.classes()), (50_000, 10));
    assert_eq!((test.len(), test.classes(), test.name(0)), (10_000, 10, "test/airplane/0000.jpg"));
    assert_eq!(test.class_name(9), Some("truck"));
    for class in 0..10 {
        assert_eq!((0..test.len()).filter(|i| test.label(*i) == class).count(), 1000);
    }
    let how = Preprocess::raw([32, 32], Layout::Nchw, Colour::Rgb);
    let started = std::time::Instant::now();
    let values = test.batch(0..test.len(), &how).unwrap();
    eprintln!("10,000 pictures in {:?}", started.elapsed());
    assert_eq!(values.len(), 10_000 * 3 * 32 * 32);
    assert!(values.iter().all(|value| (0.0..=255.0).contains(value)));
    let mean = values.iter().map(|value| f64::from(*value)).sum::<f64>() / values.len() as f64;
    // The published mean of CIFAR-10's channels is 125.3, 123.0 and 113.9.
    assert!((mean - 120.7).abs() < 3.0, "{mean}");
    // At random gives the same as in order.
    let some = test.subset(Subset::Random { count: 50, seed: 1 });
    for i in 0..some.len() {
        let at = (0..test.len()).find(|at| test.name(*at) == some.name(i)).unwrap();
        assert_eq!(some.batch([i], &how).unwrap(), values[at * 3072..(at + 1) * 3072]);
    }
}

/// Published means and the labels of the first pictures tell the sets apart; the order of the file is the number in
/// the name.
#[test]
fn mnist_and_fashion_mnist_are_read_whole() {
    // Name, sum of all test pixels over their number, the first test labels.
    let sets = [("mnist", 33.79, [7, 2, 1, 0, 4, 1, 4, 9]), ("fashion-mnist", 73.15, [9, 2, 1, 1, 6, 1, 4, 6])];
    for (name, mean, first) in sets {
        let Some(folder) = support::surroundings("CHIPFIT_DATA", name, name) else { continue };
        let spec = folder.to_str().unwrap();
        for (split, len) in [("train", 60_000), ("test", 10_000)] {
            let set = DataSet::open(&format!("{spec}:{split}"), &OpenOptions::default()).unwrap();
            assert_eq!((set.len(), set.classes()), (len, 10));
            let pixels = set.pixels(0).unwrap();
            assert_eq!((pixels.height, pixels.width, pixels.channels), (28, 28, 1));
        }
        let test = DataSet::open(spec, &OpenOptions::default()).unwrap();
        for (row, label) in first.into_iter().enumerate() {
            let at = (0..test.len()).find(|i| test.name(*i) == format!("t10k/{row:04}")).unwrap();
            assert_eq!(test.label(at), label, "{name} {row}");
        }
        let values = test.batch(0..test.len(), &Preprocess::raw([28, 28], Layout::Nchw, Colour::Grey)).unwrap();
        let found = values.iter().map(|value| f64::from(*value)).sum::<f64>() / values.len() as f64;
        assert!((found - mean).abs() < 0.01, "{name}: {found}");
    }
}

#[test]
fn imagenet_samples_carry_their_labels() {
    let Some(folder) = support::surroundings("CHIPFIT_DATA", "foolbox", "twenty ImageNet pictures") else { return };
    let set = DataSet::open(&format!("{}:imagenet", folder.display()), &OpenOptions::default()).unwrap();
    assert_eq!((set.len(), set.name(0), set.label(0)), (20, "imagenet_17_22.jpg", 22));
    let how = Preprocess {
        resize: Resize::Crop,
        resize_to: Some(256),
        filter: Filter::Bicubic,
        mean: vec![127.0],
        std: vec![128.0],
        ..Preprocess::raw([224, 224], Layout::Nchw, Colour::Rgb)
    };
    let values = set.batch(0..20, &how).unwrap();
    assert_eq!(values.len(), 20 * 3 * 224 * 224);
    assert!(values.iter().all(|value| (-127.0 / 128.0..=1.0).contains(value)));
    let small = DataSet::open(&format!("{}:mnist", folder.display()), &OpenOptions::default()).unwrap();
    assert_eq!((small.len(), small.classes()), (20, 10));
    assert!(matches!(small.pixels(0).unwrap().data, PixelData::Bytes(_)));
}
