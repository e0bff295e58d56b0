//! Accounts whose primary is another region: what is here already is served from here, all else is asked for there.
//!
//! An account that is used here is followed from then on (`following`): all its manifests and tags come here, blobs only
//! when somebody asks for them.
//!
//! Invariants: a tag, a list or an absence is answered from here alone only while the copy is fresh (`copies`), or, when
//! the primary cannot be reached, marked as stale; bytes from elsewhere are checked before they are kept or handed on; a
//! push is acknowledged once the primary has acknowledged it.

mod accepting;
mod backfilling;
mod backfills;
mod berths;
mod board;
mod checking;
mod comparing;
mod copies;
mod ending;
mod fetching;
mod flight;
mod flights;
mod following;
mod holders;
mod holding;
mod keeping;
mod landing;
mod links;
mod opening;
mod priority;
mod reader;
mod serving;
mod setting_aside;
mod standing;
mod telling;
#[cfg(test)]
mod tests;
mod upstream;

use std::sync::Arc;

use bytes::Bytes;
use keppel_federation::vocabulary::{AccountName, Digest, Reference, RepositoryName};

pub use accepting::GATHERED_MAX;
pub use upstream::{
    AccountsElsewhere, BlobOpening, Deletion, Primary, RemoteBlob, RemoteManifest, UploadStep, Upstream,
};

pub use backfills::BackfillStatus;
pub use comparing::{AccountSums, CopyComparison, CopyDifference};
pub use copies::{CopyLag, CopyStatus};
pub use holding::ImageHolding;
pub use priority::Priority;

pub(super) use backfills::Backfills;
pub(super) use berths::Berth;
pub(super) use copies::{Copies, Fresh};
pub(super) use flight::Flight;
pub(super) use flights::Flights;
pub(super) use following::is_followed;
pub(super) use holders::Holders;
pub(super) use reader::{RemoteReader, Source};

use super::manifest_push::{digest_of, record_from_elsewhere};
use super::{Inner, Manifest, ManifestTarget, Page, PutManifest, Registry, RegistryError};
use crate::metadata::{RepositoryId, WriteTransaction};

/// Blobs of one pushed manifest that are fetched at a time.
const FETCHES_PER_PUSH: usize = 4;

/// An account that another region decides about, and the way there.
#[derive(Clone)]
pub(super) struct Elsewhere {
    pub(super) primary: Primary,
    pub(super) upstream: Arc<dyn Upstream>,
}

impl Registry {
    /// Connects the registry to the other regions. Called once, before it serves.
    pub fn connect(&self, upstream: Arc<dyn Upstream>) {
        // A second one would have to wait for the questions put to the first.
        let _ = self.inner.upstream.set(upstream);
    }

    /// Refuses what only the account's own region can say.
    ///
    /// # Errors
    /// [`RegistryError::AccountElsewhere`].
    pub fn refuse_elsewhere(&self, account: &AccountName) -> Result<(), RegistryError> {
        match self.inner.elsewhere(account) {
            None => Ok(()),
            Some(Elsewhere { primary, .. }) => {
                Err(RegistryError::AccountElsewhere { account: account.clone(), region: primary.region })
            }
        }
    }

    /// The region that decides about an account, where another node does.
    pub fn primary_region(&self, account: &AccountName) -> Option<String> {
        self.inner.elsewhere(account).map(|elsewhere| elsewhere.primary.region)
    }

    /// Whether another node decides about the account.
    pub fn is_elsewhere(&self, account: &AccountName) -> bool {
        self.inner.elsewhere(account).is_some()
    }

    /// Whether what is here of the account is to stay: this node is its primary, or holds a replica.
    pub fn is_held_here(&self, account: &AccountName) -> bool {
        self.inner.elsewhere(account).is_none_or(|elsewhere| elsewhere.upstream.keeps_content(account))
    }
}

impl Inner {
    /// The primary of an account and the way to it, when that is another node.
    pub(super) fn elsewhere(&self, account: &AccountName) -> Option<Elsewhere> {
        let upstream = self.upstream.get()?;
        let primary = upstream.primary(account)?;
        Some(Elsewhere { primary, upstream: upstream.clone() })
    }

    /// Where a blob of an account may be had besides here, the likeliest first.
    pub(super) fn sources(&self, account: &AccountName) -> Vec<Elsewhere> {
        let Some(upstream) = self.upstream.get() else { return Vec::new() };
        let others = upstream.others(account).into_iter();
        let source = |primary| Elsewhere { primary, upstream: upstream.clone() };
        upstream.primary(account).into_iter().chain(others).map(source).collect()
    }

    /// The state of a copy from which this node may answer by itself.
    pub(super) fn fresh(&self, elsewhere: &Elsewhere, repository: &RepositoryName) -> Option<Fresh> {
        self.copies.fresh(&repository.account(), elsewhere.primary.node)
    }

    /// Whether what was read since `before` may be answered without asking.
    pub(super) fn is_still(&self, before: Option<Fresh>, elsewhere: &Elsewhere, repository: &RepositoryName) -> bool {
        let is_answer = before.is_some() && before == self.fresh(elsewhere, repository);
        if is_answer {
            metrics::counter!("keppel_copy_answers_total").increment(1);
        }
        is_answer
    }

    /// A list of an account whose primary is this node, marked unless that is sure. An empty one is only given when it is:
    /// there may be something elsewhere.
    pub(super) async fn as_primary<T>(
        &self,
        account: &AccountName,
        read: impl Future<Output = Result<Page<T>, RegistryError>>,
    ) -> Result<Page<T>, RegistryError> {
        let since = self.term(account);
        let read = read.await;
        if read.as_ref().map_or(true, |page| page.items.is_empty()) {
            self.knows_absence(account).await?;
        }
        if self.speaks_for(account) {
            self.settled(account).await;
        }
        let page = self.or_unsure(account, since, read).await?;
        let is_stale = !self.is_sure(account, since).await;
        Ok(Page { is_stale, ..page })
    }

    /// A list as the primary gave it, or, when it cannot be reached, as it was when it last told what is new. An empty
    /// one is not given like that: there may be something by now. A mirror is copied nowhere: of that there is what was pulled
    /// here.
    pub(super) async fn or_as_known<T>(
        &self,
        account: &AccountName,
        asked: Result<Page<T>, RegistryError>,
        known: impl Future<Output = Result<Page<T>, RegistryError>>,
    ) -> Result<Page<T>, RegistryError> {
        match asked {
            Err(error @ RegistryError::PrimaryUnreachable { .. })
                if self.copies.was_whole(account) || self.outside(account).is_some() =>
            {
                match known.await {
                    Ok(page) if !page.items.is_empty() => {
                        metrics::counter!("keppel_stale_answers_total").increment(1);
                        Ok(Page { is_stale: true, ..page })
                    }
                    _ => Err(error),
                }
            }
            Err(error) => Err(error),
            Ok(page) => {
                self.want_copy(account);
                Ok(page)
            }
        }
    }

    /// A manifest of an account of another region: by digest from here if it is here, by tag from a fresh
    /// copy, else as the primary says.
    pub(super) async fn manifest_from(
        self: &Arc<Self>,
        elsewhere: &Elsewhere,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<Manifest, RegistryError> {
        use RegistryError as E;
        let before = self.fresh(elsewhere, repository);
        let here = self.read_manifest(repository, reference).await;
        let is_answer = self.is_still(before, elsewhere, repository);
        let here = match here {
            // Nothing about it can be out of date.
            Ok(manifest) if is_answer || matches!(reference, Reference::Digest(_)) => return Ok(manifest),
            Err(error @ (E::ManifestUnknown { .. } | E::RepositoryUnknown { .. })) if is_answer => return Err(error),
            Ok(manifest) => Some(manifest),
            Err(E::ManifestUnknown { .. } | E::RepositoryUnknown { .. }) => None,
            Err(error) => return Err(error),
        };
        let known = here.as_ref().map(|manifest| manifest.digest);
        let Elsewhere { primary, upstream } = elsewhere;
        let asked = upstream.manifest(primary, repository, reference, known.as_ref()).await;
        if asked.is_ok() {
            self.want_copy(&repository.account());
        }
        match (asked, here) {
            (Ok(RemoteManifest { digest, bytes: None, is_stale, layers_created_at, .. }), Some(here))
                if digest == here.digest =>
            {
                let here = here.made_at(layers_created_at);
                Ok(if is_stale { here.stale() } else { here })
            }
            (Ok(found), _) => {
                let (is_stale, times) = (found.is_stale, found.layers_created_at);
                let kept = self.keep_manifest(elsewhere, repository, reference, found).await?.made_at(times);
                Ok(if is_stale { kept.stale() } else { kept })
            }
            (Err(error @ E::PrimaryUnreachable { .. }), Some(here)) => {
                tracing::debug!(%repository, %reference, %error, "answering with what was known");
                metrics::counter!("keppel_stale_answers_total").increment(1);
                Ok(here.stale())
            }
            (Err(error @ (E::ManifestUnknown { .. } | E::RepositoryUnknown { .. })), Some(_)) => {
                if let Reference::Tag(tag) = reference {
                    self.forget(repository, &Deletion::Tag(tag.clone())).await;
                }
                Err(error)
            }
            (Err(error), _) => Err(error),
        }
    }

    /// Checks what another region gave and keeps it.
    async fn keep_manifest(
        self: &Arc<Self>,
        elsewhere: &Elsewhere,
        repository: &RepositoryName,
        reference: &Reference,
        found: RemoteManifest,
    ) -> Result<Manifest, RegistryError> {
        let unusable = |reason: &str| elsewhere.unusable(repository, reason);
        let bytes = found.bytes.ok_or_else(|| unusable("it left out a manifest that is not known here"))?;
        let asked_for = match reference {
            Reference::Digest(digest) => *digest,
            Reference::Tag(_) => found.digest,
        };
        if found.digest != asked_for || digest_of(asked_for.algorithm(), &bytes) != asked_for {
            return Err(unusable("the manifest that it gave is not what its digest says"));
        }
        let target = match reference {
            Reference::Tag(tag) => ManifestTarget::Tag(tag.clone()),
            Reference::Digest(digest) => ManifestTarget::Digest { digest: *digest, tags: Vec::new() },
        };
        let (media_type, facts) = (found.media_type, found.facts);
        match record_from_elsewhere(self, repository, &asked_for, target, &media_type, bytes.clone(), facts).await {
            Ok(()) => match self.read_manifest(repository, reference).await {
                Ok(manifest) if manifest.digest == asked_for => Ok(manifest),
                // The account is followed, and what is told in order has not come so far, or is further already.
                Ok(_) | Err(RegistryError::ManifestUnknown { .. } | RegistryError::RepositoryUnknown { .. }) => {
                    Ok(Manifest::passing_through(asked_for, media_type, bytes))
                }
                Err(error) => Err(error),
            },
            Err(error) => {
                // A pull does not fail because there is no room to keep what passes through.
                tracing::warn!(error = &error as &dyn std::error::Error, %repository, "a manifest from elsewhere is not kept");
                Ok(Manifest::passing_through(asked_for, media_type, bytes))
            }
        }
    }

    /// Hands a pushed manifest to the primary; once that has it, it is kept here as well.
    pub(super) async fn put_manifest_at(
        self: &Arc<Self>,
        elsewhere: &Elsewhere,
        repository: &RepositoryName,
        target: ManifestTarget,
        media_type: Option<&str>,
        bytes: Bytes,
    ) -> Result<PutManifest, RegistryError> {
        let Elsewhere { primary, upstream } = elsewhere;
        let put = upstream.put_manifest(primary, repository, &target, media_type, bytes.clone()).await?;
        self.want_copy(&repository.account());
        let (media_type, facts) = (media_type.unwrap_or_default(), put.facts.clone());
        let recorded = record_from_elsewhere(self, repository, &put.digest, target, media_type, bytes, facts);
        if let Err(error) = recorded.await {
            // The primary has it, which is what counts.
            tracing::warn!(error = &error as &dyn std::error::Error, %repository, "a pushed manifest is not kept here");
        }
        Ok(put)
    }

    /// Has the primary delete something, then forgets it here.
    pub(super) async fn delete_at(
        self: &Arc<Self>,
        elsewhere: &Elsewhere,
        repository: &RepositoryName,
        what: Deletion,
    ) -> Result<(), RegistryError> {
        self.refuse_deleted_here(repository, &what).await?;
        let deleted = elsewhere.upstream.delete(&elsewhere.primary, repository, &what).await;
        if let (
            Err(RegistryError::BlobUnknown { .. } | RegistryError::RepositoryUnknown { .. }),
            Deletion::Blob(digest),
        ) = (&deleted, &what)
            && self.drop_pushed(repository, digest).await?
        {
            return Ok(());
        }
        deleted?;
        self.forget(repository, &what).await;
        Ok(())
    }

    /// Takes away a blob that was pushed here, for a manifest that has not come: the primary has not heard of it. Gives whether
    /// there was one.
    async fn drop_pushed(&self, repository: &RepositoryName, digest: &Digest) -> Result<bool, RegistryError> {
        let (name, digest) = (repository.clone(), *digest);
        let dropped = self.metadata.write(move |transaction| {
            let Some(id) = transaction.get_repository(&name)? else { return Ok(false) };
            unmount_unneeded(transaction, id, &digest)
        });
        dropped.await
    }

    /// Takes away what the primary no longer has. What cannot be taken away now is only ever served marked as stale, or
    /// by its digest.
    pub(in crate::registry) async fn forget(self: &Arc<Self>, repository: &RepositoryName, what: &Deletion) {
        while self.forget_step(repository, what).await {}
    }

    /// One step of that; gives whether there is more to do.
    async fn forget_step(self: &Arc<Self>, repository: &RepositoryName, what: &Deletion) -> bool {
        let (inner, name, deleted) = (self.clone(), repository.clone(), what.clone());
        let forgotten = self.metadata.write(move |transaction| {
            if is_followed(transaction, name.account_str())? || inner.is_stepping_down(&name.account()) {
                // It comes as an event, in its place among the others.
                return Ok(false);
            }
            let Some(id) = transaction.get_repository(&name)? else { return Ok::<_, RegistryError>(false) };
            let changed = match &deleted {
                Deletion::Tag(tag) => {
                    transaction.delete_tag(id, tag.as_str())?;
                    vec![tag.to_string()]
                }
                Deletion::Manifest(digest) => {
                    let Some((manifest, _)) = transaction.get_manifest_id(id, digest)? else { return Ok(false) };
                    let mut changed = transaction.list_tags_of(manifest)?;
                    changed.push(digest.to_string());
                    transaction.delete_manifest(manifest)?;
                    changed
                }
                Deletion::Blob(digest) => {
                    unmount_unneeded(transaction, id, digest)?;
                    return Ok(false);
                }
                Deletion::Repository => return inner.forget_some(transaction, &name, id),
            };
            inner.evict_around_commit(transaction, &name, changed);
            Ok(false)
        });
        forgotten.await.unwrap_or_else(|error| {
            tracing::warn!(error = &error as &dyn std::error::Error, %repository, "what the primary deleted is still here");
            false
        })
    }
}

impl Elsewhere {
    /// The other side answered, but not in a way that can be used.
    pub(super) fn unusable(&self, repository: &RepositoryName, reason: &str) -> RegistryError {
        RegistryError::PrimaryUnreachable {
            account: repository.account(),
            region: self.primary.region.clone(),
            reason: reason.to_owned(),
        }
    }
}

/// Takes a blob out of a repository where no manifest there needs it; gives whether it did. Its bytes are left to the storage
/// sweep.
fn unmount_unneeded(
    transaction: &WriteTransaction<'_>,
    repository: RepositoryId,
    digest: &Digest,
) -> Result<bool, RegistryError> {
    let Some(blob) = transaction.get_mounted_blob(repository, digest)? else { return Ok(false) };
    if transaction.get_manifest_using_blob(repository, blob.id)?.is_some() {
        return Ok(false);
    }
    transaction.unmount_blob(repository, blob.id)?;
    Ok(true)
}
