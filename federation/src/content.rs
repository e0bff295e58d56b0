//! The one trait by which the host hands out what it stores.
//!
//! What a request and an answer mean is the host's business: this crate carries them between members, with the limits
//! of [`Channel::Content`](crate::transport::Channel::Content), and sees that only members ask.

use async_trait::async_trait;
use bytes::Bytes;

use crate::vocabulary::NodeId;
use crate::wire::Body;

/// How soon an answer is wanted: where a link is full, the more urgent ones go first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// Somebody waits for a short answer.
    Prompt,
    /// A piece of something large that somebody waits for.
    Bulk,
    /// Nobody waits.
    Background,
}

/// Answers other members' questions about content.
#[async_trait]
pub trait Content: Send + Sync + 'static {
    /// Answers one request. `from` is a member that has proved to hold its key.
    ///
    /// Cancel safety: the future is dropped when the asker hangs up.
    ///
    /// # Errors
    /// A reason, which the asker sees as [`TransportError::Refused`](crate::transport::TransportError::Refused).
    async fn answer(&self, from: NodeId, request: Bytes) -> Result<Body, String>;
}
