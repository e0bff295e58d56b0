use crate::federation::three_regions;
use crate::harness::{Image, ImageBuilder, Index, Kind};

#[tokio::test(flavor = "multi_thread")]
async fn a_push_to_any_region_is_with_the_primary_when_it_is_acknowledged() {
    let [eu, mut us, ap] = three_regions();
    eu.client.push_image("acme/app", "v1", &Image::small(1)).await;
    let image = ImageBuilder::new(2).layers(3).layer_bytes(1 << 20).build();
    us.client.push_image("acme/app", "v2", &image).await;
    let index = Index::of(Kind::Oci, vec![Image::small(3), Image::small(4)]);
    us.client.push_index("acme/other", "multi", &index).await;
    // Whoever took the push is gone; nothing that was acknowledged is.
    us.server.kill();
    for region in [&eu, &ap] {
        region.client.assert_image("acme/app", "v2", &image).await;
        region.client.assert_manifest("acme/other", "multi", &index.manifest).await;
        for part in &index.images {
            region.client.assert_image("acme/other", &part.digest(), part).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_primary_refuses_is_refused_everywhere_with_the_same_words() {
    let [eu, us, _ap] = three_regions();
    let image = Image::small(1);
    eu.client.push_image("acme/app", "v1", &image).await;
    let unknown = Image::small(2);
    let mut answers = Vec::new();
    for region in [&eu, &us] {
        let refused = region.client.put_manifest("acme/app", "v2", &unknown.manifest).await;
        let refused = refused.expect_error(404, "MANIFEST_BLOB_UNKNOWN");
        answers.push((refused.message(), refused.json()["errors"].as_array().map(Vec::len)));
        let garbage = crate::harness::Content::new(&image.manifest.media_type, b"{}".to_vec());
        region.client.put_manifest("acme/app", "v2", &garbage).await.expect_error(400, "MANIFEST_INVALID");
    }
    assert_eq!(answers[0], answers[1]);
    assert_eq!(us.client.tags("acme/app").await, ["v1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts_and_deletes_reach_the_primary_from_any_region() {
    let [eu, us, ap] = three_regions();
    let image = Image::small(1);
    eu.client.push_image("acme/app", "v1", &image).await;
    // Nothing of it is in us; its client may mount it all the same, and needs to send no blob.
    for blob in image.blobs() {
        let path = format!("/v2/acme/copy/blobs/uploads/?mount={}&from=acme/app", blob.digest());
        us.client.post(&path).await.expect(201);
    }
    us.client.put_manifest("acme/copy", "v1", &image.manifest).await.expect(201);
    ap.client.assert_image("acme/copy", "v1", &image).await;

    ap.client.assert_image("acme/app", "v1", &image).await;
    us.client.delete("/v2/acme/app/manifests/v1").await.expect(202);
    for region in [&eu, &us, &ap] {
        region.client.get("/v2/acme/app/manifests/v1").await.expect_error(404, "MANIFEST_UNKNOWN");
    }
    eu.client.assert_manifest("acme/app", &image.digest(), &image.manifest).await;
    us.client.delete(&format!("/v2/acme/app/manifests/{}", image.digest())).await.expect(202);
    for region in [&eu, &us] {
        let path = format!("/v2/acme/app/manifests/{}", image.digest());
        region.client.get(&path).await.expect_error(404, "MANIFEST_UNKNOWN");
    }
}
