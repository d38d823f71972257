//! Small files written whole: a temporary file beside the target, flushed, renamed; bounded reading.

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;

use crate::error::AgentError;

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Its owner only: mode 0600.
    Owner,
    /// Everybody: mode 0644.
    Everybody,
}

/// Writes `path` whole, or leaves it as it was.
pub(crate) fn write(path: &Path, bytes: &[u8], access: Access) -> Result<(), AgentError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.part", std::process::id()));
    let part = path.with_file_name(name);
    let result = write_part(&part, bytes, access)
        .and_then(|()| fs::rename(&part, path).map_err(AgentError::file("write", path)));
    if result.is_err() {
        // Nothing is left of a failed attempt; that it cannot be removed either changes nothing.
        let _ = fs::remove_file(&part);
    }
    result
}

fn write_part(part: &Path, bytes: &[u8], access: Access) -> Result<(), AgentError> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(match access {
            Access::Owner => 0o600,
            Access::Everybody => 0o644,
        });
    }
    #[cfg(not(unix))]
    let _ = access;
    let mut file = options.open(part).map_err(AgentError::file("write", part))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(AgentError::file("write", part))
}

/// Makes a folder, and those above it, that only its owner can enter.
pub(crate) fn make_folder(path: &Path) -> Result<(), AgentError> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::DirBuilderExt;
        builder.mode(0o700);
    }
    builder.create(path).map_err(AgentError::file("make the folder", path))
}

/// The bytes of a file of at most `most` bytes.
pub(crate) fn read(path: &Path, most: u64) -> Result<Vec<u8>, AgentError> {
    let file = fs::File::open(path).map_err(AgentError::file("read", path))?;
    let mut bytes = Vec::new();
    file.take(most.saturating_add(1)).read_to_end(&mut bytes).map_err(AgentError::file("read", path))?;
    if bytes.len() as u64 > most {
        let source = std::io::Error::new(std::io::ErrorKind::FileTooLarge, format!("it is larger than {most} bytes"));
        return Err(AgentError::File { what: "read", path: path.to_owned(), source });
    }
    Ok(bytes)
}
