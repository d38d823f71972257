//! The float convolution behind a linear step, with what it needs between calls.

use chipfit_kernels::ConvGeometry;

/// Weights of one step in the shape that the gradient kernels want.
#[derive(Debug)]
pub(crate) struct LinearKernel {
    geometry: ConvGeometry,
    weights: Vec<f32>,
}

/// Scratch memory of one thread.
#[derive(Debug, Default)]
pub(crate) struct KernelScratch {}

impl LinearKernel {
    pub(crate) fn new(geometry: &ConvGeometry) -> Result<Self, String> {
        geometry.checked_output().map_err(|e| e.to_string())?;
        Ok(Self { geometry: geometry.clone(), weights: Vec::new() })
    }

    /// `[out][kernel row][kernel column][in / groups]`.
    pub(crate) fn load(&mut self, weights: &[f32]) -> Result<(), String> {
        self.weights = weights.to_vec();
        Ok(())
    }

    fn taps(&self, mut visit: impl FnMut(usize, usize, usize)) {
        let g = &self.geometry;
        let [rows, columns] = g.output();
        let (ic, oc) = (g.in_channels / g.groups, g.out_channels / g.groups);
        for row in 0..rows {
            for column in 0..columns {
                for o in 0..g.out_channels {
                    let group = o / oc;
                    let mut k = 0;
                    for kr in 0..g.kernel[0] {
                        for kc in 0..g.kernel[1] {
                            let y = (row * g.stride[0] + kr * g.dilation[0]).wrapping_sub(g.pads[0]);
                            let x = (column * g.stride[1] + kc * g.dilation[1]).wrapping_sub(g.pads[1]);
                            for i in 0..ic {
                                if y < g.input[0] && x < g.input[1] {
                                    visit(
                                        (row * columns + column) * g.out_channels + o,
                                        (y * g.input[1] + x) * g.in_channels + group * ic + i,
                                        o * g.products() + k,
                                    );
                                }
                                k += 1;
                            }
                        }
                    }
                }
            }
        }
    }

    fn sizes(&self) -> (usize, usize) {
        let g = &self.geometry;
        let [rows, columns] = g.output();
        (g.input[0] * g.input[1] * g.in_channels, rows * columns * g.out_channels)
    }

    /// Overwrites `input` with the gradient of the input, for whole pictures.
    pub(crate) fn input_gradient(&self, output: &[f32], input: &mut [f32], _: &mut KernelScratch) -> Result<(), String> {
        let (each_in, each_out) = self.sizes();
        for (g, d) in output.chunks_exact(each_out).zip(input.chunks_exact_mut(each_in)) {
            d.fill(0.0);
            self.taps(|o, i, w| d[i] += g[o] * self.weights[w]);
        }
        Ok(())
    }

    /// Adds the gradient of the weights.
    pub(crate) fn weight_gradient(
        &self,
        input: &[f32],
        output: &[f32],
        weights: &mut [f32],
        _: &mut KernelScratch,
    ) -> Result<(), String> {
        let (each_in, each_out) = self.sizes();
        for (g, x) in output.chunks_exact(each_out).zip(input.chunks_exact(each_in)) {
            self.taps(|o, i, w| weights[w] += g[o] * x[i]);
        }
        Ok(())
    }

    /// Adds the gradient of the bias.
    pub(crate) fn bias_gradient(&self, output: &[f32], bias: &mut [f32]) -> Result<(), String> {
        for pixel in output.chunks_exact(self.geometry.out_channels) {
            bias.iter_mut().zip(pixel).for_each(|(b, &g)| *b += g);
        }
        Ok(())
    }
}
