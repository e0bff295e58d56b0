//! Who is reachable, and what the members say of themselves.
//!
//! A SWIM library keeps the watch: each node probes others in turn, asks third ones before it suspects, and suspects
//! before it declares death, so that a slow or lossy link alone kills nobody. Its packets travel as datagrams of the
//! transport, hence only between members. On the packets ride *cards*: the addresses, API URL, version and load of each
//! node, which spread within seconds.
//!
//! It deliberately decides nothing: who is a member, who owns what and who leads is consensus' business. A node that
//! returns, restarts or moves begins a new life under its old key, and so is alive again for all as soon as it speaks.
//!
//! Invariants: packets go to admitted members only; one entry per member is held; a datagram handler never waits.

mod card;
mod gossip;
mod options;
pub mod seeds;
mod table;
mod task;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::{broadcast, mpsc};
use tokio::task::JoinHandle;

pub use card::{Card, Load};
pub use gossip::exercise_decoders;
pub use options::MembershipOptions;
pub use table::{Health, MembershipEvent, Peer};

use self::table::Table;
use crate::transport::Transport;
use crate::vocabulary::NodeId;

/// Inputs that wait for the task; datagrams beyond are lost, as datagrams are.
const INPUTS_MAX: usize = 1024;
const EVENTS_MAX: usize = 256;

#[derive(Debug)]
enum Input {
    Datagram(NodeId, Bytes),
    Admitted(Vec<NodeId>),
    Publish(Card),
    Leave,
}

/// The watch of one node over the others.
#[derive(Debug)]
pub struct Membership {
    inputs: mpsc::Sender<Input>,
    table: Arc<Table>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Membership {
    /// Starts watching. `card` is what this node says of itself; its revision is set here.
    pub fn start(options: MembershipOptions, transport: Arc<dyn Transport>, card: Card) -> Self {
        let (inputs, receiver) = mpsc::channel(INPUTS_MAX);
        let table = Arc::new(Table::new(broadcast::Sender::new(EVENTS_MAX)));
        let task = task::Task::new(options, transport, table.clone(), receiver, card);
        Self { inputs, table, task: Mutex::new(Some(tokio::spawn(task.run()))) }
    }

    /// Takes a datagram of another member. Never waits; what is too much is dropped.
    pub fn handle_datagram(&self, from: NodeId, datagram: Bytes) {
        if self.inputs.try_send(Input::Datagram(from, datagram)).is_err() {
            metrics::counter!("keppel_federation_gossip_dropped_total").increment(1);
        }
    }

    /// Tells who the members are. Others are neither watched nor talked to.
    pub async fn set_admitted(&self, nodes: Vec<NodeId>) {
        _ = self.inputs.send(Input::Admitted(nodes)).await;
    }

    /// Replaces what this node says of itself.
    pub async fn publish(&self, card: Card) {
        _ = self.inputs.send(Input::Publish(card)).await;
    }

    /// All other members, as this node sees them.
    pub fn peers(&self) -> Vec<Peer> {
        self.table.peers()
    }

    /// One other member.
    pub fn get_peer(&self, node: NodeId) -> Option<Peer> {
        self.table.get_peer(node)
    }

    /// What changes from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<MembershipEvent> {
        self.table.subscribe()
    }

    /// Says farewell, so that nobody has to find out, and stops.
    pub async fn shutdown(&self) {
        _ = self.inputs.send(Input::Leave).await;
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            _ = task.await;
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        if let Some(task) = self.task.lock().unwrap_or_else(PoisonError::into_inner).take() {
            task.abort();
        }
    }
}
