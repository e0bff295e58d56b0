use tokio::sync::broadcast;

use crate::claims::Change;
use crate::membership::Health;
use crate::vocabulary::NodeId;

/// Something changed that the host may want to react to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FederationEvent {
    /// This was decided: look it up in [`Federation::state`](super::Federation::state).
    Changed(Change),
    /// Anything may have been decided: the reader was too slow, or the whole state came at once.
    Resync,
    /// Another member became reachable or unreachable, as far as this node can tell.
    Health {
        /// The member.
        node: NodeId,
        /// How it fares now.
        health: Health,
    },
}

/// The events of one subscriber, in order.
#[derive(Debug)]
pub struct FederationEvents(broadcast::Receiver<FederationEvent>);

impl FederationEvents {
    pub(super) fn new(receiver: broadcast::Receiver<FederationEvent>) -> Self {
        Self(receiver)
    }

    /// The next event; none when the node is gone. Cancel-safe.
    pub async fn next(&mut self) -> Option<FederationEvent> {
        match self.0.recv().await {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Lagged(_)) => Some(FederationEvent::Resync),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}
