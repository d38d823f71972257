//! Operators that only move values: each output element is an input element or a constant.
//!
//! A [`Movement`] counts in the model's row-major order of one picture; [`Movement::into_op`] turns it to the
//! program's layout. Shapes come from inference, so that Reshape's own arithmetic is not repeated here.

use chipfit_model::DataType;
use chipfit_model::build::{get_i, get_is, get_s, is_op};

use super::{LowerError, Lowering, op_type};
use crate::program::{Op, Source, to_channels_last};

/// Stands for the fill value in [`Movement::sources`].
const FILL: u32 = u32::MAX;

/// Where each output element of one picture comes from, in row-major order.
#[derive(Clone, Debug)]
pub(super) struct Movement {
    sources: Vec<u32>,
    /// The real value of the elements that come from nowhere.
    pub fill: f32,
    /// Shape of the result, without the batch.
    pub shape: Vec<usize>,
}

impl Movement {
    /// Whether some elements come from nowhere.
    pub(super) fn fills(&self) -> bool {
        self.sources.contains(&FILL)
    }

    /// The operation between tensors in the program's layout, from one of shape `from`.
    pub(super) fn into_op(self, from: &[usize], fill: u8) -> Op {
        let elements: usize = from.iter().product();
        let elements = u32::try_from(elements).unwrap_or(u32::MAX);
        let order = to_channels_last(&(0..elements).collect::<Vec<u32>>(), from);
        let mut place = vec![0; order.len()];
        (0u32..).zip(&order).for_each(|(at, &model)| place[model as usize] = at);
        let source = |&source: &u32| if source == FILL { Source::Fill } else { Source::Byte(place[source as usize]) };
        let sources: Vec<Source> = self.sources.iter().map(source).collect();
        Op::Move { sources: to_channels_last(&sources, &self.shape), fill }
    }

    /// The transpose of a matrix of `rows` by columns, as a tensor of `shape`.
    pub(super) fn transposed(matrix: &[usize], shape: Vec<usize>) -> Self {
        let (rows, columns) = (matrix[0], matrix[1]);
        let at = (0..columns).flat_map(|column| (0..rows).map(move |row| row * columns + column));
        Self { sources: at.map(|at| u32::try_from(at).unwrap_or(FILL)).collect(), fill: 0.0, shape }
    }

    /// Element by element: `source` gives the input's coordinates of an output's coordinates.
    fn by_coordinates(
        from: &[usize],
        shape: Vec<usize>,
        fill: f32,
        source: impl Fn(&[usize], &mut [i64]) -> bool,
    ) -> Self {
        let elements: usize = shape.iter().product();
        let mut sources = Vec::with_capacity(elements);
        let mut at = vec![0usize; shape.len()];
        let mut there = vec![0i64; from.len()];
        for _ in 0..elements {
            let inside = source(&at, &mut there)
                && there.iter().zip(from).all(|(&c, &length)| usize::try_from(c).is_ok_and(|c| c < length));
            let index = there.iter().zip(from).fold(0i64, |index, (&c, &length)| index * length as i64 + c);
            sources.push(if inside { u32::try_from(index).unwrap_or(FILL) } else { FILL });
            for axis in (0..shape.len()).rev() {
                at[axis] += 1;
                if at[axis] < shape[axis] {
                    break;
                }
                at[axis] = 0;
            }
        }
        Self { sources, fill, shape }
    }
}

impl Lowering<'_, '_> {
    /// The node at `position` as a movement to its output `output`; `None` for other operators.
    pub(super) fn movement(&self, position: usize, output: &str) -> Result<Option<Movement>, LowerError> {
        const KNOWN: [&str; 16] = [
            "Reshape",
            "Flatten",
            "Squeeze",
            "Unsqueeze",
            "Identity",
            "Dropout",
            "Cast",
            "Transpose",
            "Pad",
            "Slice",
            "Split",
            "Resize",
            "Upsample",
            "DepthToSpace",
            "SpaceToDepth",
            "Gather",
        ];
        let node = self.node(position);
        let Some(known) = KNOWN.into_iter().find(|known| is_op(node, known)) else { return Ok(None) };
        let from = self.picture(position, &node.input[0])?;
        let shape = self.picture(position, output)?;
        let elements = shape.iter().product::<usize>();
        let keeps_rank = ["Transpose", "Pad", "Slice", "Split", "Resize", "Upsample"].contains(&known);
        if keeps_rank && shape.len() != from.len() {
            let what = format!("shapes {from:?} and {shape:?} of its input and output");
            return Err(self.unsupported(position, &what, "correct the model"));
        }
        let movement = match known {
            "Transpose" => self.transpose(position, &from, shape)?,
            "Pad" => self.pad(position, &from, shape)?,
            "Slice" => self.slice(position, &from, shape)?,
            "Split" => self.split(position, &from, shape, output)?,
            "Resize" | "Upsample" => self.resize(position, &from, shape)?,
            "DepthToSpace" | "SpaceToDepth" => self.depth_and_space(position, &from, shape)?,
            "Gather" => self.gather(position, &from, shape)?,
            _ => {
                let is_float = |name: &str| self.shapes.get(0, name).dtype.is_none_or(|t| t == DataType::Float);
                if known == "Cast" && !(is_float(&node.input[0]) && is_float(output)) {
                    return Err(self.unsupported(position, "a cast between types", "export the model in float"));
                }
                if from.iter().product::<usize>() != elements {
                    let what = format!("from shape {from:?} to {shape:?}, batch aside");
                    return Err(self.mixes(position, &what));
                }
                let sources = (0..elements).map(|e| u32::try_from(e).unwrap_or(FILL)).collect();
                Movement { sources, fill: 0.0, shape }
            }
        };
        Ok(Some(movement))
    }

    pub(super) fn mixes(&self, position: usize, what: &str) -> LowerError {
        let (node, op_type) = (self.label(position), op_type(self.node(position)));
        LowerError::MixesPictures { node, op_type, what: what.to_owned() }
    }

    /// An axis of the model as an axis of the picture; an error for the batch.
    pub(super) fn picture_axis(&self, position: usize, axis: i64, rank: usize) -> Result<usize, LowerError> {
        let rank = rank as i64 + 1;
        let axis = if axis < 0 { axis + rank } else { axis };
        match axis {
            0 => Err(self.mixes(position, "it works along axis 0")),
            1.. if axis < rank => Ok((axis - 1) as usize),
            _ => Err(self.unsupported(position, &format!("axis {axis} of {rank} axes"), "correct the model")),
        }
    }

    fn transpose(&self, position: usize, from: &[usize], shape: Vec<usize>) -> Result<Movement, LowerError> {
        let rank = from.len() + 1;
        let reversed: Vec<i64> = (0..rank as i64).rev().collect();
        let order = get_is(self.node(position), "perm").filter(|p| !p.is_empty()).unwrap_or(&reversed);
        if order.first() != Some(&0) || order.len() != rank {
            return Err(self.mixes(position, &format!("perm {order:?}")));
        }
        let axes: Vec<usize> =
            order[1..].iter().map(|&axis| self.picture_axis(position, axis, from.len())).collect::<Result<_, _>>()?;
        Ok(Movement::by_coordinates(from, shape, 0.0, |at, there| {
            axes.iter().zip(at).for_each(|(&axis, &c)| there[axis] = c as i64);
            true
        }))
    }

    /// Integers from input `input`, or from the attribute `attribute` of older operator sets.
    fn integers_of(&self, position: usize, input: usize, attribute: &str) -> Result<Option<Vec<i64>>, LowerError> {
        let node = self.node(position);
        if let Some(name) = node.input.get(input).filter(|name| !name.is_empty()) {
            let tensor = self.constant(position, name, attribute)?;
            let values = tensor.to_i64_vec();
            return values
                .map(Some)
                .ok_or_else(|| self.unsupported(position, &format!("{attribute} of floats"), "use integers"));
        }
        Ok(get_is(node, attribute).map(<[i64]>::to_vec))
    }

    fn pad(&self, position: usize, from: &[usize], shape: Vec<usize>) -> Result<Movement, LowerError> {
        let node = self.node(position);
        let pads = self.integers_of(position, 1, "pads")?.or_else(|| get_is(node, "paddings").map(<[i64]>::to_vec));
        let pads = pads.ok_or_else(|| self.unsupported(position, "no pads", "correct the model"))?;
        let axes = self.integers_of(position, 3, "axes")?.unwrap_or_else(|| (0..=from.len() as i64).collect());
        let mode = get_s(node, "mode").unwrap_or("constant").to_owned();
        if pads.len() != 2 * axes.len() || !["constant", "reflect", "edge", "wrap"].contains(&mode.as_str()) {
            let what = format!("mode '{mode}' with {} pads for {} axes", pads.len(), axes.len());
            return Err(self.unsupported(position, &what, "use constant, reflect, edge or wrap"));
        }
        let fill = match node.input.get(2).filter(|name| !name.is_empty()) {
            Some(name) => self.constant(position, name, "the fill value")?.to_f64_vec().unwrap_or_default(),
            None => chipfit_model::build::get_f(node, "value").map(f64::from).into_iter().collect(),
        };
        let mut begins = vec![0i64; from.len()];
        for (at, &axis) in axes.iter().enumerate() {
            let (begin, end) = (pads[at], pads[at + axes.len()]);
            if (axis == 0 || axis == -(from.len() as i64) - 1) && (begin, end) == (0, 0) {
                continue;
            }
            begins[self.picture_axis(position, axis, from.len())?] = begin;
        }
        let lengths: Vec<i64> = from.iter().map(|&length| length as i64).collect();
        let fill = fill.first().copied().unwrap_or(0.0) as f32;
        Ok(Movement::by_coordinates(from, shape, fill, |at, there| {
            for axis in 0..lengths.len() {
                let (c, length) = (at[axis] as i64 - begins[axis], lengths[axis]);
                there[axis] = match mode.as_str() {
                    "edge" => c.min(length - 1).max(0),
                    "reflect" if length > 1 => {
                        let c = c.rem_euclid(2 * (length - 1));
                        if c < length { c } else { 2 * (length - 1) - c }
                    }
                    "reflect" => 0,
                    "wrap" => c.rem_euclid(length.max(1)),
                    _ => c,
                };
            }
            true
        }))
    }

    fn slice(&self, position: usize, from: &[usize], shape: Vec<usize>) -> Result<Movement, LowerError> {
        let wanted = |values: Option<Vec<i64>>| {
            values.ok_or_else(|| self.unsupported(position, "no starts or ends", "correct the model"))
        };
        let starts = wanted(self.integers_of(position, 1, "starts")?)?;
        let ends = wanted(self.integers_of(position, 2, "ends")?)?;
        let axes = self.integers_of(position, 3, "axes")?.unwrap_or_else(|| (0..starts.len() as i64).collect());
        let steps = self.integers_of(position, 4, "steps")?.unwrap_or_else(|| vec![1; starts.len()]);
        if [ends.len(), axes.len(), steps.len()] != [starts.len(); 3] || steps.contains(&0) {
            return Err(self.unsupported(position, "starts, ends, axes and steps do not fit", "correct the model"));
        }
        let (mut begin, mut step) = (vec![0i64; from.len()], vec![1i64; from.len()]);
        for at in 0..starts.len() {
            if axes[at] == 0 || axes[at] == -(from.len() as i64) - 1 {
                if (starts[at], steps[at]) == (0, 1) && ends[at] >= self.batch as i64 {
                    continue;
                }
                return Err(self.mixes(position, "it cuts along axis 0"));
            }
            let axis = self.picture_axis(position, axes[at], from.len())?;
            let length = from[axis] as i64;
            let start = if starts[at] < 0 { starts[at].saturating_add(length) } else { starts[at] };
            begin[axis] = if steps[at] > 0 { start.clamp(0, length) } else { start.min(length - 1).max(0) };
            step[axis] = steps[at];
        }
        Ok(Movement::by_coordinates(from, shape, 0.0, |at, there| {
            (0..at.len()).for_each(|axis| there[axis] = begin[axis] + at[axis] as i64 * step[axis]);
            true
        }))
    }

    fn split(&self, position: usize, from: &[usize], shape: Vec<usize>, output: &str) -> Result<Movement, LowerError> {
        let node = self.node(position);
        let axis = self.picture_axis(position, get_i(node, "axis").unwrap_or(0), from.len())?;
        let mut start = 0;
        for name in node.output.iter().take_while(|name| *name != output) {
            start += self.picture(position, name)?[axis] as i64;
        }
        Ok(Movement::by_coordinates(from, shape, 0.0, |at, there| {
            (0..at.len()).for_each(|a| there[a] = at[a] as i64 + if a == axis { start } else { 0 });
            true
        }))
    }

    fn gather(&self, position: usize, from: &[usize], shape: Vec<usize>) -> Result<Movement, LowerError> {
        let node = self.node(position);
        let axis = self.picture_axis(position, get_i(node, "axis").unwrap_or(0), from.len())?;
        let indices = self.constant(position, node.input.get(1).map_or("", String::as_str), "the indices")?;
        let rank = indices.dims().len();
        let length = from[axis] as i64;
        let values: Vec<i64> = indices.to_i64_vec().unwrap_or_default();
        let values: Vec<i64> = values.into_iter().map(|v| if v < 0 { v + length } else { v }).collect();
        if rank > 1
            || shape.len() + 1 != from.len() + rank
            || values.is_empty()
            || values.iter().any(|v| !(0..length).contains(v))
        {
            return Err(self.unsupported(position, "indices of two axes, or out of range", "use Slice"));
        }
        Ok(Movement::by_coordinates(from, shape, 0.0, |at, there| {
            for a in 0..there.len() {
                there[a] = match a.cmp(&axis) {
                    std::cmp::Ordering::Less => at[a] as i64,
                    std::cmp::Ordering::Equal if rank == 1 => values[at[a]],
                    std::cmp::Ordering::Equal => values[0],
                    std::cmp::Ordering::Greater => at[a + rank - 1] as i64,
                };
            }
            true
        }))
    }

    fn depth_and_space(&self, position: usize, from: &[usize], shape: Vec<usize>) -> Result<Movement, LowerError> {
        let node = self.node(position);
        let block = usize::try_from(get_i(node, "blocksize").unwrap_or(0)).unwrap_or(0);
        let to_space = is_op(node, "DepthToSpace");
        let deep = if to_space { from } else { &shape };
        if block == 0 || from.len() != 3 || shape.len() != 3 || !deep[0].is_multiple_of(block * block) {
            return Err(self.unsupported(
                position,
                &format!("blocksize {block} of shape {from:?}"),
                "correct the model",
            ));
        }
        let thin = deep[0] / (block * block);
        // SpaceToDepth has one order, that of DepthToSpace's DCR.
        let crd = to_space && get_s(node, "mode") == Some("CRD");
        Ok(Movement::by_coordinates(from, shape, 0.0, |at, there| {
            let (c, y, x) = (at[0], at[1], at[2]);
            let place = if to_space {
                let (row, column) = (y % block, x % block);
                let depth = if crd { (c * block + row) * block + column } else { (row * block + column) * thin + c };
                [depth, y / block, x / block]
            } else {
                let (row, column) = (c / thin / block, c / thin % block);
                [c % thin, y * block + row, x * block + column]
            };
            (0..3).for_each(|axis| there[axis] = place[axis] as i64);
            true
        }))
    }

    fn resize(&self, position: usize, from: &[usize], shape: Vec<usize>) -> Result<Movement, LowerError> {
        let node = self.node(position);
        let old = is_op(node, "Upsample") || self.index.scopes[0].opset < 11;
        let mode = get_s(node, "mode").unwrap_or("nearest");
        let transformation =
            if old { "asymmetric" } else { get_s(node, "coordinate_transformation_mode").unwrap_or("half_pixel") };
        let nearest = if old { "floor" } else { get_s(node, "nearest_mode").unwrap_or("round_prefer_floor") };
        let known = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"].contains(&transformation);
        let policy = get_s(node, "keep_aspect_ratio_policy").unwrap_or("stretch");
        if mode != "nearest" || !known || policy != "stretch" || get_is(node, "axes").is_some_and(|a| a.contains(&0)) {
            let what = format!("mode '{mode}', coordinate_transformation_mode '{transformation}'");
            return Err(self.unsupported(position, &what, "use nearest, with stretch and without axis 0"));
        }
        let scales = self.resize_scales(position, old, from, &shape)?;
        let along: Vec<Vec<i64>> = (0..from.len())
            .map(|axis| {
                let (length, result, scale) = (from[axis] as f32, shape[axis] as f32, scales[axis]);
                let place = |x: usize| {
                    let x = x as f32;
                    // At scale 1 nothing moves, whatever the transformation says of the borders.
                    if scale == 1.0 {
                        return x as i64;
                    }
                    let there = match transformation {
                        "asymmetric" => x / scale,
                        "align_corners" if result > 1.0 => x * (length - 1.0) / (result - 1.0),
                        "align_corners" => 0.0,
                        "pytorch_half_pixel" if result <= 1.0 => 0.0,
                        _ => (x + 0.5) / scale - 0.5,
                    };
                    let there = match nearest {
                        "floor" => there.floor(),
                        "ceil" => there.ceil(),
                        "round_prefer_ceil" => (there + 0.5).floor(),
                        _ => (there - 0.5).ceil(),
                    };
                    (there as i64).min(from[axis] as i64 - 1).max(0)
                };
                (0..shape[axis]).map(place).collect()
            })
            .collect();
        Ok(Movement::by_coordinates(from, shape, 0.0, |at, there| {
            (0..at.len()).for_each(|axis| there[axis] = along[axis][at[axis]]);
            true
        }))
    }

    /// The factor along each axis of the picture: as given, or the quotient of the lengths.
    fn resize_scales(
        &self,
        position: usize,
        old: bool,
        from: &[usize],
        shape: &[usize],
    ) -> Result<Vec<f32>, LowerError> {
        let node = self.node(position);
        let input = if old { 1 } else { 2 };
        let given: Vec<f64> = match node.input.get(input).filter(|name| !name.is_empty()) {
            Some(name) => self.constant(position, name, "scales")?.to_f64_vec().unwrap_or_default(),
            None => chipfit_model::build::attr(node, "scales")
                .map(|a| a.floats.iter().map(|&s| f64::from(s)).collect())
                .unwrap_or_default(),
        };
        let mut scales: Vec<f32> = from.iter().zip(shape).map(|(&f, &s)| s as f32 / f as f32).collect();
        if !given.is_empty() {
            let rank = from.len() as i64 + 1;
            let axes = get_is(node, "axes").map_or_else(|| (0..rank).collect(), <[i64]>::to_vec);
            for (&axis, &scale) in axes.iter().zip(&given) {
                if axis != 0 && axis != -rank {
                    scales[self.picture_axis(position, axis, from.len())?] = scale as f32;
                } else if scale != 1.0 {
                    return Err(self.mixes(position, "it resizes axis 0"));
                }
            }
        }
        Ok(scales)
    }
}
