//! Functions of one value: what a table of 256 bytes is made from.
//!
//! `table[x] = quantize(f(fl(x_scale * (x - x_zero))))`. Sigmoid and Tanh are the rational approximations that
//! ONNX Runtime's kernels evaluate with fused multiply-add (`mlas/lib/logistic.cpp`, `mlas/lib/tanh.cpp`, with
//! Eigen's coefficients); the others follow the operators' definitions in fp32.

use chipfit_model::build::{get_f, get_s};
use chipfit_model::proto::NodeProto;

use super::formula::quantize;
use crate::program::Tensor;

/// A function of one real value.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Function {
    /// `max(x, 0)`.
    Relu,
    /// `min(max(x, low), high)`.
    Clip {
        /// Lower bound.
        low: f32,
        /// Upper bound.
        high: f32,
    },
    /// `x` where not negative, else `alpha * x` (also PRelu with one slope).
    LeakyRelu(f32),
    /// `x` above alpha, else 0.
    ThresholdedRelu(f32),
    /// `min(max(alpha * x + beta, 0), 1)`.
    HardSigmoid {
        /// Slope.
        alpha: f32,
        /// Offset.
        beta: f32,
    },
    /// `x * min(max(x / 6 + 0.5, 0), 1)`.
    HardSwish,
    /// `1 / (1 + exp(-x))`.
    Sigmoid,
    /// `x * sigmoid(alpha * x)`.
    Swish(f32),
    /// Hyperbolic tangent.
    Tanh,
    /// `x` where positive, else `alpha * (exp(x) - 1)`.
    Elu(f32),
    /// `gamma * x` where positive, else `gamma * (alpha * exp(x) - alpha)`.
    Selu {
        /// Factor of the exponential.
        alpha: f32,
        /// Factor of all.
        gamma: f32,
    },
    /// `max(x, 0) + min(0, alpha * (exp(x / alpha) - 1))`.
    Celu(f32),
    /// `ln(1 + exp(x))`.
    Softplus,
    /// `x / (1 + |x|)`.
    Softsign,
    /// `x * tanh(softplus(x))`.
    Mish,
    /// Gelu by the error function, or by its tanh approximation.
    Gelu {
        /// The approximation.
        tanh: bool,
    },
    /// Error function.
    Erf,
    /// `|x|`.
    Abs,
    /// `-x`.
    Neg,
    /// `e^x`.
    Exp,
    /// Square root.
    Sqrt,
    /// `x + c`.
    Plus(f32),
    /// `x * c`.
    Times(f32),
    /// `c - x`.
    From(f32),
    /// `x / c`.
    Over(f32),
}

impl Function {
    /// The function of a node whose attributes alone define it; `None` for any other operator. Clip and PRelu with
    /// inputs and arithmetic with a constant are built by the caller.
    pub fn of(node: &NodeProto) -> Option<Self> {
        let attribute = |name: &str, default: f32| get_f(node, name).unwrap_or(default);
        Some(match node.op_type.as_deref()? {
            "Relu" => Self::Relu,
            "LeakyRelu" => Self::LeakyRelu(attribute("alpha", 0.01)),
            "ThresholdedRelu" => Self::ThresholdedRelu(attribute("alpha", 1.0)),
            "HardSigmoid" => Self::HardSigmoid { alpha: attribute("alpha", 0.2), beta: attribute("beta", 0.5) },
            "HardSwish" => Self::HardSwish,
            "Sigmoid" => Self::Sigmoid,
            "Swish" => Self::Swish(attribute("alpha", 1.0)),
            "Tanh" => Self::Tanh,
            "Elu" => Self::Elu(attribute("alpha", 1.0)),
            "Selu" => Self::Selu { alpha: attribute("alpha", 1.673_263_2), gamma: attribute("gamma", 1.050_701) },
            "Celu" => Self::Celu(attribute("alpha", 1.0)),
            "Softplus" => Self::Softplus,
            "Softsign" => Self::Softsign,
            "Mish" => Self::Mish,
            "Gelu" => Self::Gelu { tanh: get_s(node, "approximate") == Some("tanh") },
            "Erf" => Self::Erf,
            "Abs" => Self::Abs,
            "Neg" => Self::Neg,
            "Exp" => Self::Exp,
            "Sqrt" => Self::Sqrt,
            _ => return None,
        })
    }

    /// The value at `x`.
    pub fn at(self, x: f32) -> f32 {
        let wide = f64::from(x);
        match self {
            Self::Relu => x.max(0.0),
            Self::Clip { low, high } => x.max(low).min(high),
            Self::LeakyRelu(alpha) => {
                if x >= 0.0 {
                    x
                } else {
                    alpha * x
                }
            }
            Self::ThresholdedRelu(alpha) => {
                if x > alpha {
                    x
                } else {
                    0.0
                }
            }
            Self::HardSigmoid { alpha, beta } => (alpha * x + beta).clamp(0.0, 1.0),
            Self::HardSwish => x * (x * (1.0 / 6.0) + 0.5).clamp(0.0, 1.0),
            Self::Sigmoid => sigmoid(x),
            Self::Swish(alpha) => x * sigmoid(alpha * x),
            Self::Tanh => tanh(x),
            Self::Elu(alpha) => {
                if x > 0.0 {
                    x
                } else {
                    alpha * (libm::exp(wide) - 1.0) as f32
                }
            }
            Self::Selu { alpha, gamma } => {
                if x > 0.0 {
                    gamma * x
                } else {
                    gamma * (alpha * libm::exp(wide) as f32 - alpha)
                }
            }
            Self::Celu(alpha) => x.max(0.0) + (f64::from(alpha) * libm::expm1(wide / f64::from(alpha))).min(0.0) as f32,
            Self::Softplus => softplus(wide) as f32,
            Self::Softsign => x / (1.0 + x.abs()),
            Self::Mish => (wide * libm::tanh(softplus(wide))) as f32,
            Self::Gelu { tanh: false } => {
                (0.5 * wide * (1.0 + libm::erf(wide * std::f64::consts::FRAC_1_SQRT_2))) as f32
            }
            Self::Gelu { tanh: true } => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (wide + 0.044_715 * wide * wide * wide);
                (0.5 * wide * (1.0 + libm::tanh(inner))) as f32
            }
            Self::Erf => libm::erf(wide) as f32,
            Self::Abs => x.abs(),
            Self::Neg => -x,
            Self::Exp => libm::exp(wide) as f32,
            Self::Sqrt => x.sqrt(),
            Self::Plus(c) => x + c,
            Self::Times(c) => x * c,
            Self::From(c) => c - x,
            Self::Over(c) => x / c,
        }
    }

    /// Bounds where the function only cuts off values: it may then be applied to quantised bytes, in any order with
    /// rounding.
    pub fn bounds(self) -> Option<(f32, f32)> {
        match self {
            Self::Relu => Some((0.0, f32::INFINITY)),
            Self::Clip { low, high } => Some((low, high)),
            _ => None,
        }
    }
}

/// The table of `functions`, one after another, from the grid of `from` to that of `to`.
pub fn table(from: &Tensor, to: &Tensor, functions: &[Function]) -> Box<[u8; 256]> {
    let mut table = Box::new([0; 256]);
    for (byte, entry) in (0..=u8::MAX).zip(table.iter_mut()) {
        *entry = quantize(to, functions.iter().fold(from.real(byte), |x, function| function.at(x)));
    }
    table
}

fn softplus(x: f64) -> f64 {
    x.max(0.0) + libm::log1p(libm::exp(-x.abs()))
}

fn horner(x: f32, coefficients: &[f32]) -> f32 {
    let (first, rest) = coefficients.split_first().unwrap_or((&0.0, &[]));
    rest.iter().fold(*first, |sum, &coefficient| sum.mul_add(x, coefficient))
}

#[expect(clippy::excessive_precision, reason = "the coefficients as they were published")]
fn sigmoid(x: f32) -> f32 {
    const ODD: [f32; 5] =
        [4.37031012579801e-11, 1.15627324459942e-07, 6.08574864600143e-05, 8.51377133304701e-03, 2.48287947061529e-01];
    const EVEN: [f32; 6] = [
        6.10247389755681e-13,
        5.76102136993427e-09,
        6.29106785017040e-06,
        1.70198817374094e-03,
        1.16817656904453e-01,
        9.93151921023180e-01,
    ];
    let x = x.clamp(-18.0, 18.0);
    let square = x * x;
    (horner(square, &ODD) * x / horner(square, &EVEN) + 0.5).clamp(0.0, 1.0)
}

#[expect(clippy::excessive_precision, reason = "the coefficients as they were published")]
fn tanh(x: f32) -> f32 {
    const ODD: [f32; 7] = [
        -2.76076847742355e-16,
        2.00018790482477e-13,
        -8.60467152213735e-11,
        5.12229709037114e-08,
        1.48572235717979e-05,
        6.37261928875436e-04,
        4.89352455891786e-03,
    ];
    const EVEN: [f32; 4] = [1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03];
    let x = x.clamp(-9.0, 9.0);
    let square = x * x;
    horner(square, &ODD) * x / horner(square, &EVEN)
}
