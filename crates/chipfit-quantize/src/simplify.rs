//! Brings a graph into the few forms that folding and quantisation know.
//!
//! Idle nodes go (Identity, Dropout), constants are computed, and equal things get one spelling: Sub and Div by a
//! constant become Add and Mul, a mean over all of a picture becomes GlobalAveragePool, Gemm loses its factors and
//! its transposed first operand. Every step keeps the model's function; only rounding of constants may differ.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use chipfit_model::build::{attr, attr_i, attr_is, get_f, get_i, get_is, get_s, is_op, node, value_info};
use chipfit_model::proto::{NodeProto, ValueInfoProto};
use chipfit_model::{ConstTensor, DataType, Index, Shapes, shape};
use chipfit_run::engine::{Engine as _, RtenEngine};

use crate::error::QuantizeError;
use crate::graph::{Graph, input, name_of, node_error, output};
use crate::opset;

/// The types of all values of `graph`.
pub(crate) fn types(graph: &Graph) -> Result<Shapes, QuantizeError> {
    let model = graph.to_model()?;
    Ok(shape::infer(&Index::new(&model), &BTreeMap::new())?)
}

/// Most elements of a constant that is computed here.
const MAX_FOLDED: usize = 1 << 28;

/// All of it, the operator set included.
pub(crate) fn simplify(graph: &mut Graph) -> Result<(), QuantizeError> {
    drop_idle(graph)?;
    // Shapes are read under the old operator set, whose rules they follow.
    let shapes = types(graph)?;
    opset::raise(graph, &shapes)?;
    fold_constants(graph)?;
    let shapes = types(graph)?;
    respell(graph, &shapes)?;
    graph.drop_dead_nodes();
    Ok(())
}

/// Removes Identity and Dropout.
fn drop_idle(graph: &mut Graph) -> Result<(), QuantizeError> {
    let readers: BTreeSet<String> = graph.nodes.iter().flat_map(|n| &n.input).cloned().collect();
    let outputs: BTreeSet<String> = graph.outputs.iter().map(|o| name_of(o).to_owned()).collect();
    let mut renamed: HashMap<String, String> = HashMap::new();
    // Outputs of the model behind an idle node, with the value that they are.
    let mut outlets: Vec<(String, String)> = Vec::new();
    let mut kept = Vec::with_capacity(graph.nodes.len());
    for mut node in std::mem::take(&mut graph.nodes) {
        for name in &mut node.input {
            if let Some(new) = renamed.get(name) {
                new.clone_into(name);
            }
        }
        let dropout = is_op(&node, "Dropout");
        if !is_op(&node, "Identity") && !dropout {
            kept.push(node);
            continue;
        }
        let (Some(x), y) = (input(&node, 0), output(&node)) else { return Err(node_error(&node, "it has no input")) };
        if dropout {
            let mask = node.output.get(1).filter(|m| !m.is_empty());
            if mask.is_some_and(|m| outputs.contains(m) || readers.contains(m)) {
                return Err(node_error(&node, "its mask is read; export the model for inference"));
            }
            if !opset::is_idle_dropout(graph, &node) {
                return Err(node_error(&node, "it drops at run time; export the model for inference"));
            }
        }
        if !outputs.contains(y) {
            renamed.insert(y.to_owned(), x.to_owned());
        } else if !graph.is_input(x) && !outputs.contains(x) && !graph.constants.contains_key(x) {
            outlets.push((x.to_owned(), y.to_owned()));
        } else {
            kept.push(node);
        }
    }
    graph.nodes = kept;
    for (x, y) in outlets {
        // A value takes the name that callers know; where it has taken one already, a second name stays a node.
        if graph.producers().contains_key(x.as_str()) {
            graph.redirect(&x, &y);
            graph
                .nodes
                .iter_mut()
                .flat_map(|n| &mut n.output)
                .filter(|name| **name == x)
                .for_each(|name| y.clone_into(name));
            renamed.insert(x, y);
        } else {
            let x = renamed.get(&x).cloned().unwrap_or(x);
            graph.nodes.push(node("Identity", &format!("{y}_copy"), &[x], &[y], Vec::new()));
        }
    }
    Ok(())
}

/// Computes every node all of whose inputs are constants, in the embedded engine. What that cannot do stays.
fn fold_constants(graph: &mut Graph) -> Result<(), QuantizeError> {
    let shapes = types(graph)?;
    let mut known: BTreeSet<&str> = graph.constants.keys().map(String::as_str).collect();
    let is_random = |n: &NodeProto| n.op_type.as_deref().unwrap_or_default().starts_with("Random");
    let mut constant_nodes = Vec::new();
    for (position, node) in graph.nodes.iter().enumerate() {
        let reads_only_constants =
            !node.input.is_empty() && node.input.iter().all(|i| i.is_empty() || known.contains(i.as_str()));
        let is_small = |name: &String| {
            let dims = shapes.get(0, name).known_dims();
            dims.and_then(|d| d.iter().try_fold(1usize, |n, &d| n.checked_mul(d))).is_some_and(|n| n <= MAX_FOLDED)
        };
        if reads_only_constants && !is_random(node) && node.output.iter().filter(|o| !o.is_empty()).all(is_small) {
            known.extend(node.output.iter().map(String::as_str));
            constant_nodes.push(position);
        }
    }
    let picked: BTreeSet<usize> = constant_nodes.iter().copied().collect();
    let made_by = |position: &usize| graph.nodes.get(*position).into_iter().flat_map(|n| &n.output);
    let made: BTreeSet<&str> = constant_nodes.iter().flat_map(made_by).map(String::as_str).collect();
    let mut wanted: BTreeSet<&str> = BTreeSet::new();
    for (position, node) in graph.nodes.iter().enumerate() {
        if !picked.contains(&position) {
            wanted.extend(node.input.iter().map(String::as_str).filter(|i| made.contains(i)));
        }
    }
    if wanted.is_empty() {
        return Ok(());
    }
    let declared = |name: &&str| -> Option<ValueInfoProto> { Some(value_info(name, shapes.get(0, name).dtype?, &[])) };
    let Some(mut outputs) = wanted.iter().map(declared).collect::<Option<Vec<_>>>() else { return Ok(()) };
    for info in &mut outputs {
        forget_shape(info);
    }
    let mut part = graph.clone();
    part.nodes = constant_nodes.iter().filter_map(|&p| graph.nodes.get(p).cloned()).collect();
    part.inputs = Vec::new();
    part.outputs = outputs;
    let bytes = Bytes::from(part.to_model()?.to_bytes().map_err(|_| QuantizeError::TooLong)?);
    let engine = RtenEngine { threads: 1, ..RtenEngine::default() };
    let Ok(results) = engine.load(&bytes, None).and_then(|mut session| session.run(&[])) else { return Ok(()) };
    for (name, tensor) in results {
        graph.constants.insert(name, tensor);
    }
    let known = &graph.constants;
    graph.nodes.retain(|n| !n.output.iter().any(|o| known.contains_key(o)));
    Ok(())
}

/// A value info of a type alone.
pub(crate) fn forget_shape(info: &mut ValueInfoProto) {
    use chipfit_model::proto::__buffa::oneof::type_proto::Value;
    if let Some(Value::TensorType(t)) = info.r#type.as_option_mut().and_then(|t| t.value.as_mut()) {
        t.shape = Default::default();
    }
}

/// The float elements of a constant.
pub(crate) fn floats(tensor: &ConstTensor) -> Option<Vec<f64>> {
    tensor.to_f64_vec().filter(|_| tensor.dtype() == DataType::Float)
}

/// A float constant of `dims`.
pub(crate) fn float_tensor(dims: &[usize], values: &[f64]) -> Option<ConstTensor> {
    let values: Vec<f32> = values.iter().map(|&v| to_f32(v)).collect();
    ConstTensor::from_f32(dims.to_vec(), &values)
}

/// The nearest float.
#[expect(clippy::cast_possible_truncation, reason = "rounding to the nearest float is what is meant")]
pub(crate) fn to_f32(value: f64) -> f32 {
    value as f32
}

/// Gives equal things one spelling.
fn respell(graph: &mut Graph, shapes: &Shapes) -> Result<(), QuantizeError> {
    let mut next = Vec::with_capacity(graph.nodes.len());
    for old in std::mem::take(&mut graph.nodes) {
        let op = old.op_type.as_deref().unwrap_or_default();
        let is_default = matches!(old.domain.as_deref(), None | Some("" | "ai.onnx"));
        let float = input(&old, 0).is_some_and(|x| is_float(graph, shapes, x));
        if !is_default || !float {
            next.push(old);
            continue;
        }
        match op {
            "Sub" | "Div" => next.push(by_constant(graph, &old).unwrap_or(old)),
            "Sum" if old.input.len() == 2 => next.push(NodeProto { op_type: Some("Add".to_owned()), ..old }),
            "ReduceMean" => next.extend(mean(graph, shapes, &old).unwrap_or_else(|| vec![old])),
            "Gemm" => next.extend(gemm(graph, shapes, &old)?),
            "Conv" | "ConvTranspose" => next.push(spelled_out(graph, old)),
            _ => next.push(old),
        }
    }
    graph.nodes = next;
    Ok(())
}

/// Whether a value is float, as far as the file tells.
pub(crate) fn is_float(graph: &Graph, shapes: &Shapes, name: &str) -> bool {
    match graph.constants.get(name) {
        Some(constant) => constant.dtype() == DataType::Float,
        None => shapes.get(0, name).dtype == Some(DataType::Float),
    }
}

/// `x - c` as `x + (-c)`, `x / c` as `x * (1 / c)`.
fn by_constant(graph: &mut Graph, old: &NodeProto) -> Option<NodeProto> {
    let constant = graph.constant(old, 1)?;
    if graph.constant(old, 0).is_some() {
        return None;
    }
    let values = floats(constant)?;
    let subtracts = is_op(old, "Sub");
    if !subtracts && values.iter().any(|v| !v.is_normal()) {
        return None;
    }
    let changed: Vec<f64> = values.iter().map(|v| if subtracts { -v } else { 1.0 / v }).collect();
    let tensor = float_tensor(constant.dims(), &changed)?;
    let suffix = if subtracts { "negated" } else { "inverse" };
    let name = graph.add_constant(&format!("{}_{suffix}", input(old, 1)?), tensor);
    let mut new = old.clone();
    new.op_type = Some(if subtracts { "Add" } else { "Mul" }.to_owned());
    *new.input.get_mut(1)? = name;
    Some(new)
}

/// A mean over the last two of four axes is GlobalAveragePool.
fn mean(graph: &mut Graph, shapes: &Shapes, old: &NodeProto) -> Option<Vec<NodeProto>> {
    let x = input(old, 0)?;
    let axes = match get_is(old, "axes") {
        Some(axes) => axes.to_vec(),
        None => graph.constant(old, 1)?.to_i64_vec()?,
    };
    let rank = shapes.get(0, x).dims?.len();
    let mut axes: Vec<i64> = axes.iter().map(|&a| if a < 0 { a.saturating_add(4) } else { a }).collect();
    axes.sort_unstable();
    if rank != 4 || axes != [2, 3] {
        return None;
    }
    let (name, y) = (old.name.as_deref().unwrap_or_default(), output(old));
    if get_i(old, "keepdims").unwrap_or(1) != 0 {
        return Some(vec![node("GlobalAveragePool", name, &[x], &[y], Vec::new())]);
    }
    let pooled = graph.fresh(&format!("{y}_pooled"));
    Some(vec![
        node("GlobalAveragePool", name, &[x], &[&pooled], Vec::new()),
        node("Flatten", &format!("{pooled}_flatten"), &[&pooled], &[y], vec![attr_i("axis", 1)]),
    ])
}

/// A convolution with its kernel, strides, dilations and pads written out: once its weight is dequantised at run
/// time, not every reader finds them in its shape.
fn spelled_out(graph: &Graph, mut convolution: NodeProto) -> NodeProto {
    let Some(kernel) = graph.constant(&convolution, 1).and_then(|w| w.dims().get(2..)) else { return convolution };
    let kernel: Vec<i64> = kernel.iter().map(|&k| i64::try_from(k).unwrap_or(i64::MAX)).collect();
    let axes = kernel.len();
    let explicit = get_s(&convolution, "auto_pad").unwrap_or("NOTSET") == "NOTSET";
    // With a given output shape ConvTranspose finds its own pads.
    let pads = explicit && attr(&convolution, "output_shape").is_none();
    let defaults = [
        ("kernel_shape", Some(kernel)),
        ("strides", Some(vec![1; axes])),
        ("dilations", Some(vec![1; axes])),
        ("pads", pads.then(|| vec![0; axes.saturating_mul(2)])),
    ];
    for (name, values) in defaults {
        if let Some(values) = values.filter(|_| attr(&convolution, name).is_none()) {
            convolution.attribute.push(attr_is(name, &values));
        }
    }
    convolution
}

/// A Gemm of factors 1 whose first operand is not transposed and whose third is a vector of one value per column;
/// a third operand of another kind becomes an Add. Attributes that are left: transB.
fn gemm(graph: &mut Graph, shapes: &Shapes, old: &NodeProto) -> Result<Vec<NodeProto>, QuantizeError> {
    let get = |name: &str| f64::from(get_f(old, name).unwrap_or(1.0));
    let (alpha, beta) = (get("alpha"), get("beta"));
    let mut nodes = Vec::new();
    let mut new = old.clone();
    new.attribute.retain(|a| a.name.as_deref() == Some("transB"));
    let broken = || node_error(old, "it has fewer than two inputs");
    let (a, b) = (input(old, 0).ok_or_else(broken)?, input(old, 1).ok_or_else(broken)?);
    if get_i(old, "transA").unwrap_or(0) != 0 {
        let turned = graph.fresh(&format!("{a}_transposed"));
        nodes.push(node("Transpose", &turned, &[a], &[&turned], vec![attr_is("perm", &[1, 0])]));
        turned.clone_into(new.input.first_mut().ok_or_else(broken)?);
    }
    #[expect(clippy::float_cmp, reason = "1 is what the file says or leaves out")]
    if alpha != 1.0 {
        let scaled = graph.constants.get(b).and_then(|t| Some((t.dims().to_vec(), floats(t)?)));
        let Some((dims, values)) = scaled else { return Ok(vec![old.clone()]) };
        let values: Vec<f64> = values.iter().map(|v| v * alpha).collect();
        let tensor = float_tensor(&dims, &values).ok_or_else(broken)?;
        let name = graph.add_constant(&format!("{b}_scaled"), tensor);
        name.clone_into(new.input.get_mut(1).ok_or_else(broken)?);
    }
    let Some(c) = input(old, 2) else {
        new.input.truncate(2);
        nodes.push(new);
        return Ok(nodes);
    };
    let b_dims = graph.constants.get(b).map(|t| t.dims().to_vec()).or_else(|| shapes.get(0, b).known_dims());
    let b_dims =
        b_dims.filter(|d| d.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).is_some_and(|n| n <= MAX_FOLDED));
    let columns = b_dims
        .and_then(|d| if get_i(old, "transB").unwrap_or(0) != 0 { d.first().copied() } else { d.get(1).copied() });
    let vector = graph.constants.get(c).and_then(|t| {
        let (columns, values) = (columns?, floats(t)?);
        let is_row = t.dims().iter().rev().skip(1).all(|&d| d == 1);
        let values: Vec<f64> = values.iter().map(|v| v * beta).collect();
        match values.as_slice() {
            [one] => float_tensor(&[columns], &vec![*one; columns]),
            _ if is_row && values.len() == columns => float_tensor(&[columns], &values),
            _ => None,
        }
    });
    #[expect(clippy::float_cmp, reason = "1 is what the file says or leaves out")]
    match vector {
        Some(vector) => {
            let name = graph.add_constant(c, vector);
            name.clone_into(new.input.get_mut(2).ok_or_else(broken)?);
            nodes.push(new);
        }
        None if beta == 1.0 => {
            let product = graph.fresh(&format!("{}_product", output(old)));
            new.input.truncate(2);
            new.output = vec![product.clone()];
            nodes.push(new);
            nodes.push(node("Add", &format!("{product}_add"), &[product.as_str(), c], &[output(old)], Vec::new()));
        }
        None => return Ok(vec![old.clone()]),
    }
    Ok(nodes)
}
