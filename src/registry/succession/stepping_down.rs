//! A former primary becomes a replica, and keeps what its successor never had.
//!
//! What that is, its own log says: everything after the place at which the successor took over. Where that place is not
//! known, or the log does not reach back to it, all that is here goes on the list; what the successor turns out to have is
//! taken off again once the copy is whole.

use std::collections::BTreeMap;
use std::sync::Arc;

use keppel_federation::vocabulary::{AccountName, Digest};

use super::moving;
use super::readiness::needed_blobs;
use crate::metadata::{
    AccountId, BlobId, Cursor, DivergentChange, DivergentManifest, EventKind, FollowRow, FollowState, ManifestId,
    ManifestRow, MetadataError, RepositoryId, WriteTransaction,
};
use crate::registry::elsewhere::Elsewhere;
use crate::registry::{Inner, Registry, RegistryError};

/// Events that are read together.
const EVENTS: usize = 1000;
/// Manifests or tags that are listed in one step.
const ROWS: usize = 200;

/// A place among all manifests and tags of an account: the repository before, and the manifest before within the next.
#[derive(Default, Clone)]
struct AllPlace {
    before: String,
    after: Option<Digest>,
}

impl Registry {
    /// Accounts that this node was the primary of and another node is, with the epochs that it knew.
    pub fn lost_accounts(&self) -> Vec<(AccountName, u64)> {
        let lost = self.inner.primacies.accounts().into_iter();
        let lost = lost.filter(|account| self.inner.is_stepping_down(account));
        lost.filter_map(|account| Some((account.clone(), self.inner.primacies.get(&account)?.epoch))).collect()
    }

    /// Becomes a replica of an account that this node was the primary of: what the successor never had goes on the list of
    /// divergent changes, and from then on the account is followed. `place`: where in the log here the successor took over;
    /// `None`: nobody knows. Gives how many entries the list has.
    ///
    /// Cancel safety: may be called again.
    ///
    /// # Errors
    /// [`RegistryError::AccountMoving`] when this node is the primary after all; our own trouble.
    pub async fn step_down(&self, account: &AccountName, place: Option<Cursor>) -> Result<u64, RegistryError> {
        let inner = &self.inner;
        let epoch = inner.primacies.get(account).map_or(0, |primacy| primacy.epoch);
        inner.withdraw_leases(account);
        let (this, name) = (inner.clone(), account.clone());
        let by_log = inner.metadata.write(move |transaction| {
            this.check_lost(&name)?;
            let by_log = match transaction.get_account(&name)? {
                // What was pulled from outside can be pulled again.
                Some(_) if this.external_source(&name).is_some() => true,
                Some(id) => match place {
                    Some(place) if place == Cursor::default() || transaction.is_in_log(id, place)? => {
                        list_since(transaction, &name, epoch, id, place)?
                    }
                    Some(_) | None => false,
                },
                None => true,
            };
            if by_log {
                this.become_replica(transaction, &name)?;
            }
            Ok::<_, RegistryError>(by_log)
        });
        if !by_log.await? {
            tracing::warn!(%account, "where the successor took over is not known: all that is here is compared with what it has");
            self.list_all(account, epoch).await?;
        }
        inner.primacies.remove(account);
        inner.allow_leases(account);
        if inner.external_source(account).is_none() {
            inner.want_copy(account);
        }
        let name = account.clone();
        let count = inner.metadata.read(move |reader| reader.count_divergent(&name)).await;
        let count = count.map_err(RegistryError::Metadata)?;
        match count {
            0 => tracing::info!(%account, "this node is a replica of an account that it was the primary of"),
            count => tracing::warn!(
                %account, count,
                "this node recorded changes as the primary that its successor never had: see `keppel account divergent`"
            ),
        }
        Ok(count)
    }

    async fn list_all(&self, account: &AccountName, epoch: u64) -> Result<(), RegistryError> {
        let mut place = AllPlace::default();
        loop {
            let (this, name, mut at) = (self.inner.clone(), account.clone(), place);
            let step = self.inner.metadata.write(move |transaction| {
                this.check_lost(&name)?;
                let Some(id) = transaction.get_account(&name)? else {
                    this.become_replica(transaction, &name)?;
                    return Ok(None);
                };
                if list_some(transaction, &name, epoch, id, &mut at)? {
                    return Ok::<_, RegistryError>(Some(at));
                }
                this.become_replica(transaction, &name)?;
                Ok(None)
            });
            match step.await? {
                Some(next) => place = next,
                None => return Ok(()),
            }
        }
    }
}

impl Inner {
    fn check_lost(&self, account: &AccountName) -> Result<(), RegistryError> {
        match self.is_stepping_down(account) {
            true => Ok(()),
            false => Err(moving(account, "this node has nothing to give up")),
        }
    }

    /// From the end of this transaction on the account is followed, and what its primary has replaces what is here. Mirrors are
    /// not followed.
    fn become_replica(
        self: &Arc<Self>,
        transaction: &WriteTransaction<'_>,
        account: &AccountName,
    ) -> Result<(), RegistryError> {
        let (name, cursor) = (account.clone(), Cursor::default());
        let row = FollowRow { account: name, state: FollowState::Listing, cursor, source: None };
        if self.external_source(account).is_none() {
            transaction.put_follow(&row)?;
            if let Some(Elsewhere { primary, upstream }) = self.elsewhere(account)
                && let Some(told) = upstream.told_by(account, primary.node)
            {
                // What only this node has is on the list already.
                transaction.put_told(account, told)?;
            }
        }
        transaction.delete_primacy(account)?;
        if let Some(id) = transaction.get_account(account)? {
            // What an account holds is counted where its primary is.
            transaction.set_tenant(id, "")?;
        }
        Ok(())
    }
}

/// A manifest or a tag, with its repository.
type Thing = (String, Option<Digest>, Option<String>);

/// What the events after a place came to, as entries of the list. Gives whether the log reaches back to it.
fn list_since(
    transaction: &WriteTransaction<'_>,
    account: &AccountName,
    epoch: u64,
    id: AccountId,
    place: Cursor,
) -> Result<bool, RegistryError> {
    // Of each thing only the last counts; in the order in which that happened.
    let mut last: BTreeMap<Thing, (u64, i64, EventKind)> = BTreeMap::new();
    let (mut after, mut expected) = (place.sequence, place.sequence + 1);
    loop {
        let events = transaction.list_events(id, after, EVENTS)?;
        let Some(newest) = events.last() else { break };
        after = newest.cursor.sequence;
        for event in events {
            if event.cursor.sequence != expected {
                return Ok(false);
            }
            expected += 1;
            let key = match &event.kind {
                EventKind::ManifestPut(digest) | EventKind::ManifestGone(digest) => (Some(*digest), None),
                EventKind::TagSet(tag, _) | EventKind::TagGone(tag) => (None, Some(tag.clone())),
                EventKind::RepositoryMade | EventKind::RepositoryGone | EventKind::BlobGone(_) => continue,
            };
            let key = (event.repository, key.0, key.1);
            last.insert(key, (event.cursor.sequence, event.at, event.kind));
        }
    }
    let mut in_order: Vec<_> = last.into_iter().map(|((repository, ..), rest)| (rest, repository)).collect();
    in_order.sort_unstable_by_key(|((sequence, ..), _)| *sequence);
    for ((_, at, kind), repository) in in_order {
        let change = match kind {
            EventKind::ManifestPut(digest) => manifest_here(transaction, &repository, &digest)?
                .map(|(_, manifest)| DivergentChange::Manifest(manifest)),
            EventKind::TagSet(tag, digest) => {
                let manifest = manifest_here(transaction, &repository, &digest)?;
                manifest.map(|(_, manifest)| DivergentChange::Tag(tag, manifest))
            }
            EventKind::ManifestGone(digest) => Some(DivergentChange::ManifestGone(digest)),
            EventKind::TagGone(tag) => Some(DivergentChange::TagGone(tag)),
            EventKind::RepositoryMade | EventKind::RepositoryGone | EventKind::BlobGone(_) => None,
        };
        if let Some(change) = change {
            put(transaction, account, epoch, at, id, &repository, &change)?;
        }
    }
    Ok(true)
}

/// A manifest as it goes on the list, with its row.
pub(in crate::registry) fn manifest_here(
    transaction: &WriteTransaction<'_>,
    repository: &str,
    digest: &Digest,
) -> Result<Option<(ManifestId, DivergentManifest)>, MetadataError> {
    let row = transaction.get_manifest_by_digest(repository, digest)?;
    let manifest = |row: ManifestRow| {
        (row.id, DivergentManifest { digest: row.digest, media_type: row.media_type, bytes: row.bytes })
    };
    Ok(row.map(manifest))
}

/// Puts a change on the list, with the blobs that it needs and that are here.
pub(in crate::registry) fn put(
    transaction: &WriteTransaction<'_>,
    account: &AccountName,
    epoch: u64,
    at: i64,
    id: AccountId,
    repository: &str,
    change: &DivergentChange,
) -> Result<(), MetadataError> {
    let mut blobs: Vec<BlobId> = Vec::new();
    if let DivergentChange::Manifest(manifest) | DivergentChange::Tag(_, manifest) = change {
        for (digest, _) in needed_blobs(&manifest.media_type, &manifest.bytes) {
            blobs.extend(transaction.get_account_blob(id, &digest)?.map(|blob| blob.id));
        }
    }
    transaction.put_divergent(account, epoch, at, repository, change, &blobs)
}

/// Puts some of all that is here on the list: of each repository the manifests, then the tags. Gives whether there is more.
fn list_some(
    transaction: &WriteTransaction<'_>,
    account: &AccountName,
    epoch: u64,
    id: AccountId,
    place: &mut AllPlace,
) -> Result<bool, RegistryError> {
    let Some((repository, name)) = transaction.get_next_repository(id, &place.before)? else { return Ok(false) };
    let (manifests, is_end) = transaction.list_manifest_copies(repository, place.after.as_ref(), ROWS, 16 << 20)?;
    place.after = manifests.last().map(|copy| copy.digest);
    for copy in manifests {
        let manifest = DivergentManifest { digest: copy.digest, media_type: copy.media_type, bytes: copy.bytes };
        put(transaction, account, epoch, copy.pushed_at, id, &name, &DivergentChange::Manifest(manifest))?;
    }
    if is_end {
        list_tags(transaction, account, epoch, id, (repository, &name))?;
        *place = AllPlace { before: name, after: None };
    }
    Ok(true)
}

fn list_tags(
    transaction: &WriteTransaction<'_>,
    account: &AccountName,
    epoch: u64,
    id: AccountId,
    (repository, name): (RepositoryId, &str),
) -> Result<(), RegistryError> {
    let mut after = String::new();
    loop {
        let tags = transaction.list_tag_copies(repository, &after, ROWS)?;
        let Some(last) = tags.last() else { return Ok(()) };
        after.clone_from(&last.name);
        for tag in tags {
            if let Some((_, manifest)) = manifest_here(transaction, name, &tag.digest)? {
                put(transaction, account, epoch, tag.pushed_at, id, name, &DivergentChange::Tag(tag.name, manifest))?;
            }
        }
    }
}
