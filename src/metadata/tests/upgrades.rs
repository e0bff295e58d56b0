//! Databases of other versions: earlier ones are taken over, later ones refused.

use super::migrations::MIGRATIONS;
use super::*;

/// A database that a program of this version has left with these rows in it, opened.
pub(super) fn of_version(version: usize, rows: &str) -> (Metadata, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("metadata.db");
    let connection = rusqlite::Connection::open(&path).unwrap();
    MIGRATIONS[..version].iter().for_each(|sql| connection.execute_batch(sql).unwrap());
    connection.pragma_update(None, "user_version", version as i64).unwrap();
    connection.execute_batch(rows).unwrap();
    drop(connection);
    (Metadata::open(&path, &MetadataOptions::default()).unwrap(), directory)
}

#[tokio::test]
async fn what_the_first_version_wrote_is_counted_by_the_migration() {
    let rows = "
        INSERT INTO accounts VALUES (1, 'acme', 5), (2, 'empty', 5);
        INSERT INTO repositories VALUES (1, 1, 'acme/app', 5), (2, 1, 'acme/lib', 6);
        INSERT INTO blobs VALUES (1, 1, x'01', 100, 'a', x'00', 5), (2, 1, x'02', 20, 'b', x'00', 5);
        INSERT INTO mounts VALUES (1, 1, 5), (2, 1, 5), (2, 2, 5);
        INSERT INTO manifests (id, repository_id, digest, media_type, total_size_bytes, annotations, pushed_at, bytes)
            VALUES (1, 1, x'03', 'm', 107, '{}', 9, x'61626364656667'), (2, 2, x'03', 'm', 123, '{}', 8, x'616263');
        INSERT INTO tags VALUES (1, 'v1', 1, 9, NULL), (1, 'v2', 1, 9, NULL);";
    let (metadata, _directory) = of_version(1, rows);
    let (listed, usage, miscounted) = metadata
        .write(|transaction| {
            let account = transaction.get_account(&AccountName::parse("acme").unwrap())?.unwrap();
            transaction.set_tenant(account, "payer")?;
            let listed = transaction.list_account_repositories(account, "acme/", 10)?;
            Ok::<_, MetadataError>((listed, transaction.tenant_usage("payer")?, transaction.miscounted()?))
        })
        .await
        .unwrap();
    assert_eq!(miscounted, Vec::<String>::new());
    assert_eq!(usage, Usage { manifests: 2, size_bytes: 130 });
    let row = |name: &str, manifest_count, tag_count, size_bytes, pushed_at| ListedRepository {
        full_name: name.into(),
        manifest_count,
        tag_count,
        size_bytes,
        pushed_at,
    };
    assert_eq!(listed, [row("acme/app", 1, 2, 107, 9), row("acme/lib", 1, 0, 123, 8)]);
}

#[tokio::test]
async fn what_refers_to_a_blob_is_known_by_repository_also_of_what_the_sixth_version_wrote() {
    let (metadata, _directory) = of_version(6, OF_VERSION_6);
    let seen = metadata.write(|transaction| {
        let mut seen = Vec::new();
        for repository in [1, 2, 3].map(RepositoryId) {
            let mount = transaction.list_swept_mounts(repository, None, 10)?[0];
            let manifest = transaction.get_manifest_using_blob(repository, mount.blob)?;
            assert_eq!(mount.is_needed, manifest.is_some());
            seen.push(mount.is_needed);
        }
        // Links go with their manifest, as before, and new ones are found.
        transaction.delete_manifest(ManifestId(2))?;
        transaction.link_blob(ManifestId(1), BlobId(1))?;
        seen.push(transaction.list_swept_mounts(RepositoryId(2), None, 10)?[0].is_needed);
        assert_eq!(transaction.miscounted()?, Vec::<String>::new());
        Ok::<_, MetadataError>(seen)
    });
    assert_eq!(seen.await.unwrap(), [true, true, false, false]);
}

#[tokio::test]
async fn what_an_earlier_version_followed_and_saw_pulled_is_still_to_be_told() {
    let digest = Digest::from_sha256([3; 32]);
    let rows = format!(
        "INSERT INTO accounts (id, name, created_at) VALUES (1, 'acme', 5);
         INSERT INTO repositories (id, account_id, full_name, created_at) VALUES (1, 1, 'acme/app', 5);
         INSERT INTO manifests (id, repository_id, digest, media_type, total_size_bytes, annotations, pushed_at, bytes,
            last_pulled_at) VALUES (1, 1, x'{}', 'm', 7, '{{}}', 9, x'61', 50);
         INSERT INTO tags VALUES (1, 'v1', 1, 9, 40), (1, 'v2', 1, 9, NULL);
         INSERT INTO follows VALUES ('acme', 2, 7, 8);",
        data_encoding::HEXLOWER.encode(&digest.to_compact())
    );
    let (metadata, _directory) = of_version(6, &rows);
    let acme = AccountName::parse("acme").unwrap();
    let (told, all, later) = metadata
        .write(move |transaction| {
            let id = transaction.get_repository(&RepositoryName::parse("acme/app").unwrap())?.unwrap();
            let told = transaction.get_pulls_told_until(&acme)?;
            let since = |since| transaction.list_pulled_since(id, since, 10);
            let (all, later) = (since(0)?, since(41)?);
            transaction.put_pulls_told_until(&acme, 60)?;
            // Going on following does not forget it.
            let cursor = Cursor { sequence: 9, stamp: 1 };
            let row = FollowRow { account: acme.clone(), state: FollowState::Following, cursor, source: None };
            transaction.put_follow(&row)?;
            assert_eq!(transaction.get_pulls_told_until(&acme)?, Some(60));
            Ok::<_, MetadataError>((told, all, later))
        })
        .await
        .unwrap();
    assert_eq!(told, Some(0));
    assert_eq!(all, PulledNames { manifests: vec![(digest, 50)], tags: vec![("v1".into(), 40)] });
    assert_eq!(later, PulledNames { manifests: vec![(digest, 50)], tags: Vec::new() });
}

#[tokio::test]
async fn what_the_eighth_version_wrote_is_as_before_and_can_change_its_primary() {
    let rows = "
        INSERT INTO accounts (id, name, created_at) VALUES (1, 'acme', 5);
        INSERT INTO repositories (id, account_id, full_name, created_at) VALUES (1, 1, 'acme/app', 5);
        INSERT INTO blobs (id, account_id, digest, size_bytes, storage_key, blake3, created_at)
            VALUES (1, 1, x'01', 100, 'a', x'00', 5);
        INSERT INTO mounts (repository_id, blob_id, mounted_at) VALUES (1, 1, 5);
        INSERT INTO follows (account, state, sequence, stamp) VALUES ('acme', 2, 7, 9);";
    let (metadata, _directory) = of_version(8, rows);
    let account = AccountName::parse("acme").unwrap();
    metadata
        .write(move |transaction| {
            assert_eq!(transaction.list_primacies("", 10)?, []);
            let place = transaction.get_follow_cursor(&account)?.unwrap();
            assert_eq!(place, Cursor { sequence: 7, stamp: 9 });
            transaction.put_succession(&account, 3, place)?;
            transaction.put_primacy(&account, 3, Stage::Taken)?;
            let row = PrimacyRow { account: account.clone(), epoch: 3, stage: Stage::Taken };
            assert_eq!(transaction.list_primacies("", 10)?, [row]);
            assert_eq!(transaction.get_succession(&account, 3)?, Some(place));
            assert_eq!(transaction.miscounted()?, Vec::<String>::new());
            Ok::<_, MetadataError>(())
        })
        .await
        .unwrap();
}

#[tokio::test]
async fn a_database_without_transfers_takes_them_and_they_end_with_their_uploads() {
    let old = UploadId::random();
    let row = format!("INSERT INTO uploads VALUES ('{old}', 'acme/app', 'sha256', 5)");
    let (metadata, _directory) = of_version(9, &row);
    let transfer = |id: &UploadId| TransferRow {
        upload: UploadRow { id: id.clone(), repository: repository(), algorithm: Algorithm::Sha256 },
        size_bytes: 1 << 40,
        root: [3; 32],
    };
    let (first, second) = (transfer(&old), transfer(&UploadId::random()));
    metadata
        .write(move |transaction| {
            transaction.put_transfer(&first, &digest(1), 6)?;
            assert_eq!(transaction.get_transfer(&repository(), &digest(1))?, Some(first.clone()));
            assert_eq!(transaction.get_transfer(&repository(), &digest(2))?, None);
            transaction.put_transfer(&second, &digest(1), 7)?;
            assert_eq!(transaction.get_transfer(&repository(), &digest(1))?, Some(second.clone()));
            assert_eq!(transaction.get_upload(&old)?, None, "one transfer of a blob is enough");
            transaction.put_transfer(&second, &digest(1), 8)?;
            transaction.delete_upload(&second.upload.id)?;
            assert_eq!(transaction.get_transfer(&repository(), &digest(1))?, None);
            Ok::<_, MetadataError>(())
        })
        .await
        .unwrap();
}

#[tokio::test]
async fn what_the_twelfth_version_wrote_is_told_when_it_is_pushed_again() {
    let rows = "
        INSERT INTO accounts (id, name, created_at) VALUES (1, 'acme', 5);
        INSERT INTO repositories (id, account_id, full_name, created_at) VALUES (1, 1, 'acme/app', 5);
        INSERT INTO manifests (id, repository_id, digest, media_type, total_size_bytes, annotations, pushed_at, bytes)
            VALUES (1, 1, x'01', 'm', 7, '{}', 9, x'61');
        INSERT INTO tags VALUES (1, 'v1', 1, 9, NULL);
        UPDATE manifests SET pushed_at = 10; UPDATE tags SET pushed_at = 10;";
    let (metadata, directory) = of_version(12, rows);
    drop(metadata);
    let database = rusqlite::Connection::open(directory.path().join("metadata.db")).unwrap();
    let told = |from: i64| -> Vec<i64> {
        let mut events = database.prepare("SELECT kind FROM events WHERE sequence > ?1 ORDER BY sequence").unwrap();
        events.query_map([from], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
    };
    assert_eq!(told(0), [1, 3, 5], "that version told nothing of it");
    database.execute_batch("UPDATE manifests SET pushed_at = 11; UPDATE tags SET pushed_at = 11").unwrap();
    assert_eq!(told(3), [3, 5]);
    // Nothing is told twice, nor of pulls.
    let silent =
        "UPDATE manifests SET pushed_at = 11, last_pulled_at = 12; UPDATE tags SET last_pulled_at = 12, pushed_at = 11";
    database.execute_batch(silent).unwrap();
    assert_eq!(told(5), [0_i64; 0]);
}

#[test]
fn a_database_of_a_later_version_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("metadata.db");
    drop(Metadata::open(&path, &MetadataOptions::default()).unwrap());
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 1000).unwrap();
    drop(connection);
    let refused = Metadata::open(&path, &MetadataOptions::default());
    assert!(matches!(refused, Err(MetadataError::TooNew { found: 1000, .. })));
}
