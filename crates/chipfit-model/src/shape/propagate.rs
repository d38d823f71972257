//! Values through shape arithmetic: what small integer tensors hold, as far as the inputs' values say.
//!
//! Every rule here mirrors the operator's definition element by element; integers that overflow and divisions
//! by zero become unknown. Named lengths survive moves, and arithmetic that changes nothing (plus 0, times 1).

use super::declared::MAX_RANK;
use super::value::{Element, MAX_ELEMENTS, Value, rounded, small_count};
use super::view::{View, axis_of};
use super::{TensorType, layout, rules, select};
use crate::tensor::DataType;

/// The values of a node's outputs, whose types are `types`.
pub(super) fn values(view: &View, types: &[TensorType]) -> Vec<Option<Value>> {
    let Some(first) = types.first() else { return Vec::new() };
    if view.op() == "Split" {
        return split(view, types).unwrap_or_default();
    }
    // Most tensors of a model are no candidates: their shape alone says so.
    if let Some(dims) = first.known_dims()
        && small_count(&dims).is_none()
    {
        return Vec::new();
    }
    vec![value(view, first)]
}

fn value(view: &View, output: &TensorType) -> Option<Value> {
    let int64 = |elements| Value::vector(elements);
    let dims = || output.known_dims().filter(|d| d.len() <= MAX_RANK);
    match view.op() {
        "Constant" => constant(view),
        "Shape" => {
            let dims = view.dims(0)?;
            int64(dims.get(rules::shape_range(view, dims.len())?)?.iter().map(Element::from).collect())
        }
        "Size" => {
            let count = super::view::product(view.dims(0)?);
            Value::new(DataType::Int64, Vec::new(), vec![Element::from(&count)])
        }
        "Identity" | "Dropout" => view.value(0).map(|v| (*v).clone()),
        "Cast" | "CastLike" => cast(&*view.value(0)?, output.dtype?),
        "Reshape" | "Squeeze" | "Unsqueeze" | "Flatten" => view.value(0)?.reshaped(dims()?),
        "Transpose" => {
            let x = view.value(0)?;
            let order = layout::permutation(view, x.dims().len())?;
            let source = |at: &[usize]| {
                let mut from = vec![0; at.len()];
                for (&axis, &i) in order.iter().zip(at) {
                    *from.get_mut(axis)? = i;
                }
                x.broadcast_at(&from).cloned()
            };
            Value::build(x.dtype, dims()?, source)
        }
        "Expand" => {
            let x = view.value(0)?;
            Value::build(x.dtype, dims()?, |at| x.broadcast_at(at).cloned())
        }
        "Tile" if view.opset >= 6 => {
            let x = view.value(0)?;
            let dims = dims().filter(|d| d.len() == x.dims().len())?;
            let wrap = |at: &[usize]| {
                let from: Option<Vec<usize>> = at.iter().zip(x.dims()).map(|(&i, &n)| i.checked_rem(n)).collect();
                x.broadcast_at(&from?).cloned()
            };
            Value::build(x.dtype, dims, wrap)
        }
        "Concat" => concat(view, dims()?),
        "Slice" => slice(view, dims()?),
        "Gather" => gather(view, dims()?),
        "ConstantOfShape" => {
            let fill = match view.attribute("value").and_then(|a| a.t.as_option()) {
                Some(t) => view.walk.tensor_value(t)?.elements().first()?.clone(),
                None => Element::Float(0.0),
            };
            Value::build(output.dtype?, dims()?, |_| Some(fill.clone()))
        }
        "Range" => {
            let number = |i: usize| view.value(i)?.elements().first()?.int();
            let (start, delta) = (number(0)?, number(2)?);
            let at = |i: &[usize]| {
                let steps = i64::try_from(*i.first()?).ok()?;
                Some(Element::Int(start.checked_add(delta.checked_mul(steps)?)?))
            };
            Value::build(output.dtype?, dims()?, at)
        }
        "NonZero" => non_zero(view, dims()?),
        "Where" => {
            let (choose, yes, no) = (view.value(0)?, view.value_or_unknown(1)?, view.value_or_unknown(2)?);
            Value::build(output.dtype?, dims()?, |at| {
                let (yes, no) = (yes.broadcast_at(at)?, no.broadcast_at(at)?);
                Some(match choose.broadcast_at(at)? {
                    Element::Int(0) => no.clone(),
                    Element::Int(_) => yes.clone(),
                    _ if yes == no => yes.clone(),
                    _ => Element::Unknown,
                })
            })
        }
        "ReduceProd" | "ReduceSum" | "ReduceMax" | "ReduceMin" => reduce(view, output),
        "Neg" | "Abs" | "Floor" | "Ceil" | "Round" | "Not" | "Relu" | "Sign" | "Sqrt" => {
            let x = view.value(0)?;
            Some(x.map(output.dtype?, |e| unary(view.op(), e)))
        }
        "Add" | "Sub" | "Mul" | "Div" | "Mod" | "Pow" | "Equal" | "Less" | "Greater" | "LessOrEqual"
        | "GreaterOrEqual" | "And" | "Or" => binary(view, output.dtype?, dims()?),
        "Max" | "Min" | "Sum" if view.inputs() <= 8 => binary(view, output.dtype?, dims()?),
        _ => None,
    }
}

fn constant(view: &View) -> Option<Value> {
    let find = |name: &str| view.attribute(name);
    if let Some(t) = find("value").and_then(|a| a.t.as_option()) {
        return view.walk.tensor_value(t);
    }
    if let Some(ints) = find("value_ints").map(|a| &a.ints).filter(|ints| ints.len() <= MAX_ELEMENTS) {
        return super::control::int_vector(ints);
    }
    if let Some(floats) = find("value_floats").map(|a| &a.floats).filter(|f| f.len() <= MAX_ELEMENTS) {
        let elements = floats.iter().map(|&x| Element::Float(f64::from(x))).collect();
        return Value::new(DataType::Float, vec![floats.len()], elements);
    }
    if let Some(x) = find("value_float").and_then(|a| a.f) {
        return Value::new(DataType::Float, Vec::new(), vec![Element::Float(f64::from(x))]);
    }
    let n = find("value_int")?.i?;
    Value::new(DataType::Int64, Vec::new(), vec![Element::Int(n)])
}

fn cast(x: &Value, to: DataType) -> Option<Value> {
    let convert = |e: &Element| match (e, to.is_float()) {
        (Element::Int(n), true) => Element::Float(*n as f64),
        // Towards zero; what does not fit differs between runtimes.
        (Element::Float(x), false) if to == DataType::Bool => Element::Int(i64::from(*x != 0.0)),
        (Element::Float(x), false) if x.abs() < 9e15 => Element::Int(*x as i64),
        (Element::Float(_), false) => Element::Unknown,
        (other, _) => other.clone(),
    };
    Some(x.map(to, convert))
}

fn concat(view: &View, dims: Vec<usize>) -> Option<Value> {
    small_count(&dims)?;
    let axis = layout::concat_axis(view, dims.len())?;
    let parts: Vec<_> = (0..view.inputs()).map(|i| view.value_or_unknown(i)).collect::<Option<_>>()?;
    let dtype = parts.first()?.dtype;
    let mut starts = Vec::with_capacity(parts.len());
    let mut total = 0usize;
    for part in &parts {
        starts.push(total);
        total = total.checked_add(*part.dims().get(axis)?)?;
    }
    Value::build(dtype, dims, |at| {
        let i = *at.get(axis)?;
        let part = starts.partition_point(|&s| s <= i).checked_sub(1)?;
        // Empty parts share their start with the next one, which comes last.
        let mut from = at.to_vec();
        *from.get_mut(axis)? = i.checked_sub(*starts.get(part)?)?;
        parts.get(part)?.broadcast_at(&from).cloned()
    })
}

fn slice(view: &View, dims: Vec<usize>) -> Option<Value> {
    let x = view.value(0)?;
    let mut from: Vec<(i64, i64)> = vec![(0, 1); x.dims().len()];
    for select::AxisSlice { axis, start, end, step } in select::slice_spec(view, x.dims().len())? {
        let n = i64::try_from(*x.dims().get(axis)?).ok()?;
        let range = select::resolve_slice(n, start?, end?, step?)?;
        *from.get_mut(axis)? = (range.start, range.step);
    }
    Value::build(x.dtype, dims, |at| {
        let place = |(&i, &(start, step)): (&usize, &(i64, i64))| {
            usize::try_from(start.checked_add(step.checked_mul(i64::try_from(i).ok()?)?)?).ok()
        };
        let at: Option<Vec<usize>> = at.iter().zip(&from).map(place).collect();
        x.broadcast_at(&at?).cloned()
    })
}

fn gather(view: &View, dims: Vec<usize>) -> Option<Value> {
    let (x, indices) = (view.value(0)?, view.value(1)?);
    let rank = x.dims().len();
    let axis = axis_of(view.int_or("axis", 0), rank)?;
    let n = *x.dims().get(axis)?;
    Value::build(x.dtype, dims, |at| {
        let (before, rest) = at.split_at_checked(axis)?;
        let (middle, after) = rest.split_at_checked(indices.dims().len())?;
        let Some(index) = indices.broadcast_at(middle)?.int() else { return Some(Element::Unknown) };
        let index = axis_of(index, n)?;
        let from: Vec<usize> = before.iter().copied().chain([index]).chain(after.iter().copied()).collect();
        x.broadcast_at(&from).cloned()
    })
}

fn split(view: &View, types: &[TensorType]) -> Option<Vec<Option<Value>>> {
    let x = view.value(0)?;
    let axis = axis_of(view.int_or("axis", 0), x.dims().len())?;
    let mut start = Some(0usize);
    let mut parts = Vec::with_capacity(types.len());
    for part in types {
        let dims = part.known_dims();
        let from = start;
        start = start.zip(dims.as_ref().and_then(|d| d.get(axis).copied())).and_then(|(a, b)| a.checked_add(b));
        parts.push(dims.zip(from).and_then(|(dims, from)| {
            Value::build(x.dtype, dims, |at| {
                let mut at = at.to_vec();
                let i = at.get_mut(axis)?;
                *i = i.checked_add(from)?;
                x.broadcast_at(&at).cloned()
            })
        }));
    }
    Some(parts)
}

fn non_zero(view: &View, dims: Vec<usize>) -> Option<Value> {
    let x = view.value(0)?;
    x.floats()?;
    let mut found: Vec<Vec<usize>> = Vec::new();
    let mut visit = |at: &[usize]| {
        if x.broadcast_at(at)?.float()? != 0.0 {
            found.push(if at.is_empty() { vec![0] } else { at.to_vec() });
        }
        Some(Element::Unknown)
    };
    Value::build(DataType::Int64, x.dims().to_vec(), &mut visit)?;
    Value::build(DataType::Int64, dims, |at| match at {
        [axis, i] => Some(Element::Int(i64::try_from(*found.get(*i)?.get(*axis)?).ok()?)),
        _ => None,
    })
}

/// Reductions of a vector or of everything, the forms that shape arithmetic has.
fn reduce(view: &View, output: &TensorType) -> Option<Value> {
    let x = view.value(0)?;
    let dims = output.known_dims()?;
    if small_count(&dims)? != 1 || x.dims().is_empty() {
        return None;
    }
    let op = match view.op() {
        "ReduceProd" => "Mul",
        "ReduceSum" => "Add",
        "ReduceMax" => "Max",
        _ => "Min",
    };
    let dtype = output.dtype?;
    let all = x.elements().iter().cloned().reduce(|a, b| rounded(arithmetic(op, &a, &b), dtype))?;
    Value::new(dtype, dims, vec![all])
}

fn unary(op: &str, e: &Element) -> Element {
    match (op, e) {
        ("Neg", Element::Int(n)) => n.checked_neg().map_or(Element::Unknown, Element::Int),
        ("Abs", Element::Int(n)) => n.checked_abs().map_or(Element::Unknown, Element::Int),
        ("Sign", Element::Int(n)) => Element::Int(n.signum()),
        ("Not", Element::Int(n)) => Element::Int(i64::from(*n == 0)),
        ("Floor" | "Ceil" | "Round", Element::Int(n)) => Element::Int(*n),
        ("Relu", Element::Int(n)) => Element::Int((*n).max(0)),
        ("Relu", Element::Float(x)) => Element::Float(x.max(0.0)),
        ("Neg", Element::Float(x)) => Element::Float(-x),
        ("Abs", Element::Float(x)) => Element::Float(x.abs()),
        ("Floor", Element::Float(x)) => Element::Float(x.floor()),
        ("Ceil", Element::Float(x)) => Element::Float(x.ceil()),
        ("Round", Element::Float(x)) => Element::Float(x.round_ties_even()),
        ("Sqrt", Element::Float(x)) => Element::Float(x.sqrt()),
        // A length is not negative.
        ("Abs" | "Floor" | "Ceil" | "Relu" | "Round", Element::Named(_)) => e.clone(),
        _ => Element::Unknown,
    }
}

/// Element-wise operators on two inputs or more.
fn binary(view: &View, dtype: DataType, dims: Vec<usize>) -> Option<Value> {
    if view.opset < 7 {
        return None;
    }
    small_count(&dims)?;
    let op = match (view.op(), view.int_or("fmod", 0)) {
        ("Sum", _) => "Add",
        ("Mod", 1) => "Rem",
        (op, _) => op,
    };
    let parts: Vec<_> = (0..view.inputs()).map(|i| view.value_or_unknown(i)).collect::<Option<_>>()?;
    if !parts.iter().any(|p| p.says_something()) {
        return None;
    }
    Value::build(dtype, dims, |at| {
        let mut elements = parts.iter().map(|p| p.broadcast_at(at));
        let first = elements.next()??.clone();
        elements.try_fold(first, |a, b| Some(rounded(arithmetic(op, &a, b?), dtype)))
    })
}

fn arithmetic(op: &str, a: &Element, b: &Element) -> Element {
    use Element::{Float, Int, Named, Unknown};
    match (a, b) {
        (Int(a), Int(b)) => integer(op, *a, *b).map_or(Unknown, Int),
        (Float(a), Float(b)) => float(op, *a, *b),
        (Named(_), Int(0)) if matches!(op, "Add" | "Sub") => a.clone(),
        (Named(_), Int(1)) if matches!(op, "Mul" | "Div") => a.clone(),
        (Int(0), Named(_)) if op == "Add" => b.clone(),
        (Int(1), Named(_)) if op == "Mul" => b.clone(),
        // Lengths are not negative.
        (Named(_), Int(n)) | (Int(n), Named(_)) if op == "Equal" && *n < 0 => Int(0),
        (Named(x), Named(y)) if x == y => match op {
            "Equal" | "LessOrEqual" | "GreaterOrEqual" => Int(1),
            "Less" | "Greater" | "Sub" => Int(0),
            "Max" | "Min" => a.clone(),
            _ => Unknown,
        },
        (Int(0), _) | (_, Int(0)) if op == "And" => Int(0),
        (Int(1), _) | (_, Int(1)) if op == "Or" => Int(1),
        _ => Unknown,
    }
}

fn integer(op: &str, a: i64, b: i64) -> Option<i64> {
    Some(match op {
        "Add" => a.checked_add(b)?,
        "Sub" => a.checked_sub(b)?,
        "Mul" => a.checked_mul(b)?,
        "Div" => a.checked_div(b)?,
        "Rem" => a.checked_rem(b)?,
        // The result takes the divisor's sign.
        "Mod" => {
            let r = a.checked_rem(b)?;
            if r != 0 && (r < 0) != (b < 0) { r.checked_add(b)? } else { r }
        }
        "Pow" => a.checked_pow(u32::try_from(b).ok()?)?,
        "Max" => a.max(b),
        "Min" => a.min(b),
        "Equal" => i64::from(a == b),
        "Less" => i64::from(a < b),
        "Greater" => i64::from(a > b),
        "LessOrEqual" => i64::from(a <= b),
        "GreaterOrEqual" => i64::from(a >= b),
        "And" => i64::from(a != 0 && b != 0),
        "Or" => i64::from(a != 0 || b != 0),
        _ => return None,
    })
}

fn float(op: &str, a: f64, b: f64) -> Element {
    let number = match op {
        "Add" => a + b,
        "Sub" => a - b,
        "Mul" => a * b,
        "Div" => a / b,
        "Pow" => a.powf(b),
        "Max" => a.max(b),
        "Min" => a.min(b),
        "Equal" => return Element::Int(i64::from(a == b)),
        "Less" => return Element::Int(i64::from(a < b)),
        "Greater" => return Element::Int(i64::from(a > b)),
        "LessOrEqual" => return Element::Int(i64::from(a <= b)),
        "GreaterOrEqual" => return Element::Int(i64::from(a >= b)),
        _ => return Element::Unknown,
    };
    if number.is_finite() { Element::Float(number) } else { Element::Unknown }
}
