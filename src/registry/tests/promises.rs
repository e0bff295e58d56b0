//! What a primary promises to those who follow it, and how that ends.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use keppel_federation::vocabulary::{NodeId, uptime};

use super::pair::{Claim, Pair, primary_node, push};
use super::succession::{LEASE, decide, two_that_know};
use super::*;

#[tokio::test]
async fn who_cannot_hear_of_a_successor_is_told_by_the_former_primary_before_its_lease_is_renewed() {
    let claim = || Arc::new(Claim::of(primary_node()));
    let (there, here) = (claim(), claim());
    let mut pair = two_that_know(&there, &here);
    push(&pair.primary.registry, "acme/app", "v1", "first").await.unwrap();
    pair.primary.registry.tend_leases().await.unwrap();
    pair.catch_up().await;
    assert!(pair.replica.registry.copy_status()[0].is_fresh);
    // It is decided, and the one that follows does not hear of it. Its primary does, and speaks for other accounts still.
    decide(&there, NodeId::from_public_key([3; 32]));
    let (start, mut renewed) = (uptime(), 0);
    while uptime() < start + LEASE * 3 {
        pair.primary.registry.tend_leases().await.unwrap();
        pair.exchange().await;
        renewed += 1;
        assert!(!pair.replica.registry.copy_status()[0].is_fresh, "after {renewed} answers");
        tokio::time::sleep(LEASE / 10).await;
    }
    assert!(renewed > 10);
}

/// Claims of a federation whose majority was asked at one moment, and looking at which takes as long as a pause of the
/// whole process.
struct Paused {
    asked_at: Duration,
    pauses: AtomicBool,
}

#[async_trait]
impl AccountClaims for Paused {
    async fn ensure_primary(&self, _: &AccountName, _: bool) -> Result<(), ClaimRefusal> {
        Ok(())
    }

    fn is_deleting(&self, _: &AccountName) -> bool {
        false
    }

    fn rules(&self, _: &AccountName) -> Option<AccountRules> {
        None
    }

    fn is_primary(&self, _: &AccountName) -> bool {
        true
    }

    fn version(&self) -> u64 {
        if self.pauses.load(Ordering::SeqCst) {
            std::thread::sleep(LEASE);
        }
        0
    }

    fn majority_asked_at(&self) -> Option<Duration> {
        Some(self.asked_at)
    }

    async fn confirm_majority(&self) -> bool {
        false
    }
}

#[tokio::test]
async fn a_pause_does_not_lengthen_the_time_for_which_a_primary_may_speak() {
    let directory = tempfile::tempdir().unwrap();
    let metadata = Metadata::open(&directory.path().join("metadata.db"), &MetadataOptions::default()).unwrap();
    let storage = Storage::filesystem(FilesystemOptions::new(directory.path().join("storage"))).unwrap();
    let claims = Arc::new(Paused { asked_at: uptime() + LEASE, pauses: AtomicBool::new(false) });
    let options = RegistryOptions { lease: LEASE, ..options() };
    let registry = Registry::new(options, metadata, storage, Arc::new(ManualClock::new(1_000_000)), claims.clone());
    registry.tend_leases().await.unwrap();
    assert!(registry.inner.feed.has_authority());
    claims.pauses.store(true, Ordering::SeqCst);
    let start = uptime();
    while uptime() < start + LEASE * 2 {
        registry.tend_leases().await.unwrap();
    }
    assert!(!registry.inner.feed.has_authority(), "the lease time since the majority was asked is over");
}

#[tokio::test]
async fn a_push_does_not_wait_for_what_is_imported_into_another_account() {
    let mut pair = Pair::new(Duration::from_secs(60));
    let (there, here) = (pair.primary.registry.clone(), pair.replica.registry.clone());
    here.want_copy(&AccountName::parse("zeta").unwrap());
    push(&there, "acme/app", "v0", "first").await.unwrap();
    push(&there, "zeta/app", "v0", "first").await.unwrap();
    pair.catch_up().await;
    assert!(here.copy_status().iter().all(|copy| copy.is_fresh));
    // More than three answers hold, in the account that comes first by its name.
    let mark = "x".repeat(1 << 20);
    let mut imports = Vec::new();
    for number in 0..16 {
        let (there, mark) = (there.clone(), format!("{number}{mark}"));
        imports.push(tokio::spawn(async move { push(&there, "acme/app", &format!("i{number}"), &mark).await }));
    }
    let pushing = there.clone();
    let push = tokio::spawn(async move { push(&pushing, "zeta/app", "v1", "second").await });
    for (repository, count) in [("acme/app", 17), ("zeta/app", 2)] {
        let tags = || {
            there.metadata().read(move |reader| {
                let id = reader.get_repository(&super::repository(repository))?.expect("it is there");
                Ok::<_, RegistryError>(reader.list_tag_copies(id, "", 100)?.len())
            })
        };
        while tags().await.unwrap() < count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    assert!(!push.is_finished(), "it is not there yet");
    // One answer brings it, the next question says that it has come.
    pair.exchange().await;
    pair.exchange().await;
    let ended = tokio::time::timeout(Duration::from_secs(10), push).await.expect("two questions are enough");
    ended.unwrap().unwrap();
    assert!(imports.iter().any(|import| !import.is_finished()), "all of the import came as well");
    pair.catch_up().await;
    for import in imports {
        import.await.unwrap().unwrap();
    }
    assert!(here.copy_status().iter().all(|copy| copy.is_fresh && copy.behind_events == Some(0)));
}
