//! Federations of five and seven processes from one seed and invitations; a process that was away.

use crate::region::{Region, federate, until, until_equal};

const NAMES: [&str; 7] = ["eu", "us", "ap", "sa", "af", "oc", "an"];
/// Claims made while a node is away.
const AWAY: usize = 1000;
/// Of which so many are under way at once.
const AT_ONCE: usize = 16;

fn regions(folder: &std::path::Path, count: usize) -> Vec<Region> {
    let mut regions: Vec<Region> = NAMES[..count].iter().map(|name| Region::new(folder, name)).collect();
    let seed = format!("federation.seeds={}", regions[0].address);
    regions.iter_mut().skip(1).for_each(|region| region.set(seed.clone()));
    regions
}

async fn form(count: usize, voters: usize) {
    let folder = tempfile::tempdir().expect("a folder");
    let mut regions = regions(folder.path(), count);
    federate(&mut regions, voters);
    for region in &regions {
        let claimed = region.claim(&format!("of-{}", region.name)).await;
        assert_eq!(claimed.status, 200, "{claimed:?}");
    }
    let taken = regions[1].claim("of-eu").await;
    assert!(taken.status == 409 && taken.words.contains("eu"), "{taken:?}");
    until("all see all alive", || {
        regions.iter().all(|region| NAMES[..count].iter().all(|name| region.health_of(name) == "alive"))
    });
    until_equal(&regions);
    assert!(regions.iter().all(|region| region.accounts().len() == count));
}

#[tokio::test]
async fn five_processes_form_a_federation_from_one_seed() {
    form(5, 5).await;
}

#[tokio::test]
async fn seven_processes_form_a_federation_from_one_seed() {
    form(7, 5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_was_away_for_a_thousand_claims_catches_up_by_log() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut regions = regions(folder.path(), 3);
    federate(&mut regions, 3);
    until_equal(&regions);
    regions[2].kill();
    let region = std::sync::Arc::new(regions.remove(0));
    let mut claiming = tokio::task::JoinSet::new();
    for lane in 0..AT_ONCE {
        let region = region.clone();
        claiming.spawn(async move {
            for number in (lane..AWAY).step_by(AT_ONCE) {
                // The leader may have been the one that went.
                let start = std::time::Instant::now();
                while region.claim(&format!("account{number}")).await.status != 200 {
                    assert!(start.elapsed() < crate::region::PATIENCE);
                }
            }
        });
    }
    while let Some(done) = claiming.join_next().await {
        done.expect("all are claimed");
    }
    regions.insert(0, std::sync::Arc::into_inner(region).expect("nobody else has it"));
    regions[2].start();
    let took = until("it has caught up", || regions[2].accounts().len() == AWAY);
    println!("caught up {took:?} after its start");
    until_equal(&regions);
    assert_eq!(regions[2].status()["state"]["snapshots_installed"], 0, "it came by log");
}
