//! Blobs that several nodes have, and nodes that fail while they give one.

use std::time::{Duration, Instant};

use futures_util::future::join_all;

use crate::federation::{Region, large_blob, one_and_three, three_regions};
use crate::harness::images::sha256;

pub const RECEIVED: &str = "keppel_transfer_received_bytes_total";
const SENT: &str = "keppel_transfer_sent_bytes_total";
const MIB: u64 = 1 << 20;

/// What a region says about its transfers.
async fn transfers(region: &Region) -> String {
    let metrics = region.client.get("/metrics").await.expect(200).text();
    metrics.lines().filter(|line| line.starts_with("keppel_transfer")).map(|line| format!("{line}\n")).collect()
}

/// Waits until a region has received so much.
pub async fn until_received(region: &Region, bytes: u64) -> u64 {
    let start = Instant::now();
    loop {
        let received = region.counter(RECEIVED).await;
        if received >= bytes {
            return received;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "only {received} bytes came");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_goes_on_when_the_primary_is_killed_and_another_region_has_the_blob() {
    let [mut eu, us, ap] = three_regions();
    let layer = large_blob(96);
    let path = format!("/v2/acme/app/blobs/{}", eu.client.push_blob("acme/app", &layer).await);
    assert!(us.client.get(&path).await.expect(200).body == layer);
    let (client, asked) = (ap.server.client(), path.clone());
    let pull = tokio::spawn(async move { client.get(&asked).await });
    until_received(&ap, 4 * MIB).await;
    eu.server.kill();
    // How large it is, is known of one that is on its way.
    let size_bytes = layer.len().to_string();
    assert_eq!(ap.client.head(&path).await.expect(200).header("content-length"), size_bytes);
    assert!(pull.await.expect("it ends").expect(200).body == layer);
    assert!(us.counter(SENT).await > 0);
    // Nor is the primary needed to begin.
    let small = large_blob(3);
    let path = format!("/v2/acme/app/blobs/{}", us.client.push_blob("acme/app", &small).await);
    assert_eq!(ap.client.head(&path).await.expect(200).header("content-length"), small.len().to_string());
    assert!(ap.client.get(&path).await.expect(200).body == small);
    let nowhere = format!("/v2/acme/app/blobs/{}", sha256(b"never pushed"));
    ap.client.head(&nowhere).await.expect(503);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_that_stops_in_mid_blob_is_left_out_and_named() {
    let [eu, us, ap] = three_regions();
    let layer = large_blob(96);
    let path = format!("/v2/acme/app/blobs/{}", eu.client.push_blob("acme/app", &layer).await);
    assert!(us.client.get(&path).await.expect(200).body == layer);
    let (client, asked) = (ap.server.client(), path.clone());
    let pull = tokio::spawn(async move { client.get(&asked).await });
    until_received(&ap, 4 * MIB).await;
    us.signal(libc::SIGSTOP);
    let (start, before) = (Instant::now(), transfers(&ap).await);
    let pulled = pull.await.expect("it ends").expect(200);
    us.signal(libc::SIGCONT);
    assert!(pulled.body == layer);
    let metrics = ap.client.get("/metrics").await.expect(200).text();
    // Where the other region is fast, all is there before the silence is long enough: then its parts were given by that one.
    let names = ["keppel_transfer_sources_dropped_total{", "keppel_transfer_late_parts_total{"];
    let mut named = metrics.lines().filter(|line| names.iter().any(|name| line.starts_with(name)));
    let is_named = named.any(|line| line.contains("region=\"us\""));
    assert!(is_named, "after {:?}:\n{before}\n{}", start.elapsed(), transfers(&ap).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_of_one_region_that_pull_at_once_cost_the_primary_one_transfer() {
    let (eu, near) = one_and_three();
    let layers: Vec<Vec<u8>> = [24, 25, 26].map(large_blob).into();
    let mut paths = Vec::new();
    for layer in &layers {
        paths.push(format!("/v2/acme/app/blobs/{}", eu.client.push_blob("acme/app", layer).await));
    }
    let pulls = near.iter().flat_map(|region| paths.iter().map(|path| region.client.get(path)));
    for (number, pulled) in join_all(pulls).await.into_iter().enumerate() {
        assert!(pulled.expect(200).body == layers[number % layers.len()]);
    }
    let size: usize = layers.iter().map(Vec::len).sum();
    let sent = eu.counter(SENT).await;
    assert!(sent >= size as u64, "only {sent} bytes were counted");
    let mut told = transfers(&eu).await;
    for region in &near {
        told.push_str(&transfers(region).await);
    }
    assert!(sent as f64 <= 1.3 * size as f64, "{sent} bytes for {size}\n{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_that_was_killed_in_mid_transfer_fetches_only_the_rest() {
    let [eu, mut us, _ap] = three_regions();
    let layer = large_blob(128);
    let path = format!("/v2/acme/app/blobs/{}", eu.client.push_blob("acme/app", &layer).await);
    let (client, asked) = (us.server.client(), path.clone());
    let pull = tokio::spawn(async move {
        crate::harness::client::try_send(client.request("GET".parse().expect("a method"), &asked)).await
    });
    let had = until_received(&us, 24 * MIB).await;
    us.server.kill();
    let _broken = pull.await.expect("it ends");
    us.restart();
    assert!(us.client.get(&path).await.expect(200).body == layer);
    let (resumed, received) = (us.counter("keppel_transfer_resumed_bytes_total").await, us.counter(RECEIVED).await);
    let again = (resumed + received).saturating_sub(layer.len() as u64);
    assert!(again as f64 <= 0.05 * resumed as f64, "{again} bytes of {resumed} came again");
    // What came out of order was still in memory.
    assert!(resumed + 16 * MIB >= had && resumed > 0, "of {had} bytes only {resumed} were there");
    assert!(us.client.get(&path).await.expect(200).body == layer);
}
