use serde::{Deserialize, Serialize};

use keppel_federation::claims::Role;
use keppel_federation::vocabulary::{NodeId, Region};

use crate::auth::{PeopleAnswer, PeopleRequest};

/// What an operator asks of a running node.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Request {
    /// Make an invitation.
    Invite {
        /// The region of the new node.
        region: Region,
        /// Its role.
        role: InvitedRole,
        /// How long the invitation is good for.
        lifetime_s: u64,
    },
    /// Join the federation that made this invitation.
    Join {
        /// Its text.
        invitation: String,
    },
    /// Who the members are.
    Members,
    /// End a membership.
    Remove {
        /// The node: its id, or the beginning of it that no other member shares.
        node: String,
    },
    /// How the federation fares.
    Status,
    /// Decide who votes.
    SetVoters {
        /// These nodes, by id or its beginning; none: the federation chooses.
        nodes: Vec<String>,
    },
    /// Something about users and robots.
    People {
        /// What.
        people: PeopleRequest,
    },
}

/// What the node says.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// The invitation.
    Invitation {
        /// Its text.
        text: String,
    },
    /// The node has joined.
    Joined {
        /// This node.
        node: NodeId,
        /// Its region.
        region: Region,
    },
    /// The members.
    Members {
        /// In the order of their ids.
        members: Vec<MemberInfo>,
    },
    /// It is done.
    Done,
    /// What came of a request about users and robots.
    People {
        /// That.
        people: PeopleAnswer,
    },
    /// How the federation fares, as the node says it; see [`Status`].
    Status {
        /// In full.
        status: serde_json::Value,
    },
    /// It was not done.
    Refused {
        /// Why, in words.
        reason: String,
    },
}

/// Two kinds of nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InvitedRole {
    /// Stores content, may own accounts, may vote.
    Full,
    /// Only votes.
    Witness,
}

impl From<InvitedRole> for Role {
    fn from(role: InvitedRole) -> Self {
        match role {
            InvitedRole::Full => Self::Full,
            InvitedRole::Witness => Self::Witness,
        }
    }
}

/// A member, as it is agreed on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MemberInfo {
    /// Its id.
    pub node: NodeId,
    /// Where it runs.
    pub region: Region,
    /// `full` or `witness`.
    pub role: String,
    /// Where other nodes reach it.
    pub addresses: Vec<std::net::SocketAddr>,
    /// Where clients reach its API.
    pub api_url: String,
}

/// What the table of `federation status` shows of the full status.
#[derive(Debug, Clone, Deserialize)]
pub struct Status {
    /// The node that was asked.
    pub node: NodeId,
    /// Its part in deciding.
    pub part: String,
    /// Whether it is a member.
    pub member: bool,
    /// Who leads.
    pub leader: Option<NodeId>,
    /// Counts elections.
    pub term: u64,
    /// Whether decisions can be taken.
    pub quorum: Quorum,
    /// How many accounts are claimed.
    pub accounts: usize,
    /// All members.
    pub members: Vec<MemberState>,
}

/// Whether decisions can be taken.
#[derive(Debug, Clone, Deserialize)]
pub struct Quorum {
    /// Whether a majority answers.
    pub healthy: bool,
    /// What is wrong and what to do.
    pub explanation: Option<String>,
}

/// One member in a status.
#[derive(Debug, Clone, Deserialize)]
pub struct MemberState {
    /// Its id.
    pub node: NodeId,
    /// Where it runs.
    pub region: Region,
    /// `full` or `witness`.
    pub role: String,
    /// How it fares.
    pub health: String,
    /// Whether it is the node that was asked.
    pub this: bool,
    /// Whether it votes.
    pub voter: bool,
    /// Whether it leads.
    pub leader: bool,
    /// To it and back.
    pub round_trip_ms: Option<f64>,
    /// Of its program.
    pub version: Option<String>,
    /// Its position in the log.
    pub applied: Option<u64>,
    /// Why it did not answer.
    pub problem: Option<String>,
}
