use std::fs;

use super::*;

fn parse_error(text: &str) -> String {
    Preprocess::parse(text).unwrap_err().to_string()
}

#[test]
fn a_file_with_everything_and_the_least_one() {
    let all = Preprocess::parse(
        "size = [224, 192]\nresize = \"crop\"\nresize_to = 256\nfilter = \"bicubic\"\nlayout = \"nhwc\"\n\
         color = \"bgr\"\nmean = [103.939, 116.779, 123.68]\nstd = [1, 2, 3]\nscale = 0.5\n",
    )
    .unwrap();
    assert_eq!(all.shape(), [224, 192, 3]);
    assert_eq!(all.mean, [103.939, 116.779, 123.68]);
    assert_eq!(all.std, [1.0, 2.0, 3.0]);
    assert_eq!(
        all.to_string(),
        "224x192 bgr nhwc, shorter side to 256 bicubic, then the middle, \
         value = (pixel * 0.5 - [103.939, 116.779, 123.68]) / [1.0, 2.0, 3.0]"
    );
    assert_eq!(Preprocess::parse(&all.to_toml()).unwrap(), all);

    let least = Preprocess::parse("size = [28, 28]\ncolor = \"grey\"").unwrap();
    assert_eq!(least, Preprocess::raw([28, 28], Layout::Nchw, Colour::Grey));
    assert_eq!(least.to_string(), "28x28 grey nchw, exact size, raw pixels 0..255");
    assert_eq!(Preprocess::parse(&least.to_toml()).unwrap(), least);
}

#[test]
fn bad_files_say_where() {
    assert!(parse_error("size = [1, 1]\nsacle = 2").contains("sacle"));
    assert!(parse_error("size = [1, 1]\nsacle = 2").contains("line 2"));
    assert!(parse_error("scale = 2").contains("size"));
    assert!(parse_error("size = [1, 1, 3]").contains("height and width"));
    assert!(parse_error("size = [0, 1]").contains("[0, 1] is outside"));
    assert!(parse_error("size = [1, 1]\nresize = \"squeeze\"").contains("squeeze"));
    assert!(parse_error("size = [8, 9]\nresize = \"crop\"\nresize_to = 8").contains("less than the size"));
    assert!(parse_error("size = [8, 9]\nresize_to = 9").contains("only goes with"));
    assert!(parse_error("size = [1, 1]\nmean = [1, 2]").contains("has 2 numbers"));
    assert!(parse_error("size = [1, 1]\ncolor = \"grey\"\nmean = [1, 2, 3]").contains("1 channels"));
    assert!(parse_error("size = [1, 1]\nmean = []").contains("has 0 numbers"));
    assert!(parse_error("size = [1, 1]\nstd = [1, 0, 1]").contains("divided"));
    assert!(parse_error("size = [1, 1]\nstd = [nan]").contains("NaN"));
    assert!(parse_error("size = [1, 1]\nscale = inf").contains("finite"));
    assert!(parse_error("size = [1, 1]\nscale = 1e-60").contains("not 0"));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("m.preprocess.toml");
    fs::write(&file, "size = [0, 1]").unwrap();
    let error = Preprocess::read(&file).unwrap_err().to_string();
    assert!(error.contains("m.preprocess.toml") && error.contains("`size`"), "{error}");
}

#[test]
fn the_shape_of_the_input_is_the_default() {
    let shape = |dims: &[u64]| dims.iter().map(|dim| (*dim > 0).then_some(*dim)).collect::<Vec<_>>();
    let default = |dims: &[u64]| Preprocess::for_input(&shape(dims));
    assert_eq!(default(&[0, 3, 32, 32]).unwrap(), Preprocess::raw([32, 32], Layout::Nchw, Colour::Rgb));
    assert_eq!(default(&[1, 1, 28, 20]).unwrap(), Preprocess::raw([28, 20], Layout::Nchw, Colour::Grey));
    assert_eq!(default(&[4, 96, 64, 1]).unwrap(), Preprocess::raw([96, 64], Layout::Nhwc, Colour::Grey));
    let error = default(&[0, 3, 0, 32]).unwrap_err().to_string();
    assert!(error.contains("[?, 3, ?, 32]"), "{error}");
    assert!(default(&[1, 784]).is_err());
    assert!(default(&[1, 4, 8, 8]).is_err());

    let raw = Preprocess::raw([28, 28], Layout::Nchw, Colour::Grey);
    assert!(raw.check_input(&shape(&[0, 784])).is_ok());
    assert!(raw.check_input(&shape(&[0, 1, 0, 28])).is_ok());
    assert!(raw.check_input(&shape(&[0, 28, 28, 1])).is_err());
    assert!(raw.check_input(&shape(&[0, 785])).is_err());
    assert!(raw.check_input(&[]).is_err());
}

#[test]
fn file_then_shape_then_flags() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("net.v2.int8.onnx");
    let input = [None, Some(3), Some(8), Some(8)];
    let none = Overrides::default();
    let (found, file) = Preprocess::resolve(&model, &input, &none).unwrap();
    assert_eq!((found, file), (Preprocess::raw([8, 8], Layout::Nchw, Colour::Rgb), None));

    // The float model's file serves the quantised one, whose own goes first.
    let float = folder.path().join("net.v2.preprocess.toml");
    fs::write(&float, "size = [8, 8]\nscale = 3").unwrap();
    let (found, file) = Preprocess::resolve(&model, &input, &none).unwrap();
    assert_eq!((found.scale, file), (3.0, Some(float)));
    let own = folder.path().join("net.v2.int8.preprocess.toml");
    fs::write(&own, "size = [8, 8]\nscale = 4\nresize = \"crop\"\nresize_to = 9").unwrap();
    assert_eq!(preprocess_path(&model), own);
    let flags = Overrides { mean: Some(vec![1.0]), resize: Some(Resize::Stretch), ..none.clone() };
    let (found, file) = Preprocess::resolve(&model, &input, &flags).unwrap();
    assert_eq!((found.scale, found.mean.as_slice(), found.resize_to, file), (4.0, [1.0].as_slice(), None, Some(own)));

    let flags = Overrides { size: Some([9, 9]), resize_to: Some(10), ..none.clone() };
    let error = Preprocess::resolve(&model, &input, &flags).unwrap_err().to_string();
    assert!(error.contains("[n, 3, 9, 9]") && error.contains("[?, 3, 8, 8]"), "{error}");
    // A dynamic input needs the size, and then takes it.
    let other = folder.path().join("other.onnx");
    assert!(Preprocess::resolve(&other, &[None, Some(3), None, None], &none).is_err());
    let flags = Overrides { size: Some([9, 7]), ..none };
    let (found, _) = Preprocess::resolve(&other, &[None, Some(3), None, None], &flags).unwrap();
    assert_eq!(found.shape(), [3, 9, 7]);
}
