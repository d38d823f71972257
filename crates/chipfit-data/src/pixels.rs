//! A picture before preprocessing: interleaved pixels, as bytes (files, uint8 arrays) or floats (float arrays).

use std::io::Cursor;

use image::{DynamicImage, ImageFormat, ImageReader, Limits};

use crate::DataError;

/// Longest side of a picture that is decoded; more is a mistake or an attack.
pub(crate) const MAX_SIDE: u32 = 16_384;
/// Most memory that decoding one picture may take.
const MAX_DECODE_BYTES: u64 = 1 << 30;

/// One picture, rows from the top, pixels from the left, channels interleaved (HWC).
#[derive(Clone, Debug, PartialEq)]
pub struct Pixels {
    /// Rows.
    pub height: usize,
    /// Pixels of a row.
    pub width: usize,
    /// 1 (grey) or 3 (red, green, blue).
    pub channels: usize,
    /// `height * width * channels` values.
    pub data: PixelData,
}

/// The values of [`Pixels`].
#[derive(Clone, Debug, PartialEq)]
pub enum PixelData {
    /// 0 to 255.
    Bytes(Vec<u8>),
    /// Whatever a float array holds; 0 to 255 where it holds pixels.
    Floats(Vec<f32>),
}

impl Pixels {
    /// Decodes a JPEG or PNG file, told apart by content. Transparency is dropped, orientation tags are ignored.
    ///
    /// # Errors
    /// [`DataError::BadPicture`] naming `name`, also for a picture whose sides exceed 16,384 pixels.
    pub fn decode(name: &str, bytes: &[u8]) -> Result<Self, DataError> {
        let bad = |reason: String| DataError::BadPicture { name: name.to_owned(), reason };
        let format = image::guess_format(bytes).map_err(|_| bad("neither a JPEG nor a PNG signature".to_owned()))?;
        if !matches!(format, ImageFormat::Jpeg | ImageFormat::Png) {
            return Err(bad(format!("the content is {format:?}")));
        }
        let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
        let mut limits = Limits::default();
        limits.max_image_width = Some(MAX_SIDE);
        limits.max_image_height = Some(MAX_SIDE);
        limits.max_alloc = Some(MAX_DECODE_BYTES);
        reader.limits(limits);
        let picture = reader.decode().map_err(|error| bad(error.to_string()))?;
        let (height, width) = (picture.height() as usize, picture.width() as usize);
        let is_grey = matches!(
            picture,
            DynamicImage::ImageLuma8(_)
                | DynamicImage::ImageLuma16(_)
                | DynamicImage::ImageLumaA8(_)
                | DynamicImage::ImageLumaA16(_)
        );
        let (channels, bytes) =
            if is_grey { (1, picture.into_luma8().into_raw()) } else { (3, picture.into_rgb8().into_raw()) };
        Ok(Self { height, width, channels, data: PixelData::Bytes(bytes) })
    }
}
