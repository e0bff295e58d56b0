use reqwest::Method;
use serde_json::json;

use crate::copies::put_account;
use crate::federation::{three_regions, three_regions_with, until};
use crate::harness::client::send;
use crate::harness::images::{OCI_CONFIG, OCI_LAYER, OCI_MANIFEST};
use crate::harness::{Content, Image, ImageBuilder, Index, Kind};

/// The manifest of an image with one layer, and `{}` as its configuration.
pub fn manifest_of(layer: &[u8]) -> Content {
    let config = Content::new(OCI_CONFIG, *b"{}");
    let layer = Content::new(OCI_LAYER, layer);
    let value = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": config.descriptor(), "layers": [layer.descriptor()],
    });
    Content::json(OCI_MANIFEST, &value)
}

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

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_is_deleted_from_any_region_and_in_all() {
    let [eu, us, ap] = three_regions();
    for (number, name) in [(1, "acme/app"), (2, "acme/deep/app"), (3, "acme/other")] {
        eu.client.push_image(name, "v1", &Image::small(number)).await;
    }
    let guard = |block: bool| {
        let policies = if block { r#"[{"match_tag": "v.*", "block_delete": true}]"# } else { "[]" };
        format!(r#"{{"account": {{"auth_tenant_id": "default", "tag_policies": {policies}}}}}"#)
    };
    let put_policies = async |block: bool| {
        let request = eu.client.request(Method::PUT, "/keppel/v1/accounts/acme").body(guard(block));
        send(request).await.expect(200);
    };
    let path = |name: &str| format!("/keppel/v1/accounts/acme/repositories/{name}");
    put_policies(true).await;
    // The primary alone decides whether a tag is protected, and in the same words everywhere.
    let refused = us.client.delete(&path("app")).await.expect(409).text();
    assert_eq!(refused, eu.client.delete(&path("app")).await.expect(409).text());
    assert!(refused.contains("account.tag_policies[0] sets block_delete"), "{refused}");
    put_policies(false).await;
    us.client.delete(&path("app")).await.expect(204);
    // ap has not used the account at all, and lists it all the same.
    let listed = ap.client.get("/keppel/v1/accounts/acme/repositories").await.expect(200).json();
    assert_eq!(listed["repositories"][0]["name"], "deep/app", "{listed}");
    let listed = ap.client.get("/keppel/v1/peers").await.expect(200).json();
    let mut names: Vec<_> = listed["peers"].as_array().expect("a list").iter().map(|peer| &peer["hostname"]).collect();
    names.sort_by_key(|name| name.to_string());
    assert_eq!(names, ["eu", "us"], "their regions, where they have told no URL");
    ap.client.delete(&path("deep/app")).await.expect(204);
    for region in [&eu, &us, &ap] {
        for name in ["app", "deep/app"] {
            region.client.get(&format!("/v2/acme/{name}/manifests/v1")).await.expect(404);
        }
        region.client.delete(&path("app")).await.expect(404);
        region.client.assert_manifest("acme/other", "v1", &Image::small(3).manifest).await;
    }
    let listed = eu.client.get("/keppel/v1/accounts/acme/repositories").await.json();
    assert_eq!(listed["repositories"].as_array().map(Vec::len), Some(1), "{listed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_of_accounts_of_other_regions_are_limited_where_nothing_of_them_is_held() {
    let [eu, us, _ap] = three_regions_with(&["limits.anycast_blob_pull_bytes=1000/h burst 1000"]);
    let blob = crate::harness::images::random_bytes(1, 700);
    let digest = eu.client.push_blob("acme/app", &blob).await;
    let path = format!("/v2/acme/app/blobs/{digest}");
    // Half of a blob counts for half, and a look at it for nothing.
    us.client.head(&path).await.expect(200);
    let half = us.client.get_with(&path, "range", "bytes=0-349").await.expect(206);
    assert_eq!(
        (half.header("x-ratelimit-action"), half.header("x-ratelimit-limit")),
        ("anycast_blob_pull_bytes", "1000")
    );
    let left: u64 = half.header("x-ratelimit-remaining").parse().expect("a number");
    assert!((650..660).contains(&left), "{left}");
    let refused = us.client.get(&path).await.expect_error(429, "TOOMANYREQUESTS");
    assert!(refused.header("retry-after").parse::<u64>().expect("a number") > 60);
    us.client.get_with(&path, "range", "bytes=0-349").await.expect(206);
    // Where the primary is nothing of this kind is counted.
    for _ in 0..3 {
        let whole = eu.client.get(&path).await.expect(200);
        assert!(!whole.headers.contains_key("x-ratelimit-action"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_may_come_in_parts_by_way_of_several_regions() {
    let [eu, mut us, ap] = three_regions();
    eu.client.push_image("acme/app", "v0", &Image::small(1)).await;
    // Blobs by way of one and the manifest by way of another; the primary is either, or neither.
    for (number, (blobs, manifest)) in [(&us, &ap), (&us, &eu), (&eu, &us), (&ap, &us)].into_iter().enumerate() {
        let image = ImageBuilder::new(10 + number as u64).layers(3).layer_bytes(700_000).build();
        for blob in image.blobs() {
            blobs.client.push_blob("acme/app", &blob.bytes).await;
        }
        let tag = format!("v{number}");
        manifest.client.put_manifest("acme/app", &tag, &image.manifest).await.expect(201);
        for region in [&eu, &us, &ap] {
            region.client.assert_image("acme/app", &tag, &image).await;
        }
    }
    // Each blob another way, into a repository that the primary has never heard of; copies are made as well.
    put_account(&eu, "twice", json!({"copies": 2})).await.expect(200);
    for (number, (repository, pusher)) in [("acme/new", &ap), ("twice/app", &us), ("twice/app", &eu)].iter().enumerate()
    {
        let image = ImageBuilder::new(20 + number as u64).layers(5).build();
        for (number, blob) in image.blobs().enumerate() {
            [&us, &ap, &eu][number % 3].client.push_blob(repository, &blob.bytes).await;
        }
        pusher.client.put_manifest(repository, "v1", &image.manifest).await.expect(201);
        for region in [&eu, &us, &ap] {
            region.client.assert_image(repository, "v1", &image).await;
        }
    }
    // What one region mounted out of its own copy, for a manifest that another one is given.
    let image = ImageBuilder::new(10).layers(3).layer_bytes(700_000).build();
    for blob in image.blobs() {
        let path = format!("/v2/acme/mounted/blobs/uploads/?mount={}&from=acme/app", blob.digest());
        us.client.post(&path).await.expect(201);
    }
    ap.client.put_manifest("acme/mounted", "v1", &image.manifest).await.expect(201);
    eu.client.assert_image("acme/mounted", "v1", &image).await;
    // What is nowhere is missed, in the same words everywhere; what is in another repository is nowhere.
    for repository in ["acme/app", "twice/app"] {
        let (image, aside) = (ImageBuilder::new(30).layers(3).build(), ImageBuilder::new(31).layers(1).build());
        for blob in image.blobs().take(3) {
            us.client.push_blob(repository, &blob.bytes).await;
        }
        let last = image.layers[2].digest();
        us.client.push_blob("else/where", &image.layers[2].bytes).await;
        for region in [&eu, &us, &ap] {
            let refused = region.client.put_manifest(repository, "v9", &image.manifest).await;
            let refused = refused.expect_error(404, "MANIFEST_BLOB_UNKNOWN");
            assert!(refused.text().contains(&last), "{}", refused.text());
            let refused = region.client.put_manifest(repository, "v9", &aside.manifest).await;
            refused.expect_error(404, "MANIFEST_BLOB_UNKNOWN");
        }
        ap.client.push_blob(repository, &image.layers[2].bytes).await;
        eu.client.put_manifest(repository, "v9", &image.manifest).await.expect(201);
        us.client.assert_image(repository, "v9", &image).await;
    }
    // Where it was pushed it can be deleted, although its primary has never heard of it.
    let image = ImageBuilder::new(40).layers(1).build();
    let path = format!("/v2/acme/app/blobs/{}", us.client.push_blob("acme/app", &image.layers[0].bytes).await);
    ap.client.delete(&path).await.expect_error(404, "BLOB_UNKNOWN");
    us.client.get(&path).await.expect(200);
    us.client.delete(&path).await.expect(202);
    us.client.get(&path).await.expect_error(404, "BLOB_UNKNOWN");
    us.client.delete(&path).await.expect_error(404, "BLOB_UNKNOWN");
    // What may be in a region that does not answer is not said to be nowhere.
    eu.client.push_blob("acme/app", &image.config.bytes).await;
    us.client.push_blob("acme/app", &image.layers[0].bytes).await;
    us.server.kill();
    for _ in 0..2 {
        let refused = eu.client.put_manifest("acme/app", "v40", &image.manifest).await;
        assert!(!refused.expect_error(503, "UNAVAILABLE").header("retry-after").is_empty());
        until("a dead region is known for one", || !eu.sees_alive("us"));
    }
    us.restart();
    until("it is back", || eu.sees_alive("us"));
    eu.client.put_manifest("acme/app", "v40", &image.manifest).await.expect(201);
    ap.client.assert_image("acme/app", "v40", &image).await;
}
