//! Finding ONNX Runtime's library on this machine.
//!
//! Order: the path the caller gives; `ORT_DYLIB_PATH`; the Python executable the caller gives or
//! `CHIPFIT_PYTHON`; the `python3` of the search path. A place that was named and holds no library is an error,
//! never passed over in silence. Nothing is downloaded and nothing of ONNX Runtime is run here: Python is asked
//! only where the package lies.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::EngineError;
use super::onnxruntime::ENGINE;

/// Where to look for ONNX Runtime.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// The library, or a folder that holds it.
    pub library: Option<PathBuf>,
    /// The same, from `ORT_DYLIB_PATH`.
    pub environment_library: Option<PathBuf>,
    /// A Python executable whose `onnxruntime` package is to be used.
    pub python: Option<PathBuf>,
    /// Python executables to try in the end, without complaint.
    pub fallback_pythons: Vec<PathBuf>,
}

impl Places {
    /// The places that the environment names: `ORT_DYLIB_PATH`, `CHIPFIT_PYTHON`, and `python3`.
    pub fn from_environment() -> Self {
        let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        Self {
            library: None,
            environment_library: set("ORT_DYLIB_PATH"),
            python: set("CHIPFIT_PYTHON"),
            fallback_pythons: ["python3", "python"].map(PathBuf::from).to_vec(),
        }
    }

    /// The library's absolute path.
    ///
    /// # Errors
    /// [`EngineError::NotFound`], with every place that was tried.
    pub fn find(&self) -> Result<PathBuf, EngineError> {
        if let Some(path) = &self.library {
            return library_at(path).map_err(|why| not_found(&why));
        }
        if let Some(path) = &self.environment_library {
            return library_at(path).map_err(|why| not_found(&format!("ORT_DYLIB_PATH: {why}")));
        }
        if let Some(python) = &self.python {
            return library_of_python(python).map_err(|why| not_found(&why));
        }
        let mut tried = Vec::new();
        for python in &self.fallback_pythons {
            match library_of_python(python) {
                Ok(path) => return Ok(path),
                Err(why) => tried.push(why),
            }
        }
        not_found_result(&tried)
    }
}

fn not_found_result(tried: &[String]) -> Result<PathBuf, EngineError> {
    Err(not_found(&if tried.is_empty() { "no place to look was given".to_owned() } else { tried.join("; ") }))
}

/// [`EngineError::NotFound`] with the advice that fits all cases.
pub(super) fn not_found(why: &str) -> EngineError {
    EngineError::NotFound {
        engine: ENGINE.to_owned(),
        why: why.to_owned(),
        hint: "install the Python package onnxruntime (1.19 or newer: older ones do not hold the library) and name \
               that Python with CHIPFIT_PYTHON, or name a library of 1.17 or newer (libonnxruntime.so, \
               libonnxruntime.dylib, onnxruntime.dll) with ORT_DYLIB_PATH"
            .to_owned(),
    }
}

/// The library at `path`: `path` itself, or in it, in its `lib`, `capi` or `onnxruntime/capi`.
fn library_at(path: &Path) -> Result<PathBuf, String> {
    let meta = fs::metadata(path).map_err(|e| format!("'{}': {e}", path.display()))?;
    let found = if meta.is_file() {
        Some(path.to_owned())
    } else {
        ["", "lib", "capi", "onnxruntime/capi"].iter().find_map(|below| library_in(&path.join(below)))
    };
    let found = found.ok_or_else(|| format!("'{}' holds no ONNX Runtime library", path.display()))?;
    found.canonicalize().map_err(|e| format!("'{}': {e}", found.display()))
}

/// The library in `folder`; of several the one without a version, else the highest version.
fn library_in(folder: &Path) -> Option<PathBuf> {
    let mut names: Vec<String> =
        fs::read_dir(folder).ok()?.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect();
    names.retain(|name| is_library_name(name));
    names.sort_by_key(|name| (name.len() == library_stem(name).len(), version_key(name)));
    names.pop().map(|name| folder.join(name))
}

const NAMES: [&str; 3] = ["libonnxruntime.so", "libonnxruntime.dylib", "onnxruntime.dll"];

fn is_library_name(name: &str) -> bool {
    let versioned_dylib = name.strip_prefix("libonnxruntime.").and_then(|rest| rest.strip_suffix(".dylib"));
    NAMES.contains(&name)
        || name.strip_prefix("libonnxruntime.so.").is_some_and(is_version)
        || versioned_dylib.is_some_and(is_version)
}

fn library_stem(name: &str) -> &str {
    NAMES.iter().copied().find(|stem| *stem == name).unwrap_or_default()
}

fn is_version(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || b == b'.')
}

fn version_key(name: &str) -> Vec<u64> {
    name.split('.').filter_map(|part| part.parse().ok()).collect()
}

/// Prints the folder of the package without importing it. The empty entry of the path, the working directory,
/// is dropped, so that a folder that happens to be called onnxruntime is not taken for it.
const SCRIPT: &str = "import sys\n\
    sys.path = [p for p in sys.path if p]\n\
    import importlib.util\n\
    s = importlib.util.find_spec('onnxruntime')\n\
    print('\\n'.join(s.submodule_search_locations) if s and s.submodule_search_locations else '')";

fn library_of_python(python: &Path) -> Result<PathBuf, String> {
    let shown = python.display();
    let output = Command::new(python)
        .arg("-c")
        .arg(SCRIPT)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("cannot run '{shown}': {e}"))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        return Err(format!("'{shown}': {}", words.lines().last().unwrap_or("failed without a word")));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let folder = text.lines().map(str::trim).find(|line| !line.is_empty());
    let folder = folder.ok_or_else(|| format!("'{shown}' has no package onnxruntime"))?;
    library_at(Path::new(&OsString::from(folder)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder_with(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"").unwrap();
        }
        folder
    }

    fn name_of(path: &Path) -> &str {
        path.file_name().unwrap().to_str().unwrap()
    }

    #[test]
    fn a_folder_is_searched_and_the_highest_version_wins() {
        let cases: &[(&[&str], Option<&str>)] = &[
            (&["capi/libonnxruntime.so.1.9.0", "capi/libonnxruntime.so.1.32.0"], Some("libonnxruntime.so.1.32.0")),
            (&["libonnxruntime.so", "libonnxruntime.so.1.32.0"], Some("libonnxruntime.so")),
            (&["lib/libonnxruntime.1.20.1.dylib"], Some("libonnxruntime.1.20.1.dylib")),
            (&["onnxruntime/capi/onnxruntime.dll"], Some("onnxruntime.dll")),
            (&["libonnxruntime_providers_shared.so", "libonnxruntime.so.txt"], None),
        ];
        for (names, want) in cases {
            let folder = folder_with(names);
            let found = library_at(folder.path());
            assert_eq!(found.as_deref().ok().map(name_of), *want, "{names:?}");
        }
    }

    #[test]
    fn a_named_place_without_a_library_is_an_error_that_names_it() {
        let empty = folder_with(&[]);
        let full = folder_with(&["libonnxruntime.so"]);
        let full = Some(full.path().to_owned());
        let missing = Some(empty.path().join("nowhere"));
        let places = Places { library: missing.clone(), environment_library: full.clone(), ..Places::default() };
        let text = places.find().unwrap_err().to_string();
        assert!(text.contains("nowhere") && text.contains("CHIPFIT_PYTHON"), "{text}");
        let places = Places { environment_library: missing.clone(), ..Places::default() };
        assert!(places.find().unwrap_err().to_string().contains("ORT_DYLIB_PATH: "));
        let places = Places { python: missing, ..Places::default() };
        assert!(matches!(places.find(), Err(EngineError::NotFound { .. })));
        let places = Places { library: full, ..Places::default() };
        assert_eq!(name_of(&places.find().unwrap()), "libonnxruntime.so");
    }
}
