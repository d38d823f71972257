//! How a listing of files becomes pictures with classes, whether it comes from a folder or from a tar archive.
//!
//! | every picture lies at | class | split |
//! |---|---|---|
//! | `SPLIT/CLASS/NAME` | the folder, sorted; or its line in the labels file | the first folder |
//! | `CLASS/NAME` | the same | none |
//! | `NAME` | the number after the last `_` of the name: `imagenet_07_281.jpg` is class 281 | the name up to the first `_` |
//!
//! One more folder around all of it is ignored, unless it is named like a split. Only `.jpg`, `.jpeg` and `.png` are
//! pictures; another kind of picture is an error, other files and hidden ones are ignored.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::DataError;
use crate::labels::Labels;
use crate::set::{Item, OpenOptions, Where};

/// Deepest folder that is looked into: one around SPLIT/CLASS/NAME, and one more so that too deep ones are noticed.
const MAX_DEPTH: usize = 5;
/// Endings of pictures that are read.
const PICTURES: [&str; 3] = ["jpg", "jpeg", "png"];
/// Endings of pictures that are not.
const OTHER_PICTURES: [&str; 12] =
    ["bmp", "gif", "webp", "tif", "tiff", "ppm", "pgm", "pnm", "jp2", "avif", "heic", "jxl"];
/// Names of splits, each group for the same thing.
const SPLITS: [&[&str]; 2] = [&["train", "training"], &["test", "t10k", "val", "validation", "valid", "eval"]];

/// Files and folders of a set.
pub(crate) struct Listing {
    /// The folder or archive.
    pub(crate) root: PathBuf,
    pub(crate) files: Vec<Found>,
    /// Paths from the root, `/` between parts.
    pub(crate) folders: BTreeSet<String>,
}

/// One file.
pub(crate) struct Found {
    /// From the root, `/` between parts.
    pub(crate) path: String,
    pub(crate) bytes: u64,
    pub(crate) at: Where,
}

/// What is in a set.
pub(crate) struct Organised {
    pub(crate) items: Vec<Item>,
    pub(crate) classes: Vec<String>,
    pub(crate) split: Option<String>,
}

/// The names that mean the same split, the given one first.
pub(crate) fn aliases(split: &str) -> Vec<&str> {
    let group = SPLITS.iter().find(|group| group.contains(&split)).copied().unwrap_or_default();
    std::iter::once(split).chain(group.iter().copied().filter(|name| *name != split)).collect()
}

/// Which of the splits that are there is meant: the one asked for or one of its other names; without a wish the one
/// that is preferred.
pub(crate) fn choose_split(
    path: &Path,
    found: &BTreeSet<&str>,
    asked: Option<&str>,
    options: &OpenOptions,
) -> Result<String, DataError> {
    let wanted = asked.unwrap_or(options.preferred_split.name());
    let chosen = aliases(wanted).into_iter().find(|name| found.contains(name));
    chosen.map(str::to_owned).ok_or_else(|| DataError::NoSuchSplit {
        path: path.to_owned(),
        split: wanted.to_owned(),
        found: found.iter().map(|name| (*name).to_owned()).collect(),
    })
}

impl Listing {
    /// Lists a folder; where `split` names one of its folders, only that one.
    pub(crate) fn of_folder(root: &Path, split: Option<&str>) -> Result<Self, DataError> {
        let mut listing = Self { root: root.to_owned(), files: Vec::new(), folders: BTreeSet::new() };
        let only = split.filter(|split| is_plain(split) && root.join(split).is_dir());
        match only {
            Some(split) => {
                listing.folders.insert(split.to_owned());
                listing.walk(&root.join(split), split, 1)?;
            }
            None => listing.walk(root, "", 0)?,
        }
        Ok(listing)
    }

    fn walk(&mut self, folder: &Path, prefix: &str, depth: usize) -> Result<(), DataError> {
        if depth >= MAX_DEPTH {
            return Ok(());
        }
        for entry in fs::read_dir(folder).map_err(DataError::io(folder))? {
            let path = entry.map_err(DataError::io(folder))?.path();
            let name = path.file_name().unwrap_or_default();
            let Some(name) = name.to_str() else {
                return Err(DataError::malformed(&path, "the file name is not UTF-8; rename it"));
            };
            if is_hidden(name) {
                continue;
            }
            let inside = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") };
            // Follows links: sets are often made of them.
            let metadata = fs::metadata(&path).map_err(DataError::io(&path))?;
            if metadata.is_dir() {
                self.walk(&path, &inside, depth + 1)?;
                self.folders.insert(inside);
            } else if metadata.is_file() {
                self.files.push(Found { path: inside, bytes: metadata.len(), at: Where::File(path) });
            }
        }
        Ok(())
    }

    /// Finds split and classes.
    pub(crate) fn organise(
        self,
        asked: Option<&str>,
        labels: Option<Labels>,
        options: &OpenOptions,
    ) -> Result<Organised, DataError> {
        let Self { root, files, mut folders } = self;
        let mut pictures = Vec::new();
        for file in files {
            if is_picture(&file.path) {
                pictures.push(file);
            } else if has_ending(&file.path, &OTHER_PICTURES) {
                let name = root.join(&file.path).display().to_string();
                return Err(DataError::UnsupportedPicture { name });
            }
        }
        pictures.sort_by(|a, b| a.path.cmp(&b.path));
        let Some(first) = pictures.first() else { return Err(DataError::NoPictures { path: root }) };
        let depth = parts(&first.path);
        if let Some(other) = pictures.iter().find(|picture| parts(&picture.path) != depth) {
            return Err(DataError::MixedDepth { path: root, one: first.path.clone(), other: other.path.clone() });
        }
        let depth = match wrapper(&pictures, depth, asked) {
            Some(wrapper) => {
                let inside = |path: &str| Some(path.strip_prefix(&wrapper)?.strip_prefix('/')?.to_owned());
                for picture in &mut pictures {
                    picture.path = inside(&picture.path).unwrap_or_default();
                }
                folders = folders.iter().filter_map(|folder| inside(folder)).collect();
                depth - 1
            }
            None => depth,
        };
        match depth {
            1 => flat(&root, pictures, asked, labels),
            2 => match asked {
                Some(split) => Err(DataError::NoSuchSplit { path: root, split: split.to_owned(), found: Vec::new() }),
                None => by_class(&root, pictures, &folders, labels, None),
            },
            3 => {
                let found = pictures.iter().filter_map(|picture| picture.path.split('/').next()).collect();
                let split = choose_split(&root, &found, asked, options)?;
                let prefix = format!("{split}/");
                pictures.retain(|picture| picture.path.starts_with(&prefix));
                folders.retain(|folder| folder.starts_with(&prefix));
                by_class(&root, pictures, &folders, labels, Some(split))
            }
            _ => Err(DataError::malformed(&root, "pictures lie too deep; use CLASS/NAME or SPLIT/CLASS/NAME")),
        }
    }
}

/// The one folder around everything, if it is there and no split.
fn wrapper(pictures: &[Found], depth: usize, asked: Option<&str>) -> Option<String> {
    if depth < 3 {
        return None;
    }
    let first = pictures.first()?.path.split('/').next()?;
    let is_split = depth == 3 && (asked == Some(first) || SPLITS.iter().any(|group| group.contains(&first)));
    let is_common = pictures.iter().all(|picture| picture.path.split('/').next() == Some(first));
    (is_common && !is_split).then(|| first.to_owned())
}

/// `[SPLIT/]CLASS/NAME`.
fn by_class(
    root: &Path,
    pictures: Vec<Found>,
    folders: &BTreeSet<String>,
    labels: Option<Labels>,
    split: Option<String>,
) -> Result<Organised, DataError> {
    let class_of = |path: &str| path.rsplit('/').nth(1).unwrap_or_default().to_owned();
    let names: BTreeSet<String> = pictures.iter().map(|picture| class_of(&picture.path)).collect();
    let class_depth = 1 + usize::from(split.is_some());
    for folder in folders.iter().filter(|folder| parts(folder) == class_depth) {
        if !names.contains(folder.rsplit('/').next().unwrap_or_default()) {
            return Err(DataError::EmptyClass { path: root.to_owned(), class: folder.clone() });
        }
    }
    let mut index = BTreeMap::new();
    for (position, name) in names.iter().enumerate() {
        let label = match &labels {
            Some(labels) => labels.index(name).ok_or_else(|| DataError::ClassNotListed {
                path: root.to_owned(),
                class: name.clone(),
                labels: labels.path().to_owned(),
            })?,
            None => u32::try_from(position).unwrap_or(u32::MAX),
        };
        index.insert(name.clone(), label);
    }
    let item = |picture: Found| {
        let label = index.get(&class_of(&picture.path)).copied().unwrap_or_default();
        Item { name: picture.path.into(), label, bytes: picture.bytes, at: picture.at }
    };
    let mut items: Vec<Item> = pictures.into_iter().map(item).collect();
    items.sort_by(|a, b| (a.label, &a.name).cmp(&(b.label, &b.name)));
    let classes = labels.map_or_else(|| names.into_iter().collect(), Labels::into_names);
    Ok(Organised { items, classes, split })
}

/// `NAME_LABEL.jpg`.
fn flat(
    root: &Path,
    mut pictures: Vec<Found>,
    asked: Option<&str>,
    labels: Option<Labels>,
) -> Result<Organised, DataError> {
    let kind_of = |path: &str| path.split('_').next().unwrap_or_default().to_owned();
    if let Some(asked) = asked {
        let found: BTreeSet<String> = pictures.iter().map(|picture| kind_of(&picture.path)).collect();
        if !found.contains(asked) {
            return Err(DataError::NoSuchSplit {
                path: root.to_owned(),
                split: asked.to_owned(),
                found: found.into_iter().collect(),
            });
        }
        pictures.retain(|picture| kind_of(&picture.path) == asked);
    }
    let mut items = Vec::new();
    for picture in pictures {
        let label = picture.path.rsplit_once('.').and_then(|(stem, _)| stem.rsplit_once('_')).map(|(_, label)| label);
        let label = label.filter(|label| label.bytes().all(|byte| byte.is_ascii_digit()));
        let Some(label) = label.and_then(|label| label.parse().ok()) else {
            return Err(DataError::malformed(
                root.join(&picture.path),
                "no class: use CLASS/NAME, or name it NAME_LABEL with a number, as in imagenet_07_281.jpg",
            ));
        };
        items.push(Item { name: picture.path.into(), label, bytes: picture.bytes, at: picture.at });
    }
    items.sort_by(|a, b| (a.label, &a.name).cmp(&(b.label, &b.name)));
    let classes = labels.map_or_else(|| numbered(&items), Labels::into_names);
    Ok(Organised { items, classes, split: asked.map(str::to_owned) })
}

/// Classes that have no names are named by their numbers, up to the largest.
pub(crate) fn numbered(items: &[Item]) -> Vec<String> {
    let count = items.iter().map(|item| item.label).max().map_or(0, |max| u64::from(max) + 1);
    // A stray number as label must not name millions of classes; the check against the model's outputs comes later.
    let count = count.min(MAX_NUMBERED);
    (0..count).map(|number| number.to_string()).collect()
}

/// Most classes without names; the largest public label sets have about 22,000.
pub(crate) const MAX_NUMBERED: u64 = 1 << 20;

fn parts(path: &str) -> usize {
    path.split('/').count()
}

fn is_plain(name: &str) -> bool {
    !name.is_empty() && name != ".." && !is_hidden(name) && !name.contains(['/', '\\'])
}

/// Left out of every listing.
pub(crate) fn is_hidden(name: &str) -> bool {
    name.starts_with('.') || name == "__MACOSX"
}

pub(crate) fn is_picture(path: &str) -> bool {
    has_ending(path, &PICTURES)
}

fn has_ending(path: &str, endings: &[&str]) -> bool {
    path.rsplit_once('.').is_some_and(|(_, own)| endings.iter().any(|ending| own.eq_ignore_ascii_case(ending)))
}
