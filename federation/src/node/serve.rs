//! What comes in from other nodes, sent on to the room it is for.

use std::sync::{Arc, Weak};

use async_trait::async_trait;
use bytes::Bytes;

use super::{Inner, join, status};
use crate::transport::{Channel, Handler};
use crate::vocabulary::NodeId;
use crate::wire::Body;

/// Holds the node weakly: the transport must not keep alive what keeps the transport alive.
struct Dispatch(Weak<Inner>);

pub(super) fn dispatch(inner: &Arc<Inner>) -> Arc<dyn Handler> {
    Arc::new(Dispatch(Arc::downgrade(inner)))
}

#[async_trait]
impl Handler for Dispatch {
    async fn handle(&self, from: NodeId, channel: Channel, request: Bytes) -> Result<Body, String> {
        let inner = self.0.upgrade().ok_or("this node is stopping")?;
        let answer = match channel {
            Channel::Consensus => inner.claims().handle_consensus(from, request).await,
            Channel::Command => inner.claims().handle_command(from, request).await,
            Channel::Admission => join::answer(&inner, from, &request).await,
            Channel::Status => status::answer(&inner),
            Channel::Content | Channel::Bulk | Channel::Background => {
                let content = inner.content().clone().ok_or("this node hands out no content")?;
                return content.answer(from, request).await;
            }
        };
        answer.map(Body::from)
    }

    fn handle_datagram(&self, from: NodeId, datagram: Bytes) {
        if let Some(inner) = self.0.upgrade() {
            inner.membership.handle_datagram(from, datagram);
        }
    }
}
