//! The folded float model computes what the original computes.

mod support;

use chipfit_model::build::{attr_f, attr_i, attr_is};
use chipfit_quantize::Prepared;
use proptest::prelude::*;
use support::{Net, Numbers, operators, relative, run};

/// One layer of a random network: what it is and what follows it.
#[derive(Clone, Debug)]
struct Layer {
    kind: u8,
    bias: bool,
    tail: Vec<u8>,
}

fn layers() -> impl Strategy<Value = Vec<Layer>> {
    let layer = (0u8..4, any::<bool>(), proptest::collection::vec(0u8..7, 0..4));
    proptest::collection::vec(layer.prop_map(|(kind, bias, tail)| Layer { kind, bias, tail }), 1..4)
}

/// Convolutions of all kinds with constants, normalisations and activations behind them, in any order.
fn pictures(layers: &[Layer], seed: u64) -> Net {
    const CHANNELS: usize = 4;
    let mut net = Net::new(seed);
    let mut x = "x".to_owned();
    for (l, layer) in layers.iter().enumerate() {
        let y = format!("l{l}");
        match layer.kind {
            0 => net.conv(&x, &y, CHANNELS, CHANNELS, layer.bias),
            kind => {
                let (w, b) = (format!("{y}.w"), format!("{y}.b"));
                let dims: [usize; 4] = match kind {
                    1 => [CHANNELS, 1, 3, 3],
                    2 => [CHANNELS, CHANNELS / 2, 3, 3],
                    _ => [CHANNELS, CHANNELS, 3, 3],
                };
                net.random(&w, &dims, 0.4);
                let mut inputs = vec![x.as_str(), w.as_str()];
                if layer.bias {
                    net.random(&b, &[CHANNELS], 0.5);
                    inputs.push(&b);
                }
                let mut attributes = vec![attr_is("pads", &[1; 4])];
                let op = if kind == 1 { "Conv" } else { "ConvTranspose" };
                attributes.extend(match kind {
                    1 => Some(attr_i("group", 4)),
                    2 => Some(attr_i("group", 2)),
                    _ => None,
                });
                net.node(op, &inputs, &y, attributes);
            }
        }
        x = y;
        for (t, tail) in layer.tail.iter().enumerate() {
            let y = format!("l{l}t{t}");
            let c = format!("{y}.c");
            match tail {
                0 => net.norm(&x, &y, CHANNELS),
                1 => {
                    net.random(&c, &[CHANNELS, 1, 1], 1.0);
                    net.node("Add", &[&c, &x], &y, Vec::new());
                }
                2 => {
                    net.random(&c, &[1, CHANNELS, 1, 1], 2.0);
                    net.node("Mul", &[&x, &c], &y, Vec::new());
                }
                3 => {
                    net.constant(&c, &[], &[0.75]);
                    net.node("Sub", &[&x, &c], &y, Vec::new());
                }
                4 => {
                    net.constant(&c, &[1], &[1.5]);
                    net.node("Div", &[&x, &c], &y, Vec::new());
                }
                5 => net.node("Relu", &[&x], &y, Vec::new()),
                _ => {
                    // Two readers of one value: nothing may fold across.
                    net.node("Identity", &[&x], &c, Vec::new());
                    net.node("Add", &[&x, &c], &y, Vec::new());
                }
            }
            x = y;
        }
    }
    net.node("Identity", &[&x], "y", Vec::new());
    net
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(
        std::env::var("CHIPFIT_CASES").ok().and_then(|n| n.parse().ok()).map_or(48, |n: u32| n / 20)
    ))]

    #[test]
    fn random_convolutional_networks_stay_equal(layers in layers(), seed in any::<u64>()) {
        let model = pictures(&layers, seed).model(&[2, 4, 6, 5], "y");
        let prepared = Prepared::new(&model).unwrap().model().unwrap();
        prop_assert!(!operators(&prepared).iter().any(|op| op == "BatchNormalization"));
        let values = Numbers::new(seed ^ 1).list(2 * 4 * 6 * 5, 1.0);
        let (want, have) = (run(&model, &[2, 4, 6, 5], &values), run(&prepared, &[2, 4, 6, 5], &values));
        prop_assert!(relative(&want, &have) <= 1e-5, "{} {:?}", relative(&want, &have), operators(&prepared));
    }

    #[test]
    fn random_matrix_products_stay_equal(
        is_gemm in any::<bool>(), turned in any::<bool>(), flipped in any::<bool>(), bias in 0u8..4,
        alpha in prop_oneof![Just(1f32), 0.3f32..3.0], beta in prop_oneof![Just(1f32), 0.3f32..3.0],
        norm in any::<bool>(), seed in any::<u64>(),
    ) {
        let mut net = Net::new(seed);
        let (rows, inner, columns) = (3usize, 5usize, 4usize);
        let turned = turned && is_gemm;
        net.random("w", &if turned { [columns, inner] } else { [inner, columns] }, 1.0);
        let dims: &[usize] = match bias { 1 => &[4], 2 => &[1, 4], _ => &[3, 4] };
        if is_gemm {
            let mut inputs = vec!["x", "w"];
            if bias > 0 {
                net.random("c", dims, 1.0);
                inputs.push("c");
            }
            let flags = vec![
                attr_i("transB", turned.into()), attr_i("transA", flipped.into()),
                attr_f("alpha", alpha), attr_f("beta", if bias == 3 { 1.0 } else { beta }),
            ];
            net.node("Gemm", &inputs, "p", flags);
        } else {
            net.node("MatMul", &["x", "w"], "q", Vec::new());
            net.random("c", dims, 1.0);
            net.node("Add", &["q", "c"], "p", Vec::new());
        }
        if norm {
            net.norm("p", "y", columns);
        } else {
            net.node("Relu", &["p"], "y", Vec::new());
        }
        let dims = if is_gemm && flipped { [inner, rows] } else { [rows, inner] };
        let model = net.model(&dims.map(|d| d as i64), "y");
        let prepared = Prepared::new(&model).unwrap().model().unwrap();
        let values = Numbers::new(seed ^ 1).list(rows * inner, 1.0);
        let (want, have) = (run(&model, &dims, &values), run(&prepared, &dims, &values));
        prop_assert!(relative(&want, &have) <= 1e-5, "{} {:?}", relative(&want, &have), operators(&prepared));
        let constant_bias = matches!(bias, 1 | 2) || (is_gemm && bias == 0);
        if constant_bias {
            let have = operators(&prepared);
            prop_assert!(!have.iter().any(|op| op == "Add" || op == "BatchNormalization"), "{have:?}");
        }
    }
}

#[test]
fn a_normalisation_folds_into_a_convolution_without_bias() {
    let mut net = Net::new(1);
    net.conv("x", "c", 3, 4, false);
    net.norm("c", "y", 4);
    let prepared = Prepared::new(&net.model(&[1, 3, 4, 4], "y")).unwrap().model().unwrap();
    assert_eq!(operators(&prepared), ["Conv"]);
    assert_eq!(prepared.graph().node[0].input.len(), 3);
    assert_eq!(prepared.graph().node[0].output, ["y"]);
}

#[test]
fn a_normalisation_behind_a_shared_value_becomes_a_depthwise_convolution() {
    let mut net = Net::new(2);
    net.conv("x", "c", 3, 4, true);
    net.norm("c", "n", 4);
    net.node("Add", &["c", "n"], "y", Vec::new());
    let model = net.model(&[1, 3, 4, 4], "y");
    let prepared = Prepared::new(&model).unwrap().model().unwrap();
    assert_eq!(operators(&prepared), ["Conv", "Conv", "Add"]);
    let values = Numbers::new(3).list(48, 1.0);
    let (want, have) = (run(&model, &[1, 3, 4, 4], &values), run(&prepared, &[1, 3, 4, 4], &values));
    assert!(relative(&want, &have) <= 1e-5);
}

#[test]
fn a_weight_that_two_nodes_share_is_changed_for_one_alone() {
    let mut net = Net::new(4);
    net.conv("x", "a", 3, 3, false);
    net.norm("a", "n", 3);
    net.node("Conv", &["n", "a.w"], "y", vec![attr_is("pads", &[1; 4])]);
    let model = net.model(&[1, 3, 4, 4], "y");
    let prepared = Prepared::new(&model).unwrap().model().unwrap();
    let values = Numbers::new(5).list(48, 1.0);
    let (want, have) = (run(&model, &[1, 3, 4, 4], &values), run(&prepared, &[1, 3, 4, 4], &values));
    assert!(relative(&want, &have) <= 1e-5);
    assert_eq!(operators(&prepared), ["Conv", "Conv"]);
}
