//! Uploads whose requests come to other regions than the one where they began: what a load balancer or an anycast address
//! may do with any client.

use reqwest::Method;

use crate::federation::{Region, three_regions};
use crate::harness::client::send;
use crate::harness::images::{random_bytes, sha256};
use crate::harness::{Image, ImageBuilder};

const MIB: usize = 1 << 20;

/// What is there of an upload, as a region says; `None`: there is none.
async fn arrived(region: &Region, location: &str) -> Option<String> {
    let answer = region.client.get(location).await;
    match answer.status {
        404 => None,
        _ => Some(answer.expect(204).header("range").to_owned()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_goes_on_in_any_region_and_after_a_restart_of_the_one_that_holds_it() {
    let [eu, mut us, ap] = three_regions();
    let layer = random_bytes(7, 7 * MIB + 17);
    let location = us.client.open_upload("acme/app").await;
    assert_eq!(arrived(&eu, &location).await.as_deref(), Some("0-0"));
    // Larger than what goes over at a time, without and with its place.
    let answer = ap.client.stream(&location, layer[..5 * MIB].to_vec()).await.expect(202);
    assert_eq!((answer.header("range"), answer.location()), (&*format!("0-{}", 5 * MIB - 1), location.clone()));
    eu.client.chunk(&location, 5 * MIB, &layer[5 * MIB..6 * MIB]).await.expect(202);
    let ranges = async |regions: [&Region; 3]| {
        for region in regions {
            assert_eq!(arrived(region, &location).await, Some(format!("0-{}", 6 * MIB - 1)));
        }
    };
    ranges([&eu, &us, &ap]).await;
    // A chunk that belongs elsewhere says where the upload is, and one that was sent twice counts once.
    for first in [0, 5 * MIB, 6 * MIB + 1] {
        let refused = ap.client.chunk(&location, first, &layer[..9]).await.expect(416);
        assert_eq!(refused.header("range"), format!("0-{}", 6 * MIB - 1));
    }
    // It is of one repository, wherever it is asked for.
    let other = location.replace("acme/app", "acme/other");
    for region in [&eu, &us, &ap] {
        assert_eq!(arrived(region, &other).await, None);
        region.client.stream(&other, b"x".to_vec()).await.expect_error(404, "BLOB_UPLOAD_UNKNOWN");
    }
    us.restart();
    ranges([&ap, &us, &eu]).await;
    eu.client.close_upload(&location, &sha256(&layer), &layer[6 * MIB..]).await.expect(201);
    for region in [&eu, &us, &ap] {
        assert_eq!(arrived(region, &location).await, None);
    }
    // A manifest in the third region finds it.
    let mut image = ImageBuilder::new(1).layers(1).build();
    image.layers[0].bytes = layer;
    let mut manifest = image.manifest.value();
    manifest["layers"] = serde_json::json!([image.layers[0].descriptor()]);
    image.manifest.bytes = manifest.to_string().into_bytes();
    ap.client.push_blob("acme/app", &image.config.bytes).await;
    ap.client.put_manifest("acme/app", "v1", &image.manifest).await.expect(201);
    for region in [&eu, &us, &ap] {
        region.client.assert_image("acme/app", "v1", &image).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_request_of_a_push_may_come_to_another_region() {
    let regions = three_regions();
    let mut turn = 0;
    let mut next = || {
        turn += 1;
        &regions[turn % 3].client
    };
    for number in 0..6 {
        let image = Image::small(number);
        for blob in image.blobs() {
            let location = next().open_upload("acme/app").await;
            let (first, second) = blob.bytes.split_at(blob.bytes.len() / 2);
            next().stream(&location, first.to_vec()).await.expect(202);
            next().stream(&location, second.to_vec()).await.expect(202);
            next().close_upload(&location, &blob.digest(), b"").await.expect(201);
            // The turns differ with each blob.
            next();
        }
        next().put_manifest("acme/app", &format!("v{number}"), &image.manifest).await.expect(201);
        for region in &regions {
            region.client.assert_image("acme/app", &format!("v{number}"), &image).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_with_an_upload_is_said_as_where_it_is_held() {
    let [eu, us, ap] = three_regions();
    // Given up.
    let location = us.client.open_upload("acme/app").await;
    us.client.stream(&location, b"some".to_vec()).await.expect(202);
    ap.client.delete(&location).await.expect(204);
    assert_eq!(arrived(&us, &location).await, None);
    eu.client.delete(&location).await.expect_error(404, "BLOB_UPLOAD_UNKNOWN");
    // Its bytes are not what they were said to be: it is over.
    let location = us.client.open_upload("acme/app").await;
    ap.client.stream(&location, b"some".to_vec()).await.expect(202);
    ap.client.close_upload(&location, &sha256(b"other"), b"").await.expect_error(400, "DIGEST_INVALID");
    assert_eq!(arrived(&ap, &location).await, None);
    // More or less than was announced.
    let location = us.client.open_upload("acme/app").await;
    let short = ap.client.request(Method::PATCH, &location).header("Content-Range", "0-9").body(b"four".to_vec());
    send(short).await.expect_error(400, "SIZE_INVALID");
    // Nothing changes nothing.
    ap.client.stream(&location, Vec::new()).await.expect(202);
    assert_eq!(arrived(&eu, &location).await.as_deref(), Some("0-0"));
    // Nobody holds it.
    let unknown = format!("/v2/acme/app/blobs/uploads/{}", "0".repeat(32));
    for region in [&eu, &us, &ap] {
        region.client.stream(&unknown, b"x".to_vec()).await.expect_error(404, "BLOB_UPLOAD_UNKNOWN");
    }
    // Its holder is gone for now.
    us.client.stream(&location, b"some".to_vec()).await.expect(202);
    us.signal(libc::SIGKILL);
    let refused = ap.client.stream(&location, b"more".to_vec()).await.expect_error(503, "UNAVAILABLE");
    assert!(!refused.header("retry-after").is_empty());
}
