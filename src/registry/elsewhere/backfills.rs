//! What replicas lack that are to hold everything, and when it was last proven that they lack nothing. In memory: after a
//! restart the manifests that are here say what is missing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use keppel_federation::vocabulary::{AccountName, Digest, RepositoryName};
use tokio::sync::Notify;

use crate::metadata::{Cursor, ManifestId};
use crate::model::uptime;

/// Missing blobs that are remembered for an account. Beyond them the manifests are walked through once more.
const MISSING_MAX: usize = 200_000;
/// When a blob is asked for again that could not be had: at first, and at the longest.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// How far a replica is that is to hold everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BackfillStatus {
    /// Whether all manifests that are here have been looked through, so that what is missing is known.
    pub is_counted: bool,
    /// Blobs that are not here yet.
    pub missing_blobs: u64,
    /// Their sizes, in bytes.
    pub missing_bytes: u64,
    /// How long ago it was proven that all blobs of the primary are here, if nothing has been found missing since.
    pub proven: Option<Duration>,
}

/// All replicas here that are to hold everything.
#[derive(Default)]
pub(in crate::registry) struct Backfills {
    accounts: Mutex<BTreeMap<AccountName, Backfill>>,
    wanted: Notify,
}

#[derive(Default)]
struct Backfill {
    missing: BTreeMap<(RepositoryName, Digest), Missing>,
    /// The manifests have been walked through.
    is_walked: bool,
    /// There was no room for everything that is missing.
    is_cut: bool,
    proof: Option<Proof>,
    /// No proof is tried before this uptime.
    prove_at: Duration,
}

struct Missing {
    size_bytes: u64,
    manifests: BTreeSet<ManifestId>,
    failures: u32,
    /// Not asked for before this uptime.
    not_before: Duration,
}

#[derive(Clone, Copy)]
struct Proof {
    at: Duration,
    cursor: Cursor,
}

/// A blob that is missing.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub(super) repository: RepositoryName,
    pub(super) digest: Digest,
    pub(super) manifests: Vec<ManifestId>,
}

/// Something that a manifest needs and that was not found.
#[derive(Debug, Clone)]
pub(in crate::registry) struct Found {
    pub(in crate::registry) digest: Digest,
    pub(in crate::registry) size_bytes: u64,
    pub(in crate::registry) manifest: Option<ManifestId>,
}

impl Backfills {
    /// These accounts, and no others, are to be here with everything.
    pub(super) fn set(&self, accounts: &[AccountName]) {
        let mut known = self.lock();
        known.retain(|account, _| accounts.contains(account));
        for account in accounts {
            known.entry(account.clone()).or_default();
        }
    }

    /// Waits until something more is missing. Cancel-safe.
    pub(super) async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// Whether an account is to be here with everything.
    pub(in crate::registry) fn has(&self, account: &AccountName) -> bool {
        self.lock().contains_key(account)
    }

    /// Notes what is missing.
    pub(in crate::registry) fn note(&self, repository: &RepositoryName, found: impl IntoIterator<Item = Found>) {
        let mut accounts = self.lock();
        let Some(backfill) = accounts.get_mut(&repository.account()) else { return };
        let mut is_new = false;
        for Found { digest, size_bytes, manifest } in found {
            let key = (repository.clone(), digest);
            if backfill.missing.len() >= MISSING_MAX && !backfill.missing.contains_key(&key) {
                backfill.is_cut = true;
                continue;
            }
            is_new = true;
            backfill.proof = None;
            let missing = backfill.missing.entry(key).or_insert_with(|| Missing {
                size_bytes,
                manifests: BTreeSet::new(),
                failures: 0,
                not_before: Duration::ZERO,
            });
            missing.manifests.extend(manifest);
        }
        drop(accounts);
        if is_new {
            self.wanted.notify_one();
        }
    }

    /// Whether the account's manifests have to be walked through.
    pub(super) fn needs_walk(&self, account: &AccountName) -> bool {
        let accounts = self.lock();
        accounts
            .get(account)
            .is_some_and(|backfill| !backfill.is_walked || (backfill.is_cut && backfill.missing.is_empty()))
    }

    /// A walk begins: what there is no room for from now on needs another.
    pub(super) fn begin_walk(&self, account: &AccountName) {
        if let Some(backfill) = self.lock().get_mut(account) {
            backfill.is_cut = false;
        }
    }

    /// All manifests have been walked through.
    pub(super) fn end_walk(&self, account: &AccountName) {
        if let Some(backfill) = self.lock().get_mut(account) {
            backfill.is_walked = true;
        }
    }

    /// Some of what is missing and may be asked for now.
    pub(super) fn some(&self, account: &AccountName, limit: usize) -> Vec<Wanted> {
        let now = uptime();
        let accounts = self.lock();
        let Some(backfill) = accounts.get(account) else { return Vec::new() };
        let due = backfill.missing.iter().filter(|(_, missing)| missing.not_before <= now);
        let wanted = due.map(|((repository, digest), missing)| Wanted {
            repository: repository.clone(),
            digest: *digest,
            manifests: missing.manifests.iter().copied().collect(),
        });
        wanted.take(limit).collect()
    }

    /// A blob is here, for these manifests. Gives its size in bytes, unless it was noted for more meanwhile.
    pub(super) fn done(&self, wanted: &Wanted) -> Option<u64> {
        let mut accounts = self.lock();
        let missing = &mut accounts.get_mut(&wanted.repository.account())?.missing;
        let key = (wanted.repository.clone(), wanted.digest);
        let is_all = missing.get(&key)?.manifests.iter().all(|manifest| wanted.manifests.contains(manifest));
        is_all.then(|| missing.remove(&key)).flatten().map(|missing| missing.size_bytes)
    }

    /// Nobody needs a blob any more.
    pub(super) fn drop_one(&self, wanted: &Wanted) {
        if let Some(backfill) = self.lock().get_mut(&wanted.repository.account()) {
            backfill.missing.remove(&(wanted.repository.clone(), wanted.digest));
        }
    }

    /// A blob could not be had now.
    pub(super) fn failed(&self, wanted: &Wanted) {
        let mut accounts = self.lock();
        let backfill = accounts.get_mut(&wanted.repository.account());
        let missing = backfill.and_then(|it| it.missing.get_mut(&(wanted.repository.clone(), wanted.digest)));
        if let Some(missing) = missing {
            let pause = RETRY_MIN.saturating_mul(1 << missing.failures.min(10)).min(RETRY_MAX);
            missing.failures += 1;
            missing.not_before = uptime() + pause;
        }
    }

    /// Whether it is time to prove that nothing is missing, at this place of the account's log. Proven once, it is looked
    /// at again when something has changed, and after `interval` in any case.
    pub(super) fn may_prove(&self, account: &AccountName, cursor: Cursor, interval: Duration) -> bool {
        let now = uptime();
        let accounts = self.lock();
        let Some(backfill) = accounts.get(account) else { return false };
        let is_whole = backfill.is_walked && !backfill.is_cut && backfill.missing.is_empty();
        let is_due = backfill.proof.is_none_or(|proof| proof.cursor != cursor || proof.at + interval <= now);
        is_whole && is_due && backfill.prove_at <= now
    }

    /// It was looked whether anything is missing. `cursor`: nothing was at this place.
    pub(super) fn looked(&self, account: &AccountName, cursor: Option<Cursor>, pause: Duration) {
        let now = uptime();
        if let Some(backfill) = self.lock().get_mut(account) {
            backfill.prove_at = now + pause;
            let is_whole = backfill.missing.is_empty();
            backfill.proof = cursor.filter(|_| is_whole).map(|cursor| Proof { at: now, cursor });
        }
    }

    /// How far an account is that is to be here with everything.
    pub(in crate::registry) fn status(&self, account: &AccountName) -> Option<BackfillStatus> {
        let accounts = self.lock();
        let backfill = accounts.get(account)?;
        Some(BackfillStatus {
            is_counted: backfill.is_walked && !backfill.is_cut,
            missing_blobs: backfill.missing.len() as u64,
            missing_bytes: backfill.missing.values().map(|missing| missing.size_bytes).sum(),
            proven: backfill.proof.map(|proof| uptime().saturating_sub(proof.at)),
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<AccountName, Backfill>> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn app() -> RepositoryName {
        RepositoryName::parse("acme/app").unwrap()
    }

    fn found(number: u8, manifest: Option<ManifestId>) -> Found {
        Found { digest: Digest::from_sha256([number; 32]), size_bytes: 10, manifest }
    }

    #[test]
    fn what_is_missing_is_counted_until_it_is_here_for_all_that_need_it() {
        let (backfills, acme) = (Backfills::default(), app().account());
        backfills.note(&app(), [found(1, None)]);
        assert_eq!(backfills.status(&acme), None, "nobody asked for everything");
        backfills.set(std::slice::from_ref(&acme));
        assert!(backfills.needs_walk(&acme));
        backfills.begin_walk(&acme);
        backfills.note(&app(), [found(1, None), found(1, None), found(2, None)]);
        backfills.end_walk(&acme);
        let status = backfills.status(&acme).unwrap();
        assert_eq!((status.is_counted, status.missing_blobs, status.missing_bytes), (true, 2, 20));
        let some = backfills.some(&acme, 10);
        assert_eq!(some.len(), 2);
        assert_eq!(backfills.done(&some[0]), Some(10));
        backfills.failed(&some[1]);
        assert!(backfills.some(&acme, 10).is_empty(), "not at once");
        assert!(!backfills.may_prove(&acme, Cursor::default(), HOUR), "something is missing");
        backfills.drop_one(&some[1]);
        assert!(backfills.may_prove(&acme, Cursor::default(), HOUR));
        backfills.set(&[]);
        assert!(!backfills.has(&acme));
    }

    #[test]
    fn a_proof_holds_until_something_is_missing_or_changes_or_time_goes_by() {
        let (backfills, acme) = (Backfills::default(), app().account());
        let at = |sequence| Cursor { sequence, stamp: 1 };
        backfills.set(std::slice::from_ref(&acme));
        assert!(!backfills.may_prove(&acme, at(1), HOUR), "nothing is known yet");
        backfills.end_walk(&acme);
        backfills.looked(&acme, Some(at(1)), Duration::ZERO);
        assert!(backfills.status(&acme).unwrap().proven.is_some());
        assert!(!backfills.may_prove(&acme, at(1), HOUR));
        assert!(backfills.may_prove(&acme, at(2), HOUR) && backfills.may_prove(&acme, at(1), Duration::ZERO));
        backfills.note(&app(), [found(1, None)]);
        assert_eq!(backfills.status(&acme).unwrap().proven, None);
        backfills.looked(&acme, Some(at(2)), HOUR);
        assert_eq!(backfills.status(&acme).unwrap().proven, None, "it was found missing while it was looked");
        let some = backfills.some(&acme, 1);
        backfills.done(&some[0]);
        assert!(!backfills.may_prove(&acme, at(2), HOUR), "not before the pause is over");
    }
}
