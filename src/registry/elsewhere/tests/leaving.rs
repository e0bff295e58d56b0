//! Blobs that were pulled, and left again.

use super::*;

#[tokio::test]
async fn a_blob_that_has_left_comes_again_while_somebody_still_holds_the_flight_that_brought_it() {
    let (there, here) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let other = open(&there);
    let clock = Arc::new(ManualClock::new(1_000_000));
    let metadata = Metadata::open(&here.path().join("metadata.db"), &MetadataOptions::default()).unwrap();
    let storage = Storage::filesystem(FilesystemOptions::new(here.path().join("storage"))).unwrap();
    let options = RegistryOptions { pulled_blobs_max_bytes: Some(1), ..RegistryOptions::default() };
    let registry = Registry::new(options, metadata, storage, clock.clone(), Arc::new(LocalClaims));
    let digest = digest_of_bytes(&content());
    let body = stream::iter([Ok::<_, crate::registry::BodyError>(Bytes::from(content()))]);
    other.put_blob(&app(), &digest, None, body).await.unwrap();
    let (fault, asked, blob) = (Fault::None, AtomicUsize::new(0), digest);
    registry.connect(Arc::new(OtherRegion { registry: other, fault, asked, blob, is_replica: false }));
    registry.ensure_accounts(vec![app().account()]).await.unwrap();
    let read = async |blob: &crate::registry::BlobInfo| {
        let stream = registry.open_blob(blob, 0..blob.size_bytes).await.unwrap();
        let read = stream.try_collect::<Vec<_>>().await.map(|pieces| pieces.concat() == content());
        settled(&registry, &digest).await;
        read
    };
    let slow = registry.load_blob(&app(), &digest, true).await.unwrap();
    assert!(read(&registry.load_blob(&app(), &digest, true).await.unwrap()).await.unwrap());
    for _ in 0..2 {
        clock.advance(601);
        assert_eq!(registry.evict_pulled().await.unwrap(), content().len() as u64);
        assert!(registry.load_local_blob(&app(), &digest).await.is_err());
        assert!(read(&registry.load_blob(&app(), &digest, true).await.unwrap()).await.unwrap());
        assert!(registry.load_local_blob(&app(), &digest).await.is_ok(), "it was fetched, not only passed through");
    }
    clock.advance(601);
    registry.evict_pulled().await.unwrap();
    assert!(read(&slow).await.unwrap(), "who held the flight gets all of it, from wherever it is");
}
