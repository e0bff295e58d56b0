//! The tasks over a registry whose clock is moved by hand.

mod bench;
mod claims;
mod histories;
mod kills;
mod mortal;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use keppel_federation::vocabulary::{AccountName, Digest, Reference, RepositoryName, Tag, TenantId};
use serde_json::{Value, json};
use sha2::Digest as _;

use super::*;
use crate::metadata::{Metadata, MetadataOptions};
use crate::model::ManualClock;
use crate::model::policy::{AccountSettings, CompiledPolicies};
use crate::registry::{
    AccountClaims, AccountRules, AccountStep, BodyError, ClaimRefusal, ManifestTarget, Quota, RegistryOptions,
};
use crate::storage::{FilesystemOptions, Storage};

use bench::*;

const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const GRACE: i64 = 3600;
const DAY: i64 = 24 * 3600;

#[tokio::test]
async fn a_blob_that_no_manifest_needs_goes_after_the_grace_period_and_two_passes() {
    let bench = open();
    let kept = bench.push("acme/app", &[b"kept"], "a", None, &["v1"]).await;
    let layer = put_blob(&bench.registry, &repository("acme/app"), b"unused").await.unwrap();
    for task in [Task::MountSweep, Task::BlobSweep] {
        assert_eq!(bench.run(task).await.changed, 0);
    }
    bench.clock.advance(GRACE - 1);
    bench.run(Task::MountSweep).await;
    assert!(bench.has("acme/app", &layer).await);
    bench.clock.advance(1);
    let told = bench.work.run(Task::MountSweep, Some(&AccountName::parse("acme").unwrap()), true).await.unwrap();
    assert_eq!((told.changed, bench.has("acme/app", &layer).await), (1, true));
    assert_eq!(bench.run(Task::MountSweep).await.changed, 1);
    let report = bench.run(Task::BlobSweep).await;
    assert_eq!((report.changed, report.reclaimed_bytes), (1, 6));
    assert!(!bench.has("acme/app", &layer).await);
    assert!(bench.has("acme/app", &digest_of(b"kept")).await && bench.images("acme/app").await.contains_key(&kept));
    assert_eq!(bench.run(Task::StorageSweep).await.changed, 0);
    // What is deleted takes its blobs along, by the same way.
    bench.registry.delete_manifest(&repository("acme/app"), &kept).await.unwrap();
    bench.run(Task::MountSweep).await;
    bench.clock.advance(GRACE);
    bench.run(Task::MountSweep).await;
    assert_eq!(bench.run(Task::BlobSweep).await.changed, 2);
}

#[tokio::test]
async fn whoever_is_told_that_a_blob_is_there_may_push_its_manifest_within_the_grace_period() {
    let bench = open();
    let app = repository("acme/app");
    bench.push("acme/app", &[], "config", None, &["config"]).await;
    let layer = put_blob(&bench.registry, &app, b"layer").await.unwrap();
    let other = repository("acme/other");
    for round in 0..6 {
        bench.run(Task::MountSweep).await;
        bench.clock.advance(GRACE - 1);
        // Each of these is a promise, and begins the time anew.
        match round % 3 {
            0 => assert_eq!(bench.registry.load_blob(&app, &layer, false).await.unwrap().size_bytes, 5),
            1 => assert!(bench.registry.mount_blob(&app, &layer, None).await.unwrap()),
            _ => assert_eq!(put_blob(&bench.registry, &app, b"layer").await.unwrap(), layer),
        }
    }
    bench.run(Task::MountSweep).await;
    bench.clock.advance(GRACE - 1);
    bench.run(Task::MountSweep).await;
    bench.put("acme/app", image(&[layer], "late", None), OCI, &["late"]).await.unwrap();
    // A pull is none: it wants the bytes now.
    let pulled = put_blob(&bench.registry, &other, b"pulled").await.unwrap();
    bench.run(Task::MountSweep).await;
    bench.clock.advance(GRACE);
    bench.registry.load_blob(&other, &pulled, true).await.unwrap();
    bench.run(Task::MountSweep).await;
    assert!(!bench.has("acme/other", &pulled).await);
    assert!(bench.has("acme/app", &layer).await);
}

#[tokio::test]
async fn nothing_is_swept_where_a_manifest_is_not_valid_and_what_came_later_is_found() {
    let bench = open_with(RegistryOptions { sparse_indexes: true, ..RegistryOptions::default() });
    let app = repository("acme/app");
    // A cache of BuildKit: its index lists layers, here ones that come later.
    let layer = digest_of(b"cached layer");
    let cache = index(&[layer], "application/vnd.oci.image.layer.v1.tar+gzip");
    bench.put("acme/app", cache, INDEX, &["cache"]).await.unwrap();
    put_blob(&bench.registry, &app, b"cached layer").await.unwrap();
    let unused = put_blob(&bench.registry, &app, b"unused").await.unwrap();
    bench.run(Task::MountSweep).await;
    bench.clock.advance(GRACE);
    bench.push("acme/app", &[b"lost"], "a", None, &["v1"]).await;
    bench.lose_mount("acme/app", b"lost").await;
    let report = bench.run(Task::MountSweep).await;
    assert_eq!((report.changed, report.faults), (0, 1));
    assert_eq!(bench.work.status().await.unwrap().invalid_manifests, 1);
    // Once what it lacks is there, it is valid, and the sweep goes on.
    put_blob(&bench.registry, &app, b"lost").await.unwrap();
    assert_eq!(bench.run(Task::ManifestValidation).await.faults, 0);
    assert_eq!(bench.run(Task::MountSweep).await.changed, 1);
    assert!(bench.has("acme/app", &layer).await && !bench.has("acme/app", &unused).await);
}

#[tokio::test]
async fn a_manifest_that_lacks_something_is_reported_and_forgiven_once_it_is_there() {
    let bench = open();
    bench.push("acme/app", &[b"layer"], "a", None, &["v1"]).await;
    bench.lose_mount("acme/app", b"layer").await;
    let report = bench.run(Task::ManifestValidation).await;
    assert_eq!((report.looked_at, report.faults), (1, 1));
    assert!(report.lines[0].contains(&digest_of(b"layer").to_string()), "{:?}", report.lines);
    put_blob(&bench.registry, &repository("acme/app"), b"layer").await.unwrap();
    assert_eq!(bench.run(Task::ManifestValidation).await.faults, 0);
}

#[tokio::test]
async fn bad_bytes_are_found_are_not_served_and_a_push_of_the_same_blob_repairs_them() {
    let bench = open();
    let app = repository("acme/app");
    let image = bench.push("acme/app", &[b"a layer of 21 bytes!!"], "a", None, &["v1"]).await;
    let layer = digest_of(b"a layer of 21 bytes!!");
    let sound = std::fs::read(bench.file_of_size(21)).unwrap();
    let damages: [Damage; 4] = [
        |bytes| Some(bytes.iter().enumerate().map(|(at, byte)| byte ^ u8::from(at == 7)).collect()),
        |bytes| Some(bytes[..20].to_vec()),
        |bytes| Some(vec![0; bytes.len()]),
        |_| None,
    ];
    assert_eq!(bench.run(Task::BlobValidation).await.faults, 0);
    for damage in damages {
        let path = bench.file_of_size(21);
        let mut permissions = std::fs::metadata(&path).unwrap().permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o600);
        std::fs::set_permissions(&path, permissions).unwrap();
        match damage(&sound) {
            Some(bytes) => std::fs::write(&path, bytes).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
        let report = bench.run(Task::BlobValidation).await;
        assert_eq!((report.faults, report.changed), (1, 0), "{:?}", report.lines);
        let affected = format!("  affects acme/app:v1@{image}");
        assert!(report.lines.contains(&affected), "{:?}", report.lines);
        assert_eq!(bench.work.status().await.unwrap().broken_blobs, 1);
        // Neither pulled nor counted on.
        assert!(!bench.has("acme/app", &layer).await);
        for to_read in [true, false] {
            let loaded = bench.registry.load_blob(&app, &layer, to_read).await;
            assert!(matches!(loaded, Err(RegistryError::BlobUnknown { .. })));
        }
        assert!(!bench.registry.mount_blob(&repository("acme/other"), &layer, None).await.unwrap());
        let refused = bench.put("acme/app", super::tests::image(&[layer], "b", None), OCI, &["v2"]).await;
        assert!(matches!(refused, Err(RegistryError::ManifestBlobsUnknown { digests }) if digests == [layer]));
        put_blob(&bench.registry, &app, b"a layer of 21 bytes!!").await.unwrap();
        let blob = bench.registry.load_blob(&app, &layer, true).await.unwrap();
        let mut pieces = bench.registry.open_blob(&blob, 0..21).await.unwrap();
        assert_eq!(pieces.next().await.unwrap().unwrap(), sound);
        assert_eq!(bench.run(Task::BlobValidation).await.faults, 0);
        assert_eq!(bench.work.status().await.unwrap().broken_blobs, 0);
    }
}

#[tokio::test]
async fn retention_follows_the_clock_and_says_why_images_stay() {
    let bench = open();
    let delete = json!({"match_repository": "app", "only_untagged": true, "action": "delete",
        "time_constraint": {"on": "last_pulled_at", "older_than": {"value": 2, "unit": "d"}}});
    let guard = json!({"match_tag": "v.*", "block_delete": true});
    bench.rules.set(json!({"gc_policies": [delete], "tag_policies": [guard]}));
    let tagged = bench.push("acme/app", &[], "tagged", None, &["v1"]).await;
    let plain = bench.push("acme/app", &[], "plain", None, &[]).await;
    let child = bench.push("acme/app", &[], "child", None, &[]).await;
    let parent = bench.put("acme/app", index(&[child], OCI), INDEX, &["multi"]).await.unwrap();
    let signature = bench.push("acme/app", &[], "signature", Some(&parent), &[]).await;
    bench.run(Task::ImageGc).await;
    let recent = json!({"protected_by_recent_upload": true});
    assert!(bench.images("acme/app").await.values().all(|status| *status == recent));
    bench.clock.advance(600);
    // Pulled: counts from here.
    let pulled = bench.registry.load_manifest(&repository("acme/app"), &Reference::Digest(plain)).await.unwrap();
    bench.registry.note_pull(&pulled);
    assert_eq!(bench.run(Task::ImageGc).await.changed, 0);
    let images = bench.images("acme/app").await;
    assert_eq!(images[&tagged], json!({ "protected_by_tag_policy": guard }));
    assert_eq!(images[&plain], json!({ "relevant_policies": [delete] }));
    assert_eq!(images[&child], json!({"protected_by_parent": parent.to_string()}));
    assert_eq!(images[&parent], json!({ "relevant_policies": [delete] }));
    assert_eq!(images[&signature], json!({"protected_by_subject": parent.to_string()}));
    bench.clock.advance(2 * DAY);
    assert_eq!(bench.run(Task::ImageGc).await.changed, 0);
    bench.clock.advance(1);
    let told = bench.work.run(Task::ImageGc, None, true).await.unwrap();
    assert_eq!((told.looked_at, told.changed), (5, 1));
    let line = format!("delete  acme/app@{plain} (untagged): account.gc_policies[0] deletes it");
    assert!(told.lines.contains(&line), "{:?}", told.lines);
    assert_eq!(bench.images("acme/app").await.len(), 5);
    assert_eq!(bench.run(Task::ImageGc).await.changed, 1);
    assert!(!bench.images("acme/app").await.contains_key(&plain));
    // The index goes, and with it the signature; its child was never pulled.
    bench.registry.delete_manifest(&repository("acme/app"), &parent).await.unwrap();
    assert_eq!(bench.run(Task::ImageGc).await.changed, 2);
    assert_eq!(bench.images("acme/app").await.keys().copied().collect::<Vec<_>>(), [tagged]);
    let gone = bench.registry.load_manifest(&repository("acme/app"), &Reference::Digest(child)).await;
    assert!(matches!(gone, Err(RegistryError::ManifestUnknown { .. })));
}

#[tokio::test]
async fn an_image_that_was_tagged_since_the_decision_stays() {
    let bench = open();
    let plain = bench.push("acme/app", &[], "plain", None, &[]).await;
    let app = repository("acme/app");
    let decided = bench.registry.metadata().read(move |reader| {
        let id = reader.get_repository(&repository("acme/app"))?.unwrap();
        let (manifest, _) = reader.get_manifest_id(id, &plain)?.unwrap();
        Ok::<_, crate::metadata::MetadataError>((manifest, crate::registry::image_facts(reader, manifest)?.unwrap()))
    });
    let decided = decided.await.unwrap();
    bench.push("acme/app", &[], "plain", None, &["now-tagged"]).await;
    let (gone, _) = bench.registry.collect_images(&app, vec![decided.clone()]).await.unwrap();
    assert_eq!(gone, []);
    bench.registry.delete_tag(&app, &Tag::parse("now-tagged").unwrap()).await.unwrap();
    let (gone, _) = bench.registry.collect_images(&app, vec![decided]).await.unwrap();
    assert_eq!(gone.len(), 1);
}

#[tokio::test]
async fn an_account_is_emptied_step_by_step_whatever_guards_it_and_nobody_pushes_meanwhile() {
    let bench = open();
    bench.rules.set(json!({"tag_policies": [{"match_tag": ".*", "block_delete": true}]}));
    let account = AccountName::parse("acme").unwrap();
    for number in 0..450 {
        bench.push("acme/app", &[], &number.to_string(), None, &[&format!("t{number}")]).await;
    }
    bench.push("acme/lib", &[b"layer"], "lib", None, &["v1"]).await;
    bench.push("other/app", &[b"layer"], "other", None, &["v1"]).await;
    let app = repository("acme/app");
    let upload = bench.registry.start_upload(&app, keppel_federation::vocabulary::Algorithm::Sha256).await.unwrap().id;
    let body = stream::iter([Ok::<_, BodyError>(Bytes::from_static(b"abc"))]);
    bench.registry.append_upload(&app, &upload, None, Some(3), body).await.unwrap();
    *bench.rules.deleting.lock().unwrap() = true;
    let refused = put_blob(&bench.registry, &app, b"new").await;
    assert!(matches!(refused, Err(RegistryError::AccountDeleting { .. })));
    let mut steps = 0;
    let mut left = u64::MAX;
    loop {
        match bench.registry.empty_account(&account).await.unwrap() {
            AccountStep::More(usage) => {
                assert!(usage.manifests <= left);
                left = usage.manifests;
                steps += 1;
            }
            AccountStep::Empty => break,
            AccountStep::Busy => panic!("nobody writes"),
        }
    }
    assert!(steps > 3, "{steps}");
    assert_eq!(bench.registry.storage().list_spaces().await.unwrap(), [AccountName::parse("other").unwrap()]);
    assert_eq!(bench.registry.empty_account(&account).await.unwrap(), AccountStep::Empty);
    assert!(bench.images("acme/app").await.is_empty());
    assert!(bench.has("other/app", &digest_of(b"layer")).await);
}

#[tokio::test]
async fn what_is_due_is_taken_once_and_again_when_its_lease_ends() {
    let bench = open();
    bench.push("acme/app", &[], "a", None, &["v1"]).await;
    bench.clock.advance(8 * DAY);
    let before = bench.registry.now() - DAY;
    let lease = bench.registry.now() - DAY + 600;
    let take = async || {
        let take = bench.registry.metadata().write(move |transaction| {
            transaction.take_due(crate::metadata::Care::ManifestValidation, before, lease, 10)
        });
        take.await.map_err(RegistryError::Metadata).unwrap().len()
    };
    assert_eq!((take().await, take().await), (1, 0));
    // Whoever took it died: nobody else looks before the lease ends.
    bench.clock.advance(599);
    assert_eq!(bench.work.tend_due(Task::ManifestValidation).await.unwrap(), 0);
    bench.clock.advance(1);
    assert_eq!(bench.work.tend_due(Task::ManifestValidation).await.unwrap(), 1);
    assert_eq!(bench.work.tend_due(Task::ManifestValidation).await.unwrap(), 0);
    // The next look is a little less than a day later.
    bench.clock.advance(DAY * 9 / 10 - 1);
    assert_eq!(bench.work.tend_due(Task::ManifestValidation).await.unwrap(), 0);
    bench.clock.advance(DAY / 10 + 1);
    assert_eq!(bench.work.tend_due(Task::ManifestValidation).await.unwrap(), 1);
    for task in [Task::ImageGc, Task::MountSweep, Task::BlobSweep, Task::BlobValidation] {
        let mut taken = 0;
        while bench.work.tend_due(task).await.unwrap() > 0 {
            taken += 1;
        }
        assert_eq!(taken, 1, "{}", task.as_str());
    }
    let status = bench.work.status().await.unwrap();
    assert!(status.tasks.iter().all(|task| task.failures == 0 && task.due.unwrap_or(0) == 0), "{status:?}");
}

#[tokio::test]
async fn a_scrub_looks_at_everything_and_tells_how_far_it_is() {
    let bench = open();
    let account = AccountName::parse("acme").unwrap();
    let unknown = bench.work.start_scrub(&account).await;
    assert!(matches!(unknown, Err(JanitorError::AccountUnknown(_))));
    bench.push("acme/app", &[b"a layer of 21 bytes!!"], "a", None, &["v1"]).await;
    std::fs::remove_file(bench.file_of_size(21)).unwrap();
    bench.work.start_scrub(&account).await.unwrap();
    let progress = loop {
        let progress = bench.work.scrub_progress(&account).unwrap();
        if progress.done {
            break progress;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!((progress.blobs_done, progress.blobs_total, progress.bad, progress.healed), (2, 2, 1, 0));
    assert_eq!((progress.manifests_done, progress.error), (1, None));
    assert!(progress.lines.iter().any(|line| line.contains("its bytes are missing")), "{:?}", progress.lines);
}
