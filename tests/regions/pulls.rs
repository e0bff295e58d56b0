use futures_util::future::join_all;

use crate::federation::{large_blob, three_regions};
use crate::harness::{Artifact, Image, ImageBuilder, Index, Kind};

#[tokio::test(flavor = "multi_thread")]
async fn what_one_region_has_every_region_serves_at_once() {
    let [eu, us, ap] = three_regions();
    let image = Image::small(1);
    eu.client.push_image("acme/app", "v1", &image).await;
    let index = Index::of(Kind::Oci, vec![Image::small(2), Image::small(3)]);
    eu.client.push_index("acme/app", "multi", &index).await;
    let artifact = Artifact::new("application/vnd.example.signature", b"signed", Some(&image.manifest));
    eu.client.push_artifact("acme/app", &artifact).await.expect(201);
    for region in [&us, &ap] {
        region.client.assert_image("acme/app", "v1", &image).await;
        region.client.assert_image("acme/app", &image.digest(), &image).await;
        region.client.assert_manifest("acme/app", "multi", &index.manifest).await;
        for part in &index.images {
            region.client.assert_image("acme/app", &part.digest(), part).await;
        }
        assert_eq!(region.client.tags("acme/app").await, ["multi", "v1"]);
        let referrers = region.client.get(&format!("/v2/acme/app/referrers/{}", image.digest())).await.expect(200);
        assert_eq!(referrers.json()["manifests"][0]["digest"], artifact.manifest.digest());
        let blob = &image.layers[0];
        let path = format!("/v2/acme/app/blobs/{}", blob.digest());
        let part = region.client.get_with(&path, "range", "bytes=5-99").await.expect(206);
        assert_eq!(part.body, blob.bytes[5..100]);
        let head = region.client.head(&path).await.expect(200);
        assert_eq!(head.header("content-length"), blob.bytes.len().to_string());
    }
    // What is not there is not there, in every region.
    for region in [&eu, &us] {
        region.client.get("/v2/acme/app/manifests/v9").await.expect_error(404, "MANIFEST_UNKNOWN");
        region.client.get("/v2/acme/nothing/manifests/v1").await.expect_error(404, "NAME_UNKNOWN");
        region.client.get("/v2/acme/nothing/tags/list").await.expect_error(404, "NAME_UNKNOWN");
        let path = format!("/v2/acme/app/blobs/sha256:{}", "0".repeat(64));
        region.client.get(&path).await.expect_error(404, "BLOB_UNKNOWN");
        region.client.head(&path).await.expect(404);
        // A blob of one repository is none of another.
        let path = format!("/v2/acme/other/blobs/{}", image.layers[0].digest());
        region.client.get(&path).await.expect_error(404, "BLOB_UNKNOWN");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_is_never_older_than_the_last_push_whichever_region_took_it() {
    let [eu, us, ap] = three_regions();
    let images: Vec<_> = (0..4).map(|seed| ImageBuilder::new(seed).layers(1).build()).collect();
    for image in &images {
        eu.client.push_image("acme/app", "seed", image).await;
    }
    for round in 0..60 {
        let image = &images[round % images.len()];
        let pusher = [&eu, &us, &ap][round % 3];
        pusher.client.put_manifest("acme/app", "latest", &image.manifest).await.expect(201);
        let pulls = [&eu, &us, &ap].map(|region| region.client.get("/v2/acme/app/manifests/latest"));
        for pulled in join_all(pulls).await {
            let pulled = pulled.expect(200);
            assert!(pulled.headers.get("warning").is_none());
            assert_eq!(pulled.header("docker-content-digest"), image.digest(), "round {round}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_clients_that_want_the_same_blob_cost_one_transfer() {
    let [eu, us, _ap] = three_regions();
    let layer = large_blob(24);
    let path = format!("/v2/acme/app/blobs/{}", eu.client.push_blob("acme/app", &layer).await);
    for pulled in join_all((0..8).map(|_| us.client.get(&path))).await {
        assert!(pulled.expect(200).body == layer);
    }
    let received = us.counter("keppel_transfer_received_bytes_total").await;
    assert!(received > 20 << 20, "only {received} bytes were counted");
    assert!(received as f64 <= 1.1 * layer.len() as f64, "{received} bytes for {}", layer.len());
    // From now on it is here.
    assert!(us.client.get(&path).await.expect(200).body == layer);
    assert_eq!(us.counter("keppel_transfer_received_bytes_total").await, received);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_was_made_a_moment_ago_elsewhere_is_never_said_not_to_exist() {
    let [eu, us, ap] = three_regions();
    let image = ImageBuilder::new(1).layers(1).build();
    for number in 0..30 {
        let repository = format!("new-{number}/app");
        [&eu, &us][number % 2].client.push_image(&repository, "v1", &image).await;
        let path = format!("/v2/{repository}/manifests/v1");
        for pulled in join_all([&eu, &us, &ap].map(|region| region.client.get(&path))).await {
            assert_eq!(pulled.expect(200).header("docker-content-digest"), image.digest(), "{repository}");
        }
    }
    // Who cannot ask the others cannot say that there is nothing.
    eu.signal(libc::SIGSTOP);
    us.signal(libc::SIGSTOP);
    ap.client.get("/v2/nobody/app/manifests/v1").await.expect_error(503, "UNAVAILABLE");
    eu.signal(libc::SIGCONT);
    us.signal(libc::SIGCONT);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_listings_of_an_account_are_there_in_every_region_that_uses_it() {
    let [eu, us, _ap] = three_regions();
    let image = ImageBuilder::new(5).layers(2).build();
    eu.client.push_image("acme/app", "v1", &image).await;
    let (repositories, manifests) =
        ("/keppel/v1/accounts/acme/repositories", "/keppel/v1/accounts/acme/repositories/app/_manifests");
    // The first look begins the copy; until it is complete nothing is said of what there is.
    while us.client.get(repositories).await.status != 200 {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let (there, here) = (eu.client.get(manifests).await.expect(200), us.client.get(manifests).await.expect(200));
    assert_eq!(here.json(), there.json());
    // What a repository takes up is what it takes up in this region.
    let listed = us.client.get(repositories).await.expect(200).json();
    assert_eq!(
        (&listed["repositories"][0]["name"], &listed["repositories"][0]["tag_count"]),
        (&"app".into(), &1.into())
    );
    us.client.get("/keppel/v1/accounts/acme/repositories/nothing/_manifests").await.expect(404);
}
