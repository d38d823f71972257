//! Weights files: pickles of every protocol, torch's legacy format, hostile bytes, and the mapping onto networks.
//!
//! The files in `data/pickles` come from `tests/python/make_pickles.py`, so Python's own pickler wrote them.

use std::collections::BTreeMap;

use bytes::Bytes;
use chipfit_model::onnx::{Limits, Model};
use chipfit_model::zoo::pickle::{MAX_OBJECTS, Object, Pickle};
use chipfit_model::zoo::{self, PickleError, Weights, WeightsFormat, ZooError, ZooOptions};
use chipfit_model::{ConstTensor, DataType};

const FIXTURES: [(&str, &[u8]); 7] = [
    ("numpy_0", include_bytes!("data/pickles/numpy_0.pkl")),
    ("numpy_1", include_bytes!("data/pickles/numpy_1.pkl")),
    ("numpy_2", include_bytes!("data/pickles/numpy_2.pkl")),
    ("numpy_3", include_bytes!("data/pickles/numpy_3.pkl")),
    ("numpy_4", include_bytes!("data/pickles/numpy_4.pkl")),
    ("numpy_5", include_bytes!("data/pickles/numpy_5.pkl")),
    ("legacy", include_bytes!("data/pickles/legacy.pth")),
];

fn read(bytes: &[u8]) -> Result<Weights, PickleError> {
    Weights::from_pickle(Bytes::copy_from_slice(bytes))
}

/// Shape and values of a file's array.
type Array = (Vec<usize>, Vec<f32>);
type Values = (DataType, Vec<usize>, Vec<f64>);

fn values(weights: &Weights) -> BTreeMap<String, Values> {
    let values = |t: &ConstTensor| (t.dtype(), t.dims().to_vec(), t.to_f64_vec().unwrap());
    weights.tensors().iter().map(|(name, t)| (name.clone(), values(t))).collect()
}

fn expected<const N: usize>(tensors: [(&str, DataType, &[usize], Vec<f64>); N]) -> BTreeMap<String, Values> {
    tensors.into_iter().map(|(name, dtype, dims, v)| (name.to_owned(), (dtype, dims.to_vec(), v))).collect()
}

#[test]
fn every_protocol_gives_the_same_arrays() {
    let count = |n: u8| (0..n).map(f64::from).collect::<Vec<_>>();
    let want = expected([
        ("conv1/0", DataType::Float, &[2, 3], vec![-2.5, -1.5, -0.5, 0.5, 1.5, 2.5]),
        ("conv1/1", DataType::Double, &[2], vec![0.5, -1.0]),
        ("nested/fortran", DataType::Float, &[2, 3, 4], count(24)),
        ("nested/big", DataType::Float, &[1, 2], vec![1.5, -2.0]),
        ("nested/half", DataType::Float16, &[2], vec![0.25, 65504.0]),
        ("scalar", DataType::Int64, &[], vec![7.0]),
        ("empty", DataType::Float, &[0, 4], vec![]),
    ]);
    for (name, bytes) in &FIXTURES[..6] {
        let weights = read(bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(weights.format(), WeightsFormat::NumpyPickle);
        assert_eq!(values(&weights), want, "{name}");
    }
}

#[test]
fn torch_views_follow_offset_and_strides() {
    let weights = read(FIXTURES[6].1).unwrap();
    assert_eq!(weights.format(), WeightsFormat::TorchPickle);
    let turned = vec![0.0, 4.0, 8.0, 1.0, 5.0, 9.0, 2.0, 6.0, 10.0, 3.0, 7.0, 11.0];
    let want = expected([
        ("plain", DataType::Float, &[3, 4], (0..12).map(f64::from).collect()),
        ("turned", DataType::Float, &[4, 3], turned),
        ("part", DataType::Float, &[2, 2], vec![5.0, 6.0, 9.0, 10.0]),
        ("norm.num_batches_tracked", DataType::Int64, &[], vec![9.0]),
    ]);
    assert_eq!(values(&weights), want);
}

/// A numpy array as Python 2 pickled it: strings where Python 3 has bytes.
#[test]
fn python_2_strings_are_read() {
    let mut p = b"\x80\x02}U\x01wcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R".to_vec();
    p.extend(
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xFF\xFF\xFF\xFFJ\xFF\xFF\xFF\xFFK\x00tb",
    );
    p.extend(b"\x89U\x08\x00\x00\x80\x3F\x00\x00\x00\xC0tbs.");
    let want = expected([("w", DataType::Float, &[2], vec![1.0, -2.0])]);
    assert_eq!(values(&read(&p).unwrap()), want);
    // The same bytes as protocol 0 quotes them.
    let quoted = String::from_utf8_lossy(b"S'\\x00\\x00\\x80?\\x00\\x00\\x00\\xc0'\n").into_owned();
    let at = p.windows(2).rposition(|w| w == b"U\x08").unwrap();
    let mut old = p[..at].to_vec();
    old.extend(quoted.bytes());
    old.extend(&p[at + 10..]);
    assert_eq!(values(&read(&old).unwrap()), want);
}

#[test]
fn nothing_is_executed_and_strangers_are_named() {
    let error = |bytes: &[u8]| read(bytes).unwrap_err().to_string();
    let text = error(b"cos\nsystem\n(S'echo'\ntR.");
    assert!(text.contains("system of os"), "{text}");
    let text = error(b"\x80\x02}U\x01acbuiltins\neval\nU\x011\x85Rs.");
    assert!(text.contains("'a'") && text.contains("eval"), "{text}");
    assert!(error(b"PK\x03\x04rest").contains("zip"));
    assert_eq!(read(b"}.x").unwrap_err(), PickleError::NotThis("bytes follow the pickle"));
    assert_eq!(read(b"").unwrap_err(), PickleError::End { at: 0 });
    assert_eq!(read(b"\x8f.").unwrap_err(), PickleError::Opcode { at: 0, opcode: 0x8F });
}

#[test]
fn truncations_are_errors() {
    for (name, bytes) in FIXTURES {
        for length in 0..bytes.len() {
            assert!(read(&bytes[..length]).is_err(), "{name} cut to {length} bytes");
        }
    }
}

/// splitmix64, for the flips below.
fn next(state: &mut u64) -> usize {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    usize::try_from((z ^ (z >> 31)) >> 1).unwrap()
}

#[test]
fn flipped_bytes_never_panic_nor_grow() {
    let mut state = 1;
    let mut accepted = 0;
    for round in 0..30_000 {
        let (_, original) = FIXTURES[round % FIXTURES.len()];
        let mut bytes = original.to_vec();
        for _ in 0..=next(&mut state) % 3 {
            let at = next(&mut state) % bytes.len();
            bytes[at] = u8::try_from(next(&mut state) % 256).unwrap();
        }
        if let Ok(weights) = read(&bytes) {
            let total: usize = weights.tensors().values().map(|t| t.bytes().len()).sum();
            assert!(total <= 5 * bytes.len() + (1 << 20), "round {round}");
            accepted += 1;
        }
    }
    // Flips in element bytes and in scalars that are passed over do no harm; most others must be noticed.
    assert!((100..20_000).contains(&accepted), "{accepted} of 30000 accepted");
}

#[test]
fn bombs_are_refused() {
    // A length far beyond the bytes.
    assert!(matches!(read(b"\x80\x04\x8e\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x7F."), Err(PickleError::End { .. })));
    assert!(matches!(read(b"\x80\x04\x8e\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF."), Err(PickleError::End { .. })));
    // More objects than allowed.
    let many = [vec![b']'; MAX_OBJECTS + 1], b".".to_vec()].concat();
    assert_eq!(read(&many).unwrap_err(), PickleError::TooManyObjects);
    // A list of two lists of two lists ... : 2^40 places in 200 bytes.
    let laughs = [b"(l".to_vec(), b"2\x86".repeat(40), b".".to_vec()].concat();
    assert_eq!(read(&laughs).unwrap_err(), PickleError::TooLarge);
    // The same, wide instead of deep: 30 levels hold 2^30 places.
    let wide = [b"(l".to_vec(), b"2\x86".repeat(30), b".".to_vec()].concat();
    assert_eq!(read(&wide).unwrap_err(), PickleError::TooLarge);
    // A list that holds itself.
    assert_eq!(read(b"]q\x00h\x00a.").unwrap_err(), PickleError::TooLarge);
    // One array, referred to a million times under long names.
    let array =
        &b"cnumpy._core.numeric\n_frombuffer\n(C\x04\0\0\0\0cnumpy\ndtype\nU\x02f4\x85R(K\x03U\x01<NNNtb)U\x01CtRq\x00"
            [..];
    let one = [array, b"."].concat();
    assert_eq!(values(&read(&one).unwrap()), expected([("", DataType::Float, &[], vec![0.0])]));
    let key = [&[b'X', 0, 3, 0, 0][..], &[b'k'; 768]].concat();
    let many = [array, b"0}", &key, b"(", &b"h\x00".repeat(100_000), b"ls."].concat();
    assert_eq!(read(&many).unwrap_err(), PickleError::TooLarge);
    // One long text, the name of a global a thousand times.
    let long = [&b"X\xFF\xFF\x00\x00"[..], &[b'g'; 0xFFFF], b"q\x000h\x00h\x00\x93."].concat();
    assert!(matches!(read(&long), Err(PickleError::Operand { opcode: 0x93, .. })));
}

/// Torch tensors that reach out of their storage or repeat it, made from the good file by changing one number.
#[test]
fn impossible_views_are_refused() {
    let good = FIXTURES[6].1;
    // "turned" is (11's storage, offset 0, size (4, 3), stride (1, 4)).
    let at = good.windows(5).position(|w| w == b"K\x04K\x03\x86").unwrap();
    let changed = |offset: usize, value: u8| {
        let mut bytes = good.to_vec();
        bytes[at + offset] = value;
        read(&bytes).unwrap_err().to_string()
    };
    assert!(changed(1, 5).contains("'turned'"), "{}", changed(1, 5));
    assert!(changed(3, 200).contains("more elements"), "{}", changed(3, 200));
    // A big-endian file, a storage of another length, bytes behind the end.
    let replaced = |from: &[u8], to: &[u8]| {
        let at = good.windows(from.len()).position(|w| w == from).unwrap();
        read(&[&good[..at], to, &good[at + from.len()..]].concat()).unwrap_err()
    };
    assert_eq!(
        replaced(b"little_endianq\x02\x88", b"little_endianq\x02\x89"),
        PickleError::BadTorch("it is not said to be little-endian")
    );
    assert!(matches!(replaced(b"\x0c\0\0\0\0\0\0\0", b"\x0b\0\0\0\0\0\0\0"), PickleError::BadTorch(_)));
    assert!(matches!(read(&[good, b"x"].concat()), Err(PickleError::BadTorch(_))));
}

#[test]
fn objects_keep_what_would_be_called() {
    let file = Bytes::from_static(b"\x80\x02cm\nf\nK\x05\x85R}U\x01kK\x06sbrest");
    // Stops before "rest": no opcode 'r' operand of four bytes lacks there, so the end is reported.
    assert!(Pickle::read(&file, 0).is_err());
    let file = Bytes::from_static(b"junk\x80\x02cm\nf\nK\x05\x85R}U\x01kK\x06sb.rest");
    let pickle = Pickle::read(&file, 4).unwrap();
    assert_eq!(pickle.end(), file.len() - 4);
    let Some(Object::Instance { callable, arguments, state: Some(state), items }) = pickle.get(pickle.root()) else {
        panic!("{:?}", pickle.get(pickle.root()))
    };
    assert_eq!(pickle.global(*callable), Some(("m", "f")));
    assert_eq!(pickle.entries(*arguments).map(|a| pickle.int(a[0])), Some(Some(5)));
    assert!(items.is_empty() && matches!(pickle.get(*state), Some(Object::Dict(d)) if d.len() == 1));
}

fn parameters(model: &Model) -> BTreeMap<String, (Vec<usize>, Vec<f64>)> {
    let tensors = model.graph().initializer.iter().map(|t| (t.name.clone().unwrap(), model.tensor(t).unwrap()));
    tensors.map(|(name, t)| (name, (t.dims().to_vec(), t.to_f64_vec().unwrap()))).collect()
}

fn seeded(name: &str, seed: u64) -> Model {
    zoo::build(name, &ZooOptions { seed, ..ZooOptions::default() }).unwrap()
}

fn loaded(name: &str, weights: Weights) -> Result<Model, ZooError> {
    zoo::build(name, &ZooOptions { weights: Some(weights), ..ZooOptions::default() })
}

#[test]
fn every_network_takes_its_own_parameters_back_from_onnx() {
    for entry in zoo::names().iter().filter(|e| e.name != "gp-gan") {
        let from = seeded(entry.name, 5);
        let model =
            loaded(entry.name, Weights::from_onnx(&from).unwrap()).unwrap_or_else(|e| panic!("{}: {e}", entry.name));
        assert!(parameters(&model) == parameters(&from), "{}", entry.name);
        let doc = model.proto.doc_string.as_deref().unwrap();
        assert!(doc.contains("loaded") && !doc.contains("seed"), "{doc}");
    }
}

#[test]
fn unfit_tensors_are_named() {
    let with = |change: &dyn Fn(&mut Model)| {
        let mut model = seeded("lenet5", 1);
        change(&mut model);
        loaded("lenet5", Weights::from_onnx(&model).unwrap()).unwrap_err()
    };
    let missing =
        with(&|m| m.proto.graph.as_option_mut().unwrap().initializer.retain(|t| t.name.as_deref() != Some("fc2.bias")));
    assert!(matches!(&missing, ZooError::MissingTensor { name } if name == "fc2.bias"), "{missing}");
    let extra = with(&|m| {
        let tensor = ConstTensor::from_f32(vec![1], &[0.0]).unwrap().to_proto("other");
        m.proto.graph.as_option_mut().unwrap().initializer.push(tensor);
    });
    assert!(matches!(&extra, ZooError::ExtraTensor { name } if name == "other"), "{extra}");
    let shape = with(&|m| m.proto.graph.as_option_mut().unwrap().initializer[0].dims = vec![6, 25, 1, 1]);
    assert!(
        matches!(&shape, ZooError::WrongShape { name, want, have } if name == "conv1.weight" && *want == [6, 1, 5, 5] && *have == [6, 25, 1, 1]),
        "{shape}"
    );
    let format = loaded("lenet5", read(FIXTURES[4].1).unwrap()).unwrap_err();
    assert!(matches!(format, ZooError::WeightsFormat { network: "lenet5", .. }), "{format}");
    // The fixture is a pickle of numpy arrays, but not of this network's.
    let other = loaded("squeezenet1.1", read(FIXTURES[4].1).unwrap()).unwrap_err();
    assert!(matches!(&other, ZooError::WrongShape { name, .. } if name == "conv1/0"), "{other}");
    let other = loaded("efficientnet-lite0", read(FIXTURES[6].1).unwrap()).unwrap_err();
    assert!(matches!(&other, ZooError::MissingTensor { name } if name == "_conv_stem.weight"), "{other}");
}

/// A pickler of just what the tests need.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn text(&mut self, text: &str) {
        self.0.push(b'X');
        self.0.extend(u32::try_from(text.len()).unwrap().to_le_bytes());
        self.0.extend(text.bytes());
    }
    fn int(&mut self, value: usize) {
        self.0.push(b'J');
        self.0.extend(i32::try_from(value).unwrap().to_le_bytes());
    }
    fn tuple(&mut self, values: &[usize]) {
        self.0.push(b'(');
        values.iter().for_each(|&v| self.int(v));
        self.0.push(b't');
    }
    fn array(&mut self, dims: &[usize], values: &[f32]) {
        self.0.extend(b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R(K\x01");
        self.tuple(dims);
        self.0.extend(b"cnumpy\ndtype\nX\x02\0\0\0f4K\x00K\x01\x87R(K\x03X\x01\0\0\0<NNNK\0K\0K\0tb\x89B");
        self.0.extend(u32::try_from(4 * values.len()).unwrap().to_le_bytes());
        self.0.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        self.0.extend(b"tb");
    }
}

#[test]
fn squeezenet_filters_are_turned_from_hwio() {
    let from = seeded("squeezenet1.1", 9);
    let mut layers: BTreeMap<String, Vec<Array>> = BTreeMap::new();
    // "bias" sorts before "weight"; the file's lists hold the weight first.
    for (name, (dims, values)) in parameters(&from).into_iter().rev() {
        let values: Vec<f32> = values.into_iter().map(|v| v as f32).collect();
        let (layer, _) = name.rsplit_once('.').unwrap();
        let entry = match *dims.as_slice() {
            [o, i, h, w] => {
                let mut turned = Vec::new();
                for (y, x) in (0..h).flat_map(|y| (0..w).map(move |x| (y, x))) {
                    for (inner, out) in (0..i).flat_map(|inner| (0..o).map(move |out| (inner, out))) {
                        turned.push(values[((out * i + inner) * h + y) * w + x]);
                    }
                }
                (vec![h, w, i, o], turned)
            }
            _ => (dims, values),
        };
        layers.entry(layer.to_owned()).or_default().push(entry);
    }
    let mut file = Writer::default();
    file.0.extend(b"\x80\x03}(");
    for (layer, tensors) in &layers {
        file.text(layer);
        file.0.extend(b"](");
        tensors.iter().for_each(|(dims, values)| file.array(dims, values));
        file.0.push(b'e');
    }
    file.0.extend(b"u.");
    let model = loaded("squeezenet1.1", read(&file.0).unwrap()).unwrap();
    assert!(parameters(&model) == parameters(&from));
}

#[test]
fn efficientnet_reads_a_torch_file_and_passes_over_its_counters() {
    let from = seeded("efficientnet-lite0", 2);
    let is_bound = |name: &str| name.ends_with("_relu6.min") || name.ends_with("_relu6.max");
    let weights: Vec<_> = parameters(&from).into_iter().filter(|(name, _)| !is_bound(name)).collect();
    let mut object = Writer::default();
    let mut keys = Writer::default();
    let mut storages: Vec<u8> = Vec::new();
    let mut add = |name: &str, class: &str, dims: &[usize], strides: &[usize], elements: usize, bytes: Vec<u8>| {
        object.text(name);
        object.0.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        object.text("storage");
        object.0.extend(format!("ctorch\n{class}\n").bytes());
        object.text(name);
        object.text("cpu");
        object.int(elements);
        object.0.extend(b"NtQK\0");
        object.tuple(dims);
        object.tuple(strides);
        object.0.extend(b"\x89ccollections\nOrderedDict\n)RtR");
        keys.text(name);
        storages.extend((elements as u64).to_le_bytes());
        storages.extend(bytes);
    };
    for (name, (dims, values)) in &weights {
        // Column-major, as the published file's tensors are: the strides matter.
        let strides: Vec<usize> = (0..dims.len()).map(|d| dims[..d].iter().product()).collect();
        let mut bytes = vec![0; 4 * values.len()];
        for (i, v) in values.iter().enumerate() {
            let mut rest = i;
            let mut at = 0;
            for (d, s) in dims.iter().zip(&strides).rev() {
                at += rest % d * s;
                rest /= d;
            }
            bytes[4 * at..4 * at + 4].copy_from_slice(&(*v as f32).to_le_bytes());
        }
        add(name, "FloatStorage", dims, &strides, values.len(), bytes);
        if let Some(norm) = name.strip_suffix(".running_var") {
            add(&format!("{norm}.num_batches_tracked"), "LongStorage", &[], &[], 1, vec![3, 0, 0, 0, 0, 0, 0, 0]);
        }
    }
    let file = [
        &b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}X\x0d\0\0\0little_endian\x88s."[..],
        b"\x80\x02ccollections\nOrderedDict\n)R(",
        &object.0,
        b"u.\x80\x02](",
        &keys.0,
        b"e.",
        &storages,
    ];
    let weights = read(&file.concat()).unwrap();
    assert_eq!(weights.format(), WeightsFormat::TorchPickle);
    let model = loaded("efficientnet-lite0", weights).unwrap();
    assert!(parameters(&model) == parameters(&from));
}

#[test]
fn files_are_told_apart_by_their_names() {
    let folder = tempfile::tempdir().unwrap();
    let (onnx, pickle) = (folder.path().join("a.onnx"), folder.path().join("a.pkl"));
    std::fs::write(&onnx, seeded("lenet5", 3).to_bytes().unwrap()).unwrap();
    std::fs::write(&pickle, FIXTURES[3].1).unwrap();
    let open = |path: &std::path::Path, limits: &Limits| Weights::open(path, limits);
    assert_eq!(open(&onnx, &Limits::default()).unwrap().format(), WeightsFormat::Onnx);
    assert_eq!(open(&pickle, &Limits::default()).unwrap().format(), WeightsFormat::NumpyPickle);
    let absent = open(&folder.path().join("absent.pkl"), &Limits::default()).unwrap_err().to_string();
    assert!(absent.contains("absent.pkl"), "{absent}");
    let long = open(&pickle, &Limits { file_bytes: 10, ..Limits::default() }).unwrap_err().to_string();
    assert!(long.contains("a.pkl") && long.contains("10"), "{long}");
}

/// The converted MLPerf Tiny model and our ResNet-8: the same nodes in the same order, and its weights taken over.
#[test]
fn resnet8_is_the_reference_model() {
    let path = std::env::var_os("CHIPFIT_SHARED")
        .map(|folder| std::path::Path::new(&folder).join("models/mlperf-tiny-resnet8-cifar10.onnx"));
    let Some(path) = path.filter(|p| p.is_file()) else {
        eprintln!("SKIPPED: CHIPFIT_SHARED names no folder with the reference ResNet-8, so it was not compared");
        return;
    };
    let reference = Model::open(&path, &Limits::default()).unwrap();
    let options = ZooOptions {
        weights: Some(Weights::open(&path, &Limits::default()).unwrap()),
        batch: None,
        opset: 13,
        ..ZooOptions::default()
    };
    let ours = zoo::build("resnet8", &options).unwrap();
    assert!(parameters(&ours) == parameters(&reference));
    let nodes = |model: &Model| -> Vec<_> {
        let attributes = |n: &chipfit_model::proto::NodeProto| {
            let values = n.attribute.iter().map(|a| (a.name.clone(), a.i, a.f, a.ints.clone()));
            values.collect::<Vec<_>>()
        };
        let node = |n: &chipfit_model::proto::NodeProto| {
            // A sum may name its two terms in either order.
            let mut inputs = n.input.clone();
            if n.op_type.as_deref() == Some("Add") {
                inputs.sort();
            }
            let mut attributes = attributes(n);
            attributes.sort_by(|a, b| a.0.cmp(&b.0));
            (n.op_type.clone(), inputs, n.output.clone(), attributes)
        };
        model.graph().node.iter().map(node).collect()
    };
    assert_eq!(nodes(&ours), nodes(&reference));
}
