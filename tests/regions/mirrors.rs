//! An account that mirrors a registry outside: its primary asks there, the other regions ask the primary.

use std::sync::atomic::{AtomicUsize, Ordering};

use reqwest::Method;
use serde_json::json;

use crate::federation::{Region, large_blob, three_regions, until};
use crate::harness::{Image, Reply, Upstream, client::send};

/// Three regions, of which eu is the primary of the account `mirror`, and what that mirrors, with an image.
async fn with_mirror(image: &Image) -> ([Region; 3], Upstream) {
    let [eu, us, ap] = three_regions();
    let upstream = Upstream::start().await;
    upstream.add_image("app", "v1", image);
    let account = json!({ "account": { "auth_tenant_id": "acme", "replication": {
        "strategy": "from_external_on_first_use",
        "upstream": { "url": upstream.host() },
    }}});
    let request = eu.client.request(Method::PUT, "/keppel/v1/accounts/mirror");
    send(request.body(account.to_string())).await.expect(200);
    until("the account is known everywhere", || {
        [&us, &ap].iter().all(|region| region.told(&["accounts"]).contains("mirror"))
    });
    ([eu, us, ap], upstream)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_outside_is_asked_by_the_primary_for_all_regions() {
    let (image, next) = (Image::small(1), Image::small(2));
    let ([eu, us, ap], upstream) = with_mirror(&image).await;
    us.client.assert_image("mirror/app", "v1", &image).await;
    // All regions list what was pulled, as the primary has it.
    let (repositories, manifests) =
        ("/keppel/v1/accounts/mirror/repositories", "/keppel/v1/accounts/mirror/repositories/app/_manifests");
    for (path, name) in [(repositories, "repositories"), (manifests, "manifests")] {
        for region in [&eu, &us, &ap] {
            let listed = region.client.get(path).await.expect(200);
            assert_eq!(listed.json()[name].as_array().map(Vec::len), Some(1), "{path}");
            assert!(listed.headers.get("warning").is_none(), "{path}");
        }
    }
    ap.client.assert_image("mirror/app", "v1", &image).await;
    for blob in image.blobs() {
        assert_eq!(upstream.count("GET", &format!("/blobs/{}", blob.digest())), 1, "fetched once for all");
    }
    // The next version shows in every region; nothing is pushed in any.
    upstream.add_image("app", "v1", &next);
    for region in [&us, &eu, &ap] {
        region.client.assert_image("mirror/app", "v1", &next).await;
        let refused = region.client.put_manifest("mirror/app", "v2", &image.manifest).await;
        refused.expect_error(405, "UNSUPPORTED");
    }
    let layer = large_blob(8);
    let path = format!("/v2/mirror/app/blobs/{}", upstream.add_blob(&layer));
    let head = us.client.head(&path).await.expect(200);
    assert_eq!(head.header("content-length"), layer.len().to_string());
    assert!(us.client.get(&path).await.expect(200).body == layer);
    // What the registry outside answers is told in the same words everywhere.
    for region in [&eu, &us] {
        region.client.get("/v2/mirror/app/manifests/v9").await.expect_error(404, "MANIFEST_UNKNOWN");
    }
    upstream.rule(|_, _| Reply::new(429).with("retry-after", "600"));
    for region in [&eu, &us, &ap] {
        region.client.get("/v2/mirror/app/manifests/v8").await.expect_error(429, "TOOMANYREQUESTS");
    }
    // The others tried on its behalf, once each.
    assert_eq!(upstream.count("GET", "manifests/v8"), 3, "each region remembers that it has to wait");
    for region in [&eu, &us, &ap] {
        let stale = region.client.get("/v2/mirror/app/manifests/v1").await.expect(200);
        assert_eq!(stale.body, next.manifest.bytes);
        assert!(stale.header("warning").starts_with("110 "));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_limit_of_one_region_is_spent_another_asks_on_its_behalf() {
    let (image, next) = (Image::small(1), Image::small(2));
    let ([eu, us, _ap], upstream) = with_mirror(&image).await;
    // Manifests are counted, and who asks first has had enough.
    let refusals = AtomicUsize::new(0);
    upstream.rule(move |asked, good| {
        let is_first = asked.path.contains("/manifests/") && refusals.fetch_add(1, Ordering::SeqCst) == 0;
        if is_first { Reply::new(429).with("retry-after", "600") } else { good }
    });
    us.client.assert_image("mirror/app", "v1", &image).await;
    assert_eq!(eu.counter("keppel_external_delegated_total").await, 1);
    for blob in image.blobs() {
        assert_eq!(upstream.count("GET", &format!("/blobs/{}", blob.digest())), 1);
    }
    // A known tag is asked about, and its next version comes the same way; what is not there is not there.
    upstream.add_image("app", "v1", &next);
    eu.client.assert_image("mirror/app", "v1", &next).await;
    eu.client.get("/v2/mirror/app/manifests/v7").await.expect_error(404, "MANIFEST_UNKNOWN");
    eu.client.assert_image("mirror/app", "v1", &next).await;
    let told = eu.client.get("/v2/mirror/app/manifests/v1").await.expect(200);
    assert!(told.headers.get("warning").is_none(), "it is current, whoever has asked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_is_not_moved_and_says_why_and_is_failed_over_by_force() {
    let (image, next) = (Image::small(1), Image::small(2));
    let ([mut eu, us, ap], upstream) = with_mirror(&image).await;
    eu.client.assert_image("mirror/app", "v1", &image).await;
    let words = eu.refuse(&["account", "move", "mirror", "--to", "us"]);
    assert!(words.contains(&format!("mirrors {} and cannot be moved", upstream.host())), "{words}");
    assert_eq!(us.primary_of("mirror"), "eu");
    eu.client.assert_image("mirror/app", "v1", &image).await;

    eu.server.kill();
    until("they find a leader", || us.told(&["status"]).starts_with("decisions are taken"));
    let words = us.refuse(&["account", "failover", "mirror", "--to", "us", "--yes"]);
    assert!(words.contains("--force"), "{words}");
    us.operate(&["account", "failover", "mirror", "--to", "us", "--yes", "--force"]);
    // What is there now is fetched, by the region that asks from now on, for all.
    upstream.add_image("app", "v1", &next);
    let patiently = async |region: &Region| {
        let start = std::time::Instant::now();
        loop {
            let answer = region.client.get("/v2/mirror/app/manifests/v1").await;
            if answer.status == 200 && answer.headers.get("warning").is_none() {
                assert_eq!(answer.body, next.manifest.bytes);
                break;
            }
            assert!(start.elapsed() < std::time::Duration::from_secs(30), "{} {}", answer.status, answer.text());
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        region.client.assert_image("mirror/app", "v1", &next).await;
    };
    patiently(&us).await;
    patiently(&ap).await;
    eu.restart();
    until("it knows its successor", || eu.primary_of("mirror") == "us");
    patiently(&eu).await;
    let said = eu.operate(&["account", "divergent", "mirror"]);
    assert_eq!(said.lines().count(), 1, "what can be pulled again is nobody's alone: {said}");
}
