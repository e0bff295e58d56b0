//! The transport between processes: QUIC, with TLS 1.3 pinned to the keys of nodes.
//!
//! Requests are streams, of which a connection carries many at a time, the more urgent ones first. A stream is one
//! request and one answer, so a lost packet holds up only what it belongs to. Connections are made when they are
//! needed, kept alive while the node is a member, and made again, with growing pauses, when they break.
//!
//! It deliberately does not find nodes (that is membership's job), nor decide who is a member (claims').
//!
//! Invariants: before its key is accepted a client gets nothing but a handshake; every wait has a deadline and every
//! buffer a limit out of [`QuicOptions`]; a node that is removed has no connection any more when `set_admitted` returns.

mod accept;
mod channels;
mod congestion;
mod dial;
mod endpoint;
mod exchange;
mod failure;
mod metrics;
mod options;
mod peers;
mod serve;
#[cfg(test)]
mod tests;
mod tls;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use quinn::{Connection, RecvStream, SendDatagramError, SendStream};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use options::QuicOptions;

use self::dial::Dialer;
use self::failure::{Close, request_error};
use self::peers::{Lookup, Peers};
use self::tls::{Admitted, Purpose, Tls};
use super::{Channel, Handler, Transport, TransportError};
use crate::identity::NodeKey;
use crate::vocabulary::NodeId;
use crate::wire::VersionRange;

/// How long a shutdown waits for the other sides to hear of it.
const FAREWELL: Duration = Duration::from_millis(500);
const PIECE_BYTES: usize = 64 << 10;

/// Why the transport could not be started.
#[derive(Debug, thiserror::Error)]
pub enum QuicError {
    /// An address could not be listened on.
    #[error(transparent)]
    Bind(#[from] io::Error),
    /// The TLS library refused the key or its settings.
    #[error("TLS could not be set up: {0}")]
    Tls(#[from] rustls::Error),
}

/// The QUIC transport of one node. Must be made within a tokio runtime.
#[derive(Debug)]
pub struct QuicTransport {
    shared: Arc<Shared>,
}

struct Shared {
    local: NodeId,
    versions: VersionRange,
    options: QuicOptions,
    admitted: Admitted,
    peers: Peers,
    door: accept::FrontDoor,
    dialer: Dialer,
    handler: OnceLock<Arc<dyn Handler>>,
    tasks: TaskTracker,
    stopping: CancellationToken,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("local", &self.local).field("peers", &self.peers).finish_non_exhaustive()
    }
}

impl QuicTransport {
    /// Binds the addresses to listen on. Nothing is accepted before [`Transport::serve`].
    ///
    /// # Errors
    /// [`QuicError`].
    pub fn start(key: &NodeKey, options: QuicOptions) -> Result<Self, QuicError> {
        Self::start_speaking(key, options, VersionRange::OURS)
    }

    fn start_speaking(key: &NodeKey, options: QuicOptions, versions: VersionRange) -> Result<Self, QuicError> {
        let admitted = Admitted::default();
        let tls = Tls::new(key, admitted.clone())?;
        let endpoints = endpoint::bind(&options, key, &tls)?;
        let shared = Shared {
            local: key.id(),
            versions,
            peers: Peers::new(key.id(), &options),
            door: accept::FrontDoor::new(&options),
            dialer: Dialer { endpoints, tls, options: options.clone() },
            admitted,
            options,
            handler: OnceLock::new(),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The addresses that are listened on, with the ports that the system chose.
    pub fn listening(&self) -> Vec<SocketAddr> {
        self.shared.dialer.endpoints.iter().filter_map(|endpoint| endpoint.local_addr().ok()).collect()
    }

    /// The addresses at which others may reach this node, as far as this machine can tell: behind a translated address
    /// only an operator knows. Sends nothing.
    pub fn reachable(&self) -> Vec<SocketAddr> {
        endpoint::reachable(&self.listening())
    }

    /// How many connections stand.
    pub fn connection_count(&self) -> usize {
        self.shared.peers.connections().len()
    }
}

impl Drop for QuicTransport {
    fn drop(&mut self) {
        self.shared.stopping.cancel();
        for endpoint in &self.shared.dialer.endpoints {
            Close::Shutdown.endpoint(endpoint);
        }
    }
}

#[async_trait]
impl Transport for QuicTransport {
    fn local(&self) -> NodeId {
        self.shared.local
    }

    fn serve(&self, handler: Arc<dyn Handler>) {
        if self.shared.handler.set(handler).is_err() {
            return;
        }
        for endpoint in &self.shared.dialer.endpoints {
            self.shared.spawn(accept::run(self.shared.clone(), endpoint.clone()));
        }
        self.shared.spawn(metrics::sample(Arc::downgrade(&self.shared)));
    }

    async fn request(
        &self,
        to: NodeId,
        channel: Channel,
        request: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, TransportError> {
        too_large(request.len(), channels::limits(channel).request_bytes)?;
        let end = Instant::now() + deadline;
        let connected = timeout_at(end, self.shared.open_stream(to)).await;
        let (send, receive) = connected.unwrap_or_else(|_| {
            let cause = format!("no connection within {deadline:?}");
            Err(TransportError::NotConnected { node: to, cause })
        })?;
        let exchange = self.shared.exchange(to, send, receive, channel, &request);
        timeout_at(end, exchange).await.unwrap_or(Err(TransportError::Timeout { node: to, after: deadline }))
    }

    async fn knock(
        &self,
        door: NodeId,
        addresses: Vec<SocketAddr>,
        request: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, TransportError> {
        too_large(request.len(), channels::limits(Channel::Admission).request_bytes)?;
        let exchange = async {
            let dialed = self.shared.dialer.dial(Some(door), &addresses, Purpose::Join).await;
            let connection = dialed.map_err(|e| dial_error(door, e.cause, e.refused))?;
            let (send, receive) = connection.open_bi().await.map_err(|e| request_error(door, &e))?;
            let answer = self.shared.exchange(door, send, receive, Channel::Admission, &request).await;
            Close::Done.connection(&connection);
            answer
        };
        timeout(deadline, exchange).await.unwrap_or(Err(TransportError::Timeout { node: door, after: deadline }))
    }

    async fn meet(&self, address: SocketAddr, deadline: Duration) -> Option<NodeId> {
        let known = self.shared.peers.connections().into_iter();
        let mut known = known.filter(|(_, connection)| connection.remote_address() == address);
        if let Some((node, _)) = known.next() {
            return Some(node);
        }
        let dialed = timeout(deadline, self.shared.dialer.dial(None, &[address], Purpose::Member)).await.ok()?;
        let connection = dialed.inspect_err(|e| tracing::debug!("no member was met: {}", e.cause)).ok()?;
        let node = tls::peer_of(&connection)?;
        self.shared.adopt(node, &connection, self.shared.local);
        Some(node)
    }

    fn send_datagram(&self, to: NodeId, datagram: Bytes) -> Result<(), TransportError> {
        match self.shared.peers.get_connection(to) {
            Some(connection) => send_now(&connection, datagram),
            None if !self.shared.admitted.contains(to) => Err(TransportError::UnknownNode(to)),
            None => match self.shared.peers.defer_datagram(to, datagram) {
                true => {
                    self.shared.ensure_dialing(to);
                    Ok(())
                }
                false => Err(TransportError::UnknownNode(to)),
            },
        }
    }

    fn set_addresses(&self, node: NodeId, addresses: Vec<SocketAddr>) {
        for connection in self.shared.peers.set_addresses(node, addresses) {
            Close::Done.connection(&connection);
        }
    }

    fn set_admitted(&self, nodes: Vec<NodeId>) {
        self.shared.admitted.replace(nodes);
        for connection in self.shared.peers.take_connections(|node| self.shared.admitted.contains(node)) {
            Close::NotAMember.connection(&connection);
        }
    }

    fn round_trip_time(&self, node: NodeId) -> Option<Duration> {
        self.shared.peers.get_connection(node).map(|connection| connection.rtt())
    }

    fn packets_from(&self, node: NodeId) -> Option<(usize, u64)> {
        let connection = self.shared.peers.get_connection(node)?;
        Some((connection.stable_id(), connection.stats().udp_rx.datagrams))
    }

    async fn shutdown(&self) {
        self.shared.stopping.cancel();
        self.shared.tasks.close();
        for endpoint in &self.shared.dialer.endpoints {
            Close::Shutdown.endpoint(endpoint);
        }
        self.shared.tasks.wait().await;
        for endpoint in &self.shared.dialer.endpoints {
            _ = timeout(FAREWELL, endpoint.wait_idle()).await;
        }
    }
}

impl Shared {
    /// Runs a task until it ends or the transport stops.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stopping = self.stopping.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = stopping.cancelled() => {}
                () = task => {}
            }
        });
    }

    /// Takes a connection into use, unless the node has been removed in the meantime.
    fn adopt(self: &Arc<Self>, node: NodeId, connection: &Connection, dialed_by: NodeId) {
        let pending = self.peers.connected(node, connection, dialed_by);
        // Looked at after the connection is listed: a removal before sees the list, one after is seen here.
        if !self.admitted.contains(node) {
            self.peers.disconnected(node, connection);
            return Close::NotAMember.connection(connection);
        }
        for datagram in pending {
            _ = send_now(connection, datagram);
        }
        let (shared, served) = (self.clone(), connection.clone());
        self.spawn(async move {
            serve::connection(shared.clone(), node, served.clone()).await;
            shared.peers.disconnected(node, &served);
        });
        let surplus = self.peers.connections().into_iter().filter(|(other, _)| *other == node);
        for (_, other) in surplus.filter(|(_, other)| !self.peers.is_used(node, other)) {
            self.spawn(serve::close_if_surplus(self.clone(), node, other));
        }
    }

    /// A connection to a member, made if need be. Waits as long as that takes.
    async fn connection(self: &Arc<Self>, node: NodeId) -> Result<Connection, TransportError> {
        if !self.admitted.contains(node) {
            return Err(TransportError::Refused { node, reason: "it is not a member of this federation".into() });
        }
        loop {
            let mut changed = match self.peers.look_up(node) {
                Lookup::Connected(connection) => return Ok(connection),
                Lookup::Unknown => return Err(TransportError::UnknownNode(node)),
                Lookup::Failed { cause, refused } => return Err(dial_error(node, cause, refused)),
                Lookup::Wait(changed) => changed,
                Lookup::Dial(addresses) => {
                    let changed = self.peers.watch(node);
                    self.spawn_dial(node, addresses);
                    match changed {
                        Some(changed) => changed,
                        None => continue,
                    }
                }
            };
            // An error means that the node was forgotten: the next look says so.
            _ = changed.changed().await;
        }
    }

    fn ensure_dialing(self: &Arc<Self>, node: NodeId) {
        if let Lookup::Dial(addresses) = self.peers.look_up(node) {
            self.spawn_dial(node, addresses);
        }
    }

    fn spawn_dial(self: &Arc<Self>, node: NodeId, addresses: Vec<SocketAddr>) {
        let shared = self.clone();
        self.spawn(async move {
            match shared.dialer.dial(Some(node), &addresses, Purpose::Member).await {
                Ok(connection) => shared.adopt(node, &connection, shared.local),
                Err(e) => {
                    tracing::debug!(peer = %node, "connecting failed: {}", e.cause);
                    shared.peers.failed(node, e.cause, e.refused);
                }
            }
        });
    }

    /// Opens a stream. A connection that turns out to be dead before anything was sent is replaced, once.
    async fn open_stream(self: &Arc<Self>, node: NodeId) -> Result<(SendStream, RecvStream), TransportError> {
        let first = self.connection(node).await?;
        if let Ok(streams) = first.open_bi().await {
            return Ok(streams);
        }
        self.peers.disconnected(node, &first);
        let second = self.connection(node).await?;
        second.open_bi().await.map_err(|e| {
            let (cause, refused) = failure::describe(&e);
            dial_error(node, cause, refused)
        })
    }
}

fn dial_error(node: NodeId, cause: String, refused: bool) -> TransportError {
    match refused {
        true => TransportError::Refused { node, reason: cause },
        false => TransportError::NotConnected { node, cause },
    }
}

fn too_large(size_bytes: usize, limit_bytes: usize) -> Result<(), TransportError> {
    match size_bytes > limit_bytes {
        true => Err(TransportError::TooLarge { size_bytes, limit_bytes }),
        false => Ok(()),
    }
}

fn send_now(connection: &Connection, datagram: Bytes) -> Result<(), TransportError> {
    let size_bytes = datagram.len();
    match connection.send_datagram(datagram) {
        Err(SendDatagramError::TooLarge) => {
            Err(TransportError::TooLarge { size_bytes, limit_bytes: connection.max_datagram_size().unwrap_or(0) })
        }
        // A connection that is gone is loss.
        _ => Ok(()),
    }
}
