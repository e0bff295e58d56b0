//! How far changes of primaries are, in memory: the same as on disk, and until when a handing over is promised.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use keppel_federation::vocabulary::{AccountName, NodeId};

use crate::metadata::Stage;
use crate::model::uptime;

/// The accounts that this node is primary of, was, or is about to be.
#[derive(Default)]
pub(in crate::registry) struct Primacies {
    all: Mutex<HashMap<AccountName, Primacy>>,
    /// Accounts of which nothing is taken from their primary for a while, since it is being replaced.
    held_back: Mutex<HashMap<AccountName, HeldBack>>,
    /// How often each account was given up: who has seen it in one term knows nothing of what came in between.
    terms: Mutex<HashMap<AccountName, u64>>,
    /// The version of what the federation has decided that was looked at last, and one more.
    seen: AtomicU64,
}

/// A primary of which nothing is taken, in that epoch, and until that uptime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct HeldBack {
    from: NodeId,
    epoch: u64,
    until: Duration,
}

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Primacy {
    pub(super) epoch: u64,
    pub(super) stage: Stage,
    /// Until when, as uptime, it takes no writes because it is being handed over. After that it has to be asked whether it was.
    pub(super) until: Option<Duration>,
}

impl Primacies {
    pub(in crate::registry) fn stage(&self, account: &AccountName) -> Option<Stage> {
        self.get(account).map(|primacy| primacy.stage)
    }

    pub(super) fn get(&self, account: &AccountName) -> Option<Primacy> {
        self.lock().get(account).copied()
    }

    pub(super) fn put(&self, account: &AccountName, epoch: u64, stage: Stage, until: Option<Duration>) {
        self.lock().insert(account.clone(), Primacy { epoch, stage, until });
    }

    pub(in crate::registry) fn remove(&self, account: &AccountName) {
        *self.terms().entry(account.clone()).or_default() += 1;
        self.lock().remove(account);
    }

    /// Another number each time that this node has given the account up.
    pub(super) fn term(&self, account: &AccountName) -> u64 {
        self.terms().get(account).copied().unwrap_or_default()
    }

    fn terms(&self) -> MutexGuard<'_, HashMap<AccountName, u64>> {
        self.terms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to hand an account over that is held in this epoch; gives whether it is. Asked again, the promise lasts longer.
    pub(super) fn begin_handing_over(&self, account: &AccountName, epoch: u64, until: Duration) -> bool {
        match self.lock().get_mut(account) {
            Some(primacy) if primacy.epoch == epoch && matches!(primacy.stage, Stage::Held | Stage::HandingOver) => {
                primacy.stage = Stage::HandingOver;
                primacy.until = Some(primacy.until.unwrap_or_default().max(until));
                true
            }
            _ => false,
        }
    }

    /// Ends the promise to take no writes at `now`.
    pub(super) fn end_handing_over(&self, account: &AccountName, epoch: u64, now: Duration) {
        if let Some(primacy) = self.lock().get_mut(account)
            && primacy.epoch == epoch
            && primacy.stage == Stage::HandingOver
        {
            primacy.until = Some(now);
        }
    }

    /// Those whose promise to take no writes ended before `now`.
    pub(super) fn overdue(&self, now: Duration) -> Vec<(AccountName, u64)> {
        let all = self.lock();
        let overdue = all.iter().filter(|(_, primacy)| {
            primacy.stage == Stage::HandingOver && primacy.until.is_none_or(|until| until <= now)
        });
        overdue.map(|(account, primacy)| (account.clone(), primacy.epoch)).collect()
    }

    pub(super) fn in_stage(&self, stage: Stage) -> Vec<(AccountName, u64)> {
        let all = self.lock();
        let found = all.iter().filter(|(_, primacy)| primacy.stage == stage);
        found.map(|(account, primacy)| (account.clone(), primacy.epoch)).collect()
    }

    pub(super) fn accounts(&self) -> Vec<AccountName> {
        self.lock().keys().cloned().collect()
    }

    /// Whether more was decided since [`Self::has_seen`].
    pub(super) fn is_news(&self, version: u64) -> bool {
        self.seen.load(Ordering::Acquire) != version.wrapping_add(1)
    }

    pub(super) fn has_seen(&self, version: u64) {
        self.seen.store(version.wrapping_add(1), Ordering::Release);
    }

    /// Takes nothing of an account from this node, which is its primary in this epoch, until then, as uptime.
    pub(super) fn hold_back(&self, account: &AccountName, from: NodeId, epoch: u64, until: Duration) {
        self.held().insert(account.clone(), HeldBack { from, epoch, until });
    }

    /// The accounts of whose primary nothing is taken, each with the epoch in which that is so.
    pub(super) fn all_held_back(&self) -> Vec<(AccountName, u64)> {
        self.held().iter().map(|(account, held)| (account.clone(), held.epoch)).collect()
    }

    /// Takes what its primary tells again.
    pub(super) fn release(&self, account: &AccountName) {
        self.held().remove(account);
    }

    /// Whether nothing of an account is taken from this node now.
    pub(in crate::registry) fn is_held_back(&self, account: &AccountName, from: NodeId) -> bool {
        let held = self.held();
        held.get(account).is_some_and(|held| held.from == from && uptime() < held.until)
    }

    fn held(&self) -> MutexGuard<'_, HashMap<AccountName, HeldBack>> {
        self.held_back.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<AccountName, Primacy>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acme() -> AccountName {
        AccountName::parse("acme").unwrap()
    }

    #[test]
    fn an_account_is_handed_over_only_in_the_epoch_in_which_it_is_held() {
        let (primacies, soon) = (Primacies::default(), Duration::from_secs(10));
        assert!(!primacies.begin_handing_over(&acme(), 3, soon), "it is not known");
        primacies.put(&acme(), 3, Stage::Held, None);
        assert!(!primacies.begin_handing_over(&acme(), 4, soon), "another epoch");
        for stage in [Stage::Coming, Stage::Taken] {
            primacies.put(&acme(), 3, stage, None);
            assert!(!primacies.begin_handing_over(&acme(), 3, soon), "{stage:?}");
        }
        primacies.put(&acme(), 3, Stage::Held, None);
        assert!(primacies.begin_handing_over(&acme(), 3, soon));
        assert_eq!(primacies.stage(&acme()), Some(Stage::HandingOver));
        assert_eq!(primacies.overdue(Duration::from_secs(9)), []);
        assert!(primacies.begin_handing_over(&acme(), 3, Duration::from_secs(5)), "asked again");
        assert_eq!(primacies.overdue(Duration::from_secs(9)), [], "what was promised stays so");
        assert_eq!(primacies.overdue(soon), [(acme(), 3)]);
        primacies.end_handing_over(&acme(), 3, Duration::from_secs(1));
        assert_eq!(primacies.overdue(Duration::from_secs(1)), [(acme(), 3)]);
    }

    #[test]
    fn the_first_version_is_news_too() {
        let primacies = Primacies::default();
        assert!(primacies.is_news(0));
        primacies.has_seen(0);
        assert!(!primacies.is_news(0) && primacies.is_news(1));
    }
}
