//! What an account holds, in detail, and the deletion of whole repositories.

use std::sync::Arc;

use keppel_federation::vocabulary::{AccountName, Digest, Reference, RepositoryName};
use serde::{Deserialize, Serialize};

use super::elsewhere::Elsewhere;
use super::succession::MovePatience;
use super::{Deletion, FirstPull, Inner, Page, Registry, RegistryError, WriteWindow, to_the_end};
use crate::metadata::{ListedManifest, ListedRepository, ListedTag, ManifestId, RepositoryId, WriteTransaction};

/// Manifests or mounts that are deleted in one transaction.
const BATCH: usize = 200;

/// Labels and annotations in one page, in bytes; a page holds one manifest at least, whatever it says.
const PAGE_BYTES_MAX: usize = 4 << 20;

/// A manifest with its tags, in the order of their names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestEntry {
    /// The manifest.
    pub manifest: ListedManifest,
    /// The tags on it.
    pub tags: Vec<ListedTag>,
}

/// What one step of a deletion came to.
pub(super) enum Step {
    /// There is more to delete.
    More,
    /// It is gone.
    Gone,
}

/// Whether tag policies are asked.
#[derive(Debug, Clone, Copy)]
pub(super) enum Guard {
    /// They are.
    Asked,
    /// They are not: the account goes with all it has.
    Off,
}

impl Registry {
    /// Repositories of an account whose path follows `after`. `limit` is cut to the longest page. Where another region
    /// decides about the account it is asked, since much of what a list says (sizes, times) is known only there.
    ///
    /// # Errors
    /// [`RegistryError::PrimaryUnreachable`], or our own trouble.
    pub async fn list_account_repositories(
        &self,
        account: &AccountName,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page<ListedRepository>, RegistryError> {
        let limit = limit.min(self.inner.options.page_size_max);
        let known = self.inner.read_account_repositories(account, after, limit);
        let Some(Elsewhere { primary, upstream }) = self.inner.elsewhere(account) else {
            return self.inner.as_primary(account, known).await;
        };
        let asked = upstream.account_repositories(&primary, account, after, limit).await;
        self.inner.or_as_known(account, asked, known).await
    }

    /// Manifests of a repository whose digests follow `after`. `limit` is cut to the longest page, which also ends where what
    /// images say of themselves becomes too much. Where another region decides about the account it is asked.
    ///
    /// # Errors
    /// [`RegistryError::RepositoryUnknown`], [`RegistryError::PrimaryUnreachable`], or our own trouble.
    pub async fn list_manifests(
        &self,
        repository: &RepositoryName,
        after: Option<Digest>,
        limit: usize,
    ) -> Result<Page<ManifestEntry>, RegistryError> {
        let (account, limit) = (repository.account(), limit.min(self.inner.options.page_size_max));
        let known = self.inner.read_manifests(repository, after, limit);
        let Some(Elsewhere { primary, upstream }) = self.inner.elsewhere(&account) else {
            return self.inner.as_primary(&account, known).await;
        };
        let asked = upstream.manifests(&primary, repository, after.as_ref(), limit).await;
        self.inner.or_as_known(&account, asked, known).await
    }

    /// Makes sure that there is such a manifest, without fetching anything from a registry outside.
    ///
    /// # Errors
    /// [`RegistryError::RepositoryUnknown`], [`RegistryError::ManifestUnknown`], or our own trouble.
    pub async fn ensure_manifest(&self, repository: &RepositoryName, digest: &Digest) -> Result<(), RegistryError> {
        let reference = Reference::Digest(*digest);
        self.load_manifest_for(repository, &reference, FirstPull::Refused).await.map(drop)
    }

    /// Deletes a repository with all that it holds, step by step. Whatever is pushed there meanwhile may be deleted too.
    ///
    /// Cancel safety: not stopped by dropping. A crash half-way leaves a smaller repository.
    ///
    /// # Errors
    /// [`RegistryError::RepositoryUnknown`], [`RegistryError::TagProtected`], or our own trouble.
    pub async fn delete_repository(&self, repository: &RepositoryName) -> Result<(), RegistryError> {
        self.delete_repository_within(&WriteWindow::open(), repository).await
    }

    /// The same for a client of another region; no step begins when that does not wait any more.
    ///
    /// # Errors
    /// Those of [`Self::delete_repository`], and [`RegistryError::Overdue`].
    pub async fn delete_repository_within(
        &self,
        window: &WriteWindow,
        repository: &RepositoryName,
    ) -> Result<(), RegistryError> {
        let patience = MovePatience::begin();
        loop {
            let deleted = self.try_delete_repository(window, repository).await;
            if !patience.tries_again(&deleted).await {
                return deleted;
            }
        }
    }

    async fn try_delete_repository(
        &self,
        window: &WriteWindow,
        repository: &RepositoryName,
    ) -> Result<(), RegistryError> {
        if let Some(elsewhere) = self.inner.elsewhere(&repository.account()) {
            window.refuse_passing_on(repository, &elsewhere)?;
            return self.inner.delete_at(&elsewhere, repository, Deletion::Repository).await;
        }
        self.inner.await_first_word(&repository.account()).await?;
        let (inner, repository, window) = (self.inner.clone(), repository.clone(), window.clone());
        to_the_end(async move {
            inner.refuse_protected(&repository).await?;
            let account = repository.account();
            let (spread, since) = (inner.spread_deletion(&repository).await?, inner.term(&account));
            loop {
                let (this, name, window) = (inner.clone(), repository.clone(), window.clone());
                let step = inner.metadata.write(move |transaction| {
                    this.check_primacy(&name.account())?;
                    window.begin(&name.account())?;
                    let step = this.delete_some(transaction, &name, Guard::Asked)?;
                    Ok::<_, RegistryError>((step, this.note_spreading(transaction, &name.account())?))
                });
                let ((step, unneeded), sequence) = step.await?;
                for key in unneeded {
                    if let Err(error) = inner.storage.delete_blob(&repository.account(), &key).await {
                        // The blob is gone for every client; the storage sweep takes the rest.
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(error, %key, "a blob's bytes could not be deleted");
                    }
                }
                if let Step::Gone = step {
                    inner.settled(&account).await;
                    inner.ensure_spread(&account, spread, sequence).await?;
                    return inner.check_still_primary(&account, since);
                }
            }
        })
        .await
    }
}

impl Inner {
    /// The repositories of an account that are here.
    async fn read_account_repositories(
        &self,
        account: &AccountName,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page<ListedRepository>, RegistryError> {
        self.refuse_former(account)?;
        let (account, after) = (account.clone(), format!("{account}/{}", after.unwrap_or_default()));
        self.metadata
            .read(move |reader| {
                // An account that was never pushed to has no row.
                let Some(id) = reader.get_account(&account)? else { return Ok(Page::cut(Vec::new(), limit)) };
                Ok(Page::cut(reader.list_account_repositories(id, &after, limit + 1)?, limit))
            })
            .await
    }

    /// The manifests of a repository that are here.
    async fn read_manifests(
        &self,
        repository: &RepositoryName,
        after: Option<Digest>,
        limit: usize,
    ) -> Result<Page<ManifestEntry>, RegistryError> {
        self.refuse_former(&repository.account())?;
        let repository = repository.clone();
        self.metadata
            .read(move |reader| {
                let id = reader.get_repository(&repository)?;
                let id = id.ok_or(RegistryError::RepositoryUnknown { repository })?;
                let (found, more) = reader.list_manifests(id, after.as_ref(), limit, PAGE_BYTES_MAX)?;
                let with_tags = |(id, manifest): (ManifestId, ListedManifest)| {
                    let mut tags = reader.list_tags_with_times(id)?;
                    tags.sort_unstable_by(|a, b| a.name.cmp(&b.name));
                    Ok::<_, RegistryError>(ManifestEntry { manifest, tags })
                };
                let items = found.into_iter().map(with_tags).collect::<Result<_, _>>()?;
                Ok(Page { items, more, is_stale: false })
            })
            .await
    }

    /// Takes away some of the manifests of a repository that the primary no longer has; gives whether there may be more. What
    /// they referred to is left to the sweeps.
    pub(super) fn forget_some(
        self: &Arc<Self>,
        transaction: &WriteTransaction<'_>,
        repository: &RepositoryName,
        id: RepositoryId,
    ) -> Result<bool, RegistryError> {
        let manifests = transaction.list_manifests(id, None, BATCH, PAGE_BYTES_MAX)?.0;
        self.delete_manifests(transaction, repository, &manifests, Guard::Off)?;
        Ok(!manifests.is_empty())
    }

    /// Looks for protected tags before anything is deleted.
    pub(super) async fn refuse_protected(self: &Arc<Self>, repository: &RepositoryName) -> Result<(), RegistryError> {
        let (inner, repository) = (self.clone(), repository.clone());
        self.metadata
            .read(move |reader| {
                let id = reader.get_repository(&repository)?;
                let id = id.ok_or_else(|| RegistryError::RepositoryUnknown { repository: repository.clone() })?;
                let mut after = String::new();
                loop {
                    let tags = reader.list_tags(id, &after, 1000)?;
                    inner.check_tag_deletion(&repository, tags.iter().map(String::as_str))?;
                    match tags.into_iter().last() {
                        Some(last) => after = last,
                        None => return Ok(()),
                    }
                }
            })
            .await
    }

    /// One step: some manifests, or some mounts, or the repository itself. Gives the blobs whose bytes are to go. Whether this
    /// node may is asked by the caller, inside the transaction.
    pub(super) fn delete_some(
        self: &Arc<Self>,
        transaction: &WriteTransaction<'_>,
        repository: &RepositoryName,
        guard: Guard,
    ) -> Result<(Step, Vec<keppel_federation::vocabulary::StorageKey>), RegistryError> {
        let Some(id) = transaction.get_repository(repository)? else { return Ok((Step::Gone, Vec::new())) };
        let manifests = transaction.list_manifests(id, None, BATCH, PAGE_BYTES_MAX)?.0;
        if !manifests.is_empty() {
            return self
                .delete_manifests(transaction, repository, &manifests, guard)
                .map(|()| (Step::More, Vec::new()));
        }
        let mounts = transaction.list_mounts(id, BATCH)?;
        if mounts.is_empty() {
            transaction.delete_repository(id)?;
            return Ok((Step::Gone, Vec::new()));
        }
        Ok((Step::More, unmount(transaction, id, mounts)?))
    }

    fn delete_manifests(
        self: &Arc<Self>,
        transaction: &WriteTransaction<'_>,
        repository: &RepositoryName,
        manifests: &[(ManifestId, ListedManifest)],
        guard: Guard,
    ) -> Result<(), RegistryError> {
        let mut changed = Vec::new();
        for (id, manifest) in manifests {
            let tags = transaction.list_tags_of(*id)?;
            // One that was set since the tags were looked through.
            if let Guard::Asked = guard {
                self.check_tag_deletion(repository, tags.iter().map(String::as_str))?;
            }
            changed.extend(tags);
            changed.push(manifest.digest.to_string());
            transaction.delete_manifest(*id)?;
        }
        self.evict_around_commit(transaction, repository, changed);
        Ok(())
    }
}

fn unmount(
    transaction: &WriteTransaction<'_>,
    repository: RepositoryId,
    mounts: Vec<crate::metadata::BlobRow>,
) -> Result<Vec<keppel_federation::vocabulary::StorageKey>, RegistryError> {
    let mut unneeded = Vec::new();
    for blob in mounts {
        if transaction.unmount_blob(repository, blob.id)? {
            unneeded.push(blob.storage_key);
        }
    }
    Ok(unneeded)
}
