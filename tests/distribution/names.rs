//! The API's root, names, tags, digests and references.

use reqwest::Method;

use crate::harness::{
    Content, Image, Server,
    client::send,
    images::{sha256, sha512},
};

const UNKNOWN: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

#[tokio::test]
async fn the_root_says_which_api_this_is() {
    let server = Server::start();
    let answer = server.client().get("/v2/").await.expect(200);
    assert_eq!(answer.header("docker-distribution-api-version"), "registry/2.0");
}

#[tokio::test]
async fn every_answer_tells_the_caller_its_own_address() {
    let server = Server::start();
    for path in ["/v2/", "/v2/acme/app/manifests/none"] {
        assert_eq!(server.client().get(path).await.header("x-keppel-your-ip"), "127.0.0.1", "{path}");
    }
}

#[tokio::test]
async fn well_formed_names_of_every_shape_can_be_pushed_to() {
    let server = Server::start();
    let client = server.client();
    let long = format!("acme/{}", "x".repeat(250));
    for name in ["acme/app", "acme/a.b", "acme/a_b", "acme/a__b", "acme/a---b", "acme/0/1/2/3/4", "acme/a/b-c/d", &long]
    {
        let image = Image::small(1);
        client.push_image(name, "v1", &image).await;
        client.assert_image(name, "v1", &image).await;
    }
}

#[tokio::test]
async fn malformed_names_are_400_name_invalid() {
    let server = Server::start();
    let client = server.client();
    let long = format!("acme/{}", "x".repeat(251));
    let names = [
        "acme/UPPER",
        "acme/.dot",
        "acme/dot.",
        "acme/a..b",
        "acme/a___b",
        "acme/_a",
        "acme/a-",
        "acme/a%20b",
        "acme/a+b",
        "acme/%C3%A4",
        "acme//app",
        "-acme/app",
        "ACME/app",
        &long,
    ];
    for name in names {
        client.get(&format!("/v2/{name}/tags/list")).await.expect_error(400, "NAME_INVALID");
        client.get(&format!("/v2/{name}/manifests/v1")).await.expect_error(400, "NAME_INVALID");
        client.post(&format!("/v2/{name}/blobs/uploads/")).await.expect_error(400, "NAME_INVALID");
        client.get(&format!("/v2/{name}/blobs/{UNKNOWN}")).await.expect_error(400, "NAME_INVALID");
        client.get(&format!("/v2/{name}/referrers/{UNKNOWN}")).await.expect_error(400, "NAME_INVALID");
    }
}

#[tokio::test]
async fn names_of_one_component_belong_to_the_default_account() {
    let server = Server::start();
    let client = server.client();
    let image = Image::small(2);
    client.push_image("alpine", "v1", &image).await;
    client.assert_image("alpine", "v1", &image).await;
    client.assert_image("library/alpine", "v1", &image).await;
    assert_eq!(client.tags("library/alpine").await, ["v1"]);
}

#[tokio::test]
async fn names_may_hold_the_words_of_the_api_itself() {
    let server = Server::start();
    let client = server.client();
    for name in ["acme/manifests", "acme/blobs/uploads", "acme/tags/list", "acme/manifests/manifests", "acme/referrers"]
    {
        let image = Image::small(3);
        client.push_image(name, "v1", &image).await;
        client.assert_image(name, "v1", &image).await;
        assert_eq!(client.tags(name).await, ["v1"], "{name}");
    }
}

#[tokio::test]
async fn tags_of_every_allowed_shape_work() {
    let server = Server::start();
    let client = server.client();
    let image = Image::small(4);
    let long = "t".repeat(128);
    for tag in ["v1", "_", "V1.2-rc_3", "0", "a..b", "_x-", &long] {
        client.push_image("acme/app", tag, &image).await;
        client.assert_manifest("acme/app", tag, &image.manifest).await;
    }
}

#[tokio::test]
async fn malformed_tags_are_400_to_write_404_to_read_and_stored_nowhere() {
    let server = Server::start();
    let client = server.client();
    let image = Image::small(5);
    client.push_image("acme/app", "good", &image).await;
    let long = "t".repeat(129);
    for tag in [".dot", "-dash", "sp%20ace", "pl+us", "%C3%A4", "a@b", &long] {
        let path = format!("/v2/acme/app/manifests/{tag}");
        let put = client.put_manifest("acme/app", tag, &image.manifest).await;
        assert_eq!(client.get(&path).await.expect(404).codes(), ["MANIFEST_UNKNOWN"], "{tag}");
        for answer in [put, client.delete(&path).await] {
            let codes = answer.expect(400).codes();
            assert!(codes.iter().all(|code| code == "TAG_INVALID" || code == "MANIFEST_INVALID"), "{tag}: {codes:?}");
        }
    }
    assert_eq!(client.tags("acme/app").await, ["good"]);
}

#[tokio::test]
async fn a_reference_with_a_colon_is_a_digest() {
    let server = Server::start();
    let client = server.client();
    let image = Image::small(6);
    client.push_image("acme/app", "v1", &image).await;
    client.assert_manifest("acme/app", &image.digest(), &image.manifest).await;
    let short = &image.digest()[..70];
    for reference in ["v1:latest", "sha256:abc", short, "sha256:", ":", &image.digest().to_uppercase()] {
        client.get(&format!("/v2/acme/app/manifests/{reference}")).await.expect_error(400, "DIGEST_INVALID");
    }
}

#[tokio::test]
async fn unknown_algorithms_and_malformed_digests_are_400_digest_invalid_everywhere() {
    let server = Server::start();
    let client = server.client();
    client.push_image("acme/app", "v1", &Image::small(7)).await;
    let upper = format!("sha256:{}", "A".repeat(64));
    let long = format!("sha256:{}", "a".repeat(65));
    let short512 = format!("sha512:{}", "a".repeat(64));
    for digest in
        ["md5:d41d8cd98f00b204e9800998ecf8427e", "sha256:", "sha256:zz", "blake3:ab", &upper, &long, &short512]
    {
        for path in ["manifests", "blobs", "referrers"] {
            client.get(&format!("/v2/acme/app/{path}/{digest}")).await.expect_error(400, "DIGEST_INVALID");
        }
        let location = client.open_upload("acme/app").await;
        client.close_upload(&location, digest, b"abc").await.expect_error(400, "DIGEST_INVALID");
        client.post(&format!("/v2/acme/app/blobs/uploads/?digest={digest}")).await.expect_error(400, "DIGEST_INVALID");
        client.post(&format!("/v2/acme/app/blobs/uploads/?mount={digest}")).await.expect_error(400, "DIGEST_INVALID");
    }
    client.post("/v2/acme/app/blobs/uploads/?digest-algorithm=md5").await.expect_error(400, "DIGEST_INVALID");
}

#[tokio::test]
async fn sha512_names_blobs_and_manifests_too() {
    let server = Server::start();
    let client = server.client();
    let image = Image::small(8);
    for blob in image.blobs() {
        let location = client.open_upload("acme/app").await;
        client.close_upload(&location, &sha512(&blob.bytes), &blob.bytes).await.expect(201);
        let answer = client.get(&format!("/v2/acme/app/blobs/{}", sha512(&blob.bytes))).await.expect(200);
        assert_eq!(answer.body, blob.bytes);
        assert_eq!(answer.header("docker-content-digest"), sha512(&blob.bytes));
    }
    let text = String::from_utf8(image.manifest.bytes.clone()).expect("a manifest is text");
    let text = image.blobs().fold(text, |text, blob| text.replace(&blob.digest(), &sha512(&blob.bytes)));
    let digest = sha512(text.as_bytes());
    let manifest = Content::new(&image.manifest.media_type, text);
    client.put_manifest("acme/app", &digest, &manifest).await.expect(201);
    let answer = client.get(&format!("/v2/acme/app/manifests/{digest}")).await.expect(200);
    assert_eq!(
        (answer.body.as_slice(), answer.header("docker-content-digest")),
        (&manifest.bytes[..], digest.as_str())
    );
    client.delete(&format!("/v2/acme/app/manifests/{digest}")).await.expect(202);
    client.get(&format!("/v2/acme/app/manifests/{digest}")).await.expect_error(404, "MANIFEST_UNKNOWN");
}

#[tokio::test]
async fn an_upload_announced_as_sha512_can_be_sent_in_chunks() {
    let server = Server::start();
    let client = server.client();
    let answer = client.post("/v2/acme/app/blobs/uploads/?digest-algorithm=sha512").await.expect(202);
    let bytes = b"the first half and the second half";
    let location = client.chunk(&answer.location(), 0, &bytes[..15]).await.expect(202).location();
    client.close_upload(&location, &sha512(bytes), &bytes[15..]).await.expect(201);
    let answer = client.get(&format!("/v2/acme/app/blobs/{}", sha512(bytes))).await.expect(200);
    assert_eq!(answer.body, bytes);
}

#[tokio::test]
async fn what_is_absent_is_404_with_the_code_that_says_what() {
    let server = Server::start();
    let client = server.client();
    client.push_image("acme/app", "v1", &Image::small(9)).await;
    client.get("/v2/acme/app/manifests/v2").await.expect_error(404, "MANIFEST_UNKNOWN");
    client.get(&format!("/v2/acme/app/manifests/{UNKNOWN}")).await.expect_error(404, "MANIFEST_UNKNOWN");
    client.get(&format!("/v2/acme/app/blobs/{UNKNOWN}")).await.expect_error(404, "BLOB_UNKNOWN");
    client.delete("/v2/acme/app/manifests/v2").await.expect_error(404, "MANIFEST_UNKNOWN");
    client.delete(&format!("/v2/acme/app/manifests/{UNKNOWN}")).await.expect_error(404, "MANIFEST_UNKNOWN");
    client.delete(&format!("/v2/acme/app/blobs/{UNKNOWN}")).await.expect_error(404, "BLOB_UNKNOWN");
    client.get("/v2/acme/none/tags/list").await.expect_error(404, "NAME_UNKNOWN");
    for path in ["/v2/acme/none/manifests/v1", "/v2/nobody/none/manifests/v1"] {
        let codes = client.get(path).await.expect(404).codes();
        assert!(codes.iter().all(|code| code == "NAME_UNKNOWN" || code == "MANIFEST_UNKNOWN"), "{codes:?}");
    }
}

#[tokio::test]
async fn heads_of_absent_things_are_404_without_a_body() {
    let server = Server::start();
    let client = server.client();
    client.push_image("acme/app", "v1", &Image::small(10)).await;
    for path in ["manifests/v2", &format!("manifests/{UNKNOWN}"), &format!("blobs/{UNKNOWN}")] {
        let answer = client.head(&format!("/v2/acme/app/{path}")).await.expect(404);
        assert!(answer.body.is_empty());
    }
}

#[tokio::test]
async fn errors_are_json_documents_with_code_and_message() {
    let server = Server::start();
    let client = server.client();
    let answer = client.get("/v2/acme/app/manifests/v1").await.expect(404);
    assert!(answer.header("content-type").starts_with("application/json"));
    assert!(!answer.codes().is_empty());
    let unsupported = send(client.request(Method::PUT, "/v2/acme/app/tags/list")).await;
    assert_eq!(unsupported.expect_error(405, "UNSUPPORTED").header("allow"), "GET, HEAD");
    client.get("/v2/acme/app/nonsense").await.expect_error(404, "UNSUPPORTED");
}

#[tokio::test]
async fn our_own_trouble_is_500_unknown_and_its_cause_is_for_the_log_only() {
    let server = Server::start();
    let client = server.client();
    let digest = client.push_blob("acme/app", b"soon lost").await;
    let blobs = server.data().join("storage/acme/blobs");
    std::fs::remove_dir_all(&blobs).expect("the bytes can be taken away");
    let request = client.request(Method::GET, &format!("/v2/acme/app/blobs/{digest}"));
    let answer = send(request.header("X-Request-Id", "find-me")).await.expect_error(500, "UNKNOWN");
    assert_eq!(answer.header("x-request-id"), "find-me");
    for inside in ["storage", &blobs.display().to_string(), "No such file", ".rs"] {
        assert!(!answer.text().contains(inside), "the client learns nothing of the inside: {}", answer.text());
    }
    let log = server.log();
    let told: Vec<&str> = log.lines().filter(|line| line.contains("find-me") && line.contains("cause=")).collect();
    assert_eq!(told.len(), 1, "the cause is logged once: {log}");
}

#[tokio::test]
async fn the_namespace_parameter_of_mirrors_is_accepted_on_pulls() {
    let server = Server::start();
    let client = server.client();
    let image = Image::small(11);
    client.push_image("acme/app", "v1", &image).await;
    let layer = image.layers[0].digest();
    let reads = [
        "manifests/v1".to_owned(),
        format!("manifests/{}", image.digest()),
        format!("blobs/{layer}"),
        "tags/list".to_owned(),
        format!("referrers/{}", image.digest()),
    ];
    for path in reads {
        let plain = client.get(&format!("/v2/acme/app/{path}")).await.expect(200);
        for namespace in ["docker.io", "registry.example%3A5000", "", "%ff"] {
            let path = format!("/v2/acme/app/{path}?ns={namespace}");
            let answers = [client.get(&path).await.expect(200), client.head(&path).await.expect(200)];
            assert_eq!(answers[0].body, plain.body, "{path}");
            // The header tells that the namespace chose the upstream. These answers come from here, whatever it says.
            answers.iter().for_each(|answer| assert_eq!(answer.header("oci-namespace"), "", "{path}"));
        }
    }
    client.get("/v2/acme/app/manifests/none?ns=docker.io").await.expect_error(404, "MANIFEST_UNKNOWN");
}

#[tokio::test]
async fn a_request_names_its_host_once() {
    let server = Server::start();
    let client = server.client();
    for hosts in
        ["", "Host: a\r\nHost: a\r\n", "Host: a\r\nHost: b\r\n", "Host: a/b\r\n", "Host: a b\r\n", "Host: u@a\r\n"]
    {
        let answer = client.raw(format!("GET /v2/ HTTP/1.1\r\n{hosts}Connection: close\r\n\r\n").as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("\"errors\""), "{hosts:?}: {answer}");
    }
    for hosts in ["Host: a\r\n", "Host: [::1]:5000\r\n", "Host: a_b.example:5000\r\n", "Host:\r\n"] {
        let answer = client.raw(format!("GET /v2/ HTTP/1.1\r\n{hosts}Connection: close\r\n\r\n").as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{hosts:?}: {answer}");
    }
    let old = client.raw(b"GET /v2/ HTTP/1.0\r\n\r\n").await;
    assert!(old.starts_with("HTTP/1.0 200 "), "before HTTP/1.1 none is needed: {old}");
}

#[tokio::test]
async fn both_versions_of_http_are_spoken() {
    let server = Server::start();
    let http2 = reqwest::Client::builder().http2_prior_knowledge().no_proxy().build().expect("a client can be made");
    let response = http2.get(format!("http://{}/v2/", server.address())).send().await.expect("HTTP/2 is answered");
    assert_eq!((response.status().as_u16(), response.version()), (200, reqwest::Version::HTTP_2));
    let old = server.client().raw(b"GET /v2/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(old.starts_with("HTTP/1.1 200"), "{old}");
}

#[tokio::test]
async fn a_blob_of_another_repository_is_absent_here() {
    let server = Server::start();
    let client = server.client();
    client.push_blob("acme/app", b"one").await;
    client.get(&format!("/v2/acme/app/blobs/{}", sha256(b"two"))).await.expect_error(404, "BLOB_UNKNOWN");
    client.get(&format!("/v2/acme/other/blobs/{}", sha256(b"one"))).await.expect(404);
}
