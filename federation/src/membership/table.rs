use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;
use tokio::time::Instant;

use super::Card;
use crate::vocabulary::NodeId;

/// How a member fares, as far as is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// It answers.
    Alive,
    /// It did not answer lately; it may yet.
    Suspect,
    /// It has not answered for so long that nobody counts on it, or has said farewell.
    Down,
    /// Nothing has been heard of it since this node started.
    Unknown,
}

impl Health {
    /// The name used in tables, JSON and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Suspect => "suspect",
            Self::Down => "down",
            Self::Unknown => "unknown",
        }
    }

    pub(super) const ALL: [Self; 4] = [Self::Alive, Self::Suspect, Self::Down, Self::Unknown];
}

/// Another member.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its identity.
    pub node: NodeId,
    /// How it fares.
    pub health: Health,
    /// Since when.
    pub since: Instant,
    /// What it says of itself, once that was heard.
    pub card: Option<Card>,
}

/// Something about another member changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MembershipEvent {
    /// It fares otherwise.
    Health {
        /// The member.
        node: NodeId,
        /// How it fares now.
        health: Health,
    },
    /// It says something else of itself.
    Described(NodeId),
}

/// What the task knows, for all to read.
#[derive(Debug)]
pub(super) struct Table {
    peers: Mutex<HashMap<NodeId, Peer>>,
    events: broadcast::Sender<MembershipEvent>,
}

impl Table {
    pub fn new(events: broadcast::Sender<MembershipEvent>) -> Self {
        Self { peers: Mutex::default(), events }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<NodeId, Peer>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn peers(&self) -> Vec<Peer> {
        let mut peers: Vec<Peer> = self.lock().values().cloned().collect();
        peers.sort_by_key(|peer| peer.node);
        peers
    }

    pub fn get_peer(&self, node: NodeId) -> Option<Peer> {
        self.lock().get(&node).cloned()
    }

    pub fn subscribe(&self) -> broadcast::Receiver<MembershipEvent> {
        self.events.subscribe()
    }

    /// Keeps exactly these nodes.
    pub fn keep(&self, nodes: impl Iterator<Item = NodeId>) {
        let mut peers = self.lock();
        let mut old = std::mem::take(&mut *peers);
        let fresh = |node| Peer { node, health: Health::Unknown, since: Instant::now(), card: None };
        peers.extend(nodes.map(|node| (node, old.remove(&node).unwrap_or_else(|| fresh(node)))));
    }

    /// Takes over how the members fare, and tells what changed.
    pub fn set_health(&self, seen: impl Iterator<Item = (NodeId, Health)>) {
        let mut changed = Vec::new();
        let mut peers = self.lock();
        for (node, health) in seen {
            if let Some(peer) = peers.get_mut(&node).filter(|peer| peer.health != health) {
                (peer.health, peer.since) = (health, Instant::now());
                changed.push(MembershipEvent::Health { node, health });
            }
        }
        let count = |health| peers.values().filter(|peer| peer.health == health).count();
        for health in Health::ALL {
            metrics::gauge!("keppel_federation_members", "state" => health.as_str()).set(count(health) as f64);
        }
        drop(peers);
        for event in changed {
            _ = self.events.send(event);
        }
    }

    pub fn set_card(&self, card: Card) {
        let node = card.node;
        let mut peers = self.lock();
        let Some(peer) = peers.get_mut(&node) else { return };
        peer.card = Some(card);
        drop(peers);
        _ = self.events.send(MembershipEvent::Described(node));
    }
}
