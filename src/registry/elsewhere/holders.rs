//! Who probably holds which blob: whoever asked for it here, or pushed it elsewhere. Hints, in memory and bounded; a node
//! that is named and has nothing costs one question.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use keppel_federation::vocabulary::{Digest, NodeId};

/// Blobs of which holders are known.
const BLOBS_MAX: usize = 20_000;
/// Holders known of one blob; the latest stay.
const HOLDERS_MAX: usize = 6;
/// Holders named to somebody who asks.
const NAMED_MAX: usize = 4;

/// The hints of one node.
#[derive(Default)]
pub(in crate::registry) struct Holders {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    of: HashMap<Digest, Vec<NodeId>>,
    order: VecDeque<Digest>,
}

impl Holders {
    /// The node will soon have the blob, if it has not already.
    pub(in crate::registry) fn note(&self, digest: &Digest, node: NodeId) {
        let mut state = self.lock();
        if !state.of.contains_key(digest) {
            state.order.push_back(*digest);
            if state.order.len() > BLOBS_MAX
                && let Some(oldest) = state.order.pop_front()
            {
                state.of.remove(&oldest);
            }
        }
        let holders = state.of.entry(*digest).or_default();
        holders.retain(|known| *known != node);
        holders.insert(0, node);
        holders.truncate(HOLDERS_MAX);
    }

    /// Some of the nodes that probably have the blob, besides the one that asks; the latest first.
    pub(super) fn named(&self, digest: &Digest, asker: NodeId) -> Vec<NodeId> {
        let state = self.lock();
        let holders = state.of.get(digest).into_iter().flatten();
        holders.copied().filter(|node| *node != asker).take(NAMED_MAX).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u8) -> NodeId {
        NodeId::from_public_key([number; 32])
    }

    fn digest(number: u32) -> Digest {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        Digest::from_sha256(bytes)
    }

    #[test]
    fn the_latest_holders_are_named_but_not_to_themselves() {
        let holders = Holders::default();
        for number in 0..9 {
            holders.note(&digest(1), node(number));
        }
        holders.note(&digest(1), node(5));
        assert_eq!(holders.named(&digest(1), node(8)), [5, 7, 6, 4].map(node));
        assert_eq!(holders.named(&digest(2), node(8)), []);
    }

    #[test]
    fn no_more_than_so_many_blobs_are_remembered() {
        let holders = Holders::default();
        for number in 0..BLOBS_MAX as u32 + 10 {
            holders.note(&digest(number), node(1));
        }
        let state = holders.lock();
        assert_eq!((state.of.len(), state.order.len()), (BLOBS_MAX, BLOBS_MAX));
        drop(state);
        assert_eq!(holders.named(&digest(9), node(2)), []);
        assert_eq!(holders.named(&digest(10), node(2)), [node(1)]);
    }
}
