//! Requests that no sane client sends: each gets an answer below 500 or a closed connection, and the server lives.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use crate::harness::{Image, Server, images::sha256};

#[tokio::test]
async fn broken_http_is_answered_or_cut_but_never_kills() {
    let mut server = Server::start();
    let client = server.client();
    let long = "a".repeat(200_000);
    let many: String = (0..2000).map(|index| format!("X-{index}: y\r\n")).collect();
    let requests = [
        "\r\n\r\n".to_owned(),
        "GET\r\n\r\n".to_owned(),
        "GET /v2/ HTTP/9.9\r\n\r\n".to_owned(),
        "\0\0\0\0\0\0\0\0\r\n\r\n".to_owned(),
        format!("GET /v2/{long}/tags/list HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"),
        format!("GET /v2/ HTTP/1.1\r\nHost: a\r\nX: {long}\r\nConnection: close\r\n\r\n"),
        format!("GET /v2/ HTTP/1.1\r\nHost: a\r\n{many}Connection: close\r\n\r\n"),
        "GET /v2/ HTTP/1.1\r\nConnection: close\r\n\r\n".to_owned(),
        "GET /v2/../../../etc/passwd HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".to_owned(),
        "GET /v2/acme/..%2f..%2fetc/manifests/v1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".to_owned(),
        "GET /v2/%ff%fe/tags/list HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".to_owned(),
        "GET /v2/a%00b/tags/list HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".to_owned(),
        "GET /v2/acme/app/tags/list?n=%zz&last=%ff HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".to_owned(),
        "POST /v2/acme/app/blobs/uploads/ HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n".to_owned(),
        "POST /v2/acme/app/blobs/uploads/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx"
            .to_owned(),
        "POST /v2/acme/app/blobs/uploads/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".to_owned(),
        "BREW /v2/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".to_owned(),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0garbage".to_owned(),
    ];
    for request in requests {
        let mut stream = client.connect().await;
        let _ = stream.write_all(request.as_bytes()).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let read = timeout(Duration::from_secs(30), stream.read_to_end(&mut answer)).await;
        assert!(read.is_ok(), "no end after {:?}", &request[..request.len().min(80)]);
        let answer = String::from_utf8_lossy(&answer);
        assert!(!answer.starts_with("HTTP/1.1 5"), "{:?} got {answer}", &request[..request.len().min(80)]);
        server.assert_alive();
    }
    assert!(!client.get("/v2/../../../etc/passwd").await.text().contains("root:"));
}

#[tokio::test]
async fn bodies_of_unknown_codings_are_refused_and_the_connection_ends() {
    let server = Server::start();
    for headers in
        ["Transfer-Encoding: gzip, chunked\r\n", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"]
    {
        // What follows must not be taken for another request.
        let request = format!(
            "POST /v2/acme/app/blobs/uploads/ HTTP/1.1\r\nHost: a\r\n{headers}\r\n0\r\n\r\nGET /v2/ HTTP/1.1\r\nHost: a\r\n\r\n"
        );
        let answer = server.client().raw(request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{headers:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{headers:?}: {answer}");
    }
}

#[tokio::test]
async fn a_client_whose_body_was_not_read_is_told_that_the_connection_ends() {
    let server = Server::start();
    let mut stream = server.client().connect().await;
    let head = "PATCH /v2/acme/app/blobs/uploads/none HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n";
    stream.write_all(head.as_bytes()).await.expect("the server reads");
    let mut answer = [0; 2000];
    let length = timeout(Duration::from_secs(20), stream.read(&mut answer)).await.expect("in time").expect("an answer");
    let answer = String::from_utf8_lossy(&answer[..length]).to_lowercase();
    assert!(answer.starts_with("http/1.1 404 ") && answer.contains("connection: close"), "{answer}");
    // One that was read keeps the connection, also when it is refused.
    let client = server.client();
    let location = client.open_upload("acme/app").await;
    let refused = client.close_upload(&location, &sha256(b"other"), b"hello").await.expect_error(400, "DIGEST_INVALID");
    assert_eq!(refused.header("connection"), "");
}

#[tokio::test]
async fn whoever_comes_with_a_browser_is_told_where_things_are() {
    let server = Server::start();
    let answer = server.client().get("/").await.expect(404);
    assert!(answer.text().contains("/v2/") && answer.text().contains("/health/ready"), "{}", answer.text());
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let server = Server::start();
    let client = server.client();
    client.push_image("acme/app", "v1", &Image::small(150)).await;
    let one = "GET /v2/acme/app/tags/list HTTP/1.1\r\nHost: a\r\n\r\n";
    let last = "GET /v2/acme/none/tags/list HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let answer = client.raw(format!("{one}{one}{last}").as_bytes()).await;
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 2, "{answer}");
    assert_eq!(answer.matches("HTTP/1.1 404").count(), 1, "{answer}");
}

#[tokio::test]
async fn requests_have_ids_that_the_client_may_set() {
    let server = Server::start();
    let client = server.client();
    let made = client.get("/v2/").await.header("x-request-id").to_owned();
    assert!(!made.is_empty());
    assert_ne!(client.get("/v2/").await.header("x-request-id"), made);
    assert_eq!(client.get_with("/v2/", "X-Request-Id", "mine-1").await.header("x-request-id"), "mine-1");
}
