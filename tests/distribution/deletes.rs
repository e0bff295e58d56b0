//! Deleting manifests, tags and blobs.

use crate::harness::{Image, Index, Kind, Server, images::sha256};

#[tokio::test]
async fn deleting_by_digest_takes_the_manifest_and_its_tags() {
    let server = Server::start();
    let client = server.client();
    let (image, other) = (Image::small(140), Image::small(141));
    client.push_image("acme/app", "v1", &image).await;
    client.push_image("acme/app", "v2", &image).await;
    client.push_image("acme/app", "v3", &other).await;
    client.delete(&format!("/v2/acme/app/manifests/{}", image.digest())).await.expect(202);
    for reference in ["v1", "v2", &image.digest()] {
        client.get(&format!("/v2/acme/app/manifests/{reference}")).await.expect_error(404, "MANIFEST_UNKNOWN");
        client.head(&format!("/v2/acme/app/manifests/{reference}")).await.expect(404);
    }
    assert_eq!(client.tags("acme/app").await, ["v3"]);
    client.delete(&format!("/v2/acme/app/manifests/{}", image.digest())).await.expect_error(404, "MANIFEST_UNKNOWN");
    client.push_image("acme/app", "v1", &image).await;
    client.assert_image("acme/app", "v1", &image).await;
}

#[tokio::test]
async fn deleting_by_tag_takes_only_the_tag() {
    let server = Server::start();
    let client = server.client();
    let image = Image::small(142);
    client.push_image("acme/app", "v1", &image).await;
    client.push_image("acme/app", "v2", &image).await;
    client.delete("/v2/acme/app/manifests/v1").await.expect(202);
    client.get("/v2/acme/app/manifests/v1").await.expect_error(404, "MANIFEST_UNKNOWN");
    client.assert_image("acme/app", "v2", &image).await;
    client.assert_image("acme/app", &image.digest(), &image).await;
    client.delete("/v2/acme/app/manifests/v1").await.expect_error(404, "MANIFEST_UNKNOWN");
}

#[tokio::test]
async fn a_child_of_a_stored_index_is_denied_with_the_parent_named() {
    let server = Server::start();
    let client = server.client();
    let index = Index::of_two(Kind::Oci, 143);
    client.push_index("acme/app", "multi", &index).await;
    let child = format!("/v2/acme/app/manifests/{}", index.images[0].digest());
    let answer = client.delete(&child).await.expect_error(409, "DENIED");
    assert!(answer.text().contains(&index.digest()), "{}", answer.text());
    client.assert_image("acme/app", &index.images[0].digest(), &index.images[0]).await;
    client.delete(&format!("/v2/acme/app/manifests/{}", index.digest())).await.expect(202);
    client.delete(&child).await.expect(202);
}

#[tokio::test]
async fn a_blob_in_use_is_refused_and_an_unused_one_goes() {
    let server = Server::start();
    let client = server.client();
    let image = Image::small(145);
    client.push_image("acme/app", "v1", &image).await;
    for blob in image.blobs() {
        let answer = client.delete(&format!("/v2/acme/app/blobs/{}", blob.digest())).await.expect_error(409, "DENIED");
        assert!(answer.text().contains(&image.digest()), "the manifest is named: {}", answer.text());
    }
    client.assert_image("acme/app", "v1", &image).await;
    client.delete(&format!("/v2/acme/app/manifests/{}", image.digest())).await.expect(202);
    for blob in image.blobs() {
        let path = format!("/v2/acme/app/blobs/{}", blob.digest());
        client.delete(&path).await.expect(202);
        client.get(&path).await.expect_error(404, "BLOB_UNKNOWN");
        client.delete(&path).await.expect_error(404, "BLOB_UNKNOWN");
    }
}

#[tokio::test]
async fn a_deleted_blob_stays_in_other_repositories() {
    let server = Server::start();
    let client = server.client();
    let image = Image::small(146);
    client.push_image("acme/one", "v1", &image).await;
    for blob in image.blobs() {
        client.push_blob("acme/two", &blob.bytes).await;
        client.delete(&format!("/v2/acme/two/blobs/{}", blob.digest())).await.expect(202);
    }
    client.assert_image("acme/one", "v1", &image).await;
    client.delete(&format!("/v2/acme/three/blobs/{}", sha256(b"x"))).await.expect(404);
}
