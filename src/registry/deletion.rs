//! Deleting manifests, tags and blobs.

use keppel_federation::vocabulary::{Digest, Reference, RepositoryName, Tag};

use super::succession::{MovePatience, moving};
use super::{Deletion, Inner, Registry, RegistryError, WriteWindow, to_the_end};
use crate::metadata::{RepositoryId, WriteTransaction};

impl Registry {
    /// Deletes a manifest and the tags on it.
    ///
    /// Cancel safety: once the write is queued it is done, whether or not anybody waits.
    ///
    /// Source: OCI distribution-spec, "Deleting manifests".
    ///
    /// # Errors
    /// [`RegistryError::ManifestUnknown`], [`RegistryError::RepositoryUnknown`], [`RegistryError::ManifestHasParent`],
    /// [`RegistryError::TagProtected`], or our own trouble.
    pub async fn delete_manifest(&self, repository: &RepositoryName, digest: &Digest) -> Result<(), RegistryError> {
        self.delete_manifest_within(&WriteWindow::open(), repository, digest).await
    }

    /// The same for a client of another region, while that waits.
    ///
    /// # Errors
    /// Those of [`Self::delete_manifest`], and [`RegistryError::Overdue`].
    pub async fn delete_manifest_within(
        &self,
        window: &WriteWindow,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<(), RegistryError> {
        let patience = MovePatience::begin();
        loop {
            let deleted = self.try_delete_manifest(window, repository, digest).await;
            if !patience.tries_again(&deleted).await {
                return deleted;
            }
        }
    }

    async fn try_delete_manifest(
        &self,
        window: &WriteWindow,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<(), RegistryError> {
        if let Some(elsewhere) = self.inner.elsewhere(&repository.account()) {
            window.refuse_passing_on(repository, &elsewhere)?;
            return self.inner.delete_at(&elsewhere, repository, Deletion::Manifest(*digest)).await;
        }
        let digest = *digest;
        self.delete_and_spread(window, repository, move |inner, transaction, repository, id| {
            let Some((manifest, _)) = transaction.get_manifest_id(id, &digest)? else {
                let (repository, reference) = (repository.clone(), Reference::Digest(digest));
                return Err(RegistryError::ManifestUnknown { repository, reference });
            };
            if let Some(parent) = transaction.get_parent(id, &digest)? {
                return Err(RegistryError::ManifestHasParent { digest, parent });
            }
            let mut changed = transaction.list_tags_of(manifest)?;
            inner.check_tag_deletion(repository, changed.iter().map(String::as_str))?;
            changed.push(digest.to_string());
            transaction.delete_manifest(manifest)?;
            Ok(changed)
        })
        .await
    }

    /// Deletes a tag and keeps the manifest.
    ///
    /// Cancel safety: once the write is queued it is done, whether or not anybody waits.
    ///
    /// Source: OCI distribution-spec, "Deleting tags".
    ///
    /// # Errors
    /// [`RegistryError::ManifestUnknown`], [`RegistryError::RepositoryUnknown`], [`RegistryError::TagProtected`], or our
    /// own trouble.
    pub async fn delete_tag(&self, repository: &RepositoryName, tag: &Tag) -> Result<(), RegistryError> {
        self.delete_tag_within(&WriteWindow::open(), repository, tag).await
    }

    /// The same for a client of another region, while that waits.
    ///
    /// # Errors
    /// Those of [`Self::delete_tag`], and [`RegistryError::Overdue`].
    pub async fn delete_tag_within(
        &self,
        window: &WriteWindow,
        repository: &RepositoryName,
        tag: &Tag,
    ) -> Result<(), RegistryError> {
        let patience = MovePatience::begin();
        loop {
            let deleted = self.try_delete_tag(window, repository, tag).await;
            if !patience.tries_again(&deleted).await {
                return deleted;
            }
        }
    }

    async fn try_delete_tag(
        &self,
        window: &WriteWindow,
        repository: &RepositoryName,
        tag: &Tag,
    ) -> Result<(), RegistryError> {
        if let Some(elsewhere) = self.inner.elsewhere(&repository.account()) {
            window.refuse_passing_on(repository, &elsewhere)?;
            return self.inner.delete_at(&elsewhere, repository, Deletion::Tag(tag.clone())).await;
        }
        let (tag, name) = (tag.clone(), tag.to_string());
        self.delete_and_spread(window, repository, move |inner, transaction, repository, id| {
            if transaction.get_tagged(id, tag.as_str())?.is_some() {
                inner.check_tag_deletion(repository, [tag.as_str()])?;
            }
            if !transaction.delete_tag(id, tag.as_str())? {
                let (repository, reference) = (repository.clone(), Reference::Tag(tag));
                return Err(RegistryError::ManifestUnknown { repository, reference });
            }
            Ok(vec![name])
        })
        .await
    }

    /// Deletes at the primary, which this node is; comes back once that is everywhere where it has to be. `delete` gives which
    /// references are gone.
    async fn delete_and_spread<F>(
        &self,
        window: &WriteWindow,
        repository: &RepositoryName,
        delete: F,
    ) -> Result<(), RegistryError>
    where
        F: FnOnce(&Inner, &WriteTransaction<'_>, &RepositoryName, RepositoryId) -> Result<Vec<String>, RegistryError>
            + Send
            + 'static,
    {
        let (inner, repository, account) = (self.inner.clone(), repository.clone(), repository.account());
        self.inner.await_first_word(&account).await?;
        let spread = self.inner.spread_deletion(&repository).await?;
        let (since, window) = (self.inner.term(&account), window.clone());
        let deleted = self.inner.metadata.write(move |transaction| {
            let account = repository.account();
            inner.check_primacy(&account)?;
            window.begin(&account)?;
            let id = load_repository(transaction, &repository)?;
            let changed = delete(&inner, transaction, &repository, id)?;
            inner.evict_around_commit(transaction, &repository, changed);
            inner.note_spreading(transaction, &account)
        });
        let sequence = self.inner.or_unsure(&account, since, deleted.await).await?;
        self.inner.settled(&account).await;
        self.inner.ensure_spread(&account, spread, sequence).await?;
        self.inner.check_still_primary(&account, since)
    }

    /// Takes a blob out of a repository; its bytes go with its last place in the account.
    ///
    /// Cancel safety: not stopped by dropping.
    ///
    /// Source: OCI distribution-spec, "Deleting blobs".
    ///
    /// # Errors
    /// [`RegistryError::BlobUnknown`], [`RegistryError::RepositoryUnknown`], [`RegistryError::BlobInUse`], or our own
    /// trouble.
    pub async fn delete_blob(&self, repository: &RepositoryName, digest: &Digest) -> Result<(), RegistryError> {
        self.delete_blob_within(&WriteWindow::open(), repository, digest).await
    }

    /// The same for a client of another region, while that waits.
    ///
    /// # Errors
    /// Those of [`Self::delete_blob`], and [`RegistryError::Overdue`].
    pub async fn delete_blob_within(
        &self,
        window: &WriteWindow,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<(), RegistryError> {
        let patience = MovePatience::begin();
        loop {
            let deleted = self.try_delete_blob(window, repository, digest).await;
            if !patience.tries_again(&deleted).await {
                return deleted;
            }
        }
    }

    async fn try_delete_blob(
        &self,
        window: &WriteWindow,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<(), RegistryError> {
        if let Some(elsewhere) = self.inner.elsewhere(&repository.account()) {
            window.refuse_passing_on(repository, &elsewhere)?;
            return self.inner.delete_at(&elsewhere, repository, Deletion::Blob(*digest)).await;
        }
        let (inner, repository, digest, window) = (self.inner.clone(), repository.clone(), *digest, window.clone());
        to_the_end(async move {
            let (account, this) = (repository.account(), inner.clone());
            let unneeded = inner.metadata.write(move |transaction| {
                this.check_primacy(&repository.account())?;
                window.begin(&repository.account())?;
                if this.is_in_disorder(&repository.account()) {
                    return Err(moving(&repository.account(), "which blobs are in use is being looked up"));
                }
                let id = load_repository(transaction, &repository)?;
                let blob = transaction.get_mounted_blob(id, &digest)?;
                let blob = blob.ok_or(RegistryError::BlobUnknown { digest })?;
                if let Some(manifest) = transaction.get_manifest_using_blob(id, blob.id)? {
                    return Err(RegistryError::BlobInUse { digest, manifest });
                }
                Ok(transaction.unmount_blob(id, blob.id)?.then_some(blob.storage_key))
            });
            if let Some(key) = unneeded.await?
                && let Err(error) = inner.storage.delete_blob(&account, &key).await
            {
                // The blob is gone for every client; the storage sweep takes the rest.
                tracing::warn!(error = &error as &dyn std::error::Error, %digest, "a blob's bytes could not be deleted");
            }
            Ok(())
        })
        .await
    }
}

fn load_repository(
    transaction: &WriteTransaction<'_>,
    repository: &RepositoryName,
) -> Result<RepositoryId, RegistryError> {
    let id = transaction.get_repository(repository)?;
    id.ok_or_else(|| RegistryError::RepositoryUnknown { repository: repository.clone() })
}
