use std::io;
use std::path::PathBuf;

use keppel_federation::vocabulary::{AccountName, Digest, StorageKey, UploadId};

/// Why the storage could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The file system, its quota or the configured capacity has no room left. Nothing half-written stays behind.
    #[error("the storage is full")]
    Full,
    /// The account has no storage space: [`prepare_space`](super::Storage::prepare_space) was not called for it.
    #[error("account {0} has no storage space")]
    SpaceMissing(AccountName),
    /// An upload of this name exists already.
    #[error("upload {0} exists already")]
    UploadExists(UploadId),
    /// Another handle for this upload did not go away in time.
    #[error("upload {0} is in use")]
    UploadBusy(UploadId),
    /// The upload was discarded while it was in use.
    #[error("upload {0} was discarded")]
    UploadMissing(UploadId),
    /// An earlier error left the upload's bytes in doubt: drop the handle and resume the upload.
    #[error("upload {0} has to be resumed after an earlier error")]
    UploadInterrupted(UploadId),
    /// The blob's bytes are not there.
    #[error("blob {0} is missing from the storage")]
    BlobMissing(StorageKey),
    /// The blob has fewer bytes than it should have.
    #[error("blob {key} ends after {actual_bytes} bytes, {expected_bytes} expected")]
    BlobShort {
        /// The blob.
        key: StorageKey,
        /// How many bytes there should be, at least.
        expected_bytes: u64,
        /// How many there are.
        actual_bytes: u64,
    },
    /// The blob's bytes are not those that were stored.
    #[error("blob {0} is corrupt")]
    BlobCorrupt(StorageKey),
    /// The operating system refused.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was tried: a verb.
        operation: &'static str,
        /// What it was tried on.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// All threads for such work stayed busy for too long. Nothing was begun; try again later.
    #[error("the storage is overloaded")]
    Overloaded,
    /// The process is shutting down and starts no more work.
    #[error("the storage is shutting down")]
    Stopped,
}

impl StorageError {
    /// Whether it says that the stored bytes of a blob are lost, cannot be read, or are not what was stored.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::BlobMissing(_) | Self::BlobShort { .. } | Self::BlobCorrupt(_) => true,
            Self::Io { source, .. } => source.raw_os_error() == Some(libc::EIO),
            _ => false,
        }
    }

    /// Names the operation and its object; a full disk or quota becomes [`Self::Full`].
    pub(super) fn io(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full,
            _ => Self::Io { operation, path: path.into(), source },
        }
    }
}

/// Why [`Upload::append`](super::Upload::append) did not take the whole body.
#[derive(Debug, thiserror::Error)]
pub enum AppendError<E> {
    /// The body broke off: the client went away or sent nonsense. What had arrived was kept.
    #[error("the body broke off")]
    Body(#[source] E),
    /// The body is longer than the caller allows. What is within the limit was kept.
    #[error("the body is longer than {limit_bytes} bytes")]
    TooLarge {
        /// The limit given by the caller.
        limit_bytes: u64,
    },
    /// The storage is full or failed. What was written before stays.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Why [`Upload::finish`](super::Upload::finish) stored nothing.
#[derive(Debug, thiserror::Error)]
pub enum FinishError {
    /// The bytes are not what the client says they are.
    #[error("the content has the digest {actual}, not {expected}")]
    DigestMismatch {
        /// What the client said.
        expected: Box<Digest>,
        /// What arrived.
        actual: Box<Digest>,
    },
    /// The storage is full or failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}
