use std::time::{Duration, Instant};

use crate::federation::{LEASE, large_blob, three_regions, until};
use crate::harness::Image;
use crate::leases::until_it_answers_alone;

#[tokio::test(flavor = "multi_thread")]
async fn without_its_primary_a_region_serves_what_it_has_and_says_so_and_never_a_false_404() {
    let [mut eu, us, ap] = three_regions();
    let (image, later) = (Image::small(1), Image::small(2));
    eu.client.push_image("acme/app", "v1", &image).await;
    us.client.assert_image("acme/app", "v1", &image).await;
    until_it_answers_alone(&us, "/v2/acme/app/manifests/v1").await;
    eu.client.push_image("acme/app", "later", &later).await;
    eu.server.kill();

    // As long as its lease lasts it answers as before; from then on the answers are marked.
    let start = Instant::now();
    let stale = loop {
        let answer = us.client.get("/v2/acme/app/manifests/v1").await.expect(200);
        assert_eq!(answer.body, image.manifest.bytes);
        if answer.headers.contains_key("warning") {
            break answer;
        }
        assert!(start.elapsed() < LEASE, "not marked after {:?}", start.elapsed());
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(start.elapsed() < Duration::from_secs(10), "after {:?}", start.elapsed());
    assert!(stale.header("warning").starts_with("110 "));
    // So does what was never pulled here, and a list.
    let stale = us.client.get("/v2/acme/app/manifests/later").await.expect(200);
    assert_eq!((stale.body, &stale.headers["warning"].as_bytes()[..4]), (later.manifest.bytes.clone(), &b"110 "[..]));
    let stale = us.client.get("/v2/acme/app/tags/list").await.expect(200);
    assert_eq!(stale.json()["tags"], serde_json::json!(["later", "v1"]));
    assert!(stale.header("warning").starts_with("110 "));
    // By digest there is nothing that could be out of date.
    let by_digest = us.client.get(&format!("/v2/acme/app/manifests/{}", image.digest())).await.expect(200);
    assert!(by_digest.headers.get("warning").is_none());
    for blob in image.blobs() {
        let path = format!("/v2/acme/app/blobs/{}", blob.digest());
        assert_eq!(us.client.get(&path).await.expect(200).body, blob.bytes);
    }
    // What is not known is not denied.
    let asked = [
        (&us, "/v2/acme/app/manifests/nothing"),
        (&us, "/v2/acme/none/tags/list"),
        (&ap, "/v2/acme/app/manifests/later"),
        (&ap, "/v2/acme/app/manifests/nothing"),
        (&ap, "/v2/acme/app/tags/list"),
    ];
    for (region, path) in asked {
        let unknown = region.client.get(path).await.expect_error(503, "UNAVAILABLE");
        assert!(!unknown.header("retry-after").is_empty());
        assert!(unknown.message().contains("region eu"), "{}", unknown.message());
    }
    let refused = us.client.put_manifest("acme/app", "v2", &image.manifest).await;
    refused.expect_error(503, "UNAVAILABLE");
    // The account of another region goes on.
    us.client.push_image("other/app", "v1", &image).await;
    ap.client.assert_image("other/app", "v1", &image).await;

    eu.restart();
    until("the primary is back", || {
        let members = us.told(&["status", "--json"]);
        let status: serde_json::Value = serde_json::from_str(&members).expect("JSON");
        status["members"].as_array().is_some_and(|members| members.iter().all(|member| member["health"] == "alive"))
    });
    us.client.assert_image("acme/app", "later", &later).await;
    let fresh = us.client.get("/v2/acme/app/manifests/v1").await.expect(200);
    assert!(fresh.headers.get("warning").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_goes_on_when_its_source_was_killed_and_came_back() {
    let [mut eu, us, _ap] = three_regions();
    let layer = large_blob(64);
    let digest = eu.client.push_blob("acme/app", &layer).await;
    let (client, path) = (us.server.client(), format!("/v2/acme/app/blobs/{digest}"));
    let pull = tokio::spawn(async move { client.get(&path).await });
    let start = Instant::now();
    while us.counter("keppel_transfer_received_bytes_total").await < 4 << 20 {
        assert!(start.elapsed() < Duration::from_secs(30), "the transfer does not begin");
    }
    eu.server.kill();
    eu.restart();
    let pulled = pull.await.expect("it ends").expect(200);
    assert!(pulled.body == layer);
    let received = us.counter("keppel_transfer_received_bytes_total").await;
    assert!(received as f64 <= 1.05 * layer.len() as f64, "{received} bytes for {}", layer.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_killed_in_mid_transfer_shows_nothing_by_halves_and_pulls_again() {
    let [eu, mut us, ap] = three_regions();
    let layer = large_blob(64);
    let digest = eu.client.push_blob("acme/app", &layer).await;
    let path = format!("/v2/acme/app/blobs/{digest}");
    let (client, asked) = (us.server.client(), path.clone());
    let pull = tokio::spawn(async move {
        crate::harness::client::try_send(client.request("GET".parse().expect("a method"), &asked)).await
    });
    let start = Instant::now();
    while us.counter("keppel_transfer_received_bytes_total").await < 2 << 20 {
        assert!(start.elapsed() < Duration::from_secs(30), "the transfer does not begin");
    }
    us.server.kill();
    let _broken = pull.await.expect("it ends");
    // While nobody can complete it, it is not there: not whole, not in part, nor denied.
    eu.signal(libc::SIGSTOP);
    us.restart();
    let part = us.client.get_with(&path, "range", "bytes=0-999");
    let (whole, part, head) = tokio::join!(us.client.get(&path), part, us.client.head(&path));
    for answer in [whole, part, head] {
        answer.expect(503);
    }
    eu.signal(libc::SIGCONT);
    until("they see each other", || us.sees_alive("eu"));
    assert!(us.client.get(&path).await.expect(200).body == layer);
    assert!(ap.client.get(&path).await.expect(200).body == layer);
}
