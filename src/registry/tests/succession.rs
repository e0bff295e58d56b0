use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use keppel_federation::vocabulary::NodeId;

use super::pair::{Claim, Pair, Way, primary_node, push, replica_node};
use super::*;
use crate::metadata::{Cursor, MetadataError};
use crate::registry::Progress;

pub(super) const LEASE: Duration = Duration::from_millis(150);

/// What one of two nodes knows of claims.
pub(super) struct Member {
    pub(super) node: NodeId,
    pub(super) claim: Arc<Claim>,
}

#[async_trait]
impl AccountClaims for Member {
    async fn ensure_primary(&self, account: &AccountName, may_claim: bool) -> Result<(), ClaimRefusal> {
        match self.is_primary(account) {
            true => Ok(()),
            false if self.claim.number().is_none() && may_claim => {
                claim_anew(&self.claim, self.node);
                Ok(())
            }
            false if self.claim.number().is_none() => Err(ClaimRefusal::Unclaimed),
            false => Err(ClaimRefusal::Elsewhere { region: "eu".into() }),
        }
    }

    fn rules(&self, _: &AccountName) -> Option<AccountRules> {
        None
    }

    fn is_deleting(&self, _: &AccountName) -> bool {
        false
    }

    fn is_primary(&self, _: &AccountName) -> bool {
        self.claim.get().0 == self.node && self.claim.number().is_some()
    }

    fn claim_of(&self, _: &AccountName) -> Option<u64> {
        self.claim.number()
    }

    fn primary_epoch(&self, account: &AccountName) -> Option<u64> {
        self.is_primary(account).then(|| self.claim.get().1)
    }

    fn version(&self) -> u64 {
        self.claim.get().1
    }

    fn majority_asked_at(&self) -> Option<Duration> {
        Some(keppel_federation::vocabulary::uptime())
    }

    async fn confirm_majority(&self) -> bool {
        true
    }
}

/// Somebody claims the name after it was given back.
pub(super) fn claim_anew(claim: &Claim, node: NodeId) {
    decide(claim, node);
    claim.1.store(claim.get().1, Ordering::SeqCst);
}

pub(super) fn acme() -> AccountName {
    AccountName::parse("acme").unwrap()
}

pub(super) fn registry_in(directory: &Path, node: NodeId, claim: &Arc<Claim>) -> (Registry, Arc<ManualClock>) {
    registry_with(directory, node, claim, RegistryOptions { lease: LEASE, ..options() })
}

pub(super) fn registry_with(
    directory: &Path,
    node: NodeId,
    claim: &Arc<Claim>,
    options: RegistryOptions,
) -> (Registry, Arc<ManualClock>) {
    let metadata = Metadata::open(&directory.join("metadata.db"), &MetadataOptions::default()).unwrap();
    let storage = Storage::filesystem(FilesystemOptions::new(directory.join("storage"))).unwrap();
    let clock = Arc::new(ManualClock::new(1_000_000));
    let member = Arc::new(Member { node, claim: claim.clone() });
    (Registry::new(options, metadata, storage, clock.clone(), member), clock)
}

/// Two nodes, the first of which is primary in epoch 1.
pub(super) fn two() -> (Pair, Arc<Claim>) {
    let claim = Arc::new(Claim::of(primary_node()));
    (two_that_know(&claim, &claim), claim)
}

/// The same, each with what it knows of the claim.
pub(super) fn two_that_know(there: &Arc<Claim>, here: &Arc<Claim>) -> Pair {
    let bench = |node, claim| {
        let directory = tempfile::tempdir().unwrap();
        let (registry, clock) = registry_in(directory.path(), node, claim);
        Bench { registry, clock, directory }
    };
    let (primary, replica) = (bench(primary_node(), there), bench(replica_node(), here));
    let asked = Arc::new(AtomicUsize::new(0));
    let ways = [(&primary, &replica, primary_node(), there), (&replica, &primary, replica_node(), here)];
    for (at, to, node, claim) in ways {
        let (primary, asked) = (to.registry.clone(), asked.clone());
        at.registry.connect(Arc::new(Way { primary, asked, claim: Some((node, claim.clone())) }));
    }
    replica.registry.want_copy(&acme());
    let nodes = (primary_node(), replica_node());
    Pair { primary, replica, nodes, asked, session: 0, told: BTreeMap::new() }
}

/// From now on the one that followed is asked, and the other follows.
pub(super) fn swap(pair: &mut Pair) {
    std::mem::swap(&mut pair.primary, &mut pair.replica);
    pair.nodes = (pair.nodes.1, pair.nodes.0);
    pair.break_off();
}

pub(super) fn decide(claim: &Claim, node: NodeId) {
    let mut claim = claim.0.lock().unwrap();
    *claim = (node, claim.1 + 1);
}

async fn blob_here(registry: &Registry, digest: Digest) -> bool {
    let read = registry.metadata().read(move |reader| {
        let account = reader.get_account(&acme())?.expect("it is here");
        Ok::<_, MetadataError>(reader.get_account_blob(account, &digest)?.is_some())
    });
    read.await.unwrap()
}

/// Sweeps as if all grace periods were over.
async fn sweep(registry: &Registry) {
    let swept = registry.metadata().write(|transaction| {
        let account = transaction.get_account(&acme())?.expect("it is here");
        let mut after = String::new();
        while let Some((id, name)) = transaction.get_next_repository(account, &after)? {
            for mount in transaction.list_swept_mounts(id, None, 1000)? {
                transaction.mark_mount(id, mount.blob, 1)?;
                transaction.sweep_mount(id, mount.blob, 1)?;
            }
            after = name;
        }
        for blob in transaction.list_swept_blobs(account, None, 1000)? {
            transaction.mark_blob(blob.blob, 1)?;
            transaction.sweep_blob(blob.blob, i64::MAX)?;
        }
        Ok::<_, MetadataError>(())
    });
    swept.await.unwrap();
}

#[tokio::test]
async fn an_account_that_is_handed_over_takes_no_write_in_between_and_loses_none() {
    let (mut pair, claim) = two();
    let (old, new) = (pair.primary.registry.clone(), pair.replica.registry.clone());
    push(&old, "acme/app", "v1", "first").await.unwrap();
    pair.catch_up().await;
    let handing = tokio::spawn({
        let old = old.clone();
        async move { old.hand_account_over(&acme(), 1, Duration::from_secs(60)).await }
    });
    // Whoever held a lease has to begin anew before it is handed over.
    while !handing.is_finished() {
        pair.exchange().await;
        tokio::task::yield_now().await;
    }
    let head = handing.await.unwrap().unwrap();
    pair.catch_up().await;
    assert!(new.has_reached(&acme(), head));
    assert!(old.load_manifest(&repository("acme/app"), &reference("v1")).await.unwrap().is_stale, "unmarked");
    let absent = old.load_manifest(&repository("acme/app"), &reference("v2")).await;
    assert!(matches!(absent, Err(RegistryError::AccountMoving { .. })), "{absent:?}");
    assert!(old.list_tags(&repository("acme/app"), None, 9).await.unwrap().is_stale);
    let pushing = tokio::spawn({
        let old = old.clone();
        async move { push(&old, "acme/app", "v2", "second").await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!pushing.is_finished(), "it waits for the next primary");

    new.expect_account(&acme(), 2).await.unwrap();
    assert!(new.take_account(&acme(), Handover::Given).await.is_err(), "nothing was decided");
    decide(&claim, replica_node());
    let early = new.load_manifest(&repository("acme/app"), &reference("v1")).await.unwrap();
    assert!(early.is_stale, "before it acts as the primary");
    new.take_account(&acme(), Handover::Given).await.unwrap();
    assert!(!new.load_manifest(&repository("acme/app"), &reference("v1")).await.unwrap().is_stale);
    let second = pushing.await.unwrap();
    // Its blob is with the other, which this test does not fetch from; the write came to the right one.
    assert!(matches!(second, Err(RegistryError::ManifestBlobsUnknown { .. })) || second.is_ok(), "{second:?}");
    let third = push(&new, "acme/app", "v3", "third").await.unwrap();

    assert_eq!(old.lost_accounts(), [(acme(), 1)]);
    let place = new.succession(&acme(), 2).await.unwrap();
    assert_eq!(place, Some(head));
    assert_eq!(old.step_down(&acme(), place).await.unwrap(), 0);
    swap(&mut pair);
    pair.catch_up().await;
    assert_eq!(Pair::content(&old).await, Pair::content(&new).await);
    assert_eq!(old.load_manifest(&repository("acme/app"), &reference("v3")).await.unwrap().digest, third);
    new.put_account_in_order(&acme()).await.unwrap();
    assert!(new.unordered_accounts().is_empty() && old.lost_accounts().is_empty());
}

#[tokio::test]
async fn a_push_that_was_recorded_when_its_account_got_a_successor_is_not_pushed_on_by_itself() {
    let (mut pair, claim) = two();
    let (old, new) = (pair.primary.registry.clone(), pair.replica.registry.clone());
    let first = push(&old, "acme/app", "v1", "first").await.unwrap();
    pair.catch_up().await;
    // It is recorded at once, and waits for the other's lease.
    let pushing = tokio::spawn({
        let old = old.clone();
        async move { push(&old, "acme/app", "v1", "second").await }
    });
    let before = Pair::content(&old).await;
    while Pair::content(&old).await == before {
        tokio::task::yield_now().await;
    }
    new.expect_account(&acme(), 2).await.unwrap();
    decide(&claim, replica_node());
    new.take_account(&acme(), Handover::Seized).await.unwrap();
    let pushed = pushing.await.unwrap();
    assert!(matches!(pushed, Err(RegistryError::Unconfirmed { .. })), "{pushed:?}");
    // Somebody may have seen it there and deleted it since: it does not come back.
    assert_eq!(new.load_manifest(&repository("acme/app"), &reference("v1")).await.unwrap().digest, first);
}

#[tokio::test]
async fn a_replica_that_was_surveyed_takes_nothing_more_from_the_primary_that_is_replaced() {
    let (mut pair, _claim) = two();
    let (old, new) = (pair.primary.registry.clone(), pair.replica.registry.clone());
    let lasting = Duration::from_secs(60);
    push(&old, "acme/app", "v1", "first").await.unwrap();
    assert_eq!(new.survey(&acme(), (primary_node(), 1), lasting).await.unwrap(), Progress::Nothing);
    new.end_survey(&acme());
    pair.catch_up().await;
    let Progress::At(before) = new.survey(&acme(), (primary_node(), 1), lasting).await.unwrap() else {
        panic!("it has everything");
    };
    assert!(new.has_reached(&acme(), before) && new.surveyed_accounts() == [(acme(), 1)]);
    // Places in the logs of two nodes say nothing about each other.
    assert_eq!(new.survey(&acme(), (replica_node(), 1), lasting).await.unwrap(), Progress::Nothing);
    new.survey(&acme(), (primary_node(), 1), lasting).await.unwrap();

    push(&old, "acme/app", "v2", "second").await.unwrap();
    for _ in 0..3 {
        pair.exchange().await;
        assert!(new.has_reached(&acme(), before), "it took what the primary told");
    }
    new.end_survey(&acme());
    pair.break_off();
    pair.catch_up().await;
    let Progress::At(after) = new.survey(&acme(), (primary_node(), 1), lasting).await.unwrap() else {
        panic!("it has everything");
    };
    assert!(after.sequence > before.sequence, "it takes it once nothing is replaced");
}

#[tokio::test]
async fn after_a_failover_nothing_is_acknowledged_before_the_former_primary_can_promise_nothing_any_more() {
    let (mut pair, claim) = two();
    let (old, new) = (pair.primary.registry.clone(), pair.replica.registry.clone());
    let first = push(&old, "acme/app", "v1", "first").await.unwrap();
    pair.catch_up().await;
    tokio::time::sleep(LEASE * 2).await;
    // Nobody hears of these.
    let second = push(&old, "acme/app", "v1", "second").await.unwrap();
    let other = repository("acme/app");
    let lonely = put_blob(&old, &other, b"lonely").await;
    let bytes = image(&lonely, "third");
    let third = old.put_manifest(&other, tag("v2"), Some(OCI), bytes).await.unwrap().digest;

    new.expect_account(&acme(), 2).await.unwrap();
    decide(&claim, replica_node());
    new.take_account(&acme(), Handover::Seized).await.unwrap();
    let start = Instant::now();
    let early = new.load_manifest(&other, &reference("v1")).await.unwrap();
    assert!(early.is_stale && early.digest == first);
    push(&new, "acme/app", "v9", "ninth").await.unwrap();
    assert!(start.elapsed() > LEASE * 2 - Duration::from_millis(20), "{:?}", start.elapsed());
    assert!(!new.load_manifest(&other, &reference("v1")).await.unwrap().is_stale);

    // What it was told before counts no more, and what it recorded is on the list.
    let refused = old.put_manifest(&other, tag("v5"), Some(OCI), image(&lonely, "fifth")).await;
    assert!(refused.is_err(), "the other does not have the blob");
    let place = new.succession(&acme(), 2).await.unwrap();
    assert_eq!(old.step_down(&acme(), place).await.unwrap(), 4);
    swap(&mut pair);
    pair.catch_up().await;
    assert_eq!(Pair::content(&old).await, Pair::content(&new).await);
    let (entries, count) = old.list_divergent(&acme(), 10).await.unwrap();
    let told: Vec<_> = entries.iter().map(|it| (&*it.what, it.tag.as_deref(), it.digest, it.there)).collect();
    assert_eq!(count, 4);
    assert_eq!(
        told,
        [
            ("manifest", None, Some(second), None),
            ("tag", Some("v1"), Some(second), Some(first)),
            ("manifest", None, Some(third), None),
            ("tag", Some("v2"), Some(third), None),
        ]
    );
    sweep(&old).await;
    assert!(blob_here(&old, lonely).await, "the list needs it");
    assert_eq!(old.drop_divergent(&acme()).await.unwrap(), 4);
    sweep(&old).await;
    assert!(!blob_here(&old, lonely).await, "nothing needs it any more");
}

#[tokio::test]
async fn where_the_successor_took_over_is_not_known_all_is_compared() {
    let (mut pair, claim) = two();
    let (old, new) = (pair.primary.registry.clone(), pair.replica.registry.clone());
    for number in 0..5 {
        push(&old, "acme/app", &format!("v{number}"), &number.to_string()).await.unwrap();
    }
    pair.catch_up().await;
    tokio::time::sleep(LEASE * 2).await;
    let only = push(&old, "acme/other", "only", "only").await.unwrap();
    new.expect_account(&acme(), 2).await.unwrap();
    decide(&claim, replica_node());
    new.take_account(&acme(), Handover::Given).await.unwrap();
    let foreign = Cursor { sequence: 3, stamp: 12345 };
    assert!(old.step_down(&acme(), Some(foreign)).await.unwrap() > 4);
    swap(&mut pair);
    pair.catch_up().await;
    let (entries, _) = old.list_divergent(&acme(), 100).await.unwrap();
    let told: Vec<_> = entries.iter().map(|it| (&*it.repository, &*it.what, it.digest)).collect();
    assert_eq!(told, [("acme/other", "manifest", Some(only)), ("acme/other", "tag", Some(only))]);
    // The other can have it, since its blobs are there too.
    put_blob(&new, &repository("acme/other"), b"{}").await;
    let outcome = old.push_divergent(&acme(), Duration::from_secs(60)).await.unwrap();
    assert_eq!((outcome.pushed, outcome.failed.len()), (2, 0), "{outcome:?}");
    assert_eq!(new.load_manifest(&repository("acme/other"), &reference("only")).await.unwrap().digest, only);
    assert_eq!(old.list_divergent(&acme(), 100).await.unwrap(), (Vec::new(), 0));
}

#[tokio::test]
async fn what_a_former_primary_tells_changes_nothing_any_more() {
    let (mut pair, claim) = two();
    let (old, new) = (pair.primary.registry.clone(), pair.replica.registry.clone());
    push(&old, "acme/app", "v1", "first").await.unwrap();
    pair.catch_up().await;
    tokio::time::sleep(LEASE * 2).await;
    let later = push(&old, "acme/app", "v1", "second").await.unwrap();
    pair.break_off();
    let places = new.copy_places();
    let request = FollowRequest { session: 99, is_first: true, wait_ms: 0, places, dropped: Vec::new() };
    let FollowAnswer::News { news, .. } = old.follow(replica_node(), request).await.unwrap() else { panic!("news") };
    new.expect_account(&acme(), 2).await.unwrap();
    decide(&claim, replica_node());
    for news in news {
        let applied = new.apply_news(primary_node(), news).await;
        assert!(matches!(applied, Err(RegistryError::AccountMoving { .. })), "{applied:?}");
    }
    let gone = new.load_manifest(&repository("acme/app"), &Reference::Digest(later)).await;
    assert!(gone.is_err());
}

/// What a follower that has everything is told to be everywhere, in a session of its own.
async fn granted(primary: &Registry, session: u64) -> Option<u64> {
    let read = primary.metadata().read(|reader| reader.get_event_head(&acme())).await;
    let (_, head) = read.map_err(RegistryError::Metadata).unwrap().unwrap();
    let places = vec![(acme(), Place::At(head))];
    let request = FollowRequest { session, is_first: true, wait_ms: 0, places, dropped: Vec::new() };
    let answer = primary.follow(replica_node(), request).await.unwrap();
    let FollowAnswer::News { news, .. } = answer else { panic!("{answer:?}") };
    let [News { what: NewsKind::Events { upto, confirmed, .. }, .. }] = &news[..] else { panic!("{news:?}") };
    assert_eq!(*upto, head);
    *confirmed
}

#[tokio::test]
async fn a_restart_forgets_nothing_of_a_change_of_primaries() {
    let claim = Arc::new(Claim::of(primary_node()));
    let directory = tempfile::tempdir().unwrap();
    {
        let (registry, _) = registry_in(directory.path(), primary_node(), &claim);
        push(&registry, "acme/app", "v1", "first").await.unwrap();
        registry.hand_account_over(&acme(), 1, Duration::from_secs(3600)).await.unwrap();
        assert!(registry.overdue_accounts().is_empty());
    }
    // Whether it was handed over has to be asked now: it takes no writes until then.
    let (registry, _) = registry_in(directory.path(), primary_node(), &claim);
    registry.recall_primacies().await.unwrap();
    assert_eq!(registry.overdue_accounts(), [(acme(), 1)]);
    assert!(registry.load_manifest(&repository("acme/app"), &reference("v1")).await.unwrap().is_stale);
    // Whoever took it over may have been told that nobody else answers for it: that stays so.
    assert_eq!(granted(&registry, 1).await, None);
    decide(&claim, primary_node());
    registry.keep_account(&acme(), 1, 2).await.unwrap();
    assert_eq!(granted(&registry, 2).await, Some(3));
    assert!(!registry.load_manifest(&repository("acme/app"), &reference("v1")).await.unwrap().is_stale);
    push(&registry, "acme/app", "v2", "second").await.unwrap();
    drop(registry);

    // One that takes over waits for the promises of the one before again.
    let directory = tempfile::tempdir().unwrap();
    {
        let (registry, _) = registry_in(directory.path(), replica_node(), &claim);
        registry.expect_account(&acme(), 3).await.unwrap();
    }
    decide(&claim, replica_node());
    let (registry, _) = registry_in(directory.path(), replica_node(), &claim);
    registry.recall_primacies().await.unwrap();
    assert_eq!(registry.arrived_accounts(), [acme()]);
    registry.take_account(&acme(), Handover::Seized).await.unwrap();
    drop(registry);
    let (registry, _) = registry_in(directory.path(), replica_node(), &claim);
    registry.recall_primacies().await.unwrap();
    assert_eq!(registry.unordered_accounts(), [acme()]);
    let start = Instant::now();
    push(&registry, "acme/app", "v1", "first").await.unwrap();
    assert!(start.elapsed() > LEASE * 2 - Duration::from_millis(20), "{:?}", start.elapsed());
}
