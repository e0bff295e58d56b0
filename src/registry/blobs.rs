//! Pulling and mounting blobs.

use std::ops::Range;

use keppel_federation::vocabulary::{AccountName, Digest, RepositoryName, StorageKey};

use super::{Registry, RegistryError};
use crate::storage::{BlobReader, StorageError};

/// A blob that can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobInfo {
    /// Its name.
    pub digest: Digest,
    /// Its size in bytes.
    pub size_bytes: u64,
    repository: RepositoryName,
    account: AccountName,
    key: StorageKey,
}

impl Registry {
    /// A blob that is mounted in the repository.
    ///
    /// # Errors
    /// [`RegistryError::BlobUnknown`], or our own trouble.
    pub async fn load_blob(&self, repository: &RepositoryName, digest: &Digest) -> Result<BlobInfo, RegistryError> {
        let (repository, digest) = (repository.clone(), *digest);
        self.inner
            .metadata
            .read(move |reader| {
                let row = reader
                    .get_blob_by_name(repository.as_str(), &digest)?
                    .ok_or(RegistryError::BlobUnknown { digest })?;
                let account = repository.account();
                Ok(BlobInfo { digest, size_bytes: row.size_bytes, repository, account, key: row.storage_key })
            })
            .await
    }

    /// Opens a part of a blob for reading. `range` is in bytes and within the blob.
    ///
    /// # Errors
    /// [`RegistryError::BlobUnknown`] when it was deleted meanwhile, or our own trouble.
    pub async fn open_blob(&self, blob: &BlobInfo, range: Range<u64>) -> Result<BlobReader, RegistryError> {
        match self.inner.storage.open_blob(&blob.account, &blob.key, range).await {
            Ok(reader) => Ok(reader),
            Err(error @ StorageError::BlobMissing(_)) => match self.load_blob(&blob.repository, &blob.digest).await? {
                // The row is there, so the bytes should be.
                same if same.key == blob.key => Err(error.into()),
                _ => Err(RegistryError::BlobUnknown { digest: blob.digest }),
            },
            Err(error) => Err(error.into()),
        }
    }

    /// Mounts a blob of another repository of the same account, or of any of them when `from` is `None`. Gives `false`
    /// when that is not possible; the caller then starts an upload.
    ///
    /// Cancel safety: once the write is queued it is done, whether or not anybody waits.
    ///
    /// Source: OCI distribution-spec, "Mounting a blob from another repository".
    ///
    /// # Errors
    /// [`RegistryError::AccountUnknown`], or our own trouble.
    pub async fn mount_blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        from: Option<&RepositoryName>,
    ) -> Result<bool, RegistryError> {
        if from.is_some_and(|from| from.account_str() != repository.account_str()) {
            return Ok(false);
        }
        let (inner, repository, digest, from) = (self.inner.clone(), repository.clone(), *digest, from.cloned());
        let may_be_there = {
            let account = repository.account();
            let from = from.clone();
            inner.metadata.read(move |reader| {
                let Some(account) = reader.get_account(&account)? else { return Ok::<_, RegistryError>(false) };
                Ok(match from {
                    Some(from) => reader.get_blob_by_name(from.as_str(), &digest)?.is_some(),
                    None => reader.get_account_blob(account, &digest)?.is_some(),
                })
            })
        };
        if !may_be_there.await? {
            return Ok(false);
        }
        inner.check_account(&repository).await?;
        let metadata = inner.metadata.clone();
        metadata
            .write(move |transaction| {
                let account = inner.account_for_push(transaction, &repository.account())?;
                let blob = match &from {
                    Some(from) => transaction.get_blob_by_name(from.as_str(), &digest)?,
                    None => transaction.get_account_blob(account, &digest)?,
                };
                let Some(blob) = blob else { return Ok(false) };
                let now = inner.clock.now();
                let id = transaction.ensure_repository(account, &repository, now)?;
                transaction.ensure_mount(id, blob.id, now)?;
                Ok(true)
            })
            .await
    }
}
