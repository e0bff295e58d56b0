//! The SWIM library's view of the world: identities, cards as broadcasts, and its settings. No I/O, no clock but one.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::num::{NonZeroU8, NonZeroUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use foca::{BroadcastHandler, Config, Foca, Identity, Invalidates, PeriodicParams, PostcardCodec};
use rand_foca::SeedableRng;
use rand_foca::rngs::StdRng;
use serde::{Deserialize, Serialize};

use super::{Card, MembershipOptions};
use crate::vocabulary::NodeId;

pub(super) type Swim = Foca<Incarnation, PostcardCodec, StdRng, CardHandler>;

/// A node in one of its lives: each start, and each return after it was declared down, is a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Incarnation {
    pub node: NodeId,
    /// Later lives have larger numbers: the time at which they began, in milliseconds.
    pub life: u64,
}

impl Incarnation {
    pub fn first(node: NodeId) -> Self {
        Self { node, life: now_ms() }
    }

    /// A life after `other`, whatever the clock says.
    pub fn after(self, other: u64) -> Self {
        Self { node: self.node, life: now_ms().max(other.saturating_add(1)) }
    }
}

impl Identity for Incarnation {
    type Addr = NodeId;

    fn renew(&self) -> Option<Self> {
        Some(self.after(self.life))
    }

    fn addr(&self) -> NodeId {
        self.node
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.life > adversary.life
    }
}

pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// What is known of all members by their own words.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub admitted: HashSet<NodeId>,
    pub cards: HashMap<NodeId, Card>,
    /// Nodes whose card changed since this was last emptied.
    pub news: Vec<NodeId>,
    /// Someone holds a card of ours with this revision: ours has to be newer.
    pub overtaken: Option<u64>,
}

/// The same, shared with the library.
#[derive(Debug, Clone)]
pub(super) struct CardHandler {
    pub local: NodeId,
    pub known: Arc<Mutex<Known>>,
}

impl CardHandler {
    pub fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which card it is, of whom.
#[derive(Debug, Clone, Copy)]
pub(super) struct CardKey {
    node: NodeId,
    revision: u64,
}

impl Invalidates for CardKey {
    fn invalidates(&self, other: &Self) -> bool {
        self.node == other.node && self.revision >= other.revision
    }
}

impl BroadcastHandler<Incarnation> for CardHandler {
    type Key = CardKey;
    type Error = Infallible;

    fn receive_item(&mut self, data: &[u8], sender: Option<&Incarnation>) -> Result<Option<CardKey>, Infallible> {
        let Some(card) = Card::decode(data) else { return Ok(None) };
        let key = CardKey { node: card.node, revision: card.revision };
        let mut known = self.lock();
        if card.node == self.local {
            let own = known.cards.get(&card.node).map_or(0, |own| own.revision);
            if sender.is_none() {
                known.cards.insert(card.node, card);
                return Ok(Some(key));
            }
            if card.revision > own {
                known.overtaken = Some(card.revision);
            }
            return Ok(None);
        }
        let newer = known.cards.get(&card.node).is_none_or(|older| older.revision < card.revision);
        if !newer || !known.admitted.contains(&card.node) {
            return Ok(None);
        }
        known.news.push(card.node);
        known.cards.insert(card.node, card);
        Ok(Some(key))
    }
}

pub(super) fn swim(incarnation: Incarnation, options: &MembershipOptions, cards: CardHandler) -> Swim {
    let rng = StdRng::from_seed(rand::random());
    Foca::with_custom_broadcast(incarnation, config(options), rng, PostcardCodec, cards)
}

fn config(options: &MembershipOptions) -> Config {
    let count = |value: usize| NonZeroUsize::new(value).unwrap_or(NonZeroUsize::MIN);
    let every = |frequency, members| Some(PeriodicParams { frequency, num_members: count(members) });
    Config {
        probe_period: options.probe_interval,
        probe_rtt: options.probe_round_trip,
        num_indirect_probes: count(options.indirect_probes),
        max_transmissions: NonZeroU8::new(8).unwrap_or(NonZeroU8::MIN),
        suspect_to_down_after: options.suspicion,
        // One entry per member: nothing to forget.
        remove_down_after: None,
        max_packet_size: count(options.packet_bytes_max),
        notify_down_members: true,
        periodic_announce: None,
        periodic_announce_to_down_members: every(options.announce_interval * 2, 2),
        periodic_gossip: every(options.gossip_interval, options.gossip_fanout),
    }
}

/// Feeds arbitrary bytes to the decoders of gossip: cards, and the packets of the library. What the fuzz target and the
/// property test call: none may panic, whatever the bytes are.
pub fn exercise_decoders(bytes: &[u8]) {
    let _ = Card::decode(bytes);
    let [local, other] = [1, 2].map(|number| NodeId::from_public_key([number; 32]));
    let cards = CardHandler { local, known: Arc::default() };
    cards.lock().admitted.insert(other);
    let mut swim = swim(Incarnation { node: local, life: 1 }, &MembershipOptions::default(), cards);
    let mut runtime = foca::AccumulatingRuntime::new();
    let _ = swim.handle_data(bytes, &mut runtime);
    let _ = postcard::take_from_bytes::<foca::Header<Incarnation>>(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_packet_makes_the_library_panic(bytes in prop::collection::vec(any::<u8>(), 0..1300)) {
            exercise_decoders(&bytes);
        }

        #[test]
        fn no_changed_packet_does_either(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
            cut in any::<prop::sample::Index>(),
        ) {
            let [local, other] = [1, 2].map(|number| NodeId::from_public_key([number; 32]));
            let cards = CardHandler { local: other, known: Arc::default() };
            let mut sender = swim(Incarnation { node: other, life: 1 }, &MembershipOptions::default(), cards);
            let mut runtime = foca::AccumulatingRuntime::new();
            sender.announce(Incarnation { node: local, life: 1 }, &mut runtime).unwrap();
            let (_, packet) = runtime.to_send().unwrap();
            let mut packet = packet.to_vec();
            for (at, byte) in changes {
                let at = at.index(packet.len());
                packet[at] = byte;
            }
            exercise_decoders(&packet);
            packet.truncate(cut.index(packet.len()));
            exercise_decoders(&packet);
        }
    }
}
