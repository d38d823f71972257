//! The table of operators: from a node of the default domain to the types of its outputs.
//!
//! One entry serves all versions of an operator: where a list moved from an attribute to an input, the rule looks
//! at both. What is not in the table gives `None`.

use super::declared::tensor_type;
use super::value::Element;
use super::view::{Dims, View, axis_of, broadcast, length, signed, tensor, unify, unknown_dims};
use super::{Dim, TensorType, layout, scale, select, window};
use crate::tensor::DataType;

/// Types of the outputs; `None` where the operator is not understood or the node is malformed.
pub(super) fn infer(view: &View) -> Option<Vec<TensorType>> {
    let x = || view.dtype(0);
    let like_input = |dims: Option<Dims>| Some(vec![tensor(x(), dims)]);
    let of = |dtype: DataType, dims: Option<Dims>| Some(vec![tensor(Some(dtype), dims)]);
    let copied = |input: usize| view.dims(input).map(<[Dim]>::to_vec);
    match view.op() {
        "Abs"
        | "Acos"
        | "Acosh"
        | "Asin"
        | "Asinh"
        | "Atan"
        | "Atanh"
        | "BitwiseNot"
        | "Ceil"
        | "Celu"
        | "Clip"
        | "Cos"
        | "Cosh"
        | "CumProd"
        | "CumSum"
        | "Elu"
        | "Erf"
        | "Exp"
        | "Floor"
        | "Gelu"
        | "GroupNormalization"
        | "HardSigmoid"
        | "HardSwish"
        | "Hardmax"
        | "Identity"
        | "InstanceNormalization"
        | "LRN"
        | "LeakyRelu"
        | "Log"
        | "LogSoftmax"
        | "LpNormalization"
        | "MeanVarianceNormalization"
        | "Mish"
        | "Neg"
        | "Not"
        | "PRelu"
        | "RMSNormalization"
        | "Reciprocal"
        | "Relu"
        | "ReverseSequence"
        | "RotaryEmbedding"
        | "Round"
        | "Scatter"
        | "ScatterElements"
        | "ScatterND"
        | "Selu"
        | "Shrink"
        | "Sigmoid"
        | "Sign"
        | "Sin"
        | "Sinh"
        | "Softmax"
        | "Softplus"
        | "Softsign"
        | "Sqrt"
        | "Swish"
        | "Tan"
        | "Tanh"
        | "TensorScatter"
        | "ThresholdedRelu"
        | "Trilu"
        | "ImageScaler"
        | "ParametricSoftplus"
        | "Scale"
        | "ScaledTanh"
        | "Affine" => Some(vec![view.input(0)]),
        "IsInf" | "IsNaN" => of(DataType::Bool, copied(0)),
        "Cast" => Some(vec![tensor(view.dtype_attribute("to").or_else(|| old_cast(view)), copied(0))]),
        "CastLike" => Some(vec![tensor(view.dtype(1), copied(0))]),
        "Add" | "Sub" | "Mul" | "Div" | "Pow" | "Mod" | "BitShift" | "BitwiseAnd" | "BitwiseOr" | "BitwiseXor" => {
            like_input(elementwise(view))
        }
        "And" | "Or" | "Xor" | "Equal" | "Greater" | "GreaterOrEqual" | "Less" | "LessOrEqual" => {
            of(DataType::Bool, elementwise(view))
        }
        "Max" | "Min" | "Mean" | "Sum" => like_input(variadic(view)),
        "Where" => Some(vec![tensor(view.dtype(1).or(view.dtype(2)), broadcast_inputs(view, 0..3))]),
        "Conv" => like_input(window::convolution(view, 0, 1)),
        "DeformConv" => like_input(window::convolution(view, 0, 1)),
        "ConvInteger" => of(DataType::Int32, window::convolution(view, 0, 1)),
        "QLinearConv" => Some(vec![tensor(view.dtype(7), window::convolution(view, 0, 3))]),
        "ConvTranspose" => like_input(window::transposed_convolution(view)),
        "AveragePool" | "LpPool" | "MaxPool" => window::pooling(view),
        "MaxUnpool" => like_input(window::unpooling(view)),
        "GlobalAveragePool" | "GlobalLpPool" | "GlobalMaxPool" => like_input(view.dims(0).map(global)),
        "MaxRoiPool" => like_input(regions(view, view.ints("pooled_shape"), 1)),
        "RoiAlign" => {
            let size = [view.int_or("output_height", 1), view.int_or("output_width", 1)];
            like_input(regions(view, Some(&size), 2))
        }
        "Col2Im" => like_input(window::column_to_image(view)),
        "MatMul" => like_input(scale::matrix_product(view.dims(0), view.dims(1))),
        "MatMulInteger" => of(DataType::Int32, scale::matrix_product(view.dims(0), view.dims(1))),
        "QLinearMatMul" => Some(vec![tensor(view.dtype(7), scale::matrix_product(view.dims(0), view.dims(3)))]),
        "Gemm" => like_input(scale::gemm(view)),
        "Einsum" => like_input(scale::einsum(view)),
        "Det" => like_input(view.dims(0).and_then(|d| Some(d.get(..d.len().checked_sub(2)?)?.to_vec()))),
        "BatchNormalization" => {
            let statistics = tensor(view.dtype(1), view.dims(0).and_then(|d| Some(vec![d.get(1)?.clone()])));
            Some([view.input(0)].into_iter().chain(vec![statistics; 4]).collect())
        }
        "LayerNormalization" => layer_normalization(view),
        "Dropout" => {
            let mask = if view.opset >= 10 { Some(DataType::Bool) } else { x() };
            Some(vec![view.input(0), tensor(mask, copied(0))])
        }
        "QuantizeLinear" => {
            let dtype = view.dtype_attribute("output_dtype").or(if view.has(2) { view.dtype(2) } else { None });
            let default = (!view.has(2)).then_some(DataType::Uint8);
            Some(vec![tensor(dtype.or(default), copied(0))])
        }
        "DequantizeLinear" => Some(vec![tensor(view.dtype_attribute("output_dtype").or(view.dtype(1)), copied(0))]),
        "DynamicQuantizeLinear" => Some(vec![
            tensor(Some(DataType::Uint8), copied(0)),
            tensor(Some(DataType::Float), Some(Vec::new())),
            tensor(Some(DataType::Uint8), Some(Vec::new())),
        ]),
        "Reshape" => like_input(layout::reshape(view)),
        "Flatten" => like_input(layout::flatten(view)),
        "Squeeze" => like_input(layout::squeeze(view)),
        "Unsqueeze" => like_input(layout::unsqueeze(view)),
        "Transpose" => like_input(layout::transpose(view)),
        "Concat" => {
            let dtype = (0..view.inputs()).find_map(|i| view.dtype(i));
            Some(vec![tensor(dtype, layout::concat(view))])
        }
        "Pad" => like_input(layout::pad(view)),
        "CenterCropPad" => like_input(layout::center_crop_pad(view)),
        "Expand" => like_input(layout::expand(view)),
        "Tile" => like_input(layout::tile(view)),
        "DepthToSpace" => like_input(layout::depth_to_space(view)),
        "SpaceToDepth" => like_input(layout::space_to_depth(view)),
        "Resize" => like_input(scale::resize(view)),
        "Upsample" => like_input(scale::upsample(view)),
        "GridSample" => like_input(grid_sample(view)),
        "AffineGrid" => like_input(affine_grid(view)),
        "Split" => select::split(view),
        "Slice" => like_input(select::slice(view)),
        "Gather" => like_input(select::gather(view)),
        "GatherElements" => like_input(copied(1)),
        "GatherND" => like_input(select::gather_nd(view)),
        "ReduceL1" | "ReduceL2" | "ReduceLogSum" | "ReduceLogSumExp" | "ReduceMax" | "ReduceMean" | "ReduceMin"
        | "ReduceProd" | "ReduceSum" | "ReduceSumSquare" => like_input(select::reduce(view)),
        "ArgMax" | "ArgMin" => of(DataType::Int64, select::arg_reduce(view)),
        "TopK" => {
            let dims = select::top_k(view);
            Some(vec![tensor(x(), dims.clone()), tensor(Some(DataType::Int64), dims)])
        }
        "OneHot" => Some(vec![tensor(view.dtype(2), select::one_hot(view))]),
        "NonZero" => of(DataType::Int64, select::non_zero(view)),
        "Compress" => like_input(select::compress(view)),
        "Unique" => select::unique(view),
        "OptionalHasElement" => of(DataType::Bool, Some(Vec::new())),
        "SequenceLength" => of(DataType::Int64, Some(Vec::new())),
        "NonMaxSuppression" => of(DataType::Int64, Some(vec![Dim::Unknown, Dim::Known(3)])),
        "Shape" => {
            let length = view.dims(0).and_then(|d| shape_range(view, d.len())).map(|r| r.len());
            of(DataType::Int64, Some(vec![length.map_or(Dim::Unknown, Dim::Known)]))
        }
        "Size" => of(DataType::Int64, Some(Vec::new())),
        "Constant" => Some(vec![constant(view)?]),
        "ConstantOfShape" => {
            let value = view.attribute("value").and_then(|a| a.t.as_option());
            let dtype = value.map_or(Some(DataType::Float), |t| DataType::from_code(t.data_type?));
            Some(vec![tensor(dtype, shape_input(view, 0))])
        }
        "EyeLike" => Some(vec![tensor(view.dtype_attribute("dtype").or(x()), copied(0))]),
        "Range" => like_input(Some(vec![select::range_length(view)])),
        "RandomNormal" | "RandomUniform" => {
            let shape = view.ints("shape")?.iter().map(|&n| length(Some(n))).collect();
            Some(vec![tensor(view.dtype_attribute("dtype").or(Some(DataType::Float)), Some(shape))])
        }
        "RandomNormalLike" | "RandomUniformLike" | "Bernoulli" => {
            Some(vec![tensor(view.dtype_attribute("dtype").or(x()), copied(0))])
        }
        "Multinomial" => {
            let batch = view.dims(0).and_then(|d| d.first()).cloned().unwrap_or(Dim::Unknown);
            let dtype = view.dtype_attribute("dtype").or(Some(DataType::Int32));
            Some(vec![tensor(dtype, Some(vec![batch, length(Some(view.int_or("sample_size", 1)))]))])
        }
        "RNN" | "GRU" | "LSTM" => recurrent(view),
        "Attention" => attention(view),
        "BlackmanWindow" | "HannWindow" | "HammingWindow" => {
            let dtype = view.dtype_attribute("output_datatype").or(Some(DataType::Float));
            Some(vec![tensor(dtype, Some(vec![length(view.input_int(0))]))])
        }
        "MelWeightMatrix" => {
            let dtype = view.dtype_attribute("output_datatype").or(Some(DataType::Float));
            let bins = length(view.input_int(1).and_then(|n| (n / 2).checked_add(1)));
            Some(vec![tensor(dtype, Some(vec![bins, length(view.input_int(0))]))])
        }
        "DFT" => like_input(fourier(view)),
        "STFT" => like_input(short_time_fourier(view)),
        "NegativeLogLikelihoodLoss" | "SoftmaxCrossEntropyLoss" => {
            let reduced = view.string_or("reduction", "mean") != "none";
            let loss = if reduced { Some(Vec::new()) } else { copied(1) };
            Some(vec![tensor(x(), loss), view.input(0)])
        }
        _ => None,
    }
}

/// The first version named the type by a string.
fn old_cast(view: &View) -> Option<DataType> {
    let name = view.string_or("to", "");
    (0..32).filter_map(DataType::from_code).find(|d| d.name().eq_ignore_ascii_case(name))
}

/// Broadcasting of two inputs; before version 7 the second one followed the first.
fn elementwise(view: &View) -> Option<Dims> {
    if view.opset < 7 && !matches!(view.op(), "Mod" | "BitShift") {
        return view.dims(0).map(<[Dim]>::to_vec);
    }
    broadcast_inputs(view, 0..2)
}

/// Broadcasting of any number of inputs; before version 8 all had one shape.
fn variadic(view: &View) -> Option<Dims> {
    if view.opset < 8 {
        return (0..view.inputs()).find_map(|i| view.dims(i)).map(<[Dim]>::to_vec);
    }
    broadcast_inputs(view, 0..view.inputs())
}

fn broadcast_inputs(view: &View, inputs: std::ops::Range<usize>) -> Option<Dims> {
    let mut out = Vec::new();
    for input in inputs {
        out = broadcast(&out, view.dims(input)?);
    }
    Some(out)
}

fn global(x: &[Dim]) -> Dims {
    x.iter().enumerate().map(|(i, d)| if i < 2 { d.clone() } else { Dim::Known(1) }).collect()
}

/// `[regions, channels, size...]`; the number of regions is the length of input `rois`.
fn regions(view: &View, size: Option<&[i64]>, rois: usize) -> Option<Dims> {
    let channels = view.dims(0).and_then(|d| d.get(1)).cloned().unwrap_or(Dim::Unknown);
    let count = view.dims(rois).or(view.dims(1)).and_then(|d| d.first()).cloned().unwrap_or(Dim::Unknown);
    Some([count, channels].into_iter().chain(size?.iter().map(|&n| length(Some(n)))).collect())
}

fn layer_normalization(view: &View) -> Option<Vec<TensorType>> {
    let statistics = view.dims(0).and_then(|x| {
        let axis = axis_of(view.int_or("axis", -1), x.len())?;
        Some(x.iter().enumerate().map(|(i, d)| if i < axis { d.clone() } else { Dim::Known(1) }).collect())
    });
    let stash = DataType::from_code(i32::try_from(view.int_or("stash_type", 1)).ok()?);
    Some(vec![view.input(0), tensor(stash, statistics.clone()), tensor(stash, statistics)])
}

/// The shape that an input spells out; unknown lengths where only their number is known.
fn shape_input(view: &View, input: usize) -> Option<Dims> {
    match view.input_elements(input) {
        Some(elements) => Some(elements.iter().map(Element::dim).collect()),
        None => unknown_dims(view.vector_length(input)?),
    }
}

/// The part of a shape of `rank` that a Shape node returns.
pub(super) fn shape_range(view: &View, rank: usize) -> Option<std::ops::Range<usize>> {
    let n = i64::try_from(rank).ok()?;
    let clamp = |i: i64| if i < 0 { i.saturating_add(n) } else { i }.clamp(0, n);
    let start = usize::try_from(clamp(view.int_or("start", 0))).ok()?;
    let end = usize::try_from(clamp(view.int_or("end", n))).ok()?;
    Some(start..end.max(start))
}

fn constant(view: &View) -> Option<TensorType> {
    let list = |dtype, n: usize| tensor(dtype, Some(vec![Dim::Known(n)]));
    let scalar = |dtype| tensor(dtype, Some(Vec::new()));
    let find = |name: &str| view.attribute(name);
    if let Some(t) = find("value").and_then(|a| a.t.as_option()) {
        return Some(tensor_type(t.data_type, &t.dims));
    }
    if let Some(sparse) = find("sparse_value").and_then(|a| a.sparse_tensor.as_option()) {
        return Some(tensor_type(sparse.values.data_type, &sparse.dims));
    }
    find("value_int")
        .map(|_| scalar(Some(DataType::Int64)))
        .or_else(|| find("value_float").map(|_| scalar(Some(DataType::Float))))
        .or_else(|| find("value_string").map(|_| scalar(None)))
        .or_else(|| find("value_ints").map(|a| list(Some(DataType::Int64), a.ints.len())))
        .or_else(|| find("value_floats").map(|a| list(Some(DataType::Float), a.floats.len())))
        .or_else(|| find("value_strings").map(|a| list(None, a.strings.len())))
}

fn grid_sample(view: &View) -> Option<Dims> {
    let grid = view.dims(1)?;
    let x = view.dims(0);
    let channels = x.and_then(|x| x.get(1)).cloned().unwrap_or(Dim::Unknown);
    let [batch, spatial @ .., _] = grid else { return None };
    let batch = x.and_then(|x| x.first()).map_or_else(|| batch.clone(), |n| unify(n, batch));
    Some([batch, channels].into_iter().chain(spatial.iter().cloned()).collect())
}

fn affine_grid(view: &View) -> Option<Dims> {
    let size = shape_input(view, 1)?;
    let [batch, _, spatial @ ..] = size.as_slice() else { return None };
    let coordinates = Dim::Known(spatial.len());
    Some([batch.clone()].into_iter().chain(spatial.iter().cloned()).chain([coordinates]).collect())
}

/// RNN, GRU and LSTM.
fn recurrent(view: &View) -> Option<Vec<TensorType>> {
    let dtype = view.dtype(0);
    let batch_first = view.int_or("layout", 0) != 0;
    let at = |input: usize, i: usize| view.dims(input).and_then(|d| d.get(i)).cloned().unwrap_or(Dim::Unknown);
    let (sequence, batch) = if batch_first { (at(0, 1), at(0, 0)) } else { (at(0, 0), at(0, 1)) };
    let directions = Dim::Known(if view.string_or("direction", "forward") == "bidirectional" { 2 } else { 1 });
    let hidden = match view.int("hidden_size") {
        Some(n) => length(Some(n)),
        None => at(2, 2),
    };
    let (all, last) = if batch_first {
        (vec![batch.clone(), sequence, directions.clone(), hidden.clone()], vec![batch, directions, hidden])
    } else {
        (vec![sequence, directions.clone(), batch.clone(), hidden.clone()], vec![directions, batch, hidden])
    };
    let last = tensor(dtype, Some(last));
    Some(vec![tensor(dtype, Some(all)), last.clone(), last])
}

/// Attention over `[batch, heads, length, size]`, or `[batch, length, heads * size]`.
fn attention(view: &View) -> Option<Vec<TensorType>> {
    let (q, v) = (view.dims(0)?, view.dims(2)?);
    let dims = match (q, v) {
        ([batch, heads, length, _], [.., size]) if v.len() == 4 => {
            vec![batch.clone(), heads.clone(), length.clone(), size.clone()]
        }
        ([batch, rows, _], [_, _, size]) => {
            let heads = view.int("q_num_heads").zip(view.int("kv_num_heads"));
            let size = signed(size).zip(heads).and_then(|(s, (q, kv))| s.checked_mul(q)?.checked_div(kv));
            vec![batch.clone(), rows.clone(), length(size)]
        }
        _ => return None,
    };
    Some(vec![tensor(view.dtype(0), Some(dims))])
}

/// DFT: the transformed axis may be cut or padded, and a real signal becomes complex.
fn fourier(view: &View) -> Option<Dims> {
    let x = view.dims(0)?;
    let axis =
        if view.opset >= 20 { if view.has(2) { view.input_int(2)? } else { -2 } } else { view.int_or("axis", 1) };
    let axis = axis_of(axis, x.len())?;
    let (onesided, inverse) = (view.int_or("onesided", 0) != 0, view.int_or("inverse", 0) != 0);
    let mut out = x.to_vec();
    let dim = out.get_mut(axis)?;
    if view.has(1) {
        *dim = length(view.input_int(1));
    }
    if onesided && !inverse {
        *dim = length(signed(dim).and_then(|n| (n / 2).checked_add(1)));
    } else if onesided {
        return unknown_dims(x.len());
    }
    *out.last_mut()? = Dim::Known(2);
    Some(out)
}

fn short_time_fourier(view: &View) -> Option<Dims> {
    let x = view.dims(0)?;
    let window = view.vector_length(2).and_then(|n| i64::try_from(n).ok());
    let frame = if view.has(3) { view.input_int(3) } else { window };
    let frames = x
        .get(1)
        .and_then(signed)
        .zip(frame)
        .zip(view.input_int(1))
        .and_then(|((n, frame), step)| n.checked_sub(frame).filter(|&n| n >= 0)?.checked_div(step)?.checked_add(1));
    let bins = if view.int_or("onesided", 1) != 0 { frame.and_then(|f| (f / 2).checked_add(1)) } else { frame };
    Some(vec![x.first()?.clone(), length(frames), length(bins), Dim::Known(2)])
}
