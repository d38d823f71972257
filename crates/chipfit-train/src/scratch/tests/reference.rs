//! The training graph in f64, straight from the formulas: the loss of a batch, and numeric gradients from it.

use super::super::graph::{Clamp, Divisor, Kind, Network, Window};

fn cut(clamp: Clamp, x: f64) -> f64 {
    x.max(f64::from(clamp.low)).min(f64::from(clamp.high))
}

/// Outputs of a convolution at every position, by the definition.
fn convolve(g: &chipfit_kernels::ConvGeometry, x: &[f64], weights: &[f64], bias: Option<&[f64]>) -> Vec<f64> {
    let [rows, columns] = g.output();
    let (inner, outer) = (g.in_channels / g.groups, g.out_channels / g.groups);
    let mut y = Vec::new();
    for (row, column) in (0..rows).flat_map(|r| (0..columns).map(move |c| (r, c))) {
        for out in 0..g.out_channels {
            let mut sum = bias.map_or(0.0, |bias| bias[out]);
            for (kr, kc, i) in
                (0..g.kernel[0]).flat_map(|a| (0..g.kernel[1]).flat_map(move |b| (0..inner).map(move |i| (a, b, i))))
            {
                let r = (row * g.stride[0] + kr * g.dilation[0]) as i64 - g.pads[0] as i64;
                let c = (column * g.stride[1] + kc * g.dilation[1]) as i64 - g.pads[1] as i64;
                if (0..g.input[0] as i64).contains(&r) && (0..g.input[1] as i64).contains(&c) {
                    let pixel = r as usize * g.input[1] + c as usize;
                    let channel = out / outer * inner + i;
                    let tap = ((out * g.kernel[0] + kr) * g.kernel[1] + kc) * inner + i;
                    sum += x[pixel * g.in_channels + channel] * weights[tap];
                }
            }
            y.push(sum);
        }
    }
    y
}

fn pool(
    x: &[f64],
    [height, width, channels]: [usize; 3],
    window: &Window,
    [rows, columns]: [usize; 2],
    join: impl Fn(&[f64]) -> f64,
) -> Vec<f64> {
    let mut y = Vec::new();
    for (row, column, channel) in
        (0..rows).flat_map(|r| (0..columns).flat_map(move |c| (0..channels).map(move |k| (r, c, k))))
    {
        let mut found = Vec::new();
        for (kr, kc) in (0..window.kernel[0]).flat_map(|a| (0..window.kernel[1]).map(move |b| (a, b))) {
            let r = (row * window.stride[0] + kr) as i64 - window.pads[0] as i64;
            let c = (column * window.stride[1] + kc) as i64 - window.pads[1] as i64;
            if (0..height as i64).contains(&r) && (0..width as i64).contains(&c) {
                found.push(x[(r as usize * width + c as usize) * channels + channel]);
            }
        }
        y.push(join(&found));
    }
    y
}

/// Mean cross-entropy of a batch with batch statistics; also each normalisation's means and variances, by layer.
pub(super) fn loss(
    network: &Network,
    parameters: &[Vec<f64>],
    pictures: &[Vec<f64>],
    labels: &[u32],
    smoothing: f64,
) -> (f64, Vec<[Vec<f64>; 2]>) {
    let mut values: Vec<Vec<Vec<f64>>> = vec![Vec::new(); network.extents.len()];
    let mut statistics = vec![[Vec::new(), Vec::new()]; network.layers.len()];
    values[network.input] = pictures.to_vec();
    for (id, layer) in network.layers.iter().enumerate() {
        let x = values[layer.inputs[0]].clone();
        let (from, to) = (network.extent(layer.inputs[0]), network.extent(layer.output));
        let sides = [from.height, from.width, from.channels];
        values[layer.output] = match &layer.kind {
            Kind::Linear { geometry, weight, bias } => {
                let bias = bias.map(|bias| parameters[bias].as_slice());
                x.iter().map(|x| convolve(geometry, x, &parameters[*weight], bias)).collect()
            }
            Kind::Norm(norm) => {
                let channels = from.channels;
                let of = |channel: usize| x.iter().flat_map(move |x| x.iter().skip(channel).step_by(channels).copied());
                let count = (x.len() * from.height * from.width) as f64;
                let mean: Vec<f64> = (0..channels).map(|c| of(c).sum::<f64>() / count).collect();
                let variance: Vec<f64> =
                    (0..channels).map(|c| of(c).map(|x| (x - mean[c]).powi(2)).sum::<f64>() / count).collect();
                let y = |(at, x): (usize, &f64)| {
                    let c = at % channels;
                    let hat = (x - mean[c]) / (variance[c] + f64::from(norm.epsilon)).sqrt();
                    cut(norm.clamp, parameters[norm.scale][c] * hat + parameters[norm.shift][c])
                };
                let all = x.iter().map(|x| x.iter().enumerate().map(y).collect()).collect();
                statistics[id] = [mean, variance];
                all
            }
            Kind::Clamp(clamp) => x.iter().map(|x| x.iter().map(|&x| cut(*clamp, x)).collect()).collect(),
            Kind::Add(clamp) => {
                let other = &values[layer.inputs[1]];
                let sum = |(a, b): (&Vec<f64>, &Vec<f64>)| a.iter().zip(b).map(|(a, b)| cut(*clamp, a + b)).collect();
                x.iter().zip(other).map(sum).collect()
            }
            Kind::MaxPool(window) => {
                let most = |found: &[f64]| found.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                x.iter().map(|x| pool(x, sides, window, [to.height, to.width], most)).collect()
            }
            Kind::AveragePool(window, divisor) => {
                let mean = |found: &[f64]| {
                    let count = match divisor {
                        Divisor::Kernel => window.kernel[0] * window.kernel[1],
                        Divisor::Inside => found.len(),
                    };
                    found.iter().sum::<f64>() / count as f64
                };
                x.iter().map(|x| pool(x, sides, window, [to.height, to.width], mean)).collect()
            }
        };
    }
    let mut loss = 0.0;
    for (logits, &label) in values[network.logits].iter().zip(labels) {
        let log_sum = logits.iter().map(|z| z.exp()).sum::<f64>().ln();
        for (class, z) in logits.iter().enumerate() {
            let target = smoothing / logits.len() as f64 + if class == label as usize { 1.0 - smoothing } else { 0.0 };
            loss -= target * (z - log_sum);
        }
    }
    (loss / labels.len() as f64, statistics)
}
