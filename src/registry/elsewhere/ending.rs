//! The end of a copy: of an account that is this node's own now, or that is gone.
//!
//! A name can be claimed again once an account is gone, by this node as well, while what is here of the old one is still being
//! taken away. So each step asks, inside its transaction, whether the account is still gone, or another one has its name; and
//! as long as the copy is noted on disk, nothing of the new one is recorded here. What a crash leaves is gone on with.

use keppel_federation::vocabulary::AccountName;

use super::setting_aside::is_of_another;
use crate::metadata::{Cursor, FollowRow, FollowState, Told, WriteTransaction};
use crate::registry::succession::moving;
use crate::registry::{AccountStep, Inner, Registry, RegistryError};

impl Registry {
    /// Whether what is here is a copy of a former account of this name, and another one has it now.
    pub fn is_of_former_account(&self, account: &AccountName) -> bool {
        self.inner.is_of_former_account(account)
    }

    /// Ends following an account that is this node's own by now; what is here of it stays.
    ///
    /// Cancel safety: may be called again.
    ///
    /// # Errors
    /// [`RegistryError::AccountMoving`] when what is here is of another account; our own trouble.
    pub async fn unfollow(&self, account: &AccountName) -> Result<(), RegistryError> {
        let (inner, name) = (self.inner.clone(), account.clone());
        let ended = self.inner.metadata.write(move |transaction| {
            if let (Some(row), Some(now)) = (transaction.get_follow_claim(&name)?, inner.claims.claim_of(&name))
                && is_of_another(row.told.claim, now)
            {
                return Err(inner.is_former(&name));
            }
            Ok(transaction.delete_follow(&name)?)
        });
        ended.await?;
        self.inner.copies.forget(account);
        Ok(())
    }

    /// Takes away all that is here of an account that is gone, and ends following it. The caller has asked a majority since this
    /// node started: what it knows may be older than what is here. Gives whether all of it is gone; if not, somebody is still
    /// writing.
    ///
    /// Cancel safety: may be called again.
    ///
    /// # Errors
    /// [`RegistryError::AccountMoving`] when the account is not gone; our own trouble.
    pub async fn take_copy_away(&self, account: &AccountName) -> Result<bool, RegistryError> {
        let (inner, name) = (self.inner.clone(), account.clone());
        let told = inner.copies.told(account).unwrap_or_default();
        let noted = self.inner.metadata.write(move |transaction| {
            note_pulled(transaction, &name, told.claim)?;
            inner.check_gone(transaction, &name)
        });
        noted.await?;
        loop {
            match self.empty_copy(account).await? {
                AccountStep::More(_) => {}
                AccountStep::Busy => return Ok(false),
                AccountStep::Empty => break,
            }
        }
        self.inner.copies.forget(account);
        tracing::info!(%account, "what was here of an account that is gone was taken away");
        Ok(true)
    }
}

/// Notes on disk that some of an account of another region is here, by which it is told from a later account of its name.
fn note_pulled(transaction: &WriteTransaction<'_>, account: &AccountName, claim: u64) -> Result<(), RegistryError> {
    if transaction.get_follow_claim(account)?.is_some() {
        return Ok(());
    }
    let row =
        FollowRow { account: account.clone(), state: FollowState::Pulled, cursor: Cursor::default(), source: None };
    transaction.put_follow(&row)?;
    Ok(transaction.put_told(account, Told { epoch: 0, claim })?)
}

impl Inner {
    /// Follows an account of another region from now on.
    pub(in crate::registry) fn want_copy(&self, account: &AccountName) {
        self.copies.want(account, self.claims.claim_of(account).unwrap_or_default());
    }

    /// To be called in the transaction that records what came here of an account of another region: of what is followed
    /// this is known, of what was only pulled, as of mirrors, it would be forgotten with the process.
    pub(in crate::registry) fn note_copy(
        &self,
        transaction: &WriteTransaction<'_>,
        account: &AccountName,
    ) -> Result<(), RegistryError> {
        note_pulled(transaction, account, self.claims.claim_of(account).unwrap_or_default())
    }

    /// Whether what is here is a copy of a former account of this name, and another one has it now. From memory.
    pub(in crate::registry) fn is_of_former_account(&self, account: &AccountName) -> bool {
        let Some(told) = self.copies.told(account) else { return false };
        self.claims.claim_of(account).is_some_and(|now| is_of_another(told.claim, now))
    }

    /// The copies that are of former accounts, whose names others have now.
    pub(in crate::registry) fn former_accounts(&self) -> Vec<AccountName> {
        let copies = self.copies.places().into_iter().map(|(account, _)| account);
        copies.filter(|account| self.is_of_former_account(account)).collect()
    }

    /// Refuses a read or write where what is here is of a former account of this name: until that is gone. Who has the name now
    /// may belong to another tenant.
    pub(in crate::registry) fn refuse_former(&self, account: &AccountName) -> Result<(), RegistryError> {
        match self.is_of_former_account(account) {
            true => Err(self.is_former(account)),
            false => Ok(()),
        }
    }

    pub(in crate::registry) fn is_former(&self, account: &AccountName) -> RegistryError {
        moving(account, "what is here of a former account of this name is being taken away")
    }

    /// Refuses to take something away of an account that is not gone. To be asked inside the transaction that does.
    pub(in crate::registry) fn check_gone(
        &self,
        transaction: &WriteTransaction<'_>,
        account: &AccountName,
    ) -> Result<(), RegistryError> {
        let here = transaction.get_follow_claim(account)?.map_or(0, |row| row.told.claim);
        match self.claims.claim_of(account) {
            Some(now) if !is_of_another(here, now) => Err(moving(account, "it is not gone")),
            Some(_) | None => Ok(()),
        }
    }
}
