//! The task that drives the SWIM library: datagrams and timers in, datagrams out.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use foca::{AccumulatingRuntime, Header, OwnedNotification, State, Timer};
use metrics::counter;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::gossip::{CardHandler, Incarnation, Swim, now_ms, swim};
use super::table::{Health, Table};
use super::{Card, Input, MembershipOptions};
use crate::transport::Transport;
use crate::vocabulary::NodeId;

/// The first byte of every gossip datagram.
const VERSION: u8 = 1;

pub(super) struct Task {
    transport: Arc<dyn Transport>,
    options: MembershipOptions,
    table: Arc<Table>,
    inputs: mpsc::Receiver<Input>,
    card: Card,
    swim: Swim,
    cards: CardHandler,
    runtime: AccumulatingRuntime<Incarnation>,
    timers: BinaryHeap<Reverse<Due>>,
    timers_count: u64,
}

struct Due {
    at: Instant,
    order: u64,
    timer: Timer<Incarnation>,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}
impl Eq for Due {}
impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, &self.timer, self.order).cmp(&(other.at, &other.timer, other.order))
    }
}

impl Task {
    pub fn new(
        options: MembershipOptions,
        transport: Arc<dyn Transport>,
        table: Arc<Table>,
        inputs: mpsc::Receiver<Input>,
        card: Card,
    ) -> Self {
        let local = transport.local();
        let cards = CardHandler { local, known: Arc::default() };
        let swim = swim(Incarnation::first(local), &options, cards.clone());
        let runtime = AccumulatingRuntime::new();
        let timers = BinaryHeap::new();
        Self { transport, options, table, inputs, card, swim, cards, runtime, timers, timers_count: 0 }
    }

    pub async fn run(mut self) {
        let mut announce = interval(self.options.announce_interval);
        let mut publish = interval(self.options.publish_interval);
        announce.set_missed_tick_behavior(MissedTickBehavior::Delay);
        publish.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let due = self.timers.peek().map(|Reverse(due)| due.at);
            let timer = async {
                match due {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                input = self.inputs.recv() => match input {
                    Some(Input::Datagram(from, datagram)) => self.datagram(from, &datagram),
                    Some(Input::Admitted(nodes)) => self.admit(&nodes),
                    Some(Input::Publish(card)) => {
                        self.card = card;
                        self.publish();
                    }
                    Some(Input::Leave) => break self.leave(),
                    None => break,
                },
                () = timer => self.fire_timers(),
                _ = announce.tick() => self.announce_missing(),
                _ = publish.tick() => self.publish(),
            }
            self.settle();
        }
    }

    fn datagram(&mut self, from: NodeId, datagram: &[u8]) {
        count("received", datagram.len());
        let Some((&VERSION, packet)) = datagram.split_first() else {
            return tracing::debug!(peer = %from, "a gossip packet of another version was dropped");
        };
        let header = match postcard::take_from_bytes::<Header<Incarnation>>(packet) {
            Ok((header, _)) if header.src.node == from => header,
            _ => return tracing::debug!(peer = %from, "a malformed gossip packet was dropped"),
        };
        let own = *self.swim.identity();
        if header.dst.node == own.node && header.dst.life > own.life {
            // This node's clock went back since its last life: begin one that counts.
            self.run_swim(|swim, runtime| swim.change_identity(own.after(header.dst.life), runtime));
        }
        self.run_swim(|swim, runtime| swim.handle_data(packet, runtime));
        let overtaken = self.cards.lock().overtaken.take();
        if let Some(revision) = overtaken {
            self.card.revision = self.card.revision.max(revision);
            self.publish();
        }
    }

    fn admit(&mut self, nodes: &[NodeId]) {
        let others = || nodes.iter().copied().filter(|node| *node != self.cards.local);
        let mut known = self.cards.lock();
        known.admitted = others().collect();
        let local = self.cards.local;
        known.cards.retain(|node, _| *node == local || nodes.contains(node));
        drop(known);
        self.table.keep(others());
        self.announce_missing();
    }

    /// Says hello to members that are not known to live.
    fn announce_missing(&mut self) {
        let mut missing = self.cards.lock().admitted.clone();
        for member in self.swim.iter_members() {
            missing.remove(&member.id().node);
        }
        for node in missing {
            self.run_swim(|swim, runtime| swim.announce(Incarnation { node, life: 0 }, runtime));
        }
    }

    fn publish(&mut self) {
        self.card.revision = now_ms().max(self.card.revision + 1);
        let bytes = self.card.encode();
        self.run_swim(|swim, _| swim.add_broadcast(&bytes).map(|_| ()));
    }

    fn fire_timers(&mut self) {
        let now = Instant::now();
        while self.timers.peek().is_some_and(|Reverse(due)| due.at <= now) {
            let Some(Reverse(due)) = self.timers.pop() else { break };
            self.run_swim(|swim, runtime| swim.handle_timer(due.timer, runtime));
        }
    }

    fn leave(&mut self) {
        self.run_swim(|swim, runtime| swim.leave_cluster(runtime));
        self.settle();
    }

    fn run_swim(
        &mut self,
        step: impl FnOnce(&mut Swim, &mut AccumulatingRuntime<Incarnation>) -> Result<(), foca::Error>,
    ) {
        if let Err(e) = step(&mut self.swim, &mut self.runtime) {
            tracing::debug!("gossip: {e}");
        }
    }

    /// Carries out what the library wants done, and shows what it knows.
    fn settle(&mut self) {
        let mut returned = false;
        while let Some(notification) = self.runtime.to_notify() {
            match notification {
                OwnedNotification::MemberUp(member) => {
                    tracing::info!(peer = %member.node, "a member is up");
                    returned = true;
                }
                OwnedNotification::MemberDown(member) => tracing::warn!(peer = %member.node, "a member is down"),
                OwnedNotification::Rejoin(_) => {
                    tracing::info!("others took this node for down; it has returned");
                    returned = true;
                }
                _ => {}
            }
        }
        if returned {
            // Whoever is new has not heard of this node.
            self.publish();
        }
        while let Some((to, packet)) = self.runtime.to_send() {
            self.send(to.node, &packet);
        }
        while let Some((after, timer)) = self.runtime.to_schedule() {
            self.timers_count += 1;
            self.timers.push(Reverse(Due { at: Instant::now() + after, order: self.timers_count, timer }));
        }
        let health = |state| match state {
            State::Alive => Health::Alive,
            State::Suspect => Health::Suspect,
            State::Down => Health::Down,
        };
        self.table.set_health(self.swim.iter_membership_state().map(|seen| (seen.id().node, health(seen.state()))));
        let mut known = self.cards.lock();
        let news: Vec<Card> =
            std::mem::take(&mut known.news).iter().filter_map(|node| known.cards.get(node).cloned()).collect();
        drop(known);
        news.into_iter().for_each(|card| self.table.set_card(card));
    }

    fn send(&self, to: NodeId, packet: &[u8]) {
        if !self.cards.lock().admitted.contains(&to) {
            return;
        }
        let mut datagram = BytesMut::with_capacity(1 + packet.len());
        datagram.put_u8(VERSION);
        datagram.put_slice(packet);
        let datagram: Bytes = datagram.freeze();
        count("sent", datagram.len());
        if let Err(e) = self.transport.send_datagram(to, datagram) {
            tracing::trace!(peer = %to, "a gossip packet was not sent: {e}");
        }
    }
}

fn count(direction: &'static str, bytes: usize) {
    counter!("keppel_federation_gossip_packets_total", "direction" => direction).increment(1);
    counter!("keppel_federation_gossip_bytes_total", "direction" => direction).increment(bytes as u64);
}
