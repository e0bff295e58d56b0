//! A federation on simulated networks, disks and clocks, driven through faults by a seed, and a checker of what its
//! clients saw.
//!
//! Everything runs on one thread under a paused clock; all chance comes from the seed. The claims room itself is the
//! real one, its SQLite included; simulated are the network (the in-memory transport), the disk (a file system that
//! forgets what was not synced) and time.
//!
//! `scripts/simulate` runs many seeds; `KEPPEL_SIMULATION_SEED` and `KEPPEL_SIMULATION_SEEDS` choose which.

mod chance;
mod checker;
mod client;
mod disk;
mod faults;
mod partitions;
mod world;

use std::time::Duration;

pub(super) use chance::{ElectionRng, simulated_now_ms, simulated_request_id};
pub(super) use disk::SimulatedDisk;

/// A promise broken on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Defect {
    /// Log entries and votes are acknowledged before they are on disk, and never synced.
    AcknowledgeBeforeSync,
    /// A leader takes silence for consent.
    CountMinority,
    /// A leader answers linearizable reads without asking whether it still leads.
    UnconfirmedReads,
}

/// What one run led to.
#[derive(Debug)]
struct Run {
    history: Vec<client::Operation>,
    result: Result<(), Failure>,
}

/// Why a run failed.
#[derive(Debug)]
#[expect(dead_code, reason = "read by people, through Debug")]
enum Failure {
    /// The history has no explanation.
    History(checker::Violation),
    /// After all faults ended, the nodes did not come to agree.
    NoAgreement(String),
}

/// How long faults go on, in simulated time.
const TROUBLE: Duration = Duration::from_secs(10);

/// Runs one seed.
fn run(seed: u64, defect: Option<Defect>) -> Run {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    let (history, agreement) = runtime.block_on(async {
        chance::seed(seed);
        let world = world::World::found(seed, defect).await;
        let clients = client::spawn(&world);
        clients.alongside(faults::trouble(&world, TROUBLE)).await;
        clients.alongside(world.repair()).await;
        let (mut history, start) = client::finish(clients).await;
        let agreement = world.agree().await;
        history.extend(client::look_around(&world, start).await);
        world.discard();
        (history, agreement)
    });
    drop(runtime);
    chance::unseed();
    let explained = checker::check(&history).map_err(Failure::History);
    let result = explained.and_then(|()| agreement.map_err(Failure::NoAgreement));
    Run { history, result }
}

/// The fingerprint of a history: equal for runs that went the same way.
fn fingerprint(history: &[client::Operation]) -> String {
    blake3::hash(format!("{history:?}").as_bytes()).to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_environment(name: &str) -> Option<u64> {
        std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
    }

    fn check_seeds(first: u64, count: u64) {
        let (mut operations, mut unknown) = (0, 0);
        for seed in first..first + count {
            let run = run(seed, None);
            operations += run.history.len();
            unknown += run.history.iter().filter(|operation| operation.returned.is_none()).count();
            if count == 1 {
                run.history.iter().for_each(|operation| eprintln!("{operation}"));
            }
            if let Err(failure) = run.result {
                panic!("seed {seed} failed; replay it with scripts/simulate --seed {seed}\n{failure:#?}");
            }
            if count > SEEDS && ((seed - first) % 50 == 49 || seed == first + count - 1) {
                eprintln!("{} seeds, {operations} operations, {unknown} of them without an answer", seed - first + 1);
            }
        }
        assert!(operations > 0);
    }

    /// How many seeds each of the two tests runs, so that two processors share them.
    const SEEDS: u64 = 25;

    #[test]
    fn no_seed_breaks_a_promise() {
        let first = from_environment("KEPPEL_SIMULATION_SEED").unwrap_or(0);
        check_seeds(first, from_environment("KEPPEL_SIMULATION_SEEDS").unwrap_or(SEEDS));
    }

    #[test]
    fn no_seed_of_the_next_ones_breaks_a_promise() {
        check_seeds(SEEDS, SEEDS);
    }

    #[test]
    fn a_seed_replays() {
        let count = from_environment("KEPPEL_SIMULATION_REPLAYS").unwrap_or(2);
        for seed in 0..count {
            let runs = [run(seed, None), run(seed, None)];
            assert_eq!(fingerprint(&runs[0].history), fingerprint(&runs[1].history), "seed {seed}");
        }
    }

    fn is_caught(defect: Defect) {
        for seed in 0..60 {
            if let Err(Failure::History(_)) = run(seed, Some(defect)).result {
                return;
            }
        }
        panic!("{defect:?} was not noticed in 60 seeds");
    }

    #[test]
    fn acknowledging_before_the_disk_has_it_is_caught() {
        is_caught(Defect::AcknowledgeBeforeSync);
    }

    #[test]
    fn counting_a_minority_is_caught() {
        is_caught(Defect::CountMinority);
    }

    #[test]
    fn reads_without_a_majority_are_caught() {
        is_caught(Defect::UnconfirmedReads);
    }
}
