//! A labelled picture set: opened once, then read at random.
//!
//! [`DataSet`] is a list of items (name, label, where) over one source. Files and archive members are read when they
//! are asked for; arrays and IDX files are held in memory. A subset shares its set's source.

use std::fmt;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::apply::apply;
use crate::arrays::{self, Array};
use crate::folder::Listing;
use crate::labels::Labels;
use crate::{DataError, Pixels, Preprocess, idx, tar_index};

/// Largest picture file that is read.
const MAX_PICTURE_BYTES: u64 = 1 << 28;

/// How to open a set.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// A file of class names, one per line; a class's index is its line number, from 0.
    pub labels: Option<PathBuf>,
    /// Which split is taken where the set has some and the caller names none.
    pub preferred_split: PreferredSplit,
    /// Where the channels of a float or uint8 array lie; found from its shape when absent.
    pub array_layout: Option<ArrayLayout>,
    /// The number of classes that the model tells apart: a label beyond is an error.
    pub max_classes: Option<usize>,
    /// Most memory for an array or IDX set, in bytes.
    pub max_memory_bytes: u64,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            labels: None,
            preferred_split: PreferredSplit::Test,
            array_layout: None,
            max_classes: None,
            max_memory_bytes: 4 << 30,
        }
    }
}

/// The split that is taken when none is named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PreferredSplit {
    /// `test`, or what else it may be called: `t10k`, `val`, `validation`, `valid`, `eval`.
    #[default]
    Test,
    /// `train` or `training`: for calibration.
    Train,
}

impl PreferredSplit {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Test => "test",
            Self::Train => "train",
        }
    }
}

/// Where the channels of an array lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArrayLayout {
    /// `[n, channels, height, width]`.
    Nchw,
    /// `[n, height, width, channels]`.
    Nhwc,
}

/// Which pictures of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subset {
    /// All of them.
    All,
    /// The first so many, in the set's order: of the first classes.
    First(usize),
    /// Every so manieth, beginning with the first.
    Every(usize),
    /// So many, spread evenly over the set, and so over the classes.
    Spread(usize),
    /// So many, drawn without replacement, in the set's order. The draw depends on the seed and the set's length only.
    Random {
        /// How many.
        count: usize,
        /// Of the draw.
        seed: u64,
    },
}

/// Where an item's picture lies.
#[derive(Clone, Debug)]
pub(crate) enum Where {
    /// A file.
    File(PathBuf),
    /// An offset in the archive.
    Span(u64),
    /// A row of the array.
    Row(usize),
}

/// One labelled picture.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) name: Box<str>,
    pub(crate) label: u32,
    pub(crate) bytes: u64,
    pub(crate) at: Where,
}

/// What items are read from.
enum Source {
    Files,
    Archive { path: PathBuf, file: Mutex<File> },
    Array(Array),
}

/// A labelled picture set, in a fixed order. Cheap to clone but for the list of its items.
#[derive(Clone)]
pub struct DataSet {
    path: PathBuf,
    split: Option<String>,
    source: Arc<Source>,
    classes: Arc<[String]>,
    items: Vec<Item>,
}

/// A SHA-256 hash that identifies a set, to notice that another one is used. Prints as 64 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The hash.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl DataSet {
    /// Opens `PATH` or `PATH:SPLIT`: a folder of pictures or a tar archive of one (`SPLIT/CLASS/NAME.jpg`,
    /// `CLASS/NAME.png` or `NAME_LABEL.jpg`), an `.npz` with `x` and `y` (or `x_SPLIT` and `y_SPLIT`), or a folder of
    /// IDX files. A class's index is the position of its folder among the sorted ones, unless there is a labels file.
    ///
    /// # Errors
    /// [`DataError`] naming the file and what to do.
    pub fn open(spec: &str, options: &OpenOptions) -> Result<Self, DataError> {
        let (path, split) = split_spec(spec)?;
        let labels = options.labels.as_deref().map(Labels::read).transpose()?;
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_ascii_lowercase();
        let set = if path.is_dir() {
            let pairs = idx::find_pairs(&path);
            if pairs.is_empty() {
                Self::of_listing(Listing::of_folder(&path, split)?, Source::Files, split, labels, options)?
            } else {
                let loaded = arrays::open_idx(&path, &pairs, split, labels, options)?;
                Self::of_array(path, loaded)
            }
        } else {
            match ending.as_str() {
                "tar" => {
                    let (listing, file) = tar_index::list(&path)?;
                    let source = Source::Archive { path: path.clone(), file: Mutex::new(file) };
                    Self::of_listing(listing, source, split, labels, options)?
                }
                "npz" => {
                    let loaded = arrays::open_npz(&path, split, labels, options)?;
                    Self::of_array(path, loaded)
                }
                _ => return Err(unknown_format(path, &ending)),
            }
        };
        set.check_labels(options)?;
        Ok(set)
    }

    fn of_listing(
        listing: Listing,
        source: Source,
        split: Option<&str>,
        labels: Option<Labels>,
        options: &OpenOptions,
    ) -> Result<Self, DataError> {
        let path = listing.root.clone();
        let organised = listing.organise(split, labels, options)?;
        Ok(Self {
            path,
            split: organised.split,
            source: Arc::new(source),
            classes: organised.classes.into(),
            items: organised.items,
        })
    }

    fn of_array(path: PathBuf, loaded: arrays::Loaded) -> Self {
        Self {
            path,
            split: loaded.split,
            source: Arc::new(Source::Array(loaded.array)),
            classes: loaded.classes.into(),
            items: loaded.items,
        }
    }

    fn check_labels(&self, options: &OpenOptions) -> Result<(), DataError> {
        let classes = options.max_classes.unwrap_or(usize::MAX).min(self.classes.len());
        match self.items.iter().find(|item| item.label as usize >= classes) {
            Some(item) => {
                Err(DataError::LabelOutOfRange { name: self.shown(item), label: i64::from(item.label), classes })
            }
            None => Ok(()),
        }
    }

    /// The file or folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The split that was taken, where the set has some.
    pub fn split(&self) -> Option<&str> {
        self.split.as_deref()
    }

    /// The number of pictures, at least 1.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there is no picture; only a subset can be empty.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// The number of classes: of the labels file's lines or the class folders, else the largest label and one.
    pub fn classes(&self) -> usize {
        self.classes.len()
    }

    /// A class's name, or its number where it has none.
    pub fn class_name(&self, class: u32) -> Option<&str> {
        self.classes.get(class as usize).map(String::as_str)
    }

    /// The class of picture `i`, less than [`DataSet::classes`].
    ///
    /// # Panics
    /// When `i` is not less than [`DataSet::len`].
    pub fn label(&self, i: usize) -> u32 {
        self.items[i].label
    }

    /// What picture `i` is called wherever the set lies, such as `test/cat/0007.jpg` or `t10k/00042`. No other picture of
    /// the set has this name.
    ///
    /// # Panics
    /// When `i` is not less than [`DataSet::len`].
    pub fn name(&self, i: usize) -> &str {
        &self.items[i].name
    }

    /// A number made of picture `i`'s name, the same in every subset and order: the first eight bytes of the name's
    /// SHA-256, little-endian. It keys random draws.
    ///
    /// # Panics
    /// When `i` is not less than [`DataSet::len`].
    pub fn id(&self, i: usize) -> u64 {
        let hash = Sha256::digest(self.items[i].name.as_bytes());
        hash.iter().take(8).rev().fold(0, |id, byte| id << 8 | u64::from(*byte))
    }

    /// Picture `i` as it is stored, before preprocessing.
    ///
    /// # Errors
    /// [`DataError::NoSuchPicture`]; [`DataError::Io`] and [`DataError::BadPicture`] naming the file.
    pub fn pixels(&self, i: usize) -> Result<Pixels, DataError> {
        let item = self.items.get(i).ok_or(DataError::NoSuchPicture { index: i, len: self.items.len() })?;
        match (&*self.source, &item.at) {
            (Source::Array(array), Where::Row(row)) => array.pixels(*row).ok_or_else(|| self.lost(item)),
            (Source::Archive { path, file }, Where::Span(offset)) => {
                let mut bytes = vec![0; self.picture_bytes(item, item.bytes)?];
                {
                    let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                    file.seek(SeekFrom::Start(*offset))
                        .and_then(|_| file.read_exact(&mut bytes))
                        .map_err(DataError::io(path))?;
                }
                Pixels::decode(&self.shown(item), &bytes)
            }
            (_, Where::File(path)) => {
                let found = fs::metadata(path).map_err(DataError::io(path))?.len();
                self.picture_bytes(item, found)?;
                let mut bytes = Vec::new();
                let file = File::open(path).map_err(DataError::io(path))?;
                file.take(MAX_PICTURE_BYTES).read_to_end(&mut bytes).map_err(DataError::io(path))?;
                Pixels::decode(&self.shown(item), &bytes)
            }
            _ => Err(self.lost(item)),
        }
    }

    /// Writes the preprocessed picture `i` to `out`.
    ///
    /// - `out`: [`Preprocess::len`] values, channels first or last as the preprocessing says.
    ///
    /// # Errors
    /// As [`DataSet::pixels`]; [`DataError::WrongSize`] and [`DataError::WrongBuffer`].
    pub fn load(&self, i: usize, how: &Preprocess, out: &mut [f32]) -> Result<(), DataError> {
        let pixels = self.pixels(i)?;
        apply(self.items.get(i).map_or("", |item| &item.name), &pixels, how, out)
    }

    /// The preprocessed pictures `indices`, one after the other: a range, or any list. Pictures are decoded on all of
    /// rayon's threads; the result does not depend on their number.
    ///
    /// # Errors
    /// That of the first picture in the order asked for, as [`DataSet::load`].
    pub fn batch(&self, indices: impl IntoIterator<Item = usize>, how: &Preprocess) -> Result<Vec<f32>, DataError> {
        how.check()?;
        let indices: Vec<usize> = indices.into_iter().collect();
        let mut values = vec![0.0; indices.len() * how.len()];
        let failed = values
            .par_chunks_exact_mut(how.len())
            .zip(&indices)
            .enumerate()
            .filter_map(|(position, (out, i))| Some((position, self.load(*i, how, out).err()?)))
            .min_by_key(|(position, _)| *position);
        match failed {
            Some((_, error)) => Err(error),
            None => Ok(values),
        }
    }

    /// The pictures that `which` picks, in the set's order.
    pub fn subset(&self, which: Subset) -> Self {
        let len = self.items.len();
        let picked: Vec<usize> = match which {
            Subset::All => (0..len).collect(),
            Subset::First(count) => (0..len.min(count)).collect(),
            Subset::Every(step) => (0..len).step_by(step.max(1)).collect(),
            Subset::Spread(count) => {
                let count = len.min(count);
                // i * len / count without overflow.
                (0..count).map(|i| (i as u128 * len as u128 / count as u128) as usize).collect()
            }
            Subset::Random { count, seed } => draw(len, count, seed),
        };
        let items = picked.into_iter().filter_map(|i| self.items.get(i).cloned()).collect();
        Self { items, ..self.clone_without_items() }
    }

    fn clone_without_items(&self) -> Self {
        Self {
            path: self.path.clone(),
            split: self.split.clone(),
            source: Arc::clone(&self.source),
            classes: Arc::clone(&self.classes),
            items: Vec::new(),
        }
    }

    /// What identifies the set wherever it lies: names, labels and file sizes in order, the class names; and the
    /// pixels too where they are in memory. Two sets of picture files that differ in the content of a file but not in
    /// its length have the same fingerprint.
    pub fn fingerprint(&self) -> Fingerprint {
        let mut hash = Sha256::new();
        let mut text = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        text(b"chipfit data set 1");
        self.classes.iter().for_each(|class| text(class.as_bytes()));
        for item in &self.items {
            text(item.name.as_bytes());
            text(&item.label.to_le_bytes());
            match (&*self.source, &item.at) {
                (Source::Array(array), Where::Row(row)) => {
                    text(array.kind().as_bytes());
                    text(array.row(*row).unwrap_or_default());
                }
                _ => text(&item.bytes.to_le_bytes()),
            }
        }
        Fingerprint(hash.finalize().into())
    }

    /// How a picture is called in messages: with the set's path.
    fn shown(&self, item: &Item) -> String {
        match &item.at {
            Where::File(path) => path.display().to_string(),
            _ => format!("{}: {}", self.path.display(), item.name),
        }
    }

    fn picture_bytes(&self, item: &Item, bytes: u64) -> Result<usize, DataError> {
        usize::try_from(bytes).ok().filter(|_| bytes <= MAX_PICTURE_BYTES).ok_or_else(|| DataError::BadPicture {
            name: self.shown(item),
            reason: format!("{bytes} bytes are more than {MAX_PICTURE_BYTES}"),
        })
    }

    /// An item and a source that do not belong together; cannot happen to a set that was opened.
    fn lost(&self, item: &Item) -> DataError {
        DataError::malformed(&self.path, format!("'{}' is not in the set any more", item.name))
    }
}

/// One line: `cifar10.tar:test, 10000 pictures of 10 classes`.
impl fmt::Display for DataSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some(split) = &self.split {
            write!(f, ":{split}")?;
        }
        write!(f, ", {} pictures of {} classes", self.len(), self.classes())
    }
}

impl fmt::Debug for DataSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DataSet({self})")
    }
}

/// `PATH` or `PATH:SPLIT`, whichever exists.
fn split_spec(spec: &str) -> Result<(PathBuf, Option<&str>), DataError> {
    if Path::new(spec).exists() {
        return Ok((PathBuf::from(spec), None));
    }
    match spec.rsplit_once(':') {
        Some((path, split)) if !split.is_empty() && Path::new(path).exists() => Ok((PathBuf::from(path), Some(split))),
        _ => Err(DataError::NotFound { spec: spec.to_owned() }),
    }
}

fn unknown_format(path: PathBuf, ending: &str) -> DataError {
    let hint = match ending {
        "gz" | "tgz" | "xz" | "zst" | "bz2" => "unpack it once; for IDX files give their folder",
        "zip" => "unpack it and give the folder",
        "npy" => "save pictures and labels together with numpy.savez(x=..., y=...)",
        "jpg" | "jpeg" | "png" => "give its folder",
        "" => "an IDX file is found through its folder",
        _ => "",
    };
    DataError::UnknownFormat { path, hint: hint.to_owned() }
}

/// `count` of `0..len`, without replacement, ascending (Floyd's method).
fn draw(len: usize, count: usize, seed: u64) -> Vec<usize> {
    let count = count.min(len);
    let mut picked = std::collections::BTreeSet::new();
    let mut state = seed;
    for last in len - count..len {
        let candidate = below(&mut state, last as u64 + 1) as usize;
        if !picked.insert(candidate) {
            picked.insert(last);
        }
    }
    picked.into_iter().collect()
}

/// A number below `bound`, every one equally likely.
fn below(state: &mut u64, bound: u64) -> u64 {
    // Lemire's multiplication; draws in the uneven rest are repeated.
    let threshold = bound.wrapping_neg() % bound;
    loop {
        let product = u128::from(splitmix(state)) * u128::from(bound);
        if product as u64 >= threshold {
            return (product >> 64) as u64;
        }
    }
}

/// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
