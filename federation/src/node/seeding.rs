//! Finds members whose addresses have all changed: by asking at the seeds who is there.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use super::{Inner, jittered};
use crate::membership::Health;

const MEET_TIMEOUT: Duration = Duration::from_secs(5);
/// Addresses tried in one round.
const ADDRESSES_MAX: usize = 32;

pub(super) async fn run(inner: Arc<Inner>) {
    if inner.options.seeds.is_empty() {
        return;
    }
    loop {
        tokio::time::sleep(jittered(inner.options.membership.seed_interval)).await;
        let missing = inner.membership.peers().iter().any(|peer| peer.health != Health::Alive);
        if !missing {
            continue;
        }
        let own = inner.card().addresses.clone();
        let mut addresses = inner.resolver.resolve(&inner.options.seeds).await;
        addresses.retain(|address| !own.contains(address));
        addresses.truncate(ADDRESSES_MAX);
        // Whoever is met is connected to; the next greeting of membership goes there.
        join_all(addresses.iter().map(|address| inner.transport.meet(*address, MEET_TIMEOUT))).await;
    }
}
