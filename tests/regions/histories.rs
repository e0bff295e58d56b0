//! Random work in three regions, with moves and failovers of the primary and faults, and a checker that looks for an order that
//! explains what the clients saw.
//!
//! Each tag is a register: pushes and deletions write, pulls read. What was acknowledged happened between its question and
//! its answer; what failed may have happened at any time after its question, or never; answers marked as perhaps out of date
//! say nothing. The account asks for two copies, and one region is lost at a time, so a failover may lose nothing that was
//! acknowledged or seen: the checker makes no allowance for it. `KEPPEL_TEST_HISTORY_SECONDS` sets how long the work goes
//! on, `KEPPEL_TEST_HISTORY_SEED` what is done.

mod checker;
mod work;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use reqwest::Method;
use serde_json::{Value, json};

use self::checker::{Operation, What, assert_linearizable, is_linearizable};
use self::work::{Work, gather, spawn_workers};
use crate::federation::{Region, three_regions, until};
use crate::harness::Image;
use crate::harness::client::{send, try_send};
use crate::leases::until_it_answers_alone;

const NAMES: [&str; 3] = ["eu", "us", "ap"];
const PATIENCE: Duration = Duration::from_secs(60);

/// What was done to the regions.
#[derive(Debug, Default)]
struct Count {
    moves: u32,
    moves_refused: u32,
    pauses: u32,
    kills: u32,
    failovers: u32,
    failovers_refused: u32,
}

async fn prepare(regions: &[Region; 3], settings: &Value) -> Arc<Work> {
    let request = regions[0].client.request(Method::PUT, "/keppel/v1/accounts/acme");
    let mut account = json!({ "account": { "auth_tenant_id": "default" } });
    for (name, value) in settings.as_object().expect("fields") {
        account["account"][name] = value.clone();
    }
    send(request.body(account.to_string())).await.expect(200);
    let image = Image::small(1);
    regions[0].client.push_image("acme/app", "seed", &image).await;
    for region in &regions[1..] {
        region.client.assert_image("acme/app", "seed", &image).await;
        until_it_answers_alone(region, "/v2/acme/app/manifests/seed").await;
    }
    Work::new(image, regions)
}

/// The region that is the primary, as those know that answer.
fn primary_among(regions: &[Region; 3]) -> usize {
    let name = regions[0].primary_of("acme");
    NAMES.iter().position(|known| *known == name).expect("one of the three")
}

/// Loses the primary, by a pause or for good, and has another region take over; then it comes back.
async fn fail_over(regions: &mut [Region; 3], work: &Work, random: &mut StdRng, count: &mut Count) {
    let (lost, is_killed) = (primary_among(regions), random.random_bool(0.6));
    regions[lost].signal(if is_killed { libc::SIGKILL } else { libc::SIGSTOP });
    tokio::time::sleep(Duration::from_millis(random.random_range(0..3000))).await;
    let first = (lost + 1 + random.random_range(0..2)) % 3;
    let others = [first, 3 - lost - first];
    for to in others {
        let command = ["account", "failover", "acme", "--to", NAMES[to], "--yes"];
        let output = regions[others[random.random_range(0..2)]].command(&command).output().expect("it runs");
        if output.status.success() {
            count.failovers += 1;
            break;
        }
        count.failovers_refused += 1;
        println!("to {} without {}: {}", NAMES[to], NAMES[lost], String::from_utf8_lossy(&output.stderr).trim());
    }
    tokio::time::sleep(Duration::from_millis(random.random_range(0..4000))).await;
    match is_killed {
        true => {
            regions[lost].restart();
            work.restarted(lost, &regions[lost]);
        }
        false => regions[lost].signal(libc::SIGCONT),
    }
}

async fn disturb(regions: &mut [Region; 3], work: &Work, random: &mut StdRng, count: &mut Count) {
    let at = random.random_range(0..3);
    match random.random_range(0..5) {
        // A move, which may fail while others are down or have just come back; it can be asked for again.
        0 | 1 => {
            let from = random.random_range(0..3);
            let moved = regions[from].command(&["account", "move", "acme", "--to", NAMES[at]]).output();
            let moved = moved.expect("it runs");
            match moved.status.success() {
                true => count.moves += 1,
                false => {
                    count.moves_refused += 1;
                    println!("not moved to {}: {}", NAMES[at], String::from_utf8_lossy(&moved.stderr).trim());
                }
            }
        }
        2 => {
            regions[at].signal(libc::SIGSTOP);
            tokio::time::sleep(Duration::from_millis(random.random_range(200..4000))).await;
            regions[at].signal(libc::SIGCONT);
            count.pauses += 1;
        }
        3 => {
            regions[at].signal(libc::SIGKILL);
            tokio::time::sleep(Duration::from_millis(random.random_range(0..2000))).await;
            regions[at].restart();
            work.restarted(at, &regions[at]);
            count.kills += 1;
        }
        _ => fail_over(regions, work, random, count).await,
    }
    tokio::time::sleep(Duration::from_millis(random.random_range(200..1500))).await;
}

/// The last reads, which are part of the history: all regions give the same, and every blob of it.
async fn read_at_the_end(regions: &[Region; 3], work: &Work, tag: &str, operations: &mut Vec<Operation>) {
    let mut values = Vec::new();
    for (region, name) in regions.iter().zip(NAMES) {
        let (start, mut begin) = (Instant::now(), Instant::now());
        let value = loop {
            if let Some(value) = work.pull(&region.client, tag, false).await {
                break value;
            }
            assert!(start.elapsed() < PATIENCE, "{name} does not come to itself");
            tokio::time::sleep(Duration::from_millis(100)).await;
            begin = Instant::now();
        };
        let by = format!("the end, in {name}");
        operations.push(Operation { what: What::Read(value.clone()), begin, end: Some(Instant::now()), by });
        if let Some(digest) = &value {
            has_it(region, work, name, digest).await;
        }
        values.push(value);
    }
    assert!(values.iter().all(|value| *value == values[0]), "the regions differ in {tag}: {values:?}");
}

/// Waits until a region gives a manifest by its digest, and every blob of it.
async fn has_it(region: &Region, work: &Work, name: &str, digest: &str) {
    let start = Instant::now();
    loop {
        let answer = region.client.get(&format!("/v2/acme/app/manifests/{digest}")).await;
        if answer.status == 200 && work.read_blobs(&region.client, digest).await {
            return;
        }
        assert!(
            start.elapsed() < PATIENCE,
            "{name} does not have {digest}, of which it said that it is there: {} {}",
            answer.status,
            answer.text()
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// What former primaries list as theirs alone was never acknowledged.
fn check_divergent(regions: &[Region; 3], work: &Work) -> usize {
    let (made, mut listed) = (work.made(), 0);
    for (region, name) in regions.iter().zip(NAMES) {
        let entries: Value =
            serde_json::from_str(&region.operate(&["account", "--json", "divergent", "acme"])).expect("JSON");
        for entry in entries.as_array().expect("a list") {
            listed += 1;
            let is_push = entry["what"] == "manifest";
            let digest = entry["digest"].as_str().unwrap_or_default();
            let is_acknowledged = made.get(digest).is_some_and(|made| made.is_acknowledged);
            assert!(!(is_push && is_acknowledged), "only {name} has what was acknowledged: {entry}");
        }
    }
    listed
}

#[tokio::test(flavor = "multi_thread")]
async fn what_clients_see_can_be_explained_while_primaries_move_and_fail_over_and_regions_fail() {
    let seconds = std::env::var("KEPPEL_TEST_HISTORY_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60);
    let seed = std::env::var("KEPPEL_TEST_HISTORY_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let mut regions = three_regions();
    let work = prepare(&regions, &json!({ "copies": 2 })).await;
    let workers = spawn_workers(&work, seed);
    let (mut random, mut count) = (StdRng::seed_from_u64(seed), Count::default());
    // Whatever the dice say, at least one of these happens.
    fail_over(&mut regions, &work, &mut random, &mut count).await;
    while work.start.elapsed() < Duration::from_secs(seconds) {
        disturb(&mut regions, &work, &mut random, &mut count).await;
    }
    work.stop.store(true, Ordering::SeqCst);
    let mut histories = gather(workers).await;
    until("all agree on the primary", || {
        let primary = regions[0].primary_of("acme");
        regions.iter().all(|region| region.primary_of("acme") == primary)
    });
    let mut operations = 0;
    for (tag, of_tag) in &mut histories {
        read_at_the_end(&regions, &work, tag, of_tag).await;
        operations += of_tag.len();
    }
    assert_linearizable(&histories);
    // Also what a tag does not name any more: nobody has deleted a manifest.
    let made = work.made();
    let acknowledged: Vec<&String> = made.iter().filter(|(_, made)| made.is_acknowledged).map(|(it, _)| it).collect();
    let primary = primary_among(&regions);
    for digest in &acknowledged {
        has_it(&regions[primary], &work, NAMES[primary], digest).await;
    }
    let listed = check_divergent(&regions, &work);
    println!(
        "{operations} operations on {} tags, {} pushes acknowledged, {} blobs compared; {count:?}; {listed} changes are divergent",
        histories.len(),
        acknowledged.len(),
        work.blobs_read.load(Ordering::SeqCst)
    );
    assert!(histories.len() > 10 && count.moves + count.failovers > 0, "too little happened: {count:?}");
}

/// Shows that the checker sees what an acknowledgement that waits for nobody lets through.
#[tokio::test(flavor = "multi_thread")]
async fn acknowledging_before_the_other_regions_have_it_is_caught() {
    let regions = three_regions();
    let work = prepare(&regions, &json!({ "ack": "primary" })).await;
    let workers = spawn_workers(&work, 7);
    tokio::time::sleep(Duration::from_secs(15)).await;
    work.stop.store(true, Ordering::SeqCst);
    let histories = gather(workers).await;
    let broken = histories.values().filter(|operations| !is_linearizable(operations)).count();
    assert!(broken > 0, "{} histories, and all can be explained", histories.len());
}

/// Shows that the checker sees what a failover loses of an account that asks for one copy, and that the list has it.
#[tokio::test(flavor = "multi_thread")]
async fn a_failover_that_loses_what_only_the_lost_primary_had_is_caught() {
    let mut regions = three_regions();
    let work = prepare(&regions, &json!({})).await;
    for region in &regions[1..] {
        region.signal(libc::SIGSTOP);
    }
    // Their last questions are still to be answered: this may come to them when they go on.
    regions[0].client.push_image("acme/app", "perhaps", &Image::small(3)).await;
    let begin = Instant::now();
    let image = Image::small(2);
    regions[0].client.push_image("acme/app", "lost", &image).await;
    let acknowledged = Instant::now();
    regions[0].server.kill();
    for region in &regions[1..] {
        region.signal(libc::SIGCONT);
    }
    until("they find a leader", || regions[1].told(&["status"]).starts_with("decisions are taken"));
    regions[1].operate(&["account", "failover", "acme", "--to", "us", "--yes"]);
    let start = Instant::now();
    let read = loop {
        let asked = Instant::now();
        let answer = try_send(regions[1].client.request(Method::GET, "/v2/acme/app/manifests/lost")).await;
        match answer.expect("an answer").status {
            404 => break (asked, Instant::now()),
            status => assert_eq!(status, 503, "nobody else has it"),
        }
        assert!(start.elapsed() < PATIENCE, "what is lost is not denied in the end");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let write = What::Write(Some(image.digest()));
    let history = [
        Operation { what: write, begin, end: Some(acknowledged), by: "eu".to_owned() },
        Operation { what: What::Read(None), begin: read.0, end: Some(read.1), by: "us".to_owned() },
    ];
    assert!(!is_linearizable(&history), "a push that was acknowledged is lost, and the checker does not see it");
    regions[0].restart();
    until("it lists what only it has", || {
        regions[0].operate(&["account", "divergent", "acme"]).contains(&image.digest())
    });
    drop(work);
}
