//! The janitor on very many manifests, of which nearly a third is garbage: time for each stays the same, memory too.
//!
//! For the figures: `KEPPEL_SCALE_MANIFESTS=1000000 cargo test --release --test endurance scale -- --nocapture`.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::json;

use crate::harness::{Server, client::send};

/// Where no other number is asked for.
const MANIFESTS: u64 = 6000;
const UNTAGGED_OF_A_HUNDRED: u64 = 30;
const MEMORY_MAX: u64 = 150 << 20;
/// For any one step, at any size that anybody asks for.
const PATIENCE: Duration = Duration::from_secs(3600);

fn make_data(directory: &Path, manifests: u64) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/make-data");
    let made = Command::new(&script)
        .arg(directory)
        .args(["--binary", env!("CARGO_BIN_EXE_keppel"), "--manifests", &manifests.to_string()])
        .args(["--untagged", &UNTAGGED_OF_A_HUNDRED.to_string(), "--age", "3600"])
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}; it needs python3", script.display()));
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

struct Site {
    server: Server,
    manifests: u64,
}

impl Site {
    /// How many manifests the account has; `None`: it is gone.
    async fn held(&self) -> Option<u64> {
        let answer = self.server.client().get("/keppel/v1/accounts/acme/repositories").await;
        match answer.status {
            404 => None,
            _ => Some(answer.expect(200).json()["repositories"][0]["manifest_count"].as_u64().unwrap_or_default()),
        }
    }

    /// How often a task has run, and how many things it has changed.
    fn runs(&self, task: &str) -> (u64, u64) {
        let status = self.server.operator().ask(&json!({"ask": "janitor_status"}));
        let tasks = status["status"]["tasks"].as_array().expect("a list").clone();
        let row = tasks.into_iter().find(|row| row["task"] == task).expect("it is listed");
        (row["runs"].as_u64().expect("a number"), row["changed"].as_u64().expect("a number"))
    }

    async fn wait_for_run(&self, task: &str, number: u64) {
        let start = Instant::now();
        while self.runs(task).0 < number {
            assert!(start.elapsed() < PATIENCE, "{task} does not end");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Runs a task and waits for its end; gives how many things it changed.
    async fn run(&self, task: &str) -> u64 {
        let (start, (runs_before, changed_before)) = (Instant::now(), self.runs(task));
        let question = json!({"ask": "janitor_run", "task": task, "account": "acme", "dry_run": false});
        let answer = self.server.operator().ask(&question);
        // It goes on when it takes longer than anybody waits.
        if answer["report"].is_null() {
            self.wait_for_run(task, runs_before + 1).await;
        }
        let (changed, elapsed) = (self.runs(task).1 - changed_before, start.elapsed());
        self.say(&format!("{task} changed {changed}"), elapsed);
        changed
    }

    fn say(&self, what: &str, elapsed: Duration) {
        println!(
            "{what} in {:.1} s: {:.0} manifests a second; memory {} MiB, at most {} MiB",
            elapsed.as_secs_f64(),
            self.manifests as f64 / elapsed.as_secs_f64(),
            self.server.resident_bytes() >> 20,
            self.server.resident_bytes_peak() >> 20,
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_among_very_many_manifests_goes_and_so_does_all_of_their_account_though_killed_half_way() {
    let manifests = std::env::var("KEPPEL_SCALE_MANIFESTS").ok();
    let manifests: u64 = manifests.map_or(MANIFESTS, |text| text.parse().expect("a number of manifests"));
    let home = tempfile::tempdir().expect("a temporary directory can be made");
    let data = home.path().join("data");
    make_data(&data, manifests);
    let mut site = Site { server: Server::start_on(&data), manifests };
    assert_eq!(site.held().await, Some(manifests));
    // What was never looked at is looked at as soon as the server runs.
    let start = Instant::now();
    for task in ["image-gc", "mount-sweep", "blob-sweep", "storage-sweep"] {
        site.wait_for_run(task, 1).await;
    }
    site.say("the first look at all", start.elapsed());
    let policy = json!({"account": {"auth_tenant_id": "default", "gc_policies": [{"match_repository": ".*",
        "only_untagged": true, "action": "delete",
        "time_constraint": {"on": "pushed_at", "older_than": {"value": 30, "unit": "m"}}}]}});
    let put = site.server.client().request(Method::PUT, "/keppel/v1/accounts/acme").body(policy.to_string());
    send(put).await.expect(200);

    // The first image was pushed a moment ago, with a tag.
    let garbage = (1..manifests).filter(|number| number % 100 < UNTAGGED_OF_A_HUNDRED).count() as u64;
    assert_eq!(site.run("image-gc").await, garbage);
    assert_eq!(site.held().await, Some(manifests - garbage));
    assert_eq!(site.run("image-gc").await, 0);
    for task in ["manifest-validation", "mount-sweep", "blob-sweep", "storage-sweep"] {
        assert_eq!(site.run(task).await, 0, "{task}");
    }
    let peak = site.server.resident_bytes_peak();
    assert!(peak <= MEMORY_MAX, "{} MiB", peak >> 20);

    let start = Instant::now();
    site.server.client().delete("/keppel/v1/accounts/acme").await.expect(204);
    // The process dies before it answers.
    let deletion = json!({"ask": "janitor_run", "task": "account-deletion", "account": null, "dry_run": false});
    let _unanswered = site.server.operator().send(&deletion);
    while site.held().await.is_some_and(|held| held > (manifests - garbage) / 2) {
        assert!(start.elapsed() < PATIENCE, "nothing is deleted");
    }
    let peak = site.server.resident_bytes_peak();
    site.server.kill();
    assert!(peak <= MEMORY_MAX, "{} MiB", peak >> 20);
    // What is left goes by itself once it runs again.
    site.server.restart();
    while site.held().await.is_some() {
        assert!(start.elapsed() < PATIENCE, "it does not end");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    site.say("the account was deleted, though killed half-way,", start.elapsed());
    assert!(!data.join("storage/acme").exists());
    let peak = site.server.resident_bytes_peak();
    assert!(peak <= MEMORY_MAX, "{} MiB", peak >> 20);
}
