//! What the federation decided, and why it could not.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::model::Member;
use crate::vocabulary::{NodeId, Region};

/// What was decided about a command. A refusal is a decision, not an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It is so now.
    Done,
    /// The node is a member.
    Admitted(Member),
    /// The name belongs to the asker.
    Won {
        /// The epoch of the claim.
        epoch: u64,
        /// The revision of its settings.
        settings_revision: u64,
        /// Whether it was claimed just now; otherwise the asker held it already, and its settings were left alone.
        created: bool,
    },
    /// The name belongs to someone else.
    Taken {
        /// The region that is primary.
        region: Region,
        /// The node that is primary.
        node: NodeId,
        /// The epoch of that claim.
        epoch: u64,
    },
    /// The settings or the document were stored under this revision.
    Stored {
        /// The new revision.
        revision: u64,
    },
    /// The account has another primary now.
    Moved {
        /// The new epoch.
        epoch: u64,
    },
    /// There is no such account, member, document, invitation or token.
    NotFound,
    /// Someone else changed it first.
    Conflict {
        /// The revision it has; 0: there is none.
        revision: u64,
    },
    /// The account is in another epoch than the asker knows.
    StaleEpoch {
        /// The epoch it is in.
        epoch: u64,
        /// The node that is primary.
        owner: NodeId,
    },
    /// The invitation or token has run out.
    Expired,
    /// The invitation was used by another node.
    AlreadyUsed,
    /// The named node is not a member.
    NotMember {
        /// The node.
        node: NodeId,
    },
    /// It will not be done.
    Refused(Refusal),
}

/// Why a command will not be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// Something is larger or more than it may be.
    #[error("{what}: at most {limit}")]
    OverLimit {
        /// What it is.
        what: String,
        /// The bound.
        limit: u64,
    },
    /// A document needs an id.
    #[error("the id is empty")]
    EmptyId,
    /// At least one node has to vote.
    #[error("at least one member has to vote")]
    NoVoter,
    /// The last member with storage stays.
    #[error("the last full member cannot be removed")]
    LastMember,
    /// A witness stores nothing, so it owns nothing.
    #[error("a witness has no storage and cannot hold accounts")]
    Witness,
    /// A member keeps its region and role; to change them it is removed and joins again.
    #[error("the node is a member in another region or role: remove it first")]
    OtherRegionOrRole,
    /// Only an offline recovery may ask this.
    #[error("only an offline recovery may ask this")]
    RecoveryOnly,
    /// A member asked for something in the name of another.
    #[error("a node publishes keys and makes invitations in its own name only")]
    InOwnNameOnly,
}

/// A decision and its place in the one order of all decisions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// What was decided.
    pub outcome: Outcome,
    /// The log index at which it was: a node that has applied this index shows its effect.
    pub applied: u64,
}

/// Why no decision is known.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ClaimsError {
    /// No majority of the voters can be reached, so nothing can be decided. The command was not carried out.
    #[error("no majority of the federation's voters can be reached: {0}")]
    NoQuorum(QuorumLoss),
    /// The deadline passed while the command was under way. It may yet be carried out: ask again with the same request
    /// id, or look.
    #[error("no decision within {after:?}; the command may yet be carried out")]
    Timeout {
        /// The deadline.
        after: Duration,
    },
    /// This node is not a member, or no longer one.
    #[error("this node is not a member of the federation")]
    NotMember,
    /// Too many commands are waiting.
    #[error("too many commands are waiting")]
    Overloaded,
    /// The command breaks a bound.
    #[error("the command is refused: {0}")]
    Refused(#[from] Refusal),
    /// This node is stopping or has stopped.
    #[error("this node is stopping")]
    Stopping,
    /// The federation's database on this node failed; the node takes no further part until it is restarted.
    #[error("the federation's database failed: {0}")]
    Storage(String),
}

/// Who is missing, and what can be done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuorumLoss {
    /// The voters, as far as this node knows.
    pub voters: Vec<NodeId>,
    /// The voters this node or the leader has not heard from lately; empty when that is not known.
    pub missing: Vec<NodeId>,
}

impl std::fmt::Display for QuorumLoss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = |nodes: &[NodeId]| nodes.iter().map(NodeId::short).collect::<Vec<_>>().join(", ");
        match (self.voters.is_empty(), self.missing.is_empty()) {
            (true, _) => write!(f, "this node has not heard from a leader yet; wait until it has joined")?,
            (false, true) => write!(f, "the voters are {}, and no leader is known", names(&self.voters))?,
            (false, false) => write!(f, "of the voters {}, {} are missing", names(&self.voters), names(&self.missing))?,
        }
        if self.voters.len() == 2 {
            write!(f, "; with two voters both are needed: a witness in a third place would prevent this")?;
        }
        write!(f, "; bring them back, or, if they are lost for good, stop this node and run `federation recover`")
    }
}
