//! The end of an account: step by step, each small, so that a crash loses none of them and pushes elsewhere wait for none.

use keppel_federation::vocabulary::AccountName;

use super::contents::{Guard, Step};
use super::{Registry, RegistryError, to_the_end};
use crate::metadata::Usage;

/// Blobs or uploads that are deleted in one step.
const BATCH: usize = 200;

/// Which account is emptied.
#[derive(Debug, Clone, Copy)]
enum Whose {
    /// One that this node is the primary of.
    Own,
    /// What is here of one that is gone.
    Copy,
}

/// What one step of an account's end came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccountStep {
    /// There is more; this is left of it.
    More(Usage),
    /// Nothing is left but uploads that somebody is writing to; they end when they are done.
    Busy,
    /// Nothing of it is here any more.
    Empty,
}

impl Registry {
    /// Deletes a little of an account, whatever its tag policies say. The caller has seen to it that nobody pushes to it.
    ///
    /// Cancel safety: not stopped by dropping.
    ///
    /// # Errors
    /// Our own trouble; what was deleted stays so.
    pub async fn empty_account(&self, name: &AccountName) -> Result<AccountStep, RegistryError> {
        let (registry, name) = (self.clone(), name.clone());
        to_the_end(async move { registry.empty_some(&name, Whose::Own).await }).await
    }

    /// The same for a copy of an account that is gone: what it notes on disk goes with the last of what it holds.
    pub(super) async fn empty_copy(&self, name: &AccountName) -> Result<AccountStep, RegistryError> {
        let (registry, name) = (self.clone(), name.clone());
        to_the_end(async move { registry.empty_some(&name, Whose::Copy).await }).await
    }

    async fn empty_some(&self, name: &AccountName, whose: Whose) -> Result<AccountStep, RegistryError> {
        let inner = &self.inner;
        let wanted = name.clone();
        let uploads = inner.metadata.read(move |reader| reader.list_account_uploads(&wanted, BATCH)).await;
        let uploads = uploads.map_err(RegistryError::Metadata)?;
        let mut busy = false;
        for upload in uploads {
            busy |= !self.abandon_upload(&upload).await?;
        }
        let (this, wanted) = (inner.clone(), name.clone());
        let step = inner.metadata.write(move |transaction| {
            match whose {
                Whose::Own => this.check_primacy(&wanted)?,
                Whose::Copy => this.check_gone(transaction, &wanted)?,
            }
            let Some(account) = transaction.get_account(&wanted)? else { return Ok((None, Vec::new())) };
            let mut keys = Vec::new();
            if let Some(first) = transaction.list_account_repositories(account, "", 1)?.into_iter().next() {
                let repository = keppel_federation::vocabulary::RepositoryName::parse(&first.full_name)
                    .map_err(|_| crate::metadata::MetadataError::Corrupt { what: "repository name" })?;
                // The repository itself goes with the last of what it holds.
                let (Step::More | Step::Gone, unneeded) = this.delete_some(transaction, &repository, Guard::Off)?;
                keys = unneeded;
            } else {
                for owned in transaction.list_blobs(account, None, BATCH)? {
                    if transaction.delete_unneeded_blob(owned.blob.id)? {
                        keys.push(owned.blob.storage_key);
                    }
                }
            }
            transaction.delete_all_divergent(account)?;
            let usage = transaction.account_usage(account)?.unwrap_or_default();
            let is_empty = transaction.list_account_repositories(account, "", 1)?.is_empty()
                && transaction.list_blobs(account, None, 1)?.is_empty();
            Ok::<_, RegistryError>((Some((usage, is_empty)), keys))
        });
        let (left, keys) = step.await?;
        for key in keys {
            if let Err(error) = inner.storage.delete_blob(name, &key).await {
                // It goes with the space.
                tracing::warn!(error = &error as &dyn std::error::Error, %key, "a blob's bytes could not be deleted");
            }
        }
        match left {
            Some((usage, false)) => return Ok(AccountStep::More(usage)),
            Some((_, true)) if busy => return Ok(AccountStep::Busy),
            Some((_, true)) | None => {}
        }
        if let Whose::Copy = whose {
            // The space stays: somebody may just be bringing bytes for a new account of this name.
            let (this, wanted) = (inner.clone(), name.clone());
            let removed = inner.metadata.write(move |transaction| {
                this.check_gone(transaction, &wanted)?;
                if let Some(account) = transaction.get_account(&wanted)? {
                    transaction.delete_account(account)?;
                }
                Ok::<_, RegistryError>(transaction.delete_follow(&wanted)?)
            });
            return removed.await.map(|()| AccountStep::Empty);
        }
        // Bytes, then row: until the row is gone, the next run comes here again.
        inner.storage.remove_space(name).await?;
        let wanted = name.clone();
        let removed = inner.metadata.write(move |transaction| match transaction.get_account(&wanted)? {
            Some(account) => {
                transaction.delete_primacy(&wanted)?;
                transaction.delete_account(account)
            }
            None => Ok(()),
        });
        removed.await.map_err(RegistryError::Metadata)?;
        inner.primacies.remove(name);
        Ok(AccountStep::Empty)
    }
}
