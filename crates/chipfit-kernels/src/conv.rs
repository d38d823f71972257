//! Convolutions with packed constant weights.
//!
//! [`Conv`] checks its arguments and holds weights as given and as packed; how a call is cut into chunks is in `drive`.

use std::cell::Cell;
use std::ops::Range;

use crate::depthwise::{self, DepthPlan};
use crate::drive::{self, BlockSet, Call};
use crate::error::{KernelError, check_length};
use crate::finish::{Finish, Place, Probe, Target};
use crate::geometry::ConvGeometry;
use crate::isa::Isa;
use crate::output::OutputBlock;
use crate::plan::{Plan, Shape};
use crate::requantize::Rescale;
use crate::scalar;
use crate::scratch::Scratch;

/// A convolution whose weights are packed for one instruction set.
///
/// Activations are u8 (an int8 tensor is kept as its value plus 128, its zero point moved along), NHWC, dense, pictures
/// one after another. `accumulator = bias + sum (x - input_zero_point) * w`, i32, wrapping; padding reads the zero point.
///
/// Work is divided among threads by output rows, by pictures, or by output channels ([`OutputBlock::split_channels`] at
/// multiples of [`Conv::channel_step`]); each thread brings its own [`Scratch`]. No division changes a result.
#[derive(Clone, Debug)]
pub struct Conv {
    isa: Isa,
    geometry: ConvGeometry,
    output: [usize; 2],
    zero_point: u8,
    rows: Vec<i8>,
    bias: Vec<i32>,
    engine: Engine,
}

#[derive(Clone, Debug)]
enum Engine {
    Scalar,
    Blocks(Plan, BlockSet),
    Depthwise(DepthPlan),
    #[cfg(target_arch = "x86_64")]
    Tiles(crate::x86::amx::TilePlan),
}

impl Conv {
    /// Packs `weights` (one row per output channel, in the order kernel row, kernel column, input channel of the group)
    /// and `bias` (one per output channel) for an instruction set.
    ///
    /// # Errors
    /// [`KernelError::Unavailable`] if this machine lacks `isa`; what [`ConvGeometry::output`] refuses;
    /// [`KernelError::Length`] for weights or bias of another size.
    pub fn new(
        isa: Isa,
        geometry: ConvGeometry,
        weights: &[i8],
        bias: &[i32],
        input_zero_point: u8,
    ) -> Result<Self, KernelError> {
        if !isa.is_available() {
            return Err(KernelError::Unavailable { isa });
        }
        let output = geometry.checked_output()?;
        let products = geometry.products();
        check_length("weights", weights.len(), geometry.out_channels * products)?;
        check_length("bias", bias.len(), geometry.out_channels)?;
        let engine = Engine::new(isa, &geometry, output, input_zero_point, weights, bias);
        Ok(Self {
            isa,
            geometry,
            output,
            zero_point: input_zero_point,
            rows: weights.to_vec(),
            bias: bias.to_vec(),
            engine,
        })
    }

    /// The instruction set it is packed for.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Its shapes.
    pub fn geometry(&self) -> &ConvGeometry {
        &self.geometry
    }

    /// Rows and columns of the output.
    pub fn output(&self) -> [usize; 2] {
        self.output
    }

    /// The activation that stands for zero.
    pub fn input_zero_point(&self) -> u8 {
        self.zero_point
    }

    /// The weights of an output channel, in the order of its products: kernel row, kernel column, input channel.
    ///
    /// # Panics
    /// If there is no such channel.
    pub fn row(&self, out_channel: usize) -> &[i8] {
        let products = self.geometry.products();
        &self.rows[out_channel * products..][..products]
    }

    /// The bias, as it was given.
    pub fn bias(&self) -> &[i32] {
        &self.bias
    }

    /// Bytes it holds: weights as given and as packed.
    pub fn bytes(&self) -> usize {
        let packed = match &self.engine {
            Engine::Scalar => 0,
            Engine::Blocks(plan, _) => plan.bytes(),
            Engine::Depthwise(depth) => depth.bytes(),
            #[cfg(target_arch = "x86_64")]
            Engine::Tiles(tiles) => tiles.plan.bytes(),
        };
        self.rows.len() + packed + self.bias.len() * size_of::<i32>()
    }

    /// Ranges of output channels start at multiples of this and end at one or at the last channel.
    pub fn channel_step(&self) -> usize {
        match &self.engine {
            Engine::Scalar => 1,
            Engine::Depthwise(_) => depthwise::LANES,
            Engine::Blocks(..) if self.geometry.groups > 1 => self.geometry.out_channels / self.geometry.groups,
            Engine::Blocks(plan, set) => plan.lanes * set.blocks,
            #[cfg(target_arch = "x86_64")]
            Engine::Tiles(_) => crate::x86::amx::CHANNEL_STEP,
        }
    }

    /// Computes output `rows` of every picture of `input` (`[pictures, rows, columns, in_channels]`) into `out`
    /// (`[pictures, rows.len(), output columns, out_channels]`).
    ///
    /// # Errors
    /// [`KernelError`] naming the slice, range or constant that does not fit; nothing is written then.
    pub fn run<'r>(
        &self,
        input: &[u8],
        rows: Range<usize>,
        rescale: impl Into<Rescale<'r>>,
        out: &mut [u8],
        scratch: &mut Scratch,
    ) -> Result<(), KernelError> {
        let block = OutputBlock::new(out, self.geometry.out_channels)?;
        self.run_block(input, rows, rescale, block, scratch)
    }

    /// [`Conv::run`] for the channels of `block` only; its tensor is `out` of [`Conv::run`], the constants of `rescale`
    /// cover all channels.
    ///
    /// # Errors
    /// As [`Conv::run`]; [`KernelError::Range`] for channels that do not keep to [`Conv::channel_step`].
    pub fn run_block<'r>(
        &self,
        input: &[u8],
        rows: Range<usize>,
        rescale: impl Into<Rescale<'r>>,
        mut block: OutputBlock<'_, u8>,
        scratch: &mut Scratch,
    ) -> Result<(), KernelError> {
        let rescale = rescale.into();
        rescale.check(self.geometry.out_channels)?;
        let target = Target::bytes(block.as_mut_ptr(), rescale);
        let call = self.check(input, rows, &block, target)?;
        // SAFETY: the block lends its pixels and channels to this call alone, and `check` compared their numbers.
        unsafe { self.execute(&call, scratch) };
        Ok(())
    }

    /// [`Conv::run`] for whole pictures, which stores the accumulators of some outputs besides: `sums[i]` is that of
    /// `places[i]`. Places come in ascending order.
    ///
    /// # Errors
    /// As [`Conv::run`]; [`KernelError::Length`] when `sums` is not as long as `places`, [`KernelError::Range`] for a
    /// place outside the output or out of order.
    pub fn run_probed<'r>(
        &self,
        input: &[u8],
        rescale: impl Into<Rescale<'r>>,
        out: &mut [u8],
        places: &[Place],
        sums: &mut [i32],
        scratch: &mut Scratch,
    ) -> Result<(), KernelError> {
        check_length("sums", sums.len(), places.len())?;
        let rescale = rescale.into();
        let pixels = out.len() / self.geometry.out_channels;
        if let Some(last) = places.last()
            && (!places.is_sorted()
                || last.pixel as usize >= pixels
                || places.iter().any(|place| place.channel as usize >= self.geometry.out_channels))
        {
            let start = last.pixel as usize;
            return Err(KernelError::Range { what: "places", start, end: start + 1, limit: pixels });
        }
        let is_probed = match &self.engine {
            #[cfg(target_arch = "x86_64")]
            Engine::Tiles(_) => true,
            Engine::Blocks(..) => self.isa == Isa::Avx512Vnni || self.isa == Isa::AmxInt8,
            _ => false,
        };
        if !is_probed {
            self.run(input, 0..self.output[0], rescale, out, scratch)?;
            let (picture, map) = (self.picture_bytes(), self.output[0] * self.output[1]);
            for (sum, place) in sums.iter_mut().zip(places) {
                let (number, pixel) = (place.pixel as usize / map, place.pixel as usize % map);
                let (row, column) = (pixel / self.output[1], pixel % self.output[1]);
                let input = &input[number * picture..][..picture];
                *sum = self.partial(input, row, column, place.channel as usize, self.geometry.products());
            }
            return Ok(());
        }
        let mut block = OutputBlock::new(out, self.geometry.out_channels)?;
        rescale.check(self.geometry.out_channels)?;
        let target = Target::bytes(block.as_mut_ptr(), rescale);
        let mut call = self.check(input, 0..self.output[0], &block, target)?;
        let probe = Probe { places, sums: sums.as_mut_ptr(), next: Cell::new(0) };
        call.finish.probe = Some(&probe);
        // SAFETY: the block lends its pixels and channels to this call alone, and `check` compared their numbers; the
        // sums are as many as the places.
        unsafe { self.execute(&call, scratch) };
        Ok(())
    }

    /// [`Conv::run`] without requantization: `out` takes the accumulators.
    ///
    /// # Errors
    /// As [`Conv::run`].
    pub fn accumulate(
        &self,
        input: &[u8],
        rows: Range<usize>,
        out: &mut [i32],
        scratch: &mut Scratch,
    ) -> Result<(), KernelError> {
        let block = OutputBlock::new(out, self.geometry.out_channels)?;
        self.accumulate_block(input, rows, block, scratch)
    }

    /// [`Conv::accumulate`] for the channels of `block` only.
    ///
    /// # Errors
    /// As [`Conv::run_block`].
    pub fn accumulate_block(
        &self,
        input: &[u8],
        rows: Range<usize>,
        mut block: OutputBlock<'_, i32>,
        scratch: &mut Scratch,
    ) -> Result<(), KernelError> {
        let target = Target::Sums(block.as_mut_ptr());
        let call = self.check(input, rows, &block, target)?;
        // SAFETY: the block lends its pixels and channels to this call alone, and `check` compared their numbers.
        unsafe { self.execute(&call, scratch) };
        Ok(())
    }

    fn check<'a, T>(
        &'a self,
        input: &'a [u8],
        rows: Range<usize>,
        block: &OutputBlock<'_, T>,
        target: Target<'a>,
    ) -> Result<Call<'a>, KernelError> {
        let picture = self.picture_bytes();
        let pictures = input.len() / picture;
        check_length("input", input.len(), pictures * picture)?;
        if rows.start > rows.end || rows.end > self.output[0] {
            let Range { start, end } = rows;
            return Err(KernelError::Range { what: "output rows", start, end, limit: self.output[0] });
        }
        let limit = self.geometry.out_channels;
        check_length("channels of the output", block.pitch(), limit)?;
        check_length("pixels of the output", block.pixels(), pictures * rows.len() * self.output[1])?;
        let channels = block.channels();
        let step = self.channel_step();
        let Range { start, end } = channels;
        if start != limit && start % step != 0 || end != limit && end % step != 0 {
            return Err(KernelError::Range { what: "output channels", start, end, limit });
        }
        let finish = Finish { target, pitch: limit, probe: None };
        Ok(Call { input, pictures, rows, channels, finish })
    }

    /// Bytes of one input picture.
    pub(crate) fn picture_bytes(&self) -> usize {
        self.geometry.input[0] * self.geometry.input[1] * self.geometry.in_channels
    }

    /// # Safety
    /// The call's target holds its pixels and channels, and this call alone writes them.
    unsafe fn execute(&self, call: &Call<'_>, scratch: &mut Scratch) {
        if call.pictures == 0 || call.rows.is_empty() || call.channels.is_empty() {
            return;
        }
        match &self.engine {
            // SAFETY: the caller's promise.
            Engine::Scalar => unsafe { self.execute_scalar(call) },
            // SAFETY: the caller's promise; the instruction set was checked when the plan was made.
            Engine::Blocks(plan, set) => unsafe { drive::blocks(plan, set, call, scratch) },
            // SAFETY: likewise.
            Engine::Depthwise(depth) => unsafe { depth.execute(call, scratch) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: likewise.
            Engine::Tiles(tiles) => unsafe { tiles.execute(call, scratch) },
        }
    }

    /// # Safety
    /// As [`Conv::execute`].
    unsafe fn execute_scalar(&self, call: &Call<'_>) {
        let mut pixel = 0;
        for picture in call.input.chunks_exact(self.picture_bytes()) {
            for row in call.rows.clone() {
                for column in 0..self.output[1] {
                    for channel in call.channels.clone() {
                        let at = [row, column, channel];
                        let weights = self.row(channel);
                        let bias = self.bias[channel];
                        let sum = scalar::accumulator(&self.geometry, self.zero_point, picture, weights, bias, at);
                        // SAFETY: the pixel and channel are of this call.
                        unsafe { call.finish.store(sum, pixel, channel) };
                    }
                    pixel += 1;
                }
            }
        }
    }
}

impl Engine {
    /// The engine of an available instruction set.
    fn new(
        isa: Isa,
        geometry: &ConvGeometry,
        output: [usize; 2],
        zero_point: u8,
        weights: &[i8],
        bias: &[i32],
    ) -> Self {
        if isa != Isa::Scalar
            && geometry.groups > 1
            && geometry.in_channels == geometry.groups
            && geometry.out_channels == geometry.groups
        {
            return Self::Depthwise(DepthPlan::new(isa, geometry, output, zero_point, weights, bias));
        }
        #[cfg(target_arch = "x86_64")]
        if isa == Isa::AmxInt8 && geometry.groups == 1 {
            let plan = crate::x86::amx::TilePlan::new(geometry, output, zero_point, weights, bias);
            return Self::Tiles(plan);
        }
        // Groups are too narrow for tiles.
        let isa = if isa == Isa::AmxInt8 { Isa::Avx512Vnni } else { isa };
        let (Some(shape), Some(set)) = (Shape::of(isa), block_set(isa)) else { return Self::Scalar };
        let plan = Plan::new(geometry, output, zero_point, shape, weights, bias);
        Self::Blocks(plan, set)
    }
}

/// The block loops of an available instruction set; none for scalar.
fn block_set(isa: Isa) -> Option<BlockSet> {
    #[cfg(target_arch = "x86_64")]
    match isa {
        Isa::Avx512Vnni => return Some(crate::x86::avx512::BLOCKS),
        Isa::AvxVnni => return Some(crate::x86::avx2::VNNI_BLOCKS),
        Isa::Avx2 => return Some(crate::x86::avx2::BLOCKS),
        _ => {}
    }
    #[cfg(target_arch = "aarch64")]
    if isa == Isa::NeonDot {
        return Some(crate::arm::BLOCKS);
    }
    let _ = isa;
    None
}
