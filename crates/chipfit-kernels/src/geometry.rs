//! The geometry of one convolution, per picture.

/// Map sizes, kernel, stride, dilation and pads of a convolution over channels-last maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvGeometry {
    /// Input height and width.
    pub input: [usize; 2],
    /// Input channels, all groups.
    pub in_channels: usize,
    /// Output channels, all groups.
    pub out_channels: usize,
    /// Number of groups.
    pub groups: usize,
    /// Kernel height and width.
    pub kernel: [usize; 2],
    /// Rows and columns.
    pub stride: [usize; 2],
    /// Rows and columns.
    pub dilation: [usize; 2],
    /// Top, left, bottom, right.
    pub pads: [usize; 4],
}

impl ConvGeometry {
    /// Output height and width; 0 where the kernel does not fit.
    pub fn output(&self) -> [usize; 2] {
        [0, 1].map(|axis| {
            let span = self.dilation[axis] * (self.kernel[axis].max(1) - 1) + 1;
            let padded = self.input[axis] + self.pads[axis] + self.pads[axis + 2];
            if padded < span { 0 } else { (padded - span) / self.stride[axis].max(1) + 1 }
        })
    }

    /// Products per output: kernel height x kernel width x input channels of a group.
    pub fn products(&self) -> usize {
        self.kernel[0] * self.kernel[1] * (self.in_channels / self.groups.max(1))
    }

    /// MACs of one picture.
    pub fn macs(&self) -> u64 {
        let [height, width] = self.output();
        height as u64 * width as u64 * self.out_channels as u64 * self.products() as u64
    }
}
