use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use reqwest::Method;
use reqwest::header::CONTENT_TYPE;

use crate::federation::{LEASE, large_blob, three_regions, until};
use crate::harness::client::try_send;
use crate::harness::{Client, Content, Image, ImageBuilder};
use crate::leases::until_it_answers_alone;
use crate::sources::{RECEIVED, until_received};

/// How long a client of these tests tries a push again that it is told to try again.
const PATIENCE: Duration = Duration::from_secs(60);

fn images(count: u64) -> Vec<Image> {
    (0..count).map(|seed| ImageBuilder::new(seed).layers(1).layer_bytes(64).build()).collect()
}

/// Pushes a manifest as clients do: what is answered with 503 is tried again, and nothing else may be answered but 201.
async fn push_patiently(client: &Client, repository: &str, tag: &str, manifest: &Content) {
    let start = Instant::now();
    loop {
        let request = client.request(Method::PUT, &format!("/v2/{repository}/manifests/{tag}"));
        let request = request.header(CONTENT_TYPE, &manifest.media_type).body(manifest.bytes.clone());
        let answer = try_send(request).await.expect("an answer");
        if answer.status == 201 {
            return;
        }
        assert_eq!(answer.status, 503, "{}: {}", answer.asked, answer.text());
        assert!(!answer.header("retry-after").is_empty(), "{}: when?", answer.asked);
        assert!(start.elapsed() < PATIENCE, "{}: {}", answer.asked, answer.text());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// A tag, unless the answer is marked as perhaps out of date, or says to come again.
async fn current(client: &Client, repository: &str, tag: &str) -> Option<String> {
    let path = format!("/v2/{repository}/manifests/{tag}");
    let answer = try_send(client.request(Method::GET, &path)).await.expect("an answer");
    match answer.status {
        200 if answer.headers.get("warning").is_some() => None,
        200 => Some(answer.header("docker-content-digest").to_owned()),
        503 => None,
        status => panic!("{path}: {status} {}", answer.text()),
    }
}

/// Pushes one tag again and again, to one region, and after each 201 looks at it in another.
async fn keep_pushing(
    (at, other): (Client, Client),
    name: String,
    images: Arc<Vec<Image>>,
    stop: Arc<AtomicBool>,
    looked: Arc<AtomicU64>,
) -> Vec<(String, String)> {
    let mut pushed = Vec::new();
    while !stop.load(Ordering::SeqCst) {
        let number = pushed.len();
        let image = &images[number % images.len()];
        let tag = format!("{name}-{number}");
        push_patiently(&at, "acme/app", &tag, &image.manifest).await;
        push_patiently(&at, "acme/app", &name, &image.manifest).await;
        pushed.push((tag, image.digest()));
        for client in [&at, &other] {
            if let Some(digest) = current(client, "acme/app", &name).await {
                assert_eq!(digest, image.digest(), "{name}: an old one as current, after {number} pushes");
                looked.fetch_add(1, Ordering::SeqCst);
            }
        }
    }
    let last = pushed.last().expect("something was pushed").1.clone();
    pushed.push((name, last));
    pushed
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_moves_while_clients_push_in_all_regions_and_no_push_is_lost() {
    let regions = three_regions();
    let images = Arc::new(images(4));
    for image in images.iter() {
        regions[0].client.push_image("acme/app", "seed", image).await;
    }
    for region in &regions[1..] {
        region.client.assert_image("acme/app", "seed", &images[3]).await;
        until_it_answers_alone(region, "/v2/acme/app/manifests/seed").await;
        for image in images.iter() {
            for blob in image.blobs() {
                region.client.push_blob("acme/app", &blob.bytes).await;
            }
        }
    }
    let (stop, looked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let pushing: Vec<_> = ["eu", "us", "ap"]
        .iter()
        .enumerate()
        .map(|(at, name)| {
            let clients = (regions[at].client.clone(), regions[(at + 1) % 3].client.clone());
            tokio::spawn(keep_pushing(clients, (*name).to_owned(), images.clone(), stop.clone(), looked.clone()))
        })
        .collect();
    // Run beside the test's own tasks, which have threads of their own.
    for (asked, to) in [(0, "us"), (0, "ap"), (1, "eu")] {
        let said = regions[asked].operate(&["account", "move", "acme", "--to", to]);
        assert!(said.contains(&format!("region {to} is the primary of account acme now")), "{said}");
        for region in &regions {
            until("all know it", || region.primary_of("acme") == to);
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    stop.store(true, Ordering::SeqCst);
    let mut all = Vec::new();
    for pushed in pushing {
        all.extend(pushed.await.expect("no push was refused and no old tag shown"));
    }
    assert!(all.len() > 30 && looked.load(Ordering::SeqCst) > 30, "{} pushes, {looked:?} looks", all.len());
    for region in &regions {
        if !std::ptr::eq(region, &regions[0]) {
            until_it_answers_alone(region, "/v2/acme/app/manifests/seed").await;
        }
        for (tag, digest) in &all {
            assert_eq!(current(&region.client, "acme/app", tag).await.as_ref(), Some(digest), "{tag}");
        }
        let said = region.operate(&["account", "divergent", "acme"]);
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_failover_the_former_primary_keeps_what_only_it_has_and_pushes_it_again() {
    let [mut eu, us, ap] = three_regions();
    let images = images(6);
    for (image, tag) in images.iter().zip(["v1", "gone", "other"]) {
        eu.client.push_image("acme/app", tag, image).await;
    }
    for region in [&us, &ap] {
        for image in &images[..3] {
            region.client.assert_image("acme/app", &image.digest(), image).await;
        }
        until_it_answers_alone(region, "/v2/acme/app/manifests/v1").await;
    }
    // The others stand still: what is recorded now is acknowledged once their leases have run out, and comes to nobody.
    us.signal(libc::SIGSTOP);
    ap.signal(libc::SIGSTOP);
    // Their last question is still to be answered: this may come to them when they go on.
    eu.client.push_image("acme/app", "perhaps", &images[5]).await;
    eu.client.push_image("acme/app", "only", &images[3]).await;
    eu.client.put_manifest("acme/app", "v1", &images[3].manifest).await.expect(201);
    eu.client.delete("/v2/acme/app/manifests/gone").await.expect(202);
    eu.client.delete(&format!("/v2/acme/app/manifests/{}", images[2].digest())).await.expect(202);
    eu.server.kill();
    us.signal(libc::SIGCONT);
    ap.signal(libc::SIGCONT);

    until("they find a leader", || us.told(&["status"]).starts_with("decisions are taken"));
    let words = us.refuse(&["account", "failover", "acme", "--to", "us"]);
    assert!(words.contains("add --yes to do it"), "{words}");
    let said = us.operate(&["account", "failover", "acme", "--to", "us", "--yes"]);
    assert!(said.contains("region eu is the primary, region us would be") && said.contains(" manifests"), "{said}");
    assert!(said.contains("region us is the primary of account acme now"), "{said}");
    // Until the former primary's promises have run out the answers are marked, and a push is not acknowledged.
    let start = Instant::now();
    let early = us.client.get("/v2/acme/app/manifests/v1").await.expect(200);
    assert!(early.headers.contains_key("warning"), "unmarked {:?} after the failover", start.elapsed());
    for blob in images[4].blobs() {
        ap.client.push_blob("acme/app", &blob.bytes).await;
    }
    push_patiently(&ap.client, "acme/app", "v2", &images[4].manifest).await;
    let took = start.elapsed();
    assert!(took > LEASE, "acknowledged after {took:?}, while the former primary might have answered");
    us.client.assert_image("acme/app", "v2", &images[4]).await;
    assert_eq!(current(&us.client, "acme/app", "v1").await, Some(images[0].digest()));
    assert_eq!(current(&us.client, "acme/app", "gone").await, Some(images[1].digest()));

    // It comes back, and is never the primary again.
    eu.restart();
    push_patiently(&eu.client, "acme/app", "v3", &images[4].manifest).await;
    assert_eq!(current(&us.client, "acme/app", "v3").await, Some(images[4].digest()));
    until_it_answers_alone(&eu, "/v2/acme/app/manifests/v2").await;
    assert_eq!(current(&eu.client, "acme/app", "v1").await, Some(images[0].digest()));
    eu.client.get("/v2/acme/app/manifests/only").await.expect_error(404, "MANIFEST_UNKNOWN");
    let listed = eu.operate(&["account", "divergent", "acme", "--json"]);
    let listed: Vec<serde_json::Value> = serde_json::from_str(&listed).expect("JSON");
    let text = |value: &serde_json::Value| value.as_str().unwrap_or("-").to_owned();
    let mut told: Vec<_> = listed
        .iter()
        .map(|it| (text(&it["what"]), text(&it["tag"]), text(&it["digest"]), text(&it["there"])))
        .collect();
    told.retain(|row| row.1 != "perhaps" && row.2 != images[5].digest());
    told.sort();
    let row = |what: &str, tag: &str, digest: String, there: String| (what.to_owned(), tag.to_owned(), digest, there);
    let none = || "-".to_owned();
    assert_eq!(
        told,
        [
            row("manifest", "-", images[3].digest(), none()),
            row("manifest deleted", "-", images[2].digest(), none()),
            row("tag", "only", images[3].digest(), none()),
            row("tag", "v1", images[3].digest(), images[0].digest()),
            row("tag deleted", "gone", none(), images[1].digest()),
            row("tag deleted", "other", none(), images[2].digest()),
        ]
    );
    // Once more started it still has the list.
    eu.restart();
    let said = eu.operate(&["account", "divergent", "acme", "--push"]);
    assert!(said.contains("changes were pushed"), "{said}");
    for region in [&us, &ap, &eu] {
        region.client.assert_image("acme/app", "only", &images[3]).await;
        region.client.assert_manifest("acme/app", "v1", &images[3].manifest).await;
        region.client.get("/v2/acme/app/manifests/gone").await.expect_error(404, "MANIFEST_UNKNOWN");
        let path = format!("/v2/acme/app/manifests/{}", images[2].digest());
        region.client.get(&path).await.expect_error(404, "MANIFEST_UNKNOWN");
    }
    let said = eu.operate(&["account", "divergent", "acme"]);
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_needs_a_majority_and_a_copy() {
    let [mut eu, us, mut ap] = three_regions();
    let image = Image::small(1);
    eu.client.push_image("acme/app", "v1", &image).await;
    us.client.assert_image("acme/app", "v1", &image).await;
    until_it_answers_alone(&us, "/v2/acme/app/manifests/v1").await;
    let words = us.refuse(&["account", "failover", "acme", "--to", "ap", "--yes"]);
    assert!(words.contains("no whole copy of account acme") && words.contains("--force"), "{words}");
    let words = us.refuse(&["account", "failover", "acme", "--to", "eu", "--yes"]);
    assert!(words.contains("region eu is the primary of account acme already"), "{words}");
    let words = us.refuse(&["account", "move", "none", "--to", "eu"]);
    assert!(words.contains("there is no account none"), "{words}");
    eu.server.kill();
    ap.server.kill();
    let words = us.refuse(&["account", "failover", "acme", "--to", "us", "--yes"]);
    assert!(words.contains("no majority"), "{words}");
    assert_eq!(us.primary_of("acme"), "eu");
    ap.restart();
    us.operate(&["account", "failover", "acme", "--to", "us", "--yes"]);
    push_patiently(&ap.client, "acme/app", "v2", &image.manifest).await;
    us.client.assert_image("acme/app", "v2", &image).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_that_was_cut_off_is_gone_on_with_by_asking_again() {
    let [eu, mut us, ap] = three_regions();
    let image = ImageBuilder::new(1).layers(2).layer_bytes(1 << 20).build();
    eu.client.push_image("acme/app", "v1", &image).await;
    let blobs: Vec<Vec<u8>> = (0..3).map(|number| [&[number; 16], &large_blob(48)[..]].concat()).collect();
    let mut manifest = image.manifest.value();
    let layer = image.layers[0].media_type.clone();
    manifest["layers"] = serde_json::json!(
        blobs.iter().map(|bytes| Content::new(&layer, bytes.clone()).descriptor()).collect::<Vec<_>>()
    );
    let large = Content::json(&image.manifest.media_type, &manifest);
    for blob in &blobs {
        eu.client.push_blob("acme/app", blob).await;
    }
    eu.client.put_manifest("acme/app", "large", &large).await.expect(201);

    // The command is killed, then the region that is to take the account over.
    let mut command = eu.command(&["account", "move", "acme", "--to", "us"]);
    let mut running = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it runs");
    until_received(&us, 1 << 20).await;
    running.kill().expect("it is killed");
    running.wait().expect("it ends");
    let had = us.counter(RECEIVED).await;
    let mut running = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it runs");
    until_received(&us, had + (8 << 20)).await;
    us.server.kill();
    running.wait().expect("it ends");
    assert_eq!(eu.primary_of("acme"), "eu", "it was over before it was cut off");
    push_patiently(&ap.client, "acme/app", "meanwhile", &image.manifest).await;
    us.restart();
    until("it is back", || us.told(&["status"]).starts_with("decisions are taken"));
    if us.primary_of("acme") != "us" {
        eu.operate(&["account", "move", "acme", "--to", "us"]);
    }
    push_patiently(&ap.client, "acme/app", "v2", &image.manifest).await;
    // All of it is there, and only there is it decided.
    for region in [&us, &ap] {
        region.client.assert_manifest("acme/app", "large", &large).await;
        region.client.assert_image("acme/app", "meanwhile", &image).await;
    }
    let before = us.questions("blob").await;
    for blob in &blobs {
        let answer = us.client.get(&format!("/v2/acme/app/blobs/{}", crate::harness::images::sha256(blob))).await;
        assert_eq!(answer.expect(200).body.len(), blob.len());
    }
    assert_eq!(us.questions("blob").await, before, "they were to be fetched before");
    // What only a primary needs is in order: a blob in use cannot be deleted, and a sweep takes nothing.
    until("it is in order", || !us.told(&["accounts"]).contains("put in order"));
    let path = format!("/v2/acme/app/blobs/{}", crate::harness::images::sha256(&blobs[0]));
    assert_eq!(us.client.delete(&path).await.status, 409, "a manifest refers to it");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_lost_primary_alone_had_is_not_denied_and_is_there_again_when_it_returns_or_is_pushed() {
    let [mut eu, us, ap] = three_regions();
    let image = ImageBuilder::new(1).layers(3).layer_bytes(2000).build();
    eu.client.push_image("acme/app", "v1", &image).await;
    us.client.assert_manifest("acme/app", "v1", &image.manifest).await;
    until_it_answers_alone(&us, "/v2/acme/app/manifests/v1").await;
    eu.server.kill();
    let said = us.operate(&["account", "failover", "acme", "--to", "us", "--yes"]);
    assert!(said.contains("Of 4 blobs that it needs, 4 are not there"), "{said}");
    let path = |at: usize| format!("/v2/acme/app/blobs/{}", image.layers[at].digest());
    for number in 0..20 {
        // At once, and when it is known what is missing.
        for region in [&us, &ap] {
            let answer = region.client.get(&path(0)).await;
            assert_eq!(answer.status, 503, "{number}: {}", answer.text());
            assert!(!answer.header("retry-after").is_empty());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // What nothing needs is absent, as soon as it is known what is missing.
    let unknown = format!("/v2/acme/app/blobs/sha256:{}", "0".repeat(64));
    let start = std::time::Instant::now();
    while us.client.get(&unknown).await.status == 503 {
        assert!(start.elapsed() < Duration::from_secs(30), "it is never known what is missing");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    us.client.get(&unknown).await.expect_error(404, "BLOB_UNKNOWN");
    // Who wants to push it is told to send it.
    us.client.head(&path(1)).await.expect(404);
    us.client.push_blob("acme/app", &image.layers[1].bytes).await;
    for region in [&us, &ap] {
        assert_eq!(region.client.get(&path(1)).await.expect(200).body, image.layers[1].bytes);
    }
    eu.restart();
    let start = Instant::now();
    while us.client.get(&path(0)).await.status != 200 {
        assert!(start.elapsed() < PATIENCE, "it does not come, though it is to be had");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for region in [&us, &ap, &eu] {
        region.client.assert_image("acme/app", "v1", &image).await;
    }
    // All of it comes by itself, so that the other may go for good.
    until("all of it is there", || {
        let said = ap.operate(&["account", "move", "acme", "--to", "ap"]);
        said.contains("region ap is the primary")
    });
    eu.server.kill();
    ap.client.assert_image("acme/app", "v1", &image).await;
}
