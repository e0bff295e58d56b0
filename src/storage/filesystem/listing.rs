//! Walks through the files of a storage space, one directory open at a time.

use std::fs::{self, DirEntry, ReadDir};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::storage::{ObjectKind, StorageError, StoredObject};

use super::layout;

/// The uploads, then the blobs of each directory of blobs. Foreign files and what vanishes meanwhile are passed over.
pub(super) struct Listing {
    /// Directories not begun yet, the next one last.
    ahead: Vec<(PathBuf, KindOf)>,
    open: Option<(PathBuf, ReadDir, KindOf)>,
}

/// Tells by its name what a file is.
type KindOf = fn(&str) -> Option<ObjectKind>;

impl Listing {
    pub(super) fn new(uploads: PathBuf, blobs: &Path) -> Result<Self, StorageError> {
        let mut ahead: Vec<(_, KindOf)> = Vec::new();
        if let Some(fans) = read_directory(blobs)? {
            for fan in fans {
                let fan = fan.map_err(StorageError::io("read", blobs))?;
                ahead.push((fan.path(), layout::blob_kind));
            }
        }
        ahead.push((uploads, layout::upload_kind));
        Ok(Self { ahead, open: None })
    }

    fn step(&mut self) -> Result<Option<StoredObject>, StorageError> {
        loop {
            let Some((path, entries, kind)) = &mut self.open else {
                let Some((path, kind)) = self.ahead.pop() else { return Ok(None) };
                self.open = read_directory(&path)?.map(|entries| (path, entries, kind));
                continue;
            };
            let Some(entry) = entries.next() else {
                self.open = None;
                continue;
            };
            let entry = entry.map_err(StorageError::io("read", &*path))?;
            let Some(kind) = entry.file_name().to_str().and_then(*kind) else { continue };
            if let Some(object) = stored_object(&entry, kind)? {
                return Ok(Some(object));
            }
        }
    }
}

impl Iterator for Listing {
    type Item = Result<StoredObject, StorageError>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step();
        if step.is_err() {
            self.ahead.clear();
            self.open = None;
        }
        step.transpose()
    }
}

fn stored_object(entry: &DirEntry, kind: ObjectKind) -> Result<Option<StoredObject>, StorageError> {
    match entry.metadata() {
        Ok(metadata) if metadata.is_file() => {
            let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            Ok(Some(StoredObject { kind, size_bytes: metadata.len(), modified }))
        }
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StorageError::io("examine", entry.path())(error)),
    }
}

/// `None` when there is no such directory; a file in its place counts as none.
fn read_directory(path: &Path) -> Result<Option<ReadDir>, StorageError> {
    match fs::read_dir(path) {
        Ok(entries) => Ok(Some(entries)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(StorageError::io("list", path)(error)),
    }
}
