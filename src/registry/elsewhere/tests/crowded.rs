//! More blobs asked for than may be on their way.

use super::*;
use crate::registry::BodyError;

/// A registry that may have `max` blobs on their way, beside a region that has so many.
async fn crowded(max: usize, blobs: usize) -> (Registry, Vec<Digest>, [tempfile::TempDir; 2]) {
    let (there, here) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let other = open(&there);
    let registry = open_with(&here, RegistryOptions { pulled_transfers_max: max, ..RegistryOptions::default() });
    let mut digests = Vec::new();
    for number in 0..blobs {
        let content = [content(), vec![number as u8]].concat();
        let digest = digest_of_bytes(&content);
        let body = stream::iter([Ok::<_, BodyError>(Bytes::from(content))]);
        other.put_blob(&app(), &digest, None, body).await.unwrap();
        digests.push(digest);
    }
    let (asked, blob) = (AtomicUsize::new(0), digests[0]);
    registry.connect(Arc::new(OtherRegion { registry: other, fault: Fault::None, asked, blob, is_replica: false }));
    (registry, digests, [there, here])
}

async fn read(registry: &Registry, digest: &Digest) -> usize {
    let blob = registry.load_blob(&app(), digest, true).await.unwrap();
    let all = registry.open_blob(&blob, 0..blob.size_bytes).await.unwrap();
    all.try_fold(0, |bytes, piece| async move { Ok(bytes + piece.len()) }).await.unwrap()
}

#[tokio::test]
async fn so_many_blobs_are_on_their_way_and_the_next_waits_until_one_is_here() {
    // A quarter of four for the one account.
    let (registry, digests, _directories) = crowded(4, 3).await;
    let first = registry.load_blob(&app(), &digests[0], true).await.unwrap();
    let waiting = tokio::spawn({
        let (registry, digest) = (registry.clone(), digests[1]);
        async move { read(&registry, &digest).await }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!waiting.is_finished(), "there was room for one");
    // Who asks for the same blob waits for nothing.
    let size_bytes = read(&registry, &digests[0]).await;
    assert_eq!(size_bytes as u64, first.size_bytes);
    assert_eq!(waiting.await.unwrap(), size_bytes, "one is here, though its first client still has it");
    // What is here needs no room.
    let third = registry.load_blob(&app(), &digests[2], true).await.unwrap();
    settled(&registry, &digests[1]).await;
    assert_eq!(read(&registry, &digests[1]).await, size_bytes);
    drop((first, third));
    assert_eq!(read(&registry, &digests[2]).await, size_bytes);
}

#[tokio::test]
async fn whoever_finds_the_line_full_is_told_to_come_again() {
    let (registry, digests, _directories) = crowded(1, 6).await;
    let first = registry.load_blob(&app(), &digests[0], true).await.unwrap();
    let wait = |digest: Digest| {
        let registry = registry.clone();
        tokio::spawn(async move { read(&registry, &digest).await })
    };
    // Of four who may wait, one of one account.
    let waiting = wait(digests[1]);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let refused = registry.load_blob(&app(), &digests[2], true).await.map(|_| ());
    assert!(matches!(refused, Err(RegistryError::TooManyTransfers { .. })), "{refused:?}");
    // A push does not wait for them, nor a copy.
    registry.keep_blobs(NodeId::from_public_key([1; 32]), &app(), &digests[3..4]).await.unwrap();
    drop(first);
    assert!(waiting.await.unwrap() > 0);
    assert!(read(&registry, &digests[2]).await > 0);
}
