//! What a cut costs each side, measured in simulated time and so the same on every machine.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::super::tests::claim;
use super::super::{Claims, ClaimsError, Outcome, Part};
use super::world::World;
use super::{chance, faults};

/// What [`World`] sets.
const COMMAND_TIMEOUT: Duration = Duration::from_millis(1500);
/// Twice the longest that an election takes to begin, and some rounds of messages.
const ELECTED_WITHIN: Duration = Duration::from_millis(2500);
/// In [`World`] four heartbeats, and some for the next look.
const MADE_WAY_WITHIN: Duration = Duration::from_millis(700);

/// A federation whose nodes know their leader, and which of them that is.
fn simulate(seed: u64, test: impl AsyncFnOnce(&World, usize)) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    runtime.block_on(async {
        chance::seed(seed);
        let world = World::found(seed, None).await;
        let leader = faults::leader(&world).expect("one leads");
        let leader = (0..world.len()).find(|index| world.id(*index) == leader).expect("it is one of them");
        test(&world, leader).await;
        world.repair().await;
        world.agree().await.expect("all agree once all is well");
        world.discard();
    });
    drop(runtime);
    chance::unseed();
}

fn node(world: &World, index: usize) -> Arc<Claims> {
    world.claims(index).expect("it is up")
}

/// Asks until it is decided; gives how long that took.
async fn decided(node: &Claims, name: &str) -> Duration {
    let start = Instant::now();
    loop {
        match node.submit(claim(name, 1)).await {
            Ok(decision) => {
                assert!(matches!(decision.outcome, Outcome::Won { .. }), "{decision:?}");
                return start.elapsed();
            }
            Err(cause) => assert!(start.elapsed() < Duration::from_secs(60), "{cause}"),
        }
        // A refusal may come at once, and then no time has passed.
        sleep(Duration::from_millis(10)).await;
    }
}

/// Asks in vain, and gives the reason, which comes in time.
async fn refused(node: &Claims, name: &str) -> ClaimsError {
    let start = Instant::now();
    let refused = node.submit(claim(name, 1)).await.expect_err("nobody could decide this");
    assert!(start.elapsed() <= COMMAND_TIMEOUT, "{:?}", start.elapsed());
    refused
}

#[test]
fn a_leader_that_is_cut_off_refuses_in_time_and_the_others_go_on() {
    for seed in 0..6 {
        simulate(seed, async |world, leader| {
            let (cut_off, other) = (node(world, leader), node(world, (leader + 1) % world.len()));
            world.network.isolate(&[world.id(leader)]);
            // It cannot know yet, and so it cannot say that this will not be done.
            let unknown = refused(&cut_off, "at-once").await;
            assert!(matches!(unknown, ClaimsError::Timeout { .. } | ClaimsError::NoQuorum(_)), "{unknown}");
            let took = decided(&other, "elsewhere").await;
            assert!(took <= ELECTED_WITHIN + COMMAND_TIMEOUT, "{took:?}");
            sleep(Duration::from_secs(1)).await;
            let lost = refused(&cut_off, "later").await;
            let all_others = world.len() - 1;
            assert!(matches!(&lost, ClaimsError::NoQuorum(loss) if loss.missing.len() == all_others), "{lost}");
            assert!(cut_off.linearize().await.is_err());
            assert_ne!(cut_off.status().part, Part::Leader);
        });
    }
}

#[test]
fn a_follower_that_is_cut_off_refuses_in_time_and_names_who_is_missing() {
    for seed in 0..6 {
        simulate(seed, async |world, leader| {
            let cut_off = (leader + 1) % world.len();
            world.network.isolate(&[world.id(cut_off)]);
            assert!(decided(&node(world, leader), "elsewhere").await < COMMAND_TIMEOUT, "the rest goes on");
            sleep(Duration::from_secs(1)).await;
            // By now it does not send what it is asked any more, so it knows that it is not done.
            let lost = refused(&node(world, cut_off), "nowhere").await;
            assert!(matches!(&lost, ClaimsError::NoQuorum(loss) if !loss.missing.is_empty()), "{lost}");
            assert!(node(world, cut_off).linearize().await.is_err());
        });
    }
}

#[test]
fn a_leader_that_hears_nobody_makes_way() {
    for seed in 0..6 {
        simulate(seed, async |world, leader| {
            for other in (0..world.len()).filter(|other| *other != leader) {
                world.network.cut(world.id(other), world.id(leader));
            }
            sleep(MADE_WAY_WITHIN).await;
            assert_ne!(node(world, leader).status().part, Part::Leader);
            let took = decided(&node(world, (leader + 1) % world.len()), "elsewhere").await;
            assert!(took <= ELECTED_WITHIN + COMMAND_TIMEOUT, "{took:?}");
        });
    }
}

#[test]
fn a_leader_that_nobody_hears_is_replaced() {
    for seed in 0..6 {
        simulate(seed, async |world, leader| {
            for other in (0..world.len()).filter(|other| *other != leader) {
                world.network.cut(world.id(leader), world.id(other));
            }
            let took = decided(&node(world, (leader + 1) % world.len()), "elsewhere").await;
            assert!(took <= ELECTED_WITHIN + COMMAND_TIMEOUT, "{took:?}");
        });
    }
}
