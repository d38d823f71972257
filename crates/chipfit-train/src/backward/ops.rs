//! How a gradient goes through each kind of step: the transposed derivative, plain formulas over one slice.
//!
//! Pictures of a slice lie one after another. Sums go in ascending order of output elements.

use chipfit_kernels::KernelError;
use chipfit_npu::program::Window;
use chipfit_npu::{Program, Step, Tensor, TensorId, ops};

use super::plan::{LinearRule, MatMulRule, Rule, StepPlan};
use super::{Gradients, TrainError, Workspace};

/// Sets the gradient to 0 where the byte lies at or beyond an end.
pub(super) fn mask(gradient: &mut [f32], bytes: &[u8], (low, high): (u8, u8)) {
    for (gradient, &byte) in gradient.iter_mut().zip(bytes) {
        if byte <= low || byte >= high {
            *gradient = 0.0;
        }
    }
}

/// The real values of bytes, into `out`.
fn reals(tensor: &Tensor, bytes: &[u8], out: &mut Vec<f32>) {
    out.clear();
    out.extend(bytes.iter().map(|&byte| tensor.real(byte)));
}

/// Passes `gradient`, that of the step's output for `pictures` pictures, on to the step's inputs and parameters.
#[expect(clippy::too_many_arguments, reason = "one call per step, all of it state of the same pass")]
pub(super) fn propagate<'a>(
    program: &Program,
    step: &Step,
    plan: &StepPlan,
    pictures: usize,
    bytes: &impl Fn(TensorId) -> &'a [u8],
    gradient: Vec<f32>,
    own: &mut Gradients,
    workspace: &mut Workspace,
) -> Result<(), TrainError> {
    let to = program.tensor(step.output);
    let tensor = |input: usize| program.tensor(step.inputs[input]);
    let each = to.elements().max(1);
    match &plan.rule {
        Rule::Nothing => workspace.spare.push(gradient),
        Rule::Linear(rule) => linear(program, step, plan, rule, pictures, bytes, gradient, own, workspace)?,
        Rule::MatMul(rule) => matmul(program, step, plan, rule, bytes, gradient, workspace),
        Rule::Add(places) => {
            for (input, place) in places.iter().enumerate() {
                if !plan.needs[input] {
                    continue;
                }
                let mut part = workspace.zeros(pictures * tensor(input).elements());
                match place {
                    None => part.copy_from_slice(&gradient),
                    Some(place) => gather(&gradient, place, each, tensor(input).elements(), &mut part, |g, _| g),
                }
                workspace.add(step.inputs[input], part);
            }
            workspace.spare.push(gradient);
        }
        Rule::Mul(places) => {
            for input in 0..2 {
                if !plan.needs[input] {
                    continue;
                }
                let other = 1 - input;
                let (other_tensor, other_bytes) = (tensor(other), bytes(step.inputs[other]));
                let other_each = other_tensor.elements();
                let factor = |output: usize| {
                    let (picture, at) = (output / each, output % each);
                    let at = places[other].as_ref().map_or(at, |place| place[at] as usize);
                    other_tensor.real(other_bytes[picture * other_each + at])
                };
                let elements = tensor(input).elements();
                let mut part = workspace.zeros(pictures * elements);
                match &places[input] {
                    None => {
                        for (output, (part, &g)) in part.iter_mut().zip(&gradient).enumerate() {
                            *part = g * factor(output);
                        }
                    }
                    Some(place) => gather(&gradient, place, each, elements, &mut part, |g, output| g * factor(output)),
                }
                workspace.add(step.inputs[input], part);
            }
            workspace.spare.push(gradient);
        }
        Rule::Concat(places) => {
            for (input, (place, is_cut)) in places.iter().enumerate() {
                if !plan.needs[input] {
                    continue;
                }
                let elements = tensor(input).elements();
                let mut part = workspace.buffer(pictures * elements);
                let outputs = if *is_cut { bytes(step.output) } else { &[] };
                let mut outputs = outputs.chunks_exact(each);
                for (part, gradient) in part.chunks_exact_mut(elements.max(1)).zip(gradient.chunks_exact(each)) {
                    part.iter_mut().zip(place).for_each(|(part, &at)| *part = gradient[at as usize]);
                    if let Some(outputs) = outputs.next() {
                        let cut = |at: u32| matches!(outputs[at as usize], 0 | 255);
                        part.iter_mut().zip(place).filter(|(_, at)| cut(**at)).for_each(|(part, _)| *part = 0.0);
                    }
                }
                workspace.add(step.inputs[input], part);
            }
            workspace.spare.push(gradient);
        }
        Rule::MaxPool(window) => {
            let from = tensor(0);
            let mut part = workspace.zeros(pictures * from.elements());
            let input = bytes(step.inputs[0]);
            let elements = from.elements().max(1);
            for ((part, gradient), input) in
                part.chunks_exact_mut(elements).zip(gradient.chunks_exact(each)).zip(input.chunks_exact(elements))
            {
                max_pool(window, from, to, input, gradient, part);
            }
            workspace.add(step.inputs[0], part);
            workspace.spare.push(gradient);
        }
        Rule::AveragePool(window) => {
            let from = tensor(0);
            let mut part = workspace.zeros(pictures * from.elements());
            for (part, gradient) in part.chunks_exact_mut(from.elements().max(1)).zip(gradient.chunks_exact(each)) {
                average_pool(window, from, to, gradient, part);
            }
            workspace.add(step.inputs[0], part);
            workspace.spare.push(gradient);
        }
        Rule::GlobalAveragePool => {
            let from = tensor(0);
            let channels = from.channels().max(1);
            let share = 1.0 / (from.elements() / channels).max(1) as f32;
            let mut part = workspace.buffer(pictures * from.elements());
            for (part, gradient) in part.chunks_exact_mut(from.elements().max(1)).zip(gradient.chunks_exact(each)) {
                for pixel in part.chunks_exact_mut(channels) {
                    pixel.iter_mut().zip(gradient).for_each(|(part, &g)| *part = g * share);
                }
            }
            workspace.add(step.inputs[0], part);
            workspace.spare.push(gradient);
        }
        Rule::Table(slopes) => {
            let mut gradient = gradient;
            for (gradient, &byte) in gradient.iter_mut().zip(bytes(step.inputs[0])) {
                *gradient *= slopes[usize::from(byte)];
            }
            workspace.add(step.inputs[0], gradient);
        }
        Rule::Move(None) => workspace.add(step.inputs[0], gradient),
        Rule::Move(Some(places)) => {
            let elements = tensor(0).elements();
            let mut part = workspace.zeros(pictures * elements);
            for (part, gradient) in part.chunks_exact_mut(elements.max(1)).zip(gradient.chunks_exact(each)) {
                for (place, &g) in places.iter().zip(gradient) {
                    if let Some(at) = place {
                        part[*at as usize] += g;
                    }
                }
            }
            workspace.add(step.inputs[0], part);
            workspace.spare.push(gradient);
        }
    }
    Ok(())
}

/// Adds `value(gradient, output index within the slice)` at each output's place.
fn gather(
    gradient: &[f32],
    place: &[u32],
    each: usize,
    elements: usize,
    part: &mut [f32],
    value: impl Fn(f32, usize) -> f32,
) {
    let pictures = part.chunks_exact_mut(elements.max(1)).zip(gradient.chunks_exact(each));
    for (picture, (part, gradient)) in pictures.enumerate() {
        for (output, (&g, &at)) in gradient.iter().zip(place).enumerate() {
            part[at as usize] += value(g, picture * each + output);
        }
    }
}

#[expect(clippy::too_many_arguments, reason = "as propagate")]
fn linear<'a>(
    program: &Program,
    step: &Step,
    plan: &StepPlan,
    rule: &LinearRule,
    pictures: usize,
    bytes: &impl Fn(TensorId) -> &'a [u8],
    gradient: Vec<f32>,
    own: &mut Gradients,
    workspace: &mut Workspace,
) -> Result<(), TrainError> {
    let failed = |what: KernelError| TrainError::step(&step.name, what);
    let input = step.inputs[0];
    let mut values = workspace.spare.pop().unwrap_or_default();
    reals(program.tensor(input), bytes(input), &mut values);
    let missing = || TrainError::step(&step.name, "a parameter is missing");
    let weights = own.get_mut(rule.weights).ok_or_else(missing)?;
    rule.kernel.weight_gradient(pictures, &values, &gradient, weights, &mut workspace.kernel).map_err(failed)?;
    workspace.spare.push(values);
    if let Some(bias) = rule.bias {
        rule.kernel.bias_gradient(pictures, &gradient, own.get_mut(bias).ok_or_else(missing)?).map_err(failed)?;
    }
    if plan.needs[0] {
        let mut part = workspace.buffer(pictures * program.tensor(input).elements());
        rule.kernel.input_gradient(pictures, &gradient, &mut part, &mut workspace.kernel).map_err(failed)?;
        workspace.add(input, part);
    }
    workspace.spare.push(gradient);
    Ok(())
}

/// `dL = G R^T`, `dR = L^T G`.
fn matmul<'a>(
    program: &Program,
    step: &Step,
    plan: &StepPlan,
    rule: &MatMulRule,
    bytes: &impl Fn(TensorId) -> &'a [u8],
    gradient: Vec<f32>,
    workspace: &mut Workspace,
) {
    let (rows, inner, columns) = (rule.rows, rule.inner, rule.columns);
    let tensors = [0, 1].map(|input| program.tensor(step.inputs[input]));
    let sizes = tensors.map(|tensor| tensor.elements().max(1));
    let each = program.tensor(step.output).elements().max(1);
    let values = [0, 1].map(|input| {
        let mut values = workspace.spare.pop().unwrap_or_default();
        reals(tensors[input], bytes(step.inputs[input]), &mut values);
        values
    });
    let [left_place, right_place, out_place] = &rule.places;
    let mut parts = [0, 1].map(|input| workspace.zeros(values[input].len()));
    let [left_part, right_part] = &mut parts;
    for (picture, gradient) in gradient.chunks_exact(each).enumerate() {
        let (l, r) = (picture * sizes[0], picture * sizes[1]);
        for at in 0..rule.batch * rows * columns {
            let g = gradient[out_place[at] as usize];
            let (batch, row, column) = (at / (rows * columns), at / columns % rows, at % columns);
            for k in 0..inner {
                let left = l + left_place[(batch * rows + row) * inner + k] as usize;
                let right = r + right_place[(batch * inner + k) * columns + column] as usize;
                left_part[left] += g * values[1][right];
                right_part[right] += g * values[0][left];
            }
        }
    }
    for (input, part) in parts.into_iter().enumerate() {
        if plan.needs[input] {
            workspace.add(step.inputs[input], part);
        } else {
            workspace.spare.push(part);
        }
    }
    workspace.spare.extend(values);
    workspace.spare.push(gradient);
}

/// Input positions under an output position, in window order: rows, then columns.
fn taps(window: &Window, [height, width]: [usize; 2], row: usize, column: usize) -> impl Iterator<Item = usize> {
    let along = |axis: usize, place: usize, length: usize| {
        let start = place * window.stride[axis];
        let (dilation, pad) = (window.dilation[axis], window.pads[axis]);
        (0..window.kernel[axis]).filter_map(move |k| (start + k * dilation).checked_sub(pad).filter(|&at| at < length))
    };
    let columns: Vec<usize> = along(1, column, width).collect();
    along(0, row, height).flat_map(move |row| columns.clone().into_iter().map(move |column| row * width + column))
}

/// The whole gradient goes to the first of the largest bytes in window order.
fn max_pool(window: &Window, from: &Tensor, to: &Tensor, input: &[u8], gradient: &[f32], part: &mut [f32]) {
    let (size, channels) = ops::map(from);
    let ([_, columns], _) = ops::map(to);
    let mut best: Vec<Option<(u8, usize)>> = vec![None; channels];
    for (position, gradient) in gradient.chunks_exact(channels.max(1)).enumerate() {
        best.fill(None);
        for tap in taps(window, size, position / columns, position % columns) {
            let pixel = &input[tap * channels..(tap + 1) * channels];
            for (best, &byte) in best.iter_mut().zip(pixel) {
                if best.is_none_or(|(most, _)| byte > most) {
                    *best = Some((byte, tap));
                }
            }
        }
        for (channel, (best, &g)) in best.iter().zip(gradient).enumerate() {
            if let Some((_, tap)) = best {
                part[tap * channels + channel] += g;
            }
        }
    }
}

/// Every tap gets an equal share; the divisor counts padding where the window says so.
fn average_pool(window: &Window, from: &Tensor, to: &Tensor, gradient: &[f32], part: &mut [f32]) {
    let (size, channels) = ops::map(from);
    let ([_, columns], _) = ops::map(to);
    for (position, gradient) in gradient.chunks_exact(channels.max(1)).enumerate() {
        let taps: Vec<usize> = taps(window, size, position / columns, position % columns).collect();
        let count = if window.count_include_pad { window.kernel[0] * window.kernel[1] } else { taps.len() };
        if count == 0 {
            continue;
        }
        for tap in taps {
            let pixel = &mut part[tap * channels..(tap + 1) * channels];
            pixel.iter_mut().zip(gradient).for_each(|(part, &g)| *part += g / count as f32);
        }
    }
}
