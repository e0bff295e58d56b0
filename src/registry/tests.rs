use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use keppel_federation::vocabulary::{AccountName, Algorithm, Digest, Reference, RepositoryName, StorageKey, Tag};
use serde_json::json;
use sha2::Digest as _;

use super::*;
use crate::metadata::MetadataOptions;
use crate::model::ManualClock;
use crate::storage::FilesystemOptions;

mod following;
mod gone;
mod lagging;
mod late;
mod pair;
mod promises;
mod pulls_told;
mod rules;
mod succession;

const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

struct Bench {
    registry: Registry,
    clock: Arc<ManualClock>,
    directory: tempfile::TempDir,
}

fn open_in(directory: tempfile::TempDir, options: RegistryOptions) -> Bench {
    let metadata = Metadata::open(&directory.path().join("metadata.db"), &MetadataOptions::default()).unwrap();
    let storage = Storage::filesystem(FilesystemOptions::new(directory.path().join("storage"))).unwrap();
    let clock = Arc::new(ManualClock::new(1_000_000));
    let claims = Arc::new(LocalClaims);
    Bench { registry: Registry::new(options, metadata, storage, clock.clone(), claims), clock, directory }
}

fn options() -> RegistryOptions {
    RegistryOptions { create_accounts_on_push: true, ..RegistryOptions::default() }
}

fn open() -> Bench {
    open_in(tempfile::tempdir().unwrap(), options())
}

fn repository(name: &str) -> RepositoryName {
    RepositoryName::parse(name).unwrap()
}

fn tag(name: &str) -> ManifestTarget {
    ManifestTarget::Tag(Tag::parse(name).unwrap())
}

fn reference(text: &str) -> Reference {
    Reference::parse(text).unwrap()
}

fn digest_of(bytes: &[u8]) -> Digest {
    Digest::from_sha256(sha2::Sha256::digest(bytes).into())
}

fn body(pieces: &[&'static [u8]]) -> impl futures_util::Stream<Item = Result<Bytes, BodyError>> + Send + Unpin + use<> {
    stream::iter(pieces.iter().map(|piece| Ok(Bytes::from_static(piece))).collect::<Vec<_>>())
}

async fn put_blob(registry: &Registry, repository: &RepositoryName, content: &'static [u8]) -> Digest {
    let digest = digest_of(content);
    registry.put_blob(repository, &digest, Some(content.len() as u64), body(&[content])).await.unwrap();
    digest
}

/// An image of one blob, told from others by `mark`.
fn image(config: &Digest, mark: &str) -> Bytes {
    let document = json!({
        "schemaVersion": 2, "mediaType": OCI, "layers": [], "annotations": {"mark": mark},
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": 2},
    });
    document.to_string().into()
}

async fn read_blob(registry: &Registry, repository: &RepositoryName, digest: &Digest) -> Vec<u8> {
    let blob = registry.load_blob(repository, digest, true).await.unwrap();
    let mut reader = registry.open_blob(&blob, 0..blob.size_bytes).await.unwrap();
    let mut content = Vec::new();
    while let Some(piece) = reader.next().await {
        content.extend_from_slice(&piece.unwrap());
    }
    content
}

#[tokio::test]
async fn a_pushed_image_is_pulled_back_byte_for_byte_by_tag_and_digest() {
    let bench = open();
    let app = repository("acme/app");
    let config = put_blob(&bench.registry, &app, b"{}").await;
    let bytes = image(&config, "one");
    let put = bench.registry.put_manifest(&app, tag("v1"), Some(OCI), bytes.clone()).await.unwrap();
    assert_eq!(put.digest, digest_of(&bytes));
    for wanted in [reference("v1"), Reference::Digest(put.digest)] {
        for _ in 0..2 {
            let manifest = bench.registry.load_manifest(&app, &wanted).await.unwrap();
            assert_eq!((&manifest.bytes, &manifest.media_type[..]), (&bytes, OCI.as_bytes()));
            assert_eq!(manifest.digest_text, put.digest.to_string());
        }
        let cached = bench.registry.cached_manifest("acme/app", &wanted.to_string()).unwrap();
        assert_eq!(cached.bytes, bytes);
    }
    assert_eq!(read_blob(&bench.registry, &app, &config).await, b"{}");
}

#[tokio::test]
async fn a_moved_or_deleted_tag_is_never_answered_from_memory() {
    let bench = open();
    let app = repository("acme/app");
    let config = put_blob(&bench.registry, &app, b"{}").await;
    for round in 0..20 {
        let bytes = image(&config, &round.to_string());
        let put = bench.registry.put_manifest(&app, tag("v1"), Some(OCI), bytes).await.unwrap();
        let pulled = bench.registry.load_manifest(&app, &reference("v1")).await.unwrap();
        assert_eq!(pulled.digest, put.digest);
        bench.registry.load_manifest(&app, &Reference::Digest(put.digest)).await.unwrap();
        match round % 3 {
            0 => bench.registry.delete_tag(&app, &Tag::parse("v1").unwrap()).await.unwrap(),
            1 => bench.registry.delete_manifest(&app, &put.digest).await.unwrap(),
            _ => continue,
        }
        let gone = bench.registry.load_manifest(&app, &reference("v1")).await;
        assert!(matches!(gone, Err(RegistryError::ManifestUnknown { .. })));
    }
}

#[tokio::test]
async fn a_manifest_is_refused_until_all_it_refers_to_is_there_and_all_that_is_missing_is_named() {
    let bench = open();
    let app = repository("acme/app");
    let (config, layer) = (digest_of(b"{}"), digest_of(b"layer"));
    let document = json!({
        "schemaVersion": 2, "config": {"mediaType": "c", "digest": config, "size": 2},
        "layers": [{"mediaType": "l", "digest": layer, "size": 5}],
        "subject": {"mediaType": OCI, "digest": digest_of(b"later"), "size": 5},
    });
    let bytes = Bytes::from(document.to_string());
    let refused = bench.registry.put_manifest(&app, tag("v1"), Some(OCI), bytes.clone()).await;
    assert!(matches!(refused, Err(RegistryError::ManifestBlobsUnknown { digests }) if digests == [config, layer]));
    let unknown = bench.registry.list_tags(&app, None, 10).await;
    assert!(matches!(unknown, Err(RegistryError::RepositoryUnknown { .. })));
    put_blob(&bench.registry, &app, b"{}").await;
    put_blob(&bench.registry, &app, b"layer").await;
    let put = bench.registry.put_manifest(&app, tag("v1"), Some(OCI), bytes).await.unwrap();
    assert_eq!(put.subject, Some(digest_of(b"later")));
    let in_use = bench.registry.delete_blob(&app, &layer).await;
    assert!(matches!(in_use, Err(RegistryError::BlobInUse { manifest, .. }) if manifest == put.digest));
}

#[tokio::test]
async fn children_of_an_index_stay_until_the_index_goes() {
    let bench = open();
    let app = repository("acme/app");
    let config = put_blob(&bench.registry, &app, b"{}").await;
    let child = bench.registry.put_manifest(&app, tag("child"), Some(OCI), image(&config, "x")).await.unwrap().digest;
    let index = json!({"schemaVersion": 2, "manifests": [
        {"mediaType": OCI, "digest": child, "size": 1},
        {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": config, "size": 2},
    ]});
    let index = Bytes::from(index.to_string());
    let parent = bench.registry.put_manifest(&app, tag("all"), Some(INDEX), index).await.unwrap().digest;
    let refused = bench.registry.delete_manifest(&app, &child).await;
    assert!(matches!(refused, Err(RegistryError::ManifestHasParent { parent: named, .. }) if named == parent));
    bench.registry.delete_manifest(&app, &parent).await.unwrap();
    bench.registry.delete_manifest(&app, &child).await.unwrap();
    assert_eq!(bench.registry.list_tags(&app, None, 10).await.unwrap().items, Vec::<String>::new());
    bench.registry.delete_blob(&app, &config).await.unwrap();
    let files = walk(&bench.directory.path().join("storage"));
    assert_eq!(files, Vec::<String>::new());
}

/// All files below a directory.
fn walk(directory: &std::path::Path) -> Vec<String> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files.extend(walk(&path)),
            false => files.push(path.display().to_string()),
        }
    }
    files
}

#[tokio::test]
async fn an_upload_goes_on_after_a_restart_where_it_was() {
    let bench = open();
    let app = repository("acme/app");
    let id = bench.registry.start_upload(&app, Algorithm::Sha256).await.unwrap().id;
    let status = bench.registry.append_upload(&app, &id, Some((0, 4)), Some(5), body(&[b"he", b"llo"])).await.unwrap();
    assert_eq!(status.size_bytes, 5);
    let Bench { registry, directory, .. } = bench;
    drop(registry);
    let bench = open_in(directory, options());
    assert_eq!(bench.registry.upload_status(&app, &id).await.unwrap(), status);
    let skipped = bench.registry.append_upload(&app, &id, Some((6, 7)), Some(2), body(&[b"xx"])).await;
    assert!(matches!(skipped, Err(RegistryError::RangeOutOfOrder { size_bytes: 5, .. })));
    let other = bench.registry.upload_status(&repository("acme/other"), &id).await;
    assert!(matches!(other, Err(RegistryError::UploadUnknown { .. })));
    let digest = digest_of(b"hello world");
    bench.registry.finish_upload(&app, &id, None, Some(6), body(&[b" world"]), &digest).await.unwrap();
    assert_eq!(read_blob(&bench.registry, &app, &digest).await, b"hello world");
    let ended = bench.registry.upload_status(&app, &id).await;
    assert!(matches!(ended, Err(RegistryError::UploadUnknown { .. })));
}

#[tokio::test]
async fn what_arrived_before_a_body_broke_off_stays_and_a_wrong_digest_ends_the_upload() {
    let bench = open();
    let app = repository("acme/app");
    let id = bench.registry.start_upload(&app, Algorithm::Sha256).await.unwrap().id;
    let broken = stream::iter([Ok(Bytes::from_static(b"abc")), Err(BodyError::Disconnected("gone".into()))]);
    let broken = bench.registry.append_upload(&app, &id, None, None, broken).await;
    assert!(matches!(broken, Err(RegistryError::BodyBroken { .. })));
    assert_eq!(bench.registry.upload_status(&app, &id).await.unwrap().size_bytes, 3);
    let wrong = bench.registry.finish_upload(&app, &id, None, Some(0), body(&[]), &digest_of(b"abcd")).await;
    assert!(matches!(wrong, Err(RegistryError::DigestMismatch { actual, .. }) if actual == digest_of(b"abc")));
    let ended = bench.registry.upload_status(&app, &id).await;
    assert!(matches!(ended, Err(RegistryError::UploadUnknown { .. })));
    assert_eq!(walk(&bench.directory.path().join("storage")), Vec::<String>::new());
}

#[tokio::test]
async fn a_digest_is_stored_once_per_account_and_mounted_between_its_repositories_only() {
    let bench = open();
    let (app, other, foreign) = (repository("acme/app"), repository("acme/other"), repository("beta/app"));
    let digest = put_blob(&bench.registry, &app, b"shared").await;
    assert_eq!(put_blob(&bench.registry, &app, b"shared").await, digest);
    assert_eq!(walk(&bench.directory.path().join("storage")).len(), 1);
    assert!(!bench.registry.mount_blob(&foreign, &digest, Some(&app)).await.unwrap());
    assert!(!bench.registry.mount_blob(&foreign, &digest, None).await.unwrap());
    assert!(bench.registry.mount_blob(&other, &digest, Some(&app)).await.unwrap());
    assert!(bench.registry.mount_blob(&repository("acme/third"), &digest, None).await.unwrap());
    assert!(!bench.registry.mount_blob(&other, &digest_of(b"unknown"), None).await.unwrap());
    bench.registry.delete_blob(&app, &digest).await.unwrap();
    assert_eq!(read_blob(&bench.registry, &other, &digest).await, b"shared");
    let gone = bench.registry.load_blob(&app, &digest, true).await;
    assert!(matches!(gone, Err(RegistryError::BlobUnknown { .. })));
}

#[tokio::test]
async fn pushes_to_an_unknown_account_are_refused_unless_pushing_makes_it() {
    let bench = open_in(tempfile::tempdir().unwrap(), RegistryOptions::default());
    let app = repository("acme/app");
    let refused = bench.registry.start_upload(&app, Algorithm::Sha256).await;
    assert!(matches!(refused, Err(RegistryError::AccountUnknown { .. })));
    let refused = bench.registry.put_blob(&app, &digest_of(b"x"), Some(1), body(&[b"x"])).await;
    assert!(matches!(refused, Err(RegistryError::AccountUnknown { .. })));
    bench.registry.ensure_accounts(vec![AccountName::parse("acme").unwrap()]).await.unwrap();
    put_blob(&bench.registry, &app, b"x").await;
}

#[tokio::test]
async fn referrers_are_listed_in_pages_by_type_and_with_those_of_the_fallback_tag() {
    let bench = open();
    let app = repository("acme/app");
    let config = put_blob(&bench.registry, &app, b"{}").await;
    let subject = digest_of(b"subject");
    let mut all = Vec::new();
    for number in 0..5 {
        let document = json!({
            "schemaVersion": 2, "artifactType": format!("type/{}", number % 2), "layers": [],
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": config, "size": 2},
            "subject": {"mediaType": OCI, "digest": subject, "size": 7}, "annotations": {"number": number.to_string()},
        });
        let bytes = Bytes::from(document.to_string());
        let target = ManifestTarget::Digest { digest: digest_of(&bytes), tags: Vec::new() };
        all.push(bench.registry.put_manifest(&app, target, Some(OCI), bytes).await.unwrap().digest);
    }
    let listed = bench.registry.put_manifest(&app, tag("listed"), Some(OCI), image(&config, "l")).await.unwrap().digest;
    let index = json!({"schemaVersion": 2, "manifests": [
        {"mediaType": OCI, "digest": listed, "size": 9, "artifactType": "type/1"},
        {"mediaType": OCI, "digest": all[0], "size": 9, "artifactType": "type/0"},
    ]});
    let fallback = tag(&subject.to_string().replace(':', "-"));
    bench.registry.put_manifest(&app, fallback, Some(INDEX), index.to_string().into()).await.unwrap();
    all.push(listed);
    all.sort();
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = bench.registry.list_referrers(&app, &subject, None, after.as_ref(), 2).await.unwrap();
        assert!(page.items.len() <= 2);
        found.extend(page.items.iter().map(|referrer| referrer.digest));
        after = found.last().copied();
        if !page.more {
            break;
        }
    }
    assert_eq!(found, all);
    let typed = bench.registry.list_referrers(&app, &subject, Some("type/1"), None, 10).await.unwrap().items;
    assert_eq!(typed.len(), 3);
    assert!(typed.iter().all(|referrer| referrer.artifact_type.as_deref() == Some("type/1")));
    let none = bench.registry.list_referrers(&repository("no/where"), &subject, None, None, 10).await.unwrap();
    assert_eq!(none.items, []);
}

#[tokio::test]
async fn pull_times_are_written_in_batches_and_once_a_second_at_most() {
    let bench = open();
    let app = repository("acme/app");
    let config = put_blob(&bench.registry, &app, b"{}").await;
    bench.registry.put_manifest(&app, tag("v1"), Some(OCI), image(&config, "x")).await.unwrap();
    let manifest = bench.registry.load_manifest(&app, &reference("v1")).await.unwrap();
    for _ in 0..1000 {
        bench.registry.note_pull(&manifest);
    }
    bench.clock.advance(5);
    bench.registry.note_pull(&manifest);
    bench.registry.flush_pull_times().await.unwrap();
    let latest = bench.registry.metadata().read(|reader| reader.latest_pulls()).await.unwrap();
    assert_eq!(latest, Some((1_000_005, 1_000_005)));
}

#[tokio::test]
async fn no_more_uploads_are_held_open_than_allowed_and_a_closed_one_can_go_on() {
    let bench = open_in(tempfile::tempdir().unwrap(), RegistryOptions { uploads_max: 2, ..options() });
    let app = repository("acme/app");
    let first = bench.registry.start_upload(&app, Algorithm::Sha256).await.unwrap().id;
    bench.registry.append_upload(&app, &first, None, Some(2), body(&[b"ab"])).await.unwrap();
    bench.clock.advance(1);
    for _ in 0..3 {
        bench.registry.start_upload(&app, Algorithm::Sha256).await.unwrap();
        bench.clock.advance(1);
    }
    let status = bench.registry.append_upload(&app, &first, Some((2, 3)), Some(2), body(&[b"cd"])).await.unwrap();
    assert_eq!(status.size_bytes, 4);
    bench.registry.finish_upload(&app, &first, None, Some(0), body(&[]), &digest_of(b"abcd")).await.unwrap();
}

#[tokio::test]
async fn an_upload_whose_end_a_crash_cut_short_has_all_its_bytes() {
    let bench = open();
    let app = repository("acme/app");
    let id = bench.registry.start_upload(&app, Algorithm::Sha256).await.unwrap().id;
    bench.registry.append_upload(&app, &id, None, Some(5), body(&[b"hello"])).await.unwrap();
    let Bench { registry, directory, .. } = bench;
    drop(registry);
    // The crash: the bytes have become a blob, the row is missing.
    let digest = digest_of(b"hello");
    let storage = Storage::filesystem(FilesystemOptions::new(directory.path().join("storage"))).unwrap();
    let upload = storage.resume_upload(&app.account(), &id, Algorithm::Sha256).await.unwrap().unwrap();
    upload.finish(StorageKey::from(&id), &digest).await.unwrap();
    drop(storage);
    let bench = open_in(directory, options());
    assert_eq!(bench.registry.upload_status(&app, &id).await.unwrap().size_bytes, 5);
    bench.registry.finish_upload(&app, &id, None, Some(0), body(&[]), &digest).await.unwrap();
    assert_eq!(read_blob(&bench.registry, &app, &digest).await, b"hello");
}

#[tokio::test]
async fn pushing_a_blob_again_repairs_lost_bytes() {
    let bench = open();
    let app = repository("acme/app");
    let digest = put_blob(&bench.registry, &app, b"precious").await;
    let storage = bench.directory.path().join("storage");
    for damage in [|path: &str| std::fs::remove_file(path), |path: &str| std::fs::write(path, b"prec")] {
        damage(&walk(&storage)[0]).unwrap();
        put_blob(&bench.registry, &app, b"precious").await;
        assert_eq!(read_blob(&bench.registry, &app, &digest).await, b"precious");
        assert_eq!(walk(&storage).len(), 1);
    }
}

#[tokio::test]
async fn a_cancelled_upload_does_not_come_back() {
    let bench = open();
    let app = repository("acme/app");
    let id = bench.registry.start_upload(&app, Algorithm::Sha256).await.unwrap().id;
    bench.registry.append_upload(&app, &id, None, Some(5), body(&[b"hello"])).await.unwrap();
    let Bench { registry, directory, .. } = bench;
    drop(registry);
    let bench = open_in(directory, options());
    let (cancel, append) = tokio::join!(
        bench.registry.cancel_upload(&app, &id),
        bench.registry.append_upload(&app, &id, None, Some(1), body(&[b"!"])),
    );
    if cancel.is_ok() {
        assert!(append.is_err());
        let status = bench.registry.upload_status(&app, &id).await;
        assert!(matches!(status, Err(RegistryError::UploadUnknown { .. })));
        assert_eq!(walk(&bench.directory.path().join("storage")), Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_page_of_referrers_is_bounded_in_bytes() {
    let bench = open();
    let app = repository("acme/app");
    let config = put_blob(&bench.registry, &app, b"{}").await;
    let subject = digest_of(b"subject");
    for number in 0..4 {
        let document = json!({
            "schemaVersion": 2, "config": {"mediaType": "c", "digest": config, "size": 2},
            "subject": {"mediaType": OCI, "digest": subject, "size": 7},
            "annotations": {"number": number.to_string(), "large": "x".repeat(700_000)},
        });
        let name = tag(&format!("t{number}"));
        bench.registry.put_manifest(&app, name, Some(OCI), document.to_string().into()).await.unwrap();
    }
    let (mut seen, mut after) = (0, None);
    loop {
        let page = bench.registry.list_referrers(&app, &subject, None, after.as_ref(), 100).await.unwrap();
        assert_eq!(page.items.len(), 1);
        seen += 1;
        after = page.items.last().map(|referrer| referrer.digest);
        if !page.more {
            break;
        }
    }
    assert_eq!(seen, 4);
}
