//! Shapes of a convolution and what follows from them.

use crate::error::KernelError;

/// Shapes of a convolution. A product of a matrix with constant weights is a 1x1 convolution on a 1xM map, or on M
/// pictures of 1x1.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ConvGeometry {
    /// Rows and columns of the input map.
    pub input: [usize; 2],
    /// Channels of the input, all groups together.
    pub in_channels: usize,
    /// Channels of the output, all groups together.
    pub out_channels: usize,
    /// Groups; each reads `in_channels / groups` channels and writes `out_channels / groups`.
    pub groups: usize,
    /// Rows and columns of the kernel.
    pub kernel: [usize; 2],
    /// Vertical and horizontal step between two outputs, in input elements.
    pub stride: [usize; 2],
    /// Vertical and horizontal step between two taps, in input elements.
    pub dilation: [usize; 2],
    /// Rows or columns of zero points added at the top, left, bottom and right.
    pub pads: [usize; 4],
}

impl ConvGeometry {
    /// Rows and columns of the output: `(input + pads - dilation * (kernel - 1) - 1) / stride + 1`, rounded down.
    ///
    /// # Errors
    /// [`KernelError`] naming the extent that is zero, does not divide, does not fit, or is too large to address.
    pub fn checked_output(&self) -> Result<[usize; 2], KernelError> {
        let extents = [
            ("input rows", self.input[0]),
            ("input columns", self.input[1]),
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("groups", self.groups),
            ("kernel rows", self.kernel[0]),
            ("kernel columns", self.kernel[1]),
            ("vertical stride", self.stride[0]),
            ("horizontal stride", self.stride[1]),
            ("vertical dilation", self.dilation[0]),
            ("horizontal dilation", self.dilation[1]),
        ];
        if let Some((what, _)) = extents.into_iter().find(|&(_, extent)| extent == 0) {
            return Err(KernelError::Zero { what });
        }
        for (what, channels) in [("in_channels", self.in_channels), ("out_channels", self.out_channels)] {
            if channels % self.groups != 0 {
                return Err(KernelError::Groups { what, channels, groups: self.groups });
            }
        }
        let mut output = [0; 2];
        let mut padded = [0; 2];
        for axis in 0..2 {
            (output[axis], padded[axis]) = positions(
                axis,
                self.input[axis],
                self.kernel[axis],
                self.stride[axis],
                self.dilation[axis],
                [self.pads[axis], self.pads[axis + 2]],
            )?;
        }
        let input_limit = LIMIT.checked_div(self.in_channels).unwrap_or(0);
        if padded[0].checked_mul(padded[1]).is_none_or(|pixels| pixels > input_limit) {
            return Err(KernelError::TooLarge { what: "the padded input" });
        }
        if output[0].checked_mul(output[1]).is_none_or(|pixels| pixels > LIMIT / self.out_channels) {
            return Err(KernelError::TooLarge { what: "the output" });
        }
        let products = self.kernel[0]
            .checked_mul(self.kernel[1])
            .and_then(|taps| taps.checked_mul(self.in_channels / self.groups));
        if products.is_none_or(|products| products > LIMIT / self.out_channels) {
            return Err(KernelError::TooLarge { what: "the weights" });
        }
        Ok(output)
    }

    /// Output rows and columns; 0 when the geometry is invalid ([`ConvGeometry::checked_output`] says why).
    pub fn output(&self) -> [usize; 2] {
        self.checked_output().unwrap_or_default()
    }

    /// Products of one output: `kernel rows * kernel columns * in_channels / groups`.
    pub fn products(&self) -> usize {
        let channels = self.in_channels.checked_div(self.groups).unwrap_or(0);
        self.kernel[0].saturating_mul(self.kernel[1]).saturating_mul(channels)
    }

    /// Multiplications of one picture, taps on padding included; 0 when the geometry is invalid.
    pub fn macs(&self) -> u64 {
        let outputs = self.output().iter().product::<usize>() * self.out_channels;
        u64::try_from(outputs).unwrap_or(u64::MAX).saturating_mul(u64::try_from(self.products()).unwrap_or(u64::MAX))
    }
}

/// No tensor may have more elements; every byte offset, of widened copies with their row pitch too, then fits an isize.
pub(crate) const LIMIT: usize = isize::MAX as usize >> 8;

/// Outputs along one axis, and the padded input's extent.
pub(crate) fn positions(
    axis: usize,
    input: usize,
    kernel: usize,
    stride: usize,
    dilation: usize,
    pads: [usize; 2],
) -> Result<(usize, usize), KernelError> {
    let padded = input.checked_add(pads[0]).and_then(|sum| sum.checked_add(pads[1]));
    let span = (kernel - 1).checked_mul(dilation).and_then(|span| span.checked_add(1));
    let (Some(padded), Some(span)) = (padded, span) else {
        return Err(KernelError::TooLarge { what: "the padded input" });
    };
    if span > padded {
        return Err(KernelError::KernelExceedsInput { axis, kernel: span, input: padded });
    }
    Ok(((padded - span) / stride + 1, padded))
}
