//! A replica becomes the primary, and puts in order what only a primary needs.

use std::sync::Arc;

use keppel_federation::vocabulary::AccountName;

use super::readiness::{ManifestPlace, next_manifests};
use super::{STEP, moving};
use crate::metadata::{AccountId, Cursor, FollowClaim, FollowState, MetadataError, Stage, WriteTransaction};
use crate::registry::{Inner, Registry, RegistryError};

/// How an account comes to this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handover {
    /// The primary before gave it, and nothing that it promised is left.
    Given,
    /// It may know nothing of that, and its promises have to run out.
    Seized,
}

impl Registry {
    /// Notes on disk that this node may become the primary of an account with this epoch. To be called before anybody is
    /// asked to decide that.
    ///
    /// # Errors
    /// [`RegistryError::AccountMoving`] while this node has to sort out what it was the primary of; our own trouble.
    pub async fn expect_account(&self, account: &AccountName, epoch: u64) -> Result<(), RegistryError> {
        let inner = &self.inner;
        if matches!(inner.primacies.stage(account), Some(Stage::Held | Stage::HandingOver | Stage::Taken)) {
            return Err(moving(account, "this node was its primary before, and is not a replica yet"));
        }
        let name = account.clone();
        let noted = inner.metadata.write(move |transaction| transaction.put_primacy(&name, epoch, Stage::Coming));
        noted.await.map_err(RegistryError::Metadata)?;
        inner.primacies.put(account, epoch, Stage::Coming, None);
        Ok(())
    }

    /// Accounts that this node may have become the primary of, and has as far as it knows.
    pub fn arrived_accounts(&self) -> Vec<AccountName> {
        let coming = self.inner.primacies.in_stage(Stage::Coming).into_iter();
        coming.filter(|(account, _)| self.inner.claims.is_primary(account)).map(|(account, _)| account).collect()
    }

    /// Whether everything up to this place in its primary's log is here.
    pub fn has_reached(&self, account: &AccountName, place: Cursor) -> bool {
        self.inner.copies.is_at(account, place)
    }

    /// Acts as the primary of an account from now on; it has been decided that this node is. Writes are taken at once. As long
    /// as the primary before may have promised something, they are not acknowledged, and answers are marked.
    ///
    /// Cancel safety: may be called again.
    ///
    /// # Errors
    /// [`RegistryError::AccountMoving`] when this node is not the primary; our own trouble.
    pub async fn take_account(&self, account: &AccountName, how: Handover) -> Result<(), RegistryError> {
        let inner = &self.inner;
        let Some(epoch) = inner.claims.primary_epoch(account) else {
            return Err(moving(account, "this node is not its primary"));
        };
        match inner.primacies.stage(account) {
            Some(Stage::Coming) => {}
            Some(Stage::Held | Stage::Taken) => return Ok(()),
            None | Some(Stage::HandingOver) => return Err(moving(account, "it was not to come here")),
        }
        if how == Handover::Seized {
            inner.keep_quiet(account, inner.promises_last());
        }
        let (this, name) = (inner.clone(), account.clone());
        let taken = inner.metadata.write(move |transaction| {
            if this.elsewhere(&name).is_some() {
                return Err(moving(&name, "it has another primary by now"));
            }
            // A place in the log of another than the primary of the epoch before would say nothing.
            let follows = |row: &FollowClaim| {
                row.state == FollowState::Following && (row.told.epoch + 1 == epoch || row.told.epoch == 0)
            };
            let place = transaction.get_follow_claim(&name)?.filter(follows).map(|row| row.cursor).unwrap_or_default();
            transaction.put_succession(&name, epoch, place)?;
            transaction.delete_follow(&name)?;
            transaction.put_primacy(&name, epoch, Stage::Taken)?;
            let now = this.clock.now();
            let id = transaction.ensure_account(&name, now)?;
            transaction.keep_all_pulled(id)?;
            if let Some(rules) = this.claims.rules(&name) {
                transaction.set_tenant(id, rules.tenant.as_str())?;
            }
            Ok(())
        });
        taken.await?;
        inner.copies.forget(account);
        inner.primacies.put(account, epoch, Stage::Taken, None);
        inner.storage.prepare_space(account).await?;
        tracing::info!(%account, epoch, ?how, "this node is the primary of an account that another had");
        Ok(())
    }

    /// Accounts that were taken over and are not in order yet.
    pub fn unordered_accounts(&self) -> Vec<AccountName> {
        let taken = self.inner.primacies.in_stage(Stage::Taken).into_iter();
        taken.filter(|(account, _)| self.inner.claims.is_primary(account)).map(|(account, _)| account).collect()
    }

    /// Puts an account in order that was taken over: what its manifests refer to is mounted and linked as if it had been
    /// pushed here, and what is missing is noted. Until then nothing of it is collected.
    ///
    /// Cancel safety: may be called again.
    ///
    /// # Errors
    /// Our own trouble.
    pub async fn put_account_in_order(&self, account: &AccountName) -> Result<(), RegistryError> {
        let inner = &self.inner;
        let mut place = ManifestPlace::default();
        loop {
            let (this, name, mut at) = (inner.clone(), account.clone(), place);
            let step = inner.metadata.write(move |transaction| {
                let Some(id) = transaction.get_account(&name)? else { return Ok(None) };
                Ok::<_, RegistryError>(this.link_some(transaction, id, &mut at)?.then_some(at))
            });
            match step.await? {
                Some(next) => place = next,
                None => break,
            }
        }
        // Only then is it on disk that no promise of the primary before has to be waited for.
        inner.settled(account).await;
        let (this, name) = (inner.clone(), account.clone());
        let ordered = inner.metadata.write(move |transaction| {
            if let Some(epoch) = this.claims.primary_epoch(&name)
                && this.primacies.stage(&name) == Some(Stage::Taken)
            {
                transaction.put_primacy(&name, epoch, Stage::Held)?;
                this.primacies.put(&name, epoch, Stage::Held, None);
            }
            Ok::<_, MetadataError>(())
        });
        ordered.await.map_err(RegistryError::Metadata)
    }

    /// Where in the log of the primary before this node was when its epoch began.
    ///
    /// # Errors
    /// Our own trouble.
    pub async fn succession(&self, account: &AccountName, epoch: u64) -> Result<Option<Cursor>, RegistryError> {
        let name = account.clone();
        let read = self.inner.metadata.read(move |reader| reader.get_succession(&name, epoch)).await;
        read.map_err(RegistryError::Metadata)
    }
}

impl Inner {
    /// Mounts and links what some manifests refer to; gives whether there are more.
    fn link_some(
        self: &Arc<Self>,
        transaction: &WriteTransaction<'_>,
        account: AccountId,
        place: &mut ManifestPlace,
    ) -> Result<bool, RegistryError> {
        let (now, mut looked_at) = (self.clock.now(), 0);
        while looked_at < STEP {
            let Some(found) = next_manifests(transaction, account, place)? else { return Ok(false) };
            for manifest in found {
                let Some((id, _)) = transaction.get_manifest_id(manifest.repository, &manifest.digest)? else {
                    continue;
                };
                looked_at += 1 + manifest.blobs.len();
                // When it was pulled elsewhere is not known here; too early a deletion could not be taken back.
                transaction.count_as_pulled(id, now)?;
                for (digest, _) in manifest.blobs {
                    match transaction.get_account_blob(account, &digest)?.filter(|blob| blob.is_sound) {
                        Some(blob) => {
                            transaction.ensure_mount(manifest.repository, blob.id, now)?;
                            transaction.link_blob(id, blob.id)?;
                        }
                        None => transaction.put_missing_blob(manifest.repository, &digest)?,
                    }
                }
            }
        }
        Ok(true)
    }

    /// Whether an account was taken over and is not in order yet, so that nothing of it may be collected.
    pub(in crate::registry) fn is_in_disorder(&self, account: &AccountName) -> bool {
        matches!(self.primacies.stage(account), Some(Stage::Coming | Stage::Taken))
    }
}
