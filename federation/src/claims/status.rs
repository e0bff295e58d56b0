//! What a node knows of consensus, for people and for dashboards.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use openraft::ServerState;
use tokio_util::sync::CancellationToken;

use super::node::Node;
use super::outcome::{ClaimsError, QuorumLoss};
use super::submit::voters;
use crate::vocabulary::NodeId;

/// How often the figures are renewed at most.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// The part a node has in deciding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// It leads: commands are decided through it.
    Leader,
    /// It votes and follows.
    Follower,
    /// It votes and stands for election.
    Candidate,
    /// It follows without a vote.
    Learner,
    /// It has stopped, or its database failed.
    Stopped,
}

impl Part {
    /// The name used in tables and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Follower => "follower",
            Self::Candidate => "candidate",
            Self::Learner => "learner",
            Self::Stopped => "stopped",
        }
    }
}

/// How far another node is, as the leader knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The node.
    pub node: NodeId,
    /// The last log index it is known to hold; `None`: not heard from yet.
    pub matched: Option<u64>,
    /// How long ago it answered.
    pub silence: Option<Duration>,
}

/// What a node knows of consensus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimsStatus {
    /// This node.
    pub node: NodeId,
    /// Its part.
    pub part: Part,
    /// The node that leads, as far as is known.
    pub leader: Option<NodeId>,
    /// The term: counts elections.
    pub term: u64,
    /// Who votes.
    pub voters: BTreeSet<NodeId>,
    /// Whether the voters are being changed: until that is over, the old ones are needed as well as the new ones.
    pub voters_changing: bool,
    /// Who follows without a vote.
    pub learners: BTreeSet<NodeId>,
    /// The last log index this node holds.
    pub last_log: u64,
    /// The last log index this node has applied.
    pub applied: u64,
    /// Log entries up to this index have been compacted away.
    pub purged: u64,
    /// On the leader: how long ago a majority answered.
    pub quorum_ack_age: Option<Duration>,
    /// On the leader: how far the other nodes are.
    pub progress: Vec<Progress>,
    /// On the leader: which voters are silent; elsewhere only who votes.
    pub quorum: QuorumLoss,
}

pub(super) fn status(node: &Node) -> ClaimsStatus {
    let metrics = node.metrics.borrow().clone();
    let membership = metrics.membership_config.membership();
    let part = match (&metrics.running_state, metrics.state) {
        _ if node.check_alive().is_err() => Part::Stopped,
        (Err(_), _) | (_, ServerState::Shutdown) => Part::Stopped,
        (Ok(()), ServerState::Leader) => Part::Leader,
        (Ok(()), ServerState::Candidate) => Part::Candidate,
        (Ok(()), ServerState::Follower) => Part::Follower,
        (Ok(()), ServerState::Learner) => Part::Learner,
    };
    let progress = metrics.replication.iter().flatten().map(|(id, matched)| {
        let node_id = NodeId::from(*id);
        let matched = matched.map(|id| id.index);
        Progress { node: node_id, matched, silence: node.contacts.silence(node_id) }
    });
    ClaimsStatus {
        node: node.id,
        part,
        leader: metrics.current_leader.map(NodeId::from),
        term: metrics.current_term,
        voters: voters(&metrics).into_iter().collect(),
        voters_changing: membership.get_joint_config().len() > 1,
        learners: membership.learner_ids().map(NodeId::from).collect(),
        last_log: metrics.last_log_index.unwrap_or(0),
        applied: node.view.applied(),
        purged: metrics.purged.map_or(0, |id| id.index),
        quorum_ack_age: metrics.millis_since_quorum_ack.map(Duration::from_millis),
        progress: progress.filter(|progress| progress.node != node.id).collect(),
        quorum: node.quorum_loss(),
    }
}

/// Keeps the gauges in step, once a second at most and only when something changed.
pub(super) async fn report(node: Arc<Node>, stop: CancellationToken) {
    let mut changes = node.metrics.clone();
    let mut failure_told = false;
    loop {
        let status = status(&node);
        if let (Err(cause @ ClaimsError::Storage(_)), false) = (node.check_alive(), failure_told) {
            tracing::error!(%cause, "this node takes no further part in decisions until it is restarted");
            failure_told = true;
        }
        metrics::gauge!("keppel_claims_term").set(status.term as f64);
        metrics::gauge!("keppel_claims_leader").set(f64::from(u8::from(status.part == Part::Leader)));
        metrics::gauge!("keppel_claims_log_index").set(status.last_log as f64);
        metrics::gauge!("keppel_claims_applied_index").set(status.applied as f64);
        metrics::gauge!("keppel_claims_log_lag").set(status.last_log.saturating_sub(status.applied) as f64);
        metrics::gauge!("keppel_claims_snapshots_installed").set(node.view.snapshots_installed() as f64);
        metrics::gauge!("keppel_claims_voters").set(status.voters.len() as f64);
        metrics::gauge!("keppel_claims_accounts").set(node.view.accounts_len() as f64);
        let wait = async {
            tokio::time::sleep(REPORT_INTERVAL).await;
            changes.changed().await
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            changed = wait => if changed.is_err() { return },
        }
    }
}
