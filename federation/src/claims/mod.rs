//! What the federation agrees on: members, claims of account names with their settings, and shared documents.
//!
//! Consensus (Raft, from a library) decides one order of commands; every node applies them and so holds the whole
//! state, which it reads locally from memory. Voters decide, learners follow; who votes, the federation chooses itself.
//!
//! This room deliberately lacks: discovery and health of nodes, addresses of connections (the transport has them), and
//! any idea of what settings and documents mean.
//!
//! Invariants: what is acknowledged is on the disks of a majority; a name never has two owners in one epoch; time
//! enters only through the leader, inside the command; nothing of the library is seen outside.

mod command;
mod contacts;
mod model;
mod network;
mod node;
mod options;
mod outcome;
mod propose;
mod raft;
mod recover;
mod review;
#[cfg(test)]
mod simulation;
mod state;
mod status;
mod store;
mod submit;
#[cfg(test)]
mod tests;
mod vetting;
mod view;
mod voters;
mod wire;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use crate::transport::Transport;
use crate::vocabulary::{NodeId, RequestId};
use node::{Belongings, Node};

pub use command::{
    ADDRESSES_MAX, API_URL_SIZE_MAX, Command, DOCUMENT_ID_SIZE_MAX, DOCUMENT_SIZE_MAX, SECRET_LIFETIME_MAX,
};
pub use model::{
    Account, AccountState, Document, DocumentKind, Invitation, Member, NewMember, Opaque, Role, SecretHash, Sublease,
    VoterPolicy,
};
pub use options::ClaimsOptions;
pub use outcome::{ClaimsError, Decision, Outcome, QuorumLoss, Refusal};
pub(crate) use recover::held;
pub use recover::{Recovery, forget, recover};
pub use state::Change;
pub use status::{ClaimsStatus, Part, Progress};
pub(crate) use store::DATABASE_NAME;
pub use store::StoreError;
pub use view::{Changes, Notice, View};
pub use wire::{MESSAGE_SIZE_MAX, exercise_decoders};

/// One node's part in what the federation agrees on.
///
/// The host dispatches requests of [`Channel::Consensus`](crate::transport::Channel::Consensus) and
/// [`Channel::Command`](crate::transport::Channel::Command) to it, and tells the transport the addresses of members.
pub struct Claims {
    node: Arc<Node>,
    stop: CancellationToken,
    tasks: Mutex<Option<Tasks>>,
}

struct Tasks {
    belongings: Belongings,
    background: Vec<tokio::task::JoinHandle<()>>,
}

impl Claims {
    /// Starts from `federation.db` in `directory`, which is made when it is not there.
    ///
    /// On a first start with [`ClaimsOptions::found`] a federation of one is founded. A node that is the only voter is
    /// ready when this returns: it leads and has applied everything. Any other returns at once and catches up.
    ///
    /// # Errors
    /// [`ClaimsError::Storage`] when the database cannot be used, for example by another process holding it.
    pub async fn start(
        options: ClaimsOptions,
        transport: Arc<dyn Transport>,
        directory: &Path,
    ) -> Result<Self, ClaimsError> {
        let storage = |cause: StoreError| ClaimsError::Storage(cause.to_string());
        let connection = store::open(directory, transport.local()).map_err(storage)?;
        Self::start_on(options, transport, connection).await
    }

    async fn start_on(
        options: ClaimsOptions,
        transport: Arc<dyn Transport>,
        connection: rusqlite::Connection,
    ) -> Result<Self, ClaimsError> {
        let (node, belongings) = Node::start(options, transport, connection).await?;
        let stop = CancellationToken::new();
        let claims = Self { node: node.clone(), stop: stop.clone(), tasks: Mutex::new(None) };
        let ready = review::found_or_resume(&node).await;
        let background = vec![
            tokio::spawn(review::run(node.clone(), stop.clone())),
            tokio::spawn(review::keep_majority_contact(node.clone(), stop.clone())),
            tokio::spawn(review::make_way(node.clone(), stop.clone())),
            tokio::spawn(review::keep_log_small(node.clone(), belongings.log.clone(), stop.clone())),
            tokio::spawn(status::report(node, stop)),
        ];
        *claims.tasks() = Some(Tasks { belongings, background });
        match ready {
            Ok(()) => Ok(claims),
            Err(cause) => {
                claims.shutdown().await;
                Err(cause)
            }
        }
    }

    /// Has a command decided, wherever the leader is. Ends within [`ClaimsOptions::command_timeout`].
    ///
    /// Cancel safety: dropping the future leaves open whether the command is carried out.
    ///
    /// # Errors
    /// Any [`ClaimsError`]. After [`ClaimsError::Timeout`] the outcome is not known: use [`Self::submit_as`] with a
    /// request id of one's own to ask again without doing it twice.
    pub async fn submit(&self, command: Command) -> Result<Decision, ClaimsError> {
        self.submit_as(submit::fresh_id(), command).await
    }

    /// Like [`Self::submit`], under a request id: the same id again gives the first decision again.
    ///
    /// # Errors
    /// Those of [`Self::submit`].
    pub async fn submit_as(&self, request: RequestId, command: Command) -> Result<Decision, ClaimsError> {
        self.node.decide(request, command).await
    }

    /// The state as this node knows it now; it may lag behind the leader's.
    pub fn state(&self) -> View {
        self.node.view.clone()
    }

    /// Waits until [`Self::state`] shows everything that was decided before this call, anywhere.
    ///
    /// # Errors
    /// [`ClaimsError::NoQuorum`] when no majority confirms it, and others of [`Self::submit`].
    pub async fn linearize(&self) -> Result<View, ClaimsError> {
        let index = self.node.read_index().await?;
        let timeout = self.node.options.command_timeout;
        match tokio::time::timeout(timeout, self.node.view.wait_applied(index)).await {
            Ok(()) => Ok(self.state()),
            Err(_) => Err(ClaimsError::Timeout { after: timeout }),
        }
    }

    /// The last moment, as [`uptime`](crate::vocabulary::uptime), at which a majority is known to have stood behind what
    /// this node sees; `None`: none since it started. Renewed every [`ClaimsOptions::majority_contact_interval`].
    pub fn majority_asked_at(&self) -> Option<Duration> {
        let contact = *self.node.majority_contact.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        contact.map(|contact| contact.asked_uptime)
    }

    /// Asks for a majority's confirmation now and gives the moment from which it counts, as
    /// [`uptime`](crate::vocabulary::uptime).
    ///
    /// # Errors
    /// Those of [`Self::linearize`].
    pub async fn confirm_majority(&self) -> Result<Duration, ClaimsError> {
        review::contact_majority(&self.node).await
    }

    /// Who leads, who votes, and how far each node is.
    pub fn status(&self) -> ClaimsStatus {
        status::status(&self.node)
    }

    /// Waits until this node knows of a leader. Cancel-safe; the caller sets the deadline.
    pub async fn wait_for_leader(&self) -> Option<NodeId> {
        let mut metrics = self.node.metrics.clone();
        let known = metrics.wait_for(|metrics| metrics.current_leader.is_some()).await;
        known.ok().and_then(|metrics| metrics.current_leader).map(NodeId::from)
    }

    /// Answers a request of [`Channel::Consensus`](crate::transport::Channel::Consensus).
    ///
    /// # Errors
    /// The reason for a refusal, for the other node to read.
    pub async fn handle_consensus(&self, from: NodeId, request: Bytes) -> Result<Bytes, String> {
        self.node.consensus(from, &request).await
    }

    /// Answers a request of [`Channel::Command`](crate::transport::Channel::Command).
    ///
    /// # Errors
    /// The reason for a refusal, for the other node to read.
    pub async fn handle_command(&self, from: NodeId, request: Bytes) -> Result<Bytes, String> {
        let mut request: wire::CommandRequest = wire::decode(&request).map_err(|cause| cause.to_string())?;
        if let wire::CommandRequest::Decide(asked) = request {
            let command = vetting::vetted(asked.command, from, &self.node.view).map_err(|cause| cause.to_string())?;
            request = wire::CommandRequest::Decide(command::Request { command, ..asked });
        }
        let reply = match self.node.view.member(from) {
            Some(_) => self.node.answer(request, self.node.options.command_timeout).await,
            None if self.node.leader() == Some(self.node.id) => wire::CommandReply::NotMember,
            None => wire::CommandReply::NotLeader(self.node.leader()),
        };
        Ok(wire::encode(&reply))
    }

    /// Stops taking part and closes the database. Commands under way end with [`ClaimsError::Stopping`] or
    /// [`ClaimsError::Timeout`]. May be called again.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        let Some(Tasks { belongings, background }) = self.tasks().take() else { return };
        let _ = self.node.raft.shutdown().await;
        for task in background {
            let _ = task.await;
        }
        belongings.proposer.abort();
        let _ = belongings.proposer.await;
        drop(belongings.log);
        let closing = belongings.database.closed();
        if tokio::time::timeout(Duration::from_secs(5), closing).await.is_err() {
            tracing::warn!("the federation's database is still busy; it is left to close by itself");
        }
    }

    fn tasks(&self) -> std::sync::MutexGuard<'_, Option<Tasks>> {
        self.tasks.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Claims {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Claims").field("node", &self.node.id).finish_non_exhaustive()
    }
}

impl Drop for Claims {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
