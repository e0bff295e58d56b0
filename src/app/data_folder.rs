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
    /// Makes the folder, readable for its owner only, when it is not there, and locks it. Where it was there and is open to
    /// others, what lies in it directly is closed to them: databases hold hashes of passwords and what mirrors log in with.
    /// From then on the process makes no file that others may read. Blocks for a moment.
    ///
    /// # Errors
    /// [`DataFolderError`].
    pub fn open(path: &Path) -> Result<Self, DataFolderError> {
        let failed = |source| DataFolderError::Io { path: path.to_owned(), source };
        keep_new_files_private();
        make_private(path).map_err(failed)?;
        if let Err(error) = close_to_others(path) {
            tracing::warn!(%error, folder = %path.display(), "others may read files of the data folder");
        }
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

/// Lets nobody but the owner into files and folders that the process makes from now on.
fn keep_new_files_private() {
    // SAFETY: it takes a number and cannot fail.
    unsafe { libc::umask(0o077) };
}

/// Takes away what others than the owner and the group may do with the files and folders of a folder; not with the folder
/// itself, which somebody made for reasons of theirs.
fn close_to_others(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        let mode = metadata.permissions().mode();
        if !metadata.is_symlink() && mode & 0o007 != 0 {
            std::fs::set_permissions(entry.path(), std::fs::Permissions::from_mode(mode & 0o7770))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_read_nothing_of_a_folder_that_was_there_before() {
        use std::os::unix::fs::{PermissionsExt as _, symlink};
        let (folder, elsewhere) =
            (tempfile::tempdir().expect("a folder"), tempfile::NamedTempFile::new().expect("a file"));
        let mode = |path: &Path| std::fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
        let set = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("set");
        };
        set(folder.path(), 0o755);
        set(elsewhere.path(), 0o644);
        let old = folder.path().join("metadata.db");
        std::fs::write(&old, "old").expect("written");
        set(&old, 0o644);
        symlink(elsewhere.path(), folder.path().join("link")).expect("linked");
        let _data = DataFolder::open(folder.path()).expect("opened");
        std::fs::write(folder.path().join("new"), "new").expect("written");
        assert_eq!((mode(folder.path()), mode(&old), mode(&folder.path().join("new"))), (0o755, 0o640, 0o600));
        assert_eq!(mode(elsewhere.path()), 0o644, "what a link leads to is somebody else's");
    }

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
