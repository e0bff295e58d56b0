//! What is known of each other node: its addresses, its connections, and when to try again.
//!
//! One connection per pair of nodes is meant. Two arise when both sides connect at the same moment; then the one that
//! the node with the smaller id made is used by both, and the other is closed after a while, when what runs on it has
//! ended. A connection that is much newer than another was made because the other side lost the old one: it is used.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use quinn::Connection;
use rand::Rng;
use tokio::sync::watch;
use tokio::time::Instant;

use super::QuicOptions;
use crate::vocabulary::NodeId;

/// Datagrams that wait for a connection; when there are more, the oldest is lost.
const PENDING_DATAGRAMS_MAX: usize = 8;

#[derive(Debug)]
struct Live {
    connection: Connection,
    dialed_by: NodeId,
    since: Instant,
}

#[derive(Debug, Clone)]
struct Failure {
    cause: String,
    refused: bool,
    count: u32,
    retry_at: Instant,
}

#[derive(Debug, Default)]
struct Peer {
    addresses: Vec<SocketAddr>,
    live: Vec<Live>,
    dialing: bool,
    failure: Option<Failure>,
    pending: VecDeque<Bytes>,
    changed: watch::Sender<()>,
}

/// All other nodes.
#[derive(Debug)]
pub(super) struct Peers {
    local: NodeId,
    map: Mutex<HashMap<NodeId, Peer>>,
    duplicate_window: Duration,
    backoff: (Duration, Duration),
}

/// How to get a connection to a node.
#[derive(Debug)]
pub(super) enum Lookup {
    /// Here it is.
    Connected(Connection),
    /// The caller is to connect to these addresses and report with `connected` or `failed`.
    Dial(Vec<SocketAddr>),
    /// Someone else is connecting: look again after a change.
    Wait(watch::Receiver<()>),
    /// The last attempt failed, and the next one is not due.
    Failed { cause: String, refused: bool },
    /// No address is known.
    Unknown,
}

impl Peers {
    pub fn new(local: NodeId, options: &QuicOptions) -> Self {
        let backoff = (options.backoff_min, options.backoff_max);
        Self { local, map: Mutex::default(), duplicate_window: options.duplicate_window, backoff }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<NodeId, Peer>> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the connection to use, or says how to come by one.
    pub fn look_up(&self, node: NodeId) -> Lookup {
        let mut map = self.lock();
        let Some(peer) = map.get_mut(&node) else { return Lookup::Unknown };
        if let Some(best) = self.best(node, peer) {
            return Lookup::Connected(best.connection.clone());
        }
        if peer.dialing {
            return Lookup::Wait(peer.changed.subscribe());
        }
        if peer.addresses.is_empty() {
            return Lookup::Unknown;
        }
        match &peer.failure {
            Some(failure) if Instant::now() < failure.retry_at => {
                Lookup::Failed { cause: failure.cause.clone(), refused: failure.refused }
            }
            _ => {
                peer.dialing = true;
                Lookup::Dial(peer.addresses.clone())
            }
        }
    }

    /// Waits for the outcome of an attempt that runs.
    pub fn watch(&self, node: NodeId) -> Option<watch::Receiver<()>> {
        self.lock().get(&node).filter(|peer| peer.dialing).map(|peer| peer.changed.subscribe())
    }

    /// Takes a fresh connection. Gives the datagrams that waited for it.
    pub fn connected(&self, node: NodeId, connection: &Connection, dialed_by: NodeId) -> Vec<Bytes> {
        let mut map = self.lock();
        let was_away = map.get(&node).is_some_and(|peer| peer.failure.is_some());
        if was_away {
            // What cut it off has probably cut off others as well, and they need not wait for their next attempt.
            let failures = map.values_mut().filter_map(|peer| peer.failure.as_mut());
            failures.for_each(|failure| failure.retry_at = Instant::now());
        }
        let peer = map.entry(node).or_default();
        peer.live.retain(|live| live.connection.close_reason().is_none());
        peer.live.push(Live { connection: connection.clone(), dialed_by, since: Instant::now() });
        peer.failure = None;
        if dialed_by == self.local {
            peer.dialing = false;
            // The address that worked is tried first the next time.
            let works = connection.remote_address();
            peer.addresses.sort_by_key(|address| *address != works);
        }
        peer.changed.send_replace(());
        peer.pending.drain(..).collect()
    }

    /// Notes that an attempt to connect failed.
    pub fn failed(&self, node: NodeId, cause: String, refused: bool) {
        let mut map = self.lock();
        let Some(peer) = map.get_mut(&node) else { return };
        let count = peer.failure.as_ref().map_or(0, |failure| failure.count) + 1;
        let pause = self.pause(count);
        peer.failure = Some(Failure { cause, refused, count, retry_at: Instant::now() + pause });
        peer.dialing = false;
        peer.pending.clear();
        peer.changed.send_replace(());
    }

    fn pause(&self, count: u32) -> Duration {
        let (min, max) = self.backoff;
        let full = min.saturating_mul(1 << count.saturating_sub(1).min(16)).min(max);
        full.mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    /// Forgets a connection that has ended.
    pub fn disconnected(&self, node: NodeId, connection: &Connection) {
        let mut map = self.lock();
        let Some(peer) = map.get_mut(&node) else { return };
        peer.live.retain(|live| live.connection.stable_id() != connection.stable_id());
        peer.changed.send_replace(());
    }

    /// Whether this is the connection that is used for the node.
    pub fn is_used(&self, node: NodeId, connection: &Connection) -> bool {
        let map = self.lock();
        let best = map.get(&node).and_then(|peer| self.best(node, peer));
        best.is_some_and(|best| best.connection.stable_id() == connection.stable_id())
    }

    /// Among the connections made within the window before the newest, one made by the smaller id, else the newest.
    fn best<'a>(&self, node: NodeId, peer: &'a Peer) -> Option<&'a Live> {
        let alive = || peer.live.iter().filter(|live| live.connection.close_reason().is_none());
        let newest = alive().map(|live| live.since).max()?;
        let canonical = self.local.min(node);
        alive()
            .filter(|live| newest.duration_since(live.since) <= self.duplicate_window)
            .max_by_key(|live| (live.dialed_by == canonical, live.since))
    }

    /// The connection that is used for a node.
    pub fn get_connection(&self, node: NodeId) -> Option<Connection> {
        let map = self.lock();
        map.get(&node).and_then(|peer| self.best(node, peer)).map(|best| best.connection.clone())
    }

    /// Keeps a datagram until there is a connection. False when the node is not known or not worth waiting for.
    pub fn defer_datagram(&self, node: NodeId, datagram: Bytes) -> bool {
        let mut map = self.lock();
        let Some(peer) = map.get_mut(&node) else { return false };
        if peer.addresses.is_empty() {
            return false;
        }
        if peer.pending.len() >= PENDING_DATAGRAMS_MAX {
            peer.pending.pop_front();
        }
        peer.pending.push_back(datagram);
        true
    }

    /// Replaces the addresses of a node; with none it is forgotten, and its connections are given back to be closed.
    pub fn set_addresses(&self, node: NodeId, addresses: Vec<SocketAddr>) -> Vec<Connection> {
        let mut map = self.lock();
        if addresses.is_empty() {
            let gone = map.remove(&node).map(|peer| peer.live).unwrap_or_default();
            return gone.into_iter().map(|live| live.connection).collect();
        }
        let peer = map.entry(node).or_default();
        if addresses.iter().any(|address| !peer.addresses.contains(address)) {
            peer.failure = None;
        }
        peer.addresses = addresses;
        Vec::new()
    }

    /// Takes away the connections of all nodes that `stays` does not hold for, to be closed.
    pub fn take_connections(&self, stays: impl Fn(NodeId) -> bool) -> Vec<Connection> {
        let mut map = self.lock();
        let gone = map.iter_mut().filter(|(node, _)| !stays(**node));
        gone.flat_map(|(_, peer)| {
            peer.pending.clear();
            peer.live.drain(..).map(|live| live.connection)
        })
        .collect()
    }

    /// All live connections.
    pub fn connections(&self) -> Vec<(NodeId, Connection)> {
        let map = self.lock();
        let all = map.iter().flat_map(|(node, peer)| peer.live.iter().map(|live| (*node, live.connection.clone())));
        all.filter(|(_, connection)| connection.close_reason().is_none()).collect()
    }
}
