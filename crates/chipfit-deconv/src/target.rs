//! What a processor supports and prefers, and an estimate of what forms cost on it.
//!
//! A target is a small TOML (`targets/` holds those that ship; the fields below are the format). The estimate
//! ranks forms; it is no cycle model. For one convolution, with counts rounded up to the lanes:
//!
//! ```text
//! cycles = op_cycles + groups * up(C_out/g, lanes_out) * up(C_in/g, lanes_in) * prod(k) * up(positions, lanes_positions)
//!                      / macs_per_cycle
//! ```
//!
//! and each pass over the output (Concat, DepthToSpace, Transpose, Slice) costs
//! `op_cycles + elements / moved_elements_per_cycle`. ConvTranspose itself, where it exists, is estimated by
//! `native` and `native_efficiency`; a quantised one also moves its weight, which is dequantized each time.

use std::path::Path;

use serde::Deserialize;

use crate::forms::ConvWork;
use crate::rewrite::Interleave;

/// A processor. See the module's text.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Its name.
    pub name: String,
    /// One line for people.
    #[serde(default)]
    pub description: String,
    /// Which operators it has.
    pub ops: Ops,
    /// What its convolutions are limited to.
    #[serde(default)]
    pub limits: Limits,
    /// What it likes.
    #[serde(default)]
    pub prefer: Prefer,
    /// The estimate's table.
    pub cost: CostTable,
}

/// Operators that a target may lack.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Ops {
    /// ConvTranspose itself: only then may `auto` keep a node.
    pub conv_transpose: bool,
    /// DepthToSpace.
    pub depth_to_space: bool,
    /// Transpose.
    pub transpose: bool,
    /// Convolutions with groups.
    pub grouped_conv: bool,
    /// Convolutions with dilation.
    pub dilated_conv: bool,
}

/// Limits; absent is none.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Longest kernel of an axis.
    pub kernel: Option<usize>,
    /// Largest pad of a side.
    pub pad: Option<i64>,
    /// Most output channels of a convolution.
    pub channels: Option<usize>,
}

/// Preferences.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Prefer {
    /// `depth-to-space`, `reshape` or `concat`.
    pub interleave: Option<InterleaveName>,
}

/// An [`Interleave`] as the TOML spells it.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum InterleaveName {
    /// One DepthToSpace.
    DepthToSpace,
    /// Reshape, Transpose, Reshape.
    Reshape,
    /// Concat and Reshape.
    Concat,
}

/// The estimate's table. `quantised` replaces it for quantised nodes.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct CostTable {
    /// Multiply-accumulates per cycle when all lanes are busy.
    pub macs_per_cycle: f64,
    /// Output channels computed together.
    pub lanes_out: u64,
    /// Input channels computed together.
    pub lanes_in: u64,
    /// Output positions computed together.
    pub lanes_positions: u64,
    /// Fixed cost of an operator.
    pub op_cycles: f64,
    /// Elements moved per cycle by operators that only move.
    pub moved_elements_per_cycle: f64,
    /// How ConvTranspose itself is done.
    pub native: Native,
    /// Its speed relative to a convolution of the same count.
    #[serde(default = "one")]
    pub native_efficiency: f64,
    /// For quantised nodes.
    #[serde(default)]
    pub quantised: Option<Box<CostTable>>,
}

fn one() -> f64 {
    1.0
}

/// How a processor does ConvTranspose.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Native {
    /// Not at all.
    None,
    /// As many multiply-accumulates as the definition has, nothing else.
    Conv,
    /// The same, then the products of all taps are scattered (col2im).
    Gemm,
    /// Zeros are stuffed between the inputs.
    ZeroPad,
}

/// Why a target could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// Neither a built-in name nor a readable file.
    #[error("target '{name}': neither a built-in ({known}) nor a readable file: {source}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// The names that ship.
        known: String,
        /// The operating system's word.
        source: std::io::Error,
    },
    /// Not the format.
    #[error("target '{name}': {source}")]
    Format {
        /// What was asked for.
        name: String,
        /// Line and field.
        source: Box<toml::de::Error>,
    },
    /// A number that makes no sense.
    #[error("target '{name}': {what} must be positive")]
    Number {
        /// What was asked for.
        name: String,
        /// The field.
        what: &'static str,
    },
}

const BUILT_IN: [(&str, &str); 7] = [
    ("onnxruntime-cpu", include_str!("../targets/onnxruntime-cpu.toml")),
    ("openvino-cpu", include_str!("../targets/openvino-cpu.toml")),
    ("dot-product", include_str!("../targets/dot-product.toml")),
    ("pe-array-2d", include_str!("../targets/pe-array-2d.toml")),
    ("systolic", include_str!("../targets/systolic.toml")),
    ("no-depth-to-space", include_str!("../targets/no-depth-to-space.toml")),
    ("edge-npu", include_str!("../targets/edge-npu.toml")),
];

/// What is left to know about a node's output for the estimate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    /// Elements, batch included.
    pub elements: u64,
    /// Multiply-accumulates of the definition.
    pub macs: u64,
    /// Of the zero-stuffed convolution.
    pub macs_zero_pad: u64,
    /// Input elements per channel times kernel elements: what col2im scatters, per output channel.
    pub scattered: u64,
    /// Elements of its weight.
    pub weights: u64,
    /// Whether the node is quantised.
    pub quantised: bool,
}

impl Target {
    /// Names and descriptions of the targets that ship.
    pub fn built_in() -> Vec<(&'static str, String)> {
        BUILT_IN.iter().filter_map(|(n, text)| Some((*n, Self::parse(n, text).ok()?.description))).collect()
    }

    /// A built-in target by name, or the TOML at a path.
    ///
    /// # Errors
    /// [`TargetError`].
    pub fn load(name: &str) -> Result<Self, TargetError> {
        if let Some((_, text)) = BUILT_IN.iter().find(|(n, _)| *n == name) {
            return Self::parse(name, text);
        }
        let text = std::fs::read_to_string(Path::new(name)).map_err(|source| TargetError::Unknown {
            name: name.to_owned(),
            known: BUILT_IN.map(|(n, _)| n).join(", "),
            source,
        })?;
        Self::parse(name, &text)
    }

    /// A target from TOML; `name` is for messages.
    ///
    /// # Errors
    /// [`TargetError::Format`] and [`TargetError::Number`].
    pub fn parse(name: &str, text: &str) -> Result<Self, TargetError> {
        let format = |source| TargetError::Format { name: name.to_owned(), source: Box::new(source) };
        let target: Self = toml::from_str(text).map_err(format)?;
        for table in [Some(&target.cost), target.cost.quantised.as_deref()].into_iter().flatten() {
            let positive = [
                ("cost.macs_per_cycle", table.macs_per_cycle > 0.0),
                ("cost.moved_elements_per_cycle", table.moved_elements_per_cycle > 0.0),
                ("cost.native_efficiency", table.native_efficiency > 0.0),
                ("cost.op_cycles", table.op_cycles >= 0.0),
                ("cost.lanes_out, lanes_in and lanes_positions", {
                    table.lanes_out > 0 && table.lanes_in > 0 && table.lanes_positions > 0
                }),
            ];
            if let Some((what, _)) = positive.iter().find(|(_, ok)| !ok) {
                return Err(TargetError::Number { name: name.to_owned(), what });
            }
        }
        Ok(target)
    }

    /// The interleave to ask for: the preferred one, as far as the operators exist.
    pub fn interleave(&self) -> Option<Interleave> {
        let preferred = self.prefer.interleave.map(|name| match name {
            InterleaveName::DepthToSpace => Interleave::DepthToSpace,
            InterleaveName::Reshape => Interleave::Reshape,
            InterleaveName::Concat => Interleave::Concat,
        });
        match preferred {
            Some(Interleave::Concat) => preferred,
            Some(Interleave::Reshape) if self.ops.transpose => preferred,
            _ if self.ops.depth_to_space => Some(Interleave::DepthToSpace),
            _ if self.ops.transpose => Some(Interleave::Reshape),
            _ => Some(Interleave::Concat),
        }
    }

    fn table(&self, quantised: bool) -> &CostTable {
        self.cost.quantised.as_deref().filter(|_| quantised).unwrap_or(&self.cost)
    }

    /// Why the target cannot run these convolutions; `None`: it can.
    pub fn objection(&self, work: &[ConvWork], interleave: Option<Interleave>) -> Option<String> {
        for conv in work {
            let longest = conv.kernel.iter().copied().max().unwrap_or(1);
            if let Some(limit) = self.limits.kernel.filter(|&l| longest > l) {
                return Some(format!("kernel {longest} is over the limit {limit}"));
            }
            if let Some(limit) = self.limits.pad.filter(|&l| conv.pad > l) {
                return Some(format!("pad {} is over the limit {limit}", conv.pad));
            }
            if let Some(limit) = self.limits.channels.filter(|&l| conv.channels_out > l) {
                return Some(format!("{} output channels are over the limit {limit}", conv.channels_out));
            }
            if conv.group > 1 && !self.ops.grouped_conv {
                return Some("it has no grouped convolution".into());
            }
            if conv.dilations.iter().any(|&d| d > 1) && !self.ops.dilated_conv {
                return Some("it has no dilated convolution".into());
            }
        }
        match interleave {
            Some(Interleave::DepthToSpace) if !self.ops.depth_to_space => Some("it has no DepthToSpace".into()),
            Some(Interleave::Reshape) if !self.ops.transpose => Some("it has no Transpose".into()),
            _ => None,
        }
    }

    /// Estimated cycles of a form: its convolutions, and `passes` operators that move the whole output.
    pub(crate) fn cycles(&self, work: &[ConvWork], passes: usize, output: Output) -> f64 {
        let t = self.table(output.quantised);
        let up = |n: u64, lanes: u64| n.div_ceil(lanes) * lanes;
        let conv = |c: &ConvWork| {
            let group = c.group as u64;
            let kernel: u64 = c.kernel.iter().map(|&k| k as u64).product();
            let positions = c.positions.unwrap_or(output.elements / (c.channels_out as u64).max(1));
            let macs = group as f64
                * up(c.channels_out as u64 / group, t.lanes_out) as f64
                * up(c.channels_in as u64, t.lanes_in) as f64
                * kernel as f64
                * up(positions, t.lanes_positions) as f64;
            t.op_cycles + macs / t.macs_per_cycle
        };
        let pass = t.op_cycles + output.elements as f64 / t.moved_elements_per_cycle;
        work.iter().map(conv).sum::<f64>() + passes as f64 * pass
    }

    /// Estimated cycles of ConvTranspose itself; `None` where the target has none.
    pub(crate) fn native_cycles(&self, output: Output) -> Option<f64> {
        if !self.ops.conv_transpose {
            return None;
        }
        let t = self.table(output.quantised);
        let macs = |n: u64| n as f64 / t.macs_per_cycle / t.native_efficiency;
        let moved = |n: u64| n as f64 / t.moved_elements_per_cycle;
        let work = match t.native {
            Native::None => return None,
            Native::Conv => macs(output.macs),
            Native::ZeroPad => macs(output.macs_zero_pad),
            Native::Gemm => macs(output.macs) + moved(output.scattered),
        };
        // A runtime without a quantised kernel dequantizes the weight each time.
        let dequantized = if output.quantised { moved(output.weights) } else { 0.0 };
        Some(t.op_cycles + work + dequantized)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shipped_target_parses_under_its_own_name() {
        for (name, text) in BUILT_IN {
            assert_eq!(Target::parse(name, text).unwrap().name, name);
        }
    }

    #[test]
    fn a_misspelt_field_is_named() {
        let text = BUILT_IN[0].1.replace("lanes_out", "lane_out");
        let message = Target::parse("x", &text).unwrap_err().to_string();
        assert!(message.contains("lane_out"), "{message}");
    }

    #[test]
    fn lanes_round_up() {
        let target = Target::load("systolic").unwrap();
        let conv = |channels_out| ConvWork {
            channels_out,
            channels_in: 16,
            group: 1,
            kernel: vec![2, 2],
            dilations: vec![1, 1],
            pad: 0,
            positions: Some(100),
        };
        let output = Output { elements: 0, macs: 0, macs_zero_pad: 0, scattered: 0, weights: 0, quantised: false };
        let cycles = |c| target.cycles(&[conv(c)], 0, output);
        assert_eq!(cycles(3), cycles(16));
        assert!(cycles(17) > cycles(16));
    }
}
