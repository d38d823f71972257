//! Weights of the emitted convolutions: the original's elements moved, zero taps filled, nothing computed.
//!
//! One gather serves every element type: an output element is either a copy of an input element's bytes or the
//! fill (0, or the zero point of its channel).

use chipfit_model::ConstTensor;

use crate::source::Source;

/// Which taps of the original an emitted kernel reads, over all axes.
#[derive(Clone, Debug)]
pub(crate) struct KernelTaps<'a> {
    /// For each axis, for each of its phases here, the tap at each position.
    pub axes: Vec<&'a [Vec<Option<usize>>]>,
}

impl KernelTaps<'_> {
    /// Phases, over all axes.
    pub(crate) fn phases(&self) -> usize {
        self.axes.iter().map(|a| a.len()).product()
    }

    /// The kernel's lengths.
    pub(crate) fn lengths(&self) -> Vec<usize> {
        self.axes.iter().map(|a| a.first().map_or(0, Vec::len)).collect()
    }

    /// For one phase: the offset into the original's kernel at each position, row-major; `None`: zero tap.
    fn offsets(&self, mut phase: usize, kernel: &[usize]) -> Vec<Option<usize>> {
        let mut rows: Vec<&[Option<usize>]> = Vec::with_capacity(self.axes.len());
        for axis in self.axes.iter().rev() {
            rows.push(&axis[phase % axis.len()]);
            phase /= axis.len();
        }
        rows.reverse();
        let mut offsets = vec![Some(0)];
        for (row, &k) in rows.iter().zip(kernel) {
            offsets = offsets
                .iter()
                .flat_map(|base| row.iter().map(move |tap| Some(base.as_ref()? * k + tap.as_ref()?)))
                .collect();
        }
        offsets
    }
}

/// The order of output channels: which (original channel, phase) each emitted channel is.
pub(crate) fn channel_order(channels: usize, phases: usize, channel_major: bool) -> Vec<(usize, usize)> {
    if channel_major {
        (0..channels).flat_map(|o| (0..phases).map(move |f| (o, f))).collect()
    } else {
        (0..phases).flat_map(|f| (0..channels).map(move |o| (o, f))).collect()
    }
}

/// The weight `[len(order), Cin/g, lengths...]` of an emitted convolution.
///
/// `order` must keep the channels of a group together. `None` on a length that overflows.
pub(crate) fn gather(source: &Source<'_>, taps: &KernelTaps<'_>, order: &[(usize, usize)]) -> Option<ConstTensor> {
    let weight = &source.weight;
    let size = weight.dtype().bytes()?;
    let (per_group_in, per_group_out) = (source.channels_in_per_group(), source.channels_out_per_group);
    let kernel_elements: usize = source.kernel.iter().product();
    let lengths = taps.lengths();
    let offsets: Vec<Vec<Option<usize>>> = (0..taps.phases()).map(|f| taps.offsets(f, &source.kernel)).collect();
    let mut dims = vec![order.len(), per_group_in];
    dims.extend(&lengths);
    let total = dims.iter().try_fold(size, |n, &d| n.checked_mul(d))?;
    let mut bytes = Vec::with_capacity(total);
    let data = weight.bytes();
    for &(channel, phase) in order {
        let fill = fill_of(source, channel, size);
        let (group, inside) = (channel / per_group_out, channel % per_group_out);
        for c in 0..per_group_in {
            let base = ((group * per_group_in + c) * per_group_out + inside) * kernel_elements;
            for offset in &offsets[phase] {
                match offset {
                    Some(offset) => {
                        let at = (base + offset) * size;
                        bytes.extend_from_slice(data.get(at..at + size)?);
                    }
                    None => bytes.extend_from_slice(&fill),
                }
            }
        }
    }
    ConstTensor::new(weight.dtype(), dims, bytes)
}

/// The bytes of a zero tap of an output channel: 0, or the weight's zero point.
fn fill_of(source: &Source<'_>, channel: usize, size: usize) -> Vec<u8> {
    let zero_points = source.weight_quantization.as_ref().and_then(|q| q.zero_points.as_ref().map(|z| (q, z)));
    let Some((quantization, zero_points)) = zero_points else { return vec![0; size] };
    let entry = quantization.scale_of.as_ref().and_then(|of| of.get(channel).copied()).unwrap_or(0);
    zero_points.bytes().get(entry * size..(entry + 1) * size).map_or_else(|| vec![0; size], <[u8]>::to_vec)
}

/// A per-channel vector (scales, zero points, bias) in another order: entry `i` is `tensor[pick[i]]`.
pub(crate) fn pick(tensor: &ConstTensor, picks: &[usize]) -> Option<ConstTensor> {
    let size = tensor.dtype().bytes()?;
    let mut bytes = Vec::with_capacity(picks.len() * size);
    for &p in picks {
        bytes.extend_from_slice(tensor.bytes().get(p * size..(p + 1) * size)?);
    }
    ConstTensor::new(tensor.dtype(), vec![picks.len()], bytes)
}
