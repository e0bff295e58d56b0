//! The next version of an image, pushed in one region and pulled at once in the others.

use std::time::Instant;

use futures_util::future::join_all;

use crate::federation::{Region, three_regions};
use crate::harness::{Image, ImageBuilder};

/// How many versions; a thousand in the long form.
fn rounds() -> u64 {
    let given = std::env::var("KEPPEL_TEST_VERSIONS").ok();
    given.map_or(100, |given| given.parse().expect("KEPPEL_TEST_VERSIONS is a number"))
}

/// Pulls an image with all its bytes by a tag, which must be current.
async fn assert_newest(region: &Region, image: &Image, round: u64) {
    let pulled = region.client.get("/v2/acme/app/manifests/latest").await.expect(200);
    assert!(pulled.headers.get("warning").is_none(), "round {round}: marked");
    assert_eq!(pulled.header("docker-content-digest"), image.digest(), "round {round}: the old one");
    assert_eq!(pulled.body, image.manifest.bytes, "round {round}");
    for blob in image.blobs() {
        let pulled = region.client.get(&format!("/v2/acme/app/blobs/{}", blob.digest())).await.expect(200);
        assert!(pulled.body == blob.bytes, "round {round}: a wrong byte");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn from_its_201_on_the_next_version_is_what_every_region_gives() {
    let [eu, us, ap] = three_regions();
    eu.client.push_image("acme/app", "latest", &Image::small(1)).await;
    let (start, rounds) = (Instant::now(), rounds());
    for round in 0..rounds {
        let image = ImageBuilder::new(100 + round).layers(1).layer_bytes(5000).build();
        us.client.push_image("acme/app", "latest", &image).await;
        join_all([&eu, &ap].map(|region| assert_newest(region, &image, round))).await;
    }
    println!("{rounds} versions in {:?}", start.elapsed());
    // Most answers came from the copies here, or this would not have tested them.
    assert!(ap.counter("keppel_copy_answers_total").await > 0);
}
