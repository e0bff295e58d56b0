//! From a complete upload to a blob of a repository: bytes, row, mount and the end of the session.

use std::sync::Arc;

use keppel_federation::vocabulary::{AccountName, Digest, RepositoryName, StorageKey, UploadId};

use super::{Inner, RegistryError};
use crate::metadata::{BlobId, MetadataError, NewBlob, Usage, WriteTransaction};
use crate::storage::{FinishError, Upload};

/// What an account has of the bytes of a blob.
enum KnownBytes {
    /// It does not have the blob.
    None,
    /// All of them, under this key.
    Whole(StorageKey),
    /// Under this key there should be some.
    Lost(StorageKey),
}

/// What became of bytes that were stored.
enum Recorded {
    /// The account did not have the blob.
    New,
    /// It had lost the blob's bytes, which were under this key.
    InPlaceOf(StorageKey),
    /// It has the blob already.
    Known,
}

impl Inner {
    /// Makes an upload a blob: bytes first, then its row, its mount and the end of its session in one transaction.
    pub(super) async fn store(
        self: &Arc<Self>,
        upload: Upload,
        repository: &RepositoryName,
        digest: Digest,
        session: Option<&UploadId>,
    ) -> Result<(), RegistryError> {
        self.store_telling(upload, repository, digest, session, || {}).await
    }

    /// The same; `is_right` is called once the bytes are known to be those that the digest names, before they are durable.
    pub(super) async fn store_telling(
        self: &Arc<Self>,
        upload: Upload,
        repository: &RepositoryName,
        digest: Digest,
        session: Option<&UploadId>,
        is_right: impl FnOnce() + Send,
    ) -> Result<(), RegistryError> {
        let (account, key) = (repository.account(), StorageKey::from(upload.id()));
        let _shield = self.in_progress.blob(&key);
        let known = self.known_bytes(&account, &digest).await?;
        let checked = upload.check(&digest).await.map_err(refusal)?;
        is_right();
        let (stored, lost) = match known {
            KnownBytes::None => (checked.publish(key.clone()).await, None),
            KnownBytes::Lost(lost) => (checked.publish(key.clone()).await, Some(lost)),
            KnownBytes::Whole(kept) => {
                // They need not be made durable once more, if they stay until the blob is mounted.
                let mounted = self.mount_known(repository.clone(), digest, kept, session.cloned()).await;
                if let Ok(false) = mounted {
                    (checked.publish(key.clone()).await, None)
                } else {
                    checked.discard().await?;
                    return mounted.map(|_| ());
                }
            }
        };
        let stored = stored.map_err(refusal)?;
        let digest_text = digest;
        let blob = NewBlob { digest, size_bytes: stored.size_bytes, storage_key: stored.key, blake3: stored.blake3 };
        let recorded = self.record_blob(repository.clone(), blob, lost.clone(), session.cloned()).await;
        match &recorded {
            Ok(Recorded::New | Recorded::InPlaceOf(_)) => {}
            // A commit that failed may turn out to have happened: then its row must find the bytes. If not, the sweep
            // takes them.
            Err(RegistryError::Metadata(_)) => {}
            // The account had the blob already, or there surely is no row.
            Ok(Recorded::Known) | Err(_) => self.storage.delete_blob(&account, &key).await?,
        }
        if let Ok(Recorded::InPlaceOf(lost)) = &recorded {
            tracing::info!(%account, digest = %digest_text, "a blob whose bytes were lost or wrong has right ones again");
            metrics::counter!("keppel_blobs_repaired_total").increment(1);
            self.storage.delete_blob(&account, lost).await?;
        }
        recorded.map(|_| ())
    }

    /// What the account has of a blob's bytes. Where they are not there or cut short, pushing them again repairs that.
    async fn known_bytes(&self, account: &AccountName, digest: &Digest) -> Result<KnownBytes, RegistryError> {
        let (name, digest) = (account.clone(), *digest);
        let known = self.metadata.read(move |reader| match reader.get_account(&name)? {
            Some(account) => reader.get_account_blob(account, &digest),
            None => Ok(None),
        });
        let Some(known) = known.await? else { return Ok(KnownBytes::None) };
        let size_bytes = self.storage.blob_size_bytes(account, &known.storage_key).await?;
        if known.is_sound && size_bytes == Some(known.size_bytes) {
            return Ok(KnownBytes::Whole(known.storage_key));
        }
        tracing::warn!(%account, %digest, "the stored bytes of a blob are lost or wrong; new ones take their place");
        Ok(KnownBytes::Lost(known.storage_key))
    }

    /// Mounts a blob that the account has under `kept`, and ends the session it was pushed in; gives whether it still
    /// has it there.
    async fn mount_known(
        self: &Arc<Self>,
        repository: RepositoryName,
        digest: Digest,
        kept: StorageKey,
        session: Option<UploadId>,
    ) -> Result<bool, RegistryError> {
        let inner = self.clone();
        self.metadata
            .write(move |transaction| {
                let now = inner.clock.now();
                let name = repository.account();
                let account = inner.account_for_push(transaction, &name)?;
                let known = transaction.get_account_blob(account, &digest)?;
                let Some(known) = known.filter(|known| known.is_sound && known.storage_key == kept) else {
                    return Ok(false);
                };
                let repository = transaction.ensure_repository(account, &repository, now)?;
                transaction.ensure_mount(repository, known.id, now)?;
                inner.keep_pushed(transaction, &name, known.id)?;
                if let Some(session) = session {
                    transaction.delete_upload(&session)?;
                }
                Ok(true)
            })
            .await
    }

    /// Notes that a blob was pushed here, for an account of another region: whether or not it had been pulled before, it
    /// stays, since its primary may not have it.
    fn keep_pushed(
        &self,
        transaction: &WriteTransaction<'_>,
        account: &AccountName,
        blob: BlobId,
    ) -> Result<(), MetadataError> {
        match self.is_copy(account) {
            true => transaction.keep_pulled(blob),
            false => Ok(()),
        }
    }

    /// Records a blob and mounts it; says whether its bytes are needed.
    async fn record_blob(
        self: &Arc<Self>,
        repository: RepositoryName,
        blob: NewBlob,
        lost: Option<StorageKey>,
        session: Option<UploadId>,
    ) -> Result<Recorded, RegistryError> {
        let inner = self.clone();
        self.metadata
            .write(move |transaction| {
                let now = inner.clock.now();
                let name = repository.account();
                let account = inner.account_for_push(transaction, &name)?;
                let repository = transaction.ensure_repository(account, &repository, now)?;
                let known = transaction.get_account_blob(account, &blob.digest)?;
                let (id, recorded) = match known {
                    Some(known) if !known.is_sound || lost.as_ref() == Some(&known.storage_key) => {
                        transaction.replace_blob_bytes(known.id, &blob, now)?;
                        (known.id, Recorded::InPlaceOf(known.storage_key))
                    }
                    Some(known) => (known.id, Recorded::Known),
                    // Copies of another region's blobs count there; those from outside can be had again, and are let in.
                    None if inner.is_copy(&name) => (transaction.insert_blob(account, &blob, now)?, Recorded::New),
                    None => {
                        let more = Usage { manifests: 0, size_bytes: blob.size_bytes };
                        inner.charge(transaction, &name, account, more)?;
                        (transaction.insert_blob(account, &blob, now)?, Recorded::New)
                    }
                };
                transaction.ensure_mount(repository, id, now)?;
                inner.keep_pushed(transaction, &name, id)?;
                if let Some(session) = session {
                    transaction.delete_upload(&session)?;
                }
                Ok(recorded)
            })
            .await
    }
}

fn refusal(error: FinishError) -> RegistryError {
    match error {
        FinishError::DigestMismatch { expected, actual } => {
            RegistryError::DigestMismatch { expected: *expected, actual: *actual }
        }
        FinishError::Storage(error) => error.into(),
    }
}
