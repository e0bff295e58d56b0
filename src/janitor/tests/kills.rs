//! The process dies at each write of each task, one after the other: whatever it left, the next run finishes.
//!
//! A task has so many writes: commits of metadata, and changes of the storage. For each of them a copy of the same region
//! is opened, the task is run and dies there; the region is opened again, nothing that is needed may be lost, and after one
//! more run, and a storage sweep, all must be as if the process had not died.

use std::path::Path;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use keppel_federation::vocabulary::Algorithm;

use super::mortal::{Mortal, MortalDriver};
use super::*;
use crate::metadata::MetadataError;

/// More writes than any task has here.
const WRITES_MAX: u64 = 500;

type Act = for<'a> fn(&'a Bench) -> BoxFuture<'a, Result<(), RegistryError>>;

/// Each with the fewest writes that it must have, so that it is known to do something.
const ACTS: [(&str, u64, Act); 9] = [
    ("image-gc", 3, |bench| run(bench, Task::ImageGc)),
    ("manifest-validation", 2, |bench| run(bench, Task::ManifestValidation)),
    ("mount-sweep", 3, |bench| run(bench, Task::MountSweep)),
    ("blob-sweep", 4, |bench| run(bench, Task::BlobSweep)),
    ("storage-sweep", 3, |bench| run(bench, Task::StorageSweep)),
    ("blob-validation", 2, |bench| run(bench, Task::BlobValidation)),
    ("abandoned-uploads", 4, |bench| run(bench, Task::AbandonedUploads)),
    ("account-deletion", 8, |bench| end_account(bench).boxed()),
    ("repair", 4, |bench| repair(bench).boxed()),
];

fn run(bench: &Bench, task: Task) -> BoxFuture<'_, Result<(), RegistryError>> {
    async move { bench.work.run(task, None, false).await.map(drop).map_err(interrupted) }.boxed()
}

fn interrupted(error: JanitorError) -> RegistryError {
    match error {
        JanitorError::Registry(error) => error,
        _ => RegistryError::Interrupted,
    }
}

async fn end_account(bench: &Bench) -> Result<(), RegistryError> {
    *bench.rules.deleting.lock().unwrap() = true;
    let gone = AccountName::parse("gone").unwrap();
    while bench.registry.empty_account(&gone).await? != AccountStep::Empty {}
    Ok(())
}

/// A push of what is known to be bad, or lost without anybody's knowing.
async fn repair(bench: &Bench) -> Result<(), RegistryError> {
    for content in [&b"damaged layer"[..], b"lost layer"] {
        put_blob(&bench.registry, &repository("acme/app"), content).await?;
    }
    Ok(())
}

/// A region in a folder, as a process that dies before a certain write has it.
pub(super) fn open_mortal(directory: tempfile::TempDir, now: i64, dies_before: u64) -> (Bench, Arc<Mortal>) {
    let mortal = Mortal::new(dies_before);
    let metadata = Metadata::open(&directory.path().join("metadata.db"), &MetadataOptions::default()).unwrap();
    let gate = mortal.clone();
    metadata.gate_commits(move || gate.may_write());
    let storage = Storage::filesystem(FilesystemOptions::new(directory.path().join("storage"))).unwrap();
    let storage = storage.wrapped(|driver| Arc::new(MortalDriver { driver, mortal: mortal.clone() }));
    let (clock, rules) = (Arc::new(ManualClock::new(now)), Ruled::new());
    rules.set(json!({"gc_policies": [{"match_repository": ".*", "only_untagged": true, "action": "delete",
        "time_constraint": {"on": "pushed_at", "older_than": {"value": 1, "unit": "h"}}}]}));
    let registry_options = RegistryOptions { create_accounts_on_push: true, ..RegistryOptions::default() };
    let registry = Registry::new(registry_options, metadata, storage, clock.clone(), rules.clone());
    let work = JanitorWork::new(registry.clone(), None, options(GRACE));
    (Bench { registry, work, rules, clock, directory }, mortal)
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap().is_dir() {
            true => copy_folder(&entry.path(), &to.join(entry.file_name())),
            false => drop(std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}

pub(super) fn copied(template: &Path) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    copy_folder(template, directory.path());
    directory
}

async fn start_upload(bench: &Bench, name: &str) {
    let upload = bench.registry.start_upload(&repository(name), Algorithm::Sha256).await.unwrap().id;
    let body = stream::iter([Ok::<_, BodyError>(Bytes::from_static(b"never finished"))]);
    bench.registry.append_upload(&repository(name), &upload, None, Some(14), body).await.unwrap();
}

/// A region with work for every task; gives what time it is there.
async fn make_region(directory: tempfile::TempDir) -> (tempfile::TempDir, i64) {
    let (bench, _) = open_mortal(directory, 100 * DAY, u64::MAX);
    // For the end of an account.
    for (number, name) in ["gone/app", "gone/lib"].into_iter().enumerate() {
        bench.push(name, &[b"layer", &[number as u8; 30]], "a", None, &["v1"]).await;
    }
    start_upload(&bench, "gone/app").await;
    // What stays, and what retention deletes.
    for name in ["acme/app", "acme/lib", "acme/more"] {
        bench.push(name, &[b"kept layer", name.as_bytes()], "kept", None, &["v1", "v2"]).await;
        for mark in ["1", "2"] {
            bench.push(name, &[format!("{name} {mark}").as_bytes()], mark, None, &[]).await;
        }
    }
    bench.push("acme/app", &[b"damaged layer"], "damaged", None, &["damaged"]).await;
    bench.push("acme/app", &[b"lost layer"], "lost", None, &["lost"]).await;
    // For the blob sweep: mounts that nobody needs are gone, their blobs are not.
    for number in 0..4_u8 {
        put_blob(&bench.registry, &repository("acme/swept"), &[number; 40]).await.unwrap();
    }
    bench.run(Task::MountSweep).await;
    bench.clock.advance(GRACE);
    bench.run(Task::MountSweep).await;
    // For the mount sweep: some are marked for long, in two repositories, and some are not yet.
    for (name, content) in [("acme/app", b"one"), ("acme/lib", b"two"), ("acme/more", b"six")] {
        put_blob(&bench.registry, &repository(name), content).await.unwrap();
    }
    bench.run(Task::MountSweep).await;
    put_blob(&bench.registry, &repository("acme/more"), b"new").await.unwrap();
    for name in ["acme/app", "acme/lib"] {
        start_upload(&bench, name).await;
    }
    bench.clock.advance(2 * DAY);
    // For the storage sweep: bytes without a row.
    for content in [b"orphan 1", b"orphan 2", b"orphan 3"] {
        put_blob(&bench.registry, &repository("acme/lib"), content).await.unwrap();
    }
    for content in [b"orphan 1", b"orphan 2", b"orphan 3"] {
        bench.lose_mount("acme/lib", content).await;
    }
    let missing = bench.push("acme/lib", &[b"missing layer"], "invalid", None, &["invalid"]).await;
    bench.lose_mount("acme/lib", b"missing layer").await;
    assert!(bench.images("acme/lib").await.contains_key(&missing));
    let now = bench.registry.now();
    (close(bench).await, now)
}

/// Closes a region, so that its folder can be copied.
pub(super) async fn close(bench: Bench) -> tempfile::TempDir {
    let Bench { directory, registry, work, .. } = bench;
    drop((registry, work));
    // It is closed, and can be copied, once the log of the database is gone.
    let (log, start) = (directory.path().join("metadata.db-wal"), std::time::Instant::now());
    while log.exists() {
        assert!(start.elapsed() < Duration::from_secs(30), "the database stays open");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    directory
}

/// All that is here, in words that say nothing of times and keys.
async fn state(bench: &Bench) -> Vec<String> {
    let mut lines = Vec::new();
    let accounts = bench.registry.metadata().read(|reader| reader.list_accounts(None, 100)).await;
    let accounts = accounts.map_err(RegistryError::Metadata).unwrap();
    let mut digests = Vec::new();
    for account in &accounts {
        let name = account.clone();
        let blobs = bench.registry.metadata().read(move |reader| match reader.get_account(&name)? {
            Some(id) => reader.list_blobs(id, None, 1000),
            None => Ok::<_, MetadataError>(Vec::new()),
        });
        for owned in blobs.await.map_err(RegistryError::Metadata).unwrap() {
            lines.push(format!("blob {account} {} sound: {}", owned.digest, owned.blob.is_sound));
            digests.push(owned.digest);
        }
        let name = account.clone();
        let uploads = bench.registry.metadata().read(move |reader| reader.list_account_uploads(&name, 100)).await;
        lines.push(format!("uploads of {account}: {}", uploads.map_err(RegistryError::Metadata).unwrap().len()));
        for repository in bench.work.repositories_of(account).await.unwrap() {
            let page = bench.registry.list_manifests(&repository, None, 1000).await.unwrap();
            for entry in page.items {
                let tags: Vec<_> = entry.tags.iter().map(|tag| tag.name.to_string()).collect();
                lines.push(format!("manifest {repository}@{} {tags:?}", entry.manifest.digest));
            }
            for digest in &digests {
                if bench.registry.load_local_blob(&repository, digest).await.is_ok() {
                    lines.push(format!("mount {repository} {digest}"));
                }
            }
        }
    }
    for space in bench.registry.storage().list_spaces().await.unwrap() {
        let stored = bench.registry.storage().list(&space).next_page(1000).await.unwrap();
        lines.push(format!("{space} stores {}", stored.len()));
    }
    let status = bench.work.status().await.unwrap();
    lines.push(format!("{} broken blobs, {} invalid manifests", status.broken_blobs, status.invalid_manifests));
    lines.sort();
    lines
}

/// Rows of blobs that have no bytes, or wrong ones.
async fn lost(bench: &Bench) -> Vec<Digest> {
    let mut lost = Vec::new();
    let accounts = bench.registry.metadata().read(|reader| reader.list_accounts(None, 100)).await;
    for account in accounts.map_err(RegistryError::Metadata).unwrap() {
        let name = account.clone();
        let blobs = bench.registry.metadata().read(move |reader| match reader.get_account(&name)? {
            Some(id) => reader.list_blobs(id, None, 1000),
            None => Ok::<_, MetadataError>(Vec::new()),
        });
        for owned in blobs.await.map_err(RegistryError::Metadata).unwrap() {
            let key = &owned.blob.storage_key;
            match bench.registry.storage().hash_blob(&account, key, Algorithm::Sha256).await {
                Ok(stored) if stored.digest == owned.digest => {}
                _ => lost.push(owned.digest),
            }
        }
    }
    lost
}

/// Dies before each write of a task, one after the other; says what its next run did not finish, or what was lost.
async fn check(template: &Path, now: i64, name: &str, writes_min: u64, act: Act) -> Result<(), String> {
    let (bench, mortal) = open_mortal(copied(template), now, u64::MAX);
    let before = state(&bench).await;
    act(&bench).await.unwrap();
    let writes = mortal.writes();
    assert!((writes_min..WRITES_MAX).contains(&writes), "{name} has {writes} writes");
    bench.run(Task::StorageSweep).await;
    let expected = state(&bench).await;
    assert_ne!(before, expected, "{name} finds nothing to do");
    act(&bench).await.unwrap();
    assert_eq!(state(&bench).await, expected, "{name} finds more to do when it runs again");

    for write in 1..=writes {
        let (bench, mortal) = open_mortal(copied(template), now, write);
        let lost_before = lost(&bench).await;
        let _ = act(&bench).await;
        assert!(mortal.is_dead(), "{name} ended before write {write}");
        let Bench { directory, registry, work, .. } = bench;
        drop((registry, work));
        let (bench, _) = open_mortal(directory, now, u64::MAX);
        let lost = lost(&bench).await;
        if lost.iter().any(|digest| !lost_before.contains(digest)) {
            return Err(format!("{name}, dead before write {write} of {writes}, lost {lost:?}"));
        }
        act(&bench).await.map_err(|error| format!("{name} after write {write}: {error}"))?;
        bench.run(Task::StorageSweep).await;
        let state = state(&bench).await;
        if state != expected {
            return Err(format!("{name}, dead before write {write} of {writes}, left {state:#?}, not {expected:#?}"));
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dying_before_any_write_of_any_task_leaves_nothing_that_the_next_run_does_not_finish() {
    let (template, now) = make_region(tempfile::tempdir().unwrap()).await;
    let storage = template.path().join("storage/acme/blobs");
    damage(&storage, b"damaged layer", Some(b"damaged lAyer"));
    damage(&storage, b"lost layer", None);
    for (name, writes_min, act) in ACTS {
        assert_eq!(check(template.path(), now, name, writes_min, act).await, Ok(()));
    }
}

/// Deletes blobs that nobody needs, in the wrong order.
async fn sweep_bytes_first(bench: &Bench) -> Result<(), RegistryError> {
    let acme = AccountName::parse("acme").unwrap();
    for number in 0..4_u8 {
        let (name, digest) = (acme.clone(), digest_of(&[number; 40]));
        let blob = bench.registry.metadata().read(move |reader| match reader.get_account(&name)? {
            Some(id) => reader.get_account_blob(id, &digest),
            None => Ok(None),
        });
        let Some(blob) = blob.await.map_err(RegistryError::Metadata)? else { continue };
        bench.registry.storage().delete_blob(&acme, &blob.storage_key).await?;
        let deleted = bench.registry.metadata().write(move |transaction| transaction.delete_unneeded_blob(blob.id));
        deleted.await.map_err(RegistryError::Metadata)?;
    }
    Ok(())
}

/// Deletes a blob that nobody needs, and two more only if it was there.
async fn sweep_once(bench: &Bench) -> Result<(), RegistryError> {
    let acme = AccountName::parse("acme").unwrap();
    for number in 0..3_u8 {
        let (name, digest) = (acme.clone(), digest_of(&[number; 40]));
        let deleted = bench.registry.metadata().write(move |transaction| {
            let Some(id) = transaction.get_account(&name)? else { return Ok(false) };
            match transaction.get_account_blob(id, &digest)? {
                Some(blob) => transaction.delete_unneeded_blob(blob.id),
                None => Ok(false),
            }
        });
        if !deleted.await.map_err(RegistryError::Metadata)? {
            return Ok(());
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_go_before_their_row_and_work_that_is_not_gone_on_with_are_caught() {
    let (template, now) = make_region(tempfile::tempdir().unwrap()).await;
    let lost = check(template.path(), now, "wrong order", 8, |bench| sweep_bytes_first(bench).boxed()).await;
    assert!(lost.clone().is_err_and(|fault| fault.contains("lost")), "{lost:?}");
    let left = check(template.path(), now, "not gone on", 3, |bench| sweep_once(bench).boxed()).await;
    assert!(left.clone().is_err_and(|fault| fault.contains("left")), "{left:?}");
}

/// Changes or removes the stored file with this content.
fn damage(folder: &Path, content: &[u8], with: Option<&[u8]>) {
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            damage(&entry.path(), content, with);
        } else if std::fs::read(entry.path()).unwrap() == content {
            std::fs::set_permissions(entry.path(), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
            match with {
                Some(bytes) => std::fs::write(entry.path(), bytes).unwrap(),
                None => std::fs::remove_file(entry.path()).unwrap(),
            }
        }
    }
}
