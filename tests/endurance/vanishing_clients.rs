//! Clients cut off in the middle: nothing half-visible, sessions resume, nothing leaks.

use std::{
    fs,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::harness::{
    Answer, Client, Content, Image, Server,
    client::path_of,
    disk::wait_until_swept,
    images::{random_bytes, sha256},
};

/// Sends the head of a request and only a part of the body that it announces, then resets the connection.
async fn cut(client: &Client, head: &str, length: usize, part: &[u8]) {
    let mut stream = client.connect().await;
    let head = format!(
        "{head} HTTP/1.1\r\nHost: a\r\nContent-Type: application/octet-stream\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.expect("the server reads the head");
    stream.write_all(part).await.expect("the server reads the body");
    stream.flush().await.expect("the server reads the body");
    reset(stream);
}

/// Closes with a reset, as a machine that lost its network would once it is back.
fn reset(stream: TcpStream) {
    let stream = stream.into_std().expect("a stream belongs to no task");
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: the option's value is a linger and its size is given.
    unsafe {
        libc::setsockopt(
            std::os::fd::AsRawFd::as_raw_fd(&stream),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of::<libc::linger>() as libc::socklen_t,
        );
    }
}

/// Asks again while another request holds the session: the server has not noticed yet that its client is gone.
async fn once_free(ask: impl AsyncFn() -> Answer) -> Answer {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let answer = ask().await;
        if answer.status != 409 {
            return answer;
        }
        assert!(Instant::now() < deadline, "the session stays busy");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_patch_cut_off_keeps_what_arrived_and_resumes() {
    let mut server = Server::start();
    let client = server.client();
    let bytes = random_bytes(310, 1_000_000);
    let location = client.open_upload("acme/app").await;
    cut(&client, &format!("PATCH {}", path_of(&location)), bytes.len(), &bytes[..400_000]).await;
    let resumed = loop {
        let status = client.get(&location).await.expect(204);
        let last: usize = status.header("range").trim_start_matches("0-").parse().expect("a number");
        assert!(last < 400_000, "not more than was sent: {last}");
        let from = if last == 0 { 0 } else { last + 1 };
        let answer = once_free(async || client.chunk(&location, from, &bytes[from..]).await).await;
        // The rest of what was sent may have arrived in between; then the place to resume at moved on.
        if answer.status != 416 {
            break answer;
        }
    };
    let location = resumed.expect(202).location();
    client.close_upload(&location, &sha256(&bytes), b"").await.expect(201);
    assert!(client.get(&format!("/v2/acme/app/blobs/{}", sha256(&bytes))).await.expect(200).body == bytes);
    server.assert_alive();
}

#[tokio::test]
async fn puts_and_posts_cut_off_store_nothing_and_leave_nothing() {
    let mut server = Server::start();
    let client = server.client();
    let bytes = random_bytes(311, 1_000_000);
    let digest = sha256(&bytes);
    for _ in 0..5 {
        let location = client.open_upload("acme/app").await;
        let put = format!("PUT {}?digest={digest}", path_of(&location));
        cut(&client, &put, bytes.len(), &bytes[..300_000]).await;
        cut(&client, &format!("POST /v2/acme/app/blobs/uploads/?digest={digest}"), bytes.len(), &bytes[..300_000])
            .await;
        let cancelled = once_free(async || client.delete(&location).await).await;
        assert!(matches!(cancelled.status, 204 | 404), "{}", cancelled.status);
    }
    client.get(&format!("/v2/acme/app/blobs/{digest}")).await.expect_error(404, "BLOB_UNKNOWN");
    wait_until_swept(server.data());
    client.push_blob("acme/app", &bytes).await;
    server.assert_alive();
}

#[tokio::test]
async fn a_chunked_body_without_its_end_is_not_taken_for_whole() {
    let server = Server::start();
    let client = server.client();
    let mut stream = client.connect().await;
    let head = format!(
        "POST /v2/acme/app/blobs/uploads/?digest={} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        sha256(b"hello")
    );
    stream.write_all(head.as_bytes()).await.expect("the server reads");
    stream.shutdown().await.expect("a stream can be half-closed");
    let mut answer = Vec::new();
    let _ = timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await.expect("the server ends it");
    assert!(!String::from_utf8_lossy(&answer).starts_with("HTTP/1.1 2"));
    client.get(&format!("/v2/acme/app/blobs/{}", sha256(b"hello"))).await.expect(404);
}

#[tokio::test]
async fn a_manifest_cut_off_is_not_stored() {
    let server = Server::start();
    let client = server.client();
    let image = Image::small(312);
    client.push_image("acme/app", "v1", &image).await;
    let whole = [&image.manifest.bytes[..], b" "].concat();
    let manifest = Content::new(&image.manifest.media_type, whole);
    // Everything but the last blank: what arrived is a manifest by itself, and still not what was announced.
    cut(&client, "PUT /v2/acme/app/manifests/v2", manifest.bytes.len(), &image.manifest.bytes).await;
    client.get("/v2/acme/app/manifests/v2").await.expect(404);
    assert_eq!(client.tags("acme/app").await, ["v1"]);
}

#[tokio::test]
async fn pulls_cut_off_leak_neither_files_nor_connections() {
    let mut server = Server::start();
    let client = server.client();
    let bytes = random_bytes(313, 20_000_000);
    let digest = client.push_blob("acme/app", &bytes).await;
    let open_files = || fs::read_dir(format!("/proc/{}/fd", server.pid())).expect("Linux tells open files").count();
    let before = open_files();
    for _ in 0..50 {
        let mut stream = client.connect().await;
        let request = format!("GET /v2/acme/app/blobs/{digest} HTTP/1.1\r\nHost: a\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("the server reads");
        let mut part = vec![0; 100_000];
        stream.read_exact(&mut part).await.expect("the blob begins");
        reset(stream);
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    while open_files() > before + 4 {
        assert!(Instant::now() < deadline, "{} files are open, {before} were before", open_files());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(client.get(&format!("/v2/acme/app/blobs/{digest}")).await.expect(200).body == bytes);
    server.assert_alive();
}

#[tokio::test]
async fn clients_that_stop_moving_are_cut_off() {
    let mut server =
        Server::start_with_options(&["--set", "http.header_timeout=1s", "--set", "http.body_idle_timeout=1s"]);
    let client = server.client();
    let location = client.open_upload("acme/app").await;
    let silent = String::new();
    let half_a_head = "GET /v2/ HTTP/1.1\r\nHost:".to_owned();
    let half_a_body = format!("PATCH {} HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhello", path_of(&location));
    for request in [silent, half_a_head, half_a_body] {
        let mut stream = client.connect().await;
        stream.write_all(request.as_bytes()).await.expect("the server reads");
        let mut answer = Vec::new();
        let ended = timeout(Duration::from_secs(15), stream.read_to_end(&mut answer)).await;
        assert!(ended.is_ok(), "the server waits for ever after {request:?}");
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
    }
    once_free(async || client.delete(&location).await).await.expect(204);
    server.assert_alive();
}
