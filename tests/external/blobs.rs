use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::json;

use crate::harness::{
    Reply, Upstream,
    client::try_send,
    images::{random_bytes, sha256},
};
use crate::site::{Lie, Site, blob};

const MI_B: usize = 1 << 20;

async fn start() -> (Upstream, Site, Vec<u8>, String) {
    let (upstream, site) = (Upstream::start().await, Site::start(&[]));
    let layer = random_bytes(7, 3 * MI_B + 77);
    let path = blob("app", &upstream.add_blob(&layer));
    site.mirror(&upstream).await;
    (upstream, site, layer, path)
}

#[tokio::test]
async fn eight_clients_and_parts_of_a_blob_cost_one_download_and_are_served_while_it_goes_on() {
    let (upstream, site, layer, path) = start().await;
    upstream.rule(|asked, good| Reply { stall_after: asked.is("GET", "/blobs/").then_some(2 * MI_B), ..good });
    let pulls = async { join_all((0..8).map(|_| site.client.get(&path))).await };
    let meanwhile = async {
        upstream.wait_for("GET", "/blobs/", 1).await;
        // The first bytes are there while the rest is not.
        let mut begun = site.client.request(Method::GET, &path).send().await.expect("an answer");
        assert_eq!(begun.content_length(), Some(layer.len() as u64));
        assert!(begun.chunk().await.expect("it goes on").is_some_and(|piece| !piece.is_empty()));
        let head = site.client.head(&path).await.expect(200);
        assert_eq!(head.header("content-length"), layer.len().to_string());
        upstream.resume();
        let part = site.client.get_with(&path, "range", "bytes=1000000-1999999").await.expect(206);
        assert!(part.body == layer[1_000_000..2_000_000]);
        let end = site.client.get_with(&path, "range", "bytes=-10").await.expect(206);
        assert!(end.body == layer[layer.len() - 10..]);
    };
    let (pulled, ()) = tokio::join!(pulls, meanwhile);
    assert!(pulled.into_iter().all(|pulled| pulled.expect(200).body == layer));
    assert_eq!(upstream.count("GET", "/blobs/"), 1);
    // From now on it is here.
    assert!(site.client.get(&path).await.expect(200).body == layer);
    assert_eq!(upstream.count("GET", "/blobs/"), 1);
    // Another repository that has it there costs a question.
    assert!(site.client.get(&path.replace("/app/", "/other/")).await.expect(200).body == layer);
    assert_eq!(upstream.count("GET", "/blobs/"), 1);
    upstream.rule(|_, _| Reply::new(404));
    site.client.get(&path.replace("/app/", "/third/")).await.expect_error(404, "BLOB_UNKNOWN");
}

#[tokio::test]
async fn a_download_that_breaks_off_goes_on_where_it_was() {
    for gives_parts in [true, false] {
        let (upstream, site, layer, path) = start().await;
        let times = AtomicUsize::new(0);
        let whole = layer.clone();
        upstream.rule(move |asked, good| {
            if asked.method != "GET" {
                return good;
            }
            let time = times.fetch_add(1, Ordering::SeqCst);
            let good = if gives_parts { good } else { Reply::new(200).body(whole.clone()) };
            let cut_after = (time < 3).then_some((time + 1) * 700_000);
            Reply { cut_after: cut_after.map(|cut| cut.min(good.body.len())), ..good }
        });
        assert!(site.client.get(&path).await.expect(200).body == layer, "gives parts: {gives_parts}");
        let ranges: Vec<_> = upstream
            .asked()
            .into_iter()
            .filter(|asked| asked.is("GET", "/blobs/"))
            .map(|asked| asked.header("range").to_owned())
            .collect();
        assert!(
            ranges.len() > 1 && ranges[0].is_empty() && ranges[1..].iter().all(|range| range.starts_with("bytes="))
        );
        assert!(site.counter("keppel_external_resumed_total").await >= 1);
        // Nothing of the breaking off stays behind.
        crate::harness::disk::wait_until_swept(site.server.data());
    }
}

#[tokio::test]
async fn wrong_bytes_never_reach_a_client_as_a_success_and_are_not_kept() {
    let (upstream, site, layer, path) = start().await;
    let mut wrong = layer.clone();
    wrong[5] ^= 1;
    upstream.rule(move |_, good| match good.status {
        200 => good.body(wrong.clone()),
        _ => good,
    });
    for _ in 0..2 {
        let pulled = try_send(site.client.request(Method::GET, &path)).await;
        assert!(pulled.is_err(), "it ended like a success");
        let part = try_send(site.client.request(Method::GET, &path).header("range", "bytes=0-99")).await;
        assert!(part.is_err(), "a part with a wrong byte ended like a success");
    }
    assert!(site.counter("keppel_external_wrong_total").await >= 2);
    let name = path.rsplit('/').next().expect("a digest");
    assert!(site.server.log().contains(name), "the log names it");
    upstream.behave();
    assert!(site.client.get(&path).await.expect(200).body == layer);
}

#[tokio::test]
async fn lengths_that_are_lies_end_in_errors_and_in_time() {
    let (upstream, site, layer, path) = start().await;
    let length = layer.len();
    let lies: Vec<(&str, u16, Lie)> = vec![
        ("shorter than it is", 200, Box::new(move |good| good.with("content-length", (length - 9).to_string()))),
        ("longer than it is", 200, Box::new(move |good| good.with("content-length", (length + 9).to_string()))),
        ("without end", 502, Box::new(|good| Reply { endless: true, ..good })),
        ("more than fits anywhere", 502, Box::new(|good| good.with("content-length", (1_u64 << 60).to_string()))),
        ("no number", 503, Box::new(|good| good.with("content-length", "many"))),
    ];
    for (what, status, lie) in lies {
        upstream.rule(move |asked, good| if asked.is("GET", "/blobs/") { lie(good) } else { good });
        let begun = Instant::now();
        match try_send(site.client.request(Method::GET, &path)).await {
            Ok(answer) => assert!(answer.status == status && status != 200, "{what}: {}", answer.status),
            Err(_) => assert_eq!(status, 200, "{what}: broken off"),
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{what}: {:?}", begun.elapsed());
    }
    upstream.behave();
    assert!(site.client.get(&path).await.expect(200).body == layer);
}

#[tokio::test]
async fn a_slow_upstream_is_given_up_and_one_that_is_away_is_named() {
    let (upstream, site, layer, path) = start().await;
    upstream.rule(|_, good| Reply { stall_after: Some(0), ..good });
    let begun = Instant::now();
    let pulled = try_send(site.client.request(Method::GET, &path)).await;
    assert!(pulled.is_err(), "it has nothing to give");
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    for status in [401, 403, 429, 500] {
        upstream.rule(move |_, _| Reply::new(status).with("retry-after", "1"));
        let expected = match status {
            401 | 403 => 502,
            429 => 429,
            _ => 503,
        };
        site.client.get(&path).await.expect(expected);
        site.client.head(&path).await.expect(expected);
        if status == 429 {
            tokio::time::sleep(Duration::from_millis(1100)).await; // as long as it said to wait
        }
    }
    upstream.behave();
    assert!(site.client.get(&path).await.expect(200).body == layer);
    let host = upstream.host();
    drop(upstream);
    let refused = site.client.get(&blob("app", &sha256(b"other"))).await.expect_error(503, "UNAVAILABLE");
    assert!(refused.message().contains(&host), "{}", refused.message());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scrub_fetches_what_went_bad_from_outside_again_and_so_does_a_pull() {
    let (upstream, site, layer, path) = start().await;
    assert!(site.client.get(&path).await.expect(200).body == layer);
    assert_eq!(upstream.count("GET", "/blobs/"), 1);
    let damage = || {
        let found = walk(&site.server.data().join("storage/mirror/blobs"));
        let file = found.into_iter().find(|path| path.metadata().is_ok_and(|found| found.len() == layer.len() as u64));
        let file = file.expect("it is stored");
        let mut bytes = std::fs::read(&file).expect("a file");
        bytes[2 * MI_B] ^= 1;
        std::fs::remove_file(&file).expect("it can be removed");
        std::fs::write(&file, bytes).expect("it can be damaged");
    };
    damage();
    let operator = site.server.operator();
    let run = json!({"ask": "janitor_run", "task": "blob-validation", "account": "mirror", "dry_run": false});
    let report = operator.ask(&run)["report"].clone();
    assert_eq!((&report["faults"], &report["changed"]), (&json!(1), &json!(1)), "{report}");
    assert!(report["lines"][0].as_str().is_some_and(|line| line.contains(&upstream.host())), "{report}");
    assert_eq!(upstream.count("GET", "/blobs/"), 2);
    assert!(site.client.get(&path).await.expect(200).body == layer);
    damage();
    // The beginning is right and comes from here, the rest from outside.
    assert!(site.client.get(&path).await.expect(200).body == layer);
    assert_eq!(upstream.count("GET", "/blobs/"), 3);
    assert_eq!(operator.ask(&run)["report"]["faults"], 0);
    // Where it is not to be had, it is no success.
    upstream.rule(|_, _| Reply::new(404));
    damage();
    assert!(try_send(site.client.request(Method::GET, &path)).await.is_err(), "wrong bytes ended like a success");
}

/// The files below a folder.
fn walk(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}
