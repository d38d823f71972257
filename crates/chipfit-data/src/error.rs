//! Why a data set, a picture or a preprocessing file is refused: each message names the file and what to do.

use std::path::PathBuf;

/// Why data cannot be used. Nothing is half opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The file system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// No such file or folder, with or without a split after the last colon.
    #[error("{spec}: no such file or folder; --data takes PATH or PATH:SPLIT")]
    NotFound {
        /// What was asked for.
        spec: String,
    },
    /// A file whose ending says no known format.
    #[error(
        "{path}: not a data set; known are folders of pictures, .tar, .npz and folders of IDX files{hint}",
        hint = hint_text(.hint)
    )]
    UnknownFormat {
        /// The file or folder.
        path: PathBuf,
        /// What to do, if that is known.
        hint: String,
    },
    /// Nothing to read.
    #[error("{path}: no pictures; expected SPLIT/CLASS/NAME.jpg or .png, CLASS/NAME.jpg, or NAME_LABEL.jpg")]
    NoPictures {
        /// The file or folder.
        path: PathBuf,
    },
    /// A class folder without pictures.
    #[error("{path}: the class folder '{class}' has no pictures; fill it or remove it")]
    EmptyClass {
        /// The set.
        path: PathBuf,
        /// The folder, from the set's root.
        class: String,
    },
    /// Pictures at different depths, so that the class of some is unknown.
    #[error("{path}: '{one}' and '{other}' lie at different depths; use CLASS/NAME or SPLIT/CLASS/NAME for all")]
    MixedDepth {
        /// The set.
        path: PathBuf,
        /// A picture.
        one: String,
        /// A picture at another depth.
        other: String,
    },
    /// The split is not in the set, or the set has none.
    #[error("{path}: no split '{split}'; {there}", there = splits_text(.found))]
    NoSuchSplit {
        /// The set.
        path: PathBuf,
        /// What was asked for.
        split: String,
        /// The splits that are there.
        found: Vec<String>,
    },
    /// A picture in a format that is not read.
    #[error("{name}: pictures of this format are not read; convert it to JPEG or PNG")]
    UnsupportedPicture {
        /// The file.
        name: String,
    },
    /// A picture that cannot be decoded.
    #[error("{name}: not a readable JPEG or PNG picture: {reason}; replace or remove it")]
    BadPicture {
        /// The picture.
        name: String,
        /// What the decoder said.
        reason: String,
    },
    /// A file that breaks its format's rules.
    #[error("{path}: {reason}")]
    Malformed {
        /// The file, and the member where there is one.
        path: PathBuf,
        /// Which rule, with the numbers, and what to do.
        reason: String,
    },
    /// The labels file cannot be used.
    #[error("{path}: line {line}: {reason}")]
    BadLabels {
        /// The labels file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A class folder that the labels file does not list.
    #[error("{path}: the class folder '{class}' is not in the labels file {labels}; add a line")]
    ClassNotListed {
        /// The set.
        path: PathBuf,
        /// The folder's name.
        class: String,
        /// The labels file.
        labels: PathBuf,
    },
    /// A label that no class has.
    #[error("{name}: label {label} is outside 0..{classes}; give the labels file or the model that fits the data")]
    LabelOutOfRange {
        /// The picture.
        name: String,
        /// Its label.
        label: i64,
        /// The number of classes.
        classes: usize,
    },
    /// An index past the end.
    #[error("picture {index} was asked for, but the set has {len}")]
    NoSuchPicture {
        /// What was asked for.
        index: usize,
        /// The number of pictures.
        len: usize,
    },
    /// A picture of another size, where the preprocessing wants the exact one.
    #[error(
        "{name}: the picture is {found_height}x{found_width}, the input takes {height}x{width}; \
         set resize = \"stretch\" or \"crop\" in the preprocessing file"
    )]
    WrongSize {
        /// The picture.
        name: String,
        /// Its height in pixels.
        found_height: usize,
        /// Its width in pixels.
        found_width: usize,
        /// The input's height.
        height: usize,
        /// The input's width.
        width: usize,
    },
    /// The caller's buffer does not hold one picture.
    #[error("{name}: the buffer has {found} values, one preprocessed picture has {wanted}")]
    WrongBuffer {
        /// The picture.
        name: String,
        /// The buffer's length.
        found: usize,
        /// What the preprocessing gives.
        wanted: usize,
    },
    /// The preprocessing is wrong.
    #[error(transparent)]
    Preprocess(#[from] PreprocessError),
}

/// Why a preprocessing is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PreprocessError {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not TOML, or has an unknown or missing field.
    #[error("{path}: {reason}")]
    Toml {
        /// The file.
        path: PathBuf,
        /// Line, column and what is wrong.
        reason: String,
    },
    /// A field has a value that makes no sense.
    #[error("preprocessing field `{field}`: {reason}")]
    Field {
        /// The field's name.
        field: &'static str,
        /// What is wrong, with the value.
        reason: String,
    },
    /// No preprocessing follows from the model's input.
    #[error(
        "the model's input {shape} does not say how a picture fits it; \
         write a preprocessing file beside the model or give the size and layout"
    )]
    Input {
        /// The input's shape, `?` where it is dynamic.
        shape: String,
    },
}

impl DataError {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    pub(crate) fn malformed(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Self::Malformed { path: path.into(), reason: reason.into() }
    }
}

fn hint_text(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("; {text}") }
}

fn splits_text(found: &[String]) -> String {
    if found.is_empty() {
        "the set has no splits, leave it out".to_owned()
    } else {
        format!("the set has: {}", found.join(", "))
    }
}
