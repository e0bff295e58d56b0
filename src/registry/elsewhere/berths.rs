//! How many blobs of other regions clients may have under way here at a time.
//!
//! A client that asks for many distinct blobs would else open as many flights, each with the blob's tree in memory. Each
//! account gets a part of the berths at most, so that one which is asked for much leaves some to others; within it, and then
//! among accounts, whoever came first goes first. So many may wait, and for so long; who comes then is told to come again.
//!
//! Only what clients pull needs a berth, and only as long as its bytes are not here. Pushes, copies and what is fetched ahead
//! have bounds of their own and wait for no berth; whoever holds one waits for nobody who needs another. So none of them can
//! wait in a circle.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use keppel_federation::vocabulary::AccountName;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::registry::RegistryError;

/// Of the berths, an account gets one in so many.
const ACCOUNTS: usize = 4;
/// For each berth so many may wait.
const WAITING: usize = 4;
/// How long.
const PATIENCE: Duration = Duration::from_secs(60);
/// Accounts that are remembered before those without flights are forgotten.
const KNOWN_MAX: usize = 256;

/// All berths of this node.
pub(super) struct Berths {
    all: Arc<Semaphore>,
    of_account_max: usize,
    waiting_max: usize,
    waiting: Arc<AtomicUsize>,
    accounts: Mutex<HashMap<AccountName, Arc<Account>>>,
}

struct Account {
    berths: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
}

/// A place for one flight; free again when dropped.
#[derive(Debug)]
pub(in crate::registry) struct Berth {
    _of_account: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

/// Somebody waits.
struct Waiting(Arc<AtomicUsize>);

impl Waiting {
    fn begin(waiting: &Arc<AtomicUsize>, max: usize) -> Option<Self> {
        let begun = waiting.fetch_update(Ordering::AcqRel, Ordering::Acquire, |now| (now < max).then_some(now + 1));
        begun.is_ok().then(|| Self(waiting.clone()))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Berths {
    pub(super) fn new(max: usize) -> Self {
        let max = max.max(1);
        Self {
            all: Arc::new(Semaphore::new(max)),
            of_account_max: max.div_ceil(ACCOUNTS),
            waiting_max: max.saturating_mul(WAITING),
            waiting: Arc::default(),
            accounts: Mutex::default(),
        }
    }

    /// A berth for a blob of an account, waited for when there is none.
    ///
    /// Cancel safety: dropping it leaves the line.
    ///
    /// # Errors
    /// [`RegistryError::TooManyTransfers`].
    pub(super) async fn enter(&self, account: &AccountName) -> Result<Berth, RegistryError> {
        if let Some(berth) = self.try_enter(account) {
            return Ok(berth);
        }
        let too_many = || {
            metrics::counter!("keppel_transfers_refused_total").increment(1);
            RegistryError::TooManyTransfers { account: account.clone() }
        };
        let of = self.account(account);
        let _waiting = Waiting::begin(&self.waiting, self.waiting_max).ok_or_else(too_many)?;
        let part = self.waiting_max.div_ceil(ACCOUNTS);
        let _waiting_of_account = Waiting::begin(&of.waiting, part).ok_or_else(too_many)?;
        let both = async {
            let of_account = of.berths.clone().acquire_owned().await;
            (of_account, self.all.clone().acquire_owned().await)
        };
        match timeout(PATIENCE, both).await {
            Ok((Ok(of_account), Ok(of_all))) => Ok(Berth { _of_account: of_account, _of_all: of_all }),
            Ok(_) => Err(RegistryError::Interrupted),
            Err(_) => Err(too_many()),
        }
    }

    /// A berth, if there is one at once.
    pub(super) fn try_enter(&self, account: &AccountName) -> Option<Berth> {
        let of_account = self.account(account).berths.clone().try_acquire_owned().ok()?;
        let of_all = self.all.clone().try_acquire_owned().ok()?;
        Some(Berth { _of_account: of_account, _of_all: of_all })
    }

    fn account(&self, name: &AccountName) -> Arc<Account> {
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        if accounts.len() >= KNOWN_MAX && !accounts.contains_key(name) {
            accounts.retain(|_, account| {
                let is_free = account.berths.available_permits() == self.of_account_max;
                Arc::strong_count(account) > 1 || !is_free
            });
        }
        let new = || {
            let berths = Arc::new(Semaphore::new(self.of_account_max));
            Arc::new(Account { berths, waiting: Arc::default() })
        };
        accounts.entry(name.clone()).or_insert_with(new).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(name: &str) -> AccountName {
        AccountName::parse(name).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn an_account_that_is_asked_for_much_leaves_berths_to_others_and_waits_for_its_own() {
        let (berths, busy) = (Arc::new(Berths::new(8)), account("busy"));
        let mut held = Vec::new();
        while let Some(berth) = berths.try_enter(&busy) {
            held.push(berth);
        }
        assert_eq!(held.len(), 2);
        assert!(berths.try_enter(&account("other")).is_some());
        let waiting = tokio::spawn({
            let (berths, busy) = (berths.clone(), busy.clone());
            async move { berths.enter(&busy).await }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!waiting.is_finished());
        held.pop();
        assert!(waiting.await.unwrap().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_wait_and_so_long_and_the_rest_is_told_to_come_again() {
        let (berths, busy) = (Arc::new(Berths::new(8)), account("busy"));
        let held: Vec<_> = std::iter::from_fn(|| berths.try_enter(&busy)).collect();
        let enter = || {
            let (berths, busy) = (berths.clone(), busy.clone());
            tokio::spawn(async move { berths.enter(&busy).await })
        };
        let waiting: Vec<_> = (0..8).map(|_| enter()).collect();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let refused = berths.enter(&busy).await;
        assert!(matches!(refused, Err(RegistryError::TooManyTransfers { .. })));
        assert!(berths.enter(&account("other")).await.is_ok(), "its line is another");
        for waiting in waiting {
            assert!(matches!(waiting.await.unwrap(), Err(RegistryError::TooManyTransfers { .. })));
        }
        assert_eq!(berths.waiting.load(Ordering::SeqCst), 0);
        drop(held);
        assert!(berths.enter(&busy).await.is_ok());
    }

    #[test]
    fn accounts_without_flights_are_forgotten() {
        let berths = Berths::new(8);
        let held = berths.try_enter(&account("held")).unwrap();
        for number in 0..1000 {
            drop(berths.try_enter(&account(&format!("account-{number}"))));
        }
        assert!(berths.accounts.lock().unwrap().len() <= KNOWN_MAX);
        assert!(berths.accounts.lock().unwrap().contains_key(&account("held")));
        drop(held);
    }
}
