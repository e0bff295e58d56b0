//! Which nodes gave wrong or no answers of late, so that they are not asked again at once.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use keppel_federation::vocabulary::{Digest, NodeId};
use tokio::time::Instant;

use super::upstream::Primary;

/// What a node did wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// It gave bytes, hashes or sizes that are not those of the blob.
    Wrong,
    /// It was asked and said nothing.
    Silent,
    /// It was asked and could not be reached.
    Unreachable,
}

impl Fault {
    fn as_str(self) -> &'static str {
        match self {
            Self::Wrong => "wrong",
            Self::Silent => "silent",
            Self::Unreachable => "unreachable",
        }
    }

    /// How long nobody but the primary of an account is asked again.
    fn lasts(self) -> Duration {
        match self {
            Self::Wrong => Duration::from_secs(600),
            Self::Silent => Duration::from_secs(30),
            Self::Unreachable => Duration::from_secs(5),
        }
    }
}

/// The nodes in disgrace. There are no more of them than members.
#[derive(Default)]
pub(super) struct Standing {
    until: Mutex<HashMap<NodeId, Instant>>,
}

impl Standing {
    /// Notes a fault: in a metric, and in the log unless the node was in disgrace already.
    pub(super) fn blame(&self, node: &Primary, fault: Fault, digest: &Digest) {
        let now = Instant::now();
        let mut until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        until.retain(|_, until| *until > now);
        let mut end = now + fault.lasts();
        let known = until.get(&node.node).copied();
        end = known.map_or(end, |known| known.max(end));
        until.insert(node.node, end);
        drop(until);
        if known.is_none() {
            let (peer, region) = (node.node.short().to_string(), node.region.clone());
            let labels = [("peer", peer), ("region", region), ("reason", fault.as_str().into())];
            metrics::counter!("keppel_transfer_sources_dropped_total", &labels).increment(1);
            let (peer, region, reason) = (node.node, &node.region, fault.as_str());
            tracing::warn!(%peer, region, reason, %digest, "a node is not asked for blobs for a while");
        }
    }

    /// Whether a node may be asked.
    pub(super) fn is_good(&self, node: NodeId) -> bool {
        let until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        until.get(&node).is_none_or(|until| *until <= Instant::now())
    }
}
