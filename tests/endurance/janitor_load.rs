//! Clients at work while every task of the janitor runs back to back: none of them notices.
//!
//! Times with the janitor and without it take turns, so that both are measured on the same registry, growing in the same
//! way. For the figures: `KEPPEL_ENDURANCE_SECONDS=300 cargo test --release --test endurance janitor_load -- --nocapture`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::json;
use tokio::task::JoinSet;

use crate::harness::client::{Answer, try_send};
use crate::harness::disk::mismatch;
use crate::harness::{Client, ImageBuilder, Operator, Server, images::sha256};

const CLIENTS: u64 = 64;
/// Where no other is asked for.
const SECONDS: u64 = 16;
/// In turns: without the janitor, with it, and so on.
const PHASES: u32 = 8;
/// Between two requests of a client, so that times are those of the registry, and not of a machine that is full.
const THINKING: Duration = Duration::from_millis(25);
const TASKS: [&str; 9] = [
    "image-gc",
    "manifest-validation",
    "mount-sweep",
    "blob-sweep",
    "storage-sweep",
    "blob-validation",
    "abandoned-uploads",
    "account-deletion",
    "managed-accounts",
];

/// What one client saw.
#[derive(Default)]
struct Seen {
    requests: u64,
    failures: Vec<String>,
    /// Of GETs of manifests: without the janitor, and with it.
    times: [Vec<Duration>; 2],
}

struct Worker {
    client: Client,
    number: u64,
    janitor: Arc<AtomicBool>,
    seen: Seen,
}

impl Worker {
    /// Sends a request, and notes it unless its status is one of these.
    async fn ask(&mut self, request: reqwest::RequestBuilder, expected: &[u16]) -> Option<Answer> {
        tokio::time::sleep(THINKING).await;
        self.seen.requests += 1;
        match try_send(request).await {
            Ok(answer) if expected.contains(&answer.status) => Some(answer),
            Ok(answer) => {
                self.seen.failures.push(format!("{}: {} {}", answer.asked, answer.status, answer.text()));
                None
            }
            Err(error) => {
                self.seen.failures.push(format!("{error:?}"));
                None
            }
        }
    }

    async fn pull(&mut self, repository: &str, reference: &str, bytes: &[u8]) {
        let request = self.client.request(Method::GET, &format!("/v2/{repository}/manifests/{reference}"));
        tokio::time::sleep(THINKING).await;
        let (before, start) = (self.janitor.load(Ordering::SeqCst), Instant::now());
        self.seen.requests += 1;
        match try_send(request).await {
            Ok(answer) if answer.status == 200 && answer.body == bytes => {
                // Only what was wholly in one phase says something about it.
                if before == self.janitor.load(Ordering::SeqCst) {
                    self.seen.times[usize::from(before)].push(start.elapsed());
                }
            }
            Ok(answer) => self.seen.failures.push(format!("{}: {}", answer.asked, answer.status)),
            Err(error) => self.seen.failures.push(format!("{error:?}")),
        }
    }

    /// Pushes images as clients do, whose layers others have or had, pulls them several times, and deletes a third.
    async fn work(mut self, end: Instant) -> Seen {
        let (number, repository) = (self.number, format!("acme/app{}", self.number % 5));
        let mut pushed = 0;
        while Instant::now() < end {
            // Some blobs are the same as those of another client and another time.
            let image = ImageBuilder::new(pushed % 7 * 100 + number % 16).layers(2).layer_bytes(3000).build();
            let tag = format!("c{number}-{}", pushed % 5);
            for blob in image.blobs() {
                let path = format!("/v2/{repository}/blobs/{}", blob.digest());
                let asked = self.client.request(Method::HEAD, &path);
                if self.ask(asked, &[200, 404]).await.is_some_and(|answer| answer.status == 404) {
                    let path = format!("/v2/{repository}/blobs/uploads/?digest={}", blob.digest());
                    let put = self.client.request(Method::POST, &path).body(blob.bytes.clone());
                    self.ask(put, &[201]).await;
                }
            }
            let put = self.client.request(Method::PUT, &format!("/v2/{repository}/manifests/{tag}"));
            let put = put.header("content-type", &image.manifest.media_type).body(image.manifest.bytes.clone());
            self.ask(put, &[201]).await;
            for _ in 0..3 {
                self.pull(&repository, &tag, &image.manifest.bytes).await;
            }
            for blob in image.blobs() {
                let get = self.client.request(Method::GET, &format!("/v2/{repository}/blobs/{}", blob.digest()));
                if let Some(answer) = self.ask(get, &[200]).await
                    && sha256(&answer.body) != blob.digest()
                {
                    self.seen.failures.push(format!("{} came wrong", blob.digest()));
                }
            }
            if pushed % 3 == 2 {
                let delete = self.client.request(Method::DELETE, &format!("/v2/{repository}/manifests/{tag}"));
                self.ask(delete, &[202]).await;
            }
            pushed += 1;
        }
        self.seen
    }
}

/// Runs all tasks again and again while `on`; gives how often, and panics where one fails or finds a fault.
fn run_janitor(operator: &Operator, on: &AtomicBool, ended: &AtomicBool) -> u64 {
    let mut rounds = 0;
    while !ended.load(Ordering::SeqCst) {
        if !on.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
            continue;
        }
        for task in TASKS {
            let answer = operator.ask(&json!({"ask": "janitor_run", "task": task, "account": null, "dry_run": false}));
            assert_eq!(answer["report"]["faults"], 0, "{task}: {answer}");
        }
        rounds += 1;
    }
    rounds
}

fn percentile(times: &mut [Duration], of_a_hundred: usize) -> Duration {
    times.sort_unstable();
    times.get(times.len() * of_a_hundred / 100).copied().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_of_64_clients_fails_because_every_task_runs_back_to_back() {
    let seconds = std::env::var("KEPPEL_ENDURANCE_SECONDS").ok();
    let seconds = seconds.map_or(SECONDS, |text| text.parse().expect("a number of seconds"));
    let server = Server::start_with_options(&["--set", "janitor.grace=60s"]);
    let policy = json!({"account": {"auth_tenant_id": "acme", "gc_policies": [{"match_repository": ".*",
        "only_untagged": true, "action": "delete",
        "time_constraint": {"on": "pushed_at", "older_than": {"value": 1, "unit": "s"}}}]}});
    let put = server.client().request(Method::PUT, "/keppel/v1/accounts/acme").body(policy.to_string());
    crate::harness::client::send(put).await.expect(200);

    let (on, ended) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let (client, janitor) = (server.client(), on.clone());
        clients.spawn(Worker { client, number, janitor, seen: Seen::default() }.work(end));
    }
    let (operator, is_on, is_ended) = (server.operator(), on.clone(), ended.clone());
    let janitor = std::thread::spawn(move || run_janitor(&operator, &is_on, &is_ended));
    for phase in 1..PHASES {
        tokio::time::sleep(Duration::from_secs(seconds) / PHASES).await;
        on.store(phase % 2 == 1, Ordering::SeqCst);
    }
    let mut all = Seen::default();
    while let Some(client) = clients.join_next().await {
        let seen = client.expect("no client gives up");
        all.requests += seen.requests;
        all.failures.extend(seen.failures);
        for (all, times) in all.times.iter_mut().zip(seen.times) {
            all.extend(times);
        }
    }
    ended.store(true, Ordering::SeqCst);
    let rounds = janitor.join().expect("no task fails or finds a fault");
    let [without, with] = &mut all.times;
    let (p99_without, p99_with) = (percentile(without, 99), percentile(with, 99));
    println!(
        "{} requests in {seconds} s, {} failed; {rounds} rounds of all tasks; GET manifest p50 {:?} and p99 {p99_without:?} \
         without the janitor ({} requests), p50 {:?} and p99 {p99_with:?} with it ({}): ratio of p99 {:.2}",
        all.requests,
        all.failures.len(),
        percentile(without, 50),
        without.len(),
        percentile(with, 50),
        with.len(),
        p99_with.as_secs_f64() / p99_without.as_secs_f64().max(1e-9),
    );
    assert!(all.failures.is_empty(), "{} failed: {:?}", all.failures.len(), &all.failures[..all.failures.len().min(5)]);
    assert!(rounds > 1 && !with.is_empty() && !without.is_empty(), "{rounds} rounds");
    let found = mismatch(server.data());
    assert!(found.lost.is_empty(), "rows without bytes: {:?}", found.lost);
}
