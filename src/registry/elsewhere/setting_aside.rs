//! What is here of an account and its new primary may never have had.
//!
//! A copy that was whole may be further in the log of a lost primary than the region that took its place, and hold what was
//! acknowledged because of that. When the account is listed anew from there, what the listing takes away here goes on the list
//! of divergent changes; what the new primary turns out to have leaves it again. Where it is known that the new primary had all
//! that is here, nothing is put on the list: what it deleted since, it deleted.

use std::sync::Arc;

use keppel_federation::vocabulary::{AccountName, Digest, NodeId};

use crate::metadata::{
    AccountId, Cursor, DivergentChange, FollowRow, FollowState, MetadataError, TagCopy, Told, WriteTransaction,
};
use crate::registry::feed::messages::ListPlace;
use crate::registry::succession::{manifest_here, moving, put_divergent};
use crate::registry::{Inner, Registry, RegistryError};

impl Registry {
    /// The epoch under which all was told that is here of an account, when its primary has told nothing yet since it became that
    /// in another epoch. Before it is listed anew, [`Self::settle_copy`] wants to know where in the log of that former epoch's
    /// primary its successor took over.
    pub fn copy_of_before(&self, account: &AccountName, from: NodeId) -> Option<u64> {
        let here = self.inner.copies.told(account).filter(|told| told.epoch > 0)?;
        let now = self.inner.upstream.get()?.told_by(account, from)?;
        (here.epoch != now.epoch && here.claim == now.claim).then_some(here.epoch)
    }

    /// Has an account listed anew that another primary told before. `place`: where in the log of that one its successor took
    /// over, `None`: nobody knows. What the successor may never have had goes on the list of divergent changes when the listing
    /// takes it away.
    ///
    /// Cancel safety: may be called again.
    ///
    /// # Errors
    /// [`RegistryError::AccountMoving`] when `from` is not the primary; our own trouble.
    pub async fn settle_copy(
        &self,
        account: &AccountName,
        from: NodeId,
        place: Option<Cursor>,
    ) -> Result<(), RegistryError> {
        let (inner, name) = (self.inner.clone(), account.clone());
        let settled = self.inner.metadata.write(move |transaction| {
            let now = inner.check_told(transaction, from, &name)?;
            let Some(row) = transaction.get_follow_claim(&name)?.filter(|row| row.told.epoch != now.epoch) else {
                return Ok(now);
            };
            let had_all =
                row.state == FollowState::Following && place.is_some_and(|place| row.cursor.sequence <= place.sequence);
            list_anew(transaction, &name, from, now, (!had_all).then_some(row.told.epoch))?;
            Ok::<_, RegistryError>(now)
        });
        self.inner.copies.set_told(account, settled.await?);
        self.inner.copies.listed(account, ListPlace::beginning(), Cursor::default());
        Ok(())
    }
}

fn list_anew(
    transaction: &WriteTransaction<'_>,
    account: &AccountName,
    from: NodeId,
    told: Told,
    keeps: Option<u64>,
) -> Result<(), MetadataError> {
    let (name, cursor) = (account.clone(), Cursor::default());
    let row = FollowRow { account: name, state: FollowState::Listing, cursor, source: Some(from) };
    transaction.put_follow(&row)?;
    transaction.put_told(account, told)?;
    keeps.map_or(Ok(()), |epoch| transaction.keep_in_listing(account, epoch))
}

impl Inner {
    /// Like [`Self::check_teller`], and refuses what is told of a new account while what is here is of a deleted one of its name.
    pub(super) fn check_told(
        &self,
        transaction: &WriteTransaction<'_>,
        from: NodeId,
        account: &AccountName,
    ) -> Result<Told, RegistryError> {
        let now = self.check_teller(from, account)?;
        let row = transaction.get_follow_claim(account)?;
        match row.is_some_and(|row| is_of_another(row.told.claim, now.claim)) {
            true => Err(moving(account, "what is here is of a former account of this name")),
            false => Ok(now),
        }
    }

    /// Before a page of a listing is applied: notes that the copy is not whole any more, and whether what the listing takes away
    /// is to be kept. `base`: the end of the primary's log.
    pub(super) async fn begin_listing(
        self: &Arc<Self>,
        from: NodeId,
        account: &AccountName,
        base: Cursor,
    ) -> Result<(), RegistryError> {
        let name = account.clone();
        let row = self.metadata.read(move |reader| reader.get_follow_claim(&name)).await;
        let Some(row) = row.map_err(RegistryError::Metadata)? else { return Ok(()) };
        let now = self.check_teller(from, account)?;
        let is_of_now = row.told.epoch == now.epoch || row.told.epoch == 0;
        let keeps = match row.state {
            FollowState::Pulled => return Ok(()),
            FollowState::Listing if is_of_now => return Ok(()),
            // A log that is shorter than it was is that of a database which was put back.
            FollowState::Following if is_of_now => (base.sequence < row.cursor.sequence).then_some(now.epoch),
            // Where the successor took over was not asked: it may have had less.
            FollowState::Listing | FollowState::Following => Some(row.told.epoch),
        };
        let (inner, name) = (self.clone(), account.clone());
        let begun = self.metadata.write(move |transaction| {
            let now = inner.check_told(transaction, from, &name)?;
            list_anew(transaction, &name, from, now, keeps)?;
            Ok::<_, RegistryError>(now)
        });
        self.copies.set_told(account, begun.await?);
        Ok(())
    }

    /// Takes up under which claims was told what was followed before a restart.
    pub(super) async fn recall_told(&self, rows: &[FollowRow]) -> Result<(), RegistryError> {
        let accounts: Vec<AccountName> = rows.iter().map(|row| row.account.clone()).collect();
        let read = self.metadata.read(move |reader| {
            let told = |account: AccountName| match reader.get_follow_claim(&account) {
                Ok(row) => Ok((account, row.map(|row| row.told).unwrap_or_default())),
                Err(error) => Err(error),
            };
            accounts.into_iter().map(told).collect::<Result<Vec<_>, MetadataError>>()
        });
        let told = read.await.map_err(RegistryError::Metadata)?;
        told.iter().for_each(|(account, told)| self.copies.set_told(account, *told));
        Ok(())
    }
}

/// Whether these are known to be two claims of one name.
pub(super) fn is_of_another(here: u64, now: u64) -> bool {
    here != 0 && now != 0 && here != now
}

/// Where goes what a listing takes away of an account.
pub(super) struct Aside<'a> {
    account: &'a AccountName,
    to: Option<(u64, AccountId)>,
}

impl<'a> Aside<'a> {
    pub(super) fn of(transaction: &WriteTransaction<'_>, account: &'a AccountName) -> Result<Self, MetadataError> {
        let keeps = transaction.get_follow_claim(account)?.and_then(|row| row.keeps);
        let to = match keeps {
            Some(epoch) => transaction.get_account(account)?.map(|id| (epoch, id)),
            None => None,
        };
        Ok(Self { account, to })
    }

    /// Whether it is kept.
    pub(super) fn is_wanted(&self) -> bool {
        self.to.is_some()
    }

    /// A manifest that is about to be taken away, with its tags.
    pub(super) fn put_manifest(
        &self,
        transaction: &WriteTransaction<'_>,
        repository: &str,
        digest: &Digest,
    ) -> Result<(), MetadataError> {
        let Some((epoch, id)) = self.to else { return Ok(()) };
        let Some((row, manifest)) = manifest_here(transaction, repository, digest)? else { return Ok(()) };
        let at = transaction.get_pushed_at(row)?.unwrap_or_default();
        let change = DivergentChange::Manifest(manifest.clone());
        put_divergent(transaction, self.account, epoch, at, id, repository, &change)?;
        for tag in transaction.list_tags_with_times(row)? {
            let change = DivergentChange::Tag(tag.name, manifest.clone());
            put_divergent(transaction, self.account, epoch, tag.pushed_at, id, repository, &change)?;
        }
        Ok(())
    }

    /// A tag that is about to be taken away, or set to another manifest.
    pub(super) fn put_tag(
        &self,
        transaction: &WriteTransaction<'_>,
        repository: &str,
        tag: &TagCopy,
    ) -> Result<(), MetadataError> {
        let Some((epoch, id)) = self.to else { return Ok(()) };
        let Some((_, manifest)) = manifest_here(transaction, repository, &tag.digest)? else { return Ok(()) };
        let change = DivergentChange::Tag(tag.name.clone(), manifest);
        put_divergent(transaction, self.account, epoch, tag.pushed_at, id, repository, &change)
    }
}
