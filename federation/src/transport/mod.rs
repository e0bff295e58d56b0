//! How nodes reach each other: requests on streams, and small datagrams, between mutually authenticated nodes.
//!
//! The seam [`Transport`] has two real implementations: QUIC for processes, and an in-memory network with controllable
//! faults for tests. Nothing above this room knows which one it runs on.
//!
//! Invariants: a handler only ever sees requests from nodes that proved to hold their key and are admitted; a request
//! ends with an answer or an error before its deadline; every buffer is bounded.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::vocabulary::NodeId;
use crate::wire::Body;

pub mod memory;
pub mod quic;

/// Which room of the receiving node a request is for. Each has its own message types and version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub enum Channel {
    /// Consensus messages between voters and learners.
    Consensus,
    /// A command for the state that is agreed on, forwarded to the leader; or a linearizable read.
    Command,
    /// Admission of a new node.
    Admission,
    /// What a node says of itself when asked: health, positions, load.
    Status,
    /// What the host of a node stores, in the host's own words.
    Content,
    /// The same, for large answers.
    Bulk,
    /// The same, for answers that nobody waits for.
    Background,
}

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// No address of the node is known.
    #[error("no address of node {0} is known")]
    UnknownNode(NodeId),
    /// No connection to the node could be made, so the request was not sent.
    #[error("node {node} cannot be connected to: {cause}")]
    NotConnected {
        /// The node asked.
        node: NodeId,
        /// What the network said.
        cause: String,
    },
    /// The connection to the node broke. Whether the request was carried out is not known.
    #[error("node {node} is unreachable: {cause}")]
    Unreachable {
        /// The node asked.
        node: NodeId,
        /// What the network said.
        cause: String,
    },
    /// The deadline passed. Whether the request was carried out is not known.
    #[error("node {node} did not answer within {after:?}")]
    Timeout {
        /// The node asked.
        node: NodeId,
        /// The deadline.
        after: Duration,
    },
    /// The other side refused, with its reason: not a member, a version it does not speak, overload.
    #[error("node {node} refused: {reason}")]
    Refused {
        /// The node asked.
        node: NodeId,
        /// Its words, shortened.
        reason: String,
    },
    /// The message is larger than the channel allows.
    #[error("a message of {size_bytes} bytes is over the limit of {limit_bytes}")]
    TooLarge {
        /// The size of the message.
        size_bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
}

/// What a node does with requests and datagrams from others.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Answers one request. `from` has proved that it holds its key. The future is dropped when the caller hangs up.
    ///
    /// # Errors
    /// A reason, which the caller sees as [`TransportError::Refused`].
    async fn handle(&self, from: NodeId, channel: Channel, request: Bytes) -> Result<Body, String>;

    /// Takes one datagram. Must not block.
    fn handle_datagram(&self, from: NodeId, datagram: Bytes);
}

/// The way to other nodes.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// This node.
    fn local(&self) -> NodeId;

    /// Starts delivering requests and datagrams to `handler`. Called once.
    fn serve(&self, handler: Arc<dyn Handler>);

    /// Sends one request and waits for its answer, at most `deadline`. It arrives once at most; one on
    /// [`Channel::Consensus`] may arrive twice.
    ///
    /// Cancel safety: dropping the future abandons the request; whether it was carried out is then unknown.
    ///
    /// # Errors
    /// Any [`TransportError`].
    async fn request(
        &self,
        to: NodeId,
        channel: Channel,
        request: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, TransportError>;

    /// Sends one request on [`Channel::Admission`] to a node that need not know this one yet, and need not be admitted
    /// here: how a node asks to become a member. Only the holder of the key `door` gets to see the request.
    ///
    /// Cancel safety: as for `request`.
    ///
    /// # Errors
    /// Any [`TransportError`].
    async fn knock(
        &self,
        door: NodeId,
        addresses: Vec<SocketAddr>,
        request: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, TransportError>;

    /// Connects to whichever member answers at `address` and says who it is, within `deadline`. For addresses whose
    /// node is not known: seeds. A transport without such addresses meets nobody.
    async fn meet(&self, address: SocketAddr, deadline: Duration) -> Option<NodeId> {
        _ = (address, deadline);
        None
    }

    /// Sends one datagram if that is possible at once; it may be lost, doubled or overtaken on the way.
    ///
    /// # Errors
    /// [`TransportError::UnknownNode`] or [`TransportError::TooLarge`]; loss is no error.
    fn send_datagram(&self, to: NodeId, datagram: Bytes) -> Result<(), TransportError>;

    /// Replaces the addresses at which a node is tried. None: the node is forgotten and its connection closed.
    fn set_addresses(&self, node: NodeId, addresses: Vec<SocketAddr>);

    /// Replaces the set of nodes that may connect and be connected to. Connections of all others are closed at once.
    fn set_admitted(&self, nodes: Vec<NodeId>);

    /// The smoothed round-trip time to a node, where a connection stands.
    fn round_trip_time(&self, node: NodeId) -> Option<Duration>;

    /// Which connection to a node is used, and how many packets have come over it: while nothing comes, both stay the same.
    /// `None` without a connection, and where packets are not counted.
    fn packets_from(&self, node: NodeId) -> Option<(usize, u64)> {
        _ = node;
        None
    }

    /// Closes all connections and waits a moment for the other sides to hear of it. Requests fail from then on.
    async fn shutdown(&self);
}
