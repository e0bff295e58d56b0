//! Names by which an account is reached in several regions: one that all regions share, those of single regions, and those
//! of accounts below any of them.

use std::time::{Duration, Instant};

use reqwest::Method;
use reqwest::header::{CONTENT_TYPE, HOST};
use serde_json::json;

use crate::federation::{Region, three_regions_with, until};
use crate::harness::client::send;
use crate::harness::{Answer, Image};
use crate::leases::until_it_answers_alone;

/// A host for all regions, and one for each.
const HOSTS: &str =
    "http.public_hosts=[\"registry.test\", \"eu.registry.test\", \"us.registry.test\", \"ap.registry.test\"]";

async fn ask(region: &Region, host: &str, method: Method, path: &str) -> Answer {
    send(region.client.request(method, path).header(HOST, host)).await
}

/// Pushes an image as a client does that knows the registry by this host.
async fn push(region: &Region, host: &str, repository: &str, tag: &str, image: &Image) {
    for blob in image.blobs() {
        let path = format!("/v2/{repository}/blobs/uploads/");
        let opened = send(region.client.request(Method::POST, &path).header(HOST, host).header("content-length", "0"));
        let location = opened.await.expect(202).location();
        assert!(
            location.starts_with(&format!("/v2/{repository}/")),
            "a client that follows {location} leaves the host"
        );
        let joint = if location.contains('?') { '&' } else { '?' };
        let close = format!("{location}{joint}digest={}", blob.digest());
        let closed = region.client.request(Method::PUT, &close).header(HOST, host).body(blob.bytes.clone());
        send(closed.header(CONTENT_TYPE, "application/octet-stream")).await.expect(201);
    }
    let path = format!("/v2/{repository}/manifests/{tag}");
    let put = region.client.request(Method::PUT, &path).header(HOST, host).body(image.manifest.bytes.clone());
    send(put.header(CONTENT_TYPE, &image.manifest.media_type)).await.expect(201);
}

/// Pulls it with all its blobs; gives the answer about the manifest.
async fn pull(region: &Region, host: &str, repository: &str, tag: &str, image: &Image) -> Answer {
    let answer = ask(region, host, Method::GET, &format!("/v2/{repository}/manifests/{tag}")).await.expect(200);
    assert_eq!(answer.body, image.manifest.bytes, "{host} {repository}:{tag}");
    for blob in image.blobs() {
        let path = format!("/v2/{repository}/blobs/{}", blob.digest());
        assert!(ask(region, host, Method::GET, &path).await.expect(200).body == blob.bytes, "{host} {path}");
    }
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn any_region_answers_for_any_account_by_the_name_they_share_and_by_the_names_of_accounts() {
    let [mut eu, us, ap] = three_regions_with(&[HOSTS]);
    let (first, second) = (Image::small(1), Image::small(2));
    // Whichever region the shared name leads to, it is the same registry.
    push(&eu, "registry.test", "acme/app", "v1", &first).await;
    for region in [&us, &ap] {
        until("the account is known", || region.told(&["accounts"]).contains("acme"));
        pull(region, "registry.test", "acme/app", "v1", &first).await;
    }
    // So it is by the account's own name, below the shared host or a region's.
    push(&us, "acme.registry.test", "app", "v2", &second).await;
    for (region, host) in
        [(&eu, "acme.eu.registry.test"), (&ap, "acme.registry.test"), (&ap, "ACME.ap.registry.test:443")]
    {
        let answer = pull(region, host, "app", "v2", &second).await;
        assert!(answer.headers.get("warning").is_none());
        let tags = ask(region, host, Method::GET, "/v2/app/tags/list").await.expect(200).json();
        assert_eq!(tags, json!({ "name": "app", "tags": ["v1", "v2"] }), "{host}");
        // Nothing but the distribution API and tokens is served there.
        for path in ["/keppel/v1/accounts", "/keppel/v1/peers", "/metrics", "/health/ready"] {
            ask(region, host, Method::GET, path).await.expect(404);
        }
        ask(region, host, Method::GET, "/v2/acme/app/manifests/v2").await.expect_error(404, "NAME_UNKNOWN");
    }
    // What is pushed by one name replaces what another one shows, at once and everywhere.
    push(&ap, "acme.ap.registry.test", "app", "v1", &second).await;
    for (region, host, repository) in [
        (&us, "registry.test", "acme/app"),
        (&eu, "us.registry.test", "acme/app"),
        (&us, "acme.us.registry.test", "app"),
    ] {
        pull(region, host, repository, "v1", &second).await;
    }
    let deleted = ask(&us, "acme.registry.test", Method::DELETE, "/v2/app/manifests/v2").await;
    assert_eq!(deleted.status, 202);
    ask(&ap, "registry.test", Method::GET, "/v2/acme/app/manifests/v2").await.expect_error(404, "MANIFEST_UNKNOWN");

    // Without the primary the names go on as far as the region can, and say so.
    until_it_answers_alone(&us, "/v2/acme/app/manifests/v1").await;
    eu.server.kill();
    let start = Instant::now();
    loop {
        let answer = pull(&us, "acme.registry.test", "app", "v1", &second).await;
        if answer.headers.contains_key("warning") {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "it is not marked");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let unknown = ask(&us, "acme.registry.test", Method::GET, "/v2/app/manifests/v9").await;
    assert!(!unknown.expect_error(503, "UNAVAILABLE").header("retry-after").is_empty());
}
