//! Content between hosts: asked for and handed out.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::Federation;
use crate::content::{Content, Urgency};
use crate::membership::Health;
use crate::transport::{Channel, TransportError};
use crate::vocabulary::NodeId;

impl Federation {
    /// From now on answers other members with `content`, until [`Federation::shutdown`].
    pub fn serve_content(&self, content: Arc<dyn Content>) {
        *self.inner.content() = Some(content);
    }

    /// Asks the host of another member and waits for its answer, `deadline` at most.
    ///
    /// Cancel safety: dropping the future abandons the request; whether it was carried out is then unknown.
    ///
    /// # Errors
    /// Any [`TransportError`].
    pub async fn ask(&self, node: NodeId, request: Bytes, deadline: Duration) -> Result<Bytes, TransportError> {
        self.ask_on(Urgency::Prompt, node, request, deadline).await
    }

    /// The same for an answer that is more or less urgent.
    ///
    /// # Errors
    /// Any [`TransportError`].
    pub async fn ask_on(
        &self,
        urgency: Urgency,
        node: NodeId,
        request: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, TransportError> {
        let channel = match urgency {
            Urgency::Prompt => Channel::Content,
            Urgency::Bulk => Channel::Bulk,
            Urgency::Background => Channel::Background,
        };
        self.inner.transport.request(node, channel, request, deadline).await
    }

    /// How long a packet to another member and back takes; `None` while there is no connection to it.
    pub fn round_trip_to(&self, node: NodeId) -> Option<Duration> {
        self.inner.transport.round_trip_time(node)
    }

    /// Which connection to another member is used, and how many packets have come over it: while nothing comes, both stay
    /// the same.
    pub fn packets_from(&self, node: NodeId) -> Option<(usize, u64)> {
        self.inner.transport.packets_from(node)
    }

    /// How another member fares, as far as this node knows; `None` for one it does not watch.
    pub fn health_of(&self, node: NodeId) -> Option<Health> {
        self.inner.membership.get_peer(node).map(|peer| peer.health)
    }
}
