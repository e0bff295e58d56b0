//! Pushing manifests: what is valid, however unusual.

use reqwest::{Method, header::CONTENT_TYPE};
use serde_json::{Value, json};

use crate::harness::{
    Artifact, Content, Image, ImageBuilder, Index, Kind, Server,
    client::send,
    images::{DOCKER_LIST, OCI_CONFIG, OCI_EMPTY, OCI_INDEX, OCI_MANIFEST, sha256},
};

#[tokio::test]
async fn a_push_is_201_with_location_and_digest() {
    let server = Server::start();
    let client = server.client();
    let image = Image::small(50);
    for blob in image.blobs() {
        client.push_blob("acme/app", &blob.bytes).await;
    }
    for reference in ["v1", &image.digest()] {
        let answer = client.put_manifest("acme/app", reference, &image.manifest).await.expect(201);
        assert_eq!(answer.header("docker-content-digest"), image.digest());
        assert_eq!(client.get(&answer.location()).await.expect(200).body, image.manifest.bytes);
    }
}

#[tokio::test]
async fn pushing_the_same_again_is_no_error() {
    let server = Server::start();
    let client = server.client();
    let image = Image::small(51);
    for _ in 0..3 {
        client.push_image("acme/app", "v1", &image).await;
    }
    client.assert_image("acme/app", "v1", &image).await;
}

#[tokio::test]
async fn parameters_of_the_content_type_are_ignored() {
    let server = Server::start();
    let client = server.client();
    let image = Image::small(54);
    client.push_image("acme/app", "v0", &image).await;
    let request = client.request(Method::PUT, "/v2/acme/app/manifests/v1");
    let request = request.header(CONTENT_TYPE, format!("{OCI_MANIFEST}; charset=utf-8"));
    send(request.body(image.manifest.bytes.clone())).await.expect(201);
    let answer = client.get("/v2/acme/app/manifests/v1").await.expect(200);
    assert_eq!(answer.header("content-type"), OCI_MANIFEST);
}

#[tokio::test]
async fn a_missing_content_type_is_read_from_the_body() {
    let server = Server::start();
    let client = server.client();
    let image = Image::small(73);
    client.push_image("acme/app", "v1", &image).await;
    let request = client.request(Method::PUT, "/v2/acme/app/manifests/v2").body(image.manifest.bytes.clone());
    send(request).await.expect(201);
    client.assert_manifest("acme/app", "v2", &image.manifest).await;
}

#[tokio::test]
async fn layers_that_must_not_be_distributed_need_not_be_there() {
    let server = Server::start();
    let client = server.client();
    let image = Image::small(62);
    client.push_image("acme/app", "v1", &image).await;
    let mut manifest = image.manifest.value();
    let foreign = [
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    ];
    for media_type in foreign {
        let layer = json!({ "mediaType": media_type, "digest": sha256(media_type.as_bytes()), "size": 1234,
            "urls": ["https://example.com/layer"] });
        manifest["layers"].as_array_mut().expect("a list").push(layer);
    }
    let manifest = Content::json(OCI_MANIFEST, &manifest);
    client.put_manifest("acme/app", "v2", &manifest).await.expect(201);
    client.assert_manifest("acme/app", "v2", &manifest).await;
}

#[tokio::test]
async fn a_subject_may_come_later_and_is_echoed() {
    let server = Server::start();
    let client = server.client();
    let (subject, absent) = (Image::small(63), Image::small(64));
    client.push_image("acme/app", "v1", &subject).await;
    for subject in [&subject, &absent] {
        let artifact = Artifact::new("application/vnd.example.note", b"a note", Some(&subject.manifest));
        let answer = client.push_artifact("acme/app", &artifact).await;
        assert_eq!(answer.header("oci-subject"), subject.digest());
    }
    let plain = Artifact::new("application/vnd.example.note", b"another", None);
    assert_eq!(client.push_artifact("acme/app", &plain).await.header("oci-subject"), "");
}

#[tokio::test]
async fn unusual_but_valid_manifests_are_taken() {
    let server = Server::start();
    let client = server.client();
    let empty = Content::new(OCI_EMPTY, *b"{}");
    let nothing = Content::new("application/vnd.example.nothing", *b"");
    let config =
        Content::new(OCI_CONFIG, br#"{"architecture":"","os":"","rootfs":{"type":"layers","diff_ids":[]}}"#.to_vec());
    for blob in [&empty, &nothing, &config] {
        client.push_blob("acme/app", &blob.bytes).await;
    }
    let mut with_data = empty.descriptor();
    with_data["data"] = json!("e30=");
    let base = |config: Value, layers: Value| json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers });
    let mut unknown_fields = base(config.descriptor(), json!([]));
    unknown_fields["zz"] = json!({ "deep": [1, { "a": null }] });
    let mut without_media_type = base(config.descriptor(), json!([]));
    without_media_type.as_object_mut().expect("an object").remove("mediaType");
    let mut artifact = base(empty.descriptor(), json!([empty.descriptor()]));
    artifact["artifactType"] = json!("application/vnd.example.chart");
    let cases = [
        ("no-layers", base(config.descriptor(), json!([]))),
        ("empty-blob", base(config.descriptor(), json!([nothing.descriptor()]))),
        ("data-field", base(with_data.clone(), json!([with_data]))),
        ("unknown-fields", unknown_fields),
        ("no-media-type", without_media_type),
        ("artifact", artifact),
        ("same-layer-twice", base(config.descriptor(), json!([empty.descriptor(), empty.descriptor()]))),
    ];
    for (tag, value) in cases {
        let manifest = Content::json(OCI_MANIFEST, &value);
        let answer = client.put_manifest("acme/app", tag, &manifest).await;
        assert_eq!(answer.status, 201, "{tag}: {}", answer.text());
        client.assert_manifest("acme/app", tag, &manifest).await;
    }
}

#[tokio::test]
async fn an_index_may_hold_indexes_and_be_empty() {
    let server = Server::start();
    let client = server.client();
    let inner = Index::of_two(Kind::Oci, 65);
    client.push_index("acme/app", "inner", &inner).await;
    for (tag, manifests) in [("outer", json!([inner.manifest.descriptor()])), ("empty", json!([]))] {
        let value = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests });
        let manifest = Content::json(OCI_INDEX, &value);
        client.put_manifest("acme/app", tag, &manifest).await.expect(201);
        client.assert_manifest("acme/app", tag, &manifest).await;
    }
}

#[tokio::test]
async fn kinds_may_be_mixed_in_one_index() {
    let server = Server::start();
    let client = server.client();
    let images = vec![
        ImageBuilder::new(67).kind(Kind::Docker).build(),
        ImageBuilder::new(68).kind(Kind::Oci).architecture("arm64").build(),
    ];
    for kind in [Kind::Oci, Kind::Docker] {
        let index = Index::of(kind, images.clone());
        client.push_index("acme/app", "mixed", &index).await;
        client.assert_manifest("acme/app", "mixed", &index.manifest).await;
    }
}

#[tokio::test]
async fn many_tags_are_set_at_once() {
    let server = Server::start();
    let client = server.client();
    let image = Image::small(69);
    client.push_image("acme/app", "old", &image).await;
    let reference = format!("{}?tag=b&tag=a&tag=1.0", image.digest());
    let answer = client.put_manifest("acme/app", &reference, &image.manifest).await.expect(201);
    let mut set: Vec<String> = answer
        .headers
        .get_all("oci-tag")
        .iter()
        .flat_map(|value| value.to_str().expect("a tag is text").split(','))
        .map(|tag| tag.trim().to_owned())
        .collect();
    set.sort();
    assert_eq!(set, ["1.0", "a", "b"]);
    assert_eq!(client.tags("acme/app").await, ["1.0", "a", "b", "old"]);
    for tag in ["1.0", "a", "b"] {
        client.assert_manifest("acme/app", tag, &image.manifest).await;
    }
    let twice =
        client.put_manifest("acme/app", &format!("{}?tag=a&tag=b&tag=a", image.digest()), &image.manifest).await;
    let told: Vec<_> = twice.expect(201).headers.get_all("oci-tag").iter().map(|tag| tag.as_bytes().to_vec()).collect();
    assert_eq!(told, [b"a", b"b"], "a tag that is asked for twice is told once");
    let bad = client.put_manifest("acme/app", &format!("{}?tag=c&tag=.bad", image.digest()), &image.manifest).await;
    bad.expect_error(400, "TAG_INVALID");
    let many: String = (0..101).map(|number| format!("&tag=t{number}")).collect();
    let many = client.put_manifest("acme/app", &format!("{}?{}", image.digest(), &many[1..]), &image.manifest).await;
    many.expect_error(414, "TAG_INVALID");
    assert_eq!(client.tags("acme/app").await, ["1.0", "a", "b", "old"], "all or nothing");
}

#[tokio::test]
async fn an_account_that_allows_it_takes_indexes_whose_children_are_elsewhere() {
    let sparse = Server::start_with_options(&["--set", "registry.sparse_indexes=true"]);
    let (client, index) = (sparse.client(), Index::of_two(Kind::Oci, 76));
    client.push_image("acme/app", "one", &index.images[0]).await;
    client.put_manifest("acme/app", "multi", &index.manifest).await.expect(201);
    client.assert_manifest("acme/app", "multi", &index.manifest).await;
    let absent = format!("/v2/acme/app/manifests/{}", index.images[1].digest());
    client.get(&absent).await.expect_error(404, "MANIFEST_UNKNOWN");
    // Blobs of an image have to be there all the same.
    let image = &index.images[1].manifest;
    client.put_manifest("acme/app", "other", image).await.expect_error(404, "MANIFEST_BLOB_UNKNOWN");
}

#[tokio::test]
async fn a_manifest_may_be_streamed_without_a_length() {
    let server = Server::start();
    let client = server.client();
    let image = Image::small(74);
    client.push_image("acme/app", "v0", &image).await;
    let mut request = format!(
        "PUT /v2/acme/app/manifests/v1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: {OCI_MANIFEST}\r\n\
         Transfer-Encoding: chunked\r\n\r\n"
    )
    .into_bytes();
    for piece in image.manifest.bytes.chunks(100) {
        request.extend(format!("{:x}\r\n", piece.len()).bytes().chain(piece.iter().copied()).chain(*b"\r\n"));
    }
    request.extend(b"0\r\n\r\n");
    let answer = client.raw(&request).await;
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    client.assert_manifest("acme/app", "v1", &image.manifest).await;
}

#[tokio::test]
async fn docker_lists_keep_their_own_media_type() {
    let server = Server::start();
    let client = server.client();
    let index = Index::of_two(Kind::Docker, 75);
    client.push_index("acme/app", "v1", &index).await;
    let answer = client.get_with("/v2/acme/app/manifests/v1", "Accept", DOCKER_LIST).await.expect(200);
    assert_eq!((answer.header("content-type"), &answer.body), (DOCKER_LIST, &index.manifest.bytes));
}
