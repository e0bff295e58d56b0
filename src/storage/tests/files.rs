//! What only files suffer: restarts, full disks, damage from outside.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::Command;

use super::*;

const MI_B: usize = 1024 * 1024;

/// A file system of its own, as small as wanted.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(size_bytes: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let size = format!("size={size_bytes},mode=755");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(directory.path()).output().unwrap();
        let said = String::from_utf8_lossy(&mounted.stderr);
        assert!(mounted.status.success(), "this test fills a disk and has to mount one: run it as root ({said})");
        Self(directory)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

fn file_of(root: &Path, key: &StorageKey) -> PathBuf {
    root.join("library/blobs").join(&key.as_str()[..2]).join(key.as_str())
}

async fn fills_up_and_recovers(storage: &Storage) {
    let filler = store(storage, &data(3 * MI_B)).await;
    let bytes = data(5 * MI_B);
    let mut upload = begin(storage).await;
    let error = upload.append(body(&bytes), u64::MAX).await.unwrap_err();
    assert!(matches!(error, AppendError::Storage(StorageError::Full)), "{error}");
    let size = upload.size_bytes();
    assert!((MI_B as u64..5 * MI_B as u64).contains(&size), "{size} bytes were written before the disk was full");
    let mut found = objects(storage).await;
    found.retain(|object| object.kind == ObjectKind::Upload(upload.id().clone()));
    assert_eq!(found[0].size_bytes, size, "what is on disk is what counts as written");

    storage.delete_blob(&account(), &filler.key).await.unwrap();
    upload.append(body(&bytes.slice(size as usize..)), u64::MAX).await.unwrap();
    let blob = upload.finish(StorageKey::random(), &sha256(&bytes)).await.unwrap();
    assert!(read(storage, &blob, 0..blob.size_bytes).await.unwrap() == bytes);
    storage.delete_blob(&account(), &blob.key).await.unwrap();

    let mut upload = begin(storage).await;
    upload.append(body(&data(9 * MI_B)), u64::MAX).await.unwrap_err();
    upload.discard().await.unwrap();
    assert_eq!(kinds(storage).await, []);
    store(storage, &bytes).await;
}

#[tokio::test]
async fn a_full_disk_is_told_and_gives_its_room_back() {
    let disk = SmallDisk::mount(6 * MI_B);
    fills_up_and_recovers(&prepared(filesystem(disk.0.path())).await).await;
}

#[tokio::test]
async fn a_full_memory_is_told_and_gives_its_room_back() {
    fills_up_and_recovers(&prepared(Storage::memory(MemoryOptions::new(6 * MI_B as u64))).await).await;
}

#[tokio::test]
async fn a_disk_without_room_for_the_outboard_keeps_nothing_of_the_blob() {
    let disk = SmallDisk::mount(2 * MI_B);
    let storage = prepared(filesystem(disk.0.path())).await;
    let bytes = data(MI_B);
    let mut upload = begin(&storage).await;
    upload.append(body(&bytes), u64::MAX).await.unwrap();
    let filler = disk.0.path().join("filler");
    let full = io::copy(&mut io::repeat(1), &mut fs::File::create(&filler).unwrap()).unwrap_err();
    assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    let error = upload.finish(StorageKey::random(), &sha256(&bytes)).await.unwrap_err();
    assert!(matches!(error, FinishError::Storage(StorageError::Full)), "{error}");
    assert_eq!(kinds(&storage).await, []);
    fs::remove_file(filler).unwrap();
    store(&storage, &bytes).await;
}

#[test]
fn a_large_upload_is_synced_early_and_beside_the_writing() {
    let root = tempfile::tempdir().unwrap();
    let driver = super::super::filesystem::FilesystemDriver::new(root.path().into()).unwrap();
    driver.prepare_space(&account()).unwrap();
    let mut staged = driver.create_upload(&account(), &UploadId::random()).unwrap();
    let pieces = vec![Bytes::from(vec![7; MI_B]); 31];
    staged.append(&pieces).unwrap();
    assert!(staged.early_sync().is_none(), "not worth it yet");
    staged.append(&pieces[..1]).unwrap();
    let early = staged.early_sync().unwrap();
    staged.append(&pieces).unwrap();
    staged.append(&pieces[..1]).unwrap();
    assert!(staged.early_sync().is_none(), "one is under way");
    early();
    staged.early_sync().unwrap()();
    let key = StorageKey::random();
    staged.publish(&key, &[]).unwrap();
    assert_eq!(driver.blob_size_bytes(&account(), &key).unwrap(), Some(64 * MI_B as u64));
}

#[test]
fn a_used_up_quota_counts_as_full() {
    let quota = StorageError::io("write to", "file")(io::Error::from_raw_os_error(libc::EDQUOT));
    assert!(matches!(quota, StorageError::Full));
}

#[tokio::test]
async fn blobs_and_uploads_outlive_the_process() {
    let root = tempfile::tempdir().unwrap();
    let bytes = data(MI_B + 1);
    let storage = prepared(filesystem(root.path())).await;
    let blob = store(&storage, &bytes).await;
    let mut upload = begin(&storage).await;
    let id = upload.id().clone();
    upload.append(body(&bytes.slice(..400_000)), u64::MAX).await.unwrap();
    upload.sync().await.unwrap();
    // As a crash leaves it: the handle never ended.
    std::mem::forget(upload);

    let storage = filesystem(root.path());
    assert!(read(&storage, &blob, 0..blob.size_bytes).await.unwrap() == bytes);
    let mut upload = storage.resume_upload(&account(), &id, Algorithm::Sha256).await.unwrap().unwrap();
    assert_eq!(upload.size_bytes(), 400_000);
    upload.append(body(&bytes.slice(400_000..)), u64::MAX).await.unwrap();
    let again = upload.finish(StorageKey::random(), &sha256(&bytes)).await.unwrap();
    assert_eq!((again.digest, again.blake3), (blob.digest, blob.blake3));
}

#[tokio::test]
async fn a_blob_cut_short_gives_an_error_before_or_in_the_midst_of_reading() {
    let root = tempfile::tempdir().unwrap();
    let storage = prepared(filesystem(root.path())).await;
    let blob = store(&storage, &data(2 * MI_B)).await;
    let mut reader = open(&storage, &blob, 0..blob.size_bytes).await.unwrap();
    reader.next().await.unwrap().unwrap();
    let file = fs::OpenOptions::new().write(true).open(file_of(root.path(), &blob.key)).unwrap();
    file.set_len(MI_B as u64 + 5).unwrap();

    let (mut read_bytes, mut error) = (PIECE_BYTES, None);
    while let Some(piece) = reader.next().await {
        match piece {
            Ok(piece) => read_bytes += piece.len(),
            Err(short) => assert!(error.replace(short).is_none(), "a stream ends with its first error"),
        }
    }
    assert_eq!(read_bytes, MI_B, "the piece that was cut cannot be checked, and is not handed out");
    assert!(matches!(error, Some(StorageError::BlobShort { expected_bytes, .. }) if expected_bytes == blob.size_bytes));
    let error = read(&storage, &blob, 0..blob.size_bytes).await.unwrap_err();
    assert!(matches!(error, StorageError::BlobShort { actual_bytes, .. } if actual_bytes == MI_B as u64 + 5));
}

#[tokio::test]
async fn a_changed_blob_is_found_out_by_hashing_it() {
    let root = tempfile::tempdir().unwrap();
    let storage = prepared(filesystem(root.path())).await;
    let bytes = data(MI_B);
    let blob = store(&storage, &bytes).await;
    let mut changed = bytes.to_vec();
    changed[MI_B / 2] ^= 1;
    fs::write(file_of(root.path(), &blob.key), &changed).unwrap();
    let found = storage.hash_blob(&account(), &blob.key, Algorithm::Sha256).await.unwrap();
    assert_eq!(found.digest, sha256(&changed));
    storage.driver.put_outboard(&account(), &blob.key, b"damaged").unwrap();
    let error = storage.load_outboard(&account(), &blob.key, &blob.blake3).await.unwrap_err();
    assert!(matches!(error, StorageError::BlobCorrupt(_)));
}

#[tokio::test]
async fn foreign_files_are_neither_listed_nor_touched() {
    let root = tempfile::tempdir().unwrap();
    let storage = prepared(filesystem(root.path())).await;
    let blob = store(&storage, &data(10)).await;
    let foreign = ["lost+found", "library/uploads/notes", "library/blobs/README", "library/blobs/00"];
    fs::create_dir_all(root.path().join("library/blobs/00/sub")).unwrap();
    for path in foreign.iter().filter(|path| !path.ends_with("00")) {
        fs::write(root.path().join(path), "not ours").unwrap();
    }
    assert_eq!(kinds(&storage).await, [ObjectKind::Blob(blob.key)]);
    assert_eq!(storage.list_spaces().await.unwrap(), [account()]);
    assert!(foreign.iter().all(|path| root.path().join(path).exists()));
}

#[tokio::test]
async fn a_space_removed_and_made_anew_behind_our_back_takes_blobs_again() {
    let root = tempfile::tempdir().unwrap();
    let storage = prepared(filesystem(root.path())).await;
    let bytes = data(600_000);
    let mut upload = begin(&storage).await;
    upload.append(body(&bytes), u64::MAX).await.unwrap();
    let key = StorageKey::random();
    let other = begin(&storage).await;
    let same_fan = StorageKey::parse(&format!("{}{}", &key.as_str()[..2], "0".repeat(30))).unwrap();
    other.finish(same_fan, &sha256(b"")).await.unwrap();
    fs::remove_dir_all(root.path().join("library/blobs")).unwrap();
    fs::create_dir(root.path().join("library/blobs")).unwrap();
    let blob = upload.finish(key, &sha256(&bytes)).await.unwrap();
    assert!(read(&storage, &blob, 0..bytes.len() as u64).await.unwrap() == bytes);
}

#[tokio::test]
async fn a_root_that_cannot_be_made_is_refused_with_its_name() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("file");
    fs::write(&file, "").unwrap();
    let error = Storage::filesystem(FilesystemOptions::new(file.join("sub"))).err().unwrap();
    assert!(error.to_string().contains("file/sub"), "{error}");
}

#[tokio::test]
async fn parts_that_are_in_memory_can_be_had_as_places_in_a_file() {
    use std::os::unix::fs::FileExt as _;
    let directory = tempfile::tempdir().unwrap();
    let storage = prepared(trusting_at_once(filesystem(directory.path()))).await;
    let bytes = data(3 * MI_B + 5);
    let blob = store(&storage, &bytes).await;
    assert!(open(&storage, &blob, 0..blob.size_bytes).await.unwrap().take_file_part(MI_B).is_none());
    assert!(read(&storage, &blob, 0..blob.size_bytes).await.unwrap() == bytes);
    let mut reader = open(&storage, &blob, 7..blob.size_bytes).await.unwrap();
    let (mut found, mut parts) = (Vec::new(), 0);
    while reader.left_bytes() > 0 {
        let Some(part) = reader.take_file_part(MI_B) else {
            found.extend_from_slice(&reader.next().await.unwrap().unwrap());
            continue;
        };
        let mut piece = vec![0; part.size_bytes];
        part.file.read_exact_at(&mut piece, part.offset).unwrap();
        found.extend_from_slice(&piece);
        parts += 1;
    }
    assert!(found == bytes[7..]);
    assert!(parts >= 2, "what was just written is in memory, but only {parts} parts were taken from there");

    // A blob that has become shorter has no such part at its end: reading it says what is wrong.
    let mut reader = open(&storage, &blob, 0..blob.size_bytes).await.unwrap();
    reader.next().await.unwrap().unwrap();
    fs::OpenOptions::new()
        .write(true)
        .open(file_of(directory.path(), &blob.key))
        .unwrap()
        .set_len(MI_B as u64)
        .unwrap();
    assert!(reader.take_file_part(3 * MI_B).is_none());
}

/// Has files remembered as right that were written a moment ago, at the price of not seeing two writes in one tick.
fn trusting_at_once(mut storage: Storage) -> Storage {
    storage.verified = Arc::new(VerifiedBlobs::new(Duration::MAX, Duration::ZERO));
    storage
}

/// Everything of a stream up to its first error.
async fn read_until_error(mut reader: BlobReader) -> (Vec<u8>, Option<StorageError>) {
    let mut bytes = Vec::new();
    while let Some(piece) = reader.next().await {
        match piece {
            Ok(piece) => bytes.extend_from_slice(&piece),
            Err(error) => return (bytes, Some(error)),
        }
    }
    (bytes, None)
}

#[tokio::test]
async fn no_changed_byte_leaves_a_file_whether_or_not_it_was_read_before() {
    let root = tempfile::tempdir().unwrap();
    let storage = prepared(trusting_at_once(filesystem(root.path()))).await;
    for size in [1000, 256 * 1024, 256 * 1024 + 1, 2 * MI_B + 77] {
        for was_read in [false, true] {
            let bytes = data(size);
            let blob = store(&storage, &bytes).await;
            if was_read {
                assert!(read(&storage, &blob, 0..size as u64).await.unwrap() == bytes);
                let known = &storage.verified;
                let file = storage.driver.open_blob(&account(), &blob.key).unwrap().unwrap();
                assert!(known.are_right(&blob.key, &file.imprint().unwrap(), 0..1), "{size}: nothing was remembered");
            }
            // Another tick of the clock that files are dated by.
            tokio::time::sleep(Duration::from_millis(30)).await;
            let path = file_of(root.path(), &blob.key);
            let before = fs::metadata(&path).unwrap().modified().unwrap();
            let mut changed = bytes.to_vec();
            let at = size - 1;
            changed[at] ^= 4;
            fs::write(&path, &changed).unwrap();
            // Whoever sets the time back hides nothing.
            fs::File::options().write(true).open(&path).unwrap().set_modified(before).unwrap();
            let (got, error) = match open(&storage, &blob, 0..size as u64).await {
                Ok(reader) => read_until_error(reader).await,
                Err(error) => (Vec::new(), Some(error)),
            };
            let right = at / (256 * 1024) * 256 * 1024;
            assert!(got == bytes[..right], "{size}: {} bytes", got.len());
            assert!(matches!(error, Some(StorageError::BlobCorrupt(_))), "{size}: {error:?}");
            // What is right of it is served still, what is not is not.
            if right > 0 {
                let some = right as u64 - 10;
                assert!(read(&storage, &blob, 5..some).await.unwrap() == bytes[5..some as usize]);
            }
            let error = read(&storage, &blob, at as u64..size as u64).await.unwrap_err();
            assert!(matches!(error, StorageError::BlobCorrupt(_)), "{size}: {error:?}");
        }
    }
}

#[tokio::test]
async fn a_file_changed_while_it_is_read_ends_in_an_error() {
    let root = tempfile::tempdir().unwrap();
    let storage = prepared(trusting_at_once(filesystem(root.path()))).await;
    let bytes = data(4 * MI_B);
    let blob = store(&storage, &bytes).await;
    assert!(read(&storage, &blob, 0..blob.size_bytes).await.unwrap() == bytes);
    tokio::time::sleep(Duration::from_millis(30)).await;
    let mut reader = open(&storage, &blob, 0..blob.size_bytes).await.unwrap();
    let mut got = reader.next().await.unwrap().unwrap().to_vec();
    assert!(reader.take_file_part(PIECE_BYTES).is_some());
    fs::write(file_of(root.path(), &blob.key), vec![0; bytes.len()]).unwrap();
    assert!(reader.take_file_part(PIECE_BYTES).is_none(), "it is not what it was");
    let (more, error) = read_until_error(reader).await;
    got.extend(more);
    assert!(got == bytes[..PIECE_BYTES]);
    assert!(matches!(error, Some(StorageError::BlobCorrupt(_))), "{error:?}");
}

#[tokio::test]
async fn parts_read_again_and_again_are_hashed_once_and_all_when_nothing_is_trusted() {
    let root = tempfile::tempdir().unwrap();
    let storage = prepared(trusting_at_once(filesystem(root.path()))).await;
    let bytes = data(2 * MI_B);
    let blob = store(&storage, &bytes).await;
    let known = |storage: &Storage, group: u64| {
        let file = storage.driver.open_blob(&account(), &blob.key).unwrap().unwrap();
        storage.verified.are_right(&blob.key, &file.imprint().unwrap(), group..group + 1)
    };
    let at = 5 * PIECE_BYTES as u64;
    assert!(read(&storage, &blob, at + 7..at + 9).await.unwrap() == bytes[at as usize + 7..at as usize + 9]);
    assert!(known(&storage, 5) && !known(&storage, 4) && !known(&storage, 6));
    let mut careful = storage.clone();
    careful.verified = Arc::new(VerifiedBlobs::new(Duration::ZERO, Duration::ZERO));
    for _ in 0..2 {
        assert!(read(&careful, &blob, 0..blob.size_bytes).await.unwrap() == bytes);
        assert!(!known(&careful, 0));
    }
}
