//! What every driver has to do.

use bao_tree::BlockSize;
use bao_tree::io::outboard::PreOrderOutboard;
use bao_tree::io::sync::CreateOutboard as _;

use super::*;

const KI_B: usize = 1024;
const MI_B: usize = 1024 * KI_B;

/// Makes each function here, which takes a prepared storage of 16 MiB at least, a test of every driver.
macro_rules! suite {
    ($($test:ident)*) => {
        mod filesystem {
            $(#[tokio::test]
            async fn $test() {
                let directory = tempfile::tempdir().unwrap();
                super::$test(&super::prepared(super::filesystem(directory.path())).await).await;
            })*
        }

        mod memory {
            $(#[tokio::test]
            async fn $test() {
                let storage = super::Storage::memory(super::MemoryOptions::new(16 * super::MI_B as u64));
                super::$test(&super::prepared(storage).await).await;
            })*
        }
    };
}

suite! {
    blobs_of_any_size_come_back_as_they_were
    any_range_of_a_blob_can_be_read_and_none_beyond_its_end
    an_upload_grows_with_every_body
    an_upload_is_read_beside_the_writing_and_as_the_blob_that_it_becomes
    a_body_that_breaks_off_leaves_what_had_arrived
    a_body_over_the_limit_is_cut_there
    a_dropped_append_leaves_bytes_and_hashes_in_agreement
    an_upload_whose_handle_was_dropped_is_resumed_with_its_hashes
    an_upload_has_one_handle_at_a_time
    content_of_another_digest_is_refused_and_removed
    a_digest_of_another_algorithm_than_announced_is_checked
    a_discarded_upload_is_gone_also_for_its_handle
    a_deleted_blob_is_gone_and_may_be_deleted_again
    a_blob_deleted_while_being_read_is_read_to_its_end
    a_walk_finds_every_object_once_with_its_size
    an_account_without_space_takes_no_uploads
    a_removed_space_is_gone_with_everything_in_it
    an_outboard_is_kept_and_a_lost_one_computed_again
    many_small_blobs_finish_side_by_side
}

async fn an_upload_is_read_beside_the_writing_and_as_the_blob_that_it_becomes(storage: &Storage) {
    let bytes = data(600 * KI_B);
    let id = UploadId::random();
    let mut upload = storage.begin_upload(&account(), &id, Algorithm::Sha256).await.unwrap();
    let reader = upload.reader().unwrap();
    let read = async |from: usize, to: usize| {
        let mut got = Vec::new();
        while from + got.len() < to {
            let piece = reader.read((from + got.len()) as u64, to - from - got.len()).await.unwrap();
            assert!(!piece.is_empty());
            got.extend_from_slice(&piece);
        }
        got
    };
    for part in bytes.chunks(200 * KI_B) {
        upload.append(body(&Bytes::copy_from_slice(part)), u64::MAX).await.unwrap();
        let written = upload.size_bytes() as usize;
        assert!(
            read(0, written).await == bytes[..written]
                && read(written - 5, written).await == bytes[written - 5..written]
        );
    }
    upload.finish(StorageKey::from(&id), &sha256(&bytes)).await.unwrap();
    assert!(read(0, bytes.len()).await == bytes);
}

async fn blobs_of_any_size_come_back_as_they_were(storage: &Storage) {
    let around = |edge: usize| [edge - 1, edge, edge + 1];
    let edges = [KI_B, 64 * KI_B, 256 * KI_B, 512 * KI_B].into_iter().flat_map(around);
    for size in [0, 1, 3 * MI_B + 17].into_iter().chain(edges) {
        let bytes = data(size);
        let blob = store(storage, &bytes).await;
        assert_eq!(blob.digest, sha256(&bytes));
        assert_eq!(blob.size_bytes, size as u64);
        assert_eq!(blob.blake3, *blake3::hash(&bytes).as_bytes());
        assert_eq!(storage.blob_size_bytes(&account(), &blob.key).await.unwrap(), Some(size as u64));
        assert!(read(storage, &blob, 0..size as u64).await.unwrap() == bytes, "blob of {size} bytes");
        assert_eq!(storage.hash_blob(&account(), &blob.key, Algorithm::Sha256).await.unwrap(), blob);
    }
}

async fn any_range_of_a_blob_can_be_read_and_none_beyond_its_end(storage: &Storage) {
    let bytes = data(MI_B + 100);
    let blob = store(storage, &bytes).await;
    let piece = PIECE_BYTES as u64;
    let end = bytes.len() as u64;
    for range in [0..1, 0..0, end..end, end - 1..end, 5..5, piece - 1..piece + 1, piece..2 * piece, 77..3 * piece + 5] {
        let expected = &bytes[range.start as usize..range.end as usize];
        assert!(read(storage, &blob, range.clone()).await.unwrap() == expected, "{range:?}");
    }
    let reader = open(storage, &blob, 10..end).await.unwrap();
    let sizes: Vec<_> = reader.map(|piece| piece.unwrap().len()).collect().await;
    assert!(sizes.iter().all(|size| *size <= PIECE_BYTES) && sizes.len() <= 9, "{sizes:?}");
    let beyond = read(storage, &blob, 0..end + 1).await.unwrap_err();
    assert!(matches!(beyond, StorageError::BlobShort { actual_bytes, .. } if actual_bytes == end), "{beyond}");
}

async fn an_upload_grows_with_every_body(storage: &Storage) {
    let bytes = data(700 * KI_B);
    let mut upload = begin(storage).await;
    let mut at = 0;
    for size in [0, 1, 1000, 300 * KI_B, 300 * KI_B, 100] {
        let chunk = bytes.slice(at..at + size);
        at += size;
        assert_eq!(upload.append(body(&chunk), size as u64).await.unwrap(), size as u64);
        assert_eq!(upload.size_bytes(), at as u64);
    }
    upload.sync().await.unwrap();
    let blob = upload.finish(StorageKey::random(), &sha256(&bytes[..at])).await.unwrap();
    assert!(read(storage, &blob, 0..at as u64).await.unwrap() == bytes[..at]);
}

async fn a_body_that_breaks_off_leaves_what_had_arrived(storage: &Storage) {
    let bytes = data(MI_B);
    let mut upload = begin(storage).await;
    let broken = body(&bytes.slice(..600_000)).map(|piece| piece.map_err(|never| match never {}));
    let broken = broken.chain(stream::iter([Err("connection reset")]));
    let error = upload.append(broken, u64::MAX).await.unwrap_err();
    assert!(matches!(error, AppendError::Body("connection reset")));
    assert_eq!(upload.size_bytes(), 600_000);
    upload.append(body(&bytes.slice(600_000..)), u64::MAX).await.unwrap();
    upload.finish(StorageKey::random(), &sha256(&bytes)).await.unwrap();
}

async fn a_body_over_the_limit_is_cut_there(storage: &Storage) {
    let bytes = data(400_000);
    let mut upload = begin(storage).await;
    let error = upload.append(body(&bytes), 300_000).await.unwrap_err();
    assert!(matches!(error, AppendError::TooLarge { limit_bytes: 300_000 }));
    assert_eq!(upload.size_bytes(), 300_000);
    assert_eq!(upload.append(body(&bytes.slice(300_000..)), 100_000).await.unwrap(), 100_000);
    upload.finish(StorageKey::random(), &sha256(&bytes)).await.unwrap();
}

async fn a_dropped_append_leaves_bytes_and_hashes_in_agreement(storage: &Storage) {
    let bytes = data(2 * MI_B);
    for pieces in [1, 18, 19, 20, 40, 60, 100] {
        let mut upload = begin(storage).await;
        let (stalled, stalls) = tokio::sync::oneshot::channel::<()>();
        let first = body(&bytes).take(pieces);
        let stall = stream::once(async move {
            let _ = stalled.send(());
            std::future::pending().await
        });
        tokio::select! {
            _ = upload.append(first.chain(stall), u64::MAX) => unreachable!("the body never ends"),
            _ = stalls => {}
        }
        upload.sync().await.unwrap();
        let size = upload.size_bytes() as usize;
        assert!(size <= pieces * 14_321 && pieces * 14_321 - size < 2 * PIECE_BYTES, "{size} of {pieces} pieces");
        upload.append(body(&bytes.slice(size..)), u64::MAX).await.unwrap();
        let blob = upload.finish(StorageKey::random(), &sha256(&bytes)).await.unwrap();
        storage.delete_blob(&account(), &blob.key).await.unwrap();
    }
}

async fn an_upload_whose_handle_was_dropped_is_resumed_with_its_hashes(storage: &Storage) {
    let bytes = data(MI_B + 5);
    let mut upload = begin(storage).await;
    let id = upload.id().clone();
    upload.append(body(&bytes.slice(..500_001)), u64::MAX).await.unwrap();
    drop(upload);
    let mut upload = storage.resume_upload(&account(), &id, Algorithm::Sha256).await.unwrap().unwrap();
    assert_eq!(upload.size_bytes(), 500_001);
    upload.append(body(&bytes.slice(500_001..)), u64::MAX).await.unwrap();
    let blob = upload.finish(StorageKey::random(), &sha256(&bytes)).await.unwrap();
    assert_eq!(blob.blake3, *blake3::hash(&bytes).as_bytes());
    assert!(storage.resume_upload(&account(), &id, Algorithm::Sha256).await.unwrap().is_none());
    assert!(storage.resume_upload(&account(), &UploadId::random(), Algorithm::Sha256).await.unwrap().is_none());
}

async fn an_upload_has_one_handle_at_a_time(storage: &Storage) {
    let impatient = Storage { upload_handover_timeout: Duration::ZERO, ..storage.clone() };
    let upload = begin(storage).await;
    let id = upload.id().clone();
    let account = account();
    let busy = impatient.resume_upload(&account, &id, Algorithm::Sha256).await.err().unwrap();
    assert!(matches!(busy, StorageError::UploadBusy(_)));
    let waiting = storage.resume_upload(&account, &id, Algorithm::Sha256);
    let (resumed, ()) = tokio::join!(waiting, async { drop(upload) });
    drop(resumed.unwrap().unwrap());
    let exists = storage.begin_upload(&account, &id, Algorithm::Sha256).await.err().unwrap();
    assert!(matches!(exists, StorageError::UploadExists(_)));
}

async fn content_of_another_digest_is_refused_and_removed(storage: &Storage) {
    let bytes = data(300_000);
    for expected in [sha256(b"something else"), sha512(b"something else")] {
        let mut upload = begin(storage).await;
        upload.append(body(&bytes), u64::MAX).await.unwrap();
        let actual = if expected.algorithm() == Algorithm::Sha256 { sha256(&bytes) } else { sha512(&bytes) };
        match upload.finish(StorageKey::random(), &expected).await.unwrap_err() {
            FinishError::DigestMismatch { expected: e, actual: a } => assert_eq!((*e, *a), (expected, actual)),
            other => panic!("{other}"),
        }
        assert_eq!(kinds(storage).await, []);
    }
}

async fn a_digest_of_another_algorithm_than_announced_is_checked(storage: &Storage) {
    let bytes = data(600_000);
    let mut upload = begin(storage).await;
    upload.append(body(&bytes), u64::MAX).await.unwrap();
    let blob = upload.finish(StorageKey::random(), &sha512(&bytes)).await.unwrap();
    assert_eq!(blob.digest, sha512(&bytes));
    assert_eq!(blob.blake3, *blake3::hash(&bytes).as_bytes());
    let mut upload = storage.begin_upload(&account(), &UploadId::random(), Algorithm::Sha512).await.unwrap();
    upload.append(body(&bytes), u64::MAX).await.unwrap();
    assert_eq!(upload.finish(StorageKey::random(), &sha512(&bytes)).await.unwrap().digest, sha512(&bytes));
}

async fn a_discarded_upload_is_gone_also_for_its_handle(storage: &Storage) {
    let bytes = data(1000);
    let mut upload = begin(storage).await;
    upload.append(body(&bytes), u64::MAX).await.unwrap();
    upload.discard().await.unwrap();
    assert_eq!(kinds(storage).await, []);

    let mut upload = begin(storage).await;
    upload.append(body(&bytes), u64::MAX).await.unwrap();
    storage.discard_upload(&account(), upload.id()).await.unwrap();
    storage.discard_upload(&account(), upload.id()).await.unwrap();
    let error = upload.finish(StorageKey::random(), &sha256(&bytes)).await.unwrap_err();
    assert!(matches!(error, FinishError::Storage(StorageError::UploadMissing(_))), "{error}");
    assert_eq!(kinds(storage).await, []);
}

async fn a_deleted_blob_is_gone_and_may_be_deleted_again(storage: &Storage) {
    let key = store(storage, &data(600_000)).await.key;
    assert_eq!(kinds(storage).await, [ObjectKind::Blob(key.clone()), ObjectKind::Outboard(key.clone())]);
    for _ in 0..2 {
        storage.delete_blob(&account(), &key).await.unwrap();
    }
    assert_eq!(kinds(storage).await, []);
    assert_eq!(storage.blob_size_bytes(&account(), &key).await.unwrap(), None);
    let missing = storage.open_blob(&account(), &key, &[0; 32], 0..10).await.err().unwrap();
    assert!(matches!(missing, StorageError::BlobMissing(_)));
    let missing = storage.load_outboard(&account(), &key, &[0; 32]).await.unwrap_err();
    assert!(matches!(missing, StorageError::BlobMissing(_)));
}

async fn a_blob_deleted_while_being_read_is_read_to_its_end(storage: &Storage) {
    let bytes = data(2 * MI_B);
    let blob = store(storage, &bytes).await;
    let mut reader = open(storage, &blob, 0..bytes.len() as u64).await.unwrap();
    let mut got = reader.next().await.unwrap().unwrap().to_vec();
    assert_eq!(reader.left_bytes() as usize, bytes.len() - got.len());
    storage.delete_blob(&account(), &blob.key).await.unwrap();
    got.extend(reader.try_collect::<Vec<_>>().await.unwrap().concat());
    assert!(got == bytes);
}

async fn a_walk_finds_every_object_once_with_its_size(storage: &Storage) {
    assert_eq!(objects(storage).await, []);
    let before = std::time::SystemTime::now() - Duration::from_secs(5);
    let mut expected = Vec::new();
    for size in [0, 10, 300 * KI_B, 1000, 600 * KI_B] {
        let key = store(storage, &data(size)).await.key;
        expected.push((ObjectKind::Blob(key.clone()), size as u64));
        if size > 256 * KI_B {
            expected.push((ObjectKind::Outboard(key), outboard_size_bytes(size as u64)));
        }
    }
    let mut upload = begin(storage).await;
    upload.append(body(&data(77)), u64::MAX).await.unwrap();
    expected.push((ObjectKind::Upload(upload.id().clone()), 77));
    expected.sort();
    let found = objects(storage).await;
    assert!(found.iter().all(|object| object.modified > before));
    let found: Vec<_> = found.into_iter().map(|object| (object.kind, object.size_bytes)).collect();
    assert_eq!(found, expected);
}

async fn an_account_without_space_takes_no_uploads(storage: &Storage) {
    let other = AccountName::parse("other").unwrap();
    let error = storage.begin_upload(&other, &UploadId::random(), Algorithm::Sha256).await.err().unwrap();
    assert!(matches!(error, StorageError::SpaceMissing(account) if account == other));
    assert!(storage.list(&other).next_page(10).await.unwrap().is_empty());
    assert_eq!(storage.list_spaces().await.unwrap(), [account()]);
    storage.prepare_space(&other).await.unwrap();
    storage.prepare_space(&other).await.unwrap();
    storage.begin_upload(&other, &UploadId::random(), Algorithm::Sha256).await.unwrap();
    assert_eq!(storage.list_spaces().await.unwrap().len(), 2);
}

async fn a_removed_space_is_gone_with_everything_in_it(storage: &Storage) {
    let bytes = data(600_000);
    let key = store(storage, &bytes).await.key;
    for _ in 0..2 {
        storage.remove_space(&account()).await.unwrap();
    }
    assert_eq!(storage.blob_size_bytes(&account(), &key).await.unwrap(), None);
    assert_eq!(storage.list_spaces().await.unwrap(), []);
    storage.prepare_space(&account()).await.unwrap();
    assert_eq!(objects(storage).await, []);
    let blob = store(storage, &bytes).await;
    assert!(read(storage, &blob, 0..bytes.len() as u64).await.unwrap() == bytes);
}

async fn an_outboard_is_kept_and_a_lost_one_computed_again(storage: &Storage) {
    let bytes = data(3 * MI_B + 17);
    let blob = store(storage, &bytes).await;
    let other = PreOrderOutboard::<Vec<u8>>::create(std::io::Cursor::new(&bytes), BlockSize::from_chunk_log(8));
    let expected = Outboard { blob_size_bytes: bytes.len() as u64, pairs: other.unwrap().data.into() };
    let kept = storage.driver.get_outboard(&account(), &blob.key).unwrap().unwrap();
    assert_eq!(kept, expected.pairs);
    assert_eq!(storage.load_outboard(&account(), &blob.key, &blob.blake3).await.unwrap(), expected);
    for damaged in [&kept[1..], &[], &[7; 768]] {
        storage.driver.put_outboard(&account(), &blob.key, damaged).unwrap();
        assert_eq!(storage.load_outboard(&account(), &blob.key, &blob.blake3).await.unwrap(), expected);
        assert_eq!(storage.driver.get_outboard(&account(), &blob.key).unwrap().unwrap(), expected.pairs);
    }
    let corrupt = storage.load_outboard(&account(), &blob.key, &[1; 32]).await.unwrap_err();
    assert!(matches!(corrupt, StorageError::BlobCorrupt(_)));
    let small = store(storage, &data(256 * KI_B)).await;
    let outboard = storage.load_outboard(&account(), &small.key, &small.blake3).await.unwrap();
    assert_eq!(outboard, Outboard { blob_size_bytes: 256 * KI_B as u64, pairs: Bytes::new() });
}

async fn many_small_blobs_finish_side_by_side(storage: &Storage) {
    let bytes: Vec<_> = (0..48).map(|i| data(500 + i)).collect();
    let stored = futures_util::future::join_all(bytes.iter().map(|bytes| store(storage, bytes))).await;
    for (bytes, blob) in bytes.iter().zip(&stored) {
        assert_eq!(read(storage, blob, 0..blob.size_bytes).await.unwrap(), bytes[..]);
    }
    assert_eq!(objects(storage).await.len(), 48);
}
