//! CIFAR-10 as a tar archive of JPEG files: indexed once, every picture read at random.

mod support;

use chipfit_data::{Colour, DataSet, Layout, OpenOptions, PreferredSplit, Preprocess, Subset};

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
