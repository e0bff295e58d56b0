//! Upload sessions over time: interrupted, restarted, written to twice at once.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{
    Image, Server,
    client::path_of,
    images::{random_bytes, sha256},
};

#[tokio::test]
async fn a_session_survives_an_orderly_restart_and_resumes() {
    let mut server = Server::start();
    let client = server.client();
    let bytes = random_bytes(100, 500_000);
    let location = client.open_upload("acme/app").await;
    let location = client.chunk(&location, 0, &bytes[..200_000]).await.expect(202).location();
    server.stop();
    server.restart();
    let client = server.client();
    let status = client.get(&location).await.expect(204);
    assert_eq!(status.header("range"), "0-199999");
    let location = client.chunk(&location, 200_000, &bytes[200_000..]).await.expect(202).location();
    client.close_upload(&location, &sha256(&bytes), b"").await.expect(201);
    assert!(client.get(&format!("/v2/acme/app/blobs/{}", sha256(&bytes))).await.expect(200).body == bytes);
}

#[tokio::test]
async fn a_session_survives_a_kill_and_resumes_at_the_last_durable_byte() {
    let mut server = Server::start();
    let client = server.client();
    let bytes = random_bytes(101, 500_000);
    let location = client.open_upload("acme/app").await;
    let location = client.chunk(&location, 0, &bytes[..200_000]).await.expect(202).location();
    server.kill();
    server.restart();
    let client = server.client();
    let range = client.get(&location).await.expect(204).header("range").to_owned();
    let end: usize = range.strip_prefix("0-").expect("a range from 0").parse().expect("a number");
    assert_eq!(end, 199_999, "a chunk that got 202 is durable");
    let location = client.chunk(&location, end + 1, &bytes[end + 1..]).await.expect(202).location();
    client.close_upload(&location, &sha256(&bytes), b"").await.expect(201);
    assert!(client.get(&format!("/v2/acme/app/blobs/{}", sha256(&bytes))).await.expect(200).body == bytes);
}

#[tokio::test]
async fn images_survive_a_restart() {
    let mut server = Server::start();
    let client = server.client();
    let images: Vec<Image> = (102..106).map(Image::small).collect();
    for image in &images {
        client.push_image("acme/app", &format!("v{}", &image.digest()[7..15]), image).await;
    }
    server.kill();
    server.restart();
    for image in &images {
        server.client().assert_image("acme/app", &format!("v{}", &image.digest()[7..15]), image).await;
    }
    server.stop();
}

#[tokio::test]
async fn the_status_of_an_upload_that_is_being_written_to_is_what_is_durable() {
    let server = Server::start();
    let client = server.client();
    let location = client.open_upload("acme/app").await;
    let location = client.chunk(&location, 0, b"hello").await.expect(202).location();
    let path = path_of(&location);
    let mut slow = client.connect().await;
    let head = format!("PATCH {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nExpect: 100-continue\r\n\r\n");
    slow.write_all(head.as_bytes()).await.expect("sent");
    let mut asked = [0; 25];
    // The server asks for the body once the session is held by this request.
    slow.read_exact(&mut asked).await.expect("an answer");
    assert!(asked.starts_with(b"HTTP/1.1 100 "));
    let status = client.get(&location).await.expect(204);
    assert_eq!(status.header("range"), "0-4");
    assert!(!status.header("location").is_empty());
    let busy = client.chunk(&location, 5, b" world").await.expect_error(409, "BLOB_UPLOAD_INVALID");
    assert!(!busy.header("retry-after").is_empty());
    slow.write_all(b" world").await.expect("sent");
    let mut answer = [0; 13];
    slow.read_exact(&mut answer).await.expect("an answer");
    assert!(answer.starts_with(b"HTTP/1.1 202 "), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(client.get(&location).await.expect(204).header("range"), "0-10");
    client.close_upload(&location, &sha256(b"hello world"), b"").await.expect(201);
}

#[tokio::test]
async fn two_writers_to_one_session_never_mix() {
    let server = Server::start();
    let client = server.client();
    let (first, second) = (random_bytes(107, 2_000_000), random_bytes(108, 2_000_000));
    let location = client.open_upload("acme/app").await;
    let (one, two) = tokio::join!(client.stream(&location, first.clone()), client.stream(&location, second.clone()));
    let statuses = [one.status, two.status];
    assert!(statuses.contains(&202), "{statuses:?}");
    assert!(statuses.iter().all(|status| matches!(status, 202 | 409 | 416)), "{statuses:?}");
    let expected = match statuses {
        [202, 202] if one.header("range") == "0-1999999" => [first, second].concat(),
        [202, 202] => [second, first].concat(),
        [202, _] => first,
        _ => second,
    };
    client.close_upload(&location, &sha256(&expected), b"").await.expect(201);
}
