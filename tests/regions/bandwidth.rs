//! What nobody waits for keeps to its budget, and a client's pull is not slowed by it.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::eager::{is_whole, make_replica};
use crate::federation::{Region, large_blob, three_regions_with, until};
use crate::harness::Content;
use crate::harness::images::{OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, random_bytes};

const MIB: u64 = 1 << 20;
/// What may be fetched in a second that nobody waits for.
const BUDGET: u64 = MIB / 2;
/// What may have been asked for ahead of its time: a part, and the beginnings of blobs that are fetched at a time.
const AHEAD: u64 = 2 * MIB;
/// Of the blobs that a client pulls.
const PULLED_MIB: u8 = 12;

/// Pushes images whose blobs have these sizes.
async fn push_images(region: &Region, repository: &str, sizes: &[usize]) {
    let config = region.client.push_blob(repository, b"{}").await;
    for (number, size) in sizes.iter().enumerate() {
        let layer = Content::new(OCI_LAYER, random_bytes(1000 + number as u64, *size));
        region.client.push_blob(repository, &layer.bytes).await;
        let config = json!({ "mediaType": OCI_CONFIG, "digest": config, "size": 2 });
        let document =
            json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [layer.descriptor()] });
        let manifest = Content::json(OCI_MANIFEST, &document);
        region.client.put_manifest(repository, &format!("v{number}"), &manifest).await.expect(201);
    }
}

/// Pulls a blob that nobody has pulled before; gives how long that took.
async fn pull_fresh(from: &Region, to: &Region, seed: u8) -> Duration {
    let mut layer = large_blob(PULLED_MIB);
    layer[0] = seed;
    let path = format!("/v2/other/app/blobs/{}", from.client.push_blob("other/app", &layer).await);
    let start = Instant::now();
    let pulled = to.client.get(&path).await.expect(200);
    let took = start.elapsed();
    assert!(pulled.body == layer, "other bytes");
    took
}

async fn received(region: &Region) -> u64 {
    region.counter("keppel_transfer_received_bytes_total").await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_fetched_ahead_keeps_to_its_budget_and_slows_no_pull() {
    let budget = format!("federation.background_bandwidth_max={BUDGET}");
    let [eu, us, _ap] = three_regions_with(&[&budget]);
    // Large blobs come in parts, small ones at once with the answer what they are.
    let (large, small) = ([3 * MIB as usize; 3], [200_000; 20]);
    push_images(&eu, "acme/large", &large).await;
    push_images(&eu, "acme/small", &small).await;
    until("the account is known", || us.told(&["accounts"]).contains("acme"));
    let alone = pull_fresh(&eu, &us, 1).await.min(pull_fresh(&eu, &us, 2).await);
    let pulled = u64::from(PULLED_MIB) * MIB;

    let (before, start) = (received(&us).await, Instant::now());
    make_replica(&eu, &us, "acme", "eager").await;
    while received(&us).await < before + MIB / 2 {
        assert!(start.elapsed() < Duration::from_secs(30), "it does not begin to fetch ahead");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let beside = pull_fresh(&eu, &us, 3).await;
    assert!(!is_whole(&us, "acme"), "all had come before the pulls, which shows nothing");
    let all: u64 = large.iter().chain(&small).sum::<usize>() as u64;
    until("all is there", || {
        std::thread::sleep(Duration::from_millis(200));
        is_whole(&us, "acme")
    });
    let took = start.elapsed();
    let ahead = received(&us).await - before - pulled;
    assert!(ahead >= all, "{ahead} bytes came of {all}");
    let most = ahead.saturating_sub(AHEAD) as f64 / took.as_secs_f64();
    println!("{ahead} bytes ahead in {took:?}; a pull took {alone:?} alone, {beside:?} beside that");
    assert!(most <= BUDGET as f64, "{ahead} bytes in {took:?}");
    // At the budget's speed it would have taken 24 s.
    assert!(beside < alone * 2 + Duration::from_secs(2), "a pull takes {beside:?} beside it, {alone:?} alone");
}
