use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use keppel_federation::vocabulary::{Digest, NodeId};
use sha2::Digest as _;

use super::*;
use crate::metadata::{Metadata, MetadataOptions};
use crate::model::ManualClock;
use crate::registry::{LocalClaims, Page, Referrer, RegistryOptions};
use crate::storage::{BEGINNING_BYTES, FilesystemOptions, Storage};
use futures_util::FutureExt as _;
use std::time::Duration;

mod crowded;
mod leaving;
mod platforms;
mod sources;

const PART: usize = board::PART_BYTES as usize;

/// What the other region does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// The first answers are wrong, each about another part.
    WrongAtFirst,
    /// Every part but the beginning is wrong.
    Wrong,
    /// Parts are shorter than asked for.
    Short,
    /// It cannot be reached for a while.
    Away,
    /// Hashes and parts agree with each other, but not with the digest.
    AnotherBlob,
    /// It says what the blob is, and no part ever comes.
    NoParts,
    /// What is to prove the beginning does not.
    WrongProof,
    /// It is older than beginnings that are no whole group.
    Older,
}

/// Another region, with a registry of its own.
struct OtherRegion {
    registry: Registry,
    fault: Fault,
    asked: AtomicUsize,
    blob: Digest,
    /// Whether the region that asks holds a replica.
    is_replica: bool,
}

impl OtherRegion {
    /// What it takes for the blob of a digest.
    fn taken_for(&self, digest: &Digest) -> Digest {
        match self.fault {
            Fault::AnotherBlob => self.blob,
            _ => *digest,
        }
    }

    async fn read(&self, repository: &RepositoryName, digest: &Digest, range: Range<u64>) -> Bytes {
        let blob = self.registry.load_local_blob(repository, &self.taken_for(digest)).await.unwrap();
        // As any node does: who asks may not know the size yet.
        let range = range.start.min(blob.size_bytes)..range.end.min(blob.size_bytes);
        let stream = self.registry.open_blob(&blob, range).await.unwrap();
        stream.try_collect::<Vec<_>>().await.unwrap().concat().into()
    }
}

fn unasked<T>() -> Result<T, RegistryError> {
    Err(RegistryError::Interrupted)
}

#[async_trait]
impl Upstream for OtherRegion {
    fn primary(&self, _: &AccountName) -> Option<Primary> {
        Some(Primary { node: NodeId::from_public_key([1; 32]), region: "eu".into() })
    }

    fn node(&self) -> NodeId {
        NodeId::from_public_key([2; 32])
    }

    fn others(&self, _: &AccountName) -> Vec<Primary> {
        Vec::new()
    }

    fn keeps_content(&self, _: &AccountName) -> bool {
        self.is_replica
    }

    async fn manifest(
        &self,
        _: &Primary,
        _: &RepositoryName,
        _: &Reference,
        _: Option<&Digest>,
    ) -> Result<RemoteManifest, RegistryError> {
        let media_type = "application/vnd.oci.image.manifest.v1+json".to_owned();
        let bytes = Some(Bytes::from_static(b"{}"));
        let digest = self.blob;
        Ok(RemoteManifest { digest, media_type, bytes, is_stale: false, layers_created_at: None, facts: None })
    }

    async fn blob_size_bytes(&self, _: &Primary, _: &RepositoryName, _: &Digest) -> Result<u64, RegistryError> {
        unasked()
    }

    async fn open_blob(
        &self,
        _: &Primary,
        repository: &RepositoryName,
        digest: &Digest,
        opening: BlobOpening,
    ) -> Result<RemoteBlob, RegistryError> {
        let name = self.taken_for(digest);
        let mut blob = self.registry.open_blob_for(self.node(), repository, &name, opening, Duration::ZERO).await?;
        match self.fault {
            Fault::WrongProof => blob.proof[1][5] ^= 1,
            Fault::Older => (blob.beginning, blob.proof) = (Bytes::new(), Vec::new()),
            _ => {}
        }
        Ok(blob)
    }

    async fn blob_part(
        &self,
        _: &Primary,
        repository: &RepositoryName,
        digest: &Digest,
        range: Range<u64>,
        _: Duration,
        _: Priority,
    ) -> Result<Bytes, RegistryError> {
        let asked = self.asked.fetch_add(1, Ordering::SeqCst);
        if self.fault == Fault::NoParts {
            std::future::pending::<()>().await;
        }
        let right = self.read(repository, digest, range.clone()).await;
        let mut wrong = right.to_vec();
        if let Some(byte) = wrong.get_mut(right.len() / 2) {
            *byte ^= 1;
        }
        match self.fault {
            Fault::Wrong => Ok(wrong.into()),
            Fault::WrongAtFirst if asked < 3 => Ok(wrong.into()),
            Fault::Short => Ok(right.slice(..right.len().saturating_sub(1))),
            Fault::Away if asked < 3 => Err(RegistryError::PrimaryUnreachable {
                account: repository.account(),
                region: "eu".into(),
                reason: "the link is cut".into(),
            }),
            _ => Ok(right),
        }
    }

    async fn tags(
        &self,
        _: &Primary,
        _: &RepositoryName,
        _: Option<&str>,
        _: usize,
    ) -> Result<Page<String>, RegistryError> {
        unasked()
    }

    async fn referrers(
        &self,
        _: &Primary,
        _: &RepositoryName,
        _: &Digest,
        _: Option<&str>,
        _: Option<&Digest>,
        _: usize,
    ) -> Result<Page<Referrer>, RegistryError> {
        unasked()
    }

    async fn mount(
        &self,
        _: &Primary,
        _: &RepositoryName,
        _: &Digest,
        _: Option<&RepositoryName>,
    ) -> Result<bool, RegistryError> {
        unasked()
    }

    async fn put_manifest(
        &self,
        _: &Primary,
        _: &RepositoryName,
        _: &ManifestTarget,
        _: Option<&str>,
        _: Bytes,
    ) -> Result<PutManifest, RegistryError> {
        unasked()
    }

    async fn delete(&self, _: &Primary, _: &RepositoryName, _: &Deletion) -> Result<(), RegistryError> {
        unasked()
    }
}

fn open(directory: &tempfile::TempDir) -> Registry {
    open_with(directory, RegistryOptions::default())
}

fn open_with(directory: &tempfile::TempDir, options: RegistryOptions) -> Registry {
    let metadata = Metadata::open(&directory.path().join("metadata.db"), &MetadataOptions::default()).unwrap();
    let storage = Storage::filesystem(FilesystemOptions::new(directory.path().join("storage"))).unwrap();
    let options = RegistryOptions { create_accounts_on_push: true, ..options };
    Registry::new(options, metadata, storage, Arc::new(ManualClock::new(1_000_000)), Arc::new(LocalClaims))
}

fn app() -> RepositoryName {
    RepositoryName::parse("acme/app").unwrap()
}

fn content() -> Vec<u8> {
    (0..5 * PART + 77).map(|at| (at % 241) as u8 ^ (at >> 11) as u8).collect()
}

fn digest_of_bytes(bytes: &[u8]) -> Digest {
    Digest::from_sha256(sha2::Sha256::digest(bytes).into())
}

/// A registry, empty, beside a region with this fault that has the blob named by the digest.
async fn beside(fault: Fault) -> (Registry, Arc<OtherRegion>, Digest, [tempfile::TempDir; 2]) {
    let (there, here) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (other, registry) = (open(&there), open(&here));
    let stored = content();
    let blob = digest_of_bytes(&stored);
    let body = stream::iter([Ok::<_, crate::registry::BodyError>(Bytes::from(stored.clone()))]);
    other.put_blob(&app(), &blob, None, body).await.unwrap();
    let digest = match fault {
        Fault::AnotherBlob => digest_of_bytes(b"something else"),
        _ => blob,
    };
    let other = Arc::new(OtherRegion { registry: other, fault, asked: AtomicUsize::new(0), blob, is_replica: false });
    registry.connect(other.clone());
    (registry, other, digest, [there, here])
}

/// Waits until a blob that was just pulled is here for good, if it is to be: its last bytes go out a moment before.
async fn settled(registry: &Registry, digest: &Digest) {
    if let Some(flight) = registry.inner.flights.under_way(&app(), digest) {
        let _ = flight.stored().await;
    }
}

/// Pulls a range of a blob from a region with this fault: what the client got before the end or the error, and whether
/// the blob is here afterwards.
async fn pull(fault: Fault, range: Option<Range<u64>>) -> (Vec<u8>, Result<(), RegistryError>, bool) {
    let (registry, _other, digest, _directories) = beside(fault).await;
    let found = registry.load_blob(&app(), &digest, true).await.unwrap();
    let range = range.unwrap_or(0..found.size_bytes);
    let mut bytes = registry.open_blob(&found, range).await.unwrap();
    let (mut got, mut outcome) = (Vec::new(), Ok(()));
    while let Some(piece) = bytes.next().await {
        match piece {
            Ok(piece) => got.extend_from_slice(&piece),
            Err(error) => outcome = Err(error),
        }
    }
    drop(bytes);
    settled(&registry, &digest).await;
    let is_here = registry.load_local_blob(&app(), &digest).await.is_ok();
    (got, outcome, is_here)
}

#[tokio::test]
async fn a_blob_comes_whole_and_stays() {
    for fault in [Fault::None, Fault::WrongAtFirst, Fault::Away, Fault::Older] {
        let (got, outcome, is_here) = pull(fault, None).await;
        outcome.unwrap();
        assert!(got == content() && is_here, "{fault:?}");
    }
}

#[tokio::test]
async fn a_blob_begins_before_any_part_of_it_has_come() {
    let (registry, _other, digest, _directories) = beside(Fault::NoParts).await;
    for range in [0..content().len() as u64, 5..100_000] {
        let begin = range.start as usize;
        let blob = registry.load_blob(&app(), &digest, true).await.unwrap();
        let mut bytes = registry.open_blob(&blob, range).await.unwrap();
        let first = tokio::time::timeout(Duration::from_secs(5), bytes.next()).await.unwrap().unwrap().unwrap();
        assert!(first == content()[begin..BEGINNING_BYTES as usize], "{} bytes", first.len());
        assert!(bytes.next().now_or_never().is_none(), "the rest waits for its parts");
    }
}

#[tokio::test]
async fn a_beginning_that_is_not_proved_is_refused() {
    let (registry, _other, digest, _directories) = beside(Fault::WrongProof).await;
    let refused = registry.load_blob(&app(), &digest, true).await.err().unwrap();
    assert!(matches!(refused, RegistryError::PrimaryUnreachable { .. }), "{refused}");
}

#[tokio::test]
async fn no_byte_is_asked_for_twice_where_nothing_goes_wrong() {
    let (registry, other, digest, _directories) = beside(Fault::None).await;
    let blob = registry.load_blob(&app(), &digest, true).await.unwrap();
    let bytes = registry.open_blob(&blob, 0..blob.size_bytes).await.unwrap();
    assert!(bytes.try_collect::<Vec<_>>().await.unwrap().concat() == content());
    let parts = (content().len() as u64 - board::FIRST_PART_BYTES).div_ceil(board::PART_BYTES);
    assert_eq!(other.asked.load(Ordering::SeqCst) as u64, parts + 1, "the rest of the first, and all others");
}

#[tokio::test]
async fn a_part_of_a_blob_comes_alone() {
    let range = (PART - 3) as u64..(3 * PART + 9) as u64;
    let (got, outcome, is_here) = pull(Fault::None, Some(range.clone())).await;
    outcome.unwrap();
    assert!(got == content()[range.start as usize..range.end as usize] && !is_here);
}

#[tokio::test]
async fn wrong_bytes_never_reach_a_client_nor_the_storage() {
    for fault in [Fault::Wrong, Fault::Short, Fault::AnotherBlob] {
        let (got, outcome, is_here) = pull(fault, None).await;
        let error = outcome.unwrap_err();
        assert!(matches!(error, RegistryError::PrimaryUnreachable { .. }), "{fault:?}: {error}");
        assert!(got.len() < content().len() && got == content()[..got.len()] && !is_here, "{fault:?}");
    }
    let (got, outcome, _) = pull(Fault::Wrong, Some(PART as u64..2 * PART as u64)).await;
    assert!(got.is_empty() && outcome.is_err());
}

#[tokio::test]
async fn a_manifest_that_is_not_what_its_digest_says_is_refused() {
    let (there, here) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (other, registry) = (open(&there), open(&here));
    let blob = Digest::from_sha256([9; 32]);
    registry.connect(Arc::new(OtherRegion {
        registry: other,
        fault: Fault::None,
        asked: AtomicUsize::new(0),
        blob,
        is_replica: false,
    }));
    for reference in [Reference::parse("v1").unwrap(), Reference::Digest(blob)] {
        let refused = registry.load_manifest(&app(), &reference).await.unwrap_err();
        assert!(matches!(refused, RegistryError::PrimaryUnreachable { .. }), "{refused}");
    }
}

#[tokio::test]
async fn what_merely_passed_through_goes_when_there_is_no_room_for_it_and_comes_again() {
    let (there, here) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let other = open(&there);
    let clock = Arc::new(ManualClock::new(1_000_000));
    let metadata = Metadata::open(&here.path().join("metadata.db"), &MetadataOptions::default()).unwrap();
    let storage = Storage::filesystem(FilesystemOptions::new(here.path().join("storage"))).unwrap();
    let room = 3 * PART as u64;
    let options = RegistryOptions {
        pulled_blobs_max_bytes: Some(room),
        create_accounts_on_push: true,
        ..RegistryOptions::default()
    };
    let registry = Registry::new(options, metadata, storage, clock.clone(), Arc::new(LocalClaims));
    let content = |byte: u8| Bytes::from(vec![byte; PART + usize::from(byte)]);
    let push = async |registry: &Registry, byte: u8| {
        let digest = digest_of_bytes(&content(byte));
        let body = stream::iter([Ok::<_, crate::registry::BodyError>(content(byte))]);
        registry.put_blob(&app(), &digest, None, body).await.unwrap();
        digest
    };
    let mut blobs = Vec::new();
    for byte in 1..=4 {
        blobs.push(push(&other, byte).await);
    }
    let fault = Fault::None;
    let (asked, blob) = (AtomicUsize::new(0), blobs[0]);
    registry.connect(Arc::new(OtherRegion { registry: other, fault, asked, blob, is_replica: false }));
    registry.ensure_accounts(vec![app().account()]).await.unwrap();
    let pull = async |byte: u8| {
        let digest = digest_of_bytes(&content(byte));
        let blob = registry.load_blob(&app(), &digest, true).await.unwrap();
        let stream = registry.open_blob(&blob, 0..blob.size_bytes).await.unwrap();
        assert!(stream.try_collect::<Vec<_>>().await.unwrap().concat() == content(byte));
        settled(&registry, &digest).await;
    };
    let is_here = async |byte: u8| {
        let digest = digest_of_bytes(&content(byte));
        let name = app();
        let row = registry.metadata().read(move |reader| reader.get_blob_by_name(name.as_str(), &digest));
        row.await.unwrap().is_some()
    };
    // Pushed here, for an account of another region: not even after it was pulled is it ours to lose.
    push(&registry, 9).await;
    for byte in 1..=4 {
        pull(byte).await;
        clock.advance(1);
    }
    push(&registry, 1).await;
    assert_eq!(registry.evict_pulled().await.unwrap(), 0, "all of it was used a moment ago");
    clock.advance(601);
    pull(2).await;
    let reading = registry.load_blob(&app(), &blobs[2], true).await.unwrap();
    let reading = registry.open_blob(&reading, 0..PART as u64).await.unwrap();
    clock.advance(601);
    pull(2).await;
    pull(1).await;
    // 2, 3 and 4 are too much together. 3 was used after 4, and 2 just now.
    assert_eq!(registry.evict_pulled().await.unwrap(), PART as u64 + 4);
    let left = [is_here(1).await, is_here(2).await, is_here(3).await, is_here(4).await, is_here(9).await];
    assert_eq!(left, [true, true, true, false, true]);
    assert_eq!(registry.evict_pulled().await.unwrap(), 0);
    pull(4).await;
    clock.advance(601);
    pull(2).await;
    assert_eq!(registry.evict_pulled().await.unwrap(), PART as u64 + 3);
    assert!(reading.try_collect::<Vec<_>>().await.unwrap().concat() == content(3)[..PART], "a reader goes on");
    pull(3).await;
    assert!(is_here(3).await && is_here(1).await && is_here(9).await);

    // What the primary asks to be kept stays, also when its bytes went bad and were fetched anew.
    let primary = NodeId::from_public_key([1; 32]);
    assert!(
        registry.keep_blobs(NodeId::from_public_key([2; 32]), &app(), &blobs[2..]).await.is_err(),
        "not the primary"
    );
    registry.keep_blobs(primary, &app(), &blobs[2..]).await.unwrap();
    clock.advance(10_000);
    let (name, digest) = (app(), blobs[2]);
    let row = registry.metadata().read(move |reader| reader.get_blob_by_name(name.as_str(), &digest)).await;
    assert!(registry.mark_broken(&row.unwrap().unwrap()).await.unwrap());
    pull(3).await;
    pull(2).await;
    let noted = registry.metadata().read(|reader| reader.pulled_size_bytes()).await.unwrap();
    assert_eq!(noted, PART as u64 + 2, "2 is all that merely passed through");
    clock.advance(10_000);
    registry.evict_pulled().await.unwrap();
    assert!(is_here(3).await && is_here(4).await);
}
