//! What is followed equals the primary, and is answered from only while that is certain.

use std::time::{Duration, Instant};

use super::pair::{Pair, primary_node, push, replica_node};
use super::*;

fn generator(seed: u64) -> impl FnMut(usize) -> usize {
    let mut state = seed;
    move |below| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    }
}

#[tokio::test]
async fn what_is_followed_equals_the_primary_after_any_operations_cuts_and_trimmed_logs() {
    let mut pair = Pair::new(Duration::from_millis(60));
    let mut random = generator(11);
    let names = ["acme/web", "acme/api", "acme/deep/er/still"];
    let (mut listings, mut equal) = (0, 0);
    for round in 0..60 {
        for _ in 0..random(25) {
            let registry = &pair.primary.registry;
            let (name, to) = (names[random(names.len())], format!("v{}", random(6)));
            let outcome = match random(12) {
                0..=5 => push(registry, name, &to, &random(30).to_string()).await.map(|_| ()),
                6 | 7 => registry.delete_tag(&repository(name), &Tag::parse(&to).unwrap()).await,
                8..=10 => match registry.list_manifests(&repository(name), None, 100).await {
                    Ok(page) if !page.items.is_empty() => {
                        let digest = page.items[random(page.items.len())].manifest.digest;
                        registry.delete_manifest(&repository(name), &digest).await
                    }
                    other => other.map(|_| ()),
                },
                _ => registry.delete_repository(&repository(name)).await,
            };
            drop(outcome);
            // The follower takes part now and then while it goes on; a write does not wait for one without a lease.
            if random(8) == 0 {
                pair.exchange().await;
            }
        }
        match random(6) {
            0 => pair.break_off(),
            1 => pair.primary.registry.trim_events().await.unwrap(),
            2 => {
                // Away for so long that the log does not reach back.
                pair.break_off();
                for number in 0..30 {
                    push(&pair.primary.registry, names[0], &format!("v{}", number % 6), &number.to_string())
                        .await
                        .unwrap();
                }
                pair.primary.registry.trim_events().await.unwrap();
            }
            _ => {}
        }
        let before = pair.replica.registry.copy_places();
        pair.exchange().await;
        listings += usize::from(
            matches!(before[0].1, Place::At(_))
                && matches!(pair.replica.registry.copy_places()[0].1, Place::Listing(_)),
        );
        if random(3) == 0 {
            pair.catch_up().await;
            let (there, here) =
                (Pair::content(&pair.primary.registry).await, Pair::content(&pair.replica.registry).await);
            assert_eq!(here, there, "round {round}");
            assert_eq!(pair.replica.registry.copy_status()[0].behind_events, Some(0), "round {round}");
            equal += usize::from(!there.is_empty());
        }
    }
    assert!(listings > 3 && equal > 10, "{listings} {equal}");
}

#[tokio::test]
async fn what_is_pushed_again_has_the_time_of_that_in_every_region() {
    let mut pair = Pair::new(Duration::from_millis(60));
    let (there, here) = (pair.primary.registry.clone(), pair.replica.registry.clone());
    let app = repository("acme/app");
    // A pull comes before the copy, and is no push.
    push(&there, "acme/app", "v1", "first").await.unwrap();
    pair.replica.clock.advance(500);
    here.load_manifest(&app, &reference("v1")).await.unwrap();
    let acme = AccountName::parse("acme").unwrap();
    for _ in 0..3 {
        pair.catch_up().await;
        let (listed, known) =
            (there.list_manifests(&app, None, 9).await.unwrap(), here.list_manifests(&app, None, 9).await.unwrap());
        assert!(known.is_stale, "it was read here");
        assert_eq!(known.items, listed.items);
        let listed = there.list_account_repositories(&acme, None, 9).await.unwrap();
        let known = here.list_account_repositories(&acme, None, 9).await.unwrap();
        assert_eq!(known.items[0].pushed_at, listed.items[0].pushed_at);
        pair.primary.clock.advance(77);
        push(&there, "acme/app", "v1", "first").await.unwrap();
    }
}

#[tokio::test]
async fn a_fresh_copy_answers_by_itself_and_a_write_waits_for_it() {
    let mut pair = Pair::new(Duration::from_secs(20));
    let (there, here) = (pair.primary.registry.clone(), pair.replica.registry.clone());
    let app = repository("acme/app");
    let first = push(&there, "acme/app", "v1", "first").await.unwrap();
    pair.catch_up().await;
    let asked = pair.questions();
    assert_eq!(here.load_manifest(&app, &reference("v1")).await.unwrap().digest, first);
    let absent = here.load_manifest(&app, &reference("v2")).await;
    assert!(matches!(absent, Err(RegistryError::ManifestUnknown { .. })));
    let absent = here.load_manifest(&repository("acme/none"), &reference("v2")).await;
    assert!(matches!(absent, Err(RegistryError::RepositoryUnknown { .. })));
    assert_eq!(here.list_tags(&app, None, 10).await.unwrap().items, ["v1"]);
    assert!(here.list_referrers(&app, &first, None, None, 10).await.unwrap().items.is_empty());
    assert_eq!(pair.questions(), asked, "it had to ask");

    // Neither the one who pushes nor anybody who asks the primary gets ahead of the copy.
    let (pushing, reading) = (there.clone(), there.clone());
    let write = tokio::spawn(async move { push(&pushing, "acme/app", "v1", "second").await.unwrap() });
    while there.metadata().read(|r| r.get_manifest_by_tag("acme/app", "v1")).await.map(digest_in).unwrap()
        == Some(first)
    {
        tokio::task::yield_now().await;
    }
    let read = tokio::spawn(async move { reading.load_manifest(&repository("acme/app"), &reference("v1")).await });
    assert_eq!(here.load_manifest(&app, &reference("v1")).await.unwrap().digest, first);
    assert!(!write.is_finished() && !read.is_finished());
    // It is here, and not known to be everywhere: the primary is asked.
    pair.exchange().await;
    let asked = pair.questions();
    let (asking, name) = (here.clone(), app.clone());
    let third = tokio::spawn(async move { asking.load_manifest(&name, &reference("v1")).await.unwrap().digest });
    while pair.questions() == asked {
        tokio::task::yield_now().await;
    }
    assert!(!write.is_finished() && !read.is_finished() && !third.is_finished());
    pair.exchange().await;
    let second = write.await.unwrap();
    assert_eq!(read.await.unwrap().unwrap().digest, second);
    assert_eq!(third.await.unwrap(), second);
    pair.catch_up().await;
    let asked = pair.questions();
    assert_eq!(here.load_manifest(&app, &reference("v1")).await.unwrap().digest, second);
    assert_eq!(pair.questions(), asked);

    // A deletion takes the copy along, also by digest.
    let deleting = there.clone();
    let delete = tokio::spawn(async move { deleting.delete_manifest(&repository("acme/app"), &second).await });
    while !delete.is_finished() {
        pair.exchange().await;
        tokio::task::yield_now().await;
    }
    delete.await.unwrap().unwrap();
    pair.catch_up().await;
    let gone = here.load_manifest(&app, &Reference::Digest(second)).await;
    assert!(matches!(gone, Err(RegistryError::ManifestUnknown { .. })));
}

fn digest_in(row: Option<crate::metadata::ManifestRow>) -> Option<Digest> {
    row.map(|row| row.digest)
}

#[tokio::test]
async fn a_region_that_falls_silent_holds_up_a_write_no_longer_than_its_lease() {
    let lease = Duration::from_millis(600);
    let mut pair = Pair::new(lease);
    push(&pair.primary.registry, "acme/app", "v1", "first").await.unwrap();
    pair.catch_up().await;
    let (start, app) = (Instant::now(), repository("acme/app"));
    let second = push(&pair.primary.registry, "acme/app", "v1", "second").await.unwrap();
    let took = start.elapsed();
    assert!(took > lease / 2 && took < lease * 2, "{took:?}");
    // By then it does not answer by itself any more.
    let asked = pair.questions();
    assert_eq!(pair.replica.registry.load_manifest(&app, &reference("v1")).await.unwrap().digest, second);
    assert_eq!(pair.questions(), asked + 1);
}

#[tokio::test]
async fn a_restarted_primary_waits_for_those_who_may_hold_a_lease_of_before() {
    let lease = Duration::from_millis(700);
    let mut pair = Pair::new(lease);
    push(&pair.primary.registry, "acme/app", "v1", "first").await.unwrap();
    pair.catch_up().await;
    let Bench { registry, clock, directory } = pair.primary;
    let options = registry.options().clone();
    drop(registry);
    // The way to it still holds the former one, which goes with the pair's replica.
    let metadata = Metadata::open(&directory.path().join("metadata.db"), &MetadataOptions::default()).unwrap();
    let storage = Storage::filesystem(FilesystemOptions::new(directory.path().join("storage"))).unwrap();
    let restarted = Registry::new(options, metadata, storage, clock, Arc::new(LocalClaims));
    restarted.recall_leases().await.unwrap();
    let start = Instant::now();
    push(&restarted, "acme/app", "v1", "second").await.unwrap();
    assert!(start.elapsed() >= lease, "{:?}", start.elapsed());
    let start = Instant::now();
    push(&restarted, "acme/app", "v1", "third").await.unwrap();
    assert!(start.elapsed() < lease / 2, "{:?}", start.elapsed());
    // A time in which nobody held one is forgotten.
    restarted.tend_leases().await.unwrap();
    let recorded = restarted.metadata().read(|reader| reader.list_lease_holders(10)).await;
    assert!(recorded.map_err(RegistryError::Metadata).unwrap().is_empty());
}

#[tokio::test]
async fn an_answer_that_comes_late_does_not_put_back_what_was_replaced() {
    let mut pair = Pair::new(Duration::from_millis(300));
    let (there, here) = (pair.primary.registry.clone(), pair.replica.registry.clone());
    let app = repository("acme/app");
    push(&there, "acme/app", "v1", "first").await.unwrap();
    pair.catch_up().await;
    // A push through the replica is at the primary, and the tag has moved on there, before its answer is worked on here.
    let config = put_blob(&here, &app, b"{}").await;
    put_blob(&there, &app, b"{}").await;
    let second = here.put_manifest(&app, tag("v1"), Some(OCI), image(&config, "second")).await.unwrap().digest;
    let kept = here.metadata().read(|reader| reader.get_manifest_by_tag("acme/app", "v1")).await;
    let kept: Option<crate::metadata::ManifestRow> = kept.map_err(RegistryError::Metadata).unwrap();
    assert_ne!(digest_in(kept), Some(second), "written besides the events");
    pair.catch_up().await;
    assert_eq!(here.load_manifest(&app, &reference("v1")).await.unwrap().digest, second);
    // The account is gone: so are its copies.
    assert!(here.take_copy_away(&AccountName::parse("acme").unwrap()).await.unwrap());
    assert!(Pair::content(&here).await.is_empty());
    assert!(here.copy_places().is_empty());
}

#[tokio::test]
async fn what_differs_from_the_primary_is_found_and_a_listing_puts_it_right() {
    let mut pair = Pair::new(Duration::from_millis(300));
    let (there, here, acme) =
        (pair.primary.registry.clone(), pair.replica.registry.clone(), AccountName::parse("acme").unwrap());
    for (name, mark) in [("acme/app", "first"), ("acme/app", "second"), ("acme/other", "third")] {
        push(&there, name, mark, mark).await.unwrap();
    }
    assert_eq!(here.compare_copy(&acme).await.unwrap(), None, "it is not all here yet");
    let backlog = there.backlog_bytes(&acme, 0).await.unwrap();
    assert!(backlog > 0);
    pair.catch_up().await;
    let head = there.metadata().read(|reader| reader.get_event_head(&AccountName::parse("acme").unwrap())).await;
    let (_, at) = head.map_err(RegistryError::Metadata).unwrap().unwrap();
    assert_eq!(there.backlog_bytes(&acme, at.sequence).await.unwrap(), 0);
    let same = here.compare_copy(&acme).await.unwrap().unwrap();
    assert_eq!((same.at, same.repositories, same.manifests, same.blobs), (at, 2, 3, 2));
    // Of the blobs nothing came: only manifests and tags are followed.
    assert!(same.differing.iter().all(|differing| differing.blobs && !differing.manifests && !differing.tags));
    assert_eq!(same.differing.len(), 2);

    // Something is lost here, and a tag names something else, without an event of the primary's.
    let app = repository("acme/app");
    let spoilt = here.metadata().write(move |transaction| {
        let id = transaction.get_repository(&app)?.unwrap();
        let manifests = transaction.list_digests(id, None, None, 10)?;
        let (kept, _) = transaction.get_manifest_id(id, &manifests[0])?.unwrap();
        let (lost, _) = transaction.get_manifest_id(id, &manifests[1])?.unwrap();
        transaction.delete_manifest(lost)?;
        for tag in ["first", "second"] {
            transaction.put_tag(id, tag, kept, 1)?;
        }
        Ok::<_, RegistryError>(())
    });
    spoilt.await.unwrap();
    let found = here.compare_copy(&acme).await.unwrap().unwrap().differing;
    let app = found.iter().find(|differing| differing.repository == "acme/app").unwrap();
    assert!(app.manifests && app.tags);
    let other = found.iter().find(|differing| differing.repository == "acme/other").unwrap();
    assert!(!other.manifests && !other.tags);
    here.list_copy_anew(&acme);
    assert!(!here.copy_status()[0].is_fresh, "it is known to be wrong");
    pair.catch_up().await;
    assert_eq!(Pair::content(&here).await, Pair::content(&there).await);
    let again = here.compare_copy(&acme).await.unwrap().unwrap().differing;
    assert!(again.iter().all(|differing| !differing.manifests && !differing.tags));
}

#[tokio::test]
async fn a_blob_that_is_held_for_a_push_outlives_events_from_before_it() {
    let mut pair = Pair::new(Duration::from_millis(300));
    let (there, here, app) = (pair.primary.registry.clone(), pair.replica.registry.clone(), repository("acme/app"));
    // Events have the time of the machine.
    let now = crate::model::Clock::now(&crate::model::SystemClock);
    pair.replica.clock.advance(now - 1_000_000 - 60);
    push(&there, "acme/app", "other", "other").await.unwrap();
    pair.catch_up().await;
    let first = put_blob(&here, &app, b"held").await;
    put_blob(&there, &app, b"held").await;
    // It goes at the primary, comes back, and is to be held here, where nobody has heard that it went.
    there.delete_blob(&app, &first).await.unwrap();
    put_blob(&there, &app, b"held").await;
    here.keep_blobs(primary_node(), &app, &[first]).await.unwrap();
    let document = String::from_utf8(image(&first, "held").to_vec()).unwrap().replace("\"size\":2", "\"size\":4");
    there.put_manifest(&app, tag("held"), Some(OCI), document.into()).await.unwrap();
    pair.catch_up().await;
    here.load_local_blob(&app, &first).await.unwrap();
    let refused = here.keep_blobs(replica_node(), &app, &[first]).await;
    assert!(matches!(refused, Err(RegistryError::PrimaryUnreachable { .. })), "only the primary asks for that");
    // What nobody holds for anything goes as it ever did.
    let second = put_blob(&here, &app, b"left").await;
    put_blob(&there, &app, b"left").await;
    there.delete_blob(&app, &second).await.unwrap();
    pair.catch_up().await;
    assert!(here.load_local_blob(&app, &second).await.is_err());
}
