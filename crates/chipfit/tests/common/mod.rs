//! What the tests of the command share: the built binary, a folder of their own, and small models.

#![allow(dead_code, reason = "every test file takes what it needs")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use chipfit_model::build::{self, DimSpec};
use chipfit_model::proto::{GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto};
use chipfit_model::{ConstTensor, DataType, Model};
use serde_json::Value;

/// A folder that goes away with the test.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The names of all files in it.
    pub(crate) fn files(&self) -> Vec<String> {
        let name = |e: std::io::Result<std::fs::DirEntry>| e.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<String> = std::fs::read_dir(self.0.path()).unwrap().map(name).collect();
        names.sort();
        names
    }

    /// Writes `model` and returns its path.
    pub(crate) fn put(&self, name: &str, model: &Model) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, model.to_bytes().unwrap()).unwrap();
        path
    }

    /// The command, in this folder. Pieces of one string are divided at spaces.
    pub(crate) fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_chipfit"));
        command
            .current_dir(self.0.path())
            .args(arguments.split_whitespace())
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null());
        command
    }

    /// Runs it to its end with at most `kibibytes` of address space (where the system can limit that).
    pub(crate) fn run_within(&self, kibibytes: u64, arguments: &str) -> Done {
        if cfg!(not(target_os = "linux")) {
            return self.run(arguments);
        }
        self.run_after(&format!("ulimit -v {kibibytes}"), arguments)
    }

    /// Runs it to its end from a shell that has run `preparation` before.
    pub(crate) fn run_after(&self, preparation: &str, arguments: &str) -> Done {
        let mut shell = Command::new("sh");
        let script = format!("{preparation}; exec \"$0\" \"$@\"");
        shell.current_dir(self.0.path()).args(["-c", &script, env!("CARGO_BIN_EXE_chipfit")]);
        shell.args(arguments.split_whitespace()).env("RUST_BACKTRACE", "0").stdin(Stdio::null());
        Done(shell.output().unwrap())
    }

    /// Runs it to its end.
    pub(crate) fn run(&self, arguments: &str) -> Done {
        Done(self.command(arguments).output().unwrap())
    }
}

/// A run that ended.
pub(crate) struct Done(pub(crate) Output);

impl Done {
    /// The exit status; a signal (a crash) is none.
    pub(crate) fn status(&self) -> Option<i32> {
        self.0.status.code()
    }
    pub(crate) fn out(&self) -> String {
        String::from_utf8(self.0.stdout.clone()).unwrap()
    }
    pub(crate) fn err(&self) -> String {
        String::from_utf8(self.0.stderr.clone()).unwrap()
    }
    /// Standard output as the one JSON document it is.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.0.stdout).unwrap_or_else(|e| panic!("{e}\n{}\n{}", self.out(), self.err()))
    }
    /// Fails unless the run ended with `status`.
    pub(crate) fn expect(self, status: i32) -> Self {
        assert_eq!(self.status(), Some(status), "\n{}\n{}", self.out(), self.err());
        self
    }
}

/// Different numbers of about 1, the same for the same `seed`.
pub(crate) fn values(n: usize, seed: u32) -> Vec<f32> {
    let step = |state: &mut u32, _| {
        *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        Some((*state >> 8) as f32 / (1u32 << 23) as f32 - 1.0)
    };
    (0..n).scan(seed, step).collect()
}

/// Bytes of 0 to 255, the same for the same `seed`.
pub(crate) fn bytes(n: usize, seed: u32) -> Vec<u8> {
    values(n, seed).into_iter().map(|v| ((v + 1.0) * 127.9) as u8).collect()
}

/// A constant of these floats.
pub(crate) fn floats(name: &str, dims: &[usize], values: &[f32]) -> TensorProto {
    ConstTensor::from_f32(dims.to_vec(), values).unwrap().to_proto(name)
}

/// A constant of these bytes.
pub(crate) fn small(name: &str, dtype: DataType, dims: &[usize], values: &[u8]) -> TensorProto {
    ConstTensor::new(dtype, dims.to_vec(), values.to_vec()).unwrap().to_proto(name)
}

/// A model of these nodes; its input `x` and output `y` are of type `dtype`.
pub(crate) fn model(
    nodes: Vec<NodeProto>,
    constants: Vec<TensorProto>,
    dtype: DataType,
    x: &[i64],
    y: &[i64],
) -> Model {
    let dims = |dims: &[i64]| dims.iter().map(|&d| DimSpec::Known(d)).collect::<Vec<_>>();
    let graph = GraphProto {
        name: Some("main".to_owned()),
        node: nodes,
        initializer: constants,
        input: vec![build::value_info("x", dtype, &dims(x))],
        output: vec![build::value_info("y", dtype, &dims(y))],
        ..GraphProto::default()
    };
    let opset = OperatorSetIdProto { version: Some(17), ..Default::default() };
    let proto =
        ModelProto { ir_version: Some(8), opset_import: vec![opset], graph: graph.into(), ..ModelProto::default() };
    Model { proto, folder: None }
}

/// [`deconvolution_on`] 6x7.
pub(crate) fn deconvolution(channels: usize) -> Model {
    deconvolution_on(6, 7, channels)
}

/// One ConvTranspose of kernel 5, stride 2 and pads 2,2,1,1 from 3 to `channels` channels, with a bias.
pub(crate) fn deconvolution_on(rows: i64, columns: i64, channels: usize) -> Model {
    let attributes = vec![build::attr_is("strides", &[2, 2]), build::attr_is("pads", &[2, 2, 1, 1])];
    let constants = vec![
        floats("w", &[3, channels, 5, 5], &values(3 * channels * 25, 1)),
        floats("b", &[channels], &values(channels, 2)),
    ];
    let node = build::node("ConvTranspose", "up", &["x", "w", "b"], &["y"], attributes);
    model(vec![node], constants, DataType::Float, &[1, 3, rows, columns], &[1, channels as i64, 2 * rows, 2 * columns])
}

/// The same in uint8 with a scale per channel; the zero points of input, weight and output are not 0.
pub(crate) fn quantised(channels: usize) -> Model {
    let scales: Vec<f32> = (1..=channels).map(|c| c as f32 * 0.001).collect();
    let zero_points: Vec<u8> = (0..channels).map(|c| 100 + c as u8).collect();
    let constants = vec![
        small("w", DataType::Uint8, &[3, channels, 5, 5], &bytes(3 * channels * 25, 1)),
        floats("w_scale", &[channels], &scales),
        small("w_zero", DataType::Uint8, &[channels], &zero_points),
        floats("x_scale", &[], &[0.02]),
        small("x_zero", DataType::Uint8, &[], &[120]),
        floats("y_scale", &[], &[0.05]),
        small("y_zero", DataType::Uint8, &[], &[130]),
    ];
    let attributes = vec![build::attr_is("strides", &[2, 2]), build::attr_is("pads", &[2, 2, 1, 1])];
    let nodes = vec![
        build::node("DequantizeLinear", "dq_x", &["x", "x_scale", "x_zero"], &["xf"], Vec::new()),
        build::node("DequantizeLinear", "dq_w", &["w", "w_scale", "w_zero"], &["wf"], vec![build::attr_i("axis", 1)]),
        build::node("ConvTranspose", "up", &["xf", "wf"], &["yf"], attributes),
        build::node("QuantizeLinear", "q_y", &["yf", "y_scale", "y_zero"], &["y"], Vec::new()),
    ];
    model(nodes, constants, DataType::Uint8, &[1, 3, 6, 7], &[1, channels as i64, 12, 14])
}

/// A model without any transposed convolution.
pub(crate) fn relu() -> Model {
    let node = build::node("Relu", "r", &["x"], &["y"], Vec::new());
    model(vec![node], Vec::new(), DataType::Float, &[1, 3, 16, 16], &[1, 3, 16, 16])
}

/// Fails unless every key is there.
pub(crate) fn assert_keys(value: &Value, keys: &[&str]) {
    let object = value.as_object().unwrap_or_else(|| panic!("no object: {value}"));
    let missing: Vec<&&str> = keys.iter().filter(|k| !object.contains_key(**k)).collect();
    assert!(missing.is_empty(), "missing {missing:?} in {value:#}");
}

/// The model in the file at `path`.
pub(crate) fn read(path: &Path) -> Model {
    Model::open(path, &chipfit_model::Limits::default()).unwrap()
}

/// How many nodes of `op` its main graph has.
pub(crate) fn count(model: &Model, op: &str) -> usize {
    model.graph().node.iter().filter(|n| build::is_op(n, op)).count()
}

/// A quantised classifier of 3x8x8 pictures into three classes with seeded weights, and pictures that can be told apart:
/// each class has a dark corner of its own.
pub(crate) fn learnable(faults: &str) -> Folder {
    let folder = Folder::new();
    let pads = || vec![build::attr_is("pads", &[1; 4])];
    let nodes = vec![
        build::node("Conv", "conv1", &["x", "w", "b"], &["c"], pads()),
        build::node("Relu", "relu1", &["c"], &["r"], Vec::new()),
        build::node(
            "MaxPool",
            "halve",
            &["r"],
            &["h"],
            vec![build::attr_is("kernel_shape", &[2, 2]), build::attr_is("strides", &[2, 2])],
        ),
        build::node("Flatten", "flatten", &["h"], &["f"], vec![build::attr_i("axis", 1)]),
        build::node("Gemm", "dense", &["f", "fc", "fb"], &["y"], Vec::new()),
    ];
    let scaled = |n: usize, seed: u32, by: f32| values(n, seed).iter().map(|v| v * by).collect::<Vec<f32>>();
    let constants = vec![
        floats("w", &[8, 3, 3, 3], &scaled(216, 1, 0.3)),
        floats("b", &[8], &values(8, 2)),
        floats("fc", &[128, 3], &scaled(384, 3, 0.1)),
        floats("fb", &[3], &values(3, 4)),
    ];
    folder.put("m.onnx", &model(nodes, constants, DataType::Float, &[1, 3, 8, 8], &[1, 3]));
    for (split, count) in [("train", 40u32), ("test", 20)] {
        for class in 0..3u32 {
            std::fs::create_dir_all(folder.path(&format!("data/{split}/{class}"))).unwrap();
            for n in 0..count {
                let noise = values(192, 1000 * class + n + 7 * count);
                let picture = image::RgbImage::from_fn(8, 8, |x, y| {
                    let is_dark = (x / 4 + 2 * (y / 4)) == class;
                    let level = if is_dark { 60.0 } else { 190.0 };
                    let shade = |c: u32| (level + 60.0 * noise[((y * 8 + x) * 3 + c) as usize]) as u8;
                    image::Rgb([shade(0), shade(1), shade(2)])
                });
                picture.save(folder.path(&format!("data/{split}/{class}/{n}.png"))).unwrap();
            }
        }
    }
    folder.run("quantize m.onnx --data data:test --calibration-data data:train -o q.onnx --scale 0.01").expect(0);
    std::fs::write(folder.path("f.toml"), faults).unwrap();
    folder
}
