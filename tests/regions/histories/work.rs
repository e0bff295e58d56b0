//! What clients do in a history: pushes, deletions and pulls at random, each blob of a pull compared with its digest.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use reqwest::Method;
use reqwest::header::CONTENT_TYPE;
use serde_json::json;
use tokio::task::JoinHandle;

use super::checker::{Histories, Operation, Value, What};
use crate::federation::Region;
use crate::harness::client::try_send;
use crate::harness::images::{random_bytes, sha256};
use crate::harness::{Client, Content, Image};

const WORKERS_PER_REGION: usize = 2;
/// Tags are used for so long, and then others, so that no history of one becomes long.
const TAGS_LIVE: Duration = Duration::from_secs(3);
const TAGS: u64 = 6;
const LAYER_BYTES_MAX: usize = 40_000;

/// A manifest that somebody has tried to push.
#[derive(Debug, Clone)]
pub struct Made {
    pub blobs: Vec<String>,
    pub is_acknowledged: bool,
}

/// What the work of all shares.
pub struct Work {
    pub image: Image,
    numbers: AtomicU64,
    pub stop: AtomicBool,
    pub start: Instant,
    bases: Mutex<Vec<Client>>,
    made: Mutex<BTreeMap<String, Made>>,
    pub blobs_read: AtomicU64,
}

impl Work {
    pub fn new(image: Image, regions: &[Region]) -> Arc<Self> {
        Arc::new(Self {
            image,
            numbers: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            start: Instant::now(),
            bases: regions.iter().map(|region| region.client.clone()).collect::<Vec<_>>().into(),
            made: Mutex::default(),
            blobs_read: AtomicU64::new(0),
        })
    }

    /// A region has started again: connections of before are not tried again.
    pub fn restarted(&self, at: usize, region: &Region) {
        self.bases.lock().expect("nobody panics with it")[at] = region.client.clone();
    }

    /// Everything that somebody has tried to push.
    pub fn made(&self) -> BTreeMap<String, Made> {
        self.made.lock().expect("nobody panics with it").clone()
    }

    fn client(&self, region: usize) -> Client {
        self.bases.lock().expect("nobody panics with it")[region].clone()
    }

    fn tag(&self, random: &mut StdRng) -> String {
        let phase = self.start.elapsed().as_secs() / TAGS_LIVE.as_secs();
        format!("p{phase}-{}", random.random_range(0..TAGS))
    }

    fn is_acknowledged(&self, digest: &str) -> bool {
        let made = self.made.lock().expect("nobody panics with it");
        made.get(digest).unwrap_or_else(|| panic!("nobody has pushed {digest}")).is_acknowledged
    }

    /// A manifest like no other: of blobs that are there, or with a layer of its own, which is pushed first. None when that
    /// was not taken.
    async fn make(&self, client: &Client, random: &mut StdRng) -> Option<Content> {
        let number = self.numbers.fetch_add(1, Ordering::SeqCst);
        let mut document = self.image.manifest.value();
        document["annotations"] = json!({ "number": number.to_string() });
        if random.random_bool(0.5) {
            let layer = random_bytes(number ^ 0x5eed_0000_0000, random.random_range(1..LAYER_BYTES_MAX));
            let layer = Content::new(&self.image.layers[0].media_type, layer);
            let path = format!("/v2/acme/app/blobs/uploads/?digest={}", layer.digest());
            let request = client.request(Method::POST, &path).header(CONTENT_TYPE, "application/octet-stream");
            let answer = try_send(request.body(layer.bytes.clone())).await.ok()?;
            if answer.status != 201 {
                assert_eq!(answer.status, 503, "{}: {}", answer.asked, answer.text());
                return None;
            }
            document["layers"] = json!([layer.descriptor()]);
        }
        let manifest = Content::json(&self.image.manifest.media_type, &document);
        let layers = document["layers"].as_array().expect("a list").iter().chain([&document["config"]]);
        let blobs = layers.map(|layer| layer["digest"].as_str().expect("a digest").to_owned()).collect();
        let made = Made { blobs, is_acknowledged: false };
        self.made.lock().expect("nobody panics with it").insert(manifest.digest(), made);
        Some(manifest)
    }

    /// Reads all blobs of a manifest where it was pulled. Whatever comes has to be right; what was acknowledged is not denied.
    pub async fn read_blobs(&self, client: &Client, digest: &str) -> bool {
        let was_acknowledged = self.is_acknowledged(digest);
        let blobs = self.made()[digest].blobs.clone();
        let mut has_all = true;
        for blob in blobs {
            let Ok(answer) = try_send(client.request(Method::GET, &format!("/v2/acme/app/blobs/{blob}"))).await else {
                return false;
            };
            match answer.status {
                200 => {
                    assert_eq!(sha256(&answer.body), blob, "{}: wrong bytes", answer.asked);
                    self.blobs_read.fetch_add(1, Ordering::SeqCst);
                }
                503 => has_all = false,
                404 if !was_acknowledged => has_all = false,
                status => panic!("{}: {status} {}", answer.asked, answer.text()),
            }
        }
        has_all
    }

    /// What a tag names in a region; none where the answer is marked, or says to come again.
    pub async fn pull(&self, client: &Client, tag: &str, with_blobs: bool) -> Option<Value> {
        let path = format!("/v2/acme/app/manifests/{tag}");
        let answer = try_send(client.request(Method::GET, &path)).await.ok()?;
        let is_marked = answer.headers.contains_key("warning");
        if answer.status == 200 {
            let digest = answer.header("docker-content-digest").to_owned();
            assert_eq!(sha256(&answer.body), digest, "{path}: wrong bytes");
            if with_blobs {
                self.read_blobs(client, &digest).await;
            }
            return (!is_marked).then_some(Some(digest));
        }
        match answer.status {
            404 if !is_marked => Some(None),
            404 | 503 => None,
            status => panic!("{path}: {status} {}", answer.text()),
        }
    }

    async fn push(&self, client: &Client, tag: &str, manifest: &Content) -> bool {
        let request = client.request(Method::PUT, &format!("/v2/acme/app/manifests/{tag}"));
        let request = request.header(CONTENT_TYPE, &manifest.media_type).body(manifest.bytes.clone());
        match try_send(request).await {
            Ok(answer) if answer.status == 201 => {
                let mut made = self.made.lock().expect("nobody panics with it");
                made.get_mut(&manifest.digest()).expect("it was noted").is_acknowledged = true;
                true
            }
            Ok(answer) => {
                assert_eq!(answer.status, 503, "{}: {}", answer.asked, answer.text());
                false
            }
            Err(_) => false,
        }
    }
}

/// `Some(true)`: it was there and is not any more; `Some(false)`: it was not there; `None`: nobody knows.
async fn delete(client: &Client, tag: &str) -> Option<bool> {
    let request = client.request(Method::DELETE, &format!("/v2/acme/app/manifests/{tag}"));
    let answer = try_send(request).await.ok()?;
    match answer.status {
        202 => Some(true),
        404 => Some(false),
        503 => None,
        status => panic!("{}: {status} {}", answer.asked, answer.text()),
    }
}

/// Pushes, deletes and pulls at random in one region; after a push it looks in another at once.
async fn worker(work: Arc<Work>, region: usize, seed: u64) -> Vec<(String, Operation)> {
    let (mut random, mut done) = (StdRng::seed_from_u64(seed), Vec::new());
    while !work.stop.load(Ordering::SeqCst) {
        let (tag, client) = (work.tag(&mut random), work.client(region));
        let mut note = |what, begin, end: Option<Instant>, region: usize| {
            done.push((tag.clone(), Operation { what, begin, end, by: format!("region {region}") }));
        };
        match random.random_range(0..100) {
            0..35 => {
                let Some(manifest) = work.make(&client, &mut random).await else { continue };
                let begin = Instant::now();
                let acknowledged = work.push(&client, &tag, &manifest).await;
                note(What::Write(Some(manifest.digest())), begin, acknowledged.then(Instant::now), region);
                let (other, begin) = ((region + 1) % 3, Instant::now());
                if acknowledged && let Some(value) = work.pull(&work.client(other), &tag, false).await {
                    note(What::Read(value.clone()), begin, Some(Instant::now()), other);
                    if let Some(digest) = value {
                        work.read_blobs(&work.client(other), &digest).await;
                    }
                }
            }
            35..45 => {
                let begin = Instant::now();
                match delete(&client, &tag).await {
                    // While the primary changes a deletion is tried again inside, and may then find nothing more to delete.
                    Some(_) => note(What::Write(None), begin, Some(Instant::now()), region),
                    None => note(What::Write(None), begin, None, region),
                }
            }
            _ => {
                let begin = Instant::now();
                if let Some(value) = work.pull(&client, &tag, false).await {
                    note(What::Read(value.clone()), begin, Some(Instant::now()), region);
                    if let Some(digest) = value {
                        work.read_blobs(&client, &digest).await;
                    }
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(0..120))).await;
    }
    done
}

pub fn spawn_workers(work: &Arc<Work>, seed: u64) -> Vec<JoinHandle<Vec<(String, Operation)>>> {
    let places = (0..3).flat_map(|region| (0..WORKERS_PER_REGION).map(move |number| (region, number as u64)));
    places
        .map(|(region, number)| tokio::spawn(worker(work.clone(), region, seed + number * 3 + region as u64)))
        .collect()
}

pub async fn gather(workers: Vec<JoinHandle<Vec<(String, Operation)>>>) -> Histories {
    let mut histories = Histories::new();
    for worker in workers {
        for (tag, operation) in worker.await.expect("every answer was one that may be given") {
            histories.entry(tag).or_default().push(operation);
        }
    }
    histories
}
