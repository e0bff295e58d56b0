//! What the federation agrees on: members, accounts, documents, invitations and sublease tokens.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::vocabulary::{AccountName, NodeId, Region, TenantId};

/// What a member takes part in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Role {
    /// Stores content, may own accounts, may vote.
    Full,
    /// Only votes: for federations of two regions.
    Witness,
}

impl Role {
    /// The name used in tables and JSON: `full` or `witness`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Witness => "witness",
        }
    }
}

/// What a node says of itself when it is admitted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewMember {
    /// Its identity.
    pub node: NodeId,
    /// Where it runs.
    pub region: Region,
    /// What it takes part in.
    pub role: Role,
    /// Where other nodes reach it; 16 at most.
    pub addresses: Vec<SocketAddr>,
    /// Where clients reach its API, without a slash at the end; empty for a witness; 512 bytes at most.
    pub api_url: String,
}

/// A node that was admitted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its identity.
    pub node: NodeId,
    /// Where it runs.
    pub region: Region,
    /// What it takes part in.
    pub role: Role,
    /// Where other nodes reach it.
    pub addresses: Vec<SocketAddr>,
    /// Where clients reach its API; empty for a witness.
    pub api_url: String,
    /// When it was admitted, in milliseconds since 1970, by the clock of the leader of that moment.
    pub admitted_at_ms: u64,
}

/// Bytes that consensus carries without looking into them.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Opaque(pub Bytes);

impl Opaque {
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<Vec<u8>> for Opaque {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl From<&[u8]> for Opaque {
    fn from(bytes: &[u8]) -> Self {
        Self(Bytes::copy_from_slice(bytes))
    }
}

impl std::fmt::Debug for Opaque {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Serialize for Opaque {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Opaque {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Opaque;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Opaque, E> {
                Ok(Opaque::from(bytes))
            }
            fn visit_byte_buf<E: serde::de::Error>(self, bytes: Vec<u8>) -> Result<Opaque, E> {
                Ok(Opaque::from(bytes))
            }
        }
        deserializer.deserialize_bytes(Visitor)
    }
}

/// The BLAKE3 hash of a one-time secret. The secret itself is never in the log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SecretHash([u8; 32]);

impl SecretHash {
    /// The hash of a secret.
    pub fn of(secret: &[u8]) -> Self {
        Self(*blake3::hash(secret).as_bytes())
    }

    /// The hash in lower-case hexadecimal.
    pub fn hex(&self) -> String {
        blake3::Hash::from_bytes(self.0).to_hex().to_string()
    }
}

impl std::fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// Whether an account is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum AccountState {
    /// In use.
    Active,
    /// Being emptied; it takes no pushes, and is forfeited when it is empty.
    Deleting,
}

/// A claimed account name, with everything about it that all regions share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// The name that is claimed.
    pub name: AccountName,
    /// Who is billed and authorised.
    pub tenant: TenantId,
    /// Its settings, in the host's own format.
    pub settings: Opaque,
    /// Which version of the settings this is: grows with every change, never the same twice.
    pub settings_revision: u64,
    /// The node that is primary.
    pub owner: NodeId,
    /// The region that is primary.
    pub region: Region,
    /// Counts the primaries of the name: grows with every claim and move, so that no two owners share one.
    pub epoch: u64,
    /// Whether it is in use.
    pub state: AccountState,
    /// When the name was claimed, in milliseconds since 1970.
    pub created_at_ms: u64,
    /// The nodes that redeemed a sublease and may hold a replica, with their regions.
    pub replicas: BTreeMap<NodeId, Region>,
    /// Tells this claim of the name from all others that there were or will be: the same through every move, failover and
    /// change of settings. What a node keeps of an account belongs to one claim.
    pub claim_id: u64,
}

/// What a document is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum DocumentKind {
    /// An auth tenant.
    Tenant,
    /// A user.
    User,
    /// A quota of a tenant.
    Quota,
    /// A public key that token issuers sign with. Its id is an [`IssuerKeyId`](crate::vocabulary::IssuerKeyId); it goes
    /// with its node's membership.
    IssuerKey,
    /// Anything else all regions share.
    Setting,
}

/// A document that all regions share, in the host's own format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// What it is about.
    pub kind: DocumentKind,
    /// Which one of its kind; 1 to 256 bytes.
    pub id: String,
    /// Its content.
    pub body: Opaque,
    /// Which version this is: grows with every change, never the same twice.
    pub revision: u64,
}

/// Permission to join, given to whoever shows the secret first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invitation {
    /// The hash of its secret.
    pub secret: SecretHash,
    /// The region the new node will be in.
    pub region: Region,
    /// The role the new node will have.
    pub role: Role,
    /// When it ends, in milliseconds since 1970.
    pub expires_at_ms: u64,
    /// Who used it.
    pub used_by: Option<NodeId>,
    /// The member that made it; none: nobody noted that.
    pub issuer: Option<NodeId>,
}

/// Permission to make a replica of an account, given to whoever shows the token first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sublease {
    /// The hash of its token.
    pub token: SecretHash,
    /// The account it is for.
    pub account: AccountName,
    /// When it ends, in milliseconds since 1970.
    pub expires_at_ms: u64,
}

/// Who votes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum VoterPolicy {
    /// The federation chooses, spread over regions.
    Automatic,
    /// An operator chose these.
    Fixed(BTreeSet<NodeId>),
}
