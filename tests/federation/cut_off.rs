//! Content over lines that are cut, in network namespaces, with the times that operators get: a region that is alone serves
//! all it has and says so, refuses what it cannot know, and has everything that happened soon after it is back.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use sha2::{Digest as _, Sha256};

use crate::harness::images::{hex, random_bytes, sha256};
use crate::harness::{Artifact, Client, Image, ImageBuilder};
use crate::world::{AP, EU, US, World, is_marked};

/// What operators get: `federation.lease`.
const LEASE: Duration = Duration::from_secs(5);
/// How long a pull waits that finds the primary silent, and how long each one after it.
const SILENCE_FOUND_WITHIN: Duration = Duration::from_secs(3);
const SILENCE_KNOWN_WITHIN: Duration = Duration::from_secs(1);
const CAUGHT_UP_WITHIN: Duration = Duration::from_secs(10);
const MIB: usize = 1 << 20;
/// The smallest blob of which less than a twentieth may be sent again, and what of it has come when the line is cut.
const BLOB_MIB: u64 = 64;
const CUT_AFTER_MIB: u64 = 20;
/// A line that is no faster than a busy machine: else what is under way says more about that than about the line.
const LINE_MBIT: u32 = 200;

#[tokio::test]
async fn a_region_that_is_cut_off_says_so_and_has_everything_again_within_ten_seconds() {
    let world = World::new();
    let (eu, ap) = (world.regions[EU].client().clone(), world.regions[AP].client().clone());
    let images: Vec<Image> = (0..4).map(|seed| ImageBuilder::new(seed).layers(1).build()).collect();
    for (number, image) in images.iter().enumerate() {
        eu.push_image("acme/app", &format!("v{number}"), image).await;
        eu.put_manifest("acme/app", "latest", &image.manifest).await.expect(201);
    }
    eu.put_manifest("acme/app", "gone", &images[0].manifest).await.expect(201);
    let sbom = Artifact::new("application/spdx+json", b"bill", Some(&images[3].manifest));
    eu.push_artifact("acme/app", &sbom).await;
    world.regions[US].client().push_image("other/app", "v1", &images[0]).await;
    ap.assert_image("acme/app", "v3", &images[3]).await;
    world.until_it_answers_alone(AP, "/v2/acme/app/manifests/latest").await;

    // From the push's 201 on the old one is not given as the newest, though nobody could tell the region.
    world.network.isolate(AP);
    let start = Instant::now();
    world.put(EU, "latest", &images[0].manifest).await.expect(201);
    let took = start.elapsed();
    assert!(took < LEASE + Duration::from_secs(2), "acknowledged after {took:?}");
    let (since, mut waits) = (Instant::now(), Vec::new());
    while since.elapsed() < Duration::from_secs(8) {
        let asked = Instant::now();
        let answer = ap.get("/v2/acme/app/manifests/latest").await.expect(200);
        waits.push(asked.elapsed());
        assert_eq!(answer.header("docker-content-digest"), images[3].digest());
        assert!(is_marked(&answer), "{:?} after the 201 the old one is given as current", since.elapsed());
    }
    // That the primary is silent is found out once.
    waits.sort_unstable();
    println!("{} pulls without a lease; the longest waits: {:?}", waits.len(), &waits[waits.len().saturating_sub(5)..]);
    let long = waits.iter().filter(|wait| **wait > SILENCE_KNOWN_WITHIN).count();
    assert!(long <= 1 && waits.last().is_some_and(|longest| *longest < SILENCE_FOUND_WITHIN), "{waits:?}");
    // The others go on, and the next push waits for nobody.
    let start = Instant::now();
    world.put(US, "latest", &images[1].manifest).await.expect(201);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());

    // All it has, whole and marked where it may be old by now.
    for path in ["manifests/v0", "manifests/v3", "tags/list"] {
        assert!(is_marked(&ap.get(&format!("/v2/acme/app/{path}")).await.expect(200)), "{path}");
    }
    let referrers = ap.get(&format!("/v2/acme/app/referrers/{}", images[3].digest())).await.expect(200);
    assert!(is_marked(&referrers) && referrers.text().contains(&sbom.manifest.digest()));
    assert!(is_marked(&ap.get("/v2/_catalog").await.expect(200)));
    for blob in images[3].blobs() {
        let pulled = ap.get(&format!("/v2/acme/app/blobs/{}", blob.digest())).await.expect(200);
        assert!(pulled.body == blob.bytes && pulled.headers.get("warning").is_none());
    }
    let by_digest = ap.get(&format!("/v2/acme/app/manifests/{}", images[2].digest())).await.expect(200);
    assert!(by_digest.body == images[2].manifest.bytes && by_digest.headers.get("warning").is_none());
    // What it cannot know it neither gives nor denies; what it cannot do it refuses.
    let layer = images[1].layers[0].digest();
    for path in [
        "acme/app/manifests/v9",
        &format!("acme/app/manifests/{}", sha256(b"never pushed")),
        &format!("acme/app/blobs/{layer}"),
        &format!("acme/app/referrers/{}", images[0].digest()),
        "acme/none/tags/list",
        "other/app/manifests/v1",
        "other/app/tags/list",
        "nobody/app/manifests/v1",
    ] {
        let refused = ap.get(&format!("/v2/{path}")).await.expect_error(503, "UNAVAILABLE");
        assert!(!refused.header("retry-after").is_empty(), "{path}");
        ap.head(&format!("/v2/{path}")).await.expect(503);
    }
    world.put(AP, "v9", &images[3].manifest).await.expect_error(503, "UNAVAILABLE");
    ap.delete("/v2/acme/app/manifests/v3").await.expect_error(503, "UNAVAILABLE");

    // A thousand events that it misses: new tags, one that moves, deletions.
    for round in 0..64 {
        let puts = (0..8).map(|number| {
            let image = &images[(round + number) % images.len()];
            let (world, tag) = (&world, format!("t{}", round * 8 + number));
            async move { world.put(EU, &tag, &image.manifest).await.expect(201) }
        });
        join_all(puts).await;
        for number in 0..8 {
            world.put(EU, "latest", &images[number % images.len()].manifest).await.expect(201);
        }
    }
    let late = Image::small(9);
    eu.push_image("acme/late", "v1", &late).await;
    for path in ["gone", "t7", &images[2].digest()] {
        eu.delete(&format!("/v2/acme/app/manifests/{path}")).await.expect(202);
    }
    let expected = eu.tags("acme/app").await;
    let healed = Instant::now();
    world.network.heal();
    loop {
        let answer = ap.get("/v2/acme/app/tags/list").await.expect(200);
        if !is_marked(&answer) {
            assert_eq!(crate::harness::client::strings(&answer.json()["tags"]), expected);
            break;
        }
        assert!(healed.elapsed() < CAUGHT_UP_WITHIN, "not caught up after {:?}", healed.elapsed());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    println!("a thousand missed events are here {:?} after the line is back", healed.elapsed());
    world.until_it_answers_alone(AP, "/v2/acme/app/manifests/latest").await;
    assert!(healed.elapsed() < CAUGHT_UP_WITHIN, "it asks for everything after {:?}", healed.elapsed());
    assert!(world.counter(AP, "keppel_copy_events_total").await >= 1000, "it did not go by the log");
    for tag in expected.iter().step_by(7).map(String::as_str).chain(["latest"]) {
        let path = format!("/v2/acme/app/manifests/{tag}");
        let (there, here) = (eu.get(&path).await.expect(200), ap.get(&path).await.expect(200));
        assert!(!is_marked(&here));
        assert_eq!(here.body, there.body, "{tag}");
    }
    for gone in ["gone", "t7", &images[2].digest()] {
        ap.get(&format!("/v2/acme/app/manifests/{gone}")).await.expect_error(404, "MANIFEST_UNKNOWN");
    }
    ap.assert_image("acme/late", "v1", &late).await;
    // The copies need their primaries, this a majority, to which the way may be found some seconds later.
    let unknown = loop {
        let answer = ap.get("/v2/nobody/app/manifests/v1").await;
        if answer.status != 503 {
            break answer;
        }
        assert!(answer.message().contains("this node knows of no account nobody"), "{}", answer.text());
        assert!(!answer.header("retry-after").is_empty());
        assert!(healed.elapsed() < CAUGHT_UP_WITHIN * 2, "no majority after {:?}", healed.elapsed());
    };
    unknown.expect_error(404, "NAME_UNKNOWN");
    println!("what there is not is known {:?} after the line is back", healed.elapsed());
}

/// A blob of so many MiB, of which never all is in memory: each MiB begins with its number.
struct Large {
    mebibytes: u64,
    rest: Vec<u8>,
}

impl Large {
    fn new(seed: u64, mebibytes: u64) -> Self {
        Self { mebibytes, rest: random_bytes(seed, MIB - 8) }
    }

    fn pieces(&self) -> impl Iterator<Item = Vec<u8>> {
        (0..self.mebibytes).map(|number| [&number.to_be_bytes()[..], &self.rest].concat())
    }

    fn digest(&self) -> String {
        let mut hasher = Sha256::new();
        self.pieces().for_each(|piece| hasher.update(piece));
        format!("sha256:{}", hex(&hasher.finalize()))
    }

    async fn push(&self, client: &Client, digest: &str) {
        let mut location = client.open_upload("acme/app").await;
        for piece in self.pieces() {
            location = client.stream(&location, piece).await.expect(202).location();
        }
        client.close_upload(&location, digest, b"").await.expect(201);
    }
}

/// Pulls a blob in a task of its own, which fails unless every byte is right.
fn pull(url: String, expected: String) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        // No limit on the whole: a cut line takes as long as it takes.
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        let mut answer = client.get(url).send().await.expect("an answer");
        assert_eq!(answer.status(), 200);
        let mut hasher = Sha256::new();
        while let Some(chunk) = answer.chunk().await.expect("it goes on") {
            hasher.update(&chunk);
        }
        assert_eq!(format!("sha256:{}", hex(&hasher.finalize())), expected);
    })
}

/// What is under way when a line is cut is lost, and nothing else is.
#[tokio::test]
async fn a_pull_over_a_line_that_is_cut_goes_on_where_it_was() {
    let world = World::new();
    let eu = world.regions[EU].client();
    world.network.limit(EU, LINE_MBIT);
    let received = || world.counter(AP, "keppel_transfer_received_bytes_total");
    let mut costs = Vec::new();
    for (seed, is_cut) in [(1, false), (2, true)] {
        let blob = Large::new(seed, BLOB_MIB);
        let digest = blob.digest();
        blob.push(eu, &digest).await;
        let sent = world.network.sent_bytes(EU);
        let had = received().await;
        let url = format!("http://{}/v2/acme/app/blobs/{}", world.regions[AP].address, digest);
        let pulled = pull(url, digest);
        if is_cut {
            let start = Instant::now();
            while received().await < had + CUT_AFTER_MIB * MIB as u64 {
                assert!(start.elapsed() < Duration::from_secs(60), "the transfer does not begin");
            }
            world.network.cut(EU, AP);
            world.network.cut(AP, EU);
            let (at_cut, here) = (world.network.sent_bytes(EU) - sent, received().await - had);
            // Longer than a connection survives.
            tokio::time::sleep(Duration::from_secs(20)).await;
            assert!(!pulled.is_finished(), "it was over before the line was cut");
            let (later, got) = (world.network.sent_bytes(EU) - sent, received().await - had);
            println!(
                "when the line was cut {at_cut} bytes were sent and {here} received, at its return {later} and {got}"
            );
            world.network.heal();
        }
        pulled.await.expect("every byte is right");
        let cost = world.network.sent_bytes(EU) - sent;
        println!("cut: {is_cut}; {cost} bytes left the primary for {BLOB_MIB} MiB");
        assert!(cost > BLOB_MIB * MIB as u64, "the line is not measured");
        costs.push(cost as f64);
    }
    let again = costs[1] / costs[0] - 1.0;
    assert!(again < 0.05, "{:.1} % were sent again", again * 100.0);
}
