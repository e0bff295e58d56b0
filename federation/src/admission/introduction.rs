use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::FederationId;
use crate::claims::Member;

/// What a node that was admitted knows of its federation until it has received the replicated state: enough to be
/// reached by the others, and to know that its own former federation of one is to be forgotten.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Introduction {
    /// The federation.
    pub federation: FederationId,
    /// Its members, the node itself included.
    pub members: Vec<Member>,
    /// Whether the state of the former federation of one is gone.
    pub forgotten: bool,
}

/// The file could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path}: {source}")]
pub struct IntroductionError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl Introduction {
    /// The name of its file in the data directory.
    pub(crate) const FILE: &str = "introduction.json";

    /// Reads the introduction of a data directory, if it has one. Blocks on the disk.
    ///
    /// # Errors
    /// [`IntroductionError`], also when the file is damaged.
    pub fn load(data_dir: &Path) -> Result<Option<Self>, IntroductionError> {
        let path = data_dir.join(Self::FILE);
        let failed = |source| IntroductionError { action: "read", path: path.clone(), source };
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| failed(e.into())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(failed(e)),
        }
    }

    /// Makes it durable. Blocks on the disk.
    ///
    /// # Errors
    /// [`IntroductionError`].
    pub fn store(&self, data_dir: &Path) -> Result<(), IntroductionError> {
        let path = data_dir.join(Self::FILE);
        let temporary = data_dir.join(format!(".{}", Self::FILE));
        let write = || {
            let mut file = File::create(&temporary)?;
            file.write_all(&serde_json::to_vec_pretty(self)?)?;
            file.sync_all()?;
            std::fs::rename(&temporary, &path)?;
            File::open(data_dir)?.sync_all()
        };
        write().map_err(|source| IntroductionError { action: "write", path: path.clone(), source })
    }

    /// Removes it: the replicated state has taken over. Blocks on the disk.
    ///
    /// # Errors
    /// [`IntroductionError`].
    pub fn remove(data_dir: &Path) -> Result<(), IntroductionError> {
        let path = data_dir.join(Self::FILE);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(IntroductionError { action: "remove", path, source: e })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_introduction_is_found_again_until_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Introduction::load(dir.path()).unwrap(), None);
        let mut introduction =
            Introduction { federation: FederationId([4; 16]), members: Vec::new(), forgotten: false };
        introduction.store(dir.path()).unwrap();
        introduction.forgotten = true;
        introduction.store(dir.path()).unwrap();
        assert_eq!(Introduction::load(dir.path()).unwrap(), Some(introduction));
        Introduction::remove(dir.path()).unwrap();
        Introduction::remove(dir.path()).unwrap();
        assert_eq!(Introduction::load(dir.path()).unwrap(), None);
        std::fs::write(dir.path().join(Introduction::FILE), b"{").unwrap();
        assert!(Introduction::load(dir.path()).is_err());
    }
}
