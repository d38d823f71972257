//! The float convolution behind a linear step.

use chipfit_kernels::float::{FloatConv, FloatScratch};
use chipfit_kernels::{ConvGeometry, Isa, KernelError};

/// A step's gradient kernels, with its weights as they want them.
#[derive(Debug)]
pub(crate) struct LinearKernel {
    conv: FloatConv,
}

/// Scratch memory of one thread.
#[derive(Default)]
pub(crate) struct KernelScratch(FloatScratch);

impl std::fmt::Debug for KernelScratch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KernelScratch")
    }
}

impl LinearKernel {
    pub(crate) fn new(geometry: &ConvGeometry) -> Result<Self, KernelError> {
        Ok(Self { conv: FloatConv::new(Isa::best(), geometry.clone())? })
    }

    /// `[out][kernel row][kernel column][in / groups]`.
    pub(crate) fn load(&mut self, weights: &[f32]) -> Result<(), KernelError> {
        self.conv.load(weights)
    }

    /// Overwrites `input` with the gradient of the input.
    pub(crate) fn input_gradient(
        &self,
        pictures: usize,
        output: &[f32],
        input: &mut [f32],
        scratch: &mut KernelScratch,
    ) -> Result<(), KernelError> {
        self.conv.input_gradient(&mut scratch.0, pictures, output, input)
    }

    /// Adds the gradient of the weights.
    pub(crate) fn weight_gradient(
        &self,
        pictures: usize,
        input: &[f32],
        output: &[f32],
        weights: &mut [f32],
        scratch: &mut KernelScratch,
    ) -> Result<(), KernelError> {
        self.conv.weight_gradient(&mut scratch.0, pictures, input, output, weights)
    }

    /// Adds the gradient of the bias.
    pub(crate) fn bias_gradient(&self, pictures: usize, output: &[f32], bias: &mut [f32]) -> Result<(), KernelError> {
        self.conv.bias_gradient(pictures, output, bias)
    }
}
