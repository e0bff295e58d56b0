use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::*;
use crate::identity::NodeKey;
use crate::transport::quic::{QuicOptions, QuicTransport};
use crate::transport::{Channel, Handler};
use crate::vocabulary::Region;
use crate::wire::Body;

const PATIENCE: Duration = Duration::from_secs(20);

struct ToMembership(Arc<Membership>);

#[async_trait]
impl Handler for ToMembership {
    async fn handle(&self, _: NodeId, _: Channel, _: Bytes) -> Result<Body, String> {
        Err("gossip only".into())
    }

    fn handle_datagram(&self, from: NodeId, datagram: Bytes) {
        self.0.handle_datagram(from, datagram);
    }
}

struct Watcher {
    id: NodeId,
    transport: Arc<QuicTransport>,
    membership: Arc<Membership>,
}

impl Watcher {
    fn start(key: &NodeKey, region: &str) -> Self {
        let listen = vec!["127.0.0.1:0".parse().unwrap()];
        let quic = QuicOptions { listen, idle_timeout: Duration::from_secs(2), ..QuicOptions::default() };
        let transport = Arc::new(QuicTransport::start(key, quic).unwrap());
        let card = Card {
            node: key.id(),
            revision: 0,
            region: Region::parse(region).unwrap(),
            addresses: transport.listening(),
            api_url: format!("https://{region}.example"),
            version: "1.2.3".into(),
            capabilities: vec![],
            load: Load::default(),
        };
        let membership = Arc::new(Membership::start(MembershipOptions::short(), transport.clone(), card));
        transport.serve(Arc::new(ToMembership(membership.clone())));
        Self { id: key.id(), transport, membership }
    }

    fn health_of(&self, other: NodeId) -> Health {
        self.membership.get_peer(other).map_or(Health::Unknown, |peer| peer.health)
    }

    fn api_url_of(&self, other: NodeId) -> Option<String> {
        Some(self.membership.get_peer(other)?.card?.api_url)
    }
}

/// Admits all to all, and tells addresses only around a chain: the rest is gossip's to find.
async fn introduce(nodes: &[&Watcher]) {
    let ids: Vec<NodeId> = nodes.iter().map(|node| node.id).collect();
    for node in nodes {
        node.transport.set_admitted(ids.clone());
        for other in nodes.iter().filter(|other| other.id != node.id) {
            node.transport.set_addresses(other.id, other.transport.listening());
        }
        node.membership.set_admitted(ids.clone()).await;
    }
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn keys<const N: usize>() -> [NodeKey; N] {
    std::array::from_fn(|_| NodeKey::generate().unwrap())
}

#[tokio::test]
async fn members_learn_of_each_other_and_what_each_says_of_itself() {
    let [a, b, c] = keys();
    let (a, b, c) = (Watcher::start(&a, "eu"), Watcher::start(&b, "us"), Watcher::start(&c, "ap"));
    introduce(&[&a, &b, &c]).await;
    for (one, other, url) in
        [(&a, &c, "https://ap.example"), (&c, &b, "https://us.example"), (&b, &a, "https://eu.example")]
    {
        until("alive", || one.health_of(other.id) == Health::Alive).await;
        until("described", || one.api_url_of(other.id).as_deref() == Some(url)).await;
    }
    let mut changed = a.membership.get_peer(b.id).unwrap().card.unwrap();
    changed.node = b.id;
    changed.api_url = "https://moved.example".into();
    b.membership.publish(changed).await;
    until("the change arrives", || c.api_url_of(b.id).as_deref() == Some("https://moved.example")).await;
}

#[tokio::test]
async fn a_silent_member_is_suspected_then_down_and_alive_again_when_it_returns_elsewhere() {
    let [a, b, c] = keys();
    let (a, b, lost) = (Watcher::start(&a, "eu"), Watcher::start(&b, "us"), Watcher::start(&c, "ap"));
    introduce(&[&a, &b, &lost]).await;
    until("alive", || a.health_of(lost.id) == Health::Alive && b.health_of(lost.id) == Health::Alive).await;
    let mut events = a.membership.subscribe();
    // It vanishes without a word.
    let id = lost.id;
    lost.membership.task.lock().unwrap().take().unwrap().abort();
    lost.transport.shutdown().await;
    drop(lost);
    until("down", || a.health_of(id) == Health::Down && b.health_of(id) == Health::Down).await;
    let mut told = Vec::new();
    while let Ok(event) = events.try_recv() {
        if let MembershipEvent::Health { node, health } = event
            && node == id
        {
            told.push(health);
        }
    }
    assert_eq!(told, [Health::Suspect, Health::Down], "suspicion comes first");

    let back = Watcher::start(&c, "ap");
    let ids = vec![a.id, b.id, back.id];
    back.transport.set_admitted(ids.clone());
    back.transport.set_addresses(a.id, a.transport.listening());
    back.membership.set_admitted(ids).await;
    until("alive again", || a.health_of(id) == Health::Alive && b.health_of(id) == Health::Alive).await;
    let new_address = back.transport.listening();
    let told =
        || a.membership.get_peer(id).and_then(|peer| peer.card).is_some_and(|card| card.addresses == new_address);
    until("its new address is known", told).await;
}

#[tokio::test]
async fn a_member_that_says_farewell_is_down_at_once() {
    let [a, b] = keys();
    let (a, b) = (Watcher::start(&a, "eu"), Watcher::start(&b, "us"));
    introduce(&[&a, &b]).await;
    until("alive", || a.health_of(b.id) == Health::Alive && b.health_of(a.id) == Health::Alive).await;
    let mut events = a.membership.subscribe();
    b.membership.shutdown().await;
    until("down", || a.health_of(b.id) == Health::Down).await;
    while let Ok(event) = events.try_recv() {
        assert!(!matches!(event, MembershipEvent::Health { health: Health::Suspect, .. }), "no suspicion was needed");
    }
}

#[tokio::test]
async fn who_is_no_member_is_neither_shown_nor_talked_to() {
    let [a, b, c] = keys();
    let (a, b, removed) = (Watcher::start(&a, "eu"), Watcher::start(&b, "us"), Watcher::start(&c, "ap"));
    introduce(&[&a, &b, &removed]).await;
    until("alive", || a.health_of(removed.id) == Health::Alive && removed.health_of(a.id) == Health::Alive).await;
    for node in [&a, &b] {
        node.transport.set_admitted(vec![a.id, b.id]);
        node.membership.set_admitted(vec![a.id, b.id]).await;
    }
    until("gone", || a.membership.get_peer(removed.id).is_none()).await;
    assert_eq!(a.membership.peers().len(), 1);
    until("the removed one hears nothing", || removed.health_of(a.id) == Health::Down).await;
    assert_eq!(a.health_of(b.id), Health::Alive);
}

#[tokio::test]
async fn garbage_and_packets_in_a_foreign_name_change_nothing() {
    let [a, b] = keys();
    let (a, b) = (Watcher::start(&a, "eu"), Watcher::start(&b, "us"));
    introduce(&[&a, &b]).await;
    until("alive", || a.health_of(b.id) == Health::Alive).await;
    let stranger = NodeKey::generate().unwrap().id();
    for garbage in [vec![], vec![1], vec![9; 500], vec![1; 1101], vec![1; 60_000]] {
        a.membership.handle_datagram(b.id, garbage.clone().into());
        a.membership.handle_datagram(stranger, garbage.into());
    }
    until("still alive", || a.health_of(b.id) == Health::Alive && b.health_of(a.id) == Health::Alive).await;
    assert_eq!(a.membership.peers().len(), 1);
}
