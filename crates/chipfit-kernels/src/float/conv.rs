//! [`FloatConv`]: a convolution in f32 with its gradients.

use super::loops::loops;
use super::pass::{Call, Direction, Pass};
use super::scratch::FloatScratch;
use super::sums::Sums;
use super::twin;
use crate::error::{KernelError, check_length};
use crate::geometry::ConvGeometry;
use crate::isa::Isa;

/// A convolution in f32 with its gradients, for one instruction set.
///
/// [`FloatConv::load`] takes the weights, once per step; the other methods take `&self` and may run on several threads,
/// each with pictures and [`FloatScratch`] of its own. Weights are zero before the first load.
#[derive(Clone, Debug)]
pub struct FloatConv {
    isa: Isa,
    geometry: ConvGeometry,
    /// Output rows and columns.
    output: [usize; 2],
    work: Work,
}

/// What a loaded convolution runs on.
#[derive(Clone, Debug)]
enum Work {
    /// The twin, with the weights as loaded.
    Twin(Vec<f32>),
    Loops(Box<Passes>),
}

#[derive(Clone, Debug)]
struct Passes {
    forward: Pass,
    input_gradient: Pass,
    sums: Sums,
}

impl FloatConv {
    /// Prepares the loops of `isa` for these shapes; weights are zero.
    ///
    /// # Errors
    /// [`KernelError`] when this machine lacks the instruction set or the shapes make no convolution.
    pub fn new(isa: Isa, geometry: ConvGeometry) -> Result<Self, KernelError> {
        if !isa.is_available() {
            return Err(KernelError::Unavailable { isa });
        }
        let output = geometry.checked_output()?;
        let work = match loops(isa) {
            None => Work::Twin(vec![0.0; geometry.out_channels * geometry.products()]),
            Some(loops) => Work::Loops(Box::new(Passes {
                forward: Pass::new(loops, &geometry, output, Direction::Forward),
                input_gradient: Pass::new(loops, &geometry, output, Direction::InputGradient),
                sums: Sums::new(loops, &geometry, output),
            })),
        };
        Ok(Self { isa, geometry, output, work })
    }

    /// The shapes.
    pub fn geometry(&self) -> &ConvGeometry {
        &self.geometry
    }

    /// The instruction set.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Output rows and columns.
    pub fn output(&self) -> [usize; 2] {
        self.output
    }

    /// Elements of one input picture: rows * columns * channels.
    pub fn input_elements(&self) -> usize {
        self.geometry.input[0] * self.geometry.input[1] * self.geometry.in_channels
    }

    /// Elements of one output picture: rows * columns * channels.
    pub fn output_elements(&self) -> usize {
        self.output[0] * self.output[1] * self.geometry.out_channels
    }

    /// Elements of the weights: `out_channels * kernel rows * kernel columns * in_channels / groups`.
    pub fn weight_elements(&self) -> usize {
        self.geometry.out_channels * self.geometry.products()
    }

    /// Takes the weights, `[out_channels][kernel rows][kernel columns][in_channels / groups]`, and packs them.
    ///
    /// # Errors
    /// [`KernelError::Length`] for another number of weights.
    pub fn load(&mut self, weights: &[f32]) -> Result<(), KernelError> {
        check_length("weights", weights.len(), self.weight_elements())?;
        match &mut self.work {
            Work::Twin(held) => held.copy_from_slice(weights),
            Work::Loops(passes) => {
                passes.forward.load(&self.geometry, weights);
                passes.input_gradient.load(&self.geometry, weights);
            }
        }
        Ok(())
    }

    /// `output = bias + sum of input * weight`, NHWC, overwriting `output`.
    ///
    /// Order of each chain: from the bias (or +0.0) on, kernel row, kernel column, input channel; padding is +0.0.
    ///
    /// # Errors
    /// [`KernelError::Length`] for slices that do not fit `pictures` and the shapes.
    pub fn forward(
        &self,
        scratch: &mut FloatScratch,
        pictures: usize,
        input: &[f32],
        bias: Option<&[f32]>,
        output: &mut [f32],
    ) -> Result<(), KernelError> {
        check_pictures("input", input.len(), pictures, self.input_elements())?;
        check_pictures("output", output.len(), pictures, self.output_elements())?;
        if let Some(bias) = bias {
            check_length("bias", bias.len(), self.geometry.out_channels)?;
        }
        match &self.work {
            Work::Twin(weights) => twin::forward(&self.geometry, weights, input, bias, output),
            Work::Loops(passes) => {
                passes.forward.run(scratch, &mut Call { pictures, source: input, bias, target: output });
            }
        }
        Ok(())
    }

    /// The gradient of the input from that of the output, both NHWC, overwriting `input_gradient`.
    ///
    /// Order of each chain, from +0.0 on: output row, output column, output channel, that is kernel row and column
    /// last to first. Taps of another phase of the stride take no part; gradients beyond the map are +0.0.
    ///
    /// # Errors
    /// [`KernelError::Length`] for slices that do not fit `pictures` and the shapes.
    pub fn input_gradient(
        &self,
        scratch: &mut FloatScratch,
        pictures: usize,
        output_gradient: &[f32],
        input_gradient: &mut [f32],
    ) -> Result<(), KernelError> {
        check_pictures("output gradient", output_gradient.len(), pictures, self.output_elements())?;
        check_pictures("input gradient", input_gradient.len(), pictures, self.input_elements())?;
        match &self.work {
            Work::Twin(weights) => twin::input_gradient(&self.geometry, weights, output_gradient, input_gradient),
            Work::Loops(passes) => {
                let mut call = Call { pictures, source: output_gradient, bias: None, target: input_gradient };
                passes.input_gradient.run(scratch, &mut call);
            }
        }
        Ok(())
    }

    /// Adds the gradient of the weights, `[out_channels][kernel rows][kernel columns][in_channels / groups]`, to
    /// `weight_gradient`. The loaded weights take no part.
    ///
    /// Order of each chain, from the value held on: picture, output row, output column; padding is +0.0. So pictures in
    /// several calls, in order, give what one call gives.
    ///
    /// # Errors
    /// [`KernelError::Length`] for slices that do not fit `pictures` and the shapes.
    pub fn weight_gradient(
        &self,
        scratch: &mut FloatScratch,
        pictures: usize,
        input: &[f32],
        output_gradient: &[f32],
        weight_gradient: &mut [f32],
    ) -> Result<(), KernelError> {
        check_pictures("input", input.len(), pictures, self.input_elements())?;
        check_pictures("output gradient", output_gradient.len(), pictures, self.output_elements())?;
        check_length("weight gradient", weight_gradient.len(), self.weight_elements())?;
        match &self.work {
            Work::Twin(_) => twin::weight_gradient(&self.geometry, input, output_gradient, weight_gradient),
            Work::Loops(passes) => passes.sums.run(scratch, pictures, input, output_gradient, weight_gradient),
        }
        Ok(())
    }

    /// Adds the gradient of the bias to `bias_gradient`: plain sums of `output_gradient` per channel, from the value
    /// held on, in the order picture, row, column.
    ///
    /// # Errors
    /// [`KernelError::Length`] for slices that do not fit `pictures` and the shapes.
    pub fn bias_gradient(
        &self,
        pictures: usize,
        output_gradient: &[f32],
        bias_gradient: &mut [f32],
    ) -> Result<(), KernelError> {
        check_pictures("output gradient", output_gradient.len(), pictures, self.output_elements())?;
        check_length("bias gradient", bias_gradient.len(), self.geometry.out_channels)?;
        for pixel in output_gradient.chunks_exact(self.geometry.out_channels) {
            bias_gradient.iter_mut().zip(pixel).for_each(|(sum, &gradient)| *sum += gradient);
        }
        Ok(())
    }
}

/// Checks that a slice holds so many pictures.
fn check_pictures(what: &'static str, got: usize, pictures: usize, elements: usize) -> Result<(), KernelError> {
    let wanted = pictures.checked_mul(elements).ok_or(KernelError::TooLarge { what })?;
    check_length(what, got, wanted)
}
