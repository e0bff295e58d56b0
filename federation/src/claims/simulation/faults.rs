//! What goes wrong: cuts in both directions or one, slow and lossy lines, crashes of one node, some, or all.

use std::time::Duration;

use tokio::time::Instant;

use super::chance::below;
use super::world::World;
use crate::transport::memory::Faults;

/// Makes trouble for a while.
pub(super) async fn trouble(world: &World, duration: Duration) {
    let end = Instant::now() + duration;
    while Instant::now() < end {
        strike(world).await;
        tokio::time::sleep(Duration::from_millis(100 + below(1200))).await;
    }
}

async fn strike(world: &World) {
    let count = world.len();
    let any = || below(count as u64) as usize;
    match below(12) {
        0 => world.network.heal(),
        1 => {
            world.network.heal();
            for index in 0..count {
                world.start(index).await;
            }
        }
        2 => world.network.cut(world.id(any()), world.id(any())),
        3 => world.network.isolate(&[world.id(any())]),
        4 => {
            // Half and half, at random.
            let group: Vec<_> = (0..count).filter(|_| below(2) == 0).map(|index| world.id(index)).collect();
            world.network.isolate(&group);
        }
        5 => {
            // The leader hears everyone, and no one hears the leader; or the other way round.
            let Some(leader) = leader(world) else { return };
            let deaf = below(2) == 0;
            for other in (0..count).map(|index| world.id(index)).filter(|other| *other != leader) {
                match deaf {
                    true => world.network.cut(other, leader),
                    false => world.network.cut(leader, other),
                }
            }
        }
        6 => {
            if let Some(leader) = leader(world) {
                world.network.isolate(&[leader]);
            }
        }
        7 => {
            let (least, spread) = (below(20), below(100));
            world.network.set_faults(Faults {
                delay: Duration::from_millis(least)..=Duration::from_millis(least + spread),
                loss: below(15) as f64 / 100.0,
                duplication: below(20) as f64 / 100.0,
            });
        }
        8 => world.crash(any()),
        9 => {
            if let Some(index) = (0..count).find(|index| leader(world) == Some(world.id(*index))) {
                world.crash(index);
            }
        }
        10 => {
            let index = any();
            world.crash(index);
            tokio::time::sleep(Duration::from_millis(below(300))).await;
            world.start(index).await;
        }
        _ => {
            // The power goes everywhere.
            for index in 0..count {
                world.crash(index);
            }
            tokio::time::sleep(Duration::from_millis(below(300))).await;
            for index in 0..count {
                world.start(index).await;
            }
        }
    }
}

/// The node that leads, as the first node that is up knows.
pub(super) fn leader(world: &World) -> Option<crate::vocabulary::NodeId> {
    (0..world.len()).find_map(|index| world.claims(index)?.status().leader)
}
