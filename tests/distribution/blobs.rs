//! Pulling blobs: whole, in ranges, conditionally.

use reqwest::Method;

use crate::harness::{
    Answer, Client, Server,
    client::send,
    images::{random_bytes, sha256},
};

/// A server with one blob of a length that no round chunk divides, and the path to it.
async fn with_blob(seed: u64) -> (Server, Client, String, Vec<u8>) {
    let server = Server::start();
    let client = server.client();
    let bytes = random_bytes(seed, 700_001);
    let digest = client.push_blob("acme/app", &bytes).await;
    (server, client, format!("/v2/acme/app/blobs/{digest}"), bytes)
}

#[tokio::test]
async fn a_blob_comes_back_whole_with_its_headers() {
    let (_server, client, path, bytes) = with_blob(80).await;
    let (get, head) = (client.get(&path).await.expect(200), client.head(&path).await.expect(200));
    assert!(get.body == bytes);
    assert!(head.body.is_empty());
    for answer in [&get, &head] {
        assert_eq!(answer.header("content-length"), bytes.len().to_string());
        assert_eq!(answer.header("docker-content-digest"), sha256(&bytes));
        assert_eq!(answer.header("content-type"), "application/octet-stream");
        assert_eq!(answer.header("accept-ranges"), "bytes");
        assert!(answer.header("etag").contains(&sha256(&bytes)), "{}", answer.header("etag"));
        let cache = answer.header("cache-control");
        assert!(cache.contains("immutable") && cache.contains("max-age"), "{cache}");
    }
}

#[tokio::test]
async fn an_empty_blob_is_a_blob() {
    let server = Server::start();
    let client = server.client();
    let digest = client.push_blob("acme/app", b"").await;
    let answer = client.get(&format!("/v2/acme/app/blobs/{digest}")).await.expect(200);
    assert!(answer.body.is_empty());
    assert_eq!(answer.header("content-length"), "0");
}

#[tokio::test]
async fn every_single_range_is_206_with_just_those_bytes() {
    let (_server, client, path, bytes) = with_blob(81).await;
    let last = bytes.len() - 1;
    let cases = [
        ("bytes=0-0".to_owned(), 0, 0),
        ("bytes=0-99".to_owned(), 0, 99),
        ("bytes=65535-65537".to_owned(), 65_535, 65_537),
        ("bytes=100000-600000".to_owned(), 100_000, 600_000),
        (format!("bytes={last}-{last}"), last, last),
        ("bytes=699990-".to_owned(), 699_990, last),
        ("bytes=0-".to_owned(), 0, last),
        ("bytes=-1".to_owned(), last, last),
        ("bytes=-500".to_owned(), last - 499, last),
        ("bytes=-9999999".to_owned(), 0, last),
        ("bytes=10-99999999".to_owned(), 10, last),
    ];
    for (range, from, to) in cases {
        let answer = client.get_with(&path, "Range", &range).await.expect(206);
        assert!(answer.body == bytes[from..=to], "{range}");
        assert_eq!(answer.header("content-range"), format!("bytes {from}-{to}/{}", bytes.len()), "{range}");
        assert_eq!(answer.header("content-length"), (to - from + 1).to_string(), "{range}");
    }
}

#[tokio::test]
async fn a_range_beyond_the_end_is_416_with_the_true_size() {
    let (_server, client, path, bytes) = with_blob(82).await;
    for range in [format!("bytes={}-", bytes.len()), "bytes=9999999-10000000".to_owned(), "bytes=-0".to_owned()] {
        let answer = client.get_with(&path, "Range", &range).await.expect(416);
        assert_eq!(answer.header("content-range"), format!("bytes */{}", bytes.len()), "{range}");
    }
}

#[tokio::test]
async fn ranges_that_make_no_sense_are_ignored() {
    let (_server, client, path, bytes) = with_blob(83).await;
    for range in ["bytes=", "bytes=-", "bytes=a-b", "bytes=5-1", "lines=1-2", "bytes", "bytes=1 -2x", "bytes=+1-2"] {
        let answer = client.get_with(&path, "Range", range).await;
        match answer.status {
            200 => assert!(answer.body == bytes, "{range}"),
            status => assert!(matches!(status, 400 | 416), "{range}: {status}"),
        }
    }
    let huge = format!("bytes=0-{}0", u64::MAX);
    assert_ne!(client.get_with(&path, "Range", &huge).await.status / 100, 5);
}

#[tokio::test]
async fn several_ranges_are_answered_whole_or_as_parts() {
    let (_server, client, path, bytes) = with_blob(84).await;
    let answer = client.get_with(&path, "Range", "bytes=0-9,100-199").await;
    match answer.status {
        200 => assert!(answer.body == bytes),
        206 => assert!(answer.header("content-type").starts_with("multipart/byteranges")),
        status => panic!("{status}"),
    }
}

#[tokio::test]
async fn if_range_keeps_a_resumed_pull_from_mixing_contents() {
    let (_server, client, path, bytes) = with_blob(85).await;
    let tag = client.head(&path).await.expect(200).header("etag").to_owned();
    let resume = async |validator: &str| -> Answer {
        let request = client.request(Method::GET, &path).header("Range", "bytes=5-9").header("If-Range", validator);
        send(request).await
    };
    assert!(resume(&tag).await.expect(206).body == bytes[5..=9]);
    assert!(resume("\"something else\"").await.expect(200).body == bytes);
    assert!(resume("Wed, 21 Oct 2015 07:28:00 GMT").await.expect(200).body == bytes);
}

#[tokio::test]
async fn a_known_blob_is_304() {
    let (_server, client, path, _bytes) = with_blob(86).await;
    let tag = client.head(&path).await.expect(200).header("etag").to_owned();
    assert!(client.get_with(&path, "If-None-Match", &tag).await.expect(304).body.is_empty());
    client.get_with(&path, "If-None-Match", "\"other\"").await.expect(200);
}

#[tokio::test]
async fn many_clients_pull_the_same_blob_at_once() {
    let (_server, client, path, bytes) = with_blob(87).await;
    let mut pulls = tokio::task::JoinSet::new();
    for _ in 0..32 {
        let (client, path) = (client.clone(), path.clone());
        pulls.spawn(async move { sha256(&client.get(&path).await.expect(200).body) });
    }
    for digest in pulls.join_all().await {
        assert_eq!(digest, sha256(&bytes));
    }
}
