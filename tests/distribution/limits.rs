//! What is too large or too much is refused by name, before it does harm.

use reqwest::Method;

use crate::harness::{
    Server,
    client::{path_of, send},
    images::{random_bytes, sha256},
};

#[tokio::test]
async fn a_blob_beyond_the_limit_is_413_size_invalid_however_it_comes() {
    let server = Server::start_with_options(&["--set", "registry.blob_size_max=1MiB"]);
    let client = server.client();
    let (fitting, larger) = (random_bytes(1, 1 << 20), random_bytes(2, (1 << 20) + 1));
    client.push_blob("acme/app", &fitting).await;
    let at_once = format!("/v2/acme/app/blobs/uploads/?digest={}", sha256(&larger));
    send(client.request(Method::POST, &at_once).body(larger.clone())).await.expect_error(413, "SIZE_INVALID");
    let location = client.open_upload("acme/app").await;
    client.close_upload(&location, &sha256(&larger), &larger).await.expect_error(413, "SIZE_INVALID");
    let location = client.open_upload("acme/app").await;
    let location = client.chunk(&location, 0, &larger[..1 << 19]).await.expect(202).location();
    client.chunk(&location, 1 << 19, &larger[1 << 19..]).await.expect_error(413, "SIZE_INVALID");
    // Without a length, the bytes are counted.
    let location = client.open_upload("acme/app").await;
    let path = path_of(&location);
    let head = format!("PATCH {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n");
    let request = [head.as_bytes(), b"100001\r\n", &larger, b"\r\n0\r\n\r\n"].concat();
    let answer = client.raw(&request).await;
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("SIZE_INVALID"), "{answer}");
    client.get(&format!("/v2/acme/app/blobs/{}", sha256(&larger))).await.expect_error(404, "BLOB_UNKNOWN");
}

#[tokio::test]
async fn accounts_that_nobody_made_are_404_name_unknown_where_pushes_make_none() {
    let server = Server::start_with_options(&["--set", "registry.create_accounts_on_push=false"]);
    let client = server.client();
    let answer = client.post("/v2/acme/app/blobs/uploads/").await.expect_error(404, "NAME_UNKNOWN");
    assert!(answer.message().contains("acme"), "{}", answer.text());
}
