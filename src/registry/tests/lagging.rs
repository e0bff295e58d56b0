//! A failover to a region that is behind another one.

use std::sync::atomic::AtomicUsize;

use keppel_federation::vocabulary::NodeId;

use super::pair::{Claim, Pair, Way, primary_node, push, replica_node};
use super::succession::{acme, decide, registry_in, two};
use super::*;
use crate::metadata::Cursor;

fn third_node() -> NodeId {
    NodeId::from_public_key([3; 32])
}

/// Another replica of the account that the first of two has.
fn third(of: &Pair, claim: &Arc<Claim>) -> Pair {
    let directory = tempfile::tempdir().unwrap();
    let (registry, clock) = registry_in(directory.path(), third_node(), claim);
    let asked = Arc::new(AtomicUsize::new(0));
    let way =
        Way { primary: of.primary.registry.clone(), asked: asked.clone(), claim: Some((third_node(), claim.clone())) };
    registry.connect(Arc::new(way));
    registry.want_copy(&acme());
    let primary = bench_of(&of.primary);
    let nodes = (primary_node(), third_node());
    Pair { primary, replica: Bench { registry, clock, directory }, nodes, asked, session: 0, told: Default::default() }
}

/// The same registry; its data stays with the other bench.
fn bench_of(bench: &Bench) -> Bench {
    let (registry, clock) = (bench.registry.clone(), bench.clock.clone());
    Bench { registry, clock, directory: tempfile::tempdir().unwrap() }
}

async fn take_over(registry: &Registry, claim: &Claim, epoch: u64) {
    registry.expect_account(&acme(), epoch).await.unwrap();
    decide(claim, replica_node());
    registry.take_account(&acme(), Handover::Given).await.unwrap();
}

/// Follows the one that took over, as a node does that asks first where that was.
async fn follow_next(pair: &mut Pair, next: &Registry) {
    pair.primary.registry = next.clone();
    pair.nodes = (replica_node(), third_node());
    pair.break_off();
    let here = pair.replica.registry.clone();
    let epoch = here.copy_of_before(&acme(), replica_node()).expect("another primary told what is here");
    let place = next.succession(&acme(), epoch + 1).await.unwrap();
    here.settle_copy(&acme(), replica_node(), place).await.unwrap();
    assert_eq!(here.copy_of_before(&acme(), replica_node()), None);
    pair.catch_up().await;
}

async fn listed(registry: &Registry) -> Vec<(String, Option<String>, Option<Digest>)> {
    let (entries, _) = registry.list_divergent(&acme(), 100).await.unwrap();
    entries.into_iter().map(|entry| (entry.what, entry.tag, entry.digest)).collect()
}

#[tokio::test]
async fn what_a_replica_has_beyond_the_next_primary_is_set_aside_and_pushed_again() {
    let (mut behind, claim) = two();
    let mut ahead = third(&behind, &claim);
    let (old, next, far) =
        (behind.primary.registry.clone(), behind.replica.registry.clone(), ahead.replica.registry.clone());
    let first = push(&old, "acme/app", "v1", "first").await.unwrap();
    let gone = push(&old, "acme/app", "gone", "gone").await.unwrap();
    behind.catch_up().await;
    ahead.catch_up().await;
    // Only the third hears of these.
    let second = push(&old, "acme/app", "v2", "second").await.unwrap();
    let moved = push(&old, "acme/app", "v1", "moved").await.unwrap();
    let lonely = push(&old, "acme/lonely", "v1", "lonely").await.unwrap();
    ahead.catch_up().await;
    for digest in [second, moved] {
        far.load_manifest(&repository("acme/app"), &Reference::Digest(digest)).await.unwrap();
    }
    take_over(&next, &claim, 2).await;
    // What the next one deletes is not what it never had.
    next.delete_manifest(&repository("acme/app"), &gone).await.unwrap();
    follow_next(&mut ahead, &next).await;

    assert_eq!(Pair::content(&far).await, Pair::content(&next).await);
    let mut told = listed(&far).await;
    told.sort();
    let entry = |what: &str, tag: Option<&str>, digest| (what.to_owned(), tag.map(str::to_owned), Some(digest));
    let mut expected = vec![
        entry("manifest", None, second),
        entry("manifest", None, moved),
        entry("manifest", None, lonely),
        entry("tag", Some("v2"), second),
        entry("tag", Some("v1"), moved),
        entry("tag", Some("v1"), lonely),
        // Nobody can tell it from what is only here.
        entry("manifest", None, gone),
        entry("tag", Some("gone"), gone),
    ];
    expected.sort();
    assert_eq!(told, expected);
    assert_eq!(far.load_manifest(&repository("acme/app"), &reference("v1")).await.unwrap().digest, first);
    // The next primary has the blobs, which this test does not fetch.
    for name in ["acme/app", "acme/lonely"] {
        put_blob(&next, &repository(name), b"{}").await;
    }
    let outcome = far.push_divergent(&acme(), std::time::Duration::from_secs(60)).await.unwrap();
    assert_eq!(outcome.failed, []);
    assert_eq!(next.load_manifest(&repository("acme/app"), &reference("v2")).await.unwrap().digest, second);
    assert_eq!(next.load_manifest(&repository("acme/lonely"), &reference("v1")).await.unwrap().digest, lonely);
    ahead.catch_up().await;
    assert_eq!(listed(&far).await, []);
}

#[tokio::test]
async fn what_the_next_primary_had_and_deleted_is_not_set_aside() {
    let (mut pair, claim) = two();
    let mut far = third(&pair, &claim);
    let (old, next) = (pair.primary.registry.clone(), pair.replica.registry.clone());
    push(&old, "acme/app", "v1", "first").await.unwrap();
    let gone = push(&old, "acme/app", "gone", "gone").await.unwrap();
    far.catch_up().await;
    push(&old, "acme/app", "v3", "third").await.unwrap();
    pair.catch_up().await;
    take_over(&next, &claim, 2).await;
    next.delete_manifest(&repository("acme/app"), &gone).await.unwrap();
    follow_next(&mut far, &next).await;
    assert_eq!(Pair::content(&far.replica.registry).await, Pair::content(&next).await);
    assert_eq!(listed(&far.replica.registry).await, []);
}

#[tokio::test]
async fn where_nobody_knows_how_far_the_next_primary_was_nothing_is_lost() {
    let (mut behind, claim) = two();
    let mut ahead = third(&behind, &claim);
    let (old, next, far) =
        (behind.primary.registry.clone(), behind.replica.registry.clone(), ahead.replica.registry.clone());
    push(&old, "acme/app", "v1", "first").await.unwrap();
    behind.catch_up().await;
    let second = push(&old, "acme/app", "v2", "second").await.unwrap();
    ahead.catch_up().await;
    take_over(&next, &claim, 2).await;
    // It is told the listing at once, without a question before.
    ahead.primary.registry = next.clone();
    ahead.nodes = (replica_node(), third_node());
    ahead.break_off();
    ahead.catch_up().await;
    assert_eq!(Pair::content(&far).await, Pair::content(&next).await);
    assert_eq!(
        listed(&far).await,
        [("manifest".to_owned(), None, Some(second)), ("tag".to_owned(), Some("v2".to_owned()), Some(second))]
    );
    // What it takes away later, in one and the same epoch, is what the primary took away.
    let third = push(&next, "acme/app", "v3", "third").await.unwrap();
    ahead.catch_up().await;
    next.delete_manifest(&repository("acme/app"), &third).await.unwrap();
    for _ in 0..45 {
        push(&next, "acme/app", "v4", "fourth").await.unwrap();
        next.delete_tag(&repository("acme/app"), &Tag::parse("v4").unwrap()).await.unwrap();
    }
    assert_eq!(far.list_divergent(&acme(), 100).await.unwrap().1, 2);
}

#[tokio::test]
async fn a_place_in_the_log_of_another_primary_is_none_where_an_account_is_taken_over() {
    let (mut pair, claim) = two();
    let (old, next) = (pair.primary.registry.clone(), pair.replica.registry.clone());
    push(&old, "acme/app", "v1", "first").await.unwrap();
    pair.catch_up().await;
    // Another epoch of which nothing came here.
    decide(&claim, third_node());
    take_over(&next, &claim, 3).await;
    assert_eq!(next.succession(&acme(), 3).await.unwrap(), Some(Cursor::default()));
}
