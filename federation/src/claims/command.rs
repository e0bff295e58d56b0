//! What can be asked of the federation, and the bounds of it.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::model::{DocumentKind, NewMember, Opaque, Role, SecretHash, VoterPolicy};
use super::outcome::Refusal;
use crate::vocabulary::{AccountName, NodeId, Region, RequestId, TenantId};

/// The most bytes a settings document or any other document may have.
pub const DOCUMENT_SIZE_MAX: usize = 256 * 1024;
/// The most bytes the id of a document may have.
pub const DOCUMENT_ID_SIZE_MAX: usize = 256;
/// The most addresses a member may advertise.
pub const ADDRESSES_MAX: usize = 16;
/// The most bytes an API URL may have.
pub const API_URL_SIZE_MAX: usize = 512;
/// The longest an invitation or sublease token may live.
pub const SECRET_LIFETIME_MAX: Duration = Duration::from_secs(90 * 24 * 3600);

/// A change of what all nodes agree on. Each is decided once, in one order, the same on every node.
///
/// The order of the variants and of their fields is the wire format: new ones go to the end. Those named `V1` mean what
/// they meant when they were all there was, so that an old log gives the same state on every node; nothing writes them any
/// more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Makes a node a member. A member that is admitted again keeps its place and gets the new data.
    Admit(NewMember),
    /// Ends a node's membership, and nothing else.
    RemoveV1 {
        /// The node.
        node: NodeId,
    },
    /// Records where a member is reached.
    UpdateMember {
        /// The member.
        node: NodeId,
        /// Where other nodes reach it.
        addresses: Vec<SocketAddr>,
        /// Where clients reach its API.
        api_url: String,
    },
    /// Decides who votes.
    SetVoters(VoterPolicy),
    /// Records an invitation of which nobody knows who made it.
    IssueInvitationV1 {
        /// The hash of its secret.
        secret: SecretHash,
        /// The region the new node will be in.
        region: Region,
        /// The role the new node will have.
        role: Role,
        /// How long it is good for.
        lifetime_ms: u64,
    },
    /// Uses an invitation up and admits the node.
    RedeemInvitation {
        /// The hash of the secret that was shown.
        secret: SecretHash,
        /// The node that showed it, and has proved its key. Region and role are those of the invitation.
        node: NodeId,
        /// Where other nodes reach it.
        addresses: Vec<SocketAddr>,
        /// Where clients reach its API.
        api_url: String,
    },
    /// Claims an account name; what tells the claim from others is when that was.
    ClaimV1 {
        /// The name.
        name: AccountName,
        /// Who is billed and authorised.
        tenant: TenantId,
        /// The settings.
        settings: Opaque,
        /// The member that will be primary.
        owner: NodeId,
    },
    /// Gives a claim back.
    Forfeit {
        /// The name.
        name: AccountName,
        /// The epoch in which the asker knows the claim.
        epoch: u64,
    },
    /// Replaces the settings of an account.
    PutSettings {
        /// The account.
        name: AccountName,
        /// The new settings.
        settings: Opaque,
        /// Only if the settings still have this revision.
        expected_revision: Option<u64>,
    },
    /// Marks an account as being deleted, or no longer so.
    SetDeleting {
        /// The account.
        name: AccountName,
        /// Whether it is being deleted.
        deleting: bool,
    },
    /// Records a sublease token.
    IssueSublease {
        /// The account.
        name: AccountName,
        /// The hash of the token.
        token: SecretHash,
        /// How long it is good for.
        lifetime_ms: u64,
    },
    /// Uses a sublease token up and records the node as a holder of a replica.
    RedeemSublease {
        /// The account.
        name: AccountName,
        /// The hash of the token that was shown.
        token: SecretHash,
        /// The member that showed it.
        node: NodeId,
    },
    /// Ends a node's replica of an account.
    DetachReplica {
        /// The account.
        name: AccountName,
        /// The node.
        node: NodeId,
    },
    /// Makes another member the primary of an account, in a new epoch.
    MovePrimary {
        /// The account.
        name: AccountName,
        /// The new primary.
        to: NodeId,
        /// Only if the account is still in this epoch.
        expected_epoch: u64,
    },
    /// Creates or replaces a document.
    PutDocument {
        /// What it is about.
        kind: DocumentKind,
        /// Which one of its kind.
        id: String,
        /// Its content.
        body: Opaque,
        /// Only if it still has this revision; 0: only if there is none.
        expected_revision: Option<u64>,
    },
    /// Removes a document.
    RemoveDocument {
        /// What it is about.
        kind: DocumentKind,
        /// Which one of its kind.
        id: String,
        /// Only if it still has this revision.
        expected_revision: Option<u64>,
    },
    /// Removes every member but one, and nothing else.
    KeepOnlyV1 {
        /// The node that recovers.
        node: NodeId,
    },
    /// Ends a node's membership. The keys that it published and the invitations that it made and nobody has used go with
    /// it; accounts it owns keep their claim until they are moved.
    Remove {
        /// The node.
        node: NodeId,
    },
    /// Records an invitation.
    IssueInvitation {
        /// The hash of its secret.
        secret: SecretHash,
        /// The region the new node will be in.
        region: Region,
        /// The role the new node will have.
        role: Role,
        /// How long it is good for.
        lifetime_ms: u64,
        /// The member that makes it: the invitation ends with its membership.
        issuer: NodeId,
    },
    /// Takes an invitation back that nobody has used.
    RevokeInvitation {
        /// The hash of its secret.
        secret: SecretHash,
    },
    /// Claims an account name.
    Claim {
        /// The name.
        name: AccountName,
        /// Who is billed and authorised.
        tenant: TenantId,
        /// The settings.
        settings: Opaque,
        /// The member that will be primary.
        owner: NodeId,
    },
    /// Removes every member but one, with their keys and invitations: written by an offline recovery only, refused from
    /// anyone else.
    KeepOnly {
        /// The node that recovers.
        node: NodeId,
    },
}

impl Command {
    /// Whether the command is within its bounds.
    ///
    /// # Errors
    /// The bound that is broken.
    pub fn check(&self) -> Result<(), Refusal> {
        let document = |bytes: &Opaque| within("document bytes", bytes.as_bytes().len(), DOCUMENT_SIZE_MAX);
        match self {
            Self::Admit(member) => contact(&member.addresses, &member.api_url),
            Self::UpdateMember { addresses, api_url, .. } | Self::RedeemInvitation { addresses, api_url, .. } => {
                contact(addresses, api_url)
            }
            Self::IssueInvitation { lifetime_ms, .. }
            | Self::IssueInvitationV1 { lifetime_ms, .. }
            | Self::IssueSublease { lifetime_ms, .. } => {
                let limit = u64::try_from(SECRET_LIFETIME_MAX.as_millis()).unwrap_or(u64::MAX);
                match *lifetime_ms <= limit {
                    true => Ok(()),
                    false => Err(Refusal::OverLimit { what: "lifetime in milliseconds".into(), limit }),
                }
            }
            Self::Claim { settings, .. } | Self::ClaimV1 { settings, .. } | Self::PutSettings { settings, .. } => {
                document(settings)
            }
            Self::PutDocument { id, body, .. } => {
                within("document id bytes", id.len(), DOCUMENT_ID_SIZE_MAX)?;
                match id.is_empty() {
                    true => Err(Refusal::EmptyId),
                    false => document(body),
                }
            }
            Self::SetVoters(VoterPolicy::Fixed(nodes)) if nodes.is_empty() => Err(Refusal::NoVoter),
            Self::SetVoters(VoterPolicy::Fixed(nodes)) => within("voters", nodes.len(), 9),
            Self::RemoveDocument { id, .. } => within("document id bytes", id.len(), DOCUMENT_ID_SIZE_MAX),
            Self::SetVoters(VoterPolicy::Automatic)
            | Self::Remove { .. }
            | Self::RemoveV1 { .. }
            | Self::RevokeInvitation { .. }
            | Self::Forfeit { .. }
            | Self::SetDeleting { .. }
            | Self::RedeemSublease { .. }
            | Self::DetachReplica { .. }
            | Self::MovePrimary { .. }
            | Self::KeepOnly { .. }
            | Self::KeepOnlyV1 { .. } => Ok(()),
        }
    }

    /// About how many bytes the command takes in the log.
    pub(super) fn size_bytes(&self) -> usize {
        let opaque = match self {
            Self::Claim { settings, .. } | Self::PutSettings { settings, .. } => settings.as_bytes().len(),
            Self::PutDocument { body, .. } => body.as_bytes().len(),
            _ => 0,
        };
        1024 + opaque
    }
}

fn contact(addresses: &[SocketAddr], api_url: &str) -> Result<(), Refusal> {
    within("addresses", addresses.len(), ADDRESSES_MAX)?;
    within("API URL bytes", api_url.len(), API_URL_SIZE_MAX)
}

fn within(what: &str, value: usize, limit: usize) -> Result<(), Refusal> {
    match value <= limit {
        true => Ok(()),
        false => Err(Refusal::OverLimit { what: what.into(), limit: limit as u64 }),
    }
}

/// A command with the name of the request it belongs to: asked twice, it is done once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Request {
    pub(super) id: RequestId,
    pub(super) command: Command,
}

/// What one log entry holds: the requests that were waiting together, and the leader's clock. Time comes from here
/// only, so that every node decides alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Batch {
    pub(super) time_ms: u64,
    pub(super) requests: Vec<Request>,
}
