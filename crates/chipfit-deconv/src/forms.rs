//! The forms: a [`Source`] as standard convolutions, ready to replace it.
//!
//! One mechanism serves `split`, `rowsplit` and `fused`: each axis is cut into pieces (`axis`), each combination
//! of pieces is one convolution, and the pieces' outputs are woven (`weave`) and cropped. `zero-pad` weaves zeros
//! into the input and convolves once. `shi` and `chang` are the fused form with other pads.

use std::collections::BTreeMap;

use chipfit_model::build::{attr_i, attr_is, is_op};
use chipfit_model::proto::{NodeProto, TensorProto};
use chipfit_model::{ConstTensor, DataType, Index};

use crate::axis::{AxisPlan, Piece};
use crate::emit::{Emitter, Names, Target};
use crate::rewrite::{Crop, Form, Interleave};
use crate::source::Source;
use crate::weave::{Weave, WovenAxis};
use crate::weights::{KernelTaps, channel_order, gather, pick};

/// Most convolutions, phases and weight bytes that one node may become.
const MAX_PIECES: usize = 4096;
const MAX_PHASES: i64 = 65_536;
const MAX_WEIGHT_BYTES: usize = 1 << 30;

/// One emitted convolution, as cost models see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvWork {
    /// Output channels.
    pub channels_out: usize,
    /// Input channels per group.
    pub channels_in: usize,
    /// Groups.
    pub group: usize,
    /// Kernel lengths.
    pub kernel: Vec<usize>,
    /// Dilations.
    pub dilations: Vec<i64>,
    /// Largest pad.
    pub pad: i64,
    /// Output positions, batch included; `None` where shapes are unknown.
    pub positions: Option<u64>,
}

impl ConvWork {
    /// Multiply-accumulates, pads included.
    pub fn macs(&self) -> Option<u64> {
        let per_position = self.kernel.iter().try_fold(1u64, |n, &k| n.checked_mul(k as u64))?;
        per_position
            .checked_mul(self.channels_out as u64)?
            .checked_mul(self.channels_in as u64)?
            .checked_mul(self.positions?)
    }
}

/// A form's nodes and what they cost.
#[derive(Clone, Debug)]
pub(crate) struct Built {
    pub nodes: Vec<NodeProto>,
    pub initializers: Vec<TensorProto>,
    pub interleave: Option<Interleave>,
    pub work: Vec<ConvWork>,
    pub params: u64,
    pub notes: Vec<String>,
}

/// How to build.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BuildOptions {
    pub form: Form,
    pub interleave: Option<Interleave>,
    pub crop: Crop,
    pub max_channels: Option<usize>,
}

/// Builds `source` in the form asked for. The last node makes the value that the source's segment ends in.
///
/// # Errors
/// The reason why this form cannot be written.
pub(crate) fn build(
    index: &Index<'_>,
    source: &Source<'_>,
    options: BuildOptions,
    names: &mut Names,
) -> Result<Built, String> {
    let prefix = match source.node.name.as_deref() {
        Some(name) if !name.is_empty() => name,
        _ => &source.node.output[0],
    };
    let mut builder = Builder {
        index,
        source,
        options,
        e: Emitter::new(source.opset, names, &format!("{prefix}/chipfit")),
        inputs: BTreeMap::new(),
        vectors: BTreeMap::new(),
        work: Vec::new(),
        params: 0,
        bias_counted: false,
        notes: Vec::new(),
    };
    let phases = source.axes.iter().try_fold(1i64, |n, a| n.checked_mul(a.s).filter(|&n| n <= MAX_PHASES));
    if phases.is_none() {
        return Err(format!("its strides make more than {MAX_PHASES} phases"));
    }
    let (last, interleave) = match options.form {
        Form::ZeroPad => builder.zero_pad()?,
        Form::Split | Form::RowSplit | Form::Fused => builder.pieces(Shift::None)?,
        Form::Shi => builder.pieces(Shift::DropBegin)?,
        Form::Chang => builder.pieces(Shift::ToEnd)?,
    };
    let output = match &source.tail {
        Some(tail) => &tail.quantize.1.output[0],
        None => &source.node.output[0],
    };
    builder.e.rename(&last, output);
    let Builder { e, work, params, notes, .. } = builder;
    Ok(Built { nodes: e.nodes, initializers: e.initializers, interleave, work, params, notes })
}

/// What the approximate forms do to the pads.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shift {
    None,
    /// Shi: no padding at the begin, so the first rows are lost and the output is smaller.
    DropBegin,
    /// Chang: the padding of the begin sits at the end, so the output is shifted and wrong at its end.
    ToEnd,
}

struct Builder<'a, 'm> {
    index: &'a Index<'m>,
    source: &'a Source<'m>,
    options: BuildOptions,
    e: Emitter<'a>,
    /// Prepared inputs by what was done to them.
    inputs: BTreeMap<String, String>,
    /// Per-channel vectors by what they hold.
    vectors: BTreeMap<String, String>,
    work: Vec<ConvWork>,
    params: u64,
    bias_counted: bool,
    notes: Vec<String>,
}

/// One convolution to emit.
struct Conv<'p> {
    /// For each axis.
    pieces: Vec<&'p Piece>,
    /// Values per phase, less the convolution's input length.
    rows_extra: Vec<i64>,
    /// The convolution's input lengths.
    lengths: Vec<Option<i64>>,
    channel_major: bool,
}

impl<'m> Builder<'_, 'm> {
    /// The segment's first value: quantised where the node is.
    fn segment_input(&self) -> String {
        match &self.source.input {
            Some(q) => q.node.input[0].clone(),
            None => self.source.x().to_owned(),
        }
    }

    fn plans(&self) -> Vec<AxisPlan> {
        let aligned = self.options.crop == Crop::Alignment;
        let last = self.source.axes.len() - 1;
        let plan = |(a, axis): (usize, &crate::axis::Axis)| match self.options.form {
            Form::Split => axis.tight(),
            Form::RowSplit if a < last => axis.tight(),
            _ => axis.fused(aligned),
        };
        self.source.axes.iter().enumerate().map(plan).collect()
    }

    fn pieces(&mut self, shift: Shift) -> Result<(String, Option<Interleave>), String> {
        let mut plans = self.plans();
        let lengths: Vec<Option<i64>> = self.source.axes.iter().map(|a| a.n).collect();
        // Without stride there is nothing to interleave: the earlier conversions are exact there.
        let strided = self.source.axes.iter().any(|a| a.s > 1);
        for (plan, n) in plans.iter_mut().zip(&lengths).filter(|_| strided) {
            let Some(piece) = plan.pieces.first_mut() else { continue };
            let begin = piece.pad_begin.max(0);
            match shift {
                Shift::None => {}
                Shift::DropBegin => {
                    piece.pad_begin -= begin;
                    plan.rows_extra -= begin;
                    let left = n.map_or(i64::MAX, |n| plan.rows(n) * plan.phases as i64);
                    if left <= plan.crop_begin + plan.crop_end {
                        return Err("nothing would be left of its output".into());
                    }
                }
                Shift::ToEnd => {
                    piece.pad_begin -= begin;
                    piece.pad_end += begin;
                }
            }
        }
        let count = plans.iter().try_fold(1usize, |n, p| n.checked_mul(p.pieces.len()));
        let Some(count) = count.filter(|&n| n <= MAX_PIECES) else {
            return Err(format!("it would become more than {MAX_PIECES} convolutions"));
        };
        let phases: usize = plans.iter().map(AxisPlan::phases_per_piece).product();
        let channel_major = phases > 1 && self.source.group > 1;
        let rows_extra: Vec<i64> = plans.iter().map(|p| p.rows_extra).collect();
        let convs: Vec<Conv<'_>> = (0..count)
            .map(|mut i| {
                let mut pieces: Vec<&Piece> = Vec::new();
                for plan in plans.iter().rev() {
                    pieces.push(&plan.pieces[i % plan.pieces.len()]);
                    i /= plan.pieces.len();
                }
                pieces.reverse();
                Conv { pieces, rows_extra: rows_extra.clone(), lengths: lengths.clone(), channel_major }
            })
            .collect();
        // The bias alone takes its shape from a convolution beside it, so it comes after.
        let mut parts = vec![String::new(); count];
        let is_empty = |c: &Conv<'_>| c.pieces.iter().any(|p| p.kernel() == 0);
        let mut sibling = None;
        for (part, conv) in parts.iter_mut().zip(&convs).filter(|(_, c)| !is_empty(c)) {
            *part = self.conv(conv, &mut sibling)?;
        }
        for (part, conv) in parts.iter_mut().zip(&convs).filter(|(_, c)| is_empty(c)) {
            *part = self.bias_alone(conv, &mut sibling)?;
        }
        let weave = Weave {
            axes: plans
                .iter()
                .zip(&lengths)
                .map(|(plan, n)| WovenAxis {
                    phases: plan.phases,
                    fused: plan.pieces.len() == 1 && plan.phases > 1,
                    rows: n.map(|n| plan.rows(n)),
                })
                .collect(),
            channels: self.source.channels_out(),
            channel_major,
        };
        let (mut last, interleave) = match (weave.is_trivial(), parts.as_slice()) {
            (true, [one]) => (one.clone(), None),
            _ => {
                // Before opset 11 runtimes have DepthToSpace for floats alone.
                let integers = self.source.tail.is_some() && self.source.opset < 11;
                let wanted = self.options.interleave.or(integers.then_some(Interleave::Reshape));
                let (value, used) = weave.emit(&mut self.e, &parts, wanted)?;
                (value, Some(used))
            }
        };
        if let (Some(wanted), Some(used)) = (self.options.interleave, interleave)
            && wanted != used
        {
            self.notes.push(format!("{} does not apply here, woven by {}", wanted.name(), used.name()));
        }
        let crops: Vec<(i64, i64)> = plans.iter().map(|p| (p.crop_begin, p.crop_end)).collect();
        last = self.crop(last, &crops);
        Ok((last, interleave))
    }

    fn crop(&mut self, value: String, crops: &[(i64, i64)]) -> String {
        let (mut axes, mut starts, mut ends) = (Vec::new(), Vec::new(), Vec::new());
        for (a, &(begin, end)) in crops.iter().enumerate().filter(|(_, c)| **c != (0, 0)) {
            axes.push(a as i64 + 2);
            starts.push(begin);
            ends.push(if end == 0 { i64::MAX } else { -end });
        }
        if axes.is_empty() { value } else { self.e.slice(&value, &axes, &starts, &ends) }
    }

    /// The stored zero of the quantised input, for Pad.
    fn input_zero(&self) -> Option<ConstTensor> {
        let q = self.source.input.as_ref()?;
        let zero_point = self.index.constant_tensor(self.source.scope, q.node.input.get(2)?).ok()??;
        zero_point.reshaped(Vec::new())
    }

    fn zero_pad(&mut self) -> Result<(String, Option<Interleave>), String> {
        let source = self.source;
        let mut stuffed = self.segment_input();
        let phases: i64 = source.axes.iter().map(|a| a.s).product();
        let mut interleave = None;
        if phases > 1 {
            if source.input.is_some() && source.opset < 11 {
                return Err("zero-pad of a quantised node needs opset 11".into());
            }
            let mut pads = vec![0; 2 * (source.axes.len() + 2)];
            pads[source.axes.len() + 3] = (phases - 1) * source.channels_in as i64;
            let zero = self.input_zero();
            stuffed = self.e.pad(&stuffed, &pads, zero.as_ref());
            let axis = |a: &crate::axis::Axis| WovenAxis { phases: a.s as usize, fused: true, rows: a.n };
            let weave = Weave {
                axes: source.axes.iter().map(axis).collect(),
                channels: source.channels_in,
                channel_major: false,
            };
            let (value, used) = weave.emit(&mut self.e, &[stuffed], self.options.interleave)?;
            (stuffed, interleave) = (value, Some(used));
        }
        let pieces: Vec<Piece> = source
            .axes
            .iter()
            .map(|a| Piece {
                taps: vec![(0..a.k as usize).rev().map(Some).collect()],
                dilation: a.d,
                pad_begin: a.d * (a.k - 1) - a.p,
                pad_end: a.c + a.p,
            })
            .collect();
        let lengths: Vec<Option<i64>> = source.axes.iter().map(|a| Some(a.n? * a.s)).collect();
        let conv = Conv {
            rows_extra: source.axes.iter().map(|a| a.c).collect(),
            pieces: pieces.iter().collect(),
            channel_major: false,
            lengths: lengths.clone(),
        };
        let outside = pieces.iter().zip(&lengths).any(|(p, n)| n.is_some_and(|n| -p.pad_begin >= n || -p.pad_end >= n));
        if outside {
            return Err("every tap lies outside the input".into());
        }
        self.inputs.insert(String::new(), stuffed);
        Ok((self.conv(&conv, &mut None)?, interleave))
    }

    /// The input after explicit pads, then slices (axis, start, end), then dequantized.
    fn prepared(&mut self, pads: &[i64], slices: &[(i64, i64, i64)]) -> Result<String, String> {
        let raw_key = String::new();
        let mut value = self.inputs.get(&raw_key).cloned().unwrap_or_else(|| self.segment_input());
        let plain = pads.iter().all(|&p| p == 0) && slices.is_empty();
        if plain && value == self.segment_input() {
            // The node's own input, dequantized already where it is quantised.
            return Ok(self.source.x().to_owned());
        }
        let key = format!("{pads:?} {slices:?}");
        if let Some(known) = self.inputs.get(&key) {
            return Ok(known.clone());
        }
        if pads.iter().any(|&p| p != 0) {
            if self.source.input.is_some() && self.source.opset < 11 {
                return Err("padding a quantised value needs opset 11".into());
            }
            let zero = self.input_zero();
            value = self.e.pad(&value, pads, zero.as_ref());
        }
        if !slices.is_empty() {
            let column = |f: fn(&(i64, i64, i64)) -> i64| slices.iter().map(f).collect::<Vec<_>>();
            value = self.e.slice(&value, &column(|s| s.0), &column(|s| s.1), &column(|s| s.2));
        }
        if let Some(q) = &self.source.input {
            let mut inputs = vec![value.as_str()];
            inputs.extend(q.node.input.iter().skip(1).map(String::as_str));
            value = self.e.like(q.node, &inputs);
        }
        self.inputs.insert(key, value.clone());
        Ok(value)
    }

    /// Emits one convolution, split over output channels where asked; gives its output, quantised where the
    /// node is. `sibling` keeps the first float output, whose shape the bias alone can borrow.
    fn conv(&mut self, conv: &Conv<'_>, sibling: &mut Option<String>) -> Result<String, String> {
        let source = self.source;
        let taps = KernelTaps { axes: conv.pieces.iter().map(|p| p.taps.as_slice()).collect() };
        let order = channel_order(source.channels_out(), taps.phases(), conv.channel_major);
        let per_group = source.channels_out_per_group * taps.phases();
        let bytes = order.len().checked_mul(source.channels_in_per_group()).and_then(|n| {
            taps.lengths().iter().try_fold(n.checked_mul(source.weight.dtype().bytes()?)?, |n, &k| n.checked_mul(k))
        });
        if bytes.is_none_or(|b| b > MAX_WEIGHT_BYTES) {
            return Err("its filters would take more than 1 GiB".into());
        }
        let limit = self.options.max_channels.unwrap_or(usize::MAX).max(1);
        let mut outputs = Vec::new();
        if order.len() <= limit {
            outputs.push(self.chunk(conv, &taps, &order, 0..source.group, sibling)?);
        } else if source.group == 1 || per_group > limit {
            for group in 0..source.group {
                let of_group = &order[group * per_group..(group + 1) * per_group];
                for part in of_group.chunks(limit) {
                    outputs.push(self.chunk(conv, &taps, part, group..group + 1, sibling)?);
                }
            }
        } else {
            let groups_each = limit / per_group;
            for first in (0..source.group).step_by(groups_each) {
                let groups = first..(first + groups_each).min(source.group);
                let part = &order[groups.start * per_group..groups.end * per_group];
                outputs.push(self.chunk(conv, &taps, part, groups, sibling)?);
            }
        }
        Ok(self.e.concat(&outputs, 1))
    }

    fn chunk(
        &mut self,
        conv: &Conv<'_>,
        taps: &KernelTaps<'_>,
        order: &[(usize, usize)],
        groups: std::ops::Range<usize>,
        sibling: &mut Option<String>,
    ) -> Result<String, String> {
        let source = self.source;
        let spatial = conv.pieces.len();
        let mut explicit = vec![0; 2 * (spatial + 2)];
        let mut slices = Vec::new();
        if groups.len() < source.group {
            let each = source.channels_in_per_group() as i64;
            slices.push((1, groups.start as i64 * each, groups.end as i64 * each));
        }
        let (mut begins, mut ends) = (Vec::new(), Vec::new());
        for (a, piece) in conv.pieces.iter().enumerate() {
            let (mut begin, mut end) = (piece.pad_begin, piece.pad_end);
            let mixed = begin.signum() * end.signum() < 0;
            if mixed && conv.lengths[a].is_none() {
                // A short input could vanish in the slice: pad the other side first.
                explicit[2 + a] = begin.max(0);
                explicit[spatial + 4 + a] = end.max(0);
                (begin, end) = (begin.min(0), end.min(0));
            }
            if begin < 0 || end < 0 {
                slices.push((a as i64 + 2, -begin.min(0), if end < 0 { end } else { i64::MAX }));
            }
            begins.push(begin.max(0));
            ends.push(end.max(0));
        }
        let x = self.prepared(&explicit, &slices)?;
        let weight = gather(source, taps, order).ok_or("its weight does not have the length its shape asks for")?;
        self.params += weight.len() as u64;
        let weight = self.weight(&weight, order)?;
        let channels: Vec<usize> = order.iter().map(|&(o, _)| o).collect();
        let bias = self.bias(&channels)?;
        let mut inputs = vec![x.as_str(), weight.as_str()];
        inputs.extend(bias.as_deref());
        let lengths = taps.lengths();
        let dilations: Vec<i64> = conv.pieces.iter().map(|p| p.dilation).collect();
        let pad = begins.iter().chain(&ends).copied().max().unwrap_or(0);
        begins.append(&mut ends);
        let kernel: Vec<i64> = lengths.iter().map(|&k| k as i64).collect();
        let attributes = vec![
            attr_is("dilations", &dilations),
            attr_i("group", groups.len() as i64),
            attr_is("kernel_shape", &kernel),
            attr_is("pads", &begins),
            attr_is("strides", &vec![1; spatial]),
        ];
        let output = self.e.op("Conv", &inputs, attributes);
        sibling.get_or_insert_with(|| output.clone());
        let rows = conv.lengths.iter().zip(&conv.rows_extra).map(|(n, extra)| u64::try_from((*n)? + extra).ok());
        let positions = rows.chain([source.batch.map(|n| n as u64)]).try_fold(1u64, |n, r| n.checked_mul(r?));
        self.work.push(ConvWork {
            channels_out: order.len(),
            channels_in: source.channels_in_per_group(),
            group: groups.len(),
            kernel: lengths,
            dilations,
            pad,
            positions,
        });
        Ok(self.tail(output))
    }

    /// The activation and quantisation that follow the node, where they moved before the interleave.
    fn tail(&mut self, value: String) -> String {
        let Some(tail) = &self.source.tail else { return value };
        let followed = |e: &mut Emitter<'_>, node: &NodeProto, value: &str| {
            let mut inputs = vec![value];
            inputs.extend(node.input.iter().skip(1).map(String::as_str));
            e.like(node, &inputs)
        };
        let value = match tail.activation {
            Some((_, node)) => followed(&mut self.e, node, &value),
            None => value,
        };
        followed(&mut self.e, tail.quantize.1, &value)
    }

    /// Adds a weight, behind its own DequantizeLinear where it is quantised.
    fn weight(&mut self, weight: &ConstTensor, order: &[(usize, usize)]) -> Result<String, String> {
        let stored = self.e.constant("weight", weight);
        let Some(q) = self.source.weight_quantization.clone() else { return Ok(stored) };
        let picks: Option<Vec<usize>> =
            q.scale_of.as_ref().map(|of| order.iter().map(|&(o, _)| of.get(o).copied().unwrap_or(0)).collect());
        self.dequantized(q.node, &stored, q.scales.as_ref().zip(picks), q.zero_points.as_ref())
    }

    /// A copy of the DequantizeLinear `node` for `stored`; `several`: its scales and which of them, in order,
    /// belong to axis 0 of `stored`.
    fn dequantized(
        &mut self,
        node: &NodeProto,
        stored: &str,
        several: Option<(&ConstTensor, Vec<usize>)>,
        zero_points: Option<&ConstTensor>,
    ) -> Result<String, String> {
        let input = |i: usize| node.input.get(i).cloned().unwrap_or_default();
        let (mut scale, mut zero_point) = (input(1), input(2));
        if let Some((scales, picks)) = &several {
            let overflow = || "its scales do not fit its channels".to_owned();
            let unchanged = picks.len() == scales.len() && picks.iter().enumerate().all(|(i, &p)| i == p);
            if !unchanged {
                scale = self.vector("scale", &scale, scales, picks).ok_or_else(overflow)?;
                if let Some(zero_points) = zero_points {
                    zero_point = self.vector("zero_point", &zero_point, zero_points, picks).ok_or_else(overflow)?;
                }
            }
        }
        let inputs = if zero_point.is_empty() { vec![stored, &scale] } else { vec![stored, &scale, &zero_point] };
        let output = self.e.like(node, &inputs);
        if several.is_some()
            && let Some(copy) = self.e.nodes.last_mut()
        {
            copy.attribute.retain(|a| a.name.as_deref() != Some("axis"));
            copy.attribute.push(attr_i("axis", 0));
        }
        Ok(output)
    }

    /// A reordered per-channel constant, each order made once.
    fn vector(&mut self, what: &str, original: &str, tensor: &ConstTensor, picks: &[usize]) -> Option<String> {
        let key = format!("{what} {original} {picks:?}");
        if let Some(known) = self.vectors.get(&key) {
            return Some(known.clone());
        }
        let name = self.e.constant(what, &pick(tensor, picks)?);
        self.vectors.insert(key, name.clone());
        Some(name)
    }

    /// The bias whose entry `i` is that of the original's channel `channels[i]`, as a float value.
    fn bias(&mut self, channels: &[usize]) -> Result<Option<String>, String> {
        let source = self.source;
        let Some(bias) = source.bias else { return Ok(None) };
        let all = source.channels_out();
        if channels.len() == all && channels.iter().enumerate().all(|(i, &c)| i == c) {
            self.params += if self.bias_counted { 0 } else { all as u64 };
            self.bias_counted = true;
            return Ok(Some(bias.to_owned()));
        }
        let key = format!("bias {channels:?}");
        if let Some(known) = self.vectors.get(&key) {
            return Ok(Some(known.clone()));
        }
        let load = |name: &str| self.index.constant_tensor(source.scope, name).map_err(|e| e.to_string());
        let misfit = || "its bias does not fit its output channels".to_owned();
        let name = if let Some(constant) = load(bias)? {
            let picked = pick(&constant, channels).ok_or_else(misfit)?;
            self.e.constant("bias", &picked)
        } else {
            let dq = self.index.producer_node(source.scope, bias).filter(|(_, _, n)| is_op(n, "DequantizeLinear"));
            let runtime = || "its bias is computed at run time".to_owned();
            let node = dq.ok_or_else(runtime)?.2;
            let part = |i: usize| node.input.get(i).filter(|n| !n.is_empty()).map_or(Ok(None), |n| load(n));
            let stored = part(0)?.ok_or_else(runtime)?;
            let scales = part(1)?.ok_or_else(runtime)?;
            let zero_points = part(2)?;
            let picked = pick(&stored, channels).ok_or_else(misfit)?;
            let stored = self.e.constant("bias_quantized", &picked);
            let several = (scales.len() > 1).then(|| (&scales, channels.to_vec()));
            let zero_points = zero_points.filter(|z| z.len() == scales.len());
            self.dequantized(node, &stored, several, zero_points.as_ref())?
        };
        self.params += channels.len() as u64;
        self.vectors.insert(key, name.clone());
        Ok(Some(name))
    }

    /// A part that no tap reaches: the bias, or zero, spread over the part's shape.
    fn bias_alone(&mut self, conv: &Conv<'_>, sibling: &mut Option<String>) -> Result<String, String> {
        let source = self.source;
        if source.opset < 8 {
            return self.bias_by_zero_conv(conv, sibling);
        }
        let phases: usize = conv.pieces.iter().map(|p| p.taps.len()).product();
        let order = channel_order(source.channels_out(), phases, conv.channel_major);
        let channels: Vec<usize> = order.iter().map(|&(o, _)| o).collect();
        let mut one_each = vec![1; conv.pieces.len() + 2];
        one_each[1] = channels.len();
        let value = match self.bias(&channels)? {
            Some(bias) => {
                let target: Vec<Target> = one_each.iter().map(|&d| Target::Fixed(d as i64)).collect();
                self.e.reshape(&bias, &target)
            }
            None => {
                let real = match &source.weight_quantization {
                    Some(q) => q.real,
                    None => source.weight.dtype(),
                };
                let bytes = vec![0; channels.len() * real.bytes().unwrap_or(DataType::Float.bits() / 8)];
                let zeros = ConstTensor::new(real, one_each, bytes).ok_or("its output is too large")?;
                self.e.constant("zeros", &zeros)
            }
        };
        // Max-channels may have cut the sibling into chunks, so only its batch and rows are borrowed.
        let shape_of = sibling.clone().unwrap_or_else(|| source.x().to_owned());
        let mut shape = vec![match source.batch {
            Some(n) => Target::Fixed(n as i64),
            None => Target::Times { of: shape_of.clone(), axis: 0, factor: 1 },
        }];
        shape.push(Target::Fixed(channels.len() as i64));
        for (a, (n, extra)) in conv.lengths.iter().zip(&conv.rows_extra).enumerate() {
            shape.push(match n {
                Some(n) => Target::Fixed(n + extra),
                None => Target::Times { of: shape_of.clone(), axis: 2 + a, factor: 1 },
            });
        }
        let shape = self.e.shape_vector(&shape);
        let spread = self.e.op("Expand", &[&value, &shape], vec![]);
        Ok(self.tail(spread))
    }

    /// Before Expand existed (opset 8): a convolution whose only tap is zero.
    fn bias_by_zero_conv(&mut self, conv: &Conv<'_>, sibling: &mut Option<String>) -> Result<String, String> {
        self.notes.push("opset below 8: a phase without taps is a convolution with a zero tap".into());
        let pieces: Vec<Piece> = conv
            .pieces
            .iter()
            .zip(&conv.rows_extra)
            .map(|(p, &extra)| Piece {
                taps: vec![vec![None]; p.taps.len()],
                dilation: 1,
                pad_begin: 0,
                pad_end: extra,
            })
            .collect();
        let zero = Conv {
            pieces: pieces.iter().collect(),
            rows_extra: conv.rows_extra.clone(),
            lengths: conv.lengths.clone(),
            channel_major: conv.channel_major,
        };
        self.conv(&zero, sibling)
    }
}
