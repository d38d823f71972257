//! Why a kernel refused its arguments. Nothing was written.

use std::fmt;

use crate::isa::Isa;

/// Why a kernel refused its arguments. Nothing was written.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KernelError {
    /// This processor (or operating system) does not offer the instruction set.
    Unavailable {
        /// The instruction set asked for.
        isa: Isa,
    },
    /// An extent that must be at least one is zero.
    Zero {
        /// Which extent.
        what: &'static str,
    },
    /// Channels are not a multiple of the groups.
    Groups {
        /// `in_channels` or `out_channels`.
        what: &'static str,
        /// How many channels.
        channels: usize,
        /// How many groups.
        groups: usize,
    },
    /// The kernel, dilated, does not fit into the padded input.
    KernelExceedsInput {
        /// 0 is the vertical axis, 1 the horizontal one.
        axis: usize,
        /// Rows or columns that the dilated kernel spans.
        kernel: usize,
        /// Rows or columns of the padded input.
        input: usize,
    },
    /// A tensor would have more bytes than this machine can address.
    TooLarge {
        /// Which tensor.
        what: &'static str,
    },
    /// A slice has the wrong number of elements.
    Length {
        /// Which slice.
        what: &'static str,
        /// Elements it must have.
        wanted: usize,
        /// Elements it has.
        got: usize,
    },
    /// A range or position lies outside its axis, or starts where the packing does not allow it.
    Range {
        /// Which range or position.
        what: &'static str,
        /// Its start.
        start: usize,
        /// Its end, excluded.
        end: usize,
        /// The axis's extent.
        limit: usize,
    },
    /// A multiplier is NaN or infinite, or too large for the formula.
    Multiplier {
        /// Its position: the output channel, or the operand of an addition.
        at: usize,
    },
    /// Output limits that no byte satisfies: `0 <= low <= high <= 255` and `0 <= zero_point <= 255` must hold.
    OutputRange {
        /// The zero point.
        zero_point: i32,
        /// The lowest output.
        low: i32,
        /// The highest output.
        high: i32,
    },
    /// A fixed-point shift outside -31..=31.
    Shift {
        /// The output channel.
        at: usize,
        /// The shift.
        shift: i32,
    },
}

impl fmt::Display for KernelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable { isa } => write!(f, "this processor does not offer {}", isa.name()),
            Self::Zero { what } => write!(f, "{what} must be at least 1"),
            Self::Groups { what, channels, groups } => {
                write!(f, "{what} must be a multiple of the groups: {channels} channels, {groups} groups")
            }
            Self::KernelExceedsInput { axis, kernel, input } => {
                let axis = if *axis == 0 { "rows" } else { "columns" };
                write!(f, "the dilated kernel exceeds the padded input: {kernel} {axis} against {input}")
            }
            Self::TooLarge { what } => write!(f, "{what} would be too large to address"),
            Self::Length { what, wanted, got } => write!(f, "{what} has {got} elements, wanted {wanted}"),
            Self::Range { what, start, end, limit } => {
                write!(f, "{what} {start}..{end} does not fit its axis of {limit}")
            }
            Self::Multiplier { at } => write!(f, "multiplier {at} is not a finite number of usable size"),
            Self::OutputRange { zero_point, low, high } => {
                write!(f, "no byte satisfies the output range: zero point {zero_point}, limits {low}..={high}")
            }
            Self::Shift { at, shift } => write!(f, "shift of channel {at} is outside -31..=31: {shift}"),
        }
    }
}

impl std::error::Error for KernelError {}

/// Checks that a slice has the elements it must have.
pub(crate) fn check_length(what: &'static str, got: usize, wanted: usize) -> Result<(), KernelError> {
    if got == wanted { Ok(()) } else { Err(KernelError::Length { what, wanted, got }) }
}
