use serde::{Deserialize, Serialize};

use keppel_federation::FederationStatus;
use keppel_federation::claims::Role;
use keppel_federation::vocabulary::{AccountName, Digest, NodeId, Region, RepositoryName, TenantId};

use crate::auth::{PeopleAnswer, PeopleRequest};
use crate::janitor::{JanitorStatus, RunReport, ScrubProgress};
use crate::registry::{DivergentEntry, PushedAgain, Readiness};

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
    /// Which invitations there are.
    Invitations,
    /// Take one back.
    RevokeInvitation {
        /// The beginning of its id, which no other invitation shares.
        id: String,
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
    /// Which accounts are claimed, and by whom.
    Accounts {
        /// Those that follow this name.
        after: Option<AccountName>,
    },
    /// Decide who votes.
    SetVoters {
        /// These nodes, by id or its beginning; none: the federation chooses.
        nodes: Vec<String>,
    },
    /// Have regions fetch what they lack of an image.
    Hold {
        /// The repository.
        repository: RepositoryName,
        /// A tag or a digest.
        reference: String,
        /// The regions.
        regions: Vec<Region>,
    },
    /// Which node of a region would become the primary of an account, and what that would mean.
    FindCandidate {
        /// The account.
        account: AccountName,
        /// The region.
        region: Region,
    },
    /// Have a node follow an account and fetch what it lacks, for a while.
    Prepare {
        /// The account.
        account: AccountName,
        /// The node.
        node: NodeId,
    },
    /// Have a node become the primary of an account.
    Install {
        /// The account.
        account: AccountName,
        /// The node.
        node: NodeId,
        /// The epoch that the account is in.
        epoch: u64,
        /// Without the primary.
        by_force: bool,
        /// Whatever other replicas have.
        #[serde(default)]
        regardless: bool,
    },
    /// What only this node has of an account that it was the primary of.
    ListDivergent {
        /// The account.
        account: AccountName,
        /// Entries at most.
        limit: usize,
    },
    /// Push that to the primary.
    PushDivergent {
        /// The account.
        account: AccountName,
    },
    /// Forget it.
    DropDivergent {
        /// The account.
        account: AccountName,
    },
    /// Something about users and robots.
    People {
        /// What.
        people: PeopleRequest,
    },
    /// How the janitor fares.
    JanitorStatus,
    /// Run a task of the janitor now.
    JanitorRun {
        /// The task.
        task: String,
        /// Over one account only.
        account: Option<AccountName>,
        /// Only tell what would be done.
        dry_run: bool,
    },
    /// Begin to look at all that an account keeps.
    Scrub {
        /// The account.
        account: AccountName,
    },
    /// How far that has come.
    ScrubProgress {
        /// The account.
        account: AccountName,
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
    /// The invitations that are remembered.
    Invitations {
        /// Those that can still be used first, then the one that ends last.
        invitations: Vec<InvitationInfo>,
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
    /// How the federation fares.
    Status {
        /// In full.
        status: Box<FederationStatus>,
        /// The accounts of other regions that are followed.
        #[serde(default)]
        copies: Vec<CopyInfo>,
    },
    /// Some accounts.
    Accounts {
        /// In the order of their names.
        accounts: Vec<AccountInfo>,
    },
    /// How the janitor fares.
    JanitorStatus {
        /// In full.
        status: JanitorStatus,
    },
    /// What a task did.
    JanitorRun {
        /// In numbers and words; `None`: it goes on.
        report: Option<RunReport>,
    },
    /// How far a scrub has come.
    ScrubProgress {
        /// So far; `None`: there was none.
        progress: Option<ScrubProgress>,
    },
    /// How much of an image regions hold.
    Held {
        /// The image.
        digest: Digest,
        /// Each node of the regions.
        holdings: Vec<HoldingInfo>,
    },
    /// Who would become the primary of an account.
    Candidate {
        /// The node, and what that would mean.
        candidate: CandidateInfo,
    },
    /// How much of an account a node has.
    Prepared {
        /// That.
        readiness: Readiness,
    },
    /// An account has another primary.
    Moved {
        /// The new epoch.
        epoch: u64,
    },
    /// What only this node has.
    Divergent {
        /// The oldest entries.
        entries: Vec<DivergentEntry>,
        /// How many there are.
        count: u64,
    },
    /// What came of pushing it.
    PushedAgain {
        /// That.
        outcome: PushedAgain,
    },
    /// So many entries were dropped.
    Dropped {
        /// How many.
        count: u64,
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

/// An invitation, as it is agreed on. The secret is not known.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InvitationInfo {
    /// Names it.
    pub id: String,
    /// The region of the new node.
    pub region: Region,
    /// `full` or `witness`.
    pub role: String,
    /// The member that made it; none: that was not noted.
    pub issuer: Option<NodeId>,
    /// When it ends, in milliseconds since 1970.
    pub expires_at_ms: u64,
    /// Whether it has ended, by the clock of the node that tells.
    pub expired: bool,
    /// The node that used it.
    pub used_by: Option<NodeId>,
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

/// An account, as it is agreed on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AccountInfo {
    /// Its name.
    pub name: AccountName,
    /// The tenant that it belongs to; none: the node is of an older version.
    #[serde(default)]
    pub tenant: Option<TenantId>,
    /// The region that is primary for it.
    pub region: Region,
    /// The node that is.
    pub node: NodeId,
    /// How often that has changed, and more: later claims have larger ones.
    pub epoch: u64,
    /// What this node is doing about it, in words.
    #[serde(default)]
    pub note: Option<String>,
}

/// The node that would become the primary of an account.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CandidateInfo {
    /// The node.
    pub node: NodeId,
    /// Its region.
    pub region: Region,
    /// The epoch that the account is in.
    pub epoch: u64,
    /// The region that is primary now.
    pub primary: Region,
    /// Whether that answers.
    pub primary_answers: bool,
    /// How much the node has.
    pub readiness: Readiness,
}

/// An account of another region that is followed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyInfo {
    /// Its name.
    pub account: AccountName,
    /// The region that is primary for it, if it tells what is new.
    pub region: Option<Region>,
    /// `waiting`, `listing` or `following`.
    pub state: String,
    /// Events that are known to have happened and are not here yet; none while it is being listed.
    pub behind_events: Option<u64>,
    /// Bytes of manifests in these events, and of blobs that are to be fetched ahead; none where that is not known.
    #[serde(default)]
    pub behind_bytes: Option<u64>,
    /// How far a replica is that holds everything; none for others.
    #[serde(default)]
    pub eager: Option<EagerInfo>,
    /// How long ago the copy was last known to be all there was; none: not since the node started.
    pub behind_ms: Option<u64>,
    /// Whether this node answers for it without a question.
    pub fresh: bool,
}

/// How far a replica is that holds everything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EagerInfo {
    /// Whether what is missing is known already.
    pub counted: bool,
    /// Blobs that are not there yet.
    pub missing_blobs: u64,
    /// Their sizes, in bytes.
    pub missing_bytes: u64,
    /// How long ago it was proven that nothing is missing, if nothing was found missing since, in milliseconds.
    pub proven_ms: Option<u64>,
}

/// How much of an image a node holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldingInfo {
    /// The node's region.
    pub region: Region,
    /// Manifests that it holds, those of referrers included.
    pub manifests: u64,
    /// Blobs that it holds.
    pub blobs: u64,
    /// What is not there yet; none where the node could not be asked.
    pub missing: Option<u64>,
    /// Why it could not.
    pub problem: Option<String>,
}
