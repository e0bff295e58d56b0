use std::time::{Duration, Instant};

use reqwest::Method;

use crate::federation::{LEASE, Region, three_regions};
use crate::harness::client::try_send;
use crate::harness::{Image, ImageBuilder};

const PATIENCE: Duration = Duration::from_secs(30);

fn images(count: u64) -> Vec<Image> {
    (0..count).map(|seed| ImageBuilder::new(seed).layers(1).layer_bytes(64).build()).collect()
}

/// Waits until the region answers for the account of a tag by itself.
pub async fn until_it_answers_alone(region: &Region, path: &str) {
    let start = Instant::now();
    loop {
        let asked = region.questions("manifest").await;
        let answers = region.counter("keppel_copy_answers_total").await;
        region.client.get(path).await.expect(200);
        let alone = region.counter("keppel_copy_answers_total").await > answers;
        if alone && region.questions("manifest").await == asked {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "it asks for {path} at each pull");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_that_follows_answers_tags_lists_and_absence_without_a_question() {
    let [eu, us, _ap] = three_regions();
    let image = Image::small(1);
    eu.client.push_image("acme/app", "v1", &image).await;
    us.client.assert_image("acme/app", "v1", &image).await;
    until_it_answers_alone(&us, "/v2/acme/app/manifests/v1").await;
    // What was never pulled here is here by now, too.
    let later = Image::small(2);
    eu.client.push_image("acme/other", "v2", &later).await;
    let asked = (us.questions("manifest").await, us.questions("list").await);
    for _ in 0..50 {
        let pulled = us.client.get("/v2/acme/app/manifests/v1").await.expect(200);
        assert!(pulled.headers.get("warning").is_none());
        assert_eq!(pulled.header("docker-content-digest"), image.digest());
    }
    us.client.assert_manifest("acme/other", "v2", &later.manifest).await;
    us.client.get("/v2/acme/app/manifests/v9").await.expect_error(404, "MANIFEST_UNKNOWN");
    us.client.get("/v2/acme/none/manifests/v1").await.expect_error(404, "NAME_UNKNOWN");
    assert_eq!(us.client.tags("acme/app").await, ["v1"]);
    let referrers = us.client.get(&format!("/v2/acme/app/referrers/{}", image.digest())).await.expect(200);
    assert_eq!(referrers.json()["manifests"], serde_json::json!([]));
    assert_eq!((us.questions("manifest").await, us.questions("list").await), asked, "it had to ask");
    // A deletion at the primary takes the copy along, also by digest.
    eu.client.delete(&format!("/v2/acme/app/manifests/{}", image.digest())).await.expect(202);
    for reference in ["v1", &image.digest()] {
        let path = format!("/v2/acme/app/manifests/{reference}");
        us.client.get(&path).await.expect_error(404, "MANIFEST_UNKNOWN");
    }
    assert_eq!(us.questions("list").await, asked.1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_that_stands_still_delays_a_push_for_the_lease_and_never_answers_with_the_old_as_current() {
    let [eu, us, ap] = three_regions();
    let images = images(2);
    for image in &images {
        eu.client.push_image("acme/app", "latest", image).await;
    }
    for region in [&us, &ap] {
        region.client.assert_manifest("acme/app", "latest", &images[1].manifest).await;
        until_it_answers_alone(region, "/v2/acme/app/manifests/latest").await;
    }
    // Stopped, as by a machine that is suspended: it cannot even notice.
    ap.signal(libc::SIGSTOP);
    let start = Instant::now();
    eu.client.put_manifest("acme/app", "latest", &images[0].manifest).await.expect(201);
    let took = start.elapsed();
    assert!(took < LEASE + Duration::from_secs(1), "acknowledged after {took:?}");
    assert!(took > LEASE / 4, "acknowledged after {took:?}, while a region may still have answered with the old");
    us.client.assert_manifest("acme/app", "latest", &images[0].manifest).await;
    // The next one does not wait for it again.
    let start = Instant::now();
    us.client.put_manifest("acme/app", "next", &images[1].manifest).await.expect(201);
    assert!(start.elapsed() < LEASE / 2, "acknowledged after {:?}", start.elapsed());

    // Asked after the 201, while it still stands still; it answers when it goes on.
    let asking: Vec<_> = (0..4)
        .map(|_| {
            let client = ap.server.client();
            tokio::spawn(async move { try_send(client.request(Method::GET, "/v2/acme/app/manifests/latest")).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(200)).await;
    ap.signal(libc::SIGCONT);
    for asked in asking {
        let Ok(answer) = asked.await.expect("it ends") else { continue };
        let is_current = answer.status == 200 && answer.headers.get("warning").is_none();
        if is_current {
            assert_eq!(answer.header("docker-content-digest"), images[0].digest(), "the old one as current");
        } else {
            assert!(answer.status == 503 || answer.header("warning").starts_with("110 "), "{}", answer.status);
        }
    }
    until_it_answers_alone(&ap, "/v2/acme/app/manifests/latest").await;
    ap.client.assert_manifest("acme/app", "latest", &images[0].manifest).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_that_was_away_catches_up_with_a_thousand_events_within_ten_seconds() {
    let [mut eu, mut us, _ap] = three_regions();
    let images = images(4);
    for image in &images {
        eu.client.push_image("acme/app", "seed", image).await;
    }
    us.client.assert_manifest("acme/app", "seed", &images[3].manifest).await;
    until_it_answers_alone(&us, "/v2/acme/app/manifests/seed").await;
    us.server.kill();
    // Tags of their own, and one that moves: two events each.
    for number in 0..500 {
        let image = &images[number % images.len()];
        eu.client.put_manifest("acme/app", &format!("t{number}"), &image.manifest).await.expect(201);
        eu.client.put_manifest("acme/app", "moving", &image.manifest).await.expect(201);
    }
    us.restart();
    let start = Instant::now();
    until_it_answers_alone(&us, "/v2/acme/app/manifests/moving").await;
    let took = start.elapsed();
    assert!(took < Duration::from_secs(10), "caught up after {took:?}");
    assert!(us.counter("keppel_copy_events_total").await >= 1000, "it did not go by the log");
    assert_eq!(us.counter("keppel_copy_resyncs_total").await, 0);
    us.client.assert_manifest("acme/app", "moving", &images[3].manifest).await;
    assert_eq!(us.client.tags("acme/app").await, eu.client.tags("acme/app").await);

    // The primary comes back from a crash: whoever held a lease is known to it, and everything goes on.
    eu.server.kill();
    eu.restart();
    let start = Instant::now();
    eu.client.put_manifest("acme/app", "moving", &images[0].manifest).await.expect(201);
    assert!(start.elapsed() < 2 * LEASE + Duration::from_secs(2), "{:?}", start.elapsed());
    let pulled = us.client.get("/v2/acme/app/manifests/moving").await.expect(200);
    assert!(pulled.headers.get("warning").is_some() || pulled.header("docker-content-digest") == images[0].digest());
    until_it_answers_alone(&us, "/v2/acme/app/manifests/moving").await;
    us.client.assert_manifest("acme/app", "moving", &images[0].manifest).await;
}
