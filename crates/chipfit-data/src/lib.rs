//! Labelled picture sets as model inputs: folders, tar archives, `.npz` and IDX files, and their preprocessing.
//!
//! A [`DataSet`] is an ordered list of pictures, each with a name that stays the same wherever the set lies and a
//! label; a [`Preprocess`] turns a picture into the float values of one model input. [`NpzWriter`] writes tensors that
//! numpy loads.
//!
//! Promises: the order is by class, then by name, whatever the file system says; [`DataSet::batch`] gives the same
//! values for any number of threads; nothing in a file is believed before it is checked, no size from a file reserves
//! memory that the file's own length does not justify, and hostile bytes give a [`DataError`], never a panic.
//!
//! Read [`set`](DataSet) first, then `folder` (how a listing becomes classes), `idx`, `npy` and `npz` (the formats), and
//! [`Preprocess`] with `apply` (from pixels to values).
#![forbid(unsafe_code)]

mod apply;
mod arrays;
mod error;
mod folder;
mod idx;
mod labels;
mod npy;
mod npz;
mod npz_writer;
mod pixels;
mod preprocess;
mod set;
mod tar_index;

pub use error::{DataError, PreprocessError};
pub use idx::{Idx, parse_idx};
pub use npy::{NpyArray, NpyType, parse_npy};
pub use npz::Npz;
pub use npz_writer::{ArrayData, NpzWriter};
pub use pixels::{PixelData, Pixels};
pub use preprocess::{Colour, Filter, Layout, Overrides, Preprocess, Resize, preprocess_candidates, preprocess_path};
pub use set::{ArrayLayout, DataSet, Fingerprint, OpenOptions, PreferredSplit, Subset};
