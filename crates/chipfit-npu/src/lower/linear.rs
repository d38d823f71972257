//! Conv, Gemm and MatMul: the steps with products.
//!
//! Accumulators count in steps of `x_scale * w_scale`; the multiplier to the output's grid is
//! `fl(fl(x_scale * w_scale) / y_scale)` (`onnx`), or TFLite's Q31 form of the double quotient (`fixed`).

use chipfit_model::build::{get_f, get_i, get_is, is_op};

use super::grid::Grid;
use super::movement::Movement;
use super::walk::Operand;
use super::weights::Weights;
use super::{LowerError, Lowering, Requantize, op_type};
use crate::program::{ConvGeometry, Linear, MatMul, Op, Rescale, TensorId};

impl<'m> Lowering<'m, '_> {
    /// The step of the Conv, Gemm or MatMul at `position`, into the tensor `output`, cut off to `low..=high`.
    pub(super) fn linear(
        &mut self,
        position: usize,
        output: TensorId,
        (low, high): (u8, u8),
    ) -> Result<(), LowerError> {
        let node = self.node(position);
        if is_op(node, "Conv") {
            return self.conv(position, output, (low, high));
        }
        if is_op(node, "Gemm") {
            return self.gemm(position, output, (low, high));
        }
        if self.constant_dequantize(&node.input[1]).is_some() || self.index.constant(0, &node.input[1]).is_some() {
            return self.matmul_by_weights(position, output, (low, high));
        }
        self.matmul(position, output, (low, high))
    }

    fn conv(&mut self, position: usize, output: TensorId, range: (u8, u8)) -> Result<(), LowerError> {
        let node = self.node(position);
        let input = self.activation(position, &node.input[0])?;
        let weights = self.weights(position, &node.input[1])?;
        let picture = self.tensors[input.0].shape.clone();
        let (&[out_channels, group_channels, ref kernel @ ..], Some(&in_channels)) =
            (weights.dims.as_slice(), picture.first())
        else {
            return Err(self.unsupported(
                position,
                &format!("weights of shape {:?}", weights.dims),
                "correct the model",
            ));
        };
        let kernel = kernel.to_vec();
        if get_is(node, "kernel_shape")
            .is_some_and(|given| !given.iter().map(|&k| k as usize).eq(kernel.iter().copied()))
        {
            return Err(self.unsupported(position, "kernel_shape is not the weights' own", "correct the model"));
        }
        let window = self.window(position, &kernel, &picture)?;
        let groups = usize::try_from(get_i(node, "group").unwrap_or(1)).unwrap_or(0);
        let fits = groups > 0
            && group_channels > 0
            && group_channels.checked_mul(groups) == Some(in_channels)
            && out_channels.is_multiple_of(groups)
            && kernel.iter().all(|&k| k > 0);
        if !fits {
            let what = format!("{groups} groups, weights {:?}, input {picture:?} do not fit", weights.dims);
            return Err(self.unsupported(position, &what, "correct the model"));
        }
        let map = |shape: &[usize]| if shape.len() == 2 { [1, shape[1]] } else { [shape[1], shape[2]] };
        let geometry = ConvGeometry {
            input: map(&picture),
            in_channels,
            out_channels,
            groups,
            kernel: window.kernel,
            stride: window.stride,
            dilation: window.dilation,
            pads: window.pads,
        };
        let result = &self.tensors[output.0].shape;
        if result.len() != picture.len() || result[0] != out_channels || map(result) != geometry.output() {
            let what = format!("its output is declared {result:?}, but is {:?}", geometry.output());
            return Err(self.unsupported(position, &what, "correct the model"));
        }
        // [out][in / groups][kernel] becomes [out][kernel][in / groups].
        let positions: usize = kernel.iter().product();
        let turned = weights.values.chunks_exact(group_channels * positions).flat_map(|filter| {
            (0..positions).flat_map(move |p| (0..group_channels).map(move |c| filter[c * positions + p]))
        });
        let turned = turned.collect();
        self.add_linear(position, (input, output), geometry, (weights, 0, turned), range)
    }

    fn gemm(&mut self, position: usize, output: TensorId, range: (u8, u8)) -> Result<(), LowerError> {
        let node = self.node(position);
        let with_bias = node.input.get(2).is_some_and(|name| !name.is_empty());
        let factor = |name: &str| get_f(node, name).unwrap_or(1.0);
        if factor("alpha") != 1.0 || (with_bias && factor("beta") != 1.0) || get_i(node, "transA").unwrap_or(0) != 0 {
            return Err(self.unsupported(
                position,
                "alpha or beta other than 1, or transA",
                "fold them into the weights",
            ));
        }
        self.by_matrix(position, output, range, get_i(node, "transB").unwrap_or(0) != 0)
    }

    fn matmul_by_weights(&mut self, position: usize, output: TensorId, range: (u8, u8)) -> Result<(), LowerError> {
        self.by_matrix(position, output, range, false)
    }

    /// A product with a constant matrix: a 1x1 convolution whose positions are the rows of the activation.
    fn by_matrix(
        &mut self,
        position: usize,
        output: TensorId,
        range: (u8, u8),
        transposed: bool,
    ) -> Result<(), LowerError> {
        let node = self.node(position);
        let input = self.activation(position, &node.input[0])?;
        let weights = self.weights(position, &node.input[1])?;
        let picture = self.tensors[input.0].shape.clone();
        let &[first, second] = weights.dims.as_slice() else {
            let what = format!("a constant matrix of shape {:?}", weights.dims);
            return Err(self.unsupported(position, &what, "use a matrix of two axes"));
        };
        let (inner, columns, axis) = if transposed { (second, first, 0) } else { (first, second, 1) };
        if picture.last() != Some(&inner) || inner == 0 {
            let what = format!("a matrix of {inner} rows after an input of shape {picture:?}, batch aside");
            return Err(self.unsupported(position, &what, "correct the model"));
        }
        let turned: Vec<i8> = if transposed {
            weights.values.clone()
        } else {
            (0..columns)
                .flat_map(|column| (0..inner).map(move |k| k * columns + column))
                .map(|at| weights.values[at])
                .collect()
        };
        let rows: usize = picture[..picture.len() - 1].iter().product();
        let geometry = ConvGeometry {
            input: [1, rows],
            in_channels: inner,
            out_channels: columns,
            groups: 1,
            kernel: [1, 1],
            stride: [1, 1],
            dilation: [1, 1],
            pads: [0; 4],
        };
        let weights = (weights, axis, turned);
        if self.tensors[output.0].elements() != rows * columns {
            let what = format!("its output is declared {:?}", self.tensors[output.0].shape);
            return Err(self.unsupported(position, &what, "correct the model"));
        }
        if picture.len() == 1 {
            return self.add_linear(position, (input, output), geometry, weights, range);
        }
        // Rows are positions and the inner axis is channels: moved there and back.
        let turned_in = self.turned(position, input, vec![inner, rows], &[rows, inner]);
        let grid = Grid::of(&self.tensors[output.0]);
        let turned_out = self.add_internal(position, vec![columns, rows], grid);
        self.add_linear(position, (turned_in, turned_out), geometry, weights, range)?;
        let back = Movement::transposed(&[columns, rows], self.tensors[output.0].shape.clone());
        let op = back.into_op(&[columns, rows], 0);
        self.add_step(position, op, vec![turned_out], output);
        Ok(())
    }

    /// `id`, seen as a matrix of `rows`, transposed into an internal tensor of `shape`.
    fn turned(&mut self, position: usize, id: TensorId, shape: Vec<usize>, rows: &[usize]) -> TensorId {
        let from = self.tensors[id.0].clone();
        let to = self.add_internal(position, shape.clone(), Grid::of(&from));
        let op = Movement::transposed(rows, shape).into_op(&from.shape, 0);
        self.add_step(position, op, vec![id], to);
        to
    }

    fn matmul(&mut self, position: usize, output: TensorId, range: (u8, u8)) -> Result<(), LowerError> {
        let node = self.node(position);
        let (Operand::Tensor(a), Operand::Tensor(b)) =
            (self.operand(position, &node.input[0])?, self.operand(position, &node.input[1])?)
        else {
            return Err(self.unsupported(position, "a constant left operand", "transpose the product"));
        };
        let (left, right, result) = (&self.tensors[a.0], &self.tensors[b.0], &self.tensors[output.0]);
        let (&[ref batch @ .., rows, inner], &[ref other @ .., inner_too, columns]) =
            (left.shape.as_slice(), right.shape.as_slice())
        else {
            return Err(self.mixes(position, &format!("shapes {:?} and {:?}, batch aside", left.shape, right.shape)));
        };
        let made = batch.iter().copied().chain([rows, columns]);
        if batch != other || inner != inner_too || !made.eq(result.shape.iter().copied()) {
            let what = format!("shapes {:?} and {:?}, batch aside", left.shape, right.shape);
            return Err(self.unsupported(position, &what, "give both operands the same leading axes"));
        }
        let scales = [left.scale * right.scale];
        let doubles = [f64::from(left.scale) * f64::from(right.scale)];
        let rescale = self.rescale(&scales, &doubles, result.scale);
        let op = Op::MatMul(MatMul { batch: batch.iter().product(), rows, inner, columns, rescale });
        if range == (0, u8::MAX) {
            self.add_step(position, op, vec![a, b], output);
            return Ok(());
        }
        let (shape, grid) = (self.tensors[output.0].shape.clone(), Grid::of(&self.tensors[output.0]));
        let between = self.add_internal(position, shape, grid);
        self.add_step(position, op, vec![a, b], between);
        let mut table = Box::new([0; 256]);
        (0..=u8::MAX).zip(table.iter_mut()).for_each(|(byte, entry)| *entry = byte.clamp(range.0, range.1));
        self.add_step(position, Op::Table(table), vec![between], output);
        Ok(())
    }

    /// The step of a convolution or a product with a matrix; `weights` with the axis of its output channels and its
    /// values in the program's order.
    fn add_linear(
        &mut self,
        position: usize,
        (input, output): (TensorId, TensorId),
        geometry: ConvGeometry,
        (weights, axis, values): (Weights, usize, Vec<i8>),
        (low, high): (u8, u8),
    ) -> Result<(), LowerError> {
        let node = self.node(position);
        let channels = geometry.out_channels;
        let Some((weight_scales, weight_zero_points)) = weights.per_channel(axis, channels) else {
            let what = format!("weight scales that do not lie along the output channels (axis {axis})");
            return Err(self.unsupported(position, &what, "quantise the weights per output channel"));
        };
        let (x_scale, y_scale) = (self.tensors[input.0].scale, self.tensors[output.0].scale);
        let steps: Vec<f32> = weight_scales.iter().map(|&w| x_scale * w).collect();
        let doubles: Vec<f64> = weight_scales.iter().map(|&w| f64::from(x_scale) * f64::from(w)).collect();
        if let Some(channel) = steps.iter().position(|step| !(step.is_normal() && (step / y_scale).is_finite())) {
            let what = format!("the product of the scales of channel {channel} leaves the range of float");
            return Err(self.unsupported(position, &what, "calibrate again"));
        }
        let (bias, bias_name) = match node.input.get(2).filter(|name| !name.is_empty()) {
            Some(name) => self.bias(position, name, &steps)?,
            None => (vec![0; channels], None),
        };
        let rescale = self.rescale(&steps, &doubles, y_scale);
        let linear = Linear {
            geometry,
            weights: values,
            weight_zero_points,
            bias,
            rescale,
            low,
            high,
            weights_name: weights.name,
            bias_name,
            weight_scales,
        };
        self.add_step(position, Op::Linear(Box::new(linear)), vec![input], output);
        Ok(())
    }

    fn rescale(&self, steps: &[f32], doubles: &[f64], y_scale: f32) -> Rescale {
        match self.options.requantize {
            Requantize::Onnx => Rescale::Float(steps.iter().map(|step| step / y_scale).collect()),
            Requantize::Fixed => {
                let pairs = doubles.iter().map(|double| fixed_point(double / f64::from(y_scale)));
                let (multipliers, shifts) = pairs.unzip();
                Rescale::Fixed { multipliers, shifts }
            }
        }
    }

    /// The step of any node that computes.
    pub(super) fn compute(&mut self, position: usize, output: TensorId, range: (u8, u8)) -> Result<(), LowerError> {
        let node = self.node(position);
        let standard = matches!(node.domain.as_deref(), None | Some("" | "ai.onnx"));
        match node.op_type.as_deref().unwrap_or_default() {
            "Conv" | "Gemm" | "MatMul" if standard => self.linear(position, output, range),
            "Add" | "Mul" if standard => self.add_or_multiply(position, output),
            "Concat" if standard => self.concat(position, output),
            "AveragePool" if standard => self.average_pool(position, output),
            "GlobalAveragePool" | "ReduceMean" if standard => self.global_average_pool(position, output),
            "BatchNormalization" => {
                let what = "a batch normalisation that was not folded into its convolution";
                Err(self.unsupported(position, what, "fold it before quantising (`chipfit quantize` does)"))
            }
            _ => {
                let known = "the integer processor has no such operator";
                let label = op_type(node);
                Err(self.unsupported(
                    position,
                    &format!("{known}: {label}"),
                    "evaluate it in float with --float-fallback",
                ))
            }
        }
    }
}

/// TFLite's QuantizeMultiplier: `real = multiplier / 2^31 * 2^shift` with `multiplier` in `2^30..2^31`.
pub(super) fn fixed_point(real: f64) -> (i32, i32) {
    if real == 0.0 {
        return (0, 0);
    }
    let (mantissa, mut exponent) = libm::frexp(real);
    let mut multiplier = (mantissa * f64::from(1u32 << 31)).round() as i64;
    if multiplier == 1 << 31 {
        multiplier /= 2;
        exponent += 1;
    }
    match i32::try_from(multiplier) {
        Ok(multiplier) if exponent >= -31 => (multiplier, exponent),
        _ => (0, 0),
    }
}
