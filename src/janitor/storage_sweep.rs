//! Removes stored bytes that no row names: what a crash, or a deletion cut short, left behind.
//!
//! Correct beside running pushes: whoever stores bytes says so before they appear and until their row is on disk, and
//! the sweep asks that first, then the metadata, then deletes. Storage keys are never used twice, so what has no row
//! and is not being stored will never have one.

use keppel_federation::vocabulary::{AccountName, UploadId};

use super::report::RunReport;
use crate::metadata::{MetadataError, Reader};
use crate::registry::{Registry, RegistryError};
use crate::storage::{ObjectKind, StoredObject};

/// Objects looked at together.
const PAGE: usize = 500;

/// Runs once over all storage spaces.
///
/// # Errors
/// Our own trouble; the next run starts again.
pub async fn run(registry: Registry) -> Result<RunReport, RegistryError> {
    run_over(&registry, None).await
}

/// The same over one account's space.
pub(super) async fn run_over(registry: &Registry, account: Option<&AccountName>) -> Result<RunReport, RegistryError> {
    let mut report = RunReport::default();
    for space in registry.storage().list_spaces().await? {
        if account.is_none_or(|account| *account == space) {
            sweep(registry, &space, &mut report).await?;
        }
    }
    Ok(report)
}

async fn sweep(registry: &Registry, account: &AccountName, report: &mut RunReport) -> Result<(), RegistryError> {
    let mut listing = registry.storage().list(account);
    loop {
        let mut objects = listing.next_page(PAGE).await?;
        if objects.is_empty() {
            return Ok(());
        }
        report.looked_at += objects.len() as u64;
        objects.retain(|object| !is_in_progress(registry, object));
        for object in without_row(registry, account, objects).await? {
            remove(registry, account, &object).await?;
            report.changed += 1;
            report.reclaimed_bytes += object.size_bytes;
        }
    }
}

fn is_in_progress(registry: &Registry, object: &StoredObject) -> bool {
    match &object.kind {
        ObjectKind::Upload(id) => registry.is_being_uploaded(id),
        ObjectKind::Blob(key) | ObjectKind::Outboard(key) => registry.is_being_stored(key),
    }
}

async fn without_row(
    registry: &Registry,
    account: &AccountName,
    mut objects: Vec<StoredObject>,
) -> Result<Vec<StoredObject>, MetadataError> {
    let account = account.clone();
    registry
        .metadata()
        .read(move |reader| {
            let mut failed = None;
            objects.retain(|object| {
                has_row(reader, &account, object).map_or_else(
                    |error| {
                        failed = Some(error);
                        false
                    },
                    |known| !known,
                )
            });
            failed.map_or(Ok(objects), Err)
        })
        .await
}

fn has_row(reader: &Reader<'_>, account: &AccountName, object: &StoredObject) -> Result<bool, MetadataError> {
    match &object.kind {
        ObjectKind::Upload(id) => Ok(reader.get_upload(id)?.is_some()),
        ObjectKind::Blob(key) | ObjectKind::Outboard(key) => {
            let has_blob = match reader.get_account(account)? {
                Some(account) => reader.has_storage_key(account, key)?,
                None => false,
            };
            // A session that a crash cut short between bytes and row takes its bytes back when it goes on.
            Ok(has_blob || UploadId::parse(key.as_str()).is_ok_and(|id| has_upload(reader, &id)))
        }
    }
}

fn has_upload(reader: &Reader<'_>, id: &UploadId) -> bool {
    // In doubt nothing is deleted.
    reader.get_upload(id).map_or(true, |upload| upload.is_some())
}

async fn remove(registry: &Registry, account: &AccountName, object: &StoredObject) -> Result<(), RegistryError> {
    match &object.kind {
        ObjectKind::Upload(id) => registry.storage().discard_upload(account, id).await?,
        ObjectKind::Blob(key) | ObjectKind::Outboard(key) => registry.storage().delete_blob(account, key).await?,
    }
    tracing::info!(%account, object = ?object.kind, size_bytes = object.size_bytes, "removed what nothing refers to");
    metrics::counter!("keppel_janitor_swept_objects_total").increment(1);
    metrics::counter!("keppel_janitor_swept_bytes_total").increment(object.size_bytes);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use futures_util::stream;
    use keppel_federation::vocabulary::{Algorithm, Digest, RepositoryName, StorageKey};
    use sha2::Digest as _;

    use super::*;
    use crate::metadata::{Metadata, MetadataOptions};
    use crate::model::{ManualClock, SystemClock};
    use crate::registry::{BodyError, LocalClaims, RegistryOptions};
    use crate::storage::{FilesystemOptions, Storage};

    fn open(directory: &std::path::Path, clock: Arc<dyn crate::model::Clock>) -> Registry {
        let metadata = Metadata::open(&directory.join("metadata.db"), &MetadataOptions::default()).unwrap();
        let storage = Storage::filesystem(FilesystemOptions::new(directory.join("storage"))).unwrap();
        let options = RegistryOptions { create_accounts_on_push: true, ..RegistryOptions::default() };
        Registry::new(options, metadata, storage, clock, Arc::new(LocalClaims))
    }

    fn body(content: &'static [u8]) -> impl futures_util::Stream<Item = Result<Bytes, BodyError>> + Send + Unpin {
        stream::iter([Ok(Bytes::from_static(content))])
    }

    async fn objects(registry: &Registry, account: &AccountName) -> usize {
        registry.storage().list(account).next_page(100).await.unwrap().len()
    }

    #[tokio::test]
    async fn sweep_removes_what_has_no_row_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let registry = open(directory.path(), Arc::new(SystemClock));
        let app = RepositoryName::parse("acme/app").unwrap();
        let account = app.account();
        let digest = Digest::from_sha256(sha2::Sha256::digest(b"kept").into());
        registry.put_blob(&app, &digest, Some(4), body(b"kept")).await.unwrap();
        let kept = registry.start_upload(&app, Algorithm::Sha256).await.unwrap().id;
        registry.append_upload(&app, &kept, None, Some(3), body(b"abc")).await.unwrap();
        // What a crash between bytes and row leaves: an upload and a blob that nobody knows.
        let storage = registry.storage();
        let mut lost = storage.begin_upload(&account, &UploadId::random(), Algorithm::Sha256).await.unwrap();
        lost.append(body(b"lost"), 10).await.unwrap();
        let digest = Digest::from_sha256(sha2::Sha256::digest(b"lost").into());
        lost.finish(StorageKey::random(), &digest).await.unwrap();
        drop(storage.begin_upload(&account, &UploadId::random(), Algorithm::Sha256).await.unwrap());
        assert_eq!(objects(&registry, &account).await, 4);
        run(registry.clone()).await.unwrap();
        assert_eq!(objects(&registry, &account).await, 2);
        assert_eq!(registry.upload_status(&app, &kept).await.unwrap().size_bytes, 3);
    }

    #[tokio::test]
    async fn abandoned_uploads_end_after_their_time_and_not_before() {
        let directory = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::new(1_000_000));
        let registry = open(directory.path(), clock.clone());
        let app = RepositoryName::parse("acme/app").unwrap();
        let id = registry.start_upload(&app, Algorithm::Sha256).await.unwrap().id;
        registry.append_upload(&app, &id, None, Some(3), body(b"abc")).await.unwrap();
        clock.advance(24 * 3600 - 1);
        super::super::abandoned_uploads::run(registry.clone()).await.unwrap();
        assert_eq!(registry.upload_status(&app, &id).await.unwrap().size_bytes, 3);
        clock.advance(2);
        super::super::abandoned_uploads::run(registry.clone()).await.unwrap();
        assert!(matches!(registry.upload_status(&app, &id).await, Err(RegistryError::UploadUnknown { .. })));
        assert_eq!(objects(&registry, &app.account()).await, 0);
    }

    #[tokio::test]
    async fn sweep_beside_running_pushes_loses_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let registry = open(directory.path(), Arc::new(SystemClock));
        let pushes = (0..8).map(|task| {
            let registry = registry.clone();
            tokio::spawn(async move {
                let app = RepositoryName::parse("acme/app").unwrap();
                for number in 0..25 {
                    let content = Bytes::from(format!("{task}/{number}"));
                    let digest = Digest::from_sha256(sha2::Sha256::digest(&content).into());
                    let body = stream::iter([Ok::<_, BodyError>(content)]);
                    registry.put_blob(&app, &digest, None, body).await.unwrap();
                    let blob = registry.load_blob(&app, &digest, true).await.unwrap();
                    registry.open_blob(&blob, 0..blob.size_bytes).await.unwrap();
                }
            })
        });
        let pushes: Vec<_> = pushes.collect();
        while pushes.iter().any(|push| !push.is_finished()) {
            run(registry.clone()).await.unwrap();
        }
        for push in pushes {
            push.await.unwrap();
        }
        run(registry.clone()).await.unwrap();
        let account = AccountName::parse("acme").unwrap();
        assert_eq!(registry.storage().list(&account).next_page(1000).await.unwrap().len(), 200);
    }
}
