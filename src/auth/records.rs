use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use keppel_federation::vocabulary::{AccountName, NodeId, Region, TenantId};

/// What a record is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RecordKind {
    /// An auth tenant.
    Tenant,
    /// A user or robot; its id is the subject of its identity.
    User,
    /// A public key that tokens are signed with; its id names the node that signs with it.
    IssuerKey,
}

/// A document that all regions share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its content.
    pub body: Bytes,
    /// Grows with every change, never the same twice.
    pub revision: u64,
}

/// What all regions share about an account, as far as access is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountRecord {
    /// Who is billed and authorised.
    pub tenant: TenantId,
    /// The settings, as they are stored.
    pub settings: Bytes,
    /// Grows with every change of the settings, never the same twice.
    pub settings_revision: u64,
    /// This node's region, where that is not the region of the primary: a replica there may have policies of its own.
    pub replica_region: Option<Region>,
}

/// Reads what all regions share, from memory: every call is quick and waits for nothing.
///
/// Two implementations: the federation's state, and [`MemoryRecords`].
pub trait Records: Send + Sync + 'static {
    /// A record.
    fn get(&self, kind: RecordKind, id: &str) -> Option<Record>;
    /// An account.
    fn get_account(&self, name: &AccountName) -> Option<AccountRecord>;
    /// Whether a node is a member of the federation, so that tokens that it signs count.
    fn is_member(&self, node: NodeId) -> bool;
}

/// What came of a change of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordOutcome {
    /// It is so now.
    Done,
    /// Someone else changed it first.
    Conflict,
}

/// Why a record could not be changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RecordError(pub String);

/// Changes what all regions share. A change is decided once, for all of them.
#[async_trait]
pub trait RecordStore: Records {
    /// Writes a record, if it still has the expected revision; 0: if there is none.
    ///
    /// Cancel safety: dropping the future leaves open whether it is written.
    ///
    /// # Errors
    /// [`RecordError`], when nothing can be decided now.
    async fn put(
        &self,
        kind: RecordKind,
        id: &str,
        body: Vec<u8>,
        expected_revision: Option<u64>,
    ) -> Result<RecordOutcome, RecordError>;

    /// Removes a record, if it still has the expected revision.
    ///
    /// # Errors
    /// [`RecordError`], when nothing can be decided now.
    async fn remove(&self, kind: RecordKind, id: &str, expected_revision: u64) -> Result<RecordOutcome, RecordError>;

    /// The records of a kind whose ids follow `after`, in order, `limit` at most.
    fn list(&self, kind: RecordKind, after: &str, limit: usize) -> Vec<(String, Record)>;
}

/// Records of one process: for a registry without users, and for tests. Every node is a member that was not removed.
#[derive(Debug, Default)]
pub struct MemoryRecords {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    revision: u64,
    records: BTreeMap<(RecordKind, String), Record>,
    accounts: BTreeMap<AccountName, AccountRecord>,
    removed: BTreeSet<NodeId>,
}

impl MemoryRecords {
    /// Writes a record.
    pub fn put(&self, kind: RecordKind, id: &str, body: Vec<u8>) {
        let mut inner = self.lock();
        inner.revision += 1;
        let record = Record { body: body.into(), revision: inner.revision };
        inner.records.insert((kind, id.to_owned()), record);
    }

    /// Removes a record.
    pub fn remove(&self, kind: RecordKind, id: &str) {
        self.lock().records.remove(&(kind, id.to_owned()));
    }

    /// Writes an account.
    pub fn put_account(&self, name: AccountName, tenant: TenantId, settings: Vec<u8>) {
        let mut inner = self.lock();
        inner.revision += 1;
        let record = AccountRecord {
            tenant,
            settings: settings.into(),
            settings_revision: inner.revision,
            replica_region: None,
        };
        inner.accounts.insert(name, record);
    }

    /// Ends the membership of a node.
    pub fn remove_member(&self, node: NodeId) {
        self.lock().removed.insert(node);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Records for MemoryRecords {
    fn get(&self, kind: RecordKind, id: &str) -> Option<Record> {
        self.lock().records.get(&(kind, id.to_owned())).cloned()
    }

    fn get_account(&self, name: &AccountName) -> Option<AccountRecord> {
        self.lock().accounts.get(name).cloned()
    }

    fn is_member(&self, node: NodeId) -> bool {
        !self.lock().removed.contains(&node)
    }
}

#[async_trait]
impl RecordStore for MemoryRecords {
    async fn put(
        &self,
        kind: RecordKind,
        id: &str,
        body: Vec<u8>,
        expected_revision: Option<u64>,
    ) -> Result<RecordOutcome, RecordError> {
        let found = self.get(kind, id).map_or(0, |record| record.revision);
        if expected_revision.is_some_and(|expected| expected != found) {
            return Ok(RecordOutcome::Conflict);
        }
        Self::put(self, kind, id, body);
        Ok(RecordOutcome::Done)
    }

    async fn remove(&self, kind: RecordKind, id: &str, expected_revision: u64) -> Result<RecordOutcome, RecordError> {
        if self.get(kind, id).is_none_or(|record| record.revision != expected_revision) {
            return Ok(RecordOutcome::Conflict);
        }
        Self::remove(self, kind, id);
        Ok(RecordOutcome::Done)
    }

    fn list(&self, kind: RecordKind, after: &str, limit: usize) -> Vec<(String, Record)> {
        let inner = self.lock();
        let all = inner.records.iter().filter(|((of, id), _)| *of == kind && id.as_str() > after);
        all.take(limit).map(|((_, id), record)| (id.clone(), record.clone())).collect()
    }
}
