//! The folder that holds everything a node keeps, and the lock that lets only one process in.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

/// A data folder that is ours until this value goes, or the process does, however it dies.
#[derive(Debug)]
pub struct DataFolder {
    path: PathBuf,
    // Held, not used: the system gives the lock back when the file is closed.
    _lock: File,
}

/// Why a data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataFolderError {
    /// It cannot be made, or its lock file cannot be written.
    #[error("cannot use the data folder {}", path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Another process has it.
    #[error("the data folder {} is in use by another keppel{}", path.display(), process(*pid))]
    Locked {
        /// The folder.
        path: PathBuf,
        /// The other process, as far as it said.
        pid: Option<u32>,
    },
}

fn process(pid: Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(", process {pid}"))
}

impl DataFolder {
    /// Makes the folder, readable for its owner only, when it is not there, and locks it. Blocks for a moment.
    ///
    /// # Errors
    /// [`DataFolderError`].
    pub fn open(path: &Path) -> Result<Self, DataFolderError> {
        let failed = |source| DataFolderError::Io { path: path.to_owned(), source };
        make_private(path).map_err(failed)?;
        let options = OpenOptions::new().create(true).truncate(false).read(true).write(true).clone();
        let mut lock = options.open(path.join("lock")).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let pid = lock.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
                return Err(DataFolderError::Locked { path: path.to_owned(), pid });
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        // Only for the words of the next one to come; the lock itself is the system's.
        lock.set_len(0).and_then(|()| lock.rewind()).map_err(failed)?;
        writeln!(lock, "{}", std::process::id()).map_err(failed)?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn make_private(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_lets_one_in_at_a_time_and_says_who_has_it() {
        let parent = tempfile::tempdir().expect("a folder");
        let path = parent.path().join("some/where");
        let first = DataFolder::open(&path).expect("the folder is made");
        match DataFolder::open(&path) {
            Err(DataFolderError::Locked { pid, .. }) => assert_eq!(pid, Some(std::process::id())),
            other => panic!("{other:?}"),
        }
        drop(first);
        DataFolder::open(&path).expect("it is free again");
    }

    #[test]
    fn a_file_in_the_place_of_the_folder_is_named() {
        let parent = tempfile::tempdir().expect("a folder");
        let path = parent.path().join("file");
        std::fs::write(&path, "").expect("written");
        let error = DataFolder::open(&path).expect_err("a file is no folder");
        assert_eq!(error.to_string(), format!("cannot use the data folder {}", path.display()));
    }
}
