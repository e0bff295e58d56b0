//! One suite for all drivers, and what only files can suffer.

mod files;
mod suite;

use std::convert::Infallible;
use std::path::Path;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};
use keppel_federation::vocabulary::{AccountName, Algorithm, Digest, StorageKey, UploadId};
use sha2::Digest as _;

use super::*;

fn account() -> AccountName {
    AccountName::parse("library").unwrap()
}

/// Bytes that differ from one another over any distance.
fn data(size_bytes: usize) -> Bytes {
    let mut state = size_bytes as u64 ^ 0x9e37_79b9_7f4a_7c15;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let words = (0..size_bytes.div_ceil(8)).flat_map(|_| next().to_le_bytes());
    words.take(size_bytes).collect::<Vec<_>>().into()
}

fn sha256(bytes: &[u8]) -> Digest {
    Digest::from_hash(Algorithm::Sha256, &sha2::Sha256::digest(bytes)).unwrap()
}

fn sha512(bytes: &[u8]) -> Digest {
    Digest::from_hash(Algorithm::Sha512, &sha2::Sha512::digest(bytes)).unwrap()
}

/// A body in pieces of the size in which a socket gives them.
fn body(bytes: &Bytes) -> impl Stream<Item = Result<Bytes, Infallible>> + use<> {
    let bytes = bytes.clone();
    let starts = (0..bytes.len()).step_by(14_321);
    let pieces: Vec<_> = starts.map(|at| bytes.slice(at..bytes.len().min(at + 14_321))).collect();
    stream::iter(pieces.into_iter().map(Ok))
}

async fn begin(storage: &Storage) -> Upload {
    storage.begin_upload(&account(), &UploadId::random(), Algorithm::Sha256).await.unwrap()
}

async fn store(storage: &Storage, bytes: &Bytes) -> StoredBlob {
    let mut upload = begin(storage).await;
    assert_eq!(upload.append(body(bytes), u64::MAX).await.unwrap(), bytes.len() as u64);
    upload.finish(StorageKey::random(), &sha256(bytes)).await.unwrap()
}

async fn read(storage: &Storage, blob: &StoredBlob, range: Range<u64>) -> Result<Vec<u8>, StorageError> {
    let reader = open(storage, blob, range).await?;
    let pieces: Vec<Bytes> = reader.try_collect().await?;
    Ok(pieces.concat())
}

async fn open(storage: &Storage, blob: &StoredBlob, range: Range<u64>) -> Result<BlobReader, StorageError> {
    storage.open_blob(&account(), &blob.key, &blob.blake3, range).await
}

async fn objects(storage: &Storage) -> Vec<StoredObject> {
    let mut listing = storage.list(&account());
    let mut objects = Vec::new();
    loop {
        let page = listing.next_page(3).await.unwrap();
        assert!(page.len() <= 3);
        if page.is_empty() {
            objects.sort_by_key(|object: &StoredObject| object.kind.clone());
            return objects;
        }
        objects.extend(page);
    }
}

async fn kinds(storage: &Storage) -> Vec<ObjectKind> {
    objects(storage).await.into_iter().map(|object| object.kind).collect()
}

fn filesystem(root: &Path) -> Storage {
    Storage::filesystem(FilesystemOptions::new(root)).unwrap()
}

async fn prepared(storage: Storage) -> Storage {
    storage.prepare_space(&account()).await.unwrap();
    storage
}
