//! Sets that are held in memory: the arrays of an `.npz` file and the files of an IDX folder.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use crate::folder::{MAX_NUMBERED, aliases, choose_split, numbered};
use crate::idx::{IdxFile, IdxPair};
use crate::labels::Labels;
use crate::set::{ArrayLayout, Item, OpenOptions, Where};
use crate::{DataError, NpyArray, NpyType, Npz, PixelData, Pixels};

/// Pictures of one size, one after the other.
pub(crate) struct Array {
    bytes: Vec<u8>,
    start: usize,
    is_float: bool,
    layout: ArrayLayout,
    height: usize,
    width: usize,
    channels: usize,
}

/// An array with its labels.
pub(crate) struct Loaded {
    pub(crate) array: Array,
    pub(crate) items: Vec<Item>,
    pub(crate) classes: Vec<String>,
    pub(crate) split: Option<String>,
}

impl Array {
    /// One picture's bytes.
    pub(crate) fn row(&self, row: usize) -> Option<&[u8]> {
        let elem_bytes = if self.is_float { 4 } else { 1 };
        let row_bytes = self.height * self.width * self.channels * elem_bytes;
        let begin = row.checked_mul(row_bytes)?.checked_add(self.start)?;
        self.bytes.get(begin..begin.checked_add(row_bytes)?)
    }

    /// What the bytes of a picture mean.
    pub(crate) fn kind(&self) -> String {
        let Self { is_float, layout, height, width, channels, .. } = self;
        format!("{} {layout:?} {channels}x{height}x{width}", if *is_float { "float32" } else { "uint8" })
    }

    /// One picture, channels interleaved.
    pub(crate) fn pixels(&self, row: usize) -> Option<Pixels> {
        let bytes = self.row(row)?;
        let data = if self.is_float {
            let values: Vec<f32> = bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
            PixelData::Floats(self.interleaved(&values))
        } else {
            PixelData::Bytes(self.interleaved(bytes))
        };
        Some(Pixels { height: self.height, width: self.width, channels: self.channels, data })
    }

    fn interleaved<T: Copy>(&self, values: &[T]) -> Vec<T> {
        if self.layout == ArrayLayout::Nhwc || self.channels == 1 {
            return values.to_vec();
        }
        let plane = self.height * self.width;
        let pixel = |at: usize| values.iter().skip(at).step_by(plane).copied();
        (0..plane).flat_map(pixel).collect()
    }
}

/// Opens one split of an IDX folder.
pub(crate) fn open_idx(
    folder: &Path,
    pairs: &[IdxPair],
    asked: Option<&str>,
    labels: Option<Labels>,
    options: &OpenOptions,
) -> Result<Loaded, DataError> {
    let split = choose_split(folder, &pairs.iter().map(|pair| pair.split).collect(), asked, options)?;
    let Some(pair) = pairs.iter().find(|pair| pair.split == split) else {
        return Err(DataError::NoPictures { path: folder.to_owned() });
    };
    let images = IdxFile::read(&pair.images, options.max_memory_bytes)?;
    let classes = IdxFile::read(&pair.labels, options.max_memory_bytes)?;
    let image_dims = images.content()?.dims;
    let [count, height, width] = *image_dims.as_slice() else {
        let reason = format!("pictures need three dimensions (count, rows, columns), the file has {image_dims:?}");
        return Err(DataError::malformed(&pair.images, reason));
    };
    let labels_read = classes.content()?;
    let [n_labels] = *labels_read.dims.as_slice() else {
        let reason = format!("labels need one dimension, the file has {:?}", labels_read.dims);
        return Err(DataError::malformed(&pair.labels, reason));
    };
    if n_labels != count {
        let reason = format!("{n_labels} labels for {count} pictures in {}", pair.images.display());
        return Err(DataError::malformed(&pair.labels, reason));
    }
    check_sides(&pair.images, [count, height, width])?;
    let numbers = labels_read.values.iter().map(|label| i64::from(*label)).collect();
    let row_bytes = (height * width) as u64;
    let (items, names) = label_rows(&pair.labels, Some(&split), numbers, row_bytes, labels)?;
    let (bytes, start) = images.into_bytes();
    let array = Array { bytes, start, is_float: false, layout: ArrayLayout::Nhwc, height, width, channels: 1 };
    Ok(Loaded { array, items, classes: names, split: Some(split) })
}

/// Opens an npz file: `x` and `y`, or `x_SPLIT` and `y_SPLIT`.
pub(crate) fn open_npz(
    path: &Path,
    asked: Option<&str>,
    labels: Option<Labels>,
    options: &OpenOptions,
) -> Result<Loaded, DataError> {
    let malformed = |reason: String| DataError::malformed(path, reason);
    let file = File::open(path).map_err(DataError::io(path))?;
    let file_bytes = file.metadata().map_err(DataError::io(path))?.len();
    let mut npz = Npz::open(BufReader::new(file), file_bytes).map_err(malformed)?;

    let keys: BTreeSet<&str> = npz.keys().iter().map(String::as_str).collect();
    let splits: BTreeSet<&str> = keys
        .iter()
        .filter_map(|key| key.strip_prefix("x_"))
        .filter(|split| keys.contains(format!("y_{split}").as_str()))
        .collect();
    let has_plain = keys.contains("x") && keys.contains("y");
    let named = asked.is_some_and(|asked| aliases(asked).iter().any(|name| splits.contains(name)));
    let (split, x, y) = if splits.is_empty() && !has_plain {
        let found: Vec<&str> = keys.into_iter().collect();
        return Err(malformed(format!(
            "no arrays x and y (or x_test and y_test); it has: {}",
            if found.is_empty() { "none".to_owned() } else { found.join(", ") }
        )));
    } else if named || (asked.is_none() && !has_plain) || (asked.is_some() && !splits.is_empty()) {
        let split = choose_split(path, &splits, asked, options)?;
        let (x, y) = (format!("x_{split}"), format!("y_{split}"));
        (Some(split), x, y)
    } else if let Some(asked) = asked {
        return Err(DataError::NoSuchSplit { path: path.to_owned(), split: asked.to_owned(), found: Vec::new() });
    } else {
        (None, "x".to_owned(), "y".to_owned())
    };

    let pictures = npz.array(&x, options.max_memory_bytes).map_err(malformed)?;
    let numbers = npz.array(&y, options.max_memory_bytes).map_err(malformed)?;
    let is_float = match pictures.dtype() {
        NpyType::U8 => false,
        NpyType::F32 => true,
        other => {
            let reason = format!("array '{x}' is of type '{}'; save it as uint8 or float32", other.descr());
            return Err(malformed(reason));
        }
    };
    let (layout, [count, height, width, channels]) = picture_dims(pictures.shape(), options.array_layout)
        .map_err(|reason| malformed(format!("array '{x}': {reason}")))?;
    check_sides(path, [count, height, width])?;
    let numbers = integers(&numbers).map_err(|reason| malformed(format!("array '{y}': {reason}")))?;
    if numbers.len() != count {
        return Err(malformed(format!("{} labels in '{y}' for {count} pictures in '{x}'", numbers.len())));
    }
    let row_bytes = (height * width * channels * if is_float { 4 } else { 1 }) as u64;
    let (items, classes) = label_rows(path, split.as_deref(), numbers, row_bytes, labels)?;
    let (bytes, start) = pictures.into_bytes();
    Ok(Loaded { array: Array { bytes, start, is_float, layout, height, width, channels }, items, classes, split })
}

/// Layout and `[count, height, width, channels]` of an array of pictures.
fn picture_dims(shape: &[usize], layout: Option<ArrayLayout>) -> Result<(ArrayLayout, [usize; 4]), String> {
    let is_channels = |dim: usize| dim == 1 || dim == 3;
    match (shape, layout) {
        (&[n, h, w], _) => Ok((ArrayLayout::Nhwc, [n, h, w, 1])),
        (&[n, h, w, c], Some(ArrayLayout::Nhwc) | None) if is_channels(c) => Ok((ArrayLayout::Nhwc, [n, h, w, c])),
        (&[n, c, h, w], Some(ArrayLayout::Nchw) | None) if is_channels(c) => Ok((ArrayLayout::Nchw, [n, h, w, c])),
        _ => Err(format!(
            "shape {shape:?} is not [n, height, width], [n, height, width, 1 or 3] or [n, 1 or 3, height, width]"
        )),
    }
}

fn check_sides(path: &Path, [count, height, width]: [usize; 3]) -> Result<(), DataError> {
    if count == 0 {
        return Err(DataError::NoPictures { path: path.to_owned() });
    }
    let max = crate::pixels::MAX_SIDE as usize;
    if !(1..=max).contains(&height) || !(1..=max).contains(&width) {
        let reason = format!("pictures of {height}x{width} pixels; each side must be 1 to {max}");
        return Err(DataError::malformed(path, reason));
    }
    Ok(())
}

/// Labels as integers: shape `[n]` or `[n, 1]`, any integer type.
fn integers(array: &NpyArray) -> Result<Vec<i64>, String> {
    if !matches!(array.shape(), [_] | [_, 1]) {
        return Err(format!("shape {:?}: labels are one integer per picture, shape [n]", array.shape()));
    }
    fn each<const N: usize>(values: &[u8], to: impl Fn([u8; N]) -> i64) -> Vec<i64> {
        values.as_chunks().0.iter().map(|bytes| to(*bytes)).collect()
    }
    let values = array.values();
    Ok(match array.dtype() {
        NpyType::U8 => each(values, |b| i64::from(u8::from_le_bytes(b))),
        NpyType::I8 => each(values, |b| i64::from(i8::from_le_bytes(b))),
        NpyType::U16 => each(values, |b| i64::from(u16::from_le_bytes(b))),
        NpyType::I16 => each(values, |b| i64::from(i16::from_le_bytes(b))),
        NpyType::U32 => each(values, |b| i64::from(u32::from_le_bytes(b))),
        NpyType::I32 => each(values, |b| i64::from(i32::from_le_bytes(b))),
        // Beyond i64 is out of any range of classes.
        NpyType::U64 => each(values, |b| i64::try_from(u64::from_le_bytes(b)).unwrap_or(i64::MAX)),
        NpyType::I64 => each(values, i64::from_le_bytes),
        NpyType::F32 | NpyType::F64 => {
            return Err(format!("type '{}': labels must be integers", array.dtype().descr()));
        }
    })
}

/// Items by class, then by row, and the classes' names.
fn label_rows(
    path: &Path,
    split: Option<&str>,
    numbers: Vec<i64>,
    row_bytes: u64,
    labels: Option<Labels>,
) -> Result<(Vec<Item>, Vec<String>), DataError> {
    let names = labels.map(Labels::into_names);
    let max_classes = names.as_ref().map_or(MAX_NUMBERED as usize, Vec::len);
    let digits = numbers.len().saturating_sub(1).max(1).ilog10() as usize + 1;
    let prefix = split.map(|split| format!("{split}/")).unwrap_or_default();
    let mut items = Vec::with_capacity(numbers.len());
    for (row, number) in numbers.into_iter().enumerate() {
        let label = u32::try_from(number).ok().filter(|label| (*label as usize) < max_classes).ok_or_else(|| {
            DataError::LabelOutOfRange {
                name: format!("{}: {prefix}{row}", path.display()),
                label: number,
                classes: max_classes,
            }
        })?;
        let name = format!("{prefix}{row:0digits$}").into();
        items.push(Item { name, label, bytes: row_bytes, at: Where::Row(row) });
    }
    items.sort_by_key(|item| item.label);
    let names = names.unwrap_or_else(|| numbered(&items));
    Ok((items, names))
}
