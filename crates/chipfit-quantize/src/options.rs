//! What a user may choose about a quantisation.

use std::fmt;

use chipfit_model::DataType;

/// How a range follows from the values that calibration saw. Every range is widened to include 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Method {
    /// From the smallest to the largest value.
    MinMax,
    /// Drops `(100 - p) / 2` percent of the values at either end. `0 < p <= 100`.
    Percentile(f64),
    /// The range whose quantised distribution has the least Kullback-Leibler divergence from the true one.
    Entropy,
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MinMax => f.write_str("minmax"),
            Self::Percentile(p) => write!(f, "percentile {p}"),
            Self::Entropy => f.write_str("entropy"),
        }
    }
}

/// The integers that activations become.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activations {
    /// 0..=255 with a zero point.
    #[default]
    Uint8,
    /// -127..=127 used, zero point 0.
    Int8Symmetric,
    /// -128..=127 with a zero point.
    Int8Asymmetric,
}

impl Activations {
    /// The element type.
    pub fn dtype(self) -> DataType {
        match self {
            Self::Uint8 => DataType::Uint8,
            Self::Int8Symmetric | Self::Int8Asymmetric => DataType::Int8,
        }
    }
}

impl fmt::Display for Activations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Uint8 => "uint8",
            Self::Int8Symmetric => "int8 symmetric",
            Self::Int8Asymmetric => "int8 asymmetric",
        })
    }
}

/// How many scales a weight has. Weights are int8, symmetric, -127..=127.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Weights {
    /// One for each output channel.
    #[default]
    PerChannel,
    /// One.
    PerTensor,
}

impl fmt::Display for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PerChannel => "per-channel",
            Self::PerTensor => "per-tensor",
        })
    }
}

/// All of it. The same options, model and calibration data give the same bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// How ranges are chosen.
    pub method: Method,
    /// What activations become.
    pub activations: Activations,
    /// How many scales weights have.
    pub weights: Weights,
    /// Every scale is rounded up to a power of two.
    pub power_of_two: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            method: Method::MinMax,
            activations: Activations::Uint8,
            weights: Weights::PerChannel,
            power_of_two: false,
        }
    }
}

/// What the written file says about itself.
impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "activations {}, weights int8 {}, {}", self.activations, self.weights, self.method)?;
        if self.power_of_two { f.write_str(", power-of-two scales") } else { Ok(()) }
    }
}
