//! Labelled pictures as float values of a model's input, and how a view moves them.

use chipfit_npu::View;

use super::error::ScratchError;

/// How 8-bit pixels become values for training: `(pixel - mean) / std`, all channels alike.
///
/// Every value is then a multiple of a power of two, and 8-bit quantisation of the input keeps every pixel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PixelScale {
    /// Subtracted from the pixel.
    pub mean: f32,
    /// Divisor.
    pub std: f32,
}

impl PixelScale {
    /// What suits pictures of so many channels: grey ones keep their dark background at 0, which is what views move in
    /// and what paddings read; others are centred.
    pub fn for_channels(channels: usize) -> Self {
        if channels == 1 { Self { mean: 0.0, std: 128.0 } } else { Self { mean: 120.0, std: 64.0 } }
    }
}

/// Labelled pictures. The same index always gives the same values, whatever thread asks.
pub trait FloatPictures: Sync {
    /// How many.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Class of picture `index`.
    fn label(&self, index: usize) -> u32;

    /// Writes picture `index`, preprocessed, in the model's layout `[channels, rows, columns]`.
    ///
    /// # Errors
    /// [`ScratchError::Picture`].
    fn values(&self, index: usize, out: &mut [f32]) -> Result<(), ScratchError>;
}

/// Pictures held in memory without loss: as one byte per value where each channel takes at most 256 different values,
/// as those of 8-bit pictures do after any preprocessing that looks at one pixel; else as floats.
#[derive(Clone, Debug)]
pub struct MemoryPictures {
    shape: [usize; 3],
    labels: Vec<u32>,
    values: Store,
}

#[derive(Clone, Debug)]
enum Store {
    Bytes {
        bytes: Vec<u8>,
        /// One per channel: which byte stands for which value.
        codes: Vec<Codes>,
    },
    Floats(Vec<f32>),
}

impl MemoryPictures {
    /// No pictures yet, of shape `[channels, rows, columns]`.
    pub fn new(shape: [usize; 3]) -> Self {
        let [channels, _, _] = shape;
        let values = Store::Bytes { bytes: Vec::new(), codes: vec![Codes::default(); channels] };
        Self { shape, labels: Vec::new(), values }
    }

    /// Appends pictures, one after another, with a label for each.
    ///
    /// # Errors
    /// [`ScratchError::Picture`] when the values are not so many pictures.
    pub fn extend(&mut self, values: &[f32], labels: &[u32]) -> Result<(), ScratchError> {
        let each = self.elements();
        if labels.len().checked_mul(each) != Some(values.len()) {
            let what = format!("{} values are not {} pictures of {each}", values.len(), labels.len());
            return Err(ScratchError::Picture { index: self.labels.len(), what });
        }
        self.labels.extend_from_slice(labels);
        if let Store::Bytes { bytes, codes } = &mut self.values
            && !encode(values, self.shape, bytes, codes)
        {
            // Values of more than 8 bits: keep what there was as floats.
            let pictures = self.labels.len() - labels.len();
            let mut floats = vec![0.0; pictures * each];
            for (index, out) in floats.chunks_exact_mut(each.max(1)).enumerate() {
                self.read(index, out);
            }
            self.values = Store::Floats(floats);
        }
        if let Store::Floats(floats) = &mut self.values {
            floats.extend_from_slice(values);
        }
        Ok(())
    }

    /// `[channels, rows, columns]`.
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Writes a picture; leaves `out` alone when there is no such picture.
    fn read(&self, index: usize, out: &mut [f32]) -> Option<()> {
        let each = self.elements();
        let span = index.checked_mul(each)?..index.checked_add(1)?.checked_mul(each)?;
        match &self.values {
            Store::Floats(floats) => out.copy_from_slice(floats.get(span).filter(|found| found.len() == out.len())?),
            Store::Bytes { bytes, codes } => {
                let bytes = bytes.get(span).filter(|found| found.len() == out.len())?;
                let plane = (self.shape[1] * self.shape[2]).max(1);
                let channels = bytes.chunks_exact(plane).zip(out.chunks_exact_mut(plane));
                for ((bytes, out), codes) in channels.zip(codes.iter().cycle()) {
                    for (&byte, out) in bytes.iter().zip(out) {
                        *out = codes.values.get(usize::from(byte)).copied().unwrap_or_default();
                    }
                }
            }
        }
        Some(())
    }
}

/// Up to 256 values and the bytes that stand for them.
#[derive(Clone, Debug)]
struct Codes {
    /// The value of each byte.
    values: Vec<f32>,
    /// Bytes by a hash of their values' bits; the next place where one is taken.
    places: Box<[Option<u8>; PLACES]>,
}

/// A power of two well above 256, so that most values are found at once.
const PLACES: usize = 1024;

impl Default for Codes {
    fn default() -> Self {
        Self { values: Vec::new(), places: Box::new([None; PLACES]) }
    }
}

impl Codes {
    /// The byte of a value, a new one where it is not known; `None` when there are no more.
    fn code(&mut self, value: f32) -> Option<u8> {
        // Ten bits fit a usize.
        let mut at = (value.to_bits().wrapping_mul(0x9E37_79B1) >> 22) as usize;
        loop {
            let place = self.places.get_mut(at % PLACES)?;
            match *place {
                Some(code) if self.values.get(usize::from(code)).is_some_and(|v| v.to_bits() == value.to_bits()) => {
                    return Some(code);
                }
                // At most 256 places are taken, so an empty one comes.
                Some(_) => at += 1,
                None => {
                    let code = u8::try_from(self.values.len()).ok()?;
                    *place = Some(code);
                    self.values.push(value);
                    return Some(code);
                }
            }
        }
    }
}

/// Appends the bytes of `values`; `false`, with `bytes` as before, when a channel has more than 256 values.
fn encode(values: &[f32], shape: [usize; 3], bytes: &mut Vec<u8>, codes: &mut [Codes]) -> bool {
    let [channels, rows, columns] = shape;
    let before = bytes.len();
    for (at, plane) in values.chunks_exact((rows * columns).max(1)).enumerate() {
        let Some(codes) = codes.get_mut(at % channels.max(1)) else { continue };
        for &value in plane {
            let Some(code) = codes.code(value) else {
                bytes.truncate(before);
                return false;
            };
            bytes.push(code);
        }
    }
    true
}

impl FloatPictures for MemoryPictures {
    fn len(&self) -> usize {
        self.labels.len()
    }

    fn label(&self, index: usize) -> u32 {
        self.labels.get(index).copied().unwrap_or(u32::MAX)
    }

    fn values(&self, index: usize, out: &mut [f32]) -> Result<(), ScratchError> {
        let what = "there is no such picture, or it has another shape";
        self.read(index, out).ok_or_else(|| ScratchError::Picture { index, what: what.to_owned() })
    }
}

/// Moves a picture `[channels, rows, columns]` as [`View::apply`] moves its bytes; what comes in reads 0.
pub(super) fn look(view: View, [channels, rows, columns]: [usize; 3], values: &mut [f32], spare: &mut Vec<f32>) {
    if view.is_identity() || values.len() != channels * rows * columns {
        return;
    }
    spare.clear();
    spare.extend_from_slice(values);
    values.fill(0.0);
    let planes = values.chunks_exact_mut((rows * columns).max(1)).zip(spare.chunks_exact((rows * columns).max(1)));
    for (to, from) in planes {
        for (row, line) in to.chunks_exact_mut(columns.max(1)).enumerate() {
            let source = row.checked_add_signed(-isize::from(view.down)).filter(|&row| row < rows);
            let Some(source) = source.and_then(|row| from.get(row * columns..(row + 1) * columns)) else { continue };
            for (column, value) in line.iter_mut().enumerate() {
                let column = column.checked_add_signed(-isize::from(view.right)).filter(|&column| column < columns);
                let column = column.map(|column| if view.flip { columns - 1 - column } else { column });
                *value = column.and_then(|column| source.get(column)).copied().unwrap_or(0.0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use chipfit_npu::program::{Tensor, Word};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_view_moves_values_as_it_moves_bytes(
            sides in (1usize..4, 1usize..6, 1usize..6),
            flip: bool, down in -7i8..8, right in -7i8..8, bytes in proptest::collection::vec(1u8.., 75),
        ) {
            let shape @ [channels, rows, columns] = [sides.0, sides.1, sides.2];
            let view = View { flip, down, right };
            let nhwc = &bytes[..channels * rows * columns];
            let tensor = Tensor {
                name: "x".to_owned(), shape: shape.to_vec(), word: Word::Unsigned, scale: 1.0, zero_point: 0,
            };
            let moved = view.apply(&tensor, nhwc);
            let planar = |bytes: &[u8]| -> Vec<f32> {
                let at = |channel, pixel| f32::from(bytes[pixel * channels + channel]);
                (0..channels).flat_map(|channel| (0..rows * columns).map(move |pixel| at(channel, pixel))).collect()
            };
            let mut values = planar(nhwc);
            look(view, shape, &mut values, &mut Vec::new());
            prop_assert_eq!(values, planar(&moved));
        }

        #[test]
        fn memory_gives_back_what_it_was_given(
            values in proptest::collection::vec((0u16..300).prop_map(|v| f32::from(v) / 7.0 - 3.0), 2 * 3 * 400..=2 * 3 * 400),
            split in 0usize..400, few: bool,
        ) {
            // With `few` all fits one byte; without, the second part usually overflows the tables.
            let values: Vec<f32> = values.into_iter().map(|v| if few { v.trunc() } else { v }).collect();
            let mut pictures = MemoryPictures::new([2, 1, 3]);
            let labels: Vec<u32> = (0..400).collect();
            pictures.extend(&values[..split * 6], &labels[..split]).unwrap();
            pictures.extend(&values[split * 6..], &labels[split..]).unwrap();
            prop_assert_eq!(matches!(pictures.values, Store::Bytes { .. }), few);
            let mut out = [0.0; 6];
            for index in 0..400 {
                pictures.values(index, &mut out).unwrap();
                prop_assert_eq!(&out[..], &values[index * 6..index * 6 + 6]);
                prop_assert_eq!(pictures.label(index), u32::try_from(index).unwrap());
            }
        }
    }

    #[test]
    fn wrong_counts_are_refused() {
        let mut pictures = MemoryPictures::new([1, 2, 2]);
        assert!(matches!(pictures.extend(&[0.0; 5], &[1]), Err(ScratchError::Picture { index: 0, .. })));
        pictures.extend(&[0.5; 4], &[1]).unwrap();
        assert!(pictures.values(1, &mut [0.0; 4]).is_err());
        assert!(pictures.values(0, &mut [0.0; 3]).is_err());
    }
}
