//! Real pictures as model inputs: decoded, scaled to the input, normalised.
//!
//! A picture goes to the first input of four dimensions of which one is 1 or 3 channels (first as NCHW, then as
//! NHWC); its value is `(pixel - mean) * scale` with pixels from 0 to 255, and the bare pixel for uint8 inputs.

use std::path::PathBuf;

use clap::Args;

/// Most pixels of a picture; more is a mistake or an attack.
pub(crate) const MAX_PIXELS: u64 = 100_000_000;

/// `--image` and how it becomes numbers.
#[derive(Args, Debug)]
pub(crate) struct PictureFlags {
    /// A picture (JPEG or PNG) to run instead of random values, scaled to the input (may be repeated)
    #[arg(long = "image", value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// Subtracted from every pixel value (0 to 255): one number or one per channel
    #[arg(long, value_name = "M[,M,M]", value_delimiter = ',', allow_negative_numbers = true, default_value = "0")]
    pub(crate) mean: Vec<f32>,
    /// Multiplied with it afterwards: one number or one per channel [default: 1/255]
    #[arg(long, value_name = "S[,S,S]", value_delimiter = ',', allow_negative_numbers = true)]
    pub(crate) scale: Vec<f32>,
    /// Channels in the order blue, green, red
    #[arg(long)]
    pub(crate) bgr: bool,
}
