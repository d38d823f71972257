//! Settings of one ConvTranspose: each form keeps the node, or gives a valid model that is proven equal.
#![no_main]

use std::collections::BTreeMap;

use arbitrary::Arbitrary;
use chipfit_deconv::rewrite::{Crop, Form, Interleave, Options, plan};
use chipfit_model::build::{DimSpec, attr_i, attr_is, attr_s, node, value_info};
use chipfit_model::proto::{GraphProto, ModelProto, OperatorSetIdProto};
use chipfit_model::shape::infer;
use chipfit_model::{ConstTensor, DataType, Index, Limits, Model};
use chipfit_run::prove::{Claim, ProveOptions, Verdict, prove};
use libfuzzer_sys::fuzz_target;

/// One spatial axis; each number is taken modulo a small bound.
#[derive(Arbitrary, Debug)]
struct Axis {
    n: u8,
    kernel: u8,
    stride: u8,
    dilation: u8,
    begin: u8,
    end: u8,
    output_padding: u8,
    output_shape: u8,
}

/// A node and how to rewrite it.
#[derive(Arbitrary, Debug)]
struct Setting {
    axes: Vec<Axis>,
    group: u8,
    channels: [u8; 2],
    auto_pad: u8,
    opset: u8,
    form: u8,
    interleave: u8,
    alignment: bool,
    bias: bool,
    shaped: bool,
    max_channels: u8,
}

fn model(s: &Setting) -> Option<Model> {
    let axes: Vec<&Axis> = s.axes.iter().take(3).collect();
    if axes.is_empty() {
        return None;
    }
    let group = usize::from(s.group % 3) + 1;
    let (c_in, m) = (group * (usize::from(s.channels[0] % 3) + 1), usize::from(s.channels[1] % 3) + 1);
    let list = |f: &dyn Fn(&Axis) -> u8| axes.iter().map(|a| i64::from(f(a))).collect::<Vec<i64>>();
    let kernel = list(&|a| a.kernel % 5 + 1);
    let mut attributes = vec![
        attr_i("group", i64::try_from(group).ok()?),
        attr_is("strides", &list(&|a| a.stride % 5 + 1)),
        attr_is("dilations", &list(&|a| a.dilation % 3 + 1)),
        attr_is("output_padding", &list(&|a| a.output_padding % (a.stride % 5 + 1))),
    ];
    match s.auto_pad % 4 {
        0 => attributes.push(attr_s("auto_pad", "SAME_UPPER")),
        1 => attributes.push(attr_s("auto_pad", "SAME_LOWER")),
        2 => attributes.push(attr_s("auto_pad", "VALID")),
        _ => attributes.push(attr_is("pads", &[list(&|a| a.begin % 4), list(&|a| a.end % 4)].concat())),
    }
    if s.shaped {
        attributes.push(attr_is("output_shape", &list(&|a| a.output_shape % 24 + 1)));
    }
    let constant = |dims: Vec<usize>| {
        let count = dims.iter().product();
        // Distinct and exact, so that a tap in the wrong place shows.
        let values: Vec<f32> = (0..count).map(|i: usize| (i % 251) as f32 - 125.0).collect();
        ConstTensor::from_f32(dims, &values)
    };
    let mut w = vec![c_in, m];
    w.extend(kernel.iter().filter_map(|&k| usize::try_from(k).ok()));
    let mut inputs = vec!["x", "w"];
    let mut initializer = vec![constant(w)?.to_proto("w")];
    if s.bias {
        inputs.push("b");
        initializer.push(constant(vec![m * group])?.to_proto("b"));
    }
    let mut x = vec![DimSpec::Known(1), DimSpec::Known(i64::try_from(c_in).ok()?)];
    x.extend(list(&|a| a.n % 6 + 1).into_iter().map(DimSpec::Known));
    let graph = GraphProto {
        name: Some("fuzz".to_owned()),
        node: vec![node("ConvTranspose", "node", &inputs, &["y"], attributes)],
        input: vec![value_info("x", DataType::Float, &x)],
        output: vec![chipfit_model::proto::ValueInfoProto { name: Some("y".to_owned()), ..Default::default() }],
        initializer,
        ..GraphProto::default()
    };
    let version = [1, 7, 11, 13, 17, 22][usize::from(s.opset) % 6];
    let opset = OperatorSetIdProto { version: Some(version), ..OperatorSetIdProto::default() };
    let proto =
        ModelProto { ir_version: Some(8), opset_import: vec![opset], graph: graph.into(), ..ModelProto::default() };
    Some(Model { proto, folder: None })
}

fuzz_target!(|s: Setting| {
    let Some(original) = model(&s) else { return };
    let options = Options {
        form: [None, Some(Form::Split), Some(Form::RowSplit), Some(Form::Fused), Some(Form::ZeroPad)]
            [usize::from(s.form) % 5],
        interleave: [None, Some(Interleave::DepthToSpace), Some(Interleave::Reshape), Some(Interleave::Concat)]
            [usize::from(s.interleave) % 4],
        crop: if s.alignment { Crop::Alignment } else { Crop::Slice },
        max_channels: (s.max_channels > 127).then(|| usize::from(s.max_channels - 127)),
        ..Options::default()
    };
    let index = Index::new(&original);
    let shapes = infer(&index, &BTreeMap::new()).expect("no overrides");
    let rewrite = plan(&index, &shapes, &options).expect("names nothing");
    let mut written = original.clone();
    written.apply(&rewrite.patch).unwrap_or_else(|e| panic!("{s:?}: {e}"));
    let bytes = written.to_bytes().expect("encodes");
    let written = Model::from_bytes(bytes.into(), &Limits::default()).unwrap_or_else(|e| panic!("{s:?}: {e}"));
    let claims: Vec<Claim> = rewrite
        .nodes
        .iter()
        .filter_map(|node| {
            let segment = node.segment.as_ref()?;
            Some(Claim {
                scope: segment.scope,
                input: segment.input.clone(),
                output: segment.output.clone(),
                conv_transpose: segment.conv_transpose.clone(),
                name: node.name.clone(),
                exact: true,
            })
        })
        .collect();
    let proofs = prove(&original, &written, &shapes, &claims, &ProveOptions::default(), &mut |_, _| ())
        .unwrap_or_else(|e| panic!("{s:?}: {e}"));
    for proof in proofs {
        assert_eq!(proof.verdict, Verdict::Proven, "{s:?}");
    }
});
