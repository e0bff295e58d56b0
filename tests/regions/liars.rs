//! Members of the federation that lie: they have a region's own key and data, speak its protocol, and give wrong bytes,
//! wrong sizes, or nothing.
//!
//! A liar is a part of this test that takes the place of a region's process. It answers as the region would, and then
//! changes the answer; messages are opened no further than it takes to lie.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use keppel::metadata::{Metadata, MetadataOptions};
use keppel::model::SystemClock;
use keppel::peering::content::RegistryContent;
use keppel::registry::{LocalClaims, Registry, RegistryOptions};
use keppel::storage::{FilesystemOptions, Storage};
use keppel_federation::content::Content;
use keppel_federation::vocabulary::NodeId;
use keppel_federation::wire::Body;
use keppel_federation::{Federation, FederationOptions};

use crate::federation::{Region, large_blob, three_regions, until};
use crate::harness::client::try_send;
use crate::harness::images::sha256;
use crate::harness::{Image, ImageBuilder};

/// The answers in which bytes of blobs and manifests travel, by their number in the protocol.
const BLOB_SIZE: u8 = 1;
const BLOB_PART: u8 = 3;
const REFUSED: u8 = 9;
const OPENED_WITH_PROOF: u8 = 23;
const MANIFEST: u8 = 24;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Lie {
    /// One bit of every part of a blob is another.
    WrongPart,
    /// Every part is a byte too short.
    ShortPart,
    /// Every part is a byte too long.
    LongPart,
    /// Parts never come.
    Stall,
    /// Answers that are none.
    Garbage,
    /// The blob is said to be a byte longer than it is.
    WrongSize,
    /// Of the beginning of a blob one bit is another.
    WrongBeginning,
    /// A manifest with one byte changed.
    WrongManifest,
}

/// An answer about a blob: size, root, tree, beginning, what proves that, holders.
type Opened = (u64, [u8; 32], Vec<u8>, Vec<u8>, Vec<[u8; 32]>, Vec<NodeId>);

/// What is known of a manifest: size, labels, times.
type Facts = (u64, String, Option<i64>, Option<i64>, i64, Option<i64>);
/// An answer about a manifest: digest, media type, bytes, whether it is stale, when its layers were made, what is known of it.
type Described = (String, String, Option<Vec<u8>>, bool, Option<(i64, i64)>, Option<Facts>);

struct Liar {
    honest: RegistryContent,
    lie: Mutex<Lie>,
    told: AtomicUsize,
}

fn answer_of(kind: u8, body: &impl serde::Serialize) -> Bytes {
    postcard::to_extend(body, vec![1, kind]).expect("plain data serialises").into()
}

#[async_trait]
impl Content for Liar {
    async fn answer(&self, from: NodeId, request: Bytes) -> Result<Body, String> {
        let lie = self.lie.lock().expect("no lie panics").clone();
        let answer = self.honest.answer(from, request).await?.into_bytes();
        let (kind, body) = (answer[1], &answer[2..]);
        let lied = match (lie, kind) {
            (Lie::WrongPart | Lie::ShortPart | Lie::LongPart, BLOB_PART) => {
                let mut part: Vec<u8> = postcard::from_bytes(body).expect("a part");
                let middle = part.len() / 2;
                match *self.lie.lock().expect("no lie panics") {
                    Lie::ShortPart => drop(part.pop()),
                    Lie::LongPart => part.push(0),
                    _ => part[middle] ^= 0x20,
                }
                answer_of(BLOB_PART, &part)
            }
            (Lie::Stall, BLOB_PART) => {
                self.told.fetch_add(1, Ordering::SeqCst);
                std::future::pending().await
            }
            (Lie::Garbage, BLOB_PART | OPENED_WITH_PROOF | MANIFEST) => Bytes::from(vec![1, 250, 7, 7]),
            (Lie::WrongSize, OPENED_WITH_PROOF) => {
                let mut opened: Opened = postcard::from_bytes(body).expect("an answer");
                opened.0 += 1;
                answer_of(OPENED_WITH_PROOF, &opened)
            }
            (Lie::WrongBeginning, OPENED_WITH_PROOF) => {
                let mut opened: Opened = postcard::from_bytes(body).expect("an answer");
                if let Some(first) = opened.3.first_mut() {
                    *first ^= 1;
                }
                answer_of(OPENED_WITH_PROOF, &opened)
            }
            (Lie::WrongManifest, MANIFEST) => {
                let mut described: Described = postcard::from_bytes(body).expect("a manifest");
                match described.2.as_mut().and_then(|bytes| bytes.last_mut()) {
                    Some(last) => *last = b' ',
                    None => return Ok(answer.into()),
                }
                answer_of(MANIFEST, &described)
            }
            _ => return Ok(answer.into()),
        };
        self.told.fetch_add(1, Ordering::SeqCst);
        Ok(lied.into())
    }
}

/// A liar in the place of a region, until it is dropped.
struct InPlace {
    federation: Federation,
    liar: Arc<Liar>,
}

impl InPlace {
    /// Kills the region's process and takes its place.
    async fn of(region: &mut Region, name: &str, lie: Lie) -> Self {
        region.server.kill();
        let data = region.server.data().to_owned();
        let mut options = FederationOptions::new(&data, name.parse().expect("a region"));
        options.found = false;
        options.listen = vec![region.address];
        options.membership.probe_interval = Duration::from_millis(400);
        let federation = Federation::start(options).await.expect("it starts");
        let metadata = Metadata::open(&data.join("metadata.db"), &MetadataOptions::default()).expect("it opens");
        let storage = Storage::filesystem(FilesystemOptions::new(data.join("storage"))).expect("it opens");
        let (clock, claims) = (Arc::new(SystemClock), Arc::new(LocalClaims));
        let registry = Registry::new(RegistryOptions::default(), metadata, storage, clock, claims);
        let honest = RegistryContent::new(registry, federation.clone());
        let liar = Arc::new(Liar { honest, lie: Mutex::new(lie), told: AtomicUsize::new(0) });
        federation.serve_content(liar.clone());
        Self { federation, liar }
    }

    fn tell(&self, lie: Lie) {
        *self.liar.lie.lock().expect("no lie panics") = lie;
        self.liar.told.store(0, Ordering::SeqCst);
    }

    fn told(&self) -> usize {
        self.liar.told.load(Ordering::SeqCst)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_gets_what_it_asks_for_by_its_repository_and_one_that_was_removed_gets_nothing() {
    let [eu, _us, mut ap] = three_regions();
    let image = Image::small(1);
    eu.client.push_image("acme/app", "v1", &image).await;
    eu.client.push_image("acme/other", "v1", &Image::small(2)).await;
    let peer = InPlace::of(&mut ap, "ap", Lie::Stall).await;
    until("it is seen", || eu.sees_alive("ap"));
    let members = peer.federation.members();
    let of = |region: &str| members.iter().find(|member| member.region.as_str() == region).expect("a member").node;
    let (primary, us) = (of("eu"), peer.federation.node());
    let size_in = async |repository: &str| {
        let question = postcard::to_extend(&(repository, image.layers[0].digest()), vec![1, BLOB_SIZE]);
        let asked = peer.federation.ask(primary, question.expect("it serialises").into(), Duration::from_secs(5)).await;
        let answer = asked.map_err(|error| error.to_string())?;
        match answer[1] {
            BLOB_SIZE => Ok(postcard::from_bytes::<u64>(&answer[2..]).expect("a size")),
            REFUSED => Err("refused".to_owned()),
            other => panic!("an answer of kind {other}"),
        }
    };
    assert_eq!(size_in("acme/app").await, Ok(image.layers[0].bytes.len() as u64));
    for repository in ["acme/other", "acme/none", "nobody/app"] {
        assert_eq!(size_in(repository).await, Err("refused".to_owned()), "a digest is no key to {repository}");
    }
    eu.told(&["remove", &us.to_string()[..12]]);
    let start = Instant::now();
    while size_in("acme/app").await.is_ok() {
        assert!(start.elapsed() < Duration::from_secs(2), "it is still told something");
    }
    for _ in 0..3 {
        let refused = size_in("acme/app").await.expect_err("it is no member any more");
        assert_ne!(refused, "refused", "its question was read");
    }
    peer.federation.shutdown().await;
}

/// What the metric says about a region whose answers are not taken any more.
async fn dropped(region: &Region, named: &str) -> Vec<String> {
    let metrics = region.client.get("/metrics").await.expect(200).text();
    let lines = metrics.lines().filter(|line| line.starts_with("keppel_transfer_sources_dropped_total{"));
    let label = format!("region=\"{named}\"");
    lines.filter(|line| line.contains(&label)).map(str::to_owned).collect()
}

/// Starts a region anew, which then holds nothing against anybody, and waits until it sees others.
fn forgive(region: &mut Region, others: &[&str]) {
    region.restart();
    until("it sees the others", || others.iter().all(|other| region.sees_alive(other)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_lies_never_reaches_a_client_and_is_named() {
    let [eu, mut us, mut ap] = three_regions();
    let lies = [Lie::WrongPart, Lie::ShortPart, Lie::LongPart, Lie::Garbage, Lie::Stall];
    // Large enough that it is not over before the liar, to whom there is no connection yet, was asked.
    let layers: Vec<Vec<u8>> = (0..lies.len() as u8).map(|number| large_blob(100 + number)).collect();
    let path = |bytes: &[u8]| format!("/v2/acme/app/blobs/{}", sha256(bytes));
    for layer in &layers {
        eu.client.push_blob("acme/app", layer).await;
        // From now on the primary names it as one who has the blob.
        assert!(us.client.get(&path(layer)).await.expect(200).body == *layer);
    }
    let liar = InPlace::of(&mut us, "us", Lie::WrongPart).await;
    for (lie, layer) in lies.into_iter().zip(&layers) {
        forgive(&mut ap, &["eu", "us"]);
        liar.tell(lie.clone());
        let path = path(layer);
        let pulls = [(); 3].map(|()| ap.client.get(&path));
        for pulled in futures_util::future::join_all(pulls).await {
            assert!(pulled.expect(200).body == *layer, "{lie:?}: a wrong byte");
        }
        assert!(liar.told() > 0, "{lie:?} was not told");
        let named = dropped(&ap, "us").await;
        if lie == Lie::Stall && named.is_empty() {
            // It was over before the silence was long enough: others gave what this one was asked for.
            assert!(ap.counter("keppel_transfer_late_parts_total").await > 0, "nobody is named");
            continue;
        }
        let reason = match lie {
            Lie::Stall => "reason=\"silent\"",
            Lie::Garbage => "reason=\"unreachable\"",
            _ => "reason=\"wrong\"",
        };
        assert!(named.iter().any(|line| line.contains(reason)), "{lie:?}: {named:?}");
    }
    liar.federation.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_liar_that_is_the_only_one_to_ask_gets_nothing_through() {
    let [mut eu, mut us, mut ap] = three_regions();
    let (layer, other) = (large_blob(5), large_blob(6));
    let path = |bytes: &[u8]| format!("/v2/acme/app/blobs/{}", sha256(bytes));
    for bytes in [&layer, &other] {
        eu.client.push_blob("acme/app", bytes).await;
        assert!(us.client.get(&path(bytes)).await.expect(200).body == *bytes);
    }
    let liar = InPlace::of(&mut us, "us", Lie::WrongSize).await;
    eu.server.kill();
    for lie in [Lie::WrongSize, Lie::WrongBeginning, Lie::Garbage] {
        forgive(&mut ap, &["us"]);
        liar.tell(lie.clone());
        let start = Instant::now();
        // Refused, or broken off: what a client takes for a blob is never there.
        if let Ok(answer) = try_send(ap.client.request("GET".parse().expect("a method"), &path(&layer))).await {
            assert!(answer.status >= 500, "{lie:?}: {} with {} bytes", answer.status, answer.body.len());
        }
        assert!(liar.told() > 0, "{lie:?} was not told");
        assert!(start.elapsed() < Duration::from_secs(50), "{lie:?}: after {:?}", start.elapsed());
        assert_ne!(ap.client.head(&path(&layer)).await.status, 200, "{lie:?}: it was kept");
    }
    // The truth still comes through, from whoever tells it.
    eu.restart();
    forgive(&mut ap, &["eu", "us"]);
    assert!(ap.client.get(&path(&layer)).await.expect(200).body == layer);
    liar.federation.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_lies_is_not_believed() {
    let [mut eu, us, mut ap] = three_regions();
    let image = ImageBuilder::new(1).layers(1).layer_bytes(3 << 20).build();
    eu.client.push_image("acme/app", "v1", &image).await;
    let held = Image::small(2);
    eu.client.push_image("acme/app", "held", &held).await;
    us.client.assert_image("acme/app", "held", &held).await;
    let liar = InPlace::of(&mut eu, "eu", Lie::WrongManifest).await;
    until("the others see it", || us.sees_alive("eu") && ap.sees_alive("eu"));
    let layer = format!("/v2/acme/app/blobs/{}", image.layers[0].digest());
    for reference in ["v1", &image.digest()] {
        let refused = ap.client.get(&format!("/v2/acme/app/manifests/{reference}")).await;
        refused.expect_error(503, "UNAVAILABLE");
    }
    assert!(liar.told() > 0, "it was not asked");
    for lie in [Lie::WrongPart, Lie::ShortPart, Lie::WrongSize, Lie::WrongBeginning] {
        forgive(&mut ap, &["eu", "us"]);
        liar.tell(lie.clone());
        if let Ok(answer) = try_send(ap.client.request("GET".parse().expect("a method"), &layer)).await {
            assert!(answer.status >= 500, "{lie:?}: {} with {} bytes", answer.status, answer.body.len());
        }
        assert!(liar.told() > 0, "{lie:?} was not told");
        let named = dropped(&ap, "eu").await;
        assert!(!named.is_empty(), "{lie:?}: nobody is named");
        assert_ne!(ap.client.head(&layer).await.status, 404, "{lie:?}: a liar's word was taken for absence");
    }
    // What others have is right all the same.
    assert_eq!(
        us.client.get(&format!("/v2/acme/app/manifests/{}", held.digest())).await.expect(200).body,
        held.manifest.bytes
    );
    liar.federation.shutdown().await;
}
