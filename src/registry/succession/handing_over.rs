//! The primary takes no writes for a while, and ends what it promised, so that another can become the primary at once.

use std::time::Duration;

use keppel_federation::vocabulary::AccountName;

use super::moving;
use crate::metadata::{Cursor, Stage};
use crate::model::uptime;
use crate::registry::{Registry, RegistryError};

impl Registry {
    /// Stops taking writes to an account for `window`, ends the leases that others have of it, and leaves none of its own
    /// answers unmarked from then on. Gives the end of the account's log, which does not grow any more: whoever has all of
    /// that may become the primary while the window lasts. After that it is among the [`Self::overdue_accounts`].
    ///
    /// Cancel safety: the window counts; asking again is harmless.
    ///
    /// # Errors
    /// [`RegistryError::AccountMoving`] when this node does not hold the account in that epoch, with nothing left to put in
    /// order; our own trouble.
    pub async fn hand_account_over(
        &self,
        account: &AccountName,
        epoch: u64,
        window: Duration,
    ) -> Result<Cursor, RegistryError> {
        let inner = &self.inner;
        self.refuse_elsewhere(account)?;
        if inner.claims.primary_epoch(account) != Some(epoch) {
            return Err(moving(account, "this node is not its primary in that epoch"));
        }
        if inner.is_quiet(account) {
            return Err(moving(account, "it was taken over a moment ago"));
        }
        if inner.primacies.get(account).is_none() {
            // Nothing was ever written to it here.
            inner.primacies.put(account, epoch, Stage::Held, None);
        }
        if !inner.primacies.begin_handing_over(account, epoch, uptime().saturating_add(window)) {
            return Err(moving(account, "this node is still putting it in order"));
        }
        // Writes that were queued before are recorded before this; those after it find that they must not.
        let name = account.clone();
        let head = inner.metadata.write(move |transaction| {
            transaction.put_primacy(&name, epoch, Stage::HandingOver)?;
            Ok::<_, RegistryError>(transaction.get_event_head(&name)?.map(|(_, head)| head).unwrap_or_default())
        });
        let head = head.await?;
        inner.cache.evict_account(account);
        inner.revoke_leases(account).await;
        tracing::info!(%account, "an account takes no writes here while it is handed over");
        Ok(head)
    }

    /// Ends handing an account over to which it did not come, as far as is known: from now on it is overdue.
    pub fn end_handing_over(&self, account: &AccountName, epoch: u64) {
        self.inner.primacies.end_handing_over(account, epoch, uptime());
    }

    /// Accounts that were to be handed over and were not in time, with the epochs in which this node holds them. Whether one
    /// was after all, only the federation can say: if it can begin another epoch for this node, it was not, and will not be.
    pub fn overdue_accounts(&self) -> Vec<(AccountName, u64)> {
        let overdue = self.inner.primacies.overdue(uptime());
        overdue.into_iter().filter(|(account, _)| self.inner.elsewhere(account).is_none()).collect()
    }

    /// Takes writes again to an account that was to be handed over: another epoch of this node has begun, in which nobody can
    /// carry out any more what was to be done in the one before.
    ///
    /// # Errors
    /// Our own trouble; it may be called again.
    pub async fn keep_account(&self, account: &AccountName, epoch: u64, next: u64) -> Result<(), RegistryError> {
        let inner = &self.inner;
        let name = account.clone();
        let kept = inner.metadata.write(move |transaction| transaction.put_primacy(&name, next, Stage::Held));
        kept.await.map_err(RegistryError::Metadata)?;
        if inner.primacies.get(account).is_some_and(|primacy| primacy.epoch == epoch) {
            inner.primacies.put(account, next, Stage::Held, None);
            inner.allow_leases(account);
            tracing::info!(%account, "an account was not handed over: it takes writes here again");
        }
        Ok(())
    }
}
