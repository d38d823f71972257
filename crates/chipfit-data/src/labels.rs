//! The labels file: one class name per line, its line number (from 0) is the class's index.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::DataError;

/// Largest labels file that is read.
const MAX_BYTES: u64 = 1 << 24;

/// The classes that a labels file lists.
pub(crate) struct Labels {
    path: PathBuf,
    names: Vec<String>,
    index: BTreeMap<String, u32>,
}

impl Labels {
    pub(crate) fn read(path: &Path) -> Result<Self, DataError> {
        let bytes = fs::metadata(path).map_err(DataError::io(path))?.len();
        if bytes > MAX_BYTES {
            return Err(DataError::malformed(path, format!("{bytes} bytes is too much for a list of class names")));
        }
        let text = fs::read_to_string(path).map_err(DataError::io(path))?;
        let bad = |line: usize, reason: &str| DataError::BadLabels {
            path: path.to_owned(),
            line: line + 1,
            reason: reason.to_owned(),
        };
        let mut names = Vec::new();
        let mut index = BTreeMap::new();
        for (position, line) in text.lines().enumerate() {
            let name = line.trim();
            if name.is_empty() {
                return Err(bad(position, "a class name is missing; the line number is the class index"));
            }
            let number = u32::try_from(position).map_err(|_| bad(position, "too many classes"))?;
            if index.insert(name.to_owned(), number).is_some() {
                return Err(bad(position, &format!("the class '{name}' is listed twice")));
            }
            names.push(name.to_owned());
        }
        if names.is_empty() {
            return Err(bad(0, "no class names; write one per line"));
        }
        Ok(Self { path: path.to_owned(), names, index })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn index(&self, name: &str) -> Option<u32> {
        self.index.get(name).copied()
    }

    pub(crate) fn into_names(self) -> Vec<String> {
        self.names
    }
}
