//! `kill -9` of any node at any time, under load: it comes back with what it had acknowledged, and no account has two
//! owners.
//!
//! In every region clients push to accounts that only they want, and to accounts that clients of all regions want at
//! the same moment. `KEPPEL_TEST_KILLS` says how often a node is killed (10), `KEPPEL_TEST_SEED` who and when.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::json;
use tokio::task::JoinSet;

use crate::harness::client::try_send;
use crate::harness::images::sha256;
use crate::region::{PATIENCE, Region, federate, until_equal};

/// Clients of each region.
const CLIENTS: usize = 3;

/// What was acknowledged: an account, and the region that said that it is its.
#[derive(Default)]
struct Acknowledged {
    owners: Mutex<BTreeMap<String, String>>,
    asked: AtomicU64,
    stop: AtomicBool,
}

impl Acknowledged {
    fn note(&self, account: &str, region: &str) {
        let before = self.lock().insert(account.to_owned(), region.to_owned());
        assert!(before.as_deref().is_none_or(|before| before == region), "{account}: {before:?} and {region} own it");
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, String>> {
        self.owners.lock().expect("no client has panicked")
    }
}

/// A client of one region; it goes on until it is told to stop, whatever happens to the region.
async fn push(http: reqwest::Client, base: String, region: String, lane: usize, noted: Arc<Acknowledged>) {
    for number in 0.. {
        // Every other account is one that clients of all regions ask for.
        let account = match number % 2 {
            0 => format!("common-{lane}-{number}"),
            _ => format!("{region}-{lane}-{number}"),
        };
        let blob = account.clone().into_bytes();
        let claim = json!({"account": {"auth_tenant_id": "default"}});
        let claim_url = format!("{base}/keppel/v1/accounts/{account}");
        let url = format!("{base}/v2/{account}/app/blobs/uploads/?digest={}", sha256(&blob));
        // Asked again until it is known who owns it.
        loop {
            if noted.stop.load(Ordering::SeqCst) {
                return;
            }
            noted.asked.fetch_add(1, Ordering::SeqCst);
            let claimed = try_send(http.put(&claim_url).json(&claim)).await;
            let pushed = match claimed.map(|answer| (answer.status, answer.text())) {
                Ok((200, _)) => try_send(http.post(&url).body(blob.clone())).await,
                Ok((409, _)) => break,
                Ok((503, _)) | Err(_) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
                Ok(other) => panic!("{region}: {account}: {other:?}"),
            };
            match pushed.map(|answer| (answer.status, answer.text())) {
                Ok((201, _)) => break noted.note(&account, &region),
                Ok((503, _)) => {}
                Ok(other) => panic!("{region}: {account}: {other:?}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

fn number_from(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} must be a number")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_nodes_come_back_with_what_was_acknowledged_and_no_account_has_two_owners() {
    let kills = number_from("KEPPEL_TEST_KILLS").unwrap_or(10);
    let seed = number_from("KEPPEL_TEST_SEED").unwrap_or_else(rand::random);
    println!("{kills} kills; KEPPEL_TEST_SEED={seed} kills the same nodes after the same pauses");
    let mut chance = StdRng::seed_from_u64(seed);
    let folder = tempfile::tempdir().expect("a folder");
    let mut regions: Vec<Region> = ["eu", "us", "ap"].map(|name| Region::new(folder.path(), name)).into();
    federate(&mut regions, 3);

    let noted = Arc::new(Acknowledged::default());
    let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10)).build().expect("a client");
    let mut clients = JoinSet::new();
    for region in &regions {
        for lane in 0..CLIENTS {
            let base = format!("http://{}", region.address);
            clients.spawn(push(http.clone(), base, region.name.clone(), lane, noted.clone()));
        }
    }
    for kill in 1..=kills {
        tokio::time::sleep(Duration::from_millis(chance.random_range(100..1500))).await;
        let victim = chance.random_range(0..regions.len());
        let led = regions[(victim + 1) % 3].leader() == regions[victim].name;
        regions[victim].kill();
        let before = noted.lock().clone();
        tokio::time::sleep(Duration::from_millis(chance.random_range(0..1500))).await;
        regions[victim].start();
        until_all_is_there(&regions[victim], &before).await;
        if let Some(ended) = clients.try_join_next() {
            ended.expect("no client ends before it is told to");
        }
        let (name, count) = (&regions[victim].name, before.len());
        println!("kill {kill}: {name}{}: {count} accounts are all there", if led { ", the leader" } else { "" });
    }
    noted.stop.store(true, Ordering::SeqCst);
    while let Some(ended) = clients.join_next().await {
        ended.expect("no client failed");
    }
    until_equal(&regions);
    let acknowledged = noted.lock().clone();
    for region in &regions {
        let known: BTreeMap<String, String> = region.accounts().into_iter().collect();
        for (account, owner) in &acknowledged {
            assert_eq!(known.get(account), Some(owner), "{account}, as {} knows it", region.name);
        }
    }
    println!("{} accounts acknowledged in {} requests", acknowledged.len(), noted.asked.load(Ordering::SeqCst));
    assert!(acknowledged.len() as u64 > kills, "there was load");
    assert!(acknowledged.keys().any(|account| account.starts_with("common")), "there was a race for names");
}

/// Waits until a node that has just started shows every claim that anyone had acknowledged before it was killed, and
/// sees that the content it acknowledged itself is there at once.
async fn until_all_is_there(region: &Region, acknowledged: &BTreeMap<String, String>) {
    let client = region.client();
    for (account, _) in acknowledged.iter().filter(|(_, owner)| **owner == region.name).rev().take(20) {
        let answer = client.get(&format!("/v2/{account}/app/blobs/{}", sha256(account.as_bytes()))).await;
        assert_eq!(answer.expect(200).body, account.as_bytes());
    }
    let start = Instant::now();
    loop {
        let known: BTreeMap<String, String> = region.accounts().into_iter().collect();
        let missing: Vec<_> = acknowledged.iter().filter(|(account, _)| !known.contains_key(*account)).collect();
        if missing.is_empty() {
            for (account, owner) in acknowledged {
                assert_eq!(known.get(account), Some(owner), "{account}, as {} knows it", region.name);
            }
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{} lost {} accounts: {missing:?}", region.name, missing.len());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
