//! Pushing blobs: every way in, and every way to be refused.

use reqwest::Method;

use crate::harness::{
    Image, Server,
    client::{path_of, send},
    images::{random_bytes, sha256, sha512},
};

#[tokio::test]
async fn an_upload_is_opened_with_all_its_headers() {
    let server = Server::start();
    let client = server.client();
    let answer = client.post("/v2/acme/app/blobs/uploads/").await.expect(202);
    let location = answer.location();
    let path = location.split_once("/v2/").map(|(_, path)| path.to_owned()).expect("the location is below /v2/");
    assert!(path.starts_with("acme/app/blobs/uploads/"), "{location}");
    assert!(!location.contains('?'), "all state is in the path, some clients drop the query: {location}");
    let id = path.trim_start_matches("acme/app/blobs/uploads/");
    assert!(id.len() >= 22, "the id cannot be guessed: {id}");
    assert_eq!(answer.header("range"), "0-0");
    assert_eq!(answer.header("docker-upload-uuid"), id);
    assert!(answer.header("oci-chunk-min-length").parse::<u64>().is_ok());
    let other = client.post("/v2/acme/app/blobs/uploads/").await.expect(202);
    assert_ne!(other.location(), location);
}

#[tokio::test]
async fn the_slash_after_uploads_may_be_missing() {
    let server = Server::start();
    server.client().post("/v2/acme/app/blobs/uploads").await.expect(202);
}

#[tokio::test]
async fn post_then_put_stores_a_blob() {
    let server = Server::start();
    let client = server.client();
    let bytes = random_bytes(90, 100_000);
    let location = client.open_upload("acme/app").await;
    let answer = client.close_upload(&location, &sha256(&bytes), &bytes).await.expect(201);
    assert_eq!(answer.header("docker-content-digest"), sha256(&bytes));
    assert!(answer.location().ends_with(&format!("/v2/acme/app/blobs/{}", sha256(&bytes))));
    assert!(client.get(&answer.location()).await.expect(200).body == bytes);
    client.get(&location).await.expect_error(404, "BLOB_UPLOAD_UNKNOWN");
}

#[tokio::test]
async fn one_post_stores_a_blob() {
    let server = Server::start();
    let client = server.client();
    let bytes = random_bytes(91, 100_000);
    let path = format!("/v2/acme/app/blobs/uploads/?digest={}", sha256(&bytes));
    for _ in 0..2 {
        let answer = send(client.request(Method::POST, &path).body(bytes.clone())).await.expect(201);
        assert_eq!(answer.header("docker-content-digest"), sha256(&bytes));
        assert!(client.get(&answer.location()).await.expect(200).body == bytes);
    }
    let wrong = send(client.request(Method::POST, &path).body("other")).await;
    wrong.expect_error(400, "DIGEST_INVALID");
}

#[tokio::test]
async fn chunks_with_a_content_range_are_put_together() {
    let server = Server::start();
    let client = server.client();
    let bytes = random_bytes(92, 300_000);
    let mut location = client.open_upload("acme/app").await;
    for (index, chunk) in bytes.chunks(70_000).enumerate() {
        let answer = client.chunk(&location, index * 70_000, chunk).await.expect(202);
        let end = index * 70_000 + chunk.len() - 1;
        assert_eq!(answer.header("range"), format!("0-{end}"));
        location = answer.location();
        let status = client.get(&location).await.expect(204);
        assert_eq!(status.header("range"), format!("0-{end}"));
        assert!(!status.header("location").is_empty());
    }
    client.close_upload(&location, &sha256(&bytes), b"").await.expect(201);
    assert!(client.get(&format!("/v2/acme/app/blobs/{}", sha256(&bytes))).await.expect(200).body == bytes);
}

#[tokio::test]
async fn the_last_chunk_may_come_with_the_put() {
    let server = Server::start();
    let client = server.client();
    let bytes = random_bytes(93, 10_000);
    let location = client.open_upload("acme/app").await;
    let location = client.chunk(&location, 0, &bytes[..6000]).await.expect(202).location();
    let put = client.request(Method::PUT, &format!("{location}?digest={}", sha256(&bytes)));
    let put = put.header("Content-Range", "6000-9999").header("Content-Type", "application/octet-stream");
    send(put.body(bytes[6000..].to_vec())).await.expect(201);
    client.head(&format!("/v2/acme/app/blobs/{}", sha256(&bytes))).await.expect(200);
}

#[tokio::test]
async fn streams_without_a_content_range_are_appended() {
    let server = Server::start();
    let client = server.client();
    let bytes = random_bytes(94, 200_000);
    let location = client.open_upload("acme/app").await;
    let answer = client.stream(&location, bytes[..150_000].to_vec()).await.expect(202);
    assert_eq!(answer.header("range"), "0-149999");
    assert!(!answer.header("docker-upload-uuid").is_empty());
    let location = client.stream(&answer.location(), bytes[150_000..].to_vec()).await.expect(202).location();
    client.close_upload(&location, &sha256(&bytes), b"").await.expect(201);
    assert!(client.get(&format!("/v2/acme/app/blobs/{}", sha256(&bytes))).await.expect(200).body == bytes);
}

#[tokio::test]
async fn chunked_transfer_encoding_is_taken() {
    let server = Server::start();
    let client = server.client();
    let location = client.open_upload("acme/app").await;
    let path = path_of(&location);
    let request = format!(
        "PATCH {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
    );
    let answer = client.raw(request.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
    client.close_upload(&location, &sha256(b"hello world"), b"").await.expect(201);
}

#[tokio::test]
async fn a_chunk_out_of_order_is_416_with_the_true_range_and_harms_nothing() {
    let server = Server::start();
    let client = server.client();
    let bytes = random_bytes(95, 3000);
    let location = client.open_upload("acme/app").await;
    client.chunk(&location, 1000, &bytes[1000..2000]).await.expect(416);
    let location = client.chunk(&location, 0, &bytes[..1000]).await.expect(202).location();
    for from in [0, 500, 1001, 2000] {
        let answer = client.chunk(&location, from, &bytes[..1000]).await.expect(416);
        assert_eq!(answer.header("range"), "0-999", "from {from}");
    }
    let location = client.chunk(&location, 1000, &bytes[1000..]).await.expect(202).location();
    client.close_upload(&location, &sha256(&bytes), b"").await.expect(201);
}

#[tokio::test]
async fn a_last_chunk_out_of_order_is_416_and_the_upload_goes_on() {
    let server = Server::start();
    let client = server.client();
    let location = client.open_upload("acme/app").await;
    let location = client.chunk(&location, 0, b"hello").await.expect(202).location();
    let digest = sha256(b"hello world");
    let put = |range: &str| {
        let request = client.request(Method::PUT, &format!("{location}?digest={digest}"));
        send(request.header("Content-Range", range).body(" world"))
    };
    let answer = put("6-11").await.expect_error(416, "BLOB_UPLOAD_INVALID");
    assert_eq!(answer.header("range"), "0-4");
    put("5-10").await.expect(201);
}

#[tokio::test]
async fn a_content_range_that_does_not_fit_the_body_is_refused() {
    let server = Server::start();
    let client = server.client();
    for range in ["0-10", "0-1", "5-2", "nonsense", "0-99999999999999999999999", "-5", "0-"] {
        let location = client.open_upload("acme/app").await;
        let patch = client.request(Method::PATCH, &location).header("Content-Range", range).body("hello");
        let answer = send(patch).await;
        assert!(matches!(answer.status, 400 | 416), "{range}: {}", answer.status);
        assert!(!answer.codes().is_empty());
    }
}

#[tokio::test]
async fn a_wrong_digest_is_400_and_ends_the_session() {
    let server = Server::start();
    let client = server.client();
    let location = client.open_upload("acme/app").await;
    let location = client.chunk(&location, 0, b"hello").await.expect(202).location();
    client.close_upload(&location, &sha256(b"other"), b"").await.expect_error(400, "DIGEST_INVALID");
    client.get(&location).await.expect_error(404, "BLOB_UPLOAD_UNKNOWN");
    client.close_upload(&location, &sha256(b"hello"), b"").await.expect_error(404, "BLOB_UPLOAD_UNKNOWN");
    for bytes in [b"hello", b"other"] {
        client.get(&format!("/v2/acme/app/blobs/{}", sha256(bytes))).await.expect(404);
    }
}

#[tokio::test]
async fn a_put_without_a_digest_is_400() {
    let server = Server::start();
    let client = server.client();
    let location = client.open_upload("acme/app").await;
    send(client.request(Method::PUT, &location).body("x")).await.expect_error(400, "DIGEST_INVALID");
}

#[tokio::test]
async fn a_cancelled_upload_is_gone() {
    let server = Server::start();
    let client = server.client();
    let location = client.open_upload("acme/app").await;
    let location = client.chunk(&location, 0, b"hello").await.expect(202).location();
    client.delete(&location).await.expect(204);
    client.get(&location).await.expect_error(404, "BLOB_UPLOAD_UNKNOWN");
    client.delete(&location).await.expect_error(404, "BLOB_UPLOAD_UNKNOWN");
    client.chunk(&location, 5, b" world").await.expect_error(404, "BLOB_UPLOAD_UNKNOWN");
}

#[tokio::test]
async fn an_unknown_session_is_404() {
    let server = Server::start();
    let client = server.client();
    client.push_blob("acme/app", b"x").await;
    for id in ["0123456789abcdef0123456789abcdef", "00000000-0000-4000-8000-000000000000", "x", "..."] {
        let path = format!("/v2/acme/app/blobs/uploads/{id}");
        let answers = [
            client.get(&path).await,
            client.stream(&path, "x").await,
            client.close_upload(&path, &sha256(b"x"), b"x").await,
            client.delete(&path).await,
        ];
        for answer in answers {
            answer.expect_error(404, "BLOB_UPLOAD_UNKNOWN");
        }
    }
}

#[tokio::test]
async fn a_session_belongs_to_its_repository() {
    let server = Server::start();
    let client = server.client();
    let location = client.open_upload("acme/app").await;
    let elsewhere = location.replace("acme/app", "acme/other");
    client.stream(&elsewhere, "x").await.expect_error(404, "BLOB_UPLOAD_UNKNOWN");
}

#[tokio::test]
async fn a_mount_is_201_and_gives_the_blob_to_the_other_repository() {
    let server = Server::start();
    let client = server.client();
    let digest = client.push_blob("acme/one", b"shared").await;
    for from in ["&from=acme/one", ""] {
        let target = if from.is_empty() { "acme/three" } else { "acme/two" };
        let answer = client.post(&format!("/v2/{target}/blobs/uploads/?mount={digest}{from}")).await.expect(201);
        assert_eq!(answer.header("docker-content-digest"), digest);
        assert!(answer.location().ends_with(&format!("/v2/{target}/blobs/{digest}")));
        assert_eq!(client.get(&format!("/v2/{target}/blobs/{digest}")).await.expect(200).body, b"shared");
    }
    // A mount is the repository's own: it stays when the source lets go.
    client.delete(&format!("/v2/acme/one/blobs/{digest}")).await.expect(202);
    client.get(&format!("/v2/acme/two/blobs/{digest}")).await.expect(200);
}

#[tokio::test]
async fn blobs_named_by_sha512_are_uploaded_in_one_go_and_mounted_too() {
    let server = Server::start();
    let client = server.client();
    let digest = sha512(b"strong");
    let path = format!("/v2/acme/one/blobs/uploads/?digest={digest}");
    let answer = send(client.request(Method::POST, &path).body("strong")).await.expect(201);
    assert_eq!(answer.header("docker-content-digest"), digest);
    let mounted = client.post(&format!("/v2/acme/two/blobs/uploads/?mount={digest}&from=acme/one")).await.expect(201);
    assert_eq!(mounted.header("docker-content-digest"), digest);
    assert_eq!(client.get(&mounted.location()).await.expect(200).body, b"strong");
}

#[tokio::test]
async fn a_mount_of_what_is_not_there_becomes_an_upload() {
    let server = Server::start();
    let client = server.client();
    client.push_blob("acme/one", b"shared").await;
    let (absent, digest) = (sha256(b"absent"), sha256(b"shared"));
    for query in [
        format!("mount={absent}&from=acme/one"),
        format!("mount={absent}"),
        format!("mount={digest}&from=acme/nothing"),
        format!("mount={digest}&from=nobody/none"),
        format!("mount={digest}&from=NOT%20A%20NAME"),
    ] {
        let location = client.post(&format!("/v2/acme/two/blobs/uploads/?{query}")).await.expect(202).location();
        client.close_upload(&location, &absent, b"absent").await.expect(201);
        client.delete(&format!("/v2/acme/two/blobs/{absent}")).await.expect(202);
    }
    // Without `from`, only the account's own repositories count.
    client.post(&format!("/v2/other/two/blobs/uploads/?mount={digest}")).await.expect(202);
}

#[tokio::test]
async fn the_same_blob_may_be_pushed_by_many_at_once() {
    let server = Server::start();
    let client = server.client();
    let image = Image::small(96);
    let mut pushes = tokio::task::JoinSet::new();
    for index in 0..16 {
        let (client, image) = (client.clone(), image.clone());
        pushes.spawn(async move { client.push_image("acme/app", &format!("v{index}"), &image).await });
    }
    pushes.join_all().await;
    assert_eq!(client.tags("acme/app").await.len(), 16);
    client.assert_image("acme/app", "v0", &image).await;
}
