//! Pulling manifests: exact bytes, negotiation, conditional requests.

use reqwest::Method;

use crate::harness::{
    Image, ImageBuilder, Index, Kind, Server,
    client::send,
    images::{DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST},
};

#[tokio::test]
async fn a_manifest_comes_back_byte_for_byte_by_tag_and_by_digest() {
    let server = Server::start();
    let client = server.client();
    // Spaces and unknown fields would not survive being parsed and written again.
    let mut image = Image::small(20);
    let text = String::from_utf8(image.manifest.bytes).expect("a manifest is text");
    image.manifest.bytes = text.replacen('{', "{ \n  \"x-unknown\" : [1.50, null],\t", 1).into_bytes();
    client.push_image("acme/app", "v1", &image).await;
    client.assert_manifest("acme/app", "v1", &image.manifest).await;
    client.assert_manifest("acme/app", &image.digest(), &image.manifest).await;
}

#[tokio::test]
async fn every_media_type_is_served_as_it_was_pushed() {
    let server = Server::start();
    let client = server.client();
    for (seed, kind, single, multi) in
        [(21, Kind::Oci, OCI_MANIFEST, OCI_INDEX), (24, Kind::Docker, DOCKER_MANIFEST, DOCKER_LIST)]
    {
        let image = ImageBuilder::new(seed).kind(kind).build();
        let index = Index::of_two(kind, seed + 1);
        client.push_image("acme/app", "single", &image).await;
        client.push_index("acme/app", "multi", &index).await;
        for (tag, media_type) in [("single", single), ("multi", multi)] {
            let answer = client.get(&format!("/v2/acme/app/manifests/{tag}")).await.expect(200);
            assert_eq!(answer.header("content-type"), media_type);
        }
        for image in &index.images {
            client.assert_image("acme/app", &image.digest(), image).await;
        }
    }
}

#[tokio::test]
async fn head_is_get_without_the_body() {
    let server = Server::start();
    let client = server.client();
    let image = Image::small(30);
    client.push_image("acme/app", "v1", &image).await;
    for reference in ["v1", &image.digest()] {
        let path = format!("/v2/acme/app/manifests/{reference}");
        let (get, head) = (client.get(&path).await.expect(200), client.head(&path).await.expect(200));
        assert!(head.body.is_empty());
        assert_eq!(head.header("content-length"), image.manifest.bytes.len().to_string());
        for header in ["content-type", "content-length", "docker-content-digest", "etag"] {
            assert!(!get.header(header).is_empty(), "{header}");
            assert_eq!(get.header(header), head.header(header), "{header}");
        }
    }
}

#[tokio::test]
async fn an_unchanged_manifest_is_304_and_a_changed_one_is_sent() {
    let server = Server::start();
    let client = server.client();
    let (first, second) = (Image::small(31), Image::small(32));
    client.push_image("acme/app", "v1", &first).await;
    let path = "/v2/acme/app/manifests/v1";
    let tag = client.get(path).await.expect(200).header("etag").to_owned();
    for value in [tag.as_str(), "*", &format!("\"other\", {tag}"), &format!("W/{tag}")] {
        let answer = client.get_with(path, "If-None-Match", value).await.expect(304);
        assert!(answer.body.is_empty());
        assert_eq!(answer.header("etag"), tag);
    }
    send(client.request(Method::HEAD, path).header("If-None-Match", &tag)).await.expect(304);
    client.get_with(path, "If-None-Match", "\"other\"").await.expect(200);
    client.push_image("acme/app", "v1", &second).await;
    let answer = client.get_with(path, "If-None-Match", &tag).await.expect(200);
    assert_eq!(answer.body, second.manifest.bytes);
}

#[tokio::test]
async fn what_is_stored_is_served_to_every_client_that_can_take_it() {
    let server = Server::start();
    let client = server.client();
    let image = Image::small(33);
    client.push_image("acme/app", "v1", &image).await;
    let everything = format!("{DOCKER_MANIFEST}, {DOCKER_LIST}, {OCI_INDEX}, {OCI_MANIFEST}");
    for accept in ["*/*", OCI_MANIFEST, "application/*", &everything, &format!("{OCI_MANIFEST};q=0.5, text/plain")] {
        let answer = client.get_with("/v2/acme/app/manifests/v1", "Accept", accept).await.expect(200);
        assert_eq!(answer.header("content-type"), OCI_MANIFEST, "{accept}");
    }
    let none = client.raw(b"GET /v2/acme/app/manifests/v1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(none.starts_with("HTTP/1.1 200"), "without Accept: {none}");
}

#[tokio::test]
async fn a_client_that_chooses_among_other_types_is_told_406_manifest_unknown() {
    let server = Server::start();
    let client = server.client();
    let (image, list) = (Image::small(42), Index::of_two(Kind::Docker, 43));
    client.push_image("acme/app", "single", &image).await;
    client.push_index("acme/app", "multi", &list).await;
    let excluding = [
        ("single", OCI_MANIFEST, format!("{DOCKER_MANIFEST}, {OCI_INDEX}")),
        ("single", OCI_MANIFEST, format!("{OCI_INDEX}, {OCI_MANIFEST};q=0")),
        ("multi", DOCKER_LIST, OCI_INDEX.to_owned()),
    ];
    for (tag, stored, accept) in excluding {
        let path = format!("/v2/acme/app/manifests/{tag}");
        // Twice, since the second comes from memory.
        for _ in 0..2 {
            let answer = client.get_with(&path, "Accept", &accept).await.expect_error(406, "MANIFEST_UNKNOWN");
            assert!(answer.message().contains(stored), "it says what there is: {}", answer.text());
            let head = send(client.request(Method::HEAD, &path).header("Accept", &accept)).await.expect(406);
            assert!(head.body.is_empty());
            client.get_with(&path, "Accept", stored).await.expect(200);
        }
    }
}

#[tokio::test]
async fn several_accept_headers_count_together() {
    let server = Server::start();
    let client = server.client();
    let image = Image::small(34);
    client.push_image("acme/app", "v1", &image).await;
    let request = client.request(Method::GET, "/v2/acme/app/manifests/v1");
    let request = request.header("Accept", DOCKER_MANIFEST).header("Accept", OCI_MANIFEST);
    assert_eq!(send(request).await.expect(200).body, image.manifest.bytes);
}

#[tokio::test]
async fn a_moved_tag_gives_the_new_manifest_at_once_and_the_old_one_stays_by_digest() {
    let server = Server::start();
    let client = server.client();
    let images: Vec<Image> = (35..40).map(Image::small).collect();
    for image in &images {
        client.push_image("acme/app", "latest", image).await;
        client.assert_manifest("acme/app", "latest", &image.manifest).await;
    }
    for image in &images {
        client.assert_manifest("acme/app", &image.digest(), &image.manifest).await;
    }
    assert_eq!(client.tags("acme/app").await, ["latest"]);
}

#[tokio::test]
async fn the_same_image_in_two_accounts_is_apart() {
    let server = Server::start();
    let client = server.client();
    let image = Image::small(41);
    client.push_image("one/app", "v1", &image).await;
    client.get("/v2/two/app/manifests/v1").await.expect(404);
    client.push_image("two/app", "v1", &image).await;
    client.delete(&format!("/v2/one/app/manifests/{}", image.digest())).await.expect(202);
    client.assert_image("two/app", "v1", &image).await;
}
