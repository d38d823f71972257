//! Dispatch, and the operators that only move elements. Attribute and input forms of every operator set.

use std::sync::Arc;

use chipfit_model::build::{attr, get_i, get_is, get_s, is_op};
use chipfit_model::proto::NodeProto;
use chipfit_model::{ConstTensor, DataType};

use super::layout::{AxisMap, identity, too_large};
use super::tensor::{Data, Tensor, elements};
use super::{EvalError, Fault, Mode, Step};
use crate::reference::SameRule;

/// Why an operator gave nothing.
#[derive(Debug)]
pub(super) enum Refusal {
    /// Not in the list.
    Unknown,
    /// In the list, but not like this.
    Fault(Fault),
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl Refusal {
    pub(super) fn at(self, step: &Step<'_>) -> EvalError {
        let op = step.node.op_type.clone().unwrap_or_default();
        match self {
            Self::Fault(Fault(why)) => EvalError::Node { node: step.label(), op, why },
            Self::Unknown => {
                let domain = step.node.domain.as_deref().filter(|d| !d.is_empty() && *d != "ai.onnx");
                EvalError::UnknownOperator {
                    node: step.label(),
                    op: domain.map_or(op.clone(), |d| format!("{d}.{op}")),
                }
            }
        }
    }
}

/// One node with its operands.
pub(super) struct Op<'a> {
    pub(super) node: &'a NodeProto,
    pub(super) opset: i64,
    pub(super) operands: &'a [Option<Arc<Tensor>>],
    pub(super) mode: Mode,
    pub(super) same: SameRule,
}

impl Op<'_> {
    /// The outputs, in order.
    pub(super) fn run(&self) -> Result<Vec<Tensor>, Refusal> {
        let node = self.node;
        if let Some(a) = node.attribute.iter().find(|a| a.ref_attr_name.as_deref().is_some_and(|r| !r.is_empty())) {
            let name = a.name.as_deref().unwrap_or_default();
            return Err(Fault(format!("attribute '{name}' is given by the function's caller")).into());
        }
        if !is_op(node, node.op_type.as_deref().unwrap_or_default()) {
            return Err(Refusal::Unknown);
        }
        let one = match node.op_type.as_deref().unwrap_or_default() {
            "Conv" => self.conv(),
            "ConvTranspose" => self.conv_transpose(),
            "QuantizeLinear" => self.quantize(),
            "DequantizeLinear" => self.dequantize(),
            "Add" | "Sub" | "Mul" | "Div" => self.binary(),
            name if super::arith::is_activation(name) => self.activation(),
            "Cast" => self.cast(),
            "Identity" => Ok(self.input(0)?.clone()),
            "Concat" => self.concat(),
            "Slice" => self.slice(),
            "Pad" => self.pad(),
            "DepthToSpace" => self.depth_to_space(),
            "Reshape" => self.reshape(),
            "Transpose" => self.transpose(),
            "Expand" => self.expand(),
            "Tile" => self.tile(),
            "Unsqueeze" => self.unsqueeze(),
            "Squeeze" => self.squeeze(),
            "Shape" => self.shape(),
            "Gather" => self.gather(),
            "ConstantOfShape" => self.constant_of_shape(),
            "Split" => return Ok(self.split()?),
            _ => return Err(Refusal::Unknown),
        };
        Ok(vec![one?])
    }

    pub(super) fn input(&self, at: usize) -> Result<&Tensor, Fault> {
        self.optional(at).ok_or_else(|| Fault(format!("input {at} is missing")))
    }

    pub(super) fn optional(&self, at: usize) -> Option<&Tensor> {
        self.operands.get(at)?.as_deref()
    }

    /// The integers of input `at`, where there is one.
    fn integers(&self, at: usize) -> Result<Option<Vec<i64>>, Fault> {
        let Some(tensor) = self.optional(at) else { return Ok(None) };
        tensor.to_i64s().map(Some).ok_or_else(|| Fault(format!("input {at} must hold integers")))
    }

    /// The integers of attribute `name` before `opset`, of input `at` from it on.
    fn attribute_or_input(&self, name: &str, opset: i64, at: usize) -> Result<Option<Vec<i64>>, Fault> {
        if self.opset < opset { Ok(get_is(self.node, name).map(<[i64]>::to_vec)) } else { self.integers(at) }
    }

    /// Axis number `axis` of `rank`, counted from the end where negative.
    pub(super) fn axis(axis: i64, rank: usize) -> Result<usize, Fault> {
        let signed = i64::try_from(rank).unwrap_or(i64::MAX);
        usize::try_from(if axis < 0 { axis.saturating_add(signed) } else { axis })
            .ok()
            .filter(|&a| a < rank)
            .ok_or_else(|| Fault(format!("axis {axis} does not exist in rank {rank}")))
    }

    fn concat(&self) -> Result<Tensor, Fault> {
        let parts: Vec<&Tensor> = self.operands.iter().flatten().map(Arc::as_ref).collect();
        let rank = parts.first().map_or(0, |p| p.dims.len());
        let default = (self.opset < 4).then_some(1);
        let axis = get_i(self.node, "axis").or(default).ok_or("attribute 'axis' is missing")?;
        Tensor::concatenated(&parts, Self::axis(axis, rank)?)
    }

    fn slice(&self) -> Result<Tensor, Fault> {
        let x = self.input(0)?;
        let starts = self.attribute_or_input("starts", 10, 1)?.ok_or("'starts' is missing")?;
        let ends = self.attribute_or_input("ends", 10, 2)?.ok_or("'ends' is missing")?;
        let axes = self.attribute_or_input("axes", 10, 3)?.unwrap_or_else(|| (0..).take(starts.len()).collect());
        let steps = if self.opset < 10 { None } else { self.integers(4)? }.unwrap_or_else(|| vec![1; starts.len()]);
        if [ends.len(), axes.len(), steps.len()] != [starts.len(); 3] {
            return Err("starts, ends, axes and steps differ in length".into());
        }
        let mut maps: Vec<AxisMap> = x.dims.iter().map(|&n| identity(n)).collect();
        for (((start, end), axis), step) in starts.into_iter().zip(ends).zip(axes).zip(steps) {
            let axis = Self::axis(axis, x.dims.len())?;
            let n = i128::from(i64::try_from(x.dims[axis]).unwrap_or(i64::MAX));
            let step = i128::from(step);
            if step == 0 {
                return Err("a step of 0".into());
            }
            let from_end = |v: i64| i128::from(v) + if v < 0 { n } else { 0 };
            let (low, high) = if step > 0 { (0, n) } else { (-1, n - 1) };
            let (mut at, end) = (from_end(start).clamp(low.max(0).min(high), high), from_end(end).clamp(low, high));
            let mut map = AxisMap::new();
            while (step > 0 && at < end) || (step < 0 && at > end && at >= 0) {
                map.push(usize::try_from(at).ok());
                at += step;
            }
            maps[axis] = map;
        }
        x.selected(&maps, 0.0)
    }

    fn pad(&self) -> Result<Tensor, Fault> {
        let x = self.input(0)?;
        let rank = x.dims.len();
        let name = if self.opset < 2 { "paddings" } else { "pads" };
        let pads = self.attribute_or_input(name, 11, 1)?.ok_or("'pads' is missing")?;
        let fill = if self.opset < 11 {
            f64::from(attr(self.node, "value").and_then(|a| a.f).unwrap_or(0.0))
        } else {
            self.optional(2).map_or(Some(0.0), Tensor::scalar).ok_or("the constant must be one number")?
        };
        let axes = if self.opset < 18 { None } else { self.integers(3)? };
        let axes = axes.unwrap_or_else(|| (0..).take(rank).collect());
        let mode = get_s(self.node, "mode").unwrap_or("constant");
        if pads.len() != 2 * axes.len() {
            return Err(Fault(format!("{} pads for {} axes", pads.len(), axes.len())));
        }
        // A pad of an exact mode is only zero: anything else has no meaning on its scale.
        if fill != 0.0 && x.dtype.is_float() && !matches!(self.mode, Mode::Storage | Mode::Reference) {
            return Err("a float pad other than 0".into());
        }
        let mut maps: Vec<AxisMap> = x.dims.iter().map(|&n| identity(n)).collect();
        for (i, &axis) in axes.iter().enumerate() {
            let axis = Self::axis(axis, rank)?;
            let (begin, end) = (i128::from(pads[i]), i128::from(pads[i + axes.len()]));
            let n = x.dims[axis] as i128;
            let length =
                usize::try_from(begin + n + end).map_err(|_| Fault(format!("axis {axis}: nothing is left")))?;
            elements(&[length]).ok_or_else(|| too_large(&[length]))?;
            let mut map = AxisMap::with_capacity(length);
            for o in 0..length as i128 {
                let i = o - begin;
                let inside = 0 <= i && i < n;
                let at = match mode {
                    _ if inside => Some(i),
                    "constant" => None,
                    "edge" if n > 0 => Some(i.clamp(0, n - 1)),
                    "wrap" if n > 0 => Some(i.rem_euclid(n)),
                    "reflect" if n > 1 => {
                        let period = 2 * (n - 1);
                        let i = i.rem_euclid(period);
                        Some(i.min(period - i))
                    }
                    _ => return Err(Fault(format!("mode '{mode}' on an axis of length {n}"))),
                };
                map.push(at.and_then(|i| usize::try_from(i).ok()));
            }
            maps[axis] = map;
        }
        x.selected(&maps, fill)
    }

    fn depth_to_space(&self) -> Result<Tensor, Fault> {
        let x = self.input(0)?;
        let block = get_i(self.node, "blocksize").and_then(|b| usize::try_from(b).ok()).filter(|&b| b > 0);
        let block = block.ok_or("'blocksize' must be at least 1")?;
        let mode = if self.opset < 11 { "DCR" } else { get_s(self.node, "mode").unwrap_or("DCR") };
        let &[n, c, h, w] = x.dims.as_slice() else { return Err(Fault(format!("dims {:?} are not 4-D", x.dims))) };
        let square = block.checked_mul(block).filter(|&s| c % s == 0);
        let depth = c / square.ok_or_else(|| Fault(format!("{c} channels are no multiple of {block}^2")))?;
        let split = match mode {
            "DCR" => x.reshaped(vec![n, block, block, depth, h, w])?.permuted(&[0, 3, 4, 1, 5, 2]),
            "CRD" => x.reshaped(vec![n, depth, block, block, h, w])?.permuted(&[0, 1, 4, 2, 5, 3]),
            _ => return Err(Fault(format!("mode '{mode}' is not known"))),
        };
        split.reshaped(vec![n, depth, h * block, w * block])
    }

    fn reshape(&self) -> Result<Tensor, Fault> {
        let x = self.input(0)?;
        let asked = self.attribute_or_input("shape", 5, 1)?.ok_or("'shape' is missing")?;
        let allow_zero = self.opset >= 14 && get_i(self.node, "allowzero") == Some(1);
        let mut dims = Vec::with_capacity(asked.len());
        let mut open = None;
        for (i, &d) in asked.iter().enumerate() {
            dims.push(match d {
                0 if !allow_zero => *x.dims.get(i).ok_or("a dim of 0 copies a dim that the input does not have")?,
                -1 if open.is_none() => {
                    open = Some(i);
                    1
                }
                _ => usize::try_from(d).map_err(|_| Fault(format!("shape {asked:?}")))?,
            });
        }
        if let Some(open) = open {
            let rest = elements(&dims).filter(|&n| n > 0).ok_or_else(|| too_large(&dims))?;
            dims[open] = x.data.len() / rest;
        }
        x.reshaped(dims)
    }

    fn transpose(&self) -> Result<Tensor, Fault> {
        let x = self.input(0)?;
        let rank = x.dims.len();
        let order = match get_is(self.node, "perm") {
            None | Some([]) => (0..rank).rev().collect(),
            Some(perm) => perm.iter().map(|&p| Self::axis(p, rank)).collect::<Result<Vec<_>, _>>()?,
        };
        let mut sorted = order.clone();
        sorted.sort_unstable();
        if !sorted.iter().copied().eq(0..rank) {
            return Err(Fault(format!("perm {order:?} is no permutation of {rank} axes")));
        }
        Ok(x.permuted(&order))
    }

    fn expand(&self) -> Result<Tensor, Fault> {
        let x = self.input(0)?;
        let asked = self.integers(1)?.ok_or("'shape' is missing")?;
        let asked: Vec<usize> = asked
            .iter()
            .map(|&d| usize::try_from(d).map_err(|_| Fault(format!("shape {asked:?}"))))
            .collect::<Result<_, _>>()?;
        let dims = super::arith::broadcast_dims(&x.dims, &asked)?;
        x.broadcast(&dims)
    }

    fn tile(&self) -> Result<Tensor, Fault> {
        let x = self.input(0)?;
        if self.opset < 6 {
            return Err("operator sets 1 to 5 have another Tile".into());
        }
        let repeats = self.integers(1)?.filter(|r| r.len() == x.dims.len()).ok_or("one repeat per axis is needed")?;
        let mut maps = Vec::with_capacity(repeats.len());
        for (&n, &repeat) in x.dims.iter().zip(&repeats) {
            let repeat = usize::try_from(repeat).map_err(|_| Fault(format!("repeats {repeats:?}")))?;
            elements(&[n, repeat]).ok_or_else(|| too_large(&[n, repeat]))?;
            maps.push((0..n * repeat).map(|i| Some(i % n)).collect());
        }
        x.selected(&maps, 0.0)
    }

    fn unsqueeze(&self) -> Result<Tensor, Fault> {
        let x = self.input(0)?;
        let axes = self.attribute_or_input("axes", 13, 1)?.ok_or("'axes' is missing")?;
        let rank = x.dims.len() + axes.len();
        let mut new = vec![false; rank];
        for &axis in &axes {
            if std::mem::replace(&mut new[Self::axis(axis, rank)?], true) {
                return Err(Fault(format!("axes {axes:?} name one axis twice")));
            }
        }
        let mut old = x.dims.iter();
        let dims = new.iter().map(|&n| if n { Some(1) } else { old.next().copied() }).collect::<Option<_>>();
        x.reshaped(dims.ok_or("too few dims")?)
    }

    fn squeeze(&self) -> Result<Tensor, Fault> {
        let x = self.input(0)?;
        let rank = x.dims.len();
        let drop: Vec<usize> = match self.attribute_or_input("axes", 13, 1)? {
            Some(axes) => axes.iter().map(|&a| Self::axis(a, rank)).collect::<Result<_, _>>()?,
            None => (0..rank).filter(|&a| x.dims[a] == 1).collect(),
        };
        if drop.iter().any(|&a| x.dims[a] != 1) {
            return Err(Fault(format!("axes {drop:?} of dims {:?} are not all 1", x.dims)));
        }
        x.reshaped((0..rank).filter(|a| !drop.contains(a)).map(|a| x.dims[a]).collect())
    }

    fn shape(&self) -> Result<Tensor, Fault> {
        let x = self.input(0)?;
        let rank = i64::try_from(x.dims.len()).unwrap_or(i64::MAX);
        let bound = |name: &str, default: i64| {
            let v = if self.opset < 15 { None } else { get_i(self.node, name) }.unwrap_or(default);
            usize::try_from(if v < 0 { v.saturating_add(rank) } else { v }.clamp(0, rank)).unwrap_or(0)
        };
        let (start, end) = (bound("start", 0), bound("end", rank));
        let dims = x.dims.get(start..end).unwrap_or_default();
        Ok(Tensor::of_i64s(dims.iter().map(|&d| d as i64).collect()))
    }

    fn gather(&self) -> Result<Tensor, Fault> {
        let (x, indices) = (self.input(0)?, self.input(1)?);
        let axis = Self::axis(get_i(self.node, "axis").unwrap_or(0), x.dims.len())?;
        let wanted = self.integers(1)?.unwrap_or_default();
        let map = wanted.iter().map(|&i| Self::axis(i, x.dims[axis]).map(Some)).collect::<Result<AxisMap, _>>()?;
        let maps: Vec<AxisMap> =
            (0..).zip(&x.dims).map(|(a, &n)| if a == axis { map.clone() } else { identity(n) }).collect();
        let dims = [&x.dims[..axis], &indices.dims, &x.dims[axis + 1..]].concat();
        x.selected(&maps, 0.0)?.reshaped(dims)
    }

    fn constant_of_shape(&self) -> Result<Tensor, Fault> {
        let dims = self.integers(0)?.ok_or("the shape is missing")?;
        let dims: Vec<usize> = dims
            .iter()
            .map(|&d| usize::try_from(d).map_err(|_| Fault(format!("shape {dims:?}"))))
            .collect::<Result<_, _>>()?;
        let value = match attr(self.node, "value").and_then(|a| a.t.as_option()) {
            None => Tensor::filled(DataType::Float, vec![1], Data::F32(vec![0.0]))?,
            Some(proto) => {
                let data = ConstTensor::from_proto(proto, None).map_err(|e| Fault(e.to_string()))?;
                Tensor::from_const(&data).ok_or("the value's element type is not known here")?
            }
        };
        let zero = value.scalar().ok_or("the value must be one number")? == 0.0;
        let data = match (&value.data, self.mode) {
            (Data::F32(_) | Data::F64(_), Mode::Reference) => Data::F64(value.data.to_f64()),
            (Data::F32(_) | Data::F64(_), Mode::SmallIntegers { .. } | Mode::Accumulators | Mode::Requantise) => {
                if !zero {
                    return Err("a float constant other than 0".into());
                }
                Data::I32(vec![0])
            }
            (data, _) => data.clone(),
        };
        let value = Tensor::filled(value.dtype, vec![1; dims.len()], data)?;
        value.broadcast(&dims)
    }

    fn split(&self) -> Result<Vec<Tensor>, Fault> {
        let x = self.input(0)?;
        let axis = Self::axis(get_i(self.node, "axis").unwrap_or(0), x.dims.len())?;
        let parts = self.node.output.len();
        let n = x.dims[axis];
        let mut sizes = self.attribute_or_input("split", 13, 1)?;
        if self.opset < 2 && sizes.is_none() {
            sizes = self.integers(1)?;
        }
        let sizes: Vec<usize> = match sizes {
            Some(sizes) => sizes.iter().map(|&s| usize::try_from(s).unwrap_or(usize::MAX)).collect(),
            // As equal as it goes, the last one shorter.
            None => {
                let each = n.div_ceil(parts.max(1));
                (0..parts).map(|i| each.min(n.saturating_sub(i * each))).collect()
            }
        };
        if sizes.len() != parts || sizes.iter().try_fold(0usize, |a, &b| a.checked_add(b)) != Some(n) {
            return Err(Fault(format!("{n} positions cannot be split as {sizes:?} into {parts} outputs")));
        }
        let mut at = 0;
        let mut out = Vec::with_capacity(parts);
        for size in sizes {
            let mut maps: Vec<AxisMap> = x.dims.iter().map(|&n| identity(n)).collect();
            maps[axis] = (at..at + size).map(Some).collect();
            out.push(x.selected(&maps, 0.0)?);
            at += size;
        }
        Ok(out)
    }
}
