//! The scatter loop against the definition written the other way round, and the shapes of the standard.

use chipfit_model::build::{attr_i, attr_is, attr_s, node};
use chipfit_model::proto::AttributeProto;

use super::*;
use crate::interp::mix;

/// A stream of small random numbers.
struct Stream(u64);

impl Stream {
    fn below(&mut self, n: u64) -> u64 {
        self.0 += 1;
        mix(self.0) % n
    }
    fn within(&mut self, low: i64, high: i64) -> i64 {
        low + self.below((high - low + 1) as u64) as i64
    }
    fn integers(&mut self, count: usize) -> Vec<i32> {
        (0..count).map(|_| self.within(-9, 9) as i32).collect()
    }
}

fn resolve(
    attributes: Vec<AttributeProto>,
    opset: i64,
    x: &[usize],
    w: &[usize],
    same: SameRule,
) -> Result<Geometry, GeometryError> {
    let node = node("ConvTranspose", "", &["x", "w"], &["y"], attributes);
    Geometry::resolve(&node, opset, x, w, same)
}

/// Gathers instead of scattering: for every output element, tries every input and kernel position.
fn gathered(g: &Geometry, x: &[i32], w: &[i32], bias: &[i32]) -> (Vec<i32>, Vec<u64>) {
    let positions = |lengths: Vec<usize>| -> Vec<Vec<i64>> {
        lengths.iter().fold(vec![vec![]], |all, &n| {
            all.iter().flat_map(|p| (0..n as i64).map(move |i| [p.as_slice(), &[i]].concat())).collect()
        })
    };
    let outputs = positions(g.axes.iter().map(|a| a.output).collect());
    let inputs = positions(g.axes.iter().map(|a| a.input).collect());
    let kernels = positions(g.axes.iter().map(|a| a.kernel).collect());
    let out_group = g.channels_out / g.group;
    let (mut y, mut terms) = (Vec::new(), Vec::new());
    for b in 0..g.batch {
        for m in 0..g.channels_out {
            for o in &outputs {
                let (mut sum, mut count) = (bias[m], 0);
                for c in 0..g.channels_in {
                    if c * g.group / g.channels_in != m / out_group {
                        continue;
                    }
                    for (i, at) in inputs.iter().enumerate() {
                        for (j, tap) in kernels.iter().enumerate() {
                            let meets = (0..o.len()).all(|a| {
                                let axis = &g.axes[a];
                                at[a] * axis.stride + tap[a] * axis.dilation == o[a] + axis.pad as i64
                            });
                            if meets {
                                let value = x[(b * g.channels_in + c) * inputs.len() + i];
                                sum += value * w[(c * out_group + m % out_group) * kernels.len() + j];
                                count += 1;
                            }
                        }
                    }
                }
                y.push(sum);
                if b == 0 && m == 0 {
                    terms.push(count);
                }
            }
        }
    }
    (y, terms)
}

#[test]
fn scattering_is_gathering_the_other_way_round() {
    let (mut run, mut negative_pads) = (0, 0);
    for seed in 0..600 {
        let mut s = Stream(seed << 20);
        let rank = 1 + s.below(3) as usize;
        let group = 1 + s.below(3) as usize;
        let (batch, in_group, out_group) = (1 + s.below(2) as usize, 1 + s.below(2) as usize, 1 + s.below(3) as usize);
        let longest = if rank == 3 { 2 } else { 4 };
        let mut list = |low: i64, high: i64, count: usize| (0..count).map(|_| s.within(low, high)).collect::<Vec<_>>();
        let (n, k) = (list(1, longest, rank), list(1, longest, rank));
        let attributes = vec![
            attr_is("strides", &list(1, 4, rank)),
            attr_is("dilations", &list(1, 3, rank)),
            attr_is("pads", &list(-1, 2, 2 * rank)),
            attr_is("output_padding", &list(0, 2, rank)),
            attr_i("group", group as i64),
        ];
        let spatial = |v: &[i64]| v.iter().map(|&v| v as usize).collect::<Vec<_>>();
        let x_dims = [vec![batch, group * in_group], spatial(&n)].concat();
        let w_dims = [vec![group * in_group, out_group], spatial(&k)].concat();
        let g = match resolve(attributes, 11, &x_dims, &w_dims, SameRule::Runtimes) {
            Ok(g) => g,
            Err(GeometryError::Empty { .. }) => continue,
            Err(e) => panic!("seed {seed}: {e}"),
        };
        negative_pads += usize::from(g.axes.iter().any(|a| a.pad < 0));
        let x = s.integers(x_dims.iter().product());
        let w = s.integers(w_dims.iter().product());
        let bias = s.integers(g.channels_out);
        let (expected, terms) = gathered(&g, &x, &w, &bias);
        assert_eq!(scatter_i32(&g, &x, &w, Some(&bias)).unwrap(), expected, "seed {seed}: {g:?}");
        assert_eq!(g.terms(), terms, "seed {seed}: {g:?}");
        assert!(terms.iter().all(|&t| t <= g.most_terms()), "seed {seed}");
        let wide = |v: &[i32]| v.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
        let sums = scatter_f64(&g, &wide(&x), &wide(&w), Some(&wide(&bias))).unwrap();
        let magnitude = |v: &[i32]| v.iter().map(|v| v.abs()).collect::<Vec<_>>();
        let magnitudes = gathered(&g, &magnitude(&x), &magnitude(&w), &vec![0; g.channels_out]).0;
        assert!(sums.iter().zip(&expected).all(|(s, &e)| s.value == f64::from(e)), "seed {seed}");
        assert!(sums.iter().zip(&magnitudes).all(|(s, &m)| s.magnitude == f64::from(m)), "seed {seed}");
        run += 1;
    }
    assert!(run > 400 && negative_pads > 100, "{run} settings, {negative_pads} with negative pads");
}

/// One axis: `(auto_pad, output_shape, opset, rule)` to `(pad, output)` for n = 3, k = 4, s = 2, d = 1, op = 1.
#[test]
fn shapes_resolve_as_the_definition_says() {
    struct Case(&'static str, Option<i64>, i64, SameRule, (i128, usize));
    use SameRule::{Runtimes, Spec};
    // Natural length: 2*2 + 1 + 4 = 9.
    let cases = [
        Case("NOTSET", None, 11, Runtimes, (1, 6)),
        Case("VALID", None, 11, Runtimes, (0, 9)),
        Case("SAME_UPPER", None, 11, Runtimes, (1, 6)),
        Case("SAME_LOWER", None, 11, Runtimes, (2, 6)),
        Case("SAME_UPPER", None, 1, Runtimes, (1, 6)),
        Case("SAME_UPPER", None, 1, Spec, (2, 6)),
        Case("SAME_LOWER", None, 10, Spec, (1, 6)),
        Case("SAME_LOWER", None, 11, Spec, (2, 6)),
        Case("NOTSET", Some(8), 11, Runtimes, (1, 8)),
        Case("NOTSET", Some(6), 11, Runtimes, (2, 6)),
        Case("NOTSET", Some(6), 9, Spec, (1, 6)),
        Case("SAME_UPPER", Some(6), 11, Runtimes, (1, 6)),
        // Larger than natural: a negative total, halved towards minus infinity.
        Case("SAME_UPPER", Some(12), 11, Runtimes, (-2, 12)),
        Case("NOTSET", Some(12), 11, Runtimes, (-1, 12)),
    ];
    let mut wrong = Vec::new();
    for Case(auto_pad, shape, opset, rule, (pad, output)) in cases {
        let mut attributes = vec![
            attr_s("auto_pad", auto_pad),
            attr_is("strides", &[2]),
            attr_is("output_padding", &[1]),
            attr_is("pads", &[1, 2]),
        ];
        attributes.extend(shape.map(|o| attr_is("output_shape", &[o])));
        let g = resolve(attributes, opset, &[1, 1, 3], &[1, 1, 4], rule).unwrap();
        if (g.axes[0].pad, g.axes[0].output) != (pad, output) {
            wrong.push(format!("{auto_pad} {shape:?} opset {opset} {rule:?}: {:?}", g.axes[0]));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn what_is_no_transposed_convolution_is_refused() {
    let x = [1, 4, 5];
    let refused = |attributes: Vec<AttributeProto>, w: &[usize]| {
        resolve(attributes, 11, &x, w, SameRule::Runtimes).expect_err("refused")
    };
    assert!(matches!(refused(vec![], &[3, 1, 2]), GeometryError::Shapes { .. }));
    assert!(matches!(refused(vec![attr_i("group", 3)], &[4, 1, 2]), GeometryError::Shapes { .. }));
    assert!(matches!(refused(vec![attr_i("group", 0)], &[4, 1, 2]), GeometryError::Shapes { .. }));
    assert!(matches!(refused(vec![], &[4, 1, 2, 2]), GeometryError::Shapes { .. }));
    let attribute = |a| matches!(refused(vec![a], &[4, 1, 2]), GeometryError::Attribute { .. });
    assert!(attribute(attr_is("strides", &[0])));
    assert!(attribute(attr_is("dilations", &[1, 1])));
    assert!(attribute(attr_is("kernel_shape", &[3])));
    assert!(attribute(attr_s("auto_pad", "SAME")));
    assert!(matches!(
        refused(vec![attr_is("pads", &[9, 9])], &[4, 1, 2]),
        GeometryError::Empty { axis: 0, length: -12 }
    ));
    let huge = refused(vec![attr_is("strides", &[i64::MAX])], &[4, 1, 2]);
    assert!(matches!(huge, GeometryError::Empty { .. } | GeometryError::TooLarge { .. }), "{huge}");
    let large = refused(vec![attr_is("strides", &[1 << 40])], &[4, 1, 2]);
    assert!(matches!(large, GeometryError::TooLarge { .. }), "{large}");
    let g = resolve(vec![], 11, &x, &[4, 1, 2], SameRule::Runtimes).unwrap();
    let short = scatter_i32(&g, &[0; 19], &[0; 8], None).unwrap_err();
    assert_eq!(short, GeometryError::Length { what: "the input", have: 19, want: 20 });
}
