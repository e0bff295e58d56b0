//! An in-memory network with controllable faults: the twin of the QUIC transport for tests, examples and simulations.
//!
//! Messages can be delayed, and so overtake each other; lost; doubled; and cut off in one direction or both. All chance
//! comes from one seed: under a paused clock on one thread, a run can be repeated.
//!
//! What it deliberately lacks: addresses and encryption. Every node is reached by its id.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::{Channel, Handler, Transport, TransportError};
use crate::vocabulary::NodeId;
use crate::wire::Body;

/// The largest message, as on the real network.
const MESSAGE_SIZE_MAX: usize = 8 * 1024 * 1024;
/// The largest datagram, as on the real network.
const DATAGRAM_SIZE_MAX: usize = 1200;

/// What goes wrong with messages on their way.
#[derive(Debug, Clone)]
pub struct Faults {
    /// How long a message is under way, one direction. A wide range makes messages overtake each other.
    pub delay: RangeInclusive<Duration>,
    /// The chance that a message is lost, 0 to 1.
    pub loss: f64,
    /// The chance that a request arrives twice, 0 to 1. A command never does, as on a QUIC stream: whoever refused the
    /// first copy would not know that a second one comes when things have changed.
    pub duplication: f64,
}

impl Default for Faults {
    /// No faults, no delay.
    fn default() -> Self {
        Self { delay: Duration::ZERO..=Duration::ZERO, loss: 0.0, duplication: 0.0 }
    }
}

/// A network of nodes in one process.
#[derive(Clone)]
pub struct MemoryNetwork {
    hub: Arc<Mutex<Hub>>,
}

struct Hub {
    rng: StdRng,
    faults: Faults,
    endpoints: BTreeMap<NodeId, Endpoint>,
    cuts: BTreeSet<(NodeId, NodeId)>,
}

struct Endpoint {
    handler: Option<Arc<dyn Handler>>,
    admitted: Option<BTreeSet<NodeId>>,
    up: Arc<AtomicBool>,
}

/// What chance decided about one message.
struct Leg {
    lost: bool,
    delay: Duration,
    double: Option<Duration>,
}

impl MemoryNetwork {
    /// A network without faults whose chance comes from `seed`.
    pub fn new(seed: u64) -> Self {
        let rng = StdRng::seed_from_u64(seed);
        let hub = Hub { rng, faults: Faults::default(), endpoints: BTreeMap::new(), cuts: BTreeSet::new() };
        Self { hub: Arc::new(Mutex::new(hub)) }
    }

    /// Connects a node. One that was connected before is cut off: it has crashed and starts anew. Until it says whom it
    /// admits, it admits everyone.
    pub fn join(&self, node: NodeId) -> Arc<MemoryTransport> {
        let up = Arc::new(AtomicBool::new(true));
        let endpoint = Endpoint { handler: None, admitted: None, up: up.clone() };
        if let Some(old) = self.hub().endpoints.insert(node, endpoint) {
            old.up.store(false, Ordering::Relaxed);
        }
        Arc::new(MemoryTransport { node, up, network: self.clone() })
    }

    /// Disconnects a node, as a crash does: nothing it sent or asked for arrives any more.
    pub fn leave(&self, node: NodeId) {
        if let Some(old) = self.hub().endpoints.remove(&node) {
            old.up.store(false, Ordering::Relaxed);
        }
    }

    /// Sets what goes wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.hub().faults = faults;
    }

    /// Lets nothing through from one node to another; the other direction stays.
    pub fn cut(&self, from: NodeId, to: NodeId) {
        self.hub().cuts.insert((from, to));
    }

    /// Lets nothing through between a group of nodes and all others.
    pub fn isolate(&self, group: &[NodeId]) {
        let mut hub = self.hub();
        let others: Vec<_> = hub.endpoints.keys().copied().filter(|node| !group.contains(node)).collect();
        for inside in group {
            for outside in &others {
                hub.cuts.insert((*inside, *outside));
                hub.cuts.insert((*outside, *inside));
            }
        }
    }

    /// Undoes all cuts.
    pub fn heal(&self) {
        self.hub().cuts.clear();
    }

    fn hub(&self) -> std::sync::MutexGuard<'_, Hub> {
        self.hub.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn leg(&self, from: NodeId, to: NodeId) -> Leg {
        let Hub { rng, faults, cuts, .. } = &mut *self.hub();
        let delay = |rng: &mut StdRng| rng.random_range(faults.delay.clone());
        let lost = rng.random_bool(faults.loss.clamp(0.0, 1.0)) || cuts.contains(&(from, to));
        let double = rng.random_bool(faults.duplication.clamp(0.0, 1.0)).then(|| delay(rng));
        Leg { lost, delay: delay(rng), double }
    }

    /// The handler of a node, if a message from `from` gets there now.
    fn handler(&self, from: NodeId, to: NodeId, at: Channel) -> Result<Option<Arc<dyn Handler>>, TransportError> {
        let hub = self.hub();
        if hub.cuts.contains(&(from, to)) {
            return Ok(None);
        }
        let unreachable = || TransportError::Unreachable { node: to, cause: "nothing listens there".into() };
        let endpoint = hub.endpoints.get(&to).ok_or_else(unreachable)?;
        let stranger = endpoint.admitted.as_ref().is_some_and(|admitted| !admitted.contains(&from));
        // A stranger may knock, and nothing else.
        if stranger && at != Channel::Admission {
            return Err(TransportError::Refused { node: to, reason: "not a member".into() });
        }
        endpoint.handler.clone().map(Some).ok_or_else(unreachable)
    }
}

/// One node's end of a [`MemoryNetwork`].
pub struct MemoryTransport {
    node: NodeId,
    up: Arc<AtomicBool>,
    network: MemoryNetwork,
}

impl MemoryTransport {
    fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    async fn exchange(&self, to: NodeId, channel: Channel, request: Bytes) -> Result<Bytes, TransportError> {
        let there = self.network.leg(self.node, to);
        if there.lost {
            return std::future::pending().await;
        }
        if let Some(delay) = there.double.filter(|_| channel != Channel::Command) {
            let (network, from, request) = (self.network.clone(), self.node, request.clone());
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                if let Ok(Some(handler)) = network.handler(from, to, channel) {
                    let _ = handler.handle(from, channel, request).await;
                }
            });
        }
        pass(there.delay).await;
        if !self.is_up() {
            return std::future::pending().await;
        }
        let Some(handler) = self.network.handler(self.node, to, channel)? else { return std::future::pending().await };
        let answer = handler.handle(self.node, channel, request).await;
        let back = self.network.leg(to, self.node);
        if back.lost {
            return std::future::pending().await;
        }
        pass(back.delay).await;
        let answer = answer.map(Body::into_bytes);
        answer.map_err(|reason| TransportError::Refused { node: to, reason: reason.chars().take(256).collect() })
    }
}

async fn pass(delay: Duration) {
    if delay.is_zero() {
        tokio::task::yield_now().await;
    } else {
        tokio::time::sleep(delay).await;
    }
}

#[async_trait]
impl Transport for MemoryTransport {
    fn local(&self) -> NodeId {
        self.node
    }

    fn serve(&self, handler: Arc<dyn Handler>) {
        if let (true, Some(endpoint)) = (self.is_up(), self.network.hub().endpoints.get_mut(&self.node)) {
            endpoint.handler = Some(handler);
        }
    }

    async fn request(
        &self,
        to: NodeId,
        channel: Channel,
        request: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, TransportError> {
        if request.len() > MESSAGE_SIZE_MAX {
            return Err(TransportError::TooLarge { size_bytes: request.len(), limit_bytes: MESSAGE_SIZE_MAX });
        }
        match tokio::time::timeout(deadline, self.exchange(to, channel, request)).await {
            Ok(_) if !self.is_up() => {
                Err(TransportError::Unreachable { node: to, cause: "this node has left the network".into() })
            }
            Ok(answer) => answer,
            Err(_) => Err(TransportError::Timeout { node: to, after: deadline }),
        }
    }

    async fn knock(
        &self,
        door: NodeId,
        _addresses: Vec<SocketAddr>,
        request: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, TransportError> {
        self.request(door, Channel::Admission, request, deadline).await
    }

    fn send_datagram(&self, to: NodeId, datagram: Bytes) -> Result<(), TransportError> {
        if datagram.len() > DATAGRAM_SIZE_MAX {
            return Err(TransportError::TooLarge { size_bytes: datagram.len(), limit_bytes: DATAGRAM_SIZE_MAX });
        }
        if !self.is_up() {
            return Ok(());
        }
        let leg = self.network.leg(self.node, to);
        let delays = (!leg.lost).then_some(leg.delay).into_iter().chain(leg.double);
        for delay in delays {
            let (network, from, datagram) = (self.network.clone(), self.node, datagram.clone());
            tokio::spawn(async move {
                pass(delay).await;
                if let Ok(Some(handler)) = network.handler(from, to, Channel::Status) {
                    handler.handle_datagram(from, datagram);
                }
            });
        }
        Ok(())
    }

    fn set_addresses(&self, _node: NodeId, _addresses: Vec<SocketAddr>) {
        // Every node is reached by its id.
    }

    fn set_admitted(&self, nodes: Vec<NodeId>) {
        if let (true, Some(endpoint)) = (self.is_up(), self.network.hub().endpoints.get_mut(&self.node)) {
            endpoint.admitted = Some(nodes.into_iter().collect());
        }
    }

    fn round_trip_time(&self, node: NodeId) -> Option<Duration> {
        let hub = self.network.hub();
        let connected = hub.endpoints.contains_key(&node);
        connected.then(|| *hub.faults.delay.start() + *hub.faults.delay.end())
    }

    async fn shutdown(&self) {
        if self.is_up() {
            self.network.leave(self.node);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo;

    #[async_trait]
    impl Handler for Echo {
        async fn handle(&self, from: NodeId, _: Channel, request: Bytes) -> Result<Body, String> {
            match &request[..] {
                b"refuse" => Err(format!("not for {}", from.short())),
                _ => Ok(request.into()),
            }
        }
        fn handle_datagram(&self, _: NodeId, _: Bytes) {}
    }

    fn node(number: u8) -> NodeId {
        NodeId::from_public_key([number; 32])
    }

    async fn ask(from: &MemoryTransport, to: NodeId, request: &'static [u8]) -> Result<Bytes, TransportError> {
        from.request(to, Channel::Status, Bytes::from_static(request), Duration::from_secs(1)).await
    }

    #[tokio::test(start_paused = true)]
    async fn answers_refusals_cuts_and_crashes_are_told_apart() {
        let network = MemoryNetwork::new(1);
        let (a, b) = (network.join(node(1)), network.join(node(2)));
        b.serve(Arc::new(Echo));
        assert_eq!(ask(&a, node(2), b"hello").await.unwrap(), "hello");
        assert!(matches!(ask(&a, node(2), b"refuse").await, Err(TransportError::Refused { .. })));

        network.cut(node(2), node(1));
        assert!(matches!(ask(&a, node(2), b"hello").await, Err(TransportError::Timeout { .. })));
        network.heal();
        assert_eq!(ask(&a, node(2), b"hello").await.unwrap(), "hello");

        b.set_admitted(vec![node(3)]);
        assert!(matches!(ask(&a, node(2), b"hello").await, Err(TransportError::Refused { .. })));
        network.leave(node(2));
        assert!(matches!(ask(&a, node(2), b"hello").await, Err(TransportError::Unreachable { .. })));
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_seed_loses_the_same_messages() {
        let mut runs = Vec::new();
        for _ in 0..2 {
            let network = MemoryNetwork::new(7);
            let (a, b) = (network.join(node(1)), network.join(node(2)));
            b.serve(Arc::new(Echo));
            network.set_faults(Faults { loss: 0.3, ..Faults::default() });
            let mut arrived = Vec::new();
            for _ in 0..20 {
                arrived.push(ask(&a, node(2), b"hello").await.is_ok());
            }
            runs.push(arrived);
        }
        assert_eq!(runs[0], runs[1]);
        assert!(runs[0].contains(&true) && runs[0].contains(&false));
    }
}
