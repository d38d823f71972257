//! Where the pictures of a tar archive lie, found once by going from header to header.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use tar::{Archive, EntryType};

use crate::DataError;
use crate::folder::{Found, Listing, is_hidden, is_picture};
use crate::set::Where;

/// A tar archive ends with two blocks of zeros of this size.
const BLOCK_BYTES: u64 = 512;

/// Lists an archive; every span lies inside it.
pub(crate) fn list(path: &Path) -> Result<(Listing, File), DataError> {
    let malformed = |reason: String| DataError::malformed(path, reason);
    let damaged = |error: std::io::Error| malformed(format!("not a readable tar archive ({error}); make it again"));
    let mut file = File::open(path).map_err(DataError::io(path))?;
    let archive_bytes = file.metadata().map_err(DataError::io(path))?.len();
    refuse_compressed(path, &mut file)?;

    let mut listing = Listing { root: path.to_owned(), files: Vec::new(), folders: BTreeSet::new() };
    let mut names = BTreeSet::new();
    let mut end = 0;
    {
        let mut archive = Archive::new(BufReader::new(&file));
        for entry in archive.entries_with_seek().map_err(damaged)? {
            let entry = entry.map_err(damaged)?;
            let raw = entry.path_bytes();
            let Ok(name) = std::str::from_utf8(&raw) else {
                return Err(malformed(format!("a member's name is not UTF-8: {}", String::from_utf8_lossy(&raw))));
            };
            let (offset, bytes) = (entry.raw_file_position(), entry.size());
            let kind = entry.header().entry_type();
            let takes = if kind == EntryType::Directory { 0 } else { bytes };
            let member_end = offset.checked_add(takes).filter(|end| *end <= archive_bytes).ok_or_else(|| {
                malformed(format!(
                    "'{name}' claims {bytes} bytes at {offset}, the archive has {archive_bytes}: it is truncated"
                ))
            })?;
            end = member_end.next_multiple_of(BLOCK_BYTES).max(end);
            let Some(inside) = clean(name) else { continue };
            match kind {
                EntryType::Directory => {
                    listing.folders.insert(inside);
                }
                EntryType::Regular | EntryType::Continuous => {
                    if !names.insert(inside.clone()) {
                        return Err(malformed(format!("'{inside}' is in the archive twice")));
                    }
                    listing.files.push(Found { path: inside, bytes, at: Where::Span(offset) });
                }
                _ if is_picture(&inside) => {
                    return Err(malformed(format!(
                        "'{inside}' is a link or a sparse file; pack the pictures themselves"
                    )));
                }
                _ => {}
            }
        }
    }
    // A cut at a member's end would go unnoticed otherwise.
    let mut last = [1; BLOCK_BYTES as usize];
    let has_end = file.seek(SeekFrom::Start(end)).and_then(|_| file.read_exact(&mut last)).is_ok();
    if !has_end || last.iter().any(|byte| *byte != 0) {
        return Err(malformed("the end of the tar archive is missing: it is truncated, fetch it again".to_owned()));
    }
    // Folders that only appear in members' names.
    let parents: Vec<String> =
        listing.files.iter().filter_map(|f| Some(f.path.rsplit_once('/')?.0.to_owned())).collect();
    listing.folders.extend(parents);
    Ok((listing, file))
}

/// The path without `./` and a final `/`; nothing for hidden members.
fn clean(name: &str) -> Option<String> {
    let parts: Vec<&str> = name.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.is_empty() || parts.iter().any(|part| is_hidden(part)) {
        return None;
    }
    Some(parts.join("/"))
}

fn refuse_compressed(path: &Path, file: &mut File) -> Result<(), DataError> {
    let mut first = Vec::new();
    Read::by_ref(file).take(6).read_to_end(&mut first).map_err(DataError::io(path))?;
    file.rewind().map_err(DataError::io(path))?;
    let tool = match first.as_slice() {
        [0x1f, 0x8b, ..] => "gunzip",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "unzstd",
        [0xfd, b'7', b'z', ..] => "unxz",
        [b'B', b'Z', b'h', ..] => "bunzip2",
        _ => return Ok(()),
    };
    let reason = format!("the archive is compressed, which forbids random access; unpack it once with {tool}");
    Err(DataError::malformed(path, reason))
}
