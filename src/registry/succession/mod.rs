//! One primary after another: what a node does that hands an account over, takes it over, or finds that it has a successor.
//!
//! | part | its job |
//! | --- | --- |
//! | `primacies` | how far each change is, in memory |
//! | `handing_over` | the primary takes no writes for a while, and ends what it promised |
//! | `surveying` | how far a replica is, before a primary is replaced that is not asked |
//! | `readiness` | what a replica lacks, and fetching it |
//! | `taking_over` | a replica becomes the primary, and puts in order what only a primary needs |
//! | `missing` | blobs that could not be fetched before |
//! | `stepping_down` | a former primary becomes a replica, and keeps what its successor never had |
//! | `divergent` | the list of that: to be pushed again, or dropped |
//!
//! Invariants: a write is recorded only while this node is the primary as far as it knows, and is not handing over: that is
//! asked inside the transaction, by the one writer, which also looks through the log when it steps down. So whatever was
//! acknowledged here is with the successor, or in the list. A node that may become primary has that on disk before it does,
//! so that after a crash it waits until the promises of the one before have run out. Deciding who is primary is the federation's.

mod divergent;
mod handing_over;
mod missing;
mod primacies;
mod readiness;
mod stepping_down;
mod surveying;
mod taking_over;

use std::time::Duration;

use keppel_federation::vocabulary::AccountName;
use tokio::time::Instant;

pub use divergent::{DivergentEntry, PushedAgain};
pub(super) use primacies::Primacies;
pub use readiness::Readiness;
pub(super) use stepping_down::{manifest_here, put as put_divergent};
pub use surveying::Progress;
pub use taking_over::Handover;

use super::{Inner, Registry, RegistryError};
use crate::metadata::{Stage, WriteTransaction};
use crate::model::uptime;

/// How long a write waits for an account that is on its way from one primary to another.
const MOVE_PATIENCE: Duration = Duration::from_secs(12);
/// Between two looks at it.
const MOVE_PAUSE: Duration = Duration::from_millis(100);
/// Rows that are read in one step.
const STEP: usize = 1000;

impl Inner {
    /// Refuses a write where this node is not the primary, or must not act as one now. To be asked inside the transaction
    /// that writes.
    pub(super) fn check_primacy(&self, account: &AccountName) -> Result<(), RegistryError> {
        if self.elsewhere(account).is_some() {
            return Err(moving(account, "it has another primary by now"));
        }
        self.refuse_former(account)?;
        match self.primacies.stage(account) {
            None | Some(Stage::Held | Stage::Taken) => Ok(()),
            Some(Stage::HandingOver) => Err(moving(account, "it is being moved to another region")),
            Some(Stage::Coming) => Err(moving(account, "it is being taken over by this region")),
        }
    }

    /// Notes on disk that this node is the primary of an account that it writes to, where that is not known.
    pub(super) fn note_primacy(
        &self,
        transaction: &WriteTransaction<'_>,
        account: &AccountName,
    ) -> Result<(), RegistryError> {
        let Some(epoch) = self.claims.primary_epoch(account) else { return Ok(()) };
        if self.primacies.stage(account).is_none() {
            if transaction.get_follow_state(account.as_str())?.is_some() {
                return Err(moving(account, "what is here of it is a copy, and not sorted out yet"));
            }
            transaction.put_primacy(account, epoch, Stage::Held)?;
            // Should the commit fail, nothing is lost by knowing it: it is so.
            self.primacies.put(account, epoch, Stage::Held, None);
        }
        Ok(())
    }

    /// Whether this node, which is the primary of the account as far as it knows, may answer without a mark.
    pub(super) fn speaks_for(&self, account: &AccountName) -> bool {
        let is_settled = matches!(self.primacies.stage(account), None | Some(Stage::Held | Stage::Taken));
        is_settled && !self.is_quiet(account) && self.elsewhere(account).is_none()
    }

    /// Whether what is not here is absent: an account that is on its way may have it elsewhere.
    pub(super) async fn knows_absence(&self, account: &AccountName) -> Result<(), RegistryError> {
        self.check_primacy(account)?;
        if self.is_quiet(account) {
            self.settled(account).await;
            self.check_primacy(account)?;
        }
        match self.is_spread(account).await {
            true => Ok(()),
            false => Err(moving(account, "too few regions have what was deleted or pushed last")),
        }
    }

    /// What came of looking for something since `since`; that there is none is only said where that is sure.
    ///
    /// Cancel safety: safe.
    pub(super) async fn or_unsure<T>(
        &self,
        account: &AccountName,
        since: Term,
        found: Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        use RegistryError as E;
        if !matches!(found, Err(E::ManifestUnknown { .. } | E::RepositoryUnknown { .. })) {
            return found;
        }
        self.knows_absence(account).await?;
        match self.is_sure(account, since).await {
            true => found,
            false => Err(moving(account, "no majority of the federation confirms that this region is its primary")),
        }
    }

    /// The time in which this node is the primary without a break, to be compared later.
    pub(super) fn term(&self, account: &AccountName) -> Term {
        Term(self.primacies.term(account))
    }

    /// Refuses to acknowledge a write that was recorded, but perhaps not passed on to a successor. It is not done again here:
    /// somebody may have seen it, and replaced or deleted it, before that. `since`: from before it was recorded, since the account may have gone and come back.
    pub(super) fn check_still_primary(&self, account: &AccountName, since: Term) -> Result<(), RegistryError> {
        match self.elsewhere(account).is_some() || self.term(account) != since {
            true => Err(RegistryError::Unconfirmed { account: account.clone() }),
            false => Ok(()),
        }
    }

    /// Whether what was read since `since` is the newest there is, and lasts: this node has been the primary all the time, and
    /// a majority has confirmed it; what was written last is where it has to be.
    ///
    /// Cancel safety: safe.
    pub(super) async fn is_sure(&self, account: &AccountName, since: Term) -> bool {
        self.is_spread(account).await
            && self.confirm_authority().await
            && self.speaks_for(account)
            && self.term(account) == since
    }

    /// Whether this node was the primary and what it has is not sorted out yet: then nothing may change its copy.
    pub(super) fn is_stepping_down(&self, account: &AccountName) -> bool {
        let was = matches!(self.primacies.stage(account), Some(Stage::Held | Stage::HandingOver | Stage::Taken));
        was && self.elsewhere(account).is_some()
    }

    /// Drops what is in memory of accounts that have another primary by now, and ends what was promised about them.
    pub(super) fn notice_successors(&self) {
        let version = self.claims.version();
        if !self.primacies.is_news(version) {
            return;
        }
        for account in self.primacies.accounts() {
            if !self.claims.is_primary(&account) {
                self.cache.evict_account(&account);
            }
        }
        self.withdraw_lost();
        self.primacies.has_seen(version);
    }

    /// A node that has just started may have a successor and not know it: it takes writes once a majority has confirmed what
    /// it knows, or has been out of reach for so long that this is no longer about starting.
    pub(super) async fn await_first_word(&self, account: &AccountName) -> Result<(), RegistryError> {
        let patience = self.promises_last();
        loop {
            if self.claims.majority_asked_at().is_some() || uptime() > self.started.saturating_add(patience) {
                return Ok(());
            }
            if self.claims.confirm_majority().await {
                return Ok(());
            }
            tokio::time::sleep(MOVE_PAUSE).await;
            if uptime() > self.started.saturating_add(MOVE_PATIENCE) {
                return Err(moving(account, "this region does not know yet whether it still is the primary"));
            }
        }
    }
}

/// A time in which this node is the primary of an account without a break.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Term(u64);

pub(super) fn moving(account: &AccountName, reason: &str) -> RegistryError {
    RegistryError::AccountMoving { account: account.clone(), reason: reason.to_owned() }
}

/// How long a write is tried again while its account is on its way from one primary to another.
pub(super) struct MovePatience(Instant);

impl MovePatience {
    pub(super) fn begin() -> Self {
        Self(Instant::now())
    }

    /// Whether the write is to be tried again; then it has waited a little. Cancel-safe.
    pub(super) async fn tries_again<T>(&self, answer: &Result<T, RegistryError>) -> bool {
        let again = matches!(answer, Err(RegistryError::AccountMoving { .. })) && self.0.elapsed() < MOVE_PATIENCE;
        if again {
            tokio::time::sleep(MOVE_PAUSE).await;
        }
        again
    }
}

impl Registry {
    /// Takes up what was known before a restart about this node being primary. Called once, before the registry serves and
    /// before it hears what was decided meanwhile.
    ///
    /// # Errors
    /// Our own trouble.
    pub async fn recall_primacies(&self) -> Result<(), RegistryError> {
        let inner = &self.inner;
        let mut after = String::new();
        loop {
            let last = after.clone();
            let rows = inner.metadata.read(move |reader| reader.list_primacies(&last, STEP)).await;
            let rows = rows.map_err(RegistryError::Metadata)?;
            let Some(last) = rows.last() else { break };
            after = last.account.to_string();
            for row in rows {
                // Whoever was handing over asks whether it came to that; whoever was taking over waits once more.
                let until = (row.stage == Stage::HandingOver).then(uptime);
                if row.stage == Stage::HandingOver {
                    inner.withhold_leases(&row.account);
                }
                if row.stage == Stage::Taken {
                    inner.keep_quiet(&row.account, inner.promises_last());
                }
                inner.primacies.put(&row.account, row.epoch, row.stage, until);
            }
        }
        let mut after: Option<AccountName> = None;
        loop {
            let (last, this) = (after.clone(), inner.clone());
            let step = inner.metadata.write(move |transaction| {
                let accounts = transaction.list_accounts(last.as_ref(), STEP)?;
                for account in &accounts {
                    // What is here of one that is followed may be of a former account of its name.
                    if transaction.get_follow_state(account.as_str())?.is_none() {
                        this.note_primacy(transaction, account)?;
                    }
                }
                Ok::<_, RegistryError>(accounts.into_iter().last())
            });
            match step.await? {
                Some(last) => after = Some(last),
                None => return Ok(()),
            }
        }
    }

    /// Whether this node has just got or lost an account, and has not acted on it yet: nothing is to be changed in between.
    pub fn is_between_roles(&self, account: &AccountName) -> bool {
        let inner = &self.inner;
        (self.is_coming(account) && inner.claims.is_primary(account)) || inner.is_stepping_down(account)
    }

    /// Whether this node may have got an account, and has not acted on it yet.
    pub fn is_coming(&self, account: &AccountName) -> bool {
        self.inner.primacies.stage(account) == Some(Stage::Coming)
    }

    /// What an operator is told of an account that is on its way; `None`: nothing.
    pub fn primacy_word(&self, account: &AccountName) -> Option<&'static str> {
        let is_elsewhere = self.inner.elsewhere(account).is_some();
        match (self.inner.primacies.stage(account)?, is_elsewhere) {
            (Stage::Held | Stage::Taken, true) => Some("this node becomes a replica"),
            (Stage::HandingOver, _) => Some("is being handed over"),
            (Stage::Coming, false) => Some("is being taken over"),
            (Stage::Taken, false) => Some("was taken over, and is being put in order"),
            (Stage::Held, false) | (Stage::Coming, true) => None,
        }
    }
}
