use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use keppel_federation::vocabulary::{AccountName, Algorithm, Digest, RepositoryName, StorageKey, UploadId};

use super::*;

mod follows;
mod upgrades;

struct Database {
    metadata: Metadata,
    directory: tempfile::TempDir,
}

fn open() -> Database {
    let directory = tempfile::tempdir().unwrap();
    let metadata = Metadata::open(&directory.path().join("metadata.db"), &MetadataOptions::default()).unwrap();
    Database { metadata, directory }
}

fn repository() -> RepositoryName {
    RepositoryName::parse("acme/app").unwrap()
}

fn digest(byte: u8) -> Digest {
    Digest::from_sha256([byte; 32])
}

fn new_manifest(byte: u8) -> NewManifest {
    NewManifest {
        digest: digest(byte),
        media_type: "application/vnd.oci.image.manifest.v1+json",
        total_size_bytes: 5,
        subject: None,
        artifact_type: None,
        annotations: "{}".into(),
        labels: "{}".into(),
        min_layer_created_at: None,
        max_layer_created_at: None,
        bytes: bytes::Bytes::from_static(b"{}"),
    }
}

fn ensure(transaction: &WriteTransaction<'_>) -> Result<RepositoryId, MetadataError> {
    let account = transaction.ensure_account(&repository().account(), 1)?;
    transaction.ensure_repository(account, &repository(), 1)
}

#[tokio::test]
async fn what_was_written_is_there_after_reopening() {
    let database = open();
    let id = UploadId::random();
    let row = UploadRow { id: id.clone(), repository: repository(), algorithm: Algorithm::Sha512 };
    let put = row.clone();
    database
        .metadata
        .write(move |transaction| {
            let repository = ensure(transaction)?;
            let manifest = transaction.put_manifest(repository, &new_manifest(1), 7)?;
            transaction.put_tag(repository, "v1", manifest, 7)?;
            transaction.put_upload(&put, 7)
        })
        .await
        .unwrap();
    let path = database.directory.path().join("metadata.db");
    drop(database.metadata);
    let metadata = Metadata::open(&path, &MetadataOptions::default()).unwrap();
    let (manifest, upload) = metadata
        .read(move |reader| {
            Ok::<_, MetadataError>((reader.get_manifest_by_tag("acme/app", "v1")?, reader.get_upload(&id)?))
        })
        .await
        .unwrap();
    assert_eq!(manifest.unwrap().digest, digest(1));
    assert_eq!(upload.unwrap(), row);
}

#[tokio::test]
async fn failed_and_panicking_jobs_leave_no_trace_and_do_not_harm_their_neighbours() {
    let database = open();
    let name = |number: usize| AccountName::parse(&format!("account-{number}")).unwrap();
    let done = Arc::new(AtomicUsize::new(0));
    let jobs = (0..60).map(|number| {
        let (metadata, done) = (database.metadata.clone(), done.clone());
        tokio::spawn(async move {
            let written = metadata.write(move |transaction| {
                transaction.ensure_account(&name(number), 1)?;
                transaction.after_commit(move || {
                    done.fetch_add(1, Ordering::SeqCst);
                });
                match number % 3 {
                    0 => Ok(()),
                    1 => Err(MetadataError::Corrupt { what: "test" }),
                    _ => panic!("on purpose"),
                }
            });
            (number, written.await)
        })
    });
    for job in jobs.collect::<Vec<_>>() {
        let (number, written) = job.await.unwrap();
        match number % 3 {
            0 => written.unwrap(),
            1 => assert!(matches!(written, Err(MetadataError::Corrupt { .. }))),
            _ => assert!(matches!(written, Err(MetadataError::Panicked))),
        }
    }
    assert_eq!(done.load(Ordering::SeqCst), 20);
    let names = database.metadata.read(|reader| reader.list_accounts(None, 100)).await.unwrap();
    assert_eq!(names.len(), 20);
    let after = names[9].clone();
    let rest = database.metadata.read(move |reader| reader.list_accounts(Some(&after), 100)).await.unwrap();
    assert_eq!(rest, names[10..]);
}

#[tokio::test]
async fn jobs_run_in_the_order_in_which_they_were_queued() {
    let database = open();
    let (id, mut waiting) = (UploadId::random(), Vec::new());
    let row = UploadRow { id: id.clone(), repository: repository(), algorithm: Algorithm::Sha256 };
    {
        let row = row.clone();
        database.metadata.write(move |transaction| transaction.put_upload(&row, 0)).await.unwrap();
    }
    for round in 1..50 {
        let row = row.clone();
        waiting.push(database.metadata.enqueue(move |transaction| transaction.put_upload(&row, round)).await.unwrap());
    }
    let ended = {
        let id = id.clone();
        database.metadata.write(move |transaction| transaction.delete_upload(&id)).await.unwrap()
    };
    assert!(ended);
    for wait in waiting {
        wait.await.unwrap();
    }
    assert_eq!(database.metadata.read(move |reader| reader.get_upload(&id)).await.unwrap(), None);
}

#[tokio::test]
async fn a_blob_leaves_the_account_with_its_last_mount() {
    let database = open();
    let other = RepositoryName::parse("acme/other").unwrap();
    let blob = NewBlob { digest: digest(1), size_bytes: 3, storage_key: StorageKey::random(), blake3: [2; 32] };
    let key = blob.storage_key.clone();
    database
        .metadata
        .write(move |transaction| {
            let first = ensure(transaction)?;
            let account = transaction.ensure_account(&repository().account(), 1)?;
            let second = transaction.ensure_repository(account, &other, 1)?;
            let id = transaction.insert_blob(account, &blob, 1)?;
            transaction.ensure_mount(first, id, 1)?;
            transaction.ensure_mount(second, id, 1)?;
            transaction.ensure_mount(second, id, 1)?;
            assert!(!transaction.unmount_blob(first, id)?);
            assert_eq!(transaction.get_mounted_blob(first, &digest(1))?, None);
            assert!(transaction.get_mounted_blob(second, &digest(1))?.is_some());
            assert!(transaction.has_storage_key(account, &key)?);
            assert!(transaction.unmount_blob(second, id)?);
            assert!(!transaction.has_storage_key(account, &key)?);
            Ok::<_, MetadataError>(())
        })
        .await
        .unwrap();
}

#[tokio::test]
async fn pull_times_move_forward_only_and_skip_what_was_deleted() {
    let database = open();
    database
        .metadata
        .write(move |transaction| {
            let repository = ensure(transaction)?;
            let manifest = transaction.put_manifest(repository, &new_manifest(1), 1)?;
            transaction.put_tag(repository, "v1", manifest, 1)?;
            let pull = |at, tag: &str| Pull { manifest, tag: Some((repository, tag.into())), at };
            transaction.record_pulls(&[pull(10, "v1"), pull(5, "v1"), pull(20, "gone")])?;
            let pulled: i64 =
                transaction.get_row("SELECT last_pulled_at FROM manifests", [], |row| Ok(row.get(0)?))?.unwrap();
            let tag: i64 = transaction.get_row("SELECT last_pulled_at FROM tags", [], |row| Ok(row.get(0)?))?.unwrap();
            assert_eq!((pulled, tag), (20, 10));
            Ok::<_, MetadataError>(())
        })
        .await
        .unwrap();
}

#[tokio::test]
async fn every_query_per_request_uses_an_index() {
    let database = open();
    // The statements as the rooms run them: whoever adds one that scans a table sees it here.
    let sources = [
        include_str!("accounts.rs"),
        include_str!("audit.rs"),
        include_str!("blobs.rs"),
        include_str!("care.rs"),
        include_str!("divergent.rs"),
        include_str!("events.rs"),
        include_str!("follow_claims.rs"),
        include_str!("follows.rs"),
        include_str!("listing.rs"),
        include_str!("manifests.rs"),
        include_str!("primacies.rs"),
        include_str!("pulled.rs"),
        include_str!("pulls.rs"),
        include_str!("referrers.rs"),
        include_str!("sweeps.rs"),
        include_str!("tags.rs"),
        include_str!("transfers.rs"),
        include_str!("uploads.rs"),
        include_str!("usage.rs"),
    ];
    let statements: Vec<String> = sources.iter().flat_map(|source| statements_in(source)).collect();
    assert!(statements.len() > 25, "{statements:#?}");
    database
        .metadata
        .read(move |reader| {
            for statement in &statements {
                let mut plan = reader.statement(&format!("EXPLAIN QUERY PLAN {statement}"))?;
                let parameters = vec![rusqlite::types::Null; plan.parameter_count()];
                let mut rows = plan.query(rusqlite::params_from_iter(parameters))?;
                while let Some(row) = rows.next()? {
                    let step: String = row.get(3)?;
                    let bad =
                        step.contains("USE TEMP B-TREE") || (step.starts_with("SCAN") && step != "SCAN CONSTANT ROW");
                    assert!(!bad, "{statement}\n{step}");
                }
            }
            Ok::<_, MetadataError>(())
        })
        .await
        .unwrap();
}

/// The SQL in a source file: string literals that begin with a verb, their column lists filled in.
fn statements_in(source: &str) -> Vec<String> {
    let literals = source.split('"').skip(1).step_by(2);
    let columns = source.split("const COLUMNS").nth(1).and_then(|rest| rest.split('"').nth(1)).unwrap_or_default();
    literals
        .filter(|text| ["SELECT", "INSERT", "UPDATE", "DELETE"].iter().any(|verb| text.starts_with(verb)))
        .map(|text| text.replace("{COLUMNS}", columns).replace("\\\n", " "))
        .collect()
}

#[tokio::test]
async fn audit_events_are_listed_by_page_and_tenant_sent_on_in_order_and_expire() {
    let database = open();
    let event = |tenant: Option<&str>, at_ms| AuditRow {
        id: 0,
        at_ms,
        tenant: tenant.map(str::to_owned),
        actor: "user:ada".into(),
        address: "::1".into(),
        user_agent: String::new(),
        request_id: "r".into(),
        action: "create".into(),
        kind: "account".into(),
        target: "acme".into(),
        detail: String::new(),
        status: 200,
    };
    let events = vec![event(Some("acme"), 1), event(None, 2), event(Some("acme"), 3), event(Some("other"), 4)];
    let listed = |tenant: Option<&'static str>, before, limit| {
        let read = database.metadata.read(move |reader| reader.list_audit(tenant, before, limit));
        async move {
            let rows: Vec<AuditRow> = read.await.map_err(|error: MetadataError| error).unwrap();
            rows.iter().map(|row| row.id).collect::<Vec<_>>()
        }
    };
    database.metadata.write(move |transaction| transaction.insert_audit(&events)).await.unwrap();
    assert_eq!(listed(None, None, 10).await, [4, 3, 2, 1]);
    assert_eq!(listed(None, Some(3), 1).await, [2]);
    assert_eq!(listed(Some("acme"), None, 10).await, [3, 1]);
    assert_eq!(listed(Some("acme"), Some(3), 10).await, [1]);
    let waiting = || async {
        let read = database.metadata.read(|reader| reader.list_audit_for("file", 2));
        let rows: Vec<AuditRow> = read.await.map_err(|error: MetadataError| error).unwrap();
        rows.iter().map(|row| row.id).collect::<Vec<_>>()
    };
    assert_eq!(waiting().await, [1, 2]);
    database.metadata.write(|transaction| transaction.put_audit_export("file", 2)).await.unwrap();
    database.metadata.write(|transaction| transaction.put_audit_export("file", 3)).await.unwrap();
    assert_eq!(waiting().await, [4]);
    let gone: usize = database.metadata.write(|transaction| transaction.expire_audit(4, 2)).await.unwrap();
    assert_eq!((gone, listed(None, None, 10).await), (2, vec![4, 3]));
    let gone: usize = database.metadata.write(|transaction| transaction.expire_audit(4, 2)).await.unwrap();
    assert_eq!((gone, listed(None, None, 10).await), (1, vec![4]));
}

/// What the sixth version wrote: two images that share a blob, each in a repository of its own.
const OF_VERSION_6: &str = "
    INSERT INTO accounts (id, name, created_at) VALUES (1, 'acme', 5);
    INSERT INTO repositories (id, account_id, full_name, created_at) VALUES
        (1, 1, 'acme/app', 5), (2, 1, 'acme/lib', 6), (3, 1, 'acme/none', 6);
    INSERT INTO blobs (id, account_id, digest, size_bytes, storage_key, blake3, created_at) VALUES
        (1, 1, x'010000000000000000000000000000000000000000000000000000000000000000', 100,
         '00000000000000000000000000000001', zeroblob(32), 5);
    INSERT INTO mounts (repository_id, blob_id, mounted_at) VALUES (1, 1, 5), (2, 1, 5), (3, 1, 5);
    INSERT INTO manifests (id, repository_id, digest, media_type, total_size_bytes, annotations, pushed_at, bytes) VALUES
        (1, 1, x'010000000000000000000000000000000000000000000000000000000000000001', 'm', 107, '{}', 9, x'61'),
        (2, 2, x'010000000000000000000000000000000000000000000000000000000000000002', 'm', 123, '{}', 8, x'62');
    INSERT INTO manifest_blobs (manifest_id, blob_id) VALUES (1, 1), (2, 1);";

#[tokio::test]
async fn an_account_takes_what_it_holds_along_to_another_tenant() {
    let database = open();
    let usage = database
        .metadata
        .write(|transaction| {
            let account = transaction.ensure_account(&repository().account(), 1)?;
            let repository = ensure(transaction)?;
            transaction.put_manifest(repository, &new_manifest(1), 1)?;
            transaction.set_tenant(account, "one")?;
            transaction.put_manifest(repository, &new_manifest(2), 1)?;
            transaction.put_manifest(repository, &new_manifest(2), 2)?;
            transaction.set_tenant(account, "two")?;
            assert_eq!(transaction.miscounted()?, Vec::<String>::new());
            Ok::<_, MetadataError>((transaction.tenant_usage("one")?, transaction.tenant_usage("two")?))
        })
        .await
        .unwrap();
    assert_eq!(usage, (Usage::default(), Usage { manifests: 2, size_bytes: 4 }));
}

#[tokio::test]
async fn a_database_without_room_says_so_and_goes_on_when_there_is_room_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("metadata.db");
    let metadata = Metadata::open(&path, &MetadataOptions::default()).unwrap();
    let limit = |pages: i64| {
        metadata.write(move |transaction| {
            transaction.get_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(()))?;
            Ok::<_, MetadataError>(())
        })
    };
    limit(60).await.unwrap();
    let fill = |byte: u8| {
        metadata.write(move |transaction| {
            let repository = ensure(transaction)?;
            let manifest = NewManifest { bytes: vec![byte; 200_000].into(), ..new_manifest(byte) };
            transaction.put_manifest(repository, &manifest, 1).map(|_| ())
        })
    };
    assert!(matches!(fill(1).await, Err(MetadataError::Full)));
    // Those that share a transaction with it are told the same, whether their turn came or not.
    let small = (0..8).map(|_| metadata.write(|transaction| ensure(transaction).map(|_| ())));
    let (large, small) = futures_util::future::join(fill(1), futures_util::future::join_all(small)).await;
    for outcome in small.into_iter().chain([large]) {
        assert!(matches!(outcome, Ok(()) | Err(MetadataError::Full)), "{outcome:?}");
    }
    limit(1_000_000).await.unwrap();
    fill(2).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_one_read_sees_is_of_one_moment() {
    let database = open();
    let (begun, begins) = tokio::sync::oneshot::channel();
    let (go_on, goes_on) = std::sync::mpsc::channel::<()>();
    let metadata = database.metadata.clone();
    let reading = tokio::spawn(async move {
        let read = metadata.read(move |reader| {
            let before = reader.list_accounts(None, 10)?.len();
            begun.send(()).unwrap();
            goes_on.recv().unwrap();
            Ok::<_, MetadataError>((before, reader.list_accounts(None, 10)?.len()))
        });
        read.await.unwrap()
    });
    begins.await.unwrap();
    let made = database.metadata.write(|transaction| transaction.ensure_account(&repository().account(), 1).map(drop));
    made.await.map_err(|error: MetadataError| error).unwrap();
    go_on.send(()).unwrap();
    assert_eq!(reading.await.unwrap(), (0, 0));
    let after = database.metadata.read(|reader| Ok::<_, MetadataError>(reader.list_accounts(None, 10)?.len())).await;
    assert_eq!(after.unwrap(), 1);
}
