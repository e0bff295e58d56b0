//! Accounts that are gone, whose names are claimed again.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::pair::{Pair, Way, push, replica_node};
use super::succession::{acme, claim_anew, registry_in, two};
use super::*;

#[tokio::test]
async fn a_push_to_a_new_account_waits_until_what_was_here_of_the_old_one_is_gone_and_is_never_taken_away() {
    let (mut pair, claim) = two();
    let (old, here) = (pair.primary.registry.clone(), pair.replica.registry.clone());
    let first = push(&old, "acme/app", "v1", "first").await.unwrap();
    push(&old, "acme/other", "v1", "other").await.unwrap();
    pair.catch_up().await;
    here.load_manifest(&repository("acme/app"), &Reference::Digest(first)).await.unwrap();
    // It was deleted while this region was away, and a push claims its name here.
    claim.1.store(0, Ordering::SeqCst);
    assert!(!here.is_of_former_account(&acme()));
    claim_anew(&claim, replica_node());
    assert!(here.is_of_former_account(&acme()));
    let early = here.start_upload(&repository("acme/app"), Algorithm::Sha256).await;
    assert!(matches!(early, Err(RegistryError::AccountMoving { .. })), "{early:?}");
    assert!(here.unfollow(&acme()).await.is_err(), "what is here is another's");
    // Nor is anything of it shown to whoever has the name now.
    fn is_closed<T: std::fmt::Debug>(answer: Result<T, RegistryError>) {
        assert!(matches!(answer, Err(RegistryError::AccountMoving { .. })), "{answer:?}");
    }
    let (app, config) = (repository("acme/app"), digest_of(b"{}"));
    for wanted in [reference("v1"), Reference::Digest(first)] {
        assert!(here.cached_manifest("acme/app", &wanted.to_string()).is_none());
        is_closed(here.load_manifest(&app, &wanted).await.map(|manifest| manifest.digest));
    }
    for to_read in [true, false] {
        is_closed(here.load_blob(&app, &config, to_read).await.map(|blob| blob.size_bytes));
    }
    is_closed(here.list_tags(&app, None, 9).await);
    is_closed(here.list_referrers(&app, &first, None, None, 9).await.map(|page| page.items.len()));
    is_closed(here.list_account_repositories(&acme(), None, 9).await.map(|page| page.items.len()));
    is_closed(here.list_manifests(&app, None, 9).await.map(|page| page.items.len()));
    assert_eq!(here.list_repositories(None, None, 9).await.unwrap().items, Vec::<String>::new());

    assert!(here.take_copy_away(&acme()).await.unwrap());
    assert!(Pair::content(&here).await.is_empty() && here.copy_places().is_empty());
    let second = push(&here, "acme/app", "v2", "second").await.unwrap();
    let again = here.take_copy_away(&acme()).await;
    assert!(matches!(again, Err(RegistryError::AccountMoving { .. })), "{again:?}");
    assert_eq!(here.load_manifest(&repository("acme/app"), &reference("v2")).await.unwrap().digest, second);
    let former = here.load_manifest(&repository("acme/app"), &Reference::Digest(first)).await;
    assert!(matches!(former, Err(RegistryError::ManifestUnknown { .. })), "{former:?}");
}

#[tokio::test]
async fn a_take_away_stops_where_the_account_turns_out_not_to_be_gone() {
    let (mut pair, claim) = two();
    let (old, here) = (pair.primary.registry.clone(), pair.replica.registry.clone());
    push(&old, "acme/app", "v1", "first").await.unwrap();
    pair.catch_up().await;
    let kept = here.take_copy_away(&acme()).await;
    assert!(matches!(kept, Err(RegistryError::AccountMoving { .. })), "{kept:?}");
    assert_eq!(Pair::content(&here).await, Pair::content(&old).await);
    // Another region has the name: then what is here goes, and nothing of the new account is taken in before.
    claim.1.store(7, Ordering::SeqCst);
    pair.break_off();
    let places = here.copy_places();
    let request = FollowRequest { session: 99, is_first: true, wait_ms: 0, places, dropped: Vec::new() };
    push(&old, "acme/app", "v2", "second").await.unwrap();
    let FollowAnswer::News { news, .. } = old.follow(replica_node(), request).await.unwrap() else { panic!("news") };
    for news in news {
        let applied = here.apply_news(pair.nodes.0, news).await;
        assert!(matches!(applied, Err(RegistryError::AccountMoving { .. })), "{applied:?}");
    }
    assert!(here.take_copy_away(&acme()).await.unwrap());
    here.want_copy(&acme());
    pair.break_off();
    pair.catch_up().await;
    assert_eq!(Pair::content(&here).await, Pair::content(&old).await);
}

#[tokio::test]
async fn a_take_away_that_a_crash_cut_off_is_gone_on_with_before_the_new_account_takes_a_push() {
    let (mut pair, claim) = two();
    let old = pair.primary.registry.clone();
    for number in 0..5 {
        push(&old, "acme/app", &format!("v{number}"), &number.to_string()).await.unwrap();
    }
    pair.catch_up().await;
    let directory = pair.replica.directory;
    drop(pair.replica.registry);
    claim_anew(&claim, replica_node());
    let (here, _) = registry_in(directory.path(), replica_node(), &claim);
    let way = Way { primary: old, asked: pair.asked, claim: Some((replica_node(), claim.clone())) };
    here.connect(Arc::new(way));
    here.recall_primacies().await.unwrap();
    here.recall_follows().await.unwrap();
    assert!(here.is_of_former_account(&acme()));
    let pushing = tokio::spawn({
        let here = here.clone();
        async move { here.delete_tag(&repository("acme/app"), &Tag::parse("v1").unwrap()).await }
    });
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert!(!pushing.is_finished(), "it deleted a tag of the former account as if it were the new one's");
    assert!(here.take_copy_away(&acme()).await.unwrap());
    assert!(matches!(pushing.await.unwrap(), Err(RegistryError::RepositoryUnknown { .. })));
    let new = push(&here, "acme/app", "v1", "new").await.unwrap();
    assert_eq!(here.list_tags(&repository("acme/app"), None, 9).await.unwrap().items, ["v1"]);
    assert_eq!(here.load_manifest(&repository("acme/app"), &reference("v1")).await.unwrap().digest, new);
}

#[tokio::test]
async fn a_copy_of_an_account_that_is_gone_lets_no_push_make_it_anew_where_pushes_must_not() {
    let (mut pair, claim) = two();
    let old = pair.primary.registry.clone();
    push(&old, "acme/app", "v1", "first").await.unwrap();
    pair.catch_up().await;
    let directory = pair.replica.directory;
    drop(pair.replica.registry);
    claim.1.store(0, Ordering::SeqCst);
    let (here, _) = super::succession::registry_with(
        directory.path(),
        replica_node(),
        &claim,
        RegistryOptions { create_accounts_on_push: false, ..options() },
    );
    here.recall_follows().await.unwrap();
    for _ in 0..2 {
        let refused = here.start_upload(&repository("acme/app"), Algorithm::Sha256).await;
        assert!(matches!(refused, Err(RegistryError::AccountUnknown { .. })), "{refused:?}");
        // The same once it is taken away.
        here.take_copy_away(&acme()).await.unwrap();
    }
    // One that was made here before it had a claim is claimed as ever.
    here.ensure_accounts(vec![acme()]).await.unwrap();
    here.start_upload(&repository("acme/app"), Algorithm::Sha256).await.unwrap();
}

#[tokio::test]
async fn what_was_only_pulled_is_known_for_a_former_accounts_after_a_restart() {
    let (pair, claim) = two();
    let old = pair.primary.registry.clone();
    let first = push(&old, "acme/app", "v1", "first").await.unwrap();
    // It passes through, as all of a mirror does, which nobody can follow.
    let app = repository("acme/app");
    pair.replica.registry.load_manifest(&app, &reference("v1")).await.unwrap();
    assert!(!Pair::content(&pair.replica.registry).await.is_empty(), "nothing was kept of it");
    let directory = pair.replica.directory;
    drop(pair.replica.registry);
    claim_anew(&claim, replica_node());
    let (here, _) = registry_in(directory.path(), replica_node(), &claim);
    here.recall_follows().await.unwrap();
    for wanted in [reference("v1"), Reference::Digest(first)] {
        let shown = here.load_manifest(&app, &wanted).await.map(|manifest| manifest.digest);
        assert!(matches!(shown, Err(RegistryError::AccountMoving { .. })), "{shown:?}");
    }
    assert!(here.take_copy_away(&acme()).await.unwrap());
    let second = push(&here, "acme/app", "v1", "second").await.unwrap();
    assert_eq!(here.load_manifest(&app, &reference("v1")).await.unwrap().digest, second);
}
