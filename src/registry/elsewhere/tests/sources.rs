//! Blobs from several nodes, some of which do something wrong.

use std::collections::BTreeMap;
use std::sync::Mutex;

use super::*;

/// What a node does when it is asked about a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Right,
    /// Its hashes are right, its parts are not.
    WrongParts,
    /// It gives another blob's hashes, and parts that fit them.
    AnotherBlob,
    /// It says that the blob has another size.
    WrongSize,
    /// It says what the blob is, and then nothing.
    Silent,
    /// It cannot be reached any more after so many parts.
    GoneAfter(usize),
    /// It cannot be reached.
    Gone,
    /// It does not have the blob.
    Empty,
}

/// Some nodes: the first is the primary, and names all others as holders.
struct Nodes {
    registry: Registry,
    ways: Vec<Way>,
    /// How many of them, from the second on, are in the asker's region.
    near: usize,
    other_blob: Digest,
    parts: Mutex<BTreeMap<NodeId, usize>>,
    led: AtomicUsize,
}

fn node(number: usize) -> NodeId {
    NodeId::from_public_key([number as u8 + 1; 32])
}

impl Nodes {
    fn number_of(&self, whom: &Primary) -> usize {
        (0..self.ways.len()).find(|number| node(*number) == whom.node).unwrap()
    }

    fn primary_of(&self, number: usize) -> Primary {
        let region = if (1..=self.near).contains(&number) { "here" } else { "there" };
        Primary { node: node(number), region: region.into() }
    }

    fn parts_of(&self, number: usize) -> usize {
        self.parts.lock().unwrap().get(&node(number)).copied().unwrap_or_default()
    }
}

fn unreachable(repository: &RepositoryName) -> RegistryError {
    let reason = "the link is cut".into();
    RegistryError::PrimaryUnreachable { account: repository.account(), region: "there".into(), reason }
}

#[async_trait]
impl Upstream for Nodes {
    fn primary(&self, _: &AccountName) -> Option<Primary> {
        Some(self.primary_of(0))
    }

    fn others(&self, _: &AccountName) -> Vec<Primary> {
        (1..self.ways.len()).map(|number| self.primary_of(number)).collect()
    }

    fn node(&self) -> NodeId {
        node(100)
    }

    fn region(&self) -> Option<String> {
        Some("here".into())
    }

    fn neighbours(&self) -> Vec<Primary> {
        (1..=self.near).map(|number| self.primary_of(number)).collect()
    }

    fn holder(&self, whom: NodeId) -> Option<Primary> {
        (0..self.ways.len()).find(|number| node(*number) == whom).map(|number| self.primary_of(number))
    }

    fn round_trip(&self, _: NodeId) -> Option<Duration> {
        Some(Duration::from_millis(20))
    }

    async fn open_blob(
        &self,
        from: &Primary,
        repository: &RepositoryName,
        digest: &Digest,
        opening: BlobOpening,
    ) -> Result<RemoteBlob, RegistryError> {
        let number = self.number_of(from);
        self.led.fetch_add(usize::from(opening.to_lead), Ordering::SeqCst);
        let name = match self.ways[number] {
            Way::Gone => return Err(unreachable(repository)),
            Way::Empty => return Err(RegistryError::BlobUnknown { digest: *digest }),
            Way::AnotherBlob => self.other_blob,
            _ => *digest,
        };
        let asker = self.node();
        let mut blob = self.registry.open_blob_for(asker, repository, &name, opening, Duration::ZERO).await?;
        if self.ways[number] == Way::WrongSize {
            blob.size_bytes += 1;
        }
        if number == 0 {
            blob.holders = (1..self.ways.len()).map(node).collect();
        }
        Ok(blob)
    }

    async fn blob_part(
        &self,
        from: &Primary,
        repository: &RepositoryName,
        digest: &Digest,
        range: Range<u64>,
        wait: Duration,
        _: Priority,
    ) -> Result<Bytes, RegistryError> {
        let number = self.number_of(from);
        let given = {
            let mut parts = self.parts.lock().unwrap();
            let given = parts.entry(from.node).or_default();
            *given += 1;
            *given
        };
        tokio::time::sleep(Duration::from_millis(2)).await;
        let name = match self.ways[number] {
            Way::Gone => return Err(unreachable(repository)),
            Way::GoneAfter(parts) if given > parts => return Err(unreachable(repository)),
            Way::Empty => return Err(RegistryError::BlobUnknown { digest: *digest }),
            Way::Silent => std::future::pending().await,
            Way::AnotherBlob => self.other_blob,
            _ => *digest,
        };
        let mut part = self.registry.read_blob_for(repository, &name, range, wait).await?.concat();
        if self.ways[number] == Way::WrongParts {
            part[7] ^= 1;
        }
        Ok(part.into())
    }

    async fn manifest(
        &self,
        _: &Primary,
        _: &RepositoryName,
        _: &Reference,
        _: Option<&Digest>,
    ) -> Result<RemoteManifest, RegistryError> {
        unasked()
    }

    async fn blob_size_bytes(&self, _: &Primary, _: &RepositoryName, _: &Digest) -> Result<u64, RegistryError> {
        unasked()
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

fn large() -> Vec<u8> {
    (0..24 * PART + 77).map(|at| (at % 239) as u8 ^ (at >> 13) as u8).collect()
}

/// A registry, empty, and the nodes that it may ask; those that have the blob have all of `large`.
async fn site(ways: &[Way], near: usize) -> (Registry, Arc<Nodes>, Digest, [tempfile::TempDir; 2]) {
    let (there, here) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (other, registry) = (open(&there), open(&here));
    let mut digests = Vec::new();
    for bytes in [large(), large().into_iter().map(|byte| byte ^ 0x55).collect()] {
        let digest = digest_of_bytes(&bytes);
        let body = stream::iter([Ok::<_, crate::registry::BodyError>(Bytes::from(bytes))]);
        other.put_blob(&app(), &digest, None, body).await.unwrap();
        digests.push(digest);
    }
    let nodes = Arc::new(Nodes {
        registry: other,
        ways: ways.to_vec(),
        near,
        other_blob: digests[1],
        parts: Mutex::default(),
        led: AtomicUsize::new(0),
    });
    registry.connect(nodes.clone());
    (registry, nodes, digests[0], [there, here])
}

async fn pull_all(registry: &Registry, digest: &Digest) -> Result<Vec<u8>, RegistryError> {
    let blob = registry.load_blob(&app(), digest, true).await?;
    let bytes = registry.open_blob(&blob, 0..blob.size_bytes).await?;
    let all = bytes.try_collect::<Vec<_>>().await?.concat();
    settled(registry, digest).await;
    Ok(all)
}

#[tokio::test]
async fn a_blob_comes_from_all_who_have_it() {
    let (registry, nodes, digest, _folders) = site(&[Way::Right, Way::Right, Way::Right], 0).await;
    assert!(pull_all(&registry, &digest).await.unwrap() == large());
    assert!((0..3).all(|number| nodes.parts_of(number) > 0), "{:?}", nodes.parts);
    let asked: usize = (0..3).map(|number| nodes.parts_of(number)).sum();
    assert!(asked <= 26, "{asked} parts for 24");
}

#[tokio::test]
async fn one_that_lies_says_nothing_or_vanishes_is_replaced_without_the_client_noticing() {
    for bad in [Way::WrongParts, Way::Silent, Way::GoneAfter(2), Way::Gone, Way::Empty] {
        for (ways, good) in [([Way::Right, bad], 0), ([bad, Way::Right], 1)] {
            let is_primary_unable = ways[0] == Way::Empty;
            let (registry, nodes, digest, _folders) = site(&ways, 0).await;
            match pull_all(&registry, &digest).await {
                Ok(bytes) => assert!(bytes == large(), "{ways:?}"),
                // What the primary does not have, there is not.
                Err(RegistryError::BlobUnknown { .. }) if is_primary_unable => continue,
                Err(error) => panic!("{ways:?}: {error}"),
            }
            assert!(nodes.parts_of(good) > 0, "{ways:?}");
            registry.load_local_blob(&app(), &digest).await.unwrap();
            if bad == Way::WrongParts && good == 0 {
                let given = nodes.parts_of(1);
                // It is not asked again for a while.
                pull_all(&registry, &nodes.other_blob).await.unwrap();
                assert_eq!(nodes.parts_of(1), given);
            }
        }
    }
}

#[tokio::test]
async fn a_part_of_a_blob_comes_from_another_node_when_the_first_lies() {
    let (registry, _nodes, digest, _folders) = site(&[Way::Right, Way::WrongParts], 0).await;
    let blob = registry.load_blob(&app(), &digest, true).await.unwrap();
    let range = PART as u64 + 5..9 * PART as u64;
    let stream = registry.open_blob(&blob, range.clone()).await.unwrap();
    let bytes = stream.try_collect::<Vec<_>>().await.unwrap().concat();
    assert!(bytes == large()[range.start as usize..range.end as usize]);
}

#[tokio::test]
async fn a_node_of_the_region_gives_all_and_the_primary_only_says_what_the_blob_is() {
    let (registry, nodes, digest, _folders) = site(&[Way::Right, Way::Right], 1).await;
    assert!(pull_all(&registry, &digest).await.unwrap() == large());
    assert_eq!(nodes.parts_of(0), 0);
    assert!(nodes.parts_of(1) >= 24);
}

#[tokio::test]
async fn a_node_of_the_region_that_lies_or_fails_in_mid_blob_costs_nothing_but_time() {
    use Way::{AnotherBlob, Empty, Gone, GoneAfter, Silent, WrongParts, WrongSize};
    for bad in [WrongParts, AnotherBlob, WrongSize, Silent, GoneAfter(3), Gone, Empty] {
        let (registry, nodes, digest, _folders) = site(&[Way::Right, bad], 1).await;
        let pulled = pull_all(&registry, &digest).await;
        assert!(pulled.unwrap() == large(), "{bad:?}");
        assert!(nodes.parts_of(0) > 0, "{bad:?}");
    }
}

#[tokio::test]
async fn without_the_primary_a_blob_comes_from_others_and_a_lie_never_passes() {
    for near in [0, 1] {
        let (registry, _nodes, digest, _folders) = site(&[Way::Gone, Way::Right], near).await;
        assert!(pull_all(&registry, &digest).await.unwrap() == large(), "{near} near");
        let (registry, _nodes, digest, _folders) = site(&[Way::Gone, Way::Right], near).await;
        let blob = registry.load_blob(&app(), &digest, true).await.unwrap();
        let stream = registry.open_blob(&blob, 5..3 * PART as u64).await.unwrap();
        assert!(stream.try_collect::<Vec<_>>().await.unwrap().concat() == large()[5..3 * PART]);
        // Nobody can say that it is another blob, until all of it is here.
        let (registry, nodes, digest, _folders) = site(&[Way::Gone, Way::AnotherBlob], near).await;
        let blob = registry.load_blob(&app(), &digest, true).await.unwrap();
        let mut stream = registry.open_blob(&blob, 0..blob.size_bytes).await.unwrap();
        let first = stream.next().await.unwrap();
        assert!(first.is_err(), "a wrong byte went out");
        assert!(registry.load_local_blob(&app(), &digest).await.is_err());
        assert!(nodes.parts_of(1) > 0);
        // And the liar is known.
        assert!(matches!(pull_all(&registry, &digest).await, Err(RegistryError::PrimaryUnreachable { .. })));
        let given = nodes.parts_of(1);
        assert!(pull_all(&registry, &digest).await.is_err());
        assert_eq!(nodes.parts_of(1), given);
    }
}

#[tokio::test]
async fn a_transfer_that_was_cut_off_goes_on_with_what_is_here() {
    let (registry, nodes, digest, folders) = site(&[Way::GoneAfter(12)], 0).await;
    let blob = registry.load_blob(&app(), &digest, true).await.unwrap();
    let stream = registry.open_blob(&blob, 0..blob.size_bytes).await.unwrap();
    // As much as came before the link was cut.
    let came = tokio::time::timeout(Duration::from_secs(2), stream.try_collect::<Vec<_>>()).await;
    assert!(came.is_err(), "it waits for the link");
    let name = app();
    let transfer = registry.metadata().read(move |reader| reader.get_transfer(&name, &digest)).await;
    let transfer: Option<crate::metadata::TransferRow> =
        transfer.map_err(|error: crate::metadata::MetadataError| error).unwrap();
    assert!(transfer.is_some());
    // Another process: the flight of the first one is gone with it.
    let again = open(&folders[1]);
    let other = nodes.registry.clone();
    let nodes = Arc::new(Nodes {
        registry: other,
        ways: vec![Way::Right],
        near: 0,
        other_blob: digest,
        parts: Mutex::default(),
        led: AtomicUsize::new(0),
    });
    again.connect(nodes.clone());
    assert!(pull_all(&again, &digest).await.unwrap() == large());
    let asked = nodes.parts_of(0);
    assert!((5..=14).contains(&asked), "{asked} parts of 24, though 13 were here");
    let name = app();
    let transfer = again.metadata().read(move |reader| reader.get_transfer(&name, &digest)).await;
    let transfer: Option<crate::metadata::TransferRow> =
        transfer.map_err(|error: crate::metadata::MetadataError| error).unwrap();
    assert_eq!(transfer, None);
}
