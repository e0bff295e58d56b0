//! Pushing manifests: what is refused, and how it says so.

use serde_json::json;

use crate::harness::{
    Content, Image, ImageBuilder, Index, Kind, Server,
    images::{DOCKER_MANIFEST, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST},
};

#[tokio::test]
async fn a_digest_that_the_bytes_do_not_have_is_400_digest_invalid() {
    let server = Server::start();
    let client = server.client();
    let (image, other) = (Image::small(52), Image::small(53));
    client.push_image("acme/app", "v1", &image).await;
    client.put_manifest("acme/app", &other.digest(), &image.manifest).await.expect_error(400, "DIGEST_INVALID");
    client.get(&format!("/v2/acme/app/manifests/{}", other.digest())).await.expect(404);
}

#[tokio::test]
async fn media_types_in_header_and_body_must_agree() {
    let server = Server::start();
    let client = server.client();
    let image = Image::small(55);
    client.push_image("acme/app", "v1", &image).await;
    for media_type in [DOCKER_MANIFEST, OCI_INDEX] {
        let wrong = Content::new(media_type, image.manifest.bytes.clone());
        client.put_manifest("acme/app", "v2", &wrong).await.expect_error(400, "MANIFEST_INVALID");
    }
    assert_eq!(client.tags("acme/app").await, ["v1"]);
}

#[tokio::test]
async fn all_missing_blobs_are_named() {
    let server = Server::start();
    let client = server.client();
    let image = ImageBuilder::new(56).layers(3).build();
    client.push_blob("acme/app", &image.layers[1].bytes).await;
    let answer = client.put_manifest("acme/app", "v1", &image.manifest).await;
    assert!(matches!(answer.status, 400 | 404), "{}", answer.status);
    assert!(answer.codes().iter().all(|code| code == "MANIFEST_BLOB_UNKNOWN"), "{}", answer.text());
    for missing in [&image.config, &image.layers[0], &image.layers[2]] {
        assert!(answer.text().contains(&missing.digest()), "{} is not named: {}", missing.digest(), answer.text());
    }
    assert!(!answer.text().contains(&image.layers[1].digest()), "{}", answer.text());
    client.get("/v2/acme/app/manifests/v1").await.expect(404);
}

#[tokio::test]
async fn children_of_an_index_must_be_there() {
    let server = Server::start();
    let client = server.client();
    for (seed, kind) in [(57, Kind::Oci), (59, Kind::Docker)] {
        let index = Index::of_two(kind, seed);
        client.push_image("acme/app", "one", &index.images[0]).await;
        let answer = client.put_manifest("acme/app", "multi", &index.manifest).await;
        assert!(matches!(answer.status, 400 | 404), "{}", answer.status);
        assert!(answer.codes().iter().all(|code| code == "MANIFEST_BLOB_UNKNOWN"), "{}", answer.text());
        assert!(answer.text().contains(&index.images[1].digest()), "{}", answer.text());
        client.push_index("acme/app", "multi", &index).await;
    }
}

#[tokio::test]
async fn a_blob_of_another_repository_does_not_count() {
    let server = Server::start();
    let client = server.client();
    let image = Image::small(61);
    client.push_image("acme/one", "v1", &image).await;
    let answer = client.put_manifest("acme/two", "v1", &image.manifest).await;
    assert!(answer.codes().iter().all(|code| code == "MANIFEST_BLOB_UNKNOWN"), "{}", answer.text());
}

#[tokio::test]
async fn a_manifest_of_up_to_four_mebibytes_is_taken_and_a_larger_one_is_413() {
    let server = Server::start();
    let client = server.client();
    let image = Image::small(70);
    client.push_image("acme/app", "v1", &image).await;
    let padded = |length: usize| {
        let mut value = image.manifest.value();
        value["annotations"] = json!({ "padding": "" });
        let bare = value.to_string().len();
        value["annotations"]["padding"] = json!("x".repeat(length - bare));
        let manifest = Content::json(OCI_MANIFEST, &value);
        assert_eq!(manifest.bytes.len(), length);
        manifest
    };
    let largest = padded(4 << 20);
    client.put_manifest("acme/app", "large", &largest).await.expect(201);
    client.assert_manifest("acme/app", "large", &largest).await;
    // Said and closed before the body is through, which an HTTP library may take for a broken connection.
    let larger = padded((4 << 20) + 1);
    let mut request = format!(
        "PUT /v2/acme/app/manifests/larger HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: {OCI_MANIFEST}\r\n\
         Content-Length: {}\r\n\r\n",
        larger.bytes.len()
    )
    .into_bytes();
    request.extend(&larger.bytes);
    let answer = client.raw(&request).await;
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("\"MANIFEST_INVALID\""), "{answer}");
    client.get("/v2/acme/app/manifests/larger").await.expect(404);
}

#[tokio::test]
async fn a_manifest_without_a_length_is_counted_and_cut_at_the_limit() {
    let server = Server::start();
    let mut request = format!(
        "PUT /v2/acme/app/manifests/v2 HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: {OCI_MANIFEST}\r\n\
         Transfer-Encoding: chunked\r\n\r\n"
    )
    .into_bytes();
    for _ in 0..5 {
        request.extend(b"100000\r\n".iter().copied().chain(std::iter::repeat_n(b' ', 1 << 20)).chain(*b"\r\n"));
    }
    request.extend(b"0\r\n\r\n");
    let answer = server.client().raw(&request).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
}

#[tokio::test]
async fn schema_1_is_refused_by_name() {
    let server = Server::start();
    let client = server.client();
    let value = json!({ "schemaVersion": 1, "name": "acme/app", "tag": "v1", "architecture": "amd64", "fsLayers": [], "history": [] });
    for media_type in [
        "application/vnd.docker.distribution.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
        "application/json",
    ] {
        let manifest = Content::json(media_type, &value);
        let answer = client.put_manifest("acme/app", "v1", &manifest).await.expect_error(400, "MANIFEST_INVALID");
        assert!(answer.text().to_lowercase().contains("schema"), "it says why: {}", answer.text());
    }
}

#[tokio::test]
async fn bytes_that_are_no_manifest_are_400_manifest_invalid() {
    let server = Server::start();
    let client = server.client();
    let image = Image::small(71);
    client.push_image("acme/app", "v1", &image).await;
    let mut cases: Vec<(String, Vec<u8>)> = vec![
        ("empty".into(), b"".to_vec()),
        ("no JSON".into(), b"hello".to_vec()),
        ("a list".into(), b"[]".to_vec()),
        ("null".into(), b"null".to_vec()),
        ("not UTF-8".into(), b"{\"schemaVersion\":2,\"a\":\"\xff\"}".to_vec()),
        ("cut off".into(), b"{\"schemaVersion\":2,\"config\":".to_vec()),
        ("nothing in it".into(), b"{}".to_vec()),
        ("nested too deep".into(), [b"[".repeat(100_000), b"]".repeat(100_000)].concat()),
    ];
    for (field, value) in [
        ("schemaVersion", json!(3)),
        ("schemaVersion", json!("2")),
        ("config", json!(null)),
        ("config", json!({ "mediaType": OCI_CONFIG, "digest": "sha256:xyz", "size": 1 })),
        ("config", json!({ "mediaType": OCI_CONFIG, "digest": image.config.digest(), "size": -1 })),
        ("config", json!({ "mediaType": OCI_CONFIG, "size": 1 })),
        ("layers", json!({})),
        ("layers", json!([{}])),
        ("layers", json!([{ "mediaType": "x/y", "digest": "../../etc/passwd", "size": 1 }])),
        ("subject", json!({ "mediaType": OCI_MANIFEST, "digest": "nonsense", "size": 1 })),
        ("annotations", json!({ "a": 1 })),
    ] {
        let mut changed = image.manifest.value();
        changed[field] = value.clone();
        cases.push((format!("{field} = {value}"), changed.to_string().into_bytes()));
    }
    for (name, bytes) in cases {
        let answer = client.put_manifest("acme/app", "bad", &Content::new(OCI_MANIFEST, bytes)).await;
        assert_eq!(answer.status, 400, "{name}: {}", answer.text());
        let codes = answer.codes();
        assert!(codes.iter().all(|code| code == "MANIFEST_INVALID" || code == "DIGEST_INVALID"), "{name}: {codes:?}");
    }
    assert_eq!(client.tags("acme/app").await, ["v1"]);
}

#[tokio::test]
async fn an_unknown_media_type_is_refused() {
    let server = Server::start();
    let client = server.client();
    let image = Image::small(73);
    client.push_image("acme/app", "v1", &image).await;
    for media_type in ["text/plain", "application/vnd.example.thing+json", "nonsense"] {
        let answer =
            client.put_manifest("acme/app", "v2", &Content::new(media_type, image.manifest.bytes.clone())).await;
        assert!(matches!(answer.status, 400 | 415), "{media_type}: {}", answer.status);
        assert_eq!(answer.codes(), ["MANIFEST_INVALID"]);
    }
}
