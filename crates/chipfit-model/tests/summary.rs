//! Facts about nodes: MACs against a plain count, parameters, totals.

mod support;

use std::collections::BTreeMap;

use chipfit_model::build::{DimSpec, attr_i, attr_is, attr_s, node, value_info};
use chipfit_model::proto::{NodeProto, TensorProto, ValueInfoProto};
use chipfit_model::shape::infer;
use chipfit_model::summary::{Summary, summarize};
use chipfit_model::{ConstTensor, DataType, Index, Limits, Model};
use support::{folder, graph, model};

fn zeros(name: &str, dims: &[usize]) -> TensorProto {
    ConstTensor::from_f32(dims.to_vec(), &vec![0.0; dims.iter().product()]).expect("the count fits").to_proto(name)
}

fn input(name: &str, dims: &[i64]) -> ValueInfoProto {
    value_info(name, DataType::Float, &dims.iter().map(|&d| DimSpec::Known(d)).collect::<Vec<_>>())
}

fn summary(m: &Model) -> Summary {
    let index = Index::new(m);
    summarize(&index, &infer(&index, &BTreeMap::new()).expect("no overrides"))
}

fn one(n: NodeProto, inputs: Vec<ValueInfoProto>, constants: Vec<TensorProto>) -> Option<u64> {
    let mut g = graph(&[n], &[], &[]);
    (g.input, g.initializer) = (inputs, constants);
    let s = summary(&model(g));
    assert_eq!(s.macs, s.nodes[0].macs.unwrap_or(0));
    assert_eq!(s.nodes_without_macs, usize::from(s.nodes[0].macs.is_none()));
    s.nodes[0].macs
}

/// The scatter loop of a transposed convolution in one dimension, counting instead of multiplying.
fn count_scatter(batch: usize, length: usize, c_in: usize, c_out: usize, group: usize, kernel: usize) -> u64 {
    let mut products = 0;
    for _ in 0..batch {
        for ci in 0..c_in {
            for co in 0..c_out {
                // Channels meet only in their own group.
                if ci / (c_in / group) == co / (c_out / group) {
                    for _ in 0..length {
                        for _ in 0..kernel {
                            products += 1;
                        }
                    }
                }
            }
        }
    }
    products
}

#[test]
fn transposed_convolutions_count_as_the_scatter_loop() {
    for (batch, length, c_in, c_out, group, kernel) in
        [(1, 5, 4, 6, 1, 3), (2, 7, 4, 6, 2, 3), (3, 1, 6, 6, 6, 4), (1, 9, 2, 8, 2, 1)]
    {
        for strides in [1, 2, 5] {
            let attributes = vec![attr_i("group", group as i64), attr_is("strides", &[strides])];
            let n = node("ConvTranspose", "", &["x", "w"], &["y"], attributes);
            let x = input("x", &[batch as i64, c_in as i64, length as i64]);
            let macs = one(n, vec![x], vec![zeros("w", &[c_in, c_out / group, kernel])]);
            assert_eq!(macs, Some(count_scatter(batch, length, c_in, c_out, group, kernel)));
        }
    }
}

#[test]
fn convolutions_and_products_count_per_output_element() {
    let x = || vec![input("x", &[2, 4, 8, 8])];
    let conv = |attributes| node("Conv", "", &["x", "w"], &["y"], attributes);
    // 2 x 6 x 6 x 6 outputs, 4 channels of 3 x 3.
    assert_eq!(one(conv(Vec::new()), x(), vec![zeros("w", &[6, 4, 3, 3])]), Some(2 * 6 * 36 * 36));
    let depthwise = conv(vec![attr_i("group", 4), attr_s("auto_pad", "SAME_UPPER")]);
    assert_eq!(one(depthwise, x(), vec![zeros("w", &[4, 1, 3, 3])]), Some(2 * 4 * 64 * 9));
    let product = node("MatMul", "", &["a", "b"], &["y"], Vec::new());
    assert_eq!(one(product, vec![input("a", &[5, 2, 3])], vec![zeros("b", &[3, 7])]), Some(5 * 2 * 3 * 7));
    let gemm = node("Gemm", "", &["a", "b"], &["y"], vec![attr_i("transA", 1), attr_i("transB", 1)]);
    assert_eq!(one(gemm, vec![input("a", &[3, 2])], vec![zeros("b", &[7, 3])]), Some(2 * 3 * 7));
    let einsum = node("Einsum", "", &["a", "b"], &["y"], vec![attr_s("equation", "bij,bjk->bik")]);
    assert_eq!(one(einsum, vec![input("a", &[5, 2, 3])], vec![zeros("b", &[5, 3, 7])]), Some(5 * 2 * 3 * 7));
    let lstm = node("LSTM", "", &["a", "w", "r"], &["y"], vec![attr_i("hidden_size", 4)]);
    let weights = vec![zeros("w", &[1, 16, 3]), zeros("r", &[1, 16, 4])];
    assert_eq!(one(lstm, vec![input("a", &[5, 2, 3])], weights), Some(5 * 2 * (16 * 3 + 16 * 4)));
    assert_eq!(one(node("Relu", "", &["x"], &["y"], Vec::new()), x(), Vec::new()), Some(0));
}

#[test]
fn what_is_not_known_is_not_guessed() {
    let conv = node("Conv", "", &["x", "w"], &["y"], Vec::new());
    let open = value_info("x", DataType::Float, &["N".into(), 4.into(), 8.into(), 8.into()]);
    assert_eq!(one(conv.clone(), vec![open], vec![zeros("w", &[6, 4, 3, 3])]), None);
    let mut custom = node("Conv", "", &["x", "w"], &["y"], Vec::new());
    custom.domain = Some("somewhere.else".to_owned());
    assert_eq!(one(custom, vec![input("x", &[1, 4, 8, 8])], vec![zeros("w", &[6, 4, 3, 3])]), None);
    let huge = input("x", &[i64::MAX, 4, 8, 8]);
    assert_eq!(one(conv, vec![huge], vec![zeros("w", &[6, 4, 3, 3])]), None, "more than 64 bits");
}

#[test]
fn each_constant_counts_once_in_the_totals() {
    let value = chipfit_model::build::attr_t("value", zeros("", &[2]));
    let nodes = [
        node("Constant", "", &[] as &[&str], &["k"], vec![value]),
        node("Identity", "", &["w"], &["i"], Vec::new()),
        node("Add", "first", &["x", "w"], &["a"], Vec::new()),
        node("Add", "second", &["a", "i"], &["b"], Vec::new()),
        node("Add", "third", &["b", "k"], &["y"], Vec::new()),
    ];
    let mut g = graph(&nodes, &["x"], &["y"]);
    g.initializer = vec![zeros("w", &[5]), zeros("unread", &[100])];
    let s = summary(&model(g));
    let parameters: Vec<u64> = s.nodes.iter().map(|n| n.parameters).collect();
    assert_eq!(parameters, [0, 5, 5, 5, 2]);
    assert_eq!(s.parameters, 7);
    assert_eq!(s.nodes[3].inputs[1].constant, Some(5), "through the Identity");
    assert_eq!(s.nodes[3].inputs[0].constant, None);
    assert_eq!(s.nodes[2].name, "first");
    assert_eq!(s.nodes[0].name, "Constant#0");
    assert_eq!(s.operators[&(String::new(), "Add".to_owned())], 3);
}

#[test]
fn resnet8_has_its_published_cost() {
    let Some(models) = folder("CHIPFIT_SHARED", "models") else { return };
    let path = models.join("mlperf-tiny-resnet8-cifar10.onnx");
    let m = Model::open(&path, &Limits::default()).expect("a model");
    let index = Index::new(&m);
    let image = BTreeMap::from([("image".to_owned(), vec![1, 3, 32, 32])]);
    let s = summarize(&index, &infer(&index, &image).expect("fits the file"));
    assert_eq!(s.nodes_without_macs, 0);
    // 12.5 million multiply-accumulates, 78 thousand parameters (MLPerf Tiny's own figures).
    assert!((12_400_000..12_600_000).contains(&s.macs), "{}", s.macs);
    assert!((77_000..79_500).contains(&s.parameters), "{}", s.parameters);
}
