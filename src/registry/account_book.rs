//! What the registry asks of whoever keeps the accounts of all regions.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use keppel_federation::vocabulary::{AccountName, NodeId, TenantId};

/// What all regions agree on about an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountEntry {
    /// The name.
    pub name: AccountName,
    /// Who is billed and authorised.
    pub tenant: TenantId,
    /// The settings, as they are stored.
    pub settings: Bytes,
    /// Grows with every change of the settings.
    pub settings_revision: u64,
    /// The region that is primary.
    pub region: String,
    /// The host of the primary's API, or its region where that is not known.
    pub primary: String,
    /// Whether this node is primary.
    pub is_ours: bool,
    /// The region of this node.
    pub region_here: String,
    /// Whether this node holds a replica.
    pub is_replica_here: bool,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// The regions that hold replicas.
    pub replicas: Vec<String>,
}

/// Another node, as clients are told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerEntry {
    /// Its name.
    pub node: NodeId,
    /// The host of its API, with the port where that is not the usual one.
    pub hostname: String,
    /// Where it runs.
    pub region: String,
    /// `full` or `witness`.
    pub role: String,
}

/// What was decided about an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccountDecision {
    /// It is so now.
    Done,
    /// This node had the name already; its settings were left alone.
    Held,
    /// Another region has the name.
    Taken {
        /// That region.
        region: String,
    },
    /// Someone else changed it first.
    Conflict,
    /// There is no such account or token, or the token has run out or was used.
    NotFound,
}

/// Why nothing was decided.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Undecided(pub String);

/// Where accounts are agreed on: the federation. Reads come from memory.
#[async_trait]
pub trait AccountBook: Send + Sync + 'static {
    /// An account.
    fn get(&self, name: &AccountName) -> Option<AccountEntry>;
    /// Waits until all that was decided before this call shows here. Many who wait share one question.
    ///
    /// Cancel safety: may be dropped.
    ///
    /// # Errors
    /// [`Undecided`], when nobody can say what was decided.
    async fn catch_up(&self) -> Result<(), Undecided>;
    /// The accounts that follow a name, in order, `limit` at most.
    fn list(&self, after: Option<&AccountName>, limit: usize) -> Vec<AccountEntry>;
    /// The other nodes.
    fn peers(&self) -> Vec<PeerEntry>;
    /// Claims a name for this node.
    ///
    /// # Errors
    /// [`Undecided`].
    async fn claim(
        &self,
        name: &AccountName,
        tenant: &TenantId,
        settings: Vec<u8>,
    ) -> Result<AccountDecision, Undecided>;
    /// Replaces the settings, if they still have the expected revision.
    ///
    /// # Errors
    /// [`Undecided`].
    async fn put_settings(
        &self,
        name: &AccountName,
        settings: Vec<u8>,
        expected_revision: u64,
    ) -> Result<AccountDecision, Undecided>;
    /// Marks an account as being deleted.
    ///
    /// # Errors
    /// [`Undecided`].
    async fn set_deleting(&self, name: &AccountName) -> Result<AccountDecision, Undecided>;
    /// Gives the name of an account back that is being deleted and that this node is primary for.
    ///
    /// # Errors
    /// [`Undecided`].
    async fn forfeit(&self, name: &AccountName) -> Result<AccountDecision, Undecided>;
    /// Records a token that lets another region make a replica.
    ///
    /// # Errors
    /// [`Undecided`].
    async fn issue_sublease(
        &self,
        name: &AccountName,
        token: &str,
        lifetime: Duration,
    ) -> Result<AccountDecision, Undecided>;
    /// Uses such a token up: this node may hold a replica from now on.
    ///
    /// # Errors
    /// [`Undecided`].
    async fn redeem_sublease(&self, name: &AccountName, token: &str) -> Result<AccountDecision, Undecided>;
    /// Ends this node's replica.
    ///
    /// # Errors
    /// [`Undecided`].
    async fn detach_replica(&self, name: &AccountName) -> Result<AccountDecision, Undecided>;
    /// The quota of a tenant as it is stored, with its revision.
    fn get_quota(&self, tenant: &TenantId) -> Option<(Bytes, u64)>;
    /// Writes the quota of a tenant, if it still has the expected revision; 0: if there is none.
    ///
    /// # Errors
    /// [`Undecided`].
    async fn put_quota(
        &self,
        tenant: &TenantId,
        quota: Vec<u8>,
        expected_revision: u64,
    ) -> Result<AccountDecision, Undecided>;
}
