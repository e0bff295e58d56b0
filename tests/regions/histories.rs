//! Random work in three regions, with moves of the primary and faults, and a checker that looks for an order that explains what
//! the clients saw.
//!
//! Each tag is a register: pushes and deletions write, pulls read. What was acknowledged happened between its question and
//! its answer; what failed may have happened at any time after its question, or never; answers marked as perhaps out of date
//! say nothing. `KEPPEL_TEST_HISTORY_SECONDS` sets how long the work goes on.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use reqwest::Method;
use reqwest::header::CONTENT_TYPE;
use serde_json::json;

use crate::federation::{Region, three_regions, until};
use crate::harness::client::try_send;
use crate::harness::{Client, Content, Image};
use crate::leases::until_it_answers_alone;

const WORKERS_PER_REGION: usize = 2;
/// Tags are used for so long, and then others, so that no history of one becomes long.
const TAGS_LIVE: Duration = Duration::from_secs(3);
const TAGS: u64 = 6;

type Value = Option<String>;

#[derive(Debug, Clone)]
enum What {
    Read(Value),
    Write(Value),
}

/// Something that a client did with a tag; without an end it is open whether it happened.
#[derive(Debug, Clone)]
struct Operation {
    what: What,
    begin: Instant,
    end: Option<Instant>,
    by: String,
}

type Histories = BTreeMap<String, Vec<Operation>>;

/// Whether some order of the operations, each at a moment between its begin and end, explains what was read.
fn is_linearizable(operations: &[Operation]) -> bool {
    assert!(operations.len() <= 128, "a history of {} operations is too long", operations.len());
    let all_ended = operations.iter().enumerate().filter(|(_, it)| it.end.is_some());
    let required = all_ended.fold(0u128, |set, (at, _)| set | 1 << at);
    let (mut seen, mut stack) = (HashSet::new(), vec![(0u128, Value::None)]);
    while let Some((done, value)) = stack.pop() {
        if done & required == required {
            return true;
        }
        if !seen.insert((done, value.clone())) {
            continue;
        }
        let left = || operations.iter().enumerate().filter(|(at, _)| done & (1 << at) == 0);
        // Nothing that begins after another has ended comes before it.
        let latest = left().filter_map(|(_, it)| it.end).min();
        for (at, operation) in left().filter(|(_, it)| latest.is_none_or(|end| it.begin <= end)) {
            match &operation.what {
                What::Read(read) if *read == value => stack.push((done | 1 << at, value.clone())),
                What::Read(_) => {}
                What::Write(written) => stack.push((done | 1 << at, written.clone())),
            }
        }
    }
    false
}

/// A manifest like no other, of blobs that are there.
fn manifest(image: &Image, number: u64) -> Content {
    let mut document = image.manifest.value();
    document["annotations"] = json!({ "number": number.to_string() });
    Content::json(&image.manifest.media_type, &document)
}

async fn pull(client: &Client, tag: &str) -> Option<Value> {
    let path = format!("/v2/acme/app/manifests/{tag}");
    let answer = try_send(client.request(Method::GET, &path)).await.ok()?;
    match answer.status {
        _ if answer.headers.contains_key("warning") => None,
        200 => Some(Some(answer.header("docker-content-digest").to_owned())),
        404 => Some(None),
        503 => None,
        status => panic!("{path}: {status} {}", answer.text()),
    }
}

async fn push(client: &Client, tag: &str, manifest: &Content) -> bool {
    let request = client.request(Method::PUT, &format!("/v2/acme/app/manifests/{tag}"));
    let request = request.header(CONTENT_TYPE, &manifest.media_type).body(manifest.bytes.clone());
    match try_send(request).await {
        Ok(answer) if answer.status == 201 => true,
        Ok(answer) => {
            assert_eq!(answer.status, 503, "{}: {}", answer.asked, answer.text());
            false
        }
        Err(_) => false,
    }
}

/// `Some(true)`: it was there and is not any more; `Some(false)`: it was not there; `None`: nobody knows.
async fn delete(client: &Client, tag: &str) -> Option<bool> {
    let request = client.request(Method::DELETE, &format!("/v2/acme/app/manifests/{tag}"));
    let answer = try_send(request).await.ok()?;
    match answer.status {
        202 => Some(true),
        404 => Some(false),
        503 => None,
        status => panic!("{}: {status} {}", answer.asked, answer.text()),
    }
}

/// What the work of all shares.
struct Work {
    image: Image,
    numbers: AtomicU64,
    stop: AtomicBool,
    start: Instant,
    bases: std::sync::Mutex<Vec<Client>>,
}

impl Work {
    fn client(&self, region: usize) -> Client {
        self.bases.lock().expect("nobody panics with it")[region].clone()
    }

    fn tag(&self, random: &mut StdRng) -> String {
        let phase = self.start.elapsed().as_secs() / TAGS_LIVE.as_secs();
        format!("p{phase}-{}", random.random_range(0..TAGS))
    }
}

/// Pushes, deletes and pulls at random in one region; after a push it looks in another at once.
async fn worker(work: Arc<Work>, region: usize, seed: u64) -> Vec<(String, Operation)> {
    let (mut random, mut done) = (StdRng::seed_from_u64(seed), Vec::new());
    while !work.stop.load(Ordering::SeqCst) {
        let (tag, client, begin) = (work.tag(&mut random), work.client(region), Instant::now());
        let mut note = |what, begin, ended: bool, region: usize| {
            let operation = Operation { what, begin, end: ended.then(Instant::now), by: format!("region {region}") };
            done.push((tag.clone(), operation));
        };
        match random.random_range(0..100) {
            0..35 => {
                let manifest = manifest(&work.image, work.numbers.fetch_add(1, Ordering::SeqCst));
                let acknowledged = push(&client, &tag, &manifest).await;
                note(What::Write(Some(manifest.digest())), begin, acknowledged, region);
                let (other, begin) = ((region + 1) % 3, Instant::now());
                if acknowledged && let Some(value) = pull(&work.client(other), &tag).await {
                    note(What::Read(value), begin, true, other);
                }
            }
            35..45 => match delete(&client, &tag).await {
                Some(true) => note(What::Write(None), begin, true, region),
                Some(false) => note(What::Read(None), begin, true, region),
                None => note(What::Write(None), begin, false, region),
            },
            _ => {
                if let Some(value) = pull(&client, &tag).await {
                    note(What::Read(value), begin, true, region);
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(0..120))).await;
    }
    done
}

async fn prepare(regions: &[Region; 3]) -> Arc<Work> {
    let image = Image::small(1);
    regions[0].client.push_image("acme/app", "seed", &image).await;
    for region in &regions[1..] {
        region.client.assert_image("acme/app", "seed", &image).await;
        until_it_answers_alone(region, "/v2/acme/app/manifests/seed").await;
    }
    Arc::new(Work {
        image,
        numbers: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        start: Instant::now(),
        bases: regions.iter().map(|region| region.client.clone()).collect::<Vec<_>>().into(),
    })
}

fn spawn_workers(work: &Arc<Work>, seed: u64) -> Vec<tokio::task::JoinHandle<Vec<(String, Operation)>>> {
    let places = (0..3).flat_map(|region| (0..WORKERS_PER_REGION).map(move |number| (region, number as u64)));
    places
        .map(|(region, number)| tokio::spawn(worker(work.clone(), region, seed + number * 3 + region as u64)))
        .collect()
}

async fn gather(workers: Vec<tokio::task::JoinHandle<Vec<(String, Operation)>>>) -> Histories {
    let mut histories = Histories::new();
    for worker in workers {
        for (tag, operation) in worker.await.expect("every answer was one that may be given") {
            histories.entry(tag).or_default().push(operation);
        }
    }
    histories
}

fn assert_linearizable(histories: &Histories) {
    for (tag, operations) in histories {
        let mut told = operations.clone();
        told.sort_by_key(|operation| operation.begin);
        let first = told[0].begin;
        let lines = told.iter().map(|it| {
            let end = it.end.map_or("?".to_owned(), |end| format!("{:?}", end - first));
            format!("{:?} to {end}: {:?} in {}", it.begin - first, it.what, it.by)
        });
        let lines: Vec<_> = lines.collect();
        assert!(is_linearizable(operations), "no order explains what happened to {tag}:\n{}", lines.join("\n"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_clients_see_can_be_explained_while_primaries_move_and_regions_fail() {
    let seconds = std::env::var("KEPPEL_TEST_HISTORY_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60);
    let seed = std::env::var("KEPPEL_TEST_HISTORY_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let mut regions = three_regions();
    let work = prepare(&regions).await;
    let workers = spawn_workers(&work, seed);
    let (mut random, names, mut count) = (StdRng::seed_from_u64(seed), ["eu", "us", "ap"], [0; 4]);
    while work.start.elapsed() < Duration::from_secs(seconds) {
        let at = random.random_range(0..3);
        match random.random_range(0..4) {
            // A move, which may fail while others are down or have just come back; it can be asked for again.
            0 | 1 => {
                let from = random.random_range(0..3);
                let moved = regions[from].command(&["account", "move", "acme", "--to", names[at]]).output();
                count[usize::from(!moved.expect("it runs").status.success())] += 1;
            }
            2 => {
                regions[at].signal(libc::SIGSTOP);
                tokio::time::sleep(Duration::from_millis(random.random_range(200..4000))).await;
                regions[at].signal(libc::SIGCONT);
                count[2] += 1;
            }
            _ => {
                regions[at].signal(libc::SIGKILL);
                tokio::time::sleep(Duration::from_millis(random.random_range(0..2000))).await;
                regions[at].restart();
                work.bases.lock().expect("nobody panics with it")[at] = regions[at].client.clone();
                count[3] += 1;
            }
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(200..1500))).await;
    }
    work.stop.store(true, Ordering::SeqCst);
    let mut histories = gather(workers).await;
    // In the end all are equal, and what they say is part of the history.
    until("all agree on the primary", || {
        let primary = regions[0].primary_of("acme");
        regions.iter().all(|region| region.primary_of("acme") == primary)
    });
    let mut read = 0;
    for (tag, operations) in &mut histories {
        let mut values = Vec::new();
        for (region, name) in regions.iter().zip(names) {
            let (start, begin) = (Instant::now(), Instant::now());
            let value = loop {
                if let Some(value) = pull(&region.client, tag).await {
                    break value;
                }
                assert!(start.elapsed() < Duration::from_secs(60), "{name} does not come to itself");
                tokio::time::sleep(Duration::from_millis(100)).await;
            };
            let by = format!("the end, in {name}");
            operations.push(Operation { what: What::Read(value.clone()), begin, end: Some(Instant::now()), by });
            values.push(value);
        }
        assert!(values.iter().all(|value| *value == values[0]), "the regions differ in {tag}: {values:?}");
        read += operations.len();
    }
    assert_linearizable(&histories);
    println!("{read} operations on {} tags; moves, failed moves, pauses, kills: {count:?}", histories.len());
    assert!(histories.len() > 10 && count[0] > 0, "too little happened: {count:?}");
}

/// Shows that the checker sees what an acknowledgement that waits for nobody lets through.
#[tokio::test(flavor = "multi_thread")]
async fn acknowledging_before_the_other_regions_have_it_is_caught() {
    let regions = three_regions();
    let work = prepare(&regions).await;
    let settings = json!({ "account": { "auth_tenant_id": "default", "ack": "primary" } });
    let request = regions[0].client.request(Method::PUT, "/keppel/v1/accounts/acme").body(settings.to_string());
    try_send(request).await.expect("an answer").expect(200);
    let workers = spawn_workers(&work, 7);
    tokio::time::sleep(Duration::from_secs(15)).await;
    work.stop.store(true, Ordering::SeqCst);
    let histories = gather(workers).await;
    let broken = histories.values().filter(|operations| !is_linearizable(operations)).count();
    assert!(broken > 0, "{} histories, and all can be explained", histories.len());
}

#[test]
fn histories_without_an_order_are_told_from_those_with_one() {
    let start = Instant::now();
    let at = |ms: u64| start + Duration::from_millis(ms);
    let operation =
        |what, begin, end: Option<u64>| Operation { what, begin: at(begin), end: end.map(at), by: String::new() };
    let write = |value: &str, begin, end| operation(What::Write(Some(value.to_owned())), begin, end);
    let read = |value: Option<&str>, begin, end| operation(What::Read(value.map(str::to_owned)), begin, Some(end));
    let old_after_new = [write("a", 0, Some(1)), write("b", 2, Some(3)), read(Some("a"), 4, 5)];
    assert!(!is_linearizable(&old_after_new));
    let lost = [write("a", 0, Some(1)), read(None, 2, 3)];
    assert!(!is_linearizable(&lost));
    let at_once = [write("a", 0, Some(1)), write("b", 2, Some(9)), read(Some("a"), 4, 5), read(Some("b"), 6, 7)];
    assert!(is_linearizable(&at_once));
    let there_and_back = [write("a", 0, Some(1)), write("b", 2, None), read(Some("b"), 4, 5), read(Some("a"), 6, 7)];
    assert!(!is_linearizable(&there_and_back));
    let late = [write("a", 0, Some(1)), write("b", 2, None), read(Some("a"), 4, 5), read(Some("b"), 6, 7)];
    assert!(is_linearizable(&late));
}
