//! Elementwise operators: arithmetic with broadcasting, activations, casts.
//!
//! In [`Mode::Reference`] the shadow is an allowed error: an activation multiplies it by its Lipschitz constant,
//! and every operator adds the rounding that a runtime's own result has.

use chipfit_model::DataType;
use chipfit_model::build::{get_f, get_i};

use super::ops::Op;
use super::tensor::{Data, Shadow, Tensor, round_to_storage, unit_roundoff};
use super::{Fault, Mode};

/// The dims that two operands broadcast to.
pub(super) fn broadcast_dims(a: &[usize], b: &[usize]) -> Result<Vec<usize>, Fault> {
    let rank = a.len().max(b.len());
    let at = |dims: &[usize], axis: usize| (axis + dims.len()).checked_sub(rank).map_or(1, |i| dims[i]);
    (0..rank)
        .map(|axis| match (at(a, axis), at(b, axis)) {
            (x, y) if x == y => Ok(x),
            (1, y) => Ok(y),
            (x, 1) => Ok(x),
            _ => Err(Fault(format!("dims {a:?} and {b:?} do not broadcast"))),
        })
        .collect()
}

/// Whether the interpreter knows `op` as an activation.
pub(super) fn is_activation(op: &str) -> bool {
    ACTIVATIONS.contains(&op)
}

const ACTIVATIONS: [&str; 15] = [
    "Relu",
    "LeakyRelu",
    "PRelu",
    "ThresholdedRelu",
    "Clip",
    "Sigmoid",
    "Tanh",
    "Elu",
    "Selu",
    "Celu",
    "HardSigmoid",
    "HardSwish",
    "Softplus",
    "Softsign",
    "Mish",
];

/// A function of one real number.
enum Activation {
    Relu,
    ThresholdedRelu(f64),
    /// `gamma * (x, or alpha * (e^x - 1) below 0)`.
    Selu(f64, f64),
    Celu(f64),
    Softplus,
    Softsign,
    Mish,
    LeakyRelu(f64),
    Clip(f64, f64),
    Sigmoid,
    Tanh,
    Elu(f64),
    HardSigmoid(f64, f64),
    HardSwish,
}

impl Activation {
    fn value(&self, x: f64) -> f64 {
        match *self {
            Self::Relu => x.max(0.0),
            Self::LeakyRelu(alpha) => {
                if x < 0.0 {
                    alpha * x
                } else {
                    x
                }
            }
            // Not `clamp`: a file may have low > high, and the operator then gives high.
            Self::Clip(low, high) => x.max(low).min(high),
            Self::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Self::Tanh => x.tanh(),
            Self::Elu(alpha) => {
                if x < 0.0 {
                    alpha * x.exp_m1()
                } else {
                    x
                }
            }
            Self::HardSigmoid(alpha, beta) => (alpha * x + beta).clamp(0.0, 1.0),
            Self::HardSwish => x * (x / 6.0 + 0.5).clamp(0.0, 1.0),
            Self::ThresholdedRelu(alpha) => {
                if x > alpha {
                    x
                } else {
                    0.0
                }
            }
            Self::Selu(alpha, gamma) => gamma * if x < 0.0 { alpha * x.exp_m1() } else { x },
            Self::Celu(alpha) => x.max(0.0) + (alpha * (x / alpha).exp_m1()).min(0.0),
            Self::Softplus => softplus(x),
            Self::Softsign => x / (1.0 + x.abs()),
            Self::Mish => x * softplus(x).tanh(),
        }
    }

    /// `None` where the function jumps.
    fn lipschitz(&self) -> Option<f64> {
        Some(match *self {
            Self::Relu | Self::Clip(..) | Self::Tanh | Self::Celu(_) | Self::Softplus | Self::Softsign => 1.0,
            Self::Selu(alpha, gamma) => gamma.abs() * alpha.abs().max(1.0),
            Self::Mish => 1.1,
            Self::ThresholdedRelu(_) => return None,
            Self::LeakyRelu(alpha) | Self::Elu(alpha) => alpha.abs().max(1.0),
            Self::Sigmoid => 0.25,
            Self::HardSigmoid(alpha, _) => alpha.abs(),
            Self::HardSwish => 1.5,
        })
    }
}

/// `ln(1 + e^x)`, without overflow.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

impl Op<'_> {
    /// An activation of a float; nothing at all where the mode computes no real values.
    pub(super) fn activation(&self) -> Result<Tensor, Fault> {
        let x = self.input(0)?;
        if matches!(self.mode, Mode::SmallIntegers { .. } | Mode::Accumulators) {
            return Ok(x.clone());
        }
        if self.node.op_type.as_deref() == Some("Clip") && !x.dtype.is_float() {
            return self.clip_integers(x);
        }
        let x = &real(x)?;
        let f = |name: &str, default: f32| f64::from(get_f(self.node, name).unwrap_or(default));
        let activation = match self.node.op_type.as_deref().unwrap_or_default() {
            "PRelu" => return self.prelu(x),
            "Relu" => Activation::Relu,
            "LeakyRelu" => Activation::LeakyRelu(f("alpha", 0.01)),
            "Sigmoid" => Activation::Sigmoid,
            "Tanh" => Activation::Tanh,
            "Elu" => Activation::Elu(f("alpha", 1.0)),
            "HardSigmoid" => Activation::HardSigmoid(f("alpha", 0.2), f("beta", 0.5)),
            "HardSwish" => Activation::HardSwish,
            "ThresholdedRelu" => Activation::ThresholdedRelu(f("alpha", 1.0)),
            "Selu" => Activation::Selu(f("alpha", 1.673_263_2), f("gamma", 1.050_701)),
            "Celu" => Activation::Celu(f("alpha", 1.0)),
            "Softplus" => Activation::Softplus,
            "Softsign" => Activation::Softsign,
            "Mish" => Activation::Mish,
            "Clip" if self.opset < 11 => Activation::Clip(f("min", f32::MIN), f("max", f32::MAX)),
            "Clip" => {
                let bound = |at: usize, default: f64| match self.optional(at) {
                    None => Ok(default),
                    Some(t) => t.scalar().ok_or_else(|| Fault("a bound must be one number".into())),
                };
                Activation::Clip(bound(1, f64::NEG_INFINITY)?, bound(2, f64::INFINITY)?)
            }
            other => return Err(Fault(format!("'{other}' is no activation"))),
        };
        let data = match &x.data {
            Data::F32(v) => {
                let mut v: Vec<f32> = v.iter().map(|&x| activation.value(f64::from(x)) as f32).collect();
                round_to_storage(x.dtype, &mut v);
                Data::F32(v)
            }
            Data::F64(v) => Data::F64(v.iter().map(|&x| activation.value(x)).collect()),
            _ => return Err("an activation of integers".into()),
        };
        if self.mode == Mode::Reference && x.shadow != Shadow::None && activation.lipschitz().is_none() {
            return Err("a function that jumps has no bound for its error".into());
        }
        let shadow = self.error_after(&data, x.dtype, |at| Some(x.shadow.at(at)? * activation.lipschitz()?));
        Ok(Tensor { dtype: x.dtype, dims: x.dims.clone(), data, shadow })
    }

    fn clip_integers(&self, x: &Tensor) -> Result<Tensor, Fault> {
        let bound = |at: usize, default: i64| match self.optional(at).map(Tensor::to_i64s) {
            None => Ok(default),
            Some(v) => v.filter(|v| v.len() == 1).and_then(|v| v.first().copied()).ok_or("a bound must be one integer"),
        };
        let (low, high) = (bound(1, i64::MIN)?, bound(2, i64::MAX)?);
        let clip = |v: i64| v.max(low).min(high);
        let data = match &x.data {
            Data::I32(v) => Data::I32(v.iter().map(|&v| clip(i64::from(v)) as i32).collect()),
            Data::I64(v) => Data::I64(v.iter().map(|&v| clip(v)).collect()),
            _ => return Err("integers were expected".into()),
        };
        Ok(Tensor { data, ..x.clone() })
    }

    fn prelu(&self, x: &Tensor) -> Result<Tensor, Fault> {
        let slope = real(self.input(1)?)?;
        // Before operator set 7 a 1-D slope belongs to the channels.
        let slope = if self.opset < 7 && slope.dims.len() == 1 && slope.data.len() > 1 {
            let mut dims = slope.dims.clone();
            dims.resize(x.dims.len().saturating_sub(1), 1);
            slope.reshaped(dims)?
        } else {
            slope
        };
        let slope = slope.broadcast(&x.dims)?.data.to_f64();
        let value = |x: f64, slope: f64| if x < 0.0 { slope * x } else { x };
        let data = match &x.data {
            Data::F32(v) => {
                let mut v: Vec<f32> = v.iter().zip(&slope).map(|(&x, &s)| value(f64::from(x), s) as f32).collect();
                round_to_storage(x.dtype, &mut v);
                Data::F32(v)
            }
            Data::F64(v) => Data::F64(v.iter().zip(&slope).map(|(&x, &s)| value(x, s)).collect()),
            _ => return Err("an activation of integers".into()),
        };
        let steepest = |at: usize| slope.get(at).map_or(1.0, |s| s.abs().max(1.0));
        let shadow = self.error_after(&data, x.dtype, |at| x.shadow.at(at).map(|e| e * steepest(at)));
        Ok(Tensor { dtype: x.dtype, dims: x.dims.clone(), data, shadow })
    }

    /// The allowed errors of a result: what came in, and eight roundings (a runtime's `tanh` may be a few units off).
    fn error_after(&self, data: &Data, dtype: DataType, carried: impl Fn(usize) -> Option<f64>) -> Shadow {
        let Data::F64(values) = data else { return Shadow::None };
        if self.mode != Mode::Reference {
            return Shadow::None;
        }
        let u = 8.0 * unit_roundoff(dtype);
        let each = values.iter().enumerate().map(|(at, v)| carried(at).map(|e| e + u * v.abs())).collect();
        each_or_none(each)
    }

    pub(super) fn binary(&self) -> Result<Tensor, Fault> {
        let (a, b) = (self.input(0)?, self.input(1)?);
        let b = &if self.opset < 7 { self.old_broadcast(a, b)? } else { b.clone() };
        if a.dtype != b.dtype {
            return Err(Fault(format!("operands of types {} and {}", a.dtype.name(), b.dtype.name())));
        }
        let tagged = |t: &Tensor| matches!(t.data, Data::I32(_)) && t.shadow != Shadow::None;
        let (a, b) = if tagged(a) || tagged(b) {
            if self.mode != Mode::Requantise {
                return Err("arithmetic on quantised sums has no integer meaning".into());
            }
            (real(a)?, real(b)?)
        } else {
            (a.clone(), b.clone())
        };
        let dims = broadcast_dims(&a.dims, &b.dims)?;
        let (a, b) = (a.broadcast(&dims)?, b.broadcast(&dims)?);
        let op = self.node.op_type.as_deref().unwrap_or_default();
        macro_rules! float {
            ($x:expr, $y:expr) => {
                $x.iter()
                    .zip($y)
                    .map(|(&x, &y)| match op {
                        "Add" => x + y,
                        "Sub" => x - y,
                        "Mul" => x * y,
                        _ => x / y,
                    })
                    .collect::<Vec<_>>()
            };
        }
        macro_rules! integer {
            ($x:expr, $y:expr) => {
                $x.iter()
                    .zip($y)
                    .map(|(&x, &y)| match op {
                        "Add" => Some(x.wrapping_add(y)),
                        "Sub" => Some(x.wrapping_sub(y)),
                        "Mul" => Some(x.wrapping_mul(y)),
                        _ if a.dtype.is_float() => None,
                        _ => x.checked_div(y),
                    })
                    .collect::<Option<Vec<_>>>()
                    .ok_or("a division that has no integer result")?
            };
        }
        let data = match (&a.data, &b.data) {
            (Data::F32(x), Data::F32(y)) => {
                let mut v = float!(x, y);
                round_to_storage(a.dtype, &mut v);
                Data::F32(v)
            }
            (Data::F64(x), Data::F64(y)) => Data::F64(float!(x, y)),
            (Data::I32(x), Data::I32(y)) => Data::I32(integer!(x, y)),
            (Data::I64(x), Data::I64(y)) => Data::I64(integer!(x, y)),
            _ => return Err("operands of different representations".into()),
        };
        let shadow = if a.shadow == Shadow::None && b.shadow == Shadow::None {
            Shadow::None
        } else {
            let (x, y) = (a.data.to_f64(), b.data.to_f64());
            if op == "Div" && b.shadow != Shadow::None {
                return Err("a division by a computed value".into());
            }
            self.error_after(&data, a.dtype, |at| {
                let (ea, eb) = (a.shadow.at(at).unwrap_or(0.0), b.shadow.at(at).unwrap_or(0.0));
                let (x, y) = (x.get(at)?.abs(), y.get(at)?.abs());
                Some(match op {
                    "Mul" => ea * y + eb * x + ea * eb,
                    "Div" => ea / y,
                    _ => ea + eb,
                })
            })
        };
        Ok(Tensor { dtype: a.dtype, dims, data, shadow })
    }

    /// The second operand of operator sets 1 to 6, with the trailing axes that `axis` leaves open.
    fn old_broadcast(&self, a: &Tensor, b: &Tensor) -> Result<Tensor, Fault> {
        if get_i(self.node, "broadcast") != Some(1) {
            return if a.dims == b.dims { Ok(b.clone()) } else { Err("dims differ without 'broadcast'".into()) };
        }
        let Some(axis) = get_i(self.node, "axis") else { return Ok(b.clone()) };
        let at = Self::axis(axis, a.dims.len())?;
        let mut dims = b.dims.clone();
        dims.resize(a.dims.len().saturating_sub(at).max(b.dims.len()), 1);
        b.reshaped(dims)
    }

    pub(super) fn cast(&self) -> Result<Tensor, Fault> {
        let x = self.input(0)?;
        let code = get_i(self.node, "to").and_then(|c| i32::try_from(c).ok());
        let to = code.and_then(DataType::from_code).ok_or("'to' is no element type known here")?;
        let float_as_integer = x.dtype.is_float() && matches!(x.data, Data::I32(_));
        if float_as_integer {
            if !to.is_float() {
                return Err("a cast of sums to integers".into());
            }
            return Ok(Tensor { dtype: to, ..x.clone() });
        }
        let data = match to {
            DataType::Double => Data::F64(x.data.to_f64()),
            t if t.is_float() && self.mode == Mode::Reference => Data::F64(x.data.to_f64()),
            t if t.is_float() => {
                let mut v: Vec<f32> = x.data.to_f64().into_iter().map(|v| v as f32).collect();
                round_to_storage(t, &mut v);
                Data::F32(v)
            }
            DataType::Int64 | DataType::Uint32 if x.dtype.is_float() => {
                Data::I64(x.data.to_f64().into_iter().map(|v| v as i64).collect())
            }
            DataType::Int64 => Data::I64(x.to_i64s().ok_or("integers were expected")?),
            DataType::Int32 if x.dtype.is_float() => Data::I32(x.data.to_f64().into_iter().map(|v| v as i32).collect()),
            DataType::Int32 => {
                Data::I32(x.to_i64s().ok_or("integers were expected")?.into_iter().map(|v| v as i32).collect())
            }
            other => return Err(Fault(format!("a cast to {}", other.name()))),
        };
        let shadow = self.error_after(&data, to, |at| x.shadow.at(at));
        Ok(Tensor { dtype: to, dims: x.dims.clone(), data, shadow })
    }
}

fn each_or_none(each: Vec<Option<f64>>) -> Shadow {
    each.into_iter().collect::<Option<Vec<_>>>().map_or(Shadow::None, Shadow::Each)
}

/// A quantised sum as the real number it stands for, `fl(fl(sum) * scale)`; floats as they are.
pub(super) fn real(x: &Tensor) -> Result<Tensor, Fault> {
    let Data::I32(v) = &x.data else { return Ok(x.clone()) };
    // Zero is zero on any scale; nothing else can do without one.
    if x.shadow == Shadow::None && (!x.dtype.is_float() || v.iter().any(|&q| q != 0)) {
        return Err("integers where real values are needed".into());
    }
    let values = v.iter().enumerate().map(|(at, &q)| q as f32 * x.shadow.at(at).unwrap_or(0.0) as f32).collect();
    Ok(Tensor { dtype: x.dtype, dims: x.dims.clone(), data: Data::F32(values), shadow: Shadow::None })
}
