//! Brings copies of other regions' accounts up to date with what their primaries tell.
//!
//! What is told is applied in one transaction with the place in the log that it leads to, so that after a crash it goes
//! on exactly there; applying a change again is harmless. Digests are checked here: a manifest that is not what its
//! digest says ends the following, not the copy. While an account is being listed, or followed, nothing else
//! writes its manifests and tags.

use std::sync::Arc;

use keppel_federation::vocabulary::{AccountName, Digest, NodeId, RepositoryName, Tag};

use super::checking::{Prepared, PreparedOf, prepare, repository_of};
use super::copies::CopyStatus;
use super::setting_aside::Aside;
use crate::metadata::{Cursor, FollowRow, FollowState, NewManifest, RepositoryId, Told, WriteTransaction};
use crate::registry::feed::messages::{Change, ChangeKind, ListPlace, News, NewsKind, Place, Slice};
use crate::registry::manifest_push::References;
use crate::registry::succession::moving;
use crate::registry::{Inner, Registry, RegistryError};

/// Manifests, or blobs, that are taken away in one transaction.
const BATCH: usize = 200;
/// Accounts that are read in one step.
const FOLLOWS_STEP: usize = 1000;

impl Registry {
    /// Takes up what was followed before a restart. Called once, before the registry serves.
    ///
    /// # Errors
    /// Our own trouble.
    pub async fn recall_follows(&self) -> Result<(), RegistryError> {
        let mut after = String::new();
        loop {
            let last = after.clone();
            let rows = self.inner.metadata.read(move |reader| reader.list_follows(&last, FOLLOWS_STEP));
            let rows = rows.await.map_err(RegistryError::Metadata)?;
            self.inner.copies.recall(&rows);
            self.inner.recall_told(&rows).await?;
            match rows.last() {
                Some(last) => after = last.account.to_string(),
                None => return Ok(()),
            }
        }
    }

    /// Follows an account of another region from now on.
    pub fn want_copy(&self, account: &AccountName) {
        self.inner.want_copy(account);
    }

    /// Whether all of an account of another region was here at some time.
    pub fn has_copy(&self, account: &AccountName) -> bool {
        self.inner.copies.is_complete(account)
    }

    /// Waits until another account is to be followed. Cancel-safe.
    pub async fn copy_wanted(&self) {
        self.inner.copies.wanted().await;
    }

    /// The accounts that are followed, each with its place.
    pub fn copy_places(&self) -> Vec<(AccountName, Place)> {
        self.inner.copies.places()
    }

    /// Those whose places have changed since the copies were in this state (0: all), and the state that they are in now.
    pub fn copy_places_since(&self, state: u64) -> (u64, Vec<(AccountName, Place)>) {
        self.inner.copies.places_since(state)
    }

    /// How far the accounts that are followed are, by name.
    pub fn copy_status(&self) -> Vec<CopyStatus> {
        let mut copies = self.inner.copies.status();
        for copy in &mut copies {
            copy.backfill = self.inner.backfills.status(&copy.account);
        }
        copies
    }

    /// A node's accounts of which more is known to have happened than is here, each with its place in the log.
    pub fn copies_behind(&self, node: NodeId) -> Vec<(AccountName, u64)> {
        self.inner.copies.behind(node)
    }

    /// Notes how many bytes the manifests have together that are not here yet.
    pub fn set_copy_backlog(&self, account: &AccountName, bytes: u64) {
        self.inner.copies.set_backlog(account, bytes);
    }

    /// A session with a node begins. To be called before its first request is sent.
    pub fn begin_copy_session(&self, node: NodeId) {
        self.inner.copies.begin_session(node);
    }

    /// A node is asked about these of its accounts no longer. To be called before it is told.
    pub fn drop_from_copy_session(&self, node: NodeId, accounts: &[AccountName]) {
        self.inner.copies.drop_from_session(node, accounts);
    }

    /// A node has answered in full, and its lease lasts until this uptime.
    pub fn renew_copy_lease(&self, node: NodeId, until: std::time::Duration) {
        self.inner.copies.renew(node, until);
        self.inner.copies.heard(node);
    }

    /// Applies what a primary tells.
    ///
    /// Cancel safety: what was queued is applied; the place in memory may then be behind the one on disk, which is
    /// harmless.
    ///
    /// # Errors
    /// [`RegistryError::ManifestInvalid`] and others for what cannot be applied; our own trouble.
    pub async fn apply_news(&self, from: NodeId, news: News) -> Result<(), RegistryError> {
        let (inner, account) = (&self.inner, news.account);
        match news.what {
            NewsKind::Events { changes, upto, head, confirmed } => {
                inner.copies.change(&account, from);
                let (name, state) = (account.clone(), FollowState::Following);
                let follow = FollowRow { account: name, state, cursor: upto, source: Some(from) };
                inner.apply_changes(from, follow, changes).await?;
                inner.copies.moved(&account, upto, head, confirmed);
                Ok(())
            }
            NewsKind::Page { slices, next, base } => {
                inner.copies.change(&account, from);
                let base = match inner.copies.place(&account) {
                    Some((_, Some(first))) => first,
                    _ => base,
                };
                inner.apply_page(from, &account, slices, next, base).await
            }
            NewsKind::Resync => {
                tracing::info!(%account, "the primary's log does not reach back to this copy: it is listed anew");
                metrics::counter!("keppel_copy_resyncs_total").increment(1);
                inner.copies.listed(&account, ListPlace::beginning(), Cursor::default());
                Ok(())
            }
            NewsKind::NotPrimary => {
                inner.copies.change(&account, from);
                Ok(())
            }
        }
    }
}

/// Whether copies of an account are written by following it, and by nothing else.
pub(in crate::registry) fn is_followed(
    transaction: &WriteTransaction<'_>,
    account: &str,
) -> Result<bool, RegistryError> {
    Ok(matches!(transaction.get_follow_state(account)?, Some(FollowState::Listing | FollowState::Following)))
}

impl Inner {
    /// Refuses what a node tells that is not the primary by now, or is just being replaced, or while what was recorded here
    /// before it was is not sorted out; gives the claim under which it tells. To be asked inside the transaction that applies it,
    /// by [`Self::check_told`].
    pub(super) fn check_teller(&self, from: NodeId, account: &AccountName) -> Result<Told, RegistryError> {
        let told = self.upstream.get().and_then(|upstream| upstream.told_by(account, from));
        let told = told.filter(|_| !self.is_stepping_down(account) && !self.primacies.is_held_back(account, from));
        told.ok_or_else(|| moving(account, "who told this is not its primary by now"))
    }

    async fn apply_changes(
        self: &Arc<Self>,
        from: NodeId,
        follow: FollowRow,
        changes: Vec<Change>,
    ) -> Result<(), RegistryError> {
        let mut manifests = Vec::new();
        for change in &changes {
            repository_of(&follow.account, &change.repository)?;
            if let ChangeKind::ManifestPut(copy) = &change.kind {
                manifests.push((change.repository.clone(), copy.clone()));
            }
        }
        let prepared = prepare(manifests).await?;
        let count = changes.len();
        // A place without a change is as good in memory as on disk.
        let told = self.upstream.get().and_then(|upstream| upstream.told_by(&follow.account, from));
        if count == 0
            && self.copies.is_written(&follow.account, from, follow.cursor)
            && told.is_some_and(|told| self.copies.told(&follow.account) == Some(told))
        {
            return Ok(());
        }
        let (inner, account) = (self.clone(), follow.account.clone());
        let applied = self.metadata.write(move |transaction| {
            let told = inner.check_told(transaction, from, &follow.account)?;
            for change in &changes {
                inner.apply_change(transaction, &follow.account, change, &prepared)?;
            }
            transaction.put_follow(&follow)?;
            transaction.put_told(&follow.account, told)?;
            Ok::<_, RegistryError>(told)
        });
        self.copies.set_told(&account, applied.await?);
        metrics::counter!("keppel_copy_events_total").increment(count as u64);
        Ok(())
    }

    fn apply_change(
        self: &Arc<Self>,
        transaction: &WriteTransaction<'_>,
        account: &AccountName,
        change: &Change,
        prepared: &PreparedOf,
    ) -> Result<(), RegistryError> {
        let name = repository_of(account, &change.repository)?;
        match &change.kind {
            ChangeKind::RepositoryGone => {
                if let Some(id) = transaction.get_repository(&name)? {
                    // Its manifests went before; what is left are blobs that were pulled or pushed here.
                    while self.take_manifests(transaction, &name, id)? > 0 {}
                    while unmount_some(transaction, id)? > 0 {}
                    transaction.delete_repository(id)?;
                }
                return Ok(());
            }
            ChangeKind::ManifestGone(_) | ChangeKind::TagGone(_) | ChangeKind::BlobGone(_)
                if transaction.get_repository(&name)?.is_none() =>
            {
                return Ok(());
            }
            _ => {}
        }
        let now = self.clock.now();
        let account = transaction.ensure_account(account, now)?;
        let id = transaction.ensure_repository(account, &name, now)?;
        match &change.kind {
            ChangeKind::RepositoryMade | ChangeKind::RepositoryGone => Ok(()),
            ChangeKind::ManifestPut(copy) => match prepared.get(&(change.repository.clone(), copy.digest)) {
                Some(manifest) => self.put_copy(transaction, &name, id, manifest),
                None => Err(RegistryError::Interrupted),
            },
            ChangeKind::ManifestGone(digest) => self.take_manifest(transaction, &name, id, digest),
            ChangeKind::TagSet(tag, digest) => self.put_tag_copy(transaction, &name, id, tag, digest, change.at),
            ChangeKind::TagGone(tag) => {
                transaction.delete_tag(id, tag)?;
                self.evict_around_commit(transaction, &name, vec![tag.clone()]);
                Ok(())
            }
            ChangeKind::BlobGone(digest) => {
                if let Some(blob) = transaction.get_mounted_blob(id, digest)?
                    && transaction.get_manifest_using_blob(id, blob.id)?.is_none()
                    // One that was pushed here since is for a manifest to come.
                    && transaction.get_mounted_at(id, blob.id)?.is_some_and(|mounted_at| mounted_at < change.at)
                {
                    // The bytes are left to the storage sweep.
                    transaction.unmount_blob(id, blob.id)?;
                }
                Ok(())
            }
        }
    }

    fn put_copy(
        self: &Arc<Self>,
        transaction: &WriteTransaction<'_>,
        name: &RepositoryName,
        id: RepositoryId,
        manifest: &Prepared,
    ) -> Result<(), RegistryError> {
        let Prepared { copy, description } = manifest;
        let references = References::find(transaction, id, description)?;
        let new = NewManifest {
            digest: copy.digest,
            media_type: description.kind.media_type(),
            total_size_bytes: copy.total_size_bytes,
            subject: description.subject,
            artifact_type: description.artifact_type.clone(),
            annotations: serde_json::to_string(&description.annotations).unwrap_or_else(|_| "{}".into()),
            labels: copy.labels.clone(),
            min_layer_created_at: copy.min_layer_created_at,
            max_layer_created_at: copy.max_layer_created_at,
            bytes: copy.bytes.clone(),
        };
        let row = transaction.put_manifest(id, &new, copy.pushed_at)?;
        self.note_missing(name, row, description, |digest| references.unknown().contains(digest));
        references.blobs.iter().try_for_each(|blob| transaction.ensure_manifest_blob(row, *blob))?;
        description.children.iter().try_for_each(|child| transaction.ensure_child(id, row, &child.digest))?;
        let mut changed = transaction.list_tags_of(row)?;
        changed.push(copy.digest.to_string());
        self.evict_around_commit(transaction, name, changed);
        Ok(())
    }

    fn put_tag_copy(
        self: &Arc<Self>,
        transaction: &WriteTransaction<'_>,
        name: &RepositoryName,
        id: RepositoryId,
        tag: &str,
        digest: &Digest,
        at: i64,
    ) -> Result<(), RegistryError> {
        Tag::parse(tag).map_err(|error| RegistryError::ManifestInvalid { reason: error.to_string() })?;
        match transaction.get_manifest_id(id, digest)? {
            Some((manifest, _)) => transaction.put_tag(id, tag, manifest, at)?,
            // It was deleted since; what became of the tag comes later.
            None => {
                transaction.delete_tag(id, tag)?;
            }
        }
        self.evict_around_commit(transaction, name, vec![tag.to_owned()]);
        Ok(())
    }

    fn take_manifest(
        self: &Arc<Self>,
        transaction: &WriteTransaction<'_>,
        name: &RepositoryName,
        id: RepositoryId,
        digest: &Digest,
    ) -> Result<(), RegistryError> {
        let Some((manifest, _)) = transaction.get_manifest_id(id, digest)? else { return Ok(()) };
        let mut changed = transaction.list_tags_of(manifest)?;
        changed.push(digest.to_string());
        transaction.delete_manifest(manifest)?;
        self.evict_around_commit(transaction, name, changed);
        Ok(())
    }

    /// Takes away some manifests of a repository; gives how many.
    fn take_manifests(
        self: &Arc<Self>,
        transaction: &WriteTransaction<'_>,
        name: &RepositoryName,
        id: RepositoryId,
    ) -> Result<usize, RegistryError> {
        let digests = transaction.list_digests(id, None, None, BATCH)?;
        digests.iter().try_for_each(|digest| self.take_manifest(transaction, name, id, digest))?;
        Ok(digests.len())
    }

    async fn apply_page(
        self: &Arc<Self>,
        from: NodeId,
        account: &AccountName,
        slices: Vec<Slice>,
        next: Option<ListPlace>,
        base: Cursor,
    ) -> Result<(), RegistryError> {
        self.check_teller(from, account)?;
        self.begin_listing(from, account, base).await?;
        let mut manifests = Vec::new();
        for slice in &slices {
            match slice {
                Slice::Repository { after, name } => {
                    self.take_away_between(from, account, after, name.as_deref()).await?;
                }
                Slice::Manifests { repository, manifests: listed, .. } => {
                    manifests.extend(listed.iter().map(|copy| (repository.clone(), copy.clone())));
                }
                Slice::Tags { .. } => {}
            }
        }
        let prepared = prepare(manifests).await?;
        let state = if next.is_some() { FollowState::Listing } else { FollowState::Following };
        let follow = FollowRow { account: account.clone(), state, cursor: base, source: Some(from) };
        let inner = self.clone();
        let applied = self.metadata.write(move |transaction| {
            let told = inner.check_told(transaction, from, &follow.account)?;
            for slice in &slices {
                inner.apply_slice(transaction, &follow.account, slice, &prepared)?;
            }
            transaction.put_follow(&follow)?;
            transaction.put_told(&follow.account, told)?;
            Ok::<_, RegistryError>(told)
        });
        self.copies.set_told(account, applied.await?);
        self.copies.relisted(account);
        match next {
            Some(next) => self.copies.listed(account, next, base),
            // How much has happened since is told with the events.
            None => self.copies.moved(account, base, base.sequence, None),
        }
        Ok(())
    }

    fn apply_slice(
        self: &Arc<Self>,
        transaction: &WriteTransaction<'_>,
        account: &AccountName,
        slice: &Slice,
        prepared: &PreparedOf,
    ) -> Result<(), RegistryError> {
        let now = self.clock.now();
        let aside = Aside::of(transaction, account)?;
        let of = |name: &str| -> Result<(RepositoryName, RepositoryId), RegistryError> {
            let repository = repository_of(account, name)?;
            let account = transaction.ensure_account(account, now)?;
            let id = transaction.ensure_repository(account, &repository, now)?;
            Ok((repository, id))
        };
        match slice {
            // It may have been made by a pull, which is no push.
            Slice::Repository { name: Some(name), .. } => Ok(transaction.forget_last_push(of(name)?.1)?),
            Slice::Repository { name: None, .. } => Ok(()),
            Slice::Manifests { repository, after, manifests, upto } => {
                let (name, id) = of(repository)?;
                for digest in transaction.list_digests(id, after.as_ref(), upto.as_ref(), usize::MAX >> 1)? {
                    if manifests.binary_search_by(|copy| copy.digest.cmp(&digest)).is_err() {
                        aside.put_manifest(transaction, repository, &digest)?;
                        self.take_manifest(transaction, &name, id, &digest)?;
                    }
                }
                for copy in manifests {
                    let manifest = prepared.get(&(repository.clone(), copy.digest));
                    self.put_copy(transaction, &name, id, manifest.ok_or(RegistryError::Interrupted)?)?;
                }
                Ok(())
            }
            Slice::Tags { repository, after, tags, upto } => {
                let (name, id) = of(repository)?;
                let is_in_slice = |tag: &str| upto.as_deref().is_none_or(|upto| tag <= upto);
                let here = transaction.list_tag_copies(id, after, usize::MAX >> 1)?;
                for tag in here.iter().take_while(|tag| is_in_slice(&tag.name)) {
                    let listed = tags.binary_search_by(|listed| listed.name.cmp(&tag.name));
                    if listed.map_or(true, |at| tags[at].digest != tag.digest) {
                        aside.put_tag(transaction, repository, tag)?;
                    }
                    if listed.is_err() {
                        transaction.delete_tag(id, &tag.name)?;
                        self.evict_around_commit(transaction, &name, vec![tag.name.clone()]);
                    }
                }
                for tag in tags {
                    self.put_tag_copy(transaction, &name, id, &tag.name, &tag.digest, tag.pushed_at)?;
                }
                Ok(())
            }
        }
    }

    /// Takes away the manifests of an account's repositories whose full names lie between two names, step by step. Blobs stay
    /// that clients may just be pushing here.
    async fn take_away_between(
        self: &Arc<Self>,
        teller: NodeId,
        account: &AccountName,
        after: &str,
        before: Option<&str>,
    ) -> Result<(), RegistryError> {
        let mut after = after.to_owned();
        loop {
            let (inner, account, last) = (self.clone(), account.clone(), after.clone());
            let before = before.map(str::to_owned);
            let step = self.metadata.write(move |transaction| {
                inner.check_told(transaction, teller, &account)?;
                let Some((account_id, _)) = transaction.get_event_head(&account)? else { return Ok(None) };
                let Some((id, found)) = transaction.get_next_repository(account_id, &last)? else { return Ok(None) };
                if before.is_some_and(|before| found >= before) {
                    return Ok(None);
                }
                let name = repository_of(&account, &found)?;
                let aside = Aside::of(transaction, &account)?;
                if aside.is_wanted() {
                    for digest in transaction.list_digests(id, None, None, BATCH)? {
                        aside.put_manifest(transaction, &found, &digest)?;
                    }
                }
                let is_full = inner.take_manifests(transaction, &name, id)? == BATCH;
                Ok::<_, RegistryError>(Some(if is_full { last } else { found }))
            });
            match step.await? {
                Some(last) => after = last,
                None => return Ok(()),
            }
        }
    }
}

/// Takes some blobs out of a repository; gives how many. Their bytes are left to the storage sweep.
fn unmount_some(transaction: &WriteTransaction<'_>, repository: RepositoryId) -> Result<usize, RegistryError> {
    let mounts = transaction.list_mounts(repository, BATCH)?;
    for blob in &mounts {
        transaction.unmount_blob(repository, blob.id)?;
    }
    Ok(mounts.len())
}
